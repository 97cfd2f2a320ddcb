//! `cargo xtask bench engines`: every engine between the same two gateways, one after another.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use espada_tests::process::WorkDir;
use espada_tests::scenario;
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::{blast, cleanup, traffic};

use super::pair::{Pair, Wanted};
use super::rounds::{Quiet, interleaved};
use super::table::{Case, Measures, Results};
use super::visits::Skipped;
use crate::process::say;
use crate::{build, setup};

/// Engines by the names of the configuration, `ebpf` also with its keystream prepared ahead; the first
/// is the one that others are compared with.
const ENGINES: [&str; 4] = ["userspace", "ebpf", AHEAD, "xfrm"];
const AHEAD: &str = "ebpf-ahead";
/// ESP suites; an engine that lacks one is left out for it.
const SUITES: [&str; 2] = ["chacha20poly1305", "aes256gcm16"];
const PINGS: u32 = 1000;
const SMALL: usize = 64;
/// With IP and UDP headers 1400 octets, which every engine carries in one ESP packet.
const LARGE: usize = 1372;

/// Arguments of `cargo xtask bench engines`. With `ESPADA_BIN` in the environment that program is
/// measured instead of one built from this tree.
#[derive(clap::Args)]
pub struct Args {
    /// Repetitions; each visits every engine, every second one in reverse order
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
    /// Seconds that each rate of UDP packets is tried for
    #[arg(long, default_value_t = 2.0)]
    step: f64,
    /// Seconds that a TCP stream is measured for
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=40))]
    tcp: u32,
    /// Only these engines; `plain` forwarding is always measured
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Only these ESP suites
    #[arg(long, value_delimiter = ',')]
    suites: Vec<String>,
    /// Seconds, in all, to wait for other programs on this machine to be quiet
    #[arg(long, default_value_t = 120)]
    quiet_wait: u64,
    /// Print one JSON object on standard output instead of the tables
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Plain forwarding, and every engine with every suite that was asked for.
    fn cases(&self) -> Result<Vec<Case>> {
        let chosen = |all: &[&'static str], wanted: &[String]| -> Result<Vec<&'static str>> {
            if let Some(unknown) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
                bail!(
                    "unknown name `{unknown}`; expected some of {}",
                    all.join(", ")
                );
            }
            Ok(all
                .iter()
                .copied()
                .filter(|name| wanted.is_empty() || wanted.iter().any(|other| other == name))
                .collect())
        };
        let engines = chosen(&ENGINES, &self.engines)?;
        let mut cases = vec![Case::Plain];
        for suite in chosen(&SUITES, &self.suites)? {
            cases.extend(engines.iter().map(|&engine| Case::Tunnel { engine, suite }));
        }
        Ok(cases)
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        espada_tests::syscall::is_root(),
        "the measurement makes network namespaces, which needs root"
    );
    ensure!(
        (0.1..=20.0).contains(&args.step),
        "--step {}: expected 0.1 to 20 seconds",
        args.step
    );
    let cases = args.cases()?;
    setup::install_packages()?;
    if std::env::var_os("ESPADA_BIN").is_none() {
        build::refresh_object()?;
        build::build_espada()?;
    }
    let outcome = measure(args, cases);
    cleanup::yield_to_interruption();
    let results = outcome?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{:#}", results.to_json())?;
    } else {
        write!(out, "{}", results.to_markdown())?;
    }
    Ok(())
}

fn measure(args: &Args, cases: Vec<Case>) -> Result<Results> {
    let line = Line::new(Wan::Direct)?;
    let mut results = Results::new(args.reps);
    let mut possible = Vec::new();
    for case in cases {
        match bring_up(&line, &case) {
            Ok(carried) => {
                drop(carried);
                possible.push(case);
            }
            Err(error) => {
                let reason = format!("{error:#}");
                say(format_args!("left out: {case}: {reason}"));
                results.visits.skipped.push(Skipped { case, reason });
            }
        }
    }
    let quiet = Quiet::new(args.quiet_wait);
    interleaved(&mut results.visits, &possible, args.reps, quiet, |case| {
        visit(args, &line, &case)
    });
    Ok(results)
}

/// What stands while a case is measured. Fields are dropped in this order.
struct Carried<'l> {
    pair: Option<Pair>,
    line: &'l Line,
    work: WorkDir,
}

impl Carried<'_> {
    fn still_carries(&self) -> Result<()> {
        self.pair.as_ref().map_or(Ok(()), Pair::still_carries)
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        match self.pair.take() {
            Some(pair) => drop(pair),
            None => {
                if let Err(error) = self.line.remove_plain_routes() {
                    say(format_args!("the plain routes stay: {error:#}"));
                }
            }
        }
    }
}

/// Sets a case up and checks with a few packets that it carries what it should.
fn bring_up<'l>(line: &'l Line, case: &Case) -> Result<Carried<'l>> {
    let work = WorkDir::new()?;
    let pair = match *case {
        Case::Plain => {
            line.add_plain_routes()?;
            None
        }
        Case::Tunnel { engine, suite } => {
            let (engine, dataplane) = match engine {
                AHEAD => ("ebpf", "keystream_ahead = true"),
                _ => (engine, ""),
            };
            let wanted = Wanted {
                engine,
                suite,
                dataplane,
                connection: scenario::NATIVE,
                encapsulation: Some("esp"),
                xsk: None,
                bypass: false,
            };
            Some(Pair::start(line, &work, wanted)?)
        }
    };
    let carried = Carried { pair, line, work };
    let ping = traffic::ping(&line.client, addr::SERVER, 20, &[])?;
    ensure!(ping.is_complete(), "echo requests were lost: {ping:?}");
    carried.still_carries()?;
    Ok(carried)
}

/// Sets a case up and takes every measurement of it.
fn visit(args: &Args, line: &Line, case: &Case) -> Result<Measures> {
    let carried = bring_up(line, case)?;
    let work = &carried.work;
    let (client, server, to) = (&line.client, &line.server, addr::SERVER);
    let idle = traffic::round_trips(client, to, PINGS).context("round trips")?;
    let small = blast::highest(client, server, to, SMALL, args.step).context("small packets")?;
    let large = blast::highest(client, server, to, LARGE, args.step).context("large packets")?;
    let tcp_gbps =
        traffic::tcp_throughput(client, server, to, args.tcp, work).context("a TCP stream")?;
    let loaded = traffic::loaded_round_trips(client, server, to, PINGS, None, work)?;
    carried.still_carries().context("after the measurements")?;
    Ok(Measures {
        small,
        large,
        tcp_gbps,
        idle,
        loaded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name() {
        let args = |engines: &[&str]| Args {
            reps: 1,
            step: 1.0,
            tcp: 2,
            engines: engines.iter().map(|&name| name.to_owned()).collect(),
            suites: vec!["aes256gcm16".to_owned()],
            quiet_wait: 0,
            json: false,
        };
        let names = |args: Args| -> Vec<String> {
            args.cases().unwrap().iter().map(Case::to_string).collect()
        };
        assert_eq!(
            names(args(&["xfrm", "userspace"])),
            [
                "plain forwarding",
                "userspace aes256gcm16",
                "xfrm aes256gcm16"
            ]
        );
        assert_eq!(names(args(&[])).len(), 5);
        let error = args(&["kernel"]).cases().unwrap_err().to_string();
        assert!(
            error.contains("`kernel`") && error.contains("xfrm"),
            "{error}"
        );
    }
}
