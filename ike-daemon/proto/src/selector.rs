//! Traffic selectors (RFC 7296 sections 2.9 and 3.13.1): reading, narrowing, and why two sides'
//! selectors do not meet.

use std::fmt;
use std::net::IpAddr;

use espada_common::sa::{TrafficSelector, is_icmp, protocol_by_name};

use crate::proposal::write_table;

/// Why a selector cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No address where one should be.
    #[error(
        "\"{0}\" is no IP address; a selector is a subnet such as 10.0.0.0/24, 2001:db8::/64 or 10.0.0.0/24[tcp/443]"
    )]
    Address(String),
    /// Too long a prefix, or no number.
    #[error("\"/{length}\" is no prefix length of {address}: it goes from 0 to {most}")]
    PrefixLength {
        /// The address before it.
        address: IpAddr,
        /// As written.
        length: String,
        /// The longest there is.
        most: u8,
    },
    /// A range that ends before it starts, or in another family.
    #[error("{start}..{end} is no range: its ends must be of one family, the lower one first")]
    Range {
        /// First address.
        start: IpAddr,
        /// Last address.
        end: IpAddr,
    },
    /// A bracket that is not closed, or something after it.
    #[error("\"{0}\": protocol and port stand in brackets at the end, as in 10.0.0.0/24[tcp/443]")]
    Bracket(String),
    /// No protocol where one should be.
    #[error(
        "\"{0}\" is no protocol: a number up to 255, tcp, udp, icmp, ipv6-icmp, sctp, gre, ipip, ospf or any"
    )]
    Protocol(String),
    /// No port where one should be.
    #[error(
        "\"{0}\" is no port: a number up to 65535, a range such as 1024-2047, any or opaque; for ICMP a type or type(code)"
    )]
    Port(String),
    /// `dynamic` where the address is not known.
    #[error("\"dynamic\" has no address yet; write the subnet itself")]
    Dynamic,
}

/// A selector as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// These addresses.
    Fixed(TrafficSelector),
    /// The tunnel's own address on this side, known when it comes up.
    Dynamic {
        /// IP protocol, 0 for any.
        protocol: u8,
        /// First port.
        start_port: u16,
        /// Last port.
        end_port: u16,
    },
}

impl Selector {
    /// The selector for a tunnel whose address on this side is `host`.
    pub fn resolve(self, host: IpAddr) -> TrafficSelector {
        match self {
            Self::Fixed(selector) => selector,
            Self::Dynamic {
                protocol,
                start_port,
                end_port,
            } => TrafficSelector::host(host).with_ports(protocol, start_port, end_port),
        }
    }
}

/// swanctl's syntax: `10.0.0.0/24`, `10.0.0.1..10.0.0.9`, `2001:db8::1`, `10.0.0.0/24[tcp/443]`,
/// `dynamic[udp/1701]`. Host bits of a prefix are cleared.
impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (addresses, restriction) = match text.trim().split_once('[') {
            None => (text.trim(), None),
            Some((addresses, rest)) => {
                let inner = rest
                    .strip_suffix(']')
                    .ok_or_else(|| SelectorError::Bracket(text.to_owned()))?;
                (addresses.trim(), Some(inner))
            }
        };
        let (protocol, start_port, end_port) =
            restriction.map_or(Ok((0, 0, u16::MAX)), parse_restriction)?;
        if addresses == "dynamic" {
            return Ok(Self::Dynamic {
                protocol,
                start_port,
                end_port,
            });
        }
        Ok(Self::Fixed(
            parse_addresses(addresses)?.with_ports(protocol, start_port, end_port),
        ))
    }
}

/// Reads a selector that is not `dynamic`.
pub fn parse(text: &str) -> Result<TrafficSelector, SelectorError> {
    match text.parse()? {
        Selector::Fixed(selector) => Ok(selector),
        Selector::Dynamic { .. } => Err(SelectorError::Dynamic),
    }
}

