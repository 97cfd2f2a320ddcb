//! Sequence numbers of outbound SAs (RFC 4303 section 3.3.3), also where several lanes carry one SA.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::meter::SharedMeter;
use super::window::Words;
use crate::turns::{Turn, Turns};
use crate::umem::Burst;

/// An SA's end is announced when this part of its sequence number space is left.
const LOW_FRACTION: u64 = 16;

/// What all lanes that carry a pair of SAs share of it. Made when the pair is installed.
#[derive(Default)]
pub struct Shared {
    /// The last sequence number taken, 0 before the first.
    taken: Mutex<u64>,
    /// The bursts to send.
    sending: Turns<Burst>,
    /// That few numbers are left has been told.
    low_told: AtomicBool,
    /// Where the next lane begins in the identifications of outer IPv4 headers.
    identification: AtomicU16,
    /// Inbound: what was received.
    pub(super) window: Words,
    /// What was received of what may be.
    pub(super) received: Arc<SharedMeter>,
    /// What was sent of what may be.
    pub(super) sent: Arc<SharedMeter>,
}

/// Lanes begin that far from each other: packets that leave at about the same time do not bear one
/// identification, by which their fragments would be taken for those of one packet.
const IDENTIFICATIONS: u16 = 1 << 12;

impl Shared {
    fn taken(&self) -> MutexGuard<'_, u64> {
        // It is a number at any time.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first identification of a lane.
    pub(super) fn first_identification(&self) -> u16 {
        self.identification
            .fetch_add(IDENTIFICATIONS, Ordering::Relaxed)
    }
}

/// Where the numbers of an SA's packets come from: each is taken once, and none is left out.
pub struct Sequence {
    /// The last number there is.
    last: u64,
    counter: Counter,
}

enum Counter {
    /// Of one lane.
    Own { taken: u64, low_told: bool },
    /// Of all lanes.
    Shared(Arc<Shared>),
}

/// Consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: u64,
    /// How many; 0 when none are left.
    pub count: usize,
}

impl Block {
    /// The next `wanted` numbers after `taken`, or those that are left up to `last`.
    fn take(taken: &mut u64, last: u64, wanted: usize) -> Self {
        let first = taken.wrapping_add(1);
        let count = last.saturating_sub(*taken).min(wanted as u64);
        *taken += count;
        Self {
            first,
            count: count as usize,
        }
    }

    /// Takes the first `count` numbers off and gives the first of them, if there are as many.
    pub fn split(&mut self, count: usize) -> Option<u64> {
        let first = self.first;
        self.count = self.count.checked_sub(count)?;
        self.first = first.wrapping_add(count as u64);
        Some(first)
    }

    /// The numbers.
    #[cfg(test)]
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count as u64).map(move |ahead| self.first + ahead)
    }
}

impl Sequence {
    /// Numbers from 1 to `last`, together with the other lanes that are given `shared`.
    pub fn new(last: u64, shared: Option<&Arc<Shared>>) -> Self {
        let counter = match shared {
            Some(shared) => Counter::Shared(Arc::clone(shared)),
            None => Counter::Own {
                taken: 0,
                low_told: false,
            },
        };
        Self { last, counter }
    }

    /// Takes the next `wanted` numbers, or those that are left. RFC 4303 section 3.3.3: "The sender
    /// MUST NOT send a packet on an SA if doing so would cause the sequence number to cycle."
    #[inline]
    pub fn take(&mut self, wanted: usize) -> Block {
        match &mut self.counter {
            Counter::Own { taken, .. } => Block::take(taken, self.last, wanted),
            Counter::Shared(shared) => Block::take(&mut shared.taken(), self.last, wanted),
        }
    }

    /// [`Self::take`], as one of several lanes with the turn to send what bears the numbers: turns have
    /// the order of the numbers.
    #[inline]
    pub fn take_in_turn(&mut self, wanted: usize) -> (Block, Option<Turn<'_, Burst>>) {
        match &mut self.counter {
            Counter::Own { taken, .. } => (Block::take(taken, self.last, wanted), None),
            Counter::Shared(shared) => {
                let mut taken = shared.taken();
                let block = Block::take(&mut taken, self.last, wanted);
                (block, (block.count > 0).then(|| shared.sending.take()))
            }
        }
    }

