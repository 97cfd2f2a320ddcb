//! Packet memory: one mapped arena cut into frames, handed around as owned [`Frame`]s. The same
//! arena serves sockets (recv straight into a frame) and AF_XDP (the arena is the UMEM).
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use espada_common::sa::{Encapsulation, Path};

/// Packets a port moves at once, and the capacity a [`Burst`] starts with.
pub const BURST: usize = 64;

/// Octets a port leaves free before a received packet: outer IPv6 header, ESP header, IV and a
/// link-layer header fit.
pub const HEADROOM: usize = 128;

/// Octets the engine may add behind a packet: padding, trailer and the longest ICV.
pub const TAILROOM: usize = 64;

/// The frame has too little headroom or tailroom for what should be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room in the frame")]
pub struct NoRoom;

/// A transport checksum the sender left to be finished (CHECKSUM_PARTIAL of a VNET_HDR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Octet from the start of the packet where summing starts.
    pub start: u16,
    /// Octets behind `start` where the 16-bit checksum is stored.
    pub offset: u16,
}

/// What travels beside a frame's octets.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Inbound: where the packet arrived (`local`), who sent it (`remote`) and in what.
    /// Outbound, from the engine: where it must go and in what.
    pub path: Path,
    /// Type of service / traffic class octet of the outer header (DSCP and ECN).
    pub tos: u8,
    /// TTL or hop limit of the outer header.
    pub ttl: u8,
    /// Outbound: the outer IPv4 header carries (or must be sent with) Don't Fragment.
    pub df: bool,
    /// SPI of the SA that carries the packet, host byte order; 0 outside ESP.
    pub spi: u32,
    /// From a TUN: the checksum that must be completed before the packet leaves.
    pub checksum: Option<PartialChecksum>,
    /// Outbound, from the engine: the frame holds a row of ESP packets without anything between them, each of
    /// so many octets, the last one perhaps of fewer.
    pub row: Option<u16>,
}

impl Default for Meta {
    fn default() -> Self {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            path: Path {
                local: nowhere,
                remote: nowhere,
                encapsulation: Encapsulation::Esp,
            },
            tos: 0,
            ttl: 64,
            df: false,
            spi: 0,
            checksum: None,
            row: None,
        }
    }
}

/// Per-frame state outside the mapped memory. On cache lines of its own, as frames of one arena
/// may belong to several threads.
#[repr(align(64))]
struct Head {
    inner: UnsafeCell<Inner>,
    /// True while the frame's address is with a kernel ring and no `Frame` for it exists.
    lent: AtomicBool,
}

struct Inner {
    /// First octet of the frame; never changes.
    base: NonNull<u8>,
    start: u32,
    len: u32,
    meta: Meta,
}

/// One mapped memory region cut into equal frames.
pub struct Arena {
    base: NonNull<u8>,
    frame_size: usize,
    heads: Box<[Head]>,
    /// Frames already handed out by [`Arena::take`].
    taken: AtomicUsize,
}

