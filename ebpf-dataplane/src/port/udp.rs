//! ESP in UDP (RFC 3948) on the sockets that IKE shares: what starts with the non-ESP marker goes
//! up to IKE, the rest is ESP.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use espada_common::drops::DropReason;
use espada_common::sa::{Encapsulation, Event, Path};

use super::syscall::{self, Message, RecvBatch, SendBatch};
use crate::backend::{BackendError, EventSink};
use crate::esp::stats::DropCounters;
use crate::umem::{BURST, Burst, Frame, FramePool};

/// Socket buffers: a burst of GSO packets at 20 Gbit/s lasts about a millisecond in this.
const BUFFER: i32 = 8 << 20;

/// How long a sender waits for room in the socket before a packet is dropped.
const PATIENCE: Duration = Duration::from_millis(20);

/// UDP_SEGMENT: the kernel takes at most this many datagrams (and [`MOST_OCTETS`]) in one call.
pub const MOST_SEGMENTS: usize = 64;
/// As [`MOST_SEGMENTS`].
pub const MOST_OCTETS: usize = 65_000;

/// Sets what both directions need on a socket bound to the ESP-in-UDP port.
///
/// IPv4 datagrams leave without Don't Fragment: IKE sends on the same socket and must get through
/// whatever its size, and behind a NAT no ICMP error can be relied on to tell a path MTU. The
/// inner MTU keeps ESP packets inside the link's MTU, so fragments are the exception.
pub fn prepare(socket: &UdpSocket) -> Result<(), BackendError> {
    let fd = socket.as_fd();
    let local = socket.local_addr().map_err(|source| BackendError::System {
        what: "cannot read the address of the ESP-in-UDP socket".into(),
        source,
    })?;
    let (level, info, tos, discover, dont) = if local.is_ipv4() {
        let dont = libc::IP_PMTUDISC_DONT;
        (
            libc::SOL_IP,
            libc::IP_PKTINFO,
            libc::IP_RECVTOS,
            libc::IP_MTU_DISCOVER,
            dont,
        )
    } else {
        let dont = libc::IPV6_PMTUDISC_DONT;
        let info = libc::IPV6_RECVPKTINFO;
        (
            libc::SOL_IPV6,
            info,
            libc::IPV6_RECVTCLASS,
            libc::IPV6_MTU_DISCOVER,
            dont,
        )
    };
    let set = |level, name, value, what: &str| {
        syscall::set_option(fd, level, name, value).map_err(|source| BackendError::System {
            what: format!("cannot set {what} on the ESP-in-UDP socket {local}"),
            source,
        })
    };
    set(level, info, 1, "packet info")?;
    set(level, tos, 1, "receiving the traffic class")?;
    set(level, discover, dont, "fragmentation")?;
    socket
        .set_nonblocking(true)
        .map_err(|source| BackendError::System {
            what: format!("cannot make the ESP-in-UDP socket {local} non-blocking"),
            source,
        })?;
    grow_buffers(fd);
    Ok(())
}

/// Best effort: past the system's limits with CAP_NET_ADMIN, up to them without.
pub fn grow_buffers(fd: BorrowedFd<'_>) {
    for (force, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        let set = syscall::set_option(fd, libc::SOL_SOCKET, force, BUFFER)
            .or_else(|_| syscall::set_option(fd, libc::SOL_SOCKET, plain, BUFFER));
        if let Err(error) = set {
            tracing::debug!(%error, "socket buffer stays at the system's default");
        }
    }
}

/// Largest piece UDP_GRO delivers.
const LARGEST: usize = 65_536;

/// Datagrams asked for at once while they come one by one.
const SINGLES: usize = 32;

/// Messages asked for at once while each is a train of datagrams: the burst stays in the cache.
const TRAINS: usize = 4;

/// Datagrams of a train that are received right into frames have at least this many octets: the
/// frames made ready for a train are then a small part of all.
const SMALLEST: usize = 512;

