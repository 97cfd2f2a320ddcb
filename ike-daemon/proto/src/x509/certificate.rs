//! Reading a certificate.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use der::asn1::{BitStringRef, ObjectIdentifier};
use der::oid::AssociatedOid;
use der::{DateTime, Decode, Encode, Reader, SliceReader};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AuthorityInfoAccessSyntax, AuthorityKeyIdentifier, BasicConstraints, CrlDistributionPoints,
    ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::spki::AlgorithmIdentifierRef;

use super::constraints::Constraints;
use crate::crypto::signature::{
    EcdsaForm, HashAlgorithm, PublicKey, PublicKeyError, SignatureAlgorithm,
};
use crate::identity::{DistinguishedName, Identity};

/// Longest certificate that is read, in octets.
const MAX_CERTIFICATE: usize = 32 * 1024;

/// Extensions that are taken note of or need not be: a critical one beside these is refused.
const KNOWN: [&str; 2] = [
    // Certificate policies (we ask for none), issuer alternative names.
    "2.5.29.32",
    "2.5.29.18",
];

/// The access method of an OCSP responder (RFC 5280 section 4.2.2.1).
const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");

/// Octets that are no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// They do not follow the format.
    #[error("it is no X.509 certificate in DER: {0}")]
    Malformed(String),
    /// They are longer than any certificate of use.
    #[error("it has {0} octets; at most {MAX_CERTIFICATE} are accepted")]
    TooLong(usize),
}

/// A name of its subject beside the distinguished one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AltName {
    /// dNSName.
    Dns(String),
    /// rfc822Name.
    Email(String),
    /// iPAddress.
    Address(IpAddr),
    /// directoryName.
    Name(DistinguishedName),
    /// Any other kind, by its number in GeneralName.
    Other(u8),
}

impl fmt::Display for AltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Email(text) => f.write_str(text),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => write!(f, "{name}"),
            Self::Other(kind) => write!(f, "a name of type {kind}"),
        }
    }
}

/// What a certificate says its subject's key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub signature: bool,
    pub certificates: bool,
    pub crls: bool,
}

/// A certificate, read and not judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    /// What is signed: a part of `der`.
    tbs: Vec<u8>,
    algorithm: Result<SignatureAlgorithm, String>,
    signature: Vec<u8>,
    serial: Vec<u8>,
    issuer: DistinguishedName,
    subject: DistinguishedName,
    not_before: Duration,
    not_after: Duration,
    key: Result<PublicKey, PublicKeyError>,
    authority: Option<Option<u8>>,
    usage: Option<Usage>,
    purposes: Option<Vec<ObjectIdentifier>>,
    alt_names: Vec<AltName>,
    constraints: Option<Constraints>,
    key_id: Option<Vec<u8>>,
    issuer_key_id: Option<Vec<u8>>,
    list_uris: Vec<Arc<str>>,
    responder_uris: Vec<Arc<str>>,
    unknown_critical: Option<ObjectIdentifier>,
}

/// The three parts of anything signed: what is, by which algorithm, and the signature.
pub(super) struct Signed<'a> {
    pub tbs: &'a [u8],
    pub algorithm: AlgorithmIdentifierRef<'a>,
    pub signature: &'a [u8],
}

impl<'a> Signed<'a> {
    pub fn from_der(der: &'a [u8]) -> Result<Self, der::Error> {
        let mut reader = SliceReader::new(der)?;
        let signed = reader.sequence(|reader| {
            let tbs = reader.tlv_bytes()?;
            let algorithm = reader.decode()?;
            let signature: BitStringRef<'a> = reader.decode()?;
            let octets = signature.as_bytes();
            Ok::<_, der::Error>(Self {
                tbs,
                algorithm,
                signature: octets.ok_or_else(|| reader.error(der::ErrorKind::Failed))?,
            })
        })?;
        reader.finish()?;
        Ok(signed)
    }
}

/// How certificates and CRLs are verified: SHA-1 is refused, its collisions have been used to forge.
pub(super) fn verify_signed(
    key: &PublicKey,
    algorithm: SignatureAlgorithm,
    tbs: &[u8],
    signature: &[u8],
) -> bool {
    algorithm.hash() != HashAlgorithm::Sha1 && key.verify(algorithm, EcdsaForm::Der, tbs, signature)
}

