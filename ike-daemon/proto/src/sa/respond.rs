//! IKE_SA_INIT and IKE_AUTH as responder (RFC 7296 section 1.2).

use std::sync::Arc;
use std::time::Instant;

use super::auth::{Transcript, id_body};
use super::child::{self, Agreed, ChildOffer};
use super::context::{Common, Cx, Effect, local_identity};
use super::credential::{self, Claim, Wanted};
use super::established::Established;
use super::fragment::{self, Message};
use super::held::{self, Held};
use super::intermediate::{self, IntAuth};
use super::mobike;
use super::nat::{self, Nat};
use super::ppk::{self, Asked};
use super::proof::{
    self, Covered, Evidence, PeerProof, Unproven, accepts_identity, accepts_method,
};
use super::protect::{self, Protector};
use super::{Datagram, IkeSa, Phase, cp, explain};
use crate::config::{Childless, ConnectionConfig, EncapsulationPolicy, RemoteAddress};
use crate::crypto::dh::KeyExchange;
use crate::crypto::keys::{IkeContext, IkeKeys, SkeySeed};
use crate::identity::Identity;
use crate::proposal::{self, DhGroup, Groups, IkeSuite, Protocol, WireProposal};
use crate::refusal::{Refusal, RefusalKind};
use crate::status::{IkeDrop, Role};
use crate::wire::cert::Cert;
use crate::wire::id::{KeyExchangeData, Typed};
use crate::wire::{
    ExchangeType, Header, Notify, NotifyType, Payload, PayloadType, Payloads, Writer, sa,
};

/// Connections for which one peer's proof is verified: each may take several signatures.
const MAX_VERIFIED: usize = 16;

/// Why a first request gets no IKE SA, and what its sender is told.
pub(crate) struct InitRefused {
    pub kind: NotifyType,
    pub data: Vec<u8>,
    /// What people are told, unless it is routine or nonsense.
    pub refusal: Option<Arc<Refusal>>,
}

impl InitRefused {
    fn new(kind: NotifyType) -> Self {
        Self {
            kind,
            data: Vec::new(),
            refusal: None,
        }
    }
}

/// The notifies among payloads.
pub(crate) fn notifies<'a>(payloads: &'a [Payload<'a>]) -> impl Iterator<Item = &'a Notify<'a>> {
    payloads.iter().filter_map(|payload| match payload {
        Payload::Notify(notify) => Some(notify),
        _ => None,
    })
}

/// A critical payload that RFC 7296 does not define (section 2.5).
pub(crate) fn unknown_critical(payloads: &[Payload<'_>]) -> Option<PayloadType> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Other {
            kind,
            critical: true,
            ..
        } if !kind.is_defined() => Some(*kind),
        _ => None,
    })
}

/// Half open: waiting for the IKE_AUTH request.
pub(crate) struct InitReplied {
    /// Connections whose addresses fit and that accept the suite, best first.
    candidates: Vec<Arc<ConnectionConfig>>,
    pub suite: IkeSuite,
    pub(super) keys: IkeKeys,
    pub(super) protector: Protector,
    pub(super) transcript: Transcript,
    wanted: Wanted,
    /// Both ends would use a PPK.
    ppk: bool,
    /// IKE_INTERMEDIATE exchanges that were done, and what was answered last.
    pub(super) done: u32,
    pub(super) answered: Option<Answered>,
    expires: Instant,
    /// The IKE_AUTH request, while servers are asked about the peer's certificates.
    held: Option<Held>,
}

/// Connections that a peer at these addresses may mean: those that name its address first.
fn candidates(cx: &Cx<'_>, datagram: &Datagram<'_>) -> Vec<Arc<ConnectionConfig>> {
    let (local, remote) = (datagram.local.ip(), datagram.remote.ip());
    let local_fits = |config: &&Arc<ConnectionConfig>| {
        config.local_address.is_none_or(|address| address == local)
    };
    let named =
        |config: &&Arc<ConnectionConfig>| config.remote_address == RemoteAddress::Address(remote);
    let any = |config: &&Arc<ConnectionConfig>| config.remote_address == RemoteAddress::Any;
    let fitting = || cx.connections.iter().filter(local_fits);
    fitting()
        .filter(named)
        .chain(fitting().filter(any))
        .cloned()
        .collect()
}