/// Receives on one socket. With UDP_GRO the kernel delivers a sender's train of datagrams in one
/// piece. Frames are laid out for trains of the size that came last; a train of another size is
/// cut from a buffer.
pub struct UdpReceiver {
    socket: UdpSocket,
    local: SocketAddr,
    batch: RecvBatch,
    /// Frames ready to receive into.
    slots: Vec<Frame>,
    /// For each message: room to put what is in frames in front, then what did not fit them.
    large: Vec<u8>,
    /// Octets of the datagrams of the last batch's trains, if it had any.
    train: Option<usize>,
}

impl AsFd for UdpReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl UdpReceiver {
    /// Takes a (clone of a) socket that [`prepare`] has seen.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        if let Err(error) = syscall::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1) {
            tracing::info!(%error, "no UDP_GRO: ESP in UDP is received one by one");
        }
        Ok(Self {
            socket,
            local,
            batch: RecvBatch::new(),
            slots: Vec::with_capacity(SINGLES),
            large: vec![0; 2 * LARGEST * SINGLES],
            train: None,
        })
    }

    /// Receives one batch: ESP into `burst`, IKE to `sink`, keepalives nowhere. True when a whole
    /// batch came, so that more may be queued.
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        sink: &EventSink,
        drops: &DropCounters,
    ) -> bool {
        let layout = self.layout(pool);
        // An error here is an asynchronous one of an earlier send; it says nothing about input.
        let count = self.fill(layout).unwrap_or(0);
        if count > 0 {
            self.train = None;
        }
        for (index, large) in (0..count).zip(self.large.chunks_mut(2 * LARGEST)) {
            let info = self.batch.info(index);
            let first = self.slots.len().saturating_sub(layout.frames);
            let frames = self.slots.drain(first..);
            let segment = info.segment.filter(|size| *size > 0 && *size < info.len);
            if segment.is_some() {
                self.train = segment;
            }
            let Some(remote) = info.source.filter(|_| !info.truncated) else {
                drops.add(DropReason::TooBig);
                frames.for_each(|frame| pool.put(frame));
                continue;
            };
            let local = SocketAddr::new(info.local.unwrap_or(self.local.ip()), self.local.port());
            let mut target = Target {
                local,
                remote,
                tos: info.tos,
                burst,
                sink,
                drops,
            };
            let in_place = segment.map_or(info.len <= layout.octets, |size| size == layout.octets);
            if info.len == 0 {
                drops.add(DropReason::Malformed);
            }
            if in_place {
                let mut left = info.len;
                for frame in frames {
                    target.received(frame, left.min(layout.octets), pool);
                    left = left.saturating_sub(layout.octets);
                }
                continue;
            }
            let start = LARGEST - (layout.frames * layout.octets).min(info.len);
            let mut rooms = large[start..LARGEST].chunks_mut(layout.octets);
            for mut frame in frames {
                if let Some(room) = rooms.next() {
                    room.copy_from_slice(&frame.spare_mut()[..room.len()]);
                }
                pool.put(frame);
            }
            let datagrams = large[start..start + info.len].chunks(segment.unwrap_or(info.len));
            datagrams.for_each(|datagram| target.copy(datagram, pool));
        }
        count == layout.messages && count > 0
    }

    /// How to receive next, with the frames for it in `slots`.
    fn layout(&mut self, pool: &mut FramePool) -> Layout {
        self.provide(SINGLES, pool);
        let room = self.slots.first().map_or(0, Frame::tailroom);
        if let Some(octets) = self.train.filter(|size| (SMALLEST..=room).contains(size)) {
            let frames = LARGEST.div_ceil(octets);
            self.provide(TRAINS * frames, pool);
            let messages = (self.slots.len() / frames).min(TRAINS);
            if messages > 0 {
                return Layout {
                    messages,
                    frames,
                    octets,
                };
            }
        }
        Layout {
            messages: self.slots.len().min(SINGLES),
            frames: 1,
            octets: room,
        }
    }

    fn provide(&mut self, frames: usize, pool: &mut FramePool) {
        while self.slots.len() < frames
            && let Some(frame) = pool.get()
        {
            self.slots.push(frame);
        }
    }

    /// Receives into the frames at the end of `slots`, the first message into the last of them, so
    /// that they can be taken off.
    fn fill(&mut self, layout: Layout) -> io::Result<usize> {
        let messages = (self.slots.rchunks_exact_mut(layout.frames))
            .zip(self.large.chunks_mut(2 * LARGEST))
            .take(layout.messages);
        let buffers = messages.flat_map(|(frames, large)| {
            let frames = frames.iter_mut().map(Frame::spare_mut);
            (frames.map(|spare| spare.get_mut(..layout.octets).unwrap_or_default()))
                .chain([&mut large[LARGEST..]])
        });
        self.batch
            .recv(self.socket.as_fd(), layout.frames + 1, buffers)
    }
}

