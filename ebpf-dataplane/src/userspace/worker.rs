//! The threads of the userspace engine. Each runs every burst to completion, of one direction of a
//! lane or of both; commands arrive through channels between bursts.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use espada_common::sa::{ChildSaId, Command};

use super::inbound::InboundParts;
use super::outbound::OutboundParts;
use super::pace::Pace;
use crate::backend::BackendError;
use crate::esp::{ApplyError, Output, Shared};
use crate::port::syscall::{self, Poller};
use crate::umem::Burst;
use crate::wake::Wake;

/// Rounds a worker gives one port before it looks at the others and at commands again.
const ROUNDS: usize = 8;

/// Numbers in a poller that each half has: the first is its commands' wake-up, then come its sources.
const NUMBERS: u64 = 1 << 16;

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
    /// Joined when it is stopped. A thread for both directions belongs to one of its two handles.
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Has the worker carry a command out, as [`Direction::apply`] does. Its answer comes when it has.
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

    /// Stops the thread and waits for it, if it is this handle's.
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
pub struct Round {
    /// Packets in it.
    pub packets: usize,
    /// More may be waiting.
    pub more: bool,
}

/// Bursts that a worker reuses; empty between rounds.
pub struct Bursts {
    /// As they arrived.
    pub input: Burst,
    /// As they leave.
    pub output: Output,
}

/// What a worker does in one direction.
pub trait Direction: Send + 'static {
    /// Has `poller` report input, that of the first source under `first`, of the next under the next number.
    fn watch(&self, poller: &mut Poller, first: u64) -> io::Result<()>;

    /// Carries a command out; a pair that is installed has in common with other lanes what `shared` holds.
    fn apply(&mut self, command: &Command, shared: Option<&Arc<Shared>>) -> Result<(), ApplyError>;

    /// Learns what fits the path of a pair (octets of outer IP packet).
    fn set_path_mtu(&mut self, id: ChildSaId, mtu: u16);

    /// What can leave after commands does.
    fn settle(&mut self, bursts: &mut Bursts);

    /// One burst from a source, counted from 0. An error means that nothing will come any more.
    fn round(&mut self, source: usize, bursts: &mut Bursts) -> io::Result<Round>;
}

/// A direction, and the worker's end of what the control side asks of it.
struct Half {
    /// Nothing once it has failed; the other half of its thread goes on.
    direction: Option<Box<dyn Direction>>,
    orders: Receiver<Order>,
    wake: Wake,
}

impl Half {
    fn new(direction: impl Direction) -> Result<(Self, Handle), BackendError> {
        let (sender, orders) = channel();
        let wake = Wake::new()?;
        let handle = Handle {
            orders: sender,
            wake: wake.clone(),
            thread: None,
        };
        let half = Self {
            direction: Some(Box::new(direction)),
            orders,
            wake,
        };
        Ok((half, handle))
    }

    /// Does what was asked. False when it is to stop.
    fn obey(&mut self, bursts: &mut Bursts) -> bool {
        self.wake.clear();
        for order in self.orders.try_iter() {
            match (order, &mut self.direction) {
                (Order::Stop, _) => return false,
                // Who waits for an answer learns that none comes.
                (_, None) => {}
                (
                    Order::Apply {
                        command,
                        shared,
                        answer,
                    },
                    Some(direction),
                ) => {
                    let applied = direction.apply(&command, shared.as_ref());
                    let _ = answer.send(applied);
                }
                (Order::PathMtu(id, mtu), Some(direction)) => direction.set_path_mtu(id, mtu),
            }
        }
        if let Some(direction) = &mut self.direction {
            direction.settle(bursts);
        }
        true
    }
}

/// The threads of a lane.
#[derive(Clone, Copy)]
pub enum Threads {
    /// One for both directions.
    Joined(Place),
    /// One for outbound and one for inbound packets.
    Apart([Place; 2]),
}

/// Starts the threads of a lane. Gives the control side's ends, outbound first.
pub fn start(
    lane: usize,
    outbound: OutboundParts,
    inbound: InboundParts,
    threads: Threads,
) -> Result<[Handle; 2], BackendError> {
    let (out_half, mut out) = Half::new(outbound)?;
    let (in_half, mut into) = Half::new(inbound)?;
    match threads {
        Threads::Joined(place) => {
            let name = format!("espada-both-{lane}");
            out.thread = Some(spawn(name, place, vec![out_half, in_half])?);
        }
        Threads::Apart([out_place, in_place]) => {
            let name = format!("espada-out-{lane}");
            out.thread = Some(spawn(name, out_place, vec![out_half])?);
            let name = format!("espada-in-{lane}");
            into.thread = Some(spawn(name, in_place, vec![in_half])?);
        }
    }
    Ok([out, into])
}

fn spawn(name: String, place: Place, halves: Vec<Half>) -> Result<JoinHandle<()>, BackendError> {
    let run = move || {
        place.take();
        if let Err(error) = serve(halves, place) {
            tracing::error!(%error, "a worker thread stopped: no traffic passes through it");
        }
    };
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(run)
        .map_err(|source| BackendError::System {
            what: format!("cannot start thread {name}"),
            source,
        })
}

/// What a thread waits with: the orders of its halves, and the sources of those that have not failed.
fn poller(halves: &[Half], place: Place) -> io::Result<Poller> {
    let mut poller = Poller::new()?;
    if let Some(microseconds) = place.busy_poll
        && let Err(error) = poller.poll_busily(microseconds.get())
    {
        tracing::debug!(%error, "drivers are polled when packets are moved only (Linux 6.9 does more)");
    }
    for (half, first) in halves.iter().zip((0..).step_by(NUMBERS as usize)) {
        poller.add(half.wake.as_fd(), first)?;
        if let Some(direction) = &half.direction {
            direction.watch(&mut poller, first + 1)?;
        }
    }
    Ok(poller)
}

/// Serves halves until one is to stop.
fn serve(mut halves: Vec<Half>, place: Place) -> io::Result<()> {
    let mut poller = poller(&halves, place)?;
    let mut bursts = Bursts {
        input: Burst::new(),
        output: Output::new(),
    };
    let mut pace = place.pace();
    let mut ready = Vec::new();
    loop {
        ready.clear();
        let split = |number| ((number / NUMBERS) as usize, (number % NUMBERS) as usize);
        ready.extend(poller.wait(None)?.map(split));
        for (half, _) in ready.iter().filter(|(_, number)| *number == 0) {
            if let Some(half) = halves.get_mut(*half)
                && !half.obey(&mut bursts)
            {
                return Ok(());
            }
        }
        let sources = || {
            let source = |(half, number): &(usize, usize)| Some((*half, number.checked_sub(1)?));
            ready.iter().filter_map(source)
        };
        if sources().next().is_none() {
            continue;
        }
        pace.gather();
        let mut carried = 0;
        let mut failed = false;
        for (half, source) in sources() {
            let Some(half) = halves.get_mut(half) else {
                continue;
            };
            for _ in 0..ROUNDS {
                let Some(direction) = &mut half.direction else {
                    break;
                };
                match direction.round(source, &mut bursts) {
                    Ok(round) => {
                        carried += round.packets;
                        if !round.more {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "no traffic passes in one direction any more");
                        half.direction = None;
                        failed = true;
                    }
                }
            }
        }
        pace.finished(carried);
        if failed {
            poller = self::poller(&halves, place)?;
        }
    }
}
