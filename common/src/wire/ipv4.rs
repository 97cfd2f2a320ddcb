//! The IPv4 header (RFC 791).

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Address, Cursor};

/// Octets of a header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// The fields of a checked header. The header checksum is not verified: the kernel does it for
/// what is passed on, and ESP authenticates what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Octets of the header with its options: 20 to 60.
    pub header_len: usize,
    /// DSCP and ECN.
    pub tos: u8,
    /// Octets of header and payload.
    pub total_len: usize,
    /// Identification, the same in all fragments of a datagram.
    pub id: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment in units of 8 octets.
    pub fragment_offset: u16,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Raw {
    version_and_len: u8,
    tos: u8,
    total_len: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

/// Reads the header at `offset`; `None` where RFC 1122 section 3.2.1 asks to discard the packet:
/// wrong version, header or total length that contradict each other or the packet.
#[inline(always)]
pub fn header<C: Cursor>(packet: &C, offset: usize) -> Option<Header> {
    let raw: Raw = zerocopy::transmute!(packet.read::<MIN_HEADER_LEN>(offset)?);
    let header_len = usize::from(raw.version_and_len & 0x0f) * 4;
    let available = packet.len().checked_sub(offset)?;
    let total_len = match raw.total_len.get() {
        // Linux leaves 0 in super packets above 64 KiB ("BIG TCP"); they are as long as they are.
        0 if available > usize::from(u16::MAX) => available,
        stated => usize::from(stated),
    };
    if raw.version_and_len >> 4 != 4
        || header_len < MIN_HEADER_LEN
        || total_len < header_len
        || total_len > available
    {
        return None;
    }
    let fragment = raw.fragment.get();
    Some(Header {
        header_len,
        tos: raw.tos,
        total_len,
        id: raw.id.get(),
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset: fragment & 0x1fff,
        protocol: raw.protocol,
        source: Address::from_v4(raw.source),
        destination: Address::from_v4(raw.destination),
    })
}
