//! A refused negotiation explains itself, at both ends.

use std::time::Duration;

use super::pair::*;
use crate::config::{RemoteIdentity, StartAction};
use crate::{ConnectionConfig, Refusal, RefusalKind, RefusedBy, selector};

/// Lets A try once and gives what each end says.
fn refused(
    a: ConnectionConfig,
    b: ConnectionConfig,
    prepare: impl FnOnce(&mut Pair),
) -> (Refusal, Refusal, Pair) {
    let mut pair = Pair::new(a, b);
    prepare(&mut pair);
    pair.run(Duration::from_millis(1500));
    let first = |end: &End| (*end.refusals().first().expect("a refusal")).clone();
    let (a, b) = (first(&pair.a), first(&pair.b));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    let status = &pair.a.endpoint.status(pair.now)[0];
    assert_eq!(status.last_error.as_deref(), Some(&a));
    assert_eq!(status.state, "waiting");
    assert!(status.retry_in.is_some());
    (a, b, pair)
}

#[track_caller]
fn says(refusal: &Refusal, words: &[&str]) {
    let text = refusal.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in:\n{text}");
    }
    assert!(
        !text.contains("correct horse") && !text.contains("wrong horse"),
        "the key is shown"
    );
}

#[test]
fn ike_proposals() {
    let a = connection(A, B, "aes256-sha256-modp2048", ESP);
    let b = mirrored(&connection(A, B, "aes256gcm16-prfsha256-x25519", ESP));
    let (a, b, _) = refused(a, b, |_| {});
    assert_eq!((a.kind, a.by), (RefusalKind::IkeProposal, RefusedBy::Peer));
    assert_eq!((b.kind, b.by), (RefusalKind::IkeProposal, RefusedBy::Us));
    says(
        &a,
        &[
            "NO_PROPOSAL_CHOSEN",
            "we offered",
            "aes256",
            "modp2048",
            "site.toml:3: ike = \"aes256-sha256-modp2048\"",
        ],
    );
    says(
        &b,
        &[
            "we accept",
            "the peer sent",
            "aes256gcm16",
            "modp2048",
            "no match",
            "site.toml:3: ike = ",
            "ike = \"aes256-sha256-modp2048\"",
        ],
    );
}

#[test]
fn esp_proposals() {
    let a = connection(A, B, IKE, "aes256-sha1");
    let b = mirrored(&connection(A, B, IKE, "aes256-sha256"));
    let (a, b, pair) = refused(a, b, |_| {});
    assert_eq!(
        (a.kind, b.kind),
        (RefusalKind::ChildProposal, RefusalKind::ChildProposal)
    );
    says(
        &a,
        &[
            "none of our ESP proposals",
            "sha1",
            "site.toml:4: esp = \"aes256-sha1\"",
        ],
    );
    says(
        &b,
        &[
            "integrity",
            "sha256",
            "sha1",
            "no match",
            "esp = \"aes256-sha1\" would meet",
        ],
    );
    assert_eq!(
        pair.b.endpoint.status(pair.now)[0]
            .ike_sas
            .iter()
            .filter(|sa| sa.state == "established")
            .count(),
        0
    );
}

#[test]
fn selectors() {
    let a = initiator();
    let mut b = mirrored(&a);
    b.remote_ts = vec![selector::parse("10.99.0.0/16").unwrap()];
    let (a, b, _) = refused(a, b, |_| {});
    assert_eq!(
        (a.kind, b.kind),
        (RefusalKind::TrafficSelectors, RefusalKind::TrafficSelectors)
    );
    says(
        &a,
        &[
            "TS_UNACCEPTABLE",
            "10.1.0.0/16",
            "10.2.0.0/16",
            "remote.subnets",
        ],
    );
    says(
        &b,
        &[
            "10.99.0.0/16",
            "10.1.0.0/16",
            "no match",
            "site.toml:9: remote.subnets",
            "remote.subnets = [\"10.1.0.0/16\"]",
        ],
    );
}

#[test]
fn keys() {
    let (a, b, pair) = refused(initiator(), responder(), |pair| {
        pair.b.endpoint.set_secrets(vec![psk("wrong horse")])
    });
    assert_eq!(
        (a.kind, a.by),
        (RefusalKind::Authentication, RefusedBy::Peer)
    );
    assert_eq!((b.kind, b.by), (RefusalKind::Authentication, RefusedBy::Us));
    says(
        &a,
        &[
            "AUTHENTICATION_FAILED",
            "we said we are 192.0.2.1",
            "secrets.toml:1",
            "site.toml:6: local.id",
        ],
    );
    says(
        &b,
        &["192.0.2.1", "another pre-shared key", "secrets.toml:1"],
    );
    assert_eq!(pair.b.established(), 0);
}

#[test]
fn no_key_at_all() {
    let (a, b, _) = refused(initiator(), responder(), |pair| {
        pair.b.endpoint.set_secrets(vec![])
    });
    assert_eq!(a.by, RefusedBy::Peer);
    says(
        &b,
        &[
            "no pre-shared key for 198.51.100.2 and 192.0.2.1",
            "ids = [\"198.51.100.2\", \"192.0.2.1\"]",
        ],
    );
    let mut pair = Pair::new(initiator(), responder());
    pair.a.endpoint.set_secrets(vec![]);
    pair.settle();
    says(
        pair.a.refusals()[0],
        &["no pre-shared key for 192.0.2.1 and 198.51.100.2"],
    );
}

