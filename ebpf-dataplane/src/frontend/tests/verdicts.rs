use crate::engine::Steering;
use std::os::fd::AsRawFd;
use std::time::Duration;

use espada_common::wire::parse::{Class, Direction, Link, Ports, wan};
use espada_common::wire::sample::Extension;

use super::*;

/// What the userspace parser makes of an arriving frame: the programs must agree.
fn class(frame: &[u8]) -> Class {
    wan(&frame, Link::Ethernet, Direction::Inbound, Ports::ASSIGNED)
        .unwrap()
        .class
}

#[test]
fn bpf_known_esp_passes_and_counts() {
    let Some(mut front_end) = gateway("bpf_known_esp_passes_and_counts") else {
        return;
    };
    let mut with_options = Ip::new(PEER, US, protocol::ESP);
    with_options.option_words = 10;
    let mut with_extensions = Ip::new(PEER6, US6, protocol::ESP);
    with_extensions.extensions = vec![Extension::HopByHop(1), Extension::Destination(0)];
    let cases = [
        (SPI, Class::NativeEsp, native(PEER, US, SPI), &[][..]),
        (SPI, Class::UdpEsp, in_udp(PEER, US, SPI), &[]),
        (SPI, Class::NativeEsp, native(PEER, US, SPI), &[7]),
        (SPI, Class::UdpEsp, in_udp(PEER, US, SPI), &[7, 8]),
        (
            SPI,
            Class::NativeEsp,
            with_options.octets(&esp(SPI, 1, 8)),
            &[],
        ),
        (SPI + 1, Class::NativeEsp, native(PEER6, US6, SPI + 1), &[]),
        (SPI + 1, Class::UdpEsp, in_udp(PEER6, US6, SPI + 1), &[9]),
        (
            SPI + 1,
            Class::NativeEsp,
            with_extensions.octets(&esp(SPI + 1, 1, 0)),
            &[9],
        ),
    ];
    for program in INGRESS {
        for (spi, expected, packet, tags) in &cases {
            let frame = ethernet(tags, packet);
            assert_eq!(class(&frame), *expected);
            let before = front_end.received(*spi);
            assert_eq!(front_end.run(program, &frame), Ran::Passed, "{program}");
            let after = front_end.received(*spi);
            // Octets of the IP packet: neither link header nor Ethernet padding.
            assert_eq!(
                after,
                (before.0 + 1, before.1 + packet.len() as u64),
                "{program}"
            );
        }
    }
    assert_eq!(front_end.counters().unwrap().drops, [0; DropReason::COUNT]);
}

#[test]
fn bpf_unknown_spi_and_wrong_address() {
    let Some(mut front_end) = gateway("bpf_unknown_spi_and_wrong_address") else {
        return;
    };
    for program in INGRESS {
        let (unknown, wrong) = (
            front_end.dropped(DropReason::UnknownSpi),
            front_end.dropped(DropReason::WrongAddress),
        );
        for packet in [
            native(PEER, US, 4711),
            in_udp(PEER6, US6, 4711),
            native(PEER, US, 0),
        ] {
            assert_eq!(
                front_end.run(program, &frame(&packet)),
                Ran::Dropped,
                "{program}"
            );
        }
        assert_eq!(front_end.dropped(DropReason::UnknownSpi), unknown + 3);
        // The IPv6 SA's SPI at our IPv4 address.
        assert_eq!(
            front_end.run(program, &frame(&native(PEER, US, SPI + 1))),
            Ran::Dropped
        );
        assert_eq!(front_end.dropped(DropReason::WrongAddress), wrong + 1);
        // ESP that only passes through is none of our SAs' business.
        assert_eq!(
            front_end.run(program, &frame(&native(PEER, "203.0.113.9", 4711))),
            Ran::Passed
        );
        assert_eq!(front_end.dropped(DropReason::UnknownSpi), unknown + 3);
    }
    assert_eq!(front_end.received(SPI + 1), (0, 0));
    front_end.remove_sa(SPI).unwrap();
    assert_eq!(
        front_end.run("espada_xdp", &frame(&native(PEER, US, SPI))),
        Ran::Dropped
    );
    front_end.remove_sa(SPI).unwrap();
}

#[test]
fn bpf_unknown_spi_may_pass() {
    let Some(mut front_end) = front_end("bpf_unknown_spi_may_pass", &Options::default()) else {
        return;
    };
    front_end.set_addresses(&[address(US)], &[]).unwrap();
    assert_eq!(
        front_end.run("espada_xdp", &frame(&native(PEER, US, 4711))),
        Ran::Passed
    );
    assert_eq!(front_end.dropped(DropReason::UnknownSpi), 1);
}

