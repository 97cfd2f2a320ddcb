//! Events of the programs: a ring in memory, read by a thread.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use espada_common::abi::esp::{EVENT_ACQUIRE, EVENT_MOVED, EVENT_SEQ_LOW, EspEvent};
use espada_common::sa::{ChildSaId, Event};
use zerocopy::FromBytes;

use super::lock_names;
use super::reader::RingReader;
use crate::backend::{BackendError, EventSink};

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

/// Starts the thread that hands events on.
pub fn reader(
    ring: RingBuf<MapData>,
    names: Arc<Mutex<Names>>,
    sink: EventSink,
) -> Result<RingReader, BackendError> {
    let mut told: HashMap<ChildSaId, (SocketAddr, Instant)> = HashMap::new();
    let what = "read the eBPF programs' events";
    RingReader::start("espada-bpf", what, ring, move |ring| {
        while let Some(item) = ring.next() {
            let Ok((event, _)) = EspEvent::read_from_prefix(&item) else {
                continue;
            };
            let event = translate(&event, &lock_names(&names));
            if let Some(event) = event.filter(|event| is_news(event, &mut told)) {
                sink(event);
            }
        }
    })
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
