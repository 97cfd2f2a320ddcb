//! The proof of who the peer is (RFC 7296 section 2.15, RFC 7427): nothing else makes a [`PeerProof`].

use std::sync::Arc;

use super::auth::Transcript;
use super::context::{Common, Cx};
use super::{explain, psk};
use crate::config::{ConnectionConfig, PskSecret, RemoteAddress, RemoteAuth, RemoteIdentity};
use crate::crypto::auth::{psk_verify, signed_message};
use crate::crypto::keys::IkeKeys;
use crate::crypto::signature::{
    Curve, EcdsaForm, HashAlgorithm, PublicKey, PublicKeyKind, SignatureAlgorithm,
};
use crate::identity::Identity;
use crate::refusal::Refusal;
use crate::status::Role;
use crate::wire::cert::Cert;
use crate::wire::id::Typed;
use crate::x509::{Certificate, Inquiry, Trust, TrustedKey};

/// Authentication method numbers (RFC 7296 section 3.8, RFC 4754, RFC 7427).
pub(crate) mod method {
    /// RSA Digital Signature
    pub const RSA: u8 = 1;
    /// Shared Key Message Integrity Code
    pub const PSK: u8 = 2;
    /// ECDSA with SHA-256 on the P-256 curve
    pub const ECDSA_256: u8 = 9;
    /// ECDSA with SHA-384 on the P-384 curve
    pub const ECDSA_384: u8 = 10;
    /// ECDSA with SHA-512 on the P-521 curve
    pub const ECDSA_521: u8 = 11;
    /// Digital Signature
    pub const SIGNATURE: u8 = 14;

    /// Whether it is a signature with a key that a certificate can be for.
    pub fn is_signature(method: u8) -> bool {
        matches!(method, RSA | ECDSA_256 | ECDSA_384 | ECDSA_521 | SIGNATURE)
    }
}

/// Most CERT payloads of a message that are looked at.
const MAX_CERTIFICATES: usize = 16;

/// Proof that the peer has the key of the identity it claims. Only [`verify`] makes one, here or in
/// the process that we go on after.
#[derive(Clone, Debug)]
pub(crate) struct PeerProof {
    identity: Identity,
    signed: bool,
    doubts: Vec<String>,
}

/// Why there is no proof.
#[derive(Clone, Debug)]
pub(crate) enum Unproven {
    /// The peer is not believed.
    Refused(Arc<Refusal>),
    /// Its signature is good, and servers are to be asked whether its certificates were revoked.
    Unasked(Vec<Inquiry>),
}

impl From<Arc<Refusal>> for Unproven {
    fn from(refusal: Arc<Refusal>) -> Self {
        Self::Refused(refusal)
    }
}

impl PeerProof {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it rests on a signature, not on a pre-shared key.
    pub fn signed(&self) -> bool {
        self.signed
    }

    /// Of which certificates it is not known whether they were revoked.
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// The proof that the process before us had, taken from its state.
    pub fn restored(identity: Identity, signed: bool) -> Self {
        Self {
            identity,
            signed,
            doubts: Vec::new(),
        }
    }
}

/// What a peer sent to prove who it is.
#[derive(Clone, Debug)]
pub(crate) struct Evidence<'a> {
    pub id: Typed<'a>,
    pub auth: Typed<'a>,
    pub certificates: &'a [Cert<'a>],
    /// It did not say SIGNATURE_HASH_ALGORITHMS: it only has the older methods.
    pub legacy: bool,
}

/// What the AUTH payload of the peer covers.
#[derive(Clone, Copy)]
pub(crate) struct Covered<'a> {
    pub signer: Role,
    pub keys: &'a IkeKeys,
    pub transcript: &'a Transcript,
}

/// Whether a connection's peer may have this identity; `address` is where it is.
pub(crate) fn accepts_identity(
    config: &ConnectionConfig,
    address: std::net::IpAddr,
    identity: &Identity,
) -> bool {
    match &config.remote_id {
        RemoteIdentity::Is(expected) => expected.matches(identity),
        RemoteIdentity::Matches(pattern) => pattern.matches(identity),
        RemoteIdentity::Address => {
            let expected = match config.remote_address {
                RemoteAddress::Address(configured) => configured,
                RemoteAddress::Any => address,
            };
            *identity == Identity::Address(expected)
        }
        RemoteIdentity::Any => true,
    }
}

/// Whether a connection's peer may authenticate by this method.
pub(crate) fn accepts_method(config: &ConnectionConfig, method: u8) -> bool {
    match config.remote_auth {
        RemoteAuth::Psk => method == method::PSK,
        RemoteAuth::PublicKey(_) => method::is_signature(method),
    }
}

