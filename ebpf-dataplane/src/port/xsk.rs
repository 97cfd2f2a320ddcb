//! Native ESP through AF_XDP: packets move between the driver and our frames without the kernel's
//! stack. The front end steers them here.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use espada_common::drops::DropReason;
use espada_common::sa::Encapsulation;

use super::raw::{describe_ipv4, describe_ipv6};
use super::ring::{Descriptor, ReceiveHalf, Socket, TransmitHalf};
use super::syscall;
use crate::esp::stats::DropCounters;
use crate::frontend::OutCounter;
use crate::umem::{Arena, BURST, Burst, Frame, FramePool};

/// Octets of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

/// Entries of each ring; as many frames are with the kernel to receive into.
pub const RING: u32 = 2048;

/// Queues used at most.
pub const MOST_QUEUES: u32 = 16;

/// An AF_XDP socket that a former owner closed a moment ago still holds its queue.
const REBIND: (u32, Duration) = (20, Duration::from_millis(100));

/// How long a sender waits for room in the ring before a packet is dropped.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often it looks whether there is some.
const PAUSE: Duration = Duration::from_micros(50);

/// Opens the socket of a receive queue, waiting for a former one to go.
pub fn open(arena: &Arc<Arena>, link: u32, queue: u32) -> io::Result<Socket> {
    for _ in 0..REBIND.0 {
        match Socket::open(arena, link, queue, RING) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(REBIND.1);
            }
            result => return result,
        }
    }
    Socket::open(arena, link, queue, RING)
}

/// What went past the kernel.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets received.
    pub received: AtomicU64,
    /// Packets handed to the ring.
    pub sent: AtomicU64,
}

/// Leaves of an Ethernet frame what the engine takes, or says why nothing of it.
pub type Unframe = fn(&mut Frame) -> Result<(), DropReason>;

/// Receives from one queue.
pub struct XskReceiver {
    half: ReceiveHalf,
    counters: Arc<Counters>,
    frame_size: u64,
    unframe: Unframe,
}

impl AsFd for XskReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.half.as_fd()
    }
}

impl XskReceiver {
    /// Takes a socket's half and gives the kernel frames to receive into.
    pub fn new(
        half: ReceiveHalf,
        pool: &mut FramePool,
        counters: Arc<Counters>,
        unframe: Unframe,
    ) -> Self {
        let frame_size = pool.arena().frame_size() as u64;
        let mut receiver = Self {
            half,
            counters,
            frame_size,
            unframe,
        };
        receiver.refill(pool);
        receiver
    }

    /// Keeps half a burst of frames back: the other ports need some.
    fn refill(&mut self, pool: &mut FramePool) {
        let mut fill = self.half.fill();
        let mut free = fill.free();
        while free > 0
            && pool.available() > BURST
            && let Some(mut frame) = pool.get()
        {
            frame.reset(0);
            fill.push(frame.into_addr());
            free -= 1;
        }
        fill.submit();
        let waits = fill.needs_wakeup();
        drop(fill);
        self.half.wake(waits);
    }

    /// Takes up to a burst of packets, each a whole IP packet. True when more may wait.
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        drops: &DropCounters,
    ) -> bool {
        let mut more = true;
        let before = burst.len();
        while !burst.is_full() {
            let Some(descriptor) = self.half.ring.pop() else {
                more = false;
                break;
            };
            let Some(mut frame) = pool.adopt(descriptor.address) else {
                drops.add(DropReason::Internal);
                continue;
            };
            let start = (descriptor.address % self.frame_size) as usize;
            let taken = match frame.set_range(start, descriptor.length as usize) {
                Ok(()) => (self.unframe)(&mut frame),
                Err(_) => Err(DropReason::Internal),
            };
            match taken {
                Ok(()) => burst.push(frame),
                Err(reason) => {
                    drops.add(reason);
                    pool.put(frame);
                }
            }
        }
        self.half.ring.release();
        self.refill(pool);
        let received = (burst.len() - before) as u64;
        self.counters
            .received
            .fetch_add(received, Ordering::Relaxed);
        more
    }
}

/// Leaves the outer IP packet and describes it in the frame's metadata.
pub fn outer_packet(frame: &mut Frame) -> Result<(), DropReason> {
    if strip_ethernet(frame)? {
        describe_ipv4(frame)
    } else {
        describe_ipv6(frame)
    }
}

