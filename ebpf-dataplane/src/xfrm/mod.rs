//! The XFRM engine: the kernel carries ESP, told over netlink which states (SAs) and policies to
//! have.
//!
//! Tunnels belong to an interface of kind `xfrm`: its id stands in their states and policies, so
//! that these concern nothing but what is routed into it, and nothing leaves it in clear: a packet
//! without a policy, or with a policy but without a state, is dropped. Transport mode pairs have
//! policies without interface, for exactly their selectors.

mod drops;
mod events;
mod identity;
mod pairs;
mod policy;
mod probe;
mod selector;
mod socket;
mod state;
mod stats;
mod wire;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, ChildSaId, ChildSaStats, Command, Encapsulation, Mode, Path, Policy,
};

use crate::backend::{BackendError, EventSink};
use crate::engine::{Engine, Interface, Steering, Way};
use crate::netlink::Netlink;
use crate::plane::sysctl;
use crate::port::{syscall, udp};

use drops::DropFile;
use events::{Listener, Shared};
use identity::Identity;
use pairs::Pair;
use policy::{Claims, Owner, Rank, Scope};
use socket::Requests;
use state::{Common, Known, Side, StateId};

pub use probe::{Answer, Probe, probe};

/// Name of this engine.
pub const NAME: &str = "xfrm";

/// Smallest MTU a tunnel interface gets: IPv6 needs it (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// A mark and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its value.
    pub value: u32,
    /// Bits that are compared or set.
    pub mask: u32,
}

impl std::str::FromStr for Mark {
    type Err = String;

    /// `VALUE` or `VALUE/MASK`, each decimal or with `0x`; without a mask all bits count.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => text.parse(),
            }
            .map_err(|error| format!("`{text}` is no number of 32 bits: {error}"))
        };
        let (value, mask) = match text.split_once('/') {
            Some((value, mask)) => (number(value)?, number(mask)?),
            None => (number(text)?, u32::MAX),
        };
        if value & !mask != 0 {
            return Err(format!(
                "the value has bits that the mask lacks: {:#x}",
                value & !mask
            ));
        }
        Ok(Self { value, mask })
    }
}

/// What a user may choose of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Mark that packets must bear to be protected, and that states are looked up with.
    pub mark: Option<Mark>,
    /// Mark that ESP packets get, for policy routing.
    pub output_mark: Option<Mark>,
    /// Use of network hardware.
    pub offload: OffloadMode,
}

/// Whether network hardware does the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadMode {
    /// As much of it as the device can.
    #[default]
    Auto,
    /// None.
    Off,
}

/// How much of the work network hardware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadKind {
    /// Encryption; the kernel encapsulates.
    Crypto,
    /// Everything, policies included.
    Packet,
}

/// What an engine is started with.
pub struct Config {
    /// Name of the tunnel interface, at most 15 characters.
    pub interface: String,
    /// MTU of the tunnel interface; by default the smallest of the WAN interfaces'. What fits an
    /// SA the kernel works out itself.
    pub mtu: Option<u32>,
    /// WAN interfaces.
    pub wan: Vec<String>,
    /// Sockets bound to the ESP-in-UDP port, at most one of each address family. While there is an
    /// SA in UDP the kernel takes ESP from them; what is left for readers is IKE.
    pub udp: Vec<UdpSocket>,
    /// Whether to read those sockets and raise `Event::IkeDatagram`; false where another engine
    /// does.
    pub read_ike: bool,
    /// UDP ports on our side that IKE uses: transport mode between the same hosts leaves them
    /// alone.
    pub ike_ports: Vec<u16>,
    /// Marks and hardware.
    pub options: Options,
    /// Where events go. Called from the engine's thread.
    pub sink: EventSink,
}

struct Connection {
    reqid: u32,
    trap: bool,
}

/// The engine. Dropping it removes its states, policies and interface.
pub struct XfrmEngine {
    netlink: Netlink,
    requests: Requests,
    /// For taking states, which overhears what becomes of them.
    taking: Requests,
    probe: Probe,
    common: Common,
    identity: Identity,
    interface: Interface,
    ike_ports: Vec<u16>,
    /// Indices of the WAN interfaces, none where hardware is not to be used.
    devices: Vec<u32>,
    udp: Vec<UdpSocket>,
    encapsulating: bool,
    connections: BTreeMap<Arc<str>, Connection>,
    pairs: BTreeMap<ChildSaId, Pair>,
    order: u64,
    claims: Claims,
    registry: Shared,
    drops: DropFile,
    listener: Listener,
    sink: EventSink,
    running: bool,
}

