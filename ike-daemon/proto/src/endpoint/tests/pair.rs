//! Two endpoints on a virtual clock, with a network between them that delays, loses, duplicates,
//! reorders and translates.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSa, ChildSaId, Command, Mode, Policy, SecretBytes, Takeover};

use crate::config::*;
use crate::crypto::Random;
use crate::proposal::{Proposal, Protocol};
use crate::refusal::Refusal;
use crate::sa::Phase;
use crate::sa::established::Pending;
use crate::selector;
use crate::wire::{ExchangeType, HEADER_LEN, Header, PayloadType};
use crate::{
    ConnectionConfig, Endpoint, EndpointConfig, Notice, PskSecret, RestoreError, Transmit,
};

pub const A: &str = "192.0.2.1";
pub const B: &str = "198.51.100.2";
/// What time of day it is when a pair begins, since 1970.
pub const WALL: Duration = crate::x509::tests::NOW;
pub const NAT: &str = "203.0.113.9";

/// SplitMix64: repeatable, and good enough to stand in for a network.
#[derive(Clone)]
pub struct TestRng(pub u64);

impl TestRng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

impl Random for TestRng {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What the network does to datagrams.
#[derive(Clone, Copy)]
pub struct Network {
    pub latency: Duration,
    /// Further delay at random: more than the spacing of messages reorders them.
    pub jitter: Duration,
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    /// Larger IPv4 packets do not arrive.
    pub mtu: usize,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss_percent: 0,
            duplicate_percent: 0,
            mtu: usize::MAX,
        }
    }
}

/// One end with what it told the data plane and people.
pub struct End {
    pub endpoint: Endpoint<TestRng>,
    pub address: IpAddr,
    /// Further addresses that it is reached at.
    pub also: Vec<IpAddr>,
    pub commands: Vec<Command>,
    pub notices: Vec<Notice>,
    pub sas: BTreeMap<ChildSaId, ChildSa>,
    /// Pairs that send, the one that does so now last.
    pub sending: Vec<ChildSaId>,
    /// Pairs that send when another is retired, by that.
    waiting: HashMap<ChildSaId, ChildSaId>,
    pub policies: BTreeMap<String, Policy>,
    pub sent: Vec<Transmit>,
    pub keepalives: usize,
    /// What a successor would find.
    pub saved: BTreeMap<u64, Vec<u8>>,
    /// Why a state was refused.
    pub refused: Vec<RestoreError>,
    /// What the endpoint was made with, to make another.
    settings: EndpointConfig,
    pub config: Vec<ConnectionConfig>,
    pub secrets: Vec<PskSecret>,
    /// Nothing runs until then.
    down_until: Option<Instant>,
    seed: u64,
    /// Protected messages by what must not be used twice: SPI, direction and message ID, or IV.
    protected: HashMap<Vec<u8>, Vec<u8>>,
}

/// When an endpoint is killed.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    pub of_a: bool,
    /// At its how-manieth datagram.
    pub at: usize,
    pub when: KillWhen,
    /// How long nothing runs.
    pub down: Duration,
}

/// Where in the work on a datagram an endpoint is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillWhen {
    /// Commands are carried out, only so many states are stored.
    Saved(usize),
    /// The state is stored, the datagram not sent yet.
    Unsent,
    /// The datagram is sent.
    Sent,
}

impl End {
    fn new(address: &str, settings: EndpointConfig, seed: u64) -> Self {
        Self {
            endpoint: Endpoint::new(settings.clone(), TestRng(seed)),
            address: address.parse().unwrap(),
            also: Vec::new(),
            commands: Vec::new(),
            notices: Vec::new(),
            sas: BTreeMap::new(),
            sending: Vec::new(),
            waiting: HashMap::new(),
            policies: BTreeMap::new(),
            sent: Vec::new(),
            keepalives: 0,
            saved: BTreeMap::new(),
            refused: Vec::new(),
            settings,
            config: Vec::new(),
            secrets: vec![psk("correct horse")],
            down_until: None,
            seed,
            protected: HashMap::new(),
        }
    }

