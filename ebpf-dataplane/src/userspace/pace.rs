//! When a real-time worker lets packets gather before it takes them.
//!
//! A worker that runs before everything else is awake before a sender on the same processor has
//! sent its second packet, and then each packet costs two changes of threads. So while packets come
//! one by one and fast, it sleeps a moment between them, as network cards moderate their
//! interrupts. With few packets it never does, and neither with bursts, which have gathered already.

use std::time::{Duration, Instant};

/// How long packets may gather.
const PAUSE: Duration = Duration::from_micros(50);

/// A worker that was idle for longer than this has few packets to carry.
const BUSY_GAP: Duration = Duration::from_micros(60);

/// Fast wake-ups in a row before pauses begin.
const PATIENCE: u32 = 16;

/// Packets of one wake-up that count as a burst.
const BURST: usize = 32;

/// What one worker remembers of its last wake-ups.
#[derive(Debug)]
pub struct Pace {
    moderates: bool,
    fast: u32,
    idle_since: Instant,
}

impl Pace {
    /// Nothing to do since `now`; pauses only if it `moderates`.
    pub fn new(moderates: bool, now: Instant) -> Self {
        Self {
            moderates,
            fast: 0,
            idle_since: now,
        }
    }

    /// Packets woke the worker: leaves them and those behind them alone for a moment if that pays.
    pub fn gather(&mut self) {
        if self.moderates
            && let Some(pause) = self.woken(Instant::now())
        {
            std::thread::sleep(pause);
        }
    }

    fn woken(&mut self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(self.idle_since);
        self.fast = if gap < BUSY_GAP {
            self.fast.saturating_add(1)
        } else {
            0
        };
        (self.fast > PATIENCE).then_some(PAUSE)
    }

    /// All is done, `packets` in all.
    pub fn finished(&mut self, packets: usize) {
        if self.moderates {
            self.done(Instant::now(), packets);
        }
    }

    fn done(&mut self, now: Instant, packets: usize) {
        self.idle_since = now;
        if packets >= BURST {
            self.fast = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wake-ups `gap` after the last work ended, which takes no time, of `packets` each: how many
    /// of 100 are preceded by a pause.
    fn pauses(gap: Duration, packets: usize) -> usize {
        let mut now = Instant::now();
        let mut pace = Pace::new(true, now);
        let mut pauses = 0;
        for _ in 0..100 {
            now += gap;
            pauses += usize::from(pace.woken(now).is_some());
            pace.done(now, packets);
        }
        pauses
    }

    #[test]
    fn only_single_packets_at_a_high_rate_are_gathered() {
        assert_eq!(pauses(Duration::from_micros(5), 1), 100 - PATIENCE as usize);
        assert_eq!(pauses(Duration::from_micros(200), 1), 0);
        assert_eq!(pauses(Duration::from_micros(5), BURST), 0);
    }

    #[test]
    fn pauses_end_when_packets_become_few() {
        let mut now = Instant::now();
        let mut pace = Pace::new(true, now);
        for _ in 0..50 {
            now += Duration::from_micros(5);
            pace.woken(now);
            pace.done(now, 1);
        }
        now += BUSY_GAP;
        assert_eq!(pace.woken(now), None);
    }
}
