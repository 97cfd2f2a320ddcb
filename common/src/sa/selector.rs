//! Traffic selectors: ranges of addresses, protocols and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses, protocol and ports (RFC 7296 section 3.13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficSelector {
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First port (or ICMP type and code), 0 with `end_port` 65535 for any.
    pub start_port: u16,
    /// Last port, inclusive.
    pub end_port: u16,
    /// First address; both addresses are of one family.
    pub start: IpAddr,
    /// Last address, inclusive.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// Every protocol and port of a range of addresses; `None` if they are of two families or
    /// the wrong way round.
    pub fn range(start: IpAddr, end: IpAddr) -> Option<Self> {
        let valid = start.is_ipv4() == end.is_ipv4() && start <= end;
        valid.then_some(Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start,
            end,
        })
    }

    /// Every protocol and port of one address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: address,
            end: address,
        }
    }

    /// Every protocol and port of a prefix, whatever host bits `address` has; `None` if the
    /// family has no prefix of that length.
    pub fn prefix(address: IpAddr, length: u8) -> Option<Self> {
        let bits = u32::from(width(address)).checked_sub(u32::from(length))?;
        let hosts = 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
        let network = to_number(address) & !hosts;
        let is_ipv4 = address.is_ipv4();
        Self::range(
            from_number(network, is_ipv4),
            from_number(network | hosts, is_ipv4),
        )
    }

    /// The same addresses for one protocol and a range of ports; start 65535 and end 0 is OPAQUE.
    pub fn with_ports(self, protocol: u8, start_port: u16, end_port: u16) -> Self {
        Self {
            protocol,
            start_port,
            end_port,
            ..self
        }
    }

    /// Whether every port is covered, those of packets without ports included.
    pub fn is_any_port(&self) -> bool {
        self.start_port == 0 && self.end_port == u16::MAX
    }

    /// Whether it stands for packets whose ports cannot be seen (RFC 7296 section 3.13.1).
    pub fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    /// Whether `address` is in the range.
    #[inline]
    pub fn contains_addr(&self, address: IpAddr) -> bool {
        // As numbers: the order of `IpAddr` is that of its octets, one by one.
        match (self.start, address, self.end) {
            (IpAddr::V4(start), IpAddr::V4(address), IpAddr::V4(end)) => {
                (start.to_bits()..=end.to_bits()).contains(&address.to_bits())
            }
            (IpAddr::V6(start), IpAddr::V6(address), IpAddr::V6(end)) => {
                (start.to_bits()..=end.to_bits()).contains(&address.to_bits())
            }
            _ => false,
        }
    }

    /// Whether a packet with this address, protocol and port on the selector's side is covered.
    /// `port` is `None` where there is none to see, as in later fragments; for ICMP it is type * 256
    /// + code.
    #[inline]
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.contains_addr(address)
            && (self.protocol == 0 || self.protocol == protocol)
            && match port {
                _ if self.is_any_port() => true,
                Some(port) => self.start_port <= port && port <= self.end_port,
                // RFC 4301 section 4.4.1.1 lets only ANY include OPAQUE.
                None => self.is_opaque(),
            }
    }

    /// Whether everything that `other` covers is covered.
    pub fn contains(&self, other: &Self) -> bool {
        self.intersect(other) == Some(*other)
    }

    /// What both cover; `None` if that is nothing.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.start.is_ipv4() != other.start.is_ipv4() {
            return None;
        }
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        let protocol = match (self.protocol, other.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (ours, theirs) if ours == theirs => ours,
            _ => return None,
        };
        let (start_port, end_port) = if self.is_any_port() {
            (other.start_port, other.end_port)
        } else if other.is_any_port() || (self.is_opaque() && other.is_opaque()) {
            (self.start_port, self.end_port)
        } else {
            let ports = (
                self.start_port.max(other.start_port),
                self.end_port.min(other.end_port),
            );
            if ports.0 > ports.1 {
                return None;
            }
            ports
        };
        (start <= end).then_some(Self {
            protocol,
            start_port,
            end_port,
            start,
            end,
        })
    }

    /// The fewest prefixes that hold exactly its addresses, in ascending order: network and length.
    pub fn prefixes(&self) -> Vec<(IpAddr, u8)> {
        let (is_ipv4, width) = (self.start.is_ipv4(), width(self.start));
        let last = to_number(self.end);
        let mut next = to_number(self.start);
        let mut prefixes = Vec::new();
        while self.end.is_ipv4() == is_ipv4 && next <= last {
            // As large as the alignment of its first address and the addresses left allow.
            let aligned = next.trailing_zeros().min(u32::from(width));
            let left = match (last - next).checked_add(1) {
                Some(count) => count.ilog2(),
                None => 128,
            };
            let bits = aligned.min(left) as u8;
            prefixes.push((from_number(next, is_ipv4), width - bits));
            let size = 1u128.checked_shl(u32::from(bits));
            let Some(following) = size.and_then(|size| next.checked_add(size)) else {
                break;
            };
            next = following;
        }
        prefixes
    }
}

