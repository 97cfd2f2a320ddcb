//! Certificate revocation lists (RFC 5280 section 5).

use std::sync::Arc;
use std::time::Duration;

use der::asn1::ObjectIdentifier;
use der::oid::AssociatedOid as _;
use der::{Decode as _, Encode as _, Sequence};
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::RevokedCert;
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, CrlNumber, IssuingDistributionPoint};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

use super::certificate::{Certificate, Signed, uris, verify_signed};
use crate::crypto::signature::SignatureAlgorithm;
use crate::identity::DistinguishedName;

/// Longest list that is read, in octets.
const MAX_CRL: usize = 16 << 20;

/// IssuingDistributionPoint: x509-cert has another extension's number for it.
const DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");

/// Octets that are no revocation list of use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// They do not follow the format.
    #[error("it is no certificate revocation list in DER: {0}")]
    Malformed(String),
    /// They are too many.
    #[error("it has {0} octets; at most {MAX_CRL} are accepted")]
    TooLong(usize),
    /// It is signed by an algorithm that is not known.
    #[error("{0}")]
    Algorithm(String),
    /// A delta CRL, or something that is not known.
    #[error(
        "its critical extension {0} is not known: only complete lists of the issuer's own certificates are"
    )]
    Extension(String),
    /// It is about other issuers' certificates, attribute certificates, or only some reasons.
    #[error("it is not a list of the issuer's own certificates for all reasons")]
    Scope,
}

/// TBSCertList (RFC 5280 section 5.1). x509-cert's insists on a version, which lists without extensions
/// lack: openssl makes such unless it is told otherwise.
#[derive(Sequence)]
struct Tbs {
    #[asn1(optional = "true")]
    version: Option<x509_cert::Version>,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    this_update: Time,
    next_update: Option<Time>,
    revoked: Option<Vec<RevokedCert<Rfc5280>>>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Extensions>,
}

/// Which of its issuer's certificates a list is about (RFC 5280 section 5.2.5).
#[derive(Clone, Debug, Default)]
struct Scope {
    /// Those that name one of these URIs, if it says so.
    uris: Option<Vec<Arc<str>>>,
    only_ends: bool,
    only_authorities: bool,
}

impl Scope {
    fn read(der: &[u8]) -> Result<Self, CrlError> {
        let point = IssuingDistributionPoint::from_der(der)
            .map_err(|error| CrlError::Malformed(error.to_string()))?;
        if point.indirect_crl
            || point.only_contains_attribute_certs
            || point.only_some_reasons.is_some()
        {
            return Err(CrlError::Scope);
        }
        let name = point.distribution_point.as_ref();
        Ok(Self {
            uris: name.map(|_| uris(name)),
            only_ends: point.only_contains_user_certs,
            only_authorities: point.only_contains_ca_certs,
        })
    }
}

/// A revocation list, read and not verified.
#[derive(Clone, Debug)]
pub struct Crl {
    issuer: DistinguishedName,
    this_update: Duration,
    next_update: Option<Duration>,
    /// Serial numbers, sorted, with the time of each revocation.
    revoked: Vec<(Vec<u8>, Duration)>,
    scope: Scope,
    tbs: Vec<u8>,
    algorithm: SignatureAlgorithm,
    signature: Vec<u8>,
}

impl Crl {
    /// Reads a list in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL {
            return Err(CrlError::TooLong(der.len()));
        }
        let wrong = |error: der::Error| CrlError::Malformed(error.to_string());
        let signed = Signed::from_der(der).map_err(wrong)?;
        let algorithm = SignatureAlgorithm::from_identifier(&signed.algorithm)
            .map_err(|error| CrlError::Algorithm(error.to_string()))?;
        let list = Tbs::from_der(signed.tbs).map_err(wrong)?;
        let mut scope = Scope::default();
        for extension in list.extensions.iter().flatten() {
            if extension.extn_id == DISTRIBUTION_POINT {
                scope = Scope::read(extension.extn_value.as_bytes())?;
                continue;
            }
            let known = [AuthorityKeyIdentifier::OID, CrlNumber::OID];
            if extension.critical && !known.contains(&extension.extn_id) {
                return Err(CrlError::Extension(extension.extn_id.to_string()));
            }
        }
        let issuer = list.issuer.to_der().map_err(wrong)?;
        let mut revoked = Vec::new();
        for entry in list.revoked.unwrap_or_default() {
            let critical = entry.crl_entry_extensions.iter().flatten();
            if let Some(extension) = critical.into_iter().find(|extension| extension.critical) {
                return Err(CrlError::Extension(extension.extn_id.to_string()));
            }
            revoked.push((
                entry.serial_number.as_bytes().to_vec(),
                entry.revocation_date.to_unix_duration(),
            ));
        }
        revoked.sort();
        Ok(Self {
            issuer: DistinguishedName::from_der(&issuer)
                .ok_or_else(|| CrlError::Malformed("its issuer".to_owned()))?,
            this_update: list.this_update.to_unix_duration(),
            next_update: list.next_update.map(|time| time.to_unix_duration()),
            revoked,
            scope,
            tbs: signed.tbs.to_vec(),
            algorithm,
            signature: signed.signature.to_vec(),
        })
    }

    /// Whose certificates it is about.
    pub fn issuer(&self) -> &DistinguishedName {
        &self.issuer
    }

    /// When the next one was announced for, since 1970.
    pub fn next_update(&self) -> Option<Duration> {
        self.next_update
    }

    /// How many certificates it revokes.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether it revokes none.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// Whether it is `issuer`'s own.
    pub(super) fn is_of(&self, issuer: &Certificate) -> bool {
        let Ok(key) = issuer.key() else { return false };
        issuer.usage().is_none_or(|usage| usage.crls)
            && self.issuer.matches(issuer.subject())
            && verify_signed(key, self.algorithm, &self.tbs, &self.signature)
    }

    pub(super) fn is_current(&self, now: Duration) -> bool {
        self.this_update <= now && self.next_update.is_none_or(|next| now < next)
    }

    /// Whether it is about a certificate of its issuer.
    pub(super) fn covers(&self, certificate: &Certificate) -> bool {
        let of_kind = match certificate.is_authority() {
            true => !self.scope.only_ends,
            false => !self.scope.only_authorities,
        };
        let named = |uri: &Arc<str>| certificate.list_uris().contains(uri);
        let uris = self.scope.uris.as_ref();
        of_kind && uris.is_none_or(|uris| uris.iter().any(named))
    }

    /// When a certificate with a serial number was revoked, if it was.
    pub(super) fn revoked(&self, serial: &[u8]) -> Option<Duration> {
        let at = self
            .revoked
            .binary_search_by(|(known, _)| known.as_slice().cmp(serial));
        at.ok()
            .and_then(|at| self.revoked.get(at))
            .map(|(_, time)| *time)
    }
}
