//! The userspace engine: what it makes of packets is what other implementations make of them, and of what anybody
//! may send it, nothing comes out.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use espada_common::sa::{
    ChildSa, ChildSaId, Cipher, Command, Encapsulation, EspSuite, HalfSa, Integrity, Mode, Path,
    Policy, SecretBytes, Share, TrafficSelector,
};
use espada_dataplane::esp::{Config, Inbound, Outbound, Output, Stats};
use espada_dataplane::umem::{Arena, Burst, FramePool, Meta};

use crate::input::{Input, noise};
use crate::reference;

static SUITES: LazyLock<Vec<EspSuite>> = LazyLock::new(|| EspSuite::all().collect());

/// Octets of UDP's header.
const UDP: usize = 8;
/// Longest UDP payload: with its headers it fits a jumbo frame.
const LONGEST: usize = 8900;
/// Most packets of a burst.
const MOST: usize = 24;
const FRAMES: usize = 4 * MOST;

/// The first octets choose the suite, the path, and what the rest is: choices for a burst of honest packets; a
/// packet from the wire, which nothing but chance could have authenticated; the plaintext of one that the peer
/// sealed; or a packet from the LAN.
pub fn body(input: &[u8]) {
    let mut input = Input::new(input);
    let kind = input.below(4);
    let suite = EspSuite {
        esn: input.below(2) == 1,
        ..SUITES[input.below(SUITES.len())]
    };
    let path = path(input.below(2) == 1, input.below(2) == 1);
    let sa = child(suite, path);
    match kind {
        0 => honest(&sa, &mut input),
        1 => {
            let octets = input.slice(LONGEST);
            let received = Receiver::new(&sa).receive(&[outer(&sa, octets)]);
            assert!(received.is_empty(), "{suite}: {received:02x?}");
        }
        2 => {
            let block = suite.cipher.block_len();
            let octets = input.slice(LONGEST);
            let plaintext = &octets[..octets.len() / block * block];
            let iv = noise(7, suite.cipher.iv_len());
            let packet = reference::seal(&suite, &sa.outbound, 1, &iv, plaintext);
            for opened in Receiver::new(&sa).receive(&[outer(&sa, &packet)]) {
                assert!(
                    is_inner(&opened, plaintext),
                    "{opened:02x?} of {plaintext:02x?}"
                );
            }
        }
        _ => {
            send(&sa, &[input.slice(LONGEST).to_vec()]);
        }
    }
}

/// A burst comes out as the reference has it, and goes in again but for the packet that was damaged.
fn honest(sa: &ChildSa, input: &mut Input<'_>) {
    let suite = &sa.suite;
    let (victim, at, mask) = (
        input.octet(),
        usize::from(input.word()),
        input.octet().max(1),
    );
    let mut inner = Vec::new();
    while !input.is_empty() && inner.len() < MOST {
        let choice = input.octet();
        let length = match choice & 1 {
            0 => usize::from(input.octet()),
            _ => usize::from(input.word()) % LONGEST,
        };
        inner.push(udp(choice & 2 != 0, &noise(choice.into(), length)));
    }
    let sent = send(sa, &inner);
    assert_eq!(sent.len(), inner.len());
    let head = outer_len(&sa.path);
    for ((packet, inner), seq) in sent.iter().zip(&inner).zip(1..) {
        let esp = &packet[head..];
        let iv = &esp[8..8 + suite.cipher.iv_len()];
        let expected = reference::seal(suite, &sa.outbound, seq, iv, &padded(suite, inner));
        assert!(
            esp == expected,
            "{suite} packet {seq} is not the reference's"
        );
    }
    if inner.is_empty() {
        return;
    }
    let victim = usize::from(victim) % inner.len();
    let mut damaged = sent;
    let length = damaged[victim].len() - head;
    damaged[victim][head + at % length] ^= mask;
    let mut receiver = Receiver::new(sa);
    let received = receiver.receive(&damaged);
    inner.remove(victim);
    assert!(
        received == inner,
        "{suite}: {} of {} packets",
        received.len(),
        inner.len()
    );
    let again = receiver.receive(&damaged);
    assert_eq!(again.len(), 0, "{suite}: packets are received twice");
}

