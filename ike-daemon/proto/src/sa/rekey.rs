//! CREATE_CHILD_SA for child SAs: new ones, and rekeying (RFC 7296 sections 1.3.1, 1.3.3 and 2.8).

use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSaId, SecretBytes, Share, Takeover};

use super::child::{self, Agreed, ChildOffer};
use super::collision::{Rival, later};
use super::established::{Established, Pending, Task};
use super::followup::{self, Awaited, AwaitedSa, FollowUp, Step};
use super::respond::notifies;
use super::{Common, Cx, Datagram, Effect, explain, resource};
use crate::config::StartAction;
use crate::crypto::dh::KeyExchange;
use crate::notice::DownReason;
use crate::proposal::{self, DhGroup, Groups, Protocol};
use crate::refusal::Refusal;
use crate::status::Role;
use crate::wire::id::KeyExchangeData;
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, PayloadType, Writer, sa, ts};

/// ESP in notify payloads.
const PROTOCOL_ESP: u8 = 3;

/// What a child SA is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whatever its selectors cover: there is none yet.
    First,
    /// To take over from this one.
    Replace(ChildSaId),
    /// What this processor sends.
    Processor(u32),
    /// One pair of the selectors, by its number.
    Pair(u16),
}

impl Purpose {
    /// The one that it takes over from.
    pub fn old(self) -> Option<ChildSaId> {
        match self {
            Self::Replace(id) => Some(id),
            Self::First | Self::Processor(_) | Self::Pair(_) => None,
        }
    }
}

/// A CREATE_CHILD_SA request of ours for a child SA.
pub(crate) struct ChildRequest {
    /// What the pair will be called: known beforehand, so that whoever goes on after us can tell
    /// whether it was installed already.
    pub id: ChildSaId,
    pub purpose: Purpose,
    pub spi_in: u32,
    pub nonce: Vec<u8>,
    /// The key exchange under way.
    pub exchange: Option<KeyExchange>,
    /// What is known since the response to CREATE_CHILD_SA, when more key exchanges follow.
    pub follow_up: Option<FollowUp>,
    pub began: Instant,
    /// The group was the peer's wish.
    pub retried: bool,
    /// What the peer asked for at the same time, and got.
    pub rival: Option<Rival<ChildSaId>>,
}

/// The payloads of a CREATE_CHILD_SA message.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    pub offer: ChildOffer,
    pub nonce: Option<&'a [u8]>,
    pub ke: Option<KeyExchangeData<'a>>,
    /// What IKE_FOLLOWUP_KE goes on with.
    pub link: Option<&'a [u8]>,
    /// SPI of the child SA to be replaced, the one its sender receives with.
    rekeys: Option<u32>,
    pub error: Option<Notify<'a>>,
}

impl<'a> Parts<'a> {
    pub fn of(payloads: &'a [Payload<'a>]) -> Self {
        let mut parts = Self::default();
        for payload in payloads {
            match payload {
                Payload::Nonce(data) => parts.nonce = Some(data),
                Payload::Ke(data) => parts.ke = Some(*data),
                other => parts.offer.take(other),
            }
        }
        for notify in notifies(payloads) {
            if notify.kind == NotifyType::REKEY_SA {
                parts.rekeys = notify.spi.try_into().ok().map(u32::from_be_bytes);
            } else if notify.kind == NotifyType::ADDITIONAL_KEY_EXCHANGE {
                parts.link = Some(notify.data);
            } else if notify.kind.is_error() {
                parts.error = parts.error.or(Some(*notify));
            }
        }
        parts
    }

    pub(super) fn group(&self) -> Option<DhGroup> {
        self.ke.and_then(|ke| DhGroup::from_id(ke.group))
    }
}

/// The group an INVALID_KE_PAYLOAD notify asks for.
pub(super) fn wanted_group(notify: &Notify<'_>) -> Option<DhGroup> {
    let id = <[u8; 2]>::try_from(notify.data)
        .ok()
        .map(u16::from_be_bytes);
    id.and_then(DhGroup::from_id)
}

