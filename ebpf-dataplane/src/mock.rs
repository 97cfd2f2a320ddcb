//! An [`SaBackend`] that only records what it is asked, for tests of the control side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, ChildSaStats, Command, HalfSaStats};
use zeroize::Zeroizing;

use crate::backend::{BackendError, DropTotals, SaBackend};

/// What a [`MockBackend`] was asked, shared with the test that watches it.
#[derive(Clone, Default)]
pub struct Record {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    commands: Vec<Command>,
    stats: Vec<ChildSaStats>,
    drops: DropTotals,
    refuse_next: Option<String>,
    kept: BTreeMap<u64, Zeroizing<Vec<u8>>>,
}

impl Record {
    /// Commands accepted so far, oldest first.
    pub fn commands(&self) -> Vec<Command> {
        self.with(|state| state.commands.clone())
    }

    /// Pairs installed at the moment, in order of installation.
    pub fn installed(&self) -> Vec<ChildSaId> {
        self.with(|state| state.stats.iter().map(|stats| stats.id).collect())
    }

    /// Keys of what the control side keeps.
    pub fn kept(&self) -> Vec<u64> {
        self.with(|state| state.kept.keys().copied().collect())
    }

    /// A backend that carries what another did when the control side ended.
    pub fn successor(&self) -> MockBackend {
        MockBackend {
            record: self.clone(),
        }
    }

    /// Ends a pair, as its hard lifetime does when no control side runs.
    pub fn lose(&self, id: ChildSaId) {
        self.with(|state| state.stats.retain(|stats| stats.id != id));
    }

    /// Adds a pair that nobody asked for.
    pub fn find(&self, id: ChildSaId) {
        self.with(|state| state.stats.push(empty(id)));
    }

    /// Makes the next command fail with `reason`.
    pub fn refuse_next(&self, reason: &str) {
        self.with(|state| state.refuse_next = Some(reason.to_owned()));
    }

    /// Changes an installed pair's counters.
    pub fn set_stats(&self, stats: ChildSaStats) {
        self.with(|state| {
            if let Some(known) = state.stats.iter_mut().find(|known| known.id == stats.id) {
                *known = stats;
            }
        });
    }

    /// Counts a drop on the way in that belongs to no pair.
    pub fn count_inbound_drop(&self, reason: DropReason) {
        self.with(|state| state.drops.inbound[reason as usize] += 1);
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The backend to hand to the code under test; keep [`MockBackend::record`].
#[derive(Default)]
pub struct MockBackend {
    record: Record,
}

impl MockBackend {
    /// The record of this backend.
    pub fn record(&self) -> Record {
        self.record.clone()
    }
}

impl SaBackend for MockBackend {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn apply(&mut self, command: Command) -> Result<(), BackendError> {
        self.record.with(|state| {
            if let Some(what) = state.refuse_next.take() {
                return Err(BackendError::Unsupported {
                    engine: "mock",
                    what,
                });
            }
            match &command {
                Command::InstallSa(sa) => state.stats.push(empty(sa.id)),
                Command::RekeySa { old, new, .. } => {
                    known(state, *old)?;
                    state.stats.push(empty(new.id));
                }
                Command::RemoveSa { id } => {
                    let index = known(state, *id)?;
                    state.stats.remove(index);
                }
                Command::MovePath { id, .. } | Command::Retire { id } => {
                    known(state, *id)?;
                }
                Command::InstallPolicy(_) | Command::RemovePolicy { .. } => {}
            }
            state.commands.push(command);
            Ok(())
        })
    }

    fn keep(&mut self, key: u64, kept: Option<&[u8]>) -> Result<(), BackendError> {
        self.record.with(|state| match kept {
            Some(kept) => state.kept.insert(key, Zeroizing::new(kept.to_vec())),
            None => state.kept.remove(&key),
        });
        Ok(())
    }

    fn kept(&mut self) -> Result<Vec<(u64, Zeroizing<Vec<u8>>)>, BackendError> {
        let kept = |state: &mut State| state.kept.clone().into_iter().collect();
        Ok(self.record.with(kept))
    }

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        Ok(self.record.with(|state| state.stats.clone()))
    }

    fn drop_totals(&mut self) -> Result<DropTotals, BackendError> {
        Ok(self.record.with(|state| state.drops.clone()))
    }
}

fn empty(id: ChildSaId) -> ChildSaStats {
    ChildSaStats {
        id,
        inbound: HalfSaStats::default(),
        outbound: HalfSaStats::default(),
    }
}

fn known(state: &State, id: ChildSaId) -> Result<usize, BackendError> {
    state
        .stats
        .iter()
        .position(|stats| stats.id == id)
        .ok_or_else(|| BackendError::Unknown(format!("child SA {}", id.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_pairs_are_refused() {
        let mut backend = MockBackend::default();
        let error = backend
            .apply(Command::RemoveSa { id: ChildSaId(7) })
            .unwrap_err();
        assert!(error.to_string().contains("child SA 7"), "{error}");
        assert!(backend.record().commands().is_empty());
    }
}
