//! Refusals of IKE_AUTH: who could not prove what.

use std::sync::Arc;

use super::refusal;
use crate::config::{
    ConnectionConfig, Credential, LocalAuth, RemoteAddress, RemoteAuth, RemoteIdentity,
};
use crate::crypto::signature::{HashAlgorithm, PublicKeyKind};
use crate::identity::Identity;
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::sa::context::{Common, local_identity};
use crate::sa::credential::Wanted;
use crate::sa::proof::accepts_identity;
use crate::sa::proof::method::is_signature;
use crate::status::Role;
use crate::wire::NotifyType;
use crate::x509::{Certificate, PathError, show_time};

/// Hash functions for people.
pub(crate) fn hash_names(hashes: &[HashAlgorithm]) -> String {
    if hashes.is_empty() {
        return "none that we know".to_owned();
    }
    let names: Vec<&str> = hashes.iter().map(|hash| hash.name()).collect();
    names.join(", ")
}

/// The peer refused our IKE_AUTH request as a whole.
pub(crate) fn auth_refused(
    config: &ConnectionConfig,
    common: &Common,
    kind: NotifyType,
    local_id: &Identity,
    proved_with: &str,
    wanted: &Wanted,
) -> Arc<Refusal> {
    let peer = common.remote;
    if kind != NotifyType::AUTHENTICATION_FAILED {
        return super::answered_with(config, common, "IKE_AUTH", kind);
    }
    let asked = match &config.remote_id {
        RemoteIdentity::Is(identity) => format!("we asked for the peer as {identity}"),
        _ => "we did not ask for an identity of the peer".to_owned(),
    };
    let mut details = vec![
        format!("we said we are {local_id}"),
        asked,
        format!("we proved it with {proved_with}"),
    ];
    if let LocalAuth::PublicKey(credential) = &config.local_auth {
        return certificate_refused(config, common, local_id, credential, wanted, details);
    }
    details.extend([
        "the peer refuses for one of: another pre-shared key, no connection for our identity or address, \
         no identity of its own as we asked for, certificates or EAP wanted instead of a key; its log says which"
            .to_owned(),
    ]);
    let fix = Fix::new(
        &config.origin,
        "local.id",
        format!(
            "the peer must expect this identity from us ({local_id}); then compare the pre-shared keys"
        ),
    );
    let summary = format!("{peer} does not accept us as {local_id}");
    refusal(
        RefusalKind::Authentication,
        RefusedBy::Peer,
        Role::Initiator,
        config,
        summary,
        details,
        Some(fix),
    )
}

/// The peer's AUTH payload does not fit the key we have for it.
pub(crate) fn wrong_psk(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
    origin: &str,
) -> Arc<Refusal> {
    let summary = format!(
        "{identity} ({}) has another pre-shared key than we have for it",
        common.remote
    );
    let details = vec![
        format!("the peer says it is {identity}"),
        format!("we checked it with the pre-shared key at {origin}, and it does not fit"),
    ];
    let fix = Fix {
        setting: "secret".to_owned(),
        file: Some(origin.to_owned()),
        line: None,
        current: Some("(not shown)".to_owned()),
        suggestion:
            "set the same secret on both ends; mind quotes, blanks and a 0x or base64 prefix"
                .to_owned(),
    };
    refused(config, common, summary, details, Some(fix))
}

/// There is no key for this pair.
pub(crate) fn no_secret(
    config: &ConnectionConfig,
    common: &Common,
    local: &Identity,
    remote: &Identity,
) -> Arc<Refusal> {
    let summary = format!("there is no pre-shared key for {local} and {remote}");
    let details = vec![format!(
        "the peer is {remote} ({}), we are {local}",
        common.remote
    )];
    let fix = Fix {
        setting: "psk".to_owned(),
        file: Some("secrets.toml".to_owned()),
        line: None,
        current: None,
        suggestion: format!("add [[psk]] with ids = [\"{local}\", \"{remote}\"]"),
    };
    refused(config, common, summary, details, Some(fix))
}

/// The responder proved to be somebody else than configured.
pub(crate) fn wrong_identity(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
) -> Arc<Refusal> {
    let expected = expected_identity(config, common);
    let summary = format!(
        "{} says it is {identity}, we expect {expected}",
        common.remote
    );
    let details = vec![
        format!("we expect   {expected}"),
        format!("the peer is {identity}"),
    ];
    let fix = Fix::new(
        &config.origin,
        "remote.id",
        format!("remote.id = \"{identity}\" would accept it, if that is who the peer should be"),
    );
    refused(config, common, summary, details, Some(fix))
}

