//! Peers that take one pair of subnets in each child SA (RFC 7296 section 2.9).

use std::collections::BTreeSet;
use std::time::Duration;

use espada_common::sa::TrafficSelector;

use super::pair::*;
use crate::config::Childless;
use crate::{ConnectionConfig, EndpointConfig, Notice, RefusalKind, selector};

fn list(text: &str) -> Vec<TrafficSelector> {
    let each = text.split(' ');
    each.map(|text| selector::parse(text).unwrap()).collect()
}

/// Two subnets on each side, and one of another family.
fn wide() -> ConnectionConfig {
    let mut a = initiator();
    a.local_ts = list("10.1.0.0/24 10.1.1.0/24 2001:db8:1::/64");
    a.remote_ts = list("10.2.0.0/24 10.2.1.0/24");
    a
}

/// The pairs that an end's child SAs carry.
fn carried(end: &End) -> BTreeSet<String> {
    let sas = end.sas.values();
    sas.map(|sa| {
        let sides = [&sa.local_ts, &sa.remote_ts].map(|ts| selector::format_list(ts));
        sides.join(" - ")
    })
    .collect()
}

fn all_four() -> BTreeSet<String> {
    let pairs = [
        "0.0/24 - 10.2.0",
        "0.0/24 - 10.2.1",
        "1.0/24 - 10.2.0",
        "1.0/24 - 10.2.1",
    ];
    // As Espada writes them.
    let pairs = pairs.map(|pair| format!("10.1.{pair}.0/24"));
    pairs.into_iter().collect()
}

#[test]
fn one_pair_after_the_other_when_the_peer_takes_no_more() {
    let a = wide();
    let mut b = mirrored(&a);
    b.single_pairs = true;
    let mut pair = Pair::new(a, b);
    pair.settle();
    assert_eq!(carried(&pair.a), all_four());
    pair.assert_mirrored("set up");
    let told = |notice: &Notice| matches!(notice, Notice::SinglePairs { notify, .. } if notify == "SINGLE_PAIR_REQUIRED");
    assert!(pair.a.notices.iter().any(told));
    assert!(pair.a.refusals().is_empty(), "{:#?}", pair.a.refusals());
    let [refusal] = &pair.b.refusals()[..] else {
        panic!("{:#?}", pair.b.refusals())
    };
    assert!(
        refusal
            .to_string()
            .contains("several pairs of subnets at once")
    );
}

#[test]
fn each_pair_is_rekeyed_alone() {
    for rekeyed_by_a in [true, false] {
        let mut a = wide();
        let mut b = mirrored(&a);
        b.single_pairs = true;
        let short = if rekeyed_by_a { &mut a } else { &mut b };
        short.child_lifetime.soft = Duration::from_secs(100);
        short.ike_lifetime.soft = Duration::from_secs(250);
        short.child_lifetime.jitter = Duration::from_secs(20);
        let mut pair = Pair::new(a, b);
        pair.settle();
        let first: Vec<_> = pair.a.sas.keys().copied().collect();
        pair.run(Duration::from_secs(600));
        assert_eq!(carried(&pair.a), all_four());
        assert_eq!(pair.a.sas.len(), 4);
        assert!(first.iter().all(|id| !pair.a.sas.contains_key(id)));
        assert!(pair.a.established() >= 3, "the IKE SA was rekeyed as well");
        pair.assert_mirrored("rekeyed");
        assert!(pair.a.refusals().is_empty(), "{:#?}", pair.a.refusals());
    }
}

#[test]
fn whoever_is_told_to_begins_with_one_pair() {
    for childless in [Childless::Allow, Childless::Force] {
        let mut a = wide();
        (a.single_pairs, a.childless) = (true, childless);
        let b = mirrored(&wide());
        let mut pair = Pair::new(a, b);
        pair.settle();
        assert_eq!(carried(&pair.a), all_four());
        pair.assert_mirrored("set up");
        assert!(pair.a.refusals().is_empty() && pair.b.refusals().is_empty());
    }
}

