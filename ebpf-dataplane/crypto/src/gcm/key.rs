//! What is kept of a key: AES round keys and powers of the hash key, laid out for the kernels.
#![allow(unsafe_code)]

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::hash::{Hash, Reducer};
use super::vector::Vector;

/// Blocks hashed before the sum is reduced. A longer segment would save reductions in large packets, and cost
/// every SA its powers in memory and, where there are many, in cache.
pub(super) const SEGMENT: usize = 64;

/// The highest power of the hash key in use: a segment, a length block and a carry before them.
pub(super) const TOP: usize = SEGMENT + 2;

/// Blocks of 0 behind the lowest power, read along with it by a full register.
const BEYOND: usize = 3;

/// Keys of one direction of an SA.
#[repr(C, align(64))]
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Schedule {
    /// AES round keys, each four times.
    rounds: [[u8; 64]; 15],
    /// Powers of the hash key, the highest first, as multipliers for octet-reversed blocks.
    powers: [[u8; 16]; TOP + BEYOND],
    /// Both halves of each power added together, in the low half.
    middles: [[u8; 16]; TOP + BEYOND],
}

impl Schedule {
    /// Derives everything from an AES key of `ROUNDS * 4 - 24` octets (shorter input counts as
    /// continued with zeros).
    #[inline(always)]
    pub(super) fn new<S: Vector, const ROUNDS: usize>(s: S, key: &[u8]) -> Box<Self> {
        let mut schedule = Box::new(Self {
            rounds: [[0; 64]; 15],
            powers: [[0; 16]; TOP + BEYOND],
            middles: [[0; 16]; TOP + BEYOND],
        });
        schedule.expand(s, key, ROUNDS);
        let hash_key = schedule.encrypt_zeros::<S, ROUNDS>(s);
        schedule.raise(s, hash_key);
        schedule
    }

    /// FIPS 197 section 5.2.
    #[inline(always)]
    fn expand<S: Vector>(&mut self, s: S, key: &[u8], rounds: usize) {
        let words = rounds - 6;
        let mut window = [0u32; 60];
        for (word, octets) in window.iter_mut().zip(key.as_chunks::<4>().0).take(words) {
            *word = u32::from_le_bytes(*octets);
        }
        let mut rcon = 1u32;
        for at in words..4 * (rounds + 1) {
            let mut word = window[at - 1];
            if at % words == 0 {
                word = sub_word(s, word).rotate_right(8) ^ rcon;
                rcon = (rcon << 1) ^ ((rcon >> 7) * 0x11b);
            } else if words > 6 && at % words == 4 {
                word = sub_word(s, word);
            }
            window[at] = window[at - words] ^ word;
        }
        for (round, words) in self.rounds.iter_mut().zip(window.as_chunks::<4>().0) {
            for (place, word) in round.chunks_exact_mut(4).zip(words.iter().cycle()) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
        window.zeroize();
    }

    #[inline(always)]
    fn encrypt_zeros<S: Vector, const ROUNDS: usize>(&self, s: S) -> [u64; 2] {
        let mut state = self.round_key(s, 0);
        for round in 1..ROUNDS {
            state = s.round(state, self.round_key(s, round));
        }
        s.fold(s.keep(s.last_round(state, self.round_key(s, ROUNDS)), 16))
    }

    /// Fills in the powers. GHASH (SP 800-38D section 6.3) counts bits from the other end of each
    /// octet; on octet-reversed blocks it is the multiplication of POLYVAL (RFC 8452 appendix A)
    /// by the octet-reversed hash key times x.
    #[inline(always)]
    fn raise<S: Vector>(&mut self, s: S, [low, high]: [u64; 2]) {
        let hash_key = u128::from(low.swap_bytes()) << 64 | u128::from(high.swap_bytes());
        let overflow = (hash_key >> 127).wrapping_neg();
        let base = (hash_key << 1) ^ (overflow & (0xc2 << 120 | 1));
        let base = [base as u64, (base >> 64) as u64];
        let reducer = Reducer::new(s);
        let mut power = base;
        for at in (0..TOP).rev() {
            let middle = [power[0] ^ power[1], 0];
            for (place, halves) in [
                (&mut self.powers[at], power),
                (&mut self.middles[at], middle),
            ] {
                place[..8].copy_from_slice(&halves[0].to_le_bytes());
                place[8..].copy_from_slice(&halves[1].to_le_bytes());
            }
            let mut hash = Hash::new(s);
            hash.add_by(s, s.single(base), s.single(power), s.single(middle));
            power = hash.reduce(s, &reducer);
        }
    }

    /// A round key in every block; `round` is at most 14.
    #[inline(always)]
    pub(super) fn round_key<S: Vector>(&self, s: S, round: usize) -> S::V {
        debug_assert!(round < 15);
        // SAFETY: a register has at most 64 octets, and there are 15 round keys of that size.
        unsafe { s.load(self.rounds.as_ptr().add(round).cast()) }
    }

    /// Where the powers start from `exponent` downwards, and their middles; `exponent` is 1 to
    /// [`TOP`]. A register can be read at any of them.
    #[inline(always)]
    pub(super) fn power(&self, exponent: usize) -> Powers {
        debug_assert!((1..=TOP).contains(&exponent));
        let at = TOP - exponent;
        Powers {
            power: self.powers.as_ptr().wrapping_add(at).cast(),
            middle: self.middles.as_ptr().wrapping_add(at).cast(),
        }
    }
}

/// A place among the powers of a [`Schedule`].
#[derive(Clone, Copy)]
pub(super) struct Powers {
    pub(super) power: *const u8,
    pub(super) middle: *const u8,
}

impl Powers {
    /// `blocks` powers further down.
    #[inline(always)]
    pub(super) fn down(self, blocks: usize) -> Self {
        Self {
            power: self.power.wrapping_add(16 * blocks),
            middle: self.middle.wrapping_add(16 * blocks),
        }
    }
}

/// The AES S-box on four octets, by an AES round: with equal columns ShiftRows changes nothing.
#[inline(always)]
fn sub_word<S: Vector>(s: S, word: u32) -> u32 {
    let double = u64::from(word) << 32 | u64::from(word);
    let zero = s.every([0, 0]);
    s.fold(s.keep(s.last_round(s.every([double, double]), zero), 16))[0] as u32
}
