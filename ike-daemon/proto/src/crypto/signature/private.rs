//! Private keys and signing.
//!
//! ring signs with RSA, with Ed25519, and with ECDSA where the hash function is the curve's own; it
//! takes what randomness it needs (PSS's salt, and to harden ECDSA's nonce) from the operating
//! system. For other hash functions and P-521 the RustCrypto crates sign with deterministic nonces
//! (RFC 6979). Both are made to run in constant time.

use std::fmt;
use std::str::FromStr;

use der::asn1::{AnyRef, ContextSpecific, ObjectIdentifier, OctetStringRef};
use der::{Decode, Encode, Reader, Sequence, SliceReader, TagNumber};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair};
use x509_cert::spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use super::ecdsa::{self, Scalar};
use super::public::{self, PublicKey, PublicKeyKind};
use super::{Curve, EcdsaForm, HashAlgorithm, SignatureAlgorithm, algorithm};
use crate::crypto::Random;

/// PKCS #8 (RFC 5958 section 2); attributes are not looked at.
#[derive(Sequence)]
struct Pkcs8<'a> {
    version: u8,
    algorithm: AlgorithmIdentifierRef<'a>,
    key: &'a OctetStringRef,
}

/// A private key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not follow PKCS #8, PKCS #1 or SEC 1.
    #[error("it is no private key in PKCS #8, PKCS #1 or SEC 1")]
    Malformed,
    /// Encrypted PKCS #8.
    #[error("it is encrypted with a password, which a daemon could not give")]
    Encrypted,
    /// Another kind of key.
    #[error("it is a key of kind {0}; RSA, ECDSA on P-256, P-384 or P-521, and Ed25519 are known")]
    Unknown(String),
    /// RSA that ring refuses.
    #[error(
        "ring does not take this RSA key: {0} (2048 to 4096 bits, and consistent, are expected)"
    )]
    Rsa(String),
    /// Its numbers contradict each other or the curve.
    #[error("its numbers are not those of a key of this kind")]
    Inconsistent,
}

/// A signature that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of kind {kind} cannot sign by {algorithm}")]
pub struct SignError {
    kind: PublicKeyKind,
    algorithm: SignatureAlgorithm,
}

/// What kind of key to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on a curve.
    Ecdsa(Curve),
    /// Ed25519.
    Ed25519,
}

/// Reads `ecdsa256`, `ecdsa384`, `ecdsa521` and `ed25519`.
impl FromStr for KeyType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ecdsa256" => Ok(Self::Ecdsa(Curve::P256)),
            "ecdsa384" => Ok(Self::Ecdsa(Curve::P384)),
            "ecdsa521" => Ok(Self::Ecdsa(Curve::P521)),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(format!(
                "expected ecdsa256, ecdsa384, ecdsa521 or ed25519, found \"{text}\""
            )),
        }
    }
}

enum Secret {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Scalar, Option<Box<EcdsaKeyPair>>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// A private key. It has no Debug output of its own, and is wiped where the crates below wipe.
pub struct PrivateKey {
    public: PublicKey,
    secret: Secret,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.kind())
    }
}

