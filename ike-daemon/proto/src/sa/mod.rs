//! IKE SAs: one type per phase, each consumed when the next begins.

pub(crate) mod auth;
pub(crate) mod child;
pub(crate) mod collision;
pub(crate) mod context;
pub(crate) mod cp;
pub(crate) mod credential;
pub(crate) mod established;
pub(crate) mod explain;
pub(crate) mod followup;
pub(crate) mod fragment;
pub(crate) mod held;
pub(crate) mod informational;
pub(crate) mod init;
pub(crate) mod intermediate;
pub(crate) mod mobike;
pub(crate) mod nat;
pub(crate) mod pairs;
pub(crate) mod pool;
pub(crate) mod ppk;
pub(crate) mod proof;
pub(crate) mod protect;
pub(crate) mod psk;
pub(crate) mod redirect;
pub(crate) mod rekey;
pub(crate) mod resource;
pub(crate) mod respond;
pub(crate) mod resumed;
pub(crate) mod retransmit;
pub(crate) mod saved;
pub(crate) mod successor;
mod timers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::ChildSaId;

pub(crate) use context::{Common, Cx, Effect, Outbox};

use crate::config::ConnectionConfig;
use crate::identity::Identity;
use crate::notice::DownReason;
use crate::status::{IkeDrop, IkeSaStatus, Role};
use crate::wire::{Header, NotifyType};

/// One IKE SA in whatever phase it is.
pub(crate) struct IkeSa {
    pub common: Common,
    pub phase: Phase,
}

/// The phases; initiator above, responder below, both end in `Established`.
pub(crate) enum Phase {
    /// IKE_SA_INIT request sent.
    InitSent(Box<init::InitSent>),
    /// IKE_INTERMEDIATE request sent.
    IntermediateSent(Box<intermediate::IntermediateSent>),
    /// IKE_AUTH request sent.
    AuthSent(Box<auth::AuthSent>),
    /// IKE_SA_INIT response sent: half open.
    InitReplied(Box<respond::InitReplied>),
    /// Refused or deleted; kept to answer a repeated request with the same response.
    Lingering(Box<respond::Lingering>),
    /// Both ends are authenticated.
    Established(Box<established::Established>),
    /// Over: the endpoint forgets it.
    Gone,
}

/// A datagram that belongs to an IKE SA.
pub(crate) struct Datagram<'a> {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub header: Header,
    /// The whole message.
    pub bytes: &'a [u8],
    /// What follows the header.
    pub body: &'a [u8],
}

impl IkeSa {
    /// Our SPI: what the endpoint finds it by.
    pub fn local_spi(&self) -> u64 {
        self.common.local_spi()
    }

    /// Whether it still waits for an unauthenticated initiator.
    pub fn is_half_open(&self) -> bool {
        match &self.phase {
            Phase::InitReplied(_) => true,
            Phase::Lingering(lingering) => lingering.half_open,
            _ => false,
        }
    }

    /// Whether both ends are authenticated, nobody deletes it and no successor took over.
    pub fn is_established(&self) -> bool {
        matches!(&self.phase, Phase::Established(established) if established.is_current())
    }

