//! A small synchronous rtnetlink client: links, addresses, routes and neighbours. A socket
//! belongs to the network namespace of the thread that opened it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::backend::BackendError;
use crate::plane::routes::PROTOCOL;

/// What the kernel would not do: the operation, its object, and the kernel's words.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {reason}")]
pub struct NetlinkError {
    operation: String,
    reason: String,
    #[source]
    source: io::Error,
}

impl NetlinkError {
    /// A failed operation, with the kernel's own sentence where it gave one.
    pub(crate) fn new(
        operation: impl Into<String>,
        kernel_text: Option<String>,
        source: io::Error,
    ) -> Self {
        let mut reason = match kernel_text {
            Some(text) => format!("{source} ({text})"),
            None => source.to_string(),
        };
        if source.raw_os_error() == Some(libc::EPERM) {
            reason.push_str("; this needs root or CAP_NET_ADMIN");
        }
        Self {
            operation: operation.into(),
            reason,
            source,
        }
    }

    /// The kernel's errno, 0 when the failure was not the kernel's.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

impl From<NetlinkError> for BackendError {
    fn from(error: NetlinkError) -> Self {
        let kind = error.source.kind();
        BackendError::System {
            what: format!("cannot {}", error.operation),
            source: io::Error::new(kind, error.reason),
        }
    }
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Address; in a route's destination the bits after the prefix are zero.
    pub address: IpAddr,
    /// Bits of prefix, at most 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// The whole address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            length: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// True when `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32u32.saturating_sub(self.length.into());
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                (u32::from(network) ^ u32::from(address)) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128u32.saturating_sub(self.length.into());
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                (u128::from(network) ^ u128::from(address)) & mask == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in octets.
    pub mtu: u32,
    /// Ethernet address, for links that have one.
    pub mac: Option<[u8; 6]>,
    /// Ethernet framing.
    pub ethernet: bool,
    /// Administratively up.
    pub up: bool,
    /// Receive queues the device was made with.
    pub rx_queues: u32,
    /// `veth`, `vlan`, `xfrm`, …: the kind of a virtual device.
    pub kind: Option<String>,
    /// The interface that a virtual one stands on (or the other end of a veth pair).
    pub lower: Option<u32>,
    /// The bridge, bond or VRF that it belongs to.
    pub controller: Option<u32>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Interface it stands on.
    pub link: u32,
    /// The address with the prefix length of its network.
    pub prefix: Prefix,
    /// Host-wide loopback or link-local scope: not for other hosts to route to.
    pub global: bool,
}

/// How the kernel would send to a destination (`ip route get`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Outgoing interface.
    pub link: u32,
    /// Gateway; none for a neighbour on the link.
    pub gateway: Option<IpAddr>,
    /// Source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU metric of the route or its learnt path MTU.
    pub mtu: Option<u32>,
    /// The destination is one of our own addresses.
    pub local: bool,
}

/// A route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub destination: Prefix,
    /// Outgoing interface.
    pub link: u32,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Source address hint for packets of this host.
    pub source: Option<IpAddr>,
    /// MTU metric.
    pub mtu: Option<u32>,
    /// Metric: lower wins. 0 is the kernel's default (1024 for IPv6).
    pub priority: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, if the kernel trusts one at the moment.
    pub mac: Option<[u8; 6]>,
    /// The address has not been confirmed lately: usable, but the kernel should be asked to probe.
    pub stale: bool,
}

