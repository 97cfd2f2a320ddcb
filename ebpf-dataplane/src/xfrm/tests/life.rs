//! What becomes of states and policies: events, moves, the end, and other people's.

use std::time::Duration;

use espada_common::sa::{Encapsulation, Event, TrafficSelector};

use super::harness::*;
use super::*;

const NATIVE: Encapsulation = Encapsulation::Esp;

fn engine(gateway: &mut Gateway) -> &mut XfrmEngine {
    match gateway {
        Gateway::Xfrm(engine) => engine,
        Gateway::Plane(_) => panic!("not the kernel's"),
    }
}

#[test]
fn netns_ip_shows_what_a_user_expects() {
    let Some(pair) = Hosts::with_esp("ip_shows_what_a_user_expects") else {
        return;
    };
    let mut gateway = xfrm_gateway(&pair, 0, quiet());
    let trap = pair.ip(0, "xfrm policy");
    assert_eq!(trap.matches("dir out").count(), 2, "{trap}");
    assert!(trap.contains("if_id 0x45000000"), "{trap}");
    gateway.apply(Command::InstallSa(Box::new(sa(0, false, NATIVE, GCM, 1))));
    let states = pair.ip(0, "xfrm state");
    for part in [
        "src 192.0.2.1 dst 192.0.2.2",
        "proto esp spi 0x10000003 reqid 1157627905 mode tunnel",
        "aead rfc4106(gcm(aes))",
        "replay_window 4096",
        "esn",
        "if_id 0x45000000",
    ] {
        assert!(states.contains(part), "{part}: {states}");
    }
    let policies = pair.ip(0, "xfrm policy");
    for direction in ["dir in", "dir fwd", "dir out"] {
        assert_eq!(policies.matches(direction).count(), 2, "{policies}");
    }
    assert!(
        policies.contains("src 10.1.0.0/24 dst 10.2.0.0/24"),
        "{policies}"
    );
    assert!(
        policies.contains("proto esp spi 0x10000003 reqid 1157627905 mode tunnel"),
        "{policies}"
    );
    let link = pair.ip(0, "-d link show dev espada0");
    assert!(link.contains("xfrm") && link.contains("mtu 1500"), "{link}");
    // Without trap there is nothing to ask for.
    gateway.apply(Command::RemoveSa { id: ChildSaId(1) });
    gateway.apply(Command::InstallPolicy(Policy {
        trap: false,
        ..policy(0)
    }));
    let blocked = pair.ip(0, "xfrm policy");
    assert_eq!(blocked.matches("action block").count(), 2, "{blocked}");
    drop(gateway);
    assert_eq!(pair.ip(0, "xfrm policy"), "");
    assert_eq!(pair.ip(0, "xfrm state"), "");
    assert!(!pair.ip(0, "link").contains("espada0"));
}

#[test]
fn netns_a_packet_without_sa_is_dropped_and_asked_for() {
    let Some(pair) = Hosts::with_esp("a_packet_without_sa_is_dropped_and_asked_for") else {
        return;
    };
    let (sink, events) = recorder();
    let mut gateway = xfrm_gateway(&pair, 0, sink);
    pair.unanswered(inner(0, false), inner(1, false));
    until("an acquire event", || {
        events.lock().unwrap().iter().any(|event| {
            matches!(event, Event::Acquire { connection, source, destination }
                if **connection == *"test" && *source == inner(0, false)
                    && *destination == inner(1, false))
        })
    });
    let totals = engine(&mut gateway).drop_totals().unwrap();
    assert!(totals[1][DropReason::NoSa as usize] > 0, "{totals:?}");
    // What waits for its keys goes with the engine.
    assert!(pair.ip(0, "xfrm state").contains("spi 0x00000000"));
    drop(gateway);
    assert_eq!(pair.ip(0, "xfrm state"), "");

    // Without trap it is dropped in silence.
    let (sink, events) = recorder();
    let mut gateway = Gateway::Xfrm(Box::new(start(&pair, 0, sink)));
    gateway.apply(Command::InstallPolicy(Policy {
        trap: false,
        ..policy(0)
    }));
    pair.route(0);
    pair.unanswered(inner(0, false), inner(1, false));
    let totals = engine(&mut gateway).drop_totals().unwrap();
    assert!(totals[1][DropReason::NoSa as usize] >= 5, "{totals:?}");
    assert!(events.lock().unwrap().is_empty(), "{events:?}");
    // Nothing of all this was to be seen on the wire.
    let wire = pair.ip(1, "-s -s xfrm state");
    assert_eq!(wire, "");
}

