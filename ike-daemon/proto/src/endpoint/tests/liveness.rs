//! Peers that vanish, and what says so without proof.

use std::net::SocketAddr;
use std::time::Duration;

use espada_common::sa::{ChildSaStats, HalfSaStats};

use super::pair::*;
use crate::config::{Dpd, DpdAction, StartAction, Volume};
use crate::status::IkeDrop;
use crate::wire::{ExchangeType, Flags, Header, Notify, NotifyType, PayloadType, Writer};
use crate::{DownReason, Notice};

fn up(a: crate::ConnectionConfig) -> Pair {
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").ok();
    pair.settle();
    pair.assert_connected();
    pair
}

fn downs(end: &End) -> Vec<DownReason> {
    let downs = end.notices.iter().filter_map(|notice| match notice {
        Notice::Down { reason, .. } => Some(*reason),
        _ => None,
    });
    downs.collect()
}

/// An INVALID_SPI notify as somebody without an IKE SA sends it (RFC 7296 section 1.5).
fn invalid_spi(spi: u32) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.notify(Notify::new(NotifyType::INVALID_SPI, &spi.to_be_bytes()));
    writer.message(Header {
        initiator_spi: 0,
        responder_spi: 0,
        next_payload: PayloadType::NONE,
        major: 2,
        minor: 0,
        exchange: ExchangeType::INFORMATIONAL,
        flags: Flags::new(true, false),
        message_id: 0,
        length: 0,
    })
}

