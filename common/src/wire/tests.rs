use proptest::prelude::*;

use super::parse::{Class, Direction, Link, ParseError, Ports, WanPacket, wan};
use super::sample::{Extension, Ip, esp, ethernet, udp};
use super::{Address, MAX_OFFSET, protocol};

const A: &str = "192.0.2.1";
const B: &str = "198.51.100.2";
const A6: &str = "2001:db8::1";
const B6: &str = "2001:db8:ffff::2";

fn inbound(frame: &[u8]) -> Result<WanPacket, ParseError> {
    wan(&frame, Link::Ethernet, Direction::Inbound, Ports::ASSIGNED)
}

fn class(frame: &[u8]) -> Class {
    inbound(frame).unwrap().class
}

#[test]
fn native_esp_with_options_and_tags() {
    let mut ip = Ip::new(A, B, protocol::ESP);
    ip.option_words = 10;
    ip.tos = 0xb9;
    let packet = ip.octets(&esp(0xdead_beef, 7, 64));
    let wan = inbound(&ethernet(&[5, 6], &packet)).unwrap();
    assert_eq!(wan.class, Class::NativeEsp);
    assert_eq!((wan.spi, wan.seq), (0xdead_beef, 7));
    assert_eq!(wan.ip_offset, 22);
    assert_eq!(wan.payload_offset, 22 + 60);
    assert_eq!(wan.ip_len, packet.len());
    assert_eq!(wan.tos, 0xb9);
    assert_eq!(wan.source, Address::from_v4([192, 0, 2, 1]));
    assert_eq!(format!("{:?}", wan.destination), B);
}

#[test]
fn udp_on_our_ports() {
    let datagram = |port, payload: &[u8]| {
        let ip = Ip::new(A, B, protocol::UDP);
        class(&ethernet(&[], &ip.octets(&udp(61_000, port, payload))))
    };
    assert_eq!(datagram(4500, &esp(256, 1, 40)), Class::UdpEsp);
    assert_eq!(datagram(4500, &[0; 32]), Class::IkeNatT);
    assert_eq!(datagram(4500, &[0xff]), Class::Keepalive);
    assert_eq!(datagram(4500, &[0xfe]), Class::Malformed);
    assert_eq!(datagram(4500, &[1, 2, 3]), Class::Malformed);
    assert_eq!(datagram(4500, &[]), Class::Malformed);
    assert_eq!(datagram(500, &[1; 28]), Class::Ike);
    assert_eq!(datagram(53, &[1; 28]), Class::Other);
}

#[test]
fn direction_decides_whose_port_counts() {
    let ip = Ip::new(A, B, protocol::UDP);
    let frame = ethernet(&[], &ip.octets(&udp(4500, 61_000, &esp(256, 1, 40))));
    assert_eq!(class(&frame), Class::Other);
    let out = wan(
        &frame.as_slice(),
        Link::Ethernet,
        Direction::Outbound,
        Ports::ASSIGNED,
    );
    assert_eq!(out.unwrap().class, Class::UdpEsp);
}

#[test]
fn ipv6_extension_headers() {
    let mut ip = Ip::new(A6, B6, protocol::ESP);
    ip.tos = 0x2e;
    ip.extensions = vec![
        Extension::HopByHop(0),
        Extension::Routing(2),
        Extension::Destination(1),
    ];
    let wan = inbound(&ethernet(&[], &ip.octets(&esp(9000, 1, 32)))).unwrap();
    assert_eq!(wan.class, Class::NativeEsp);
    assert_eq!(wan.payload_offset, 14 + 40 + 8 + 24 + 16);
    assert_eq!(wan.tos, 0x2e);
    assert_eq!(format!("{:?}", wan.source), A6);

    // More of them than the walk goes over: no longer ours to say what it is.
    ip.extensions = vec![Extension::Destination(0); 7];
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&esp(9000, 1, 32)))),
        Class::Other
    );
}

#[test]
fn fragments() {
    let mut ip = Ip::new(A, B, protocol::UDP);
    ip.fragment = (77, 0, true);
    let datagram = udp(61_000, 4500, &esp(256, 1, 1400));
    let first = inbound(&ethernet(&[], &ip.octets(&datagram[..800]))).unwrap();
    assert_eq!(first.class, Class::UdpEsp);
    assert!(first.first_fragment);
    assert_eq!(first.fragment_id, 77);
    ip.fragment = (77, 100, false);
    let later = inbound(&ethernet(&[], &ip.octets(&datagram[800..]))).unwrap();
    assert_eq!(later.class, Class::Fragment);
    assert!(!later.first_fragment);
    assert_eq!(later.fragment_id, 77);

    let mut ip = Ip::new(A6, B6, protocol::ESP);
    ip.extensions = vec![Extension::Fragment(0, true, 0x1234_5678)];
    let first = inbound(&ethernet(&[], &ip.octets(&esp(300, 1, 1200)))).unwrap();
    assert_eq!(first.class, Class::NativeEsp);
    assert_eq!(first.fragment_id, 0x1234_5678);
    ip.extensions = vec![Extension::Fragment(150, false, 0x1234_5678)];
    let later = inbound(&ethernet(&[], &ip.octets(&[0; 100]))).unwrap();
    assert_eq!(later.class, Class::Fragment);
    assert_eq!(later.fragment_id, 0x1234_5678);
}

