//! The endpoint: routes datagrams to IKE SAs, answers those that belong to none, and keeps the
//! configured connections up.

mod connections;
mod cookie;
mod index;
mod inquiries;
mod moving;
mod redirect;
mod requests;
mod restore;
mod saving;
mod stateless;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, ChildSaStats, Command, Event};

use self::connections::Slot;
use self::cookie::CookieJar;
use self::index::{Filed, Index};
use self::inquiries::Inquiries;
pub use self::inquiries::Question;
pub use self::redirect::Lookup;
pub use self::restore::{Reconciled, RestoreError, Restored, SavedPeer};
pub use self::saving::SavedState;
use self::saving::Saving;
use self::stateless::RateLimiter;
use crate::config::{ConnectionConfig, DpdAction, EndpointConfig, PskSecret, StartAction};
use crate::crypto::Random;
use crate::notice::{DownReason, Notice};
use crate::sa::collision::Estate;
use crate::sa::context::DynRandom;
use crate::sa::protect::unknown_esp_spi;
use crate::sa::{Cx, Datagram, Effect, IkeSa, Outbox, init};
use crate::status::{ConnectionStatus, EndpointCounters, IkeDrop};
use crate::wire::{ExchangeType, Header, NotifyType};

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Our address and port.
    pub local: SocketAddr,
    /// Where to.
    pub remote: SocketAddr,
    /// The IKE message, without non-ESP marker; or the one octet of a NAT keepalive.
    pub payload: Vec<u8>,
    /// A NAT keepalive (RFC 3948 section 2.3), which goes out as it is: no marker from any port.
    pub keepalive: bool,
}

/// Why a connection cannot be initiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiateError {
    /// No connection has this name.
    #[error("no connection is called `{0}`")]
    Unknown(String),
    /// It is up already.
    #[error("connection `{0}` is up already")]
    AlreadyUp(Arc<str>),
    /// It has no remote address, so only the peer can set it up.
    #[error("connection `{0}` has no remote.address to call: only the peer can set it up")]
    NoRemote(Arc<str>),
    /// The host has no address to send from.
    #[error("connection `{0}`: the host has no address to reach {1} from")]
    NoSource(Arc<str>, IpAddr),
}

struct Entry {
    sa: IkeSa,
    deadline: Option<Instant>,
    /// Address under which it is counted as half open.
    half_open: Option<IpAddr>,
    /// Key in `init_index`, for SAs that the peer initiated.
    init_key: Option<(u64, SocketAddr)>,
    /// Where it is in the index.
    filed: Filed,
    /// It is on the list of those whose state may have changed.
    unsaved: bool,
    /// It was found in the state of the IKE SA it replaces, which may be older than its own.
    heir: bool,
}

impl Entry {
    fn new(sa: IkeSa, init_key: Option<(u64, SocketAddr)>) -> Self {
        Self {
            sa,
            deadline: None,
            half_open: None,
            init_key,
            filed: Filed::default(),
            unsaved: false,
            heir: false,
        }
    }
}

/// The time of day at `now`, since 1970.
fn wall_time(clock: Option<(Instant, Duration)>, now: Instant) -> Option<Duration> {
    let (then, time) = clock?;
    Some(match now.checked_duration_since(then) {
        Some(later) => time.saturating_add(later),
        None => time.saturating_sub(then.saturating_duration_since(now)),
    })
}

