//! IKE_SA_INIT as initiator (RFC 7296 section 1.2), with COOKIE (2.6) and INVALID_KE_PAYLOAD (1.3).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::auth::{Handshake, Transcript};
use super::context::{Common, Cx, Effect};
use super::credential::{self, Wanted};
use super::fragment;
use super::intermediate::{self, IntAuth};
use super::mobike;
use super::nat::{self, Nat};
use super::ppk;
use super::redirect::Gateway;
use super::retransmit::{Due, Retransmit};
use super::{Datagram, IkeSa, Phase, explain, protect, redirect, respond};
use crate::config::{Childless, ConnectionConfig, EncapsulationPolicy, RemoteAddress};
use crate::crypto::dh::KeyExchange;
use crate::crypto::keys::{IkeContext, SkeySeed};
use crate::notice::Notice;
use crate::proposal::{self, DhGroup, Groups, Proposal};
use crate::refusal::Refusal;
use crate::status::{IkeDrop, Role};
use crate::wire::id::KeyExchangeData;
use crate::wire::sa::ProposalBody;
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, PayloadType, Payloads, Writer, sa};

/// Requests that may follow the first because the responder wants a cookie or another group.
const MAX_RESTARTS: u8 = 5;

/// Waiting for the IKE_SA_INIT response.
pub(crate) struct InitSent {
    config: Arc<ConnectionConfig>,
    exchange: KeyExchange,
    nonce: Vec<u8>,
    cookie: Option<Vec<u8>>,
    request: Vec<u8>,
    retransmit: Retransmit,
    restarts: u8,
    tried: Vec<DhGroup>,
    /// The gateway that sent us to this one.
    redirected_from: Option<IpAddr>,
}

/// Begins a connection: the SA and its first request.
///
/// `initial_contact`: there is no other IKE SA with this peer. `redirected_from`: the gateway that sent
/// us there.
pub(crate) fn start(
    cx: &mut Cx<'_>,
    config: Arc<ConnectionConfig>,
    local: SocketAddr,
    remote: SocketAddr,
    initial_contact: bool,
    redirected_from: Option<IpAddr>,
) -> IkeSa {
    let common = Common {
        role: Role::Initiator,
        spi_i: cx.ike_spi(),
        spi_r: 0,
        local,
        remote,
        began: cx.now,
        initial_contact,
        nat: Nat {
            forced: config.encapsulation == EncapsulationPolicy::Udp,
            ..Nat::default()
        },
        fragmentation: false,
        lease: None,
        mobike: None,
        hold: None,
        childless: false,
        called: match config.remote_address {
            RemoteAddress::Address(address) => Some(address),
            RemoteAddress::Any => None,
        },
    };
    cx.out.notice(Notice::Initiated {
        connection: config.name.clone(),
        local,
        remote,
    });
    let group = config
        .ike
        .iter()
        .flat_map(|proposal| proposal.groups.first().copied())
        .next();
    let group = group.unwrap_or(DhGroup::Curve25519);
    let mut phase = InitSent {
        exchange: KeyExchange::generate(group, &mut cx.rng),
        nonce: cx.nonce(),
        cookie: None,
        request: Vec::new(),
        retransmit: Retransmit::start(cx.now, &cx.settings.retransmission),
        restarts: 0,
        tried: vec![group],
        redirected_from,
        config,
    };
    phase.send(&common, cx);
    IkeSa {
        common,
        phase: Phase::InitSent(Box::new(phase)),
    }
}

impl InitSent {
    pub fn config(&self) -> &Arc<ConnectionConfig> {
        &self.config
    }

    pub fn deadline(&self) -> Instant {
        self.retransmit.due
    }

    /// Builds the request and sends it for the first time.
    fn send(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let mut writer = Writer::new();
        if let Some(cookie) = &self.cookie {
            // "MUST … include the received COOKIE notification as the first payload".
            writer.notify(Notify::new(NotifyType::COOKIE, cookie));
        }
        let offer = proposal::offer(&self.config.ike, &[], Groups::Negotiated);
        writer.add(PayloadType::SA, |out| sa::encode(&offer, out));
        let ke = KeyExchangeData {
            group: self.exchange.group().id(),
            data: self.exchange.public_value(),
        };
        writer.add(PayloadType::KE, |out| ke.encode(out));
        writer.add(PayloadType::NONCE, |out| out.extend(&self.nonce));
        nat::write(
            &mut writer,
            common.spi_i,
            0,
            common.local,
            common.remote,
            common.nat.forced,
        );
        if credential::uses_signatures(&self.config) {
            credential::write_hashes(&mut writer);
        }
        fragment::write_support(&mut writer, cx);
        let further = |it: &Proposal| it.additional.iter().any(|choices| !choices.is_empty());
        if self.config.ike.iter().any(further) {
            intermediate::write_support(&mut writer);
        }
        if self.config.ppk.is_some() {
            ppk::write_support(&mut writer);
        }
        redirect::write_support(&mut writer, cx, self.redirected_from);
        if nat::prefers_udp(&self.config) {
            nat::write_preference(&mut writer);
        }
        self.request = writer.message(protect::header(common, ExchangeType::IKE_SA_INIT, false, 0));
        self.retransmit = Retransmit::start(cx.now, &cx.settings.retransmission);
        cx.out
            .transmit(common.local, common.remote, self.request.clone());
    }

