//! The system calls of the ports that std has no safe form of: recvmmsg and sendmmsg with their
//! control messages, epoll, eventfd, and the ioctls of a TUN device.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{SockAddr, SockAddrStorage};

use crate::umem::BURST;

/// Octets of control messages per datagram: packet info, traffic class and segment size fit.
const CONTROL: usize = 128;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

const _: () = assert!(size_of::<libc::cmsghdr>() == CMSG_HEADER);
const CMSG_HEADER: usize = 16;

/// What the kernel said about a datagram beside its octets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Octets written to the buffer.
    pub len: usize,
    /// The datagram was longer than the buffer.
    pub truncated: bool,
    /// Sender.
    pub source: Option<SocketAddr>,
    /// Address it was sent to, with IP_PKTINFO or IPV6_RECVPKTINFO.
    pub local: Option<IpAddr>,
    /// Type of service or traffic class, with IP_RECVTOS or IPV6_RECVTCLASS.
    pub tos: u8,
    /// With UDP_GRO: the buffer holds several datagrams of this size (the last may be shorter).
    pub segment: Option<usize>,
}

/// Reusable memory of one recvmmsg call.
pub struct RecvBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    sources: Vec<SockAddrStorage>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers inside point into the batch's own vectors or into buffers of the
// current call; they are written at the start of every call and never read outside one.
unsafe impl Send for RecvBatch {}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Room for [`BURST`] datagrams.
    pub fn new() -> Self {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let header = unsafe { zeroed::<libc::mmsghdr>() };
        Self {
            headers: vec![header; BURST],
            vectors: Vec::with_capacity(BURST),
            sources: (0..BURST).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control([0; CONTROL]); BURST],
        }
    }

    /// Receives what is queued without waiting, at most [`BURST`] datagrams, each into the next
    /// `per_message` buffers, one after another. Returns how many.
    pub fn recv<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        per_message: usize,
        buffers: impl Iterator<Item = &'a mut [u8]>,
    ) -> io::Result<usize> {
        self.vectors.clear();
        self.vectors
            .extend(buffers.take(BURST * per_message).map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            }));
        // Pointers are taken only now that the vector does not grow any more.
        let mut count = 0;
        for (index, vectors) in self.vectors.chunks_exact_mut(per_message).enumerate() {
            let header = &mut self.headers[index];
            header.msg_len = 0;
            header.msg_hdr.msg_name = (&raw mut self.sources[index]).cast();
            header.msg_hdr.msg_namelen = size_of::<SockAddrStorage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vectors.as_mut_ptr();
            header.msg_hdr.msg_iovlen = per_message as _;
            header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            header.msg_hdr.msg_flags = 0;
            count = index + 1;
        }
        // SAFETY: the first `count` headers point at live, exclusively borrowed memory of the
        // lengths given; the vectors are not resized during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What the last call said about datagram `index`, below the number it returned.
    pub fn info(&self, index: usize) -> Received {
        let (Some(header), Some(control), Some(name)) = (
            self.headers.get(index),
            self.controls.get(index),
            self.sources.get(index),
        ) else {
            return Received::default();
        };
        let name_length = (header.msg_hdr.msg_namelen as usize).min(size_of::<SockAddrStorage>());
        // SAFETY: the kernel wrote `name_length` octets of a socket address there and the rest is
        // initialised memory.
        let source = unsafe {
            let storage = std::ptr::read(name);
            SockAddr::new(storage, name_length as libc::socklen_t)
        };
        let mut received = Received {
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            source: source.as_socket(),
            ..Received::default()
        };
        let used = header.msg_hdr.msg_controllen.min(CONTROL);
        parse_control(&control.0[..used], &mut received);
        received
    }
}

fn parse_control(mut rest: &[u8], received: &mut Received) {
    while let Some((head, _)) = rest.split_at_checked(CMSG_HEADER) {
        let word =
            |at: usize| i32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        // cmsg_len is a size_t on every 64-bit libc; its low half is enough here.
        let length = if cfg!(target_endian = "little") {
            word(0)
        } else {
            word(4)
        } as usize;
        let Some(data) = rest.get(CMSG_HEADER..length) else {
            return;
        };
        match (word(8), word(12)) {
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                if let Some(&[a, b, c, d]) = data.get(8..12) {
                    received.local = Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
                }
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(octets) = data.first_chunk::<16>() {
                    received.local = Some(IpAddr::V6(Ipv6Addr::from(*octets)));
                }
            }
            (libc::SOL_IP, libc::IP_TOS) => received.tos = data.first().copied().unwrap_or(0),
            (libc::SOL_IPV6, libc::IPV6_TCLASS) => received.tos = int_of(data) as u8,
            (libc::SOL_UDP, libc::UDP_GRO) => received.segment = usize::try_from(int_of(data)).ok(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or(&[]);
    }
}

fn int_of(data: &[u8]) -> i32 {
    data.first_chunk::<4>()
        .map_or(0, |octets| i32::from_ne_bytes(*octets))
}

/// One datagram to send, or with `segment` several of that size to one destination.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Index of the first piece.
    pub first: usize,
    /// Pieces, gathered in order.
    pub pieces: usize,
    /// Source address to send from; unspecified leaves it to the kernel.
    pub source: IpAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// Type of service or traffic class.
    pub tos: u8,
    /// UDP_SEGMENT: cut what is gathered into datagrams of this size.
    pub segment: Option<u16>,
}