/// How messages are received: each into some frames, and what they do not hold into a buffer.
#[derive(Clone, Copy)]
struct Layout {
    messages: usize,
    /// Frames of one message.
    frames: usize,
    /// Octets in each of them.
    octets: usize,
}

/// Where the datagrams of one message go.
struct Target<'a> {
    local: SocketAddr,
    remote: SocketAddr,
    tos: u8,
    burst: &'a mut Burst,
    sink: &'a EventSink,
    drops: &'a DropCounters,
}

impl Target<'_> {
    /// A datagram of `octets` that is in the frame; without any the frame was not needed.
    fn received(&mut self, mut frame: Frame, octets: usize, pool: &mut FramePool) {
        if octets > 0 && frame.append(octets).is_ok() {
            self.take(frame, pool);
        } else {
            pool.put(frame);
        }
    }

    /// A datagram that is elsewhere.
    fn copy(&mut self, datagram: &[u8], pool: &mut FramePool) {
        let Some(mut frame) = pool.get() else {
            return self.drops.add(DropReason::TunFull);
        };
        match frame.append(datagram.len()) {
            Ok(room) => {
                room.copy_from_slice(datagram);
                self.take(frame, pool);
            }
            Err(_) => {
                self.drops.add(DropReason::TooBig);
                pool.put(frame);
            }
        }
    }

    fn take(&mut self, mut frame: Frame, pool: &mut FramePool) {
        let (local, remote) = (self.local, self.remote);
        match classify(frame.data()) {
            Datagram::Esp => {
                let meta = frame.meta_mut();
                meta.path = Path {
                    local,
                    remote,
                    encapsulation: Encapsulation::Udp,
                };
                meta.tos = self.tos;
                self.burst.push(frame);
                return;
            }
            Datagram::Ike(payload) => {
                let payload = payload.to_vec();
                (self.sink)(Event::IkeDatagram {
                    local,
                    remote,
                    payload,
                });
            }
            Datagram::Keepalive => {}
            Datagram::Runt => self.drops.add(DropReason::Malformed),
        }
        pool.put(frame);
    }
}

/// What a datagram on the ESP-in-UDP port is.
#[derive(Debug, PartialEq, Eq)]
enum Datagram<'a> {
    Esp,
    Ike(&'a [u8]),
    Keepalive,
    Runt,
}

/// RFC 3948 section 2: the first four octets are an SPI, which is never zero, or the non-ESP
/// marker; a single octet 0xFF is a NAT keepalive.
fn classify(datagram: &[u8]) -> Datagram<'_> {
    match datagram {
        [0xff] => Datagram::Keepalive,
        [0, 0, 0, 0, ike @ ..] => Datagram::Ike(ike),
        [_, _, _, _, _, ..] => Datagram::Esp,
        _ => Datagram::Runt,
    }
}

