//! The control side: chooses an engine for each pair, carries commands out in the order that loses
//! no packet, keeps routes and guards, and watches the network for changes that move path MTUs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use espada_common::sa::{
    ChildSa, ChildSaId, Command, Encapsulation, EspSuite, Mode, Path, Policy, Takeover,
};

use super::held::Held;
use super::routes::Routes;
use super::{SharedFrontEnd, lock_front_end};
use crate::backend::{BackendError, Carrier};
use crate::engine::{Engine, Steering, Way};
use crate::esp::sad::Geometry;
use crate::frontend::policy::protected_pairs;
use crate::frontend::{FrontEnd, FrontEndError};
use crate::netlink::{Link, Monitor, Netlink, NextHop};
use crate::port::syscall::Poller;
use crate::port::xsk::NextLink;
use crate::wake::{Suspicion, Wake};

/// Path MTUs that routers told the kernel of expire in silence, so they are read now and then.
const REFRESH: Duration = Duration::from_secs(15);

/// One change of the network comes as several messages.
const SETTLE: Duration = Duration::from_millis(50);

/// A pair as far as the plane must know it, whichever engine carries it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Name of the connection.
    pub connection: Arc<str>,
    /// Algorithms.
    pub suite: EspSuite,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Where its packets travel.
    pub path: Path,
    /// SPIs of the inbound and the outbound SA.
    pub spis: [u32; 2],
}

impl From<&ChildSa> for Pair {
    fn from(sa: &ChildSa) -> Self {
        Self {
            connection: Arc::clone(&sa.connection),
            suite: sa.suite,
            mode: sa.mode,
            path: sa.path,
            spis: [sa.inbound.spi, sa.outbound.spi],
        }
    }
}

/// A pair that is carried.
struct Carried {
    pair: Pair,
    /// Place of its engine.
    engine: usize,
    /// Why engines before it were not taken.
    passed_over: Vec<String>,
    /// Octets of outer IP packet that fit the path, and how packets get to the peer past the kernel.
    way: Option<Way>,
    /// Its connection's routes follow this pair to its engine when it is removed.
    successor: Option<ChildSaId>,
}

impl Carried {
    /// Longest inner packet.
    fn inner_mtu(&self) -> Option<u32> {
        let geometry = Geometry::new(&self.pair.suite, &self.pair.path);
        let mtu = self.way.as_ref()?.mtu;
        u32::try_from(geometry.max_inner(self.pair.mode, mtu, 20)).ok()
    }
}

/// An engine that is not there.
#[derive(Clone, Debug)]
pub struct Absent {
    /// How many engines are asked before it would be.
    before: usize,
    pub name: &'static str,
    pub reason: String,
}

impl Absent {
    pub fn new(before: usize, kind: super::EngineKind, reason: String) -> Self {
        Self {
            before,
            name: kind.name(),
            reason,
        }
    }
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// What the control side is made of.
pub struct Parts {
    pub netlink: Netlink,
    /// Engines, in the order in which they are asked.
    pub engines: Vec<Box<dyn Engine>>,
    /// Engines that are not there.
    pub absent: Vec<Absent>,
    pub front_end: Option<SharedFrontEnd>,
    /// Names of the WAN interfaces.
    pub wan: Vec<String>,
}

/// State behind the plane's `SaBackend`.
pub struct Control {
    parts: Parts,
    routes: Routes,
    /// Policies of transport mode, which have no routes.
    unrouted: BTreeMap<Arc<str>, Policy>,
    pairs: BTreeMap<ChildSaId, Carried>,
    /// Our addresses at which the front end looks for ESP and IKE.
    addresses: BTreeSet<IpAddr>,
    held: Held,
    /// The interfaces as they were when the network was looked at last, which is after every change.
    links: Vec<Link>,
}

impl Control {
    pub fn new(mut parts: Parts) -> Result<Self, BackendError> {
        let links = parts
            .engines
            .iter()
            .map(|engine| engine.interface().index)
            .collect();
        let mut routes = Routes::new(&mut parts.netlink, links)?;
        let mut pairs = BTreeMap::new();
        for (place, engine) in parts.engines.iter_mut().enumerate() {
            for (id, pair) in engine.adopted() {
                pairs.insert(
                    id,
                    Carried {
                        pair,
                        engine: place,
                        passed_over: Vec::new(),
                        way: None,
                        successor: None,
                    },
                );
            }
        }
        if pairs.is_empty() {
            routes.settle(&mut parts.netlink);
        }
        let mut control = Self {
            parts,
            routes,
            unrouted: BTreeMap::new(),
            pairs,
            addresses: BTreeSet::new(),
            held: Held::default(),
            links: Vec::new(),
        };
        for carried in control.pairs.values() {
            let steering = control.steering(carried);
            control.announce_spis(&carried.pair, steering)?;
        }
        control.refresh();
        Ok(control)
    }

