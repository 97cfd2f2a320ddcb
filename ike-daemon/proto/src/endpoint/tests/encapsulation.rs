//! When ESP goes in UDP: asked for by one end, needed by a NAT, or agreed by both.

use std::net::SocketAddr;
use std::time::Duration;

use espada_common::sa::Encapsulation;

use super::pair::*;
use crate::config::EncapsulationPolicy::{self, Auto, Esp, Udp};
use crate::config::{RemoteAddress, RemoteIdentity};
use crate::refusal::RefusalKind;
use crate::sa::nat::PREFERS_UDP;
use crate::wire::HEADER_LEN;
use crate::{ConnectionConfig, DownReason, Notice, UdpReason};

fn configs(a: EncapsulationPolicy, b: EncapsulationPolicy) -> [ConnectionConfig; 2] {
    let mut configs = [initiator(), responder()];
    configs[0].encapsulation = a;
    configs[1].encapsulation = b;
    // Behind a NAT the peer is not where it is configured.
    configs[1].remote_address = RemoteAddress::Any;
    configs[1].remote_id = RemoteIdentity::Is(A.parse().unwrap());
    configs
}

fn connected(a: EncapsulationPolicy, b: EncapsulationPolicy, nat: bool) -> Pair {
    let [a, b] = configs(a, b);
    let mut pair = Pair::new(a, b);
    pair.nat = nat.then(Translator::default);
    pair.settle();
    pair.assert_connected();
    pair
}

/// Why ESP goes in UDP, as an end says for each of its IKE SAs.
fn reasons(pair: &Pair, of_a: bool) -> Vec<Option<UdpReason>> {
    let end = if of_a { &pair.a } else { &pair.b };
    let status = &end.endpoint.status(pair.now)[0];
    status.ike_sas.iter().map(|sa| sa.udp).collect()
}

fn assert_agreed(pair: &Pair) {
    for (of_a, end) in [(true, &pair.a), (false, &pair.b)] {
        assert_eq!(reasons(pair, of_a), [Some(UdpReason::Agreed)]);
        for sa in end.sas.values() {
            let path = sa.path;
            assert_eq!(path.encapsulation, Encapsulation::Udp);
            assert_eq!((path.local.port(), path.remote.port()), (4500, 4500));
        }
    }
}

fn says(end: &End) -> usize {
    let said = |payload: &[u8]| payload.windows(16).any(|octets| octets == PREFERS_UDP);
    end.sent.iter().filter(|sent| said(&sent.payload)).count()
}

#[test]
fn every_combination_of_policies_with_and_without_a_nat() {
    for nat in [false, true] {
        for a in [Auto, Udp, Esp] {
            for b in [Auto, Udp, Esp] {
                let pair = connected(a, b, nat);
                let context = format!("{a:?} {b:?}, NAT: {nat}");
                let agreed = (a, b) == (Auto, Auto);
                let udp = nat || agreed || a == Udp || b == Udp;
                let expected = |own: EncapsulationPolicy, other: EncapsulationPolicy| match own {
                    Udp => Some(UdpReason::Configured),
                    // An end that wants UDP says that there is a NAT in front of it.
                    _ if nat || other == Udp => Some(UdpReason::Nat),
                    _ => agreed.then_some(UdpReason::Agreed),
                };
                assert_eq!(reasons(&pair, true), [expected(a, b)], "{context}");
                assert_eq!(reasons(&pair, false), [expected(b, a)], "{context}");
                for end in [&pair.a, &pair.b] {
                    let path = end.sas.values().next().unwrap().path;
                    let port = if udp { 4500 } else { 500 };
                    assert_eq!(path.encapsulation == Encapsulation::Udp, udp, "{context}");
                    assert_eq!(path.local.port(), port, "{context}");
                    let told = |notice: &Notice| matches!(notice, Notice::UdpAgreed { .. });
                    let told = end.notices.iter().filter(|notice| told(notice)).count();
                    assert_eq!(told == 1, agreed && !nat, "{context}");
                }
                // Only who wants it says so, and who is asked says nothing unasked.
                assert_eq!(says(&pair.a), usize::from(a == Auto), "{context}");
                assert_eq!(says(&pair.b), usize::from(agreed), "{context}");
            }
        }
    }
}

#[test]
fn no_nat_is_invented_by_agreeing() {
    let mut pair = connected(Auto, Auto, false);
    for end in [&pair.a, &pair.b] {
        let sa = &end.endpoint.status(pair.now)[0].ike_sas[0];
        assert!(!sa.nat_local && !sa.nat_remote);
    }
    pair.run(Duration::from_secs(100));
    assert_eq!((pair.a.keepalives, pair.b.keepalives), (0, 0));
    let id = *pair.b.sas.keys().next().unwrap();
    let remote = format!("{NAT}:4500").parse().unwrap();
    let moved = espada_common::sa::Event::NatMoved { id, remote };
    pair.b.endpoint.handle_event(pair.now, &moved);
    pair.flush();
    assert_eq!(pair.b.sas[&id].path.remote.ip().to_string(), A);
}

