//! Certificates made here, validated in every way they can be wrong; and openssl's, which are not
//! made here.

use std::sync::Arc;
use std::time::Duration;

use der::asn1::{Ia5String, ObjectIdentifier, OctetString};
use der::oid::AssociatedOid as _;
use der::{DateTime, Encode as _};
use x509_cert::crl::{RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::constraints::name::GeneralSubtree;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AccessDescription, AuthorityInfoAccessSyntax, CrlDistributionPoints, ExtendedKeyUsage,
    IssuingDistributionPoint, KeyUsage, KeyUsages, NameConstraints,
};
use x509_cert::serial_number::SerialNumber;

use super::issue::{self, Issuer, Template};
use super::*;
use crate::crypto::Random;
use crate::crypto::signature::{Curve, KeyType, PrivateKey};
use crate::identity::{DistinguishedName, Identity};

/// What time of day it is in tests: 2027-01-15T08:00:00Z.
pub(crate) const NOW: Duration = Duration::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Sequential(pub u64);

impl Random for Sequential {
    fn fill(&mut self, buf: &mut [u8]) {
        for octet in buf {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *octet = (self.0 >> 56) as u8;
        }
    }
}

/// A certificate with its key.
pub(crate) struct Party {
    pub key: PrivateKey,
    pub certificate: Arc<Certificate>,
}

pub(crate) fn name(text: &str) -> DistinguishedName {
    text.parse().unwrap()
}

fn template(subject: &str) -> Template {
    Template {
        subject: name(subject),
        alt_names: Vec::new(),
        authority: None,
        not_before: NOW - 30 * DAY,
        not_after: NOW + 365 * DAY,
    }
}

pub(crate) fn new_key(kind: KeyType, seed: u64) -> PrivateKey {
    PrivateKey::generate(kind, &mut Sequential(seed)).unwrap().0
}

const P256: KeyType = KeyType::Ecdsa(Curve::P256);

/// A self-signed authority.
pub(crate) fn root(subject: &str, kind: KeyType) -> Party {
    let key = new_key(kind, subject.len() as u64 + 7);
    let template = Template {
        authority: Some(None),
        ..template(subject)
    };
    let issuer = Issuer {
        name: &template.subject,
        key: &key,
    };
    let certificate = template
        .issue(key.public(), &issuer, &mut Sequential(1))
        .unwrap();
    Party {
        certificate: Arc::new(certificate),
        key,
    }
}