    /// Removes the routes and ends the engines.
    pub fn shut_down(&mut self) {
        self.routes.clear(&mut self.parts.netlink);
        for engine in &mut self.parts.engines {
            engine.shut_down();
        }
    }

    /// Does something with the front end, if there is one.
    fn front_end(
        &self,
        f: impl FnOnce(&mut FrontEnd) -> Result<(), FrontEndError>,
    ) -> Result<(), BackendError> {
        match &self.parts.front_end {
            Some(front_end) => f(&mut lock_front_end(front_end)).map_err(front_end_error),
            None => Ok(()),
        }
    }

    /// Has the clear-text guards know a policy, which has no routes yet.
    fn guard_also(&self, policy: &Policy) -> Result<(), BackendError> {
        let connection = &policy.connection;
        let replaces = self.routes.has_policy(connection) || self.unrouted.contains_key(connection);
        if replaces {
            return self.guard(Some(policy));
        }
        self.front_end(|front_end| front_end.add_policies(&protected_pairs(policy)))
    }

    /// Hands the clear-text guards all policies; those of `with` too.
    fn guard(&self, with: Option<&Policy>) -> Result<(), BackendError> {
        self.front_end(|front_end| {
            let pairs: Vec<_> = self
                .routes
                .policies()
                .chain(self.unrouted.values())
                .chain(with)
                .flat_map(protected_pairs)
                .collect();
            front_end.set_policies(&pairs)
        })
    }

    pub fn exempt_peer(&mut self, peer: IpAddr) -> Result<(), BackendError> {
        self.routes.exempt(&mut self.parts.netlink, peer)
    }

    /// What a predecessor left and nobody has claimed goes.
    pub fn settled(&mut self) {
        self.routes.settle(&mut self.parts.netlink);
        let pairs = self.pairs.values().map(|carried| &carried.pair);
        let (inbound, outbound): (Vec<u32>, Vec<(IpAddr, u32)>) = pairs
            .map(|pair| {
                let [spi_in, spi_out] = pair.spis;
                (spi_in, (pair.path.remote.ip(), spi_out))
            })
            .unzip();
        if let Err(error) = self.front_end(|front_end| front_end.retain(&inbound, &outbound)) {
            tracing::warn!(%error, "the front end knows SAs that are gone");
        }
    }

    /// Which engine carries a pair, and why none before it.
    pub fn carrier(&self, id: ChildSaId) -> Option<Carrier> {
        let carried = self.pairs.get(&id)?;
        let engine = self.parts.engines.get(carried.engine)?;
        Some(Carrier {
            engine: engine.name(),
            interface: engine.interface().name.clone(),
            passed_over: carried.passed_over.clone(),
        })
    }

    pub fn engines(&mut self) -> &mut [Box<dyn Engine>] {
        &mut self.parts.engines
    }

    pub fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        match &command {
            Command::InstallPolicy(policy) => self.install_policy(&command, policy),
            Command::RemovePolicy { connection } => {
                self.unrouted.remove(connection);
                self.routes.remove(&mut self.parts.netlink, connection)?;
                self.watch_traps();
                self.guard(None)?;
                self.tell_all(&command)
            }
            Command::InstallSa(sa) => self.install(&command, sa, None),
            Command::RekeySa { old, new, takeover } => {
                self.install(&command, new, Some((*old, *takeover)))
            }
            Command::MovePath { id, path } => self.move_path(&command, *id, path),
            Command::Retire { id } => self.retire(&command, *id),
            Command::RemoveSa { id } => self.remove(&command, *id),
        }
    }

    /// Every engine gets every policy: which of them its traffic reaches is a matter of routes.
    fn tell_all(&mut self, command: &Command) -> Result<(), BackendError> {
        let mut result = Ok(());
        for engine in &mut self.parts.engines {
            result = result.and(engine.apply(command));
        }
        result
    }

