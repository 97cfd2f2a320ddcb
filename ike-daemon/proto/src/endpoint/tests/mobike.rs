//! Ends that move (RFC 4555).

use std::net::IpAddr;
use std::time::Duration;

use espada_common::sa::Encapsulation;

use super::pair::*;
use crate::config::{RemoteAddress, RemoteIdentity};
use crate::{ConnectionConfig, DownReason, Notice};

const A2: &str = "192.0.2.77";
const A6: &str = "2001:db8:1::1";
const B2: &str = "198.51.100.99";
const B6: &str = "2001:db8:2::2";

/// Both can move; B takes A from anywhere.
fn mobile() -> (ConnectionConfig, ConnectionConfig) {
    let (mut a, mut b) = (initiator(), responder());
    a.local_id = Some("a.example".parse().unwrap());
    a.remote_id = RemoteIdentity::Is("b.example".parse().unwrap());
    b.local_id = Some("b.example".parse().unwrap());
    b.remote_id = RemoteIdentity::Is("a.example".parse().unwrap());
    b.remote_address = RemoteAddress::Any;
    for config in [&mut a, &mut b] {
        config.mobike = true;
        config.local_address = None;
    }
    (a, b)
}

/// Two ends at these addresses, connected.
fn at(a: &[&str], b: &[&str]) -> Pair {
    let configs = mobile();
    with(configs, a, b)
}

fn with(
    (mut config_a, config_b): (ConnectionConfig, ConnectionConfig),
    a: &[&str],
    b: &[&str],
) -> Pair {
    config_a.start = crate::config::StartAction::None;
    let mut pair = Pair::new(config_a, config_b);
    let now = pair.now;
    pair.a.readdress(now, a);
    pair.b.readdress(now, b);
    let source = a[0].parse().unwrap();
    pair.a.endpoint.set_source(B.parse().unwrap(), Some(source));
    pair.a.endpoint.initiate(now, "site").unwrap();
    pair.settle();
    pair.assert_connected();
    pair
}

/// Where both ends send ESP.
fn paths(pair: &Pair) -> [(IpAddr, IpAddr); 2] {
    [&pair.a, &pair.b].map(|end| {
        let path = end.sas.values().next().unwrap().path;
        (path.local.ip(), path.remote.ip())
    })
}

fn assert_between(pair: &Pair, a: &str, b: &str) {
    let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
    assert_eq!(paths(pair), [(a, b), (b, a)]);
    for end in [&pair.a, &pair.b] {
        let status = &end.endpoint.status(pair.now)[0];
        let mine = if std::ptr::eq(end, &pair.a) {
            (a, b)
        } else {
            (b, a)
        };
        let sa = &status.ike_sas[0];
        assert_eq!((sa.local.ip(), sa.remote.ip()), mine);
    }
    pair.assert_connected();
    assert_eq!((pair.a.established(), pair.b.established()), (1, 1));
}

#[test]
fn ike_moves_to_port_4500_and_esp_stays_native() {
    let pair = at(&[A], &[B]);
    for end in [&pair.a, &pair.b] {
        let path = end.sas.values().next().unwrap().path;
        assert_eq!((path.local.port(), path.remote.port()), (4500, 4500));
        assert_eq!(path.encapsulation, Encapsulation::Esp);
    }
}

#[test]
fn the_initiator_moves_and_takes_its_sas_along() {
    let mut pair = at(&[A], &[B]);
    let now = pair.now;
    pair.a.readdress(now, &[A2]);
    pair.settle();
    assert_between(&pair, A2, B);
    // Both know of each other by IKE as well.
    pair.run(Duration::from_secs(120));
    assert_between(&pair, A2, B);
    assert!(
        pair.a
            .notices
            .iter()
            .any(|n| matches!(n, Notice::Moved { .. }))
    );
    assert!(
        pair.b
            .notices
            .iter()
            .any(|n| matches!(n, Notice::PeerMoved { .. }))
    );
}