/// Leaves the IP packet: without the Ethernet header and without padding to Ethernet's minimum. True for
/// IPv4.
pub(super) fn strip_ethernet(frame: &mut Frame) -> Result<bool, DropReason> {
    let kind = frame
        .data()
        .get(12..ETHERNET)
        .ok_or(DropReason::Malformed)?;
    let v4 = match kind {
        [0x08, 0x00] => true,
        [0x86, 0xdd] => false,
        _ => return Err(DropReason::Unsupported),
    };
    frame.trim_front(ETHERNET);
    let word = |frame: &Frame, at: usize| {
        frame
            .data()
            .get(at..)?
            .first_chunk()
            .map(|octets| u16::from_be_bytes(*octets).into())
    };
    let length: Option<usize> = if v4 {
        word(frame, 2)
    } else {
        word(frame, 4).map(|length: usize| length + 40)
    };
    match length {
        Some(length) if length <= frame.len() => frame.truncate(length),
        _ => return Err(DropReason::Malformed),
    }
    Ok(v4)
}

/// Where packets to one peer go on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextLink {
    /// Destination, source and type: the whole Ethernet header.
    pub header: [u8; ETHERNET],
    /// Largest IP packet the link takes.
    pub mtu: usize,
}

impl NextLink {
    /// The header for IPv4 or IPv6 packets.
    pub fn new(destination: [u8; 6], source: [u8; 6], v4: bool, mtu: usize) -> Self {
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        header[12..].copy_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        Self { header, mtu }
    }
}

/// What the transmitting worker knows of peers and SAs; published anew when it changes.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// Peers that can be reached past the kernel now.
    pub links: HashMap<IpAddr, NextLink>,
    /// Counters of outbound SAs, by peer and SPI: packets sent here pass no tc program.
    pub counters: HashMap<(IpAddr, u32), OutCounter>,
}

/// The transmitting side of one queue.
pub(super) struct Transmitter {
    half: TransmitHalf,
    /// Packets handed to the ring since it was last submitted.
    pushed: u64,
    counters: Arc<Counters>,
}

impl Transmitter {
    pub(super) fn new(half: TransmitHalf, counters: Arc<Counters>) -> Self {
        Self {
            half,
            pushed: 0,
            counters,
        }
    }

    /// Puts an Ethernet frame into the ring; gives it back when there is no room and none comes soon.
    pub(super) fn push(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        if self.half.ring.free() == 0 && !self.make_room(pool) {
            return Err(frame);
        }
        let length = frame.len() as u32;
        let address = frame.into_addr();
        self.half.ring.push(Descriptor {
            address,
            length,
            options: 0,
        });
        self.pushed += 1;
        Ok(())
    }

    /// Has the kernel send what was put into the ring.
    pub(super) fn submit(&mut self, pool: &mut FramePool) {
        if self.pushed > 0 {
            self.counters.sent.fetch_add(self.pushed, Ordering::Relaxed);
            self.pushed = 0;
            self.half.ring.submit();
            self.kick(pool);
            self.reap(pool);
        }
    }

    /// Takes back frames that were sent, by whichever socket of the queue.
    pub(super) fn reap(&mut self, pool: &mut FramePool) {
        let mut completion = self.half.completion();
        while let Some(address) = completion.pop() {
            if let Some(frame) = pool.adopt(address) {
                pool.put(frame);
            }
        }
        completion.release();
    }

    /// In copy mode a call sends what its budget allows and says EAGAIN when some are left, as it does when
    /// the driver takes no more for the moment. What is left then would wait for the next packet, which
    /// may be long in coming.
    fn kick(&mut self, pool: &mut FramePool) {
        let mut left = self.half.ring.used();
        let mut waited = Duration::ZERO;
        while left > 0 && waited < PATIENCE {
            match self.half.wake() {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {}
                _ => return,
            }
            let before = std::mem::replace(&mut left, self.half.ring.used());
            if left == before {
                // Frames that were sent and not taken back are in the way of others.
                self.reap(pool);
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
        }
    }

    fn make_room(&mut self, pool: &mut FramePool) -> bool {
        self.half.ring.submit();
        self.kick(pool);
        self.reap(pool);
        if self.half.ring.free() == 0 {
            syscall::wait_writable(self.half.as_fd(), PATIENCE);
            self.reap(pool);
        }
        self.half.ring.free() > 0
    }
}

/// Transmits on one queue.
pub struct XskSender {
    transmitter: Transmitter,
    neighbours: Arc<Neighbours>,
    /// Empty between calls; kept for its capacity.
    rest: Burst,
}

impl XskSender {
    /// Takes a socket's half; sends nothing until it knows neighbours.
    pub fn new(half: TransmitHalf, counters: Arc<Counters>) -> Self {
        Self {
            transmitter: Transmitter::new(half, counters),
            neighbours: Arc::default(),
            rest: Burst::new(),
        }
    }

