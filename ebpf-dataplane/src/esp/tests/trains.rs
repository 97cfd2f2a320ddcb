//! Packets that are to be cut, sealed as rows.

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSa, ChildSaId, Cipher, Encapsulation, EspSuite, Mode};
use proptest::prelude::*;

use super::net::*;
use crate::esp::Config;
use crate::port::gso::VnetHeader;
use crate::port::gso::tests::{segments, super_packet};
use crate::port::udp::{MOST_OCTETS, MOST_SEGMENTS};
use crate::umem::{Arena, Burst, Meta, ROW};

/// A packet that is to be cut, from A's to B's side.
fn train(v6: bool, payload: &[u8], size: u16, options: usize) -> (VnetHeader, Vec<u8>) {
    let (header, mut packet) = super_packet(v6, payload, size, options);
    let length = packet.len() as u16;
    let addresses = udp(v6, 100);
    if v6 {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        packet[8..40].copy_from_slice(&addresses[8..40]);
    } else {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[12..20].copy_from_slice(&addresses[12..20]);
    }
    (header, packet)
}

/// Two gateways, of which A has memory for so many rows.
fn pair_with_rows(sa: &ChildSa, rows: usize) -> (Gateway, Gateway) {
    let (mut a, b) = pair(sa, Config::default());
    let arena = Arena::new(rows.max(1), ROW).unwrap();
    let pool = Arena::new(1024, 2048).unwrap().take(1024);
    a.pool = pool.with_rows(&arena, rows);
    (a, b)
}

fn in_udp(suite: EspSuite) -> ChildSa {
    child(1, suite, path(Encapsulation::Udp, false))
}

/// Sends packets with a train behind them; whether the train was taken.
fn admit(a: &mut Gateway, before: &[Vec<u8>], train: &(VnetHeader, Vec<u8>)) -> Option<usize> {
    let mut burst = Burst::new();
    for packet in before {
        let frame = a.frame(packet, Meta::default());
        burst.push(frame);
    }
    let Gateway {
        outbound,
        pool,
        now,
        out,
        ..
    } = a;
    outbound.admit_all(*now, &mut burst, pool, out);
    outbound.admit_train(&train.0, &train.1, pool)
}

/// The ESP packets of what a gateway sends, taken out of their rows.
fn cut(wire: &[(Vec<u8>, Meta)]) -> Vec<(Vec<u8>, Meta)> {
    let packets = wire.iter().flat_map(|(octets, meta)| {
        let row = meta.row.map_or(octets.len(), usize::from);
        assert!(octets.len() <= MOST_OCTETS && octets.len().div_ceil(row) <= MOST_SEGMENTS);
        let meta = Meta { row: None, ..*meta };
        octets
            .chunks(row)
            .map(move |packet| (packet.to_vec(), meta))
    });
    packets.collect()
}