/// Takes in a first request. With `Err` nothing is kept.
pub(crate) fn accept(
    cx: &mut Cx<'_>,
    datagram: &Datagram<'_>,
    payloads: &[Payload<'_>],
) -> Result<IkeSa, InitRefused> {
    let (mut offered, mut ke, mut nonce_i) = (None, None, None);
    for payload in payloads {
        match payload {
            Payload::Sa(proposals) => offered = Some(proposals),
            Payload::Ke(data) => ke = Some(*data),
            Payload::Nonce(data) => nonce_i = Some(*data),
            _ => {}
        }
    }
    let (Some(offered), Some(ke), Some(nonce_i)) = (offered, ke, nonce_i) else {
        return Err(InitRefused::new(NotifyType::INVALID_SYNTAX));
    };
    let offered: Vec<WireProposal> = offered
        .iter()
        .map(|proposal| proposal.to_proposal())
        .collect();
    let candidates = candidates(cx, datagram);
    let Some(first) = candidates.first() else {
        return Err(InitRefused {
            refusal: Some(explain::no_connection(cx, datagram)),
            ..InitRefused::new(NotifyType::NO_PROPOSAL_CHOSEN)
        });
    };
    let group = DhGroup::from_id(ke.group);
    let selections = candidates
        .iter()
        .map(|config| proposal::select_ike(&config.ike, &offered, group));
    let Some(selection) = selections.filter_map(Result::ok).next() else {
        let mismatch = proposal::select_ike(&first.ike, &offered, group);
        return Err(InitRefused {
            refusal: mismatch.err().map(|mismatch| {
                explain::proposal_mismatch(
                    first,
                    datagram.remote,
                    RefusalKind::IkeProposal,
                    &mismatch,
                )
            }),
            ..InitRefused::new(NotifyType::NO_PROPOSAL_CHOSEN)
        });
    };
    let suite = selection.suite;
    if !suite.additional.is_empty() && !intermediate::supported(payloads) {
        // "the initiator … MUST" say so (RFC 9370 section 2.2.1).
        return Err(InitRefused::new(NotifyType::INVALID_SYNTAX));
    }
    if ke.group != suite.group.id() {
        return Err(InitRefused {
            data: suite.group.id().to_be_bytes().to_vec(),
            ..InitRefused::new(NotifyType::INVALID_KE_PAYLOAD)
        });
    }
    let answer = WireProposal {
        number: selection.number,
        protocol: Protocol::Ike,
        spi: Vec::new(),
        transforms: selection.transforms,
    };
    let accepts = |config: &Arc<ConnectionConfig>| {
        proposal::select_ike(&config.ike, std::slice::from_ref(&answer), group).is_ok()
    };
    let candidates: Vec<_> = candidates.into_iter().filter(accepts).collect();

    let invalid = |_| InitRefused::new(NotifyType::INVALID_SYNTAX);
    let (public, shared) =
        KeyExchange::answer(suite.group, ke.data, &mut cx.rng).map_err(invalid)?;
    let nonce_r = cx.nonce();
    let spi_i = datagram.header.initiator_spi;
    let found = nat::detect(
        notifies(payloads),
        spi_i,
        0,
        datagram.local,
        datagram.remote,
    );
    let forced = candidates
        .first()
        .is_some_and(|config| config.encapsulation == EncapsulationPolicy::Udp);
    // Which of them is meant is not known yet, so all must want it.
    let agreed =
        candidates.iter().all(|config| nat::prefers_udp(config)) && nat::peer_prefers_udp(payloads);
    let common = Common {
        role: Role::Responder,
        spi_i,
        spi_r: cx.ike_spi(),
        local: datagram.local,
        remote: datagram.remote,
        began: cx.now,
        initial_contact: false,
        nat: Nat {
            forced,
            agreed,
            ..found
        },
        fragmentation: fragment::supported(cx, payloads),
        lease: None,
        mobike: None,
        hold: None,
        childless: false,
        called: None,
    };
    let context = IkeContext {
        nonce_i,
        nonce_r: &nonce_r,
        spi_i: common.spi_i.to_be_bytes(),
        spi_r: common.spi_r.to_be_bytes(),
    };
    let unusable = |_| InitRefused::new(NotifyType::NO_PROPOSAL_CHOSEN);
    let keys = SkeySeed::initial(suite.prf, &context, &shared)
        .into_keys(&suite, &context)
        .map_err(unusable)?;
    let unusable = |_| InitRefused::new(NotifyType::NO_PROPOSAL_CHOSEN);
    let protector = Protector::new(&suite, &keys, Role::Responder).map_err(unusable)?;

    let mut writer = Writer::new();
    writer.add(PayloadType::SA, |out| {
        sa::encode(std::slice::from_ref(&answer), out)
    });
    let ke = KeyExchangeData {
        group: suite.group.id(),
        data: &public,
    };
    writer.add(PayloadType::KE, |out| ke.encode(out));
    writer.add(PayloadType::NONCE, |out| out.extend(&nonce_r));
    nat::write(
        &mut writer,
        common.spi_i,
        common.spi_r,
        common.local,
        common.remote,
        forced,
    );
    let mut wanted = Wanted::default();
    wanted.take(payloads);
    if wanted.hashes.is_some()
        && candidates
            .iter()
            .any(|config| credential::uses_signatures(config))
    {
        credential::write_hashes(&mut writer);
    }
    credential::write_requests(&mut writer, candidates.iter());
    if common.fragmentation {
        fragment::write_support(&mut writer, cx);
    }
    if !suite.additional.is_empty() {
        intermediate::write_support(&mut writer);
    }
    if candidates
        .iter()
        .all(|config| config.childless != Childless::Never)
    {
        writer.notify(Notify::new(NotifyType::CHILDLESS_IKEV2_SUPPORTED, &[]));
    }
    if agreed {
        nat::write_preference(&mut writer);
    }
    let ppk = ppk::supported(payloads) && candidates.iter().any(|config| config.ppk.is_some());
    if ppk {
        ppk::write_support(&mut writer);
    }
    let response = writer.message(protect::header(&common, ExchangeType::IKE_SA_INIT, true, 0));
    cx.out
        .transmit(common.local, common.remote, response.clone());
    let phase = InitReplied {
        candidates,
        suite,
        keys,
        protector,
        transcript: Transcript {
            init_request: datagram.bytes.to_vec(),
            init_response: response,
            nonce_i: nonce_i.to_vec(),
            nonce_r,
            int_auth: IntAuth::default(),
        },
        wanted,
        ppk,
        done: 0,
        answered: None,
        held: None,
        expires: cx.now + cx.settings.half_open.timeout,
    };
    Ok(IkeSa {
        common,
        phase: Phase::InitReplied(Box::new(phase)),
    })
}

/// What an IKE_AUTH request holds.
struct AuthRequest<'a> {
    idi: Typed<'a>,
    idr: Option<Identity>,
    auth: Typed<'a>,
    certificates: Vec<Cert<'a>>,
    offer: ChildOffer,
    initial_contact: bool,
    /// All of them.
    payloads: &'a [Payload<'a>],
    ppk: Asked<'a>,
}

