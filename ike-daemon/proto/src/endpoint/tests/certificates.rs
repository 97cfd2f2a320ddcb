//! Authentication by signature: every kind of key, each side by other means, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use super::pair::*;
use crate::config::{
    Credential, LocalAuth, RemoteAddress, RemoteAuth, RemoteIdentity, SendCert, StartAction,
};
use crate::crypto::signature::vectors::RSA_PKCS1;
use crate::crypto::signature::{Curve, KeyType, PrivateKey};
use crate::wire::{HEADER_LEN, Header, Notify, NotifyType, Payload, Payloads};
use crate::x509::tests::{NOW, Party, new_key, root};
use crate::x509::{AltName, Certificate, Trust};
use crate::{ConnectionConfig, Refusal, RefusalKind, RefusedBy};

const P256: KeyType = KeyType::Ecdsa(Curve::P256);

fn credential(key: PrivateKey, certificates: &[&Arc<Certificate>]) -> LocalAuth {
    LocalAuth::PublicKey(Arc::new(Credential {
        key,
        certificates: certificates
            .iter()
            .map(|&certificate| certificate.clone())
            .collect(),
        origin: "site.toml:9".to_owned(),
    }))
}

/// Our end with a certificate and others below its authority.
pub(super) fn with(party: Party, others: &[&Party]) -> LocalAuth {
    let mut certificates = vec![&party.certificate];
    certificates.extend(others.iter().map(|other| &other.certificate));
    let certificates: Vec<_> = certificates.into_iter().cloned().collect();
    credential(party.key, &certificates.iter().collect::<Vec<_>>())
}

fn trusting(authorities: &[&Party]) -> RemoteAuth {
    RemoteAuth::PublicKey(Arc::new(Trust {
        authorities: authorities
            .iter()
            .map(|party| party.certificate.clone())
            .collect(),
        ..Trust::default()
    }))
}

/// A connection between `a.example.org` and `b.example.org`, as each end has it.
fn named() -> (ConnectionConfig, ConnectionConfig) {
    let id = |text: &str| RemoteIdentity::Is(text.parse().unwrap());
    let mut a = initiator();
    let mut b = mirrored(&a);
    a.local_id = Some("a.example.org".parse().unwrap());
    b.local_id = Some("b.example.org".parse().unwrap());
    (a.remote_id, b.remote_id) = (id("b.example.org"), id("a.example.org"));
    (a, b)
}

/// The same with certificates of one authority on both ends.
pub(super) fn certified(ca: &Party) -> (ConnectionConfig, ConnectionConfig) {
    let (mut a, mut b) = named();
    a.local_auth = with(ca.end("a.example.org", P256), &[]);
    b.local_auth = with(ca.end("b.example.org", P256), &[]);
    (a.remote_auth, b.remote_auth) = (trusting(&[ca]), trusting(&[ca]));
    (a, b)
}

pub(super) fn connects(a: ConnectionConfig, b: ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.settle();
    for end in [&pair.a, &pair.b] {
        assert!(end.refusals().is_empty(), "{}", end.refusals()[0]);
    }
    pair.assert_connected();
    pair
}

/// What each end says of a try that fails.
fn refused(a: ConnectionConfig, b: ConnectionConfig) -> (Refusal, Refusal) {
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_millis(1500));
    assert!(pair.a.sas.is_empty());
    let first = |end: &End| end.refusals().first().map(|refusal| (*refusal).clone());
    let refusals = first(&pair.a)
        .zip(first(&pair.b))
        .expect("a refusal at each end");
    for refusal in [&refusals.0, &refusals.1] {
        assert_eq!(refusal.kind, RefusalKind::Authentication, "{refusal}");
    }
    refusals
}

#[track_caller]
pub(super) fn says(refusal: &Refusal, words: &[&str]) {
    let text = refusal.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in:\n{text}");
    }
}

