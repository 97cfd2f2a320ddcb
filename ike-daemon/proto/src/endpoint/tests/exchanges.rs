//! Several key exchanges for one SA (RFC 9242, RFC 9370), with ML-KEM among them.

use std::time::Duration;

use super::pair::*;
use crate::refusal::RefusalKind;
use crate::wire::{ExchangeType, Header};
use crate::{ConnectionConfig, EndpointConfig, Notice};

const HYBRID: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768";
const HYBRID_ESP: &str = "aes256gcm16-x25519-ke1_mlkem768";

/// A child SA and an IKE SA are rekeyed within some minutes.
fn short_lived(ike: &str, esp: &str) -> ConnectionConfig {
    let mut a = connection(A, B, ike, esp);
    a.child_lifetime.soft = Duration::from_secs(100);
    a.child_lifetime.hard = Duration::from_secs(400);
    a.child_lifetime.jitter = Duration::from_secs(20);
    a.ike_lifetime.soft = Duration::from_secs(130);
    a.ike_lifetime.hard = Duration::from_secs(600);
    a.ike_lifetime.jitter = Duration::from_secs(20);
    a
}

/// Message IDs of the requests of one exchange type that an end sent, each once.
fn requests(end: &End, exchange: ExchangeType) -> usize {
    let mut ids: Vec<_> = end
        .sent
        .iter()
        .filter_map(|sent| Some(Header::split(&sent.payload).ok()?.0))
        .filter(|header| header.exchange == exchange && !header.flags.is_response())
        .map(|header| (header.responder_spi, header.message_id))
        .collect();
    ids.dedup();
    ids.len()
}

fn suites(end: &End) -> Vec<&str> {
    let suites = end.notices.iter().filter_map(|notice| match notice {
        Notice::Established { suite, .. } => Some(suite.as_str()),
        _ => None,
    });
    suites.collect()
}

#[test]
fn sas_come_up_and_are_rekeyed_by_all_exchanges_agreed_on() {
    for (ike, esp, further) in [
        (HYBRID, HYBRID_ESP, 1),
        (
            "aes256-sha384-ecp384-ke1_mlkem1024",
            "aes128-sha256-modp2048-ke1_mlkem512",
            1,
        ),
        (
            "chacha20poly1305-prfsha512-x25519-ke2_mlkem512-ke4_ecp256-ke7_mlkem1024",
            "chacha20poly1305-ecp521-ke1_x25519-ke3_mlkem1024-ke5_mlkem768",
            3,
        ),
    ] {
        let mut a = short_lived(ike, esp);
        a.child_lifetime.jitter = Duration::ZERO;
        a.ike_lifetime.jitter = Duration::ZERO;
        let mut b = mirrored(&a);
        (b.child_lifetime, b.ike_lifetime) = (initiator().child_lifetime, initiator().ike_lifetime);
        let mut pair = Pair::new(a, b);
        pair.network.mtu = 1280 + 100;
        pair.settle();
        pair.assert_connected();
        assert_eq!(suites(&pair.a), [ike], "{ike}");
        let intermediate = requests(&pair.a, ExchangeType::IKE_INTERMEDIATE);
        assert_eq!(intermediate, further, "{ike}");
        assert_eq!(requests(&pair.a, ExchangeType::IKE_FOLLOWUP_KE), 0);
        // A child SA, then the IKE SA.
        pair.run(Duration::from_secs(110));
        pair.assert_connected();
        assert_eq!(requests(&pair.a, ExchangeType::IKE_FOLLOWUP_KE), further);
        pair.run(Duration::from_secs(30));
        pair.assert_connected();
        assert_eq!(suites(&pair.a), [ike, ike]);
        let follow_ups = requests(&pair.a, ExchangeType::IKE_FOLLOWUP_KE);
        assert_eq!(follow_ups, 2 * further, "{ike}");
        for end in [&pair.a, &pair.b] {
            assert_eq!(end.refusals(), Vec::<&crate::Refusal>::new());
            assert!(end.endpoint.counters().dropped.is_empty(), "{ike}");
        }
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.run(Duration::from_secs(60));
        pair.assert_nothing_left();
    }
}

