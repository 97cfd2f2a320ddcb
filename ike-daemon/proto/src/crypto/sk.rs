//! Protection of the Encrypted payload (RFC 7296 section 3.14; RFC 5282, RFC 7634 for AEADs).
//!
//! Its body is IV | ciphertext | ICV. What is authenticated besides is the *prefix*: everything
//! from the first octet of the IKE header to the end of the payload's generic header (or fragment
//! header, RFC 7383), with all lengths already those of the finished message.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::array::Array;
use cbc::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    KeyInit, KeyIvInit, consts::U16,
};
use espada_common::sa::{Cipher, GcmIcv, Integrity, SecretBytes};
use espada_crypto::gcm;
use espada_crypto::plain::{Ccm, Ctr, TripleDes};
use ring::aead;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Random;
use super::prf::KeyedPrf;
use crate::proposal::Prf;

/// Octets of the longest ICV of an AEAD.
const AEAD_ICV: usize = 16;
/// Octets of an AES block.
const BLOCK: usize = 16;

/// Why a message cannot be protected, or its protection is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkError {
    /// There is no such cipher.
    #[error("there is no {0}: AES has keys of 128, 192 and 256 bits")]
    NoSuchKey(Cipher),
    /// A cipher that is no AEAD came without integrity algorithm, or an AEAD with one.
    #[error("{0} does not go with that integrity algorithm")]
    Combination(Cipher),
    /// The keys are not of the length that the suite asks for.
    #[error("{cipher} takes a key of {expected} octets, {got} were given")]
    KeyLength {
        /// The cipher.
        cipher: Cipher,
        /// Octets it takes.
        expected: usize,
        /// Octets there were.
        got: usize,
    },
    /// Every IV was used: the IKE SA must be replaced.
    #[error("all IVs of this IKE SA are used up; it must be rekeyed")]
    IvExhausted,
    /// The body is too short, or its ciphertext no whole number of blocks.
    #[error(
        "an Encrypted payload of {got} octets; {cipher} needs at least {least} in blocks of {block}"
    )]
    Length {
        /// The cipher.
        cipher: Cipher,
        /// Octets there were.
        got: usize,
        /// Fewest octets there can be.
        least: usize,
        /// Size of a block.
        block: usize,
    },
    /// The ICV is wrong: other keys, or the message was changed on its way.
    #[error(
        "the ICV of the Encrypted payload does not verify: the peer has other keys, or the message was altered"
    )]
    Authentication,
    /// The pad length points before the plaintext.
    #[error("the pad length of the Encrypted payload is larger than its plaintext")]
    Padding,
}

/// Protects one direction of an IKE SA: SK_e and SK_a of the side that sends.
pub struct IkeCipher {
    cipher: Cipher,
    kind: Kind,
}

enum Kind {
    Aead {
        key: Aead,
        salt: Zeroizing<Vec<u8>>,
        next_iv: Option<u64>,
    },
    Split {
        cipher: Split,
        mac: KeyedPrf,
        icv_len: usize,
        /// Where IVs are counted and not random.
        next_iv: Option<u64>,
    },
}

/// A cipher beside an integrity algorithm.
enum Split {
    Cbc(SecretBytes),
    TripleDes(TripleDes),
    Ctr(Box<Ctr>),
}

impl Split {
    /// `None` where the key is none of the cipher's.
    fn new(cipher: Cipher, key: &SecretBytes) -> Option<Self> {
        let octets = key.expose();
        match cipher {
            Cipher::AesCbc(128 | 192 | 256) => Some(Self::Cbc(key.clone())),
            Cipher::TripleDes => Some(Self::TripleDes(TripleDes::new(octets.try_into().ok()?))),
            Cipher::AesCtr(128 | 192 | 256) => {
                let (key, nonce) = octets.split_last_chunk()?;
                Ctr::new(key, *nonce).map(|ctr| Self::Ctr(Box::new(ctr)))
            }
            _ => None,
        }
    }

