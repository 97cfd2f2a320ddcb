//! strongSwan 6 of newer Debian releases with its userspace ESP: several key exchanges in one IKE SA
//! (RFC 9242, RFC 9370), ML-KEM among them, in both roles and in rekeys of either side.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use espada_tests::matrix::{self, Outcome};
use espada_tests::peer::Peer as _;
use espada_tests::peer_root::Release;
use espada_tests::scenario::{child, verify_v4};
use espada_tests::strongswan::{self, Kind};
use espada_tests::topology::{Wan, addr};
use espada_tests::traffic;

use super::agree::{Begins, bring_up};
use super::{Pair, start_kind};

/// The side that did not begin replaces the SAs.
const CROSSED: [(Begins, Rekeys); 2] = [
    (Begins::Espada, Rekeys::StrongSwan),
    (Begins::StrongSwan, Rekeys::Espada),
];
/// The side that began replaces them.
const SAME: [(Begins, Rekeys); 2] = [
    (Begins::Espada, Rekeys::Espada),
    (Begins::StrongSwan, Rekeys::StrongSwan),
];
/// strongSwan replaces them, which takes it less time.
const BY_STRONGSWAN: [(Begins, Rekeys); 2] = [
    (Begins::Espada, Rekeys::StrongSwan),
    (Begins::StrongSwan, Rekeys::StrongSwan),
];

/// Who replaces the SAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rekeys {
    Espada,
    StrongSwan,
}

/// What both ends are told, in words that both know.
#[derive(Clone, Copy)]
struct Suites {
    ike: &'static str,
    esp: &'static str,
    /// What strongSwan calls the last of their key exchanges.
    last: &'static str,
}

/// A case with a release's strongSwan, for each of who begins and who replaces the SAs.
fn with(release: Release, name: &str, suites: Suites, roles: [(Begins, Rekeys); 2]) -> Result<()> {
    let peer = format!("strongswan-{}-libipsec", release.name());
    matrix::case("auto", &peer, name, "", || {
        if let Some(reason) = strongswan::missing_newer(release) {
            return Ok(Outcome::Skipped(reason));
        }
        for (begins, rekeys) in roles {
            agree(release, suites, begins, rekeys)
                .with_context(|| format!("{begins:?} began, {rekeys:?} rekeys"))?;
        }
        Ok(Outcome::Passed)
    })
}

fn agree(release: Release, suites: Suites, begins: Begins, rekeys: Rekeys) -> Result<()> {
    let kind = Kind::NewerLibipsec(release);
    let pair = start_kind(kind, Wan::Switch, "", |ours, theirs| {
        (ours.ike, ours.esp) = (suites.ike, suites.esp);
        (theirs.ike, theirs.esp) = (suites.ike, suites.esp);
        if rekeys == Rekeys::Espada {
            ours.extra = "child_packets = 1000\nike_lifetime = \"10s\"";
        }
    })?;
    bring_up(&pair, begins)?;
    verify_v4(&pair.line)?;
    let connection = pair.espada.connection()?;
    ensure!(connection["ike"]["suite"] == suites.ike, "{connection:#}");
    replaced(&pair, rekeys).with_context(|| pair.strongswan.log())?;
    let connection = pair.espada.connection()?;
    ensure!(connection["ike"]["suite"] == suites.ike, "{connection:#}");
    // The first child SA had no key exchange of its own, this one has.
    let log = pair.strongswan.log();
    for protocol in ["IKE", "ESP"] {
        let selected = format!("selected proposal: {protocol}:");
        let line = log.lines().rfind(|line| line.contains(&selected));
        ensure!(
            line.is_some_and(|line| line.contains(suites.last)),
            "{line:?} without {}\n{log}",
            suites.last
        );
    }
    verify_v4(&pair.line)
}