impl InitReplied {
    /// The connection, where only one can be meant.
    pub fn config(&self) -> Option<&Arc<ConnectionConfig>> {
        self.candidates.first()
    }

    /// The first request came again.
    pub fn repeated_init(&self, common: &Common, cx: &mut Cx<'_>, datagram: &Datagram<'_>) {
        cx.out.drop(IkeDrop::Retransmission);
        if datagram.bytes == self.transcript.init_request {
            cx.out.transmit(
                common.local,
                common.remote,
                self.transcript.init_response.clone(),
            );
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.held.is_none().then_some(self.expires)
    }

    pub fn handle_timeout(self: Box<Self>, common: &Common, cx: &mut Cx<'_>) -> Phase {
        if cx.now < self.expires || self.held.is_some() {
            return Phase::InitReplied(self);
        }
        if let Some(config) = self.candidates.first() {
            let refusal = explain::auth_never_came(config, common, cx.settings.half_open.timeout);
            cx.out.effects.push(Effect::Failed {
                refusal,
                retry: false,
            });
        }
        Phase::Gone
    }

    pub fn handle_datagram(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
    ) -> Phase {
        let header = &datagram.header;
        if header.exchange == ExchangeType::IKE_INTERMEDIATE {
            return self.handle_intermediate(common, cx, datagram);
        }
        let exchanges = self.suite.additional.groups().count();
        if header.exchange != ExchangeType::IKE_AUTH
            || header.flags.is_response()
            || self.done as usize != exchanges
            || header.message_id != self.done.saturating_add(1)
        {
            cx.out.drop(IkeDrop::Unexpected);
            return Phase::InitReplied(self);
        }
        if self.held.is_some() {
            cx.out.drop(IkeDrop::Retransmission);
            return Phase::InitReplied(self);
        }
        let opened = match self.protector.open(common, datagram) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Phase::InitReplied(self),
            Err(reason) => {
                cx.out.drop(reason);
                return Phase::InitReplied(self);
            }
        };
        self.transcript.int_auth.finish(header.message_id);
        // From here on the sender is the one of the first request: "MUST respond to the address
        // and port from which it was received" (section 2.11).
        common.local = datagram.local;
        common.remote = datagram.remote;
        self.judge(common, cx, Held::new(datagram, opened))
    }

