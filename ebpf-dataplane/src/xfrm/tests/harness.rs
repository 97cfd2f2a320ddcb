//! Two namespaces joined by a link, engines in them, and traffic.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command as Process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use espada_common::sa::{
    Cipher, EspSuite, Event, GcmIcv, HalfSa, Integrity, SecretBytes, Share, TrafficSelector,
};

use super::*;
use crate::backend::SaBackend;
use crate::frontend::{FrontEnd, Leftovers, ModeChoice, Options, pin};
use crate::plane::tests::traffic::exchange;
use crate::plane::{self, EngineKind, Plane};
use crate::userspace::XskMode;

/// Past the test runner's capturing of output: a skipped test must not look like a passed one.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

pub fn run(command: &str) -> String {
    let (success, output) = attempt(command);
    assert!(success, "`{command}` failed: {output}");
    output
}

/// Whether a command succeeds, and all it says.
pub fn attempt(command: &str) -> (bool, String) {
    let mut words = command.split_whitespace();
    let output = Process::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Two namespaces joined by a veth, removed on drop.
pub struct Hosts {
    pub names: [String; 2],
}

/// Addresses of gateway 0 or 1 on the wire and behind it.
pub fn wan(side: usize, v6: bool) -> IpAddr {
    if v6 {
        format!("2001:db8:1::{}", side + 1).parse().unwrap()
    } else {
        format!("192.0.2.{}", side + 1).parse().unwrap()
    }
}

pub fn inner(side: usize, v6: bool) -> IpAddr {
    if v6 {
        format!("fd0{}::1", side + 1).parse().unwrap()
    } else {
        format!("10.{}.0.1", side + 1).parse().unwrap()
    }
}

impl Hosts {
    /// `None`, with the reason printed, when this is not root.
    pub fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = std::fs::read_to_string("/proc/self/status")
            .is_ok_and(|status| status.lines().any(|l| l.starts_with("Uid:\t0\t")));
        if !root {
            skip(test, "needs root (network namespaces)");
            return None;
        }
        let base = format!(
            "esp-xfrm-{}-{}",
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
            for v6 in [false, true] {
                let (length, host, nodad) = if v6 { (64, 128, "nodad") } else { (24, 32, "") };
                let (outside, behind) = (wan(side, v6), inner(side, v6));
                run(&format!(
                    "ip -n {name} addr add {outside}/{length} dev wan0 {nodad}"
                ));
                run(&format!(
                    "ip -n {name} addr add {behind}/{host} dev lo {nodad}"
                ));
            }
            run(&format!("ip -n {name} link set wan0 up"));
        }
        Some(pair)
    }

    /// As [`Self::new`], and `None` where the kernel lacks what the engine needs.
    pub fn with_esp(test: &str) -> Option<Self> {
        let pair = Self::new(test)?;
        steady_time_stamps();
        static USABLE: OnceLock<Answer> = OnceLock::new();
        let usable = USABLE.get_or_init(|| pair.inside(0, || probe().usable()));
        if let Err(why) = usable {
            skip(test, why);
            return None;
        }
        Some(pair)
    }

    /// Runs `f` on a thread inside namespace `side`; threads it starts stay there.
    pub fn inside<T: Send>(&self, side: usize, f: impl FnOnce() -> T + Send) -> T {
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

    /// `ip` in namespace `side`.
    pub fn ip(&self, side: usize, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.names[side]))
    }

    /// Routes to what is behind the other side into the tunnel interface.
    pub fn route(&self, side: usize) {
        for v6 in [false, true] {
            let (network, source) = (network(1 - side, v6), inner(side, v6));
            self.ip(
                side,
                &format!("route replace {network} dev espada0 src {source} mtu 1400"),
            );
        }
    }

    /// Packets of several sizes, up to needing fragments, all answered.
    pub fn ping(&self, v6: bool) {
        for size in [0, 56, 1300, 3000] {
            self.answered(inner(0, v6), inner(1, v6), size);
        }
    }

    /// Five packets are answered. With a deadline, ping ends at the fifth reply; without, a busy
    /// machine's late replies count as lost.
    pub fn answered(&self, from: IpAddr, to: IpAddr, size: usize) {
        let output = self.ping_with("-w 15", from, to, size);
        assert!(received(&output) >= 5, "size {size}: {output}");
    }

    /// None of five packets is answered.
    pub fn unanswered(&self, from: IpAddr, to: IpAddr) {
        let output = self.ping_with("-W 1", from, to, 56);
        assert_eq!(received(&output), 0, "{output}");
    }

    fn ping_with(&self, patience: &str, from: IpAddr, to: IpAddr, size: usize) -> String {
        let command = format!(
            "ip netns exec {} ping -n -q -i 0.05 -c 5 {patience} -p 5a -s {size} -I {from} {to}",
            self.names[0],
        );
        let (_, output) = attempt(&command);
        assert!(!output.contains("wrong data"), "{output}");
        output
    }
}

