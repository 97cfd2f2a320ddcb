//! The engine's maps and the accessors through which the programs reach them.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_devmap_val};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, DevMapHash, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use espada_common::abi::esp::{
    AheadWake, EVENT_RING, EspConfig, EspCounters, EspEvent, EspInEntry, EspOutEntry, FlowEntry,
    KeptState, KeystreamSlot, MAX_FLOWS, MAX_KEPT_STATES, MAX_RINGS, PairEntry, TAIL_IN, WAKE_RING,
};
use espada_common::abi::{ClassedAddress, MAX_POLICY_ENTRIES, MAX_SAS, SpiKey};
use espada_common::drops::DropReason;
use espada_common::keystream::{self, SLOTS};
use espada_common::shared_window::{SharedWords, WORDS};
use espada_common::wire::Address;

use super::packet::{Step, Work, mask};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "espada_esp_config")]
static CONFIG: Array<EspConfig, 1> = Array::new();

#[btf_map(name = "espada_esp_sain")]
static IN: HashMap<SpiKey, EspInEntry, { MAX_SAS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_esp_saout")]
static OUT: HashMap<u32, EspOutEntry, { MAX_SAS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_esp_pairs")]
static PAIRS: HashMap<u32, PairEntry, { MAX_SAS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_esp_flows")]
static FLOWS: Array<FlowEntry, { MAX_FLOWS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "espada_esp_remote")]
static REMOTE: LpmTrie<Address, u32, { MAX_POLICY_ENTRIES as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "espada_esp_local")]
static LOCAL: LpmTrie<ClassedAddress, u32, { MAX_POLICY_ENTRIES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "espada_esp_drops")]
static DROPS: PerCpuArray<u64, { 2 * DropReason::COUNT }> = PerCpuArray::new();

#[btf_map(name = "espada_esp_events")]
static EVENTS: RingBuf<EspEvent, { EVENT_RING as usize }> = RingBuf::new();

#[btf_map(name = "espada_esp_devs")]
static DEVICES: DevMapHash<64> = DevMapHash::new();

#[btf_map(name = "espada_esp_ahead")]
static AHEAD: Array<
    KeystreamSlot,
    { (MAX_RINGS * 2 * SLOTS) as usize },
    { BPF_F_MMAPABLE as usize },
> = Array::new();

#[btf_map(name = "espada_esp_wake")]
static WAKE: RingBuf<AheadWake, { WAKE_RING as usize }> = RingBuf::new();

#[btf_map(name = "espada_esp_progs")]
static PROGRAMS: ProgramArray<1> = ProgramArray::new();

#[btf_map(name = "espada_keep")]
static KEEP: HashMap<u64, KeptState, { MAX_KEPT_STATES as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "espada_esp_work")]
static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

const _: () = assert!(size_of::<bpf_devmap_val>() == 8);

/// This processor's work area.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: this processor's own, and the programs that use it do not interrupt each other.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// The configuration.
#[inline(always)]
pub fn config() -> Option<&'static EspConfig> {
    CONFIG.get(0)
}

/// Runs the program that decrypts; returns only if there is none.
#[inline(always)]
pub fn decrypt(ctx: &XdpContext) {
    // SAFETY: the context is the one the kernel handed to the calling program.
    unsafe { PROGRAMS.tail_call(ctx, TAIL_IN) };
}

/// The inbound SA of an SPI.
#[inline(always)]
pub fn inbound(spi_be: u32) -> Option<InboundSa> {
    IN.get_ptr_mut(SpiKey { spi_be }).map(InboundSa)
}

/// The outbound SA of a pair.
#[inline(always)]
pub fn outbound(handle: u32) -> Option<OutboundSa> {
    OUT.get_ptr_mut(handle).map(OutboundSa)
}

/// Copies where a pair's packets travel. False if the pair is gone.
#[inline(always)]
pub fn pair(handle: u32, into: &mut PairEntry) -> bool {
    // SAFETY: copied out at once; the handle is checked behind the copy.
    let Some(entry) = (unsafe { PAIRS.get(handle) }) else {
        return false;
    };
    *into = *entry;
    into.handle == handle
}

