//! Virtual addresses: what the initiator asks for and the responder gives in IKE_AUTH (RFC 7296
//! section 2.19), and how selectors follow them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use espada_common::sa::{Mode, TrafficSelector};

use super::child::{ChildOffer, ChildRefused};
use super::context::{Common, Cx};
use super::explain;
use crate::config::ConnectionConfig;
use crate::identity::Identity;
use crate::refusal::Refusal;
use crate::selector::{self, Sides};
use crate::status::LeaseStatus;
use crate::wire::cp::{Attribute, AttributeType, ConfigType, Configuration};
use crate::wire::{NotifyType, PayloadType, Writer};

/// Most addresses, and most name servers, that are taken from one payload.
const MAX_ADDRESSES: usize = 8;

/// Virtual addresses of one end. On the responder's side the pools know by it which are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// We have them, from the peer; otherwise the peer has them from us.
    pub ours: bool,
    pub addresses: Vec<IpAddr>,
    pub dns: Vec<IpAddr>,
}

impl Lease {
    /// Selectors for the addresses.
    pub fn hosts(&self) -> Vec<TrafficSelector> {
        let addresses = self.addresses.iter().copied();
        addresses.map(TrafficSelector::host).collect()
    }
}

impl From<&Lease> for LeaseStatus {
    fn from(lease: &Lease) -> Self {
        Self {
            ours: lease.ours,
            addresses: lease.addresses.clone(),
            dns: lease.dns.clone(),
        }
    }
}

/// What a configuration payload says, as far as it is understood.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    asked: bool,
    given: bool,
    addresses: Vec<IpAddr>,
    dns: Vec<IpAddr>,
}

impl Addresses {
    pub fn of(cp: &Configuration<'_>) -> Self {
        let mut this = Self {
            asked: cp.kind == ConfigType::REQUEST,
            given: cp.kind == ConfigType::REPLY,
            ..Self::default()
        };
        for attribute in &cp.attributes {
            let (list, any) = match attribute.kind {
                AttributeType::INTERNAL_IP4_ADDRESS => {
                    (&mut this.addresses, Ipv4Addr::UNSPECIFIED.into())
                }
                AttributeType::INTERNAL_IP6_ADDRESS => {
                    (&mut this.addresses, Ipv6Addr::UNSPECIFIED.into())
                }
                AttributeType::INTERNAL_IP4_DNS | AttributeType::INTERNAL_IP6_DNS => {
                    match attribute.address() {
                        Some(address) => (&mut this.dns, address),
                        None => continue,
                    }
                }
                _ => continue,
            };
            let address = attribute.address().unwrap_or(any);
            if list.len() < MAX_ADDRESSES && !list.contains(&address) {
                list.push(address);
            }
        }
        this
    }
}

/// The attributes for addresses and for name servers of a family.
fn kinds(address: IpAddr) -> (AttributeType, AttributeType) {
    match address {
        IpAddr::V4(_) => (
            AttributeType::INTERNAL_IP4_ADDRESS,
            AttributeType::INTERNAL_IP4_DNS,
        ),
        IpAddr::V6(_) => (
            AttributeType::INTERNAL_IP6_ADDRESS,
            AttributeType::INTERNAL_IP6_DNS,
        ),
    }
}

/// The value of an attribute for an address: "16 octets IPv6 address and one octet prefix length".
fn address_value(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => [&address.octets()[..], &[128]].concat(),
    }
}

