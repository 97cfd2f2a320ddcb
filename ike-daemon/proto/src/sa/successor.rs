//! The successor of an IKE SA: rekeying (RFC 7296 sections 1.3.2, 2.8 and 2.18), and handing over.

use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::SecretBytes;

use super::collision::{Rival, later};
use super::established::{Established, Pending, Task};
use super::followup::{self, Awaited, AwaitedSa, FollowUp, Step};
use super::rekey::{NotifyOut, Parts, exchange_keys, wanted_group, write_ke};
use super::{Common, Cx, Effect, IkeSa, Phase, child, explain};
use crate::crypto::dh::KeyExchange;
use crate::crypto::keys::{IkeContext, IkeKeys, SkeySeed};
use crate::notice::DownReason;
use crate::proposal::{self, DhGroup, Groups, IkeSuite, Protocol, WireProposal};
use crate::refusal::Refusal;
use crate::status::Role;
use crate::wire::{ExchangeType, NotifyType, Payload, PayloadType, Writer, sa};

/// A CREATE_CHILD_SA request of ours for the successor of the IKE SA.
pub(crate) struct IkeRequest {
    pub spi: u64,
    pub nonce: Vec<u8>,
    pub exchange: KeyExchange,
    pub follow_up: Option<FollowUp>,
    pub began: Instant,
    pub retried: bool,
    /// The successor that the peer asked for at the same time, by our SPI.
    pub rival: Option<Rival<u64>>,
}

/// An IKE SA that takes over.
type Successor = (Common, IkeSuite, IkeKeys);

impl Established {
    /// Asks for a successor of this IKE SA.
    pub fn request_rekey(&mut self, common: &Common, cx: &mut Cx<'_>, group: Option<DhGroup>) {
        let retried = group.is_some();
        let exchange = KeyExchange::generate(group.unwrap_or(self.suite.group), &mut cx.rng);
        let (spi, nonce) = (cx.ike_spi(), cx.nonce());
        let mut writer = Writer::new();
        let offer = proposal::offer(&self.config.ike, &spi.to_be_bytes(), Groups::Negotiated);
        writer.add(PayloadType::SA, |out| sa::encode(&offer, out));
        writer.add(PayloadType::NONCE, |out| out.extend(&nonce));
        write_ke(&mut writer, &exchange);
        let pending = Pending::Ike(Box::new(IkeRequest {
            spi,
            nonce,
            exchange,
            follow_up: None,
            began: cx.now,
            retried,
            rival: None,
        }));
        self.request(common, cx, ExchangeType::CREATE_CHILD_SA, &writer, pending);
    }

