//! Two IKE endpoints with an attacker between them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| espada_fuzz_bodies::endpoint::body(input));
