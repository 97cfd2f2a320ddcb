//! What the kernel forwards by, read over netlink: rules, routes and neighbours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{Neighbour, Netlink, NetlinkError, Prefix, ip_of, neighbour_of};

/// Routes that are followed at most: with a table as large as the Internet's, reading it at every
/// change would cost more than going past the kernel saves.
const MOST_ROUTES: usize = 65_536;

/// The kernel's tables of that name.
const TABLE_LOCAL: u8 = 255;
const TABLE_DEFAULT: u8 = 253;

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Something that only the kernel does: to this host, to nobody, over several links.
    Kernel,
    /// To a neighbour on a link: the gateway, or the destination itself.
    Link(u32, Option<IpAddr>),
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// Lower wins; the routes to this host itself have none and win over all.
    pub priority: Option<u32>,
    /// Where to.
    pub target: Target,
}

/// Everything that decides where a packet is forwarded to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Routes of the main and the local table.
    pub routes: Vec<Route>,
    /// What is known of neighbours, by link and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Why the routes do not say where packets go, if they do not.
    pub opaque: Option<&'static str>,
}

/// Reads all of it.
pub fn forwarding(netlink: &mut Netlink) -> Result<Forwarding, NetlinkError> {
    let mut forwarding = Forwarding::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let request = RouteNetlinkMessage::GetRule(message);
        let rules = netlink.request("list routing rules", request, NLM_F_DUMP)?;
        if rules.iter().any(|answer| !is_usual(answer)) {
            forwarding.opaque = Some("there are routing rules beside the usual ones (`ip rule`)");
            return Ok(forwarding);
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let request = RouteNetlinkMessage::GetRoute(message);
        let answers = netlink.request("list routes", request, NLM_F_DUMP)?;
        if answers.len() > MOST_ROUTES {
            forwarding.opaque = Some("there are more than 65536 routes");
            return Ok(forwarding);
        }
        let routes = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => route_of(message),
            _ => None,
        });
        forwarding.routes.extend(routes);
    }
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = netlink.request("list neighbours", request, NLM_F_DUMP)?;
    for answer in answers {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else {
            continue;
        };
        let address = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    Some(IpAddr::V4(*v4))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    Some(IpAddr::V6(*v6))
                }
                _ => None,
            });
        if let Some(address) = address {
            let key = (message.header.ifindex, address);
            forwarding.neighbours.insert(key, neighbour_of(&message));
        }
    }
    Ok(forwarding)
}

/// A rule that every host has: all packets, to one of the kernel's own tables.
fn is_usual(answer: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = answer else {
        return true;
    };
    let header = &rule.header;
    let own = [TABLE_LOCAL, RouteHeader::RT_TABLE_MAIN, TABLE_DEFAULT];
    header.action == RuleAction::ToTable
        && own.contains(&header.table)
        && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert)
        && rule.attributes.iter().all(|attribute| match attribute {
            RuleAttribute::Table(_) | RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => {
                true
            }
            // -1: nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(length) => *length == u32::MAX,
            _ => false,
        })
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let priority = match header.table {
        TABLE_LOCAL => None,
        RouteHeader::RT_TABLE_MAIN => Some(0),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Dead) {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let mut route = Route {
        prefix: Prefix {
            address: any,
            length: header.destination_prefix_length,
        },
        priority,
        target: Target::Kernel,
    };
    let (mut link, mut gateway) = (None, None);
    let mut plain = priority.is_some()
        && header.kind == RouteType::Unicast
        && (header.source_prefix_length, header.tos) == (0, 0)
        && !header.flags.contains(RouteFlags::Linkdown);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.prefix.address = ip_of(address)?,
            RouteAttribute::Priority(metric) => route.priority = priority.map(|_| *metric),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            // An IPv4 route over an IPv6 next hop (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::NewDestination(_) => plain = false,
            RouteAttribute::Metrics(metrics) => {
                plain &= !metrics.iter().any(|it| matches!(it, RouteMetric::Mtu(_)));
            }
            _ => {}
        }
    }
    if let Some(link) = link.filter(|_| plain) {
        route.target = Target::Link(link, gateway);
    }
    Some(route)
}
