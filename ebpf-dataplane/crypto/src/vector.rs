//! Registers as lanes of words, so that an algorithm is written once and runs over AVX2 and AVX-512.
//!
//! A vector comes into being only through an `unsafe` function whose caller vouches for the
//! instruction set; having one is therefore proof enough for its operations to be safe. All of it
//! is inlined into functions with the right `target_feature`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Lanes of the widest vector of 32-bit words; tables of lanes have this many columns.
pub(crate) const COLUMNS: usize = 16;

/// Operations on every lane alone.
pub(crate) trait Vector: Copy {
    type Word: Copy;
    const LANES: usize;

    /// # Safety
    /// The processor has the instruction set of `Self`.
    unsafe fn splat(word: Self::Word) -> Self;

    /// # Safety
    /// The processor has the instruction set of `Self`; `LANES` words can be read at `words`.
    unsafe fn load(words: *const Self::Word) -> Self;

    /// # Safety
    /// `LANES` words can be written at `words`.
    unsafe fn store(self, words: *mut Self::Word);

    fn add(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn xor3(self, b: Self, c: Self) -> Self;
    /// `self ? b : c`, bit by bit.
    fn choose(self, b: Self, c: Self) -> Self;
    /// The value most of the three bits have.
    fn majority(self, b: Self, c: Self) -> Self;
    /// Rotates right by `R`, which is left by `L`: their sum is the width of a word.
    fn rotate<const R: i32, const L: i32>(self) -> Self;
    fn shr<const N: u32>(self) -> Self;
    /// Reverses the octets of each word.
    fn swap_octets(self) -> Self;
}

/// Lanes of 32 bits.
pub(crate) trait Vector32: Vector<Word = u32> {
    /// The next four words of each lane: vector `i` has word `i` of every lane.
    ///
    /// # Safety
    /// The processor has the instruction set of `Self`; 16 octets can be read at `at` behind each
    /// of the first `LANES` pointers.
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 4];

    /// The inverse of [`Vector32::rows`]: takes 16 octets of each lane exclusive-or with memory.
    ///
    /// # Safety
    /// 16 octets can be read and written at `at` behind each of the first `LANES` pointers.
    unsafe fn xor_rows(rows: [Self; 4], lanes: &[*mut u8; COLUMNS], at: usize);
}

/// Lanes of 64 bits.
pub(crate) trait Vector64: Vector<Word = u64> {
    /// The next two words of each lane: vector `i` has word `i` of every lane.
    ///
    /// # Safety
    /// As for [`Vector32::rows`].
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 2];
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn shl<const N: u32>(self) -> Self;
    /// The product of the low 32 bits of each lane.
    fn mul32(self, other: Self) -> Self;
}

/// Eight lanes of 32 bits in AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2x32(__m256i);

/// Four lanes of 64 bits in AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2x64(__m256i);

/// Sixteen lanes of 32 bits in AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512x32(__m512i);

/// Eight lanes of 64 bits in AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512x64(__m512i);

macro_rules! avx2 {
    ($name:ident, $word:ty, $lanes:literal, $signed:ty, $set1:ident, $add:ident, $srli:ident,
     $slli:ident, $srl:ident, $octets:expr) => {
        impl Vector for $name {
            type Word = $word;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(word: $word) -> Self {
                // SAFETY: the caller vouches for AVX2.
                Self(unsafe { $set1(word as $signed) })
            }

            #[inline(always)]
            unsafe fn load(words: *const $word) -> Self {
                // SAFETY: the caller vouches for AVX2 and the memory.
                Self(unsafe { _mm256_loadu_si256(words.cast()) })
            }

            #[inline(always)]
            unsafe fn store(self, words: *mut $word) {
                // SAFETY: `self` vouches for AVX2, the caller for the memory.
                unsafe { _mm256_storeu_si256(words.cast(), self.0) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe { _mm256_xor_si256(self.0, other.0) })
            }

            #[inline(always)]
            fn xor3(self, b: Self, c: Self) -> Self {
                self.xor(b).xor(c)
            }

            #[inline(always)]
            fn choose(self, b: Self, c: Self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe { _mm256_and_si256(self.0, b.xor(c).0) }).xor(c)
            }

            #[inline(always)]
            fn majority(self, b: Self, c: Self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe {
                    _mm256_or_si256(
                        _mm256_and_si256(self.0, b.0),
                        _mm256_and_si256(c.0, _mm256_or_si256(self.0, b.0)),
                    )
                })
            }

            #[inline(always)]
            fn rotate<const R: i32, const L: i32>(self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe { _mm256_or_si256($srli::<R>(self.0), $slli::<L>(self.0)) })
            }

            #[inline(always)]
            fn shr<const N: u32>(self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe { $srl(self.0, _mm_cvtsi32_si128(N as i32)) })
            }

            #[inline(always)]
            fn swap_octets(self) -> Self {
                // SAFETY: `self` vouches for AVX2.
                Self(unsafe {
                    let [low, high] = $octets;
                    _mm256_shuffle_epi8(self.0, _mm256_set_epi64x(high, low, high, low))
                })
            }
        }
    };
}

