//! Two engines back to back.

mod decap;
mod encap;
mod lanes;
pub(crate) mod net;
mod rekey;
mod roundtrip;
mod trains;
