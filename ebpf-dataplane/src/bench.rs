//! `cargo xtask bench engine`: what the ESP engine costs per packet in memory, without ports.
//!
//! A row times the whole of [`Outbound::process`] or [`Inbound::process`] over bursts of
//! [`BURST`] packets of one flow over one SA: parsing, SPD or SPI lookup, sequence number or replay
//! window, headers, cipher, counters. Packets are UDP over IPv4 in native ESP over IPv4. Making
//! the input (for decryption: fresh packets, sealed by the peer's engine) lies outside the timed
//! section and has just touched the same frames, so they are in the cache as far as they fit: as
//! they would be right after a copy from a socket.

use std::fmt;
use std::hint::black_box;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{
    ChildSa, ChildSaId, Cipher, Command, Encapsulation, EspSuite, GcmIcv, HalfSa, Integrity, Mode,
    Path, SecretBytes, Share, TrafficSelector,
};
use serde::Serialize;

use crate::esp::ip::{self, Outer, protocol};
use crate::esp::{ApplyError, Config, Inbound, Outbound, Output, Stats};
use crate::syscall;
use crate::umem::{Arena, BURST, Burst, FramePool, Meta};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Octets of inner packets, at least 28.
    pub inner_bytes: Vec<usize>,
    /// Suites.
    pub suites: Vec<EspSuite>,
    /// Time spent on a row, making its input included; at least one burst is measured.
    pub duration: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let aead = |cipher| EspSuite {
            cipher,
            integrity: None,
            esn: false,
        };
        let cbc = |bits, integrity| EspSuite {
            cipher: Cipher::AesCbc(bits),
            integrity: Some(integrity),
            esn: false,
        };
        let mut suites = vec![
            aead(Cipher::AesGcm(128, GcmIcv::Sixteen)),
            aead(Cipher::AesGcm(256, GcmIcv::Sixteen)),
            aead(Cipher::ChaCha20Poly1305),
        ];
        for bits in [128, 192, 256] {
            suites.extend([
                cbc(bits, Integrity::HmacSha1_96),
                cbc(bits, Integrity::HmacSha256_128),
                cbc(bits, Integrity::HmacSha384_192),
                cbc(bits, Integrity::HmacSha512_256),
            ]);
        }
        Self {
            inner_bytes: vec![64, 512, 1400, 8900],
            suites,
            duration: Duration::from_millis(60),
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Keyword of the suite.
    pub suite: String,
    /// `encrypt` or `decrypt`.
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
            direction,
            inner_bytes,
            ns,
            gbit_s,
            ..
        } = self;
        write!(
            f,
            "{suite:<20} {direction:<8} {inner_bytes:>6} {ns:>9.1} {clocks:>9} {gbit_s:>8.2}"
        )
    }
}

/// The rows as a table for people.
pub struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:<8} {:>6} {:>9} {:>9} {:>8}",
            "suite", "", "bytes", "ns", "clocks", "Gbit/s"
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
    /// The engine refused the SA.
    #[error(transparent)]
    Sa(#[from] ApplyError),
    /// Packets got lost, so the numbers would mean nothing.
    #[error("{suite}: {carried} of {offered} packets of {bytes} octets came out of the engine")]
    Lost {
        /// Suite measured.
        suite: EspSuite,
        /// Octets of inner packet.
        bytes: usize,
        /// Packets given to the engine.
        offered: usize,
        /// Packets it gave back.
        carried: usize,
    },
}

/// Measures every suite, size and direction of `options`.
pub fn engine(options: &Options) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for suite in &options.suites {
        for bytes in &options.inner_bytes {
            let mut bench = Bench::new(*suite, *bytes)?;
            rows.push(bench.row(options, Side::Encrypt)?);
            rows.push(bench.row(options, Side::Decrypt)?);
        }
    }
    Ok(rows)
}

/// Whose time counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Encrypt,
    Decrypt,
}

/// Time of one burst.
#[derive(Clone, Copy)]
struct Timed {
    nanos: f64,
    clocks: Option<f64>,
}

/// Two engines that share one pool of frames, as one packet is with one of them at a time.
struct Bench {
    suite: EspSuite,
    outbound: Outbound,
    inbound: Inbound,
    pool: FramePool,
    burst: Burst,
    sealed: Output,
    opened: Output,
    inner: Vec<u8>,
    path: Path,
    now: Instant,
}

