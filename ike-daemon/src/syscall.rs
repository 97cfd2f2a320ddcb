//! What the standard library has no call for: packet information on UDP sockets, and giving
//! privileges up.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The user that file and socket permissions are checked for.
pub fn effective_uid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

/// Time since the system was booted, suspended time included: a clock that outlives processes.
pub fn boot_time() -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live timespec that the call fills in.
    check(unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) })?;
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Ok(Duration::new(seconds, nanoseconds))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn set_option<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: `value` is a live T and its size is given with it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Makes a UDP socket report the local address of each datagram.
pub fn enable_packet_info(fd: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let on: libc::c_int = 1;
    if v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &on)
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, &on)
    }
}

/// Lets the kernel fragment what is larger than the path MTU instead of refusing to send it.
pub fn allow_fragmentation(fd: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_option(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            &libc::IPV6_PMTUDISC_DONT,
        )
    } else {
        set_option(
            fd,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            &libc::IP_PMTUDISC_DONT,
        )
    }
}

/// A received datagram's length and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Octets written to the buffer.
    pub length: usize,
    /// The address it was sent to, where the kernel said so.
    pub local: Option<IpAddr>,
    /// Who sent it.
    pub remote: SocketAddr,
}

/// Room for one packet-information control message, aligned for its header.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives one datagram without blocking. Longer ones than the buffer are an error
/// (`InvalidData`): a cut IKE message is of no use.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in the header refers to a live buffer of the length beside it.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "datagram longer than the buffer",
        ));
    }
    // SAFETY: zeroed at first and filled in by the kernel; all-zero is valid as well.
    let name = unsafe { name.assume_init() };
    let remote = read_address(&name).ok_or(io::ErrorKind::InvalidData)?;
    let mut local = None;
    // SAFETY: the header still describes `control`, which the kernel filled in; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay inside it, and data is read unaligned after its type has been compared.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                    local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok(Received {
        length,
        local,
        remote,
    })
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr; the family says it is this one.
            let address = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(
                SocketAddrV6::new(
                    ip,
                    u16::from_be(address.sin6_port),
                    0,
                    address.sin6_scope_id,
                )
                .into(),
            )
        }
        _ => None,
    }
}

