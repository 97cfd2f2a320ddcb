//! Poly1305 (RFC 8439 section 2.5) with a message in each lane: numbers below 2^130 in five limbs
//! of 26 bits, so that no powers of the key are needed and packets with keys of their own go
//! together.
#![allow(unsafe_code)]

use crate::backend::Features;
use crate::vector::{Avx2x64, Avx512x64, COLUMNS, Vector, Vector64};

/// Octets of a block.
pub(super) const BLOCK: usize = 16;

const LIMBS: usize = 5;
const LIMB: u64 = (1 << 26) - 1;

/// A number in each lane.
pub(super) type Numbers = [[u64; COLUMNS]; LIMBS];

/// Takes blocks behind the pointer of each lane into its sum, with its key: sum, keys, pointers,
/// number of blocks.
///
/// # Safety
/// The processor has what the function was chosen for, and that many blocks can be read behind
/// the pointer of each of its lanes.
type Function = unsafe fn(&mut Numbers, &Numbers, &[*const u8; COLUMNS], usize);

/// Poly1305 over several messages on a processor.
#[derive(Clone, Copy)]
pub(super) struct Poly1305 {
    lanes: usize,
    function: Function,
}

impl Poly1305 {
    /// `None` without vectors that are wide enough.
    pub(super) fn new(features: Features) -> Option<Self> {
        if features.avx512() {
            Some(Self {
                lanes: Avx512x64::LANES,
                function: blocks_avx512,
            })
        } else if features.avx2() {
            Some(Self {
                lanes: Avx2x64::LANES,
                function: blocks_avx2,
            })
        } else {
            None
        }
    }

    /// Messages to have in work at once.
    pub(super) fn lanes(self) -> usize {
        self.lanes
    }

    /// Takes `blocks` blocks of each message into its sum. With few messages they go one by one.
    pub(super) fn blocks(
        self,
        sums: &mut Numbers,
        keys: &Numbers,
        sources: &[Option<&[u8]>],
        blocks: usize,
    ) {
        let octets = blocks * BLOCK;
        let mut busy = sources
            .iter()
            .enumerate()
            .filter_map(|(column, source)| Some((column, source.as_ref()?.get(..octets)?)));
        // Two messages one by one cost about as much as all lanes.
        if busy.clone().count() <= self.lanes / 4 {
            for (column, source) in busy {
                let mut sum = Number::of(sums, column);
                sum.blocks(Number::of(keys, column), source);
                sum.put(sums, column);
            }
            return;
        }
        let Some((_, any)) = busy.next() else { return };
        // A lane without a message works on some other's, to no effect.
        let mut pointers = [any.as_ptr(); COLUMNS];
        for (column, source) in busy {
            pointers[column] = source.as_ptr();
        }
        assert!(sources.len() <= self.lanes, "a lane for each message");
        // SAFETY: `new` chose the function by what the processor has; every pointer is that of a
        // slice of `blocks` blocks.
        unsafe { (self.function)(sums, keys, &pointers, blocks) }
    }
}

/// A one-time key, of which the first half multiplies and the second is added at the end.
pub(super) type OneTimeKey = [u32; 8];

/// Four words as a number.
fn half(words: &[u32]) -> u128 {
    let words = words.iter().rev();
    words.fold(0, |number, word| number << 32 | u128::from(*word))
}

/// Begins a message in a lane. RFC 8439 section 2.5.1 clears some bits of what multiplies.
pub(super) fn begin(sums: &mut Numbers, keys: &mut Numbers, column: usize, key: &OneTimeKey) {
    let low = half(&key[..4]) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    Number { low, high: 0 }.put(keys, column);
    Number { low: 0, high: 0 }.put(sums, column);
}

/// The tag of a lane: its sum below 2^130 - 5, plus the second half of the key.
pub(super) fn tag(sums: &Numbers, column: usize, key: &OneTimeKey) -> [u8; BLOCK] {
    let tag = Number::of(sums, column).reduced();
    tag.wrapping_add(half(&key[4..])).to_le_bytes()
}