impl Party {
    fn issuer(&self) -> Issuer<'_> {
        Issuer {
            name: self.certificate.subject(),
            key: &self.key,
        }
    }

    /// Certifies a key as `change` says.
    pub fn issue(
        &self,
        key: PrivateKey,
        change: impl FnOnce(&mut Template, &mut Vec<Extension>),
    ) -> Party {
        let mut template = template("CN=end");
        // What the change adds is not known before the extensions are made.
        let mut added = Vec::new();
        change(&mut template, &mut added);
        let mut extensions = template.extensions(key.public(), &self.issuer()).unwrap();
        extensions.retain(|old| {
            added
                .iter()
                .all(|new: &Extension| new.extn_id != old.extn_id)
        });
        extensions.extend(added);
        let seed =
            template.subject.der().len() as u64 * 31 + u64::from(template.authority.is_some());
        let certificate = template
            .issue_with(
                extensions,
                key.public(),
                &self.issuer(),
                &mut Sequential(seed),
            )
            .unwrap();
        Party {
            certificate: Arc::new(certificate),
            key,
        }
    }

    /// Certifies an end for an identity.
    pub fn end(&self, id: &str, kind: KeyType) -> Party {
        let id: Identity = id.parse().unwrap();
        self.issue(new_key(kind, 99), |template, _| {
            template.alt_names = issue::alt_name(&id).into_iter().collect();
            if let Identity::Name(name) = &id {
                template.subject = name.clone();
            }
        })
    }

    /// Certifies an authority below this one.
    pub fn authority(&self, subject: &str, path_length: Option<u8>) -> Party {
        self.issue(new_key(P256, subject.len() as u64 + 1000), |template, _| {
            template.subject = name(subject);
            template.authority = Some(path_length);
        })
    }

    /// Certifies an end for an identity, with what else its certificate is to have.
    pub fn end_with(&self, id: &str, extensions: Vec<Extension>) -> Party {
        let id: Identity = id.parse().unwrap();
        self.issue(new_key(P256, 98), |template, added| {
            template.alt_names = issue::alt_name(&id).into_iter().collect();
            added.extend(extensions);
        })
    }

    /// A revocation list of its own.
    fn crl(&self, revoked: &[&Certificate], next_update: Duration) -> Arc<Crl> {
        let der = self.crl_der(revoked, next_update, None);
        Arc::new(Crl::from_der(&der).unwrap())
    }

    /// The same in DER, for certificates of a kind if `point` says so.
    pub fn crl_der(
        &self,
        revoked: &[&Certificate],
        next_update: Duration,
        point: Option<IssuingDistributionPoint>,
    ) -> Vec<u8> {
        let time = |at: Duration| DateTime::from_unix_duration(at).unwrap().into();
        let identifier = issue::identifier(&self.key);
        let entries = revoked.iter().map(|certificate| RevokedCert {
            serial_number: SerialNumber::new(certificate.serial()).unwrap(),
            revocation_date: time(NOW - DAY),
            crl_entry_extensions: None,
        });
        let tbs = TbsCertList::<x509_cert::certificate::Rfc5280> {
            version: x509_cert::Version::V2,
            signature: der::Decode::from_der(&identifier).unwrap(),
            issuer: der::Decode::from_der(self.certificate.subject().der()).unwrap(),
            this_update: time(NOW - DAY),
            next_update: Some(time(next_update)),
            revoked_certificates: Some(entries.collect()),
            crl_extensions: point.map(|point| {
                let oid = ObjectIdentifier::new_unwrap("2.5.29.28");
                vec![extension(oid, true, point.to_der().unwrap())]
            }),
        };
        issue::sign(&tbs.to_der().unwrap(), &self.key).unwrap()
    }
}

fn full_name(uris: &[&str]) -> DistributionPointName {
    let uri = |uri: &&str| GeneralName::UniformResourceIdentifier(Ia5String::new(uri).unwrap());
    DistributionPointName::FullName(uris.iter().map(uri).collect())
}

/// Says where an OCSP responder is.
pub(crate) fn responder_at(uri: &str) -> Extension {
    let access = AccessDescription {
        access_method: ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1"),
        access_location: GeneralName::UniformResourceIdentifier(Ia5String::new(uri).unwrap()),
    };
    let syntax = AuthorityInfoAccessSyntax(vec![access]);
    let der = syntax.to_der().unwrap();
    extension(AuthorityInfoAccessSyntax::OID, false, der)
}

/// Says where lists are that a certificate may be on.
pub(crate) fn list_at(uris: &[&str]) -> Extension {
    let point = DistributionPoint {
        distribution_point: Some(full_name(uris)),
        reasons: None,
        crl_issuer: None,
    };
    let points = CrlDistributionPoints(vec![point]);
    extension(CrlDistributionPoints::OID, false, points.to_der().unwrap())
}

pub(crate) fn extension(oid: ObjectIdentifier, critical: bool, value: Vec<u8>) -> Extension {
    Extension {
        extn_id: oid,
        critical,
        extn_value: OctetString::new(value).unwrap(),
    }
}

fn trusting(authorities: &[&Party]) -> Trust {
    Trust {
        authorities: authorities
            .iter()
            .map(|party| party.certificate.clone())
            .collect(),
        ..Trust::default()
    }
}

fn validate(trust: &Trust, end: &Party, others: &[&Party], id: &str) -> Result<(), PathError> {
    let others: Vec<_> = others
        .iter()
        .map(|party| (*party.certificate).clone())
        .collect();
    let id = id.parse().unwrap();
    let answers = Answers::default();
    let key = TrustedKey::validate(trust, &answers, &end.certificate, &others, &id, NOW)?;
    assert_eq!(key.missing(), []);
    assert_eq!(key.key(), end.key.public());
    Ok(())
}

