//! Refusals in words: everything known, and the setting that would cure it.

mod auth;
mod cp;
mod mode;
mod ppk;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::Mode;

pub(crate) use auth::{
    auth_refused, cannot_sign, hash_names, no_secret, other_method, peer_unproven,
    unknown_identity, untrusted, wants_eap, wants_sha1, wrong_identity, wrong_psk,
};
pub(crate) use cp::{address_not_asked, no_address, no_address_left};
pub(crate) use mode::{transport_declined, transport_unwanted, transport_wanted};
pub(crate) use ppk::{no_ppk, other_ppk};

use super::Datagram;
use super::child::ChildOffer;
use super::context::{Common, Cx};
use crate::config::{ConnectionConfig, RemoteAddress};
use crate::proposal::{DhGroup, Groups, Mismatch, Offer, Proposal, VerifyError};
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::selector::{Sides, TsMismatch, format_list};
use crate::status::{Role, UdpReason};
use crate::wire::{ExchangeType, NotifyType};

fn lines(text: impl ToString) -> Vec<String> {
    text.to_string().lines().map(str::to_owned).collect()
}

fn refusal(
    kind: RefusalKind,
    by: RefusedBy,
    role: Role,
    config: &ConnectionConfig,
    summary: String,
    details: Vec<String>,
    fix: Option<Fix>,
) -> Arc<Refusal> {
    Arc::new(Refusal {
        kind,
        by,
        role,
        connection: Some(config.name.clone()),
        summary,
        details,
        fix,
    })
}

/// We refuse every proposal the peer sent.
pub(crate) fn proposal_mismatch(
    config: &ConnectionConfig,
    peer: SocketAddr,
    kind: RefusalKind,
    mismatch: &Mismatch,
) -> Arc<Refusal> {
    let (setting, what) = match kind {
        RefusalKind::IkeProposal => ("ike", "IKE"),
        _ => ("esp", "ESP"),
    };
    let fix = mismatch.suggestion().map(|suggestion| {
        let insecure = if suggestion.needs_insecure() { " together with insecure = true" } else { "" };
        Fix::new(
            &config.origin,
            setting,
            format!("{setting} = \"{suggestion}\"{insecure} would meet what the peer sent, or change the peer"),
        )
    });
    let summary = format!("we accept none of the {what} proposals of {peer}");
    refusal(
        kind,
        RefusedBy::Us,
        Role::Responder,
        config,
        summary,
        lines(mismatch),
        fix,
    )
}

/// The peer's choice is not one of ours.
pub(crate) fn bad_choice(
    config: &ConnectionConfig,
    common: &Common,
    setting: &str,
    error: &VerifyError,
) -> Arc<Refusal> {
    let kind = if setting == "ike" {
        RefusalKind::IkeProposal
    } else {
        RefusalKind::ChildProposal
    };
    let fix = Fix::new(
        &config.origin,
        setting,
        "compare it with the peer's configuration; the peer broke RFC 7296 section 2.7",
    );
    let summary = format!("{} chose a proposal we did not offer", common.remote);
    refusal(
        kind,
        RefusedBy::Us,
        common.role,
        config,
        summary,
        lines(error),
        Some(fix),
    )
}

/// The peer answered an exchange with an error that has no explanation of its own here.
fn answered_with(
    config: &ConnectionConfig,
    common: &Common,
    exchange: &str,
    kind: NotifyType,
) -> Arc<Refusal> {
    refusal(
        RefusalKind::Notify(kind),
        RefusedBy::Peer,
        Role::Initiator,
        config,
        format!("{} answered {exchange} with {kind}", common.remote),
        vec!["the peer's log says more".to_owned()],
        None,
    )
}

/// The peer refused IKE_SA_INIT.
pub(crate) fn init_refused(
    config: &ConnectionConfig,
    common: &Common,
    kind: NotifyType,
) -> Arc<Refusal> {
    let peer = common.remote;
    if kind != NotifyType::NO_PROPOSAL_CHOSEN {
        return answered_with(config, common, "IKE_SA_INIT", kind);
    }
    let mut details = lines(Offer {
        proposals: &config.ike,
        groups: Groups::Negotiated,
    });
    details.push("the peer does not say what it would accept; it may also have no connection for our address".into());
    details.extend(wants_more(&config.ike));
    let fix = Fix::new(
        &config.origin,
        "ike",
        "use the peer's IKE (phase 1) encryption, integrity, PRF and DH group",
    );
    let summary = format!("{peer} accepts none of our IKE proposals");
    refusal(
        RefusalKind::IkeProposal,
        RefusedBy::Peer,
        Role::Initiator,
        config,
        summary,
        details,
        Some(fix),
    )
}

