//! What the program on LAN interfaces takes and what it leaves to the kernel.

use espada_common::abi::LanEntry;
use espada_common::wire::sample::Extension;

use super::attach::{Link, ip};
use super::*;
use crate::netlink::Netlink;
use crate::port::ring::Socket;
use crate::umem::Arena;

/// Where BPF_PROG_TEST_RUN says that packets arrive.
const LOOPBACK: u32 = 1;

/// What `sample::ethernet` addresses its frames to.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const HOST: &str = "10.1.0.5";
const HOST6: &str = "fd00:1::5";
const FAR: &str = "10.2.0.7";
const FAR6: &str = "fd00:2::7";

/// A gateway whose routes to the far networks lead into a tunnel, in a namespace of its own: forwarding
/// on, and one of them with a hole to another interface.
fn prepare(front_end: &mut FrontEnd) -> (LanEntry, Socket) {
    ip(&["link", "set", "lo", "up"]);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    ip(&[
        "link", "add", "tunnel0", "type", "veth", "peer", "name", "tunnel1",
    ]);
    ip(&["link", "set", "tunnel0", "mtu", "1400", "up"]);
    ip(&["link", "set", "tunnel1", "up"]);
    for route in ["10.2.0.0/16", "fd00:2::/32"] {
        ip(&["route", "add", route, "dev", "tunnel0"]);
    }
    for hole in ["10.2.9.0/24", "fd00:2:9::/48"] {
        ip(&["route", "add", hole, "dev", "wan0"]);
    }
    front_end
        .set_policies(&[
            pair("10.2.0.0/16", "10.1.0.0/16"),
            pair("fd00:2::/32", "fd00:1::/32"),
            // Without a route into the tunnel.
            pair("10.3.0.0/16", "10.1.0.0/16"),
        ])
        .unwrap();
    let others = ["10.1.0.1", "fd00:1::1", "10.2.0.1"].map(address);
    front_end.set_addresses(&[address(US)], &others).unwrap();
    let mut netlink = Netlink::open().unwrap();
    let arena = Arena::new(64, 2048).unwrap();
    let wan = netlink.link("wan0").unwrap().index;
    let socket = Socket::open(&arena, wan, 0, 64).unwrap();
    let entry = LanEntry {
        mac: MAC,
        padding: [0; 2],
        tunnel: netlink.link("tunnel0").unwrap().index,
        first_socket: 16,
        sockets: 1,
        most: 1500,
    };
    (entry, socket)
}

fn packet(source: &str, destination: &str) -> Ip {
    Ip::new(source, destination, protocol::UDP)
}

fn octets(ip: &Ip) -> Vec<u8> {
    frame(&ip.octets(&udp(1000, 2000, &[7; 100])))
}

#[test]
fn bpf_lan_takes_what_is_only_forwarded_into_the_tunnel() {
    const TEST: &str = "bpf_lan_takes_what_is_only_forwarded_into_the_tunnel";
    let Some(mut front_end) = front_end(TEST, &Options::default()) else {
        return;
    };
    let link = Link::new();
    link.inside(|| {
        let (entry, socket) = prepare(&mut front_end);
        let plain = [octets(&packet(HOST, FAR)), octets(&packet(HOST6, FAR6))];
        let run = |front_end: &mut FrontEnd, frame: &[u8]| front_end.run(attaching::LAN, frame);
        for frame in &plain {
            assert_eq!(run(&mut front_end, frame), Ran::Passed, "not a LAN");
        }
        front_end.set_lan(LOOPBACK, entry).unwrap();
        for frame in &plain {
            assert_eq!(run(&mut front_end, frame), Ran::Passed, "no socket");
        }
        front_end
            .set_lan_xsk(entry.first_socket, &std::os::fd::AsFd::as_fd(&socket))
            .unwrap();
        for frame in &plain {
            assert_eq!(run(&mut front_end, frame), Ran::Steered);
        }

        for (what, frame) in unusual() {
            assert_eq!(run(&mut front_end, &frame), Ran::Passed, "{what}");
        }
        assert_eq!(front_end.counters().unwrap().drops, [0; DropReason::COUNT]);

        // Another queue, another tunnel, frames that are too small, no forwarding.
        for other in [
            LanEntry {
                sockets: 0,
                ..entry
            },
            LanEntry {
                tunnel: LOOPBACK,
                ..entry
            },
            LanEntry { most: 100, ..entry },
        ] {
            front_end.set_lan(LOOPBACK, other).unwrap();
            for frame in &plain {
                assert_eq!(run(&mut front_end, frame), Ran::Passed, "{other:?}");
            }
        }
        front_end.set_lan(LOOPBACK, entry).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        for frame in &plain {
            assert_eq!(run(&mut front_end, frame), Ran::Passed, "no forwarding");
        }
        front_end.remove_lan(LOOPBACK).unwrap();
        front_end.remove_lan_xsk(entry.first_socket).unwrap();
    });
}

