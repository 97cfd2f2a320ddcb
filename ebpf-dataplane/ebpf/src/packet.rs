//! Packet pointers: the one place that touches what lies between `data` and `data_end`.

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::bpf_skb_load_bytes;
use espada_common::wire::{Cursor, MAX_OFFSET};

/// A packet whose octets, as far as the parser looks, are all in one piece.
pub struct LinearPacket {
    data: usize,
    end: usize,
}

impl LinearPacket {
    /// The packet of an XDP context.
    #[inline(always)]
    pub fn of_xdp(ctx: *mut xdp_md) -> Self {
        // SAFETY: the kernel hands a valid context to the program. Volatile: the optimizer would
        // hand the loaded halves to functions in place of the context, and the verifier then does
        // not know them for pointers.
        let (data, end) = unsafe {
            (
                (&raw const (*ctx).data).read_volatile(),
                (&raw const (*ctx).data_end).read_volatile(),
            )
        };
        Self {
            data: data as usize,
            end: end as usize,
        }
    }

    /// The packet of a tc context, unless part of it lies in page fragments where the parser
    /// may have to look.
    #[inline(always)]
    pub fn of_skb(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: the kernel hands a valid context to the program.
        let (data, end, len) = unsafe { ((*skb).data, (*skb).data_end, (*skb).len) };
        let packet = Self {
            data: data as usize,
            end: end as usize,
        };
        (packet.len() == len as usize).then_some(packet)
    }
}

impl Cursor for LinearPacket {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        linear(self.data, self.end, offset)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }
}

/// Octets copied from a packet in pieces: as far as the deepest read reaches.
const HEAD_LEN: usize = MAX_OFFSET + 32;

/// Room for them, and for whatever `bounded` lets through.
pub const ROOM: usize = 2 * MAX_OFFSET + 32;

/// A packet in pieces, its head copied out.
pub struct CopiedPacket {
    head: &'static [u8; ROOM],
    copied: usize,
    len: usize,
}

impl CopiedPacket {
    /// The packet of a tc context; `head` is this CPU's to overwrite.
    #[inline(always)]
    pub fn of_skb(skb: *mut __sk_buff, head: *mut [u8; ROOM]) -> Option<Self> {
        // SAFETY: the kernel hands a valid context to the program.
        let len = unsafe { (*skb).len } as usize;
        // At least 1 in the eyes of every verifier: those before Linux 6.8 learn nothing from a
        // comparison with 0. The helper refuses an empty packet.
        let copied = match len.wrapping_sub(1) {
            last if last < HEAD_LEN => plus::<1>(last),
            _ => HEAD_LEN,
        };
        // SAFETY: the helper writes `copied` octets, no more than `head` holds, or fails.
        let result = unsafe { bpf_skb_load_bytes(skb.cast(), 0, head.cast(), copied as u32) };
        // SAFETY: a map value lives as long as the program, and nothing else writes to it now.
        let head = unsafe { &*head };
        (result == 0).then_some(Self { head, copied, len })
    }
}

impl Cursor for CopiedPacket {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET || offset + N > self.copied {
            return None;
        }
        self.head.get(bounded(offset)..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }
}

/// How many packets a tc context stands for on the wire (segmentation offload).
#[inline(always)]
pub fn segments(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the kernel hands a valid context to the program.
    match unsafe { (*skb).gso_segs } {
        0 => 1,
        segments => u64::from(segments),
    }
}

#[inline(always)]
fn linear<const N: usize>(data: usize, end: usize, offset: usize) -> Option<[u8; N]> {
    if offset > MAX_OFFSET {
        return None;
    }
    const {
        assert!(
            N % 4 != 3,
            "one, two or a multiple of four octets at the end"
        )
    };
    let start = data + bounded(offset);
    if plus::<N>(start) > end {
        return None;
    }
    let mut octets = [0; N];
    let (words, rest) = octets.as_chunks_mut::<4>();
    let tail = start + words.len() * 4;
    // SAFETY: `start..start + N` was just checked to lie before `data_end`, which the verifier
    // proves again at load time.
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

/// Adds N out of the optimizer's sight. The verifier learns nothing from the comparison
/// `start >= end` that it would make of `start + 1 > end`.
#[inline(always)]
pub fn plus<const N: usize>(value: usize) -> usize {
    let mut sum = value;
    // SAFETY: adds to a register, nothing else.
    unsafe { asm!("{0} += {n}", inout(reg) sum, n = const N, options(pure, nomem, nostack)) };
    sum
}

/// An offset that was found to be at most MAX_OFFSET, in a register that shows it: the verifiers
/// before Linux 6.8 forget what a comparison taught them about other copies of the value.
#[inline(always)]
pub fn bounded(offset: usize) -> usize {
    const { assert!(MAX_OFFSET.is_power_of_two()) };
    let mut masked = offset;
    // SAFETY: masks a register, nothing else.
    unsafe {
        asm!("{0} &= {mask}", inout(reg) masked, mask = const 2 * MAX_OFFSET - 1, options(pure, nomem, nostack));
    }
    masked
}

// Packet fields are not aligned. The compiler would read them octet by octet, and letting it
// read words misaligned everywhere makes it do so on the stack, which the verifier refuses.

/// # Safety
/// Four octets of the packet must lie at `address`.
#[inline(always)]
pub unsafe fn load_u32(address: usize) -> u32 {
    let value: u64;
    // SAFETY: one load, from where the caller says there is a packet.
    unsafe {
        asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) address, options(pure, readonly, nostack));
    }
    value as u32
}

/// # Safety
/// Two octets of the packet must lie at `address`.
#[inline(always)]
pub unsafe fn load_u16(address: usize) -> u16 {
    let value: u64;
    // SAFETY: one load, from where the caller says there is a packet.
    unsafe {
        asm!("{0} = *(u16 *)({1} + 0)", out(reg) value, in(reg) address, options(pure, readonly, nostack));
    }
    value as u16
}

/// The interface a frame arrived on.
#[inline(always)]
pub fn ingress(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx).ingress_ifindex }
}

/// The word that an XDP program put before a tc context's packet.
#[inline(always)]
pub fn meta(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: the kernel hands a valid context to the program; the word is read only after the
    // comparison that the verifier asks for.
    unsafe {
        let (meta, data) = ((*skb).data_meta as usize, (*skb).data as usize);
        (plus::<4>(meta) <= data).then(|| load_u32(meta))
    }
}
