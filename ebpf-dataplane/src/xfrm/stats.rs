//! Counters of states, as the control side has them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use espada_common::drops::DropReason;
use espada_common::sa::HalfSaStats;

use super::state::{Known, Side};

/// What a state has carried and refused.
pub fn half(known: &Known, side: Side) -> HalfSaStats {
    let mut stats = HalfSaStats {
        packets: known.current.packets,
        bytes: known.current.bytes,
        last_used: known.last_used.and_then(instant),
        ..HalfSaStats::default()
    };
    match side {
        Side::Inbound => {
            let drops = &known.drops;
            stats.drops[DropReason::Replay as usize] =
                u64::from(drops.replay) + u64::from(drops.replay_window);
            stats.drops[DropReason::AuthFailed as usize] = drops.integrity_failed.into();
        }
        // The kernel counts a large piece of TCP that it cuts after ESP as one packet, but each
        // packet has its sequence number.
        Side::Outbound => {
            if let Some(replay) = &known.replay {
                stats.packets = replay.sent();
            }
        }
    }
    stats
}

/// A time of day (seconds since 1970) on the monotonic clock, unless it is zero.
fn instant(seconds: u64) -> Option<Instant> {
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(Some(seconds).filter(|s| *s > 0)?))?;
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    Instant::now().checked_sub(age)
}