fn expected_identity(config: &ConnectionConfig, common: &Common) -> String {
    match (&config.remote_id, config.remote_address) {
        (RemoteIdentity::Is(identity), _) => identity.to_string(),
        (RemoteIdentity::Matches(pattern), _) => pattern.to_string(),
        (RemoteIdentity::Any, _) => "anybody".to_owned(),
        (RemoteIdentity::Address, RemoteAddress::Address(address)) => address.to_string(),
        (RemoteIdentity::Address, RemoteAddress::Any) => common.remote.ip().to_string(),
    }
}

/// The initiator is, or asks for, somebody no connection names.
pub(crate) fn unknown_identity(
    candidates: &[Arc<ConnectionConfig>],
    common: &Common,
    identity: &Identity,
    asked: Option<&Identity>,
) -> Arc<Refusal> {
    let mut details = vec![format!("the peer says it is {identity}")];
    if let Some(asked) = asked {
        details.push(format!("it asks for us as {asked}"));
    }
    for config in candidates.iter().take(8) {
        let ours = local_identity(config, common.local);
        details.push(format!(
            "connection `{}` expects {} and is {ours}",
            config.name,
            expected_identity(config, common)
        ));
    }
    let first = candidates.first();
    let peer_fits =
        first.is_some_and(|config| accepts_identity(config, common.remote.ip(), identity));
    let fix = first.map(|config| match asked {
        Some(asked) if peer_fits => Fix::new(
            &config.origin,
            "local.id",
            format!("local.id = \"{asked}\" would be who the peer asks for"),
        ),
        _ => Fix::new(
            &config.origin,
            "remote.id",
            format!(
                "remote.id = \"{identity}\" would accept it, if that is who the peer should be"
            ),
        ),
    });
    Arc::new(Refusal {
        kind: RefusalKind::Authentication,
        by: RefusedBy::Us,
        role: Role::Responder,
        connection: first.map(|config| config.name.clone()),
        summary: match asked {
            Some(asked) if peer_fits => {
                format!("{} asks for {asked}, which we are not", common.remote)
            }
            _ => format!(
                "{} says it is {identity}, which no connection expects",
                common.remote
            ),
        },
        details,
        fix,
    })
}

/// The peer authenticates by other means than the connection wants.
pub(crate) fn other_method(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
    method: u8,
) -> Arc<Refusal> {
    let name = match method {
        1 => "an RSA signature",
        2 => "a pre-shared key",
        3 => "a DSS signature",
        9..=11 => "an ECDSA signature",
        12 => "a secure password (RFC 6467)",
        13 => "no authentication (RFC 7619)",
        14 => "a digital signature (RFC 7427)",
        _ => "a method unknown here",
    };
    let (wanted, methods) = wanted_method(config);
    let summary = format!(
        "{identity} ({}) authenticates with {name}, we want {wanted}",
        common.remote
    );
    let details = vec![
        format!("we accept   {methods}"),
        format!("the peer uses {name} (method {method})"),
    ];
    let hint = match config.remote_auth {
        RemoteAuth::Psk if is_signature(method) => {
            "remote.auth = \"pubkey\" with remote.cacerts would accept certificates, or set the peer to \
             authenticate with a pre-shared key"
        }
        RemoteAuth::Psk => "set the peer to authenticate with a pre-shared key",
        RemoteAuth::PublicKey(_) if method == 2 => {
            "remote.auth = \"psk\" would accept it, or set the peer to authenticate with a certificate"
        }
        RemoteAuth::PublicKey(_) => "set the peer to authenticate with a certificate",
    };
    refused(
        config,
        common,
        summary,
        details,
        Some(Fix::new(&config.origin, auth_setting(config), hint)),
    )
}

fn wanted_method(config: &ConnectionConfig) -> (&'static str, &'static str) {
    match config.remote_auth {
        RemoteAuth::Psk => ("a pre-shared key", "pre-shared key (method 2)"),
        RemoteAuth::PublicKey(_) => (
            "a certificate",
            "digital signature (method 14), RSA (1), ECDSA (9, 10, 11)",
        ),
    }
}

/// The setting that says how the peer authenticates.
fn auth_setting(config: &ConnectionConfig) -> &'static str {
    if config.origin.settings.contains_key("remote.auth") {
        "remote.auth"
    } else {
        "auth"
    }
}

