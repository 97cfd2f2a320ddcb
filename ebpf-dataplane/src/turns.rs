//! Order where several lanes work on what has one: the packets of a port, or of an outbound SA. Whoever takes a
//! burst takes a turn with it; bursts are worked on at the same time and delivered in the order of their turns. A lane whose
//! turn it is not leaves its burst to the one that delivers, and goes on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A lane waits with a burst that is so many turns ahead: what others must keep meanwhile is bounded.
const MOST_AHEAD: usize = 8;

/// The bursts of one port or SA. `T` is a finished burst; its default is an empty one.
pub struct Turns<T> {
    /// Turns that were taken.
    taken: AtomicU64,
    state: Mutex<State<T>>,
    /// Somebody waits until fewer turns are ahead.
    room: Condvar,
}

struct State<T> {
    /// Number of the next burst that is delivered.
    next: u64,
    /// A lane is delivering what comes before `next`.
    delivering: bool,
    /// Finished bursts from `next` on.
    finished: VecDeque<Option<T>>,
    /// Emptied ones, kept for their capacity.
    spare: Vec<T>,
    /// Lanes that wait for room.
    waiting: usize,
}

impl<T> State<T> {
    fn begin(&mut self) {
        self.next += 1;
        self.delivering = true;
    }

    /// The burst whose turn it is waits to be delivered.
    fn is_finished(&self) -> bool {
        matches!(self.finished.front(), Some(Some(_)))
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            taken: AtomicU64::new(0),
            state: Mutex::new(State {
                next: 0,
                delivering: false,
                finished: VecDeque::with_capacity(MOST_AHEAD),
                spare: Vec::with_capacity(MOST_AHEAD),
                waiting: 0,
            }),
            room: Condvar::new(),
        }
    }
}

/// The turn of a burst. Dropped without [`Turn::deliver`], it is over as if nothing had been in the
/// burst, so that a lane that fails holds nobody up.
pub struct Turn<'a, T: Default> {
    turns: &'a Turns<T>,
    number: u64,
}

impl<T: Default> Turns<T> {
    /// The turn after all that were taken before. What makes the order, such as the lock around the
    /// port, must be held from receiving on until this returns.
    pub fn take(&self) -> Turn<'_, T> {
        Turn {
            turns: self,
            number: self.taken.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, number: u64, burst: &mut T, mut deliver: impl FnMut(&mut T)) {
        let mut state = self.lock();
        while number - state.next >= MOST_AHEAD as u64 {
            if state.delivering || !state.is_finished() {
                state.waiting += 1;
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            } else {
                state = self.deliver_next(state, &mut deliver);
            }
        }
        if state.delivering || number != state.next {
            let ahead = (number - state.next) as usize;
            let empty = state.spare.pop().unwrap_or_default();
            let full = std::mem::replace(burst, empty);
            while state.finished.len() <= ahead {
                state.finished.push_back(None);
            }
            if let Some(place) = state.finished.get_mut(ahead) {
                *place = Some(full);
            }
        } else {
            state.finished.pop_front();
            state.begin();
            drop(state);
            deliver(burst);
            state = self.ended();
        }
        // Where others wait they go on with it, so that nobody delivers for ever.
        while state.waiting == 0 && !state.delivering && state.is_finished() {
            state = self.deliver_next(state, &mut deliver);
        }
        if state.waiting > 0 {
            self.room.notify_all();
        }
    }

    /// Delivers the burst whose turn it is, which must be finished.
    fn deliver_next<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        deliver: &mut impl FnMut(&mut T),
    ) -> MutexGuard<'a, State<T>> {
        let Some(mut burst) = state.finished.pop_front().flatten() else {
            return state;
        };
        state.begin();
        drop(state);
        deliver(&mut burst);
        let mut state = self.ended();
        state.spare.push(burst);
        state
    }

    /// A burst was delivered.
    fn ended(&self) -> MutexGuard<'_, State<T>> {
        let mut state = self.lock();
        state.delivering = false;
        if state.waiting > 0 {
            self.room.notify_all();
        }
        state
    }
}

impl<T: Default> Turn<'_, T> {
    /// Has a finished burst delivered by `deliver` when its turn comes: now, or later by another
    /// lane's `deliver`. `burst` is empty afterwards if `deliver` empties what it is given. Calls
    /// follow each other in the order of the turns, never two at once.
    pub fn deliver(self, burst: &mut T, deliver: impl FnMut(&mut T)) {
        self.turns.settle(self.number, burst, deliver);
        std::mem::forget(self);
    }
}

impl<T: Default> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        // What it would deliver for others in passing is lost with it.
        self.turns.settle(self.number, &mut T::default(), |burst| {
            *burst = T::default();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Lanes take turns under a lock, as a port gives them, and are held up as many microseconds as
    /// `delay` says before each delivery. Gives what was delivered, in order.
    fn run(lanes: usize, bursts: u64, delay: impl Fn(usize, u64) -> u64 + Sync) -> Vec<u64> {
        let turns = Turns::<Vec<u64>>::default();
        let port = Mutex::new(0);
        let delivered = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for lane in 0..lanes {
                let (turns, port, delivered, delay) = (&turns, &port, &delivered, &delay);
                scope.spawn(move || {
                    loop {
                        let (number, turn) = {
                            let mut next = port.lock().unwrap();
                            if *next == bursts {
                                return;
                            }
                            *next += 1;
                            (*next, turns.take())
                        };
                        std::thread::sleep(Duration::from_micros(delay(lane, number)));
                        let mut burst = vec![number];
                        turn.deliver(&mut burst, |burst| {
                            let mut delivered = delivered.try_lock().expect("two at once");
                            delivered.append(burst);
                        });
                        assert!(burst.is_empty());
                    }
                });
            }
        });
        delivered.into_inner().unwrap()
    }

    fn in_order(delivered: &[u64], bursts: u64) -> bool {
        delivered.iter().copied().eq(1..=bursts)
    }

    #[test]
    fn a_lane_that_is_held_up_holds_up_no_more_than_is_bounded() {
        let turns = Turns::<Vec<u64>>::default();
        let held_up = turns.take();
        let mut delivered = Vec::new();
        for number in 1..MOST_AHEAD as u64 {
            turns.take().deliver(&mut vec![number], |_| unreachable!());
        }
        held_up.deliver(&mut vec![0], |burst| delivered.append(burst));
        assert!(delivered.into_iter().eq(0..MOST_AHEAD as u64));
        assert!(in_order(&run(3, 3000, |_, _| 0), 3000));
        assert!(in_order(
            &run(4, 300, |lane, _| if lane == 0 { 3000 } else { 0 }),
            300
        ));
    }

    #[test]
    fn a_turn_that_is_given_up_is_over() {
        let turns = Turns::<Vec<u64>>::default();
        let (first, second) = (turns.take(), turns.take());
        let mut delivered = Vec::new();
        second.deliver(&mut vec![2], |_| unreachable!());
        drop(first);
        turns
            .take()
            .deliver(&mut vec![3], |burst| delivered.append(burst));
        assert_eq!(delivered, [3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn order_is_kept_under_any_delays(
            lanes in 1usize..6,
            delays in prop::collection::vec(0u64..400, 1..40),
        ) {
            let bursts = 200;
            let delay = |lane: usize, number: u64| delays[(number as usize + lane) % delays.len()];
            prop_assert!(in_order(&run(lanes, bursts, delay), bursts));
        }
    }
}