#[test]
fn identities() {
    let mut a = initiator();
    a.local_id = Some("branch.example.org".parse().unwrap());
    let (a, b, _) = refused(a, responder(), |_| {});
    says(&a, &["we said we are branch.example.org", "local.id"]);
    says(
        &b,
        &[
            "branch.example.org, which no connection expects",
            "expects 192.0.2.1",
            "remote.id = \"branch.example.org\"",
        ],
    );

    let mut a = initiator();
    a.remote_id = RemoteIdentity::Is("hq.example.org".parse().unwrap());
    let (a, b, _) = refused(a, responder(), |_| {});
    says(&a, &["we asked for the peer as hq.example.org"]);
    says(
        &b,
        &[
            "asks for hq.example.org, which we are not",
            "local.id = \"hq.example.org\"",
        ],
    );
}

#[test]
fn the_responder_is_somebody_else() {
    let mut b = responder();
    b.local_id = Some("impostor.example.org".parse().unwrap());
    let mut pair = Pair::new(initiator(), b);
    pair.run(Duration::from_millis(500));
    let refusal = pair.a.refusals()[0].clone();
    assert_eq!(
        (refusal.kind, refusal.by),
        (RefusalKind::Authentication, RefusedBy::Us)
    );
    says(
        &refusal,
        &[
            "says it is impostor.example.org, we expect 198.51.100.2",
            "remote.id = \"impostor.example.org\"",
        ],
    );
    assert!(
        pair.b.sas.is_empty(),
        "the responder was told and took its SA down"
    );
}

#[test]
fn groups() {
    let mut a = connection(A, B, "aes256-sha256-modp2048", ESP);
    a.ike[0].groups.push(crate::proposal::DhGroup::Modp3072);
    // A responder that wants what we do not have.
    let mut pair = Pair::new(a, responder());
    pair.flush();
    let request = pair.a.sent[0].clone();
    let (header, _) = crate::wire::Header::split(&request.payload).unwrap();
    let answer = super::super::stateless::answer(
        &header,
        crate::wire::ExchangeType::IKE_SA_INIT,
        crate::wire::NotifyType::INVALID_KE_PAYLOAD,
        &19u16.to_be_bytes(),
    );
    pair.a
        .endpoint
        .handle_datagram(pair.now, request.local, request.remote, &answer);
    pair.flush();
    let refusal = pair.a.refusals()[0];
    assert_eq!(refusal.kind, RefusalKind::KeyExchange);
    says(
        refusal,
        &[
            "INVALID_KE_PAYLOAD",
            "wants DH group 19 (ecp256)",
            "modp3072",
            "site.toml:3: ike",
        ],
    );
}

#[test]
fn nobody_answers() {
    let mut pair = Pair::new(initiator(), responder());
    pair.cut = true;
    pair.run(Duration::from_secs(100));
    let refusal = pair.a.refusals()[0];
    assert_eq!(
        (refusal.kind, refusal.by),
        (RefusalKind::NoAnswer, RefusedBy::Nobody)
    );
    says(
        refusal,
        &[
            "198.51.100.2:500 does not answer",
            "10 IKE_SA_INIT requests",
            "UDP 500 and 4500",
            "remote.address",
        ],
    );
    assert!(pair.a.sent.len() >= 10);

    // IKE_SA_INIT gets through, IKE_AUTH does not.
    let mut pair = Pair::new(initiator(), responder());
    assert!(pair.run_until(Duration::from_secs(5), |pair| pair.a.sent.len() == 2));
    pair.cut = true;
    pair.run(Duration::from_secs(100));
    says(
        pair.a.refusals()[0],
        &["does not answer IKE_AUTH", "IKE_SA_INIT was answered"],
    );
}

#[test]
fn the_responder_tells_when_ike_auth_never_comes() {
    let mut pair = Pair::new(initiator(), responder());
    pair.flush();
    let request = pair.a.sent[0].clone();
    pair.b
        .endpoint
        .handle_datagram(pair.now, request.remote, request.local, &request.payload);
    pair.cut = true;
    pair.run(Duration::from_secs(31));
    says(pair.b.refusals()[0], &["never sent IKE_AUTH", "4500"]);
    assert_eq!(pair.b.endpoint.counters().half_open, 0);
}

#[test]
fn no_connection_for_the_caller() {
    let mut b = responder();
    b.remote_address = crate::config::RemoteAddress::Address("203.0.113.77".parse().unwrap());
    let (a, b, pair) = refused(initiator(), b, |_| {});
    says(&a, &["NO_PROPOSAL_CHOSEN", "no connection for our address"]);
    says(
        &b,
        &["no connection is for these addresses", "203.0.113.77"],
    );
    assert_eq!(
        pair.b.endpoint.counters().dropped[&crate::status::IkeDrop::NoConnection],
        1
    );
}

#[test]
fn retries_back_off_and_succeed_once_the_cause_is_gone() {
    let (_, _, mut pair) = refused(initiator(), responder(), |pair| {
        pair.b.endpoint.set_secrets(vec![psk("wrong horse")])
    });
    pair.run(Duration::from_secs(300));
    let tries = pair.a.refusals().len();
    assert!((6..=12).contains(&tries), "{tries}");
    pair.b.endpoint.set_secrets(vec![psk("correct horse")]);
    pair.run(Duration::from_secs(120));
    pair.assert_connected();

    let mut once = initiator();
    once.start = StartAction::None;
    let mut pair = Pair::new(once, responder());
    pair.b.endpoint.set_secrets(vec![]);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(300));
    assert_eq!(
        pair.a.refusals().len(),
        1,
        "only start = \"start\" tries again"
    );
}
