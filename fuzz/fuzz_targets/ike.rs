//! IKE messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| espada_fuzz_bodies::ike::body(input));