/// Checks the peer's AUTH payload with the key its identity calls for; otherwise says why not.
pub(crate) fn verify(
    config: &ConnectionConfig,
    common: &Common,
    cx: &Cx<'_>,
    local_id: &Identity,
    evidence: &Evidence<'_>,
    covered: Covered<'_>,
) -> Result<PeerProof, Unproven> {
    let identity = Identity::from_wire(evidence.id.kind, evidence.id.data);
    if !accepts_method(config, evidence.auth.kind) {
        let method = evidence.auth.kind;
        return Err(explain::other_method(config, common, &identity, method).into());
    }
    match &config.remote_auth {
        RemoteAuth::Psk => {
            let Some(secret) = psk::find(cx.secrets, local_id, &identity) else {
                return Err(explain::no_secret(config, common, local_id, &identity).into());
            };
            verify_psk(secret, evidence, covered)
                .ok_or_else(|| explain::wrong_psk(config, common, &identity, &secret.origin).into())
        }
        RemoteAuth::PublicKey(trust) => {
            verify_signature(config, common, cx, trust, evidence, covered)
        }
    }
}

fn id_octets(id: Typed<'_>) -> Vec<u8> {
    let mut octets = Vec::new();
    id.encode(&mut octets);
    octets
}

fn verify_psk(
    secret: &PskSecret,
    evidence: &Evidence<'_>,
    covered: Covered<'_>,
) -> Option<PeerProof> {
    let id = id_octets(evidence.id);
    let signed = covered.transcript.signed(covered.signer, covered.keys, &id);
    let prf = covered.keys.prf;
    psk_verify(prf, secret.secret.expose(), signed, evidence.auth.data).then(|| PeerProof {
        identity: Identity::from_wire(evidence.id.kind, evidence.id.data),
        signed: false,
        doubts: Vec::new(),
    })
}

fn verify_signature(
    config: &ConnectionConfig,
    common: &Common,
    cx: &Cx<'_>,
    trust: &Trust,
    evidence: &Evidence<'_>,
    covered: Covered<'_>,
) -> Result<PeerProof, Unproven> {
    let identity = Identity::from_wire(evidence.id.kind, evidence.id.data);
    let refuse = |reason: String| explain::peer_unproven(config, common, &identity, &reason);
    let allow_sha1 = evidence.legacy && config.sha1_signatures;
    let signature = Signature::read(evidence.auth, allow_sha1).map_err(refuse)?;
    let keys = trusted_keys(config, common, cx, trust, evidence, &identity)?;
    let id = id_octets(evidence.id);
    let signed = covered.transcript.signed(covered.signer, covered.keys, &id);
    let message = signed_message(covered.keys.prf, signed);
    if let Some(key) = keys.iter().find(|key| signature.verify(key, &message)) {
        // Servers are asked only for who has proved to have the certificate's key.
        return match key.missing() {
            [] => Ok(PeerProof {
                identity,
                signed: true,
                doubts: key.doubts().to_vec(),
            }),
            missing => Err(Unproven::Unasked(missing.to_vec())),
        };
    }
    let kinds: Vec<String> = keys
        .iter()
        .map(|key| key.key().kind().to_string())
        .collect();
    let sha1 = evidence.auth.kind == method::RSA && !allow_sha1;
    let refusal = if sha1 && evidence.legacy {
        explain::wants_sha1(config, common, &identity)
    } else {
        refuse(format!(
            "its signature ({}) does not fit its key ({}): it has another private key, or somebody on the way changed the exchange",
            signature.name(),
            kinds.join(", ")
        ))
    };
    Err(refusal.into())
}

