//! Joining consecutive TCP segments, or UDP datagrams of one length, of one flow into one packet for
//! the tunnel interface: the host's stack then works once per up to 64 KiB. What the peer sent can be
//! restored exactly, as the kernel asks of receive offloads.

use super::checksum;
use super::gso::{VnetHeader, write_ip_lengths};
use crate::esp::ip::protocol;
use crate::umem::Frame;

/// Segments joined at most.
pub const MOST_PIECES: usize = 64;

/// Runs that a segment is compared with, the youngest first: bounds the work of a burst of as many
/// flows as packets.
const MOST_FLOWS: usize = 32;

const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const NONE: u16 = u16::MAX;

/// What must be known of a TCP segment or a UDP datagram with payload.
#[derive(Clone, Copy)]
struct Segment {
    protocol: u8,
    ip: usize,
    head: usize,
    payload: usize,
    /// TCP's; 0 for UDP.
    sequence: u32,
    /// TCP's; not set for UDP.
    push: bool,
}

impl Segment {
    /// A whole, plain segment with payload; anything unusual is left as it is.
    fn of(packet: &[u8]) -> Option<Self> {
        let (ip, protocol) = match packet.first()? {
            // No options, no fragment.
            0x45 if packet.get(6)? & 0x3f == 0 && *packet.get(7)? == 0 => {
                let total = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
                (usize::from(total) == packet.len()).then_some((20, *packet.get(9)?))?
            }
            first if first >> 4 == 6 => {
                let length = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
                (usize::from(length) + 40 == packet.len()).then_some((40, *packet.get(6)?))?
            }
            _ => return None,
        };
        match protocol {
            protocol::TCP => Self::of_tcp(packet, ip),
            protocol::UDP => Self::of_udp(packet, ip),
            _ => None,
        }
    }

    /// Only a datagram with a checksum: after joining and cutting it would have one.
    fn of_udp(packet: &[u8], ip: usize) -> Option<Self> {
        let udp = packet.get(ip..ip + 8)?;
        let head = ip + 8;
        let payload = packet.len().checked_sub(head).filter(|n| *n > 0)?;
        let whole = usize::from(u16::from_be_bytes([udp[4], udp[5]])) == packet.len() - ip;
        (whole && udp[6..8] != [0; 2]).then_some(Self {
            protocol: protocol::UDP,
            ip,
            head,
            payload,
            sequence: 0,
            push: false,
        })
    }

    fn of_tcp(packet: &[u8], ip: usize) -> Option<Self> {
        let tcp = packet.get(ip..ip + 20)?;
        let head = ip + usize::from(tcp[12] >> 4) * 4;
        let payload = packet
            .len()
            .checked_sub(head)
            .filter(|n| *n > 0 && head >= ip + 20)?;
        let plain = tcp[12] & 0x0f == 0 && tcp[13] & !TCP_PSH == TCP_ACK;
        plain.then_some(Self {
            protocol: protocol::TCP,
            ip,
            head,
            payload,
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            push: tcp[13] & TCP_PSH != 0,
        })
    }

    fn checksum_holds(&self, packet: &[u8]) -> bool {
        packet.get(self.ip..).is_some_and(|transport| {
            checksum::pseudo_header(packet, self.protocol, transport.len())
                .is_some_and(|pseudo| pseudo.add(transport).finish() == 0)
        })
    }

    /// Whether `other` is what follows this one and `carried` octets of payload.
    fn is_followed_by(&self, other: &Self, carried: usize) -> bool {
        let in_sequence = match self.protocol {
            protocol::TCP => other.sequence == self.sequence.wrapping_add(carried as u32),
            _ => true,
        };
        let alike = (other.protocol, other.ip, other.head) == (self.protocol, self.ip, self.head);
        alike && in_sequence && other.payload <= self.payload
    }

    /// Whether everything but lengths, identification, sequence, PSH and checksums is equal in `a`, a
    /// packet like this one, and in `b`, which is so many packets behind it.
    fn same_headers(&self, a: &[u8], b: &[u8], distance: u16) -> bool {
        let equal = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
        let ip = self.ip;
        let ip_equal = if ip == 20 {
            let id = |p: &[u8]| u16::from_be_bytes([p[4], p[5]]);
            let fixed = a[6] & 0x40 != 0;
            equal(0, 2) && equal(6, 10) && (fixed || id(b) == id(a).wrapping_add(distance))
        } else {
            equal(0, 4) && equal(6, 8)
        };
        let transport_equal = match self.protocol {
            // Acknowledgement and offset; window; options.
            protocol::TCP => {
                equal(ip + 8, ip + 13) && equal(ip + 14, ip + 16) && equal(ip + 18, self.head)
            }
            _ => true,
        };
        ip_equal && transport_equal
    }
}

