//! ECDH over the NIST curves (RFC 5903). On the wire a point is x | y, without the octet 4 that
//! SEC 1 puts before it; the shared secret is x alone (section 7).

use espada_common::sa::SecretBytes;
use p256::elliptic_curve::array::typenum::Unsigned;
use p256::elliptic_curve::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{
    AffinePoint, Curve, CurveArithmetic, FieldBytes, FieldBytesSize, PublicKey, SecretKey,
};
use zeroize::Zeroize;

use super::Random;

/// The octet of SEC 1 that announces an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A private scalar in 1..n.
pub(super) struct Secret<C: Curve>(SecretKey<C>);

impl<C> Secret<C>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    /// A uniform scalar: random octets, drawn again in the rare case that they are 0 or not below n.
    pub(super) fn generate(random: &mut impl Random) -> Self {
        loop {
            let mut octets = FieldBytes::<C>::default();
            random.fill(&mut octets);
            // P-521's order has 521 bits in 66 octets: without this all but 1 in 128 draws would miss.
            if FieldBytesSize::<C>::USIZE == 66
                && let Some(first) = octets.first_mut()
            {
                *first &= 1;
            }
            let key = SecretKey::from_bytes(&octets);
            octets.as_mut_slice().zeroize();
            if let Ok(key) = key {
                return Self(key);
            }
        }
    }

    pub(super) fn public_value(&self) -> Vec<u8> {
        let point = self.0.public_key().to_sec1_point(false);
        point.as_bytes().get(1..).unwrap_or_default().to_vec()
    }

    /// `None` if `peer` is no point of the curve.
    pub(super) fn shared_secret(&self, peer: &[u8]) -> Option<SecretBytes> {
        let mut encoded = Vec::with_capacity(1 + peer.len());
        encoded.push(UNCOMPRESSED);
        encoded.extend_from_slice(peer);
        let peer = PublicKey::<C>::from_sec1_bytes(&encoded).ok()?;
        let shared = diffie_hellman(self.0.to_nonzero_scalar(), peer.as_affine());
        Some(SecretBytes::new(shared.raw_secret_bytes().to_vec()))
    }

    #[cfg(test)]
    pub(super) fn from_octets(octets: &[u8]) -> Self {
        Self(SecretKey::from_slice(octets).unwrap())
    }
}

#[cfg(test)]
mod tests {
    use p256::NistP256;
    use p384::NistP384;
    use p521::NistP521;

    use super::*;
    use crate::crypto::test_util::hex;
}
