//! From a LAN interface to the worker that encrypts, past the kernel.

use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_fib_lookup;
use espada_common::abi::LanEntry;
use espada_common::wire::lan::{self, LanPacket};
use espada_common::wire::protocol;

use crate::packet::{LinearPacket, ingress};
use crate::{decide, maps};

/// Takes what the kernel would only forward into the tunnel. Everything else passes to the kernel.
#[inline(always)]
pub fn run(ctx: *mut xdp_md, queue: u32) -> u32 {
    let interface = ingress(ctx);
    let (Some(config), Some(lan)) = (decide::active_config(), maps::lan(interface)) else {
        return xdp_action::XDP_PASS;
    };
    let Some(packet) = lan::forwardable(&LinearPacket::of_xdp(ctx), lan.mac) else {
        return xdp_action::XDP_PASS;
    };
    let fits = packet.ip_len <= lan.most as usize;
    if fits
        && !maps::is_ours(&packet.destination)
        && !maps::is_ours(&packet.source)
        && maps::is_protected(config, &packet.destination, &packet.source)
        && leads_into_tunnel(ctx, interface, &lan, &packet)
    {
        maps::steer_lan(&lan, queue)
    } else {
        xdp_action::XDP_PASS
    }
}

/// Whether the kernel forwards from this interface, its routes lead the packet into the tunnel, and the
/// packet fits there: another engine may carry the connection, a narrower route may lead elsewhere,
/// and the sender of what is too long must be told.
#[inline(always)]
fn leads_into_tunnel(ctx: *mut xdp_md, interface: u32, lan: &LanEntry, packet: &LanPacket) -> bool {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const SUCCESS: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    // SAFETY: plain octets, for which zero is a valid value.
    let mut fib: FibParams = unsafe { core::mem::zeroed() };
    fib.l4_protocol = packet.protocol;
    if matches!(packet.protocol, protocol::TCP | protocol::UDP) {
        let [s0, s1, d0, d1] = packet.ports;
        fib.sport = u16::from_ne_bytes([s0, s1]);
        fib.dport = u16::from_ne_bytes([d0, d1]);
    }
    fib.__bindgen_anon_1.tot_len = packet.ip_len as u16;
    fib.ifindex = interface;
    if packet.destination.is_v4() {
        fib.family = AF_INET;
        fib.__bindgen_anon_2.tos = packet.tos;
        fib.__bindgen_anon_3.ipv4_src = packet.source.v4_word();
        fib.__bindgen_anon_4.ipv4_dst = packet.destination.v4_word();
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_2.flowinfo = (u32::from(packet.tos) << 20).to_be();
        fib.__bindgen_anon_3.ipv6_src = packet.source.words();
        fib.__bindgen_anon_4.ipv6_dst = packet.destination.words();
    }
    // SAFETY: the context the kernel handed over, and a structure of the size stated.
    let found =
        unsafe { bpf_fib_lookup(ctx.cast(), &raw mut fib, size_of::<FibParams>() as i32, 0) };
    // There are no neighbours in a tunnel: that there is none is as good.
    matches!(found, SUCCESS | NO_NEIGHBOUR) && fib.ifindex == lan.tunnel
}
