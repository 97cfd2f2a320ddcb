//! The tier that needs other kernels: the eBPF programs under each kernel's verifier, the XFRM
//! engine, and strongSwan with the kernel's own ESP as the peer.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;
use serde_json::Value;

use super::tally::Tally;
use super::{Outcome, Tier};
use crate::process::{self, say};
use crate::vm::{self, Kernel};

/// Software emulation is slow; a run that takes longer than this hangs.
const TIMEOUT: Duration = Duration::from_secs(900);

/// What runs under a kernel, as filters of the test runner.
struct Selection {
    /// Of the data plane's tests, one at a time: they share the BPF file system. The programs under the
    /// verifier, and that what is probed can be used.
    front_end: &'static str,
    /// Of the data plane's tests, side by side.
    xfrm: &'static str,
    /// Of the interop tests.
    interop: &'static str,
}

/// The oldest kernel gets every case of kernel ESP with strongSwan, the others one per kind: they
/// differ in the verifier more than in ESP. What the XFRM engine makes of states and policies
/// differs from kernel to kernel, so that runs under each.
fn selection(kernel: &str) -> Selection {
    Selection {
        front_end: "frontend::tests features::tests device::tests",
        xfrm: "xfrm::tests",
        interop: if kernel == "6.1" {
            "kernel::"
        } else {
            "kernel::kernel_aes_gcm"
        },
    }
}

/// Runs the tier under every kernel. What cannot run is in the outcome as skipped, with why.
pub fn run(espada: &Path) -> Result<Vec<Outcome>> {
    let programs = TestPrograms::build()?;
    Ok(vm::names()
        .map(|name| {
            say(format_args!("\n==== Linux {name} in a virtual machine"));
            let started = Instant::now();
            let mut tally = Tally::default();
            let success = match Kernel::fetch(name) {
                Ok(kernel) => under(&kernel, name, espada, &programs, &mut tally),
                Err(error) => {
                    tally.skips.push(format!("Linux {name}: {error:#}"));
                    true
                }
            };
            Outcome {
                title: format!("Linux {name} in a virtual machine"),
                tally,
                success,
                took: started.elapsed(),
            }
        })
        .collect())
}

fn under(
    kernel: &Kernel,
    name: &str,
    espada: &Path,
    programs: &TestPrograms,
    tally: &mut Tally,
) -> bool {
    let Selection {
        front_end,
        xfrm,
        interop,
    } = selection(name);
    let command = format!(
        "export ESPADA_BIN='{}' NO_COLOR=1 RUST_BACKTRACE=0
'{}' --color=never --test-threads=1 {front_end}; failed=$?
'{}' --color=never --test-threads=2 {xfrm}; failed=$((failed | $?))
'{}' --color=never --test-threads=2 {interop}; exit $((failed | $?))",
        espada.display(),
        programs.dataplane.display(),
        programs.dataplane.display(),
        programs.interop.display(),
    );
    let result = kernel.run(&command, TIMEOUT, |line| {
        say(line);
        tally.read(line);
    });
    match result {
        Ok(code) => code == 0,
        Err(error) => {
            tally.failed += 1;
            tally.failures.push(format!("Linux {name}: {error:#}"));
            false
        }
    }
}

/// Compiled tests, which run under any kernel.
struct TestPrograms {
    dataplane: PathBuf,
    interop: PathBuf,
}

impl TestPrograms {
    fn build() -> Result<Self> {
        // The selections of the tiers before, so that nothing is compiled again.
        let unit = [Tier::Unit.selection(), &["--lib"]].concat();
        Ok(Self {
            dataplane: Self::executable(&unit, "espada_dataplane")?,
            interop: Self::executable(Tier::Interop.selection(), "interop")?,
        })
    }

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
}
