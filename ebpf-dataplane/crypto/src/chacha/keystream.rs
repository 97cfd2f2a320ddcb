//! ChaCha20 (RFC 8439 section 2.3) with a block in each lane. Every lane has a nonce and a block
//! counter of its own.
#![allow(unsafe_code)]

use super::poly1305::OneTimeKey;
use crate::backend::Features;
use crate::vector::{Avx2x32, Avx512x32, COLUMNS, Vector, Vector32};

/// Octets of a block of key stream.
pub(super) const BLOCK: usize = 64;

/// The first four words of every block.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// What differs from lane to lane: the counter and the last two words of the nonce.
pub(super) type Inputs = [[u32; COLUMNS]; 3];

/// What a block of key stream is for.
pub(super) enum Use<'a> {
    /// Nothing: the lane is not needed.
    Nothing,
    /// Its first half is a one-time key.
    Key(&'a mut OneTimeKey),
    /// It encrypts a whole block.
    Block(&'a mut [u8; BLOCK]),
    /// It encrypts the last, shorter block.
    Rest(&'a mut [u8]),
}

/// Key stream that is not used where it is made. Holds one-time keys.
pub(super) type Aside = [[u64; BLOCK / 8]; COLUMNS];

/// Makes blocks from the key, the first word of the nonce, and what the lanes have of their own,
/// and takes them exclusive-or with what is behind the pointers.
///
/// # Safety
/// The processor has what the function was chosen for; a block behind the pointer of each of its
/// lanes is the caller's, and no other lane's.
type Function = unsafe fn(&[u32; 8], u32, &Inputs, &[*mut u8; COLUMNS]);

/// The block function of a processor.
#[derive(Clone, Copy)]
pub(super) struct KeyStream {
    lanes: usize,
    function: Function,
}

impl KeyStream {
    /// `None` without vectors that are wide enough.
    pub(super) fn new(features: Features) -> Option<Self> {
        if features.avx512() {
            Some(Self {
                lanes: Avx512x32::LANES,
                function: blocks_avx512,
            })
        } else if features.avx2() {
            Some(Self {
                lanes: Avx2x32::LANES,
                function: blocks_avx2,
            })
        } else {
            None
        }
    }

    /// Blocks made at a time.
    pub(super) fn lanes(self) -> usize {
        self.lanes
    }

    /// Makes a block for each lane and uses it up. `aside` is room for what is no whole block.
    pub(super) fn blocks(
        self,
        key: &[u32; 8],
        salt: u32,
        inputs: &Inputs,
        uses: &mut [Use<'_>; COLUMNS],
        aside: &mut Aside,
    ) {
        let mut pointers = [std::ptr::null_mut::<u8>(); COLUMNS];
        let lanes = pointers[..self.lanes].iter_mut();
        for ((pointer, aside), used) in lanes.zip(&mut *aside).zip(&mut *uses) {
            *pointer = match used {
                Use::Block(text) => text.as_mut_ptr(),
                _ => {
                    *aside = [0; BLOCK / 8];
                    aside.as_mut_ptr().cast()
                }
            };
        }
        // SAFETY: `new` chose the function by what the processor has; each pointer of its lanes is
        // that of a block borrowed mutably.
        unsafe { (self.function)(key, salt, inputs, &pointers) };
        for (words, used) in aside.iter().zip(&mut uses[..self.lanes]) {
            match std::mem::replace(used, Use::Nothing) {
                Use::Key(key) => {
                    for (halves, word) in key.as_chunks_mut().0.iter_mut().zip(words) {
                        *halves = [*word as u32, (*word >> 32) as u32];
                    }
                }
                Use::Rest(text) => {
                    let (eights, rest) = text.as_chunks_mut();
                    let mut words = words.iter();
                    for (octets, word) in eights.iter_mut().zip(&mut words) {
                        *octets = (u64::from_le_bytes(*octets) ^ word).to_le_bytes();
                    }
                    if let Some(word) = words.next() {
                        let last = rest.iter_mut().zip(word.to_le_bytes());
                        last.for_each(|(octet, key)| *octet ^= key);
                    }
                }
                Use::Block(_) | Use::Nothing => {}
            }
        }
    }
}

#[target_feature(enable = "avx2")]
unsafe fn blocks_avx2(key: &[u32; 8], salt: u32, inputs: &Inputs, texts: &[*mut u8; COLUMNS]) {
    // SAFETY: the caller's promise is the same.
    unsafe { blocks::<Avx2x32>(key, salt, inputs, texts) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn blocks_avx512(key: &[u32; 8], salt: u32, inputs: &Inputs, texts: &[*mut u8; COLUMNS]) {
    // SAFETY: the caller's promise is the same.
    unsafe { blocks::<Avx512x32>(key, salt, inputs, texts) }
}

/// # Safety
/// As for [`Function`]; the processor has the instructions of `V`.
#[inline(always)]
unsafe fn blocks<V: Vector32>(
    key: &[u32; 8],
    salt: u32,
    inputs: &Inputs,
    texts: &[*mut u8; COLUMNS],
) {
    // Loops, not closures: these would not be compiled for the instructions of `V`.
    //
    // SAFETY: the caller vouches for the instructions and the blocks, which have four times 16
    // octets; each row of `inputs` has COLUMNS words.
    unsafe {
        let mut start = [V::splat(salt); 16];
        for (word, constant) in start.iter_mut().zip(CONSTANTS) {
            *word = V::splat(constant);
        }
        for (word, key) in start[4..12].iter_mut().zip(key) {
            *word = V::splat(*key);
        }
        start[12] = V::load(inputs[0].as_ptr());
        start[14] = V::load(inputs[1].as_ptr());
        start[15] = V::load(inputs[2].as_ptr());
        let mut x = start;
        for _ in 0..10 {
            quarters(&mut x, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
            quarters(&mut x, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
        }
        for (word, start) in x.iter_mut().zip(start) {
            *word = word.add(start);
        }
        for (quarter, rows) in x.as_chunks::<4>().0.iter().enumerate() {
            V::xor_rows(*rows, texts, 16 * quarter);
        }
    }
}

/// Four quarter rounds (RFC 8439 section 2.1), two side by side: with more, the words in use
/// would not fit sixteen registers. `a` is always the first four words.
#[inline(always)]
fn quarters<V: Vector32>(x: &mut [V; 16], b: [usize; 4], c: [usize; 4], d: [usize; 4]) {
    for pair in [[0, 1], [2, 3]] {
        for i in pair {
            x[i] = x[i].add(x[b[i]]);
            x[d[i]] = x[d[i]].xor(x[i]).rotate::<16, 16>();
        }
        for i in pair {
            x[c[i]] = x[c[i]].add(x[d[i]]);
            x[b[i]] = x[b[i]].xor(x[c[i]]).rotate::<20, 12>();
        }
        for i in pair {
            x[i] = x[i].add(x[b[i]]);
            x[d[i]] = x[d[i]].xor(x[i]).rotate::<24, 8>();
        }
        for i in pair {
            x[c[i]] = x[c[i]].add(x[d[i]]);
            x[b[i]] = x[b[i]].xor(x[c[i]]).rotate::<25, 7>();
        }
    }
}
