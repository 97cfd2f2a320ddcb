//! The seam to the ciphers: [`EspCrypto`] works on a burst of packets of one SA, so an engine that
//! interleaves packets can take the place of the ones here.

use aes::cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit,
    KeyInit, consts::U16,
};
use espada_common::sa::{Cipher, EspSuite, HalfSa, Integrity};
use espada_crypto::gcm::{AesGcm, Icv, Packet};
use hmac::{Hmac, Mac};
use ring::aead;
use zeroize::Zeroizing;

use super::ApplyError;
use crate::umem::Frame;

/// Octets of SPI and sequence number.
pub const ESP_HEADER: usize = 8;

/// One packet on its way through a cipher. `frame` holds exactly the ESP packet: SPI, sequence
/// number, room for (or) the IV, payload with trailer, room for (or) the ICV.
pub struct Job {
    /// The packet.
    pub frame: Frame,
    /// Its full sequence number; the header carries the low 32 bits.
    pub seq: u64,
    /// Set by [`EspCrypto::seal`] and [`EspCrypto::open`]: the packet may be used.
    pub ok: bool,
    /// The SA's place in its table.
    pub(super) slot: u32,
    /// Place in the burst, which sorting by SA keeps.
    pub(super) order: u32,
    /// Octets of outer header in the headroom right before the packet.
    pub(super) head: usize,
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

    /// Verifies the ICV, then decrypts in place. The octets of a job left with `ok == false`
    /// are unspecified.
    fn open(&mut self, jobs: &mut [Job]);
}

/// Whether the ciphers here carry `suite`.
pub fn supports(suite: &EspSuite) -> bool {
    match (suite.cipher, suite.integrity) {
        (Cipher::AesGcm16(bits), None) | (Cipher::AesCbc(bits), Some(_)) => {
            matches!(bits, 128 | 192 | 256)
        }
        (Cipher::ChaCha20Poly1305, None) => true,
        _ => false,
    }
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
    match (suite.cipher, suite.integrity) {
        (Cipher::AesGcm16(_), _) => {
            let (key, salt) = encryption.split_last_chunk().ok_or(unfit.clone())?;
            let cipher =
                AesGcm::new(key, *salt, suite.esn, Icv::Sixteen).map_err(|_| unfit.clone())?;
            Ok(Box::new(Gcm(cipher)))
        }
        (Cipher::ChaCha20Poly1305, _) => {
            let (key, salt) = encryption.split_last_chunk().ok_or(unfit.clone())?;
            let key =
                aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key).map_err(|_| unfit.clone())?;
            Ok(Box::new(ChaCha {
                key: aead::LessSafeKey::new(key),
                salt: *salt,
                esn: suite.esn,
            }))
        }
        (Cipher::AesCbc(bits), Some(algorithm)) => Ok(Box::new(CbcHmac {
            cipher: match bits {
                128 => Box::new(Cbc(
                    aes::Aes128::new_from_slice(encryption).map_err(|_| unfit)?
                )),
                192 => Box::new(Cbc(
                    aes::Aes192::new_from_slice(encryption).map_err(|_| unfit)?
                )),
                _ => Box::new(Cbc(
                    aes::Aes256::new_from_slice(encryption).map_err(|_| unfit)?
                )),
            },
            mac: keyed_mac(algorithm, integrity).ok_or(ApplyError::Suite(*suite))?,
            iv: IvGenerator::new()?,
            icv_len: algorithm.icv_len(),
            esn: suite.esn,
        })),
        (Cipher::AesCbc(_), None) => Err(unfit),
    }
}

/// AES-GCM (RFC 4106).
struct Gcm(AesGcm);

/// Packets handed to AES-GCM at once.
const GCM_BURST: usize = 16;

impl Gcm {
    fn burst(jobs: &mut [Job], work: impl Fn(&mut [Packet<'_>])) {
        for jobs in jobs.chunks_mut(GCM_BURST) {
            let count = jobs.len();
            let mut packets: [_; GCM_BURST] = std::array::from_fn(|_| Packet::new(&mut [], 0));
            for (packet, job) in packets.iter_mut().zip(&mut *jobs) {
                *packet = Packet::new(job.frame.data_mut(), job.seq);
            }
            work(packets.get_mut(..count).unwrap_or_default());
            let outcomes = packets.map(|packet| packet.ok);
            for (job, ok) in jobs.iter_mut().zip(outcomes) {
                job.ok = ok;
            }
        }
    }
}

impl EspCrypto for Gcm {
    // The sequence number, of which AES-GCM makes the IV, never repeats under a key: it counts
    // all 64 bits up and the SA ends before it would wrap.
    fn seal(&mut self, jobs: &mut [Job]) {
        Self::burst(jobs, |packets| self.0.seal(packets));
    }

    fn open(&mut self, jobs: &mut [Job]) {
        Self::burst(jobs, |packets| self.0.open(packets));
    }
}

/// ChaCha20-Poly1305 (RFC 7634): a nonce of salt and 8-octet IV.
struct ChaCha {
    key: aead::LessSafeKey,
    salt: [u8; 4],
    esn: bool,
}

impl ChaCha {
    fn nonce(&self, iv: [u8; 8]) -> aead::Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&iv);
        aead::Nonce::assume_unique_for_key(nonce)
    }

