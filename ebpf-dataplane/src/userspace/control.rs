//! The control side: carries commands out in the order that loses no packet, keeps routes, and
//! watches the network for changes that move path MTUs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use espada_common::sa::{ChildSa, ChildSaId, Command, Encapsulation, EspSuite, Mode, Path};

use super::routes::Routes;
use super::worker::{Handle, Wake};
use crate::backend::BackendError;
use crate::esp::ApplyError;
use crate::esp::sad::Geometry;
use crate::frontend::policy::protected_pairs;
use crate::frontend::{FrontEnd, FrontEndError};
use crate::netlink::{Link, Monitor, Netlink, NextHop};
use crate::port::syscall::Poller;
use crate::port::xsk::{Neighbours, NextLink};
use crate::umem::Arena;

/// Path MTUs that routers told the kernel of expire in silence, so they are read now and then.
const REFRESH: Duration = Duration::from_secs(15);

/// One change of the network comes as several messages.
const SETTLE: Duration = Duration::from_millis(50);

#[derive(Clone)]
struct Pair {
    connection: Arc<str>,
    suite: EspSuite,
    mode: Mode,
    path: Path,
    /// SPIs of the inbound and the outbound SA.
    spis: [u32; 2],
    /// Octets of outer IP packet that fit the path.
    mtu: Option<u16>,
    /// How packets get to the peer past the kernel.
    link: Option<NextLink>,
}

impl Pair {
    fn new(sa: &ChildSa) -> Self {
        Self {
            connection: Arc::clone(&sa.connection),
            suite: sa.suite,
            mode: sa.mode,
            path: sa.path,
            spis: [sa.inbound.spi, sa.outbound.spi],
            mtu: None,
            link: None,
        }
    }

    /// Longest inner packet.
    fn inner_mtu(&self) -> Option<u32> {
        let geometry = Geometry::new(&self.suite, &self.path);
        u32::try_from(geometry.max_inner(self.mode, self.mtu?, 20)).ok()
    }
}

/// The XDP/TC programs, shared with whoever shows their counters.
pub type SharedFrontEnd = Arc<Mutex<FrontEnd>>;

/// Its methods leave it consistent before anything that could panic.
pub fn lock_front_end(front_end: &Mutex<FrontEnd>) -> MutexGuard<'_, FrontEnd> {
    front_end.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the control side is made of.
pub struct Parts {
    pub netlink: Netlink,
    /// Index of the tunnel interface.
    pub tun: u32,
    pub inbound: Handle,
    pub outbound: Handle,
    pub front_end: Option<SharedFrontEnd>,
    /// Names of the WAN interfaces.
    pub wan: Vec<String>,
    /// The interface with AF_XDP sockets, and the queues that have one.
    pub xsk: Option<(u32, Vec<u32>)>,
    pub arena: Arc<Arena>,
}

/// State behind the engine's `SaBackend`.
pub struct Control {
    parts: Parts,
    routes: Routes,
    pairs: BTreeMap<ChildSaId, Pair>,
}

impl Control {
    pub fn new(mut parts: Parts) -> Result<Self, BackendError> {
        let routes = Routes::new(&mut parts.netlink, parts.tun)?;
        let mut control = Self {
            parts,
            routes,
            pairs: BTreeMap::new(),
        };
        control.refresh();
        Ok(control)
    }

