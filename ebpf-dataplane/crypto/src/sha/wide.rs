//! A message in each lane of a vector, for AVX2 and AVX-512.
#![allow(unsafe_code)]

use super::constants::{K256, K512};
use super::{COLUMNS, Table, Wide};
use crate::backend::Features;
use crate::vector::{Avx2x32, Avx2x64, Avx512x32, Avx512x64, Vector, Vector32, Vector64};

const _: () = assert!(COLUMNS == crate::vector::COLUMNS);

/// A vector of every row's first lanes.
///
/// # Safety
/// The processor has the instruction set of `V`; `V::LANES` is at most [`COLUMNS`].
#[inline(always)]
unsafe fn load<V: Vector>(table: &Table<V::Word>) -> [V; 8] {
    // SAFETY: a row has COLUMNS words; the caller vouches for the rest.
    unsafe {
        let mut vectors = [V::load(table[0].as_ptr()); 8];
        for (vector, row) in vectors.iter_mut().zip(table) {
            *vector = V::load(row.as_ptr());
        }
        vectors
    }
}

#[inline(always)]
fn store<V: Vector>(state: [V; 8], table: &mut Table<V::Word>) {
    for (row, vector) in table.iter_mut().zip(state) {
        // SAFETY: a row has COLUMNS words, no vector has more.
        unsafe { vector.store(row.as_mut_ptr()) }
    }
}

/// # Safety
/// As for [`Wide`].
#[inline(always)]
unsafe fn sha1_blocks<V: Vector32>(
    table: &mut Table<u32>,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // SAFETY: the caller vouches for the instruction set and `blocks` blocks behind each pointer.
    unsafe {
        let mut state = load::<V>(table);
        for block in 0..blocks {
            let mut w = [V::splat(0); 16];
            for quarter in 0..4 {
                let rows = V::rows(lanes, 64 * block + 16 * quarter);
                for (word, row) in w[4 * quarter..].iter_mut().zip(rows) {
                    *word = row.swap_octets();
                }
            }
            let mut s = [state[0], state[1], state[2], state[3], state[4]];
            for t in 0..80 {
                let word = if t < 16 { w[t] } else { sha1_word(&mut w, t) };
                let [a, b, c, d, e] = s;
                let (f, k) = match t / 20 {
                    0 => (b.choose(c, d), 0x5a82_7999),
                    1 => (b.xor3(c, d), 0x6ed9_eba1),
                    2 => (b.majority(c, d), 0x8f1b_bcdc),
                    _ => (b.xor3(c, d), 0xca62_c1d6),
                };
                let next = a.rotate::<27, 5>().add(f).add(e.add(V::splat(k)).add(word));
                s = [next, a, b.rotate::<2, 30>(), c, d];
            }
            for (sum, word) in state.iter_mut().zip(s) {
                *sum = sum.add(word);
            }
        }
        store(state, table);
    }
}

#[inline(always)]
fn sha1_word<V: Vector32>(w: &mut [V; 16], t: usize) -> V {
    let word = w[t % 16]
        .xor(w[(t + 13) % 16])
        .xor3(w[(t + 8) % 16], w[(t + 2) % 16])
        .rotate::<31, 1>();
    w[t % 16] = word;
    word
}

/// # Safety
/// As for [`Wide`].
#[inline(always)]
unsafe fn sha256_blocks<V: Vector32>(
    table: &mut Table<u32>,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // SAFETY: the caller vouches for the instruction set and `blocks` blocks behind each pointer.
    unsafe {
        let mut state = load::<V>(table);
        for block in 0..blocks {
            let mut w = [V::splat(0); 16];
            for quarter in 0..4 {
                let rows = V::rows(lanes, 64 * block + 16 * quarter);
                for (word, row) in w[4 * quarter..].iter_mut().zip(rows) {
                    *word = row.swap_octets();
                }
            }
            let mut s = state;
            for (group, constants) in K256.as_chunks::<16>().0.iter().enumerate() {
                for t in 0..16 {
                    if group > 0 {
                        let (a, b) = (w[(t + 1) % 16], w[(t + 14) % 16]);
                        let a = a.rotate::<7, 25>().xor3(a.rotate::<18, 14>(), a.shr::<3>());
                        let b = b
                            .rotate::<17, 15>()
                            .xor3(b.rotate::<19, 13>(), b.shr::<10>());
                        w[t] = w[t].add(a).add(w[(t + 9) % 16].add(b));
                    }
                    let [a, b, c, d, e, f, g, h] = s;
                    let e_mix = e
                        .rotate::<6, 26>()
                        .xor3(e.rotate::<11, 21>(), e.rotate::<25, 7>());
                    let a_mix = a
                        .rotate::<2, 30>()
                        .xor3(a.rotate::<13, 19>(), a.rotate::<22, 10>());
                    let one = h
                        .add(V::splat(constants[t]).add(w[t]))
                        .add(e_mix.add(e.choose(f, g)));
                    let two = a_mix.add(a.majority(b, c));
                    s = [one.add(two), a, b, c, d.add(one), e, f, g];
                }
            }
            for (sum, word) in state.iter_mut().zip(s) {
                *sum = sum.add(word);
            }
        }
        store(state, table);
    }
}

