//! The userspace engine: two worker threads between the tunnel interface and the WAN ports, and a
//! control side that keeps routes and path MTUs in step with them.

mod control;
pub mod routes;
pub(crate) mod sysctl;
mod worker;

use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use espada_common::sa::{ChildSaStats, Command, EspSuite, Mode};

use crate::backend::{BackendError, DropTotals, EventSink, SaBackend};
use crate::esp::{self, Inbound, Outbound, Stats};
use crate::frontend::FrontEnd;
use crate::netlink::{Link, Netlink};
use crate::port::raw::{RawReceiver, RawSender};
use crate::port::ring::Socket;
use crate::port::tun::Tun;
use crate::port::udp::{self, UdpReceiver, UdpSender};
use crate::port::xsk::{self, XskReceiver, XskSender};
use crate::umem::{Arena, HEADROOM, TAILROOM};

pub use control::{SharedFrontEnd, lock_front_end};

use control::{Control, Parts, Watcher};
use worker::{InboundParts, OutboundParts, Wake};

/// Name of this engine.
const NAME: &str = "userspace";

/// Frames of each direction: a few super-packets and the sockets' bursts.
const FRAMES: usize = 4096;

/// Smallest MTU a tunnel interface gets: IPv6 needs it (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// What an engine is started with.
pub struct Config {
    /// Name of the tunnel interface, at most 15 characters.
    pub tun: String,
    /// MTU of the tunnel interface; by default the smallest of the WAN interfaces'. What fits an SA
    /// is set on its routes.
    pub mtu: Option<u32>,
    /// WAN interfaces.
    pub wan: Vec<String>,
    /// Sockets bound to the ESP-in-UDP port, at most one of each address family; the engine reads
    /// from them, IKE may send on clones.
    pub udp: Vec<UdpSocket>,
    /// Header fields, fragmentation and MSS.
    pub esp: esp::Config,
    /// The XDP/TC programs on the WAN, if there are any.
    pub front_end: Option<FrontEnd>,
    /// AF_XDP for native ESP.
    pub xsk: XskMode,
    /// Processors of the outbound and the inbound worker.
    pub pin: Option<[usize; 2]>,
    /// Where events go. Called from the workers.
    pub sink: EventSink,
}

/// Whether native ESP goes past the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XskMode {
    /// Where the front end can steer it: one WAN interface, with XDP.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// The AF_XDP side of an engine.
#[derive(Clone, Debug)]
pub struct XskStatus {
    /// Queues with a socket.
    pub queues: usize,
    /// The driver moves packets without copying them.
    pub zero_copy: bool,
    /// Packets that went past the kernel.
    pub counters: Arc<xsk::Counters>,
}

/// The engine. Dropping it stops the threads and removes interface and routes.
pub struct UserspaceEngine {
    control: Arc<Mutex<Control>>,
    stats: Arc<Stats>,
    front_end: Option<SharedFrontEnd>,
    xsk: Option<XskStatus>,
    watcher: Watcher,
    /// Last: the interface stays until the threads are gone.
    tun: Tun,
}

impl UserspaceEngine {
    /// Creates the tunnel interface and starts the workers, all in the calling thread's network
    /// namespace.
    pub fn start(config: Config) -> Result<Self, BackendError> {
        let mut netlink = Netlink::open()?;
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
        let mtu = mtu.unwrap_or(1500).clamp(LEAST_MTU, 65_535 - 256);
        sysctl::check(&config.wan);

        let tun = Tun::open(&config.tun)?;
        sysctl::prepare_tun(&config.tun);
        let tun_link = netlink.link(&config.tun)?;
        netlink.set_tunnel_up(tun_link.index, mtu)?;

        for socket in &config.udp {
            udp::prepare(socket)?;
        }
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| BackendError::System { what, source }
        };
        let duplicate = || -> std::io::Result<Vec<UdpSocket>> {
            config.udp.iter().map(UdpSocket::try_clone).collect()
        };
        let duplicated = system("cannot duplicate the ESP-in-UDP sockets");
        let sockets = duplicate().map_err(duplicated)?;
        let receivers = duplicate()
            .and_then(|sockets| sockets.into_iter().map(UdpReceiver::new).collect())
            .map_err(system("cannot duplicate the ESP-in-UDP sockets"))?;
        let mut raw = vec![RawReceiver::open(true)?];
        match RawReceiver::open(false) {
            Ok(receiver) => raw.push(receiver),
            Err(error) => tracing::info!(%error, "no native ESP over IPv6"),
        }