    /// A server answered what was asked about the peer's certificates.
    pub fn answered(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        let Some(held) = self.held.take() else {
            return Phase::InitReplied(self);
        };
        // Waiting was not the peer's fault.
        self.expires = cx.now + cx.settings.half_open.timeout;
        self.judge(common, cx, held)
    }

    /// Takes in the IKE_AUTH request.
    fn judge(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>, held: Held) -> Phase {
        let datagram = &held.datagram();
        let payloads = match Payloads::collect_all(held.first, &held.plaintext) {
            Ok(payloads) => payloads,
            Err(error) => {
                return self.refuse_syntax(
                    common,
                    cx,
                    datagram,
                    NotifyType::INVALID_SYNTAX,
                    &[],
                    &error.to_string(),
                );
            }
        };
        if let Some(kind) = unknown_critical(&payloads) {
            let what = format!("unknown critical {kind}");
            let notify = NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD;
            return self.refuse_syntax(common, cx, datagram, notify, &[kind.0], &what);
        }
        let (mut idi, mut idr, mut auth) = (None, None, None);
        let mut certificates = Vec::new();
        let mut offer = ChildOffer::default();
        self.wanted.take(&payloads);
        for payload in &payloads {
            match payload {
                Payload::IdI(id) => idi = Some(*id),
                Payload::IdR(id) => idr = Some(Identity::from_wire(id.kind, id.data)),
                Payload::Auth(value) => auth = Some(*value),
                Payload::Cert(cert) => certificates.push(*cert),
                other => offer.take(other),
            }
        }
        let initial_contact =
            notifies(&payloads).any(|notify| notify.kind == NotifyType::INITIAL_CONTACT);
        let Some(idi) = idi else {
            let what = "the IKE_AUTH request has no IDi payload";
            return self.refuse_syntax(common, cx, datagram, NotifyType::INVALID_SYNTAX, &[], what);
        };
        let Some(auth) = auth else {
            // No AUTH payload asks for EAP (section 2.16).
            let refusal = explain::wants_eap(
                self.candidates.first(),
                common,
                &Identity::from_wire(idi.kind, idi.data),
            );
            return self.refuse(
                common,
                cx,
                datagram,
                NotifyType::AUTHENTICATION_FAILED,
                &[],
                refusal,
            );
        };
        let request = AuthRequest {
            idi,
            idr,
            auth,
            certificates,
            offer,
            initial_contact,
            payloads: &payloads,
            ppk: Asked::of(&payloads),
        };
        match self.authenticate(common, cx, &request) {
            Ok((configs, proof)) => self.finish(common, cx, datagram, request, &configs, proof),
            Err(Unproven::Refused(refusal)) => {
                let kind = NotifyType::AUTHENTICATION_FAILED;
                self.refuse(common, cx, datagram, kind, &[], refusal)
            }
            Err(Unproven::Unasked(inquiries)) => {
                held::ask(common, cx, inquiries);
                self.held = Some(held);
                Phase::InitReplied(self)
            }
        }
    }

