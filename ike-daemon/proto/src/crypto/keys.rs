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
        let nonces = [context.nonce_i, context.nonce_r].concat();
        let seed = prf(prf_new, &nonces, &[shared_secret.expose()]);
        Self { prf: prf_new, seed }
    }

    /// SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr), with the PRF of the old SA (section 2.18).
    ///
    /// `prf_new` is the PRF of the new SA, with which its keys are derived.
    pub fn rekeyed(
        old: &IkeKeys,
        prf_new: Prf,
        context: &IkeContext<'_>,
        shared_secret: &SecretBytes,
    ) -> Self {
        let seed = prf(
            old.prf,
            old.d.expose(),
            &[shared_secret.expose(), context.nonce_i, context.nonce_r],
        );
        Self { prf: prf_new, seed }
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
    /// KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr) (RFC 7296 section 2.17).
    ///
    /// The nonces are those of the exchange that makes the child SA; `shared_secret` is that of
    /// its own key exchange if it has one.
    pub fn derive(
        keys: &IkeKeys,
        suite: &EspSuite,
        nonce_i: &[u8],
        nonce_r: &[u8],
        shared_secret: Option<&SecretBytes>,
    ) -> Result<Self, PrfError> {
        let cipher_len = suite.cipher.keymat_len();
        let integrity_len = suite.integrity.map_or(0, |integrity| integrity.key_len());
        let shared = shared_secret.map_or(&[][..], SecretBytes::expose);
        let material = prf_plus(
            keys.prf,
            keys.d.expose(),
            &[shared, nonce_i, nonce_r],
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