/// What to try where every proposal asks for what many peers do not know.
fn wants_more(proposals: &[Proposal]) -> Option<String> {
    let wants = |it: &Proposal| it.additional.iter().any(|choices| !choices.is_empty());
    proposals.iter().all(wants).then(|| {
        "all our proposals ask for a further key exchange (ADDKE, RFC 9370): a peer that does not know it \
         refuses them all, and would take one without `ke1_…` listed after them"
            .to_owned()
    })
}

/// The peer refused IKE_INTERMEDIATE.
pub(crate) fn intermediate_refused(
    config: &ConnectionConfig,
    common: &Common,
    kind: NotifyType,
) -> Arc<Refusal> {
    answered_with(config, common, "IKE_INTERMEDIATE", kind)
}

/// The peer cannot set an IKE SA up without a child SA.
pub(crate) fn not_childless(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let hint =
        "use \"prefer\", or have the peer support RFC 6023 (in strongSwan `childless = allow`)";
    refusal(
        RefusalKind::Notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED),
        RefusedBy::Us,
        Role::Initiator,
        config,
        format!("{} makes no IKE SA without a child SA", common.remote),
        vec!["its IKE_SA_INIT response does not say that it supports RFC 6023".to_owned()],
        Some(Fix::new(&config.origin, "childless", hint)),
    )
}

/// The peer sends us somewhere that we cannot follow to.
pub(crate) fn redirected(config: &ConnectionConfig, from: IpAddr, why: &str) -> Arc<Refusal> {
    let fix = Fix::new(
        &config.origin,
        "remote.address",
        "name the gateway that it redirects to, which its log or its administrator knows",
    );
    refusal(
        RefusalKind::Notify(NotifyType::REDIRECT),
        RefusedBy::Peer,
        Role::Initiator,
        config,
        format!("{from} redirects us to another gateway"),
        vec![why.to_owned()],
        Some(fix),
    )
}

/// The peer insists on a group that a retry cannot give.
pub(crate) fn invalid_ke(
    config: &ConnectionConfig,
    common: &Common,
    wanted: Option<u16>,
) -> Arc<Refusal> {
    let wanted = match wanted.map(|id| (id, DhGroup::from_id(id))) {
        Some((_, Some(group))) => format!("DH group {} ({group})", group.id()),
        Some((id, None)) => format!("DH group {id}, which Espada does not have"),
        None => "a DH group it does not name".to_owned(),
    };
    let details = lines(Offer {
        proposals: &config.ike,
        groups: Groups::Negotiated,
    });
    let fix = Fix::new(
        &config.origin,
        "ike",
        format!("the peer wants {wanted}: add it here, or one of ours there"),
    );
    let summary = format!("{} wants {wanted}", common.remote);
    refusal(
        RefusalKind::KeyExchange,
        RefusedBy::Peer,
        Role::Initiator,
        config,
        summary,
        details,
        Some(fix),
    )
}

/// IKE_SA_INIT was never answered.
pub(crate) fn no_init_answer(
    config: &ConnectionConfig,
    common: &Common,
    sent: u32,
    now: Instant,
) -> Arc<Refusal> {
    let (local, remote) = (common.local, common.remote);
    let seconds = now.saturating_duration_since(common.began).as_secs();
    let details = vec![
        format!(
            "{sent} IKE_SA_INIT requests from {local} to {remote} in {seconds} s, nothing usable came back"
        ),
        format!(
            "is {} the peer's address, and does it run IKEv2?",
            remote.ip()
        ),
        format!(
            "do firewalls on the way and at the peer let UDP {} and 4500 through, both ways?",
            remote.port()
        ),
        format!(
            "does the peer have a connection for our address ({}, or what a NAT makes of it)?",
            local.ip()
        ),
    ];
    let fix = Fix::new(
        &config.origin,
        "remote.address",
        "check it, and the points above",
    );
    let summary = format!("{remote} does not answer");
    refusal(
        RefusalKind::NoAnswer,
        RefusedBy::Nobody,
        Role::Initiator,
        config,
        summary,
        details,
        Some(fix),
    )
}

