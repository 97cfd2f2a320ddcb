//! Exchanges of the two ends that cross (RFC 7296 sections 2.8.1, 2.8.2 and 2.25).
//!
//! When both ends rekey the same SA at once, each answers the other as usual and notes that there is a
//! rival. Once an end has the answer to its own request it knows all four nonces: the SA that was made
//! with the lowest of them is redundant, and who asked for it deletes it. Who asked for the other one
//! deletes the SA that both replace.
//!
//! Of two successors of an IKE SA neither has the child SAs until it is known which prevails. The peer
//! may know before us and use its own at once: what it asks there is left unanswered until we know too,
//! as if it had been lost.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, Share};

use super::child::{Child, ChildOffer};
use super::context::{Common, Cx, Effect, Outbox};
use super::established::{Established, Pending, Task};
use super::proof::PeerProof;
use super::protect::Protector;
use super::rekey::{ChildRequest, Purpose};
use super::{IkeSa, Phase};
use crate::crypto::Random;
use crate::crypto::keys::IkeKeys;
use crate::identity::Identity;
use crate::notice::{DownReason, Notice};
use crate::proposal::IkeSuite;
use crate::status::Role;
use crate::wire::{NotifyType, Payload};

/// How long a redundant SA waits for the peer to delete it, as the one who asked for it must.
const REDUNDANT: Duration = Duration::from_secs(60);
/// How long an IKE SA that the peer set up beside one of ours waits for it to delete it.
const DUPLICATE: Duration = Duration::from_secs(10);
/// How long a successor of an IKE SA waits to be told whether it prevails.
const UNDECIDED: Duration = Duration::from_secs(300);
/// How long a child SA that is replaced and deleted goes on receiving: what the peer sent with it
/// before may arrive after the messages that delete it.
const OVERTAKEN: Duration = Duration::from_secs(3);
/// A peer that refuses for the moment for so long is out of step with us (section 2.25).
const OUT_OF_STEP: Duration = Duration::from_secs(300);
/// Refusals further apart than this have nothing to do with each other.
const UNRELATED: Duration = Duration::from_secs(60);

/// What the peer made of the SA that our own request under way is to replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rival<T> {
    /// Our name of it.
    pub made: T,
    /// The lower one of its two nonces.
    pub nonce: Vec<u8>,
}

impl<T> Rival<T> {
    pub fn new(made: T, nonces: [&[u8]; 2]) -> Self {
        Self {
            made,
            nonce: lower(nonces).to_vec(),
        }
    }

    /// Whether it prevails over an SA made with these nonces.
    pub fn prevails(&self, nonces: [&[u8]; 2]) -> bool {
        lower(nonces) <= &self.nonce[..]
    }
}

/// "'Lowest' means an octet-by-octet comparison" (section 2.8.1).
fn lower([one, other]: [&[u8]; 2]) -> &[u8] {
    one.min(other)
}

/// A child SA that only receives what was under way when it was deleted.
pub(crate) struct Retired {
    id: ChildSaId,
    until: Instant,
}

/// What an IKE SA leaves to its successor.
pub(crate) struct Estate {
    pub children: Vec<Child>,
    pub retired: Vec<Retired>,
    pub queue: VecDeque<Task>,
    pub delayed: Vec<(Instant, Task)>,
    /// The peer's further addresses.
    pub others: Vec<IpAddr>,
}

/// When something that failed for now is tried again: in two to four seconds. What made the peer
/// refuse takes it a few messages, and an SA may be near its end.
pub(crate) fn later(cx: &mut Cx<'_>) -> Instant {
    let mut octets = [0; 2];
    cx.rng.fill(&mut octets);
    cx.now
        + Duration::from_secs(2)
        + Duration::from_millis(u64::from(u16::from_be_bytes(octets)) * 2 / 66)
}

impl Established {
    /// Whether it is the one that is used: neither going nor replaced.
    pub fn is_current(&self) -> bool {
        !self.deleting && !self.superseded
    }