/// Sends ESP packets, runs of equal size to one peer in one call.
pub struct UdpSender {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    batch: SendBatch,
    messages: Vec<Message>,
    /// Whether the kernel (and the path's device) take UDP_SEGMENT.
    segment: bool,
}

impl UdpSender {
    /// Takes (clones of) the sockets, at most one of each family. `segment`: UDP_SEGMENT may be used.
    pub fn new(sockets: Vec<UdpSocket>, segment: bool) -> io::Result<Self> {
        let mut sender = Self {
            v4: None,
            v6: None,
            batch: SendBatch::new(),
            messages: Vec::with_capacity(BURST),
            segment,
        };
        for socket in sockets {
            let slot = if socket.local_addr()?.is_ipv4() {
                &mut sender.v4
            } else {
                &mut sender.v6
            };
            *slot = Some(socket);
        }
        Ok(sender)
    }

    /// Sends frames that start at the ESP header, all of one address family.
    pub fn send(&mut self, frames: &[Frame], drops: &DropCounters) {
        let Some(v4) = frames
            .first()
            .map(|frame| frame.meta().path.remote.is_ipv4())
        else {
            return;
        };
        let socket = if v4 { &self.v4 } else { &self.v6 };
        let Some(socket) = socket else {
            let packets = frames.iter().map(Frame::packets).sum();
            return drops.add_many(DropReason::NoRoute, packets);
        };
        let mut segment = self.segment;
        let mut first = 0;
        while let Some(frame) = frames.get(first) {
            self.messages.clear();
            if let (false, Some(row)) = (segment, frame.meta().row) {
                cut(frame, &mut self.messages);
                transmit_apart(
                    socket.as_fd(),
                    &mut self.batch,
                    &self.messages,
                    |index| {
                        frame
                            .data()
                            .chunks(row.into())
                            .nth(index)
                            .unwrap_or_default()
                    },
                    drops,
                );
                first += 1;
                continue;
            }
            let behind = gather(frames, first, segment, &mut self.messages);
            let sent = transmit(socket.as_fd(), &mut self.batch, &self.messages, |index| {
                frames[index].data()
            });
            let Err(Refused { message, error }) = sent else {
                first = behind;
                continue;
            };
            let message = self.messages[message];
            first = message.first;
            if message.segment.is_some() {
                // Without segmentation each packet gets its own chance and its own answer.
                segment = false;
                if matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP)) {
                    tracing::info!(%error, "UDP_SEGMENT does not work here; sending ESP in UDP one by one");
                    self.segment = false;
                }
            } else {
                drops.add(reason(&error));
                first += 1;
            }
        }
    }
}

/// Why the kernel did not take a packet.
fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL) => {
            DropReason::NoRoute
        }
        _ => DropReason::WanFull,
    }
}

/// A message the kernel refused for good.
struct Refused {
    message: usize,
    error: io::Error,
}

/// Sends all messages, waiting a little when the socket is full.
fn transmit<'a>(
    fd: BorrowedFd<'_>,
    batch: &mut SendBatch,
    messages: &[Message],
    piece: impl Fn(usize) -> &'a [u8],
) -> Result<(), Refused> {
    let mut sent = 0;
    let mut waited = false;
    while sent < messages.len() {
        match batch.send(fd, &messages[sent..], &piece) {
            Ok(count) => {
                sent += count;
                waited = false;
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS) if !waited => {
                    waited = true;
                    syscall::wait_writable(fd, PATIENCE);
                }
                _ => {
                    return Err(Refused {
                        message: sent,
                        error,
                    });
                }
            },
        }
    }
    Ok(())
}

/// Sends all messages, each of which has its own chance and its own answer. True when one did not fit the path.
pub(super) fn transmit_apart<'a>(
    fd: BorrowedFd<'_>,
    batch: &mut SendBatch,
    messages: &[Message],
    piece: impl Fn(usize) -> &'a [u8],
    drops: &DropCounters,
) -> bool {
    let mut rest = messages;
    let mut too_big = false;
    while let Err(Refused { message, error }) = transmit(fd, batch, rest, &piece) {
        let reason = reason(&error);
        too_big |= reason == DropReason::TooBig;
        drops.add(reason);
        rest = rest.get(message + 1..).unwrap_or_default();
    }
    too_big
}

