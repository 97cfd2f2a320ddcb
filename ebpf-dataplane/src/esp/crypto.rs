//! The seam to the ciphers: [`EspCrypto`] works on a burst of packets of one SA, so an engine that
//! interleaves packets can take the place of the ones here.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit, consts::U16};
use espada_common::sa::{Cipher, EspSuite, HalfSa, Integrity};
use espada_crypto::backend::Features;
use espada_crypto::cbc::{AesCbc, Chain};
use espada_crypto::chacha::{self, ChaCha20Poly1305};
use espada_crypto::gcm::{self, AesGcm};
use espada_crypto::hmac::{self, Algorithm, Hmac, Icv};
use zeroize::Zeroizing;

use super::ApplyError;
use super::plain::Plain;
use crate::umem::Frame;

/// Octets of SPI and sequence number.
pub const ESP_HEADER: usize = 8;

/// One packet on its way through a cipher, or a row of them that is to be sealed ([`Meta::row`]). `frame` holds
/// exactly the ESP packet: SPI, sequence number, room for (or) the IV, payload with trailer, room for (or) the ICV.
///
/// [`Meta::row`]: crate::umem::Meta::row
pub struct Job {
    /// The packet or the row.
    pub frame: Frame,
    /// Its full sequence number, the first one of a row; the header carries the low 32 bits.
    pub seq: u64,
    /// Set by [`EspCrypto::seal`] and [`EspCrypto::open`]: the packet may be used.
    pub ok: bool,
    /// The SA's place in its table.
    pub(super) slot: u32,
    /// Place in the burst, which sorting by SA keeps.
    pub(super) order: u32,
    /// Octets of outer header in the headroom right before the packet.
    pub(super) head: usize,
    /// Octets of inner packet, of all of a row.
    pub(super) octets: u64,
}

impl Job {
    /// A packet that belongs to no SA's table.
    pub(crate) fn alone(frame: Frame, seq: u64) -> Self {
        Self {
            frame,
            seq,
            ok: false,
            slot: 0,
            order: 0,
            head: 0,
            octets: 0,
        }
    }

    /// Gives the packet its sequence number, those of a row this one and the next ones.
    pub(super) fn number(&mut self, seq: u64) {
        self.seq = seq;
        let stride = self.frame.stride();
        for (packet, seq) in self.frame.data_mut().chunks_mut(stride).zip(seq..) {
            if let Some(field) = packet.get_mut(4..ESP_HEADER) {
                field.copy_from_slice(&(seq as u32).to_be_bytes());
            }
        }
    }
}

/// Brings jobs of one SA together, in their order. Does nothing when they are already.
pub(super) fn group(jobs: &mut [Job]) {
    if !jobs.is_sorted_by_key(|job| job.slot) {
        jobs.sort_unstable_by_key(|job| (job.slot, job.order));
    }
}

/// Encryption and authentication with the key of one SA.
pub trait EspCrypto: Send {
    /// Writes IV and ICV and encrypts in place.
    fn seal(&mut self, jobs: &mut [Job]);

    /// Whether jobs that are rows of packets can be sealed.
    fn seals_rows(&self) -> bool {
        false
    }

    /// Verifies the ICV, then decrypts in place. The octets of a job left with `ok == false`
    /// are unspecified.
    fn open(&mut self, jobs: &mut [Job]);

    /// Names what takes full bursts of packets with `len` encrypted octets: instructions, or a
    /// crate.
    fn instructions(&self, len: usize) -> String;
}

/// Whether the ciphers here carry `suite`: all that there is.
pub fn supports(suite: &EspSuite) -> bool {
    let plain = EspSuite {
        esn: false,
        ..*suite
    };
    EspSuite::all().any(|known| known == plain)
}

