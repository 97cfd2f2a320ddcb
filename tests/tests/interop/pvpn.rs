//! Espada as the client of python-vpn: a pre-shared key, a virtual address, traffic.

use anyhow::{Context, Result, ensure};
use espada_tests::espada::{Espada, PSK};
use espada_tests::matrix::{self, Outcome};
use espada_tests::process::WorkDir;
use espada_tests::pvpn::{self, Pvpn};
use espada_tests::scenario;
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::traffic;
use serde_json::json;

/// It has AES-CBC with HMAC alone, no extended sequence numbers, and believes in a NAT always.
fn client_of_pvpn() -> Result<()> {
    let line = Line::new(Wan::Switch)?;
    let work = WorkDir::new()?;
    let pvpn = Pvpn::start(&line.gw_b, &work, PSK, addr::GW_B_LAN)?;
    let mut ours = scenario::config_a(&line);
    ours.remote_id = pvpn::IDENTITY;
    (ours.ike, ours.esp) = ("aes256-sha256-modp2048", "aes256-sha256");
    ours.local_subnets = &[];
    ours.remote_subnets = &[addr::LAN_B];
    // It fails over Vendor IDs that are not text, and ours, which goes with "auto", is not.
    ours.extra = "vips = \"0.0.0.0\"\nencapsulation = \"udp\"";
    let espada = Espada::start(&line.gw_a, &work, &ours, false)?;
    let logs = || format!("espada:\n{}\npvpn:\n{}", espada.log(), pvpn.log());
    espada.up().with_context(logs)?;
    let connection = espada.wait_established()?;
    let lease = &connection["ike"]["lease"];
    ensure!(
        lease["addresses"] == json!([pvpn::CLIENT]),
        "{connection:#}"
    );
    ensure!(lease["dns"] == json!([addr::GW_B_LAN]), "{connection:#}");
    let child = scenario::child(&connection);
    ensure!(child["local_ts"] == json!(["1.0.0.1/32"]), "{child:#}");
    ensure!(child["encapsulation"] == "udp", "{child:#}");
    traffic::tcp_exchange(&line.gw_a, &line.server, addr::SERVER, 100_000).with_context(logs)?;
    let child = espada.connection()?;
    let child = scenario::child(&child);
    ensure!(
        scenario::count(&child["inbound"]["packets"]) > 20,
        "{child:#}"
    );
    espada.down().map(drop)
}

#[test]
fn client_of_python_vpn() -> Result<()> {
    matrix::case("auto", "python-vpn", "client_of_python_vpn", "", || {
        if let Some(reason) = pvpn::missing() {
            return Ok(Outcome::Skipped(reason));
        }
        client_of_pvpn()?;
        Ok(Outcome::Passed)
    })
}
