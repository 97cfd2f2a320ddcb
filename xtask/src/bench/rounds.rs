//! Measuring several cases again and again, each time all of them, while the machine is quiet.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Result;
use espada_tests::cleanup;

use super::visits::{Skipped, Visit, Visits};
use crate::process::say;

/// Visits every case in each repetition, in every second one in reverse order. A visit that fails is
/// tried once more, as a busy machine may have spoilt it, and is then left out with its reason.
pub fn interleaved<K: Copy + PartialEq + Display, M>(
    visits: &mut Visits<K, M>,
    cases: &[K],
    reps: u32,
    mut quiet: Quiet,
    mut visit: impl FnMut(K) -> Result<M>,
) {
    for rep in 0..reps {
        let mut order = cases.to_vec();
        if rep % 2 == 1 {
            order.reverse();
        }
        for case in order {
            let busy_before = quiet.wait();
            say(format_args!(
                "repetition {} of {reps}: {case} ({:.0} % of the processors busy before)",
                rep + 1,
                busy_before * 100.0
            ));
            let outcome = visit(case).or_else(|error| {
                cleanup::yield_to_interruption();
                say(format_args!("{case}: {error:#}; once more"));
                visit(case)
            });
            match outcome {
                Ok(measures) => visits.add(Visit {
                    rep,
                    case,
                    measures,
                    busy_before,
                }),
                Err(error) => {
                    cleanup::yield_to_interruption();
                    let reason = format!("repetition {}: {error:#}", rep + 1);
                    say(format_args!("left out: {case}: {reason}"));
                    visits.skipped.push(Skipped { case, reason });
                }
            }
        }
    }
}

/// Waits for other programs to be quiet, within a budget.
pub struct Quiet {
    left: Duration,
}

impl Quiet {
    /// With this many seconds to wait in all.
    pub fn new(seconds: u64) -> Self {
        Self {
            left: Duration::from_secs(seconds),
        }
    }

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
    use anyhow::bail;

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
    fn every_second_repetition_is_reversed_and_a_failure_tried_again() {
        let mut visits = Visits::default();
        let mut order = Vec::new();
        interleaved(&mut visits, &["a", "b"], 2, Quiet::new(0), |case| {
            order.push(case);
            if case == "b" && order.len() < 5 {
                bail!("the machine was busy");
            }
            Ok(order.len())
        });
        assert_eq!(order, ["a", "b", "b", "b", "b", "a"]);
        let kept: Vec<_> = visits.all().iter().map(|it| (it.rep, it.case)).collect();
        assert_eq!(kept, [(0, "a"), (1, "b"), (1, "a")]);
        assert_eq!(visits.skipped.len(), 1);
        assert!(
            visits.skipped[0]
                .reason
                .contains("repetition 1: the machine")
        );
    }
}
