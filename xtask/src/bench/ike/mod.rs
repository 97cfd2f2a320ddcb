//! `cargo xtask bench ike`: how fast IKE SAs with a child SA are set up, Espada and strongSwan in
//! either role; and what many tunnels cost.

mod gateways;
mod load;
mod many;
mod session;

use std::fmt::{self, Display, Write as _};
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use espada_tests::cleanup;
use espada_tests::topology::{Line, Wan};
use serde_json::{Value, json};

use super::rounds::{Quiet, interleaved};
use super::visits::{Column, Visits};
use crate::process::say;
use crate::{build, setup};
use gateways::{Auth, Pair, Program, Wanted};

/// Authentication and key exchange: names, and the IKE proposal.
const EXCHANGES: [(Auth, &str, &str); 3] = [
    (Auth::Psk, "x25519", "aes256-sha256-x25519"),
    (Auth::Psk, "modp2048", "aes256-sha256-modp2048"),
    (Auth::Ecdsa, "x25519", "aes256-sha256-x25519"),
];
/// Set-ups under way at a time.
const CONCURRENCY: [u32; 2] = [1, 16];

/// Arguments of `cargo xtask bench ike`. With `ESPADA_BIN` in the environment that program is
/// measured instead of one built from this tree.
#[derive(clap::Args)]
pub struct Args {
    /// Repetitions; each visits every case, every second one in reverse order
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
    /// Set-ups of a visit
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=8000))]
    count: u32,
    /// Longest time of a visit, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Measure what so many tunnels cost instead: memory, and the time that `espada status` takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tunnels: Option<u32>,
    /// Seconds, in all, to wait for other programs on this machine to be quiet
    #[arg(long, default_value_t = 120)]
    quiet_wait: u64,
    /// Print JSON on standard output instead of a table
    #[arg(long)]
    json: bool,
}

/// Who talks to whom, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    initiator: Program,
    responder: Program,
    auth: Auth,
    ke: &'static str,
    ike: &'static str,
    concurrency: u32,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for (auth, ke, ike) in EXCHANGES {
            for concurrency in CONCURRENCY {
                for initiator in Program::ALL {
                    for responder in Program::ALL {
                        cases.push(Self {
                            initiator,
                            responder,
                            auth,
                            ke,
                            ike,
                            concurrency,
                        });
                    }
                }
            }
        }
        cases
    }

    fn missing(&self) -> Option<String> {
        self.initiator.missing().or(self.responder.missing())
    }
}

impl Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            initiator,
            responder,
            auth,
            ke,
            concurrency,
            ..
        } = self;
        let auth = auth.name();
        write!(
            out,
            "{initiator} to {responder}, {auth}, {ke}, {concurrency} at once"
        )
    }
}

/// What a visit measured.
#[derive(Clone, Copy, Debug)]
struct Measures {
    per_second: f64,
    responder_per_core_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    failed: f64,
}

const fn column(
    name: &'static str,
    title: &'static str,
    value: fn(&Measures) -> Option<f64>,
    digits: usize,
) -> Column<Measures> {
    Column {
        name,
        title,
        value,
        limited: |_| false,
        digits,
    }
}

const COLUMNS: [Column<Measures>; 5] = [
    column("per_second", "a second", |m| Some(m.per_second), 0),
    column(
        "responder_per_core_second",
        "a responder's core-second",
        |m| Some(m.responder_per_core_second),
        0,
    ),
    column("p50_ms", "p50, ms", |m| Some(m.p50_ms), 2),
    column("p99_ms", "p99, ms", |m| Some(m.p99_ms), 2),
    column("failed", "failed", |m| Some(m.failed), 0),
];

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        espada_tests::syscall::is_root(),
        "the measurement makes network namespaces, which needs root"
    );
    setup::install_packages()?;
    if std::env::var_os("ESPADA_BIN").is_none() {
        build::refresh_object()?;
        build::build_espada()?;
    }
    let outcome = match args.tunnels {
        Some(tunnels) => many::measure(tunnels as usize, args.json),
        None => compare(args),
    };
    cleanup::yield_to_interruption();
    write!(std::io::stdout(), "{}", outcome?)?;
    Ok(())
}

