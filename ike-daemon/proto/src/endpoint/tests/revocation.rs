//! Servers that are asked whether the peer's certificate was revoked, while the peer waits.

use std::sync::Arc;
use std::time::Duration;

use x509_cert::ext::Extension;

use super::certificates::{certified, says, with};
use super::pair::*;
use crate::config::RemoteAuth;
use crate::crypto::signature::{Curve, KeyType};
use crate::x509::ocsp::tests::Reply;
use crate::x509::tests::{NOW, Party, list_at, new_key, responder_at, root};
use crate::x509::{Certificate, Revocation, Trust};
use crate::{ConnectionConfig, Notice};

const P256: KeyType = KeyType::Ecdsa(Curve::P256);
const URI: &str = "http://crl.example.org/root.crl";
const DAY: Duration = Duration::from_secs(86_400);

fn trusting(ca: &Party, revocation: Revocation) -> RemoteAuth {
    RemoteAuth::PublicKey(Arc::new(Trust {
        authorities: vec![ca.certificate.clone()],
        revocation,
        ..Trust::default()
    }))
}

/// A's certificate names a server, and B asks it.
struct Scene {
    ca: Party,
    of_a: Arc<Certificate>,
    a: ConnectionConfig,
    b: ConnectionConfig,
}

fn scene(revocation: Revocation, uris: &[&str]) -> Scene {
    scene_with(revocation, vec![list_at(uris)])
}

fn scene_with(revocation: Revocation, extensions: Vec<Extension>) -> Scene {
    let ca = root("CN=Root", P256);
    let (mut a, mut b) = certified(&ca);
    let end = ca.end_with("a.example.org", extensions);
    let of_a = end.certificate.clone();
    a.local_auth = with(end, &[]);
    b.remote_auth = trusting(&ca, revocation);
    Scene { ca, of_a, a, b }
}

impl Scene {
    /// Both ends, B waiting for the server.
    fn begin(&self) -> Pair {
        let mut pair = Pair::new(self.a.clone(), self.b.clone());
        pair.run(Duration::from_millis(200));
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
        pair
    }
}

/// Answers what B asks; gives the URI.
#[track_caller]
fn answer(pair: &mut Pair, reply: Result<&[u8], &str>) -> String {
    let inquiry = pair.b.endpoint.poll_inquiry().expect("a question").inquiry;
    let reply = reply.map_err(str::to_owned);
    pair.b.endpoint.handle_answer(pair.now, &inquiry, reply);
    inquiry.uri().to_string()
}

fn doubts(end: &End) -> Vec<String> {
    let doubts = end.notices.iter().filter_map(|notice| match notice {
        Notice::RevocationUnknown { .. } => Some(notice.to_string()),
        _ => None,
    });
    doubts.collect()
}

fn connect_again(pair: &mut Pair) {
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(1));
    assert!(pair.b.sas.is_empty());
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_millis(500));
}

#[test]
fn a_responder_waits_for_a_list_and_keeps_it() {
    let scene = scene(Revocation::Strict, &[URI]);
    let mut pair = scene.begin();
    // Repeated requests change nothing.
    pair.run(Duration::from_secs(4));
    assert!(pair.b.sas.is_empty());
    let list = scene.ca.crl_der(&[], NOW + DAY, None);
    assert_eq!(answer(&mut pair, Ok(&list)), URI);
    assert!(pair.b.endpoint.poll_inquiry().is_none(), "asked once");
    pair.settle();
    pair.assert_connected();
    assert!(doubts(&pair.b).is_empty());
    // It is not asked for again before the next one is due.
    connect_again(&mut pair);
    pair.assert_connected();
    assert!(pair.b.endpoint.poll_inquiry().is_none());
    pair.b.endpoint.set_wall_clock(pair.now, NOW + DAY);
    connect_again(&mut pair);
    assert!(pair.b.sas.is_empty());
    let list = scene.ca.crl_der(&[], NOW + DAY * 2, None);
    answer(&mut pair, Ok(&list));
    pair.settle();
    pair.assert_connected();
}