    /// Kills it: what it did not store is gone. The next one comes after `down`.
    pub fn kill(&mut self, now: Instant, down: Duration) {
        self.seed += 1000;
        self.endpoint = Endpoint::new(self.settings.clone(), TestRng(self.seed));
        self.down_until = Some(now + down);
    }

    /// Starts the successor of a killed one.
    fn restart(&mut self, now: Instant, boot: Duration) {
        self.down_until = None;
        self.endpoint.set_clock(now, boot);
        self.endpoint.set_wall_clock(now, WALL);
        self.endpoint.set_secrets(self.secrets.clone());
        self.endpoint.load_connections(now, self.config.clone());
        for (key, state) in self.saved.clone() {
            match self.endpoint.restore(now, &state) {
                Ok(restored) => assert!(restored.keys.is_empty() || restored.keys.contains(&key)),
                Err(error) => {
                    self.saved.remove(&key);
                    self.refused.push(error);
                }
            }
        }
        let carried: Vec<_> = self.sas.keys().copied().collect();
        let reconciled = self.endpoint.reconcile(now, &carried);
        for id in &reconciled.orphans {
            self.sas.remove(id);
        }
        assert_eq!(self.sas.len(), reconciled.carried.len());
        self.endpoint.handle_timeout(now);
    }

    /// No message ID and no IV is used for two messages.
    fn check_protected(&mut self, message: &[u8]) {
        let Ok((header, _)) = Header::split(message) else {
            return;
        };
        // Fragments have a number and a count before their IV.
        let fragment = match header.next_payload {
            PayloadType::SK => HEADER_LEN + 4..HEADER_LEN + 4,
            PayloadType::SKF => HEADER_LEN + 4..HEADER_LEN + 8,
            _ => return,
        };
        let mut id = message[..16].to_vec();
        id.push(header.flags.0);
        let mut iv = id.clone();
        id.extend(header.message_id.to_be_bytes());
        id.extend(&message[fragment.clone()]);
        iv.truncate(16);
        iv.push(header.flags.0 & 8);
        iv.extend(b"iv");
        if header.exchange == ExchangeType::IKE_INTERMEDIATE {
            // Each has keys of its own, and begins its IVs anew.
            iv.extend(header.message_id.to_be_bytes());
        }
        iv.extend(&message[fragment.end..fragment.end + 8]);
        for key in [id, iv] {
            let before = self
                .protected
                .entry(key)
                .or_insert_with(|| message.to_vec());
            assert_eq!(before, message, "used twice, and not for the same message");
        }
    }

    fn save(&mut self, count: usize) {
        for (key, state) in std::iter::from_fn(|| self.endpoint.poll_saved()).take(count) {
            match state {
                Some(state) => {
                    assert!(state.len() <= 16 * 1024, "{} octets", state.len());
                    self.saved.insert(key, state.to_vec());
                }
                None => {
                    self.saved.remove(&key).expect("a state that is there");
                }
            }
        }
    }

    fn collect(&mut self) {
        while let Some(notice) = self.endpoint.poll_notice() {
            self.notices.push(notice);
        }
        while let Some(command) = self.endpoint.poll_command() {
            match &command {
                Command::InstallPolicy(policy) => {
                    self.policies
                        .insert(policy.connection.to_string(), policy.clone());
                }
                Command::RemovePolicy { connection } => {
                    self.policies
                        .remove(&**connection)
                        .expect("a policy that is there");
                }
                Command::InstallSa(sa) => {
                    assert!(self.sas.insert(sa.id, (**sa).clone()).is_none());
                    self.sending.push(sa.id);
                }
                Command::RekeySa { old, new, takeover } => {
                    assert!(self.sas.contains_key(old), "the rekeyed SA is there");
                    assert!(self.sas.insert(new.id, (**new).clone()).is_none());
                    match takeover {
                        Takeover::WithRemoval => drop(self.waiting.insert(*old, new.id)),
                        Takeover::Now => {
                            if let Some(waiting) = self.waiting.remove(old) {
                                self.waiting.insert(new.id, waiting);
                            }
                            self.sending.push(new.id);
                            self.sending.retain(|id| id != old);
                        }
                    }
                }
                Command::Retire { id } => {
                    assert!(self.sas.contains_key(id), "the retired SA is there");
                    self.retire(*id);
                }
                Command::RemoveSa { id } => {
                    self.retire(*id);
                    self.sas.remove(id).expect("an SA that is there");
                }
                Command::MovePath { id, path } => {
                    self.sas.get_mut(id).expect("an SA that is there").path = *path
                }
            }
            self.commands.push(command);
        }
    }