    /// What the plaintext is padded to.
    fn block(&self) -> usize {
        match self {
            Self::Cbc(_) => BLOCK,
            Self::TripleDes(_) => 8,
            // "requires no padding" (RFC 5930 section 2.4).
            Self::Ctr(_) => 1,
        }
    }

    fn encrypt(&self, algorithm: Cipher, iv: &[u8], text: &mut [u8]) -> Result<(), SkError> {
        let short = short(iv);
        match (self, short) {
            (Self::Cbc(key), _) => return cbc_encrypt(algorithm, key.expose(), iv, text),
            (Self::TripleDes(cipher), Some(iv)) => cipher.encrypt(iv, text),
            (Self::Ctr(cipher), Some(iv)) => {
                cipher.apply(iv, text);
                Some(())
            }
            (_, None) => None,
        }
        .ok_or(SkError::NoSuchKey(algorithm))
    }

    fn decrypt(&self, algorithm: Cipher, iv: &[u8], text: &mut [u8]) -> Result<(), SkError> {
        let short = short(iv);
        match (self, short) {
            (Self::Cbc(key), _) => return cbc_decrypt(algorithm, key.expose(), iv, text),
            (Self::TripleDes(cipher), Some(iv)) => cipher.decrypt(iv, text),
            (Self::Ctr(cipher), Some(iv)) => {
                cipher.apply(iv, text);
                Some(())
            }
            (_, None) => None,
        }
        .ok_or(SkError::NoSuchKey(algorithm))
    }
}

/// An IV of 8 octets.
fn short(iv: &[u8]) -> Option<&[u8; 8]> {
    iv.try_into().ok()
}

enum Aead {
    Ring(Box<aead::LessSafeKey>),
    /// What ring does not have: AES-192-GCM and short ICVs.
    Gcm(Box<gcm::Single>),
    Ccm(Ccm),
}

impl Aead {
    /// `None` when the key has another length than the cipher's.
    fn new(cipher: Cipher, key: &[u8]) -> Option<Self> {
        let algorithm = match cipher {
            Cipher::AesGcm(128, GcmIcv::Sixteen) => &aead::AES_128_GCM,
            Cipher::AesGcm(256, GcmIcv::Sixteen) => &aead::AES_256_GCM,
            Cipher::AesGcm(_, icv) => {
                return Some(Self::Gcm(Box::new(gcm::Single::new(key, icv).ok()?)));
            }
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Cipher::AesCcm(_, icv) => return Ccm::new(key, icv).map(Self::Ccm),
            _ => return None,
        };
        let key = aead::UnboundKey::new(algorithm, key).ok()?;
        Some(Self::Ring(Box::new(aead::LessSafeKey::new(key))))
    }

    /// Encrypts in place and writes the ICV, all that there is room for.
    fn seal(&self, parts: Parts<'_>, aad: &[u8], text: &mut [u8], icv: &mut [u8]) -> Option<()> {
        match self {
            Self::Ring(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(parts.nonce()?);
                let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text);
                icv.copy_from_slice(tag.ok()?.as_ref().get(..icv.len())?);
                Some(())
            }
            Self::Gcm(cipher) => cipher.seal(&parts.nonce()?, aad, text, icv),
            Self::Ccm(cipher) => cipher.seal(&parts.nonce()?, aad, text, icv),
        }
    }

    /// Decrypts in place what has the right ICV.
    fn open(&self, parts: Parts<'_>, aad: &[u8], text: &mut [u8], icv: &[u8]) -> Option<()> {
        match self {
            Self::Ring(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(parts.nonce()?);
                let (aad, tag) = (aead::Aad::from(aad), icv.try_into().ok()?);
                key.open_in_place_separate_tag(nonce, aad, tag, text, 0..)
                    .ok()
                    .map(|_| ())
            }
            Self::Gcm(cipher) => cipher.open(&parts.nonce()?, aad, text, icv),
            Self::Ccm(cipher) => cipher.open(&parts.nonce()?, aad, text, icv),
        }
    }
}