#[test]
fn a_revoked_peer_is_refused() {
    for revocation in [Revocation::Strict, Revocation::IfUri, Revocation::Relaxed] {
        let scene = scene(revocation, &[URI]);
        let mut pair = scene.begin();
        let list = scene.ca.crl_der(&[&scene.of_a], NOW + DAY, None);
        answer(&mut pair, Ok(&list));
        pair.run(Duration::from_millis(200));
        says(
            pair.b.refusals()[0],
            &[
                "the certificate of \"CN=end\" was revoked at 2027-01-14T08:00:00Z",
                "remote.revocation",
            ],
        );
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
        assert!(!pair.a.refusals().is_empty());
    }
}

#[test]
fn an_initiator_waits_as_well() {
    let scene = scene(Revocation::Strict, &[URI]);
    let (mut a, mut b) = (scene.b.clone(), scene.a.clone());
    // The scene's ends, the other way round.
    (a.local_auth, b.local_auth) = (scene.b.local_auth.clone(), scene.a.local_auth.clone());
    let mut mirrored = [
        initiator(),
        crate::endpoint::tests::pair::mirrored(&initiator()),
    ];
    for (end, like) in mirrored.iter_mut().zip([&a, &b]) {
        end.local_auth = like.local_auth.clone();
        end.remote_auth = like.remote_auth.clone();
        end.local_id = like.local_id.clone();
        end.remote_id = like.remote_id.clone();
    }
    let [a, b] = mirrored;
    for revoked in [false, true] {
        let mut pair = Pair::new(a.clone(), b.clone());
        pair.run(Duration::from_secs(3));
        assert!(pair.a.sas.is_empty());
        let inquiry = pair.a.endpoint.poll_inquiry().expect("a question").inquiry;
        let revoked_ones: &[&Certificate] = if revoked { &[&scene.of_a] } else { &[] };
        let list = scene.ca.crl_der(revoked_ones, NOW + DAY, None);
        pair.a.endpoint.handle_answer(pair.now, &inquiry, Ok(&list));
        if revoked {
            pair.run(Duration::from_millis(500));
            says(
                pair.a.refusals()[0],
                &["was revoked at", "remote.revocation"],
            );
            assert!(pair.b.sas.is_empty(), "the responder was told");
        } else {
            pair.settle();
            pair.assert_connected();
        }
    }
}

#[test]
fn what_no_server_tells_is_judged_as_the_setting_says() {
    let reason = "connection refused";
    for revocation in [Revocation::Strict, Revocation::IfUri] {
        let mut pair = scene(revocation, &[URI]).begin();
        answer(&mut pair, Err(reason));
        pair.run(Duration::from_millis(200));
        says(
            pair.b.refusals()[0],
            &[
                "it is not known whether the certificate of \"CN=end\" was revoked",
                "http://crl.example.org/root.crl: connection refused",
                "remote.revocation = \"relaxed\"",
            ],
        );
        // For a minute it is not asked again.
        pair.a.endpoint.initiate(pair.now, "site").unwrap();
        pair.run(Duration::from_millis(500));
        assert!(pair.b.endpoint.poll_inquiry().is_none());
        assert_eq!(pair.b.refusals().len(), 2);
    }
    let mut pair = scene(Revocation::Relaxed, &[URI]).begin();
    answer(&mut pair, Err(reason));
    pair.settle();
    pair.assert_connected();
    let doubts = doubts(&pair.b);
    assert!(
        doubts.len() == 1 && doubts[0].contains(reason) && doubts[0].contains("CN=end"),
        "{doubts:?}"
    );
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let mut pair = scene(Revocation::Relaxed, &[URI]).begin();
    pair.run(Duration::from_secs(9));
    assert!(pair.b.sas.is_empty());
    pair.settle();
    pair.assert_connected();
    assert!(doubts(&pair.b)[0].contains("no answer within 10 s"));
    let mut pair = scene(Revocation::Strict, &[URI]).begin();
    pair.run(Duration::from_secs(12));
    says(pair.b.refusals()[0], &["no answer within 10 s"]);
    assert!(pair.a.sas.is_empty());
}