    /// Whether a request of ours about a child SA is under way: the child SAs cannot go to a successor
    /// until it is answered.
    pub(super) fn is_at_a_child(&self) -> bool {
        matches!(
            self.pending(),
            Some(Pending::Child(_) | Pending::DeleteChild { .. })
        )
    }

    /// Our request for a child SA that is under way.
    fn child_request(&mut self) -> Option<&mut ChildRequest> {
        match self
            .outstanding
            .as_mut()
            .map(|request| &mut request.pending)
        {
            Some(Pending::Child(request)) => Some(request),
            _ => None,
        }
    }

    /// The peer has made a child SA by the request that we answer, in place of `old` or beside what
    /// there is: notes it if our request under way asks for the same, also when it replaces one that
    /// was noted before.
    pub(super) fn note_rival(
        &mut self,
        made: ChildSaId,
        old: Option<ChildSaId>,
        nonces: [&[u8]; 2],
    ) {
        let Some(request) = self.child_request() else {
            return;
        };
        match &mut request.rival {
            Some(rival) if Some(rival.made) == old => rival.made = made,
            _ if matches!(request.purpose, Purpose::Processor(_)) => {}
            rival if request.purpose.old() == old => *rival = Some(Rival::new(made, nonces)),
            _ => {}
        }
    }

    /// Whether we delete this child SA, or are about to.
    pub(super) fn is_closing(&self, id: ChildSaId) -> bool {
        let waits =
            |task: &Task| matches!(task, Task::DeleteChild { id: other, .. } if *other == id);
        self.queue.iter().any(waits)
            || matches!(self.pending(), Some(Pending::DeleteChild { id: other }) if *other == id)
    }

