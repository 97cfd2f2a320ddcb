//! What keeps wrong ciphertext off the wire on processors that the code was never run on: before their
//! first use, instructions must give what the crates give.

use std::sync::OnceLock;

use crate::backend::Features;
use crate::cbc::{AesCbc, BLOCK, Chain};
use crate::chacha::{ChaCha20Poly1305, Packet, TAG};
use crate::hmac::{Algorithm, Hmac, Icv, Job};

impl Features {
    /// As many of this processor's instruction sets as encrypt and authenticate a burst the way the
    /// crates do. Found out once.
    pub fn proven() -> Self {
        static PROVEN: OnceLock<Features> = OnceLock::new();
        *PROVEN.get_or_init(|| {
            let mut variants = Self::variants();
            variants.reverse();
            variants
                .into_iter()
                .map(|(_, features)| features)
                .find(|features| agrees(*features))
                .unwrap_or(Self::PLAIN)
        })
    }
}

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Sha1,
    Algorithm::Sha256,
    Algorithm::Sha384,
    Algorithm::Sha512,
];

fn agrees(features: Features) -> bool {
    let [tested, crates] = [features, Features::PLAIN].map(|features| {
        let texts = texts();
        (
            cbc(features, &texts),
            macs(features, &texts),
            chacha(features, &texts),
        )
    });
    tested.0.is_some() && tested.2.is_some() && tested == crates
}

/// A burst that fills every lane of every register and leaves some packets over, of lengths around the
/// limits of blocks.
fn texts() -> Vec<Vec<u8>> {
    let lengths = [0, 16, 48, 63, 64, 65, 112, 128, 300, 511, 512, 1024, 1409];
    (0..70u8)
        .map(|number| {
            let length = lengths[usize::from(number) % lengths.len()];
            (0..length)
                .map(|at| (at as u8).wrapping_mul(31) ^ number)
                .collect()
        })
        .collect()
}

/// Encrypted, then decrypted half of them.
fn cbc(features: Features, texts: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for key in [16, 24, 32] {
        let cipher = AesCbc::new(features, &[0x5c; 32][..key])?;
        let mut packets: Vec<Vec<u8>> = texts
            .iter()
            .map(|text| {
                let blocks = text.len() / BLOCK + 2;
                let mut packet = text.clone();
                packet.resize(blocks * BLOCK, 0x36);
                packet
            })
            .collect();
        cipher.encrypt(packets.iter_mut().filter_map(|packet| Chain::new(packet)));
        all.extend(packets.iter().cloned());
        cipher.decrypt(
            packets
                .iter_mut()
                .step_by(2)
                .filter_map(|packet| Chain::new(packet)),
        );
        all.extend(packets);
    }
    Some(all)
}

fn macs(features: Features, texts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for algorithm in ALGORITHMS {
        let mac = Hmac::new(features, algorithm, &[0x2b; 32]);
        let mut icvs = vec![vec![0; algorithm.mac_len() / 2]; texts.len()];
        mac.process(texts.iter().zip(&mut icvs).map(|(message, icv)| Job {
            message,
            high: (message.len() % 2 == 0).then_some([1, 2, 3, 4]),
            icv: Icv::Write(icv),
        }));
        all.extend(icvs);
    }
    all
}

/// Body, ICV, and whether it may be used.
type Sealed = (Vec<u8>, [u8; TAG], bool);

/// Sealed, and whether each is opened; one of them is forged.
fn chacha(features: Features, texts: &[Vec<u8>]) -> Option<Vec<Sealed>> {
    let cipher = ChaCha20Poly1305::new(features, &[0x77; 32], [9, 8, 7, 6])?;
    let mut all: Vec<_> = texts
        .iter()
        .map(|text| (text.clone(), [0; TAG], false))
        .collect();
    let packets = |all: &mut [Sealed], work: &dyn Fn(Vec<Packet<'_>>)| {
        let burst = all.iter_mut().zip(1u64..);
        work(
            burst
                .map(|((body, tag, ok), number)| Packet {
                    aad: number.to_be_bytes().into(),
                    iv: number.to_le_bytes(),
                    body,
                    tag,
                    ok,
                })
                .collect(),
        );
    };
    packets(&mut all, &|burst| cipher.seal(burst.into_iter()));
    let mut sealed = all.clone();
    if let Some((_, tag, _)) = all.last_mut() {
        tag[0] ^= 1;
    }
    packets(&mut all, &|burst| cipher.open(burst.into_iter()));
    // What is left of a forgery does not count.
    all.iter_mut()
        .filter(|(_, _, ok)| !ok)
        .for_each(|(body, ..)| body.clear());
    sealed.extend(all);
    Some(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_of_this_processor_is_proven() {
        for (name, features) in Features::variants() {
            assert!(agrees(features), "{name}");
        }
        assert_eq!(Features::proven(), Features::detect());
    }
}
