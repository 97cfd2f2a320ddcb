//! Two messages side by side through the SHA extensions: the steps of one fill the latency of the
//! other's.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::constants::K256;
use super::{Pair, Table};
use crate::backend::Features;

pub(super) fn sha1(features: Features) -> Option<Pair<u32>> {
    features.sha().then_some(sha1_pair as Pair<u32>)
}

pub(super) fn sha256(features: Features) -> Option<Pair<u32>> {
    features.sha().then_some(sha256_pair as Pair<u32>)
}

/// # Safety
/// As for [`Pair`].
#[target_feature(enable = "sha,ssse3,sse4.1")]
unsafe fn sha256_pair(
    table: &mut Table<u32>,
    columns: [usize; 2],
    lanes: [*const u8; 2],
    blocks: usize,
) {
    let word = |row: usize, lane: usize| table[row][columns[lane]] as i32;
    // The instructions want the words A, B, E, F and C, D, G, H together.
    let mut abef = [0, 1].map(|l| _mm_set_epi32(word(0, l), word(1, l), word(4, l), word(5, l)));
    let mut cdgh = [0, 1].map(|l| _mm_set_epi32(word(2, l), word(3, l), word(6, l), word(7, l)));
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    for block in 0..blocks {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut w = [[_mm_setzero_si128(); 2]; 4];
        for (group, constants) in K256.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: four words can be read there.
            let k = unsafe { _mm_loadu_si128(constants.as_ptr().cast()) };
            for lane in 0..2 {
                let words = if group < 4 {
                    // SAFETY: the caller vouches for this block of the message.
                    let octets =
                        unsafe { _mm_loadu_si128(lanes[lane].add(64 * block + 16 * group).cast()) };
                    _mm_shuffle_epi8(octets, order)
                } else {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|back: usize| w[(group + back) % 4][lane]);
                    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8::<4>(d, c));
                    _mm_sha256msg2_epu32(sum, d)
                };
                w[group % 4][lane] = words;
                let sum = _mm_add_epi32(words, k);
                cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sum);
                let sum = _mm_shuffle_epi32::<0x0e>(sum);
                abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], sum);
            }
        }
        for lane in 0..2 {
            abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
            cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
        }
    }
    for (lane, column) in columns.into_iter().enumerate() {
        for (rows, words) in [([5, 4, 1, 0], abef[lane]), ([7, 6, 3, 2], cdgh[lane])] {
            put(table, rows, column, words);
        }
    }
}

/// # Safety
/// As for [`Pair`].
#[target_feature(enable = "sha,ssse3,sse4.1")]
unsafe fn sha1_pair(
    table: &mut Table<u32>,
    columns: [usize; 2],
    lanes: [*const u8; 2],
    blocks: usize,
) {
    let word = |row: usize, lane: usize| table[row][columns[lane]] as i32;
    let mut abcd = [0, 1].map(|l| _mm_set_epi32(word(0, l), word(1, l), word(2, l), word(3, l)));
    let mut e = [0, 1].map(|l| _mm_set_epi32(word(4, l), 0, 0, 0));
    let order = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    for block in 0..blocks {
        let (abcd_before, e_before) = (abcd, e);
        let mut w = [[_mm_setzero_si128(); 2]; 4];
        for group in 0..20 {
            for lane in 0..2 {
                let words = if group < 4 {
                    // SAFETY: the caller vouches for this block of the message.
                    let octets =
                        unsafe { _mm_loadu_si128(lanes[lane].add(64 * block + 16 * group).cast()) };
                    _mm_shuffle_epi8(octets, order)
                } else {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|back: usize| w[(group + back) % 4][lane]);
                    let sum = _mm_xor_si128(_mm_sha1msg1_epu32(a, b), c);
                    _mm_sha1msg2_epu32(sum, d)
                };
                w[group % 4][lane] = words;
                // `e` is what A was four rounds ago, except at the start.
                let sum = if group == 0 {
                    _mm_add_epi32(e[lane], words)
                } else {
                    _mm_sha1nexte_epu32(e[lane], words)
                };
                e[lane] = abcd[lane];
                abcd[lane] = match group / 5 {
                    0 => _mm_sha1rnds4_epu32::<0>(abcd[lane], sum),
                    1 => _mm_sha1rnds4_epu32::<1>(abcd[lane], sum),
                    2 => _mm_sha1rnds4_epu32::<2>(abcd[lane], sum),
                    _ => _mm_sha1rnds4_epu32::<3>(abcd[lane], sum),
                };
            }
        }
        for lane in 0..2 {
            e[lane] = _mm_sha1nexte_epu32(e[lane], e_before[lane]);
            abcd[lane] = _mm_add_epi32(abcd[lane], abcd_before[lane]);
        }
    }
    for (lane, column) in columns.into_iter().enumerate() {
        put(table, [3, 2, 1, 0], column, abcd[lane]);
        table[4][column] = _mm_extract_epi32::<3>(e[lane]) as u32;
    }
}

/// Puts the words of a register, lowest first, into rows of a column.
#[target_feature(enable = "sse4.1")]
fn put(table: &mut Table<u32>, rows: [usize; 4], column: usize, words: __m128i) {
    let mut out = [0u32; 4];
    // SAFETY: `out` has 16 octets.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), words) };
    for (row, word) in rows.into_iter().zip(out) {
        table[row][column] = word;
    }
}
