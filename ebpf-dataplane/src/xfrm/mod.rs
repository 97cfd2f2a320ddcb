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
mod policy;
mod probe;
mod selector;
mod socket;
mod state;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, ChildSaId, ChildSaStats, Command, Encapsulation, HalfSaStats, Mode, Path, Policy,
    Takeover,
};

use crate::backend::{BackendError, EventSink};
use crate::engine::{Engine, Interface, Steering, Way};
use crate::netlink::{Netlink, NetlinkError};
use crate::port::{syscall, udp};
use crate::userspace::sysctl;

use drops::DropFile;
use events::{Listener, Shared};
use identity::Identity;
use policy::{Claims, Owner, Rank, Scope, Sends};
use socket::Requests;
use state::{Common, Known, Replay, Settings, Side, StateId};

pub use probe::{Answer, Probe, probe};

/// Name of this engine.
const NAME: &str = "xfrm";

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
    /// Mark that packets must bear to be protected, and that states are looked up with.
    pub mark: Option<Mark>,
    /// Mark that ESP packets get, for policy routing.
    pub output_mark: Option<Mark>,
    /// Use of network hardware.
    pub offload: OffloadMode,
    /// Where events go. Called from the engine's thread.
    pub sink: EventSink,
}

struct Connection {
    reqid: u32,
    trap: bool,
}

struct Pair {
    sa: ChildSa,
    reqid: u32,
    /// Its place in time.
    order: u64,
    /// The pair that sends until it is removed.
    waits_for: Option<ChildSaId>,
    installed: Instant,
    /// Since when the kernel has its present states.
    placed: Instant,
    offload: Option<(u32, OffloadKind)>,
    /// What states that this pair had on former paths counted.
    former: [HalfSaStats; 2],
    /// What was last read of the states: it stays when one has expired.
    seen: [HalfSaStats; 2],
}

impl Pair {
    fn rank(&self) -> Rank {
        match self.waits_for {
            Some(_) => Rank::Waiting(self.order),
            None => Rank::Pair(self.order),
        }
    }

    fn sends(&self) -> Sends {
        match self.waits_for {
            Some(_) => Sends::NotYet,
            None => Sends::Yes,
        }
    }

    fn policy_offload(&self) -> Option<u32> {
        match self.offload {
            Some((device, OffloadKind::Packet)) => Some(device),
            _ => None,
        }
    }

