//! The system calls of the harness that `std` has no wrapper for.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

/// True when this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread (only) into the network namespace at `path`.
pub fn enter_netns(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open for the length of the call.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives a socket room for so many octets of received packets, whatever the system's limit.
pub fn set_receive_queue(socket: i32, octets: usize) -> io::Result<()> {
    let octets = libc::c_int::try_from(octets).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and length are those of a live integer.
    let set = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const octets).cast(),
            size_of_val(&octets) as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the kernel end the child when the thread that starts it ends, however that happens.
pub fn die_with_starter(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Starts the child in a session of its own, so that it outlives the terminal.
pub fn new_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes plain integers.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: i32) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; a closed descriptor only gives an error.
    unsafe {
        libc::write(WAKE.load(Ordering::Relaxed), (&raw const byte).cast(), 1);
    }
}

/// Runs `handler` with the signal's number, on a thread of its own, at the first SIGINT, SIGTERM
/// or SIGHUP.
pub fn on_termination(handler: fn(i32)) -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 just made this descriptor, and nothing else owns it.
    let mut reader = File::from(unsafe { OwnedFd::from_raw_fd(ends[0]) });
    WAKE.store(ends[1], Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let action: extern "C" fn(i32) = on_signal;
        // SAFETY: the handler only calls write.
        if unsafe { libc::signal(signal, action as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    std::thread::spawn(move || {
        let mut byte = [0];
        if io::Read::read_exact(&mut reader, &mut byte).is_ok() {
            handler(i32::from(byte[0]));
        }
    });
    Ok(())
}

fn owned_socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes plain integers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends IP packets on a link as if they came from somewhere beyond it.
#[derive(Debug)]
pub struct LinkSender {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl LinkSender {
    /// On a device of the calling thread's namespace, to an Ethernet address. One for many packets: to
    /// close such a socket takes the kernel many milliseconds.
    pub fn open(ifindex: u32, mac: [u8; 6]) -> io::Result<Self> {
        let socket = owned_socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        // SAFETY: sockaddr_ll is plain data, for which all zeros is a valid value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&mac);
        Ok(Self { socket, to })
    }

    /// Sends a packet of either family.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let ethertype = match packet.first().map(|byte| byte >> 4) {
            Some(4) => libc::ETH_P_IP as u16,
            Some(6) => libc::ETH_P_IPV6 as u16,
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        self.to.sll_protocol = ethertype.to_be();
        send_to(&self.socket, packet, &self.to)
    }
}

/// Sends an IPv4 packet with the header it has, routed as the namespace of the calling thread routes.
pub fn send_raw_ipv4(destination: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let socket = owned_socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    // SAFETY: sockaddr_in is plain data, for which all zeros is a valid value.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as u16;
    to.sin_addr.s_addr = u32::from_ne_bytes(destination.octets());
    send_to(&socket, packet, &to)
}

fn send_to<A>(socket: &OwnedFd, packet: &[u8], to: &A) -> io::Result<()> {
    // SAFETY: packet and address are live for the call and their lengths are their own.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const *to).cast(),
            size_of::<A>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
