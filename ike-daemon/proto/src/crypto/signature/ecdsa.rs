//! ECDSA for the pairs of curve and hash function that ring does not have, and between the two
//! forms of a signature.

use der::asn1::UintRef;
use der::{Decode, Encode, Sequence};

use super::Curve;

#[derive(Sequence)]
struct Numbers<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// r and s, each as long as the curve's order.
pub(super) fn to_fixed(curve: Curve, der: &[u8]) -> Option<Vec<u8>> {
    let numbers = Numbers::from_der(der).ok()?;
    let width = curve.scalar_len();
    let mut fixed = Vec::with_capacity(2 * width);
    for number in [numbers.r, numbers.s] {
        let octets = number.as_bytes();
        fixed.resize(fixed.len() + width.checked_sub(octets.len())?, 0);
        fixed.extend_from_slice(octets);
    }
    Some(fixed)
}

/// The same as `SEQUENCE { r, s }`.
pub(super) fn to_der(fixed: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = fixed.split_at_checked(fixed.len() / 2)?;
    let numbers = Numbers {
        r: UintRef::new(r).ok()?,
        s: UintRef::new(s).ok()?,
    };
    numbers.to_der().ok()
}

/// Whether the numbers are a signature of a hash with the key of a point.
pub(super) fn verify(curve: Curve, point: &[u8], digest: &[u8], fixed: &[u8]) -> bool {
    macro_rules! with {
        ($curve:ident) => {{
            use $curve::ecdsa::signature::hazmat::PrehashVerifier as _;
            let key = $curve::ecdsa::VerifyingKey::from_sec1_bytes(point);
            let signature = $curve::ecdsa::Signature::from_slice(fixed);
            matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_prehash(digest, &signature).is_ok())
        }};
    }
    match curve {
        Curve::P256 => with!(p256),
        Curve::P384 => with!(p384),
        Curve::P521 => with!(p521),
    }
}

/// A private scalar; the crates zeroize it.
#[derive(Clone)]
pub(super) enum Scalar {
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    P521(p521::SecretKey),
}

impl Scalar {
    /// From octets as long as the curve's order; `None` unless it is from 1 to n - 1.
    pub fn from_octets(curve: Curve, octets: &[u8]) -> Option<Self> {
        match curve {
            Curve::P256 => p256::SecretKey::from_slice(octets).ok().map(Self::P256),
            Curve::P384 => p384::SecretKey::from_slice(octets).ok().map(Self::P384),
            Curve::P521 => p521::SecretKey::from_slice(octets).ok().map(Self::P521),
        }
    }

    pub fn curve(&self) -> Curve {
        match self {
            Self::P256(_) => Curve::P256,
            Self::P384(_) => Curve::P384,
            Self::P521(_) => Curve::P521,
        }
    }

    /// Its octets.
    pub fn octets(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new(match self {
            Self::P256(key) => key.to_bytes().to_vec(),
            Self::P384(key) => key.to_bytes().to_vec(),
            Self::P521(key) => key.to_bytes().to_vec(),
        })
    }

    /// Its public point, uncompressed (SEC 1 section 2.3.3).
    pub fn point(&self) -> Vec<u8> {
        use p256::elliptic_curve::sec1::ToSec1Point as _;
        match self {
            Self::P256(key) => key.public_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::P384(key) => key.public_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::P521(key) => key.public_key().to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    /// r and s over a hash, with the deterministic nonce of RFC 6979.
    pub fn sign(&self, digest: &[u8]) -> Option<Vec<u8>> {
        macro_rules! with {
            ($curve:ident, $key:expr) => {{
                use $curve::ecdsa::signature::hazmat::PrehashSigner as _;
                let key = $curve::ecdsa::SigningKey::from($key);
                let signature: $curve::ecdsa::Signature = key.sign_prehash(digest).ok()?;
                Some(signature.to_bytes().to_vec())
            }};
        }
        match self {
            Self::P256(key) => with!(p256, key),
            Self::P384(key) => with!(p384, key),
            Self::P521(key) => with!(p521, key),
        }
    }
}