#[test]
fn the_next_uri_is_tried_and_only_http_is_asked() {
    let uris = ["ldap://crl.example.org/", "https://crl.example.org/", URI];
    let scene_of = |revocation| scene(revocation, &uris);
    let scene = scene_of(Revocation::IfUri);
    let mut pair = scene.begin();
    let list = scene.ca.crl_der(&[], NOW + DAY, None);
    assert_eq!(answer(&mut pair, Ok(&list)), URI);
    pair.settle();
    pair.assert_connected();
    let both = ["http://one.example.org/", "http://two.example.org/"];
    let scene = self::scene(Revocation::Strict, &both);
    let mut pair = scene.begin();
    assert_eq!(answer(&mut pair, Err("it answers 404")), both[0]);
    pair.run(Duration::from_millis(200));
    assert_eq!(answer(&mut pair, Ok(&list)), both[1]);
    pair.settle();
    pair.assert_connected();
    // No server at all: only "strict" minds.
    for (revocation, good) in [(Revocation::IfUri, true), (Revocation::Strict, false)] {
        let ca = root("CN=Root", P256);
        let (a, mut b) = certified(&ca);
        b.remote_auth = trusting(&ca, revocation);
        let mut pair = Pair::new(a, b);
        pair.run(Duration::from_secs(1));
        assert_eq!(!pair.b.sas.is_empty(), good);
        if !good {
            says(pair.b.refusals()[0], &["it names no server", "remote.crls"]);
        }
    }
}

#[test]
fn useless_lists_are_not_believed_and_fetched_again_after_a_minute() {
    let scene = scene(Revocation::Strict, &[URI]);
    let good = scene.ca.crl_der(&[], NOW + DAY, None);
    let stale = scene.ca.crl_der(&[], NOW - Duration::from_secs(1), None);
    let forged = root("CN=Root", KeyType::Ed25519).crl_der(&[], NOW + DAY, None);
    for (useless, reason) in [
        (&stale[..], "its list ended at 2027-01-15T07:59:59Z"),
        (&forged, "its list is not signed by \"CN=Root\""),
        (b"<html>", "what it sent cannot be used"),
    ] {
        let mut pair = scene.begin();
        answer(&mut pair, Ok(useless));
        pair.run(Duration::from_millis(200));
        says(pair.b.refusals()[0], &[reason]);
        pair.run(Duration::from_secs(61));
        let _ = pair.a.endpoint.initiate(pair.now, "site");
        pair.run(Duration::from_millis(500));
        answer(&mut pair, Ok(&good));
        pair.settle();
        pair.assert_connected();
    }
}

#[test]
fn only_who_has_the_key_of_a_certificate_has_servers_asked() {
    let mut scene = scene(Revocation::Strict, &[URI]);
    let stolen = Party {
        key: new_key(P256, 4321),
        certificate: scene.of_a.clone(),
    };
    scene.a.local_auth = with(stolen, &[]);
    let mut pair = scene.begin();
    assert!(pair.b.endpoint.poll_inquiry().is_none());
    says(pair.b.refusals()[0], &["does not fit its key"]);
    // Nor are they for settings that do without.
    for revocation in [Revocation::IfPresent, Revocation::Off] {
        let scene = self::scene(revocation, &[URI]);
        let mut pair = Pair::new(scene.a, scene.b);
        pair.settle();
        pair.assert_connected();
        assert!(pair.b.endpoint.poll_inquiry().is_none());
    }
}

