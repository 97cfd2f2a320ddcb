//! Pseudorandom functions (RFC 7296 sections 2.13 and 3.3.2; RFC 2104, RFC 4868).

use espada_common::sa::SecretBytes;
use espada_crypto::plain::AesMac;
use hmac::{Hmac, KeyInit, Mac};
use ring::hmac as ring_hmac;
use sha1::Sha1;
use zeroize::{Zeroize, Zeroizing};

use crate::proposal::Prf;

/// More asked of a PRF than it can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrfError {
    /// The iteration counter of prf+ is one octet.
    #[error("prf+ with {prf:?} yields at most {most} octets, {asked} were asked for")]
    TooLong {
        /// The PRF.
        prf: Prf,
        /// 255 times its output.
        most: usize,
        /// Octets asked for.
        asked: usize,
    },
}

/// A PRF with its key, ready for any number of inputs.
pub(crate) enum KeyedPrf {
    Sha1(Box<Hmac<Sha1>>),
    Aes(AesMac),
    Ring(ring_hmac::Key),
}

impl KeyedPrf {
    pub(crate) fn new(prf: Prf, key: &[u8]) -> Self {
        let algorithm = match prf {
            Prf::HmacSha1 => {
                // HMAC takes keys of any length, so this error cannot occur.
                let mac = Hmac::<Sha1>::new_from_slice(key).unwrap_or_else(|_| unreachable!());
                return Self::Sha1(Box::new(mac));
            }
            Prf::AesXcbc => return Self::Aes(aes(key, AesMac::xcbc)),
            Prf::AesCmac => return Self::Aes(aes(key, AesMac::cmac)),
            Prf::HmacSha256 => ring_hmac::HMAC_SHA256,
            Prf::HmacSha384 => ring_hmac::HMAC_SHA384,
            Prf::HmacSha512 => ring_hmac::HMAC_SHA512,
        };
        Self::Ring(ring_hmac::Key::new(algorithm, key))
    }

    /// Appends the PRF of the concatenated inputs to `out`.
    pub(crate) fn append(&self, inputs: &[&[u8]], out: &mut Vec<u8>) {
        match self {
            Self::Sha1(mac) => {
                let mut mac = mac.as_ref().clone();
                for input in inputs {
                    mac.update(input);
                }
                let mut tag = mac.finalize().into_bytes();
                out.extend_from_slice(&tag);
                tag.as_mut_slice().zeroize();
            }
            Self::Aes(mac) => {
                let mut sum = mac.sum(inputs);
                out.extend_from_slice(&sum);
                sum.zeroize();
            }
            Self::Ring(key) => {
                let mut context = ring_hmac::Context::with_key(key);
                for input in inputs {
                    context.update(input);
                }
                out.extend_from_slice(context.sign().as_ref());
            }
        }
    }
}

/// A PRF of AES-128 with a key of any length: AES-XCBC-PRF-128 fills a short one up with zeros (RFC
/// 4434 section 2), everything else that is no AES key is replaced by its MAC under a key of zeros
/// (RFC 4434, RFC 4615 section 3).
fn aes(key: &[u8], mac: fn(&[u8; 16]) -> AesMac) -> AesMac {
    if let Ok(key) = key.try_into() {
        return mac(key);
    }
    let mut fixed = Zeroizing::new([0; 16]);
    let under_zeros = mac(&fixed);
    match (&under_zeros, fixed.get_mut(..key.len())) {
        (AesMac::Xcbc(_), Some(head)) => head.copy_from_slice(key),
        _ => *fixed = under_zeros.sum(&[key]),
    }
    mac(&fixed)
}

/// `prf(key, inputs[0] | inputs[1] | …)`.
pub fn prf(prf: Prf, key: &[u8], inputs: &[&[u8]]) -> SecretBytes {
    let mut out = Vec::with_capacity(prf.output_len());
    KeyedPrf::new(prf, key).append(inputs, &mut out);
    SecretBytes::new(out)
}

