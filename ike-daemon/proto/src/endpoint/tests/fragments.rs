//! Messages in fragments (RFC 7383) over paths that take no larger datagrams.

use std::time::Duration;

use super::pair::*;
use crate::config::EncapsulationPolicy;
use crate::refusal::RefusalKind;
use crate::selector;
use crate::wire::{ExchangeType, Header, PayloadType};
use crate::{ConnectionConfig, EndpointConfig};

fn settings(fragment_size: Option<usize>) -> EndpointConfig {
    EndpointConfig {
        fragment_size,
        ..EndpointConfig::default()
    }
}

/// A connection whose selectors alone take 4.8 KiB, in IKE_AUTH and in every rekey of a child SA.
fn wide(ike: &str) -> ConnectionConfig {
    let mut config = connection(A, B, ike, ESP);
    let side = |end: u32| {
        let subnets = (0..60).map(|index| format!("2001:db8:{end}:{index:x}::/64"));
        subnets
            .map(|text| selector::parse(&text).unwrap())
            .collect()
    };
    (config.local_ts, config.remote_ts) = (side(1), side(2));
    config
}

/// Over a path that takes datagrams of `size` octets.
fn narrow(seed: u64, size: usize, a: ConnectionConfig) -> Pair {
    let b = mirrored(&a);
    let mut pair = Pair::seeded(seed, settings(Some(size)), a, b);
    pair.network.mtu = size;
    pair
}

/// Fragments and whole protected messages that an end sent.
fn sent(end: &End) -> [usize; 2] {
    let count = |kind| {
        let is = |bytes: &[u8]| Header::split(bytes).is_ok_and(|(h, _)| h.next_payload == kind);
        end.sent.iter().filter(|sent| is(&sent.payload)).count()
    };
    [count(PayloadType::SKF), count(PayloadType::SK)]
}

#[test]
fn every_suite_and_size_passes_a_narrow_path() {
    for ike in [
        IKE,
        "aes192gcm8-prfsha384-x25519",
        "chacha20poly1305-prfsha256-x25519",
        "aes128-sha256-x25519",
        "aes256-sha512-x25519",
    ] {
        for size in [576, 577, 580, 1280, 1281, 1500] {
            for encapsulation in [EncapsulationPolicy::Esp, EncapsulationPolicy::Udp] {
                let context = format!("{ike} {size} {encapsulation:?}");
                let mut a = wide(ike);
                a.encapsulation = encapsulation;
                a.child_lifetime.soft = Duration::from_secs(100);
                a.ike_lifetime.soft = Duration::from_secs(150);
                a.child_lifetime.jitter = Duration::ZERO;
                a.ike_lifetime.jitter = Duration::ZERO;
                let mut pair = narrow(1, size, a);
                pair.settle();
                pair.assert_connected();
                let least = 4800 / size;
                for end in [&pair.a, &pair.b] {
                    let [fragments, whole] = sent(end);
                    assert!(fragments >= least, "{context}: {fragments}");
                    assert_eq!(whole, 0, "{context}");
                    assert!(end.endpoint.counters().dropped.is_empty(), "{context}");
                }
                // What is filled is filled to the last block.
                let largest = pair.a.sent.iter().map(|sent| sent.payload.len()).max();
                assert!(largest > Some(size - 28 - 4 - 16), "{context}: {largest:?}");
                pair.run(Duration::from_secs(120));
                pair.assert_connected();
                assert!(sent(&pair.a)[0] >= 2 * least, "{context}: no child rekey");
                pair.run(Duration::from_secs(100));
                assert_eq!(pair.a.established(), 2, "{context}: no IKE rekey");
                pair.run(Duration::from_secs(100));
                pair.assert_connected();
                let after = sent(&pair.a)[0];
                assert!(after >= 3 * least, "{context}: the new IKE SA does not");
            }
        }
    }
}

#[test]
fn small_messages_stay_whole() {
    let mut pair = Pair::new(initiator(), responder());
    pair.run(Duration::from_secs(100));
    pair.assert_connected();
    assert_eq!((sent(&pair.a)[0], sent(&pair.b)[0]), (0, 0));
    assert!(sent(&pair.a)[1] > 1);
}

#[test]
fn an_end_that_does_not_want_fragments_gets_none() {
    for of in [[None, Some(1280)], [Some(1280), None], [None, None]] {
        let a = wide(IKE);
        let b = mirrored(&a);
        let mut pair = Pair::with_settings(1, of.map(settings), a, b);
        pair.settle();
        pair.assert_connected();
        for end in [&pair.a, &pair.b] {
            assert_eq!(sent(end), [0, 1], "{of:?}");
        }
    }
}

#[test]
fn without_fragments_a_narrow_path_is_explained() {
    let a = wide(IKE);
    let b = mirrored(&a);
    let mut pair = Pair::seeded(1, settings(None), a, b);
    pair.network.mtu = 1280;
    pair.run(Duration::from_secs(200));
    let refusals = pair.a.refusals();
    let refusal = refusals.iter().find(|r| r.kind == RefusalKind::NoAnswer);
    let text = refusal.unwrap().to_string();
    assert!(text.contains("IKE fragmentation is not on"), "{text}");
}

