//! The data plane: engines that carry ESP, and around them what they have in common — routes, guards
//! against clear text, the front end, the way to each peer, IKE on the ESP-in-UDP port.

mod control;
mod held;
mod nat;
pub mod routes;
pub(crate) mod sysctl;

use std::net::UdpSocket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use espada_common::sa::{ChildSaId, ChildSaStats, Command, add_drops};

use crate::backend::{BackendError, Carrier, DropTotals, EventSink, KeptStates, SaBackend};
use crate::ebpf::{self, EbpfEngine};
use crate::engine::Engine;
use crate::esp;
use crate::frontend::FrontEnd;
use crate::netlink::Netlink;
use crate::userspace::{self, LanStatus, UserspaceEngine, Workers, XskMode, XskStatus};
use crate::wake::{Suspicion, Wake};
use crate::xfrm::{self, XfrmEngine};

pub use control::Pair;

use control::{Absent, Control, Parts, Watcher};
use nat::NatReader;

/// Smallest MTU a plaintext interface gets: IPv6 needs it (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// Longest name of an interface.
const LONGEST_NAME: usize = 15;

/// The XDP/TC programs, shared with whoever shows their counters.
pub type SharedFrontEnd = Arc<Mutex<FrontEnd>>;

/// Its methods leave it consistent before anything that could panic.
pub fn lock_front_end(front_end: &Mutex<FrontEnd>) -> MutexGuard<'_, FrontEnd> {
    front_end.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A way of carrying ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EngineKind {
    /// Worker threads with SIMD ciphers.
    Userspace,
    /// XDP programs.
    Ebpf,
    /// The kernel's IPsec.
    Xfrm,
}

impl EngineKind {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Userspace, Self::Ebpf, Self::Xfrm];

    /// The order in which `auto` asks: bulk throughput first, then what carries the most.
    pub const AUTO: [Self; 3] = [Self::Userspace, Self::Xfrm, Self::Ebpf];

    /// As the configuration and `status` name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Userspace => userspace::NAME,
            Self::Ebpf => ebpf::NAME,
            Self::Xfrm => xfrm::NAME,
        }
    }
}

/// What a data plane is started with.
pub struct Config {
    /// Engines, in the order in which they are asked to carry a pair. One that cannot work here is
    /// left out, unless it is the only one.
    pub engines: Vec<EngineKind>,
    /// Engines that are not asked, each with the reason, for `status`.
    pub left_out: Vec<(EngineKind, String)>,
    /// Name of the first engine's plaintext interface, at most 15 characters; others append theirs.
    pub tun: String,
    /// MTU of the plaintext interfaces; by default the smallest of the WAN interfaces'. What fits an
    /// SA is set on its routes.
    pub mtu: Option<u32>,
    /// WAN interfaces.
    pub wan: Vec<String>,
    /// Sockets bound to the ESP-in-UDP port, at most one of each address family; the plane reads
    /// from them, IKE may send on clones.
    pub udp: Vec<UdpSocket>,
    /// Header fields, fragmentation and MSS.
    pub esp: esp::Config,
    /// The XDP/TC programs on the WAN, if there are any.
    pub front_end: Option<FrontEnd>,
    /// AF_XDP for native ESP of the userspace engine.
    pub xsk: XskMode,
    /// LAN interfaces whose packets go past the kernel with the userspace engine.
    pub lan: Vec<String>,
    /// How the userspace engine's workers run.
    pub workers: Workers,
    /// Marks and hardware of the XFRM engine.
    pub xfrm: xfrm::Options,
    /// Where events go. Called from the engines' threads.
    pub sink: EventSink,
}

/// What an engine shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Its name.
    pub name: &'static str,
    /// Its plaintext interface; `None` if it does not run.
    pub interface: Option<String>,
    /// Why it does not run.
    pub reason: Option<String>,
}

/// A running data plane. Dropping it ends the engines and removes interfaces and routes.
pub struct Plane {
    control: Arc<Mutex<Control>>,
    front_end: Option<SharedFrontEnd>,
    xsk: Option<XskStatus>,
    lanes: Option<usize>,
    lans: Vec<LanStatus>,
    engines: Vec<EngineStatus>,
    watcher: Watcher,
    nat: Option<NatReader>,
}