/// IKE_SA_INIT was answered, what came after it never.
pub(crate) fn no_answer_to(
    config: &ConnectionConfig,
    common: &Common,
    exchange: ExchangeType,
    sent: u32,
    now: Instant,
) -> Arc<Refusal> {
    let (local, remote) = (common.local, common.remote);
    let seconds = now.saturating_duration_since(common.began).as_secs();
    let mut details = vec![
        format!(
            "{sent} {exchange} requests from {local} to {remote} in {seconds} s, nothing usable came back"
        ),
        "IKE_SA_INIT was answered, so the peer is there".to_owned(),
    ];
    if common.nat.udp() {
        details.push(format!(
            "since then we use UDP {}: do all firewalls let it through, both ways?",
            remote.port()
        ));
    }
    if common.nat.reason() == Some(UdpReason::Agreed) {
        details.push(
            "there is no NAT, both gateways prefer ESP in UDP; with encapsulation = \"esp\" here IKE stays on \
             its port and ESP is sent natively"
                .to_owned(),
        );
    }
    details.push(if common.fragmentation {
        format!("{exchange} is larger and goes in IKE fragments: does the way take datagrams of `fragment_size` octets?")
    } else {
        format!("{exchange} is larger, and IKE fragmentation is not on at both ends: are IP fragments lost on the way?")
    });
    if exchange == ExchangeType::IKE_AUTH {
        details.push(
            "the peer may drop it without an answer when it knows no such identity; its log says"
                .to_owned(),
        );
    }
    let summary = format!("{remote} does not answer {exchange}");
    refusal(
        RefusalKind::NoAnswer,
        RefusedBy::Nobody,
        Role::Initiator,
        config,
        summary,
        details,
        None,
    )
}

/// The peer began but never authenticated.
pub(crate) fn auth_never_came(
    config: &ConnectionConfig,
    common: &Common,
    waited: Duration,
) -> Arc<Refusal> {
    let details = vec![
        format!("{} sent IKE_SA_INIT, got our answer sent from {}, and nothing usable followed", common.remote, common.local),
        "do firewalls let UDP 500 and 4500 through, both ways? does the peer's log say it refused our answer?".to_owned(),
    ];
    let summary = format!(
        "{} never sent IKE_AUTH within {} s",
        common.remote,
        waited.as_secs()
    );
    refusal(
        RefusalKind::NoAnswer,
        RefusedBy::Nobody,
        Role::Responder,
        config,
        summary,
        details,
        None,
    )
}

/// A first request that no connection covers.
pub(crate) fn no_connection(cx: &Cx<'_>, datagram: &Datagram<'_>) -> Arc<Refusal> {
    let (local, remote) = (datagram.local.ip(), datagram.remote);
    let mut details = Vec::new();
    for config in cx.connections.iter().take(8) {
        let ours = config
            .local_address
            .map_or("any address".to_owned(), |address| address.to_string());
        let theirs = match config.remote_address {
            RemoteAddress::Address(address) => address.to_string(),
            RemoteAddress::Any => "any address".to_owned(),
        };
        details.push(format!(
            "connection `{}` is for {theirs} to {ours}",
            config.name
        ));
    }
    Arc::new(Refusal {
        kind: RefusalKind::Notify(NotifyType::NO_PROPOSAL_CHOSEN),
        by: RefusedBy::Us,
        role: Role::Responder,
        connection: None,
        summary: format!("{remote} calls {local}, and no connection is for these addresses"),
        details,
        fix: None,
    })
}

/// We refuse the peer's selectors.
pub(crate) fn selector_mismatch(
    config: &ConnectionConfig,
    common: &Common,
    mismatch: &TsMismatch,
) -> Arc<Refusal> {
    let mut fix = mismatch.suggestions().first().map(|suggestion| {
        let (side, _) = suggestion
            .setting
            .split_once('.')
            .unwrap_or((suggestion.setting, ""));
        Fix::new(
            &config.origin,
            suggestion.setting,
            format!("{side}.{suggestion} would meet what the peer sent, or change the peer"),
        )
    });
    if config.mode == Mode::Transport {
        let hint = "in transport mode both ends must mean the two hosts by their selectors; \
                    mode = \"tunnel\" on both ends protects networks";
        fix = Some(Fix::new(&config.origin, "mode", hint));
    }
    let summary = format!(
        "the traffic selectors of {} and ours have nothing in common",
        common.remote
    );
    refusal(
        RefusalKind::TrafficSelectors,
        RefusedBy::Us,
        common.role,
        config,
        summary,
        lines(mismatch),
        fix,
    )
}

