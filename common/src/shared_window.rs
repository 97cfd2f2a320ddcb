//! The anti-replay window (RFC 4303 section 3.4.3) in memory that several processors work on at
//! once without a lock: eBPF programs that serve one SA from several receive queues.
//!
//! Sequence numbers are grouped in blocks of 32. A word holds the number of one block (its low 32
//! bits) and a bit for each of its packets, so a word says by itself which block it belongs to:
//! moving the window clears nothing, and recording a packet is one compare-and-swap. A number
//! is recorded at most once whatever the processors do, since the bit is set by the very
//! exchange that found it clear in a word of its own block. Only how precisely the left edge is
//! drawn depends on who sees the newest number first.

use crate::replay::{Replayed, derive};

/// Blocks the words stand for at any time. A power of two.
pub const BLOCKS: usize = 256;

/// Words of memory a window takes: the newest number, then the blocks. All zero at first.
pub const WORDS: usize = 1 + BLOCKS;

/// Widest window in packets: one block of the ring is always being entered.
pub const MAX_SIZE: u32 = (BLOCKS as u32 - 1) * 32;

/// [`WORDS`] words that are read and exchanged atomically.
pub trait SharedWords {
    /// The word at `index`, which is below [`WORDS`].
    fn load(&self, index: usize) -> u64;

    /// Replaces the word if it is `current`; true if it was.
    fn exchange(&self, index: usize, current: u64, new: u64) -> bool;
}

/// A view of shared words as the window of one SA.
#[derive(Clone, Copy)]
pub struct SharedWindow<W> {
    words: W,
    size: u32,
    esn: bool,
}

impl<W: SharedWords> SharedWindow<W> {
    /// The window in `words`, as wide as `size` packets (at most [`MAX_SIZE`]); 0 switches replay
    /// protection off.
    #[inline(always)]
    pub const fn new(words: W, size: u32, esn: bool) -> Self {
        Self { words, size, esn }
    }

    /// First step, before authentication: the full sequence number of a packet whose header
    /// carries `low`, unless it is certainly a replay. Changes nothing.
    #[inline(always)]
    pub fn check(&self, low: u32) -> Result<u64, Replayed> {
        let top = self.words.load(0);
        let seq = if self.esn {
            derive(top, self.size, low)?
        } else {
            low as u64
        };
        // RFC 4303 section 3.3.3: "the first packet sent using a given SA will contain a sequence
        // number of 1".
        if seq == 0 {
            return Err(Replayed);
        }
        if self.size != 0 {
            self.recorded(seq, top)?;
        }
        Ok(seq)
    }

    /// Last step, after authentication: records `seq`, which [`SharedWindow::check`] gave. Fails
    /// if it was recorded since; on success says whether `seq` is the newest so far.
    pub fn commit(&self, seq: u64) -> Result<bool, Replayed> {
        loop {
            if let Some(recorded) = self.try_record(seq) {
                recorded?;
                break;
            }
        }
        loop {
            if let Some(newest) = self.try_advance(seq) {
                return Ok(newest);
            }
        }
    }

    /// First half of [`SharedWindow::commit`], for code that may not loop freely: `None` when another
    /// processor recorded a packet of the same block in between.
    #[inline(always)]
    pub fn try_record(&self, seq: u64) -> Option<Result<(), Replayed>> {
        if self.size == 0 {
            return Some(Ok(()));
        }
        let Ok(current) = self.recorded(seq, self.words.load(0)) else {
            return Some(Err(Replayed));
        };
        let block = (seq >> 5) as u32;
        let bits = if (current >> 32) as u32 == block {
            current as u32
        } else {
            0
        };
        let new = (block as u64) << 32 | (bits | 1 << (seq & 31)) as u64;
        let done = self.words.exchange(place(seq), current, new);
        done.then_some(Ok(()))
    }

    /// Second half: whether `seq` is the newest, and `None` when another processor moved the newest
    /// number on in between.
    #[inline(always)]
    pub fn try_advance(&self, seq: u64) -> Option<bool> {
        let top = self.words.load(0);
        if seq <= top {
            return Some(false);
        }
        self.words.exchange(0, top, seq).then_some(true)
    }

