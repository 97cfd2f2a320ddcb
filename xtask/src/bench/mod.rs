//! `cargo xtask bench`: measurements, with a release build.

mod e2e;
mod engines;
mod ike;
mod machine;
mod pair;
mod rounds;
mod table;
mod visits;

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
        /// One SA on so many processors at once, beside one processor
        #[arg(long, value_name = "N")]
        lanes: Option<usize>,
    },
    /// Throughput and latency of every engine side by side, and of plain forwarding, between two
    /// gateways in network namespaces
    Engines(engines::Args),
    /// Espada's ways beside plain forwarding, strongSwan, wireguard-go, boringtun and OpenVPN:
    /// throughput, processor time and latency through two gateways in network namespaces
    E2e(e2e::Args),
    /// IKE SAs with their first child SA set up a second, Espada and strongSwan in either role; or
    /// what many tunnels cost
    Ike(ike::Args),
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Engine { json, lanes } => engine(*json, *lanes),
        What::Engines(args) => engines::run(args),
        What::E2e(args) => e2e::run(args),
        What::Ike(args) => ike::run(args),
    }
}

fn engine(json: bool, lanes: Option<usize>) -> Result<()> {
    build::refresh_object()?;
    let mut command = Command::new(build::build_espada()?);
    command.args(["bench", "engine"]);
    if json {
        command.arg("--json");
    }
    if let Some(lanes) = lanes {
        command.args(["--lanes", &lanes.to_string()]);
    }
    process::run_with_output(&mut command)
}
