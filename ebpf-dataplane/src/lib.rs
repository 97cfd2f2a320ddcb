//! Espada's data plane: one [`backend::SaBackend`] trait and the engines behind it.
#![deny(unsafe_code)]

pub mod backend;
pub mod bench;
pub mod device;
pub mod ebpf;
pub mod engine;
pub mod esp;
pub mod features;
pub mod frontend;
pub mod lan;
pub mod mock;
pub mod netlink;
pub mod nl;
pub mod plane;
pub mod port;
pub mod syscall;
mod turns;
pub mod umem;
pub mod userspace;
pub mod wake;
pub mod xfrm;