/// # Safety
/// As for [`Wide`].
#[inline(always)]
unsafe fn sha512_blocks<V: Vector64>(
    table: &mut Table<u64>,
    lanes: &[*const u8; COLUMNS],
    blocks: usize,
) {
    // SAFETY: the caller vouches for the instruction set and `blocks` blocks behind each pointer.
    unsafe {
        let mut state = load::<V>(table);
        for block in 0..blocks {
            let mut w = [V::splat(0); 16];
            for eighth in 0..8 {
                let rows = V::rows(lanes, 128 * block + 16 * eighth);
                for (word, row) in w[2 * eighth..].iter_mut().zip(rows) {
                    *word = row.swap_octets();
                }
            }
            let mut s = state;
            for (group, constants) in K512.as_chunks::<16>().0.iter().enumerate() {
                for t in 0..16 {
                    if group > 0 {
                        let (a, b) = (w[(t + 1) % 16], w[(t + 14) % 16]);
                        let a = a.rotate::<1, 63>().xor3(a.rotate::<8, 56>(), a.shr::<7>());
                        let b = b.rotate::<19, 45>().xor3(b.rotate::<61, 3>(), b.shr::<6>());
                        w[t] = w[t].add(a).add(w[(t + 9) % 16].add(b));
                    }
                    let [a, b, c, d, e, f, g, h] = s;
                    let e_mix = e
                        .rotate::<14, 50>()
                        .xor3(e.rotate::<18, 46>(), e.rotate::<41, 23>());
                    let a_mix = a
                        .rotate::<28, 36>()
                        .xor3(a.rotate::<34, 30>(), a.rotate::<39, 25>());
                    let one = h
                        .add(V::splat(constants[t]).add(w[t]))
                        .add(e_mix.add(e.choose(f, g)));
                    let two = a_mix.add(a.majority(b, c));
                    s = [one.add(two), a, b, c, d.add(one), e, f, g];
                }
            }
            for (sum, word) in state.iter_mut().zip(s) {
                *sum = sum.add(word);
            }
        }
        store(state, table);
    }
}

macro_rules! functions {
    ($choose:ident, $word:ty, $blocks:ident, $avx2:ident: $two:ty, $avx512:ident: $five:ty) => {
        #[target_feature(enable = "avx2")]
        unsafe fn $avx2(table: &mut Table<$word>, lanes: &[*const u8; COLUMNS], blocks: usize) {
            // SAFETY: the caller's promise is the same.
            unsafe { $blocks::<$two>(table, lanes, blocks) }
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn $avx512(table: &mut Table<$word>, lanes: &[*const u8; COLUMNS], blocks: usize) {
            // SAFETY: the caller's promise is the same.
            unsafe { $blocks::<$five>(table, lanes, blocks) }
        }

        pub(super) fn $choose(features: Features) -> Option<(usize, Wide<$word>)> {
            if features.avx512() {
                Some((<$five>::LANES, $avx512))
            } else if features.avx2() {
                Some((<$two>::LANES, $avx2))
            } else {
                None
            }
        }
    };
}

functions!(sha1, u32, sha1_blocks, sha1_avx2: Avx2x32, sha1_avx512: Avx512x32);
functions!(sha256, u32, sha256_blocks, sha256_avx2: Avx2x32, sha256_avx512: Avx512x32);
functions!(sha512, u64, sha512_blocks, sha512_avx2: Avx2x64, sha512_avx512: Avx512x64);
