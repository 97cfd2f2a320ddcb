//! What a packet on the WAN is to an IPsec gateway.

use super::{Address, Cursor, esp, eth, ipv4, ipv6, protocol, udp};

/// What the packet starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header (tun, PPP and other links without a header of their own).
    Ip,
}

/// Which way the packet goes: our ports are its destination or its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It arrived.
    Inbound,
    /// It leaves.
    Outbound,
}

/// Our UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// IKE without a marker (500).
    pub ike: u16,
    /// ESP in UDP and IKE behind the non-ESP marker (4500).
    pub nat_t: u16,
}

impl Ports {
    /// The assigned ports (RFC 7296 section 2, RFC 3948).
    pub const ASSIGNED: Self = Self {
        ike: 500,
        nat_t: 4500,
    };
}

/// A classified packet. Flat, with every field always set: the eBPF verifier refuses the copies
/// of undefined octets that enum payloads bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WanPacket {
    /// What it is.
    pub class: Class,
    /// Security parameters index; 0 unless it is ESP.
    pub spi: u32,
    /// Sequence number, its low 32 bits with ESN; 0 unless it is ESP.
    pub seq: u32,
    /// Source, IPv4 mapped into IPv6.
    pub source: Address,
    /// Destination, IPv4 mapped into IPv6.
    pub destination: Address,
    /// DSCP and ECN of this (the outer) header.
    pub tos: u8,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Where the IP header starts.
    pub ip_offset: usize,
    /// Where the upper layer starts: the ESP header, or behind the UDP header of ESP, IKE and
    /// keepalives.
    pub payload_offset: usize,
    /// Octets of the IP packet, by its own header.
    pub ip_len: usize,
    /// The first fragment of a packet: classified by the upper-layer header it holds.
    pub first_fragment: bool,
    /// Identification of a fragment, first or later; 0 in whole packets.
    pub fragment_id: u32,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// ESP straight behind the IP header (RFC 4303).
    NativeEsp,
    /// ESP behind a UDP header with our NAT-T port (RFC 3948).
    UdpEsp,
    /// IKE on our NAT-T port, behind the non-ESP marker (RFC 3948 section 2.2).
    IkeNatT,
    /// IKE on our IKE port.
    Ike,
    /// NAT keepalive: one octet 0xff (RFC 3948 section 2.3).
    Keepalive,
    /// A fragment other than the first: it has no upper-layer header.
    Fragment,
    /// IPv6 neighbour discovery (RFC 4861), without which the link itself does not work.
    NeighbourDiscovery,
    /// Its upper-layer header is truncated or contradicts the IP header.
    Malformed,
    /// Anything else over IP.
    Other,
}

/// Why a packet could not be classified at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Neither IPv4 nor IPv6 (ARP, LLDP, PPPoE, …): none of IPsec's business.
    NotIp,
    /// A truncated frame or an IP header that contradicts itself or the packet's length.
    Malformed,
}