/// Bits of an address of this family.
const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn from_number(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_ipv4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// Protocols that have a name in selectors.
const PROTOCOLS: [(u8, &str); 8] = [
    (1, "icmp"),
    (4, "ipip"),
    (6, "tcp"),
    (17, "udp"),
    (47, "gre"),
    (58, "ipv6-icmp"),
    (89, "ospf"),
    (132, "sctp"),
];

/// Number of a protocol that has a name in selectors.
pub fn protocol_by_name(name: &str) -> Option<u8> {
    PROTOCOLS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(number, _)| *number)
}

/// ICMP and ICMPv6, whose selectors hold type and code in place of ports (RFC 4301 section 4.4.1.1).
pub fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// As strongSwan writes it: `10.0.0.0/24`, `10.0.0.1..10.0.0.9[tcp/80]`, `2001:db8::/64[icmp/8(0)]`.
impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.prefixes() {
            [(network, length)] => write!(f, "{network}/{length}")?,
            _ => write!(f, "{}..{}", self.start, self.end)?,
        }
        if self.protocol == 0 && self.is_any_port() {
            return Ok(());
        }
        match PROTOCOLS
            .iter()
            .find(|(number, _)| *number == self.protocol)
        {
            Some((_, name)) => write!(f, "[{name}")?,
            None if self.protocol == 0 => f.write_str("[any")?,
            None => write!(f, "[{}", self.protocol)?,
        }
        let (start, end) = (self.start_port, self.end_port);
        if self.is_any_port() {
        } else if self.is_opaque() {
            f.write_str("/opaque")?;
        } else if is_icmp(self.protocol) {
            match (start.to_be_bytes(), end.to_be_bytes()) {
                ([kind, 0], [last, u8::MAX]) if kind == last => write!(f, "/{kind}")?,
                ([kind, code], _) if start == end => write!(f, "/{kind}({code})")?,
                ([kind, code], [last, last_code]) => {
                    write!(f, "/{kind}({code})-{last}({last_code})")?;
                }
            }
        } else if start == end {
            write!(f, "/{start}")?;
        } else {
            write!(f, "/{start}-{end}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: &str, end: &str) -> TrafficSelector {
        TrafficSelector::range(start.parse().unwrap(), end.parse().unwrap()).unwrap()
    }

    fn prefix(address: &str, length: u8) -> TrafficSelector {
        TrafficSelector::prefix(address.parse().unwrap(), length).unwrap()
    }

    #[test]
    fn prefixes_hold_their_ends() {
        assert_eq!(prefix("10.1.2.3", 24), range("10.1.2.0", "10.1.2.255"));
        assert_eq!(
            prefix("10.1.2.3", 32),
            TrafficSelector::host("10.1.2.3".parse().unwrap())
        );
        assert_eq!(prefix("10.1.2.3", 0), range("0.0.0.0", "255.255.255.255"));
        assert_eq!(
            prefix("2001:db8::1", 64),
            range("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff")
        );
        let everything = prefix("::1", 0);
        assert_eq!(
            everything,
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        );
        assert_eq!(everything.prefixes(), [("::".parse().unwrap(), 0)]);
        assert_eq!(
            TrafficSelector::prefix("10.0.0.0".parse().unwrap(), 33),
            None
        );
        assert_eq!(
            TrafficSelector::range("10.0.0.1".parse().unwrap(), "::2".parse().unwrap()),
            None
        );
    }

    #[test]
    fn ranges_become_prefixes() {
        let show = |selector: TrafficSelector| {
            let prefixes = selector.prefixes().into_iter();
            prefixes
                .map(|(network, length)| format!("{network}/{length}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            show(range("10.0.0.1", "10.0.0.9")),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/31"]
        );
        assert_eq!(
            show(range("255.255.255.255", "255.255.255.255")),
            ["255.255.255.255/32"]
        );
        assert_eq!(show(range("0.0.0.0", "255.255.255.254")).len(), 32);
        assert_eq!(show(range("::2", "::5")), ["::2/127", "::4/127"]);
    }

    #[test]
    fn shown_as_strongswan_shows_them() {
        let shown = [
            (prefix("10.0.0.0", 24), "10.0.0.0/24"),
            (
                range("10.0.0.1", "10.0.0.9").with_ports(6, 80, 80),
                "10.0.0.1..10.0.0.9[tcp/80]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(17, 1024, 2047),
                "10.0.0.0/24[udp/1024-2047]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(50, 0, 65535),
                "10.0.0.0/24[50]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(0, 80, 80),
                "10.0.0.0/24[any/80]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(1, 0x800, 0x8ff),
                "10.0.0.0/24[icmp/8]",
            ),
            (
                prefix("::", 0).with_ports(58, 0x8000, 0x8000),
                "::/0[ipv6-icmp/128(0)]",
            ),
            (
                prefix("10.0.0.1", 32).with_ports(6, 65535, 0),
                "10.0.0.1/32[tcp/opaque]",
            ),
        ];
        for (selector, text) in shown {
            assert_eq!(selector.to_string(), text);
        }
    }

    #[test]
    fn opaque_meets_any_and_itself() {
        let any = prefix("10.0.0.0", 24);
        let opaque = any.with_ports(6, 65535, 0);
        let port = any.with_ports(6, 80, 80);
        assert_eq!(any.intersect(&opaque), Some(opaque));
        assert_eq!(opaque.intersect(&opaque), Some(opaque));
        assert_eq!(opaque.intersect(&port), None);
        let address = "10.0.0.7".parse().unwrap();
        assert!(any.matches(address, 6, None) && opaque.matches(address, 6, None));
        assert!(!opaque.matches(address, 6, Some(80)) && !port.matches(address, 6, None));
    }

    prop_compose! {
        fn selector()(a in 0u8..16, b in 0u8..16, protocol in 0u8..2, ports in any::<bool>(),
                      p in 0u16..4, q in 0u16..4) -> TrafficSelector {
            let address = |low: u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, low));
            let selector = TrafficSelector::range(address(a.min(b)), address(a.max(b))).unwrap();
            let (start, end) = if ports { (p.min(q), p.max(q)) } else { (0, u16::MAX) };
            selector.with_ports(protocol * 6, start, end)
        }
    }

    proptest! {
        #[test]
        fn an_intersection_is_what_both_match(a in selector(), b in selector(), low in 0u8..16,
                                              tcp in any::<bool>(), port in prop::option::of(0u16..4)) {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, low));
            let matches = |s: &TrafficSelector| s.matches(address, if tcp { 6 } else { 17 }, port);
            let both = a.intersect(&b);
            prop_assert_eq!(both.is_some_and(|both| matches(&both)), matches(&a) && matches(&b));
            prop_assert_eq!(both, b.intersect(&a));
            if let Some(both) = both {
                prop_assert!(a.contains(&both) && b.contains(&both));
            }
        }

        #[test]
        fn prefixes_are_exactly_the_range(a: u32, b: u32) {
            let (start, end) = (a.min(b), a.max(b));
            let selector = TrafficSelector::range(
                Ipv4Addr::from(start).into(), Ipv4Addr::from(end).into()).unwrap();
            let mut next = u64::from(start);
            for (network, length) in selector.prefixes() {
                let part = TrafficSelector::prefix(network, length).unwrap();
                prop_assert_eq!(part.start, network);
                prop_assert_eq!(to_number(part.start), u128::from(next));
                next = to_number(part.end) as u64 + 1;
            }
            prop_assert_eq!(next, u64::from(end) + 1);
        }
    }
}
