//! Key derivation: a type for each stage (RFC 7296 sections 2.14, 2.17, 2.18; RFC 5282).

use espada_common::sa::{EspSuite, SecretBytes};

use super::prf::{PrfError, prf, prf_plus};
use crate::proposal::{IkeSuite, Prf};

/// What both sides contribute to an IKE SA besides the shared secret.
#[derive(Clone, Copy, Debug)]
pub struct IkeContext<'a> {
    /// Ni, without payload header.
    pub nonce_i: &'a [u8],
    /// Nr, without payload header.
    pub nonce_r: &'a [u8],
    /// The initiator's SPI of the SA whose keys these are.
    pub spi_i: [u8; 8],
    /// The responder's SPI of the SA whose keys these are.
    pub spi_r: [u8; 8],
}

/// SKEYSEED: consumed when the keys are made of it.
#[derive(Debug)]
pub struct SkeySeed {
    prf: Prf,
    seed: SecretBytes,
}

impl SkeySeed {
    /// SKEYSEED = prf(Ni | Nr, g^ir), for an IKE SA that does not replace another (section 2.14).
    pub fn initial(prf_new: Prf, context: &IkeContext<'_>, shared_secret: &SecretBytes) -> Self {
        let part = |nonce| match prf_new {
            // "only the first 64 bits of Ni and the first 64 bits of Nr are used in calculating
            // SKEYSEED" (section 2.14).
            Prf::AesXcbc | Prf::AesCmac => <[u8]>::get(nonce, ..8).unwrap_or(nonce),
            _ => nonce,
        };
        let nonces = [part(context.nonce_i), part(context.nonce_r)].concat();
        let seed = prf(prf_new, &nonces, &[shared_secret.expose()]);
        Self { prf: prf_new, seed }
    }

    /// SKEYSEED = prf(SK_d (old), SK(0) | Ni | Nr | SK(1) | … | SK(n)), with the PRF of the old SA
    /// (section 2.18, RFC 9370 section 2.2.4).
    ///
    /// `prf_new` is the PRF of the new SA, with which its keys are derived, `shared_secrets` are
    /// those of all its key exchanges.
    pub fn rekeyed(
        old: &IkeKeys,
        prf_new: Prf,
        context: &IkeContext<'_>,
        shared_secrets: &[SecretBytes],
    ) -> Self {
        let inputs = with_nonces(shared_secrets, context.nonce_i, context.nonce_r);
        let seed = prf(old.prf, old.d.expose(), &inputs);
        Self { prf: prf_new, seed }
    }

    /// SKEYSEED(n) = prf(SK_d(n - 1), SK(n) | Ni | Nr) after additional key exchange n of an
    /// IKE SA that is being made (RFC 9370 section 2.2.2).
    pub fn updated(old: &IkeKeys, context: &IkeContext<'_>, shared_secret: SecretBytes) -> Self {
        Self::rekeyed(old, old.prf, context, &[shared_secret])
    }

    /// {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+ (SKEYSEED, Ni | Nr | SPIi | SPIr).
    pub fn into_keys(
        self,
        suite: &IkeSuite,
        context: &IkeContext<'_>,
    ) -> Result<IkeKeys, PrfError> {
        let prf_len = self.prf.output_len();
        // With an AEAD there is no SK_ai and SK_ar, and SK_ei and SK_er end in the salt (RFC 5282
        // section 7).
        let integrity_len = suite.integrity.map_or(0, |integrity| integrity.key_len());
        let cipher_len = suite.cipher.keymat_len();
        let total = 3 * prf_len + 2 * integrity_len + 2 * cipher_len;
        let material = prf_plus(
            self.prf,
            self.seed.expose(),
            &[
                context.nonce_i,
                context.nonce_r,
                &context.spi_i,
                &context.spi_r,
            ],
            total,
        )?;
        let mut rest = material.expose();
        let mut take = |len| take(&mut rest, len);
        Ok(IkeKeys {
            prf: self.prf,
            d: take(prf_len),
            ai: take(integrity_len),
            ar: take(integrity_len),
            ei: take(cipher_len),
            er: take(cipher_len),
            pi: take(prf_len),
            pr: take(prf_len),
        })
    }
}

/// SK(0) | Ni | Nr | SK(1) | … | SK(n).
fn with_nonces<'a>(
    shared_secrets: &'a [SecretBytes],
    nonce_i: &'a [u8],
    nonce_r: &'a [u8],
) -> Vec<&'a [u8]> {
    let mut inputs: Vec<&[u8]> = shared_secrets.iter().map(SecretBytes::expose).collect();
    let first = inputs.len().min(1);
    inputs.splice(first..first, [nonce_i, nonce_r]);
    inputs
}

