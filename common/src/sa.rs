//! Security associations as the IKE side describes them and the data plane carries them:
//! suites, keys, selectors, the commands that change them and the events that come back.

mod selector;
mod suite;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::drops::DropReason;

pub use self::selector::{TrafficSelector, is_icmp, protocol_by_name};
pub use self::suite::{Cipher, EspSuite, GcmIcv, Integrity};

/// Key octets: zeroized on drop, never shown.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of key octets.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The octets, for the cipher that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} secret octets>", self.0.len())
    }
}

/// One direction of a child SA.
#[derive(Clone, Debug)]
pub struct HalfSa {
    /// Security parameters index, chosen by the receiver of this direction.
    pub spi: u32,
    /// Encryption key with the salt (AEAD) at its end: `Cipher::keymat_len` octets.
    pub encryption_key: SecretBytes,
    /// Integrity key, empty for AEADs.
    pub integrity_key: SecretBytes,
}

/// Tunnel or transport mode (RFC 4301 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The whole inner IP packet is carried.
    Tunnel,
    /// The outer IP header is the packet's own.
    Transport,
}

/// What carries ESP between the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP protocol 50 (RFC 4303).
    Esp,
    /// UDP, port 4500 on our side (RFC 3948).
    Udp,
}

/// Where a child SA's packets travel: addresses, and ports where they are in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Our address; the port matters for `Encapsulation::Udp`.
    pub local: SocketAddr,
    /// The peer's address; the port matters for `Encapsulation::Udp`.
    pub remote: SocketAddr,
    /// ESP or ESP in UDP.
    pub encapsulation: Encapsulation,
}

impl Path {
    /// The same path as the other end sees it.
    pub fn reversed(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            ..self
        }
    }
}

/// Which packets a pair carries of those that its selectors cover, where both ends have several pairs
/// with the same selectors (RFC 9611).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Share {
    /// All of them: there is no other pair.
    #[default]
    Whole,
    /// Those of processors that have no pair of their own.
    Fallback,
    /// Those sent by this processor, by its number.
    Processor(u32),
    /// None: it is for a processor of the peer's, and ours have theirs. What arrives is received.
    Peer,
}

/// `processor 3`, as status and logs show it.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Fallback => f.write_str("fallback"),
            Self::Processor(number) => write!(f, "processor {number}"),
            Self::Peer => f.write_str("peer"),
        }
    }
}

/// Names a child SA (a pair of ESP SAs) for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildSaId(pub u64);

/// How much may pass in one direction of a pair; the other one has as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Octets of inner packets, `None` for any number.
    pub bytes: Option<u64>,
    /// Packets, `None` for any number.
    pub packets: Option<u64>,
}

impl Allowance {
    /// Whether one of the two is used up.
    pub fn is_used_up(&self, bytes: u64, packets: u64) -> bool {
        self.bytes.is_some_and(|most| bytes >= most)
            || self.packets.is_some_and(|most| packets >= most)
    }
}

/// The lifetime of a pair in bytes and packets (RFC 4301 section 4.4.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// When it is to be rekeyed ([`Event::Expire`], not hard).
    pub soft: Allowance,
    /// When it carries nothing more ([`Event::Expire`], hard).
    pub hard: Allowance,
}

impl Allowances {
    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

/// A negotiated pair of ESP SAs with everything an engine needs to carry it.
#[derive(Clone, Debug)]
pub struct ChildSa {
    /// Handle for later commands, events and statistics.
    pub id: ChildSaId,
    /// Name of the configured connection, which is also its policies' name.
    pub connection: Arc<str>,
    /// Algorithms, the same in both directions.
    pub suite: EspSuite,
    /// What we receive: its SPI is ours.
    pub inbound: HalfSa,
    /// What we send: its SPI is the peer's.
    pub outbound: HalfSa,
    /// Addresses and encapsulation.
    pub path: Path,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Which of the packets that the selectors cover it carries.
    pub share: Share,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Replay window in packets, 0 switches replay protection off.
    pub replay_window: u32,
    /// How much it may carry beside that.
    pub allowances: Allowances,
    /// Hard lifetime from installation on (RFC 4301 section 4.4.2.1): an engine that outlives the
    /// control side stops the pair by itself when it is over.
    pub lifetime: Duration,
}

impl ChildSa {
    /// The same pair as the other end has it.
    pub fn reversed(&self) -> Self {
        Self {
            inbound: self.outbound.clone(),
            outbound: self.inbound.clone(),
            path: self.path.reversed(),
            local_ts: self.remote_ts.clone(),
            remote_ts: self.local_ts.clone(),
            ..self.clone()
        }
    }
}

/// The SPD entry of a connection: these selectors are protected whether or not an SA is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name of the configured connection.
    pub connection: Arc<str>,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Raise `Event::Acquire` for packets without an SA (`start = "trap"`).
    pub trap: bool,
    /// Tunnel or transport: transport mode has no routes of its own.
    pub mode: Mode,
    /// Virtual addresses of ours in the peer's network, for the plaintext interface: packets of this
    /// host go out with them.
    pub addresses: Vec<IpAddr>,
}

