//! Gateways that send us to others (RFC 5685).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Endpoint;
use crate::config::ConnectionConfig;
use crate::crypto::Random;
use crate::notice::Notice;
use crate::sa::explain;
use crate::sa::redirect::{Gateway, MAX_REDIRECTS, is_usable};

/// In which so many redirects count as a loop (section 8: REDIRECT_LOOP_DETECT_PERIOD).
const PERIOD: Duration = Duration::from_secs(300);

/// A host name that a gateway sends a connection's peer, us, to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Which connection.
    pub connection: Arc<str>,
    /// The name.
    pub host: String,
    /// The gateway that sends us there; an address of its family is wanted.
    pub from: IpAddr,
}

impl<R: Random> Endpoint<R> {
    /// Calls the gateway that another one names, or has its name looked up.
    pub(super) fn redirected(&mut self, now: Instant, name: &Arc<str>, from: IpAddr, to: Gateway) {
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
        if count >= MAX_REDIRECTS {
            let problem = "gateways have redirected us again and again";
            let refusal = explain::redirected(&config, from, problem);
            return self.failed(now, &refusal, true);
        }
        match to {
            Gateway::Address(to) => {
                let told = to.to_string();
                self.go_to(now, &config, from, Some(to), told);
            }
            Gateway::Host(host) => {
                slot.looked_up = Some(host.clone());
                self.lookups.push_back(Lookup {
                    connection: Arc::clone(name),
                    host,
                    from,
                });
            }
        }
    }

    fn go_to(
        &mut self,
        now: Instant,
        config: &Arc<ConnectionConfig>,
        from: IpAddr,
        to: Option<IpAddr>,
        told: String,
    ) {
        let fits = |to: &IpAddr| *to != from && to.is_ipv4() == from.is_ipv4() && is_usable(*to);
        let Some(to) = to.filter(fits) else {
            let problem = format!(
                "what it names ({told}) is the gateway itself, or has no address of this family"
            );
            let refusal = explain::redirected(config, from, &problem);
            return self.failed(now, &refusal, true);
        };
        self.out.notice(Notice::Redirected {
            connection: config.name.clone(),
            from,
            to: told,
        });
        // What fails here tells people by a refusal.
        let _ = self.call(now, config, to, Some(from));
    }

    /// The next host name to look up; what comes of it is handed to [`Self::handle_lookup`].
    pub fn poll_lookup(&mut self) -> Option<Lookup> {
        self.lookups.pop_front()
    }

    /// Takes in what a name was looked up to, `None` if to nothing of the family that is wanted.
    pub fn handle_lookup(&mut self, now: Instant, lookup: &Lookup, address: Option<IpAddr>) {
        let slot = self.slots.get_mut(&lookup.connection);
        // It may have been terminated or called again meanwhile.
        let waits = slot.and_then(|slot| slot.looked_up.take_if(|host| *host == lookup.host));
        if waits.is_none() {
            return;
        }
        let told = match address {
            Some(address) => format!("{} ({address})", lookup.host),
            None => lookup.host.clone(),
        };
        if let Ok(config) = self.connection(&lookup.connection) {
            self.go_to(now, &config, lookup.from, address, told);
        }
    }
}