/// We refuse the peer in IKE_AUTH.
fn refused(
    config: &ConnectionConfig,
    common: &Common,
    summary: String,
    details: Vec<String>,
    fix: Option<Fix>,
) -> Arc<Refusal> {
    let kind = RefusalKind::Authentication;
    refusal(
        kind,
        RefusedBy::Us,
        common.role,
        config,
        summary,
        details,
        fix,
    )
}

/// The initiator wants EAP.
pub(crate) fn wants_eap(
    config: Option<&Arc<ConnectionConfig>>,
    common: &Common,
    identity: &Identity,
) -> Arc<Refusal> {
    Arc::new(Refusal {
        kind: RefusalKind::Authentication,
        by: RefusedBy::Us,
        role: Role::Responder,
        connection: config.map(|config| config.name.clone()),
        summary: format!(
            "{identity} ({}) wants to authenticate with EAP, we want {}",
            common.remote,
            config.map_or("another method", |config| wanted_method(config).0)
        ),
        details: vec![
            "the IKE_AUTH request has no AUTH payload, which asks for EAP (RFC 7296 section 2.16)"
                .to_owned(),
        ],
        fix: config.map(|config| {
            let wanted = wanted_method(config).0;
            let hint = format!("set the peer to authenticate with {wanted}");
            Fix::new(&config.origin, auth_setting(config), hint)
        }),
    })
}

/// The peer's signature cannot be taken for proof, and no setting is to blame for certain.
pub(crate) fn peer_unproven(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
    reason: &str,
) -> Arc<Refusal> {
    let summary = format!("{identity} ({}) does not prove who it is", common.remote);
    let details = vec![format!("the peer says it is {identity}"), reason.to_owned()];
    refused(config, common, summary, details, None)
}

/// The peer has nothing better than RSA with SHA-1.
pub(crate) fn wants_sha1(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
) -> Arc<Refusal> {
    let summary = format!(
        "{identity} ({}) signs with RSA (method 1), and not over SHA-2",
        common.remote
    );
    let details = vec![
        "the peer did not say SIGNATURE_HASH_ALGORITHMS (RFC 7427): it has the older methods only"
            .to_owned(),
        "SHA-1, which they mean, is not accepted unless insecure = true says so".to_owned(),
    ];
    let hint = "give the peer a version with RFC 7427 or an ECDSA certificate; insecure = true would accept SHA-1";
    let fix = Fix::new(&config.origin, "insecure", hint);
    refused(config, common, summary, details, Some(fix))
}

/// What is known of certificates that a peer sent.
fn shown(certificates: &[Certificate]) -> Vec<String> {
    let line = |(index, certificate): (usize, &Certificate)| {
        format!(
            "{} \"{}\" issued by \"{}\", valid to {}",
            if index == 0 {
                "it sent the certificate of"
            } else {
                "and of"
            },
            certificate.subject(),
            certificate.issuer(),
            show_time(certificate.not_after())
        )
    };
    certificates.iter().take(8).enumerate().map(line).collect()
}

/// The peer's certificate is not believed.
pub(crate) fn untrusted(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
    certificates: &[Certificate],
    error: &PathError,
) -> Arc<Refusal> {
    let summary = format!(
        "the certificate of {identity} ({}) is refused: {error}",
        common.remote
    );
    let mut details = vec![format!("the peer says it is {identity}")];
    details.extend(shown(certificates));
    if let RemoteAuth::PublicKey(trust) = &config.remote_auth {
        for authority in trust.authorities.iter().take(8) {
            details.push(format!("we trust    \"{}\"", authority.subject()));
        }
        for pinned in trust.pinned.iter().take(8) {
            details.push(format!(
                "we trust    the certificate of \"{}\"",
                pinned.subject()
            ));
        }
    }
    let fix = match error {
        PathError::NoIssuer { issuer, of: None } => Some((
            "remote.cacerts",
            format!(
                "add the certificate of \"{issuer}\", if it is to be trusted, or have the peer send it"
            ),
        )),
        PathError::NoIssuer { issuer, .. } => Some((
            "remote.cacerts",
            format!("add the certificate of \"{issuer}\", if it is to be trusted"),
        )),
        PathError::NotPinned => Some((
            "remote.certs",
            "set the certificate that the peer has now, or the authority's in remote.cacerts"
                .to_owned(),
        )),
        PathError::WrongName { names, .. } => Some((
            "remote.id",
            format!(
                "let the peer say it is one of {names}, and expect that here; or give it a certificate for {identity}"
            ),
        )),
        PathError::Unknown { issuer, tried, .. } => Some((
            "remote.revocation",
            match tried.is_empty() {
                true => format!(
                    "add the current list of \"{issuer}\" to remote.crls, or set remote.revocation = \"ifuri\""
                ),
                false => format!(
                    "make the server reachable from here, add the current list of \"{issuer}\" to remote.crls, or set remote.revocation = \"relaxed\""
                ),
            },
        )),
        PathError::Revoked { .. } => Some((
            "remote.revocation",
            "give the peer a new certificate; only remote.revocation = \"off\" would believe one that was revoked"
                .to_owned(),
        )),
        _ => None,
    };
    let fix = fix.map(|(setting, hint)| Fix::new(&config.origin, setting, hint));
    refused(config, common, summary, details, fix)
}

