//! Configured connections: their policies, when they are initiated and tried again.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{Command, Mode, Policy};

use super::{DownReason, DpdAction, Endpoint, Entry, InitiateError, StartAction, init, wall_time};
use crate::config::{ConnectionConfig, RemoteAddress};
use crate::crypto::Random;
use crate::notice::Notice;
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::sa::context::DynRandom;
use crate::sa::cp::{self, Lease};
use crate::sa::{Cx, IkeSa, Phase};
use crate::selector::Sides;
use crate::status::Role;

/// What is remembered of a connection besides its SAs.
#[derive(Default)]
pub(super) struct Slot {
    pub last_error: Option<Arc<Refusal>>,
    /// When it is initiated (again).
    pub start_at: Option<Instant>,
    /// Packets do not initiate it before this time, after a failure.
    hold_until: Option<Instant>,
    failures: u32,
    /// Redirects in a row, and when the first was.
    pub(super) redirects: Option<(u32, Instant)>,
    /// The host name that a redirect is waiting for.
    pub(super) looked_up: Option<String>,
    /// It is to be kept up: by `start = "start"` or a DPD restart, until it is terminated.
    persistent: bool,
    /// As it was loaded last.
    policy: Option<Policy>,
    config: Option<Arc<ConnectionConfig>>,
}

impl<R: Random> Endpoint<R> {
    /// Replaces the configured connections. Running SAs of connections that stay keep what they
    /// negotiated; those of connections that are gone are deleted.
    pub fn set_connections(&mut self, now: Instant, connections: Vec<ConnectionConfig>) {
        self.load_connections(now, connections);
        self.start_due_connections(now);
    }

    /// As [`Self::set_connections`], but what is to be started waits for the next
    /// [`Self::handle_timeout`], so that [`Self::restore`] can come before it.
    pub fn load_connections(&mut self, now: Instant, connections: Vec<ConnectionConfig>) {
        let connections: Vec<Arc<ConnectionConfig>> =
            connections.into_iter().map(Arc::new).collect();
        let names: HashSet<&Arc<str>> = connections.iter().map(|config| &config.name).collect();
        let old = std::mem::take(&mut self.connections);
        for config in old.iter().filter(|config| !names.contains(&config.name)) {
            self.close(now, &config.name);
            self.start_at(&config.name, None);
            self.slots.remove(&config.name);
            self.out.commands.push_back(Command::RemovePolicy {
                connection: config.name.clone(),
            });
        }
        let before: HashMap<&Arc<str>, _> = old.iter().map(|old| (&old.name, old)).collect();
        for config in &connections {
            let before = before.get(&config.name);
            let lease = self.lease_of(config);
            let policy = self.policy(config, config.start == StartAction::Trap, lease.as_deref());
            let slot = self.slots.entry(config.name.clone()).or_default();
            slot.config = Some(config.clone());
            if slot.policy.as_ref() != Some(&policy) {
                slot.policy = Some(policy.clone());
                self.out.commands.push_back(Command::InstallPolicy(policy));
            }
            let starts = config.start == StartAction::Start;
            if starts && before.is_none_or(|before| before.start != StartAction::Start) {
                slot.persistent = true;
            } else if slot.start_at.is_some() {
                // It waits after a failure, which the new settings may have cured.
                slot.failures = 0;
            } else {
                continue;
            }
            self.start_at(&config.name, Some(now));
        }
        self.connections = connections;
    }

    /// Sets a connection up. Succeeds when it is on its way already.
    pub fn initiate(&mut self, now: Instant, connection: &str) -> Result<(), InitiateError> {
        let config = self.connection(connection)?;
        if self.newest_established(&config.name).is_some() {
            return Err(InitiateError::AlreadyUp(config.name.clone()));
        }
        if let Some(slot) = self.slots.get_mut(&config.name) {
            slot.persistent = config.start == StartAction::Start;
        }
        self.begin(now, &config)
    }

