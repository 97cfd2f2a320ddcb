//! Which pre-shared key goes with two identities.

use crate::config::PskSecret;
use crate::identity::Identity;

/// The entry that fits best: one that names both ends, then one that names the peer (alone, or as
/// one of several peers), then one that names only us, then one for anybody. Of equals the first.
pub(crate) fn find<'a>(
    secrets: &'a [PskSecret],
    local: &Identity,
    remote: &Identity,
) -> Option<&'a PskSecret> {
    let mut best: Option<(u8, &PskSecret)> = None;
    for secret in secrets {
        let names = |id: &Identity| secret.ids.iter().any(|entry| entry.matches(id));
        let only_us = secret.ids.iter().all(|entry| entry.matches(local));
        let score = match (names(local), names(remote)) {
            (true, true) => 4,
            (false, true) => 3,
            (true, false) if only_us => 2,
            (false, false) if secret.ids.is_empty() => 1,
            _ => continue,
        };
        if best.is_none_or(|(most, _)| score > most) {
            best = Some((score, secret));
        }
    }
    best.map(|(_, secret)| secret)
}

#[cfg(test)]
mod tests {
    use espada_common::sa::SecretBytes;

    use super::*;

    fn entry(ids: &[&str], origin: &str) -> PskSecret {
        PskSecret {
            ids: ids.iter().map(|id| id.parse().unwrap()).collect(),
            secret: SecretBytes::new(b"x".to_vec()),
            origin: origin.into(),
        }
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let secrets = [
            entry(&[], "anybody"),
            entry(&["us"], "us"),
            entry(&["peer"], "peer"),
            entry(&["us", "peer"], "both"),
            entry(&["us", "other"], "other"),
        ];
        let find = |list: &[PskSecret], remote: &str| {
            find(list, &"us".parse().unwrap(), &remote.parse().unwrap())
                .map(|secret| secret.origin.clone())
        };
        assert_eq!(find(&secrets, "PEER").as_deref(), Some("both"));
        assert_eq!(find(&secrets[..3], "peer").as_deref(), Some("peer"));
        assert_eq!(find(&secrets, "stranger").as_deref(), Some("us"));
        assert_eq!(find(&secrets[..1], "stranger").as_deref(), Some("anybody"));
        assert_eq!(find(&secrets[4..], "stranger"), None);
    }
}
