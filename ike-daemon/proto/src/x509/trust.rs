//! Whom a connection believes.

use std::sync::Arc;

use super::certificate::Certificate;
use super::crl::Crl;
use crate::crypto::signature::PublicKey;

/// How it is found out whether a certificate was revoked, and what if that cannot be found out. Lists
/// that are configured and current are followed in any case but the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revocation {
    /// The servers that a certificate names are asked; it is believed where none helps.
    #[default]
    Relaxed,
    /// The servers that a certificate names are asked; it is refused where none helps.
    IfUri,
    /// As `IfUri`; a certificate that names no server is refused, too.
    Strict,
    /// Nobody is asked; where no list is configured, none is missed.
    IfPresent,
    /// Lists are not looked at.
    Off,
}

/// What a peer's signature may rest on.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Authorities that may issue the peer's certificate, directly or through others.
    pub authorities: Vec<Arc<Certificate>>,
    /// Certificates of peers that are believed as they are.
    pub pinned: Vec<Arc<Certificate>>,
    /// Keys of peers that are believed without a certificate (RFC 7670).
    pub keys: Vec<PublicKey>,
    /// Revocation lists.
    pub crls: Vec<Arc<Crl>>,
    /// How they are used.
    pub revocation: Revocation,
}

impl Trust {
    /// What CERTREQ names: SHA-1 over the SubjectPublicKeyInfo of each authority (RFC 7296 section
    /// 3.7).
    pub fn authority_hashes(&self) -> Vec<[u8; 20]> {
        let keys = self
            .authorities
            .iter()
            .filter_map(|authority| authority.key().ok());
        keys.map(PublicKey::spki_sha1).collect()
    }
}