/// Both SAs are replaced under traffic, of which nothing is lost.
fn replaced(pair: &Pair, rekeys: Rekeys) -> Result<()> {
    let old = pair.espada.connection()?;
    let pings = match rekeys {
        Rekeys::Espada => 1100,
        Rekeys::StrongSwan => 400,
    };
    let ping = std::thread::scope(|scope| -> Result<_> {
        let pinging = scope.spawn(|| {
            let steadily = ["-i", "0.01", "-w", "60"];
            traffic::ping(&pair.line.client, addr::SERVER, pings, &steadily)
        });
        std::thread::sleep(Duration::from_millis(500));
        if rekeys == Rekeys::StrongSwan {
            pair.strongswan.rekey_child()?;
            std::thread::sleep(Duration::from_secs(1));
            pair.strongswan.swanctl(&["--rekey", "--ike", "net"])?;
        }
        pinging
            .join()
            .map_err(|_| anyhow!("the pinging thread panicked"))?
    })?;
    ensure!(
        ping.is_complete(),
        "{ping:?}\n{:#}\n{}",
        pair.espada.status()?,
        pair.espada.log()
    );
    let new = pair
        .espada
        .wait_connection("one child SA that is new", |connection| {
            let children = connection["children"].as_array();
            children.is_some_and(|list| list.len() == 1)
        })?;
    let spi = |connection: &serde_json::Value| child(connection)["inbound"]["spi"].clone();
    ensure!(spi(&old) != spi(&new), "the same child SA: {new:#}");
    ensure!(
        old["ike"]["spi_initiator"] != new["ike"]["spi_initiator"],
        "the same IKE SA: {new:#}"
    );
    Ok(())
}

#[test]
fn strongswan_6_agrees_on_x25519() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "aes256gcm16-x25519",
        last: "CURVE_25519",
    };
    with(
        Release::Trixie,
        "strongswan_6_agrees_on_x25519",
        suites,
        CROSSED,
    )
}

#[test]
fn strongswan_6_adds_a_curve() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha384-x25519-ke1_ecp384",
        esp: "aes256gcm16-x25519-ke1_ecp384",
        last: "KE1_ECP_384",
    };
    with(
        Release::Trixie,
        "strongswan_6_adds_a_curve",
        suites,
        CROSSED,
    )
}

#[test]
fn mlkem768_after_x25519_with_strongswan() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        esp: "aes256gcm16-x25519-ke1_mlkem768",
        last: "KE1_ML_KEM_768",
    };
    with(
        Release::Forky,
        "mlkem768_after_x25519_with_strongswan",
        suites,
        SAME,
    )
}

#[test]
fn mlkem768_after_ecp256_with_strongswan() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha256-ecp256-ke1_mlkem768",
        esp: "aes256gcm16-ecp256-ke1_mlkem768",
        last: "KE1_ML_KEM_768",
    };
    with(
        Release::Forky,
        "mlkem768_after_ecp256_with_strongswan",
        suites,
        CROSSED,
    )
}

#[test]
fn mlkem1024_after_ecp384_with_strongswan() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha384-ecp384-ke1_mlkem1024",
        esp: "aes256gcm16-ecp384-ke1_mlkem1024",
        last: "KE1_ML_KEM_1024",
    };
    with(
        Release::Forky,
        "mlkem1024_after_ecp384_with_strongswan",
        suites,
        CROSSED,
    )
}

#[test]
fn mlkem512_and_a_curve_after_x25519_with_strongswan() -> Result<()> {
    let suites = Suites {
        ike: "aes128gcm16-prfsha256-x25519-ke1_mlkem512-ke2_ecp256",
        esp: "aes128gcm16-x25519-ke1_mlkem512-ke2_ecp256",
        last: "KE1_ML_KEM_512/KE2_ECP_256",
    };
    with(
        Release::Forky,
        "mlkem512_and_a_curve_after_x25519_with_strongswan",
        suites,
        BY_STRONGSWAN,
    )
}

#[test]
fn mlkem768_alone_with_strongswan() -> Result<()> {
    let suites = Suites {
        ike: "aes256gcm16-prfsha256-mlkem768",
        esp: "aes256gcm16-mlkem768",
        last: "/ML_KEM_768",
    };
    with(
        Release::Forky,
        "mlkem768_alone_with_strongswan",
        suites,
        BY_STRONGSWAN,
    )
}
