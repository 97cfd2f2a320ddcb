//! AES-GCM of one message at a time, with any key length, ICV and additional data: the block cipher
//! and hash of RustCrypto put together.

use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Icv, KeyError};
use crate::block::{Aes, Block, counter_block};

/// AES-GCM with its key, for messages that are no ESP packets: IKE's.
pub struct Single {
    aes: Aes,
    hash: GHash,
    icv: Icv,
}

impl Single {
    /// `key` has 16, 24 or 32 octets.
    pub fn new(key: &[u8], icv: Icv) -> Result<Self, KeyError> {
        let aes = Aes::new(key).ok_or(KeyError::Length(key.len()))?;
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
        self.aes.apply_stream(nonce, 2, text);
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
        self.aes.apply_stream(nonce, 2, text);
        Some(())
    }

    fn tag(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> Block {
        let mut hash = self.hash.clone();
        hash.update_padded(aad);
        hash.update_padded(sealed);
        let lengths = u128::from(aad.len() as u64 * 8) << 64 | u128::from(sealed.len() as u64 * 8);
        hash.update(&[lengths.to_be_bytes().into()]);
        let mut tag: Block = hash.finalize().into();
        let mask = self.aes.encrypt(counter_block(nonce, 1));
        for (octet, mask) in tag.iter_mut().zip(mask) {
            *octet ^= mask;
        }
        tag
    }
}
