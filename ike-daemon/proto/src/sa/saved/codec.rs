//! Fields of a saved state. Numbers are big-endian; what varies in length has it in front.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Instant;

use espada_common::sa::{
    Allowances, ChildSaId, Cipher, Encapsulation, EspSuite, GcmIcv, Integrity, Mode, SecretBytes,
    Share, TrafficSelector,
};
use zeroize::Zeroizing;

use super::{MAX_STATE, invalid};
use crate::crypto::dh::KeyExchange;
use crate::identity::Identity;
use crate::proposal::{Additional, DhGroup, IkeSuite, Prf};
use crate::sa::child::Child;
use crate::sa::cp::Lease;
use crate::sa::followup::FollowUp;
use crate::sa::fragment::Message;
use crate::wire::reader::{DecodeError, Reader};
use crate::wire::{PayloadType, Payloads};

const INTEGRITIES: [Integrity; 6] = [
    Integrity::HmacSha1_96,
    Integrity::HmacSha256_128,
    Integrity::HmacSha384_192,
    Integrity::HmacSha512_256,
    Integrity::AesXcbc96,
    Integrity::AesCmac96,
];

/// Collects a state.
pub(super) struct Out {
    bytes: Zeroizing<Vec<u8>>,
    overflow: bool,
}

impl Out {
    pub fn new() -> Self {
        Self {
            // Reserved at once: growth would leave keys behind in freed memory.
            bytes: Zeroizing::new(Vec::with_capacity(MAX_STATE)),
            overflow: false,
        }
    }

    /// What was written; `None` if it was more than a state may hold.
    pub fn finish(self) -> Option<Zeroizing<Vec<u8>>> {
        (!self.overflow).then_some(self.bytes)
    }

    pub fn put(&mut self, octets: &[u8]) {
        if self.bytes.len().saturating_add(octets.len()) > MAX_STATE {
            self.overflow = true;
        } else {
            self.bytes.extend_from_slice(octets);
        }
    }

    pub fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// Octets with their number in front.
    pub fn block(&mut self, octets: &[u8]) {
        // What is longer does not fit in any case.
        self.u16(u16::try_from(octets.len()).unwrap_or(u16::MAX));
        self.put(octets);
    }

