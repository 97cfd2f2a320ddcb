//! Gateways that send us to others (RFC 5685), and IKE SAs without a first child SA (RFC 6023).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::pair::*;
use crate::config::{Childless, RemoteIdentity};
use crate::refusal::RefusalKind;
use crate::sa::Phase;
use crate::sa::established::Pending;
use crate::wire::{
    ExchangeType, Flags, Header, Notify, NotifyType, Payload, PayloadType, Payloads, Writer,
};
use crate::{EndpointConfig, Lookup, Notice};

const B2: &str = "198.51.100.99";

fn named(to: &str, nonce: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = to.parse().unwrap() else {
        panic!("IPv4 here")
    };
    [&[1, 4][..], &to.octets(), nonce].concat()
}

/// A calls the gateway by its name, wherever it is.
fn pair(settings: EndpointConfig) -> Pair {
    let (mut a, mut b) = (initiator(), responder());
    b.local_address = None;
    b.local_id = Some("b.example".parse().unwrap());
    a.remote_id = RemoteIdentity::Is("b.example".parse().unwrap());
    Pair::seeded(7, settings, a, b)
}

/// B's answer to A's first request: REDIRECT with data made of the request's nonce.
fn reply(request: &[u8], data: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (head, body) = request.split_first_chunk().unwrap();
    let header = Header::decode(head).unwrap();
    let payloads = Payloads::collect_all(header.next_payload, body).unwrap();
    let own = payloads.iter().find_map(|payload| match payload {
        Payload::Nonce(nonce) => Some(*nonce),
        _ => None,
    });
    let data = data(own.unwrap());
    let mut writer = Writer::new();
    writer.notify(Notify::new(NotifyType::REDIRECT, &data));
    writer.message(Header {
        next_payload: PayloadType::NONE,
        flags: Flags::new(false, true),
        length: 0,
        ..header
    })
}

/// The one that redirects to the address `to`.
fn answer(request: &[u8], to: &str, nonce: Option<&[u8]>) -> Vec<u8> {
    reply(request, |own| named(to, nonce.unwrap_or(own)))
}

fn says(request: &[u8], kind: NotifyType) -> bool {
    let (head, body) = request.split_first_chunk().unwrap();
    let header = Header::decode(head).unwrap();
    let payloads = Payloads::collect_all(header.next_payload, body).unwrap();
    payloads
        .iter()
        .any(|payload| matches!(payload, Payload::Notify(notify) if notify.kind == kind))
}

/// Hands in an answer to A's last request.
fn hand_in(pair: &mut Pair, reply: impl FnOnce(&[u8]) -> Vec<u8>) {
    let request = pair.a.sent.last().unwrap().clone();
    let reply = reply(&request.payload);
    pair.a
        .endpoint
        .handle_datagram(pair.now, request.local, request.remote, &reply);
}

/// Takes A's requests from the wire, and hands in an answer.
fn redirect(pair: &mut Pair, to: &str, nonce: Option<&[u8]>) {
    hand_in(pair, |request| answer(request, to, nonce));
    pair.flush();
}

/// Redirects to a host name, which A wants to know the address of.
fn redirect_to_name(pair: &mut Pair) -> Lookup {
    hand_in(pair, |request| {
        reply(request, |nonce| {
            [&b"\x03\x0agw.example"[..], nonce].concat()
        })
    });
    pair.a.endpoint.poll_lookup().expect("a name")
}

fn target(pair: &Pair) -> SocketAddr {
    pair.a.sent.last().unwrap().remote
}

#[test]
fn a_redirect_in_ike_sa_init_is_followed() {
    let mut pair = pair(EndpointConfig::default());
    pair.cut = true;
    pair.flush();
    let first = pair.a.sent.last().unwrap().payload.clone();
    assert!(says(&first, NotifyType::REDIRECT_SUPPORTED));
    // Somebody who has not seen the request does not know the nonce.
    redirect(&mut pair, B2, Some(&[7; 32]));
    assert_eq!(target(&pair).ip().to_string(), B);

    pair.b.address = B2.parse().unwrap();
    pair.cut = false;
    redirect(&mut pair, B2, None);
    assert_eq!(target(&pair).ip().to_string(), B2);
    let second = pair.a.sent.last().unwrap().payload.clone();
    assert!(says(&second, NotifyType::REDIRECTED_FROM));
    pair.settle();
    pair.assert_connected();
    let path = pair.a.sas.values().next().unwrap().path;
    assert_eq!(path.remote.ip().to_string(), B2);
}

