//! Two tries that match pairs of prefixes exactly: the longest remote prefix gives a class, and the
//! class with the local address gives the value. A class belongs to one remote prefix and its local
//! prefixes, so that a change is one switch from a class to another.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use espada_common::abi::ClassedAddress;
use espada_common::wire::Address;
use zerocopy::transmute;

use super::FrontEndError;
use super::maps::{Octets, failed, gone, typed};
use super::policy::{ProtectedPair, TriePrefix};

/// For each remote prefix the local prefixes that packets matching it as the longest meet, each
/// with its value.
pub(crate) type Table = BTreeMap<TriePrefix, BTreeMap<TriePrefix, u32>>;

/// Both tries and what they hold.
pub(crate) struct Tries {
    remote: LpmTrie<MapData, Octets<Address>, u32>,
    local: LpmTrie<MapData, Octets<ClassedAddress>, u32>,
    names: [&'static str; 2],
    installed: BTreeMap<TriePrefix, (u32, BTreeMap<TriePrefix, u32>)>,
    next_class: u32,
}

const CLASS_BITS: u32 = u32::BITS;

impl Tries {
    /// Takes the tries out of a loaded object. They may hold what an earlier process put there.
    pub(crate) fn take(ebpf: &mut Ebpf, names: [&'static str; 2]) -> Result<Self, FrontEndError> {
        let [remote_name, local_name] = names;
        let mut this = Self {
            remote: typed(ebpf, remote_name)?,
            local: typed(ebpf, local_name)?,
            names,
            installed: BTreeMap::new(),
            next_class: 0,
        };
        this.read()?;
        Ok(this)
    }

    /// Finds out what is there; local prefixes of a class that no remote prefix has are removed.
    fn read(&mut self) -> Result<(), FrontEndError> {
        let [remote_name, local_name] = self.names;
        let mut classes: BTreeMap<u32, BTreeMap<TriePrefix, u32>> = BTreeMap::new();
        for item in self.local.iter() {
            let (key, value) = item.map_err(failed(local_name, "read the prefixes"))?;
            let data: ClassedAddress = transmute!(key.data());
            let prefix = TriePrefix {
                length: key.prefix_len().saturating_sub(CLASS_BITS),
                bits: u128::from_be_bytes(data.addr.octets()),
            };
            classes.entry(data.class).or_default().insert(prefix, value);
        }
        self.next_class = classes
            .keys()
            .max()
            .map_or(0, |class| class.wrapping_add(1));
        for item in self.remote.iter() {
            let (key, class) = item.map_err(failed(remote_name, "read the prefixes"))?;
            let prefix = TriePrefix {
                length: key.prefix_len(),
                bits: u128::from_be_bytes(key.data()),
            };
            let locals = classes.remove(&class).unwrap_or_default();
            self.installed.insert(prefix, (class, locals));
        }
        for (class, locals) in classes {
            self.remove_class(class, locals.keys())?;
        }
        Ok(())
    }

    /// Every value that the tries lead to.
    pub(crate) fn values(&self) -> BTreeSet<u32> {
        let tables = self.installed.values();
        tables
            .flat_map(|(_, locals)| locals.values().copied())
            .collect()
    }

    /// Replaces the contents. A changed remote prefix gets its new local prefixes under a fresh
    /// class before it is switched over to it, and gives up the old class last, so that at any
    /// moment a packet meets either the old or the new contents.
    pub(crate) fn set(&mut self, wanted: &Table) -> Result<(), FrontEndError> {
        let [remote_name, local_name] = self.names;
        let mut retired = Vec::new();
        for (remote, locals) in wanted {
            let known = self.installed.get(remote);
            if known.is_some_and(|(_, installed)| installed == locals) {
                continue;
            }
            let class = self.next_class;
            self.next_class = self.next_class.wrapping_add(1);
            for (local, value) in locals {
                self.local
                    .insert(&local_key(class, local), value, 0)
                    .map_err(failed(local_name, "add a prefix"))?;
            }
            self.remote
                .insert(&remote_key(remote), class, 0)
                .map_err(failed(remote_name, "add a prefix"))?;
            retired.extend(self.installed.insert(*remote, (class, locals.clone())));
        }
        let stale: Vec<TriePrefix> = self
            .installed
            .keys()
            .filter(|remote| !wanted.contains_key(remote))
            .copied()
            .collect();
        for remote in stale {
            gone(self.remote.remove(&remote_key(&remote)))
                .map_err(failed(remote_name, "remove a prefix"))?;
            retired.extend(self.installed.remove(&remote));
        }
        for (class, locals) in retired {
            self.remove_class(class, locals.keys())?;
        }
        Ok(())
    }

    /// Adds a pair. Where a local prefix has a value already under a remote prefix, that one stays.
    pub(crate) fn add(&mut self, pair: &ProtectedPair, value: u32) -> Result<(), FrontEndError> {
        let [remote_name, local_name] = self.names;
        let (remote, local) = (TriePrefix::new(pair.remote), TriePrefix::new(pair.local));
        if !self.installed.contains_key(&remote) {
            // What the next wider prefix has holds within this one as well.
            let wider = self
                .installed
                .iter()
                .filter(|(wider, _)| wider.contains(&remote));
            let next = wider.max_by_key(|(wider, _)| wider.length);
            let locals = next
                .map(|(_, (_, locals))| locals.clone())
                .unwrap_or_default();
            let class = self.next_class;
            self.next_class = self.next_class.wrapping_add(1);
            for (prefix, value) in locals.iter().chain([(&local, &value)]) {
                self.local
                    .insert(&local_key(class, prefix), value, 0)
                    .map_err(failed(local_name, "add a prefix"))?;
            }
            self.remote
                .insert(&remote_key(&remote), class, 0)
                .map_err(failed(remote_name, "add a prefix"))?;
            self.installed.insert(remote, (class, locals));
        }
        for (within, (class, locals)) in &mut self.installed {
            if remote.contains(within) && !locals.contains_key(&local) {
                self.local
                    .insert(&local_key(*class, &local), value, 0)
                    .map_err(failed(local_name, "add a prefix"))?;
                locals.insert(local, value);
            }
        }
        Ok(())
    }

    fn remove_class<'a>(
        &mut self,
        class: u32,
        locals: impl Iterator<Item = &'a TriePrefix>,
    ) -> Result<(), FrontEndError> {
        let [_, local_name] = self.names;
        for local in locals {
            gone(self.local.remove(&local_key(class, local)))
                .map_err(failed(local_name, "remove a prefix"))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tries")
            .field("installed", &self.installed)
            .finish_non_exhaustive()
    }
}

fn remote_key(prefix: &TriePrefix) -> Key<Octets<Address>> {
    Key::new(prefix.length, prefix.bits.to_be_bytes())
}

fn local_key(class: u32, prefix: &TriePrefix) -> Key<Octets<ClassedAddress>> {
    let data = ClassedAddress {
        class,
        addr: Address::from_octets(prefix.bits.to_be_bytes()),
    };
    Key::new(CLASS_BITS + prefix.length, transmute!(data))
}
