//! States: how one direction of a pair is described to the kernel, and what the kernel says of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use espada_common::sa::{ChildSa, Cipher, Encapsulation, HalfSa, Integrity, Mode, Path};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use zerocopy::{FromBytes, IntoBytes};

use super::socket::{Message, Requests};
use super::wire::{
    self, Address, Attributes, Body, Current, Drops, ESP, Encap, Id, Limits, MarkValue, Offload,
    ReplayEsn, SaId, SaInfo, SpiInfo, algorithm_name, attribute, family, group, message,
    offload_flag, state_flag,
};
use super::{Mark, OffloadKind};
use crate::netlink::NetlinkError;

/// UDP_ENCAP_ESPINUDP.
const ESP_IN_UDP: u16 = 2;

/// Seconds between two reports of a peer whose packets come from elsewhere.
const MAPPING_INTERVAL: u32 = 1;

/// Window of a state that only sends: the kernel wants one for the sequence numbers' sake.
const IDLE_WINDOW: u32 = 32;

/// The largest replay window the kernel takes, in packets.
pub const MOST_WINDOW: u32 = wire::MOST_WORDS * 32;

/// So many of the 32-bit sequence numbers are left when the control side is told.
pub const SEQ_LOW: u64 = u32::MAX as u64 / 16;

/// Longest lifetime given to the kernel, in seconds: it adds the time of day to it.
const LONGEST: u64 = u32::MAX as u64;

/// Which direction of a pair a state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// What arrives.
    Inbound,
    /// What is sent.
    Outbound,
}

/// What distinguishes a state in the kernel: it has one for each destination and SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId {
    /// Destination of the ESP packets.
    pub destination: IpAddr,
    /// Their SPI.
    pub spi: u32,
}

impl StateId {
    /// The state of one direction of a pair.
    pub fn of(sa: &ChildSa, side: Side) -> Self {
        match side {
            Side::Inbound => Self {
                destination: sa.path.local.ip(),
                spi: sa.inbound.spi,
            },
            Side::Outbound => Self {
                destination: sa.path.remote.ip(),
                spi: sa.outbound.spi,
            },
        }
    }

    fn wire(&self) -> SaId {
        SaId {
            destination: self.destination.into(),
            spi: self.spi.into(),
            family: family(self.destination),
            proto: ESP,
            ..SaId::default()
        }
    }
}

impl std::fmt::Display for StateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SPI {:#010x} to {}", self.spi, self.destination)
    }
}

/// Sequence number and window of a state, for the one that takes its place.
pub struct Replay {
    counters: ReplayEsn,
    bitmap: Vec<u8>,
}

impl Replay {
    /// Sequence numbers used for sending.
    pub fn sent(&self) -> u64 {
        u64::from(self.counters.out_high) << 32 | u64::from(self.counters.out_low)
    }
}

/// What all states of an engine have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct Common {
    /// Mark that packets and lookups must bear.
    pub mark: Option<Mark>,
    /// Mark that encapsulated packets get.
    pub output_mark: Option<Mark>,
}

/// Everything that goes into a state beside the pair itself.
pub struct Settings<'a> {
    pub common: &'a Common,
    pub reqid: u32,
    /// 0 for none.
    pub if_id: u32,
    pub path: Path,
    /// Time the state has left.
    pub lifetime: Duration,
    /// Device and how much of the work it does.
    pub offload: Option<(u32, OffloadKind)>,
    /// The processor whose packets the outbound state is for.
    pub processor: Option<u32>,
    pub replay: Option<&'a Replay>,
}

/// `mode` of states and templates.
pub fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Transport => 0,
        Mode::Tunnel => 1,
    }
}

/// Kernel's name of an integrity algorithm.
pub fn integrity_name(integrity: Integrity) -> &'static str {
    match integrity {
        Integrity::HmacSha1_96 => "hmac(sha1)",
        Integrity::HmacSha256_128 => "hmac(sha256)",
        Integrity::HmacSha384_192 => "hmac(sha384)",
        Integrity::HmacSha512_256 => "hmac(sha512)",
        Integrity::AesXcbc96 => "xcbc(aes)",
        Integrity::AesCmac96 => "cmac(aes)",
    }
}

