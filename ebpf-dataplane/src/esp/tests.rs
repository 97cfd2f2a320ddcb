//! Two engines back to back.

mod decap;
mod encap;
pub(crate) mod net;
mod rekey;
mod roundtrip;
