//! Espada's front end: the XDP and tc programs that stand on the WAN.
//!
//! They classify packets with the parser of `espada-common`, count what belongs to an SA, drop
//! with a numbered reason what must not pass, and steer native ESP to AF_XDP. Licence to the
//! kernel: "Dual MIT/GPL".
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod decide;
mod esp;
mod lan;
mod maps;
mod packet;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use espada_common::drops::DropReason;
use espada_common::wire::parse::Link;

use crate::decide::Verdict;
use crate::packet::{CopiedPacket, LinearPacket};

/// Leaves the decision to the next program on the hook: right for tcx and for clsact with
/// direct action, where it is `TC_ACT_UNSPEC`.
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = aya_ebpf::bindings::TC_ACT_SHOT;

/// XDP on ingress.
#[xdp]
pub fn espada_xdp(ctx: XdpContext) -> u32 {
    match decide::inbound(&LinearPacket::of_xdp(ctx.ctx), Link::Ethernet, 1) {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Steer(first) => maps::steer(first, ctx.rx_queue_index()),
        Verdict::Decrypt => {
            esp::maps::decrypt(&ctx);
            maps::count_drop(DropReason::Internal, 1);
            XDP_DROP
        }
    }
}

/// XDP on a LAN interface: what is routed into the tunnel goes to a worker past the kernel.
#[xdp]
pub fn espada_lan_in(ctx: XdpContext) -> u32 {
    lan::run(ctx.ctx, ctx.rx_queue_index())
}

/// tc on ingress, where XDP would cost the link's offloads. There is no AF_XDP here.
#[classifier]
pub fn espada_tc_in(ctx: TcContext) -> i32 {
    tc_in(&ctx, Link::Ethernet)
}

/// tc on egress.
#[classifier]
pub fn espada_tc_out(ctx: TcContext) -> i32 {
    tc_out(&ctx, Link::Ethernet)
}

/// tc on ingress of a link without Ethernet headers (PPP, tun).
#[classifier]
pub fn espada_tc_ip_in(ctx: TcContext) -> i32 {
    tc_in(&ctx, Link::Ip)
}

/// tc on egress of a link without Ethernet headers.
#[classifier]
pub fn espada_tc_ip_out(ctx: TcContext) -> i32 {
    tc_out(&ctx, Link::Ip)
}

#[inline(always)]
fn tc_in(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let segments = packet::segments(skb);
    if let Some(packet) = LinearPacket::of_skb(skb) {
        return act(decide::inbound(&packet, link, segments));
    }
    match maps::scratch().and_then(|head| CopiedPacket::of_skb(skb, head)) {
        Some(packet) => act(decide::inbound(&packet, link, segments)),
        None => TC_NEXT,
    }
}

#[inline(always)]
fn tc_out(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let segments = packet::segments(skb);
    if let Some(packet) = LinearPacket::of_skb(skb) {
        return act(decide::outbound(&packet, link, segments));
    }
    match maps::scratch().and_then(|head| CopiedPacket::of_skb(skb, head)) {
        Some(packet) => act(decide::outbound(&packet, link, segments)),
        None => TC_NEXT,
    }
}

#[inline(always)]
fn act(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass | Verdict::Steer(_) => TC_NEXT,
        Verdict::Drop => TC_DROP,
        // The engine is behind XDP only; its packets are nobody else's.
        Verdict::Decrypt => {
            maps::count_drop(DropReason::Internal, 1);
            TC_DROP
        }
    }
}

/// What the programs declare to the kernel: some helpers are only for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
