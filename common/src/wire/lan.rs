//! Packets of hosts on a LAN that a gateway may forward past its kernel: those that forwarding
//! changes nothing of but TTL or hop limit.

use super::{Address, Cursor, eth, ipv4, ipv6, protocol};

/// A packet that wants forwarding and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanPacket {
    /// Source, IPv4 mapped into IPv6.
    pub source: Address,
    /// Destination, IPv4 mapped into IPv6.
    pub destination: Address,
    /// DSCP and ECN.
    pub tos: u8,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// The first four octets of the upper layer, zero where it has fewer: the ports of TCP and UDP.
    pub ports: [u8; 4],
    /// Octets of the IP packet, by its own header.
    pub ip_len: usize,
}

/// SCTP (RFC 9260), whose CRC32c a virtual link may leave to the receiver's hardware, as nothing in the
/// packet shows.
const SCTP: u8 = 132;

/// Reads a frame that arrived on an interface with this Ethernet address. `None` for everything that
/// is the kernel's to look at: other link-layer destinations, VLAN tags, other protocols than IP,
/// headers that contradict themselves, IPv4 options, IPv6 extension headers, fragments, TTL or hop
/// limit used up, addresses that are never forwarded, and SCTP.
#[inline(always)]
pub fn forwardable<C: Cursor>(frame: &C, mac: [u8; 6]) -> Option<LanPacket> {
    let destination: [u8; 6] = frame.read(0)?;
    if destination != mac {
        return None;
    }
    let packet = match u16::from_be_bytes(frame.read(12)?) {
        eth::IPV4 => v4(frame)?,
        eth::IPV6 => v6(frame)?,
        _ => return None,
    };
    (packet.protocol != SCTP && is_forwarded(packet.source) && is_forwarded(packet.destination))
        .then_some(packet)
}

#[inline(always)]
fn v4<C: Cursor>(frame: &C) -> Option<LanPacket> {
    let header = ipv4::header(frame, eth::HEADER_LEN)?;
    let [ttl] = frame.read(eth::HEADER_LEN + 8)?;
    if header.header_len != ipv4::MIN_HEADER_LEN
        || header.more_fragments
        || header.fragment_offset != 0
        || ttl <= 1
    {
        return None;
    }
    Some(LanPacket {
        source: header.source,
        destination: header.destination,
        tos: header.tos,
        protocol: header.protocol,
        ports: ports(frame, eth::HEADER_LEN + ipv4::MIN_HEADER_LEN),
        ip_len: header.total_len,
    })
}

#[inline(always)]
fn v6<C: Cursor>(frame: &C) -> Option<LanPacket> {
    let header = ipv6::header(frame, eth::HEADER_LEN)?;
    let extension = matches!(
        header.next_header,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION
            | protocol::AH
    );
    // An IPv4 address mapped into IPv6 is none on the wire (RFC 6890).
    if extension || header.hop_limit <= 1 || header.source.is_v4() || header.destination.is_v4() {
        return None;
    }
    Some(LanPacket {
        source: header.source,
        destination: header.destination,
        tos: header.tos,
        protocol: header.next_header,
        ports: ports(frame, eth::HEADER_LEN + ipv6::HEADER_LEN),
        ip_len: header.total_len,
    })
}

#[inline(always)]
fn ports<C: Cursor>(frame: &C, offset: usize) -> [u8; 4] {
    frame.read(offset).unwrap_or_default()
}

