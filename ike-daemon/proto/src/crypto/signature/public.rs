//! Public keys and verification.

use std::fmt;

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
use der::{Decode, Encode, Sequence};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sha1::{Digest as _, Sha1};
use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{Curve, EcdsaForm, HashAlgorithm, SignatureAlgorithm, algorithm, ecdsa};

pub(super) const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
pub(super) const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(super) const CURVES: [(Curve, ObjectIdentifier); 3] = [
    (
        Curve::P256,
        ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
    ),
    (Curve::P384, ObjectIdentifier::new_unwrap("1.3.132.0.34")),
    (Curve::P521, ObjectIdentifier::new_unwrap("1.3.132.0.35")),
];

/// RSA keys that are accepted, in bits: what ring verifies with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

/// What kind of key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublicKeyKind {
    /// RSA with a modulus of so many bits.
    Rsa(usize),
    /// ECDSA on a curve.
    Ecdsa(Curve),
    /// Ed25519.
    Ed25519,
}

impl fmt::Display for PublicKeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::Ecdsa(curve) => write!(f, "ECDSA {}", curve.name()),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// A public key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// It does not follow its format.
    #[error("its public key is damaged")]
    Malformed,
    /// RSA of a length outside what is accepted.
    #[error("its RSA key has {0} bits; 2048 to 8192 are accepted")]
    RsaLength(usize),
    /// Another kind of key.
    #[error("its key is of kind {0}; RSA, ECDSA on P-256, P-384 or P-521, and Ed25519 are known")]
    Unknown(String),
}