/// The peer's selectors are not within what we offered.
pub(crate) fn widened(
    config: &ConnectionConfig,
    common: &Common,
    answer: &ChildOffer,
) -> Arc<Refusal> {
    let ours = super::child::sides(config, common);
    let details = vec![
        format!(
            "we offered local {}, remote {}",
            format_list(&ours.local),
            format_list(&ours.remote)
        ),
        format!(
            "the peer chose local {}, remote {}",
            format_list(&answer.ts_i),
            format_list(&answer.ts_r)
        ),
    ];
    let fix = Fix::new(
        &config.origin,
        "remote.subnets",
        "compare the subnets with the peer's; a responder may only narrow them",
    );
    let summary = format!(
        "{} chose traffic selectors outside what we offered",
        common.remote
    );
    refusal(
        RefusalKind::TrafficSelectors,
        RefusedBy::Us,
        common.role,
        config,
        summary,
        details,
        Some(fix),
    )
}

/// The peer asks for several pairs of selectors at once where one is wanted.
pub(crate) fn single_pairs(
    config: &ConnectionConfig,
    common: &Common,
    theirs: &Sides,
) -> Arc<Refusal> {
    let hint = "leave it out: it is for peers that take one pair of subnets in each child SA";
    refusal(
        RefusalKind::TrafficSelectors,
        RefusedBy::Us,
        Role::Responder,
        config,
        format!(
            "{} asks for several pairs of subnets at once",
            common.remote
        ),
        vec![
            format!("the peer sent for our side {}", format_list(&theirs.local)),
            format!("the peer sent for its side {}", format_list(&theirs.remote)),
            "SINGLE_PAIR_REQUIRED tells it to ask for one pair at a time".to_owned(),
        ],
        Some(Fix::new(&config.origin, "single_pairs", hint)),
    )
}

/// The peer authenticated us but refused the child SA: `wanted` are the selectors that it was asked for.
pub(crate) fn child_refused(
    config: &ConnectionConfig,
    peer: SocketAddr,
    kind: NotifyType,
    groups: Groups,
    wanted: &Sides,
) -> Arc<Refusal> {
    let (refusal_kind, summary, details, fix) = match kind {
        NotifyType::NO_PROPOSAL_CHOSEN => {
            let mut details = lines(Offer {
                proposals: &config.esp,
                groups,
            });
            if groups == Groups::Negotiated {
                details.extend(wants_more(&config.esp));
            }
            details.push("the peer does not say what it would accept; some peers answer so to selectors, or to tunnel or transport mode, as well".into());
            let fix = Fix::new(
                &config.origin,
                "esp",
                "use the peer's ESP (phase 2) encryption, integrity and PFS group",
            );
            (
                RefusalKind::ChildProposal,
                format!("{peer} accepts none of our ESP proposals"),
                details,
                Some(fix),
            )
        }
        NotifyType::TS_UNACCEPTABLE | NotifyType::SINGLE_PAIR_REQUIRED => {
            let details = vec![
                format!("we offered local {}", format_list(&wanted.local)),
                format!("we offered remote {}", format_list(&wanted.remote)),
                "the peer does not say what it would accept: its remote must be our local and the other way round".into(),
            ];
            let hint =
                "use the subnets the peer has configured; local and remote are exchanged there";
            let fix = Fix::new(&config.origin, "remote.subnets", hint);
            (
                RefusalKind::TrafficSelectors,
                format!("{peer} accepts none of our traffic selectors"),
                details,
                Some(fix),
            )
        }
        NotifyType::INTERNAL_ADDRESS_FAILURE | NotifyType::FAILED_CP_REQUIRED => {
            let (details, hint) = if kind == NotifyType::FAILED_CP_REQUIRED {
                let said = "the peer wants us to ask it for an address in its network";
                (said, "set vips = [\"0.0.0.0\"] and leave local.subnets out")
            } else {
                let said =
                    "the peer has no address for us: its pool is used up, or of another family";
                (
                    said,
                    "ask for an address of the family that the peer's pool has",
                )
            };
            (
                RefusalKind::Notify(kind),
                format!("{peer} refused the child SA with {kind}"),
                vec![details.to_owned()],
                Some(Fix::new(&config.origin, "vips", hint)),
            )
        }
        _ => {
            let details = vec!["the peer's log says more".to_owned()];
            (
                RefusalKind::Notify(kind),
                format!("{peer} refused the child SA with {kind}"),
                details,
                None,
            )
        }
    };
    refusal(
        refusal_kind,
        RefusedBy::Peer,
        Role::Initiator,
        config,
        summary,
        details,
        fix,
    )
}

/// Something that no setting cures.
pub(crate) fn protocol(config: &ConnectionConfig, common: &Common, what: &str) -> Arc<Refusal> {
    let summary = format!("the exchange with {} went wrong: {what}", common.remote);
    refusal(
        RefusalKind::Protocol,
        RefusedBy::Us,
        common.role,
        config,
        summary,
        Vec::new(),
        None,
    )
}
