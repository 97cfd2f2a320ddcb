//! AES-GCM for ESP (RFC 4106): whole ESP packets in bursts of one SA.

use std::sync::OnceLock;

use crate::cpu::Backend;

mod burst;
mod fallback;
#[cfg(any(test, target_arch = "x86_64"))]
mod hash;
#[cfg(any(test, target_arch = "x86_64"))]
mod kernel;
#[cfg(any(test, target_arch = "x86_64"))]
mod key;
#[cfg(test)]
mod model;
mod single;
#[cfg(test)]
mod tests;
#[cfg(any(test, target_arch = "x86_64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use espada_common::sa::GcmIcv as Icv;
pub use single::Single;

/// Octets before the encrypted part of a packet: SPI, sequence number, IV.
pub const HEADER: usize = 16;

#[cfg(any(test, target_arch = "x86_64"))]
const _: () = assert!(Icv::Eight.octets() >= vector::SLACK);

/// One ESP packet of a burst.
pub struct Packet<'a> {
    /// SPI, sequence number, IV, encrypted part (padding and trailer included), ICV.
    pub octets: &'a mut [u8],
    /// The full sequence number. Sealing makes the IV of it; with extended sequence numbers the
    /// ICV covers its high half.
    pub seq: u64,
    /// Set by [`AesGcm::seal`] and [`AesGcm::open`].
    pub ok: bool,
}

impl<'a> Packet<'a> {
    /// A packet that has been through no cipher yet.
    pub fn new(octets: &'a mut [u8], seq: u64) -> Self {
        Self {
            octets,
            seq,
            ok: false,
        }
    }
}

/// Why there is no cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// AES has no key of this length.
    #[error("AES takes a key of 16, 24 or 32 octets, got {0}")]
    Length(usize),
    /// The processor lacks the backend's instructions.
    #[error("this processor cannot run crypto backend {0}")]
    Unavailable(Backend),
}

/// The fastest backend of this processor that seals and opens a few packets as the portable one
/// does. Found out once.
pub fn backend() -> Backend {
    static CHOSEN: OnceLock<Backend> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        Backend::available()
            .find(|backend| agrees(*backend))
            .unwrap_or(Backend::Portable)
    })
}

/// Whether a backend does what the portable one does, around the limits of every register width.
fn agrees(backend: Backend) -> bool {
    let key: [u8; 32] = std::array::from_fn(|at| at as u8 ^ 0xa5);
    [16, 24, 32].into_iter().all(|len| {
        let cipher = |backend| {
            let key = key.get(..len).unwrap_or_default();
            AesGcm::with_backend(backend, key, [1, 2, 3, 4], true, Icv::Sixteen)
        };
        let (Ok(tested), Ok(portable)) = (cipher(backend), cipher(Backend::Portable)) else {
            return false;
        };
        let run = |packets: &mut [Vec<u8>], work: &dyn Fn(&mut [Packet<'_>])| {
            let mut burst: Vec<_> = packets
                .iter_mut()
                .zip(0xffff_ffff..)
                .map(|(octets, seq)| Packet::new(octets, seq))
                .collect();
            work(&mut burst);
            burst.iter().all(|packet| packet.ok)
        };
        let mut expected: Vec<Vec<u8>> = [0, 1, 20, 63, 64, 65, 130, 511, 512, 700, 2100, 4500]
            .map(|text| vec![0x5a; HEADER + text + 16])
            .to_vec();
        let mut packets = expected.clone();
        let sealed = run(&mut packets, &|burst| tested.seal(burst))
            && run(&mut expected, &|burst| portable.seal(burst));
        if !sealed || packets != expected {
            return false;
        }
        let opened = run(&mut packets, &|burst| tested.open(burst))
            && run(&mut expected, &|burst| portable.open(burst));
        // What opening leaves of the ICV does not count.
        for octets in packets.iter_mut().chain(&mut expected) {
            octets.truncate(octets.len() - 16);
        }
        opened && packets == expected
    })
}

/// AES-GCM with the key of one direction of an SA. Keys are wiped when it is dropped.
pub struct AesGcm {
    cipher: Cipher,
    salt: [u8; 4],
    esn: bool,
    icv: Icv,
}

enum Cipher {
    #[cfg(target_arch = "x86_64")]
    Vector(burst::Cipher),
    Portable(fallback::Cipher),
}

impl AesGcm {
    /// With [`backend`]. `key` is the AES key without the salt.
    pub fn new(key: &[u8], salt: [u8; 4], esn: bool, icv: Icv) -> Result<Self, KeyError> {
        Self::with_backend(backend(), key, salt, esn, icv)
    }

    /// With a backend of the caller's choice.
    pub fn with_backend(
        backend: Backend,
        key: &[u8],
        salt: [u8; 4],
        esn: bool,
        icv: Icv,
    ) -> Result<Self, KeyError> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return Err(KeyError::Length(key.len()));
        }
        let cipher = match backend {
            Backend::Portable => Cipher::Portable(fallback::Cipher::new(key, icv)?),
            #[cfg(target_arch = "x86_64")]
            vector => Cipher::Vector(
                burst::Cipher::new(vector, key).ok_or(KeyError::Unavailable(vector))?,
            ),
            #[cfg(not(target_arch = "x86_64"))]
            other => return Err(KeyError::Unavailable(other)),
        };
        Ok(Self {
            cipher,
            salt,
            esn,
            icv,
        })
    }

    /// Writes IV and ICV of each packet and encrypts it in place. The IV is the sequence number:
    /// no two packets under a key may have the same. `ok` is false for packets that are too short
    /// to be ESP, which stay as they are.
    pub fn seal(&self, packets: &mut [Packet<'_>]) {
        for packet in packets.iter_mut() {
            // RFC 4106 section 3.1: "The IV MUST be chosen by the encryptor in a manner that
            // ensures that the same IV value is used only once for a given key."
            if packet.octets.len() >= HEADER + self.icv.octets()
                && let Some(iv) = packet.octets.get_mut(8..HEADER)
            {
                iv.copy_from_slice(&packet.seq.to_be_bytes());
            }
        }
        match &self.cipher {
            #[cfg(target_arch = "x86_64")]
            Cipher::Vector(cipher) => cipher.seal(self, packets),
            Cipher::Portable(cipher) => cipher.seal(self, packets),
        }
    }

    /// Verifies the ICV of each packet, in constant time, and decrypts it in place. What is left of
    /// the ICV is unspecified. Where `ok` is
    /// false the packet is not genuine, and its encrypted part may have been overwritten with
    /// zeros: it never holds plaintext that was not authenticated.
    pub fn open(&self, packets: &mut [Packet<'_>]) {
        match &self.cipher {
            #[cfg(target_arch = "x86_64")]
            Cipher::Vector(cipher) => cipher.open(self, packets),
            Cipher::Portable(cipher) => cipher.open(self, packets),
        }
    }

    /// Nonce without counter, and additional data: RFC 4106 sections 4 and 5. With extended
    /// sequence numbers the additional data has all 64 bits of them, although the header carries
    /// only 32. The part of `aad` that counts is the length returned.
    fn inputs(&self, header: &[u8; HEADER], seq: u64) -> ([u8; 12], [u8; 16], usize) {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&header[8..]);
        let mut aad = [0; 16];
        if self.esn {
            aad[..4].copy_from_slice(&header[..4]);
            aad[4..12].copy_from_slice(&seq.to_be_bytes());
            (nonce, aad, 12)
        } else {
            aad[..8].copy_from_slice(&header[..8]);
            (nonce, aad, 8)
        }
    }
}