#[track_caller]
fn refused(result: Result<(), PathError>, words: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(words), "`{words}` is not in: {error}");
}

#[test]
fn identities_are_names_of_the_certificate() {
    let ca = root("CN=Root", P256);
    let trust = trusting(&[&ca]);
    for id in [
        "gw.example.org",
        "192.0.2.1",
        "2001:db8::1",
        "gw@example.org",
        "C=ES, O=Example, CN=gw",
    ] {
        let end = ca.end(id, P256);
        validate(&trust, &end, &[], id).unwrap();
        refused(
            validate(&trust, &end, &[], "other.example.org"),
            "other.example.org is not in the certificate, whose names are",
        );
    }
    let end = ca.end("gw.example.org", P256);
    validate(&trust, &end, &[], "GW.example.org").unwrap();
    validate(&trust, &end, &[], "CN=end").unwrap();
    for id in [
        "gw.example.org.evil.net",
        "example.org",
        "gw@gw.example.org",
        "CN=gw.example.org",
    ] {
        assert!(validate(&trust, &end, &[], id).is_err(), "{id}");
    }
    let key_id = end.key.public().key_id();
    let key_id = key_id.iter().fold("keyid:0x".to_owned(), |text, octet| {
        format!("{text}{octet:02x}")
    });
    validate(&trust, &end, &[], &key_id).unwrap();
}

#[test]
fn chains_in_any_order() {
    let ca = root("CN=Root", KeyType::Ecdsa(Curve::P384));
    let middle = ca.authority("CN=Middle", None);
    let low = middle.authority("CN=Low authority", None);
    let end = low.end("gw.example.org", KeyType::Ed25519);
    let trust = trusting(&[&ca]);
    let id = "gw.example.org";
    validate(&trust, &end, &[&low, &middle], id).unwrap();
    validate(&trust, &end, &[&middle, &low], id).unwrap();
    validate(&trust, &end, &[&ca, &middle, &middle, &low, &end], id).unwrap();
    // An authority in the middle may be what is trusted.
    validate(&trusting(&[&middle]), &end, &[&low], id).unwrap();
    refused(
        validate(&trust, &end, &[&middle], id),
        "no trusted authority for its issuer \"CN=Low authority\"",
    );
    refused(
        validate(&trust, &end, &[&low], id),
        "no trusted authority for its issuer \"CN=Middle\" (it certified \"CN=Low authority\")",
    );
    // Sending the root does not make it trusted.
    let other = root("CN=Other root", P256);
    refused(
        validate(&trusting(&[&other]), &end, &[&low, &middle, &ca], id),
        "no trusted authority",
    );
    // The same name with another key.
    let forged = root("CN=Root", P256);
    let end = forged.end(id, P256);
    refused(validate(&trust, &end, &[], id), "no trusted authority");
    let unnamed = forged.issue(new_key(P256, 3), |template, extensions| {
        template.alt_names = vec![AltName::Dns(id.to_owned())];
        // Without an authority key identifier only the signature tells.
        let oid = ObjectIdentifier::new_unwrap("2.5.29.35");
        extensions.push(extension(oid, false, vec![0x30, 0]));
    });
    refused(
        validate(&trust, &unnamed, &[], id),
        "is not signed by the key of \"CN=Root\"",
    );
}

