//! An endpoint that ends at any moment is followed by another that goes on with its SAs.

use std::time::Duration;

use espada_common::sa::{ChildSa, Event, Mode, TrafficSelector};
use proptest::prelude::*;

use super::pair::*;
use crate::config::{RemoteAddress, RemoteIdentity, StartAction};
use crate::crypto::Random;
use crate::wire::{ExchangeType, Header};
use crate::{ConnectionConfig, DownReason, Endpoint, EndpointConfig, Notice, RestoreError};

/// A child SA and an IKE SA are rekeyed twice within the time of [`LIFE`].
fn short_lived() -> ConnectionConfig {
    let mut a = initiator();
    a.child_lifetime.soft = Duration::from_secs(100);
    a.child_lifetime.hard = Duration::from_secs(400);
    a.child_lifetime.jitter = Duration::from_secs(20);
    a.ike_lifetime.soft = Duration::from_secs(130);
    a.ike_lifetime.hard = Duration::from_secs(600);
    a.ike_lifetime.jitter = Duration::from_secs(20);
    a
}

const LIFE: Duration = Duration::from_secs(320);

fn first_requests(end: &End) -> usize {
    let first = |bytes: &[u8]| {
        let (header, _) = Header::split(bytes).unwrap();
        header.exchange == ExchangeType::IKE_SA_INIT && !header.flags.is_response()
    };
    end.sent.iter().filter(|sent| first(&sent.payload)).count()
}

/// A pair of SAs that both have.
fn common_sa(pair: &Pair) -> Option<(&ChildSa, &ChildSa)> {
    pair.a.sas.values().find_map(|a| {
        let same = |b: &&ChildSa| b.inbound.spi == a.outbound.spi;
        pair.b.sas.values().find(same).map(|b| (a, b))
    })
}

/// Runs until nothing changes any more: both have the same and nothing else.
fn converge(pair: &mut Pair, context: &str) {
    pair.run(Duration::from_secs(250));
    let calm = pair.run_until(Duration::from_secs(100), |pair| {
        let one = |end: &End| {
            let status = &end.endpoint.status(pair.now)[0];
            let established = status.ike_sas.iter().filter(|sa| sa.state == "established");
            end.sas.len() == 1 && established.count() == 1
        };
        one(&pair.a) && one(&pair.b) && common_sa(pair).is_some()
    });
    assert!(
        calm,
        "{context}: {:#?} {:#?}",
        pair.a.endpoint.status(pair.now),
        pair.b.endpoint.status(pair.now)
    );
    let (a, b) = common_sa(pair).unwrap();
    assert_same(a, b);
    for end in [&pair.a, &pair.b] {
        assert!(end.refused.is_empty(), "{context}: {:?}", end.refused);
    }
}

/// How many datagrams an end sends in an undisturbed [`LIFE`].
fn datagrams(esp: &str) -> [usize; 2] {
    let mut a = short_lived();
    a.esp = connection(A, B, IKE, esp).esp;
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    pair.run(LIFE);
    assert!(pair.a.established() >= 3, "the IKE SA is rekeyed twice");
    [pair.a.sent.len(), pair.b.sent.len()]
}

#[test]
fn killed_at_every_message_it_is_followed_without_anybody_noticing() {
    use KillWhen::{Saved, Sent, Unsent};
    for esp in [ESP, "aes192gcm8-ecp256"] {
        let counts = datagrams(esp);
        for (of_a, count) in [(true, counts[0]), (false, counts[1])] {
            let whens = [Saved(0), Saved(1), Saved(2), Unsent, Sent];
            for at in 0..count {
                for (index, when) in whens.into_iter().enumerate() {
                    let mut a = short_lived();
                    a.esp = connection(A, B, IKE, esp).esp;
                    let b = mirrored(&a);
                    let mut pair = Pair::new(a, b);
                    let kill = Kill {
                        of_a,
                        at,
                        when,
                        down: Duration::from_secs([0, 3, 40][(at + index) % 3]),
                    };
                    pair.kill = Some(kill);
                    let context = format!("{esp} {kill:?}");
                    pair.run_until(Duration::from_secs(20), |pair| common_sa(pair).is_some());
                    // From the first child SA on there is one that both have, at any time.
                    let lost = pair.run_until(LIFE, |pair| common_sa(pair).is_none());
                    // The first two datagrams are those of the negotiation itself.
                    if at >= 2 {
                        assert!(!lost, "{context}: nothing in common");
                        assert!(pair.kill.is_none(), "{context}");
                        let first = first_requests(&pair.a);
                        assert_eq!(first, 1, "{context}: negotiated anew");
                    }
                    converge(&mut pair, &context);
                }
            }
        }
    }
}

