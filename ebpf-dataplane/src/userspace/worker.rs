//! The threads of the userspace engine. Each owns one half of an engine and runs every burst to
//! completion; commands arrive through a channel between bursts.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use espada_common::sa::{ChildSaId, Command, Encapsulation};

use super::pace::Pace;
use super::source::Source;
use crate::backend::{BackendError, EventSink};
use crate::esp::{ApplyError, Inbound, Outbound, Output, Shared, Stats};
use crate::port::lan::SharedLanSender;
use crate::port::raw::RawSender;
use crate::port::syscall::{self, Poller};
use crate::port::tun::{TunReader, TunWriter};
use crate::port::udp::UdpSender;
use crate::port::xsk::{SharedXskSenders, XskReceiver};
use crate::umem::{Burst, Frame, FramePool, Reserve};
use crate::wake::{Suspicion, Wake};

/// Rounds a worker gives one port before it looks at the others and at commands again.
const ROUNDS: usize = 8;

/// Number of the command wake-up in a poller; ports count from 0.
const WAKE: u64 = u64::MAX;

/// What the control side asks of a worker.
enum Order {
    Apply {
        command: Arc<Command>,
        shared: Option<Arc<Shared>>,
        answer: SyncSender<Result<(), ApplyError>>,
    },
    PathMtu(ChildSaId, u16),
    Stop,
}

/// The control side's end of a worker.
pub struct Handle {
    orders: Sender<Order>,
    wake: Wake,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Has the worker carry a command out, as [`Outbound::apply_shared`] does. Its answer comes when it
    /// has.
    pub fn apply(
        &self,
        command: Arc<Command>,
        shared: Option<Arc<Shared>>,
    ) -> Result<Receiver<Result<(), ApplyError>>, BackendError> {
        let (answer, answered) = sync_channel(1);
        self.order(Order::Apply {
            command,
            shared,
            answer,
        })?;
        Ok(answered)
    }

    /// Tells an outbound worker what fits the path of a pair (octets of outer IP packet).
    pub fn set_path_mtu(&self, id: ChildSaId, mtu: u16) -> Result<(), BackendError> {
        self.order(Order::PathMtu(id, mtu))
    }

    fn order(&self, order: Order) -> Result<(), BackendError> {
        self.orders
            .send(order)
            .map_err(|_| BackendError::Stopped(super::NAME))?;
        self.wake.signal();
        Ok(())
    }

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        let _ = self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker thread had panicked: please report this with the log");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where and when a worker runs.
#[derive(Clone, Copy)]
pub struct Place {
    /// Its processor, if it has a fixed one.
    pub processor: Option<usize>,
    /// Before threads that are not real-time ones.
    pub realtime: bool,
    /// Microseconds that it polls drivers before it sleeps.
    pub busy_poll: Option<NonZeroU32>,
}

impl Place {
    /// When its packets are taken: only a worker that runs before their sender need wait for more.
    fn pace(self) -> Pace {
        Pace::new(self.realtime, Instant::now())
    }

    /// Takes it with the calling thread. What the system does not allow is told and done without.
    fn take(self) {
        if let Some(processor) = self.processor
            && let Err(error) = syscall::pin_thread(processor)
        {
            tracing::warn!(processor, %error, "cannot pin a worker to its processor");
        }
        if self.realtime
            && let Err(error) = syscall::run_before_others()
        {
            tracing::info!(
                %error,
                "workers share processors with other threads on equal terms: packets may wait for \
                 milliseconds; real-time scheduling takes CAP_SYS_NICE"
            );
        }
    }
}

/// What one burst was.
#[derive(Clone, Copy, Default)]
struct Round {
    packets: usize,
    /// More may be waiting.
    more: bool,
}

/// Starts a worker thread called `name`.
fn spawn(
    name: &str,
    place: Place,
    body: impl FnOnce(Receiver<Order>, Wake) -> io::Result<()> + Send + 'static,
) -> Result<Handle, BackendError> {
    let (orders, receiver) = channel();
    let wake = Wake::new()?;
    let own = wake.clone();
    let run = move || {
        place.take();
        if let Err(error) = body(receiver, own) {
            tracing::error!(%error, "a worker thread stopped: no traffic passes in its direction");
        }
    };
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| BackendError::System {
            what: format!("cannot start thread {name}"),
            source,
        })?;
    Ok(Handle {
        orders,
        wake,
        thread: Some(thread),
    })
}

