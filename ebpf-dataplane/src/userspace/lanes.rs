//! The lanes and their threads. Each lane carries every pair of SAs, so what one is told all are told.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use espada_common::sa::{ChildSaId, Command};

use super::Workers;
use super::worker::{Handle, Place, Threads};
use crate::backend::BackendError;
use crate::esp::{ApplyError, Shared};
use crate::port::syscall;

/// Lanes at most.
pub const MOST: usize = 64;

/// Lanes that are taken by themselves at most: what is serial in all of them leaves little to gain
/// beyond.
const MOST_AUTOMATIC: usize = 8;

/// One lane, and one thread for both of its directions, up to this many processors: what sends and
/// receives needs some as well.
const FEW_PROCESSORS: usize = 3;

/// How many lanes there are, and the threads of each.
pub fn threads(workers: Workers) -> Vec<Threads> {
    let processors = syscall::processors().unwrap_or_default();
    let count = count(workers.lanes, processors.len());
    let place = |thread: usize| Place {
        processor: processors
            .get(thread % processors.len().max(1))
            .copied()
            .filter(|_| workers.pinned),
        realtime: workers.realtime,
        busy_poll: workers.busy_poll,
    };
    let joined = joined(workers.joined, processors.len());
    (0..count)
        .map(|lane| match joined {
            true => Threads::Joined(place(lane)),
            false => Threads::Apart([place(2 * lane), place(2 * lane + 1)]),
        })
        .collect()
}

fn joined(asked: Option<bool>, processors: usize) -> bool {
    asked.unwrap_or(processors <= FEW_PROCESSORS)
}

fn count(asked: Option<NonZeroUsize>, processors: usize) -> usize {
    match asked {
        Some(lanes) => lanes.get().min(MOST),
        None if processors <= FEW_PROCESSORS => 1,
        None => (processors / 2).min(MOST_AUTOMATIC),
    }
}

/// The workers of one direction, at least one.
pub struct Lanes(Vec<Handle>);

impl Lanes {
    /// Of workers that were started.
    pub fn new(handles: Vec<Handle>) -> Self {
        Self(handles)
    }

    /// Has every worker carry a command out and waits until all have. When it fails, none has changed.
    /// A pair that is installed has in common what `shared` holds.
    pub fn apply(
        &self,
        command: &Arc<Command>,
        shared: Option<&Arc<Shared>>,
    ) -> Result<Result<(), ApplyError>, BackendError> {
        let asked: Vec<_> = self
            .0
            .iter()
            .map(|handle| handle.apply(Arc::clone(command), shared.cloned()))
            .collect::<Result<_, _>>()?;
        let results: Vec<_> = asked.iter().map(answer).collect::<Result<_, _>>()?;
        let Some(error) = results.iter().find_map(|result| result.clone().err()) else {
            return Ok(Ok(()));
        };
        if let Command::InstallSa(sa) | Command::RekeySa { new: sa, .. } = &**command {
            let undo = Arc::new(Command::RemoveSa { id: sa.id });
            for (handle, _) in self
                .0
                .iter()
                .zip(&results)
                .filter(|(_, result)| result.is_ok())
            {
                let _ = answer(&handle.apply(Arc::clone(&undo), None)?)?;
            }
        }
        Ok(Err(error))
    }

    /// Tells outbound workers what fits the path of a pair (octets of outer IP packet).
    pub fn set_path_mtu(&self, id: ChildSaId, mtu: u16) -> Result<(), BackendError> {
        self.0
            .iter()
            .try_for_each(|handle| handle.set_path_mtu(id, mtu))
    }

    /// Stops the threads and waits for them.
    pub fn stop(&mut self) {
        self.0.iter_mut().for_each(Handle::stop);
    }
}

fn answer(
    asked: &Receiver<Result<(), ApplyError>>,
) -> Result<Result<(), ApplyError>, BackendError> {
    asked.recv().map_err(|_| BackendError::Stopped(super::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_follow_the_processors_unless_they_are_asked_for() {
        let automatic = [0, 1, 2, 3, 4, 7, 16, 17, 96].map(|processors| count(None, processors));
        assert_eq!(automatic, [1, 1, 1, 1, 2, 3, 8, 8, 8]);
        assert_eq!(count(NonZeroUsize::new(5), 2), 5);
        assert_eq!(count(NonZeroUsize::new(1000), 2), MOST);
    }

    #[test]
    fn few_processors_join_the_directions_unless_they_are_asked_for() {
        let automatic = [0, 1, 3, 4, 96].map(|processors| joined(None, processors));
        assert_eq!(automatic, [true, true, true, false, false]);
        assert!(joined(Some(true), 96) && !joined(Some(false), 1));
    }

    #[test]
    fn pinned_workers_take_turns_on_the_processors() {
        let workers = Workers {
            lanes: NonZeroUsize::new(3),
            pinned: true,
            ..Workers::default()
        };
        let processors = syscall::processors().unwrap();
        let placed = |workers| -> Vec<Option<usize>> {
            let places = |lane| match lane {
                Threads::Joined(place) => vec![place],
                Threads::Apart(places) => places.to_vec(),
            };
            let places = threads(workers).into_iter().flat_map(places);
            places.map(|place| place.processor).collect()
        };
        for (joined, count) in [(false, 6), (true, 3)] {
            let workers = Workers {
                joined: Some(joined),
                ..workers
            };
            let expected: Vec<_> = (processors.iter().copied().map(Some).cycle())
                .take(count)
                .collect();
            assert_eq!(placed(workers), expected);
            let free = Workers {
                pinned: false,
                ..workers
            };
            assert_eq!(placed(free), vec![None; count]);
        }
    }
}
