//! The peers of the comparison, installed where they are missing.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;

use crate::debian::Archive;
use crate::process::{self, say};
use crate::{setup, toolchain};

/// Debian packages with the peers that Debian 12 has, beyond those of the tests.
const PACKAGES: [&str; 4] = ["openssl", "openvpn", "wireguard-go", "wireguard-tools"];
/// Suites whose wireguard-go has segmentation offloads: first the one that uses them for UDP as well,
/// which may one day want a newer C library than there is here.
const NEWER: [&str; 2] = ["sid", "trixie"];
const BORINGTUN_VERSION: &str = "0.7.1";

/// Where boringtun is, or is to be.
pub fn boringtun() -> PathBuf {
    toolchain::tools_dir().join("bin/boringtun-cli")
}

fn newer_dir() -> PathBuf {
    toolchain::tools_dir().join("wireguard-go-gso")
}

/// Where the newer wireguard-go is, or is to be.
pub fn wireguard_go_gso() -> PathBuf {
    newer_dir().join("usr/bin/wireguard-go")
}

/// Installs all; one that cannot be had is told of and left out of the comparison.
pub fn all() {
    type Step = fn() -> Result<()>;
    let steps: [(&str, Step); 3] = [
        ("Debian packages", packages),
        (
            "wireguard-go with segmentation offloads",
            newer_wireguard_go,
        ),
        ("boringtun", build_boringtun),
    ];
    for (what, step) in steps {
        match step() {
            Ok(()) => say(format_args!("setup: {what}: there")),
            Err(error) => say(format_args!("setup: {what}: {error:#}")),
        }
    }
}

fn packages() -> Result<()> {
    setup::install_these(PACKAGES.into_iter())
}

fn newer_wireguard_go() -> Result<()> {
    let program = wireguard_go_gso();
    if program.is_file() {
        return Ok(());
    }
    let mut reasons = Vec::new();
    for suite in NEWER {
        let outcome = Archive::open(suite)
            .and_then(|archive| archive.unpack("wireguard-go", &newer_dir()))
            .and_then(|()| process::output(Command::new(&program).arg("--version")));
        match outcome {
            Ok(_) => return Ok(()),
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
        }
        if newer_dir().exists() {
            fs::remove_dir_all(newer_dir())
                .with_context(|| format!("cannot remove {}", newer_dir().display()))?;
        }
    }
    bail!("{}", reasons.join("; "))
}

fn build_boringtun() -> Result<()> {
    if boringtun().is_file() {
        return Ok(());
    }
    say(format_args!(
        "setup: boringtun: building version {BORINGTUN_VERSION} (a few minutes)"
    ));
    let tools = toolchain::tools_dir();
    let build = tools.join("build-boringtun");
    process::run(
        cargo()
            .args(["install", "--quiet", "--locked", "boringtun-cli"])
            .args(["--version", BORINGTUN_VERSION, "--root"])
            .arg(&tools)
            .current_dir(env::temp_dir())
            .env("CARGO_TARGET_DIR", &build),
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}