/// The cipher for one direction of an SA.
pub fn new(suite: &EspSuite, keys: &HalfSa) -> Result<Box<dyn EspCrypto>, ApplyError> {
    if !supports(suite) {
        return Err(ApplyError::Suite(*suite));
    }
    let check = |what, expected, got| {
        if expected == got {
            Ok(())
        } else {
            Err(ApplyError::KeyLength {
                suite: *suite,
                what,
                expected,
                got,
            })
        }
    };
    let encryption = keys.encryption_key.expose();
    let integrity = keys.integrity_key.expose();
    check("encryption", suite.cipher.keymat_len(), encryption.len())?;
    check(
        "integrity",
        suite.integrity.map_or(0, Integrity::key_len),
        integrity.len(),
    )?;

    let unfit = ApplyError::Suite(*suite);
    let salted = || encryption.split_last_chunk().ok_or(unfit.clone());
    Ok(match (suite.cipher, suite.integrity) {
        (Cipher::AesGcm(_, icv), _) => {
            let (key, salt) = salted()?;
            let cipher = AesGcm::new(key, *salt, suite.esn, icv);
            Box::new(Gcm(cipher.map_err(|_| unfit)?))
        }
        (Cipher::ChaCha20Poly1305, _) => {
            let (key, salt) = salted()?;
            Box::new(ChaCha {
                cipher: ChaCha20Poly1305::new(Features::proven(), key, *salt).ok_or(unfit)?,
                esn: suite.esn,
            })
        }
        (Cipher::AesCbc(_), integrity) => match integrity.and_then(hmac_algorithm) {
            Some(algorithm) => {
                let features = Features::proven();
                Box::new(CbcHmac::new(features, suite, algorithm, keys)?)
            }
            None => Box::new(Plain::new(suite, keys)?),
        },
        _ => Box::new(Plain::new(suite, keys)?),
    })
}

/// AES-GCM (RFC 4106).
struct Gcm(AesGcm);

/// Packets handed to AES-GCM at once.
const GCM_BURST: usize = 16;