/// The first `len` octets of `prf+(key, inputs[0] | inputs[1] | …)` (RFC 7296 section 2.13).
pub fn prf_plus(
    prf: Prf,
    key: &[u8],
    inputs: &[&[u8]],
    len: usize,
) -> Result<SecretBytes, PrfError> {
    let block = prf.output_len();
    let rounds = len.div_ceil(block);
    // The counter is a single octet: prf+ is not defined beyond 255 outputs (section 2.13).
    let Ok(rounds) = u8::try_from(rounds) else {
        return Err(PrfError::TooLong {
            prf,
            most: block * usize::from(u8::MAX),
            asked: len,
        });
    };
    let keyed = KeyedPrf::new(prf, key);
    // Reserved at once, so that no copy of key material is left behind by growth.
    let mut out = Vec::with_capacity(usize::from(rounds) * block);
    let mut previous = Zeroizing::new(Vec::with_capacity(block));
    for round in 1..=rounds {
        let counter = [round];
        let mut message: Vec<&[u8]> = Vec::with_capacity(inputs.len() + 2);
        message.push(&previous);
        message.extend_from_slice(inputs);
        message.push(&counter);
        keyed.append(&message, &mut out);
        let start = out.len() - block;
        previous.zeroize();
        previous.extend_from_slice(out.get(start..).unwrap_or_default());
    }
    // Truncation leaves the tail in the allocation; Zeroizing clears the whole capacity on drop.
    out.truncate(len);
    Ok(SecretBytes::new(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_util::hex;

    /// RFC 4231 section 4.3 (test case 2) and RFC 2202 section 3 (test case 2).
    #[test]
    fn hmac_vectors() {
        let cases = [
            (Prf::HmacSha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (
                Prf::HmacSha256,
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                Prf::HmacSha384,
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e
                 8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                Prf::HmacSha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554
                 9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ),
        ];
        for (algorithm, expected) in cases {
            let tag = prf(algorithm, b"Jefe", &[b"what do ya want ", b"for nothing?"]);
            assert_eq!(tag.expose(), hex(expected), "{algorithm:?}");
            assert_eq!(tag.expose().len(), algorithm.output_len());
        }
    }

    /// RFC 4434 section 2 and RFC 4615 section 4: keys of the block's length, longer and shorter.
    #[test]
    fn aes_prfs_take_keys_of_any_length() {
        let message: Vec<u8> = (0..20).collect();
        let key = hex("000102030405060708090a0b0c0d0e0fedcb");
        let cases = [
            (Prf::AesXcbc, 16, "47f51b4564966215b8985c63055ed308"),
            (Prf::AesXcbc, 10, "0fa087af7d866e7653434e602fdde835"),
            (Prf::AesXcbc, 18, "8cd3c93ae598a9803006ffb67c40e9e4"),
            (Prf::AesCmac, 18, "84a348a4a45d235babfffc0d2b4da09a"),
            (Prf::AesCmac, 16, "980ae87b5f4c9c5214f5b6a8455e4c2d"),
            (Prf::AesCmac, 10, "290d9e112edb09ee141fcf64c0b72f3d"),
        ];
        for (algorithm, len, expected) in cases {
            let sum = prf(algorithm, &key[..len], &[&message]);
            assert_eq!(sum.expose(), hex(expected), "{algorithm:?} {len}");
        }
    }

    /// RFC 4231 section 4.7 (test case 6): a key longer than the block.
    #[test]
    fn long_key() {
        let tag = prf(
            Prf::HmacSha256,
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"],
        );
        assert_eq!(
            tag.expose(),
            hex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
        );
    }

    #[test]
    fn prf_plus_is_the_chain_of_its_definition() {
        for algorithm in Prf::ALL {
            let t1 = prf(algorithm, b"k", &[b"seed", &[1]]);
            let t2 = prf(algorithm, b"k", &[t1.expose(), b"seed", &[2]]);
            let t3 = prf(algorithm, b"k", &[t2.expose(), b"seed", &[3]]);
            let chain = [t1.expose(), t2.expose(), t3.expose()].concat();
            let len = chain.len() - 5;
            let out = prf_plus(algorithm, b"k", &[b"se", b"ed"], len).unwrap();
            assert_eq!(out.expose(), &chain[..len]);
        }
    }

    #[test]
    fn prf_plus_stops_at_255_rounds() {
        assert_eq!(
            prf_plus(Prf::HmacSha1, b"k", &[], 255 * 20)
                .unwrap()
                .expose()
                .len(),
            5100
        );
        assert_eq!(
            prf_plus(Prf::HmacSha1, b"k", &[], 255 * 20 + 1).unwrap_err(),
            PrfError::TooLong {
                prf: Prf::HmacSha1,
                most: 5100,
                asked: 5101
            }
        );
    }
}