fn parse_addresses(text: &str) -> Result<TrafficSelector, SelectorError> {
    let address = |text: &str| {
        text.parse::<IpAddr>()
            .map_err(|_| SelectorError::Address(text.to_owned()))
    };
    if let Some((start, end)) = text.split_once("..").or_else(|| text.split_once('-')) {
        let (start, end) = (address(start.trim())?, address(end.trim())?);
        return TrafficSelector::range(start, end).ok_or(SelectorError::Range { start, end });
    }
    let Some((network, length)) = text.split_once('/') else {
        return address(text).map(TrafficSelector::host);
    };
    let network = address(network)?;
    let selector = length
        .parse()
        .ok()
        .and_then(|bits| TrafficSelector::prefix(network, bits));
    selector.ok_or_else(|| SelectorError::PrefixLength {
        address: network,
        length: length.to_owned(),
        most: if network.is_ipv4() { 32 } else { 128 },
    })
}

/// Reads `tcp`, `tcp/443`, `17/1024-2047`, `any/53` or `icmp/8(0)`.
fn parse_restriction(text: &str) -> Result<(u8, u16, u16), SelectorError> {
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol.trim(), port.trim()),
        None => (text.trim(), "any"),
    };
    let number = match protocol.to_ascii_lowercase().as_str() {
        "any" => Some(0),
        "icmpv6" => Some(58),
        name => protocol_by_name(name).or_else(|| name.parse().ok()),
    };
    let number = number.ok_or_else(|| SelectorError::Protocol(protocol.to_owned()))?;
    let (start, end) = match port.to_ascii_lowercase().as_str() {
        "any" => (0, u16::MAX),
        "opaque" => (u16::MAX, 0),
        range => {
            let (start, end) = range.split_once('-').unwrap_or((range, range));
            let ends = parse_port(number, start.trim()).zip(parse_port(number, end.trim()));
            let (start, end) = ends.ok_or_else(|| SelectorError::Port(port.to_owned()))?;
            if start.0 > end.1 {
                return Err(SelectorError::Port(port.to_owned()));
            }
            (start.0, end.1)
        }
    };
    Ok((number, start, end))
}

/// First and last port that a number stands for: an ICMP type has 256 codes.
fn parse_port(protocol: u8, text: &str) -> Option<(u16, u16)> {
    if !is_icmp(protocol) {
        let port = text.parse().ok()?;
        return Some((port, port));
    }
    match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((kind, code)) => {
            let value = u16::from_be_bytes([kind.parse().ok()?, code.parse().ok()?]);
            Some((value, value))
        }
        None => {
            let kind = text.parse().ok()?;
            Some((
                u16::from_be_bytes([kind, 0]),
                u16::from_be_bytes([kind, u8::MAX]),
            ))
        }
    }
}

/// Selectors for people: `10.0.0.0/24, 10.0.1.0/24`.
pub fn format_list(selectors: &[TrafficSelector]) -> String {
    if selectors.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<String> = selectors.iter().map(TrafficSelector::to_string).collect();
    words.join(", ")
}

/// What both lists cover, in the order of `theirs`, so that the selector of the packet that made the
/// peer call (RFC 7296 section 2.9) stays first. Selectors within others are left out.
pub fn narrow(ours: &[TrafficSelector], theirs: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut result: Vec<TrafficSelector> = Vec::new();
    for their in theirs {
        for our in ours {
            let Some(both) = our.intersect(their) else {
                continue;
            };
            if result.iter().any(|known| known.contains(&both)) {
                continue;
            }
            result.retain(|known| !both.contains(known));
            result.push(both);
        }
    }
    result
}

/// Whether each of `inner` lies within one of `outer`: what a responder may answer is a subset of
/// what it was asked for (RFC 7296 section 2.9).
pub fn is_subset(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    inner
        .iter()
        .all(|inner| outer.iter().any(|outer| outer.contains(inner)))
}

