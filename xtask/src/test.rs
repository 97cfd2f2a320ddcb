//! `cargo xtask test`: set-up, every tier of tests, and a summary with the runners' own counts.

mod avx512_tier;
mod tables;
mod tally;
mod vm_tier;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;
use serde_json::Value;

use crate::process::{self, say};
use crate::{build, peers, setup};
use tally::Tally;

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these tiers
    #[arg(value_enum)]
    tiers: Vec<Tier>,
    /// Only tests whose names contain this
    #[arg(long)]
    filter: Option<String>,
}

/// A part of the test suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// Unit and property tests, handshakes on virtual time, eBPF programs run by the kernel
    Unit,
    /// Gateways, clients and servers in network namespaces
    Netns,
    /// strongSwan at the other end, and other peers where the kernel has ESP
    Interop,
    /// Other kernels in virtual machines: their eBPF verifiers, their own ESP
    Vm,
    /// The ciphers on an emulated processor with AVX-512
    Avx512,
}

const TIERS: [Tier; 5] = [
    Tier::Unit,
    Tier::Netns,
    Tier::Interop,
    Tier::Vm,
    Tier::Avx512,
];

impl Tier {
    fn title(self) -> &'static str {
        match self {
            Self::Unit => "unit, property, virtual time, BPF",
            Self::Netns => "network namespaces",
            Self::Interop => "interop",
            Self::Vm => "virtual machines",
            Self::Avx512 => "ciphers on a processor with AVX-512",
        }
    }

    /// What cargo's `test` is told for this tier; nothing for the tiers that run elsewhere.
    fn selection(self) -> &'static [&'static str] {
        match self {
            Self::Unit => &["--workspace", "--exclude", "espada-tests"],
            Self::Netns => &["--package", "espada-tests", "--lib", "--test", "netns"],
            Self::Interop => &[
                "--package",
                "espada-tests",
                "--test",
                "harness",
                "--test",
                "interop",
            ],
            Self::Vm | Self::Avx512 => &[],
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    setup::install_all()?;
    build::refresh_object()?;
    let espada = build::build_espada()?;
    let tiers: Vec<Tier> = TIERS
        .into_iter()
        .filter(|tier| args.tiers.is_empty() || args.tiers.contains(tier))
        .collect();
    let needs_peers = [Tier::Interop, Tier::Vm]
        .iter()
        .any(|tier| tiers.contains(tier));
    let peers = needs_peers.then(peers::environment).unwrap_or_default();
    let mut results = Vec::new();
    for tier in tiers {
        // The selections of tests of these are their own.
        if tier.selection().is_empty() {
            if args.filter.is_none() {
                results.extend(match tier {
                    Tier::Avx512 => vec![avx512_tier::run()?],
                    _ => vm_tier::run(&espada, &peers)?,
                });
            }
            continue;
        }
        say(format_args!("\n==== {}", tier.title()));
        let mut command = cargo();
        command
            .current_dir(process::root())
            .env("ESPADA_BIN", &espada)
            .envs(peers.clone())
            .args(["test", "--release", "--no-fail-fast"])
            .args(tier.selection())
            .arg("--")
            // Namespaces are separate; two at a time keep waiting tests from holding up others.
            .arg("--test-threads=2")
            .args(&args.filter);
        let started = Instant::now();
        let (tally, success) = run_tests(&mut command)?;
        results.push(Outcome {
            title: tier.title().to_owned(),
            kernel: "host",
            tally,
            success,
            took: started.elapsed(),
        });
    }
    let mut out = std::io::stdout();
    let text = summary(&results) + &tables::programs(&results) + &tables::matrix(&results);
    out.write_all(text.as_bytes())
        .context("cannot write the summary")?;
    if results
        .iter()
        .any(|outcome| !outcome.success || outcome.tally.failed > 0)
    {
        bail!("tests failed");
    }
    if args.filter.is_none() && results.iter().any(|outcome| outcome.tally.total() == 0) {
        bail!("a tier ran no test at all");
    }
    Ok(())
}

/// What a tier, or a part of one, came to.
struct Outcome {
    title: String,
    /// `host`, or the kernel of the virtual machine as `cargo xtask vm` calls it.
    kernel: &'static str,
    tally: Tally,
    success: bool,
    took: Duration,
}

/// Runs a test command, shows its output as it comes, and counts.
fn run_tests(command: &mut Command) -> Result<(Tally, bool)> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("cannot run cargo")?;
    // Our copies of the pipe's writing end would keep the reader waiting for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        say(&line);
        tally.read(&line);
    }
    Ok((tally, child.wait()?.success()))
}

/// The compiled test program `target` of what `selection` tells cargo.
fn executable(selection: &[&str], target: &str) -> Result<PathBuf> {
    let output = cargo()
        .current_dir(process::root())
        .args(["test", "--release", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(selection)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo named no test program {target}"))
}

fn summary(results: &[Outcome]) -> String {
    let mut text = format!(
        "\n{:36} {:>7} {:>7} {:>8} {:>7}\n",
        "tier", "passed", "failed", "skipped", "time"
    );
    for outcome in results {
        let tally = &outcome.tally;
        text += &format!(
            "{:36} {:>7} {:>7} {:>8} {:>6}s{}\n",
            outcome.title,
            tally.passed(),
            tally.failed,
            tally.skipped(),
            outcome.took.as_secs(),
            if outcome.success { "" } else { "  FAILED" }
        );
    }
    for outcome in results {
        for name in &outcome.tally.failures {
            text += &format!("FAILED  {name}\n");
        }
        for reason in outcome.tally.skip_reasons() {
            text += &format!("SKIPPED {reason}\n");
        }
    }
    text
}