    /// The datagrams of a message.
    pub fn message(&mut self, message: &Message) {
        self.u8(u8::try_from(message.datagrams.len()).unwrap_or(u8::MAX));
        for datagram in &message.datagrams {
            self.block(datagram);
        }
    }

    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
    }

    pub fn address(&mut self, address: SocketAddr) {
        self.u8(family(address.ip()));
        self.ip(address.ip());
        self.u16(address.port());
        if let SocketAddr::V6(address) = address {
            self.u32(address.scope_id());
        }
    }

    pub fn addresses(&mut self, addresses: &[IpAddr]) {
        self.u16(addresses.len() as u16);
        for address in addresses {
            self.lone_address(*address);
        }
    }

    pub fn lone_address(&mut self, address: IpAddr) {
        self.u8(family(address));
        self.ip(address);
    }

    pub fn lease(&mut self, lease: &Lease) {
        self.u8(u8::from(lease.ours));
        self.addresses(&lease.addresses);
        self.addresses(&lease.dns);
    }

    pub fn identity(&mut self, identity: &Identity) {
        self.u8(identity.kind());
        self.block(&identity.data());
    }

    fn cipher(&mut self, cipher: Cipher, integrity: Option<Integrity>) {
        let (kind, bits) = match cipher {
            Cipher::AesGcm(bits, GcmIcv::Sixteen) => (1, bits),
            Cipher::ChaCha20Poly1305 => (2, 256),
            Cipher::AesCbc(bits) => (3, bits),
            Cipher::AesGcm(bits, GcmIcv::Eight) => (4, bits),
            Cipher::AesGcm(bits, GcmIcv::Twelve) => (5, bits),
            Cipher::AesCcm(bits, GcmIcv::Sixteen) => (6, bits),
            Cipher::AesCcm(bits, GcmIcv::Twelve) => (7, bits),
            Cipher::AesCcm(bits, GcmIcv::Eight) => (8, bits),
            Cipher::AesCtr(bits) => (9, bits),
            Cipher::AesGmac(bits) => (10, bits),
            Cipher::TripleDes => (11, 192),
            Cipher::Null => (12, 0),
        };
        self.u8(kind);
        self.u16(bits);
        let known = |integrity| INTEGRITIES.iter().position(|known| *known == integrity);
        let index = integrity.and_then(known);
        self.u8(index.map_or(0, |index| index as u8 + 1));
    }

    pub fn ike_suite(&mut self, suite: &IkeSuite) {
        self.cipher(suite.cipher, suite.integrity);
        let prf = Prf::ALL.iter().position(|prf| *prf == suite.prf);
        self.u8(prf.unwrap_or_default() as u8);
        self.u16(suite.group.id());
        for group in suite.additional.by_type() {
            self.u16(group.map_or(0, DhGroup::id));
        }
    }

    pub fn exchange(&mut self, exchange: &KeyExchange) {
        self.u16(exchange.group().id());
        self.block(exchange.drawn());
    }

    pub fn follow_up(&mut self, follow_up: &FollowUp) {
        let answer = follow_up.answer_payloads();
        self.u8(answer.first().0);
        self.block(answer.bytes());
        self.u16(follow_up.secrets.len() as u16);
        for secret in &follow_up.secrets {
            self.block(secret.expose());
        }
    }

    fn selectors(&mut self, selectors: &[TrafficSelector]) {
        self.u16(selectors.len() as u16);
        for selector in selectors {
            self.u8(family(selector.start));
            self.u8(selector.protocol);
            self.u16(selector.start_port);
            self.u16(selector.end_port);
            self.ip(selector.start);
            self.ip(selector.end);
        }
    }

    /// A child SA; selectors are not repeated where they are those of the `previous` one, as with
    /// every rekey.
    pub fn child(
        &mut self,
        child: &Child,
        previous: Option<&Child>,
        time: impl Fn(Instant) -> u64,
    ) {
        self.u64(child.id.0);
        self.u32(child.spi_in);
        self.u32(child.spi_out);
        self.cipher(child.suite.cipher, child.suite.integrity);
        self.u8(u8::from(child.suite.esn));
        self.u8(u8::from(child.encapsulation == Encapsulation::Udp));
        self.u8(u8::from(child.mode == Mode::Transport));
        match child.share {
            Share::Whole => self.u8(WHOLE),
            Share::Fallback => self.u8(FALLBACK),
            Share::Processor(number) => {
                self.u8(PROCESSOR);
                self.u32(number);
            }
            Share::Peer => self.u8(PEER),
        }
        self.u8(u8::from(child.replaced));
        self.u64(time(child.since));
        self.u64(time(child.expires));
        self.option(child.rekey_at, |out, at| out.u64(time(at)));
        let same = previous.is_some_and(|previous| {
            previous.local_ts == child.local_ts && previous.remote_ts == child.remote_ts
        });
        self.u8(u8::from(same));
        if !same {
            self.selectors(&child.local_ts);
            self.selectors(&child.remote_ts);
        }
    }
}

const WHOLE: u8 = 0;
const FALLBACK: u8 = 1;
const PROCESSOR: u8 = 2;
const PEER: u8 = 3;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

pub(super) fn block<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let length = reader.u16()?;
    reader.bytes(usize::from(length))
}

pub(super) fn message(reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let count = reader.u8()?;
    let datagrams = (0..count).map(|_| block(reader).map(<[u8]>::to_vec));
    Ok(Message {
        datagrams: datagrams.collect::<Result<_, _>>()?,
    })
}

pub(super) fn flag(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(invalid("a flag that is neither set nor clear")),
    }
}

