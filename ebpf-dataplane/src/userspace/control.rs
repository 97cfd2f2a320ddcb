//! The control side: carries commands out in the order that loses no packet, keeps routes, and
//! watches the network for changes that move path MTUs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use espada_common::sa::{ChildSa, ChildSaId, Command, EspSuite, Mode, Path};

use super::routes::Routes;
use super::worker::{Handle, Wake};
use crate::backend::BackendError;
use crate::esp::ApplyError;
use crate::esp::sad::Geometry;
use crate::netlink::{Monitor, Netlink};
use crate::port::syscall::Poller;

/// Path MTUs that routers told the kernel of expire in silence, so they are read now and then.
const REFRESH: Duration = Duration::from_secs(15);

/// One change of the network comes as several messages.
const SETTLE: Duration = Duration::from_millis(50);

struct Pair {
    connection: Arc<str>,
    suite: EspSuite,
    mode: Mode,
    path: Path,
    /// Octets of outer IP packet that fit the path.
    mtu: Option<u16>,
}

impl Pair {
    fn new(sa: &ChildSa) -> Self {
        Self {
            connection: Arc::clone(&sa.connection),
            suite: sa.suite,
            mode: sa.mode,
            path: sa.path,
            mtu: None,
        }
    }

    /// Longest inner packet.
    fn inner_mtu(&self) -> Option<u32> {
        let geometry = Geometry::new(&self.suite, &self.path);
        u32::try_from(geometry.max_inner(self.mode, self.mtu?, 20)).ok()
    }
}

/// State behind the engine's `SaBackend`.
pub struct Control {
    netlink: Netlink,
    routes: Routes,
    inbound: Handle,
    outbound: Handle,
    pairs: BTreeMap<ChildSaId, Pair>,
}

impl Control {
    pub fn new(
        mut netlink: Netlink,
        tun: u32,
        inbound: Handle,
        outbound: Handle,
    ) -> Result<Self, BackendError> {
        let routes = Routes::new(&mut netlink, tun)?;
        Ok(Self {
            netlink,
            routes,
            inbound,
            outbound,
            pairs: BTreeMap::new(),
        })
    }

    /// Stops the workers and removes the routes.
    pub fn shut_down(&mut self) {
        self.outbound.stop();
        self.inbound.stop();
        self.routes.clear(&mut self.netlink);
    }

    pub fn exempt_peer(&mut self, peer: IpAddr) -> Result<(), BackendError> {
        self.routes.exempt(&mut self.netlink, peer)
    }

    pub fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        match &command {
            Command::InstallPolicy(policy) => {
                // The engine first: what the routes bring then finds its policy.
                self.outbound_then_inbound(&command)?;
                if let Err(error) = self.routes.install(&mut self.netlink, policy) {
                    let connection = Arc::clone(&policy.connection);
                    let _ = self.outbound_then_inbound(&Command::RemovePolicy { connection });
                    return Err(error);
                }
                self.set_route_mtu(&policy.connection);
                Ok(())
            }
            Command::RemovePolicy { connection } => {
                self.routes.remove(&mut self.netlink, connection)?;
                self.outbound_then_inbound(&command)
            }
            Command::InstallSa(sa) => self.install(&command, sa),
            Command::RekeySa { new, .. } => self.install(&command, new),
            Command::MovePath { id, path } => {
                self.routes.exempt(&mut self.netlink, path.remote.ip())?;
                self.inbound_then_outbound(&command)?;
                if let Some(pair) = self.pairs.get_mut(id) {
                    pair.path = *path;
                    pair.mtu = None;
                }
                self.refresh();
                Ok(())
            }
            Command::RemoveSa { id } => {
                let outbound = self.outbound.apply(command.clone())?;
                let inbound = self.inbound.apply(command.clone())?;
                self.pairs.remove(id);
                // After a rekey the old pair may be left in one direction only.
                outbound.or(inbound).map_err(backend_error)
            }
        }
    }

    /// Inbound first: when the peer sees our first packet it may answer at once.
    fn install(&mut self, command: &Command, sa: &ChildSa) -> Result<(), BackendError> {
        self.routes.exempt(&mut self.netlink, sa.path.remote.ip())?;
        self.inbound
            .apply(command.clone())?
            .map_err(backend_error)?;
        if let Err(error) = self.outbound.apply(command.clone())? {
            let _ = self.inbound.apply(Command::RemoveSa { id: sa.id })?;
            return Err(backend_error(error));
        }
        self.pairs.insert(sa.id, Pair::new(sa));
        self.refresh();
        Ok(())
    }

    fn inbound_then_outbound(&self, command: &Command) -> Result<(), BackendError> {
        self.inbound
            .apply(command.clone())?
            .map_err(backend_error)?;
        self.outbound.apply(command.clone())?.map_err(backend_error)
    }

    fn outbound_then_inbound(&self, command: &Command) -> Result<(), BackendError> {
        self.outbound
            .apply(command.clone())?
            .map_err(backend_error)?;
        self.inbound.apply(command.clone())?.map_err(backend_error)
    }

    /// Looks every pair's path up again and tells the outbound worker and the routes what changed.
    pub fn refresh(&mut self) {
        let links = match self.netlink.links() {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!(%error, "path MTUs are not refreshed");
                return;
            }
        };
        let mut changed = BTreeSet::new();
        for (id, pair) in &mut self.pairs {
            let (remote, local) = (pair.path.remote.ip(), pair.path.local.ip());
            let hop = match self.netlink.route_get(remote, Some(local)) {
                Ok(hop) => hop,
                Err(error) => {
                    tracing::debug!(%error, "no route to a peer at the moment");
                    continue;
                }
            };
            let link = links
                .iter()
                .find(|link| link.index == hop.link)
                .map(|link| link.mtu);
            let Some(mtu) = link.into_iter().chain(hop.mtu).min() else {
                continue;
            };
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            if pair.mtu == Some(mtu) {
                continue;
            }
            pair.mtu = Some(mtu);
            tracing::debug!(connection = %pair.connection, %remote, mtu, inner = ?pair.inner_mtu(), "path MTU");
            if let Err(error) = self.outbound.set_path_mtu(*id, mtu) {
                tracing::warn!(%error, "path MTU not set");
            }
            changed.insert(Arc::clone(&pair.connection));
        }
        for connection in changed {
            self.set_route_mtu(&connection);
        }
    }

    fn set_route_mtu(&mut self, connection: &str) {
        let pairs = self
            .pairs
            .values()
            .filter(|pair| *pair.connection == *connection);
        if let Some(mtu) = pairs.filter_map(Pair::inner_mtu).min() {
            self.routes.set_mtu(&mut self.netlink, connection, mtu);
        }
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
                if quiet || suspect || changes.links || changes.addresses || changes.routes {
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