    /// How many numbers are left, when that is few and has not been told by any lane.
    #[inline]
    pub fn runs_low(&mut self) -> Option<u64> {
        let remaining = self.last.saturating_sub(self.taken());
        if remaining > self.last / LOW_FRACTION {
            return None;
        }
        let told = match &mut self.counter {
            Counter::Own { low_told, .. } => std::mem::replace(low_told, true),
            Counter::Shared(shared) => {
                shared.low_told.load(Ordering::Relaxed)
                    || shared.low_told.swap(true, Ordering::Relaxed)
            }
        };
        (!told).then_some(remaining)
    }

    fn taken(&self) -> u64 {
        match &self.counter {
            Counter::Own { taken, .. } => *taken,
            Counter::Shared(shared) => *shared.taken(),
        }
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, seq: u64) {
        match &mut self.counter {
            Counter::Own { taken, .. } => *taken = seq,
            Counter::Shared(shared) => *shared.taken() = seq,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The counter of one lane and that of several are the same to look at.
    fn both(last: u64) -> [Sequence; 2] {
        [
            Sequence::new(last, None),
            Sequence::new(last, Some(&Arc::default())),
        ]
    }

    #[test]
    fn the_space_ends_with_its_last_number() {
        for last in [u64::from(u32::MAX), u64::MAX] {
            for mut sequence in both(last) {
                sequence.skip_to(last - 3);
                assert_eq!(
                    sequence.take(2).numbers().collect::<Vec<_>>(),
                    [last - 2, last - 1]
                );
                assert_eq!(sequence.take(64).numbers().collect::<Vec<_>>(), [last]);
                assert_eq!(sequence.take(1).count, 0);
                assert_eq!(sequence.take(64).numbers().count(), 0);
                assert_eq!(sequence.runs_low(), Some(0));
                assert_eq!(sequence.runs_low(), None);
            }
        }
    }

    #[test]
    fn few_numbers_are_told_by_one_lane() {
        let shared = Arc::default();
        let mut lanes = [0; 3].map(|_| Sequence::new(1600, Some(&shared)));
        lanes[0].take(1499);
        assert!(lanes.iter_mut().all(|lane| lane.runs_low().is_none()));
        lanes[1].take(1);
        let told: Vec<u64> = lanes.iter_mut().filter_map(Sequence::runs_low).collect();
        assert_eq!(told, [100]);
    }

    #[test]
    fn lanes_take_every_number_once() {
        const LAST: u64 = 100_000;
        let shared = Arc::default();
        let mut taken: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=4)
                .map(|lane| {
                    let mut sequence = Sequence::new(LAST, Some(&shared));
                    scope.spawn(move || {
                        let mut taken = Vec::new();
                        for burst in 0.. {
                            let block = sequence.take(1 + (burst * lane) % 64);
                            taken.extend(block.numbers());
                            if block.count == 0 {
                                break;
                            }
                        }
                        taken
                    })
                })
                .collect();
            let all = threads.into_iter().map(|thread| thread.join().unwrap());
            all.flatten().collect()
        });
        taken.sort_unstable();
        assert!(taken.into_iter().eq(1..=LAST));
    }

    proptest! {
        #[test]
        fn numbers_follow_each_other(
            last in 1u64..500,
            wanted in prop::collection::vec(0usize..70, 1..30),
        ) {
            for mut sequence in both(last) {
                let mut taken = Vec::new();
                for wanted in &wanted {
                    let block = sequence.take(*wanted);
                    prop_assert!(block.count <= *wanted);
                    taken.extend(block.numbers());
                }
                let expected = (wanted.iter().sum::<usize>() as u64).min(last);
                prop_assert!(taken.into_iter().eq(1..=expected));
            }
        }
    }
}
