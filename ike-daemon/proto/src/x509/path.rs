//! Path validation (RFC 5280 section 6, RFC 4945 section 5): from a peer's certificate through
//! intermediate ones, in any order, to an authority that is trusted.

use std::time::Duration;

use der::asn1::ObjectIdentifier;

use super::certificate::{Certificate, show_time};
use super::inquiry::{Answers, Inquiry};
use super::revocation;
use super::trust::Trust;
use crate::crypto::signature::{HashAlgorithm, PublicKey};
use crate::identity::Identity;

/// Longest path, authorities included.
const MAX_PATH: usize = 8;
/// Signatures that are verified in search of a path: an unauthenticated peer sends the certificates.
const MAX_SIGNATURES: usize = 32;

/// Extended key usages with which a certificate may authenticate IKE: any, IPsec (RFC 4945 section 5.1.3.12),
/// Apple's and Cisco's "IKE intermediate", and TLS's, which are what most authorities give.
const PURPOSES: [ObjectIdentifier; 5] = [
    ObjectIdentifier::new_unwrap("2.5.29.37.0"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.17"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.8.2.2"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2"),
];

/// Why a certificate is not believed. Names are subjects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nobody trusted issued it.
    #[error("no trusted authority for its issuer \"{issuer}\"{}", via(.of))]
    NoIssuer {
        /// The issuer that is missing.
        issuer: String,
        /// Whose issuer, where it is not the peer's own.
        of: Option<String>,
    },
    /// Its time is over.
    #[error("the certificate of \"{subject}\" expired at {at}")]
    Expired {
        /// Whose.
        subject: String,
        /// When.
        at: String,
    },
    /// Its time is to come.
    #[error(
        "the certificate of \"{subject}\" is not valid before {at}; is this machine's clock right ({now})?"
    )]
    NotYet {
        /// Whose.
        subject: String,
        /// When it becomes valid.
        at: String,
        /// The time it was compared with.
        now: String,
    },
    /// The peer says it is somebody else than the certificate says.
    #[error("{identity} is not in the certificate, whose names are {names}")]
    WrongName {
        /// Who the peer says it is.
        identity: String,
        /// Whom the certificate is for.
        names: String,
    },
    /// An issuer is no authority.
    #[error("\"{subject}\" is no authority: its certificate lacks CA in the basic constraints")]
    NotAuthority {
        /// Whose certificate.
        subject: String,
    },
    /// An authority allows fewer below it.
    #[error("\"{subject}\" allows {limit} authorities below it, and there are {found}")]
    PathLength {
        /// Whose certificate.
        subject: String,
        /// How many it allows.
        limit: u8,
        /// How many there are.
        found: usize,
    },
    /// The path goes on and on.
    #[error("the path has more than {MAX_PATH} certificates")]
    TooLong,
    /// The key may not be used so.
    #[error("the key usage of \"{subject}\" lacks {usage}")]
    KeyUsage {
        /// Whose certificate.
        subject: String,
        /// The bit that is missing.
        usage: &'static str,
    },
    /// It is for other purposes.
    #[error(
        "the certificate of \"{subject}\" is for other purposes: its extended key usage has none of ipsecIKE, ikeIntermediate, serverAuth, clientAuth"
    )]
    Purpose {
        /// Whose certificate.
        subject: String,
    },
    /// An authority may not give such names.
    #[error("\"{subject}\" may only certify {allowed}, which leaves out {name}")]
    NameConstraint {
        /// Which authority.
        subject: String,
        /// What it may certify.
        allowed: String,
        /// The name in question.
        name: String,
    },
    /// It demands something that is not understood.
    #[error(
        "the certificate of \"{subject}\" has the critical extension {extension}, which is not known here"
    )]
    CriticalExtension {
        /// Whose certificate.
        subject: String,
        /// Which.
        extension: String,
    },
    /// It was not signed by its issuer's key.
    #[error("the certificate of \"{subject}\" is not signed by the key of \"{issuer}\"")]
    Signature {
        /// Whose certificate.
        subject: String,
        /// Its issuer.
        issuer: String,
    },
    /// It was signed with SHA-1, or an algorithm that is not known.
    #[error("the certificate of \"{subject}\" is signed with {algorithm}, which is not accepted")]
    Algorithm {
        /// Whose certificate.
        subject: String,
        /// Which.
        algorithm: String,
    },
    /// Its key cannot be used.
    #[error("the certificate of \"{subject}\": {reason}")]
    Key {
        /// Whose certificate.
        subject: String,
        /// Why.
        reason: String,
    },
    /// Its issuer took it back.
    #[error("the certificate of \"{subject}\" was revoked at {at}")]
    Revoked {
        /// Whose.
        subject: String,
        /// When.
        at: String,
    },
    /// It cannot be found out whether it was revoked, and must be.
    #[error("it is not known whether the certificate of \"{subject}\" was revoked{}", reasons(.tried))]
    Unknown {
        /// Whose.
        subject: String,
        /// Whose list is missing.
        issuer: String,
        /// Who was asked, and why that did not help.
        tried: Vec<String>,
    },
    /// It is not one of those that were configured.
    #[error(
        "the peer's certificate is none of those configured for it, and there is no trusted authority"
    )]
    NotPinned,
    /// Too many certificates to try.
    #[error("no path was found with {MAX_SIGNATURES} signatures verified")]
    TooManyTries,
}

