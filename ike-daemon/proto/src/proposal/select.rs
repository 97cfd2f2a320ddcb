//! The choice between what two sides offer (RFC 7296 sections 2.7, 3.3 and 3.3.6).

use std::fmt;

use espada_common::sa::{Cipher, EspSuite, Integrity};

use super::explain::{Comparison, Mismatch, TypeComparison};
use super::transform::Supported;
use super::{
    Additional, DhGroup, Esn, Prf, Proposal, Protocol, Transform, TransformType, WireProposal,
};

/// Whether an exchange negotiates a Diffie-Hellman group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Groups {
    /// IKE_SA_INIT and CREATE_CHILD_SA.
    Negotiated,
    /// IKE_AUTH, whose SA payload "cannot contain Transform Type 4 … with any value other than
    /// NONE" (RFC 7296 section 1.2): the first child SA draws on the IKE SA's own exchange.
    Ignored,
}

/// Algorithms of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IkeSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Integrity, `None` exactly for AEAD ciphers.
    pub integrity: Option<Integrity>,
    /// PRF.
    pub prf: Prf,
    /// Group of the key exchange.
    pub group: DhGroup,
    /// Key exchanges after that one.
    pub additional: Additional,
}

/// Proposal keywords: `aes256-sha256-modp2048`; a PRF that follows from the integrity is left out.
impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{integrity}")?;
        }
        if self.integrity.map(Prf::of_integrity) != Some(self.prf) {
            write!(f, "-{}", self.prf)?;
        }
        write!(f, "-{}{}", self.group, self.additional)
    }
}

/// Algorithms of a child SA, and the group of its own key exchange if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EspChoice {
    /// What the data plane does.
    pub suite: EspSuite,
    /// Group for perfect forward secrecy.
    pub group: Option<DhGroup>,
    /// Key exchanges after that one.
    pub additional: Additional,
}

impl fmt::Display for EspChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.suite)?;
        match self.group {
            Some(group) => write!(f, "-{group}{}", self.additional),
            None => Ok(()),
        }
    }
}

/// What was chosen from a peer's proposals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection<S> {
    /// The algorithms.
    pub suite: S,
    /// Which of the peer's proposals, as an index into what was given.
    pub index: usize,
    /// Number of that proposal, which the answer repeats.
    pub number: u8,
    /// Transforms of the answer: one of each type the peer sent.
    pub transforms: Vec<Transform>,
}

/// Why an initiator cannot take its responder's answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// An answer holds exactly one transform of each type (RFC 7296 section 3.3).
    #[error("the peer's choice {choice} has several transforms of the type {kind}, one is allowed")]
    Several {
        /// The type.
        kind: TransformType,
        /// The peer's choice.
        choice: WireProposal,
    },
    /// It is none of what we offered.
    #[error("the peer chose what was not offered: {0}")]
    NotOffered(Box<Mismatch>),
}

/// Responder's choice for an IKE SA: our proposals in order of preference, then the peer's.
///
/// `offered_group` is the group of the peer's KE payload: if acceptable it wins over our order of
/// groups, since any other would cost a round trip with INVALID_KE_PAYLOAD.
pub fn select_ike(
    local: &[Proposal],
    remote: &[WireProposal],
    offered_group: Option<DhGroup>,
) -> Result<Selection<IkeSuite>, Mismatch> {
    let options = Options {
        protocol: Protocol::Ike,
        groups: Groups::Negotiated,
        offered_group,
    };
    select(local, remote, options, ike_suite)
}

/// Responder's choice for a child SA.
pub fn select_esp(
    local: &[Proposal],
    remote: &[WireProposal],
    groups: Groups,
    offered_group: Option<DhGroup>,
) -> Result<Selection<EspChoice>, Mismatch> {
    let options = Options {
        protocol: Protocol::Esp,
        groups,
        offered_group,
    };
    select(local, remote, options, esp_choice)
}

/// Initiator's check of the responder's choice for an IKE SA.
pub fn verify_ike(local: &[Proposal], chosen: &WireProposal) -> Result<IkeSuite, VerifyError> {
    let options = Options {
        protocol: Protocol::Ike,
        groups: Groups::Negotiated,
        offered_group: None,
    };
    verify(local, chosen, options, ike_suite)
}