impl Plane {
    /// Starts the engines, all in the calling thread's network namespace.
    pub fn start(config: Config) -> Result<Self, BackendError> {
        let mut netlink = Netlink::open()?;
        let mtu = mtu(&mut netlink, &config)?;
        sysctl::check(&config.wan);
        let wake = Wake::new()?;
        let suspicion = Suspicion::new(wake.clone());
        let front_end = config
            .front_end
            .map(|front_end| Arc::new(Mutex::new(front_end)));
        let sockets = || -> Result<Vec<UdpSocket>, BackendError> {
            let clones: std::io::Result<_> = config.udp.iter().map(UdpSocket::try_clone).collect();
            clones.map_err(|source| BackendError::System {
                what: "cannot duplicate the ESP-in-UDP sockets".to_owned(),
                source,
            })
        };
        let mut engines: Vec<Box<dyn Engine>> = Vec::new();
        let (mut absent, mut xsk, mut lanes, mut lans) = (Vec::new(), None, None, Vec::new());
        for (kind, reason) in &config.left_out {
            absent.push(Absent::new(engines.len(), *kind, reason.clone()));
        }
        for kind in &config.engines {
            let tun = interface_name(&config.tun, *kind, engines.is_empty());
            let started: Result<Box<dyn Engine>, BackendError> = match kind {
                EngineKind::Userspace => UserspaceEngine::start(userspace::Config {
                    tun,
                    mtu,
                    wan: config.wan.clone(),
                    udp: sockets()?,
                    esp: config.esp,
                    front_end: front_end.clone(),
                    xsk: config.xsk,
                    lan: config.lan.clone(),
                    workers: config.workers,
                    sink: Arc::clone(&config.sink),
                    suspicion: suspicion.clone(),
                })
                .map(|engine| {
                    xsk = engine.xsk().cloned();
                    lanes = Some(engine.lanes());
                    lans = engine.lans();
                    Box::new(engine) as Box<dyn Engine>
                }),
                EngineKind::Ebpf => EbpfEngine::start(ebpf::Config {
                    tun,
                    mtu,
                    esp: config.esp,
                    front_end: front_end.clone(),
                    wan: config.wan.clone(),
                    sink: Arc::clone(&config.sink),
                })
                .map(|engine| Box::new(engine) as Box<dyn Engine>),
                EngineKind::Xfrm => XfrmEngine::start(xfrm::Config {
                    interface: tun,
                    mtu: Some(mtu),
                    wan: config.wan.clone(),
                    // The kernel would take all ESP in UDP, that of the userspace engine as well.
                    udp: if config.engines.contains(&EngineKind::Userspace) {
                        Vec::new()
                    } else {
                        sockets()?
                    },
                    read_ike: false,
                    ike_ports: vec![500, 4500],
                    options: config.xfrm,
                    sink: Arc::clone(&config.sink),
                })
                .map(|engine| Box::new(engine) as Box<dyn Engine>),
            };
            match started {
                Ok(engine) => engines.push(engine),
                Err(error) if config.engines.len() == 1 => return Err(error),
                Err(error) => {
                    tracing::info!(engine = kind.name(), %error, "an engine is left out");
                    absent.push(Absent::new(engines.len(), *kind, error.to_string()));
                }
            }
        }
        if engines.is_empty() {
            let reasons: Vec<String> = absent.iter().map(Absent::to_string).collect();
            return Err(BackendError::NoEngine(reasons.join("; ")));
        }
        // The userspace engine finds IKE among the ESP it reads.
        let reads = engines
            .iter()
            .any(|engine| engine.name() == userspace::NAME);
        let nat = if reads || config.udp.is_empty() {
            None
        } else {
            Some(NatReader::start(sockets()?, Arc::clone(&config.sink))?)
        };
        let running = engines.iter().map(|engine| EngineStatus {
            name: engine.name(),
            interface: Some(engine.interface().name.clone()),
            reason: None,
        });
        let left_out = absent.iter().map(|absent| EngineStatus {
            name: absent.name,
            interface: None,
            reason: Some(absent.reason.clone()),
        });
        let status: Vec<EngineStatus> = running.chain(left_out).collect();
        let control = Control::new(Parts {
            netlink,
            engines,
            absent,
            front_end: front_end.clone(),
            wan: config.wan,
        })?;
        let control = Arc::new(Mutex::new(control));
        let watcher = Watcher::start(Arc::clone(&control), wake, suspicion)?;
        for engine in &status {
            if let Some(interface) = &engine.interface {
                tracing::info!(engine = engine.name, interface, mtu, "engine started");
            }
        }
        Ok(Self {
            control,
            front_end,
            xsk,
            lanes,
            lans,
            engines: status,
            watcher,
            nat,
        })
    }