fn bad() -> Network {
    Network {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(700),
        loss_percent: 25,
        duplicate_percent: 20,
        mtu: 1280,
    }
}

#[test]
fn loss_and_reordering_delay_but_do_not_part_them() {
    for seed in 0..100 {
        let mut a = wide(IKE);
        a.child_lifetime.soft = Duration::from_secs(60);
        a.child_lifetime.jitter = Duration::ZERO;
        let mut pair = narrow(seed, 1280, a);
        pair.network = bad();
        let up = pair.run_until(Duration::from_secs(600), |pair| {
            !pair.a.sas.is_empty() && !pair.b.sas.is_empty()
        });
        assert!(up, "seed {seed}");
        pair.run(Duration::from_secs(200));
        pair.network = Network {
            mtu: 1280,
            ..Network::default()
        };
        pair.run(Duration::from_secs(400));
        // Between two rekeys.
        assert!(pair.run_until(Duration::from_secs(60), |pair| {
            pair.a.sas.len() == 1 && pair.b.sas.len() == 1
        }));
        pair.assert_connected();
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.run(Duration::from_secs(300));
        pair.assert_nothing_left();
    }
}

#[test]
fn a_refusal_of_a_request_in_fragments_is_repeated_with_it() {
    let mut pair = narrow(1, 1280, wide(IKE));
    pair.b.endpoint.set_secrets(vec![psk("battery staple")]);
    // The first answer is lost, and with it what the second is made of.
    pair.run_until(Duration::from_secs(5), |pair| sent(&pair.b)[1] == 1);
    pair.cut = true;
    pair.run(Duration::from_millis(100));
    pair.cut = false;
    pair.run(Duration::from_secs(1));
    let refused = |end: &End| {
        let kinds = end.refusals();
        kinds
            .iter()
            .any(|r| r.kind.name() == "AUTHENTICATION_FAILED")
    };
    assert!(
        refused(&pair.a) && refused(&pair.b),
        "{:#?}",
        pair.a.notices
    );
}

#[test]
fn killed_between_fragments_they_go_on() {
    let lived = |pair: &Pair| !pair.a.sas.is_empty() && !pair.b.sas.is_empty();
    for when in [KillWhen::Unsent, KillWhen::Sent] {
        for of_a in [true, false] {
            // From the first child SA on: what is negotiated anew is no matter of fragments.
            for at in 6..20 {
                let mut a = wide(IKE);
                a.child_lifetime.soft = Duration::from_secs(60);
                a.child_lifetime.jitter = Duration::ZERO;
                let mut pair = narrow(1, 1280, a);
                let down = Duration::from_secs(3);
                pair.kill = Some(Kill {
                    of_a,
                    at,
                    when,
                    down,
                });
                let context = format!("{:?}", pair.kill);
                assert!(pair.run_until(Duration::from_secs(5), lived), "{context}");
                pair.run(Duration::from_secs(200));
                assert!(pair.kill.is_none(), "{context}");
                assert!(lived(&pair), "{context}");
                pair.run_until(Duration::from_secs(60), |pair| {
                    (pair.a.sas.len(), pair.b.sas.len()) == (1, 1)
                });
                pair.assert_connected();
                let first = |sent: &&crate::Transmit| {
                    let (header, _) = Header::split(&sent.payload).unwrap();
                    header.exchange == ExchangeType::IKE_SA_INIT
                };
                assert_eq!(pair.a.sent.iter().filter(first).count(), 1, "{context}");
            }
        }
    }
}

#[test]
fn forged_fragments_spoil_nothing() {
    let mut pair = narrow(1, 1280, wide(IKE));
    pair.run_until(Duration::from_secs(5), |pair| sent(&pair.a)[0] > 0);
    let genuine = pair.a.sent.iter().rfind(|sent| sent.payload[16] == 53);
    let genuine = genuine.unwrap().clone();
    // Before the genuine ones arrive: other numbers, other counts, other contents.
    for (at, value) in [
        (33, 0),
        (33, 200),
        (35, 1),
        (35, 255),
        (34, 255),
        (60, 0xaa),
        (32, 9),
    ] {
        let mut forged = genuine.payload.clone();
        forged[at] = value;
        if forged != genuine.payload {
            let (local, remote) = (genuine.remote, genuine.local);
            let endpoint = &mut pair.b.endpoint;
            endpoint.handle_datagram(pair.now, local, remote, &forged);
        }
    }
    pair.settle();
    pair.assert_connected();
    assert_eq!(pair.a.established(), 1);
    let first = pair.a.sent.iter().filter(|sent| sent.payload[16] == 53);
    assert!(first.count() < 8, "nothing had to be sent again");
}
