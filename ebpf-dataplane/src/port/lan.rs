//! The LAN past the kernel: inner packets move between the interfaces' drivers and our frames. What
//! forwarding does to a packet is done here: TTL or hop limit goes down by one (RFC 1812 section
//! 5.3.1, RFC 8200 section 3).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use espada_common::drops::DropReason;
use espada_common::wire::protocol;

use super::checksum::{self, Sum};
use super::ring::TransmitHalf;
use super::xsk::{Counters, ETHERNET, Transmitter, strip_ethernet};
use crate::esp::stats::DropCounters;
use crate::lan::Table;
use crate::umem::{Burst, Frame, FramePool};

const IPV4: usize = 20;
const IPV6: usize = 40;

/// Leaves of an Ethernet frame that the LAN program has taken the inner packet, ready for the tunnel.
pub fn inner_packet(frame: &mut Frame) -> Result<(), DropReason> {
    let v4 = strip_ethernet(frame)?;
    let packet = frame.data_mut();
    let (upper, next) = if v4 {
        let header = packet.get(..IPV4).ok_or(DropReason::Malformed)?;
        // RFC 1812 section 5.2.2: a router must verify the header's checksum.
        if Sum::default().add(header).fold() != u16::MAX {
            return Err(DropReason::Malformed);
        }
        (IPV4, header[9])
    } else {
        let header = packet.get(..IPV6).ok_or(DropReason::Malformed)?;
        (IPV6, header[6])
    };
    if !one_hop_less(packet) {
        return Err(DropReason::TtlExpired);
    }
    finish_checksum(packet, upper, next);
    Ok(())
}

