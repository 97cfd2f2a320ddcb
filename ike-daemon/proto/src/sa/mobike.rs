//! MOBIKE (RFC 4555): an IKE SA and its child SAs go on when the address of one end changes. Who
//! began the first IKE SA decides which addresses are used; the other says what it has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use subtle::ConstantTimeEq;

use super::child;
use super::context::{Common, Cx};
use super::established::{Established, Pending, Task};
use super::nat::{self, Nat};
use super::respond::notifies;
use super::retransmit::Retransmit;
use super::{Datagram, Phase};
use crate::config::ConnectionConfig;
use crate::crypto::Random;
use crate::notice::{DownReason, Notice};
use crate::status::{IkeDrop, Role};
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, Writer};

/// Most further addresses that are told, or remembered of a peer.
const MAX_ADDRESSES: usize = 8;

/// Transmissions without an answer after which another address of the peer is tried.
const PATIENCE: u32 = 3;

/// What an IKE SA knows of where its peer can be, and of NATs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mobility {
    /// The peer's addresses besides the one in use.
    pub others: Vec<IpAddr>,
    /// How the peer sees us, as it said last: changes show that a NAT maps us to something else.
    pub seen_as: Option<Vec<u8>>,
}

/// An update of addresses under way, or a check whether the peer is where it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Ends {
    fn of(common: &Common) -> Self {
        Self {
            local: common.local,
            remote: common.remote,
        }
    }
}

/// Whether the peer understands NAT traversal: then IKE moves to port 4500 though there is no NAT,
/// as there may be one after a move (section 3.3).
pub(crate) fn floats(config: &ConnectionConfig, payloads: &[Payload<'_>]) -> bool {
    config.mobike
        && notifies(payloads).any(|notify| notify.kind == NotifyType::NAT_DETECTION_SOURCE_IP)
}

/// Says in IKE_AUTH that we can, and at which further addresses we are.
pub(crate) fn write_support(
    writer: &mut Writer,
    cx: &Cx<'_>,
    config: &ConnectionConfig,
    local: IpAddr,
) {
    if config.mobike {
        writer.notify(Notify::new(NotifyType::MOBIKE_SUPPORTED, &[]));
        write_addresses(writer, cx, config, local, false);
    }
}

/// Our addresses besides `local`, unless the connection is bound to one. `all`: the peer is to
/// forget those that it knew (section 3.6).
fn write_addresses(
    writer: &mut Writer,
    cx: &Cx<'_>,
    config: &ConnectionConfig,
    local: IpAddr,
    all: bool,
) {
    let bound = config.local_address.is_some();
    let others = cx
        .addresses
        .iter()
        .filter(|address| **address != local && !bound);
    let mut none = true;
    for address in others.take(MAX_ADDRESSES) {
        none = false;
        match address {
            IpAddr::V4(address) => {
                let data = address.octets();
                writer.notify(Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, &data));
            }
            IpAddr::V6(address) => {
                let data = address.octets();
                writer.notify(Notify::new(NotifyType::ADDITIONAL_IP6_ADDRESS, &data));
            }
        }
    }
    if none && all {
        writer.notify(Notify::new(NotifyType::NO_ADDITIONAL_ADDRESSES, &[]));
    }
}

