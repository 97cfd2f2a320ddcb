//! AES-GCM of one message at a time, with any key length, ICV and additional data: the block cipher
//! and hash of RustCrypto put together.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Icv, KeyError};

type Block = [u8; 16];

/// AES-GCM with its key, for messages that are no ESP packets: IKE's.
pub struct Single {
    aes: Aes,
    hash: GHash,
    icv: Icv,
}

enum Aes {
    Aes128(aes::Aes128),
    Aes192(aes::Aes192),
    Aes256(aes::Aes256),
}

impl Aes {
    fn encrypt(&self, block: Block) -> Block {
        let mut block = Array::from(block);
        match self {
            Self::Aes128(aes) => aes.encrypt_block(&mut block),
            Self::Aes192(aes) => aes.encrypt_block(&mut block),
            Self::Aes256(aes) => aes.encrypt_block(&mut block),
        }
        block.into()
    }
}

impl Single {
    /// `key` has 16, 24 or 32 octets.
    pub fn new(key: &[u8], icv: Icv) -> Result<Self, KeyError> {
        let bad = |_| KeyError::Length(key.len());
        let aes = match key.len() {
            16 => Aes::Aes128(aes::Aes128::new_from_slice(key).map_err(bad)?),
            24 => Aes::Aes192(aes::Aes192::new_from_slice(key).map_err(bad)?),
            _ => Aes::Aes256(aes::Aes256::new_from_slice(key).map_err(bad)?),
        };
        let hash_key = Zeroizing::new(aes.encrypt([0; 16]));
        let hash = GHash::new((&*hash_key).into());
        Ok(Self { aes, hash, icv })
    }

    /// Encrypts `text` in place and writes the ICV. `None`, and nothing done, when there is not
    /// exactly room for it. No nonce may be used twice under a key.
    pub fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Option<()> {
        if icv.len() != self.icv.octets() {
            return None;
        }
        self.apply_stream(nonce, text);
        let tag = self.tag(nonce, aad, text);
        icv.copy_from_slice(tag.get(..icv.len())?);
        Some(())
    }

    /// Decrypts `text` in place; `None`, and nothing done, unless the ICV is the right one, which
    /// is found out in constant time.
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], icv: &[u8]) -> Option<()> {
        let tag = self.tag(nonce, aad, text);
        if !bool::from(tag.get(..self.icv.octets())?.ct_eq(icv)) {
            return None;
        }
        self.apply_stream(nonce, text);
        Some(())
    }

    fn counter_block(nonce: &[u8; 12], counter: u32) -> Block {
        let mut block = [0; 16];
        block[..12].copy_from_slice(nonce);
        block[12..].copy_from_slice(&counter.to_be_bytes());
        block
    }

    fn apply_stream(&self, nonce: &[u8; 12], text: &mut [u8]) {
        for (chunk, counter) in text.chunks_mut(16).zip(2u32..) {
            let stream = self.aes.encrypt(Self::counter_block(nonce, counter));
            for (octet, key) in chunk.iter_mut().zip(stream) {
                *octet ^= key;
            }
        }
    }

    fn tag(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> Block {
        let mut hash = self.hash.clone();
        hash.update_padded(aad);
        hash.update_padded(sealed);
        let lengths = u128::from(aad.len() as u64 * 8) << 64 | u128::from(sealed.len() as u64 * 8);
        hash.update(&[lengths.to_be_bytes().into()]);
        let mut tag: Block = hash.finalize().into();
        let mask = self.aes.encrypt(Self::counter_block(nonce, 1));
        for (octet, mask) in tag.iter_mut().zip(mask) {
            *octet ^= mask;
        }
        tag
    }
}
