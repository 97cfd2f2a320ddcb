//! Counters of outbound SAs: slots of a BPF array that is mapped into this process.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use espada_common::abi::{MAX_SAS, SaCounters, maps};

use super::FrontEndError;
use super::syscall::MappedWords;

/// `SaCounters` as words: packets, then bytes.
const WORDS: usize = size_of::<SaCounters>() / size_of::<u64>();

/// What arrived for an inbound SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InCounters {
    /// Our SPI.
    pub spi: u32,
    /// Packets and octets, summed over all processors.
    pub counters: SaCounters,
}

/// What left for an outbound SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutCounters {
    /// The peer's address.
    pub peer: IpAddr,
    /// The peer's SPI.
    pub spi: u32,
    /// Packets and octets.
    pub counters: SaCounters,
}

/// Counts what a worker transmits past the tc egress program (AF_XDP). Cheap to clone; adding
/// is two atomic additions to memory that the kernel's programs add to as well.
#[derive(Clone, Debug)]
pub struct OutCounter {
    words: Arc<MappedWords>,
    slot: u32,
}

impl OutCounter {
    /// Adds transmitted packets and the octets of their IP packets, outer header included.
    pub fn add(&self, packets: u64, bytes: u64) {
        if let [packet_word, byte_word] = slot_words(&self.words, self.slot) {
            packet_word.fetch_add(packets, Ordering::Relaxed);
            byte_word.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Which outbound SA has which slot.
#[derive(Debug)]
pub(super) struct OutTable {
    words: Arc<MappedWords>,
    slots: HashMap<(IpAddr, u32), u32>,
    free: Vec<u32>,
    next: u32,
}

impl OutTable {
    /// With the SAs that are in the map already.
    pub(super) fn new(
        map: BorrowedFd<'_>,
        known: Vec<(IpAddr, u32, u32)>,
    ) -> Result<Self, FrontEndError> {
        let words = MappedWords::new(map, MAX_SAS as usize * WORDS).map_err(|error| {
            FrontEndError::Map {
                map: maps::SA_OUT_STATS,
                reason: format!("cannot map it into memory: {error}"),
            }
        })?;
        let slots: HashMap<(IpAddr, u32), u32> = known
            .into_iter()
            .map(|(peer, spi, slot)| ((peer, spi), slot))
            .collect();
        let next = slots.values().max().map_or(0, |last| last + 1);
        let taken: std::collections::HashSet<u32> = slots.values().copied().collect();
        Ok(Self {
            words: Arc::new(words),
            slots,
            free: (0..next).filter(|slot| !taken.contains(slot)).collect(),
            next,
        })
    }

    /// The slot of an SA, a new one with its counters at zero if it has none yet.
    pub(super) fn insert(&mut self, peer: IpAddr, spi: u32) -> Result<u32, FrontEndError> {
        if let Some(slot) = self.slots.get(&(peer, spi)) {
            return Ok(*slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.next < MAX_SAS => {
                self.next += 1;
                self.next - 1
            }
            None => {
                return Err(FrontEndError::Map {
                    map: maps::SA_OUT_STATS,
                    reason: format!("all {MAX_SAS} outbound SAs are in use"),
                });
            }
        };
        for word in slot_words(&self.words, slot) {
            word.store(0, Ordering::Relaxed);
        }
        self.slots.insert((peer, spi), slot);
        Ok(slot)
    }

    pub(super) fn remove(&mut self, peer: IpAddr, spi: u32) {
        self.free.extend(self.slots.remove(&(peer, spi)));
    }

    pub(super) fn slot(&self, peer: IpAddr, spi: u32) -> Option<u32> {
        self.slots.get(&(peer, spi)).copied()
    }

    pub(super) fn known(&self) -> Vec<(IpAddr, u32)> {
        self.slots.keys().copied().collect()
    }

    pub(super) fn counter(&self, peer: IpAddr, spi: u32) -> Option<OutCounter> {
        Some(OutCounter {
            words: Arc::clone(&self.words),
            slot: *self.slots.get(&(peer, spi))?,
        })
    }

    pub(super) fn counters(&self) -> Vec<OutCounters> {
        let read = |slot: u32, word: usize| {
            slot_words(&self.words, slot)
                .get(word)
                .map_or(0, |word| word.load(Ordering::Relaxed))
        };
        self.slots
            .iter()
            .map(|(&(peer, spi), &slot)| OutCounters {
                peer,
                spi,
                counters: SaCounters {
                    packets: read(slot, 0),
                    bytes: read(slot, 1),
                },
            })
            .collect()
    }
}

fn slot_words(words: &MappedWords, slot: u32) -> &[AtomicU64] {
    let start = slot as usize * WORDS;
    words.get().get(start..start + WORDS).unwrap_or_default()
}