/// Kernel's name of a cipher.
pub fn cipher_name(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::AesGcm(..) => "rfc4106(gcm(aes))",
        Cipher::ChaCha20Poly1305 => "rfc7539esp(chacha20,poly1305)",
        Cipher::AesCbc(_) => "cbc(aes)",
        Cipher::AesCcm(..) => "rfc4309(ccm(aes))",
        Cipher::AesCtr(_) => "rfc3686(ctr(aes))",
        Cipher::AesGmac(_) => "rfc4543(gcm(aes))",
        Cipher::TripleDes => "cbc(des3_ede)",
        Cipher::Null => "ecb(cipher_null)",
    }
}

fn bits(octets: usize) -> [u8; 4] {
    u32::try_from(octets * 8).unwrap_or(u32::MAX).to_ne_bytes()
}

/// The body of NEWSA or UPDSA for one direction of a pair.
pub fn describe(sa: &ChildSa, side: Side, settings: &Settings<'_>) -> Body {
    let path = &settings.path;
    let (half, from, to) = match side {
        Side::Inbound => (&sa.inbound, path.remote, path.local),
        Side::Outbound => (&sa.outbound, path.local, path.remote),
    };
    let mut limits = Limits {
        hard_add_seconds: settings.lifetime.as_secs().clamp(1, LONGEST),
        ..Limits::none()
    };
    let (soft, hard) = (sa.allowances.soft, sa.allowances.hard);
    for (limit, allowed) in [
        (&mut limits.soft_bytes, soft.bytes),
        (&mut limits.hard_bytes, hard.bytes),
        (&mut limits.soft_packets, soft.packets),
        (&mut limits.hard_packets, hard.packets),
    ] {
        *limit = allowed.unwrap_or(*limit);
    }
    if side == Side::Outbound && !sa.suite.esn {
        // Each packet takes a sequence number at least; the kernel itself stops at the last one.
        limits.soft_packets = limits.soft_packets.min(u64::from(u32::MAX) - SEQ_LOW);
    }
    let mut flags = 0;
    if sa.suite.esn {
        flags |= state_flag::ESN;
    }
    if sa.mode == Mode::Tunnel {
        flags |= state_flag::AF_UNSPEC;
    }
    let info = SaInfo {
        id: Id {
            destination: to.ip().into(),
            spi: half.spi.into(),
            proto: ESP,
            ..Id::default()
        },
        source: from.ip().into(),
        limits,
        reqid: settings.reqid,
        family: family(to.ip()),
        mode: mode(sa.mode),
        flags,
        ..SaInfo::default()
    };
    let mut body = algorithms(Body::new(&info), sa, half);
    let processor = settings.processor.filter(|_| side == Side::Outbound);
    let (window, least_words) = match (side, processor) {
        (Side::Inbound, _) => (sa.replay_window, 1),
        (Side::Outbound, None) => (IDLE_WINDOW, 1),
        // A state that is said to be outbound must not have any.
        (Side::Outbound, Some(_)) => (0, 0),
    };
    body = replay(body, window, least_words, settings.replay);
    if let Some(processor) = processor {
        body = body
            .attribute(attribute::SA_DIR, &[&[wire::OUTBOUND]])
            .number(attribute::SA_PCPU, processor);
    }
    if path.encapsulation == Encapsulation::Udp {
        body = encapsulation(body, from, to);
        if side == Side::Inbound {
            body = body.number(attribute::MTIMER_THRESH, MAPPING_INTERVAL);
        }
    }
    if settings.if_id != 0 {
        body = body.number(attribute::IF_ID, settings.if_id);
    }
    body = mark(body, settings.common);
    if let Some(mark) = settings.common.output_mark {
        body = body
            .number(attribute::SET_MARK, mark.value)
            .number(attribute::SET_MARK_MASK, mark.mask);
    }
    if let Some((interface, kind)) = settings.offload {
        let mut flags = 0;
        if side == Side::Inbound {
            flags |= offload_flag::INBOUND;
        }
        if kind == OffloadKind::Packet {
            flags |= offload_flag::PACKET;
        }
        let offload = Offload {
            interface,
            flags,
            ..Offload::default()
        };
        body = body.attribute(attribute::OFFLOAD_DEV, &[offload.as_bytes()]);
    }
    body
}

