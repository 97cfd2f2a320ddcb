//! The userspace engine: worker threads between the tunnel interface and the WAN ports, an outbound
//! and an inbound one to a lane, or one for both.

mod inbound;
mod lan;
mod lanes;
mod outbound;
mod pace;
mod source;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::net::UdpSocket;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSa, ChildSaId, ChildSaStats, Command, Encapsulation, Mode, Path};

use crate::backend::{BackendError, EventSink};
use crate::engine::{Engine, Interface, Steering, Way};
use crate::esp::{self, ApplyError, Inbound, Outbound, Shared, Stats};
use crate::features::kernel_release;
use crate::netlink::{Link, Netlink};
use crate::plane::{SharedFrontEnd, lock_front_end, sysctl};
use crate::port::raw::{RawReceiver, RawSender};
use crate::port::ring::Socket;
use crate::port::segmentation::UdpSegmentation;
use crate::port::tun::Tun;
use crate::port::udp::{self, UdpReceiver, UdpSender};
use crate::port::xsk::{self, Neighbours, SharedXskSenders, XskReceiver, XskSender};
use crate::umem::{Arena, HEADROOM, ROW, Reserve, TAILROOM};
use crate::wake::Suspicion;

use inbound::InboundParts;
use lan::{LanWorkers, Lans};
use lanes::Lanes;
use outbound::OutboundParts;
use source::{Port, SharedPort, Source};

pub use lan::{LanStatus, fit as lan_fit};
pub use lanes::MOST as MOST_LANES;

/// Name of this engine.
pub const NAME: &str = "userspace";

/// Frames of each direction of a lane: a few super-packets, the sockets' bursts, and what a driver keeps
/// in a ring until it is sent.
const FRAMES: usize = 4096;

/// Rows of packets that a lane sends: those of a few super-packets, and what waits for its turn.
const ROWS: usize = 16;

/// What an engine is started with.
pub struct Config {
    /// Name of the tunnel interface, at most 15 characters.
    pub tun: String,
    /// MTU of the tunnel interface.
    pub mtu: u32,
    /// WAN interfaces.
    pub wan: Vec<String>,
    /// Sockets bound to the ESP-in-UDP port, at most one of each address family; the engine reads
    /// from them, IKE may send on clones.
    pub udp: Vec<UdpSocket>,
    /// Header fields, fragmentation and MSS.
    pub esp: esp::Config,
    /// The XDP/TC programs on the WAN, if there are any.
    pub front_end: Option<SharedFrontEnd>,
    /// AF_XDP for native ESP.
    pub xsk: XskMode,
    /// LAN interfaces whose packets go past the kernel where that is possible.
    pub lan: Vec<String>,
    /// How the workers run.
    pub workers: Workers,
    /// Where events go. Called from the workers.
    pub sink: EventSink,
    /// Raised when a packet did not fit its path.
    pub suspicion: Suspicion,
}

/// How the workers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Lanes, each with an outbound and an inbound half: [`MOST_LANES`] at most, by default as many as
    /// suit the processors.
    pub lanes: Option<NonZeroUsize>,
    /// One thread for both directions of a lane, not one for each: fewer changes of threads, and less that
    /// can be done at once. By default where processors are few.
    pub joined: Option<bool>,
    /// Each thread stays on one processor; by default the kernel moves them.
    pub pinned: bool,
    /// Before whatever else runs on the machine (SCHED_RR), as the kernel's own packet work does.
    /// Packets otherwise wait for other threads' turns to end, milliseconds each.
    pub realtime: bool,
    /// UDP that the kernel is to cut.
    pub udp_segmentation: UdpSegmentation,
    /// Microseconds that they poll the drivers behind AF_XDP sockets before they sleep.
    pub busy_poll: Option<NonZeroU32>,
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

/// An outbound SA whose packets may go past the kernel.
struct Sending {
    path: Path,
    spi: u32,
}

/// What the front end steers native ESP to.
struct XskSteering {
    /// Number of the interface with AF_XDP sockets.
    interface: u32,
    /// How many of its queues have some.
    queues: u32,
    /// What sends on them.
    senders: SharedXskSenders,
}