/// Initiator's check of the responder's choice for a child SA.
pub fn verify_esp(
    local: &[Proposal],
    chosen: &WireProposal,
    groups: Groups,
) -> Result<EspChoice, VerifyError> {
    let options = Options {
        protocol: Protocol::Esp,
        groups,
        offered_group: None,
    };
    verify(local, chosen, options, esp_choice)
}

#[derive(Clone, Copy)]
struct Options {
    protocol: Protocol,
    groups: Groups,
    offered_group: Option<DhGroup>,
}

fn select<S>(
    local: &[Proposal],
    remote: &[WireProposal],
    options: Options,
    build: fn(&[Transform]) -> Option<S>,
) -> Result<Selection<S>, Mismatch> {
    let parts: Vec<Proposal> = local.iter().flat_map(Proposal::split).collect();
    let mut comparisons = Vec::new();
    for (local_index, part) in parts.iter().enumerate() {
        for (index, proposal) in remote.iter().enumerate() {
            if proposal.protocol != options.protocol {
                continue;
            }
            let types = compare(part, proposal, options);
            if let Some(transforms) = answer(&types)
                && let Some(suite) = build(&transforms)
            {
                return Ok(Selection {
                    suite,
                    index,
                    number: proposal.number,
                    transforms,
                });
            }
            comparisons.push(Comparison {
                local: local_index,
                remote: index,
                types,
            });
        }
    }
    Err(Mismatch {
        protocol: options.protocol,
        groups: options.groups,
        local: parts,
        remote: remote.to_vec(),
        comparisons,
    })
}

fn verify<S>(
    local: &[Proposal],
    chosen: &WireProposal,
    options: Options,
    build: fn(&[Transform]) -> Option<S>,
) -> Result<S, VerifyError> {
    for transform in &chosen.transforms {
        let kind = transform.kind;
        if chosen.of_type(kind).count() > 1 {
            return Err(VerifyError::Several {
                kind,
                choice: chosen.clone(),
            });
        }
    }
    let remote = std::slice::from_ref(chosen);
    let selection = select(local, remote, options, build)
        .map_err(|mismatch| VerifyError::NotOffered(Box::new(mismatch)))?;
    // A responder may forgive more than an initiator: what we did not offer must not come back.
    let extra = chosen
        .transforms
        .iter()
        .find(|transform| !transform.is_none() && !selection.transforms.contains(transform));
    let Some(extra) = extra else {
        return Ok(selection.suite);
    };
    let types = vec![TypeComparison {
        kind: extra.kind,
        ours: Vec::new(),
        theirs: vec![*extra],
        met: false,
        chosen: None,
    }];
    Err(VerifyError::NotOffered(Box::new(Mismatch {
        protocol: options.protocol,
        groups: options.groups,
        local: local.iter().flat_map(Proposal::split).collect(),
        remote: remote.to_vec(),
        comparisons: vec![Comparison {
            local: 0,
            remote: 0,
            types,
        }],
    })))
}

/// The transforms of an answer, if every type is met.
fn answer(types: &[TypeComparison]) -> Option<Vec<Transform>> {
    types.iter().all(|comparison| comparison.met).then(|| {
        types
            .iter()
            .filter_map(|comparison| comparison.chosen)
            .collect()
    })
}

/// Sets one of our proposals beside one of the peer's, type by type.
fn compare(local: &Proposal, remote: &WireProposal, options: Options) -> Vec<TypeComparison> {
    let expected = match options.protocol {
        Protocol::Ike => [
            TransformType::Encryption,
            TransformType::Integrity,
            TransformType::Prf,
            TransformType::KeyExchange,
        ],
        _ => [
            TransformType::Encryption,
            TransformType::Integrity,
            TransformType::KeyExchange,
            TransformType::SequenceNumbers,
        ],
    };
    let mut types: Vec<TypeComparison> = Vec::new();
    for kind in expected {
        types.push(compare_type(kind, local, remote, options, &types));
    }
    for (number, ours) in (1..).zip(&local.additional) {
        let kind = TransformType::Additional(number);
        if !ours.is_empty() || remote.of_type(kind).next().is_some() {
            types.push(compare_type(kind, local, remote, options, &types));
        }
    }
    for transform in &remote.transforms {
        let kind = transform.kind;
        // "If the responder receives a proposal that contains a Transform Type it does not
        // understand, … it MUST consider this proposal unacceptable" (section 3.3.6).
        if !types.iter().any(|comparison| comparison.kind == kind) {
            let theirs = remote.of_type(kind).collect();
            types.push(TypeComparison {
                kind,
                ours: Vec::new(),
                theirs,
                met: false,
                chosen: None,
            });
        }
    }
    types
}

