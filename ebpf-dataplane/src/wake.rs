//! Wake-ups between threads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::BackendError;
use crate::port::syscall;

/// A wake-up that can be shared.
#[derive(Clone)]
pub struct Wake(Arc<File>);

impl Wake {
    /// A new one, not signalled.
    pub fn new() -> Result<Self, BackendError> {
        let file = syscall::eventfd().map_err(|source| BackendError::System {
            what: "cannot make an eventfd".into(),
            source,
        })?;
        Ok(Self(Arc::new(file)))
    }

    /// Wakes whoever waits.
    pub fn signal(&self) {
        // Fails only when the counter is about to overflow: then it is signalled already.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }

    /// Takes the signal away.
    pub fn clear(&self) {
        let _ = (&*self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A hint that the way to a peer is not what it was: raised by whoever sends, looked at by the
/// plane's watcher.
#[derive(Clone)]
pub struct Suspicion {
    raised: Arc<AtomicBool>,
    wake: Wake,
}

impl Suspicion {
    /// Not raised; raising it signals `wake`.
    pub fn new(wake: Wake) -> Self {
        Self {
            raised: Arc::new(AtomicBool::new(false)),
            wake,
        }
    }

    /// Raises it.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// Whether it was raised since the last call.
    pub fn take(&self) -> bool {
        self.raised.swap(false, Ordering::AcqRel)
    }
}
