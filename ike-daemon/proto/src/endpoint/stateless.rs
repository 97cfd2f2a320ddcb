//! Answers to datagrams of no IKE SA: at most so many a second, and no state.

use std::time::Instant;

use crate::wire::{ExchangeType, Flags, Header, Notify, NotifyType, PayloadType, Writer};

/// A token bucket that holds one second's worth.
pub(super) struct RateLimiter {
    tokens: f64,
    updated: Option<Instant>,
}

impl RateLimiter {
    pub fn new() -> Self {
        Self {
            tokens: 0.0,
            updated: None,
        }
    }

    /// Whether one more may be sent.
    pub fn take(&mut self, now: Instant, per_second: u32) -> bool {
        let capacity = f64::from(per_second);
        self.tokens = match self.updated {
            None => capacity,
            Some(then) => {
                let elapsed = now.saturating_duration_since(then).as_secs_f64();
                (self.tokens + elapsed * capacity).min(capacity)
            }
        };
        self.updated = Some(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// A response with one notify to a request we keep no state for. Its SPIs and message ID are copied.
pub(super) fn answer(
    request: &Header,
    exchange: ExchangeType,
    kind: NotifyType,
    data: &[u8],
) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.notify(Notify::new(kind, data));
    writer.message(Header {
        initiator_spi: request.initiator_spi,
        responder_spi: request.responder_spi,
        next_payload: PayloadType::NONE,
        major: 2,
        minor: 0,
        exchange,
        flags: Flags::new(!request.flags.is_initiator(), true),
        message_id: request.message_id,
        length: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_than_the_rate() {
        let mut limiter = RateLimiter::new();
        let now = Instant::now();
        assert_eq!((0..50).filter(|_| limiter.take(now, 10)).count(), 10);
        let later = now + Duration::from_millis(500);
        assert_eq!((0..50).filter(|_| limiter.take(later, 10)).count(), 5);
    }
}
