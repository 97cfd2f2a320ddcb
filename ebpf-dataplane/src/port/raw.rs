//! Native ESP (IP protocol 50) through raw sockets: works on every link the kernel can route to,
//! and makes the kernel resolve neighbours.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use espada_common::drops::DropReason;
use espada_common::sa::{Encapsulation, Path};
use socket2::{Domain, Protocol, Socket, Type};

use super::syscall::{self, Message, RecvBatch, SendBatch};
use super::udp::{grow_buffers, transmit_apart};
use crate::backend::BackendError;
use crate::esp::stats::DropCounters;
use crate::umem::{BURST, Burst, Frame, FramePool};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

fn open(domain: Domain, send_only: bool) -> Result<Socket, BackendError> {
    let name = if domain == Domain::IPV4 {
        "IPv4"
    } else {
        "IPv6"
    };
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_ESP)))?;
        socket.set_nonblocking(true)?;
        grow_buffers(socket.as_fd());
        if send_only {
            // A raw socket gets a copy of every packet of its protocol; this one wants none.
            syscall::drop_all_input(socket.as_fd())?;
        }
        Ok(socket)
    };
    open().map_err(|source| BackendError::System {
        what: format!("cannot open a raw {name} socket for ESP (needs CAP_NET_RAW)"),
        source,
    })
}

/// Receives native ESP of one address family.
pub struct RawReceiver {
    socket: Socket,
    v4: bool,
    batch: RecvBatch,
    slots: Vec<Frame>,
}

impl AsFd for RawReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl RawReceiver {
    /// Opens a socket for all ESP to this host.
    pub fn open(v4: bool) -> Result<Self, BackendError> {
        let socket = open(if v4 { Domain::IPV4 } else { Domain::IPV6 }, false)?;
        if !v4 {
            for (name, what) in [
                (libc::IPV6_RECVPKTINFO, "packet info"),
                (libc::IPV6_RECVTCLASS, "traffic class"),
            ] {
                syscall::set_option(socket.as_fd(), libc::SOL_IPV6, name, 1).map_err(|source| {
                    BackendError::System {
                        what: format!("cannot receive the {what} of IPv6 ESP"),
                        source,
                    }
                })?;
            }
        }
        Ok(Self {
            socket,
            v4,
            batch: RecvBatch::new(),
            slots: Vec::with_capacity(BURST),
        })
    }

    /// Receives one batch into `burst`, each frame a whole outer IP packet. True when a whole batch
    /// came, so that more may be queued.
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        drops: &DropCounters,
    ) -> bool {
        while self.slots.len() < BURST
            && let Some(frame) = pool.get()
        {
            self.slots.push(frame);
        }
        let buffers = self.slots.iter_mut().map(Frame::spare_mut);
        // An error here is an asynchronous one of an earlier send; it says nothing about input.
        let count = self
            .batch
            .recv(self.socket.as_fd(), 1, buffers)
            .unwrap_or(0);
        let full = count == self.slots.len() && count > 0;
        for (index, mut frame) in self.slots.drain(..).enumerate() {
            if index >= count {
                pool.put(frame);
                continue;
            }
            let info = self.batch.info(index);
            let taken = if info.truncated || frame.append(info.len).is_err() {
                Err(DropReason::TooBig)
            } else if self.v4 {
                describe_ipv4(&mut frame)
            } else {
                rebuild_ipv6(&mut frame, &info)
            };
            match taken {
                Ok(()) => burst.push(frame),
                Err(reason) => {
                    drops.add(reason);
                    pool.put(frame);
                }
            }
        }
        full
    }
}

fn native(local: IpAddr, remote: IpAddr) -> Path {
    Path {
        local: SocketAddr::new(local, 0),
        remote: SocketAddr::new(remote, 0),
        encapsulation: Encapsulation::Esp,
    }
}

/// Fills in the metadata of a frame that starts with an IPv4 header.
pub(super) fn describe_ipv4(frame: &mut Frame) -> Result<(), DropReason> {
    let header = frame
        .data()
        .first_chunk::<IPV4_HEADER>()
        .ok_or(DropReason::Malformed)?;
    let address =
        |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (path, tos) = (native(address(16), address(12)), header[1]);
    let meta = frame.meta_mut();
    meta.path = path;
    meta.tos = tos;
    Ok(())
}

/// Fills in the metadata of a frame that starts with an IPv6 header.
pub(super) fn describe_ipv6(frame: &mut Frame) -> Result<(), DropReason> {
    let header = frame
        .data()
        .first_chunk::<IPV6_HEADER>()
        .ok_or(DropReason::Malformed)?;
    let (source, rest) = header[8..]
        .split_first_chunk::<16>()
        .ok_or(DropReason::Malformed)?;
    let destination = rest.first_chunk::<16>().ok_or(DropReason::Malformed)?;
    let path = native(IpAddr::from(*destination), IpAddr::from(*source));
    let tos = header[0] << 4 | header[1] >> 4;
    let meta = frame.meta_mut();
    meta.path = path;
    meta.tos = tos;
    Ok(())
}

