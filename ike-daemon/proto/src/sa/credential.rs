//! How we prove who we are: CERT and AUTH payloads of ours, CERTREQ, SIGNATURE_HASH_ALGORITHMS.

use std::sync::Arc;

use super::auth::Transcript;
use super::context::{Common, Cx};
use super::proof::method;
use super::{explain, psk, respond};
use crate::config::{ConnectionConfig, Credential, LocalAuth, RemoteAuth, SendCert};
use crate::crypto::auth::{psk_auth, signed_message};
use crate::crypto::keys::IkeKeys;
use crate::crypto::signature::{
    Curve, EcdsaForm, HashAlgorithm, PublicKeyKind, SignatureAlgorithm,
};
use crate::identity::Identity;
use crate::refusal::Refusal;
use crate::status::Role;
use crate::wire::cert::Cert;
use crate::wire::id::Typed;
use crate::wire::{Notify, NotifyType, Payload, PayloadType, Writer};

/// What the peer says it can verify.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Hash functions of its SIGNATURE_HASH_ALGORITHMS, if it sent that (RFC 7427 section 4).
    pub hashes: Option<Vec<HashAlgorithm>>,
    /// Encodings of certificates that its CERTREQ payloads ask for.
    pub encodings: Vec<u8>,
    /// SHA-1 over the keys of authorities it trusts, of its CERTREQ payloads.
    pub authorities: Vec<[u8; 20]>,
}

impl Wanted {
    /// Takes note of what a message says.
    pub fn take(&mut self, payloads: &[Payload<'_>]) {
        for notify in respond::notifies(payloads) {
            if notify.kind == NotifyType::SIGNATURE_HASH_ALGORITHMS {
                let (pairs, _) = notify.data.as_chunks::<2>();
                let ids = pairs.iter().map(|pair| u16::from_be_bytes(*pair));
                self.hashes = Some(ids.filter_map(HashAlgorithm::from_id).collect());
            }
        }
        for payload in payloads {
            let Payload::CertReq(request) = payload else {
                continue;
            };
            self.encodings.push(request.encoding);
            if request.encoding == Cert::X509 {
                for hash in request.data.as_chunks::<20>().0 {
                    // A message may be looked at twice.
                    if !self.authorities.contains(hash) {
                        self.authorities.push(*hash);
                    }
                }
            }
        }
    }
}

/// Whether either side of a connection authenticates by signature.
pub(crate) fn uses_signatures(config: &ConnectionConfig) -> bool {
    matches!(config.local_auth, LocalAuth::PublicKey(_))
        || matches!(config.remote_auth, RemoteAuth::PublicKey(_))
}

/// Tells the peer which hash functions we verify with.
pub(crate) fn write_hashes(writer: &mut Writer) {
    let octets: Vec<u8> = HashAlgorithm::OFFERED
        .iter()
        .flat_map(|hash| hash.id().to_be_bytes())
        .collect();
    writer.notify(Notify::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, &octets));
}

/// Asks for certificates, and raw public keys, that connections of ours would accept.
pub(crate) fn write_requests<'a>(
    writer: &mut Writer,
    configs: impl Iterator<Item = &'a Arc<ConnectionConfig>>,
) {
    let mut hashes = Vec::new();
    let mut raw_keys = false;
    for config in configs {
        if let RemoteAuth::PublicKey(trust) = &config.remote_auth {
            for hash in trust.authority_hashes() {
                if !hashes.contains(&hash) {
                    hashes.push(hash);
                }
            }
            raw_keys |= !trust.keys.is_empty();
        }
    }
    let mut request = |encoding, data: &[u8]| {
        writer.add(PayloadType::CERTREQ, |out| {
            Cert { encoding, data }.encode(out)
        });
    };
    if !hashes.is_empty() {
        request(Cert::X509, hashes.as_flattened());
    }
    if raw_keys {
        request(Cert::RAW_KEY, &[]);
    }
}

/// Writes our certificates, our own first, or our raw public key, if the peer is to have them.
pub(crate) fn write_certificates(writer: &mut Writer, config: &ConnectionConfig, wanted: &Wanted) {
    let LocalAuth::PublicKey(credential) = &config.local_auth else {
        return;
    };
    let encoding = match credential.certificates.is_empty() {
        true => Cert::RAW_KEY,
        false => Cert::X509,
    };
    match config.send_cert {
        SendCert::Always => {}
        SendCert::IfAsked if wanted.encodings.contains(&encoding) => {}
        SendCert::IfAsked | SendCert::Never => return,
    }
    let mut add = |encoding, data: &[u8]| {
        writer.add(PayloadType::CERT, |out| Cert { encoding, data }.encode(out));
    };
    for certificate in &credential.certificates {
        add(Cert::X509, certificate.der());
    }
    if credential.certificates.is_empty() {
        add(Cert::RAW_KEY, credential.key.public().spki());
    }
}

