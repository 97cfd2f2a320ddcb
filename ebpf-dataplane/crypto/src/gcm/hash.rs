//! GHASH as a sum of products that is reduced once per segment.

use super::vector::Vector;

/// Products summed up: Karatsuba's three parts of every 256-bit product.
#[derive(Clone, Copy)]
pub(super) struct Hash<S: Vector> {
    low: S::V,
    high: S::V,
    middle: S::V,
}

impl<S: Vector> Hash<S> {
    /// No products yet.
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        let zero = s.every([0, 0]);
        Self {
            low: zero,
            high: zero,
            middle: zero,
        }
    }

    /// Adds the products of `blocks` (octets reversed) and `powers`, whose halves `middles` has
    /// added together.
    #[inline(always)]
    pub(super) fn add_by(&mut self, s: S, blocks: S::V, powers: S::V, middles: S::V) {
        let both = s.xor(blocks, s.swap(blocks));
        self.low = s.xor(self.low, s.mul_low(blocks, powers));
        self.high = s.xor(self.high, s.mul_high(blocks, powers));
        self.middle = s.xor(self.middle, s.mul_low(both, middles));
    }

    /// The sum of all blocks' products modulo the field's polynomial, divided by x^128
    /// (Montgomery's way, which RFC 8452 calls `dot`).
    #[inline(always)]
    pub(super) fn reduce(self, s: S, reducer: &Reducer<S>) -> [u64; 2] {
        let middle = s.xor3(self.middle, self.low, self.high);
        let fold = s.mul_low(self.low, reducer.0);
        let low = s.xor3(s.swap(self.low), fold, middle);
        let fold = s.mul_low(low, reducer.0);
        s.fold(s.xor3(self.high, s.swap(low), fold))
    }
}

/// x^127 + x^126 + x^121, shifted down by a half: the polynomial without its ends.
pub(super) struct Reducer<S: Vector>(S::V);

impl<S: Vector> Reducer<S> {
    /// In every block.
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        Self(s.every([0xc2 << 56, 0xc2 << 56]))
    }
}
