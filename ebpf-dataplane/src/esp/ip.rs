//! IP headers as ESP sees them: reading the inner one, building the outer one, and what passes
//! between the two (RFC 4301 section 5.1.2, RFC 6040).

use std::net::IpAddr;

use espada_common::wire::{ipv4, ipv6};

use super::spd::Flow;
use crate::port::checksum;

/// IP protocol numbers the engine looks at.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// An IPv4 packet.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// An IPv6 packet.
    pub const IPV6: u8 = 41;
    /// ESP.
    pub const ESP: u8 = 50;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows; in ESP, a dummy packet.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// Place of a packet among the fragments of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// Has the upper-layer header.
    First,
    /// Has not.
    Later,
}

/// A checked inner packet.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// What selectors look at.
    pub flow: Flow,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Don't Fragment (always for IPv6).
    pub df: bool,
    /// Octets by its own header; the buffer has at least as many.
    pub total_len: usize,
    /// Octets of the IP header: with options for IPv4, the fixed 40 for IPv6.
    pub header_len: usize,
    /// Where the upper-layer header starts.
    pub upper_offset: usize,
    /// Fragmentation.
    pub fragment: Fragment,
}

impl Inner {
    /// IPv6, not IPv4.
    pub fn is_v6(&self) -> bool {
        self.flow.source.is_ipv6()
    }
}

/// Reads an IP packet. `None` when it is neither IPv4 nor IPv6, truncated or contradicts itself.
pub fn parse(packet: &[u8]) -> Option<Inner> {
    match packet.first()? >> 4 {
        4 => {
            let header = ipv4::header(&packet, 0)?;
            let fragment = place(header.fragment_offset, header.more_fragments);
            let upper = packet.get(header.header_len..header.total_len)?;
            Some(Inner {
                flow: Flow {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    protocol: header.protocol,
                    ports: ports(header.protocol, upper, fragment)?,
                },
                tos: header.tos,
                df: packet.get(6)? & 0x40 != 0,
                total_len: header.total_len,
                header_len: header.header_len,
                upper_offset: header.header_len,
                fragment,
            })
        }
        6 => {
            let header = ipv6::header(&packet, 0)?;
            let upper = ipv6::upper(&packet, 0, header.next_header)?;
            let fragment = upper
                .fragment
                .map_or(Fragment::Whole, |part| place(part.offset, part.more));
            let rest = packet.get(upper.offset..header.total_len)?;
            Some(Inner {
                flow: Flow {
                    // Not as the shared parser's `Address` converts: an IPv4-mapped address in an IPv6
                    // packet is no IPv4 address, and must not match IPv4 selectors.
                    source: IpAddr::from(header.source.octets()),
                    destination: IpAddr::from(header.destination.octets()),
                    protocol: upper.protocol,
                    ports: ports(upper.protocol, rest, fragment)?,
                },
                tos: header.tos,
                df: true,
                total_len: header.total_len,
                header_len: ipv6::HEADER_LEN,
                upper_offset: upper.offset,
                fragment,
            })
        }
        _ => None,
    }
}

