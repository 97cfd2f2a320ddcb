//! Suites that few peers ask for, one packet at a time: AES-CCM (RFC 4309), AES-GMAC (RFC 4543),
//! AES-CTR (RFC 3686), 3DES (RFC 2451), no encryption (RFC 2410), and AES's own MACs.

use aes::cipher::Array;
use espada_common::sa::{Cipher, EspSuite, HalfSa, Integrity};
use espada_crypto::backend::Features;
use espada_crypto::cbc::{AesCbc, Chain};
use espada_crypto::gcm::{Icv, Single};
use espada_crypto::hmac::{self, Hmac};
use espada_crypto::plain::{AesMac, Ccm, Ctr, TripleDes};

use super::ApplyError;
use super::crypto::{ESP_HEADER, EspCrypto, IvGenerator, Job, esn_aad, high, hmac_algorithm};

/// One direction of an SA.
pub struct Plain {
    kind: Kind,
    icv_len: usize,
    esn: bool,
}

enum Kind {
    Ccm { cipher: Ccm, salt: [u8; 3] },
    Gmac { cipher: Box<Single>, salt: [u8; 4] },
    Split { cipher: Box<Split>, mac: Mac },
}

/// A cipher beside an integrity algorithm.
enum Split {
    Cbc(AesCbc, IvGenerator),
    TripleDes(TripleDes, IvGenerator),
    Ctr(Box<Ctr>),
    Null,
}

enum Mac {
    Hmac(Hmac),
    Aes(AesMac),
}

impl Plain {
    /// The keys have the suite's lengths.
    pub fn new(suite: &EspSuite, keys: &HalfSa) -> Result<Self, ApplyError> {
        let kind = Self::kind(suite, keys)?.ok_or(ApplyError::Suite(*suite))?;
        Ok(Self {
            kind,
            icv_len: suite.icv_len(),
            esn: suite.esn,
        })
    }

    fn kind(suite: &EspSuite, keys: &HalfSa) -> Result<Option<Kind>, ApplyError> {
        let key = keys.encryption_key.expose();
        let salted = key.split_last_chunk::<4>();
        let cipher = match suite.cipher {
            Cipher::AesCcm(_, icv) => {
                let parts = key.split_last_chunk();
                return Ok(parts.and_then(|(key, salt)| {
                    let cipher = Ccm::new(key, icv)?;
                    Some(Kind::Ccm {
                        cipher,
                        salt: *salt,
                    })
                }));
            }
            Cipher::AesGmac(_) => {
                return Ok(salted.and_then(|(key, salt)| {
                    let cipher = Box::new(Single::new(key, Icv::Sixteen).ok()?);
                    Some(Kind::Gmac {
                        cipher,
                        salt: *salt,
                    })
                }));
            }
            Cipher::AesCtr(_) => salted.and_then(|(key, nonce)| {
                Ctr::new(key, *nonce).map(|ctr| Split::Ctr(Box::new(ctr)))
            }),
            Cipher::AesCbc(_) => match AesCbc::new(Features::proven(), key) {
                Some(cipher) => Some(Split::Cbc(cipher, IvGenerator::new()?)),
                None => None,
            },
            Cipher::TripleDes => match key.try_into() {
                Ok(key) => Some(Split::TripleDes(TripleDes::new(key), IvGenerator::new()?)),
                Err(_) => None,
            },
            Cipher::Null => Some(Split::Null),
            Cipher::AesGcm(..) | Cipher::ChaCha20Poly1305 => None,
        };
        let mac = suite
            .integrity
            .and_then(|integrity| Mac::new(integrity, keys.integrity_key.expose()));
        Ok(cipher.zip(mac).map(|(cipher, mac)| Kind::Split {
            cipher: Box::new(cipher),
            mac,
        }))
    }

    /// Octets of the IV.
    fn iv_len(&self) -> usize {
        match &self.kind {
            Kind::Split { cipher, .. } => match &**cipher {
                Split::Cbc(..) => 16,
                Split::TripleDes(..) | Split::Ctr(_) => 8,
                Split::Null => 0,
            },
            Kind::Ccm { .. } | Kind::Gmac { .. } => 8,
        }
    }