    fn install_policy(&mut self, command: &Command, policy: &Policy) -> Result<(), BackendError> {
        // The engines first: what the routes bring then finds its policy.
        let mut installed = self.tell_all(command);
        if installed.is_ok() {
            installed = self.guard_also(policy);
        }
        if installed.is_ok() {
            installed = match policy.mode {
                Mode::Tunnel => {
                    let link = self.home(&policy.connection);
                    self.routes.install(&mut self.parts.netlink, policy, link)
                }
                Mode::Transport => {
                    let connection = Arc::clone(&policy.connection);
                    self.unrouted.insert(connection, policy.clone());
                    Ok(())
                }
            };
        }
        if let Err(error) = installed {
            let connection = Arc::clone(&policy.connection);
            let _ = self.tell_all(&Command::RemovePolicy { connection });
            let _ = self.guard(None);
            return Err(error);
        }
        self.set_route_mtu(&policy.connection);
        if policy.trap {
            self.watch_traps();
        }
        Ok(())
    }

    /// Has the first packets of connections kept that have no SA, where their engine does not.
    fn watch_traps(&mut self) {
        // Without an SA a connection is at home in the engine that is asked first.
        let engine = self.parts.engines.first();
        let Some(engine) = engine.filter(|engine| !engine.keeps_packets()) else {
            return;
        };
        let served: HashSet<&str> = self.pairs.values().map(|it| &*it.pair.connection).collect();
        let unserved = |policy: &&Policy| policy.trap && !served.contains(&*policy.connection);
        let wanted = self.routes.policies().filter(unserved).cloned().collect();
        self.held.watch(engine.interface().index, wanted);
    }

    /// The plaintext interface for a connection: that of the engine which carries it, else of the
    /// one that is asked first.
    fn home(&self, connection: &str) -> u32 {
        let newest = self
            .pairs
            .values()
            .rfind(|carried| *carried.pair.connection == *connection);
        let engine = self
            .parts
            .engines
            .get(newest.map_or(0, |carried| carried.engine));
        engine.map_or(0, |engine| engine.interface().index)
    }

    /// The first engine that can carry a pair, and what those before it said.
    fn choose(&self, sa: &ChildSa) -> Result<(usize, Vec<String>), BackendError> {
        let mut passed_over = Vec::new();
        let absent_at = |place: usize| {
            let absent = self.parts.absent.iter();
            absent.filter(move |absent| absent.before == place)
        };
        for (place, engine) in self.parts.engines.iter().enumerate() {
            passed_over.extend(absent_at(place).map(Absent::to_string));
            match engine.supports(sa) {
                Ok(()) => return Ok((place, passed_over)),
                Err(reason) => passed_over.push(format!("{}: {reason}", engine.name())),
            }
        }
        let last = self.parts.engines.len();
        passed_over.extend(absent_at(last).map(Absent::to_string));
        Err(BackendError::NoEngine(passed_over.join("; ")))
    }

    /// Inbound first: when the peer sees our first packet it may answer at once.
    fn install(
        &mut self,
        command: &Command,
        sa: &ChildSa,
        old: Option<(ChildSaId, Takeover)>,
    ) -> Result<(), BackendError> {
        let (place, passed_over) = self.choose(sa)?;
        if sa.mode == Mode::Tunnel {
            self.routes
                .exempt(&mut self.parts.netlink, sa.path.remote.ip())?;
        }
        let carried = Carried {
            pair: Pair::from(sa),
            engine: place,
            passed_over,
            way: None,
            successor: None,
        };
        let steering = self.steering(&carried);
        self.announce_spis(&carried.pair, steering)?;
        let predecessor = old.and_then(|(old, _)| self.pairs.get(&old));
        let same = predecessor.is_some_and(|old| old.engine == place);
        let way = self.look_up_way(&sa.path);
        let Some(engine) = self.parts.engines.get_mut(place) else {
            return Err(BackendError::NoEngine(String::new()));
        };
        engine.announce_way(way.as_ref());
        let applied = if old.is_none() || same {
            engine.apply(command)
        } else {
            engine.apply(&Command::InstallSa(Box::new(sa.clone())))
        };
        if let Err(error) = applied {
            let _ = self.forget_spis(&carried.pair);
            return Err(error);
        }
        // Until now packets without an SA were dropped, from now on they are carried.
        self.held.collect(Instant::now());
        tracing::debug!(
            connection = %sa.connection,
            id = sa.id.0,
            engine = engine.name(),
            passed_over = ?carried.passed_over,
            "engine chosen"
        );
        let link = engine.interface().index;
        let mut carried = carried;
        let predecessor = old.and_then(|(old, _)| self.pairs.get_mut(&old));
        match (old, predecessor) {
            (Some((_, Takeover::WithRemoval)), Some(old)) => {
                old.successor = Some(sa.id).filter(|_| !same);
            }
            (_, Some(old)) => carried.successor = old.successor.take(),
            _ => {}
        }
        self.pairs.insert(sa.id, carried);
        self.settle(sa.id, way);
        match old {
            Some((_, Takeover::WithRemoval)) if !same => {}
            _ if sa.mode == Mode::Tunnel => {
                self.routes
                    .rehome(&mut self.parts.netlink, &sa.connection, link);
            }
            _ => {}
        }
        if !self.held.is_idle() {
            self.held.release(&sa.connection);
            self.watch_traps();
        }
        Ok(())
    }