fn numbers(packets: &[(Vec<u8>, Meta)]) -> Vec<u32> {
    let number = |packet: &[u8]| u32::from_be_bytes(packet[4..8].try_into().unwrap());
    packets.iter().map(|(packet, _)| number(packet)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_peer_gets_the_same_packets(
        trains in proptest::collection::vec(
            (any::<bool>(), 1usize..60_000, 200u16..1300, 0usize..=10, 0usize..3),
            1..5,
        ),
        esn: bool,
    ) {
        let (mut a, mut b) = pair_with_rows(&in_udp(EspSuite { esn, ..GCM }), 32);
        let mut sent = Vec::new();
        for (v6, payload, size, options, singles) in trains {
            let payload: Vec<u8> = (0..payload).map(|octet| octet as u8).collect();
            let train = train(v6, &payload, size, 4 * options);
            let singles = vec![udp(false, 200); singles];
            let segments = segments(&train.0, &train.1);
            prop_assert_eq!(admit(&mut a, &singles, &train), Some(segments.len()));
            sent.extend(singles);
            sent.extend(segments);
        }
        let wire = cut(&a.send(&[]));
        prop_assert_eq!(numbers(&wire), (1..=sent.len() as u32).collect::<Vec<_>>());
        let carried = a.stats.snapshot()[0].outbound.clone();
        let bytes: usize = sent.iter().map(Vec::len).sum();
        prop_assert_eq!((carried.packets, carried.bytes), (sent.len() as u64, bytes as u64));
        let received: Vec<_> = wire.chunks(64).flat_map(|wire| b.receive(wire)).collect();
        prop_assert_eq!(received, sent);
        prop_assert_eq!((a.pool.available(), a.pool.available_rows()), (1024, 32));
    }
}

#[test]
fn trains_of_equal_packets_share_rows() {
    let (mut a, mut b) = pair_with_rows(&in_udp(GCM), 4);
    let train = train(false, &[7; 1348 * 48], 1348, 12);
    for _ in 0..2 {
        assert_eq!(admit(&mut a, &[], &train), Some(48));
    }
    let wire = a.send(&[]);
    let rows: Vec<_> = (wire.iter())
        .map(|(octets, meta)| octets.len() / usize::from(meta.row.unwrap()))
        .collect();
    // 1400 octets, and 34 of ESP: 45 of them are 64,530.
    assert_eq!(rows, [45, 45, 6]);
    assert_eq!(wire[0].1.tos, 0);
    let received: Vec<_> = cut(&wire).chunks(48).flat_map(|w| b.receive(w)).collect();
    assert_eq!(
        received,
        [segments(&train.0, &train.1), segments(&train.0, &train.1)].concat()
    );
}

#[test]
fn what_cannot_stand_in_a_row_is_left() {
    let fit = train(false, &[1; 10_000], 1000, 0);
    let cases = [
        (child(1, GCM, path(Encapsulation::Esp, false)), 8, &fit),
        (
            in_udp(EspSuite {
                cipher: Cipher::ChaCha20Poly1305,
                ..GCM
            }),
            8,
            &fit,
        ),
        (
            ChildSa {
                mode: Mode::Transport,
                ..in_udp(GCM)
            },
            8,
            &fit,
        ),
        // No memory.
        (in_udp(GCM), 0, &fit),
        // 1500 octets are the most that the path takes.
        (in_udp(GCM), 8, &train(false, &[1; 10_000], 1400, 0)),
        // Nobody's.
        (
            ChildSa {
                remote_ts: vec![range("10.9.0.0", "10.9.255.255")],
                ..in_udp(GCM)
            },
            8,
            &fit,
        ),
    ];
    for (sa, rows, train) in cases {
        let (mut a, _) = pair_with_rows(&sa, rows);
        assert_eq!(admit(&mut a, &[], train), None, "{sa:?}");
        assert!(a.send(&[]).is_empty());
        assert_eq!(a.pool.available_rows(), rows);
    }
    let (mut a, _) = pair_with_rows(&in_udp(GCM), 8);
    // A row would not take one of them.
    a.outbound.set_path_mtu(ChildSaId(1), u16::MAX).unwrap();
    let huge = train(false, &[1; 65_450], 65_420, 0);
    assert_eq!(admit(&mut a, &[], &huge), None);
    let (header, mut cut_short) = fit;
    cut_short.truncate(5000);
    assert_eq!(admit(&mut a, &[], &(header, cut_short)), None);
}

#[test]
fn a_row_without_numbers_for_all_of_it_is_counted_and_not_sent() {
    let (mut a, _) = pair_with_rows(&in_udp(GCM), 8);
    a.outbound.skip_to(1, u64::from(u32::MAX) - 5);
    assert_eq!(
        admit(
            &mut a,
            &[udp(false, 100)],
            &train(false, &[1; 6000], 1000, 0)
        ),
        Some(6)
    );
    let wire = a.send(&[]);
    assert_eq!(numbers(&wire), [u32::MAX - 4]);
    assert_eq!(a.sa_drops(1, DropReason::SequenceExhausted), 6);
    assert_eq!(a.stats.snapshot()[0].id, ChildSaId(1));
    assert_eq!((a.pool.available(), a.pool.available_rows()), (1024, 8));
}