    /// Whether it has an address.
    fn is_at(&self, address: IpAddr) -> bool {
        self.address == address || self.also.contains(&address)
    }

    /// Takes other addresses, the first of which it sends from.
    pub fn readdress(&mut self, now: Instant, addresses: &[&str]) {
        let mut addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.endpoint
            .set_addresses(now, addresses.clone(), |_| addresses.first().copied());
        self.address = addresses.remove(0);
        self.also = addresses;
    }

    fn retire(&mut self, id: ChildSaId) {
        let successor = self.waiting.remove(&id);
        let successor = successor.filter(|successor| self.sas.contains_key(successor));
        self.sending.extend(successor);
        self.sending.retain(|sending| *sending != id);
    }

    pub fn refusals(&self) -> Vec<&Refusal> {
        let refusals = self.notices.iter().filter_map(|notice| match notice {
            Notice::Refused(refusal) => Some(&**refusal),
            _ => None,
        });
        refusals.collect()
    }

    pub fn state(&self, now: Instant) -> &'static str {
        self.endpoint.status(now)[0].state
    }

    pub fn established(&self) -> usize {
        self.notices
            .iter()
            .filter(|notice| matches!(notice, Notice::Established { .. }))
            .count()
    }
}

/// Translates A's addresses.
#[derive(Default)]
pub struct Translator {
    ports: HashMap<u16, u16>,
    next: u16,
}

impl Translator {
    /// Forgets all mappings, as a restarted NAT does.
    pub fn restart(&mut self) {
        self.ports.clear();
    }
}

pub struct Pair {
    pub now: Instant,
    pub a: End,
    pub b: End,
    pub network: Network,
    pub nat: Option<Translator>,
    /// Datagrams from A, or to A, that are swallowed.
    pub cut: bool,
    /// Addresses that nothing gets to.
    pub unreachable: Vec<IpAddr>,
    pub kill: Option<Kill>,
    /// The boot clock's zero, less what [`Pair::boot`] adds.
    booted: Instant,
    rng: TestRng,
    /// Packets that each end sends with its SA of the moment at every step: by arrival and number,
    /// whether A receives it, and the SPI.
    packets: Option<BTreeMap<(Instant, u64), (bool, u32)>>,
    /// Packets that arrived when their SA was gone.
    pub lost: usize,
    /// By arrival and number: to, from, payload.
    flying: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    count: u64,
}

impl Pair {
    /// A runs `a`, B runs `b`, both with the same key.
    pub fn new(a: ConnectionConfig, b: ConnectionConfig) -> Self {
        Self::seeded(1, EndpointConfig::default(), a, b)
    }

    pub fn seeded(
        seed: u64,
        settings: EndpointConfig,
        a: ConnectionConfig,
        b: ConnectionConfig,
    ) -> Self {
        Self::with_settings(seed, [settings.clone(), settings], a, b)
    }

