//! `espada bench`: what ESP costs per packet on this processor, in memory and on one core.
//!
//! [`engine()`] measures the whole way of a packet through the userspace engine, [`lanes()`] the same
//! with one SA on several processors, [`crypto()`] its ciphers alone, [`sas()`] what the number of
//! SAs costs. All take bursts of [`BURST`] packets, and what opens packets is given
//! those that were sealed a moment ago, so they are in the cache as far as they fit: as they would
//! be right after a copy from a socket.

mod crypto;
mod engine;
mod lanes;
mod sas;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use espada_common::sa::{
    ChildSa, ChildSaId, Cipher, Encapsulation, EspSuite, GcmIcv, HalfSa, Integrity, Mode, Path,
    SecretBytes, Share, TrafficSelector,
};
use serde::Serialize;

use crate::esp::sad::{Geometry, TRAILER};
use crate::esp::{self, ApplyError};
use crate::syscall;
use crate::umem::BURST;

pub use lanes::{LanesRow, LanesTable, lanes};
pub use sas::{SaRow, SaTable, sas};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Octets of inner packets, at least 28.
    pub inner_bytes: Vec<usize>,
    /// Suites.
    pub suites: Vec<EspSuite>,
    /// Time for everything; of each suite and size at least one burst is measured.
    pub duration: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let usual = |suite: &EspSuite| match suite.cipher {
            Cipher::AesGcm(bits, icv) => bits != 192 && icv == GcmIcv::Sixteen,
            Cipher::AesCbc(bits) => {
                let aes = [Integrity::AesXcbc96, Integrity::AesCmac96];
                bits != 192 && !suite.integrity.is_some_and(|it| aes.contains(&it))
            }
            Cipher::ChaCha20Poly1305 => true,
            _ => false,
        };
        Self {
            inner_bytes: vec![64, 512, 1400, 8900],
            suites: EspSuite::all().filter(usual).collect(),
            duration: Duration::from_secs(5),
        }
    }
}

/// There is no suite of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no suite of this name; there are {}", names().join(", "))]
pub struct UnknownSuite;

fn names() -> Vec<String> {
    EspSuite::all().map(|suite| suite.to_string()).collect()
}

/// The suite of a name such as `aes256gcm16`.
pub fn suite(name: &str) -> Result<EspSuite, UnknownSuite> {
    EspSuite::all()
        .find(|suite| suite.to_string() == name)
        .ok_or(UnknownSuite)
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Keyword of the suite.
    pub suite: String,
    /// The instructions, or the crate, that the processor has for packets of this size: of the
    /// cipher, and after a comma of the HMAC.
    pub instructions: String,
    /// `encrypt` or `decrypt`, each with what belongs to the ICV.
    pub direction: &'static str,
    /// Octets of inner IP packet.
    pub inner_bytes: usize,
    /// Nanoseconds per packet.
    pub ns: f64,
    /// Clocks of the time-stamp counter per packet, where the processor has one. It runs at a
    /// constant rate, not at the core's.
    pub tsc_clocks: Option<f64>,
    /// Inner octets carried, in 10^9 bits per second of one core.
    pub gbit_s: f64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clocks = self
            .tsc_clocks
            .map_or_else(|| "-".to_owned(), |clocks| format!("{clocks:.0}"));
        let Self {
            suite,
            instructions,
            direction,
            inner_bytes,
            ns,
            gbit_s,
            ..
        } = self;
        write!(
            f,
            "{suite:<16} {instructions:<16} {direction:<7} {inner_bytes:>6} {ns:>9.1} {clocks:>9} {gbit_s:>8.2}"
        )
    }
}

