//! The ciphers of bursts with every instruction set that this processor has, against ring and RustCrypto.

use espada_common::sa::{GcmIcv, Integrity};
use espada_crypto::backend::Features;
use espada_crypto::cbc::{AesCbc, Chain};
use espada_crypto::chacha::{self, ChaCha20Poly1305};
use espada_crypto::cpu::Backend;
use espada_crypto::gcm::{self, AesGcm};
use espada_crypto::hmac::{self, Algorithm, Hmac, Icv};

use crate::input::{Input, noise};
use crate::reference;

/// Most packets of a burst, more than any engine here takes at a time.
const MOST: usize = 40;
/// Longest text, that of a jumbo frame.
const LONGEST: usize = 9000;

/// A burst with what is done to it.
struct Burst {
    key: [u8; 32],
    salt: [u8; 4],
    esn: bool,
    first: u64,
    texts: Vec<Vec<u8>>,
    /// Which packet is damaged, where, and how.
    victim: usize,
    at: usize,
    mask: u8,
}

impl Burst {
    fn read(input: &mut Input<'_>) -> Self {
        let seed = u64::from_be_bytes(input.array());
        let mut key = [0; 32];
        key.copy_from_slice(&noise(seed, 32));
        let first = u64::from_be_bytes(input.array()) >> 1;
        let (esn, victim, at) = (input.below(2) == 1, input.octet(), input.word());
        let mask = input.octet().max(1);
        let mut texts = Vec::new();
        while !input.is_empty() && texts.len() < MOST {
            // Most packets are short, so that long ones do not take all the time.
            let length = match input.below(4) {
                0 => usize::from(input.octet()) / 4,
                1 => usize::from(input.octet()),
                2 => usize::from(input.word()) % 1600,
                _ => usize::from(input.word()) % LONGEST,
            };
            texts.push(noise(seed ^ texts.len() as u64, length));
        }
        Self {
            key,
            salt: input.array(),
            esn,
            first,
            victim: usize::from(victim) % texts.len().max(1),
            texts,
            at: usize::from(at),
            mask,
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (u64, &Vec<u8>)> {
        (self.first..).zip(&self.texts)
    }

    fn header(&self, seq: u64) -> Vec<u8> {
        let mut header = vec![0x12, 0x34, 0x56, 0x78];
        header.extend((seq as u32).to_be_bytes());
        header
    }

    fn aad(&self, seq: u64) -> Vec<u8> {
        match self.esn {
            true => [&[0x12, 0x34, 0x56, 0x78][..], &seq.to_be_bytes()].concat(),
            false => self.header(seq),
        }
    }

    fn nonce(&self, seq: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&seq.to_be_bytes());
        nonce
    }
}

/// The first octets choose a cipher and its key length; the rest says what is in the burst, and what is damaged.
pub fn body(input: &[u8]) {
    let mut input = Input::new(input);
    let (cipher, choice) = (input.below(4), input.octet());
    let burst = Burst::read(&mut input);
    match cipher {
        0 => aes_gcm(&burst, choice.into()),
        1 => chacha20_poly1305(&burst),
        2 => aes_cbc(&burst, choice.into()),
        _ => hmac(&burst, choice.into()),
    }
}

/// What is left of a refused packet: what was sent, or nothing.
fn nothing_leaked(left: &[u8], sent: &[u8], what: &str) {
    assert!(
        left == sent || left.iter().all(|octet| *octet == 0),
        "{what} leaves something of a forged packet"
    );
}

fn aes_gcm(burst: &Burst, choice: usize) {
    let key = &burst.key[..[16, 24, 32][choice % 3]];
    let icv = [GcmIcv::Eight, GcmIcv::Twelve, GcmIcv::Sixteen][choice / 3 % 3];
    let expected: Vec<Vec<u8>> = burst
        .numbered()
        .map(|(seq, text)| {
            let mut body = text.clone();
            let tag = reference::gcm(key, burst.nonce(seq), &burst.aad(seq), &mut body);
            let head = burst.header(seq);
            [&head, &seq.to_be_bytes()[..], &body, &tag[..icv.octets()]].concat()
        })
        .collect();
    let run = |packets: &mut [Vec<u8>], work: &dyn Fn(&mut [gcm::Packet<'_>])| -> Vec<bool> {
        let mut burst: Vec<_> = packets
            .iter_mut()
            .zip(burst.first..)
            .map(|(octets, seq)| gcm::Packet::new(octets, seq))
            .collect();
        work(&mut burst);
        burst.iter().map(|packet| packet.ok).collect()
    };
    for backend in Backend::available() {
        let cipher = AesGcm::with_backend(backend, key, burst.salt, burst.esn, icv);
        let cipher = cipher.expect("it is available");
        let mut packets: Vec<Vec<u8>> = burst
            .numbered()
            .map(|(seq, text)| {
                let head = burst.header(seq);
                [&head, &[0x55; 8][..], text, &[0x55; 16][..icv.octets()]].concat()
            })
            .collect();
        let sealed = run(&mut packets, &|burst| cipher.seal(burst));
        assert!(sealed.iter().all(|ok| *ok), "{backend}");
        assert!(
            packets == expected,
            "{backend} seals otherwise than the reference"
        );
        if let Some(packet) = packets.get_mut(burst.victim) {
            // The sequence number counts as what it is said to be, not as what is in the header.
            let at = 8 + burst.at % (packet.len() - 8);
            packet[at] ^= burst.mask;
        }
        let sent = packets.clone();
        let opened = run(&mut packets, &|burst| cipher.open(burst));
        for (index, (packet, text)) in packets.iter().zip(&burst.texts).enumerate() {
            let body = gcm::HEADER..gcm::HEADER + text.len();
            assert_eq!(
                opened[index],
                index != burst.victim,
                "{backend} packet {index}"
            );
            if opened[index] {
                assert!(
                    packet[body] == text[..],
                    "{backend} opens to something else"
                );
            } else {
                nothing_leaked(&packet[body.clone()], &sent[index][body], "AES-GCM");
            }
        }
    }
}

fn chacha20_poly1305(burst: &Burst) {
    struct Parts {
        body: Vec<u8>,
        tag: [u8; 16],
        ok: bool,
    }
    let aad = |seq| {
        let octets = burst.aad(seq);
        let short = || chacha::Aad::from(<[u8; 8]>::try_from(&octets[..8]).expect("8 octets"));
        <[u8; 12]>::try_from(octets.as_slice()).map_or_else(|_| short(), chacha::Aad::from)
    };
    let expected: Vec<(Vec<u8>, Vec<u8>)> = burst
        .numbered()
        .map(|(seq, text)| {
            let mut body = text.clone();
            let tag = reference::chacha(&burst.key, burst.nonce(seq), &burst.aad(seq), &mut body);
            (body, tag)
        })
        .collect();
    fn packets<'a>(
        parts: &'a mut [Parts],
        first: u64,
        aad: impl Fn(u64) -> chacha::Aad,
    ) -> impl Iterator<Item = chacha::Packet<'a>> {
        parts
            .iter_mut()
            .zip(first..)
            .map(move |(parts, seq)| chacha::Packet {
                aad: aad(seq),
                iv: seq.to_be_bytes(),
                body: &mut parts.body,
                tag: &mut parts.tag,
                ok: &mut parts.ok,
            })
    }
    for (name, features) in Features::variants() {
        let cipher = ChaCha20Poly1305::new(features, &burst.key, burst.salt).expect("32 octets");
        let parts = |text: &Vec<u8>| Parts {
            body: text.clone(),
            tag: [0x55; 16],
            ok: false,
        };
        let mut parts: Vec<Parts> = burst.texts.iter().map(parts).collect();
        cipher.seal(packets(&mut parts, burst.first, aad));
        for (parts, (body, tag)) in parts.iter_mut().zip(&expected) {
            assert!(parts.ok, "{name}");
            assert!(parts.body == *body, "{name} encrypts otherwise than ring");
            assert!(
                parts.tag == tag[..],
                "{name} authenticates otherwise than ring"
            );
            parts.ok = false;
        }
        if let Some(parts) = parts.get_mut(burst.victim) {
            let at = burst.at % (parts.body.len() + 16);
            let octet = match at.checked_sub(parts.body.len()) {
                Some(at) => &mut parts.tag[at],
                None => &mut parts.body[at],
            };
            *octet ^= burst.mask;
        }
        let sent: Vec<Vec<u8>> = parts.iter().map(|parts| parts.body.clone()).collect();
        cipher.open(packets(&mut parts, burst.first, aad));
        for (index, (parts, text)) in parts.iter().zip(&burst.texts).enumerate() {
            assert_eq!(parts.ok, index != burst.victim, "{name} packet {index}");
            if parts.ok {
                assert!(parts.body == *text, "{name} opens to something else");
            } else {
                nothing_leaked(&parts.body, &sent[index], "ChaCha20-Poly1305");
            }
        }
    }
}

