//! IKE_FOLLOWUP_KE: the key exchanges after the one in CREATE_CHILD_SA (RFC 9370 section 2.2.4). The
//! new SA comes up with the last of them.

use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, SecretBytes};

use super::child::{Agreed, ChildOffer};
use super::established::{Established, Pending};
use super::rekey::{NotifyOut, Parts, exchange_keys, write_ke};
use super::{Common, Cx, Datagram};
use crate::crypto::Random;
use crate::crypto::dh::KeyExchange;
use crate::proposal::{Additional, DhGroup, IkeSuite};
use crate::wire::{Notify, NotifyType, Payload, PayloadType, Writer, sa, ts};

/// How long the initiator may take for its next request.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the initiator of a CREATE_CHILD_SA exchange keeps until the last key exchange.
#[derive(Default)]
pub(crate) struct FollowUp {
    /// The peer's answer to CREATE_CHILD_SA.
    pub answer: ChildOffer,
    pub nonce_r: Vec<u8>,
    /// SK(0), SK(1), … so far.
    pub secrets: Vec<SecretBytes>,
}

impl FollowUp {
    /// From the response to CREATE_CHILD_SA.
    pub fn of(parts: &Parts<'_>) -> Result<Self, &'static str> {
        let nonce = parts.nonce.filter(|nonce| !nonce.is_empty());
        Ok(Self {
            answer: parts.offer.clone(),
            nonce_r: nonce
                .ok_or("the CREATE_CHILD_SA response has no nonce")?
                .to_vec(),
            secrets: Vec::new(),
        })
    }

    /// Takes the peer's half of the exchange under way. Gives the method of the next, if there is
    /// one, and what the peer will know it by.
    pub fn take(
        &mut self,
        exchange: KeyExchange,
        parts: &Parts<'_>,
        additional: Additional,
    ) -> Result<Option<(DhGroup, Vec<u8>)>, String> {
        let ke = parts.ke.filter(|ke| ke.group == exchange.group().id());
        let ke = ke.ok_or("the response has no KE payload of the method agreed on")?;
        let shared = exchange
            .shared_secret(ke.data)
            .map_err(|error| error.to_string())?;
        let Some(group) = additional.groups().nth(self.secrets.len()) else {
            self.secrets.push(shared);
            return Ok(None);
        };
        self.secrets.push(shared);
        let link = parts.link.ok_or(
            "the response lacks ADDITIONAL_KEY_EXCHANGE, though more key exchanges were agreed on",
        )?;
        Ok(Some((group, link.to_vec())))
    }

    /// The answer as payloads.
    pub fn answer_payloads(&self) -> Writer {
        let mut writer = Writer::new();
        let answer = &self.answer;
        writer.add(PayloadType::SA, |out| sa::encode(&answer.proposals, out));
        writer.add(PayloadType::NONCE, |out| out.extend(&self.nonce_r));
        if !answer.ts_i.is_empty() && !answer.ts_r.is_empty() {
            writer.add(PayloadType::TSI, |out| ts::encode(&answer.ts_i, out));
            writer.add(PayloadType::TSR, |out| ts::encode(&answer.ts_r, out));
        }
        for (there, kind) in [
            (answer.transport, NotifyType::USE_TRANSPORT_MODE),
            (answer.resource, NotifyType::SA_RESOURCE_INFO),
        ] {
            if there {
                writer.notify(Notify::new(kind, &[]));
            }
        }
        writer
    }

    /// The same read again.
    pub fn read(payloads: &[Payload<'_>], secrets: Vec<SecretBytes>) -> Self {
        let mut read = Self {
            secrets,
            ..Self::default()
        };
        for payload in payloads {
            match payload {
                Payload::Nonce(nonce) => read.nonce_r = nonce.to_vec(),
                other => read.answer.take(other),
            }
        }
        read
    }
}

/// How far a response to CREATE_CHILD_SA or IKE_FOLLOWUP_KE brings the initiator.
pub(crate) enum Step<Request, New> {
    /// The next key exchange, which the request holds, is to be done.
    More { request: Request, link: Vec<u8> },
    /// That was the last.
    Done(New),
}

/// The request for the next key exchange.
pub(crate) fn write_request(writer: &mut Writer, exchange: Option<&KeyExchange>, link: &[u8]) {
    if let Some(exchange) = exchange {
        write_ke(writer, exchange);
    }
    write_link(writer, link);
}

fn write_link(writer: &mut Writer, link: &[u8]) {
    writer.notify(Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, link));
}

/// What the responder of a CREATE_CHILD_SA exchange waits to finish.
pub(crate) struct Awaited {
    sa: AwaitedSa,
    nonce_i: Vec<u8>,
    nonce_r: Vec<u8>,
    secrets: Vec<SecretBytes>,
    /// Methods of the exchanges still to come, the next one last.
    groups: Vec<DhGroup>,
    /// By which the initiator says what it goes on with.
    link: [u8; 8],
    since: Instant,
}

/// The SA that an exchange makes.
pub(crate) enum AwaitedSa {
    Child {
        agreed: Box<Agreed>,
        spi_in: u32,
        old: Option<ChildSaId>,
    },
    Ike {
        common: Box<Common>,
        suite: IkeSuite,
    },
}

impl Awaited {
    pub fn new(
        cx: &Cx<'_>,
        sa: AwaitedSa,
        (nonce_i, nonce_r): (&[u8], Vec<u8>),
        secrets: Vec<SecretBytes>,
    ) -> Self {
        let additional = match &sa {
            AwaitedSa::Child { agreed, .. } => agreed.choice.additional,
            AwaitedSa::Ike { suite, .. } => suite.additional,
        };
        let mut groups: Vec<DhGroup> = additional.groups().collect();
        groups.reverse();
        Self {
            sa,
            nonce_i: nonce_i.to_vec(),
            nonce_r,
            secrets,
            groups,
            link: [0; 8],
            since: cx.now,
        }
    }
}

impl Established {
    /// After a key exchange as responder: makes the SA, or waits for the next exchange.
    pub(super) fn make_or_await(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        mut awaited: Awaited,
        writer: &mut Writer,
    ) -> Result<(), NotifyOut> {
        if !awaited.groups.is_empty() {
            cx.rng.fill(&mut awaited.link);
            write_link(writer, &awaited.link);
            self.awaited = Some(Box::new(awaited));
            return Ok(());
        }
        let nonces = (&awaited.nonce_i[..], &awaited.nonce_r[..]);
        match awaited.sa {
            AwaitedSa::Child {
                agreed,
                spi_in,
                old,
            } => self.make_child(
                common,
                cx,
                (*agreed, spi_in, old),
                nonces,
                &awaited.secrets,
                awaited.since,
            ),
            AwaitedSa::Ike { common: new, suite } => {
                let keys = self
                    .successor_keys(&new, &suite, nonces, &awaited.secrets)
                    .ok_or_else(|| NotifyOut::from(NotifyType::NO_PROPOSAL_CHOSEN))?;
                if matches!(self.pending(), Some(Pending::Ike(_))) {
                    self.contest(cx, *new, suite, keys, [nonces.0, nonces.1]);
                } else {
                    self.hand_over(common, cx, *new, suite, keys);
                }
                Ok(())
            }
        }
    }

