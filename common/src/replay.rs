//! The anti-replay window of an inbound SA (RFC 4303 section 3.4.3), with extended sequence
//! numbers (appendix A2). Checking and committing are separate steps, as authentication lies
//! between them. The bitmap is a ring of words that is never shifted.

/// Sequence numbers assumed to lie in the past of the newest one when replay protection is off and
/// high bits must still be derived: the nearest number wins.
const UNPROTECTED_SPAN: u64 = 1 << 31;

/// Words the bitmap of a window of `size` packets needs: a power of two, with one word to spare as
/// words are cleared whole.
pub const fn words_for(size: u32) -> usize {
    (size as usize)
        .div_ceil(64)
        .saturating_add(1)
        .next_power_of_two()
}

/// A sequence number that was seen before or lies left of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed;

/// Sliding window over the sequence numbers of one SA. `B` holds the bitmap: a boxed slice in the
/// engine, a borrowed one elsewhere.
#[derive(Clone, Debug)]
pub struct ReplayWindow<B> {
    /// Bit `seq % 64` of word `seq / 64 % words` says whether `seq` was seen.
    words: B,
    /// Highest sequence number authenticated, 0 before the first.
    top: u64,
    /// Width in packets, 0 when replay protection is off.
    size: u32,
    esn: bool,
}

impl<B: AsRef<[u64]> + AsMut<[u64]>> ReplayWindow<B> {
    /// A window over `words` (cleared here), as wide as `size` packets; 0 switches protection off.
    /// `None` unless `words` has exactly [`words_for`]`(size)` words.
    pub fn new(mut words: B, size: u32, esn: bool) -> Option<Self> {
        if words.as_ref().len() != words_for(size) {
            return None;
        }
        words.as_mut().fill(0);
        Some(Self {
            words,
            top: 0,
            size,
            esn,
        })
    }

    /// Highest sequence number authenticated so far, 0 before the first.
    pub fn top(&self) -> u64 {
        self.top
    }

    /// First step, before authentication: the full sequence number of a packet whose header
    /// carries `low`, unless it is certainly a replay. Changes nothing.
    pub fn check(&self, low: u32) -> Result<u64, Replayed> {
        let seq = if self.esn {
            derive(self.top, self.size, low)?
        } else {
            u64::from(low)
        };
        self.fresh(seq)?;
        Ok(seq)
    }

    /// Last step, after authentication: records `seq`, which [`ReplayWindow::check`] gave.
    /// Fails if it was recorded since (twice in one burst); on success says whether `seq` is the
    /// newest so far.
    pub fn commit(&mut self, seq: u64) -> Result<bool, Replayed> {
        self.fresh(seq)?;
        let newest = seq > self.top;
        if newest {
            let words = self.words.as_mut();
            let count = words.len() as u64;
            // Every word between the old and the new top enters the window anew.
            let steps = ((seq >> 6) - (self.top >> 6)).min(count);
            for step in 0..steps {
                if let Some(word) = words.get_mut((((seq >> 6) - step) % count) as usize) {
                    *word = 0;
                }
            }
            self.top = seq;
        }
        if self.size != 0 {
            let index = self.index(seq);
            if let Some(word) = self.words.as_mut().get_mut(index) {
                *word |= 1 << (seq & 63);
            }
        }
        Ok(newest)
    }

    fn index(&self, seq: u64) -> usize {
        // The word count is a power of two (`words_for`).
        (seq >> 6) as usize & (self.words.as_ref().len() - 1)
    }

    fn fresh(&self, seq: u64) -> Result<(), Replayed> {
        // RFC 4303 section 3.3.3: "the first packet sent using a given SA will contain a sequence
        // number of 1".
        if seq == 0 {
            return Err(Replayed);
        }
        if self.size == 0 || seq > self.top {
            return Ok(());
        }
        if self.top - seq >= u64::from(self.size) {
            return Err(Replayed);
        }
        let word = self
            .words
            .as_ref()
            .get(self.index(seq))
            .copied()
            .unwrap_or(u64::MAX);
        if word >> (seq & 63) & 1 == 1 {
            Err(Replayed)
        } else {
            Ok(())
        }
    }
}

