//! AES-CBC in AES-NI and VAES: registers of one, two or four blocks, several in flight.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::Zeroize;

use super::BLOCK;
use crate::backend::Features;

/// Packets encrypted side by side at most.
pub(super) const LANES: usize = 16;

/// Blocks that lanes without a packet work on.
const SPARE_BLOCKS: usize = 32;

/// The longest key schedule: 14 rounds and the first key.
const KEYS: usize = 15;

type Encrypt = unsafe fn(&Schedule, &mut [[u8; BLOCK]; LANES], &[*mut u8; LANES], usize);
type Decrypt = unsafe fn(&Schedule, *mut u8, usize);

/// Round keys.
type Schedule = [[u8; BLOCK]; KEYS];

/// An AES key, expanded, with the code for it on this processor.
pub(super) struct Aes {
    encryption: Schedule,
    decryption: Schedule,
    instructions: &'static str,
    lanes: usize,
    encrypt: Encrypt,
    decrypt: Decrypt,
}

impl Drop for Aes {
    fn drop(&mut self) {
        self.encryption.zeroize();
        self.decryption.zeroize();
    }
}

impl Aes {
    /// `None` without AES instructions, or with a key that is not one of AES.
    pub(super) fn new(features: Features, key: &[u8]) -> Option<Self> {
        if !features.aes() {
            return None;
        }
        type Functions = ([Encrypt; 3], [Decrypt; 3]);
        let (instructions, lanes, (encrypt, decrypt)): (_, _, Functions) = if features.avx512() {
            (
                "vaes512",
                16,
                (
                    [encrypt_512::<10>, encrypt_512::<12>, encrypt_512::<14>],
                    [decrypt_512::<10>, decrypt_512::<12>, decrypt_512::<14>],
                ),
            )
        } else if features.vaes256() {
            (
                "vaes256",
                16,
                (
                    [encrypt_256::<10>, encrypt_256::<12>, encrypt_256::<14>],
                    [decrypt_256::<10>, decrypt_256::<12>, decrypt_256::<14>],
                ),
            )
        } else {
            (
                "aesni",
                8,
                (
                    [encrypt_128::<10>, encrypt_128::<12>, encrypt_128::<14>],
                    [decrypt_128::<10>, decrypt_128::<12>, decrypt_128::<14>],
                ),
            )
        };
        let which = match key.len() {
            16 => 0,
            24 => 1,
            32 => 2,
            _ => return None,
        };
        let mut aes = Self {
            encryption: [[0; BLOCK]; KEYS],
            decryption: [[0; BLOCK]; KEYS],
            instructions,
            lanes,
            encrypt: encrypt[which],
            decrypt: decrypt[which],
        };
        // SAFETY: the processor has the AES instructions.
        unsafe { expand(key, &mut aes.encryption, &mut aes.decryption) };
        Some(aes)
    }

    /// Names the instructions.
    pub(super) fn instructions(&self) -> &'static str {
        self.instructions
    }

    /// Packets to encrypt at a time.
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    /// Encrypts up to `blocks` blocks at the start of each lane that is not empty, which must have
    /// as many, and says how many it was. `chained` has the last ciphertext block of each.
    pub(super) fn encrypt(
        &self,
        chained: &mut [[u8; BLOCK]; LANES],
        lanes: &mut [&mut [u8]; LANES],
        blocks: usize,
    ) -> usize {
        let mut spare = [0u8; BLOCK * SPARE_BLOCKS];
        let all_busy = lanes[..self.lanes].iter().all(|lane| !lane.is_empty());
        let blocks = if all_busy {
            blocks
        } else {
            blocks.min(SPARE_BLOCKS)
        };
        let spare = spare.as_mut_ptr();
        let pointers = lanes.each_mut().map(|lane| {
            if lane.is_empty() {
                spare
            } else {
                assert!(lane.len() >= blocks * BLOCK);
                lane.as_mut_ptr()
            }
        });
        // SAFETY: `new` chose the function by what the processor has; `blocks` blocks lie behind
        // every pointer, in slices borrowed mutably or in `spare`.
        unsafe { (self.encrypt)(&self.encryption, chained, &pointers, blocks) };
        blocks
    }

    /// Decrypts the blocks behind the IV that `chain` starts with.
    pub(super) fn decrypt(&self, chain: &mut [u8]) {
        let blocks = (chain.len() / BLOCK).saturating_sub(1);
        if blocks > 0 {
            // SAFETY: `new` chose the function by what the processor has; an IV and `blocks` blocks
            // lie behind the pointer.
            unsafe { (self.decrypt)(&self.decryption, chain.as_mut_ptr(), blocks) };
        }
    }
}

