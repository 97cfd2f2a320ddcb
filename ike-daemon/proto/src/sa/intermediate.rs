//! IKE_INTERMEDIATE (RFC 9242), which carries the key exchanges after the first (RFC 9370 section
//! 2.2.2): the one of the keys in use protects each, and the next keys hang on all before them.

use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::SecretBytes;

use super::auth::{AuthSent, Handshake};
use super::context::{Common, Cx};
use super::fragment::{Message, PAYLOAD_HEADER_LEN};
use super::init::fail;
use super::protect::{self, Protector};
use super::respond::{Answered, InitReplied, notifies, unknown_critical};
use super::retransmit::{Due, Retransmit};
use super::{Datagram, Phase, explain};
use crate::config::ConnectionConfig;
use crate::crypto::dh::KeyExchange;
use crate::crypto::keys::{IkeContext, IkeKeys, SkeySeed};
use crate::crypto::prf::{PrfError, prf};
use crate::proposal::IkeSuite;
use crate::status::{IkeDrop, Role};
use crate::wire::id::KeyExchangeData;
use crate::wire::{
    ExchangeType, HEADER_LEN, Header, Notify, NotifyType, Payload, PayloadType, Payloads, Writer,
};

/// Says in IKE_SA_INIT that we have the exchange.
pub(crate) fn write_support(writer: &mut Writer) {
    writer.notify(Notify::new(
        NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED,
        &[],
    ));
}