fn place(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// `None` for a packet that should have ports but is too short for them.
fn ports(protocol: u8, upper: &[u8], fragment: Fragment) -> Option<Option<(u16, u16)>> {
    if fragment == Fragment::Later {
        return Some(None);
    }
    match protocol {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE => {
            let ports: &[u8; 4] = upper.first_chunk()?;
            let source = u16::from_be_bytes([ports[0], ports[1]]);
            Some(Some((source, u16::from_be_bytes([ports[2], ports[3]]))))
        }
        // RFC 7296 section 3.13.1: type in the high octet, code in the low one, of both port fields.
        protocol::ICMP | protocol::ICMPV6 => {
            let kind = u16::from_be_bytes(*upper.first_chunk()?);
            Some(Some((kind, kind)))
        }
        _ => Some(None),
    }
}

/// Whether the packet is an ICMP error message, whose payload is the start of another packet.
pub fn is_icmp_error(inner: &Inner) -> bool {
    let kind = inner.flow.ports.map_or(0, |(kind, _)| kind >> 8);
    match inner.flow.protocol {
        // Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 3.2.2).
        protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // RFC 4443 section 2.1: "Error messages are identified as such by a zero in the
        // high-order bit of their message Type".
        protocol::ICMPV6 => inner.fragment != Fragment::Later && kind < 128,
        _ => false,
    }
}

/// RFC 4301 section 6.2: an ICMP error from a router that no selector covers is judged by the
/// packet it is about. Gives the flow that packet's answers have, which runs the error's way, if
/// `packet` is an error sent to that packet's source.
pub fn flow_of_icmp_error(packet: &[u8], inner: &Inner) -> Option<Flow> {
    if !is_icmp_error(inner) {
        return None;
    }
    // The packet inside is cut short, so its lengths need not fit: read what selectors look at.
    let inside = packet.get(inner.upper_offset.checked_add(8)?..inner.total_len)?;
    let flow = match inside.first()? >> 4 {
        4 => {
            let fixed: &[u8; 20] = inside.first_chunk()?;
            let offset = u16::from_be_bytes([fixed[6] & 0x1f, fixed[7]]);
            let upper = inside.get(usize::from(fixed[0] & 0x0f) * 4..)?;
            let source: [u8; 4] = fixed[12..16].try_into().ok()?;
            let destination: [u8; 4] = fixed[16..20].try_into().ok()?;
            Flow {
                source: source.into(),
                destination: destination.into(),
                protocol: fixed[9],
                ports: ports(fixed[9], upper, place(offset, false))?,
            }
        }
        6 => {
            let fixed: &[u8; 40] = inside.first_chunk()?;
            let upper = ipv6::upper(&inside, 0, fixed[6])?;
            let fragment = upper
                .fragment
                .map_or(Fragment::Whole, |part| place(part.offset, part.more));
            let source: [u8; 16] = fixed[8..24].try_into().ok()?;
            let destination: [u8; 16] = fixed[24..40].try_into().ok()?;
            Flow {
                source: source.into(),
                destination: destination.into(),
                protocol: upper.protocol,
                ports: ports(upper.protocol, inside.get(upper.offset..)?, fragment)?,
            }
        }
        _ => return None,
    };
    (flow.source == inner.flow.destination).then(|| flow.reversed())
}

/// Fields of an outer header that is to be built.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Our address.
    pub source: IpAddr,
    /// The peer's, of the same family.
    pub destination: IpAddr,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Don't Fragment, for IPv4.
    pub df: bool,
    /// Identification, for IPv4.
    pub id: u16,
    /// What follows.
    pub protocol: u8,
    /// Flow label (20 bits), for IPv6.
    pub label: u32,
}

/// Octets of an outer header to an address of this family.
pub fn outer_len(address: IpAddr) -> usize {
    if address.is_ipv6() {
        ipv6::HEADER_LEN
    } else {
        ipv4::MIN_HEADER_LEN
    }
}

/// Writes a header without options into `header` (of [`outer_len`]), for `payload_len` octets.
/// `None` when the packet would be longer than IP can say, or the families differ.
pub fn build(outer: &Outer, payload_len: usize, header: &mut [u8]) -> Option<()> {
    match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header: &mut [u8; 20] = header.first_chunk_mut()?;
            let total = u16::try_from(payload_len + 20).ok()?.to_be_bytes();
            let id = outer.id.to_be_bytes();
            header[..12].copy_from_slice(&[
                0x45,
                outer.tos,
                total[0],
                total[1],
                id[0],
                id[1],
                u8::from(outer.df) << 6,
                0,
                outer.ttl,
                outer.protocol,
                0,
                0,
            ]);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            checksum::ipv4_header(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header: &mut [u8; 40] = header.first_chunk_mut()?;
            let word = 6 << 28 | u32::from(outer.tos) << 20 | (outer.label & 0xf_ffff);
            header[..4].copy_from_slice(&word.to_be_bytes());
            header[4..6].copy_from_slice(&u16::try_from(payload_len).ok()?.to_be_bytes());
            header[6] = outer.protocol;
            header[7] = outer.ttl;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
        }
        _ => return None,
    }
    Some(())
}