/// Splits the next `len` octets off.
fn take(rest: &mut &[u8], len: usize) -> SecretBytes {
    let (head, tail) = rest.split_at_checked(len).unwrap_or((rest, &[]));
    *rest = tail;
    SecretBytes::new(head.to_vec())
}

/// Keys of an IKE SA.
#[derive(Clone, Debug)]
pub struct IkeKeys {
    /// PRF of the SA.
    pub prf: Prf,
    /// SK_d, from which child SAs and the next IKE SA draw their keys.
    pub d: SecretBytes,
    /// SK_ai, empty for AEADs.
    pub ai: SecretBytes,
    /// SK_ar, empty for AEADs.
    pub ar: SecretBytes,
    /// SK_ei, for AEADs with the salt at its end.
    pub ei: SecretBytes,
    /// SK_er, for AEADs with the salt at its end.
    pub er: SecretBytes,
    /// SK_pi, for the initiator's AUTH payload.
    pub pi: SecretBytes,
    /// SK_pr, for the responder's AUTH payload.
    pub pr: SecretBytes,
}

impl IkeKeys {
    /// SK_d, SK_pi and SK_pr = prf+(PPK, the same without it) (RFC 8784 section 3).
    pub fn with_ppk(&self, ppk: &SecretBytes) -> Result<Self, PrfError> {
        let mix = |key: &SecretBytes| {
            let len = key.expose().len();
            prf_plus(self.prf, ppk.expose(), &[key.expose()], len)
        };
        Ok(Self {
            d: mix(&self.d)?,
            pi: mix(&self.pi)?,
            pr: mix(&self.pr)?,
            ..self.clone()
        })
    }
}

/// Keys of one direction of a child SA, as `HalfSa` has them.
#[derive(Clone, Debug)]
pub struct DirectionKeys {
    /// Encryption key, for AEADs with the salt at its end.
    pub encryption_key: SecretBytes,
    /// Integrity key, empty for AEADs.
    pub integrity_key: SecretBytes,
}

/// Keys of a child SA. "Initiator" is who initiated the exchange that makes this child SA.
#[derive(Clone, Debug)]
pub struct ChildKeys {
    /// For packets from the initiator to the responder.
    pub initiator_to_responder: DirectionKeys,
    /// For packets from the responder to the initiator.
    pub responder_to_initiator: DirectionKeys,
}

impl ChildKeys {
    /// KEYMAT = prf+(SK_d, [SK(0) |] Ni | Nr [| SK(1) | … | SK(n)]) (RFC 7296 section 2.17, RFC 9370
    /// section 2.2.4).
    ///
    /// The nonces are those of the exchange that makes the child SA; `shared_secrets` are those of
    /// its own key exchanges if it has any.
    pub fn derive(
        keys: &IkeKeys,
        suite: &EspSuite,
        nonce_i: &[u8],
        nonce_r: &[u8],
        shared_secrets: &[SecretBytes],
    ) -> Result<Self, PrfError> {
        let cipher_len = suite.cipher.keymat_len();
        let integrity_len = suite.integrity.map_or(0, |integrity| integrity.key_len());
        let material = prf_plus(
            keys.prf,
            keys.d.expose(),
            &with_nonces(shared_secrets, nonce_i, nonce_r),
            2 * (cipher_len + integrity_len),
        )?;
        let mut rest = material.expose();
        // "All keys for SAs carrying data from the initiator to the responder are taken before SAs
        // going from the responder to the initiator"; within one the encryption key comes first
        // (section 2.17).
        let mut direction = || DirectionKeys {
            encryption_key: take(&mut rest, cipher_len),
            integrity_key: take(&mut rest, integrity_len),
        };
        Ok(Self {
            initiator_to_responder: direction(),
            responder_to_initiator: direction(),
        })
    }
}

#[cfg(test)]
mod tests {
    use espada_common::sa::{Cipher, GcmIcv, Integrity};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::crypto::test_util::hex;
    use crate::proposal::DhGroup;

    // All expected values were made with Python 3.11's hmac and hashlib from the formulas of RFC
    // 7296, written down there anew.

    const NONCE_R: [u8; 24] = {
        let mut nonce = [0; 24];
        let mut index = 0;
        while index < nonce.len() {
            nonce[index] = 0x40 + index as u8;
            index += 1;
        }
        nonce
    };
    const NONCE_I: [u8; 32] = {
        let mut nonce = [0; 32];
        let mut index = 0;
        while index < nonce.len() {
            nonce[index] = index as u8;
            index += 1;
        }
        nonce
    };

