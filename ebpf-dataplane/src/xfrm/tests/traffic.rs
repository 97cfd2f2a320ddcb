//! Packets through the kernel's ESP: against itself and against the userspace engine.

use std::time::Duration;

use espada_common::sa::{Cipher, EspSuite, Event, GcmIcv, Integrity, Takeover, TrafficSelector};

use super::harness::*;
use super::*;
use crate::plane::EngineKind;

/// Both inner families and sizes that need fragments over one kind of path.
fn end_to_end(test: &str, v6: bool, encapsulation: Encapsulation, userspace_peer: bool) {
    let Some(pair) = Hosts::with_esp(test) else {
        return;
    };
    let peer = if userspace_peer {
        let mut peer = Gateway::Plane(Box::new(start_plane(&pair, 1, EngineKind::Userspace)));
        peer.apply(Command::InstallPolicy(policy(1)));
        peer
    } else {
        xfrm_gateway(&pair, 1, quiet())
    };
    let mut gateways = [xfrm_gateway(&pair, 0, quiet()), peer];
    for (side, gateway) in gateways.iter_mut().enumerate() {
        let sa = Box::new(sa(side, v6, encapsulation, GCM, 1));
        gateway.apply(Command::InstallSa(sa));
    }
    for inner_v6 in [false, true] {
        pair.ping(inner_v6);
        tcp(&pair, inner_v6, 200_000);
    }
    carried(&mut gateways);
}

#[test]
fn netns_native_over_ipv4() {
    end_to_end("native_over_ipv4", false, Encapsulation::Esp, false);
}

#[test]
fn netns_native_over_ipv6() {
    end_to_end("native_over_ipv6", true, Encapsulation::Esp, false);
}

#[test]
fn netns_udp_over_ipv4() {
    end_to_end("udp_over_ipv4", false, Encapsulation::Udp, false);
}

#[test]
fn netns_udp_over_ipv6() {
    end_to_end("udp_over_ipv6", true, Encapsulation::Udp, false);
}

#[test]
fn netns_native_over_ipv4_with_userspace() {
    end_to_end(
        "native_over_ipv4_with_userspace",
        false,
        Encapsulation::Esp,
        true,
    );
}

#[test]
fn netns_native_over_ipv6_with_userspace() {
    end_to_end(
        "native_over_ipv6_with_userspace",
        true,
        Encapsulation::Esp,
        true,
    );
}

#[test]
fn netns_udp_over_ipv4_with_userspace() {
    end_to_end(
        "udp_over_ipv4_with_userspace",
        false,
        Encapsulation::Udp,
        true,
    );
}

#[test]
fn netns_udp_over_ipv6_with_userspace() {
    end_to_end(
        "udp_over_ipv6_with_userspace",
        true,
        Encapsulation::Udp,
        true,
    );
}

/// Every suite, with and without ESN, between the kernel and, where it has the suite, the userspace
/// engine.
#[test]
fn netns_every_suite() {
    let Some(pair) = Hosts::with_esp("every_suite") else {
        return;
    };
    let mut suites = vec![(Cipher::ChaCha20Poly1305, None)];
    for bits in [128, 192, 256] {
        for icv in [GcmIcv::Eight, GcmIcv::Twelve, GcmIcv::Sixteen] {
            suites.push((Cipher::AesGcm(bits, icv), None));
        }
        suites.push((Cipher::AesCbc(bits), Some(Integrity::HmacSha256_128)));
    }
    for integrity in [
        Integrity::HmacSha1_96,
        Integrity::HmacSha384_192,
        Integrity::HmacSha512_256,
    ] {
        suites.push((Cipher::AesCbc(256), Some(integrity)));
    }
    let mut kernel = [0, 1].map(|side| Some(xfrm_gateway(&pair, side, quiet())));
    let mut id = 0;
    let mut checked = 0;
    for userspace in [false, true] {
        if userspace {
            drop(kernel[1].take());
            let mut peer = Gateway::Plane(Box::new(start_plane(&pair, 1, EngineKind::Userspace)));
            peer.apply(Command::InstallPolicy(policy(1)));
            kernel[1] = Some(peer);
        }
        for (cipher, integrity) in &suites {
            for esn in [false, true] {
                let suite = EspSuite {
                    cipher: *cipher,
                    integrity: *integrity,
                    esn,
                };
                if userspace && !crate::esp::crypto::supports(&suite) {
                    continue;
                }
                id += 1;
                for (side, gateway) in kernel.iter_mut().flatten().enumerate() {
                    let sa = sa(side, false, Encapsulation::Esp, suite, id);
                    if let Gateway::Xfrm(engine) = gateway {
                        assert_eq!(engine.supports(&sa), Ok(()), "{suite}");
                    }
                    gateway.apply(Command::InstallSa(Box::new(sa)));
                }
                for size in [1, 1300] {
                    pair.answered(inner(0, false), inner(1, false), size);
                }
                let id = ChildSaId(id);
                for gateway in kernel.iter_mut().flatten() {
                    let stats = gateway.stats().remove(0);
                    assert!(stats.inbound.packets >= 10, "{suite}: {stats:?}");
                    gateway.apply(Command::RemoveSa { id });
                }
                checked += 1;
            }
        }
    }
    println!("{checked} suites");
}