/// Every certificate below the trusted one is looked for, all at once.
#[test]
fn authorities_on_the_path_are_asked_about_too() {
    let ca = root("CN=Root", P256);
    let middle = ca.issue(new_key(P256, 77), |template, extensions| {
        template.subject = "CN=Middle".parse().unwrap();
        template.authority = Some(None);
        extensions.push(list_at(&[URI]));
    });
    let (mut a, mut b) = certified(&ca);
    let low = "http://crl.example.org/middle.crl";
    let end = middle.end_with("a.example.org", vec![list_at(&[low])]);
    a.local_auth = with(end, &[&middle]);
    b.remote_auth = trusting(&ca, Revocation::Strict);
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_millis(200));
    let mut asked = [
        pair.b.endpoint.poll_inquiry().expect("a question").inquiry,
        pair.b.endpoint.poll_inquiry().expect("another").inquiry,
    ];
    asked.sort_by_key(|inquiry| **inquiry.uri() == *URI);
    let [of_end, of_middle] = asked;
    assert_eq!(&**of_end.uri(), low);
    let list = middle.crl_der(&[], NOW + DAY, None);
    pair.b.endpoint.handle_answer(pair.now, &of_end, Ok(&list));
    pair.run(Duration::from_millis(200));
    assert!(pair.b.sas.is_empty());
    let list = ca.crl_der(&[&middle.certificate], NOW + DAY, None);
    pair.b
        .endpoint
        .handle_answer(pair.now, &of_middle, Ok(&list));
    pair.run(Duration::from_millis(200));
    says(pair.b.refusals()[0], &["\"CN=Middle\" was revoked"]);
}

const RESPONDER: &str = "http://ocsp.example.org/";

/// Has a party answer the OCSP request that B sends; gives the request.
#[track_caller]
fn answer_status(pair: &mut Pair, ca: &Party, verdict: u8) -> Vec<u8> {
    let question = pair.b.endpoint.poll_inquiry().expect("a question");
    assert_eq!(&**question.inquiry.uri(), RESPONDER);
    let request = question.post.expect("a request");
    let reply = Reply::of(ca, verdict).to(&request);
    let endpoint = &mut pair.b.endpoint;
    endpoint.handle_answer(pair.now, &question.inquiry, Ok(&reply));
    request
}

#[test]
fn a_responder_is_asked_before_any_list() {
    let extensions = vec![list_at(&[URI]), responder_at(RESPONDER)];
    let scene = scene_with(Revocation::Strict, extensions);
    let mut pair = scene.begin();
    let first = answer_status(&mut pair, &scene.ca, 0);
    pair.settle();
    pair.assert_connected();
    // The answer holds for a day, and is asked for with another nonce afterwards.
    connect_again(&mut pair);
    pair.assert_connected();
    assert!(pair.b.endpoint.poll_inquiry().is_none());
    pair.b.endpoint.set_wall_clock(pair.now, NOW + DAY);
    connect_again(&mut pair);
    assert!(pair.b.sas.is_empty());
    let question = pair.b.endpoint.poll_inquiry().expect("a question");
    assert_ne!(question.post.as_ref(), Some(&first));

    let mut pair = scene.begin();
    answer_status(&mut pair, &scene.ca, 1);
    pair.run(Duration::from_millis(200));
    says(
        pair.b.refusals()[0],
        &["was revoked at 2027-01-14T08:00:00Z", "remote.revocation"],
    );
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
}

#[test]
fn where_a_responder_does_not_help_the_list_is_fetched() {
    let extensions = vec![list_at(&[URI]), responder_at(RESPONDER)];
    let scene = scene_with(Revocation::IfUri, extensions);
    let stranger = root("CN=Stranger", P256);
    for (signer, verdict) in [(&scene.ca, 2), (&stranger, 0)] {
        let mut pair = scene.begin();
        answer_status(&mut pair, signer, verdict);
        pair.run(Duration::from_millis(200));
        assert!(pair.b.sas.is_empty());
        let list = scene.ca.crl_der(&[], NOW + DAY, None);
        assert_eq!(answer(&mut pair, Ok(&list)), URI);
        pair.settle();
        pair.assert_connected();
    }
    // Nobody helps.
    let scene = scene_with(Revocation::IfUri, vec![responder_at(RESPONDER)]);
    let mut pair = scene.begin();
    answer_status(&mut pair, &scene.ca, 2);
    pair.run(Duration::from_millis(200));
    says(
        pair.b.refusals()[0],
        &["http://ocsp.example.org/: it does not know the certificate"],
    );
}
