//! Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad).

use super::Cursor;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag.
pub const SERVICE_VLAN: u16 = 0x88a8;
/// Octets of an untagged header.
pub const HEADER_LEN: usize = 14;

/// What follows the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// EtherType behind the tags.
    pub ethertype: u16,
    /// Where the payload starts.
    pub offset: usize,
}

/// Walks over the header and its tags; `None` if the frame is too short.
#[inline(always)]
pub fn payload<C: Cursor>(packet: &C) -> Option<Payload> {
    let mut offset = HEADER_LEN;
    let mut ethertype = u16::from_be_bytes(packet.read(12)?);
    for _ in 0..2 {
        if ethertype != VLAN && ethertype != SERVICE_VLAN {
            break;
        }
        ethertype = u16::from_be_bytes(packet.read(offset + 2)?);
        offset += 4;
    }
    Some(Payload { ethertype, offset })
}
