//! Virtual addresses from and for strongSwan, and ends that move.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espada_tests::peer::Peer as _;
use espada_tests::topology::{WAN_DEVICE, Wan, addr};
use espada_tests::{cmd, traffic};
use serde_json::json;

use super::agree::libipsec;
use super::{Pair, start};

/// Espada asks, strongSwan has the pool.
#[test]
fn virtual_address_from_strongswan() -> Result<()> {
    libipsec("virtual_address_from_strongswan", || {
        let pair = start(Wan::Switch, |ours, theirs| {
            ours.local_subnets = &[];
            ours.extra = "vips = \"0.0.0.0\"";
            theirs.remote_ts = "dynamic";
        })?;
        pair.strongswan.configure(
            "connections { net { pools = clients } }\n\
             pools { clients { addrs = 10.98.0.0/24\n dns = 10.61.2.53 } }",
        )?;
        pair.line.server.route("10.98.0.0/24", addr::GW_B_LAN)?;
        pair.espada.up().with_context(|| pair.logs())?;
        let connection = pair.espada.wait_established()?;
        let lease = &connection["ike"]["lease"];
        ensure!(lease["addresses"] == json!(["10.98.0.1"]), "{connection:#}");
        ensure!(lease["dns"] == json!(["10.61.2.53"]), "{connection:#}");
        let ping = traffic::ping(&pair.line.gw_a, addr::SERVER, 5, &[])?;
        ensure!(ping.is_complete(), "{ping:?}\n{}", pair.logs());
        traffic::tcp_exchange(&pair.line.gw_a, &pair.line.server, addr::SERVER, 300_000)?;
        // A rekey keeps it.
        pair.strongswan.rekey_child()?;
        std::thread::sleep(Duration::from_secs(1));
        let ping = traffic::ping(&pair.line.gw_a, addr::SERVER, 5, &[])?;
        ensure!(ping.is_complete(), "{ping:?}\n{}", pair.logs());
        pair.espada.down().map(drop)
    })
}

/// strongSwan asks, Espada has the pool.
#[test]
fn virtual_address_for_strongswan() -> Result<()> {
    libipsec("virtual_address_for_strongswan", || {
        let pair = start(Wan::Switch, |ours, theirs| {
            ours.remote_subnets = &[];
            ours.extra = "pools = \"clients\"";
            ours.global = "[pool.clients]\naddrs = \"10.99.0.0/24\"\ndns = \"10.61.1.53\"";
            theirs.local_ts = "dynamic";
        })?;
        pair.strongswan
            .configure("connections { net { vips = 0.0.0.0 } }")?;
        pair.line.client.route("10.99.0.0/24", addr::GW_A_LAN)?;
        for _ in 0..2 {
            pair.strongswan.initiate().with_context(|| pair.logs())?;
            let connection = pair.espada.wait_established()?;
            let lease = &connection["ike"]["lease"];
            ensure!(lease["addresses"] == json!(["10.99.0.1"]), "{connection:#}");
            let log = pair.strongswan.log();
            ensure!(log.contains("installing new virtual IP 10.99.0.1"), "{log}");
            ensure!(log.contains("10.61.1.53") || log.contains("DNS"), "{log}");
            let ping = traffic::ping(&pair.line.gw_b, addr::CLIENT, 5, &["-I", "10.99.0.1"])?;
            ensure!(ping.is_complete(), "{ping:?}\n{}", pair.logs());
            pair.strongswan.terminate()?;
        }
        Ok(())
    })
}

/// Gives gateway A another address in place of its own, which strongSwan can reach.
fn readdress_a(pair: &Pair) -> Result<()> {
    let line = &pair.line;
    let new = "198.19.0.1";
    line.gw_b
        .ip(&["route", "replace", new, "dev", WAN_DEVICE])?;
    line.gw_a
        .ip(&["address", "add", "198.19.0.1/32", "dev", WAN_DEVICE])?;
    line.gw_a
        .ip(&["address", "delete", "198.18.0.1/30", "dev", WAN_DEVICE])?;
    line.gw_a.ip(&[
        "route",
        "replace",
        addr::WAN_B,
        "dev",
        WAN_DEVICE,
        "src",
        new,
    ])?;
    Ok(())
}

/// Traffic passes again, over the IKE SA of before.
fn goes_on(pair: &Pair, before: &serde_json::Value) -> Result<()> {
    cmd::wait_for("traffic after the move", Duration::from_secs(20), || {
        let ping = traffic::ping(&pair.line.client, addr::SERVER, 2, &["-W", "1"])?;
        Ok(ping.is_complete().then_some(()))
    })
    .with_context(|| pair.logs())?;
    let after = pair.espada.connection()?;
    let spi = "spi_initiator";
    ensure!(
        before["ike"][spi] == after["ike"][spi],
        "{after:#}\n{}",
        pair.logs()
    );
    Ok(())
}

#[test]
fn espada_moves_as_initiator() -> Result<()> {
    libipsec("espada_moves_as_initiator", || {
        let pair = start(Wan::Switch, |ours, _| ours.local = "%default")?;
        pair.espada.up().with_context(|| pair.logs())?;
        let before = pair.espada.wait_established()?;
        readdress_a(&pair)?;
        pair.strongswan.wait_log("N(UPD_SA_ADDR)")?;
        goes_on(&pair, &before)?;
        let after = pair.espada.connection()?;
        let local = after["ike"]["local"].as_str().unwrap_or_default();
        ensure!(local.starts_with("198.19.0.1:"), "{after:#}");
        let sas = pair.strongswan.sas()?;
        ensure!(sas.contains("198.19.0.1"), "{sas}");
        Ok(())
    })
}

#[test]
fn espada_moves_as_responder() -> Result<()> {
    libipsec("espada_moves_as_responder", || {
        let pair = start(Wan::Switch, |ours, _| ours.local = "%default")?;
        pair.strongswan.initiate().with_context(|| pair.logs())?;
        let before = pair.espada.wait_established()?;
        readdress_a(&pair)?;
        goes_on(&pair, &before)?;
        let sas = pair.strongswan.sas()?;
        ensure!(sas.contains("198.19.0.1"), "{sas}");
        Ok(())
    })
}

/// strongSwan gets another address; Espada hears of it as responder and as initiator.
#[test]
fn strongswan_moves() -> Result<()> {
    libipsec("strongswan_moves", || {
        for begins_espada in [false, true] {
            let pair = start(Wan::Switch, |_, theirs| theirs.local = "%any")?;
            match begins_espada {
                true => pair.espada.up().map(drop),
                false => pair.strongswan.initiate(),
            }
            .with_context(|| pair.logs())?;
            let before = pair.espada.wait_established()?;
            let line = &pair.line;
            let new = "198.19.0.2";
            line.gw_a
                .ip(&["route", "replace", new, "dev", WAN_DEVICE])?;
            line.gw_b
                .ip(&["address", "add", "198.19.0.2/32", "dev", WAN_DEVICE])?;
            line.gw_b
                .ip(&["address", "delete", "198.18.0.2/30", "dev", WAN_DEVICE])?;
            line.gw_b.ip(&[
                "route",
                "replace",
                addr::WAN_A,
                "dev",
                WAN_DEVICE,
                "src",
                new,
            ])?;
            goes_on(&pair, &before).with_context(|| format!("Espada began: {begins_espada}"))?;
            let after = pair.espada.connection()?;
            let remote = after["ike"]["remote"].as_str().unwrap_or_default();
            ensure!(remote.starts_with("198.19.0.2:"), "{after:#}");
        }
        Ok(())
    })
}