    /// The same with settings of its own for each end.
    pub fn with_settings(
        seed: u64,
        [of_a, of_b]: [EndpointConfig; 2],
        a: ConnectionConfig,
        b: ConnectionConfig,
    ) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            a: End::new(A, of_a, seed * 3 + 1),
            b: End::new(B, of_b, seed * 3 + 2),
            network: Network::default(),
            nat: None,
            cut: false,
            unreachable: Vec::new(),
            kill: None,
            booted: now,
            rng: TestRng(seed * 3),
            packets: None,
            lost: 0,
            flying: BTreeMap::new(),
            count: 0,
        };
        let boot = pair.boot();
        for end in [&mut pair.a, &mut pair.b] {
            end.endpoint.set_wall_clock(pair.now, WALL);
        }
        pair.a.endpoint.set_clock(pair.now, boot);
        pair.b.endpoint.set_clock(pair.now, boot);
        pair.a.config = vec![a.clone()];
        pair.b.config = vec![b.clone()];
        pair.a.endpoint.set_secrets(vec![psk("correct horse")]);
        pair.b.endpoint.set_secrets(vec![psk("correct horse")]);
        pair.b.endpoint.set_connections(pair.now, vec![b]);
        pair.a.endpoint.set_connections(pair.now, vec![a]);
        pair
    }

    /// The clock that outlives endpoints.
    pub fn boot(&self) -> Duration {
        Duration::from_secs(1000) + self.now.saturating_duration_since(self.booted)
    }

    /// Sends what waits to be sent.
    pub fn flush(&mut self) {
        for from_a in [true, false] {
            let end = if from_a { &mut self.a } else { &mut self.b };
            let now = self.now;
            let kill = self.kill.filter(|kill| kill.of_a == from_a);
            end.collect();
            let waiting = end.sent.len() + end.endpoint.out.transmits.len();
            if let Some(kill) = kill
                && let KillWhen::Saved(count) = kill.when
                && waiting > kill.at
            {
                self.kill = None;
                end.save(count);
                end.kill(now, kill.down);
                continue;
            }
            end.save(usize::MAX);
            while let Some(transmit) = end.endpoint.poll_transmit() {
                let last = kill.filter(|kill| kill.at == end.sent.len());
                if let Some(kill) = last {
                    self.kill = None;
                    end.kill(now, kill.down);
                    if kill.when == KillWhen::Unsent {
                        break;
                    }
                }
                end.check_protected(&transmit.payload);
                end.sent.push(transmit.clone());
                let Transmit {
                    mut local,
                    remote,
                    payload,
                    keepalive,
                } = transmit;
                assert!(end.is_at(local.ip()), "sent from an address of its own");
                if keepalive {
                    assert_eq!((local.port(), &payload[..]), (4500, &[0xff][..]));
                    end.keepalives += 1;
                    continue;
                }
                if from_a && let Some(nat) = &mut self.nat {
                    let next = &mut nat.next;
                    let port = *nat.ports.entry(local.port()).or_insert_with(|| {
                        *next += 1;
                        20000 + *next
                    });
                    local = SocketAddr::new(NAT.parse().unwrap(), port);
                }
                let copies = if self.rng.below(100) < self.network.duplicate_percent {
                    2
                } else {
                    1
                };
                let marker = if local.port() == 500 { 0 } else { 4 };
                let too_big = payload.len() + 28 + marker > self.network.mtu;
                for _ in 0..copies {
                    let lost = self.cut || self.unreachable.contains(&remote.ip());
                    if lost || too_big || self.rng.below(100) < self.network.loss_percent {
                        continue;
                    }
                    let jitter = self.network.jitter.as_micros() as u64;
                    let jitter = Duration::from_micros(self.rng.below(jitter + 1));
                    self.count += 1;
                    let arrival = self.now + self.network.latency + jitter;
                    self.flying
                        .insert((arrival, self.count), (remote, local, payload.clone()));
                }
            }
        }
    }

    /// Has both ends send packets at every step from now on, which arrive after the latency.
    pub fn start_traffic(&mut self) {
        self.packets = Some(BTreeMap::new());
    }

    fn send_packets(&mut self) {
        let Some(packets) = &mut self.packets else {
            return;
        };
        for (end, to_a) in [(&self.a, false), (&self.b, true)] {
            if let Some(sa) = end.sending.last().and_then(|id| end.sas.get(id)) {
                self.count += 1;
                let arrival = (self.now + self.network.latency, self.count);
                packets.insert(arrival, (to_a, sa.outbound.spi));
            }
        }
        while let Some(entry) = packets.first_entry()
            && entry.key().0 <= self.now
        {
            let (to_a, spi) = entry.remove();
            let end = if to_a { &self.a } else { &self.b };
            self.lost += usize::from(!end.sas.values().any(|sa| sa.inbound.spi == spi));
        }
    }

    /// Takes the datagram that has waited longest for one end off the network.
    fn take(&mut self, for_a: bool) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.flush();
        let to = if for_a {
            self.a.address
        } else {
            self.b.address
        };
        let mut flying = self.flying.iter();
        let key = *flying.find(|(_, (remote, ..))| remote.ip() == to)?.0;
        self.flying.remove(&key)
    }

    /// Delivers the datagram that has waited longest for A, or B; false if there is none.
    pub fn deliver(&mut self, for_a: bool) -> bool {
        let Some((to, from, payload)) = self.take(for_a) else {
            return false;
        };
        self.now += self.network.latency;
        let end = if for_a { &mut self.a } else { &mut self.b };
        end.endpoint.handle_datagram(self.now, to, from, &payload);
        self.flush();
        self.send_packets();
        true
    }

    /// Takes the datagram that has waited longest for A, or B, to be delivered later.
    pub fn hold(&mut self, for_a: bool) -> (SocketAddr, SocketAddr, Vec<u8>) {
        self.take(for_a).expect("a datagram to hold")
    }

    /// Puts it back, before all others.
    pub fn release(&mut self, held: (SocketAddr, SocketAddr, Vec<u8>)) {
        self.flying.insert((self.now, 0), held);
    }

    /// Loses the datagram that has waited longest for A, or B.
    pub fn lose(&mut self, for_a: bool) {
        self.take(for_a).expect("a datagram to lose");
    }

    /// Lets the next thing happen, if it does before `end`.
    fn step(&mut self, end: Instant) -> bool {
        self.flush();
        self.send_packets();
        let arrival = self.flying.keys().next().map(|(at, _)| *at);
        let timers = [&self.a, &self.b].map(|end| end.down_until.or(end.endpoint.poll_timeout()));
        let Some(next) = timers.into_iter().flatten().chain(arrival).min() else {
            return false;
        };
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        let boot = self.boot();
        for end in [&mut self.a, &mut self.b] {
            if end.down_until.is_some_and(|until| until <= self.now) {
                end.restart(self.now, boot);
            }
        }
        if arrival.is_some_and(|at| at <= self.now) {
            let (_, (mut to, from, payload)) = self.flying.pop_first().unwrap();
            if let Some(nat) = self.nat.as_ref().filter(|_| to.ip().to_string() == NAT) {
                match nat.ports.iter().find(|(_, outside)| **outside == to.port()) {
                    Some((inside, _)) => to = SocketAddr::new(self.a.address, *inside),
                    None => return true,
                }
            }
            let end = if self.a.is_at(to.ip()) {
                &mut self.a
            } else {
                &mut self.b
            };
            if end.is_at(to.ip()) && end.down_until.is_none() {
                end.endpoint.handle_datagram(self.now, to, from, &payload);
            }
        }
        self.a.endpoint.handle_timeout(self.now);
        self.b.endpoint.handle_timeout(self.now);
        self.flush();
        true
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while self.step(end) {
            steps += 1;
            assert!(steps < 200_000, "the endpoints do not come to rest");
        }
        self.now = end;
    }

    /// Lets time pass until `done`, at most `limit`.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        self.flush();
        while !done(self) {
            if !self.step(end) {
                return false;
            }
        }
        true
    }

    pub fn settle(&mut self) {
        self.run(Duration::from_secs(5));
    }

    /// Both have exactly one child SA and it is the same.
    pub fn assert_connected(&self) {
        assert_eq!(
            (self.a.sas.len(), self.b.sas.len()),
            (1, 1),
            "{:#?}\n{:#?}",
            self.a.notices,
            self.b.notices
        );
        assert_same(
            self.a.sas.values().next().unwrap(),
            self.b.sas.values().next().unwrap(),
        );
        for end in [&self.a, &self.b] {
            assert_eq!(end.endpoint.counters().half_open, 0);
            let status = &end.endpoint.status(self.now)[0];
            assert_eq!(status.state, "established");
            assert!(status.last_error.is_none());
            assert_eq!(
                status
                    .ike_sas
                    .iter()
                    .filter(|sa| sa.state == "established")
                    .count(),
                1
            );
        }
    }

    /// Both hold the same IKE SAs and child SAs, their data planes carry exactly those, and nothing
    /// waits for anything.
    pub fn assert_mirrored(&self, context: &str) {
        let ike = |end: &End| {
            let mut spis: Vec<_> = end
                .endpoint
                .sas
                .values()
                .filter(|entry| !matches!(entry.sa.phase, Phase::Lingering(_)))
                .map(|entry| {
                    assert!(
                        entry.sa.is_established(),
                        "{context}: {:?}",
                        end.endpoint.status(self.now)
                    );
                    (entry.sa.common.spi_i, entry.sa.common.spi_r)
                })
                .collect();
            spis.sort_unstable();
            spis
        };
        assert_eq!(ike(&self.a), ike(&self.b), "{context}: IKE SAs");
        for (end, other) in [(&self.a, &self.b), (&self.b, &self.a)] {
            let owned: Vec<ChildSaId> = end
                .endpoint
                .sas
                .values()
                .filter_map(|entry| match &entry.sa.phase {
                    Phase::Established(established) => Some(established),
                    _ => None,
                })
                .flat_map(|established| {
                    let pending = established.pending();
                    let idle = matches!(pending, None | Some(Pending::Liveness));
                    assert!(established.queue.is_empty() && idle, "{context}");
                    established.children.iter().map(|child| child.id)
                })
                .collect();
            let mut carried: Vec<_> = end.sas.keys().copied().collect();
            let mut sorted = owned.clone();
            sorted.sort_unstable();
            carried.sort_unstable();
            assert_eq!(
                sorted, carried,
                "{context}: the data plane carries what IKE has"
            );
            assert_eq!(end.endpoint.out.child_count(), carried.len(), "{context}");
            for sa in end.sas.values() {
                let same = other
                    .sas
                    .values()
                    .find(|same| same.inbound.spi == sa.outbound.spi);
                assert_same(
                    sa,
                    same.unwrap_or_else(|| panic!("{context}: a one-sided SA")),
                );
            }
            let sending = end.sending.last().and_then(|id| end.sas.get(id));
            assert_eq!(
                sending.is_some(),
                !end.sas.is_empty(),
                "{context}: somebody sends"
            );
        }
    }

    /// Neither has anything left of any SA.
    pub fn assert_nothing_left(&self) {
        for end in [&self.a, &self.b] {
            assert!(end.sas.is_empty());
            assert!(
                end.endpoint.sas.is_empty(),
                "{:#?}",
                end.endpoint.status(self.now)
            );
            assert!(end.endpoint.init_index.is_empty());
            assert!(end.endpoint.half_open.is_empty());
            assert_eq!(end.endpoint.half_open_total, 0);
            assert_eq!(end.endpoint.out.child_count(), 0);
        }
    }
}