/// Sends one datagram made of `parts` from `local` to `remote` without blocking.
pub fn send(
    fd: BorrowedFd<'_>,
    parts: [&[u8]; 2],
    local: IpAddr,
    remote: SocketAddr,
) -> io::Result<()> {
    let mut parts = parts.map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    let (name, name_len) = write_address(remote);
    let mut control = Control([0; 64]);
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = (&raw const name).cast_mut().cast();
    header.msg_namelen = name_len;
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len();
    if !local.is_unspecified() {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        // SAFETY: `control` is zeroed, aligned for cmsghdr, and 64 octets hold either message.
        let used = unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            match local {
                IpAddr::V4(address) => {
                    let info = libc::in_pktinfo {
                        ipi_ifindex: 0,
                        ipi_spec_dst: libc::in_addr {
                            s_addr: u32::from(address).to_be(),
                        },
                        ipi_addr: libc::in_addr { s_addr: 0 },
                    };
                    (*message).cmsg_level = libc::IPPROTO_IP;
                    (*message).cmsg_type = libc::IP_PKTINFO;
                    (*message).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) as _;
                    libc::CMSG_DATA(message)
                        .cast::<libc::in_pktinfo>()
                        .write_unaligned(info);
                    libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32)
                }
                IpAddr::V6(address) => {
                    let info = libc::in6_pktinfo {
                        ipi6_addr: libc::in6_addr {
                            s6_addr: address.octets(),
                        },
                        ipi6_ifindex: 0,
                    };
                    (*message).cmsg_level = libc::IPPROTO_IPV6;
                    (*message).cmsg_type = libc::IPV6_PKTINFO;
                    (*message).cmsg_len =
                        libc::CMSG_LEN(size_of::<libc::in6_pktinfo>() as u32) as _;
                    libc::CMSG_DATA(message)
                        .cast::<libc::in6_pktinfo>()
                        .write_unaligned(info);
                    libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32)
                }
            }
        };
        header.msg_controllen = used as _;
    }
    // SAFETY: every pointer in the header refers to a live buffer of the length beside it; sendmsg
    // does not write through them.
    let sent = unsafe {
        libc::sendmsg(
            fd.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn write_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let place = &raw mut storage;
    match address {
        SocketAddr::V4(address) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*address.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(address) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

/// Keeps keys out of core dumps and away from other processes of this user, and files private.
pub fn protect_memory() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain calls with values; `none` is live.
    unsafe {
        libc::umask(0o077);
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
    }
    Ok(())
}

/// Capabilities the daemon goes on needing (linux/capability.h).
const KEPT: &[u32] = &[
    10, // CAP_NET_BIND_SERVICE: ports 500 and 4500 after a reload
    12, // CAP_NET_ADMIN: tunnel interface, routes, XDP and tc
    13, // CAP_NET_RAW: native ESP, AF_XDP
    14, // CAP_IPC_LOCK: packet memory of AF_XDP beyond RLIMIT_MEMLOCK
    38, // CAP_PERFMON: BPF programs with pointer arithmetic
    39, // CAP_BPF: BPF programs and maps
];

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// CAP_SYS_NICE: threads that go before others.
const REALTIME: u32 = 23;

/// Gives up every capability that is not in `KEPT`, for this thread and all it starts later,
/// and the way back to them. `realtime`: those may be real-time threads.
pub fn drop_privileges(realtime: bool) -> io::Result<()> {
    let kept = || KEPT.iter().copied().chain(realtime.then_some(REALTIME));
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut sets = [CapabilityData::default(); 2];
    let header_place = &raw mut header;
    // SAFETY: version 3 writes exactly two `CapabilityData`.
    let got = unsafe { libc::syscall(libc::SYS_capget, header_place, sets.as_mut_ptr()) };
    check(got as libc::c_int)?;
    for capability in 0..64 {
        if kept().any(|other| other == capability) {
            continue;
        }
        // SAFETY: plain values. Numbers the kernel does not know give EINVAL, and without
        // CAP_SETPCAP there is nothing to lower: neither matters.
        unsafe {
            libc::prctl(
                libc::PR_CAPBSET_DROP,
                libc::c_ulong::from(capability),
                0,
                0,
                0,
            )
        };
    }
    for (word, set) in sets.iter_mut().enumerate() {
        let mask = kept()
            .filter(|bit| *bit as usize / 32 == word)
            .fold(0, |mask, bit| mask | 1 << (bit % 32));
        set.permitted &= mask;
        set.effective = set.permitted;
        set.inheritable = 0;
    }
    // SAFETY: version 3 reads exactly two `CapabilityData`.
    let set = unsafe { libc::syscall(libc::SYS_capset, header_place, sets.as_ptr()) };
    check(set as libc::c_int)?;
    // SAFETY: plain values.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    fn exchange(wildcard: &str, target: &str) {
        let server = UdpSocket::bind(format!("{wildcard}:0")).unwrap();
        let port = server.local_addr().unwrap().port();
        let v6 = server.local_addr().unwrap().is_ipv6();
        enable_packet_info(server.as_fd(), v6).unwrap();
        allow_fragmentation(server.as_fd(), v6).unwrap();
        let client = UdpSocket::bind(format!("{wildcard}:0")).unwrap();
        client.connect(format!("{target}:{port}")).unwrap();
        client.send(b"hello").unwrap();
        let mut buffer = [0; 16];
        let received = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..received.length], b"hello");
        assert_eq!(
            received.local,
            Some(target.trim_matches(['[', ']']).parse().unwrap())
        );
        // The client is connected, so it takes the answer only from the address it asked.
        send(
            server.as_fd(),
            [b"\0\0\0\0", b"back"],
            received.local.unwrap(),
            received.remote,
        )
        .unwrap();
        client
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"\0\0\0\0back");
        let nothing = receive(server.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn answers_leave_from_the_address_asked() {
        exchange("0.0.0.0", "127.0.0.7");
        exchange("[::]", "[::1]");
    }

    #[test]
    fn cut_datagrams_are_an_error() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .send_to(&[0; 100], server.local_addr().unwrap())
            .unwrap();
        let error = receive(server.as_fd(), &mut [0; 50]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
