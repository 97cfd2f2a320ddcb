//! Keystream prepared ahead for the programs: see `espada_common::keystream` for why that is safe.
//!
//! Each of the first pairs has a ring of slots. A thread fills it when the pair is installed, and
//! again whenever the programs say that a part of it is used up; between packets it sleeps.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, RingBuf};
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use espada_common::abi::esp::{AheadWake, EspKey, first_slot, maps};
use espada_common::keystream::{self, BLOCKS, Claim, SLOTS, Slot, WORDS};
use zerocopy::FromBytes;
use zeroize::Zeroizing;

use super::reader::RingReader;
use crate::backend::BackendError;
use crate::frontend::FrontEndError;
use crate::frontend::syscall::MappedWords;

/// What this is for, in errors.
const WHAT: &str = "prepare keystream ahead";

const BLOCK_LEN: usize = 64;

/// Wake-ups in a row without a packet that found its slot ready, after which most are ignored: the peer
/// chooses other IVs, or this thread does not keep up.
const PATIENCE: u32 = 8;

/// Of the ignored wake-ups, each of this many is a new attempt.
const RETRY: u32 = 64;

/// One direction of a pair.
struct Direction {
    key: Zeroizing<[u8; 32]>,
    salt: [u8; 4],
    inbound: bool,
    /// Slots are ready up to this IV, but for those that were in use.
    filled: u64,
    /// Blocks that packets needed lately.
    blocks: usize,
    /// Wake-ups in a row whose packet found no slot ready.
    missed: u32,
}

/// A ring that is in use.
struct Ring {
    number: u32,
    directions: [Direction; 2],
}

struct Shared {
    words: MappedWords,
    rings: BTreeMap<u32, Ring>,
}

impl Shared {
    /// Of so many rings, those that no pair has.
    fn unused(&self, rings: u32) -> impl Iterator<Item = u32> {
        let taken = |number| self.rings.values().any(|ring| ring.number == number);
        (1..=rings).filter(move |number| !taken(*number))
    }
}

/// The rings and the thread that fills them.
pub struct Ahead {
    shared: Arc<Mutex<Shared>>,
    /// How many rings there are.
    rings: u32,
    reader: Option<RingReader>,
    /// The ring that nobody reads without a thread: programs that are loaded later still refer to it.
    unread: Option<RingBuf<MapData>>,
}