// SAFETY: the mapped octets and each head's `inner` are reached only through the one `Frame` that
// exists for an index (`take` counts up, `into_addr`/`adopt` pass ownership through `lent`);
// the rest of the arena is immutable or atomic.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `frames` frames of `frame_size` octets, page aligned. For AF_XDP the size must be
    /// 2048 or 4096; otherwise any multiple of 64 up to 65536 will do. (Frames of 65536 octets
    /// do not hold the largest IP packet and its ESP overhead.)
    pub fn new(frames: usize, frame_size: usize) -> io::Result<Arc<Self>> {
        let valid = (1024..=65536).contains(&frame_size) && frame_size.is_multiple_of(64);
        let size = frame_size
            .checked_mul(frames)
            .filter(|size| valid && *size > 0)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "packet memory of {frames} frames of {frame_size} octets: \
                     frames must be 1024 to 65536 octets, a multiple of 64"
                    ),
                )
            })?;
        // SAFETY: a fresh anonymous mapping; no existing memory is affected.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        let heads = (0..frames)
            .map(|index| Head {
                inner: UnsafeCell::new(Inner {
                    // SAFETY: inside the mapping.
                    base: unsafe { base.add(index * frame_size) },
                    start: 0,
                    len: 0,
                    meta: Meta::default(),
                }),
                lent: AtomicBool::new(false),
            })
            .collect();
        Ok(Arc::new(Self {
            base,
            frame_size,
            heads,
            taken: AtomicUsize::new(0),
        }))
    }

    /// First octet, for the UMEM registration.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Octets mapped.
    pub fn size(&self) -> usize {
        self.heads.len() * self.frame_size
    }

    /// Octets per frame.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// A pool of the next `n` frames that no pool has yet, or of as many as are left.
    pub fn take(self: &Arc<Self>, n: usize) -> FramePool {
        let total = self.heads.len();
        let first = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                Some(taken.saturating_add(n).min(total))
            })
            .unwrap_or(total);
        let last = first.saturating_add(n).min(total);
        let mut free = Vec::with_capacity(total);
        // Lowest addresses are handed out first.
        let heads = self.heads.get(first..last).unwrap_or_default();
        free.extend(heads.iter().rev().map(|head| Frame {
            head: NonNull::from(head),
            arena: Arc::clone(self),
        }));
        FramePool {
            arena: Arc::clone(self),
            free,
            rows: Vec::new(),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this size; every frame holds a count on the
        // arena (lent ones too), so nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size()) };
    }
}

/// Free frames of one thread. Nothing is allocated after creation.
pub struct FramePool {
    arena: Arc<Arena>,
    free: Vec<Frame>,
    /// Free frames for rows of packets, of an arena of their own.
    rows: Vec<Frame>,
}

/// Octets of a frame for a row of packets: what the kernel takes at once.
pub const ROW: usize = 1 << 16;

impl FramePool {
    /// Adds the next `n` frames of an arena with frames of [`ROW`] octets, for rows of packets.
    pub fn with_rows(mut self, arena: &Arc<Arena>, n: usize) -> Self {
        self.rows = arena.take(n).free;
        self
    }

    /// A free frame, empty, with [`HEADROOM`] and default metadata.
    pub fn get(&mut self) -> Option<Frame> {
        self.free.pop().map(Frame::fresh)
    }

    /// A free frame for a row of packets, empty, with default metadata.
    pub fn get_row(&mut self) -> Option<Frame> {
        self.rows.pop().map(Frame::fresh)
    }

    /// Takes a frame back.
    pub fn put(&mut self, frame: Frame) {
        if Arc::ptr_eq(&frame.arena, &self.arena) {
            self.free.push(frame);
        } else {
            debug_assert_eq!(frame.arena.frame_size, ROW, "a frame of another arena");
            self.rows.push(frame);
        }
    }

    /// Gives frames beyond this pool's share to `reserve`, or takes what is missing of it from there.
    pub fn balance(&mut self, reserve: &Reserve) {
        reserve.frames.balance(&mut self.free);
        reserve.rows.balance(&mut self.rows);
    }

    /// Frames that are free now.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Frames for rows of packets that are free now.
    pub fn available_rows(&self) -> usize {
        self.rows.len()
    }

