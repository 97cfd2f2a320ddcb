//! The Internet checksum (RFC 1071) over whole packets.
#![allow(unsafe_code)]

/// Ones' complement sum, not yet folded. Octets are summed in memory order, so `fold` gives a
/// value to be stored with `to_ne_bytes`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

/// Octets that are summed side by side.
const BLOCK: usize = 64;

/// The sum of all 32-bit words of `blocks`, in the widest registers there are.
fn of_blocks(blocks: &[[u8; BLOCK]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if !blocks.is_empty() && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { of_blocks_avx2(blocks) };
    }
    side_by_side(blocks)
}

/// [`side_by_side`] for registers of 256 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn of_blocks_avx2(blocks: &[[u8; BLOCK]]) -> u64 {
    side_by_side(blocks)
}

/// A lane for each word of a block, so that the compiler takes vector registers. No sum of packets
/// fills 64 bits.
#[inline(always)]
fn side_by_side(blocks: &[[u8; BLOCK]]) -> u64 {
    let mut lanes = [0u64; BLOCK / 4];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane = lane.wrapping_add(u32::from_ne_bytes(*word).into());
        }
    }
    lanes.iter().sum()
}

impl Sum {
    /// Adds octets; a part other than the last must be of even length.
    #[expect(
        clippy::should_implement_trait,
        reason = "a part of a packet is not a summand type"
    )]
    #[inline]
    pub fn add(mut self, octets: &[u8]) -> Self {
        let (blocks, rest) = octets.as_chunks::<BLOCK>();
        self.0 += of_blocks(blocks);
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            self.0 += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.0 += u64::from(u32::from_ne_bytes(last));
        self
    }

    /// Adds a 16-bit number that stands in network byte order.
    pub fn add_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The checksum of what was added, for `to_ne_bytes`.
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// The folded sum without the final complement.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// Sum of the pseudo header of TCP or UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `ip` is the IP header; `None` when it is cut short or not IP.
#[inline]
pub fn pseudo_header(ip: &[u8], protocol: u8, length: usize) -> Option<Sum> {
    let addresses = match ip.first()? >> 4 {
        4 => ip.get(12..20)?,
        6 => ip.get(8..40)?,
        _ => return None,
    };
    let length = u32::try_from(length).ok()?;
    Some(
        Sum::default()
            .add(addresses)
            .add(&length.to_be_bytes())
            .add_u16(protocol.into()),
    )
}

/// Finishes the checksum of `packet` that a sender left partial: the field already holds the sum
/// of the pseudo header. False when the offsets do not fit the packet.
pub fn complete(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = packet.get_mut(start..) else {
        return false;
    };
    let sum = match Sum::default().add(covered).finish() {
        // UDP reserves 0 for "no checksum"; for TCP both forms of zero are equal.
        0 => 0xffff,
        sum => sum,
    };
    let Some(field) = covered
        .get_mut(offset..)
        .and_then(|c| c.first_chunk_mut::<2>())
    else {
        return false;
    };
    *field = sum.to_ne_bytes();
    true
}

/// Writes an IPv4 header's checksum.
pub fn ipv4_header(header: &mut [u8]) {
    if header.len() >= 20 {
        header[10..12].fill(0);
        let sum = Sum::default().add(header).finish();
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(
            Sum::default().add(&octets).fold().to_ne_bytes(),
            [0xdd, 0xf2]
        );
    }

    proptest! {
        #[test]
        fn equals_the_plain_definition(octets in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut plain = 0u64;
            for pair in octets.chunks(2) {
                plain += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            }
            while plain > 0xffff { plain = (plain & 0xffff) + (plain >> 16); }
            prop_assert_eq!(Sum::default().add(&octets).fold().to_ne_bytes(), (plain as u16).to_be_bytes());
        }
    }
}
