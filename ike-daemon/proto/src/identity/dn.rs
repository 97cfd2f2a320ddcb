//! Distinguished names (X.501; RFC 5280 section 4.1.2.4), as identities (ID_DER_ASN1_DN) and in
//! certificates.

use std::fmt;
use std::str::FromStr;

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode, Tag, Tagged as _};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::{Name, RelativeDistinguishedName};

/// emailAddress (RFC 2985), which people also write `E`.
const EMAIL: &str = "emailAddress";

/// A distinguished name in DER.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DistinguishedName(Vec<u8>);

/// A text that is no distinguished name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a distinguished name such as \"C=ES, O=Example, CN=gw.example.org\"")]
pub struct NameError;

/// An attribute as it is compared: without regard to case, blanks and kind of string (RFC 5280
/// section 7.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Folded {
    pub kind: ObjectIdentifier,
    pub value: String,
}

impl DistinguishedName {
    /// Takes a Name in DER, if it is one.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        Name::from_der(der).ok().map(|_| Self(der.to_vec()))
    }

    /// The Name in DER.
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// Whether it has no attribute at all.
    pub fn is_empty(&self) -> bool {
        self.name().is_empty()
    }

    /// Whether both name the same.
    pub fn matches(&self, other: &Self) -> bool {
        self.0 == other.0 || self.folded() == other.folded()
    }

    /// Whether it begins with all of `base`: it lies in the subtree of `base` (RFC 5280 section 4.2.1.10).
    pub fn within(&self, base: &Self) -> bool {
        self.folded().starts_with(&base.folded())
    }

    fn name(&self) -> Name {
        // It was decoded before it was taken.
        Name::from_der(&self.0).unwrap_or_default()
    }

    pub(super) fn folded(&self) -> Vec<Vec<Folded>> {
        let name = self.name();
        let fold = |rdn: &RelativeDistinguishedName| {
            let mut attributes: Vec<Folded> = rdn
                .iter()
                .map(|attribute| Folded {
                    kind: attribute.oid,
                    value: fold(attribute),
                })
                .collect();
            attributes.sort();
            attributes
        };
        name.iter_rdn().map(fold).collect()
    }
}

fn fold(attribute: &AttributeTypeAndValue) -> String {
    let octets = attribute.value.value();
    let text = match attribute.value.tag() {
        Tag::PrintableString | Tag::Utf8String | Tag::Ia5String => {
            std::str::from_utf8(octets).ok().map(str::to_owned)
        }
        Tag::TeletexString => Some(octets.iter().map(|octet| char::from(*octet)).collect()),
        _ => None,
    };
    match text {
        Some(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.join(" ").to_lowercase()
        }
        // `#` cannot begin a text that was folded from itself: it would be escaped in writing.
        None => attribute
            .value
            .to_der()
            .unwrap_or_default()
            .iter()
            .fold("#".to_owned(), |text, octet| format!("{text}{octet:02x}")),
    }
}

/// The parts of a text between unescaped commas.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, octet) in text.bytes().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.extend(text.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.extend(text.get(start..));
    parts
}

/// Reads `C=ES, O=Example, CN=gw`, in the order of the certificate, with RFC 4514's escapes.
impl FromStr for DistinguishedName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut name = Vec::new();
        for part in parts(text) {
            let (key, value) = part.trim().split_once('=').ok_or(NameError)?;
            let key = match key.trim() {
                "E" | "e" => EMAIL,
                key => key,
            };
            let value = value.trim();
            if value.is_empty() {
                return Err(NameError);
            }
            let rdn = RelativeDistinguishedName::from_str(&format!("{key}={value}"));
            name.push(rdn.map_err(|_| NameError)?);
        }
        let der = name.to_der().map_err(|_| NameError)?;
        Self::from_der(&der).ok_or(NameError)
    }
}

impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rdn) in self.name().iter_rdn().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{rdn}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_their_order() {
        for text in [
            "C=ES, O=Example, CN=gw.example.org",
            "DC=org, DC=example, CN=gw",
            "O=Comma\\, Inc, CN=gw",
        ] {
            let name: DistinguishedName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(DistinguishedName::from_der(name.der()), Some(name));
        }
        for bad in ["", "CN", "CN=", "nonsense=x", "CN=a,,O=b"] {
            assert!(bad.parse::<DistinguishedName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_match_without_regard_to_case_blanks_and_kind_of_string() {
        let name = |text: &str| text.parse::<DistinguishedName>().unwrap();
        assert!(name("O=Example  Org, CN=GW").matches(&name("O=example org,CN=gw")));
        assert!(!name("O=Example, CN=gw").matches(&name("CN=gw, O=Example")));
        assert!(name("C=ES, O=Example, CN=gw").within(&name("C=es, O=example")));
        assert!(!name("C=ES").within(&name("C=ES, O=Example")));
        // The same in a PrintableString: tag 0x13 for 0x0c.
        let mut printable = name("O=Example").der().to_vec();
        let at = printable.iter().position(|octet| *octet == 0x0c).unwrap();
        printable[at] = 0x13;
        let printable = DistinguishedName::from_der(&printable).unwrap();
        assert_ne!(printable, name("O=Example"));
        assert!(printable.matches(&name("O=EXAMPLE")));
    }
}
