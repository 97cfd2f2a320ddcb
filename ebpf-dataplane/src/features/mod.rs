//! What Espada asks of the kernel: one table with each feature's name, what it is for, the kernel
//! that brought it and whether it is there. Features are probed, not guessed from the version:
//! distributions backport some and configure others away. Engines word their refusals with
//! [`missing`] and [`refusal`], `espada doctor` shows the whole table.

mod probe;
mod syscall;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;

/// Something a kernel has or lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// The bpf() system call.
    Bpf,
    /// Programs are compiled, not interpreted.
    Jit,
    /// Type information of the kernel.
    Btf,
    /// XDP programs.
    XdpProgram,
    /// tc programs.
    TcProgram,
    /// Hash maps.
    HashMap,
    /// Hash maps that evict.
    LruHashMap,
    /// Hash maps with a copy for each CPU.
    PerCpuHashMap,
    /// Arrays with a copy for each CPU.
    PerCpuArray,
    /// Arrays that userspace maps into memory.
    MmapableArray,
    /// Longest-prefix matches.
    LpmTrie,
    /// Events to userspace.
    RingBuf,
    /// Redirection to AF_XDP sockets.
    XskMap,
    /// Redirection to devices by place.
    DevMap,
    /// Redirection to devices by number.
    DevMapHash,
    /// Tail calls.
    ProgArray,
    /// Room at the head of a packet.
    AdjustHead,
    /// A word for later programs before a packet.
    AdjustMeta,
    /// Reading packets in pieces.
    XdpLoadBytes,
    /// Writing packets in pieces.
    XdpStoreBytes,
    /// Loops the verifier need not unroll.
    Loop,
    /// Route and neighbour lookups.
    FibLookup,
    /// Redirection by map.
    RedirectMap,
    /// Sending to a next hop from tc.
    RedirectNeigh,
    /// A clock that goes on while the machine sleeps.
    BootClock,
    /// Atomic instructions that return the old value.
    AtomicFetch,
    /// XDP attachments that end with their owner.
    XdpLink,
    /// tc attachments that end with their owner.
    Tcx,
    /// AF_XDP sockets.
    AfXdp,
    /// Pairs of virtual Ethernet devices.
    Veth,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Which.
    pub feature: Feature,
    /// What the kernel's documentation calls it.
    pub name: &'static str,
    /// What Espada does with it.
    pub purpose: &'static str,
    /// The first Linux release that has it, for x86-64.
    pub since: &'static str,
    /// The kernel's build option, where there is one of its own.
    pub option: Option<&'static str>,
}

impl fmt::Display for FeatureInfo {
    /// `bpf_loop (Linux 5.17)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (Linux {}", self.name, self.since)?;
        if let Some(option) = self.option {
            write!(f, ", {option}")?;
        }
        f.write_str(")")
    }
}

/// Whether a feature is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present,
    /// It is not.
    Absent,
    /// It could not be asked, and why.
    Unknown(String),
}

const fn row(
    feature: Feature,
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    option: Option<&'static str>,
) -> FeatureInfo {
    FeatureInfo {
        feature,
        name,
        purpose,
        since,
        option,
    }
}

/// The table, in the order of [`Feature`].
pub static TABLE: &[FeatureInfo] = &[
    row(
        Feature::Bpf,
        "bpf() system call",
        "everything in BPF",
        "3.18",
        Some("CONFIG_BPF_SYSCALL"),
    ),
    row(
        Feature::Jit,
        "BPF JIT",
        "speed: without it programs are interpreted, `sysctl -w net.core.bpf_jit_enable=1`",
        "3.16",
        Some("CONFIG_BPF_JIT"),
    ),
    row(
        Feature::Btf,
        "BTF of the kernel",
        "tools such as bpftool; no engine depends on it",
        "4.18",
        Some("CONFIG_DEBUG_INFO_BTF"),
    ),
    row(
        Feature::XdpProgram,
        "XDP programs",
        "front end in the driver, eBPF engine",
        "4.8",
        None,
    ),
    row(
        Feature::TcProgram,
        "tc programs",
        "front end: counters and guard on the way out, ingress where XDP is not possible",
        "4.1",
        Some("CONFIG_NET_CLS_BPF"),
    ),
    row(
        Feature::HashMap,
        "hash map",
        "SAs by SPI, local addresses",
        "3.19",
        None,
    ),
    row(
        Feature::LruHashMap,
        "LRU hash map",
        "fragments that belong to a packet let through",
        "4.10",
        None,
    ),
    row(
        Feature::PerCpuHashMap,
        "per-CPU hash map",
        "counters of inbound SAs",
        "4.6",
        None,
    ),
    row(
        Feature::PerCpuArray,
        "per-CPU array",
        "drop counters, scratch memory",
        "4.6",
        None,
    ),
    row(
        Feature::MmapableArray,
        "mmapable array",
        "counters that programs and workers share",
        "5.5",
        None,
    ),
    row(
        Feature::LpmTrie,
        "LPM trie",
        "policies: the guard against clear text",
        "4.11",
        None,
    ),
    row(
        Feature::RingBuf,
        "ring buffer",
        "events from the eBPF engine: acquire, expiry, a peer that moved",
        "5.8",
        None,
    ),
    row(
        Feature::XskMap,
        "XSKMAP",
        "steering native ESP to AF_XDP sockets",
        "4.18",
        Some("CONFIG_XDP_SOCKETS"),
    ),
    row(
        Feature::DevMap,
        "DEVMAP",
        "the older form of DEVMAP_HASH; no engine depends on it",
        "4.14",
        None,
    ),
    row(
        Feature::DevMapHash,
        "DEVMAP_HASH",
        "sending packets out of another device",
        "5.4",
        None,
    ),
    row(
        Feature::ProgArray,
        "PROG_ARRAY",
        "tail calls between programs",
        "4.2",
        None,
    ),
    row(
        Feature::AdjustHead,
        "bpf_xdp_adjust_head",
        "putting tunnel headers on and taking them off",
        "4.10",
        None,
    ),
    row(
        Feature::AdjustMeta,
        "bpf_xdp_adjust_meta",
        "telling the tc program which way a packet goes",
        "4.15",
        None,
    ),
    row(
        Feature::XdpLoadBytes,
        "bpf_xdp_load_bytes",
        "packet octets into cipher state, at offsets the verifier cannot follow",
        "5.18",
        None,
    ),
    row(
        Feature::XdpStoreBytes,
        "bpf_xdp_store_bytes",
        "cipher output into packets",
        "5.18",
        None,
    ),
    row(
        Feature::Loop,
        "bpf_loop",
        "cipher blocks of a packet, without unrolling",
        "5.17",
        None,
    ),
    row(
        Feature::FibLookup,
        "bpf_fib_lookup",
        "next hop of outer and inner packets",
        "4.18",
        None,
    ),
    row(
        Feature::RedirectMap,
        "bpf_redirect_map",
        "handing packets to a device or an AF_XDP socket",
        "4.14",
        None,
    ),
    row(
        Feature::RedirectNeigh,
        "bpf_redirect_neigh",
        "sending what XDP could not, for want of a neighbour's address or of the driver's help",
        "5.10",
        None,
    ),
    row(
        Feature::BootClock,
        "bpf_ktime_get_boot_ns",
        "SAs that end at their hard lifetime while no daemon runs",
        "5.8",
        None,
    ),
    row(
        Feature::AtomicFetch,
        "atomic fetch-and-add",
        "sequence numbers and replay windows shared by all CPUs",
        "5.12",
        None,
    ),
    row(
        Feature::XdpLink,
        "XDP link",
        "XDP programs that can be pinned and exchanged",
        "5.9",
        None,
    ),
    row(
        Feature::Tcx,
        "tcx",
        "tc programs with links and an order; without it: the clsact qdisc",
        "6.6",
        None,
    ),
    row(
        Feature::AfXdp,
        "AF_XDP sockets",
        "native ESP past the kernel in the userspace engine; without it: raw sockets",
        "4.18",
        Some("CONFIG_XDP_SOCKETS"),
    ),
    row(
        Feature::Veth,
        "veth devices",
        "plaintext interface of the eBPF engine",
        "2.6.24",
        Some("CONFIG_VETH"),
    ),
];