/// Takes one off TTL or hop limit, and corrects an IPv4 header's checksum for it (RFC 1624 equation 3).
/// False, and nothing done, when none would be left or this is no IP packet.
fn one_hop_less(packet: &mut [u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Some(header) = packet.first_chunk_mut::<IPV4>() else {
                return false;
            };
            let [ttl, protocol] = [header[8], header[9]];
            if ttl <= 1 {
                return false;
            }
            let (old, new) = (
                u16::from_be_bytes([ttl, protocol]),
                u16::from_be_bytes([ttl - 1, protocol]),
            );
            let sum = u16::from_be_bytes([header[10], header[11]]);
            let sum = !Sum::default()
                .add_u16(!sum)
                .add_u16(!old)
                .add_u16(new)
                .fold();
            header[8] = ttl - 1;
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
            true
        }
        Some(6) => match packet.get_mut(7) {
            Some(limit) if *limit > 1 => {
                *limit -= 1;
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// Finishes the checksum of TCP or UDP where a virtual link's other end left that to its hardware, which
/// it has none of. Nothing tells of it but that the field holds the sum of the pseudo header. Of a packet
/// whose true checksum happens to be that number, the result is the same number.
fn finish_checksum(packet: &mut [u8], upper: usize, next: u8) {
    let offset = match next {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return,
    };
    let field = upper + offset;
    let Some([high, low]) = packet.get(field..).and_then(|rest| rest.first_chunk()) else {
        return;
    };
    let found = u16::from_ne_bytes([*high, *low]);
    let length = packet.len() - upper;
    let pseudo = packet
        .get(..upper)
        .and_then(|header| checksum::pseudo_header(header, next, length));
    if pseudo.is_some_and(|pseudo| pseudo.fold() == found) {
        checksum::complete(packet, upper, offset);
    }
}

/// Sends decrypted packets on LAN interfaces.
pub struct LanSender {
    ports: Vec<Transmitter>,
    table: Arc<Table>,
    /// Empty between calls; kept for its capacity.
    rest: Burst,
}

impl LanSender {
    /// Takes a transmitting half of each interface; sends nothing until it has a table.
    pub fn new(halves: Vec<(TransmitHalf, Arc<Counters>)>) -> Self {
        Self {
            ports: (halves.into_iter())
                .map(|(half, counters)| Transmitter::new(half, counters))
                .collect(),
            table: Arc::default(),
            rest: Burst::new(),
        }
    }

    /// Replaces the table of neighbours.
    pub fn set_table(&mut self, table: Arc<Table>) {
        self.table = table;
    }

    /// Takes the packets to known neighbours out of `burst` and sends them; what the kernel must see
    /// stays, in order.
    pub fn send(&mut self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        for port in &mut self.ports {
            port.reap(pool);
        }
        let table = Arc::clone(&self.table);
        if table.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut self.rest);
        for mut frame in burst.drain() {
            let hop = table.find(frame.data());
            let hop = hop.filter(|hop| is_ordinary(frame.data(), hop.next.mtu));
            let way = hop.and_then(|hop| Some((hop, self.ports.get_mut(hop.port)?)));
            let Some((hop, port)) = way else {
                rest.push(frame);
                continue;
            };
            if frame.headroom() < ETHERNET || !one_hop_less(frame.data_mut()) {
                rest.push(frame);
                continue;
            }
            if let Ok(room) = frame.prepend(ETHERNET) {
                room.copy_from_slice(&hop.next.header);
            }
            hop.mark_used();
            if let Err(frame) = port.push(frame, pool) {
                drops.add(DropReason::LanFull);
                pool.put(frame);
            }
        }
        std::mem::swap(burst, &mut rest);
        self.rest = rest;
        for port in &mut self.ports {
            port.submit(pool);
        }
    }
}

/// A sender that all inbound workers send through, in their turns.
#[derive(Clone)]
pub struct SharedLanSender(Arc<Mutex<LanSender>>);

impl SharedLanSender {
    /// Shares a sender.
    pub fn new(sender: LanSender) -> Self {
        Self(Arc::new(Mutex::new(sender)))
    }

    /// [`LanSender::set_table`].
    pub fn set_table(&self, table: Arc<Table>) {
        self.lock().set_table(table);
    }

    /// [`LanSender::send`]. Frames of one worker's pool may come back to another's.
    pub fn send(&self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        self.lock().send(burst, pool, drops);
    }

    fn lock(&self) -> MutexGuard<'_, LanSender> {
        // The rings are whole between calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether forwarding changes nothing of a packet but TTL or hop limit, and it fits the link.
fn is_ordinary(packet: &[u8], mtu: usize) -> bool {
    packet.len() <= mtu
        && match packet {
            // No options.
            [0x45, ..] => packet.get(8).is_some_and(|ttl| *ttl > 1),
            [first, ..] if first >> 4 == 6 => {
                // Hop-by-hop options are the business of every router.
                let hop_by_hop = packet.get(6) == Some(&protocol::HOP_BY_HOP);
                !hop_by_hop && packet.get(7).is_some_and(|limit| *limit > 1)
            }
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::Arena;
    use espada_common::wire::sample::{Ip, ethernet, udp};
    use proptest::prelude::*;

    fn framed(octets: &[u8]) -> Frame {
        let mut frame = Arena::new(1, 4096).unwrap().take(1).get().unwrap();
        frame.append(octets.len()).unwrap().copy_from_slice(octets);
        frame
    }

    fn packet(v4: bool, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut ip = if v4 {
            Ip::new("10.1.0.5", "10.2.0.7", protocol)
        } else {
            Ip::new("fd00:1::5", "fd00:2::7", protocol)
        };
        ip.ttl = ttl;
        let mut packet = ip.octets(payload);
        if v4 {
            checksum::ipv4_header(&mut packet[..IPV4]);
        }
        packet
    }

    proptest! {
        /// TTL or hop limit one less, the header's checksum right, nothing else changed.
        #[test]
        fn one_hop_is_one_hop(v4 in any::<bool>(), ttl in any::<u8>(), protocol in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            // Neither TCP nor UDP, whose checksums might be finished.
            prop_assume!(protocol != 6 && protocol != 17);
            let mut frame = framed(&ethernet(&[], &packet(v4, ttl, protocol, &payload)));
            let result = inner_packet(&mut frame);
            if ttl <= 1 {
                prop_assert_eq!(result, Err(DropReason::TtlExpired));
            } else {
                prop_assert_eq!(result, Ok(()));
                prop_assert_eq!(frame.data(), &packet(v4, ttl - 1, protocol, &payload)[..]);
            }
        }

        /// Unfinished or finished, the checksum comes out right.
        #[test]
        fn checksums_come_out_finished(v4 in any::<bool>(), tcp in any::<bool>(), partial in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 20..200)) {
            let (protocol, offset) = if tcp { (6, 16) } else { (17, 6) };
            let mut segment = if tcp { payload.clone() } else { udp(1000, 2000, &payload) };
            segment[offset..offset + 2].fill(0);
            let upper = if v4 { IPV4 } else { IPV6 };
            let mut whole = packet(v4, 9, protocol, &segment);
            let pseudo = checksum::pseudo_header(&whole[..upper], protocol, segment.len()).unwrap();
            whole[upper + offset..upper + offset + 2].copy_from_slice(&pseudo.fold().to_ne_bytes());
            if !partial {
                prop_assert!(checksum::complete(&mut whole, upper, offset));
            }
            let mut frame = framed(&ethernet(&[], &whole));
            inner_packet(&mut frame).unwrap();
            let sum = checksum::pseudo_header(&frame.data()[..upper], protocol, segment.len())
                .unwrap()
                .add(&frame.data()[upper..]);
            prop_assert_eq!(sum.fold(), u16::MAX);
        }

        #[test]
        fn any_octets(octets in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3usize) {
            let mut octets = octets;
            if let Some(place) = octets.get_mut(12..14) {
                place.copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6]][kind]);
            }
            let _ = inner_packet(&mut framed(&octets));
            let _ = one_hop_less(&mut octets.clone());
            let _ = is_ordinary(&octets, 1500);
        }
    }

    #[test]
    fn a_wrong_header_checksum_is_no_packet() {
        let mut octets = packet(true, 9, 1, &[0; 40]);
        octets[4] ^= 1;
        assert_eq!(
            inner_packet(&mut framed(&ethernet(&[], &octets))),
            Err(DropReason::Malformed)
        );
    }

    #[test]
    fn unusual_packets_stay_with_the_kernel() {
        for v4 in [true, false] {
            let plain = packet(v4, 2, 17, &[0; 40]);
            assert!(is_ordinary(&plain, plain.len()));
            assert!(!is_ordinary(&plain, plain.len() - 1));
            assert!(!is_ordinary(&packet(v4, 1, 17, &[0; 40]), 1500));
        }
        let mut ip = Ip::new("10.1.0.5", "10.2.0.7", 17);
        ip.option_words = 1;
        assert!(!is_ordinary(&ip.octets(&[0; 40]), 1500));
        assert!(!is_ordinary(&packet(false, 9, 0, &[0; 40]), 1500));
        assert!(!is_ordinary(&[], 1500));
    }
}