/// The engine. Dropping it stops the threads and removes the interface.
pub struct UserspaceEngine {
    interface: Interface,
    inbound: Lanes,
    outbound: Lanes,
    /// Of each lane.
    stats: Vec<Arc<Stats>>,
    front_end: Option<SharedFrontEnd>,
    xsk: Option<XskStatus>,
    steering: Option<XskSteering>,
    lans: Lans,
    arena: Arc<Arena>,
    sending: BTreeMap<ChildSaId, Sending>,
    ways: BTreeMap<ChildSaId, Way>,
    /// Last: the interface stays until the threads are gone.
    _tun: Tun,
}

impl UserspaceEngine {
    /// Creates the tunnel interface and starts the workers, all in the calling thread's network
    /// namespace.
    pub fn start(config: Config) -> Result<Self, BackendError> {
        let mut netlink = Netlink::open()?;
        let mtu = config.mtu;
        let threads = lanes::threads(config.workers);
        let segmentation = config.workers.udp_segmentation;
        let segment = segmentation.sends();
        if segmentation == UdpSegmentation::Auto && !segment {
            tracing::warn!(
                kernel = kernel_release(),
                "Linux 7.0 to 7.1.4 spoils UDP that it is to cut in front of some network cards: ESP in UDP goes \
                 packet by packet, which is slower; set udp_segmentation = \"on\" if your kernel has been mended"
            );
        }
        let tun = Tun::open(&config.tun, threads.len(), segmentation.delivers())?;
        sysctl::prepare_tun(&config.tun);
        let tun_link = netlink.link(&config.tun)?;
        netlink.set_tunnel_up(tun_link.index, mtu)?;

        for socket in &config.udp {
            udp::prepare(socket)?;
        }
        let system = |what: &'static str| {
            move |source| BackendError::System {
                what: what.to_owned(),
                source,
            }
        };
        let duplicate = || -> std::io::Result<Vec<UdpSocket>> {
            config.udp.iter().map(UdpSocket::try_clone).collect()
        };
        let udp = duplicate()
            .and_then(|sockets| sockets.into_iter().map(UdpReceiver::new).collect())
            .map_err(system("cannot duplicate the ESP-in-UDP sockets"))?;
        let mut sources = sources(udp, threads.len())?;

