//! How each feature is asked for. No probe changes the system: maps and programs are made and
//! dropped, nothing is attached, no device is made. (A probe may make the kernel load a module,
//! as using the feature would.)

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::syscall::{self, Instruction};
use super::{Feature, Presence};
use crate::device;

/// Asks the kernel.
pub fn probe(feature: Feature) -> Presence {
    match feature {
        Feature::Bpf => bpf_call(),
        Feature::Jit => jit(),
        Feature::Btf => file("/sys/kernel/btf/vmlinux"),
        Feature::XdpProgram => program(ProgramType::Xdp),
        Feature::TcProgram => program(ProgramType::SchedClassifier),
        Feature::HashMap => map(MapType::Hash),
        Feature::LruHashMap => map(MapType::LruHash),
        Feature::PerCpuHashMap => map(MapType::PerCpuHash),
        Feature::PerCpuArray => map(MapType::PerCpuArray),
        Feature::MmapableArray => mmapable_array(),
        Feature::LpmTrie => map(MapType::LpmTrie),
        Feature::RingBuf => map(MapType::RingBuf),
        Feature::XskMap => map(MapType::XskMap),
        Feature::DevMap => map(MapType::DevMap),
        Feature::DevMapHash => map(MapType::DevMapHash),
        Feature::ProgArray => map(MapType::ProgramArray),
        Feature::AdjustHead => xdp(BpfHelper::BPF_FUNC_xdp_adjust_head),
        Feature::AdjustMeta => xdp(BpfHelper::BPF_FUNC_xdp_adjust_meta),
        Feature::XdpLoadBytes => xdp(BpfHelper::BPF_FUNC_xdp_load_bytes),
        Feature::XdpStoreBytes => xdp(BpfHelper::BPF_FUNC_xdp_store_bytes),
        Feature::Loop => xdp(BpfHelper::BPF_FUNC_loop),
        Feature::FibLookup => xdp(BpfHelper::BPF_FUNC_fib_lookup),
        Feature::RedirectMap => xdp(BpfHelper::BPF_FUNC_redirect_map),
        Feature::BootClock => xdp(BpfHelper::BPF_FUNC_ktime_get_boot_ns),
        Feature::RedirectNeigh => helper(
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_redirect_neigh,
        ),
        Feature::AtomicFetch => atomic_fetch(),
        Feature::XdpLink => xdp_link(),
        Feature::Tcx => tcx(),
        Feature::AfXdp => af_xdp(),
        Feature::Veth => device::kind_supported("veth"),
    }
}

/// An answer that neither confirms nor denies.
fn unknown(what: &str, error: &io::Error) -> Presence {
    Presence::Unknown(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!("{what} needs root, or a capability that is missing here")
        }
        _ => format!("{what}: {error}"),
    })
}

fn file(path: &str) -> Presence {
    match std::fs::exists(path) {
        Ok(true) => Presence::Present,
        Ok(false) => Presence::Absent,
        Err(error) => unknown(path, &error),
    }
}

fn bpf_call() -> Presence {
    const NAME: &str = "the bpf() system call";
    match syscall::array_map(0) {
        Ok(_) => Presence::Present,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Presence::Absent,
        Err(error) => unknown(NAME, &error),
    }
}

fn map(kind: MapType) -> Presence {
    match is_map_supported(kind) {
        Ok(true) => Presence::Present,
        Ok(false) => Presence::Absent,
        Err(error) => unknown("making BPF maps", &error.io_error),
    }
}

fn of_program(answer: Result<bool, ProgramError>) -> Presence {
    match answer {
        Ok(true) => Presence::Present,
        Ok(false) => Presence::Absent,
        Err(ProgramError::SyscallError(error)) => unknown("loading BPF programs", &error.io_error),
        Err(error) => Presence::Unknown(format!("loading BPF programs: {error}")),
    }
}

fn program(kind: ProgramType) -> Presence {
    of_program(is_program_supported(kind))
}

