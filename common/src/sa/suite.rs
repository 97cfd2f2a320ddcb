//! Algorithms of an SA, by the names they have in proposals.

use std::fmt;

/// Encryption of an ESP (or IKE) SA, with the IANA transform it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-GCM (RFC 4106, RFC 5282). Key length in bits: 128, 192 or 256.
    AesGcm(u16, GcmIcv),
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602). Key length in bits: 128, 192 or 256.
    AesCbc(u16),
    /// AES-CCM (RFC 4309, RFC 5282). Key length in bits: 128, 192 or 256.
    AesCcm(u16, GcmIcv),
    /// AES-CTR (RFC 3686, RFC 5930). Key length in bits: 128, 192 or 256.
    AesCtr(u16),
    /// AES-GMAC (RFC 4543), which authenticates and does not encrypt. Key length in bits: 128, 192
    /// or 256.
    AesGmac(u16),
    /// 3DES-CBC (RFC 2451). Insecure: blocks of 64 bits give plaintext away after some gigabytes.
    TripleDes,
    /// No encryption (RFC 2410).
    Null,
}

/// Octets of an ICV of AES-GCM and AES-CCM, each with a transform of its own (RFC 4106 section 8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GcmIcv {
    /// 8 octets.
    Eight = 8,
    /// 12 octets.
    Twelve = 12,
    /// 16 octets, the whole tag.
    Sixteen = 16,
}

impl GcmIcv {
    /// Octets.
    pub const fn octets(self) -> usize {
        self as usize
    }
}

impl Cipher {
    /// Every cipher, with every key length and ICV.
    pub fn all() -> impl Iterator<Item = Self> {
        const BITS: [u16; 3] = [128, 192, 256];
        const ICVS: [GcmIcv; 3] = [GcmIcv::Sixteen, GcmIcv::Twelve, GcmIcv::Eight];
        let gcm = ICVS
            .into_iter()
            .flat_map(|icv| BITS.map(|bits| Self::AesGcm(bits, icv)));
        gcm.chain([Self::ChaCha20Poly1305])
            .chain(BITS.map(Self::AesCbc))
            .chain(
                ICVS.into_iter()
                    .flat_map(|icv| BITS.map(|bits| Self::AesCcm(bits, icv))),
            )
            .chain(BITS.map(Self::AesCtr))
            .chain(BITS.map(Self::AesGmac))
            .chain([Self::TripleDes, Self::Null])
    }

    /// Whether it is accepted only with `insecure = true`: it hides too little, or nothing.
    pub const fn is_insecure(self) -> bool {
        matches!(self, Self::AesGmac(_) | Self::TripleDes | Self::Null)
    }

    /// Whether it can protect IKE messages as well as ESP.
    pub const fn fits_ike(self) -> bool {
        !matches!(self, Self::AesGmac(_) | Self::Null)
    }

    /// True for combined-mode ciphers, which take no separate integrity algorithm.
    pub const fn is_aead(self) -> bool {
        matches!(
            self,
            Self::AesGcm(..) | Self::AesCcm(..) | Self::AesGmac(_) | Self::ChaCha20Poly1305
        )
    }

    /// Octets of key material taken from KEYMAT, salt included.
    pub const fn keymat_len(self) -> usize {
        match self {
            Self::AesGcm(bits, _) | Self::AesGmac(bits) | Self::AesCtr(bits) => {
                bits as usize / 8 + 4
            }
            Self::AesCcm(bits, _) => bits as usize / 8 + 3,
            Self::ChaCha20Poly1305 => 32 + 4,
            Self::AesCbc(bits) => bits as usize / 8,
            Self::TripleDes => 24,
            Self::Null => 0,
        }
    }

    /// Octets of salt (of AES-CTR the nonce) at the end of the key material.
    pub const fn salt_len(self) -> usize {
        match self {
            Self::AesCcm(..) => 3,
            Self::AesCbc(_) | Self::TripleDes | Self::Null => 0,
            _ => 4,
        }
    }

    /// Octets of IV in every packet.
    pub const fn iv_len(self) -> usize {
        match self {
            Self::AesCbc(_) => 16,
            Self::Null => 0,
            _ => 8,
        }
    }

