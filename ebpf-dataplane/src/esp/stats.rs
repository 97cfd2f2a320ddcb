//! Counters that a worker writes and the control thread reads, without locks on the packet path.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, ChildSaStats, HalfSaStats, add_drops};

/// Drops by reason. Only one thread may add to it, so plain loads and stores suffice.
#[derive(Debug, Default)]
pub struct DropCounters([AtomicU64; DropReason::COUNT]);

impl DropCounters {
    /// Counts one drop.
    pub fn add(&self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// Counts the drop of so many packets.
    pub fn add_many(&self, reason: DropReason, packets: usize) {
        if let Some(counter) = self.0.get(reason as usize) {
            bump(counter, packets as u64);
        }
    }

    fn add_all(&self, others: &Self) {
        for (counter, other) in self.0.iter().zip(&others.0) {
            bump(counter, other.load(Ordering::Relaxed));
        }
    }

    /// All counters, by reason number.
    pub fn snapshot(&self) -> [u64; DropReason::COUNT] {
        std::array::from_fn(|index| {
            self.0
                .get(index)
                .map_or(0, |counter| counter.load(Ordering::Relaxed))
        })
    }
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// Counters of one direction of a child SA, written by the worker that owns the direction. On cache
/// lines of its own, as those of several lanes are made one after the other.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct SaCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Nanoseconds after the statistics' epoch, plus one; 0 for never.
    last_used: AtomicU64,
    /// Drops that belong to the SA.
    pub drops: DropCounters,
}

impl SaCounters {
    /// Counts carried packets; `at` is the time since the epoch of [`Stats`].
    pub fn carried(&self, packets: u64, bytes: u64, at: Duration) {
        bump(&self.packets, packets);
        bump(&self.bytes, bytes);
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.last_used
            .store(nanos.saturating_add(1), Ordering::Relaxed);
    }

    fn snapshot(&self, epoch: Instant) -> HalfSaStats {
        let last_used = match self.last_used.load(Ordering::Relaxed) {
            0 => None,
            nanos => epoch.checked_add(Duration::from_nanos(nanos - 1)),
        };
        HalfSaStats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.snapshot(),
            last_used,
        }
    }
}

/// Direction of traffic, seen from this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the WAN to the tunnel interface.
    Inbound,
    /// From the tunnel interface to the WAN.
    Outbound,
}

#[derive(Default)]
struct Pair {
    inbound: Option<Arc<SaCounters>>,
    outbound: Option<Arc<SaCounters>>,
}

impl Pair {
    fn side(&mut self, direction: Direction) -> &mut Option<Arc<SaCounters>> {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }
}

/// What both directions of one lane count, shared with the control thread. The lock is taken when SAs
/// come and go and when somebody asks, never for a packet.
pub struct Stats {
    epoch: Instant,
    pairs: Mutex<BTreeMap<ChildSaId, Pair>>,
    /// Inbound drops outside any SA that is there.
    pub inbound_drops: DropCounters,
    /// Outbound drops outside any SA that is there.
    pub outbound_drops: DropCounters,
}