impl PrivateKey {
    /// Reads PKCS #8, PKCS #1 (RFC 8017 appendix A.1.2) or SEC 1 (RFC 5915) in DER, whichever it is.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(info) = pkcs8(der) {
            return match info.algorithm.oid {
                public::RSA => Self::rsa(info.key.as_bytes()),
                public::EC => {
                    let named = info.algorithm.parameters;
                    let named = named.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
                    Self::sec1(info.key.as_bytes(), named)
                }
                algorithm::ED25519 => {
                    let seed = <&OctetStringRef>::from_der(info.key.as_bytes())
                        .map_err(|_| KeyError::Malformed)?;
                    Self::ed25519(seed.as_bytes())
                }
                other => Err(KeyError::Unknown(other.to_string())),
            };
        }
        if encrypted(der) {
            return Err(KeyError::Encrypted);
        }
        // PKCS #1 begins with version 0, SEC 1 with version 1.
        match version(der) {
            Some(0) => Self::rsa(der),
            Some(1) => Self::sec1(der, None),
            _ => Err(KeyError::Malformed),
        }
    }

    fn rsa(pkcs1: &[u8]) -> Result<Self, KeyError> {
        let pair = RsaKeyPair::from_der(pkcs1).map_err(|error| KeyError::Rsa(error.to_string()))?;
        let key = pair.public_key().as_ref().to_vec();
        let bits = public::rsa_bits(&key).map_err(|_| KeyError::Inconsistent)?;
        Ok(Self {
            public: PublicKey::new(PublicKeyKind::Rsa(bits), key)
                .map_err(|_| KeyError::Inconsistent)?,
            secret: Secret::Rsa(Box::new(pair)),
        })
    }

    fn ed25519(seed: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Inconsistent)?;
        let key = pair.public_key().as_ref().to_vec();
        Ok(Self {
            public: PublicKey::new(PublicKeyKind::Ed25519, key)
                .map_err(|_| KeyError::Inconsistent)?,
            secret: Secret::Ed25519(Box::new(pair)),
        })
    }

    /// ECPrivateKey; the curve stands in it or around it.
    fn sec1(der: &[u8], named: Option<ObjectIdentifier>) -> Result<Self, KeyError> {
        let (scalar, inner) = ec_private_key(der).ok_or(KeyError::Malformed)?;
        let oid = named.or(inner).ok_or(KeyError::Malformed)?;
        let curve = public::CURVES.iter().find(|(_, known)| *known == oid);
        let (curve, _) =
            curve.ok_or_else(|| KeyError::Unknown(format!("ECDSA with the curve {oid}")))?;
        let scalar = Scalar::from_octets(*curve, scalar).ok_or(KeyError::Inconsistent)?;
        Self::ecdsa(scalar)
    }

    fn ecdsa(scalar: Scalar) -> Result<Self, KeyError> {
        let kind = PublicKeyKind::Ecdsa(scalar.curve());
        let point = scalar.point();
        let own_hash = match scalar.curve() {
            Curve::P256 => Some(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Curve::P384 => Some(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Curve::P521 => None,
        };
        let pair = own_hash.map(|algorithm| {
            let (octets, random) = (scalar.octets(), SystemRandom::new());
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, &octets, &point, &random)
                .map(Box::new)
                .map_err(|_| KeyError::Inconsistent)
        });
        Ok(Self {
            public: PublicKey::new(kind, point).map_err(|_| KeyError::Inconsistent)?,
            secret: Secret::Ecdsa(scalar, pair.transpose()?),
        })
    }

    /// A new key, and its PKCS #8 in DER.
    pub fn generate(
        kind: KeyType,
        random: &mut impl Random,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let unfit = |_| KeyError::Inconsistent;
        match kind {
            KeyType::Ed25519 => {
                let mut seed = Zeroizing::new([0; 32]);
                random.fill(&mut *seed);
                let inner = OctetStringRef::new(&*seed).map_err(unfit)?;
                let inner = Zeroizing::new(inner.to_der().map_err(unfit)?);
                let algorithm = AlgorithmIdentifierRef {
                    oid: algorithm::ED25519,
                    parameters: None,
                };
                Ok((Self::ed25519(&*seed)?, to_pkcs8(algorithm, &inner)?))
            }
            KeyType::Ecdsa(curve) => {
                let scalar = loop {
                    let mut octets = Zeroizing::new(vec![0; curve.scalar_len()]);
                    random.fill(&mut octets);
                    // Without this most draws would be above P-521's order of 521 bits.
                    if let (Curve::P521, Some(first)) = (curve, octets.first_mut()) {
                        *first &= 1;
                    }
                    if let Some(scalar) = Scalar::from_octets(curve, &octets) {
                        break scalar;
                    }
                };
                let octets = scalar.octets();
                let mut inner = Zeroizing::new(Vec::with_capacity(octets.len() + 8));
                // ECPrivateKey of version 1 with the scalar alone: all of it is shorter than 128.
                inner.extend([0x30, octets.len() as u8 + 5, 2, 1, 1, 4, octets.len() as u8]);
                inner.extend_from_slice(&octets);
                let oid = public::CURVES.iter().find(|(known, _)| *known == curve);
                let algorithm = AlgorithmIdentifierRef {
                    oid: public::EC,
                    parameters: oid.map(|(_, oid)| AnyRef::from(oid)),
                };
                Ok((Self::ecdsa(scalar)?, to_pkcs8(algorithm, &inner)?))
            }
        }
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message. `form` is for ECDSA.
    pub fn sign(
        &self,
        algorithm: SignatureAlgorithm,
        form: EcdsaForm,
        message: &[u8],
    ) -> Result<Vec<u8>, SignError> {
        let signature = match (&self.secret, algorithm) {
            (Secret::Rsa(pair), algorithm) => match rsa_encoding(algorithm) {
                Some(encoding) => {
                    let mut signature = vec![0; pair.public().modulus_len()];
                    pair.sign(encoding, &SystemRandom::new(), message, &mut signature)
                        .ok()
                        .map(|()| signature)
                }
                None => None,
            },
            (Secret::Ed25519(pair), SignatureAlgorithm::Ed25519) => {
                Some(pair.sign(message).as_ref().to_vec())
            }
            (Secret::Ecdsa(scalar, pair), SignatureAlgorithm::Ecdsa(hash)) => {
                sign_ecdsa(scalar, pair.as_deref(), hash, form, message)
            }
            _ => None,
        };
        signature.ok_or(SignError {
            kind: self.public.kind(),
            algorithm,
        })
    }
}

/// `pair`: the same key for the hash function that goes with its curve.
fn sign_ecdsa(
    scalar: &Scalar,
    pair: Option<&EcdsaKeyPair>,
    hash: HashAlgorithm,
    form: EcdsaForm,
    message: &[u8],
) -> Option<Vec<u8>> {
    let fixed = match (scalar.curve(), hash, pair) {
        (_, HashAlgorithm::Sha1 | HashAlgorithm::Identity, _) => return None,
        (Curve::P256, HashAlgorithm::Sha2_256, Some(pair))
        | (Curve::P384, HashAlgorithm::Sha2_384, Some(pair)) => {
            let signature = pair.sign(&SystemRandom::new(), message).ok()?;
            signature.as_ref().to_vec()
        }
        _ => scalar.sign(&hash.digest(message))?,
    };
    match form {
        EcdsaForm::Fixed => Some(fixed),
        EcdsaForm::Der => ecdsa::to_der(&fixed),
    }
}

fn rsa_encoding(algorithm: SignatureAlgorithm) -> Option<&'static dyn RsaEncoding> {
    use HashAlgorithm::{Sha2_256, Sha2_384, Sha2_512};
    match algorithm {
        SignatureAlgorithm::RsaPkcs1(Sha2_256) => Some(&signature::RSA_PKCS1_SHA256),
        SignatureAlgorithm::RsaPkcs1(Sha2_384) => Some(&signature::RSA_PKCS1_SHA384),
        SignatureAlgorithm::RsaPkcs1(Sha2_512) => Some(&signature::RSA_PKCS1_SHA512),
        SignatureAlgorithm::RsaPss(Sha2_256) => Some(&signature::RSA_PSS_SHA256),
        SignatureAlgorithm::RsaPss(Sha2_384) => Some(&signature::RSA_PSS_SHA384),
        SignatureAlgorithm::RsaPss(Sha2_512) => Some(&signature::RSA_PSS_SHA512),
        _ => None,
    }
}

