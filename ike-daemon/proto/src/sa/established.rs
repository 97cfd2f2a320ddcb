//! An IKE SA whose two ends are authenticated: its message IDs, timers and child SAs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, Mode, Takeover};

use super::auth::down;
use super::child::{self, Child, NewChild};
use super::collision::Retired;
use super::context::{Common, Cx, Effect};
use super::followup::Awaited;
use super::fragment::Message;
use super::mobike::{Ends, Mobility};
use super::pairs::Pairs;
use super::proof::PeerProof;
use super::protect::{self, Protector};
use super::rekey::{ChildRequest, Purpose};
use super::respond::{Answered, Lingering};
use super::retransmit::Retransmit;
use super::successor::IkeRequest;
use super::{Datagram, Phase};
use crate::config::{ConnectionConfig, Lifetime};
use crate::crypto::Random;
use crate::crypto::keys::IkeKeys;
use crate::identity::Identity;
use crate::notice::{DownReason, Notice};
use crate::proposal::IkeSuite;
use crate::refusal::Refusal;
use crate::status::{IkeDrop, IkeSaStatus};
use crate::wire::{ExchangeType, Notify, NotifyType, Payloads, Writer};

/// How long a response to the last message of an IKE SA stays at hand.
const LINGER: Duration = Duration::from_secs(30);

/// Both ends are authenticated.
pub(crate) struct Established {
    pub config: Arc<ConnectionConfig>,
    pub suite: IkeSuite,
    pub keys: IkeKeys,
    pub(super) protector: Protector,
    pub proof: PeerProof,
    pub local_id: Identity,
    pub(super) since: Instant,
    /// Message ID of our next request.
    pub(super) next_id: u32,
    /// Message ID of the peer's next request.
    pub(super) expected_id: u32,
    /// The peer's last request and our response to it.
    pub(super) answered: Option<Answered>,
    /// Our request that waits for its response: the window is one message (section 2.3).
    pub(super) outstanding: Option<Outstanding>,
    pub queue: VecDeque<Task>,
    pub children: Vec<Child>,
    pub(super) last_heard: Instant,
    pub(super) last_sent: Instant,
    pub rekey_at: Instant,
    pub(super) expires: Instant,
    /// A delete of it was sent or waits to be.
    pub deleting: bool,
    /// A rekeyed IKE SA took over; its end is nothing to tell of.
    pub superseded: bool,
    /// A PPK is in its keys (RFC 8784).
    pub ppk: bool,
    /// A CREATE_CHILD_SA exchange of the peer's that waits for further key exchanges. It is not
    /// saved: a successor answers STATE_NOT_FOUND, and the peer begins anew.
    pub(super) awaited: Option<Box<Awaited>>,
    /// One of two successors, and it is not known yet which prevails.
    pub contested: bool,
    /// Child SAs that were replaced and receive what is under way.
    pub(super) retired: Vec<Retired>,
    /// What is tried again at a later time.
    pub(super) delayed: Vec<(Instant, Task)>,
    /// Since when and until when the peer refused with TEMPORARY_FAILURE.
    pub(super) refusing: Option<(Instant, Instant)>,
    /// The peer refused a child SA for a single processor.
    pub(super) no_more_shares: bool,
    /// When the peer is asked for child SAs for single processors.
    pub(super) shares_due: Option<Instant>,
    /// Where the peer can be.
    pub mobility: Mobility,
    pub(super) pairs: Pairs,
}

/// A request that waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// An empty INFORMATIONAL request.
    Liveness,
    /// Delete this IKE SA.
    DeleteIke,
    /// Delete a child SA that is no longer used.
    DeleteChild { id: ChildSaId, spi_in: u32 },
    /// Make a child SA.
    CreateChild { purpose: Purpose },
    /// Replace this IKE SA.
    RekeyIke,
    /// Tell whoever must follow that the addresses are others (UPDATE_SA_ADDRESSES).
    UpdateAddresses,
    /// Tell whoever decides which addresses we have.
    TellAddresses,
    /// Find out whether the peer is where it says (COOKIE2).
    CheckAddress,
}

/// A request under way.
pub(crate) struct Outstanding {
    pub id: u32,
    pub exchange: ExchangeType,
    pub pending: Pending,
    pub packet: Message,
    pub retransmit: Retransmit,
}

