//! Why two sides have no proposal in common, and what would change that.

use std::fmt;

use super::transform::Supported;
use super::{DhGroup, Groups, Proposal, Protocol, Transform, TransformType, WireProposal};

/// One transform type of two proposals side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeComparison {
    /// The type.
    pub kind: TransformType,
    /// What we accept; empty where we want nothing of this type.
    pub ours: Vec<Transform>,
    /// What the peer sent.
    pub theirs: Vec<Transform>,
    /// Whether they meet.
    pub met: bool,
    /// What is chosen, unless nothing of the type is needed.
    pub chosen: Option<Transform>,
}

/// One of our proposals and one of the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Index into [`Mismatch::local`].
    pub local: usize,
    /// Index into [`Mismatch::remote`].
    pub remote: usize,
    /// Type by type.
    pub types: Vec<TypeComparison>,
}

impl Comparison {
    fn unmet(&self) -> usize {
        self.types
            .iter()
            .filter(|comparison| !comparison.met)
            .count()
    }
}

/// No proposal in common: everything that was compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// IKE or ESP.
    pub protocol: Protocol,
    /// Whether groups were negotiated.
    pub groups: Groups,
    /// What we accept, AEADs and other ciphers apart.
    pub local: Vec<Proposal>,
    /// What the peer sent.
    pub remote: Vec<WireProposal>,
    /// Each of ours with each of the peer's of the same protocol.
    pub comparisons: Vec<Comparison>,
}

impl Mismatch {
    /// The pair that came nearest to meeting.
    pub fn closest(&self) -> Option<&Comparison> {
        self.comparisons
            .iter()
            .min_by_key(|comparison| comparison.unmet())
    }

    /// A value for our setting (`ike` or `esp`) that meets what the peer sent, as near to our
    /// own as can be; `None` if the peer sent nothing that we can do.
    pub fn suggestion(&self) -> Option<Suggestion> {
        let mut candidates: Vec<&Comparison> = self.comparisons.iter().collect();
        candidates.sort_by_key(|comparison| comparison.unmet());
        let suggestions = || {
            candidates.iter().filter_map(|comparison| {
                let local = self.local.get(comparison.local)?;
                self.adapt(local, self.remote.get(comparison.remote)?)
            })
        };
        let secure = suggestions().find(|suggestion| !suggestion.needs_insecure());
        secure.or_else(|| suggestions().next())
    }

    fn adapt(&self, local: &Proposal, remote: &WireProposal) -> Option<Suggestion> {
        let known_types = |transform: &Transform| match transform.kind {
            TransformType::Other(_) => false,
            TransformType::Prf => self.protocol == Protocol::Ike,
            TransformType::SequenceNumbers => self.protocol == Protocol::Esp,
            _ => true,
        };
        if !remote.transforms.iter().all(known_types) {
            return None;
        }
        let ours = local.transforms(Groups::Negotiated);
        let is_secure = |supported: &Supported| match supported {
            Supported::Group(group) | Supported::Additional(_, group) => !group.is_insecure(),
            Supported::Cipher(cipher) => !cipher.is_insecure(),
            _ => true,
        };
        // One of ours that the peer sent, or else the first of the peer's that we can do.
        let mut used: Vec<DhGroup> = Vec::new();
        let pick = |kind: TransformType, used: &[DhGroup]| {
            let unused = |transform: &Transform| {
                !kind.is_key_exchange() || !used.iter().any(|group| group.id() == transform.id)
            };
            let theirs: Vec<Transform> = remote.of_type(kind).filter(unused).collect();
            let kept = ours
                .iter()
                .find(|own| theirs.contains(own))
                .and_then(|own| own.known());
            let fits = |supported: &Supported| {
                !matches!(supported, Supported::Cipher(cipher)
                    if self.protocol == Protocol::Ike && !cipher.fits_ike())
            };
            let possible = || {
                let known = theirs.iter().filter_map(|transform| transform.known());
                known.filter(fits)
            };
            kept.or_else(|| possible().find(is_secure))
                .or_else(|| possible().next())
        };

        let Some(Supported::Cipher(cipher)) = pick(TransformType::Encryption, &[]) else {
            return None;
        };
        let mut proposal = Proposal {
            protocol: self.protocol,
            ciphers: vec![cipher],
            integrities: Vec::new(),
            prfs: Vec::new(),
            groups: Vec::new(),
            additional: Default::default(),
            esn: Vec::new(),
        };
        if !cipher.is_aead() {
            match pick(TransformType::Integrity, &[]) {
                Some(Supported::Integrity(integrity)) => proposal.integrities.push(integrity),
                _ => return None,
            }
        }
        if self.protocol == Protocol::Ike {
            match pick(TransformType::Prf, &[]) {
                Some(Supported::Prf(prf)) => proposal.prfs.push(prf),
                _ => return None,
            }
        }
        match pick(TransformType::KeyExchange, &[]) {
            // Not negotiated yet: what is configured for later stays.
            _ if self.groups == Groups::Ignored => {
                proposal.groups.clone_from(&local.groups);
                proposal.additional.clone_from(&local.additional);
            }
            Some(Supported::Group(group)) => proposal.groups.push(group),
            _ if self.protocol == Protocol::Esp
                && remote
                    .of_type(TransformType::KeyExchange)
                    .all(|group| group.is_none()) => {}
            _ => return None,
        }
        if self.groups == Groups::Negotiated {
            used.extend(&proposal.groups);
            for (number, choices) in (1..).zip(&mut proposal.additional) {
                let kind = TransformType::Additional(number);
                let theirs: Vec<Transform> = remote.of_type(kind).collect();
                match pick(kind, &used) {
                    _ if theirs.is_empty() => {}
                    Some(Supported::Additional(_, group)) => {
                        used.push(group);
                        choices.push(Some(group));
                    }
                    _ if theirs.iter().any(Transform::is_none) => {}
                    _ => return None,
                }
            }
        }
        if self.protocol == Protocol::Esp {
            match pick(TransformType::SequenceNumbers, &[]) {
                Some(Supported::Esn(esn)) => proposal.esn.push(esn),
                _ => proposal.esn.push(super::Esn::No),
            }
        }
        Some(Suggestion { proposal })
    }
}

