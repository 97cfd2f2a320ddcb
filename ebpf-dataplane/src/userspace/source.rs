//! What inbound workers receive from: a port of their own, or one that all lanes share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::EventSink;
use crate::esp::Output;
use crate::esp::stats::DropCounters;
use crate::port::raw::RawReceiver;
use crate::port::syscall::Poller;
use crate::port::udp::UdpReceiver;
use crate::port::xsk::XskReceiver;
use crate::turns::{Turn, Turns};
use crate::umem::{Burst, FramePool};

/// A port of the WAN, as far as it receives.
pub enum Port {
    /// ESP in UDP, and IKE beside it.
    Udp(UdpReceiver),
    /// Native ESP.
    Raw(RawReceiver),
    /// Native ESP past the kernel.
    Xsk(XskReceiver),
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(port) => port.as_fd(),
            Self::Raw(port) => port.as_fd(),
            Self::Xsk(port) => port.as_fd(),
        }
    }
}

impl Port {
    /// Receives one batch: ESP into `burst`, IKE to `sink`. True when more may be waiting.
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        sink: &EventSink,
        drops: &DropCounters,
    ) -> bool {
        match self {
            Self::Udp(port) => port.receive(pool, burst, sink, drops),
            Self::Raw(port) => port.receive(pool, burst, drops),
            Self::Xsk(port) => port.receive(pool, burst, drops),
        }
    }
}

/// A port that all lanes receive from, one at a time, and whose packets leave in the order of arrival
/// whichever lanes decrypted them.
pub struct SharedPort {
    port: Mutex<Port>,
    turns: Turns<Output>,
}

impl SharedPort {
    /// Shares a port.
    pub fn new(port: Port) -> Self {
        Self {
            port: Mutex::new(port),
            turns: Turns::default(),
        }
    }

    /// [`Port::receive`], with the turn of what was received.
    pub fn receive(
        &self,
        pool: &mut FramePool,
        burst: &mut Burst,
        sink: &EventSink,
        drops: &DropCounters,
    ) -> (Option<Turn<'_, Output>>, bool) {
        let mut port = self.lock();
        let more = port.receive(pool, burst, sink, drops);
        let turn = (!burst.is_empty()).then(|| self.turns.take());
        (turn, more)
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        // A port holds nothing between calls that a panic could leave half done.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker receives from.
pub enum Source {
    /// A port of its own.
    Own(Port),
    /// A port of all lanes.
    Shared(Arc<SharedPort>),
}

impl Source {
    /// Has `poller` report input under `number`; that of a shared port to one lane.
    pub fn watch(&self, poller: &mut Poller, number: u64) -> io::Result<()> {
        match self {
            Self::Own(port) => poller.add(port.as_fd(), number),
            Self::Shared(shared) => poller.add_exclusive(shared.lock().as_fd(), number),
        }
    }
}
