//! Cutting a segmentation-offload packet (up to 64 KiB of TCP or UDP behind one header, with a
//! virtio-net header beside it) into packets that fit the path.

use super::checksum::{self, Sum};
use crate::esp::ip::protocol;

/// `struct virtio_net_hdr` in host byte order, as a TUN with IFF_VNET_HDR reads and writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `FLAG_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Octets of all headers.
    pub header_length: u16,
    /// Octets of payload per segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub checksum_start: u16,
    /// Where, from there, the checksum is stored.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Octets on the wire.
    pub const LENGTH: usize = 10;
    /// The transport checksum is to be completed.
    pub const FLAG_NEEDS_CHECKSUM: u8 = 1;
    /// No segmentation.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP datagrams over either.
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit: the segments use ECN, the first carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header.
    pub fn parse(octets: &[u8; Self::LENGTH]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        Self {
            flags: octets[0],
            gso_type: octets[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; Self::LENGTH] {
        let mut octets = [0; Self::LENGTH];
        octets[0] = self.flags;
        octets[1] = self.gso_type;
        for (field, value) in octets[2..].as_chunks_mut::<2>().0.iter_mut().zip([
            self.header_length,
            self.gso_size,
            self.checksum_start,
            self.checksum_offset,
        ]) {
            *field = value.to_ne_bytes();
        }
        octets
    }
}

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Hands out the segments of one packet, in order.
pub struct Segmenter<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    /// Octets of IP headers.
    ip: usize,
    protocol: u8,
    /// Of the pseudo header without the length.
    pseudo: Sum,
    size: usize,
    sent: usize,
    count: u16,
}

impl<'a> Segmenter<'a> {
    /// `None` when the two headers contradict each other or the kind is not one we announced.
    pub fn new(header: &VnetHeader, packet: &'a [u8]) -> Option<Self> {
        let protocol = match header.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => protocol::TCP,
            VnetHeader::GSO_UDP_L4 => protocol::UDP,
            _ => return None,
        };
        // The kernel leaves the checksum of every such packet open, at its transport header.
        let ip = usize::from(header.checksum_start);
        let (least_ip, transport) = match packet.first()? >> 4 {
            4 => (20, packet.get(ip..)?),
            6 => (40, packet.get(ip..)?),
            _ => return None,
        };
        let length = match protocol {
            protocol::TCP => usize::from(*transport.get(12)? >> 4) * 4,
            _ => 8,
        };
        let least = if protocol == protocol::TCP { 20 } else { 8 };
        if ip < least_ip || length < least || header.gso_size == 0 {
            return None;
        }
        let (headers, payload) = packet.split_at_checked(ip + length)?;
        if payload.is_empty() {
            return None;
        }
        let size = usize::from(header.gso_size);
        Some(Self {
            headers,
            payload,
            ip,
            protocol,
            pseudo: checksum::pseudo_header(headers, protocol, 0)?,
            size,
            sent: 0,
            count: 0,
        })
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Octets of the first segment, headers included: the last may be shorter.
    pub fn longest(&self) -> usize {
        self.headers.len() + self.payload.len().min(self.size)
    }

    /// Octets of the next segment, headers included; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        let left = self.payload.len() - self.sent;
        (left > 0).then(|| self.headers.len() + left.min(self.size))
    }

    /// Writes the next segment to `out`, whose length must be [`Segmenter::next_len`]. False when
    /// it is not, or there is no next.
    pub fn write_next(&mut self, out: &mut [u8]) -> bool {
        if self.next_len() != Some(out.len()) {
            return false;
        }
        let (headers, payload) = out.split_at_mut(self.headers.len());
        let end = self.sent + payload.len();
        headers.copy_from_slice(self.headers);
        payload.copy_from_slice(&self.payload[self.sent..end]);
        let (first, last) = (self.sent == 0, end == self.payload.len());
        let (ip, transport) = headers.split_at_mut(self.ip);
        let transport_length = transport.len() + payload.len();
        write_ip_lengths(ip, transport_length, self.count);
        let checksum_at = if self.protocol == protocol::TCP {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add(self.sent as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                transport[13] &= !(TCP_FIN | TCP_PSH);
            }
            // RFC 3168 section 6.1.2: CWR is said once.
            if !first {
                transport[13] &= !TCP_CWR;
            }
            16
        } else {
            transport[4..6].copy_from_slice(&(transport_length as u16).to_be_bytes());
            6
        };
        transport[checksum_at..checksum_at + 2].fill(0);
        // The transport header is of even length, so the payload may follow.
        let pseudo = self.pseudo.add_u16(transport_length as u16);
        let sum = match pseudo.add(transport).add(payload).finish() {
            0 if self.protocol == protocol::UDP => 0xffff,
            sum => sum,
        };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_ne_bytes());
        self.sent = end;
        self.count = self.count.wrapping_add(1);
        true
    }
}