#[test]
fn bpf_ike_and_the_link_itself_pass() {
    let Some(mut front_end) = gateway("bpf_ike_and_the_link_itself_pass") else {
        return;
    };
    // Everything is protected, our own addresses too: IKE must pass all the same.
    let everything = [pair("0.0.0.0/0", "0.0.0.0/0"), pair("::/0", "::/0")];
    front_end.set_policies(&everything).unwrap();
    let datagram = |source: &str, destination: &str, port, payload: &[u8]| {
        frame(&Ip::new(source, destination, protocol::UDP).octets(&udp(port, port, payload)))
    };
    let mut solicitation = Ip::new("fe80::1", "ff02::1:ff00:2", protocol::ICMPV6);
    solicitation.ttl = 255;
    let solicitation = frame(&solicitation.octets(&[135, 0, 0, 0, 0, 0, 0, 0]));
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    for (source, destination, programs) in [
        (PEER, US, &INGRESS[..]),
        (PEER6, US6, &INGRESS[..]),
        (US, PEER, &["espada_tc_out"]),
        (US6, PEER6, &["espada_tc_out"]),
    ] {
        for program in programs {
            let ike = datagram(source, destination, 500, &[1; 300]);
            let marked = datagram(source, destination, 4500, &[0; 300]);
            let keepalive = datagram(source, destination, 4500, &[0xff]);
            for frame in [&ike, &marked, &keepalive, &solicitation, &arp] {
                assert_eq!(front_end.run(program, frame), Ran::Passed, "{program}");
            }
            let other = datagram(source, destination, 53, &[1; 300]);
            assert_eq!(front_end.run(program, &other), Ran::Dropped, "{program}");
        }
    }
    assert_eq!(front_end.dropped(DropReason::ClearInbound), 4);
    assert_eq!(front_end.dropped(DropReason::ClearOutbound), 2);
}

#[test]
fn bpf_malformed_is_dropped_on_the_way_in() {
    let Some(mut front_end) = gateway("bpf_malformed_is_dropped_on_the_way_in") else {
        return;
    };
    let mut short = Ip::new(PEER, US, protocol::ESP).octets(&[1, 2, 3, 4]);
    let truncated_esp = frame(&short);
    short[0] = 0x44;
    let short_header = frame(&short);
    let no_marker = frame(&Ip::new(PEER, US, protocol::UDP).octets(&udp(1, 4500, &[9; 5])));
    let mut long = native(PEER, US, SPI);
    long[2] = 0x7f;
    let beyond_the_end = frame(&long);
    for program in INGRESS {
        let before = front_end.dropped(DropReason::Malformed);
        for frame in [&truncated_esp, &short_header, &no_marker, &beyond_the_end] {
            assert_eq!(front_end.run(program, frame), Ran::Dropped, "{program}");
        }
        assert_eq!(front_end.dropped(DropReason::Malformed), before + 4);
    }
}

#[test]
fn bpf_clear_text_guard() {
    let Some(mut front_end) = gateway("bpf_clear_text_guard") else {
        return;
    };
    let policies = [
        pair("10.0.0.0/8", "192.168.0.0/16"),
        pair("10.1.0.0/16", "172.16.0.0/12"),
        pair("10.1.2.0/24", "172.32.0.0/24"),
        pair("2001:db8:a::/48", "2001:db8:b::/48"),
    ];
    // One by one, the narrower before the wider, it comes to the same as all at once.
    for pair in policies.iter().rev() {
        front_end.add_policies(&[*pair]).unwrap();
    }
    // remote, local, protected
    let cases = [
        ("10.9.9.9", "192.168.1.1", true),
        ("10.9.9.9", "172.16.0.1", false),
        ("10.1.9.9", "192.168.1.1", true),
        ("10.1.9.9", "172.16.0.1", true),
        ("10.1.9.9", "172.32.0.1", false),
        ("10.1.2.9", "192.168.1.1", true),
        ("10.1.2.9", "172.16.0.1", true),
        ("10.1.2.9", "172.32.0.1", true),
        ("11.1.2.9", "192.168.1.1", false),
        ("2001:db8:a::1", "2001:db8:b::1", true),
        ("2001:db8:c::1", "2001:db8:b::1", false),
        ("2001:db8:a::1", "2001:db8:a::2", false),
    ];
    for (remote, local, protected) in cases {
        let expected = if protected { Ran::Dropped } else { Ran::Passed };
        for program in INGRESS {
            let arriving = ethernet(&[3], &clear(remote, local));
            assert_eq!(
                front_end.run(program, &arriving),
                expected,
                "{program}: {remote} to {local}"
            );
        }
        let leaving = frame(&clear(local, remote));
        assert_eq!(
            front_end.run("espada_tc_out", &leaving),
            expected,
            "{local} to {remote}"
        );
        // The other way round it is no packet of this policy.
        let backwards = frame(&clear(remote, local));
        assert_eq!(front_end.run("espada_tc_out", &backwards), Ran::Passed);
    }
    let protected = cases.iter().filter(|case| case.2).count() as u64;
    assert_eq!(front_end.dropped(DropReason::ClearInbound), 2 * protected);
    assert_eq!(front_end.dropped(DropReason::ClearOutbound), protected);

    // A super packet of segmentation offload is dropped whole and counted by its segments.
    let leaving = frame(&clear("192.168.1.1", "10.9.9.9"));
    assert_eq!(
        front_end.run_segmented("espada_tc_out", &leaving, 40),
        Ran::Dropped
    );
    assert_eq!(front_end.dropped(DropReason::ClearOutbound), protected + 40);

    // Without the widest policy only what the others cover stays protected.
    front_end.set_policies(&policies[1..]).unwrap();
    let arriving = frame(&clear("10.1.9.9", "192.168.1.1"));
    assert_eq!(front_end.run("espada_xdp", &arriving), Ran::Passed);
    let arriving = frame(&clear("10.1.2.9", "172.16.0.1"));
    assert_eq!(front_end.run("espada_xdp", &arriving), Ran::Dropped);
    front_end.set_policies(&[]).unwrap();
    assert_eq!(front_end.run("espada_xdp", &arriving), Ran::Passed);
}

