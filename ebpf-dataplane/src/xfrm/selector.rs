//! Selectors as XFRM policies have them: prefixes, and ports as value and mask.

use espada_common::sa::{TrafficSelector, is_icmp};

use super::wire::{self, Direction, family};
use crate::frontend::policy::prefixes;
use crate::netlink::Prefix;

/// More policies than this for one pair are refused: every packet may be compared with each.
const MOST: usize = 1024;

/// A 16-bit number under a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Masked {
    /// Its bits under the mask.
    pub value: u16,
    /// Which bits count; 0 for any number.
    pub mask: u16,
}

impl Masked {
    /// Exactly this number.
    pub const fn exactly(value: u16) -> Self {
        Self {
            value,
            mask: u16::MAX,
        }
    }

    /// The fewest masked numbers that make up a range.
    fn range(start: u16, end: u16) -> Vec<Self> {
        let mut found = Vec::new();
        let (mut at, end) = (u32::from(start), u32::from(end));
        while at <= end {
            let mut size = 1u32 << at.trailing_zeros().min(16);
            while at + size - 1 > end {
                size /= 2;
            }
            // `at` and `size - 1` are at most 65535 here.
            found.push(Self {
                value: at as u16,
                mask: !((size - 1) as u16),
            });
            at += size;
        }
        found
    }
}

/// What one policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// Our side.
    pub local: Prefix,
    /// The peer's side.
    pub remote: Prefix,
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// Port on our side; type and code of ICMP.
    pub local_port: Masked,
    /// Port on the peer's side; as `local_port` for ICMP.
    pub remote_port: Masked,
}

impl Pattern {
    /// How much it covers: the smaller goes first. The remote prefix decides, then the local one,
    /// then the protocol, then the ports, as in the userspace engine's SPD.
    pub fn breadth(&self) -> u32 {
        let open = |prefix: &Prefix| u32::from(Prefix::host(prefix.address).length - prefix.length);
        let ports = self.local_port.mask.count_zeros() + self.remote_port.mask.count_zeros();
        let hosts = open(&self.remote) * 129 + open(&self.local);
        (hosts * 2 + u32::from(self.protocol == 0)) * 33 + ports
    }

    /// As the kernel takes it.
    pub fn wire(&self, direction: Direction) -> wire::Selector {
        let ((source, source_port), (destination, destination_port)) = {
            let (local, remote) = (
                (self.local, self.local_port),
                (self.remote, self.remote_port),
            );
            match direction {
                Direction::Out => (local, remote),
                Direction::In | Direction::Forward => (remote, local),
            }
        };
        let (source_port, destination_port) = if is_icmp(self.protocol) {
            // The kernel looks for the type in the source port and for the code in the
            // destination port, whatever the direction.
            let high = |number: u16| number >> 8;
            let low = |number: u16| number & 0xff;
            let Masked { value, mask } = self.local_port;
            (
                Masked {
                    value: high(value),
                    mask: high(mask),
                },
                Masked {
                    value: low(value),
                    mask: low(mask),
                },
            )
        } else {
            (source_port, destination_port)
        };
        wire::Selector {
            destination: destination.address.into(),
            source: source.address.into(),
            destination_port: destination_port.value.into(),
            destination_port_mask: destination_port.mask.into(),
            source_port: source_port.value.into(),
            source_port_mask: source_port.mask.into(),
            family: family(source.address),
            destination_length: destination.length,
            source_length: source.length,
            proto: self.protocol,
            ..wire::Selector::default()
        }
    }
}