#[test]
fn what_was_agreed_outlives_rekeys_and_processes() {
    let [mut a, mut b] = configs(Auto, Auto);
    for config in [&mut a, &mut b] {
        config.child_lifetime.soft = Duration::from_secs(100);
        config.child_lifetime.jitter = Duration::ZERO;
    }
    a.ike_lifetime.soft = Duration::from_secs(130);
    a.ike_lifetime.jitter = Duration::ZERO;
    let mut pair = Pair::new(a, b);
    pair.settle();
    assert_agreed(&pair);
    pair.run(Duration::from_secs(150));
    let rekeyed = |notice: &Notice| {
        matches!(
            notice,
            Notice::Down {
                reason: DownReason::Rekeyed,
                ..
            } | Notice::ChildDown {
                reason: DownReason::Rekeyed,
                ..
            }
        )
    };
    assert!(pair.a.notices.iter().any(rekeyed));
    assert_eq!(pair.a.established(), 2, "the IKE SA was rekeyed");
    assert_agreed(&pair);
    for of_a in [true, false] {
        let now = pair.now;
        let end = if of_a { &mut pair.a } else { &mut pair.b };
        end.kill(now, Duration::from_secs(1));
        let before = end.sas.keys().max().copied();
        pair.run(Duration::from_secs(120));
        assert_agreed(&pair);
        let end = if of_a { &pair.a } else { &pair.b };
        assert!(end.refused.is_empty(), "{:?}", end.refused);
        assert!(end.sas.keys().max().copied() > before, "a new child SA");
    }
}

#[test]
fn one_of_several_connections_that_wants_native_esp_gets_it() {
    for (others, udp) in [(Esp, false), (Auto, true)] {
        let [a, b] = configs(Auto, Auto);
        let mut other = b.clone();
        other.name = "other".into();
        other.encapsulation = others;
        other.remote_id = RemoteIdentity::Is("other.example".parse().unwrap());
        let mut pair = Pair::new(a, b.clone());
        pair.b.endpoint.set_connections(pair.now, vec![b, other]);
        pair.settle();
        pair.assert_connected();
        let path = pair.a.sas.values().next().unwrap().path;
        assert_eq!(path.encapsulation == Encapsulation::Udp, udp, "{others:?}");
    }
}

/// A message without, or with, the Vendor ID, which is its last payload.
fn forged(message: &[u8], add: bool) -> Vec<u8> {
    let mut forged = message.to_vec();
    let mut at = HEADER_LEN;
    let (mut link, mut before) = (16, 16);
    while forged[link] != 0 {
        (before, link) = (link, at);
        at += usize::from(u16::from_be_bytes([forged[at + 2], forged[at + 3]]));
    }
    assert_eq!(at, forged.len());
    if add {
        forged[link] = 43;
        forged.extend([0, 0, 0, 20]);
        forged.extend(PREFERS_UDP);
    } else {
        assert_eq!(forged[link + 4..], PREFERS_UDP);
        forged.truncate(link);
        forged[before] = 0;
    }
    let length = forged.len() as u32;
    forged[24..28].copy_from_slice(&length.to_be_bytes());
    forged
}

/// IKE_SA_INIT between them, with what somebody on the way makes of request and response.
fn forged_handshake(
    a: EncapsulationPolicy,
    b: EncapsulationPolicy,
    request: impl Fn(&[u8]) -> Vec<u8>,
    response: impl Fn(&[u8]) -> Vec<u8>,
) -> Pair {
    let [a, b] = configs(a, b);
    let mut pair = Pair::new(a, b);
    let [at_a, at_b]: [SocketAddr; 2] = [A, B].map(|at| format!("{at}:500").parse().unwrap());
    pair.cut = true;
    pair.flush();
    let bytes = request(&pair.a.sent[0].payload);
    pair.b
        .endpoint
        .handle_datagram(pair.now, at_b, at_a, &bytes);
    pair.flush();
    let bytes = response(&pair.b.sent[0].payload);
    pair.a
        .endpoint
        .handle_datagram(pair.now, at_a, at_b, &bytes);
    pair.cut = false;
    pair.run(Duration::from_secs(1));
    pair
}

#[test]
fn who_forges_the_agreement_on_the_way_prevents_the_ike_sa() {
    let as_is = |message: &[u8]| message.to_vec();
    let added = |message: &[u8]| forged(message, true);
    let removed = |message: &[u8]| forged(message, false);
    let honest = forged_handshake(Auto, Auto, as_is, as_is);
    honest.assert_connected();
    let refused = |pair: &Pair| {
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
        let refusals = [pair.a.refusals(), pair.b.refusals()].concat();
        assert!(!refusals.is_empty(), "{:#?}", pair.a.notices);
    };
    // Removed from the request, from the response, or from both ends' sight.
    refused(&forged_handshake(Auto, Auto, removed, as_is));
    refused(&forged_handshake(Auto, Auto, as_is, removed));
    // Added where an end did not say it.
    refused(&forged_handshake(Esp, Auto, added, as_is));
    refused(&forged_handshake(Esp, Auto, added, removed));
    refused(&forged_handshake(Auto, Esp, as_is, added));
}

#[test]
fn a_blocked_port_is_explained() {
    let [a, b] = configs(Auto, Auto);
    let mut pair = Pair::new(a, b);
    pair.run_until(Duration::from_secs(5), |pair| !pair.b.sent.is_empty());
    pair.run_until(Duration::from_secs(5), |pair| pair.a.sent.len() == 2);
    pair.cut = true;
    pair.run(Duration::from_secs(200));
    let refusals = pair.a.refusals();
    let refusal = refusals
        .iter()
        .find(|refusal| refusal.kind == RefusalKind::NoAnswer)
        .unwrap();
    let text = refusal.to_string();
    assert!(text.contains("encapsulation = \"esp\""), "{text}");
}
