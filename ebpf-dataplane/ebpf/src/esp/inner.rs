//! The inner packet, on its way in and out.

use espada_common::wire::{Address, Cursor, eth, ipv4, ipv6, protocol};

use super::packet::{Job, Pass, Work, passed, repeat};

/// What the engine must know of an inner packet.
#[derive(Clone, Copy)]
pub struct Inner {
    pub source: Address,
    pub destination: Address,
    /// DSCP and ECN.
    pub tos: u8,
    /// Don't Fragment; always for IPv6.
    pub df: bool,
    pub v6: bool,
    /// Octets, by its own header.
    pub len: usize,
    /// Where a TCP header is, from the packet's start; 0 without one.
    pub tcp: usize,
}

impl Inner {
    /// Leaves for later steps what they need of it.
    #[inline(always)]
    pub fn note(&self, job: &mut Job) {
        job.len = self.len as u32;
        job.tos = u32::from(self.tos);
        job.df = u32::from(self.df);
        job.v6 = u32::from(self.v6);
        job.tcp = self.tcp as u32;
    }
}

/// Reads the header at `offset`.
#[inline(always)]
pub fn parse<C: Cursor>(packet: &C, offset: usize, ethertype: u16) -> Option<Inner> {
    match ethertype {
        eth::IPV4 => {
            let header = ipv4::header(packet, offset)?;
            let [flags, _] = packet.read(offset + 6)?;
            let tcp = header.protocol == protocol::TCP && header.fragment_offset == 0;
            Some(Inner {
                source: header.source,
                destination: header.destination,
                tos: header.tos,
                df: flags & 0x40 != 0,
                v6: false,
                len: header.total_len,
                tcp: if tcp { header.header_len } else { 0 },
            })
        }
        eth::IPV6 => {
            let header = ipv6::header(packet, offset)?;
            let upper = ipv6::upper(packet, offset, header.next_header)?;
            let first = match upper.fragment {
                Some(fragment) => fragment.offset == 0,
                None => true,
            };
            let tcp = upper.protocol == protocol::TCP && first;
            Some(Inner {
                source: header.source,
                destination: header.destination,
                tos: header.tos,
                df: true,
                v6: true,
                len: header.total_len,
                tcp: if tcp { upper.offset - offset } else { 0 },
            })
        }
        _ => None,
    }
}

/// RFC 6040 figure 4: the inner ECN field after decapsulation; `None`: drop the packet.
#[inline(always)]
pub const fn decapsulated_ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Sets the ECN field of the packet in the body.
#[inline(always)]
pub fn set_ecn(work: &mut Work, v6: bool, field: u8) {
    let old = work.half(0);
    if v6 {
        // The traffic class lies across the first two octets.
        work.set_half(0, old & !0x30 | u16::from(field) << 4);
        return;
    }
    let new = old & !3 | u16::from(field);
    work.set_half(0, new);
    let sum = adjust(work.half(10), old, new);
    work.set_half(10, sum);
}

/// Corrects a checksum for a 16-bit word that changed (RFC 1624 equation 3).
#[inline(always)]
fn adjust(sum: u16, old: u16, new: u16) -> u16 {
    let folded = u32::from(!sum) + u32::from(!old) + u32::from(new);
    let folded = (folded & 0xffff) + (folded >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

/// A walk over TCP options.
struct Options {
    /// Offset of the TCP header in the body.
    tcp: usize,
    /// Offset of the next option.
    at: usize,
    /// Where the options end.
    end: usize,
    mss: u16,
}

/// Lowers the MSS of a SYN in the body so that segments fit inner packets of `most` octets; assumes
/// headers without options, as everybody does. The packet is the one of the job.
#[inline(always)]
pub fn clamp_mss(work: &mut Work, most: u32) {
    const SYN: u8 = 0x02;
    const MAX_OPTIONS: u32 = 40;
    let (tcp, len) = (work.job.tcp as usize, work.job.len as usize);
    if tcp == 0 || tcp + 20 > len || work.octet(tcp + 13) & SYN == 0 {
        return;
    }
    let headers = if work.job.v6 != 0 { 60 } else { 40 };
    let header_len = usize::from(work.octet(tcp + 12) >> 4) * 4;
    let mut pass = Pass {
        work,
        more: Options {
            tcp,
            at: tcp + 20,
            end: (tcp + header_len).min(len),
            mss: most.saturating_sub(headers).min(u32::from(u16::MAX)) as u16,
        },
    };
    repeat(MAX_OPTIONS, &mut pass, option);
}

unsafe extern "C" fn option(_: u32, pass: *mut Pass<Options>) -> i64 {
    const NEXT: i64 = 0;
    const LAST: i64 = 1;
    // SAFETY: called by `repeat`.
    let (work, walk) = unsafe { passed(pass) };
    if walk.at >= walk.end {
        return LAST;
    }
    let len = match work.octet(walk.at) {
        0 => return LAST,
        1 => 1,
        2 if walk.at + 4 <= walk.end && work.octet(walk.at + 1) == 4 => {
            lower_mss(work, walk);
            return LAST;
        }
        _ => usize::from(work.octet(walk.at + 1)),
    };
    if len == 0 || (len == 1 && work.octet(walk.at) != 1) {
        return LAST;
    }
    walk.at += len;
    NEXT
}

#[inline(always)]
fn lower_mss(work: &mut Work, walk: &Options) {
    let [high, low] = [work.octet(walk.at + 2), work.octet(walk.at + 3)];
    let old = u16::from_be_bytes([high, low]);
    if old <= walk.mss {
        return;
    }
    let new = walk.mss;
    work.set_octet(walk.at + 2, (new >> 8) as u8);
    work.set_octet(walk.at + 3, new as u8);
    let sum = work.half(walk.tcp + 16);
    // An option at an odd place straddles two words of the sum: with the octets of both values
    // swapped, the ones' complement sum comes out right.
    let sum = if (walk.at - walk.tcp) & 1 == 0 {
        adjust(sum, old, new)
    } else {
        adjust(sum, old.swap_bytes(), new.swap_bytes())
    };
    work.set_half(walk.tcp + 16, sum);
}