/// Whether the peer, by its IKE_SA_INIT message, has the exchange.
pub(crate) fn supported(payloads: &[Payload<'_>]) -> bool {
    notifies(payloads).any(|notify| notify.kind == NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED)
}

/// What the AUTH payloads cover of the exchanges (RFC 9242 section 3.3.2).
#[derive(Default)]
pub(crate) struct IntAuth {
    initiator: Option<SecretBytes>,
    responder: Option<SecretBytes>,
    octets: Vec<u8>,
}

impl IntAuth {
    /// Adds a message of `sender` as it is before encryption and fragmentation, with the keys that
    /// protect it.
    pub fn add(
        &mut self,
        sender: Role,
        keys: &IkeKeys,
        header: &Header,
        first: PayloadType,
        inside: &[u8],
    ) {
        let (chain, sk_p) = match sender {
            Role::Initiator => (&mut self.initiator, &keys.pi),
            Role::Responder => (&mut self.responder, &keys.pr),
        };
        let payload_len = PAYLOAD_HEADER_LEN + inside.len();
        let header = Header {
            next_payload: PayloadType::SK,
            length: (HEADER_LEN + payload_len) as u32,
            ..*header
        };
        let [high, low] = u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes();
        let before = chain.as_ref().map_or(&[][..], SecretBytes::expose);
        let sum = prf(
            keys.prf,
            sk_p.expose(),
            &[before, &header.encode(), &[first.0, 0, high, low], inside],
        );
        *chain = Some(sum);
    }

    /// There is no more: the next message is IKE_AUTH, with this message ID.
    pub fn finish(&mut self, auth_id: u32) {
        self.octets.clear();
        if let (Some(initiator), Some(responder)) = (&self.initiator, &self.responder) {
            self.octets.extend_from_slice(initiator.expose());
            self.octets.extend_from_slice(responder.expose());
            self.octets.extend_from_slice(&auth_id.to_be_bytes());
        }
    }

    /// IntAuth; nothing where there were no exchanges.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

/// The keys after a further key exchange.
fn updated(
    common: &Common,
    suite: &IkeSuite,
    keys: &IkeKeys,
    nonces: (&[u8], &[u8]),
    shared: SecretBytes,
) -> Result<IkeKeys, PrfError> {
    let context = IkeContext {
        nonce_i: nonces.0,
        nonce_r: nonces.1,
        spi_i: common.spi_i.to_be_bytes(),
        spi_r: common.spi_r.to_be_bytes(),
    };
    SkeySeed::updated(keys, &context, shared).into_keys(suite, &context)
}

/// Initiator: waiting for an IKE_INTERMEDIATE response.
pub(crate) struct IntermediateSent {
    handshake: Handshake,
    protector: Protector,
    exchange: KeyExchange,
    message_id: u32,
    request: Message,
    retransmit: Retransmit,
}

/// Does the next of the key exchanges that were agreed on, or authenticates; `done` are done.
pub(crate) fn proceed(
    common: &Common,
    cx: &mut Cx<'_>,
    mut handshake: Handshake,
    done: u32,
) -> Phase {
    let message_id = done.saturating_add(1);
    let group = handshake.suite.additional.groups().nth(done as usize);
    let Some(group) = group else {
        return AuthSent::start(common, cx, handshake, message_id);
    };
    let protector = Protector::new(&handshake.suite, &handshake.keys, Role::Initiator);
    let exchange = KeyExchange::generate(group, &mut cx.rng);
    let mut writer = Writer::new();
    let ke = KeyExchangeData {
        group: group.id(),
        data: exchange.public_value(),
    };
    writer.add(PayloadType::KE, |out| ke.encode(out));
    let header = protect::header(common, ExchangeType::IKE_INTERMEDIATE, false, message_id);
    handshake.transcript.int_auth.add(
        Role::Initiator,
        &handshake.keys,
        &header,
        writer.first(),
        writer.bytes(),
    );
    let sealed = protector.and_then(|mut protector| {
        let request = protector.seal(common, cx, header, &writer)?;
        Ok((protector, request))
    });
    let (protector, request) = match sealed {
        Ok(sealed) => sealed,
        Err(error) => {
            let refusal = explain::protocol(&handshake.config, common, &error.to_string());
            return fail(cx, refusal);
        }
    };
    cx.out.send(common.local, common.remote, &request);
    Phase::IntermediateSent(Box::new(IntermediateSent {
        handshake,
        protector,
        exchange,
        message_id,
        request,
        retransmit: Retransmit::start(cx.now, &cx.settings.retransmission),
    }))
}

impl IntermediateSent {
    pub fn config(&self) -> &Arc<ConnectionConfig> {
        &self.handshake.config
    }

    pub fn suite(&self) -> &IkeSuite {
        &self.handshake.suite
    }

    pub fn deadline(&self) -> Instant {
        self.retransmit.due
    }

    pub fn handle_timeout(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        let config = &self.handshake.config;
        match self.retransmit.poll(cx.now, &cx.settings.retransmission) {
            Due::Wait => {}
            Due::Send => self.retransmit.send_again(
                common,
                cx,
                &config.name,
                ExchangeType::IKE_INTERMEDIATE,
                &self.request.datagrams,
            ),
            Due::GiveUp => {
                let exchange = ExchangeType::IKE_INTERMEDIATE;
                let sent = self.retransmit.sent;
                let refusal = explain::no_answer_to(config, common, exchange, sent, cx.now);
                return fail(cx, refusal);
            }
        }
        Phase::IntermediateSent(self)
    }

    pub fn handle_datagram(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        if header.exchange != ExchangeType::IKE_INTERMEDIATE
            || !header.flags.is_response()
            || header.message_id != self.message_id
        {
            if protect::tell_unprotected_error(cx, datagram, &self.handshake.config.name) {
                cx.out.drop(IkeDrop::Unauthenticated);
            } else if header.message_id < self.message_id && header.flags.is_response() {
                cx.out.drop(IkeDrop::Retransmission);
            } else {
                cx.out.drop(IkeDrop::Unexpected);
            }
            return Phase::IntermediateSent(self);
        }
        let opened = match self.protector.open(common, datagram) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Phase::IntermediateSent(self),
            Err(reason) => {
                cx.out.drop(reason);
                return Phase::IntermediateSent(self);
            }
        };
        let Self {
            mut handshake,
            exchange,
            message_id,
            ..
        } = *self;
        let config = handshake.config.clone();
        let broken = |what: &str| explain::protocol(&config, common, what);
        let payloads = match Payloads::collect_all(opened.first, &opened.plaintext) {
            Ok(payloads) => payloads,
            Err(error) => return fail(cx, broken(&error.to_string())),
        };
        if let Some(notify) = notifies(&payloads).find(|notify| notify.kind.is_error()) {
            let refusal = explain::intermediate_refused(&config, common, notify.kind);
            return fail(cx, refusal);
        }
        let transcript = &mut handshake.transcript;
        transcript.int_auth.add(
            Role::Responder,
            &handshake.keys,
            header,
            opened.first,
            &opened.plaintext,
        );
        let Some(ke) = key_exchange(&payloads, exchange.group().id()) else {
            let what = "the IKE_INTERMEDIATE response has no KE payload of the method agreed on";
            return fail(cx, broken(what));
        };
        let shared = match exchange.shared_secret(ke.data) {
            Ok(shared) => shared,
            Err(error) => return fail(cx, broken(&error.to_string())),
        };
        let nonces = (&transcript.nonce_i[..], &transcript.nonce_r[..]);
        let (suite, keys) = (&handshake.suite, &handshake.keys);
        match updated(common, suite, keys, nonces, shared) {
            Ok(keys) => handshake.keys = keys,
            Err(error) => return fail(cx, broken(&error.to_string())),
        }
        proceed(common, cx, handshake, message_id)
    }
}

/// The KE payload of this method.
fn key_exchange<'a>(payloads: &[Payload<'a>], group: u16) -> Option<KeyExchangeData<'a>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Ke(ke) if ke.group == group => Some(*ke),
        _ => None,
    })
}