fn via(of: &Option<String>) -> String {
    match of {
        Some(of) => format!(" (it certified \"{of}\")"),
        None => String::new(),
    }
}

fn reasons(tried: &[String]) -> String {
    match tried {
        [] => ": there is no current list of its issuer, and it names no server that has one"
            .to_owned(),
        tried => format!(": {}", tried.join("; ")),
    }
}

/// A key that may speak for an identity, unless a server that is to be asked first says that its
/// certificate was revoked. Only validation makes one.
#[derive(Clone, Debug)]
pub(crate) struct TrustedKey {
    key: PublicKey,
    missing: Vec<Inquiry>,
    doubts: Vec<String>,
}

impl TrustedKey {
    fn new(key: &PublicKey) -> Self {
        Self {
            key: key.clone(),
            missing: Vec::new(),
            doubts: Vec::new(),
        }
    }

    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// What must be asked before it is believed; afterwards it is to be validated again.
    pub fn missing(&self) -> &[Inquiry] {
        &self.missing
    }

    /// Of which certificates of the path it is not known whether they were revoked.
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// A key that is configured for a peer by itself.
    pub fn configured(trust: &Trust, key: &PublicKey) -> Option<Self> {
        trust.keys.contains(key).then(|| Self::new(key))
    }

    /// The key of `leaf`, if it is trusted for `identity` at the time `now` (since 1970). `others`
    /// may be on the path, in any order. `answers` are those of the servers that were asked.
    pub fn validate(
        trust: &Trust,
        answers: &Answers,
        leaf: &Certificate,
        others: &[Certificate],
        identity: &Identity,
        now: Duration,
    ) -> Result<Self, PathError> {
        if !leaf.names(identity) {
            return Err(PathError::WrongName {
                identity: identity.to_string(),
                names: leaf.shown_names(),
            });
        }
        let key = leaf.key().map_err(|reason| PathError::Key {
            subject: leaf.subject().to_string(),
            reason: reason.to_string(),
        })?;
        check_times(leaf, now)?;
        check_extensions(leaf)?;
        check_end_entity(leaf)?;
        let pinned = trust.pinned.iter().any(|pinned| pinned.der() == leaf.der());
        let mut trusted = Self::new(key);
        if !pinned {
            if trust.authorities.is_empty() {
                return Err(PathError::NotPinned);
            }
            let mut search = Search {
                trust,
                answers,
                others,
                now,
                signatures: 0,
                deepest: None,
                missing: Vec::new(),
                doubts: Vec::new(),
            };
            search.extend(&mut vec![leaf])?;
            (trusted.missing, trusted.doubts) = (search.missing, search.doubts);
        }
        Ok(trusted)
    }
}

struct Search<'a> {
    trust: &'a Trust,
    answers: &'a Answers,
    others: &'a [Certificate],
    now: Duration,
    signatures: usize,
    /// The error of the longest path that was tried, with its length.
    deepest: Option<(usize, PathError)>,
    /// What is to be asked about the certificates of the path.
    missing: Vec<Inquiry>,
    doubts: Vec<String>,
}

impl<'a> Search<'a> {
    /// Looks for issuers of the last certificate until a trusted one is found.
    fn extend(&mut self, path: &mut Vec<&'a Certificate>) -> Result<(), PathError> {
        let Some(last) = path.last().copied() else {
            return Err(PathError::NotPinned);
        };
        if path.len() >= MAX_PATH {
            return Err(PathError::TooLong);
        }
        let authorities = self.trust.authorities.iter().map(|authority| &**authority);
        let issuers: Vec<(&Certificate, bool)> = authorities
            .map(|issuer| (issuer, true))
            .chain(self.others.iter().map(|issuer| (issuer, false)))
            .filter(|(issuer, _)| last.names_issuer(issuer) && !path.contains(issuer))
            .collect();
        if issuers.is_empty() {
            let missing = PathError::NoIssuer {
                issuer: last.issuer().to_string(),
                of: (path.len() > 1).then(|| last.subject().to_string()),
            };
            return Err(self.note(path.len(), missing));
        }
        let (missing, doubts) = (self.missing.len(), self.doubts.len());
        for (issuer, trusted) in issuers {
            // Those of a path that led nowhere do not matter.
            self.missing.truncate(missing);
            self.doubts.truncate(doubts);
            if let Err(error) = self.check_issuer(issuer, path) {
                if error == PathError::TooManyTries {
                    return Err(error);
                }
                self.note(path.len() + 1, error);
                continue;
            }
            if trusted {
                return Ok(());
            }
            path.push(issuer);
            let rest = self.extend(path);
            path.pop();
            match rest {
                Ok(()) => return Ok(()),
                Err(PathError::TooManyTries) => return Err(PathError::TooManyTries),
                Err(_) => {}
            }
        }
        let deepest = self.deepest.as_ref().map(|(_, error)| error.clone());
        Err(deepest.unwrap_or(PathError::NotPinned))
    }

