//! Transport mode: what both want, what only one wants, and hosts behind a NAT.

use std::time::Duration;

use espada_common::sa::{Encapsulation, Event, Mode, TrafficSelector};

use super::pair::*;
use crate::config::{RemoteAddress, RemoteIdentity, StartAction};
use crate::{ConnectionConfig, DownReason, Notice, RefusalKind, RefusedBy, selector};

fn host(address: &str) -> TrafficSelector {
    TrafficSelector::host(address.parse().unwrap())
}

fn transport(mut config: ConnectionConfig) -> ConnectionConfig {
    config.mode = Mode::Transport;
    config.local_ts.clear();
    config.remote_ts.clear();
    config
}

/// Rekeys child and IKE SAs often.
fn short_lived(mut config: ConnectionConfig) -> ConnectionConfig {
    config.child_lifetime.soft = Duration::from_secs(100);
    config.child_lifetime.jitter = Duration::from_secs(10);
    config.ike_lifetime.soft = Duration::from_secs(130);
    config.ike_lifetime.jitter = Duration::from_secs(10);
    config
}

fn assert_transport(end: &End, local: &str, remote: &str) {
    assert_eq!(end.sas.len(), 1, "{:#?}", end.notices);
    let sa = end.sas.values().next().unwrap();
    assert_eq!(sa.mode, Mode::Transport);
    assert_eq!(sa.local_ts, [host(local)]);
    assert_eq!(sa.remote_ts, [host(remote)]);
}

#[test]
fn both_want_it_and_rekeys_keep_it() {
    for by_a in [true, false] {
        let (mut a, mut b) = (transport(initiator()), transport(responder()));
        let short = if by_a { &mut a } else { &mut b };
        *short = short_lived(short.clone());
        let mut pair = Pair::new(a, b);
        pair.settle();
        pair.assert_connected();
        let policy = &pair.a.policies["site"];
        assert_eq!(policy.mode, Mode::Transport);
        assert_eq!(policy.local_ts, [host(A)]);
        assert_eq!(policy.remote_ts, [host(B)]);
        let up = pair
            .a
            .notices
            .iter()
            .find(|n| matches!(n, Notice::ChildUp { .. }));
        assert!(up.unwrap().to_string().contains(", transport mode, SPIs"));
        let first = *pair.a.sas.keys().next().unwrap();
        pair.run(Duration::from_secs(360));
        pair.assert_connected();
        assert_ne!(*pair.a.sas.keys().next().unwrap(), first);
        assert!(pair.a.established() >= 3);
        for (end, local, remote) in [(&pair.a, A, B), (&pair.b, B, A)] {
            assert_transport(end, local, remote);
            assert!(end.refusals().is_empty());
            let status = end.endpoint.status(pair.now);
            let child = &status[0].ike_sas.last().unwrap().children[0];
            assert_eq!(child.mode, Mode::Transport);
        }
    }
}

#[test]
fn ports_narrow_it_and_addresses_beside_the_hosts_do_not_count() {
    let (mut a, mut b) = (transport(initiator()), transport(responder()));
    a.remote_ts = vec![selector::parse(&format!("{B}[tcp/443]")).unwrap()];
    b.local_ts = vec![
        selector::parse("0.0.0.0/0[tcp]").unwrap(),
        selector::parse("10.0.0.0/8").unwrap(),
    ];
    let mut pair = Pair::new(a, b);
    pair.settle();
    pair.assert_connected();
    let sa = pair.a.sas.values().next().unwrap();
    assert_eq!(sa.local_ts, [host(A)]);
    assert_eq!(sa.remote_ts, [host(B).with_ports(6, 443, 443)]);
    assert_eq!(
        pair.b.policies["site"].local_ts,
        [host(B).with_ports(6, 0, u16::MAX)]
    );
    let mut v6 = transport(initiator());
    v6.local_ts = vec![selector::parse("::/0[udp/53]").unwrap()];
    let (us, them) = (
        "2001:db8::1".parse().unwrap(),
        "2001:db8::2".parse().unwrap(),
    );
    let sides = v6.sides(us, them);
    assert_eq!(
        sides.local,
        [TrafficSelector::host(us).with_ports(17, 53, 53)]
    );
    assert_eq!(sides.remote, [TrafficSelector::host(them)]);
}

