//! A vector unit in plain Rust: slow, obviously right, and runnable where the instructions are not
//! (the AVX-512 kernel's arithmetic on any machine, everything under Miri).
#![allow(unsafe_code)]

use std::array;
use std::ptr;
use std::sync::LazyLock;

use super::vector::Vector;

/// A unit of `B` blocks to a register.
#[derive(Clone, Copy)]
pub(super) struct Model<const B: usize>;

fn each<const B: usize>(blocks: [u128; B], f: impl Fn(u128) -> u128) -> [u128; B] {
    blocks.map(f)
}

fn both<const B: usize>(a: [u128; B], b: [u128; B], f: impl Fn(u128, u128) -> u128) -> [u128; B] {
    array::from_fn(|at| f(a[at], b[at]))
}

fn join([low, high]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

fn multiply(a: u64, b: u64) -> u128 {
    (0..64)
        .filter(|bit| b >> bit & 1 == 1)
        .fold(0, |sum, bit| sum ^ u128::from(a) << bit)
}

/// Multiplication in the field of AES.
fn times(a: u8, b: u8) -> u8 {
    let (mut product, mut power) = (0, a);
    for bit in 0..8 {
        product ^= power * (b >> bit & 1);
        power = (power << 1) ^ ((power >> 7) * 0x1b);
    }
    product
}

/// FIPS 197 section 5.1.1.
static S_BOX: LazyLock<[u8; 256]> = LazyLock::new(|| {
    array::from_fn(|octet| {
        let octet = octet as u8;
        // The inverse is the 254th power; 0 stays 0.
        let inverse = (0..253).fold(octet, |power, _| times(power, octet));
        (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
    })
});

fn substitute_and_shift(state: u128) -> [u8; 16] {
    let octets = state.to_le_bytes();
    let s_box = &*S_BOX;
    array::from_fn(|at| s_box[usize::from(octets[(at + 4 * (at % 4)) % 16])])
}

fn round(state: u128, key: u128) -> u128 {
    let octets = substitute_and_shift(state);
    let mixed: [u8; 16] = array::from_fn(|at| {
        let of = |row: usize| octets[at / 4 * 4 + (at + row) % 4];
        times(of(0), 2) ^ times(of(1), 3) ^ of(2) ^ of(3)
    });
    u128::from_le_bytes(mixed) ^ key
}

impl<const B: usize> Vector for Model<B> {
    type V = [u128; B];
    const BLOCKS: usize = B;

    unsafe fn load(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        array::from_fn(|at| u128::from_le_bytes(unsafe { ptr::read(from.add(16 * at).cast()) }))
    }

    unsafe fn store(self, to: *mut u8, value: Self::V) {
        for (at, block) in value.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { ptr::write(to.add(16 * at).cast(), block.to_le_bytes()) }
        }
    }

    unsafe fn load_part(self, from: *const u8, len: usize) -> Self::V {
        let mut octets = [[0u8; 16]; B];
        assert!((1..=16 * B).contains(&len));
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(from, octets.as_mut_ptr().cast(), len) };
        octets.map(u128::from_le_bytes)
    }

    unsafe fn store_part(self, to: *mut u8, value: Self::V, len: usize) {
        let octets = value.map(u128::to_le_bytes);
        assert!((1..=16 * B).contains(&len));
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(octets.as_ptr().cast(), to, len) };
    }

    fn keep(self, value: Self::V, len: usize) -> Self::V {
        array::from_fn(|at| match len.saturating_sub(16 * at) {
            0 => 0,
            kept @ 1..16 => value[at] & (u128::MAX >> (128 - 8 * kept)),
            _ => value[at],
        })
    }

    fn every(self, halves: [u64; 2]) -> Self::V {
        [join(halves); B]
    }

    fn single(self, halves: [u64; 2]) -> Self::V {
        array::from_fn(|at| if at == 0 { join(halves) } else { 0 })
    }

    fn two(self, first: [u64; 2], second: [u64; 2]) -> Self::V {
        array::from_fn(|at| match at {
            0 => join(first),
            1 => join(second),
            _ => 0,
        })
    }

    unsafe fn load_two(self, first: *const u8, second: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        let [first, second] =
            [first, second].map(|from| u128::from_le_bytes(unsafe { ptr::read(from.cast()) }));
        array::from_fn(|at| match at {
            0 => first,
            1 => second,
            _ => 0,
        })
    }

    fn xor(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| a ^ b)
    }

    fn xor3(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.xor(self.xor(a, b), c)
    }

    fn add32(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| {
            (0..4).fold(0, |sum, at| {
                let word = ((a >> (32 * at)) as u32).wrapping_add((b >> (32 * at)) as u32);
                sum | u128::from(word) << (32 * at)
            })
        })
    }

    fn steps(self) -> Self::V {
        array::from_fn(|at| (at as u128) << 96)
    }

    fn big_endian_counters(self, value: Self::V) -> Self::V {
        each(value, |block| {
            block << 32 >> 32 | u128::from(((block >> 96) as u32).swap_bytes()) << 96
        })
    }

    fn reverse(self, value: Self::V) -> Self::V {
        each(value, u128::swap_bytes)
    }

    fn swap(self, value: Self::V) -> Self::V {
        each(value, |block| block.rotate_left(64))
    }

    fn round(self, state: Self::V, key: Self::V) -> Self::V {
        both(state, key, round)
    }

    fn last_round(self, state: Self::V, key: Self::V) -> Self::V {
        both(state, key, |state, key| {
            u128::from_le_bytes(substitute_and_shift(state)) ^ key
        })
    }

    fn mul_low(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| multiply(a as u64, b as u64))
    }

    fn mul_high(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| multiply((a >> 64) as u64, (b >> 64) as u64))
    }

    fn fold(self, value: Self::V) -> [u64; 2] {
        let sum = value.into_iter().fold(0, |sum, block| sum ^ block);
        [sum as u64, (sum >> 64) as u64]
    }
}
