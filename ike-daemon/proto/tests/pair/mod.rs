//! Two endpoints on virtual time, joined by a network that delays, loses, repeats, reorders and
//! translates datagrams. Nothing here sleeps; every run repeats exactly for its seed.
#![allow(dead_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSa, ChildSaId, Command, SecretBytes};
use espada_ike::config::{
    Dpd, DpdAction, EncapsulationPolicy, Lifetime, RemoteAddress, RemoteIdentity, SettingLine,
    SettingOrigin, StartAction,
};
use espada_ike::proposal::Proposal;
use espada_ike::{ConnectionConfig, Endpoint, EndpointConfig, Notice, PskSecret, Random};

/// Deterministic randomness (SplitMix64). For tests alone.
#[derive(Clone)]
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability && probability > 0.0
    }

    /// A duration up to `max`.
    pub fn up_to(&mut self, max: Duration) -> Duration {
        max.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl Random for Seeded {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// How the path between the two behaves.
#[derive(Clone, Debug)]
pub struct Link {
    pub latency: Duration,
    /// Further random delay, so that datagrams overtake each other.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicates: f64,
    /// When set, A's datagrams appear to come from this address, with its ports mapped to
    /// others; only answers to a mapping get back in.
    pub nat_for_a: Option<IpAddr>,
    /// Nothing passes at all.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicates: 0.0,
            nat_for_a: None,
            cut: false,
        }
    }
}

/// One end, with what it told the world.
pub struct Node {
    pub endpoint: Endpoint<Seeded>,
    pub notices: Vec<(Duration, Notice)>,
    pub commands: Vec<Command>,
    /// The data plane as its commands leave it.
    pub installed: BTreeMap<ChildSaId, ChildSa>,
    pub policies: Vec<Arc<str>>,
}

impl Node {
    fn new(seed: u64, config: EndpointConfig) -> Self {
        Self {
            endpoint: Endpoint::new(config, Seeded(seed)),
            notices: Vec::new(),
            commands: Vec::new(),
            installed: BTreeMap::new(),
            policies: Vec::new(),
        }
    }

    fn carry_out(&mut self, command: Command) {
        match &command {
            Command::InstallPolicy(policy) => self.policies.push(policy.connection.clone()),
            Command::RemovePolicy { connection } => self.policies.retain(|name| name != connection),
            Command::InstallSa(sa) => {
                assert!(
                    self.installed.insert(sa.id, (**sa).clone()).is_none(),
                    "id used twice"
                );
            }
            Command::RekeySa { old, new, .. } => {
                assert!(
                    self.installed.contains_key(old),
                    "rekey of an SA that is not installed"
                );
                assert!(
                    self.installed.insert(new.id, (**new).clone()).is_none(),
                    "id used twice"
                );
            }
            Command::RemoveSa { id } => {
                assert!(
                    self.installed.remove(id).is_some(),
                    "removal of an SA that is not there"
                );
            }
            Command::MovePath { id, path } => {
                self.installed
                    .get_mut(id)
                    .expect("move of an SA that is not there")
                    .path = *path;
            }
        }
        self.commands.push(command);
    }

    /// All notices as text, for assertions on what a person reads.
    pub fn log(&self) -> String {
        self.notices
            .iter()
            .map(|(at, notice)| format!("{at:?} {notice}\n"))
            .collect()
    }
}

struct InFlight {
    to_b: bool,
    local: SocketAddr,
    remote: SocketAddr,
    payload: Vec<u8>,
}

/// Two nodes and the network between them.
pub struct Pair {
    pub a: Node,
    pub b: Node,
    pub link: Link,
    pub now: Instant,
    pub start: Instant,
    pub datagrams: usize,
    /// Every datagram sent: by A (true) or B, and its octets.
    pub trace: Vec<(bool, Vec<u8>)>,
    rng: Seeded,
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    in_flight: BTreeMap<usize, InFlight>,
    order: u64,
    nat: Vec<(SocketAddr, u16)>,
}

impl Pair {
    pub fn new(seed: u64, a: Vec<ConnectionConfig>, b: Vec<ConnectionConfig>) -> Self {
        Self::with_config(seed, EndpointConfig::default(), a, b)
    }

