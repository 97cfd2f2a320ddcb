//! Configuration payloads (RFC 7296 section 3.15).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::{DecodeError, Reader};

/// Most attributes accepted in one payload.
pub const MAX_ATTRIBUTES: usize = 64;

/// CFG Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigType(pub u8);

impl ConfigType {
    /// Its sender asks.
    pub const REQUEST: Self = Self(1);
    /// The answer to a request.
    pub const REPLY: Self = Self(2);
}

/// Attribute type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// An IPv4 address of the initiator's in the internal network.
    pub const INTERNAL_IP4_ADDRESS: Self = Self(1);
    /// Its network's mask.
    pub const INTERNAL_IP4_NETMASK: Self = Self(2);
    /// An IPv4 name server.
    pub const INTERNAL_IP4_DNS: Self = Self(3);
    /// An IPv6 address of the initiator's in the internal network, with a prefix length.
    pub const INTERNAL_IP6_ADDRESS: Self = Self(8);
    /// An IPv6 name server.
    pub const INTERNAL_IP6_DNS: Self = Self(10);
}

/// One attribute; without a value it asks for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// What it is.
    pub kind: AttributeType,
    /// Its value.
    pub value: &'a [u8],
}

impl Attribute<'_> {
    /// The address that it begins with, for the attributes that hold one: of the family of `kind`.
    /// `None` for an empty value.
    pub fn address(&self) -> Option<IpAddr> {
        match self.kind {
            AttributeType::INTERNAL_IP4_ADDRESS | AttributeType::INTERNAL_IP4_DNS => {
                let octets: [u8; 4] = self.value.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            }
            AttributeType::INTERNAL_IP6_ADDRESS | AttributeType::INTERNAL_IP6_DNS => {
                // A prefix length follows an address; some peers leave it out.
                let (octets, _): (&[u8; 16], _) = self.value.split_first_chunk()?;
                Some(Ipv6Addr::from(*octets).into())
            }
            _ => None,
        }
    }
}

/// A configuration payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration<'a> {
    /// Question or answer.
    pub kind: ConfigType,
    /// What is asked for or given.
    pub attributes: Vec<Attribute<'a>>,
}

impl<'a> Configuration<'a> {
    /// Reads a payload body.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "CP payload");
        let kind = ConfigType(reader.u8()?);
        reader.bytes(3)?;
        let mut rest = Reader::new(reader.rest(), "configuration attribute");
        let mut attributes = Vec::new();
        while !rest.is_empty() {
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(DecodeError::TooMany {
                    what: "configuration attributes",
                    limit: MAX_ATTRIBUTES,
                });
            }
            // "Reserved (1 bit) - This bit MUST be set to zero and MUST be ignored on receipt."
            let kind = AttributeType(rest.u16()? & 0x7fff);
            let length = rest.u16()?;
            let value = rest.bytes(length.into())?;
            attributes.push(Attribute { kind, value });
        }
        Ok(Self { kind, attributes })
    }

    /// Appends the payload body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.kind.0, 0, 0, 0]);
        for attribute in &self.attributes {
            let value = attribute
                .value
                .get(..usize::from(u16::MAX))
                .unwrap_or(attribute.value);
            out.extend(attribute.kind.0.to_be_bytes());
            out.extend((value.len() as u16).to_be_bytes());
            out.extend(value);
        }
    }
}
