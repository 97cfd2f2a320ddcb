//! Child SAs: what the two ends agree on, their keys, and the pair the data plane gets.

use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{
    Allowance, Allowances, ChildSa, ChildSaId, Encapsulation, EspSuite, HalfSa, Mode, Path,
    SecretBytes, Share, Takeover, TrafficSelector,
};

use super::auth::by_side;
use super::context::{Common, Cx};
use super::{cp, explain, resource};
use crate::config::{ConnectionConfig, Volume};
use crate::crypto::Random;
use crate::crypto::keys::{ChildKeys, DirectionKeys, IkeKeys};
use crate::crypto::prf::PrfError;
use crate::proposal::{self, DhGroup, EspChoice, Groups, Protocol, Transform, WireProposal};
use crate::refusal::{Refusal, RefusalKind};
use crate::selector::{self, Sides};
use crate::status::{ChildSaStatus, Role};
use crate::wire::{Notify, NotifyType, Payload, PayloadType, Writer, sa, ts};

/// Payloads of a message that are about a child SA.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChildOffer {
    pub proposals: Vec<WireProposal>,
    pub ts_i: Vec<TrafficSelector>,
    pub ts_r: Vec<TrafficSelector>,
    /// USE_TRANSPORT_MODE is among them.
    pub transport: bool,
    /// SA_RESOURCE_INFO is among them.
    pub resource: bool,
    /// Virtual addresses that are asked for or given.
    pub addresses: Option<cp::Addresses>,
}

impl ChildOffer {
    /// Keeps a payload if it is one of them.
    pub fn take(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::Sa(proposals) => {
                self.proposals = proposals.iter().map(|body| body.to_proposal()).collect()
            }
            Payload::TsI(selectors) => self.ts_i.clone_from(selectors),
            Payload::TsR(selectors) => self.ts_r.clone_from(selectors),
            Payload::Notify(notify) if notify.kind == NotifyType::USE_TRANSPORT_MODE => {
                self.transport = true;
            }
            Payload::Notify(notify) if notify.kind == NotifyType::SA_RESOURCE_INFO => {
                self.resource = true;
            }
            Payload::Cp(cp) => self.addresses = Some(cp::Addresses::of(cp)),
            _ => {}
        }
    }
}

/// What both ends want.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub choice: EspChoice,
    pub peer_spi: u32,
    mode: Mode,
    pub share: Share,
    /// The peer asked for transport mode and gets tunnel mode: what people are told.
    pub declined: Option<Arc<Refusal>>,
    number: u8,
    transforms: Vec<Transform>,
    ts_i: Vec<TrafficSelector>,
    ts_r: Vec<TrafficSelector>,
}

impl Agreed {
    /// The responder's SA, TSi and TSr payloads.
    pub fn write(&self, writer: &mut Writer, spi: u32) {
        let answer = WireProposal {
            number: self.number,
            protocol: Protocol::Esp,
            spi: spi.to_be_bytes().to_vec(),
            transforms: self.transforms.clone(),
        };
        write_mode(writer, self.mode);
        resource::write(writer, self.share);
        writer.add(PayloadType::SA, |out| {
            sa::encode(std::slice::from_ref(&answer), out)
        });
        writer.add(PayloadType::TSI, |out| ts::encode(&self.ts_i, out));
        writer.add(PayloadType::TSR, |out| ts::encode(&self.ts_r, out));
    }
}

/// The selectors of a connection between the ends of this IKE SA.
pub(crate) fn sides(config: &ConnectionConfig, common: &Common) -> Sides {
    let mut sides = config.sides(common.local.ip(), common.remote.ip());
    cp::fill(config, common.lease.as_deref(), &mut sides);
    sides
}

/// Asks for transport mode, or agrees to it.
pub(crate) fn write_mode(writer: &mut Writer, mode: Mode) {
    if mode == Mode::Transport {
        writer.notify(Notify::new(NotifyType::USE_TRANSPORT_MODE, &[]));
    }
}

