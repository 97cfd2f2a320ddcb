//! `cargo xtask bench e2e`: Espada's ways through two gateways beside plain forwarding and beside
//! other data planes, under the same conditions.

mod bare;
mod chart;
mod check;
mod install;
mod measure;
mod pages;
mod report;
mod systems;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use espada_tests::cgroup::CpuGroup;
use espada_tests::cleanup;
use serde_json::Value;

use super::rounds::{Quiet, interleaved};
use super::visits::{Skipped, Visits};
use crate::process::{self, say};
use crate::{build, setup};
use measure::{Lines, Measures, Plan, visit};
use report::Version;
use systems::System;

/// Arguments of `cargo xtask bench e2e`. With `ESPADA_BIN` in the environment that program is
/// measured instead of one built from this tree.
#[derive(clap::Args)]
pub struct Args {
    /// Repetitions; each visits every system, every second one in reverse order
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
    /// Only these systems; `plain` is always measured
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// A quick look: 2 s of TCP, half a second for each rate of UDP packets, 200 echo requests
    #[arg(long)]
    quick: bool,
    /// Seconds, in all, to wait for other programs on this machine to be quiet
    #[arg(long, default_value_t = 300)]
    quiet_wait: u64,
    /// Write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Install the peers that are missing first (Debian packages; boringtun is built)
    #[arg(long)]
    setup: bool,
    /// Put results, tables and charts into docs
    #[arg(long)]
    write_docs: bool,
    /// Measure nothing: draw tables and charts in docs again from the results there
    #[arg(long, conflicts_with_all = ["reps", "systems", "quick", "json", "markdown", "setup", "write_docs"])]
    render: bool,
}

impl Args {
    fn plan(&self) -> Plan {
        if self.quick {
            Plan {
                tcp: 2,
                step: 0.5,
                pings: 200,
            }
        } else {
            Plan {
                tcp: 8,
                step: 2.0,
                pings: 1000,
            }
        }
    }

    /// Plain forwarding and what was asked for.
    fn chosen(&self) -> Result<Vec<System>> {
        for name in &self.systems {
            if !System::ALL.iter().any(|system| system.name() == name) {
                bail!(
                    "unknown system `{name}`; expected some of {}",
                    System::ALL.map(System::name).join(", ")
                );
            }
        }
        Ok(System::ALL
            .into_iter()
            .filter(|system| {
                *system == System::Plain
                    || self.systems.is_empty()
                    || self.systems.iter().any(|name| name == system.name())
            })
            .collect())
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if args.render {
        return pages::render();
    }
    ensure!(
        espada_tests::syscall::is_root(),
        "the measurement makes network namespaces, which needs root"
    );
    let chosen = args.chosen()?;
    setup::install_packages()?;
    if args.setup {
        install::all();
    }
    if std::env::var_os("ESPADA_BIN").is_none() {
        build::refresh_object()?;
        build::build_espada()?;
    }
    if chosen.contains(&System::BareTunnel) {
        bare::build()?;
    }
    let date = process::output(Command::new("date").args(["-u", "+%F"]))?;
    let outcome = measure(args, &chosen, date.trim());
    cleanup::yield_to_interruption();
    let results = outcome?;
    if let Some(file) = &args.json {
        put(file, &format!("{results:#}\n"))?;
    }
    let tables = report::to_markdown(&results)?;
    match &args.markdown {
        Some(file) => put(file, &tables)?,
        None => write!(std::io::stdout(), "{tables}")?,
    }
    if args.write_docs {
        pages::write(&results)?;
    }
    Ok(())
}

fn put(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn measure(args: &Args, chosen: &[System], date: &str) -> Result<Value> {
    // First, so that it is left last, when all that was started has ended.
    let group = CpuGroup::enter()
        .inspect_err(|error| say(format_args!("processor time is not counted: {error:#}")))
        .ok();
    let lines = Lines::new()?;
    let mut visits: Visits<System, Measures> = Visits::default();
    let mut versions = Vec::new();
    for &system in chosen {
        match examine(&lines, system) {
            Ok(version) => {
                say(format_args!("{system}: {}; checked", version.1));
                versions.push(version);
            }
            Err(error) => {
                cleanup::yield_to_interruption();
                let reason = format!("{error:#}");
                say(format_args!("left out: {system}: {reason}"));
                let case = system;
                visits.skipped.push(Skipped { case, reason });
            }
        }
    }
    let possible: Vec<System> = versions.iter().map(|(system, _)| *system).collect();
    ensure!(
        possible.contains(&System::Plain),
        "plain forwarding does not work, and nothing can be compared with it"
    );
    let plan = args.plan();
    let quiet = Quiet::new(args.quiet_wait);
    interleaved(&mut visits, &possible, args.reps, quiet, |system| {
        visit(&plan, &lines, group.as_ref(), system)
    });
    Ok(report::to_json(&visits, &versions, &plan, args.reps, date))
}

/// Whether a system can be measured here: installed, and keeping what it carries to itself.
fn examine(lines: &Lines, system: System) -> Result<Version> {
    if let Some(reason) = system.missing() {
        bail!("{reason}");
    }
    let version = system.version()?;
    check::prove(&lines.seen, system)?;
    Ok((system, version))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &[&str]) -> Args {
        Cli::try_parse_from([&["e2e"], words].concat())
            .unwrap()
            .args
    }

    #[test]
    fn systems_are_chosen_by_name() {
        let names = |args: &Args| -> Vec<&str> {
            args.chosen()
                .unwrap()
                .into_iter()
                .map(System::name)
                .collect()
        };
        let some = parsed(&["--systems", "openvpn,espada-udp"]);
        assert_eq!(names(&some), ["plain", "espada-udp", "openvpn"]);
        assert_eq!(names(&parsed(&[])).len(), System::ALL.len());
        let error = parsed(&["--systems", "tinc"]).chosen().unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("`tinc`") && error.contains("boringtun"),
            "{error}"
        );
    }

    #[test]
    fn a_quick_look_is_quick() {
        let (quick, usual) = (parsed(&["--quick"]).plan(), parsed(&[]).plan());
        assert!(quick.tcp < usual.tcp && quick.step < usual.step && quick.pings < usual.pings);
        assert!(Cli::try_parse_from(["e2e", "--render", "--quick"]).is_err());
    }
}