        let steered = steered_link(&config, &mut netlink, frame_size(mtu));
        let queues = steered
            .as_ref()
            .map_or(0, |link| link.rx_queues.clamp(1, xsk::MOST_QUEUES));
        let chosen = lan::choose(&config, &mut netlink, frame_size(mtu));
        let fit = || chosen.iter().flat_map(|(_, link)| link);
        let lan_queues: u32 = fit().map(lan::queues).sum();
        // Those that LAN interfaces have yet to send.
        let lan_frames = fit().count() * xsk::RING as usize;
        let ring_frames = ((queues + lan_queues) * xsk::RING) as usize + lan_frames;
        let arena = Arena::new(2 * threads.len() * FRAMES + ring_frames, frame_size(mtu))
            .map_err(system("cannot map memory for packets"))?;
        let queues = match (&steered, &config.front_end) {
            (Some(link), Some(front_end)) => {
                let busy_poll = config.workers.busy_poll;
                open_xsk(&arena, link, queues, threads.len(), busy_poll, front_end)
            }
            _ => Vec::new(),
        };
        let xsk_counters = Arc::new(xsk::Counters::default());
        let xsk_about = queues.iter().flatten().next().map(|socket| XskStatus {
            queues: queues.len(),
            zero_copy: socket.zero_copy,
            counters: Arc::clone(&xsk_counters),
        });
        // The frames that the kernel receives into come from all lanes.
        let received_into = (queues.len() * xsk::RING as usize).div_ceil(threads.len());
        let pool = |lane: usize| {
            let unsent = if lane == 0 { lan_frames } else { 0 };
            arena.take(FRAMES + received_into + unsent)
        };
        let mut pools: Vec<_> = (0..threads.len()).map(pool).collect();
        // Each lane receives from a socket of every queue, and there are as many to send as lanes.
        let mut senders = Vec::new();
        let count = queues.len();
        for (queue, sockets) in queues.into_iter().enumerate() {
            let lanes = pools.iter_mut().zip(&mut sources);
            for (lane, ((pool, sources), socket)) in lanes.zip(sockets).enumerate() {
                let (receive, transmit) = socket.split();
                let counters = Arc::clone(&xsk_counters);
                let port = XskReceiver::new(receive, pool, counters, xsk::outer_packet);
                sources.push(Source::Own(Port::Xsk(port)));
                if lane % count == queue {
                    senders.push(XskSender::new(transmit, Arc::clone(&xsk_counters)));
                }
            }
        }
        let steering = steered
            .filter(|_| !senders.is_empty())
            .map(|link| XskSteering {
                interface: link.index,
                queues: count as u32,
                senders: SharedXskSenders::new(senders.into_iter()),
            });
        let (mut lans, opened) = Lans::open(chosen, &config, &arena, tun_link.index);
        let LanWorkers {
            pools: outbound_pools,
            receivers,
            sender,
        } = LanWorkers::new(&arena, opened, threads.len(), FRAMES);
        let rows = Arena::new(threads.len() * ROWS, ROW)
            .map_err(system("cannot map memory for rows of packets"))?;
        if let Some(sender) = &sender {
            lans.set_sender(sender.clone());
        }
        let several = threads.len() > 1;
        let reserve = |rows| several.then(|| Arc::new(Reserve::new(threads.len(), FRAMES, rows)));
        let (reserve_in, reserve_out) = (reserve(0), reserve(ROWS));
        let epoch = Instant::now();
        let stats: Vec<_> = threads.iter().map(|_| Stats::new(epoch)).collect();
        let half = system("cannot duplicate the tunnel interface's descriptors");
        let readers = tun.readers().map_err(half)?;
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        let lanes = readers.into_iter().zip(pools).zip(sources).zip(threads);
        let lanes = lanes.zip(&stats);
        let out_lanes = outbound_pools.into_iter().zip(receivers);
        for (((((tun_reader, pool), sources), threads), stats), (outbound_pool, lan_receivers)) in
            lanes.zip(out_lanes)
        {
            let lane = inbound.len();
            let in_parts = InboundParts {
                engine: Inbound::new(config.esp, Arc::clone(stats)),
                pool,
                reserve: reserve_in.clone(),
                sources,
                tun: tun.writer().map_err(half)?,
                lan: sender.clone(),
                stats: Arc::clone(stats),
                sink: Arc::clone(&config.sink),
            };
            let sockets = duplicate().map_err(system("cannot duplicate the ESP-in-UDP sockets"))?;
            let out_parts = OutboundParts {
                engine: Outbound::new(config.esp, Arc::clone(stats)),
                pool: outbound_pool.with_rows(&rows, ROWS),
                reserve: reserve_out.clone(),
                tun: tun_reader,
                lan: lan_receivers,
                answers: tun.writer().map_err(half)?,
                udp: UdpSender::new(sockets, segment)
                    .map_err(system("cannot read the address of an ESP-in-UDP socket"))?,
                raw: RawSender::open(config.esp.ttl)?,
                xsk: steering.as_ref().map(|steering| steering.senders.clone()),
                stats: Arc::clone(stats),
                sink: Arc::clone(&config.sink),
                mtu_suspect: config.suspicion.clone(),
            };
            let [out, into] = worker::start(lane, out_parts, in_parts, threads)?;
            outbound.push(out);
            inbound.push(into);
        }
        Ok(Self {
            interface: Interface {
                name: config.tun,
                index: tun_link.index,
            },
            inbound: Lanes::new(inbound),
            outbound: Lanes::new(outbound),
            stats,
            front_end: config.front_end,
            xsk: xsk_about,
            steering,
            lans,
            arena,
            sending: BTreeMap::new(),
            ways: BTreeMap::new(),
            _tun: tun,
        })
    }

    /// How AF_XDP does; `None` when native ESP goes through raw sockets.
    pub fn xsk(&self) -> Option<&XskStatus> {
        self.xsk.as_ref()
    }

    /// Lanes, each with an outbound and an inbound half.
    pub fn lanes(&self) -> usize {
        self.stats.len()
    }

    /// How the LAN interfaces do that were asked for.
    pub fn lans(&self) -> Vec<LanStatus> {
        self.lans.status()
    }

    fn inbound_then_outbound(&self, command: &Command) -> Result<(), BackendError> {
        let command = Arc::new(command.clone());
        self.inbound.apply(&command, None)?.map_err(backend_error)?;
        self.outbound.apply(&command, None)?.map_err(backend_error)
    }

    /// Inbound first: when the peer sees our first packet it may answer at once.
    fn install(&mut self, command: &Command, sa: &ChildSa) -> Result<(), BackendError> {
        let command = Arc::new(command.clone());
        let shared = (self.lanes() > 1).then(|| Arc::new(Shared::default()));
        let shared = shared.as_ref();
        self.inbound
            .apply(&command, shared)?
            .map_err(backend_error)?;
        if let Err(error) = self.outbound.apply(&command, shared)? {
            let undo = Arc::new(Command::RemoveSa { id: sa.id });
            let _ = self.inbound.apply(&undo, None)?;
            return Err(backend_error(error));
        }
        let sending = Sending {
            path: sa.path,
            spi: sa.outbound.spi,
        };
        self.sending.insert(sa.id, sending);
        Ok(())
    }

    /// Tells the outbound worker how long a pair's packets may be, unless it knows.
    fn set_mtu(&self, id: ChildSaId, way: &Way) {
        let known = self.ways.get(&id).map(|way| way.mtu);
        if known != Some(way.mtu)
            && let Err(error) = self.outbound.set_path_mtu(id, way.mtu)
        {
            tracing::warn!(%error, "path MTU not set");
        }
    }

    /// Tells the outbound worker which peers it may send to past the kernel.
    fn publish_neighbours(&self) {
        let Some(steering) = &self.steering else {
            return;
        };
        let (mut links, mut counters) = (HashMap::new(), HashMap::new());
        for (id, sending) in &self.sending {
            let way = self
                .ways
                .get(id)
                .filter(|way| way.interface == steering.interface);
            let Some(next) = way.and_then(|way| way.link.as_ref()) else {
                continue;
            };
            let (peer, spi) = (sending.path.remote.ip(), sending.spi);
            links.insert(peer, next.clone());
            if let Some(front_end) = &self.front_end
                && let Some(counter) = lock_front_end(front_end).out_counter(peer, spi)
            {
                counters.insert((peer, spi), counter);
            }
        }
        let neighbours = Arc::new(Neighbours { links, counters });
        steering.senders.set_neighbours(&neighbours);
    }
}

