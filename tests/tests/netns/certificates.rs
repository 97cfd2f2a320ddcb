//! Tunnels between gateways that authenticate with certificates made by `espada pki`.

use anyhow::{Result, ensure};
use espada_tests::espada::Espada;
use espada_tests::pki::Pki;
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, ID_A, ID_B, verify_v4};
use espada_tests::skip_unless_possible;
use espada_tests::topology::{Line, Wan};

const LOCAL_A: &str = "auth = \"pubkey\", certs = [\"a.example.pem\"], key = \"a.example.key\"";
const LOCAL_B: &str = "auth = \"pubkey\", certs = [\"b.example.pem\"], key = \"b.example.key\"";
const REMOTE: &str = "auth = \"pubkey\", cacerts = [\"ca.pem\"]";

/// Two gateways; `other_ca`: B's certificate comes of an authority that A does not know.
fn gateways(other_ca: bool) -> Result<(Espada, Espada, Line, WorkDir)> {
    let line = Line::new(Wan::Switch)?;
    let work = WorkDir::new()?;
    let pki = Pki::new(&work.file("pki"), "ecdsa256")?;
    pki.issue(ID_A, "ecdsa256")?;
    let other;
    let of_b = if other_ca {
        other = Pki::new(&work.file("other"), "ecdsa256")?;
        &other
    } else {
        &pki
    };
    of_b.issue(ID_B, "ed25519")?;
    let folder = |name: &str| work.file(&format!("espada-{name}"));
    let (folder_a, folder_b) = (folder(line.gw_a.name()), folder(line.gw_b.name()));
    pki.deliver(ID_A, &folder_a)?;
    of_b.deliver(ID_B, &folder_b)?;
    // B trusts A's authority in any case.
    std::fs::copy(pki.file("ca.pem"), folder_b.join("ca.pem"))?;
    let (mut a, mut b) = (scenario::config_a(&line), scenario::config_b(&line));
    for (config, local) in [(&mut a, LOCAL_A), (&mut b, LOCAL_B)] {
        (config.local_auth, config.remote_auth) = (local, REMOTE);
    }
    let b = Espada::start(&line.gw_b, &work, &b, false)?;
    let a = Espada::start(&line.gw_a, &work, &a, false)?;
    Ok((a, b, line, work))
}

#[test]
fn three_commands_make_a_tunnel() -> Result<()> {
    skip_unless_possible!("three_commands_make_a_tunnel");
    let (a, b, line, _work) = gateways(false)?;
    a.up()?;
    let connection = b.wait_established()?;
    ensure!(connection["ike"]["remote_id"] == ID_A, "{connection:#}");
    verify_v4(&line)
}

#[test]
fn another_authority_is_refused_with_its_name() -> Result<()> {
    skip_unless_possible!("another_authority_is_refused_with_its_name");
    let (a, _b, _line, _work) = gateways(true)?;
    ensure!(a.up().is_err());
    let refusal = a.wait_refusal()?.to_string();
    ensure!(
        refusal.contains("is not signed by the key of") || refusal.contains("no trusted authority"),
        "{refusal}"
    );
    ensure!(refusal.contains("CN=Espada CA"), "{refusal}");
    Ok(())
}