        let steered = steered_link(&config, &mut netlink, frame_size(mtu));
        let queues = steered
            .as_ref()
            .map_or(0, |link| link.rx_queues.clamp(1, xsk::MOST_QUEUES));
        let arena = Arena::new(2 * FRAMES + (queues * xsk::RING) as usize, frame_size(mtu))
            .map_err(system("cannot map memory for packets"))?;
        let mut front_end = config.front_end;
        let mut sockets_xsk = match (&steered, &mut front_end) {
            (Some(link), Some(front_end)) => open_xsk(&arena, link, queues, front_end),
            _ => Vec::new(),
        };
        let front_end = front_end.map(|front_end| Arc::new(Mutex::new(front_end)));
        let xsk_counters = Arc::new(xsk::Counters::default());
        let xsk_about = sockets_xsk.first().map(|(_, socket)| XskStatus {
            queues: sockets_xsk.len(),
            zero_copy: socket.zero_copy,
            counters: Arc::clone(&xsk_counters),
        });
        let xsk_link = steered.filter(|_| xsk_about.is_some()).map(|link| {
            (
                link.index,
                sockets_xsk.iter().map(|(queue, _)| *queue).collect(),
            )
        });
        let mut inbound_pool = arena.take(FRAMES + sockets_xsk.len() * xsk::RING as usize);
        let (mut xsk_receivers, mut xsk_sender) = (Vec::new(), None);
        for (_, socket) in sockets_xsk.drain(..) {
            let (receive, transmit) = socket.split();
            let counters = Arc::clone(&xsk_counters);
            xsk_receivers.push(XskReceiver::new(receive, &mut inbound_pool, counters));
            // One worker sends, so one queue suffices.
            xsk_sender.get_or_insert_with(|| XskSender::new(transmit, Arc::clone(&xsk_counters)));
        }
        let stats = Stats::new(Instant::now());
        let watcher_wake = Wake::new()?;
        let mtu_suspect = Arc::new(AtomicBool::new(false));
        let half = system("cannot duplicate the tunnel interface's descriptor");
        let (reader, answers, writer) = tun
            .reader()
            .and_then(|reader| Ok((reader, tun.writer()?, tun.writer()?)))
            .map_err(half)?;
        let [out_cpu, in_cpu] = config.pin.map_or([None, None], |cpus| cpus.map(Some));
        let inbound = worker::inbound(
            InboundParts {
                engine: Inbound::new(config.esp, Arc::clone(&stats)),
                pool: inbound_pool,
                udp: receivers,
                raw,
                xsk: xsk_receivers,
                tun: writer,
                stats: Arc::clone(&stats),
                sink: Arc::clone(&config.sink),
            },
            in_cpu,
        )?;
        let outbound = worker::outbound(
            OutboundParts {
                engine: Outbound::new(config.esp, Arc::clone(&stats)),
                pool: arena.take(FRAMES),
                tun: reader,
                answers,
                udp: UdpSender::new(sockets)
                    .map_err(system("cannot read the address of an ESP-in-UDP socket"))?,
                raw: RawSender::open(config.esp.ttl)?,
                xsk: xsk_sender,
                stats: Arc::clone(&stats),
                sink: config.sink,
                mtu_suspect: Arc::clone(&mtu_suspect),
                watcher: watcher_wake.clone(),
            },
            out_cpu,
        )?;
        let control = Control::new(Parts {
            netlink,
            tun: tun_link.index,
            inbound,
            outbound,
            front_end: front_end.clone(),
            wan: config.wan,
            xsk: xsk_link,
            arena,
        })?;
        let control = Arc::new(Mutex::new(control));
        let watcher = Watcher::start(Arc::clone(&control), watcher_wake, mtu_suspect)?;
        tracing::info!(interface = config.tun, mtu, "userspace engine started");
        Ok(Self {
            control,
            stats,
            front_end,
            xsk: xsk_about,
            watcher,
            tun,
        })
    }

    /// The front end that was given to it: attachments and counters to show. Its SAs, policies and
    /// sockets are the engine's to set.
    pub fn front_end(&self) -> Option<SharedFrontEnd> {
        self.front_end.clone()
    }

    /// How AF_XDP does; `None` when native ESP goes through raw sockets.
    pub fn xsk(&self) -> Option<&XskStatus> {
        self.xsk.as_ref()
    }

    /// Name of the tunnel interface.
    pub fn interface(&self) -> &str {
        self.tun.name()
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        lock(&self.control)
    }
}