/// Sets the length of what follows the IP headers; an IPv4 identification counts up.
pub(super) fn write_ip_lengths(ip: &mut [u8], transport_length: usize, count: u16) {
    if ip[0] >> 4 == 4 {
        let total = (ip.len() + transport_length) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(count);
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        checksum::ipv4_header(ip);
    } else {
        let length = (ip.len() - 40 + transport_length) as u16;
        ip[4..6].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCP super-packet as a TUN hands it over.
    pub fn super_packet(
        v6: bool,
        payload: &[u8],
        size: u16,
        options: usize,
    ) -> (VnetHeader, Vec<u8>) {
        let mut packet = if v6 { vec![0u8; 40] } else { vec![0u8; 20] };
        if v6 {
            packet[0] = 0x60;
            packet[6] = 6;
            packet[7] = 64;
            packet[8..24].copy_from_slice(&[0xfd; 16]);
            packet[24..40].copy_from_slice(&[0xfe; 16]);
        } else {
            packet[0] = 0x45;
            packet[4..6].copy_from_slice(&0xfffeu16.to_be_bytes());
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = 6;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 9, 0, 2]);
        }
        let ip = packet.len();
        let mut tcp = vec![0u8; 20 + options];
        tcp[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        tcp[4..8].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        tcp[12] = ((tcp.len() / 4) << 4) as u8;
        tcp[13] = 0x10 | TCP_PSH | TCP_FIN | TCP_CWR;
        packet.extend_from_slice(&tcp);
        packet.extend_from_slice(payload);
        let header = VnetHeader {
            flags: VnetHeader::FLAG_NEEDS_CHECKSUM,
            gso_type: if v6 {
                VnetHeader::GSO_TCPV6
            } else {
                VnetHeader::GSO_TCPV4
            },
            header_length: (ip + tcp.len()) as u16,
            gso_size: size,
            checksum_start: ip as u16,
            checksum_offset: 16,
        };
        (header, packet)
    }

    /// All segments of a packet.
    pub fn segments(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut segmenter = Segmenter::new(header, packet).unwrap();
        let mut segments = Vec::new();
        while let Some(len) = segmenter.next_len() {
            let mut out = vec![0; len];
            assert!(segmenter.write_next(&mut out));
            segments.push(out);
        }
        segments
    }

    /// Whether the checksums of a whole TCP or UDP packet without extension headers verify.
    pub fn checksums_hold(packet: &[u8]) -> bool {
        let (ip, protocol) = if packet[0] >> 4 == 4 {
            (20, packet[9])
        } else {
            (40, packet[6])
        };
        let transport = &packet[ip..];
        let pseudo = checksum::pseudo_header(packet, protocol, transport.len()).unwrap();
        let header_holds = ip == 40 || Sum::default().add(&packet[..ip]).finish() == 0;
        header_holds && pseudo.add(transport).finish() == 0
    }

    proptest! {
        #[test]
        fn segments_carry_the_payload_with_valid_headers(
            v6: bool,
            payload in proptest::collection::vec(any::<u8>(), 1..20_000),
            size in 1u16..9000,
            options in (0usize..=10).prop_map(|n| n * 4),
        ) {
            let (header, packet) = super_packet(v6, &payload, size.max(100), options);
            let mut segmenter = Segmenter::new(&header, &packet).unwrap();
            let head = usize::from(header.header_length);
            let ip = usize::from(header.checksum_start);
            let mut gathered = Vec::new();
            let mut index = 0u16;
            while let Some(len) = segmenter.next_len() {
                let mut out = vec![0; len];
                prop_assert!(segmenter.write_next(&mut out));
                prop_assert!(checksums_hold(&out));
                let sequence = u32::from_be_bytes(out[ip + 4..ip + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(gathered.len() as u32));
                if !v6 {
                    let id = u16::from_be_bytes([out[4], out[5]]);
                    prop_assert_eq!(id, 0xfffeu16.wrapping_add(index));
                    prop_assert_eq!(usize::from(u16::from_be_bytes([out[2], out[3]])), len);
                }
                gathered.extend_from_slice(&out[head..]);
                let last = gathered.len() == payload.len();
                prop_assert_eq!(out[ip + 13] & TCP_FIN != 0, last);
                prop_assert_eq!(out[ip + 13] & TCP_CWR != 0, index == 0);
                index += 1;
            }
            prop_assert_eq!(gathered, payload);
        }

        #[test]
        fn arbitrary_headers_never_panic(
            octets: [u8; VnetHeader::LENGTH],
            packet in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let header = VnetHeader::parse(&octets);
            prop_assert_eq!(header.emit(), octets);
            if let Some(mut segmenter) = Segmenter::new(&header, &packet) {
                while let Some(len) = segmenter.next_len() {
                    let mut out = vec![0; len];
                    prop_assert!(segmenter.write_next(&mut out));
                }
            }
        }
    }

    #[test]
    fn udp_segments_have_their_own_lengths() {
        let mut packet = vec![0u8; 28];
        packet[0] = 0x45;
        packet[9] = protocol::UDP;
        packet.extend_from_slice(&[7; 250]);
        let header = VnetHeader {
            gso_type: VnetHeader::GSO_UDP_L4,
            gso_size: 100,
            checksum_start: 20,
            checksum_offset: 6,
            ..VnetHeader::default()
        };
        let mut segmenter = Segmenter::new(&header, &packet).unwrap();
        for length in [128, 128, 78] {
            let mut out = vec![0; segmenter.next_len().unwrap()];
            assert!(segmenter.write_next(&mut out));
            assert_eq!(out.len(), length);
            assert_eq!(
                usize::from(u16::from_be_bytes([out[24], out[25]])),
                length - 20
            );
            assert!(checksums_hold(&out));
        }
        assert_eq!(segmenter.next_len(), None);
    }
}
