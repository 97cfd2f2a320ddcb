//! Routes that bring protected traffic to the tunnel interface, visible in `ip route` under a
//! protocol number of our own.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{Policy, TrafficSelector};

use crate::backend::BackendError;
use crate::frontend::policy::prefixes;
use crate::netlink::{HostAddress, Netlink, NetlinkError, Prefix, Route};

/// `RTPROT_*` number of our routes (none of those iproute2 names). `ip route show proto 150`
/// lists them.
pub const PROTOCOL: u8 = 150;

fn covers(selectors: &[TrafficSelector], address: IpAddr) -> bool {
    selectors.iter().any(|ts| {
        ts.start.is_ipv4() == address.is_ipv4() && ts.start <= address && address <= ts.end
    })
}

/// The metric that wins over every other; 0 means 1024 in IPv6.
fn best_metric(destination: IpAddr) -> u32 {
    if destination.is_ipv4() { 0 } else { 1 }
}

/// Where a policy's routes lead to.
fn destinations(policy: &Policy) -> BTreeSet<Prefix> {
    let remote = policy.remote_ts.iter();
    remote.flat_map(|ts| prefixes(ts.start, ts.end)).collect()
}

/// One destination in the tunnel and who wants it there.
struct Entry {
    connections: BTreeSet<Arc<str>>,
    route: Route,
}

/// The routes of all engines.
pub struct Routes {
    /// Plaintext interfaces.
    links: Vec<u32>,
    /// Routes that a predecessor left where its SAs are still carried, until they are wanted again
    /// or [`Routes::settle`] removes them.
    inherited: Vec<Route>,
    entries: BTreeMap<Prefix, Entry>,
    /// Peers, and the host route that keeps one out of the tunnel where that is needed.
    peers: BTreeMap<IpAddr, Option<Route>>,
    policies: BTreeMap<Arc<str>, Policy>,
    /// Virtual addresses and the plaintext interfaces that have them.
    addresses: BTreeMap<IpAddr, u32>,
    surroundings: Option<(Instant, Arc<Surroundings>)>,
}

/// What else there is on this host, as it was a moment ago.
#[derive(Default)]
struct Surroundings {
    addresses: Vec<HostAddress>,
    /// Those that lead elsewhere.
    routes: Vec<Route>,
}

/// So long it is not looked at again: thousands of policies may come at once.
const MOMENT: Duration = Duration::from_millis(100);

impl Routes {
    /// No routes yet, except those a predecessor left on the same interfaces: they stay for now,
    /// since SAs that outlived it may be using them.
    pub fn new(netlink: &mut Netlink, links: Vec<u32>) -> Result<Self, NetlinkError> {
        let inherited = netlink
            .routes()?
            .into_iter()
            .filter(|route| route.protocol == PROTOCOL && links.contains(&route.link))
            .collect();
        Ok(Self {
            links,
            inherited,
            entries: BTreeMap::new(),
            peers: BTreeMap::new(),
            policies: BTreeMap::new(),
            addresses: BTreeMap::new(),
            surroundings: None,
        })
    }

    /// Policies installed at the moment.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// Whether a connection has a policy.
    pub fn has_policy(&self, connection: &str) -> bool {
        self.policies.contains_key(connection)
    }

    fn destinations_of(&self, connection: &str) -> BTreeSet<Prefix> {
        let policy = self.policies.get(connection);
        policy.map(destinations).unwrap_or_default()
    }

    /// Whether packets of a connection ask for an SA.
    pub fn traps(&self, connection: &str) -> bool {
        let policy = self.policies.get(connection);
        policy.is_some_and(|policy| policy.trap)
    }

    /// The MTU of a connection's routes, where it is set.
    pub fn mtu(&self, connection: &str) -> Option<u32> {
        let policy = self.policies.get(connection)?;
        let first = policy.remote_ts.first()?;
        let destination = prefixes(first.start, first.end).into_iter().next()?;
        self.entries.get(&destination)?.route.mtu
    }