/// We have no way to sign that the peer could verify.
pub(crate) fn cannot_sign(
    config: &ConnectionConfig,
    common: &Common,
    credential: &Credential,
    wanted: &Wanted,
) -> Arc<Refusal> {
    let kind = credential.key.public().kind();
    let ours = match kind {
        PublicKeyKind::Ed25519 => vec![HashAlgorithm::Identity],
        _ => vec![
            HashAlgorithm::Sha2_256,
            HashAlgorithm::Sha2_384,
            HashAlgorithm::Sha2_512,
        ],
    };
    let theirs = match &wanted.hashes {
        Some(hashes) => hash_names(hashes),
        None => "the peer has only the older methods, without RFC 7427".to_owned(),
    };
    let summary = format!(
        "{} cannot verify a signature by our {kind} key: hash algorithms in common: none",
        common.remote
    );
    let details = vec![
        format!("we sign with      {}", hash_names(&ours)),
        format!("the peer accepts  {theirs}"),
    ];
    let hint = match wanted.hashes {
        None => {
            "an ECDSA key would do, or RFC 7427 at the peer; or authenticate with a pre-shared key"
        }
        Some(_) => "a key of another kind would do, or more hash functions at the peer",
    };
    let fix = Fix::new(&config.origin, "local.key", hint);
    refused(config, common, summary, details, Some(fix))
}

/// The peer refused our certificate, or something beside it.
fn certificate_refused(
    config: &ConnectionConfig,
    common: &Common,
    local_id: &Identity,
    credential: &Credential,
    wanted: &Wanted,
    mut details: Vec<String>,
) -> Arc<Refusal> {
    if let Some(certificate) = credential.certificates.first() {
        details.push(format!(
            "our certificate is valid from {} to {}, its names are {}",
            show_time(certificate.not_before()),
            show_time(certificate.not_after()),
            certificate.shown_names()
        ));
    }
    let hash = |certificate: &Certificate| certificate.key().ok().map(|key| key.spki_sha1());
    let known = |certificate: &Certificate| {
        hash(certificate).is_some_and(|hash| wanted.authorities.contains(&hash))
    };
    let last = credential.certificates.last();
    let trusted = match last {
        _ if wanted.authorities.is_empty() => {
            "the peer did not say which authorities it trusts".to_owned()
        }
        Some(_)
            if credential
                .certificates
                .iter()
                .any(|certificate| known(certificate)) =>
        {
            "the peer trusts an authority that we sent the certificate of".to_owned()
        }
        Some(last) => format!(
            "the peer trusts {}; whether \"{}\", who issued ours, is one of them cannot be told from its request",
            match wanted.authorities.len() {
                1 => "one authority".to_owned(),
                count => format!("{count} authorities"),
            },
            last.issuer()
        ),
        None => "the peer trusts certificates, and we sent a raw public key".to_owned(),
    };
    details.push(trusted);
    details.push(
        "the peer refuses for one of: no trust in the issuer, another identity expected of us, its clock, \
         a pre-shared key or EAP wanted instead; its log says which"
            .to_owned(),
    );
    let hint = format!(
        "the peer must expect this identity from us ({local_id}) and trust who issued our certificate"
    );
    let fix = Fix::new(&config.origin, "local.id", hint);
    refusal(
        RefusalKind::Authentication,
        RefusedBy::Peer,
        Role::Initiator,
        config,
        format!("{} does not accept us as {local_id}", common.remote),
        details,
        Some(fix),
    )
}
