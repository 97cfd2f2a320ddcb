//! The start of an ESP packet (RFC 4303 section 2).

use super::Cursor;

/// Octets of SPI and sequence number.
pub const HEADER_LEN: usize = 8;

/// SPI and sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Security parameters index.
    pub spi: u32,
    /// Sequence number, its low 32 bits with ESN.
    pub seq: u32,
}

/// Reads the header at `offset`.
#[inline(always)]
pub fn header<C: Cursor>(packet: &C, offset: usize) -> Option<Header> {
    let head: [u8; HEADER_LEN] = packet.read(offset)?;
    Some(Header {
        spi: u32::from_be_bytes([head[0], head[1], head[2], head[3]]),
        seq: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
    })
}