fn to_pkcs8(
    algorithm: AlgorithmIdentifierRef<'_>,
    inner: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let unfit = |_| KeyError::Inconsistent;
    let info = Pkcs8 {
        version: 0,
        algorithm,
        key: OctetStringRef::new(inner).map_err(unfit)?,
    };
    info.to_der().map(Zeroizing::new).map_err(unfit)
}

/// The parts of PKCS #8 that matter, if it is that.
fn pkcs8(der: &[u8]) -> Option<Pkcs8<'_>> {
    let mut reader = SliceReader::new(der).ok()?;
    let info = reader.sequence(|reader| {
        let info = Pkcs8 {
            version: reader.decode()?,
            algorithm: reader.decode()?,
            key: reader.decode()?,
        };
        reader.drain(reader.remaining_len())?;
        Ok::<_, der::Error>(info)
    });
    let info = info.ok()?;
    reader.is_finished().then_some(info)
}

/// EncryptedPrivateKeyInfo: an AlgorithmIdentifier, then octets.
fn encrypted(der: &[u8]) -> bool {
    let read = |der| {
        let mut reader = SliceReader::new(der).ok()?;
        let parts = reader.sequence(|reader| {
            let algorithm: AlgorithmIdentifierRef<'_> = reader.decode()?;
            let _: &OctetStringRef = reader.decode()?;
            Ok::<_, der::Error>(algorithm)
        });
        parts.ok()
    };
    read(der).is_some()
}

/// The number that the sequence begins with.
fn version(der: &[u8]) -> Option<u8> {
    let mut reader = SliceReader::new(der).ok()?;
    let version = reader.sequence(|reader| {
        let version: u8 = reader.decode()?;
        reader.drain(reader.remaining_len())?;
        Ok::<_, der::Error>(version)
    });
    version.ok()
}

/// Scalar and curve of an ECPrivateKey (RFC 5915 section 3).
fn ec_private_key(der: &[u8]) -> Option<(&[u8], Option<ObjectIdentifier>)> {
    let mut reader = SliceReader::new(der).ok()?;
    let parts = reader.sequence(|reader| {
        let _: u8 = reader.decode()?;
        let scalar: &OctetStringRef = reader.decode()?;
        let curve = ContextSpecific::<ObjectIdentifier>::decode_explicit(reader, TagNumber(0))?;
        reader.drain(reader.remaining_len())?;
        Ok::<_, der::Error>((scalar.as_bytes(), curve.map(|curve| curve.value)))
    });
    parts.ok()
}