#[test]
fn killed_again_and_again_under_loss_they_stay_together() {
    for seed in 0..60 {
        let a = short_lived();
        let b = mirrored(&a);
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.settle();
        pair.network = Network {
            latency: Duration::from_millis(20),
            jitter: Duration::from_millis(700),
            loss_percent: 20,
            duplicate_percent: 20,
            ..Network::default()
        };
        let mut rng = TestRng(seed);
        for _ in 0..12 {
            let of_a = rng.below(2) == 0;
            let sent = if of_a { &pair.a.sent } else { &pair.b.sent };
            pair.kill = Some(Kill {
                of_a,
                at: sent.len() + rng.below(4) as usize,
                when: [
                    KillWhen::Saved(rng.below(3) as usize),
                    KillWhen::Unsent,
                    KillWhen::Sent,
                ][rng.below(3) as usize],
                down: Duration::from_secs(rng.below(20)),
            });
            pair.run(Duration::from_secs(30 + rng.below(40)));
        }
        pair.kill = None;
        pair.network = Network::default();
        converge(&mut pair, &format!("seed {seed}"));
        assert_eq!(first_requests(&pair.a), 1, "seed {seed}: negotiated anew");
    }
}

/// Both up and quiet, then A killed.
fn killed(a: ConnectionConfig, b: ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    let now = pair.now;
    pair.a.kill(now, Duration::from_secs(1));
    pair
}

#[test]
fn the_successor_asks_the_peer_at_once_and_says_what_it_took_over() {
    let mut pair = killed(initiator(), responder());
    let (sent, state) = (pair.a.sent.len(), pair.a.saved.clone());
    pair.run(Duration::from_millis(1100));
    assert_eq!(pair.a.sent.len(), sent + 1, "one liveness check");
    let notice = pair.a.notices.iter().rev().find_map(|notice| match notice {
        Notice::TakenOver { children, .. } => Some((notice.to_string(), children.len())),
        _ => None,
    });
    let (text, children) = notice.unwrap();
    assert!(text.starts_with("IKE SA taken over from the previous daemon"));
    assert_eq!(children, 1);
    pair.settle();
    pair.assert_connected();
    assert_eq!(pair.a.saved.len(), 1);
    assert_ne!(pair.a.saved, state, "the request is in it");
    // Its timers are those of its predecessor.
    let status = &pair.a.endpoint.status(pair.now)[0].ike_sas[0];
    assert!(status.age > Duration::from_secs(5), "{:?}", status.age);
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
    assert!(pair.a.saved.is_empty() && pair.b.saved.is_empty());
}

#[test]
fn what_the_data_plane_lost_is_made_anew_and_what_it_should_not_have_is_named() {
    let mut pair = killed(initiator(), responder());
    let old = *pair.a.sas.keys().next().unwrap();
    let mut stranger = pair.a.sas.remove(&old).unwrap();
    stranger.id.0 = 77;
    pair.a.sas.insert(stranger.id, stranger);
    pair.settle();
    pair.assert_connected();
    let id = *pair.a.sas.keys().next().unwrap();
    assert_eq!(id.0, 78, "above everything that is carried");
    assert_eq!(pair.a.established(), 1, "within the same IKE SA");
    let gone = pair.a.notices.iter().any(|notice| {
        matches!(notice, Notice::ChildDown { id, reason: DownReason::NotCarried, .. } if *id == old)
    });
    assert!(gone);
}

