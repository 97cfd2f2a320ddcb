//! The harness itself, tested with strongSwan at both ends: what fails here is not Espada.

use anyhow::Result;
use espada_tests::peer::{Connection, Peer};
use espada_tests::process::WorkDir;
use espada_tests::strongswan::{self, Kind, StrongSwan};
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::{cannot_run, capture, skip, topology, traffic};

fn connection(local: &'static str, remote: &'static str) -> Connection<'static> {
    let a_side = local != addr::WAN_B;
    let (local_id, remote_id) = if a_side {
        ("a.example", "b.example")
    } else {
        ("b.example", "a.example")
    };
    let (local_ts, remote_ts) = if a_side {
        (addr::LAN_A, addr::LAN_B)
    } else {
        (addr::LAN_B, addr::LAN_A)
    };
    Connection {
        local,
        remote,
        local_id,
        remote_id,
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "aes256gcm16",
        local_ts,
        remote_ts,
        psk: "nine herons",
        pki: None,
        ike_extra: "",
        extra: "",
    }
}

fn tunnel_of_two_strongswans(wan: Wan) -> Result<()> {
    let line = Line::new(wan)?;
    let work = WorkDir::new()?;
    let peer = if wan == Wan::Nat { "%any" } else { addr::WAN_A };
    let _b = StrongSwan::start(
        &line.gw_b,
        &work,
        &connection(addr::WAN_B, peer),
        Kind::Libipsec,
        false,
    )?;
    let a = StrongSwan::start(
        &line.gw_a,
        &work,
        &connection(line.wan_a(), addr::WAN_B),
        Kind::Libipsec,
        false,
    )?;
    let capture = line.capture(&work, "")?;
    a.initiate()?;
    let ping = traffic::ping(&line.client, addr::SERVER, 10, &[])?;
    assert!(ping.is_complete(), "{ping:?}\n{}", a.log());
    traffic::tcp_exchange(&line.client, &line.server, addr::SERVER, 300_000)?;
    let packets = topology::finish(capture)?;
    assert!(
        packets
            .iter()
            .filter(|packet| packet.is_esp_in_udp())
            .count()
            >= 20
    );
    assert_eq!(
        capture::clear_packets(&packets),
        Vec::<&capture::Packet>::new()
    );
    assert!(!capture::contains(&packets, &traffic::payload_start()));
    Ok(())
}

#[test]
fn strongswan_to_strongswan() -> Result<()> {
    if let Some(reason) = cannot_run().or_else(strongswan::missing) {
        skip("strongswan_to_strongswan", &reason);
        return Ok(());
    }
    tunnel_of_two_strongswans(Wan::Switch)
}

#[test]
fn strongswan_behind_nat() -> Result<()> {
    if let Some(reason) = cannot_run().or_else(strongswan::missing) {
        skip("strongswan_behind_nat", &reason);
        return Ok(());
    }
    tunnel_of_two_strongswans(Wan::Nat)
}

#[test]
fn clear_text_is_seen_on_a_wan_without_tunnel() -> Result<()> {
    if let Some(reason) = cannot_run() {
        skip("clear_text_is_seen_on_a_wan_without_tunnel", &reason);
        return Ok(());
    }
    for wan in [Wan::Direct, Wan::Switch] {
        let line = Line::new(wan)?;
        let work = WorkDir::new()?;
        line.add_plain_routes()?;
        let capture = line.capture(&work, "")?;
        assert!(traffic::ping(&line.client, addr::SERVER, 5, &[])?.is_complete());
        traffic::tcp_exchange(&line.client, &line.server, addr::SERVER, 300_000)?;
        let packets = topology::finish(capture)?;
        assert!(capture::clear_packets(&packets).len() >= 10);
        assert!(capture::contains(&packets, &traffic::payload_start()));
        let rate = traffic::tcp_throughput(&line.client, &line.server, addr::SERVER, 1, &work)?;
        assert!(rate > 0.0, "{rate} Gbit/s");
        line.remove_plain_routes()?;
        assert_eq!(
            traffic::ping(&line.client, addr::SERVER, 1, &[])?.received,
            0
        );
    }
    Ok(())
}
