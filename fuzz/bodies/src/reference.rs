//! ESP by other means: ring where it has the algorithm, RustCrypto's AES-GCM, and modes put together here from
//! single blocks, as the RFCs have them. Nothing of it is Espada's.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::consts::{U12, U16};
use espada_common::sa::{Cipher, EspSuite, HalfSa, Integrity};
use ring::{aead, hmac};

/// Encrypts blocks of `N` octets.
type Block<'a, const N: usize> = &'a dyn Fn([u8; N]) -> [u8; N];

/// AES with a key of 16, 24 or 32 octets.
fn aes(key: &[u8]) -> Box<dyn Fn([u8; 16]) -> [u8; 16]> {
    fn with<C: BlockCipherEncrypt<BlockSize = U16> + KeyInit + 'static>(
        key: &[u8],
    ) -> Box<dyn Fn([u8; 16]) -> [u8; 16]> {
        let cipher = C::new_from_slice(key).expect("a key of this length");
        Box::new(move |block| {
            let mut block = Array::from(block);
            cipher.encrypt_block(&mut block);
            block.into()
        })
    }
    match key.len() {
        16 => with::<aes::Aes128>(key),
        24 => with::<aes::Aes192>(key),
        _ => with::<aes::Aes256>(key),
    }
}

fn xor<const N: usize>(a: [u8; N], b: &[u8]) -> [u8; N] {
    let mut sum = a;
    for (octet, other) in sum.iter_mut().zip(b) {
        *octet ^= other;
    }
    sum
}

/// CBC (SP 800-38A section 6.2) over whole blocks.
fn cbc<const N: usize>(block: Block<'_, N>, iv: &[u8], text: &mut [u8]) {
    let mut chained = xor([0; N], iv);
    for octets in text.chunks_mut(N) {
        chained = block(xor(chained, octets));
        octets.copy_from_slice(&chained);
    }
}

/// AES-CBC, encrypted.
pub fn aes_cbc(key: &[u8], iv: &[u8], text: &mut [u8]) {
    cbc(&aes(key), iv, text);
}

/// Counter mode from this block on, of which the last 32 bits count.
fn ctr(block: Block<'_, 16>, mut counter: [u8; 16], text: &mut [u8]) {
    for octets in text.chunks_mut(16) {
        for (octet, key) in octets.iter_mut().zip(block(counter)) {
            *octet ^= key;
        }
        let low = u32::from_be_bytes([counter[12], counter[13], counter[14], counter[15]]);
        counter[12..].copy_from_slice(&low.wrapping_add(1).to_be_bytes());
    }
}

/// CCM (RFC 3610) with a nonce of 11 octets and associated data of at most 12: the ICV.
fn ccm(key: &[u8], nonce: &[u8], aad: &[u8], text: &mut [u8], tag: usize) -> Vec<u8> {
    let block = aes(key);
    let header = |flags: u8, number: usize| {
        let mut octets = [flags; 16];
        octets[1..12].copy_from_slice(nonce);
        octets[12..].copy_from_slice(&(number as u32).to_be_bytes());
        octets
    };
    let mut mac = block(header(0x40 | ((tag as u8 - 2) / 2) << 3 | 3, text.len()));
    let mut first = (aad.len() as u16).to_be_bytes().to_vec();
    first.extend(aad);
    mac = block(xor(mac, &first));
    for octets in text.chunks(16) {
        mac = block(xor(mac, octets));
    }
    ctr(&block, header(3, 1), text);
    xor(mac, &block(header(3, 0)))[..tag].to_vec()
}

