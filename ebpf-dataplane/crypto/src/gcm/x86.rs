//! The vector units of x86-64, and the kernels compiled for each.
#![allow(unsafe_code)]

use super::kernel::{self, Message};
use super::key::Schedule;
use super::vector::Vector;
use crate::cpu::Backend;

mod w128;
mod w256;
mod w512;

use w128::W128;
use w256::W256;
use w512::W512;

/// Octets `0xff`, then as many 0: a register read `n` octets before the middle has `n` of them.
#[repr(C, align(64))]
struct Ramp([u8; 64]);

static RAMP: Ramp = {
    let mut ramp = [0; 64];
    let mut at = 0;
    while at < 32 {
        ramp[at] = 0xff;
        at += 1;
    }
    Ramp(ramp)
};

/// Where to read a register whose first `len` octets are `0xff`, the others 0. `len` and the
/// register are at most 32 octets.
#[inline(always)]
fn ramp(len: usize) -> *const u8 {
    RAMP.0.as_ptr().wrapping_add(32 - len)
}

/// Instructions whose presence the token in `self` proves.
macro_rules! proven {
    ($expression:expr) => {
        // SAFETY: the token is made only where the processor has the instructions, and none of
        // these touches memory.
        unsafe { $expression }
    };
}
use proven;

/// Kernels for one backend and key length.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    prepare: unsafe fn(&[u8]) -> Box<Schedule>,
    seal: unsafe fn(&Schedule, &mut [Message], usize),
    open: unsafe fn(&Schedule, &mut [Message], usize),
}

impl Kernels {
    /// `None` if the processor lacks the instructions, or `rounds` is not 10, 12 or 14.
    pub(super) fn new(backend: Backend, rounds: usize) -> Option<Self> {
        if !backend.is_available() {
            return None;
        }
        macro_rules! kernels {
            ($prepare:ident, $run:ident) => {
                match rounds {
                    10 => kernels!($prepare, $run, 10),
                    12 => kernels!($prepare, $run, 12),
                    14 => kernels!($prepare, $run, 14),
                    _ => return None,
                }
            };
            ($prepare:ident, $run:ident, $rounds:literal) => {
                Self {
                    prepare: $prepare::<$rounds>,
                    seal: $run::<$rounds, true>,
                    open: $run::<$rounds, false>,
                }
            };
        }
        Some(match backend {
            Backend::Vaes512 => kernels!(prepare_512, run_512),
            Backend::Vaes256 => kernels!(prepare_256, run_256),
            Backend::AesNi => kernels!(prepare_128, run_128),
            Backend::Portable => return None,
        })
    }

    /// Expands an AES key.
    pub(super) fn prepare(&self, key: &[u8]) -> Box<Schedule> {
        // SAFETY: `new` saw that the processor has the instructions.
        unsafe { (self.prepare)(key) }
    }

    /// Seals messages.
    ///
    /// # Safety
    /// As [`kernel::run`].
    pub(super) unsafe fn seal(&self, keys: &Schedule, messages: &mut [Message], icv: usize) {
        // SAFETY: as `prepare`; the rest is the caller's promise.
        unsafe { (self.seal)(keys, messages, icv) }
    }

    /// Opens messages.
    ///
    /// # Safety
    /// As [`kernel::run`].
    pub(super) unsafe fn open(&self, keys: &Schedule, messages: &mut [Message], icv: usize) {
        // SAFETY: as `prepare`; the rest is the caller's promise.
        unsafe { (self.open)(keys, messages, icv) }
    }
}

/// The generic kernels within functions that have the instructions.
macro_rules! compile {
    ($token:ident, $features:literal, $prepare:ident, $run:ident) => {
        /// # Safety
        /// The processor must have the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $prepare<const ROUNDS: usize>(key: &[u8]) -> Box<Schedule> {
            // SAFETY: the caller's promise.
            Schedule::new::<_, ROUNDS>(unsafe { $token::new() }, key)
        }

        /// # Safety
        /// The processor must have the instructions; the rest as [`kernel::run`].
        #[target_feature(enable = $features)]
        unsafe fn $run<const ROUNDS: usize, const SEAL: bool>(
            keys: &Schedule,
            messages: &mut [Message],
            icv: usize,
        ) {
            // SAFETY: the caller's promise.
            unsafe { kernel::run::<_, ROUNDS, SEAL>($token::new(), keys, messages, icv) }
        }
    };
}

compile!(W128, "sse4.1,ssse3,aes,pclmulqdq", prepare_128, run_128);
compile!(
    W256,
    "avx2,aes,pclmulqdq,vaes,vpclmulqdq",
    prepare_256,
    run_256
);
compile!(
    W512,
    "avx512f,avx512bw,avx512vl,avx2,aes,pclmulqdq,vaes,vpclmulqdq",
    prepare_512,
    run_512
);
