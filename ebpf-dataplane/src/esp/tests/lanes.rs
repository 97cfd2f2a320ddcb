//! Several lanes that carry one pair of SAs, each in a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSa, ChildSaId, Command, Encapsulation, EspSuite, Event, Takeover};

use super::net::*;
use crate::esp::{Config, Inbound, Outbound, Output, Shared, Stats, stats};
use crate::umem::{Arena, Burst, Frame, FramePool, Meta};

const LANES: usize = 4;

/// Frames of a lane: enough for all that it sends, as they may end in the pool of another.
const FRAMES: usize = 64 * 64;

/// What the lanes sent, in the order in which it left.
type Wire = Mutex<Vec<(Vec<u8>, Meta)>>;

/// One outbound lane with its own frames.
struct Lane {
    outbound: Outbound,
    pool: FramePool,
    out: Output,
    now: Instant,
}

impl Lane {
    /// Sends packets in one burst.
    fn send(&mut self, packets: &[Vec<u8>], wire: &Wire) {
        let mut burst = Burst::new();
        for packet in packets {
            let mut frame = self.pool.get().unwrap();
            frame.append(packet.len()).unwrap().copy_from_slice(packet);
            burst.push(frame);
        }
        let mut send = |burst: &mut Burst, pool: &mut FramePool| {
            let sent = |frame: &Frame| (frame.data().to_vec(), *frame.meta());
            wire.lock().unwrap().extend(burst.frames().iter().map(sent));
            burst.recycle(pool);
        };
        self.outbound.process_in_turn(
            self.now,
            &mut burst,
            &mut self.pool,
            &mut self.out,
            &mut send,
        );
        assert!(burst.is_empty() && self.out.wan.is_empty());
    }
}

fn lanes(sa: &ChildSa) -> (Vec<Lane>, Vec<Arc<Stats>>) {
    let arena = Arena::new(FRAMES * LANES, 2048).unwrap();
    let now = Instant::now();
    let statistics: Vec<_> = (0..LANES).map(|_| Stats::new(now)).collect();
    let lane = |stats: &Arc<Stats>| Lane {
        outbound: Outbound::new(Config::default(), Arc::clone(stats)),
        pool: arena.take(FRAMES),
        out: Output::new(),
        now,
    };
    let mut lanes: Vec<_> = statistics.iter().map(lane).collect();
    install(&mut lanes, &Command::InstallSa(Box::new(sa.clone())));
    (lanes, statistics)
}

fn install(lanes: &mut [Lane], command: &Command) {
    let shared = Arc::new(Shared::default());
    for lane in lanes {
        lane.outbound.apply_shared(command, Some(&shared)).unwrap();
    }
}

fn seq(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[4..8].try_into().unwrap())
}

/// All lanes send bursts of changing length at once; gives what leaves, in order.
fn send_at_once(lanes: &mut [Lane], bursts: usize) -> Vec<(Vec<u8>, Meta)> {
    send_each_at_once(lanes, bursts, &[udp(false, 100)])
}

/// [`send_at_once`] with these packets by turns.
fn send_each_at_once(
    lanes: &mut [Lane],
    bursts: usize,
    packets: &[Vec<u8>],
) -> Vec<(Vec<u8>, Meta)> {
    let (start, wire) = (Barrier::new(lanes.len()), Wire::default());
    std::thread::scope(|scope| {
        for (number, lane) in lanes.iter_mut().enumerate() {
            let (start, wire) = (&start, &wire);
            scope.spawn(move || {
                start.wait();
                for burst in 0..bursts {
                    let length = 1 + (burst * (number + 3)) % 64;
                    let offered = packets.iter().cycle().skip(burst + number).take(length);
                    lane.send(&offered.cloned().collect::<Vec<_>>(), wire);
                }
            });
        }
    });
    wire.into_inner().unwrap()
}