/// The key expansion of FIPS 197 section 5.2, word by word, and the round keys of the equivalent
/// inverse cipher (section 5.3.5).
///
/// # Safety
/// The processor has the AES instructions; the key has 16, 24 or 32 octets.
#[target_feature(enable = "aes,sse4.1")]
unsafe fn expand(key: &[u8], encryption: &mut Schedule, decryption: &mut Schedule) {
    // The instruction leaves S-box(word 1) in word 0, in constant time.
    let sub_word = |word: u32| {
        let words = _mm_set_epi32(0, 0, word as i32, 0);
        _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(words)) as u32
    };
    let length = key.len() / 4;
    let rounds = length + 6;
    let mut words = [0u32; 4 * KEYS];
    for (word, octets) in words.iter_mut().zip(key.as_chunks().0) {
        *word = u32::from_le_bytes(*octets);
    }
    let mut constant = 1u32;
    for i in length..4 * (rounds + 1) {
        let mut word = words[i - 1];
        if i % length == 0 {
            word = sub_word(word).rotate_right(8) ^ constant;
            constant = (constant << 1) ^ if constant & 0x80 != 0 { 0x11b } else { 0 };
        } else if length == 8 && i % length == 4 {
            word = sub_word(word);
        }
        words[i] = words[i - length] ^ word;
    }
    for (key, word) in encryption
        .as_flattened_mut()
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(words)
    {
        *key = word.to_le_bytes();
    }
    words.zeroize();
    for round in 0..=rounds {
        // SAFETY: a round key has 16 octets.
        unsafe {
            let mut key = _mm_loadu_si128(encryption[rounds - round].as_ptr().cast());
            if round != 0 && round != rounds {
                key = _mm_aesimc_si128(key);
            }
            _mm_storeu_si128(decryption[round].as_mut_ptr().cast(), key);
        }
    }
}

/// A register of blocks. As in `vector`, a value vouches for the instructions.
trait Blocks: Copy {
    const BLOCKS: usize;

    /// # Safety
    /// The processor has the instructions of `Self`.
    unsafe fn splat(key: &[u8; BLOCK]) -> Self;

    /// # Safety
    /// The processor has the instructions of `Self`; `BLOCKS` blocks can be read at `from`.
    unsafe fn load(from: *const u8) -> Self;

    /// # Safety
    /// `BLOCKS` blocks can be written at `to`.
    unsafe fn store(self, to: *mut u8);

    /// A block from each pointer.
    ///
    /// # Safety
    /// The processor has the instructions of `Self`; there are `BLOCKS` pointers and a block can
    /// be read at `at` behind each.
    unsafe fn collect(from: &[*mut u8], at: usize) -> Self;

    /// A block to each pointer.
    ///
    /// # Safety
    /// There are `BLOCKS` pointers and a block can be written at `at` behind each.
    unsafe fn scatter(self, to: &[*mut u8], at: usize);

    fn xor(self, other: Self) -> Self;
    fn encrypt(self, key: Self) -> Self;
    fn encrypt_last(self, key: Self) -> Self;
    fn decrypt(self, key: Self) -> Self;
    fn decrypt_last(self, key: Self) -> Self;
}

macro_rules! operations {
    ($xor:ident, $enc:ident, $enc_last:ident, $dec:ident, $dec_last:ident) => {
        #[inline(always)]
        fn xor(self, other: Self) -> Self {
            // SAFETY: `self` vouches for the instructions.
            unsafe { $xor(self, other) }
        }

        #[inline(always)]
        fn encrypt(self, key: Self) -> Self {
            // SAFETY: `self` vouches for the instructions.
            unsafe { $enc(self, key) }
        }

        #[inline(always)]
        fn encrypt_last(self, key: Self) -> Self {
            // SAFETY: `self` vouches for the instructions.
            unsafe { $enc_last(self, key) }
        }

        #[inline(always)]
        fn decrypt(self, key: Self) -> Self {
            // SAFETY: `self` vouches for the instructions.
            unsafe { $dec(self, key) }
        }

        #[inline(always)]
        fn decrypt_last(self, key: Self) -> Self {
            // SAFETY: `self` vouches for the instructions.
            unsafe { $dec_last(self, key) }
        }
    };
}

impl Blocks for __m128i {
    const BLOCKS: usize = 1;

