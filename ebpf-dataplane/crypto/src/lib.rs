//! The ciphers of Espada's ESP engine. Each takes a burst of packets of one SA at a time, so that
//! the vector units work on several packets at once.
#![deny(unsafe_code)]

pub mod cpu;
pub mod gcm;