impl Certificate {
    /// Reads a certificate in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLong(der.len()));
        }
        let malformed = |what: String| CertificateError::Malformed(what);
        let wrong = |error: der::Error| malformed(error.to_string());
        let signed = Signed::from_der(der).map_err(wrong)?;
        let parsed = x509_cert::Certificate::from_der(der).map_err(wrong)?;
        let tbs = parsed.tbs_certificate();
        let same =
            tbs.signature().to_der().map_err(wrong)? == signed.algorithm.to_der().map_err(wrong)?;
        if !same {
            return Err(malformed(
                "it names two signature algorithms (RFC 5280 section 4.1.1.2)".to_owned(),
            ));
        }
        let name = |name: &x509_cert::name::Name| {
            let der = name.to_der().map_err(wrong)?;
            DistinguishedName::from_der(&der).ok_or_else(|| malformed("a name".to_owned()))
        };
        let spki = tbs.subject_public_key_info().to_der().map_err(wrong)?;
        let validity = tbs.validity();
        let mut certificate = Self {
            tbs: signed.tbs.to_vec(),
            algorithm: SignatureAlgorithm::from_identifier(&signed.algorithm)
                .map_err(|error| error.to_string()),
            signature: signed.signature.to_vec(),
            serial: tbs.serial_number().as_bytes().to_vec(),
            issuer: name(tbs.issuer())?,
            subject: name(tbs.subject())?,
            not_before: validity.not_before.to_unix_duration(),
            not_after: validity.not_after.to_unix_duration(),
            key: PublicKey::from_spki(&spki),
            authority: None,
            usage: None,
            purposes: None,
            alt_names: Vec::new(),
            constraints: None,
            key_id: None,
            issuer_key_id: None,
            list_uris: Vec::new(),
            responder_uris: Vec::new(),
            unknown_critical: None,
            der: der.to_vec(),
        };
        let extensions = tbs.extensions().map_or(&[][..], Vec::as_slice);
        for (index, extension) in extensions.iter().enumerate() {
            let earlier = extensions.get(..index).unwrap_or_default();
            if earlier
                .iter()
                .any(|other| other.extn_id == extension.extn_id)
            {
                return Err(malformed(format!(
                    "the extension {} comes twice",
                    extension.extn_id
                )));
            }
            certificate.take_extension(extension).map_err(|error| {
                malformed(format!("the extension {}: {error}", extension.extn_id))
            })?;
        }
        Ok(certificate)
    }

    fn take_extension(&mut self, extension: &Extension) -> der::Result<()> {
        let value = extension.extn_value.as_bytes();
        match extension.extn_id {
            BasicConstraints::OID => {
                let basic = BasicConstraints::from_der(value)?;
                self.authority = basic.ca.then_some(basic.path_len_constraint);
            }
            KeyUsage::OID => {
                let usage = KeyUsage::from_der(value)?;
                self.usage = Some(Usage {
                    // RFC 4945 section 5.1.3.2: either bit lets a key authenticate IKE.
                    signature: usage.digital_signature() || usage.non_repudiation(),
                    certificates: usage.key_cert_sign(),
                    crls: usage.crl_sign(),
                });
            }
            ExtendedKeyUsage::OID => {
                self.purposes = Some(ExtendedKeyUsage::from_der(value)?.0);
            }
            SubjectAltName::OID => {
                let names = SubjectAltName::from_der(value)?;
                self.alt_names = names.0.iter().map(alt_name).collect();
            }
            NameConstraints::OID => {
                self.constraints = Some(Constraints::new(&NameConstraints::from_der(value)?));
            }
            SubjectKeyIdentifier::OID => {
                let id = SubjectKeyIdentifier::from_der(value)?;
                self.key_id = Some(id.0.as_bytes().to_vec());
            }
            AuthorityKeyIdentifier::OID => {
                let id = AuthorityKeyIdentifier::from_der(value)?.key_identifier;
                self.issuer_key_id = id.map(|id| id.as_bytes().to_vec());
            }
            CrlDistributionPoints::OID => {
                for point in CrlDistributionPoints::from_der(value)?.0 {
                    // What says only some reasons, or is somebody else's list, says too little.
                    if point.reasons.is_none() && point.crl_issuer.is_none() {
                        self.list_uris
                            .extend(uris(point.distribution_point.as_ref()));
                    }
                }
            }
            AuthorityInfoAccessSyntax::OID => {
                let access = AuthorityInfoAccessSyntax::from_der(value)?.0;
                let responders = access.iter().filter(|access| access.access_method == OCSP);
                let uris = responders.filter_map(|access| uri(&access.access_location));
                self.responder_uris.extend(uris);
            }
            other if extension.critical && !KNOWN.contains(&other.to_string().as_str()) => {
                self.unknown_critical = Some(other);
            }
            _ => {}
        }
        Ok(())
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whom it is for.
    pub fn subject(&self) -> &DistinguishedName {
        &self.subject
    }

    /// Who signed it.
    pub fn issuer(&self) -> &DistinguishedName {
        &self.issuer
    }

    /// Its serial number, big endian.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// When it becomes valid, since 1970.
    pub fn not_before(&self) -> Duration {
        self.not_before
    }

    /// When it expires, since 1970.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// Its subject's key.
    pub fn key(&self) -> Result<&PublicKey, &PublicKeyError> {
        self.key.as_ref()
    }

    /// Whether it may issue certificates.
    pub fn is_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Most authorities that may stand below it, if it is one and says so.
    pub(super) fn path_length(&self) -> Option<u8> {
        self.authority.flatten()
    }

    /// Whether subject and issuer are the same.
    pub fn is_self_issued(&self) -> bool {
        self.subject.matches(&self.issuer)
    }

    /// Names of its subject beside the distinguished one.
    pub fn alt_names(&self) -> &[AltName] {
        &self.alt_names
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    pub(super) fn purposes(&self) -> Option<&[ObjectIdentifier]> {
        self.purposes.as_deref()
    }

    pub(super) fn constraints(&self) -> Option<&Constraints> {
        self.constraints.as_ref()
    }

    pub(super) fn unknown_critical(&self) -> Option<ObjectIdentifier> {
        self.unknown_critical
    }

    /// SubjectKeyIdentifier.
    pub fn key_id(&self) -> Option<&[u8]> {
        self.key_id.as_deref()
    }

    /// Whether `issuer` can be who signed it, by its name and key identifier.
    pub(super) fn names_issuer(&self, issuer: &Self) -> bool {
        let fits = match (&self.issuer_key_id, &issuer.key_id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        fits && self.issuer.matches(&issuer.subject)
    }

    /// Where revocation lists are that it may be on.
    pub fn list_uris(&self) -> &[Arc<str>] {
        &self.list_uris
    }

    /// Where OCSP responders are that know it.
    pub fn responder_uris(&self) -> &[Arc<str>] {
        &self.responder_uris
    }

    /// The algorithm it was signed with.
    pub(super) fn algorithm(&self) -> Result<SignatureAlgorithm, &str> {
        self.algorithm.as_ref().copied().map_err(String::as_str)
    }

    /// Whether a key signed it.
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.algorithm
            .as_ref()
            .is_ok_and(|algorithm| verify_signed(key, *algorithm, &self.tbs, &self.signature))
    }

    /// Whether an identity is one of its names (RFC 4945 section 3.1).
    pub fn names(&self, identity: &Identity) -> bool {
        let alt = |fits: &dyn Fn(&AltName) -> bool| self.alt_names.iter().any(fits);
        match identity {
            Identity::Address(address) => alt(&|name| *name == AltName::Address(*address)),
            Identity::Fqdn(text) => {
                alt(&|name| matches!(name, AltName::Dns(known) if known.eq_ignore_ascii_case(text)))
            }
            Identity::Email(text) => alt(
                &|name| matches!(name, AltName::Email(known) if known.eq_ignore_ascii_case(text)),
            ),
            Identity::Name(wanted) => {
                (!self.subject.is_empty() && self.subject.matches(wanted))
                    || alt(&|name| matches!(name, AltName::Name(known) if known.matches(wanted)))
            }
            Identity::KeyId(octets) => self.key_id.as_ref() == Some(octets),
            Identity::Other { .. } => false,
        }
    }

    /// Its names, for people.
    pub fn shown_names(&self) -> String {
        let subject = (!self.subject.is_empty()).then(|| format!("\"{}\"", self.subject));
        let names = self.alt_names.iter().map(ToString::to_string);
        let all: Vec<String> = subject.into_iter().chain(names).collect();
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join(", ")
        }
    }
}

