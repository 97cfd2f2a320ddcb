//! IKE_AUTH as initiator (RFC 7296 sections 1.2 and 2.15).

use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::Share;

use super::child::{self, ChildOffer};
use super::context::{Common, Cx, Effect, local_identity};
use super::credential::{self, Claim, Wanted};
use super::established::Established;
use super::fragment::Message;
use super::held::{self, Held};
use super::init::fail;
use super::intermediate::IntAuth;
use super::mobike;
use super::ppk::{self, Asked};
use super::proof::{self, Covered, Evidence, Unproven};
use super::protect::{self, Protector};
use super::rekey::Purpose;
use super::retransmit::{Due, Retransmit};
use super::{Datagram, Phase, cp, explain, pairs, psk, redirect, resource, respond};
use crate::config::{ConnectionConfig, LocalAuth, RemoteAuth, RemoteIdentity};
use crate::crypto::auth::SignedOctets;
use crate::crypto::keys::IkeKeys;
use crate::identity::Identity;
use crate::notice::{DownReason, Notice};
use crate::proposal::{self, Groups, IkeSuite};
use crate::status::{IkeDrop, Role};
use crate::wire::id::Typed;
use crate::wire::{
    ExchangeType, Notify, NotifyType, Payload, PayloadType, Payloads, Writer, sa, ts,
};
use crate::x509::Inquiry;

/// The octets that both AUTH payloads cover.
pub(crate) struct Transcript {
    pub init_request: Vec<u8>,
    pub init_response: Vec<u8>,
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub int_auth: IntAuth,
}

/// What an initiator has before it authenticates.
pub(crate) struct Handshake {
    pub config: Arc<ConnectionConfig>,
    pub suite: IkeSuite,
    pub keys: IkeKeys,
    pub transcript: Transcript,
    pub wanted: Wanted,
    /// Both ends would use a PPK.
    pub ppk: bool,
}

impl Transcript {
    /// What the AUTH payload of `signer` covers.
    pub fn signed<'a>(
        &'a self,
        signer: Role,
        keys: &'a IkeKeys,
        id_body: &'a [u8],
    ) -> SignedOctets<'a> {
        match signer {
            Role::Initiator => SignedOctets {
                message: &self.init_request,
                peer_nonce: &self.nonce_r,
                id_body,
                sk_p: keys.pi.expose(),
                int_auth: self.int_auth.octets(),
            },
            Role::Responder => SignedOctets {
                message: &self.init_response,
                peer_nonce: &self.nonce_i,
                id_body,
                sk_p: keys.pr.expose(),
                int_auth: self.int_auth.octets(),
            },
        }
    }
}

/// The body of an ID payload.
pub(crate) fn id_body(identity: &Identity) -> Vec<u8> {
    let mut body = Vec::new();
    Typed::new(identity.kind(), &identity.data()).encode(&mut body);
    body
}

/// Waiting for the IKE_AUTH response.
pub(crate) struct AuthSent {
    config: Arc<ConnectionConfig>,
    pub suite: IkeSuite,
    pub local_id: Identity,
    keys: IkeKeys,
    /// The same with our PPK, if the peer may use it.
    with_ppk: Option<IkeKeys>,
    protector: Protector,
    transcript: Transcript,
    /// What we proved ourselves with.
    proved_with: String,
    wanted: Wanted,
    child_spi: u32,
    message_id: u32,
    request: Message,
    retransmit: Retransmit,
    /// The response, while servers are asked about the peer's certificates.
    held: Option<Held>,
}