/// The flow of a pair of addresses.
#[inline(always)]
pub fn flow(remote: &Address, local: &Address) -> Option<(u32, &'static FlowEntry)> {
    let class = REMOTE.get(&Key::new(128, *remote))?;
    let local = ClassedAddress {
        class: *class,
        addr: *local,
    };
    let number = *LOCAL.get(&Key::new(160, local))?;
    Some((number, FLOWS.get(number)?))
}

/// Raises an acquire event, at most one a second for each flow.
#[inline(always)]
pub fn acquire(number: u32, source: Address, destination: Address) {
    const INTERVAL_NS: u64 = 1_000_000_000;
    let Some(flow) = FLOWS.get_ptr_mut(number) else {
        return;
    };
    let now = now();
    // SAFETY: an element of an array, which lives as long as the program; only ever exchanged.
    unsafe {
        let told = (*flow).told_ns;
        if now - told < INTERVAL_NS || !exchange(&raw mut (*flow).told_ns, told, now) {
            return;
        }
    }
    tell(EspEvent {
        kind: espada_common::abi::esp::EVENT_ACQUIRE,
        number,
        source,
        destination,
        port: 0,
        padding: 0,
    });
}

/// Hands an event to the control side; without room it is lost.
#[inline(always)]
pub fn tell(event: EspEvent) {
    let _ = EVENTS.output(event, 0);
}

/// Asks for more keystream; without room somebody else has asked.
#[inline(always)]
pub fn wake(wake: AheadWake) {
    let _ = WAKE.output(wake, 0);
}

/// A place for keystream prepared ahead.
#[inline(always)]
pub fn slot(index: u32) -> Option<Prepared> {
    AHEAD.get_ptr_mut(index).map(Prepared)
}

/// Passes the frame to another interface. `Err`: not one that is known.
#[inline(always)]
pub fn redirect(link: u32) -> Result<u32, u32> {
    DEVICES.redirect(link, 0)
}

/// CLOCK_BOOTTIME, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Counts a drop on the way in that belongs to no SA.
#[inline(always)]
pub fn count_in(step: Step) {
    count(!step as u32);
}

/// Counts a drop on the way out that belongs to no SA.
#[inline(always)]
pub fn count_out(step: Step) {
    count(!step as u32 + DropReason::COUNT as u32);
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = DROPS.get_ptr_mut(index) {
        // SAFETY: this CPU's own copy.
        unsafe { *counter += 1 };
    }
}

/// An inbound SA. Its entry may be deleted while it is looked at, but not be given to another SA.
#[derive(Clone, Copy)]
pub struct InboundSa(*mut EspInEntry);

impl InboundSa {
    /// What does not change.
    #[inline(always)]
    pub fn entry(&self) -> &'static EspInEntry {
        // SAFETY: a map value, readable as long as the program runs.
        unsafe { &*self.0 }
    }

    /// Counts a packet.
    #[inline(always)]
    pub fn carried(&self, bytes: u64, prepared: bool, now: u64) {
        // SAFETY: a map value that is only added to atomically.
        unsafe { carried(&raw mut (*self.0).counters, bytes, prepared, now) };
    }

    /// Counts a drop, given how the step ended that failed.
    #[inline(always)]
    pub fn dropped(&self, step: Step) {
        // SAFETY: a map value that is only added to atomically.
        unsafe { dropped(&raw mut (*self.0).counters, step) };
    }
}

impl SharedWords for InboundSa {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        if index >= WORDS {
            return u64::MAX;
        }
        // SAFETY: a word of the window; aligned words are read whole.
        unsafe {
            (&raw const (*self.0).window)
                .cast::<u64>()
                .add(index)
                .read_volatile()
        }
    }

    #[inline(always)]
    fn exchange(&self, index: usize, current: u64, new: u64) -> bool {
        if index >= WORDS {
            return false;
        }
        // SAFETY: a word of the window.
        unsafe {
            exchange(
                (&raw mut (*self.0).window).cast::<u64>().add(index),
                current,
                new,
            )
        }
    }
}

/// Keystream prepared ahead.
#[derive(Clone, Copy)]
pub struct Prepared(*mut KeystreamSlot);