#[test]
fn neighbour_discovery_needs_hop_limit_255() {
    let mut ip = Ip::new(A6, "ff02::1:ff00:2", protocol::ICMPV6);
    let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&solicitation))),
        Class::Other
    );
    ip.ttl = 255;
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&solicitation))),
        Class::NeighbourDiscovery
    );
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&[128, 0, 0, 0, 0, 0, 0, 0]))),
        Class::Other
    );
}

#[test]
fn contradictions_are_malformed() {
    let packet = Ip::new(A, B, protocol::ESP).octets(&esp(256, 1, 40));
    let with = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        inbound(&ethernet(&[], &packet))
    };
    assert!(with(0, 0x45).is_ok());
    for (at, value) in [(0, 0x44), (0, 0x55), (2, 0x40), (3, 10)] {
        assert_eq!(
            with(at, value),
            Err(ParseError::Malformed),
            "octet {at} = {value:#x}"
        );
    }
    let mut short = packet.clone();
    short.truncate(24);
    short[3] = 24;
    assert_eq!(class(&ethernet(&[], &short)), Class::Malformed);

    let mut datagram = udp(1, 500, &[0; 20]);
    datagram[5] = 200;
    let ip = Ip::new(A, B, protocol::UDP);
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&datagram))),
        Class::Malformed
    );
    datagram[5] = 7;
    assert_eq!(
        class(&ethernet(&[], &ip.octets(&datagram))),
        Class::Malformed
    );
}

#[test]
fn what_is_not_ip() {
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    assert_eq!(inbound(&arp), Err(ParseError::NotIp));
    assert_eq!(inbound(&[0; 13]), Err(ParseError::Malformed));
    let empty: &[u8] = &[];
    assert_eq!(
        wan(&empty, Link::Ip, Direction::Inbound, Ports::ASSIGNED),
        Err(ParseError::Malformed)
    );
}

fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (0u8..3).prop_map(Extension::HopByHop),
        (0u8..3).prop_map(Extension::Destination),
        (0u8..3).prop_map(Extension::Routing),
    ]
}

proptest! {
    /// No octets make it panic, and what it says lies inside the packet.
    #[test]
    fn never_panics(
        octets in prop::collection::vec(any::<u8>(), 0..200),
        ethertype in prop::sample::select(vec![None, Some([8, 0]), Some([0x86, 0xdd]), Some([0x81, 0])]),
        version in prop::sample::select(vec![None, Some(0x45), Some(0x4f), Some(0x60)]),
        link in prop::sample::select(vec![Link::Ethernet, Link::Ip]),
        direction in prop::sample::select(vec![Direction::Inbound, Direction::Outbound]),
    ) {
        let mut octets = octets;
        let start = if link == Link::Ethernet { 14 } else { 0 };
        if let (Some(ethertype), Some(place)) = (ethertype, octets.get_mut(12..14)) && start == 14 {
            place.copy_from_slice(&ethertype);
        }
        if let (Some(version), Some(place)) = (version, octets.get_mut(start)) {
            *place = version;
        }
        if let Ok(packet) = wan(&octets.as_slice(), link, direction, Ports::ASSIGNED) {
            prop_assert!(packet.ip_offset + packet.ip_len <= octets.len());
            if matches!(packet.class, Class::NativeEsp | Class::UdpEsp) {
                prop_assert!(packet.payload_offset + 8 <= octets.len());
                prop_assert!(packet.payload_offset <= MAX_OFFSET);
            }
        }
    }

    /// Whatever is put around an ESP packet, the parser finds it again.
    #[test]
    fn agrees_with_construction(
        spi in 1u32..,
        seq in any::<u32>(),
        body in 0usize..300,
        tags in prop::collection::vec(1u16..4095, 0..3),
        in_udp in any::<bool>(),
        v6 in any::<bool>(),
        option_words in 0u8..=10,
        extensions in prop::collection::vec(any_extension(), 0..5),
        tos in any::<u8>(),
        ethernet_link in any::<bool>(),
    ) {
        let payload = esp(spi, seq, body);
        let (number, payload) = if in_udp {
            (protocol::UDP, udp(4500, 4500, &payload))
        } else {
            (protocol::ESP, payload)
        };
        let mut ip = if v6 { Ip::new(A6, B6, number) } else { Ip::new(A, B, number) };
        ip.tos = tos;
        ip.option_words = option_words;
        ip.extensions = extensions;
        let packet = ip.octets(&payload);
        let (link, frame) = if ethernet_link {
            (Link::Ethernet, ethernet(&tags, &packet))
        } else {
            (Link::Ip, packet.clone())
        };
        let found = wan(&frame.as_slice(), link, Direction::Inbound, Ports::ASSIGNED).unwrap();
        prop_assert_eq!(found.class, if in_udp { Class::UdpEsp } else { Class::NativeEsp });
        prop_assert_eq!((found.spi, found.seq), (spi, seq));
        prop_assert_eq!(&frame[found.payload_offset..][..4], &spi.to_be_bytes()[..]);
        prop_assert_eq!(found.ip_len, packet.len());
        prop_assert_eq!(found.tos, tos);
        prop_assert_eq!(found.protocol, number);
        prop_assert_eq!(std::net::IpAddr::from(found.source), ip.source);
        prop_assert_eq!(std::net::IpAddr::from(found.destination), ip.destination);
        prop_assert!(!found.first_fragment);
    }
}
