//! Whatever comes is decoded or refused, and what was decoded encodes to the same octets.

use espada_common::sa::TrafficSelector;
use proptest::prelude::*;

use super::id::{Delete, KeyExchangeData, Typed};
use super::*;
use crate::proposal::{Protocol, Transform, TransformType, WireProposal};

fn bytes(range: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), range)
}

fn transforms() -> impl Strategy<Value = Vec<Transform>> {
    let transform =
        (any::<u8>(), any::<u16>(), any::<Option<u16>>()).prop_map(|(kind, id, key_len)| {
            Transform {
                kind: TransformType::from_id(kind),
                id,
                key_len,
            }
        });
    proptest::collection::vec(transform, 0..10)
}

fn proposals() -> impl Strategy<Value = Vec<WireProposal>> {
    let spi = prop_oneof![Just(vec![]), bytes(4..5), bytes(8..9)];
    let proposal = (any::<u8>(), any::<u8>(), spi, transforms()).prop_map(
        |(number, protocol, spi, transforms)| WireProposal {
            number,
            protocol: Protocol::from_id(protocol),
            spi,
            transforms,
        },
    );
    proptest::collection::vec(proposal, 1..6)
}

fn selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
    let address = prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(a, b)| {
            (
                std::net::Ipv4Addr::from(a.min(b)).into(),
                std::net::Ipv4Addr::from(a.max(b)).into(),
            )
        }),
        (any::<u128>(), any::<u128>()).prop_map(|(a, b)| {
            (
                std::net::Ipv6Addr::from(a.min(b)).into(),
                std::net::Ipv6Addr::from(a.max(b)).into(),
            )
        }),
    ];
    let selector = (any::<u8>(), any::<u16>(), any::<u16>(), address).prop_map(
        |(protocol, start_port, end_port, (start, end))| TrafficSelector {
            protocol,
            start_port,
            end_port,
            start,
            end,
        },
    );
    proptest::collection::vec(selector, 1..8)
}

#[derive(Clone, Debug)]
enum Body {
    Sa(Vec<WireProposal>),
    Ts(bool, Vec<TrafficSelector>),
    Ke(u16, Vec<u8>),
    Typed(u8, u8, [u8; 3], Vec<u8>),
    Nonce(Vec<u8>),
    Notify(u8, Vec<u8>, u16, Vec<u8>),
    Delete(u8, Vec<u32>),
    Cp(u8, Vec<(u16, Vec<u8>)>),
    Other(u8, bool, Vec<u8>),
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        proposals().prop_map(Body::Sa),
        (any::<bool>(), selectors()).prop_map(|(initiator, list)| Body::Ts(initiator, list)),
        (any::<u16>(), bytes(0..600)).prop_map(|(group, data)| Body::Ke(group, data)),
        (0u8..3, any::<u8>(), any::<[u8; 3]>(), bytes(0..80))
            .prop_map(|(which, kind, reserved, data)| { Body::Typed(which, kind, reserved, data) }),
        bytes(16..257).prop_map(Body::Nonce),
        (any::<u8>(), bytes(0..20), any::<u16>(), bytes(0..80))
            .prop_map(|(protocol, spi, kind, data)| Body::Notify(protocol, spi, kind, data)),
        prop_oneof![
            Just(Body::Delete(1, vec![])),
            proptest::collection::vec(any::<u32>(), 0..20).prop_map(|spis| Body::Delete(3, spis)),
        ],
        (
            any::<u8>(),
            proptest::collection::vec((0u16..0x8000, bytes(0..40)), 0..10)
        )
            .prop_map(|(kind, attributes)| Body::Cp(kind, attributes)),
        (54u8.., any::<bool>(), bytes(0..80))
            .prop_map(|(kind, critical, data)| Body::Other(kind, critical, data)),
    ]
}

