//! `cargo xtask load IFACE` and `unload IFACE`: builds the loader of `espada-dataplane` and runs it.

use std::process::Command;

use anyhow::{Context, Result};
use espada_tests::cmd::cargo;

use crate::process;

/// Arguments of `cargo xtask load`.
#[derive(clap::Args)]
pub struct LoadArgs {
    /// Interface to attach to
    interface: String,
    /// auto, xdp-native, xdp-generic or tc
    #[arg(long, default_value = "auto")]
    mode: String,
}

/// Arguments of `cargo xtask unload`.
#[derive(clap::Args)]
pub struct UnloadArgs {
    /// Interface to detach from
    interface: String,
}

/// Attaches the front end to an interface so that it outlives this command.
pub fn load(args: &LoadArgs) -> Result<()> {
    loader(&["load", &args.interface, "--mode", &args.mode])
}

/// Detaches what `load` attached.
pub fn unload(args: &UnloadArgs) -> Result<()> {
    loader(&["unload", &args.interface])
}

fn loader(arguments: &[&str]) -> Result<()> {
    process::run(cargo().current_dir(process::root()).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "espada-dataplane",
        "--bin",
        "espada-frontend",
    ]))?;
    let program = process::target_dir().join("release/espada-frontend");
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        // It has said why.
        std::process::exit(1);
    }
    Ok(())
}
