//! The system calls of the front end that have no safe wrapper: mapping a BPF array into memory,
//! and mounting and recognizing the BPF file system.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// The u64 words of a BPF array with BPF_F_MMAPABLE, shared with the kernel.
#[derive(Debug)]
pub struct MappedWords {
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is only reached as atomics, which any thread may do, and is unmapped once,
// when the last owner drops it.
unsafe impl Send for MappedWords {}
// SAFETY: as for Send.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the first `count` words of an array map.
    pub fn new(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping of a kernel object; the kernel checks that the map allows it
        // and is at least this long.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, count })
    }

    /// The words.
    pub fn get(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped at the page-aligned `base` as long as `self` lives, and
        // every access to them, here and in the kernel, is atomic.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: this very range was mapped in `new`, and no reference to it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}

/// Whether a path lies on a BPF file system.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statfs is plain data, for which zero is a valid value; the call fills it.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a place of the right type.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(about.f_type == libc::BPF_FS_MAGIC)
}

/// Mounts a BPF file system.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    const NAME: &CStr = c"bpf";
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: three terminated strings, no data.
    let result = unsafe {
        libc::mount(
            NAME.as_ptr(),
            path.as_ptr(),
            NAME.as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