/// Selectors of both sides of a child SA, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sides {
    /// On our side.
    pub local: Vec<TrafficSelector>,
    /// On the peer's side.
    pub remote: Vec<TrafficSelector>,
}

impl Sides {
    /// Each selector of one side with each of the other that its packets can have.
    pub fn pairs(&self) -> impl Iterator<Item = Sides> + '_ {
        let both = |local: &TrafficSelector, remote: &TrafficSelector| {
            let family = local.start.is_ipv4() == remote.start.is_ipv4();
            let protocols = [local.protocol, remote.protocol];
            family && (protocols.contains(&0) || local.protocol == remote.protocol)
        };
        self.local.iter().flat_map(move |local| {
            let remote = self.remote.iter();
            remote
                .filter(move |remote| both(local, remote))
                .map(|remote| Sides {
                    local: vec![*local],
                    remote: vec![*remote],
                })
        })
    }
}

/// Narrows both sides: `ours` as configured, `theirs` as the peer sent them, whose TSr is our local
/// and whose TSi our remote side if it initiates.
pub fn negotiate(ours: &Sides, theirs: &Sides) -> Result<Sides, Box<TsMismatch>> {
    let narrowed = Sides {
        local: narrow(&ours.local, &theirs.local),
        remote: narrow(&ours.remote, &theirs.remote),
    };
    if narrowed.local.is_empty() || narrowed.remote.is_empty() {
        return Err(Box::new(TsMismatch {
            ours: ours.clone(),
            theirs: theirs.clone(),
            narrowed,
        }));
    }
    Ok(narrowed)
}

/// Selectors that do not meet on one side or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsMismatch {
    /// What we have configured.
    pub ours: Sides,
    /// What the peer sent.
    pub theirs: Sides,
    /// Where they meet; empty on one side at least.
    pub narrowed: Sides,
}

/// A likely reason why selectors do not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// Exchanged, they would meet.
    Swapped,
    /// The addresses meet, protocols or ports do not.
    ProtocolOrPort {
        /// One of ours.
        ours: TrafficSelector,
        /// One of theirs.
        theirs: TrafficSelector,
    },
    /// Neighbours that one shorter mask would hold.
    Mask {
        /// One of ours.
        ours: TrafficSelector,
        /// One of theirs.
        theirs: TrafficSelector,
        /// The subnet that holds both.
        common: TrafficSelector,
    },
    /// IPv4 on one side of the comparison, IPv6 on the other.
    Family,
    /// Nothing in common.
    Disjoint,
}

/// A value for a setting that would let selectors meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsSuggestion {
    /// `local.subnets` or `remote.subnets`.
    pub setting: &'static str,
    /// What the peer sent for that side.
    pub selectors: Vec<TrafficSelector>,
}

