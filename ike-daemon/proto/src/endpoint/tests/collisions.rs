//! Exchanges of both ends that cross (RFC 7296 sections 2.8.1, 2.8.2 and 2.25), message by message and
//! on a bad network.

use std::time::Duration;

use espada_common::sa::{ChildSaId, Event};

use super::pair::*;
use crate::config::StartAction;
use crate::sa::Phase;
use crate::sa::established::Task;
use crate::{ConnectionConfig, DownReason, EndpointConfig, Notice};

/// A pair that is up, with traffic in both directions.
fn up(seed: u64, start: StartAction) -> Pair {
    up_with(seed, initiator(), start)
}

/// The same, that does two more key exchanges for each SA.
fn up_with_more_exchanges(seed: u64, start: StartAction) -> Pair {
    let ike = "aes256gcm16-prfsha256-x25519-ke1_mlkem512-ke2_ecp256";
    let a = connection(A, B, ike, "aes256gcm16-x25519-ke1_mlkem512-ke2_ecp256");
    up_with(seed, a, start)
}

fn up_with(seed: u64, a: ConnectionConfig, start: StartAction) -> Pair {
    let mut b = mirrored(&a);
    b.start = start;
    let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
    pair.settle();
    pair.run(Duration::from_secs(20));
    pair.assert_mirrored("at first");
    pair.start_traffic();
    pair
}

fn end(pair: &mut Pair, of_a: bool) -> &mut End {
    if of_a { &mut pair.a } else { &mut pair.b }
}

fn child(end: &End) -> ChildSaId {
    *end.sending.last().expect("a child SA")
}

fn expire(pair: &mut Pair, of_a: bool, hard: bool) {
    let now = pair.now;
    let end = end(pair, of_a);
    if let Some(id) = end.sending.last().copied() {
        end.endpoint.handle_event(now, &Event::Expire { id, hard });
    }
    pair.flush();
}

/// Has an end rekey its child SA.
fn rekey_child(pair: &mut Pair, of_a: bool) {
    expire(pair, of_a, false);
}

/// Has an end rekey its IKE SA.
fn rekey_ike(pair: &mut Pair, of_a: bool) {
    let now = pair.now;
    let endpoint = &mut end(pair, of_a).endpoint;
    let current = endpoint
        .sas
        .values()
        .find(|entry| entry.sa.is_established());
    if let Some(spi) = current.map(|entry| entry.sa.local_spi()) {
        endpoint.with_sa(now, spi, |sa, cx| {
            if let Phase::Established(established) = &mut sa.phase {
                established.queue.push_back(Task::RekeyIke);
            }
            sa.go_on(cx);
        });
    }
    pair.flush();
}

/// SPIs of the IKE SA in use.
fn ike(end: &End) -> (u64, u64) {
    let mut sas = end.endpoint.sas.values().map(|entry| &entry.sa);
    let sa = sas.find(|sa| sa.is_established()).expect("an IKE SA");
    (sa.common.spi_i, sa.common.spi_r)
}

fn children_up(end: &End) -> usize {
    let up = |notice: &&Notice| matches!(notice, Notice::ChildUp { .. });
    end.notices.iter().filter(up).count()
}