fn dns_value(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn write(writer: &mut Writer, kind: ConfigType, attributes: &[(AttributeType, Vec<u8>)]) {
    let attributes = attributes
        .iter()
        .map(|(kind, value)| Attribute { kind: *kind, value });
    let cp = Configuration {
        kind,
        attributes: attributes.collect(),
    };
    writer.add(PayloadType::CP, |out| cp.encode(out));
}

/// Initiator: asks for what is configured, and for name servers of the same families.
pub(crate) fn write_request(writer: &mut Writer, config: &ConnectionConfig) {
    if config.vips.is_empty() {
        return;
    }
    let mut attributes: Vec<(AttributeType, Vec<u8>)> = Vec::new();
    for vip in &config.vips {
        let value = match vip.is_unspecified() {
            true => Vec::new(),
            false => address_value(*vip),
        };
        attributes.push((kinds(*vip).0, value));
    }
    for vip in &config.vips {
        let kind = kinds(*vip).1;
        if !attributes.iter().any(|(known, _)| *known == kind) {
            attributes.push((kind, Vec::new()));
        }
    }
    write(writer, ConfigType::REQUEST, &attributes);
}

/// Initiator: takes what the peer gives. The selectors that it answered with are cut to that, as
/// some peers answer with whatever they were asked for.
pub(crate) fn accept(
    config: &ConnectionConfig,
    common: &mut Common,
    answer: &mut ChildOffer,
) -> Result<(), Arc<Refusal>> {
    if config.vips.is_empty() {
        return Ok(());
    }
    let mut given = answer.addresses.take().unwrap_or_default();
    let usable = |address: &IpAddr| {
        let asked = |vip: &IpAddr| vip.is_ipv4() == address.is_ipv4();
        !address.is_unspecified() && !address.is_multicast() && config.vips.iter().any(asked)
    };
    given.addresses.retain(usable);
    if !given.given || given.addresses.is_empty() {
        return Err(explain::no_address(config, common));
    }
    let lease = Lease {
        ours: true,
        addresses: given.addresses,
        dns: given.dns,
    };
    if follows(config).local {
        answer.ts_i = selector::narrow(&lease.hosts(), &answer.ts_i);
    }
    common.lease = Some(Arc::new(lease));
    Ok(())
}

/// Responder: finds an address for a peer that asks for one, or must.
pub(crate) fn lease(
    cx: &mut Cx<'_>,
    config: &ConnectionConfig,
    common: &Common,
    request: &ChildOffer,
    identity: &Identity,
    initial_contact: bool,
) -> Result<Option<Arc<Lease>>, ChildRefused> {
    if config.pools.is_empty() {
        return Ok(None);
    }
    let wishes = match &request.addresses {
        Some(asked) if asked.asked => &asked.addresses[..],
        _ => &[],
    };
    if wishes.is_empty() {
        return match follows(config).remote {
            true => Err(ChildRefused {
                notify: NotifyType::FAILED_CP_REQUIRED,
                refusal: explain::address_not_asked(config, common),
            }),
            false => Ok(None),
        };
    }
    let mut lease = Lease {
        ours: false,
        addresses: Vec::new(),
        dns: Vec::new(),
    };
    // One of each family: more would only keep addresses from others.
    for v4 in [true, false] {
        let Some(wish) = wishes.iter().find(|wish| wish.is_ipv4() == v4) else {
            continue;
        };
        let pools = config.pools.iter();
        for pool in pools.filter(|pool| pool.addresses.start.is_ipv4() == v4) {
            let leases = &mut cx.out.leases;
            if let Some(address) = leases.find(pool, identity, *wish, initial_contact) {
                lease.addresses.push(address);
                lease.dns.extend(&pool.dns);
                break;
            }
        }
    }
    if lease.addresses.is_empty() {
        return Err(ChildRefused {
            notify: NotifyType::INTERNAL_ADDRESS_FAILURE,
            refusal: explain::no_address_left(config, common, identity, wishes),
        });
    }
    lease.dns.dedup();
    let lease = Arc::new(lease);
    hold(cx, config, identity, &lease);
    Ok(Some(lease))
}

/// The pools note what a peer has.
pub(crate) fn hold(
    cx: &mut Cx<'_>,
    config: &ConnectionConfig,
    identity: &Identity,
    lease: &Arc<Lease>,
) {
    for pool in config.pools.iter().filter(|_| !lease.ours) {
        cx.out.leases.hold(pool, identity, lease);
    }
}

/// Responder: tells the peer its addresses.
pub(crate) fn write_reply(writer: &mut Writer, common: &Common) {
    let Some(lease) = common.lease.as_ref().filter(|lease| !lease.ours) else {
        return;
    };
    let addresses = lease.addresses.iter();
    let addresses = addresses.map(|address| (kinds(*address).0, address_value(*address)));
    let servers = lease.dns.iter();
    let servers = servers.map(|address| (kinds(*address).1, dns_value(*address)));
    let attributes: Vec<_> = addresses.chain(servers).collect();
    write(writer, ConfigType::REPLY, &attributes);
}

/// Which sides' selectors are virtual addresses.
pub(crate) struct Follows {
    pub local: bool,
    pub remote: bool,
}

/// Which sides' selectors of a connection are virtual addresses.
pub(crate) fn follows(config: &ConnectionConfig) -> Follows {
    let tunnel = config.mode == Mode::Tunnel;
    Follows {
        local: tunnel && config.local_ts.is_empty() && !config.vips.is_empty(),
        remote: tunnel && config.remote_ts.is_empty() && !config.pools.is_empty(),
    }
}

/// Puts the virtual addresses into selectors that follow them. Before the peer has given us any,
/// that is every address of the families asked for, which it then narrows.
pub(crate) fn fill(config: &ConnectionConfig, lease: Option<&Lease>, sides: &mut Sides) {
    let follows = follows(config);
    if follows.local {
        sides.local = match lease.filter(|lease| lease.ours) {
            Some(lease) => lease.hosts(),
            None => {
                let mut everything: Vec<TrafficSelector> = Vec::new();
                for vip in &config.vips {
                    let family = TrafficSelector::prefix(*vip, 0);
                    everything.extend(family.filter(|family| !everything.contains(family)));
                }
                everything
            }
        };
    }
    if follows.remote {
        let given = lease.filter(|lease| !lease.ours);
        sides.remote = given.map_or_else(Vec::new, Lease::hosts);
    }
}