/// What a worker waits with.
fn poller(wake: &Wake, place: Place) -> io::Result<Poller> {
    let mut poller = Poller::new()?;
    if let Some(microseconds) = place.busy_poll
        && let Err(error) = poller.poll_busily(microseconds.get())
    {
        tracing::debug!(%error, "drivers are polled when packets are moved only (Linux 6.9 does more)");
    }
    poller.add(wake.as_fd(), WAKE)?;
    Ok(poller)
}

/// Everything the outbound worker owns.
pub struct OutboundParts {
    /// Engine half.
    pub engine: Outbound,
    /// Its free frames.
    pub pool: FramePool,
    /// What it shares frames with, as one of several lanes.
    pub reserve: Option<Arc<Reserve>>,
    /// Inner packets from the host.
    pub tun: TunReader,
    /// Inner packets from the LAN, past the kernel.
    pub lan: Vec<XskReceiver>,
    /// Answers to the host (ICMP).
    pub answers: TunWriter,
    /// ESP in UDP.
    pub udp: UdpSender,
    /// Native ESP.
    pub raw: RawSender,
    /// Native ESP past the kernel; all lanes have the same.
    pub xsk: Option<SharedXskSenders>,
    /// Drops are counted here.
    pub stats: Arc<Stats>,
    /// Events go here.
    pub sink: EventSink,
    /// Raised when a packet did not fit the path.
    pub mtu_suspect: Suspicion,
}

/// Starts the outbound worker.
pub fn outbound(
    lane: usize,
    mut parts: OutboundParts,
    place: Place,
) -> Result<Handle, BackendError> {
    spawn(&format!("espada-out-{lane}"), place, move |orders, wake| {
        let mut poller = poller(&wake, place)?;
        let lan = parts.lan.iter().map(AsFd::as_fd);
        for (number, source) in [parts.tun.as_fd()].into_iter().chain(lan).enumerate() {
            poller.add(source, number as u64)?;
        }
        let mut input = Burst::new();
        let mut output = Output::new();
        let mut pace = place.pace();
        let mut ready = Vec::new();
        loop {
            ready.clear();
            ready.extend(poller.wait(None)?);
            if ready.contains(&WAKE) {
                wake.clear();
                for order in orders.try_iter() {
                    match order {
                        Order::Apply {
                            command,
                            shared,
                            answer,
                        } => {
                            let applied = parts.engine.apply_shared(&command, shared.as_ref());
                            let _ = answer.send(applied);
                        }
                        Order::PathMtu(id, mtu) => {
                            if let Err(error) = parts.engine.set_path_mtu(id, mtu) {
                                tracing::debug!(%error, "path MTU of a pair that is gone");
                            }
                        }
                        Order::Stop => return Ok(()),
                    }
                }
                let now = Instant::now();
                parts.engine.release(now, &mut input, &mut parts.pool);
                parts.carry(&mut input, &mut output);
            }
            let sources = || ready.iter().filter(|number| **number != WAKE);
            if sources().next().is_some() {
                pace.gather();
                let mut carried = 0;
                for number in sources() {
                    for _ in 0..ROUNDS {
                        let round = parts.round(*number as usize, &mut input, &mut output)?;
                        carried += round.packets;
                        if !round.more {
                            break;
                        }
                    }
                }
                pace.finished(carried);
            }
        }
    })
}

impl OutboundParts {
    /// One burst from the host or a LAN port to the WAN.
    fn round(
        &mut self,
        number: usize,
        input: &mut Burst,
        output: &mut Output,
    ) -> io::Result<Round> {
        let drops = &self.stats.outbound_drops;
        let pool = &mut self.pool;
        if let Some(reserve) = &self.reserve {
            pool.balance(reserve);
        }
        let more = match number.checked_sub(1) {
            None => self.tun.read(pool, input, drops)?,
            Some(port) => {
                (self.lan.get_mut(port)).is_some_and(|port| port.receive(pool, input, drops))
            }
        };
        let packets = input.len();
        if packets == 0 {
            // All frames may be where they were sent from.
            if let Some(xsk) = &mut self.xsk {
                xsk.reap(pool);
            }
            return Ok(Round::default());
        }
        self.carry(input, output);
        Ok(Round { packets, more })
    }

