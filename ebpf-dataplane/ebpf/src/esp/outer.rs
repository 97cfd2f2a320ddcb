//! Outer headers: built in the head of the work area, and the way they leave.

use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_fib_lookup;
use espada_common::abi::esp::{EspConfig, PAIR_UDP, PAIR_V6, PairEntry};
use espada_common::wire::protocol;

use super::maps;
use super::packet::{self, Pass, Work, passed, repeat};
use crate::packet::ingress;

/// Octets of ESP header and IV.
pub const ESP: usize = 16;
const UDP: usize = 8;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ETHERNET: usize = 14;

/// Octets of outer IP and UDP header of a pair.
#[inline(always)]
pub const fn outer_len(pair: &PairEntry) -> usize {
    let ip = if pair.flags & PAIR_V6 != 0 {
        IPV6
    } else {
        IPV4
    };
    if pair.flags & PAIR_UDP != 0 {
        ip + UDP
    } else {
        ip
    }
}

/// What differs from packet to packet.
pub struct Outer {
    /// DSCP and ECN.
    pub tos: u8,
    /// Don't Fragment.
    pub df: bool,
    /// Identification.
    pub id: u16,
    /// Octets of ESP, header to ICV.
    pub esp_len: usize,
}

/// Writes UDP and IP headers before the ESP header, and leaves room for the Ethernet header.
#[inline(always)]
pub fn build(work: &mut Work, config: &EspConfig, outer: &Outer) {
    let flags = work.pair.flags;
    let mut before = ESP;
    let mut len = outer.esp_len;
    let mut next = protocol::ESP;
    if flags & PAIR_UDP != 0 {
        before += UDP;
        len += UDP;
        next = protocol::UDP;
        let ports = u32::from(work.pair.local_port_be) | u32::from(work.pair.remote_port_be) << 16;
        work.set_head(before, ports);
        let udp_len = u32::from((len as u16).to_be());
        // RFC 3948 section 2.1: "the IPv4 UDP Checksum field SHOULD be transmitted as a zero
        // value". IPv6 receivers drop such packets.
        work.set_head(before - 4, udp_len);
        if flags & PAIR_V6 != 0 {
            let sum = udp_sum(work, outer.esp_len, len);
            work.set_head(before - 4, udp_len | u32::from(sum) << 16);
        }
    }
    if flags & PAIR_V6 != 0 {
        before += IPV6;
        // Constant per SA, so that load balancing keeps its packets in order (RFC 6438).
        let label = u32::from_be(work.pair.spi_out_be) & 0xf_ffff;
        work.set_head(
            before,
            (6 << 28 | u32::from(outer.tos) << 20 | label).to_be(),
        );
        let word = (len as u32) << 16 | u32::from(next) << 8 | config.ttl & 0xff;
        work.set_head(before - 4, word.to_be());
        for (index, word) in work.pair.local.words().into_iter().enumerate() {
            work.set_head(before - 8 - 4 * index, word);
        }
        for (index, word) in work.pair.remote.words().into_iter().enumerate() {
            work.set_head(before - 24 - 4 * index, word);
        }
        return;
    }
    before += IPV4;
    let total = (len + IPV4) as u32;
    let first = (0x45 << 24 | u32::from(outer.tos) << 16 | total).to_be();
    let second = (u32::from(outer.id) << 16 | u32::from(outer.df) << 14).to_be();
    let third = ((config.ttl & 0xff) << 24 | u32::from(next) << 16).to_be();
    let (local, remote) = (work.pair.local.v4_word(), work.pair.remote.v4_word());
    let sum = halves(first) + halves(second) + halves(third) + halves(local) + halves(remote);
    work.set_head(before, first);
    work.set_head(before - 4, second);
    work.set_head(before - 8, third | u32::from(!fold(sum)) << 16);
    work.set_head(before - 12, local);
    work.set_head(before - 16, remote);
}

