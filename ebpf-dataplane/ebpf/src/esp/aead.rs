//! ChaCha20-Poly1305 (RFC 8439, RFC 7634) over the body of the work area.

use espada_common::abi::esp::EspKey;
use espada_common::chacha20;
use espada_common::poly1305::Poly1305;

use super::packet::{Pass, Work, passed, repeat};

/// Sets key and nonce, starts the authenticator with block 0 of the keystream, and takes SPI and
/// sequence number in. The IV stands before the body.
#[inline(never)]
pub fn start(work: &mut Work, key: &EspKey, spi_be: u32, esn: bool) {
    work.state = chacha20::state(&key.words, [key.salt, work.head(8), work.head(4)]);
    let mut block = [0; 16];
    chacha20::block(&work.state, 0, &mut block);
    let [r0, r1, r2, r3, s0, s1, s2, s3, ..] = block;
    work.poly = Poly1305::new([r0, r1, r2, r3]);
    work.poly_s = [s0, s1, s2, s3];
    // RFC 7634 section 2.1: SPI and sequence number, all 64 bits of it with ESN.
    let seq = work.job.seq;
    let (high, low) = (((seq >> 32) as u32).to_be(), (seq as u32).to_be());
    if esn {
        work.aad_len = 12;
        work.poly.block([spi_be, high, low, 0]);
    } else {
        work.aad_len = 8;
        work.poly.block([spi_be, low, 0, 0]);
    }
}

/// Encrypts or decrypts the first `len` octets, and scrambles what follows in their last block.
#[inline(never)]
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

/// Leaves the tag over the first `len` octets, a multiple of 4, which are ciphertext, in `work.tag`.
/// Clears what follows in their last sixteen.
#[inline(never)]
pub fn tag(work: &mut Work, len: usize) {
    for beyond in 0..3 {
        work.set_body(len / 4 + beyond, 0);
    }
    let blocks = len.div_ceil(16) as u32;
    let mut pass = Pass {
        work: &raw mut *work,
        more: (),
    };
    repeat(blocks, &mut pass, take_in);
    work.poly.block([work.aad_len, 0, len as u32, 0]);
    work.tag = work.poly.finish(work.poly_s);
}

unsafe extern "C" fn take_in(index: u32, pass: *mut Pass<()>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, ()) = unsafe { passed(pass) };
    if let Some(words) = work.quarter(index) {
        work.poly.block(words);
    }
    0
}
