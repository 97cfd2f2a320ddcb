//! The Online Certificate Status Protocol (RFC 6960): asking about one certificate, with a nonce
//! (RFC 9654), and reading the answer.

use std::time::Duration;

use der::asn1::{
    AnyRef, BitStringRef, GeneralizedTime, ObjectIdentifier, OctetString, OctetStringRef,
};
use der::{
    Decode, Encode, Enumerated, Reader, Sequence, SliceReader, Tag, TagMode, TagNumber, Tagged,
};
use sha1::{Digest as _, Sha1};
use x509_cert::ext::Extension;
use x509_cert::spki::AlgorithmIdentifierRef;

use super::certificate::{Certificate, show_time, verify_signed};
use super::inquiry::Answer;
use crate::crypto::signature::SignatureAlgorithm;

/// Octets of a nonce: "at least 32" (RFC 9654 section 2.1).
pub(crate) const NONCE: usize = 32;
/// Longest answer that is read, in octets.
const MAX_ANSWER: usize = 64 * 1024;
/// Certificates in an answer that are tried as its signer's.
const MAX_SIGNERS: usize = 4;
/// How far clocks may be apart.
const SKEW: Duration = Duration::from_secs(300);
/// How long an answer holds that does not say: there is a newer one at any time.
const UNSAID: Duration = Duration::from_secs(300);

const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const NONCE_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// Which certificate an answer is about. SHA-1 is a name here, and the one that all responders know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CertId {
    /// SHA-1 over the issuer's name.
    name: [u8; 20],
    /// SHA-1 over the issuer's key.
    key: [u8; 20],
    serial: Vec<u8>,
}

#[derive(Sequence)]
struct WireId<'a> {
    algorithm: AlgorithmIdentifierRef<'a>,
    name: &'a OctetStringRef,
    key: &'a OctetStringRef,
    serial: AnyRef<'a>,
}

#[derive(Sequence)]
struct Request<'a> {
    tbs: TbsRequest<'a>,
}

#[derive(Sequence)]
struct TbsRequest<'a> {
    list: Vec<Single<'a>>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Single<'a> {
    id: WireId<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumerated)]
#[repr(u8)]
enum Status {
    Successful = 0,
    MalformedRequest = 1,
    InternalError = 2,
    TryLater = 3,
    SigRequired = 5,
    Unauthorized = 6,
}

#[derive(Sequence)]
struct WireResponse<'a> {
    status: Status,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    bytes: Option<ResponseBytes<'a>>,
}

#[derive(Sequence)]
struct ResponseBytes<'a> {
    kind: ObjectIdentifier,
    response: &'a OctetStringRef,
}

#[derive(Sequence)]
struct ResponseData<'a> {
    #[asn1(
        context_specific = "0",
        tag_mode = "EXPLICIT",
        default = "Default::default"
    )]
    version: u8,
    /// Its name or the hash of its key. Who signed is found by trying.
    responder: AnyRef<'a>,
    produced: GeneralizedTime,
    responses: Vec<SingleResponse<'a>>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Vec<Extension>>,
}

#[derive(Sequence)]
struct SingleResponse<'a> {
    id: WireId<'a>,
    status: AnyRef<'a>,
    this_update: GeneralizedTime,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    next_update: Option<GeneralizedTime>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Vec<Extension>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Revoked(Duration),
    Unknown,
}

impl Verdict {
    fn read(status: AnyRef<'_>) -> der::Result<Self> {
        let number = match status.tag() {
            Tag::ContextSpecific { number, .. } => number,
            other => return Err(other.unexpected_error(None).into()),
        };
        match number.value() {
            0 => Ok(Self::Good),
            1 => {
                let mut reader = SliceReader::new(status.value())?;
                let at: GeneralizedTime = reader.decode()?;
                Ok(Self::Revoked(at.to_unix_duration()))
            }
            _ => Ok(Self::Unknown),
        }
    }
}

impl CertId {
    /// Of a certificate of `issuer`.
    pub fn new(issuer: &Certificate, certificate: &Certificate) -> Option<Self> {
        Some(Self {
            name: Sha1::digest(certificate.issuer().der()).into(),
            key: issuer.key().ok()?.key_id(),
            serial: certificate.serial().to_vec(),
        })
    }

    fn fits(&self, wire: &WireId<'_>) -> bool {
        wire.algorithm.oid == SHA1
            && wire.name.as_bytes() == self.name
            && wire.key.as_bytes() == self.key
            && wire.serial.value() == self.serial
    }

    /// The request about it, in DER.
    pub fn request(&self, nonce: &[u8; NONCE]) -> der::Result<Vec<u8>> {
        let nonce = OctetString::new(&nonce[..])?.to_der()?;
        let request = Request {
            tbs: TbsRequest {
                list: vec![Single {
                    id: WireId {
                        algorithm: AlgorithmIdentifierRef {
                            oid: SHA1,
                            parameters: Some(AnyRef::NULL),
                        },
                        name: OctetStringRef::new(&self.name)?,
                        key: OctetStringRef::new(&self.key)?,
                        serial: AnyRef::new(Tag::Integer, &self.serial)?,
                    },
                }],
                extensions: vec![Extension {
                    extn_id: NONCE_EXTENSION,
                    critical: false,
                    extn_value: OctetString::new(nonce)?,
                }],
            },
        };
        request.to_der()
    }
}

/// An answer about one certificate, read and not verified.
#[derive(Clone, Debug)]
pub(super) struct Response {
    verdict: Verdict,
    this_update: Duration,
    until: Duration,
    tbs: Vec<u8>,
    algorithm: SignatureAlgorithm,
    signature: Vec<u8>,
    signers: Vec<Certificate>,
}

