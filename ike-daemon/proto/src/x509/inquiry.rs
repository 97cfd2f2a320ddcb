//! What servers are asked about certificates, and what they answered: revocation lists from the
//! certificates' distribution points (RFC 5280 section 4.2.1.13), and the status of single certificates
//! (RFC 6960).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::certificate::{Certificate, show_time};
use super::crl::Crl;
use super::ocsp::{CertId, NONCE, Response};

/// Octets that answers may take, in all.
const MAX_KEPT: usize = 64 << 20;
/// Octets that an answer takes for each that came: it is kept whole, and taken apart.
const EXPANSION: usize = 3;
/// Octets that an entry takes beside its answer.
const OVERHEAD: usize = 512;
/// An answer that is of no use is asked for again after this time.
const RETRY: Duration = Duration::from_secs(60);

/// A question to a server: the revocation list at a URI, or the status of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inquiry {
    uri: Arc<str>,
    status_of: Option<Arc<CertId>>,
}

impl Inquiry {
    /// Asks for the list at a URI.
    pub(super) fn list(uri: &Arc<str>) -> Self {
        Self {
            uri: uri.clone(),
            status_of: None,
        }
    }

    /// Asks for the status of a certificate of `issuer`.
    pub(super) fn status(
        uri: &Arc<str>,
        issuer: &Certificate,
        certificate: &Certificate,
    ) -> Option<Self> {
        let id = CertId::new(issuer, certificate)?;
        Some(Self {
            uri: uri.clone(),
            status_of: Some(Arc::new(id)),
        })
    }

    /// Whether it asks for a revocation list.
    pub fn is_list(&self) -> bool {
        self.status_of.is_none()
    }

    /// The OCSP request that is to be sent, with a nonce; of a list there is none.
    pub(crate) fn request(&self, nonce: &[u8; NONCE]) -> Option<Vec<u8>> {
        self.status_of.as_ref()?.request(nonce).ok()
    }

    /// Where it goes: an `http://` URI.
    pub fn uri(&self) -> &Arc<str> {
        &self.uri
    }

    /// Tells a list from all others.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.uri.as_bytes()).into()
    }
}

/// What an answer says of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is not revoked.
    Good,
    /// It was revoked at this time.
    Revoked(Duration),
    /// Nothing, and why.
    Useless(String),
    /// The server has not been asked, or so long ago that it is time to ask again.
    Unasked,
}

enum Found {
    List(Crl),
    Status(Response),
}

struct Entry {
    /// When it came.
    at: Duration,
    found: Result<Found, String>,
    octets: usize,
}

/// The answers of servers. What is in them is not verified until they are used: only then it is
/// known whose they must be.
#[derive(Default)]
pub(crate) struct Answers {
    entries: HashMap<Inquiry, Entry>,
    octets: usize,
}

impl Answers {
    /// Takes in what came at `now` (since 1970) for an inquiry with a nonce, or why nothing did.
    pub fn store(
        &mut self,
        inquiry: &Inquiry,
        nonce: &[u8; NONCE],
        now: Duration,
        reply: Result<&[u8], String>,
    ) {
        let came = reply.as_ref().map_or(0, |reply| reply.len());
        let octets = came * EXPANSION + OVERHEAD;
        let found = reply.and_then(|reply| match &inquiry.status_of {
            None => Crl::from_der(reply)
                .map(Found::List)
                .map_err(|error| format!("what it sent cannot be used: {error}")),
            Some(id) => Response::read(reply, id, nonce).map(Found::Status),
        });
        self.forget(inquiry);
        while self.octets + octets > MAX_KEPT {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.at);
            let Some(oldest) = oldest.map(|(inquiry, _)| inquiry.clone()) else {
                break;
            };
            self.forget(&oldest);
        }
        self.octets += octets;
        let at = now;
        let entry = Entry { at, found, octets };
        self.entries.insert(inquiry.clone(), entry);
    }

    fn forget(&mut self, inquiry: &Inquiry) {
        if let Some(entry) = self.entries.remove(inquiry) {
            self.octets -= entry.octets;
        }
    }

    /// What is known of a certificate of `issuer`.
    pub(super) fn of(
        &self,
        inquiry: &Inquiry,
        issuer: &Certificate,
        certificate: &Certificate,
        now: Duration,
    ) -> Answer {
        let Some(entry) = self.entries.get(inquiry) else {
            return Answer::Unasked;
        };
        let answer = match &entry.found {
            Ok(Found::List(list)) => match usable(list, issuer, certificate, now) {
                Ok(list) => match list.revoked(certificate.serial()) {
                    Some(at) => Answer::Revoked(at),
                    None => Answer::Good,
                },
                Err(reason) => Answer::Useless(reason),
            },
            Ok(Found::Status(response)) => response.judge(issuer, now),
            Err(reason) => Answer::Useless(reason.clone()),
        };
        match answer {
            // A clock that was set back must not keep it for ever.
            Answer::Useless(_) if now.abs_diff(entry.at) >= RETRY => Answer::Unasked,
            answer => answer,
        }
    }
}

/// Whether a list may speak of a certificate.
fn usable<'a>(
    list: &'a Crl,
    issuer: &Certificate,
    certificate: &Certificate,
    now: Duration,
) -> Result<&'a Crl, String> {
    if !list.is_current(now) {
        return Err(match list.next_update().filter(|next| *next <= now) {
            Some(next) => format!("its list ended at {}", show_time(next)),
            None => "its list is of a time to come: is this machine's clock right?".to_owned(),
        });
    }
    if !list.is_of(issuer) {
        return Err(format!(
            "its list is not signed by \"{}\"",
            issuer.subject()
        ));
    }
    if !list.covers(certificate) {
        return Err("its list is about other certificates".to_owned());
    }
    Ok(list)
}
