//! Transforms by number and name (IANA "IKEv2 Parameters").

use std::fmt;

use espada_common::sa::{Cipher, GcmIcv, Integrity};

use super::{DhGroup, Esn, Prf};

/// Transform type (RFC 7296 section 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransformType {
    /// Type 1, ENCR.
    Encryption,
    /// Type 2, PRF.
    Prf,
    /// Type 3, INTEG.
    Integrity,
    /// Type 4, KE.
    KeyExchange,
    /// Type 5, ESN.
    SequenceNumbers,
    /// Types 6 to 12, ADDKE1 to ADDKE7 (RFC 9370).
    Additional(u8),
    /// A type we do not understand: its proposal cannot be chosen (RFC 7296 section 3.3.6).
    Other(u8),
}

impl TransformType {
    /// Its number.
    pub const fn id(self) -> u8 {
        match self {
            Self::Encryption => 1,
            Self::Prf => 2,
            Self::Integrity => 3,
            Self::KeyExchange => 4,
            Self::SequenceNumbers => 5,
            Self::Additional(number) => number + 5,
            Self::Other(id) => id,
        }
    }

    /// Whether it names a method of key exchange.
    pub const fn is_key_exchange(self) -> bool {
        matches!(self, Self::KeyExchange | Self::Additional(_))
    }

    /// The type with this number.
    pub const fn from_id(id: u8) -> Self {
        match id {
            1 => Self::Encryption,
            2 => Self::Prf,
            3 => Self::Integrity,
            4 => Self::KeyExchange,
            5 => Self::SequenceNumbers,
            6..=12 => Self::Additional(id - 5),
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for TransformType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encryption => f.write_str("encryption"),
            Self::Prf => f.write_str("PRF"),
            Self::Integrity => f.write_str("integrity"),
            Self::KeyExchange => f.write_str("DH group"),
            Self::SequenceNumbers => f.write_str("ESN"),
            Self::Additional(number) => write!(f, "ADDKE{number}"),
            Self::Other(id) => write!(f, "transform type {id}"),
        }
    }
}

/// One transform, known to us or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transform {
    /// Type.
    pub kind: TransformType,
    /// ID within the type.
    pub id: u16,
    /// Key Length attribute in bits.
    pub key_len: Option<u16>,
}

/// "NONE" of the types integrity and key exchange.
pub(super) const NONE: u16 = 0;

const ENCR_3DES: u16 = 3;
const ENCR_NULL: u16 = 11;
const ENCR_AES_CBC: u16 = 12;
const ENCR_AES_CTR: u16 = 13;
const ENCR_AES_CCM_8: u16 = 14;
const ENCR_AES_CCM_12: u16 = 15;
const ENCR_AES_CCM_16: u16 = 16;
const ENCR_AES_GCM_8: u16 = 18;
const ENCR_AES_GCM_12: u16 = 19;
const ENCR_AES_GCM_16: u16 = 20;
const ENCR_NULL_AUTH_AES_GMAC: u16 = 21;
const ENCR_CHACHA20_POLY1305: u16 = 28;

impl From<Cipher> for Transform {
    fn from(cipher: Cipher) -> Self {
        let (id, key_len) = match cipher {
            Cipher::AesCbc(bits) => (ENCR_AES_CBC, Some(bits)),
            Cipher::AesCtr(bits) => (ENCR_AES_CTR, Some(bits)),
            Cipher::AesCcm(bits, GcmIcv::Eight) => (ENCR_AES_CCM_8, Some(bits)),
            Cipher::AesCcm(bits, GcmIcv::Twelve) => (ENCR_AES_CCM_12, Some(bits)),
            Cipher::AesCcm(bits, GcmIcv::Sixteen) => (ENCR_AES_CCM_16, Some(bits)),
            Cipher::AesGmac(bits) => (ENCR_NULL_AUTH_AES_GMAC, Some(bits)),
            Cipher::TripleDes => (ENCR_3DES, None),
            Cipher::Null => (ENCR_NULL, None),
            Cipher::AesGcm(bits, GcmIcv::Eight) => (ENCR_AES_GCM_8, Some(bits)),
            Cipher::AesGcm(bits, GcmIcv::Twelve) => (ENCR_AES_GCM_12, Some(bits)),
            Cipher::AesGcm(bits, GcmIcv::Sixteen) => (ENCR_AES_GCM_16, Some(bits)),
            // RFC 7634 section 2: the key has one length, so the attribute is not sent.
            Cipher::ChaCha20Poly1305 => (ENCR_CHACHA20_POLY1305, None),
        };
        Self {
            kind: TransformType::Encryption,
            id,
            key_len,
        }
    }
}

