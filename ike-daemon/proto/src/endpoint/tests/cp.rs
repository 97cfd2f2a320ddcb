//! Virtual addresses (RFC 7296 sections 2.19 and 3.15).

use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::TrafficSelector;

use super::pair::*;
use crate::config::{Pool, RemoteAddress, RemoteIdentity, StartAction};
use crate::refusal::{RefusalKind, RefusedBy};
use crate::selector;
use crate::wire::NotifyType;
use crate::{ConnectionConfig, Notice, Refusal};

fn pool(name: &str, addresses: &str) -> Arc<Pool> {
    Arc::new(Pool {
        name: name.into(),
        addresses: selector::parse(addresses).unwrap(),
        dns: vec!["10.2.0.53".parse().unwrap()],
    })
}

/// A asks for an address of each of these families, B has these pools.
fn ends(vips: &[&str], pools: &[Arc<Pool>]) -> (ConnectionConfig, ConnectionConfig) {
    let (mut a, mut b) = (initiator(), responder());
    a.vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
    a.local_ts.clear();
    a.remote_ts
        .push(selector::parse("2001:db8:2::/64").unwrap());
    b.local_ts = a.remote_ts.clone();
    b.remote_ts.clear();
    b.pools = pools.to_vec();
    (a, b)
}

fn hosts(addresses: &[&str]) -> Vec<TrafficSelector> {
    let parsed = addresses.iter().map(|address| address.parse().unwrap());
    parsed.map(TrafficSelector::host).collect()
}

fn connected(vips: &[&str], pools: &[Arc<Pool>]) -> Pair {
    let (a, b) = ends(vips, pools);
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    pair
}

/// A's addresses as every part of it knows them.
fn assert_has(pair: &Pair, addresses: &[&str]) {
    let policy = &pair.a.policies["site"];
    let words: Vec<String> = policy.addresses.iter().map(|a| a.to_string()).collect();
    assert_eq!(words, addresses);
    assert_eq!(policy.local_ts, hosts(addresses));
    for (end, ours) in [(&pair.a, true), (&pair.b, false)] {
        let status = &end.endpoint.status(pair.now)[0];
        let lease = status.ike_sas.iter().find_map(|sa| sa.lease.as_ref());
        match lease {
            Some(lease) => assert_eq!((lease.ours, &lease.addresses), (ours, &policy.addresses)),
            None => assert!(addresses.is_empty()),
        }
    }
    if !addresses.is_empty() {
        for sa in pair.a.sas.values() {
            assert_eq!(sa.local_ts, hosts(addresses));
        }
        for sa in pair.b.sas.values() {
            assert_eq!(sa.remote_ts, hosts(addresses));
        }
    }
}

#[test]
fn an_address_of_each_family_is_leased() {
    let pools = [
        pool("four", "10.9.0.1..10.9.0.9"),
        pool("six", "2001:db8:9::/64"),
    ];
    let pair = connected(&["0.0.0.0", "::"], &pools);
    assert_has(&pair, &["10.9.0.1", "2001:db8:9::"]);
    // Whatever the pool holds is kept from going in clear, whoever has it.
    let protected: Vec<_> = pools.iter().map(|pool| pool.addresses).collect();
    assert_eq!(pair.b.policies["site"].remote_ts, protected);
    let told = pair
        .a
        .notices
        .iter()
        .any(|notice| matches!(notice, Notice::VirtualAddresses { dns, .. } if dns.len() == 1));
    assert!(told, "{:?}", pair.a.notices);
}

#[test]
fn a_wish_is_granted_if_nobody_has_the_address() {
    let pair = connected(&["10.9.0.7"], &[pool("four", "10.9.0.0/24")]);
    assert_has(&pair, &["10.9.0.7"]);
    let pair = connected(&["10.8.0.7"], &[pool("four", "10.9.0.1..10.9.0.9")]);
    assert_has(&pair, &["10.9.0.1"]);
}

#[test]
fn it_is_kept_over_rekeys_and_goes_with_the_ike_sa() {
    let (mut a, mut b) = ends(&["0.0.0.0"], &[pool("four", "10.9.0.1..10.9.0.9")]);
    for config in [&mut a, &mut b] {
        config.child_lifetime.soft = Duration::from_secs(600);
        config.child_lifetime.jitter = Duration::from_secs(60);
        config.ike_lifetime.soft = Duration::from_secs(900);
        config.ike_lifetime.jitter = Duration::from_secs(100);
    }
    let mut pair = Pair::new(a, b);
    pair.run(Duration::from_secs(3600));
    assert!(pair.a.established() > 2, "IKE rekeys");
    pair.assert_connected();
    assert_has(&pair, &["10.9.0.1"]);
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(40));
    pair.assert_nothing_left();
    assert_has(&pair, &[]);
    // The same one again.
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    assert_has(&pair, &["10.9.0.1"]);
}