pub(super) fn option<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    flag(reader)?.then(|| read(reader)).transpose()
}

/// Elements with their number in front.
pub(super) fn list<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = usize::from(reader.u16()?);
    (0..count).map(|_| read(reader)).collect()
}

fn ip(reader: &mut Reader<'_>, family: u8) -> Result<IpAddr, DecodeError> {
    match family {
        4 => Ok(Ipv4Addr::from(reader.array::<4>()?).into()),
        6 => Ok(Ipv6Addr::from(reader.array::<16>()?).into()),
        _ => Err(invalid("an address of an unknown family")),
    }
}

pub(super) fn address(reader: &mut Reader<'_>) -> Result<SocketAddr, DecodeError> {
    let family = reader.u8()?;
    let address = ip(reader, family)?;
    let port = reader.u16()?;
    Ok(match address {
        IpAddr::V4(_) => SocketAddr::new(address, port),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, reader.u32()?).into(),
    })
}

pub(super) fn lone_address(reader: &mut Reader<'_>) -> Result<IpAddr, DecodeError> {
    let family = reader.u8()?;
    ip(reader, family)
}

pub(super) fn addresses(reader: &mut Reader<'_>) -> Result<Vec<IpAddr>, DecodeError> {
    list(reader, lone_address)
}

pub(super) fn lease(reader: &mut Reader<'_>) -> Result<Lease, DecodeError> {
    Ok(Lease {
        ours: flag(reader)?,
        addresses: addresses(reader)?,
        dns: addresses(reader)?,
    })
}

pub(super) fn identity(reader: &mut Reader<'_>) -> Result<Identity, DecodeError> {
    let kind = reader.u8()?;
    Ok(Identity::from_wire(kind, block(reader)?))
}

fn cipher(reader: &mut Reader<'_>) -> Result<(Cipher, Option<Integrity>), DecodeError> {
    let cipher = match (reader.u8()?, reader.u16()?) {
        (1, bits @ (128 | 192 | 256)) => Cipher::AesGcm(bits, GcmIcv::Sixteen),
        (2, 256) => Cipher::ChaCha20Poly1305,
        (3, bits @ (128 | 192 | 256)) => Cipher::AesCbc(bits),
        (4, bits @ (128 | 192 | 256)) => Cipher::AesGcm(bits, GcmIcv::Eight),
        (5, bits @ (128 | 192 | 256)) => Cipher::AesGcm(bits, GcmIcv::Twelve),
        (6, bits @ (128 | 192 | 256)) => Cipher::AesCcm(bits, GcmIcv::Sixteen),
        (7, bits @ (128 | 192 | 256)) => Cipher::AesCcm(bits, GcmIcv::Twelve),
        (8, bits @ (128 | 192 | 256)) => Cipher::AesCcm(bits, GcmIcv::Eight),
        (9, bits @ (128 | 192 | 256)) => Cipher::AesCtr(bits),
        (10, bits @ (128 | 192 | 256)) => Cipher::AesGmac(bits),
        (11, 192) => Cipher::TripleDes,
        (12, 0) => Cipher::Null,
        _ => return Err(invalid("an unknown cipher")),
    };
    let integrity = match reader.u8()? {
        0 => None,
        number => {
            let known = INTEGRITIES.get(usize::from(number) - 1).copied();
            Some(known.ok_or_else(|| invalid("an unknown integrity algorithm"))?)
        }
    };
    if cipher.is_aead() == integrity.is_some() {
        return Err(invalid(
            "a cipher and an integrity algorithm that do not go together",
        ));
    }
    Ok((cipher, integrity))
}

pub(super) fn group(reader: &mut Reader<'_>) -> Result<DhGroup, DecodeError> {
    DhGroup::from_id(reader.u16()?).ok_or_else(|| invalid("an unknown DH group"))
}