#[test]
fn every_kind_of_key() {
    let ca = root("CN=Root", P256);
    let ecdsa = [Curve::P256, Curve::P384, Curve::P521].map(KeyType::Ecdsa);
    let made = ecdsa
        .into_iter()
        .chain([KeyType::Ed25519])
        .map(|kind| new_key(kind, 42));
    let rsa = PrivateKey::from_der(RSA_PKCS1).unwrap();
    for key in made.chain([rsa]) {
        let (mut a, mut b) = certified(&ca);
        let kind = key.public().kind();
        let party = ca.issue(key, |template, _| {
            template.alt_names = vec![AltName::Dns("a.example.org".to_owned())];
        });
        a.local_auth = with(party, &[]);
        let pair = connects(a.clone(), b.clone());
        let status = &pair.b.endpoint.status(pair.now)[0].ike_sas[0];
        assert_eq!(status.remote_id.as_deref(), Some("a.example.org"), "{kind}");
        // The other way round.
        std::mem::swap(&mut a.local_auth, &mut b.local_auth);
        std::mem::swap(&mut a.local_id, &mut b.local_id);
        std::mem::swap(&mut a.remote_id, &mut b.remote_id);
        connects(a, b);
    }
}

#[test]
fn each_side_by_other_means() {
    let ca = root("CN=Root", P256);
    let (a, b) = certified(&ca);
    let (mut psk_a, mut psk_b) = named();
    // Only the initiator has a certificate, then only the responder.
    psk_a.local_auth = a.local_auth.clone();
    psk_b.remote_auth = b.remote_auth.clone();
    connects(psk_a, psk_b);
    let (mut psk_a, mut psk_b) = named();
    psk_b.local_auth = b.local_auth;
    psk_a.remote_auth = a.remote_auth;
    connects(psk_a, psk_b);
}

#[test]
fn intermediate_certificates_are_sent() {
    let ca = root("CN=Root", P256);
    let middle = ca.authority("CN=Middle", None);
    let low = middle.authority("CN=Low authority", None);
    let (mut a, mut b) = certified(&ca);
    a.local_auth = with(low.end("a.example.org", P256), &[&middle, &low]);
    b.local_auth = with(middle.end("b.example.org", P256), &[&middle]);
    connects(a.clone(), b.clone());
    a.local_auth = with(low.end("a.example.org", P256), &[&middle]);
    let (said_a, said_b) = refused(a, b);
    says(
        &said_b,
        &[
            "no trusted authority for its issuer \"CN=Low authority\"",
            "it sent the certificate of \"CN=end\" issued by \"CN=Low authority\"",
            "and of \"CN=Middle\" issued by \"CN=Root\"",
            "we trust    \"CN=Root\"",
            "site.toml:13: remote.cacerts = …; add the certificate of \"CN=Low authority\"",
        ],
    );
    says(
        &said_a,
        &[
            "does not accept us as a.example.org",
            "the certificate of \"CN=end\"",
            "the peer trusts one authority",
        ],
    );
    assert_eq!((said_a.by, said_b.by), (RefusedBy::Peer, RefusedBy::Us));
}

#[test]
fn certificates_that_are_refused() {
    let ca = root("CN=Root", P256);
    let other = root("CN=Other root", P256);
    let day = Duration::from_secs(86_400);
    let (a, b) = certified(&ca);
    let try_with = |local: LocalAuth| {
        refused(
            ConnectionConfig {
                local_auth: local,
                ..a.clone()
            },
            b.clone(),
        )
        .1
    };
    says(
        &try_with(with(other.end("a.example.org", P256), &[&other])),
        &[
            "no trusted authority for its issuer \"CN=Other root\"",
            "remote.cacerts",
        ],
    );
    let expired = ca.issue(new_key(P256, 1), |template, _| {
        template.alt_names = vec![AltName::Dns("a.example.org".to_owned())];
        template.not_after = NOW - day;
    });
    says(
        &try_with(with(expired, &[])),
        &["the certificate of \"CN=end\" expired at 2027-01-14T08:00:00Z"],
    );
    says(
        &try_with(with(ca.end("c.example.org", P256), &[])),
        &[
            "a.example.org is not in the certificate, whose names are \"CN=end\", c.example.org",
            "remote.id",
        ],
    );
    // Another key than the certificate's.
    let party = ca.end("a.example.org", P256);
    says(
        &try_with(credential(new_key(P256, 1234), &[&party.certificate])),
        &[
            "does not prove who it is",
            "its signature (ECDSA with sha256) does not fit its key (ECDSA P-256)",
        ],
    );
    says(
        &try_with(credential(new_key(P256, 1234), &[])),
        &["the raw public key it sent (ECDSA P-256) is none of those configured"],
    );
    // The initiator refuses the responder.
    let mut bad = b.clone();
    bad.local_auth = with(other.end("b.example.org", P256), &[]);
    let mut pair = Pair::new(a, bad);
    pair.run(Duration::from_millis(1500));
    let refusal = pair.a.refusals()[0];
    assert_eq!(refusal.by, RefusedBy::Us);
    says(
        refusal,
        &["no trusted authority for its issuer \"CN=Other root\""],
    );
    assert!(pair.b.sas.is_empty(), "the initiator told the responder");
}

