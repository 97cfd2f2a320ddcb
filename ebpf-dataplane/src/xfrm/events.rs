//! The thread that hears what the kernel has to tell of states and policies, and reads IKE from
//! the ESP-in-UDP sockets.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use espada_common::sa::{ChildSaId, Event};

use super::socket::Events;
use super::state::{SEQ_LOW, Side, StateId};
use super::wire::{self, Acquire, ESP, Expire, Mapping, attribute, group, message};
use crate::backend::{BackendError, EventSink};
use crate::port::syscall::{self, Poller, RecvBatch};

/// Datagrams read at once.
const BATCH: usize = 8;
/// Octets of the longest.
const LONGEST: usize = 65_536;

/// What the thread needs to know of the engine's states to name them.
#[derive(Default)]
pub struct Registry {
    /// Request ids: whose they are, and whether acquire events are wanted.
    pub connections: HashMap<u32, (Arc<str>, bool)>,
    /// States by destination and SPI.
    pub states: HashMap<StateId, (ChildSaId, Side)>,
    /// Pairs whose end was reported.
    ended: HashSet<ChildSaId>,
    /// Pairs of which it was reported that they run out of sequence numbers.
    low: HashSet<ChildSaId>,
}

impl Registry {
    /// The end of a pair, unless it was reported before: both of its states end.
    pub fn end(&mut self, id: ChildSaId) -> Option<Event> {
        let hard = true;
        self.ended.insert(id).then_some(Event::Expire { id, hard })
    }

    /// That a pair runs out of sequence numbers, unless it was reported before.
    pub fn seq_low(&mut self, id: ChildSaId, remaining: u64) -> Option<Event> {
        let event = Event::SeqLow { id, remaining };
        self.low.insert(id).then_some(event)
    }

    /// Forgets a pair that is removed.
    pub fn forget(&mut self, id: ChildSaId) {
        self.states.retain(|_, (owner, _)| *owner != id);
        self.ended.remove(&id);
        self.low.remove(&id);
    }
}

/// The registry, shared between engine and thread.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Registry>>);