/// Lanes wait for each other with several SAs at once, and each SA's packets leave in the order of their
/// numbers, as a peer wants it that has no wide window.
#[test]
fn packets_of_each_sa_leave_in_the_order_of_their_numbers() {
    let first = child(1, GCM, path(Encapsulation::Udp, false));
    let (mut lanes, _) = lanes(&first);
    let mut packets = vec![udp(false, 100)];
    for id in 2..5u8 {
        let (low, high) = (format!("10.{id}.0.0"), format!("10.{id}.255.255"));
        let other = ChildSa {
            remote_ts: vec![range(&low, &high)],
            ..child(id.into(), GCM, first.path)
        };
        install(&mut lanes, &Command::InstallSa(Box::new(other)));
        let to = format!("10.{id}.0.7");
        packets.push(packet("10.0.0.5", &to, 17, &[0; 80]));
    }
    let sent = send_each_at_once(&mut lanes, 60, &packets);
    let mut last = BTreeMap::new();
    for (packet, meta) in &sent {
        let last = last.entry(meta.spi).or_insert(0);
        assert_eq!(seq(packet), *last + 1, "of {:#x}", meta.spi);
        *last += 1;
    }
    assert_eq!(last.len(), 4);
    let free: usize = lanes.iter().map(|lane| lane.pool.available()).sum();
    assert_eq!(free, FRAMES * LANES);
}

#[test]
fn lanes_number_the_packets_of_an_sa_without_gap_or_repetition() {
    for suite in [GCM, EspSuite { esn: true, ..GCM }] {
        let sa = child(1, suite, path(Encapsulation::Udp, false));
        let (mut lanes, statistics) = lanes(&sa);
        let sent = send_at_once(&mut lanes, 60);
        let numbers: BTreeSet<u32> = sent.iter().map(|(packet, _)| seq(packet)).collect();
        assert!(numbers.into_iter().eq(1..=sent.len() as u32));
        let counted = &stats::sum(&statistics)[0].outbound;
        assert_eq!(counted.packets, sent.len() as u64);
        assert_eq!(counted.bytes, 100 * sent.len() as u64);
        // The peer takes every packet for what it is, and needs no wide window for it.
        let mut peer = pair(&sa, Config::default()).1;
        let opened: usize = sent.chunks(64).map(|burst| peer.receive(burst).len()).sum();
        assert_eq!(opened, sent.len());
    }
}

#[test]
fn lanes_never_send_past_the_last_number() {
    let sa = child(1, GCM, path(Encapsulation::Udp, false));
    let (mut lanes, statistics) = lanes(&sa);
    let left = 500;
    lanes[0].outbound.skip_to(1, u64::from(u32::MAX) - left);
    let sent = send_at_once(&mut lanes, 20);
    let numbers: BTreeSet<u32> = sent.iter().map(|(packet, _)| seq(packet)).collect();
    assert!(
        numbers
            .into_iter()
            .eq(u32::MAX - left as u32 + 1..=u32::MAX)
    );
    assert_eq!(sent.len() as u64, left);
    let offered: usize = (0..LANES)
        .flat_map(|lane| (0..20).map(move |burst| 1 + (burst * (lane + 3)) % 64))
        .sum();
    let counted = &stats::sum(&statistics)[0].outbound;
    assert_eq!(counted.packets, left);
    let refused = counted.drops[DropReason::SequenceExhausted as usize];
    assert_eq!(refused, offered as u64 - left);
    let told = lanes.iter().flat_map(|lane| &lane.out.events);
    let low = told.filter(|event| matches!(event, Event::SeqLow { id, .. } if id.0 == 1));
    assert_eq!(low.count(), 1);
    let free: usize = lanes.iter().map(|lane| lane.pool.available()).sum();
    assert_eq!(free, FRAMES * LANES);
}