    /// SPI and sequence number as they are authenticated by a combined mode.
    fn aad(&self, header: &[u8; ESP_HEADER], seq: u64) -> ([u8; 12], usize) {
        if self.esn {
            return (esn_aad(header, seq), 12);
        }
        let mut aad = [0; 12];
        aad[..ESP_HEADER].copy_from_slice(header);
        (aad, ESP_HEADER)
    }

    fn seal_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let end = packet.len().checked_sub(self.icv_len)?;
        let (message, icv) = packet.split_at_mut_checked(end)?;
        let iv_len = self.iv_len();
        let (header, rest) = message.split_first_chunk_mut::<ESP_HEADER>()?;
        let (iv, text) = rest.split_at_mut_checked(iv_len)?;
        let (aad, aad_len) = self.aad(header, seq);
        let aad = aad.get(..aad_len)?;
        match &self.kind {
            // The sequence number never repeats under a key, as it counts all 64 bits up.
            Kind::Ccm { cipher, salt } => {
                iv.copy_from_slice(&seq.to_be_bytes());
                cipher.seal(&nonce(salt, iv)?, aad, text, icv)
            }
            Kind::Gmac { cipher, salt } => {
                iv.copy_from_slice(&seq.to_be_bytes());
                let all = [aad, &*iv, &*text].concat();
                cipher.seal(&nonce(salt, iv)?, &all, &mut [], icv)
            }
            Kind::Split { cipher, mac } => {
                cipher.encrypt(iv, text, seq)?;
                mac.write(message, high(self.esn, seq), icv)
            }
        }
    }

    fn open_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let end = packet.len().checked_sub(self.icv_len)?;
        let (message, icv) = packet.split_at_mut_checked(end)?;
        if let Kind::Split { mac, .. } = &self.kind
            && !mac.verify(message, high(self.esn, seq), icv)
        {
            return None;
        }
        let iv_len = self.iv_len();
        let (header, rest) = message.split_first_chunk_mut::<ESP_HEADER>()?;
        let (iv, text) = rest.split_at_mut_checked(iv_len)?;
        let (aad, aad_len) = self.aad(header, seq);
        let aad = aad.get(..aad_len)?;
        match &self.kind {
            Kind::Ccm { cipher, salt } => cipher.open(&nonce(salt, iv)?, aad, text, icv),
            Kind::Gmac { cipher, salt } => {
                let all = [aad, &*iv, &*text].concat();
                cipher.open(&nonce(salt, iv)?, &all, &mut [], icv)
            }
            Kind::Split { cipher, .. } => cipher.decrypt(iv, text),
        }
    }
}

/// Salt and IV.
fn nonce<const SALT: usize, const NONCE: usize>(
    salt: &[u8; SALT],
    iv: &[u8],
) -> Option<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    let (head, tail) = nonce.split_at_mut_checked(SALT)?;
    head.copy_from_slice(salt);
    (tail.len() == iv.len()).then(|| tail.copy_from_slice(iv))?;
    Some(nonce)
}

impl Split {
    fn encrypt(&self, iv: &mut [u8], text: &mut [u8], seq: u64) -> Option<()> {
        let unpredictable = |generator: &IvGenerator, iv: &mut [u8]| {
            let mut blocks = [Array::from(u128::from(seq).to_be_bytes())];
            generator.replace(&mut blocks);
            iv.copy_from_slice(blocks.first()?.get(..iv.len())?);
            Some(())
        };
        match self {
            Self::Cbc(cipher, generator) => {
                unpredictable(generator, iv)?;
                with_chain(iv, text, |chain| cipher.encrypt(std::iter::once(chain)))
            }
            Self::TripleDes(cipher, generator) => {
                unpredictable(generator, iv)?;
                cipher.encrypt((&*iv).try_into().ok()?, text)
            }
            Self::Ctr(cipher) => {
                iv.copy_from_slice(&seq.to_be_bytes());
                cipher.apply((&*iv).try_into().ok()?, text);
                Some(())
            }
            Self::Null => Some(()),
        }
    }