    /// The word that `seq` has its bit in or will take over, if it was not recorded there.
    #[inline(always)]
    fn recorded(&self, seq: u64, top: u64) -> Result<u64, Replayed> {
        if top.saturating_sub(seq) >= self.size as u64 {
            return Err(Replayed);
        }
        let word = self.words.load(place(seq));
        // Block numbers wrap after 2^37 packets; words in use are never so far apart.
        let ahead = ((seq >> 5) as u32).wrapping_sub((word >> 32) as u32) as i32;
        let seen = ahead == 0 && word >> (seq & 31) & 1 == 1;
        if ahead < 0 || seen {
            return Err(Replayed);
        }
        Ok(word)
    }
}

/// Where the word of a sequence number is.
#[inline(always)]
const fn place(seq: u64) -> usize {
    1 + ((seq >> 5) as usize & (BLOCKS - 1))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::replay::{ReplayWindow, words_for};

    struct Atomics(Vec<AtomicU64>);

    impl Atomics {
        fn new() -> Self {
            Self((0..WORDS).map(|_| AtomicU64::new(0)).collect())
        }
    }

    impl SharedWords for &Atomics {
        fn load(&self, index: usize) -> u64 {
            self.0[index].load(Ordering::Acquire)
        }

        fn exchange(&self, index: usize, current: u64, new: u64) -> bool {
            self.0[index]
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        }
    }

    #[test]
    fn without_protection_everything_passes() {
        let words = Atomics::new();
        let window = SharedWindow::new(&words, 0, false);
        assert_eq!(window.commit(9), Ok(true));
        assert_eq!(window.check(9), Ok(9));
        assert_eq!(window.commit(9), Ok(false));
        assert_eq!(window.check(0), Err(Replayed));
    }

    #[test]
    fn four_threads_record_each_number_once() {
        const NUMBERS: u64 = 40_000;
        let words = Atomics::new();
        let recorded: Vec<AtomicU64> = (0..=NUMBERS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (words, recorded) = (&words, &recorded);
                scope.spawn(move || {
                    let window = SharedWindow::new(words, 4096, false);
                    for step in 1..=NUMBERS {
                        // All threads see every number, each with its own order of neighbours.
                        let seq = ((step - 1) ^ (thread * 5)).min(NUMBERS - 1) + 1;
                        if window.check(seq as u32).is_ok() && window.commit(seq).is_ok() {
                            recorded[seq as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(
            recorded
                .iter()
                .all(|count| count.load(Ordering::Relaxed) <= 1)
        );
        let total: u64 = recorded
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum();
        // Threads run apart by more than the window now and then; most numbers must arrive.
        assert!(total > NUMBERS / 2, "{total}");
        assert_eq!(words.0[0].load(Ordering::Relaxed), NUMBERS);
    }

    proptest! {
        /// On one processor it is the plain window.
        #[test]
        fn agrees_with_the_plain_window(
            size in prop_oneof![Just(1u32), Just(32), Just(64), Just(65), Just(4096), 1u32..MAX_SIZE],
            esn in any::<bool>(),
            start in prop_oneof![Just(1u64), Just((1 << 32) - 300), (1u64..9).prop_map(|high| high << 32)],
            steps in prop::collection::vec((any::<bool>(), 0u64..9000), 1..400),
        ) {
            let start = if esn { start } else { start.min((1 << 32) - 3_000_000) };
            let words = Atomics::new();
            let shared = SharedWindow::new(&words, size, esn);
            let mut plain = ReplayWindow::new(std::vec![0; words_for(size)], size, esn).unwrap();
            prop_assert_eq!(shared.commit(start), plain.commit(start));
            for (forward, distance) in steps {
                let top = plain.top();
                let seq = if forward { top + distance % 700 } else { top.saturating_sub(distance) };
                let checked = shared.check(seq as u32);
                prop_assert_eq!(checked, plain.check(seq as u32));
                // A number the receiver takes for another one fails authentication.
                if checked == Ok(seq) {
                    prop_assert_eq!(shared.commit(seq), plain.commit(seq));
                }
            }
        }
    }
}
