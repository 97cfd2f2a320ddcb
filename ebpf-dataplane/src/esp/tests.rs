//! Two engines back to back.

mod decap;
mod encap;
mod net;
mod rekey;
mod roundtrip;
