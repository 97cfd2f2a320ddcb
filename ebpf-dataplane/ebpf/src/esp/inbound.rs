//! From ESP on the WAN to the plaintext interface.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use espada_common::abi::esp::{
    ENGINE_CLAMP_MSS, ESP_ESN, EVENT_MOVED, EspConfig, EspEvent, EspInEntry, MAX_INNER,
    MAX_SELECTORS, PAIR_UDP, Range,
};
use espada_common::drops::DropReason;
use espada_common::shared_window::SharedWindow;
use espada_common::wire::parse::{self, Class, Direction, Link, Ports, WanPacket};
use espada_common::wire::{Address, Cursor, eth};

use super::aead::{self, Aad};
use super::inner;
use super::maps::{self, InboundSa};
use super::outer::{self, ESP};
use super::packet::{self, Pass, Work, passed, repeat};
use crate::packet::LinearPacket;

const ICV: usize = 16;
const TRAILER: usize = 2;
const IPV4: u32 = 4;
const IPV6: u32 = 41;
/// RFC 4303 section 2.6: a dummy packet.
const NO_NEXT_HEADER: u32 = 59;

/// What becomes of an authenticated packet.
enum Opened {
    /// Octets of the inner packet and whether it is IPv6.
    Inner(usize, bool),
    Dummy,
}