impl Gcm {
    /// Hands packets with their numbers to the cipher, at most [`GCM_BURST`]: which of them may be used. What is
    /// behind them is false.
    #[inline(always)]
    fn burst<'a>(
        numbered: impl Iterator<Item = (&'a mut [u8], u64)>,
        work: impl FnOnce(&mut [gcm::Packet<'_>]),
    ) -> [bool; GCM_BURST] {
        let mut packets: [_; GCM_BURST] = std::array::from_fn(|_| gcm::Packet::new(&mut [], 0));
        let mut count = 0;
        for (packet, (octets, seq)) in packets.iter_mut().zip(numbered) {
            *packet = gcm::Packet::new(octets, seq);
            count += 1;
        }
        work(packets.get_mut(..count).unwrap_or_default());
        packets.map(|packet| packet.ok)
    }

    fn each(jobs: &mut [Job], work: impl Fn(&mut [gcm::Packet<'_>])) {
        for jobs in jobs.chunks_mut(GCM_BURST) {
            let numbered = jobs.iter_mut().map(|job| (job.frame.data_mut(), job.seq));
            let outcomes = Self::burst(numbered, &work);
            for (job, ok) in jobs.iter_mut().zip(outcomes) {
                job.ok = ok;
            }
        }
    }

    fn seal_row(&mut self, job: &mut Job) {
        let stride = job.frame.stride();
        let groups = job.frame.data_mut().chunks_mut(GCM_BURST * stride);
        job.ok = true;
        for (group, first) in groups.zip((job.seq..).step_by(GCM_BURST)) {
            let count = group.len().div_ceil(stride);
            let numbered = group.chunks_mut(stride).zip(first..);
            let outcomes = Self::burst(numbered, |packets| self.0.seal(packets));
            job.ok &= outcomes.into_iter().take(count).all(|ok| ok);
        }
    }
}

impl EspCrypto for Gcm {
    // The sequence number, of which AES-GCM makes the IV, never repeats under a key: it counts
    // all 64 bits up and the SA ends before it would wrap.
    fn seal(&mut self, jobs: &mut [Job]) {
        let single = |job: &Job| job.frame.meta().row.is_none();
        for jobs in jobs.chunk_by_mut(|a, b| single(a) && single(b)) {
            match jobs {
                [job] if !single(job) => self.seal_row(job),
                _ => Self::each(jobs, |packets| self.0.seal(packets)),
            }
        }
    }

    fn seals_rows(&self) -> bool {
        true
    }

    fn open(&mut self, jobs: &mut [Job]) {
        Self::each(jobs, |packets| self.0.open(packets));
    }

    fn instructions(&self, _: usize) -> String {
        gcm::backend().to_string()
    }
}

/// RFC 7634 section 2.1: with extended sequence numbers the AAD is the SPI and all 64 bits, although
/// the header carries only 32 of them.
pub(super) fn esn_aad(header: &[u8; ESP_HEADER], seq: u64) -> [u8; 12] {
    let mut aad = [0; 12];
    aad[..4].copy_from_slice(&header[..4]);
    aad[4..].copy_from_slice(&seq.to_be_bytes());
    aad
}

/// ChaCha20-Poly1305 (RFC 7634), with nonce and associated data as for AES-GCM.
struct ChaCha {
    cipher: ChaCha20Poly1305,
    esn: bool,
}

impl ChaCha {
    /// The parts of a packet, with the IV that it has or is given; `None` when it is too short.
    fn packet<'a>(&self, job: &'a mut Job, iv: Option<[u8; 8]>) -> Option<chacha::Packet<'a>> {
        job.ok = false;
        let (header, rest) = job.frame.data_mut().split_first_chunk_mut::<ESP_HEADER>()?;
        let (place, rest) = rest.split_first_chunk_mut::<8>()?;
        let (body, tag) = rest.split_last_chunk_mut()?;
        if let Some(iv) = iv {
            *place = iv;
        }
        Some(chacha::Packet {
            aad: if self.esn {
                esn_aad(header, job.seq).into()
            } else {
                (*header).into()
            },
            iv: *place,
            body,
            tag,
            ok: &mut job.ok,
        })
    }
}

impl EspCrypto for ChaCha {
    fn seal(&mut self, jobs: &mut [Job]) {
        // RFC 7634 section 2: the IV need only never repeat, as the sequence number does not.
        let packets = jobs.iter_mut().filter_map(|job| {
            let iv = job.seq.to_be_bytes();
            self.packet(job, Some(iv))
        });
        self.cipher.seal(packets);
    }

    fn open(&mut self, jobs: &mut [Job]) {
        let packets = jobs.iter_mut().filter_map(|job| self.packet(job, None));
        self.cipher.open(packets);
    }

    fn instructions(&self, len: usize) -> String {
        self.cipher.instructions(len).to_owned()
    }
}

/// AES-CBC (RFC 3602) with an HMAC (RFC 2404, RFC 4868), encrypt then MAC. Each step takes the
/// whole burst.
struct CbcHmac {
    cipher: AesCbc,
    mac: Hmac,
    iv: IvGenerator,
    icv_len: usize,
    esn: bool,
}

/// The HMAC of an integrity algorithm, if it is one.
pub(super) fn hmac_algorithm(integrity: Integrity) -> Option<Algorithm> {
    Some(match integrity {
        Integrity::HmacSha1_96 => Algorithm::Sha1,
        Integrity::HmacSha256_128 => Algorithm::Sha256,
        Integrity::HmacSha384_192 => Algorithm::Sha384,
        Integrity::HmacSha512_256 => Algorithm::Sha512,
        Integrity::AesXcbc96 | Integrity::AesCmac96 => return None,
    })
}

/// The high 32 bits of a sequence number. RFC 4303 section 2.2.1: with a separate integrity
/// algorithm those of an extended sequence number are not sent, but the MAC covers them behind the
/// packet.
pub(super) fn high(esn: bool, seq: u64) -> Option<[u8; 4]> {
    esn.then(|| ((seq >> 32) as u32).to_be_bytes())
}

impl CbcHmac {
    fn new(
        features: Features,
        suite: &EspSuite,
        algorithm: Algorithm,
        keys: &HalfSa,
    ) -> Result<Self, ApplyError> {
        Ok(Self {
            cipher: AesCbc::new(features, keys.encryption_key.expose())
                .ok_or(ApplyError::Suite(*suite))?,
            mac: Hmac::new(features, algorithm, keys.integrity_key.expose()),
            iv: IvGenerator::new()?,
            icv_len: suite.icv_len(),
            esn: suite.esn,
        })
    }

    /// IV and ciphertext of a packet; `None` when these are not whole blocks.
    fn chain<'a>(&self, packet: &'a mut [u8]) -> Option<Chain<'a>> {
        let end = packet.len().checked_sub(self.icv_len)?;
        Chain::new(packet.get_mut(ESP_HEADER..end)?)
    }
}

impl EspCrypto for CbcHmac {
    fn seal(&mut self, jobs: &mut [Job]) {
        for jobs in jobs.chunks_mut(IV_BATCH) {
            let mut ivs = [Array::default(); IV_BATCH];
            let ivs = &mut ivs[..jobs.len()];
            for (iv, job) in ivs.iter_mut().zip(&*jobs) {
                *iv = u128::from(job.seq).to_be_bytes().into();
            }
            self.iv.replace(ivs);
            for (iv, job) in ivs.iter().zip(jobs) {
                let chain = self.chain(job.frame.data_mut());
                job.ok = chain.is_some();
                if let Some(mut chain) = chain {
                    chain.set_iv(iv.as_ref());
                }
            }
        }
        let chains = jobs.iter_mut();
        self.cipher
            .encrypt(chains.filter_map(|job| self.chain(job.frame.data_mut())));
        let sealed = jobs.iter_mut().filter(|job| job.ok);
        self.mac.process(sealed.filter_map(|job| {
            let high = high(self.esn, job.seq);
            let packet = job.frame.data_mut();
            let end = packet.len().checked_sub(self.icv_len)?;
            let (message, icv) = packet.split_at_mut_checked(end)?;
            Some(hmac::Job {
                message,
                high,
                icv: Icv::Write(icv),
            })
        }));
    }