/// Whether two packets are of one flow (or might be: only addresses and ports count).
fn same_flow(a: &[u8], b: &[u8]) -> bool {
    let (Some(first), Some(other)) = (a.first(), b.first()) else {
        return false;
    };
    let ip = |first: &u8| usize::from(first & 0x0f) * 4;
    match (first >> 4, other >> 4) {
        (4, 4) => same::<8>(a, b, 12, 12) && same::<4>(a, b, ip(first), ip(other)),
        (6, 6) => same::<32>(a, b, 8, 8) && same::<4>(a, b, 40, 40),
        _ => false,
    }
}

/// Whether both have the same octets at these places.
fn same<const N: usize>(a: &[u8], b: &[u8], at_a: usize, at_b: usize) -> bool {
    let field = |packet: &[u8], at| packet.get(at..)?.first_chunk::<N>().copied();
    field(a, at_a).is_some_and(|octets| field(b, at_b) == Some(octets))
}

/// Frames that leave as one packet: a chain through [`Coalescer::next`].
struct Run {
    first: u16,
    last: u16,
    pieces: u16,
    /// Octets of the whole packet.
    total: usize,
    /// The first segment, when the run may grow.
    segment: Option<Segment>,
    open: bool,
    verified: bool,
    push: bool,
}

/// Reusable state of one writer.
pub struct Coalescer {
    /// Transport protocols whose packets are joined.
    protocols: &'static [u8],
    runs: Vec<Run>,
    next: Vec<u16>,
}

impl Coalescer {
    /// Joins packets of TCP and UDP as far as they are among `protocols`.
    pub fn new(protocols: &'static [u8]) -> Self {
        Self {
            protocols,
            runs: Vec::new(),
            next: Vec::new(),
        }
    }

    /// Calls `emit` once per packet to write, with the pieces to gather; each flow stays in order.
    pub fn deliver(&mut self, frames: &mut [Frame], mut emit: impl FnMut(VnetHeader, &[&[u8]])) {
        // Frames are counted in 16 bits.
        for chunk in frames.chunks_mut(usize::from(NONE)) {
            self.gather(chunk);
            for run in &self.runs {
                let header = finish(run, chunk);
                let mut pieces: [&[u8]; MOST_PIECES] = [&[]; MOST_PIECES];
                let mut count = 0;
                let mut index = run.first;
                while let Some(frame) = chunk.get(usize::from(index)) {
                    let skip = if count == 0 {
                        0
                    } else {
                        run.segment.map_or(0, |s| s.head)
                    };
                    pieces[count] = &frame.data()[skip..];
                    count += 1;
                    index = self.next[usize::from(index)];
                }
                emit(header, &pieces[..count]);
            }
        }
    }

    fn gather(&mut self, frames: &[Frame]) {
        self.runs.clear();
        self.next.clear();
        self.next.resize(frames.len(), NONE);
        for index in 0..frames.len() {
            let segment = Segment::of(frames[index].data())
                .filter(|segment| self.protocols.contains(&segment.protocol));
            if !segment.is_some_and(|segment| self.join(frames, index, segment)) {
                self.runs.push(Run {
                    first: index as u16,
                    last: index as u16,
                    pieces: 1,
                    total: frames[index].len(),
                    open: segment.is_some_and(|s| !s.push),
                    push: segment.is_some_and(|s| s.push),
                    segment,
                    verified: false,
                });
            }
        }
    }

