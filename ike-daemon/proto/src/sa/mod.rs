//! IKE SAs: one type per phase, each consumed when the next begins.

pub(crate) mod auth;
pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod established;
pub(crate) mod explain;
pub(crate) mod informational;
pub(crate) mod init;
pub(crate) mod nat;
pub(crate) mod protect;
pub(crate) mod psk;
pub(crate) mod rekey;
pub(crate) mod respond;
pub(crate) mod retransmit;

use std::net::SocketAddr;
use std::time::Instant;

pub(crate) use context::{Common, Cx, Effect, Outbox};

use crate::status::{IkeDrop, IkeSaStatus, Role};
use crate::wire::Header;

/// One IKE SA in whatever phase it is.
pub(crate) struct IkeSa {
    pub common: Common,
    pub phase: Phase,
}

/// The phases; initiator above, responder below, both end in `Established`.
pub(crate) enum Phase {
    /// IKE_SA_INIT request sent.
    InitSent(Box<init::InitSent>),
    /// IKE_AUTH request sent.
    AuthSent(Box<auth::AuthSent>),
    /// IKE_SA_INIT response sent: half open.
    InitReplied(Box<respond::InitReplied>),
    /// IKE_AUTH refused; kept to answer a repeated request with the same response.
    Refused(Box<respond::Refused>),
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
        matches!(self.phase, Phase::InitReplied(_) | Phase::Refused(_))
    }

    /// Whether both ends are authenticated and nobody deletes it.
    pub fn is_established(&self) -> bool {
        matches!(&self.phase, Phase::Established(established) if !established.is_deleting())
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
            Phase::AuthSent(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::InitReplied(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::Refused(phase) => phase.handle_datagram(cx, datagram),
            Phase::Established(phase) => phase.handle_datagram(&mut self.common, cx, datagram),
            Phase::Gone => Phase::Gone,
        };
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::InitSent(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::AuthSent(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::InitReplied(phase) => phase.handle_timeout(&self.common, cx),
            Phase::Refused(phase) => phase.handle_timeout(cx),
            Phase::Established(phase) => phase.handle_timeout(&mut self.common, cx),
            Phase::Gone => Phase::Gone,
        };
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::InitSent(phase) => Some(phase.deadline()),
            Phase::AuthSent(phase) => Some(phase.deadline()),
            Phase::InitReplied(phase) => Some(phase.expires),
            Phase::Refused(phase) => Some(phase.expires),
            Phase::Established(phase) => phase.deadline(&self.common),
            Phase::Gone => None,
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
            age: now.saturating_duration_since(common.started),
            rekey_in: None,
            children: Vec::new(),
        };
        match &self.phase {
            Phase::InitSent(_) => status.state = "init-sent",
            Phase::AuthSent(phase) => {
                status.state = "auth-sent";
                status.suite = phase.suite.to_string();
                status.local_id = Some(phase.local_id.to_string());
            }
            Phase::InitReplied(phase) => {
                status.state = "init-replied";
                status.suite = phase.suite.to_string();
            }
            Phase::Refused(_) => status.state = "refused",
            Phase::Established(phase) => phase.fill_status(now, &mut status),
            Phase::Gone => {}
        }
        status
    }
}
