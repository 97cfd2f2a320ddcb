//! `cargo xtask fuzz`: the fuzz targets with coverage and AddressSanitizer, each for a while.

use std::fs;

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;

use crate::process::{self, say};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these targets; without any, all there are
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs the subcommand. Stops at the first target that finds something, which is then below `fuzz/artifacts`.
pub fn run(args: &Args) -> Result<()> {
    if process::which("cargo-fuzz").is_none() {
        say("fuzz: installing cargo-fuzz");
        process::run(cargo().args(["install", "--quiet", "--locked", "cargo-fuzz"]))?;
    }
    let known = targets()?;
    let chosen = if args.targets.is_empty() {
        &known
    } else {
        &args.targets
    };
    for target in chosen {
        if !known.contains(target) {
            let known = known.join(", ");
            bail!("there is no fuzz target \"{target}\": expected one of {known}");
        }
        say(format_args!("\n==== {target}"));
        process::run(
            cargo()
                .current_dir(process::root())
                // Sanitizers and coverage are unstable options; the toolchain that builds Espada has them.
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["fuzz", "run", target, "--"])
                .arg(format!("-max_total_time={}", args.seconds))
                .args(["-max_len=4096", "-print_final_stats=1"]),
        )?;
    }
    Ok(())
}

/// Names of the targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = process::root().join("fuzz/fuzz_targets");
    let context = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        names.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}