    /// What is protected whether or not an SA is up. In transport mode that is nothing as long as
    /// the address of one of the hosts is unknown: who might call from anywhere is protected from
    /// when its SA is up.
    fn policy(&self, config: &ConnectionConfig, trap: bool, lease: Option<&Lease>) -> Policy {
        let remote = match config.remote_address {
            RemoteAddress::Address(remote) => Some(remote),
            RemoteAddress::Any => None,
        };
        let source = || self.sources.get(&remote?).copied();
        let hosts = config.local_address.or_else(source).zip(remote);
        let (local_ts, remote_ts) = match (config.mode, hosts) {
            (Mode::Tunnel, _) => {
                let mut sides = Sides {
                    local: config.local_ts.clone(),
                    remote: config.remote_ts.clone(),
                };
                let follows = cp::follows(config);
                if follows.local {
                    sides.local = lease.map_or_else(Vec::new, Lease::hosts);
                }
                if follows.remote {
                    // Whoever has which of them: none is reached in clear.
                    sides.remote = config.pools.iter().map(|pool| pool.addresses).collect();
                }
                (sides.local, sides.remote)
            }
            (Mode::Transport, Some((local, remote))) => {
                let sides = config.sides(local, remote);
                (sides.local, sides.remote)
            }
            (Mode::Transport, None) => (Vec::new(), Vec::new()),
        };
        Policy {
            connection: config.name.clone(),
            local_ts,
            remote_ts,
            trap,
            mode: config.mode,
            addresses: lease.map_or_else(Vec::new, |lease| lease.addresses.clone()),
        }
    }

    /// The virtual addresses that we have in a connection.
    fn lease_of(&self, config: &ConnectionConfig) -> Option<Arc<Lease>> {
        if config.vips.is_empty() {
            return None;
        }
        let ours = self
            .of_connection(&config.name)
            .map(|(_, sa)| sa)
            .filter(|sa| sa.is_established())
            .filter_map(|sa| Some((sa.common.began, sa.common.lease.as_ref()?)))
            .filter(|(_, lease)| lease.ours);
        let newest = ours.max_by_key(|(began, _)| *began);
        newest.map(|(_, lease)| Arc::clone(lease))
    }

    /// Has the policy follow the virtual addresses.
    pub(super) fn refresh_policy(&mut self, config: &ConnectionConfig) {
        if config.vips.is_empty() {
            return;
        }
        let lease = self.lease_of(config);
        let slot = self.slots.get(&config.name);
        let Some(before) = slot.and_then(|slot| slot.policy.as_ref()) else {
            return;
        };
        let policy = self.policy(config, before.trap, lease.as_deref());
        if policy == *before {
            return;
        }
        if let Some(slot) = self.slots.get_mut(&config.name) {
            slot.policy = Some(policy.clone());
        }
        self.out.notice(Notice::VirtualAddresses {
            connection: config.name.clone(),
            addresses: policy.addresses.clone(),
            dns: lease.map_or_else(Vec::new, |lease| lease.dns.clone()),
        });
        self.out.commands.push_back(Command::InstallPolicy(policy));
    }

    /// Deletes a connection's SAs and does not set it up again until it is initiated.
    pub fn terminate(&mut self, now: Instant, connection: &str) -> Result<(), InitiateError> {
        let config = self.connection(connection)?;
        self.start_at(&config.name, None);
        if let Some(slot) = self.slots.get_mut(&config.name) {
            *slot = Slot {
                last_error: slot.last_error.take(),
                policy: slot.policy.take(),
                config: slot.config.take(),
                ..Slot::default()
            };
        }
        self.close(now, &config.name);
        Ok(())
    }

    pub(super) fn connection(&self, name: &str) -> Result<Arc<ConnectionConfig>, InitiateError> {
        let found = self.slots.get(name).and_then(|slot| slot.config.clone());
        found.ok_or_else(|| InitiateError::Unknown(name.to_owned()))
    }

    fn of_connection(&self, name: &Arc<str>) -> impl Iterator<Item = (u64, &IkeSa)> {
        self.index
            .of_connection(name)
            .filter_map(|spi| Some((spi, &self.sas.get(&spi)?.sa)))
    }