    /// Removes what a predecessor left and nobody wanted.
    pub fn settle(&mut self, netlink: &mut Netlink) {
        for route in std::mem::take(&mut self.inherited) {
            if let Err(error) = netlink.route_delete(&route) {
                tracing::warn!(%error, "a route of an earlier run stays behind");
            }
        }
    }

    /// Brings a policy's remote networks to a plaintext interface, in place of those of a former
    /// policy of its connection. On an error nothing of either stays.
    pub fn install(
        &mut self,
        netlink: &mut Netlink,
        policy: &Policy,
        link: u32,
    ) -> Result<(), BackendError> {
        let wanted = destinations(policy);
        let former = self.destinations_of(&policy.connection);
        self.policies
            .insert(Arc::clone(&policy.connection), policy.clone());
        // Before the routes that would swallow them.
        self.refresh_peers(netlink);
        let added = self.add_addresses(netlink, policy, link);
        if let Err(error) = added.and_then(|()| self.add_all(netlink, policy, &wanted, link)) {
            let _ = self.withdraw(netlink, &policy.connection, &former);
            let _ = self.remove(netlink, &policy.connection);
            return Err(error);
        }
        let gone: BTreeSet<Prefix> = former.difference(&wanted).copied().collect();
        self.withdraw(netlink, &policy.connection, &gone)?;
        Ok(self.drop_addresses(netlink)?)
    }

    /// Virtual addresses first, since routes name them as their source.
    fn add_addresses(
        &mut self,
        netlink: &mut Netlink,
        policy: &Policy,
        link: u32,
    ) -> Result<(), BackendError> {
        for address in policy.addresses.iter().copied() {
            if let btree_map::Entry::Vacant(place) = self.addresses.entry(address) {
                netlink.address_add(link, address)?;
                tracing::info!(connection = %policy.connection, %address, "virtual address");
                place.insert(link);
            }
        }
        Ok(())
    }

    /// Takes back virtual addresses that no policy has any more. No route names them: the kernel
    /// would remove it with the address.
    fn drop_addresses(&mut self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let mut result = Ok(());
        let mut bare = BTreeSet::new();
        let policies = &self.policies;
        self.addresses.retain(|address, link| {
            let wanted = policies
                .values()
                .any(|policy| policy.addresses.contains(address));
            if !wanted {
                let deleted = netlink.address_delete(*link, *address);
                if deleted.is_err() {
                    result = deleted;
                }
                if address.is_ipv4() {
                    bare.insert(*link);
                }
            }
            wanted
        });
        // With the last IPv4 address of an interface the kernel removes its IPv4 routes.
        for entry in self.entries.values() {
            if entry.route.destination.address.is_ipv4() && bare.contains(&entry.route.link) {
                netlink.route_replace(&entry.route)?;
            }
        }
        result
    }

