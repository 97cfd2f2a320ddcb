//! Where decrypted packets go on LAN interfaces, as the kernel would send them: a table made from its
//! routes and neighbours, for workers that send past it.

mod kernel;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

pub use kernel::{Forwarding, Route, Target, forwarding};

use crate::netlink::{Netlink, Prefix};
use crate::port::xsk::NextLink;
use ranges::{Bits, Ranges, host_mask};

/// A LAN interface as the table must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Number of the interface.
    pub link: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
}

/// A neighbour that packets can be sent to.
#[derive(Debug)]
pub struct Hop {
    /// Place of its interface among the LAN interfaces.
    pub port: usize,
    /// What goes before the packet.
    pub next: NextLink,
    link: u32,
    address: IpAddr,
    stale: bool,
    /// Packets were sent to it.
    used: AtomicBool,
}

impl Hop {
    /// Remembers that packets go there, so that the kernel is asked to look after the neighbour.
    pub fn mark_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// Neighbours by the destinations that are reached over them.
#[derive(Debug)]
pub struct Table {
    v4: Ranges<Option<u32>>,
    v6: Ranges<Option<u32>>,
    hops: Vec<Hop>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(&[], &Forwarding::default())
    }
}

impl PartialEq for Table {
    /// Whether packets go the same ways.
    fn eq(&self, other: &Self) -> bool {
        let ways = |table: &Self| -> Vec<(usize, NextLink, bool)> {
            let hops = table.hops.iter();
            hops.map(|hop| (hop.port, hop.next.clone(), hop.stale))
                .collect()
        };
        self.v4 == other.v4 && self.v6 == other.v6 && ways(self) == ways(other)
    }
}

impl Table {
    /// What the kernel does on LAN interfaces; `None` among them is one that cannot send now.
    pub fn new(sides: &[Option<Side>], forwarding: &Forwarding) -> Self {
        let mut table = Self {
            v4: Ranges::new(&BTreeMap::new(), None),
            v6: Ranges::new(&BTreeMap::new(), None),
            hops: Vec::new(),
        };
        if forwarding.opaque.is_none() {
            table.v4 = table.family(sides, forwarding, true);
            table.v6 = table.family(sides, forwarding, false);
        }
        table
    }

    fn family(
        &mut self,
        sides: &[Option<Side>],
        forwarding: &Forwarding,
        v4: bool,
    ) -> Ranges<Option<u32>> {
        let routes = best_routes(forwarding, v4);
        let on_link: BTreeMap<Bits, Option<u32>> = (routes.iter())
            .map(|(bits, target)| match target {
                Target::Link(link, None) => (*bits, Some(*link)),
                _ => (*bits, None),
            })
            .collect();
        let on_link = Ranges::new(&on_link, None);
        let mut known = HashMap::new();
        let mut entries = BTreeMap::new();
        for (bits, target) in &routes {
            let hop = match target {
                Target::Link(link, Some(gateway)) => {
                    self.hop(&mut known, sides, forwarding, (*link, *gateway), v4)
                }
                _ => None,
            };
            entries.insert(*bits, hop);
        }
        for (link, address) in forwarding.neighbours.keys() {
            let host = bits_of(Prefix::host(*address));
            if address.is_ipv4() == v4 && on_link.get(host.0) == Some(Some(*link)) {
                let hop = self.hop(&mut known, sides, forwarding, (*link, *address), v4);
                entries.insert(host, hop);
            }
        }
        Ranges::new(&entries, None)
    }

    /// The number of a neighbour, if it can be sent to.
    fn hop(
        &mut self,
        known: &mut HashMap<(u32, IpAddr), u32>,
        sides: &[Option<Side>],
        forwarding: &Forwarding,
        key: (u32, IpAddr),
        v4: bool,
    ) -> Option<u32> {
        if let Some(number) = known.get(&key) {
            return Some(*number);
        }
        let (link, address) = key;
        let usable = |side: &Option<Side>| side.is_some_and(|side| side.link == link);
        let port = sides.iter().position(usable)?;
        let side = (*sides.get(port)?)?;
        let neighbour = forwarding.neighbours.get(&key)?;
        let number = u32::try_from(self.hops.len()).ok()?;
        self.hops.push(Hop {
            port,
            next: NextLink::new(neighbour.mac?, side.mac, v4, side.mtu as usize),
            link,
            address,
            stale: neighbour.stale,
            used: AtomicBool::new(false),
        });
        known.insert(key, number);
        Some(number)
    }

    /// The neighbour that leads to the destination of a whole IP packet, where there is one.
    pub fn find(&self, packet: &[u8]) -> Option<&Hop> {
        let number = match packet.first()? >> 4 {
            4 => {
                let address = u32::from_be_bytes(*packet.get(16..)?.first_chunk()?);
                self.v4.get(u128::from(address) << 96)
            }
            6 => {
                let address = u128::from_be_bytes(*packet.get(24..)?.first_chunk()?);
                self.v6.get(address)
            }
            _ => None,
        }??;
        self.hops.get(number as usize)
    }

    /// Nothing can be sent.
    pub fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    /// Has the kernel confirm the neighbours that packets went to by the `former` table since this was
    /// last asked, and of which it has not heard lately: what passes it by tells it nothing.
    pub fn confirm(&self, former: &Self, netlink: &mut Netlink) {
        let used: HashSet<(u32, IpAddr)> = (former.hops.iter())
            .filter(|hop| hop.used.swap(false, Ordering::Relaxed))
            .map(|hop| (hop.link, hop.address))
            .collect();
        for hop in &self.hops {
            if hop.stale
                && used.contains(&(hop.link, hop.address))
                && let Err(error) = netlink.neighbour_probe(hop.link, hop.address)
            {
                tracing::debug!(%error, "neighbour not probed");
            }
        }
    }
}

/// The best route to each prefix of a family.
fn best_routes(forwarding: &Forwarding, v4: bool) -> BTreeMap<Bits, Target> {
    let mut best: BTreeMap<Bits, (Option<u32>, Target)> = BTreeMap::new();
    let of_family = |route: &&Route| route.prefix.address.is_ipv4() == v4;
    for route in forwarding.routes.iter().filter(of_family) {
        let found = (route.priority, route.target);
        best.entry(bits_of(route.prefix))
            .and_modify(|known| {
                // `None` is below every number: the local table is asked first.
                if found.0 < known.0 {
                    *known = found;
                } else if found.0 == known.0 {
                    // Several of equal rank: the kernel spreads packets over them.
                    known.1 = Target::Kernel;
                }
            })
            .or_insert(found);
    }
    best.into_iter()
        .map(|(bits, (_, target))| (bits, target))
        .collect()
}

fn bits_of(prefix: Prefix) -> Bits {
    let address = match prefix.address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => v6.into(),
    };
    (address & !host_mask(prefix.length), prefix.length)
}
