//! Negotiations that fail, begun from either side, and Espada's explanation.

use anyhow::{Context, Result, ensure};
use espada_tests::espada::{CONNECTION, Config};
use espada_tests::peer::{Connection, Peer as _};
use espada_tests::topology::Wan;
use espada_tests::{skip_unless_possible, strongswan};
use serde_json::Value;

use super::{Pair, start};

/// Espada's explanation must be of this kind and have these texts; with strongSwan beginning,
/// also those, as then the peer's offer is known.
struct Expected {
    kind: &'static str,
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
    setting: Option<&'static str>,
}

fn explained(pair: &Pair, expected: &Expected, texts: &[&str]) -> Result<()> {
    let error = pair.espada.wait_refusal()?;
    ensure!(
        error["kind"] == expected.kind,
        "not {}: {error:#}",
        expected.kind
    );
    let text = error.to_string();
    for part in texts {
        ensure!(
            text.contains(part),
            "\"{part}\" is not in the explanation: {error:#}"
        );
    }
    if let Some(setting) = expected.setting {
        let fix = &error["fix"];
        ensure!(
            fix["setting"] == setting,
            "it does not say to change {setting}: {error:#}"
        );
        ensure!(
            fix["origin"]
                .as_str()
                .is_some_and(|origin| origin.contains("espada.toml:")),
            "{error:#}"
        );
    }
    pair.espada
        .wait_log(error["summary"].as_str().context("no summary")?)
}

fn refuse(
    change: impl Fn(&mut Config<'static>, &mut Connection<'static>),
    expected: &Expected,
) -> Result<()> {
    let pair = start(Wan::Switch, &change)?;
    let outcome = pair.espada.output(&["up", CONNECTION])?;
    ensure!(
        outcome.status.code() == Some(4),
        "{outcome:?}\n{}",
        pair.strongswan.log()
    );
    explained(&pair, expected, expected.ours)
        .with_context(|| format!("Espada began; strongSwan's log:\n{}", pair.strongswan.log()))?;
    drop(pair);

    let pair = start(Wan::Switch, &change)?;
    ensure!(pair.strongswan.initiate().is_err(), "strongSwan came up");
    let all: Vec<&str> = expected
        .ours
        .iter()
        .chain(expected.theirs)
        .copied()
        .collect();
    explained(&pair, expected, &all)
        .with_context(|| format!("strongSwan began; its log:\n{}", pair.strongswan.log()))?;
    let connection: Value = pair.espada.connection()?;
    ensure!(
        connection["children"].as_array().is_some_and(Vec::is_empty),
        "{connection:#}"
    );
    Ok(())
}

#[test]
fn ike_proposals() -> Result<()> {
    skip_unless_possible!("ike_proposals", strongswan::missing);
    refuse(
        |ours, theirs| {
            ours.ike = "aes256gcm16-prfsha256-x25519";
            theirs.ike = "aes256-sha512-x25519";
        },
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            ours: &["aes256gcm16"],
            theirs: &["sha512"],
            setting: Some("ike"),
        },
    )
}

#[test]
fn esp_proposals() -> Result<()> {
    skip_unless_possible!("esp_proposals", strongswan::missing);
    refuse(
        |ours, theirs| {
            ours.esp = "aes256gcm16";
            theirs.esp = "aes128-sha256";
        },
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            ours: &["aes256gcm16"],
            theirs: &["aes128", "sha256"],
            setting: Some("esp"),
        },
    )
}

#[test]
fn traffic_selectors() -> Result<()> {
    skip_unless_possible!("traffic_selectors", strongswan::missing);
    refuse(
        |_, theirs| {
            theirs.local_ts = "10.99.2.0/24";
            theirs.remote_ts = "10.99.1.0/24";
        },
        &Expected {
            kind: "TS_UNACCEPTABLE",
            ours: &["10.61.1.0/24", "10.61.2.0/24"],
            theirs: &["10.99.1.0/24", "10.99.2.0/24"],
            setting: None,
        },
    )
}

#[test]
fn pre_shared_key() -> Result<()> {
    skip_unless_possible!("pre_shared_key", strongswan::missing);
    refuse(
        |_, theirs| theirs.psk = "another key",
        &Expected {
            kind: "AUTHENTICATION_FAILED",
            ours: &["pre-shared key"],
            theirs: &[],
            setting: None,
        },
    )
}

#[test]
fn identity() -> Result<()> {
    skip_unless_possible!("identity", strongswan::missing);
    refuse(
        |_, theirs| theirs.local_id = "c.example",
        &Expected {
            kind: "AUTHENTICATION_FAILED",
            ours: &[],
            theirs: &["c.example", "b.example"],
            setting: None,
        },
    )
}
