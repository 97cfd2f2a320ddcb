//! IKE on the ESP-in-UDP port where no engine reads it: engines in the kernel take ESP out before
//! it reaches the socket.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use espada_common::drops::DropReason;

use crate::backend::{BackendError, EventSink};
use crate::esp::stats::DropCounters;
use crate::port::syscall::Poller;
use crate::port::udp::{self, UdpReceiver};
use crate::umem::{Arena, Burst};
use crate::wake::Wake;

/// Frames for what arrives at once, of the largest datagram with room to spare.
const FRAMES: usize = 64;
const FRAME_SIZE: usize = 4096;

/// A thread that reads the sockets.
pub struct NatReader {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NatReader {
    /// Starts it.
    pub fn start(sockets: Vec<UdpSocket>, sink: EventSink) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: "cannot read the ESP-in-UDP sockets".to_owned(),
            source,
        };
        let arena = Arena::new(FRAMES, FRAME_SIZE).map_err(system)?;
        let mut pool = arena.take(FRAMES);
        let wake = Wake::new()?;
        let mut poller = Poller::new().map_err(system)?;
        poller.add(wake.as_fd(), u64::MAX).map_err(system)?;
        let mut receivers = Vec::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            udp::prepare(&socket)?;
            let receiver = UdpReceiver::new(socket).map_err(system)?;
            poller
                .add(receiver.as_fd(), number as u64)
                .map_err(system)?;
            receivers.push(receiver);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let drops = DropCounters::default();
            let mut burst = Burst::new();
            loop {
                let ready: Vec<u64> = match poller.wait(None) {
                    Ok(ready) => ready.collect(),
                    Err(error) => {
                        tracing::error!(%error, "IKE on the ESP-in-UDP port is no longer read");
                        return;
                    }
                };
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                for receiver in ready
                    .iter()
                    .filter_map(|number| usize::try_from(*number).ok())
                {
                    let Some(receiver) = receivers.get_mut(receiver) else {
                        continue;
                    };
                    while receiver.receive(&mut pool, &mut burst, &sink, &drops) {}
                    // ESP that no engine took: nobody here has its SA.
                    if !burst.is_empty() {
                        tracing::debug!(
                            packets = burst.len(),
                            reason = DropReason::UnknownSpi.name(),
                            "ESP in UDP that belongs to no SA"
                        );
                    }
                    burst.recycle(&mut pool);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("espada-nat".into())
            .spawn(run);
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
