//! The UDP header (RFC 768).

use super::Cursor;

/// Octets of the header.
pub const HEADER_LEN: usize = 8;

/// The fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Octets of header and payload, as stated.
    pub len: usize,
}

/// Reads the header at `offset`; `None` if it is short or states less than its own length.
#[inline(always)]
pub fn header<C: Cursor>(packet: &C, offset: usize) -> Option<Header> {
    let head: [u8; 6] = packet.read(offset)?;
    let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
    if len < HEADER_LEN {
        return None;
    }
    Some(Header {
        source_port: u16::from_be_bytes([head[0], head[1]]),
        destination_port: u16::from_be_bytes([head[2], head[3]]),
        len,
    })
}
