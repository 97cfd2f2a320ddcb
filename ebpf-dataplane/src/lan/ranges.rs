//! Nested prefixes flattened into ranges, so that the longest one that holds an address is found by one
//! binary search.

use std::collections::BTreeMap;

/// A prefix: its first address and how many of the 128 bits count. IPv4 addresses take the upper 32.
pub type Bits = (u128, u8);

/// What each address maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<T> {
    /// Where a range begins, in order; the first at 0.
    starts: Vec<u128>,
    values: Vec<T>,
}

impl<T: Copy + PartialEq> Ranges<T> {
    /// Each address has the value of the longest prefix that holds it, or else `otherwise`.
    pub fn new(prefixes: &BTreeMap<Bits, T>, otherwise: T) -> Self {
        let mut ranges = Self {
            starts: Vec::with_capacity(2 * prefixes.len() + 1),
            values: Vec::with_capacity(2 * prefixes.len() + 1),
        };
        ranges.begin(0, otherwise);
        // The last address and the value of the prefixes that hold where we are, the widest first.
        let mut around: Vec<(u128, T)> = Vec::new();
        let outer = |around: &[(u128, T)]| around.last().map_or(otherwise, |(_, value)| *value);
        for ((first, length), value) in prefixes {
            while let Some((last, _)) = around.pop_if(|(last, _)| *last < *first) {
                ranges.begin(last + 1, outer(&around));
            }
            ranges.begin(*first, *value);
            around.push((first | host_mask(*length), *value));
        }
        while let Some((last, _)) = around.pop() {
            if let Some(next) = last.checked_add(1) {
                ranges.begin(next, outer(&around));
            }
        }
        ranges
    }

    fn begin(&mut self, start: u128, value: T) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.values.pop();
        }
        if self.values.last() != Some(&value) {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    /// The value of an address.
    pub fn get(&self, address: u128) -> Option<T> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.values.get(after.checked_sub(1)?).copied()
    }
}

/// The bits behind a prefix.
pub fn host_mask(length: u8) -> u128 {
    u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_a_walk_over_all_prefixes(
            prefixes in prop::collection::btree_map(
                (0..256u128, prop::sample::select(vec![0u8, 1, 2, 3, 5, 7, 8, 127, 128]))
                    .prop_map(|(bits, length)| {
                        let address = bits << 120 | bits & 1;
                        (address & !host_mask(length), length)
                    }),
                0..5u32,
                0..20,
            ),
            probes in prop::collection::vec(any::<u128>(), 20),
        ) {
            let ranges = Ranges::new(&prefixes, 9);
            let edges = prefixes.keys().flat_map(|(first, length)| {
                let last = first | host_mask(*length);
                [*first, last, first.wrapping_sub(1), last.wrapping_add(1)]
            });
            for address in edges.chain(probes).chain([0, u128::MAX]) {
                let expected = prefixes
                    .iter()
                    .filter(|((first, length), _)| address & !host_mask(*length) == *first)
                    .max_by_key(|((_, length), _)| *length)
                    .map_or(9, |(_, value)| *value);
                prop_assert_eq!(ranges.get(address), Some(expected));
            }
        }
    }
}
