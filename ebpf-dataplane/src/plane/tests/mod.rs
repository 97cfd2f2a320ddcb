//! Two data planes in two network namespaces with hand-made SAs: packets through every engine and
//! WAN port. These need root; without it they say so and pass.

mod ebpf;
mod lanes;
pub(crate) mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command as Process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, Cipher, Encapsulation, EspSuite, Event, GcmIcv, HalfSa, Mode, Path, Policy,
    SecretBytes, Share, Takeover, TrafficSelector,
};

use traffic::{datagrams, ping, tcp};

use super::*;
use crate::frontend::{ModeChoice, Options};
use crate::port::syscall;

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Process::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "`{command}` failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A pair of namespaces joined by a veth, removed on drop.
struct Pair {
    names: [String; 2],
}

/// Addresses of gateway 0 or 1 on the wire and behind it.
fn wan(side: usize, v6: bool) -> IpAddr {
    if v6 {
        format!("2001:db8:1::{}", side + 1).parse().unwrap()
    } else {
        format!("192.0.2.{}", side + 1).parse().unwrap()
    }
}

fn inner(side: usize, v6: bool) -> IpAddr {
    if v6 {
        format!("fd0{}::1", side + 1).parse().unwrap()
    } else {
        format!("10.{}.0.1", side + 1).parse().unwrap()
    }
}

impl Pair {
    /// `None`, with the reason printed, when this is not root.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = std::fs::read_to_string("/proc/self/status")
            .is_ok_and(|status| status.lines().any(|l| l.starts_with("Uid:\t0\t")));
        if !root {
            println!("skipped: network namespaces need root");
            return None;
        }
        let base = format!(
            "esp-ports-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let names = [format!("{base}-a"), format!("{base}-b")];
        for name in &names {
            run(&format!("ip netns add {name}"));
        }
        let pair = Self { names };
        let [a, b] = &pair.names;
        run(&format!(
            "ip -n {a} link add wan0 type veth peer name wan0 netns {b}"
        ));
        for (side, name) in pair.names.iter().enumerate() {
            run(&format!("ip -n {name} link set lo up"));
            run(&format!(
                "ip -n {name} addr add {}/24 dev wan0",
                wan(side, false)
            ));
            run(&format!(
                "ip -n {name} addr add {}/64 dev wan0 nodad",
                wan(side, true)
            ));
            run(&format!("ip -n {name} link set wan0 up"));
            run(&format!(
                "ip -n {name} addr add {}/32 dev lo",
                inner(side, false)
            ));
            run(&format!(
                "ip -n {name} addr add {}/128 dev lo nodad",
                inner(side, true)
            ));
        }
        Some(pair)
    }

