//! Whether a certificate's issuer took it back, by the lists that are configured and by what servers
//! say.

use std::time::Duration;

use super::certificate::{Certificate, show_time};
use super::inquiry::{Answer, Answers, Inquiry};
use super::path::PathError;
use super::trust::{Revocation, Trust};

/// Most responders and most lists of one certificate that are tried.
const MAX_EACH: usize = 3;

/// What is found of a certificate that is not known to be revoked.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// A server is to be asked first.
    pub missing: Option<Inquiry>,
    /// Why it is not known whether it was revoked, where the settings believe it all the same.
    pub doubt: Option<String>,
}

/// Looks for a certificate of `issuer` in the lists.
pub(super) fn check(
    trust: &Trust,
    answers: &Answers,
    issuer: &Certificate,
    certificate: &Certificate,
    now: Duration,
) -> Result<Found, PathError> {
    if trust.revocation == Revocation::Off {
        return Ok(Found::default());
    }
    let revoked = |at| {
        Err(PathError::Revoked {
            subject: certificate.subject().to_string(),
            at: show_time(at),
        })
    };
    let lists = trust.crls.iter();
    let mut current = lists
        .filter(|list| list.is_current(now) && list.is_of(issuer) && list.covers(certificate))
        .peekable();
    if current.peek().is_some() {
        return match current.find_map(|list| list.revoked(certificate.serial())) {
            Some(at) => revoked(at),
            None => Ok(Found::default()),
        };
    }
    if trust.revocation == Revocation::IfPresent {
        return Ok(Found::default());
    }
    let mut tried = Vec::new();
    // A responder's answer is small, and newer than a list.
    let responders = certificate.responder_uris().iter().take(MAX_EACH);
    let status = |uri| (uri, Inquiry::status(uri, issuer, certificate));
    let lists = certificate.list_uris().iter().take(MAX_EACH);
    let list = |uri| (uri, Some(Inquiry::list(uri)));
    for (uri, inquiry) in responders.map(status).chain(lists.map(list)) {
        let Some(inquiry) = inquiry.filter(|_| is_http(uri)) else {
            tried.push(format!("{uri}: only http:// URIs are asked"));
            continue;
        };
        match answers.of(&inquiry, issuer, certificate, now) {
            Answer::Good => return Ok(Found::default()),
            Answer::Revoked(at) => return revoked(at),
            Answer::Useless(reason) => tried.push(format!("{uri}: {reason}")),
            Answer::Unasked => {
                return Ok(Found {
                    missing: Some(inquiry),
                    doubt: None,
                });
            }
        }
    }
    let wanted = match trust.revocation {
        Revocation::Strict => true,
        Revocation::IfUri => !tried.is_empty(),
        Revocation::Relaxed | Revocation::IfPresent | Revocation::Off => false,
    };
    if wanted {
        return Err(PathError::Unknown {
            subject: certificate.subject().to_string(),
            issuer: issuer.subject().to_string(),
            tried,
        });
    }
    Ok(Found {
        missing: None,
        doubt: (!tried.is_empty()).then(|| {
            let subject = certificate.subject();
            format!("the certificate of \"{subject}\": {}", tried.join("; "))
        }),
    })
}

/// HTTPS would need a certificate that is believed before this one is.
fn is_http(uri: &str) -> bool {
    let scheme = uri.get(..7);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}