/// Reusable memory of one sendmmsg call.
pub struct SendBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    destinations: Vec<SockAddr>,
    controls: Vec<Control>,
}

// SAFETY: as for `RecvBatch`.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl SendBatch {
    /// Room for [`BURST`] messages to start with.
    pub fn new() -> Self {
        Self {
            headers: Vec::with_capacity(BURST),
            vectors: Vec::with_capacity(BURST),
            destinations: Vec::with_capacity(BURST),
            controls: Vec::with_capacity(BURST),
        }
    }

    /// Sends messages made of the pieces that `piece` names, without waiting. Returns how many
    /// messages went before the first that failed; an error is that of the first message.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: &[Message],
        piece: impl Fn(usize) -> &'a [u8],
    ) -> io::Result<usize> {
        self.headers.clear();
        self.vectors.clear();
        self.destinations.clear();
        self.controls.clear();
        for message in messages {
            for index in message.first..message.first + message.pieces {
                let octets = piece(index);
                self.vectors.push(libc::iovec {
                    iov_base: octets.as_ptr().cast_mut().cast(),
                    iov_len: octets.len(),
                });
            }
            self.destinations.push(SockAddr::from(message.destination));
            self.controls.push(Control([0; CONTROL]));
        }
        // Pointers are taken only now that no vector grows any more.
        let mut vector = 0;
        for (index, message) in messages.iter().enumerate() {
            // SAFETY: all-zero is a valid mmsghdr.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            let destination = &self.destinations[index];
            header.msg_hdr.msg_name = destination.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = destination.len();
            header.msg_hdr.msg_iov = self.vectors[vector..vector + message.pieces].as_mut_ptr();
            header.msg_hdr.msg_iovlen = message.pieces as _;
            vector += message.pieces;
            let used = write_control(&mut self.controls[index].0, message);
            header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = used as _;
            self.headers.push(header);
        }
        // SAFETY: every header points at live memory of the lengths given: the pieces are borrowed
        // for 'a, the rest are our own vectors; sendmmsg only reads through them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn write_control(control: &mut [u8; CONTROL], message: &Message) -> usize {
    let mut used = 0;
    let mut put = |level: i32, kind: i32, data: &[u8]| {
        let length = CMSG_HEADER + data.len();
        let (head, rest) = control[used..].split_at_mut(CMSG_HEADER);
        head[..8].copy_from_slice(&(length as u64).to_ne_bytes());
        head[8..12].copy_from_slice(&level.to_ne_bytes());
        head[12..].copy_from_slice(&kind.to_ne_bytes());
        rest[..data.len()].copy_from_slice(data);
        used += length.next_multiple_of(8);
    };
    let tos = i32::from(message.tos).to_ne_bytes();
    match (message.destination.ip(), message.source) {
        (IpAddr::V4(_), IpAddr::V4(source)) => {
            // struct in_pktinfo: interface, source address, (unused) destination.
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&source.octets());
            put(libc::SOL_IP, libc::IP_PKTINFO, &info);
            put(libc::SOL_IP, libc::IP_TOS, &tos);
        }
        (IpAddr::V6(_), IpAddr::V6(source)) => {
            // struct in6_pktinfo: source address, interface.
            let mut info = [0; 20];
            info[..16].copy_from_slice(&source.octets());
            put(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            put(libc::SOL_IPV6, libc::IPV6_TCLASS, &tos);
        }
        _ => {}
    }
    if let Some(segment) = message.segment {
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    used
}

/// Sets an integer socket option.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Binds a packet socket to an interface, whose frames of every kind it sees from then on.
pub fn bind_to_link(socket: BorrowedFd<'_>, link: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data, for which all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the pointer and length describe `address`.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Attaches a filter that accepts nothing: for sockets that only send.
pub fn drop_all_input(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut program = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies one instruction from `program`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until the descriptor can be written, at most `timeout`. False when it could not.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd, exclusively borrowed.
    let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

/// An epoll instance, level triggered; each descriptor has a number of the caller's choice.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a descriptor that is not negative is ours.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self {
            epoll,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 32],
        })
    }

    /// Has [`Self::wait`] poll the drivers of the sockets that ask for it, for this long, before it
    /// sleeps (Linux 6.9).
    pub fn poll_busily(&mut self, microseconds: u32) -> io::Result<()> {
        /// `struct epoll_params` of linux/eventpoll.h.
        #[repr(C)]
        struct Params {
            microseconds: u32,
            budget: u16,
            prefer: u8,
            padding: u8,
        }
        const EPIOCSPARAMS: libc::Ioctl = 0x4008_8a01;
        let params = Params {
            microseconds,
            budget: 64,
            prefer: 1,
            padding: 0,
        };
        // SAFETY: EPIOCSPARAMS reads one `struct epoll_params`.
        let result =
            unsafe { libc::ioctl(self.epoll.as_raw_fd(), EPIOCSPARAMS, &raw const params) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Watches `fd` for input. It must stay open as long as the poller.
    pub fn add(&mut self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        self.watch(fd, number, libc::EPOLLIN)
    }

    /// As [`Poller::add`], for a descriptor that several pollers watch: what arrives wakes one of
    /// those that wait.
    pub fn add_exclusive(&mut self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        self.watch(fd, number, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, number: u64, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: number,
        };
        // SAFETY: `event` is valid for the call.
        let result = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Waits for input, at most `timeout` (`None`: as long as it takes), and returns the numbers
    /// of the ready descriptors.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = u64> + '_> {
        let milliseconds = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: the pointer and count describe `events`.
        let ready = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as i32,
                milliseconds,
            )
        };
        let ready = match usize::try_from(ready) {
            Ok(ready) => ready,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
                0
            }
        };
        Ok(self.events.iter().take(ready).map(|event| event.u64))
    }
}