impl Ahead {
    /// Maps the slots and starts the thread, if there are any.
    pub fn start(slots: &MapData, ring: RingBuf<MapData>) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: format!("cannot {WHAT}"),
            source,
        };
        let count = slots
            .info()
            .map_err(std::io::Error::other)
            .map_err(system)?;
        let rings = count.max_entries() / (2 * SLOTS);
        let words = rings as usize * 2 * SLOTS as usize * WORDS;
        let words = MappedWords::new(slots.fd().as_fd(), words.max(1)).map_err(|error| {
            super::map_error(FrontEndError::Map {
                map: maps::AHEAD,
                reason: format!("cannot map it into memory: {error}"),
            })
        })?;
        let mut this = Self {
            shared: Arc::new(Mutex::new(Shared {
                words,
                rings: BTreeMap::new(),
            })),
            rings,
            reader: None,
            unread: None,
        };
        if rings == 0 {
            this.unread = Some(ring);
        } else {
            let shared = Arc::clone(&this.shared);
            let read = move |ring: &mut RingBuf<MapData>| refill(&shared, ring);
            this.reader = Some(RingReader::start("espada-ahead", WHAT, ring, read)?);
        }
        Ok(this)
    }

    /// A ring that no pair has, or 0.
    pub fn free(&self) -> u32 {
        lock(&self.shared).unused(self.rings).next().unwrap_or(0)
    }

    /// Fills a ring for a pair, whose last sequence numbers, sent and received, are given.
    pub fn add(&self, number: u32, handle: u32, keys: [&EspKey; 2], last: [u64; 2]) {
        if number == 0 || number > self.rings {
            return;
        }
        let [sending, receiving] = keys;
        let direction = |key: &EspKey, inbound| {
            let mut octets = Zeroizing::new([0; 32]);
            for (place, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(key.words) {
                *place = word.to_le_bytes();
            }
            Direction {
                key: octets,
                salt: key.salt.to_le_bytes(),
                inbound,
                filled: 0,
                blocks: BLOCKS,
                missed: 0,
            }
        };
        let mut ring = Ring {
            number,
            directions: [direction(sending, false), direction(receiving, true)],
        };
        let mut shared = lock(&self.shared);
        for (direction, last) in ring.directions.iter_mut().zip(last) {
            direction.fill(shared.words.get(), number, handle, last);
        }
        shared.rings.insert(handle, ring);
    }

    /// Wipes the rings that no pair has. A process that was killed may have removed a pair and not its
    /// keystream, and its handle is given again if it was the last.
    pub fn wipe_unused(&self) {
        let shared = lock(&self.shared);
        for number in shared.unused(self.rings) {
            wipe(shared.words.get(), number);
        }
    }

    /// Wipes the ring of a pair that is no more.
    pub fn remove(&self, handle: u32) {
        let mut shared = lock(&self.shared);
        if let Some(ring) = shared.rings.remove(&handle) {
            wipe(shared.words.get(), ring.number);
        }
    }

    /// Stops the thread and wipes all rings.
    pub fn stop(&mut self) {
        if let Some(mut reader) = self.reader.take() {
            reader.stop();
        }
        let mut shared = lock(&self.shared);
        for (_, ring) in std::mem::take(&mut shared.rings) {
            wipe(shared.words.get(), ring.number);
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the wake-ups in the ring.
fn refill(shared: &Mutex<Shared>, ring: &mut RingBuf<MapData>) {
    // Of several wake-ups of a direction the last says where it is.
    let mut latest = BTreeMap::new();
    while let Some(item) = ring.next() {
        if let Ok((wake, _)) = AheadWake::read_from_prefix(&item) {
            latest.insert((wake.handle, wake.inbound), wake);
        }
    }
    for wake in latest.values() {
        let mut shared = lock(shared);
        let Shared { words, rings } = &mut *shared;
        if let Some(ring) = rings.get_mut(&wake.handle)
            && let Some(direction) = ring.directions.get_mut(wake.inbound as usize)
            && direction.wants(wake)
        {
            direction.fill(words.get(), ring.number, wake.handle, wake.seq);
        }
    }
}

impl Direction {
    /// Learns from a packet; whether it is worth while to go on.
    fn wants(&mut self, wake: &AheadWake) -> bool {
        self.missed = if wake.prepared != 0 {
            0
        } else {
            self.missed.wrapping_add(1)
        };
        // Block 0, and those of the packet. Small packets among large ones change little.
        let needed = 1 + (wake.encrypted as usize).div_ceil(BLOCK_LEN);
        self.blocks = needed.max(self.blocks.saturating_sub(1)).min(BLOCKS);
        self.missed < PATIENCE || self.missed.is_multiple_of(RETRY)
    }

    /// Prepares slots for the packets behind number `last`, as many as there are.
    fn fill(&mut self, words: &[AtomicU64], ring: u32, handle: u32, last: u64) {
        let mut keystream = Zeroizing::new([0; BLOCKS * BLOCK_LEN]);
        let end = last.saturating_add(SLOTS.into());
        for iv in self.filled.max(last) + 1..=end {
            let index = first_slot(ring, self.inbound) + keystream::place(iv);
            let Some(slot) = SlotWords::at(words, index) else {
                return;
            };
            match keystream::claim(&slot, handle, iv) {
                Claim::Claimed => {
                    let Some(used) = keystream.get_mut(..self.blocks * BLOCK_LEN) else {
                        return;
                    };
                    self.keystream(iv, used);
                    slot.write(handle, iv, used);
                    keystream::publish(&slot);
                }
                // The processor that uses it is at a packet long past: it computes for itself.
                Claim::Ready | Claim::Busy => {}
            }
            self.filled = iv;
        }
    }

    fn keystream(&self, iv: u64, into: &mut [u8]) {
        // RFC 7634 section 2: the nonce is salt and IV.
        let mut nonce = [0; 12];
        let (salt, rest) = nonce.split_at_mut(self.salt.len());
        salt.copy_from_slice(&self.salt);
        rest.copy_from_slice(&iv.to_be_bytes());
        into.fill(0);
        let mut cipher = ChaCha20::new((&*self.key).into(), (&nonce).into());
        // Fails beyond 256 GiB.
        let _ = cipher.try_apply_keystream(into);
    }
}

/// The words of a slot, as in `KeystreamSlot`.
struct SlotWords<'a>(&'a [AtomicU64; WORDS]);

impl<'a> SlotWords<'a> {
    fn at(words: &'a [AtomicU64], index: u32) -> Option<Self> {
        let start = index as usize * WORDS;
        Some(Self(words.get(start..)?.first_chunk()?))
    }

    /// For whoever has claimed it.
    fn write(&self, handle: u32, iv: u64, keystream: &[u8]) {
        let [_, iv_word, about, content @ ..] = self.0;
        let blocks = (keystream.len() / BLOCK_LEN) as u64;
        iv_word.store(iv, Ordering::Relaxed);
        about.store(u64::from(handle) | blocks << 32, Ordering::Relaxed);
        for (word, octets) in content.iter().zip(keystream.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*octets), Ordering::Relaxed);
        }
    }
}

impl Slot for SlotWords<'_> {
    fn exchange(&self, current: u64, new: u64) -> bool {
        let [state, ..] = self.0;
        state
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn state(&self) -> u64 {
        let [state, ..] = self.0;
        state.load(Ordering::Acquire)
    }

    fn label(&self) -> (u32, u64) {
        let [_, iv, about, ..] = self.0;
        (
            about.load(Ordering::Relaxed) as u32,
            iv.load(Ordering::Relaxed),
        )
    }
}

/// Empties all slots of a ring.
fn wipe(words: &[AtomicU64], ring: u32) {
    /// A program uses a slot for microseconds.
    const ATTEMPTS: u32 = 10_000;
    let first = first_slot(ring, false);
    for slot in (first..first + 2 * SLOTS).filter_map(|index| SlotWords::at(words, index)) {
        // Handles begin with 1: nothing is ready for 0.
        let claimed = (0..ATTEMPTS).any(|_| {
            let claimed = keystream::claim(&slot, 0, 0) == Claim::Claimed;
            if !claimed {
                std::thread::yield_now();
            }
            claimed
        });
        if claimed {
            let [_, content @ ..] = slot.0;
            for word in content {
                word.store(0, Ordering::Relaxed);
            }
            keystream::vacate(&slot);
        } else {
            tracing::warn!(
                ring,
                "keystream of an SA that is gone stays in memory until it is overwritten"
            );
        }
    }
}
