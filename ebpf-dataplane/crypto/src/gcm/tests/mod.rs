//! Known answers, other implementations, forgeries, and memory limits.

mod agreement;
mod memory;
mod modelled;
#[cfg(target_arch = "x86_64")]
mod vectors;

use super::{AesGcm, HEADER, Icv, Packet};
use crate::cpu::Backend;

pub(super) const ICVS: [Icv; 3] = [Icv::Eight, Icv::Twelve, Icv::Sixteen];

pub(super) const SALT: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

/// Octets that look random and are the same each time.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// A packet to seal: header for `seq`, `len` octets of text, room for the ICV.
pub(super) fn plain(len: usize, seq: u64, icv: Icv) -> Vec<u8> {
    let mut packet = 0x1234_5678u32.to_be_bytes().to_vec();
    packet.extend((seq as u32).to_be_bytes());
    packet.extend([0; 8]);
    packet.extend(noise(len, seq));
    packet.resize(HEADER + len + icv.octets(), 0);
    packet
}

pub(super) fn seal(sa: &AesGcm, packets: &mut [Vec<u8>], first: u64) {
    let mut burst: Vec<_> = packets
        .iter_mut()
        .zip(first..)
        .map(|(octets, seq)| Packet::new(octets, seq))
        .collect();
    sa.seal(&mut burst);
    assert!(burst.iter().all(|packet| packet.ok));
}

pub(super) fn open(sa: &AesGcm, packets: &mut [Vec<u8>], first: u64) -> Vec<bool> {
    let mut burst: Vec<_> = packets
        .iter_mut()
        .zip(first..)
        .map(|(octets, seq)| Packet::new(octets, seq))
        .collect();
    sa.open(&mut burst);
    burst.iter().map(|packet| packet.ok).collect()
}

#[test]
fn keys_of_other_lengths_are_refused() {
    use super::KeyError;
    for backend in Backend::available() {
        for len in [0, 15, 17, 20, 28, 33] {
            let made = AesGcm::with_backend(backend, &vec![0; len], SALT, false, Icv::Sixteen);
            assert_eq!(made.err(), Some(KeyError::Length(len)));
        }
    }
    for backend in Backend::ALL {
        let made = AesGcm::with_backend(backend, &[0; 16], SALT, false, Icv::Sixteen);
        assert_eq!(made.is_ok(), backend.is_available());
    }
}

#[test]
fn the_backend_in_use_is_the_fastest_there_is() {
    assert!(Backend::available().all(super::agrees));
    assert_eq!(super::backend(), Backend::best());
    // A machine that was made to run one must not run another unnoticed.
    if let Ok(wanted) = std::env::var("ESPADA_TEST_BACKEND") {
        assert_eq!(super::backend().to_string(), wanted);
    }
}