#[test]
fn a_peer_that_declines_gets_the_child_sa_deleted() {
    let mut b = responder();
    b.local_ts = vec![host(B)];
    b.remote_ts = vec![host(A)];
    let mut a = transport(initiator());
    a.start = StartAction::None;
    let mut pair = Pair::new(a, b);
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
    let refusals = pair.a.refusals();
    let [refusal] = refusals[..] else {
        panic!("{refusals:#?}")
    };
    assert_eq!(
        (refusal.kind, refusal.by),
        (RefusalKind::TransportMode, RefusedBy::Peer)
    );
    let text = refusal.to_string();
    assert!(
        text.starts_with("USE_TRANSPORT_MODE: 198.51.100.2:500 does not agree"),
        "{text}"
    );
    assert!(
        text.contains(
            "site.toml:11: mode = …; set the peer to transport mode, or mode = \"tunnel\" here"
        ),
        "{text}"
    );
    let refusals = pair.b.refusals();
    let [refusal] = refusals[..] else {
        panic!("{refusals:#?}")
    };
    assert_eq!(
        (refusal.kind, refusal.by),
        (RefusalKind::TransportMode, RefusedBy::Us)
    );
    assert!(
        refusal.to_string().contains("unless the peer deletes it"),
        "{refusal}"
    );
    let down = pair.b.notices.iter().any(|notice| {
        matches!(
            notice,
            Notice::Down {
                reason: DownReason::PeerDeleted,
                ..
            }
        )
    });
    assert!(down);
}

#[test]
fn selectors_of_hosts_where_networks_are_configured_are_told_from_the_mode() {
    let mut a = transport(initiator());
    a.start = StartAction::None;
    let mut pair = Pair::new(a, responder());
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
    let refusals = pair.b.refusals();
    assert_eq!(refusals[0].kind, RefusalKind::TransportMode);
    let text = refusals[0].to_string();
    assert!(
        text.contains("the peer asks for transport mode") && text.contains("10.2.0.0/16"),
        "{text}"
    );
    assert!(text.contains("mode = \"transport\" would meet"), "{text}");
    assert_eq!(pair.a.refusals()[0].kind, RefusalKind::TrafficSelectors);
}

#[test]
fn a_peer_that_wants_tunnel_mode_is_refused() {
    let mut a = initiator();
    a.start = StartAction::None;
    let mut pair = Pair::new(a, transport(responder()));
    pair.a.endpoint.initiate(pair.now, "site").unwrap();
    pair.run(Duration::from_secs(60));
    pair.assert_nothing_left();
    let refusals = pair.b.refusals();
    assert_eq!(
        (refusals[0].kind, refusals[0].by),
        (RefusalKind::TransportMode, RefusedBy::Us)
    );
    assert!(refusals[0].to_string().contains("wants tunnel mode"));
    assert_eq!(pair.a.refusals()[0].kind, RefusalKind::ChildProposal);
}

#[test]
fn of_several_connections_with_a_peer_the_mode_tells_which_is_meant() {
    let everything = selector::parse("0.0.0.0/0").unwrap();
    let mut tunnel = responder();
    tunnel.name = "tunnel".into();
    tunnel.local_ts = vec![everything];
    tunnel.remote_ts = vec![everything];
    for transport_first in [true, false] {
        let mut pair = Pair::new(transport(initiator()), responder());
        let mut list = vec![tunnel.clone(), transport(responder())];
        if transport_first {
            list.reverse();
        }
        pair.b.endpoint.set_connections(pair.now, list);
        pair.settle();
        assert_transport(&pair.a, A, B);
        assert_transport(&pair.b, B, A);
        assert!(pair.b.refusals().is_empty());
    }
}

#[test]
fn behind_a_nat_each_end_has_the_addresses_that_it_sees() {
    for by_a in [true, false] {
        let mut b = transport(responder());
        b.remote_address = RemoteAddress::Any;
        b.remote_id = RemoteIdentity::Is(A.parse().unwrap());
        let mut a = transport(initiator());
        let short = if by_a { &mut a } else { &mut b };
        *short = short_lived(short.clone());
        let mut pair = Pair::new(a, b);
        pair.nat = Some(Translator::default());
        assert!(pair.run_until(Duration::from_secs(5), |pair| pair.a.sas.len() == 1));
        // Whoever may call from anywhere has no policy of its own.
        assert!(pair.b.policies["site"].remote_ts.is_empty());
        for _ in 0..2 {
            assert_transport(&pair.a, A, B);
            assert_transport(&pair.b, B, NAT);
            let sa = pair.b.sas.values().next().unwrap();
            assert_eq!(sa.path.encapsulation, Encapsulation::Udp);
            pair.run(Duration::from_secs(360));
        }
        assert!(pair.a.established() >= 3, "rekeyed");
        // The NAT gets another address: selectors of the old one are of no use any more.
        let (id, remote) = (*pair.b.sas.keys().next().unwrap(), "203.0.113.77:31000");
        let remote = remote.parse().unwrap();
        pair.b
            .endpoint
            .handle_event(pair.now, &Event::NatMoved { id, remote });
        let status = pair.b.endpoint.status(pair.now);
        let child = &status[0].ike_sas.last().unwrap().children[0];
        assert_eq!(child.rekey_in, Some(Duration::ZERO));
        assert!(pair.a.refusals().is_empty() && pair.b.refusals().is_empty());
    }
}