    fn open(&mut self, jobs: &mut [Job]) {
        self.mac.process(jobs.iter_mut().filter_map(|job| {
            job.ok = false;
            let high = high(self.esn, job.seq);
            let packet = job.frame.data();
            let end = packet.len().checked_sub(self.icv_len)?;
            let (message, icv) = packet.split_at_checked(end)?;
            Some(hmac::Job {
                message,
                high,
                icv: Icv::Verify(icv, &mut job.ok),
            })
        }));
        let authentic = jobs.iter_mut().filter(|job| job.ok);
        self.cipher.decrypt(authentic.filter_map(|job| {
            let chain = self.chain(job.frame.data_mut());
            job.ok = chain.is_some();
            chain
        }));
    }

    fn instructions(&self, _: usize) -> String {
        let (cipher, mac) = (self.cipher.instructions(), self.mac.instructions());
        format!("{cipher}, {mac}")
    }
}

/// CBC wants IVs that nobody can predict (RFC 3602 section 3), or chosen plaintext can be tested
/// against earlier blocks. The sequence number encrypted under a random key of its own is that,
/// never repeats within the SA, and needs no call to the system per packet.
pub(super) struct IvGenerator(aes::Aes128);

/// IVs made at a time: one alone waits for each round of its cipher.
const IV_BATCH: usize = 8;

impl IvGenerator {
    pub fn new() -> Result<Self, ApplyError> {
        let mut key = Zeroizing::new([0; 16]);
        getrandom::fill(&mut *key).map_err(|error| ApplyError::Random(error.to_string()))?;
        Ok(Self(aes::Aes128::new((&*key).into())))
    }

    /// Replaces sequence numbers by IVs.
    pub fn replace(&self, blocks: &mut [Array<u8, U16>]) {
        self.0.encrypt_blocks(blocks);
    }
}

#[cfg(test)]
mod tests {
    use espada_common::sa::SecretBytes;

    use super::*;
    use crate::umem::Arena;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn job(packet: &[u8], seq: u64) -> Job {
        let mut frame = Arena::new(1, 2048).unwrap().take(1).get().unwrap();
        frame.append(packet.len()).unwrap().copy_from_slice(packet);
        Job::alone(frame, seq)
    }

    fn keys(encryption: &[u8], integrity: &[u8]) -> HalfSa {
        HalfSa {
            spi: 1,
            encryption_key: SecretBytes::new(encryption.to_vec()),
            integrity_key: SecretBytes::new(integrity.to_vec()),
        }
    }

    fn open(suite: EspSuite, keys: &HalfSa, packet: &[u8], seq: u64) -> Option<Vec<u8>> {
        let mut jobs = [job(packet, seq)];
        new(&suite, keys).unwrap().open(&mut jobs);
        jobs[0].ok.then(|| jobs[0].frame.data().to_vec())
    }