impl From<Prf> for Transform {
    fn from(prf: Prf) -> Self {
        let id = match prf {
            Prf::HmacSha1 => 2,
            Prf::HmacSha256 => 5,
            Prf::HmacSha384 => 6,
            Prf::HmacSha512 => 7,
            Prf::AesXcbc => 4,
            Prf::AesCmac => 8,
        };
        Self {
            kind: TransformType::Prf,
            id,
            key_len: None,
        }
    }
}

impl From<Integrity> for Transform {
    fn from(integrity: Integrity) -> Self {
        let id = match integrity {
            Integrity::HmacSha1_96 => 2,
            Integrity::HmacSha256_128 => 12,
            Integrity::HmacSha384_192 => 13,
            Integrity::HmacSha512_256 => 14,
            Integrity::AesXcbc96 => 5,
            Integrity::AesCmac96 => 8,
        };
        Self {
            kind: TransformType::Integrity,
            id,
            key_len: None,
        }
    }
}

impl From<DhGroup> for Transform {
    fn from(group: DhGroup) -> Self {
        Self {
            kind: TransformType::KeyExchange,
            id: group.id(),
            key_len: None,
        }
    }
}

impl From<Esn> for Transform {
    fn from(esn: Esn) -> Self {
        Self {
            kind: TransformType::SequenceNumbers,
            id: esn as u16,
            key_len: None,
        }
    }
}

impl Transform {
    /// Every transform we can do.
    fn supported() -> impl Iterator<Item = Supported> {
        Cipher::all()
            .map(Supported::Cipher)
            .chain(Prf::ALL.into_iter().map(Supported::Prf))
            .chain(Integrity::ALL.into_iter().map(Supported::Integrity))
            .chain(DhGroup::ALL.into_iter().map(Supported::Group))
            .chain([Esn::No, Esn::Yes].into_iter().map(Supported::Esn))
    }

    /// Additional key exchange `number` by this method, or none.
    pub(super) fn additional(number: u8, group: Option<DhGroup>) -> Self {
        Self {
            kind: TransformType::Additional(number),
            id: group.map_or(NONE, DhGroup::id),
            key_len: None,
        }
    }

    /// What it stands for, if we can do it.
    pub(super) fn known(self) -> Option<Supported> {
        if let (TransformType::Additional(number), None) = (self.kind, self.key_len) {
            return DhGroup::from_id(self.id).map(|group| Supported::Additional(number, group));
        }
        Self::supported().find(|supported| supported.transform() == self)
    }
}

/// A transform we can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supported {
    Cipher(Cipher),
    Prf(Prf),
    Integrity(Integrity),
    Group(DhGroup),
    Additional(u8, DhGroup),
    Esn(Esn),
}

impl Supported {
    pub(super) fn transform(self) -> Transform {
        match self {
            Self::Cipher(cipher) => cipher.into(),
            Self::Prf(prf) => prf.into(),
            Self::Integrity(integrity) => integrity.into(),
            Self::Group(group) => group.into(),
            Self::Additional(number, group) => Transform::additional(number, Some(group)),
            Self::Esn(esn) => esn.into(),
        }
    }
}

impl fmt::Display for Supported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cipher(cipher) => cipher.fmt(f),
            Self::Prf(prf) => prf.fmt(f),
            Self::Integrity(integrity) => integrity.fmt(f),
            Self::Group(group) => group.fmt(f),
            Self::Additional(number, group) => write!(f, "ke{number}_{group}"),
            Self::Esn(esn) => esn.fmt(f),
        }
    }
}