/// Describes the packets of a row as messages, their numbers in the row as pieces.
fn cut(frame: &Frame, messages: &mut Vec<Message>) {
    let meta = frame.meta();
    messages.extend((0..frame.packets()).map(|first| Message {
        first,
        pieces: 1,
        source: meta.path.local.ip(),
        destination: meta.path.remote,
        tos: meta.tos,
        segment: None,
    }));
}

/// Describes frames from `first` on as messages: a run to one peer of equal sizes (the last may be shorter) is
/// one, and so is a row. Without `segment` it goes up to a row. Returns where it ended.
fn gather(frames: &[Frame], first: usize, segment: bool, messages: &mut Vec<Message>) -> usize {
    let mut at = first;
    while let Some(frame) = frames.get(at) {
        let (meta, size) = (frame.meta(), frame.len());
        if meta.row.is_some() && !segment {
            break;
        }
        let mut pieces = 1;
        let mut octets = size;
        if segment && meta.row.is_none() {
            for next in frames[at + 1..].iter().take(MOST_SEGMENTS - 1) {
                let same = next.meta().row.is_none()
                    && next.meta().path == meta.path
                    && next.meta().tos == meta.tos
                    && next.len() <= size
                    && octets + next.len() <= MOST_OCTETS;
                if !same {
                    break;
                }
                pieces += 1;
                octets += next.len();
                if next.len() < size {
                    break;
                }
            }
        }
        messages.push(Message {
            first: at,
            pieces,
            source: meta.path.local.ip(),
            destination: meta.path.remote,
            tos: meta.tos,
            segment: match meta.row {
                Some(row) => (size > usize::from(row)).then_some(row),
                None => u16::try_from(size).ok().filter(|_| pieces > 1),
            },
        });
        at += pieces;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::stats::DropCounters;
    use crate::umem::{Arena, ROW};
    use std::sync::{Arc, Mutex};

    #[test]
    fn datagrams_are_told_apart() {
        assert_eq!(classify(&[0xff]), Datagram::Keepalive);
        assert_eq!(classify(&[0, 0, 0, 0, 1, 2]), Datagram::Ike(&[1, 2]));
        assert_eq!(classify(&[0, 0, 1, 0, 1, 2]), Datagram::Esp);
        assert_eq!(classify(&[1, 2, 3]), Datagram::Runt);
        assert_eq!(classify(&[]), Datagram::Runt);
    }

    /// Two sockets, and the path from one to the other.
    fn line(address: &str) -> (UdpSocket, UdpSocket, Path) {
        let [a, b] = [0; 2].map(|_| {
            let socket = UdpSocket::bind(address).unwrap();
            prepare(&socket).unwrap();
            socket
        });
        let path = Path {
            local: a.local_addr().unwrap(),
            remote: b.local_addr().unwrap(),
            encapsulation: Encapsulation::Udp,
        };
        (a, b, path)
    }

    #[test]
    fn bursts_cross_the_loopback_in_order_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b, path) = line(address);
            let mut pool = Arena::new(600, 2048).unwrap().take(600);
            let drops = DropCounters::default();
            let local = path.remote;
            let mut sender = UdpSender::new(vec![a], true).unwrap();
            let ike = Arc::new(Mutex::new(Vec::new()));
            let sink: EventSink = {
                let ike = Arc::clone(&ike);
                Arc::new(move |event| ike.lock().unwrap().push(event))
            };
            b.send_to(&[0, 0, 0, 0, 9, 9], local).unwrap();
            let mut receiver = UdpReceiver::new(b).unwrap();
            let trains = |size: usize| (0..100).map(move |n| if n % 30 == 29 { 200 } else { size });
            // Trains of a size not seen before, then expected ones; a datagram longer than those.
            let rounds =
                [1000, 1000, 800, 800, 1436, 1436].map(|size| trains(size).collect::<Vec<_>>());
            for sizes in rounds
                .into_iter()
                .chain([vec![1500], vec![], vec![1500, 700]])
            {
                let mut frames = Vec::new();
                for (index, size) in sizes.iter().enumerate() {
                    let mut frame = pool.get().unwrap();
                    frame.append(*size).unwrap().fill(index as u8 | 1);
                    frame.meta_mut().path = path;
                    frame.meta_mut().tos = 0x88;
                    frames.push(frame);
                }
                sender.send(&frames, &drops);
                frames.into_iter().for_each(|frame| pool.put(frame));
                let mut burst = Burst::new();
                for _ in 0..5 {
                    receiver.receive(&mut pool, &mut burst, &sink, &drops);
                }
                let got: Vec<usize> = burst.frames().iter().map(Frame::len).collect();
                assert_eq!(got, sizes);
                for (index, frame) in burst.frames().iter().enumerate() {
                    assert!(frame.data().iter().all(|octet| *octet == index as u8 | 1));
                    let meta = frame.meta();
                    assert_eq!(
                        (meta.path.local, meta.path.remote, meta.tos),
                        (local, path.local, 0x88)
                    );
                }
                burst.recycle(&mut pool);
            }
            assert_eq!(drops.snapshot().iter().sum::<u64>(), 0);
            let events = ike.lock().unwrap();
            assert!(
                matches!(&events[..], [Event::IkeDatagram { payload, .. }] if payload == &[9, 9])
            );
        }
    }

    #[test]
    fn rows_arrive_in_order_also_where_the_kernel_cuts_nothing() {
        let rows = Arena::new(2, ROW).unwrap();
        let mut pool = Arena::new(600, 2048).unwrap().take(600).with_rows(&rows, 2);
        let drops = DropCounters::default();
        let sink: EventSink = Arc::new(|_| panic!("no IKE was sent"));
        for segment in [true, false] {
            let (a, b, path) = line("127.0.0.1:0");
            let mut sender = UdpSender::new(vec![a], segment).unwrap();
            let mut receiver = UdpReceiver::new(b).unwrap();
            // A packet, a row whose last packet is short, one, a row of one.
            let sizes = [
                vec![1000],
                [vec![1000; 44], vec![300]].concat(),
                vec![1000],
                vec![900],
            ];
            let mut number = 0;
            let mut frame = |sizes: &Vec<usize>, row: Option<u16>| {
                let frame = match row {
                    Some(_) => pool.get_row(),
                    None => pool.get(),
                };
                let mut frame = frame.unwrap();
                for size in sizes {
                    number += 1;
                    frame.append(*size).unwrap().fill(number);
                }
                frame.meta_mut().path = path;
                frame.meta_mut().row = row;
                frame
            };
            let frames = [
                frame(&sizes[0], None),
                frame(&sizes[1], Some(1000)),
                frame(&sizes[2], None),
                frame(&sizes[3], Some(900)),
            ];
            sender.send(&frames, &drops);
            assert_eq!(sender.segment, segment);
            frames.into_iter().for_each(|frame| pool.put(frame));
            assert_eq!(pool.available_rows(), 2);
            let mut burst = Burst::new();
            for _ in 0..5 {
                receiver.receive(&mut pool, &mut burst, &sink, &drops);
            }
            let got: Vec<usize> = burst.frames().iter().map(Frame::len).collect();
            assert_eq!(got, sizes.concat());
            for (frame, number) in burst.frames().iter().zip(1u8..) {
                assert!(frame.data().iter().all(|octet| *octet == number));
            }
            burst.recycle(&mut pool);
        }
        assert_eq!(drops.snapshot().iter().sum::<u64>(), 0);
    }
}