    /// RFC 7634 appendix A.
    #[test]
    fn chacha20_poly1305_of_rfc_7634() {
        let keymat: Vec<u8> = (0x80..=0xa3).collect();
        let plain = hex(
            "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
             0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
             2425262728292a2b2c2d2e2f303132333435363701020204",
        );
        let packet = hex("01020304000000051011121314151617
             24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
             14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3
             cbec163fac469b502773f6fb94e664da9165b82829f641e0
             76aaa8266b7fb0f7b11b369907e1ad43");
        let suite = EspSuite {
            cipher: Cipher::ChaCha20Poly1305,
            integrity: None,
            esn: false,
        };
        let opened = open(suite, &keys(&keymat, &[]), &packet, 5).unwrap();
        assert_eq!(opened[16..16 + plain.len()], plain);
    }

    /// draft-mcgrew-gcm-test-01, a packet with extended sequence numbers (RFC 4106).
    #[test]
    fn aes_gcm_esp_with_esn() {
        let keymat = hex("4c80cdefbb5d10da906ac73c3613a6342e443b68");
        let plain = hex(
            "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
             00000000045f736970045f756470037369700963796265726369747902646b00
             0021000101020201",
        );
        let packet = hex("00004321000000004956ed7e3b244cfe
             fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
             cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
             61bc17d768fd9732459018148f6cbe722fd04796562dfdb4");
        let suite = EspSuite {
            cipher: Cipher::AesGcm(128, gcm::Icv::Sixteen),
            integrity: None,
            esn: true,
        };
        let keys = keys(&keymat, &[]);
        let opened = open(suite, &keys, &packet, 0x8765_4321_0000_0000).unwrap();
        assert_eq!(opened[16..16 + plain.len()], plain);
        assert!(open(suite, &keys, &packet, 0).is_none());
        assert!(
            open(
                EspSuite {
                    esn: false,
                    ..suite
                },
                &keys,
                &packet,
                0
            )
            .is_none()
        );
    }

    /// What RFC 4303 and RFC 3602 say of each packet of a burst, put together from the parts.
    #[test]
    fn a_burst_of_cbc_with_hmac_is_what_its_packets_are_alone() {
        let suite = EspSuite {
            cipher: Cipher::AesCbc(256),
            integrity: Some(Integrity::HmacSha256_128),
            esn: true,
        };
        let keys = keys(&[7; 32], &[8; 32]);
        let cipher = AesCbc::new(Features::PLAIN, &[7; 32]).unwrap();
        let mac = Hmac::new(Features::PLAIN, Algorithm::Sha256, &[8; 32]);
        let plain = |at: usize| vec![at as u8; ESP_HEADER + 16 * (2 + 7 * at % 40) + 16];
        let seq = |at: usize| (5 << 32) + at as u64;
        let mut jobs: Vec<_> = (0..37).map(|at| job(&plain(at), seq(at))).collect();
        let mut esp = new(&suite, &keys).unwrap();
        esp.seal(&mut jobs);
        for (at, job) in jobs.iter_mut().enumerate() {
            assert!(job.ok);
            let mut packet = job.frame.data().to_vec();
            let end = packet.len() - 16;
            let (message, icv) = packet.split_at_mut(end);
            let mut same = false;
            mac.process(std::iter::once(hmac::Job {
                message,
                high: Some([0, 0, 0, 5]),
                icv: Icv::Verify(icv, &mut same),
            }));
            assert!(same, "packet {at}");
            cipher.decrypt(Chain::new(&mut message[ESP_HEADER..]).into_iter());
            assert_eq!(message[ESP_HEADER + 16..], plain(at)[ESP_HEADER + 16..end]);
        }
        let forged = [0, 9, 36];
        for at in forged {
            jobs[at].frame.data_mut()[ESP_HEADER] ^= 1;
        }
        esp.open(&mut jobs);
        for (at, job) in jobs.iter().enumerate() {
            assert_eq!(job.ok, !forged.contains(&at), "packet {at}");
            let (got, plain) = (job.frame.data(), plain(at));
            let text = ESP_HEADER + 16..plain.len() - 16;
            assert!(!job.ok || got[text.clone()] == plain[text]);
        }
        // No room for an IV, and not whole blocks.
        let mut jobs = [job(&[0; 30], 1), job(&[0; 8 + 16 + 15 + 16], 2)];
        esp.seal(&mut jobs);
        assert!(jobs.iter().all(|job| !job.ok));
        esp.open(&mut jobs);
        assert!(jobs.iter().all(|job| !job.ok));
    }

    #[test]
    fn wrong_keys_and_suites_are_refused() {
        let gcm = EspSuite {
            cipher: Cipher::AesGcm(256, gcm::Icv::Sixteen),
            integrity: None,
            esn: false,
        };
        assert!(matches!(
            new(&gcm, &keys(&[0; 32], &[])).err(),
            Some(ApplyError::KeyLength {
                expected: 36,
                got: 32,
                ..
            })
        ));
        let naked = EspSuite {
            cipher: Cipher::AesCbc(128),
            integrity: None,
            esn: false,
        };
        assert_eq!(
            new(&naked, &keys(&[0; 16], &[])).err(),
            Some(ApplyError::Suite(naked))
        );
    }

    #[test]
    fn cbc_ivs_differ_between_packets_and_between_sas() {
        let ivs = |generator: IvGenerator| {
            let mut blocks = [1u128, 2].map(|seq| Array::from(seq.to_be_bytes()));
            generator.replace(&mut blocks);
            blocks
        };
        let one = ivs(IvGenerator::new().unwrap());
        let other = ivs(IvGenerator::new().unwrap());
        assert_ne!(one[0], one[1]);
        assert_ne!(one[0], other[0]);
    }
}
