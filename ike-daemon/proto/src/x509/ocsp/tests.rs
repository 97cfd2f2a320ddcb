//! Answers made here, in every way they can be wrong.

use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::*;
use crate::crypto::signature::{Curve, KeyType, PrivateKey};
use crate::x509::issue;
use crate::x509::tests::{NOW, Party, extension, new_key, root};

const P256: KeyType = KeyType::Ecdsa(Curve::P256);
const DAY: Duration = Duration::from_secs(86_400);

/// A responder's answer.
pub(crate) struct Reply<'a> {
    pub verdict: u8,
    pub nonce: bool,
    pub this_update: Duration,
    pub next_update: Option<Duration>,
    pub key: &'a PrivateKey,
    pub certificates: Vec<&'a Certificate>,
}

#[derive(Sequence)]
struct Basic<'a> {
    tbs: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    signature: BitStringRef<'a>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    certificates: Option<Vec<AnyRef<'a>>>,
}

impl<'a> Reply<'a> {
    /// An authority's own answer.
    pub fn of(party: &'a Party, verdict: u8) -> Self {
        Self {
            verdict,
            nonce: true,
            this_update: NOW - DAY,
            next_update: Some(NOW + DAY),
            key: &party.key,
            certificates: Vec::new(),
        }
    }

    /// The answer to a request, in DER.
    pub fn to(&self, request: &[u8]) -> Vec<u8> {
        let request = Request::from_der(request).unwrap();
        let tag = |number, constructed| Tag::ContextSpecific {
            number: TagNumber(number),
            constructed,
        };
        let time = |at| GeneralizedTime::from_unix_duration(at).unwrap();
        let revoked_at = time(NOW - DAY).to_der().unwrap();
        let status = match self.verdict {
            1 => AnyRef::new(tag(1, true), &revoked_at),
            other => AnyRef::new(tag(other.into(), false), &[]),
        };
        let key_hash = OctetString::new(self.key.public().key_id()).unwrap();
        let key_hash = key_hash.to_der().unwrap();
        let mut list = request.tbs.list;
        let data = ResponseData {
            version: 0,
            responder: AnyRef::new(tag(2, true), &key_hash).unwrap(),
            produced: time(self.this_update),
            responses: vec![SingleResponse {
                id: list.remove(0).id,
                status: status.unwrap(),
                this_update: time(self.this_update),
                next_update: self.next_update.map(time),
                extensions: None,
            }],
            extensions: self.nonce.then_some(request.tbs.extensions),
        };
        let signed = issue::sign(&data.to_der().unwrap(), self.key).unwrap();
        let signed = crate::x509::certificate::Signed::from_der(&signed).unwrap();
        let algorithm = signed.algorithm.to_der().unwrap();
        let certificates = self.certificates.iter();
        let certificates: Vec<_> = certificates
            .map(|certificate| AnyRef::from_der(certificate.der()).unwrap())
            .collect();
        let basic = Basic {
            tbs: AnyRef::from_der(signed.tbs).unwrap(),
            algorithm: AnyRef::from_der(&algorithm).unwrap(),
            signature: BitStringRef::from_bytes(signed.signature).unwrap(),
            certificates: (!certificates.is_empty()).then_some(certificates),
        };
        let basic = basic.to_der().unwrap();
        let response = WireResponse {
            status: Status::Successful,
            bytes: Some(ResponseBytes {
                kind: BASIC,
                response: OctetStringRef::new(&basic).unwrap(),
            }),
        };
        response.to_der().unwrap()
    }
}