/// Each receives what the other sends.
pub fn assert_same(a: &ChildSa, b: &ChildSa) {
    for (from, to) in [(&a.outbound, &b.inbound), (&b.outbound, &a.inbound)] {
        assert_eq!(from.spi, to.spi);
        assert_eq!(from.encryption_key.expose(), to.encryption_key.expose());
        assert_eq!(from.integrity_key.expose(), to.integrity_key.expose());
        assert_eq!(
            from.encryption_key.expose().len(),
            a.suite.cipher.keymat_len()
        );
    }
    assert_ne!(
        a.outbound.encryption_key.expose(),
        a.inbound.encryption_key.expose()
    );
    assert_eq!(a.suite, b.suite);
    assert_eq!((&a.local_ts, &a.remote_ts), (&b.remote_ts, &b.local_ts));
    assert_eq!(a.path.encapsulation, b.path.encapsulation);
}

pub fn psk(secret: &str) -> PskSecret {
    PskSecret {
        ids: Vec::new(),
        secret: SecretBytes::new(secret.as_bytes().to_vec()),
        origin: "secrets.toml:1".to_owned(),
    }
}

fn proposals(protocol: Protocol, text: &str) -> Vec<Proposal> {
    text.split(',')
        .map(|text| Proposal::parse(protocol, text, true).unwrap().proposal)
        .collect()
}

