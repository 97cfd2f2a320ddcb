//! AVX2 with VAES and VPCLMULQDQ.

use std::arch::x86_64::*;

use super::w128::{self, COUNTER, REVERSE};
use super::{Vector, proven, ramp};

/// Proof that the processor has the instructions.
#[derive(Clone, Copy)]
pub(super) struct W256(());

impl W256 {
    /// # Safety
    /// The processor must have AVX2, AES-NI, PCLMULQDQ, VAES and VPCLMULQDQ.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Vector for W256 {
    type V = __m256i;
    const BLOCKS: usize = 2;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: __m256i) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn load_part(self, from: *const u8, len: usize) -> __m256i {
        // SAFETY: the caller's promise; a second half starts only behind a whole first one.
        unsafe {
            let low = w128::load_part(from, len.min(16));
            let high = w128::load_part(from.wrapping_add(16), len.saturating_sub(16));
            _mm256_set_m128i(high, low)
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut u8, value: __m256i, len: usize) {
        // SAFETY: the caller's promise; a second half starts only behind a whole first one.
        unsafe {
            w128::store_part(to, _mm256_castsi256_si128(value), len.min(16));
            let high = _mm256_extracti128_si256::<1>(value);
            w128::store_part(to.wrapping_add(16), high, len.saturating_sub(16));
        }
    }

    #[inline(always)]
    fn keep(self, value: __m256i, len: usize) -> __m256i {
        // SAFETY: the ramp has a register at each of its lengths.
        let kept = unsafe { self.load(ramp(len)) };
        proven!(_mm256_and_si256(value, kept))
    }

    #[inline(always)]
    fn every(self, [low, high]: [u64; 2]) -> __m256i {
        let (low, high) = (low as i64, high as i64);
        proven!(_mm256_set_epi64x(high, low, high, low))
    }

    #[inline(always)]
    fn single(self, [low, high]: [u64; 2]) -> __m256i {
        proven!(_mm256_zextsi128_si256(_mm_set_epi64x(
            high as i64,
            low as i64
        )))
    }

    #[inline(always)]
    fn two(self, first: [u64; 2], second: [u64; 2]) -> __m256i {
        proven!(_mm256_set_epi64x(
            second[1] as i64,
            second[0] as i64,
            first[1] as i64,
            first[0] as i64
        ))
    }

    #[inline(always)]
    unsafe fn load_two(self, first: *const u8, second: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_set_m128i(
                _mm_loadu_si128(second.cast()),
                _mm_loadu_si128(first.cast()),
            )
        }
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn xor3(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        self.xor(self.xor(a, b), c)
    }

    #[inline(always)]
    fn add32(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn steps(self) -> __m256i {
        proven!(_mm256_set_epi64x(1 << 32, 0, 0, 0))
    }

    #[inline(always)]
    fn big_endian_counters(self, value: __m256i) -> __m256i {
        proven!(_mm256_shuffle_epi8(value, self.every(COUNTER)))
    }

    #[inline(always)]
    fn reverse(self, value: __m256i) -> __m256i {
        proven!(_mm256_shuffle_epi8(value, self.every(REVERSE)))
    }

    #[inline(always)]
    fn swap(self, value: __m256i) -> __m256i {
        proven!(_mm256_shuffle_epi32::<0x4e>(value))
    }

    #[inline(always)]
    fn round(self, state: __m256i, key: __m256i) -> __m256i {
        proven!(_mm256_aesenc_epi128(state, key))
    }

    #[inline(always)]
    fn last_round(self, state: __m256i, key: __m256i) -> __m256i {
        proven!(_mm256_aesenclast_epi128(state, key))
    }

    #[inline(always)]
    fn mul_low(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_clmulepi64_epi128::<0x00>(a, b))
    }

    #[inline(always)]
    fn mul_high(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_clmulepi64_epi128::<0x11>(a, b))
    }

    #[inline(always)]
    fn fold(self, value: __m256i) -> [u64; 2] {
        proven!(w128::halves(_mm_xor_si128(
            _mm256_castsi256_si128(value),
            _mm256_extracti128_si256::<1>(value)
        )))
    }
}