impl Established {
    /// Asks for a child SA. `group` is set when the peer asked for it.
    pub fn request_child(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        purpose: Purpose,
        group: Option<DhGroup>,
    ) {
        let old = purpose.old();
        let replaced = old.and_then(|id| self.children.iter().find(|child| child.id == id));
        if old.is_some() && replaced.is_none_or(|child| child.replaced) {
            return;
        }
        let share = match (purpose, replaced) {
            (Purpose::Processor(number), _) => Share::Processor(number),
            (_, Some(child)) => child.share,
            // Whether there may be more is what this asks.
            (Purpose::First, _) if self.config.processors.is_some() => Share::Fallback,
            _ => Share::Whole,
        };
        let rekeys = replaced.map(|child| child.spi_in.to_be_bytes());
        let retried = group.is_some();
        let exchange = group
            .or(self.first_group())
            .map(|group| KeyExchange::generate(group, &mut cx.rng));
        let (spi_in, nonce) = (cx.child_spi(), cx.nonce());
        let mut writer = Writer::new();
        if let Some(spi) = &rekeys {
            writer.notify(Notify {
                protocol: PROTOCOL_ESP,
                spi,
                kind: NotifyType::REKEY_SA,
                data: &[],
            });
        }
        child::write_mode(&mut writer, self.config.mode);
        resource::write(&mut writer, share);
        let offer = proposal::offer(&self.config.esp, &spi_in.to_be_bytes(), Groups::Negotiated);
        writer.add(PayloadType::SA, |out| sa::encode(&offer, out));
        writer.add(PayloadType::NONCE, |out| out.extend(&nonce));
        if let Some(exchange) = &exchange {
            write_ke(&mut writer, exchange);
        }
        let sides = self.wanted(common, purpose);
        writer.add(PayloadType::TSI, |out| ts::encode(&sides.local, out));
        writer.add(PayloadType::TSR, |out| ts::encode(&sides.remote, out));
        let pending = Pending::Child(Box::new(ChildRequest {
            id: cx.out.next_child_id(),
            purpose,
            spi_in,
            nonce,
            exchange,
            follow_up: None,
            began: cx.now,
            retried,
            rival: None,
        }));
        self.request(common, cx, ExchangeType::CREATE_CHILD_SA, &writer, pending);
    }

    /// The group that is tried first for a child SA, if it has a key exchange of its own.
    fn first_group(&self) -> Option<DhGroup> {
        let mut groups = self.config.esp.iter().map(|it| it.groups.first().copied());
        groups.find_map(|group| group)
    }