/// A connection from `local` to `remote` that starts by itself.
pub fn connection(local: &str, remote: &str, ike: &str, esp: &str) -> ConnectionConfig {
    let lifetime = Lifetime {
        soft: Duration::from_secs(4 * 3600),
        hard: Duration::from_secs(5 * 3600),
        jitter: Duration::from_secs(600),
    };
    let settings = [
        "ike",
        "esp",
        "auth",
        "local.id",
        "local.subnets",
        "remote.id",
        "remote.subnets",
        "remote.address",
        "mode",
        "local.key",
        "remote.cacerts",
        "vips",
        "pools",
        "ppk",
    ];
    let settings = settings.iter().enumerate().map(|(index, name)| {
        let value = match *name {
            "ike" => format!("\"{ike}\""),
            "esp" => format!("\"{esp}\""),
            _ => "…".to_owned(),
        };
        (
            (*name).to_owned(),
            SettingLine {
                line: index as u32 + 3,
                value,
            },
        )
    });
    ConnectionConfig {
        name: "site".into(),
        local_address: Some(local.parse().unwrap()),
        remote_address: RemoteAddress::Address(remote.parse().unwrap()),
        remote_port: 500,
        local_id: None,
        remote_id: RemoteIdentity::Address,
        local_auth: LocalAuth::Psk,
        send_cert: SendCert::Always,
        remote_auth: RemoteAuth::Psk,
        ppk: None,
        sha1_signatures: false,
        ike: proposals(Protocol::Ike, ike),
        esp: proposals(Protocol::Esp, esp),
        mode: Mode::Tunnel,
        local_ts: vec![selector::parse("10.1.0.0/16").unwrap()],
        remote_ts: vec![selector::parse("10.2.0.0/16").unwrap()],
        dpd: Some(Dpd {
            delay: Duration::from_secs(30),
            action: DpdAction::Restart,
        }),
        start: StartAction::Start,
        keying_tries: 0,
        encapsulation: EncapsulationPolicy::Esp,
        replay_window: 4096,
        processors: None,
        ike_lifetime: lifetime,
        child_lifetime: lifetime,
        vips: Vec::new(),
        pools: Vec::new(),
        childless: Childless::Allow,
        mobike: false,
        single_pairs: false,
        child_bytes: None,
        child_packets: None,
        origin: SettingOrigin {
            file: "site.toml".to_owned(),
            settings: settings.collect(),
        },
    }
}

pub const IKE: &str = "aes256gcm16-prfsha256-x25519";
pub const ESP: &str = "aes256gcm16";

/// The initiator's connection.
pub fn initiator() -> ConnectionConfig {
    connection(A, B, IKE, ESP)
}

/// The same seen from B, which waits.
pub fn responder() -> ConnectionConfig {
    mirrored(&initiator())
}

/// A connection as the other end has it; it does not start by itself.
pub fn mirrored(config: &ConnectionConfig) -> ConnectionConfig {
    let mut other = config.clone();
    let RemoteAddress::Address(remote) = config.remote_address else {
        panic!("has a remote address")
    };
    other.local_address = Some(remote);
    other.remote_address = RemoteAddress::Address(config.local_address.unwrap());
    std::mem::swap(&mut other.local_ts, &mut other.remote_ts);
    other.start = StartAction::None;
    other
}