#[test]
fn lifetimes_go_on_while_nothing_runs() {
    let mut a = initiator();
    a.child_lifetime.soft = Duration::from_secs(100);
    a.child_lifetime.hard = Duration::from_secs(110);
    a.child_lifetime.jitter = Duration::ZERO;
    a.start = StartAction::None;
    let mut b = mirrored(&a);
    b.child_lifetime = initiator().child_lifetime;
    b.dpd = None;
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    let now = pair.now;
    pair.a.kill(now, Duration::from_secs(98));
    pair.run(Duration::from_secs(99));
    assert_eq!(pair.a.sas.keys().last().unwrap().0, 2, "it is rekeyed");
    pair.settle();
    pair.assert_connected();
    let now = pair.now;
    pair.a.kill(now, Duration::from_secs(200));
    pair.run(Duration::from_secs(205));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty(), "it is over");
    assert_eq!(pair.a.state(pair.now), "established");
    let expired = pair.a.notices.iter().any(|notice| {
        matches!(
            notice,
            Notice::ChildDown {
                reason: DownReason::Expired,
                ..
            }
        )
    });
    assert!(expired);
}

#[test]
fn what_does_not_fit_the_configuration_any_more_is_refused_and_deleted_at_the_peer() {
    type Change = fn(&mut End);
    let changes: [(Change, &str); 10] = [
        (|a| a.config.clear(), "`site` is not configured"),
        (
            |a| a.config[0].local_id = Some("gw.example".parse().unwrap()),
            "we are gw.example in it now, and were 192.0.2.1",
        ),
        (
            |a| a.config[0].remote_id = RemoteIdentity::Is("other".parse().unwrap()),
            "another peer than 198.51.100.2",
        ),
        (
            |a| a.config[0].remote_address = RemoteAddress::Address(NAT.parse().unwrap()),
            "remote.address is 203.0.113.9, it has 198.51.100.2",
        ),
        (
            |a| a.config[0].local_address = Some(NAT.parse().unwrap()),
            "local.address is 203.0.113.9, it has 192.0.2.1",
        ),
        (
            |a| a.config[0].ike = connection(A, B, "aes128-sha256-ecp256", ESP).ike,
            "suite aes256gcm16-prfsha256-x25519 is not one of ike",
        ),
        (
            |a| a.config[0].esp = connection(A, B, IKE, "aes128gcm16").esp,
            "suite aes256gcm16 is not one of esp",
        ),
        (
            |a| a.config[0].remote_ts = vec![TrafficSelector::host("10.2.0.1".parse().unwrap())],
            "child SA is for 10.2.0.0/16, which remote.subnets does not cover",
        ),
        (
            |a| a.config[0].mode = Mode::Transport,
            "child SA is in tunnel mode, and mode is another",
        ),
        (
            |a| a.secrets.clear(),
            "no pre-shared key for 192.0.2.1 and 198.51.100.2 any more",
        ),
    ];
    for (change, reason) in changes {
        let mut pair = killed(initiator(), responder());
        change(&mut pair.a);
        for config in &mut pair.a.config {
            config.start = StartAction::None;
        }
        pair.settle();
        let refused = &pair.a.refused;
        assert_eq!(refused.len(), 1, "{reason}");
        assert!(
            refused[0].to_string().contains(reason),
            "{} is not {reason}",
            refused[0]
        );
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty(), "{reason}");
        assert!(
            pair.a.saved.is_empty() && pair.b.saved.is_empty(),
            "{reason}"
        );
    }
}