/// Octet orders for a shuffle that reverses words of 32 and of 64 bits.
const REVERSE32: [i64; 2] = [0x0405_0607_0001_0203, 0x0c0d_0e0f_0809_0a0b];
const REVERSE64: [i64; 2] = [0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f];

avx2!(
    Avx2x32,
    u32,
    8,
    i32,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_srli_epi32,
    _mm256_slli_epi32,
    _mm256_srl_epi32,
    REVERSE32
);
avx2!(
    Avx2x64,
    u64,
    4,
    i64,
    _mm256_set1_epi64x,
    _mm256_add_epi64,
    _mm256_srli_epi64,
    _mm256_slli_epi64,
    _mm256_srl_epi64,
    REVERSE64
);

/// 16 octets behind each of two pointers.
///
/// # Safety
/// The processor has AVX2; 16 octets can be read at `at` behind both.
#[inline(always)]
unsafe fn pair(low: *const u8, high: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller vouches for both.
    unsafe {
        let low = _mm_loadu_si128(low.add(at).cast());
        let high = _mm_loadu_si128(high.add(at).cast());
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }
}

impl Vector32 for Avx2x32 {
    #[inline(always)]
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 4] {
        // SAFETY: the caller vouches for AVX2 and the memory.
        unsafe {
            let x: [__m256i; 4] = [
                pair(lanes[0], lanes[4], at),
                pair(lanes[1], lanes[5], at),
                pair(lanes[2], lanes[6], at),
                pair(lanes[3], lanes[7], at),
            ];
            let [a, b, c, d] = transpose256(x);
            [Self(a), Self(b), Self(c), Self(d)]
        }
    }

    #[inline(always)]
    unsafe fn xor_rows(rows: [Self; 4], lanes: &[*mut u8; COLUMNS], at: usize) {
        // SAFETY: `rows` vouches for AVX2, the caller for the memory.
        unsafe {
            let [a, b, c, d] = rows;
            let x = transpose256([a.0, b.0, c.0, d.0]);
            for (lane, octets) in x.into_iter().enumerate() {
                xor_memory(lanes[lane].add(at), _mm256_castsi256_si128(octets));
                xor_memory(
                    lanes[lane + 4].add(at),
                    _mm256_extracti128_si256::<1>(octets),
                );
            }
        }
    }
}

/// # Safety
/// 16 octets can be read and written at `at`.
#[inline(always)]
unsafe fn xor_memory(at: *mut u8, octets: __m128i) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        let text = _mm_loadu_si128(at.cast());
        _mm_storeu_si128(at.cast(), _mm_xor_si128(text, octets));
    }
}

/// Transposes 4 × 4 words within each 128 bits; its own inverse.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transpose256([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let ab = _mm256_unpacklo_epi32(a, b);
        let cd = _mm256_unpacklo_epi32(c, d);
        let ab_high = _mm256_unpackhi_epi32(a, b);
        let cd_high = _mm256_unpackhi_epi32(c, d);
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

impl Vector64 for Avx2x64 {
    #[inline(always)]
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX2 and the memory.
        unsafe {
            let even = pair(lanes[0], lanes[2], at);
            let odd = pair(lanes[1], lanes[3], at);
            [
                Self(_mm256_unpacklo_epi64(even, odd)),
                Self(_mm256_unpackhi_epi64(even, odd)),
            ]
        }
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX2.
        Self(unsafe { _mm256_and_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX2.
        Self(unsafe { _mm256_or_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn shl<const N: u32>(self) -> Self {
        // SAFETY: `self` vouches for AVX2.
        Self(unsafe { _mm256_sll_epi64(self.0, _mm_cvtsi32_si128(N as i32)) })
    }

    #[inline(always)]
    fn mul32(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX2.
        Self(unsafe { _mm256_mul_epu32(self.0, other.0) })
    }
}

macro_rules! avx512 {
    ($name:ident, $word:ty, $lanes:literal, $signed:ty, $set1:ident, $add:ident, $ror:ident,
     $srli:ident, $octets:expr) => {
        impl Vector for $name {
            type Word = $word;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(word: $word) -> Self {
                // SAFETY: the caller vouches for AVX-512.
                Self(unsafe { $set1(word as $signed) })
            }

            #[inline(always)]
            unsafe fn load(words: *const $word) -> Self {
                // SAFETY: the caller vouches for AVX-512 and the memory.
                Self(unsafe { _mm512_loadu_si512(words.cast()) })
            }

            #[inline(always)]
            unsafe fn store(self, words: *mut $word) {
                // SAFETY: `self` vouches for AVX-512, the caller for the memory.
                unsafe { _mm512_storeu_si512(words.cast(), self.0) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { _mm512_xor_si512(self.0, other.0) })
            }

            #[inline(always)]
            fn xor3(self, b: Self, c: Self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { _mm512_ternarylogic_epi32::<0x96>(self.0, b.0, c.0) })
            }

            #[inline(always)]
            fn choose(self, b: Self, c: Self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { _mm512_ternarylogic_epi32::<0xca>(self.0, b.0, c.0) })
            }

            #[inline(always)]
            fn majority(self, b: Self, c: Self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { _mm512_ternarylogic_epi32::<0xe8>(self.0, b.0, c.0) })
            }

            #[inline(always)]
            fn rotate<const R: i32, const L: i32>(self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { $ror::<R>(self.0) })
            }

            #[inline(always)]
            fn shr<const N: u32>(self) -> Self {
                // SAFETY: `self` vouches for AVX-512.
                Self(unsafe { $srli::<N>(self.0) })
            }

            #[inline(always)]
            fn swap_octets(self) -> Self {
                // SAFETY: `self` vouches for AVX-512 F and BW.
                Self(unsafe {
                    let [low, high] = $octets;
                    let order = _mm512_set_epi64(high, low, high, low, high, low, high, low);
                    _mm512_shuffle_epi8(self.0, order)
                })
            }
        }
    };
}

