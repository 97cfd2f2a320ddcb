//! From ESP on the WAN to the plaintext interface.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use espada_common::abi::esp::{
    ENGINE_CLAMP_MSS, ESP_ESN, EVENT_MOVED, EspConfig, EspEvent, MAX_INNER, MAX_SELECTORS,
    PAIR_UDP, Range,
};
use espada_common::drops::DropReason;
use espada_common::shared_window::SharedWindow;
use espada_common::wire::parse::{Class, WanPacket};
use espada_common::wire::{Address, Cursor, eth};

use super::aead;
use super::inner;
use super::maps::{self, InboundSa};
use super::outer::{self, ESP};
use super::packet::{self, Arrived, Pass, Step, Work, failed, passed, repeat};

const ICV: usize = 16;
const TRAILER: usize = 2;
const IPV4: u32 = 4;
const IPV6: u32 = 41;
/// RFC 4303 section 2.6: a dummy packet.
const NO_NEXT_HEADER: u32 = 59;

/// How `unwrap` ends for a dummy packet.
const DUMMY: Step = 1;

/// Hands what the front end knows of a packet to [`run`].
#[inline(always)]
pub fn hand_over<C: Cursor>(frame: &C, wan: &WanPacket) {
    let Some(work) = maps::work() else {
        return;
    };
    let in_udp = wan.class == Class::UdpEsp;
    let esp_len = (wan.ip_offset + wan.ip_len).saturating_sub(wan.payload_offset);
    work.arrived = Arrived {
        source: wan.source,
        destination: wan.destination,
        spi_be: wan.spi.to_be(),
        seq: wan.seq,
        offset: wan.payload_offset as u32,
        esp_len: esp_len as u32,
        tos: u32::from(wan.tos),
        port: if in_udp {
            // The UDP header is right before.
            let port = frame.read(wan.payload_offset.wrapping_sub(8));
            u32::from(u16::from_be_bytes(port.unwrap_or_default()))
        } else {
            0
        },
        fragment: u32::from(wan.first_fragment),
    };
}

