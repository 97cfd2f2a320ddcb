//! AF_XDP sockets and their rings: single-producer, single-consumer queues in memory shared with
//! the kernel. A socket splits into a receiving and a transmitting half that different threads
//! may own. Several sockets may be bound to one queue: each has rings of its own to receive and to send, and
//! all have in common where the kernel takes frames from and leaves them (`Frames`).
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::syscall;
use crate::umem::Arena;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h, since Linux 6.18.
const MAX_TX_SKB_BUDGET: i32 = 9;

/// What travels through a ring: a plain value of which any bit pattern is valid.
pub trait Entry: Copy {}
impl Entry for u64 {}

/// A packet in the UMEM (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Address of its first octet.
    pub address: u64,
    /// Octets.
    pub length: u32,
    /// Flags.
    pub options: u32,
}
impl Entry for Descriptor {}

/// One mapping of a ring.
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and no pointer into it outlives the ring that owns it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Pointers into a mapped ring. `cached` is our own index, `seen` the last known of the kernel's.
struct Ring<T> {
    _mapping: Option<Mapping>,
    ours: NonNull<AtomicU32>,
    theirs: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    cached: u32,
    seen: u32,
}

// SAFETY: the memory is shared with the kernel only; this value is its one user on our side, and
// every method that moves an index takes `&mut self`.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    fn ours(&self) -> &AtomicU32 {
        // SAFETY: points at an aligned u32 inside the mapping that this ring keeps alive.
        unsafe { self.ours.as_ref() }
    }

    fn theirs(&self) -> &AtomicU32 {
        // SAFETY: as `ours`.
        unsafe { self.theirs.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as `ours`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn slot(&self, index: u32) -> *mut T {
        // `size` is a power of two, so the masked index is below it whatever `index` is.
        let place = (index & (self.size - 1)) as usize;
        // SAFETY: the mapping holds `size` entries from `entries` on.
        unsafe { self.entries.as_ptr().add(place) }
    }
}

/// A ring that we fill.
pub struct Producer<T>(Ring<T>);

impl<T: Entry> Producer<T> {
    /// Entries that can be written now.
    pub fn free(&mut self) -> u32 {
        let ring = &mut self.0;
        ring.seen = ring.theirs().load(Ordering::Acquire);
        // A kernel index that ran ahead of ours would be a kernel bug: nothing is free then.
        ring.size
            .saturating_sub(ring.cached.wrapping_sub(ring.seen))
    }

    /// Entries that the kernel has not taken yet.
    pub fn used(&mut self) -> u32 {
        self.0.size - self.free()
    }

    /// Writes one entry; false when the ring is full. The kernel sees it after [`Self::submit`].
    pub fn push(&mut self, entry: T) -> bool {
        if self.0.cached.wrapping_sub(self.0.seen) >= self.0.size && self.free() == 0 {
            return false;
        }
        let slot = self.0.slot(self.0.cached);
        // SAFETY: a slot inside the ring that the kernel has consumed, so it is ours to write.
        unsafe { slot.write(entry) };
        self.0.cached = self.0.cached.wrapping_add(1);
        true
    }

    /// Hands what was written to the kernel.
    pub fn submit(&mut self) {
        let cached = self.0.cached;
        self.0.ours().store(cached, Ordering::Release);
    }

    /// The kernel waits for a system call before it looks at the ring.
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

/// A ring that the kernel fills.
pub struct Consumer<T>(Ring<T>);

impl<T: Entry> Consumer<T> {
    /// Takes one entry out, if there is one. The kernel may reuse its slot after [`Self::release`].
    pub fn pop(&mut self) -> Option<T> {
        let ring = &mut self.0;
        if ring.cached == ring.seen {
            ring.seen = ring.theirs().load(Ordering::Acquire);
            if ring.cached == ring.seen {
                return None;
            }
        }
        let slot = ring.slot(ring.cached);
        // SAFETY: a slot inside the ring that the kernel has published; any bits are a valid `T`.
        let entry = unsafe { slot.read() };
        ring.cached = ring.cached.wrapping_add(1);
        Some(entry)
    }

    /// Gives the slots of what was taken out back.
    pub fn release(&mut self) {
        let cached = self.0.cached;
        self.0.ours().store(cached, Ordering::Release);
    }
}

/// A socket to ask what was lost at it, whoever owns its halves.
#[derive(Clone, Debug)]
pub struct Watch(Arc<OwnedFd>);

impl Watch {
    /// Packets that the kernel had to drop because no frame or no place in the ring was free.
    pub fn lost(&self) -> u64 {
        let counted: io::Result<libc::xdp_statistics> = get(&self.0, libc::XDP_STATISTICS);
        counted.map_or(0, |counted| {
            counted.rx_dropped.wrapping_add(counted.rx_ring_full)
        })
    }
}

/// What all sockets of a queue have in common. Each lock is taken once a burst, and no other thread
/// wants it where a queue has one socket.
struct Frames {
    fill: Mutex<Producer<u64>>,
    completion: Mutex<Consumer<u64>>,
}

/// A ring's indices are in order whenever its lock is free.
fn lock<T>(ring: &Mutex<T>) -> MutexGuard<'_, T> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bound AF_XDP socket.
pub struct Socket {
    fd: Arc<OwnedFd>,
    /// Keeps the UMEM mapped.
    arena: Arc<Arena>,
    /// The driver moves packets without copying them.
    pub zero_copy: bool,
    /// Where it is bound.
    address: libc::sockaddr_xdp,
    busy: bool,
    receive: Consumer<Descriptor>,
    transmit: Producer<Descriptor>,
    frames: Arc<Frames>,
}

/// The half that receives.
pub struct ReceiveHalf {
    fd: Arc<OwnedFd>,
    _arena: Arc<Arena>,
    /// The driver is polled from here.
    busy: bool,
    /// Packets that arrived.
    pub ring: Consumer<Descriptor>,
    frames: Arc<Frames>,
}

/// The half that transmits.
pub struct TransmitHalf {
    fd: Arc<OwnedFd>,
    _arena: Arc<Arena>,
    /// Packets to send.
    pub ring: Producer<Descriptor>,
    frames: Arc<Frames>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for ReceiveHalf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for TransmitHalf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Opens a socket on receive queue `queue` of interface `link`, with the arena as its UMEM and
    /// `size` entries (a power of two) in each ring. Zero copy where the driver has it.
    pub fn open(arena: &Arc<Arena>, link: u32, queue: u32, size: u32) -> io::Result<Self> {
        if !size.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let fd = socket()?;
        let region = libc::xdp_umem_reg {
            addr: arena.base().as_ptr() as u64,
            len: arena.size() as u64,
            chunk_size: arena.frame_size() as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&fd, libc::XDP_UMEM_REG, &region)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING] {
            set(&fd, ring, &size)?;
        }
        let (receive, transmit) = own_rings(&fd, size)?;
        let offsets: libc::xdp_mmap_offsets = get(&fd, libc::XDP_MMAP_OFFSETS)?;
        let fill_offset = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let fill = map(&fd, fill_offset, &offsets.fr, size, true)?;
        let completion_offset = libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t;
        let completion = map(&fd, completion_offset, &offsets.cr, size, false)?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            // Neither COPY nor ZEROCOPY: the kernel takes the best the driver offers.
            sxdp_flags: libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: link,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        bind(&fd, &address)?;
        let options: libc::xdp_options = get(&fd, libc::XDP_OPTIONS)?;
        Ok(Self {
            fd: Arc::new(fd),
            arena: Arc::clone(arena),
            zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
            busy: false,
            receive: Consumer(receive),
            transmit: Producer(transmit),
            frames: Arc::new(Frames {
                fill: Mutex::new(Producer(fill)),
                completion: Mutex::new(Consumer(completion)),
            }),
            address,
        })
    }

    /// Opens another socket on the same queue with `size` entries in its rings: for another thread
    /// to receive and send there.
    pub fn open_beside(&self, size: u32) -> io::Result<Self> {
        let fd = socket()?;
        let (receive, transmit) = own_rings(&fd, size)?;
        let address = libc::sockaddr_xdp {
            // How the memory is used was said with the first socket.
            sxdp_flags: libc::XDP_SHARED_UMEM,
            sxdp_shared_umem_fd: self.fd.as_raw_fd() as u32,
            ..self.address
        };
        bind(&fd, &address)?;
        Ok(Self {
            fd: Arc::new(fd),
            arena: Arc::clone(&self.arena),
            zero_copy: self.zero_copy,
            busy: false,
            receive: Consumer(receive),
            transmit: Producer(transmit),
            frames: Arc::clone(&self.frames),
            address: self.address,
        })
    }

    /// Has whoever waits for packets poll the driver for `microseconds` instead of being interrupted
    /// (Linux 5.11).
    pub fn poll_busily(&mut self, microseconds: u32) -> io::Result<()> {
        /// Packets at one poll, as the kernel has it of itself.
        const BUDGET: i32 = 64;
        let microseconds = i32::try_from(microseconds).unwrap_or(i32::MAX);
        for (option, value) in [
            (libc::SO_PREFER_BUSY_POLL, 1),
            (libc::SO_BUSY_POLL, microseconds),
            (libc::SO_BUSY_POLL_BUDGET, BUDGET),
        ] {
            syscall::set_option(self.fd.as_fd(), libc::SOL_SOCKET, option, value)?;
        }
        self.busy = true;
        Ok(())
    }

    /// A view of what is lost.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.fd))
    }

    /// The two halves.
    pub fn split(self) -> (ReceiveHalf, TransmitHalf) {
        let receive = ReceiveHalf {
            fd: Arc::clone(&self.fd),
            _arena: Arc::clone(&self.arena),
            busy: self.busy,
            ring: self.receive,
            frames: Arc::clone(&self.frames),
        };
        let transmit = TransmitHalf {
            fd: self.fd,
            _arena: self.arena,
            ring: self.transmit,
            frames: self.frames,
        };
        (receive, transmit)
    }
}