    /// The arena the frames live in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The frame that contains `addr`, which [`Frame::into_addr`] gave away and the kernel has
    /// returned. `None` when the address is outside the arena or was not given away (a kernel or
    /// ring bug): ownership is never doubled. The frame's range and metadata are as they were;
    /// call [`Frame::set_range`] with what the kernel wrote.
    pub fn adopt(&self, addr: u64) -> Option<Frame> {
        let index = usize::try_from(addr).ok()? / self.arena.frame_size;
        let head = self.arena.heads.get(index)?;
        if !head.lent.swap(false, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `into_addr` forgot exactly one strong count for this index when it set `lent`,
        // and the swap above made us its only taker.
        let arena = unsafe { Arc::from_raw(Arc::as_ptr(&self.arena)) };
        Some(Frame {
            head: NonNull::from(head),
            arena,
        })
    }
}

/// Frames that pools of the same arenas lend each other, where packets begin in one and end in another.
pub struct Reserve {
    frames: Shelf,
    rows: Shelf,
}

impl Reserve {
    /// For a number of pools with `share` frames each, and `rows` for rows of packets.
    pub fn new(pools: usize, share: usize, rows: usize) -> Self {
        Self {
            frames: Shelf::new(pools, share),
            rows: Shelf::new(pools, rows),
        }
    }
}

/// Frames of one arena in a [`Reserve`].
struct Shelf {
    frames: Mutex<Vec<Frame>>,
    /// Frames that a pool should have.
    share: usize,
    /// How many more or fewer it may have: all others together at their most leave it half its share.
    slack: usize,
}

impl Shelf {
    fn new(pools: usize, share: usize) -> Self {
        Self {
            frames: Mutex::new(Vec::with_capacity(pools * share)),
            share,
            slack: share / (2 * pools.max(1)),
        }
    }

