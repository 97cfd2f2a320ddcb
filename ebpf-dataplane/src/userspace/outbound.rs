//! The outbound half of a lane: inner packets of the host and of the LAN to the WAN.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSaId, Command, Encapsulation};

use super::worker::{Bursts, Direction, Round};
use crate::backend::EventSink;
use crate::esp::{ApplyError, Outbound, Output, Shared, Stats};
use crate::port::raw::RawSender;
use crate::port::syscall::Poller;
use crate::port::tun::{TunReader, TunWriter};
use crate::port::udp::UdpSender;
use crate::port::xsk::{SharedXskSenders, XskReceiver};
use crate::umem::{Burst, Frame, FramePool, Reserve};
use crate::wake::Suspicion;

/// Everything the outbound half of a lane owns.
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

impl Direction for OutboundParts {
    fn watch(&self, poller: &mut Poller, first: u64) -> io::Result<()> {
        let lan = self.lan.iter().map(AsFd::as_fd);
        let sources = [self.tun.as_fd()].into_iter().chain(lan);
        (first..)
            .zip(sources)
            .try_for_each(|(number, source)| poller.add(source, number))
    }

    fn apply(&mut self, command: &Command, shared: Option<&Arc<Shared>>) -> Result<(), ApplyError> {
        self.engine.apply_shared(command, shared)
    }

    fn set_path_mtu(&mut self, id: ChildSaId, mtu: u16) {
        if let Err(error) = self.engine.set_path_mtu(id, mtu) {
            tracing::debug!(%error, "path MTU of a pair that is gone");
        }
    }

    /// Packets that waited for an SA.
    fn settle(&mut self, Bursts { input, output }: &mut Bursts) {
        let now = Instant::now();
        self.engine.release(now, input, &mut self.pool);
        if !input.is_empty() {
            self.carry(now, input, output);
        }
    }

    /// One burst from the host or a LAN port to the WAN.
    fn round(&mut self, source: usize, bursts: &mut Bursts) -> io::Result<Round> {
        let Bursts { input, output } = bursts;
        let drops = &self.stats.outbound_drops;
        let pool = &mut self.pool;
        if let Some(reserve) = &self.reserve {
            pool.balance(reserve);
        }
        let now = Instant::now();
        let (packets, more) = match source.checked_sub(1) {
            None => {
                let engine = &mut self.engine;
                (self.tun).read(pool, input, drops, |header, packet, input, pool| {
                    engine.admit_all(now, input, pool, output);
                    engine.admit_train(header, packet, pool)
                })?
            }
            Some(port) => {
                let port = self.lan.get_mut(port);
                let more = port.is_some_and(|port| port.receive(pool, input, drops));
                (input.len(), more)
            }
        };
        if packets == 0 {
            // All frames may be where they were sent from.
            if let Some(xsk) = &mut self.xsk {
                xsk.reap(pool);
            }
            return Ok(Round::default());
        }
        self.carry(now, input, output);
        Ok(Round { packets, more })
    }
}

impl OutboundParts {
    /// A burst of inner packets to the WAN, and what the engine has admitted.
    fn carry(&mut self, now: Instant, input: &mut Burst, output: &mut Output) {
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
        engine.process_in_turn(now, input, pool, output, &mut send);
        self.answers.write(&mut output.tun, pool, drops);
        output.events.drain(..).for_each(|event| (self.sink)(event));
    }
}