#[test]
fn methods_that_do_not_meet() {
    let ca = root("CN=Root", P256);
    let (a, b) = certified(&ca);
    let (psk_a, psk_b) = named();
    let (_, said) = refused(a, psk_b);
    says(
        &said,
        &[
            "authenticates with an ECDSA signature, we want a pre-shared key",
            "we accept   pre-shared key (method 2)",
            "remote.auth = \"pubkey\" with remote.cacerts would accept",
        ],
    );
    let (_, said) = refused(psk_a, b);
    says(
        &said,
        &[
            "authenticates with a pre-shared key, we want a certificate",
            "remote.auth = \"psk\" would accept it",
        ],
    );
}

#[test]
fn pinned_certificates_and_raw_public_keys() {
    let (mut a, mut b) = named();
    let selfmade = |id: &str, seed| {
        let key = new_key(P256, seed);
        let ca = root("CN=whoever", KeyType::Ed25519);
        ca.issue(key, |template, _| {
            template.alt_names = vec![AltName::Dns(id.to_owned())]
        })
    };
    let (own_a, own_b) = (selfmade("a.example.org", 1), selfmade("b.example.org", 2));
    let pin = |party: &Party| {
        RemoteAuth::PublicKey(Arc::new(Trust {
            pinned: vec![party.certificate.clone()],
            ..Trust::default()
        }))
    };
    (a.remote_auth, b.remote_auth) = (pin(&own_b), pin(&own_a));
    (a.local_auth, b.local_auth) = (with(own_a, &[]), with(own_b, &[]));
    connects(a.clone(), b.clone());
    let stranger = selfmade("a.example.org", 3);
    a.local_auth = with(stranger, &[]);
    let (_, said) = refused(a.clone(), b.clone());
    says(&said, &["none of those configured for it", "remote.certs"]);

    let (key_a, key_b) = (new_key(KeyType::Ed25519, 1), new_key(P256, 2));
    let trust = |key: &PrivateKey| {
        RemoteAuth::PublicKey(Arc::new(Trust {
            keys: vec![key.public().clone()],
            ..Trust::default()
        }))
    };
    (a.remote_auth, b.remote_auth) = (trust(&key_b), trust(&key_a));
    (a.local_auth, b.local_auth) = (credential(key_a, &[]), credential(key_b, &[]));
    connects(a, b);
}

#[test]
fn certificates_are_sent_when_the_setting_says_so() {
    let ca = root("CN=Root", P256);
    let (a, b) = certified(&ca);
    let with_setting = |send_cert| {
        let set = |config: &ConnectionConfig| ConnectionConfig {
            send_cert,
            ..config.clone()
        };
        (set(&a), set(&b))
    };
    // Both ask, by the authorities that they trust.
    let (asked_a, asked_b) = with_setting(SendCert::IfAsked);
    connects(asked_a, asked_b.clone());
    let (_, never_b) = with_setting(SendCert::Never);
    let mut pair = Pair::new(a.clone(), never_b.clone());
    pair.run(Duration::from_millis(1500));
    says(
        pair.a.refusals()[0],
        &["it sent no certificate", "remote.certs"],
    );
    // Who has the certificate needs none, and does not ask.
    let mut has_it = a.clone();
    let LocalAuth::PublicKey(credential) = &b.local_auth else {
        unreachable!("B has a certificate");
    };
    has_it.remote_auth = RemoteAuth::PublicKey(Arc::new(Trust {
        pinned: credential.certificates.clone(),
        ..Trust::default()
    }));
    let length = |b: ConnectionConfig| {
        let pair = connects(has_it.clone(), b);
        let answers = pair.b.sent.iter().map(|transmit| transmit.payload.len());
        answers.take(2).sum::<usize>()
    };
    let whole = length(b.clone());
    assert!(length(asked_b) + 300 < whole && length(never_b) + 300 < whole);
}