    fn finish(
        self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        request: AuthRequest<'_>,
        configs: &[Arc<ConnectionConfig>],
        proof: PeerProof,
    ) -> Phase {
        let identity = proof.identity().clone();
        // Of several connections with this peer the selectors and proposals tell which is meant.
        let mut agreed: Option<(Arc<ConnectionConfig>, Agreed, Option<Arc<cp::Lease>>)> = None;
        let mut refused = None;
        // Without SA and selectors there is to be no child SA yet (RFC 6023).
        let childless = request.offer.proposals.is_empty() && request.offer.ts_i.is_empty();
        let allows = |config: &&Arc<ConnectionConfig>| config.childless != Childless::Never;
        let childless = configs.iter().find(allows).filter(|_| childless);
        for config in configs.iter().filter(|_| childless.is_none()) {
            let (offer, anew) = (&request.offer, request.initial_contact);
            let selected =
                cp::lease(cx, config, common, offer, &identity, anew).and_then(|lease| {
                    common.lease = lease;
                    child::select(config, common, offer, Groups::Ignored, None)
                });
            let lease = common.lease.take();
            match selected {
                Ok(child) => {
                    // One of the mode that the peer asks for is meant rather than another.
                    let meant = child.declined.is_none();
                    if meant || agreed.is_none() {
                        agreed = Some((config.clone(), child, lease));
                    }
                    if meant {
                        break;
                    }
                }
                Err(error) => refused = refused.or(Some((config.clone(), error))),
            }
        }
        let config = match (&agreed, &refused) {
            (Some((config, ..)), _) | (None, Some((config, _))) => config.clone(),
            (None, None) => match childless {
                Some(config) => Arc::clone(config),
                None => return Phase::Gone,
            },
        };
        let decided = request.ppk.decide(&config, common, self.ppk, &self.keys);
        let decision = match decided {
            Ok(decision) => decision,
            Err(refusal) => {
                let kind = NotifyType::AUTHENTICATION_FAILED;
                return self.refuse(common, cx, datagram, kind, &[], refusal);
            }
        };
        let local_id = local_identity(&config, common.local);
        let body = id_body(&local_id);
        let mut writer = Writer::new();
        writer.add(PayloadType::IDR, |out| out.extend(&body));
        credential::write_certificates(&mut writer, &config, &self.wanted);
        let claim = Claim {
            local_id: &local_id,
            remote_id: &identity,
            id_body: &body,
            role: Role::Responder,
            keys: &decision.keys,
            transcript: &self.transcript,
        };
        let written = credential::write_auth(&mut writer, &config, common, cx, claim, &self.wanted);
        if let Err(refusal) = written {
            let kind = NotifyType::AUTHENTICATION_FAILED;
            return self.refuse(common, cx, datagram, kind, &[], refusal);
        }
        if decision.used {
            ppk::write_agreement(&mut writer);
        }
        let Self {
            suite,
            protector,
            transcript,
            ..
        } = *self;
        let keys = decision.keys;

        nat::tell(common, cx, &config);
        let began = common.began;
        let mut established = Established::new(
            cx,
            config.clone(),
            suite,
            keys,
            protector,
            proof,
            local_id,
            0,
            // Raised when the request is answered.
            datagram.header.message_id,
        );
        (common.mobike, established.mobility) =
            mobike::agree(&config, request.payloads, Role::Responder);
        if common.mobike.is_some() {
            mobike::write_support(&mut writer, cx, &config, common.local.ip());
        }
        established.ppk = decision.used;
        established.announce(common, cx, request.initial_contact);
        let nonces = (&transcript.nonce_i[..], &transcript.nonce_r[..]);
        let child_spi = cx.child_spi();
        let new = match agreed {
            Some((_, mut agreed, lease)) => {
                common.lease = lease;
                cp::write_reply(&mut writer, common);
                if let Some(refusal) = agreed.declined.take() {
                    cx.out.effects.push(Effect::Failed {
                        refusal,
                        retry: false,
                    });
                }
                agreed.write(&mut writer, child_spi);
                child::derive(
                    &established.keys,
                    agreed,
                    child_spi,
                    nonces,
                    &[],
                    Role::Responder,
                )
                .ok()
            }
            None => None,
        };
        match (new, refused) {
            (Some(new), _) => {
                // Before the response: the peer may send ESP as soon as it has it.
                established.install_child(common, cx, new, None, began);
            }
            (None, Some((_, error))) => {
                // "the IKE SA is still created as usual" (section 1.2).
                writer.notify(Notify::new(error.notify, &[]));
                cx.out.effects.push(Effect::Failed {
                    refusal: error.refusal,
                    retry: false,
                });
            }
            (None, None) if childless.is_some() => {}
            (None, None) => writer.notify(Notify::new(NotifyType::NO_PROPOSAL_CHOSEN, &[])),
        }
        established.respond(common, cx, datagram, &writer);
        Phase::Established(Box::new(established))
    }