#[test]
fn a_host_name_is_looked_up() {
    let mut pair = pair(EndpointConfig::default());
    pair.cut = true;
    pair.flush();
    let lookup = redirect_to_name(&mut pair);
    assert_eq!(
        (&*lookup.host, lookup.from.to_string().as_str()),
        ("gw.example", B)
    );
    pair.b.address = B2.parse().unwrap();
    pair.cut = false;
    let address = Some(pair.b.address);
    pair.a.endpoint.handle_lookup(pair.now, &lookup, address);
    pair.flush();
    assert_eq!(target(&pair).ip().to_string(), B2);
    pair.settle();
    pair.assert_connected();
    // A second answer comes too late.
    pair.a.endpoint.handle_lookup(pair.now, &lookup, address);
    pair.settle();
    pair.assert_connected();
}

#[test]
fn a_host_name_that_nobody_knows_is_explained() {
    let mut pair = pair(EndpointConfig::default());
    pair.cut = true;
    pair.flush();
    let lookup = redirect_to_name(&mut pair);
    pair.a.endpoint.handle_lookup(pair.now, &lookup, None);
    pair.flush();
    let refusal = pair.a.refusals()[0];
    assert!(refusal.details[0].contains("gw.example"), "{refusal}");
}

#[test]
fn redirects_without_end_are_given_up() {
    let mut pair = pair(EndpointConfig::default());
    pair.cut = true;
    pair.flush();
    for step in 0..5 {
        redirect(&mut pair, if step % 2 == 0 { B2 } else { B }, None);
    }
    assert!(pair.a.refusals().is_empty());
    redirect(&mut pair, B, None);
    let refusal = pair.a.refusals()[0];
    assert_eq!(refusal.kind, RefusalKind::Notify(NotifyType::REDIRECT));
    assert!(refusal.details[0].contains("again and again"), "{refusal}");
}

#[test]
fn only_those_follow_who_are_told_to() {
    let settings = EndpointConfig {
        follow_redirects: false,
        ..EndpointConfig::default()
    };
    let mut pair = pair(settings);
    pair.cut = true;
    pair.flush();
    let first = pair.a.sent.last().unwrap().payload.clone();
    assert!(!says(&first, NotifyType::REDIRECT_SUPPORTED));
    redirect(&mut pair, B2, None);
    assert_eq!(target(&pair).ip().to_string(), B);
}

/// Has an end send an INFORMATIONAL request with REDIRECT.
fn send_redirect(end: &mut End, now: std::time::Instant, to: &str) {
    let spi = *end.endpoint.sas.keys().next().unwrap();
    let data = named(to, &[]);
    end.endpoint.with_sa(now, spi, |sa, cx| {
        let Phase::Established(established) = &mut sa.phase else {
            panic!("established")
        };
        let mut writer = Writer::new();
        writer.notify(Notify::new(NotifyType::REDIRECT, &data));
        let exchange = ExchangeType::INFORMATIONAL;
        established.request(&sa.common, cx, exchange, &writer, Pending::Liveness);
    });
}

#[test]
fn an_established_ike_sa_is_given_up_for_another_gateway() {
    let mut pair = pair(EndpointConfig::default());
    pair.settle();
    pair.assert_connected();
    // The responder is at both addresses.
    pair.b.also = vec![B2.parse().unwrap()];
    let now = pair.now;
    send_redirect(&mut pair.b, now, B2);
    pair.run(Duration::from_secs(60));
    pair.assert_connected();
    let path = pair.a.sas.values().next().unwrap().path;
    assert_eq!(path.remote.ip().to_string(), B2);
    let told = |notice: &Notice| matches!(notice, Notice::Redirected { .. });
    assert!(pair.a.notices.iter().any(told));
    // A process after this one goes on with it.
    pair.a.kill(pair.now, Duration::from_secs(1));
    pair.settle();
    assert!(pair.a.refused.is_empty(), "{:?}", pair.a.refused);
    pair.assert_connected();

    // Whoever was called is not sent anywhere.
    let now = pair.now;
    send_redirect(&mut pair.a, now, B2);
    pair.settle();
    assert!(!pair.b.notices.iter().any(told));
    pair.assert_connected();
}

#[test]
fn the_first_child_sa_can_come_in_its_own_exchange() {
    use Childless::{Allow, Force, Never, Prefer};
    for (of_a, of_b, childless) in [
        (Prefer, Allow, Some(true)),
        (Force, Prefer, Some(true)),
        (Prefer, Never, Some(false)),
        (Allow, Allow, Some(false)),
        (Force, Never, None),
    ] {
        let (mut a, mut b) = (initiator(), responder());
        (a.childless, b.childless) = (of_a, of_b);
        let mut pair = Pair::new(a, b);
        pair.settle();
        let Some(childless) = childless else {
            assert!(pair.a.refusals()[0].to_string().contains("RFC 6023"));
            assert!(pair.a.sas.is_empty());
            continue;
        };
        pair.assert_connected();
        // IKE_SA_INIT and IKE_AUTH, and CREATE_CHILD_SA or not.
        let requests = if childless { 3 } else { 2 };
        assert_eq!(pair.a.sent.len(), requests, "{of_a:?} {of_b:?}");
    }
}
