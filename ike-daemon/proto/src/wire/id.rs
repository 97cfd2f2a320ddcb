//! Identification, authentication, key exchange and delete payload bodies
//! (RFC 7296 sections 3.4, 3.5, 3.8 and 3.11).

use super::reader::{DecodeError, Reader};

/// Most SPIs accepted in one delete payload.
pub const MAX_DELETE_SPIS: usize = 256;

/// A one-octet type, three reserved octets, then data: how ID and AUTH payloads are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typed<'a> {
    /// ID type or authentication method.
    pub kind: u8,
    /// Sent as zero and ignored on receipt, but covered by the sender's AUTH payload.
    pub reserved: [u8; 3],
    /// What follows the reserved octets.
    pub data: &'a [u8],
}

impl<'a> Typed<'a> {
    /// A body to be sent.
    pub fn new(kind: u8, data: &'a [u8]) -> Self {
        Self {
            kind,
            reserved: [0; 3],
            data,
        }
    }

    /// Reads a payload body.
    pub fn decode(body: &'a [u8], what: &'static str) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, what);
        Ok(Self {
            kind: reader.u8()?,
            reserved: reader.array()?,
            data: reader.rest(),
        })
    }

    /// Appends the payload body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind);
        out.extend(self.reserved);
        out.extend(self.data);
    }
}

/// A key exchange payload body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExchangeData<'a> {
    /// Transform ID of the group.
    pub group: u16,
    /// Public value.
    pub data: &'a [u8],
}

impl<'a> KeyExchangeData<'a> {
    /// Reads a payload body.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "key exchange payload");
        let group = reader.u16()?;
        reader.u16()?;
        Ok(Self {
            group,
            data: reader.rest(),
        })
    }

    /// Appends the payload body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.group.to_be_bytes());
        out.extend([0, 0]);
        out.extend(self.data);
    }
}

/// A delete payload body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// 1 IKE, 2 AH, 3 ESP.
    pub protocol: u8,
    /// SPIs of four octets each; none for the IKE SA.
    pub spis: Vec<u32>,
}

impl Delete {
    /// Reads a payload body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "delete payload";
        let mut reader = Reader::new(body, WHAT);
        let protocol = reader.u8()?;
        let spi_len = reader.u8()?;
        let count = usize::from(reader.u16()?);
        if count > MAX_DELETE_SPIS {
            return Err(DecodeError::TooMany {
                what: "SPIs in a delete payload",
                limit: MAX_DELETE_SPIS,
            });
        }
        match (protocol, spi_len) {
            (1, 0) if count == 0 => {}
            (2 | 3, 4) => {}
            (2 | 3, _) if count == 0 => {}
            _ => {
                return Err(DecodeError::Invalid {
                    what: WHAT,
                    problem: "the SPI size does not fit the protocol",
                });
            }
        }
        let spis = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { protocol, spis })
    }

    /// Appends the payload body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = self.spis.len().min(MAX_DELETE_SPIS);
        out.extend([self.protocol, if self.protocol == 1 { 0 } else { 4 }]);
        out.extend((count as u16).to_be_bytes());
        out.extend(
            self.spis
                .iter()
                .take(count)
                .flat_map(|spi| spi.to_be_bytes()),
        );
    }
}
