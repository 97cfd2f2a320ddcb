//! What the fuzz targets do with an input. Each body panics where Espada is wrong, so the fuzzer and the unit
//! tests here, which run the bodies over seeded and damaged inputs, find the same.

pub mod cipher;
pub mod config;
pub mod endpoint;
pub mod esp;
pub mod ike;
mod input;
pub mod packet;
mod reference;
pub mod x509;

#[cfg(test)]
mod seeded {
    use crate::input::noise;

    /// Runs a body over an input, over what is left when it is cut short, and over it with each octet changed.
    pub fn damaged(input: &[u8], body: impl Fn(&[u8])) {
        body(input);
        for end in 0..input.len() {
            body(&input[..end]);
        }
        let mut damaged = input.to_vec();
        for at in 0..damaged.len() {
            for change in [0x01, 0x80, 0xff] {
                damaged[at] ^= change;
                body(&damaged);
                damaged[at] ^= change;
            }
        }
    }

    /// Runs a body over `count` inputs of up to `longest` octets, the same in each run.
    pub fn random(count: u64, longest: usize, body: impl Fn(&[u8])) {
        for seed in 0..count {
            let length =
                usize::from_le_bytes(noise(seed ^ 0xf022, 8).try_into().unwrap()) % longest;
            body(&noise(seed, length));
        }
    }
}