/// Frames that the kernel must see, each with what is unusual about it.
fn unusual() -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = Vec::new();
    for (what, source, destination) in [
        ("a source outside the policy", "10.9.0.5", FAR),
        ("a destination outside the policy", HOST, "10.9.0.7"),
        ("no route into the tunnel", HOST, "10.3.0.7"),
        ("a narrower route elsewhere", HOST, "10.2.9.7"),
        ("a narrower route elsewhere", HOST6, "fd00:2:9::7"),
        ("to us on the WAN", HOST, US),
        ("to us on the LAN", HOST, "10.1.0.1"),
        ("to us inside the far network", HOST, "10.2.0.1"),
        ("to us on the LAN", HOST6, "fd00:1::1"),
        ("from us", "10.1.0.1", FAR),
        ("from us", "fd00:1::1", FAR6),
        ("the other way round", FAR, HOST),
    ] {
        frames.push((what, octets(&packet(source, destination))));
    }
    for (source, destination) in [(HOST, FAR), (HOST6, FAR6)] {
        let plain = packet(source, destination);
        for ttl in [0, 1] {
            let ip = Ip {
                ttl,
                ..plain.clone()
            };
            frames.push(("TTL used up", octets(&ip)));
        }
        let tagged = ethernet(&[5], &plain.octets(&[0; 64]));
        frames.push(("a VLAN tag", tagged));
        let mut other = octets(&plain);
        other[5] = 9;
        frames.push(("another Ethernet address", other));
        let large = frame(&plain.octets(&udp(1000, 2000, &[0; 1373])));
        frames.push(("longer than fits the tunnel", large));
        let mut cut = octets(&plain);
        cut.truncate(100);
        frames.push(("cut short", cut));
    }
    let plain = packet(HOST, FAR);
    for fragment in [(1, 0, true), (1, 100, true), (1, 100, false)] {
        let ip = Ip {
            fragment,
            ..plain.clone()
        };
        frames.push(("a fragment", octets(&ip)));
    }
    let options = Ip {
        option_words: 2,
        ..plain
    };
    frames.push(("IPv4 options", octets(&options)));
    for extension in [
        Extension::HopByHop(0),
        Extension::Destination(0),
        Extension::Routing(0),
        Extension::Fragment(0, true, 1),
        Extension::Fragment(10, false, 1),
    ] {
        let ip = Ip {
            extensions: vec![extension],
            ..packet(HOST6, FAR6)
        };
        frames.push(("an extension header", octets(&ip)));
    }
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    frames.push(("ARP", arp.clone()));
    arp[..6].copy_from_slice(&MAC);
    frames.push(("ARP to us", arp));
    let mut solicitation = Ip::new("fe80::1", "ff02::1:ff00:2", protocol::ICMPV6);
    solicitation.ttl = 255;
    let solicitation = frame(&solicitation.octets(&[135, 0, 0, 0, 0, 0, 0, 0]));
    frames.push(("neighbour discovery", solicitation));
    frames
}
