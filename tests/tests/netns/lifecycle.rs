//! Coming up, going down, dying and coming back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espada_tests::espada::Espada;
use espada_tests::scenario::{Gateways, NATIVE, child, ensure_nothing_clear};
use espada_tests::topology::{WAN_DEVICE, Wan, addr};
use espada_tests::{cmd, skip, skip_unless_possible, traffic};

/// Short waits, so that a dead peer is noticed within seconds.
const IMPATIENT: &str = "[ike]\nretransmit_first = \"200ms\"\nretransmit_max = \"500ms\"\n\
                         retransmit_tries = 4\nretry_first = \"500ms\"\nretry_max = \"1s\"\n";

#[test]
fn down_and_up_again() -> Result<()> {
    skip_unless_possible!("down_and_up_again");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    gateways.verify_traffic()?;
    for end in [&gateways.a, &gateways.b] {
        end.down()?;
        for side in [&gateways.a, &gateways.b] {
            side.wait_connection("the end of the tunnel", |connection| {
                connection["state"] == "down"
                    && connection["children"].as_array().is_some_and(Vec::is_empty)
            })?;
        }
        let packets = gateways.record(|| {
            let ping = traffic::ping(&gateways.line.client, addr::SERVER, 5, &[])?;
            ensure!(ping.received == 0, "{ping:?}");
            Ok(())
        })?;
        ensure_nothing_clear(&packets)?;
        gateways.up()?;
        gateways.verify_traffic()?;
    }
    Ok(())
}

#[test]
fn either_end_can_begin() -> Result<()> {
    skip_unless_possible!("either_end_can_begin");
    let gateways = Gateways::start(Wan::Switch, |_, _| {})?;
    gateways.b.up()?;
    let a = gateways.a.wait_established()?;
    ensure!(a["ike"]["role"] == "responder", "{a:#}");
    gateways.verify_traffic()
}

#[test]
fn starts_on_its_own() -> Result<()> {
    skip_unless_possible!("starts_on_its_own");
    let gateways = Gateways::start(Wan::Switch, |a, _| a.start = "start")?;
    gateways.a.wait_established()?;
    gateways.verify_traffic()
}

#[test]
fn starts_with_the_first_packet() -> Result<()> {
    skip_unless_possible!("starts_with_the_first_packet");
    let gateways = Gateways::start(Wan::Switch, |a, _| a.start = "trap")?;
    let before = gateways.a.connection()?;
    ensure!(before["state"] == "trap", "{before:#}");
    let packets = gateways.record(|| {
        // The packet that asks for the SA is answered too.
        let ping = traffic::ping(&gateways.line.client, addr::SERVER, 3, &[])?;
        ensure!(ping.is_complete(), "{ping:?}");
        gateways.a.wait_established()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)
}

#[test]
fn both_begin_at_once() -> Result<()> {
    skip_unless_possible!("both_begin_at_once");
    let gateways = Gateways::start(Wan::Switch, |a, b| {
        a.start = "start";
        b.start = "start";
    })?;
    gateways.a.wait_established()?;
    gateways.b.wait_established()?;
    cmd::wait_for("traffic", Duration::from_secs(10), || {
        Ok(traffic::ping(&gateways.line.client, addr::SERVER, 3, &[])?
            .is_complete()
            .then_some(()))
    })?;
    gateways.verify_traffic()
}

/// A crashed gateway comes back: its INITIAL_CONTACT replaces what the peer still has.
#[test]
fn crash_and_restart() -> Result<()> {
    skip_unless_possible!("crash_and_restart");
    let mut gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let old = gateways.b.connection()?;
    gateways.a.kill()?;
    let files = gateways.a.files().to_owned();
    gateways.a = Espada::start_from(&gateways.line.gw_a, &files, false)?;
    gateways.up()?;
    let new = gateways.b.wait_connection("one new IKE SA", |connection| {
        connection["ike"]["spi_initiator"] != old["ike"]["spi_initiator"]
            && connection["children"]
                .as_array()
                .is_some_and(|list| list.len() == 1)
    })?;
    ensure!(new["state"] == "established", "{new:#}");
    gateways.verify_traffic()
}

#[test]
fn dead_peer_is_noticed_and_called_again() -> Result<()> {
    skip_unless_possible!("dead_peer_is_noticed_and_called_again");
    let mut gateways = Gateways::established(Wan::Switch, |a, _| {
        a.extra = "dpd = { delay = \"1s\", action = \"restart\" }";
        a.global = IMPATIENT;
    })?;
    gateways.verify_traffic()?;
    gateways.b.kill()?;
    let files = gateways.b.files().to_owned();
    gateways
        .a
        .wait_connection("the dead peer being noticed", |connection| {
            connection["state"] != "established"
        })?;
    gateways.b = Espada::start_from(&gateways.line.gw_b, &files, false)?;
    gateways.a.wait_established()?;
    gateways.b.wait_established()?;
    gateways.verify_traffic()
}

/// A live peer that only sends IKE answers is not taken for dead, with traffic or without.
#[test]
fn live_peer_stays() -> Result<()> {
    skip_unless_possible!("live_peer_stays");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        for end in [a, b] {
            end.extra = "dpd = { delay = \"1s\", action = \"restart\" }";
            end.global = IMPATIENT;
        }
    })?;
    let before = gateways.a.connection()?;
    std::thread::sleep(Duration::from_secs(5));
    gateways.verify_traffic()?;
    let after = gateways.a.connection()?;
    ensure!(
        before["ike"]["spi_responder"] == after["ike"]["spi_responder"],
        "the IKE SA was replaced: {after:#}"
    );
    Ok(())
}

