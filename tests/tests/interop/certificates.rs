//! Certificates against strongSwan 5.9.8, both roles.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use espada_tests::espada::{Espada, PSK};
use espada_tests::matrix::{self, Outcome};
use espada_tests::peer::{Connection, Peer as _, Pki as PeerPki};
use espada_tests::pki::Pki;
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, ID_A, ID_B, verify_v4};
use espada_tests::strongswan::{self, Kind, StrongSwan};
use espada_tests::topology::{Line, Wan, addr};

use super::Pair;

const OURS: &str = "auth = \"pubkey\", certs = [\"a.example.pem\"], key = \"a.example.key\"";
const TRUST: &str = "auth = \"pubkey\", cacerts = [\"ca.pem\"]";
const THEIRS: &str = "auth = pubkey
            certs = b.example.pem";
const THEIR_TRUST: &str = "auth = pubkey
             cacerts = ca.pem";

/// Who proves what how, in both programs' words; empty for the pre-shared key.
#[derive(Clone, Copy)]
struct Sides {
    key_a: &'static str,
    key_b: &'static str,
    /// Only this end has a certificate.
    only: Option<char>,
    /// strongSwan's further settings, and a sign of what they do in its log.
    settings: &'static str,
    log: &'static str,
    /// Further settings of ours.
    extra: &'static str,
}

fn issue(pki: &Pki, id: &str, kind: &str) -> Result<()> {
    match kind {
        "rsa" => pki.issue_rsa(id),
        kind => pki.issue(id, kind),
    }
}

fn start(sides: Sides) -> Result<Pair> {
    let line = Line::new(Wan::Switch)?;
    let work = WorkDir::new()?;
    let pki = Pki::new(&work.file("pki"), "ecdsa256")?;
    issue(&pki, ID_A, sides.key_a)?;
    issue(&pki, ID_B, sides.key_b)?;
    pki.deliver(ID_A, &work.file(&format!("espada-{}", line.gw_a.name())))?;
    let mut ours = scenario::config_a(&line);
    ours.local_subnets = &[addr::LAN_A];
    ours.remote_subnets = &[addr::LAN_B];
    ours.extra = sides.extra;
    let certified = |end| sides.only.is_none_or(|only| only == end);
    if certified('a') {
        ours.local_auth = OURS;
    }
    if certified('b') {
        ours.remote_auth = TRUST;
    }
    let files: Vec<(&str, PathBuf)> = [
        ("x509/b.example.pem", "b.example.pem"),
        ("private/b.example.key", "b.example.key"),
        ("x509ca/ca.pem", "ca.pem"),
    ]
    .map(|(to, from)| (to, pki.file(from)))
    .into();
    let theirs = Connection {
        local: addr::WAN_B,
        remote: addr::WAN_A,
        local_id: ID_B,
        remote_id: ID_A,
        ike: ours.ike,
        esp: ours.esp,
        local_ts: addr::LAN_B,
        remote_ts: addr::LAN_A,
        psk: PSK,
        pki: Some(PeerPki {
            local: if certified('b') { THEIRS } else { "auth = psk" },
            remote: if certified('a') {
                THEIR_TRUST
            } else {
                "auth = psk"
            },
            files,
            settings: sides.settings,
        }),
        ike_extra: "",
        extra: "",
    };
    let strongswan = StrongSwan::start(&line.gw_b, &work, &theirs, Kind::Libipsec, false)?;
    let espada = Espada::start(&line.gw_a, &work, &ours, false)?;
    Ok(Pair {
        espada,
        strongswan,
        line,
        work,
    })
}

fn both_roles(name: &str, sides: Sides) -> Result<()> {
    matrix::case("auto", "strongswan5-libipsec", name, "", || {
        if let Some(reason) = strongswan::missing() {
            return Ok(Outcome::Skipped(reason));
        }
        for we_begin in [true, false] {
            let pair = start(sides)?;
            let begun = if we_begin {
                pair.espada.up().map(drop)
            } else {
                pair.strongswan.initiate()
            };
            ensure!(begun.is_ok(), "{:#}\n{}", begun.unwrap_err(), pair.logs());
            let connection = pair.espada.wait_established()?;
            ensure!(connection["ike"]["remote_id"] == ID_B, "{connection:#}");
            pair.strongswan.wait_established()?;
            ensure!(pair.strongswan.log().contains(sides.log), "{}", pair.logs());
            verify_v4(&pair.line)?;
        }
        Ok(Outcome::Passed)
    })
}

const ECDSA: Sides = Sides {
    key_a: "ecdsa256",
    key_b: "ecdsa256",
    only: None,
    settings: "",
    log: "authentication of 'a.example' with ECDSA_WITH_SHA256_DER successful",
    extra: "",
};

#[test]
fn ecdsa_certificates() -> Result<()> {
    both_roles("ecdsa_certificates", ECDSA)
}

#[test]
fn ecdsa_certificates_of_p384_and_p521() -> Result<()> {
    let sides = Sides {
        key_a: "ecdsa521",
        key_b: "ecdsa384",
        log: "authentication of 'a.example' with ECDSA_WITH_SHA512_DER successful",
        ..ECDSA
    };
    both_roles("ecdsa_certificates_of_p384_and_p521", sides)
}

#[test]
fn rsa_certificates() -> Result<()> {
    let sides = Sides {
        key_a: "rsa",
        key_b: "rsa",
        log: "authentication of 'a.example' with RSA_EMSA_PSS_SHA2_256",
        ..ECDSA
    };
    both_roles("rsa_certificates", sides)
}

#[test]
fn ecdsa_without_rfc_7427() -> Result<()> {
    let sides = Sides {
        settings: "signature_authentication = no",
        log: "authentication of 'a.example' with ECDSA-256 signature successful",
        ..ECDSA
    };
    both_roles("ecdsa_without_rfc_7427", sides)
}

/// RSA's older method, which means SHA-1.
const RSA_SHA1: Sides = Sides {
    key_b: "rsa",
    settings: "signature_authentication = no",
    log: "authentication of 'b.example' (myself) with RSA signature successful",
    extra: "insecure = true",
    ..ECDSA
};

#[test]
fn rsa_over_sha1_is_accepted_with_insecure() -> Result<()> {
    both_roles("rsa_over_sha1_is_accepted_with_insecure", RSA_SHA1)
}

#[test]
fn rsa_over_sha1_is_refused_otherwise() -> Result<()> {
    let name = "rsa_over_sha1_is_refused_otherwise";
    matrix::case("auto", "strongswan5-libipsec", name, "", || {
        if let Some(reason) = strongswan::missing() {
            return Ok(Outcome::Skipped(reason));
        }
        let pair = start(Sides {
            extra: "",
            ..RSA_SHA1
        })?;
        ensure!(pair.espada.up().is_err());
        let refusal = pair.espada.wait_refusal()?.to_string();
        for words in ["signs with RSA (method 1), and not over SHA-2", "insecure"] {
            ensure!(refusal.contains(words), "{words}: {refusal}");
        }
        Ok(Outcome::Passed)
    })
}

#[test]
fn a_certificate_on_our_side_alone() -> Result<()> {
    let sides = Sides {
        only: Some('a'),
        ..ECDSA
    };
    both_roles("a_certificate_on_our_side_alone", sides)
}

#[test]
fn a_certificate_on_the_other_side_alone() -> Result<()> {
    let sides = Sides {
        only: Some('b'),
        key_b: "rsa",
        log: "authentication of 'b.example' (myself) with RSA",
        ..ECDSA
    };
    both_roles("a_certificate_on_the_other_side_alone", sides)
}