/// What the peer means by its selectors in transport mode: it calls hosts by the addresses that it
/// sees, and where there is a NAT in front of one, that is another than the IKE SA's (section
/// 2.23.1). `mine` and `its` are changed into the addresses of the IKE SA as we have it.
fn see_through_nat(common: &Common, mine: &mut [TrafficSelector], its: &mut [TrafficSelector]) {
    for (nat, selectors, address) in [
        (common.nat.local, mine, common.local.ip()),
        (common.nat.remote, its, common.remote.ip()),
    ] {
        let host = |selector: &&mut TrafficSelector| selector.start == selector.end;
        for selector in selectors.iter_mut().filter(host).filter(|_| nat) {
            (selector.start, selector.end) = (address, address);
        }
    }
}

/// Why a child SA cannot be: what the peer is told and what people are.
pub(crate) struct ChildRefused {
    pub notify: NotifyType,
    pub refusal: Arc<Refusal>,
}

/// The SPI of a proposal for ESP: not one of the reserved ones.
fn esp_spi(proposal: &WireProposal) -> Option<u32> {
    let spi = u32::from_be_bytes(proposal.spi.as_slice().try_into().ok()?);
    (spi > 255).then_some(spi)
}

/// Responder: chooses from what the peer offers. `group`: that of its KE payload.
pub(crate) fn select(
    config: &ConnectionConfig,
    common: &Common,
    offer: &ChildOffer,
    groups: Groups,
    group: Option<DhGroup>,
) -> Result<Agreed, ChildRefused> {
    let selection =
        proposal::select_esp(&config.esp, &offer.proposals, groups, group).map_err(|mismatch| {
            ChildRefused {
                notify: NotifyType::NO_PROPOSAL_CHOSEN,
                refusal: explain::proposal_mismatch(
                    config,
                    common.remote,
                    RefusalKind::ChildProposal,
                    &mismatch,
                ),
            }
        })?;
    let spi = offer.proposals.get(selection.index).and_then(esp_spi);
    let peer_spi = spi.ok_or_else(|| ChildRefused {
        notify: NotifyType::INVALID_SYNTAX,
        refusal: explain::protocol(
            config,
            common,
            "the ESP proposal has no SPI of four octets above 255",
        ),
    })?;
    if config.mode == Mode::Transport && !offer.transport {
        return Err(ChildRefused {
            notify: NotifyType::NO_PROPOSAL_CHOSEN,
            refusal: explain::transport_wanted(config, common),
        });
    }
    let mut theirs = Sides {
        local: offer.ts_r.clone(),
        remote: offer.ts_i.clone(),
    };
    if config.mode == Mode::Transport {
        see_through_nat(common, &mut theirs.local, &mut theirs.remote);
    }
    if config.single_pairs && theirs.pairs().nth(1).is_some() {
        return Err(ChildRefused {
            notify: NotifyType::SINGLE_PAIR_REQUIRED,
            refusal: explain::single_pairs(config, common, &theirs),
        });
    }
    let declines = config.mode == Mode::Tunnel && offer.transport;
    match selector::negotiate(&sides(config, common), &theirs) {
        Ok(narrowed) => Ok(Agreed {
            choice: selection.suite,
            peer_spi,
            mode: config.mode,
            share: resource::first_share(config, offer),
            declined: declines.then(|| explain::transport_unwanted(config, common, None)),
            number: selection.number,
            transforms: selection.transforms,
            ts_i: narrowed.remote,
            ts_r: narrowed.local,
        }),
        Err(mismatch) => Err(ChildRefused {
            notify: NotifyType::TS_UNACCEPTABLE,
            refusal: if declines {
                explain::transport_unwanted(config, common, Some(&mismatch))
            } else {
                explain::selector_mismatch(config, common, &mismatch)
            },
        }),
    }
}

