//! Pairs of SAs: how their states and policies come, are replaced, move and go.

use std::time::Instant;

use espada_common::sa::{
    ChildSa, ChildSaId, Encapsulation, HalfSaStats, Mode, Path, Share, Takeover,
};

use super::policy::{Owner, Rank, Sends};
use super::state::{self, Common, Replay, Settings, Side, StateId};
use super::{OffloadKind, XfrmEngine, probe, stats, unsupported};
use crate::backend::BackendError;
use crate::engine::Engine;
use crate::netlink::NetlinkError;

/// Which packets reach a pair's outbound state, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// All: the policy names it.
    Named,
    /// Its share: the policy leaves it to the kernel to find the processor's state among those of the
    /// request id.
    Shared,
    /// None: the kernel has no such state.
    Never,
}

impl Sending {
    fn of(share: Share, per_cpu: bool) -> Self {
        match (share, per_cpu) {
            (Share::Whole, _) | (Share::Fallback, false) => Self::Named,
            (Share::Fallback | Share::Processor(_), true) => Self::Shared,
            // Others carry what the kernel cannot tell by processor.
            (Share::Processor(_), false) | (Share::Peer, _) => Self::Never,
        }
    }
}

/// A pair that is installed.
pub struct Pair {
    /// It, on its present path.
    pub sa: ChildSa,
    /// Request id of its states.
    pub reqid: u32,
    /// Its place in time.
    order: u64,
    /// The pair that sends until it is removed.
    waits_for: Option<ChildSaId>,
    sending: Sending,
    /// A successor has its share, and took its outbound state away.
    retired: bool,
    installed: Instant,
    /// Since when the kernel has its present states.
    placed: Instant,
    offload: Option<(u32, OffloadKind)>,
    /// What states that this pair had on former paths counted.
    pub former: [HalfSaStats; 2],
    /// What was last read of the states: it stays when one has expired.
    pub seen: [HalfSaStats; 2],
}

impl Pair {
    fn rank(&self) -> Rank {
        match self.waits_for {
            Some(_) => Rank::Waiting(self.order),
            None => Rank::Pair(self.order),
        }
    }

    fn sends(&self) -> Sends {
        match (self.sending, self.waits_for) {
            (Sending::Never, _) | (_, Some(_)) => Sends::NotYet,
            (Sending::Named, None) => Sends::Yes,
            (Sending::Shared, None) => Sends::ByProcessor,
        }
    }

    /// Whether it is one of several whose states the kernel tells apart by processor.
    pub fn is_shared(&self) -> bool {
        self.sending == Sending::Shared
    }

    /// Whether the kernel has a state for this side. Of those that it chooses from by itself, one
    /// that does not send yet or any more must not be there.
    pub fn has_state(&self, side: Side) -> bool {
        match (side, self.sending) {
            (Side::Inbound, _) | (Side::Outbound, Sending::Named) => true,
            (Side::Outbound, Sending::Shared) => self.waits_for.is_none() && !self.retired,
            (Side::Outbound, Sending::Never) => false,
        }
    }

    fn policy_offload(&self) -> Option<u32> {
        match self.offload {
            Some((device, OffloadKind::Packet)) => Some(device),
            _ => None,
        }
    }

    fn settings<'a>(
        &self,
        common: &'a Common,
        if_id: u32,
        replay: Option<&'a Replay>,
    ) -> Settings<'a> {
        Settings {
            common,
            reqid: self.reqid,
            if_id: if self.sa.mode == Mode::Tunnel {
                if_id
            } else {
                0
            },
            path: self.sa.path,
            lifetime: self.sa.lifetime.saturating_sub(self.installed.elapsed()),
            offload: self.offload,
            processor: match self.sa.share {
                Share::Processor(number) => Some(number),
                _ => None,
            },
            replay,
        }
    }
}

