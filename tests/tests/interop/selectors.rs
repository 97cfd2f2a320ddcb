//! Several subnets with a strongSwan that has a child for each pair of them, as peers of other makers
//! have: it takes one pair of what it is offered.

use anyhow::{Context, Result, ensure};
use espada_tests::scenario::verify_v4;
use espada_tests::topology::{LAN_DEVICE, Wan, addr};
use espada_tests::traffic;

use super::agree::libipsec;
use super::start;

/// Beside the LAN of gateway B; nothing is said of the last one there.
const SUBNETS: &[&str] = &[addr::LAN_B, "10.61.22.0/24", "10.61.33.0/24"];
const HOST: &str = "10.61.22.1";

#[test]
fn pair_after_pair_with_strongswan() -> Result<()> {
    libipsec("pair_after_pair_with_strongswan", || {
        for extra in ["", "single_pairs = true"] {
            let pair = start(Wan::Switch, |ours, _| {
                (ours.remote_subnets, ours.extra) = (SUBNETS, extra);
            })?;
            let gateway = &pair.line.gw_b;
            gateway.ip(&["address", "add", "10.61.22.1/24", "dev", LAN_DEVICE])?;
            pair.strongswan.configure(&format!(
                "connections {{ net {{ children {{ second {{
                    local_ts = {}
                    remote_ts = {}
                    esp_proposals = aes256gcm16
                }} }} }} }}",
                SUBNETS.get(1).context("a second subnet")?,
                addr::LAN_A,
            ))?;
            let logs = || pair.logs();
            pair.espada.up().with_context(logs)?;
            let both = pair.espada.wait_connection("both child SAs", |connection| {
                let children = connection["children"].as_array();
                children.is_some_and(|children| children.len() == 2)
            });
            let connection = both.with_context(logs)?;
            ensure!(connection["state"] == "established", "{connection:#}");
            verify_v4(&pair.line).with_context(logs)?;
            pair.line.client.route("10.61.22.0/24", addr::GW_A_LAN)?;
            let ping = traffic::ping(&pair.line.client, HOST, 3, &[])?;
            ensure!(ping.is_complete(), "{ping:?}\n{}", logs());
            // The third one is refused, which is explained, and does not disturb the others.
            pair.espada.wait_log("we offered remote 10.61.33.0/24")?;
            let children = pair.espada.connection()?["children"].clone();
            ensure!(
                children.as_array().is_some_and(|it| it.len() == 2),
                "{children:#}"
            );
        }
        Ok(())
    })
}