/// Raw IPv6 sockets deliver no header: puts an equivalent one before the ESP packet.
fn rebuild_ipv6(frame: &mut Frame, info: &syscall::Received) -> Result<(), DropReason> {
    let (Some(IpAddr::V6(remote)), Some(IpAddr::V6(local))) =
        (info.source.map(|s| s.ip()), info.local)
    else {
        return Err(DropReason::Internal);
    };
    let length = u16::try_from(frame.len()).map_err(|_| DropReason::TooBig)?;
    let header = frame
        .prepend(IPV6_HEADER)
        .map_err(|_| DropReason::Internal)?;
    header.fill(0);
    header[..2].copy_from_slice(&(0x6000 | u16::from(info.tos) << 4).to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = libc::IPPROTO_ESP as u8;
    header[7] = 64;
    header[8..24].copy_from_slice(&remote.octets());
    header[24..40].copy_from_slice(&local.octets());
    let meta = frame.meta_mut();
    meta.path = native(local.into(), remote.into());
    meta.tos = info.tos;
    Ok(())
}

/// Sends native ESP. The kernel writes the outer header itself (the engine's is skipped): so it can
/// fragment what may be fragmented, which it does not do under a caller's header.
pub struct RawSender {
    /// IPv4, fragments where the path asks for it.
    v4: Socket,
    /// IPv4 with Don't Fragment.
    v4_df: Socket,
    v6: Option<Socket>,
    batch: SendBatch,
    messages: Vec<Message>,
}

impl RawSender {
    /// Opens the sockets; without IPv6 in the kernel there is none for it.
    pub fn open(ttl: u8) -> Result<Self, BackendError> {
        let prepare = |socket: &Socket, level, options: [(i32, i32); 2]| {
            for (name, value) in options {
                syscall::set_option(socket.as_fd(), level, name, value).map_err(|source| {
                    BackendError::System {
                        what: "cannot set the header fields of outgoing ESP".into(),
                        source,
                    }
                })?;
            }
            Ok::<(), BackendError>(())
        };
        let ttl = i32::from(ttl);
        let (v4, v4_df) = (open(Domain::IPV4, true)?, open(Domain::IPV4, true)?);
        let discover = libc::IP_MTU_DISCOVER;
        prepare(
            &v4,
            libc::SOL_IP,
            [(libc::IP_TTL, ttl), (discover, libc::IP_PMTUDISC_DONT)],
        )?;
        // DO: a packet above the path MTU that the kernel has learnt is refused with EMSGSIZE.
        prepare(
            &v4_df,
            libc::SOL_IP,
            [(libc::IP_TTL, ttl), (discover, libc::IP_PMTUDISC_DO)],
        )?;
        let v6 = match open(Domain::IPV6, true) {
            Ok(socket) => {
                let discover = (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT);
                prepare(
                    &socket,
                    libc::SOL_IPV6,
                    [(libc::IPV6_UNICAST_HOPS, ttl), discover],
                )?;
                Some(socket)
            }
            Err(error) => {
                tracing::info!(%error, "no native ESP over IPv6");
                None
            }
        };
        let messages = Vec::with_capacity(BURST);
        Ok(Self {
            v4,
            v4_df,
            v6,
            batch: SendBatch::new(),
            messages,
        })
    }

    /// Sends frames that are whole outer IP packets, all of one family and Don't Fragment setting.
    /// True when one was refused for its size: the path MTU should be looked up again.
    pub fn send(&mut self, frames: &[Frame], drops: &DropCounters) -> bool {
        let Some(meta) = frames.first().map(Frame::meta) else {
            return false;
        };
        let (socket, header) = match (meta.path.remote.is_ipv4(), meta.df) {
            (true, false) => (Some(&self.v4), IPV4_HEADER),
            (true, true) => (Some(&self.v4_df), IPV4_HEADER),
            (false, _) => (self.v6.as_ref(), IPV6_HEADER),
        };
        let Some(socket) = socket else {
            for _ in frames {
                drops.add(DropReason::NoRoute);
            }
            return false;
        };
        self.messages.clear();
        self.messages
            .extend(frames.iter().enumerate().map(|(first, frame)| {
                let path = frame.meta().path;
                Message {
                    first,
                    pieces: 1,
                    source: path.local.ip(),
                    // A raw socket takes the port for a protocol number: 0 is its own.
                    destination: SocketAddr::new(path.remote.ip(), 0),
                    tos: frame.meta().tos,
                    segment: None,
                }
            }));
        transmit_apart(
            socket.as_fd(),
            &mut self.batch,
            &self.messages,
            |index| frames[index].data().get(header..).unwrap_or_default(),
            drops,
        )
    }
}