    fn add_all(
        &mut self,
        netlink: &mut Netlink,
        policy: &Policy,
        wanted: &BTreeSet<Prefix>,
        link: u32,
    ) -> Result<(), BackendError> {
        let new = |destination: &Prefix| !self.entries.contains_key(destination);
        let around = match wanted.iter().any(new) {
            true => self.look_around(netlink)?,
            false => Arc::default(),
        };
        for destination in wanted.iter().copied() {
            let virtual_addresses = policy.addresses.iter().copied();
            let source = around
                .addresses
                .iter()
                .filter(|address| !self.links.contains(&address.link) && address.global)
                .map(|address| address.prefix.address)
                .chain(virtual_addresses)
                .find(|address| {
                    address.is_ipv4() == destination.address.is_ipv4()
                        && covers(&policy.local_ts, *address)
                });
            if let Some(entry) = self.entries.get_mut(&destination) {
                entry.connections.insert(Arc::clone(&policy.connection));
                // Whoever shares it with another connection keeps the source that it began with,
                // unless that is about to go.
                let gone = entry.route.source.is_some_and(|old| {
                    let has = |policy: &Policy| policy.addresses.contains(&old);
                    self.addresses.contains_key(&old) && !self.policies.values().any(has)
                });
                if entry.route.source != source && (gone || entry.connections.len() == 1) {
                    let route = Route {
                        source,
                        ..entry.route
                    };
                    netlink.route_replace(&route)?;
                    entry.route = route;
                }
                continue;
            }
            let route = Route {
                destination,
                link,
                gateway: None,
                source,
                mtu: None,
                priority: best_metric(destination.address),
                protocol: PROTOCOL,
            };
            self.report_overlaps(&around.routes, &route, &policy.connection);
            let known = self.inherited.len();
            self.inherited
                .retain(|old| (old.destination, old.priority) != (destination, route.priority));
            let added = if self.inherited.len() < known {
                // In place of the predecessor's, without a moment between.
                netlink.route_replace(&route)
            } else {
                netlink.route_add(&route)
            };
            added.map_err(|error| match error.errno() {
                libc::EEXIST => BackendError::System {
                    what: format!(
                        "connection {}: there is a route to {destination} already, so traffic \
                         to it would bypass the tunnel; see `ip route show {destination}`, and \
                         remove that route or take the network out of remote.subnets",
                        policy.connection
                    ),
                    source: std::io::Error::from_raw_os_error(libc::EEXIST),
                },
                _ => error.into(),
            })?;
            let source = source.map(tracing::field::display);
            tracing::info!(connection = %policy.connection, %destination, source, "route into the tunnel");
            let connections = BTreeSet::from([Arc::clone(&policy.connection)]);
            self.entries
                .insert(destination, Entry { connections, route });
        }
        Ok(())
    }

    fn look_around(&mut self, netlink: &mut Netlink) -> Result<Arc<Surroundings>, NetlinkError> {
        if let Some((seen, known)) = &self.surroundings
            && seen.elapsed() < MOMENT
        {
            return Ok(Arc::clone(known));
        }
        let mut routes = netlink.routes()?;
        routes.retain(|route| !self.links.contains(&route.link));
        let around = Arc::new(Surroundings {
            addresses: netlink.addresses()?,
            routes,
        });
        self.surroundings = Some((Instant::now(), Arc::clone(&around)));
        Ok(around)
    }

    fn report_overlaps(&self, existing: &[Route], route: &Route, connection: &str) {
        for other in existing {
            let narrower = other.destination.length > route.destination.length
                && route.destination.contains(other.destination.address);
            if narrower && other.protocol != PROTOCOL {
                tracing::info!(
                    connection,
                    "{} is routed apart ({other}) although it lies in {}: it stays outside the tunnel",
                    other.destination,
                    route.destination
                );
            } else if other.destination == route.destination {
                tracing::warn!(connection, "route `{other}` is overridden by the tunnel's");
            }
        }
    }

    /// Brings a connection's networks to another plaintext interface. Those that another connection
    /// wants as well go along: one destination has one way.
    pub fn rehome(&mut self, netlink: &mut Netlink, connection: &str, link: u32) {
        for destination in self.destinations_of(connection) {
            let entry = self.entries.get_mut(&destination);
            let Some(entry) = entry.filter(|entry| entry.route.link != link) else {
                continue;
            };
            let route = Route {
                link,
                ..entry.route
            };
            match netlink.route_replace(&route) {
                Ok(()) => entry.route = route,
                Err(error) => {
                    tracing::error!(connection, %error, "traffic stays with the engine it had");
                }
            }
        }
    }

    /// Takes back what only this connection wanted in the tunnel.
    pub fn remove(&mut self, netlink: &mut Netlink, connection: &str) -> Result<(), NetlinkError> {
        let gone = self.destinations_of(connection);
        self.policies.remove(connection);
        self.withdraw(netlink, connection, &gone)?;
        self.drop_addresses(netlink)
    }

    /// Takes a connection off entries that it does not want any more.
    fn withdraw(
        &mut self,
        netlink: &mut Netlink,
        connection: &str,
        gone: &BTreeSet<Prefix>,
    ) -> Result<(), NetlinkError> {
        let mut result = Ok(());
        for destination in gone {
            let btree_map::Entry::Occupied(mut entry) = self.entries.entry(*destination) else {
                continue;
            };
            entry.get_mut().connections.remove(connection);
            if entry.get().connections.is_empty() {
                let removed = netlink.route_delete(&entry.remove().route);
                if removed.is_err() {
                    result = removed;
                }
            }
        }
        result
    }

