//! Outbound: from inner IP packets to ESP.

use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, Command};

use super::{ApplyError, Config, Output, Stats};
use crate::umem::{Burst, FramePool};

/// The outbound half of the engine: SPD, outbound SAs and their sequence numbers.
pub struct Outbound {
    stats: Arc<Stats>,
}

impl Outbound {
    /// An engine half without policies and SAs.
    pub fn new(_config: Config, stats: Arc<Stats>) -> Self {
        Self { stats }
    }

    /// Carries out a command as far as it concerns outbound traffic.
    pub fn apply(&mut self, _command: &Command) -> Result<(), ApplyError> {
        Ok(())
    }

    /// Sets the path MTU (octets of outer IP packet) towards an SA's peer.
    pub fn set_path_mtu(&mut self, id: ChildSaId, _mtu: u16) -> Result<(), ApplyError> {
        Err(ApplyError::UnknownSa(id))
    }

    /// Takes all inner packets out of `input`; frames that are not passed on go back to `pool`.
    pub fn process(
        &mut self,
        _now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        _out: &mut Output,
    ) {
        for _ in 0..input.len() {
            self.stats.outbound_drops.add(DropReason::NoPolicy);
        }
        input.recycle(pool);
    }
}