impl ReceiveHalf {
    /// Where the kernel finds frames to receive into.
    pub fn fill(&self) -> MutexGuard<'_, Producer<u64>> {
        lock(&self.frames.fill)
    }

    /// Wakes the kernel if it waits for frames to receive into, as `waits` says, or has it poll the
    /// driver.
    pub fn wake(&self, waits: bool) {
        if self.busy || waits {
            // SAFETY: no buffer is given.
            unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    std::ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
        }
    }
}

impl TransmitHalf {
    /// Where the kernel leaves frames that were sent, by whichever socket of the queue.
    pub fn completion(&self) -> MutexGuard<'_, Consumer<u64>> {
        lock(&self.frames.completion)
    }

    /// Has the kernel send what is in the ring, if it waits to be told. EAGAIN: some are left.
    pub fn wake(&self) -> io::Result<()> {
        if !self.ring.needs_wakeup() {
            return Ok(());
        }
        // SAFETY: no buffer and no address are given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that is not negative is ours.
    unsafe {
        let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The rings that every socket has for itself, to receive and to transmit.
fn own_rings(fd: &OwnedFd, size: u32) -> io::Result<(Ring<Descriptor>, Ring<Descriptor>)> {
    for ring in [libc::XDP_RX_RING, libc::XDP_TX_RING] {
        set(fd, ring, &size)?;
    }
    // In copy mode a call sends 32 packets at most unless told otherwise; older kernels do not
    // know the option and take more calls.
    let _ = set(fd, MAX_TX_SKB_BUDGET, &256u32);
    // In copy mode a ring full of packets may be on its way.
    super::udp::grow_buffers(fd.as_fd());
    let offsets: libc::xdp_mmap_offsets = get(fd, libc::XDP_MMAP_OFFSETS)?;
    let receive = map(fd, libc::XDP_PGOFF_RX_RING, &offsets.rx, size, false)?;
    let transmit = map(fd, libc::XDP_PGOFF_TX_RING, &offsets.tx, size, true)?;
    Ok((receive, transmit))
}

fn bind(fd: &OwnedFd, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: pointer and length describe `address`.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
        )
    };
    if bound == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set<T>(fd: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A kernel structure of plain integers.
fn get<T: Plain>(fd: &OwnedFd, option: i32) -> io::Result<T> {
    // SAFETY: `T` consists of integers, for which zero is valid.
    let mut value: T = unsafe { zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // A kernel before 5.4 answers in a shorter layout, which this code does not read.
    if length as usize != size_of::<T>() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel's AF_XDP is too old (Linux 5.4 or later is needed)",
        ));
    }
    Ok(value)
}