fn aes_cbc(burst: &Burst, choice: usize) {
    let key = &burst.key[..[16, 24, 32][choice % 3]];
    // An IV and whole blocks.
    let plain: Vec<Vec<u8>> = burst
        .numbered()
        .map(|(seq, text)| [&noise(seq, 16), &text[..text.len() / 16 * 16]].concat())
        .collect();
    let mut expected = plain.clone();
    for octets in &mut expected {
        let (iv, text) = octets.split_at_mut(16);
        reference::aes_cbc(key, iv, text);
    }
    for (name, features) in Features::variants() {
        let cipher = AesCbc::new(features, key).expect("a key of this length");
        let mut packets = plain.clone();
        cipher.encrypt(packets.iter_mut().filter_map(|octets| Chain::new(octets)));
        assert!(
            packets == expected,
            "{name} encrypts otherwise than the reference"
        );
        cipher.decrypt(packets.iter_mut().filter_map(|octets| Chain::new(octets)));
        assert!(packets == plain, "{name} decrypts to something else");
    }
}

fn hmac(burst: &Burst, choice: usize) {
    let (algorithm, integrity) = [
        (Algorithm::Sha1, Integrity::HmacSha1_96),
        (Algorithm::Sha256, Integrity::HmacSha256_128),
        (Algorithm::Sha384, Integrity::HmacSha384_192),
        (Algorithm::Sha512, Integrity::HmacSha512_256),
    ][choice % 4];
    let high = |seq: u64| burst.esn.then(|| ((seq >> 32) as u32).to_be_bytes());
    let expected: Vec<Vec<u8>> = burst
        .numbered()
        .map(|(seq, text)| {
            let high = high(seq);
            let high = high.as_ref().map_or(&[][..], |high| high);
            let message = [text.as_slice(), high].concat();
            reference::mac(integrity, &burst.key, &message)
        })
        .collect();
    let length = 1 + choice / 4 % algorithm.mac_len();
    for (name, features) in Features::variants() {
        let mac = Hmac::new(features, algorithm, &burst.key);
        let mut sums = vec![vec![0x55; length]; burst.texts.len()];
        mac.process(
            sums.iter_mut()
                .zip(burst.numbered())
                .map(|(sum, (seq, text))| hmac::Job {
                    message: text,
                    high: high(seq),
                    icv: Icv::Write(sum),
                }),
        );
        for (sum, expected) in sums.iter().zip(&expected) {
            assert!(
                *sum == expected[..length],
                "{name} sums up otherwise than ring"
            );
        }
        if let Some(sum) = sums.get_mut(burst.victim) {
            sum[burst.at % length] ^= burst.mask;
        }
        let mut same = vec![false; burst.texts.len()];
        let jobs = sums.iter().zip(&mut same).zip(burst.numbered());
        mac.process(jobs.map(|((sum, same), (seq, text))| hmac::Job {
            message: text,
            high: high(seq),
            icv: Icv::Verify(sum, same),
        }));
        for (index, same) in same.into_iter().enumerate() {
            assert_eq!(same, index != burst.victim, "{name} packet {index}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn bursts_of_all_kinds() {
        seeded::random(1500, 130, body);
    }
}