impl AuthSent {
    /// Sends the IKE_AUTH request.
    pub fn start(common: &Common, cx: &mut Cx<'_>, handshake: Handshake, message_id: u32) -> Phase {
        let Handshake {
            config,
            suite,
            keys,
            mut transcript,
            wanted,
            ppk: agreed,
        } = handshake;
        transcript.int_auth.finish(message_id);
        let local_id = local_identity(&config, common.local);
        let expected = match &config.remote_id {
            RemoteIdentity::Is(identity) => identity.clone(),
            RemoteIdentity::Address | RemoteIdentity::Matches(_) | RemoteIdentity::Any => {
                Identity::Address(common.remote.ip())
            }
        };
        // A key that will be missing later had better be missed now.
        let shared = matches!(config.local_auth, LocalAuth::Psk)
            || matches!(
                (&config.remote_auth, &config.remote_id),
                (
                    RemoteAuth::Psk,
                    RemoteIdentity::Is(_) | RemoteIdentity::Address
                )
            );
        if shared && psk::find(cx.secrets, &local_id, &expected).is_none() {
            return fail(
                cx,
                explain::no_secret(&config, common, &local_id, &expected),
            );
        }
        let mut protector = match Protector::new(&suite, &keys, Role::Initiator) {
            Ok(protector) => protector,
            Err(error) => return fail(cx, explain::protocol(&config, common, &error.to_string())),
        };
        let mut writer = Writer::new();
        let body = id_body(&local_id);
        writer.add(PayloadType::IDI, |out| out.extend(&body));
        credential::write_certificates(&mut writer, &config, &wanted);
        credential::write_requests(&mut writer, std::iter::once(&config));
        if common.initial_contact {
            writer.notify(Notify::new(NotifyType::INITIAL_CONTACT, &[]));
        }
        if let RemoteIdentity::Is(identity) = &config.remote_id {
            writer.add(PayloadType::IDR, |out| out.extend(id_body(identity)));
        }
        let ppk = config.ppk.as_deref().filter(|_| agreed);
        let with_ppk = match ppk.map(|ppk| keys.with_ppk(&ppk.secret)).transpose() {
            Ok(keys) => keys,
            Err(error) => return fail(cx, explain::protocol(&config, common, &error.to_string())),
        };
        let claim = Claim {
            local_id: &local_id,
            remote_id: &expected,
            id_body: &body,
            role: Role::Initiator,
            keys: with_ppk.as_ref().unwrap_or(&keys),
            transcript: &transcript,
        };
        let mut proved_with =
            match credential::write_auth(&mut writer, &config, common, cx, claim, &wanted) {
                Ok(proved_with) => proved_with,
                Err(refusal) => return fail(cx, refusal),
            };
        if let Some(ppk) = ppk {
            proved_with.push_str(&format!(" and the PPK \"{}\" at {}", ppk.id, ppk.origin));
            ppk::write_identity(&mut writer, ppk);
            if !ppk.required {
                let claim = Claim {
                    keys: &keys,
                    ..claim
                };
                match credential::proof(&config, common, cx, claim, &wanted) {
                    Ok(proof) => {
                        writer.notify(Notify::new(NotifyType::NO_PPK_AUTH, &proof.data));
                    }
                    Err(refusal) => return fail(cx, refusal),
                }
            }
        }
        let child_spi = cx.child_spi();
        if !common.childless {
            cp::write_request(&mut writer, &config);
            let offer = proposal::offer(&config.esp, &child_spi.to_be_bytes(), Groups::Ignored);
            child::write_mode(&mut writer, config.mode);
            if config.processors.is_some() {
                resource::write(&mut writer, Share::Fallback);
            }
            writer.add(PayloadType::SA, |out| sa::encode(&offer, out));
            let sides = pairs::first(&config, common);
            writer.add(PayloadType::TSI, |out| ts::encode(&sides.local, out));
            writer.add(PayloadType::TSR, |out| ts::encode(&sides.remote, out));
        }
        mobike::write_support(&mut writer, cx, &config, common.local.ip());
        let header = protect::header(common, ExchangeType::IKE_AUTH, false, message_id);
        let request = match protector.seal(common, cx, header, &writer) {
            Ok(request) => request,
            Err(error) => return fail(cx, explain::protocol(&config, common, &error.to_string())),
        };
        cx.out.send(common.local, common.remote, &request);
        Phase::AuthSent(Box::new(Self {
            proved_with,
            wanted,
            config,
            suite,
            local_id,
            keys,
            with_ppk,
            protector,
            transcript,
            child_spi,
            message_id,
            request,
            held: None,
            retransmit: Retransmit::start(cx.now, &cx.settings.retransmission),
        }))
    }

    pub fn config(&self) -> &Arc<ConnectionConfig> {
        &self.config
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.held.is_none().then_some(self.retransmit.due)
    }

    pub fn handle_timeout(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        if self.held.is_some() {
            return Phase::AuthSent(self);
        }
        match self.retransmit.poll(cx.now, &cx.settings.retransmission) {
            Due::Wait => {}
            Due::Send => self.retransmit.send_again(
                common,
                cx,
                &self.config.name,
                ExchangeType::IKE_AUTH,
                &self.request.datagrams,
            ),
            Due::GiveUp => {
                let refusal = explain::no_answer_to(
                    &self.config,
                    common,
                    ExchangeType::IKE_AUTH,
                    self.retransmit.sent,
                    cx.now,
                );
                return fail(cx, refusal);
            }
        }
        Phase::AuthSent(self)
    }

