//! AES-GCM on any processor: `ring` where it has the algorithm, otherwise the block cipher and hash
//! of RustCrypto put together.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use ring::aead;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{AesGcm, HEADER, Icv, KeyError, Packet};

type Block = [u8; 16];

pub(super) enum Cipher {
    /// AES-128 and AES-256 with whole tags.
    Ring(Box<aead::LessSafeKey>),
    Parts(Box<Parts>),
}

/// Counter mode and hash.
pub(super) struct Parts {
    aes: Aes,
    hash: GHash,
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

impl Cipher {
    pub(super) fn new(key: &[u8], icv: Icv) -> Result<Self, KeyError> {
        let bad = |_| KeyError::Length(key.len());
        let bad_key = |_| KeyError::Length(key.len());
        let whole = match (key.len(), icv) {
            (16, Icv::Sixteen) => Some(&aead::AES_128_GCM),
            (32, Icv::Sixteen) => Some(&aead::AES_256_GCM),
            _ => None,
        };
        if let Some(algorithm) = whole {
            let key = aead::UnboundKey::new(algorithm, key).map_err(bad)?;
            return Ok(Self::Ring(Box::new(aead::LessSafeKey::new(key))));
        }
        let aes = match key.len() {
            16 => Aes::Aes128(aes::Aes128::new_from_slice(key).map_err(bad_key)?),
            24 => Aes::Aes192(aes::Aes192::new_from_slice(key).map_err(bad_key)?),
            _ => Aes::Aes256(aes::Aes256::new_from_slice(key).map_err(bad_key)?),
        };
        let hash_key = Zeroizing::new(aes.encrypt([0; 16]));
        let hash = GHash::new((&*hash_key).into());
        Ok(Self::Parts(Box::new(Parts { aes, hash })))
    }

    pub(super) fn seal(&self, sa: &AesGcm, packets: &mut [Packet<'_>]) {
        for packet in packets {
            packet.ok = self.seal_one(sa, packet).is_some();
        }
    }

    pub(super) fn open(&self, sa: &AesGcm, packets: &mut [Packet<'_>]) {
        for packet in packets {
            packet.ok = self.open_one(sa, packet).is_some();
        }
    }

    fn seal_one(&self, sa: &AesGcm, packet: &mut Packet<'_>) -> Option<()> {
        let (header, rest) = packet.octets.split_first_chunk_mut::<HEADER>()?;
        let text = rest.len().checked_sub(sa.icv.octets())?;
        let (text, icv) = rest.split_at_mut_checked(text)?;
        let (nonce, aad, aad_len) = sa.inputs(header, packet.seq);
        let aad = aad.get(..aad_len)?;
        match self {
            Self::Ring(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text)
                    .ok()?;
                icv.copy_from_slice(tag.as_ref());
            }
            Self::Parts(parts) => {
                parts.apply_stream(&nonce, text);
                let tag = parts.tag(&nonce, aad, text);
                icv.copy_from_slice(tag.get(..icv.len())?);
            }
        }
        Some(())
    }

    fn open_one(&self, sa: &AesGcm, packet: &mut Packet<'_>) -> Option<()> {
        let (header, rest) = packet.octets.split_first_chunk_mut::<HEADER>()?;
        let (nonce, aad, aad_len) = sa.inputs(header, packet.seq);
        let aad = aad.get(..aad_len)?;
        match self {
            Self::Ring(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aead::Aad::from(aad), rest)
                    .ok()
                    .map(|_| ())
            }
            Self::Parts(parts) => {
                let text = rest.len().checked_sub(sa.icv.octets())?;
                let (text, icv) = rest.split_at_mut_checked(text)?;
                let tag = parts.tag(&nonce, aad, text);
                if !bool::from(tag.get(..icv.len())?.ct_eq(icv)) {
                    return None;
                }
                parts.apply_stream(&nonce, text);
                Some(())
            }
        }
    }
}

impl Parts {
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