impl Prepared {
    /// How many blocks there are. For whoever has taken the slot.
    #[inline(always)]
    pub fn blocks(&self) -> u32 {
        // SAFETY: a map value.
        unsafe { (*self.0).blocks }
    }

    /// A block, for whoever has taken the slot.
    #[inline(always)]
    pub fn block(&self, index: u32) -> Option<&'static [u32; 16]> {
        const { assert!(keystream::BLOCKS <= 32) };
        // SAFETY: a map value.
        let blocks = unsafe { &(*self.0).keystream };
        blocks.get(mask::<31>(index as usize))
    }
}

impl keystream::Slot for Prepared {
    #[inline(always)]
    fn exchange(&self, current: u64, new: u64) -> bool {
        // SAFETY: a word of a map value.
        unsafe { exchange(&raw mut (*self.0).state, current, new) }
    }

    #[inline(always)]
    fn state(&self) -> u64 {
        // SAFETY: a word of a map value.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    #[inline(always)]
    fn label(&self) -> (u32, u64) {
        // SAFETY: words of a map value.
        unsafe {
            let handle = (&raw const (*self.0).handle).read_volatile();
            (handle, (&raw const (*self.0).iv).read_volatile())
        }
    }
}

/// An outbound SA.
#[derive(Clone, Copy)]
pub struct OutboundSa(*mut EspOutEntry);

impl OutboundSa {
    /// What does not change.
    #[inline(always)]
    pub fn entry(&self) -> &'static EspOutEntry {
        // SAFETY: a map value, readable as long as the program runs.
        unsafe { &*self.0 }
    }

    /// The number of the next packet: every caller on every processor gets another.
    #[inline(always)]
    pub fn next_seq(&self) -> u64 {
        // SAFETY: a map value that is only added to atomically.
        unsafe { fetch_add(&raw mut (*self.0).seq, 1) }.wrapping_add(1)
    }

    /// Counts a packet.
    #[inline(always)]
    pub fn carried(&self, bytes: u64, prepared: bool, now: u64) {
        // SAFETY: a map value that is only added to atomically.
        unsafe { carried(&raw mut (*self.0).counters, bytes, prepared, now) };
    }

    /// Counts a drop, given how the step ended that failed.
    #[inline(always)]
    pub fn dropped(&self, step: Step) {
        // SAFETY: a map value that is only added to atomically.
        unsafe { dropped(&raw mut (*self.0).counters, step) };
    }
}

/// # Safety
/// `counters` must point into a map value.
#[inline(always)]
unsafe fn carried(counters: *mut EspCounters, bytes: u64, prepared: bool, now: u64) {
    // SAFETY: the caller's.
    unsafe {
        crate::maps::atomic_add(&raw mut (*counters).packets, 1);
        crate::maps::atomic_add(&raw mut (*counters).bytes, bytes);
        if prepared {
            crate::maps::atomic_add(&raw mut (*counters).prepared, 1);
        }
        (&raw mut (*counters).last_used_ns).write_volatile(now);
    }
}

/// # Safety
/// `counters` must point into a map value.
#[inline(always)]
unsafe fn dropped(counters: *mut EspCounters, step: Step) {
    let index = !step as u32 as usize;
    if index < DropReason::COUNT {
        // SAFETY: the caller's, and the index lies in the array.
        unsafe {
            crate::maps::atomic_add((&raw mut (*counters).drops).cast::<u64>().add(index), 1);
        }
    }
}

/// Adds and gives the value before.
///
/// # Safety
/// `counter` must point to an aligned u64 of a map value.
#[inline(always)]
unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
    let mut old = value;
    // SAFETY: the caller's pointer is valid; the instruction touches nothing else.
    unsafe {
        asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) old, in(reg) counter);
    }
    old
}

/// Replaces a word if it is `current`; true if it was.
///
/// # Safety
/// `word` must point to an aligned u64 of a map value.
#[inline(always)]
unsafe fn exchange(word: *mut u64, current: u64, new: u64) -> bool {
    let mut found = current;
    // SAFETY: the caller's pointer is valid; the instruction touches nothing else.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) new, inout("r0") found);
    }
    found == current
}
