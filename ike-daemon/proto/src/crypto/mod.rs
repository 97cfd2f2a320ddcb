//! Cryptography of IKEv2: key exchange, PRFs, key derivation, the encrypted payload and PSK
//! authentication. No randomness of its own: it comes in through [`Random`].

pub mod auth;
mod brainpool512;
pub mod dh;
mod ecp;
pub mod keys;
mod mlkem;
mod modp;
pub mod prf;
pub mod signature;
pub mod sk;

#[cfg(test)]
mod test_util;

/// A source of cryptographically secure random octets.
pub trait Random {
    /// Fills `buf` with random octets.
    fn fill(&mut self, buf: &mut [u8]);
}
