//! The plaintext interface of the eBPF engine: a veth pair. Packets routed into the visible end
//! come out at the hidden one, where the program that encrypts them sits; what the programs decrypt
//! is sent to the hidden end and arrives on the visible one, for everybody to see and filter.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::syscall::{self, Offload};
use crate::backend::BackendError;
use crate::engine::Interface;
use crate::netlink::{Netlink, NetlinkError};
use crate::plane::sysctl;

/// Both ends.
pub struct Device {
    /// The one with the routes.
    pub interface: Interface,
    /// The hidden one.
    pub port: Interface,
    /// Hardware address of the visible end.
    pub mac: [u8; 6],
}

/// Name of the hidden end.
fn port_name(tun: &str) -> String {
    let stem: String = tun.chars().take(14).collect();
    format!("x{stem}")
}

impl Device {
    /// Makes the pair, or takes up one that an earlier process left.
    pub fn open(netlink: &mut Netlink, tun: &str, mtu: u32) -> Result<Self, BackendError> {
        let port = port_name(tun);
        let found = netlink.link(tun).is_ok() && netlink.link(&port).is_ok();
        if !found {
            create(netlink, tun, &port).map_err(|error| match error.errno() {
                libc::EOPNOTSUPP => BackendError::Unsupported {
                    engine: super::NAME,
                    what: "needs veth interfaces (CONFIG_VETH), which this kernel has not; try `modprobe veth`".to_owned(),
                },
                _ => error.into(),
            })?;
        }
        sysctl::prepare_tun(tun);
        sysctl::prepare_tun(&port);
        let set = |offload, on| {
            syscall::set_offload(tun, offload, on).map_err(|source| BackendError::System {
                what: format!("cannot switch {offload:?} of {tun}"),
                source,
            })
        };
        // The programs see every packet as it goes on the wire: with its checksum, and cut.
        set(Offload::TxChecksum, false)?;
        // A veth takes frames of XDP programs only where its receiving end has an instance of NAPI,
        // which comes with GRO.
        set(Offload::Gro, true)?;
        for (name, flags) in [
            (&port[..], LinkFlags::Up),
            // Nobody answers for addresses in the tunnel.
            (tun, LinkFlags::Up | LinkFlags::Noarp),
        ] {
            let index = netlink.link(name)?.index;
            bring_up(netlink, index, mtu, flags)?;
        }
        let link = netlink.link(tun)?;
        let port = Interface {
            index: netlink.link(&port)?.index,
            name: port,
        };
        Ok(Self {
            interface: Interface {
                name: tun.to_owned(),
                index: link.index,
            },
            port,
            mac: link.mac.unwrap_or_default(),
        })
    }

    /// Removes both ends.
    pub fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = self.interface.index;
        let operation = format!("remove interface {}", self.interface.name);
        netlink
            .request(&operation, RouteNetlinkMessage::DelLink(message), NLM_F_ACK)
            .map(drop)
    }
}

fn create(netlink: &mut Netlink, tun: &str, port: &str) -> Result<(), NetlinkError> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(port.to_owned()));
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(tun.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let operation = format!("create the interfaces {tun} and {port}");
    netlink
        .request(
            &operation,
            RouteNetlinkMessage::NewLink(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
}

fn bring_up(
    netlink: &mut Netlink,
    index: u32,
    mtu: u32,
    flags: LinkFlags,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    // Without multicast: the kernel's own group reports have no place in a tunnel.
    message.header.change_mask = flags | LinkFlags::Multicast;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    let operation = format!("bring interface {index} up with MTU {mtu}");
    netlink
        .request(&operation, RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
        .map(drop)
}