    /// The child SA that the peer made of what `request` of ours is for, if it is still there. Where
    /// both ends made a new one, that has the same selectors.
    pub(super) fn rival_of<'a>(
        &self,
        request: &'a ChildRequest,
        answer: &ChildOffer,
    ) -> Option<&'a Rival<ChildSaId>> {
        let rival = request.rival.as_ref()?;
        let child = self.children.iter().find(|child| child.id == rival.made)?;
        let same = child.local_ts == answer.ts_i && child.remote_ts == answer.ts_r;
        let alone = child.share == Share::Whole;
        (request.purpose.old().is_some() || (same && alone)).then_some(rival)
    }

    /// Our own child SA prevailed: the peer deletes this one.
    pub(super) fn await_delete(&mut self, cx: &Cx<'_>, id: ChildSaId) {
        if let Some(child) = self.children.iter_mut().find(|child| child.id == id) {
            child.replaced = true;
            child.rekey_at = None;
            child.expires = child.expires.min(cx.now + REDUNDANT);
        }
    }

    /// A child SA that another replaced is deleted: it sends no longer, and receives what is under way.
    pub(super) fn retire_child(&mut self, cx: &mut Cx<'_>, id: ChildSaId) {
        let Some(at) = self.children.iter().position(|child| child.id == id) else {
            return;
        };
        self.children.remove(at);
        cx.out.retire(id);
        cx.out.notice(Notice::ChildDown {
            connection: self.config.name.clone(),
            id,
            reason: DownReason::Rekeyed,
        });
        self.retired.push(Retired {
            id,
            until: cx.now + OVERTAKEN,
        });
    }

    /// When the next retired child SA goes.
    pub(super) fn retirement(&self) -> Option<Instant> {
        self.retired.iter().map(|retired| retired.until).min()
    }

    /// Removes retired child SAs whose time is over, or all.
    pub(super) fn remove_retired(&mut self, cx: &mut Cx<'_>, all: bool) {
        let now = cx.now;
        for gone in self
            .retired
            .extract_if(.., |retired| all || retired.until <= now)
        {
            cx.out.remove(gone.id);
        }
    }

    /// What a task that failed for now waits for.
    pub(super) fn try_later(&mut self, cx: &mut Cx<'_>, task: Task) {
        if !self.delayed.iter().any(|(_, other)| *other == task) {
            let at = later(cx);
            self.delayed.push((at, task));
        }
    }

    /// Queues what has waited long enough.
    pub(super) fn resume_delayed(&mut self, now: Instant) {
        let due: Vec<Task> = self
            .delayed
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, task)| task)
            .collect();
        for task in due {
            if !self.queue.contains(&task) {
                self.queue.push_back(task);
            }
        }
    }

    /// The peer's answer to a CREATE_CHILD_SA request of ours, an error or none: "if a peer continues
    /// to receive TEMPORARY_FAILURE on the same IKE SA after several minutes, it SHOULD conclude that
    /// the IKE SA is out of sync" (section 2.25).
    pub(super) fn count_refusal(&mut self, now: Instant, error: Option<NotifyType>) {
        self.refusing = match (error, self.refusing) {
            (Some(NotifyType::TEMPORARY_FAILURE), Some((since, last)))
                if now.saturating_duration_since(last) < UNRELATED =>
            {
                Some((since, now))
            }
            (Some(NotifyType::TEMPORARY_FAILURE), _) => Some((now, now)),
            _ => None,
        };
    }

    pub(super) fn is_out_of_step(&self) -> bool {
        self.refusing
            .is_some_and(|(since, last)| last.saturating_duration_since(since) >= OUT_OF_STEP)
    }

    /// Whether a delete may be about a child SA that our request under way has just made: the answer
    /// is still to come.
    pub(super) fn may_be_early(&self, payloads: &[Payload<'_>]) -> bool {
        if !matches!(self.pending(), Some(Pending::Child(_))) {
            return false;
        }
        let unknown = |spi: &u32| !self.children.iter().any(|child| child.spi_out == *spi);
        payloads.iter().any(|payload| match payload {
            Payload::Delete(delete) => delete.spis.iter().any(unknown),
            _ => false,
        })
    }

    /// An IKE SA with the same two ends and its own keys.
    pub(super) fn successor(
        &self,
        cx: &mut Cx<'_>,
        new: &Common,
        suite: IkeSuite,
        keys: IkeKeys,
    ) -> Option<Self> {
        let protector = Protector::new(&suite, &keys, new.role).ok()?;
        let (config, proof, local_id): (_, PeerProof, Identity) = (
            self.config.clone(),
            self.proof.clone(),
            self.local_id.clone(),
        );
        let mut successor = Self::new(cx, config, suite, keys, protector, proof, local_id, 0, 0);
        // Its keys come of keys that have the PPK in them.
        successor.ppk = self.ppk;
        successor.pairs = self.pairs.clone();
        Some(successor)
    }

    /// Whether a child SA waits for its turn or is being asked for.
    pub(super) fn is_asking_for(&self, purpose: Purpose) -> bool {
        let task = Task::CreateChild { purpose };
        self.queue.contains(&task)
            || self.delayed.iter().any(|(_, delayed)| *delayed == task)
            || matches!(self.pending(), Some(Pending::Child(request)) if request.purpose == purpose)
    }

    /// Everything that goes to the successor. "The new IKE SA inherits all of the original IKE SA's
    /// Child SAs" (section 2.8).
    pub(super) fn estate(&mut self) -> Estate {
        let no_rekey = |task: &Task| {
            use Task::{CheckAddress, CreateChild, DeleteChild, TellAddresses, UpdateAddresses};
            matches!(
                task,
                DeleteChild { .. }
                    | CreateChild { .. }
                    | UpdateAddresses
                    | TellAddresses
                    | CheckAddress
            )
        };
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(no_rekey);
        Estate {
            children: std::mem::take(&mut self.children),
            retired: std::mem::take(&mut self.retired),
            queue,
            delayed: std::mem::take(&mut self.delayed),
            others: std::mem::take(&mut self.mobility.others),
        }
    }

    /// Takes over what a predecessor leaves.
    pub(super) fn inherit(&mut self, common: &Common, cx: &mut Cx<'_>, estate: Estate) {
        let retired = estate.retired.iter().map(|retired| retired.id);
        for id in estate.children.iter().map(|child| child.id).chain(retired) {
            cx.out.rehome(id, common.local_spi());
        }
        self.children = estate.children;
        self.retired = estate.retired;
        self.queue = estate.queue;
        self.delayed = estate.delayed;
        self.mobility.others = estate.others;
        self.plan_shares_later(cx);
    }

    /// The peer rekeys this IKE SA while our own rekey is under way: its successor waits for what
    /// comes of ours.
    pub(super) fn contest(
        &mut self,
        cx: &mut Cx<'_>,
        new: Common,
        suite: IkeSuite,
        keys: IkeKeys,
        nonces: [&[u8]; 2],
    ) {
        let Some(mut successor) = self.successor(cx, &new, suite, keys) else {
            return;
        };
        successor.contested = true;
        successor.superseded = true;
        successor.expires = cx.now + UNDECIDED;
        if let Some(outstanding) = &mut self.outstanding
            && let Pending::Ike(request) = &mut outstanding.pending
        {
            request.rival = Some(Rival::new(new.local_spi(), nonces));
        }
        let phase = Phase::Established(Box::new(successor));
        let sa = Box::new(IkeSa { common: new, phase });
        cx.out.effects.push(Effect::Adopt { sa, from: None });
    }

    /// The peer's successor of this IKE SA prevails.
    pub(super) fn leave_to(&mut self, common: &Common, cx: &mut Cx<'_>, spi: u64) {
        self.superseded = true;
        let estate = Box::new(self.estate());
        cx.out.effects.push(Effect::Inherit {
            from: common.local_spi(),
            to: spi,
            connection: self.config.name.clone(),
            estate,
        });
    }

    /// It prevails over the other successor.
    pub fn prevail(&mut self, common: &Common, cx: &mut Cx<'_>, estate: Estate) {
        if self.deleting {
            return estate.abandon(cx.out, &self.config.name);
        }
        self.contested = false;
        self.superseded = false;
        self.expires = cx.now + self.config.ike_lifetime.hard;
        self.inherit(common, cx, estate);
        self.announce(common, cx, false);
        self.pump(common, cx);
    }

    /// The other successor prevails; the peer, who asked for this one, is to delete it.
    pub fn yield_to_rival(&mut self, now: Instant) {
        self.expires = self.expires.min(now + REDUNDANT);
    }

    /// Both ends set an IKE SA up at once, and the other one is kept. Who initiated this one deletes it;
    /// where that is the peer, it has a moment to do so.
    pub fn drop_duplicate(&mut self, common: &Common, cx: &mut Cx<'_>) {
        self.superseded = true;
        match common.role {
            Role::Initiator => self.begin_delete(cx, DownReason::Replaced),
            Role::Responder => self.expires = self.expires.min(cx.now + DUPLICATE),
        }
    }

    /// The successor that the peer made while our own rekey of this IKE SA is under way.
    pub(super) fn rival_successor(&self) -> Option<u64> {
        match self.pending() {
            Some(Pending::Ike(request)) => Some(request.rival.as_ref()?.made),
            _ => None,
        }
    }
}

impl Estate {
    /// Nobody is there to take it.
    pub fn abandon(self, out: &mut Outbox, connection: &Arc<str>) {
        for child in self.children {
            out.remove(child.id);
            out.notice(Notice::ChildDown {
                connection: connection.clone(),
                id: child.id,
                reason: DownReason::PeerDeleted,
            });
        }
        for retired in self.retired {
            out.remove(retired.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_four_nonces_decides_octet_by_octet() {
        let rival = |a: &[u8], b: &[u8]| Rival::new((), [a, b]);
        assert!(rival(&[5; 32], &[9; 32]).prevails([&[7; 32], &[4; 32]]));
        assert!(!rival(&[5; 32], &[3; 32]).prevails([&[7; 32], &[4; 32]]));
        // A prefix comes before what it is a prefix of, however long the rest.
        assert!(!rival(&[5; 16], &[6; 32]).prevails([&[5; 32], &[6; 32]]));
        assert!(rival(&[1, 2, 3], &[1, 2, 4]).prevails([&[1, 2, 2, 9], &[9]]));
    }
}
