//! What the tests share: packets, SAs and a pair of gateways in memory.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, ChildSaId, Cipher, Command, Encapsulation, EspSuite, Event, GcmIcv, HalfSa, Integrity,
    Mode, Path, Policy, SecretBytes, Share, TrafficSelector,
};

use crate::esp::ip::{self, Outer, protocol};
use crate::esp::{Config, Inbound, Outbound, Output, Stats};
use crate::port::checksum;
use crate::umem::{Arena, Burst, Frame, FramePool, Meta};

pub const GCM: EspSuite = EspSuite {
    cipher: Cipher::AesGcm(256, GcmIcv::Sixteen),
    integrity: None,
    esn: false,
};

/// Every suite the engine carries.
pub fn suites() -> Vec<EspSuite> {
    [false, true]
        .into_iter()
        .flat_map(|esn| EspSuite::all().map(move |suite| EspSuite { esn, ..suite }))
        .collect()
}

pub fn range(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    }
}

pub fn path(encapsulation: Encapsulation, v6: bool) -> Path {
    let (local, remote): (IpAddr, IpAddr) = if v6 {
        (
            "2001:db8::a".parse().unwrap(),
            "2001:db8::b".parse().unwrap(),
        )
    } else {
        (
            "192.0.2.1".parse().unwrap(),
            "198.51.100.1".parse().unwrap(),
        )
    };
    let port = if encapsulation == Encapsulation::Udp {
        4500
    } else {
        0
    };
    Path {
        local: SocketAddr::new(local, port),
        remote: SocketAddr::new(remote, port),
        encapsulation,
    }
}

/// The pair of SAs `id` as gateway A has it; keys and SPIs follow from `id`.
pub fn child(id: u64, suite: EspSuite, path: Path) -> ChildSa {
    let half = |tag: u8| HalfSa {
        spi: 0x1000_0000 * u32::from(tag) + id as u32,
        encryption_key: SecretBytes::new(
            (0..suite.cipher.keymat_len() as u8)
                .map(|i| i ^ tag ^ id as u8)
                .collect(),
        ),
        integrity_key: SecretBytes::new(
            (0..suite.integrity.map_or(0, Integrity::key_len) as u8)
                .map(|i| i ^ tag)
                .collect(),
        ),
    };
    ChildSa {
        id: ChildSaId(id),
        connection: "test".into(),
        suite,
        inbound: half(1),
        outbound: half(2),
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
        lifetime: std::time::Duration::from_secs(3600),
    }
}

pub fn policy(sa: &ChildSa) -> Command {
    Command::InstallPolicy(Policy {
        connection: Arc::clone(&sa.connection),
        local_ts: sa.local_ts.clone(),
        remote_ts: sa.remote_ts.clone(),
        trap: true,
        mode: Mode::Tunnel,
        addresses: Vec::new(),
    })
}

/// Octets of an IP packet between two addresses.
pub fn packet(source: &str, destination: &str, protocol: u8, upper: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let head = ip::outer_len(destination);
    let mut packet = vec![0; head + upper.len()];
    let outer = Outer {
        source,
        destination,
        tos: 0,
        ttl: 63,
        df: false,
        id: 77,
        protocol,
        label: 0,
    };
    ip::build(&outer, upper.len(), &mut packet[..head]).unwrap();
    packet[head..].copy_from_slice(upper);
    packet
}

/// A UDP packet of `total` octets from A's to B's side.
pub fn udp(v6: bool, total: usize) -> Vec<u8> {
    let (source, destination, head) = if v6 {
        ("fd00:a::5", "fd00:b::7", 40)
    } else {
        ("10.0.0.5", "10.1.0.7", 20)
    };
    let length = total.saturating_sub(head).max(8);
    let mut upper: Vec<u8> = (0..length).map(|i| i as u8).collect();
    upper[..8].copy_from_slice(&[0x12, 0x34, 0, 53, (length >> 8) as u8, length as u8, 0, 0]);
    packet(source, destination, protocol::UDP, &upper)
}

