//! The BPF maps that the XDP/TC programs and the loader share. Every struct is `repr(C)`,
//! padded by hand, size-asserted, and versioned by [`ABI_VERSION`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of everything in this module; the loader refuses pinned maps of another version.
pub const ABI_VERSION: u32 = 1;

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
    /// Bit 0: hand native ESP of this SA to the AF_XDP socket of the queue if there is one.
    pub flags: u32,
    /// Our address (IPv4 mapped into IPv6) that packets of this SA must be sent to.
    pub local: [u8; 16],
}
const _: () = assert!(size_of::<SaInEntry>() == 24);

/// `SaInEntry::flags`: steer to AF_XDP.
pub const SA_FLAG_STEER_XSK: u32 = 1;

/// Value of `espada_sa_in_stats` (per-CPU hash keyed by [`SpiKey`]) and of `espada_sa_out_stats`
/// (hash keyed by outbound `SpiKey`, filled by the tc egress program for packets that pass it).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaCounters {
    /// Packets of this SA seen on the WAN.
    pub packets: u64,
    /// Octets of their IP packets, outer header included.
    pub bytes: u64,
}
const _: () = assert!(size_of::<SaCounters>() == 16);

/// Key of the LPM tries: prefix length in bits, then data. IPv4 is mapped into IPv6 (::ffff:0:0/96).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoteKey {
    /// Bits of `addr` that count, 0 to 128.
    pub prefix_len: u32,
    /// Address on the peer's side of a policy.
    pub addr: [u8; 16],
}
const _: () = assert!(size_of::<RemoteKey>() == 20);

/// Key of `espada_spd_local`: 32 bits of class (from `espada_spd_remote`) before the local address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LocalKey {
    /// Bits that count, 32 to 160: the class always does.
    pub prefix_len: u32,
    /// Class of the remote prefix.
    pub class: u32,
    /// Address on our side of a policy.
    pub addr: [u8; 16],
}
const _: () = assert!(size_of::<LocalKey>() == 24);

/// Value of `espada_config` (array of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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

/// Names of the maps, as they are pinned.
pub mod maps {
    /// Array of one [`super::FrontEndConfig`].
    pub const CONFIG: &str = "espada_config";
    /// Hash: our WAN addresses (16 octets, IPv4 mapped) to a u32 of flags.
    pub const LOCAL: &str = "espada_local";
    /// Hash: inbound [`super::SpiKey`] to [`super::SaInEntry`].
    pub const SA_IN: &str = "espada_sa_in";
    /// Per-CPU hash: inbound [`super::SpiKey`] to [`super::SaCounters`].
    pub const SA_IN_STATS: &str = "espada_sa_in_stats";
    /// Per-CPU hash: outbound [`super::SpiKey`] to [`super::SaCounters`].
    pub const SA_OUT_STATS: &str = "espada_sa_out_stats";
    /// Per-CPU array by `DropReason` number: u64 packets.
    pub const DROPS: &str = "espada_drops";
    /// LPM trie: [`super::RemoteKey`] to a u32 class.
    pub const SPD_REMOTE: &str = "espada_spd_remote";
    /// LPM trie: [`super::LocalKey`] to a u32 (1: protected).
    pub const SPD_LOCAL: &str = "espada_spd_local";
    /// XSKMAP by receive queue.
    pub const XSKS: &str = "espada_xsks";
}