fn helper(kind: ProgramType, helper: BpfHelper) -> Presence {
    of_program(is_helper_supported(kind, helper))
}

/// Most are asked for XDP programs: that is where the eBPF engine is.
fn xdp(wanted: BpfHelper) -> Presence {
    helper(ProgramType::Xdp, wanted)
}

fn mmapable_array() -> Presence {
    match syscall::array_map(syscall::BPF_F_MMAPABLE) {
        Ok(_) => Presence::Present,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Presence::Absent,
        Err(error) => unknown("making BPF maps", &error),
    }
}

/// `r0 = 2; exit`: XDP_PASS.
const PASS: [Instruction; 2] = [Instruction::mov_immediate(0, 2), Instruction::EXIT];

fn load(kind: u32, program: &[Instruction]) -> Result<OwnedFd, Presence> {
    syscall::load(kind, program).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => Presence::Absent,
        _ => unknown("loading BPF programs", &error),
    })
}

/// The sysctl `net.core.bpf_jit_enable` exists in the first network namespace alone, so a loaded
/// program is asked for the size of its machine code.
fn jit() -> Presence {
    let program = match load(syscall::PROGRAM_XDP, &PASS) {
        Ok(program) => program,
        Err(presence) => return presence,
    };
    match syscall::machine_code_size(program.as_fd()) {
        Ok(0) => Presence::Absent,
        Ok(_) => Presence::Present,
        Err(error) => unknown("asking for a BPF program's machine code", &error),
    }
}

fn atomic_fetch() -> Presence {
    let program = [
        Instruction::mov_immediate(1, 1),
        // *(u64 *)(r10 - 8) = r1
        Instruction::store_u64(10, 1, -8),
        // r1 = atomic_fetch_add((u64 *)(r10 - 8), r1)
        Instruction::fetch_add_u64(10, 1, -8),
        Instruction::mov_immediate(0, 2),
        Instruction::EXIT,
    ];
    match syscall::load(syscall::PROGRAM_XDP, &program) {
        Ok(_) => Presence::Present,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Presence::Absent,
        Err(error) => unknown("loading BPF programs", &error),
    }
}

/// The loopback device has no XDP in its driver, so a kernel that knows such links refuses this
/// one with EOPNOTSUPP; one that does not answers EINVAL.
fn xdp_link() -> Presence {
    const LOOPBACK: u32 = 1;
    let make = |program: BorrowedFd<'_>| {
        syscall::make_link(
            program,
            LOOPBACK,
            syscall::ATTACH_XDP,
            syscall::XDP_FLAGS_DRV_MODE,
        )
    };
    link(syscall::PROGRAM_XDP, libc::EOPNOTSUPP, make)
}

/// With a device that cannot be, a kernel that knows tcx answers ENODEV, others EINVAL.
fn tcx() -> Presence {
    let make = |program: BorrowedFd<'_>| {
        syscall::make_link(program, i32::MAX as u32, syscall::ATTACH_TCX_INGRESS, 0)
    };
    link(syscall::PROGRAM_SCHED_CLS, libc::ENODEV, make)
}

fn link(
    kind: u32,
    expected: i32,
    make: impl FnOnce(BorrowedFd<'_>) -> io::Result<OwnedFd>,
) -> Presence {
    let program = match load(kind, &PASS) {
        Ok(program) => program,
        Err(presence) => return presence,
    };
    match make(program.as_fd()) {
        Ok(_) => Presence::Present,
        Err(error) => match error.raw_os_error() {
            Some(number) if number == expected => Presence::Present,
            Some(libc::EINVAL) => Presence::Absent,
            _ => unknown("attaching BPF programs", &error),
        },
    }
}

fn af_xdp() -> Presence {
    match syscall::xdp_socket() {
        Ok(_) => Presence::Present,
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Presence::Absent,
        Err(error) => unknown("opening an AF_XDP socket", &error),
    }
}