    fn balance(&self, free: &mut Vec<Frame>) {
        let Self { share, slack, .. } = *self;
        if free.len() > share + slack {
            self.lock().extend(free.drain(share..));
        } else if free.len() + slack < share {
            let mut frames = self.lock();
            let kept = frames.len().saturating_sub(share - free.len());
            free.extend(frames.drain(kept..));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Frame>> {
        // A list of frames is one before and after each change.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Exclusive ownership of one frame: a range of octets with room before and behind, and metadata.
/// Give it back with [`FramePool::put`]: a frame that is merely dropped is lost to its arena.
pub struct Frame {
    /// Its place in the arena, so that the packet is two steps away.
    head: NonNull<Head>,
    arena: Arc<Arena>,
}

// SAFETY: it owns what it points to, in an arena that it keeps.
unsafe impl Send for Frame {}
// SAFETY: a shared `Frame` changes nothing.
unsafe impl Sync for Frame {}

impl Frame {
    fn inner(&self) -> &Inner {
        // SAFETY: `head` points into `arena`, and this is the only `Frame` for it; the borrow of
        // `self` keeps others from writing.
        unsafe { &*self.head.as_ref().inner.get() }
    }

    fn inner_mut(&mut self) -> &mut Inner {
        // SAFETY: as `inner`, exclusively borrowed.
        unsafe { &mut *self.head.as_ref().inner.get() }
    }

    /// Empty, with [`HEADROOM`] and default metadata.
    fn fresh(mut self) -> Self {
        self.reset(HEADROOM);
        *self.meta_mut() = Meta::default();
        self
    }

    fn ptr(&self) -> *mut u8 {
        self.inner().base.as_ptr()
    }

    /// Metadata.
    pub fn meta(&self) -> &Meta {
        &self.inner().meta
    }

    /// Metadata, to change.
    pub fn meta_mut(&mut self) -> &mut Meta {
        &mut self.inner_mut().meta
    }

    /// The packet.
    pub fn data(&self) -> &[u8] {
        let inner = self.inner();
        // SAFETY: start + len <= frame_size is kept by every method that changes them; octets of
        // the mapping are always initialised; `self` owns the frame.
        unsafe {
            std::slice::from_raw_parts(self.ptr().add(inner.start as usize), inner.len as usize)
        }
    }

    /// The packet, to change.
    pub fn data_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.inner().start as usize, self.inner().len as usize);
        // SAFETY: as `data`, exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(start), len) }
    }

    /// Octets of packet.
    pub fn len(&self) -> usize {
        self.inner().len as usize
    }

    /// How many packets it holds: one, or those of a row ([`Meta::row`]).
    pub fn packets(&self) -> usize {
        match self.meta().row {
            Some(_) => self.len().div_ceil(self.stride()),
            None => 1,
        }
    }

    /// Octets of each of its packets, at least one; the last of a row may have fewer.
    pub fn stride(&self) -> usize {
        self.meta().row.map_or(self.len(), usize::from).max(1)
    }

    /// No packet in the frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets free before the packet.
    pub fn headroom(&self) -> usize {
        self.inner().start as usize
    }

    /// Octets free behind the packet.
    pub fn tailroom(&self) -> usize {
        self.arena.frame_size - self.headroom() - self.len()
    }

    /// Empties the frame, leaving `headroom` octets (at most the frame's size) before what comes.
    pub fn reset(&mut self, headroom: usize) {
        let start = headroom.min(self.arena.frame_size) as u32;
        let inner = self.inner_mut();
        inner.start = start;
        inner.len = 0;
    }

    /// Makes `len` octets from octet `start` of the frame the packet.
    pub fn set_range(&mut self, start: usize, len: usize) -> Result<(), NoRoom> {
        match start.checked_add(len) {
            Some(end) if end <= self.arena.frame_size => {
                let inner = self.inner_mut();
                inner.start = start as u32;
                inner.len = len as u32;
                Ok(())
            }
            _ => Err(NoRoom),
        }
    }

    /// Grows the packet by `n` octets in front and returns them (with old content).
    pub fn prepend(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        let (start, len) = (self.headroom(), self.len());
        let start = start.checked_sub(n).ok_or(NoRoom)?;
        self.set_range(start, len + n)?;
        self.data_mut().get_mut(..n).ok_or(NoRoom)
    }

    /// Grows the packet by `n` octets behind and returns them (with old content).
    pub fn append(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        let (start, len) = (self.headroom(), self.len());
        self.set_range(start, len.checked_add(n).ok_or(NoRoom)?)?;
        self.data_mut().get_mut(len..).ok_or(NoRoom)
    }

    /// Takes `n` octets (at most all) off the front; they become headroom.
    pub fn trim_front(&mut self, n: usize) {
        let inner = self.inner_mut();
        let n = (n as u64).min(u64::from(inner.len)) as u32;
        inner.start += n;
        inner.len -= n;
    }

    /// Keeps the first `len` octets.
    pub fn truncate(&mut self, len: usize) {
        let inner = self.inner_mut();
        inner.len = (len as u64).min(u64::from(inner.len)) as u32;
    }

    /// Everything behind the packet, for a read or recv; follow with [`Frame::append`] of what came.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let from = self.headroom() + self.len();
        let room = self.tailroom();
        // SAFETY: from + room is the frame's size; exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(from), room) }
    }

    /// Where the frame begins in the arena.
    fn place(&self) -> usize {
        self.ptr().addr() - self.arena.base.addr().get()
    }

    /// Address of the packet's first octet in the arena, as AF_XDP descriptors want it.
    pub fn offset(&self) -> u64 {
        (self.place() + self.headroom()) as u64
    }

    /// Gives the frame to a kernel ring under this address; it comes back by [`FramePool::adopt`].
    /// The arena stays mapped while frames are lent.
    pub fn into_addr(self) -> u64 {
        let last = self.place() + self.arena.frame_size - 1;
        let addr = self.offset().min(last as u64);
        // SAFETY: as `inner`.
        let lent = unsafe { &self.head.as_ref().lent };
        lent.store(true, Ordering::Release);
        // `adopt` takes over this strong count.
        std::mem::forget(self);
        addr
    }
}

/// A reusable list of frames. Where there are more than [`BURST`] (trains of packets, fragments), the
/// list grows once and keeps its capacity.
pub struct Burst {
    frames: Vec<Frame>,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty burst with room for [`BURST`] frames.
    pub fn new() -> Self {
        Self {
            frames: Vec::with_capacity(BURST),
        }
    }

    /// Adds a frame at the end.
    pub fn push(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    /// Takes the last frame out.
    pub fn pop(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    /// Frames in the burst.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// No frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Holds [`BURST`] frames or more.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= BURST
    }

    /// The frames in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frames in order, to change.
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        &mut self.frames
    }

