//! The work area of the eBPF engine: a packet is copied into it, worked on where the verifier can
//! see every bound, and copied back. Also the calls that change a packet's length, and the
//! kernel's loop.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{
    bpf_loop, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use espada_common::abi::esp::PairEntry;
use espada_common::drops::DropReason;
use espada_common::poly1305::Poly1305;
use espada_common::wire::{Address, Cursor, MAX_OFFSET};

use crate::packet::{bounded, load_u16, load_u32, plus};

/// Octets of the body that can be addressed: a power of two, as offsets are masked.
pub const BODY: usize = 4096;

/// Octets before the body: Ethernet, IPv6, UDP, ESP and IV, with room to spare.
pub const HEAD: usize = 128;

/// An ESP packet as the front end has parsed it. Handed over in memory rather than parsed again:
/// the verifier then has one path to follow instead of every way through the parser.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arrived {
    /// Source of the outer header.
    pub source: Address,
    /// Destination of the outer header.
    pub destination: Address,
    /// SPI as it stands in the packet.
    pub spi_be: u32,
    /// Sequence number, its low 32 bits.
    pub seq: u32,
    /// Where ESP begins in the frame.
    pub offset: u32,
    /// Octets of ESP, header to ICV.
    pub esp_len: u32,
    /// DSCP and ECN of the outer header.
    pub tos: u32,
    /// UDP source port, host byte order; 0 for native ESP.
    pub port: u32,
    /// A fragment.
    pub fragment: u32,
}

/// A packet between the steps, which are functions of their own: what one keeps on its stack, the
/// next need not carry, and the verifier does not follow every way through one into the next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Job {
    /// Full sequence number.
    pub seq: u64,
    /// Octets of the inner packet.
    pub len: u32,
    /// Octets of ciphertext.
    pub encrypted: u32,
    /// DSCP and ECN of the inner packet.
    pub tos: u32,
    /// 1: Don't Fragment.
    pub df: u32,
    /// 1: the inner packet is IPv6.
    pub v6: u32,
    /// Where a TCP header is in the inner packet; 0 without one.
    pub tcp: u32,
    /// Number of the slot with the packet's keystream, from 1 on; 0 without one.
    pub slot: u32,
}

/// How a step ends: 0 or more for success, else the complement of a `DropReason` number.
pub type Step = i32;

/// A step that failed.
#[inline(always)]
pub const fn failed(reason: DropReason) -> Step {
    !(reason as i32)
}

/// One processor's work area. The head ends where the body begins.
#[repr(C, align(8))]
pub struct Work {
    /// ChaCha20's state under the packet's nonce.
    pub state: [u32; 16],
    /// A block of its keystream. Not on the stack, where it would be cleared octet by octet first.
    pub keystream: [u32; 16],
    /// The authenticator.
    pub poly: Poly1305,
    /// Second half of its key.
    pub poly_s: [u32; 4],
    /// Octets that it covers besides the ciphertext.
    pub aad_len: u32,
    /// What it gave.
    pub tag: [u32; 4],
    /// What the packet says it should be.
    pub received: [u32; 4],
    /// Sum under way, for UDP checksums.
    pub sum: u32,
    /// What the front end found out about the packet before it called `espada_esp_in`.
    pub arrived: Arrived,
    /// What the steps tell each other.
    pub job: Job,
    /// The pair the packet belongs to, copied.
    pub pair: PairEntry,
    head: [u32; HEAD / 4],
    body: [u32; BODY / 4 + 32],
}

impl Work {
    /// A word of the head, by its place in octets before the body's start.
    #[inline(always)]
    pub fn set_head(&mut self, before: usize, word: u32) {
        if let Some(place) = self
            .head
            .get_mut(mask::<{ HEAD / 4 - 1 }>((HEAD - before) / 4))
        {
            *place = word;
        }
    }

    /// A word of the head.
    #[inline(always)]
    pub fn head(&self, before: usize) -> u32 {
        let place = self.head.get(mask::<{ HEAD / 4 - 1 }>((HEAD - before) / 4));
        place.copied().unwrap_or_default()
    }

    /// A word of the body.
    #[inline(always)]
    pub fn body(&self, index: usize) -> u32 {
        let place = self.body.get(mask::<{ BODY / 4 - 1 }>(index));
        place.copied().unwrap_or_default()
    }