#[target_feature(enable = "avx2")]
unsafe fn blocks_avx2(
    sums: &mut Numbers,
    keys: &Numbers,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // SAFETY: the caller's promise is the same.
    unsafe { vector_blocks::<Avx2x64>(sums, keys, lanes, blocks) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn blocks_avx512(
    sums: &mut Numbers,
    keys: &Numbers,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // SAFETY: the caller's promise is the same.
    unsafe { vector_blocks::<Avx512x64>(sums, keys, lanes, blocks) }
}

/// # Safety
/// The processor has the instructions of `V`; so many blocks can be read behind the pointer of
/// each lane.
#[inline(always)]
unsafe fn vector_blocks<V: Vector64>(
    sums: &mut Numbers,
    keys: &Numbers,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // Loops, not closures: these would not be compiled for the instructions of `V`.
    //
    // SAFETY: rows have COLUMNS words; the caller vouches for the instructions and the messages.
    unsafe {
        let mut h = [V::splat(0); LIMBS];
        let mut r = h;
        let mut s = h;
        for i in 0..LIMBS {
            h[i] = V::load(sums[i].as_ptr());
            r[i] = V::load(keys[i].as_ptr());
            // 2^130 is 5: what goes beyond the fifth limb comes back times five.
            s[i] = r[i].add(r[i].shl::<2>());
        }
        let limb = V::splat(LIMB);
        let one = V::splat(1 << 24);
        for block in 0..blocks {
            let [low, high] = V::rows(lanes, BLOCK * block);
            h[0] = h[0].add(low.and(limb));
            h[1] = h[1].add(low.shr::<26>().and(limb));
            h[2] = h[2].add(low.shr::<52>().or(high.shl::<12>()).and(limb));
            h[3] = h[3].add(high.shr::<14>().and(limb));
            h[4] = h[4].add(high.shr::<40>().or(one));
            let mut d = [
                sum([
                    h[0].mul32(r[0]),
                    h[1].mul32(s[4]),
                    h[2].mul32(s[3]),
                    h[3].mul32(s[2]),
                    h[4].mul32(s[1]),
                ]),
                sum([
                    h[0].mul32(r[1]),
                    h[1].mul32(r[0]),
                    h[2].mul32(s[4]),
                    h[3].mul32(s[3]),
                    h[4].mul32(s[2]),
                ]),
                sum([
                    h[0].mul32(r[2]),
                    h[1].mul32(r[1]),
                    h[2].mul32(r[0]),
                    h[3].mul32(s[4]),
                    h[4].mul32(s[3]),
                ]),
                sum([
                    h[0].mul32(r[3]),
                    h[1].mul32(r[2]),
                    h[2].mul32(r[1]),
                    h[3].mul32(r[0]),
                    h[4].mul32(s[4]),
                ]),
                sum([
                    h[0].mul32(r[4]),
                    h[1].mul32(r[3]),
                    h[2].mul32(r[2]),
                    h[3].mul32(r[1]),
                    h[4].mul32(r[0]),
                ]),
            ];
            // Two carries at a time; afterwards no limb is much above 26 bits.
            carry(&mut d, 0, limb);
            carry(&mut d, 3, limb);
            carry(&mut d, 1, limb);
            carry(&mut d, 4, limb);
            carry(&mut d, 2, limb);
            carry(&mut d, 0, limb);
            carry(&mut d, 3, limb);
            h = d;
        }
        for (row, limb) in sums.iter_mut().zip(h) {
            limb.store(row.as_mut_ptr());
        }
    }
}

#[inline(always)]
fn sum<V: Vector64>([a, b, c, d, e]: [V; LIMBS]) -> V {
    // What needs the last limb comes last: that one is known last.
    a.add(b).add(c.add(d)).add(e)
}

/// Moves what is above 26 bits to the next limb; above the last, that is five times to the first.
#[inline(always)]
fn carry<V: Vector64>(limbs: &mut [V; LIMBS], from: usize, limb: V) {
    let over = limbs[from].shr::<26>();
    limbs[from] = limbs[from].and(limb);
    if from == LIMBS - 1 {
        limbs[0] = limbs[0].add(over.add(over.shl::<2>()));
    } else {
        limbs[from + 1] = limbs[from + 1].add(over);
    }
}

/// A number a little above 2^130 at most: the low 128 bits and what is above them.
#[derive(Clone, Copy)]
struct Number {
    low: u128,
    high: u64,
}

impl Number {
    fn of(numbers: &Numbers, column: usize) -> Self {
        let mut number = Self { low: 0, high: 0 };
        for (i, row) in numbers.iter().enumerate() {
            let limb = u128::from(row[column]);
            let (low, carry) = number.low.overflowing_add(limb << (26 * i));
            number.low = low;
            number.high += u64::from(carry);
            if i == LIMBS - 1 {
                number.high += (limb >> 24) as u64;
            }
        }
        number
    }

    fn put(self, numbers: &mut Numbers, column: usize) {
        for (i, row) in numbers.iter_mut().enumerate() {
            row[column] = (self.low >> (26 * i)) as u64 & LIMB;
        }
        // The fifth limb begins at bit 104 and has room for what is above 26 bits.
        numbers[4][column] = (self.low >> 104) as u64 | self.high << 24;
    }

    /// Takes whole blocks into the sum, with a key below 2^128.
    fn blocks(&mut self, key: Self, blocks: &[u8]) {
        let wide = |a: u64, b: u64| u128::from(a).wrapping_mul(b.into());
        let (r0, r1) = (key.low as u64, (key.low >> 64) as u64);
        // 2^128 r1 is 2^130 (r1 / 4), as the low two bits of r1 are clear, and 2^130 is 5.
        let s1 = r1 + (r1 >> 2);
        for block in blocks.as_chunks::<BLOCK>().0 {
            let (low, carry) = self.low.overflowing_add(u128::from_le_bytes(*block));
            let (h0, h1) = (low as u64, (low >> 64) as u64);
            let h2 = self.high.wrapping_add(1 + u64::from(carry));
            let d0 = wide(h0, r0).wrapping_add(wide(h1, s1));
            let d1 = wide(h0, r1).wrapping_add(wide(h1, r0));
            let d1 = d1.wrapping_add(wide(h2, s1)).wrapping_add(d0 >> 64);
            let d2 = h2.wrapping_mul(r0).wrapping_add((d1 >> 64) as u64);
            // Bits from 130 on count five times.
            let over = (d2 >> 2).wrapping_add(d2 & !3);
            let (low, carry) = (u128::from(d0 as u64) | d1 << 64).overflowing_add(over.into());
            self.low = low;
            self.high = (d2 & 3).wrapping_add(carry.into());
        }
    }

    /// The low 128 bits of the number below 2^130 - 5.
    fn reduced(self) -> u128 {
        // To little more than 2^130 first, then minus 2^130 - 5 if that does not go below zero.
        let over = (self.high >> 2) * 5;
        let (low, carry) = self.low.overflowing_add(over.into());
        let high = (self.high & 3) + u64::from(carry);
        let (less, carry) = low.overflowing_add(5);
        let reaches = (high + u64::from(carry)) >> 2;
        let mask = 0u128.wrapping_sub(reaches.into());
        (less & mask) | (low & !mask)
    }
}
