//! The peers of the comparison, installed where they are missing.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use espada_tests::cmd::cargo;

use crate::debian::Archive;
use crate::process::{self, say};
use crate::{setup, toolchain};

/// Debian packages with the peers that Debian 12 has, beyond those of the tests.
const PACKAGES: [&str; 4] = ["openssl", "openvpn", "wireguard-go", "wireguard-tools"];
/// The suite whose wireguard-go has segmentation offloads.
const NEWER: &str = "trixie";
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
    if wireguard_go_gso().is_file() {
        return Ok(());
    }
    Archive::open(NEWER)?.unpack("wireguard-go", &newer_dir())
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