    /// The front end that was given to it: attachments and counters to show. Its SAs, policies and
    /// sockets are the plane's to set.
    pub fn front_end(&self) -> Option<SharedFrontEnd> {
        self.front_end.clone()
    }

    /// How AF_XDP does; `None` when native ESP goes through raw sockets.
    pub fn xsk(&self) -> Option<&XskStatus> {
        self.xsk.as_ref()
    }

    /// Lanes of the userspace engine, each of an outbound and an inbound worker; `None` where it does
    /// not run.
    pub fn lanes(&self) -> Option<usize> {
        self.lanes
    }

    /// How the LAN interfaces do whose packets were to go past the kernel.
    pub fn lans(&self) -> &[LanStatus] {
        &self.lans
    }

    /// The engines, those left out last.
    pub fn engines(&self) -> &[EngineStatus] {
        &self.engines
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        lock(&self.control)
    }
}

/// Every change to the control state leaves it consistent before anything that could panic.
fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

/// MTU of the plaintext interfaces.
fn mtu(netlink: &mut Netlink, config: &Config) -> Result<u32, BackendError> {
    let mut mtu = config.mtu;
    for name in &config.wan {
        let link = netlink.link(name)?;
        if !link.up {
            tracing::warn!(interface = name, "the WAN interface is down");
        }
        if config.mtu.is_none() {
            mtu = Some(mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
        }
    }
    Ok(mtu.unwrap_or(1500).clamp(LEAST_MTU, 65_535 - 256))
}

/// The first engine's interface has the configured name, others say which engine they are of.
fn interface_name(tun: &str, kind: EngineKind, first: bool) -> String {
    if first {
        return tun.to_owned();
    }
    let suffix = match kind {
        EngineKind::Userspace => "-user",
        EngineKind::Ebpf => "-ebpf",
        EngineKind::Xfrm => "-xfrm",
    };
    let stem: String = tun.chars().take(LONGEST_NAME - suffix.len()).collect();
    stem + suffix
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.watcher.stop();
        if let Some(nat) = &mut self.nat {
            nat.stop();
        }
        self.lock().shut_down();
    }
}

impl SaBackend for Plane {
    fn name(&self) -> &'static str {
        let running: Vec<&EngineStatus> = self
            .engines
            .iter()
            .filter(|engine| engine.interface.is_some())
            .collect();
        match running.as_slice() {
            [only] => only.name,
            _ => "auto",
        }
    }

    fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        self.lock().apply(command)
    }

    fn exempt_peer(&mut self, peer: std::net::IpAddr) -> Result<(), BackendError> {
        self.lock().exempt_peer(peer)
    }

    fn carrier(&self, id: ChildSaId) -> Option<Carrier> {
        self.lock().carrier(id)
    }

    fn settled(&mut self) {
        self.lock().settled();
    }

    fn keep(&mut self, key: u64, state: Option<&[u8]>) -> Result<(), BackendError> {
        for engine in self.lock().engines() {
            if engine.keep(key, state)? {
                break;
            }
        }
        Ok(())
    }

    fn kept(&mut self) -> Result<KeptStates, BackendError> {
        let mut kept = Vec::new();
        for engine in self.lock().engines() {
            kept.extend(engine.kept()?);
        }
        Ok(kept)
    }

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        let mut stats = Vec::new();
        for engine in self.lock().engines() {
            stats.extend(engine.sa_stats()?);
        }
        Ok(stats)
    }

    fn drop_totals(&mut self) -> Result<DropTotals, BackendError> {
        let mut totals = DropTotals::default();
        for engine in self.lock().engines() {
            let [inbound, outbound] = engine.drop_totals()?;
            add_drops(&mut totals.inbound, &inbound);
            add_drops(&mut totals.outbound, &outbound);
        }
        if let Some(front_end) = &self.front_end {
            totals.front_end = lock_front_end(front_end)
                .counters()
                .map_err(control::front_end_error)?
                .drops;
        }
        Ok(totals)
    }
}

#[cfg(test)]
pub(crate) mod tests;
