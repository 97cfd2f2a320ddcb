//! Inbound: from ESP to inner IP packets.

use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::Command;

use super::{ApplyError, Config, Output, Stats};
use crate::umem::{Burst, FramePool};

/// The inbound half of the engine: inbound SAs and their replay windows.
pub struct Inbound {
    stats: Arc<Stats>,
}

impl Inbound {
    /// An engine half without SAs.
    pub fn new(_config: Config, stats: Arc<Stats>) -> Self {
        Self { stats }
    }

    /// Carries out a command as far as it concerns inbound traffic.
    pub fn apply(&mut self, _command: &Command) -> Result<(), ApplyError> {
        Ok(())
    }

    /// Takes all ESP packets out of `input`; frames that are not passed on go back to `pool`.
    /// `meta().path` of a frame says where it arrived and from whom. With `Encapsulation::Esp` the
    /// frame starts at the outer IP header, with `Encapsulation::Udp` at the ESP header (and
    /// `meta().tos` is the outer one).
    pub fn process(
        &mut self,
        _now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        _out: &mut Output,
    ) {
        for _ in 0..input.len() {
            self.stats.inbound_drops.add(DropReason::UnknownSpi);
        }
        input.recycle(pool);
    }
}