/// Every change to the control state leaves it consistent before anything that could panic.
fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The interface whose native ESP can be steered to AF_XDP.
fn steered_link(config: &Config, netlink: &mut Netlink, frame_size: usize) -> Option<Link> {
    let front_end = config
        .front_end
        .as_ref()
        .filter(|_| config.xsk == XskMode::Auto)?;
    let [name] = config.wan.as_slice() else {
        tracing::info!("AF_XDP is not used: it serves one WAN interface, and there are several");
        return None;
    };
    if !front_end.steers(name) {
        tracing::info!(
            interface = name,
            "AF_XDP is not used: there is no XDP program to steer to it"
        );
        return None;
    }
    if !matches!(frame_size, 2048 | 4096) {
        tracing::info!("AF_XDP is not used: its frames are too small for the interface's MTU");
        return None;
    }
    netlink
        .link(name)
        .ok()
        .filter(|link| link.ethernet && link.mac.is_some())
}

/// Opens a socket on each queue and registers it with the front end. A queue without one is no
/// harm: its packets pass on to the raw sockets.
fn open_xsk(
    arena: &Arc<Arena>,
    link: &Link,
    queues: u32,
    front_end: &mut FrontEnd,
) -> Vec<(u32, Socket)> {
    let mut sockets = Vec::new();
    for queue in 0..queues {
        let opened = xsk::open(arena, link.index, queue).map_err(|error| error.to_string());
        let registered = opened.and_then(|socket| {
            let set = front_end.set_xsk(queue, &std::os::fd::AsFd::as_fd(&socket));
            set.map(|()| socket).map_err(|error| error.to_string())
        });
        match registered {
            Ok(socket) => sockets.push((queue, socket)),
            // A device may have been made for more queues than it uses.
            Err(error) if queue > 0 => {
                tracing::debug!(
                    interface = link.name,
                    queue,
                    error,
                    "no AF_XDP socket from this queue on"
                );
                break;
            }
            Err(error) => {
                tracing::info!(interface = link.name, error, "no AF_XDP socket");
                break;
            }
        }
    }
    if let Some((_, socket)) = sockets.first() {
        tracing::info!(
            interface = link.name,
            queues = sockets.len(),
            zero_copy = socket.zero_copy,
            "native ESP goes through AF_XDP"
        );
    }
    sockets
}

/// A frame holds a packet of the interface's MTU with everything ESP adds. AF_XDP takes 2048 and
/// 4096 only.
fn frame_size(mtu: u32) -> usize {
    let needed = mtu as usize + HEADROOM + TAILROOM + 128;
    match needed {
        0..=2048 => 2048,
        2049..=4096 => 4096,
        larger => larger.next_multiple_of(1024).min(65_536),
    }
}

impl Drop for UserspaceEngine {
    fn drop(&mut self) {
        self.watcher.stop();
        self.lock().shut_down();
    }
}

impl SaBackend for UserspaceEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn supports(&self, suite: &EspSuite, mode: Mode) -> Result<(), BackendError> {
        let what = if mode == Mode::Transport {
            "transport mode; use tunnel mode".to_owned()
        } else if !esp::crypto::supports(suite) {
            format!(
                "ESP suite {suite}; use aes128gcm16, aes256gcm16, chacha20poly1305 or AES-CBC with SHA-1 or SHA-2"
            )
        } else {
            return Ok(());
        };
        Err(BackendError::Unsupported { engine: NAME, what })
    }

    fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        self.lock().apply(command)
    }

    fn exempt_peer(&mut self, peer: std::net::IpAddr) -> Result<(), BackendError> {
        self.lock().exempt_peer(peer)
    }

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        Ok(self.stats.snapshot())
    }

    fn drop_totals(&mut self) -> Result<DropTotals, BackendError> {
        Ok(DropTotals {
            inbound: self.stats.inbound_drops.snapshot(),
            outbound: self.stats.outbound_drops.snapshot(),
            front_end: match &self.front_end {
                Some(front_end) => {
                    lock_front_end(front_end)
                        .counters()
                        .map_err(control::front_end_error)?
                        .drops
                }
                None => Default::default(),
            },
        })
    }
}

#[cfg(test)]
mod tests;
