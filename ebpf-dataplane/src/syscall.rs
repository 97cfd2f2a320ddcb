//! The thin unsafe layer: processor and system calls that have no safe wrapper.
#![allow(unsafe_code)]

/// The processor's time-stamp counter, where it has one that user code can read.
#[inline]
pub fn tsc() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut processor = 0;
        // SAFETY: RDTSCP only reads the counter; `processor` is a valid place for its second
        // result. It waits for earlier instructions, so it does not time too little.
        Some(unsafe { core::arch::x86_64::__rdtscp(&mut processor) })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        None
    }
}
