//! Every backend against independent implementations, bursts of any composition, forgeries.

use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm as RustCrypto, aes};
use proptest::prelude::*;
use ring::aead;

use super::*;

/// Seals `packet` (IV in place) by crates that share no code with the kernels. A shorter ICV is
/// the start of a longer one (SP 800-38D section 7.1).
fn reference(key: &[u8], esn: bool, icv: Icv, packet: &mut [u8], seq: u64) {
    let (header, rest) = packet.split_at_mut(HEADER);
    let (text, place) = rest.split_at_mut(rest.len() - icv.octets());
    let mut nonce = SALT.to_vec();
    nonce.extend(&header[8..]);
    let mut aad = header[..4].to_vec();
    if esn {
        aad.extend(seq.to_be_bytes());
    } else {
        aad.extend(&header[4..8]);
    }
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    let tag = match key.len() {
        24 => {
            let cipher = RustCrypto::<aes::Aes192, U12, U16>::new_from_slice(key).unwrap();
            cipher
                .encrypt_inout_detached(&nonce.into(), &aad, text.into())
                .unwrap()
                .to_vec()
        }
        len => {
            let algorithm = if len == 16 {
                &aead::AES_128_GCM
            } else {
                &aead::AES_256_GCM
            };
            let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key).unwrap());
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text)
                .unwrap()
                .as_ref()
                .to_vec()
        }
    };
    place.copy_from_slice(&tag[..icv.octets()]);
}

fn sealed(key: &[u8], esn: bool, icv: Icv, len: usize, seq: u64) -> Vec<u8> {
    let mut packet = plain(len, seq, icv);
    packet[8..16].copy_from_slice(&seq.to_be_bytes());
    reference(key, esn, icv, &mut packet, seq);
    packet
}

#[test]
fn the_references_agree_with_each_other() {
    for (len, seq) in [(0, 1), (100, 2), (1404, 3)] {
        for key in [noise(16, 1), noise(32, 1)] {
            let by_ring = sealed(&key, false, Icv::Sixteen, len, seq);
            let mut other = plain(len, seq, Icv::Sixteen);
            other[8..16].copy_from_slice(&seq.to_be_bytes());
            let (header, rest) = other.split_at_mut(HEADER);
            let (text, place) = rest.split_at_mut(len);
            let nonce: [u8; 12] = [&SALT[..], &header[8..]].concat().try_into().unwrap();
            let tag = match key.len() {
                16 => Aes128Gcm::new_from_slice(&key)
                    .unwrap()
                    .encrypt_inout_detached(&nonce.into(), &header[..8], text.into()),
                _ => Aes256Gcm::new_from_slice(&key)
                    .unwrap()
                    .encrypt_inout_detached(&nonce.into(), &header[..8], text.into()),
            };
            place.copy_from_slice(&tag.unwrap());
            assert_eq!(other, by_ring);
        }
    }
}

