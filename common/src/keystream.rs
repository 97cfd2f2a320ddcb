//! Keystream prepared ahead: ChaCha20's keystream for the packets that come next, computed in userspace
//! with vector instructions, for eBPF programs that have none.
//!
//! What makes it safe:
//!
//! 1. The content of a slot is a pure function of the SA's key and the IV that stands in the slot.
//! 2. A slot has one owner at any time. It changes hands by compare-and-swap only, FREE → FILLING →
//!    READY → BUSY → FREE, so nobody writes what a processor still reads, or reads what is half
//!    written.
//! 3. Who has taken a slot compares the SA and the IV in it with its packet's, and uses it when they are
//!    the same. An outbound IV is the sequence number, which one atomic counter gives out once, so no
//!    octet of keystream meets two plaintexts, whatever is in the slots.
//! 4. Whoever finds no slot ready computes the keystream itself, for the same sequence number.
//! 5. An inbound packet that fails authentication puts its slot back: forgeries use nothing up.
//! 6. What is in the slots of a pair is wiped when the pair is removed, and when a new process finds slots
//!    that no pair has: a handle means one key as long as any slot names it.
//!
//! Inbound, the IV is the peer's choice. It is guessed to be the sequence number; packets of peers that
//! choose otherwise find no slot.

/// Slots of one direction of an SA. A power of two.
pub const SLOTS: u32 = 512;

/// Blocks of keystream that fit in a slot: number 0, which keys the authenticator, and 24 for 1536 octets.
pub const BLOCKS: usize = 25;

/// Words of 64 bits that a slot takes: state, IV, handle and number of blocks, keystream.
pub const WORDS: usize = 3 + BLOCKS * 8;

/// What may be done with a slot. The values are the words that stand for it.
pub mod state {
    /// Empty.
    pub const FREE: u64 = 0;
    /// Userspace is writing.
    pub const FILLING: u64 = 1;
    /// Whole, to be taken.
    pub const READY: u64 = 2;
    /// A processor is using it.
    pub const BUSY: u64 = 3;
}

/// Where the slot of an IV is among the slots of one direction.
#[inline(always)]
pub const fn place(iv: u64) -> u32 {
    iv as u32 & (SLOTS - 1)
}

/// The words of a slot that decide whose it is.
pub trait Slot {
    /// Replaces the state if it is `current`; true if it was. Orders all other accesses before and after.
    fn exchange(&self, current: u64, new: u64) -> bool;

    /// The state, with the content it stands for.
    fn state(&self) -> u64;

    /// Handle of the SA's pair and IV.
    fn label(&self) -> (u32, u64);
}

/// For a packet: takes a slot if it is ready for this very packet. Then its content may be used until
/// [`give`].
#[inline(always)]
pub fn take(slot: &impl Slot, handle: u32, iv: u64) -> bool {
    if !slot.exchange(state::READY, state::BUSY) {
        return false;
    }
    if slot.label() == (handle, iv) {
        return true;
    }
    give(slot, state::READY);
    false
}

/// Gives a slot that was taken back: `FREE` when it was used, `READY` when it was not.
#[inline(always)]
pub fn give(slot: &impl Slot, new: u64) {
    slot.exchange(state::BUSY, new);
}

/// What [`claim`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It may be written until [`publish`].
    Claimed,
    /// It is ready for this packet already.
    Ready,
    /// A processor is using it.
    Busy,
}

/// For the one that fills slots, of which there is one at a time: takes a slot to write.
pub fn claim(slot: &impl Slot, handle: u32, iv: u64) -> Claim {
    let claimed = match slot.state() {
        // Only the one that fills takes slots out of these states. A slot that is being filled was left
        // by one that was killed.
        state::FREE => slot.exchange(state::FREE, state::FILLING),
        state::FILLING => true,
        state::READY if slot.label() == (handle, iv) => return Claim::Ready,
        state::READY => slot.exchange(state::READY, state::FILLING),
        _ => false,
    };
    if claimed { Claim::Claimed } else { Claim::Busy }
}

/// Makes a slot that was claimed and written ready.
pub fn publish(slot: &impl Slot) {
    slot.exchange(state::FILLING, state::READY);
}