    /// A word of the body, to change.
    #[inline(always)]
    pub fn set_body(&mut self, index: usize, word: u32) {
        if let Some(place) = self.body.get_mut(mask::<{ BODY / 4 - 1 }>(index)) {
            *place = word;
        }
    }

    /// Sixteen words from a block of 64 octets.
    #[inline(always)]
    pub fn block(&mut self, index: u32) -> Option<&mut [u32; 16]> {
        let start = mask::<{ BODY / 64 - 1 }>(index as usize) * 16;
        self.body.get_mut(start..)?.first_chunk_mut()
    }

    /// Four words from a block of 16 octets.
    #[inline(always)]
    pub fn quarter(&self, index: u32) -> Option<[u32; 4]> {
        let start = mask::<{ BODY / 16 - 1 }>(index as usize) * 4;
        self.body.get(start..)?.first_chunk().copied()
    }

    /// An octet of the body.
    #[inline(always)]
    pub fn octet(&self, at: usize) -> u8 {
        (self.body(at / 4) >> ((at & 3) * 8)) as u8
    }

    /// Changes an octet of the body.
    #[inline(always)]
    pub fn set_octet(&mut self, at: usize, octet: u8) {
        let shift = (at & 3) * 8;
        let word = self.body(at / 4) & !(0xff << shift) | u32::from(octet) << shift;
        self.set_body(at / 4, word);
    }

    /// The 16 bits at an even offset of the body, in network order.
    #[inline(always)]
    pub fn half(&self, at: usize) -> u16 {
        ((self.body(at / 4) >> ((at & 2) * 8)) as u16).swap_bytes()
    }

    /// Changes the 16 bits at an even offset of the body.
    #[inline(always)]
    pub fn set_half(&mut self, at: usize, value: u16) {
        let shift = (at & 2) * 8;
        let word = self.body(at / 4) & !(0xffff << shift) | u32::from(value.swap_bytes()) << shift;
        self.set_body(at / 4, word);
    }

    /// Copies `len` octets of the packet to the body, from `offset` on. False if they are not there
    /// or too many.
    #[inline(always)]
    pub fn load(&mut self, ctx: *mut xdp_md, offset: usize, len: usize) -> bool {
        let Some(len) = countable(len) else {
            return false;
        };
        // SAFETY: the helper writes `len` octets, at most BODY, or fails.
        unsafe { bpf_xdp_load_bytes(ctx, offset as u32, self.body.as_mut_ptr().cast(), len) == 0 }
    }

    /// The same, with the 16 octets before the body filled as well: ESP header and IV.
    #[inline(always)]
    pub fn load_esp(&mut self, ctx: *mut xdp_md, offset: usize, len: usize) -> bool {
        const ESP: usize = 16;
        let Some(len) = countable(len) else {
            return false;
        };
        let work: *mut Self = self;
        // SAFETY: the helper writes `len` octets, at most BODY, from 16 octets before the body's
        // start on, which lies in the same work area, or fails.
        unsafe {
            let start = (&raw mut (*work).head).cast::<u8>().add(HEAD - ESP);
            bpf_xdp_load_bytes(ctx, offset as u32, start.cast(), len) == 0
        }
    }

    /// Makes the packet the last `before` octets of the head and the first of the body, `len` in
    /// all. Only its beginning is moved: drivers promise headroom, not tailroom.
    #[inline(always)]
    pub fn store(&mut self, ctx: *mut xdp_md, before: usize, len: usize, old: usize) -> bool {
        let Some(len) = countable(len) else {
            return false;
        };
        let work: *mut Self = self;
        let start = mask::<{ HEAD - 1 }>(HEAD - before);
        // SAFETY: the helpers check against the packet's bounds; `len` octets, at most BODY, from a
        // place in the head on lie in the work area.
        unsafe {
            if bpf_xdp_adjust_head(ctx, old as i32 - len as i32) != 0 {
                return false;
            }
            let start = (&raw mut (*work).head).cast::<u8>().add(start);
            bpf_xdp_store_bytes(ctx, 0, start.cast(), len) == 0
        }
    }

    /// The body's first `len` octets as something to parse.
    #[inline(always)]
    pub fn cursor(&self, len: usize) -> BodyCursor {
        BodyCursor {
            base: (&raw const self.body) as usize,
            len,
        }
    }
}