/// What the gateway that has `sa` sends of these packets.
fn send(sa: &ChildSa, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let mut outbound = Outbound::new(config(), Stats::new(now));
    for command in commands(sa) {
        outbound.apply(&command).expect("a suite that there is");
    }
    let mut pool = pool();
    let (mut burst, mut out) = (Burst::new(), Output::new());
    fill(&mut burst, &mut pool, packets, Meta::default());
    outbound.process(now, &mut burst, &mut pool, &mut out);
    let sent = octets(&out.wan);
    out.recycle(&mut pool);
    assert_eq!(pool.available(), FRAMES);
    sent
}

/// The gateway at the other end.
struct Receiver {
    inbound: Inbound,
    pool: FramePool,
    path: Path,
    now: Instant,
}

impl Receiver {
    fn new(sa: &ChildSa) -> Self {
        let sa = sa.reversed();
        let now = Instant::now();
        let mut inbound = Inbound::new(config(), Stats::new(now));
        for command in commands(&sa) {
            inbound.apply(&command).expect("a suite that there is");
        }
        Self {
            inbound,
            pool: pool(),
            path: sa.path,
            now,
        }
    }

    /// What comes out of these packets.
    fn receive(&mut self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut burst, mut out) = (Burst::new(), Output::new());
        let meta = Meta {
            path: self.path,
            ..Meta::default()
        };
        fill(&mut burst, &mut self.pool, packets, meta);
        self.inbound
            .process(self.now, &mut burst, &mut self.pool, &mut out);
        let received = octets(&out.tun);
        out.recycle(&mut self.pool);
        assert_eq!(self.pool.available(), FRAMES);
        received
    }
}

fn pool() -> FramePool {
    Arena::new(FRAMES, 16384).expect("memory").take(FRAMES)
}

fn fill(burst: &mut Burst, pool: &mut FramePool, packets: &[Vec<u8>], meta: Meta) {
    for packet in packets {
        let mut frame = pool.get().expect("a free frame");
        let room = frame.append(packet.len()).expect("it fits");
        room.copy_from_slice(packet);
        *frame.meta_mut() = meta;
        burst.push(frame);
    }
}

fn octets(burst: &Burst) -> Vec<Vec<u8>> {
    let frames = burst.frames().iter();
    frames.map(|frame| frame.data().to_vec()).collect()
}

fn config() -> Config {
    Config {
        path_mtu: 9216,
        ..Config::default()
    }
}

/// Whether a plaintext has a right trailer (RFC 4303 section 2.4) behind this packet and what may pad it.
fn is_inner(opened: &[u8], plaintext: &[u8]) -> bool {
    let Some((rest, [padding, next])) = plaintext.split_last_chunk() else {
        return false;
    };
    let payload = rest.len().checked_sub(usize::from(*padding));
    let Some((payload, padding)) = payload.map(|end| rest.split_at(end)) else {
        return false;
    };
    let version = opened.first().map(|octet| octet >> 4);
    payload.starts_with(opened)
        && padding
            .iter()
            .copied()
            .eq((1..=u8::MAX).take(padding.len()))
        && matches!((next, version), (4, Some(4)) | (41, Some(6)))
}

/// With padding and trailer.
fn padded(suite: &EspSuite, inner: &[u8]) -> Vec<u8> {
    let block = suite.cipher.block_len();
    let padding = (inner.len() + 2).next_multiple_of(block) - (inner.len() + 2);
    let next = if inner[0] >> 4 == 6 { 41 } else { 4 };
    let mut plaintext = inner.to_vec();
    plaintext.extend((1..=u8::MAX).take(padding));
    plaintext.extend([padding as u8, next]);
    plaintext
}

