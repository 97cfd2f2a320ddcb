//! The status report: what the endpoint, the data plane and the front end know, brought together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSaId, ChildSaStats, HalfSaStats};
use espada_ike::{ChildSaStatus, ConnectionStatus, IkeSaStatus, Random};

use super::gateway::Gateway;
use super::plane::WireCounters;
use crate::config::Remote;
use crate::status::{self, LastError, Report};

impl<R: Random> Gateway<R> {
    /// Everything `espada status` shows.
    pub fn report(&mut self, now: Instant) -> Report {
        let pairs = self.plane.backend.sa_stats().unwrap_or_default();
        let pairs: HashMap<ChildSaId, _> = pairs.into_iter().map(|pair| (pair.id, pair)).collect();
        let drops = self.plane.backend.drop_totals().unwrap_or_default();
        let wire = self.plane.observer.wire();
        let counters = self.endpoint.counters();
        let known = self.endpoint.status(now);
        let living: HashSet<u64> = known
            .iter()
            .flat_map(|c| &c.ike_sas)
            .map(|sa| sa.initiator_spi)
            .collect();
        self.establish.retain(|spi, _| living.contains(spi));
        let known: HashMap<&str, _> = known.iter().map(|status| (&*status.name, status)).collect();
        let connections = self
            .config
            .connections
            .iter()
            .map(|configured| {
                let name = configured.name();
                match known.get(&**name) {
                    Some(status) => self.connection_report(status, &pairs, wire.as_ref()),
                    None => unresolved_report(name, &configured.remote),
                }
            })
            .collect();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: self.plane.backend.name().to_owned(),
            engine_reason: self.plane.reason.clone(),
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
            engines: self.plane.engines.clone(),
            interfaces: status::Interfaces {
                tun: self
                    .plane
                    .engines
                    .iter()
                    .find_map(|engine| engine.interface.clone()),
                front_end: self.plane.observer.attachments(),
                xsk: self.plane.xsk,
                workers: self.plane.workers,
                lan: self.plane.lans.iter().map(status::Lan::from).collect(),
            },
            connections,
            drops: status::DropReport {
                inbound: status::nonzero_drops(&drops.inbound),
                outbound: status::nonzero_drops(&drops.outbound),
                front_end: status::nonzero_drops(&drops.front_end),
            },
            half_open: counters.half_open,
            cookies_sent: counters.cookies_sent,
            ike_drops: counters
                .dropped
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(reason, count)| (reason.name().to_owned(), *count))
                .collect(),
        }
    }

    fn connection_report(
        &self,
        status: &ConnectionStatus,
        pairs: &HashMap<ChildSaId, ChildSaStats>,
        wire: Option<&WireCounters>,
    ) -> status::Connection {
        let last_error = self.plane_errors.get(&status.name).cloned().or_else(|| {
            status
                .last_error
                .as_ref()
                .map(|refusal| refusal.as_ref().into())
        });
        let state = match status.state {
            "established" if self.plane_errors.contains_key(&status.name) => "refused",
            "established" => "established",
            "connecting" => "connecting",
            // Nothing is under way: a refusal says more than that it is down or waits.
            _ if last_error.is_some() => "refused",
            "waiting" => "connecting",
            "trap" => "trap",
            _ => "down",
        };
        let main = status
            .ike_sas
            .iter()
            .rev()
            .find(|sa| sa.state == "established")
            .or(status.ike_sas.last());
        let children = status.ike_sas.iter().flat_map(|sa| {
            let report =
                |child: &ChildSaStatus| self.child_report(child, sa, pairs.get(&child.id), wire);
            sa.children.iter().map(report).collect::<Vec<_>>()
        });
        status::Connection {
            name: status.name.to_string(),
            state: state.to_owned(),
            retry_s: status.retry_in.map(|left| left.as_secs()),
            ike: main.map(|sa| self.ike_report(sa)),
            children: children.collect(),
            last_error,
        }
    }

    fn child_report(
        &self,
        child: &ChildSaStatus,
        sa: &IkeSaStatus,
        counted: Option<&ChildSaStats>,
        wire: Option<&WireCounters>,
    ) -> status::ChildSa {
        let mode = self.installed.get(&child.id).map(|known| known.mode);
        let carrier = self.plane.backend.carrier(child.id);
        status::ChildSa {
            id: child.id.0,
            suite: child.suite.clone(),
            encapsulation: status::encapsulation_name(child.encapsulation).to_owned(),
            udp_reason: sa.udp.map(|reason| reason.name().to_owned()),
            mode: mode.map_or("not installed", status::mode_name).to_owned(),
            share: child.share.to_string(),
            engine: carrier.as_ref().map(|carrier| carrier.engine.to_owned()),
            passed_over: carrier.map_or_else(Vec::new, |carrier| carrier.passed_over),
            local_ts: words(&child.local_ts),
            remote_ts: words(&child.remote_ts),
            age_s: child.age.as_secs(),
            next_rekey_s: child.rekey_in.map(|left| left.as_secs()),
            inbound: half_report(
                child.spi_in,
                counted.map(|pair| &pair.inbound),
                wire.map(|wire| wire.inbound.get(&child.spi_in)),
            ),
            outbound: half_report(
                child.spi_out,
                counted.map(|pair| &pair.outbound),
                wire.map(|wire| wire.outbound.get(&(sa.remote.ip(), child.spi_out))),
            ),
        }
    }

    fn ike_report(&self, sa: &IkeSaStatus) -> status::IkeSa {
        status::IkeSa {
            spi_initiator: format!("{:016x}", sa.initiator_spi),
            spi_responder: format!("{:016x}", sa.responder_spi),
            suite: sa.suite.clone(),
            role: sa.role.to_string(),
            local: sa.local.to_string(),
            remote: sa.remote.to_string(),
            local_id: sa.local_id.clone(),
            remote_id: sa.remote_id.clone(),
            nat: status::Nat {
                local: sa.nat_local,
                remote: sa.nat_remote,
            },
            lease: sa.lease.as_ref().map(|lease| status::Lease {
                of: if lease.ours { "us" } else { "peer" }.to_owned(),
                addresses: words(&lease.addresses),
                dns: words(&lease.dns),
            }),
            age_s: sa.age.as_secs(),
            next_rekey_s: sa.rekey_in.map(|left| left.as_secs()),
            establish_ms: self
                .establish
                .get(&sa.initiator_spi)
                .map(|elapsed| elapsed.as_millis() as u64),
        }
    }
}

fn half_report(
    spi: u32,
    counted: Option<&HalfSaStats>,
    seen: Option<Option<&status::Counters>>,
) -> status::HalfSa {
    status::HalfSa {
        spi: format!("{spi:#010x}"),
        packets: counted.map_or(0, |half| half.packets),
        bytes: counted.map_or(0, |half| half.bytes),
        drops: counted.map_or_else(status::Drops::new, |half| {
            status::nonzero_drops(&half.drops)
        }),
        wire: seen.map(|seen| seen.copied().unwrap_or_default()),
    }
}

fn unresolved_report(name: &Arc<str>, remote: &Remote) -> status::Connection {
    let host = match remote {
        Remote::Host(host) => host.as_str(),
        Remote::Known(_) => "the peer",
    };
    status::Connection {
        name: name.to_string(),
        state: "down".to_owned(),
        retry_s: None,
        ike: None,
        children: Vec::new(),
        last_error: Some(LastError {
            kind: "NAME_LOOKUP".to_owned(),
            summary: format!("{host} has no address yet; the lookup is repeated"),
            details: Vec::new(),
            fix: None,
        }),
    }
}

fn words<T: std::fmt::Display>(list: &[T]) -> Vec<String> {
    list.iter().map(T::to_string).collect()
}
