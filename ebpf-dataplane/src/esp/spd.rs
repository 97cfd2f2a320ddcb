//! The security policy database (RFC 4301 section 4.4.1): which connection, and under it which SA,
//! a packet belongs to.

use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{Policy, TrafficSelector};
use griddle::HashMap;

use super::ApplyError;
use super::sad::Slab;

/// What selectors look at in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source and destination port; type and code of ICMP in both. `None` when they are OPAQUE:
    /// a fragment other than the first, or a protocol without ports.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    /// The flow of the answers.
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            ports: self
                .ports
                .map(|(source, destination)| (destination, source)),
        }
    }

    fn matches(&self, source: &TrafficSelector, destination: &TrafficSelector) -> bool {
        let (source_port, destination_port) = self.ports.unzip();
        source.matches(self.source, self.protocol, source_port)
            && destination.matches(self.destination, self.protocol, destination_port)
    }

    /// Whether one of the selectors of each side covers this packet: ours is the source of what we send
    /// and the destination of what we receive.
    pub fn selected(&self, source: &[TrafficSelector], destination: &[TrafficSelector]) -> bool {
        source.iter().any(|source| {
            let mut destinations = destination.iter();
            destinations.any(|destination| self.matches(source, destination))
        })
    }
}

/// Hashes addresses and SPIs. Whoever chooses keys that are inserted is authenticated or is
/// ourselves, so speed counts more than flooding resistance.
#[derive(Clone, Copy, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, octets: &[u8]) {
        for chunk in octets.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64((value >> 64) as u64);
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A hash map with [`Mix`]. It grows a little with each insertion, so that packets do not wait for
/// all of a large table to be hashed again.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// An address as the top bits of a number.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The fewest prefixes (top bits, length) that make up a range of addresses.
fn prefixes(start: IpAddr, end: IpAddr) -> Vec<(u128, u8)> {
    // IPv4 numbers stand in the top 32 bits, so the lower 96 bits of the end count as ones.
    let width: u32 = if start.is_ipv4() { 32 } else { 128 };
    let below = u128::MAX.checked_shr(width).unwrap_or(0);
    let (mut at, end) = (number(start), number(end) | below);
    let last = |at: u128, free: u32| at | u128::MAX.checked_shr(128 - free).unwrap_or(0);
    let mut found = Vec::new();
    while at <= end {
        let mut free = at.trailing_zeros();
        while last(at, free) > end {
            free -= 1;
        }
        found.push((at, (128 - free) as u8));
        match last(at, free).checked_add(1) {
            Some(next) => at = next,
            None => break,
        }
    }
    found
}

struct Entry<T> {
    local: TrafficSelector,
    remote: TrafficSelector,
    value: T,
}

impl<T> Entry<T> {
    /// Smaller is more specific: local range, then protocol, then ports.
    fn breadth(&self) -> (u128, bool, u32) {
        let ports = |selector: &TrafficSelector| {
            u32::from(selector.end_port.saturating_sub(selector.start_port))
        };
        (
            number(self.local.end).wrapping_sub(number(self.local.start)),
            self.remote.protocol == 0 && self.local.protocol == 0,
            ports(&self.local) + ports(&self.remote),
        )
    }
}

/// Entries by remote prefix, for one prefix length.
type Level<T> = (u8, FastMap<u128, Vec<Entry<T>>>);

/// A map from pairs of selectors to values: the longest remote prefix wins, then the most specific
/// rest, then the newest. A lookup costs one probe per distinct prefix length in use, whatever the
/// number of entries.
struct SelectorMap<T> {
    /// Prefix lengths in use, longest first, for IPv4 and IPv6.
    levels: [Vec<Level<T>>; 2],
}

impl<T: Copy + PartialEq> SelectorMap<T> {
    fn new() -> Self {
        Self {
            levels: [Vec::new(), Vec::new()],
        }
    }

    fn family(address: IpAddr) -> usize {
        usize::from(address.is_ipv6())
    }