/// The rows as a table for people.
pub struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:<16} {:<7} {:>6} {:>9} {:>9} {:>8}",
            "suite", "instructions", "", "bytes", "ns", "clocks", "Gbit/s"
        )?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No packet memory.
    #[error("packet memory for the benchmark: {0}")]
    Memory(#[from] io::Error),
    /// The SA was refused.
    #[error(transparent)]
    Sa(#[from] ApplyError),
    /// Packets got lost, so the numbers would mean nothing.
    #[error("{suite}: {carried} of {offered} packets of {bytes} octets came out")]
    Lost {
        /// Suite measured.
        suite: EspSuite,
        /// Octets of inner packet.
        bytes: usize,
        /// Packets that went in.
        offered: usize,
        /// Packets that came out.
        carried: usize,
    },
    /// Lanes that share processors would measure each other.
    #[error(
        "{lanes} lanes cannot be measured: each needs a processor of its own, and this program may \
         run on {processors}"
    )]
    Processors {
        /// Lanes asked for.
        lanes: usize,
        /// Processors there are.
        processors: usize,
    },
    /// A thread could not be kept on its processor.
    #[error("cannot keep a thread on its processor: {0}")]
    Place(#[source] io::Error),
    /// A thread panicked.
    #[error("a thread of the benchmark failed")]
    Thread,
}

/// Measures the engine: the whole of [`Outbound::process`](esp::Outbound::process) or
/// [`Inbound::process`](esp::Inbound::process), that is parsing, SPD or SPI lookup, sequence number
/// or replay window, headers, cipher, counters. Packets are UDP over IPv4 in native ESP over IPv4.
pub fn engine(options: &Options) -> Result<Vec<Row>, BenchError> {
    measure(options, |suite, bytes| {
        engine::Bench::new(suite, bytes, None)
    })
}

/// Measures the ciphers alone, with packets as the engine hands them over.
pub fn crypto(options: &Options) -> Result<Vec<Row>, BenchError> {
    measure(options, crypto::Bench::new)
}

/// Something that seals and opens packets of one suite and size.
trait Bench {
    /// Seals a burst of [`BURST`] packets and opens it again.
    fn burst(&mut self) -> Result<Times, BenchError>;
}

/// Times of one burst.
struct Times {
    encrypt: Timed,
    decrypt: Timed,
}

/// Time of one direction of a burst.
#[derive(Clone, Copy)]
struct Timed {
    nanos: f64,
    clocks: Option<f64>,
}

fn measure<B: Bench>(
    options: &Options,
    new: impl Fn(EspSuite, usize) -> Result<B, BenchError>,
) -> Result<Vec<Row>, BenchError> {
    let measurements = options.suites.len() * options.inner_bytes.len();
    let share = options.duration / u32::try_from(measurements).unwrap_or(u32::MAX).max(1);
    let mut rows = Vec::new();
    for suite in &options.suites {
        for bytes in options.inner_bytes.iter().map(|bytes| (*bytes).max(28)) {
            let mut bench = new(*suite, bytes)?;
            // A third goes unmeasured: caches, branch predictors, clock speed.
            bursts(&mut bench, share / 3)?;
            let bursts = bursts(&mut bench, share * 2 / 3)?;
            let instructions = instructions(suite, bytes)?;
            let encrypt = per_packet(bursts.iter().map(|times| times.encrypt));
            let decrypt = per_packet(bursts.iter().map(|times| times.decrypt));
            for (direction, (ns, tsc_clocks)) in [("encrypt", encrypt), ("decrypt", decrypt)] {
                rows.push(Row {
                    suite: suite.to_string(),
                    instructions: instructions.clone(),
                    direction,
                    inner_bytes: bytes,
                    ns,
                    tsc_clocks,
                    gbit_s: bytes as f64 * 8.0 / ns,
                });
            }
        }
    }
    Ok(rows)
}

fn bursts(bench: &mut impl Bench, duration: Duration) -> Result<Vec<Times>, BenchError> {
    let until = Instant::now() + duration;
    let mut bursts = Vec::new();
    loop {
        bursts.push(bench.burst()?);
        if Instant::now() >= until {
            return Ok(bursts);
        }
    }
}

/// Nanoseconds and clocks of the median burst, per packet: a burst during which something else ran
/// on the core does not count.
fn per_packet(times: impl Iterator<Item = Timed>) -> (f64, Option<f64>) {
    let mut times: Vec<Timed> = times.collect();
    times.sort_by(|a, b| a.nanos.total_cmp(&b.nanos));
    let median = times.get(times.len() / 2).copied().unwrap_or(Timed {
        nanos: f64::NAN,
        clocks: None,
    });
    let packets = BURST as f64;
    (
        median.nanos / packets,
        median.clocks.map(|clocks| clocks / packets),
    )
}

