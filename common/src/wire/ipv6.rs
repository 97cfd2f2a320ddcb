//! The IPv6 header and a bounded walk over its extension headers (RFC 8200).

use super::{Address, Cursor, protocol};

/// Octets of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Extension headers walked over before the parser gives up looking for the upper layer.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// The fields of the fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN (the traffic class).
    pub tos: u8,
    /// Octets of fixed header and payload.
    pub total_len: usize,
    /// First next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

/// Where the upper layer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its protocol, or the next header the walk stopped at.
    pub protocol: u8,
    /// Offset from the start of the packet.
    pub offset: usize,
    /// The fragment header that was met, if any.
    pub fragment: Option<Fragment>,
}

/// A fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, the same in all fragments of a packet.
    pub id: u32,
    /// Offset of this fragment in units of 8 octets.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// Reads the fixed header at `offset`; `None` if it is short, of another version, or longer than
/// the packet.
#[inline(always)]
pub fn header<C: Cursor>(packet: &C, offset: usize) -> Option<Header> {
    let first: [u8; 8] = packet.read(offset)?;
    let source = Address::from_octets(packet.read(offset + 8)?);
    let destination = Address::from_octets(packet.read(offset + 24)?);
    let available = packet.len().checked_sub(offset)?;
    let total_len = match u16::from_be_bytes([first[4], first[5]]) {
        // A jumbogram (RFC 2675) or a super packet above 64 KiB: as long as it is.
        0 if available > HEADER_LEN + usize::from(u16::MAX) => available,
        payload => HEADER_LEN + usize::from(payload),
    };
    if first[0] >> 4 != 6 || total_len > available {
        return None;
    }
    Some(Header {
        tos: first[0] << 4 | first[1] >> 4,
        total_len,
        next_header: first[6],
        hop_limit: first[7],
        source,
        destination,
    })
}

/// Walks from the fixed header at `offset` to the upper layer. Stops at a fragment that is not
/// the first (what follows is no header), at an unknown next header, and after
/// [`MAX_EXTENSION_HEADERS`]. `None` if a header on the way is truncated.
#[inline(always)]
pub fn upper<C: Cursor>(packet: &C, offset: usize, next_header: u8) -> Option<Upper> {
    let mut upper = Upper {
        protocol: next_header,
        offset: offset + HEADER_LEN,
        fragment: None,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        let kind = upper.protocol;
        if kind != protocol::HOP_BY_HOP
            && kind != protocol::ROUTING
            && kind != protocol::DESTINATION
            && kind != protocol::FRAGMENT
            && kind != protocol::AH
        {
            break;
        }
        let start = upper.offset;
        let head: [u8; 4] = packet.read(start)?;
        upper.protocol = head[0];
        upper.offset += match kind {
            protocol::FRAGMENT => 8,
            // RFC 4302 section 2.2 counts 32-bit words minus 2, the others 8 octets minus 1.
            protocol::AH => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        if kind == protocol::FRAGMENT {
            let word = u16::from_be_bytes([head[2], head[3]]);
            let fragment = Fragment {
                id: u32::from_be_bytes(packet.read(start + 4)?),
                offset: word >> 3,
                more: word & 1 != 0,
            };
            upper.fragment = Some(fragment);
            if fragment.offset != 0 {
                break;
            }
        }
    }
    Some(upper)
}