/// Ten rekeys while numbered packets go both ways; the initiator of a rekey takes the new pair at
/// once, the responder when the old one is removed. Not one packet is lost or comes twice.
fn rekey_under_traffic(test: &str, userspace_peer: bool, encapsulation: Encapsulation) {
    let Some(pair) = Hosts::with_esp(test) else {
        return;
    };
    let peer = if userspace_peer {
        let mut peer = Gateway::Plane(Box::new(start_plane(&pair, 1, EngineKind::Userspace)));
        peer.apply(Command::InstallPolicy(policy(1)));
        peer
    } else {
        xfrm_gateway(&pair, 1, quiet())
    };
    let mut gateways = [xfrm_gateway(&pair, 0, quiet()), peer];
    for (side, gateway) in gateways.iter_mut().enumerate() {
        let sa = Box::new(sa(side, false, encapsulation, GCM, 1));
        gateway.apply(Command::InstallSa(sa));
    }
    pair.ping(false);
    let streams: Vec<_> = [(0, 1), (1, 0)]
        .into_iter()
        .map(|(from, to)| Stream::start(&pair, from, to))
        .collect();
    for id in 2..12u64 {
        std::thread::sleep(Duration::from_millis(60));
        // Either end initiates in turn.
        let initiator = (id % 2) as usize;
        let responder = 1 - initiator;
        // The responder's own rekey has crossed, and does not prevail.
        let crossed = ChildSaId(id + 100);
        gateways[initiator].apply(Command::RekeySa {
            old: ChildSaId(id - 1),
            new: Box::new(sa(initiator, false, encapsulation, GCM, crossed.0)),
            takeover: Takeover::WithRemoval,
        });
        for (side, takeover) in [
            (responder, Takeover::WithRemoval),
            (initiator, Takeover::Now),
        ] {
            let new = Box::new(sa(side, false, encapsulation, GCM, id));
            let old = ChildSaId(id - 1);
            gateways[side].apply(Command::RekeySa { old, new, takeover });
        }
        let mut pairs = |side: usize| {
            let stats = gateways[side].stats();
            let of = |id| {
                stats
                    .iter()
                    .find(|s| s.id == ChildSaId(id))
                    .unwrap()
                    .clone()
            };
            (of(id - 1), of(id))
        };
        // The initiator sends on the new pair, the responder still on the old one, and what was
        // under way on the old one has arrived.
        until("the initiator sends on the new pair alone", || {
            let (sending, receiving) = (pairs(initiator), pairs(responder));
            assert_eq!(receiving.1.outbound.packets, 0);
            sending.1.outbound.packets > 10
                && sending.0.outbound.packets == receiving.0.inbound.packets
                && receiving.0.outbound.packets > 10
        });
        let old = ChildSaId(id - 1);
        gateways[responder].apply(Command::Retire { id: old });
        std::thread::sleep(Duration::from_millis(50));
        for side in [responder, initiator] {
            gateways[side].apply(Command::RemoveSa { id: old });
        }
        let stats = gateways[initiator].stats();
        let unused = stats.iter().find(|stats| stats.id == crossed).unwrap();
        assert_eq!(unused.outbound.packets, 0, "it never sends");
        gateways[initiator].apply(Command::RemoveSa { id: crossed });
    }
    for stream in streams {
        stream.finish();
    }
}