/// Makes a slot that was claimed and wiped empty.
pub fn vacate(slot: &impl Slot) {
    slot.exchange(state::FILLING, state::FREE);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::vec::Vec;

    use super::*;

    /// A slot whose content is two words: torn or foreign content shows.
    #[derive(Default)]
    struct Model {
        state: AtomicU64,
        iv: AtomicU64,
        handle: AtomicU64,
        content: [AtomicU64; 2],
    }

    impl Slot for Model {
        fn exchange(&self, current: u64, new: u64) -> bool {
            self.state
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        }

        fn state(&self) -> u64 {
            self.state.load(Ordering::Acquire)
        }

        fn label(&self) -> (u32, u64) {
            let handle = self.handle.load(Ordering::Relaxed) as u32;
            (handle, self.iv.load(Ordering::Relaxed))
        }
    }

    impl Model {
        /// Something that only this SA and IV have.
        fn function(handle: u32, iv: u64) -> u64 {
            (iv << 8 | u64::from(handle)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }

        fn write(&self, handle: u32, iv: u64) {
            self.handle.store(handle.into(), Ordering::Relaxed);
            self.iv.store(iv, Ordering::Relaxed);
            for word in &self.content {
                word.store(Self::function(handle, iv), Ordering::Relaxed);
            }
        }

        fn read(&self) -> [u64; 2] {
            [0, 1].map(|index| self.content[index].load(Ordering::Relaxed))
        }
    }

    /// One step of an actor: between two steps every other actor may do any of its own.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum At {
        Start,
        Holding,
        Written,
        Read(u64),
        Done,
    }

    /// A slot in which no two actors run at once: the state that the search keeps.
    #[derive(Clone, Debug)]
    struct World {
        words: [u64; 5],
        actors: [At; 4],
    }

    impl World {
        fn slot(&self) -> Model {
            let [state, iv, handle, first, second] = self.words.map(AtomicU64::new);
            Model {
                state,
                iv,
                handle,
                content: [first, second],
            }
        }

        fn keep(&mut self, slot: &Model) {
            let [first, second] = slot.read();
            self.words = [
                slot.state(),
                slot.label().1,
                slot.label().0.into(),
                first,
                second,
            ];
        }

        /// Has actor `number` take its next step; false when it has none.
        fn step(&mut self, number: usize, uses: &mut usize) -> bool {
            // Two processors with packets 1 and 1 + SLOTS, a third with a forgery of 1, and one that
            // fills for 1 and then for 1 + SLOTS; all meet in one slot.
            const HANDLE: u32 = 7;
            let later = 1 + u64::from(SLOTS);
            let ivs = [1, later, 1];
            let slot = self.slot();
            let at = self.actors[number];
            let next = match (number, at) {
                (_, At::Done) => return false,
                (3, At::Start) => match claim(&slot, HANDLE, 1) {
                    Claim::Claimed => {
                        slot.content[0].store(Model::function(HANDLE, 1), Ordering::Relaxed);
                        At::Holding
                    }
                    Claim::Ready | Claim::Busy => At::Written,
                },
                (3, At::Holding) => {
                    slot.write(HANDLE, 1);
                    publish(&slot);
                    At::Written
                }
                (3, At::Written) => match claim(&slot, HANDLE, later) {
                    Claim::Claimed => {
                        slot.content[1].store(Model::function(HANDLE, later), Ordering::Relaxed);
                        At::Read(0)
                    }
                    Claim::Ready | Claim::Busy => At::Done,
                },
                (3, At::Read(_)) => {
                    slot.write(HANDLE, later);
                    publish(&slot);
                    At::Done
                }
                (_, At::Start) if take(&slot, HANDLE, ivs[number]) => At::Holding,
                (_, At::Start) => At::Done,
                (_, At::Holding) => At::Read(slot.read()[0]),
                (_, At::Read(first)) => {
                    let whole = Model::function(HANDLE, ivs[number]);
                    assert_eq!([first, slot.read()[1]], [whole; 2], "{self:?}");
                    *uses += 1;
                    let forged = number == 2;
                    give(&slot, if forged { state::READY } else { state::FREE });
                    At::Done
                }
                (_, At::Written) => unreachable!(),
            };
            self.keep(&slot);
            self.actors[number] = next;
            true
        }
    }

    #[test]
    fn whatever_the_order_of_steps_what_is_used_is_whole_and_the_packets_own() {
        let mut pending = Vec::from([World {
            words: [0; 5],
            actors: [At::Start; 4],
        }]);
        let (mut ends, mut uses) = (0, 0);
        while let Some(world) = pending.pop() {
            let mut ended = true;
            for number in 0..4 {
                let mut next = world.clone();
                if next.step(number, &mut uses) {
                    ended = false;
                    pending.push(next);
                }
            }
            if ended {
                ends += 1;
                assert!(matches!(world.words[0], state::FREE | state::READY));
            }
        }
        assert!(ends > 100 && uses > 100, "{ends} orders, {uses} uses");
    }

    #[test]
    fn a_forgery_gives_its_slot_back() {
        let slot = Model::default();
        assert_eq!(claim(&slot, 7, 1), Claim::Claimed);
        assert!(!take(&slot, 7, 1));
        slot.write(7, 1);
        publish(&slot);
        assert!(take(&slot, 7, 1));
        assert!(!take(&slot, 7, 1));
        assert_eq!(claim(&slot, 7, 1 + u64::from(SLOTS)), Claim::Busy);
        give(&slot, state::READY);
        assert_eq!(claim(&slot, 7, 1), Claim::Ready);
        assert!(!take(&slot, 8, 1));
        assert!(take(&slot, 7, 1));
        give(&slot, state::FREE);
        assert!(!take(&slot, 7, 1));
    }

    #[test]
    fn four_threads_and_one_that_fills() {
        const NUMBERS: u64 = 200_000;
        let slots: Vec<Model> = (0..SLOTS).map(|_| Model::default()).collect();
        let slot = |iv: u64| &slots[place(iv) as usize];
        let next = AtomicU64::new(0);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut filled = 0;
                while filled < NUMBERS {
                    let most = next.load(Ordering::Relaxed) + u64::from(SLOTS);
                    while filled < most {
                        match claim(slot(filled + 1), 7, filled + 1) {
                            Claim::Claimed => {
                                slot(filled + 1).write(7, filled + 1);
                                publish(slot(filled + 1));
                            }
                            Claim::Ready => {}
                            Claim::Busy => break,
                        }
                        filled += 1;
                    }
                    std::thread::yield_now();
                }
            });
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let iv = next.fetch_add(1, Ordering::Relaxed) + 1;
                        if iv > NUMBERS {
                            return;
                        }
                        if take(slot(iv), 7, iv) {
                            assert_eq!(slot(iv).read(), [Model::function(7, iv); 2]);
                            give(slot(iv), state::FREE);
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                        if iv.is_multiple_of(64) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::Relaxed) > 0);
    }
}