#[test]
fn what_is_optional_is_done_if_both_can() {
    let hybrid = format!("{HYBRID},{IKE}");
    let optional = format!("{HYBRID}-ke1_none");
    for (ours, theirs, expected) in [
        (&hybrid[..], HYBRID, HYBRID),
        (&hybrid, IKE, IKE),
        (IKE, &hybrid, IKE),
        (&optional, HYBRID, HYBRID),
        (&optional, &optional, HYBRID),
        (HYBRID, &optional, HYBRID),
        (
            "aes256gcm16-prfsha384-x25519-ke1_none-ke1_mlkem768",
            &optional,
            "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        ),
        (
            &optional,
            "aes256gcm16-prfsha384-x25519",
            "aes256gcm16-prfsha384-x25519",
        ),
        (
            "aes256gcm16-prfsha384-x25519",
            &optional,
            "aes256gcm16-prfsha384-x25519",
        ),
    ] {
        let a = connection(A, B, ours, ESP);
        let b = mirrored(&connection(A, B, theirs, ESP));
        let mut pair = Pair::new(a, b);
        pair.settle();
        pair.assert_connected();
        assert_eq!(suites(&pair.a), [expected], "{ours} {theirs}");
        assert_eq!(suites(&pair.b), [expected], "{ours} {theirs}");
    }
}

#[test]
fn a_peer_that_does_not_have_them_is_explained_on_both_ends() {
    let a = connection(A, B, HYBRID, ESP);
    let b = mirrored(&connection(A, B, IKE, ESP));
    let mut pair = Pair::new(a, b);
    pair.settle();
    let of_a = pair.a.refusals()[0];
    assert_eq!(of_a.kind, RefusalKind::IkeProposal);
    let text = of_a.to_string();
    assert!(text.contains("ADDKE1      ke1_mlkem768"), "{text}");
    assert!(text.contains("without `ke1_…` listed after them"), "{text}");
    let text = pair.b.refusals()[0].to_string();
    assert!(text.contains("ADDKE1"), "{text}");
    assert!(
        text.contains("would meet what the peer sent") && text.contains(HYBRID),
        "{text}"
    );

    // The child SA's own exchanges are not asked for before it is rekeyed.
    let mut a = short_lived(IKE, HYBRID_ESP);
    a.ike_lifetime = initiator().ike_lifetime;
    let b = mirrored(&short_lived(IKE, "aes256gcm16-x25519"));
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_secs(110));
    let text = pair.a.refusals()[0].to_string();
    assert!(text.contains("ADDKE1      ke1_mlkem768"), "{text}");
    assert!(text.contains("without `ke1_…` listed after them"), "{text}");
    let text = pair.b.refusals()[0].to_string();
    assert!(text.contains("ke1_mlkem768"), "{text}");
}

fn bad() -> Network {
    Network {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(700),
        loss_percent: 25,
        duplicate_percent: 20,
        mtu: 1280,
    }
}

#[test]
fn loss_and_reordering_delay_but_do_not_part_them() {
    for seed in 0..60 {
        let mut a = short_lived(
            &format!("{HYBRID}-ke2_mlkem512"),
            &format!("{HYBRID_ESP}-ke2_mlkem1024"),
        );
        a.child_lifetime.soft = Duration::from_secs(60);
        let b = mirrored(&a);
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.network = bad();
        let up = pair.run_until(Duration::from_secs(600), |pair| {
            !pair.a.sas.is_empty() && !pair.b.sas.is_empty()
        });
        assert!(up, "seed {seed}");
        pair.run(Duration::from_secs(300));
        pair.network = Network::default();
        let calm = pair.run_until(Duration::from_secs(400), |pair| {
            pair.a.sas.len() == 1 && pair.b.sas.len() == 1
        });
        assert!(calm, "seed {seed}");
        assert_same(
            pair.a.sas.values().next().unwrap(),
            pair.b.sas.values().next().unwrap(),
        );
        let refused = pair.a.refusals().len() + pair.b.refusals().len();
        assert_eq!(refused, 0, "seed {seed}: {:#?}", pair.a.refusals());
    }
}

/// Neither end keeps what waits for the next exchange of the other; the one that began it does.
#[test]
fn killed_at_every_message_of_a_rekey_they_stay_together() {
    let life = Duration::from_secs(200);
    let config = || short_lived(HYBRID, &format!("{HYBRID_ESP}-ke2_mlkem512"));
    let mut whole = Pair::new(config(), mirrored(&config()));
    whole.run(life);
    for (of_a, count) in [(true, whole.a.sent.len()), (false, whole.b.sent.len())] {
        for at in 0..count {
            for (index, when) in [KillWhen::Saved(1), KillWhen::Unsent, KillWhen::Sent]
                .into_iter()
                .enumerate()
            {
                let a = config();
                let b = mirrored(&a);
                let mut pair = Pair::new(a, b);
                let kill = Kill {
                    of_a,
                    at,
                    when,
                    down: Duration::from_secs([0, 3, 40][(at + index) % 3]),
                };
                pair.kill = Some(kill);
                pair.run(life);
                pair.kill = None;
                pair.run(Duration::from_secs(250));
                let calm = pair.run_until(Duration::from_secs(100), |pair| {
                    (pair.a.sas.len(), pair.b.sas.len()) == (1, 1)
                });
                assert!(calm, "{kill:?}");
                assert_same(
                    pair.a.sas.values().next().unwrap(),
                    pair.b.sas.values().next().unwrap(),
                );
                for end in [&pair.a, &pair.b] {
                    assert!(end.refused.is_empty(), "{kill:?}: {:?}", end.refused);
                    let refusals = end.refusals();
                    // While it is made it cannot survive.
                    let later = refusals
                        .iter()
                        .filter(|it| it.kind != RefusalKind::NoAnswer);
                    assert_eq!(later.count(), 0, "{kill:?}: {refusals:#?}");
                }
            }
        }
    }
}