/// Who proves to be whom.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub local_id: &'a Identity,
    pub remote_id: &'a Identity,
    /// The ID payload of ours.
    pub id_body: &'a [u8],
    pub role: Role,
    pub keys: &'a IkeKeys,
    pub transcript: &'a Transcript,
}

/// An AUTH payload.
pub(crate) struct Proof {
    method: u8,
    pub data: Vec<u8>,
    /// In words, what it is made with.
    with: String,
}

/// Writes our AUTH payload; gives in words what we proved ourselves with.
pub(crate) fn write_auth(
    writer: &mut Writer,
    config: &ConnectionConfig,
    common: &Common,
    cx: &Cx<'_>,
    claim: Claim<'_>,
    wanted: &Wanted,
) -> Result<String, Arc<Refusal>> {
    let proof = proof(config, common, cx, claim, wanted)?;
    writer.add(PayloadType::AUTH, |out| {
        Typed::new(proof.method, &proof.data).encode(out)
    });
    Ok(proof.with)
}

/// Our proof of who we are.
pub(crate) fn proof(
    config: &ConnectionConfig,
    common: &Common,
    cx: &Cx<'_>,
    claim: Claim<'_>,
    wanted: &Wanted,
) -> Result<Proof, Arc<Refusal>> {
    let prf = claim.keys.prf;
    let signed = claim
        .transcript
        .signed(claim.role, claim.keys, claim.id_body);
    match &config.local_auth {
        LocalAuth::Psk => {
            let Some(secret) = psk::find(cx.secrets, claim.local_id, claim.remote_id) else {
                let (local, remote) = (claim.local_id, claim.remote_id);
                return Err(explain::no_secret(config, common, local, remote));
            };
            let auth = psk_auth(prf, secret.secret.expose(), signed);
            Ok(Proof {
                method: method::PSK,
                data: auth.expose().to_vec(),
                with: format!("the pre-shared key at {}", secret.origin),
            })
        }
        LocalAuth::PublicKey(credential) => {
            let scheme = Scheme::choose(credential, wanted)
                .ok_or_else(|| explain::cannot_sign(config, common, credential, wanted))?;
            let message = signed_message(prf, signed);
            let signature = credential
                .key
                .sign(scheme.algorithm, scheme.form, &message)
                .map_err(|error| explain::protocol(config, common, &error.to_string()))?;
            let mut data = Vec::with_capacity(signature.len() + 72);
            if scheme.method == method::SIGNATURE {
                let identifier = scheme.algorithm.to_der().unwrap_or_default();
                // The longest, RSASSA-PSS's, has 67 octets.
                data.push(identifier.len() as u8);
                data.extend(identifier);
            }
            data.extend(signature);
            let what = match credential.certificates.first() {
                Some(certificate) => format!(
                    "the certificate of \"{}\" issued by \"{}\"",
                    certificate.subject(),
                    certificate.issuer()
                ),
                None => "a raw public key".to_owned(),
            };
            Ok(Proof {
                method: scheme.method,
                data,
                with: format!(
                    "{what} at {}, signing by {}",
                    credential.origin, scheme.algorithm
                ),
            })
        }
    }
}

/// How we sign for a peer.
struct Scheme {
    method: u8,
    algorithm: SignatureAlgorithm,
    form: EcdsaForm,
}

