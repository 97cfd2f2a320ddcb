//! Which addresses of the pools are leased to whom (RFC 7296 section 2.19). An identity gets the
//! address that it had before, as long as nobody needs it more.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Weak};

use super::cp::Lease;
use crate::config::Pool;
use crate::identity::Identity;

/// Most addresses of a pool that are remembered, in use or not.
const MAX_LEASES: usize = 65_536;

/// The leases of all pools, by name.
#[derive(Default)]
pub(crate) struct Leases {
    tables: HashMap<Arc<str>, Table>,
}

/// The leases of one pool.
#[derive(Default)]
struct Table {
    holders: HashMap<IpAddr, Holder>,
    by_identity: HashMap<Identity, Vec<IpAddr>>,
    /// Addresses before this one, counted from the first, were given once.
    next: u128,
    /// Counts what is given, to tell what was given longest ago.
    clock: u64,
}

struct Holder {
    identity: Identity,
    /// Gone with the IKE SA that has it.
    lease: Weak<Lease>,
    given: u64,
}

impl Holder {
    fn is_free(&self) -> bool {
        self.lease.strong_count() == 0
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address `offset` after the pool's first one, if it has so many.
fn at(pool: &Pool, offset: u128) -> Option<IpAddr> {
    let number = number(pool.addresses.start).checked_add(offset)?;
    let address = match pool.addresses.start {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).ok()?).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    };
    pool.addresses.contains_addr(address).then_some(address)
}

impl Leases {
    /// An address of the pool for a peer: the one that it had, the one that it wishes, one that
    /// nobody had, or the one that was left longest ago. `anew`: the peer says that whatever else it
    /// has with us is over (INITIAL_CONTACT). `None`: all are in use.
    ///
    /// It is given once [`Self::hold`] is called.
    pub fn find(
        &mut self,
        pool: &Pool,
        identity: &Identity,
        wish: IpAddr,
        anew: bool,
    ) -> Option<IpAddr> {
        let table = self.tables.entry(Arc::clone(&pool.name)).or_default();
        let own = table.by_identity.get(identity);
        let had = own.into_iter().flatten().copied().find(|address| {
            let holder = table.holders.get(address);
            pool.addresses.contains_addr(*address)
                && holder.is_some_and(|holder| anew || holder.is_free())
        });
        if had.is_some() {
            return had;
        }
        if table.holders.len() < MAX_LEASES {
            if pool.addresses.contains_addr(wish) && !table.holders.contains_key(&wish) {
                return Some(wish);
            }
            while let Some(address) = at(pool, table.next) {
                if !table.holders.contains_key(&address) {
                    return Some(address);
                }
                table.next += 1;
            }
        }
        let left = table
            .holders
            .iter()
            .filter(|(address, holder)| pool.addresses.contains_addr(**address) && holder.is_free())
            .min_by_key(|(_, holder)| holder.given);
        left.map(|(address, _)| *address)
    }

    /// Notes that a peer has the addresses of a lease that are of the pool, for as long as the lease
    /// lives.
    pub fn hold(&mut self, pool: &Pool, identity: &Identity, lease: &Arc<Lease>) {
        let table = self.tables.entry(Arc::clone(&pool.name)).or_default();
        for address in lease.addresses.iter().copied() {
            if !pool.addresses.contains_addr(address) {
                continue;
            }
            table.clock += 1;
            let holder = Holder {
                identity: identity.clone(),
                lease: Arc::downgrade(lease),
                given: table.clock,
            };
            if let Some(before) = table.holders.insert(address, holder)
                && before.identity != *identity
                && let Some(list) = table.by_identity.get_mut(&before.identity)
            {
                list.retain(|other| *other != address);
                if list.is_empty() {
                    table.by_identity.remove(&before.identity);
                }
            }
            let list = table.by_identity.entry(identity.clone()).or_default();
            if !list.contains(&address) {
                list.push(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector;

    fn pool(addresses: &str) -> Pool {
        Pool {
            name: "clients".into(),
            addresses: selector::parse(addresses).unwrap(),
            dns: Vec::new(),
        }
    }

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    /// Takes an address and gives the lease that holds it.
    fn take(leases: &mut Leases, pool: &Pool, who: &str, anew: bool) -> Option<Arc<Lease>> {
        let identity = who.parse().unwrap();
        let address = leases.find(pool, &identity, ANY, anew)?;
        let lease = Arc::new(Lease {
            ours: false,
            addresses: vec![address],
            dns: Vec::new(),
        });
        leases.hold(pool, &identity, &lease);
        Some(lease)
    }

    fn of(lease: &Option<Arc<Lease>>) -> String {
        lease.as_ref().unwrap().addresses[0].to_string()
    }

    #[test]
    fn an_identity_gets_its_address_again() {
        let (mut leases, pool) = (Leases::default(), pool("10.9.0.1..10.9.0.3"));
        let a = take(&mut leases, &pool, "a.example", false);
        let b = take(&mut leases, &pool, "b.example", false);
        assert_eq!((of(&a).as_str(), of(&b).as_str()), ("10.9.0.1", "10.9.0.2"));
        drop(a);
        let c = take(&mut leases, &pool, "c.example", false);
        assert_eq!(of(&c), "10.9.0.3", "what nobody had goes first");
        let a = take(&mut leases, &pool, "a.example", false);
        assert_eq!(of(&a), "10.9.0.1");
    }

    #[test]
    fn what_was_left_longest_ago_is_given_to_another() {
        let (mut leases, pool) = (Leases::default(), pool("10.9.0.1..10.9.0.2"));
        drop(take(&mut leases, &pool, "a.example", false));
        let b = take(&mut leases, &pool, "b.example", false);
        let c = take(&mut leases, &pool, "c.example", false);
        assert_eq!(of(&c), "10.9.0.1");
        assert!(take(&mut leases, &pool, "d.example", false).is_none());
        // A has lost it for good.
        assert!(take(&mut leases, &pool, "a.example", false).is_none());
        drop(b);
        let a = take(&mut leases, &pool, "a.example", false);
        assert_eq!(of(&a), "10.9.0.2");
    }

    #[test]
    fn two_of_one_identity_have_two_addresses_unless_the_first_is_over() {
        let (mut leases, pool) = (Leases::default(), pool("10.9.0.0/24"));
        let first = take(&mut leases, &pool, "a.example", false);
        let second = take(&mut leases, &pool, "a.example", false);
        assert_ne!(of(&first), of(&second));
        let third = take(&mut leases, &pool, "a.example", true);
        assert_eq!(of(&first), of(&third));
    }

    #[test]
    fn a_large_pool_is_remembered_in_part() {
        let (mut leases, pool) = (Leases::default(), pool("2001:db8::/64"));
        for client in 0..MAX_LEASES + 10 {
            assert!(take(&mut leases, &pool, &format!("c{client}.example"), false).is_some());
        }
        let table = leases.tables.get("clients").unwrap();
        assert_eq!(table.holders.len(), MAX_LEASES);
        assert_eq!(table.by_identity.len(), MAX_LEASES);
    }

    #[test]
    fn the_last_address_of_a_family_is_the_end() {
        let (mut leases, pool) = (Leases::default(), pool("255.255.255.255"));
        let a = take(&mut leases, &pool, "a.example", false);
        assert_eq!(of(&a), "255.255.255.255");
        assert!(take(&mut leases, &pool, "b.example", false).is_none());
    }
}
