//! The packet parser that XDP programs and workers share.

use espada_common::wire::lan;
use espada_common::wire::parse::{Direction, Link, Ports, wan};

/// A frame as it may come from a wire: what is found in it lies within it.
pub fn body(frame: &[u8]) {
    for link in [Link::Ethernet, Link::Ip] {
        for direction in [Direction::Inbound, Direction::Outbound] {
            if let Ok(packet) = wan(&frame, link, direction, Ports::ASSIGNED) {
                assert!(packet.ip_offset <= frame.len(), "{packet:?}");
            }
        }
    }
    let mac = frame.first_chunk().copied().unwrap_or_default();
    if let Some(packet) = lan::forwardable(&frame, mac) {
        assert!(packet.ip_len + 14 <= frame.len(), "{packet:?}");
    }
}

#[cfg(test)]
mod tests {
    use espada_common::wire::protocol;
    use espada_common::wire::sample::{Extension, Ip, esp, ethernet, udp};

    use super::*;
    use crate::seeded;

    #[test]
    fn frames() {
        let v4 = Ip::new("192.0.2.1", "198.51.100.2", protocol::ESP);
        seeded::damaged(&ethernet(&[], &v4.octets(&esp(0xdead_beef, 7, 16))), body);
        let v4 = Ip::new("192.0.2.1", "198.51.100.2", protocol::UDP);
        seeded::damaged(
            &ethernet(&[5], &v4.octets(&udp(500, 4500, &esp(256, 1, 16)))),
            body,
        );
        let mut v6 = Ip::new("2001:db8::1", "2001:db8::2", protocol::ESP);
        v6.extensions = vec![Extension::HopByHop(0), Extension::Fragment(0, true, 9)];
        seeded::damaged(&ethernet(&[], &v6.octets(&esp(9000, 1, 16))), body);
    }
}