/// Nothing is lost, nothing is refused, and no SA went for another reason than a rekey.
fn assert_rekeyed(pair: &mut Pair, context: &str) {
    pair.run(Duration::from_secs(150));
    pair.assert_mirrored(context);
    pair.assert_connected();
    assert_eq!(pair.lost, 0, "{context}: packets lost");
    for end in [&pair.a, &pair.b] {
        assert!(end.refusals().is_empty(), "{context}: {:?}", end.refusals());
        for notice in &end.notices {
            match notice {
                Notice::Down { .. } => panic!("{context}: {notice}"),
                Notice::ChildDown { reason, .. } => {
                    assert_eq!(*reason, DownReason::Rekeyed, "{context}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn of_two_child_rekeys_the_one_with_the_lowest_nonce_goes() {
    let mut prevailed = [0; 2];
    for seed in 0..12 {
        let mut pair = up(seed, StartAction::None);
        let old = [child(&pair.a), child(&pair.b)];
        rekey_child(&mut pair, true);
        rekey_child(&mut pair, false);
        // Each answers the other's request although its own is under way.
        assert!(pair.deliver(true) && pair.deliver(false));
        assert_eq!(
            [child(&pair.a), child(&pair.b)],
            old,
            "the old one still sends"
        );
        assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (2, 2));
        assert!(pair.deliver(true) && pair.deliver(false));
        // Who prevails has both new ones and sends with its own; the other never installs its own.
        let winner = pair.a.sas.len() == 3;
        prevailed[usize::from(winner)] += 1;
        let (won, lost) = if winner {
            (&pair.a, &pair.b)
        } else {
            (&pair.b, &pair.a)
        };
        assert_eq!((won.sas.len(), lost.sas.len()), (3, 2), "seed {seed}");
        assert!(!old.contains(&child(won)) && old.contains(&child(lost)));
        let spi = won.sas[&child(won)].inbound.spi;
        assert_rekeyed(&mut pair, &format!("seed {seed}"));
        let won = if winner { &pair.a } else { &pair.b };
        assert_eq!(won.sas[&child(won)].inbound.spi, spi, "that one stays");
    }
    assert!(prevailed.iter().all(|count| *count > 0), "{prevailed:?}");
}

#[test]
fn a_child_rekey_whose_request_is_lost_finds_the_child_sa_gone() {
    // The second sequence of section 2.8.1: B is done before A's request arrives.
    for arrives_before_delete in [false, true] {
        let mut pair = up(1, StartAction::None);
        rekey_child(&mut pair, true);
        pair.lose(false);
        rekey_child(&mut pair, false);
        assert!(pair.deliver(true), "B's request");
        assert!(pair.deliver(false), "A's answer: B deletes the old one");
        if arrives_before_delete {
            // A repeats its request; B is about to delete what it is for.
            pair.run(Duration::ZERO);
        }
        let up = children_up(&pair.a);
        assert_rekeyed(&mut pair, "lost request");
        assert_eq!(children_up(&pair.a), up, "A makes no other one");
    }
}

#[test]
fn a_child_rekey_that_is_answered_late_still_prevails_or_goes() {
    // B's answer to A is lost, while B's own rekey goes through.
    for seed in 0..8 {
        let mut pair = up(seed, StartAction::None);
        rekey_child(&mut pair, true);
        rekey_child(&mut pair, false);
        assert!(pair.deliver(false), "A's request");
        pair.lose(true); // B's request, …
        assert_eq!(children_up(&pair.b), 2);
        pair.lose(true); // … and its answer.
        assert_rekeyed(&mut pair, &format!("seed {seed}"));
    }
}

#[test]
fn a_child_rekey_crosses_a_delete() {
    for (start, order) in [
        (StartAction::None, true),
        (StartAction::None, false),
        (StartAction::Start, true),
        (StartAction::Start, false),
    ] {
        let mut pair = up(3, start);
        let established = pair.a.established();
        rekey_child(&mut pair, true);
        // B's child SA is past its lifetime.
        expire(&mut pair, false, true);
        assert!(pair.deliver(order) && pair.deliver(!order));
        pair.run(Duration::from_secs(150));
        pair.assert_mirrored("rekey against delete");
        // A keeps the connection up.
        pair.assert_connected();
        assert_eq!(pair.a.established(), established, "the IKE SA lives on");
    }
}

#[test]
fn a_rekey_of_a_child_sa_that_the_other_end_closes_is_put_off() {
    let mut pair = up(4, StartAction::None);
    rekey_child(&mut pair, true);
    assert!(pair.deliver(false) && pair.deliver(true));
    // A deletes the old one now. B wants to rekey just that.
    let now = pair.now;
    let old = *pair.b.sas.keys().next().unwrap();
    let spi = pair.b.endpoint.sas.values().next().unwrap().sa.local_spi();
    pair.b.endpoint.with_sa(now, spi, |sa, cx| {
        if let Phase::Established(established) = &mut sa.phase {
            established.children[0].replaced = false;
            established.children[0].rekey_at = Some(now);
            established.rekey_child(old);
        }
        sa.go_on(cx);
        if let Phase::Established(established) = &mut sa.phase {
            established.children[0].replaced = true;
        }
    });
    pair.flush();
    assert!(
        pair.deliver(true),
        "B's request is answered with TEMPORARY_FAILURE"
    );
    assert_rekeyed(&mut pair, "closing");
    assert_eq!(children_up(&pair.b), 2);
}

#[test]
fn both_delete_the_same_child_sa() {
    let mut pair = up(5, StartAction::None);
    expire(&mut pair, true, true);
    expire(&mut pair, false, true);
    pair.run(Duration::from_secs(60));
    pair.assert_mirrored("delete against delete");
}

#[test]
fn of_two_ike_rekeys_one_prevails_and_has_the_child_sas() {
    let mut prevailed = [0; 2];
    for seed in 0..12 {
        let mut pair = up(seed, StartAction::None);
        let before = child(&pair.a);
        rekey_ike(&mut pair, true);
        rekey_ike(&mut pair, false);
        assert!(pair.deliver(true) && pair.deliver(false));
        assert_eq!(ike(&pair.a), ike(&pair.b), "the old one is in use");
        assert!(pair.deliver(true) && pair.deliver(false));
        assert_eq!(ike(&pair.a), ike(&pair.b), "both know which prevails");
        let by_a = pair.a.endpoint.sas.values().any(|entry| {
            entry.sa.is_established() && entry.sa.common.role == crate::status::Role::Initiator
        });
        prevailed[usize::from(by_a)] += 1;
        assert_rekeyed(&mut pair, &format!("seed {seed}"));
        assert_eq!(child(&pair.a), before, "child SAs are not touched");
        assert_eq!((pair.a.established(), pair.b.established()), (2, 2));
    }
    assert!(prevailed.iter().all(|count| *count > 0), "{prevailed:?}");
}

#[test]
fn an_ike_rekey_that_the_peer_did_not_notice_is_forgotten() {
    for (seed, temporary_failure) in [(1, true), (2, false), (3, true), (4, false)] {
        let mut pair = up(seed, StartAction::None);
        rekey_ike(&mut pair, true);
        if temporary_failure {
            // A's request arrives when B is done, and before B's delete reaches A.
            rekey_ike(&mut pair, false);
            let late = pair.hold(false);
            assert!(pair.deliver(true) && pair.deliver(false));
            pair.release(late);
            assert!(pair.deliver(false), "A's request");
        } else {
            pair.lose(false);
            rekey_ike(&mut pair, false);
            assert!(pair.deliver(true) && pair.deliver(false) && pair.deliver(true));
        }
        assert_rekeyed(&mut pair, &format!("seed {seed}"));
        assert_eq!((pair.a.established(), pair.b.established()), (2, 2));
    }
}

#[test]
fn a_successor_in_doubt_answers_nothing_until_it_is_decided() {
    // B knows that its successor prevails while A does not, and uses it at once.
    let mut seen = 0;
    for seed in 0..12 {
        let mut pair = up(seed, StartAction::None);
        rekey_ike(&mut pair, true);
        rekey_ike(&mut pair, false);
        assert!(pair.deliver(true) && pair.deliver(false));
        pair.lose(true); // B's answer.
        assert!(pair.deliver(false), "A's answer: B decides");
        rekey_child(&mut pair, false);
        let dropped = |end: &End| end.endpoint.counters().dropped;
        // What it does with it overtakes its delete of the old one.
        let first = pair.hold(true);
        pair.deliver(true);
        pair.release(first);
        seen += dropped(&pair.a)
            .get(&crate::status::IkeDrop::Early)
            .copied()
            .unwrap_or(0);
        assert_rekeyed(&mut pair, &format!("seed {seed}"));
        assert_eq!(
            children_up(&pair.a),
            2,
            "seed {seed}: the child SA was rekeyed"
        );
    }
    assert!(seen > 0);
}

#[test]
fn an_ike_rekey_waits_for_a_child_rekey_and_the_other_way_round() {
    for order in [true, false] {
        let mut pair = up(6, StartAction::None);
        rekey_ike(&mut pair, true);
        rekey_child(&mut pair, false);
        assert!(pair.deliver(order) && pair.deliver(!order));
        // Each refused for the moment: neither is done, and neither tries at once.
        assert!(pair.deliver(true) && pair.deliver(false));
        assert_eq!((children_up(&pair.a), pair.a.established()), (1, 1));
        assert_rekeyed(&mut pair, "IKE against child rekey");
        assert_eq!((children_up(&pair.a), pair.a.established()), (2, 2));
    }
}

#[test]
fn a_child_delete_is_answered_during_an_ike_rekey() {
    for order in [true, false] {
        let mut pair = up(7, StartAction::None);
        rekey_ike(&mut pair, true);
        expire(&mut pair, false, true);
        assert!(pair.deliver(order) && pair.deliver(!order));
        pair.run(Duration::from_secs(150));
        pair.assert_mirrored("child delete against IKE rekey");
        pair.assert_connected();
    }
}

#[test]
fn an_ike_delete_crosses_an_ike_rekey() {
    for order in [true, false] {
        let mut pair = up(8, StartAction::None);
        rekey_ike(&mut pair, false);
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.flush();
        assert!(pair.deliver(order) && pair.deliver(!order));
        pair.run(Duration::from_secs(300));
        pair.assert_nothing_left();
    }
}

#[test]
fn both_delete_the_ike_sa() {
    let mut pair = up(9, StartAction::None);
    for end in [&mut pair.a, &mut pair.b] {
        end.endpoint.terminate(pair.now, "site").unwrap();
    }
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
}

#[test]
fn what_the_peer_does_with_a_child_sa_we_have_no_answer_of_waits_for_it() {
    for delete in [false, true] {
        let mut pair = up(10, StartAction::None);
        rekey_child(&mut pair, true);
        assert!(pair.deliver(false));
        pair.lose(true); // A does not learn of the child SA that B has made, …
        let new = *pair.b.sas.keys().last().unwrap();
        let event = Event::Expire {
            id: new,
            hard: delete,
        };
        pair.b.endpoint.handle_event(pair.now, &event);
        pair.flush();
        assert!(pair.deliver(true)); // … which B goes on to rekey or delete.
        pair.run(Duration::from_secs(150));
        pair.assert_mirrored("an answer that is lost");
        pair.assert_connected();
    }
}

#[test]
fn a_peer_that_refuses_for_the_moment_for_minutes_is_out_of_step() {
    let mut pair = up(11, StartAction::None);
    let now = pair.now;
    // B is stuck in a rekey of its own that never ends.
    let spi = pair.b.endpoint.sas.values().next().unwrap().sa.local_spi();
    pair.b.endpoint.with_sa(now, spi, |sa, _| {
        if let Phase::Established(established) = &mut sa.phase {
            established.superseded = true;
        }
    });
    rekey_child(&mut pair, true);
    pair.run(Duration::from_secs(600));
    let out = |notice: &Notice| {
        matches!(
            notice,
            Notice::Down {
                reason: DownReason::OutOfStep,
                ..
            }
        )
    };
    assert!(pair.a.notices.iter().any(out), "{:#?}", pair.a.notices);
    pair.assert_mirrored("set up again");
    pair.assert_connected();
}

#[test]
fn one_of_two_ike_sas_set_up_at_once_is_dropped() {
    let mut kept = [0; 2];
    for seed in 0..12 {
        let a = initiator();
        let mut b = mirrored(&a);
        b.start = StartAction::Start;
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.settle();
        pair.run(Duration::from_secs(30));
        pair.assert_mirrored(&format!("seed {seed}"));
        pair.assert_connected();
        let by_a = pair.a.endpoint.sas.values().next().unwrap();
        kept[usize::from(by_a.sa.common.role == crate::status::Role::Initiator)] += 1;
    }
    assert!(kept.iter().all(|count| *count > 0), "{kept:?}");
}

/// What an end does while the other is at something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    RekeyChild,
    RekeyIke,
    DeleteChild,
}

fn act(pair: &mut Pair, of_a: bool, act: Act) {
    match act {
        Act::RekeyChild => rekey_child(pair, of_a),
        Act::RekeyIke => rekey_ike(pair, of_a),
        Act::DeleteChild => expire(pair, of_a, true),
    }
}

/// B does something after none, one, … of the messages of what A does, and all that is under way then
/// arrives in every order that keeps that of each direction.
#[test]
fn whatever_crosses_further_key_exchanges_both_end_up_the_same() {
    const MESSAGES: u32 = 5;
    for (of_a, of_b) in [
        (Act::RekeyChild, Act::RekeyChild),
        (Act::RekeyChild, Act::RekeyIke),
        (Act::RekeyChild, Act::DeleteChild),
        (Act::RekeyIke, Act::RekeyChild),
        (Act::RekeyIke, Act::RekeyIke),
        (Act::RekeyIke, Act::DeleteChild),
    ] {
        for before in 0..6 {
            for order in 0..1u32 << MESSAGES {
                let context = format!("{of_a:?} {of_b:?} {before} {order:05b}");
                let mut pair = up_with_more_exchanges(order.into(), StartAction::None);
                act(&mut pair, true, of_a);
                for message in 0..before {
                    assert!(pair.deliver(message % 2 == 1), "{context}");
                }
                act(&mut pair, false, of_b);
                for message in 0..MESSAGES {
                    let to_a = order >> message & 1 == 1;
                    let _ = pair.deliver(to_a) || pair.deliver(!to_a);
                }
                if of_b == Act::DeleteChild {
                    pair.run(Duration::from_secs(150));
                    pair.assert_mirrored(&context);
                    pair.assert_connected();
                } else {
                    assert_rekeyed(&mut pair, &context);
                }
                for (kind, done) in [
                    (Act::RekeyChild, children_up(&pair.a)),
                    (Act::RekeyIke, pair.a.established()),
                ] {
                    let asked = of_a == kind || of_b == kind;
                    assert!(
                        done > usize::from(asked),
                        "{context}: {kind:?} is forgotten"
                    );
                }
            }
        }
    }
}

#[test]
fn whatever_crosses_on_a_bad_network_both_end_up_the_same() {
    for seed in 0..150 {
        end_up_the_same(up, seed);
    }
}

#[test]
fn further_key_exchanges_that_cross_on_a_bad_network_leave_both_the_same() {
    for seed in 0..100 {
        end_up_the_same(up_with_more_exchanges, seed);
    }
}

fn end_up_the_same(up: fn(u64, StartAction) -> Pair, seed: u64) {
    let mut pair = up(
        seed,
        [StartAction::None, StartAction::Start][(seed % 2) as usize],
    );
    let mut rng = TestRng(seed ^ 0x5eed);
    pair.network = Network {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(600),
        loss_percent: rng.below(30),
        duplicate_percent: 20,
        ..Network::default()
    };
    for _ in 0..25 {
        let of_a = rng.below(2) == 0;
        match rng.below(12) {
            0..=3 => rekey_child(&mut pair, of_a),
            4..=6 => rekey_ike(&mut pair, of_a),
            7 => expire(&mut pair, of_a, true),
            8 => {
                // Both at once.
                rekey_child(&mut pair, true);
                rekey_child(&mut pair, false);
            }
            9 => {
                rekey_ike(&mut pair, true);
                rekey_ike(&mut pair, false);
            }
            10 => {
                rekey_child(&mut pair, of_a);
                rekey_ike(&mut pair, !of_a);
            }
            _ => {
                let now = pair.now;
                let acquire = Event::Acquire {
                    connection: "site".into(),
                    source: "10.1.0.1".parse().unwrap(),
                    destination: "10.2.0.1".parse().unwrap(),
                };
                end(&mut pair, of_a).endpoint.handle_event(now, &acquire);
                pair.flush();
            }
        }
        pair.run(Duration::from_millis(rng.below(4000)));
    }
    pair.network = Network::default();
    pair.run(Duration::from_secs(600));
    pair.assert_mirrored(&format!("seed {seed}"));
    pair.assert_connected();
}