/// The addresses that a message names; `None` if it says nothing of any.
fn named(payloads: &[Payload<'_>]) -> Option<Vec<IpAddr>> {
    let mut addresses = None;
    for notify in notifies(payloads) {
        let address: Option<IpAddr> = match notify.kind {
            NotifyType::NO_ADDITIONAL_ADDRESSES => None,
            NotifyType::ADDITIONAL_IP4_ADDRESS => {
                let octets = <[u8; 4]>::try_from(notify.data).ok();
                octets.map(|octets| Ipv4Addr::from(octets).into())
            }
            NotifyType::ADDITIONAL_IP6_ADDRESS => {
                let octets = <[u8; 16]>::try_from(notify.data).ok();
                octets.map(|octets| Ipv6Addr::from(octets).into())
            }
            _ => continue,
        };
        let list: &mut Vec<IpAddr> = addresses.get_or_insert_default();
        let usable = |address: &IpAddr| !address.is_unspecified() && !address.is_multicast();
        if list.len() < MAX_ADDRESSES {
            list.extend(address.filter(usable));
        }
    }
    addresses
}

/// What the IKE_AUTH message of the peer says; `role` is ours in this first IKE SA.
pub(crate) fn agree(
    config: &ConnectionConfig,
    payloads: &[Payload<'_>],
    role: Role,
) -> (Option<Role>, Mobility) {
    let supported = notifies(payloads).any(|notify| notify.kind == NotifyType::MOBIKE_SUPPORTED);
    let mobility = Mobility {
        others: named(payloads).unwrap_or_default(),
        seen_as: None,
    };
    ((config.mobike && supported).then_some(role), mobility)
}

/// NO_NATS_ALLOWED: the addresses and ports that its sender sees, "source IP address, destination
/// IP address, source port, destination port" (section 4.2.6).
fn forbids_nat(payloads: &[Payload<'_>], datagram: &Datagram<'_>) -> bool {
    let mut expected = Vec::with_capacity(36);
    for address in [datagram.remote.ip(), datagram.local.ip()] {
        match address {
            IpAddr::V4(address) => expected.extend(address.octets()),
            IpAddr::V6(address) => expected.extend(address.octets()),
        }
    }
    expected.extend(datagram.remote.port().to_be_bytes());
    expected.extend(datagram.local.port().to_be_bytes());
    let mut said = notifies(payloads).filter(|notify| notify.kind == NotifyType::NO_NATS_ALLOWED);
    said.any(|notify| notify.data != expected)
}

fn notify_data<'a>(payloads: &'a [Payload<'a>], kind: NotifyType) -> Option<&'a [u8]> {
    notifies(payloads)
        .find(|notify| notify.kind == kind)
        .map(|notify| notify.data)
}

impl Established {
    /// Our part where addresses may change.
    fn decides(common: &Common) -> bool {
        common.mobike == Some(Role::Initiator)
    }

    /// Has a request about addresses go out before others; what is under way goes on from and to
    /// the new addresses at once.
    fn hurry(&mut self, now: Instant, task: Task) {
        if !self.queue.contains(&task) {
            self.queue.push_front(task);
        }
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.retransmit = Retransmit::again(now);
        }
    }

    /// Our address is another now.
    pub fn move_here(&mut self, common: &mut Common, cx: &mut Cx<'_>, local: IpAddr) {
        if self.deleting || common.mobike.is_none() || common.local.ip() == local {
            return;
        }
        if local.is_ipv4() != common.remote.is_ipv4() {
            // Only to an address of the peer's of that family.
            let other = self.mobility.others.iter().copied();
            let Some(other) = other
                .into_iter()
                .find(|other| other.is_ipv4() == local.is_ipv4())
            else {
                return;
            };
            common.remote.set_ip(other);
        }
        let from = common.local;
        common.local.set_ip(local);
        cx.out.notice(Notice::Moved {
            connection: self.config.name.clone(),
            from,
            to: common.local,
        });
        common.hold = None;
        self.move_children(common, cx);
        self.hurry(
            cx.now,
            match Self::decides(common) {
                true => Task::UpdateAddresses,
                false => Task::TellAddresses,
            },
        );
    }

    fn move_children(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let path = child::path(common);
        for child in &mut self.children {
            child.encapsulation = path.encapsulation;
        }
        child::move_all(common, cx, &self.children);
    }

    /// Nobody answers at the peer's address: the next one is tried from then on. ESP stays until one
    /// has answered.
    pub fn try_elsewhere(&mut self, common: &mut Common) {
        let sent = self
            .outstanding
            .as_ref()
            .map_or(0, |out| out.retransmit.sent);
        let due = sent > PATIENCE && (sent - PATIENCE) % 2 == 1;
        if !due || !Self::decides(common) {
            return;
        }
        let v4 = common.local.is_ipv4();
        let usable = |other: &IpAddr| other.is_ipv4() == v4;
        let Some(at) = self.mobility.others.iter().position(usable) else {
            return;
        };
        common.hold = Some(child::path(common));
        let next = self.mobility.others.remove(at);
        self.mobility.others.push(common.remote.ip());
        common.remote.set_ip(next);
    }

    /// The peer has answered, and this is where we reached it.
    pub fn answered_from(&mut self, common: &mut Common, cx: &mut Cx<'_>, datagram: &Datagram<'_>) {
        if !Self::decides(common) {
            return;
        }
        let Some(before) = common.hold.take() else {
            return;
        };
        let tried = std::mem::replace(&mut common.remote, datagram.remote);
        if tried.ip() != datagram.remote.ip() {
            let others = &mut self.mobility.others;
            others.retain(|other| *other != datagram.remote.ip());
            others.push(tried.ip());
        }
        if before != child::path(common) {
            cx.out.notice(Notice::PeerMoved {
                connection: self.config.name.clone(),
                from: before.remote,
                to: common.remote,
            });
            self.move_children(common, cx);
            self.hurry(cx.now, Task::UpdateAddresses);
        }
    }

    /// UPDATE_SA_ADDRESSES (section 3.5).
    pub fn request_update(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let mut writer = Writer::new();
        writer.notify(Notify::new(NotifyType::UPDATE_SA_ADDRESSES, &[]));
        write_nat(&mut writer, common);
        write_addresses(&mut writer, cx, &self.config, common.local.ip(), true);
        let pending = Pending::Update(Ends::of(common));
        self.request(common, cx, ExchangeType::INFORMATIONAL, &writer, pending);
    }

    /// ADDITIONAL_IP4_ADDRESS and so on, as whoever does not decide (section 3.6).
    pub fn request_addresses(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let mut writer = Writer::new();
        write_addresses(&mut writer, cx, &self.config, common.local.ip(), true);
        let pending = Pending::Liveness;
        self.request(common, cx, ExchangeType::INFORMATIONAL, &writer, pending);
    }

    /// COOKIE2: whether the peer gets what is sent to where it says it is (section 3.7).
    pub fn request_check(&mut self, common: &Common, cx: &mut Cx<'_>) {
        let mut cookie = [0; 16];
        cx.rng.fill(&mut cookie);
        let mut writer = Writer::new();
        writer.notify(Notify::new(NotifyType::COOKIE2, &cookie));
        let ends = Ends::of(common);
        let pending = Pending::Check { cookie, ends };
        self.request(common, cx, ExchangeType::INFORMATIONAL, &writer, pending);
    }

    /// What a liveness check holds: behind a NAT, whether it still maps us to the same (section 3.8).
    pub fn write_liveness(common: &Common, writer: &mut Writer) {
        if Self::decides(common) && common.nat.local {
            write_nat(writer, common);
        }
    }

    /// The answer to a liveness check.
    pub fn liveness_answered(&mut self, common: &Common, payloads: &[Payload<'_>]) {
        let seen = notify_data(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP);
        if let Some(seen) = seen.filter(|_| Self::decides(common))
            && self.mobility.seen_as.as_deref() != Some(seen)
            && !self.queue.contains(&Task::UpdateAddresses)
        {
            self.queue.push_front(Task::UpdateAddresses);
        }
    }

    /// The answer to an update of ours.
    pub fn update_answered(
        &mut self,
        common: &mut Common,
        cx: &mut Cx<'_>,
        ends: Ends,
        payloads: &[Payload<'_>],
    ) {
        if ends != Ends::of(common) {
            return; // We have moved on since, and the next update is on its way.
        }
        let refused = notifies(payloads).find(|notify| notify.kind.is_error());
        if let Some(notify) = refused {
            cx.out.notice(Notice::MoveRefused {
                connection: self.config.name.clone(),
                notify: notify.kind.to_string(),
            });
            return;
        }
        let seen = notify_data(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP);
        self.mobility.seen_as = seen.map(<[u8]>::to_vec);
        self.take_nat(common, cx, payloads, ends);
    }

    /// NATs between the ends as they are now.
    fn take_nat(
        &mut self,
        common: &mut Common,
        cx: &mut Cx<'_>,
        payloads: &[Payload<'_>],
        ends: Ends,
    ) {
        let said = notify_data(payloads, NotifyType::NAT_DETECTION_SOURCE_IP);
        if said.is_none() {
            return;
        }
        let (spi_i, spi_r) = (common.spi_i, common.spi_r);
        let found = nat::detect(notifies(payloads), spi_i, spi_r, ends.local, ends.remote);
        let nat = Nat {
            forced: common.nat.forced,
            agreed: common.nat.agreed,
            ..found
        };
        if nat != common.nat {
            common.nat = nat;
            nat::tell(common, cx, &self.config);
            if common.hold.is_none() {
                self.move_children(common, cx);
            }
        }
    }

    /// The peer's answer to a check of ours.
    pub fn check_answered(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Cx<'_>,
        cookie: [u8; 16],
        ends: Ends,
        payloads: &[Payload<'_>],
    ) -> Phase {
        if ends != Ends::of(common) {
            self.hurry(cx.now, Task::CheckAddress);
            return Phase::Established(self);
        }
        let said = notify_data(payloads, NotifyType::COOKIE2);
        if !said.is_some_and(|said| bool::from(said.ct_eq(&cookie))) {
            // "If the COOKIE2 … does not match, the … IKE_SA MUST be closed" (section 3.7).
            cx.out.drop(IkeDrop::Unexpected);
            return self.terminate(common, cx, DownReason::ProtocolError);
        }
        if let Some(before) = common.hold.take() {
            cx.out.notice(Notice::PeerMoved {
                connection: self.config.name.clone(),
                from: before.remote,
                to: common.remote,
            });
            self.move_children(common, cx);
        }
        Phase::Established(self)
    }

    /// What an INFORMATIONAL request of the peer says of addresses, and what is answered to that.
    pub fn peer_informs(
        &mut self,
        common: &mut Common,
        cx: &mut Cx<'_>,
        datagram: &Datagram<'_>,
        payloads: &[Payload<'_>],
        writer: &mut Writer,
    ) {
        if common.mobike.is_none() || self.deleting {
            return;
        }
        if let Some(cookie) = notify_data(payloads, NotifyType::COOKIE2) {
            // "at least 8 and at most 64 octets" (section 4.2.5).
            if (8..=64).contains(&cookie.len()) {
                writer.notify(Notify::new(NotifyType::COOKIE2, cookie));
            }
        }
        let update = notify_data(payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some();
        if forbids_nat(payloads, datagram) {
            writer.notify(Notify::new(NotifyType::UNEXPECTED_NAT_DETECTED, &[]));
            return;
        }
        let ends = Ends {
            local: datagram.local,
            remote: datagram.remote,
        };
        if let Some(others) = named(payloads) {
            self.mobility.others = others;
            let others = &mut self.mobility.others;
            others.retain(|other| *other != ends.remote.ip());
            if Self::decides(common)
                && common.remote.ip() != ends.remote.ip()
                && !others.contains(&common.remote.ip())
            {
                // It is no longer where we reached it.
                cx.out.notice(Notice::PeerMoved {
                    connection: self.config.name.clone(),
                    from: common.remote,
                    to: ends.remote,
                });
                (common.local, common.remote) = (ends.local, ends.remote);
                common.hold = None;
                self.move_children(common, cx);
                self.hurry(cx.now, Task::UpdateAddresses);
            }
        }
        if update && !Self::decides(common) {
            let before = child::path(common);
            (common.local, common.remote) = (ends.local, ends.remote);
            common.hold = Some(before);
            self.take_nat(common, cx, payloads, ends);
            if child::path_now(common) == before {
                common.hold = None;
            } else {
                self.hurry(cx.now, Task::CheckAddress);
            }
        }
        if notify_data(payloads, NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
            let (spi_i, spi_r) = (common.spi_i, common.spi_r);
            let forced = common.nat.forced;
            nat::write(writer, spi_i, spi_r, ends.local, ends.remote, forced);
        }
    }
}

fn write_nat(writer: &mut Writer, common: &Common) {
    nat::write(
        writer,
        common.spi_i,
        common.spi_r,
        common.local,
        common.remote,
        common.nat.forced,
    );
}
