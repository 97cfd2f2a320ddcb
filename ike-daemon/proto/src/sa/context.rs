//! What every phase is given to work with, and where its effects go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSa, ChildSaId, Command, Path, Takeover};

use super::IkeSa;
use super::collision::Estate;
use super::cp::Lease;
use super::fragment::Message;
use super::nat::Nat;
use super::pool::Leases;
use super::redirect::Gateway;
use crate::config::{ConnectionConfig, EndpointConfig, PskSecret};
use crate::crypto::Random;
use crate::endpoint::Transmit;
use crate::identity::Identity;
use crate::notice::{DownReason, Notice};
use crate::refusal::Refusal;
use crate::status::{EndpointCounters, IkeDrop, Role};
use crate::x509::{Answers, Inquiry};

/// Surroundings of one call into an IKE SA.
pub(crate) struct Cx<'a> {
    pub now: Instant,
    pub rng: DynRandom<'a>,
    pub settings: &'a EndpointConfig,
    /// In the order of the configuration.
    pub connections: &'a [Arc<ConnectionConfig>],
    pub secrets: &'a [PskSecret],
    /// Addresses of the host that peers may reach it at.
    pub addresses: &'a [IpAddr],
    /// The time of day, since 1970, if it is known.
    pub wall: Option<Duration>,
    /// What servers answered about certificates.
    pub answers: &'a Answers,
    pub out: &'a mut Outbox,
}

/// The endpoint's source of randomness without its type.
pub(crate) struct DynRandom<'a>(pub &'a mut dyn Random);

impl Random for DynRandom<'_> {
    fn fill(&mut self, buf: &mut [u8]) {
        self.0.fill(buf);
    }
}

impl Cx<'_> {
    /// A nonce of 32 octets: "at least 128 bits in size, and MUST be at least half the key size of
    /// the negotiated pseudorandom function" (section 2.10).
    pub fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; 32];
        self.rng.fill(&mut nonce);
        nonce
    }

    /// A new IKE SPI, never zero.
    pub fn ike_spi(&mut self) -> u64 {
        loop {
            let mut octets = [0; 8];
            self.rng.fill(&mut octets);
            let spi = u64::from_be_bytes(octets);
            if spi != 0 {
                return spi;
            }
        }
    }

    /// A new SPI for what we receive: none of the reserved 0 to 255, none in use.
    pub fn child_spi(&mut self) -> u32 {
        loop {
            let mut octets = [0; 4];
            self.rng.fill(&mut octets);
            let spi = u32::from_be_bytes(octets);
            if spi > 255 && !self.out.inbound_spis.contains_key(&spi) {
                return spi;
            }
        }
    }
}

/// Something only the endpoint can do.
pub(crate) enum Effect {
    /// An IKE SA came up.
    Established {
        /// Our SPI of it.
        spi: u64,
        connection: Arc<str>,
        /// The peer says it has no other SA with us.
        initial_contact: bool,
    },
    /// A negotiation of a connection failed.
    Failed { refusal: Arc<Refusal>, retry: bool },
    /// An IKE SA waits for what servers answer about certificates.
    Inquire {
        /// Our SPI of it.
        spi: u64,
        inquiries: Vec<Inquiry>,
    },
    /// An IKE SA is gone.
    Down {
        connection: Arc<str>,
        reason: DownReason,
    },
    /// A gateway sends a connection's peer, us, to another (RFC 5685).
    Redirected {
        connection: Arc<str>,
        from: IpAddr,
        to: Gateway,
    },
    /// A successor of an IKE SA comes up.
    Adopt {
        sa: Box<IkeSa>,
        /// Our SPI of the one whose child SAs it has, if it has any.
        from: Option<u64>,
    },
    /// Of two successors of an IKE SA one prevails, and takes over what that leaves.
    Inherit {
        /// Our SPI of the one it replaces.
        from: u64,
        /// Our SPI of the one that prevails.
        to: u64,
        connection: Arc<str>,
        estate: Box<Estate>,
    },
    /// Of two successors of an IKE SA the other one prevails.
    Redundant {
        /// Our SPI of it.
        spi: u64,
    },
}

/// Where effects wait until the endpoint's owner fetches them.
#[derive(Default)]
pub(crate) struct Outbox {
    pub transmits: VecDeque<Transmit>,
    pub commands: VecDeque<Command>,
    pub notices: VecDeque<Notice>,
    pub effects: Vec<Effect>,
    pub counters: EndpointCounters,
    /// Addresses given to peers.
    pub leases: Leases,
    /// Our ESP SPIs in use.
    inbound_spis: HashMap<u32, ChildSaId>,
    /// IKE SA (our SPI) and inbound ESP SPI of every child SA.
    children: HashMap<ChildSaId, (u64, u32)>,
    /// Pairs that the data plane carries although the answer that makes them is still to come: we
    /// go on after a process that had it and left no word of it.
    carried: HashSet<ChildSaId>,
    last_child: u64,
}

impl Outbox {
    pub fn transmit(&mut self, local: SocketAddr, remote: SocketAddr, payload: Vec<u8>) {
        self.counters.sent += 1;
        self.transmits.push_back(Transmit {
            local,
            remote,
            payload,
            keepalive: false,
        });
    }