    /// A burst of inner packets to the WAN.
    fn carry(&mut self, input: &mut Burst, output: &mut Output) {
        if input.is_empty() {
            return;
        }
        let Self {
            engine,
            pool,
            udp,
            raw,
            xsk,
            mtu_suspect,
            ..
        } = self;
        let drops = &self.stats.outbound_drops;
        let mut send = |wan: &mut Burst, pool: &mut FramePool| {
            if let Some(xsk) = xsk {
                xsk.send(wan, pool, drops);
            }
            // One call per stretch of equal kind: the sockets differ.
            let kind = |frame: &Frame| {
                let meta = frame.meta();
                (meta.path.encapsulation, meta.path.remote.is_ipv4(), meta.df)
            };
            for stretch in wan.frames().chunk_by(|a, b| kind(a) == kind(b)) {
                let in_udp = stretch
                    .first()
                    .is_some_and(|frame| frame.meta().path.encapsulation == Encapsulation::Udp);
                if in_udp {
                    udp.send(stretch, drops);
                } else if raw.send(stretch, drops) {
                    mtu_suspect.raise();
                }
            }
            wan.recycle(pool);
        };
        engine.process_in_turn(Instant::now(), input, pool, output, &mut send);
        self.answers.write(&mut output.tun, pool, drops);
        output.events.drain(..).for_each(|event| (self.sink)(event));
    }
}

/// Everything the inbound worker owns.
pub struct InboundParts {
    /// Engine half.
    pub engine: Inbound,
    /// Its free frames.
    pub pool: FramePool,
    /// What it shares frames with, as one of several lanes.
    pub reserve: Option<Arc<Reserve>>,
    /// ESP from the WAN.
    pub sources: Vec<Source>,
    /// Inner packets to the host.
    pub tun: TunWriter,
    /// Inner packets to the LAN, past the kernel; all lanes have the same.
    pub lan: Option<SharedLanSender>,
    /// Drops are counted here.
    pub stats: Arc<Stats>,
    /// Events go here.
    pub sink: EventSink,
}

/// Starts the inbound worker.
pub fn inbound(lane: usize, mut parts: InboundParts, place: Place) -> Result<Handle, BackendError> {
    spawn(&format!("espada-in-{lane}"), place, move |orders, wake| {
        let mut poller = poller(&wake, place)?;
        for (number, source) in parts.sources.iter().enumerate() {
            source.watch(&mut poller, number as u64)?;
        }
        let mut input = Burst::new();
        let mut output = Output::new();
        let mut ready = Vec::new();
        let mut pace = place.pace();
        loop {
            ready.clear();
            ready.extend(poller.wait(None)?);
            if ready.iter().any(|number| *number != WAKE) {
                pace.gather();
            }
            let mut carried = 0;
            for number in &ready {
                if *number == WAKE {
                    wake.clear();
                    for order in orders.try_iter() {
                        match order {
                            Order::Apply {
                                command,
                                shared,
                                answer,
                            } => {
                                let applied = parts.engine.apply_shared(&command, shared.as_ref());
                                let _ = answer.send(applied);
                            }
                            // Only what is sent has a path.
                            Order::PathMtu(..) => {}
                            Order::Stop => return Ok(()),
                        }
                    }
                    continue;
                }
                for _ in 0..ROUNDS {
                    let round = parts.round(*number as usize, &mut input, &mut output);
                    carried += round.packets;
                    if !round.more {
                        break;
                    }
                }
            }
            pace.finished(carried);
        }
    })
}

impl InboundParts {
    /// One burst from a WAN port to the host.
    fn round(&mut self, number: usize, input: &mut Burst, output: &mut Output) -> Round {
        let Self {
            engine,
            pool,
            tun,
            lan,
            sink,
            ..
        } = self;
        let drops = &self.stats.inbound_drops;
        let mut deliver = |output: &mut Output, pool: &mut FramePool| {
            if let Some(lan) = lan {
                lan.send(&mut output.tun, pool, drops);
            }
            tun.write(&mut output.tun, pool, drops);
            output.wan.recycle(pool);
            output.events.drain(..).for_each(|event| sink(event));
        };
        if let Some(reserve) = &self.reserve {
            pool.balance(reserve);
        }
        let round = match self.sources.get_mut(number) {
            Some(Source::Own(port)) => {
                let more = port.receive(pool, input, sink, drops);
                let packets = input.len();
                if packets > 0 {
                    engine.process(Instant::now(), input, pool, output);
                    deliver(output, pool);
                }
                Round { packets, more }
            }
            Some(Source::Shared(shared)) => {
                let (turn, more) = shared.receive(pool, input, sink, drops);
                let packets = input.len();
                if let Some(turn) = turn {
                    engine.process(Instant::now(), input, pool, output);
                    turn.deliver(output, |output| deliver(output, pool));
                }
                Round { packets, more }
            }
            None => Round::default(),
        };
        if let Some(reserve) = &self.reserve {
            pool.balance(reserve);
        }
        round
    }
}