    pub fn handle_datagram(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        let before = [ExchangeType::IKE_SA_INIT, ExchangeType::IKE_INTERMEDIATE];
        if before.contains(&header.exchange) && header.flags.is_response() {
            cx.out.drop(IkeDrop::Retransmission);
            return Phase::AuthSent(self);
        }
        if header.exchange != ExchangeType::IKE_AUTH
            || !header.flags.is_response()
            || header.message_id != self.message_id
        {
            if protect::tell_unprotected_error(cx, datagram, &self.config.name) {
                cx.out.drop(IkeDrop::Unauthenticated);
            } else {
                cx.out.drop(IkeDrop::Unexpected);
            }
            return Phase::AuthSent(self);
        }
        if self.held.is_some() {
            cx.out.drop(IkeDrop::Retransmission);
            return Phase::AuthSent(self);
        }
        let opened = match self.protector.open(common, datagram) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Phase::AuthSent(self),
            Err(reason) => {
                cx.out.drop(reason);
                return Phase::AuthSent(self);
            }
        };
        self.judge(common, cx, Held::new(datagram, opened))
    }

    /// A server answered what was asked about the peer's certificates.
    pub fn answered(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        match self.held.take() {
            Some(held) => self.judge(common, cx, held),
            None => Phase::AuthSent(self),
        }
    }

    fn judge(self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>, held: Held) -> Phase {
        let payloads = match Payloads::collect_all(held.first, &held.plaintext) {
            Ok(payloads) => payloads,
            Err(error) => {
                return fail(
                    cx,
                    explain::protocol(&self.config, common, &error.to_string()),
                );
            }
        };
        match self.finish(common, cx, &held.datagram(), &payloads) {
            Ok(phase) => phase,
            Err((mut this, inquiries)) => {
                held::ask(common, cx, inquiries);
                this.held = Some(held);
                Phase::AuthSent(this)
            }
        }
    }

    /// What comes of the response; with `Err` servers are to be asked first.
    fn finish(
        self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
    ) -> Result<Phase, (Box<Self>, Vec<Inquiry>)> {
        let mut idr = None;
        let mut auth = None;
        let mut certificates = Vec::new();
        let mut offer = ChildOffer::default();
        for payload in payloads {
            match payload {
                Payload::IdR(id) => idr = Some(*id),
                Payload::Auth(value) => auth = Some(*value),
                Payload::Cert(cert) => certificates.push(*cert),
                other => offer.take(other),
            }
        }
        let refused = respond::notifies(payloads)
            .find(|notify| notify.kind.is_error())
            .copied();
        let (Some(idr), Some(auth)) = (idr, auth) else {
            let refusal = match refused {
                Some(notify) => explain::auth_refused(
                    &self.config,
                    common,
                    notify.kind,
                    &self.local_id,
                    &self.proved_with,
                    &self.wanted,
                ),
                None => explain::protocol(
                    &self.config,
                    common,
                    "the IKE_AUTH response has no IDr and AUTH payloads",
                ),
            };
            return Ok(fail(cx, refusal));
        };
        let identity = Identity::from_wire(idr.kind, idr.data);
        let used = Asked::of(payloads).identity.is_some();
        let keys = match (used, &self.with_ppk) {
            (true, Some(keys)) => keys,
            (false, _) if !self.config.ppk.as_ref().is_some_and(|ppk| ppk.required) => &self.keys,
            (false, _) => return Ok(fail(cx, explain::no_ppk(&self.config, common))),
            (true, None) => {
                let what = "the peer uses a PPK that we did not name";
                return Ok(fail(cx, explain::protocol(&self.config, common, what)));
            }
        };
        let proven = if !proof::accepts_identity(&self.config, common.remote.ip(), &identity) {
            Err(explain::wrong_identity(&self.config, common, &identity))
        } else {
            let evidence = Evidence {
                id: idr,
                auth,
                certificates: &certificates,
                legacy: self.wanted.hashes.is_none(),
            };
            let covered = Covered {
                signer: Role::Responder,
                keys,
                transcript: &self.transcript,
            };
            match proof::verify(&self.config, common, cx, &self.local_id, &evidence, covered) {
                Ok(proof) => Ok(proof),
                Err(Unproven::Refused(refusal)) => Err(refusal),
                Err(Unproven::Unasked(inquiries)) => return Err((self, inquiries)),
            }
        };
        let Self {
            config,
            suite,
            local_id,
            keys: without,
            with_ppk,
            mut protector,
            transcript,
            child_spi,
            message_id,
            ..
        } = *self;
        let keys = with_ppk.filter(|_| used).unwrap_or(without);
        let next_id = message_id.saturating_add(1);
        let proof = match proven {
            Ok(proof) => proof,
            Err(refusal) => {
                // The responder believes the SA is up: "the initiator … MAY send a Delete" so that
                // it need not wait for its own liveness check. One try, as nothing is kept here.
                let mut writer = Writer::new();
                writer.notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, &[]));
                super::informational::write_delete_ike(&mut writer);
                let header = protect::header(common, ExchangeType::INFORMATIONAL, false, next_id);
                if let Ok(message) = protector.seal(common, cx, header, &writer) {
                    cx.out.send(common.local, common.remote, &message);
                }
                return Ok(fail(cx, refusal));
            }
        };
        // The response is authentic: a port mapped anew on its way counts from here on.
        if common.nat.remote {
            common.remote = datagram.remote;
        }
        let began = common.began;
        let mut established = Established::new(
            cx,
            config.clone(),
            suite,
            keys,
            protector,
            proof,
            local_id,
            next_id,
            0,
        );
        (common.mobike, established.mobility) = mobike::agree(&config, payloads, Role::Initiator);
        established.ppk = used;
        if let Some(to) = redirect::wanted(common, cx, payloads) {
            established.leave(common, cx, to);
            established.pump(common, cx);
            return Ok(Phase::Established(Box::new(established)));
        }
        established.announce(common, cx, false);
        if common.childless && refused.is_none() {
            established.acquire(common);
            established.pump(common, cx);
            return Ok(Phase::Established(Box::new(established)));
        }
        if refused.is_some_and(|it| established.split(common, cx, it.kind, Purpose::First)) {
            established.pump(common, cx);
            return Ok(Phase::Established(Box::new(established)));
        }
        let result = match refused {
            Some(notify) => Err(explain::child_refused(
                &config,
                common.remote,
                notify.kind,
                Groups::Ignored,
                &pairs::first(&config, common),
            )),
            None => cp::accept(&config, common, &mut offer).and_then(|()| {
                let wanted = pairs::first(&config, common);
                child::accept_answer(&config, common, &offer, Groups::Ignored, &wanted)
            }),
        };
        match result {
            Ok(agreed) => {
                let nonces = (&transcript.nonce_i[..], &transcript.nonce_r[..]);
                match child::derive(
                    &established.keys,
                    agreed,
                    child_spi,
                    nonces,
                    &[],
                    Role::Initiator,
                ) {
                    Ok(new) => {
                        established.install_child(common, cx, new, None, began);
                        established.ask_for_the_rest(common);
                        established.pump(common, cx);
                    }
                    Err(error) => {
                        let refusal = explain::protocol(&config, common, &error.to_string());
                        return Ok(established.give_up(common, cx, refusal));
                    }
                }
                Ok(Phase::Established(Box::new(established)))
            }
            Err(refusal)
                if refused.is_some_and(|it| established.try_other_pairs(common, it.kind)) =>
            {
                let retry = false;
                cx.out.effects.push(Effect::Failed { refusal, retry });
                established.pump(common, cx);
                Ok(Phase::Established(Box::new(established)))
            }
            // An IKE SA without a child serves nothing here: delete it, try again later.
            Err(refusal) => Ok(established.give_up(common, cx, refusal)),
        }
    }
}

/// Tells the endpoint that an IKE SA is gone.
pub(crate) fn down(common: &Common, cx: &mut Cx<'_>, connection: &Arc<str>, reason: DownReason) {
    cx.out.notice(Notice::Down {
        connection: connection.clone(),
        remote: common.remote,
        reason,
    });
    cx.out.effects.push(Effect::Down {
        connection: connection.clone(),
        reason,
    });
}

/// Selectors of the two sides from our point of view, when `initiator` sent TSi.
pub(crate) fn by_side<T>(initiator: Role, ts_i: T, ts_r: T) -> (T, T) {
    match initiator {
        Role::Initiator => (ts_i, ts_r),
        Role::Responder => (ts_r, ts_i),
    }
}