fn received(output: &str) -> u32 {
    let mut parts = output.split(", ");
    let count = parts.find_map(|part| part.strip_suffix(" received"));
    count.unwrap_or_else(|| panic!("{output}")).parse().unwrap()
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Process::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Ping asks for time stamps, and the kernel switches them on for the first who asks and off after
/// the last by patching its own code. Under qemu's emulation another processor may stumble over
/// the half-patched instruction, so somebody asks for them all the time.
fn steady_time_stamps() {
    static ASKING: OnceLock<UdpSocket> = OnceLock::new();
    ASKING.get_or_init(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        syscall::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMP, 1).unwrap();
        socket
    });
}

pub fn network(side: usize, v6: bool) -> String {
    let n = side + 1;
    if v6 {
        format!("fd0{n}::/64")
    } else {
        format!("10.{n}.0.0/24")
    }
}

pub fn quiet() -> EventSink {
    Arc::new(|_| {})
}

/// A sink, and what it was given.
pub fn recorder() -> (EventSink, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    (
        Arc::new(move |event| sink.lock().unwrap().push(event)),
        events,
    )
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn udp_sockets() -> Vec<UdpSocket> {
    use socket2::{Domain, Socket, Type};
    let v6 = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    v6.set_only_v6(true).unwrap();
    v6.bind(&"[::]:4500".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    vec![UdpSocket::bind("0.0.0.0:4500").unwrap(), v6.into()]
}

/// To be used inside a namespace.
pub fn config(sink: EventSink) -> Config {
    Config {
        interface: "espada0".into(),
        mtu: None,
        wan: vec!["wan0".into()],
        udp: udp_sockets(),
        read_ike: true,
        ike_ports: vec![500, 4500],
        options: crate::xfrm::Options::default(),
        sink,
    }
}

pub fn start(pair: &Hosts, side: usize, sink: EventSink) -> XfrmEngine {
    pair.inside(side, || XfrmEngine::start(config(sink)).unwrap())
}

/// A data plane with another engine.
pub fn start_plane(pair: &Hosts, side: usize, kind: EngineKind) -> Plane {
    pair.inside(side, || {
        let front_end = (kind == EngineKind::Ebpf).then(|| {
            FrontEnd::attach(&Options {
                interfaces: vec!["wan0".into()],
                mode: ModeChoice::XdpNative,
                drop_unknown_spi: true,
                pin_dir: Some(pin::instance_dir(&pair.names[side])),
                leftovers: Leftovers::Remove,
                engine: true,
                ..Options::default()
            })
            .unwrap()
        });
        Plane::start(plane::Config {
            engines: vec![kind],
            left_out: Vec::new(),
            tun: "espada0".into(),
            mtu: None,
            wan: vec!["wan0".into()],
            udp: udp_sockets(),
            esp: crate::esp::Config::default(),
            front_end,
            xsk: XskMode::Off,
            lan: Vec::new(),
            workers: crate::userspace::Workers::default(),
            xfrm: crate::xfrm::Options::default(),
            sink: quiet(),
        })
        .unwrap()
    })
}

/// This engine or a plane with another.
pub enum Gateway {
    Xfrm(Box<XfrmEngine>),
    Plane(Box<Plane>),
}

impl Gateway {
    pub fn apply(&mut self, command: Command) {
        match self {
            Self::Xfrm(engine) => engine.apply(&command).unwrap(),
            Self::Plane(plane) => plane.apply(command).unwrap(),
        }
    }

    pub fn stats(&mut self) -> Vec<ChildSaStats> {
        match self {
            Self::Xfrm(engine) => engine.sa_stats().unwrap(),
            Self::Plane(plane) => plane.sa_stats().unwrap(),
        }
    }
}

/// An XFRM engine with its policy and routes.
pub fn xfrm_gateway(pair: &Hosts, side: usize, sink: EventSink) -> Gateway {
    let mut gateway = Gateway::Xfrm(Box::new(start(pair, side, sink)));
    gateway.apply(Command::InstallPolicy(policy(side)));
    pair.route(side);
    gateway
}

pub fn subnet(side: usize) -> Vec<TrafficSelector> {
    [false, true]
        .map(|v6| {
            let network = network(side, v6);
            let (address, length) = network.split_once('/').unwrap();
            TrafficSelector::prefix(address.parse().unwrap(), length.parse().unwrap()).unwrap()
        })
        .to_vec()
}

pub fn policy(side: usize) -> Policy {
    Policy {
        connection: "test".into(),
        local_ts: subnet(side),
        remote_ts: subnet(1 - side),
        trap: true,
        mode: Mode::Tunnel,
        addresses: Vec::new(),
    }
}

pub const GCM: EspSuite = EspSuite {
    cipher: Cipher::AesGcm(256, GcmIcv::Sixteen),
    integrity: None,
    esn: true,
};

/// The pair with number `id`, seen from `side`.
pub fn sa(
    side: usize,
    v6: bool,
    encapsulation: Encapsulation,
    suite: EspSuite,
    id: u64,
) -> ChildSa {
    // The direction towards side 0 uses one SPI and key, the other another.
    let half = |towards: usize| HalfSa {
        spi: 0x1000_0000 + (id as u32) * 2 + towards as u32,
        encryption_key: SecretBytes::new(vec![
            towards as u8 + id as u8 + 7;
            suite.cipher.keymat_len()
        ]),
        integrity_key: SecretBytes::new(vec![
            towards as u8 + 9;
            suite.integrity.map_or(0, Integrity::key_len)
        ]),
    };
    let port = match encapsulation {
        Encapsulation::Udp => 4500,
        Encapsulation::Esp => 0,
    };
    ChildSa {
        id: ChildSaId(id),
        connection: "test".into(),
        suite,
        inbound: half(side),
        outbound: half(1 - side),
        path: Path {
            local: SocketAddr::new(wan(side, v6), port),
            remote: SocketAddr::new(wan(1 - side, v6), port),
            encapsulation,
        },
        mode: Mode::Tunnel,
        share: Share::Whole,
        local_ts: subnet(side),
        remote_ts: subnet(1 - side),
        replay_window: 4096,
        allowances: Default::default(),
        lifetime: Duration::from_secs(3600),
    }
}

/// `octets` each way over one TCP connection, each octet checked.
pub fn tcp(pair: &Hosts, v6: bool, octets: usize) {
    let server = (inner(1, v6), 7777);
    let listener = pair.inside(1, || TcpListener::bind(server).unwrap());
    let client = pair.inside(0, || TcpStream::connect(server).unwrap());
    let ends = [client, listener.accept().unwrap().0];
    exchange(ends, octets, Duration::from_secs(20));
}

/// Everything that either sent arrived at the other.
pub fn carried(gateways: &mut [Gateway; 2]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let [a, b] = gateways.each_mut().map(|gateway| gateway.stats().remove(0));
        let arrived = a.outbound.packets == b.inbound.packets
            && b.outbound.packets == a.inbound.packets
            && a.inbound.packets > 10
            && b.inbound.packets > 10
            && a.inbound.last_used.is_some();
        if arrived {
            return;
        }
        assert!(Instant::now() < deadline, "{a:?}\n{b:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Numbered packets through the tunnel, one a millisecond, until it is finished.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

impl Stream {
    pub fn start(pair: &Hosts, from: usize, to: usize) -> Self {
        let socket = pair.inside(to, || UdpSocket::bind((inner(to, false), 7777)).unwrap());
        // Longer than packets are under way.
        let patience = Some(Duration::from_secs(3));
        socket.set_read_timeout(patience).unwrap();
        let sending = pair.inside(from, || UdpSocket::bind((inner(from, false), 0)).unwrap());
        let target = (inner(to, false), 7777);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut count = 0u32;
            while !stopped.load(Ordering::Relaxed) {
                sending.send_to(&count.to_ne_bytes(), target).unwrap();
                count += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            count
        });
        let receiver = std::thread::spawn(move || {
            let mut octets = [0; 4];
            let mut numbers = BTreeSet::new();
            while socket.recv(&mut octets).is_ok() {
                let number = u32::from_ne_bytes(octets);
                assert!(numbers.insert(number), "{number} came twice");
            }
            numbers
        });
        Self {
            stop,
            sender,
            receiver,
        }
    }

    /// Stops it; every packet has arrived, and arrived once.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        let arrived = self.receiver.join().unwrap();
        let lost: Vec<u32> = (0..sent).filter(|n| !arrived.contains(n)).collect();
        assert!(lost.is_empty(), "{} of {sent} lost: {lost:?}", lost.len());
        assert!(sent > 100, "only {sent} packets were sent");
    }
}
