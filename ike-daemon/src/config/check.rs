//! What single settings cannot show: connections that contradict each other, keys that are missing.

use std::net::IpAddr;
use std::path::Path;

use espada_common::sa::{Mode, TrafficSelector};
use espada_dataplane::plane::EngineKind;
use espada_ike::Identity;
use espada_ike::config::{
    ConnectionConfig, Ppk, PskSecret, RemoteAddress, RemoteAuth, RemoteIdentity,
};
use espada_ike::proposal::Proposal;

use super::connection::Found;
use super::document::{Document, Located};
use super::{DataplaneConfig, EngineChoice, FrontEndMode, Remote};

/// Checks connections against each other and against the data plane's settings.
pub(super) fn connections(
    document: &Document<'_>,
    connections: &[Found],
    dataplane: &DataplaneConfig,
) {
    let extents: Vec<[Extent; 2]> = connections
        .iter()
        .map(|found| [Extent::of(&found.local), Extent::of(&found.remote)])
        .collect();
    for (index, (later, own)) in connections.iter().zip(&extents).enumerate() {
        // Thousands of connections are compared with each other; most are told apart by this alone.
        let near = |other: &[Extent; 2]| own.iter().zip(other).all(|(own, other)| own.meets(other));
        let earlier = connections.iter().zip(&extents).take(index);
        for (earlier, _) in earlier.filter(|(_, other)| near(other)) {
            overlap(document, earlier, later);
        }
        swallowed_peer(document, later);
        needless_insecure(document, later);
        idle_per_cpu(document, later, &dataplane.engine);
    }
    if let EngineChoice::Ordered(engines) = &dataplane.engine
        && !engines.contains(&EngineKind::Userspace)
        && !dataplane.lan.is_empty()
    {
        document.warning(
            &(0..0),
            "`dataplane.lan` has no effect: of the engines only userspace takes packets past the kernel",
            Some("add \"userspace\" to `dataplane.engine`, or remove `lan`".to_owned()),
        );
    }
    if dataplane.wan.is_empty()
        && dataplane.front_end != FrontEndMode::Off
        && !connections.is_empty()
    {
        document.warning(
            &(0..0),
            "`dataplane.wan` is not set: the interfaces are taken from the routes to the peers when the daemon starts",
            Some("name the interfaces that protected packets leave on, such as wan = [\"eth0\"]".to_owned()),
        );
    }
}

/// Of the engines only XFRM tells an SA's packets by processor.
fn idle_per_cpu(document: &Document<'_>, found: &Found, engine: &EngineChoice) {
    let first = match engine {
        EngineChoice::Auto => None,
        EngineChoice::Ordered(engines) => engines.first(),
    };
    if let Some(span) = &found.per_cpu_sas
        && first != Some(&EngineKind::Xfrm)
    {
        document.warning(
            span,
            "`per_cpu_sas` has no effect on what is sent: of the engines only xfrm has SAs for single processors",
            Some("set engine = \"xfrm\" in [dataplane], or remove this".to_owned()),
        );
    }
}

/// The lowest and the highest address of selectors, IPv4 mapped into IPv6.
struct Extent(u128, u128);

impl Extent {
    fn of(selectors: &[Located<TrafficSelector>]) -> Self {
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
            IpAddr::V6(address) => u128::from(address),
        };
        let none = Self(u128::MAX, 0);
        selectors.iter().fold(none, |extent, selector| {
            let TrafficSelector { start, end, .. } = selector.value;
            Self(extent.0.min(number(start)), extent.1.max(number(end)))
        })
    }

    fn meets(&self, other: &Self) -> bool {
        self.0 <= other.1 && other.0 <= self.1
    }
}

fn intersects(a: &TrafficSelector, b: &TrafficSelector) -> bool {
    a.start.is_ipv4() == b.start.is_ipv4() && a.start <= b.end && b.start <= a.end
}

fn common<'f>(
    a: &'f [Located<TrafficSelector>],
    b: &'f [Located<TrafficSelector>],
) -> Option<(&'f Located<TrafficSelector>, &'f Located<TrafficSelector>)> {
    a.iter().find_map(|x| {
        b.iter()
            .find(|y| intersects(&x.value, &y.value))
            .map(|y| (x, y))
    })
}

fn overlap(document: &Document<'_>, earlier: &Found, later: &Found) {
    let (Some(_), Some((first, second))) = (
        common(&earlier.local, &later.local),
        common(&earlier.remote, &later.remote),
    ) else {
        return;
    };
    let sorted = |list: &[Located<TrafficSelector>]| {
        let mut list: Vec<_> = list.iter().map(|selector| selector.value).collect();
        list.sort();
        list
    };
    let same = sorted(&earlier.local) == sorted(&later.local)
        && sorted(&earlier.remote) == sorted(&later.remote);
    let (ours, theirs) = (earlier.connection.name(), later.connection.name());
    if same {
        document.error(
            &later.name_span,
            format!(
                "connections `{ours}` and `{theirs}` protect the same subnets: a packet could not tell which tunnel to take (the other is at {})",
                document.origin(&earlier.name_span)
            ),
            Some("remove one of them or give it other subnets".to_owned()),
        );
    } else {
        document.warning(
            &second.span,
            format!(
                "the subnets of `{theirs}` overlap those of `{ours}` ({}): the most specific subnet decides which tunnel a packet takes",
                document.origin(&first.span)
            ),
            None,
        );
    }
}