/// A UDP datagram without checksum from the sender's side to the receiver's.
fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let length = (UDP + payload.len()) as u16;
    let mut packet = if v6 {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([17, 64]);
        for side in [0xa, 0xb] {
            packet.extend([0xfd, 0, 0, side, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        }
        packet
    } else {
        let mut packet = vec![0x45, 0];
        packet.extend((20 + length).to_be_bytes());
        packet.extend([0, 7, 0, 0, 64, 17, 0, 0, 10, 0, 0, 5, 10, 1, 0, 7]);
        let words = packet
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    packet.extend([0x30, 0x39, 0, 53]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Octets of outer IP header that a port gives the engine, or takes from it, with the packet.
fn outer_len(path: &Path) -> usize {
    match path.encapsulation {
        Encapsulation::Udp => 0,
        Encapsulation::Esp if path.local.is_ipv4() => 20,
        Encapsulation::Esp => 40,
    }
}

/// An ESP packet as it arrives.
fn outer(sa: &ChildSa, esp: &[u8]) -> Vec<u8> {
    let length = esp.len() as u16;
    let mut packet = match outer_len(&sa.path) {
        0 => Vec::new(),
        20 => {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, 50, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
            header
        }
        _ => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([50, 64]);
            header.resize(40, 0);
            header
        }
    };
    packet.extend(esp);
    packet
}

fn path(udp: bool, v6: bool) -> Path {
    let (local, remote) = match v6 {
        true => ("2001:db8::a", "2001:db8::b"),
        false => ("192.0.2.1", "198.51.100.1"),
    };
    let port = if udp { 4500 } else { 0 };
    let end = |address: &str| {
        (
            address.parse::<std::net::IpAddr>().expect("an address"),
            port,
        )
            .into()
    };
    Path {
        local: end(local),
        remote: end(remote),
        encapsulation: if udp {
            Encapsulation::Udp
        } else {
            Encapsulation::Esp
        },
    }
}

fn commands(sa: &ChildSa) -> [Command; 2] {
    let policy = Policy {
        connection: sa.connection.clone(),
        local_ts: sa.local_ts.clone(),
        remote_ts: sa.remote_ts.clone(),
        trap: true,
        mode: Mode::Tunnel,
        addresses: Vec::new(),
    };
    [
        Command::InstallPolicy(policy),
        Command::InstallSa(Box::new(sa.clone())),
    ]
}

fn child(suite: EspSuite, path: Path) -> ChildSa {
    let half = |spi: u32| HalfSa {
        spi,
        encryption_key: SecretBytes::new(key(suite.cipher, spi)),
        integrity_key: SecretBytes::new(noise(
            u64::from(spi) + 1,
            suite.integrity.map_or(0, Integrity::key_len),
        )),
    };
    let range = |start: &str, end: &str| {
        let (start, end) = (
            start.parse().expect("an address"),
            end.parse().expect("an address"),
        );
        TrafficSelector::range(start, end).expect("a range")
    };
    ChildSa {
        id: ChildSaId(1),
        connection: "fuzz".into(),
        suite,
        inbound: half(0x1234_5678),
        outbound: half(0x2345_6789),
        path,
        mode: Mode::Tunnel,
        local_ts: vec![
            range("10.0.0.0", "10.0.255.255"),
            range("fd00:a::", "fd00:a::ffff"),
        ],
        remote_ts: vec![
            range("10.1.0.0", "10.1.255.255"),
            range("fd00:b::", "fd00:b::ffff"),
        ],
        share: Share::Whole,
        replay_window: 64,
        allowances: Default::default(),
        lifetime: Duration::from_secs(3600),
    }
}

fn key(cipher: Cipher, spi: u32) -> Vec<u8> {
    noise(spi.into(), cipher.keymat_len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn every_suite_carries_bursts_as_the_reference_does() {
        for suite in 0..SUITES.len() as u8 {
            for esn in [0, 1] {
                let choices = noise(suite.into(), 40);
                body(&[&[0, esn, suite, suite & 1, esn], &choices[..]].concat());
            }
        }
    }

    #[test]
    fn packets_of_all_kinds() {
        seeded::random(1200, 200, body);
    }

    #[test]
    fn damage_to_what_the_peer_sealed() {
        let gcm = SUITES
            .iter()
            .position(|suite| suite.cipher.is_aead())
            .unwrap() as u8;
        for v6 in [false, true] {
            let plaintext = padded(&SUITES[usize::from(gcm)], &udp(v6, b"a datagram"));
            seeded::damaged(&[&[2, 0, gcm, 1, 0], &plaintext[..]].concat(), body);
            seeded::damaged(
                &[&[3, 0, gcm, 1, 0], &udp(v6, b"a datagram")[..]].concat(),
                body,
            );
        }
    }
}
