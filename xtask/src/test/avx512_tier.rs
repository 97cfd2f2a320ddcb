//! The tier that needs another processor: the ciphers' code for registers of 512 bits.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::tally::Tally;
use super::{Outcome, Tier, executable};
use crate::process::say;
use crate::vm::Kernel;
use crate::vm::bochs::{self, Bochs};

/// Emulation is slow; a run that takes longer than this hangs.
const TIMEOUT: Duration = Duration::from_secs(1200);

/// The kernel to boot, as `cargo xtask vm` calls it.
const KERNEL: &str = "6.1";

/// Of the ciphers' tests: known answers, other implementations, forgeries, the limits of memory. Every
/// length up to 9000 octets would take an hour.
const SELECTION: &str = "gcm::tests::the_backend gcm::tests::vectors gcm::tests::memory gcm::tests::agreement::a_flipped \
     gcm::tests::agreement::packets gcm::tests::agreement::bursts cbc::tests::rfc cbc::tests::wycheproof hmac::tests::rfc \
     hmac::tests::wycheproof chacha::tests::rfc chacha::tests::wycheproof chacha::tests::sums proof::tests";

/// Runs the tier. What cannot run is in the outcome as skipped, with why.
pub fn run() -> Result<Outcome> {
    let title = Tier::Avx512.title();
    say(format_args!("\n==== {title}"));
    let program = executable(
        &[Tier::Unit.selection(), &["--lib"]].concat(),
        "espada_crypto",
    )?;
    let started = Instant::now();
    let mut tally = Tally::default();
    let success = match Kernel::fetch(KERNEL).and_then(|kernel| Ok((kernel, Bochs::fetch()?))) {
        Ok((kernel, bochs)) => {
            // A test fails if another backend is the best one there.
            let command = format!(
                "NO_COLOR=1 RUST_BACKTRACE=0 ESPADA_TEST_BACKEND=vaes512 {} --test-threads=1 {SELECTION}",
                bochs::PROGRAM
            );
            let result = bochs.run(&kernel, &program, &command, TIMEOUT, |line| {
                say(line);
                tally.read(line);
            });
            match result {
                Ok(code) => code == 0,
                Err(error) => {
                    tally.failed += 1;
                    tally.failures.push(format!("{title}: {error:#}"));
                    false
                }
            }
        }
        Err(error) => {
            tally.skips.push(format!("{title}: {error:#}"));
            true
        }
    };
    Ok(Outcome {
        title: title.to_owned(),
        kernel: KERNEL,
        tally,
        success,
        took: started.elapsed(),
    })
}
