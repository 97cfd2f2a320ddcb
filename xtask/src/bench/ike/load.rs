//! Many set-ups, several at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::session::Control;
use crate::process::say;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// How long each set-up took, ascending.
    pub latencies: Vec<Duration>,
    /// Set-ups that were refused or not answered.
    pub failed: usize,
}

impl Outcome {
    /// The time that a part of the set-ups, 0 to 1, did not take longer than.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let last = self.latencies.len().checked_sub(1)?;
        let at = (last as f64 * part).round() as usize;
        self.latencies.get(at).copied()
    }
}

/// Sets connections up, `concurrency` at a time, until all are or `limit` is over.
pub fn run(
    control: &Control,
    names: &[String],
    concurrency: u32,
    limit: Duration,
) -> Result<Outcome> {
    let next = AtomicUsize::new(0);
    let latencies = Mutex::new(Vec::with_capacity(names.len()));
    let first_error = Mutex::new(None);
    let failed = AtomicUsize::new(0);
    let began = Instant::now();
    let work = || -> Result<()> {
        let mut session = control.session()?;
        let mut own = Vec::new();
        while began.elapsed() < limit
            && let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let asked = Instant::now();
            match session.set_up(name) {
                Ok(()) => own.push(asked.elapsed()),
                Err(error) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    lock(&first_error).get_or_insert(error);
                    session = control.session()?;
                }
            }
        }
        lock(&latencies).extend(own);
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..concurrency).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
    .context("the daemon that initiates cannot be asked")?;
    let elapsed = began.elapsed();
    if let Some(error) = lock(&first_error).take() {
        say(format_args!("the first failure: {error:#}"));
    }
    let mut latencies = std::mem::take(&mut *lock(&latencies));
    latencies.sort_unstable();
    Ok(Outcome {
        elapsed,
        latencies,
        failed: failed.into_inner(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let outcome = Outcome {
            elapsed: Duration::from_secs(1),
            latencies: (1..=100).map(Duration::from_millis).collect(),
            failed: 0,
        };
        assert_eq!(outcome.quantile(0.99), Some(Duration::from_millis(99)));
        assert_eq!(outcome.quantile(1.0), Some(Duration::from_millis(100)));
        let none = Outcome {
            latencies: Vec::new(),
            ..outcome
        };
        assert_eq!(none.quantile(0.5), None);
    }
}