#[test]
fn bpf_fragments() {
    let Some(mut front_end) = gateway("bpf_fragments") else {
        return;
    };
    let piece = |source: &str, destination: &str, fragment, payload: &[u8]| {
        let mut ip = Ip::new(source, destination, protocol::UDP);
        ip.fragment = fragment;
        frame(&ip.octets(payload))
    };
    let sealed = udp(4500, 4500, &esp(SPI, 1, 2000));
    let leaving = udp(4500, 4500, &esp(OUT_SPI, 1, 2000));
    let secret = udp(53, 53, &[0x5e; 2000]);
    let policies = [pair("192.0.2.0/24", "198.51.100.0/24")];
    for protected in [false, true] {
        front_end
            .set_policies(if protected { &policies } else { &[] })
            .unwrap();
        for (index, program) in INGRESS.into_iter().enumerate() {
            let id = 100 + u16::try_from(index).unwrap() + u16::from(protected) * 10;
            // Of ESP in UDP the first fragment is checked and counted, the later ones follow it.
            let before = front_end.received(SPI).0;
            let first = piece(PEER, US, (id, 0, true), &sealed[..1200]);
            let later = piece(PEER, US, (id, 150, false), &sealed[1200..]);
            assert_eq!(front_end.run(program, &first), Ran::Passed, "{program}");
            assert_eq!(front_end.run(program, &later), Ran::Passed, "{program}");
            assert_eq!(front_end.received(SPI).0, before + 1);
            // Clear text in fragments between protected addresses passes in no part.
            let expected = if protected { Ran::Dropped } else { Ran::Passed };
            let first = piece(PEER, US, (id + 50, 0, true), &secret[..1200]);
            let later = piece(PEER, US, (id + 50, 150, false), &secret[1200..]);
            assert_eq!(front_end.run(program, &first), expected, "{program}");
            assert_eq!(front_end.run(program, &later), expected, "{program}");
        }
        let id = 300 + u16::from(protected);
        let first = piece(US, PEER, (id, 0, true), &leaving[..1200]);
        let later = piece(US, PEER, (id, 150, false), &leaving[1200..]);
        assert_eq!(front_end.run("espada_tc_out", &first), Ran::Passed);
        assert_eq!(front_end.run("espada_tc_out", &later), Ran::Passed);
        let expected = if protected { Ran::Dropped } else { Ran::Passed };
        let later = piece(US, PEER, (id + 50, 150, false), &secret[1200..]);
        assert_eq!(front_end.run("espada_tc_out", &later), expected);
    }
    assert_eq!(front_end.sent(PEER).0, 2);
}