    fn mask(length: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    fn insert(&mut self, local: &[TrafficSelector], remote: &[TrafficSelector], value: T) {
        for remote in remote {
            let levels = &mut self.levels[Self::family(remote.start)];
            for (prefix, length) in prefixes(remote.start, remote.end) {
                let at = levels.partition_point(|(other, _)| *other > length);
                if levels.get(at).is_none_or(|(other, _)| *other != length) {
                    levels.insert(at, (length, FastMap::default()));
                }
                let Some((_, map)) = levels.get_mut(at) else {
                    continue;
                };
                let entries = map.entry(prefix).or_default();
                for local in local {
                    let entry = Entry {
                        local: *local,
                        remote: *remote,
                        value,
                    };
                    let place = entries.partition_point(|other| other.breadth() < entry.breadth());
                    entries.insert(place, entry);
                }
            }
        }
    }

    fn remove(&mut self, remote: &[TrafficSelector], value: T) {
        for remote in remote {
            let levels = &mut self.levels[Self::family(remote.start)];
            for (prefix, length) in prefixes(remote.start, remote.end) {
                let at = levels.partition_point(|(other, _)| *other > length);
                let Some((other, map)) = levels.get_mut(at) else {
                    continue;
                };
                if *other != length {
                    continue;
                }
                if let Some(entries) = map.get_mut(&prefix) {
                    entries.retain(|entry| entry.value != value);
                    if entries.is_empty() {
                        map.remove(&prefix);
                    }
                }
                if map.is_empty() {
                    levels.remove(at);
                }
            }
        }
    }

    fn lookup(&self, flow: &Flow) -> Option<T> {
        let address = number(flow.destination);
        self.levels[Self::family(flow.destination)]
            .iter()
            .find_map(|(length, map)| {
                map.get(&(address & Self::mask(*length)))?
                    .iter()
                    .find(|entry| flow.matches(&entry.local, &entry.remote))
                    .map(|entry| entry.value)
            })
    }
}

/// What the SPD says about an outbound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Protect it with the SA in this slot.
    Protect(u32),
    /// A policy covers it, but no SA does.
    NoSa {
        /// The policy's place, for [`Spd::acquire`].
        policy: u32,
    },
    /// No policy covers it.
    NoPolicy,
}

struct Selectors {
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
}

struct PolicyEntry {
    connection: Arc<str>,
    /// The configured policy; `None` where SAs were installed without one.
    configured: Option<Policy>,
    sas: SelectorMap<u32>,
    /// SAs under the policy with their selectors on both sides.
    members: FastMap<u32, Selectors>,
    last_acquire: Option<Instant>,
}

/// A packet without an SA raises an acquire event at most this often per connection.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(1);

/// The outbound SPD. The policy decides first, then the SA under it: a narrow policy whose tunnel
/// is down is not served by the SA of a broader one.
pub struct Spd {
    policies: Slab<PolicyEntry>,
    /// Places in `policies` by connection.
    names: HashMap<Arc<str>, u32, RandomState>,
    selectors: SelectorMap<u32>,
    /// The last packet's flow and verdict: packets of a flow come in runs.
    recent: Option<(Flow, Verdict)>,
}

impl Default for Spd {
    fn default() -> Self {
        Self::new()
    }
}

impl Spd {
    /// An empty SPD.
    pub fn new() -> Self {
        Self {
            policies: Slab::default(),
            names: HashMap::default(),
            selectors: SelectorMap::new(),
            recent: None,
        }
    }

    /// Adds a connection's policy, or replaces its selectors.
    pub fn install(&mut self, policy: &Policy) {
        self.recent = None;
        let index = self.index(&policy.connection);
        self.withdraw(index);
        if let Some(entry) = self.policies.get_mut(index) {
            entry.configured = Some(policy.clone());
            self.selectors
                .insert(&policy.local_ts, &policy.remote_ts, index);
        }
    }

    /// Removes a connection's policy. Its SAs carry nothing from here on.
    pub fn remove(&mut self, connection: &Arc<str>) -> Result<(), ApplyError> {
        self.recent = None;
        let index = *self
            .names
            .get(connection)
            .ok_or_else(|| ApplyError::UnknownPolicy(Arc::clone(connection)))?;
        self.withdraw(index);
        self.forget(index);
        Ok(())
    }

    /// Puts an SA under its connection's policy, newest first. Without a policy the SA's own
    /// selectors act as one for as long as it lives.
    pub fn add_sa(
        &mut self,
        connection: &Arc<str>,
        slot: u32,
        local: &[TrafficSelector],
        remote: &[TrafficSelector],
    ) {
        self.recent = None;
        let index = self.index(connection);
        if let Some(entry) = self.policies.get_mut(index) {
            entry.sas.insert(local, remote, slot);
            let selectors = Selectors {
                local: local.to_vec(),
                remote: remote.to_vec(),
            };
            entry.members.insert(slot, selectors);
            if entry.configured.is_none() {
                self.selectors.insert(local, remote, index);
            }
        }
    }