struct Scene {
    ca: Party,
    end: Party,
    id: CertId,
    nonce: [u8; NONCE],
    request: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let ca = root("CN=Root", P256);
        let end = ca.end("gw.example.org", P256);
        let id = CertId::new(&ca.certificate, &end.certificate).unwrap();
        let nonce = [7; NONCE];
        let request = id.request(&nonce).unwrap();
        Self {
            ca,
            end,
            id,
            nonce,
            request,
        }
    }

    fn judge(&self, der: &[u8]) -> Answer {
        match Response::read(der, &self.id, &self.nonce) {
            Ok(response) => response.judge(&self.ca.certificate, NOW),
            Err(reason) => Answer::Useless(reason),
        }
    }

    #[track_caller]
    fn useless(&self, der: &[u8], words: &str) {
        match self.judge(der) {
            Answer::Useless(reason) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_responder_says() {
    let scene = Scene::new();
    let reply = |verdict| scene.judge(&Reply::of(&scene.ca, verdict).to(&scene.request));
    assert_eq!(reply(0), Answer::Good);
    assert_eq!(reply(1), Answer::Revoked(NOW - DAY));
    let answer = Reply::of(&scene.ca, 2).to(&scene.request);
    scene.useless(&answer, "it does not know the certificate");
    for (octet, words) in [(3, "TryLater"), (6, "Unauthorized")] {
        scene.useless(&[0x30, 3, 0x0a, 1, octet], words);
    }
    scene.useless(b"<html>", "cannot be read");
}

#[test]
fn answers_to_other_questions_and_of_other_times() {
    let scene = Scene::new();
    let good = || Reply::of(&scene.ca, 0);
    let other = scene.id.request(&[8; NONCE]).unwrap();
    scene.useless(&good().to(&other), "another question");
    // Who prepares answers beforehand leaves the nonce out (RFC 9654 section 2.1).
    let unsaid = Reply {
        nonce: false,
        ..good()
    };
    assert_eq!(scene.judge(&unsaid.to(&other)), Answer::Good);
    let another = scene.ca.end("other.example.org", P256);
    let id = CertId::new(&scene.ca.certificate, &scene.ca.certificate).unwrap();
    assert_ne!(another.certificate.serial(), scene.ca.certificate.serial());
    let request = id.request(&scene.nonce).unwrap();
    scene.useless(&good().to(&request), "about other certificates");
    let at = |this_update, next_update| {
        let reply = Reply {
            this_update,
            next_update,
            ..good()
        };
        reply.to(&scene.request)
    };
    let second = Duration::from_secs(1);
    scene.useless(&at(NOW - DAY, Some(NOW)), "ended at 2027-01-15T08:00:00Z");
    scene.useless(
        &at(NOW + SKEW + second, Some(NOW + DAY)),
        "not valid before",
    );
    assert_eq!(scene.judge(&at(NOW + SKEW, Some(NOW + DAY))), Answer::Good);
    // Without an end it holds for minutes.
    assert_eq!(scene.judge(&at(NOW - second, None)), Answer::Good);
    scene.useless(&at(NOW - UNSAID, None), "ended at");
}

#[test]
fn who_may_sign() {
    let scene = Scene::new();
    let responder = |ca: &Party, purpose: Option<&str>, expired: bool| {
        ca.issue(new_key(KeyType::Ed25519, 5), |template, extensions| {
            if expired {
                template.not_after = NOW - DAY;
            }
            if let Some(purpose) = purpose {
                let purpose = ExtendedKeyUsage(vec![ObjectIdentifier::new_unwrap(purpose)]);
                let oid = ObjectIdentifier::new_unwrap("2.5.29.37");
                extensions.push(extension(oid, false, purpose.to_der().unwrap()));
            }
        })
    };
    let by = |signer: &Party| {
        let reply = Reply {
            key: &signer.key,
            certificates: vec![&scene.end.certificate, &signer.certificate],
            ..Reply::of(&scene.ca, 0)
        };
        scene.judge(&reply.to(&scene.request))
    };
    let signing = Some("1.3.6.1.5.5.7.3.9");
    assert_eq!(by(&responder(&scene.ca, signing, false)), Answer::Good);
    let stranger = root("CN=Root", KeyType::Ed25519);
    for signer in [
        responder(&scene.ca, None, false),
        responder(&scene.ca, Some("1.3.6.1.5.5.7.3.1"), false),
        responder(&scene.ca, signing, true),
        responder(&stranger, signing, false),
        stranger,
    ] {
        let said = by(&signer);
        assert!(
            matches!(&said, Answer::Useless(reason) if reason.contains("is not signed by")),
            "{said:?}"
        );
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn answers_never_panic(octets in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
                           changes in proptest::collection::vec((0usize..2000, proptest::num::u8::ANY), 1..4)) {
        let scene = Scene::new();
        let _ = scene.judge(&octets);
        let reply = Reply { certificates: vec![&scene.end.certificate], ..Reply::of(&scene.ca, 1) };
        let mut bent = reply.to(&scene.request);
        let whole = bent.clone();
        for (at, value) in &changes {
            let at = at % bent.len();
            bent[at] = *value;
        }
        let judged = scene.judge(&bent);
        // What is signed cannot be bent; the certificates beside it can.
        proptest::prop_assert!(!matches!(judged, Answer::Good));
        let _ = scene.judge(&whole[..changes[0].0 % whole.len()]);
    }
}