    /// Takes all frames out, in order.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Frame> {
        self.frames.drain(..)
    }

    /// Returns all frames to a pool.
    pub fn recycle(&mut self, pool: &mut FramePool) {
        for frame in self.frames.drain(..) {
            pool.put(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_inside_the_frame() {
        let arena = Arena::new(4, 2048).unwrap();
        let mut pool = arena.take(2);
        let mut frame = pool.get().unwrap();
        assert_eq!(
            (frame.headroom(), frame.len(), frame.tailroom()),
            (HEADROOM, 0, 2048 - HEADROOM)
        );
        frame.append(100).unwrap().fill(7);
        frame.prepend(HEADROOM).unwrap().fill(1);
        assert_eq!(frame.prepend(1), Err(NoRoom));
        assert_eq!(frame.append(2048), Err(NoRoom));
        assert_eq!(frame.append(usize::MAX), Err(NoRoom));
        assert_eq!(frame.set_range(2000, 49), Err(NoRoom));
        assert_eq!(frame.set_range(usize::MAX, 2), Err(NoRoom));
        assert_eq!(frame.len(), HEADROOM + 100);
        frame.trim_front(HEADROOM);
        frame.truncate(5000);
        assert_eq!(frame.data(), &[7; 100]);
        frame.trim_front(usize::MAX);
        assert!(frame.is_empty());
        assert_eq!(frame.spare_mut().len(), frame.tailroom());
        assert!(Arena::new(1, 100).is_err());
    }

    #[test]
    fn frames_are_never_owned_twice() {
        let arena = Arena::new(3, 2048).unwrap();
        let mut first = arena.take(2);
        let mut second = arena.take(5);
        assert_eq!(
            (
                first.available(),
                second.available(),
                arena.take(1).available()
            ),
            (2, 1, 0)
        );
        let frame = first.get().unwrap();
        let other = second.get().unwrap();
        assert_ne!(frame.offset() / 2048, other.offset() / 2048);
        let addr = frame.into_addr();
        let back = first.adopt(addr + 10).unwrap();
        assert!(first.adopt(addr).is_none());
        assert!(first.adopt(other.offset()).is_none());
        assert!(first.adopt(1 << 40).is_none());
        first.put(back);
        assert_eq!(first.available(), 2);
    }

    #[test]
    fn pools_keep_about_their_share() {
        let arena = Arena::new(300, 2048).unwrap();
        let rows = Arena::new(36, ROW).unwrap();
        let reserve = Reserve::new(3, 100, 12);
        let mut pools = [0; 3].map(|_| arena.take(100).with_rows(&rows, 12));
        // Packets begin in the first and end in the third.
        for _ in 0..1000 {
            let frames = [pools[0].get().unwrap(), pools[0].get_row().unwrap()];
            frames.into_iter().for_each(|frame| pools[2].put(frame));
            for pool in &mut pools {
                pool.balance(&reserve);
            }
            assert!(pools[0].available() >= 50 && pools[0].available_rows() >= 6);
            assert!(pools[2].available() <= 117 && pools[2].available_rows() <= 15);
        }
        let kept: usize = pools.iter().map(FramePool::available).sum();
        assert_eq!(kept + reserve.frames.lock().len(), 300);
        let kept: usize = pools.iter().map(FramePool::available_rows).sum();
        assert_eq!(kept + reserve.rows.lock().len(), 36);
    }

    #[test]
    fn a_lent_frame_keeps_the_arena() {
        let arena = Arena::new(1, 2048).unwrap();
        let weak = Arc::downgrade(&arena);
        let mut pool = arena.take(1);
        drop(arena);
        let addr = pool.get().unwrap().into_addr();
        assert_eq!(weak.strong_count(), 2);
        let frame = pool.adopt(addr).unwrap();
        drop(pool);
        drop(frame);
        assert_eq!(weak.strong_count(), 0);
    }
}