impl Shared {
    /// Every change leaves it consistent before anything that could panic.
    pub fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running thread.
pub struct Listener {
    stop: File,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts it in the calling thread's network namespace. From the sockets in `ike` it reads IKE.
    pub fn start(
        registry: Shared,
        ike: Vec<UdpSocket>,
        sink: EventSink,
    ) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: "cannot listen for XFRM events".into(),
            source,
        };
        let mut events = Events::open(&[group::ACQUIRE, group::EXPIRE, group::MAPPING])?;
        let stop = syscall::eventfd().map_err(system)?;
        let stopped = stop.try_clone().map_err(system)?;
        let mut poller = Poller::new().map_err(system)?;
        poller.add(stopped.as_fd(), 0).map_err(system)?;
        poller.add(events.as_fd(), 1).map_err(system)?;
        let mut readers = Vec::new();
        for (number, socket) in (2..).zip(ike) {
            poller.add(socket.as_fd(), number).map_err(system)?;
            readers.push((number, IkeReader::new(socket).map_err(system)?));
        }
        let run = move || {
            // Open as long as the poller has it.
            let _stopped = stopped;
            loop {
                let ready: Vec<u64> = match poller.wait(None) {
                    Ok(ready) => ready.collect(),
                    Err(error) => {
                        tracing::error!(%error, "XFRM events are no longer heard");
                        return;
                    }
                };
                if ready.contains(&0) {
                    return;
                }
                if ready.contains(&1) {
                    let complete = events.read(|kind, payload| {
                        let event = translate(&mut registry.lock(), kind, payload);
                        if let Some(event) = event {
                            sink(event);
                        }
                    });
                    if !complete {
                        tracing::warn!(
                            "the kernel had more XFRM events than could be read; ends of states \
                             are noticed with the next look at the counters"
                        );
                    }
                }
                for (number, reader) in &mut readers {
                    if ready.contains(number) {
                        reader.read(&sink);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("espada-xfrm".into())
            .spawn(run)
            .map_err(system)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        // Fails only when the counter is about to overflow: then it is signalled already.
        let _ = self.stop.write(&1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the XFRM event thread had panicked: please report this with the log");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a message means to the control side; `None` if it is about somebody else's states.
fn translate(registry: &mut Registry, kind: u16, payload: &[u8]) -> Option<Event> {
    match kind {
        message::ACQUIRE => {
            let (acquire, attributes) = wire::split::<Acquire>(payload)?;
            let template: wire::Template = attributes.read(attribute::TMPL)?;
            let (connection, wanted) = registry.connections.get(&template.reqid)?;
            let selector = &acquire.selector;
            wanted.then_some(Event::Acquire {
                connection: Arc::clone(connection),
                source: selector.source.of_family(selector.family)?,
                destination: selector.destination.of_family(selector.family)?,
            })
        }
        message::EXPIRE => {
            let (expire, _) = wire::split::<Expire>(payload)?;
            let info = &expire.state;
            let state = StateId {
                destination: info.id.destination.of_family(info.family)?,
                spi: info.id.spi.get(),
            };
            let (id, _) = *registry
                .states
                .get(&state)
                .filter(|_| info.id.proto == ESP)?;
            if expire.hard != 0 {
                return registry.end(id);
            }
            let remaining = u64::from(u32::MAX).saturating_sub(info.current.packets);
            if remaining > SEQ_LOW {
                return Some(Event::Expire { id, hard: false });
            }
            registry.seq_low(id, remaining)
        }
        message::MAPPING => {
            let (mapping, _) = wire::split::<Mapping>(payload)?;
            let family = mapping.id.family;
            let state = StateId {
                destination: mapping.id.destination.of_family(family)?,
                spi: mapping.id.spi.get(),
            };
            let (id, side) = *registry.states.get(&state)?;
            let address = mapping.new_source.of_family(family)?;
            (side == Side::Inbound).then_some(Event::NatMoved {
                id,
                remote: SocketAddr::new(address, mapping.new_port.get()),
            })
        }
        _ => None,
    }
}

/// Reads IKE from a socket on which the kernel takes ESP for itself.
struct IkeReader {
    socket: UdpSocket,
    local: SocketAddr,
    batch: RecvBatch,
    buffers: Vec<u8>,
}

impl IkeReader {
    fn new(socket: UdpSocket) -> std::io::Result<Self> {
        Ok(Self {
            local: socket.local_addr()?,
            socket,
            batch: RecvBatch::new(),
            buffers: vec![0; BATCH * LONGEST],
        })
    }

    fn read(&mut self, sink: &EventSink) {
        loop {
            let buffers = self.buffers.chunks_mut(LONGEST);
            // An error here is an asynchronous one of an earlier send; it says nothing about input.
            let count = self
                .batch
                .recv(self.socket.as_fd(), 1, buffers)
                .unwrap_or(0);
            for (index, buffer) in self.buffers.chunks(LONGEST).enumerate().take(count) {
                let info = self.batch.info(index);
                // RFC 3948 section 2.2: IKE follows four zero octets. What else arrives here is a
                // keepalive, or ESP while no SA is in UDP.
                if let (Some([0, 0, 0, 0, ike @ ..]), Some(remote), false) =
                    (buffer.get(..info.len), info.source, info.truncated)
                {
                    let local = info.local.unwrap_or(self.local.ip());
                    sink(Event::IkeDatagram {
                        local: SocketAddr::new(local, self.local.port()),
                        remote,
                        payload: ike.to_vec(),
                    });
                }
            }
            if count < BATCH {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xfrm::wire::{Body, Current, Id, PolicyInfo, SaId, SaInfo, Selector, Template};

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.connections.insert(7, ("net".into(), true));
        registry.connections.insert(8, ("quiet".into(), false));
        for (spi, side) in [(0x1000, Side::Inbound), (0x2000, Side::Outbound)] {
            let state = StateId {
                destination: "192.0.2.1".parse().unwrap(),
                spi,
            };
            registry.states.insert(state, (ChildSaId(3), side));
        }
        registry
    }

    fn address(text: &str) -> wire::Address {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn id(spi: u32) -> Id {
        Id {
            destination: address("192.0.2.1"),
            spi: spi.into(),
            proto: ESP,
            ..Id::default()
        }
    }

    #[test]
    fn acquires_name_the_connection_that_wants_them() {
        let acquire = Acquire {
            selector: Selector {
                source: address("fd01::1"),
                destination: address("fd02::1"),
                family: libc::AF_INET6 as u16,
                ..Selector::default()
            },
            policy: PolicyInfo::default(),
            ..Acquire::default()
        };
        let with = |reqid| {
            let template = Template {
                reqid,
                ..Template::default()
            };
            let body = Body::new(&acquire)
                .attribute(attribute::TMPL, &[zerocopy::IntoBytes::as_bytes(&template)]);
            translate(&mut registry(), message::ACQUIRE, body.octets())
        };
        let event = with(7);
        assert!(
            matches!(&event, Some(Event::Acquire { connection, source, destination })
                if **connection == *"net" && source.to_string() == "fd01::1"
                    && destination.to_string() == "fd02::1"),
            "{event:?}"
        );
        assert!(with(8).is_none() && with(9).is_none());
    }

    #[test]
    fn a_pair_ends_once() {
        let mut registry = registry();
        let mut expire = |spi, hard, packets| {
            let expire = Expire {
                state: SaInfo {
                    id: id(spi),
                    family: libc::AF_INET as u16,
                    current: Current {
                        packets,
                        ..Current::default()
                    },
                    ..SaInfo::default()
                },
                hard,
                ..Expire::default()
            };
            translate(&mut registry, message::EXPIRE, Body::new(&expire).octets())
        };
        let low = expire(0x2000, 0, 0xf000_0000);
        assert!(
            matches!(
                low,
                Some(Event::SeqLow {
                    id: ChildSaId(3),
                    remaining: 0x0fff_ffff
                })
            ),
            "{low:?}"
        );
        assert!(matches!(
            expire(0x1000, 1, 0),
            Some(Event::Expire {
                id: ChildSaId(3),
                hard: true
            })
        ));
        assert!(expire(0x2000, 1, 0).is_none());
        assert!(expire(0x3000, 1, 0).is_none());
    }

    #[test]
    fn a_mapping_tells_where_the_peer_is() {
        let mapping = Mapping {
            id: SaId {
                destination: address("192.0.2.1"),
                spi: 0x1000.into(),
                family: libc::AF_INET as u16,
                proto: ESP,
                ..SaId::default()
            },
            new_source: address("198.51.100.9"),
            new_port: 40_000.into(),
            ..Mapping::default()
        };
        let event = translate(
            &mut registry(),
            message::MAPPING,
            Body::new(&mapping).octets(),
        );
        assert!(
            matches!(event, Some(Event::NatMoved { id: ChildSaId(3), remote })
                if remote == "198.51.100.9:40000".parse().unwrap()),
            "{event:?}"
        );
        assert!(translate(&mut registry(), message::MAPPING, &[1, 2, 3]).is_none());
    }
}
