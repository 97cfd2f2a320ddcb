//! Extensions of IKEv2 with strongSwan: redirect (RFC 5685), IKE SAs without a first child SA (RFC 6023).

use anyhow::{Context, Result, ensure};
use espada_tests::peer::Peer as _;
use espada_tests::scenario::verify_v4;
use espada_tests::topology::{WAN_DEVICE, Wan};

use super::agree::libipsec;
use super::start;

#[test]
fn redirected_by_strongswan() -> Result<()> {
    libipsec("redirected_by_strongswan", || {
        let new = "198.19.0.2";
        // The second is no address to strongSwan, so it goes as a host name, which the resolver
        // makes an address of without asking anybody.
        for (named, told) in [(new, "198.19.0.2"), ("198.19.2", "198.19.2 (198.19.0.2)")] {
            let pair = start(Wan::Switch, |_, theirs| theirs.local = "%any")?;
            let line = &pair.line;
            line.gw_b
                .ip(&["address", "add", "198.19.0.2/32", "dev", WAN_DEVICE])?;
            line.gw_a
                .ip(&["route", "replace", new, "dev", WAN_DEVICE])?;
            pair.espada.up().with_context(|| pair.logs())?;
            pair.espada.wait_established()?;
            pair.strongswan
                .swanctl(&["--redirect", "--ike", "net", "--gateway", named])?;
            pair.espada
                .wait_connection("the other gateway", |connection| {
                    let remote = connection["ike"]["remote"].as_str().unwrap_or_default();
                    connection["state"] == "established" && remote.starts_with(new)
                })
                .with_context(|| pair.logs())?;
            pair.espada.wait_log(&format!("redirects us to {told}"))?;
            verify_v4(line).with_context(|| pair.logs())?;
        }
        Ok(())
    })
}

#[test]
fn childless_with_strongswan() -> Result<()> {
    libipsec("childless_with_strongswan", || {
        for espada_begins in [true, false] {
            let pair = start(Wan::Switch, |ours, _| {
                if espada_begins {
                    ours.extra = "childless = \"force\"";
                }
            })?;
            let theirs = if espada_begins { "allow" } else { "force" };
            pair.strongswan
                .configure(&format!("connections {{ net {{ childless = {theirs} }} }}"))?;
            match espada_begins {
                true => pair.espada.up().map(drop),
                false => pair.strongswan.initiate(),
            }
            .with_context(|| pair.logs())?;
            pair.espada.wait_established()?;
            let log = pair.strongswan.log();
            let message = match espada_begins {
                true => "parsed CREATE_CHILD_SA request 2",
                false => "generating CREATE_CHILD_SA request 2",
            };
            ensure!(log.contains(message), "{log}");
            verify_v4(&pair.line).with_context(|| pair.logs())?;
        }
        Ok(())
    })
}