    /// Whether it is over.
    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Takes in a datagram with our SPI.
    pub fn handle_datagram(&mut self, cx: &mut Cx<'_>, datagram: &Datagram<'_>) {
        // "The I bit MUST be set in messages sent by the original initiator" (section 3.1).
        if datagram.header.flags.is_initiator() != (self.common.role == Role::Responder) {
            return cx.out.drop(IkeDrop::Unexpected);
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::InitSent(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::IntermediateSent(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::AuthSent(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::InitReplied(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::Lingering(phase) => phase.handle_datagram(cx, datagram),
            Phase::Established(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::Gone => Phase::Gone,
        };
        self.settle();
    }

    /// What only repeats its last word keeps no addresses: others may have them.
    fn settle(&mut self) {
        if matches!(self.phase, Phase::Lingering(_)) {
            self.common.lease = None;
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::InitSent(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::IntermediateSent(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::AuthSent(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::InitReplied(phase) => phase.handle_timeout(&self.common, cx),
            Phase::Lingering(phase) => phase.handle_timeout(cx),
            Phase::Established(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::Gone => Phase::Gone,
        };
    }

    /// When something is due; `keepalive` is the interval of NAT keepalives.
    pub fn deadline(&self, keepalive: Duration) -> Option<Instant> {
        match &self.phase {
            Phase::InitSent(phase) => Some(phase.deadline()),
            Phase::IntermediateSent(phase) => Some(phase.deadline()),
            Phase::AuthSent(phase) => phase.deadline(),
            Phase::InitReplied(phase) => phase.deadline(),
            Phase::Lingering(phase) => Some(phase.expires),
            Phase::Established(phase) => phase.deadline(&self.common, keepalive),
            Phase::Gone => None,
        }
    }

    /// Whether `spi` is the peer's, or the peer's is not known yet.
    pub fn peer_spi_fits(&self, spi: u64) -> bool {
        let known = match self.common.role {
            Role::Initiator => self.common.spi_r,
            Role::Responder => self.common.spi_i,
        };
        known == spi || known == 0
    }

    /// The connection it belongs to, or most likely will.
    pub fn connection(&self) -> Option<&Arc<str>> {
        self.config().map(|config| &config.name)
    }

    /// Its settings.
    pub fn config(&self) -> Option<&Arc<ConnectionConfig>> {
        match &self.phase {
            Phase::InitSent(phase) => Some(phase.config()),
            Phase::IntermediateSent(phase) => Some(phase.config()),
            Phase::AuthSent(phase) => Some(phase.config()),
            Phase::InitReplied(phase) => phase.config(),
            Phase::Established(phase) => Some(&phase.config),
            Phase::Lingering(_) | Phase::Gone => None,
        }
    }

    /// Whether it is, or may become, something to send packets through; half-open ones that the
    /// peer began do not count, since nobody is behind them yet.
    pub fn is_active(&self) -> bool {
        match &self.phase {
            Phase::InitSent(_) | Phase::IntermediateSent(_) | Phase::AuthSent(_) => true,
            Phase::Established(phase) => phase.is_current(),
            _ => false,
        }
    }

    /// Our and the peer's identity, once proven.
    pub fn identities(&self) -> Option<(&Identity, &Identity)> {
        match &self.phase {
            Phase::Established(phase) => Some((&phase.local_id, phase.proof.identity())),
            _ => None,
        }
    }

    /// The peer's first request came again.
    pub fn repeated_init(&mut self, cx: &mut Cx<'_>, datagram: &Datagram<'_>) {
        match &self.phase {
            Phase::InitReplied(phase) => phase.repeated_init(&self.common, cx, datagram),
            _ => cx.out.drop(IkeDrop::Retransmission),
        }
    }

    /// Deletes it; a negotiation is just forgotten.
    pub fn terminate(&mut self, cx: &mut Cx<'_>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Established(phase) => phase.terminate(&self.common, cx, DownReason::Terminated),
            Phase::Lingering(phase) => Phase::Lingering(phase),
            _ => Phase::Gone,
        };
    }

    /// Forgets it at once.
    pub fn abandon(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        if let Phase::Established(phase) = std::mem::replace(&mut self.phase, Phase::Gone) {
            self.phase = phase.abandon(&self.common, cx, reason);
        }
    }

    /// Takes over what the IKE SA leaves that it was made to replace.
    pub fn prevail(&mut self, cx: &mut Cx<'_>, estate: collision::Estate, connection: &Arc<str>) {
        match &mut self.phase {
            Phase::Established(phase) => phase.prevail(&self.common, cx, estate),
            _ => estate.abandon(cx.out, connection),
        }
    }

    /// Sends what waits to be sent.
    pub fn go_on(&mut self, cx: &mut Cx<'_>) {
        self.with_established(cx, |_, _, _| {});
    }

    /// Whether `newer` was begun by the other end before that end can have known of this one.
    pub fn crosses(&self, newer: &Self) -> bool {
        match &self.phase {
            Phase::Established(phase) => {
                self.is_established()
                    && self.common.role != newer.common.role
                    && newer.common.began <= phase.since
            }
            _ => false,
        }
    }

    /// Both ends set an IKE SA up at once, and the other one is kept.
    pub fn drop_duplicate(&mut self, cx: &mut Cx<'_>) {
        self.with_established(cx, |phase, common, cx| phase.drop_duplicate(common, cx));
    }

    /// It waits for the peer to delete it.
    pub fn yield_to_rival(&mut self, cx: &mut Cx<'_>) {
        self.with_established(cx, |phase, _, cx| phase.yield_to_rival(cx.now));
    }

    /// A child SA is past its hard lifetime.
    pub fn expire_child(&mut self, cx: &mut Cx<'_>, id: ChildSaId) {
        self.with_established(cx, |phase, common, cx| phase.expire_child(common, cx, id));
    }

    /// Whether a child SA that has carried this much in one direction is to be rekeyed (false) or
    /// carries nothing more (true).
    pub fn used_up(&self, id: ChildSaId, bytes: u64, packets: u64) -> Option<bool> {
        let Phase::Established(phase) = &self.phase else {
            return None;
        };
        let child = phase.children.iter().find(|child| child.id == id)?;
        let (soft, hard) = (child.allowances.soft, child.allowances.hard);
        if hard.is_used_up(bytes, packets) {
            return Some(true);
        }
        // A rekey that is under way need not be asked for.
        (soft.is_used_up(bytes, packets) && child.rekey_at.is_some()).then_some(false)
    }

    /// A child SA is to be rekeyed.
    pub fn rekey_child(&mut self, cx: &mut Cx<'_>, id: ChildSaId) {
        self.with_established(cx, |phase, _, _| phase.rekey_child(id));
    }

    /// Traffic needs a child SA.
    pub fn acquire(&mut self, cx: &mut Cx<'_>) {
        self.with_established(cx, |phase, common, _| phase.acquire(common));
    }

    /// An authentic ESP packet came from another address. Only a peer behind a NAT may move so:
    /// "a host not behind a NAT SHOULD NOT" be followed (section 2.23).
    pub fn peer_moved(&mut self, cx: &mut Cx<'_>, remote: SocketAddr) {
        self.with_established(cx, |phase, common, cx| {
            if common.nat.remote {
                phase.move_peer(common, cx, remote);
            }
        });
    }

    /// The host sends from another address now.
    pub fn move_here(&mut self, cx: &mut Cx<'_>, local: IpAddr) {
        self.with_established(cx, |phase, common, cx| phase.move_here(common, cx, local));
    }

    /// Somebody at the peer's address says, unprotected, that it does not know the SA that a child SA of
    /// this sends with.
    pub fn hint(&mut self, cx: &mut Cx<'_>, remote: SocketAddr) {
        self.with_established(cx, |phase, common, cx| {
            phase.hint(common, cx, remote, NotifyType::INVALID_SPI);
        });
    }

    /// Whether a child SA sends with this SPI.
    pub fn sends_with(&self, spi: u32) -> bool {
        match &self.phase {
            Phase::Established(phase) => phase.children.iter().any(|child| child.spi_out == spi),
            _ => false,
        }
    }

    /// The peer was heard by other means.
    pub fn heard(&mut self, at: Instant) {
        if let Phase::Established(phase) = &mut self.phase {
            phase.heard(at);
        }
    }

    fn with_established(
        &mut self,
        cx: &mut Cx<'_>,
        act: impl FnOnce(&mut established::Established, &mut Common, &mut Cx<'_>),
    ) {
        if let Phase::Established(phase) = &mut self.phase {
            act(phase, &mut self.common, cx);
            phase.pump(&self.common, cx);
        }
    }

    /// A snapshot.
    pub fn status(&self, now: Instant) -> IkeSaStatus {
        let common = &self.common;
        let mut status = IkeSaStatus {
            state: "closed",
            role: common.role,
            initiator_spi: common.spi_i,
            responder_spi: common.spi_r,
            suite: String::new(),
            local: common.local,
            remote: common.remote,
            local_id: None,
            remote_id: None,
            nat_local: common.nat.local,
            nat_remote: common.nat.remote,
            udp: common.nat.reason(),
            lease: common.lease.as_deref().map(Into::into),
            age: now.saturating_duration_since(common.began),
            rekey_in: None,
            children: Vec::new(),
        };
        match &self.phase {
            Phase::InitSent(_) => status.state = "init-sent",
            Phase::IntermediateSent(phase) => {
                status.state = "intermediate-sent";
                status.suite = phase.suite().to_string();
            }
            Phase::AuthSent(phase) => {
                status.state = "auth-sent";
                status.suite = phase.suite.to_string();
                status.local_id = Some(phase.local_id.to_string());
            }
            Phase::InitReplied(phase) => {
                status.state = "init-replied";
                status.suite = phase.suite.to_string();
            }
            Phase::Lingering(_) => status.state = "closed",
            Phase::Established(phase) => phase.fill_status(now, &mut status),
            Phase::Gone => {}
        }
        status
    }
}
