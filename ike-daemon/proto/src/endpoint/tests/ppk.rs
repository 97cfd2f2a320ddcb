//! A key that both ends have beforehand (RFC 8784).

use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::SecretBytes;

use super::pair::*;
use crate::config::Ppk;
use crate::{ConnectionConfig, EndpointConfig};

fn ppk(id: &str, secret: &str, required: bool) -> Option<Arc<Ppk>> {
    Some(Arc::new(Ppk {
        id: id.to_owned(),
        secret: SecretBytes::new(secret.as_bytes().to_vec()),
        required,
        origin: "secrets.toml:9".to_owned(),
    }))
}

fn pair(ours: Option<Arc<Ppk>>, theirs: Option<Arc<Ppk>>) -> Pair {
    let with = |mut config: ConnectionConfig, ppk| {
        config.ppk = ppk;
        config
    };
    Pair::new(with(initiator(), ours), with(responder(), theirs))
}

/// Whether the keys of both ends hold it.
fn used(pair: &Pair) -> [bool; 2] {
    [&pair.a, &pair.b].map(|end| {
        let mut found = end
            .endpoint
            .sas
            .values()
            .filter_map(|entry| match &entry.sa.phase {
                crate::sa::Phase::Established(established) => Some(established.ppk),
                _ => None,
            });
        found.next().expect("an IKE SA")
    })
}

#[test]
fn it_is_used_where_both_have_it_and_left_out_where_nobody_requires_it() {
    let optional = || ppk("alpha", "secret", false);
    let required = || ppk("alpha", "secret", true);
    for (ours, theirs, expected) in [
        (required(), required(), true),
        (required(), optional(), true),
        (optional(), required(), true),
        (optional(), optional(), true),
        (optional(), None, false),
        (None, optional(), false),
        (optional(), ppk("beta", "secret", false), false),
    ] {
        let context = format!("{ours:?} {theirs:?}");
        let mut pair = pair(ours, theirs);
        pair.settle();
        pair.assert_connected();
        assert_eq!(used(&pair), [expected; 2], "{context}");
    }
}

#[test]
fn what_one_end_requires_and_the_other_lacks_is_explained() {
    let required = || ppk("alpha", "secret", true);
    for (ours, theirs, at_a, at_b) in [
        (required(), None, "does not use our PPK", None),
        (
            None,
            required(),
            "AUTHENTICATION_FAILED",
            Some("the peer uses no PPK, we require the PPK \"alpha\" (secrets.toml:9)"),
        ),
        (
            required(),
            ppk("beta", "secret", false),
            "and the PPK \"alpha\" at secrets.toml:9",
            Some("the peer uses the PPK \"alpha\", ours is the PPK \"beta\""),
        ),
        (
            ppk("alpha", "secret", false),
            ppk("beta", "secret", true),
            "and the PPK \"alpha\" at secrets.toml:9",
            Some("we require the PPK \"beta\""),
        ),
        // The same name for different keys.
        (
            required(),
            ppk("alpha", "another", false),
            "and the PPK \"alpha\" at secrets.toml:9",
            Some("pre-shared key"),
        ),
    ] {
        let mut pair = pair(ours, theirs);
        pair.settle();
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
        let text = format!(
            "{}\n{:?}",
            pair.a.refusals()[0],
            pair.a.refusals()[0].kind.name()
        );
        assert!(text.contains(at_a), "{at_a}: {text}");
        let text = pair.b.refusals().first().map(ToString::to_string);
        match at_b {
            Some(part) => assert!(text.as_ref().unwrap().contains(part), "{text:?}"),
            None => assert_eq!(text, None),
        }
    }
}

#[test]
fn rekeys_restarts_and_further_key_exchanges_keep_it() {
    for ike in [IKE, "aes256gcm16-prfsha256-x25519-ke1_mlkem768"] {
        let mut a = connection(A, B, ike, ESP);
        a.ppk = ppk("alpha", "secret", true);
        a.ike_lifetime.soft = Duration::from_secs(60);
        a.ike_lifetime.jitter = Duration::ZERO;
        let b = mirrored(&a);
        let mut pair = Pair::seeded(3, EndpointConfig::default(), a, b);
        pair.settle();
        pair.run(Duration::from_secs(60));
        assert_eq!(pair.a.established(), 2, "it is rekeyed");
        let now = pair.now;
        pair.a.kill(now, Duration::from_secs(1));
        pair.run(Duration::from_secs(70));
        pair.assert_connected();
        assert_eq!(pair.a.refused, []);
        assert_eq!(used(&pair), [true; 2]);
    }
}