/// All IKE SAs of a host, and the connections they belong to.
pub struct Endpoint<R> {
    settings: EndpointConfig,
    rng: R,
    connections: Vec<Arc<ConnectionConfig>>,
    slots: HashMap<Arc<str>, Slot>,
    /// When connections are initiated (again): `Slot::start_at` in the order of time.
    starts: BTreeSet<(Instant, Arc<str>)>,
    secrets: Vec<PskSecret>,
    /// A moment, and the time of day it was, since 1970.
    wall: Option<(Instant, Duration)>,
    /// Which of our addresses the host sends from, by peer.
    sources: HashMap<IpAddr, IpAddr>,
    /// Our addresses that peers may reach us at.
    addresses: Vec<IpAddr>,
    sas: HashMap<u64, Entry>,
    index: Index,
    timers: BTreeSet<(Instant, u64)>,
    /// IKE SAs the peer initiated, by its SPI and address: to recognise a repeated first request.
    init_index: HashMap<(u64, SocketAddr), u64>,
    half_open: HashMap<IpAddr, usize>,
    half_open_total: usize,
    cookies: CookieJar,
    demanding_cookies: bool,
    limiter: RateLimiter,
    ikev1_noticed: Option<(IpAddr, Instant)>,
    saving: Saving,
    inquiries: Inquiries,
    /// Host names that are still to be looked up.
    lookups: VecDeque<Lookup>,
    out: Outbox,
}

impl<R: Random> Endpoint<R> {
    /// An endpoint without connections.
    pub fn new(settings: EndpointConfig, rng: R) -> Self {
        Self {
            settings,
            rng,
            connections: Vec::new(),
            slots: HashMap::new(),
            starts: BTreeSet::new(),
            secrets: Vec::new(),
            wall: None,
            sources: HashMap::new(),
            addresses: Vec::new(),
            sas: HashMap::new(),
            index: Index::default(),
            timers: BTreeSet::new(),
            init_index: HashMap::new(),
            half_open: HashMap::new(),
            half_open_total: 0,
            cookies: CookieJar::default(),
            demanding_cookies: false,
            limiter: RateLimiter::new(),
            ikev1_noticed: None,
            saving: Saving::default(),
            inquiries: Inquiries::default(),
            lookups: VecDeque::new(),
            out: Outbox::default(),
        }
    }

    /// Replaces all pre-shared keys. IKE SAs that are up keep running.
    pub fn set_secrets(&mut self, secrets: Vec<PskSecret>) {
        self.secrets = secrets;
    }

    /// Says what time of day it is at `now`, since 1970: certificates are judged by it, and none is
    /// believed without. The clock may be set while we run, so this is to be called again before
    /// datagrams are handled.
    pub fn set_wall_clock(&mut self, now: Instant, since_1970: Duration) {
        self.wall = Some((now, since_1970));
    }

    /// Says which of our addresses the host sends from towards `remote`, for connections whose local
    /// address is not configured. Whoever owns the sockets asks the routing table, at start and
    /// whenever addresses change.
    pub fn set_source(&mut self, remote: IpAddr, local: Option<IpAddr>) {
        match local {
            Some(local) => self.sources.insert(remote, local),
            None => self.sources.remove(&remote),
        };
    }

