//! What of the IKE SAs is to be stored outside this process, and when it has changed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{Endpoint, Entry};
use crate::crypto::Random;
use crate::notice::Notice;
use crate::sa::context::Common;
use crate::sa::established::Established;
use crate::sa::protect::fingerprint;
use crate::sa::saved::{self, Clock};
use crate::sa::{IkeSa, Phase};

/// A state as it is to be stored.
pub type SavedState = Zeroizing<Vec<u8>>;

/// Which states are stored, and which of them may have changed.
#[derive(Default)]
pub(super) struct Saving {
    /// Without it nothing is saved.
    pub clock: Option<Clock>,
    /// Our SPIs of IKE SAs that may have changed.
    changed: VecDeque<u64>,
    /// IKE SAs that were replaced: our SPIs of the old and the new one.
    handovers: Vec<(u64, u64)>,
    /// Fingerprints of the states that are stored, by our SPI.
    stored: HashMap<u64, [u8; 32]>,
    /// Our SPIs of IKE SAs whose states are too large, which people were told.
    too_large: HashSet<u64>,
}

impl Saving {
    /// Notes that an IKE SA may have changed.
    pub fn changed(&mut self, entry: &mut Entry) {
        if self.clock.is_some() && (!entry.unsaved || entry.sa.is_gone()) {
            entry.unsaved = true;
            self.changed.push_back(entry.sa.local_spi());
        }
    }

    /// Notes that one IKE SA gave its children to another.
    pub fn handed_over(&mut self, from: u64, to: u64) {
        if self.clock.is_some() {
            self.handovers.push((from, to));
        }
    }

    /// Notes what a predecessor has stored.
    pub fn found(&mut self, spi: u64) {
        self.stored.entry(spi).or_default();
    }
}

/// An IKE SA that has a state to save.
fn established(entry: &Entry) -> Option<(&Common, &Established)> {
    match &entry.sa {
        IkeSa {
            common,
            phase: Phase::Established(established),
        } => Some((common, established)),
        _ => None,
    }
}

impl<R: Random> Endpoint<R> {
    /// Relates `now` to a clock that outlives this process, as CLOCK_BOOTTIME does, in which the
    /// deadlines of saved states are given. To be called once, before any IKE SA comes up:
    /// [`Self::poll_saved`] says nothing without it.
    pub fn set_clock(&mut self, now: Instant, boot: Duration) {
        self.saving.clock = Some(Clock { now, boot });
    }

    /// The next state to store under a key, or with `None` to forget, so that [`Self::restore`]
    /// can go on with it in another process. At most 16 KiB; it contains keys.
    ///
    /// What this gives is to be stored after the commands of [`Self::poll_command`] were carried
    /// out and before the datagrams of [`Self::poll_transmit`] are sent: a message that went out
    /// unrecorded might be followed by another one with its message ID and IV.
    pub fn poll_saved(&mut self) -> Option<(u64, Option<SavedState>)> {
        let clock = self.saving.clock?;
        if let Some((old, new)) = self.saving.handovers.pop() {
            // Both in one: whoever finds only one of two states stored would miss the children, or
            // have them twice. The new one's own comes next, then the old one's without it.
            self.saving.changed.push_front(new);
            let of = |spi| self.sas.get(spi).and_then(established);
            let both = of(&old).zip(of(&new));
            let state = both.and_then(|(old, new)| saved::encode(&[old, new], &clock));
            if let Some(state) = state {
                self.saving.stored.insert(old, [0; 32]);
                return Some((old, Some(state)));
            }
        }
        while let Some(spi) = self.saving.changed.pop_front() {
            let entry = self.sas.get_mut(&spi);
            let entry = entry.map(|entry| {
                entry.unsaved = false;
                &*entry
            });
            let Some((common, established)) = entry.and_then(established) else {
                self.saving.too_large.remove(&spi);
                if self.saving.stored.remove(&spi).is_some() {
                    return Some((spi, None));
                }
                continue;
            };
            let Some(state) = saved::encode(&[(common, established)], &clock) else {
                if self.saving.too_large.insert(spi) {
                    self.out.notice(Notice::NotSaved {
                        connection: established.config.name.clone(),
                        limit: saved::MAX_STATE,
                    });
                }
                if self.saving.stored.remove(&spi).is_some() {
                    return Some((spi, None));
                }
                continue;
            };
            let fingerprint = fingerprint(&state);
            if self.saving.stored.insert(spi, fingerprint) != Some(fingerprint) {
                return Some((spi, Some(state)));
            }
        }
        None
    }

    /// Keys of everything [`Self::poll_saved`] had stored and not forgotten. Nothing is saved
    /// afterwards: for an owner that ends in an orderly way.
    pub fn stop_saving(&mut self) -> Vec<u64> {
        self.saving.clock = None;
        self.saving.stored.drain().map(|(spi, _)| spi).collect()
    }
}