    /// Keeps the error of the longest path: it is the one that people can do something about.
    fn note(&mut self, depth: usize, error: PathError) -> PathError {
        if self
            .deepest
            .as_ref()
            .is_none_or(|(before, _)| depth > *before)
        {
            self.deepest = Some((depth, error.clone()));
        }
        error
    }

    /// Whether `issuer` may have issued the last certificate of the path, and did.
    fn check_issuer(
        &mut self,
        issuer: &Certificate,
        path: &[&Certificate],
    ) -> Result<(), PathError> {
        let Some(last) = path.last() else {
            return Ok(());
        };
        let subject = || issuer.subject().to_string();
        if !issuer.is_authority() {
            return Err(PathError::NotAuthority { subject: subject() });
        }
        if issuer.usage().is_some_and(|usage| !usage.certificates) {
            return Err(PathError::KeyUsage {
                subject: subject(),
                usage: "keyCertSign",
            });
        }
        check_times(issuer, self.now)?;
        check_extensions(issuer)?;
        // The first is the end's own; self-issued ones do not count (RFC 5280 section 6.1.4).
        let below = path.iter().skip(1).filter(|below| !below.is_self_issued());
        let below = below.count();
        if let Some(limit) = issuer.path_length()
            && below > usize::from(limit)
        {
            return Err(PathError::PathLength {
                subject: subject(),
                limit,
                found: below,
            });
        }
        if let Some(constraints) = issuer.constraints() {
            let bound = |(index, below): (usize, &&Certificate)| {
                (index == 0 || !below.is_self_issued()).then(|| constraints.offence(below))?
            };
            if let Some(name) = path.iter().enumerate().find_map(bound) {
                return Err(PathError::NameConstraint {
                    subject: subject(),
                    allowed: constraints.to_string(),
                    name,
                });
            }
        }
        let refused = |algorithm: String| PathError::Algorithm {
            subject: last.subject().to_string(),
            algorithm,
        };
        let algorithm = last
            .algorithm()
            .map_err(|error| refused(error.to_owned()))?;
        if algorithm.hash() == HashAlgorithm::Sha1 {
            return Err(refused(algorithm.to_string()));
        }
        if self.signatures >= MAX_SIGNATURES {
            return Err(PathError::TooManyTries);
        }
        self.signatures += 1;
        if !issuer.key().is_ok_and(|key| last.is_signed_by(key)) {
            return Err(PathError::Signature {
                subject: last.subject().to_string(),
                issuer: subject(),
            });
        }
        let found = revocation::check(self.trust, self.answers, issuer, last, self.now)?;
        self.missing.extend(found.missing);
        self.doubts.extend(found.doubt);
        Ok(())
    }
}

fn check_times(certificate: &Certificate, now: Duration) -> Result<(), PathError> {
    let subject = || certificate.subject().to_string();
    if now < certificate.not_before() {
        return Err(PathError::NotYet {
            subject: subject(),
            at: show_time(certificate.not_before()),
            now: show_time(now),
        });
    }
    // It is valid up to and including the second of notAfter.
    if now.as_secs() > certificate.not_after().as_secs() {
        return Err(PathError::Expired {
            subject: subject(),
            at: show_time(certificate.not_after()),
        });
    }
    Ok(())
}

fn check_extensions(certificate: &Certificate) -> Result<(), PathError> {
    match certificate.unknown_critical() {
        Some(extension) => Err(PathError::CriticalExtension {
            subject: certificate.subject().to_string(),
            extension: extension.to_string(),
        }),
        None => Ok(()),
    }
}

/// Whether a certificate is for a peer of IKE.
fn check_end_entity(leaf: &Certificate) -> Result<(), PathError> {
    if leaf.usage().is_some_and(|usage| !usage.signature) {
        return Err(PathError::KeyUsage {
            subject: leaf.subject().to_string(),
            usage: "digitalSignature",
        });
    }
    let fits =
        |purposes: &[ObjectIdentifier]| purposes.iter().any(|purpose| PURPOSES.contains(purpose));
    if leaf.purposes().is_some_and(|purposes| !fits(purposes)) {
        return Err(PathError::Purpose {
            subject: leaf.subject().to_string(),
        });
    }
    Ok(())
}