impl IkeCipher {
    /// For the suite's `cipher` and `integrity` with SK_e and SK_a of one direction.
    pub fn new(
        cipher: Cipher,
        integrity: Option<Integrity>,
        encryption_key: &SecretBytes,
        integrity_key: &SecretBytes,
    ) -> Result<Self, SkError> {
        let key = encryption_key.expose();
        let expected = cipher.keymat_len();
        if key.len() != expected {
            return Err(SkError::KeyLength {
                cipher,
                expected,
                got: key.len(),
            });
        }
        let kind = match (cipher, integrity) {
            _ if !cipher.fits_ike() => return Err(SkError::Combination(cipher)),
            (
                Cipher::AesGcm(128 | 192 | 256, _)
                | Cipher::AesCcm(128 | 192 | 256, _)
                | Cipher::ChaCha20Poly1305,
                None,
            ) => aead_kind(cipher, key)?,
            (
                Cipher::AesCbc(128 | 192 | 256)
                | Cipher::AesCtr(128 | 192 | 256)
                | Cipher::TripleDes,
                Some(integrity),
            ) => {
                let expected = integrity.key_len();
                let got = integrity_key.expose().len();
                if got != expected {
                    return Err(SkError::KeyLength {
                        cipher,
                        expected,
                        got,
                    });
                }
                let split = Split::new(cipher, encryption_key);
                Kind::Split {
                    cipher: split.ok_or(SkError::NoSuchKey(cipher))?,
                    // The integrity algorithms are the same MACs as the PRFs, truncated.
                    mac: KeyedPrf::new(Prf::of_integrity(integrity), integrity_key.expose()),
                    icv_len: integrity.icv_len(),
                    next_iv: Some(0),
                }
            }
            (
                Cipher::AesGcm(bits, _)
                | Cipher::AesCcm(bits, _)
                | Cipher::AesCbc(bits)
                | Cipher::AesCtr(bits),
                _,
            ) if !matches!(bits, 128 | 192 | 256) => return Err(SkError::NoSuchKey(cipher)),
            _ => return Err(SkError::Combination(cipher)),
        };
        Ok(Self { cipher, kind })
    }

    /// The IV of the next message where they are counted; `None` when all are used up, and 0 where
    /// IVs are random.
    pub(crate) fn next_iv(&self) -> Option<u64> {
        match &self.kind {
            Kind::Aead { next_iv, .. } | Kind::Split { next_iv, .. } => *next_iv,
        }
    }

    /// Goes on where another with the same keys has stopped.
    pub(crate) fn resume(&mut self, iv: Option<u64>) {
        match &mut self.kind {
            Kind::Aead { next_iv, .. } | Kind::Split { next_iv, .. } => *next_iv = iv,
        }
    }

    /// Octets of the IV.
    pub fn iv_len(&self) -> usize {
        self.cipher.iv_len()
    }

    /// Octets of the ICV.
    pub fn icv_len(&self) -> usize {
        match &self.kind {
            Kind::Aead { .. } => self.cipher.icv_len(),
            Kind::Split { icv_len, .. } => *icv_len,
        }
    }

    /// Octets of ciphertext: the plaintext, padding and the pad length octet. AEADs take no padding.
    fn ciphertext_len(&self, plaintext_len: usize) -> usize {
        match &self.kind {
            Kind::Aead { .. } => plaintext_len.saturating_add(1),
            Kind::Split { cipher, .. } => plaintext_len
                .saturating_add(1)
                .checked_next_multiple_of(cipher.block())
                .unwrap_or(usize::MAX),
        }
    }