fn compare_type(
    kind: TransformType,
    local: &Proposal,
    remote: &WireProposal,
    options: Options,
    before: &[TypeComparison],
) -> TypeComparison {
    let ours: Vec<Transform> = local
        .transforms(options.groups)
        .into_iter()
        .filter(|transform| transform.kind == kind)
        .collect();
    let theirs: Vec<Transform> = remote.of_type(kind).collect();
    let none = theirs.iter().copied().find(Transform::is_none);
    let common = || {
        ours.iter()
            .copied()
            .find(|transform| theirs.contains(transform))
    };

    let (met, chosen) = match kind {
        TransformType::KeyExchange | TransformType::Additional(_)
            if options.groups == Groups::Ignored =>
        {
            (true, none)
        }
        TransformType::Additional(_) => {
            // No method is used twice (RFC 9370 section 2.2.2).
            let is_new = |transform: &Transform| {
                !before.iter().any(|earlier| {
                    let chosen = earlier
                        .chosen
                        .filter(|chosen| chosen.kind.is_key_exchange());
                    chosen.is_some_and(|chosen| chosen.id == transform.id)
                })
            };
            let offered =
                |own: &Transform| theirs.contains(own) || (own.is_none() && theirs.is_empty());
            let leave_out = ours.is_empty().then_some(none).flatten();
            let chosen = ours
                .iter()
                .copied()
                .find(|own| offered(own) && (own.is_none() || is_new(own)))
                .or(leave_out);
            (chosen.is_some(), chosen.filter(|_| !theirs.is_empty()))
        }
        // A group we do not look at, and an integrity algorithm beside an AEAD (which a peer
        // should not have sent, but means no harm), are left out of the answer.
        TransformType::Integrity if ours.is_empty() => (true, none),
        TransformType::KeyExchange if ours.is_empty() => {
            (theirs.is_empty() || none.is_some(), none)
        }
        TransformType::KeyExchange => {
            let offered = options.offered_group.map(Transform::from);
            let offered = offered.filter(|group| ours.contains(group) && theirs.contains(group));
            let chosen = offered.or_else(common);
            (chosen.is_some(), chosen)
        }
        // Peers that know nothing of ESN send none; that is 32 bits.
        TransformType::SequenceNumbers if theirs.is_empty() => {
            (ours.contains(&Esn::No.into()), None)
        }
        _ => {
            let chosen = common();
            (chosen.is_some(), chosen)
        }
    };
    TypeComparison {
        kind,
        ours,
        theirs,
        met,
        chosen,
    }
}

fn ike_suite(transforms: &[Transform]) -> Option<IkeSuite> {
    let parts = Parts::of(transforms)?;
    Some(IkeSuite {
        cipher: parts.cipher?,
        integrity: parts.integrity,
        prf: parts.prf?,
        group: parts.group?,
        additional: parts.additional,
    })
}

fn esp_choice(transforms: &[Transform]) -> Option<EspChoice> {
    let parts = Parts::of(transforms)?;
    Some(EspChoice {
        suite: EspSuite {
            cipher: parts.cipher?,
            integrity: parts.integrity,
            esn: parts.esn == Some(Esn::Yes),
        },
        group: parts.group,
        additional: parts.additional,
    })
}

#[derive(Default)]
struct Parts {
    cipher: Option<Cipher>,
    integrity: Option<Integrity>,
    prf: Option<Prf>,
    group: Option<DhGroup>,
    additional: Additional,
    esn: Option<Esn>,
}

impl Parts {
    fn of(transforms: &[Transform]) -> Option<Self> {
        let mut parts = Self::default();
        for transform in transforms.iter().filter(|transform| !transform.is_none()) {
            match transform.known()? {
                Supported::Cipher(cipher) => parts.cipher = Some(cipher),
                Supported::Integrity(integrity) => parts.integrity = Some(integrity),
                Supported::Prf(prf) => parts.prf = Some(prf),
                Supported::Group(group) => parts.group = Some(group),
                Supported::Additional(number, group) => parts.additional.set(number, group),
                Supported::Esn(esn) => parts.esn = Some(esn),
            }
        }
        Some(parts)
    }
}