/// A proposal that would be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// The proposal, one transform of each type.
    pub proposal: Proposal,
}

impl Suggestion {
    /// Whether it can only be configured together with `insecure = true`.
    pub fn needs_insecure(&self) -> bool {
        self.proposal.is_insecure()
    }
}

/// Its keywords.
impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.proposal.fmt(f)
    }
}

fn list(transforms: &[Transform], empty: &str) -> String {
    if transforms.is_empty() {
        return empty.to_owned();
    }
    let words: Vec<String> = transforms.iter().map(Transform::to_string).collect();
    words.join(", ")
}

/// The closest pair as a table, then everything the peer sent if that was more.
impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol;
        let Some(closest) = self.closest() else {
            let other: Vec<String> = self
                .remote
                .iter()
                .map(|proposal| proposal.protocol.to_string())
                .collect();
            write!(f, "the peer sent no {protocol} proposal")?;
            if !other.is_empty() {
                write!(f, ", only {}", other.join(", "))?;
            }
            return Ok(());
        };

        write!(f, "no {protocol} proposal in common")?;
        if let [_, _, ..] = *self.remote {
            write!(
                f,
                "; proposal {} of the peer's {} comes closest",
                closest.remote + 1,
                self.remote.len()
            )?;
        }
        let mut rows = vec![[
            String::new(),
            "we accept".into(),
            "the peer sent".into(),
            String::new(),
        ]];
        for comparison in &closest.types {
            if comparison.ours.is_empty() && comparison.theirs.is_empty() {
                continue;
            }
            let verdict = if comparison.met { "ok" } else { "no match" };
            rows.push([
                comparison.kind.to_string(),
                list(&comparison.ours, "none"),
                list(&comparison.theirs, "none"),
                verdict.into(),
            ]);
        }
        write_table(f, &rows)?;

        if self.local.len() > 1 {
            for proposal in &self.local {
                write!(f, "\nwe accept      {proposal}")?;
            }
        }
        if self.remote.len() > 1 {
            for proposal in &self.remote {
                write!(f, "\nthe peer sent  {proposal}")?;
            }
        }
        Ok(())
    }
}

/// Writes rows in columns, each row on a line of its own after a line break.
pub(crate) fn write_table(f: &mut fmt::Formatter<'_>, rows: &[[String; 4]]) -> fmt::Result {
    let mut widths = [0; 4];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::from("\n ");
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        f.write_str(line.trim_end())?;
    }
    Ok(())
}

/// What we offered, for when the peer refuses it without saying what it would take.
pub struct Offer<'a> {
    /// Our proposals.
    pub proposals: &'a [Proposal],
    /// Whether groups were offered.
    pub groups: Groups,
}

/// One line for each proposal and transform type.
impl fmt::Display for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("we offered")?;
        let parts: Vec<Proposal> = self.proposals.iter().flat_map(Proposal::split).collect();
        for (index, part) in parts.iter().enumerate() {
            let transforms = part.transforms(self.groups);
            let mut label = if parts.len() > 1 {
                format!("{}.", index + 1)
            } else {
                String::new()
            };
            let mut previous = None;
            for kind in transforms.iter().map(|transform| transform.kind) {
                if previous.replace(kind) == Some(kind) {
                    continue;
                }
                let of_kind: Vec<Transform> = transforms
                    .iter()
                    .copied()
                    .filter(|it| it.kind == kind)
                    .collect();
                let name = kind.to_string();
                write!(f, "\n  {label:<3}{name:<12}{}", list(&of_kind, ""))?;
                label.clear();
            }
        }
        Ok(())
    }
}
