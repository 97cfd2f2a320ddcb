//! The maps of the eBPF engine: ESP carried by the XDP programs themselves.
//!
//! A pair of SAs has a handle, a number that is never given twice. What changes while a pair
//! lives (its addresses, the MTU) is in [`PairEntry`], which is replaced whole; what the programs
//! count and record is in [`EspInEntry`] and [`EspOutEntry`], which are never replaced. The programs
//! find entries by handle or SPI and check that the entry says the same: the loader waits until no
//! program can still be reading what it deleted before it inserts anything again.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::drops::DropReason;
use crate::keystream;
use crate::shared_window;
use crate::wire::Address;

/// Selectors of each side that a pair can have.
pub const MAX_SELECTORS: usize = 4;

/// Most entries of `espada_esp_flows`; number 0 stands for none.
pub const MAX_FLOWS: u32 = 65_536;

/// Octets of the longest inner packet the programs carry: it must fit one page with all headers.
pub const MAX_INNER: u32 = 3_400;

/// Octets of the longest connection name that a [`PairEntry`] holds.
pub const MAX_NAME: usize = 64;

/// Octets of the ring of events.
pub const EVENT_RING: u32 = 1 << 16;

/// Pairs at most that have keystream prepared ahead.
pub const MAX_RINGS: u32 = 8;

/// The control side is woken whenever so many packets of a direction had keystream prepared for them.
pub const WAKE_EVERY: u64 = keystream::SLOTS as u64 / 4;

/// Octets of the ring of `espada_esp_wake`.
pub const WAKE_RING: u32 = 1 << 12;

/// Octets of state that one entry of `espada_keep` holds.
pub const MAX_KEPT: usize = 16_376;

/// Most entries of `espada_keep`.
pub const MAX_KEPT_STATES: u32 = 16_384;

/// Addresses of a traffic selector, halves in the host's order, IPv4 mapped into IPv6.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Range {
    /// First address.
    pub first: [u64; 2],
    /// Last address, inclusive.
    pub last: [u64; 2],
}

impl Range {
    /// Whether an address, as [`Address::halves`] gives it, lies in the range.
    #[inline(always)]
    pub const fn contains(&self, address: [u64; 2]) -> bool {
        at_most(self.first, address) && at_most(address, self.last)
    }
}

#[inline(always)]
const fn at_most([a_high, a_low]: [u64; 2], [b_high, b_low]: [u64; 2]) -> bool {
    a_high < b_high || (a_high == b_high && a_low <= b_low)
}

/// Key material of one direction (RFC 7634), as words of little-endian octets.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EspKey {
    /// ChaCha20 key.
    pub words: [u32; 8],
    /// Salt: the first word of every nonce.
    pub salt: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<EspKey>() == 40);

/// What an SA carried and dropped. Only added to atomically.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EspCounters {
    /// Packets carried.
    pub packets: u64,
    /// Octets of their inner packets.
    pub bytes: u64,
    /// CLOCK_BOOTTIME of the last one, ns; 0 before the first.
    pub last_used_ns: u64,
    /// Of the packets carried, those whose keystream was prepared ahead.
    pub prepared: u64,
    /// Packets dropped, by `DropReason` number.
    pub drops: [u64; DropReason::COUNT],
}

/// Value of `espada_esp_sain` (hash by [`super::SpiKey`], BPF_F_NO_PREALLOC): an inbound SA.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EspInEntry {
    /// The SPI again.
    pub spi_be: u32,
    /// The pair.
    pub handle: u32,
    /// Key and salt.
    pub key: EspKey,
    /// `ESP_*` bits.
    pub flags: u32,
    /// Replay window in packets; 0 switches replay protection off.
    pub replay_window: u32,
    /// CLOCK_BOOTTIME at which the hard lifetime ends, ns.
    pub expires_ns: u64,
    /// Selectors on our side.
    pub local: [Range; MAX_SELECTORS],
    /// Selectors on the peer's side.
    pub remote: [Range; MAX_SELECTORS],
    /// How many of `local` and of `remote` there are.
    pub selectors: [u32; 2],
    /// What was carried.
    pub counters: EspCounters,
    /// The replay window.
    pub window: [u64; shared_window::WORDS],
}
const _: () = assert!(size_of::<EspInEntry>() == 2_592);

