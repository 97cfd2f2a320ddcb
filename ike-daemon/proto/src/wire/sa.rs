//! Security association payloads: proposals and their transforms (RFC 7296 section 3.3).

use super::reader::{DecodeError, Reader};
use crate::proposal::{Protocol, Transform, TransformType, WireProposal};

/// Most proposals accepted in one payload.
pub const MAX_PROPOSALS: usize = 64;
/// Most transforms accepted in one proposal.
pub const MAX_TRANSFORMS: usize = 64;

const ATTRIBUTE_KEY_LENGTH: u16 = 14;

/// A transform as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformBody<'a> {
    /// Transform type: 1 encryption, 2 PRF, 3 integrity, 4 key exchange, 5 ESN.
    pub kind: u8,
    /// Transform ID.
    pub id: u16,
    /// Attributes, undecoded.
    pub attributes: &'a [u8],
}

impl TransformBody<'_> {
    /// The key length attribute in bits; `Err` if there are attributes besides it, which make the
    /// transform one we do not understand (section 3.3.6).
    pub fn key_length(&self) -> Result<Option<u16>, DecodeError> {
        let mut reader = Reader::new(self.attributes, "transform attributes");
        let mut key_length = None;
        while !reader.is_empty() {
            let kind = reader.u16()?;
            let value = reader.u16()?;
            if kind != 0x8000 | ATTRIBUTE_KEY_LENGTH || key_length.is_some() {
                return Err(DecodeError::Invalid {
                    what: "transform attributes",
                    problem: "not a single key length",
                });
            }
            key_length = Some(value);
        }
        Ok(key_length)
    }
}

/// A proposal as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalBody<'a> {
    /// Its number, from 1.
    pub number: u8,
    /// 1 IKE, 2 AH, 3 ESP.
    pub protocol: u8,
    /// The sender's SPI: empty, 4 or 8 octets.
    pub spi: &'a [u8],
    /// Its transforms.
    pub transforms: Vec<TransformBody<'a>>,
}

/// Reads a payload body.
pub fn decode(body: &[u8]) -> Result<Vec<ProposalBody<'_>>, DecodeError> {
    const WHAT: &str = "SA payload";
    let mut reader = Reader::new(body, WHAT);
    let mut proposals = Vec::new();
    loop {
        if proposals.len() == MAX_PROPOSALS {
            return Err(DecodeError::TooMany {
                what: "proposals",
                limit: MAX_PROPOSALS,
            });
        }
        let (last, body) = substructure(&mut reader, 2, "proposal")?;
        proposals.push(proposal(body)?);
        if last {
            break;
        }
    }
    reader.finish()?;
    Ok(proposals)
}

/// Takes the next proposal or transform: whether it is the last, and what follows its length.
fn substructure<'a>(
    reader: &mut Reader<'a>,
    more: u8,
    what: &'static str,
) -> Result<(bool, &'a [u8]), DecodeError> {
    let last = match reader.u8()? {
        0 => true,
        marker if marker == more => false,
        _ => {
            return Err(DecodeError::Invalid {
                what,
                problem: "its \"last substructure\" field",
            });
        }
    };
    reader.u8()?;
    let length = usize::from(reader.u16()?);
    Ok((
        last,
        reader.bytes(length.checked_sub(4).ok_or(DecodeError::Short { what })?)?,
    ))
}

fn proposal(body: &[u8]) -> Result<ProposalBody<'_>, DecodeError> {
    const WHAT: &str = "proposal";
    let mut reader = Reader::new(body, WHAT);
    let number = reader.u8()?;
    let protocol = reader.u8()?;
    let spi_len = usize::from(reader.u8()?);
    let count = usize::from(reader.u8()?);
    if count > MAX_TRANSFORMS {
        return Err(DecodeError::TooMany {
            what: "transforms",
            limit: MAX_TRANSFORMS,
        });
    }
    let spi = reader.bytes(spi_len)?;
    let mut transforms = Vec::with_capacity(count);
    for index in 0..count {
        let (last, body) = substructure(&mut reader, 3, "transform")?;
        if last != (index + 1 == count) {
            return Err(DecodeError::Invalid {
                what: WHAT,
                problem: "its number of transforms",
            });
        }
        let mut fields = Reader::new(body, "transform");
        let kind = fields.u8()?;
        fields.u8()?;
        transforms.push(TransformBody {
            kind,
            id: fields.u16()?,
            attributes: fields.rest(),
        });
    }
    reader.finish()?;
    Ok(ProposalBody {
        number,
        protocol,
        spi,
        transforms,
    })
}

impl ProposalBody<'_> {
    /// The proposal free of its encoding. Transforms whose attributes are not understood are left
    /// out: "the responder MUST consider this transform unacceptable" (section 3.3.6).
    pub fn to_proposal(&self) -> WireProposal {
        let transform = |body: &TransformBody<'_>| {
            let key_len = body.key_length().ok()?;
            Some(Transform {
                kind: TransformType::from_id(body.kind),
                id: body.id,
                key_len,
            })
        };
        WireProposal {
            number: self.number,
            protocol: Protocol::from_id(self.protocol),
            spi: self.spi.to_vec(),
            transforms: self.transforms.iter().filter_map(transform).collect(),
        }
    }
}

/// Appends the payload body. At most 64 proposals of 64 transforms each are written.
pub fn encode(proposals: &[WireProposal], out: &mut Vec<u8>) {
    let count = proposals.len().min(MAX_PROPOSALS);
    for (index, proposal) in proposals.iter().take(count).enumerate() {
        encode_proposal(proposal, index + 1 == count, out);
    }
}

fn encode_proposal(proposal: &WireProposal, last: bool, out: &mut Vec<u8>) {
    let spi = proposal.spi.get(..8).unwrap_or(&proposal.spi);
    let count = proposal.transforms.len().min(MAX_TRANSFORMS);
    let start = out.len();
    out.extend([if last { 0 } else { 2 }, 0, 0, 0]);
    out.extend([
        proposal.number,
        proposal.protocol.id(),
        spi.len() as u8,
        count as u8,
    ]);
    out.extend(spi);
    for (index, transform) in proposal.transforms.iter().take(count).enumerate() {
        let length: u16 = if transform.key_len.is_some() { 12 } else { 8 };
        out.extend([if index + 1 == count { 0 } else { 3 }, 0]);
        out.extend(length.to_be_bytes());
        out.extend([transform.kind.id(), 0]);
        out.extend(transform.id.to_be_bytes());
        if let Some(bits) = transform.key_len {
            out.extend((0x8000 | ATTRIBUTE_KEY_LENGTH).to_be_bytes());
            out.extend(bits.to_be_bytes());
        }
    }
    let length = (out.len() - start) as u16;
    if let Some(field) = out.get_mut(start + 2..start + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}