/// The line of configuration: `subnets = ["10.0.0.0/24"]`.
impl fmt::Display for TsSuggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("subnets = [")?;
        for (index, selector) in self.selectors.iter().enumerate() {
            write!(f, "{}\"{selector}\"", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl TsMismatch {
    /// For each side that does not meet, the value that would.
    pub fn suggestions(&self) -> Vec<TsSuggestion> {
        let sides = [
            ("local.subnets", &self.narrowed.local, &self.theirs.local),
            ("remote.subnets", &self.narrowed.remote, &self.theirs.remote),
        ];
        sides
            .into_iter()
            .filter(|(_, narrowed, theirs)| narrowed.is_empty() && !theirs.is_empty())
            .map(|(setting, _, theirs)| TsSuggestion {
                setting,
                selectors: theirs.clone(),
            })
            .collect()
    }

    /// The likely reason.
    pub fn diagnosis(&self) -> Diagnosis {
        let swapped = !narrow(&self.ours.local, &self.theirs.remote).is_empty()
            && !narrow(&self.ours.remote, &self.theirs.local).is_empty();
        if swapped {
            return Diagnosis::Swapped;
        }
        let (ours, theirs) = if self.narrowed.local.is_empty() {
            (&self.ours.local, &self.theirs.local)
        } else {
            (&self.ours.remote, &self.theirs.remote)
        };
        let mut pairs = ours
            .iter()
            .flat_map(|our| theirs.iter().map(move |their| (our, their)));
        let addresses = |selector: &TrafficSelector| selector.with_ports(0, 0, u16::MAX);
        if let Some((ours, theirs)) = pairs
            .clone()
            .find(|(ours, theirs)| addresses(ours).intersect(&addresses(theirs)).is_some())
        {
            return Diagnosis::ProtocolOrPort {
                ours: *ours,
                theirs: *theirs,
            };
        }
        let neighbours = pairs.clone().find_map(|(ours, theirs)| {
            common_prefix(ours, theirs).map(|common| (*ours, *theirs, common))
        });
        if let Some((ours, theirs, common)) = neighbours {
            return Diagnosis::Mask {
                ours,
                theirs,
                common,
            };
        }
        let same_family = |(ours, theirs): (&TrafficSelector, &TrafficSelector)| {
            ours.start.is_ipv4() == theirs.start.is_ipv4()
        };
        if ours.is_empty() || theirs.is_empty() || pairs.any(same_family) {
            Diagnosis::Disjoint
        } else {
            Diagnosis::Family
        }
    }
}

/// The smallest prefix that holds both, if both are prefixes and it is at most 8 bits shorter than
/// the shorter of them: beyond that it is no matter of a mistyped mask.
fn common_prefix(a: &TrafficSelector, b: &TrafficSelector) -> Option<TrafficSelector> {
    let ([(_, a_length)], [(_, b_length)]) = (&*a.prefixes(), &*b.prefixes()) else {
        return None;
    };
    let shorter = *a_length.min(b_length);
    let lengths = (shorter.saturating_sub(8).max(1)..shorter).rev();
    lengths
        .filter_map(|length| TrafficSelector::prefix(a.start, length))
        .find(|candidate| candidate.contains_addr(b.start) && candidate.contains_addr(b.end))
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swapped => f.write_str(
                "local and remote are exchanged: what one end calls its own subnets, the other \
                 must list under remote",
            ),
            Self::ProtocolOrPort { ours, theirs } => write!(
                f,
                "the addresses of {ours} and {theirs} meet, but their protocols or ports do not"
            ),
            Self::Mask {
                ours,
                theirs,
                common,
            } => write!(
                f,
                "{ours} and {theirs} are neighbours: with another mask, as in {common}, they would meet"
            ),
            Self::Family => f.write_str("one end has IPv4 subnets, the other IPv6 ones"),
            Self::Disjoint => f.write_str("the subnets have no address in common"),
        }
    }
}

