//! What every part of Espada agrees on: the packet parser, the BPF map ABI, drop reasons,
//! the replay window and (feature `std`) the description of security associations.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod chacha20;
pub mod drops;
pub mod keystream;
pub mod poly1305;
pub mod replay;
#[cfg(feature = "std")]
pub mod sa;
pub mod shared_window;
pub mod wire;