/// When the successor of a rekeyed pair takes over sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// At once: the peer has it (we initiated the rekey and have the answer). Whichever waited for the
    /// old pair to be removed waits for the successor to be from then on: two rekeys have crossed, and
    /// this one prevailed.
    Now,
    /// When the old pair is removed: the peer will have it only once our answer has arrived, and
    /// then deletes the old one (RFC 7296 section 2.8).
    WithRemoval,
}

/// What the control side asks of a data plane. Commands are carried out in order.
#[derive(Clone, Debug)]
pub enum Command {
    /// Protect a connection's selectors: routes into the tunnel interface, guard against clear text.
    InstallPolicy(Policy),
    /// Stop protecting a connection's selectors.
    RemovePolicy {
        /// Name of the connection.
        connection: Arc<str>,
    },
    /// A new pair of SAs: inbound first, then outbound.
    InstallSa(Box<ChildSa>),
    /// A new pair takes over from an old one: it receives at once, and the old one receives until
    /// `RemoveSa`.
    RekeySa {
        /// The pair that is replaced.
        old: ChildSaId,
        /// Its successor.
        new: Box<ChildSa>,
        /// When the successor sends.
        takeover: Takeover,
    },
    /// A pair sends no longer: whichever waited for its removal sends. It receives until `RemoveSa`, as
    /// packets of the peer's may still be on their way.
    Retire {
        /// Which.
        id: ChildSaId,
    },
    /// Forget a pair.
    RemoveSa {
        /// Which.
        id: ChildSaId,
    },
    /// The peer (or we) moved: a new NAT mapping or a MOBIKE address change.
    MovePath {
        /// Which pair.
        id: ChildSaId,
        /// Where its packets travel from now on.
        path: Path,
    },
}

/// What a data plane tells the control side.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet needs an SA that is not there.
    Acquire {
        /// The connection whose policy it hit.
        connection: Arc<str>,
        /// Source and destination of the packet.
        source: IpAddr,
        /// Destination of the packet.
        destination: IpAddr,
    },
    /// A lifetime in bytes or packets ran out.
    Expire {
        /// Which pair.
        id: ChildSaId,
        /// True when it is no longer used at all, false when it should be rekeyed.
        hard: bool,
    },
    /// An authenticated ESP-in-UDP packet came from another address or port than the SA's.
    NatMoved {
        /// Which pair.
        id: ChildSaId,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// The sequence numbers of an outbound SA run low.
    SeqLow {
        /// Which pair.
        id: ChildSaId,
        /// Packets that can still be sent.
        remaining: u64,
    },
    /// A datagram on the ESP-in-UDP socket with the non-ESP marker (removed): IKE.
    IkeDatagram {
        /// Where it arrived.
        local: SocketAddr,
        /// Who sent it.
        remote: SocketAddr,
        /// The IKE message.
        payload: Vec<u8>,
    },
}

/// Counters of one direction of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfSaStats {
    /// Packets carried (authenticated, inside the window, within the selectors).
    pub packets: u64,
    /// Octets of inner packets carried.
    pub bytes: u64,
    /// Drops of this direction, by `DropReason` number.
    pub drops: [u64; DropReason::COUNT],
    /// When the last packet was carried.
    pub last_used: Option<Instant>,
}

impl HalfSaStats {
    /// Adds other counters; the later use counts.
    pub fn add(&mut self, more: &Self) {
        self.packets = self.packets.wrapping_add(more.packets);
        self.bytes = self.bytes.wrapping_add(more.bytes);
        add_drops(&mut self.drops, &more.drops);
        self.last_used = self.last_used.max(more.last_used);
    }
}

/// Adds counters of drops, by `DropReason` number, to others.
pub fn add_drops(total: &mut [u64; DropReason::COUNT], more: &[u64; DropReason::COUNT]) {
    for (total, more) in total.iter_mut().zip(more) {
        *total = total.wrapping_add(*more);
    }
}

/// Counters of a pair.
#[derive(Clone, Debug)]
pub struct ChildSaStats {
    /// Which pair.
    pub id: ChildSaId,
    /// What we received.
    pub inbound: HalfSaStats,
    /// What we sent.
    pub outbound: HalfSaStats,
}
