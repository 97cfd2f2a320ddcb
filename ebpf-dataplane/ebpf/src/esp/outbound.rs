//! From the plaintext interface to ESP on the WAN.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use espada_common::abi::SaOutKey;
use espada_common::abi::esp::{
    ENGINE_CLAMP_MSS, ENGINE_COPY_DSCP, ESP_ESN, EVENT_SEQ_LOW, EspConfig, EspEvent, FLOW_TRAP,
    MAX_INNER,
};
use espada_common::drops::DropReason;
use espada_common::wire::{Cursor, eth};

use super::aead::{self, Aad};
use super::inner::{self, Inner};
use super::maps::{self, OutboundSa};
use super::outer::{self, ESP, Outer};
use super::packet::{self, Work};
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
    match classify(ctx, work) {
        Err(reason) => {
            maps::count_out(reason);
            xdp_action::XDP_DROP
        }
        Ok((sa, inner)) => match protect(ctx, config, work, &sa, &inner) {
            Ok(action) => action,
            Err(reason) => {
                sa.dropped(reason);
                xdp_action::XDP_DROP
            }
        },
    }
}

/// Finds the SA of a packet.
#[inline(always)]
fn classify(ctx: *mut xdp_md, work: &mut Work) -> Result<(OutboundSa, Inner), DropReason> {
    let frame = LinearPacket::of_xdp(ctx);
    let ethertype = frame.read(12).ok_or(DropReason::Malformed)?;
    let inner = inner::parse(&frame, eth::HEADER_LEN, u16::from_be_bytes(ethertype))
        .ok_or(DropReason::Malformed)?;
    let (number, flow) =
        maps::flow(&inner.destination, &inner.source).ok_or(DropReason::NoPolicy)?;
    let handle = flow.handle;
    if handle == 0 {
        if flow.flags & FLOW_TRAP != 0 {
            maps::acquire(number, inner.source, inner.destination);
        }
        return Err(DropReason::NoSa);
    }
    // Both are there as long as the flow names the pair; a moment later they may be gone.
    let sa = maps::outbound(handle).ok_or(DropReason::NoSa)?;
    if !maps::pair(handle, &mut work.pair) || sa.entry().handle != handle {
        return Err(DropReason::NoSa);
    }
    Ok((sa, inner))
}

#[inline(always)]
fn protect(
    ctx: *mut xdp_md,
    config: &EspConfig,
    work: &mut Work,
    sa: &OutboundSa,
    inner: &Inner,
) -> Result<u32, DropReason> {
    let entry = sa.entry();
    let now = maps::now();
    if now >= entry.expires_ns {
        return Err(DropReason::Expired);
    }
    let len = inner.len;
    let most = work.pair.max_inner.min(MAX_INNER);
    // The route's MTU keeps such packets away from here, and tells their sender.
    if len > most as usize {
        return Err(DropReason::TooBig);
    }
    if !work.load(ctx, eth::HEADER_LEN, len) {
        return Err(DropReason::Internal);
    }
    if config.flags & ENGINE_CLAMP_MSS != 0 {
        inner::clamp_mss(work, inner, most);
    }
    let seq = next_seq(sa)?;
    let encrypted = trailer(work, len, if inner.v6 { IPV6 } else { IPV4 });
    let esn = entry.flags & ESP_ESN != 0;
    let aad = Aad::new(entry.spi_be, seq, esn);
    // RFC 7634 section 2: an IV must never repeat under a key; the sequence number does not.
    let iv = [((seq >> 32) as u32).to_be(), (seq as u32).to_be()];
    let s = aead::start(work, &entry.key, iv, &aad);
    aead::xor(work, encrypted);
    let tag = aead::tag(work, encrypted, &aad, s);
    for (index, word) in tag.into_iter().enumerate() {
        work.set_body(encrypted / 4 + index, word);
    }
    for beyond in 4..4 + 16 {
        work.set_body(encrypted / 4 + beyond, 0);
    }
    work.set_head(16, entry.spi_be);
    work.set_head(12, (seq as u32).to_be());
    let [iv0, iv1] = iv;
    work.set_head(8, iv0);
    work.set_head(4, iv1);

    let esp_len = ESP + encrypted + ICV;
    let tos = if config.flags & ENGINE_COPY_DSCP != 0 {
        inner.tos
    } else {
        // RFC 6040 section 4.1, normal mode: the ECN field is always copied.
        inner.tos & 3
    };
    let outer = Outer {
        tos,
        df: inner.df,
        id: seq as u16,
        esp_len,
    };
    outer::build(work, config, &outer);
    let key = SaOutKey {
        spi_be: entry.spi_be,
        peer: work.pair.remote,
    };
    let wire = (outer::outer_len(&work.pair) + esp_len) as u64;
    let (action, past_tc) =
        outer::send(ctx, work, esp_len, packet::frame_len(ctx)).ok_or(DropReason::Internal)?;
    if past_tc {
        crate::maps::count_out(&key, 1, wire);
    }
    sa.carried(len as u64, now);
    Ok(action)
}

/// RFC 4303 section 3.3.3: the number of the next packet. "The sender MUST NOT send a packet on an
/// SA if doing so would cause the sequence number to cycle."
#[inline(always)]
fn next_seq(sa: &OutboundSa) -> Result<u64, DropReason> {
    let entry = sa.entry();
    let seq = sa.next_seq();
    // With 64 bits the counter cannot come round in the lifetime of any machine.
    if entry.flags & ESP_ESN == 0 && seq > u64::from(u32::MAX) {
        return Err(DropReason::SequenceExhausted);
    }
    if seq == entry.seq_low {
        maps::tell(EspEvent {
            kind: EVENT_SEQ_LOW,
            number: entry.handle,
            source: Default::default(),
            destination: Default::default(),
            port: 0,
            padding: 0,
        });
    }
    Ok(seq)
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