/// Initiator: checks what the peer chose of our offer. `wanted`: the selectors in it.
pub(crate) fn accept_answer(
    config: &ConnectionConfig,
    common: &Common,
    answer: &ChildOffer,
    groups: Groups,
    wanted: &Sides,
) -> Result<Agreed, Arc<Refusal>> {
    let [chosen] = &answer.proposals[..] else {
        return Err(explain::protocol(
            config,
            common,
            "the response does not hold exactly one ESP proposal",
        ));
    };
    let choice = proposal::verify_esp(&config.esp, chosen, groups)
        .map_err(|error| explain::bad_choice(config, common, "esp", &error))?;
    let Some(peer_spi) = esp_spi(chosen) else {
        return Err(explain::protocol(
            config,
            common,
            "the peer's ESP SPI is not four octets above 255",
        ));
    };
    match (config.mode, answer.transport) {
        // "If the responder declines the request, the Child SA will be established in tunnel mode.
        // If this is unacceptable to the initiator, the initiator MUST delete the SA" (1.3.1).
        (Mode::Transport, false) => return Err(explain::transport_declined(config, common)),
        (Mode::Tunnel, true) => {
            let what = "the peer agrees to transport mode, which we did not ask for";
            return Err(explain::protocol(config, common, what));
        }
        _ => {}
    }
    let (mut ts_i, mut ts_r) = (answer.ts_i.clone(), answer.ts_r.clone());
    if config.mode == Mode::Transport {
        see_through_nat(common, &mut ts_i, &mut ts_r);
    }
    let within = !ts_i.is_empty()
        && !ts_r.is_empty()
        && selector::is_subset(&ts_i, &wanted.local)
        && selector::is_subset(&ts_r, &wanted.remote);
    if !within {
        return Err(explain::widened(config, common, answer));
    }
    Ok(Agreed {
        choice,
        peer_spi,
        mode: config.mode,
        share: resource::first_share(config, answer),
        declined: None,
        number: chosen.number,
        transforms: chosen.transforms.clone(),
        ts_i,
        ts_r,
    })
}

/// Everything about a child SA except its path.
pub(crate) struct NewChild {
    /// Its name, where it has one already.
    pub id: Option<ChildSaId>,
    pub suite: EspSuite,
    mode: Mode,
    /// Which of the packets that its selectors cover it is for.
    pub share: Share,
    /// Ours in the exchange that made it.
    pub role: Role,
    spi_in: u32,
    spi_out: u32,
    inbound: DirectionKeys,
    outbound: DirectionKeys,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
}

/// Derives the keys of what was agreed. `role` is ours in the exchange that made it.
pub(crate) fn derive(
    keys: &IkeKeys,
    agreed: Agreed,
    spi_in: u32,
    (nonce_i, nonce_r): (&[u8], &[u8]),
    shared_secrets: &[SecretBytes],
    role: Role,
) -> Result<NewChild, PrfError> {
    let suite = agreed.choice.suite;
    let keys = ChildKeys::derive(keys, &suite, nonce_i, nonce_r, shared_secrets)?;
    let (outbound, inbound) = by_side(
        role,
        keys.initiator_to_responder,
        keys.responder_to_initiator,
    );
    let (local_ts, remote_ts) = by_side(role, agreed.ts_i, agreed.ts_r);
    Ok(NewChild {
        id: None,
        suite,
        mode: agreed.mode,
        share: agreed.share,
        role,
        spi_in,
        spi_out: agreed.peer_spi,
        inbound,
        outbound,
        local_ts,
        remote_ts,
    })
}

/// An installed child SA.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub id: ChildSaId,
    pub spi_in: u32,
    pub spi_out: u32,
    pub suite: EspSuite,
    pub encapsulation: Encapsulation,
    pub mode: Mode,
    pub share: Share,
    pub local_ts: Vec<TrafficSelector>,
    pub remote_ts: Vec<TrafficSelector>,
    pub since: Instant,
    /// When it is rekeyed, unless that is under way.
    pub rekey_at: Option<Instant>,
    pub expires: Instant,
    /// What it may carry.
    pub allowances: Allowances,
    /// Another took over.
    pub replaced: bool,
}

/// Where a child SA of this IKE SA travels.
pub(crate) fn path(common: &Common) -> Path {
    common.hold.unwrap_or_else(|| path_now(common))
}

