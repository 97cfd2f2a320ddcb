//! The engine in memory, without ports. Making the input (for decryption: fresh packets, sealed by
//! the peer's engine) lies outside the timed section and has just touched the same frames.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSa, Command, EspSuite, Path};

use super::{BenchError, Timed, Times, child, frame_size, timed};
use crate::esp::ip::{self, Outer, protocol};
use crate::esp::{Config, Inbound, Outbound, Output, Shared, Stats};
use crate::umem::{Arena, BURST, Burst, FramePool, Meta};

/// Two engines that share one pool of frames, as one packet is with one of them at a time.
pub struct Bench {
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
    /// With an SA of its own, or as one of the lanes that `shared` is given to.
    pub fn new(
        suite: EspSuite,
        bytes: usize,
        shared: Option<&Arc<Shared>>,
    ) -> Result<Self, BenchError> {
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
        outbound.apply_shared(&Command::InstallSa(Box::new(sender)), shared)?;
        let mut inbound = Inbound::new(config, stats);
        inbound.apply_shared(&Command::InstallSa(Box::new(receiver)), shared)?;
        Ok(Self {
            suite,
            outbound,
            inbound,
            pool: Arena::new(BURST, frame_size(bytes))?.take(BURST),
            burst: Burst::new(),
            sealed: Output::new(),
            opened: Output::new(),
            inner: inner_packet(bytes),
            path: reverse(path),
            now,
        })
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

impl super::Bench for Bench {
    fn burst(&mut self) -> Result<Times, BenchError> {
        Ok(Times {
            encrypt: self.seal(),
            decrypt: self.open()?,
        })
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
