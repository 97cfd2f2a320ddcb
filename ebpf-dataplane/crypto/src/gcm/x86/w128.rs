//! SSE4.1 with AES-NI and PCLMULQDQ.

use std::arch::x86_64::*;

use super::{Vector, proven, ramp};

/// Proof that the processor has the instructions.
#[derive(Clone, Copy)]
pub(super) struct W128(());

impl W128 {
    /// # Safety
    /// The processor must have SSE4.1, SSSE3, AES-NI and PCLMULQDQ.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// Reads `len` octets, 0 to 16, and makes the others 0.
///
/// # Safety
/// SSE2; and, unless `len` is 0, that many octets and [`super::super::vector::SLACK`] more must be readable.
#[inline(always)]
pub(super) unsafe fn load_part(from: *const u8, len: usize) -> __m128i {
    // SAFETY: reads 8 octets for up to 8, 16 for more: never more than 7 behind.
    unsafe {
        let octets = match len {
            0 => _mm_setzero_si128(),
            1..=8 => _mm_loadl_epi64(from.cast()),
            _ => _mm_loadu_si128(from.cast()),
        };
        _mm_and_si128(octets, _mm_loadu_si128(ramp(len).cast()))
    }
}

/// Writes `len` octets, 0 to 16.
///
/// # Safety
/// SSE2; and, unless `len` is 0, that many octets and [`super::super::vector::SLACK`] more must be writable.
#[inline(always)]
pub(super) unsafe fn store_part(to: *mut u8, value: __m128i, len: usize) {
    // SAFETY: writes 8 octets for up to 8, 16 for more: never more than 7 behind.
    unsafe {
        match len {
            0 => {}
            1..=8 => _mm_storel_epi64(to.cast(), value),
            _ => _mm_storeu_si128(to.cast(), value),
        }
    }
}

/// Both halves of a block.
///
/// # Safety
/// SSE4.1.
#[inline(always)]
pub(super) unsafe fn halves(value: __m128i) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm_cvtsi128_si64(value) as u64,
            _mm_extract_epi64::<1>(value) as u64,
        ]
    }
}

/// The octets of a block reversed, as shuffle indices.
pub(super) const REVERSE: [u64; 2] = [0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607];

/// The octets of the last 32-bit word reversed, as shuffle indices.
pub(super) const COUNTER: [u64; 2] = [0x0706_0504_0302_0100, 0x0c0d_0e0f_0b0a_0908];

impl Vector for W128 {
    type V = __m128i;
    const BLOCKS: usize = 1;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: __m128i) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn load_part(self, from: *const u8, len: usize) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe { load_part(from, len) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut u8, value: __m128i, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { store_part(to, value, len) }
    }

    #[inline(always)]
    fn keep(self, value: __m128i, len: usize) -> __m128i {
        // SAFETY: the ramp has a register at each of its lengths.
        let kept = unsafe { self.load(ramp(len)) };
        proven!(_mm_and_si128(value, kept))
    }

    #[inline(always)]
    fn every(self, [low, high]: [u64; 2]) -> __m128i {
        proven!(_mm_set_epi64x(high as i64, low as i64))
    }

    #[inline(always)]
    fn single(self, halves: [u64; 2]) -> __m128i {
        self.every(halves)
    }

    #[inline(always)]
    fn two(self, first: [u64; 2], _: [u64; 2]) -> __m128i {
        self.every(first)
    }

    #[inline(always)]
    unsafe fn load_two(self, first: *const u8, _: *const u8) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe { self.load(first) }
    }

    #[inline(always)]
    fn xor(self, a: __m128i, b: __m128i) -> __m128i {
        proven!(_mm_xor_si128(a, b))
    }

    #[inline(always)]
    fn xor3(self, a: __m128i, b: __m128i, c: __m128i) -> __m128i {
        self.xor(self.xor(a, b), c)
    }

    #[inline(always)]
    fn add32(self, a: __m128i, b: __m128i) -> __m128i {
        proven!(_mm_add_epi32(a, b))
    }

    #[inline(always)]
    fn steps(self) -> __m128i {
        self.every([0, 0])
    }

    #[inline(always)]
    fn big_endian_counters(self, value: __m128i) -> __m128i {
        proven!(_mm_shuffle_epi8(value, self.every(COUNTER)))
    }

    #[inline(always)]
    fn reverse(self, value: __m128i) -> __m128i {
        proven!(_mm_shuffle_epi8(value, self.every(REVERSE)))
    }

    #[inline(always)]
    fn swap(self, value: __m128i) -> __m128i {
        proven!(_mm_shuffle_epi32::<0x4e>(value))
    }

    #[inline(always)]
    fn round(self, state: __m128i, key: __m128i) -> __m128i {
        proven!(_mm_aesenc_si128(state, key))
    }

    #[inline(always)]
    fn last_round(self, state: __m128i, key: __m128i) -> __m128i {
        proven!(_mm_aesenclast_si128(state, key))
    }

    #[inline(always)]
    fn mul_low(self, a: __m128i, b: __m128i) -> __m128i {
        proven!(_mm_clmulepi64_si128::<0x00>(a, b))
    }

    #[inline(always)]
    fn mul_high(self, a: __m128i, b: __m128i) -> __m128i {
        proven!(_mm_clmulepi64_si128::<0x11>(a, b))
    }

    #[inline(always)]
    fn fold(self, value: __m128i) -> [u64; 2] {
        proven!(halves(value))
    }
}