    pub fn with_config(
        seed: u64,
        config: EndpointConfig,
        a: Vec<ConnectionConfig>,
        b: Vec<ConnectionConfig>,
    ) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            a: Node::new(seed.wrapping_mul(2).wrapping_add(1), config.clone()),
            b: Node::new(seed.wrapping_mul(2).wrapping_add(2), config),
            link: Link::default(),
            now,
            start: now,
            datagrams: 0,
            trace: Vec::new(),
            rng: Seeded(seed ^ 0x5eed),
            queue: BinaryHeap::new(),
            in_flight: BTreeMap::new(),
            order: 0,
            nat: Vec::new(),
        };
        pair.a.endpoint.set_secrets(vec![secret("correct horse")]);
        pair.b.endpoint.set_secrets(vec![secret("correct horse")]);
        pair.a.endpoint.set_connections(now, a);
        pair.b.endpoint.set_connections(now, b);
        pair
    }

    /// Takes everything the two have to say, without letting time pass.
    pub fn settle(&mut self) {
        for from_a in [true, false] {
            let node = if from_a { &mut self.a } else { &mut self.b };
            let mut sent = Vec::new();
            while let Some(command) = node.endpoint.poll_command() {
                node.carry_out(command);
            }
            while let Some(notice) = node.endpoint.poll_notice() {
                node.notices.push((self.now - self.start, notice));
            }
            while let Some(transmit) = node.endpoint.poll_transmit() {
                sent.push(transmit);
            }
            for transmit in sent {
                if !transmit.keepalive {
                    self.trace.push((from_a, transmit.payload.clone()));
                }
                self.send(
                    from_a,
                    transmit.local,
                    transmit.remote,
                    transmit.payload,
                    transmit.keepalive,
                );
            }
        }
    }

    fn send(
        &mut self,
        from_a: bool,
        mut local: SocketAddr,
        mut remote: SocketAddr,
        payload: Vec<u8>,
        keepalive: bool,
    ) {
        self.datagrams += 1;
        if let Some(outside) = self.link.nat_for_a {
            if from_a {
                let port = match self.nat.iter().find(|(inside, _)| *inside == local) {
                    Some((_, port)) => *port,
                    None => {
                        let port = 20_000 + self.nat.len() as u16;
                        self.nat.push((local, port));
                        port
                    }
                };
                local = SocketAddr::new(outside, port);
            } else {
                match self
                    .nat
                    .iter()
                    .find(|(_, port)| remote == SocketAddr::new(outside, *port))
                {
                    Some((inside, _)) => remote = *inside,
                    None => return,
                }
            }
        }
        if keepalive || self.link.cut {
            return;
        }
        let copies = if self.rng.chance(self.link.duplicates) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.rng.chance(self.link.loss) {
                continue;
            }
            let at = self.now + self.link.latency + self.rng.up_to(self.link.jitter);
            self.deliver_at(at, from_a, local, remote, payload.clone());
        }
    }

    /// Puts a datagram on the wire towards B (`to_b`) or A, as if sent by `from` to `to`.
    pub fn deliver_at(
        &mut self,
        at: Instant,
        to_b: bool,
        from: SocketAddr,
        to: SocketAddr,
        payload: Vec<u8>,
    ) {
        let id = self.order as usize;
        self.queue.push(Reverse((at, self.order, id)));
        self.order += 1;
        self.in_flight.insert(
            id,
            InFlight {
                to_b,
                local: to,
                remote: from,
                payload,
            },
        );
    }

    /// Forgets every NAT mapping, as a rebooted NAT does.
    pub fn forget_nat(&mut self) {
        for entry in &mut self.nat {
            entry.1 += 1000;
        }
    }

    /// Moves to the next thing that happens, if that is before `until`.
    fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let arrival = self.queue.peek().map(|Reverse((at, _, _))| *at);
        let timers = [
            self.a.endpoint.poll_timeout(),
            self.b.endpoint.poll_timeout(),
        ];
        let next = timers.into_iter().flatten().chain(arrival).min();
        match next {
            Some(at) if at <= until => self.now = self.now.max(at),
            _ => return false,
        }
        while let Some(Reverse((at, _, id))) = self.queue.peek().copied() {
            if at > self.now {
                break;
            }
            self.queue.pop();
            if let Some(datagram) = self.in_flight.remove(&id) {
                let node = if datagram.to_b {
                    &mut self.b
                } else {
                    &mut self.a
                };
                node.endpoint.handle_datagram(
                    self.now,
                    datagram.local,
                    datagram.remote,
                    &datagram.payload,
                );
            }
            self.settle();
        }
        for node in [&mut self.a, &mut self.b] {
            if node
                .endpoint
                .poll_timeout()
                .is_some_and(|at| at <= self.now)
            {
                node.endpoint.handle_timeout(self.now);
            }
        }
        self.settle();
        true
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut steps = 0;
        while self.step(until) {
            steps += 1;
            assert!(steps < 1_000_000, "the endpoints never come to rest");
        }
        self.now = until;
    }

    /// Lets time pass until `done`, at most `limit`; tells whether it came to that.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Pair) -> bool) -> bool {
        let until = self.now + limit;
        let mut steps = 0;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            if !self.step(until) {
                return done(self);
            }
            steps += 1;
            assert!(steps < 1_000_000, "the endpoints never come to rest");
        }
    }

    /// Both ends hold the same SAs, crosswise, and at least one.
    pub fn agree(&self) -> bool {
        !self.a.installed.is_empty()
            && self.a.installed.len() == self.b.installed.len()
            && self
                .a
                .installed
                .values()
                .all(|a| self.b.installed.values().any(|b| mirrored(a, b)))
    }

    /// Panics with both logs unless the ends hold the same `count` SAs.
    pub fn assert_agree(&self, count: usize) {
        assert!(
            self.agree() && self.a.installed.len() == count,
            "expected {count} pair(s) of SAs at both ends, have {} and {}\nA:\n{}\nB:\n{}",
            self.a.installed.len(),
            self.b.installed.len(),
            self.a.log(),
            self.b.log()
        );
    }
}

