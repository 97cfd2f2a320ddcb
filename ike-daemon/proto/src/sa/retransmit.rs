//! Sending a request again until it is answered (RFC 7296 section 2.1).

use std::sync::Arc;
use std::time::Instant;

use super::context::{Common, Cx};
use crate::config::Retransmission;
use crate::notice::Notice;
use crate::wire::ExchangeType;

/// Progress of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retransmit {
    /// Transmissions so far.
    pub sent: u32,
    /// When the next is due, or the request is given up.
    pub due: Instant,
}

/// What is due for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing yet.
    Wait,
    /// Send it again.
    Send,
    /// Nobody answers.
    GiveUp,
}

impl Retransmit {
    /// After the first transmission, at `now`.
    pub fn start(now: Instant, settings: &Retransmission) -> Self {
        Self {
            sent: 1,
            due: now + settings.wait(1),
        }
    }

    /// Of a request that somebody else has sent: it is sent again at once.
    pub fn again(now: Instant) -> Self {
        Self { sent: 0, due: now }
    }

    /// What is due at `now`; a transmission is counted when `Send` is returned.
    pub fn poll(&mut self, now: Instant, settings: &Retransmission) -> Due {
        if now < self.due {
            return Due::Wait;
        }
        if self.sent >= settings.tries {
            return Due::GiveUp;
        }
        self.sent += 1;
        self.due = now + settings.wait(self.sent);
        Due::Send
    }

    /// Sends the request again, as `poll` asked, and says so.
    pub fn send_again(
        &self,
        common: &Common,
        cx: &mut Cx<'_>,
        connection: &Arc<str>,
        exchange: ExchangeType,
        datagrams: &[Vec<u8>],
    ) {
        cx.out.notice(Notice::Retransmitting {
            connection: connection.clone(),
            exchange: exchange.to_string(),
            sent: self.sent,
            of: cx.settings.retransmission.tries,
            remote: common.remote,
        });
        for datagram in datagrams {
            cx.out
                .transmit(common.local, common.remote, datagram.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn backs_off_then_gives_up() {
        let settings = Retransmission {
            first: Duration::from_millis(500),
            base: 2.0,
            max: Duration::from_secs(3),
            tries: 5,
        };
        let start = Instant::now();
        let mut retransmit = Retransmit::start(start, &settings);
        let mut waits = Vec::new();
        loop {
            let now = retransmit.due;
            waits.push(now.duration_since(start).as_millis());
            assert_eq!(
                retransmit.poll(now - Duration::from_nanos(1), &settings),
                Due::Wait
            );
            if retransmit.poll(now, &settings) == Due::GiveUp {
                break;
            }
        }
        assert_eq!(waits, [500, 1500, 3500, 6500, 9500]);
        assert_eq!(retransmit.sent, 5);
    }
}