    /// Appends the segment to the youngest run of its flow if it continues it.
    fn join(&mut self, frames: &[Frame], index: usize, segment: Segment) -> bool {
        let packet = frames[index].data();
        let first_of = |run: &Run| frames[usize::from(run.first)].data();
        let Some(run) = self
            .runs
            .iter_mut()
            .rev()
            .take(MOST_FLOWS)
            .find(|run| same_flow(first_of(run), packet))
        else {
            return false;
        };
        let room = run.open && usize::from(run.pieces) < MOST_PIECES;
        let Some(head) = run.segment.filter(|_| room) else {
            return false;
        };
        let carried = run.total - head.head;
        let continues = head.is_followed_by(&segment, carried)
            && run.total + segment.payload <= usize::from(u16::MAX)
            && head.same_headers(first_of(run), packet, run.pieces);
        // The joined packet's checksum is vouched for, so the parts' must hold.
        if !continues || !segment.checksum_holds(packet) {
            return false;
        }
        if !run.verified {
            run.verified = head.checksum_holds(first_of(run));
            if !run.verified {
                run.open = false;
                return false;
            }
        }
        self.next[usize::from(run.last)] = index as u16;
        run.last = index as u16;
        run.pieces += 1;
        run.total += segment.payload;
        run.push = segment.push;
        run.open = segment.payload == head.payload && !segment.push;
        true
    }
}