fn write(body: &Body, writer: &mut Writer) {
    match body {
        Body::Sa(proposals) => writer.add(PayloadType::SA, |out| sa::encode(proposals, out)),
        Body::Ts(true, list) => writer.add(PayloadType::TSI, |out| ts::encode(list, out)),
        Body::Ts(false, list) => writer.add(PayloadType::TSR, |out| ts::encode(list, out)),
        Body::Ke(group, data) => {
            writer.add(PayloadType::KE, |out| {
                KeyExchangeData {
                    group: *group,
                    data,
                }
                .encode(out)
            });
        }
        Body::Typed(which, kind, reserved, data) => {
            let payload =
                [PayloadType::IDI, PayloadType::IDR, PayloadType::AUTH][usize::from(*which)];
            writer.add(payload, |out| {
                Typed {
                    kind: *kind,
                    reserved: *reserved,
                    data,
                }
                .encode(out)
            });
        }
        Body::Nonce(data) => writer.add(PayloadType::NONCE, |out| out.extend(data)),
        Body::Notify(protocol, spi, kind, data) => {
            writer.notify(Notify {
                protocol: *protocol,
                spi,
                kind: NotifyType(*kind),
                data,
            });
        }
        Body::Delete(protocol, spis) => {
            let delete = Delete {
                protocol: *protocol,
                spis: spis.clone(),
            };
            writer.add(PayloadType::DELETE, |out| delete.encode(out));
        }
        Body::Cp(kind, attributes) => {
            let attributes = attributes.iter().map(|(kind, value)| cp::Attribute {
                kind: cp::AttributeType(*kind),
                value,
            });
            let cp = cp::Configuration {
                kind: cp::ConfigType(*kind),
                attributes: attributes.collect(),
            };
            writer.add(PayloadType::CP, |out| cp.encode(out));
        }
        Body::Other(kind, critical, data) => {
            writer.add_with(PayloadType(*kind), *critical, |out| out.extend(data));
        }
    }
}

fn message(bodies: &[Body]) -> (Vec<u8>, Writer) {
    let mut writer = Writer::new();
    bodies.iter().for_each(|body| write(body, &mut writer));
    let header = Header {
        initiator_spi: 1,
        responder_spi: 2,
        next_payload: PayloadType::NONE,
        major: 2,
        minor: 0,
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags::new(true, false),
        message_id: 0,
        length: 0,
    };
    (writer.message(header), writer)
}

proptest! {
    #[test]
    fn arbitrary_octets_never_panic(first in any::<u8>(), data in bytes(0..600)) {
        let _ = Header::split(&data);
        let _ = Payloads::collect_all(PayloadType(first), &data);
        for kind in 33..=48 {
            let mut writer = Writer::new();
            writer.add(PayloadType(kind), |out| out.extend(&data));
            let _ = Payloads::collect_all(PayloadType(kind), writer.bytes());
        }
    }

    #[test]
    fn messages_round_trip(bodies in proptest::collection::vec(body(), 0..12)) {
        let (message, writer) = message(&bodies);
        let (header, rest) = Header::split(&message).unwrap();
        prop_assert_eq!(header.next_payload, writer.first());
        let payloads = Payloads::collect_all(header.next_payload, rest).unwrap();
        prop_assert_eq!(payloads.len(), bodies.len());
        let mut again = Writer::new();
        payloads.iter().for_each(|payload| payload.encode(&mut again));
        prop_assert_eq!(again.bytes(), rest);
    }

    #[test]
    fn mutated_messages_never_panic_and_truncated_ones_are_refused(
        bodies in proptest::collection::vec(body(), 1..8),
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        cut in any::<usize>(),
    ) {
        let (mut message, _) = message(&bodies);
        let (header, rest) = Header::split(&message).unwrap();
        let first = header.next_payload;
        prop_assert!(Payloads::collect_all(first, &rest[..cut % rest.len()]).is_err());
        let longer = [rest, &[0]].concat();
        prop_assert!(Payloads::collect_all(first, &longer).is_err(), "trailing octets");
        for (at, value) in flips {
            let at = at % message.len();
            message[at] = value;
        }
        if let Ok((header, rest)) = Header::split(&message) {
            let _ = Payloads::collect_all(header.next_payload, rest);
        }
    }
}

#[test]
fn limits() {
    let mut writer = Writer::new();
    for _ in 0..=MAX_PAYLOADS {
        writer.notify(Notify::new(NotifyType::COOKIE, &[]));
    }
    let result = Payloads::collect_all(writer.first(), writer.bytes());
    assert_eq!(
        result,
        Err(DecodeError::TooMany {
            what: "payloads",
            limit: MAX_PAYLOADS
        })
    );
    let short = [0u8; 15];
    let mut writer = Writer::new();
    writer.add(PayloadType::NONCE, |out| out.extend(short));
    assert!(Payloads::collect_all(writer.first(), writer.bytes()).is_err());
}

#[test]
fn a_transform_with_unknown_attributes_is_left_out() {
    // Proposal 1, ESP, SPI 00000100: AES-CBC with an attribute of type 99, and HMAC-SHA2-256.
    let body = [
        0, 0, 0, 32, 1, 3, 4, 2, 0, 0, 1, 0, //
        3, 0, 0, 12, 1, 0, 0, 12, 0x80, 99, 1, 0, //
        0, 0, 0, 8, 3, 0, 0, 12,
    ];
    let proposals = sa::decode(&body).unwrap();
    let proposal = proposals[0].to_proposal();
    assert_eq!(proposals[0].transforms.len(), 2);
    assert_eq!(proposal.transforms.len(), 1);
    assert_eq!(proposal.transforms[0].kind, TransformType::Integrity);
}