    #[inline(always)]
    unsafe fn splat(key: &[u8; BLOCK]) -> Self {
        // SAFETY: `key` has a block.
        unsafe { _mm_loadu_si128(key.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm_storeu_si128(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn collect(from: &[*mut u8], at: usize) -> Self {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm_loadu_si128(from[0].add(at).cast()) }
    }

    #[inline(always)]
    unsafe fn scatter(self, to: &[*mut u8], at: usize) {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm_storeu_si128(to[0].add(at).cast(), self) }
    }

    operations!(
        _mm_xor_si128,
        _mm_aesenc_si128,
        _mm_aesenclast_si128,
        _mm_aesdec_si128,
        _mm_aesdeclast_si128
    );
}

impl Blocks for __m256i {
    const BLOCKS: usize = 2;

    #[inline(always)]
    unsafe fn splat(key: &[u8; BLOCK]) -> Self {
        // SAFETY: the caller vouches for AVX2; `key` has a block.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(key.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller vouches for AVX2 and the memory.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: `self` vouches for AVX2, the caller for the memory.
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn collect(from: &[*mut u8], at: usize) -> Self {
        // SAFETY: the caller vouches for AVX2 and the memory.
        unsafe {
            let low = _mm_loadu_si128(from[0].add(at).cast());
            let high = _mm_loadu_si128(from[1].add(at).cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        }
    }

    #[inline(always)]
    unsafe fn scatter(self, to: &[*mut u8], at: usize) {
        // SAFETY: `self` vouches for AVX2, the caller for the memory.
        unsafe {
            _mm_storeu_si128(to[0].add(at).cast(), _mm256_castsi256_si128(self));
            _mm_storeu_si128(to[1].add(at).cast(), _mm256_extracti128_si256::<1>(self));
        }
    }

    operations!(
        _mm256_xor_si256,
        _mm256_aesenc_epi128,
        _mm256_aesenclast_epi128,
        _mm256_aesdec_epi128,
        _mm256_aesdeclast_epi128
    );
}

impl Blocks for __m512i {
    const BLOCKS: usize = 4;

    #[inline(always)]
    unsafe fn splat(key: &[u8; BLOCK]) -> Self {
        // SAFETY: the caller vouches for AVX-512; `key` has a block.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(key.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller vouches for AVX-512 and the memory.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: `self` vouches for AVX-512, the caller for the memory.
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn collect(from: &[*mut u8], at: usize) -> Self {
        // SAFETY: the caller vouches for AVX-512 and the memory.
        unsafe {
            let low = <__m256i as Blocks>::collect(&from[..2], at);
            let high = <__m256i as Blocks>::collect(&from[2..], at);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    unsafe fn scatter(self, to: &[*mut u8], at: usize) {
        // SAFETY: `self` vouches for AVX-512, the caller for the memory.
        unsafe {
            _mm512_castsi512_si256(self).scatter(&to[..2], at);
            _mm512_extracti64x4_epi64::<1>(self).scatter(&to[2..], at);
        }
    }

    operations!(
        _mm512_xor_si512,
        _mm512_aesenc_epi128,
        _mm512_aesenclast_epi128,
        _mm512_aesdec_epi128,
        _mm512_aesdeclast_epi128
    );
}

/// Each round key in every block of a register.
///
/// Loops, not closures, here and below: these would not be compiled for the instructions of `B`.
///
/// # Safety
/// The processor has the instructions of `B`.
#[inline(always)]
unsafe fn splat_keys<B: Blocks>(keys: &Schedule) -> [B; KEYS] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let mut wide = [B::splat(&keys[0]); KEYS];
        for (wide, key) in wide.iter_mut().zip(keys) {
            *wide = B::splat(key);
        }
        wide
    }
}

/// Encrypts `blocks` blocks of `REGISTERS * B::BLOCKS` lanes.
///
/// # Safety
/// The processor has the instructions of `B`; that many blocks lie behind each pointer and belong
/// to the caller.
#[inline(always)]
unsafe fn encrypt_lanes<B: Blocks, const REGISTERS: usize, const ROUNDS: usize>(
    keys: &Schedule,
    chained: &mut [[u8; BLOCK]; LANES],
    lanes: &[*mut u8; LANES],
    blocks: usize,
) {
    const { assert!(REGISTERS * B::BLOCKS <= LANES && ROUNDS < KEYS) };
    // SAFETY: the caller vouches for the instructions and for the memory behind the pointers;
    // `chained` has a block for each lane.
    unsafe {
        let keys = splat_keys::<B>(keys);
        let chain = chained.as_mut_ptr().cast::<u8>();
        let mut state = [keys[0]; REGISTERS];
        for (r, state) in state.iter_mut().enumerate() {
            *state = B::load(chain.add(BLOCK * B::BLOCKS * r));
        }
        for block in 0..blocks {
            for (r, state) in state.iter_mut().enumerate() {
                let lanes = &lanes[B::BLOCKS * r..B::BLOCKS * (r + 1)];
                let plain = B::collect(lanes, BLOCK * block);
                // This way round the key does not lengthen the chain.
                *state = state.xor(plain.xor(keys[0]));
            }
            for key in &keys[1..ROUNDS] {
                for state in &mut state {
                    *state = state.encrypt(*key);
                }
            }
            for (r, state) in state.iter_mut().enumerate() {
                *state = state.encrypt_last(keys[ROUNDS]);
                state.scatter(&lanes[B::BLOCKS * r..B::BLOCKS * (r + 1)], BLOCK * block);
            }
        }
        for (r, state) in state.into_iter().enumerate() {
            state.store(chain.add(BLOCK * B::BLOCKS * r));
        }
    }
}

/// Decrypts in place the last `REGISTERS * B::BLOCKS` of `blocks` blocks behind the IV at `chain`
/// as often as they go, and says how many blocks remain. From the end, so that each block's
/// predecessor is still ciphertext.
///
/// # Safety
/// The processor has the instructions of `B`; the IV and so many blocks lie at `chain` and belong
/// to the caller.
#[inline(always)]
unsafe fn decrypt_last<B: Blocks, const REGISTERS: usize, const ROUNDS: usize>(
    keys: &[B; KEYS],
    chain: *mut u8,
    mut blocks: usize,
) -> usize {
    while blocks >= REGISTERS * B::BLOCKS {
        blocks -= REGISTERS * B::BLOCKS;
        // SAFETY: the caller vouches for the instructions and the memory: the blocks from `blocks`
        // on, where the IV counts as the first.
        unsafe {
            let at = chain.add(BLOCK * blocks);
            let mut state = [keys[0]; REGISTERS];
            for (r, state) in state.iter_mut().enumerate() {
                *state = B::load(at.add(BLOCK * (B::BLOCKS * r + 1))).xor(keys[0]);
            }
            for key in &keys[1..ROUNDS] {
                for state in &mut state {
                    *state = state.decrypt(*key);
                }
            }
            // All blocks before are read before any is written.
            for (r, state) in state.iter_mut().enumerate() {
                let before = B::load(at.add(BLOCK * B::BLOCKS * r));
                *state = state.decrypt_last(keys[ROUNDS]).xor(before);
            }
            for (r, state) in state.into_iter().enumerate() {
                state.store(at.add(BLOCK * (B::BLOCKS * r + 1)));
            }
        }
    }
    blocks
}

/// Decrypts `blocks` blocks behind the IV at `chain`: most in `B`, what is less than a register of
/// those one by one.
///
/// # Safety
/// As for [`decrypt_last`]; the processor has AES-NI.
#[inline(always)]
unsafe fn decrypt_chain<B: Blocks, const REGISTERS: usize, const ROUNDS: usize>(
    keys: &Schedule,
    chain: *mut u8,
    blocks: usize,
) {
    const { assert!(ROUNDS < KEYS) };
    // SAFETY: the caller's promise is the same.
    unsafe {
        let wide = splat_keys::<B>(keys);
        let left = decrypt_last::<B, REGISTERS, ROUNDS>(&wide, chain, blocks);
        let left = decrypt_last::<B, 2, ROUNDS>(&wide, chain, left);
        let left = decrypt_last::<B, 1, ROUNDS>(&wide, chain, left);
        if B::BLOCKS > 1 && left > 0 {
            decrypt_last::<__m128i, 1, ROUNDS>(&splat_keys(keys), chain, left);
        }
    }
}

macro_rules! functions {
    ($features:literal, $blocks:ty, $registers:literal, $encrypt:ident, $decrypt:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $encrypt<const ROUNDS: usize>(
            keys: &Schedule,
            chained: &mut [[u8; BLOCK]; LANES],
            lanes: &[*mut u8; LANES],
            blocks: usize,
        ) {
            // SAFETY: the caller's promise is the same.
            unsafe { encrypt_lanes::<$blocks, $registers, ROUNDS>(keys, chained, lanes, blocks) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $decrypt<const ROUNDS: usize>(keys: &Schedule, chain: *mut u8, blocks: usize) {
            // SAFETY: the caller's promise is the same.
            unsafe { decrypt_chain::<$blocks, $registers, ROUNDS>(keys, chain, blocks) }
        }
    };
}

functions!("aes,sse4.1", __m128i, 8, encrypt_128, decrypt_128);
functions!("aes,avx2,vaes", __m256i, 8, encrypt_256, decrypt_256);
functions!(
    "aes,avx2,vaes,avx512f,avx512bw",
    __m512i,
    4,
    encrypt_512,
    decrypt_512
);
