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
    /// Packets that are sent in turns.
    inner: Vec<Vec<u8>>,
    turn: usize,
    path: Path,
    now: Instant,
}

impl Bench {
    /// Engines with an SA of their own, or as one of the lanes that `shared` is given to.
    pub fn new(
        suite: EspSuite,
        bytes: usize,
        shared: Option<&Arc<Shared>>,
    ) -> Result<Self, BenchError> {
        let mut bench = Self::empty(suite, bytes)?;
        bench.install(child(suite), shared)?;
        bench.send_to([[10, 1, 0, 7].into()].into_iter(), bytes);
        Ok(bench)
    }

    /// Engines without SAs, for packets of at most `bytes`.
    pub fn empty(suite: EspSuite, bytes: usize) -> Result<Self, BenchError> {
        let now = Instant::now();
        let stats = Stats::new(now);
        let config = Config {
            path_mtu: 9216,
            ..Config::default()
        };
        Ok(Self {
            suite,
            outbound: Outbound::new(config, Arc::clone(&stats)),
            inbound: Inbound::new(config, stats),
            pool: Arena::new(BURST, frame_size(bytes))?.take(BURST),
            burst: Burst::new(),
            sealed: Output::new(),
            opened: Output::new(),
            inner: Vec::new(),
            turn: 0,
            path: child(suite).path.reversed(),
            now,
        })
    }

    /// Installs a pair: one half with the sender, the other with its peer.
    pub fn install(
        &mut self,
        sender: ChildSa,
        shared: Option<&Arc<Shared>>,
    ) -> Result<(), BenchError> {
        let receiver = sender.reversed();
        self.outbound
            .apply_shared(&Command::InstallSa(Box::new(sender)), shared)?;
        self.inbound
            .apply_shared(&Command::InstallSa(Box::new(receiver)), shared)?;
        Ok(())
    }

    /// From here on packets of `bytes` go to these addresses in turns.
    pub fn send_to(&mut self, addresses: impl Iterator<Item = IpAddr>, bytes: usize) {
        self.inner = addresses.map(|to| inner_packet(to, bytes)).collect();
        self.turn = 0;
    }

    /// A burst of fresh inner packets through the outbound engine.
    fn seal(&mut self) -> Timed {
        while let Some(mut frame) = self.pool.get() {
            if let Some(inner) = self.inner.get(self.turn)
                && let Ok(octets) = frame.append(inner.len())
            {
                octets.copy_from_slice(inner);
            }
            self.turn = (self.turn + 1) % self.inner.len().max(1);
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
        let bytes = self.inner.first().map_or(0, Vec::len);
        let frames = self.opened.tun.frames();
        let intact = frames.iter().all(|frame| frame.len() == bytes);
        self.opened.recycle(&mut self.pool);
        if carried != BURST || !intact {
            return Err(BenchError::Lost {
                suite: self.suite,
                bytes,
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

fn inner_packet(destination: IpAddr, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; bytes];
    let outer = Outer {
        source: IpAddr::from([10, 0, 0, 5]),
        destination,
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
