//! A bad network delays, but does not keep two endpoints apart.

use std::time::Duration;

use super::pair::*;
use crate::EndpointConfig;
use crate::config::StartAction;

fn bad(loss_percent: u64) -> Network {
    Network {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(700),
        loss_percent,
        duplicate_percent: 20,
        ..Network::default()
    }
}

#[test]
fn thirty_percent_loss_always_converges() {
    for seed in 0..200 {
        let mut settings = EndpointConfig::default();
        if seed % 4 == 0 {
            settings.half_open.cookie_threshold = 0;
        }
        let mut pair = Pair::seeded(seed, settings, initiator(), responder());
        pair.network = bad(30);
        let up = pair.run_until(Duration::from_secs(600), |pair| {
            !pair.a.sas.is_empty() && !pair.b.sas.is_empty()
        });
        assert!(up, "seed {seed}");
        pair.network = Network::default();
        pair.run(Duration::from_secs(300));
        pair.assert_connected();
        pair.a.endpoint.terminate(pair.now, "site").unwrap();
        pair.run(Duration::from_secs(300));
        pair.assert_nothing_left();
    }
}

#[test]
fn loss_while_both_start_leaves_them_agreeing() {
    for seed in 0..60 {
        let mut b = responder();
        b.start = StartAction::Start;
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), initiator(), b);
        pair.network = bad(30);
        pair.run(Duration::from_secs(120));
        pair.network = Network::default();
        pair.run(Duration::from_secs(400));
        assert!(!pair.a.sas.is_empty(), "seed {seed}");
        assert_eq!(pair.a.sas.len(), pair.b.sas.len(), "seed {seed}");
        for sa in pair.a.sas.values() {
            let other = pair
                .b
                .sas
                .values()
                .find(|other| other.inbound.spi == sa.outbound.spi);
            assert_same(
                sa,
                other.unwrap_or_else(|| panic!("seed {seed}: one-sided SA")),
            );
        }
    }
}

#[test]
fn rekeys_under_loss_leave_one_pair_that_is_the_same() {
    for seed in 0..30 {
        let mut a = initiator();
        a.child_lifetime.soft = Duration::from_secs(60);
        a.child_lifetime.hard = Duration::from_secs(600);
        a.child_lifetime.jitter = Duration::from_secs(10);
        a.ike_lifetime.soft = Duration::from_secs(150);
        a.ike_lifetime.jitter = Duration::from_secs(10);
        let mut b = mirrored(&a);
        b.start = StartAction::None;
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.settle();
        pair.assert_connected();
        pair.network = bad(20);
        pair.run(Duration::from_secs(400));
        pair.network = Network::default();
        // Long enough for what was under way, short of the next rekey of both.
        let calm = pair.run_until(Duration::from_secs(300), |pair| {
            pair.a.sas.len() == 1 && pair.b.sas.len() == 1
        });
        assert!(calm, "seed {seed}");
        assert_same(
            pair.a.sas.values().next().unwrap(),
            pair.b.sas.values().next().unwrap(),
        );
        assert_eq!(
            pair.a.refusals().len() + pair.b.refusals().len(),
            0,
            "seed {seed}: {:#?}",
            pair.a.refusals()
        );
    }
}