#[test]
fn esp_follows_only_once_the_peer_has_shown_that_it_is_there() {
    let mut pair = at(&[A], &[B]);
    let now = pair.now;
    pair.a.readdress(now, &[A2]);
    pair.flush();
    // B hears of it, but what it sends to the new address is lost.
    pair.unreachable = vec![A2.parse().unwrap()];
    pair.run(Duration::from_millis(500));
    let old: IpAddr = A.parse().unwrap();
    assert_eq!(paths(&pair)[1].1, old);
    pair.unreachable.clear();
    pair.run(Duration::from_secs(10));
    assert_between(&pair, A2, B);
}

#[test]
fn it_moves_again_before_the_first_move_is_done() {
    let mut pair = at(&[A], &[B]);
    for step in 0..40 {
        let now = pair.now;
        let address = if step % 2 == 0 { A2 } else { A };
        pair.a.readdress(now, &[address]);
        pair.run(Duration::from_millis(step * 3));
    }
    pair.run(Duration::from_secs(20));
    assert_between(&pair, A, B);
}

#[test]
fn the_responder_moves_and_the_initiator_follows() {
    let mut pair = at(&[A], &[B]);
    let now = pair.now;
    pair.b.readdress(now, &[B2]);
    pair.settle();
    assert_between(&pair, A, B2);
}

#[test]
fn an_unreachable_peer_is_looked_for_at_its_other_address() {
    let mut pair = at(&[A], &[B, B2]);
    pair.unreachable = vec![B.parse().unwrap()];
    pair.run(Duration::from_secs(60));
    assert_between(&pair, A, B2);
    // And back.
    pair.unreachable = vec![B2.parse().unwrap()];
    pair.run(Duration::from_secs(60));
    assert_between(&pair, A, B);
    pair.unreachable.push(B.parse().unwrap());
    pair.run(Duration::from_secs(300));
    let down = |n: &Notice| {
        matches!(
            n,
            Notice::Down {
                reason: DownReason::DeadPeer,
                ..
            }
        )
    };
    assert!(pair.a.notices.iter().any(down), "{:?}", pair.a.notices);
}

#[test]
fn a_change_of_family_goes_to_the_peers_address_of_that_family() {
    let mut pair = at(&[A, A6], &[B, B6]);
    let now = pair.now;
    pair.a.readdress(now, &[A6]);
    pair.settle();
    assert_between(&pair, A6, B6);
}

#[test]
fn a_move_behind_a_nat_puts_esp_in_udp_and_a_move_out_of_it_ends_that() {
    let mut pair = at(&[A], &[B]);
    let now = pair.now;
    pair.nat = Some(Translator::default());
    pair.a.readdress(now, &[A2]);
    pair.settle();
    for end in [&pair.a, &pair.b] {
        let path = end.sas.values().next().unwrap().path;
        assert_eq!(path.encapsulation, Encapsulation::Udp);
    }
    assert_eq!(paths(&pair)[1].1, NAT.parse::<IpAddr>().unwrap());
    let kept = pair.a.keepalives;
    pair.run(Duration::from_secs(25));
    assert!(pair.a.keepalives > kept, "keepalives from behind the NAT");

    pair.nat = None;
    let now = pair.now;
    pair.a.readdress(now, &[A]);
    pair.settle();
    assert_between(&pair, A, B);
    let path = pair.b.sas.values().next().unwrap().path;
    assert_eq!(path.encapsulation, Encapsulation::Esp);
}