    fn retire(&mut self, command: &Command, id: ChildSaId) -> Result<(), BackendError> {
        let Some(carried) = self.pairs.get_mut(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let (place, successor) = (carried.engine, carried.successor.take());
        self.bring_routes(successor);
        match self.parts.engines.get_mut(place) {
            Some(engine) => engine.apply(command),
            None => Ok(()),
        }
    }

    /// Brings the routes to the engine of a pair that sends from now on.
    fn bring_routes(&mut self, successor: Option<ChildSaId>) {
        if let Some(successor) = successor.and_then(|id| self.pairs.get(&id))
            && let Some(engine) = self.parts.engines.get(successor.engine)
        {
            let connection = Arc::clone(&successor.pair.connection);
            let link = engine.interface().index;
            self.routes
                .rehome(&mut self.parts.netlink, &connection, link);
        }
    }

    fn remove(&mut self, command: &Command, id: ChildSaId) -> Result<(), BackendError> {
        let Some(carried) = self.pairs.remove(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        self.bring_routes(carried.successor);
        if self.routes.traps(&carried.pair.connection) {
            self.watch_traps();
        }
        let removed = match self.parts.engines.get_mut(carried.engine) {
            Some(engine) => engine.apply(command),
            None => Ok(()),
        };
        self.forget_spis(&carried.pair)?;
        removed
    }

    fn move_path(
        &mut self,
        command: &Command,
        id: ChildSaId,
        path: &Path,
    ) -> Result<(), BackendError> {
        let Some(carried) = self.pairs.get_mut(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let old = carried.pair.path;
        carried.pair.path = *path;
        carried.way = None;
        let (place, pair) = (carried.engine, carried.pair.clone());
        if pair.mode == Mode::Tunnel {
            self.routes
                .exempt(&mut self.parts.netlink, path.remote.ip())?;
        }
        let steering = self.pairs.get(&id).map(|carried| self.steering(carried));
        self.announce_spis(&pair, steering.unwrap_or(Steering::Kernel))?;
        let way = self.look_up_way(path);
        if let Some(engine) = self.parts.engines.get_mut(place) {
            engine.announce_way(way.as_ref());
            engine.apply(command)?;
        }
        if old.remote.ip() != path.remote.ip() {
            let [_, spi] = pair.spis;
            self.front_end(|front_end| front_end.remove_out(old.remote.ip(), spi))?;
        }
        self.settle(id, way);
        Ok(())
    }

    /// Tells whoever needs to know of a pair's way, without looking at those of all others.
    fn settle(&mut self, id: ChildSaId, way: Option<Way>) {
        let Some(carried) = self.pairs.get_mut(&id) else {
            return;
        };
        let ours = carried.pair.path.local.ip();
        if self.parts.front_end.is_some() && !self.addresses.contains(&ours) {
            return self.refresh();
        }
        let Some(way) = way else {
            return;
        };
        if let Some(engine) = self.parts.engines.get_mut(carried.engine) {
            engine.set_way(id, &way);
        }
        carried.way = Some(way);
        let connection = Arc::clone(&carried.pair.connection);
        let inner = carried.inner_mtu();
        if inner.is_none() || self.routes.mtu(&connection) != inner {
            self.set_route_mtu(&connection);
        }
    }

    /// The way of a path, if it can be told now.
    fn look_up_way(&mut self, path: &Path) -> Option<Way> {
        if let Some(way) = way_to(&mut self.parts.netlink, &self.links, path) {
            return Some(way);
        }
        // By an interface that is new, perhaps.
        self.links = self.parts.netlink.links().ok()?;
        way_to(&mut self.parts.netlink, &self.links, path)
    }

    fn steering(&self, carried: &Carried) -> Steering {
        match self.parts.engines.get(carried.engine) {
            Some(engine) => engine.steering(&carried.pair.path),
            None => Steering::Kernel,
        }
    }

    /// Tells the front end of a pair: without that it would drop what arrives.
    fn announce_spis(&self, pair: &Pair, steering: Steering) -> Result<(), BackendError> {
        let [spi_in, spi_out] = pair.spis;
        self.front_end(|front_end| {
            front_end.add_sa(spi_in, pair.path.local.ip(), steering)?;
            front_end.add_out(pair.path.remote.ip(), spi_out)
        })
    }

    fn forget_spis(&self, pair: &Pair) -> Result<(), BackendError> {
        let [spi_in, spi_out] = pair.spis;
        self.front_end(|front_end| {
            front_end.remove_sa(spi_in)?;
            front_end.remove_out(pair.path.remote.ip(), spi_out)
        })
    }

    /// Looks addresses and every pair's way up again and tells whoever needs to know.
    pub fn refresh(&mut self) {
        self.held.collect(Instant::now());
        let links = match self.parts.netlink.links() {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!(%error, "path MTUs are not refreshed");
                return;
            }
        };
        if let Err(error) = self.refresh_addresses(&links) {
            tracing::warn!(%error, "the front end does not know all of this host's addresses");
        }
        self.routes.refresh_peers(&mut self.parts.netlink);
        let mut changed = BTreeSet::new();
        let mut ways: HashMap<usize, BTreeMap<ChildSaId, Way>> = HashMap::new();
        // Many pairs may have the same peer.
        let mut found: HashMap<_, Option<Way>> = HashMap::new();
        for (id, carried) in &mut self.pairs {
            let path = &carried.pair.path;
            let between = (
                path.local.ip(),
                path.remote.ip(),
                path.encapsulation == Encapsulation::Udp,
            );
            let way = found.entry(between);
            let way = way
                .or_insert_with(|| way_to(&mut self.parts.netlink, &links, path))
                .clone();
            let known = carried.way.as_ref().map(|way| way.mtu);
            // Without a route for the moment, the last MTU stays true.
            carried.way = match (way, carried.way.take()) {
                (Some(way), _) => Some(way),
                (None, Some(old)) => Some(Way { link: None, ..old }),
                (None, None) => None,
            };
            if let Some(way) = &carried.way {
                if known != Some(way.mtu) {
                    let inner = carried.inner_mtu();
                    tracing::debug!(connection = %carried.pair.connection, remote = %carried.pair.path.remote.ip(), mtu = way.mtu, ?inner, "path MTU");
                    changed.insert(Arc::clone(&carried.pair.connection));
                }
                let of_engine = ways.entry(carried.engine).or_default();
                of_engine.insert(*id, way.clone());
            }
        }
        for (place, engine) in self.parts.engines.iter_mut().enumerate() {
            engine.set_ways(ways.entry(place).or_default());
            engine.network_changed(&mut self.parts.netlink, &links);
        }
        for connection in changed {
            self.set_route_mtu(&connection);
        }
        self.links = links;
    }

    /// ESP and IKE are looked for on what is sent to the WAN's addresses and the pairs' own; nothing from
    /// or to any of this host's goes past the kernel.
    fn refresh_addresses(&mut self, links: &[Link]) -> Result<(), BackendError> {
        if self.parts.front_end.is_none() {
            return Ok(());
        }
        let wan: Vec<u32> = links
            .iter()
            .filter(|link| self.parts.wan.contains(&link.name))
            .map(|link| link.index)
            .collect();
        let addresses = self.parts.netlink.addresses()?;
        let mut local: BTreeSet<IpAddr> = addresses
            .iter()
            .filter(|address| wan.contains(&address.link))
            .map(|address| address.prefix.address)
            .collect();
        local.extend(
            self.pairs
                .values()
                .map(|carried| carried.pair.path.local.ip()),
        );
        let others: Vec<IpAddr> = addresses
            .iter()
            .map(|address| address.prefix.address)
            .filter(|address| !local.contains(address))
            .collect();
        let all: Vec<IpAddr> = local.iter().copied().collect();
        self.front_end(|front_end| front_end.set_addresses(&all, &others))?;
        self.addresses = local;
        Ok(())
    }

    fn set_route_mtu(&mut self, connection: &str) {
        let pairs = self
            .pairs
            .values()
            .filter(|carried| *carried.pair.connection == *connection);
        if let Some(mtu) = pairs.filter_map(Carried::inner_mtu).min() {
            self.routes
                .set_mtu(&mut self.parts.netlink, connection, mtu);
        }
    }
}

/// The way to a peer, if there is a route.
fn way_to(netlink: &mut Netlink, links: &[Link], path: &Path) -> Option<Way> {
    let (remote, local) = (path.remote.ip(), path.local.ip());
    let hop = match netlink.route_get(remote, Some(local)) {
        Ok(hop) => hop,
        Err(error) => {
            tracing::debug!(%error, "no route to a peer at the moment");
            return None;
        }
    };
    let link = links.iter().find(|link| link.index == hop.link)?;
    let mtu = hop.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Some(Way {
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        interface: link.index,
        // The kernel knows the way of a datagram; past it go whole frames only.
        link: match path.encapsulation {
            Encapsulation::Esp => next_link(netlink, link, &hop, remote),
            Encapsulation::Udp => None,
        },
    })
}

/// The Ethernet header towards a peer, if the kernel knows the neighbour; otherwise packets go
/// through the kernel, which then finds out.
fn next_link(netlink: &mut Netlink, link: &Link, hop: &NextHop, peer: IpAddr) -> Option<NextLink> {
    let source = link
        .mac
        .filter(|_| link.ethernet && link.up && !hop.local)?;
    let next = hop.gateway.unwrap_or(peer);
    let neighbour = match netlink.neighbour(link.index, next) {
        Ok(neighbour) => neighbour,
        Err(error) => {
            tracing::debug!(%error, "neighbour unknown");
            return None;
        }
    };
    if neighbour.stale {
        // What passes the kernel by does not confirm the neighbour to it.
        if let Err(error) = netlink.neighbour_probe(link.index, next) {
            tracing::debug!(%error, "neighbour not probed");
        }
    }
    Some(NextLink::new(
        neighbour.mac?,
        source,
        peer.is_ipv4(),
        link.mtu as usize,
    ))
}

pub fn front_end_error(error: FrontEndError) -> BackendError {
    BackendError::System {
        what: "the XDP/TC front end does not follow".into(),
        source: std::io::Error::other(error),
    }
}

/// The thread that refreshes [`Control`] when the network changes.
pub struct Watcher {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts it. A raised suspicion asks for a refresh; `wake` is what it signals.
    pub fn start(
        control: Arc<Mutex<Control>>,
        wake: Wake,
        suspicion: Suspicion,
    ) -> Result<Self, BackendError> {
        let mut monitor = Monitor::open()?;
        let system = |source| BackendError::System {
            what: "cannot watch the network".into(),
            source,
        };
        let mut poller = Poller::new().map_err(system)?;
        poller.add(wake.as_fd(), 0).map_err(system)?;
        poller.add(monitor.as_fd(), 1).map_err(system)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (own_wake, own_stop) = (wake.clone(), Arc::clone(&stop));
        let run = move || {
            loop {
                let quiet = match poller.wait(Some(REFRESH)) {
                    Ok(ready) => ready.count() == 0,
                    Err(error) => {
                        tracing::error!(%error, "the network is no longer watched for changes");
                        return;
                    }
                };
                own_wake.clear();
                if own_stop.load(Ordering::Acquire) {
                    return;
                }
                let suspect = suspicion.take();
                let mut changes = monitor.changes();
                if changes.any() {
                    std::thread::sleep(SETTLE);
                    changes = changes.and(monitor.changes());
                }
                if quiet || suspect || changes.any() {
                    super::lock(&control).refresh();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("espada-watch".into())
            .spawn(run);
        Ok(Self {
            wake,
            stop,
            thread: Some(thread.map_err(system)?),
        })
    }

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