impl XfrmEngine {
    /// Makes the interface and starts listening for events, all in the calling thread's network
    /// namespace. What a former instance with an interface of the same name left is removed.
    pub fn start(config: Config) -> Result<Self, BackendError> {
        let probe = probe();
        probe.usable().map_err(unsupported)?;
        let mut netlink = Netlink::open()?;
        let mut requests = Requests::open()?;
        let taking = Requests::open()?;
        let mut mtu = config.mtu;
        let mut devices = Vec::new();
        for name in &config.wan {
            let link = netlink.link(name)?;
            if !link.up {
                tracing::warn!(interface = name, "the WAN interface is down");
            }
            if config.mtu.is_none() {
                mtu = Some(mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
            }
            if config.options.offload == OffloadMode::Auto {
                devices.push(link.index);
            }
        }
        let mtu = mtu.unwrap_or(1500).clamp(LEAST_MTU, 65_535 - 256);
        sysctl::check(&config.wan);
        for socket in &config.udp {
            udp::prepare(socket)?;
        }
        let readers = if config.read_ike {
            config.udp.iter().map(UdpSocket::try_clone).collect()
        } else {
            Ok(Vec::new())
        };
        let readers = readers.map_err(|source| BackendError::System {
            what: "cannot duplicate the ESP-in-UDP sockets".into(),
            source,
        })?;
        let common = Common {
            mark: config.options.mark,
            output_mark: config.options.output_mark,
        };
        let name = &config.interface;
        let (identity, interface) = identity::establish(&mut netlink, &mut requests, name)?;
        let started = (|| {
            sysctl::prepare_tun(name);
            netlink.set_tunnel_up(interface.index, mtu)?;
            let registry = Shared::default();
            let listener = Listener::start(registry.clone(), readers, Arc::clone(&config.sink))?;
            Ok((registry, listener))
        })();
        let (registry, listener) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = identity::remove_link(&mut netlink, &interface);
                return Err(error);
            }
        };
        tracing::info!(
            interface = name,
            mtu,
            if_id = format_args!("{:#x}", identity.if_id()),
            "xfrm engine started"
        );
        Ok(Self {
            netlink,
            requests,
            taking,
            probe,
            common,
            identity,
            interface,
            ike_ports: config.ike_ports,
            devices,
            udp: config.udp,
            encapsulating: false,
            connections: BTreeMap::new(),
            pairs: BTreeMap::new(),
            order: 0,
            claims: Claims::default(),
            registry,
            drops: DropFile::open(),
            listener,
            sink: config.sink,
            running: true,
        })
    }

    /// What the kernel was found to offer.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    fn scope(&self) -> Scope<'_> {
        Scope {
            identity: self.identity,
            ike_ports: &self.ike_ports,
        }
    }

    fn install_policy(&mut self, policy: &Policy) -> Result<(), BackendError> {
        let reqid = match self.connections.get(&policy.connection) {
            Some(connection) => connection.reqid,
            None => self.free_reqid()?,
        };
        let wanted = match self.scope().of_connection(policy, reqid) {
            Ok(wanted) => wanted,
            // Another engine may still carry its pairs. Here nothing does, so nothing passes.
            Err(why) if policy.mode == Mode::Tunnel => {
                tracing::warn!(connection = %policy.connection, "no trap in the kernel: {why}");
                Vec::new()
            }
            Err(why) => return Err(unsupported(why)),
        };
        let owner = Owner::Connection(Arc::clone(&policy.connection));
        self.set_claims(&owner, Rank::Connection, &wanted)?;
        let connection = Connection {
            reqid,
            trap: policy.trap,
        };
        self.connections
            .insert(Arc::clone(&policy.connection), connection);
        self.register_reqids();
        Ok(())
    }

    fn remove_policy(&mut self, connection: &Arc<str>) -> Result<(), BackendError> {
        if !self.connections.contains_key(connection) {
            return Err(BackendError::Unknown(format!("policy of {connection}")));
        }
        let owner = Owner::Connection(Arc::clone(connection));
        self.set_claims(&owner, Rank::Connection, &[])?;
        self.connections.remove(connection);
        self.register_reqids();
        Ok(())
    }

    fn set_claims(
        &mut self,
        owner: &Owner,
        rank: Rank,
        wanted: &[(policy::Key, policy::Entry)],
    ) -> Result<(), BackendError> {
        let set = self
            .claims
            .set(&mut self.requests, &self.common, owner, rank, wanted);
        set.map_err(|error| match error.errno() {
            libc::EEXIST => BackendError::System {
                what: format!(
                    "{error}: another program has a policy for the same packets; see \
                     `ip xfrm policy` and end that program's connection"
                ),
                source: std::io::Error::from_raw_os_error(libc::EEXIST),
            },
            _ => error.into(),
        })
    }

    /// Pairs of one connection with one peer share a request id, since what arrives by the old pair
    /// of a rekey has to satisfy the policy of the new one, and those of different peers have
    /// different ones, so that no peer's packets satisfy another's policy. The first peer has the
    /// connection's own.
    fn reqid_for(&self, sa: &ChildSa) -> Result<u32, BackendError> {
        let of_connection = || {
            self.pairs
                .values()
                .filter(|pair| pair.sa.connection == sa.connection)
        };
        let same = of_connection().find(|pair| pair.sa.path.remote == sa.path.remote);
        if let Some(pair) = same {
            return Ok(pair.reqid);
        }
        let own = self.connections.get(&sa.connection);
        if let Some(own) = own
            && !of_connection().any(|pair| pair.reqid == own.reqid)
        {
            return Ok(own.reqid);
        }
        self.free_reqid()
    }

    fn free_reqid(&self) -> Result<u32, BackendError> {
        let taken = |reqid: u32| {
            let pairs = self.pairs.values().map(|pair| pair.reqid);
            let connections = self.connections.values().map(|connection| connection.reqid);
            pairs.chain(connections).any(|other| other == reqid)
        };
        // From a number on that is likely to be free.
        let start = self.pairs.len() + self.connections.len();
        (0..usize::from(u16::MAX))
            .filter_map(|step| u16::try_from((start + step) % usize::from(u16::MAX) + 1).ok())
            .map(|number| self.identity.reqid(number))
            .find(|reqid| !taken(*reqid))
            .ok_or_else(|| {
                unsupported("more than 65,535 peers; use another engine for some".into())
            })
    }

    /// Tells the event thread whose a request id is.
    fn register_reqid(&self, reqid: u32, name: &Arc<str>) {
        // Of several pairs the one that others fall back to may go first.
        let shared = |pair: &Pair| pair.reqid == reqid && pair.is_shared();
        let trap = self.connections.get(name).is_some_and(|found| found.trap)
            || self.pairs.values().any(shared);
        let mut registry = self.registry.lock();
        registry.connections.insert(reqid, (Arc::clone(name), trap));
    }

    /// After a policy changed.
    fn register_reqids(&self) {
        self.registry.lock().connections.clear();
        for (name, connection) in &self.connections {
            self.register_reqid(connection.reqid, name);
        }
        for pair in self.pairs.values() {
            self.register_reqid(pair.reqid, &pair.sa.connection);
        }
    }

    /// Has the kernel take ESP from the ESP-in-UDP sockets, or leave it. Only while there is an SA
    /// in UDP, so that an engine that reads ESP from the same sockets is not cut off before.
    fn encapsulate(&mut self, on: bool) -> Result<(), BackendError> {
        const UDP_ENCAP: i32 = 100;
        const ESP_IN_UDP: i32 = 2;
        if self.encapsulating == on {
            return Ok(());
        }
        if on && self.udp.is_empty() {
            return Err(unsupported(
                "ESP in UDP, as there is no socket for it".into(),
            ));
        }
        for socket in &self.udp {
            if on {
                // Trains of joined datagrams would reach the kernel's ESP as one. Not to have
                // been switched on is as good.
                let _ = syscall::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 0);
            }
            let kind = if on { ESP_IN_UDP } else { 0 };
            syscall::set_option(socket.as_fd(), libc::SOL_UDP, UDP_ENCAP, kind).map_err(
                |source| BackendError::System {
                    what: "cannot have the kernel take ESP from an ESP-in-UDP socket (UDP_ENCAP); \
                           IPv6 needs Linux 5.8"
                        .into(),
                    source,
                },
            )?;
        }
        self.encapsulating = on;
        Ok(())
    }
}

