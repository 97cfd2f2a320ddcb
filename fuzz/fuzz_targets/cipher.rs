//! Bursts through the ciphers.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| espada_fuzz_bodies::cipher::body(input));