#[test]
fn behind_a_nat_the_mapping_is_kept_and_a_move_is_made_up_for() {
    let mut b = responder();
    b.remote_address = RemoteAddress::Any;
    b.remote_id = RemoteIdentity::Is(A.parse().unwrap());
    let mut pair = Pair::new(initiator(), b);
    pair.nat = Some(Translator::default());
    pair.settle();
    pair.assert_connected();
    let (keepalives, now) = (pair.a.keepalives, pair.now);
    pair.a.kill(now, Duration::from_secs(1));
    pair.run(Duration::from_millis(1100));
    assert_eq!(pair.a.keepalives, keepalives + 1);
    // B follows A to a new port, but its data plane does not hear of it before B is killed.
    let id = *pair.b.sas.keys().next().unwrap();
    let before = pair.b.sas[&id].path;
    let remote = format!("{NAT}:31000").parse().unwrap();
    pair.b
        .endpoint
        .handle_event(pair.now, &Event::NatMoved { id, remote });
    pair.flush();
    pair.b.sas.get_mut(&id).unwrap().path = before;
    let now = pair.now;
    pair.b.kill(now, Duration::from_secs(1));
    pair.run(Duration::from_millis(1005));
    assert_eq!(pair.b.sas[&id].path.remote, remote);
}

#[test]
fn terminating_during_a_rekey_leaves_nothing() {
    for (esp, ike) in [(100, 10_000), (10_000, 100)] {
        let mut a = initiator();
        a.child_lifetime.soft = Duration::from_secs(esp);
        a.child_lifetime.jitter = Duration::ZERO;
        a.ike_lifetime.soft = Duration::from_secs(ike);
        a.ike_lifetime.jitter = Duration::ZERO;
        let b = mirrored(&a);
        let mut pair = Pair::new(a, b);
        pair.settle();
        let rekeying = |pair: &Pair| {
            let last = &pair.a.sent.last().unwrap().payload;
            Header::split(last).unwrap().0.exchange == ExchangeType::CREATE_CHILD_SA
        };
        assert!(pair.run_until(Duration::from_secs(200), rekeying));
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.run(Duration::from_secs(60));
        pair.assert_nothing_left();
        assert!(pair.a.saved.is_empty() && pair.b.saved.is_empty());
    }
}

#[test]
fn an_owner_that_ends_in_good_order_forgets_everything() {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    let keys: Vec<u64> = pair.a.saved.keys().copied().collect();
    assert_eq!(pair.a.endpoint.stop_saving(), keys);
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    assert!(pair.a.endpoint.poll_saved().is_none());
}

#[test]
fn what_is_too_large_goes_without_the_response_or_is_not_saved_and_that_is_said_once() {
    let not_saved = |end: &End| {
        let notices = end.notices.iter();
        notices
            .filter(|notice| matches!(notice, Notice::NotSaved { .. }))
            .count()
    };
    // As many selectors as go into a payload, and the IKE_AUTH response has them as well.
    let mut a = short_lived();
    a.ike_lifetime = initiator().ike_lifetime;
    let side = |side: u16| {
        let network = move |index| std::net::Ipv6Addr::from([0x2001, side, index, 0, 0, 0, 0, 0]);
        let subnet = move |index| TrafficSelector::prefix(network(index).into(), 48);
        (0..128).filter_map(subnet).collect::<Vec<_>>()
    };
    (a.local_ts, a.remote_ts) = (side(1), side(2));
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    assert_eq!((not_saved(&pair.a), not_saved(&pair.b)), (0, 0));
    for end in [&pair.a, &pair.b] {
        let sizes: Vec<usize> = end.saved.values().map(Vec::len).collect();
        assert!(matches!(sizes[..], [9_700..10_300]), "{sizes:?}");
    }
    let now = pair.now;
    pair.b.kill(now, Duration::from_secs(1));
    pair.settle();
    pair.assert_connected();
    assert_eq!(pair.b.refused, []);
    // A request for the next child SA does not fit beside this one.
    let rekeying = |pair: &Pair| pair.a.saved.is_empty();
    assert!(pair.run_until(Duration::from_secs(120), rekeying));
    pair.run(Duration::from_secs(200));
    assert_eq!((not_saved(&pair.a), pair.a.saved.len()), (1, 1));
}

