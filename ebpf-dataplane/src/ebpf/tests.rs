//! The programs run by BPF_PROG_TEST_RUN against the userspace engine: the same octets, whatever the
//! length. Without the rights for it each test says so and does nothing.

mod ahead;

use std::io::Write;

use aya::programs::{TestRun, TestRunOptions, Xdp};
use espada_common::sa::Encapsulation;
use espada_common::wire::sample::ethernet;

use super::*;
use crate::esp::tests::net::{self, Gateway};
use crate::frontend::attach::loaded;
use crate::frontend::{FrontEnd, Options};

/// The loopback interface: somewhere to redirect to that every namespace has.
const LOOPBACK: u32 = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// `espada_esp_out` leaves the number of the WAN interface before a packet that it cannot send
/// itself.
const META: usize = 4;
const ETHERNET: usize = 14;

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// The programs with one pair of SAs, attached to nothing.
struct Bench {
    front_end: FrontEnd,
    maps: Maps,
    ahead: Ahead,
    pair: PairEntry,
}

impl Bench {
    fn new(test: &str, sa: &ChildSa) -> Option<Self> {
        Self::with(test, sa, false)
    }

    /// Perhaps with keystream prepared ahead.
    fn with(test: &str, sa: &ChildSa, keystream_ahead: bool) -> Option<Self> {
        let options = Options {
            drop_unknown_spi: true,
            engine: true,
            keystream_ahead,
            ..Options::default()
        };
        let mut front_end = match FrontEnd::attach(&options) {
            Ok(front_end) => front_end,
            Err(FrontEndError::Load { reason, hint }) if !hint.is_empty() => {
                let line = format!("SKIPPED: {test}: {reason}\n");
                let _ = std::io::stderr().write_all(line.as_bytes());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut maps = Maps::take(front_end.object()).unwrap();
        maps.configure(EspConfig {
            flags: ENGINE_CLAMP_MSS | ENGINE_COPY_DSCP,
            ttl: 64,
            port: LOOPBACK,
            mac: MAC,
            padding: [0; 2],
        })
        .unwrap();
        maps.add_device(LOOPBACK).unwrap();
        let program: &mut Xdp = loaded(front_end.object(), "espada_esp_in", Xdp::load).unwrap();
        maps.programs.set(0, program.fd().unwrap(), 0).unwrap();
        let (local, remote) = (sa.path.local.ip(), sa.path.remote.ip());
        front_end.set_addresses(&[local], &[]).unwrap();
        front_end
            .add_sa(sa.inbound.spi, local, Steering::Decrypt)
            .unwrap();
        front_end.add_out(remote, sa.outbound.spi).unwrap();
        let ahead = Ahead::start(&maps.ahead, maps.wakes.take().unwrap()).unwrap();
        let mut pair = PairEntry {
            handle: 7,
            flags: 0,
            local: Address::default(),
            remote: Address::default(),
            local_port_be: 0,
            remote_port_be: 0,
            max_inner: MAX_INNER,
            link: LOOPBACK,
            slot: front_end.out_slot(remote, sa.outbound.spi).unwrap(),
            spi_in_be: sa.inbound.spi.to_be(),
            spi_out_be: sa.outbound.spi.to_be(),
            ring: ahead.free(),
            padding: 0,
            id: sa.id.0,
            connection: entry::name(&sa.connection),
        };
        entry::set_path(&mut pair, &sa.path);
        maps.insert_pair(&pair).unwrap();
        let inbound = entry::inbound(sa, pair.handle).unwrap();
        let outbound = entry::outbound(sa, pair.handle).unwrap();
        let keys = [&outbound.key, &inbound.key];
        ahead.add(pair.ring, pair.handle, keys, [0, 0]);
        maps.insert_in(&inbound).unwrap();
        maps.insert_out(&outbound).unwrap();
        let mut flows = Flows::new(
            std::os::fd::AsFd::as_fd(maps.flows.fd()),
            &maps.spd.values(),
        )
        .unwrap();
        let selectors = Selectors {
            connection: Arc::clone(&sa.connection),
            local: sa.local_ts.clone(),
            remote: sa.remote_ts.clone(),
        };
        flows.send(selectors, pair.handle).unwrap();
        let mut table = Vec::new();
        for (selectors, number) in flows.table() {
            let covered = pairs_of(&selectors.local, &selectors.remote);
            table.extend(covered.into_iter().map(|pair| (pair, number)));
        }
        maps.spd.set(&compile(&table)).unwrap();
        Some(Self {
            front_end,
            maps,
            ahead,
            pair,
        })
    }

    /// Runs a program over an IP packet in an Ethernet frame; gives its action and what it left.
    fn run(&mut self, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let frame = ethernet(&[], packet);
        let mut out = vec![0; frame.len() + 256];
        let xdp: &mut Xdp = loaded(self.front_end.object(), program, Xdp::load).unwrap();
        let result = xdp
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// An inner packet to the outer packet that carries it.
    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let (action, mut out) = self.run("espada_esp_out", packet);
        assert_eq!(action, PASS, "{:?}", self.drops());
        out.split_off(META + ETHERNET)
    }

    /// An outer packet to the inner packet it carries; `None` when it is dropped.
    fn open(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (action, mut out) = self.run("espada_xdp", packet);
        if action == DROP {
            return None;
        }
        assert_eq!(action, REDIRECT, "{:?}", self.drops());
        assert_eq!(out[..6], MAC);
        Some(out.split_off(ETHERNET))
    }

    /// Drops of the pair and of the engine, inbound and outbound.
    fn drops(&self) -> [[u64; DropReason::COUNT]; 4] {
        let [inbound, outbound] = self.maps.drops().unwrap();
        [
            self.maps
                .inbound(self.pair.spi_in_be)
                .unwrap()
                .counters
                .drops,
            self.maps.outbound(self.pair.handle).unwrap().counters.drops,
            inbound,
            outbound,
        ]
    }

    fn dropped_in(&self, reason: DropReason) -> u64 {
        self.drops()[0][reason as usize]
    }
}

fn sa(encapsulation: Encapsulation, v6: bool, esn: bool) -> ChildSa {
    let mut sa = net::child(1, entry::suite(esn), net::path(encapsulation, v6));
    sa.replay_window = 4096;
    sa
}

/// Both engines at gateway A, and the userspace engine at gateway B.
fn engines(test: &str, sa: &ChildSa) -> Option<(Bench, Gateway, Gateway)> {
    let bench = Bench::new(test, sa)?;
    let config = crate::esp::Config {
        path_mtu: 9000,
        ..crate::esp::Config::default()
    };
    let (a, b) = net::pair(sa, config);
    Some((bench, a, b))
}

/// Octets of outer IP and UDP header.
fn outer(encapsulation: Encapsulation, v6: bool) -> usize {
    let ip = if v6 { 40 } else { 20 };
    match encapsulation {
        Encapsulation::Esp => ip,
        Encapsulation::Udp => ip + 8,
    }
}

const PATHS: [(Encapsulation, bool); 4] = [
    (Encapsulation::Esp, false),
    (Encapsulation::Esp, true),
    (Encapsulation::Udp, false),
    (Encapsulation::Udp, true),
];

/// What userspace sends starts at the ESP header where it is in UDP.
fn same(encapsulation: Encapsulation, v6: bool, ours: &[u8], theirs: &[u8], length: usize) {
    let skipped = match encapsulation {
        Encapsulation::Esp => 0,
        Encapsulation::Udp => outer(encapsulation, v6),
    };
    assert!(
        ours[skipped..] == *theirs,
        "{encapsulation:?} over IPv{}, inner {length} octets",
        if v6 { 6 } else { 4 }
    );
}

#[test]
fn bpf_the_same_octets_as_userspace_at_every_length() {
    for (encapsulation, v6) in PATHS {
        for esn in [false, true] {
            let sa = sa(encapsulation, v6, esn);
            let test = "bpf_the_same_octets_as_userspace_at_every_length";
            let Some((mut bench, mut a, mut b)) = engines(test, &sa) else {
                return;
            };
            for inner_v6 in [false, true] {
                let least = if inner_v6 { 48 } else { 28 };
                // Every length on one path; on the others, steps that meet every length modulo 64.
                let step = if esn && !v6 { 1 } else { 5 };
                for length in (least..=3300).step_by(step) {
                    let packet = net::udp(inner_v6, length);
                    let ours = bench.seal(&packet);
                    let theirs = a.send(std::slice::from_ref(&packet));
                    same(encapsulation, v6, &ours, &theirs[0].0, length);
                    // Userspace reads it.
                    if length % 16 == 0 {
                        let read = b.receive(&theirs);
                        assert_eq!(read, [packet], "{length}");
                    }
                }
            }
        }
    }
}

#[test]
fn bpf_reads_what_userspace_sends_at_every_length() {
    for (encapsulation, v6) in PATHS {
        for esn in [false, true] {
            let sa = sa(encapsulation, v6, esn);
            let test = "bpf_reads_what_userspace_sends_at_every_length";
            let Some((mut bench, _, mut b)) = engines(test, &sa) else {
                return;
            };
            let mirror = sa.reversed();
            let Some(mut sender) = Bench::new(test, &mirror) else {
                return;
            };
            for inner_v6 in [false, true] {
                let least = if inner_v6 { 48 } else { 28 };
                let step = if esn && !v6 { 1 } else { 5 };
                for length in (least..=3300).step_by(step) {
                    let mut packet = net::udp(inner_v6, length);
                    swap_addresses(&mut packet, inner_v6);
                    // The other end's programs make the outer headers, userspace the same ESP.
                    let sent = sender.seal(&packet);
                    let theirs = b.send(std::slice::from_ref(&packet));
                    same(encapsulation, v6, &sent, &theirs[0].0, length);
                    assert_eq!(bench.open(&sent).as_deref(), Some(&packet[..]), "{length}");
                    // A second time it is a replay.
                    if length % 64 == 0 {
                        let before = bench.dropped_in(DropReason::Replay);
                        assert_eq!(bench.open(&sent), None);
                        assert_eq!(bench.dropped_in(DropReason::Replay), before + 1);
                    }
                }
            }
        }
    }
}

/// From gateway B's side to A's.
fn swap_addresses(packet: &mut [u8], v6: bool) {
    let (start, length) = if v6 { (8, 16) } else { (12, 4) };
    for index in 0..length {
        packet.swap(start + index, start + length + index);
    }
}

#[test]
fn bpf_one_changed_bit_is_noticed_and_changes_nothing() {
    let sa = sa(Encapsulation::Esp, false, true);
    let test = "bpf_one_changed_bit_is_noticed_and_changes_nothing";
    let Some(mut sender) = Bench::new(test, &sa.reversed()) else {
        return;
    };
    let mut bench = Bench::new(test, &sa).unwrap();
    let mut packet = net::udp(false, 100);
    swap_addresses(&mut packet, false);
    let sent = sender.seal(&packet);
    // Everything that the ICV covers but the SPI, which finds the SA.
    for octet in 24..sent.len() {
        for bit in 0..8 {
            let mut forged = sent.clone();
            forged[octet] ^= 1 << bit;
            assert_eq!(bench.open(&forged), None, "octet {octet} bit {bit}");
        }
    }
    // None of them has moved the window.
    assert_eq!(bench.open(&sent).as_deref(), Some(&packet[..]));
    let refused = bench.dropped_in(DropReason::AuthFailed) + bench.dropped_in(DropReason::Replay);
    assert_eq!(refused, (sent.len() as u64 - 24) * 8);
}

#[test]
fn bpf_what_an_sa_must_not_carry_is_dropped_with_its_reason() {
    let sa = sa(Encapsulation::Esp, false, false);
    let test = "bpf_what_an_sa_must_not_carry_is_dropped_with_its_reason";
    let Some(mut bench) = Bench::new(test, &sa) else {
        return;
    };
    // The same keys for other subnets: what it sends is authentic and outside ours.
    let mut other = sa.reversed();
    other.local_ts = vec![net::range("172.16.0.0", "172.16.0.255")];
    let mut sender = Bench::new(test, &other).unwrap();
    let mut packet = net::packet("172.16.0.1", "10.0.0.1", 17, &[0; 60]);
    let sent = sender.seal(&packet);
    assert_eq!(bench.open(&sent), None);
    assert_eq!(bench.dropped_in(DropReason::SelectorMismatch), 1);

    // A congestion mark on a packet whose transport does not know them (RFC 6040).
    let mut sender = Bench::new(test, &sa.reversed()).unwrap();
    packet = net::packet("10.1.0.1", "10.0.0.1", 17, &[0; 60]);
    // Behind the numbers that the SA has seen.
    let _ = sender.seal(&packet);
    let mut marked = sender.seal(&packet);
    marked[1] |= 3;
    assert_eq!(bench.open(&marked), None);
    assert_eq!(bench.dropped_in(DropReason::EcnCongestion), 1);

    // No policy, and too long.
    let stray = net::packet("10.0.0.1", "192.0.2.99", 17, &[0; 60]);
    assert_eq!(bench.run("espada_esp_out", &stray).0, DROP);
    assert_eq!(bench.drops()[3][DropReason::NoPolicy as usize], 1);
    let mut narrow = bench.pair;
    narrow.max_inner = 100;
    bench.maps.insert_pair(&narrow).unwrap();
    let long = net::udp(false, 101);
    assert_eq!(bench.run("espada_esp_out", &long).0, DROP);
    assert_eq!(bench.drops()[1][DropReason::TooBig as usize], 1);
}

#[test]
fn bpf_syns_are_clamped_like_userspace_does() {
    let sa = sa(Encapsulation::Esp, false, false);
    let Some((mut bench, mut a, _)) = engines("bpf_syns_are_clamped_like_userspace_does", &sa)
    else {
        return;
    };
    let mut narrow = bench.pair;
    narrow.max_inner = max_inner(false, &sa.path, 1400);
    bench.maps.insert_pair(&narrow).unwrap();
    a.outbound.set_path_mtu(sa.id, 1400).unwrap();
    for v6 in [false, true] {
        for nops in 0..5 {
            for mss in [1000, 1338, 1460, 9000] {
                let packet = net::syn(v6, mss, nops);
                let theirs = a.send(std::slice::from_ref(&packet));
                let ours = bench.seal(&packet);
                assert!(ours == theirs[0].0, "IPv6 {v6}, {nops} NOPs, MSS {mss}");
            }
        }
    }
}
