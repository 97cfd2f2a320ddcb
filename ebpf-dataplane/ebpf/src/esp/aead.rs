//! ChaCha20-Poly1305 (RFC 8439, RFC 7634) over the body of the work area.

use espada_common::abi::esp::EspKey;
use espada_common::chacha20;
use espada_common::poly1305::Poly1305;

use super::packet::{Pass, Work, passed, repeat};

/// What an ICV covers besides the ciphertext: SPI and sequence number, as words in memory.
#[derive(Clone, Copy)]
pub struct Aad {
    pub words: [u32; 4],
    pub len: u32,
}

impl Aad {
    /// RFC 7634 section 2.1: SPI and sequence number, all 64 bits of it with ESN.
    #[inline(always)]
    pub fn new(spi_be: u32, seq: u64, esn: bool) -> Self {
        let low = (seq as u32).to_be();
        if esn {
            Self {
                words: [spi_be, ((seq >> 32) as u32).to_be(), low, 0],
                len: 12,
            }
        } else {
            Self {
                words: [spi_be, low, 0, 0],
                len: 8,
            }
        }
    }
}

/// Sets key and nonce, and starts the authenticator with block 0 of the keystream. Gives the
/// second half of the one-time key.
#[inline(always)]
pub fn start(work: &mut Work, key: &EspKey, iv: [u32; 2], aad: &Aad) -> [u32; 4] {
    let [iv0, iv1] = iv;
    work.state = chacha20::state(&key.words, [key.salt, iv0, iv1]);
    let mut block = [0; 16];
    chacha20::block(&work.state, 0, &mut block);
    let [r0, r1, r2, r3, s0, s1, s2, s3, ..] = block;
    work.poly = Poly1305::new([r0, r1, r2, r3]);
    work.poly.block(aad.words);
    [s0, s1, s2, s3]
}

/// Encrypts or decrypts the first `len` octets, and scrambles what follows in their last block.
#[inline(always)]
pub fn xor(work: &mut Work, len: usize) {
    let blocks = len.div_ceil(chacha20::BLOCK_LEN) as u32;
    repeat(blocks, &mut Pass { work, more: () }, xor_block);
}

unsafe extern "C" fn xor_block(index: u32, pass: *mut Pass<()>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, ()) = unsafe { passed(pass) };
    let mut keystream = [0; 16];
    chacha20::block(&work.state, index + 1, &mut keystream);
    if let Some(block) = work.block(index) {
        for (word, key) in block.iter_mut().zip(keystream) {
            *word ^= key;
        }
    }
    0
}

/// The tag over the first `len` octets, a multiple of 4, which are ciphertext. Clears what follows in
/// their last sixteen.
#[inline(always)]
pub fn tag(work: &mut Work, len: usize, aad: &Aad, s: [u32; 4]) -> [u32; 4] {
    for beyond in 0..3 {
        work.set_body(len / 4 + beyond, 0);
    }
    let blocks = len.div_ceil(16) as u32;
    repeat(blocks, &mut Pass { work, more: () }, take_in);
    work.poly.block([aad.len, 0, len as u32, 0]);
    work.poly.finish(s)
}

unsafe extern "C" fn take_in(index: u32, pass: *mut Pass<()>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, ()) = unsafe { passed(pass) };
    if let Some(words) = work.quarter(index) {
        work.poly.block(words);
    }
    0
}
