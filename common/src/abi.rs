//! The BPF maps that the XDP/TC programs and the loader share. Every struct is `repr(C)`,
//! padded by hand, size-asserted, and versioned by [`ABI_VERSION`].

pub mod esp;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::Address;

/// Version of everything in this module; the loader refuses pinned maps of another version, and
/// the programs pass every packet untouched while the configuration states another.
pub const ABI_VERSION: u32 = 6;

/// Most SAs of each direction that the front end can know.
pub const MAX_SAS: u32 = 65_536;

/// Most of our own addresses.
pub const MAX_LOCAL_ADDRESSES: u32 = 1_024;

/// Most entries of each policy trie.
pub const MAX_POLICY_ENTRIES: u32 = 131_072;

/// Most receive queues with AF_XDP sockets, of the WAN and of all LAN interfaces.
pub const MAX_QUEUES: u32 = 256;

/// Most AF_XDP sockets of a receive queue of the WAN, one for each lane of the userspace engine.
pub const MAX_LANES: u32 = 64;

/// Most LAN interfaces whose packets go past the kernel.
pub const MAX_LANS: u32 = 16;

/// Key of `espada_sa_in`: an inbound SPI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SpiKey {
    /// SPI in network byte order, as it stands in the packet.
    pub spi_be: u32,
}
const _: () = assert!(size_of::<SpiKey>() == 4);

/// Value of `espada_sa_in` (hash, BPF_F_NO_PREALLOC): what the front end must know of an inbound SA.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaInEntry {
    /// The SPI again: a reader copies the value out and re-checks it, as entries are reused.
    pub spi_be: u32,
    /// `SA_FLAG_*` bits.
    pub flags: u32,
    /// Our address (IPv4 mapped into IPv6) that packets of this SA must be sent to.
    pub local: Address,
}
const _: () = assert!(size_of::<SaInEntry>() == 24);

/// `SaInEntry::flags`: steer to AF_XDP.
pub const SA_FLAG_STEER_XSK: u32 = 1;

/// `SaInEntry::flags`: decrypt in XDP.
pub const SA_FLAG_DECRYPT: u32 = 2;

/// `SaInEntry::flags` masked by this: where in the XSKMAP the sockets of the lane begin that packets are
/// steered to.
pub const SA_FIRST_SOCKET: u32 = !(MAX_QUEUES - 1);
const _: () = assert!(SA_FIRST_SOCKET & (SA_FLAG_STEER_XSK | SA_FLAG_DECRYPT) == 0);

/// Key of `espada_sa_out`: an outbound SPI, which is unique only per destination (RFC 4301
/// section 4.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaOutKey {
    /// SPI in network byte order, as it stands in the packet.
    pub spi_be: u32,
    /// The peer's address.
    pub peer: Address,
}
const _: () = assert!(size_of::<SaOutKey>() == 20);

/// Value of `espada_sa_out` (hash, BPF_F_NO_PREALLOC): where the SA's counters are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaOutEntry {
    /// The SPI again, for the re-check.
    pub spi_be: u32,
    /// Index in `espada_sa_out_stats`.
    pub slot: u32,
}
const _: () = assert!(size_of::<SaOutEntry>() == 8);

/// Value of `espada_sa_in_stats` (per-CPU hash keyed by [`SpiKey`]) and of `espada_sa_out_stats`
/// (array by [`SaOutEntry::slot`], mapped into userspace: the tc egress program and the workers
/// that transmit past it both add to it atomically, so a packet counts once whichever way it leaves).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SaCounters {
    /// Packets of this SA seen on the WAN.
    pub packets: u64,
    /// Octets of their IP packets, outer header included.
    pub bytes: u64,
}
const _: () = assert!(size_of::<SaCounters>() == 16);

/// What `espada_spd_remote` matches is an [`Address`] of the peer's side; IPv4 prefixes are
/// 96 bits longer in it. Its value is the class of the longest prefix that holds the address.
///
/// What `espada_spd_local` matches: the class, always whole, then our side's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClassedAddress {
    /// Class of the remote prefix.
    pub class: u32,
    /// Address on our side of a policy.
    pub addr: Address,
}
const _: () = assert!(size_of::<ClassedAddress>() == 20);