#[test]
fn sigterm_leaves_nothing_behind() -> Result<()> {
    skip_unless_possible!("sigterm_leaves_nothing_behind");
    // Native ESP, for which the front end is XDP.
    let mut gateways = Gateways::start(Wan::Switch, |a, _| a.extra = NATIVE)?;
    let gateway = &gateways.line.gw_a;
    let routes = gateway.routes()?;
    ensure!(
        routes
            .iter()
            .any(|route| route.starts_with(addr::LAN_B) && route.ends_with("espada0")),
        "no route into the tunnel: {routes:?}"
    );
    gateways.up()?;
    gateways.verify_traffic()?;

    let status = gateways.a.stop()?;
    ensure!(status.code() == Some(0), "{status}\n{}", gateways.a.log());
    let gateway = &gateways.line.gw_a;
    ensure!(
        gateway.device("espada0")?.is_none(),
        "espada0 is still there"
    );
    let routes = gateway.routes()?;
    ensure!(
        !routes
            .iter()
            .any(|route| route.starts_with(addr::LAN_B) || route.starts_with(addr::LAN_B6)),
        "routes are left: {routes:?}"
    );
    let device = gateway.device(WAN_DEVICE)?.context("no WAN device")?;
    ensure!(
        !device["xdp"].is_object(),
        "an XDP program is left: {device:#}"
    );
    let attached = gateway.run(&["bpftool", "net", "show", "dev", WAN_DEVICE])?;
    ensure!(
        !attached.contains("espada"),
        "programs are left:\n{attached}"
    );
    gateways
        .b
        .wait_connection("B hearing of it", |connection| {
            connection["state"] == "down"
        })?;
    Ok(())
}

#[test]
fn reload_keeps_the_tunnel() -> Result<()> {
    skip_unless_possible!("reload_keeps_the_tunnel");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let before = gateways.a.connection()?;
    let reload = gateways.a.output(&["reload"])?;
    ensure!(reload.status.success(), "{reload:?}");
    gateways.verify_traffic()?;
    let after = gateways.a.connection()?;
    ensure!(
        before["ike"]["spi_initiator"] == after["ike"]["spi_initiator"],
        "the IKE SA was replaced: {after:#}"
    );
    Ok(())
}

/// Both SAs are replaced when their lifetime (a minute is the shortest) comes to its end, and no
/// packet is lost over it.
#[test]
fn lifetimes_end_in_rekeying() -> Result<()> {
    skip_unless_possible!("lifetimes_end_in_rekeying");
    let gateways = Gateways::established(Wan::Switch, |a, _| {
        a.extra = "ike_lifetime = \"60s\"\nchild_lifetime = \"60s\"";
    })?;
    let old = gateways.a.connection()?;
    let spi = |connection: &serde_json::Value| child(connection)["inbound"]["spi"].clone();
    let deadline = Instant::now() + Duration::from_secs(75);
    loop {
        let ping = traffic::ping(
            &gateways.line.client,
            addr::SERVER,
            100,
            &["-i", "0.02", "-w", "5"],
        )?;
        ensure!(ping.is_complete(), "{ping:?}\n{}", gateways.a.log());
        let new = gateways.a.connection()?;
        if spi(&new) != spi(&old) && new["ike"]["spi_initiator"] != old["ike"]["spi_initiator"] {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing was rekeyed: {new:#}");
    }
    for gateway in [&gateways.a, &gateways.b] {
        gateway.wait_connection("the old pair's end", |connection| {
            connection["children"]
                .as_array()
                .is_some_and(|list| list.len() == 1)
        })?;
    }
    gateways.verify_traffic()
}

/// The workers go before other threads unless the configuration says otherwise, and nothing else of
/// the daemon does.
#[test]
fn workers_are_real_time_threads_unless_told_otherwise() -> Result<()> {
    let name = "workers_are_real_time_threads_unless_told_otherwise";
    skip_unless_possible!(name);
    for (setting, count, expected) in [
        ("worker_threads = 2", 2, "2"),
        ("worker_threads = 1\nrealtime = false", 1, "0"),
    ] {
        let gateways = Gateways::established(Wan::Switch, |a, _| {
            a.global = setting;
        })?;
        if gateways
            .a
            .log()
            .contains("share processors with other threads")
        {
            skip(
                name,
                "this root may not have real-time threads (CAP_SYS_NICE)",
            );
            return Ok(());
        }
        let threads = std::fs::read_dir(format!("/proc/{}/task", gateways.a.pid()))?;
        let mut workers = 0;
        for thread in threads {
            let text = std::fs::read_to_string(thread?.path().join("stat"))?;
            let (name, fields) = text.rsplit_once(") ").context("no name")?;
            // The scheduling policy is field 41 of the line; the name is the second.
            let policy = fields.split(' ').nth(41 - 3).context("no policy")?;
            let names = ["(espada-in-", "(espada-out-", "(espada-both-"];
            let worker = names.iter().any(|start| name.contains(start));
            workers += usize::from(worker);
            let wanted = if worker { expected } else { "0" };
            ensure!(policy == wanted, "{setting}: policy {policy} of {text}");
        }
        ensure!(workers == count, "{setting}: {workers} workers");
        gateways.verify_traffic()?;
    }
    Ok(())
}
