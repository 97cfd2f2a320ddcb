//! A small synchronous rtnetlink client: links, addresses, routes and neighbours. A socket
//! belongs to the network namespace of the thread that opened it.

mod message;
mod monitor;

use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use self::message::{
    address_message, address_of, family, link_of, neighbour_message, next_hop_of, route_message,
    route_of,
};
pub(crate) use self::message::{ip_of, neighbour_of};
pub use self::monitor::{Changes, Monitor};
use crate::backend::BackendError;

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

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " on interface {}", self.link)
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
