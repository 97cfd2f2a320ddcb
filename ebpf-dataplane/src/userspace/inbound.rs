//! The inbound half of a lane: ESP of the WAN to the host and the LAN.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSaId, Command};

use super::source::Source;
use super::worker::{Bursts, Direction, Round};
use crate::backend::EventSink;
use crate::esp::{ApplyError, Inbound, Output, Shared, Stats};
use crate::port::lan::SharedLanSender;
use crate::port::syscall::Poller;
use crate::port::tun::TunWriter;
use crate::umem::{FramePool, Reserve};

/// Everything the inbound half of a lane owns.
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

impl Direction for InboundParts {
    fn watch(&self, poller: &mut Poller, first: u64) -> io::Result<()> {
        (first..)
            .zip(&self.sources)
            .try_for_each(|(number, source)| source.watch(poller, number))
    }

    fn apply(&mut self, command: &Command, shared: Option<&Arc<Shared>>) -> Result<(), ApplyError> {
        self.engine.apply_shared(command, shared)
    }

    /// Only what is sent has a path.
    fn set_path_mtu(&mut self, _: ChildSaId, _: u16) {}

    fn settle(&mut self, _: &mut Bursts) {}

    /// One burst from a WAN port to the host.
    fn round(&mut self, source: usize, bursts: &mut Bursts) -> io::Result<Round> {
        let Bursts { input, output } = bursts;
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
        let round = match self.sources.get_mut(source) {
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
        Ok(round)
    }
}
