//! Poly1305 (RFC 8439 section 2.5) with 32-bit limbs: twenty multiplications a block, no wide
//! product, message words added as they are. Constant time.

/// Octets of a block and of the tag.
pub const BLOCK_LEN: usize = 16;

/// An evaluation under way. The one-time key's second half is only needed at the end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Poly1305 {
    r: [u32; 4],
    h: [u32; 5],
}

impl Poly1305 {
    /// Starts with the first half of the one-time key, as little-endian words.
    #[inline(always)]
    pub const fn new(r: [u32; 4]) -> Self {
        let [r0, r1, r2, r3] = r;
        Self {
            // RFC 8439 section 2.5: some bits of r are required to be clear.
            r: [
                r0 & 0x0fff_ffff,
                r1 & 0x0fff_fffc,
                r2 & 0x0fff_fffc,
                r3 & 0x0fff_fffc,
            ],
            h: [0; 5],
        }
    }

    /// Takes in a whole block, as little-endian words.
    #[inline(always)]
    pub fn block(&mut self, message: [u32; 4]) {
        let [r0, r1, r2, r3] = self.r.map(u64::from);
        // r1 to r3 are multiples of 4, so 2^128 * r = 2^130 * r / 4 = 5 * r / 4 modulo 2^130 - 5
        // is exact.
        let (s1, s2, s3) = (r1 + (r1 >> 2), r2 + (r2 >> 2), r3 + (r3 >> 2));

        let [m0, m1, m2, m3] = message.map(u64::from);
        let [h0, h1, h2, h3, h4] = self.h.map(u64::from);
        let h0 = h0 + m0;
        let h1 = h1 + m1 + (h0 >> 32);
        let h2 = h2 + m2 + (h1 >> 32);
        let h3 = h3 + m3 + (h2 >> 32);
        let h4 = h4 + 1 + (h3 >> 32);
        let [h0, h1, h2, h3] = [h0, h1, h2, h3].map(|limb| limb & 0xffff_ffff);

        // Every r and s is below 1.25 * 2^28, every h below 2^32: the sums fit 63 bits.
        let d0 = h0 * r0 + h1 * s3 + h2 * s2 + h3 * s1;
        let d1 = h0 * r1 + h1 * r0 + h2 * s3 + h3 * s2 + h4 * s1;
        let d2 = h0 * r2 + h1 * r1 + h2 * r0 + h3 * s3 + h4 * s2;
        let d3 = h0 * r3 + h1 * r2 + h2 * r1 + h3 * r0 + h4 * s3;
        let d4 = h4 * r0;

        let d1 = d1 + (d0 >> 32);
        let d2 = d2 + (d1 >> 32);
        let d3 = d3 + (d2 >> 32);
        let d4 = d4 + (d3 >> 32);
        // What lies above 2^130 comes back five times.
        let h0 = (d0 & 0xffff_ffff) + (d4 >> 2) * 5;
        let h1 = (d1 & 0xffff_ffff) + (h0 >> 32);
        let h2 = (d2 & 0xffff_ffff) + (h1 >> 32);
        let h3 = (d3 & 0xffff_ffff) + (h2 >> 32);
        let h4 = (d4 & 3) + (h3 >> 32);
        self.h = [h0 as u32, h1 as u32, h2 as u32, h3 as u32, h4 as u32];
    }

    /// The tag, given the second half of the one-time key, as little-endian words.
    #[inline(always)]
    pub fn finish(self, s: [u32; 4]) -> [u32; 4] {
        let [h0, h1, h2, h3, h4] = self.h.map(u64::from);
        // h + 5 reaches 2^130 exactly when h is at least 2^130 - 5.
        let g0 = h0 + 5;
        let g1 = h1 + (g0 >> 32);
        let g2 = h2 + (g1 >> 32);
        let g3 = h3 + (g2 >> 32);
        let g4 = h4 + (g3 >> 32);
        // All ones if it does: then h + 5 - 2^130 is the remainder.
        let over = 0u64.wrapping_sub((g4 >> 2).min(1));
        let select = |g: u64, h: u64| (g & over | h & !over) & 0xffff_ffff;
        let [s0, s1, s2, s3] = s.map(u64::from);
        let t0 = select(g0, h0) + s0;
        let t1 = select(g1, h1) + s1 + (t0 >> 32);
        let t2 = select(g2, h2) + s2 + (t1 >> 32);
        let t3 = select(g3, h3) + s3 + (t2 >> 32);
        [t0 as u32, t1 as u32, t2 as u32, t3 as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(octets: &[u8]) -> [u32; 4] {
        let mut words = [0; 4];
        for (word, octets) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_le_bytes(octets.try_into().unwrap());
        }
        words
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter_map(|c| (c as char).to_digit(16).map(|digit| digit as u8))
            .collect();
        digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn tag(r: &str, s: &str, data: &str) -> [u32; 4] {
        let mut poly = Poly1305::new(words(&hex(r)));
        for block in hex(data).chunks_exact(16) {
            poly.block(words(block));
        }
        poly.finish(words(&hex(s)))
    }

    /// RFC 8439 appendix A.3, the vectors of whole blocks: 7 to 11 are the ones at the edges of
    /// the reduction.
    #[test]
    fn vectors_of_the_rfc() {
        let zero = "00000000000000000000000000000000";
        let vectors = [
            (zero, zero, zero.repeat(4), zero.to_owned()),
            (
                "02000000000000000000000000000000",
                zero,
                "ffffffffffffffffffffffffffffffff".to_owned(),
                "03000000000000000000000000000000".to_owned(),
            ),
            (
                "02000000000000000000000000000000",
                "ffffffffffffffffffffffffffffffff",
                "02000000000000000000000000000000".to_owned(),
                "03000000000000000000000000000000".to_owned(),
            ),
            (
                "01000000000000000000000000000000",
                zero,
                "ffffffffffffffffffffffffffffffff\
                 f0ffffffffffffffffffffffffffffff\
                 11000000000000000000000000000000"
                    .to_owned(),
                "05000000000000000000000000000000".to_owned(),
            ),
            (
                "01000000000000000000000000000000",
                zero,
                "ffffffffffffffffffffffffffffffff\
                 fbfefefefefefefefefefefefefefefe\
                 01010101010101010101010101010101"
                    .to_owned(),
                zero.to_owned(),
            ),
            (
                "02000000000000000000000000000000",
                zero,
                "fdffffffffffffffffffffffffffffff".to_owned(),
                "faffffffffffffffffffffffffffffff".to_owned(),
            ),
            (
                "01000000000000000400000000000000",
                zero,
                "e33594d7505e43b900000000000000003394d7505e4379cd010000000000000000000000000000000000000000000000\
                 01000000000000000000000000000000"
                    .to_owned(),
                "14000000000000005500000000000000".to_owned(),
            ),
        ];
        for (r, s, data, expected) in vectors {
            assert_eq!(
                tag(r, s, &data),
                words(&hex(&expected)),
                "r {r} data {data}"
            );
        }
    }
}
