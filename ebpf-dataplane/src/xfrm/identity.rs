//! What is ours in the kernel's SAD and SPD: an engine has a number, and everything it makes bears
//! one derived from it. What bears another is never touched.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkInfo, LinkMessage,
};

use super::socket::Requests;
use super::{NAME, policy, state};
use crate::backend::BackendError;
use crate::engine::Interface;
use crate::netlink::{Netlink, NetlinkError};

/// Upper octet of our interface and request ids: "E".
const MARK: u32 = 0x45 << 24;

/// The number of an engine within its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(u8);

impl Identity {
    /// Of the xfrm interface, and of states and policies in tunnel mode.
    pub fn if_id(self) -> u32 {
        MARK | u32::from(self.0) << 16
    }

    /// Request ids lie between the interface's id and this, both excluded.
    fn reqid_end(self) -> u32 {
        self.if_id() + 0x1_0000
    }

    /// The request id with this number.
    pub fn reqid(self, number: u16) -> u32 {
        self.if_id() + u32::from(number)
    }

    /// Priority of the policies that let IKE and neighbour discovery pass, which have neither
    /// interface nor request id.
    pub fn bypass_priority(self) -> u32 {
        0x4500 | u32::from(self.0)
    }

    fn owns_reqid(self, reqid: u32) -> bool {
        self.if_id() < reqid && reqid < self.reqid_end()
    }

    /// Whether a state is this engine's.
    pub fn owns_state(self, known: &state::Known) -> bool {
        known.if_id == self.if_id() || (known.if_id == 0 && self.owns_reqid(known.reqid))
    }

    /// Whether a policy is this engine's.
    pub fn owns_policy(self, known: &policy::Known) -> bool {
        known.if_id == self.if_id()
            || (known.if_id == 0
                && (self.owns_reqid(known.reqid)
                    || (known.reqid == 0 && known.priority == self.bypass_priority())))
    }

    fn of_if_id(if_id: u32) -> Option<Self> {
        let found = Self((if_id >> 16 & 0xff) as u8);
        (found.if_id() == if_id).then_some(found)
    }
}

/// An xfrm interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XfrmLink {
    interface: Interface,
    if_id: u32,
}

fn xfrm_link(answer: RouteNetlinkMessage) -> Option<XfrmLink> {
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return None;
    };
    let (mut name, mut if_id) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Xfrm(data)) = info {
                        // One that collects metadata has no id.
                        if_id = Some(data.iter().find_map(|item| match item {
                            InfoXfrm::IfId(id) => Some(*id),
                            _ => None,
                        }));
                    }
                }
            }
            _ => {}
        }
    }
    Some(XfrmLink {
        interface: Interface {
            name: name?,
            index: message.header.index,
        },
        if_id: if_id?.unwrap_or(0),
    })
}

/// Every xfrm interface of the namespace.
fn xfrm_links(netlink: &mut Netlink) -> Result<Vec<XfrmLink>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = netlink.request("list interfaces", request, NLM_F_DUMP)?;
    Ok(answers.into_iter().filter_map(xfrm_link).collect())
}

/// Adds an xfrm interface; id 0 is refused by the kernel.
pub fn add_link(netlink: &mut Netlink, name: &str, if_id: u32) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Xfrm),
            LinkInfo::Data(InfoData::Xfrm(vec![InfoXfrm::IfId(if_id)])),
        ]),
    ];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let operation = format!("create xfrm interface {name}");
    netlink
        .request(&operation, RouteNetlinkMessage::NewLink(message), flags)
        .map(drop)
}

/// Removes an interface; one that is gone already is no error.
pub fn remove_link(netlink: &mut Netlink, interface: &Interface) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = interface.index;
    let operation = format!("remove interface {}", interface.name);
    match netlink.request(&operation, RouteNetlinkMessage::DelLink(message), NLM_F_ACK) {
        Err(error) if error.errno() == libc::ENODEV => Ok(()),
        other => other.map(drop),
    }
}

/// Removes every state and policy of an identity. States that wait for their keys go as well.
pub fn sweep(requests: &mut Requests, identity: Identity) -> Result<usize, NetlinkError> {
    let mut removed = 0;
    for known in policy::list(requests)? {
        if identity.owns_policy(&known) {
            policy::remove(requests, &known)?;
            removed += 1;
        }
    }
    for known in state::list(requests)? {
        if identity.owns_state(&known) {
            state::remove_known(requests, &known)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Makes the interface `name` under an identity that nobody else uses. What a predecessor left of
/// itself (it did not get to clean up, or it would have removed the interface) is removed first.
pub fn establish(
    netlink: &mut Netlink,
    requests: &mut Requests,
    name: &str,
) -> Result<(Identity, Interface), BackendError> {
    let links = xfrm_links(netlink)?;
    let former = links.iter().find(|link| link.interface.name == name);
    if let Some(former) = former {
        let Some(identity) = Identity::of_if_id(former.if_id) else {
            return Err(BackendError::Unsupported {
                engine: NAME,
                what: format!(
                    "there is an xfrm interface {name} with if_id {:#x}, which is not Espada's; \
                     remove it (`ip link delete {name}`) or give another tunnel interface name",
                    former.if_id
                ),
            });
        };
        let removed = sweep(requests, identity)?;
        remove_link(netlink, &former.interface)?;
        tracing::info!(
            interface = name,
            removed,
            "removed what a former instance left of states and policies"
        );
    } else if netlink.links()?.iter().any(|link| link.name == name) {
        return Err(BackendError::Unsupported {
            engine: NAME,
            what: format!(
                "there is an interface {name} that is no xfrm interface; remove it \
                 (`ip link delete {name}`) or give another tunnel interface name"
            ),
        });
    }
    let identity = free(&links, requests)?;
    add_link(netlink, name, identity.if_id())?;
    let index = netlink.link(name)?.index;
    let interface = Interface {
        name: name.to_owned(),
        index,
    };
    Ok((identity, interface))
}

/// The first identity that no interface, state or policy bears.
fn free(links: &[XfrmLink], requests: &mut Requests) -> Result<Identity, BackendError> {
    let states = state::list(requests)?;
    let policies = policy::list(requests)?;
    let taken: BTreeSet<u32> = links.iter().map(|link| link.if_id).collect();
    (0..=u8::MAX)
        .map(Identity)
        .find(|identity| {
            !taken.contains(&identity.if_id())
                && !states.iter().any(|known| identity.owns_state(known))
                && !policies.iter().any(|known| identity.owns_policy(known))
        })
        .ok_or_else(|| BackendError::Unsupported {
            engine: NAME,
            what: format!(
                "every interface id from {MARK:#x} on is in use; see `ip -d link show type xfrm`"
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_do_not_overlap() {
        let (first, last) = (Identity(0), Identity(u8::MAX));
        assert_eq!(first.if_id(), 0x4500_0000);
        assert_eq!(Identity::of_if_id(last.if_id()), Some(last));
        assert_eq!(Identity::of_if_id(last.if_id() + 1), None);
        assert_eq!(Identity::of_if_id(7), None);
        assert!(first.owns_reqid(first.reqid(1)) && first.owns_reqid(first.reqid(u16::MAX)));
        assert!(!Identity(1).owns_reqid(first.reqid(u16::MAX)));
        assert!(!first.owns_reqid(first.reqid(0)) && !first.owns_reqid(0));
    }
}
