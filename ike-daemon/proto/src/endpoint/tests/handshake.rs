//! Both ends come up and agree.

use std::time::Duration;

use espada_common::sa::{Command, Encapsulation};

use super::pair::*;
use crate::config::{RemoteAddress, RemoteIdentity, StartAction};
use crate::wire::{ExchangeType, Header};
use crate::{EndpointConfig, Notice, selector};

#[test]
fn two_round_trips_establish_both_ends() {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    pair.assert_connected();
    let elapsed = pair.a.notices.iter().find_map(|notice| match notice {
        Notice::Established { elapsed, suite, .. } => Some((*elapsed, suite.clone())),
        _ => None,
    });
    assert_eq!(
        elapsed,
        Some((
            Duration::from_millis(40),
            "aes256gcm16-prfsha256-x25519".to_owned()
        ))
    );
    assert_eq!(pair.a.sent.len() + pair.b.sent.len(), 4);
    let sa = pair.a.sas.values().next().unwrap();
    assert_eq!(sa.path.encapsulation, Encapsulation::Esp);
    assert_eq!(sa.replay_window, 4096);
    let status = &pair.a.endpoint.status(pair.now)[0].ike_sas[0];
    assert_eq!(
        (status.local_id.as_deref(), status.remote_id.as_deref()),
        (Some(A), Some(B))
    );
    assert_eq!(status.children.len(), 1);
    assert!(status.rekey_in.is_some());
}

#[test]
fn the_responder_can_receive_before_it_answers() {
    let mut pair = Pair::new(initiator(), responder());
    assert!(pair.run_until(Duration::from_secs(5), |pair| !pair.b.sas.is_empty()));
    assert!(
        pair.a.sas.is_empty(),
        "the IKE_AUTH response has not arrived yet"
    );
    assert!(pair.run_until(Duration::from_secs(5), |pair| !pair.a.sas.is_empty()));
}

#[test]
fn every_suite_and_group() {
    let suites = [
        ("aes128gcm16-prfsha256-x25519", "aes128gcm16-esn"),
        ("aes256gcm16-prfsha384-ecp256", "aes256gcm16"),
        ("aes256gcm16-prfsha512-ecp384", "chacha20poly1305"),
        ("aes192gcm16-prfsha256-x25519", "aes256gcm8-esn"),
        ("aes256gcm8-prfsha256-x25519", "aes192gcm12"),
        ("aes128gcm12-prfsha256-x25519", "aes192gcm16"),
        ("chacha20poly1305-prfsha256-ecp521", "aes192-sha384"),
        ("aes128-sha1-modp1024", "aes128-sha1"),
        ("aes192-sha256-modp1536", "aes256-sha256"),
        ("aes256-sha256-modp2048", "aes256-sha512"),
        ("aes256-sha384-modp3072", "aes256-sha256-modp2048"),
        ("aes256-sha512-modp4096", "aes128-sha256-esn-noesn"),
    ];
    for (ike, esp) in suites {
        let config = connection(A, B, ike, esp);
        let mut pair = Pair::new(config.clone(), mirrored(&config));
        pair.settle();
        pair.assert_connected();
        assert_eq!(pair.a.endpoint.status(pair.now)[0].ike_sas[0].suite, ike);
        let suite = pair.a.sas.values().next().unwrap().suite;
        assert_eq!(suite.esn, esp.contains("-esn"), "{esp}");
        assert!(
            esp.starts_with(suite.to_string().trim_end_matches("-esn")),
            "{suite} for {esp}"
        );
    }
}

#[test]
fn the_responder_prefers_its_own_order() {
    let a = connection(
        A,
        B,
        "aes128-sha256-modp2048,aes256gcm16-prfsha256-x25519",
        "aes128-sha256,aes256gcm16",
    );
    let b = mirrored(&connection(
        A,
        B,
        "aes256gcm16-prfsha256-x25519,aes128-sha256-modp2048",
        "aes256gcm16,aes128-sha256",
    ));
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    assert_eq!(
        pair.b.sas.values().next().unwrap().suite.to_string(),
        "aes256gcm16"
    );
}