fn compare(args: &Args) -> Result<String> {
    let line = Line::new(Wan::Direct)?;
    let mut visits = Visits::default();
    let (possible, impossible): (Vec<Case>, Vec<Case>) = Case::all()
        .into_iter()
        .partition(|case| case.missing().is_none());
    for case in impossible {
        let reason = case.missing().unwrap_or_default();
        say(format_args!("left out: {case}: {reason}"));
    }
    let quiet = Quiet::new(args.quiet_wait);
    interleaved(&mut visits, &possible, args.reps, quiet, |case| {
        visit(args, &line, &case)
    });
    Ok(if args.json {
        format!("{:#}\n", to_json(&visits))
    } else {
        to_markdown(&visits)
    })
}

fn visit(args: &Args, line: &Line, case: &Case) -> Result<Measures> {
    let wanted = Wanted {
        initiator: case.initiator,
        responder: case.responder,
        auth: case.auth,
        ike: case.ike,
        connections: args.count as usize,
    };
    let pair = Pair::start(line, &wanted)?;
    let names: Vec<String> = (0..wanted.connections).map(gateways::name).collect();
    let before = pair.responder.processor_seconds()?;
    let limit = Duration::from_secs(args.seconds);
    let outcome = load::run(&pair.initiator.control(), &names, case.concurrency, limit)?;
    let used = pair.responder.processor_seconds()? - before;
    let count = outcome.latencies.len();
    ensure!(count > 0, "no set-up succeeded ({} failed)", outcome.failed);
    let milliseconds = |part| {
        let time = outcome.quantile(part).unwrap_or_default();
        time.as_secs_f64() * 1e3
    };
    Ok(Measures {
        per_second: count as f64 / outcome.elapsed.as_secs_f64(),
        // The kernel counts in hundredths of a second.
        responder_per_core_second: count as f64 / used.max(0.01),
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        failed: outcome.failed as f64,
    })
}

fn to_json(visits: &Visits<Case, Measures>) -> Value {
    let row = |case: Case| {
        let mut row = json!({
            "initiator": case.initiator.name(), "responder": case.responder.name(),
            "auth": case.auth.name(), "ke": case.ke, "concurrency": case.concurrency,
        });
        for column in &COLUMNS {
            row[column.name] = json!(visits.median(case, column));
        }
        row
    };
    visits.cases().into_iter().map(row).collect()
}

fn to_markdown(visits: &Visits<Case, Measures>) -> String {
    let mut out = "| initiator | responder | proof | key exchange | at once |".to_owned();
    for column in &COLUMNS {
        let _ = write!(out, " {} |", column.title);
    }
    out.push_str("\n|---|---|---|---|---:|");
    out.push_str(&"---:|".repeat(COLUMNS.len()));
    for case in visits.cases() {
        let _ = write!(
            out,
            "\n| {} | {} | {} | {} | {} |",
            case.initiator,
            case.responder,
            case.auth.name(),
            case.ke,
            case.concurrency
        );
        for column in &COLUMNS {
            let median = visits.median(case, column).unwrap_or(f64::NAN);
            let _ = write!(out, " {median:.*} |", column.digits);
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::super::visits::Visit;
    use super::*;

    #[test]
    fn results_have_a_row_for_each_case() {
        let mut visits = Visits::default();
        let cases = Case::all();
        assert_eq!(cases.len(), 24);
        for (rep, per_second) in [(0, 1000.0), (1, 3000.0), (2, 2000.0)] {
            visits.add(Visit {
                rep,
                case: cases[0],
                measures: Measures {
                    per_second,
                    responder_per_core_second: 1.0,
                    p50_ms: 0.5,
                    p99_ms: 1.0,
                    failed: 0.0,
                },
                busy_before: 0.0,
            });
        }
        let json = to_json(&visits);
        assert_eq!(json[0]["initiator"], "espada");
        assert_eq!(json[0]["per_second"], 2000.0);
        assert_eq!(json.as_array().unwrap().len(), 1);
        let table = to_markdown(&visits);
        assert!(
            table.contains("| espada | espada | psk | x25519 | 1 | 2000 | 1 | 0.50 | 1.00 | 0 |"),
            "{table}"
        );
    }
}