impl Scheme {
    /// RFC 7427 where the peer has it, with the hash function that suits the key best; else the
    /// older methods, of which RSA's is left out: it means SHA-1.
    fn choose(credential: &Credential, wanted: &Wanted) -> Option<Self> {
        use HashAlgorithm::{Identity, Sha2_256, Sha2_384, Sha2_512};
        let kind = credential.key.public().kind();
        let Some(hashes) = &wanted.hashes else {
            let (method, curve) = match kind {
                PublicKeyKind::Ecdsa(curve @ Curve::P256) => (method::ECDSA_256, curve),
                PublicKeyKind::Ecdsa(curve @ Curve::P384) => (method::ECDSA_384, curve),
                PublicKeyKind::Ecdsa(curve @ Curve::P521) => (method::ECDSA_521, curve),
                PublicKeyKind::Rsa(_) | PublicKeyKind::Ed25519 => return None,
            };
            return Some(Self {
                method,
                algorithm: SignatureAlgorithm::Ecdsa(curve.hash()),
                form: EcdsaForm::Fixed,
            });
        };
        let order = match kind {
            PublicKeyKind::Ed25519 => vec![Identity],
            PublicKeyKind::Rsa(_) => vec![Sha2_256, Sha2_384, Sha2_512],
            PublicKeyKind::Ecdsa(curve) => vec![curve.hash(), Sha2_512, Sha2_384, Sha2_256],
        };
        let hash = order.into_iter().find(|hash| hashes.contains(hash))?;
        let algorithm = match kind {
            PublicKeyKind::Ed25519 => SignatureAlgorithm::Ed25519,
            // "the RSASSA-PSS algorithm MUST be supported" by who has RFC 7427 (section 3).
            PublicKeyKind::Rsa(_) => SignatureAlgorithm::RsaPss(hash),
            PublicKeyKind::Ecdsa(_) => SignatureAlgorithm::Ecdsa(hash),
        };
        Some(Self {
            method: method::SIGNATURE,
            algorithm,
            form: EcdsaForm::Der,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::signature::{KeyType, PrivateKey, vectors::RSA_PKCS1};
    use crate::x509::tests::new_key;

    /// What a key signs by for a peer that accepts these hash functions.
    fn chosen(key: PrivateKey, hashes: Option<&[HashAlgorithm]>) -> Option<(u8, String)> {
        let credential = Credential {
            key,
            certificates: Vec::new(),
            origin: String::new(),
        };
        let wanted = Wanted {
            hashes: hashes.map(<[HashAlgorithm]>::to_vec),
            ..Wanted::default()
        };
        let scheme = Scheme::choose(&credential, &wanted)?;
        let message = b"a message";
        let signature = credential
            .key
            .sign(scheme.algorithm, scheme.form, message)
            .unwrap();
        let public = credential.key.public();
        assert!(public.verify(scheme.algorithm, scheme.form, message, &signature));
        Some((scheme.method, scheme.algorithm.to_string()))
    }

    #[test]
    fn the_hash_function_is_one_that_the_peer_has() {
        use HashAlgorithm::{Identity, Sha1, Sha2_256, Sha2_384, Sha2_512};
        let ecdsa = |curve| new_key(KeyType::Ecdsa(curve), 1);
        let rsa = || PrivateKey::from_der(RSA_PKCS1).unwrap();
        let ed25519 = || new_key(KeyType::Ed25519, 1);
        let name = |text: &str| Some((14, text.to_owned()));
        let all = [Sha1, Sha2_256, Sha2_384, Sha2_512, Identity];
        for (key, expected) in [
            (ecdsa(Curve::P256), "ECDSA with sha256"),
            (ecdsa(Curve::P384), "ECDSA with sha384"),
            (ecdsa(Curve::P521), "ECDSA with sha512"),
            (rsa(), "RSASSA-PSS with sha256"),
            (ed25519(), "Ed25519"),
        ] {
            assert_eq!(chosen(key, Some(&all)), name(expected));
        }
        assert_eq!(
            chosen(ecdsa(Curve::P256), Some(&[Sha2_384])),
            name("ECDSA with sha384")
        );
        assert_eq!(
            chosen(ecdsa(Curve::P521), Some(&[Sha2_256])),
            name("ECDSA with sha256")
        );
        assert_eq!(
            chosen(rsa(), Some(&[Identity, Sha2_512])),
            name("RSASSA-PSS with sha512")
        );
        assert_eq!(chosen(ecdsa(Curve::P256), Some(&[Sha1, Identity])), None);
        assert_eq!(chosen(ed25519(), Some(&[Sha2_256])), None);
        assert_eq!(chosen(rsa(), Some(&[])), None);
        for (curve, method, hash) in [
            (Curve::P256, 9, "sha256"),
            (Curve::P384, 10, "sha384"),
            (Curve::P521, 11, "sha512"),
        ] {
            let expected = Some((method, format!("ECDSA with {hash}")));
            assert_eq!(chosen(ecdsa(curve), None), expected);
        }
        assert_eq!(chosen(rsa(), None), None);
        assert_eq!(chosen(ed25519(), None), None);
    }
}