    /// Octets of the whole body for so much plaintext; the prefix needs it before sealing.
    pub fn sealed_len(&self, plaintext_len: usize) -> usize {
        self.ciphertext_len(plaintext_len)
            .saturating_add(self.iv_len() + self.icv_len())
    }

    /// Most octets of plaintext in a body of at most `body_len` octets; for fragmentation.
    pub fn plaintext_capacity(&self, body_len: usize) -> usize {
        let ciphertext = body_len.saturating_sub(self.iv_len() + self.icv_len());
        match &self.kind {
            Kind::Aead { .. } => ciphertext.saturating_sub(1),
            Kind::Split { cipher, .. } => {
                (ciphertext - ciphertext % cipher.block()).saturating_sub(1)
            }
        }
    }

    /// The body IV | ciphertext | ICV, `sealed_len` octets, that goes after `prefix`.
    pub fn seal(
        &mut self,
        prefix: &[u8],
        plaintext: &[u8],
        random: &mut impl Random,
    ) -> Result<Vec<u8>, SkError> {
        let iv_len = self.iv_len();
        let icv_len = self.icv_len();
        let ciphertext_len = self.ciphertext_len(plaintext.len());
        // Reserved at once: growth would leave plaintext behind in freed memory.
        let mut body = Vec::with_capacity(self.sealed_len(plaintext.len()));
        body.resize(iv_len, 0);
        body.extend_from_slice(plaintext);
        let pad_len = ciphertext_len.saturating_sub(plaintext.len() + 1);
        body.resize(iv_len + plaintext.len() + pad_len, 0);
        body.push(pad_len as u8);

        let (iv, ciphertext) = body.split_at_mut(iv_len);
        match &mut self.kind {
            Kind::Aead { key, salt, next_iv } => {
                let counter = next_iv.ok_or(SkError::IvExhausted)?;
                *next_iv = counter.checked_add(1);
                iv.copy_from_slice(&counter.to_be_bytes());
                let parts = Parts { salt, iv };
                let mut icv = [0; AEAD_ICV];
                let icv = icv.get_mut(..icv_len).unwrap_or_default();
                key.seal(parts, prefix, ciphertext, icv)
                    .ok_or(SkError::IvExhausted)?;
                body.extend_from_slice(icv);
            }
            Kind::Split {
                cipher,
                mac,
                icv_len,
                next_iv,
            } => {
                if let Split::Ctr(_) = cipher {
                    let counter = next_iv.ok_or(SkError::IvExhausted)?;
                    *next_iv = counter.checked_add(1);
                    iv.copy_from_slice(&counter.to_be_bytes());
                } else {
                    // "Senders MUST select a new unpredictable IV for every message" (section 3.14).
                    random.fill(iv);
                }
                cipher.encrypt(self.cipher, iv, ciphertext)?;
                let icv = icv(mac, prefix, &body);
                body.extend_from_slice(icv.get(..*icv_len).unwrap_or_default());
            }
        }
        Ok(body)
    }