/// Decrypts an ESP packet that the front end has found an SA of this engine for.
#[inline(always)]
pub fn run(ctx: *mut xdp_md, ports: Ports) -> u32 {
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return xdp_action::XDP_ABORTED;
    };
    let frame = LinearPacket::of_xdp(ctx);
    let Ok(wan) = parse::wan(&frame, Link::Ethernet, Direction::Inbound, ports) else {
        maps::count_in(DropReason::Malformed);
        return xdp_action::XDP_DROP;
    };
    let Some(sa) = maps::inbound(wan.spi.to_be()) else {
        maps::count_in(DropReason::UnknownSpi);
        return xdp_action::XDP_DROP;
    };
    match open(ctx, config, work, &sa, &wan) {
        Ok(Opened::Inner(len, v6)) => {
            deliver(ctx, config, work, &sa, len, v6).unwrap_or_else(|reason| {
                sa.dropped(reason);
                xdp_action::XDP_DROP
            })
        }
        Ok(Opened::Dummy) => xdp_action::XDP_DROP,
        Err(reason) => {
            sa.dropped(reason);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn open(
    ctx: *mut xdp_md,
    config: &EspConfig,
    work: &mut Work,
    sa: &InboundSa,
    wan: &WanPacket,
) -> Result<Opened, DropReason> {
    let entry = sa.entry();
    // The kernel reassembles fragments, and hands them to nobody here.
    if wan.first_fragment {
        return Err(DropReason::Unsupported);
    }
    if maps::now() >= entry.expires_ns {
        return Err(DropReason::Expired);
    }
    if !maps::pair(entry.handle, &mut work.pair) {
        return Err(DropReason::UnknownSpi);
    }
    let in_udp = wan.class == Class::UdpEsp;
    if !in_udp && wan.source != work.pair.remote {
        return Err(DropReason::WrongAddress);
    }
    let esp_len = (wan.ip_offset + wan.ip_len).saturating_sub(wan.payload_offset);
    let encrypted = esp_len.wrapping_sub(ESP + ICV);
    // RFC 4303 section 2.4: the ciphertext ends on a multiple of 4 octets.
    if encrypted < TRAILER || encrypted > MAX_INNER as usize + 256 || encrypted & 3 != 0 {
        return Err(DropReason::Malformed);
    }

    // RFC 4303 section 3.4.3: duplicates and what lies left of the window are rejected before the
    // integrity check, and "the receive window is updated only if the integrity verification
    // succeeds". Check here, authenticate, commit below.
    let esn = entry.flags & ESP_ESN != 0;
    let window = SharedWindow::new(*sa, entry.replay_window, esn);
    let seq = window.check(wan.seq).map_err(|_| DropReason::Replay)?;

    if !work.load_esp(ctx, wan.payload_offset, esp_len) {
        return Err(DropReason::Malformed);
    }
    let received = [0, 1, 2, 3].map(|index| work.body(encrypted / 4 + index));
    let iv = [work.head(8), work.head(4)];
    let aad = Aad::new(entry.spi_be, seq, esn);
    let s = aead::start(work, &entry.key, iv, &aad);
    let computed = aead::tag(work, encrypted, &aad, s);
    if !equal(received, computed) {
        return Err(DropReason::AuthFailed);
    }
    let newest = window.commit(seq).map_err(|_| DropReason::Replay)?;
    if newest && in_udp {
        moved(&frame_port(ctx, wan), wan, work, entry.handle);
    }
    aead::xor(work, encrypted);
    unwrap(config, work, entry, wan.tos, encrypted)
}

/// In constant time: where tags differ is nobody's business.
#[inline(always)]
fn equal(a: [u32; 4], b: [u32; 4]) -> bool {
    let mut difference = 0;
    for (a, b) in a.into_iter().zip(b) {
        difference |= a ^ b;
    }
    difference == 0
}

/// UDP source port of a packet.
#[inline(always)]
fn frame_port(ctx: *mut xdp_md, wan: &WanPacket) -> u16 {
    let frame = LinearPacket::of_xdp(ctx);
    frame
        .read(wan.payload_offset.wrapping_sub(8))
        .map_or(0, u16::from_be_bytes)
}

/// RFC 7296 section 2.23: the peer's NAT mapping changed when an authenticated packet, newer than
/// all before, comes from elsewhere. The control side moves the pair, and then it is here no more.
#[inline(always)]
fn moved(port: &u16, wan: &WanPacket, work: &Work, handle: u32) {
    if work.pair.flags & PAIR_UDP == 0
        || (wan.source == work.pair.remote && port.to_be() == work.pair.remote_port_be)
    {
        return;
    }
    maps::tell(EspEvent {
        kind: EVENT_MOVED,
        number: handle,
        source: wan.source,
        destination: wan.destination,
        port: u32::from(*port),
        padding: 0,
    });
}

/// From decrypted octets to the inner packet.
#[inline(always)]
fn unwrap(
    config: &EspConfig,
    work: &mut Work,
    entry: &EspInEntry,
    outer_tos: u8,
    encrypted: usize,
) -> Result<Opened, DropReason> {
    let last = work.body(encrypted / 4 - 1);
    let (padding, next) = (last >> 16 & 0xff, last >> 24);
    let end = encrypted.wrapping_sub(TRAILER + padding as usize);
    if end > encrypted {
        return Err(DropReason::BadPadding);
    }
    // RFC 4303 section 2.4: "the receiver SHOULD inspect the Padding field."
    let mut pass = Pass {
        work,
        more: Padding {
            start: end,
            wrong: 0,
        },
    };
    repeat(padding, &mut pass, inspect);
    if pass.more.wrong != 0 {
        return Err(DropReason::BadPadding);
    }
    let ethertype = match next {
        IPV4 => eth::IPV4,
        IPV6 => eth::IPV6,
        NO_NEXT_HEADER => return Ok(Opened::Dummy),
        _ => return Err(DropReason::Unsupported),
    };
    let inner = inner::parse(&work.cursor(end), 0, ethertype).ok_or(DropReason::Malformed)?;

    // RFC 4301 section 5.2, step 4: the packet must be one the SA was negotiated for.
    let [local, remote] = entry.selectors;
    if !selected(&entry.local, local, inner.destination)
        || !selected(&entry.remote, remote, inner.source)
    {
        return Err(DropReason::SelectorMismatch);
    }
    let field = inner::decapsulated_ecn(inner.tos, outer_tos).ok_or(DropReason::EcnCongestion)?;
    if field != inner.tos & 3 {
        inner::set_ecn(work, inner.v6, field);
    }
    if config.flags & ENGINE_CLAMP_MSS != 0 {
        let most = work.pair.max_inner;
        inner::clamp_mss(work, &inner, most);
    }
    Ok(Opened::Inner(inner.len, inner.v6))
}

struct Padding {
    start: usize,
    wrong: u32,
}

unsafe extern "C" fn inspect(index: u32, pass: *mut Pass<Padding>) -> i64 {
    // SAFETY: called by `repeat`.
    let (work, padding) = unsafe { passed(pass) };
    let octet = work.octet(padding.start + index as usize);
    padding.wrong |= u32::from(octet) ^ (index + 1);
    0
}

#[inline(always)]
fn selected(ranges: &[Range; MAX_SELECTORS], count: u32, address: Address) -> bool {
    let address = address.halves();
    let mut found = false;
    for (index, range) in ranges.iter().enumerate() {
        found |= (index as u32) < count && range.contains(address);
    }
    found
}

/// Has the packet arrive on the plaintext interface.
#[inline(always)]
fn deliver(
    ctx: *mut xdp_md,
    config: &EspConfig,
    work: &mut Work,
    sa: &InboundSa,
    len: usize,
    v6: bool,
) -> Result<u32, DropReason> {
    outer::ethernet(work, 0, config.mac, config.mac, v6);
    if !work.store(
        ctx,
        eth::HEADER_LEN,
        eth::HEADER_LEN + len,
        packet::frame_len(ctx),
    ) {
        return Err(DropReason::Internal);
    }
    let action = maps::redirect(config.port).map_err(|_| DropReason::TunFull)?;
    sa.carried(len as u64, maps::now());
    Ok(action)
}
