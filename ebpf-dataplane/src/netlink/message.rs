//! Between the kernel's messages and what they say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{HostAddress, Link, Neighbour, NextHop, Prefix, Route};

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

pub(super) fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
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

pub(super) fn address_message(link: u32, address: IpAddr) -> AddressMessage {
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

pub(super) fn address_of(message: &AddressMessage) -> Option<HostAddress> {
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

pub(super) fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

pub(super) fn next_hop_of(message: &RouteMessage) -> NextHop {
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
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                hop.gateway = Some(IpAddr::V6(*gateway));
            }
            RouteAttribute::PrefSource(source) => hop.source = ip_of(source),
            RouteAttribute::Metrics(metrics) => hop.mtu = mtu_of(metrics),
            _ => {}
        }
    }
    hop
}

pub(super) fn route_of(message: &RouteMessage) -> Option<Route> {
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

pub(super) fn route_message(route: &Route) -> RouteMessage {
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

pub(super) fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
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
