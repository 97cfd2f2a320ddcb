//! Name constraints (RFC 5280 section 4.2.1.10).

use std::fmt;
use std::net::IpAddr;

use der::Encode as _;
use x509_cert::ext::pkix::NameConstraints;
use x509_cert::ext::pkix::constraints::name::{GeneralSubtree, GeneralSubtrees};
use x509_cert::ext::pkix::name::GeneralName;

use super::certificate::{AltName, Certificate};
use crate::identity::DistinguishedName;

/// Which names an authority may give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constraints {
    permitted: Vec<Subtree>,
    excluded: Vec<Subtree>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subtree {
    Dns(String),
    Email(String),
    Network(Vec<u8>),
    Name(DistinguishedName),
    /// A kind that is not understood here, by its number in GeneralName: names of that kind are refused.
    Other(u8),
}

impl Constraints {
    pub fn new(constraints: &NameConstraints) -> Self {
        let read = |subtrees: &Option<GeneralSubtrees>| {
            let subtrees = subtrees.as_deref().unwrap_or_default();
            subtrees.iter().map(Subtree::new).collect()
        };
        Self {
            permitted: read(&constraints.permitted_subtrees),
            excluded: read(&constraints.excluded_subtrees),
        }
    }

    /// The first of a certificate's names that is not allowed.
    pub fn offence(&self, certificate: &Certificate) -> Option<String> {
        let subject = AltName::Name(certificate.subject().clone());
        let subject = (!certificate.subject().is_empty()).then_some(&subject);
        let mut names = subject.into_iter().chain(certificate.alt_names());
        let refused = |name: &&AltName| {
            let of_kind = |subtree: &&Subtree| subtree.kind() == kind(name);
            let mut permitted = self.permitted.iter().filter(of_kind).peekable();
            let mut excluded = self.excluded.iter().filter(of_kind);
            (permitted.peek().is_some() && !permitted.any(|subtree| subtree.contains(name)))
                || excluded
                    .any(|subtree| subtree.contains(name) || matches!(subtree, Subtree::Other(_)))
        };
        names.find(refused).map(ToString::to_string)
    }
}

/// The number of a name's kind in GeneralName.
fn kind(name: &AltName) -> u8 {
    match name {
        AltName::Email(_) => 1,
        AltName::Dns(_) => 2,
        AltName::Name(_) => 4,
        AltName::Address(_) => 7,
        AltName::Other(kind) => *kind,
    }
}

impl Subtree {
    fn new(subtree: &GeneralSubtree) -> Self {
        let read = match &subtree.base {
            GeneralName::DnsName(text) => Self::Dns(text.as_str().to_owned()),
            GeneralName::Rfc822Name(text) => Self::Email(text.as_str().to_owned()),
            GeneralName::IpAddress(octets) => Self::Network(octets.as_bytes().to_vec()),
            GeneralName::DirectoryName(name) => {
                DistinguishedName::from_der(&name.to_der().unwrap_or_default())
                    .map_or(Self::Other(4), Self::Name)
            }
            GeneralName::OtherName(_) => Self::Other(0),
            GeneralName::EdiPartyName(_) => Self::Other(5),
            GeneralName::UniformResourceIdentifier(_) => Self::Other(6),
            GeneralName::RegisteredId(_) => Self::Other(8),
        };
        // "the minimum MUST be zero, and maximum MUST be absent".
        if subtree.minimum == 0 && subtree.maximum.is_none() {
            read
        } else {
            Self::Other(read.kind())
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Email(_) => 1,
            Self::Dns(_) => 2,
            Self::Name(_) => 4,
            Self::Network(_) => 7,
            Self::Other(kind) => *kind,
        }
    }

    fn contains(&self, name: &AltName) -> bool {
        match (self, name) {
            (Self::Dns(base), AltName::Dns(name)) => in_domain(name, base),
            (Self::Email(base), AltName::Email(name)) => {
                let host = name.rsplit_once('@').map_or("", |(_, host)| host);
                if base.contains('@') {
                    name.eq_ignore_ascii_case(base)
                } else if base.starts_with('.') {
                    in_domain(host, base)
                } else {
                    host.eq_ignore_ascii_case(base)
                }
            }
            (Self::Network(network), AltName::Address(address)) => {
                let address = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                let Some((base, mask)) = network.split_at_checked(address.len()) else {
                    return false;
                };
                let masked = |octets: &[u8]| -> Vec<u8> {
                    octets
                        .iter()
                        .zip(mask)
                        .map(|(octet, mask)| octet & mask)
                        .collect()
                };
                mask.len() == address.len() && masked(&address) == masked(base)
            }
            (Self::Name(base), AltName::Name(name)) => name.within(base),
            _ => false,
        }
    }
}

/// `gw.example.org` in `example.org`; with a leading dot the domain itself is left out. An empty
/// domain has everything in it.
fn in_domain(name: &str, base: &str) -> bool {
    let suffix = base.strip_prefix('.').unwrap_or(base);
    if suffix.is_empty() {
        return true;
    }
    let Some(rest) = name.len().checked_sub(suffix.len()) else {
        return false;
    };
    let ends = name
        .get(rest..)
        .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix));
    match rest {
        0 => ends && !base.starts_with('.'),
        _ => ends && name.get(..rest).is_some_and(|head| head.ends_with('.')),
    }
}

impl fmt::Display for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |subtrees: &[Subtree]| {
            let shown: Vec<String> = subtrees.iter().map(ToString::to_string).collect();
            shown.join(", ")
        };
        match (self.permitted.is_empty(), self.excluded.is_empty()) {
            (false, true) => write!(f, "only {}", list(&self.permitted)),
            (true, _) => write!(f, "all but {}", list(&self.excluded)),
            (false, false) => write!(
                f,
                "only {} without {}",
                list(&self.permitted),
                list(&self.excluded)
            ),
        }
    }
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Email(text) => f.write_str(text),
            Self::Name(name) => write!(f, "{name}"),
            Self::Network(octets) => {
                let (base, mask) = octets.split_at(octets.len() / 2);
                let address = |octets: &[u8]| {
                    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
                    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
                };
                let length: u32 = mask.iter().map(|octet| octet.count_ones()).sum();
                match address(base) {
                    Ok(address) => write!(f, "{address}/{length}"),
                    Err(_) => f.write_str("a damaged network"),
                }
            }
            Self::Other(kind) => write!(f, "names of type {kind}"),
        }
    }
}
