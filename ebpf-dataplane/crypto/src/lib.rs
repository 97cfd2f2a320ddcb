//! ESP's ciphers over bursts of packets: what one packet must wait for, the others fill.
#![deny(unsafe_code)]

pub mod backend;
mod block;
pub mod cbc;
pub mod chacha;
pub mod cpu;
pub mod gcm;
pub mod hmac;
pub mod plain;
mod proof;
mod sha;
#[cfg(test)]
mod testing;
#[cfg(target_arch = "x86_64")]
mod vector;