    /// Runs `f` on a thread inside namespace `side`; threads it starts stay there.
    fn inside<T: Send>(&self, side: usize, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = std::fs::File::open(format!("/run/netns/{}", self.names[side]));
                    syscall::enter_network_namespace(file.unwrap()).unwrap();
                    f()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Process::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn start(pair: &Pair, side: usize, sink: EventSink) -> Plane {
    start_behind(pair, side, sink, None)
}

/// Sockets on the ESP-in-UDP port.
fn sockets() -> Vec<UdpSocket> {
    vec![UdpSocket::bind("0.0.0.0:4500").unwrap(), {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        socket
            .bind(&"[::]:4500".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        socket.into()
    }]
}

/// With the front end attached in a mode.
fn start_behind(pair: &Pair, side: usize, sink: EventSink, mode: Option<ModeChoice>) -> Plane {
    start_with(pair, side, sink, mode, crate::userspace::Workers::default())
}

fn start_with(
    pair: &Pair,
    side: usize,
    sink: EventSink,
    mode: Option<ModeChoice>,
    workers: crate::userspace::Workers,
) -> Plane {
    pair.inside(side, || {
        let front_end = mode.map(|mode| {
            FrontEnd::attach(&Options {
                interfaces: vec!["wan0".into()],
                mode,
                drop_unknown_spi: true,
                ..Options::default()
            })
            .unwrap()
        });
        Plane::start(Config {
            engines: vec![EngineKind::Userspace],
            left_out: Vec::new(),
            tun: "espada0".into(),
            mtu: None,
            wan: vec!["wan0".into()],
            udp: sockets(),
            esp: esp::Config::default(),
            front_end,
            xsk: XskMode::Auto,
            lan: Vec::new(),
            workers,
            xfrm: crate::xfrm::Options::default(),
            sink,
        })
        .unwrap()
    })
}

fn subnet(side: usize) -> Vec<TrafficSelector> {
    let range = |start: String, end: String| TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: 65535,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    };
    let n = side + 1;
    vec![
        range(format!("10.{n}.0.0"), format!("10.{n}.0.255")),
        range(format!("fd0{n}::"), format!("fd0{n}::ffff:ffff:ffff:ffff")),
    ]
}

fn policy(side: usize) -> Policy {
    Policy {
        connection: "test".into(),
        local_ts: subnet(side),
        remote_ts: subnet(1 - side),
        trap: true,
        mode: Mode::Tunnel,
        addresses: Vec::new(),
    }
}

fn sa(side: usize, v6: bool, encapsulation: Encapsulation, id: u64) -> ChildSa {
    // The direction towards side 0 uses one SPI and key, the other another.
    let half = |towards: usize| HalfSa {
        spi: 0x1000_0000 + (id as u32) * 2 + towards as u32,
        encryption_key: SecretBytes::new(vec![towards as u8 + 7; 36]),
        integrity_key: SecretBytes::new(Vec::new()),
    };
    let port = if encapsulation == Encapsulation::Udp {
        4500
    } else {
        0
    };
    ChildSa {
        id: ChildSaId(id),
        connection: "test".into(),
        suite: EspSuite {
            cipher: Cipher::AesGcm(256, GcmIcv::Sixteen),
            integrity: None,
            esn: true,
        },
        inbound: half(side),
        outbound: half(1 - side),
        path: Path {
            local: SocketAddr::new(wan(side, v6), port),
            remote: SocketAddr::new(wan(1 - side, v6), port),
            encapsulation,
        },
        mode: Mode::Tunnel,
        local_ts: subnet(side),
        remote_ts: subnet(1 - side),
        share: Share::Whole,
        replay_window: 4096,
        allowances: Default::default(),
        lifetime: std::time::Duration::from_secs(3600),
    }
}

fn quiet() -> EventSink {
    Arc::new(|_| {})
}

fn up(pair: &Pair, v6: bool, encapsulation: Encapsulation) -> [Plane; 2] {
    up_behind(pair, v6, encapsulation, None)
}

fn up_behind(
    pair: &Pair,
    v6: bool,
    encapsulation: Encapsulation,
    mode: Option<ModeChoice>,
) -> [Plane; 2] {
    let engines = [0, 1].map(|side| start_behind(pair, side, quiet(), mode));
    with_sas(engines, v6, encapsulation)
}

fn with_sas(mut engines: [Plane; 2], v6: bool, encapsulation: Encapsulation) -> [Plane; 2] {
    for (side, engine) in engines.iter_mut().enumerate() {
        engine.apply(Command::InstallPolicy(policy(side))).unwrap();
        let sa = Box::new(sa(side, v6, encapsulation, 1));
        engine.apply(Command::InstallSa(sa)).unwrap();
    }
    engines
}

/// Everything that either sent arrived at the other.
fn carried(engines: &mut [Plane; 2]) {
    let mut rounds = 0;
    loop {
        let [a, b] = engines
            .each_mut()
            .map(|engine| engine.sa_stats().unwrap().remove(0));
        let arrived =
            a.outbound.packets == b.inbound.packets && b.outbound.packets == a.inbound.packets;
        if arrived && a.inbound.packets > 10 && b.inbound.packets > 10 {
            return;
        }
        rounds += 1;
        assert!(rounds < 40, "{a:?}\n{b:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn end_to_end(outer_v6: bool, encapsulation: Encapsulation) {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up(&pair, outer_v6, encapsulation);
    for inner_v6 in [false, true] {
        ping(&pair, inner_v6);
        tcp(&pair, inner_v6, 3_000_000);
        datagrams(&pair, inner_v6);
    }
    carried(&mut engines);
}

#[test]
fn netns_esp_in_udp_over_ipv4() {
    end_to_end(false, Encapsulation::Udp);
}

#[test]
fn netns_esp_in_udp_over_ipv6() {
    end_to_end(true, Encapsulation::Udp);
}

#[test]
fn netns_native_esp_over_ipv4() {
    end_to_end(false, Encapsulation::Esp);
}

#[test]
fn netns_native_esp_over_ipv6() {
    end_to_end(true, Encapsulation::Esp);
}

/// The front end counts what passes; native ESP past the kernel both ways with XDP.
fn behind_the_front_end(mode: ModeChoice, outer_v6: bool, encapsulation: Encapsulation) {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up_behind(&pair, outer_v6, encapsulation, Some(mode));
    let native_xdp = mode == ModeChoice::XdpNative;
    for engine in &engines {
        assert_eq!(engine.xsk().is_some(), native_xdp);
    }
    for inner_v6 in [false, true] {
        ping(&pair, inner_v6);
        tcp(&pair, inner_v6, 1_000_000);
    }
    carried(&mut engines);
    for engine in &mut engines {
        let stats = engine.sa_stats().unwrap();
        let front_end = engine.front_end().unwrap();
        let counters = lock_front_end(&front_end).counters().unwrap();
        let received = counters
            .inbound
            .iter()
            .map(|sa| sa.counters.packets)
            .sum::<u64>();
        let sent = counters
            .outbound
            .iter()
            .map(|sa| sa.counters.packets)
            .sum::<u64>();
        // What the stack cut or joined on the way may count differently, but not by much.
        assert!(received >= stats[0].inbound.packets, "{received} {stats:?}");
        assert!(sent >= stats[0].outbound.packets, "{sent} {stats:?}");
        assert_eq!(
            counters.drops.iter().sum::<u64>(),
            0,
            "{:?}",
            counters.drops
        );
    }
    for engine in &engines {
        if let (Some(xsk), Encapsulation::Esp) = (engine.xsk(), encapsulation) {
            let (received, sent) = (&xsk.counters.received, &xsk.counters.sent);
            assert!(received.load(Ordering::Relaxed) > 50, "{xsk:?}");
            assert!(sent.load(Ordering::Relaxed) > 50, "{xsk:?}");
        }
    }
    for engine in &mut engines {
        engine
            .apply(Command::RemoveSa { id: ChildSaId(1) })
            .unwrap();
        let front_end = engine.front_end().unwrap();
        let counters = lock_front_end(&front_end).counters().unwrap();
        assert!(counters.inbound.is_empty() && counters.outbound.is_empty());
    }
}

#[test]
fn netns_xsk_over_ipv4() {
    behind_the_front_end(ModeChoice::XdpNative, false, Encapsulation::Esp);
}

#[test]
fn netns_xsk_over_ipv6() {
    behind_the_front_end(ModeChoice::XdpNative, true, Encapsulation::Esp);
}

#[test]
fn netns_esp_in_udp_behind_xdp() {
    behind_the_front_end(ModeChoice::XdpNative, false, Encapsulation::Udp);
}

#[test]
fn netns_esp_in_udp_behind_tc() {
    behind_the_front_end(ModeChoice::Tc, false, Encapsulation::Udp);
}

#[test]
fn netns_native_esp_behind_tc() {
    behind_the_front_end(ModeChoice::Tc, true, Encapsulation::Esp);
}

#[test]
fn netns_traffic_without_sa_is_dropped_and_asked_for() {
    let Some(pair) = Pair::new() else { return };
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink: EventSink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let mut engine = start(&pair, 0, sink);
    engine.apply(Command::InstallPolicy(policy(0))).unwrap();
    let output = Process::new("ip")
        .args([
            "netns",
            "exec",
            &pair.names[0],
            "ping",
            // The first few wait for the SA.
            "-c",
            "20",
            "-i",
            "0.01",
            "-W",
            "1",
            "10.2.0.1",
        ])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(engine.drop_totals().unwrap().outbound[DropReason::NoSa as usize] > 0);
    let acquired = events.lock().unwrap().iter().any(|event| {
        matches!(event, Event::Acquire { connection, destination, .. }
            if **connection == *"test" && *destination == inner(1, false))
    });
    assert!(acquired, "{:?}", events.lock().unwrap());
}

/// Numbers of a stream: all it has, and those under way at most. No queue overflows by these, whatever
/// else the machine does.
const NUMBERS: u32 = 2000;
const UNDER_WAY: u32 = 100;

/// Numbers sent through the tunnel, 2000 a second if they arrive as fast.
struct Stream {
    /// Numbers below this may have been sent.
    sent: Arc<AtomicU32>,
    /// Numbers below this have arrived, each once. The kernel may swap two when a worker changes its
    /// processor, so order is not checked.
    arrived: Arc<AtomicU32>,
    /// Ends when all have arrived, and panics when one is missing.
    thread: std::thread::JoinHandle<()>,
}

impl Stream {
    fn start(pair: &Pair, from: usize, to: usize) -> Self {
        let receiver = pair.inside(to, || UdpSocket::bind((inner(to, false), 7777)).unwrap());
        // Long enough for a busy machine.
        let patience = Some(Duration::from_secs(10));
        receiver.set_read_timeout(patience).unwrap();
        let sender = pair.inside(from, || UdpSocket::bind((inner(from, false), 0)).unwrap());
        let target = (inner(to, false), 7777);
        let (sent, arrived) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (sending, arriving) = (Arc::clone(&sent), Arc::clone(&arrived));
        let thread = std::thread::spawn(move || {
            let known = Arc::clone(&arriving);
            let traffic = std::thread::spawn(move || {
                for number in 0..NUMBERS {
                    while number >= known.load(Ordering::Relaxed) + UNDER_WAY {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    sending.store(number + 1, Ordering::Relaxed);
                    sender.send_to(&number.to_ne_bytes(), target).unwrap();
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            let mut octets = [0; 4];
            let mut beyond = std::collections::BTreeSet::new();
            let mut next = 0;
            while next < NUMBERS {
                if receiver.recv(&mut octets).is_err() {
                    arriving.store(NUMBERS, Ordering::Relaxed);
                    panic!("{next} is missing, and what is not of {beyond:?}");
                }
                let number = u32::from_ne_bytes(octets);
                assert!(number >= next && beyond.insert(number), "{number} twice");
                while beyond.remove(&next) {
                    next += 1;
                }
                arriving.store(next, Ordering::Relaxed);
            }
            traffic.join().unwrap();
        });
        Self {
            sent,
            arrived,
            thread,
        }
    }

    /// Until everything has arrived that has been sent by now.
    fn wait(&self) {
        let sent = self.sent.load(Ordering::Relaxed);
        while self.arrived.load(Ordering::Relaxed) < sent && !self.thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn netns_rekey_under_traffic_loses_nothing() {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up(&pair, false, Encapsulation::Udp);
    rekey_under_traffic(&pair, &mut engines, &|side, id| {
        sa(side, false, Encapsulation::Udp, id)
    });
}

/// Ten rekeys while numbers pass both ways.
fn rekey_under_traffic(
    pair: &Pair,
    engines: &mut [Plane; 2],
    make: &dyn Fn(usize, u64) -> ChildSa,
) {
    let streams = [(0, 1), (1, 0)].map(|(from, to)| Stream::start(pair, from, to));
    for id in 2..12u64 {
        std::thread::sleep(Duration::from_millis(60));
        // The responder's own rekey has crossed, and does not prevail.
        engines[0]
            .apply(Command::RekeySa {
                old: ChildSaId(id - 1),
                new: Box::new(make(0, id + 100)),
                takeover: Takeover::WithRemoval,
            })
            .unwrap();
        // The responder has the new inbound SA before the initiator sends on it.
        for (side, engine) in engines.iter_mut().enumerate().rev() {
            engine
                .apply(Command::RekeySa {
                    old: ChildSaId(id - 1),
                    new: Box::new(make(side, id)),
                    takeover: [Takeover::Now, Takeover::WithRemoval][side],
                })
                .unwrap();
        }
        // The initiator's delete reaches the responder behind the last packet of the old pair; the
        // responder then sends on the new one, and the initiator hears of it behind its last packet.
        let [initiator, responder] = &mut *engines;
        let old = ChildSaId(id - 1);
        streams[0].wait();
        responder.apply(Command::Retire { id: old }).unwrap();
        streams[1].wait();
        for engine in [responder, &mut *initiator] {
            engine.apply(Command::RemoveSa { id: old }).unwrap();
        }
        let crossed = ChildSaId(id + 100);
        let stats = initiator.sa_stats().unwrap();
        let stats = stats.iter().find(|stats| stats.id == crossed).unwrap();
        assert_eq!(stats.outbound.packets, 0, "it never sends");
        initiator.apply(Command::RemoveSa { id: crossed }).unwrap();
    }
    for stream in streams {
        let lost = stream.thread.join().is_err();
        let dropped = engines
            .each_mut()
            .map(|engine| engine.drop_totals().unwrap());
        let carried = engines.each_mut().map(|engine| engine.sa_stats().unwrap());
        assert!(!lost, "packets were lost: {carried:?} {dropped:?}");
    }
}

#[test]
fn netns_routes_come_with_the_policy_and_go() {
    let Some(pair) = Pair::new() else { return };
    let mut engines = up(&pair, false, Encapsulation::Udp);
    let name = &pair.names[0];
    let route = run(&format!("ip -n {name} route show 10.2.0.0/24"));
    // 1500 less IPv4, UDP, ESP header, IV, ICV; whole blocks of 4 less the trailer.
    assert!(
        route.contains("dev espada0 proto 150 scope link src 10.1.0.1 mtu 1438"),
        "{route}"
    );
    run(&format!("ip -n {name} link set wan0 mtu 1400"));
    std::thread::sleep(Duration::from_millis(300));
    let route = run(&format!("ip -n {name} route show 10.2.0.0/24"));
    assert!(route.contains("mtu 1338"), "{route}");

    // A clash is refused with its reason and leaves nothing behind.
    run(&format!("ip -n {name} route add 10.3.0.0/24 via 192.0.2.2"));
    let clash = Policy {
        connection: "clash".into(),
        remote_ts: vec![TrafficSelector {
            start: "10.3.0.0".parse().unwrap(),
            end: "10.3.0.255".parse().unwrap(),
            ..subnet(1)[0]
        }],
        ..policy(0)
    };
    let error = engines[0]
        .apply(Command::InstallPolicy(clash))
        .unwrap_err()
        .to_string();
    assert!(error.contains("10.3.0.0/24"), "{error}");

    engines[0]
        .apply(Command::RemovePolicy {
            connection: "test".into(),
        })
        .unwrap();
    assert_eq!(run(&format!("ip -n {name} route show proto 150")), "");
    drop(engines);
    assert!(!run(&format!("ip -n {name} link")).contains("espada0"));
}

#[test]
fn netns_a_peer_inside_its_own_subnet_stays_reachable() {
    let Some(pair) = Pair::new() else { return };
    let mut engines = [start(&pair, 0, quiet()), start(&pair, 1, quiet())];
    let name = &pair.names[0];
    let everything = vec![TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: 65535,
        start: "192.0.2.0".parse().unwrap(),
        end: "192.0.2.127".parse().unwrap(),
    }];
    for (side, engine) in engines.iter_mut().enumerate() {
        let (mut policy, mut sa) = (policy(side), sa(side, false, Encapsulation::Esp, 1));
        if side == 0 {
            policy.remote_ts.extend(&everything);
            sa.remote_ts.extend(&everything);
        } else {
            policy.local_ts.extend(&everything);
            sa.local_ts.extend(&everything);
        }
        if side == 0 {
            engine.exempt_peer(wan(1, false)).unwrap();
        }
        engine.apply(Command::InstallPolicy(policy)).unwrap();
        if side == 0 {
            let route = run(&format!("ip -n {name} route get 192.0.2.2"));
            assert!(route.contains("dev wan0"), "{route}");
            let route = run(&format!("ip -n {name} route get 192.0.2.3"));
            assert!(route.contains("dev espada0"), "{route}");
        }
        engine.apply(Command::InstallSa(Box::new(sa))).unwrap();
    }
    ping(&pair, false);

    // Another way to the peer: its route follows.
    run(&format!("ip -n {name} addr add 198.51.100.1/24 dev wan0"));
    run(&format!(
        "ip -n {} addr add 198.51.100.2/24 dev wan0",
        pair.names[1]
    ));
    run(&format!(
        "ip -n {name} route add 192.0.2.0/26 via 198.51.100.2"
    ));
    std::thread::sleep(Duration::from_millis(300));
    let route = run(&format!("ip -n {name} route get 192.0.2.2"));
    assert!(route.contains("via 198.51.100.2 dev wan0"), "{route}");
}

/// Not a test: `cargo test --release -p espada-dataplane netns_throughput -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: run it by name, in release mode"]
fn netns_throughput() {
    let Some(pair) = Pair::new() else { return };
    let measure = |what: &str, address: IpAddr, extra: &str| {
        let [a, b] = &pair.names;
        let mut server = Process::new("ip")
            .args(["netns", "exec", b, "iperf3", "-s", "-1", "--forceflush"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 64];
        assert!(server.stdout.as_mut().unwrap().read(&mut line).unwrap() > 0);
        let output = run(&format!(
            "ip netns exec {a} iperf3 -c {address} -t 4 -f g {extra}"
        ));
        server.wait().unwrap();
        let line = output
            .lines()
            .rev()
            .find(|line| line.contains("receiver"))
            .unwrap_or("?");
        println!("{what}: {line}");
    };
    measure("plain veth", wan(1, false), "");
    let udp = Encapsulation::Udp;
    for (v6, encapsulation, mode) in [
        (false, udp, None),
        (true, udp, None),
        (false, udp, Some(ModeChoice::Tc)),
        (false, udp, Some(ModeChoice::XdpNative)),
        (false, Encapsulation::Esp, None),
        (true, Encapsulation::Esp, None),
        (false, Encapsulation::Esp, Some(ModeChoice::XdpNative)),
        (true, Encapsulation::Esp, Some(ModeChoice::XdpNative)),
    ] {
        let mut engines = up_behind(&pair, v6, encapsulation, mode);
        let family = if v6 { 6 } else { 4 };
        let what = format!("{encapsulation:?} over IPv{family}, front end {mode:?}");
        measure(&what, inner(1, false), "");
        measure(&format!("{what}, 4 flows"), inner(1, false), "-P 4");
        for engine in &mut engines {
            let totals = engine.drop_totals().unwrap();
            for reason in DropReason::ALL {
                let index = reason as usize;
                let (inbound, outbound) = (totals.inbound[index], totals.outbound[index]);
                if inbound + outbound > 0 {
                    println!("  dropped {reason}: in {inbound} out {outbound}");
                }
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn netns_a_reinstalled_policy_replaces_its_routes() {
    let Some(pair) = Pair::new() else { return };
    let mut engine = start(&pair, 0, quiet());
    engine.apply(Command::InstallPolicy(policy(0))).unwrap();
    let mut narrower = policy(0);
    narrower.remote_ts.truncate(1);
    narrower.remote_ts[0].end = "10.2.0.127".parse().unwrap();
    engine.apply(Command::InstallPolicy(narrower)).unwrap();
    let name = &pair.names[0];
    let routes = run(&format!("ip -n {name} route show proto 150"));
    assert!(
        routes.contains("10.2.0.0/25") && !routes.contains("10.2.0.0/24"),
        "{routes}"
    );
    assert_eq!(run(&format!("ip -n {name} -6 route show proto 150")), "");
}

/// Processor time this process has used, in clock ticks.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
#[ignore = "measures this process alone: run it by name"]
fn netns_an_interface_down_or_gone_keeps_no_worker_busy() {
    let Some(pair) = Pair::new() else { return };
    let mut engine = start(&pair, 0, quiet());
    let name = &pair.names[0];
    run(&format!("ip -n {name} link set espada0 down"));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ticks() - before < 20, "down");
    run(&format!("ip -n {name} link set espada0 up"));
    engine.apply(Command::InstallPolicy(policy(0))).unwrap();
    run(&format!("ip -n {name} link del espada0"));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ticks() - before < 20, "gone");
    let error = engine.apply(Command::InstallPolicy(policy(0))).unwrap_err();
    assert!(matches!(error, BackendError::Stopped(_)), "{error}");
}
