//! The replay window of an inbound SA: of one lane, or shared by all that carry it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use espada_common::replay::{self, ReplayWindow, Replayed};
use espada_common::shared_window::{self, SharedWindow, SharedWords};

use super::Shared;

/// The words of a shared window.
#[derive(Debug)]
pub(super) struct Words(Box<[AtomicU64]>);

impl Default for Words {
    fn default() -> Self {
        Self(
            (0..shared_window::WORDS)
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }
}

impl SharedWords for &Words {
    fn load(&self, index: usize) -> u64 {
        self.0
            .get(index)
            .map_or(u64::MAX, |word| word.load(Ordering::Acquire))
    }

    fn exchange(&self, index: usize, current: u64, new: u64) -> bool {
        self.0.get(index).is_some_and(|word| {
            word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }
}

/// The window.
pub(super) enum Window {
    /// Of one lane.
    Own(ReplayWindow<Box<[u64]>>),
    /// Of all lanes.
    Shared {
        shared: Arc<Shared>,
        size: u32,
        esn: bool,
    },
}

impl Window {
    /// As wide as `size` packets, 0 switches replay protection off. Lanes do not finish their
    /// bursts in the order of arrival, so a window that they share is always as wide as it can be
    /// (RFC 4303 section 3.4.3 leaves the width to the receiver).
    pub fn new(size: u32, esn: bool, shared: Option<&Arc<Shared>>) -> Option<Self> {
        Some(match shared {
            Some(shared) => Self::Shared {
                shared: Arc::clone(shared),
                size: if size == 0 {
                    0
                } else {
                    shared_window::MAX_SIZE
                },
                esn,
            },
            None => {
                let words = vec![0; replay::words_for(size)].into_boxed_slice();
                Self::Own(ReplayWindow::new(words, size, esn)?)
            }
        })
    }

    /// [`ReplayWindow::check`].
    #[inline]
    pub fn check(&self, low: u32) -> Result<u64, Replayed> {
        match self {
            Self::Own(window) => window.check(low),
            Self::Shared { shared, size, esn } => {
                SharedWindow::new(&shared.window, *size, *esn).check(low)
            }
        }
    }

    /// [`ReplayWindow::commit`].
    #[inline]
    pub fn commit(&mut self, seq: u64) -> Result<bool, Replayed> {
        match self {
            Self::Own(window) => window.commit(seq),
            Self::Shared { shared, size, esn } => {
                SharedWindow::new(&shared.window, *size, *esn).commit(seq)
            }
        }
    }
}