/// Makes the first frame's headers those of the whole run.
fn finish(run: &Run, frames: &mut [Frame]) -> VnetHeader {
    let (Some(segment), Some(frame)) = (
        run.segment.filter(|_| run.pieces > 1),
        frames.get_mut(usize::from(run.first)),
    ) else {
        return VnetHeader::default();
    };
    let (ip, transport) = frame.data_mut().split_at_mut(segment.ip);
    let length = run.total - segment.ip;
    write_ip_lengths(ip, length, 0);
    let (gso_type, checksum_offset) = match (segment.protocol, segment.ip) {
        (protocol::UDP, _) => (VnetHeader::GSO_UDP_L4, 6),
        (_, 20) => (VnetHeader::GSO_TCPV4, 16),
        _ => (VnetHeader::GSO_TCPV6, 16),
    };
    if segment.protocol == protocol::UDP {
        transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    }
    if run.push {
        transport[13] |= TCP_PSH;
    }
    let pseudo = checksum::pseudo_header(ip, segment.protocol, length).unwrap_or_default();
    transport[checksum_offset..checksum_offset + 2].copy_from_slice(&pseudo.fold().to_ne_bytes());
    VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CHECKSUM,
        gso_type,
        header_length: segment.head as u16,
        gso_size: segment.payload as u16,
        checksum_start: segment.ip as u16,
        checksum_offset: checksum_offset as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::super::gso::VnetHeader;
    use super::super::gso::tests::{checksums_hold, segments, super_packet};
    use super::*;
    use crate::umem::{Arena, Burst};
    use proptest::prelude::*;

    fn deliver(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
        deliver_with(
            &mut Coalescer::new(&[protocol::TCP, protocol::UDP]),
            packets,
        )
    }

    fn deliver_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
        let arena = Arena::new(packets.len().max(1), 16384).unwrap();
        let mut pool = arena.take(packets.len());
        let mut burst = Burst::new();
        for packet in packets {
            let mut frame = pool.get().unwrap();
            frame.append(packet.len()).unwrap().copy_from_slice(packet);
            burst.push(frame);
        }
        let mut out = Vec::new();
        coalescer.deliver(burst.frames_mut(), |header, pieces| {
            out.push((header, pieces.concat()));
        });
        out
    }

    /// Segments without FIN and CWR, which end a run, or datagrams.
    fn plain(udp: bool, v6: bool, payload: &[u8], size: u16, port: u8) -> (VnetHeader, Vec<u8>) {
        let (mut header, mut packet) = super_packet(v6, payload, size, 12);
        let ip = usize::from(header.checksum_start);
        packet[ip + 1] = port;
        if udp {
            packet.drain(ip + 8..ip + 32);
            packet[if v6 { 6 } else { 9 }] = protocol::UDP;
            header.gso_type = VnetHeader::GSO_UDP_L4;
            header.header_length = (ip + 8) as u16;
            header.checksum_offset = 6;
        } else {
            packet[ip + 13] = TCP_ACK | TCP_PSH;
        }
        (header, packet)
    }

    proptest! {
        #[test]
        fn joined_segments_cut_again_are_the_same(
            udp: bool,
            v6: bool,
            a in proptest::collection::vec(any::<u8>(), 1..20_000),
            b in proptest::collection::vec(any::<u8>(), 1..9_000),
            size in 500u16..4000,
            interleave in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let (header_a, packet_a) = plain(udp, v6, &a, size, 1);
            let (header_b, packet_b) = plain(udp, v6, &b, size, 2);
            let (sent_a, sent_b) = (segments(&header_a, &packet_a), segments(&header_b, &packet_b));
            let (mut left_a, mut left_b) = (sent_a.iter(), sent_b.iter());
            let mut mixed = Vec::new();
            for choice in interleave.iter().chain(std::iter::repeat(&true)) {
                let (one, other) = if *choice { (&mut left_a, &mut left_b) } else { (&mut left_b, &mut left_a) };
                match one.next().or_else(|| other.next()) {
                    Some(packet) => mixed.push(packet.clone()),
                    None => break,
                }
            }
            let delivered = deliver(&mixed);
            if mixed.len() <= MOST_PIECES {
                prop_assert_eq!(delivered.len(), 2);
            }
            let mut again_a = Vec::new();
            let mut again_b = Vec::new();
            for (header, packet) in delivered {
                prop_assert!(header.gso_type == VnetHeader::GSO_NONE || length_says(&packet) == packet.len());
                let cut = if header.gso_type == VnetHeader::GSO_NONE { vec![packet.clone()] } else { segments(&header, &packet) };
                let ip = if v6 { 40 } else { 20 };
                if packet[ip + 1] == 1 { again_a.extend(cut) } else { again_b.extend(cut) }
            }
            prop_assert_eq!(again_a, sent_a);
            prop_assert_eq!(again_b, sent_b);
        }

        #[test]
        fn arbitrary_packets_pass_unchanged(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..20),
        ) {
            let out = deliver(&packets);
            prop_assert_eq!(out.into_iter().map(|(_, p)| p).collect::<Vec<_>>(), packets);
        }
    }

    /// What the IP and UDP headers say how long the packet is; for TCP the IP header.
    fn length_says(packet: &[u8]) -> usize {
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let (ip, protocol, length) = match packet[0] >> 4 {
            4 => (20, packet[9], word(2)),
            _ => (40, packet[6], 40 + word(4)),
        };
        if protocol == protocol::UDP {
            assert_eq!(ip + word(ip + 4), length);
        }
        length
    }

    #[test]
    fn a_bad_checksum_is_never_hidden() {
        for (udp, bad) in [false, true]
            .into_iter()
            .flat_map(|udp| (0..4).map(move |bad| (udp, bad)))
        {
            let (header, packet) = plain(udp, false, &[7; 4000], 1000, 1);
            let mut sent = segments(&header, &packet);
            sent[bad][60] ^= 1;
            let delivered = deliver(&sent);
            let alone = delivered
                .iter()
                .find(|(_, packet)| packet[..] == sent[bad][..]);
            assert!(alone.is_some_and(|(header, packet)| {
                header.gso_type == VnetHeader::GSO_NONE && !checksums_hold(packet)
            }));
        }
    }

    #[test]
    fn reordered_and_repeated_segments_stay_apart() {
        let (header, packet) = plain(false, false, &[7; 3000], 1000, 1);
        let sent = segments(&header, &packet);
        let order = [&sent[1], &sent[0], &sent[0], &sent[2]].map(Clone::clone);
        assert_eq!(only_packets(&order), order);
    }

    fn only_packets(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let delivered = deliver(packets).into_iter();
        delivered.map(|(_, packet)| packet).collect()
    }

    #[test]
    fn datagrams_that_could_not_be_restored_stay_apart() {
        let (header, packet) = plain(true, false, &[7; 3000], 1000, 1);
        let sent = segments(&header, &packet);
        assert_eq!(deliver(&sent).len(), 1);
        // A kernel that would not cut them.
        assert_eq!(
            deliver_with(&mut Coalescer::new(&[protocol::TCP]), &sent).len(),
            3
        );
        // The first one shorter than the next.
        let (header, packet) = plain(true, false, &[7; 900], 900, 1);
        let mut shorter = segments(&header, &packet);
        shorter.push(sent[1].clone());
        assert_eq!(only_packets(&shorter), shorter);
        // No checksum, and a length that is not that of the packet.
        for (at, octets) in [(26, [0, 0]), (24, [0, 99])] {
            let mut odd = sent.clone();
            for packet in &mut odd {
                packet[at..at + 2].copy_from_slice(&octets);
            }
            assert_eq!(only_packets(&odd), odd);
        }
        // Identifications that do not count up, of datagrams that may become fragments.
        let mut ids = sent;
        for packet in &mut ids {
            packet[6] = 0;
            packet[4..6].copy_from_slice(&[1, 1]);
            checksum::ipv4_header(&mut packet[..20]);
        }
        assert_eq!(only_packets(&ids), ids);
    }
}
