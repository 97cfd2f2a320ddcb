//! Several child SAs with the same selectors, for single processors (RFC 9611): one fallback that
//! every processor may send with, and further ones as processors ask for them.

use std::time::Duration;

use espada_common::sa::{ChildSaId, Share};

use super::child::{ChildOffer, NewChild};
use super::context::{Common, Cx};
use super::established::{Established, Task};
use super::rekey::Purpose;
use crate::config::ConnectionConfig;
use crate::notice::Notice;
use crate::status::Role;
use crate::wire::{Notify, NotifyType, Writer};

/// So long the end that was asked for a child SA waits for the other to ask for more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most child SAs that a peer gets with the same selectors.
const MOST: usize = 256;

/// The share of a child SA that is negotiated as the first with its selectors: both ends have to be
/// willing to have more.
pub(crate) fn first_share(config: &ConnectionConfig, theirs: &ChildOffer) -> Share {
    if config.processors.is_some() && theirs.resource {
        Share::Fallback
    } else {
        Share::Whole
    }
}

/// Tells the peer that a child SA is, or may be, one of several. What identifies it is for people
/// alone: "the peer MUST only use" it "for debugging purposes" (section 4).
pub(crate) fn write(writer: &mut Writer, share: Share) {
    let number = match share {
        Share::Whole => return,
        Share::Fallback | Share::Peer => None,
        Share::Processor(number) => Some(number.to_be_bytes()),
    };
    let data = number.as_ref().map_or(&[][..], |number| &number[..]);
    writer.notify(Notify::new(NotifyType::SA_RESOURCE_INFO, data));
}

impl Established {
    /// Those with their own share, and no successor yet.
    fn shares(&self) -> impl Iterator<Item = Share> {
        let present = self.children.iter().filter(|child| !child.replaced);
        present.map(|child| child.share)
    }

    fn has_fallback(&self) -> bool {
        self.shares().any(|share| share == Share::Fallback)
    }

    /// Whether any packet has a child SA.
    pub(super) fn carries_everything(&self) -> bool {
        self.shares()
            .any(|share| matches!(share, Share::Whole | Share::Fallback))
    }

    /// A child SA comes: `new` of those that there are, or in place of another.
    pub(super) fn plan_shares(&mut self, cx: &Cx<'_>, new: &NewChild, replaces: bool) {
        self.shares_due = match (new.share, new.role) {
            _ if replaces => return,
            (Share::Whole, _) => None,
            (Share::Fallback, Role::Initiator) => Some(cx.now),
            _ => Some(cx.now + PATIENCE),
        };
    }

    /// One is gone or could not be made for the moment.
    pub(super) fn plan_shares_later(&mut self, cx: &Cx<'_>) {
        if self.has_fallback() {
            self.shares_due = Some(cx.now + PATIENCE);
        }
    }

    /// Asks for a child SA for each processor that has none: at once whoever asked for the fallback, and
    /// later its peer, if that has more processors.
    pub(super) fn ask_for_shares(&mut self, cx: &Cx<'_>) {
        let due = self.shares_due.take_if(|at| *at <= cx.now).is_some();
        if !due || self.no_more_shares || !self.has_fallback() {
            return;
        }
        for processor in 0..self.config.processors.unwrap_or(0) {
            let purpose = Purpose::Processor(processor);
            let task = Task::CreateChild { purpose };
            if self.is_free(processor) && !self.queue.contains(&task) {
                self.queue.push_back(task);
            }
        }
    }

    fn is_free(&self, processor: u32) -> bool {
        !self
            .shares()
            .any(|share| share == Share::Processor(processor))
    }

    /// Whether a child SA is not wanted any more since it was queued.
    pub(super) fn is_needless(&self, common: &Common, purpose: Purpose) -> bool {
        let number = match purpose {
            Purpose::Processor(number) => number,
            Purpose::First => return self.carries_everything(),
            Purpose::Pair(number) => return self.pair_is_needless(common, number),
            Purpose::Replace(_) => return false,
        };
        self.no_more_shares || !self.has_fallback() || !self.is_free(number)
    }

    /// The peer takes no more: the processors left share the fallback.
    pub(super) fn shares_refused(&mut self, cx: &mut Cx<'_>, notify: NotifyType) {
        self.no_more_shares = true;
        cx.out.notice(Notice::SharesRefused {
            connection: self.config.name.clone(),
            notify: notify.to_string(),
        });
    }

    /// What a further child SA is for: the processor that it was meant for, the first other one that
    /// has none, or receiving.
    pub(super) fn free_share(&self, preferred: Option<u32>) -> Share {
        let own = 0..self.config.processors.unwrap_or(0);
        let mut numbers = preferred.into_iter().chain(own);
        let processor = numbers.find(|number| self.is_free(*number));
        processor.map_or(Share::Peer, Share::Processor)
    }

    /// The share of one that is there.
    pub(super) fn share_of(&self, id: ChildSaId) -> Share {
        let child = self.children.iter().find(|child| child.id == id);
        child.map_or(Share::Whole, |child| child.share)
    }

    /// The share of a child SA that the peer asks for beside the ones there are.
    pub(super) fn further_share(&self, offer: &ChildOffer) -> Result<Share, NotifyType> {
        if !offer.resource || !self.has_fallback() {
            return Ok(first_share(&self.config, offer));
        }
        if self.shares().count() >= MOST {
            return Err(NotifyType::TS_MAX_QUEUE);
        }
        Ok(self.free_share(None))
    }
}