#[test]
fn another_group_costs_one_more_round_trip() {
    let mut pair = Pair::new(
        connection(A, B, "aes256-sha256-modp2048-x25519", ESP),
        mirrored(&connection(A, B, "aes256-sha256-x25519", ESP)),
    );
    pair.settle();
    pair.assert_connected();
    assert_eq!(
        pair.a.sent.len(),
        3,
        "INVALID_KE_PAYLOAD was answered with a second request"
    );
    assert_eq!(
        pair.a.endpoint.status(pair.now)[0].ike_sas[0].suite,
        "aes256-sha256-x25519"
    );
}

#[test]
fn cookies_when_demanded_also_with_another_group() {
    let mut settings = EndpointConfig::default();
    settings.half_open.cookie_threshold = 0;
    let a = connection(A, B, "aes256-sha256-modp2048-x25519", ESP);
    let b = mirrored(&connection(A, B, "aes256-sha256-x25519", ESP));
    let mut pair = Pair::seeded(3, settings, a, b);
    pair.settle();
    pair.assert_connected();
    assert_eq!(
        pair.b.endpoint.counters().cookies_sent,
        1,
        "the cookie fits the second group as well"
    );
    assert_eq!(pair.a.sent.len(), 4);
}

#[test]
fn several_selectors_of_both_families_are_narrowed() {
    let list = |text: &str| {
        text.split(' ')
            .map(|text| selector::parse(text).unwrap())
            .collect::<Vec<_>>()
    };
    let mut a = initiator();
    a.local_ts = list("10.1.0.0/16 10.7.0.0/24 2001:db8:1::/48");
    a.remote_ts = list("10.2.0.0/16 2001:db8:2::/48");
    let mut b = mirrored(&a);
    b.local_ts = list("10.2.3.0/24 2001:db8:2::/48 172.16.0.0/12");
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    let sa = pair.a.sas.values().next().unwrap();
    assert_eq!(sa.local_ts, list("10.1.0.0/16 10.7.0.0/24 2001:db8:1::/48"));
    assert_eq!(sa.remote_ts, list("10.2.3.0/24 2001:db8:2::/48"));
}

#[test]
fn over_ipv6() {
    let a = connection("2001:db8::1", "2001:db8::2", IKE, ESP);
    let b = mirrored(&a);
    let mut pair = Pair::new(a, b);
    pair.a.address = "2001:db8::1".parse().unwrap();
    pair.b.address = "2001:db8::2".parse().unwrap();
    pair.settle();
    pair.assert_connected();
}

#[test]
fn identities_choose_the_connection_and_default_routes_the_source() {
    let mut a = initiator();
    a.local_address = None;
    a.local_id = Some("branch.example.org".parse().unwrap());
    a.remote_id = RemoteIdentity::Is("hq@example.org".parse().unwrap());
    let mut b = mirrored(&initiator());
    b.remote_address = RemoteAddress::Any;
    b.local_id = Some("hq@example.org".parse().unwrap());
    b.remote_id = RemoteIdentity::Is("other.example.org".parse().unwrap());
    let mut second = b.clone();
    second.name = "second".into();
    second.remote_id = RemoteIdentity::Is("Branch.Example.org".parse().unwrap());
    let mut pair = Pair::new(a.clone(), b.clone());
    pair.settle();
    assert_eq!(pair.a.refusals()[0].kind, crate::RefusalKind::NoSource);
    pair.a
        .endpoint
        .set_source(B.parse().unwrap(), Some(A.parse().unwrap()));
    pair.b.endpoint.set_connections(pair.now, vec![b, second]);
    pair.run(Duration::from_secs(60));
    assert_eq!(
        pair.b.sas.values().next().unwrap().connection.as_ref(),
        "second"
    );
    assert_eq!(
        pair.a.endpoint.status(pair.now)[0].ike_sas[0]
            .remote_id
            .as_deref(),
        Some("hq@example.org")
    );
}

