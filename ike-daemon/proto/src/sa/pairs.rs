//! One pair of selectors in each child SA, for peers that take no more: they answer several with
//! SINGLE_PAIR_REQUIRED or TS_UNACCEPTABLE, or with one pair of them (RFC 7296 section 2.9).

use std::sync::Arc;

use espada_common::sa::Share;

use super::child;
use super::context::{Common, Cx, Effect};
use super::established::{Established, Task};
use super::rekey::Purpose;
use crate::config::ConnectionConfig;
use crate::notice::{DownReason, Notice};
use crate::refusal::Refusal;
use crate::selector::Sides;
use crate::wire::NotifyType;

/// Most pairs that a connection is split into.
pub(crate) const MAX_PAIRS: usize = 256;

/// How the selectors of a connection are spread over child SAs.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    /// One pair in each.
    pub single: bool,
    /// Those that the peer refused: their numbers in [`Sides::pairs`].
    refused: Vec<u16>,
}

impl Pairs {
    pub fn new(single: bool) -> Self {
        let refused = Vec::new();
        Self { single, refused }
    }
}

/// What IKE_AUTH asks for.
pub(crate) fn first(config: &ConnectionConfig, common: &Common) -> Sides {
    let sides = child::sides(config, common);
    let pair = sides.pairs().next().filter(|_| config.single_pairs);
    pair.unwrap_or(sides)
}

/// The answer that may mean that there were too many selectors.
pub(crate) fn too_many(kind: NotifyType) -> bool {
    matches!(
        kind,
        NotifyType::SINGLE_PAIR_REQUIRED | NotifyType::TS_UNACCEPTABLE
    )
}

impl Established {
    /// The selectors that a child SA is asked for with.
    pub(super) fn wanted(&self, common: &Common, purpose: Purpose) -> Sides {
        let sides = child::sides(&self.config, common);
        let pair = match purpose {
            Purpose::Pair(number) => sides.pairs().nth(number.into()),
            Purpose::Replace(id) if self.pairs.single => {
                let old = self.children.iter().find(|child| child.id == id);
                old.map(|old| Sides {
                    local: old.local_ts.clone(),
                    remote: old.remote_ts.clone(),
                })
            }
            _ => None,
        };
        pair.unwrap_or(sides)
    }

    /// Whether a child SA carries some of what a pair covers.
    pub(super) fn carries(&self, pair: &Sides) -> bool {
        self.children.iter().any(|child| {
            let meets = |ours: &[_], theirs| !crate::selector::narrow(ours, theirs).is_empty();
            meets(&child.local_ts, &pair.local) && meets(&child.remote_ts, &pair.remote)
        })
    }

    /// Whether a pair needs no child SA of its own (any more).
    pub(super) fn pair_is_needless(&self, common: &Common, number: u16) -> bool {
        let sides = child::sides(&self.config, common);
        let pair = sides.pairs().nth(number.into());
        pair.is_none_or(|pair| self.carries(&pair))
    }

    /// Asks for a child SA for each pair that none carries and that the peer did not refuse. Says
    /// how many are asked for.
    pub(super) fn ask_for_pairs(&mut self, common: &Common) -> usize {
        if self.deleting {
            return 0;
        }
        let sides = child::sides(&self.config, common);
        let mut asked = 0;
        for (number, pair) in (0..).zip(sides.pairs().take(MAX_PAIRS)) {
            let purpose = Purpose::Pair(number);
            let task = Task::CreateChild { purpose };
            let known = self.pairs.refused.contains(&number)
                || self.is_asking_for(purpose)
                || self.carries(&pair);
            if !known {
                self.queue.push_back(task);
                asked += 1;
            }
        }
        asked
    }

    /// A child SA that was asked for with all selectors is there: the peer may have taken a part.
    pub(super) fn ask_for_the_rest(&mut self, common: &Common) {
        let shared = |share| !matches!(share, Share::Whole);
        if self.children.iter().any(|child| shared(child.share)) {
            return;
        }
        self.ask_for_pairs(common);
    }

    /// The peer refused `wanted`, perhaps because it was too much. Says whether less is asked for.
    pub(super) fn split(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        kind: NotifyType,
        purpose: Purpose,
    ) -> bool {
        let several = self.wanted(common, purpose).pairs().nth(1).is_some();
        if !too_many(kind) || self.pairs.single || !several {
            return false;
        }
        self.pairs.single = true;
        let asked = match purpose {
            Purpose::First => self.ask_for_pairs(common),
            Purpose::Replace(_) => {
                self.queue.push_front(Task::CreateChild { purpose });
                1
            }
            Purpose::Pair(_) | Purpose::Processor(_) => 0,
        };
        cx.out.notice(Notice::SinglePairs {
            connection: self.config.name.clone(),
            notify: kind.to_string(),
        });
        asked > 0
    }

    /// The peer refused the pair that IKE_AUTH asked for. Says whether there are others.
    pub(super) fn try_other_pairs(&mut self, common: &Common, kind: NotifyType) -> bool {
        if !self.pairs.single || !too_many(kind) {
            return false;
        }
        self.pairs.refused.push(0);
        self.ask_for_pairs(common) > 0
    }

    /// The peer does not want a pair. An IKE SA that none is left for serves nothing.
    pub(super) fn pair_refused(&mut self, cx: &mut Cx<'_>, number: u16, refusal: Arc<Refusal>) {
        self.pairs.refused.push(number);
        let is_pair = |task: &Task| {
            matches!(
                task,
                Task::CreateChild {
                    purpose: Purpose::Pair(_)
                }
            )
        };
        let delayed = self.delayed.iter().map(|(_, task)| task);
        let hope = !self.children.is_empty() || self.queue.iter().chain(delayed).any(is_pair);
        cx.out.effects.push(Effect::Failed {
            refusal,
            retry: !hope,
        });
        if !hope {
            self.begin_delete(cx, DownReason::Refused);
        }
    }
}
