//! AES of any key length, a block at a time.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

pub(crate) type Block = [u8; 16];

/// AES with its key.
pub(crate) enum Aes {
    Aes128(aes::Aes128),
    Aes192(aes::Aes192),
    Aes256(aes::Aes256),
}

impl Aes {
    /// `None` unless `key` has 16, 24 or 32 octets.
    pub fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Self::Aes128(aes::Aes128::new_from_slice(key).ok()?),
            24 => Self::Aes192(aes::Aes192::new_from_slice(key).ok()?),
            _ => Self::Aes256(aes::Aes256::new_from_slice(key).ok()?),
        })
    }

    /// The block encrypted.
    pub fn encrypt(&self, block: Block) -> Block {
        let mut block = Array::from(block);
        match self {
            Self::Aes128(aes) => aes.encrypt_block(&mut block),
            Self::Aes192(aes) => aes.encrypt_block(&mut block),
            Self::Aes256(aes) => aes.encrypt_block(&mut block),
        }
        block.into()
    }

    /// Adds the keystream of a counter whose first 12 octets stay, beginning with `counter`.
    pub fn apply_stream(&self, start: &[u8; 12], counter: u32, text: &mut [u8]) {
        let mut counter = counter;
        for chunk in text.chunks_mut(16) {
            let stream = self.encrypt(counter_block(start, counter));
            for (octet, key) in chunk.iter_mut().zip(stream) {
                *octet ^= key;
            }
            counter = counter.wrapping_add(1);
        }
    }
}

/// Block number `counter` of a stream.
pub(crate) fn counter_block(start: &[u8; 12], counter: u32) -> Block {
    let mut block = [0; 16];
    block[..12].copy_from_slice(start);
    block[12..].copy_from_slice(&counter.to_be_bytes());
    block
}
