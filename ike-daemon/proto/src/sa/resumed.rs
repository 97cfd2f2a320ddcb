//! Going on with an IKE SA that another process has left.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{ChildSaId, Mode};

use super::child::{self, Child};
use super::context::{Common, Cx};
use super::established::{Established, Pending, Task};
use super::mobike::Mobility;
use super::pairs::Pairs;
use super::proof::PeerProof;
use super::protect::Protector;
use super::rekey::Purpose;
use super::saved::Saved;
use crate::config::ConnectionConfig;
use crate::notice::{DownReason, Notice};

impl Established {
    /// Goes on where another process has stopped. Its last word to the peer is said again, if it
    /// still waits for the answer; otherwise the peer is asked at once whether it still has us.
    pub fn restored(
        cx: &mut Cx<'_>,
        config: Arc<ConnectionConfig>,
        protector: Protector,
        saved: Saved,
    ) -> Self {
        let mut saved = saved;
        for child in &mut saved.children {
            child.allowances = child::allowances(cx, &config);
        }
        let long_ago = |before: Duration| cx.now.checked_sub(before).unwrap_or(cx.now);
        Self {
            last_heard: long_ago(config.dpd.map_or(Duration::ZERO, |dpd| dpd.delay)),
            last_sent: long_ago(cx.settings.nat_keepalive),
            config,
            suite: saved.suite,
            keys: saved.keys,
            protector,
            proof: PeerProof::restored(saved.remote_id, saved.signed),
            local_id: saved.local_id,
            since: saved.since,
            next_id: saved.next_id,
            expected_id: saved.expected_id,
            answered: saved.answered,
            outstanding: saved.outstanding,
            queue: saved.queue.into(),
            children: saved.children,
            rekey_at: saved.rekey_at,
            expires: saved.expires,
            deleting: saved.deleting,
            superseded: saved.superseded,
            ppk: saved.ppk,
            awaited: None,
            contested: saved.contested,
            retired: Vec::new(),
            delayed: Vec::new(),
            refusing: None,
            no_more_shares: false,
            shares_due: None,
            mobility: Mobility {
                others: saved.others,
                ..Mobility::default()
            },
            pairs: Pairs::new(saved.single_pairs),
        }
    }

    /// A notice that it goes on.
    pub fn taken_over(&self, common: &Common) -> Notice {
        Notice::TakenOver {
            connection: self.config.name.clone(),
            role: common.role,
            initiator_spi: common.spi_i,
            responder_spi: common.spi_r,
            local: common.local,
            remote: common.remote,
            children: self.children.iter().map(|child| child.id).collect(),
        }
    }

    /// After a restart: drops the child SAs that the data plane does not carry any more. Gives
    /// those that go on, and the one that is carried although its negotiation is still to end.
    pub fn reconcile(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        carried: &HashSet<ChildSaId>,
    ) -> Vec<(ChildSaId, Mode)> {
        let (kept, lost): (Vec<Child>, Vec<Child>) = std::mem::take(&mut self.children)
            .into_iter()
            .partition(|child| carried.contains(&child.id));
        self.children = kept;
        for child in &lost {
            cx.out.forget(child.id);
            cx.out.notice(Notice::ChildDown {
                connection: self.config.name.clone(),
                id: child.id,
                reason: DownReason::NotCarried,
            });
            let (id, spi_in) = (child.id, child.spi_in);
            let task = Task::DeleteChild { id, spi_in };
            let sent =
                matches!(self.pending(), Some(Pending::DeleteChild { id: other }) if *other == id);
            self.withdraw(Purpose::Replace(id));
            if !sent && !self.deleting && !self.queue.contains(&task) {
                self.queue.push_back(task);
            }
        }
        let mut going_on: Vec<_> = self.children.iter().map(|c| (c.id, c.mode)).collect();
        if let Some(Pending::Child(request)) = self.pending()
            && carried.contains(&request.id)
        {
            cx.out.expect(request.id);
            going_on.push((request.id, self.config.mode));
        } else if !lost.is_empty() && !self.superseded {
            self.acquire(common);
        }
        if common.nat.remote {
            // The peer may have moved after the data plane was told of its path for the last time.
            child::move_all(common, cx, &self.children);
        }
        self.pump(common, cx);
        going_on
    }
}
