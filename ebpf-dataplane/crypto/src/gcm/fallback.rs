//! AES-GCM on any processor: `ring` where it has the algorithm, otherwise [`Single`].

use ring::aead;

use super::{AesGcm, HEADER, Icv, KeyError, Packet, Single};

pub(super) enum Cipher {
    /// AES-128 and AES-256 with whole tags.
    Ring(Box<aead::LessSafeKey>),
    Single(Box<Single>),
}

impl Cipher {
    pub(super) fn new(key: &[u8], icv: Icv) -> Result<Self, KeyError> {
        let whole = match (key.len(), icv) {
            (16, Icv::Sixteen) => &aead::AES_128_GCM,
            (32, Icv::Sixteen) => &aead::AES_256_GCM,
            _ => return Ok(Self::Single(Box::new(Single::new(key, icv)?))),
        };
        let key = aead::UnboundKey::new(whole, key).map_err(|_| KeyError::Length(key.len()))?;
        Ok(Self::Ring(Box::new(aead::LessSafeKey::new(key))))
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
                Some(())
            }
            Self::Single(cipher) => cipher.seal(&nonce, aad, text, icv),
        }
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
            Self::Single(cipher) => {
                let text = rest.len().checked_sub(sa.icv.octets())?;
                let (text, icv) = rest.split_at_mut_checked(text)?;
                cipher.open(&nonce, aad, text, icv)
            }
        }
    }
}