/// Whether routers forward packets from and to an address: not those of this network or this host
/// (0.0.0.0/8, 127.0.0.0/8, ::, ::1), of the link (fe80::/10) or of groups and above (224.0.0.0/3,
/// ff00::/8).
#[inline(always)]
fn is_forwarded(address: Address) -> bool {
    if address.is_v4() {
        let first = u32::from_be(address.v4_word()) >> 24;
        return first != 0 && first != 127 && first < 224;
    }
    let [high, low] = address.halves();
    let host = high == 0 && low <= 1;
    !host && high >> 54 != 0xfe80 >> 6 && high >> 56 != 0xff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sample::{Extension, Ip, ethernet, udp};
    use proptest::prelude::*;

    /// What `sample::ethernet` addresses its frames to.
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn look(frame: &[u8]) -> Option<LanPacket> {
        forwardable(&frame, MAC)
    }

    fn plain(source: &str, destination: &str) -> Ip {
        Ip::new(source, destination, protocol::UDP)
    }

    #[test]
    fn ordinary_packets_are_read() {
        for (source, destination) in [("10.1.0.1", "10.2.0.2"), ("fd00:1::1", "fd00:2::2")] {
            let mut ip = plain(source, destination);
            (ip.tos, ip.ttl) = (0xb9, 2);
            let packet = ip.octets(&udp(1000, 2000, b"payload"));
            let found = look(&ethernet(&[], &packet)).unwrap();
            assert_eq!(
                found,
                LanPacket {
                    source: ip.source.into(),
                    destination: ip.destination.into(),
                    tos: 0xb9,
                    protocol: protocol::UDP,
                    ports: [0x03, 0xe8, 0x07, 0xd0],
                    // Ethernet's padding is no part of it.
                    ip_len: packet.len(),
                }
            );
            // Nothing behind the IP header.
            ip.protocol = 59;
            let frame = ethernet(&[], &ip.octets(&[]));
            let headers = 14 + ip.octets(&[]).len();
            assert_eq!(look(&frame[..headers]).unwrap().ports, [0; 4]);
        }
    }

    #[test]
    fn what_is_the_kernels_stays_with_it() {
        let v4 = plain("10.1.0.1", "10.2.0.2");
        let v6 = plain("fd00:1::1", "fd00:2::2");
        let mut unusual = Vec::new();
        let mut change = |ip: &Ip, f: &dyn Fn(&mut Ip)| {
            let mut ip = ip.clone();
            f(&mut ip);
            unusual.push(ip);
        };
        change(&v4, &|ip| ip.ttl = 1);
        change(&v4, &|ip| ip.ttl = 0);
        change(&v4, &|ip| ip.option_words = 1);
        change(&v4, &|ip| ip.fragment = (7, 0, true));
        change(&v4, &|ip| ip.fragment = (7, 100, false));
        change(&v4, &|ip| ip.protocol = SCTP);
        change(&v6, &|ip| ip.ttl = 1);
        change(&v6, &|ip| ip.protocol = SCTP);
        for extension in [
            Extension::HopByHop(0),
            Extension::Destination(1),
            Extension::Routing(0),
            Extension::Fragment(0, true, 1),
        ] {
            change(&v6, &|ip| ip.extensions = vec![extension]);
        }
        for address in ["0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            change(&v4, &|ip| ip.source = address.parse().unwrap());
            change(&v4, &|ip| ip.destination = address.parse().unwrap());
        }
        for address in [
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:10.2.0.2",
        ] {
            change(&v6, &|ip| ip.source = address.parse().unwrap());
            change(&v6, &|ip| ip.destination = address.parse().unwrap());
        }
        for ip in &unusual {
            let frame = ethernet(&[], &ip.octets(&[0; 40]));
            assert_eq!(look(&frame), None, "{ip:?}");
        }
        let frame = ethernet(&[], &v4.octets(&[0; 40]));
        assert!(look(&frame).is_some());
        assert_eq!(look(&ethernet(&[5], &v4.octets(&[0; 40]))), None);
        assert_eq!(forwardable(&frame.as_slice(), [2, 0, 0, 0, 0, 3]), None);
        let mut arp = frame;
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(look(&arp), None);
    }

    proptest! {
        /// What is taken is within the frame and looks as the general parser sees it.
        #[test]
        fn any_octets(mut octets in prop::collection::vec(any::<u8>(), 0..100), v6 in any::<bool>()) {
            for (at, octet) in MAC.iter().chain(&[2, 0, 0, 0, 0, 2]).enumerate() {
                if let Some(place) = octets.get_mut(at) {
                    *place = *octet;
                }
            }
            for (at, octet) in [(12, if v6 { 0x86 } else { 8 }), (13, if v6 { 0xdd } else { 0 }), (14, if v6 { 0x60 } else { 0x45 })] {
                if let Some(place) = octets.get_mut(at) {
                    *place = octet;
                }
            }
            // Small lengths, so that some are true.
            for at in [16, 18] {
                if let Some(place) = octets.get_mut(at) {
                    *place = 0;
                }
            }
            if let Some(found) = look(&octets) {
                prop_assert!(found.ip_len + 14 <= octets.len());
                let frame: &[u8] = &octets;
                let wan = crate::wire::parse::wan(
                    &frame,
                    crate::wire::parse::Link::Ethernet,
                    crate::wire::parse::Direction::Inbound,
                    crate::wire::parse::Ports::ASSIGNED,
                )
                .unwrap();
                prop_assert_eq!(
                    (wan.source, wan.destination, wan.tos, wan.ip_len, wan.fragment_id),
                    (found.source, found.destination, found.tos, found.ip_len, 0)
                );
            }
        }
    }
}
