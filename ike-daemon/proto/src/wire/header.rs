//! The IKE header (RFC 7296 section 3.1).

use std::fmt;

use super::payload::PayloadType;
use super::reader::{DecodeError, Reader};

/// Octets of the header.
pub const HEADER_LEN: usize = 28;

/// Exchange type number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeType(pub u8);

impl ExchangeType {
    /// IKE_SA_INIT
    pub const IKE_SA_INIT: Self = Self(34);
    /// IKE_AUTH
    pub const IKE_AUTH: Self = Self(35);
    /// CREATE_CHILD_SA
    pub const CREATE_CHILD_SA: Self = Self(36);
    /// INFORMATIONAL
    pub const INFORMATIONAL: Self = Self(37);
    /// IKE_INTERMEDIATE (RFC 9242)
    pub const IKE_INTERMEDIATE: Self = Self(43);
    /// IKE_FOLLOWUP_KE (RFC 9370)
    pub const IKE_FOLLOWUP_KE: Self = Self(44);
}

impl fmt::Display for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IKE_SA_INIT => f.write_str("IKE_SA_INIT"),
            Self::IKE_AUTH => f.write_str("IKE_AUTH"),
            Self::CREATE_CHILD_SA => f.write_str("CREATE_CHILD_SA"),
            Self::INFORMATIONAL => f.write_str("INFORMATIONAL"),
            Self::IKE_INTERMEDIATE => f.write_str("IKE_INTERMEDIATE"),
            Self::IKE_FOLLOWUP_KE => f.write_str("IKE_FOLLOWUP_KE"),
            Self(number) => write!(f, "exchange type {number}"),
        }
    }
}

/// Header flags; reserved bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// The sender is the original initiator of the IKE SA.
    pub const INITIATOR: u8 = 0x08;
    /// The sender could speak a higher major version.
    pub const VERSION: u8 = 0x10;
    /// The message is a response.
    pub const RESPONSE: u8 = 0x20;

    /// The flags of a message.
    pub fn new(initiator: bool, response: bool) -> Self {
        Self(
            if initiator { Self::INITIATOR } else { 0 } | if response { Self::RESPONSE } else { 0 },
        )
    }

    /// Sent by the original initiator.
    pub fn is_initiator(self) -> bool {
        self.0 & Self::INITIATOR != 0
    }

    /// Is a response.
    pub fn is_response(self) -> bool {
        self.0 & Self::RESPONSE != 0
    }
}

/// The header of an IKE message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// SPI of the original initiator.
    pub initiator_spi: u64,
    /// SPI of the original responder, 0 in the first message.
    pub responder_spi: u64,
    /// Type of the first payload.
    pub next_payload: PayloadType,
    /// Major version (2).
    pub major: u8,
    /// Minor version (0), ignored on receipt.
    pub minor: u8,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID.
    pub message_id: u32,
    /// Octets of the whole message.
    pub length: u32,
}

impl Header {
    /// Reads a header and nothing behind it; the length is not compared with anything.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "IKE header");
        let initiator_spi = reader.u64()?;
        let responder_spi = reader.u64()?;
        let next_payload = PayloadType(reader.u8()?);
        let version = reader.u8()?;
        Ok(Self {
            initiator_spi,
            responder_spi,
            next_payload,
            major: version >> 4,
            minor: version & 0x0f,
            exchange: ExchangeType(reader.u8()?),
            flags: Flags(reader.u8()?),
            message_id: reader.u32()?,
            length: reader.u32()?,
        })
    }

    /// The 28 octets.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&self.initiator_spi.to_be_bytes());
        out[8..16].copy_from_slice(&self.responder_spi.to_be_bytes());
        out[16] = self.next_payload.0;
        out[17] = self.major << 4 | self.minor & 0x0f;
        out[18] = self.exchange.0;
        out[19] = self.flags.0;
        out[20..24].copy_from_slice(&self.message_id.to_be_bytes());
        out[24..28].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Splits a datagram into its header and the octets behind it; the length field must agree.
    pub fn split(datagram: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let (head, body) = datagram
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(DecodeError::Short { what: "IKE header" })?;
        let header = Self::decode(head)?;
        if header.length as usize != datagram.len() {
            return Err(DecodeError::Invalid {
                what: "IKE header",
                problem: "its length is not the datagram's",
            });
        }
        Ok((header, body))
    }
}