    fn context() -> IkeContext<'static> {
        IkeContext {
            nonce_i: &NONCE_I,
            nonce_r: &NONCE_R,
            spi_i: [0x11; 8],
            spi_r: [0x22; 8],
        }
    }

    fn aead() -> IkeSuite {
        IkeSuite {
            cipher: Cipher::AesGcm(256, GcmIcv::Sixteen),
            integrity: None,
            prf: Prf::HmacSha256,
            group: DhGroup::Curve25519,
            additional: Default::default(),
        }
    }

    fn keys(suite: &IkeSuite) -> IkeKeys {
        let shared = SecretBytes::new(vec![0xab; 32]);
        SkeySeed::initial(suite.prf, &context(), &shared)
            .into_keys(suite, &context())
            .unwrap()
    }

    #[test]
    fn aead_keys_have_salts_and_no_integrity_keys() {
        let keys = keys(&aead());
        assert_eq!(
            keys.d.expose(),
            hex("b3d90eb9ed013f51a5fa756120074164ca4d93f4570e1135e4b1a45822a05b18")
        );
        assert!(keys.ai.expose().is_empty() && keys.ar.expose().is_empty());
        assert_eq!(
            keys.ei.expose(),
            hex("c2984402bbb683afb96e19cd0b83a8ad5378c580843f2157cbc9326f5a596d52f7108697")
        );
        assert_eq!(
            keys.er.expose(),
            hex("fb31d1814616240ed1fab3d7efe56ef1dc421c145970072ccc1484fadef293a7116a309f")
        );
        assert_eq!(
            keys.pi.expose(),
            hex("d4879e62c479521f2ab650df43de00a2c0ae4040f8a75df4fb01993bf2e22e43")
        );
        assert_eq!(
            keys.pr.expose(),
            hex("470dc44394f1f98bfbb417e4ae04265498766d63ad111e5748caf6be3b509a07")
        );
    }

    #[test]
    fn cbc_keys() {
        let keys = keys(&IkeSuite {
            cipher: Cipher::AesCbc(256),
            integrity: Some(Integrity::HmacSha1_96),
            prf: Prf::HmacSha1,
            group: DhGroup::Modp1024,
            additional: Default::default(),
        });
        assert_eq!(
            keys.d.expose(),
            hex("ffdde58d50415423ef7152f144ad8d416f3c8d83")
        );
        assert_eq!(
            keys.ai.expose(),
            hex("71fe600abb3ec91caba02a5321c5c1f81376a480")
        );
        assert_eq!(
            keys.ar.expose(),
            hex("d61773180b0eea152f88218b806cf11f67e04c25")
        );
        assert_eq!(
            keys.ei.expose(),
            hex("710601fedcd32effc3d3339b6b48ab002c2c9d45d0171776841c468729f16202")
        );
        assert_eq!(
            keys.er.expose(),
            hex("380ddf3aecd8a3739db565892d8da4ea98bbfc7704ea97d4b961142202893444")
        );
        assert_eq!(
            keys.pi.expose(),
            hex("71192512e283c9a29af0dac9fa4160ed65e424f7")
        );
        assert_eq!(
            keys.pr.expose(),
            hex("eb68c2e3bccab46799532437313e52292fc54f29")
        );
    }

    #[test]
    fn two_prfs_take_only_the_first_octets_of_the_nonces() {
        let (shared, context) = (SecretBytes::new(vec![0xab; 32]), context());
        let nonces = [&NONCE_I[..8], &NONCE_R[..8]].concat();
        for algorithm in [Prf::AesXcbc, Prf::AesCmac] {
            let seed = SkeySeed::initial(algorithm, &context, &shared);
            let expected = prf(algorithm, &nonces, &[shared.expose()]);
            assert_eq!(seed.seed.expose(), expected.expose());
        }
    }

    /// The old SA's PRF makes SKEYSEED, the new one's the keys.
    #[test]
    fn rekeyed_keys() {
        let suite = IkeSuite {
            prf: Prf::HmacSha512,
            ..aead()
        };
        let context = IkeContext {
            nonce_i: &[1; 16],
            nonce_r: &[2; 16],
            spi_i: [0x33; 8],
            spi_r: [0x44; 8],
        };
        let shared = SecretBytes::new(vec![0xcd; 32]);
        let seed = SkeySeed::rekeyed(&keys(&aead()), suite.prf, &context, &[shared]);
        let new = seed.into_keys(&suite, &context).unwrap();
        let all = [&new.d, &new.ei, &new.er, &new.pi, &new.pr]
            .map(|key| key.expose())
            .concat();
        assert_eq!(
            Sha256::digest(&all).as_slice(),
            hex("b50929a253fa51e363c3fc7d36b0ff2824eca8b737d77700da13d158dfc10aff")
        );
    }

    #[test]
    fn child_keys_come_in_the_order_of_section_2_17() {
        let suite = EspSuite {
            cipher: Cipher::AesCbc(256),
            integrity: Some(Integrity::HmacSha1_96),
            esn: false,
        };
        let child = ChildKeys::derive(&keys(&aead()), &suite, &NONCE_I, &NONCE_R, &[]).unwrap();
        let (out, back) = (&child.initiator_to_responder, &child.responder_to_initiator);
        assert_eq!(
            out.encryption_key.expose(),
            hex("7c773b68a1e9362105a03f5e156ac334a137f178bb5f38b3de94d154f334f421")
        );
        assert_eq!(
            out.integrity_key.expose(),
            hex("068109060654fdb93b22fce05a73795ef8ebe363")
        );
        assert_eq!(
            back.encryption_key.expose(),
            hex("8dfc5a0b10431451390fd1695656bce5bb8805b206fd9eb62df5cf5cd195627c")
        );
        assert_eq!(
            back.integrity_key.expose(),
            hex("1eca5be689242e6dfcc48b9286e725a1a3c6797f")
        );
    }

    #[test]
    fn child_keys_with_a_key_exchange_of_their_own() {
        let suite = EspSuite {
            cipher: Cipher::ChaCha20Poly1305,
            integrity: None,
            esn: true,
        };
        let shared = SecretBytes::new(vec![0xcd; 32]);
        let child =
            ChildKeys::derive(&keys(&aead()), &suite, &NONCE_I, &NONCE_R, &[shared]).unwrap();
        let (out, back) = (&child.initiator_to_responder, &child.responder_to_initiator);
        assert_eq!(
            out.encryption_key.expose(),
            hex("99705c56713e6b299b052038dbed4adf0efafc4fbfb3b34f93a6be5470ac0e5dba717472")
        );
        assert_eq!(
            back.encryption_key.expose(),
            hex("f449123a40de6c086a2cfa7e3547ec39f7b0042666dedc4ee921a86237d99ba087544abf")
        );
        assert!(out.integrity_key.expose().is_empty() && back.integrity_key.expose().is_empty());
    }

    /// The seed of every set of keys is the SK_d before it, with what is new.
    #[test]
    fn additional_key_exchanges_go_in_one_after_the_other() {
        let (suite, context) = (aead(), context());
        let before = keys(&suite);
        let secret = |octet| SecretBytes::new(vec![octet; 32]);
        let after = SkeySeed::updated(&before, &context, secret(1))
            .into_keys(&suite, &context)
            .unwrap();
        let seed = prf(
            Prf::HmacSha256,
            before.d.expose(),
            &[&[1; 32], &NONCE_I, &NONCE_R],
        );
        let inputs: [&[u8]; 5] = [&NONCE_I, &NONCE_R, &[0x11; 8], &[0x22; 8], &[1]];
        let d = prf(Prf::HmacSha256, seed.expose(), &inputs);
        assert_eq!(after.d.expose(), d.expose());

        let secrets = [secret(7), secret(8), secret(9)];
        let suite = EspSuite {
            cipher: Cipher::AesGcm(128, GcmIcv::Sixteen),
            integrity: None,
            esn: false,
        };
        let child = ChildKeys::derive(&before, &suite, &NONCE_I, &NONCE_R, &secrets).unwrap();
        let inputs: [&[u8]; 6] = [&[7; 32], &NONCE_I, &NONCE_R, &[8; 32], &[9; 32], &[1]];
        let keymat = prf(Prf::HmacSha256, before.d.expose(), &inputs);
        let key = &child.initiator_to_responder.encryption_key;
        assert_eq!(key.expose(), &keymat.expose()[..20]);
    }

    #[test]
    fn a_ppk_goes_into_three_keys() {
        let (without, ppk) = (keys(&aead()), SecretBytes::new(b"beforehand".to_vec()));
        let with = without.with_ppk(&ppk).unwrap();
        for (before, after) in [
            (&without.d, &with.d),
            (&without.pi, &with.pi),
            (&without.pr, &with.pr),
        ] {
            let expected = prf(Prf::HmacSha256, b"beforehand", &[before.expose(), &[1]]);
            assert_eq!(after.expose(), expected.expose());
        }
        assert_eq!(with.ei.expose(), without.ei.expose());
        assert_eq!(with.er.expose(), without.er.expose());
    }

    #[test]
    fn keys_are_not_shown() {
        let text = format!("{:?}", keys(&aead()));
        assert!(
            text.contains("secret octets") && !text.contains("179"),
            "{text}"
        );
    }
}