#[test]
fn what_authorities_may_do() {
    let ca = root("CN=Root", P256);
    let trust = trusting(&[&ca]);
    let id = "gw.example.org";
    let usual = ca.end("CN=gw, O=No authority", P256);
    let end = usual.end(id, P256);
    refused(validate(&trust, &end, &[&usual], id), "is no authority");

    let strict = ca.authority("CN=Strict", Some(0));
    let below = strict.authority("CN=Below", None);
    validate(&trust, &strict.end(id, P256), &[&strict], id).unwrap();
    refused(
        validate(&trust, &below.end(id, P256), &[&strict, &below], id),
        "\"CN=Strict\" allows 0 authorities below it, and there are 1",
    );

    let usage = ca.issue(new_key(P256, 5), |template, extensions| {
        template.subject = name("CN=Signer");
        template.authority = Some(None);
        let usage = KeyUsage(KeyUsages::DigitalSignature.into());
        extensions.push(extension(KeyUsage::OID, true, usage.to_der().unwrap()));
    });
    refused(
        validate(&trust, &usage.end(id, P256), &[&usage], id),
        "lacks keyCertSign",
    );

    let old = ca.issue(new_key(P256, 6), |template, _| {
        template.subject = name("CN=Old");
        template.authority = Some(None);
        template.not_after = NOW - DAY;
    });
    refused(
        validate(&trust, &old.end(id, P256), &[&old], id),
        "the certificate of \"CN=Old\" expired at 2027-01-14T08:00:00Z",
    );
}

#[test]
fn what_ends_may_do() {
    let ca = root("CN=Root", P256);
    let trust = trusting(&[&ca]);
    let id = "gw.example.org";
    let end = |change: &dyn Fn(&mut Template, &mut Vec<Extension>)| {
        ca.issue(new_key(P256, 4), |template, extensions| {
            template.alt_names = vec![AltName::Dns(id.to_owned())];
            change(template, extensions);
        })
    };
    let usage = |usage: KeyUsages| {
        end(&|_, extensions| {
            let usage = KeyUsage(usage.into());
            extensions.push(extension(KeyUsage::OID, true, usage.to_der().unwrap()));
        })
    };
    validate(&trust, &usage(KeyUsages::NonRepudiation), &[], id).unwrap();
    refused(
        validate(&trust, &usage(KeyUsages::KeyEncipherment), &[], id),
        "lacks digitalSignature",
    );
    let purpose = |oid: &str| {
        let purposes = ExtendedKeyUsage(vec![ObjectIdentifier::new_unwrap(oid)]);
        end(&|_, extensions| {
            extensions.push(extension(
                ExtendedKeyUsage::OID,
                false,
                purposes.to_der().unwrap(),
            ));
        })
    };
    for fit in [
        "1.3.6.1.5.5.7.3.1",
        "1.3.6.1.5.5.7.3.2",
        "1.3.6.1.5.5.7.3.17",
        "1.3.6.1.5.5.8.2.2",
        "2.5.29.37.0",
    ] {
        validate(&trust, &purpose(fit), &[], id).unwrap();
    }
    refused(
        validate(&trust, &purpose("1.3.6.1.5.5.7.3.3"), &[], id),
        "is for other purposes",
    );
    let critical = |critical| {
        end(&|_, extensions| {
            extensions.push(extension(
                ObjectIdentifier::new_unwrap("1.2.3.4"),
                critical,
                vec![5, 0],
            ));
        })
    };
    validate(&trust, &critical(false), &[], id).unwrap();
    refused(
        validate(&trust, &critical(true), &[], id),
        "critical extension 1.2.3.4",
    );
    let expired = end(&|template, _| template.not_after = NOW - Duration::from_secs(1));
    refused(
        validate(&trust, &expired, &[], id),
        "the certificate of \"CN=end\" expired at 2027-01-15T07:59:59Z",
    );
    validate(
        &trust,
        &end(&|template, _| template.not_after = NOW),
        &[],
        id,
    )
    .unwrap();
    let early = end(&|template, _| template.not_before = NOW + DAY);
    refused(
        validate(&trust, &early, &[], id),
        "not valid before 2027-01-16T08:00:00Z",
    );
}

