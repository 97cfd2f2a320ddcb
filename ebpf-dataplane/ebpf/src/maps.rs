//! The maps of `espada_common::abi` and the accessors through which the programs reach them.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, XskMap};
use aya_ebpf::macros::btf_map;
use espada_common::abi::{
    CONFIG_GUARD, ClassedAddress, FragmentKey, FrontEndConfig, LOCAL_WAN, LanEntry, MAX_FRAGMENTED,
    MAX_LANES, MAX_LANS, MAX_LOCAL_ADDRESSES, MAX_POLICY_ENTRIES, MAX_QUEUES, MAX_SAS, SaCounters,
    SaInEntry, SaOutEntry, SaOutKey, SpiKey,
};
use espada_common::drops::DropReason;
use espada_common::wire::Address;
use espada_common::wire::parse::WanPacket;

use crate::packet::ROOM;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "espada_config")]
static CONFIG: Array<FrontEndConfig, 1> = Array::new();

#[btf_map(name = "espada_local")]
static LOCAL: HashMap<Address, u32, { MAX_LOCAL_ADDRESSES as usize }, NO_PREALLOC> = HashMap::new();

// Preallocated entries can be reused under a reader: never for SAs.
#[btf_map(name = "espada_sa_in")]
static SA_IN: HashMap<SpiKey, SaInEntry, { MAX_SAS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_sa_in_stats")]
static SA_IN_STATS: PerCpuHashMap<SpiKey, SaCounters, { MAX_SAS as usize }, NO_PREALLOC> =
    PerCpuHashMap::new();

#[btf_map(name = "espada_sa_out")]
static SA_OUT: HashMap<SaOutKey, SaOutEntry, { MAX_SAS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_sa_out_stats")]
static SA_OUT_STATS: Array<SaCounters, { MAX_SAS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map(name = "espada_drops")]
static DROPS: PerCpuArray<u64, { DropReason::COUNT }> = PerCpuArray::new();

#[btf_map(name = "espada_spd_remote")]
static SPD_REMOTE: LpmTrie<Address, u32, { MAX_POLICY_ENTRIES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "espada_spd_local")]
static SPD_LOCAL: LpmTrie<ClassedAddress, u32, { MAX_POLICY_ENTRIES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "espada_fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, u32, { MAX_FRAGMENTED as usize }> = LruHashMap::new();

#[btf_map(name = "espada_xsks")]
static XSKS: XskMap<{ (MAX_LANES * MAX_QUEUES) as usize }> = XskMap::new();

#[btf_map(name = "espada_lan")]
static LAN: HashMap<u32, LanEntry, { MAX_LANS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_lan_xsks")]
static LAN_XSKS: XskMap<{ MAX_QUEUES as usize }> = XskMap::new();

#[btf_map(name = "espada_scratch")]
static SCRATCH: PerCpuArray<[u8; ROOM], 1> = PerCpuArray::new();

/// This CPU's room for the head of a packet in pieces.
#[inline(always)]
pub fn scratch() -> Option<*mut [u8; ROOM]> {
    SCRATCH.get_ptr_mut(0)
}

/// The configuration.
#[inline(always)]
pub fn config() -> Option<&'static FrontEndConfig> {
    CONFIG.get(0)
}

/// Whether an address is one that ESP and IKE are sent to.
#[inline(always)]
pub fn is_local(address: &Address) -> bool {
    // SAFETY: one aligned word, copied out at once.
    unsafe { LOCAL.get(address) }.is_some_and(|kind| *kind == LOCAL_WAN)
}

/// Whether an address is any of ours.
#[inline(always)]
pub fn is_ours(address: &Address) -> bool {
    LOCAL.get_ptr(address).is_some()
}

/// A LAN interface whose packets go past the kernel.
#[inline(always)]
pub fn lan(interface: u32) -> Option<LanEntry> {
    // SAFETY: copied out at once; of an entry replaced meanwhile old and new are equally good.
    unsafe { LAN.get(interface) }.copied()
}

/// The inbound SA of an SPI.
#[inline(always)]
pub fn sa_in(key: SpiKey) -> Option<SaInEntry> {
    // SAFETY: the value is copied out at once, and the SPI in it re-checked in case the entry
    // was freed and reused meanwhile.
    let entry = *unsafe { SA_IN.get(key) }?;
    (entry.spi_be == key.spi_be).then_some(entry)
}

/// Counts packets of an inbound SA.
#[inline(always)]
pub fn count_in(key: SpiKey, packets: u64, bytes: u64) {
    if let Some(counters) = SA_IN_STATS.get_ptr_mut(key) {
        // SAFETY: this CPU's own copy, and programs on one CPU do not interrupt each other here.
        unsafe {
            (*counters).packets += packets;
            (*counters).bytes += bytes;
        }
    }
}

/// Counts packets of an outbound SA.
#[inline(always)]
pub fn count_out(key: &SaOutKey, packets: u64, bytes: u64) {
    // SAFETY: copied out at once and re-checked, as in `sa_in`.
    let Some(entry) = (unsafe { SA_OUT.get(key) }).copied() else {
        return;
    };
    if entry.spi_be != key.spi_be {
        return;
    }
    count_out_at(entry.slot, packets, bytes);
}

/// Counts packets of an outbound SA whose slot is known.
#[inline(always)]
pub fn count_out_at(slot: u32, packets: u64, bytes: u64) {
    if let Some(counters) = SA_OUT_STATS.get_ptr_mut(slot) {
        // SAFETY: the array's element is aligned, lives as long as the program, and is only
        // changed atomically, by us and by userspace.
        unsafe {
            atomic_add(&raw mut (*counters).packets, packets);
            atomic_add(&raw mut (*counters).bytes, bytes);
        }
    }
}

/// `core` offers no atomic addition for this target, though the instruction set has one.
///
/// # Safety
/// `counter` must point to an aligned u64 of a map value.
#[inline(always)]
pub unsafe fn atomic_add(counter: *mut u64, value: u64) {
    // SAFETY: the caller's pointer is valid; the instruction touches nothing else.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value) };
}

/// Counts dropped packets.
#[inline(always)]
pub fn count_drop(reason: DropReason, packets: u64) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own copy.
        unsafe { *counter += packets };
    }
}