    /// Answers an IKE_FOLLOWUP_KE request.
    pub(super) fn answer_follow_up(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
    ) {
        let parts = Parts::of(payloads);
        let mut writer = Writer::new();
        if let Err(error) = self.follow_up(common, cx, &parts, &mut writer) {
            writer = Writer::new();
            error.write(&mut writer);
        }
        self.respond(common, cx, datagram, &writer);
    }

    fn follow_up(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        parts: &Parts<'_>,
        writer: &mut Writer,
    ) -> Result<(), NotifyOut> {
        // What waits for nothing any more is not kept.
        let awaited = self.awaited.take();
        let fresh = awaited.filter(|awaited| {
            parts.link == Some(&awaited.link[..])
                && cx.now.saturating_duration_since(awaited.since) <= PATIENCE
        });
        let Some(mut awaited) = fresh.filter(|_| !self.deleting && !self.superseded) else {
            return Err(NotifyType::STATE_NOT_FOUND.into());
        };
        let Some(group) = awaited.groups.pop() else {
            return Err(NotifyType::STATE_NOT_FOUND.into());
        };
        if matches!(awaited.sa, AwaitedSa::Ike { .. }) && self.is_at_a_child() {
            // Begun since the initiator asked for its successor.
            return Err(NotifyType::TEMPORARY_FAILURE.into());
        }
        let shared = exchange_keys(cx, group, parts, writer)?;
        awaited.secrets.push(shared);
        self.make_or_await(common, cx, *awaited, writer)
    }
}