/// Whether what one end sends is what the other expects.
fn mirrored(a: &ChildSa, b: &ChildSa) -> bool {
    let same = |x: &espada_common::sa::HalfSa, y: &espada_common::sa::HalfSa| {
        x.spi == y.spi
            && x.encryption_key.expose() == y.encryption_key.expose()
            && x.integrity_key.expose() == y.integrity_key.expose()
    };
    a.suite == b.suite
        && same(&a.inbound, &b.outbound)
        && same(&a.outbound, &b.inbound)
        && a.local_ts == b.remote_ts
        && a.remote_ts == b.local_ts
        && a.path.encapsulation == b.path.encapsulation
}

pub const A: &str = "198.51.100.1";
pub const B: &str = "203.0.113.2";

pub fn secret(text: &str) -> PskSecret {
    PskSecret {
        ids: Vec::new(),
        secret: SecretBytes::new(text.as_bytes().to_vec()),
        origin: "secrets.toml:1".into(),
    }
}

/// A connection as a person would write it; tests change what they are about.
pub fn connection(
    name: &str,
    local: &str,
    remote: &str,
    local_net: &str,
    remote_net: &str,
) -> ConnectionConfig {
    let ike = "aes256gcm16-prfsha256-x25519";
    let esp = "aes256gcm16";
    let setting = |line: u32, value: &str| SettingLine {
        line,
        value: format!("\"{value}\""),
    };
    ConnectionConfig {
        name: name.into(),
        local_address: Some(local.parse().unwrap()),
        remote_address: RemoteAddress::Address(remote.parse().unwrap()),
        remote_port: 500,
        local_id: None,
        remote_id: RemoteIdentity::Address,
        ike: vec![Proposal::parse_ike(ike, false).unwrap()],
        esp: vec![Proposal::parse_esp(esp, false).unwrap()],
        local_ts: selectors(local_net),
        remote_ts: selectors(remote_net),
        dpd: Some(Dpd {
            delay: Duration::from_secs(30),
            action: DpdAction::Restart,
        }),
        start: StartAction::None,
        encapsulation: EncapsulationPolicy::Auto,
        replay_window: 4096,
        ike_lifetime: lifetime(4 * 3600),
        child_lifetime: lifetime(3600),
        origin: SettingOrigin {
            file: format!("{name}.toml"),
            settings: BTreeMap::from([
                ("ike".to_owned(), setting(5, ike)),
                ("esp".to_owned(), setting(6, esp)),
                ("local.subnets".to_owned(), setting(3, local_net)),
                ("remote.subnets".to_owned(), setting(4, remote_net)),
            ]),
        },
    }
}

pub fn selectors(list: &str) -> Vec<espada_common::sa::TrafficSelector> {
    list.split(',')
        .map(|text| espada_ike::selector::parse(text.trim()).unwrap())
        .collect()
}

fn lifetime(seconds: u64) -> Lifetime {
    Lifetime {
        soft: Duration::from_secs(seconds),
        hard: Duration::from_secs(seconds + seconds / 10),
        jitter: Duration::from_secs(seconds / 20),
    }
}

/// A and B, ready to talk: A initiates, B responds.
pub fn site_to_site() -> (ConnectionConfig, ConnectionConfig) {
    (
        connection("to-b", A, B, "10.1.0.0/24", "10.2.0.0/24"),
        connection("to-a", B, A, "10.2.0.0/24", "10.1.0.0/24"),
    )
}