/// A TCP SYN from A's to B's side with an MSS option behind `nops` no-operations.
pub fn syn(v6: bool, mss: u16, nops: usize) -> Vec<u8> {
    let mut options = vec![1; nops];
    options.extend([2, 4, (mss >> 8) as u8, mss as u8]);
    options.resize(options.len().next_multiple_of(4), 0);
    let mut upper = vec![
        0x12, 0x34, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x02, 0xff, 0xff, 0, 0, 0, 0,
    ];
    upper[12] = ((20 + options.len()) / 4 * 16) as u8;
    upper.extend(options);
    let (source, destination) = if v6 {
        ("fd00:a::5", "fd00:b::7")
    } else {
        ("10.0.0.5", "10.1.0.7")
    };
    let mut packet = packet(source, destination, protocol::TCP, &upper);
    let head = packet.len() - upper.len();
    let sum = transport_sum(&packet, head, protocol::TCP);
    packet[head + 16..head + 18].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// The transport checksum as it ought to be when its field is zero; 0 (or 0xffff) over a good one.
pub fn transport_sum(packet: &[u8], head: usize, protocol: u8) -> u16 {
    let (header, upper) = packet.split_at(head);
    checksum::pseudo_header(header, protocol, upper.len())
        .unwrap()
        .add(upper)
        .finish()
}

/// One gateway with both halves of the engine.
pub struct Gateway {
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub stats: Arc<Stats>,
    pub pool: FramePool,
    pub now: Instant,
    pub out: Output,
}

impl Gateway {
    pub fn new(config: Config, pool: FramePool) -> Self {
        let now = Instant::now();
        let stats = Stats::new(now);
        Self {
            outbound: Outbound::new(config, Arc::clone(&stats)),
            inbound: Inbound::new(config, Arc::clone(&stats)),
            stats,
            pool,
            now,
            out: Output::new(),
        }
    }

    pub fn apply(&mut self, command: &Command) {
        self.inbound.apply(command).unwrap();
        self.outbound.apply(command).unwrap();
    }

    pub fn frame(&mut self, octets: &[u8], meta: Meta) -> Frame {
        let mut frame = self.pool.get().unwrap();
        frame.append(octets.len()).unwrap().copy_from_slice(octets);
        *frame.meta_mut() = meta;
        frame
    }

    /// Sends packets through the outbound half; gives what goes to the WAN.
    pub fn send(&mut self, packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Meta)> {
        let mut burst = Burst::new();
        for packet in packets {
            let frame = self.frame(packet, Meta::default());
            burst.push(frame);
        }
        self.outbound
            .process(self.now, &mut burst, &mut self.pool, &mut self.out);
        assert!(burst.is_empty());
        self.take_wan()
    }

    /// After commands: what waited for them goes to the WAN.
    pub fn release(&mut self) -> Vec<(Vec<u8>, Meta)> {
        let mut burst = Burst::new();
        self.outbound.release(self.now, &mut burst, &mut self.pool);
        self.outbound
            .process(self.now, &mut burst, &mut self.pool, &mut self.out);
        self.take_wan()
    }

    pub fn take_wan(&mut self) -> Vec<(Vec<u8>, Meta)> {
        let frames = self.out.wan.drain().map(|frame| {
            let taken = (frame.data().to_vec(), *frame.meta());
            self.pool.put(frame);
            taken
        });
        frames.collect()
    }

    pub fn take_tun(&mut self) -> Vec<Vec<u8>> {
        let frames = self.out.tun.drain().map(|frame| {
            let taken = frame.data().to_vec();
            self.pool.put(frame);
            taken
        });
        frames.collect()
    }

    /// What the other gateway sent arrives; gives what goes to the tunnel interface.
    pub fn receive(&mut self, packets: &[(Vec<u8>, Meta)]) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        for (octets, meta) in packets {
            let meta = Meta {
                path: meta.path.reversed(),
                ..*meta
            };
            let frame = self.frame(octets, meta);
            burst.push(frame);
        }
        self.inbound
            .process(self.now, &mut burst, &mut self.pool, &mut self.out);
        assert!(burst.is_empty());
        self.take_tun()
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.out.events)
    }

    /// Drops of the pair `id`, both directions together, for a reason.
    pub fn sa_drops(&self, id: u64, reason: DropReason) -> u64 {
        let pairs = self.stats.snapshot();
        let pair = pairs.iter().find(|pair| pair.id == ChildSaId(id)).unwrap();
        pair.inbound.drops[reason as usize] + pair.outbound.drops[reason as usize]
    }
}

/// Gateways A and B with the pair of SAs `sa` (as A has it).
pub fn pair(sa: &ChildSa, config: Config) -> (Gateway, Gateway) {
    let frame_size = if config.path_mtu > 4096 { 16384 } else { 4608 };
    let arena = Arena::new(256, frame_size).unwrap();
    let mut a = Gateway::new(config, arena.take(128));
    let mut b = Gateway::new(config, arena.take(128));
    let other = sa.reversed();
    a.apply(&policy(sa));
    b.apply(&policy(&other));
    a.apply(&Command::InstallSa(Box::new(sa.clone())));
    b.apply(&Command::InstallSa(Box::new(other)));
    (a, b)
}

/// As [`pair`], for AES-256-GCM in the given encapsulation over IPv4.
pub fn gcm_pair(encapsulation: Encapsulation) -> (Gateway, Gateway) {
    pair(
        &child(1, GCM, path(encapsulation, false)),
        Config::default(),
    )
}
