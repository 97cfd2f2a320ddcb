//! From the plaintext interface to ESP on the WAN.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use espada_common::abi::esp::{
    ENGINE_CLAMP_MSS, ENGINE_COPY_DSCP, ESP_ESN, EVENT_SEQ_LOW, EspConfig, EspEvent, FLOW_TRAP,
    MAX_INNER,
};
use espada_common::drops::DropReason;
use espada_common::wire::{Address, Cursor, eth};

use super::aead;
use super::inner;
use super::maps::{self, OutboundSa};
use super::outer::{self, ESP, Outer};
use super::packet::{self, Step, Work, failed};
use crate::packet::LinearPacket;

/// Padding, its length, and the next header (RFC 4303 section 2).
const TRAILER: usize = 2;
const ICV: usize = 16;
const IPV4: u32 = 4;
const IPV6: u32 = 41;

/// Encrypts a frame that was routed into the plaintext interface and sends it.
#[inline(always)]
pub fn run(ctx: *mut xdp_md) -> u32 {
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return xdp_action::XDP_ABORTED;
    };
    let classified = classify(ctx, work);
    if classified < 0 {
        maps::count_out(classified);
        return xdp_action::XDP_DROP;
    }
    // There as long as the flow names the pair; a moment later it may be gone.
    let handle = work.pair.handle;
    let Some(sa) = maps::outbound(handle).filter(|sa| sa.entry().handle == handle) else {
        maps::count_out(failed(DropReason::NoSa));
        return xdp_action::XDP_DROP;
    };
    let mut step = prepare(ctx, config, work, sa);
    if step >= 0 {
        seal(work, sa);
        step = finish(ctx, config, work, sa);
        if step >= 0 {
            return step as u32;
        }
    }
    sa.dropped(step);
    xdp_action::XDP_DROP
}

/// Finds the pair of a packet.
#[inline(never)]
fn classify(ctx: *mut xdp_md, work: &mut Work) -> Step {
    let frame = LinearPacket::of_xdp(ctx);
    let Some(ethertype) = frame.read(12) else {
        return failed(DropReason::Malformed);
    };
    let Some(inner) = inner::parse(&frame, eth::HEADER_LEN, u16::from_be_bytes(ethertype)) else {
        return failed(DropReason::Malformed);
    };
    inner.note(&mut work.job);
    let Some((number, flow)) = maps::flow(&inner.destination, &inner.source) else {
        return failed(DropReason::NoPolicy);
    };
    let handle = flow.handle;
    if handle == 0 {
        if flow.flags & FLOW_TRAP != 0 {
            maps::acquire(number, inner.source, inner.destination);
        }
        return failed(DropReason::NoSa);
    }
    if maps::pair(handle, &mut work.pair) {
        0
    } else {
        failed(DropReason::NoSa)
    }
}

/// Copies the packet, and gives it its number and trailer.
#[inline(never)]
fn prepare(ctx: *mut xdp_md, config: &EspConfig, work: &mut Work, sa: OutboundSa) -> Step {
    let entry = sa.entry();
    if maps::now() >= entry.expires_ns {
        return failed(DropReason::Expired);
    }
    let len = work.job.len;
    let most = work.pair.max_inner.min(MAX_INNER);
    if work.pair.link == 0 {
        return failed(DropReason::NoRoute);
    }
    // The route's MTU keeps such packets away from here, and tells their sender.
    if len > most {
        return failed(DropReason::TooBig);
    }
    if !work.load(ctx, eth::HEADER_LEN, len as usize) {
        return failed(DropReason::Internal);
    }
    if config.flags & ENGINE_CLAMP_MSS != 0 {
        inner::clamp_mss(work, most);
    }
    let Some(seq) = next_seq(sa) else {
        return failed(DropReason::SequenceExhausted);
    };
    work.job.seq = seq;
    let (high, low) = (((seq >> 32) as u32).to_be(), (seq as u32).to_be());
    work.set_head(16, entry.spi_be);
    work.set_head(12, low);
    // RFC 7634 section 2: an IV must never repeat under a key; the sequence number does not.
    work.set_head(8, high);
    work.set_head(4, low);
    let next = if work.job.v6 != 0 { IPV6 } else { IPV4 };
    work.job.encrypted = trailer(work, len as usize, next) as u32;
    0
}