/// A request socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Best effort: without it errors lack the kernel's sentence.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            Ok(socket)
        };
        let socket = open().map_err(|e| NetlinkError::new("open a netlink socket", None, e))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one request and collects the answers up to the acknowledgement or end of dump.
    pub(crate) fn request(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let fail = |source| NetlinkError::new(operation, None, source);
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0).map_err(fail)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(fail)?;
            let mut rest = datagram.as_slice();
            while let Some(length) = message_length(rest) {
                let (this, next) = rest.split_at(length);
                rest = next
                    .get(length.next_multiple_of(4) - length..)
                    .unwrap_or(&[]);
                // Attributes of a newer kernel than the parser's are skipped, not fatal.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(this) else {
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(code) => {
                            return Err(NetlinkError::new(
                                operation,
                                extended_text(&error.header),
                                io::Error::from_raw_os_error(code.get().saturating_abs()),
                            ));
                        }
                    },
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }

    /// Every interface.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request("list interfaces", request, NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// The interface called `name`.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let operation = format!("find interface `{name}`");
        let answers = self.request(&operation, RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        first(answers.into_iter().filter_map(link_of), &operation)
    }

    /// Brings the interface up with this MTU and without multicast: the kernel's own group reports
    /// have no place in a tunnel.
    pub fn set_tunnel_up(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Multicast;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let operation = format!("bring interface {index} up with MTU {mtu}");
        self.request(&operation, RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
    }

    /// Every address of this host.
    pub fn addresses(&mut self) -> Result<Vec<HostAddress>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.request("list addresses", request, NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address_of(&message),
                _ => None,
            })
            .collect())
    }

    /// Gives an interface an address, without the checks for another host that has it; one that is
    /// there already is no error.
    pub fn address_add(&mut self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewAddress(address_message(link, address));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let operation = format!("give interface {link} the address {address}");
        match self.request(&operation, request, flags) {
            Err(error) if error.errno() == libc::EEXIST => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes an address from an interface; one that is gone already is no error.
    pub fn address_delete(&mut self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelAddress(address_message(link, address));
        let operation = format!("take the address {address} from interface {link}");
        match self.request(&operation, request, NLM_F_ACK) {
            Err(error) if error.errno() == libc::EADDRNOTAVAIL => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks which way packets from `source` (if given) to `destination` go.
    pub fn route_get(
        &mut self,
        destination: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<NextHop, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = Prefix::host(destination).length;
        message
            .attributes
            .push(RouteAttribute::Destination(destination.into()));
        if let Some(source) = source.filter(|s| !s.is_unspecified()) {
            message.header.source_prefix_length = Prefix::host(source).length;
            message
                .attributes
                .push(RouteAttribute::Source(source.into()));
        }
        let operation = format!("find a route to {destination}");
        let answers = self.request(
            &operation,
            RouteNetlinkMessage::GetRoute(message),
            NLM_F_ACK,
        )?;
        let hops = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => Some(next_hop_of(&message)),
            _ => None,
        });
        first(hops, &operation)
    }

    /// Every unicast route of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            let answers = self.request("list routes", request, NLM_F_DUMP)?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route_of(&message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Adds a route; an existing one with the same destination and metric is an error (EEXIST).
    pub fn route_add(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route_message(route));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(&format!("add route {route}"), request, flags)
            .map(drop)
    }

    /// Adds a route or replaces the one with the same destination and metric.
    pub fn route_replace(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route_message(route));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(&format!("set route {route}"), request, flags)
            .map(drop)
    }

    /// Removes a route; one that is gone already is no error.
    pub fn route_delete(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelRoute(route_message(route));
        match self.request(&format!("remove route {route}"), request, NLM_F_ACK) {
            Err(error) if error.errno() == libc::ESRCH => Ok(()),
            other => other.map(drop),
        }
    }

    /// What the kernel knows of a neighbour; an unknown one has no MAC.
    pub fn neighbour(&mut self, link: u32, address: IpAddr) -> Result<Neighbour, NetlinkError> {
        let message = neighbour_message(link, address);
        let operation = format!("look up neighbour {address}");
        let request = RouteNetlinkMessage::GetNeighbour(message);
        match self.request(&operation, request, NLM_F_ACK) {
            Ok(answers) => {
                let found = answers.into_iter().find_map(|answer| match answer {
                    RouteNetlinkMessage::NewNeighbour(message) => Some(neighbour_of(&message)),
                    _ => None,
                });
                Ok(found.unwrap_or(Neighbour {
                    mac: None,
                    stale: false,
                }))
            }
            Err(error) if error.errno() == libc::ENOENT => Ok(Neighbour {
                mac: None,
                stale: false,
            }),
            Err(error) => Err(error),
        }
    }

    /// Asks the kernel to resolve or confirm a neighbour as if a packet were sent to it.
    pub fn neighbour_probe(&mut self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = neighbour_message(link, address);
        message.header.flags = NeighbourFlags::Use;
        let request = RouteNetlinkMessage::NewNeighbour(message);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(&format!("probe neighbour {address}"), request, flags)
            .map(drop)
    }
}

