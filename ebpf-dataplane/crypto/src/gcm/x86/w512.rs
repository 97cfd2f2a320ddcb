//! AVX-512 (F, BW, VL) with VAES and VPCLMULQDQ.

use std::arch::x86_64::*;

use super::w128::{self, COUNTER, REVERSE};
use super::{Vector, proven};

/// Proof that the processor has the instructions.
#[derive(Clone, Copy)]
pub(super) struct W512(());

impl W512 {
    /// # Safety
    /// The processor must have AVX-512 F, BW and VL, AVX2, AES-NI, PCLMULQDQ, VAES and VPCLMULQDQ.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// A mask of the first `len` octets, at most 64.
#[inline(always)]
fn first(len: usize) -> __mmask64 {
    u64::MAX.checked_shr(64 - len as u32).unwrap_or(0)
}

impl Vector for W512 {
    type V = __m512i;
    const BLOCKS: usize = 4;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8, value: __m512i) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn load_part(self, from: *const u8, len: usize) -> __m512i {
        // SAFETY: a masked load touches only what its mask selects.
        unsafe { _mm512_maskz_loadu_epi8(first(len), from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut u8, value: __m512i, len: usize) {
        // SAFETY: a masked store touches only what its mask selects.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), first(len), value) }
    }

    #[inline(always)]
    fn keep(self, value: __m512i, len: usize) -> __m512i {
        proven!(_mm512_maskz_mov_epi8(first(len), value))
    }

    #[inline(always)]
    fn every(self, [low, high]: [u64; 2]) -> __m512i {
        proven!(_mm512_broadcast_i32x4(_mm_set_epi64x(
            high as i64,
            low as i64
        )))
    }

    #[inline(always)]
    fn single(self, [low, high]: [u64; 2]) -> __m512i {
        proven!(_mm512_zextsi128_si512(_mm_set_epi64x(
            high as i64,
            low as i64
        )))
    }

    #[inline(always)]
    fn two(self, first: [u64; 2], second: [u64; 2]) -> __m512i {
        proven!(_mm512_zextsi256_si512(_mm256_set_epi64x(
            second[1] as i64,
            second[0] as i64,
            first[1] as i64,
            first[0] as i64
        )))
    }

    #[inline(always)]
    unsafe fn load_two(self, first: *const u8, second: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_zextsi256_si512(_mm256_set_m128i(
                _mm_loadu_si128(second.cast()),
                _mm_loadu_si128(first.cast()),
            ))
        }
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn xor3(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        proven!(_mm512_ternarylogic_epi64::<0x96>(a, b, c))
    }

    #[inline(always)]
    fn add32(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn steps(self) -> __m512i {
        proven!(_mm512_set_epi64(3 << 32, 0, 2 << 32, 0, 1 << 32, 0, 0, 0))
    }

    #[inline(always)]
    fn big_endian_counters(self, value: __m512i) -> __m512i {
        proven!(_mm512_shuffle_epi8(value, self.every(COUNTER)))
    }

    #[inline(always)]
    fn reverse(self, value: __m512i) -> __m512i {
        proven!(_mm512_shuffle_epi8(value, self.every(REVERSE)))
    }

    #[inline(always)]
    fn swap(self, value: __m512i) -> __m512i {
        proven!(_mm512_shuffle_epi32::<0x4e>(value))
    }

    #[inline(always)]
    fn round(self, state: __m512i, key: __m512i) -> __m512i {
        proven!(_mm512_aesenc_epi128(state, key))
    }

    #[inline(always)]
    fn last_round(self, state: __m512i, key: __m512i) -> __m512i {
        proven!(_mm512_aesenclast_epi128(state, key))
    }

    #[inline(always)]
    fn mul_low(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_clmulepi64_epi128::<0x00>(a, b))
    }

    #[inline(always)]
    fn mul_high(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_clmulepi64_epi128::<0x11>(a, b))
    }

    #[inline(always)]
    fn fold(self, value: __m512i) -> [u64; 2] {
        proven!({
            let half = _mm256_xor_si256(
                _mm512_castsi512_si256(value),
                _mm512_extracti64x4_epi64::<1>(value),
            );
            w128::halves(_mm_xor_si128(
                _mm256_castsi256_si128(half),
                _mm256_extracti128_si256::<1>(half),
            ))
        })
    }
}