/// Everything that two lists of selectors cover, or why policies cannot say it.
pub fn patterns(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Result<Vec<Pattern>, String> {
    let mut found = Vec::new();
    for (local, remote) in local
        .iter()
        .flat_map(|local| remote.iter().map(move |remote| (local, remote)))
    {
        if local.start.is_ipv4() != remote.start.is_ipv4() {
            continue;
        }
        let protocol = match (local.protocol, remote.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (one, other) if one == other => one,
            _ => continue,
        };
        if local.is_opaque() || remote.is_opaque() {
            return Err(format!(
                "selector {local} === {remote}: the kernel has no policies for packets without \
                 ports (OPAQUE); use any port or another engine"
            ));
        }
        let ports = ports(protocol, local, remote);
        for local in prefixes(local.start, local.end) {
            for remote in prefixes(remote.start, remote.end) {
                found.extend(ports.iter().map(|(local_port, remote_port)| Pattern {
                    local,
                    remote,
                    protocol,
                    local_port: *local_port,
                    remote_port: *remote_port,
                }));
                if found.len() > MOST {
                    return Err(format!(
                        "these selectors would take more than {MOST} kernel policies; use whole \
                         prefixes and fewer or wider port ranges"
                    ));
                }
            }
        }
    }
    if found.is_empty() {
        return Err("no local selector goes with a remote one: they are of different address families or protocols".into());
    }
    Ok(found)
}

fn ports(protocol: u8, local: &TrafficSelector, remote: &TrafficSelector) -> Vec<(Masked, Masked)> {
    if is_icmp(protocol) {
        // Both selectors speak of the one type and code of a message.
        let start = local.start_port.max(remote.start_port);
        let end = local.end_port.min(remote.end_port);
        let range = Masked::range(start, end);
        return range.into_iter().map(|ports| (ports, ports)).collect();
    }
    let local = Masked::range(local.start_port, local.end_port);
    let remote = Masked::range(remote.start_port, remote.end_port);
    local
        .iter()
        .flat_map(|local| remote.iter().map(move |remote| (*local, *remote)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str, length: u8) -> TrafficSelector {
        TrafficSelector::prefix(text.parse().unwrap(), length).unwrap()
    }

    #[test]
    fn networks_are_one_pattern_per_family() {
        let local = [network("10.1.0.0", 16), network("fd01::", 64)];
        let remote = [network("10.2.0.0", 16), network("fd02::", 64)];
        let found = patterns(&local, &remote).unwrap();
        assert_eq!(found.len(), 2);
        let wire = found[0].wire(Direction::In);
        assert_eq!((wire.source_length, wire.destination_length), (16, 16));
        assert_eq!(
            wire.source.of_family(wire.family),
            Some("10.2.0.0".parse().unwrap())
        );
        assert_eq!(wire.source_port_mask.get(), 0);
    }

    #[test]
    fn the_narrower_remote_goes_first() {
        let wide = patterns(&[network("10.1.0.0", 24)], &[network("10.0.0.0", 8)]).unwrap()[0];
        let narrow = patterns(&[network("0.0.0.0", 0)], &[network("10.2.0.0", 16)]).unwrap()[0];
        let tcp = network("10.2.0.0", 16).with_ports(6, 80, 80);
        let tcp = patterns(&[network("0.0.0.0", 0)], &[tcp]).unwrap()[0];
        assert!(tcp.breadth() < narrow.breadth() && narrow.breadth() < wide.breadth());
        let all = patterns(&[network("::", 0)], &[network("::", 0)]).unwrap()[0];
        assert!(all.breadth() < 2_000_000);
    }

    #[test]
    fn icmp_types_stand_where_the_kernel_looks_for_them() {
        let echo = network("10.0.0.0", 8).with_ports(1, 0x800, 0x8ff);
        let found = patterns(&[echo], &[network("10.2.0.0", 16)]).unwrap();
        let [pattern] = found.as_slice() else {
            panic!("{found:?}")
        };
        for direction in [Direction::In, Direction::Out] {
            let wire = pattern.wire(direction);
            assert_eq!(wire.source_port.get(), 8);
            assert_eq!(wire.source_port_mask.get(), 0xff);
            assert_eq!(wire.destination_port_mask.get(), 0);
        }
    }

    #[test]
    fn what_cannot_be_said_is_explained() {
        let any = [network("10.0.0.0", 8)];
        let opaque = [network("10.0.0.0", 8).with_ports(6, u16::MAX, 0)];
        assert!(patterns(&any, &opaque).unwrap_err().contains("OPAQUE"));
        let ragged = TrafficSelector::range(
            "0.0.0.1".parse().unwrap(),
            "255.255.255.254".parse().unwrap(),
        )
        .unwrap();
        assert!(patterns(&[ragged], &[ragged]).unwrap_err().contains("1024"));
        assert!(
            patterns(&any, &[network("fd00::", 8)])
                .unwrap_err()
                .contains("families")
        );
    }

    proptest! {
        #[test]
        fn masked_numbers_are_exactly_the_range(a: u16, b: u16, probe: u16) {
            let (start, end) = (a.min(b), a.max(b));
            let range = Masked::range(start, end);
            prop_assert!(range.len() <= 30);
            for number in [probe, start, end, start.wrapping_sub(1), end.wrapping_add(1)] {
                let hits = range.iter().filter(|m| number & m.mask == m.value).count();
                prop_assert_eq!(hits, usize::from(start <= number && number <= end));
            }
        }
    }
}
