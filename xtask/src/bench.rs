//! `cargo xtask bench`: measurements of parts of the data plane, with a release build.

use std::process::Command;

use anyhow::Result;

use crate::{build, process};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// ESP encapsulation and decapsulation of bursts in memory, on one core
    Engine {
        /// Print a JSON list on standard output instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let What::Engine { json } = args.what;
    build::refresh_object()?;
    let mut command = Command::new(build::build_espada()?);
    command.args(["bench", "engine"]);
    if json {
        command.arg("--json");
    }
    process::run_with_output(&mut command)
}