    /// Takes in a datagram that arrived at `local` from `remote`, without non-ESP marker.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) {
        self.out.counters.received += 1;
        if bytes == [0xff] {
            return; // A NAT keepalive on the IKE port.
        }
        let Some((head, _)) = bytes.split_first_chunk() else {
            return self.out.drop(IkeDrop::Malformed);
        };
        let header = match Header::decode(head) {
            // Anything else may differ in another version.
            Ok(header) if header.major != 2 => {
                return self.other_version(now, local, remote, &header);
            }
            Ok(header) => header,
            Err(_) => return self.out.drop(IkeDrop::Malformed),
        };
        let Ok((_, body)) = Header::split(bytes) else {
            return self.out.drop(IkeDrop::Malformed);
        };
        let datagram = Datagram {
            local,
            remote,
            header,
            bytes,
            body,
        };
        let first = header.exchange == ExchangeType::IKE_SA_INIT && !header.flags.is_response();
        if first && header.flags.is_initiator() && header.responder_spi == 0 {
            return self.first_request(now, &datagram);
        }
        if let Some(spi) = unknown_esp_spi(&datagram) {
            return self.unknown_esp_spi(now, remote, spi);
        }
        let ours = if header.flags.is_initiator() {
            header.responder_spi
        } else {
            header.initiator_spi
        };
        let theirs = if header.flags.is_initiator() {
            header.initiator_spi
        } else {
            header.responder_spi
        };
        let known = self
            .sas
            .get(&ours)
            .is_some_and(|entry| entry.sa.peer_spi_fits(theirs));
        if known {
            return self.with_sa(now, ours, |sa, cx| sa.handle_datagram(cx, &datagram));
        }
        self.out.drop(IkeDrop::UnknownSpi);
        // "the recipient … MAY send an INVALID_IKE_SPI" for a request (section 2.21.4), never for a response.
        if !header.flags.is_response() && header.exchange != ExchangeType::IKE_SA_INIT {
            self.stateless(
                now,
                &datagram.header,
                header.exchange,
                local,
                remote,
                NotifyType::INVALID_IKE_SPI,
                &[],
            );
        }
    }

    /// An INVALID_SPI notify that nothing protects: "only a 'hint' that something might be wrong
    /// (because it could easily be forged)" (section 1.5). The peer is asked whether it lives.
    fn unknown_esp_spi(&mut self, now: Instant, remote: SocketAddr, spi: u32) {
        let there = self.index.of_address(remote.ip());
        let meant = there
            .filter_map(|ours| self.sas.get(&ours).map(|entry| &entry.sa))
            .find(|sa| sa.is_established() && sa.sends_with(spi));
        match meant.map(IkeSa::local_spi) {
            Some(ours) => self.with_sa(now, ours, |sa, cx| sa.hint(cx, remote)),
            None => self.out.drop(IkeDrop::Unauthenticated),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, spi)) = self.timers.first() {
            if deadline > now {
                break;
            }
            self.timers.pop_first();
            if let Some(entry) = self.sas.get_mut(&spi) {
                entry.deadline = None;
            }
            self.with_sa(now, spi, |sa, cx| sa.handle_timeout(cx));
        }
        self.give_up_inquiries(now);
        self.start_due_connections(now);
    }

    /// When `handle_timeout` is next needed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(deadline, _)| *deadline);
        let start = self.starts.first().map(|(at, _)| *at);
        let inquiry = self.inquiries.deadline();
        [timer, start, inquiry].into_iter().flatten().min()
    }

    /// Takes in what the data plane reports.
    pub fn handle_event(&mut self, now: Instant, event: &Event) {
        match event {
            Event::Acquire { connection, .. } => self.acquire(now, connection),
            Event::Expire { id, hard: true } => {
                self.with_child(now, *id, |sa, cx, id| sa.expire_child(cx, id))
            }
            Event::Expire { id, hard: false } | Event::SeqLow { id, .. } => {
                self.with_child(now, *id, |sa, cx, id| sa.rekey_child(cx, id));
            }
            Event::NatMoved { id, remote } => {
                self.with_child(now, *id, |sa, cx, _| sa.peer_moved(cx, *remote));
            }
            Event::IkeDatagram {
                local,
                remote,
                payload,
            } => self.handle_datagram(now, *local, *remote, payload),
        }
    }

    /// Counts authenticated ESP packets as proof that the peer lives.
    pub fn handle_traffic(&mut self, now: Instant, id: ChildSaId, last_inbound: Instant) {
        let Some(mut entry) = self.out.owner(id).and_then(|spi| self.sas.remove(&spi)) else {
            return;
        };
        entry.sa.heard(last_inbound.min(now));
        self.keep_unchanged(entry);
    }

    /// Says what a pair has carried so far, so that one is rekeyed whose data plane does not tell by
    /// itself ([`Event::Expire`]).
    pub fn handle_volume(&mut self, now: Instant, stats: &ChildSaStats) {
        let owner = self.out.owner(stats.id).and_then(|spi| self.sas.get(&spi));
        let Some(sa) = owner.map(|entry| &entry.sa) else {
            return;
        };
        let used_up = [&stats.inbound, &stats.outbound]
            .into_iter()
            .filter_map(|half| sa.used_up(stats.id, half.bytes, half.packets))
            .max();
        if let Some(hard) = used_up {
            let id = stats.id;
            self.handle_event(now, &Event::Expire { id, hard });
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// The next command for the data plane.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.out.commands.pop_front()
    }

    /// The next thing to tell people.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.out.notices.pop_front()
    }

    /// Everything there is, connection by connection in the order of the configuration.
    pub fn status(&self, now: Instant) -> Vec<ConnectionStatus> {
        let each = self.connections.iter();
        each.map(|config| self.status_of(now, config)).collect()
    }

    fn status_of(&self, now: Instant, config: &ConnectionConfig) -> ConnectionStatus {
        let spis = self.index.of_connection(&config.name);
        let mut sas: Vec<&IkeSa> = spis
            .filter_map(|spi| self.sas.get(&spi))
            .map(|entry| &entry.sa)
            .collect();
        sas.sort_by_key(|sa| (sa.common.began, sa.local_spi()));
        let slot = self.slots.get(&config.name);
        let start_at = slot.and_then(|slot| slot.start_at);
        let state = if sas.iter().any(|sa| sa.is_established()) {
            "established"
        } else if !sas.is_empty() {
            "connecting"
        } else if start_at.is_some() {
            "waiting"
        } else if config.start == StartAction::Trap {
            "trap"
        } else {
            "down"
        };
        ConnectionStatus {
            name: config.name.clone(),
            state,
            ike_sas: sas.iter().map(|sa| sa.status(now)).collect(),
            last_error: slot.and_then(|slot| slot.last_error.clone()),
            retry_in: start_at.map(|at| at.saturating_duration_since(now)),
        }
    }

    /// Whether any connection has IKE SAs, in whatever state.
    pub fn has_any_sas(&self) -> bool {
        self.index.has_connections()
    }

    /// Whether a connection has IKE SAs, in whatever state.
    pub fn has_sas(&self, connection: &str) -> bool {
        self.index.of_connection(connection).next().is_some()
    }

    /// Counters.
    pub fn counters(&self) -> EndpointCounters {
        EndpointCounters {
            half_open: self.half_open_total,
            ..self.out.counters.clone()
        }
    }

    /// Runs `act` on an IKE SA, then looks after its timer, its half-open count and its end.
    fn with_sa(&mut self, now: Instant, spi: u64, act: impl FnOnce(&mut IkeSa, &mut Cx<'_>)) {
        let Some(mut entry) = self.sas.remove(&spi) else {
            return;
        };
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
        act(&mut entry.sa, &mut cx);
        self.keep(entry);
        self.carry_out_effects(now);
    }

    fn with_child(
        &mut self,
        now: Instant,
        id: ChildSaId,
        act: impl FnOnce(&mut IkeSa, &mut Cx<'_>, ChildSaId),
    ) {
        if let Some(spi) = self.out.owner(id) {
            self.with_sa(now, spi, |sa, cx| act(sa, cx, id));
        }
    }

    /// Puts an IKE SA (back) into the tables, or forgets it when it is over.
    fn keep(&mut self, mut entry: Entry) {
        self.saving.changed(&mut entry);
        self.keep_unchanged(entry);
    }

    /// As `keep`, where nothing happened that a successor of this process must know of.
    fn keep_unchanged(&mut self, mut entry: Entry) {
        let spi = entry.sa.local_spi();
        if let Some(deadline) = entry.deadline.take() {
            self.timers.remove(&(deadline, spi));
        }
        let half_open = entry.sa.is_half_open();
        if let Some(address) = entry.half_open.take_if(|_| !half_open) {
            self.half_open_total = self.half_open_total.saturating_sub(1);
            if let Some(count) = self.half_open.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.half_open.remove(&address);
                }
            }
        } else if half_open && entry.half_open.is_none() {
            let address = entry.sa.common.remote.ip();
            entry.half_open = Some(address);
            self.half_open_total += 1;
            *self.half_open.entry(address).or_default() += 1;
        }
        if entry.sa.is_gone() {
            self.index.forget(spi, &mut entry.filed);
            if let Some(key) = entry.init_key {
                self.init_index.remove(&key);
            }
            return;
        }
        self.index.file(&entry.sa, &mut entry.filed);
        entry.deadline = entry.sa.deadline(self.settings.nat_keepalive);
        if let Some(deadline) = entry.deadline {
            self.timers.insert((deadline, spi));
        }
        if let Some(key) = entry.init_key {
            self.init_index.insert(key, spi);
        }
        self.sas.insert(spi, entry);
    }

    fn carry_out_effects(&mut self, now: Instant) {
        while !self.out.effects.is_empty() {
            for effect in std::mem::take(&mut self.out.effects) {
                match effect {
                    Effect::Established {
                        spi,
                        connection,
                        initial_contact,
                    } => {
                        self.established(now, spi, &connection, initial_contact);
                    }
                    Effect::Failed { refusal, retry } => self.failed(now, &refusal, retry),
                    Effect::Inquire { spi, inquiries } => self.inquire(now, spi, inquiries),
                    Effect::Down { connection, reason } => self.down(now, &connection, reason),
                    Effect::Redirected {
                        connection,
                        from,
                        to,
                    } => self.redirected(now, &connection, from, to),
                    Effect::Adopt { sa, from } => {
                        let spi = sa.local_spi();
                        if let Some(from) = from {
                            self.saving.handed_over(from, spi);
                        }
                        self.keep(Entry::new(*sa, None));
                        self.with_sa(now, spi, |sa, cx| sa.go_on(cx));
                    }
                    Effect::Inherit {
                        from,
                        to,
                        connection,
                        estate,
                    } => self.inherit(now, from, to, &connection, *estate),
                    Effect::Redundant { spi } => {
                        self.with_sa(now, spi, |sa, cx| sa.yield_to_rival(cx));
                    }
                }
            }
        }
    }

    /// A successor of the IKE SA `from` takes over what that leaves.
    fn inherit(&mut self, now: Instant, from: u64, to: u64, name: &Arc<str>, estate: Estate) {
        if self.sas.contains_key(&to) {
            self.saving.handed_over(from, to);
            return self.with_sa(now, to, |sa, cx| sa.prevail(cx, estate, name));
        }
        estate.abandon(&mut self.out, name);
        self.down(now, name, DownReason::PeerDeleted);
    }

    /// Another major version: IKEv1 is told apart, later ones are answered.
    fn other_version(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        header: &Header,
    ) {
        if header.major == 1 {
            self.out.drop(IkeDrop::IkeV1);
            let again = self.ikev1_noticed.is_some_and(|(address, at)| {
                address == remote.ip() && now.saturating_duration_since(at).as_secs() < 60
            });
            if !again
                && self
                    .limiter
                    .take(now, self.settings.stateless_answers_per_second)
            {
                self.ikev1_noticed = Some((remote.ip(), now));
                self.out.notice(Notice::IkeV1 { remote });
            }
            return;
        }
        self.out.drop(IkeDrop::MajorVersion);
        if header.major > 2 && !header.flags.is_response() {
            self.stateless(
                now,
                header,
                header.exchange,
                local,
                remote,
                NotifyType::INVALID_MAJOR_VERSION,
                &[],
            );
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn stateless(
        &mut self,
        now: Instant,
        request: &Header,
        exchange: ExchangeType,
        local: SocketAddr,
        remote: SocketAddr,
        kind: NotifyType,
        data: &[u8],
    ) {
        if self
            .limiter
            .take(now, self.settings.stateless_answers_per_second)
        {
            self.out.transmit(
                local,
                remote,
                stateless::answer(request, exchange, kind, data),
            );
        }
    }
}
