//! Policies as the clear-text guards know them: pairs of prefixes, and the two tries that match
//! them exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espada_common::sa::{Policy, TrafficSelector};
use espada_common::wire::Address;

use super::tries::Table;
use crate::netlink::Prefix;

/// Addresses between which nothing may pass in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProtectedPair {
    /// The peer's side.
    pub remote: Prefix,
    /// Our side.
    pub local: Prefix,
}

/// The pairs that a policy covers whole. Selectors that name a protocol or ports leave other
/// traffic between the same addresses in clear, which a guard by address cannot tell apart:
/// those are left to the engine's own lookup.
pub fn protected_pairs(policy: &Policy) -> Vec<ProtectedPair> {
    pairs_of(&policy.local_ts, &policy.remote_ts)
}

/// The pairs of prefixes that selectors without protocols and ports cover.
pub fn pairs_of(local_ts: &[TrafficSelector], remote_ts: &[TrafficSelector]) -> Vec<ProtectedPair> {
    let mut pairs = Vec::new();
    for remote in remote_ts.iter().filter(|selector| is_whole(selector)) {
        for local in local_ts.iter().filter(|selector| is_whole(selector)) {
            for remote in prefixes(remote.start, remote.end) {
                pairs.extend(
                    prefixes(local.start, local.end)
                        .into_iter()
                        .filter(|local| local.address.is_ipv4() == remote.address.is_ipv4())
                        .map(|local| ProtectedPair { remote, local }),
                );
            }
        }
    }
    pairs
}

/// Every protocol and port.
pub fn is_whole(selector: &TrafficSelector) -> bool {
    selector.protocol == 0 && selector.start_port == 0 && selector.end_port == u16::MAX
}

/// The fewest prefixes that cover a range of addresses exactly; none for an empty range or one
/// of mixed families.
pub fn prefixes(start: IpAddr, end: IpAddr) -> Vec<Prefix> {
    match (start, end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            split(u32::from(start).into(), u32::from(end).into(), 32, |bits| {
                // `split` never leaves the range, so the value fits.
                IpAddr::V4(Ipv4Addr::from(u32::try_from(bits).unwrap_or(u32::MAX)))
            })
        }
        (IpAddr::V6(start), IpAddr::V6(end)) => split(start.into(), end.into(), 128, |bits| {
            IpAddr::V6(Ipv6Addr::from(bits))
        }),
        _ => Vec::new(),
    }
}

fn split(start: u128, end: u128, width: u8, address: impl Fn(u128) -> IpAddr) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    let mut next = start;
    while next <= end {
        // The largest aligned block that starts here and does not reach beyond the end.
        let mut host_bits = (next.trailing_zeros()).min(width.into());
        while host_bits > 0 && block(host_bits) > end - next {
            host_bits -= 1;
        }
        prefixes.push(Prefix {
            address: address(next),
            length: width.saturating_sub(u8::try_from(host_bits).unwrap_or(width)),
        });
        match next
            .checked_add(block(host_bits))
            .and_then(|last| last.checked_add(1))
        {
            Some(after) => next = after,
            None => break,
        }
    }
    prefixes
}

/// Addresses in a block of this many host bits, less one.
fn block(host_bits: u32) -> u128 {
    u128::MAX.checked_shr(128 - host_bits).unwrap_or(0)
}

/// A prefix as the tries hold it: bits that count in the mapped address, the other bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TriePrefix {
    pub(super) length: u32,
    pub(super) bits: u128,
}

impl TriePrefix {
    pub(super) fn new(prefix: Prefix) -> Self {
        let (extra, width) = if prefix.address.is_ipv4() {
            (96, 32)
        } else {
            (0, 128)
        };
        let length = extra + u32::from(prefix.length).min(width);
        let bits = u128::from_be_bytes(Address::from(prefix.address).octets());
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        Self {
            length,
            bits: bits & mask,
        }
    }

    /// The prefix of this length around it.
    fn widened(&self, length: u32) -> Self {
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        Self {
            length,
            bits: self.bits & mask,
        }
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.length).unwrap_or(0);
        self.length <= other.length && (self.bits ^ other.bits) & mask == 0
    }
}

