//! Nonsense, floods and forgeries change nothing.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::pair::*;
use crate::status::IkeDrop;
use crate::wire::{ExchangeType, Header, NotifyType};
use crate::{EndpointConfig, Notice};

fn established() -> Pair {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    pair.assert_connected();
    pair
}

fn dropped(end: &End, reason: IkeDrop) -> u64 {
    end.endpoint
        .counters()
        .dropped
        .get(&reason)
        .copied()
        .unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_and_mutated_datagrams_do_no_harm(
        garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
        flips in proptest::collection::vec((any::<usize>(), any::<usize>(), 1u8..), 1..60),
    ) {
        let mut pair = established();
        let sent: Vec<_> = pair.a.sent.iter().chain(&pair.b.sent).cloned().collect();
        let mut datagrams = garbage;
        for (which, at, mask) in flips {
            let mut bytes = sent[which % sent.len()].payload.clone();
            let at = at % bytes.len();
            bytes[at] ^= mask;
            datagrams.push(bytes);
        }
        let (a, b): (SocketAddr, SocketAddr) = (format!("{A}:500").parse().unwrap(), format!("{B}:500").parse().unwrap());
        for bytes in &datagrams {
            pair.a.endpoint.handle_datagram(pair.now, a, b, bytes);
            pair.b.endpoint.handle_datagram(pair.now, b, a, bytes);
        }
        pair.run(Duration::from_secs(40));
        prop_assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (1, 1));
        prop_assert_eq!((pair.a.established(), pair.b.established()), (1, 1));
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.run(Duration::from_secs(60));
        prop_assert!(pair.b.sas.is_empty(), "they still understand each other");
    }

    #[test]
    fn mutated_handshakes_never_panic(
        seed in 0u64..1000,
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..12),
    ) {
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), initiator(), responder());
        let mut flips = flips.into_iter();
        for _ in 0..12 {
            pair.flush();
            let (from_a, transmit) = match (pair.a.sent.pop(), pair.b.sent.pop()) {
                (Some(transmit), _) => (true, transmit),
                (None, Some(transmit)) => (false, transmit),
                (None, None) => break,
            };
            let mut bytes = transmit.payload.clone();
            if let Some((at, mask)) = flips.next() {
                let at = at % bytes.len();
                bytes[at] ^= mask;
            }
            let end = if from_a { &mut pair.b } else { &mut pair.a };
            end.endpoint.handle_datagram(pair.now, transmit.remote, transmit.local, &bytes);
        }
        pair.run(Duration::from_secs(200));
        pair.assert_connected();
    }
}

#[test]
fn a_flood_of_first_requests_is_bounded_and_does_not_keep_the_peer_out() {
    let mut b = responder();
    b.remote_address = crate::config::RemoteAddress::Any;
    b.remote_id = crate::config::RemoteIdentity::Any;
    let mut pair = Pair::new(initiator(), b);
    pair.flush();
    let request = pair.a.sent[0].payload.clone();
    let to: SocketAddr = format!("{B}:500").parse().unwrap();
    for index in 0..5000u32 {
        let mut forged = request.clone();
        forged[..8].copy_from_slice(&(u64::from(index) + 1).to_be_bytes());
        let from = SocketAddr::new(
            std::net::Ipv4Addr::from(0x0a00_0000 + index / 4).into(),
            500,
        );
        pair.b.endpoint.handle_datagram(pair.now, to, from, &forged);
    }
    let counters = pair.b.endpoint.counters();
    assert_eq!(
        counters.half_open, 50,
        "from there on nobody gets further without a cookie"
    );
    assert_eq!(
        counters.cookies_sent, 4950,
        "everybody else may show that it receives"
    );
    pair.settle();
    assert_eq!(pair.a.sas.len(), 1);
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.b.endpoint.counters().half_open, 0);
}