/// Value of `espada_esp_saout` (hash by handle, BPF_F_NO_PREALLOC): an outbound SA.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EspOutEntry {
    /// The SPI, as it goes into the packet.
    pub spi_be: u32,
    /// The pair, again.
    pub handle: u32,
    /// Key and salt.
    pub key: EspKey,
    /// `ESP_*` bits.
    pub flags: u32,
    /// Zero.
    pub padding: u32,
    /// CLOCK_BOOTTIME at which the hard lifetime ends, ns.
    pub expires_ns: u64,
    /// Sequence number of the last packet, 0 before the first. Only added to atomically.
    pub seq: u64,
    /// An event is raised when this number is used.
    pub seq_low: u64,
    /// What was carried.
    pub counters: EspCounters,
}
const _: () = assert!(size_of::<EspOutEntry>() == 288);

/// `flags` of an SA: extended sequence numbers.
pub const ESP_ESN: u32 = 1;

/// Value of `espada_esp_pairs` (hash by handle, BPF_F_NO_PREALLOC): where a pair's packets travel, and
/// what a loader that comes later must know to go on with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PairEntry {
    /// The handle again.
    pub handle: u32,
    /// `PAIR_*` bits.
    pub flags: u32,
    /// Our address.
    pub local: Address,
    /// The peer's.
    pub remote: Address,
    /// Our UDP port, network byte order; 0 for native ESP.
    pub local_port_be: u16,
    /// The peer's UDP port, network byte order; 0 for native ESP.
    pub remote_port_be: u16,
    /// Octets of the longest inner packet that fits the path.
    pub max_inner: u32,
    /// Interface the route to the peer leaves on.
    pub link: u32,
    /// Place in `espada_sa_out_stats`.
    pub slot: u32,
    /// SPI of the inbound SA.
    pub spi_in_be: u32,
    /// SPI of the outbound SA.
    pub spi_out_be: u32,
    /// Which ring of `espada_esp_ahead` is the pair's, from 1 on; 0 for none.
    pub ring: u32,
    /// Zero.
    pub padding: u32,
    /// Name of the pair for the control side.
    pub id: u64,
    /// Name of the connection, filled up with zeros.
    pub connection: [u8; MAX_NAME],
}
const _: () = assert!(size_of::<PairEntry>() == 144);

/// `flags` of a pair: ESP in UDP.
pub const PAIR_UDP: u32 = 1;
/// `flags` of a pair: outer IPv6.
pub const PAIR_V6: u32 = 2;

/// Value of `espada_esp_ahead` (array, BPF_F_MMAPABLE): keystream for one packet, prepared ahead. Each
/// ring has [`keystream::SLOTS`] for the packets sent, then as many for the packets received.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KeystreamSlot {
    /// One of [`keystream::state`].
    pub state: u64,
    /// IV of the packet.
    pub iv: u64,
    /// Handle of its pair.
    pub handle: u32,
    /// How many blocks there are.
    pub blocks: u32,
    /// The blocks, from number 0 on.
    pub keystream: [[u32; 16]; keystream::BLOCKS],
}
const _: () = assert!(size_of::<KeystreamSlot>() == keystream::WORDS * 8);

/// Where the first slot of a pair's ring is, for packets sent or received.
#[inline(always)]
pub const fn first_slot(ring: u32, inbound: bool) -> u32 {
    (ring.wrapping_sub(1) * 2 + inbound as u32) * keystream::SLOTS
}

/// Value of `espada_esp_flows` (array, BPF_F_MMAPABLE): what the SPD tries lead to. The pair that
/// sends is one aligned word: a rekey is one store.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowEntry {
    /// Handle of the pair that sends; 0 while there is none.
    pub handle: u32,
    /// Bit 0: packets without a pair raise an acquire event.
    pub flags: u32,
    /// CLOCK_BOOTTIME of the last acquire event, ns.
    pub told_ns: u64,
}
const _: () = assert!(size_of::<FlowEntry>() == 16);

/// `FlowEntry::flags`: raise acquire events.
pub const FLOW_TRAP: u32 = 1;

