//! Refused negotiations explain themselves, on both sides, in `status` and in the log.

use anyhow::{Context, Result, ensure};
use espada_tests::espada::{Config, Espada};
use espada_tests::scenario::Gateways;
use espada_tests::skip_unless_possible;
use espada_tests::topology::Wan;
use serde_json::Value;

/// What a refusal must say.
struct Expected<'a> {
    kind: &'a str,
    /// Texts that stand in its summary or details.
    texts: &'a [&'a str],
    /// The setting that it says to change; None where it is no setting of the connection.
    setting: Option<&'a str>,
}

fn ensure_explained(daemon: &Espada, expected: &Expected<'_>) -> Result<()> {
    let error = daemon.wait_refusal()?;
    ensure!(
        error["kind"] == expected.kind,
        "not {}: {error:#}",
        expected.kind
    );
    let summary = error["summary"].as_str().context("no summary")?;
    let details = error["details"].as_array().context("no details")?;
    let all: Vec<&str> = details.iter().filter_map(Value::as_str).collect();
    let all = format!("{summary}\n{}", all.join("\n"));
    for text in expected.texts {
        ensure!(
            all.contains(text),
            "\"{text}\" is not in the explanation:\n{error:#}"
        );
    }
    if let Some(setting) = expected.setting {
        let fix = &error["fix"];
        ensure!(
            fix["setting"] == setting,
            "it does not say to change {setting}: {error:#}"
        );
        ensure!(
            origin_is_right(daemon, fix, setting)?,
            "not the setting's line: {error:#}"
        );
    }
    daemon.wait_log(summary)?;
    let for_people = daemon.status_text()?;
    ensure!(
        for_people.contains(summary),
        "not in `espada status`:\n{for_people}"
    );
    Ok(())
}

/// The line that a fix names has the setting.
fn origin_is_right(daemon: &Espada, fix: &Value, setting: &str) -> Result<bool> {
    let origin = fix["origin"].as_str().context("a fix without origin")?;
    let (file, line) = origin.rsplit_once(':').context("an origin without line")?;
    let path = daemon.files().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("the origin {origin}"))?;
    let line = text
        .lines()
        .nth(line.parse::<usize>()?.saturating_sub(1))
        .context("no such line")?;
    let key = setting.split('.').next().unwrap_or(setting);
    Ok(line.trim_start().starts_with(key))
}

/// A negotiation that A begins and that fails.
fn refused(change: impl FnOnce(&mut Config<'static>, &mut Config<'static>)) -> Result<Gateways> {
    let gateways = Gateways::start(Wan::Switch, change)?;
    let outcome = gateways
        .a
        .output(&["up", espada_tests::espada::CONNECTION])?;
    ensure!(
        outcome.status.code() == Some(4),
        "`espada up` of a refused negotiation: {outcome:?}"
    );
    Ok(gateways)
}

#[test]
fn ike_proposals_differ() -> Result<()> {
    skip_unless_possible!("ike_proposals_differ");
    let gateways = refused(|a, b| {
        a.ike = "aes256gcm16-prfsha256-x25519";
        b.ike = "aes256-sha512-x25519";
    })?;
    // B saw both sides; A knows what it offered, as NO_PROPOSAL_CHOSEN carries nothing.
    ensure_explained(
        &gateways.b,
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            texts: &["aes256gcm16", "sha512"],
            setting: Some("ike"),
        },
    )?;
    ensure_explained(
        &gateways.a,
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            texts: &["aes256gcm16", "prfsha256", "x25519"],
            setting: Some("ike"),
        },
    )
}

#[test]
fn dh_groups_differ() -> Result<()> {
    skip_unless_possible!("dh_groups_differ");
    let gateways = refused(|a, b| {
        a.ike = "aes256-sha256-modp2048";
        b.ike = "aes256-sha256-ecp256";
    })?;
    ensure_explained(
        &gateways.b,
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            texts: &["modp2048", "ecp256"],
            setting: Some("ike"),
        },
    )
}