impl InitReplied {
    /// An IKE_INTERMEDIATE request.
    pub(super) fn handle_intermediate(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        if let Some(answered) = &self.answered
            && answered.request == protect::fingerprint(datagram.bytes)
        {
            cx.out.drop(IkeDrop::Retransmission);
            let response = &answered.response;
            cx.out.send(datagram.local, datagram.remote, response);
            return Phase::InitReplied(self);
        }
        let group = self.suite.additional.groups().nth(self.done as usize);
        let next = header.message_id == self.done.saturating_add(1);
        let Some(group) = group.filter(|_| next && !header.flags.is_response()) else {
            cx.out.drop(IkeDrop::Unexpected);
            return Phase::InitReplied(self);
        };
        let opened = match self.protector.open(common, datagram) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Phase::InitReplied(self),
            Err(reason) => {
                cx.out.drop(reason);
                return Phase::InitReplied(self);
            }
        };
        let datagram = &opened.message(datagram);
        common.local = datagram.local;
        common.remote = datagram.remote;
        let syntax = NotifyType::INVALID_SYNTAX;
        let payloads = match Payloads::collect_all(opened.first, &opened.plaintext) {
            Ok(payloads) => payloads,
            Err(error) => {
                let what = error.to_string();
                return self.refuse_syntax(common, cx, datagram, syntax, &[], &what);
            }
        };
        if let Some(kind) = unknown_critical(&payloads) {
            let what = format!("unknown critical {kind}");
            let notify = NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD;
            return self.refuse_syntax(common, cx, datagram, notify, &[kind.0], &what);
        }
        let Some(ke) = key_exchange(&payloads, group.id()) else {
            let what = "the IKE_INTERMEDIATE request has no KE payload of the method agreed on";
            return self.refuse_syntax(common, cx, datagram, syntax, &[], what);
        };
        let (public, shared) = match KeyExchange::answer(group, ke.data, &mut cx.rng) {
            Ok(answer) => answer,
            Err(error) => {
                let what = error.to_string();
                return self.refuse_syntax(common, cx, datagram, syntax, &[], &what);
            }
        };
        let mut writer = Writer::new();
        let ke = KeyExchangeData {
            group: group.id(),
            data: &public,
        };
        writer.add(PayloadType::KE, |out| ke.encode(out));
        let exchange = ExchangeType::IKE_INTERMEDIATE;
        let reply = protect::header(common, exchange, true, header.message_id);
        let (keys, int_auth) = (&self.keys, &mut self.transcript.int_auth);
        let (first, inside) = (opened.first, &opened.plaintext);
        int_auth.add(Role::Initiator, keys, header, first, inside);
        int_auth.add(
            Role::Responder,
            keys,
            &reply,
            writer.first(),
            writer.bytes(),
        );
        let nonces = (&self.transcript.nonce_i[..], &self.transcript.nonce_r[..]);
        let next = updated(common, &self.suite, keys, nonces, shared)
            .ok()
            .and_then(|keys| {
                let protector = Protector::new(&self.suite, &keys, Role::Responder).ok()?;
                Some((keys, protector))
            });
        let response = self.protector.seal(common, cx, reply, &writer);
        let (Some((keys, protector)), Ok(response)) = (next, response) else {
            return Phase::Gone;
        };
        cx.out.send(datagram.local, datagram.remote, &response);
        self.answered = Some(Answered {
            request: protect::fingerprint(datagram.bytes),
            response,
        });
        self.keys = keys;
        self.protector = protector;
        self.done = self.done.saturating_add(1);
        Phase::InitReplied(self)
    }
}
