//! The eBPF engine between two namespaces, and against the userspace engine.

use std::path::PathBuf;

use super::*;
use crate::frontend::{Leftovers, pin};

/// A plane with only the eBPF engine, whose maps are pinned in a folder of its own.
fn start_ebpf(pair: &Pair, side: usize, sink: EventSink) -> Result<Plane, BackendError> {
    pair.inside(side, || {
        let front_end = FrontEnd::attach(&Options {
            interfaces: vec!["wan0".into()],
            mode: ModeChoice::XdpNative,
            drop_unknown_spi: true,
            pin_dir: Some(pins(pair, side)),
            leftovers: Leftovers::Adopt,
            engine: true,
            ..Options::default()
        })
        .unwrap();
        Plane::start(Config {
            engines: vec![EngineKind::Ebpf],
            left_out: Vec::new(),
            tun: "espada0".into(),
            mtu: None,
            wan: vec!["wan0".into()],
            udp: sockets(),
            esp: esp::Config::default(),
            front_end: Some(front_end),
            xsk: XskMode::Auto,
            lan: Vec::new(),
            workers: crate::userspace::Workers::default(),
            xfrm: crate::xfrm::Options::default(),
            sink,
        })
    })
}

fn pins(pair: &Pair, side: usize) -> PathBuf {
    pin::instance_dir(&pair.names[side])
}

fn chacha(side: usize, v6: bool, encapsulation: Encapsulation, id: u64, esn: bool) -> ChildSa {
    let mut sa = sa(side, v6, encapsulation, id);
    sa.suite = EspSuite {
        cipher: Cipher::ChaCha20Poly1305,
        integrity: None,
        esn,
    };
    sa
}

fn install(plane: &mut Plane, side: usize, sa: ChildSa) {
    plane.apply(Command::InstallPolicy(policy(side))).unwrap();
    plane.apply(Command::InstallSa(Box::new(sa))).unwrap();
}

/// Both sides with the eBPF engine.
fn both(v6: bool, encapsulation: Encapsulation, esn: bool) {
    let Some(pair) = Pair::new() else { return };
    let mut planes = [0, 1].map(|side| {
        let mut plane = start_ebpf(&pair, side, quiet()).unwrap();
        install(&mut plane, side, chacha(side, v6, encapsulation, 1, esn));
        plane
    });
    for inner_v6 in [false, true] {
        ping(&pair, inner_v6);
        tcp(&pair, inner_v6, 1_000_000);
    }
    carried(&mut planes);
    for plane in &mut planes {
        assert_eq!(plane.carrier(ChildSaId(1)).unwrap().engine, "ebpf");
        let totals = plane.drop_totals().unwrap();
        assert_eq!(totals.front_end.iter().sum::<u64>(), 0, "{totals:?}");
        assert_eq!(totals.inbound.iter().sum::<u64>(), 0, "{totals:?}");
    }
    drop(planes);
    for side in [0, 1] {
        assert!(!pins(&pair, side).exists());
        let links = run(&format!("ip -n {} link", pair.names[side]));
        assert!(!links.contains("espada0"), "{links}");
        assert!(!links.contains("xdp"), "{links}");
    }
}

#[test]
fn netns_ebpf_native_over_ipv4() {
    both(false, Encapsulation::Esp, true);
}

#[test]
fn netns_ebpf_native_over_ipv6() {
    both(true, Encapsulation::Esp, false);
}

#[test]
fn netns_ebpf_in_udp_over_ipv4() {
    both(false, Encapsulation::Udp, false);
}

#[test]
fn netns_ebpf_in_udp_over_ipv6() {
    both(true, Encapsulation::Udp, true);
}

/// Against the userspace engine, both directions of initiation and encapsulations.
#[test]
fn netns_ebpf_and_userspace_understand_each_other() {
    for (v6, encapsulation) in [
        (false, Encapsulation::Esp),
        (true, Encapsulation::Udp),
        (false, Encapsulation::Udp),
    ] {
        let Some(pair) = Pair::new() else { return };
        let mut planes = [
            start_ebpf(&pair, 0, quiet()).unwrap(),
            start_behind(&pair, 1, quiet(), Some(ModeChoice::XdpNative)),
        ];
        for (side, plane) in planes.iter_mut().enumerate() {
            install(plane, side, chacha(side, v6, encapsulation, 1, true));
        }
        for inner_v6 in [false, true] {
            ping(&pair, inner_v6);
            tcp(&pair, inner_v6, 300_000);
        }
        carried(&mut planes);
    }
}

#[test]
fn netns_ebpf_rekey_under_traffic_loses_nothing() {
    let Some(pair) = Pair::new() else { return };
    let make = |side: usize, id: u64| chacha(side, false, Encapsulation::Esp, id, true);
    let mut planes = [0, 1].map(|side| {
        let mut plane = start_ebpf(&pair, side, quiet()).unwrap();
        install(&mut plane, side, make(side, 1));
        plane
    });
    rekey_under_traffic(&pair, &mut planes, &make);
}

#[test]
fn netns_ebpf_acquires_and_expires() {
    let Some(pair) = Pair::new() else { return };
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink: EventSink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let mut planes = [
        start_ebpf(&pair, 0, sink).unwrap(),
        start_ebpf(&pair, 1, quiet()).unwrap(),
    ];
    for (side, plane) in planes.iter_mut().enumerate() {
        plane.apply(Command::InstallPolicy(policy(side))).unwrap();
    }
    let once = |size: u32| {
        Process::new("ip")
            .args([
                "netns",
                "exec",
                &pair.names[0],
                "ping",
                "-c",
                "1",
                "-W",
                "1",
            ])
            .args(["-s", &size.to_string(), "10.2.0.1"])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(!once(56));
    assert!(planes[0].drop_totals().unwrap().outbound[DropReason::NoSa as usize] > 0);
    let acquired = events.lock().unwrap().iter().any(|event| {
        matches!(event, Event::Acquire { connection, destination, .. }
            if **connection == *"test" && *destination == inner(1, false))
    });
    assert!(acquired, "{:?}", events.lock().unwrap());

    for (side, plane) in planes.iter_mut().enumerate() {
        let mut sa = chacha(side, false, Encapsulation::Esp, 1, false);
        sa.lifetime = Duration::from_secs(2);
        plane.apply(Command::InstallSa(Box::new(sa))).unwrap();
    }
    assert!(once(56));
    std::thread::sleep(Duration::from_millis(2100));
    assert!(!once(56));
    let stats = planes[0].sa_stats().unwrap();
    assert!(
        stats[0].outbound.drops[DropReason::Expired as usize] > 0,
        "{stats:?}"
    );
}
