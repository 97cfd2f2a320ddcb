//! The Espada gateway as a library: configuration, the daemon's loop, its control socket, status,
//! logs, and the doctor. The program is [`cli::main`].
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod log;
mod pki;
pub mod status;
#[allow(unsafe_code)]
pub mod syscall;