/// Both sides as a table, then the likely reason.
impl fmt::Display for TsMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no traffic selectors in common")?;
        let mut rows = vec![[
            String::new(),
            "we accept".into(),
            "the peer sent".into(),
            String::new(),
        ]];
        let sides = [
            (
                "local",
                &self.ours.local,
                &self.theirs.local,
                &self.narrowed.local,
            ),
            (
                "remote",
                &self.ours.remote,
                &self.theirs.remote,
                &self.narrowed.remote,
            ),
        ];
        for (name, ours, theirs, narrowed) in sides {
            let verdict = if narrowed.is_empty() {
                "no match"
            } else {
                "ok"
            };
            rows.push([
                name.into(),
                format_list(ours),
                format_list(theirs),
                verdict.into(),
            ]);
        }
        write_table(f, &rows)?;
        write!(f, "\n{}", self.diagnosis())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Vec<TrafficSelector> {
        text.split_whitespace()
            .map(|word| parse(word).unwrap())
            .collect()
    }

    fn sides(local: &str, remote: &str) -> Sides {
        Sides {
            local: list(local),
            remote: list(remote),
        }
    }

    #[test]
    fn reads_what_swanctl_reads() {
        for (text, shown) in [
            ("10.0.0.0/24", "10.0.0.0/24"),
            ("10.0.0.7/24", "10.0.0.0/24"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("10.0.0.0-10.0.0.255", "10.0.0.0/24"),
            (" 10.0.0.1..10.0.0.9[tcp/80] ", "10.0.0.1..10.0.0.9[tcp/80]"),
            ("10.0.0.0/24[6/443]", "10.0.0.0/24[tcp/443]"),
            ("10.0.0.0/24[udp]", "10.0.0.0/24[udp]"),
            ("10.0.0.0/24[any/53]", "10.0.0.0/24[any/53]"),
            ("10.0.0.0/24[any]", "10.0.0.0/24"),
            ("10.0.0.0/24[icmp/8]", "10.0.0.0/24[icmp/8]"),
            ("::/0[icmpv6/128(0)]", "::/0[ipv6-icmp/128(0)]"),
            ("10.0.0.1[tcp/opaque]", "10.0.0.1/32[tcp/opaque]"),
            ("10.0.0.1[udp/1024-2047]", "10.0.0.1/32[udp/1024-2047]"),
        ] {
            let selector = parse(text).unwrap();
            assert_eq!(selector.to_string(), shown, "{text}");
            assert_eq!(parse(shown).unwrap(), selector, "{shown}");
        }
        let dynamic: Selector = "dynamic[udp/1701]".parse().unwrap();
        let resolved = dynamic.resolve("192.0.2.1".parse().unwrap());
        assert_eq!(resolved.to_string(), "192.0.2.1/32[udp/1701]");
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("10.0.0/24", "\"10.0.0\" is no IP address"),
            (
                "10.0.0.0/33",
                "\"/33\" is no prefix length of 10.0.0.0: it goes from 0 to 32",
            ),
            ("10.0.0.0/", "\"/\" is no prefix length"),
            ("10.0.0.9..10.0.0.1", "the lower one first"),
            ("10.0.0.1..::1", "of one family"),
            ("10.0.0.0/24[tcp", "stand in brackets"),
            ("10.0.0.0/24[tcp/443]x", "stand in brackets"),
            ("10.0.0.0/24[tpc/443]", "\"tpc\" is no protocol"),
            ("10.0.0.0/24[300]", "\"300\" is no protocol"),
            ("10.0.0.0/24[tcp/https]", "\"https\" is no port"),
            ("10.0.0.0/24[tcp/9-1]", "\"9-1\" is no port"),
            ("dynamic", "has no address yet"),
            ("", "\"\" is no IP address"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn narrows_families_apart_and_drops_what_is_within_another() {
        let narrowed = narrow(
            &list("10.0.0.0/8 2001:db8::/32"),
            &list("10.1.0.0/16 2001:db8:1::/48 10.1.2.0/24 10.0.0.0/7 192.0.2.0/24"),
        );
        assert_eq!(format_list(&narrowed), "2001:db8:1::/48, 10.0.0.0/8");
        assert_eq!(narrow(&list("0.0.0.0/0"), &list("::/0")), []);
    }

    #[test]
    fn the_triggering_packet_stays_first() {
        let narrowed = narrow(
            &list("10.0.0.0/24 10.0.1.0/24"),
            &list("10.0.1.5[tcp/80] 10.0.0.0/24 10.0.2.0/24"),
        );
        assert_eq!(format_list(&narrowed), "10.0.1.5/32[tcp/80], 10.0.0.0/24");
    }

    #[test]
    fn exchanged_subnets_are_named() {
        let ours = sides("10.0.0.0/24", "10.240.10.0/24");
        let mismatch = negotiate(&ours, &sides("10.240.10.0/24", "10.0.0.0/24")).unwrap_err();
        assert_eq!(mismatch.diagnosis(), Diagnosis::Swapped);
    }

    #[test]
    fn mismatch_shows_both_sides_and_the_cure() {
        let ours = sides("10.0.0.0/24", "10.240.10.0/24");
        let mismatch = negotiate(&ours, &sides("10.0.1.0/24", "10.240.0.0/16")).unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            [
                "no traffic selectors in common",
                "          we accept       the peer sent",
                "  local   10.0.0.0/24     10.0.1.0/24    no match",
                "  remote  10.240.10.0/24  10.240.0.0/16  ok",
                "10.0.0.0/24 and 10.0.1.0/24 are neighbours: with another mask, as in 10.0.0.0/23, \
                 they would meet",
            ]
            .join("\n")
        );
        let suggestions = mismatch.suggestions();
        assert_eq!(suggestions.len(), 1);
        assert_eq!(suggestions[0].setting, "local.subnets");
        assert_eq!(suggestions[0].to_string(), "subnets = [\"10.0.1.0/24\"]");
        let cured = Sides {
            local: suggestions[0].selectors.clone(),
            ..ours
        };
        assert!(negotiate(&cured, &mismatch.theirs).is_ok());
    }

    #[test]
    fn other_reasons_are_told_apart() {
        let diagnose = |ours: &str, theirs: &str| {
            let remote = "192.0.2.0/24";
            negotiate(&sides(ours, remote), &sides(theirs, remote))
                .unwrap_err()
                .diagnosis()
        };
        assert_eq!(diagnose("10.0.0.0/24", "2001:db8::/64"), Diagnosis::Family);
        assert_eq!(
            diagnose("10.0.0.0/24", "172.16.0.0/24"),
            Diagnosis::Disjoint
        );
        assert!(matches!(
            diagnose("10.0.0.0/24[tcp/80]", "10.0.0.0/24[tcp/443]"),
            Diagnosis::ProtocolOrPort { .. }
        ));
    }

    prop_compose! {
        fn selector()(a in 0u8..8, b in 0u8..8, v6 in any::<bool>(), protocol in 0u8..2,
                      p in 0u16..4, q in 0u16..4, ports in any::<bool>()) -> TrafficSelector {
            let address = |low: u8| -> IpAddr {
                if v6 { [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low].into() } else { [10, 0, 0, low].into() }
            };
            let selector = TrafficSelector::range(address(a.min(b)), address(a.max(b))).unwrap();
            let (start, end) = if ports { (p.min(q), p.max(q)) } else { (0, u16::MAX) };
            selector.with_ports(protocol * 17, start, end)
        }
    }

    proptest! {
        #[test]
        fn narrowing_keeps_exactly_what_both_cover(
            ours in prop::collection::vec(selector(), 0..4),
            theirs in prop::collection::vec(selector(), 0..4),
        ) {
            let narrowed = narrow(&ours, &theirs);
            prop_assert!(is_subset(&narrowed, &ours));
            prop_assert!(is_subset(&narrowed, &theirs));
            for (index, selector) in narrowed.iter().enumerate() {
                for (other, wider) in narrowed.iter().enumerate() {
                    prop_assert!(index == other || !wider.contains(selector));
                }
            }
            let covered = |list: &[TrafficSelector], address, protocol, port| {
                list.iter().any(|selector| selector.matches(address, protocol, port))
            };
            for low in 0..8u8 {
                for address in [IpAddr::from([10, 0, 0, low]), "fd00::".parse().unwrap()] {
                    for protocol in [6, 17] {
                        for port in [None, Some(0), Some(1), Some(2), Some(3), Some(4)] {
                            prop_assert_eq!(
                                covered(&narrowed, address, protocol, port),
                                covered(&ours, address, protocol, port)
                                    && covered(&theirs, address, protocol, port)
                            );
                        }
                    }
                }
            }
        }

        #[test]
        fn shown_selectors_can_be_read_again(selector in selector()) {
            prop_assert_eq!(parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn reading_never_panics(text in "[0-9a-f.:/\\[\\]()tcpudany-]{0,30}|\\PC{0,30}") {
            let _ = text.parse::<Selector>();
        }
    }
}