#[test]
fn name_constraints() {
    let ca = root("CN=Root", P256);
    let trust = trusting(&[&ca]);
    let subtree = |base| GeneralSubtree {
        base,
        minimum: 0,
        maximum: None,
    };
    let dns = |text: &str| subtree(GeneralName::DnsName(Ia5String::new(text).unwrap()));
    let network =
        |octets: [u8; 8]| subtree(GeneralName::IpAddress(OctetString::new(octets).unwrap()));
    let bound = |permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>| {
        let some = |list: Vec<GeneralSubtree>| (!list.is_empty()).then_some(list);
        let constraints = NameConstraints {
            permitted_subtrees: some(permitted),
            excluded_subtrees: some(excluded),
        };
        ca.issue(new_key(P256, 8), |template, extensions| {
            template.subject = name("CN=Bound");
            template.authority = Some(None);
            extensions.push(extension(
                NameConstraints::OID,
                true,
                constraints.to_der().unwrap(),
            ));
        })
    };
    let try_one =
        |authority: &Party, id: &str| validate(&trust, &authority.end(id, P256), &[authority], id);
    let of_domain = bound(
        vec![dns("example.org"), network([10, 0, 0, 0, 255, 0, 0, 0])],
        vec![dns("secret.example.org")],
    );
    try_one(&of_domain, "example.org").unwrap();
    try_one(&of_domain, "gw.example.org").unwrap();
    try_one(&of_domain, "10.1.2.3").unwrap();
    // Names of a kind that no constraint is about.
    try_one(&of_domain, "gw@example.net").unwrap();
    for id in [
        "gw.example.net",
        "notexample.org",
        "x.secret.example.org",
        "192.0.2.1",
    ] {
        refused(
            try_one(&of_domain, id),
            "\"CN=Bound\" may only certify only example.org, 10.0.0.0/8 without secret.example.org, which leaves out",
        );
    }
    // They bind authorities below, too.
    let below = of_domain.authority("CN=Below", None);
    let end = below.end("gw.example.net", P256);
    refused(
        validate(&trust, &end, &[&below, &of_domain], "gw.example.net"),
        "CN=Bound",
    );
}

#[test]
fn pinned_certificates_and_raw_keys() {
    let own = root("CN=Self", P256);
    let pinned = own.issue(new_key(P256, 77), |template, _| {
        template.alt_names = vec![AltName::Dns("gw.example.org".to_owned())];
    });
    let mut trust = Trust {
        pinned: vec![pinned.certificate.clone()],
        ..Trust::default()
    };
    validate(&trust, &pinned, &[], "gw.example.org").unwrap();
    refused(
        validate(&trust, &pinned, &[], "x.example.org"),
        "is not in the certificate",
    );
    refused(
        validate(
            &trust,
            &own.end("gw.example.org", P256),
            &[],
            "gw.example.org",
        ),
        "none of those configured",
    );
    assert!(TrustedKey::configured(&trust, own.key.public()).is_none());
    trust.keys.push(own.key.public().clone());
    assert!(TrustedKey::configured(&trust, own.key.public()).is_some());
    assert!(TrustedKey::configured(&trust, pinned.key.public()).is_none());
}

#[test]
fn revocation_lists() {
    let ca = root("CN=Root", P256);
    let (good, bad) = (
        ca.end("good.example.org", P256),
        ca.end("bad1.example.org", P256),
    );
    let bad = ca.issue(bad.key, |template, _| {
        template.subject = name("CN=to be revoked");
        template.alt_names = vec![AltName::Dns("bad.example.org".to_owned())];
    });
    let with = |crls: &[Arc<Crl>], revocation| Trust {
        crls: crls.to_vec(),
        revocation,
        ..trusting(&[&ca])
    };
    let list = ca.crl(&[&bad.certificate], NOW + DAY);
    assert_eq!(
        (list.len(), list.issuer().to_string().as_str()),
        (1, "CN=Root")
    );
    for revocation in [Revocation::IfPresent, Revocation::Strict] {
        let trust = with(std::slice::from_ref(&list), revocation);
        validate(&trust, &good, &[], "good.example.org").unwrap();
        refused(
            validate(&trust, &bad, &[], "bad.example.org"),
            "\"CN=to be revoked\" was revoked at 2027-01-14T08:00:00Z",
        );
    }
    validate(
        &with(&[list], Revocation::Off),
        &bad,
        &[],
        "bad.example.org",
    )
    .unwrap();
    let stale = ca.crl(&[&bad.certificate], NOW - Duration::from_secs(1));
    let forged = root("CN=Root", KeyType::Ed25519).crl(&[&good.certificate], NOW + DAY);
    for useless in [stale, forged] {
        let trust = with(std::slice::from_ref(&useless), Revocation::IfPresent);
        validate(&trust, &good, &[], "good.example.org").unwrap();
        refused(
            validate(
                &with(&[useless], Revocation::Strict),
                &good,
                &[],
                "good.example.org",
            ),
            "whether the certificate of \"CN=end\" was revoked: there is no current list of its issuer",
        );
    }
}