    pub fn handle_timeout(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        match self.retransmit.poll(cx.now, &cx.settings.retransmission) {
            Due::Wait => {}
            Due::Send => self.retransmit.send_again(
                common,
                cx,
                &self.config.name,
                ExchangeType::IKE_SA_INIT,
                std::slice::from_ref(&self.request),
            ),
            Due::GiveUp => {
                let refusal =
                    explain::no_init_answer(&self.config, common, self.retransmit.sent, cx.now);
                return fail(cx, refusal);
            }
        }
        Phase::InitSent(self)
    }

    pub fn handle_datagram(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        if header.exchange != ExchangeType::IKE_SA_INIT
            || !header.flags.is_response()
            || header.message_id != 0
        {
            cx.out.drop(IkeDrop::Unexpected);
            return Phase::InitSent(self);
        }
        let payloads = match Payloads::collect_all(header.next_payload, datagram.body) {
            Ok(payloads) => payloads,
            Err(_) => {
                // Forged or damaged: a proper answer may still come.
                cx.out.drop(IkeDrop::Malformed);
                return Phase::InitSent(self);
            }
        };
        for notify in respond::notifies(&payloads) {
            match notify.kind {
                // A late copy of an answer that was acted on already.
                NotifyType::COOKIE if self.cookie.as_deref() == Some(notify.data) => {
                    return Phase::InitSent(self);
                }
                NotifyType::COOKIE
                    if self.restarts < MAX_RESTARTS && (1..=64).contains(&notify.data.len()) =>
                {
                    self.restarts += 1;
                    self.cookie = Some(notify.data.to_vec());
                    self.send(common, cx);
                    return Phase::InitSent(self);
                }
                NotifyType::REDIRECT if cx.settings.follow_redirects => {
                    return match redirect::target(notify.data) {
                        // "the client MUST verify that the nonce" is ours (section 4).
                        Some((to, nonce)) if nonce == self.nonce => {
                            Self::redirected(common, cx, &self.config, to)
                        }
                        Some(_) => {
                            cx.out.drop(IkeDrop::Unauthenticated);
                            Phase::InitSent(self)
                        }
                        None => {
                            let from = common.remote.ip();
                            fail(
                                cx,
                                explain::redirected(&self.config, from, redirect::UNUSABLE),
                            )
                        }
                    };
                }
                NotifyType::INVALID_KE_PAYLOAD => return self.other_group(common, cx, notify.data),
                kind if kind.is_error() => {
                    let refusal = explain::init_refused(&self.config, common, kind);
                    return fail(cx, refusal);
                }
                _ => {}
            }
        }
        let mut chosen: Option<&ProposalBody<'_>> = None;
        let (mut ke, mut nonce_r) = (None, None);
        for payload in &payloads {
            match payload {
                Payload::Sa(proposals) => match &proposals[..] {
                    [one] => chosen = Some(one),
                    _ => chosen = None,
                },
                Payload::Ke(data) => ke = Some(*data),
                Payload::Nonce(data) => nonce_r = Some(*data),
                _ => {}
            }
        }
        let (Some(chosen), Some(ke), Some(nonce_r), true) =
            (chosen, ke, nonce_r, header.responder_spi != 0)
        else {
            cx.out.drop(IkeDrop::Malformed);
            return Phase::InitSent(self);
        };
        let suite = match proposal::verify_ike(&self.config.ike, &chosen.to_proposal()) {
            Ok(suite) => suite,
            Err(error) => {
                return fail(cx, explain::bad_choice(&self.config, common, "ike", &error));
            }
        };
        if ke.group != suite.group.id() || suite.group != self.exchange.group() {
            cx.out.drop(IkeDrop::Malformed);
            return Phase::InitSent(self);
        }
        if !suite.additional.is_empty() && !intermediate::supported(&payloads) {
            let what = "the peer wants further key exchanges without knowing IKE_INTERMEDIATE";
            return fail(cx, explain::protocol(&self.config, common, what));
        }
        let ppk = self.config.ppk.is_some() && ppk::supported(&payloads);
        if !ppk && self.config.ppk.as_ref().is_some_and(|it| it.required) {
            return fail(cx, explain::no_ppk(&self.config, common));
        }
        let found = nat::detect(
            respond::notifies(&payloads),
            header.initiator_spi,
            header.responder_spi,
            datagram.local,
            datagram.remote,
        );
        let Self {
            config,
            exchange,
            nonce,
            request,
            ..
        } = *self;
        let shared = match exchange.shared_secret(ke.data) {
            Ok(shared) => shared,
            Err(error) => return fail(cx, explain::protocol(&config, common, &error.to_string())),
        };
        common.spi_r = header.responder_spi;
        common.nat = Nat {
            forced: common.nat.forced,
            agreed: nat::prefers_udp(&config) && nat::peer_prefers_udp(&payloads),
            ..found
        };
        common.fragmentation = fragment::supported(cx, &payloads);
        let childless = respond::notifies(&payloads)
            .any(|notify| notify.kind == NotifyType::CHILDLESS_IKEV2_SUPPORTED);
        common.childless = match config.childless {
            Childless::Never | Childless::Allow => false,
            // Who asks for an address asks in IKE_AUTH, and gets a child SA with it.
            Childless::Prefer => childless && config.vips.is_empty(),
            Childless::Force if childless => true,
            Childless::Force => return fail(cx, explain::not_childless(&config, common)),
        };
        nat::tell(common, cx, &config);
        if common.nat.udp() || mobike::floats(&config, &payloads) {
            // "the initiator MUST … switch to port 4500" (section 2.23).
            common.local.set_port(cx.settings.nat_port);
            common.remote.set_port(cx.settings.nat_port);
        }
        let context = IkeContext {
            nonce_i: &nonce,
            nonce_r,
            spi_i: common.spi_i.to_be_bytes(),
            spi_r: common.spi_r.to_be_bytes(),
        };
        let keys = match SkeySeed::initial(suite.prf, &context, &shared).into_keys(&suite, &context)
        {
            Ok(keys) => keys,
            Err(error) => return fail(cx, explain::protocol(&config, common, &error.to_string())),
        };
        let mut wanted = Wanted::default();
        wanted.take(&payloads);
        let handshake = Handshake {
            config,
            suite,
            keys,
            transcript: Transcript {
                init_request: request,
                init_response: datagram.bytes.to_vec(),
                nonce_r: nonce_r.to_vec(),
                nonce_i: nonce,
                int_auth: IntAuth::default(),
            },
            wanted,
            ppk,
        };
        intermediate::proceed(common, cx, handshake, 0)
    }

