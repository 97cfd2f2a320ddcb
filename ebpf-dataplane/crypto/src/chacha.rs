//! ChaCha20-Poly1305 for ESP (RFC 7634, RFC 8439) over a burst of packets: each lane of a vector
//! makes a block of key stream for whichever packet needs one, and authenticates another packet.

#[cfg(target_arch = "x86_64")]
mod burst;
#[cfg(target_arch = "x86_64")]
mod keystream;
#[cfg(target_arch = "x86_64")]
mod poly1305;

use ring::aead;

use crate::backend::Features;

/// Octets of the ICV.
pub const TAG: usize = 16;

/// Octets of key material that make the salt (RFC 7634 section 2).
pub const SALT: usize = 4;

/// A packet of a burst, cut into its parts.
pub struct Packet<'a> {
    /// What is authenticated only: the SPI with 32 or 64 bits of sequence number.
    pub aad: Aad,
    /// The explicit IV, which must never repeat under a key.
    pub iv: [u8; 8],
    /// Encrypted in place.
    pub body: &'a mut [u8],
    /// The ICV: written by [`ChaCha20Poly1305::seal`], compared by [`ChaCha20Poly1305::open`].
    pub tag: &'a mut [u8; TAG],
    /// Set when the packet may be used.
    pub ok: &'a mut bool,
}

/// Associated data of an ESP packet: 8 octets, or 12 with an extended sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Aad {
    octets: [u8; 12],
    len: usize,
}

impl From<[u8; 8]> for Aad {
    fn from(short: [u8; 8]) -> Self {
        let mut octets = [0; 12];
        octets[..8].copy_from_slice(&short);
        Self { octets, len: 8 }
    }
}

impl From<[u8; 12]> for Aad {
    fn from(octets: [u8; 12]) -> Self {
        Self { octets, len: 12 }
    }
}

#[cfg(target_arch = "x86_64")]
impl Aad {
    /// As Poly1305 sees it: filled up with zeros to a block.
    fn block(&self) -> [u8; 16] {
        let mut block = [0; 16];
        block[..12].copy_from_slice(&self.octets);
        block
    }
}

impl AsRef<[u8]> for Aad {
    fn as_ref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// ChaCha20-Poly1305 with key and salt.
pub struct ChaCha20Poly1305 {
    #[cfg(target_arch = "x86_64")]
    burst: Option<burst::Burst>,
    ring: aead::LessSafeKey,
    salt: [u8; SALT],
}

impl ChaCha20Poly1305 {
    /// `None` unless the key has 32 octets.
    pub fn new(features: Features, key: &[u8], salt: [u8; SALT]) -> Option<Self> {
        let ring = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key).ok()?;
        let _ = features;
        Some(Self {
            #[cfg(target_arch = "x86_64")]
            burst: burst::Burst::new(features, key.try_into().ok()?, salt),
            ring: aead::LessSafeKey::new(ring),
            salt,
        })
    }

    /// Names what takes bursts of packets whose bodies have `len` octets.
    pub fn instructions(&self, len: usize) -> &'static str {
        #[cfg(target_arch = "x86_64")]
        if let Some(own) = self.burst.as_ref().filter(|own| len <= own.longest) {
            return own.instructions();
        }
        let _ = len;
        "ring"
    }

    /// Encrypts every packet of the burst and writes its ICV.
    pub fn seal<'a>(&self, burst: impl Iterator<Item = Packet<'a>>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(own) = &self.burst {
            return own.seal(burst, |packet| self.seal_one(packet));
        }
        burst.for_each(|packet| self.seal_one(packet));
    }

    /// Compares the ICV of every packet of the burst and decrypts those that are authentic.
    pub fn open<'a>(&self, burst: impl Iterator<Item = Packet<'a>>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(own) = &self.burst {
            return own.open(burst, |packet| self.open_one(packet));
        }
        burst.for_each(|packet| self.open_one(packet));
    }

    fn nonce(&self, iv: [u8; 8]) -> aead::Nonce {
        let mut nonce = [0; 12];
        nonce[..SALT].copy_from_slice(&self.salt);
        nonce[SALT..].copy_from_slice(&iv);
        aead::Nonce::assume_unique_for_key(nonce)
    }

    fn seal_one(&self, packet: Packet<'_>) {
        let (nonce, aad) = (self.nonce(packet.iv), aead::Aad::from(packet.aad));
        let tag = self
            .ring
            .seal_in_place_separate_tag(nonce, aad, packet.body);
        *packet.ok = tag.is_ok();
        if let Ok(tag) = tag {
            packet.tag.copy_from_slice(tag.as_ref());
        }
    }

    fn open_one(&self, packet: Packet<'_>) {
        let (nonce, aad) = (self.nonce(packet.iv), aead::Aad::from(packet.aad));
        let tag = aead::Tag::from(*packet.tag);
        let opened = self
            .ring
            .open_in_place_separate_tag(nonce, aad, tag, packet.body, 0..);
        *packet.ok = opened.is_ok();
    }
}

#[cfg(test)]
mod tests;