/// As `openssl ca -gencrl` makes them without `crl_extensions`: version 1.
#[test]
fn lists_without_a_version() {
    let ca = root("CN=Root", P256);
    let end = ca.end("gw.example.org", P256);
    let list = ca.crl_der(&[&end.certificate], NOW + DAY, None);
    let tbs = certificate::Signed::from_der(&list).unwrap().tbs;
    // SEQUENCE with a length of one octet, then INTEGER 1.
    assert!(tbs[1] < 0x80 && tbs[2..5] == [2, 1, 1]);
    let mut first = vec![0x30, tbs[1] - 3];
    first.extend(&tbs[5..]);
    let list = Crl::from_der(&issue::sign(&first, &ca.key).unwrap()).unwrap();
    assert!(list.is_of(&ca.certificate));
    assert!(list.revoked(end.certificate.serial()).is_some());
}

/// What a list says of itself (RFC 5280 section 5.2.5), and what the certificate says of lists.
#[test]
fn lists_of_some_certificates() {
    let ca = root("CN=Root", P256);
    let uri = "http://crl.example.org/1.crl";
    let end = ca.end_with("gw.example.org", vec![list_at(&[uri])]);
    assert_eq!(&*end.certificate.list_uris()[0], uri);
    let point = IssuingDistributionPoint {
        distribution_point: None,
        only_contains_user_certs: false,
        only_contains_ca_certs: false,
        only_some_reasons: None,
        indirect_crl: false,
        only_contains_attribute_certs: false,
    };
    let read = |point| Crl::from_der(&ca.crl_der(&[], NOW + DAY, Some(point)));
    let named = |uri| IssuingDistributionPoint {
        distribution_point: Some(full_name(&[uri])),
        ..point.clone()
    };
    let ends = IssuingDistributionPoint {
        only_contains_user_certs: true,
        ..point.clone()
    };
    let authorities = IssuingDistributionPoint {
        only_contains_ca_certs: true,
        ..point.clone()
    };
    for (point, of_end, of_authority) in [
        (point.clone(), true, true),
        (named(uri), true, false),
        (named("http://crl.example.org/2.crl"), false, false),
        (ends, true, false),
        (authorities, false, true),
    ] {
        let list = read(point.clone()).unwrap();
        assert_eq!(list.covers(&end.certificate), of_end, "{point:?}");
        assert_eq!(list.covers(&ca.certificate), of_authority, "{point:?}");
    }
    let indirect = IssuingDistributionPoint {
        indirect_crl: true,
        ..point.clone()
    };
    let attributes = IssuingDistributionPoint {
        only_contains_attribute_certs: true,
        ..point
    };
    for point in [indirect, attributes] {
        assert_eq!(read(point).unwrap_err(), CrlError::Scope);
    }
}