    /// Replaces what is known of peers.
    pub fn set_neighbours(&mut self, neighbours: Arc<Neighbours>) {
        self.neighbours = neighbours;
    }

    /// Takes the native ESP to known neighbours out of `burst` and sends it; the rest (also what
    /// does not fit the link, for the kernel to judge) stays, in order.
    pub fn send(&mut self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        self.transmitter.reap(pool);
        let neighbours = Arc::clone(&self.neighbours);
        if neighbours.links.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut self.rest);
        for mut frame in burst.drain() {
            let meta = frame.meta();
            let peer = meta.path.remote.ip();
            let key = (peer, meta.spi);
            let link = match meta.path.encapsulation {
                Encapsulation::Esp => neighbours.links.get(&peer),
                Encapsulation::Udp => None,
            };
            let octets = frame.len();
            let header = link
                .filter(|link| octets <= link.mtu)
                .and_then(|link| frame.prepend(ETHERNET).ok().map(|room| (room, link.header)));
            let Some((room, header)) = header else {
                rest.push(frame);
                continue;
            };
            room.copy_from_slice(&header);
            if let Err(frame) = self.transmitter.push(frame, pool) {
                drops.add(DropReason::WanFull);
                pool.put(frame);
                continue;
            }
            if let Some(counter) = neighbours.counters.get(&key) {
                counter.add(1, octets as u64);
            }
        }
        std::mem::swap(burst, &mut rest);
        self.rest = rest;
        self.transmitter.submit(pool);
    }
}

/// The senders that all outbound workers send through, in turns: where there are several workers, one
/// for each.
#[derive(Clone)]
pub struct SharedXskSenders(Arc<[Mutex<XskSender>]>);

impl SharedXskSenders {
    /// Shares senders.
    pub fn new(senders: impl Iterator<Item = XskSender>) -> Self {
        Self(senders.map(Mutex::new).collect())
    }

    /// [`XskSender::set_neighbours`] of all.
    pub fn set_neighbours(&self, neighbours: &Arc<Neighbours>) {
        for sender in self.0.iter() {
            lock(sender).set_neighbours(Arc::clone(neighbours));
        }
    }

    /// [`XskSender::send`] with the one that all packets of the burst's SA leave through: so they leave
    /// in their order. With several senders a burst is of one SA.
    pub fn send(&self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        let spi = burst.frames().first().map_or(0, |frame| frame.meta().spi) as usize;
        if let Some(place) = spi.checked_rem(self.0.len())
            && let Some(sender) = self.0.get(place)
        {
            lock(sender).send(burst, pool, drops);
        }
    }

    /// Takes back frames that were sent.
    pub fn reap(&self, pool: &mut FramePool) {
        for sender in self.0.iter() {
            lock(sender).transmitter.reap(pool);
        }
    }
}

fn lock(sender: &Mutex<XskSender>) -> MutexGuard<'_, XskSender> {
    // The rings are whole between calls.
    sender.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(octets: &[u8]) -> Frame {
        let mut frame = Arena::new(1, 2048).unwrap().take(1).get().unwrap();
        frame.append(octets.len()).unwrap().copy_from_slice(octets);
        frame
    }

    #[test]
    fn ethernet_and_its_padding_are_stripped() {
        let mut octets = vec![0u8; 60];
        octets[12..14].copy_from_slice(&[8, 0]);
        octets[14] = 0x45;
        octets[15] = 0xb8;
        octets[17] = 30;
        octets[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        let mut good = frame(&octets);
        outer_packet(&mut good).unwrap();
        assert_eq!(good.len(), 30);
        let meta = good.meta();
        assert_eq!(
            meta.path.remote.ip(),
            "192.0.2.1".parse::<IpAddr>().unwrap()
        );
        assert_eq!(meta.path.local.ip(), "192.0.2.2".parse::<IpAddr>().unwrap());
        assert_eq!(
            (meta.tos, meta.path.encapsulation),
            (0xb8, Encapsulation::Esp)
        );

        octets[17] = 47;
        assert_eq!(
            outer_packet(&mut frame(&octets)),
            Err(DropReason::Malformed)
        );
        octets[12] = 0x81;
        assert_eq!(
            outer_packet(&mut frame(&octets)),
            Err(DropReason::Unsupported)
        );
        for length in 0..34 {
            assert!(outer_packet(&mut frame(&octets[..length])).is_err());
        }
    }
}