/// Key of `espada_fragments`: which datagram a fragment belongs to (RFC 791, RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification.
    pub id: u32,
    /// Upper-layer protocol.
    pub protocol: u32,
}
const _: () = assert!(size_of::<FragmentKey>() == 40);

/// Datagrams whose later fragments may follow the first at any one time.
pub const MAX_FRAGMENTED: u32 = 1_024;

/// Value of `espada_config` (array of one).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FrontEndConfig {
    /// [`ABI_VERSION`] of the loader.
    pub abi_version: u32,
    /// `CONFIG_*` bits.
    pub flags: u32,
    /// UDP port of ESP in UDP, host byte order (4500).
    pub nat_t_port: u32,
    /// UDP port of IKE, host byte order (500).
    pub ike_port: u32,
}
const _: () = assert!(size_of::<FrontEndConfig>() == 16);

/// `FrontEndConfig::flags`: drop ESP to our addresses with an unknown SPI (otherwise it is only
/// counted and passed on, for hosts where another IPsec daemon runs as well).
pub const CONFIG_DROP_UNKNOWN_SPI: u32 = 1;

/// `FrontEndConfig::flags`: there are policies; without any the guards are not consulted.
pub const CONFIG_GUARD: u32 = 2;

/// Value of `espada_local`: the address stands on the WAN or is the outer one of an SA.
pub const LOCAL_WAN: u32 = 1;

/// Value of `espada_local`: the address is ours and not one of those.
pub const LOCAL_OTHER: u32 = 2;

/// Value of `espada_lan` (hash by interface number): a LAN interface whose packets go past the
/// kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LanEntry {
    /// Its Ethernet address: packets to another are not for us to forward.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 2],
    /// Number of the plaintext interface: what the kernel's routes lead there is taken.
    pub tunnel: u32,
    /// Place of its first queue's socket in `espada_lan_xsks`; the others follow.
    pub first_socket: u32,
    /// Queues that have a socket.
    pub sockets: u32,
    /// Octets of the longest IP packet that fits a frame.
    pub most: u32,
}
const _: () = assert!(size_of::<LanEntry>() == 24);

/// Names of the maps, as they are pinned.
pub mod maps {
    /// Array of one [`super::FrontEndConfig`].
    pub const CONFIG: &str = "espada_config";
    /// Hash: our addresses (16 octets, IPv4 mapped) to a u32 of `LOCAL_*`.
    pub const LOCAL: &str = "espada_local";
    /// Hash: inbound [`super::SpiKey`] to [`super::SaInEntry`].
    pub const SA_IN: &str = "espada_sa_in";
    /// Per-CPU hash: inbound [`super::SpiKey`] to [`super::SaCounters`].
    pub const SA_IN_STATS: &str = "espada_sa_in_stats";
    /// Hash: outbound [`super::SaOutKey`] to [`super::SaOutEntry`].
    pub const SA_OUT: &str = "espada_sa_out";
    /// Array (BPF_F_MMAPABLE) by slot: [`super::SaCounters`].
    pub const SA_OUT_STATS: &str = "espada_sa_out_stats";
    /// Per-CPU array by `DropReason` number: u64 packets.
    pub const DROPS: &str = "espada_drops";
    /// LPM trie: remote [`super::Address`] to a u32 class.
    pub const SPD_REMOTE: &str = "espada_spd_remote";
    /// LPM trie: [`super::ClassedAddress`] to a u32 (1: protected).
    pub const SPD_LOCAL: &str = "espada_spd_local";
    /// LRU hash: [`super::FragmentKey`] to a u32 (1) of datagrams whose first fragment was ESP or IKE.
    pub const FRAGMENTS: &str = "espada_fragments";
    /// XSKMAP by lane times [`super::MAX_QUEUES`] plus receive queue.
    pub const XSKS: &str = "espada_xsks";
    /// Hash: interface number to [`super::LanEntry`].
    pub const LAN: &str = "espada_lan";
    /// XSKMAP by [`super::LanEntry::first_socket`] plus receive queue.
    pub const LAN_XSKS: &str = "espada_lan_xsks";
}