#[test]
fn one_address_cannot_take_all_places() {
    let mut settings = EndpointConfig::default();
    settings.half_open.cookie_threshold = usize::MAX;
    let mut pair = Pair::seeded(1, settings, initiator(), responder());
    pair.flush();
    let request = pair.a.sent[0].payload.clone();
    for index in 1..100u64 {
        let mut forged = request.clone();
        forged[..8].copy_from_slice(&index.to_be_bytes());
        let (to, from) = (
            format!("{B}:500").parse().unwrap(),
            format!("{A}:500").parse().unwrap(),
        );
        pair.b.endpoint.handle_datagram(pair.now, to, from, &forged);
    }
    assert_eq!(pair.b.endpoint.counters().half_open, 20);
    assert_eq!(dropped(&pair.b, IkeDrop::HalfOpenLimit), 79);
}

#[test]
fn ikev1_is_recognised_once_a_minute() {
    let mut pair = established();
    let mut bytes = pair.a.sent[0].payload.clone();
    bytes[17] = 0x10;
    let (to, from) = (
        format!("{B}:500").parse().unwrap(),
        format!("{A}:500").parse().unwrap(),
    );
    for _ in 0..5 {
        pair.b.endpoint.handle_datagram(pair.now, to, from, &bytes);
    }
    pair.flush();
    let notices: Vec<_> = pair
        .b
        .notices
        .iter()
        .filter(|notice| matches!(notice, Notice::IkeV1 { .. }))
        .collect();
    assert_eq!(notices.len(), 1);
    assert!(notices[0].to_string().contains("IKEv1"));
    assert_eq!(dropped(&pair.b, IkeDrop::IkeV1), 5);
}

#[test]
fn stateless_answers() {
    let mut pair = established();
    let (to, from) = (
        format!("{B}:500").parse().unwrap(),
        format!("{A}:500").parse().unwrap(),
    );
    let (mut init, auth) = (
        pair.a.sent[0].payload.clone(),
        pair.a.sent[1].payload.clone(),
    );
    let mut deliver = |bytes: &[u8]| {
        let before = pair.b.sent.len();
        pair.b.endpoint.handle_datagram(pair.now, to, from, bytes);
        pair.flush();
        let answers = &pair.b.sent[before..];
        let kind = answers
            .first()
            .map(|answer| u16::from_be_bytes([answer.payload[34], answer.payload[35]]));
        kind.map(NotifyType)
    };
    let mut version = auth.clone();
    version[17] = 0x30;
    assert_eq!(deliver(&version), Some(NotifyType::INVALID_MAJOR_VERSION));
    let mut stranger = auth.clone();
    stranger[8] ^= 1;
    assert_eq!(deliver(&stranger), Some(NotifyType::INVALID_IKE_SPI));
    stranger[19] |= 0x20;
    assert_eq!(deliver(&stranger), None, "responses are never answered");
    init[0] ^= 1;
    init[16] = 200;
    init[29] = 0x80;
    assert_eq!(
        deliver(&init),
        Some(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD)
    );
}

#[test]
fn an_unprotected_error_only_makes_us_ask() {
    let mut pair = established();
    pair.run(Duration::from_secs(15));
    let spis = Header::split(&pair.a.sent[1].payload).unwrap().0;
    let header = Header {
        exchange: ExchangeType::INFORMATIONAL,
        message_id: 0,
        ..spis
    };
    let forged = super::super::stateless::answer(
        &header,
        ExchangeType::INFORMATIONAL,
        NotifyType::INVALID_IKE_SPI,
        &[],
    );
    let sent = pair.a.sent.len();
    for _ in 0..10 {
        let (to, from) = (
            format!("{A}:500").parse().unwrap(),
            format!("{B}:500").parse().unwrap(),
        );
        pair.a.endpoint.handle_datagram(pair.now, to, from, &forged);
    }
    pair.settle();
    assert_eq!(pair.a.sent.len(), sent + 1, "one liveness check");
    assert!(dropped(&pair.a, IkeDrop::Unauthenticated) >= 1);
    pair.assert_connected();
}