    /// Finds the connections that fit the identities and proves the peer's.
    fn authenticate(
        &self,
        common: &Common,
        cx: &Cx<'_>,
        request: &AuthRequest<'_>,
    ) -> Result<(Vec<Arc<ConnectionConfig>>, PeerProof), Unproven> {
        let identity = &Identity::from_wire(request.idi.kind, request.idi.data);
        let fits = |config: &&Arc<ConnectionConfig>| {
            let ours = local_identity(config, common.local);
            accepts_identity(config, common.remote.ip(), identity)
                && request
                    .idr
                    .as_ref()
                    .is_none_or(|asked| asked.matches(&ours))
        };
        let configs: Vec<_> = self.candidates.iter().filter(fits).cloned().collect();
        let Some(config) = configs.first() else {
            return Err(explain::unknown_identity(
                &self.candidates,
                common,
                identity,
                request.idr.as_ref(),
            )
            .into());
        };
        // Where several connections could be meant, the method and the certificate tell.
        let by_method: Vec<_> = configs
            .iter()
            .filter(|config| accepts_method(config, request.auth.kind))
            .collect();
        let evidence = Evidence {
            id: request.idi,
            auth: request.auth,
            certificates: &request.certificates,
            legacy: self.wanted.hashes.is_none(),
        };
        let verify = |config: &Arc<ConnectionConfig>| {
            let local_id = local_identity(config, common.local);
            let decision = request.ppk.decide(config, common, self.ppk, &self.keys)?;
            let mut evidence = evidence.clone();
            if let Some(data) = decision.auth {
                evidence.auth.data = data;
            }
            let covered = Covered {
                signer: Role::Initiator,
                keys: &decision.keys,
                transcript: &self.transcript,
            };
            proof::verify(config, common, cx, &local_id, &evidence, covered)
        };
        let mut proven: Option<PeerProof> = None;
        let mut refused = None;
        let mut fitting = Vec::new();
        let mut unasked = Vec::new();
        for config in by_method.iter().take(MAX_VERIFIED) {
            match verify(config) {
                Ok(proof) => {
                    proven.get_or_insert(proof);
                    fitting.push(Arc::clone(config));
                }
                Err(Unproven::Refused(refusal)) => refused = refused.or(Some(refusal)),
                Err(Unproven::Unasked(inquiries)) => unasked.extend(inquiries),
            }
        }
        if !unasked.is_empty() {
            return Err(Unproven::Unasked(unasked));
        }
        match (proven, refused) {
            (Some(proof), _) => Ok((fitting, proof)),
            (None, Some(refusal)) => Err(refusal.into()),
            (None, None) => verify(config).map(|proof| (vec![Arc::clone(config)], proof)),
        }
    }

    pub(super) fn refuse_syntax(
        self: Box<Self>,
        common: &Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        kind: NotifyType,
        data: &[u8],
        what: &str,
    ) -> Phase {
        let Some(config) = self.candidates.first() else {
            return Phase::Gone;
        };
        let refusal = explain::protocol(config, common, what);
        self.refuse(common, cx, datagram, kind, data, refusal)
    }

    /// Answers with an error. The answer is kept for a while: the request may come again.
    fn refuse(
        mut self: Box<Self>,
        common: &Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        kind: NotifyType,
        data: &[u8],
        refusal: Arc<Refusal>,
    ) -> Phase {
        cx.out.effects.push(Effect::Failed {
            refusal,
            retry: false,
        });
        let mut writer = Writer::new();
        writer.notify(Notify::new(kind, data));
        let Header {
            exchange,
            message_id,
            ..
        } = datagram.header;
        let header = protect::header(common, exchange, true, message_id);
        let Ok(response) = self.protector.seal(common, cx, header, &writer) else {
            return Phase::Gone;
        };
        cx.out.send(datagram.local, datagram.remote, &response);
        Phase::Lingering(Box::new(Lingering {
            answered: Answered {
                request: protect::fingerprint(datagram.bytes),
                response,
            },
            expires: self.expires,
            half_open: true,
        }))
    }
}

/// The peer's last request and our response to it.
pub(crate) struct Answered {
    /// Fingerprint of the request: the response is for a repetition of it, octet by octet.
    pub request: [u8; 32],
    pub response: Message,
}

/// Over, except that the last response stays at hand in case its request comes again.
pub(crate) struct Lingering {
    pub answered: Answered,
    pub expires: Instant,
    /// The peer never authenticated.
    pub half_open: bool,
}

impl Lingering {
    pub fn handle_datagram(self: Box<Self>, cx: &mut Cx<'_>, datagram: &Datagram<'_>) -> Phase {
        if protect::fingerprint(datagram.bytes) == self.answered.request {
            cx.out.drop(IkeDrop::Retransmission);
            let response = &self.answered.response;
            cx.out.send(datagram.local, datagram.remote, response);
        } else {
            cx.out.drop(IkeDrop::Unexpected);
        }
        Phase::Lingering(self)
    }

    pub fn handle_timeout(self: Box<Self>, cx: &mut Cx<'_>) -> Phase {
        if cx.now < self.expires {
            Phase::Lingering(self)
        } else {
            Phase::Gone
        }
    }
}
