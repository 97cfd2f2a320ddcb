//! Child SAs for single processors (RFC 9611).

use std::collections::BTreeSet;
use std::time::Duration;

use espada_common::sa::{ChildSa, Command, Event, Share};

use super::pair::*;
use crate::config::{ConnectionConfig, Lifetime};
use crate::{EndpointConfig, Notice};

fn with_processors(a: Option<u32>, b: Option<u32>) -> (ConnectionConfig, ConnectionConfig) {
    let mut ours = initiator();
    ours.processors = a;
    let mut theirs = mirrored(&ours);
    theirs.processors = b;
    (ours, theirs)
}

fn connect(a: Option<u32>, b: Option<u32>) -> Pair {
    let (a, b) = with_processors(a, b);
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_secs(60));
    pair
}

fn shares(end: &End) -> Vec<Share> {
    let mut shares: Vec<Share> = end.sas.values().map(|sa| sa.share).collect();
    shares.sort_by_key(|share| match share {
        Share::Whole => (0, 0),
        Share::Fallback => (1, 0),
        Share::Processor(number) => (2, *number),
        Share::Peer => (3, 0),
    });
    shares
}

/// Each child SA of one end is one of the other's.
fn assert_matched(pair: &Pair) {
    assert_eq!(pair.a.sas.len(), pair.b.sas.len());
    for sa in pair.a.sas.values() {
        let other = |other: &&ChildSa| other.inbound.spi == sa.outbound.spi;
        assert_same(sa, pair.b.sas.values().find(other).unwrap());
    }
}

const PROCESSOR_0: Share = Share::Processor(0);
const PROCESSOR_1: Share = Share::Processor(1);
const PROCESSOR_2: Share = Share::Processor(2);

#[test]
fn each_processor_of_either_end_gets_one() {
    let all = [Share::Fallback, PROCESSOR_0, PROCESSOR_1, PROCESSOR_2];
    let fewer = [Share::Fallback, PROCESSOR_0, PROCESSOR_1, Share::Peer];
    for (a, b) in [(3, 2), (2, 3)] {
        let pair = connect(Some(a), Some(b));
        let (of_a, of_b) = if a > b { (all, fewer) } else { (fewer, all) };
        assert_eq!(shares(&pair.a), of_a);
        assert_eq!(shares(&pair.b), of_b);
        assert_matched(&pair);
        let statuses = pair.a.endpoint.status(pair.now);
        let children = &statuses[0].ike_sas[0].children;
        let shown = |text: &str| children.iter().any(|child| child.share.to_string() == text);
        assert!(shown("fallback") && shown("processor 1"));
    }
}

#[test]
fn a_peer_that_does_not_know_of_it_gets_one_child_sa() {
    for (a, b) in [(Some(2), None), (None, Some(2))] {
        let pair = connect(a, b);
        pair.assert_connected();
        assert_eq!(shares(&pair.a), [Share::Whole]);
        assert_eq!(shares(&pair.b), [Share::Whole]);
    }
}

#[test]
fn a_rekey_keeps_the_share() {
    let (mut a, mut b) = with_processors(Some(2), Some(1));
    let lifetime = |seconds| Lifetime {
        soft: Duration::from_secs(seconds),
        hard: Duration::from_secs(seconds * 2),
        jitter: Duration::ZERO,
    };
    a.child_lifetime = lifetime(100);
    a.ike_lifetime = lifetime(250);
    b.child_lifetime = lifetime(170);
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_secs(60));
    let before: Vec<_> = pair.a.sas.keys().copied().collect();
    for _ in 0..6 {
        pair.run(Duration::from_secs(101));
        pair.settle();
        assert_eq!(shares(&pair.a), [Share::Fallback, PROCESSOR_0, PROCESSOR_1]);
        assert_eq!(shares(&pair.b), [Share::Fallback, PROCESSOR_0, Share::Peer]);
        assert_matched(&pair);
    }
    assert!(before.iter().all(|id| !pair.a.sas.contains_key(id)));
    let rekeyed = |command: &&Command| matches!(command, Command::RekeySa { new, .. } if new.share == PROCESSOR_1);
    assert!(pair.a.commands.iter().filter(rekeyed).count() >= 3);
}

#[test]
fn what_expires_is_made_again() {
    let mut pair = connect(Some(2), Some(2));
    let of = |end: &End, share| {
        let mut found = end.sas.iter().filter(|(_, sa)| sa.share == share);
        *found.next().unwrap().0
    };
    for share in [PROCESSOR_1, Share::Fallback] {
        let id = of(&pair.a, share);
        let expire = Event::Expire { id, hard: true };
        pair.a.endpoint.handle_event(pair.now, &expire);
        pair.settle();
        pair.run(Duration::from_secs(30));
        for end in [&pair.a, &pair.b] {
            assert_eq!(shares(end), [Share::Fallback, PROCESSOR_0, PROCESSOR_1]);
        }
        assert_matched(&pair);
    }
}

/// What a peer takes is bounded, and it is asked no further.
#[test]
fn a_peer_that_takes_no_more_is_left_in_peace() {
    let pair = connect(Some(300), Some(2));
    assert_eq!(pair.a.sas.len(), 256);
    assert_matched(&pair);
    let refused = |notice: &&Notice| matches!(notice, Notice::SharesRefused { notify, .. } if notify == "TS_MAX_QUEUE");
    assert_eq!(pair.a.notices.iter().filter(refused).count(), 1);
    assert!(pair.a.refusals().is_empty() && pair.b.refusals().is_empty());
}

#[test]
fn they_converge_under_loss() {
    for seed in 0..30 {
        let (mut a, mut b) = with_processors(Some(3), Some(3));
        // Rekeys of both ends fall among the requests.
        for (config, seconds) in [(&mut a, 31), (&mut b, 37)] {
            config.child_lifetime.soft = Duration::from_secs(seconds);
            config.child_lifetime.jitter = Duration::from_secs(2);
        }
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.network = Network {
            loss_percent: 20,
            duplicate_percent: 10,
            jitter: Duration::from_millis(30),
            ..Network::default()
        };
        pair.run(Duration::from_secs(200));
        pair.network = Network::default();
        pair.run(Duration::from_secs(100));
        // They go on rekeying: there are moments without one under way.
        let at_rest = |pair: &Pair| {
            let replaced = pair.a.sas.len() + pair.b.sas.len();
            replaced <= 2 * 7 && pair.a.sas.len() == pair.b.sas.len()
        };
        assert!(
            pair.run_until(Duration::from_secs(60), at_rest),
            "seed {seed}"
        );
        for end in [&pair.a, &pair.b] {
            let kinds: BTreeSet<String> = shares(end).iter().map(Share::to_string).collect();
            for processor in [PROCESSOR_0, PROCESSOR_1, PROCESSOR_2] {
                assert!(
                    kinds.contains(&processor.to_string()),
                    "seed {seed}: {kinds:?}"
                );
            }
            assert!(kinds.contains("fallback"), "seed {seed}: {kinds:?}");
        }
        assert_matched(&pair);
    }
}