    /// Sets the MTU of a connection's routes: inner packets above it are refused with ICMP by the
    /// kernel already.
    pub fn set_mtu(&mut self, netlink: &mut Netlink, connection: &str, mtu: u32) {
        for destination in self.destinations_of(connection) {
            let entry = self.entries.get_mut(&destination);
            let Some(entry) = entry.filter(|entry| entry.route.mtu != Some(mtu)) else {
                continue;
            };
            entry.route.mtu = Some(mtu);
            if let Err(error) = netlink.route_replace(&entry.route) {
                tracing::warn!(%error, "cannot set the MTU of a route into the tunnel");
            }
        }
    }

    /// Keeps packets to a peer's own address out of the tunnel when a protected network contains
    /// it, now or after a policy is installed: ESP and IKE would otherwise loop.
    pub fn exempt(&mut self, netlink: &mut Netlink, peer: IpAddr) -> Result<(), BackendError> {
        // Those that are known are looked at with every policy and every change of the network.
        if peer.is_unspecified() || self.peers.contains_key(&peer) {
            return Ok(());
        }
        self.settle_peer(netlink, peer)?;
        self.peers.entry(peer).or_default();
        Ok(())
    }

    /// Looks the ways to the peers up again: a WAN link may have got another gateway.
    pub fn refresh_peers(&mut self, netlink: &mut Netlink) {
        let peers: Vec<IpAddr> = self.peers.keys().copied().collect();
        for peer in peers {
            if let Err(error) = self.settle_peer(netlink, peer) {
                tracing::warn!(%peer, %error, "the way to a peer may lead into its own tunnel");
            }
        }
    }

    fn settle_peer(&mut self, netlink: &mut Netlink, peer: IpAddr) -> Result<(), BackendError> {
        let inside = self
            .policies
            .values()
            .any(|policy| covers(&policy.remote_ts, peer));
        if !inside {
            return Ok(());
        }
        // The kernel's answer would be the tunnel, so the best route beside it is looked up here.
        let best = netlink
            .routes()?
            .into_iter()
            .filter(|route| {
                !self.links.contains(&route.link)
                    && route.protocol != PROTOCOL
                    && route.destination.contains(peer)
            })
            .max_by_key(|route| (route.destination.length, std::cmp::Reverse(route.priority)));
        let Some(best) = best else {
            return Err(BackendError::System {
                what: format!(
                    "the peer {peer} lies inside its own remote.subnets and no other route leads to it"
                ),
                source: std::io::Error::from_raw_os_error(libc::ENETUNREACH),
            });
        };
        let route = Route {
            destination: Prefix::host(peer),
            mtu: None,
            priority: best_metric(peer),
            protocol: PROTOCOL,
            ..best
        };
        // A host route that somebody else made does what is needed.
        let known = self.peers.get(&peer).copied().flatten();
        if best.destination == route.destination || known == Some(route) {
            return Ok(());
        }
        netlink.route_replace(&route)?;
        tracing::info!(%peer, "the peer lies inside its own remote.subnets: its address gets a route of its own ({route})");
        self.peers.insert(peer, Some(route));
        Ok(())
    }

    /// Removes every route.
    pub fn clear(&mut self, netlink: &mut Netlink) {
        self.settle(netlink);
        let entries = std::mem::take(&mut self.entries)
            .into_values()
            .map(|entry| entry.route);
        let hosts = std::mem::take(&mut self.peers).into_values().flatten();
        for route in entries.chain(hosts) {
            if let Err(error) = netlink.route_delete(&route) {
                tracing::warn!(%error, "a route stays behind");
            }
        }
        self.policies.clear();
        if let Err(error) = self.drop_addresses(netlink) {
            tracing::warn!(%error, "a virtual address stays behind");
        }
    }
}