/// The first group offered is not the peer's, the second is: INVALID_KE_PAYLOAD and a retry.
#[test]
fn second_group_is_retried() -> Result<()> {
    skip_unless_possible!("second_group_is_retried");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        a.ike = "aes256gcm16-prfsha256-x25519-ecp384";
        b.ike = "aes256gcm16-prfsha256-ecp384";
    })?;
    let connection = gateways.a.connection()?;
    let suite = connection["ike"]["suite"].as_str().unwrap_or_default();
    ensure!(suite.ends_with("ecp384"), "{suite}");
    gateways.verify_traffic()
}

#[test]
fn esp_proposals_differ() -> Result<()> {
    skip_unless_possible!("esp_proposals_differ");
    let gateways = refused(|a, b| {
        a.esp = "aes256gcm16";
        b.esp = "aes256-sha256";
    })?;
    ensure_explained(
        &gateways.b,
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            texts: &["aes256gcm16", "sha256"],
            setting: Some("esp"),
        },
    )?;
    ensure_explained(
        &gateways.a,
        &Expected {
            kind: "NO_PROPOSAL_CHOSEN",
            texts: &["aes256gcm16"],
            setting: Some("esp"),
        },
    )
}

#[test]
fn selectors_differ() -> Result<()> {
    skip_unless_possible!("selectors_differ");
    let gateways = refused(|a, b| {
        a.local_subnets = &["10.61.1.0/24"];
        a.remote_subnets = &["10.61.2.0/24"];
        b.local_subnets = &["10.61.2.0/24"];
        b.remote_subnets = &["10.99.0.0/24"];
    })?;
    ensure_explained(
        &gateways.b,
        &Expected {
            kind: "TS_UNACCEPTABLE",
            texts: &["10.61.1.0/24", "10.99.0.0/24"],
            setting: Some("remote.subnets"),
        },
    )?;
    ensure_explained(
        &gateways.a,
        &Expected {
            kind: "TS_UNACCEPTABLE",
            texts: &["10.61.1.0/24", "10.61.2.0/24"],
            setting: None,
        },
    )
}

#[test]
fn pre_shared_keys_differ() -> Result<()> {
    skip_unless_possible!("pre_shared_keys_differ");
    let gateways = refused(|_, b| b.psk = "another key")?;
    for daemon in [&gateways.a, &gateways.b] {
        ensure_explained(
            daemon,
            &Expected {
                kind: "AUTHENTICATION_FAILED",
                texts: &["pre-shared key"],
                setting: None,
            },
        )?;
        let told = format!("{}{}", daemon.log(), daemon.status()?);
        for secret in ["another key", espada_tests::espada::PSK] {
            ensure!(
                !told.contains(secret),
                "a secret is in the log or the status"
            );
        }
    }
    Ok(())
}

#[test]
fn identities_differ() -> Result<()> {
    skip_unless_possible!("identities_differ");
    let gateways = refused(|_, b| b.remote_id = "c.example")?;
    ensure_explained(
        &gateways.b,
        &Expected {
            kind: "AUTHENTICATION_FAILED",
            texts: &["a.example", "c.example"],
            setting: Some("remote.id"),
        },
    )
}

#[test]
fn nobody_answers() -> Result<()> {
    skip_unless_possible!("nobody_answers");
    let mut gateways = Gateways::start(Wan::Switch, |a, _| {
        a.global = "[ike]\nretransmit_first = \"200ms\"\nretransmit_max = \"300ms\"\n\
                    retransmit_tries = 3\n";
    })?;
    gateways.b.stop()?;
    let outcome = gateways
        .a
        .output(&["up", espada_tests::espada::CONNECTION])?;
    ensure!(outcome.status.code() == Some(4), "{outcome:?}");
    ensure_explained(
        &gateways.a,
        &Expected {
            kind: "NO_ANSWER",
            texts: &["198.18.0.2"],
            setting: None,
        },
    )
}