#[test]
fn bpf_outbound_esp_is_counted_once_whichever_way_it_leaves() {
    let Some(mut front_end) = gateway("bpf_outbound_esp_is_counted_once_whichever_way_it_leaves")
    else {
        return;
    };
    let packet = native(US, PEER, OUT_SPI);
    assert_eq!(
        front_end.run("espada_tc_out", &ethernet(&[4], &packet)),
        Ran::Passed
    );
    let len = packet.len() as u64;
    assert_eq!(front_end.sent(PEER), (1, len));
    let counter = front_end.out_counter(address(PEER), OUT_SPI).unwrap();
    counter.add(3, 300);
    assert_eq!(front_end.sent(PEER), (4, len + 300));
    // The same SPI towards another peer is another SA.
    assert_eq!(front_end.sent(PEER6), (0, 0));
    let other = native(US, "192.0.2.99", OUT_SPI);
    assert_eq!(front_end.run("espada_tc_out", &frame(&other)), Ran::Passed);
    assert_eq!(front_end.sent(PEER), (4, len + 300));

    // UDP segmentation: 10 segments of 100 octets have 10 times the headers.
    let super_packet =
        Ip::new(US6, PEER6, protocol::UDP).octets(&udp(4500, 4500, &esp(OUT_SPI, 1, 992)));
    assert_eq!(
        front_end.run_segmented("espada_tc_out", &frame(&super_packet), 10),
        Ran::Passed
    );
    assert_eq!(front_end.sent(PEER6), (10, 10 * (40 + 8 + 100)));

    front_end.remove_out(address(PEER), OUT_SPI).unwrap();
    assert!(front_end.out_counter(address(PEER), OUT_SPI).is_none());
    assert_eq!(front_end.run("espada_tc_out", &frame(&packet)), Ran::Passed);
    front_end.add_out(address(PEER), OUT_SPI).unwrap();
    assert_eq!(front_end.sent(PEER), (0, 0));
}

/// Packets of which not all is in one piece (segmentation offload, zero copy) are read as well.
#[test]
fn bpf_packets_in_pieces() {
    const TEST: &str = "bpf_packets_in_pieces";
    let Some(mut front_end) = gateway(TEST) else {
        return;
    };
    front_end
        .set_policies(&[pair("10.0.0.0/8", "192.168.0.0/16")])
        .unwrap();
    let run = |front_end: &mut FrontEnd, program, packet: &[u8]| {
        let frame = ethernet(&[], packet);
        // The link header and the first octets of the IP header.
        front_end.try_run(program, &frame, 0, Some(20))
    };
    let long = |ip: Ip, len| ip.octets(&vec![0; len]);
    let clear_out = long(Ip::new("192.168.0.1", "10.0.0.1", protocol::TCP), 1400);
    match run(&mut front_end, "espada_tc_out", &clear_out) {
        Err(error) => {
            return skip(
                TEST,
                &format!("the kernel makes no such test packets: {error}"),
            );
        }
        Ok(ran) => assert_eq!(ran, Ran::Dropped),
    }
    let known = Ip::new(PEER6, US6, protocol::UDP).octets(&udp(4500, 4500, &esp(SPI + 1, 1, 1300)));
    assert_eq!(
        run(&mut front_end, "espada_tc_in", &known).unwrap(),
        Ran::Passed
    );
    assert_eq!(front_end.received(SPI + 1), (1, known.len() as u64));
    let unknown = Ip::new(PEER, US, protocol::ESP).octets(&esp(4711, 1, 1300));
    assert_eq!(
        run(&mut front_end, "espada_tc_in", &unknown).unwrap(),
        Ran::Dropped
    );
    let sent = Ip::new(US, PEER, protocol::ESP).octets(&esp(OUT_SPI, 1, 1300));
    assert_eq!(
        run(&mut front_end, "espada_tc_out", &sent).unwrap(),
        Ran::Passed
    );
    assert_eq!(front_end.sent(PEER), (1, sent.len() as u64));
}

#[test]
fn bpf_links_without_ethernet() {
    let Some(mut front_end) = gateway("bpf_links_without_ethernet") else {
        return;
    };
    front_end
        .set_policies(&[pair("10.0.0.0/8", "192.168.0.0/16")])
        .unwrap();
    let packet = native(PEER6, US6, SPI + 1);
    assert_eq!(front_end.run("espada_tc_ip_in", &packet), Ran::Passed);
    assert_eq!(front_end.received(SPI + 1), (1, packet.len() as u64));
    assert_eq!(
        front_end.run("espada_tc_ip_in", &native(PEER, US, 4711)),
        Ran::Dropped
    );
    assert_eq!(
        front_end.run("espada_tc_ip_in", &clear("10.0.0.1", "192.168.0.1")),
        Ran::Dropped
    );
    let packet = in_udp(US, PEER, OUT_SPI);
    assert_eq!(front_end.run("espada_tc_ip_out", &packet), Ran::Passed);
    assert_eq!(front_end.sent(PEER), (1, packet.len() as u64));
    assert_eq!(
        front_end.run("espada_tc_ip_out", &clear("192.168.0.1", "10.0.0.1")),
        Ran::Dropped
    );
}

