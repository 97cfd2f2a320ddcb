//! The eBPF engine: ESP (RFC 4303) wholly in XDP, with ChaCha20-Poly1305 (RFC 7634).
//!
//! What is routed into the plaintext interface comes out at its hidden end, where `espada_esp_out`
//! encrypts it and sends it to the WAN's driver. What the front end has found an SA for is
//! decrypted by `espada_esp_in` and sent to the hidden end, so that it arrives on the plaintext
//! interface.

mod aead;
pub mod inbound;
mod inner;
pub mod maps;
mod outbound;
mod outer;
mod packet;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// XDP on the hidden end of the plaintext interface.
#[xdp]
pub fn espada_esp_out(ctx: XdpContext) -> u32 {
    outbound::run(ctx.ctx)
}

/// Behind `espada_xdp` on the WAN, for ESP of this engine's SAs.
#[xdp]
pub fn espada_esp_in(ctx: XdpContext) -> u32 {
    inbound::run(ctx.ctx)
}

/// tc on ingress of the hidden end: what `espada_esp_out` could not send itself, because the kernel
/// does not know the neighbour or the WAN's driver takes no frames of other interfaces. Only
/// ESP comes here, with the number of the WAN interface before it.
#[classifier]
pub fn espada_esp_neigh(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    match crate::packet::meta(skb) {
        // SAFETY: no parameters: the kernel takes the next hop from its routes.
        Some(link) => unsafe { bpf_redirect_neigh(link, core::ptr::null_mut(), 0, 0) as i32 },
        None => TC_ACT_SHOT,
    }
}
