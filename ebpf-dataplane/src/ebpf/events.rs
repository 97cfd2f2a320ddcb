//! Events of the programs: a ring in memory, read by a thread.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use espada_common::abi::esp::{EVENT_ACQUIRE, EVENT_MOVED, EVENT_SEQ_LOW, EspEvent};
use espada_common::sa::{ChildSaId, Event};
use zerocopy::FromBytes;

use super::lock_names;
use crate::backend::{BackendError, EventSink};
use crate::port::syscall::Poller;
use crate::wake::Wake;

/// An address the peer was seen at is reported again if nobody moved the pair there meanwhile.
const MOVE_INTERVAL: Duration = Duration::from_secs(2);

/// What the numbers in events stand for.
#[derive(Debug, Default)]
pub struct Names {
    /// Connections by flow.
    pub connections: BTreeMap<u32, Arc<str>>,
    /// Pairs by handle.
    pub pairs: HashMap<u32, ChildSaId>,
}

/// The thread.
pub struct EventReader {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventReader {
    /// Starts it.
    pub fn start(
        mut ring: RingBuf<MapData>,
        names: Arc<Mutex<Names>>,
        sink: EventSink,
    ) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: "cannot read the eBPF programs' events".into(),
            source,
        };
        let wake = Wake::new()?;
        let mut poller = Poller::new().map_err(system)?;
        poller.add(wake.as_fd(), 0).map_err(system)?;
        poller.add(ring.as_fd(), 1).map_err(system)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut told: HashMap<ChildSaId, (SocketAddr, Instant)> = HashMap::new();
            loop {
                if let Err(error) = poller.wait(None).map(Iterator::count) {
                    tracing::error!(%error, "the eBPF programs' events are no longer read");
                    return;
                }
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                while let Some(item) = ring.next() {
                    let Ok((event, _)) = EspEvent::read_from_prefix(&item) else {
                        continue;
                    };
                    let event = translate(&event, &lock_names(&names));
                    if let Some(event) = event.filter(|event| is_news(event, &mut told)) {
                        sink(event);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("espada-bpf".into())
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

fn translate(event: &EspEvent, names: &Names) -> Option<Event> {
    let pair = || names.pairs.get(&event.number).copied();
    match event.kind {
        EVENT_ACQUIRE => Some(Event::Acquire {
            connection: names.connections.get(&event.number)?.clone(),
            source: event.source.into(),
            destination: event.destination.into(),
        }),
        EVENT_MOVED => Some(Event::NatMoved {
            id: pair()?,
            remote: SocketAddr::new(event.source.into(), u16::try_from(event.port).ok()?),
        }),
        EVENT_SEQ_LOW => Some(Event::SeqLow {
            id: pair()?,
            remaining: u64::from(u32::MAX) / 16,
        }),
        _ => None,
    }
}

/// Every packet from a new address raises an event until the pair has moved; one will do.
fn is_news(event: &Event, told: &mut HashMap<ChildSaId, (SocketAddr, Instant)>) -> bool {
    let Event::NatMoved { id, remote } = event else {
        return true;
    };
    let now = Instant::now();
    told.retain(|_, (_, at)| now.saturating_duration_since(*at) < MOVE_INTERVAL);
    if told.get(id).is_some_and(|(known, _)| known == remote) {
        return false;
    }
    told.insert(*id, (*remote, now));
    true
}
