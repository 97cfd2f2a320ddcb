//! One SA that several lanes carry at once.

use std::fmt;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use espada_common::sa::EspSuite;
use serde::Serialize;

use super::engine::Bench;
use super::{BenchError, Options, Times, per_packet};
use crate::esp::Shared;
use crate::port::syscall;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct LanesRow {
    /// Keyword of the suite.
    pub suite: String,
    /// `encrypt` or `decrypt`, each with what belongs to the ICV.
    pub direction: &'static str,
    /// Octets of inner IP packet.
    pub inner_bytes: usize,
    /// Lanes that carry the SA, each on a processor of its own.
    pub lanes: usize,
    /// Nanoseconds per packet of one lane by itself.
    pub ns_alone: f64,
    /// Nanoseconds per packet of all lanes together.
    pub ns: f64,
    /// How many times as many packets all lanes carry as one by itself; as the times the median of
    /// several turns.
    pub speedup: f64,
    /// Inner octets carried by all lanes, in 10^9 bits per second.
    pub gbit_s: f64,
}

impl fmt::Display for LanesRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            suite,
            direction,
            inner_bytes,
            lanes,
            ns_alone,
            ns,
            speedup,
            gbit_s,
        } = self;
        write!(
            f,
            "{suite:<16} {direction:<7} {inner_bytes:>6} {lanes:>6} {ns_alone:>9.1} {ns:>9.1} {speedup:>8.2} {gbit_s:>8.2}"
        )
    }
}

/// The rows as a table for people.
pub struct LanesTable<'a>(pub &'a [LanesRow]);

impl fmt::Display for LanesTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:<7} {:>6} {:>6} {:>9} {:>9} {:>8} {:>8}",
            "suite", "", "bytes", "lanes", "ns alone", "ns", "speedup", "Gbit/s"
        )?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// One lane and several are measured so many times in turns, as a processor may change its speed.
const TURNS: u32 = 5;

/// How much longer a lane may take whose processor was taken away.
const PATIENCE: Duration = Duration::from_secs(1);

/// Measures what [`engine()`](super::engine()) does, with one SA that `lanes` threads work on at once: they
/// share its sequence numbers and its replay window, and have everything else of their own. Beside
/// it, one thread whose SA is its own.
pub fn lanes(options: &Options, lanes: usize) -> Result<Vec<LanesRow>, BenchError> {
    let processors = syscall::processors().map_err(BenchError::Place)?;
    let Some(processors) = processors.get(..lanes).filter(|some| !some.is_empty()) else {
        return Err(BenchError::Processors {
            lanes,
            processors: processors.len(),
        });
    };
    let measurements = options.suites.len() * options.inner_bytes.len() * 2;
    let measurements = u32::try_from(measurements).unwrap_or(u32::MAX).max(1);
    let share = options.duration / measurements / TURNS;
    let mut rows = Vec::new();
    for suite in &options.suites {
        for bytes in options.inner_bytes.iter().map(|bytes| (*bytes).max(28)) {
            let (mut alone, mut together) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                let one = processors.get(..1).unwrap_or_default();
                alone.push(at_once(*suite, bytes, one, share)?);
                together.push(at_once(*suite, bytes, processors, share)?);
            }
            for (direction, number) in [("encrypt", 0), ("decrypt", 1)] {
                let of = |turns: &[[f64; 2]]| median(turns.iter().map(|turn| turn[number]));
                let speedups = alone.iter().zip(&together);
                let ns = of(&together);
                rows.push(LanesRow {
                    suite: suite.to_string(),
                    direction,
                    inner_bytes: bytes,
                    lanes,
                    ns_alone: of(&alone),
                    ns,
                    speedup: median(speedups.map(|(alone, all)| alone[number] / all[number])),
                    gbit_s: bytes as f64 * 8.0 / ns,
                });
            }
        }
    }
    Ok(rows)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Nanoseconds per packet of all threads together, encrypting and decrypting.
fn at_once(
    suite: EspSuite,
    bytes: usize,
    processors: &[usize],
    duration: Duration,
) -> Result<[f64; 2], BenchError> {
    let shared = (processors.len() > 1).then(|| Arc::new(Shared::default()));
    let start = Barrier::new(processors.len());
    let mut benches = Vec::new();
    for _ in processors {
        benches.push(Bench::new(suite, bytes, shared.as_ref())?);
    }
    let results: Vec<Result<Vec<Times>, BenchError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = benches
            .into_iter()
            .zip(processors)
            .map(|(bench, processor)| {
                let start = &start;
                scope.spawn(move || {
                    let pinned = syscall::pin_thread(*processor);
                    start.wait();
                    pinned.map_err(BenchError::Place)?;
                    run(bench, duration)
                })
            })
            .collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .map(|result| result.unwrap_or(Err(BenchError::Thread)))
            .collect()
    });
    let (mut encrypted, mut decrypted) = (0.0, 0.0);
    for times in results {
        let times = times?;
        encrypted += 1.0 / per_packet(times.iter().map(|times| times.encrypt)).0;
        decrypted += 1.0 / per_packet(times.iter().map(|times| times.decrypt)).0;
    }
    Ok([1.0 / encrypted, 1.0 / decrypted])
}

/// Bursts of one lane; the first third goes unmeasured, and so does a burst that the lane did not
/// finish before the others had moved the window past it, because its processor was taken away.
fn run(mut bench: Bench, duration: Duration) -> Result<Vec<Times>, BenchError> {
    let start = Instant::now();
    let mut bursts = Vec::new();
    loop {
        let burst = super::Bench::burst(&mut bench);
        let elapsed = start.elapsed();
        match burst {
            Ok(times) if elapsed >= duration / 3 => bursts.push(times),
            Ok(_) => {}
            Err(BenchError::Lost { .. }) if elapsed < duration + PATIENCE => {}
            Err(error) => return Err(error),
        }
        if elapsed >= duration && !bursts.is_empty() {
            return Ok(bursts);
        }
    }
}
