//! The packet parser that the eBPF programs, the workers and the tests share.
//!
//! Everything reads through [`Cursor`], so the same code runs over bytes behind `data_end` and
//! over a slice. Nothing here allocates, panics or loops without a bound.

pub mod esp;
pub mod eth;
pub mod ipv4;
pub mod ipv6;
pub mod lan;
pub mod parse;
#[cfg(any(test, feature = "sample"))]
pub mod sample;
#[cfg(test)]
mod tests;
pub mod udp;

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How deep into a packet the parser looks. The eBPF verifier needs such a bound, and no honest
/// packet has its headers beyond it.
pub const MAX_OFFSET: usize = 512;

/// Bounds-checked access to the octets of one packet.
pub trait Cursor {
    /// The `N` octets at `offset`, or `None` where the packet ends or `offset` is above
    /// [`MAX_OFFSET`].
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Octets of the whole packet.
    fn len(&self) -> usize;

    /// Whether the packet has no octets at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Cursor for &[u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.get(offset..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// An IPv6 address, or an IPv4 address mapped into IPv6 (`::ffff:0:0/96`, RFC 4291 section
/// 2.5.5.2). Held in words rather than octets, which keeps the eBPF programs within their stack;
/// in memory the octets are in network order.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Address([u32; 4]);

impl Address {
    /// From the octets of an IPv6 address.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self(zerocopy::transmute!(octets))
    }

    /// From the octets of an IPv4 address.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)])
    }

    /// The high and the low half as numbers.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        const fn half(high: u32, low: u32) -> u64 {
            (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64
        }
        let [a, b, c, d] = self.0;
        [half(a, b), half(c, d)]
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.0;
        a == 0 && b == 0 && c == 0xffff_u32.to_be()
    }

    /// The four octets of the IPv4 address it stands for, as they lie in memory.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.0[3]
    }

    /// The words as they lie in memory.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The octets in network order.
    pub const fn octets(self) -> [u8; 16] {
        zerocopy::transmute!(self.0)
    }
}

impl From<IpAddr> for Address {
    #[inline]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    #[inline]
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.octets()).to_canonical()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", IpAddr::from(*self))
    }
}

/// IP protocol numbers and IPv6 next headers that the parser knows.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ESP (RFC 4303).
    pub const ESP: u8 = 50;
    /// Authentication header (RFC 4302), walked over as an extension header.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}
