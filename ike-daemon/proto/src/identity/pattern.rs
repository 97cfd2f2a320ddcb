//! Patterns that several identities match: `*.example.org`, `*@example.org`, `O=Example, CN=*`.

use std::fmt;
use std::str::FromStr;

use super::{DistinguishedName, Identity, IdentityError, id_type};

/// What a peer's identity must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Names that end in this, which begins with a dot.
    Fqdn(String),
    /// E-mail addresses that end in this, which begins with `@`.
    Email(String),
    /// Distinguished names of as many parts, where an attribute `*` stands for any value.
    Name(DistinguishedName),
}

impl IdentityPattern {
    /// Whether a text is a pattern rather than an identity.
    pub fn is_pattern(text: &str) -> bool {
        text.starts_with("*.")
            || text.starts_with("*@")
            || (text.contains('=') && text.split(',').any(|part| part.trim_end().ends_with("=*")))
    }

    /// Whether an identity matches.
    pub fn matches(&self, identity: &Identity) -> bool {
        let ends = |text: &str, end: &str| {
            let rest = text.len().checked_sub(end.len());
            rest.is_some_and(|rest| {
                rest > 0
                    && text
                        .get(rest..)
                        .is_some_and(|tail| tail.eq_ignore_ascii_case(end))
            })
        };
        match (&self.0, identity) {
            (Kind::Fqdn(end), Identity::Fqdn(text)) => ends(text, end),
            (Kind::Email(end), Identity::Email(text)) => ends(text, end),
            (Kind::Name(pattern), Identity::Name(name)) => {
                let (pattern, name) = (pattern.folded(), name.folded());
                pattern.len() == name.len()
                    && pattern.iter().zip(&name).all(|(pattern, rdn)| {
                        pattern.len() == rdn.len()
                            && pattern.iter().zip(rdn).all(|(pattern, attribute)| {
                                pattern.kind == attribute.kind
                                    && (pattern.value == "*" || pattern.value == attribute.value)
                            })
                    })
            }
            _ => false,
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Without its asterisk it must be an identity of the kind that it is a pattern of.
        let kind = match text.strip_prefix('*') {
            Some(end) => {
                let whole: Identity = format!("x{end}").parse()?;
                if whole.kind() == id_type::EMAIL {
                    Kind::Email(end.to_owned())
                } else {
                    Kind::Fqdn(end.to_owned())
                }
            }
            None => match text.parse::<Identity>()? {
                Identity::Name(name) => Kind::Name(name),
                _ => return Err(IdentityError::new(text, "it is no pattern")),
            },
        };
        Ok(Self(kind))
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Fqdn(end) | Kind::Email(end) => write!(f, "*{end}"),
            Kind::Name(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |pattern: &str, identity: &str| {
            assert!(IdentityPattern::is_pattern(pattern));
            let parsed: IdentityPattern = pattern.parse().unwrap();
            assert_eq!(parsed.to_string(), pattern);
            parsed.matches(&identity.parse().unwrap())
        };
        assert!(matches("*.example.org", "gw.EXAMPLE.org"));
        assert!(matches("*.example.org", "a.b.example.org"));
        assert!(!matches("*.example.org", "example.org"));
        assert!(!matches("*.example.org", ".example.org"));
        assert!(!matches("*.example.org", "gw.example.org.evil.net"));
        assert!(!matches("*.example.org", "gw@x.example.org"));
        assert!(matches("*@example.org", "gw@example.org"));
        assert!(!matches("*@example.org", "gw@x.example.org"));
        assert!(matches("O=Example, CN=*", "O=example, CN=anybody"));
        assert!(!matches("O=Example, CN=*", "O=Other, CN=anybody"));
        assert!(!matches("O=Example, CN=*", "O=Example, OU=x, CN=anybody"));
        for identity in ["gw.example.org", "O=Example, CN=gw", "192.0.2.1"] {
            assert!(!IdentityPattern::is_pattern(identity));
        }
    }
}