/// The same, wherever it went before.
pub(crate) fn path_now(common: &Common) -> Path {
    let encapsulation = if common.nat.udp() {
        Encapsulation::Udp
    } else {
        Encapsulation::Esp
    };
    Path {
        local: common.local,
        remote: common.remote,
        encapsulation,
    }
}

impl Child {
    /// Installs a new pair in the data plane.
    pub fn install(
        common: &Common,
        cx: &mut Cx<'_>,
        config: &Arc<ConnectionConfig>,
        new: NewChild,
        old: Option<(ChildSaId, Takeover)>,
        rekey_at: Instant,
    ) -> Self {
        let id = new.id.unwrap_or_else(|| cx.out.next_child_id());
        let path = path(common);
        let child = Self {
            id,
            spi_in: new.spi_in,
            spi_out: new.spi_out,
            suite: new.suite,
            encapsulation: path.encapsulation,
            mode: new.mode,
            share: new.share,
            local_ts: new.local_ts.clone(),
            remote_ts: new.remote_ts.clone(),
            since: cx.now,
            rekey_at: Some(rekey_at),
            expires: cx.now + config.child_lifetime.hard,
            allowances: allowances(cx, config),
            replaced: false,
        };
        let half = |spi, keys: DirectionKeys| HalfSa {
            spi,
            encryption_key: keys.encryption_key,
            integrity_key: keys.integrity_key,
        };
        let sa = ChildSa {
            id,
            connection: config.name.clone(),
            suite: new.suite,
            inbound: half(new.spi_in, new.inbound),
            outbound: half(new.spi_out, new.outbound),
            path,
            mode: child.mode,
            share: child.share,
            local_ts: new.local_ts,
            remote_ts: new.remote_ts,
            replay_window: config.replay_window,
            allowances: child.allowances,
            lifetime: config.child_lifetime.hard,
        };
        cx.out.install(common.local_spi(), sa, old);
        child
    }

    /// A notice that it is up.
    pub fn up(
        &self,
        config: &ConnectionConfig,
        elapsed: std::time::Duration,
    ) -> crate::notice::Notice {
        crate::notice::Notice::ChildUp {
            connection: config.name.clone(),
            id: self.id,
            suite: self.suite.to_string(),
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            encapsulation: self.encapsulation,
            mode: self.mode,
            share: self.share,
            local_ts: self.local_ts.clone(),
            remote_ts: self.remote_ts.clone(),
            elapsed,
        }
    }

    /// A snapshot.
    pub fn status(&self, now: Instant) -> ChildSaStatus {
        ChildSaStatus {
            id: self.id,
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            suite: self.suite.to_string(),
            encapsulation: self.encapsulation,
            mode: self.mode,
            share: self.share,
            local_ts: self.local_ts.clone(),
            remote_ts: self.remote_ts.clone(),
            age: now.saturating_duration_since(self.since),
            rekey_in: self.rekey_at.map(|at| at.saturating_duration_since(now)),
        }
    }
}

/// What a child SA made now may carry.
pub(crate) fn allowances(cx: &mut Cx<'_>, config: &ConnectionConfig) -> Allowances {
    let mut soft = |volume: &Volume| {
        let mut octets = [0; 8];
        cx.rng.fill(&mut octets);
        let less = u64::from_be_bytes(octets) % volume.jitter.saturating_add(1).max(1);
        volume.soft.saturating_sub(less).max(1)
    };
    let hard = |volume: &Volume| volume.hard;
    let (bytes, packets) = (&config.child_bytes, &config.child_packets);
    Allowances {
        soft: Allowance {
            bytes: bytes.as_ref().map(&mut soft),
            packets: packets.as_ref().map(&mut soft),
        },
        hard: Allowance {
            bytes: bytes.as_ref().map(hard),
            packets: packets.as_ref().map(hard),
        },
    }
}

/// Moves children to where the peer is.
pub(crate) fn move_all(common: &Common, cx: &mut Cx<'_>, children: &[Child]) {
    for child in children {
        cx.out.move_path(child.id, path(common));
    }
}
