//! Two lanes in each gateway.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use super::*;
use crate::userspace::Workers;

/// Flows each way at once, and packets of each.
const FLOWS: usize = 8;
const PACKETS: u32 = 1500;

fn up_with_lanes(
    pair: &Pair,
    encapsulation: Encapsulation,
    mode: Option<ModeChoice>,
    joined: bool,
) -> [Plane; 2] {
    // Pinned, as the kernel may swap two packets of a thread that changes its processor.
    let workers = Workers {
        lanes: NonZeroUsize::new(2),
        joined: Some(joined),
        pinned: true,
        ..Workers::default()
    };
    let engines = [0, 1].map(|side| start_with(pair, side, quiet(), mode, workers));
    assert!(engines.iter().all(|engine| engine.lanes() == Some(2)));
    with_sas(engines, false, encapsulation)
}

/// Numbered packets of several flows from one side to the other; none of a flow may overtake another.
/// Gives how many arrived.
fn flows(pair: &Pair, from: usize, to: usize) -> std::thread::JoinHandle<usize> {
    let receiver = pair.inside(to, || UdpSocket::bind((inner(to, false), 7878)).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let (level, buffer) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
    syscall::set_option(receiver.as_fd(), level, buffer, 8 << 20).unwrap();
    let senders: Vec<_> = (0..FLOWS)
        .map(|_| pair.inside(from, || UdpSocket::bind((inner(from, false), 0)).unwrap()))
        .collect();
    let target = (inner(to, false), 7878);
    std::thread::spawn(move || {
        let traffic = std::thread::spawn(move || {
            syscall::pin_thread(syscall::processors().unwrap()[0]).unwrap();
            for number in 1..=PACKETS {
                for sender in &senders {
                    sender.send_to(&number.to_ne_bytes(), target).unwrap();
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let mut octets = [0; 4];
        let mut last = BTreeMap::new();
        let mut arrived = 0;
        while arrived < FLOWS * PACKETS as usize
            && let Ok((_, source)) = receiver.recv_from(&mut octets)
        {
            let number = u32::from_ne_bytes(octets);
            let before = last.insert(source.port(), number).unwrap_or(0);
            assert!(before < number, "{number} of {source} came behind {before}");
            arrived += 1;
        }
        traffic.join().unwrap();
        arrived
    })
}

fn two_lanes(encapsulation: Encapsulation, mode: Option<ModeChoice>, joined: bool) {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up_with_lanes(&pair, encapsulation, mode, joined);
    for v6 in [false, true] {
        ping(&pair, v6);
        tcp(&pair, v6, 3_000_000);
    }
    let flows = [(0, 1), (1, 0)].map(|(from, to)| flows(&pair, from, to));
    for _ in 0..3 {
        tcp(&pair, false, 3_000_000);
        ping(&pair, false);
    }
    for flow in flows {
        // What a full queue of the interface dropped was never encrypted: on a busy machine that may
        // be much.
        let arrived = flow.join().unwrap();
        assert!(arrived > FLOWS * PACKETS as usize / 10, "{arrived}");
    }
    carried(&mut engines);
    for engine in &mut engines {
        let pair = engine.sa_stats().unwrap().remove(0);
        let refused: u64 = pair.inbound.drops.iter().sum();
        assert_eq!(refused, 0, "{pair:?}");
        assert_eq!(
            engine.drop_totals().unwrap().inbound,
            [0; DropReason::COUNT]
        );
    }
}

#[test]
fn netns_two_lanes_carry_esp_in_udp() {
    two_lanes(Encapsulation::Udp, None, false);
}

/// A thread for both directions of each.
#[test]
fn netns_two_lanes_of_one_thread_carry_esp_in_udp() {
    two_lanes(Encapsulation::Udp, None, true);
}

#[test]
fn netns_two_lanes_carry_native_esp() {
    two_lanes(Encapsulation::Esp, None, false);
}

#[test]
fn netns_two_lanes_carry_native_esp_through_af_xdp() {
    two_lanes(Encapsulation::Esp, Some(ModeChoice::XdpNative), false);
}

/// SAs of both lanes follow each other.
#[test]
fn netns_rekey_of_two_lanes_behind_af_xdp_loses_nothing() {
    let Some(pair) = Pair::new() else { return };
    let mode = Some(ModeChoice::XdpNative);
    let mut engines = up_with_lanes(&pair, Encapsulation::Esp, mode, true);
    rekey_under_traffic(&pair, &mut engines, &|side, id| {
        sa(side, false, Encapsulation::Esp, id)
    });
    for engine in &engines {
        let xsk = engine.xsk().unwrap();
        // Until the neighbour is known the kernel sends; what arrives is steered in any case.
        let (received, sent) = (&xsk.counters.received, &xsk.counters.sent);
        assert!(received.load(Ordering::Relaxed) > 1900, "{xsk:?}");
        assert!(sent.load(Ordering::Relaxed) > 1000, "{xsk:?}");
    }
}

#[test]
fn netns_rekey_under_traffic_of_two_lanes_loses_nothing() {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up_with_lanes(&pair, Encapsulation::Udp, None, false);
    rekey_under_traffic(&pair, &mut engines, &|side, id| {
        sa(side, false, Encapsulation::Udp, id)
    });
}