impl Engine for XfrmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn supports(&self, sa: &ChildSa) -> Result<(), String> {
        self.probe.suite(&sa.suite)?;
        if sa.path.local.is_ipv4() != sa.path.remote.is_ipv4() {
            return Err(format!(
                "a path between two address families ({} and {})",
                sa.path.local, sa.path.remote
            ));
        }
        if sa.path.local.is_ipv4() {
            self.probe.esp4.clone()?;
        } else {
            self.probe.esp6.clone()?;
        }
        if sa.path.encapsulation == Encapsulation::Udp {
            let of_family = |socket: &UdpSocket| {
                let local = socket.local_addr();
                local.is_ok_and(|local| local.is_ipv4() == sa.path.local.is_ipv4())
            };
            if !self.udp.iter().any(of_family) {
                return Err(format!(
                    "ESP in UDP: no socket of {}'s address family",
                    sa.path.local
                ));
            }
        }
        if sa.replay_window > state::MOST_WINDOW {
            return Err(format!(
                "a replay window of {} packets; the kernel's largest is {}",
                sa.replay_window,
                state::MOST_WINDOW
            ));
        }
        if sa.suite.esn && sa.replay_window == 0 {
            return Err(
                "extended sequence numbers without a replay window, which the kernel does not \
                 have; set replay_window, or propose suites without ESN"
                    .into(),
            );
        }
        selector::patterns(&sa.local_ts, &sa.remote_ts)?;
        if sa.mode == Mode::Transport {
            let inside = |selectors: &[espada_common::sa::TrafficSelector], end: SocketAddr| {
                selectors
                    .iter()
                    .all(|ts| ts.start == end.ip() && ts.end == end.ip())
            };
            // Behind a NAT the selectors name addresses that the packets do not have.
            if !inside(&sa.local_ts, sa.path.local) || !inside(&sa.remote_ts, sa.path.remote) {
                return Err(format!(
                    "transport mode for other addresses than the SA's own ({} and {})",
                    sa.path.local.ip(),
                    sa.path.remote.ip()
                ));
            }
        }
        Ok(())
    }

    fn apply(&mut self, command: &Command) -> Result<(), BackendError> {
        if !self.running {
            return Err(BackendError::Stopped(NAME));
        }
        match command {
            Command::InstallPolicy(policy) => self.install_policy(policy),
            Command::RemovePolicy { connection } => self.remove_policy(connection),
            Command::InstallSa(sa) => self.install(sa, None),
            Command::RekeySa { old, new, takeover } => self.install(new, Some((*old, *takeover))),
            Command::Retire { id } => self.retire(*id),
            Command::RemoveSa { id } => self.remove(*id),
            Command::MovePath { id, path } => self.move_path(*id, path),
        }
    }

    fn steering(&self, _path: &Path) -> Steering {
        Steering::Kernel
    }

    /// The kernel finds the way and its MTU itself.
    fn set_way(&mut self, _id: ChildSaId, _way: &Way) {}

    fn set_ways(&mut self, _ways: &BTreeMap<ChildSaId, Way>) {}

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        let known: std::collections::HashMap<StateId, Known> = state::list(&mut self.requests)?
            .into_iter()
            .filter(|known| self.identity.owns_state(known))
            .map(|known| (known.id, known))
            .collect();
        let mut stats = Vec::with_capacity(self.pairs.len());
        for (id, pair) in &mut self.pairs {
            let mut complete = true;
            for side in [Side::Inbound, Side::Outbound] {
                let Some(known) = known.get(&StateId::of(&pair.sa, side)) else {
                    complete &= !pair.has_state(side);
                    continue;
                };
                let mut half = stats::half(known, side);
                half.add(&pair.former[side as usize]);
                let seen = &mut pair.seen[side as usize];
                // Kernels before 6.2 do not tell when: between the last look and this one.
                if known.last_used.is_none() && half.packets > seen.packets {
                    half.last_used = Some(Instant::now());
                }
                half.last_used = half.last_used.max(seen.last_used);
                *seen = half;
            }
            let left = u64::from(u32::MAX).saturating_sub(pair.seen[1].packets);
            if !pair.sa.suite.esn
                && left <= state::SEQ_LOW
                && let Some(event) = self.registry.lock().seq_low(*id, left)
            {
                (self.sink)(event);
            }
            if !complete && let Some(event) = self.registry.lock().end(*id) {
                // It expired without our hearing of it, or somebody else removed it.
                (self.sink)(event);
            }
            let [inbound, outbound] = pair.seen.clone();
            stats.push(ChildSaStats {
                id: *id,
                inbound,
                outbound,
            });
        }
        Ok(stats)
    }

    fn drop_totals(&mut self) -> Result<[[u64; DropReason::COUNT]; 2], BackendError> {
        self.drops.totals()
    }

    fn shut_down(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        self.listener.stop();
        self.claims.clear(&mut self.requests, &self.common);
        for (_, pair) in std::mem::take(&mut self.pairs) {
            for side in [Side::Outbound, Side::Inbound] {
                let state = StateId::of(&pair.sa, side);
                if let Err(error) = state::remove(&mut self.requests, &state, &self.common) {
                    tracing::warn!(%error, "a state stays behind until its lifetime is over");
                }
            }
        }
        self.connections.clear();
        // States that wait for keys are not in our tables.
        if let Err(error) = identity::sweep(&mut self.requests, self.identity) {
            tracing::warn!(%error, "a state or policy stays behind");
        }
        if let Err(error) = self.encapsulate(false) {
            tracing::warn!(%error, "the kernel still takes ESP from the ESP-in-UDP sockets");
        }
        if let Err(error) = identity::remove_link(&mut self.netlink, &self.interface) {
            tracing::warn!(%error, "the tunnel interface stays behind");
        }
    }
}

impl Drop for XfrmEngine {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn unsupported(what: String) -> BackendError {
    BackendError::Unsupported { engine: NAME, what }
}

#[cfg(test)]
mod tests;