/// Value of `espada_esp_config` (array of one).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EspConfig {
    /// `ENGINE_*` bits.
    pub flags: u32,
    /// TTL or hop limit of outer headers.
    pub ttl: u32,
    /// The hidden end of the plaintext interface: what is sent on it arrives on the other.
    pub port: u32,
    /// Hardware address of the plaintext interface.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<EspConfig>() == 20);

/// `EspConfig::flags`: lower the MSS of TCP connections to what fits.
pub const ENGINE_CLAMP_MSS: u32 = 1;
/// `EspConfig::flags`: copy the inner DSCP to the outer header (ECN is always copied).
pub const ENGINE_COPY_DSCP: u32 = 2;

/// A record of the ring `espada_esp_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EspEvent {
    /// `EVENT_*`.
    pub kind: u32,
    /// Flow of an acquire event, handle of the pair otherwise.
    pub number: u32,
    /// Source of the packet.
    pub source: Address,
    /// Destination of the packet.
    pub destination: Address,
    /// UDP source port, host byte order (`EVENT_MOVED`).
    pub port: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<EspEvent>() == 48);

/// A packet needs a pair that is not there.
pub const EVENT_ACQUIRE: u32 = 1;
/// An authenticated packet came from another address or port than the pair's.
pub const EVENT_MOVED: u32 = 2;
/// Sequence numbers run low.
pub const EVENT_SEQ_LOW: u32 = 3;

/// A record of the ring `espada_esp_wake`: more keystream is wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AheadWake {
    /// Sequence number of the packet that asks.
    pub seq: u64,
    /// Handle of its pair.
    pub handle: u32,
    /// 1: it was received.
    pub inbound: u32,
    /// 1: keystream was there for it.
    pub prepared: u32,
    /// Octets of its ciphertext.
    pub encrypted: u32,
}
const _: () = assert!(size_of::<AheadWake>() == 24);

/// Value of `espada_keep` (hash by u64, BPF_F_NO_PREALLOC): what the control side wants a successor
/// to find. The programs do not look at it.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KeptState {
    /// Octets used of `data`.
    pub len: u32,
    /// Zero.
    pub padding: u32,
    /// The state.
    pub data: [u8; MAX_KEPT],
}
const _: () = assert!(size_of::<KeptState>() == 16_384);

/// Names of the maps, as they are pinned.
pub mod maps {
    /// Array of one [`super::EspConfig`].
    pub const CONFIG: &str = "espada_esp_config";
    /// Hash: inbound [`super::super::SpiKey`] to [`super::EspInEntry`].
    pub const IN: &str = "espada_esp_sain";
    /// Hash: handle to [`super::EspOutEntry`].
    pub const OUT: &str = "espada_esp_saout";
    /// Hash: handle to [`super::PairEntry`].
    pub const PAIRS: &str = "espada_esp_pairs";
    /// Array (BPF_F_MMAPABLE): [`super::FlowEntry`].
    pub const FLOWS: &str = "espada_esp_flows";
    /// LPM trie: remote [`super::Address`] to a u32 class.
    pub const SPD_REMOTE: &str = "espada_esp_remote";
    /// LPM trie: [`super::super::ClassedAddress`] to a u32 flow.
    pub const SPD_LOCAL: &str = "espada_esp_local";
    /// Per-CPU array: drops that belong to no SA, inbound by `DropReason` number, then outbound.
    pub const DROPS: &str = "espada_esp_drops";
    /// Ring of [`super::EspEvent`].
    pub const EVENTS: &str = "espada_esp_events";
    /// DEVMAP hash: interface number to itself.
    pub const DEVICES: &str = "espada_esp_devs";
    /// Program array: [`super::TAIL_IN`].
    pub const PROGRAMS: &str = "espada_esp_progs";
    /// Array (BPF_F_MMAPABLE): [`super::KeystreamSlot`].
    pub const AHEAD: &str = "espada_esp_ahead";
    /// Ring of [`super::AheadWake`].
    pub const WAKE: &str = "espada_esp_wake";
    /// Hash: u64 to [`super::KeptState`].
    pub const KEEP: &str = "espada_keep";
}

/// Index of the program that decrypts, in `espada_esp_progs`.
pub const TAIL_IN: u32 = 0;