    /// Octets of ICV that it makes itself, 0 where that takes an integrity algorithm.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::AesGcm(_, icv) | Self::AesCcm(_, icv) => icv.octets(),
            Self::ChaCha20Poly1305 | Self::AesGmac(_) => 16,
            Self::AesCbc(_) | Self::AesCtr(_) | Self::TripleDes | Self::Null => 0,
        }
    }

    /// What the plaintext (trailer included) is padded to, in octets. ESP itself asks for 4.
    pub const fn block_len(self) -> usize {
        match self {
            Self::AesCbc(_) => 16,
            Self::TripleDes => 8,
            _ => 4,
        }
    }
}

/// Integrity algorithm of a suite whose cipher is not an AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// HMAC-SHA1-96 (RFC 2404).
    HmacSha1_96,
    /// HMAC-SHA2-256-128 (RFC 4868).
    HmacSha256_128,
    /// HMAC-SHA2-384-192 (RFC 4868).
    HmacSha384_192,
    /// HMAC-SHA2-512-256 (RFC 4868).
    HmacSha512_256,
    /// AES-XCBC-MAC-96 (RFC 3566).
    AesXcbc96,
    /// AES-CMAC-96 (RFC 4494).
    AesCmac96,
}

impl Integrity {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::HmacSha1_96,
        Self::HmacSha256_128,
        Self::HmacSha384_192,
        Self::HmacSha512_256,
        Self::AesXcbc96,
        Self::AesCmac96,
    ];

    /// Key octets.
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
            Self::AesXcbc96 | Self::AesCmac96 => 16,
        }
    }

    /// ICV octets.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 | Self::AesXcbc96 | Self::AesCmac96 => 12,
            Self::HmacSha256_128 => 16,
            Self::HmacSha384_192 => 24,
            Self::HmacSha512_256 => 32,
        }
    }
}

/// What an ESP SA does to a packet. `integrity` is `None` exactly for AEAD ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EspSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Integrity, for ciphers that are not AEADs.
    pub integrity: Option<Integrity>,
    /// 64-bit extended sequence numbers (RFC 4303 section 2.2.1).
    pub esn: bool,
}

impl EspSuite {
    /// Every suite, without extended sequence numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        Cipher::all().flat_map(|cipher| {
            let alone = cipher.is_aead().then_some(None);
            let paired = Integrity::ALL.into_iter().map(Some);
            alone
                .into_iter()
                .chain(paired.filter(move |_| !cipher.is_aead()))
                .map(move |integrity| Self {
                    cipher,
                    integrity,
                    esn: false,
                })
        })
    }

    /// ICV octets at the end of each packet.
    pub const fn icv_len(&self) -> usize {
        match self.integrity {
            Some(integrity) => integrity.icv_len(),
            None => self.cipher.icv_len(),
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AesGcm(bits, icv) => write!(f, "aes{bits}gcm{}", icv.octets()),
            Self::ChaCha20Poly1305 => f.write_str("chacha20poly1305"),
            Self::AesCbc(bits) => write!(f, "aes{bits}"),
            Self::AesCcm(bits, icv) => write!(f, "aes{bits}ccm{}", icv.octets()),
            Self::AesCtr(bits) => write!(f, "aes{bits}ctr"),
            Self::AesGmac(bits) => write!(f, "aes{bits}gmac"),
            Self::TripleDes => f.write_str("3des"),
            Self::Null => f.write_str("null"),
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha1_96 => "sha1",
            Self::HmacSha256_128 => "sha256",
            Self::HmacSha384_192 => "sha384",
            Self::HmacSha512_256 => "sha512",
            Self::AesXcbc96 => "aesxcbc",
            Self::AesCmac96 => "aescmac",
        })
    }
}

/// strongSwan's proposal keywords: `aes256gcm16`, `aes128gcm8`, `aes256-sha256`, `…-esn`.
impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{integrity}")?;
        }
        if self.esn {
            f.write_str("-esn")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_names_of_their_own_and_add_up() {
        let names: std::collections::HashSet<_> =
            EspSuite::all().map(|suite| suite.to_string()).collect();
        assert_eq!((names.len(), EspSuite::all().count()), (70, 70));
        for name in ["aes192gcm16", "aes256gcm8", "aes128gcm12", "aes192-sha384"] {
            assert!(names.contains(name), "{name}");
        }
        let short = EspSuite::all().find(|suite| suite.to_string() == "aes192gcm12");
        let short = short.unwrap();
        assert_eq!((short.icv_len(), short.cipher.keymat_len()), (12, 28));
        assert!(EspSuite::all().all(|suite| suite.cipher.is_aead() == suite.integrity.is_none()));
    }
}