/// AES-GCM: the ICV of 16 octets, of which a shorter one is the start.
pub fn gcm(key: &[u8], nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Vec<u8> {
    let algorithm = match key.len() {
        16 => &aead::AES_128_GCM,
        32 => &aead::AES_256_GCM,
        _ => {
            let cipher = aes_gcm::AesGcm::<aes_gcm::aes::Aes192, U12, U16>::new_from_slice(key);
            let cipher = cipher.expect("24 octets");
            let tag = cipher.encrypt_inout_detached(&nonce.into(), aad, text.into());
            return tag.expect("a short text").to_vec();
        }
    };
    ring_aead(algorithm, key, nonce, aad, text)
}

/// ChaCha20-Poly1305: the ICV.
pub fn chacha(key: &[u8], nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Vec<u8> {
    ring_aead(&aead::CHACHA20_POLY1305, key, nonce, aad, text)
}

fn ring_aead(
    algorithm: &'static aead::Algorithm,
    key: &[u8],
    nonce: [u8; 12],
    aad: &[u8],
    text: &mut [u8],
) -> Vec<u8> {
    let key = aead::UnboundKey::new(algorithm, key).expect("a key of this length");
    let nonce = aead::Nonce::assume_unique_for_key(nonce);
    let tag =
        aead::LessSafeKey::new(key).seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text);
    tag.expect("a short text").as_ref().to_vec()
}

/// CMAC (RFC 4493) and XCBC-MAC (RFC 3566): CBC-MAC that masks the last block, by whether it is whole.
fn block_mac(block: Block<'_, 16>, whole: [u8; 16], padded: [u8; 16], message: &[u8]) -> [u8; 16] {
    let blocks = message.len().div_ceil(16).max(1);
    let (before, last) = message.split_at((blocks - 1) * 16);
    let mut mac = [0; 16];
    for octets in before.chunks(16) {
        mac = block(xor(mac, octets));
    }
    let mask = if last.len() == 16 { whole } else { padded };
    mac = xor(xor(mac, last), &mask);
    if last.len() < 16 {
        mac[last.len()] ^= 0x80;
    }
    block(mac)
}

fn cmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let double = |octets: [u8; 16]| {
        let number = u128::from_be_bytes(octets);
        let reduced = if number >> 127 == 1 { 0x87 } else { 0 };
        ((number << 1) ^ reduced).to_be_bytes()
    };
    let block = aes(key);
    let whole = double(block([0; 16]));
    block_mac(&block, whole, double(whole), message).to_vec()
}

fn xcbc(key: &[u8], message: &[u8]) -> Vec<u8> {
    let block = aes(key);
    let inner = aes(&block([1; 16]));
    block_mac(&inner, block([2; 16]), block([3; 16]), message).to_vec()
}

/// The whole MAC of an integrity algorithm.
pub fn mac(integrity: Integrity, key: &[u8], message: &[u8]) -> Vec<u8> {
    let algorithm = match integrity {
        Integrity::HmacSha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        Integrity::HmacSha256_128 => hmac::HMAC_SHA256,
        Integrity::HmacSha384_192 => hmac::HMAC_SHA384,
        Integrity::HmacSha512_256 => hmac::HMAC_SHA512,
        Integrity::AesCmac96 => return cmac(key, message),
        Integrity::AesXcbc96 => return xcbc(key, message),
    };
    hmac::sign(&hmac::Key::new(algorithm, key), message)
        .as_ref()
        .to_vec()
}

/// The ESP packet with this IV and this plaintext, which is padded and has its trailer.
pub fn seal(suite: &EspSuite, keys: &HalfSa, seq: u64, iv: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut packet = keys.spi.to_be_bytes().to_vec();
    packet.extend((seq as u32).to_be_bytes());
    let mut aad = keys.spi.to_be_bytes().to_vec();
    if suite.esn {
        aad.extend(seq.to_be_bytes());
    } else {
        aad.extend((seq as u32).to_be_bytes());
    }
    packet.extend(iv);
    let material = keys.encryption_key.expose();
    let (key, salt) = material.split_at(material.len() - suite.cipher.salt_len());
    let nonce: Vec<u8> = [salt, iv].concat();
    let twelve = || nonce.as_slice().try_into().expect("salt and IV");
    let mut text = plaintext.to_vec();
    let icv = match suite.cipher {
        Cipher::AesGcm(..) => gcm(key, twelve(), &aad, &mut text),
        Cipher::ChaCha20Poly1305 => chacha(key, twelve(), &aad, &mut text),
        Cipher::AesCcm(_, icv) => ccm(key, &nonce, &aad, &mut text, icv.octets()),
        Cipher::AesGmac(_) => gcm(key, twelve(), &[&aad, iv, &text].concat(), &mut []),
        Cipher::AesCbc(_) => {
            aes_cbc(key, iv, &mut text);
            Vec::new()
        }
        Cipher::AesCtr(_) => {
            let mut counter = [0, 0, 0, 1].repeat(4);
            counter[..12].copy_from_slice(&nonce);
            ctr(&aes(key), counter.try_into().expect("16 octets"), &mut text);
            Vec::new()
        }
        Cipher::TripleDes => {
            let cipher = des::TdesEde3::new_from_slice(key).expect("24 octets");
            let block = |octets: [u8; 8]| {
                let mut octets = Array::from(octets);
                cipher.encrypt_block(&mut octets);
                octets.into()
            };
            cbc(&block, iv, &mut text);
            Vec::new()
        }
        Cipher::Null => Vec::new(),
    };
    packet.extend(text);
    let icv = match suite.integrity {
        Some(integrity) => {
            let mut message = packet.clone();
            if suite.esn {
                message.extend(((seq >> 32) as u32).to_be_bytes());
            }
            mac(integrity, keys.integrity_key.expose(), &message)
        }
        None => icv,
    };
    packet.extend(&icv[..suite.icv_len()]);
    packet
}
