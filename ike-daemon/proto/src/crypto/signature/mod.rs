//! Digital signatures: public keys, private keys, and the algorithms that IKE (RFC 7427, RFC 8420,
//! RFC 4754) and X.509 (RFC 5280, RFC 8410) use them with.

mod algorithm;
mod ecdsa;
mod private;
mod public;
#[cfg(test)]
pub(crate) mod vectors;

use sha1::Digest as _;

pub use algorithm::{SignatureAlgorithm, UnknownAlgorithm};
pub use private::{KeyError, KeyType, PrivateKey, SignError};
pub use public::{PublicKey, PublicKeyError, PublicKeyKind};

/// A hash function by its number in SIGNATURE_HASH_ALGORITHMS (IANA "IKEv2 Hash Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashAlgorithm {
    /// 1. Collisions can be made; never offered, and accepted only as `insecure` says.
    Sha1,
    /// 2
    Sha2_256,
    /// 3
    Sha2_384,
    /// 4
    Sha2_512,
    /// 5: the algorithm signs the message itself (RFC 8420).
    Identity,
}

impl HashAlgorithm {
    /// What we accept from peers, as we tell them.
    pub const OFFERED: [Self; 4] = [
        Self::Sha2_256,
        Self::Sha2_384,
        Self::Sha2_512,
        Self::Identity,
    ];

    /// Its number.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha1 => 1,
            Self::Sha2_256 => 2,
            Self::Sha2_384 => 3,
            Self::Sha2_512 => 4,
            Self::Identity => 5,
        }
    }

    /// The hash function with a number, if we have it.
    pub fn from_id(id: u16) -> Option<Self> {
        [
            Self::Sha1,
            Self::Sha2_256,
            Self::Sha2_384,
            Self::Sha2_512,
            Self::Identity,
        ]
        .into_iter()
        .find(|hash| hash.id() == id)
    }

    /// Its name, as in `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha2_256 => "sha256",
            Self::Sha2_384 => "sha384",
            Self::Sha2_512 => "sha512",
            Self::Identity => "identity",
        }
    }

    /// The hash of a message; the message where the algorithm hashes by itself.
    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => sha1::Sha1::digest(message).to_vec(),
            Self::Sha2_256 => sha2::Sha256::digest(message).to_vec(),
            Self::Sha2_384 => sha2::Sha384::digest(message).to_vec(),
            Self::Sha2_512 => sha2::Sha512::digest(message).to_vec(),
            Self::Identity => message.to_vec(),
        }
    }
}

/// A curve of ECDSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256 (secp256r1).
    P256,
    /// NIST P-384 (secp384r1).
    P384,
    /// NIST P-521 (secp521r1).
    P521,
}

impl Curve {
    /// Octets of a scalar.
    fn scalar_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The hash function as strong as the curve.
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::P256 => HashAlgorithm::Sha2_256,
            Self::P384 => HashAlgorithm::Sha2_384,
            Self::P521 => HashAlgorithm::Sha2_512,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }
}

/// How the two numbers of an ECDSA signature are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcdsaForm {
    /// `SEQUENCE { r INTEGER, s INTEGER }`: X.509 and RFC 7427.
    Der,
    /// r and s, each as long as the curve's order: RFC 4754.
    Fixed,
}