/// Every text length of packets up to 9000 octets, in bursts, both ways.
#[test]
fn every_length_is_what_the_references_make_of_it() {
    const BURST: usize = 29;
    for key in [noise(16, 1), noise(24, 2), noise(32, 3)] {
        // The block cipher of RustCrypto is slow in debug builds; lengths up to four segments say
        // as much about 192 bits as about the others.
        let longest = if key.len() == 24 { 1300 } else { 9000 };
        let mut first = 0xffff_fff0_u64;
        let lengths: Vec<usize> = (0..=longest).collect();
        for lengths in lengths.chunks(BURST) {
            let esn = first.is_multiple_of(2);
            let icv = ICVS[lengths[0] / BURST % 3];
            let expected: Vec<_> = lengths
                .iter()
                .zip(first..)
                .map(|(len, seq)| sealed(&key, esn, icv, *len, seq))
                .collect();
            let plaintexts: Vec<_> = lengths
                .iter()
                .zip(first..)
                .map(|(len, seq)| plain(*len, seq, icv))
                .collect();
            for backend in Backend::available() {
                let sa = AesGcm::with_backend(backend, &key, SALT, esn, icv).unwrap();
                let mut packets = plaintexts.clone();
                seal(&sa, &mut packets, first);
                assert!(packets == expected, "{backend} seals lengths {lengths:?}");
                let opened = open(&sa, &mut packets, first);
                assert!(opened.iter().all(|ok| *ok), "{backend} opens {lengths:?}");
                for (packet, plaintext) in packets.iter().zip(&plaintexts) {
                    let text = HEADER..packet.len() - icv.octets();
                    assert!(packet[text.clone()] == plaintext[text], "{backend}");
                }
            }
            first += lengths.len() as u64;
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused_and_leaves_no_plaintext() {
    for backend in Backend::available() {
        for icv in ICVS {
            for len in [0, 4, 60, 300] {
                let sa = AesGcm::with_backend(backend, &noise(32, 4), SALT, true, icv).unwrap();
                let seq = 0x1_0000_0007;
                let mut packet = vec![plain(len, seq, icv)];
                let plaintext = packet[0].clone();
                seal(&sa, &mut packet, seq);
                for bit in 0..packet[0].len() * 8 {
                    // The low half of the sequence number is authenticated as part of `seq`.
                    if (32..64).contains(&bit) {
                        continue;
                    }
                    let mut forged = packet.clone();
                    forged[0][bit / 8] ^= 1 << (bit % 8);
                    let sent = forged[0].clone();
                    assert_eq!(open(&sa, &mut forged, seq), [false], "{backend} bit {bit}");
                    let text = &forged[0][HEADER..HEADER + len];
                    assert!(
                        text == &sent[HEADER..HEADER + len] || text.iter().all(|octet| *octet == 0)
                    );
                    assert!(len < 16 || text != &plaintext[HEADER..HEADER + len]);
                }
                assert_eq!(open(&sa, &mut packet.clone(), seq + 1), [false]);
                assert_eq!(open(&sa, &mut packet.clone(), seq + (1 << 32)), [false]);
                assert_eq!(open(&sa, &mut packet, seq), [true]);
            }
        }
    }
}

#[test]
fn packets_too_short_for_esp_are_left_alone_among_good_ones() {
    for backend in Backend::available() {
        for icv in ICVS {
            let sa = AesGcm::with_backend(backend, &noise(24, 4), SALT, false, icv).unwrap();
            let mut packets: Vec<Vec<u8>> = (0..HEADER + icv.octets())
                .map(|len| vec![0x55; len])
                .collect();
            packets.insert(3, plain(40, 3, icv));
            packets.push(plain(50, packets.len() as u64, icv));
            let before = packets.clone();
            let mut burst: Vec<_> = packets
                .iter_mut()
                .zip(0..)
                .map(|(octets, seq)| Packet::new(octets, seq))
                .collect();
            sa.seal(&mut burst);
            let good: Vec<usize> = (0..burst.len()).filter(|at| burst[*at].ok).collect();
            assert_eq!(good, [3, before.len() - 1]);
            let opened = open(&sa, &mut packets, 0);
            for (at, ok) in opened.into_iter().enumerate() {
                assert_eq!(ok, good.contains(&at));
                if !ok {
                    assert_eq!(packets[at], before[at]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bursts_of_any_composition(
        lengths in prop::collection::vec(
            prop_oneof![4 => 0usize..80, 3 => 80usize..600, 2 => 1200usize..1500, 1 => 0usize..9000],
            0..70,
        ),
        bits in 0usize..3,
        icv in 0usize..3,
        esn: bool,
        first in any::<u32>(),
        broken in any::<prop::sample::Index>(),
        octet in any::<prop::sample::Index>(),
    ) {
        let key = noise(16 + 8 * bits, 77);
        let icv = ICVS[icv];
        let first = u64::from(first) << 7;
        let plaintexts: Vec<_> = lengths.iter().zip(first..)
            .map(|(len, seq)| plain(*len, seq, icv)).collect();
        let expected: Vec<_> = lengths.iter().zip(first..)
            .map(|(len, seq)| sealed(&key, esn, icv, *len, seq)).collect();
        for backend in Backend::available() {
            let sa = AesGcm::with_backend(backend, &key, SALT, esn, icv).unwrap();
            let mut packets = plaintexts.clone();
            seal(&sa, &mut packets, first);
            prop_assert!(packets == expected, "{}", backend);
            if lengths.is_empty() {
                continue;
            }
            let bad = broken.index(lengths.len());
            // Behind the sequence number, whose octets count only as part of `seq` with ESN.
            let at = 8 + octet.index(packets[bad].len() - 8);
            packets[bad][at] ^= 0x10;
            let opened = open(&sa, &mut packets, first);
            for (index, ok) in opened.into_iter().enumerate() {
                prop_assert_eq!(ok, index != bad);
                let end = HEADER + lengths[index];
                prop_assert!(!ok || packets[index][HEADER..end] == plaintexts[index][HEADER..end]);
            }
        }
    }
}