/// What each lane receives from: one alone has its ports, several share them.
fn sources(udp: Vec<UdpReceiver>, lanes: usize) -> Result<Vec<Vec<Source>>, BackendError> {
    let mut ports: Vec<Port> = udp.into_iter().map(Port::Udp).collect();
    ports.push(Port::Raw(RawReceiver::open(true)?));
    match RawReceiver::open(false) {
        Ok(receiver) => ports.push(Port::Raw(receiver)),
        Err(error) => tracing::info!(%error, "no native ESP over IPv6"),
    }
    if lanes == 1 {
        return Ok(vec![ports.into_iter().map(Source::Own).collect()]);
    }
    let shared: Vec<_> = ports
        .into_iter()
        .map(|port| Arc::new(SharedPort::new(port)))
        .collect();
    let of_a_lane = || shared.iter().map(Arc::clone).map(Source::Shared).collect();
    Ok((0..lanes).map(|_| of_a_lane()).collect())
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
            engine: NAME,
            what: error.to_string(),
        },
    }
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
    if !lock_front_end(front_end).steers(name) {
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

/// Opens a socket for each lane on each queue and registers it with the front end. A queue without
/// them is no harm: its packets pass on to the raw sockets.
fn open_xsk(
    arena: &Arc<Arena>,
    link: &Link,
    queues: u32,
    lanes: usize,
    busy_poll: Option<NonZeroU32>,
    front_end: &SharedFrontEnd,
) -> Vec<Vec<Socket>> {
    let mut front_end = lock_front_end(front_end);
    let mut opened: Vec<Vec<Socket>> = Vec::new();
    for queue in 0..queues {
        let mut open = || -> Result<Vec<Socket>, String> {
            let mut first =
                xsk::open(arena, link.index, queue).map_err(|error| error.to_string())?;
            poll_busily(&mut first, busy_poll, &link.name);
            let mut sockets = vec![first];
            while sockets.len() < lanes
                && let Some(first) = sockets.first()
            {
                let beside = first.open_beside(xsk::RING);
                let mut beside = beside.map_err(|error| format!("for several workers: {error}"))?;
                poll_busily(&mut beside, busy_poll, &link.name);
                sockets.push(beside);
            }
            for (lane, socket) in (0..).zip(&sockets) {
                front_end
                    .set_xsk(lane, queue, &std::os::fd::AsFd::as_fd(socket))
                    .map_err(|error| error.to_string())?;
            }
            Ok(sockets)
        };
        match open() {
            Ok(sockets) => opened.push(sockets),
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
    if let Some(socket) = opened.iter().flatten().next() {
        tracing::info!(
            interface = link.name,
            queues = opened.len(),
            lanes,
            zero_copy = socket.zero_copy,
            "native ESP goes through AF_XDP"
        );
    }
    opened
}

/// Has the driver behind a socket polled, if that is asked for.
fn poll_busily(socket: &mut Socket, busy_poll: Option<NonZeroU32>, interface: &str) {
    if let Some(microseconds) = busy_poll
        && let Err(error) = socket.poll_busily(microseconds.get())
    {
        tracing::warn!(interface, %error, "busy_poll: the kernel does not poll here (Linux 5.11 does)");
    }
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

impl Engine for UserspaceEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn keeps_packets(&self) -> bool {
        true
    }

    fn supports(&self, sa: &ChildSa) -> Result<(), String> {
        if sa.mode == Mode::Transport {
            Err("does not carry transport mode; use tunnel mode".to_owned())
        } else if !esp::crypto::supports(&sa.suite) {
            Err(format!(
                "does not carry ESP suite {}; use AES-GCM, chacha20poly1305 or AES-CBC with SHA-1 or SHA-2",
                sa.suite
            ))
        } else {
            Ok(())
        }
    }

    fn apply(&mut self, command: &Command) -> Result<(), BackendError> {
        match command {
            Command::InstallSa(sa) | Command::RekeySa { new: sa, .. } => self.install(command, sa),
            Command::MovePath { id, path } => {
                if let Some(sending) = self.sending.get_mut(id) {
                    sending.path = *path;
                }
                self.ways.remove(id);
                self.publish_neighbours();
                self.inbound_then_outbound(command)
            }
            Command::RemoveSa { id } => {
                self.sending.remove(id);
                // In this order with the command: the worker's counter is gone before its slot is.
                self.publish_neighbours();
                let command = Arc::new(command.clone());
                let outbound = self.outbound.apply(&command, None)?;
                let inbound = self.inbound.apply(&command, None)?;
                // After a rekey the old pair may be left in one direction only.
                outbound.or(inbound).map_err(backend_error)
            }
            Command::InstallPolicy(_) | Command::RemovePolicy { .. } | Command::Retire { .. } => {
                let command = Arc::new(command.clone());
                self.outbound
                    .apply(&command, None)?
                    .map_err(backend_error)?;
                self.inbound.apply(&command, None)?.map_err(backend_error)
            }
        }
    }

    fn steering(&self, path: &Path) -> Steering {
        if self.steering.is_some() && path.encapsulation == Encapsulation::Esp {
            Steering::Xsk {
                lanes: self.lanes() as u32,
            }
        } else {
            Steering::Kernel
        }
    }

    fn set_way(&mut self, id: ChildSaId, way: &Way) {
        self.set_mtu(id, way);
        let known = self.ways.insert(id, way.clone());
        let link = |way: &Way| way.link.clone();
        if known.as_ref().and_then(link) != link(way) {
            self.publish_neighbours();
        }
    }

    fn set_ways(&mut self, ways: &BTreeMap<ChildSaId, Way>) {
        for (id, way) in ways {
            self.set_mtu(*id, way);
        }
        self.ways = ways.clone();
        self.publish_neighbours();
    }

    fn network_changed(&mut self, netlink: &mut Netlink, links: &[Link]) {
        self.lans.refresh(netlink, links);
    }

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        Ok(esp::stats::sum(&self.stats))
    }

    fn drop_totals(&mut self) -> Result<[[u64; DropReason::COUNT]; 2], BackendError> {
        let [inbound, mut outbound] = esp::stats::sum_drops(&self.stats);
        outbound[DropReason::LanFull as usize] += self.lans.lost();
        Ok([inbound, outbound])
    }

    fn shut_down(&mut self) {
        self.lans.close();
        self.outbound.stop();
        self.inbound.stop();
        if let (Some(steering), Some(front_end)) = (self.steering.take(), &self.front_end) {
            for place in 0..self.lanes() as u32 * steering.queues {
                let (lane, queue) = (place / steering.queues, place % steering.queues);
                if let Err(error) = lock_front_end(front_end).remove_xsk(lane, queue) {
                    tracing::debug!(%error, "the table of AF_XDP sockets keeps an entry");
                }
            }
        }
        // The rings are closed: frames that were with the kernel are taken back, so that the
        // arena's memory can go.
        let pool = self.arena.take(0);
        for address in (0..self.arena.size()).step_by(self.arena.frame_size()) {
            drop(pool.adopt(address as u64));
        }
    }
}

impl Drop for UserspaceEngine {
    fn drop(&mut self) {
        self.shut_down();
    }
}
