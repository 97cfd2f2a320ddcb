//! Packets built from their fields, for tests: deliberately apart from the parser's own code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::vec::Vec;

/// ESP: SPI, sequence number and as many octets of body.
pub fn esp(spi: u32, seq: u32, body: usize) -> Vec<u8> {
    let mut packet = spi.to_be_bytes().to_vec();
    packet.extend(seq.to_be_bytes());
    packet.resize(packet.len() + body, 0xa5);
    packet
}

/// A UDP datagram without checksum.
pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a datagram fits 64 KiB");
    let mut packet = source_port.to_be_bytes().to_vec();
    packet.extend(destination_port.to_be_bytes());
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug)]
pub enum Extension {
    /// Hop-by-hop options of this many times 8 octets beyond the first 8.
    HopByHop(u8),
    /// Destination options, likewise.
    Destination(u8),
    /// A routing header, likewise.
    Routing(u8),
    /// A fragment header: offset in units of 8 octets, more fragments, identification.
    Fragment(u16, bool, u32),
}

/// An IP packet to be.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source; both addresses are of one family.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Hop limit or TTL.
    pub ttl: u8,
    /// IPv4: words of options.
    pub option_words: u8,
    /// IPv4: identification, fragment offset in units of 8 octets, more fragments.
    pub fragment: (u16, u16, bool),
    /// IPv6: extension headers.
    pub extensions: Vec<Extension>,
}

impl Ip {
    /// A plain packet.
    pub fn new(source: &str, destination: &str, protocol: u8) -> Self {
        let address = |text: &str| text.parse().expect("an address");
        Self {
            source: address(source),
            destination: address(destination),
            protocol,
            tos: 0,
            ttl: 64,
            option_words: 0,
            fragment: (0, 0, false),
            extensions: Vec::new(),
        }
    }

    /// Its octets around a payload.
    pub fn octets(&self, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination, payload),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination, payload),
            _ => panic!("one family"),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let words = 5 + self.option_words;
        let total = usize::from(words) * 4 + payload.len();
        let (id, offset, more) = self.fragment;
        let mut packet = vec![0x40 | words, self.tos];
        packet.extend(
            u16::try_from(total)
                .expect("a packet fits 64 KiB")
                .to_be_bytes(),
        );
        packet.extend(id.to_be_bytes());
        packet.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        // No-operation options.
        packet.resize(usize::from(words) * 4, 1);
        packet.extend(payload);
        packet
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut chain = Vec::new();
        let kinds: Vec<u8> = self
            .extensions
            .iter()
            .map(|extension| match extension {
                Extension::HopByHop(_) => 0,
                Extension::Destination(_) => 60,
                Extension::Routing(_) => 43,
                Extension::Fragment(..) => 44,
            })
            .chain([self.protocol])
            .collect();
        for (extension, next) in self.extensions.iter().zip(&kinds[1..]) {
            match *extension {
                Extension::HopByHop(len)
                | Extension::Destination(len)
                | Extension::Routing(len) => {
                    chain.extend([*next, len]);
                    chain.resize(chain.len() + 6 + usize::from(len) * 8, 0);
                }
                Extension::Fragment(offset, more, id) => {
                    chain.extend([*next, 0]);
                    chain.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    chain.extend(id.to_be_bytes());
                }
            }
        }
        let len = u16::try_from(chain.len() + payload.len()).expect("a packet fits 64 KiB");
        let mut packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        packet.extend(len.to_be_bytes());
        packet.extend([kinds[0], self.ttl]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(chain);
        packet.extend(payload);
        packet
    }
}

/// An Ethernet frame around an IP packet, with VLAN tags, padded to the minimum length.
pub fn ethernet(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (index, tag) in tags.iter().enumerate() {
        let outer = tags.len() == 2 && index == 0;
        frame.extend(if outer { [0x88, 0xa8] } else { [0x81, 0x00] });
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(match packet.first().map(|first| first >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    });
    frame.extend(packet);
    frame.resize(frame.len().max(60), 0);
    frame
}