pub(super) fn ike_suite(reader: &mut Reader<'_>) -> Result<IkeSuite, DecodeError> {
    let (cipher, integrity) = cipher(reader)?;
    let prf = Prf::ALL.get(usize::from(reader.u8()?)).copied();
    let prf = prf.ok_or_else(|| invalid("an unknown PRF"))?;
    let group = group(reader)?;
    let mut additional = [None; Additional::MOST];
    for entry in &mut additional {
        *entry = match reader.u16()? {
            0 => None,
            id => Some(DhGroup::from_id(id).ok_or_else(|| invalid("an unknown key exchange"))?),
        };
    }
    Ok(IkeSuite {
        cipher,
        integrity,
        prf,
        group,
        additional: additional.into(),
    })
}

pub(super) fn follow_up(reader: &mut Reader<'_>) -> Result<FollowUp, DecodeError> {
    let first = PayloadType(reader.u8()?);
    let answer = Payloads::collect_all(first, block(reader)?)?;
    let secret = |reader: &mut Reader<'_>| Ok(SecretBytes::new(block(reader)?.to_vec()));
    let secrets = list(reader, secret)?;
    Ok(FollowUp::read(&answer, secrets))
}

fn selector(reader: &mut Reader<'_>) -> Result<TrafficSelector, DecodeError> {
    let family = reader.u8()?;
    let protocol = reader.u8()?;
    let (start_port, end_port) = (reader.u16()?, reader.u16()?);
    let (start, end) = (ip(reader, family)?, ip(reader, family)?);
    let range = TrafficSelector::range(start, end)
        .ok_or_else(|| invalid("addresses the wrong way round"))?;
    let selector = range.with_ports(protocol, start_port, end_port);
    if start_port > end_port && !selector.is_opaque() {
        return Err(invalid("ports the wrong way round"));
    }
    Ok(selector)
}

pub(super) fn child(
    reader: &mut Reader<'_>,
    previous: Option<&Child>,
    time: impl Fn(&mut Reader<'_>) -> Result<Instant, DecodeError>,
) -> Result<Child, DecodeError> {
    let id = ChildSaId(reader.u64()?);
    let (spi_in, spi_out) = (reader.u32()?, reader.u32()?);
    let (cipher, integrity) = cipher(reader)?;
    let suite = EspSuite {
        cipher,
        integrity,
        esn: flag(reader)?,
    };
    let encapsulation = if flag(reader)? {
        Encapsulation::Udp
    } else {
        Encapsulation::Esp
    };
    let mode = if flag(reader)? {
        Mode::Transport
    } else {
        Mode::Tunnel
    };
    let share = match reader.u8()? {
        WHOLE => Share::Whole,
        FALLBACK => Share::Fallback,
        PROCESSOR => Share::Processor(reader.u32()?),
        PEER => Share::Peer,
        _ => return Err(invalid("a child SA with an unknown share")),
    };
    let replaced = flag(reader)?;
    let (since, expires) = (time(reader)?, time(reader)?);
    let rekey_at = option(reader, &time)?;
    let (local_ts, remote_ts) = if flag(reader)? {
        let previous =
            previous.ok_or_else(|| invalid("the selectors of a child SA that is not there"))?;
        (previous.local_ts.clone(), previous.remote_ts.clone())
    } else {
        (list(reader, selector)?, list(reader, selector)?)
    };
    Ok(Child {
        // Drawn anew by whoever goes on, from the configuration of then.
        allowances: Allowances::default(),
        id,
        spi_in,
        spi_out,
        suite,
        encapsulation,
        mode,
        share,
        local_ts,
        remote_ts,
        since,
        rekey_at,
        expires,
        replaced,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_read_back() {
        for suite in EspSuite::all() {
            let mut out = Out::new();
            out.cipher(suite.cipher, suite.integrity);
            let written = out.finish().unwrap();
            let read = cipher(&mut Reader::new(&written, "suite")).unwrap();
            assert_eq!(read, (suite.cipher, suite.integrity));
        }
    }
}