/// A length that fits the body and is not 0, in a register that shows it to every verifier.
#[inline(always)]
fn countable(len: usize) -> Option<u32> {
    let last = len.wrapping_sub(1);
    (last < BODY - 1).then(|| plus::<1>(mask::<{ BODY - 1 }>(last)) as u32)
}

/// Masks a register out of the optimizer's sight, which would find the mask superfluous.
#[inline(always)]
pub fn mask<const MASK: usize>(value: usize) -> usize {
    const { assert!((MASK + 1).is_power_of_two()) };
    let mut masked = value;
    // SAFETY: masks a register, nothing else.
    unsafe {
        asm!("{0} &= {mask}", inout(reg) masked, mask = const MASK, options(pure, nomem, nostack));
    }
    masked
}

/// A packet in the body.
pub struct BodyCursor {
    base: usize,
    len: usize,
}

impl Cursor for BodyCursor {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const { assert!(N % 4 != 3) };
        const { assert!(2 * MAX_OFFSET + 64 <= BODY) };
        if offset > MAX_OFFSET || offset + N > self.len {
            return None;
        }
        let start = self.base + bounded(offset);
        let mut octets = [0; N];
        let (words, rest) = octets.as_chunks_mut::<4>();
        let tail = start + words.len() * 4;
        // SAFETY: below 2 * MAX_OFFSET + N octets of the body, which has more.
        unsafe {
            for (index, word) in words.iter_mut().enumerate() {
                *word = load_u32(start + index * 4).to_ne_bytes();
            }
            if let [first, second] = rest {
                [*first, *second] = load_u16(tail).to_ne_bytes();
            } else if let [octet] = rest {
                *octet = *(tail as *const u8);
            }
        }
        Some(octets)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }
}

/// Octets of the frame. Subtracted out of the optimizer's sight, which would do it with the halves
/// of registers that the verifier allows no pointers in.
#[inline(always)]
pub fn frame_len(ctx: *mut xdp_md) -> usize {
    // SAFETY: the kernel hands a valid context to the program; the instruction subtracts registers.
    unsafe {
        let data = (&raw const (*ctx).data).read_volatile() as usize;
        let mut end = (&raw const (*ctx).data_end).read_volatile() as usize;
        asm!("{0} -= {1}", inout(reg) end, in(reg) data, options(pure, nomem, nostack));
        end
    }
}

/// Puts a word before the packet that a tc program can read.
#[inline(always)]
pub fn set_meta(ctx: *mut xdp_md, word: u32) -> bool {
    // SAFETY: the helper moves `data_meta` or fails; the word is written only after the comparison
    // that the verifier asks for.
    unsafe {
        if bpf_xdp_adjust_meta(ctx, -4) != 0 {
            return false;
        }
        let (meta, data) = ((*ctx).data_meta as usize, (*ctx).data as usize);
        if plus::<4>(meta) > data {
            return false;
        }
        *(meta as *mut u32) = word;
    }
    true
}

/// What a loop's steps share: it lives on the stack, where the verifier can follow it.
pub struct Pass<T> {
    /// The work area.
    pub work: *mut Work,
    /// More.
    pub more: T,
}

/// Runs `step` for 0, 1, … as often as stated. The verifier looks at it once.
#[inline(always)]
pub fn repeat<T>(
    times: u32,
    pass: &mut Pass<T>,
    step: unsafe extern "C" fn(u32, *mut Pass<T>) -> i64,
) {
    // SAFETY: the kernel calls `step` with an index and the pointer given here, which is valid
    // throughout.
    unsafe {
        bpf_loop(
            times,
            step as *const () as *mut _,
            core::ptr::from_mut(pass).cast(),
            0,
        );
    }
}

/// The work area behind a loop's context.
///
/// # Safety
/// `pass` must be what the kernel handed to a step of [`repeat`].
#[inline(always)]
pub unsafe fn passed<'a, T>(pass: *mut Pass<T>) -> (&'a mut Work, &'a mut T) {
    // SAFETY: the pointer that `repeat` was given; the work area is a map value, which outlives
    // the program.
    unsafe { (&mut *(*pass).work, &mut (*pass).more) }
}
