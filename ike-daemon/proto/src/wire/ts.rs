//! Traffic selector payloads (RFC 7296 section 3.13).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espada_common::sa::TrafficSelector;

use super::reader::{DecodeError, Reader};

/// Most selectors accepted in one payload.
pub const MAX_SELECTORS: usize = 128;

const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;

/// Reads a payload body. Selectors of types that cannot be used (Fibre Channel, labels) are left out,
/// which narrowing away from them amounts to.
pub fn decode(body: &[u8]) -> Result<Vec<TrafficSelector>, DecodeError> {
    const WHAT: &str = "traffic selector payload";
    let mut reader = Reader::new(body, WHAT);
    let count = usize::from(reader.u8()?);
    reader.bytes(3)?;
    if count == 0 {
        return Err(DecodeError::Invalid {
            what: WHAT,
            problem: "it holds no selector",
        });
    }
    if count > MAX_SELECTORS {
        return Err(DecodeError::TooMany {
            what: "traffic selectors",
            limit: MAX_SELECTORS,
        });
    }
    let mut selectors = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = reader.u8()?;
        let protocol = reader.u8()?;
        let length = usize::from(reader.u16()?);
        let body = reader.bytes(length.checked_sub(4).ok_or(DecodeError::Short {
            what: "traffic selector",
        })?)?;
        let mut fields = Reader::new(body, "traffic selector");
        let (start_port, end_port, start, end): (u16, u16, IpAddr, IpAddr) = match kind {
            TS_IPV4_ADDR_RANGE => (
                fields.u16()?,
                fields.u16()?,
                Ipv4Addr::from(fields.array::<4>()?).into(),
                Ipv4Addr::from(fields.array::<4>()?).into(),
            ),
            TS_IPV6_ADDR_RANGE => (
                fields.u16()?,
                fields.u16()?,
                Ipv6Addr::from(fields.array::<16>()?).into(),
                Ipv6Addr::from(fields.array::<16>()?).into(),
            ),
            _ => continue,
        };
        fields.finish()?;
        if start > end {
            return Err(DecodeError::Invalid {
                what: "traffic selector",
                problem: "its first address is above its last",
            });
        }
        selectors.push(TrafficSelector {
            protocol,
            start_port,
            end_port,
            start,
            end,
        });
    }
    reader.finish()?;
    Ok(selectors)
}

/// Appends the payload body. At most 128 selectors are written, the number a peer would accept from us.
pub fn encode(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
    let count = selectors.len().min(MAX_SELECTORS);
    out.extend([count as u8, 0, 0, 0]);
    for selector in selectors.iter().take(count) {
        let (kind, length) = match selector.start {
            IpAddr::V4(_) => (TS_IPV4_ADDR_RANGE, 16u16),
            IpAddr::V6(_) => (TS_IPV6_ADDR_RANGE, 40u16),
        };
        out.extend([kind, selector.protocol]);
        out.extend(length.to_be_bytes());
        out.extend(selector.start_port.to_be_bytes());
        out.extend(selector.end_port.to_be_bytes());
        for address in [selector.start, selector.end] {
            match address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
    }
}
