//! `cargo xtask`: the developer's commands. Each subcommand is a module with its `Args` and a
//! `run(Args)`; this file only names them.

mod build;
mod frontend;
mod process;
mod setup;
mod toolchain;

use clap::{Parser, Subcommand};

/// Espada's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need (Debian packages, bpf-linker, rust-src)
    Setup(setup::Args),
    /// Build the eBPF object and the espada binary
    Build(build::Args),
    /// Attach the XDP/TC front end to an interface and show what was attached
    Load(frontend::LoadArgs),
    /// Detach the front end from an interface and remove its pinned maps
    Unload(frontend::UnloadArgs),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Load(args) => frontend::load(&args),
        Command::Unload(args) => frontend::unload(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