#[test]
fn bpf_steering() {
    let Some(mut front_end) = gateway("bpf_steering") else {
        return;
    };
    const AF_XDP: i32 = 44;
    let socket = socket2::Socket::new(AF_XDP.into(), socket2::Type::RAW, None).unwrap();
    let steering = Steering::Xsk { lanes: 1 };
    front_end.add_sa(SPI, address(US), steering).unwrap();
    let esp_frame = frame(&native(PEER, US, SPI));
    assert_eq!(
        front_end.run("espada_xdp", &esp_frame),
        Ran::Passed,
        "no socket yet"
    );
    match front_end.set_xsk(0, 0, &socket.as_raw_fd()) {
        Err(FrontEndError::Map { reason, .. }) if reason.contains("os error 105") => {
            let why = "the kernel takes no socket without rings; steering itself was not tried";
            return skip("bpf_steering", why);
        }
        result => result.unwrap(),
    }
    assert_eq!(front_end.run("espada_xdp", &esp_frame), Ran::Steered);
    assert_eq!(
        front_end.run("espada_tc_in", &esp_frame),
        Ran::Passed,
        "tc has no AF_XDP"
    );
    assert_eq!(
        front_end.run("espada_xdp", &frame(&in_udp(PEER, US, SPI))),
        Ran::Passed
    );
    let mut first = Ip::new(PEER, US, protocol::ESP);
    first.fragment = (1, 0, true);
    let first = frame(&first.octets(&esp(SPI, 1, 80)));
    assert_eq!(
        front_end.run("espada_xdp", &first),
        Ran::Passed,
        "the kernel reassembles"
    );
    // Its counters go on counting when an SA is installed again.
    assert_eq!(front_end.received(SPI).0, 5);
    front_end.remove_xsk(0, 0).unwrap();
    assert_eq!(front_end.run("espada_xdp", &esp_frame), Ran::Passed);
    // Of two lanes, of which one has a socket, each gets some of the SAs.
    front_end.set_xsk(1, 0, &socket.as_raw_fd()).unwrap();
    let mut ran = [0; 2];
    for spi in SPI..SPI + 32 {
        let steering = Steering::Xsk { lanes: 2 };
        front_end.add_sa(spi, address(US), steering).unwrap();
        match front_end.run("espada_xdp", &frame(&native(PEER, US, spi))) {
            Ran::Passed => ran[0] += 1,
            Ran::Steered => ran[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(ran[0] >= 8 && ran[1] >= 8, "{ran:?}");
    assert!(front_end.set_xsk(0, 256, &socket.as_raw_fd()).is_err());
    assert!(front_end.set_xsk(64, 0, &socket.as_raw_fd()).is_err());
    front_end.remove_xsk(1, 0).unwrap();
}

#[test]
fn bpf_programs_stand_aside_for_another_abi() {
    let Some(mut front_end) = gateway("bpf_programs_stand_aside_for_another_abi") else {
        return;
    };
    front_end.maps.configure_version(1, 0).unwrap();
    for program in ["espada_xdp", "espada_tc_in", "espada_tc_out"] {
        assert_eq!(
            front_end.run(program, &frame(&native(PEER, US, 4711))),
            Ran::Passed
        );
    }
    assert_eq!(front_end.counters().unwrap().drops, [0; DropReason::COUNT]);
}

/// Not a measurement to publish, but a bound that an accidental loop or copy would break.
#[test]
fn bpf_cost_per_packet() {
    let Some(mut front_end) = gateway("bpf_cost_per_packet") else {
        return;
    };
    front_end
        .set_policies(&[pair("10.0.0.0/8", "192.168.0.0/16")])
        .unwrap();
    let cases = [
        ("ESP in UDP", frame(&in_udp(PEER, US, SPI))),
        ("native ESP, IPv6", frame(&native(PEER6, US6, SPI + 1))),
        ("clear", frame(&clear("10.0.0.1", "192.168.0.1"))),
    ];
    for (name, packet) in cases {
        let xdp: &mut Xdp =
            attaching::loaded(&mut front_end.ebpf, "espada_xdp", Xdp::load).unwrap();
        let result = xdp
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                repeat: 100_000,
                ..TestRunOptions::default()
            })
            .unwrap();
        println!("espada_xdp, {name}: {} ns", result.duration.as_nanos());
        assert!(
            result.duration < Duration::from_micros(20),
            "{name}: {:?}",
            result.duration
        );
    }
}