/// Encrypts and authenticates.
#[inline(always)]
fn seal(work: &mut Work, sa: OutboundSa) {
    let entry = sa.entry();
    let encrypted = work.job.encrypted as usize;
    aead::take(work, false);
    aead::start(work, &entry.key, entry.spi_be, entry.flags & ESP_ESN != 0);
    aead::xor(work, encrypted);
    aead::done(work, false);
    aead::tag(work, encrypted);
    append_tag(work);
}

/// Puts the tag behind the ciphertext, and zeros behind it: UDP checksums are summed in whole
/// blocks.
#[inline(never)]
fn append_tag(work: &mut Work) {
    let end = work.job.encrypted as usize / 4;
    for (index, word) in work.tag.into_iter().enumerate() {
        work.set_body(end + index, word);
    }
    for beyond in 4..4 + 16 {
        work.set_body(end + beyond, 0);
    }
}

/// Puts the outer headers before it and sends it.
#[inline(never)]
fn finish(ctx: *mut xdp_md, config: &EspConfig, work: &mut Work, sa: OutboundSa) -> Step {
    let esp_len = ESP + work.job.encrypted as usize + ICV;
    let tos = work.job.tos as u8;
    let outer = Outer {
        tos: if config.flags & ENGINE_COPY_DSCP != 0 {
            tos
        } else {
            // RFC 6040 section 4.1, normal mode: the ECN field is always copied.
            tos & 3
        },
        df: work.job.df != 0,
        id: work.job.seq as u16,
        esp_len,
    };
    outer::build(work, config, &outer);
    let Some((action, past_tc)) = outer::send(ctx, work, esp_len) else {
        return failed(DropReason::Internal);
    };
    if past_tc {
        let wire = (outer::outer_len(&work.pair) + esp_len) as u64;
        crate::maps::count_out_at(work.pair.slot, 1, wire);
    }
    sa.carried(u64::from(work.job.len), work.job.slot != 0, maps::now());
    action as Step
}

/// RFC 4303 section 3.3.3: the number of the next packet. "The sender MUST NOT send a packet on an
/// SA if doing so would cause the sequence number to cycle."
#[inline(always)]
fn next_seq(sa: OutboundSa) -> Option<u64> {
    let entry = sa.entry();
    let seq = sa.next_seq();
    // With 64 bits the counter cannot come round in the lifetime of any machine.
    if entry.flags & ESP_ESN == 0 && seq > u64::from(u32::MAX) {
        return None;
    }
    if seq == entry.seq_low {
        maps::tell(EspEvent {
            kind: EVENT_SEQ_LOW,
            number: entry.handle,
            source: Address::default(),
            destination: Address::default(),
            port: 0,
            padding: 0,
        });
    }
    Some(seq)
}

/// Puts padding, pad length and next header behind the packet of `len` octets in the body. Gives
/// the length with them, a multiple of 4. RFC 4303 section 2.4: padding octets are 1, 2, 3, …
#[inline(always)]
fn trailer(work: &mut Work, len: usize, next: u32) -> usize {
    let index = len / 4;
    let word = work.body(index);
    let next = next << 24;
    match len & 3 {
        0 => work.set_body(index, next | 0x0002_0201),
        1 => work.set_body(index, next | 0x0001_0100 | word & 0xff),
        2 => work.set_body(index, next | word & 0xffff),
        _ => {
            work.set_body(index, 0x0100_0000 | word & 0x00ff_ffff);
            work.set_body(index + 1, next | 0x0003_0302);
            return (index + 2) * 4;
        }
    }
    (index + 1) * 4
}

const _: () =
    assert!(TRAILER == 2 && MAX_INNER as usize + 4 + TRAILER + ICV + 64 + 80 < packet::BODY);
