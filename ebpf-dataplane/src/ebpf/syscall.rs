//! The system calls of the eBPF engine that have no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Waits until no BPF program that is running now still runs: what was deleted from a map before is
/// then read by nobody any more.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no pointers. The command waits for an RCU grace period; programs run in one.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full refuse. Programs run for microseconds with interrupts of their
        // kind off; nothing holds one up for as long as this.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// CLOCK_BOOTTIME.
pub fn boot_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for the result; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// An offload that ethtool switches with a command of its own.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Checksums left to the device on transmission (and with them segmentation).
    TxChecksum,
    /// Generic receive offload.
    Gro,
}

/// Switches an offload of an interface on or off.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const ETHTOOL_SGRO: u32 = 0x2c;
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let mut value = EthtoolValue {
        command: match offload {
            Offload::TxChecksum => ETHTOOL_STXCSUM,
            Offload::Gro => ETHTOOL_SGRO,
        },
        data: on.into(),
    };
    // Any socket will do for asking about interfaces.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: ifreq is plain data, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, octet) in request.ifr_name.iter_mut().zip(name) {
        *place = octet.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request points to a value of the layout that the command takes, both live here.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
