//! The ChaCha20 block function (RFC 8439 section 2.3), in the form that suits an instruction set
//! of ten registers and no stack to speak of: the eBPF programs. Constant time: additions,
//! rotations and exclusive ors only.

/// Octets of a block of keystream.
pub const BLOCK_LEN: usize = 64;

/// Word of the state that holds the block counter.
const COUNTER: usize = 12;

/// `expand 32-byte k`.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The state before the rounds, with block counter 0. All words are little-endian octets of key
/// and nonce.
#[inline(always)]
pub const fn state(key: &[u32; 8], nonce: [u32; 3]) -> [u32; 16] {
    let [c0, c1, c2, c3] = CONSTANTS;
    let [k0, k1, k2, k3, k4, k5, k6, k7] = *key;
    let [n0, n1, n2] = nonce;
    [
        c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, 0, n0, n1, n2,
    ]
}

macro_rules! quarter_round {
    ($a:ident, $b:ident, $c:ident, $d:ident) => {
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(16);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(12);
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(8);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(7);
    };
}

/// Writes block number `counter` of the keystream as little-endian words.
#[inline(never)]
pub fn block(state: &[u32; 16], counter: u32, keystream: &mut [u32; 16]) {
    let [
        mut x0,
        mut x1,
        mut x2,
        mut x3,
        mut x4,
        mut x5,
        mut x6,
        mut x7,
        mut x8,
        mut x9,
        mut x10,
        mut x11,
        _,
        mut x13,
        mut x14,
        mut x15,
    ] = *state;
    let mut x12 = counter;
    for _ in 0..10 {
        quarter_round!(x0, x4, x8, x12);
        quarter_round!(x1, x5, x9, x13);
        quarter_round!(x2, x6, x10, x14);
        quarter_round!(x3, x7, x11, x15);
        quarter_round!(x0, x5, x10, x15);
        quarter_round!(x1, x6, x11, x12);
        quarter_round!(x2, x7, x8, x13);
        quarter_round!(x3, x4, x9, x14);
    }
    *keystream = [
        x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15,
    ];
    for (index, (word, start)) in keystream.iter_mut().zip(state).enumerate() {
        *word = word.wrapping_add(if index == COUNTER { counter } else { *start });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439 section 2.3.2.
    #[test]
    fn block_of_the_rfc() {
        let mut octets = [0u8; 32];
        for (index, octet) in octets.iter_mut().enumerate() {
            *octet = index as u8;
        }
        let mut key = [0u32; 8];
        for (word, octets) in key.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_le_bytes(octets.try_into().unwrap());
        }
        let mut keystream = [0; 16];
        block(
            &state(&key, [0x0900_0000, 0x4a00_0000, 0]),
            1,
            &mut keystream,
        );
        assert_eq!(
            keystream,
            [
                0xe4e7_f110,
                0x1559_3bd1,
                0x1fdd_0f50,
                0xc471_20a3,
                0xc7f4_d1c7,
                0x0368_c033,
                0x9aaa_2204,
                0x4e6c_d4c3,
                0x4664_82d2,
                0x09aa_9f07,
                0x05d7_c214,
                0xa202_8bd9,
                0xd19c_12b5,
                0xb94e_16de,
                0xe883_d0cb,
                0x4e3c_50a2,
            ]
        );
    }
}