#[test]
fn several_connections_with_one_peer_are_told_apart_by_selectors() {
    let mut other = initiator();
    other.name = "other".into();
    other.local_ts = vec![selector::parse("10.9.0.0/16").unwrap()];
    let mut pair = Pair::new(initiator(), responder());
    pair.b
        .endpoint
        .set_connections(pair.now, vec![responder(), mirrored(&other)]);
    pair.a
        .endpoint
        .set_connections(pair.now, vec![initiator(), other]);
    pair.settle();
    assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (2, 2));
    let names: Vec<_> = pair
        .b
        .sas
        .values()
        .map(|sa| sa.connection.to_string())
        .collect();
    assert!(
        names.contains(&"site".to_owned()) && names.contains(&"other".to_owned()),
        "{names:?}"
    );
}

#[test]
fn both_ends_may_start_at_once() {
    let mut b = responder();
    b.start = StartAction::Start;
    let mut pair = Pair::new(initiator(), b);
    pair.settle();
    assert!(!pair.a.sas.is_empty());
    assert_eq!(pair.a.sas.len(), pair.b.sas.len());
    for sa in pair.a.sas.values() {
        assert_same(
            sa,
            pair.b
                .sas
                .values()
                .find(|other| other.inbound.spi == sa.outbound.spi)
                .unwrap(),
        );
    }
}

#[test]
fn a_trap_waits_for_traffic() {
    let mut a = initiator();
    a.start = StartAction::Trap;
    let mut pair = Pair::new(a, responder());
    pair.settle();
    assert!(pair.a.sent.is_empty());
    assert!(pair.a.policies["site"].trap);
    assert!(!pair.b.policies["site"].trap);
    let acquire = espada_common::sa::Event::Acquire {
        connection: "site".into(),
        source: "10.1.0.1".parse().unwrap(),
        destination: "10.2.0.1".parse().unwrap(),
    };
    pair.a.endpoint.handle_event(pair.now, &acquire);
    pair.a.endpoint.handle_event(pair.now, &acquire);
    pair.settle();
    pair.assert_connected();
}

#[test]
fn repeated_requests_get_the_same_response() {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    for index in 0..2 {
        let request = pair.a.sent[index].clone();
        let exchange = Header::split(&request.payload).unwrap().0.exchange;
        assert_eq!(
            exchange,
            [ExchangeType::IKE_SA_INIT, ExchangeType::IKE_AUTH][index]
        );
        let before = pair.b.sent.len();
        pair.b
            .endpoint
            .handle_datagram(pair.now, request.remote, request.local, &request.payload);
        pair.b.endpoint.handle_timeout(pair.now);
        pair.flush();
        // Of IKE_SA_INIT nothing is kept once IKE_AUTH was there: the peer has the response.
        let answers = &pair.b.sent[before..];
        assert_eq!(answers, if index == 0 { &[] } else { &pair.b.sent[1..2] });
    }
    pair.assert_connected();

    let mut pair = Pair::new(initiator(), responder());
    pair.flush();
    let request = pair.a.sent[0].clone();
    for _ in 0..2 {
        pair.b
            .endpoint
            .handle_datagram(pair.now, request.remote, request.local, &request.payload);
    }
    pair.flush();
    assert_eq!(pair.b.sent.len(), 2);
    assert_eq!(pair.b.sent[0], pair.b.sent[1]);
    assert_eq!(pair.b.endpoint.counters().half_open, 1);
}

#[test]
fn policies_follow_the_configuration() {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    let mut changed = initiator();
    changed.remote_ts = vec![selector::parse("10.3.0.0/16").unwrap()];
    let installs = |pair: &Pair| {
        pair.a
            .commands
            .iter()
            .filter(|c| matches!(c, Command::InstallPolicy(_)))
            .count()
    };
    pair.a.endpoint.set_connections(pair.now, vec![initiator()]);
    pair.flush();
    assert_eq!(installs(&pair), 1, "nothing changed");
    pair.a.endpoint.set_connections(pair.now, vec![changed]);
    pair.flush();
    assert_eq!(installs(&pair), 2);
    pair.assert_connected();
    pair.a.endpoint.set_connections(pair.now, vec![]);
    pair.run(Duration::from_secs(60));
    assert!(pair.a.policies.is_empty());
    pair.assert_nothing_left();
}
