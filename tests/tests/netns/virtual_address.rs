//! A client's virtual addresses: on the tunnel interface, used, and gone with the tunnel.

use anyhow::{Result, ensure};
use espada_tests::scenario::{Gateways, NATIVE, ensure_nothing_clear};
use espada_tests::topology::{Wan, addr};
use espada_tests::{skip_unless_possible, traffic};
use serde_json::json;

const POOLS: &str = "[pool.clients]\naddrs = \"10.99.0.0/24\"\ndns = [\"10.61.2.53\"]\n\
                     [pool.clients6]\naddrs = \"fd99::10-fd99::20\"\n";

/// Gateway A as a client without networks of its own, gateway B with pools.
fn client_and_gateway(wan: Wan, engine: &'static str) -> Result<Gateways> {
    let pools: &'static str = format!("{engine}\n{POOLS}").leak();
    let gateways = Gateways::start(wan, |a, b| {
        a.local_subnets = &[];
        a.extra = "vips = [\"0.0.0.0\", \"::\"]\nencapsulation = \"esp\"";
        a.global = engine;
        b.remote_subnets = &[];
        b.extra = "pools = [\"clients\", \"clients6\"]\nencapsulation = \"esp\"";
        b.global = pools;
    })?;
    let server = &gateways.line.server;
    server.route("10.99.0.0/24", addr::GW_B_LAN)?;
    server.route("fd99::/64", addr::GW_B_LAN6)?;
    Ok(gateways)
}

fn on_the_interface(gateways: &Gateways) -> Result<Vec<String>> {
    let links = gateways.line.gw_a.ip_json(&["address", "show"])?;
    let links = links.as_array().into_iter().flatten();
    let all = links.flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default());
    let words = all.filter_map(|address| address["local"].as_str().map(str::to_owned));
    Ok(words
        .filter(|address| address.starts_with("10.99.") || address.starts_with("fd99:"))
        .collect())
}

fn come_and_go(wan: Wan, engine: &'static str) -> Result<()> {
    let gateways = client_and_gateway(wan, engine)?;
    let line = &gateways.line;
    let resolv = gateways.a.files().join("run/resolv/site.conf");
    for _ in 0..2 {
        let packets = gateways.record(|| {
            gateways.up()?;
            for server in [addr::SERVER, addr::SERVER6] {
                let ping = traffic::ping(&line.gw_a, server, 10, &[])?;
                ensure!(ping.is_complete(), "{server}: {ping:?}");
                traffic::tcp_exchange(&line.gw_a, &line.server, server, 300_000)?;
            }
            for client in ["10.99.0.1", "fd99::10"] {
                let ping = traffic::ping(&line.server, client, 5, &[])?;
                ensure!(ping.is_complete(), "{client}: {ping:?}");
            }
            Ok(())
        })?;
        ensure_nothing_clear(&packets)?;
        ensure!(on_the_interface(&gateways)? == ["10.99.0.1", "fd99::10"]);
        let expected = json!(["10.99.0.1", "fd99::10"]);
        for (end, of) in [(&gateways.a, "us"), (&gateways.b, "peer")] {
            let connection = end.connection()?;
            let lease = &connection["ike"]["lease"];
            ensure!(
                lease["of"] == of && lease["addresses"] == expected,
                "{connection:#}"
            );
            ensure!(lease["dns"] == json!(["10.61.2.53"]), "{connection:#}");
            let text = end.status_text()?;
            ensure!(text.contains("10.99.0.1, fd99::10"), "{text}");
        }
        let servers = std::fs::read_to_string(&resolv)?;
        ensure!(servers.contains("nameserver 10.61.2.53\n"), "{servers}");

        gateways.a.down()?;
        ensure!(on_the_interface(&gateways)?.is_empty());
        ensure!(!resolv.exists());
        // What is bound for the peer's networks still does not leave in clear.
        let packets = gateways.record(|| {
            traffic::ping(&line.gw_a, addr::SERVER, 2, &["-W", "1"])?;
            Ok(())
        })?;
        ensure_nothing_clear(&packets)?;
    }
    Ok(())
}

#[test]
fn virtual_addresses_come_and_go_with_the_tunnel() -> Result<()> {
    skip_unless_possible!("virtual_addresses_come_and_go_with_the_tunnel");
    come_and_go(Wan::Switch, "engine = \"userspace\"")
}

#[test]
fn a_client_is_refused_and_told_why() -> Result<()> {
    skip_unless_possible!("a_client_is_refused_and_told_why");
    let gateways = Gateways::start(Wan::Switch, |a, b| {
        a.extra = NATIVE;
        b.remote_subnets = &[];
        b.extra = "pools = \"clients\"";
        b.global = POOLS;
    })?;
    let output = gateways.a.output(&["up", "site"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{text}");
    ensure!(text.contains("FAILED_CP_REQUIRED"), "{text}");
    ensure!(text.contains("vips = [\"0.0.0.0\"]"), "{text}");
    let refusal = gateways.b.wait_refusal()?;
    ensure!(refusal["kind"] == "FAILED_CP_REQUIRED", "{refusal:#}");
    ensure!(refusal["fix"]["setting"] == "pools", "{refusal:#}");
    Ok(())
}
