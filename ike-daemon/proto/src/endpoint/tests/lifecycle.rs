//! Deletes, dead peers, rekeys.

use std::time::Duration;

use super::pair::*;
use crate::config::{Dpd, DpdAction, StartAction};
use crate::{DownReason, InitiateError, Notice};

fn up(a: crate::ConnectionConfig) -> Pair {
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
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

#[test]
fn either_end_can_terminate() {
    let mut pair = up(initiator());
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
    assert_eq!(
        (downs(&pair.a), downs(&pair.b)),
        (vec![DownReason::Terminated], vec![DownReason::PeerDeleted])
    );
    assert_eq!(
        pair.a.state(pair.now),
        "down",
        "it stays down until it is initiated"
    );
    assert_eq!(
        pair.a.endpoint.initiate(pair.now, "nobody"),
        Err(InitiateError::Unknown("nobody".into()))
    );
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    pair.assert_connected();
    assert!(matches!(
        pair.a.endpoint.initiate(pair.now, "site"),
        Err(InitiateError::AlreadyUp(_))
    ));

    pair.b.endpoint.terminate(pair.now, "site").unwrap();
    pair.settle();
    assert_eq!(downs(&pair.a).last(), Some(&DownReason::PeerDeleted));
    pair.assert_connected();
    assert_eq!(
        pair.a.established(),
        3,
        "start = \"start\" sets it up again"
    );
}

#[test]
fn a_dead_peer_is_found_and_the_connection_restarted() {
    let mut pair = up(initiator());
    pair.cut = true;
    pair.run(Duration::from_secs(180));
    assert_eq!(downs(&pair.a), [DownReason::DeadPeer]);
    assert!(pair.a.sas.is_empty());
    pair.cut = false;
    pair.run(Duration::from_secs(180));
    pair.assert_connected();
}

#[test]
fn traffic_is_proof_of_life() {
    let mut pair = up(initiator());
    let sent = pair.a.sent.len() + pair.b.sent.len();
    for _ in 0..10 {
        pair.run(Duration::from_secs(20));
        for end in [&mut pair.a, &mut pair.b] {
            let id = *end.sas.keys().next().unwrap();
            end.endpoint.handle_traffic(pair.now, id, pair.now);
        }
    }
    assert_eq!(
        pair.a.sent.len() + pair.b.sent.len(),
        sent,
        "nobody had to ask"
    );
}

#[test]
fn what_follows_a_dead_peer_is_configured() {
    for (action, state, trap) in [
        (DpdAction::Clear, "down", false),
        (DpdAction::Trap, "down", true),
    ] {
        let mut a = initiator();
        a.start = StartAction::None;
        a.dpd = Some(Dpd {
            delay: Duration::from_secs(10),
            action,
        });
        let b = mirrored(&a);
        let mut pair = Pair::new(a, b);
        pair.a.endpoint.initiate(pair.now, "site").unwrap();
        pair.settle();
        pair.assert_connected();
        pair.cut = true;
        pair.run(Duration::from_secs(400));
        assert_eq!(pair.a.state(pair.now), state);
        assert_eq!(pair.a.policies["site"].trap, trap);
    }
}

#[test]
fn a_peer_that_restarted_replaces_its_old_sas() {
    let mut pair = up(initiator());
    let old = *pair.b.sas.keys().next().unwrap();
    let fresh = Pair::new(initiator(), responder());
    pair.a = fresh.a;
    pair.a.notices.clear();
    // The fresh endpoint draws other numbers than its predecessor.
    pair.a.endpoint.rng = TestRng(99);
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    assert!(!pair.b.sas.contains_key(&old));
    pair.assert_connected();
    assert!(downs(&pair.b).contains(&DownReason::Replaced));
}

#[test]
fn child_and_ike_sas_are_rekeyed_by_either_end_with_and_without_pfs() {
    for esp in ["aes256gcm16", "aes256-sha256-ecp256"] {
        for by_a in [true, false] {
            let mut a = connection(A, B, IKE, esp);
            let mut b = mirrored(&a);
            let short = if by_a { &mut a } else { &mut b };
            short.child_lifetime.soft = Duration::from_secs(100);
            short.child_lifetime.jitter = Duration::from_secs(20);
            short.ike_lifetime.soft = Duration::from_secs(250);
            short.ike_lifetime.jitter = Duration::from_secs(20);
            let mut pair = Pair::new(a, b);
            pair.settle();
            pair.assert_connected();
            let first = pair.a.sas.values().next().unwrap().clone();
            pair.run(Duration::from_secs(600));
            pair.assert_connected();
            let last = pair.a.sas.values().next().unwrap();
            assert_ne!(
                last.inbound.encryption_key.expose(),
                first.inbound.encryption_key.expose()
            );
            assert!(pair.a.established() >= 3, "the IKE SA was rekeyed twice");
            assert!(pair.a.refusals().is_empty() && pair.b.refusals().is_empty());
            assert!(downs(&pair.a).is_empty() && downs(&pair.b).is_empty());
            let replaced = pair.a.notices.iter().filter(|notice| match notice {
                Notice::ChildDown { reason, .. } => {
                    assert_eq!(*reason, DownReason::Rekeyed);
                    true
                }
                _ => false,
            });
            assert!(replaced.count() >= 4);
        }
    }
}

#[test]
fn crossing_rekeys_come_to_rest() {
    for seed in 0..40 {
        let mut a = initiator();
        a.child_lifetime.soft = Duration::from_secs(100);
        a.child_lifetime.jitter = Duration::from_millis(30);
        a.ike_lifetime.soft = Duration::from_secs(300);
        a.ike_lifetime.jitter = Duration::from_millis(30);
        let b = mirrored(&a);
        let mut pair = Pair::seeded(seed, crate::EndpointConfig::default(), a, b);
        pair.settle();
        pair.run(Duration::from_secs(1000));
        assert!(
            pair.run_until(Duration::from_secs(60), |pair| pair.a.sas.len() == 1
                && pair.b.sas.len() == 1)
        );
        assert_same(
            pair.a.sas.values().next().unwrap(),
            pair.b.sas.values().next().unwrap(),
        );
        assert!(
            downs(&pair.a).is_empty() && downs(&pair.b).is_empty(),
            "seed {seed}"
        );
    }
}

#[test]
fn a_child_past_its_hard_lifetime_is_deleted_at_both_ends() {
    let mut a = initiator();
    a.start = StartAction::None;
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    let id = *pair.a.sas.keys().next().unwrap();
    pair.a.endpoint.handle_event(
        pair.now,
        &espada_common::sa::Event::Expire { id, hard: true },
    );
    pair.settle();
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    assert_eq!(pair.a.state(pair.now), "established", "the IKE SA lives on");
    let acquire = espada_common::sa::Event::Acquire {
        connection: "site".into(),
        source: "10.1.0.1".parse().unwrap(),
        destination: "10.2.0.1".parse().unwrap(),
    };
    pair.a.endpoint.handle_event(pair.now, &acquire);
    pair.settle();
    pair.assert_connected();
    assert_eq!(pair.a.established(), 1);
}
