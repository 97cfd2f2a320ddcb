use super::*;
use crate::netlink::Neighbour;

const LAN: u32 = 5;
const OTHER: u32 = 9;

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

fn route(prefix_text: &str, priority: u32, target: Target) -> Route {
    Route {
        prefix: prefix(prefix_text),
        priority: Some(priority),
        target,
    }
}

fn ours(prefix_text: &str) -> Route {
    Route {
        prefix: prefix(prefix_text),
        priority: None,
        target: Target::Kernel,
    }
}

fn via(link: u32, gateway: &str) -> Target {
    Target::Link(link, Some(gateway.parse().unwrap()))
}

fn neighbour(last: u8) -> Neighbour {
    Neighbour {
        mac: Some([2, 0, 0, 0, 0, last]),
        stale: last.is_multiple_of(2),
    }
}

fn sides() -> Vec<Option<Side>> {
    let side = |link, last| Side {
        link,
        mac: [4, 0, 0, 0, 0, last],
        mtu: 1500,
    };
    vec![Some(side(1, 1)), Some(side(LAN, 2))]
}

fn network() -> Forwarding {
    let on_link = Target::Link(LAN, None);
    let neighbours = [
        (LAN, "10.1.0.5", neighbour(5)),
        (LAN, "10.1.0.254", neighbour(254)),
        (
            LAN,
            "10.1.0.6",
            Neighbour {
                mac: None,
                ..neighbour(6)
            },
        ),
        // Known from another link, or not by a route.
        (OTHER, "10.1.0.7", neighbour(7)),
        (LAN, "192.0.2.1", neighbour(8)),
        (LAN, "fd00:1::5", neighbour(15)),
        (LAN, "fe80::1", neighbour(16)),
    ];
    Forwarding {
        routes: vec![
            ours("10.1.0.1/32"),
            ours("10.1.0.255/32"),
            route("10.1.0.0/24", 0, on_link),
            route("10.9.0.0/16", 100, via(LAN, "10.1.0.254")),
            // The worse of two, and the better.
            route("10.9.1.0/24", 200, via(LAN, "10.1.0.254")),
            route("10.9.1.0/24", 100, Target::Link(OTHER, None)),
            // Two of equal rank.
            route("10.9.2.0/24", 0, via(LAN, "10.1.0.254")),
            route("10.9.2.0/24", 0, via(LAN, "10.1.0.5")),
            route("10.9.3.0/24", 0, Target::Kernel),
            route("10.9.4.0/24", 0, via(LAN, "10.1.0.6")),
            route("0.0.0.0/0", 0, via(OTHER, "192.0.2.254")),
            route("fd00:1::/64", 256, on_link),
            route("fd00:9::/48", 1024, via(LAN, "fe80::1")),
            // An IPv4 network behind an IPv6 router.
            route("10.8.0.0/16", 0, via(LAN, "fe80::1")),
        ],
        neighbours: neighbours
            .map(|(link, address, neighbour)| ((link, address.parse().unwrap()), neighbour))
            .into(),
        opaque: None,
    }
}

fn packet(destination: &str) -> Vec<u8> {
    match destination.parse().unwrap() {
        IpAddr::V4(v4) => {
            let mut packet = vec![0x45; 20];
            packet[16..].copy_from_slice(&v4.octets());
            packet
        }
        IpAddr::V6(v6) => {
            let mut packet = vec![0x60; 40];
            packet[24..].copy_from_slice(&v6.octets());
            packet
        }
    }
}

/// The last octet of the neighbour's Ethernet address, and the type in the header.
fn way(table: &Table, destination: &str) -> Option<(u8, [u8; 2])> {
    let hop = table.find(&packet(destination))?;
    let header = hop.next.header;
    assert_eq!((hop.port, &header[6..12]), (1, &[4, 0, 0, 0, 0, 2][..]));
    Some((header[5], [header[12], header[13]]))
}

const V4: [u8; 2] = [8, 0];
const V6: [u8; 2] = [0x86, 0xdd];

#[test]
fn packets_go_where_the_kernel_would_send_them() {
    let table = Table::new(&sides(), &network());
    for (destination, expected) in [
        ("10.1.0.5", Some((5, V4))),
        ("10.1.0.254", Some((254, V4))),
        ("10.9.0.1", Some((254, V4))),
        ("10.9.255.255", Some((254, V4))),
        ("10.8.3.4", Some((16, V4))),
        ("fd00:1::5", Some((15, V6))),
        ("fd00:9::77", Some((16, V6))),
        // No neighbour, or one that the kernel does not trust.
        ("10.1.0.6", None),
        ("10.1.0.7", None),
        ("10.9.4.1", None),
        ("fd00:1::6", None),
        // This host, and everybody on the link.
        ("10.1.0.1", None),
        ("10.1.0.255", None),
        // Other links, several links, nowhere.
        ("10.9.1.1", None),
        ("10.9.2.1", None),
        ("10.9.3.1", None),
        ("192.0.2.1", None),
        ("fe80::1", None),
        ("fd00:2::1", None),
        // An IPv4 address in an IPv6 packet is not that address.
        ("::ffff:10.1.0.5", None),
    ] {
        let found = match destination.parse() {
            Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
                let mut packet = vec![0x60; 40];
                packet[24..].copy_from_slice(&v6.octets());
                assert!(table.find(&packet).is_none());
                None
            }
            _ => way(&table, destination),
        };
        assert_eq!(found, expected, "{destination}");
    }
    for cut in [&[][..], &[0x45; 19], &[0x60; 39], &[0x50; 60]] {
        assert!(table.find(cut).is_none());
    }
}

#[test]
fn without_certainty_everything_is_the_kernels() {
    let mut unclear = network();
    unclear.opaque = Some("rules");
    assert!(Table::new(&sides(), &unclear).is_empty());
    // The interface cannot send.
    let table = Table::new(&[sides()[0], None], &network());
    assert!(way(&table, "10.1.0.5").is_none());
    assert_eq!(table, Table::new(&[], &Forwarding::default()));
}

#[test]
fn equal_tables_are_not_published_again() {
    let (a, b) = (Table::new(&sides(), &network()), network());
    assert_eq!(a.v4, Table::new(&sides(), &b).v4);
    let mut moved = network();
    let key = (LAN, "10.1.0.5".parse().unwrap());
    moved.neighbours.insert(key, neighbour(77));
    assert_ne!(a, Table::new(&sides(), &moved));
}