avx512!(
    Avx512x32,
    u32,
    16,
    i32,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_ror_epi32,
    _mm512_srli_epi32,
    REVERSE32
);
avx512!(
    Avx512x64,
    u64,
    8,
    i64,
    _mm512_set1_epi64,
    _mm512_add_epi64,
    _mm512_ror_epi64,
    _mm512_srli_epi64,
    REVERSE64
);

/// 16 octets behind each of four pointers.
///
/// # Safety
/// The processor has AVX-512; 16 octets can be read at `at` behind each.
#[inline(always)]
unsafe fn four(lanes: [*const u8; 4], at: usize) -> __m512i {
    // SAFETY: the caller vouches for both.
    unsafe {
        let low = pair(lanes[0], lanes[1], at);
        let high = pair(lanes[2], lanes[3], at);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

impl Vector32 for Avx512x32 {
    #[inline(always)]
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 4] {
        // SAFETY: the caller vouches for AVX-512 and the memory.
        unsafe {
            let x = [
                four([lanes[0], lanes[4], lanes[8], lanes[12]], at),
                four([lanes[1], lanes[5], lanes[9], lanes[13]], at),
                four([lanes[2], lanes[6], lanes[10], lanes[14]], at),
                four([lanes[3], lanes[7], lanes[11], lanes[15]], at),
            ];
            let [a, b, c, d] = transpose512(x);
            [Self(a), Self(b), Self(c), Self(d)]
        }
    }

    #[inline(always)]
    unsafe fn xor_rows(rows: [Self; 4], lanes: &[*mut u8; COLUMNS], at: usize) {
        // SAFETY: `rows` vouches for AVX-512, the caller for the memory.
        unsafe {
            let [a, b, c, d] = rows;
            let x = transpose512([a.0, b.0, c.0, d.0]);
            for (lane, octets) in x.into_iter().enumerate() {
                let parts = [
                    _mm512_castsi512_si128(octets),
                    _mm512_extracti32x4_epi32::<1>(octets),
                    _mm512_extracti32x4_epi32::<2>(octets),
                    _mm512_extracti32x4_epi32::<3>(octets),
                ];
                for (part, octets) in parts.into_iter().enumerate() {
                    xor_memory(lanes[lane + 4 * part].add(at), octets);
                }
            }
        }
    }
}

/// Transposes 4 × 4 words within each 128 bits; its own inverse.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn transpose512([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let ab = _mm512_unpacklo_epi32(a, b);
        let cd = _mm512_unpacklo_epi32(c, d);
        let ab_high = _mm512_unpackhi_epi32(a, b);
        let cd_high = _mm512_unpackhi_epi32(c, d);
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

impl Vector64 for Avx512x64 {
    #[inline(always)]
    unsafe fn rows(lanes: &[*const u8; COLUMNS], at: usize) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX-512 and the memory.
        unsafe {
            let even = four([lanes[0], lanes[2], lanes[4], lanes[6]], at);
            let odd = four([lanes[1], lanes[3], lanes[5], lanes[7]], at);
            [
                Self(_mm512_unpacklo_epi64(even, odd)),
                Self(_mm512_unpackhi_epi64(even, odd)),
            ]
        }
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX-512.
        Self(unsafe { _mm512_and_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX-512.
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn shl<const N: u32>(self) -> Self {
        // SAFETY: `self` vouches for AVX-512.
        Self(unsafe { _mm512_slli_epi64::<N>(self.0) })
    }

    #[inline(always)]
    fn mul32(self, other: Self) -> Self {
        // SAFETY: `self` vouches for AVX-512.
        Self(unsafe { _mm512_mul_epu32(self.0, other.0) })
    }
}