struct Ip {
    source: Address,
    destination: Address,
    tos: u8,
    len: usize,
    protocol: u8,
    upper_offset: usize,
    fragment: FragmentState,
    fragment_id: u32,
    hop_limit: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FragmentState {
    Whole,
    First,
    Later,
}

impl FragmentState {
    #[inline(always)]
    fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// Classifies one packet. Never panics, whatever the octets.
#[inline(always)]
pub fn wan<C: Cursor>(
    packet: &C,
    link: Link,
    direction: Direction,
    ports: Ports,
) -> Result<WanPacket, ParseError> {
    let start = match link {
        Link::Ethernet => eth::payload(packet).ok_or(ParseError::Malformed)?,
        Link::Ip => {
            let [version] = packet.read(0).ok_or(ParseError::Malformed)?;
            let ethertype = match version >> 4 {
                4 => eth::IPV4,
                6 => eth::IPV6,
                _ => return Err(ParseError::NotIp),
            };
            eth::Payload {
                ethertype,
                offset: 0,
            }
        }
    };
    let ip = match start.ethertype {
        eth::IPV4 => ip_v4(packet, start.offset),
        eth::IPV6 => ip_v6(packet, start.offset),
        _ => return Err(ParseError::NotIp),
    }
    .ok_or(ParseError::Malformed)?;
    let upper_len = (start.offset + ip.len).saturating_sub(ip.upper_offset);
    let upper = match ip.fragment {
        FragmentState::Later => Upper::of(Class::Fragment, ip.upper_offset),
        FragmentState::First | FragmentState::Whole => {
            upper(packet, &ip, upper_len, direction, ports)
        }
    };
    Ok(WanPacket {
        class: upper.class,
        spi: upper.spi,
        seq: upper.seq,
        source: ip.source,
        destination: ip.destination,
        tos: ip.tos,
        protocol: ip.protocol,
        ip_offset: start.offset,
        payload_offset: upper.offset,
        ip_len: ip.len,
        first_fragment: ip.fragment == FragmentState::First,
        fragment_id: match ip.fragment {
            FragmentState::Whole => 0,
            FragmentState::First | FragmentState::Later => ip.fragment_id,
        },
    })
}

#[inline(always)]
fn ip_v4<C: Cursor>(packet: &C, offset: usize) -> Option<Ip> {
    let header = ipv4::header(packet, offset)?;
    Some(Ip {
        source: header.source,
        destination: header.destination,
        tos: header.tos,
        len: header.total_len,
        protocol: header.protocol,
        upper_offset: offset + header.header_len,
        fragment: FragmentState::new(header.fragment_offset, header.more_fragments),
        fragment_id: u32::from(header.id),
        hop_limit: 0,
    })
}

#[inline(always)]
fn ip_v6<C: Cursor>(packet: &C, offset: usize) -> Option<Ip> {
    let header = ipv6::header(packet, offset)?;
    let upper = ipv6::upper(packet, offset, header.next_header)?;
    Some(Ip {
        source: header.source,
        destination: header.destination,
        tos: header.tos,
        len: header.total_len,
        protocol: upper.protocol,
        upper_offset: upper.offset,
        fragment: match upper.fragment {
            Some(fragment) => FragmentState::new(fragment.offset, fragment.more),
            None => FragmentState::Whole,
        },
        fragment_id: upper.fragment.map_or(0, |fragment| fragment.id),
        hop_limit: header.hop_limit,
    })
}

struct Upper {
    class: Class,
    spi: u32,
    seq: u32,
    offset: usize,
}

impl Upper {
    #[inline(always)]
    const fn of(class: Class, offset: usize) -> Self {
        Self {
            class,
            spi: 0,
            seq: 0,
            offset,
        }
    }
}

/// Looks at the upper layer, of which `len` octets are here.
#[inline(always)]
fn upper<C: Cursor>(packet: &C, ip: &Ip, len: usize, direction: Direction, ports: Ports) -> Upper {
    let offset = ip.upper_offset;
    match ip.protocol {
        protocol::ESP => esp(packet, Class::NativeEsp, offset, len),
        protocol::UDP => {
            let Some(header) = udp::header(packet, offset) else {
                return Upper::of(Class::Malformed, offset);
            };
            // A first fragment holds less than its UDP header states.
            let truncated = header.len > len && ip.fragment != FragmentState::First;
            if len < udp::HEADER_LEN || truncated {
                return Upper::of(Class::Malformed, offset);
            }
            let port = match direction {
                Direction::Inbound => header.destination_port,
                Direction::Outbound => header.source_port,
            };
            let offset = offset + udp::HEADER_LEN;
            if port == ports.nat_t {
                nat_t(packet, offset, header.len - udp::HEADER_LEN)
            } else if port == ports.ike {
                Upper::of(Class::Ike, offset)
            } else {
                Upper::of(Class::Other, offset)
            }
        }
        // RFC 4861 sections 4.1 to 4.5: types 133 to 137, valid only with hop limit 255.
        protocol::ICMPV6 if ip.hop_limit == 255 && len >= 8 => match packet.read(offset) {
            Some([133..=137]) => Upper::of(Class::NeighbourDiscovery, offset),
            _ => Upper::of(Class::Other, offset),
        },
        _ => Upper::of(Class::Other, offset),
    }
}

#[inline(always)]
fn esp<C: Cursor>(packet: &C, class: Class, offset: usize, len: usize) -> Upper {
    match esp::header(packet, offset) {
        Some(header) if len >= esp::HEADER_LEN => Upper {
            class,
            spi: header.spi,
            seq: header.seq,
            offset,
        },
        _ => Upper::of(Class::Malformed, offset),
    }
}

/// What a datagram on the NAT-T port holds: `len` octets at `offset`.
#[inline(always)]
fn nat_t<C: Cursor>(packet: &C, offset: usize, len: usize) -> Upper {
    if len == 1 {
        return match packet.read(offset) {
            Some([0xff]) => Upper::of(Class::Keepalive, offset),
            _ => Upper::of(Class::Malformed, offset),
        };
    }
    let upper = esp(packet, Class::UdpEsp, offset, len);
    // RFC 3948 section 2.2: the SPI field of ESP in UDP must not be zero; four zero octets there
    // are the non-ESP marker.
    if upper.class == Class::UdpEsp && upper.spi == 0 {
        return Upper::of(Class::IkeNatT, offset);
    }
    upper
}