#[test]
fn what_the_peer_left_out_is_asked_for_and_its_refusal_explained() {
    let a = wide();
    let mut b = mirrored(&a);
    b.local_ts = list("10.2.1.0/24");
    let mut pair = Pair::new(a, b);
    pair.settle();
    let pairs = carried(&pair.a);
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    assert_eq!(pair.a.state(pair.now), "established");
    let refusals = pair.a.refusals();
    assert_eq!(refusals.len(), 2, "{refusals:#?}");
    for (refusal, local) in refusals.iter().zip(["10.1.0.0/24", "10.1.1.0/24"]) {
        assert_eq!(refusal.kind, RefusalKind::TrafficSelectors);
        let text = refusal.to_string();
        assert!(
            text.contains(&format!("we offered local {local}\n")),
            "{text}"
        );
        assert!(text.contains("we offered remote 10.2.0.0/24\n"), "{text}");
    }
    pair.run(Duration::from_secs(300));
    assert_eq!(pair.a.refusals().len(), 2, "once is enough");
    pair.assert_mirrored("afterwards");
}

#[test]
fn when_no_pair_is_taken_the_ike_sa_goes() {
    let a = wide();
    let mut b = mirrored(&a);
    b.local_ts = list("10.99.0.0/16");
    let mut pair = Pair::new(a.clone(), b.clone());
    pair.run(Duration::from_millis(1500));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    let status = &pair.a.endpoint.status(pair.now)[0];
    assert_eq!(status.state, "waiting");
    assert!(status.retry_in.is_some() && status.last_error.is_some());
    // The peer mends it.
    b.local_ts = a.remote_ts.clone();
    pair.b.endpoint.set_connections(pair.now, vec![b]);
    pair.run(Duration::from_secs(60));
    pair.assert_connected();
}

#[test]
fn a_first_pair_that_is_refused_does_not_stop_the_others() {
    let mut a = wide();
    a.single_pairs = true;
    let mut b = mirrored(&a);
    b.local_ts = list("10.2.1.0/24");
    let mut pair = Pair::new(a, b);
    pair.settle();
    assert_eq!(carried(&pair.a).len(), 2);
    assert_eq!(pair.a.refusals().len(), 2, "{:#?}", pair.a.refusals());
    pair.assert_mirrored("set up");
}

#[test]
fn all_pairs_come_up_and_stay_under_loss() {
    for seed in 0..40 {
        let mut a = wide();
        a.child_lifetime.soft = Duration::from_secs(200);
        a.ike_lifetime.soft = Duration::from_secs(300);
        let mut b = mirrored(&a);
        b.single_pairs = true;
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.network.loss_percent = 20;
        pair.network.duplicate_percent = 10;
        pair.run(Duration::from_secs(900));
        pair.network = Network::default();
        pair.run(Duration::from_secs(300));
        assert_eq!(carried(&pair.a), all_four(), "seed {seed}");
        pair.run_until(Duration::from_secs(200), |pair| {
            let idle = |end: &End| end.sas.len() == 4;
            idle(&pair.a) && idle(&pair.b)
        });
        assert_eq!(pair.a.sas.len(), 4, "seed {seed}");
    }
}

#[test]
fn ends_that_ask_at_once_agree() {
    for seed in 0..20 {
        let mut a = wide();
        a.single_pairs = true;
        let mut b = mirrored(&a);
        b.start = a.start;
        let mut pair = Pair::seeded(seed, EndpointConfig::default(), a, b);
        pair.run(Duration::from_secs(120));
        assert_eq!(carried(&pair.a), all_four(), "seed {seed}");
        assert_eq!(carried(&pair.b).len(), 4, "seed {seed}");
        assert_eq!(pair.a.sas.len(), pair.b.sas.len(), "seed {seed}");
    }
}