/// A public key, as in a SubjectPublicKeyInfo.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: PublicKeyKind,
    /// SubjectPublicKeyInfo in DER.
    spki: Vec<u8>,
    /// What is in its BIT STRING.
    key: Vec<u8>,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kind)
    }
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in DER (RFC 5280 section 4.1.2.7).
    pub fn from_spki(spki: &[u8]) -> Result<Self, PublicKeyError> {
        let info =
            SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| PublicKeyError::Malformed)?;
        let key = info.subject_public_key.as_bytes();
        let key = key.ok_or(PublicKeyError::Malformed)?;
        let kind = match info.algorithm.oid {
            RSA => PublicKeyKind::Rsa(rsa_bits(key)?),
            EC => {
                let named = info.algorithm.parameters;
                let named = named.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
                let curve = CURVES.iter().find(|(_, oid)| Some(*oid) == named);
                let Some((curve, _)) = curve else {
                    let name = named.map_or("without a named curve".to_owned(), |oid| {
                        format!("with the curve {oid}")
                    });
                    return Err(PublicKeyError::Unknown(format!("ECDSA {name}")));
                };
                // Compressed points are allowed in certificates and hardly ever found.
                if key.len() != 1 + 2 * curve.scalar_len() || key.first() != Some(&4) {
                    return Err(PublicKeyError::Malformed);
                }
                PublicKeyKind::Ecdsa(*curve)
            }
            algorithm::ED25519 if key.len() == 32 => PublicKeyKind::Ed25519,
            algorithm::ED25519 => return Err(PublicKeyError::Malformed),
            other => return Err(PublicKeyError::Unknown(other.to_string())),
        };
        Ok(Self {
            kind,
            spki: spki.to_vec(),
            key: key.to_vec(),
        })
    }

    /// Of a point, a modulus and exponent in DER, or the 32 octets of Ed25519.
    pub(super) fn new(kind: PublicKeyKind, key: Vec<u8>) -> Result<Self, PublicKeyError> {
        let curve = |wanted: Curve| CURVES.iter().find(|(curve, _)| *curve == wanted);
        let oid = match kind {
            PublicKeyKind::Ecdsa(wanted) => curve(wanted).map(|(_, oid)| oid),
            _ => None,
        };
        let algorithm = match kind {
            PublicKeyKind::Rsa(_) => AlgorithmIdentifierRef {
                oid: RSA,
                parameters: Some(AnyRef::NULL),
            },
            PublicKeyKind::Ecdsa(_) => AlgorithmIdentifierRef {
                oid: EC,
                parameters: oid.map(AnyRef::from),
            },
            PublicKeyKind::Ed25519 => AlgorithmIdentifierRef {
                oid: algorithm::ED25519,
                parameters: None,
            },
        };
        let malformed = |_| PublicKeyError::Malformed;
        let spki = SubjectPublicKeyInfoRef {
            algorithm,
            subject_public_key: BitStringRef::from_bytes(&key).map_err(malformed)?,
        };
        Ok(Self {
            kind,
            spki: spki.to_der().map_err(malformed)?,
            key,
        })
    }

    /// What kind of key it is.
    pub fn kind(&self) -> PublicKeyKind {
        self.kind
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-1 over the SubjectPublicKeyInfo: how CERTREQ names a trusted authority (RFC 7296
    /// section 3.7). It is a hint, and nothing rests on it.
    pub fn spki_sha1(&self) -> [u8; 20] {
        Sha1::digest(&self.spki).into()
    }

    /// SHA-1 over the key alone: the usual subject key identifier (RFC 5280 section 4.2.1.2).
    pub fn key_id(&self) -> [u8; 20] {
        Sha1::digest(&self.key).into()
    }

    /// Whether this is the key's signature of the message with the algorithm. `form` is for ECDSA.
    #[must_use]
    pub fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        form: EcdsaForm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        use HashAlgorithm::{Sha1, Sha2_256, Sha2_384, Sha2_512};
        let by_ring = |algorithm: &'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(algorithm, &self.key)
                .verify(message, signature)
                .is_ok()
        };
        match (self.kind, algorithm) {
            (PublicKeyKind::Rsa(_), SignatureAlgorithm::RsaPkcs1(hash)) => match hash {
                Sha1 => by_ring(&signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY),
                Sha2_256 => by_ring(&signature::RSA_PKCS1_2048_8192_SHA256),
                Sha2_384 => by_ring(&signature::RSA_PKCS1_2048_8192_SHA384),
                Sha2_512 => by_ring(&signature::RSA_PKCS1_2048_8192_SHA512),
                HashAlgorithm::Identity => false,
            },
            (PublicKeyKind::Rsa(_), SignatureAlgorithm::RsaPss(hash)) => match hash {
                Sha2_256 => by_ring(&signature::RSA_PSS_2048_8192_SHA256),
                Sha2_384 => by_ring(&signature::RSA_PSS_2048_8192_SHA384),
                Sha2_512 => by_ring(&signature::RSA_PSS_2048_8192_SHA512),
                Sha1 | HashAlgorithm::Identity => false,
            },
            (PublicKeyKind::Ed25519, SignatureAlgorithm::Ed25519) => by_ring(&signature::ED25519),
            (PublicKeyKind::Ecdsa(curve), SignatureAlgorithm::Ecdsa(hash)) => {
                match (curve, hash, form) {
                    (Curve::P256, Sha2_256, EcdsaForm::Der) => {
                        by_ring(&signature::ECDSA_P256_SHA256_ASN1)
                    }
                    (Curve::P256, Sha2_384, EcdsaForm::Der) => {
                        by_ring(&signature::ECDSA_P256_SHA384_ASN1)
                    }
                    (Curve::P384, Sha2_256, EcdsaForm::Der) => {
                        by_ring(&signature::ECDSA_P384_SHA256_ASN1)
                    }
                    (Curve::P384, Sha2_384, EcdsaForm::Der) => {
                        by_ring(&signature::ECDSA_P384_SHA384_ASN1)
                    }
                    (Curve::P256, Sha2_256, EcdsaForm::Fixed) => {
                        by_ring(&signature::ECDSA_P256_SHA256_FIXED)
                    }
                    (Curve::P384, Sha2_384, EcdsaForm::Fixed) => {
                        by_ring(&signature::ECDSA_P384_SHA384_FIXED)
                    }
                    (_, Sha1 | HashAlgorithm::Identity, _) => false,
                    (_, hash, EcdsaForm::Fixed) => {
                        ecdsa::verify(curve, &self.key, &hash.digest(message), signature)
                    }
                    (_, hash, EcdsaForm::Der) => {
                        ecdsa::to_fixed(curve, signature).is_some_and(|fixed| {
                            ecdsa::verify(curve, &self.key, &hash.digest(message), &fixed)
                        })
                    }
                }
            }
            _ => false,
        }
    }
}

/// Bits of the modulus of an RSAPublicKey in DER.
pub(super) fn rsa_bits(key: &[u8]) -> Result<usize, PublicKeyError> {
    let key = RsaPublicKey::from_der(key).map_err(|_| PublicKeyError::Malformed)?;
    let octets = key.modulus.as_bytes();
    let leading = octets.first().ok_or(PublicKeyError::Malformed)?;
    let bits = octets.len() * 8 - leading.leading_zeros() as usize;
    if key.exponent.as_bytes().is_empty() {
        return Err(PublicKeyError::Malformed);
    }
    if RSA_BITS.contains(&bits) {
        Ok(bits)
    } else {
        Err(PublicKeyError::RsaLength(bits))
    }
}