#[test]
fn netns_a_pair_ends_with_its_lifetime() {
    let Some(pair) = Hosts::with_esp("a_pair_ends_with_its_lifetime") else {
        return;
    };
    let (sink, events) = recorder();
    let mut gateway = xfrm_gateway(&pair, 0, sink);
    let short = ChildSa {
        lifetime: Duration::from_secs(2),
        ..sa(0, false, NATIVE, GCM, 1)
    };
    gateway.apply(Command::InstallSa(Box::new(short)));
    assert!(pair.ip(0, "xfrm state").contains("spi 0x10000003"));
    let ends = || {
        let events = events.lock().unwrap();
        let ends = events.iter().filter(|event| {
            matches!(
                event,
                Event::Expire {
                    id: ChildSaId(1),
                    hard: true
                }
            )
        });
        ends.count()
    };
    until("the pair expires", || ends() > 0);
    until("its states are gone", || {
        !pair.ip(0, "xfrm state").contains("spi 0x1000000")
    });
    assert_eq!(gateway.stats().len(), 1);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ends(), 1);
    gateway.apply(Command::RemoveSa { id: ChildSaId(1) });
    assert!(gateway.stats().is_empty());

    // One that somebody else removes is noticed with the counters.
    gateway.apply(Command::InstallSa(Box::new(sa(0, false, NATIVE, GCM, 2))));
    pair.ip(0, "xfrm state flush");
    gateway.stats();
    gateway.stats();
    let events = events.lock().unwrap();
    let gone = events.iter().filter(|event| {
        matches!(
            event,
            Event::Expire {
                id: ChildSaId(2),
                hard: true
            }
        )
    });
    assert_eq!(gone.count(), 1, "{events:?}");
}