/// The keys with which the peer may have signed: the one of the first certificate it sent, or, where
/// it sent none, those that are configured for it.
fn trusted_keys(
    config: &ConnectionConfig,
    common: &Common,
    cx: &Cx<'_>,
    trust: &Trust,
    evidence: &Evidence<'_>,
    identity: &Identity,
) -> Result<Vec<TrustedKey>, Arc<Refusal>> {
    let refuse = |reason: String| explain::peer_unproven(config, common, identity, &reason);
    let sent = evidence.certificates.iter().take(MAX_CERTIFICATES);
    let mut certificates = Vec::new();
    let mut other_encoding = None;
    for cert in sent {
        match cert.encoding {
            Cert::X509 => match Certificate::from_der(cert.data) {
                Ok(certificate) => certificates.push(certificate),
                // Only the first one is needed whatever comes.
                Err(error) if certificates.is_empty() => {
                    return Err(refuse(format!("its certificate cannot be read: {error}")));
                }
                Err(_) => {}
            },
            Cert::RAW_KEY => {
                let key = PublicKey::from_spki(cert.data)
                    .map_err(|error| refuse(format!("the raw public key it sent: {error}")))?;
                return TrustedKey::configured(trust, &key)
                    .map(|key| vec![key])
                    .ok_or_else(|| {
                        refuse(format!(
                            "the raw public key it sent ({}) is none of those configured for it",
                            key.kind()
                        ))
                    });
            }
            other => other_encoding = Some(other),
        }
    }
    let Some(now) = cx.wall else {
        return Err(refuse(
            "the time of day is not known, so no certificate can be judged".to_owned(),
        ));
    };
    if let Some((leaf, others)) = certificates.split_first() {
        return TrustedKey::validate(trust, cx.answers, leaf, others, identity, now)
            .map(|key| vec![key])
            .map_err(|error| explain::untrusted(config, common, identity, &certificates, &error));
    }
    let mut keys: Vec<TrustedKey> = trust
        .keys
        .iter()
        .filter_map(|key| TrustedKey::configured(trust, key))
        .collect();
    let mut reason = None;
    for pinned in &trust.pinned {
        match TrustedKey::validate(trust, cx.answers, pinned, &[], identity, now) {
            Ok(key) => keys.push(key),
            Err(error) => reason = Some(error),
        }
    }
    if !keys.is_empty() {
        return Ok(keys);
    }
    Err(match (reason, other_encoding) {
        (Some(error), _) => explain::untrusted(config, common, identity, &[], &error),
        (None, Some(encoding)) => refuse(format!(
            "it sent its certificate in encoding {encoding}; X.509 (4) and raw public keys (15) are known"
        )),
        (None, None) => refuse(
            "it sent no certificate, and none is configured for it in remote.certs".to_owned(),
        ),
    })
}

/// The AUTH payload of a signature, taken apart.
struct Signature<'a> {
    algorithms: Vec<SignatureAlgorithm>,
    form: EcdsaForm,
    /// With the older methods the curve is part of the method.
    curve: Option<Curve>,
    octets: &'a [u8],
}

impl<'a> Signature<'a> {
    fn read(auth: Typed<'a>, allow_sha1: bool) -> Result<Self, String> {
        let classic = |curve: Curve| Self {
            algorithms: vec![SignatureAlgorithm::Ecdsa(curve.hash())],
            form: EcdsaForm::Fixed,
            curve: Some(curve),
            octets: auth.data,
        };
        match auth.kind {
            method::ECDSA_256 => Ok(classic(Curve::P256)),
            method::ECDSA_384 => Ok(classic(Curve::P384)),
            method::ECDSA_521 => Ok(classic(Curve::P521)),
            method::RSA => {
                // The hash function stands in the signature alone.
                let mut hashes = vec![
                    HashAlgorithm::Sha2_256,
                    HashAlgorithm::Sha2_384,
                    HashAlgorithm::Sha2_512,
                ];
                hashes.extend(allow_sha1.then_some(HashAlgorithm::Sha1));
                Ok(Self {
                    algorithms: hashes
                        .into_iter()
                        .map(SignatureAlgorithm::RsaPkcs1)
                        .collect(),
                    form: EcdsaForm::Der,
                    curve: None,
                    octets: auth.data,
                })
            }
            _ => {
                let damaged = || "its AUTH payload is cut short".to_owned();
                let (length, rest) = auth.data.split_first().ok_or_else(damaged)?;
                let (identifier, octets) = rest
                    .split_at_checked(usize::from(*length))
                    .ok_or_else(damaged)?;
                let algorithm =
                    SignatureAlgorithm::from_der(identifier).map_err(|error| error.to_string())?;
                if !HashAlgorithm::OFFERED.contains(&algorithm.hash()) {
                    return Err(format!(
                        "it signs by {algorithm}; the hash functions we accept are {}",
                        explain::hash_names(&HashAlgorithm::OFFERED)
                    ));
                }
                Ok(Self {
                    algorithms: vec![algorithm],
                    form: EcdsaForm::Der,
                    curve: None,
                    octets,
                })
            }
        }
    }

    fn verify(&self, key: &TrustedKey, message: &[u8]) -> bool {
        let key = key.key();
        let fits = self
            .curve
            .is_none_or(|curve| key.kind() == PublicKeyKind::Ecdsa(curve));
        fits && self
            .algorithms
            .iter()
            .any(|algorithm| key.verify(*algorithm, self.form, message, self.octets))
    }

    fn name(&self) -> String {
        let first = self.algorithms.first();
        first.map_or("by an unknown algorithm".to_owned(), ToString::to_string)
    }
}
