//! What a direction of a pair has carried of what it may, also where several lanes carry it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use espada_common::sa::{Allowance, Allowances, ChildSaId, Event};

/// What all lanes together have carried.
#[derive(Debug, Default)]
pub struct SharedMeter {
    bytes: AtomicU64,
    packets: AtomicU64,
}

/// One direction of a pair with limits.
pub struct Meter {
    id: ChildSaId,
    limits: Allowances,
    used: Arc<SharedMeter>,
    /// As this lane saw it last.
    over: bool,
}

impl Meter {
    /// A meter that has counted nothing, or what the lanes that `shared` is of have; none where nothing
    /// is limited.
    pub fn new(
        id: ChildSaId,
        limits: &Allowances,
        shared: Option<&Arc<SharedMeter>>,
    ) -> Option<Self> {
        limits.is_limited().then(|| Self {
            id,
            limits: *limits,
            used: shared.cloned().unwrap_or_default(),
            over: false,
        })
    }

    /// Whether it may carry nothing more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Counts what was carried. Of all lanes the one that crosses a limit tells of it.
    pub fn carried(&mut self, bytes: u64, packets: u64) -> Option<Event> {
        let before = (
            self.used.bytes.fetch_add(bytes, Ordering::Relaxed),
            self.used.packets.fetch_add(packets, Ordering::Relaxed),
        );
        let after = (
            before.0.saturating_add(bytes),
            before.1.saturating_add(packets),
        );
        let crossed = |limit: &Allowance| {
            !limit.is_used_up(before.0, before.1) && limit.is_used_up(after.0, after.1)
        };
        self.over = self.limits.hard.is_used_up(after.0, after.1);
        let hard = crossed(&self.limits.hard);
        (hard || crossed(&self.limits.soft)).then_some(Event::Expire { id: self.id, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Allowances {
        let allowance = |bytes, packets| Allowance { bytes, packets };
        Allowances {
            soft: allowance(Some(1000), None),
            hard: allowance(Some(2000), Some(10)),
        }
    }

    #[test]
    fn limits_are_told_once_by_whichever_lane_crosses_them() {
        let shared = Arc::default();
        let meter = || Meter::new(ChildSaId(1), &limits(), Some(&shared)).unwrap();
        let mut lanes = [meter(), meter()];
        let mut told = Vec::new();
        for step in 0..6 {
            for lane in &mut lanes {
                told.extend(lane.carried(200, 1).map(|event| (step, event)));
            }
        }
        assert!(matches!(
            told[..],
            [
                (2, Event::Expire { hard: false, .. }),
                (4, Event::Expire { hard: true, .. })
            ]
        ));
        assert!(lanes.iter().all(Meter::is_over));
    }

    #[test]
    fn packets_count_as_well_and_nothing_is_metered_without_limits() {
        let mut meter = Meter::new(ChildSaId(1), &limits(), None).unwrap();
        assert!(meter.carried(9, 9).is_none() && !meter.is_over());
        assert!(matches!(
            meter.carried(1, 1),
            Some(Event::Expire { hard: true, .. })
        ));
        assert!(Meter::new(ChildSaId(1), &Allowances::default(), None).is_none());
    }
}