#[test]
fn openssl_made_these() {
    let read = |der: &[u8]| Certificate::from_der(der).unwrap();
    let ca = read(include_bytes!("testdata/ca.der"));
    let leaf = read(include_bytes!("testdata/gw.der"));
    let sha1 = read(include_bytes!("testdata/sha1.der"));
    assert_eq!(ca.subject().to_string(), "C=ES, O=Example, CN=Test Root");
    assert!(ca.is_authority() && ca.is_self_issued() && !leaf.is_authority());
    assert_eq!(
        leaf.shown_names(),
        "\"C=ES, O=Example, CN=gw\", gw.example.org, 192.0.2.1, 2001:db8::1, gw@example.org"
    );
    let trust = Trust {
        authorities: vec![Arc::new(ca)],
        ..Trust::default()
    };
    let id: Identity = "2001:db8::1".parse().unwrap();
    let answers = Answers::default();
    TrustedKey::validate(&trust, &answers, &leaf, &[], &id, NOW).unwrap();
    let error = TrustedKey::validate(
        &trust,
        &answers,
        &sha1,
        &[],
        &"gw.example.org".parse().unwrap(),
        NOW,
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("ECDSA with sha1, which is not accepted"),
        "{error}"
    );
}

/// A peer that sends many certificates of one name cannot have us verify without end.
#[test]
fn the_search_for_a_path_is_bounded() {
    let ca = root("CN=Root", P256);
    let mut others = Vec::new();
    for index in 0..40 {
        let key = new_key(P256, 5000 + index);
        let cross = ca.issue(key, |template, extensions| {
            template.subject = name("CN=Loop");
            template.authority = Some(None);
            for oid in ["2.5.29.35", "2.5.29.14"] {
                let value = if oid == "2.5.29.35" {
                    vec![0x30, 0]
                } else {
                    vec![4, 1, 1]
                };
                extensions.push(extension(ObjectIdentifier::new_unwrap(oid), false, value));
            }
        });
        others.push(cross);
    }
    let last = others.pop().unwrap();
    let end = last.issue(new_key(P256, 1), |template, extensions| {
        template.alt_names = vec![AltName::Dns("gw.example.org".to_owned())];
        extensions.push(extension(
            ObjectIdentifier::new_unwrap("2.5.29.35"),
            false,
            vec![0x30, 0],
        ));
    });
    let others: Vec<&Party> = others.iter().collect();
    refused(
        validate(&trusting(&[&ca]), &end, &others, "gw.example.org"),
        "no path was found with 32 signatures verified",
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn parsers_never_panic(octets in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
                           changes in proptest::collection::vec((0usize..2000, proptest::num::u8::ANY), 1..4)) {
        let _ = Certificate::from_der(&octets);
        let _ = Crl::from_der(&octets);
        for good in [&include_bytes!("testdata/gw.der")[..], include_bytes!("testdata/ca.der")] {
            let mut bent = good.to_vec();
            for (at, value) in &changes {
                let at = at % bent.len();
                bent[at] = *value;
            }
            if let Ok(certificate) = Certificate::from_der(&bent) {
                let _ = (certificate.shown_names(), certificate.subject().to_string());
                let _ = show_time(certificate.not_after());
                let trust = Trust { authorities: vec![Arc::new(certificate.clone())], ..Trust::default() };
                let id = Identity::from_wire(2, b"gw.example.org");
                let _ = TrustedKey::validate(&trust, &Answers::default(), &certificate, std::slice::from_ref(&certificate), &id, NOW);
            }
            let _ = Certificate::from_der(&bent[..changes[0].0 % bent.len()]);
        }
        let mut list = include_bytes!("testdata/crl.der").to_vec();
        for (at, value) in &changes {
            let at = at % list.len();
            list[at] = *value;
        }
        let _ = Crl::from_der(&list);
    }

    #[test]
    fn names_never_panic(text in "[ -~]{0,40}", octets in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
        if let Ok(name) = text.parse::<DistinguishedName>() {
            let again = name.to_string().parse::<DistinguishedName>();
            proptest::prop_assert!(again.is_ok_and(|again| again.matches(&name)), "{text}");
        }
        let _ = text.parse::<crate::identity::IdentityPattern>();
        if let Some(name) = DistinguishedName::from_der(&octets) {
            let _ = name.to_string();
        }
        let _ = Identity::from_wire(9, &octets).to_string();
    }
}