/// Where a message about a route says who made it: `rtm_protocol`, behind the header.
const RTM_PROTOCOL: usize = 16 + 5;

/// Kinds of change that a [`Monitor`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces came, went or changed.
    pub links: bool,
    /// Addresses of this host.
    pub addresses: bool,
    /// Routes, and the rules by which they are chosen.
    pub routes: bool,
    /// Neighbours.
    pub neighbours: bool,
}

impl Changes {
    /// True when anything changed.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// What changed here or there.
    pub fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
            neighbours: self.neighbours || other.neighbours,
        }
    }
}

/// A socket that is told of changes; wait for it with [`AsFd`].
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes to links, addresses, routes and neighbours.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            for group in [
                libc::RTNLGRP_LINK,
                libc::RTNLGRP_NEIGH,
                libc::RTNLGRP_IPV4_IFADDR,
                libc::RTNLGRP_IPV6_IFADDR,
                libc::RTNLGRP_IPV4_ROUTE,
                libc::RTNLGRP_IPV6_ROUTE,
                libc::RTNLGRP_IPV4_RULE,
                libc::RTNLGRP_IPV6_RULE,
            ] {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| NetlinkError::new("watch the network's state", None, e))?;
        Ok(Self { socket })
    }

    /// Reads what is queued; never waits. An overrun counts as a change of everything, routes of our own
    /// as none: there are as many as connections.
    pub fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let mut rest = datagram.as_slice();
                    while let Some(length) = message_length(rest) {
                        let kind = rest
                            .get(4..6)
                            .map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
                        match kind {
                            libc::RTM_NEWLINK | libc::RTM_DELLINK => changes.links = true,
                            libc::RTM_NEWADDR | libc::RTM_DELADDR => changes.addresses = true,
                            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                                changes.routes |= rest.get(RTM_PROTOCOL) != Some(&PROTOCOL);
                            }
                            libc::RTM_NEWRULE | libc::RTM_DELRULE => changes.routes = true,
                            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => changes.neighbours = true,
                            _ => {}
                        }
                        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes = Changes {
                        links: true,
                        addresses: true,
                        routes: true,
                        neighbours: true,
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return changes,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " on interface {}", self.link)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// Length of the netlink message at the start of `buffer`, when it is a sane one.
pub(crate) fn message_length(buffer: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(buffer.get(..4)?.try_into().ok()?) as usize;
    (length >= 16 && length <= buffer.len()).then_some(length)
}

/// NLMSGERR_ATTR_MSG of an extended acknowledgement: attributes follow the echoed header.
pub(crate) fn extended_text(after_code: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut attributes = after_code.get(16..)?;
    loop {
        let head = attributes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.split(|b| *b == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn first<T>(mut items: impl Iterator<Item = T>, operation: &str) -> Result<T, NetlinkError> {
    items.next().ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::NotFound, "the kernel gave an empty answer");
        NetlinkError::new(operation, None, source)
    })
}

fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        up: message.header.flags.contains(LinkFlags::Up),
        rx_queues: 1,
        kind: None,
        lower: None,
        controller: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) => link.mac = address.try_into().ok(),
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = queues,
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(about) => {
                link.kind = about.iter().find_map(|item| match item {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn address_message(link: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = Prefix::host(address).length;
    message.header.index = link;
    if address.is_ipv4() {
        message.attributes.push(AddressAttribute::Local(address));
    } else {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Address(address));
    message
}

fn address_of(message: &AddressMessage) -> Option<HostAddress> {
    use netlink_packet_route::address::AddressScope;
    // On a point-to-point link IFA_ADDRESS is the far end and IFA_LOCAL ours; IPv6 has only the first.
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) => address = address.or(Some(*other)),
            _ => {}
        }
    }
    Some(HostAddress {
        link: message.header.index,
        prefix: Prefix {
            address: address?,
            length: message.header.prefix_len,
        },
        global: message.header.scope == AddressScope::Universe,
    })
}

pub(crate) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn next_hop_of(message: &RouteMessage) -> NextHop {
    let local = message.header.kind == RouteType::Local;
    let mut hop = NextHop {
        link: 0,
        gateway: None,
        source: None,
        mtu: None,
        local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.link = *index,
            RouteAttribute::Gateway(gateway) => hop.gateway = ip_of(gateway),
            // An IPv4 route over an IPv6 next hop (RFC 5549).
            RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(gateway)) => {
                hop.gateway = Some(IpAddr::V6(*gateway));
            }
            RouteAttribute::PrefSource(source) => hop.source = ip_of(source),
            RouteAttribute::Metrics(metrics) => hop.mtu = mtu_of(metrics),
            _ => {}
        }
    }
    hop
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast
        || message.header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route {
        destination: Prefix {
            address: any,
            length: message.header.destination_prefix_length,
        },
        link: 0,
        gateway: None,
        source: None,
        mtu: None,
        priority: 0,
        protocol: message.header.protocol.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.address = ip_of(address)?,
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Gateway(gateway) => route.gateway = ip_of(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip_of(source),
            RouteAttribute::Metrics(metrics) => route.mtu = mtu_of(metrics),
            RouteAttribute::Priority(priority) => route.priority = *priority,
            // Of several equal next hops the first will do.
            RouteAttribute::MultiPath(hops) => {
                let Some(hop) = hops.first() else { continue };
                route.link = hop.interface_index;
                route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(gateway) => ip_of(gateway),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(route)
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(route.destination.address),
        destination_prefix_length: route.destination.length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(route.protocol),
        // The kernel checks gateways only for routes of wider scope than the link's.
        scope: if route.gateway.is_some() {
            RouteScope::Universe
        } else {
            RouteScope::Link
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(
        route.destination.address.into(),
    ));
    attributes.push(RouteAttribute::Oif(route.link));
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    if route.priority != 0 {
        attributes.push(RouteAttribute::Priority(route.priority));
    }
    message
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

pub(crate) fn neighbour_of(message: &NeighbourMessage) -> Neighbour {
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
            _ => None,
        });
    Neighbour {
        mac: mac.filter(|_| usable),
        stale: message.header.state == NeighbourState::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_what_they_should() {
        let prefix = Prefix {
            address: "10.1.2.0".parse().unwrap(),
            length: 23,
        };
        assert!(prefix.contains("10.1.3.255".parse().unwrap()));
        assert!(!prefix.contains("10.1.4.0".parse().unwrap()));
        assert!(!prefix.contains("::ffff:10.1.2.1".parse().unwrap()));
        let everything = Prefix {
            address: "::".parse().unwrap(),
            length: 0,
        };
        assert!(everything.contains("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn error_text_of_the_kernel_is_found() {
        let mut after_code = vec![0u8; 16];
        after_code.extend_from_slice(&[7, 0, 2, 0, 1, 2, 3, 0]);
        after_code.extend_from_slice(&[10, 0, 1, 0]);
        after_code.extend_from_slice(b"wrong\0\0\0");
        assert_eq!(extended_text(&after_code).as_deref(), Some("wrong"));
        assert_eq!(extended_text(&after_code[..20]), None);
    }
}
