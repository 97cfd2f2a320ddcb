//! Packet ports: each moves bursts of frames between the engine and one kind of interface.

pub mod checksum;
pub mod gro;
pub mod gso;
pub mod lan;
pub mod raw;
pub mod ring;
pub mod segmentation;
pub mod syscall;
pub mod tun;
pub mod udp;
pub mod xsk;
