//! Handshakes over bad networks always end with both sides holding the same SAs.

mod pair;

use std::time::Duration;

use pair::{Link, Pair, site_to_site};

fn initiate(pair: &mut Pair) {
    let now = pair.now;
    pair.a.endpoint.initiate(now, "to-b").unwrap();
}

#[test]
fn clean_network_takes_two_round_trips() {
    let (a, b) = site_to_site();
    let mut pair = Pair::new(1, vec![a], vec![b]);
    initiate(&mut pair);
    pair.run(Duration::from_millis(45));
    pair.assert_agree(1);
    assert_eq!(pair.trace.len(), 4, "IKE_SA_INIT and IKE_AUTH, no more");
}

#[test]
fn thirty_percent_loss_always_converges() {
    for seed in 0..300 {
        let (a, b) = site_to_site();
        let mut pair = Pair::new(seed, vec![a], vec![b]);
        pair.link = Link {
            jitter: Duration::from_millis(400),
            loss: 0.3,
            duplicates: 0.1,
            ..Link::default()
        };
        initiate(&mut pair);
        let up = pair.run_until(Duration::from_secs(120), Pair::agree);
        assert!(
            up,
            "seed {seed} did not converge\nA:\n{}\nB:\n{}",
            pair.a.log(),
            pair.b.log()
        );
        // What is still in flight must not disturb it, and nothing half-open may stay behind.
        pair.link.loss = 0.0;
        pair.run(Duration::from_secs(60));
        pair.assert_agree(1);
        for node in [&pair.a, &pair.b] {
            let sas: usize = node
                .endpoint
                .status(pair.now)
                .iter()
                .map(|c| c.ike_sas.len())
                .sum();
            assert_eq!(sas, 1, "seed {seed}: IKE SAs left over\n{}", node.log());
        }
    }
}

#[test]
fn both_initiate_at_once_and_settle_on_the_same_sas() {
    for seed in 0..100 {
        let (a, b) = site_to_site();
        let mut pair = Pair::new(seed, vec![a], vec![b]);
        pair.link = Link {
            jitter: Duration::from_millis(30),
            ..Link::default()
        };
        let now = pair.now;
        pair.a.endpoint.initiate(now, "to-b").unwrap();
        pair.b.endpoint.initiate(now, "to-a").unwrap();
        pair.run(Duration::from_secs(60));
        assert!(
            pair.agree(),
            "seed {seed}\nA:\n{}\nB:\n{}",
            pair.a.log(),
            pair.b.log()
        );
    }
}

#[test]
fn a_cut_link_is_noticed_and_healed() {
    let (mut a, b) = site_to_site();
    a.start = espada_ike::config::StartAction::Start;
    let mut pair = Pair::new(7, vec![a], vec![b]);
    assert!(
        pair.run_until(Duration::from_secs(5), Pair::agree),
        "start = \"start\" did not start"
    );
    pair.link.cut = true;
    let gone = pair.run_until(Duration::from_secs(600), |pair| {
        pair.a.installed.is_empty() && pair.b.installed.is_empty()
    });
    assert!(
        gone,
        "a dead peer was not noticed\nA:\n{}\nB:\n{}",
        pair.a.log(),
        pair.b.log()
    );
    pair.link.cut = false;
    let back = pair.run_until(Duration::from_secs(300), Pair::agree);
    assert!(
        back,
        "not set up again\nA:\n{}\nB:\n{}",
        pair.a.log(),
        pair.b.log()
    );
}
