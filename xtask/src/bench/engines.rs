//! `cargo xtask bench engines`: every engine between the same two gateways, one after another.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use espada_tests::espada::{self, Config, Espada};
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, child, count};
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::{blast, cleanup, cmd, traffic};

use super::table::{Case, Measures, Results, Skipped};
use crate::process::say;
use crate::{build, setup};

/// Engines by the names of the configuration; the first is the one that others are compared with.
const ENGINES: [&str; 3] = ["userspace", "ebpf", "xfrm"];
/// ESP suites; an engine that lacks one is left out for it.
const SUITES: [&str; 2] = ["chacha20poly1305", "aes256gcm16"];
const PINGS: u32 = 1000;
const SMALL: usize = 64;
/// With IP and UDP headers 1400 octets, which every engine carries in one ESP packet.
const LARGE: usize = 1372;
/// iperf3 leaves out its first second, and pings beside it wait until it is over.
const WARM_UP: Duration = Duration::from_millis(1200);

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
                results.skipped.push(Skipped { case, reason });
            }
        }
    }
    let mut quiet = Quiet {
        left: Duration::from_secs(args.quiet_wait),
    };
    for rep in 0..args.reps {
        let mut order: Vec<&Case> = possible.iter().collect();
        if rep % 2 == 1 {
            order.reverse();
        }
        for case in order {
            let busy = quiet.wait();
            say(format_args!(
                "repetition {} of {}: {case} ({:.0} % of the processors busy before)",
                rep + 1,
                args.reps,
                busy * 100.0
            ));
            // Once more where a busy machine spoilt the first attempt.
            let outcome = visit(args, &line, case).or_else(|error| {
                say(format_args!("{case}: {error:#}; once more"));
                visit(args, &line, case)
            });
            match outcome {
                Ok(measures) => results.add(
                    rep,
                    case,
                    Measures {
                        busy_before: busy,
                        ..measures
                    },
                ),
                Err(error) => {
                    let reason = format!("repetition {}: {error:#}", rep + 1);
                    say(format_args!("left out: {case}: {reason}"));
                    results.skipped.push(Skipped {
                        case: *case,
                        reason,
                    });
                }
            }
        }
    }
    Ok(results)
}

/// What stands while a case is measured. Fields are dropped in this order.
struct Carried<'l> {
    gateways: Option<[Espada; 2]>,
    engine: Option<(&'static str, &'static str)>,
    line: &'l Line,
    work: WorkDir,
}

impl Carried<'_> {
    /// Whether what was asked for is what carries the packets: a tunnel that another engine or
    /// suite carries, or traffic past it, must not be measured under a wrong name.
    fn still_carries(&self) -> Result<()> {
        let (Some(gateways), Some((engine, suite))) = (&self.gateways, self.engine) else {
            return Ok(());
        };
        for gateway in gateways {
            let connection = gateway.connection()?;
            let child = child(&connection);
            ensure!(
                child["suite"]
                    .as_str()
                    .is_some_and(|text| text.starts_with(suite)),
                "the SA's suite is {}",
                child["suite"]
            );
            let status = gateway.status()?;
            // Where SAs can have engines of their own, they say so.
            let carrier = child["engine"].as_str().or(status["engine"].as_str());
            ensure!(
                carrier == Some(engine),
                "the SA is carried by {}",
                carrier.unwrap_or("nobody")
            );
            for direction in ["inbound", "outbound"] {
                ensure!(
                    count(&child[direction]["packets"]) > 0,
                    "no packet was counted {direction}: {child:#}"
                );
            }
        }
        Ok(())
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        match self.gateways.take() {
            Some(gateways) => drop(gateways),
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
    let carried = match *case {
        Case::Plain => {
            line.add_plain_routes()?;
            Carried {
                gateways: None,
                engine: None,
                line,
                work,
            }
        }
        Case::Tunnel { engine, suite } => {
            let global = format!("engine = \"{engine}\"");
            let adapt = |config: Config<'static>| Config {
                esp: suite,
                ..config
            };
            let config_a = Config {
                global: &global,
                ..adapt(scenario::config_a(line))
            };
            let config_b = Config {
                global: &global,
                ..adapt(scenario::config_b(line))
            };
            check(&config_a, &work)?;
            let b = Espada::start(&line.gw_b, &work, &config_b, false).map_err(last_words)?;
            let a = Espada::start(&line.gw_a, &work, &config_a, false).map_err(last_words)?;
            up(&a)?;
            a.wait_established()?;
            b.wait_established()?;
            Carried {
                gateways: Some([a, b]),
                engine: Some((engine, suite)),
                line,
                work,
            }
        }
    };
    let ping = traffic::ping(&line.client, addr::SERVER, 20, &[])?;
    ensure!(ping.is_complete(), "echo requests were lost: {ping:?}");
    carried.still_carries()?;
    Ok(carried)
}

