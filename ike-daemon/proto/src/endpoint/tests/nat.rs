//! NATs, real and pretended.

use std::time::Duration;

use espada_common::sa::{Encapsulation, Event};

use super::pair::*;
use crate::Notice;
use crate::config::{EncapsulationPolicy, RemoteAddress, RemoteIdentity};

/// B as it sees A behind the NAT: from anywhere, by its identity.
fn responder_for_natted() -> crate::ConnectionConfig {
    let mut b = responder();
    b.remote_address = RemoteAddress::Any;
    b.remote_id = RemoteIdentity::Is(A.parse().unwrap());
    b
}

fn natted() -> Pair {
    let mut pair = Pair::new(initiator(), responder_for_natted());
    pair.nat = Some(Translator::default());
    pair.settle();
    pair.assert_connected();
    pair
}

#[test]
fn behind_a_nat_everything_moves_to_4500() {
    let pair = natted();
    let a = pair.a.sas.values().next().unwrap();
    let b = pair.b.sas.values().next().unwrap();
    assert_eq!(a.path.encapsulation, Encapsulation::Udp);
    assert_eq!((a.path.local.port(), a.path.remote.port()), (4500, 4500));
    assert_eq!(b.path.local.port(), 4500);
    assert_eq!(
        (
            b.path.remote.ip().to_string().as_str(),
            b.path.remote.port()
        ),
        (NAT, 20002)
    );
    assert!(pair.a.notices.iter().any(|n| matches!(
        n,
        Notice::NatDetected {
            local: true,
            remote: false,
            ..
        }
    )));
    assert!(pair.b.notices.iter().any(|n| matches!(
        n,
        Notice::NatDetected {
            local: false,
            remote: true,
            ..
        }
    )));
}

#[test]
fn only_the_end_behind_the_nat_sends_keepalives() {
    let mut pair = natted();
    pair.run(Duration::from_secs(25));
    assert_eq!((pair.a.keepalives, pair.b.keepalives), (1, 0));
}

#[test]
fn a_new_mapping_is_followed_on_ike_and_on_esp() {
    let mut pair = natted();
    pair.nat.as_mut().unwrap().restart();
    pair.run(Duration::from_secs(40));
    let port = |pair: &Pair| pair.b.sas.values().next().unwrap().path.remote.port();
    assert_eq!(
        port(&pair),
        20003,
        "the liveness check came from the new port"
    );
    pair.assert_connected();

    let id = *pair.b.sas.keys().next().unwrap();
    let remote = format!("{NAT}:31000").parse().unwrap();
    pair.b
        .endpoint
        .handle_event(pair.now, &Event::NatMoved { id, remote });
    pair.flush();
    assert_eq!(port(&pair), 31000);
}

#[test]
fn a_peer_that_is_not_behind_a_nat_is_not_followed() {
    let mut pair = Pair::new(initiator(), responder());
    pair.settle();
    let id = *pair.b.sas.keys().next().unwrap();
    let remote = format!("{NAT}:4500").parse().unwrap();
    pair.b
        .endpoint
        .handle_event(pair.now, &Event::NatMoved { id, remote });
    pair.flush();
    assert_eq!(pair.b.sas[&id].path.remote.ip().to_string(), A);
}

#[test]
fn encapsulation_can_be_forced_by_either_end() {
    for forced_by_a in [true, false] {
        let (mut a, mut b) = (initiator(), responder());
        if forced_by_a { &mut a } else { &mut b }.encapsulation = EncapsulationPolicy::Udp;
        let mut pair = Pair::new(a, b);
        pair.settle();
        pair.assert_connected();
        for end in [&pair.a, &pair.b] {
            let path = end.sas.values().next().unwrap().path;
            assert_eq!(path.encapsulation, Encapsulation::Udp);
            assert_eq!((path.local.port(), path.remote.port()), (4500, 4500));
        }
    }
}