    /// The peer's answer to our request to rekey this IKE SA.
    pub fn rekey_answered(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        request: IkeRequest,
        payloads: &[Payload<'_>],
    ) {
        let parts = Parts::of(payloads);
        let rival = request.rival.clone();
        if self.deleting
            && let Some(rival) = &rival
        {
            cx.out.effects.push(Effect::Redundant { spi: rival.made });
        }
        if let Some(notify) = parts.error {
            if let Some(rival) = rival.filter(|_| !self.deleting) {
                // The peer was done with its own rekey before it saw ours.
                return self.leave_to(common, cx, rival.made);
            }
            self.count_refusal(cx.now, Some(notify.kind));
            let wanted = wanted_group(&notify);
            let offered = |group: &DhGroup| {
                self.config
                    .ike
                    .iter()
                    .any(|proposal| proposal.groups.contains(group))
            };
            if notify.kind == NotifyType::INVALID_KE_PAYLOAD
                && !request.retried
                && wanted.as_ref().is_some_and(offered)
            {
                return self.request_rekey(common, cx, wanted);
            }
            if notify.kind == NotifyType::STATE_NOT_FOUND && !request.retried {
                return self.request_rekey(common, cx, Some(self.suite.group));
            }
            if notify.kind != NotifyType::TEMPORARY_FAILURE {
                let refusal = explain::child_refused(
                    &self.config,
                    common.remote,
                    notify.kind,
                    Groups::Negotiated,
                    &child::sides(&self.config, common),
                );
                cx.out.effects.push(Effect::Failed {
                    refusal,
                    retry: false,
                });
            }
            self.rekey_at = later(cx);
            return;
        }
        let earlier = request.follow_up.as_ref();
        let nonce_r = earlier.map_or(parts.nonce, |earlier| Some(&earlier.nonce_r[..]));
        let nonces = [&request.nonce[..], nonce_r.unwrap_or_default()];
        let prevails = rival.as_ref().filter(|rival| rival.prevails(nonces));
        let prevails = prevails.map(|rival| rival.made).filter(|_| !self.deleting);
        match self.finish_rekey(common, cx, request, &parts) {
            Ok(Step::More { request, link }) => {
                let mut writer = Writer::new();
                followup::write_request(&mut writer, Some(&request.exchange), &link);
                let pending = Pending::Ike(Box::new(request));
                self.request(common, cx, ExchangeType::IKE_FOLLOWUP_KE, &writer, pending);
            }
            Ok(Step::Done((new, suite, keys))) if prevails.is_some() => {
                self.give_back(cx, new, suite, keys);
                if let Some(spi) = prevails {
                    self.leave_to(common, cx, spi);
                }
            }
            Ok(Step::Done((new, suite, keys))) => {
                if let Some(rival) = rival {
                    cx.out.effects.push(Effect::Redundant { spi: rival.made });
                }
                self.hand_over(common, cx, new, suite, keys);
                self.deleting = true;
                self.queue.clear();
                self.queue.push_back(Task::DeleteIke);
            }
            Err(refusal) => {
                if let Some(rival) = rival.filter(|_| !self.deleting) {
                    self.leave_to(common, cx, rival.made);
                }
                cx.out.effects.push(Effect::Failed {
                    refusal,
                    retry: false,
                });
                self.rekey_at = later(cx);
            }
        }
    }

    fn finish_rekey(
        &self,
        common: &Common,
        cx: &mut Cx<'_>,
        request: IkeRequest,
        parts: &Parts<'_>,
    ) -> Result<Step<IkeRequest, Successor>, Arc<Refusal>> {
        let config = &self.config;
        let broken = |what: &str| explain::protocol(config, common, what);
        let mut follow_up = match request.follow_up {
            Some(follow_up) => follow_up,
            None => FollowUp::of(parts).map_err(broken)?,
        };
        let [chosen] = &follow_up.answer.proposals[..] else {
            return Err(broken(
                "the response to our IKE rekey does not hold exactly one proposal",
            ));
        };
        let suite = proposal::verify_ike(&config.ike, chosen)
            .map_err(|error| explain::bad_choice(config, common, "ike", &error))?;
        let spi_r =
            ike_spi(chosen).ok_or_else(|| broken("the peer's new IKE SPI is not eight octets"))?;
        if follow_up.secrets.is_empty() && suite.group != request.exchange.group() {
            return Err(broken(
                "the peer chose another DH group than that of our KE payload",
            ));
        }
        let next = follow_up.take(request.exchange, parts, suite.additional);
        if let Some((group, link)) = next.map_err(|error| broken(&error))? {
            let request = IkeRequest {
                exchange: KeyExchange::generate(group, &mut cx.rng),
                follow_up: Some(follow_up),
                spi: request.spi,
                nonce: request.nonce,
                began: request.began,
                retried: request.retried,
                rival: request.rival,
            };
            return Ok(Step::More { request, link });
        }
        let new = Common {
            role: Role::Initiator,
            spi_i: request.spi,
            spi_r,
            began: request.began,
            ..common.clone()
        };
        let nonces = (&request.nonce[..], &follow_up.nonce_r[..]);
        let keys = self
            .successor_keys(&new, &suite, nonces, &follow_up.secrets)
            .ok_or_else(|| broken("the keys of the new IKE SA cannot be derived"))?;
        Ok(Step::Done((new, suite, keys)))
    }

    pub(super) fn answer_rekey(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        parts: &Parts<'_>,
        writer: &mut Writer,
    ) -> Result<(), NotifyOut> {
        let Some(nonce_i) = parts.nonce else {
            return Err(NotifyType::INVALID_SYNTAX.into());
        };
        if !self.is_current() || self.is_at_a_child() || self.rival_successor().is_some() {
            return Err(NotifyType::TEMPORARY_FAILURE.into());
        }
        let offered = &parts.offer.proposals;
        let selection =
            proposal::select_ike(&self.config.ike, offered, parts.group()).map_err(|mismatch| {
                let kind = crate::refusal::RefusalKind::IkeProposal;
                let refusal =
                    explain::proposal_mismatch(&self.config, common.remote, kind, &mismatch);
                cx.out.effects.push(Effect::Failed {
                    refusal,
                    retry: false,
                });
                NotifyOut::from(NotifyType::NO_PROPOSAL_CHOSEN)
            })?;
        let suite = selection.suite;
        let Some(spi_i) = offered.get(selection.index).and_then(ike_spi) else {
            return Err(NotifyType::INVALID_SYNTAX.into());
        };
        let new = Common {
            role: Role::Responder,
            spi_i,
            spi_r: cx.ike_spi(),
            began: cx.now,
            ..common.clone()
        };
        let nonce_r = cx.nonce();
        let answer = WireProposal {
            number: selection.number,
            protocol: Protocol::Ike,
            spi: new.spi_r.to_be_bytes().to_vec(),
            transforms: selection.transforms,
        };
        writer.add(PayloadType::SA, |out| {
            sa::encode(std::slice::from_ref(&answer), out)
        });
        writer.add(PayloadType::NONCE, |out| out.extend(&nonce_r));
        let secrets = vec![exchange_keys(cx, suite.group, parts, writer)?];
        let common_new = Box::new(new);
        let sa = AwaitedSa::Ike {
            common: common_new,
            suite,
        };
        let awaited = Awaited::new(cx, sa, (nonce_i, nonce_r), secrets);
        self.make_or_await(common, cx, awaited, writer)
    }

    pub(super) fn successor_keys(
        &self,
        new: &Common,
        suite: &IkeSuite,
        (nonce_i, nonce_r): (&[u8], &[u8]),
        shared_secrets: &[SecretBytes],
    ) -> Option<IkeKeys> {
        let context = IkeContext {
            nonce_i,
            nonce_r,
            spi_i: new.spi_i.to_be_bytes(),
            spi_r: new.spi_r.to_be_bytes(),
        };
        SkeySeed::rekeyed(&self.keys, suite.prf, &context, shared_secrets)
            .into_keys(suite, &context)
            .ok()
    }

    /// Gives the child SAs to the successor, which the endpoint adopts. The peers stay who they proved
    /// to be.
    pub(super) fn hand_over(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        new: Common,
        suite: IkeSuite,
        keys: IkeKeys,
    ) {
        let Some(mut successor) = self.successor(cx, &new, suite, keys) else {
            return;
        };
        successor.inherit(&new, cx, self.estate());
        self.superseded = true;
        if self.deleting {
            // It was to go when this came; the peer has the successor by now.
            successor.begin_delete(cx, DownReason::Terminated);
            successor.superseded = true;
        } else {
            successor.announce(&new, cx, false);
        }
        let phase = Phase::Established(Box::new(successor));
        cx.out.effects.push(Effect::Adopt {
            sa: Box::new(IkeSa { common: new, phase }),
            from: Some(common.local_spi()),
        });
    }

    /// Deletes a successor that we asked for and that does not prevail.
    fn give_back(&self, cx: &mut Cx<'_>, new: Common, suite: IkeSuite, keys: IkeKeys) {
        let Some(mut successor) = self.successor(cx, &new, suite, keys) else {
            return;
        };
        successor.superseded = true;
        successor.begin_delete(cx, DownReason::Rekeyed);
        let phase = Phase::Established(Box::new(successor));
        let sa = Box::new(IkeSa { common: new, phase });
        cx.out.effects.push(Effect::Adopt { sa, from: None });
    }
}

/// The SPI of a proposal for an IKE SA.
fn ike_spi(proposal: &WireProposal) -> Option<u64> {
    let spi = u64::from_be_bytes(proposal.spi.as_slice().try_into().ok()?);
    (spi != 0).then_some(spi)
}