#[test]
fn lanes_follow_a_rekey_and_begin_anew() {
    let old = child(1, GCM, path(Encapsulation::Udp, false));
    let new = child(2, GCM, old.path);
    let (mut lanes, _) = lanes(&old);
    send_at_once(&mut lanes, 10);
    let rekey = Command::RekeySa {
        old: ChildSaId(1),
        new: Box::new(new.clone()),
        takeover: Takeover::Now,
    };
    install(&mut lanes, &rekey);
    let sent = send_at_once(&mut lanes, 10);
    let numbers: BTreeSet<u32> = sent.iter().map(|(packet, _)| seq(packet)).collect();
    assert!(sent.iter().all(|(_, meta)| meta.spi == new.outbound.spi));
    assert!(numbers.into_iter().eq(1..=sent.len() as u32));
}

/// Packets of several lanes that leave at about the same time may be fragmented on their way.
#[test]
fn lanes_keep_their_identifications_apart() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut lanes, _) = lanes(&sa);
    let sent = send_at_once(&mut lanes, 20);
    let identification = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    let distinct: BTreeSet<u16> = sent.iter().map(|(p, _)| identification(p)).collect();
    assert_eq!(distinct.len(), sent.len());
}

/// One inbound lane opens bursts; gives how many packets it accepted.
fn open(
    inbound: &mut Inbound,
    pool: &mut FramePool,
    now: Instant,
    packets: &[(Vec<u8>, Meta)],
) -> usize {
    let mut out = Output::new();
    let mut accepted = 0;
    for chunk in packets.chunks(64) {
        let mut burst = Burst::new();
        for (octets, meta) in chunk {
            let mut frame = pool.get().unwrap();
            frame.append(octets.len()).unwrap().copy_from_slice(octets);
            *frame.meta_mut() = Meta {
                path: meta.path.reversed(),
                ..*meta
            };
            burst.push(frame);
        }
        inbound.process(now, &mut burst, pool, &mut out);
        accepted += out.tun.len();
        out.recycle(pool);
    }
    accepted
}

/// Whatever lanes a packet comes to at once, one of them accepts it, and none does again.
#[test]
fn lanes_accept_every_packet_once() {
    for suite in [GCM, EspSuite { esn: true, ..GCM }] {
        let sa = child(1, suite, path(Encapsulation::Udp, false));
        let (mut sender, _) = pair(&sa, Config::default());
        let sent: Vec<_> = (0..60)
            .flat_map(|_| sender.send(&vec![udp(false, 100); 64]))
            .collect();
        let shared = Arc::new(Shared::default());
        let arena = Arena::new(64 * LANES, 2048).unwrap();
        let now = Instant::now();
        let mut lanes: Vec<_> = (0..LANES)
            .map(|_| {
                let stats = Stats::new(now);
                let mut inbound = Inbound::new(Config::default(), Arc::clone(&stats));
                let install = Command::InstallSa(Box::new(sa.reversed()));
                inbound.apply_shared(&install, Some(&shared)).unwrap();
                (inbound, stats, arena.take(64))
            })
            .collect();
        let mut all_at_once = || -> usize {
            let start = Barrier::new(LANES);
            std::thread::scope(|scope| {
                let threads: Vec<_> = lanes
                    .iter_mut()
                    .enumerate()
                    .map(|(number, (inbound, _, pool))| {
                        let (start, sent) = (&start, &sent);
                        scope.spawn(move || {
                            start.wait();
                            // Each begins elsewhere, as lanes do not run in step.
                            let (before, after) = sent.split_at(number * 100);
                            open(inbound, pool, now, after) + open(inbound, pool, now, before)
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            })
        };
        assert_eq!(all_at_once(), sent.len());
        assert_eq!(all_at_once(), 0);
        let statistics: Vec<_> = lanes
            .iter()
            .map(|(_, stats, _)| Arc::clone(stats))
            .collect();
        let counted = &stats::sum(&statistics)[0].inbound;
        assert_eq!(counted.packets, sent.len() as u64);
        let replayed = counted.drops[DropReason::Replay as usize];
        assert_eq!(replayed, ((2 * LANES - 1) * sent.len()) as u64);
    }
}