/// Structures that [`get`] may read.
trait Plain {}
impl Plain for libc::xdp_mmap_offsets {}
impl Plain for libc::xdp_options {}
impl Plain for libc::xdp_statistics {}

fn map<T: Entry>(
    fd: &OwnedFd,
    page_offset: libc::off_t,
    offsets: &libc::xdp_ring_offset,
    size: u32,
    producer: bool,
) -> io::Result<Ring<T>> {
    let length = offsets.desc as usize + size as usize * size_of::<T>();
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            page_offset,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base: NonNull<u8> = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
    let mapping = Mapping { base, length };
    let ends = [offsets.producer, offsets.consumer, offsets.flags]
        .into_iter()
        .all(|at| at as usize + size_of::<u32>() <= length && at.is_multiple_of(4));
    if !ends || !offsets.desc.is_multiple_of(8) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel described its rings wrongly",
        ));
    }
    // SAFETY: checked above to lie inside the mapping, aligned.
    let word = |at: u64| unsafe { base.add(at as usize).cast::<AtomicU32>() };
    let (ours, theirs) = if producer {
        (word(offsets.producer), word(offsets.consumer))
    } else {
        (word(offsets.consumer), word(offsets.producer))
    };
    // SAFETY: `length` was computed so that the entries fit behind `desc`.
    let entries = unsafe { base.add(offsets.desc as usize).cast::<T>() };
    let mut ring = Ring {
        _mapping: Some(mapping),
        ours,
        theirs,
        flags: word(offsets.flags),
        entries,
        size,
        cached: 0,
        seen: 0,
    };
    ring.cached = ring.ours().load(Ordering::Relaxed);
    ring.seen = ring.theirs().load(Ordering::Acquire);
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of one ring in ordinary memory, as the kernel and we would have them.
    struct Shared {
        words: Box<[AtomicU32; 3]>,
        entries: Box<[u64]>,
    }

    impl Shared {
        fn new(size: usize, start: u32) -> Self {
            let words = Box::new([const { AtomicU32::new(0) }; 3]);
            words[0].store(start, Ordering::Relaxed);
            words[1].store(start, Ordering::Relaxed);
            Self {
                words,
                entries: vec![0; size].into(),
            }
        }

        fn end(&mut self, producer: bool) -> Ring<u64> {
            let (ours, theirs) = if producer { (0, 1) } else { (1, 0) };
            let start = self.words[0].load(Ordering::Relaxed);
            Ring {
                _mapping: None,
                ours: NonNull::from(&self.words[ours]),
                theirs: NonNull::from(&self.words[theirs]),
                flags: NonNull::from(&self.words[2]),
                entries: NonNull::new(self.entries.as_mut_ptr()).unwrap(),
                size: self.entries.len() as u32,
                cached: start,
                seen: start,
            }
        }
    }

    #[test]
    fn entries_pass_in_order_across_the_wrap_of_the_index() {
        let mut shared = Shared::new(8, u32::MAX - 5);
        let mut producer = Producer(shared.end(true));
        let mut consumer = Consumer(shared.end(false));
        let (mut next, mut expected) = (0u64, 0u64);
        for step in 0..200 {
            for _ in 0..step % 7 + 1 {
                if producer.push(next) {
                    next += 1;
                }
            }
            assert!(consumer.pop().is_none_or(|entry| {
                expected += 1;
                entry == expected - 1
            }));
            producer.submit();
            for _ in 0..step % 5 {
                if let Some(entry) = consumer.pop() {
                    assert_eq!(entry, expected);
                    expected += 1;
                }
            }
            consumer.release();
            assert!(next - expected <= 8);
        }
        assert!(expected > 200);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_unreleased_slot_is_not_reused() {
        let mut shared = Shared::new(4, 7);
        let mut producer = Producer(shared.end(true));
        let mut consumer = Consumer(shared.end(false));
        assert!((0..4).all(|entry| producer.push(entry)));
        assert!(!producer.push(4));
        assert_eq!(consumer.pop(), None);
        producer.submit();
        assert_eq!(consumer.pop(), Some(0));
        assert!(!producer.push(4));
        consumer.release();
        assert_eq!(producer.free(), 1);
        assert!(producer.push(4));
        assert!(!producer.push(5));
    }

    #[test]
    fn threads_on_both_ends_agree() {
        let mut shared = Shared::new(64, u32::MAX - 1000);
        let mut producer = Producer(shared.end(true));
        let mut consumer = Consumer(shared.end(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0u64;
                while next < 100_000 {
                    if producer.push(next) {
                        next += 1;
                    } else {
                        producer.submit();
                        std::thread::yield_now();
                    }
                }
                producer.submit();
            });
            scope.spawn(move || {
                let mut expected = 0u64;
                while expected < 100_000 {
                    match consumer.pop() {
                        Some(entry) => {
                            assert_eq!(entry, expected);
                            expected += 1;
                        }
                        None => {
                            consumer.release();
                            std::thread::yield_now();
                        }
                    }
                }
            });
        });
    }
}