    fn seal_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let (header, rest) = packet.split_first_chunk_mut::<ESP_HEADER>()?;
        let (iv, rest) = rest.split_first_chunk_mut::<8>()?;
        let (body, tag) = rest.split_last_chunk_mut::<16>()?;
        // RFC 7634 section 2 asks for IVs that never repeat under a key. The sequence number does
        // not: it counts all 64 bits up and the SA ends before it would wrap.
        *iv = seq.to_be_bytes();
        let nonce = self.nonce(*iv);
        let computed = if self.esn {
            self.key
                .seal_in_place_separate_tag(nonce, aead::Aad::from(esn_aad(header, seq)), body)
        } else {
            self.key
                .seal_in_place_separate_tag(nonce, aead::Aad::from(&*header), body)
        };
        tag.copy_from_slice(computed.ok()?.as_ref());
        Some(())
    }

    fn open_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let (header, rest) = packet.split_first_chunk_mut::<ESP_HEADER>()?;
        let (iv, body) = rest.split_first_chunk_mut::<8>()?;
        let nonce = self.nonce(*iv);
        let opened = if self.esn {
            self.key
                .open_in_place(nonce, aead::Aad::from(esn_aad(header, seq)), body)
        } else {
            self.key
                .open_in_place(nonce, aead::Aad::from(&*header), body)
        };
        opened.ok().map(|_| ())
    }
}

/// RFC 7634 section 2.1: with extended sequence numbers the AAD is the SPI and all 64 bits, although
/// the header carries only 32 of them.
fn esn_aad(header: &[u8; ESP_HEADER], seq: u64) -> [u8; 12] {
    let mut aad = [0; 12];
    aad[..4].copy_from_slice(&header[..4]);
    aad[4..].copy_from_slice(&seq.to_be_bytes());
    aad
}

impl EspCrypto for ChaCha {
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
}

/// AES-CBC (RFC 3602) with an HMAC (RFC 2404, RFC 4868), encrypt then MAC.
struct CbcHmac {
    cipher: Box<dyn BlockChain>,
    mac: Box<dyn PacketMac>,
    iv: IvGenerator,
    icv_len: usize,
    esn: bool,
}

impl CbcHmac {
    /// RFC 4303 section 2.2.1: with a separate integrity algorithm the high 32 bits of an extended
    /// sequence number are not sent, but the MAC covers them behind the packet.
    fn high(&self, seq: u64) -> Option<[u8; 4]> {
        self.esn.then(|| ((seq >> 32) as u32).to_be_bytes())
    }

    fn seal_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let at = packet.len().checked_sub(self.icv_len)?;
        let (covered, icv) = packet.split_at_mut_checked(at)?;
        let (iv, body) = covered
            .get_mut(ESP_HEADER..)?
            .split_first_chunk_mut::<16>()?;
        *iv = self.iv.next(seq);
        self.cipher.encrypt(iv, body)?;
        self.mac.compute(covered, self.high(seq), icv)
    }

    fn open_one(&self, packet: &mut [u8], seq: u64) -> Option<()> {
        let at = packet.len().checked_sub(self.icv_len)?;
        let (covered, icv) = packet.split_at_mut_checked(at)?;
        if !self.mac.verify(covered, self.high(seq), icv) {
            return None;
        }
        let (iv, body) = covered
            .get_mut(ESP_HEADER..)?
            .split_first_chunk_mut::<16>()?;
        self.cipher.decrypt(iv, body)
    }
}

impl EspCrypto for CbcHmac {
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
}

/// CBC wants IVs that nobody can predict (RFC 3602 section 3), or chosen plaintext can be tested
/// against earlier blocks. The sequence number encrypted under a random key of its own is that,
/// never repeats within the SA, and needs no call to the system per packet.
struct IvGenerator(aes::Aes128);

impl IvGenerator {
    fn new() -> Result<Self, ApplyError> {
        let mut key = Zeroizing::new([0; 16]);
        getrandom::fill(&mut *key).map_err(|error| ApplyError::Random(error.to_string()))?;
        Ok(Self(aes::Aes128::new((&*key).into())))
    }

    fn next(&self, seq: u64) -> [u8; 16] {
        let mut block = Array::from(u128::from(seq).to_be_bytes());
        self.0.encrypt_block(&mut block);
        block.into()
    }
}

