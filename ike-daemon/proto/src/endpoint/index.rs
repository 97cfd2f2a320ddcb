//! By what else than their SPI IKE SAs are found: a hub has thousands of them.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::sa::IkeSa;

/// Our SPIs of all IKE SAs under what is known of them.
#[derive(Default)]
pub(super) struct Index {
    by_connection: HashMap<Arc<str>, BTreeSet<u64>>,
    /// By a hash of the two identities, which are longer.
    by_ends: HashMap<u64, BTreeSet<u64>>,
    hash: RandomState,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

/// Under what an IKE SA is filed.
#[derive(Default)]
pub(super) struct Filed {
    connection: Option<Arc<str>>,
    ends: Option<u64>,
    address: Option<IpAddr>,
}

impl Index {
    /// Files an IKE SA under what is known of it now.
    pub fn file(&mut self, sa: &IkeSa, filed: &mut Filed) {
        let spi = sa.local_spi();
        let address = sa.common.remote.ip();
        refile(
            &mut self.by_connection,
            &mut filed.connection,
            sa.connection(),
            spi,
        );
        let ends = sa.identities().map(|ends| self.hash.hash_one(ends));
        refile(&mut self.by_ends, &mut filed.ends, ends.as_ref(), spi);
        refile(
            &mut self.by_address,
            &mut filed.address,
            Some(&address),
            spi,
        );
    }

    /// Forgets an IKE SA.
    pub fn forget(&mut self, spi: u64, filed: &mut Filed) {
        refile(&mut self.by_connection, &mut filed.connection, None, spi);
        refile(&mut self.by_ends, &mut filed.ends, None, spi);
        refile(&mut self.by_address, &mut filed.address, None, spi);
    }

    /// Whether there are any that belong to a connection.
    pub fn has_connections(&self) -> bool {
        !self.by_connection.is_empty()
    }

    /// Those of a connection.
    pub fn of_connection(&self, name: &str) -> impl Iterator<Item = u64> {
        self.by_connection.get(name).into_iter().flatten().copied()
    }

    /// Those whose ends have proved to be these, our own first, and hardly ever any other.
    pub fn of_ends(&self, ends: (&Identity, &Identity)) -> impl Iterator<Item = u64> {
        let key = self.hash.hash_one(ends);
        self.by_ends.get(&key).into_iter().flatten().copied()
    }

    /// Those with a peer at this address.
    pub fn of_address(&self, address: IpAddr) -> impl Iterator<Item = u64> {
        self.by_address.get(&address).into_iter().flatten().copied()
    }
}

fn refile<K: Clone + Eq + Hash>(
    map: &mut HashMap<K, BTreeSet<u64>>,
    filed: &mut Option<K>,
    key: Option<&K>,
    spi: u64,
) {
    if filed.as_ref() == key {
        return;
    }
    if let Some(old) = filed.take()
        && let Some(set) = map.get_mut(&old)
    {
        set.remove(&spi);
        if set.is_empty() {
            map.remove(&old);
        }
    }
    if let Some(key) = key {
        map.entry(key.clone()).or_default().insert(spi);
        *filed = Some(key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filed_anew_leaves_its_old_place() {
        let mut map: HashMap<u8, BTreeSet<u64>> = HashMap::new();
        let (mut one, mut two) = (None, None);
        refile(&mut map, &mut one, Some(&1), 10);
        refile(&mut map, &mut two, Some(&1), 20);
        assert_eq!(map[&1], BTreeSet::from([10, 20]));
        refile(&mut map, &mut one, Some(&2), 10);
        refile(&mut map, &mut one, Some(&2), 10);
        assert_eq!(
            (map[&1].clone(), map[&2].clone()),
            (BTreeSet::from([20]), BTreeSet::from([10]))
        );
        refile(&mut map, &mut two, None, 20);
        assert!(!map.contains_key(&1) && two.is_none());
    }
}