    /// Has a connection initiated at a time, or not any more.
    pub(super) fn start_at(&mut self, name: &Arc<str>, at: Option<Instant>) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut slot.start_at, at) {
            self.starts.remove(&(before, name.clone()));
        }
        self.starts.extend(at.map(|at| (at, name.clone())));
    }

    fn close(&mut self, now: Instant, name: &Arc<str>) {
        for spi in self.index.of_connection(name).collect::<Vec<_>>() {
            self.with_sa(now, spi, |sa, cx| sa.terminate(cx));
        }
    }

    /// Sends the first request unless a negotiation is on its way.
    fn begin(&mut self, now: Instant, config: &Arc<ConnectionConfig>) -> Result<(), InitiateError> {
        self.start_at(&config.name, None);
        if self
            .of_connection(&config.name)
            .any(|(_, sa)| sa.is_active())
        {
            return Ok(());
        }
        let RemoteAddress::Address(remote) = config.remote_address else {
            return Err(InitiateError::NoRemote(config.name.clone()));
        };
        self.call(now, config, remote, None)
    }

    /// Sends the first request to an address of the peer's. `redirected`: the gateway that sent us there.
    pub(super) fn call(
        &mut self,
        now: Instant,
        config: &Arc<ConnectionConfig>,
        remote: IpAddr,
        redirected: Option<IpAddr>,
    ) -> Result<(), InitiateError> {
        if let Some(slot) = self.slots.get_mut(&config.name) {
            slot.looked_up = None;
        }
        let source = |remote| self.sources.get(&remote).copied();
        let from = redirected.and_then(source);
        let local = config.local_address.or_else(|| source(remote)).or(from);
        let Some(local) = local else {
            let refusal = no_source(config, remote);
            self.failed(now, &Arc::new(refusal), true);
            return Err(InitiateError::NoSource(config.name.clone(), remote));
        };
        let local = SocketAddr::new(local, self.settings.port);
        let remote = SocketAddr::new(remote, config.remote_port);
        let initial_contact = self.index.of_address(remote.ip()).next().is_none();
        let mut cx = Cx {
            now,
            rng: DynRandom(&mut self.rng),
            settings: &self.settings,
            connections: &self.connections,
            secrets: &self.secrets,
            addresses: &self.addresses,
            wall: wall_time(self.wall, now),
            answers: &self.inquiries.answers,
            out: &mut self.out,
        };
        let (initial, from) = (initial_contact, redirected);
        let sa = init::start(&mut cx, config.clone(), local, remote, initial, from);
        self.keep(Entry::new(sa, None));
        self.carry_out_effects(now);
        Ok(())
    }

    /// Initiates what waited until now.
    pub(super) fn start_due_connections(&mut self, now: Instant) {
        while let Some((at, name)) = self.starts.first().cloned()
            && at <= now
        {
            self.start_at(&name, None);
            if let Ok(config) = self.connection(&name) {
                // What can fail here has told people by a refusal, or cannot be initiated at all.
                let _ = self.begin(now, &config);
            }
        }
    }

    fn newest_established(&self, name: &Arc<str>) -> Option<u64> {
        self.of_connection(name)
            .filter(|(_, sa)| sa.is_established())
            .max_by_key(|(_, sa)| sa.common.began)
            .map(|(spi, _)| spi)
    }

    /// A packet needs the connection.
    pub(super) fn acquire(&mut self, now: Instant, connection: &str) {
        let Ok(config) = self.connection(connection) else {
            return;
        };
        if let Some(spi) = self.newest_established(&config.name) {
            return self.with_sa(now, spi, |sa, cx| sa.acquire(cx));
        }
        let held = self
            .slots
            .get(&config.name)
            .and_then(|slot| slot.hold_until);
        if config.start != StartAction::None && held.is_none_or(|until| until <= now) {
            let _ = self.begin(now, &config);
        }
    }

    /// An IKE SA of the connection came up.
    pub(super) fn established(
        &mut self,
        now: Instant,
        spi: u64,
        connection: &Arc<str>,
        initial_contact: bool,
    ) {
        if let Some(slot) = self.slots.get_mut(connection) {
            slot.last_error = None;
            slot.hold_until = None;
            slot.failures = 0;
        }
        self.start_at(connection, None);
        let Some(new) = self.sas.get(&spi).map(|entry| &entry.sa) else {
            return;
        };
        let (ends, began) = (new.identities(), new.common.began);
        // Both ends initiated at once: one IKE SA is enough.
        let needless = self
            .of_connection(connection)
            .filter(|(_, sa)| matches!(sa.phase, Phase::InitSent(_)));
        let with_peer = || {
            let spis = ends.into_iter().flat_map(|ends| self.index.of_ends(ends));
            spis.filter_map(|spi| Some((spi, &self.sas.get(&spi)?.sa)))
                .filter(|(other, sa)| *other != spi && sa.identities() == ends)
        };
        let crossed: Vec<u64> = with_peer()
            .filter(|(_, sa)| sa.connection() == Some(connection) && sa.crosses(new))
            .map(|(other, _)| other)
            .collect();
        // "deletes … any other IKE SAs … authenticated using the same identities" (section 2.4).
        let stale = with_peer().filter(|(_, sa)| initial_contact && sa.common.began <= began);
        let replaced: Vec<u64> = needless
            .chain(stale)
            .map(|(other, _)| other)
            .filter(|other| *other != spi && !crossed.contains(other))
            .collect();
        for other in replaced {
            self.with_sa(now, other, |sa, cx| sa.abandon(cx, DownReason::Replaced));
        }
        if let Ok(config) = self.connection(connection) {
            self.refresh_policy(&config);
        }
        for other in crossed {
            self.drop_duplicate(now, spi, other);
        }
    }

    /// Both ends set an IKE SA up at once. Both know the SPIs, so both choose the same one.
    fn drop_duplicate(&mut self, now: Instant, one: u64, other: u64) {
        let spis = |spi: u64| {
            let entry = self.sas.get(&spi)?;
            Some((entry.sa.common.spi_i, entry.sa.common.spi_r))
        };
        let redundant = if spis(one) < spis(other) { one } else { other };
        self.with_sa(now, redundant, |sa, cx| sa.drop_duplicate(cx));
    }

    /// A negotiation failed: tell people, and try again where that is wanted.
    pub(super) fn failed(&mut self, now: Instant, refusal: &Arc<Refusal>, retry: bool) {
        let up = |name| self.newest_established(name).is_some();
        if !retry
            && refusal.kind == RefusalKind::NoAnswer
            && refusal.connection.as_ref().is_some_and(up)
        {
            return; // An attempt that the peer gave up before the one that worked.
        }
        self.out.notice(Notice::Refused(refusal.clone()));
        let Some(name) = &refusal.connection else {
            return;
        };
        let (first, max) = (self.settings.retry_first, self.settings.retry_max);
        let tries = self
            .connection(name)
            .map_or(0, |config| config.keying_tries);
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        slot.last_error = Some(refusal.clone());
        if !retry {
            return;
        }
        let after = first.saturating_mul(1 << slot.failures.min(16)).min(max);
        slot.failures += 1;
        slot.hold_until = Some(now + after);
        if !slot.persistent {
            return;
        }
        if tries != 0 && slot.failures >= tries {
            slot.persistent = false;
            slot.failures = 0;
            return self.out.notice(Notice::GaveUp {
                connection: name.clone(),
                tries,
            });
        }
        self.schedule(now, name, after);
    }

    /// An IKE SA of the connection is gone.
    pub(super) fn down(&mut self, now: Instant, connection: &Arc<str>, reason: DownReason) {
        let Ok(config) = self.connection(connection) else {
            return;
        };
        let others = self.newest_established(connection).is_some();
        self.refresh_policy(&config);
        let trap = self.policy(&config, true, None);
        let Some(slot) = self.slots.get_mut(connection) else {
            return;
        };
        if others {
            return;
        }
        let mut after = self.settings.retry_first;
        if reason == DownReason::DeadPeer {
            match config.dpd.map(|dpd| dpd.action) {
                Some(DpdAction::Restart) => {
                    slot.persistent |= matches!(config.remote_address, RemoteAddress::Address(_));
                    after = Duration::ZERO;
                }
                Some(DpdAction::Trap) => {
                    slot.persistent = config.start == StartAction::Start;
                    self.out.commands.push_back(Command::InstallPolicy(trap));
                    return;
                }
                Some(DpdAction::Clear) => {
                    slot.persistent = false;
                    return;
                }
                None => {}
            }
        }
        let again = matches!(
            reason,
            DownReason::PeerDeleted
                | DownReason::DeadPeer
                | DownReason::Expired
                | DownReason::ProtocolError
                | DownReason::OutOfStep
        );
        if again && slot.persistent {
            self.schedule(now, connection, after);
        }
    }

    fn schedule(&mut self, now: Instant, name: &Arc<str>, after: Duration) {
        self.start_at(name, Some(now + after));
        if !after.is_zero() {
            self.out.notice(Notice::RetryScheduled {
                connection: name.clone(),
                after,
            });
        }
    }
}

fn no_source(config: &ConnectionConfig, remote: IpAddr) -> Refusal {
    Refusal {
        kind: RefusalKind::NoSource,
        by: RefusedBy::Nobody,
        role: Role::Initiator,
        connection: Some(config.name.clone()),
        summary: format!("the host has no address to reach {remote} from"),
        details: vec![format!(
            "`ip route get {remote}` shows what the host would do"
        )],
        fix: Some(Fix::new(
            &config.origin,
            "local.address",
            "set one of the host's addresses, or add a route to the peer",
        )),
    }
}