impl XfrmEngine {
    /// Brings the kernel the policies that a pair should have.
    fn claim_pair(&mut self, id: ChildSaId, sends: Sends) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Ok(());
        };
        let wanted = self
            .scope()
            .of_pair(&pair.sa, pair.reqid, sends, pair.policy_offload())
            .map_err(unsupported)?;
        let rank = pair.rank();
        self.set_claims(&Owner::Pair(id), rank, &wanted)
    }

    /// Installs a pair, which takes over from `old` as that says.
    pub(super) fn install(
        &mut self,
        sa: &ChildSa,
        old: Option<(ChildSaId, Takeover)>,
    ) -> Result<(), BackendError> {
        self.supports(sa).map_err(unsupported)?;
        if self.pairs.contains_key(&sa.id) {
            return Err(BackendError::System {
                what: format!("child SA {} is installed already", sa.id.0),
                source: std::io::Error::from_raw_os_error(libc::EEXIST),
            });
        }
        // An old pair that is gone (it expired) is no reason not to install its successor.
        let old = old.and_then(|(id, takeover)| Some((self.pairs.get(&id)?, takeover)));
        let waits_for = match old {
            Some((old, Takeover::WithRemoval)) => Some(old.sa.id),
            _ => None,
        };
        let reqid = match old {
            Some((old, _)) => old.reqid,
            None => self.reqid_for(sa)?,
        };
        let takes_over = old.map(|(old, takeover)| (old.sa.id, takeover));
        let retires = match old {
            Some((old, Takeover::Now)) if old.is_shared() => Some(old.sa.id),
            _ => None,
        };
        if sa.path.encapsulation == Encapsulation::Udp {
            self.encapsulate(true)?;
        }
        let sending = Sending::of(sa.share, self.probe.per_cpu);
        if sending == Sending::Named && sa.share != Share::Whole {
            tracing::info!(
                connection = %sa.connection,
                "the peer takes SAs for single processors, but this kernel has none (Linux 6.13): one \
                 SA carries everything"
            );
        }
        self.order += 1;
        let pair = Pair {
            sa: sa.clone(),
            reqid,
            order: self.order,
            waits_for,
            sending,
            retired: false,
            installed: Instant::now(),
            placed: Instant::now(),
            offload: None,
            former: Default::default(),
            seen: Default::default(),
        };
        if let Some((old, Takeover::Now)) = takes_over {
            // Of two rekeys that crossed this one prevailed.
            for waiting in self.waiting_for(old) {
                if let Some(pair) = self.pairs.get_mut(&waiting) {
                    pair.waits_for = Some(sa.id);
                }
            }
        }
        self.pairs.insert(sa.id, pair);
        let installed = self.install_offloaded(sa);
        match installed {
            Ok(()) => {
                if let Some(old) = retires {
                    self.end_share(old);
                }
                self.choose_anew(sa.id);
                self.register(sa);
                self.register_reqid(reqid, &sa.connection);
            }
            Err(_) => drop(self.forget(sa.id)),
        }
        installed
    }

    /// Installs a pair that is entered in the tables, with as much help of the device as it gives:
    /// whether it can is found out by trying, as it depends on algorithm, mode, features in use
    /// and what is left of its tables.
    fn install_offloaded(&mut self, sa: &ChildSa) -> Result<(), BackendError> {
        if let Some(device) = self.device(&sa.path) {
            for kind in [OffloadKind::Packet, OffloadKind::Crypto] {
                match self.try_install(sa, Some((device, kind))) {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        tracing::debug!(connection = %sa.connection, ?kind, %error, "no offload");
                    }
                }
            }
        }
        self.try_install(sa, None)
    }

    /// Inbound first: when the peer sees our first packet it may answer at once. The policies come
    /// last; with them traffic moves.
    fn try_install(
        &mut self,
        sa: &ChildSa,
        offload: Option<(u32, OffloadKind)>,
    ) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get_mut(&sa.id) else {
            return Ok(());
        };
        pair.offload = offload;
        let sends = pair.sends();
        let [inbound, outbound] = [Side::Inbound, Side::Outbound].map(|side| StateId::of(sa, side));
        self.add_state(sa.id, Side::Inbound)?;
        let rest = self.add_state(sa.id, Side::Outbound).and_then(|()| {
            let claimed = self.claim_pair(sa.id, sends);
            if claimed.is_err() {
                let _ = state::remove(&mut self.requests, &outbound, &self.common);
            }
            claimed
        });
        if rest.is_err() {
            let _ = state::remove(&mut self.requests, &inbound, &self.common);
            return rest;
        }
        if let Some((_, kind)) = offload {
            // A device without the feature leaves encryption to the kernel without a word. That
            // is no loss: the kernel then cuts what TCP hands it in large pieces after ESP.
            let known = state::look_up(&mut self.requests, &outbound, &self.common);
            if known.is_ok_and(|known| known.is_some_and(|known| known.offloaded)) {
                tracing::info!(connection = %sa.connection, ?kind, "carried by network hardware");
            }
        }
        Ok(())
    }

    /// Gives the kernel a state that it is to have of a pair.
    fn add_state(&mut self, id: ChildSaId, side: Side) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id).filter(|pair| pair.has_state(side)) else {
            return Ok(());
        };
        let settings = pair.settings(&self.common, self.identity.if_id(), None);
        let body = state::describe(&pair.sa, side, &settings);
        let added = state::add(&mut self.requests, &StateId::of(&pair.sa, side), &body);
        added.map_err(|error| refused(&pair.sa, error))
    }

    /// Takes away the outbound state of a pair whose successor has its share.
    fn end_share(&mut self, id: ChildSaId) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        pair.retired = true;
        let outbound = StateId::of(&pair.sa, Side::Outbound);
        if let Err(error) = state::remove(&mut self.requests, &outbound, &self.common) {
            tracing::warn!(%error, "packets may still be sent with a rekeyed SA");
        }
    }

    /// After the states changed among which the kernel chooses by processor. It is a matter of speed:
    /// packets find a state either way.
    fn choose_anew(&mut self, id: ChildSaId) {
        if !self.pairs.get(&id).is_some_and(Pair::is_shared) {
            return;
        }
        let owner = Owner::Pair(id);
        let chosen = self
            .claims
            .choose_anew(&mut self.requests, &self.common, &owner);
        if let Err(error) = chosen {
            tracing::debug!(%error, "processors may go on with the fallback");
        }
    }

    /// The WAN device by which a path leaves, if hardware may be used.
    fn device(&mut self, path: &Path) -> Option<u32> {
        if self.devices.is_empty() {
            return None;
        }
        let (remote, local) = (path.remote.ip(), path.local.ip());
        let hop = self.netlink.route_get(remote, Some(local)).ok()?;
        self.devices.contains(&hop.link).then_some(hop.link)
    }

    fn register(&self, sa: &ChildSa) {
        let mut registry = self.registry.lock();
        for side in [Side::Inbound, Side::Outbound] {
            registry.states.insert(StateId::of(sa, side), (sa.id, side));
        }
    }

    /// Takes a pair whose states and policies are gone out of the tables.
    fn forget(&mut self, id: ChildSaId) -> Option<Pair> {
        let pair = self.pairs.remove(&id);
        self.registry.lock().forget(id);
        self.end_encapsulation();
        pair
    }

    fn waiting_for(&self, id: ChildSaId) -> Vec<ChildSaId> {
        let waiting = self.pairs.values();
        waiting
            .filter(|pair| pair.waits_for == Some(id))
            .map(|pair| pair.sa.id)
            .collect()
    }

    /// A pair sends no longer: whoever waited for its removal does. The newer pair's policies go before
    /// its own, which are left for what it receives.
    pub(super) fn retire(&mut self, id: ChildSaId) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let ends_share = pair.is_shared() && !pair.retired;
        let waiting = self.waiting_for(id);
        let result = self.let_send(&waiting);
        if ends_share {
            self.end_share(id);
        }
        for successor in waiting {
            self.choose_anew(successor);
        }
        result
    }

    /// Has pairs send that waited for another.
    fn let_send(&mut self, waiting: &[ChildSaId]) -> Result<(), BackendError> {
        let mut result = Ok(());
        for &successor in waiting {
            let Some(pair) = self.pairs.get_mut(&successor) else {
                continue;
            };
            pair.waits_for = None;
            let sends = pair.sends();
            if pair.is_shared() {
                result = result.and(self.add_state(successor, Side::Outbound));
            }
            result = result.and(self.claim_pair(successor, sends));
        }
        result
    }

    /// Removes a pair; whoever waited for it sends from here on.
    pub(super) fn remove(&mut self, id: ChildSaId) -> Result<(), BackendError> {
        if !self.pairs.contains_key(&id) {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        }
        // Whoever waited for this sends from here on; then the policies are free to go.
        let waiting = self.waiting_for(id);
        let mut result = self.let_send(&waiting);
        result = result.and(self.set_claims(&Owner::Pair(id), Rank::Connection, &[]));
        if let Some(pair) = self.forget(id) {
            for side in [Side::Outbound, Side::Inbound] {
                let state = StateId::of(&pair.sa, side);
                let removed = state::remove(&mut self.requests, &state, &self.common);
                result = result.and(removed.map_err(BackendError::from));
            }
        }
        for successor in waiting {
            self.choose_anew(successor);
        }
        result
    }

    /// The kernel knows a state by destination and SPI, and changes nothing of it in place but the
    /// UDP ports. So for other moves a state is taken out and comes back with its keys, sequence
    /// number and window at the new place. XFRM_MSG_MIGRATE would do that in one step, but names
    /// states by request id and addresses, and would take any one of those that a rekey left.
    pub(super) fn move_path(&mut self, id: ChildSaId, path: &Path) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let (old, sends) = (pair.sa.path, pair.sends());
        if old == *path {
            return Ok(());
        }
        if path.local.is_ipv4() != path.remote.is_ipv4() {
            return Err(unsupported(format!(
                "a path between two address families ({} and {})",
                path.local, path.remote
            )));
        }
        if path.encapsulation == Encapsulation::Udp {
            self.encapsulate(true)?;
        }
        let ports_only = old.encapsulation == path.encapsulation
            && old.local.ip() == path.local.ip()
            && old.remote.ip() == path.remote.ip();
        if ports_only {
            for side in [Side::Inbound, Side::Outbound] {
                self.change_ports(id, path, side)?;
            }
            if let Some(pair) = self.pairs.get_mut(&id) {
                pair.sa.path = *path;
            }
            return Ok(());
        }
        // Hardware need not be able to do at the new place what it did at the old one: the kernel
        // itself carries the pair until its next rekey.
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.offload = None;
        }
        // Without this the kernel would ask for the missing state, and keep its place with one
        // that waits for keys.
        self.claim_pair(id, Sends::Blocked)?;
        let moved = [Side::Inbound, Side::Outbound]
            .into_iter()
            .try_for_each(|side| self.move_state(id, &old, path, side));
        let place = if moved.is_ok() { path } else { &old };
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.sa.path = *place;
            pair.placed = Instant::now();
            let sa = pair.sa.clone();
            self.registry.lock().forget(id);
            self.register(&sa);
        }
        let sends = if moved.is_ok() { sends } else { Sends::Blocked };
        let claimed = self.claim_pair(id, sends);
        self.end_encapsulation();
        moved.and(claimed)
    }

    /// Ends taking ESP from the sockets if no pair is in UDP.
    fn end_encapsulation(&mut self) {
        let in_udp = |pair: &Pair| pair.sa.path.encapsulation == Encapsulation::Udp;
        if self.encapsulating
            && !self.pairs.values().any(in_udp)
            && let Err(error) = self.encapsulate(false)
        {
            tracing::warn!(%error, "the kernel still takes ESP from the ESP-in-UDP sockets");
        }
    }

    fn change_ports(&mut self, id: ChildSaId, path: &Path, side: Side) -> Result<(), BackendError> {
        let Some(pair) = self.pairs.get(&id).filter(|pair| pair.has_state(side)) else {
            return Ok(());
        };
        let settings = Settings {
            path: *path,
            // Counted from when the state was made, which this does not change.
            lifetime: pair
                .sa
                .lifetime
                .saturating_sub(pair.placed - pair.installed),
            ..pair.settings(&self.common, self.identity.if_id(), None)
        };
        let body = state::describe(&pair.sa, side, &settings);
        let state = StateId::of(&pair.sa, side);
        Ok(state::update(&mut self.requests, &state, &body)?)
    }

    fn move_state(
        &mut self,
        id: ChildSaId,
        old: &Path,
        path: &Path,
        side: Side,
    ) -> Result<(), BackendError> {
        let pair = self.pairs.get_mut(&id);
        let Some(pair) = pair.filter(|pair| pair.has_state(side)) else {
            return Ok(());
        };
        let from = StateId::of(&pair.sa, side);
        let known = state::take(&mut self.taking, &from, &self.common)?;
        let mut former = stats::half(&known, side);
        if side == Side::Outbound {
            // These go on with the sequence numbers.
            former.packets = 0;
        }
        pair.former[side as usize].add(&former);
        let replay = known.replay.as_ref();
        let mut result = Ok(());
        for path in [path, old] {
            let mut sa = pair.sa.clone();
            sa.path = *path;
            let settings = Settings {
                path: *path,
                ..pair.settings(&self.common, self.identity.if_id(), replay)
            };
            let body = state::describe(&sa, side, &settings);
            let added = state::add(&mut self.requests, &StateId::of(&sa, side), &body);
            if added.is_ok() {
                return result;
            }
            // Back to where it was; the first refusal is the one to tell.
            result = result.and(added.map_err(|error| refused(&sa, error)));
        }
        result
    }
}

/// Why the kernel does not take a state.
fn refused(sa: &ChildSa, error: NetlinkError) -> BackendError {
    match error.errno() {
        libc::EEXIST => BackendError::System {
            what: format!(
                "{error}: another program has a state with this SPI; see `ip xfrm state` and end \
                 that program's connection"
            ),
            source: std::io::Error::from_raw_os_error(libc::EEXIST),
        },
        libc::ENOSYS | libc::ENOENT => unsupported(probe::explain_suite(&sa.suite, Some(&error))),
        _ => error.into(),
    }
}
