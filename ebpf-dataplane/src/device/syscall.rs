//! The ethtool ioctl.
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd};

/// A device to ask about.
pub struct Request {
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Request {
    /// Opens a socket in the calling thread's network namespace, which is the one asked about.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut array = [0; libc::IFNAMSIZ];
        if name.is_empty() || name.len() >= array.len() || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in array.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: socket takes plain integers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: a UDP socket that was just made and that nothing else owns.
            socket: unsafe { UdpSocket::from_raw_fd(fd) },
            name: array,
        })
    }

    /// One `SIOCETHTOOL`: gives the command's struct as the kernel filled it in.
    pub fn ask(&self, question: Question) -> io::Result<Vec<u8>> {
        let (words, room) = question.layout();
        let mut buffer: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        buffer.resize(buffer.len().max(room), 0);
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
        // SAFETY: the kernel reads and writes the struct that the command names; `layout` gives
        // the room of its fixed part and of all elements it may have.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(buffer)
    }
}

/// Octets of a name in a set of strings.
pub const NAME: usize = 32;

/// What can be asked.
#[derive(Clone, Copy, Debug)]
pub enum Question {
    /// `struct ethtool_drvinfo`.
    Driver,
    /// `struct ethtool_channels`.
    Channels,
    /// `struct ethtool_sset_info`: how many offloads have names.
    OffloadCount,
    /// `struct ethtool_gstrings`: the names of so many offloads.
    OffloadNames(u8),
    /// `struct ethtool_gfeatures`: the bits of so many offloads, 32 in a block.
    OffloadBits(u8),
}

impl Question {
    /// The words to begin with, and the octets that the answer may take.
    fn layout(self) -> (Vec<u32>, usize) {
        const ETH_SS_FEATURES: u32 = 4;
        match self {
            Self::Driver => (vec![0x03], 196),
            Self::Channels => (vec![0x3c], 36),
            // One set is asked for, so one count comes back.
            Self::OffloadCount => (vec![0x37, 0, 1 << ETH_SS_FEATURES, 0], 20),
            // Older kernels write all their names, however many were asked for; none has 256.
            Self::OffloadNames(count) => (
                vec![0x1b, ETH_SS_FEATURES, u32::from(count)],
                12 + 256 * NAME,
            ),
            Self::OffloadBits(count) => (
                vec![0x3a, u32::from(count).div_ceil(32)],
                8 + 16 * usize::from(count).div_ceil(32),
            ),
        }
    }
}