    fn settings<'a>(
        &self,
        common: &'a Common,
        if_id: u32,
        replay: Option<&'a Replay>,
    ) -> Settings<'a> {
        Settings {
            common,
            reqid: self.reqid,
            if_id: if self.sa.mode == Mode::Tunnel {
                if_id
            } else {
                0
            },
            path: self.sa.path,
            lifetime: self.sa.lifetime.saturating_sub(self.installed.elapsed()),
            offload: self.offload,
            replay,
        }
    }
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
            if config.offload == OffloadMode::Auto {
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
            mark: config.mark,
            output_mark: config.output_mark,
        };
        let name = &config.interface;
        let (identity, interface) =
            identity::establish(&mut netlink, &mut requests, name, &common)?;
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

    /// Brings the kernel the policies that a pair should have.
    fn claim_pair(&mut self, id: ChildSaId, sends: Sends) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Ok(());
        };
        let wanted = self
            .scope()
            .of_pair(&pair.sa, pair.reqid, sends, pair.policy_offload())
            .map_err(unsupported)?;
        let rank = pair.rank();
        self.set_claims(&Owner::Pair(id), rank, &wanted)
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
        let taken: BTreeSet<u32> = self
            .connections
            .values()
            .map(|connection| connection.reqid)
            .chain(self.pairs.values().map(|pair| pair.reqid))
            .collect();
        (1..=u16::MAX)
            .map(|number| self.identity.reqid(number))
            .find(|reqid| !taken.contains(reqid))
            .ok_or_else(|| {
                unsupported("more than 65,535 peers; use another engine for some".into())
            })
    }

    /// Tells the event thread whose request ids are whose.
    fn register_reqids(&self) {
        let traps = |name: &str| {
            self.connections
                .get(name)
                .is_some_and(|connection| connection.trap)
        };
        let own = self
            .connections
            .iter()
            .map(|(name, connection)| (connection.reqid, (Arc::clone(name), connection.trap)));
        let peers = self.pairs.values().map(|pair| {
            let name = &pair.sa.connection;
            (pair.reqid, (Arc::clone(name), traps(name)))
        });
        self.registry.lock().connections = own.chain(peers).collect();
    }

    fn install(
        &mut self,
        sa: &ChildSa,
        old: Option<(ChildSaId, Takeover)>,
    ) -> Result<(), BackendError> {
        self.supports(sa).map_err(unsupported)?;
        if self.pairs.contains_key(&sa.id) {
            return Err(BackendError::System {
                what: format!("child SA {} is installed already", sa.id.0),
                source: std::io::Error::from_raw_os_error(libc::EEXIST),
            });
        }
        // An old pair that is gone (it expired) is no reason not to install its successor.
        let old = old.and_then(|(id, takeover)| Some((self.pairs.get(&id)?, takeover)));
        let waits_for = match old {
            Some((old, Takeover::WithRemoval)) => Some(old.sa.id),
            _ => None,
        };
        let reqid = match old {
            Some((old, _)) => old.reqid,
            None => self.reqid_for(sa)?,
        };
        if sa.path.encapsulation == Encapsulation::Udp {
            self.encapsulate(true)?;
        }
        self.order += 1;
        let pair = Pair {
            sa: sa.clone(),
            reqid,
            order: self.order,
            waits_for,
            installed: Instant::now(),
            placed: Instant::now(),
            offload: None,
            former: Default::default(),
            seen: Default::default(),
        };
        self.pairs.insert(sa.id, pair);
        self.register(sa);
        self.register_reqids();
        let installed = self.install_offloaded(sa);
        if installed.is_err() {
            self.forget(sa.id);
        }
        installed
    }

    /// Installs a pair that is entered in the tables, with as much help of the device as it gives:
    /// whether it can is found out by trying, as it depends on algorithm, mode, features in use
    /// and what is left of its tables.
    fn install_offloaded(&mut self, sa: &ChildSa) -> Result<(), BackendError> {
        if let Some(device) = self.device(&sa.path) {
            for kind in [OffloadKind::Packet, OffloadKind::Crypto] {
                match self.try_install(sa, Some((device, kind))) {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        tracing::debug!(connection = %sa.connection, ?kind, %error, "no offload");
                    }
                }
            }
        }
        self.try_install(sa, None)
    }

    /// Inbound first: when the peer sees our first packet it may answer at once. The policies come
    /// last; with them traffic moves.
    fn try_install(
        &mut self,
        sa: &ChildSa,
        offload: Option<(u32, OffloadKind)>,
    ) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get_mut(&sa.id) else {
            return Ok(());
        };
        pair.offload = offload;
        let settings = pair.settings(&self.common, self.identity.if_id(), None);
        let [inbound, outbound] = [Side::Inbound, Side::Outbound].map(|side| {
            let id = StateId::of(sa, side);
            (id, state::describe(sa, side, &settings))
        });
        let sends = pair.sends();
        let requests = &mut self.requests;
        state::add(requests, &inbound.0, &inbound.1).map_err(|error| refused(sa, error))?;
        let rest = state::add(requests, &outbound.0, &outbound.1)
            .map_err(|error| refused(sa, error))
            .and_then(|()| {
                let claimed = self.claim_pair(sa.id, sends);
                if claimed.is_err() {
                    let _ = state::remove(&mut self.requests, &outbound.0, &self.common);
                }
                claimed
            });
        if rest.is_err() {
            let _ = state::remove(&mut self.requests, &inbound.0, &self.common);
            return rest;
        }
        if let Some((_, kind)) = offload {
            // A device without the feature leaves encryption to the kernel without a word. That
            // is no loss: the kernel then cuts what TCP hands it in large pieces after ESP.
            let known = state::look_up(&mut self.requests, &outbound.0, &self.common);
            if known.is_ok_and(|known| known.is_some_and(|known| known.offloaded)) {
                tracing::info!(connection = %sa.connection, ?kind, "carried by network hardware");
            }
        }
        Ok(())
    }

    /// The WAN device by which a path leaves, if hardware may be used.
    fn device(&mut self, path: &Path) -> Option<u32> {
        if self.devices.is_empty() {
            return None;
        }
        let (remote, local) = (path.remote.ip(), path.local.ip());
        let hop = self.netlink.route_get(remote, Some(local)).ok()?;
        self.devices.contains(&hop.link).then_some(hop.link)
    }

    fn register(&self, sa: &ChildSa) {
        let mut registry = self.registry.lock();
        for side in [Side::Inbound, Side::Outbound] {
            registry.states.insert(StateId::of(sa, side), (sa.id, side));
        }
    }

    /// Takes a pair whose states and policies are gone out of the tables.
    fn forget(&mut self, id: ChildSaId) -> Option<Pair> {
        let pair = self.pairs.remove(&id);
        self.registry.lock().forget(id);
        self.register_reqids();
        self.end_encapsulation();
        pair
    }

    fn remove(&mut self, id: ChildSaId) -> Result<(), BackendError> {
        if !self.pairs.contains_key(&id) {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        }
        // Whoever waited for this sends from here on; then the policies are free to go.
        let mut result = Ok(());
        let waiting: Vec<ChildSaId> = self
            .pairs
            .values()
            .filter(|pair| pair.waits_for == Some(id))
            .map(|pair| pair.sa.id)
            .collect();
        for successor in waiting {
            if let Some(pair) = self.pairs.get_mut(&successor) {
                pair.waits_for = None;
            }
            result = result.and(self.claim_pair(successor, Sends::Yes));
        }
        result = result.and(self.set_claims(&Owner::Pair(id), Rank::Connection, &[]));
        if let Some(pair) = self.forget(id) {
            for side in [Side::Outbound, Side::Inbound] {
                let state = StateId::of(&pair.sa, side);
                let removed = state::remove(&mut self.requests, &state, &self.common);
                result = result.and(removed.map_err(BackendError::from));
            }
        }
        result
    }

    /// The kernel knows a state by destination and SPI, and changes nothing of it in place but the
    /// UDP ports. So for other moves a state is taken out and comes back with its keys, sequence
    /// number and window at the new place. XFRM_MSG_MIGRATE would do that in one step, but names
    /// states by request id and addresses, and would take any one of those that a rekey left.
    fn move_path(&mut self, id: ChildSaId, path: &Path) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let (old, sends) = (pair.sa.path, pair.sends());
        if old == *path {
            return Ok(());
        }
        if path.local.is_ipv4() != path.remote.is_ipv4() {
            return Err(unsupported(format!(
                "a path between two address families ({} and {})",
                path.local, path.remote
            )));
        }
        if path.encapsulation == Encapsulation::Udp {
            self.encapsulate(true)?;
        }
        let ports_only = old.encapsulation == path.encapsulation
            && old.local.ip() == path.local.ip()
            && old.remote.ip() == path.remote.ip();
        if ports_only {
            for side in [Side::Inbound, Side::Outbound] {
                self.change_ports(id, path, side)?;
            }
            if let Some(pair) = self.pairs.get_mut(&id) {
                pair.sa.path = *path;
            }
            return Ok(());
        }
        // Hardware need not be able to do at the new place what it did at the old one: the kernel
        // itself carries the pair until its next rekey.
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.offload = None;
        }
        // Without this the kernel would ask for the missing state, and keep its place with one
        // that waits for keys.
        self.claim_pair(id, Sends::Blocked)?;
        let moved = [Side::Inbound, Side::Outbound]
            .into_iter()
            .try_for_each(|side| self.move_state(id, &old, path, side));
        let place = if moved.is_ok() { path } else { &old };
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.sa.path = *place;
            pair.placed = Instant::now();
            let sa = pair.sa.clone();
            self.registry.lock().forget(id);
            self.register(&sa);
        }
        let sends = if moved.is_ok() { sends } else { Sends::Blocked };
        let claimed = self.claim_pair(id, sends);
        self.end_encapsulation();
        moved.and(claimed)
    }

    /// Ends taking ESP from the sockets if no pair is in UDP.
    fn end_encapsulation(&mut self) {
        let in_udp = |pair: &Pair| pair.sa.path.encapsulation == Encapsulation::Udp;
        if !self.pairs.values().any(in_udp)
            && let Err(error) = self.encapsulate(false)
        {
            tracing::warn!(%error, "the kernel still takes ESP from the ESP-in-UDP sockets");
        }
    }

    fn change_ports(&mut self, id: ChildSaId, path: &Path, side: Side) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Ok(());
        };
        let settings = Settings {
            path: *path,
            // Counted from when the state was made, which this does not change.
            lifetime: pair
                .sa
                .lifetime
                .saturating_sub(pair.placed - pair.installed),
            ..pair.settings(&self.common, self.identity.if_id(), None)
        };
        let body = state::describe(&pair.sa, side, &settings);
        let state = StateId::of(&pair.sa, side);
        Ok(state::update(&mut self.requests, &state, &body)?)
    }

    fn move_state(
        &mut self,
        id: ChildSaId,
        old: &Path,
        path: &Path,
        side: Side,
    ) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return Ok(());
        };
        let from = StateId::of(&pair.sa, side);
        let known = state::take(&mut self.taking, &from, &self.common)?;
        let mut former = half_stats(&known, side);
        if side == Side::Outbound {
            // These go on with the sequence numbers.
            former.packets = 0;
        }
        add_up(&mut pair.former[side as usize], &former);
        let replay = known.replay.as_ref();
        let mut result = Ok(());
        for path in [path, old] {
            let mut sa = pair.sa.clone();
            sa.path = *path;
            let settings = Settings {
                path: *path,
                ..pair.settings(&self.common, self.identity.if_id(), replay)
            };
            let body = state::describe(&sa, side, &settings);
            let added = state::add(&mut self.requests, &StateId::of(&sa, side), &body);
            if added.is_ok() {
                return result;
            }
            // Back to where it was; the first refusal is the one to tell.
            result = result.and(added.map_err(|error| refused(&sa, error)));
        }
        result
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
            Command::RemoveSa { id } => self.remove(*id),
            Command::MovePath { id, path } => self.move_path(*id, path),
        }
    }

    fn steering(&self, _path: &Path) -> Steering {
        Steering::Kernel
    }

    /// The kernel finds the way and its MTU itself.
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
                    complete = false;
                    continue;
                };
                let mut half = half_stats(known, side);
                add_up(&mut half, &pair.former[side as usize]);
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
        if let Err(error) = identity::sweep(&mut self.requests, self.identity, &self.common) {
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

/// Why the kernel does not take a state.
fn refused(sa: &ChildSa, error: NetlinkError) -> BackendError {
    match error.errno() {
        libc::EEXIST => BackendError::System {
            what: format!(
                "{error}: another program has a state with this SPI; see `ip xfrm state` and end \
                 that program's connection"
            ),
            source: std::io::Error::from_raw_os_error(libc::EEXIST),
        },
        libc::ENOSYS | libc::ENOENT => unsupported(probe::explain_suite(&sa.suite, Some(&error))),
        _ => error.into(),
    }
}

fn half_stats(known: &Known, side: Side) -> HalfSaStats {
    let mut stats = HalfSaStats {
        packets: known.current.packets,
        bytes: known.current.bytes,
        last_used: known.last_used.and_then(instant),
        ..HalfSaStats::default()
    };
    match side {
        Side::Inbound => {
            let drops = &known.drops;
            stats.drops[DropReason::Replay as usize] =
                u64::from(drops.replay) + u64::from(drops.replay_window);
            stats.drops[DropReason::AuthFailed as usize] = drops.integrity_failed.into();
        }
        // The kernel counts a large piece of TCP that it cuts after ESP as one packet, but each
        // packet has its sequence number.
        Side::Outbound => {
            if let Some(replay) = &known.replay {
                stats.packets = replay.sent();
            }
        }
    }
    stats
}

/// A time of day (seconds since 1970) on the monotonic clock, unless it is zero.
fn instant(seconds: u64) -> Option<Instant> {
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(Some(seconds).filter(|s| *s > 0)?))?;
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    Instant::now().checked_sub(age)
}

fn add_up(total: &mut HalfSaStats, more: &HalfSaStats) {
    total.packets += more.packets;
    total.bytes += more.bytes;
    for (total, more) in total.drops.iter_mut().zip(&more.drops) {
        *total += more;
    }
    total.last_used = total.last_used.max(more.last_used);
}

#[cfg(test)]
mod tests;