/// Both halves of a word, added.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The UDP checksum over IPv6, as it lies in memory. Everything behind the datagram's end in its
/// last 64 octets of body must be zero.
#[inline(always)]
fn udp_sum(work: &mut Work, esp_len: usize, udp_len: usize) -> u16 {
    let mut sum = u32::from((udp_len as u16).to_be()) + u32::from(u16::from(protocol::UDP).to_be());
    let [l0, l1, l2, l3] = work.pair.local.words();
    let [r0, r1, r2, r3] = work.pair.remote.words();
    // Written out: the verifier before Linux 6.8 refuses the shape that a loop gets here.
    sum += halves(l0) + halves(l1) + halves(l2) + halves(l3);
    sum += halves(r0) + halves(r1) + halves(r2) + halves(r3);
    sum += halves(work.head(24)) + halves(work.head(20));
    sum += halves(work.head(16)) + halves(work.head(12));
    sum += halves(work.head(8)) + halves(work.head(4));
    work.sum = sum;
    let blocks = (esp_len - ESP).div_ceil(64) as u32;
    repeat(blocks, &mut Pass { work, more: () }, add_block);
    match !fold(work.sum) {
        0 => 0xffff,
        sum => sum,
    }
}

unsafe extern "C" fn add_block(index: u32, pass: *mut Pass<()>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, ()) = unsafe { passed(pass) };
    let mut sum = 0;
    if let Some(block) = work.block(index) {
        for word in block {
            sum += halves(*word);
        }
    }
    work.sum += sum;
    0
}

/// Ones' complement sum of the halves.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Puts an Ethernet header `before` octets before the body.
#[inline(always)]
pub fn ethernet(work: &mut Work, before: usize, destination: [u8; 6], source: [u8; 6], v6: bool) {
    let [d0, d1, d2, d3, d4, d5] = destination;
    let [s0, s1, s2, s3, s4, s5] = source;
    let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    // The header is two octets short of four words; they stay outside the frame.
    work.set_head(before + 16, u32::from_ne_bytes([0, 0, d0, d1]));
    work.set_head(before + 12, u32::from_ne_bytes([d2, d3, d4, d5]));
    work.set_head(before + 8, u32::from_ne_bytes([s0, s1, s2, s3]));
    work.set_head(before + 4, u32::from_ne_bytes([s4, s5, kind[0], kind[1]]));
}

/// Sends the ESP packet in the work area: straight to the WAN's driver where the kernel knows
/// the neighbour, else by way of the tc program behind, which has the kernel find it out.
#[inline(always)]
pub fn send(ctx: *mut xdp_md, work: &mut Work, esp_len: usize) -> Option<(u32, bool)> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let v6 = work.pair.flags & PAIR_V6 != 0;
    // SAFETY: plain octets, for which zero is a valid value.
    let mut fib: FibParams = unsafe { core::mem::zeroed() };
    fib.family = if v6 { AF_INET6 } else { AF_INET };
    fib.l4_protocol = protocol::ESP;
    fib.ifindex = ingress(ctx);
    if v6 {
        fib.__bindgen_anon_3.ipv6_src = work.pair.local.words();
        fib.__bindgen_anon_4.ipv6_dst = work.pair.remote.words();
    } else {
        fib.__bindgen_anon_3.ipv4_src = work.pair.local.v4_word();
        fib.__bindgen_anon_4.ipv4_dst = work.pair.remote.v4_word();
    }
    // SAFETY: the context the kernel handed over, and a structure of the size stated.
    let found =
        unsafe { bpf_fib_lookup(ctx.cast(), &raw mut fib, size_of::<FibParams>() as i32, 0) };
    let old = packet::frame_len(ctx);
    let before = outer_len(&work.pair) + ESP;
    let frame = ETHERNET + before - ESP + esp_len;
    if found == 0 {
        ethernet(work, before, fib.dmac, fib.smac, v6);
        if !work.store(ctx, before + ETHERNET, frame, old) {
            return None;
        }
        if let Ok(action) = maps::redirect(fib.ifindex) {
            return Some((action, true));
        }
    } else {
        ethernet(work, before, [0; 6], [0; 6], v6);
        if !work.store(ctx, before + ETHERNET, frame, old) {
            return None;
        }
    }
    packet::set_meta(ctx, work.pair.link).then_some((xdp_action::XDP_PASS, false))
}