    /// The plaintext, padding removed, of a body that stands after `prefix` at the message's end.
    pub fn open(&self, prefix: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, SkError> {
        let least = self.sealed_len(0);
        let block = match &self.kind {
            Kind::Split { cipher, .. } => cipher.block(),
            Kind::Aead { .. } => 1,
        };
        let length = SkError::Length {
            cipher: self.cipher,
            got: body.len(),
            least,
            block,
        };
        if body.len() < least || !(body.len() - least).is_multiple_of(block) {
            return Err(length);
        }
        let (iv, rest) = body
            .split_at_checked(self.iv_len())
            .ok_or_else(|| length.clone())?;

        let mut plaintext = match &self.kind {
            Kind::Aead { key, salt, .. } => {
                let ciphertext = rest.len().checked_sub(self.icv_len());
                let (ciphertext, icv) = ciphertext
                    .and_then(|ciphertext| rest.split_at_checked(ciphertext))
                    .ok_or(length)?;
                let mut buffer = Zeroizing::new(ciphertext.to_vec());
                key.open(Parts { salt, iv }, prefix, &mut buffer, icv)
                    .ok_or(SkError::Authentication)?;
                buffer
            }
            Kind::Split {
                cipher,
                mac,
                icv_len,
                ..
            } => {
                let authentic = body
                    .len()
                    .checked_sub(*icv_len)
                    .ok_or_else(|| length.clone())?;
                let (authentic, received) = body.split_at_checked(authentic).ok_or(length)?;
                let icv = icv(mac, prefix, authentic);
                let expected = icv.get(..*icv_len).unwrap_or_default();
                if !bool::from(expected.ct_eq(received)) {
                    return Err(SkError::Authentication);
                }
                let ciphertext = authentic.get(iv.len()..).unwrap_or_default();
                let mut buffer = Zeroizing::new(ciphertext.to_vec());
                cipher.decrypt(self.cipher, iv, &mut buffer)?;
                buffer
            }
        };

        // "… but the recipient MUST accept any length that results in proper alignment", and the
        // padding "MAY contain any value chosen by the sender" (section 3.14).
        let pad_len = plaintext.pop().ok_or(SkError::Padding)?;
        let end = plaintext
            .len()
            .checked_sub(usize::from(pad_len))
            .ok_or(SkError::Padding)?;
        plaintext.truncate(end);
        Ok(plaintext)
    }
}

impl fmt::Debug for IkeCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IkeCipher")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}

fn aead_kind(cipher: Cipher, material: &[u8]) -> Result<Kind, SkError> {
    let parts = material
        .len()
        .checked_sub(cipher.salt_len())
        .and_then(|at| material.split_at_checked(at))
        .and_then(|(key, salt)| Some((Aead::new(cipher, key)?, salt)));
    let (key, salt) = parts.ok_or(SkError::KeyLength {
        cipher,
        expected: cipher.keymat_len(),
        got: material.len(),
    })?;
    Ok(Kind::Aead {
        key,
        salt: Zeroizing::new(salt.to_vec()),
        // Counted from 0: the keys are of this direction of this SA alone.
        next_iv: Some(0),
    })
}

/// What a nonce is made of.
struct Parts<'a> {
    salt: &'a [u8],
    iv: &'a [u8],
}

impl Parts<'_> {
    /// Salt | IV (RFC 5282 section 4, RFC 7634 section 2).
    fn nonce<const N: usize>(&self) -> Option<[u8; N]> {
        let mut nonce = [0; N];
        let (head, tail) = nonce.split_at_mut_checked(self.salt.len())?;
        head.copy_from_slice(self.salt);
        (tail.len() == self.iv.len()).then(|| tail.copy_from_slice(self.iv))?;
        Some(nonce)
    }
}

/// HMAC over the whole message so far, not yet truncated.
fn icv(mac: &KeyedPrf, prefix: &[u8], authentic: &[u8]) -> Vec<u8> {
    let mut icv = Vec::with_capacity(64);
    mac.append(&[prefix, authentic], &mut icv);
    icv
}

