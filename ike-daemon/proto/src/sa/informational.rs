//! INFORMATIONAL exchanges: deletes and liveness (RFC 7296 section 1.4); and which exchange a
//! protected message belongs to.

use super::established::{Established, Pending, Task};
use super::respond::unknown_critical;
use super::{Common, Cx, Datagram, Phase, redirect};
use crate::config::StartAction;
use crate::notice::DownReason;
use crate::status::IkeDrop;
use crate::wire::id::Delete;
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, PayloadType, Writer};

const PROTOCOL_IKE: u8 = 1;
const PROTOCOL_ESP: u8 = 3;

/// Deletes the IKE SA the message is protected by.
pub(crate) fn write_delete_ike(writer: &mut Writer) {
    let delete = Delete {
        protocol: PROTOCOL_IKE,
        spis: Vec::new(),
    };
    writer.add(PayloadType::DELETE, |out| delete.encode(out));
}

/// Deletes child SAs, named by the SPIs that the sender receives with.
pub(crate) fn write_delete_children(writer: &mut Writer, spis: Vec<u32>) {
    let delete = Delete {
        protocol: PROTOCOL_ESP,
        spis,
    };
    writer.add(PayloadType::DELETE, |out| delete.encode(out));
}

impl Established {
    /// A fresh, authentic request.
    pub fn handle_request(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
    ) -> Phase {
        if let Some(kind) = unknown_critical(payloads) {
            let mut writer = Writer::new();
            writer.notify(Notify::new(
                NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
                &[kind.0],
            ));
            self.respond(common, cx, datagram, &writer);
            return Phase::Established(self);
        }
        match datagram.header.exchange {
            ExchangeType::INFORMATIONAL => {
                self.handle_informational(common, cx, datagram, payloads)
            }
            ExchangeType::CREATE_CHILD_SA => {
                if self.contested {
                    cx.out.drop(IkeDrop::Early);
                } else {
                    self.answer_create_child(common, cx, datagram, payloads);
                }
                Phase::Established(self)
            }
            ExchangeType::IKE_FOLLOWUP_KE => {
                self.answer_follow_up(common, cx, datagram, payloads);
                Phase::Established(self)
            }
            _ => {
                cx.out.drop(IkeDrop::Unexpected);
                Phase::Established(self)
            }
        }
    }

    fn handle_informational(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
    ) -> Phase {
        let deletes_all = |payload: &Payload<'_>| matches!(payload, Payload::Delete(delete) if delete.protocol == PROTOCOL_IKE);
        let undecided = self.contested && !payloads.iter().any(deletes_all);
        if undecided || self.may_be_early(payloads) {
            // The peer repeats it, and we shall know by then.
            cx.out.drop(IkeDrop::Early);
            return Phase::Established(self);
        }
        let mut writer = Writer::new();
        let mut ours = Vec::new();
        let mut whole = false;
        for payload in payloads {
            match payload {
                Payload::Delete(delete) if delete.protocol == PROTOCOL_IKE => whole = true,
                Payload::Delete(delete) if delete.protocol == PROTOCOL_ESP => {
                    for spi in &delete.spis {
                        ours.extend(self.delete_child(common, cx, *spi));
                    }
                }
                // The initiator could not authenticate us: it will forget this SA (section 2.21.2).
                Payload::Notify(notify) if notify.kind == NotifyType::AUTHENTICATION_FAILED => {
                    whole = true
                }
                _ => {}
            }
        }
        let unknown: Vec<u32> = super::respond::notifies(payloads)
            .filter_map(super::protect::invalid_spi)
            .collect();
        for child in &mut self.children {
            // The peer lost it; its answer to the rekey tells for certain.
            if unknown.contains(&child.spi_out) && child.rekey_at.is_some() {
                child.rekey_at = Some(cx.now);
            }
        }
        if whole {
            self.respond(common, cx, datagram, &writer);
            return self.deleted_by_peer(common, cx);
        }
        self.peer_informs(common, cx, datagram, payloads, &mut writer);
        if !ours.is_empty() {
            write_delete_children(&mut writer, ours);
        }
        self.respond(common, cx, datagram, &writer);
        if let Some(to) = redirect::wanted(common, cx, payloads)
            && !self.deleting
        {
            self.leave(common, cx, to);
        }
        Phase::Established(self)
    }

    /// The peer deletes the child SA it receives with `spi`: our half of the pair, to be named in
    /// the response unless our own delete of it is under way (section 1.4.1).
    fn delete_child(&mut self, common: &Common, cx: &mut Cx<'_>, spi: u32) -> Option<u32> {
        let child = self.children.iter().find(|child| child.spi_out == spi)?;
        let (id, spi_in) = (child.id, child.spi_in);
        if child.replaced {
            self.retire_child(cx, id);
        } else {
            self.remove_child(cx, id, DownReason::PeerDeleted);
        }
        let waiting = self.queue.len();
        self.queue
            .retain(|task| !matches!(task, Task::DeleteChild { id: other, .. } if *other == id));
        let queued = self.queue.len() != waiting;
        let sent =
            matches!(self.pending(), Some(Pending::DeleteChild { id: other }) if *other == id);
        if self.config.start == StartAction::Start {
            self.acquire(common);
        }
        (!sent || queued).then_some(spi_in)
    }

    /// The response to our request.
    pub fn handle_response(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        pending: Pending,
        payloads: &[Payload<'_>],
    ) -> Phase {
        match pending {
            Pending::Liveness => self.liveness_answered(common, payloads),
            Pending::DeleteIke => return Phase::Gone,
            Pending::DeleteChild { id } => self.retire_child(cx, id),
            Pending::Child(request) => self.child_answered(common, cx, *request, payloads),
            Pending::Ike(request) => self.rekey_answered(common, cx, *request, payloads),
            Pending::Update(ends) => self.update_answered(common, cx, ends, payloads),
            Pending::Check { cookie, ends } => {
                return self.check_answered(common, cx, cookie, ends, payloads);
            }
        }
        if self.is_out_of_step() && self.is_current() {
            return self.terminate(common, cx, DownReason::OutOfStep);
        }
        Phase::Established(self)
    }
}
