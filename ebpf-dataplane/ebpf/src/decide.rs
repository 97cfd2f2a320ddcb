//! What becomes of a packet, apart from how XDP and tc say it.

use espada_common::abi::{
    ABI_VERSION, CONFIG_DROP_UNKNOWN_SPI, FrontEndConfig, SA_FIRST_SOCKET, SA_FLAG_DECRYPT,
    SA_FLAG_STEER_XSK, SaOutKey, SpiKey,
};
use espada_common::drops::DropReason;
use espada_common::wire::Cursor;
use espada_common::wire::parse::{self, Class, Direction, Link, ParseError, Ports, WanPacket};

use crate::maps;

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the kernel, or out.
    Pass,
    /// Gone, and counted.
    Drop,
    /// Native ESP of an SA that asked for AF_XDP, to the lane whose sockets begin here.
    Steer(u32),
    /// ESP of an SA that the eBPF engine carries.
    Decrypt,
}

/// A packet arrived on the WAN. `segments` is how many it was before receive offloads merged them.
#[inline(always)]
pub fn inbound<C: Cursor>(packet: &C, link: Link, segments: u64) -> Verdict {
    let Some(config) = active_config() else {
        return Verdict::Pass;
    };
    let wan = match parse::wan(packet, link, Direction::Inbound, ports(config)) {
        Ok(wan) => wan,
        Err(ParseError::NotIp) => return Verdict::Pass,
        Err(ParseError::Malformed) => return dropped(DropReason::Malformed, segments),
    };
    let to_us = maps::is_local(&wan.destination);
    let verdict = match wan.class {
        Class::NeighbourDiscovery => return Verdict::Pass,
        Class::NativeEsp | Class::UdpEsp if to_us => esp_in(config, packet, &wan, segments),
        Class::Ike | Class::IkeNatT | Class::Keepalive if to_us => Verdict::Pass,
        Class::Malformed if to_us => dropped(DropReason::Malformed, segments),
        _ => {
            let protected = maps::is_protected(config, &wan.source, &wan.destination);
            return guard(&wan, to_us, protected, DropReason::ClearInbound, segments);
        }
    };
    if wan.first_fragment && verdict != Verdict::Drop {
        maps::admit_fragments(&wan);
    }
    verdict
}

/// A packet leaves on the WAN. `segments` is how many it becomes on the wire.
#[inline(always)]
pub fn outbound<C: Cursor>(packet: &C, link: Link, segments: u64) -> Verdict {
    let Some(config) = active_config() else {
        return Verdict::Pass;
    };
    // What the kernel sends and we cannot read has no addresses that a policy could cover.
    let Ok(wan) = parse::wan(packet, link, Direction::Outbound, ports(config)) else {
        return Verdict::Pass;
    };
    let from_us = maps::is_local(&wan.source);
    match wan.class {
        Class::NeighbourDiscovery => return Verdict::Pass,
        Class::NativeEsp | Class::UdpEsp if from_us => {
            let key = SaOutKey {
                spi_be: wan.spi.to_be(),
                peer: wan.destination,
            };
            maps::count_out(&key, segments, wire_bytes(&wan, segments));
        }
        Class::Ike | Class::IkeNatT | Class::Keepalive if from_us => {}
        _ => {
            let protected = maps::is_protected(config, &wan.destination, &wan.source);
            return guard(
                &wan,
                from_us,
                protected,
                DropReason::ClearOutbound,
                segments,
            );
        }
    }
    if wan.first_fragment {
        maps::admit_fragments(&wan);
    }
    Verdict::Pass
}

/// The configuration, if the loader speaks this version of the maps.
#[inline(always)]
pub fn active_config() -> Option<&'static FrontEndConfig> {
    maps::config().filter(|config| config.abi_version == ABI_VERSION)
}

#[inline(always)]
fn ports(config: &FrontEndConfig) -> Ports {
    Ports {
        ike: config.ike_port as u16,
        nat_t: config.nat_t_port as u16,
    }
}

#[inline(always)]
fn esp_in<C: Cursor>(
    config: &FrontEndConfig,
    packet: &C,
    wan: &WanPacket,
    segments: u64,
) -> Verdict {
    let key = SpiKey {
        spi_be: wan.spi.to_be(),
    };
    let Some(entry) = maps::sa_in(key) else {
        maps::count_drop(DropReason::UnknownSpi, segments);
        return if config.flags & CONFIG_DROP_UNKNOWN_SPI != 0 {
            Verdict::Drop
        } else {
            Verdict::Pass
        };
    };
    if entry.local != wan.destination {
        return dropped(DropReason::WrongAddress, segments);
    }
    maps::count_in(key, segments, wire_bytes(wan, segments));
    if entry.flags & SA_FLAG_DECRYPT != 0 {
        crate::esp::inbound::hand_over(packet, wan);
        return Verdict::Decrypt;
    }
    // AF_XDP takes whole native ESP packets; the kernel reassembles fragments first.
    let whole_native = wan.class == Class::NativeEsp && !wan.first_fragment;
    if entry.flags & SA_FLAG_STEER_XSK != 0 && whole_native {
        Verdict::Steer(entry.flags & SA_FIRST_SOCKET)
    } else {
        Verdict::Pass
    }
}

/// Nothing in clear between protected addresses. Later fragments between them pass if the first
/// one was ESP or IKE of ours.
#[inline(always)]
fn guard(
    wan: &WanPacket,
    ours: bool,
    protected: bool,
    reason: DropReason,
    segments: u64,
) -> Verdict {
    if !protected || (wan.class == Class::Fragment && ours && maps::is_admitted(wan)) {
        Verdict::Pass
    } else {
        dropped(reason, segments)
    }
}

#[inline(always)]
fn dropped(reason: DropReason, segments: u64) -> Verdict {
    maps::count_drop(reason, segments);
    Verdict::Drop
}

/// Octets of all IP packets that a super packet stands for: each segment has its own copy of the
/// headers before its ESP header.
#[inline(always)]
fn wire_bytes(wan: &WanPacket, segments: u64) -> u64 {
    let headers = wan.payload_offset.saturating_sub(wan.ip_offset) as u64;
    wan.ip_len as u64 + (segments - 1) * headers
}