#[test]
fn wildcards_and_several_authorities() {
    let (ca, other) = (root("CN=Root", P256), root("CN=Other root", P256));
    let (mut a, mut b) = certified(&ca);
    b.remote_address = RemoteAddress::Any;
    b.remote_id = RemoteIdentity::Matches("*.example.org".parse().unwrap());
    connects(a.clone(), b.clone());
    // Two connections of B that differ by the authority alone.
    let mut second = b.clone();
    second.name = "second".into();
    second.remote_auth = trusting(&[&other]);
    a.local_auth = with(other.end("a.example.org", P256), &[]);
    let mut pair = Pair::new(a.clone(), b.clone());
    pair.b
        .endpoint
        .set_connections(pair.now, vec![b.clone(), second]);
    pair.settle();
    assert!(pair.a.sas.len() == 1 && pair.b.sas.len() == 1);
    let name = &pair.b.sas.values().next().unwrap().connection;
    assert_eq!(&**name, "second");
    // A name that the pattern leaves out.
    b.remote_id = RemoteIdentity::Matches("*.example.net".parse().unwrap());
    let (_, said) = refused(a, b);
    says(&said, &["a.example.org", "expects *.example.net"]);
}

/// Somebody on the way takes SIGNATURE_HASH_ALGORITHMS out of a request, so that the responder would
/// fall back to the older methods: what is signed is not what arrived.
#[test]
fn a_downgrade_is_noticed() {
    let ca = root("CN=Root", P256);
    let (a, b) = certified(&ca);
    let mut pair = Pair::new(a, b);
    pair.cut = true;
    pair.flush();
    pair.cut = false;
    let request = pair.a.sent[0].clone();
    let (header, rest) = Header::split(&request.payload).unwrap();
    let mut writer = crate::wire::Writer::new();
    let mut at = 0;
    let mut kind = header.next_payload;
    for payload in Payloads::new(kind, rest) {
        let length = usize::from(u16::from_be_bytes([rest[at + 2], rest[at + 3]]));
        let body = &rest[at + 4..at + length];
        let hashes = matches!(
            payload.unwrap(),
            Payload::Notify(Notify {
                kind: NotifyType::SIGNATURE_HASH_ALGORITHMS,
                ..
            })
        );
        if !hashes {
            writer.add(kind, |out| out.extend(body));
        }
        kind = crate::wire::PayloadType(rest[at]);
        at += length;
    }
    let stripped = writer.message(header);
    assert!(stripped.len() + 8 < request.payload.len() && stripped.len() > HEADER_LEN);
    pair.b
        .endpoint
        .handle_datagram(pair.now, request.remote, request.local, &stripped);
    pair.run(Duration::from_millis(200));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    says(pair.b.refusals()[0], &["does not fit its key"]);
}

#[test]
fn without_a_clock_no_certificate_is_believed() {
    let ca = root("CN=Root", P256);
    let (mut a, b) = certified(&ca);
    a.start = StartAction::None;
    let mut pair = Pair::new(a, b);
    pair.b.endpoint.wall = None;
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_millis(500));
    says(pair.b.refusals()[0], &["the time of day is not known"]);
    // A year later the certificates are over.
    pair.b
        .endpoint
        .set_wall_clock(pair.now, NOW + Duration::from_secs(366 * 86_400));
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_millis(500));
    says(pair.b.refusals()[1], &["expired at 2028-01-15T08:00:00Z"]);
}

#[test]
fn a_killed_end_goes_on_where_the_method_is_still_wanted() {
    let ca = root("CN=Root", P256);
    let (a, b) = certified(&ca);
    let mut pair = connects(a, b);
    pair.b.kill(pair.now, Duration::from_secs(1));
    pair.settle();
    pair.assert_connected();
    let psk = named().1;
    pair.b.config = vec![psk];
    pair.b.kill(pair.now, Duration::from_secs(1));
    pair.settle();
    assert_eq!(pair.b.refused.len(), 1);
    assert!(
        pair.b.refused[0].to_string().contains("remote.auth"),
        "{}",
        pair.b.refused[0]
    );
}