/// States of an idle IKE SA, one in a child rekey, and one that was rekeyed.
fn states() -> (Pair, Vec<Vec<u8>>) {
    let mut a = short_lived();
    a.esp = connection(A, B, IKE, "aes256-sha256-ecp256").esp;
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    let mut states = Vec::new();
    for _ in 0..LIFE.as_millis() / 5 {
        pair.run(Duration::from_millis(5));
        for state in pair.a.saved.values() {
            if !states.contains(state) {
                states.push(state.clone());
            }
        }
    }
    (pair, states)
}

fn successor(pair: &Pair) -> Endpoint<TestRng> {
    let mut endpoint = Endpoint::new(EndpointConfig::default(), TestRng(5));
    endpoint.set_clock(pair.now, pair.boot());
    endpoint.set_secrets(pair.a.secrets.clone());
    endpoint.load_connections(pair.now, pair.a.config.clone());
    endpoint
}

#[test]
fn what_is_restored_is_saved_as_it_was() {
    let (pair, states) = states();
    assert!(states.len() > 10, "{}", states.len());
    let largest = states.iter().map(Vec::len).max();
    assert!(largest.is_some_and(|octets| octets < 1500), "{largest:?}");
    for state in &states {
        let mut endpoint = successor(&pair);
        let restored = endpoint.restore(pair.now, state).unwrap();
        assert_eq!(restored.keys.len(), 1);
        let (key, saved) = endpoint.poll_saved().unwrap();
        assert_eq!(key, restored.keys[0]);
        assert_eq!(&saved.unwrap()[..], &state[..]);
        assert_eq!(
            endpoint.restore(pair.now, state),
            Err(RestoreError::Duplicate)
        );
        let peers = endpoint.saved_peers(state).unwrap();
        assert_eq!(peers[0].address.to_string(), B);
    }
    let mut other = states[0].clone();
    other[0] = 9;
    let error = successor(&pair).restore(pair.now, &other).unwrap_err();
    assert_eq!(error, RestoreError::Version(9));
    assert!(error.to_string().contains("format 9, this one reads 6"));
    let mut early = successor(&pair);
    early.set_clock(pair.now, Duration::from_secs(1));
    let error = early.restore(pair.now, &states[0]).unwrap_err();
    assert!(error.to_string().contains("another boot"), "{error}");
}

#[test]
fn states_of_any_octets_do_no_harm() {
    let (pair, states) = states();
    let mut rng = TestRng(7);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut octets;
        if round % 8 == 0 {
            octets = vec![0; rng.below(600) as usize];
            rng.fill(&mut octets);
            if let Some(version) = octets.first_mut() {
                *version = 1;
            }
        } else {
            octets = states[rng.below(states.len() as u64) as usize].clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(octets.len() as u64) as usize;
                match rng.below(4) {
                    0 => octets.truncate(at + 1),
                    1 => octets[at] = [0, 0xff][rng.below(2) as usize],
                    _ => octets[at] ^= 1 << rng.below(8),
                }
            }
        }
        let mut endpoint = successor(&pair);
        let _ = endpoint.saved_peers(&octets);
        if endpoint.restore(pair.now, &octets).is_ok() {
            accepted += 1;
        }
        endpoint.reconcile(pair.now, &[]);
        let mut now = pair.now;
        for _ in 0..4 {
            endpoint.handle_timeout(now);
            while endpoint.poll_transmit().is_some() {}
            while endpoint.poll_command().is_some() {}
            while endpoint.poll_saved().is_some() {}
            endpoint.status(now);
            now = endpoint.poll_timeout().unwrap_or(now).max(now);
        }
    }
    assert!(accepted > 100, "mutations reach the endpoint: {accepted}");
}

proptest! {
    #[test]
    fn no_octets_are_too_strange(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut endpoint = Endpoint::new(EndpointConfig::default(), TestRng(5));
        let now = std::time::Instant::now();
        endpoint.set_clock(now, Duration::from_secs(1));
        prop_assert!(endpoint.restore(now, &octets).is_err() || octets == [1, 0]);
    }
}
