//! ChaCha20-Poly1305 (RFC 8439, RFC 7634) over the body of the work area, with keystream that was
//! prepared ahead where there is some.

use espada_common::abi::esp::{AheadWake, EspKey, WAKE_EVERY, first_slot};
use espada_common::chacha20;
use espada_common::keystream::{self, state};
use espada_common::poly1305::Poly1305;

use super::maps::{self, Prepared};
use super::packet::{Pass, Work, passed, repeat};

/// Takes the keystream that was prepared for the packet, whose IV stands before the body, if there is
/// some.
#[inline(never)]
pub fn take(work: &mut Work, inbound: bool) {
    work.job.slot = 0;
    if work.pair.ring == 0 {
        return;
    }
    let (high, low) = (u32::from_be(work.head(8)), u32::from_be(work.head(4)));
    let iv = u64::from(high) << 32 | u64::from(low);
    let index = first_slot(work.pair.ring, inbound) + keystream::place(iv);
    if let Some(slot) = maps::slot(index)
        && keystream::take(&slot, work.pair.handle, iv)
    {
        work.job.slot = index + 1;
    }
}

/// Gives what [`take`] took back for the packet that it was prepared for.
#[inline(always)]
pub fn put_back(work: &Work) {
    if let Some(slot) = taken(work) {
        keystream::give(&slot, state::READY);
    }
}

/// Ends the use of what [`take`] took; has more prepared now and then.
#[inline(never)]
pub fn done(work: &Work, inbound: bool) {
    if let Some(slot) = taken(work) {
        keystream::give(&slot, state::FREE);
    }
    if work.pair.ring != 0 && work.job.seq & (WAKE_EVERY - 1) == 0 {
        maps::wake(AheadWake {
            seq: work.job.seq,
            handle: work.pair.handle,
            inbound: inbound.into(),
            prepared: (work.job.slot != 0).into(),
            encrypted: work.job.encrypted,
        });
    }
}

#[inline(always)]
fn taken(work: &Work) -> Option<Prepared> {
    match work.job.slot {
        0 => None,
        number => maps::slot(number - 1),
    }
}

/// Sets key and nonce, starts the authenticator with block 0 of the keystream, and takes SPI and
/// sequence number in. The IV stands before the body.
#[inline(never)]
pub fn start(work: &mut Work, key: &EspKey, spi_be: u32, esn: bool) {
    work.state = chacha20::state(&key.words, [key.salt, work.head(8), work.head(4)]);
    // RFC 8439 section 2.6: the authenticator's key is the beginning of block 0.
    let [r0, r1, r2, r3, s0, s1, s2, s3, ..] = match taken(work).and_then(|slot| slot.block(0)) {
        Some(block) => *block,
        None => {
            chacha20::block(&work.state, 0, &mut work.keystream);
            work.keystream
        }
    };
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
    let mut prepared = 0;
    if let Some(slot) = taken(work) {
        prepared = slot.blocks().saturating_sub(1).min(blocks);
        let mut pass = Pass {
            work: &raw mut *work,
            more: slot,
        };
        repeat(prepared, &mut pass, xor_prepared);
    }
    let mut pass = Pass {
        work: &raw mut *work,
        more: prepared,
    };
    repeat(blocks - prepared, &mut pass, xor_block);
}

unsafe extern "C" fn xor_prepared(index: u32, pass: *mut Pass<Prepared>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, slot) = unsafe { passed(pass) };
    if let (Some(block), Some(keystream)) = (work.block(index), slot.block(index + 1)) {
        for (word, key) in block.iter_mut().zip(keystream) {
            *word ^= key;
        }
    }
    0
}

unsafe extern "C" fn xor_block(index: u32, pass: *mut Pass<u32>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, prepared) = unsafe { passed(pass) };
    let index = *prepared + index;
    chacha20::block(&work.state, index + 1, &mut work.keystream);
    let keystream = work.keystream;
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