impl Stats {
    /// Empty statistics. No packet may be processed at a time before `epoch`.
    pub fn new(epoch: Instant) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            pairs: Mutex::default(),
            inbound_drops: DropCounters::default(),
            outbound_drops: DropCounters::default(),
        })
    }

    /// Time since the epoch.
    pub fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Starts counting one direction of a pair.
    pub fn register(&self, id: ChildSaId, direction: Direction) -> Arc<SaCounters> {
        let counters = Arc::new(SaCounters::default());
        *self.lock().entry(id).or_default().side(direction) = Some(Arc::clone(&counters));
        counters
    }

    /// Forgets one direction of a pair, but not what it dropped: that is counted outside any SA from here
    /// on. The pair goes with its second direction. To be called by the thread that owns the direction.
    pub fn unregister(&self, id: ChildSaId, direction: Direction) {
        let mut pairs = self.lock();
        if let Some(pair) = pairs.get_mut(&id) {
            if let Some(gone) = pair.side(direction).take() {
                let drops = match direction {
                    Direction::Inbound => &self.inbound_drops,
                    Direction::Outbound => &self.outbound_drops,
                };
                drops.add_all(&gone.drops);
            }
            if pair.inbound.is_none() && pair.outbound.is_none() {
                pairs.remove(&id);
            }
        }
    }

    /// Counters of every pair, by id.
    pub fn snapshot(&self) -> Vec<ChildSaStats> {
        let half = |counters: &Option<Arc<SaCounters>>| {
            counters
                .as_ref()
                .map(|counters| counters.snapshot(self.epoch))
                .unwrap_or_default()
        };
        self.lock()
            .iter()
            .map(|(id, pair)| ChildSaStats {
                id: *id,
                inbound: half(&pair.inbound),
                outbound: half(&pair.outbound),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChildSaId, Pair>> {
        // Every change is a single insert or remove, so a panic elsewhere leaves the map sound.
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of every pair, by id, over all lanes that carry it.
pub fn sum(lanes: &[Arc<Stats>]) -> Vec<ChildSaStats> {
    let mut pairs: BTreeMap<ChildSaId, ChildSaStats> = BTreeMap::new();
    for pair in lanes.iter().flat_map(|lane| lane.snapshot()) {
        pairs
            .entry(pair.id)
            .and_modify(|sum| {
                sum.inbound.add(&pair.inbound);
                sum.outbound.add(&pair.outbound);
            })
            .or_insert(pair);
    }
    pairs.into_values().collect()
}

/// Drops outside any SA that is there over all lanes: inbound, outbound.
pub fn sum_drops(lanes: &[Arc<Stats>]) -> [[u64; DropReason::COUNT]; 2] {
    let mut sums = [[0; DropReason::COUNT]; 2];
    for lane in lanes {
        let [inbound, outbound] = &mut sums;
        add_drops(inbound, &lane.inbound_drops.snapshot());
        add_drops(outbound, &lane.outbound_drops.snapshot());
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_add_up() {
        let epoch = Instant::now();
        let lanes = [0; 2].map(|_| Stats::new(epoch));
        for (lane, stats) in (1..).zip(&lanes) {
            let counters = stats.register(ChildSaId(7), Direction::Outbound);
            counters.carried(lane, 100 * lane, Duration::from_secs(lane));
            counters.drops.add(DropReason::TooBig);
            stats.inbound_drops.add(DropReason::UnknownSpi);
        }
        lanes[1].register(ChildSaId(8), Direction::Inbound);
        let pairs = sum(&lanes);
        assert_eq!(pairs.len(), 2);
        let outbound = &pairs[0].outbound;
        assert_eq!((outbound.packets, outbound.bytes), (3, 300));
        assert_eq!(outbound.last_used, Some(epoch + Duration::from_secs(2)));
        assert_eq!(outbound.drops[DropReason::TooBig as usize], 2);
        let [inbound, outbound] = sum_drops(&lanes);
        assert_eq!(inbound[DropReason::UnknownSpi as usize], 2);
        assert_eq!(outbound.iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_pair_lives_until_both_directions_are_gone_and_its_drops_stay_counted() {
        let epoch = Instant::now();
        let stats = Stats::new(epoch);
        let inbound = stats.register(ChildSaId(7), Direction::Inbound);
        stats.register(ChildSaId(7), Direction::Outbound);
        inbound.carried(3, 300, stats.since_epoch(epoch));
        inbound.drops.add(DropReason::Replay);
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.len(), 1);
        assert_eq!(
            (snapshot[0].inbound.packets, snapshot[0].inbound.bytes),
            (3, 300)
        );
        assert_eq!(snapshot[0].inbound.last_used, Some(epoch));
        assert_eq!(snapshot[0].outbound.last_used, None);
        assert_eq!(snapshot[0].inbound.drops[DropReason::Replay as usize], 1);
        stats.unregister(ChildSaId(7), Direction::Inbound);
        assert_eq!(stats.snapshot().len(), 1);
        stats.unregister(ChildSaId(7), Direction::Outbound);
        assert!(stats.snapshot().is_empty());
        let [inbound, outbound] = sum_drops(&[stats]);
        assert_eq!(inbound[DropReason::Replay as usize], 1);
        assert_eq!(outbound.iter().sum::<u64>(), 0);
    }
}