/// Appends cipher and integrity algorithm with their keys.
pub fn algorithms(body: Body, sa: &ChildSa, half: &HalfSa) -> Body {
    let cipher = sa.suite.cipher;
    let key = half.encryption_key.expose();
    let name = algorithm_name(cipher_name(cipher));
    if cipher.is_aead() {
        let icv = bits(sa.suite.icv_len());
        return body.attribute(attribute::ALG_AEAD, &[&name, &bits(key.len()), &icv, key]);
    }
    let body = body.attribute(attribute::ALG_CRYPT, &[&name, &bits(key.len()), key]);
    let Some(integrity) = sa.suite.integrity else {
        return body;
    };
    let key = half.integrity_key.expose();
    let name = algorithm_name(integrity_name(integrity));
    let icv = bits(integrity.icv_len());
    body.attribute(
        attribute::ALG_AUTH_TRUNC,
        &[&name, &bits(key.len()), &icv, key],
    )
}

fn replay(body: Body, window: u32, least_words: u32, carried: Option<&Replay>) -> Body {
    if let Some(replay) = carried {
        let parts = [replay.counters.as_bytes(), &replay.bitmap];
        return body.attribute(attribute::REPLAY_ESN_VAL, &parts);
    }
    let words = window.div_ceil(32).max(least_words);
    let counters = ReplayEsn {
        words,
        window,
        ..ReplayEsn::default()
    };
    let bitmap = vec![0; words as usize * 4];
    body.attribute(attribute::REPLAY_ESN_VAL, &[counters.as_bytes(), &bitmap])
}

fn encapsulation(body: Body, from: SocketAddr, to: SocketAddr) -> Body {
    let encap = Encap {
        kind: ESP_IN_UDP,
        source_port: from.port().into(),
        destination_port: to.port().into(),
        ..Encap::default()
    };
    body.attribute(attribute::ENCAP, &[encap.as_bytes()])
}

/// Appends the mark of states and policies.
pub fn mark(body: Body, common: &Common) -> Body {
    match common.mark {
        Some(Mark { value, mask }) => {
            body.attribute(attribute::MARK, &[MarkValue { value, mask }.as_bytes()])
        }
        None => body,
    }
}

/// A state as the kernel tells of it.
pub struct Known {
    /// Which; SPI 0 is a larval state that waits for its keys.
    pub id: StateId,
    /// Request id.
    pub reqid: u32,
    /// Number of the request that a larval state stands for.
    pub seq: u32,
    /// The xfrm interface it belongs to, 0 for none.
    pub if_id: u32,
    /// Packets and octets carried.
    pub current: Current,
    /// Packets refused.
    pub drops: Drops,
    /// Seconds since 1970 of the last packet.
    pub last_used: Option<u64>,
    /// Whether a device does (part of) its work.
    pub offloaded: bool,
    /// Mark that lookups must bear.
    pub mark: Option<Mark>,
    /// Sequence numbers and window.
    pub replay: Option<Replay>,
}

impl Known {
    /// Reads an entry of a dump, or what DELSA reports of a state that goes.
    pub fn read(message: &Message) -> Option<Self> {
        match message.kind {
            message::NEWSA => {
                let (info, attributes) = wire::split::<SaInfo>(&message.payload)?;
                Self::of(&info, attributes)
            }
            message::DELSA => {
                // `struct xfrm_usersa_info` follows as an attribute.
                const SA: u16 = 6;
                let (_, attributes) = wire::split::<SaId>(&message.payload)?;
                Self::of(&attributes.read::<SaInfo>(SA)?, attributes)
            }
            _ => None,
        }
    }