/// RFC 4303 appendix A2.2: the full number of a packet whose header carries `low`: the high half is
/// the one that puts it inside or to the right of the window of `size` packets (0: no window) that
/// ends at `top`.
#[inline(always)]
pub(crate) fn derive(top: u64, size: u32, low: u32) -> Result<u64, Replayed> {
    let span = if size == 0 {
        UNPROTECTED_SPAN
    } else {
        size as u64
    };
    let (top_high, top_low) = (top >> 32, top & 0xffff_ffff);
    let low = low as u64;
    let high = if top_low >= span - 1 {
        // Case A: the window lies within one subspace of 2^32 numbers.
        if low >= top_low - (span - 1) {
            top_high
        } else if top_high < u32::MAX as u64 {
            top_high + 1
        } else {
            return Err(Replayed);
        }
    } else if low >= (1 << 32) + top_low - (span - 1) {
        // Case B: the window reaches back into the previous subspace, and so does `low`.
        if top_high == 0 {
            return Err(Replayed);
        }
        top_high - 1
    } else {
        top_high
    };
    Ok(high << 32 | low)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn window(size: u32, esn: bool) -> ReplayWindow<Vec<u64>> {
        ReplayWindow::new(std::vec![1; words_for(size)], size, esn).unwrap()
    }

    /// What the window must do, told plainly.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
        top: u64,
    }

    impl Model {
        fn accept(&mut self, seq: u64, size: u64) -> bool {
            let left = self.top.saturating_sub(size - 1).max(1);
            if seq < left || !self.seen.insert(seq) {
                return false;
            }
            self.top = self.top.max(seq);
            true
        }
    }

    fn step(window: &mut ReplayWindow<Vec<u64>>, seq: u64) -> bool {
        match window.check(seq as u32) {
            Ok(derived) if derived == seq => window.commit(derived).is_ok(),
            // A number the receiver takes for another one fails authentication: the AAD differs.
            Ok(_) | Err(Replayed) => false,
        }
    }

    #[test]
    fn refuses_a_bitmap_of_the_wrong_size() {
        assert!(ReplayWindow::new(std::vec![0; 3], 64, false).is_none());
        assert!(ReplayWindow::new([0; 2], 64, false).is_some());
        assert_eq!(words_for(4096), 128);
    }

    #[test]
    fn check_changes_nothing_and_commit_catches_a_duplicate_in_the_burst() {
        let mut window = window(64, false);
        assert_eq!(window.check(5), Ok(5));
        assert_eq!(window.check(5), Ok(5));
        assert_eq!(window.top(), 0);
        assert_eq!(window.commit(5), Ok(true));
        assert_eq!(window.commit(5), Err(Replayed));
        assert_eq!(window.commit(4), Ok(false));
        assert_eq!(window.check(4), Err(Replayed));
        assert_eq!(window.check(0), Err(Replayed));
    }

    #[test]
    fn without_protection_everything_passes_and_high_bits_are_still_derived() {
        let mut plain = window(0, false);
        assert_eq!(plain.commit(9), Ok(true));
        assert_eq!(plain.check(9), Ok(9));
        let mut extended = window(0, true);
        extended.top = (7 << 32) + 5;
        assert_eq!(extended.check(0xffff_fff0), Ok((6 << 32) + 0xffff_fff0));
        assert_eq!(extended.check(100), Ok((7 << 32) + 100));
        assert_eq!(extended.commit((6 << 32) + 0xffff_fff0), Ok(false));
        assert_eq!(extended.top(), (7 << 32) + 5);
    }

    #[test]
    fn esn_crosses_the_wrap_and_accepts_stragglers() {
        let mut window = window(128, true);
        let wrap = 1u64 << 32;
        for seq in wrap - 200..wrap + 50 {
            if seq == wrap - 3 {
                continue;
            }
            // The jump from 0 to just before the wrap is within the first subspace only if it is
            // made in steps the receiver can place.
            if window.top() == 0 {
                window.top = seq - 1;
            }
            assert!(step(&mut window, seq), "{seq:#x}");
        }
        assert!(step(&mut window, wrap - 3));
        assert!(!step(&mut window, wrap - 3));
        assert!(!step(&mut window, wrap + 10));
        // Zero low bits are a valid number in every subspace but the first.
        assert!(!step(&mut window, wrap));
    }

    #[test]
    fn esn_never_underflows_or_overflows_the_high_half() {
        let mut window = window(64, true);
        assert_eq!(window.check(u32::MAX), Err(Replayed));
        window.top = u64::MAX - 10;
        assert_eq!(window.check(3), Err(Replayed));
        assert_eq!(window.check(u32::MAX), Ok(u64::MAX));
        assert_eq!(window.commit(u64::MAX), Ok(true));
        assert_eq!(window.check(u32::MAX), Err(Replayed));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(
            size in prop_oneof![Just(1u32), Just(32), Just(64), Just(65), Just(4096), 1u32..3000],
            esn in any::<bool>(),
            start in prop_oneof![Just(0u64), Just((1 << 32) - 300), Just((5 << 32) - 5000), (1u64..9).prop_map(|high| high << 32)],
            steps in prop::collection::vec((any::<bool>(), 0u64..6000), 1..400),
        ) {
            let start = if esn { start } else { start.min((1 << 32) - 300_000) };
            let mut window = window(size, esn);
            let mut model = Model::default();
            if start > 0 {
                window.top = start;
                model.top = start;
            }
            for (forward, distance) in steps {
                let distance = if distance % 3 == 0 { distance % 5 } else { distance };
                let seq = if forward { model.top + distance % 700 } else { model.top.saturating_sub(distance) };
                prop_assert_eq!(step(&mut window, seq), model.accept(seq, u64::from(size)), "seq {:#x} top {:#x} size {}", seq, model.top, size);
                prop_assert_eq!(window.top(), model.top);
            }
        }
    }
}