fn alt_name(name: &GeneralName) -> AltName {
    match name {
        GeneralName::DnsName(text) => AltName::Dns(text.as_str().to_owned()),
        GeneralName::Rfc822Name(text) => AltName::Email(text.as_str().to_owned()),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
            address.map_or(AltName::Other(7), AltName::Address)
        }
        GeneralName::DirectoryName(name) => {
            let der = name.to_der().unwrap_or_default();
            DistinguishedName::from_der(&der).map_or(AltName::Other(4), AltName::Name)
        }
        GeneralName::OtherName(_) => AltName::Other(0),
        GeneralName::EdiPartyName(_) => AltName::Other(5),
        GeneralName::UniformResourceIdentifier(_) => AltName::Other(6),
        GeneralName::RegisteredId(_) => AltName::Other(8),
    }
}

/// The URIs among the names of a distribution point.
pub(super) fn uris(point: Option<&DistributionPointName>) -> Vec<Arc<str>> {
    let Some(DistributionPointName::FullName(names)) = point else {
        return Vec::new();
    };
    names.iter().filter_map(uri).collect()
}

fn uri(name: &GeneralName) -> Option<Arc<str>> {
    match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().into()),
        _ => None,
    }
}

/// A time since 1970 as `2026-11-29T18:00:00Z`.
pub fn show_time(time: Duration) -> String {
    DateTime::from_unix_duration(Duration::from_secs(time.as_secs()))
        .map_or_else(|_| "a time after 9999".to_owned(), |time| time.to_string())
}
