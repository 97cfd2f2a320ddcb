//! bpf(2) as the probes need it: programs given as instructions and links that need not succeed.
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// An array that can be mapped into memory.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const PROGRAM_SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
pub const PROGRAM_XDP: u32 = 6;

/// `BPF_XDP`.
pub const ATTACH_XDP: u32 = 37;
/// `BPF_TCX_INGRESS`.
pub const ATTACH_TCX_INGRESS: u32 = 46;
/// XDP in the driver or not at all.
pub const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits (little-endian hosts).
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Ends the program with the result in r0.
    pub const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);

    /// Operation code, registers 0 to 10, offset and immediate as the kernel's documentation
    /// (Documentation/bpf/standardization/instruction-set.rst) numbers them.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }

    /// `register = value`.
    pub const fn mov_immediate(register: u8, value: i32) -> Self {
        Self::new(0xb7, register, 0, 0, value)
    }

    /// `*(u64 *)(base + offset) = source`.
    pub const fn store_u64(base: u8, source: u8, offset: i16) -> Self {
        Self::new(0x7b, base, source, offset, 0)
    }

    /// `source = atomic_fetch_add((u64 *)(base + offset), source)`.
    pub const fn fetch_add_u64(base: u8, source: u8, offset: i16) -> Self {
        const BPF_FETCH: i32 = 1;
        Self::new(0xdb, base, source, offset, BPF_FETCH)
    }
}

/// Calls bpf(2) with one of its attribute structs; the kernel takes fields beyond its end for zero.
///
/// # Safety
/// Every pointer in the struct must refer to memory of the length that goes with it, live for the
/// call, and writable where the command writes.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the struct is live for the call and its own length is given; the caller answers for
    // what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<A>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}

fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: only called with a descriptor that a system call has just made, which nothing else
    // owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes an array of one u64.
pub fn array_map(flags: u32) -> io::Result<OwnedFd> {
    make_map(BPF_MAP_TYPE_ARRAY, 4, 8, 1, flags)
}

/// Makes a map.
pub fn make_map(
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
    }
    let mut attributes = MapCreate {
        kind,
        key_size,
        value_size,
        max_entries,
        flags,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }.map(owned)
}

/// Loads a program, which the verifier checks first; nothing runs it.
pub fn load(kind: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ProgLoad {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let license = c"GPL";
    let mut attributes = ProgLoad {
        kind,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the instructions are given with their number, the license is a terminated string,
    // and there is no log.
    unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }.map(owned)
}

/// Attaches a program to a device by a link, which ends with the descriptor.
pub fn make_link(
    program: BorrowedFd<'_>,
    device: u32,
    attach: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        device: u32,
        attach: u32,
        flags: u32,
    }
    let mut attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        device,
        attach,
        flags,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }.map(owned)
}

/// Octets of machine code that a program was compiled to; 0 when it is interpreted.
pub fn machine_code_size(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The start of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct ProgInfo {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        machine_code_size: u32,
        instructions_size: u32,
        machine_code: u64,
        instructions: u64,
    }
    const _: () = assert!(offset_of!(ProgInfo, machine_code_size) == 16);
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = ProgInfo::default();
    let mut attributes = GetInfo {
        fd: program.as_raw_fd() as u32,
        length: size_of::<ProgInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the kernel writes at most `length` octets to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    // The kernel wrote it behind the compiler's back.
    // SAFETY: `info` is live and aligned.
    Ok(unsafe { std::ptr::read_volatile(&raw const info.machine_code_size) })
}

/// Opens an AF_XDP socket.
pub fn xdp_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes plain integers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(owned(fd))
}

/// Runs an XDP program on a packet: its result, and the packet after it.
#[cfg(test)]
pub fn run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    #[repr(C)]
    struct TestRun {
        program: u32,
        result: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut after = vec![0; 4096];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        result: 0,
        size_in: packet.len() as u32,
        size_out: after.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: after.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: both buffers are given with their lengths, and the second is writable.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    after.truncate(attributes.size_out as usize);
    Ok((attributes.result, after))
}
