//! Gateways that send us to others (RFC 5685).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Endpoint;
use crate::crypto::Random;
use crate::notice::Notice;
use crate::sa::explain;
use crate::sa::redirect::MAX_REDIRECTS;

/// In which so many redirects count as a loop (section 8: REDIRECT_LOOP_DETECT_PERIOD).
const PERIOD: Duration = Duration::from_secs(300);

impl<R: Random> Endpoint<R> {
    /// Calls the gateway that another one names.
    pub(super) fn redirected(&mut self, now: Instant, name: &Arc<str>, from: IpAddr, to: IpAddr) {
        let Ok(config) = self.connection(name) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let (count, since) = match slot.redirects {
            Some((count, since)) if now.saturating_duration_since(since) < PERIOD => (count, since),
            _ => (0, now),
        };
        slot.redirects = Some((count + 1, since));
        let problem = if count >= MAX_REDIRECTS {
            Some("gateways have redirected us again and again")
        } else if to == from || from.is_ipv4() != to.is_ipv4() {
            Some("it names itself, or an address of the other family")
        } else {
            None
        };
        if let Some(problem) = problem {
            let refusal = explain::redirected(&config, from, problem);
            return self.failed(now, &refusal, true);
        }
        self.out.notice(Notice::Redirected {
            connection: name.clone(),
            from,
            to,
        });
        // What fails here tells people by a refusal.
        let _ = self.call(now, &config, to, Some(from));
    }
}