/// Explicit congestion notification (RFC 3168): the low two bits of the type of service.
pub mod ecn {
    /// The sender does not do ECN.
    pub const NOT_ECT: u8 = 0b00;
    /// ECN-capable, codepoint 1.
    pub const ECT_1: u8 = 0b01;
    /// ECN-capable, codepoint 0.
    pub const ECT_0: u8 = 0b10;
    /// Congestion experienced.
    pub const CE: u8 = 0b11;

    /// The inner field after decapsulation (RFC 6040 figure 4); `None`: drop the packet.
    pub const fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
        match (inner & 3, outer & 3) {
            // A mark its transport does not understand: dropping is the signal it does.
            (NOT_ECT, CE) => None,
            (NOT_ECT, _) => Some(NOT_ECT),
            (CE, _) | (_, CE) => Some(CE),
            (ECT_0, ECT_1) => Some(ECT_1),
            (inner, _) => Some(inner),
        }
    }
}

/// Sets the ECN field of an IP packet.
pub fn set_ecn(packet: &mut [u8], field: u8) {
    let Some([first, second]) = packet.first_chunk_mut() else {
        return;
    };
    match *first >> 4 {
        4 => {
            let old = u16::from_be_bytes([*first, *second]);
            *second = *second & !3 | field;
            let new = u16::from_be_bytes([*first, *second]);
            if let Some(sum) = packet.get_mut(10..12).and_then(|sum| sum.first_chunk_mut()) {
                adjust(sum, old, new);
            }
        }
        // The traffic class lies across the first two octets: ECN is bits 4 and 5 of the second.
        6 => *second = *second & !0x30 | field << 4,
        _ => {}
    }
}

/// Corrects a checksum for a 16-bit word that changed (RFC 1624 equation 3).
pub fn adjust(sum: &mut [u8; 2], old: u16, new: u16) {
    let folded = u32::from(!u16::from_be_bytes(*sum)) + u32::from(!old) + u32::from(new);
    let folded = (folded & 0xffff) + (folded >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    *sum = (!(folded as u16)).to_be_bytes();
}

/// Lowers the MSS option of a TCP SYN (or SYN+ACK) to `mss`; never raises it. `upper` is the TCP
/// segment. True if it was changed.
pub fn clamp_mss(upper: &mut [u8], mss: u16) -> bool {
    const SYN: u8 = 0x02;
    let Some(flags) = upper.get(13) else {
        return false;
    };
    if flags & SYN == 0 {
        return false;
    }
    let end = upper
        .get(12)
        .map_or(0, |offset| usize::from(offset >> 4) * 4)
        .min(upper.len());
    let mut at = 20;
    while at < end {
        let length = match (upper.get(at), upper.get(at + 1)) {
            (Some(0), _) | (None, _) => return false,
            (Some(1), _) => 1,
            (Some(2), Some(4)) if at + 4 <= end => {
                let Some(value) = upper
                    .get_mut(at + 2..)
                    .and_then(|v| v.first_chunk_mut::<2>())
                else {
                    return false;
                };
                let old = *value;
                if u16::from_be_bytes(old) <= mss {
                    return false;
                }
                *value = mss.to_be_bytes();
                let new = *value;
                let Some(sum) = upper.get_mut(16..18).and_then(|sum| sum.first_chunk_mut()) else {
                    return false;
                };
                if at % 2 == 0 {
                    adjust(sum, u16::from_be_bytes(old), mss);
                } else {
                    // The option straddles two words of the sum: swapping both sides' octets
                    // leaves the ones' complement sum right.
                    adjust(sum, u16::from_le_bytes(old), u16::from_le_bytes(new));
                }
                return true;
            }
            (Some(_), Some(length)) if *length >= 2 => usize::from(*length),
            _ => return false,
        };
        at += length;
    }
    false
}