#[test]
fn netns_other_peoples_states_stay() {
    let Some(pair) = Hosts::with_esp("other_peoples_states_stay") else {
        return;
    };
    let key = format!("0x{}", "42".repeat(20));
    pair.ip(
        0,
        &format!(
            "xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x10000003 reqid 5 mode tunnel \
             aead rfc4106(gcm(aes)) {key} 128"
        ),
    );
    pair.ip(
        0,
        "xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out priority 7 \
         tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 5 mode tunnel",
    );
    pair.ip(0, "link add other type xfrm if_id 0x45000000");
    let foreign = || {
        let states = pair.ip(0, "xfrm state list reqid 5");
        (states, pair.ip(0, "xfrm policy"))
    };
    let before = foreign();

    // A free interface id is found beside the other's.
    let mut gateway = xfrm_gateway(&pair, 0, quiet());
    let link = pair.ip(0, "-d link show dev espada0");
    assert!(link.contains("if_id 0x45010000"), "{link}");
    gateway.apply(Command::InstallSa(Box::new(sa(0, false, NATIVE, GCM, 1))));

    // States and policies that are taken are not taken over.
    let mut clash = sa(0, false, NATIVE, GCM, 2);
    clash.outbound.spi = 0x1000_0003;
    clash.path.remote = "192.0.2.9:0".parse().unwrap();
    let error = engine(&mut gateway)
        .apply(&Command::InstallSa(Box::new(clash)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("another program"), "{error}");
    let host = |text: &str| vec![TrafficSelector::host(text.parse().unwrap())];
    pair.ip(
        0,
        "xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 dir in action allow",
    );
    let error = engine(&mut gateway)
        .apply(&Command::InstallPolicy(Policy {
            connection: "clash".into(),
            local_ts: host("192.0.2.2"),
            remote_ts: host("192.0.2.1"),
            trap: true,
            mode: Mode::Transport,
            addresses: Vec::new(),
        }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("another program"), "{error}");
    pair.ip(
        0,
        "xfrm policy delete src 192.0.2.1/32 dst 192.0.2.2/32 dir in",
    );

    // A crash leaves everything behind; the next instance removes what is its own.
    gateway.apply(Command::InstallPolicy(Policy {
        connection: "host".into(),
        local_ts: host("192.0.2.1"),
        remote_ts: host("192.0.2.2"),
        trap: true,
        mode: Mode::Transport,
        addresses: Vec::new(),
    }));
    assert!(pair.ip(0, "xfrm policy").matches("if_id").count() >= 6);
    let Gateway::Xfrm(mut crashed) = gateway else {
        return;
    };
    crashed.listener.stop();
    crashed.udp.clear();
    std::mem::forget(crashed);
    let left = pair.ip(0, "xfrm policy");
    assert!(left.contains("priority 17665"), "{left}");
    let next = start(&pair, 0, quiet());
    assert_eq!(foreign(), before);
    assert!(!pair.ip(0, "xfrm state").contains("if_id"));
    drop(next);
    assert_eq!(foreign(), before);
    assert!(pair.ip(0, "link").contains("other"));
}

#[test]
fn netns_a_foreign_interface_of_the_name_is_left_alone() {
    let Some(pair) = Hosts::with_esp("a_foreign_interface_of_the_name_is_left_alone") else {
        return;
    };
    let refused = |what: &str| {
        let error = pair
            .inside(0, || XfrmEngine::start(config(quiet())).map(drop))
            .unwrap_err()
            .to_string();
        assert!(error.contains(what), "{error}");
        assert!(pair.ip(0, "link").contains("espada0"));
    };
    pair.ip(0, "link add espada0 type xfrm if_id 7");
    refused("not Espada's");
    pair.ip(0, "link del espada0");
    pair.ip(0, "link add espada0 type veth peer name espada1");
    refused("no xfrm interface");
}

/// Sequence numbers as the kernel counts them, of the state with an SPI.
fn sequence(pair: &Hosts, side: usize, spi: &str) -> String {
    let states = pair.ip(side, &format!("xfrm state list spi {spi}"));
    let line = states.lines().find(|line| line.contains("oseq 0x"));
    line.unwrap_or_else(|| panic!("{states}")).trim().to_owned()
}

#[test]
fn netns_a_pair_moves_with_its_sequence_numbers() {
    let Some(pair) = Hosts::with_esp("a_pair_moves_with_its_sequence_numbers") else {
        return;
    };
    let mut gateways = [0, 1].map(|side| xfrm_gateway(&pair, side, quiet()));
    for (side, gateway) in gateways.iter_mut().enumerate() {
        gateway.apply(Command::InstallSa(Box::new(sa(
            side, false, NATIVE, GCM, 1,
        ))));
    }
    pair.ping(false);
    let before = [0, 1].map(|side| sequence(&pair, side, "0x10000003"));
    assert!(!before[0].contains("oseq 0x0,"), "{before:?}");
    let packets = gateways.each_mut().map(|gateway| gateway.stats().remove(0));
    pair.ip(0, "addr add 192.0.2.11/24 dev wan0");
    // Native to another local address, into UDP, over IPv6 and back: each end moves by itself.
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let places = [
        (address("192.0.2.11:0"), address("192.0.2.2:0"), NATIVE),
        (
            address("192.0.2.11:4500"),
            address("192.0.2.2:4500"),
            Encapsulation::Udp,
        ),
        (
            address("[2001:db8:1::1]:4500"),
            address("[2001:db8:1::2]:4500"),
            Encapsulation::Udp,
        ),
        (address("192.0.2.1:0"), address("192.0.2.2:0"), NATIVE),
    ];
    for (first, place) in places.into_iter().enumerate() {
        let (local, remote, encapsulation) = place;
        for (side, gateway) in gateways.iter_mut().enumerate() {
            let (local, remote) = if side == 0 {
                (local, remote)
            } else {
                (remote, local)
            };
            let path = Path {
                local,
                remote,
                encapsulation,
            };
            let id = ChildSaId(1);
            gateway.apply(Command::MovePath { id, path });
        }
        if first == 0 {
            let after = [0, 1].map(|side| sequence(&pair, side, "0x10000003"));
            assert_eq!(before, after);
        }
        pair.ping(false);
        tcp(&pair, true, 20_000);
    }
    let now = gateways.each_mut().map(|gateway| gateway.stats().remove(0));
    for (then, now) in packets.iter().zip(&now) {
        // Four rounds more of what the first brought, and then some.
        assert!(
            now.inbound.packets > 5 * then.inbound.packets,
            "{then:?} {now:?}"
        );
        assert_eq!(now.inbound.drops, [0; DropReason::COUNT]);
    }
}

#[test]
fn netns_a_nat_that_changes_ports_is_reported_and_followed() {
    let Some(pair) = Hosts::with_esp("a_nat_that_changes_ports_is_reported_and_followed") else {
        return;
    };
    let (sink, events) = recorder();
    let mut gateways = [
        xfrm_gateway(&pair, 0, quiet()),
        xfrm_gateway(&pair, 1, sink),
    ];
    for (side, gateway) in gateways.iter_mut().enumerate() {
        let sa = sa(side, false, Encapsulation::Udp, GCM, 1);
        gateway.apply(Command::InstallSa(Box::new(sa)));
    }
    pair.ping(false);
    assert!(events.lock().unwrap().is_empty(), "{events:?}");
    // The NAT: side 0 sends from another port and takes what comes to it.
    let socket = pair.inside(0, || {
        let socket = UdpSocket::bind("192.0.2.1:40000").unwrap();
        syscall::set_option(socket.as_fd(), libc::SOL_UDP, 100, 2).unwrap();
        socket
    });
    let path = |side: usize| {
        let mut path = sa(side, false, Encapsulation::Udp, GCM, 1).path;
        if side == 0 {
            path.local.set_port(40_000);
        } else {
            path.remote.set_port(40_000);
        }
        path
    };
    let before = gateways[1].stats().remove(0).inbound.packets;
    let id = ChildSaId(1);
    gateways[0].apply(Command::MovePath { id, path: path(0) });
    // These are answered to where the peer was, which this NAT lets pass.
    pair.answered(inner(0, false), inner(1, false), 56);
    let moved = SocketAddr::new(wan(0, false), 40_000);
    until("the new port is reported", || {
        events.lock().unwrap().iter().any(
            |event| matches!(event, Event::NatMoved { id: ChildSaId(1), remote } if *remote == moved),
        )
    });
    gateways[1].apply(Command::MovePath { id, path: path(1) });
    pair.ping(false);
    let after = gateways[1].stats().remove(0).inbound.packets;
    assert!(after >= before + 5, "{before} {after}");
    std::thread::sleep(Duration::from_millis(1200));
    events.lock().unwrap().clear();
    pair.ping(false);
    assert!(events.lock().unwrap().is_empty(), "{events:?}");
    drop(socket);
}

#[test]
fn netns_marks_reach_the_kernel() {
    let Some(pair) = Hosts::with_esp("marks_reach_the_kernel") else {
        return;
    };
    let mark = |value| Some(Mark { value, mask: 0xff });
    let mut engine = pair.inside(0, || {
        XfrmEngine::start(Config {
            options: Options {
                mark: mark(0x11),
                output_mark: mark(0x22),
                ..Options::default()
            },
            ..config(quiet())
        })
        .unwrap()
    });
    engine.apply(&Command::InstallPolicy(policy(0))).unwrap();
    let sa = Box::new(sa(0, false, NATIVE, GCM, 1));
    engine.apply(&Command::InstallSa(sa)).unwrap();
    let states = pair.ip(0, "xfrm state");
    assert_eq!(states.matches("mark 0x11/0xff").count(), 2, "{states}");
    assert!(states.contains("output-mark 0x22/0xff"), "{states}");
    let policies = pair.ip(0, "xfrm policy");
    assert_eq!(policies.matches("mark 0x11/0xff").count(), 6, "{policies}");
    engine
        .apply(&Command::RemoveSa { id: ChildSaId(1) })
        .unwrap();
    assert_eq!(pair.ip(0, "xfrm state"), "");
    drop(engine);
    assert_eq!(pair.ip(0, "xfrm policy"), "");
}

#[test]
fn netns_what_the_kernel_cannot_is_told() {
    let Some(pair) = Hosts::with_esp("what_the_kernel_cannot_is_told") else {
        return;
    };
    let engine = start(&pair, 0, quiet());
    let plain = || sa(0, false, NATIVE, GCM, 1);
    let refused = |sa: ChildSa, what: &str| {
        let why = engine.supports(&sa).unwrap_err();
        assert!(why.contains(what), "{why}");
    };
    assert_eq!(engine.supports(&plain()), Ok(()));
    let mut wide = plain();
    wide.replay_window = 5000;
    refused(wide, "4096");
    let mut none = plain();
    none.replay_window = 0;
    refused(none, "replay_window");
    let mut mixed = plain();
    mixed.path.remote = "[2001:db8:1::2]:0".parse().unwrap();
    refused(mixed, "two address families");
    let mut opaque = plain();
    opaque.local_ts = vec![subnet(0)[0].with_ports(6, u16::MAX, 0)];
    refused(opaque, "OPAQUE");
    let mut networks = plain();
    networks.mode = Mode::Transport;
    refused(networks, "transport mode for other addresses");
}

/// Two peers of one connection: neither may use the other's addresses.
#[test]
fn netns_peers_are_kept_apart() {
    let Some(pair) = Hosts::with_esp("peers_are_kept_apart") else {
        return;
    };
    pair.ip(1, "addr add 192.0.2.3/24 dev wan0");
    pair.ip(1, "addr add 10.3.0.1/32 dev lo");
    let mut gateways = [0, 1].map(|side| xfrm_gateway(&pair, side, quiet()));
    pair.ip(0, "route add 10.3.0.0/24 dev espada0 src 10.1.0.1");
    let third = TrafficSelector::prefix("10.3.0.0".parse().unwrap(), 24).unwrap();
    for (side, gateway) in gateways.iter_mut().enumerate() {
        gateway.apply(Command::InstallSa(Box::new(sa(
            side, false, NATIVE, GCM, 1,
        ))));
        let mut other = sa(side, false, NATIVE, GCM, 2);
        let (selectors, end) = if side == 0 {
            (&mut other.remote_ts, &mut other.path.remote)
        } else {
            (&mut other.local_ts, &mut other.path.local)
        };
        *selectors = vec![third];
        end.set_ip("192.0.2.3".parse().unwrap());
        gateway.apply(Command::InstallSa(Box::new(other)));
    }
    pair.ping(false);
    let third = "10.3.0.1".parse().unwrap();
    pair.answered(inner(0, false), third, 56);
    // The second peer's packets with the first's addresses are refused.
    let before = engine(&mut gateways[0]).drop_totals().unwrap();
    let theirs = sa(1, false, NATIVE, GCM, 2);
    pair.ip(
        1,
        &format!(
            "xfrm policy update src 10.2.0.0/24 dst 10.1.0.0/24 dir out if_id 0x45000000 \
             tmpl src 192.0.2.3 dst 192.0.2.1 proto esp spi {:#x} reqid 1157627905 mode tunnel",
            theirs.outbound.spi
        ),
    );
    pair.unanswered(inner(0, false), inner(1, false));
    let after = engine(&mut gateways[0]).drop_totals().unwrap();
    let mismatches =
        |totals: &[[u64; DropReason::COUNT]; 2]| totals[0][DropReason::SelectorMismatch as usize];
    assert!(mismatches(&after) >= mismatches(&before) + 5, "{after:?}");
}
