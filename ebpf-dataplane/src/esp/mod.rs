//! The ESP engine (RFC 4303): bursts of frames in, bursts of frames out. No sockets, no threads,
//! no clock; nothing is allocated per packet. [`Outbound`] owns the SPD and outbound SAs,
//! [`Inbound`] inbound SAs: each belongs to one worker. Where several workers (lanes) carry one pair,
//! they share its sequence numbers and its replay window ([`Shared`]).

pub mod crypto;
pub mod decap;
pub mod encap;
pub(crate) mod held;
pub mod ip;
mod meter;
mod plain;
mod pmtu;
pub mod sad;
mod sequence;
pub mod spd;
pub mod stats;
#[cfg(test)]
pub(crate) mod tests;
mod window;

use espada_common::sa::{ChildSaId, EspSuite, Event};

use crate::umem::{Burst, FramePool};

pub use decap::Inbound;
pub use encap::Outbound;
pub use sequence::Shared;
pub use stats::Stats;

/// What to do with the Don't Fragment bit of an outer IPv4 header (RFC 4301 section 8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DfPolicy {
    /// As on the inner packet; set over IPv6.
    Copy,
    /// Always set.
    Set,
    /// Never set: routers on the path may fragment ESP packets.
    Clear,
}

/// Settings of both directions.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Octets of outer IP packet that fit the path until a better number is known
    /// ([`Outbound::set_path_mtu`]).
    pub path_mtu: u16,
    /// Outer Don't Fragment.
    pub df: DfPolicy,
    /// Lower the MSS of TCP SYN segments to what fits the tunnel.
    pub clamp_mss: bool,
    /// Copy the inner DSCP to the outer header (otherwise it is 0 there).
    pub copy_dscp: bool,
    /// TTL or hop limit of outer headers.
    pub ttl: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path_mtu: 1500,
            df: DfPolicy::Copy,
            clamp_mss: true,
            copy_dscp: true,
            ttl: 64,
        }
    }
}

/// What processing a burst gave. The caller empties it (to the ports, the event sink) between calls.
#[derive(Default)]
pub struct Output {
    /// For the WAN. `meta().path` says where to: with `Encapsulation::Esp` the frame is a complete
    /// outer IP packet, with `Encapsulation::Udp` it starts at the ESP header and the port adds UDP
    /// and IP (with `meta().tos` and `meta().df`).
    pub wan: Burst,
    /// For the tunnel interface: complete inner IP packets, checksums finished.
    pub tun: Burst,
    /// For the control side.
    pub events: Vec<Event>,
}

impl Output {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns every frame to `pool` and forgets the events.
    pub fn recycle(&mut self, pool: &mut FramePool) {
        self.wan.recycle(pool);
        self.tun.recycle(pool);
        self.events.clear();
    }
}

/// Why a command could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No pair of that name.
    #[error("no child SA {}", .0.0)]
    UnknownSa(ChildSaId),
    /// The name is taken.
    #[error("child SA {} exists already", .0.0)]
    DuplicateSa(ChildSaId),
    /// Two inbound SAs cannot share an SPI.
    #[error("inbound SPI {0:#010x} is in use")]
    DuplicateSpi(u32),
    /// No policy of that connection.
    #[error("connection {0:?} has no policy")]
    UnknownPolicy(std::sync::Arc<str>),
    /// Key material does not fit the suite.
    #[error("suite {suite} takes {expected} octets of {what} key, got {got}")]
    KeyLength {
        /// The suite.
        suite: EspSuite,
        /// `encryption` or `integrity`.
        what: &'static str,
        /// Octets needed.
        expected: usize,
        /// Octets given.
        got: usize,
    },
    /// The engine does not carry this suite.
    #[error("the userspace engine does not carry suite {0}")]
    Suite(EspSuite),
    /// The two addresses of a path are not of one family.
    #[error("path from {local} to {remote}: both addresses must be of one family")]
    PathFamily {
        /// Ours.
        local: std::net::SocketAddr,
        /// The peer's.
        remote: std::net::SocketAddr,
    },
    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Random(String),
}