/// For each remote prefix the local prefixes that packets matching it as the longest meet: its own,
/// and those of every wider remote prefix around it. Where two pairs give one local prefix a value, that
/// of the narrower remote prefix holds, and among equals the later one.
pub(crate) fn compile(pairs: &[(ProtectedPair, u32)]) -> Table {
    let mut own: BTreeMap<TriePrefix, Vec<(TriePrefix, u32)>> = BTreeMap::new();
    for (pair, value) in pairs {
        let locals = own.entry(TriePrefix::new(pair.remote)).or_default();
        locals.push((TriePrefix::new(pair.local), *value));
    }
    let lengths: BTreeSet<u32> = own.keys().map(|remote| remote.length).collect();
    let mut table = Table::new();
    // Wider prefixes come first, so the next one around a prefix has those of all around it.
    for (remote, locals) in own {
        let mut around = lengths.range(..remote.length).rev();
        let next = around.find_map(|length| table.get(&remote.widened(*length)));
        let mut all = next.cloned().unwrap_or_default();
        all.extend(locals);
        table.insert(remote, all);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix {
            address: address.parse().unwrap(),
            length: length.parse().unwrap(),
        }
    }

    #[test]
    fn ranges_become_prefixes() {
        let shown = |start: &str, end: &str| -> Vec<String> {
            prefixes(start.parse().unwrap(), end.parse().unwrap())
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(shown("10.0.0.0", "10.0.0.255"), ["10.0.0.0/24"]);
        assert_eq!(shown("10.0.0.5", "10.0.0.5"), ["10.0.0.5/32"]);
        assert_eq!(
            shown("10.0.0.1", "10.0.0.6"),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]
        );
        assert_eq!(shown("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(
            shown("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ["::/0"]
        );
        assert_eq!(shown("10.0.0.2", "10.0.0.1"), [""; 0]);
    }

    #[test]
    fn selectors_with_ports_are_left_to_the_engine() {
        let selector = |protocol, end_port| TrafficSelector {
            protocol,
            start_port: 0,
            end_port,
            start: "10.0.0.0".parse().unwrap(),
            end: "10.0.0.255".parse().unwrap(),
        };
        let policy = |local_ts, remote_ts| Policy {
            connection: "c".into(),
            local_ts,
            remote_ts,
            trap: false,
            mode: espada_common::sa::Mode::Tunnel,
            addresses: Vec::new(),
        };
        let whole = selector(0, u16::MAX);
        assert_eq!(protected_pairs(&policy(vec![whole], vec![whole])).len(), 1);
        assert!(protected_pairs(&policy(vec![selector(6, u16::MAX)], vec![whole])).is_empty());
        assert!(protected_pairs(&policy(vec![whole], vec![selector(0, 80)])).is_empty());
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        // Few distinct bits, so that prefixes nest and collide.
        (
            0..16u32,
            prop::sample::select(vec![0u8, 1, 2, 3, 4, 30, 32]),
        )
            .prop_map(|(bits, length)| Prefix {
                address: IpAddr::V4(Ipv4Addr::from((bits << 28) | (bits & 3))),
                length,
            })
    }

    proptest! {
        /// Two longest-prefix lookups over the compiled tables say the same as a walk over all pairs.
        #[test]
        fn compiled_tables_match_exactly(
            pairs in prop::collection::vec((any_prefix(), any_prefix()), 0..12),
            probes in prop::collection::vec((0..16u32, 0..4u32, 0..16u32, 0..4u32), 32),
        ) {
            let pairs: Vec<ProtectedPair> = pairs
                .into_iter()
                .map(|(remote, local)| ProtectedPair { remote, local })
                .collect();
            let valued: Vec<(ProtectedPair, u32)> = pairs.iter().map(|pair| (*pair, 1)).collect();
            let tables = compile(&valued);
            for (high, low, local_high, local_low) in probes {
                let remote = IpAddr::V4(Ipv4Addr::from((high << 28) | low));
                let local = IpAddr::V4(Ipv4Addr::from((local_high << 28) | local_low));
                let expected = pairs
                    .iter()
                    .any(|pair| pair.remote.contains(remote) && pair.local.contains(local));
                let remote = TriePrefix::new(Prefix::host(remote));
                let local = TriePrefix::new(Prefix::host(local));
                let found = tables
                    .iter()
                    .filter(|(prefix, _)| prefix.contains(&remote))
                    .max_by_key(|(prefix, _)| prefix.length)
                    .is_some_and(|(_, locals)| locals.keys().any(|prefix| prefix.contains(&local)));
                prop_assert_eq!(found, expected);
            }
        }

        /// A range's prefixes cover its ends and nothing beside it, without overlap.
        #[test]
        fn prefixes_cover_the_range(a in any::<u32>(), b in any::<u32>()) {
            let (start, end) = (a.min(b), a.max(b));
            let found = prefixes(IpAddr::V4(start.into()), IpAddr::V4(end.into()));
            let count: u64 = found.iter().map(|prefix| 1u64 << (32 - prefix.length)).sum();
            prop_assert_eq!(count, u64::from(end - start) + 1);
            for (address, inside) in [
                (Some(start), true),
                (Some(end), true),
                (start.checked_sub(1), false),
                (end.checked_add(1), false),
            ] {
                if let Some(address) = address {
                    let address = IpAddr::V4(address.into());
                    prop_assert_eq!(found.iter().filter(|prefix| prefix.contains(address)).count(), usize::from(inside));
                }
            }
        }
    }

    #[test]
    fn nested_remote_prefixes_inherit() {
        let pair = |remote, local| {
            let pair = ProtectedPair {
                remote: prefix(remote),
                local: prefix(local),
            };
            (pair, 1)
        };
        let tables = compile(&[
            pair("10.0.0.0/8", "192.168.0.0/16"),
            pair("10.1.0.0/16", "172.16.0.0/12"),
        ]);
        let narrow = tables.get(&TriePrefix::new(prefix("10.1.0.0/16"))).unwrap();
        assert_eq!(narrow.len(), 2);
        let wide = tables.get(&TriePrefix::new(prefix("10.0.0.0/8"))).unwrap();
        assert_eq!(wide.len(), 1);
    }
}