/// Times the processing of one burst.
fn timed(work: impl FnOnce()) -> Timed {
    let (start, clocks) = (Instant::now(), syscall::tsc());
    work();
    let (end, nanos) = (syscall::tsc(), start.elapsed());
    Timed {
        nanos: nanos.as_nanos() as f64,
        clocks: clocks
            .zip(end)
            .map(|(start, end)| end.wrapping_sub(start) as f64),
    }
}

/// Octets of a frame that holds a packet.
fn frame_size(bytes: usize) -> usize {
    if bytes <= 1600 { 2048 } else { 16384 }
}

/// What takes inner packets of `bytes` octets.
fn instructions(suite: &EspSuite, bytes: usize) -> Result<String, BenchError> {
    let sa = child(*suite);
    let padding = Geometry::new(suite, &sa.path).padding(bytes);
    let cipher = esp::crypto::new(suite, &sa.outbound)?;
    Ok(cipher.instructions(bytes + padding + TRAILER))
}

/// An SA of the sender.
fn child(suite: EspSuite) -> ChildSa {
    // The keys protect nothing: any will do.
    let half = |spi: u32| HalfSa {
        spi,
        encryption_key: SecretBytes::new(vec![spi as u8; suite.cipher.keymat_len()]),
        integrity_key: SecretBytes::new(vec![
            spi as u8;
            suite.integrity.map_or(0, Integrity::key_len)
        ]),
    };
    let subnet = |second: u8| TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: [10, second, 0, 0].into(),
        end: [10, second, 255, 255].into(),
    };
    ChildSa {
        id: ChildSaId(1),
        connection: "bench".into(),
        suite,
        inbound: half(0x1001),
        outbound: half(0x1002),
        path: Path {
            local: SocketAddr::from(([192, 0, 2, 1], 0)),
            remote: SocketAddr::from(([192, 0, 2, 2], 0)),
            encapsulation: Encapsulation::Esp,
        },
        mode: Mode::Tunnel,
        local_ts: vec![subnet(0)],
        remote_ts: vec![subnet(1)],
        share: Share::Whole,
        replay_window: 4096,
        allowances: Default::default(),
        lifetime: Duration::from_secs(3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_and_size_gives_a_row_in_each_direction() {
        let options = Options {
            inner_bytes: vec![64, 600],
            duration: Duration::from_micros(1),
            ..Options::default()
        };
        for measure in [engine, crypto] {
            let rows = measure(&options).unwrap();
            assert_eq!(
                rows.len(),
                options.suites.len() * options.inner_bytes.len() * 2
            );
            assert!(rows.iter().all(|row| row.ns > 0.0 && row.gbit_s > 0.0));
            assert!(rows.iter().all(|row| !row.instructions.is_empty()));
            let json = serde_json::to_value(&rows[0]).unwrap();
            assert_eq!(json["suite"], "aes128gcm16");
            assert_eq!(json["direction"], "encrypt");
            assert_eq!(json["inner_bytes"], 64);
            assert!(Table(&rows).to_string().lines().count() == rows.len() + 1);
        }
    }

    #[test]
    fn lanes_are_measured_on_processors_of_their_own() {
        let options = Options {
            inner_bytes: vec![64],
            suites: vec![suite("aes256gcm16").unwrap()],
            duration: Duration::from_millis(5),
        };
        let there = crate::port::syscall::processors().unwrap().len();
        for count in [1, there.min(2)] {
            let rows = lanes(&options, count).unwrap();
            assert_eq!(rows.len(), 2);
            assert!(rows.iter().all(|row| row.lanes == count && row.ns > 0.0));
            assert_eq!(LanesTable(&rows).to_string().lines().count(), 3);
        }
        for count in [0, there + 1] {
            let refused = lanes(&options, count).unwrap_err().to_string();
            assert!(refused.contains("a processor of its own"), "{refused}");
        }
    }

    #[test]
    fn every_suite_can_be_measured_by_its_name() {
        let options = Options {
            inner_bytes: vec![100],
            suites: names().iter().map(|name| suite(name).unwrap()).collect(),
            duration: Duration::ZERO,
        };
        assert_eq!(crypto(&options).unwrap().len(), 2 * options.suites.len());
        let unknown = suite("aes256gcm").unwrap_err().to_string();
        assert!(unknown.contains("aes256gcm8, "), "{unknown}");
    }
}