/// Whether a pair of addresses is covered by a policy. The longest remote prefix gives a class
/// that stands for all policies of that and every wider prefix, so two lookups are exact.
#[inline(always)]
pub fn is_protected(config: &FrontEndConfig, remote: &Address, local: &Address) -> bool {
    if config.flags & CONFIG_GUARD == 0 {
        return false;
    }
    let Some(class) = SPD_REMOTE.get(&Key::new(128, *remote)) else {
        return false;
    };
    let local = ClassedAddress {
        class: *class,
        addr: *local,
    };
    SPD_LOCAL.get(&Key::new(160, local)).is_some()
}

/// Lets the later fragments follow a first one that was let through.
#[inline(always)]
pub fn admit_fragments(packet: &WanPacket) {
    // A full LRU map evicts, so this only fails without memory: then the later fragments are
    // dropped, which is the safe side.
    let _ = FRAGMENTS.insert(fragment_key(packet), 1, 0);
}

/// Whether the first fragment of this datagram was let through.
#[inline(always)]
pub fn is_admitted(packet: &WanPacket) -> bool {
    FRAGMENTS.get_ptr(fragment_key(packet)).is_some()
}

#[inline(always)]
fn fragment_key(packet: &WanPacket) -> FragmentKey {
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment_id,
        protocol: u32::from(packet.protocol),
    }
}

/// Redirects to the AF_XDP socket on a queue of the lane whose sockets begin at `first`; without one the packet
/// passes.
#[inline(always)]
pub fn steer(first: u32, queue: u32) -> u32 {
    if queue >= MAX_QUEUES {
        return XDP_PASS;
    }
    redirect(&XSKS, first + queue)
}

/// Redirects to the AF_XDP socket of a LAN interface's queue; without one the packet passes.
#[inline(always)]
pub fn steer_lan(lan: &LanEntry, queue: u32) -> u32 {
    if queue >= lan.sockets {
        return XDP_PASS;
    }
    redirect(&LAN_XSKS, lan.first_socket + queue)
}

const XDP_PASS: u32 = aya_ebpf::bindings::xdp_action::XDP_PASS;

#[inline(always)]
fn redirect<const SOCKETS: usize>(sockets: &XskMap<SOCKETS>, place: u32) -> u32 {
    match sockets.redirect(place, u64::from(XDP_PASS)) {
        Ok(action) | Err(action) => action,
    }
}