impl Response {
    /// Takes what is said of a certificate out of an answer in DER, or says why that is nothing.
    pub fn read(der: &[u8], id: &CertId, nonce: &[u8; NONCE]) -> Result<Self, String> {
        if der.len() > MAX_ANSWER {
            return Err(format!("its answer has more than {MAX_ANSWER} octets"));
        }
        let wrong = |error: der::Error| format!("its answer cannot be read: {error}");
        let wire = WireResponse::from_der(der).map_err(wrong)?;
        let bytes = match (wire.status, wire.bytes) {
            (Status::Successful, Some(bytes)) if bytes.kind == BASIC => bytes.response,
            (Status::Successful, _) => return Err("its answer is of an unknown kind".to_owned()),
            (status, _) => return Err(format!("it refuses to answer: {status:?}")),
        };
        Self::read_basic(bytes.as_bytes(), id, nonce).map_err(wrong)?
    }

    fn read_basic(
        der: &[u8],
        id: &CertId,
        nonce: &[u8; NONCE],
    ) -> der::Result<Result<Self, String>> {
        let mut reader = SliceReader::new(der)?;
        let (tbs, algorithm, signature, certificates) = reader.sequence(|reader| {
            let tbs = reader.tlv_bytes()?;
            let algorithm: AlgorithmIdentifierRef<'_> = reader.decode()?;
            let signature: BitStringRef<'_> = reader.decode()?;
            let certificates: Option<Vec<AnyRef<'_>>> =
                reader.context_specific(TagNumber(0), TagMode::Explicit)?;
            Ok::<_, der::Error>((tbs, algorithm, signature, certificates.unwrap_or_default()))
        })?;
        reader.finish()?;
        let Some(signature) = signature.as_bytes() else {
            return Ok(Err("its signature is cut short".to_owned()));
        };
        let algorithm = match SignatureAlgorithm::from_identifier(&algorithm) {
            Ok(algorithm) => algorithm,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let data = ResponseData::from_der(tbs)?;
        for extension in data.extensions.iter().flatten() {
            if extension.extn_id == NONCE_EXTENSION {
                let ours = OctetString::new(&nonce[..])?.to_der()?;
                if extension.extn_value.as_bytes() != ours {
                    return Ok(Err(
                        "its answer is to another question (its nonce)".to_owned()
                    ));
                }
            } else if extension.critical {
                let number = extension.extn_id;
                return Ok(Err(format!("its critical extension {number} is not known")));
            }
        }
        let Some(single) = data.responses.iter().find(|single| id.fits(&single.id)) else {
            return Ok(Err("its answer is about other certificates".to_owned()));
        };
        let mut extensions = single.extensions.iter().flatten();
        if let Some(extension) = extensions.find(|extension| extension.critical) {
            let number = extension.extn_id;
            return Ok(Err(format!("its critical extension {number} is not known")));
        }
        let this_update = single.this_update.to_unix_duration();
        let next = single.next_update.map(|next| next.to_unix_duration());
        let mut signers = Vec::new();
        for certificate in certificates.iter().take(MAX_SIGNERS) {
            signers.extend(Certificate::from_der(&certificate.to_der()?).ok());
        }
        Ok(Ok(Self {
            verdict: Verdict::read(single.status)?,
            this_update,
            until: next.unwrap_or(this_update.saturating_add(UNSAID)),
            tbs: tbs.to_vec(),
            algorithm,
            signature: signature.to_vec(),
            signers,
        }))
    }

    /// What it says, if a certificate's issuer stands behind it at this time.
    pub fn judge(&self, issuer: &Certificate, now: Duration) -> Answer {
        if self.this_update > now.saturating_add(SKEW) {
            let at = show_time(self.this_update);
            return Answer::Useless(format!("its answer is not valid before {at}"));
        }
        if self.until <= now {
            let at = show_time(self.until);
            return Answer::Useless(format!("its answer ended at {at}"));
        }
        if !self.is_of(issuer, now) {
            let subject = issuer.subject();
            return Answer::Useless(format!(
                "its answer is not signed by \"{subject}\", nor by whom that has charged with it"
            ));
        }
        match self.verdict {
            Verdict::Good => Answer::Good,
            Verdict::Revoked(at) => Answer::Revoked(at),
            Verdict::Unknown => Answer::Useless("it does not know the certificate".to_owned()),
        }
    }

    /// Whether the issuer signed it, or a responder that has a certificate of the issuer for that
    /// (RFC 6960 section 4.2.2.2). Such certificates are short-lived and not themselves asked about.
    fn is_of(&self, issuer: &Certificate, now: Duration) -> bool {
        let signed_by = |signer: &Certificate| {
            let key = signer.key();
            key.is_ok_and(|key| verify_signed(key, self.algorithm, &self.tbs, &self.signature))
        };
        let charged = |signer: &&Certificate| {
            signer.names_issuer(issuer)
                && issuer.key().is_ok_and(|key| signer.is_signed_by(key))
                && signer.not_before() <= now
                && now <= signer.not_after()
                && signer.unknown_critical().is_none()
                && signer.usage().is_none_or(|usage| usage.signature)
                && signer
                    .purposes()
                    .is_some_and(|purposes| purposes.contains(&OCSP_SIGNING))
        };
        signed_by(issuer) || self.signers.iter().filter(charged).any(signed_by)
    }
}

#[cfg(test)]
pub(crate) mod tests;