impl Bench {
    fn new(suite: EspSuite, bytes: usize) -> Result<Self, BenchError> {
        let frame_size = if bytes <= 1600 { 2048 } else { 16384 };
        let now = Instant::now();
        let stats = Stats::new(now);
        let config = Config {
            path_mtu: 9216,
            ..Config::default()
        };
        let sender = child(suite);
        let receiver = ChildSa {
            inbound: sender.outbound.clone(),
            outbound: sender.inbound.clone(),
            path: reverse(sender.path),
            local_ts: sender.remote_ts.clone(),
            remote_ts: sender.local_ts.clone(),
            ..sender.clone()
        };
        let path = sender.path;
        let mut outbound = Outbound::new(config, Arc::clone(&stats));
        outbound.apply(&Command::InstallSa(Box::new(sender)))?;
        let mut inbound = Inbound::new(config, stats);
        inbound.apply(&Command::InstallSa(Box::new(receiver)))?;
        Ok(Self {
            suite,
            outbound,
            inbound,
            pool: Arena::new(BURST, frame_size)?.take(BURST),
            burst: Burst::new(),
            sealed: Output::new(),
            opened: Output::new(),
            inner: inner_packet(bytes.max(28)),
            path: reverse(path),
            now,
        })
    }

    /// The median burst counts: a burst during which something else ran on the core does not.
    fn row(&mut self, options: &Options, side: Side) -> Result<Row, BenchError> {
        // A third goes unmeasured: caches, branch predictors, clock speed.
        self.bursts(options.duration / 3, side)?;
        let mut bursts = self.bursts(options.duration * 2 / 3, side)?;
        bursts.sort_by(|a, b| a.nanos.total_cmp(&b.nanos));
        let median = bursts.get(bursts.len() / 2).copied();
        let median = median.unwrap_or(Timed {
            nanos: f64::NAN,
            clocks: None,
        });
        let ns = median.nanos / BURST as f64;
        Ok(Row {
            suite: self.suite.to_string(),
            direction: match side {
                Side::Encrypt => "encrypt",
                Side::Decrypt => "decrypt",
            },
            inner_bytes: self.inner.len(),
            ns,
            tsc_clocks: median.clocks.map(|clocks| clocks / BURST as f64),
            gbit_s: self.inner.len() as f64 * 8.0 / ns,
        })
    }

    fn bursts(&mut self, duration: Duration, side: Side) -> Result<Vec<Timed>, BenchError> {
        let until = Instant::now() + duration;
        let mut bursts = Vec::new();
        loop {
            let sealing = self.seal();
            let opening = self.open()?;
            bursts.push(if side == Side::Encrypt {
                sealing
            } else {
                opening
            });
            if Instant::now() >= until {
                return Ok(bursts);
            }
        }
    }

    /// A burst of fresh inner packets through the outbound engine.
    fn seal(&mut self) -> Timed {
        while let Some(mut frame) = self.pool.get() {
            if let Ok(octets) = frame.append(self.inner.len()) {
                octets.copy_from_slice(&self.inner);
            }
            self.burst.push(frame);
        }
        let Self {
            outbound,
            burst,
            pool,
            sealed,
            now,
            ..
        } = self;
        timed(|| outbound.process(*now, black_box(burst), pool, sealed))
    }

    /// What [`Bench::seal`] made, through the inbound engine of the peer.
    fn open(&mut self) -> Result<Timed, BenchError> {
        for mut frame in self.sealed.wan.drain() {
            *frame.meta_mut() = Meta {
                path: self.path,
                ..Meta::default()
            };
            self.burst.push(frame);
        }
        let Self {
            inbound,
            burst,
            pool,
            opened,
            now,
            ..
        } = self;
        let timed = timed(|| inbound.process(*now, black_box(burst), pool, opened));
        let carried = self.opened.tun.len();
        let intact = self
            .opened
            .tun
            .frames()
            .iter()
            .all(|frame| frame.len() == self.inner.len());
        self.opened.recycle(&mut self.pool);
        if carried != BURST || !intact {
            return Err(BenchError::Lost {
                suite: self.suite,
                bytes: self.inner.len(),
                offered: BURST,
                carried,
            });
        }
        Ok(timed)
    }
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

fn inner_packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; bytes];
    let outer = Outer {
        source: IpAddr::from([10, 0, 0, 5]),
        destination: IpAddr::from([10, 1, 0, 7]),
        tos: 0,
        ttl: 63,
        df: true,
        id: 0,
        protocol: protocol::UDP,
        label: 0,
    };
    let (header, payload) = packet.split_at_mut(20.min(bytes));
    // An IPv4 header always fits: `bytes` is at least 28 and at most a frame.
    let _ = ip::build(&outer, payload.len(), header);
    packet
}

fn reverse(path: Path) -> Path {
    Path {
        local: path.remote,
        remote: path.local,
        ..path
    }
}

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
        start: IpAddr::from([10, second, 0, 0]),
        end: IpAddr::from([10, second, 255, 255]),
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
        lifetime: std::time::Duration::from_secs(3600),
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
        let rows = engine(&options).unwrap();
        assert_eq!(
            rows.len(),
            options.suites.len() * options.inner_bytes.len() * 2
        );
        assert!(rows.iter().all(|row| row.ns > 0.0 && row.gbit_s > 0.0));
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!(json["suite"], "aes128gcm16");
        assert_eq!(json["direction"], "encrypt");
        assert_eq!(json["inner_bytes"], 64);
        assert!(Table(&rows).to_string().lines().count() == rows.len() + 1);
    }
}
