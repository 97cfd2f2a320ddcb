//! A thread that reads a ring of the programs.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use aya::maps::{MapData, RingBuf};

use crate::backend::BackendError;
use crate::port::syscall::Poller;
use crate::wake::Wake;

/// The thread.
pub struct RingReader {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RingReader {
    /// Starts a thread called `name`, which calls `read` whenever there is something in the ring. `what`
    /// it does it for stands in errors.
    pub fn start(
        name: &str,
        what: &'static str,
        mut ring: RingBuf<MapData>,
        mut read: impl FnMut(&mut RingBuf<MapData>) + Send + 'static,
    ) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: format!("cannot {what}"),
            source,
        };
        let wake = Wake::new()?;
        let mut poller = Poller::new().map_err(system)?;
        poller.add(wake.as_fd(), 0).map_err(system)?;
        poller.add(ring.as_fd(), 1).map_err(system)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            loop {
                if let Err(error) = poller.wait(None).map(Iterator::count) {
                    tracing::error!(%error, "can no longer {what}");
                    return;
                }
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                read(&mut ring);
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        Ok(Self {
            wake,
            stop,
            thread: Some(thread.map_err(system)?),
        })
    }

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