    fn of(info: &SaInfo, attributes: Attributes<'_>) -> Option<Self> {
        if info.id.proto != ESP {
            return None;
        }
        let replay = attributes
            .find(attribute::REPLAY_ESN_VAL)
            .and_then(|value| {
                let (counters, bitmap) = ReplayEsn::read_from_prefix(value).ok()?;
                let words = usize::try_from(counters.words.min(wire::MOST_WORDS)).ok()?;
                Some(Replay {
                    counters,
                    bitmap: bitmap.get(..words * 4)?.to_vec(),
                })
            });
        Some(Self {
            id: StateId {
                destination: info.id.destination.of_family(info.family)?,
                spi: info.id.spi.get(),
            },
            reqid: info.reqid,
            seq: info.seq,
            if_id: attributes.read(attribute::IF_ID).unwrap_or(0),
            current: info.current,
            drops: info.drops,
            last_used: attributes.read(attribute::LASTUSED),
            offloaded: attributes
                .read::<Offload>(attribute::OFFLOAD_DEV)
                .is_some_and(|offload| offload.interface != 0),
            mark: attributes
                .read::<MarkValue>(attribute::MARK)
                .map(|MarkValue { value, mask }| Mark { value, mask }),
            replay,
        })
    }
}

/// Every ESP state of the namespace.
pub fn list(requests: &mut Requests) -> Result<Vec<Known>, NetlinkError> {
    let body = Body::new(&SaId::default());
    let answers = requests.dump("list XFRM states", message::GETSA, &body)?;
    Ok(answers.iter().filter_map(Known::read).collect())
}

/// Adds a state; one with the same destination and SPI is an error (EEXIST).
pub fn add(requests: &mut Requests, id: &StateId, body: &Body) -> Result<(), NetlinkError> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    requests.run(&format!("add state {id}"), message::NEWSA, flags, body)
}

/// Changes ports and lifetime of a state that is there; counters and keys stay.
pub fn update(requests: &mut Requests, id: &StateId, body: &Body) -> Result<(), NetlinkError> {
    requests.run(&format!("change state {id}"), message::UPDSA, 0, body)
}

fn named(id: &StateId, common: &Common) -> Body {
    mark(Body::new(&id.wire()), common)
}

/// Removes a state; one that is gone already (it expired) is no error.
pub fn remove(requests: &mut Requests, id: &StateId, common: &Common) -> Result<(), NetlinkError> {
    let operation = format!("remove state {id}");
    match requests.run(&operation, message::DELSA, 0, &named(id, common)) {
        Err(error) if error.errno() == libc::ESRCH => Ok(()),
        other => other,
    }
}

/// What the kernel knows of one state.
pub fn look_up(
    requests: &mut Requests,
    id: &StateId,
    common: &Common,
) -> Result<Option<Known>, NetlinkError> {
    let operation = format!("look up state {id}");
    let answers = requests.ask(&operation, message::GETSA, &named(id, common))?;
    Ok(answers.iter().find_map(Known::read))
}

/// Removes a state and returns what it was at its end: no packet can come between reading its
/// sequence numbers and removing it, so none can be sent or received twice.
/// [`Requests::overhear`] says what socket this takes.
pub fn take(requests: &mut Requests, id: &StateId, common: &Common) -> Result<Known, NetlinkError> {
    let operation = format!("take state {id}");
    let body = named(id, common);
    let heard = requests.overhear(&operation, message::DELSA, &body, group::SA)?;
    heard
        .iter()
        .filter_map(Known::read)
        .find(|known| known.id == *id)
        .ok_or_else(|| {
            let source = std::io::Error::other("the kernel did not tell its sequence numbers");
            NetlinkError::new(&*operation, None, source)
        })
}

/// Removes a state that was listed, whatever its mark. A larval one has no SPI to be removed by: it
/// gets one first.
pub fn remove_known(requests: &mut Requests, known: &Known) -> Result<(), NetlinkError> {
    let common = Common {
        mark: known.mark,
        output_mark: None,
    };
    if known.id.spi != 0 {
        return remove(requests, &known.id, &common);
    }
    let request = SpiInfo {
        info: SaInfo {
            id: Id {
                destination: known.id.destination.into(),
                proto: ESP,
                ..Id::default()
            },
            source: Address::ANY,
            limits: Limits::none(),
            seq: known.seq,
            reqid: known.reqid,
            family: family(known.id.destination),
            mode: mode(Mode::Tunnel),
            ..SaInfo::default()
        },
        least: 0x100,
        most: u32::MAX,
    };
    let operation = "end a state that waits for its keys";
    let body = mark(Body::new(&request), &common);
    let answers = requests.ask(operation, message::ALLOCSPI, &body)?;
    match answers.iter().find_map(Known::read) {
        Some(known) => remove(requests, &known.id, &common),
        None => Ok(()),
    }
}
