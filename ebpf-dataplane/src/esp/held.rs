//! Packets that asked for an SA and wait until it is there.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::spd::Flow;
use crate::umem::Frame;

/// Most packets that wait, of all connections together.
pub(crate) const MOST: usize = 32;
/// Most of one connection.
pub(crate) const MOST_OF_ONE: usize = 8;
/// A packet that has waited longer is of no use to who sent it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A packet that waits.
struct Waiting {
    frame: Frame,
    flow: Flow,
    /// Place of its policy.
    policy: u32,
    since: Instant,
}

/// The packets that wait, oldest first.
#[derive(Default)]
pub struct Held(VecDeque<Waiting>);

impl Held {
    /// Keeps a packet, or gives it back when too many wait: the first ones are what answers a user soonest.
    pub fn keep(
        &mut self,
        now: Instant,
        frame: Frame,
        flow: Flow,
        policy: u32,
    ) -> Result<(), Frame> {
        let of_policy = self.0.iter().filter(|waiting| waiting.policy == policy);
        if self.0.len() >= MOST || of_policy.count() >= MOST_OF_ONE {
            return Err(frame);
        }
        self.0.push_back(Waiting {
            frame,
            flow,
            policy,
            since: now,
        });
        Ok(())
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out those that have waited too long.
    pub fn overdue(&mut self, now: Instant) -> impl Iterator<Item = Frame> + '_ {
        std::iter::from_fn(move || {
            let oldest = self.0.front()?;
            let overdue = now.saturating_duration_since(oldest.since) > PATIENCE;
            overdue
                .then(|| self.0.pop_front())?
                .map(|waiting| waiting.frame)
        })
    }

    /// Takes out those that need wait no longer, in their order.
    pub fn ready(&mut self, mut served: impl FnMut(&Flow) -> bool) -> Vec<Frame> {
        let (ready, waiting): (VecDeque<Waiting>, VecDeque<Waiting>) =
            self.0.drain(..).partition(|waiting| served(&waiting.flow));
        self.0 = waiting;
        ready.into_iter().map(|waiting| waiting.frame).collect()
    }
}