#[test]
fn a_nat_that_forgets_is_noticed_by_liveness_checks() {
    let configs = mobile();
    let mut pair = {
        let (mut a, b) = configs;
        a.start = crate::config::StartAction::None;
        let mut pair = Pair::new(a, b);
        pair.nat = Some(Translator::default());
        let now = pair.now;
        pair.a.readdress(now, &[A]);
        pair.a
            .endpoint
            .set_source(B.parse().unwrap(), Some(A.parse().unwrap()));
        pair.a.endpoint.initiate(now, "site").unwrap();
        pair.run(Duration::from_secs(60));
        pair.assert_connected();
        pair
    };
    let port = |pair: &Pair| pair.b.sas.values().next().unwrap().path.remote.port();
    let before = port(&pair);
    pair.nat.as_mut().unwrap().restart();
    pair.run(Duration::from_secs(60));
    assert_ne!(port(&pair), before);
    pair.assert_connected();
    assert_eq!(pair.a.established(), 1);
}

#[test]
fn rekeys_and_processes_that_end_keep_it_mobile() {
    let (mut a, mut b) = mobile();
    for config in [&mut a, &mut b] {
        config.ike_lifetime.soft = Duration::from_secs(900);
        config.ike_lifetime.jitter = Duration::from_secs(300);
        config.child_lifetime.soft = Duration::from_secs(700);
        config.child_lifetime.jitter = Duration::from_secs(300);
    }
    let mut pair = with((a, b), &[A], &[B, B2]);
    pair.run(Duration::from_secs(3600));
    let now = pair.now;
    let rekeyed = pair.a.established();
    assert!(rekeyed > 3);
    pair.a.readdress(now, &[A2]);
    pair.settle();
    assert_eq!(paths(&pair)[1].1, A2.parse::<IpAddr>().unwrap());

    for of_a in [true, false] {
        let now = pair.now;
        let end = if of_a { &mut pair.a } else { &mut pair.b };
        end.kill(now, Duration::from_secs(1));
        pair.settle();
        let now = pair.now;
        pair.a.readdress(now, &[A2]);
        pair.b.readdress(now, &[B, B2]);
        pair.assert_connected();
        assert!(pair.a.refused.is_empty(), "{:?}", pair.a.refused);
        assert!(pair.b.refused.is_empty(), "{:?}", pair.b.refused);
    }
    // B2 is remembered.
    pair.unreachable = vec![B.parse().unwrap()];
    pair.run(Duration::from_secs(60));
    assert_eq!(paths(&pair)[0].1, B2.parse::<IpAddr>().unwrap());
}

#[test]
fn without_agreement_nobody_moves() {
    for by_a in [true, false] {
        let (mut a, mut b) = mobile();
        if by_a { &mut a } else { &mut b }.mobike = false;
        let mut pair = with((a, b), &[A], &[B]);
        pair.a
            .endpoint
            .set_addresses(pair.now, vec![A2.parse().unwrap()], |_| A2.parse().ok());
        pair.settle();
        assert_between(&pair, A, B);
    }
}

#[test]
fn moves_under_loss_end_with_the_same_sas() {
    for seed in 0..40 {
        let (mut a, b) = mobile();
        a.start = crate::config::StartAction::None;
        let mut pair = Pair::seeded(seed, crate::EndpointConfig::default(), a, b);
        let now = pair.now;
        pair.a.readdress(now, &[A]);
        pair.b.readdress(now, &[B]);
        pair.a
            .endpoint
            .set_source(B.parse().unwrap(), Some(A.parse().unwrap()));
        pair.a.endpoint.initiate(now, "site").unwrap();
        pair.settle();
        pair.assert_connected();
        pair.network.loss_percent = 30;
        pair.network.jitter = Duration::from_millis(30);
        for step in 0..6 {
            let now = pair.now;
            match step % 3 {
                0 => pair.a.readdress(now, &[A2]),
                1 => pair.b.readdress(now, &[if step == 1 { B2 } else { B }]),
                _ => pair.a.readdress(now, &[A]),
            }
            pair.run(Duration::from_secs(20));
        }
        pair.network.loss_percent = 0;
        pair.run(Duration::from_secs(60));
        assert_between(&pair, A, B);
    }
}
