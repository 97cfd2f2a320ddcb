//! Gateways whose addresses change under traffic (RFC 4555).

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use espada_tests::scenario::{Gateways, NATIVE, child, ensure_nothing_clear};
use espada_tests::topology::{WAN_DEVICE, Wan, addr};
use espada_tests::{skip_unless_possible, traffic};

/// Where gateway A moves to.
const NEW_A: &str = "198.19.0.1";
/// Where gateway B moves to.
const NEW_B: &str = "198.19.0.2";

/// Gives a gateway another WAN address in place of the one it has.
fn readdress(gateways: &Gateways, of_a: bool, from: &str, to: &str, peer: &str) -> Result<()> {
    let line = &gateways.line;
    let (gateway, other) = match of_a {
        true => (&line.gw_a, &line.gw_b),
        false => (&line.gw_b, &line.gw_a),
    };
    // The other end of the link can reach it; nothing but the address itself is new to it.
    other.ip(&["route", "replace", to, "dev", WAN_DEVICE])?;
    gateway.ip(&["address", "add", &format!("{to}/32"), "dev", WAN_DEVICE])?;
    gateway.ip(&["address", "delete", from, "dev", WAN_DEVICE])?;
    gateway.ip(&["route", "replace", peer, "dev", WAN_DEVICE, "src", to])?;
    Ok(())
}

fn moves_under_a_ping(extra: &'static str, of_a: bool) -> Result<()> {
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        (a.local, b.local) = ("%default", "%default");
        (a.extra, b.extra) = (extra, extra);
    })?;
    let line = &gateways.line;
    let before = gateways.a.connection()?;
    let packets = gateways.record(|| {
        std::thread::scope(|scope| {
            let pinging = scope.spawn(|| {
                let options = ["-i", "0.02", "-w", "12"];
                traffic::ping(&line.client, addr::SERVER, 400, &options)
            });
            std::thread::sleep(Duration::from_secs(2));
            match of_a {
                true => readdress(&gateways, true, "198.18.0.1/30", NEW_A, addr::WAN_B)?,
                false => readdress(&gateways, false, "198.18.0.2/30", NEW_B, addr::WAN_A)?,
            }
            let ping = pinging.join().map_err(|_| anyhow!("panicked"))??;
            ensure!(
                ping.received >= 300,
                "{ping:?}\n{}\n{}",
                gateways.a.log(),
                gateways.b.log()
            );
            Ok(())
        })
    })?;
    ensure_nothing_clear(&packets)?;
    let (mover, follower, new) = match of_a {
        true => (&gateways.a, &gateways.b, NEW_A),
        false => (&gateways.b, &gateways.a, NEW_B),
    };
    for (end, side) in [(mover, "local"), (follower, "remote")] {
        let connection = end.connection()?;
        let address = connection["ike"][side].as_str().unwrap_or_default();
        ensure!(address.starts_with(new), "{side}: {connection:#}");
    }
    // The SAs are those of before.
    let after = gateways.a.connection()?;
    for spi in ["spi_initiator", "spi_responder"] {
        ensure!(before["ike"][spi] == after["ike"][spi], "{after:#}");
    }
    for half in ["inbound", "outbound"] {
        ensure!(child(&before)[half]["spi"] == child(&after)[half]["spi"]);
    }
    gateways.verify_traffic()
}

#[test]
fn a_moves_with_native_esp() -> Result<()> {
    skip_unless_possible!("a_moves_with_native_esp");
    moves_under_a_ping(NATIVE, true)
}

#[test]
fn a_moves_with_esp_in_udp() -> Result<()> {
    skip_unless_possible!("a_moves_with_esp_in_udp");
    moves_under_a_ping("encapsulation = \"udp\"", true)
}

#[test]
fn b_moves_and_a_follows() -> Result<()> {
    skip_unless_possible!("b_moves_and_a_follows");
    moves_under_a_ping(NATIVE, false)
}