    /// The peer's answer to our request for a child SA.
    pub fn child_answered(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        request: ChildRequest,
        payloads: &[Payload<'_>],
    ) {
        let parts = Parts::of(payloads);
        let (id, purpose, spi_in, began) =
            (request.id, request.purpose, request.spi_in, request.began);
        let old = purpose.old();
        if self.deleting {
            // It goes with the IKE SA.
            return cx.out.release(id);
        }
        self.count_refusal(cx.now, parts.error.map(|notify| notify.kind));
        if let Some(notify) = parts.error {
            cx.out.release(id);
            let wanted = wanted_group(&notify);
            let offered = |group: &DhGroup| {
                self.config
                    .esp
                    .iter()
                    .any(|proposal| proposal.groups.contains(group))
            };
            match notify.kind {
                NotifyType::INVALID_KE_PAYLOAD
                    if !request.retried && wanted.as_ref().is_some_and(offered) =>
                {
                    return self.request_child(common, cx, purpose, wanted);
                }
                NotifyType::CHILD_SA_NOT_FOUND if old.is_some() => {
                    return self.child_lost(common, cx, old);
                }
                NotifyType::TEMPORARY_FAILURE => {
                    self.plan_shares_later(cx);
                    if matches!(purpose, Purpose::First | Purpose::Pair(_)) {
                        self.try_later(cx, Task::CreateChild { purpose });
                    }
                }
                // Another process answers there, or the peer took too long for us.
                NotifyType::STATE_NOT_FOUND if !request.retried => {
                    let group = self.first_group();
                    return self.request_child(common, cx, purpose, group);
                }
                kind if matches!(purpose, Purpose::Processor(_)) => {
                    self.shares_refused(cx, kind);
                }
                kind if self.split(common, cx, kind, purpose) => return,
                kind => {
                    let sides = self.wanted(common, purpose);
                    let refusal = explain::child_refused(
                        &self.config,
                        common.remote,
                        kind,
                        Groups::Negotiated,
                        &sides,
                    );
                    if let Purpose::Pair(number) = purpose {
                        return self.pair_refused(cx, number, refusal);
                    }
                    cx.out.effects.push(Effect::Failed {
                        refusal,
                        retry: false,
                    });
                }
            }
            return self.rekey_child_later(common, cx, old);
        }
        let earlier = request.follow_up.as_ref();
        let nonce_r = earlier.map_or(parts.nonce, |earlier| Some(&earlier.nonce_r[..]));
        let nonces = [&request.nonce[..], nonce_r.unwrap_or_default()];
        let answer = earlier.map_or(&parts.offer, |earlier| &earlier.answer);
        let rival = self.rival_of(&request, answer).cloned();
        if rival.as_ref().is_some_and(|rival| rival.prevails(nonces)) {
            cx.out.release(id);
            return self.queue.push_back(Task::DeleteChild { id, spi_in });
        }
        match self.finish_child(common, cx, request, &parts) {
            Ok(Step::More { request, link }) => {
                let mut writer = Writer::new();
                followup::write_request(&mut writer, request.exchange.as_ref(), &link);
                let pending = Pending::Child(Box::new(request));
                self.request(common, cx, ExchangeType::IKE_FOLLOWUP_KE, &writer, pending);
            }
            Ok(Step::Done(mut new)) => {
                new.share = match purpose {
                    Purpose::First | Purpose::Pair(_) => new.share,
                    Purpose::Replace(old) => self.share_of(old),
                    Purpose::Processor(number) => self.free_share(Some(number)),
                };
                let there = |id: &ChildSaId| self.children.iter().any(|child| child.id == *id);
                let rival = rival.map(|rival| rival.made);
                let from = old.filter(there).or(rival.filter(|_| old.is_some()));
                let takeover = from.map(|old| (old, Takeover::Now));
                self.install_child(common, cx, new, takeover, began);
                if let Some(rival) = rival {
                    self.await_delete(cx, rival);
                }
                match purpose {
                    Purpose::First => self.ask_for_the_rest(common),
                    Purpose::Pair(_) => self.pairs.single = true,
                    Purpose::Replace(_) | Purpose::Processor(_) => {}
                }
                if let Some(child) = self.children.iter_mut().find(|child| Some(child.id) == old) {
                    child.replaced = true;
                    child.rekey_at = None;
                    self.queue.push_back(Task::DeleteChild {
                        id: child.id,
                        spi_in: child.spi_in,
                    });
                }
            }
            Err(refusal) => {
                cx.out.effects.push(Effect::Failed {
                    refusal,
                    retry: false,
                });
                // The peer has installed its half.
                cx.out.release(id);
                self.queue.push_back(Task::DeleteChild { id, spi_in });
                self.rekey_child_later(common, cx, old);
            }
        }
    }

    fn rekey_child_later(&mut self, common: &Common, cx: &mut Cx<'_>, old: Option<ChildSaId>) {
        let at = later(cx);
        match self.children.iter_mut().find(|child| Some(child.id) == old) {
            Some(child) if !child.replaced => child.rekey_at = Some(at),
            // The peer deleted it while we asked.
            None if old.is_some() && self.config.start == StartAction::Start => {
                self.acquire(common);
            }
            _ => {}
        }
    }

    /// The peer does not have the child SA that we want to rekey: "silently delete the Child SA (if it
    /// still exists) and send a request to create a new Child SA from scratch" (section 2.25).
    fn child_lost(&mut self, common: &Common, cx: &mut Cx<'_>, old: Option<ChildSaId>) {
        let Some(child) = self.children.iter().find(|child| Some(child.id) == old) else {
            if self.config.start == StartAction::Start {
                self.acquire(common); // It deleted it while we asked.
            }
            return;
        };
        if child.replaced {
            // By a rekey of the peer's, which was done before it saw ours (section 2.8.1).
            self.retire_child(cx, child.id);
        } else {
            self.remove_child(cx, child.id, DownReason::PeerDeleted);
            self.acquire(common);
        }
    }

    fn finish_child(
        &self,
        common: &Common,
        cx: &mut Cx<'_>,
        mut request: ChildRequest,
        parts: &Parts<'_>,
    ) -> Result<Step<ChildRequest, child::NewChild>, Arc<Refusal>> {
        let config = &self.config;
        let broken = |what: &str| explain::protocol(config, common, what);
        let mut follow_up = match request.follow_up.take() {
            Some(follow_up) => follow_up,
            None => FollowUp::of(parts).map_err(broken)?,
        };
        let answer = &follow_up.answer;
        let wanted = self.wanted(common, request.purpose);
        let agreed = child::accept_answer(config, common, answer, Groups::Negotiated, &wanted)?;
        let (choice, first) = (agreed.choice, follow_up.secrets.is_empty());
        match (choice.group, request.exchange.take()) {
            (None, _) => {}
            (Some(group), Some(exchange)) if !first || group == exchange.group() => {
                let next = follow_up.take(exchange, parts, choice.additional);
                if let Some((group, link)) = next.map_err(|error| broken(&error))? {
                    request.exchange = Some(KeyExchange::generate(group, &mut cx.rng));
                    request.follow_up = Some(follow_up);
                    return Ok(Step::More { request, link });
                }
            }
            _ => {
                return Err(broken(
                    "the peer chose another DH group than that of our KE payload",
                ));
            }
        }
        let mut new = child::derive(
            &self.keys,
            agreed,
            request.spi_in,
            (&request.nonce, &follow_up.nonce_r),
            &follow_up.secrets,
            Role::Initiator,
        )
        .map_err(|error| broken(&error.to_string()))?;
        new.id = Some(request.id);
        Ok(Step::Done(new))
    }

    /// Answers a CREATE_CHILD_SA request.
    pub fn answer_create_child(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
    ) {
        let parts = Parts::of(payloads);
        let mut writer = Writer::new();
        let is_ike = parts
            .offer
            .proposals
            .first()
            .is_some_and(|proposal| proposal.protocol == Protocol::Ike);
        let result = if is_ike {
            self.answer_rekey(common, cx, &parts, &mut writer)
        } else {
            self.answer_child(common, cx, &parts, &mut writer)
        };
        if let Err(error) = result {
            writer = Writer::new();
            error.write(&mut writer);
        }
        self.respond(common, cx, datagram, &writer);
    }

    fn answer_child(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        parts: &Parts<'_>,
        writer: &mut Writer,
    ) -> Result<(), NotifyOut> {
        let Some(nonce_i) = parts.nonce else {
            return Err(NotifyType::INVALID_SYNTAX.into());
        };
        if !self.is_current() || matches!(self.pending(), Some(Pending::Ike(_))) {
            return Err(NotifyType::TEMPORARY_FAILURE.into());
        }
        let mut old = None;
        if let Some(spi) = parts.rekeys {
            let child = self.children.iter().find(|child| child.spi_out == spi);
            let early = child.is_none() && matches!(self.pending(), Some(Pending::Child(_)));
            if early || child.is_some_and(|child| self.is_closing(child.id)) {
                // We delete it; or our request under way may have made it.
                return Err(NotifyType::TEMPORARY_FAILURE.into());
            }
            let Some(child) = child.filter(|child| !child.replaced) else {
                let spi = spi.to_be_bytes().to_vec();
                return Err(NotifyOut {
                    protocol: PROTOCOL_ESP,
                    spi,
                    ..NotifyType::CHILD_SA_NOT_FOUND.into()
                });
            };
            let id = child.id;
            self.withdraw(Purpose::Replace(id));
            old = Some(id);
        }
        let agreed = child::select(
            &self.config,
            common,
            &parts.offer,
            Groups::Negotiated,
            parts.group(),
        );
        let mut agreed = agreed.map_err(|refused| {
            cx.out.effects.push(Effect::Failed {
                refusal: refused.refusal,
                retry: false,
            });
            NotifyOut::from(refused.notify)
        })?;
        if let Some(refusal) = agreed.declined.take() {
            cx.out.effects.push(Effect::Failed {
                refusal,
                retry: false,
            });
        }
        agreed.share = match old {
            // "The rekeyed Child SA should be bound to the same resource(s)" (RFC 9611 section 4).
            Some(old) => self.share_of(old),
            None => self.further_share(&parts.offer).map_err(NotifyOut::from)?,
        };
        let spi_in = cx.child_spi();
        let nonce_r = cx.nonce();
        agreed.write(writer, spi_in);
        writer.add(PayloadType::NONCE, |out| out.extend(&nonce_r));
        let mut secrets = Vec::new();
        if let Some(group) = agreed.choice.group {
            secrets.push(exchange_keys(cx, group, parts, writer)?);
        }
        let agreed = Box::new(agreed);
        let sa = AwaitedSa::Child {
            agreed,
            spi_in,
            old,
        };
        let awaited = Awaited::new(cx, sa, (nonce_i, nonce_r), secrets);
        self.make_or_await(common, cx, awaited, writer)
    }

    /// Makes a child SA as responder, after its last key exchange.
    pub(super) fn make_child(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        (agreed, spi_in, old): (Agreed, u32, Option<ChildSaId>),
        nonces: (&[u8], &[u8]),
        secrets: &[SecretBytes],
        began: Instant,
    ) -> Result<(), NotifyOut> {
        let there = |id| {
            self.children
                .iter()
                .any(|child| child.id == id && !child.replaced)
        };
        if old.is_some_and(|id| !there(id)) || cx.out.has_inbound(spi_in) {
            // Something else happened to it between two key exchanges.
            return Err(NotifyType::TEMPORARY_FAILURE.into());
        }
        let new = child::derive(&self.keys, agreed, spi_in, nonces, secrets, Role::Responder)
            .map_err(|_| NotifyOut::from(NotifyType::NO_PROPOSAL_CHOSEN))?;
        let takeover = old.map(|old| (old, Takeover::WithRemoval));
        let made = self.install_child(common, cx, new, takeover, began);
        self.note_rival(made, old, [nonces.0, nonces.1]);
        if let Some(child) = self.children.iter_mut().find(|child| Some(child.id) == old) {
            child.replaced = true;
            child.rekey_at = None;
        }
        Ok(())
    }
}

pub(super) fn write_ke(writer: &mut Writer, exchange: &KeyExchange) {
    let (group, data) = (exchange.group().id(), exchange.public_value());
    writer.add(PayloadType::KE, |out| {
        KeyExchangeData { group, data }.encode(out)
    });
}

/// The responder's half of a key exchange in `group`.
pub(super) fn exchange_keys(
    cx: &mut Cx<'_>,
    group: DhGroup,
    parts: &Parts<'_>,
    writer: &mut Writer,
) -> Result<SecretBytes, NotifyOut> {
    let Some(ke) = parts.ke.filter(|ke| ke.group == group.id()) else {
        let data = group.id().to_be_bytes().to_vec();
        return Err(NotifyOut {
            data,
            ..NotifyType::INVALID_KE_PAYLOAD.into()
        });
    };
    let (public, shared) = KeyExchange::answer(group, ke.data, &mut cx.rng)
        .map_err(|_| NotifyOut::from(NotifyType::INVALID_SYNTAX))?;
    let ke = KeyExchangeData {
        group: group.id(),
        data: &public,
    };
    writer.add(PayloadType::KE, |out| ke.encode(out));
    Ok(shared)
}

/// An error to answer with.
pub(super) struct NotifyOut {
    kind: NotifyType,
    protocol: u8,
    spi: Vec<u8>,
    data: Vec<u8>,
}

impl NotifyOut {
    pub fn write(&self, writer: &mut Writer) {
        writer.notify(Notify {
            protocol: self.protocol,
            spi: &self.spi,
            kind: self.kind,
            data: &self.data,
        });
    }
}

impl From<NotifyType> for NotifyOut {
    fn from(kind: NotifyType) -> Self {
        Self {
            kind,
            protocol: 0,
            spi: Vec::new(),
            data: Vec::new(),
        }
    }
}
