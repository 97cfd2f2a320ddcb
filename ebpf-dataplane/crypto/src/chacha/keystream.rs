//! ChaCha20 (RFC 8439 section 2.3) with a block in each lane. Every lane has a nonce and a block
//! counter of its own.
#![allow(unsafe_code)]

use crate::backend::Features;
use crate::vector::{Avx2x32, Avx512x32, COLUMNS, Vector, Vector32};

/// Octets of a block of key stream.
pub(super) const BLOCK: usize = 64;

/// Words of a block.
pub(super) const WORDS: usize = BLOCK / 4;

/// The first four words of every block.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// What differs from lane to lane: the counter and the last two words of the nonce.
pub(super) type Inputs = [[u32; COLUMNS]; 3];

/// A block of key stream for each lane.
pub(super) type Blocks = [[u32; WORDS]; COLUMNS];

/// Makes blocks from the key, the first word of the nonce, and what the lanes have of their own.
///
/// # Safety
/// The processor has what the function was chosen for.
type Function = unsafe fn(&[u32; 8], u32, &Inputs, &mut Blocks);

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

    pub(super) fn blocks(self, key: &[u32; 8], salt: u32, inputs: &Inputs, out: &mut Blocks) {
        // SAFETY: `new` chose the function by what the processor has.
        unsafe { (self.function)(key, salt, inputs, out) }
    }
}

#[target_feature(enable = "avx2")]
unsafe fn blocks_avx2(key: &[u32; 8], salt: u32, inputs: &Inputs, out: &mut Blocks) {
    // SAFETY: the caller's promise is the same.
    unsafe { blocks::<Avx2x32>(key, salt, inputs, out) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn blocks_avx512(key: &[u32; 8], salt: u32, inputs: &Inputs, out: &mut Blocks) {
    // SAFETY: the caller's promise is the same.
    unsafe { blocks::<Avx512x32>(key, salt, inputs, out) }
}

/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn blocks<V: Vector32>(key: &[u32; 8], salt: u32, inputs: &Inputs, out: &mut Blocks) {
    // Loops, not closures: these would not be compiled for the instructions of `V`.
    //
    // SAFETY: the caller vouches for the instructions; each row of `inputs` has COLUMNS words, and
    // each block has four times 16 octets.
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
        let mut lanes = [std::ptr::null_mut(); COLUMNS];
        for (lane, block) in lanes.iter_mut().zip(out) {
            *lane = block.as_mut_ptr().cast();
        }
        for (quarter, rows) in x.as_chunks::<4>().0.iter().enumerate() {
            V::put_rows(*rows, &lanes, 16 * quarter);
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
