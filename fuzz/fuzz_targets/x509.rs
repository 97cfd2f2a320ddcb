//! Certificates, revocation lists and PEM files.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| espada_fuzz_bodies::x509::body(input));