    /// Takes an SA out. Does nothing if it is not there (any more).
    pub fn remove_sa(&mut self, connection: &Arc<str>, slot: u32) {
        self.recent = None;
        let Some(index) = self.names.get(connection).copied() else {
            return;
        };
        let Some(entry) = self.policies.get_mut(index) else {
            return;
        };
        let Some(gone) = entry.members.remove(&slot) else {
            return;
        };
        entry.sas.remove(&gone.remote, slot);
        if entry.configured.is_none() {
            self.selectors.remove(&gone.remote, index);
            // Selectors shared with another SA of the connection went along: put them back.
            for member in entry.members.values() {
                self.selectors.remove(&member.remote, index);
                self.selectors.insert(&member.local, &member.remote, index);
            }
            if entry.members.is_empty() {
                self.forget(index);
            }
        }
    }

    /// What to do with a packet from our side.
    pub fn lookup(&mut self, flow: &Flow) -> Verdict {
        if let Some((recent, verdict)) = &self.recent
            && recent == flow
        {
            return *verdict;
        }
        let verdict = match self.selectors.lookup(flow) {
            None => Verdict::NoPolicy,
            Some(policy) => {
                let entry = self.policies.get(policy);
                match entry.and_then(|entry| entry.sas.lookup(flow)) {
                    Some(slot) => Verdict::Protect(slot),
                    None => Verdict::NoSa { policy },
                }
            }
        };
        self.recent = Some((*flow, verdict));
        verdict
    }

    /// The connection to acquire an SA for, if its policy asks for that and it is not too soon.
    pub fn acquire(&mut self, policy: u32, now: Instant) -> Option<Arc<str>> {
        let entry = self.policies.get_mut(policy)?;
        let recent = entry
            .last_acquire
            .is_some_and(|last| now.saturating_duration_since(last) < ACQUIRE_INTERVAL);
        if recent || !entry.configured.as_ref()?.trap {
            return None;
        }
        entry.last_acquire = Some(now);
        Some(Arc::clone(&entry.connection))
    }

    /// Whether packets without an SA are to ask for one.
    pub fn is_trap(&self, policy: u32) -> bool {
        let entry = self.policies.get(policy);
        entry.is_some_and(|entry| entry.configured.as_ref().is_some_and(|policy| policy.trap))
    }

    /// The connection's place, made if there is none.
    fn index(&mut self, connection: &Arc<str>) -> u32 {
        if let Some(index) = self.names.get(connection) {
            return *index;
        }
        let entry = PolicyEntry {
            connection: Arc::clone(connection),
            configured: None,
            sas: SelectorMap::new(),
            members: FastMap::default(),
            last_acquire: None,
        };
        let index = self.policies.insert(entry);
        self.names.insert(Arc::clone(connection), index);
        index
    }

    fn forget(&mut self, index: u32) {
        if let Some(entry) = self.policies.remove(index) {
            self.names.remove(&entry.connection);
        }
    }