/// A counter one thread wakes another with.
pub fn eventfd() -> io::Result<std::fs::File> {
    // SAFETY: no pointers; a descriptor that is not negative is ours.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::fs::File::from_raw_fd(fd))
    }
}

/// Attaches an open `/dev/net/tun` to the TUN interface `name` (at most 15 octets), creating it if
/// it is not there, with a virtio-net header before each packet; as one of its queues if it has several.
pub fn tun_attach(tun: BorrowedFd<'_>, name: &str, several: bool) -> io::Result<()> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tells the kernel which offloads the reader of a TUN takes (`TUN_F_*`).
pub fn tun_set_offload(tun: BorrowedFd<'_>, features: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(features),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The processors that the calling thread may run on.
pub fn processors() -> io::Result<Vec<usize>> {
    // SAFETY: a zeroed set is empty; pointer and size describe it.
    let (result, set) = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        let result = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        (result, set)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the numbers are below CPU_SETSIZE.
    Ok(all
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect())
}

/// Binds the calling thread to one processor.
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is empty; CPU_SET bounds-checks nothing, so we do.
    let result = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has the calling thread run before all that are not real-time ones, in turns with its like. The
/// kernel still leaves the others some time.
pub fn run_before_others() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel copies the struct; 0 is the calling thread.
    let result =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &lowest) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves the calling thread (and threads it starts from now on) to another network namespace.
#[cfg(test)]
pub fn enter_network_namespace(namespace: std::fs::File) -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_batch_arrives_with_addresses_and_tos() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(receiver.as_fd(), libc::SOL_IP, libc::IP_PKTINFO, 1).unwrap();
        set_option(receiver.as_fd(), libc::SOL_IP, libc::IP_RECVTOS, 1).unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let pieces: [&[u8]; 3] = [b"one", b"two", b"three"];
        let base = Message {
            first: 0,
            pieces: 1,
            source: "127.0.0.2".parse().unwrap(),
            destination: receiver.local_addr().unwrap(),
            tos: 0xb9,
            segment: None,
        };
        let messages = [
            base,
            Message {
                first: 1,
                pieces: 2,
                ..base
            },
        ];
        let sent = SendBatch::new()
            .send(sender.as_fd(), &messages, |i| pieces[i])
            .unwrap();
        assert_eq!(sent, 2);
        let mut batch = RecvBatch::new();
        let mut buffers = [[0u8; 6]; 4];
        let count = batch
            .recv(
                receiver.as_fd(),
                2,
                buffers.iter_mut().map(|b| b.as_mut_slice()),
            )
            .unwrap();
        assert_eq!(count, 2);
        let info = batch.info(0);
        assert_eq!(&buffers[0][..info.len], b"one");
        assert_eq!(
            info.source.unwrap().ip(),
            "127.0.0.2".parse::<IpAddr>().unwrap()
        );
        assert_eq!(info.local, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(info.tos, 0xb9);
        assert_eq!(batch.info(1).len, 8);
        assert_eq!((&buffers[2], &buffers[3][..2]), (b"twothr", &b"ee"[..]));
    }

    #[test]
    fn hostile_control_lengths_end_the_walk() {
        let mut received = Received::default();
        for length in [0u64, 8, 15, 4096, u64::MAX] {
            let mut control = [0u8; 32];
            control[..8].copy_from_slice(&length.to_ne_bytes());
            parse_control(&control, &mut received);
        }
        assert!(received.local.is_none());
    }
}
