//! `cargo xtask`: the developer's commands. Each subcommand is a module with its `Args` and a
//! `run(Args)`; this file only names them.

mod bench;
mod build;
mod debian;
mod demo;
mod frontend;
mod fuzz;
mod peers;
mod process;
mod progress;
#[cfg(test)]
mod protocol;
mod setup;
mod strip;
mod test;
mod toolchain;
mod vm;

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
    /// Bring up a tunnel between two gateways in network namespaces and report on it
    Demo(demo::Args),
    /// Run all tests and show a summary
    Test(test::Args),
    /// Measure parts of the data plane
    Bench(bench::Args),
    /// Run the fuzz targets, each for a while
    Fuzz(fuzz::Args),
    /// Run a command under another kernel, in qemu
    Vm(vm::Args),
}

fn main() -> std::process::ExitCode {
    let result = build::as_compiler().unwrap_or_else(|| run(Cli::parse().command));
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Load(args) => frontend::load(&args),
        Command::Unload(args) => frontend::unload(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Vm(args) => vm::run(&args),
    }
}