    fn decrypt(&self, iv: &mut [u8], text: &mut [u8]) -> Option<()> {
        match self {
            Self::Cbc(cipher, _) => {
                with_chain(iv, text, |chain| cipher.decrypt(std::iter::once(chain)))
            }
            Self::TripleDes(cipher, _) => cipher.decrypt((&*iv).try_into().ok()?, text),
            Self::Ctr(cipher) => {
                cipher.apply((&*iv).try_into().ok()?, text);
                Some(())
            }
            Self::Null => Some(()),
        }
    }
}

/// Works on IV and text as AES-CBC of a burst takes them: in one piece.
fn with_chain(iv: &[u8], text: &mut [u8], work: impl FnOnce(Chain<'_>)) -> Option<()> {
    let mut whole = zeroize::Zeroizing::new([iv, text].concat());
    work(Chain::new(&mut whole)?);
    text.copy_from_slice(whole.get(iv.len()..)?);
    Some(())
}

impl Mac {
    fn new(integrity: Integrity, key: &[u8]) -> Option<Self> {
        Some(match (hmac_algorithm(integrity), integrity) {
            (Some(algorithm), _) => Self::Hmac(Hmac::new(Features::proven(), algorithm, key)),
            (None, Integrity::AesXcbc96) => Self::Aes(AesMac::xcbc(key.try_into().ok()?)),
            (None, _) => Self::Aes(AesMac::cmac(key.try_into().ok()?)),
        })
    }

    fn write(&self, message: &[u8], high: Option<[u8; 4]>, icv: &mut [u8]) -> Option<()> {
        match self {
            Self::Hmac(mac) => mac.process(std::iter::once(hmac::Job {
                message,
                high,
                icv: hmac::Icv::Write(icv),
            })),
            Self::Aes(mac) => {
                let sum = mac.sum(&[message, high.as_ref().map_or(&[][..], |it| it)]);
                icv.copy_from_slice(sum.get(..icv.len())?);
            }
        }
        Some(())
    }

    fn verify(&self, message: &[u8], high: Option<[u8; 4]>, icv: &[u8]) -> bool {
        match self {
            Self::Hmac(mac) => {
                let mut ok = false;
                mac.process(std::iter::once(hmac::Job {
                    message,
                    high,
                    icv: hmac::Icv::Verify(icv, &mut ok),
                }));
                ok
            }
            Self::Aes(mac) => mac.verify(&[message, high.as_ref().map_or(&[][..], |it| it)], icv),
        }
    }
}

impl EspCrypto for Plain {
    fn seal(&mut self, jobs: &mut [Job]) {
        for job in jobs {
            job.ok = self.seal_one(job.frame.data_mut(), job.seq).is_some();
        }
    }

    fn open(&mut self, jobs: &mut [Job]) {
        for job in jobs {
            job.ok = self.open_one(job.frame.data_mut(), job.seq).is_some();
        }
    }

    fn instructions(&self, _: usize) -> String {
        "RustCrypto, one packet at a time".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use espada_common::sa::SecretBytes;

    use super::*;
    use crate::esp::crypto;
    use crate::umem::Arena;

    fn job(packet: &[u8], seq: u64) -> Job {
        let mut frame = Arena::new(1, 2048).unwrap().take(1).get().unwrap();
        frame.append(packet.len()).unwrap().copy_from_slice(packet);
        Job::alone(frame, seq)
    }

    fn keys(suite: &EspSuite) -> HalfSa {
        let count = |from: u8, len: usize| SecretBytes::new((from..).take(len).collect());
        HalfSa {
            spi: 1,
            encryption_key: count(1, suite.cipher.keymat_len()),
            integrity_key: count(100, suite.integrity.map_or(0, Integrity::key_len)),
        }
    }

    /// Every suite protects every octet of a packet, and both halves of its sequence number.
    #[test]
    fn every_octet_of_every_suite_is_authenticated() {
        for suite in
            EspSuite::all().flat_map(|suite| [false, true].map(|esn| EspSuite { esn, ..suite }))
        {
            let keys = keys(&suite);
            let mut cipher = crypto::new(&suite, &keys).unwrap();
            let (iv, icv) = (suite.cipher.iv_len(), suite.icv_len());
            let plain: Vec<u8> = (0..8 + iv + 48 + icv).map(|at| at as u8).collect();
            let seq = 7 << 32 | 9;
            let mut jobs = [job(&plain, seq)];
            cipher.seal(&mut jobs);
            assert!(jobs[0].ok, "{suite}");
            let sealed = jobs[0].frame.data().to_vec();
            let hidden = !matches!(suite.cipher, Cipher::Null | Cipher::AesGmac(_));
            let text = 8 + iv..8 + iv + 48;
            assert_eq!(
                sealed[text.clone()] != plain[text.clone()],
                hidden,
                "{suite}"
            );
            let mut open = |packet: &[u8], seq| {
                let mut jobs = [job(packet, seq)];
                cipher.open(&mut jobs);
                jobs[0].ok.then(|| jobs[0].frame.data().to_vec())
            };
            let opened = open(&sealed, seq).unwrap();
            assert_eq!(opened[text.clone()], plain[text], "{suite}");
            // A combined mode takes an extended sequence number whole, and not from the header.
            let apart = suite.esn && suite.cipher.is_aead();
            for at in (0..sealed.len()).filter(|at| !(apart && (4..8).contains(at))) {
                let mut altered = sealed.clone();
                altered[at] ^= 0x10;
                assert!(open(&altered, seq).is_none(), "{suite} {at}");
            }
            assert_eq!(open(&sealed, 9).is_none(), suite.esn, "{suite}");
            assert!(open(&sealed[..7 + iv], seq).is_none(), "{suite}");
            assert!(open(&[], seq).is_none(), "{suite}");
        }
    }

    /// RFC 4543 has no vectors: AES-GCM of nothing, over header, IV and payload.
    #[test]
    fn gmac_covers_header_iv_and_payload() {
        let suite = EspSuite {
            cipher: Cipher::AesGmac(128),
            integrity: None,
            esn: true,
        };
        let keys = keys(&suite);
        let mut jobs = [job(&[5; 8 + 8 + 32 + 16], 1 << 40 | 3)];
        Plain::new(&suite, &keys).unwrap().seal(&mut jobs);
        let packet = jobs[0].frame.data();
        let (key, salt) = keys.encryption_key.expose().split_at(16);
        let gcm = Single::new(key, Icv::Sixteen).unwrap();
        let mut aad = packet[..4].to_vec();
        aad.extend((1u64 << 40 | 3).to_be_bytes());
        aad.extend(&packet[8..48]);
        let mut tag = [0; 16];
        let nonce = [salt, &packet[8..16]].concat().try_into().unwrap();
        gcm.seal(&nonce, &aad, &mut [], &mut tag).unwrap();
        assert_eq!(packet[48..], tag);
    }

    /// AES-CCM of RFC 4309: the salt goes before the IV, SPI and sequence number are authenticated.
    #[test]
    fn ccm_has_salt_and_header_where_rfc_4309_says() {
        let suite = EspSuite {
            cipher: Cipher::AesCcm(256, Icv::Twelve),
            integrity: None,
            esn: false,
        };
        let keys = keys(&suite);
        let mut jobs = [job(&[5; 8 + 8 + 32 + 12], 3)];
        Plain::new(&suite, &keys).unwrap().seal(&mut jobs);
        let packet = jobs[0].frame.data();
        let (key, salt) = keys.encryption_key.expose().split_at(32);
        let ccm = Ccm::new(key, Icv::Twelve).unwrap();
        let nonce = [salt, &packet[8..16]].concat().try_into().unwrap();
        let mut text = packet[16..48].to_vec();
        ccm.open(&nonce, &[5; 8], &mut text, &packet[48..]).unwrap();
        assert_eq!(text, [5; 32]);
    }
}