#[test]
fn a_spi_that_somebody_does_not_know_is_a_reason_to_ask_and_no_more() {
    let mut pair = up(initiator());
    let spi = pair.a.sas.values().next().unwrap().outbound.spi;
    let local: SocketAddr = format!("{A}:500").parse().unwrap();
    let peer: SocketAddr = format!("{B}:500").parse().unwrap();
    let stranger: SocketAddr = "203.0.113.77:500".parse().unwrap();
    pair.run(Duration::from_secs(15));
    let sent = pair.a.sent.len();
    for (from, spi) in [(stranger, spi), (peer, spi ^ 1)] {
        let forged = invalid_spi(spi);
        pair.a
            .endpoint
            .handle_datagram(pair.now, local, from, &forged);
    }
    pair.settle();
    assert_eq!(
        pair.a.sent.len(),
        sent,
        "neither the peer nor an SA of ours"
    );
    for _ in 0..20 {
        let forged = invalid_spi(spi);
        pair.a
            .endpoint
            .handle_datagram(pair.now, local, peer, &forged);
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(
        pair.a.sent.len(),
        sent + 1,
        "one question, however many hints"
    );
    pair.settle();
    pair.assert_connected();
    let dropped = pair.a.endpoint.counters().dropped[&IkeDrop::Unauthenticated];
    assert_eq!(dropped, 22);
}

#[test]
fn a_peer_that_lost_everything_is_found_by_its_hint_long_before_the_next_question() {
    let mut a = initiator();
    a.dpd = Some(Dpd {
        delay: Duration::from_secs(3600),
        action: DpdAction::Restart,
    });
    let mut pair = up(a.clone());
    let spi = pair.a.sas.values().next().unwrap().outbound.spi;
    // B starts afresh, and gets ESP that it does not know.
    pair.b = Pair::new(a.clone(), mirrored(&a)).b;
    pair.b.endpoint.rng = TestRng(77);
    pair.run(Duration::from_secs(15));
    let local: SocketAddr = format!("{A}:500").parse().unwrap();
    let peer: SocketAddr = format!("{B}:500").parse().unwrap();
    pair.a
        .endpoint
        .handle_datagram(pair.now, local, peer, &invalid_spi(spi));
    pair.run(Duration::from_secs(300));
    assert_eq!(downs(&pair.a), [DownReason::DeadPeer]);
    pair.assert_connected();
}

#[test]
fn every_dpd_action_does_what_it_says_whatever_started_the_connection() {
    for start in [StartAction::None, StartAction::Start, StartAction::Trap] {
        for action in [DpdAction::Restart, DpdAction::Clear, DpdAction::Trap] {
            let mut a = initiator();
            a.start = start;
            a.dpd = Some(Dpd {
                delay: Duration::from_secs(10),
                action,
            });
            let mut pair = up(a);
            pair.cut = true;
            pair.run(Duration::from_secs(400));
            assert_eq!(downs(&pair.a), [DownReason::DeadPeer]);
            assert!(pair.a.sas.is_empty());
            assert_eq!(pair.a.policies.len(), 1, "nothing leaves in clear");
            pair.cut = false;
            pair.run(Duration::from_secs(120));
            let restarted = !pair.a.sas.is_empty();
            assert_eq!(
                restarted,
                action == DpdAction::Restart,
                "{start:?} {action:?}"
            );
            let trap = action == DpdAction::Trap || start == StartAction::Trap;
            assert_eq!(pair.a.policies["site"].trap, trap, "{start:?} {action:?}");
        }
    }
}

#[test]
fn after_so_many_tries_a_connection_is_given_up() {
    for tries in [0, 1, 3] {
        let mut a = initiator();
        a.keying_tries = tries;
        let b = mirrored(&a);
        let mut pair = Pair::new(a, b);
        pair.cut = true;
        pair.run(Duration::from_secs(3600));
        let given_up =
            pair.a.notices.iter().filter(
                |notice| matches!(notice, Notice::GaveUp { tries: all, .. } if *all == tries),
            );
        assert_eq!(given_up.count(), usize::from(tries != 0));
        let failed = pair.a.refusals().len();
        assert!(if tries == 0 {
            failed > 10
        } else {
            failed == tries as usize
        });
        pair.cut = false;
        pair.run(Duration::from_secs(120));
        assert_eq!(pair.a.sas.is_empty(), tries != 0);
        if tries != 0 {
            assert_eq!(pair.a.state(pair.now), "down");
            pair.a.endpoint.initiate(pair.now, "site").unwrap();
            pair.settle();
        }
        pair.assert_connected();
    }
}

#[test]
fn a_child_sa_that_carried_enough_is_rekeyed_and_one_that_carried_too_much_goes() {
    let mut a = initiator();
    let volume = |soft| Volume {
        soft,
        hard: soft + soft / 10,
        jitter: soft / 10,
    };
    a.child_bytes = Some(volume(1_000_000));
    a.child_packets = Some(volume(1000));
    let mut pair = up(a);
    let carried = |pair: &Pair, packets, bytes| ChildSaStats {
        id: *pair.a.sas.keys().last().unwrap(),
        inbound: HalfSaStats::default(),
        outbound: HalfSaStats {
            packets,
            bytes,
            ..HalfSaStats::default()
        },
    };
    let mut first = pair.a.sas.values().next().unwrap().clone();
    for (packets, bytes, rekeyed) in [
        (899, 899_999, false),
        (10, 1_000_000, true),
        (1000, 10, true),
    ] {
        let allowed = first.allowances;
        let soft = allowed.soft.packets.unwrap();
        assert!((900..=1000).contains(&soft) && allowed.hard.packets == Some(1100));
        assert!((900_000..=1_000_000).contains(&allowed.soft.bytes.unwrap()));
        let stats = carried(&pair, packets, bytes);
        pair.a.endpoint.handle_volume(pair.now, &stats);
        // Asking again while the rekey is under way changes nothing.
        pair.a.endpoint.handle_volume(pair.now, &stats);
        pair.settle();
        pair.assert_connected();
        let now = pair.a.sas.values().next().unwrap().clone();
        assert_eq!(now.id != first.id, rekeyed, "{packets} {bytes}");
        first = now;
    }
    let stats = carried(&pair, 0, 1_100_000);
    pair.a.endpoint.handle_volume(pair.now, &stats);
    pair.flush();
    assert!(!pair.a.sas.contains_key(&first.id));
    pair.settle();
    assert!(
        pair.b
            .sas
            .values()
            .all(|sa| sa.outbound.spi != first.inbound.spi)
    );
}