#[test]
fn netns_rekey_under_traffic_loses_nothing() {
    rekey_under_traffic(
        "rekey_under_traffic_loses_nothing",
        false,
        Encapsulation::Esp,
    );
}

#[test]
fn netns_rekey_under_traffic_in_udp_with_userspace() {
    rekey_under_traffic(
        "rekey_under_traffic_in_udp_with_userspace",
        true,
        Encapsulation::Udp,
    );
}

/// Between the hosts themselves; IKE and neighbour discovery are left alone.
fn transport(test: &str, v6: bool) {
    let Some(pair) = Hosts::with_esp(test) else {
        return;
    };
    let host = |side| vec![TrafficSelector::host(wan(side, v6))];
    let mut gateways = [0, 1].map(|side| Gateway::Xfrm(Box::new(start(&pair, side, quiet()))));
    for (side, gateway) in gateways.iter_mut().enumerate() {
        gateway.apply(Command::InstallPolicy(Policy {
            local_ts: host(side),
            remote_ts: host(1 - side),
            mode: Mode::Transport,
            ..policy(side)
        }));
    }
    let ends = [0, 1].map(|side| wan(side, v6));
    // Protected before there is an SA, in both directions.
    pair.unanswered(ends[0], ends[1]);
    // IKE passes in clear, whatever else happens.
    let receiver = pair.inside(1, || {
        let socket = UdpSocket::bind((wan(1, v6), 500)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    });
    pair.inside(0, || {
        let socket = UdpSocket::bind((wan(0, v6), 500)).unwrap();
        socket.send_to(b"ike", (wan(1, v6), 500)).unwrap();
    });
    let mut octets = [0; 8];
    assert_eq!(receiver.recv(&mut octets).unwrap(), 3);
    for (side, gateway) in gateways.iter_mut().enumerate() {
        let sa = ChildSa {
            mode: Mode::Transport,
            local_ts: host(side),
            remote_ts: host(1 - side),
            ..sa(side, v6, Encapsulation::Esp, GCM, 1)
        };
        if let Gateway::Xfrm(engine) = gateway {
            assert_eq!(engine.supports(&sa), Ok(()));
        }
        gateway.apply(Command::InstallSa(Box::new(sa)));
    }
    pair.ip(0, "neigh flush all");
    for size in [0, 56, 1400, 3000] {
        pair.answered(ends[0], ends[1], size);
    }
    carried(&mut gateways);
    let states = pair.ip(0, "xfrm state");
    assert!(
        states.contains("mode transport") && !states.contains("if_id"),
        "{states}"
    );
    for gateway in &mut gateways {
        gateway.apply(Command::RemoveSa { id: ChildSaId(1) });
        gateway.apply(Command::RemovePolicy {
            connection: "test".into(),
        });
    }
    // In clear again.
    pair.answered(ends[0], ends[1], 56);
}

#[test]
fn netns_transport_over_ipv4() {
    transport("transport_over_ipv4", false);
}

#[test]
fn netns_transport_over_ipv6() {
    transport("transport_over_ipv6", true);
}

/// A policy for one port protects that and nothing else of the subnets.
#[test]
fn netns_ports_select() {
    let Some(pair) = Hosts::with_esp("ports_select") else {
        return;
    };
    let mut gateways = [0, 1].map(|side| xfrm_gateway(&pair, side, quiet()));
    for (side, gateway) in gateways.iter_mut().enumerate() {
        let mut sa = sa(side, false, Encapsulation::Esp, GCM, 1);
        // TCP from anywhere to port 7777 of side 1.
        let tcp = |selectors: &[TrafficSelector], end: usize| -> Vec<TrafficSelector> {
            let (first, last) = if end == 1 {
                (7777, 7777)
            } else {
                (0, u16::MAX)
            };
            let narrowed = selectors.iter().map(|ts| ts.with_ports(6, first, last));
            narrowed.collect()
        };
        sa.local_ts = tcp(&sa.local_ts, side);
        sa.remote_ts = tcp(&sa.remote_ts, 1 - side);
        gateway.apply(Command::InstallSa(Box::new(sa)));
    }
    tcp(&pair, false, 20_000);
    tcp(&pair, true, 20_000);
    pair.unanswered(inner(0, false), inner(1, false));
}

/// While the kernel takes ESP from the socket, IKE still comes up, without the marker, and what is
/// no ESP of ours is counted.
#[test]
fn netns_ike_passes_beside_esp_in_udp() {
    let Some(pair) = Hosts::with_esp("ike_passes_beside_esp_in_udp") else {
        return;
    };
    let (sink, events) = recorder();
    let mut gateway = xfrm_gateway(&pair, 0, sink);
    for v6 in [false, true] {
        let sa = sa(0, v6, Encapsulation::Udp, GCM, 1 + u64::from(v6));
        let forged = [
            &sa.inbound.spi.to_be_bytes()[..],
            &[0, 0, 0, 1],
            &[0x5a; 40],
        ]
        .concat();
        gateway.apply(Command::InstallSa(Box::new(sa)));
        pair.inside(1, || {
            let socket = UdpSocket::bind((wan(1, v6), 4500)).unwrap();
            // The kernel does not count very short ones over IPv6.
            let stranger = b"a SPI that nobody has, and then some more octets for good measure";
            for datagram in [&b"\0\0\0\0hello"[..], b"\xff", stranger, &forged] {
                socket.send_to(datagram, (wan(0, v6), 4500)).unwrap();
            }
        });
        until("IKE is passed on", || {
            events.lock().unwrap().iter().any(|event| {
                matches!(event, Event::IkeDatagram { local, remote, payload }
                    if payload == b"hello" && local.ip() == wan(0, v6)
                        && *remote == SocketAddr::new(wan(1, v6), 4500))
            })
        });
    }
    until("forged packets are counted", || {
        let forged = gateway.stats().into_iter().map(|stats| {
            assert_eq!(stats.inbound.packets, 0);
            stats.inbound.drops[DropReason::AuthFailed as usize]
        });
        forged.sum::<u64>() == 2
    });
    let Gateway::Xfrm(engine) = &mut gateway else {
        return;
    };
    let totals = engine.drop_totals().unwrap();
    assert_eq!(totals[0][DropReason::UnknownSpi as usize], 2, "{totals:?}");
    assert_eq!(events.lock().unwrap().len(), 2, "{events:?}");
}

/// Against ESP in XDP.
#[test]
fn netns_with_ebpf() {
    const CHACHA: EspSuite = EspSuite {
        cipher: Cipher::ChaCha20Poly1305,
        integrity: None,
        esn: true,
    };
    for (v6, encapsulation) in [
        (false, Encapsulation::Esp),
        (false, Encapsulation::Udp),
        (true, Encapsulation::Esp),
        (true, Encapsulation::Udp),
    ] {
        let Some(pair) = Hosts::with_esp("with_ebpf") else {
            return;
        };
        let mut peer = Gateway::Plane(Box::new(start_plane(&pair, 1, EngineKind::Ebpf)));
        peer.apply(Command::InstallPolicy(policy(1)));
        let mut gateways = [xfrm_gateway(&pair, 0, quiet()), peer];
        for (side, gateway) in gateways.iter_mut().enumerate() {
            let sa = Box::new(sa(side, v6, encapsulation, CHACHA, 1));
            gateway.apply(Command::InstallSa(sa));
        }
        for inner_v6 in [false, true] {
            pair.ping(inner_v6);
            tcp(&pair, inner_v6, 200_000);
        }
        carried(&mut gateways);
    }
}
