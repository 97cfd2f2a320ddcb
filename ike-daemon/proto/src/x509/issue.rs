//! Making certificates: enough of an authority for a few gateways (`espada pki`), and for tests.

use std::net::IpAddr;
use std::time::Duration;

use der::asn1::{AnyRef, BitStringRef, Ia5String, OctetString, UintRef};
use der::flagset::FlagSet;
use der::oid::AssociatedOid;
use der::{DateTime, Decode as _, Encode, Sequence};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::time::{Time, Validity};

use super::certificate::{AltName, Certificate};
use crate::crypto::Random;
use crate::crypto::signature::{
    EcdsaForm, HashAlgorithm, PrivateKey, PublicKey, PublicKeyKind, SignatureAlgorithm,
};
use crate::identity::{DistinguishedName, Identity};

/// A certificate that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be made: {0}")]
pub struct IssueError(String);

impl From<der::Error> for IssueError {
    fn from(error: der::Error) -> Self {
        Self(error.to_string())
    }
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Template {
    /// Whom it is for.
    pub subject: DistinguishedName,
    /// Further names of its subject.
    pub alt_names: Vec<AltName>,
    /// It may issue certificates itself, with at most so many authorities below it.
    pub authority: Option<Option<u8>>,
    /// When it becomes valid, since 1970.
    pub not_before: Duration,
    /// When it expires, since 1970.
    pub not_after: Duration,
}

/// Who signs a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Issuer<'a> {
    /// Its name.
    pub name: &'a DistinguishedName,
    /// Its key.
    pub key: &'a PrivateKey,
}

#[derive(Sequence)]
struct Tbs<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial: UintRef<'a>,
    algorithm: AnyRef<'a>,
    issuer: AnyRef<'a>,
    validity: Validity,
    subject: AnyRef<'a>,
    key: AnyRef<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Signed<'a> {
    tbs: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    signature: BitStringRef<'a>,
}

/// The name that a certificate has for an identity; `None` where it has none but its subject.
pub fn alt_name(identity: &Identity) -> Option<AltName> {
    match identity {
        Identity::Address(address) => Some(AltName::Address(*address)),
        Identity::Fqdn(text) => Some(AltName::Dns(text.clone())),
        Identity::Email(text) => Some(AltName::Email(text.clone())),
        Identity::Name(_) | Identity::KeyId(_) | Identity::Other { .. } => None,
    }
}

/// The algorithm a key signs certificates with.
fn algorithm(key: &PublicKey) -> SignatureAlgorithm {
    match key.kind() {
        PublicKeyKind::Rsa(_) => SignatureAlgorithm::RsaPkcs1(HashAlgorithm::Sha2_256),
        PublicKeyKind::Ecdsa(curve) => SignatureAlgorithm::Ecdsa(curve.hash()),
        PublicKeyKind::Ed25519 => SignatureAlgorithm::Ed25519,
    }
}

fn extension<T: Encode + AssociatedOid>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension {
        extn_id: T::OID,
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

fn general_name(name: &AltName) -> Result<GeneralName, IssueError> {
    Ok(match name {
        AltName::Dns(text) => GeneralName::DnsName(Ia5String::new(text)?),
        AltName::Email(text) => GeneralName::Rfc822Name(Ia5String::new(text)?),
        AltName::Address(address) => {
            let octets = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            GeneralName::IpAddress(OctetString::new(octets)?)
        }
        AltName::Name(name) => {
            GeneralName::DirectoryName(x509_cert::name::Name::from_der(name.der())?)
        }
        AltName::Other(kind) => return Err(IssueError(format!("a name of type {kind}"))),
    })
}

/// Signs the TBS part of something.
pub(super) fn sign(tbs: &[u8], key: &PrivateKey) -> Result<Vec<u8>, IssueError> {
    let algorithm = algorithm(key.public());
    let signature = key
        .sign(algorithm, EcdsaForm::Der, tbs)
        .map_err(|error| IssueError(error.to_string()))?;
    let identifier = algorithm.to_der().unwrap_or_default();
    let signed = Signed {
        tbs: AnyRef::from_der(tbs)?,
        algorithm: AnyRef::from_der(&identifier)?,
        signature: BitStringRef::from_bytes(&signature)?,
    };
    Ok(signed.to_der()?)
}

/// The AlgorithmIdentifier that [`sign`] will use, in DER.
pub(super) fn identifier(key: &PrivateKey) -> Vec<u8> {
    algorithm(key.public()).to_der().unwrap_or_default()
}

impl Template {
    /// Of an authority.
    pub fn authority(
        subject: DistinguishedName,
        not_before: Duration,
        not_after: Duration,
    ) -> Self {
        Self {
            subject,
            alt_names: Vec::new(),
            authority: Some(None),
            not_before,
            not_after,
        }
    }

    /// The extensions that say it.
    pub(super) fn extensions(
        &self,
        key: &PublicKey,
        issuer: &Issuer<'_>,
    ) -> Result<Vec<Extension>, IssueError> {
        let basic = BasicConstraints {
            ca: self.authority.is_some(),
            path_len_constraint: self.authority.flatten(),
        };
        let usages: FlagSet<KeyUsages> = match self.authority {
            Some(_) => KeyUsages::KeyCertSign | KeyUsages::CRLSign,
            None => KeyUsages::DigitalSignature.into(),
        };
        let id = |key: &PublicKey| OctetString::new(key.key_id());
        let issuer_id = AuthorityKeyIdentifier {
            key_identifier: Some(id(issuer.key.public())?),
            ..AuthorityKeyIdentifier::default()
        };
        let mut extensions = vec![
            extension(true, &basic)?,
            extension(true, &KeyUsage(usages))?,
            extension(false, &SubjectKeyIdentifier(id(key)?))?,
            extension(false, &issuer_id)?,
        ];
        if !self.alt_names.is_empty() {
            let names: Result<Vec<_>, _> = self.alt_names.iter().map(general_name).collect();
            // Of a certificate without a subject it is the only name (RFC 5280 section 4.2.1.6).
            let critical = self.subject.is_empty();
            extensions.push(extension(critical, &SubjectAltName(names?))?);
        }
        Ok(extensions)
    }

    /// Makes the certificate of a key.
    pub fn issue(
        &self,
        key: &PublicKey,
        issuer: &Issuer<'_>,
        random: &mut impl Random,
    ) -> Result<Certificate, IssueError> {
        let extensions = self.extensions(key, issuer)?;
        self.issue_with(extensions, key, issuer, random)
    }

    /// The same with extensions of the caller's choice.
    pub(super) fn issue_with(
        &self,
        extensions: Vec<Extension>,
        key: &PublicKey,
        issuer: &Issuer<'_>,
        random: &mut impl Random,
    ) -> Result<Certificate, IssueError> {
        let mut serial = [0; 16];
        random.fill(&mut serial);
        // Positive and never zero (RFC 5280 section 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        let time = |since: Duration| {
            DateTime::from_unix_duration(Duration::from_secs(since.as_secs())).map(Time::from)
        };
        let identifier = identifier(issuer.key);
        let tbs = Tbs {
            version: 2,
            serial: UintRef::new(&serial)?,
            algorithm: AnyRef::from_der(&identifier)?,
            issuer: AnyRef::from_der(issuer.name.der())?,
            validity: Validity::new(time(self.not_before)?, time(self.not_after)?),
            subject: AnyRef::from_der(self.subject.der())?,
            key: AnyRef::from_der(key.spki())?,
            extensions,
        };
        let der = sign(&tbs.to_der()?, issuer.key)?;
        Certificate::from_der(&der).map_err(|error| IssueError(error.to_string()))
    }
}
