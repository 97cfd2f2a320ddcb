//! Inner packets that do not fit the path: told by ICMP, or fragmented before encryption
//! (RFC 4301 section 8.2).

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::ip::{self, Fragment, Inner, Outer, protocol};
use crate::port::checksum;
use crate::umem::{Frame, FramePool, NoRoom};

/// RFC 8200 section 5: the smallest MTU an IPv6 link may have.
pub const IPV6_MIN_MTU: usize = 1280;

/// RFC 1812 section 4.3.2.3: ICMP errors "SHOULD contain as much of the original datagram as
/// possible without the length of the ICMP datagram exceeding 576 bytes".
const ICMP_V4_MAX: usize = 576;

/// Octets of an ICMP error before the packet it is about.
const ICMP_HEADER: usize = 8;

/// Limits ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)): a token bucket.
pub struct RateLimit {
    tokens: u32,
    refilled: Option<Instant>,
}

/// A full bucket.
const TOKENS: u32 = 64;
/// Time a new token takes.
const TOKEN_EVERY: Duration = Duration::from_millis(5);

impl RateLimit {
    /// A full bucket.
    pub fn new() -> Self {
        Self {
            tokens: TOKENS,
            refilled: None,
        }
    }

    /// Takes a token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        let since = *self.refilled.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_nanos() / TOKEN_EVERY.as_nanos();
        if earned > 0 {
            self.refilled = Some(now);
            let earned = u32::try_from(earned).unwrap_or(TOKENS);
            self.tokens = self.tokens.saturating_add(earned).min(TOKENS);
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

/// Whether an ICMP error about this packet may be sent (RFC 1812 section 4.3.2.7, RFC 4443
/// section 2.4 (e)): not about ICMP errors, later fragments, or packets from or to anything but
/// one host. (IPv6 Packet Too Big may answer multicast; those are left out here too.)
pub fn may_answer(inner: &Inner) -> bool {
    let host = |address: IpAddr| match address {
        IpAddr::V4(v4) => {
            !v4.is_unspecified()
                && !v4.is_multicast()
                && v4 != Ipv4Addr::BROADCAST
                && !v4.is_loopback()
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
    };
    inner.fragment != Fragment::Later
        && !ip::is_icmp_error(inner)
        && host(inner.flow.source)
        && host(inner.flow.destination)
}

/// Writes into `reply` an ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big"
/// (RFC 4443 section 3.2) about `packet`, from its destination to its source. (The destination is
/// an address that the host routes into the tunnel, so its reverse-path check lets the message
/// out of the tunnel interface; an address of the gateway need not be.)
pub fn too_big(packet: &[u8], inner: &Inner, mtu: usize, reply: &mut Frame) -> Result<(), NoRoom> {
    let v6 = inner.is_v6();
    let header_len = ip::outer_len(inner.flow.source);
    let most = if v6 { IPV6_MIN_MTU } else { ICMP_V4_MAX } - header_len - ICMP_HEADER;
    let quoted = packet.get(..inner.total_len.min(most)).ok_or(NoRoom)?;
    let outer = Outer {
        source: inner.flow.destination,
        destination: inner.flow.source,
        tos: 0,
        ttl: 64,
        df: false,
        id: 0,
        protocol: if v6 { protocol::ICMPV6 } else { protocol::ICMP },
        label: 0,
    };
    let length = ICMP_HEADER + quoted.len();
    let reply = reply.append(header_len + length)?;
    let (header, message) = reply.split_at_mut_checked(header_len).ok_or(NoRoom)?;
    ip::build(&outer, length, header).ok_or(NoRoom)?;
    message[ICMP_HEADER..].copy_from_slice(quoted);
    let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
    if v6 {
        message[..4].copy_from_slice(&[2, 0, 0, 0]);
        message[4..8].copy_from_slice(&mtu.to_be_bytes());
        let pseudo = checksum::pseudo_header(header, protocol::ICMPV6, length).ok_or(NoRoom)?;
        let sum = pseudo.add(message).finish();
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
    } else {
        message[..6].copy_from_slice(&[3, 4, 0, 0, 0, 0]);
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        message[6..8].copy_from_slice(&mtu.to_be_bytes());
        let sum = checksum::Sum::default().add(message).finish();
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
    }
    Ok(())
}

/// Why a packet was not fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotFragment {
    /// `mtu` leaves no room for eight octets of payload, or the header is damaged.
    Impossible,
    /// No free frame, or frames too small.
    NoFrame,
}

/// Cuts an IPv4 packet (whole, or a fragment itself) into fragments of at most `mtu` octets
/// (RFC 791 section 3.2) and hands them to `each` in order.
pub fn fragment_v4(
    packet: &[u8],
    inner: &Inner,
    mtu: usize,
    pool: &mut FramePool,
    mut each: impl FnMut(Frame, &mut FramePool),
) -> Result<(), CannotFragment> {
    const MORE: u16 = 0x2000;
    let (header, payload) = packet
        .get(..inner.total_len)
        .and_then(|packet| packet.split_at_checked(inner.header_len))
        .ok_or(CannotFragment::Impossible)?;
    let flags: &[u8; 2] = header
        .get(6..)
        .and_then(|rest| rest.first_chunk())
        .ok_or(CannotFragment::Impossible)?;
    let word = u16::from_be_bytes(*flags);
    let first_offset = word & 0x1fff;
    // All fragments get the size that fits the longest header, the first one's.
    let step = mtu.saturating_sub(header.len()) & !7;
    if step == 0 {
        return Err(CannotFragment::Impossible);
    }
    if payload.len().div_ceil(step) > pool.available() {
        return Err(CannotFragment::NoFrame);
    }
    for (index, part) in payload.chunks(step).enumerate() {
        let at = index * step;
        let mut frame = pool.get().ok_or(CannotFragment::NoFrame)?;
        let written = write_fragment(&mut frame, header, part, at == 0 && first_offset == 0);
        let last = at + part.len() == payload.len();
        let more = if last { word & MORE } else { MORE };
        let offset = first_offset.wrapping_add((at / 8) as u16) & 0x1fff;
        match (written, frame.data_mut()) {
            (Ok(header_len), data) if data.len() >= header_len && header_len >= 20 => {
                let total = (data.len() as u16).to_be_bytes();
                data[2..4].copy_from_slice(&total);
                data[6..8].copy_from_slice(&(more | offset).to_be_bytes());
                data[0] = 0x40 | (header_len / 4) as u8;
                checksum::ipv4_header(&mut data[..header_len]);
                each(frame, pool);
            }
            _ => {
                pool.put(frame);
                return Err(CannotFragment::NoFrame);
            }
        }
    }
    Ok(())
}

/// Writes header and payload of one fragment; gives the header's length.
fn write_fragment(
    frame: &mut Frame,
    header: &[u8],
    part: &[u8],
    first: bool,
) -> Result<usize, NoRoom> {
    let (fixed, options) = header.split_at_checked(20).ok_or(NoRoom)?;
    frame.append(20)?.copy_from_slice(fixed);
    if first {
        frame.append(options.len())?.copy_from_slice(options);
    } else {
        copy_options(options, frame)?;
    }
    let header_len = frame.len();
    frame.append(part.len())?.copy_from_slice(part);
    Ok(header_len)
}

/// RFC 791 section 3.1: only options whose copied flag is set go into fragments but the first.
fn copy_options(mut options: &[u8], frame: &mut Frame) -> Result<(), NoRoom> {
    let before = frame.len();
    while let Some((kind, rest)) = options.split_first() {
        let length = match (kind, rest.first()) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(length)) if *length >= 2 => usize::from(*length),
            _ => break,
        };
        let Some((option, rest)) = options.split_at_checked(length) else {
            break;
        };
        if kind & 0x80 != 0 {
            frame.append(length)?.copy_from_slice(option);
        }
        options = rest;
    }
    let padding = (frame.len() - before).wrapping_neg() & 3;
    frame.append(padding)?.fill(0);
    Ok(())
}