/// Brings the tunnel up; an error is what the daemon says in a sentence.
fn up(gateway: &Espada) -> Result<()> {
    let Err(error) = gateway.up() else {
        return Ok(());
    };
    let connection = gateway.connection()?;
    match connection["last_error"]["summary"].as_str() {
        Some(summary) => bail!("{summary}"),
        None => Err(error),
    }
}

/// What this program says of a configuration; a name of an engine that it does not know is refused
/// here.
fn check(config: &Config<'_>, work: &WorkDir) -> Result<()> {
    let files = work.file("check");
    Espada::write_files(&files, &config.render(), &config.render_secrets())?;
    let binary = espada::binary()?.display().to_string();
    let file = files.join("espada.toml").display().to_string();
    let output = cmd::output(&[&binary, "check", &file])?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty());
    // The folder's name says nothing to the reader.
    let first = first.unwrap_or("refused without a word");
    let prefix = format!("{}/", files.display());
    bail!("{}", first.replace(&prefix, ""))
}

/// Of a daemon that did not start, what it said last.
fn last_words(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    anyhow!(
        "the daemon does not start: {}",
        last.unwrap_or(&text).trim()
    )
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
    let loaded = std::thread::scope(|scope| -> Result<_> {
        // Long enough for the warm-up and a thousand pings a millisecond and a half apart.
        let stream = scope.spawn(|| traffic::tcp_throughput(client, server, to, 3, work));
        std::thread::sleep(WARM_UP);
        let loaded = traffic::round_trips(client, to, PINGS);
        stream
            .join()
            .map_err(|_| anyhow!("the TCP stream's thread panicked"))?
            .context("a TCP stream beside pings")?;
        loaded.context("round trips beside a TCP stream")
    })?;
    carried.still_carries().context("after the measurements")?;
    Ok(Measures {
        small,
        large,
        tcp_gbps,
        idle,
        loaded,
        busy_before: 0.0,
    })
}

/// Waits for other programs to be quiet, within a budget.
struct Quiet {
    left: Duration,
}

impl Quiet {
    /// The part of the processors that others use, 0 to 1, when the waiting is over.
    fn wait(&mut self) -> f64 {
        const LOOK: Duration = Duration::from_millis(500);
        const QUIET: f64 = 0.05;
        loop {
            let started = Instant::now();
            let before = busy_and_all();
            std::thread::sleep(LOOK);
            let busy = match (before, busy_and_all()) {
                (Some(before), Some(after)) if after.1 > before.1 => {
                    (after.0 - before.0) as f64 / (after.1 - before.1) as f64
                }
                _ => return 0.0,
            };
            if busy <= QUIET || self.left.is_zero() {
                return busy;
            }
            std::thread::sleep(LOOK);
            self.left = self.left.saturating_sub(started.elapsed());
        }
    }
}

/// Ticks of all processors: not idle (time that a virtual machine's host took included), and all.
fn busy_and_all() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    ticks(text.lines().next()?)
}

fn ticks(line: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = line
        .strip_prefix("cpu ")?
        .split_whitespace()
        // user nice system idle iowait irq softirq steal; guests are part of user.
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_understood() {
        assert_eq!(
            ticks("cpu  10 1 20 100 5 2 3 4 7 0"),
            Some((40, 145)),
            "idle and waiting for disks are not busy"
        );
        assert_eq!(ticks("cpu0 1 2"), None);
    }

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
        assert_eq!(names(args(&[])).len(), 4);
        let error = args(&["kernel"]).cases().unwrap_err().to_string();
        assert!(
            error.contains("`kernel`") && error.contains("xfrm"),
            "{error}"
        );
    }
}
