//! What an established IKE SA does by the clock: retransmission, liveness, keepalives, lifetimes.

use std::time::{Duration, Instant};

use espada_common::sa::ChildSaId;

use super::Phase;
use super::auth::down;
use super::context::{Common, Cx, Effect};
use super::established::{Established, Task};
use super::rekey::Purpose;
use super::retransmit::Due;
use crate::config::StartAction;
use crate::endpoint::Transmit;
use crate::notice::DownReason;

impl Established {
    /// Asks whether the peer lives, unless a request is under way that will tell.
    pub(super) fn probe(&mut self) {
        if self.outstanding.is_none() && self.queue.is_empty() {
            self.queue.push_back(Task::Liveness);
        }
    }

    /// Proof of life by other means than IKE.
    pub fn heard(&mut self, at: Instant) {
        self.last_heard = self.last_heard.max(at);
    }

    /// When something is due.
    pub fn deadline(&self, common: &Common, keepalive: Duration) -> Option<Instant> {
        let outstanding = self
            .outstanding
            .as_ref()
            .map(|outstanding| outstanding.retransmit.due);
        if self.deleting {
            return outstanding.or(Some(self.expires));
        }
        let idle = self.outstanding.is_none();
        let dpd = self
            .config
            .dpd
            .filter(|_| idle && !self.contested)
            .map(|dpd| self.last_heard + dpd.delay);
        let keepalive = common.nat.local.then(|| self.last_sent + keepalive);
        let due = [Some(self.rekey_at), self.shares_due].into_iter().flatten();
        let renewal = due.min().filter(|_| idle && !self.superseded);
        let children = self.children.iter().flat_map(|child| {
            // A rekey that is due waits while a request is under way.
            [Some(child.expires), child.rekey_at.filter(|_| idle)]
                .into_iter()
                .flatten()
        });
        let delayed = self.delayed.iter().map(|(at, _)| *at).min();
        let delayed = delayed.filter(|_| idle);
        let retirement = self.retirement();
        let single = [
            outstanding,
            dpd,
            keepalive,
            renewal,
            delayed,
            retirement,
            Some(self.expires),
        ];
        single.into_iter().flatten().chain(children).min()
    }

    pub fn handle_timeout(mut self: Box<Self>, common: &mut Common, cx: &mut Cx<'_>) -> Phase {
        let due = self.outstanding.as_mut().map(|outstanding| {
            outstanding
                .retransmit
                .poll(cx.now, &cx.settings.retransmission)
        });
        if due == Some(Due::Send) {
            self.try_elsewhere(common);
        }
        if let (Some(due), Some(outstanding)) = (due, &self.outstanding) {
            match due {
                Due::Wait => {}
                Due::Send => {
                    outstanding.retransmit.send_again(
                        common,
                        cx,
                        &self.config.name,
                        outstanding.exchange,
                        &outstanding.packet.datagrams,
                    );
                    self.last_sent = cx.now;
                }
                Due::GiveUp => return self.dead(common, cx),
            }
        }
        if self.deleting {
            return if cx.now >= self.expires {
                Phase::Gone
            } else {
                Phase::Established(self)
            };
        }
        if cx.now >= self.expires {
            if self.superseded {
                // The peer should have deleted it, and may know nothing of it any more.
                self.remove_children(cx, DownReason::Rekeyed);
                Self::farewell(common, cx, &mut self.protector, self.next_id);
                return Phase::Gone;
            }
            return self.terminate(common, cx, DownReason::Expired);
        }
        self.remove_retired(cx, false);
        if common.nat.local && cx.now >= self.last_sent + cx.settings.nat_keepalive {
            self.last_sent = cx.now;
            let payload = vec![0xff];
            cx.out.transmits.push_back(Transmit {
                local: common.local,
                remote: common.remote,
                payload,
                keepalive: true,
            });
        }
        self.renew(common, cx);
        if self
            .config
            .dpd
            .is_some_and(|dpd| !self.contested && cx.now >= self.last_heard + dpd.delay)
        {
            self.probe();
        }
        self.pump(common, cx);
        Phase::Established(self)
    }

    /// Queues rekeys that are due and drops child SAs past their lifetime.
    fn renew(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let expired = self
            .children
            .iter()
            .find(|child| cx.now >= child.expires)
            .map(|child| child.id);
        if let Some(id) = expired {
            self.expire_child(common, cx, id);
        }
        if self.outstanding.is_some() || self.superseded {
            return;
        }
        self.resume_delayed(cx.now);
        if cx.now >= self.rekey_at && !self.queue.contains(&Task::RekeyIke) {
            self.queue.push_back(Task::RekeyIke);
        }
        self.ask_for_shares(cx);
        for child in &mut self.children {
            if child.rekey_at.take_if(|at| *at <= cx.now).is_some() {
                let purpose = Purpose::Replace(child.id);
                self.queue.push_back(Task::CreateChild { purpose });
            }
        }
    }

    /// A child SA is past its hard lifetime.
    pub fn expire_child(&mut self, common: &Common, cx: &mut Cx<'_>, id: ChildSaId) {
        if let Some(spi_in) = self
            .children
            .iter()
            .find(|child| child.id == id)
            .map(|child| child.spi_in)
        {
            self.remove_child(cx, id, DownReason::Expired);
            self.queue.push_back(Task::DeleteChild { id, spi_in });
            self.plan_shares_later(cx);
            if self.config.start == StartAction::Start {
                self.acquire(common);
            }
        }
    }

    /// A child SA is to be rekeyed before its time.
    pub fn rekey_child(&mut self, id: ChildSaId) {
        let task = Task::CreateChild {
            purpose: Purpose::Replace(id),
        };
        let child = self.children.iter_mut().find(|child| child.id == id);
        let due = child.is_some_and(|child| child.rekey_at.take().is_some());
        if due && !self.deleting {
            self.queue.push_back(task);
        }
    }

    /// Nobody answers.
    fn dead(mut self: Box<Self>, common: &Common, cx: &mut Cx<'_>) -> Phase {
        if let Some(spi) = self.rival_successor() {
            cx.out.effects.push(Effect::Redundant { spi });
        }
        self.remove_children(cx, DownReason::DeadPeer);
        if self.is_current() {
            down(common, cx, &self.config.name, DownReason::DeadPeer);
        }
        Phase::Gone
    }
}
