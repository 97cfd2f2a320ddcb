//! Identities of the two ends (RFC 7296 section 3.5).

mod dn;
mod pattern;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use dn::DistinguishedName;
pub use pattern::IdentityPattern;

/// ID type numbers (IANA "IKEv2 Identification Payload ID Types").
pub mod id_type {
    /// ID_IPV4_ADDR
    pub const IPV4: u8 = 1;
    /// ID_FQDN
    pub const FQDN: u8 = 2;
    /// ID_RFC822_ADDR
    pub const EMAIL: u8 = 3;
    /// ID_IPV6_ADDR
    pub const IPV6: u8 = 5;
    /// ID_DER_ASN1_DN
    pub const NAME: u8 = 9;
    /// ID_KEY_ID
    pub const KEY_ID: u8 = 11;
}

/// Longest identity that is accepted, in octets.
pub const MAX_IDENTITY_LEN: usize = 1024;

/// Who an end says it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN: a name, not necessarily one in the DNS.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_DER_ASN1_DN: a distinguished name.
    Name(DistinguishedName),
    /// ID_KEY_ID: opaque octets.
    KeyId(Vec<u8>),
    /// Any other type, or one of the above whose octets do not fit it.
    Other {
        /// ID type number.
        kind: u8,
        /// Its octets.
        data: Vec<u8>,
    },
}

/// An identity in a configuration that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no identity: {reason}")]
pub struct IdentityError {
    text: String,
    reason: &'static str,
}

impl IdentityError {
    fn new(text: &str, reason: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            reason,
        }
    }
}

impl Identity {
    /// The identity in a payload of this ID type. Never fails: what does not fit its type is kept as `Other`.
    pub fn from_wire(kind: u8, data: &[u8]) -> Self {
        let other = || Self::Other {
            kind,
            data: data.to_vec(),
        };
        let text = || match std::str::from_utf8(data) {
            Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => {
                Some(text.to_owned())
            }
            _ => None,
        };
        match kind {
            id_type::IPV4 => <[u8; 4]>::try_from(data).map_or_else(
                |_| other(),
                |octets| Self::Address(Ipv4Addr::from(octets).into()),
            ),
            id_type::IPV6 => <[u8; 16]>::try_from(data).map_or_else(
                |_| other(),
                |octets| Self::Address(Ipv6Addr::from(octets).into()),
            ),
            id_type::FQDN => text().map_or_else(other, Self::Fqdn),
            id_type::EMAIL => text().map_or_else(other, Self::Email),
            id_type::NAME => DistinguishedName::from_der(data).map_or_else(other, Self::Name),
            id_type::KEY_ID => Self::KeyId(data.to_vec()),
            _ => other(),
        }
    }

    /// The ID type number.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Address(IpAddr::V4(_)) => id_type::IPV4,
            Self::Address(IpAddr::V6(_)) => id_type::IPV6,
            Self::Fqdn(_) => id_type::FQDN,
            Self::Email(_) => id_type::EMAIL,
            Self::Name(_) => id_type::NAME,
            Self::KeyId(_) => id_type::KEY_ID,
            Self::Other { kind, .. } => *kind,
        }
    }

    /// The octets after the ID type.
    pub fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(address)) => address.octets().to_vec(),
            Self::Address(IpAddr::V6(address)) => address.octets().to_vec(),
            Self::Fqdn(text) | Self::Email(text) => text.as_bytes().to_vec(),
            Self::Name(name) => name.der().to_vec(),
            Self::KeyId(data) | Self::Other { data, .. } => data.clone(),
        }
    }

    /// Whether both name the same end. Names compare without regard to ASCII case.
    pub fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fqdn(a), Self::Fqdn(b)) | (Self::Email(a), Self::Email(b)) => {
                a.eq_ignore_ascii_case(b)
            }
            (Self::Name(a), Self::Name(b)) => a.matches(b),
            _ => self == other,
        }
    }
}

impl From<IpAddr> for Identity {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// Reads `192.0.2.1`, `2001:db8::1`, `gw.example.org` or `@gw.example.org`, `gw@example.org`,
/// `C=ES, O=Example, CN=gw`, `keyid:text` and `keyid:0x68656c6c6f`.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| Err(IdentityError::new(text, reason));
        if text.is_empty() {
            return error("it is empty");
        }
        if text.len() > MAX_IDENTITY_LEN {
            return error("it is longer than 1024 octets");
        }
        if let Some(key) = text.strip_prefix("keyid:") {
            let Some(hex) = key.strip_prefix("0x") else {
                return Ok(Self::KeyId(key.as_bytes().to_vec()));
            };
            let digits: Option<Vec<u32>> = hex.chars().map(|c| c.to_digit(16)).collect();
            return match digits {
                Some(digits) if digits.len() % 2 == 0 && !digits.is_empty() => Ok(Self::KeyId(
                    digits.chunks(2).map(|p| (p[0] << 4 | p[1]) as u8).collect(),
                )),
                _ => error("after `keyid:0x` an even number of hexadecimal digits is expected"),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address));
        }
        if text.contains('=') {
            return match text.parse() {
                Ok(name) => Ok(Self::Name(name)),
                Err(_) => error(
                    "expected a distinguished name such as C=ES, O=Example, CN=gw.example.org",
                ),
            };
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return error(
                "it contains blanks; expected an address, a name, an e-mail address, a distinguished name or keyid:…",
            );
        }
        if let Some(name) = text.strip_prefix('@') {
            return if name.is_empty() {
                error("the name after `@` is missing")
            } else {
                Ok(Self::Fqdn(name.to_owned()))
            };
        }
        if text.contains('@') {
            Ok(Self::Email(text.to_owned()))
        } else {
            Ok(Self::Fqdn(text.to_owned()))
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Fqdn(text) | Self::Email(text) => f.write_str(text),
            Self::Name(name) if name.is_empty() => f.write_str("an empty name"),
            Self::Name(name) => write!(f, "{name}"),
            Self::KeyId(data) => match std::str::from_utf8(data) {
                Ok(text)
                    if !text.is_empty()
                        && text.chars().all(|c| c.is_ascii_graphic())
                        && !text.starts_with("0x") =>
                {
                    write!(f, "keyid:{text}")
                }
                _ => {
                    f.write_str("keyid:0x")?;
                    data.iter().try_for_each(|b| write!(f, "{b:02x}"))
                }
            },
            Self::Other { kind, data } => {
                write!(f, "id-type-{kind}:0x")?;
                data.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_round_trip() {
        for text in [
            "192.0.2.1",
            "2001:db8::1",
            "gw.example.org",
            "gw@example.org",
            "C=ES, O=Example Org, CN=gw.example.org",
            "keyid:branch-7",
            "keyid:0x00ff",
        ] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
            assert_eq!(
                Identity::from_wire(identity.kind(), &identity.data()),
                identity
            );
        }
        assert_eq!(
            "@gw".parse::<Identity>().unwrap(),
            Identity::Fqdn("gw".into())
        );
    }

    #[test]
    fn odd_wire_identities_are_kept() {
        for (kind, data) in [
            (1, &[1u8, 2, 3][..]),
            (2, &[0xff, 0xfe]),
            (9, &[0x30, 0]),
            (201, b"x"),
        ] {
            let identity = Identity::from_wire(kind, data);
            assert_eq!((identity.kind(), identity.data()), (kind, data.to_vec()));
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in ["", "@", "a b", "keyid:0x1", "keyid:0xzz", "CN=", "X=y"] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