    /// Stops the workers and removes the routes.
    pub fn shut_down(&mut self) {
        self.parts.outbound.stop();
        self.parts.inbound.stop();
        self.routes.clear(&mut self.parts.netlink);
        if let Some((_, queues)) = self.parts.xsk.take() {
            for queue in queues {
                let gone = self.front_end(|front_end| front_end.remove_xsk(queue));
                if let Err(error) = gone {
                    tracing::debug!(%error, "the table of AF_XDP sockets keeps an entry");
                }
            }
            // The rings are closed: frames that were with the kernel are taken back, so that the
            // arena's memory can go.
            let pool = self.parts.arena.take(0);
            for address in (0..self.parts.arena.size()).step_by(self.parts.arena.frame_size()) {
                drop(pool.adopt(address as u64));
            }
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

    /// Hands the clear-text guards all policies; those of `with` too, which has no routes yet.
    fn guard(&self, with: Option<&espada_common::sa::Policy>) -> Result<(), BackendError> {
        self.front_end(|front_end| {
            let pairs: Vec<_> = self
                .routes
                .policies()
                .chain(with)
                .flat_map(protected_pairs)
                .collect();
            front_end.set_policies(&pairs)
        })
    }

    pub fn exempt_peer(&mut self, peer: IpAddr) -> Result<(), BackendError> {
        self.routes.exempt(&mut self.parts.netlink, peer)
    }

    pub fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        match &command {
            Command::InstallPolicy(policy) => {
                // The engine first: what the routes bring then finds its policy.
                self.outbound_then_inbound(&command)?;
                let installed = self
                    .guard(Some(policy))
                    .and_then(|()| self.routes.install(&mut self.parts.netlink, policy));
                if let Err(error) = installed {
                    let connection = Arc::clone(&policy.connection);
                    let _ = self.outbound_then_inbound(&Command::RemovePolicy { connection });
                    let _ = self.guard(None);
                    return Err(error);
                }
                self.set_route_mtu(&policy.connection);
                Ok(())
            }
            Command::RemovePolicy { connection } => {
                self.routes.remove(&mut self.parts.netlink, connection)?;
                self.guard(None)?;
                self.outbound_then_inbound(&command)
            }
            Command::InstallSa(sa) => self.install(&command, sa),
            Command::RekeySa { new, .. } => self.install(&command, new),
            Command::MovePath { id, path } => self.move_path(&command, *id, path),
            Command::RemoveSa { id } => {
                let pair = self.pairs.remove(id);
                // In this order with the command: the worker's counter is gone before its slot is.
                self.publish_neighbours();
                let outbound = self.parts.outbound.apply(command.clone())?;
                let inbound = self.parts.inbound.apply(command.clone())?;
                if let Some(pair) = pair {
                    self.forget_spis(&pair)?;
                }
                // After a rekey the old pair may be left in one direction only.
                outbound.or(inbound).map_err(backend_error)
            }
        }
    }

    /// Inbound first: when the peer sees our first packet it may answer at once.
    fn install(&mut self, command: &Command, sa: &ChildSa) -> Result<(), BackendError> {
        self.routes
            .exempt(&mut self.parts.netlink, sa.path.remote.ip())?;
        let pair = Pair::new(sa);
        self.announce_spis(&pair)?;
        if let Err(error) = self.parts.inbound.apply(command.clone())? {
            let _ = self.forget_spis(&pair);
            return Err(backend_error(error));
        }
        if let Err(error) = self.parts.outbound.apply(command.clone())? {
            let _ = self.parts.inbound.apply(Command::RemoveSa { id: sa.id })?;
            let _ = self.forget_spis(&pair);
            return Err(backend_error(error));
        }
        self.pairs.insert(sa.id, pair);
        self.refresh();
        Ok(())
    }

    fn move_path(
        &mut self,
        command: &Command,
        id: ChildSaId,
        path: &Path,
    ) -> Result<(), BackendError> {
        self.routes
            .exempt(&mut self.parts.netlink, path.remote.ip())?;
        let Some(pair) = self.pairs.get_mut(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let old = pair.path;
        pair.path = *path;
        pair.mtu = None;
        pair.link = None;
        let spi = pair.spis[1];
        let pair = pair.clone();
        self.announce_spis(&pair)?;
        self.publish_neighbours();
        self.inbound_then_outbound(command)?;
        if old.remote.ip() != path.remote.ip() {
            self.front_end(|front_end| front_end.remove_out(old.remote.ip(), spi))?;
        }
        self.refresh();
        Ok(())
    }

    /// Tells the front end of a pair: without that it would drop what arrives.
    fn announce_spis(&self, pair: &Pair) -> Result<(), BackendError> {
        let steer = self.parts.xsk.is_some() && pair.path.encapsulation == Encapsulation::Esp;
        self.front_end(|front_end| {
            front_end.add_sa(pair.spis[0], pair.path.local.ip(), steer)?;
            front_end.add_out(pair.path.remote.ip(), pair.spis[1])
        })
    }

    fn forget_spis(&self, pair: &Pair) -> Result<(), BackendError> {
        self.front_end(|front_end| {
            front_end.remove_sa(pair.spis[0])?;
            front_end.remove_out(pair.path.remote.ip(), pair.spis[1])
        })
    }

    fn inbound_then_outbound(&self, command: &Command) -> Result<(), BackendError> {
        self.parts
            .inbound
            .apply(command.clone())?
            .map_err(backend_error)?;
        self.parts
            .outbound
            .apply(command.clone())?
            .map_err(backend_error)
    }

    fn outbound_then_inbound(&self, command: &Command) -> Result<(), BackendError> {
        self.parts
            .outbound
            .apply(command.clone())?
            .map_err(backend_error)?;
        self.parts
            .inbound
            .apply(command.clone())?
            .map_err(backend_error)
    }

    /// Looks addresses and every pair's path up again and tells whoever needs to know.
    pub fn refresh(&mut self) {
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
        for (id, pair) in &mut self.pairs {
            let (remote, local) = (pair.path.remote.ip(), pair.path.local.ip());
            let hop = match self.parts.netlink.route_get(remote, Some(local)) {
                Ok(hop) => hop,
                Err(error) => {
                    tracing::debug!(%error, "no route to a peer at the moment");
                    pair.link = None;
                    continue;
                }
            };
            let Some(link) = links.iter().find(|link| link.index == hop.link) else {
                continue;
            };
            let mtu = hop.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
            let steered = self
                .parts
                .xsk
                .as_ref()
                .is_some_and(|(index, _)| *index == link.index)
                && pair.path.encapsulation == Encapsulation::Esp;
            pair.link = if steered {
                next_link(&mut self.parts.netlink, link, &hop, remote)
            } else {
                None
            };
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            if pair.mtu == Some(mtu) {
                continue;
            }
            pair.mtu = Some(mtu);
            tracing::debug!(connection = %pair.connection, %remote, mtu, inner = ?pair.inner_mtu(), "path MTU");
            if let Err(error) = self.parts.outbound.set_path_mtu(*id, mtu) {
                tracing::warn!(%error, "path MTU not set");
            }
            changed.insert(Arc::clone(&pair.connection));
        }
        for connection in changed {
            self.set_route_mtu(&connection);
        }
        self.publish_neighbours();
    }

    /// ESP and IKE are looked for on what is sent to the WAN's addresses and the pairs' own.
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
        local.extend(self.pairs.values().map(|pair| pair.path.local.ip()));
        let local: Vec<IpAddr> = local.into_iter().collect();
        self.front_end(|front_end| front_end.set_local_addresses(&local))
    }

    fn publish_neighbours(&mut self) {
        if self.parts.xsk.is_none() {
            return;
        }
        let (mut links, mut counters) = (HashMap::new(), HashMap::new());
        for pair in self.pairs.values() {
            let Some(link) = &pair.link else { continue };
            let (peer, spi) = (pair.path.remote.ip(), pair.spis[1]);
            links.insert(peer, link.clone());
            if let Some(front_end) = &self.parts.front_end
                && let Some(counter) = lock_front_end(front_end).out_counter(peer, spi)
            {
                counters.insert((peer, spi), counter);
            }
        }
        let neighbours = Arc::new(Neighbours { links, counters });
        if let Err(error) = self.parts.outbound.set_neighbours(neighbours) {
            tracing::warn!(%error, "AF_XDP neighbours not published");
        }
    }

    fn set_route_mtu(&mut self, connection: &str) {
        let pairs = self
            .pairs
            .values()
            .filter(|pair| *pair.connection == *connection);
        if let Some(mtu) = pairs.filter_map(Pair::inner_mtu).min() {
            self.routes
                .set_mtu(&mut self.parts.netlink, connection, mtu);
        }
    }
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
        peer,
        link.mtu as usize,
    ))
}

pub fn front_end_error(error: FrontEndError) -> BackendError {
    BackendError::System {
        what: "the XDP/TC front end does not follow".into(),
        source: std::io::Error::other(error),
    }
}

fn backend_error(error: ApplyError) -> BackendError {
    match error {
        ApplyError::UnknownSa(_) | ApplyError::UnknownPolicy(_) => {
            BackendError::Unknown(error.to_string())
        }
        ApplyError::Random(_) => BackendError::System {
            what: "cannot install an SA".into(),
            source: std::io::Error::other(error.to_string()),
        },
        _ => BackendError::Unsupported {
            engine: super::NAME,
            what: error.to_string(),
        },
    }
}

/// The thread that refreshes [`Control`] when the network changes.
pub struct Watcher {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts it. `wake` with `mtu_suspect` raised asks for a refresh.
    pub fn start(
        control: Arc<Mutex<Control>>,
        wake: Wake,
        mtu_suspect: Arc<AtomicBool>,
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
                let suspect = mtu_suspect.swap(false, Ordering::AcqRel);
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