/// The setting that allows groups 2 and 5 where no proposal has them.
fn needless_insecure(document: &Document<'_>, found: &Found) {
    let settings = found.connection.settings();
    let signatures = matches!(settings.remote_auth, RemoteAuth::PublicKey(_));
    if found.connection.insecure
        && !signatures
        && !settings
            .ike
            .iter()
            .chain(&settings.esp)
            .any(Proposal::is_insecure)
    {
        document.warning(
            &found.name_span,
            format!(
                "`{}` has insecure = true, but no proposal uses an insecure algorithm",
                found.connection.name()
            ),
            Some("remove insecure = true".to_owned()),
        );
    }
}

/// Gives connections the PPKs that they name.
pub(super) fn ppks(document: &Document<'_>, connections: &mut [Found], ppks: &[Ppk], file: &Path) {
    for found in connections {
        let Some((name, required)) = &found.ppk else {
            continue;
        };
        match ppks.iter().find(|ppk| ppk.id == name.value) {
            Some(ppk) => found.connection.set_ppk(Ppk {
                required: *required,
                ..ppk.clone()
            }),
            None => document.error(
                &name.span,
                format!("there is no PPK \"{}\" in {}", name.value, file.display()),
                Some(format!(
                    "put in there:\n        [[ppk]]\n        id = \"{}\"\n        secret = \"…\"",
                    name.value
                )),
            ),
        }
    }
}

/// A peer inside its own protected subnet: the tunnel's packets would be routed into the tunnel.
fn swallowed_peer(document: &Document<'_>, found: &Found) {
    let Remote::Known(RemoteAddress::Address(peer)) = found.connection.remote else {
        return;
    };
    if found.connection.settings().mode == Mode::Transport {
        return; // The peer itself is what is protected.
    }
    let inside = found.remote.iter().find(|selector| {
        selector.value.start.is_ipv4() == peer.is_ipv4()
            && selector.value.start <= peer
            && peer <= selector.value.end
    });
    if let Some(selector) = inside {
        document.warning(
            &selector.span,
            format!("this subnet contains the peer's own address {peer} ({})", document.origin(&found.remote_address)),
            Some("the daemon keeps the path to the peer outside the tunnel; other traffic to that address goes outside it too".to_owned()),
        );
    }
}

/// Complains about connections for which there is no pre-shared key.
pub(super) fn secrets(
    document: &Document<'_>,
    connections: &[Found],
    secrets: &[PskSecret],
    path: &Path,
) {
    for found in connections.iter().filter(|found| found.needs_psk) {
        let config = found.connection.settings();
        if secrets.iter().any(|secret| covers(config, secret)) {
            continue;
        }
        let local = match (&config.local_id, config.local_address) {
            (Some(id), _) => id.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "OUR-ADDRESS".to_owned(),
        };
        let remote = match (&config.remote_id, config.remote_address) {
            (RemoteIdentity::Is(id), _) => id.to_string(),
            (RemoteIdentity::Matches(pattern), _) => pattern.to_string(),
            (_, RemoteAddress::Address(address)) => address.to_string(),
            _ => "%any".to_owned(),
        };
        document.error(
            &found.name_span,
            format!(
                "no pre-shared key for `{}`: looked in {} for one with ids [\"{local}\", \"{remote}\"]",
                config.name,
                path.display()
            ),
            Some(match secrets.len() {
                0 => "that file has no [[psk]] yet".to_owned(),
                _ => format!("the keys there are for: {}", secrets.iter().map(shown_ids).collect::<Vec<_>>().join("; ")),
            }),
        );
    }
}

fn shown_ids(secret: &PskSecret) -> String {
    if secret.ids.is_empty() {
        return "anybody".to_owned();
    }
    secret
        .ids
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}

/// Whether a key can serve a connection, as far as the identities are known before it is up. A
/// key serves when it names the peer, or nobody but us, or nobody at all.
fn covers(config: &ConnectionConfig, secret: &PskSecret) -> bool {
    let local = config
        .local_id
        .clone()
        .or_else(|| config.local_address.map(Identity::from));
    let remote = match (&config.remote_id, config.remote_address) {
        (RemoteIdentity::Is(id), _) => id.clone(),
        (RemoteIdentity::Address, RemoteAddress::Address(address)) => Identity::from(address),
        // Anybody: whether a key fits shows when the peer says who it is.
        _ => return true,
    };
    let only_us = match &local {
        Some(local) => secret.ids.iter().all(|id| id.matches(local)),
        // Our address is not known yet: a single address may turn out to be it.
        None => matches!(secret.ids.as_slice(), [] | [Identity::Address(_)]),
    };
    only_us || secret.ids.iter().any(|id| id.matches(&remote))
}

#[cfg(test)]
mod tests {
    use espada_common::sa::SecretBytes;

    use super::*;

    #[test]
    fn ids_of_keys() {
        let key = |ids: &[&str]| PskSecret {
            ids: ids.iter().map(|id| id.parse().unwrap()).collect(),
            secret: SecretBytes::new(vec![1]),
            origin: String::new(),
        };
        assert_eq!(shown_ids(&key(&[])), "anybody");
        assert_eq!(
            shown_ids(&key(&["10.0.0.1", "gw.example"])),
            "10.0.0.1 and gw.example"
        );
    }
}