    /// Sends a message, all fragments of it.
    pub fn send(&mut self, local: SocketAddr, remote: SocketAddr, message: &Message) {
        for datagram in &message.datagrams {
            self.transmit(local, remote, datagram.clone());
        }
    }

    pub fn notice(&mut self, notice: Notice) {
        self.notices.push_back(notice);
    }

    /// Counts a datagram that is not acted on.
    pub fn drop(&mut self, reason: IkeDrop) {
        *self.counters.dropped.entry(reason).or_default() += 1;
    }

    pub fn next_child_id(&mut self) -> ChildSaId {
        self.last_child += 1;
        ChildSaId(self.last_child)
    }

    /// Installs a pair, as the successor of another if there is one.
    pub fn install(&mut self, ike_spi: u64, sa: ChildSa, old: Option<(ChildSaId, Takeover)>) {
        self.inbound_spis.insert(sa.inbound.spi, sa.id);
        self.children.insert(sa.id, (ike_spi, sa.inbound.spi));
        if self.carried.remove(&sa.id) {
            // Installing it again would begin its sequence numbers anew, under the same keys.
            return;
        }
        let sa = Box::new(sa);
        self.commands.push_back(match old {
            None => Command::InstallSa(sa),
            Some((old, takeover)) => Command::RekeySa {
                old,
                new: sa,
                takeover,
            },
        });
    }

    /// Takes over a pair that is installed.
    pub fn adopt(&mut self, id: ChildSaId, ike_spi: u64, spi_in: u32) {
        self.inbound_spis.insert(spi_in, id);
        self.children.insert(id, (ike_spi, spi_in));
        self.reserve(id);
    }

    /// Remembers that a pair is carried whose negotiation is still to end.
    pub fn expect(&mut self, id: ChildSaId) {
        self.carried.insert(id);
    }

    /// The negotiation of a pair has come to nothing.
    pub fn release(&mut self, id: ChildSaId) {
        if self.carried.remove(&id) {
            self.commands.push_back(Command::RemoveSa { id });
        }
    }

    /// Forgets a pair that the data plane does not have.
    pub fn forget(&mut self, id: ChildSaId) {
        if let Some((_, spi)) = self.children.remove(&id) {
            self.inbound_spis.remove(&spi);
        }
    }

    /// New pairs get names above this one.
    pub fn reserve(&mut self, id: ChildSaId) {
        self.last_child = self.last_child.max(id.0);
    }

    /// Whether an inbound SPI is in use.
    pub fn has_inbound(&self, spi: u32) -> bool {
        self.inbound_spis.contains_key(&spi)
    }

    /// Removes a pair.
    pub fn remove(&mut self, id: ChildSaId) {
        if let Some((_, spi)) = self.children.remove(&id) {
            self.inbound_spis.remove(&spi);
            self.commands.push_back(Command::RemoveSa { id });
        }
    }

    /// Has the successor of a pair send.
    pub fn retire(&mut self, id: ChildSaId) {
        self.commands.push_back(Command::Retire { id });
    }

    /// Moves a pair to another path.
    pub fn move_path(&mut self, id: ChildSaId, path: Path) {
        self.commands.push_back(Command::MovePath { id, path });
    }

    /// Hands a pair over to another IKE SA.
    pub fn rehome(&mut self, id: ChildSaId, ike_spi: u64) {
        if let Some((owner, _)) = self.children.get_mut(&id) {
            *owner = ike_spi;
        }
    }

    /// The IKE SA a pair belongs to.
    pub fn owner(&self, id: ChildSaId) -> Option<u64> {
        self.children.get(&id).map(|(spi, _)| *spi)
    }

    /// Pairs installed.
    #[cfg(test)]
    pub fn child_count(&self) -> usize {
        self.children.len()
    }
}

/// What every phase of an IKE SA has.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub role: Role,
    pub spi_i: u64,
    pub spi_r: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// When the first message was sent or received.
    pub began: Instant,
    /// We have no other IKE SA with this peer, and say so when we authenticate (section 2.4).
    pub initial_contact: bool,
    pub nat: Nat,
    /// Both ends understand fragments of messages (RFC 7383 section 2.3).
    pub fragmentation: bool,
    /// Virtual addresses of one of the ends.
    pub lease: Option<Arc<Lease>>,
    /// The ends may move (RFC 4555): our role in the first of the IKE SAs that followed each other.
    pub mobike: Option<Role>,
    /// The first child SA comes in an exchange of its own (RFC 6023).
    pub childless: bool,
    /// The peer's address as configured, if we began the first of the IKE SAs that followed each other:
    /// it may have moved, or sent us to another.
    pub called: Option<IpAddr>,
    /// Where ESP still goes while it is not known whether the peer is reached at a new address.
    pub hold: Option<Path>,
}

impl Common {
    /// The SPI we chose.
    pub fn local_spi(&self) -> u64 {
        match self.role {
            Role::Initiator => self.spi_i,
            Role::Responder => self.spi_r,
        }
    }
}

/// Our identity in a connection, when we send from `local`.
pub(crate) fn local_identity(config: &ConnectionConfig, local: SocketAddr) -> Identity {
    config
        .local_id
        .clone()
        .unwrap_or_else(|| Identity::Address(local.ip()))
}