    /// Takes every selector that leads to a policy out of the map.
    fn withdraw(&mut self, index: u32) {
        let Some(entry) = self.policies.get(index) else {
            return;
        };
        match &entry.configured {
            Some(policy) => self.selectors.remove(&policy.remote_ts, index),
            None => {
                for member in entry.members.values() {
                    self.selectors.remove(&member.remote, index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(start: &str, end: &str, protocol: u8, ports: (u16, u16)) -> TrafficSelector {
        TrafficSelector {
            protocol,
            start_port: ports.0,
            end_port: ports.1,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    }

    const ANY: (u16, u16) = (0, 65535);

    fn flow(source: &str, destination: &str, protocol: u8, ports: Option<(u16, u16)>) -> Flow {
        Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ports,
        }
    }

    fn policy(name: &str, local: TrafficSelector, remote: TrafficSelector) -> Policy {
        Policy {
            connection: name.into(),
            local_ts: vec![local],
            remote_ts: vec![remote],
            trap: true,
            mode: espada_common::sa::Mode::Tunnel,
            addresses: Vec::new(),
        }
    }

    #[test]
    fn ranges_become_prefixes() {
        let of = |start: &str, end: &str| {
            prefixes(start.parse().unwrap(), end.parse().unwrap())
                .into_iter()
                .map(|(_, length)| length)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("0.0.0.0", "255.255.255.255"), [0]);
        assert_eq!(of("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), [0]);
        assert_eq!(of("10.0.0.0", "10.0.0.255"), [24]);
        assert_eq!(of("10.0.0.1", "10.0.0.4"), [32, 31, 32]);
        assert_eq!(of("255.255.255.255", "255.255.255.255"), [32]);
        assert_eq!(of("2001:db8::1", "2001:db8::2"), [128, 128]);
        assert!(of("10.0.0.2", "10.0.0.1").is_empty());
    }

    #[test]
    fn the_most_specific_policy_decides_even_without_an_sa() {
        let local = ts("10.0.0.0", "10.0.0.255", 0, ANY);
        let mut spd = Spd::new();
        spd.install(&policy(
            "wide",
            local,
            ts("10.1.0.0", "10.1.255.255", 0, ANY),
        ));
        spd.install(&policy(
            "narrow",
            local,
            ts("10.1.2.0", "10.1.2.255", 0, ANY),
        ));
        let wide = ts("10.1.0.0", "10.1.255.255", 0, ANY);
        spd.add_sa(&"wide".into(), 7, &[local], &[wide]);
        assert_eq!(
            spd.lookup(&flow("10.0.0.1", "10.1.3.4", 17, Some((1, 2)))),
            Verdict::Protect(7)
        );
        let Verdict::NoSa { policy } = spd.lookup(&flow("10.0.0.1", "10.1.2.4", 17, None)) else {
            panic!("the narrow policy must decide");
        };
        let now = Instant::now();
        assert_eq!(spd.acquire(policy, now).as_deref(), Some("narrow"));
        assert_eq!(spd.acquire(policy, now), None);
        assert!(spd.acquire(policy, now + ACQUIRE_INTERVAL).is_some());
        assert_eq!(
            spd.lookup(&flow("10.0.1.1", "10.1.3.4", 17, None)),
            Verdict::NoPolicy
        );
        spd.remove(&"narrow".into()).unwrap();
        assert_eq!(
            spd.lookup(&flow("10.0.0.1", "10.1.2.4", 17, None)),
            Verdict::Protect(7)
        );
        assert!(spd.remove(&"narrow".into()).is_err());
    }

    #[test]
    fn protocols_ports_and_opaque() {
        let local = ts("10.0.0.0", "10.0.0.255", 6, ANY);
        let https = ts("10.1.0.0", "10.1.0.255", 6, (443, 443));
        let mut spd = Spd::new();
        spd.install(&policy("https", local, https));
        spd.add_sa(&"https".into(), 1, &[local], &[https]);
        let lookup = |spd: &mut Spd, protocol, ports| {
            spd.lookup(&flow("10.0.0.1", "10.1.0.1", protocol, ports))
        };
        assert_eq!(lookup(&mut spd, 6, Some((5555, 443))), Verdict::Protect(1));
        assert_eq!(lookup(&mut spd, 6, Some((5555, 80))), Verdict::NoPolicy);
        assert_eq!(lookup(&mut spd, 17, Some((5555, 443))), Verdict::NoPolicy);
        // A later fragment has no ports: only ANY or OPAQUE covers it.
        assert_eq!(lookup(&mut spd, 6, None), Verdict::NoPolicy);
        let opaque = ts("10.1.0.0", "10.1.0.255", 6, (65535, 0));
        spd.install(&policy("opaque", local, opaque));
        spd.add_sa(&"opaque".into(), 2, &[local], &[opaque]);
        assert_eq!(lookup(&mut spd, 6, None), Verdict::Protect(2));
    }

    #[test]
    fn an_sa_without_a_policy_brings_its_own_and_takes_it_along() {
        let (local, remote) = (
            ts("::", "::ffff", 0, ANY),
            ts("2001:db8::", "2001:db8::ffff", 0, ANY),
        );
        let name: Arc<str> = "alone".into();
        let packet = flow("::1", "2001:db8::1", 58, None);
        let mut spd = Spd::new();
        spd.add_sa(&name, 1, &[local], &[remote]);
        spd.add_sa(&name, 2, &[local], &[remote]);
        assert_eq!(spd.lookup(&packet), Verdict::Protect(2));
        spd.remove_sa(&name, 2);
        assert_eq!(spd.lookup(&packet), Verdict::Protect(1));
        spd.remove_sa(&name, 1);
        assert_eq!(spd.lookup(&packet), Verdict::NoPolicy);
    }

    #[test]
    fn lookups_do_not_slow_with_the_number_of_sas() {
        let local = ts("10.0.0.0", "10.255.255.255", 0, ANY);
        let name: Arc<str> = "road".into();
        let mut spd = Spd::new();
        spd.install(&policy(
            "road",
            local,
            ts("172.16.0.0", "172.31.255.255", 0, ANY),
        ));
        for slot in 0..20_000u32 {
            let address = IpAddr::from((0xac10_0000 + slot).to_be_bytes());
            let remote = TrafficSelector {
                start: address,
                end: address,
                ..local
            };
            spd.add_sa(&name, slot, &[local], &[remote]);
        }
        assert_eq!(spd.policies.get(0).unwrap().sas.levels[0].len(), 1);
        for slot in [0u32, 1, 9_999, 19_999] {
            let mut packet = flow("10.0.0.1", "172.16.0.0", 1, None);
            packet.destination = IpAddr::from((0xac10_0000 + slot).to_be_bytes());
            assert_eq!(spd.lookup(&packet), Verdict::Protect(slot));
        }
    }
}