/// A block cipher in CBC mode; `None` when the data is not a whole number of blocks.
trait BlockChain: Send {
    fn encrypt(&self, iv: &[u8; 16], data: &mut [u8]) -> Option<()>;
    fn decrypt(&self, iv: &[u8; 16], data: &mut [u8]) -> Option<()>;
}

struct Cbc<C>(C);

impl<C> BlockChain for Cbc<C>
where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + Send,
{
    fn encrypt(&self, iv: &[u8; 16], data: &mut [u8]) -> Option<()> {
        let (blocks, rest) = Array::slice_as_chunks_mut(data);
        if !rest.is_empty() {
            return None;
        }
        cbc::Encryptor::inner_iv_init(&self.0, iv.into()).encrypt_blocks(blocks);
        Some(())
    }

    fn decrypt(&self, iv: &[u8; 16], data: &mut [u8]) -> Option<()> {
        let (blocks, rest) = Array::slice_as_chunks_mut(data);
        if !rest.is_empty() {
            return None;
        }
        cbc::Decryptor::inner_iv_init(&self.0, iv.into()).decrypt_blocks(blocks);
        Some(())
    }
}

/// A MAC over a packet and the high half of its sequence number, truncated to the ICV.
trait PacketMac: Send {
    /// `None` when `icv` is longer than the MAC.
    fn compute(&self, packet: &[u8], high: Option<[u8; 4]>, icv: &mut [u8]) -> Option<()>;

    /// Compares in constant time.
    fn verify(&self, packet: &[u8], high: Option<[u8; 4]>, icv: &[u8]) -> bool;
}

/// Any MAC whose keyed state can be cloned: a packet then costs no key schedule.
struct Keyed<M>(M);

impl<M: Mac + Clone> Keyed<M> {
    fn over(&self, packet: &[u8], high: Option<[u8; 4]>) -> M {
        let mut mac = self.0.clone();
        mac.update(packet);
        if let Some(high) = high {
            mac.update(&high);
        }
        mac
    }
}

impl<M: Mac + Clone + Send> PacketMac for Keyed<M> {
    fn compute(&self, packet: &[u8], high: Option<[u8; 4]>, icv: &mut [u8]) -> Option<()> {
        let full = self.over(packet, high).finalize().into_bytes();
        icv.copy_from_slice(full.get(..icv.len())?);
        Some(())
    }

    fn verify(&self, packet: &[u8], high: Option<[u8; 4]>, icv: &[u8]) -> bool {
        self.over(packet, high).verify_truncated_left(icv).is_ok()
    }
}

fn keyed_mac(algorithm: Integrity, key: &[u8]) -> Option<Box<dyn PacketMac>> {
    Some(match algorithm {
        Integrity::HmacSha1_96 => Box::new(Keyed(Hmac::<sha1::Sha1>::new_from_slice(key).ok()?)),
        Integrity::HmacSha256_128 => {
            Box::new(Keyed(Hmac::<sha2::Sha256>::new_from_slice(key).ok()?))
        }
        Integrity::HmacSha384_192 => {
            Box::new(Keyed(Hmac::<sha2::Sha384>::new_from_slice(key).ok()?))
        }
        Integrity::HmacSha512_256 => {
            Box::new(Keyed(Hmac::<sha2::Sha512>::new_from_slice(key).ok()?))
        }
    })
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
        Job {
            frame,
            seq,
            ok: false,
            slot: 0,
            order: 0,
            head: 0,
        }
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
            cipher: Cipher::AesGcm16(128),
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

    /// RFC 3602 section 4, case 4 (four blocks), with RFC 4231 having tested the MACs' crates.
    #[test]
    fn cbc_is_the_cbc_of_rfc_3602() {
        let key = hex("56e47a38c5598974bc46903dba290349");
        let iv: [u8; 16] = hex("8ce82eefbea0da3c44699ed7db51b7d9").try_into().unwrap();
        let cipher = Cbc(aes::Aes128::new_from_slice(&key).unwrap());
        let plain: Vec<u8> = (0xa0..=0xdf).collect();
        let mut data = plain.clone();
        cipher.encrypt(&iv, &mut data).unwrap();
        assert_eq!(
            data,
            hex(
                "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e
                 35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55"
            )
        );
        cipher.decrypt(&iv, &mut data).unwrap();
        assert_eq!(data, plain);
        assert!(cipher.encrypt(&iv, &mut [0; 17]).is_none());
    }

    #[test]
    fn wrong_keys_and_suites_are_refused() {
        let gcm = EspSuite {
            cipher: Cipher::AesGcm16(256),
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
        let (one, other) = (IvGenerator::new().unwrap(), IvGenerator::new().unwrap());
        assert_ne!(one.next(1), one.next(2));
        assert_ne!(one.next(1), other.next(1));
    }
}