    /// The gateway sends us to another.
    fn redirected(
        common: &Common,
        cx: &mut Cx<'_>,
        config: &Arc<ConnectionConfig>,
        to: Gateway,
    ) -> Phase {
        cx.out.effects.push(Effect::Redirected {
            connection: config.name.clone(),
            from: common.remote.ip(),
            to,
        });
        Phase::Gone
    }

    /// The responder wants another group: "the initiator MUST again propose its full set".
    fn other_group(mut self: Box<Self>, common: &Common, cx: &mut Cx<'_>, data: &[u8]) -> Phase {
        let wanted = <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes);
        let group = wanted.and_then(DhGroup::from_id);
        let offered = |group: &DhGroup| {
            self.config
                .ike
                .iter()
                .any(|proposal| proposal.groups.contains(group))
        };
        match group {
            // Some peers (python-vpn) refuse public values that begin with a zero octet.
            Some(group) if group == self.exchange.group() && self.restarts == 0 => {
                self.restarts += 1;
                self.exchange = KeyExchange::generate(group, &mut cx.rng);
                self.send(common, cx);
                Phase::InitSent(self)
            }
            // A late copy of an answer that was acted on already.
            Some(group) if group == self.exchange.group() => Phase::InitSent(self),
            Some(group)
                if offered(&group)
                    && !self.tried.contains(&group)
                    && self.restarts < MAX_RESTARTS =>
            {
                self.restarts += 1;
                self.tried.push(group);
                self.exchange = KeyExchange::generate(group, &mut cx.rng);
                self.send(common, cx);
                Phase::InitSent(self)
            }
            _ => fail(cx, explain::invalid_ke(&self.config, common, wanted)),
        }
    }
}

/// Ends a negotiation of ours.
pub(crate) fn fail(cx: &mut Cx<'_>, refusal: Arc<Refusal>) -> Phase {
    cx.out.effects.push(Effect::Failed {
        refusal,
        retry: true,
    });
    Phase::Gone
}