/// What the XDP/TC front end cannot do without, at a tc hook at least.
pub const FRONT_END: &[Feature] = &[
    Feature::Bpf,
    Feature::TcProgram,
    Feature::HashMap,
    Feature::LruHashMap,
    Feature::PerCpuHashMap,
    Feature::PerCpuArray,
    Feature::MmapableArray,
    Feature::LpmTrie,
    Feature::XskMap,
];

/// What the eBPF engine cannot do without, besides an interface for its XDP programs.
pub const EBPF_ENGINE: &[Feature] = &[
    Feature::Bpf,
    Feature::XdpProgram,
    Feature::TcProgram,
    Feature::HashMap,
    Feature::LruHashMap,
    Feature::PerCpuHashMap,
    Feature::PerCpuArray,
    Feature::MmapableArray,
    Feature::LpmTrie,
    Feature::RingBuf,
    Feature::XskMap,
    Feature::DevMapHash,
    Feature::ProgArray,
    Feature::AdjustHead,
    Feature::AdjustMeta,
    Feature::XdpLoadBytes,
    Feature::XdpStoreBytes,
    Feature::Loop,
    Feature::FibLookup,
    Feature::RedirectMap,
    Feature::RedirectNeigh,
    Feature::BootClock,
    Feature::AtomicFetch,
    Feature::XdpLink,
    Feature::Veth,
];

impl Feature {
    /// Its row.
    pub fn info(self) -> &'static FeatureInfo {
        // In the order of the enum, which a test holds it to.
        &TABLE[self as usize]
    }

    /// Whether it is there. Asked once; the answer stays for the life of the process.
    pub fn presence(self) -> &'static Presence {
        static ANSWERS: [OnceLock<Presence>; TABLE.len()] =
            [const { OnceLock::new() }; TABLE.len()];
        ANSWERS[self as usize].get_or_init(|| probe::probe(self))
    }
}

/// Those of `wanted` that the kernel certainly lacks. What cannot be asked (for want of
/// privileges) does not count as missing: using it will say more.
pub fn missing(wanted: &[Feature]) -> Vec<&'static FeatureInfo> {
    wanted
        .iter()
        .filter(|feature| *feature.presence() == Presence::Absent)
        .map(|feature| feature.info())
        .collect()
}

/// Why `wanted` cannot be asked for, where that is so for any of it.
pub fn unknown(wanted: &[Feature]) -> Option<&'static str> {
    wanted.iter().find_map(|feature| match feature.presence() {
        Presence::Unknown(why) => Some(why.as_str()),
        _ => None,
    })
}

/// `this kernel (6.0.9) lacks bpf_loop (Linux 5.17) and XDP link (Linux 5.9)`; `None` when
/// nothing is missing.
pub fn refusal(missing: &[&FeatureInfo]) -> Option<String> {
    let (last, rest) = missing.split_last()?;
    let mut names: String = rest.iter().map(|info| format!("{info}, ")).collect();
    if !rest.is_empty() {
        names.truncate(names.len() - 2);
        names.push_str(" and ");
    }
    Some(format!(
        "this kernel ({}) lacks {names}{last}",
        kernel_release()
    ))
}

/// `uname -r`.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