#[test]
fn it_outlives_the_processes_of_both_ends() {
    let mut pair = connected(&["0.0.0.0"], &[pool("four", "10.9.0.1..10.9.0.9")]);
    for of_a in [true, false] {
        let end = if of_a { &mut pair.a } else { &mut pair.b };
        end.policies.clear();
        end.kill(pair.now, Duration::from_secs(1));
        pair.settle();
        pair.assert_connected();
        assert_has(&pair, &["10.9.0.1"]);
        assert!(pair.a.refused.is_empty() && pair.b.refused.is_empty());
    }
    // The restored lease is known to be in use.
    let lease = pair.b.endpoint.out.leases.find(
        &pool("four", "10.9.0.1..10.9.0.9"),
        &"other.example".parse().unwrap(),
        "0.0.0.0".parse().unwrap(),
        false,
    );
    assert_eq!(lease, Some("10.9.0.2".parse().unwrap()));
}

#[test]
fn a_client_that_was_restarted_gets_its_address_again() {
    let mut pair = connected(&["0.0.0.0"], &[pool("four", "10.9.0.1..10.9.0.1")]);
    // It forgets everything; B still has the old IKE SA, and the pool is full.
    pair.a.saved.clear();
    pair.a.sas.clear();
    pair.a.policies.clear();
    pair.a.kill(pair.now, Duration::from_secs(1));
    pair.settle();
    assert_has(&pair, &["10.9.0.1"]);
    pair.assert_connected();
}

fn refused(vips: &[&str], pools: &[Arc<Pool>]) -> (Refusal, Refusal) {
    let (mut a, b) = ends(vips, pools);
    a.start = StartAction::None;
    if vips.is_empty() {
        a.local_ts = hosts(&["10.1.0.1"]);
    }
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    let of = |end: &End| {
        let refusals = end.refusals();
        assert_eq!(refusals.len(), 1, "{refusals:#?}");
        refusals[0].clone()
    };
    (of(&pair.a), of(&pair.b))
}

#[test]
fn what_cannot_be_given_is_explained_at_both_ends() {
    let failure = RefusalKind::Notify(NotifyType::INTERNAL_ADDRESS_FAILURE);
    let (a, b) = refused(&["::"], &[pool("four", "10.9.0.0/24")]);
    assert_eq!((a.kind, a.by), (failure, RefusedBy::Peer));
    assert_eq!((b.kind, b.by), (failure, RefusedBy::Us));
    assert!(b.summary.contains("no pool is of that family"), "{b}");
    assert!(b.fix.as_ref().unwrap().setting == "pools", "{b}");
    assert!(a.fix.as_ref().unwrap().setting == "vips", "{a}");

    let required = RefusalKind::Notify(NotifyType::FAILED_CP_REQUIRED);
    let (a, b) = refused(&[], &[pool("four", "10.9.0.0/24")]);
    assert_eq!((a.kind, b.kind), (required, required));
    assert!(a.to_string().contains("vips = [\"0.0.0.0\"]"), "{a}");

    // Nobody gives anything.
    let (mut a, mut b) = ends(&["0.0.0.0"], &[]);
    a.start = StartAction::None;
    b.remote_ts = vec![selector::parse("0.0.0.0/0").unwrap()];
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(40));
    pair.assert_nothing_left();
    let refusals = pair.a.refusals();
    assert_eq!(refusals[0].kind, failure, "{refusals:#?}");
    assert!(pair.a.policies["site"].addresses.is_empty());
}

#[test]
fn a_full_pool_refuses_until_somebody_leaves() {
    let (_, mut b) = ends(&["0.0.0.0"], &[pool("four", "10.9.0.1..10.9.0.1")]);
    b.remote_address = RemoteAddress::Any;
    b.remote_id = RemoteIdentity::Any;
    let (mut a, _) = ends(&["0.0.0.0"], &[]);
    a.local_id = Some("one.example".parse().unwrap());
    a.start = StartAction::None;
    let mut two = a.clone();
    two.name = "two".into();
    two.local_id = Some("two.example".parse().unwrap());
    let mut pair = Pair::new(a.clone(), b);
    pair.a.endpoint.set_connections(pair.now, vec![a, two]);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.settle();
    pair.a.endpoint.initiate(pair.now, "two").unwrap();
    pair.settle();
    let refusal = pair.b.refusals()[0].to_string();
    assert!(refusal.contains("all addresses are in use"), "{refusal}");
    assert!(refusal.contains("two.example"), "{refusal}");
    assert_eq!(pair.a.sas.len(), 1);
    pair.a.endpoint.terminate(pair.now, "site").unwrap();
    pair.settle();
    pair.a.endpoint.initiate(pair.now, "two").unwrap();
    pair.settle();
    assert_eq!(pair.a.policies["two"].local_ts, hosts(&["10.9.0.1"]));
    assert!(pair.a.policies["site"].addresses.is_empty());
}

/// Networks on both sides, and an address beside them: what strongSwan's clients of a site do.
#[test]
fn configured_selectors_stay_as_they_are() {
    let (mut a, mut b) = ends(&["0.0.0.0"], &[pool("four", "10.9.0.0/24")]);
    a.local_ts = vec![selector::parse("10.1.0.0/16").unwrap()];
    b.remote_ts = a.local_ts.clone();
    let mut pair = Pair::new(a.clone(), b);
    pair.settle();
    pair.assert_connected();
    assert_eq!(pair.a.sas.values().next().unwrap().local_ts, a.local_ts);
    assert_eq!(pair.a.policies["site"].addresses.len(), 1);
}