/// Registered algorithms that we only know by name; the first name given for an ID is shown, all
/// of them are recognised in configurations. Ciphers with a key length have it in place of `*`.
const NAMED: &[(TransformType, u16, &str)] = &[
    (TransformType::Encryption, 2, "des"),
    (TransformType::Encryption, 5, "idea"),
    (TransformType::Encryption, 6, "cast*"),
    (TransformType::Encryption, 7, "blowfish*"),
    (TransformType::Encryption, ENCR_AES_CBC, "aes*"),
    (TransformType::Encryption, 13, "aes*ctr"),
    (TransformType::Encryption, 14, "aes*ccm8"),
    (TransformType::Encryption, 14, "aes*ccm64"),
    (TransformType::Encryption, 15, "aes*ccm12"),
    (TransformType::Encryption, 15, "aes*ccm96"),
    (TransformType::Encryption, 16, "aes*ccm16"),
    (TransformType::Encryption, 16, "aes*ccm128"),
    (TransformType::Encryption, 16, "aes*ccm"),
    (TransformType::Encryption, ENCR_AES_GCM_8, "aes*gcm8"),
    (TransformType::Encryption, ENCR_AES_GCM_8, "aes*gcm64"),
    (TransformType::Encryption, ENCR_AES_GCM_12, "aes*gcm12"),
    (TransformType::Encryption, ENCR_AES_GCM_12, "aes*gcm96"),
    (TransformType::Encryption, ENCR_AES_GCM_16, "aes*gcm16"),
    (TransformType::Encryption, ENCR_AES_GCM_16, "aes*gcm128"),
    (TransformType::Encryption, ENCR_AES_GCM_16, "aes*gcm"),
    (TransformType::Encryption, 21, "aes*gmac"),
    (TransformType::Encryption, 23, "camellia*"),
    (TransformType::Encryption, 24, "camellia*ctr"),
    (TransformType::Encryption, 25, "camellia*ccm8"),
    (TransformType::Encryption, 26, "camellia*ccm12"),
    (TransformType::Encryption, 27, "camellia*ccm16"),
    (
        TransformType::Encryption,
        ENCR_CHACHA20_POLY1305,
        "chacha20poly1305",
    ),
    (TransformType::Encryption, 30, "aes*gcm16iiv"),
    (TransformType::Encryption, 31, "chacha20poly1305iiv"),
    (TransformType::Prf, 1, "prfmd5"),
    (TransformType::Prf, 3, "prftiger"),
    (TransformType::Integrity, 1, "md5"),
    (TransformType::Integrity, 3, "desmac"),
    (TransformType::Integrity, 6, "md5_128"),
    (TransformType::Integrity, 7, "sha1_160"),
    (TransformType::Integrity, 9, "aes128gmac"),
    (TransformType::Integrity, 10, "aes192gmac"),
    (TransformType::Integrity, 11, "aes256gmac"),
    (TransformType::KeyExchange, 1, "modp768"),
    (TransformType::KeyExchange, 22, "modp1024s160"),
    (TransformType::KeyExchange, 23, "modp2048s224"),
    (TransformType::KeyExchange, 24, "modp2048s256"),
    (TransformType::KeyExchange, 25, "ecp192"),
    (TransformType::KeyExchange, 26, "ecp224"),
    (TransformType::KeyExchange, 27, "ecp224bp"),
    (TransformType::KeyExchange, 30, "ecp512bp"),
    (TransformType::KeyExchange, 33, "gost3410-256"),
    (TransformType::KeyExchange, 34, "gost3410-512"),
];

/// The type of a registered algorithm that we know by name only.
pub(super) fn named(keyword: &str) -> Option<TransformType> {
    let matches = |pattern: &str| match pattern.split_once('*') {
        None => pattern == keyword,
        Some((before, after)) => keyword
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|bits| {
                bits.is_empty()
                    || matches!(bits, "40" | "56" | "64" | "128" | "192" | "256" | "448")
            }),
    };
    NAMED
        .iter()
        .find(|(_, _, pattern)| matches(pattern))
        .map(|(kind, _, _)| *kind)
}

/// A keyword where there is one, otherwise what is known of it.
impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(supported) = self.known() {
            return supported.fmt(f);
        }
        let name = NAMED
            .iter()
            .find(|(kind, id, _)| (*kind, *id) == (self.kind, self.id));
        match (name, self.key_len) {
            _ if self.is_none() => match self.kind {
                TransformType::Additional(number) => write!(f, "ke{number}_none"),
                _ => f.write_str("none"),
            },
            (Some((_, _, pattern)), _) if pattern.contains('*') => match self.key_len {
                Some(bits) => f.write_str(&pattern.replacen('*', &bits.to_string(), 1)),
                None => write!(f, "{} without a key length", pattern.replacen('*', "", 1)),
            },
            (Some((_, _, name)), None) => f.write_str(name),
            (Some((_, _, name)), Some(bits)) => write!(f, "{name} with key length {bits}"),
            (None, None) => write!(f, "{} {}", self.kind, self.id),
            (None, Some(bits)) => write!(f, "{} {} with key length {bits}", self.kind, self.id),
        }
    }
}

impl Transform {
    /// Whether NONE is an ID of its type.
    fn is_optional(&self) -> bool {
        matches!(
            self.kind,
            TransformType::Integrity | TransformType::KeyExchange | TransformType::Additional(_)
        )
    }

    /// Whether it says that there is nothing of its type.
    pub(super) fn is_none(&self) -> bool {
        self.id == NONE && self.is_optional()
    }
}