fn cbc_encrypt(cipher: Cipher, key: &[u8], iv: &[u8], data: &mut [u8]) -> Result<(), SkError> {
    fn run<C>(key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()>
    where
        C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
    {
        let (blocks, _) = Array::slice_as_chunks_mut(data);
        cbc::Encryptor::<C>::new_from_slices(key, iv)
            .ok()?
            .encrypt_blocks(blocks);
        Some(())
    }
    match key.len() {
        16 => run::<Aes128>(key, iv, data),
        24 => run::<Aes192>(key, iv, data),
        _ => run::<Aes256>(key, iv, data),
    }
    .ok_or(SkError::KeyLength {
        cipher,
        expected: cipher.keymat_len(),
        got: key.len(),
    })
}

fn cbc_decrypt(cipher: Cipher, key: &[u8], iv: &[u8], data: &mut [u8]) -> Result<(), SkError> {
    fn run<C>(key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()>
    where
        C: BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
    {
        let (blocks, _) = Array::slice_as_chunks_mut(data);
        cbc::Decryptor::<C>::new_from_slices(key, iv)
            .ok()?
            .decrypt_blocks(blocks);
        Some(())
    }
    match key.len() {
        16 => run::<Aes128>(key, iv, data),
        24 => run::<Aes192>(key, iv, data),
        _ => run::<Aes256>(key, iv, data),
    }
    .ok_or(SkError::KeyLength {
        cipher,
        expected: cipher.keymat_len(),
        got: key.len(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::test_util::{TestRandom, hex};

    const SUITES: [(Cipher, Option<Integrity>); 18] = [
        (Cipher::AesGcm(128, GcmIcv::Sixteen), None),
        (Cipher::AesGcm(256, GcmIcv::Sixteen), None),
        (Cipher::ChaCha20Poly1305, None),
        (Cipher::AesCbc(128), Some(Integrity::HmacSha1_96)),
        (Cipher::AesCbc(192), Some(Integrity::HmacSha256_128)),
        (Cipher::AesCbc(256), Some(Integrity::HmacSha384_192)),
        (Cipher::AesCbc(256), Some(Integrity::HmacSha512_256)),
        (Cipher::AesGcm(192, GcmIcv::Sixteen), None),
        (Cipher::AesGcm(128, GcmIcv::Eight), None),
        (Cipher::AesGcm(192, GcmIcv::Twelve), None),
        (Cipher::AesGcm(256, GcmIcv::Twelve), None),
        (Cipher::AesCbc(128), Some(Integrity::AesXcbc96)),
        (Cipher::AesCbc(256), Some(Integrity::AesCmac96)),
        (Cipher::AesCtr(192), Some(Integrity::HmacSha256_128)),
        (Cipher::AesCtr(256), Some(Integrity::AesXcbc96)),
        (Cipher::TripleDes, Some(Integrity::HmacSha1_96)),
        (Cipher::AesCcm(128, GcmIcv::Eight), None),
        (Cipher::AesCcm(256, GcmIcv::Sixteen), None),
    ];

    fn counting(from: u8, len: usize) -> SecretBytes {
        SecretBytes::new((from..).take(len).collect())
    }

    fn cipher(cipher: Cipher, integrity: Option<Integrity>) -> IkeCipher {
        let key = counting(0, cipher.keymat_len());
        let integrity_key = counting(128, integrity.map_or(0, Integrity::key_len));
        IkeCipher::new(cipher, integrity, &key, &integrity_key).unwrap()
    }

    struct Constant(u8);

    impl Random for Constant {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.fill(self.0);
        }
    }

    /// Made with Python's `cryptography` 48 and `hmac`: keys 00 01 02 … (salt last) and 80 81 82 …,
    /// prefix c0 … df, AEAD IV 0 and CBC IV 5a…5a, padding of zeros.
    #[test]
    fn bodies_equal_those_of_python_cryptography() {
        let cases = [
            (
                Cipher::AesGcm(128, GcmIcv::Sixteen),
                None,
                "000000000000000015f11d5c3f1952c7a5f6b840960e81a6df1e4ded40a0018c
                 aed4cc554fcf4cac667a34f263",
            ),
            (
                Cipher::AesGcm(256, GcmIcv::Sixteen),
                None,
                "0000000000000000ec694821ca5fbc4e89747507a86b926f21f5dc4ec890534e
                 6215c0ff30bed0d104dd9537f2",
            ),
            (
                Cipher::AesGcm(192, GcmIcv::Sixteen),
                None,
                "0000000000000000904209f3b7466cbc1ce9151423d1594989b21f0961d725e3
                 83c7f3a59c981d77a0b93100f9",
            ),
            (
                Cipher::AesGcm(128, GcmIcv::Eight),
                None,
                "000000000000000015f11d5c3f1952c7a5f6b840960e81a6df1e4ded40a0018c
                 aed4cc554f",
            ),
            (
                Cipher::AesGcm(256, GcmIcv::Twelve),
                None,
                "0000000000000000ec694821ca5fbc4e89747507a86b926f21f5dc4ec890534e
                 6215c0ff30bed0d104",
            ),
            (
                Cipher::ChaCha20Poly1305,
                None,
                "00000000000000007d587f71cbd3ed46733cb6888773dbb3a582b069613cb3d1
                 c76a5ba1a38139e2f261378dee",
            ),
            (
                Cipher::AesCbc(128),
                Some(Integrity::HmacSha1_96),
                "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5ad2b36fbf90b95d0b1b0d6ff49a2dd11d
                 b996cf101fda7bd18a0de29150e4eb71a3b2529eae1c57e92372816b",
            ),
            (
                Cipher::AesCbc(192),
                Some(Integrity::HmacSha256_128),
                "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5aeed787337d8b4809d2b0e891697a0f4a
                 73f24c3b41f9a9a3b836e2eea2bf967c2a38d587ce21d996dfc5bd35af5f90ee",
            ),
            (
                Cipher::AesCbc(256),
                Some(Integrity::HmacSha384_192),
                "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5ab9ebf5bbcce6b7dcc06630ae19f95b61
                 6e1e98496025b09ed23f204ee277970dfd4b4ce8aa3bab849294590f31d01e0e
                 9545603603b1a71f",
            ),
            (
                Cipher::AesCbc(256),
                Some(Integrity::HmacSha512_256),
                "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5ab9ebf5bbcce6b7dcc06630ae19f95b61
                 6e1e98496025b09ed23f204ee277970dda1f9dfd9164d0a53516eb7ce6598859
                 c7a74dbef68ac4c5fcd909842c306b27",
            ),
        ];
        let prefix: Vec<u8> = (0xc0..0xe0).collect();
        for (algorithm, integrity, body) in cases {
            let mut cipher = cipher(algorithm, integrity);
            let sealed = cipher
                .seal(&prefix, b"twenty octets inside", &mut Constant(0x5a))
                .unwrap();
            assert_eq!(sealed, hex(body), "{algorithm}");
            assert_eq!(
                *cipher.open(&prefix, &sealed).unwrap(),
                b"twenty octets inside"
            );
        }
    }

    #[test]
    fn every_octet_is_authenticated() {
        let prefix = [7; 32];
        for (algorithm, integrity) in SUITES {
            let mut cipher = cipher(algorithm, integrity);
            let body = cipher
                .seal(&prefix, b"payloads", &mut TestRandom::new(1))
                .unwrap();
            for index in 0..body.len() {
                let mut altered = body.clone();
                altered[index] ^= 1;
                assert_eq!(
                    cipher.open(&prefix, &altered),
                    Err(SkError::Authentication),
                    "{index}"
                );
            }
            for index in 0..prefix.len() {
                let mut altered = prefix;
                altered[index] ^= 0x80;
                assert_eq!(cipher.open(&altered, &body), Err(SkError::Authentication));
            }
        }
    }

    #[test]
    fn no_iv_is_used_twice() {
        for (algorithm, integrity) in SUITES {
            let mut cipher = cipher(algorithm, integrity);
            let mut random = TestRandom::new(2);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..100 {
                let body = cipher.seal(b"", b"x", &mut random).unwrap();
                assert!(seen.insert(body[..cipher.iv_len()].to_vec()));
            }
        }
        let mut cipher = cipher(Cipher::ChaCha20Poly1305, None);
        if let Kind::Aead { next_iv, .. } = &mut cipher.kind {
            *next_iv = Some(u64::MAX);
        }
        assert!(cipher.seal(b"", b"x", &mut TestRandom::new(3)).is_ok());
        let exhausted = cipher.seal(b"", b"x", &mut TestRandom::new(3));
        assert_eq!(exhausted, Err(SkError::IvExhausted));
    }

    /// Peers may pad as much as the octet can say; more than there is must not be believed.
    #[test]
    fn padding_of_other_senders() {
        let (algorithm, integrity) = SUITES[3];
        let cipher = cipher(algorithm, integrity);
        let seal_raw = |padded: &[u8]| {
            let Kind::Split {
                cipher: split,
                mac,
                icv_len,
                ..
            } = &cipher.kind
            else {
                unreachable!()
            };
            let mut body = [&[9; 16][..], padded].concat();
            let (iv, data) = body.split_at_mut(16);
            split.encrypt(algorithm, iv, data).unwrap();
            let icv = icv(mac, b"prefix", &body);
            body.extend_from_slice(&icv[..*icv_len]);
            body
        };
        let mut padded = b"hi".to_vec();
        padded.extend((0..45).map(|value| value ^ 0x5a));
        padded.push(45);
        assert_eq!(*cipher.open(b"prefix", &seal_raw(&padded)).unwrap(), b"hi");
        assert_eq!(
            *cipher
                .open(b"prefix", &seal_raw(&[[15; 16]].concat()))
                .unwrap(),
            b""
        );
        assert_eq!(
            cipher.open(b"prefix", &seal_raw(&[16; 16])),
            Err(SkError::Padding)
        );
        assert_eq!(
            cipher.open(b"prefix", &seal_raw(&[255; 32])),
            Err(SkError::Padding)
        );
    }

    #[test]
    fn keys_and_suites_are_checked() {
        let key = |len| SecretBytes::new(vec![1; len]);
        let new = |algorithm, integrity, encryption, authentication| {
            IkeCipher::new(algorithm, integrity, &key(encryption), &key(authentication))
                .unwrap_err()
        };
        assert_eq!(
            new(Cipher::AesGcm(152, GcmIcv::Sixteen), None, 23, 0),
            SkError::NoSuchKey(Cipher::AesGcm(152, GcmIcv::Sixteen))
        );
        let aead = Cipher::ChaCha20Poly1305;
        assert_eq!(
            new(aead, None, 32, 0),
            SkError::KeyLength {
                cipher: aead,
                expected: 36,
                got: 32
            }
        );
        let sha256 = Some(Integrity::HmacSha256_128);
        assert_eq!(new(aead, sha256, 36, 32), SkError::Combination(aead));
        let cbc = Cipher::AesCbc(256);
        assert_eq!(new(cbc, None, 32, 0), SkError::Combination(cbc));
        assert_eq!(
            new(cbc, sha256, 32, 20),
            SkError::KeyLength {
                cipher: cbc,
                expected: 32,
                got: 20
            }
        );
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(suite in 0..SUITES.len(), plaintext: Vec<u8>, prefix: Vec<u8>) {
            let (algorithm, integrity) = SUITES[suite];
            let mut cipher = cipher(algorithm, integrity);
            let body = cipher.seal(&prefix, &plaintext, &mut TestRandom::new(4)).unwrap();
            prop_assert_eq!(body.len(), cipher.sealed_len(plaintext.len()));
            prop_assert!(cipher.plaintext_capacity(body.len()) >= plaintext.len());
            let capacity = cipher.plaintext_capacity(body.len());
            prop_assert_eq!(cipher.sealed_len(capacity), body.len());
            prop_assert_eq!(&*cipher.open(&prefix, &body).unwrap(), &plaintext);
        }

        #[test]
        fn noise_never_opens(suite in 0..SUITES.len(), body: Vec<u8>, prefix: Vec<u8>) {
            let (algorithm, integrity) = SUITES[suite];
            prop_assert!(cipher(algorithm, integrity).open(&prefix, &body).is_err());
        }
    }
}