/// What a response is awaited for.
pub(crate) enum Pending {
    Liveness,
    DeleteIke,
    DeleteChild { id: ChildSaId },
    Child(Box<ChildRequest>),
    Ike(Box<IkeRequest>),
    Update(Ends),
    Check { cookie: [u8; 16], ends: Ends },
}

/// When an SA made now is to be rekeyed.
pub(crate) fn rekey_time(cx: &mut Cx<'_>, lifetime: &Lifetime) -> Instant {
    let mut octets = [0; 4];
    cx.rng.fill(&mut octets);
    let share = f64::from(u32::from_be_bytes(octets)) / f64::from(u32::MAX);
    cx.now + lifetime.soft.saturating_sub(lifetime.jitter.mul_f64(share))
}

impl Established {
    /// Takes the authenticated peer's proof; message IDs go on from the handshake's.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        cx: &mut Cx<'_>,
        config: Arc<ConnectionConfig>,
        suite: IkeSuite,
        keys: IkeKeys,
        protector: Protector,
        proof: PeerProof,
        local_id: Identity,
        next_id: u32,
        expected_id: u32,
    ) -> Self {
        let rekey_at = rekey_time(cx, &config.ike_lifetime);
        let pairs = Pairs::new(config.single_pairs);
        Self {
            expires: cx.now + config.ike_lifetime.hard,
            config,
            suite,
            keys,
            protector,
            proof,
            local_id,
            since: cx.now,
            next_id,
            expected_id,
            answered: None,
            outstanding: None,
            queue: VecDeque::new(),
            children: Vec::new(),
            last_heard: cx.now,
            last_sent: cx.now,
            rekey_at,
            deleting: false,
            superseded: false,
            ppk: false,
            awaited: None,
            contested: false,
            retired: Vec::new(),
            delayed: Vec::new(),
            refusing: None,
            no_more_shares: false,
            shares_due: None,
            mobility: Mobility::default(),
            pairs,
        }
    }

    /// Tells of the new IKE SA.
    pub fn announce(&self, common: &Common, cx: &mut Cx<'_>, initial_contact: bool) {
        cx.out.notice(Notice::Established {
            connection: self.config.name.clone(),
            role: common.role,
            initiator_spi: common.spi_i,
            responder_spi: common.spi_r,
            suite: self.suite.to_string(),
            local: common.local,
            remote: common.remote,
            local_id: self.local_id.to_string(),
            remote_id: self.proof.identity().to_string(),
            elapsed: cx.now.saturating_duration_since(common.began),
        });
        for doubt in self.proof.doubts() {
            cx.out.notice(Notice::RevocationUnknown {
                connection: self.config.name.clone(),
                doubt: doubt.clone(),
            });
        }
        cx.out.effects.push(Effect::Established {
            spi: common.local_spi(),
            connection: self.config.name.clone(),
            initial_contact,
        });
    }

    /// Installs a child SA negotiated since `began`.
    pub fn install_child(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        new: NewChild,
        old: Option<(ChildSaId, Takeover)>,
        began: Instant,
    ) -> ChildSaId {
        self.plan_shares(cx, &new, old.is_some());
        let rekey_at = rekey_time(cx, &self.config.child_lifetime);
        let child = Child::install(common, cx, &self.config, new, old, rekey_at);
        let elapsed = cx.now.saturating_duration_since(began);
        cx.out.notice(child.up(&self.config, elapsed));
        let id = child.id;
        self.children.push(child);
        id
    }

    /// Takes a child SA out of the data plane.
    pub fn remove_child(&mut self, cx: &mut Cx<'_>, id: ChildSaId, reason: DownReason) {
        if let Some(at) = self.children.iter().position(|child| child.id == id) {
            self.children.remove(at);
            cx.out.remove(id);
            cx.out.notice(Notice::ChildDown {
                connection: self.config.name.clone(),
                id,
                reason,
            });
        }
    }

    pub(super) fn remove_children(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        if let Some(Pending::Child(request)) = self.pending() {
            cx.out.release(request.id);
        }
        while let Some(id) = self.children.first().map(|child| child.id) {
            self.remove_child(cx, id, reason);
        }
        self.remove_retired(cx, true);
    }

    /// Removes what hangs on it and asks the peer to forget it.
    pub(super) fn begin_delete(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        self.remove_children(cx, reason);
        self.deleting = true;
        self.queue.clear();
        self.delayed.clear();
        self.queue.push_back(Task::DeleteIke);
    }

    /// The negotiation of what it is for failed: delete it and tell.
    pub fn give_up(mut self, common: &Common, cx: &mut Cx<'_>, refusal: Arc<Refusal>) -> Phase {
        cx.out.effects.push(Effect::Failed {
            refusal,
            retry: true,
        });
        self.begin_delete(cx, DownReason::Refused);
        self.pump(common, cx);
        Phase::Established(Box::new(self))
    }

    /// Deletes it in an orderly way.
    pub fn terminate(
        mut self: Box<Self>,
        common: &Common,
        cx: &mut Cx<'_>,
        reason: DownReason,
    ) -> Phase {
        if !self.deleting {
            self.begin_delete(cx, reason);
            if !self.superseded {
                down(common, cx, &self.config.name, reason);
            }
        }
        self.pump(common, cx);
        Phase::Established(self)
    }

    /// Tells the peer once that an IKE SA is deleted, which we forget.
    pub fn farewell(common: &Common, cx: &mut Cx<'_>, protector: &mut Protector, message_id: u32) {
        let mut writer = Writer::new();
        super::informational::write_delete_ike(&mut writer);
        let header = protect::header(common, ExchangeType::INFORMATIONAL, false, message_id);
        if let Ok(message) = protector.seal(common, cx, header, &writer) {
            cx.out.send(common.local, common.remote, &message);
        }
    }

    /// Forgets it at once; the peer is told once, in case it is still there.
    pub fn abandon(
        mut self: Box<Self>,
        common: &Common,
        cx: &mut Cx<'_>,
        reason: DownReason,
    ) -> Phase {
        self.remove_children(cx, reason);
        Self::farewell(common, cx, &mut self.protector, self.next_id);
        cx.out.notice(Notice::Down {
            connection: self.config.name.clone(),
            remote: common.remote,
            reason,
        });
        Phase::Gone
    }

    /// The peer deleted it: its children are gone, our response stays at hand for a while.
    pub fn deleted_by_peer(mut self: Box<Self>, common: &Common, cx: &mut Cx<'_>) -> Phase {
        if let Some(spi) = self.rival_successor().filter(|_| self.is_current()) {
            // The peer did not see our rekey: its own is done (section 2.8.2).
            self.leave_to(common, cx, spi);
        }
        self.remove_children(cx, DownReason::PeerDeleted);
        if self.is_current() {
            down(common, cx, &self.config.name, DownReason::PeerDeleted);
        }
        match self.answered {
            Some(answered) => Phase::Lingering(Box::new(Lingering {
                answered,
                expires: cx.now + LINGER,
                half_open: false,
            })),
            None => Phase::Gone,
        }
    }

    /// Answers the peer's request; the answer is kept for when it comes again.
    pub fn respond(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        writer: &Writer,
    ) {
        let header = protect::header(
            common,
            datagram.header.exchange,
            true,
            datagram.header.message_id,
        );
        if let Ok(response) = self.protector.seal(common, cx, header, writer) {
            cx.out.send(datagram.local, datagram.remote, &response);
            self.answered = Some(Answered {
                request: protect::fingerprint(datagram.bytes),
                response,
            });
            self.expected_id = self.expected_id.saturating_add(1);
            self.last_sent = cx.now;
        }
    }

    /// Sends a request of ours; its response will be handled as `pending` says.
    pub fn request(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        writer: &Writer,
        pending: Pending,
    ) {
        let id = self.next_id;
        let header = protect::header(common, exchange, false, id);
        if let Ok(packet) = self.protector.seal(common, cx, header, writer) {
            self.next_id = id.saturating_add(1);
            cx.out.send(common.local, common.remote, &packet);
            self.last_sent = cx.now;
            let retransmit = Retransmit::start(cx.now, &cx.settings.retransmission);
            self.outstanding = Some(Outstanding {
                id,
                exchange,
                pending,
                packet,
                retransmit,
            });
        } else {
            // Nothing can be protected with these keys any more.
            self.expires = cx.now;
        }
    }

    /// Takes a child SA that waits for its turn out of the queue.
    pub(super) fn withdraw(&mut self, purpose: Purpose) {
        self.queue
            .retain(|task| *task != Task::CreateChild { purpose });
    }

    /// What our request under way is about.
    pub fn pending(&self) -> Option<&Pending> {
        self.outstanding
            .as_ref()
            .map(|outstanding| &outstanding.pending)
    }

    /// Sends the next request that waits, when none is under way.
    pub fn pump(&mut self, common: &Common, cx: &mut Cx<'_>) {
        while self.outstanding.is_none()
            && let Some(task) = self.queue.pop_front()
        {
            match task {
                Task::Liveness => {
                    let mut writer = Writer::new();
                    Self::write_liveness(common, &mut writer);
                    self.request(
                        common,
                        cx,
                        ExchangeType::INFORMATIONAL,
                        &writer,
                        Pending::Liveness,
                    );
                }
                Task::DeleteIke => {
                    let mut writer = Writer::new();
                    super::informational::write_delete_ike(&mut writer);
                    self.request(
                        common,
                        cx,
                        ExchangeType::INFORMATIONAL,
                        &writer,
                        Pending::DeleteIke,
                    );
                }
                Task::DeleteChild { id, spi_in } => {
                    let mut writer = Writer::new();
                    super::informational::write_delete_children(&mut writer, vec![spi_in]);
                    self.request(
                        common,
                        cx,
                        ExchangeType::INFORMATIONAL,
                        &writer,
                        Pending::DeleteChild { id },
                    );
                }
                Task::CreateChild { purpose } if self.is_needless(common, purpose) => {}
                Task::CreateChild { purpose } => self.request_child(common, cx, purpose, None),
                Task::RekeyIke => self.request_rekey(common, cx, None),
                Task::UpdateAddresses => self.request_update(common, cx),
                Task::TellAddresses => self.request_addresses(common, cx),
                Task::CheckAddress => self.request_check(common, cx),
            }
        }
    }

    /// Traffic needs a child SA and there is none.
    pub fn acquire(&mut self, common: &Common) {
        if self.pairs.single {
            self.ask_for_pairs(common);
            return;
        }
        let purpose = Purpose::First;
        let comes = |request: &ChildRequest| !matches!(request.purpose, Purpose::Processor(_));
        let on_its_way = self.is_asking_for(purpose)
            || matches!(self.pending(), Some(Pending::Child(request)) if comes(request));
        if !self.carries_everything() && !on_its_way && !self.deleting {
            self.queue.push_back(Task::CreateChild { purpose });
        }
    }

    pub fn handle_datagram(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        if header.flags.is_response() {
            let fits =
                |out: &&Outstanding| out.id == header.message_id && out.exchange == header.exchange;
            if self.outstanding.as_ref().filter(fits).is_none() {
                self.stray_response(common, cx, datagram);
                return Phase::Established(self);
            }
        } else if let Some(answered) = self
            .answered
            .as_ref()
            .filter(|answered| self.is_repeated(common, datagram, answered))
        {
            // "retransmission of a request … the responder MUST resend its response" (section 2.1).
            cx.out.drop(IkeDrop::Retransmission);
            cx.out
                .send(datagram.local, datagram.remote, &answered.response);
            return Phase::Established(self);
        } else if header.message_id != self.expected_id {
            cx.out.drop(IkeDrop::MessageId);
            return Phase::Established(self);
        }
        let opened = match self.protector.open(common, datagram) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Phase::Established(self),
            Err(reason) => {
                cx.out.drop(reason);
                return Phase::Established(self);
            }
        };
        let datagram = &opened.message(datagram);
        // Fresh and authentic from here on.
        self.last_heard = cx.now;
        // Who may move says so: "The host not behind a NAT MUST NOT use these dynamic updates for
        // IKEv2 packets" (RFC 4555 section 3.8).
        if common.nat.remote && common.mobike.is_none() && common.remote != datagram.remote {
            self.move_peer(common, cx, datagram.remote);
        }
        let payloads = Payloads::collect_all(opened.first, &opened.plaintext);
        let mut phase = if header.flags.is_response() {
            let Some(outstanding) = self.outstanding.take() else {
                return Phase::Established(self);
            };
            self.answered_from(common, cx, datagram);
            match payloads {
                Ok(payloads) => self.handle_response(common, cx, outstanding.pending, &payloads),
                Err(_) => {
                    cx.out.drop(IkeDrop::Malformed);
                    self.terminate(common, cx, DownReason::ProtocolError)
                }
            }
        } else {
            match payloads {
                Ok(payloads) => self.handle_request(common, cx, datagram, &payloads),
                Err(_) => {
                    cx.out.drop(IkeDrop::Malformed);
                    let mut writer = Writer::new();
                    writer.notify(Notify::new(NotifyType::INVALID_SYNTAX, &[]));
                    self.respond(common, cx, datagram, &writer);
                    Phase::Established(self)
                }
            }
        };
        if let Phase::Established(established) = &mut phase {
            established.pump(common, cx);
        }
        phase
    }

    /// Whether it is the request that was answered last: the same octets, or the first of other
    /// fragments, which the peer made of it since.
    fn is_repeated(&self, common: &Common, datagram: &Datagram<'_>, answered: &Answered) -> bool {
        let last = datagram.header.message_id.checked_add(1) == Some(self.expected_id);
        answered.request == protect::fingerprint(datagram.bytes)
            || (last && common.fragmentation && self.protector.is_first_fragment(datagram))
    }

    /// A response nobody waits for, or an unprotected error: a hint at most.
    fn stray_response(&mut self, common: &Common, cx: &mut Cx<'_>, datagram: &Datagram<'_>) {
        let Some(kind) = protect::unprotected_error(datagram) else {
            let old = datagram.header.message_id < self.next_id;
            return cx.out.drop(if old {
                IkeDrop::Retransmission
            } else {
                IkeDrop::MessageId
            });
        };
        self.hint(common, cx, datagram.remote, kind);
    }

    /// Somebody says, unprotected, that something is wrong.
    pub fn hint(&mut self, common: &Common, cx: &mut Cx<'_>, remote: SocketAddr, kind: NotifyType) {
        cx.out.drop(IkeDrop::Unauthenticated);
        // "MUST NOT … conclude that the other endpoint has failed based on … unprotected" messages,
        // but it may ask (section 2.4); not more often than once in ten seconds.
        let asked = cx.now.saturating_duration_since(self.last_sent) < Duration::from_secs(10);
        if !self.deleting && !asked {
            cx.out.notice(Notice::UnauthenticatedError {
                connection: self.config.name.clone(),
                remote,
                notify: kind.to_string(),
            });
            self.probe();
            self.pump(common, cx);
        }
    }

    /// The peer is reached at another address or port from now on.
    pub fn move_peer(&mut self, common: &mut Common, cx: &mut Cx<'_>, remote: SocketAddr) {
        if common.remote == remote || self.deleting {
            return;
        }
        cx.out.notice(Notice::PeerMoved {
            connection: self.config.name.clone(),
            from: common.remote,
            to: remote,
        });
        let readdressed = common.remote.ip() != remote.ip();
        common.remote = remote;
        child::move_all(common, cx, &self.children);
        for child in &mut self.children {
            // Its selectors name the peer's address (section 2.23.1).
            if readdressed && child.mode == Mode::Transport && child.rekey_at.is_some() {
                child.rekey_at = Some(cx.now);
            }
        }
    }

    pub fn fill_status(&self, now: Instant, status: &mut IkeSaStatus) {
        status.state = match (self.deleting, self.superseded) {
            (true, _) => "deleting",
            (false, true) => "replaced",
            (false, false) => "established",
        };
        status.suite = self.suite.to_string();
        status.local_id = Some(self.local_id.to_string());
        status.remote_id = Some(self.proof.identity().to_string());
        status.age = now.saturating_duration_since(self.since);
        status.rekey_in =
            Some(self.rekey_at.saturating_duration_since(now)).filter(|_| self.is_current());
        status.children = self
            .children
            .iter()
            .map(|child| child.status(now))
            .collect();
    }
}