/// Decrypts an ESP packet that the front end has found an SA of this engine for.
#[inline(always)]
pub fn run(ctx: *mut xdp_md) -> u32 {
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(sa) = maps::inbound(work.arrived.spi_be) else {
        maps::count_in(failed(DropReason::UnknownSpi));
        return xdp_action::XDP_DROP;
    };
    let step = carry(ctx, config, work, sa);
    if step >= 0 {
        return step as u32;
    }
    sa.dropped(step);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn carry(ctx: *mut xdp_md, config: &EspConfig, work: &mut Work, sa: InboundSa) -> Step {
    let step = admit(ctx, work, sa);
    if step < 0 {
        return step;
    }
    aead::take(work, true);
    let mut step = authenticate(work, sa);
    if step >= 0 {
        step = commit(work, sa);
    }
    if step < 0 {
        // A forgery, or a copy that another processor was faster with.
        aead::put_back(work);
        return step;
    }
    aead::xor(work, work.job.encrypted as usize);
    aead::done(work, true);
    let step = unwrap(config, work, sa);
    if step < 0 {
        return step;
    }
    if step == DUMMY {
        return xdp_action::XDP_DROP as Step;
    }
    deliver(ctx, config, work, sa)
}

/// Everything that can be refused before the packet costs a decryption; copies it.
#[inline(never)]
fn admit(ctx: *mut xdp_md, work: &mut Work, sa: InboundSa) -> Step {
    let entry = sa.entry();
    // The kernel reassembles fragments, and hands them to nobody here.
    if work.arrived.fragment != 0 {
        return failed(DropReason::Unsupported);
    }
    if maps::now() >= entry.expires_ns {
        return failed(DropReason::Expired);
    }
    if !maps::pair(entry.handle, &mut work.pair) {
        return failed(DropReason::UnknownSpi);
    }
    if work.arrived.port == 0 && work.arrived.source != work.pair.remote {
        return failed(DropReason::WrongAddress);
    }
    let esp_len = work.arrived.esp_len as usize;
    let encrypted = esp_len.wrapping_sub(ESP + ICV);
    // RFC 4303 section 2.4: the ciphertext ends on a multiple of 4 octets.
    if encrypted < TRAILER || encrypted > MAX_INNER as usize + 256 || encrypted & 3 != 0 {
        return failed(DropReason::Malformed);
    }
    // RFC 4303 section 3.4.3: duplicates and what lies left of the window are rejected before the
    // integrity check, and "the receive window is updated only if the integrity verification
    // succeeds": check here, then authenticate, then commit.
    let Ok(seq) = window_of(sa).check(work.arrived.seq) else {
        return failed(DropReason::Replay);
    };
    work.job.seq = seq;
    work.job.encrypted = encrypted as u32;
    if work.load_esp(ctx, work.arrived.offset as usize, esp_len) {
        0
    } else {
        failed(DropReason::Malformed)
    }
}

/// RFC 4303 section 3.4.4: verifies the ICV.
#[inline(always)]
fn authenticate(work: &mut Work, sa: InboundSa) -> Step {
    let entry = sa.entry();
    let encrypted = work.job.encrypted as usize;
    take_icv(work);
    aead::start(work, &entry.key, entry.spi_be, entry.flags & ESP_ESN != 0);
    aead::tag(work, encrypted);
    if equal(work.received, work.tag) {
        0
    } else {
        failed(DropReason::AuthFailed)
    }
}

/// Keeps the ICV, which gives way to zeros where the authenticator takes in whole blocks.
#[inline(never)]
fn take_icv(work: &mut Work) {
    let end = work.job.encrypted as usize / 4;
    work.received = [0, 1, 2, 3].map(|index| work.body(end + index));
}

/// What a commit's steps share.
struct Commit {
    sa: InboundSa,
    seq: u64,
    outcome: u32,
}

const PENDING: u32 = 0;
const REPLAYED: u32 = 1;
const RECORDED: u32 = 2;
const NEWEST: u32 = 3;

/// Records the sequence number. Every failed attempt means that another processor has recorded a
/// packet of the same SA meanwhile.
#[inline(never)]
fn commit(work: &mut Work, sa: InboundSa) -> Step {
    const ATTEMPTS: u32 = 64;
    let seq = work.job.seq;
    let mut pass = Pass {
        work: &raw mut *work,
        more: Commit {
            sa,
            seq,
            outcome: PENDING,
        },
    };
    repeat(ATTEMPTS, &mut pass, record);
    if pass.more.outcome != RECORDED {
        return failed(DropReason::Replay);
    }
    repeat(ATTEMPTS, &mut pass, advance);
    if pass.more.outcome == NEWEST {
        moved(work);
    }
    0
}

#[inline(always)]
fn window_of(sa: InboundSa) -> SharedWindow<InboundSa> {
    let entry = sa.entry();
    SharedWindow::new(sa, entry.replay_window, entry.flags & ESP_ESN != 0)
}

unsafe extern "C" fn record(_: u32, pass: *mut Pass<Commit>) -> i64 {
    // SAFETY: called by `repeat`.
    let (_, commit) = unsafe { passed(pass) };
    match window_of(commit.sa).try_record(commit.seq) {
        None => return 0,
        Some(Ok(())) => commit.outcome = RECORDED,
        Some(Err(_)) => commit.outcome = REPLAYED,
    }
    1
}

unsafe extern "C" fn advance(_: u32, pass: *mut Pass<Commit>) -> i64 {
    // SAFETY: called by `repeat`.
    let (_, commit) = unsafe { passed(pass) };
    match window_of(commit.sa).try_advance(commit.seq) {
        None => return 0,
        Some(true) => commit.outcome = NEWEST,
        Some(false) => {}
    }
    1
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

/// RFC 7296 section 2.23: the peer's NAT mapping changed when an authenticated packet, newer than
/// all before, comes from elsewhere. The control side moves the pair, and then it is here no more.
#[inline(always)]
fn moved(work: &Work) {
    let arrived = &work.arrived;
    let port_be = u32::from((arrived.port as u16).to_be());
    if arrived.port == 0
        || work.pair.flags & PAIR_UDP == 0
        || (arrived.source == work.pair.remote && port_be == u32::from(work.pair.remote_port_be))
    {
        return;
    }
    maps::tell(EspEvent {
        kind: EVENT_MOVED,
        number: work.pair.handle,
        source: arrived.source,
        destination: arrived.destination,
        port: arrived.port,
        padding: 0,
    });
}

/// From decrypted octets to the inner packet.
#[inline(never)]
fn unwrap(config: &EspConfig, work: &mut Work, sa: InboundSa) -> Step {
    let entry = sa.entry();
    let encrypted = work.job.encrypted as usize;
    let last = work.body(encrypted / 4 - 1);
    let (padding, next) = (last >> 16 & 0xff, last >> 24);
    let end = encrypted.wrapping_sub(TRAILER + padding as usize);
    if end > encrypted {
        return failed(DropReason::BadPadding);
    }
    // RFC 4303 section 2.4: "the receiver SHOULD inspect the Padding field."
    let mut pass = Pass {
        work: &raw mut *work,
        more: Padding {
            start: end,
            wrong: 0,
        },
    };
    repeat(padding, &mut pass, inspect);
    if pass.more.wrong != 0 {
        return failed(DropReason::BadPadding);
    }
    let ethertype = match next {
        IPV4 => eth::IPV4,
        IPV6 => eth::IPV6,
        NO_NEXT_HEADER => return DUMMY,
        _ => return failed(DropReason::Unsupported),
    };
    let Some(inner) = inner::parse(&work.cursor(end), 0, ethertype) else {
        return failed(DropReason::Malformed);
    };
    inner.note(&mut work.job);

    // RFC 4301 section 5.2, step 4: the packet must be one the SA was negotiated for.
    let [local, remote] = entry.selectors;
    if !selected(&entry.local, local, inner.destination)
        || !selected(&entry.remote, remote, inner.source)
    {
        return failed(DropReason::SelectorMismatch);
    }
    let outer_tos = work.arrived.tos as u8;
    let Some(field) = inner::decapsulated_ecn(inner.tos, outer_tos) else {
        return failed(DropReason::EcnCongestion);
    };
    if field != inner.tos & 3 {
        inner::set_ecn(work, inner.v6, field);
    }
    if config.flags & ENGINE_CLAMP_MSS != 0 {
        let most = work.pair.max_inner;
        inner::clamp_mss(work, most);
    }
    0
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
#[inline(never)]
fn deliver(ctx: *mut xdp_md, config: &EspConfig, work: &mut Work, sa: InboundSa) -> Step {
    let len = work.job.len as usize;
    outer::ethernet(work, 0, config.mac, config.mac, work.job.v6 != 0);
    let old = packet::frame_len(ctx);
    if !work.store(ctx, eth::HEADER_LEN, eth::HEADER_LEN + len, old) {
        return failed(DropReason::Internal);
    }
    let Ok(action) = maps::redirect(config.port) else {
        return failed(DropReason::TunFull);
    };
    sa.carried(len as u64, work.job.slot != 0, maps::now());
    action as Step
}
