//! The two ends of a connection: `[connection.NAME.local]` and `[connection.NAME.remote]`.

use std::collections::HashSet;
use std::net::IpAddr;

use espada_common::sa::{Mode, TrafficSelector};
use espada_ike::config::{RemoteAddress, RemoteIdentity};
use espada_ike::selector;
use espada_ike::{Identity, IdentityPattern};

use super::Remote;
use super::auth::Files;
use super::connection::Settings;
use super::document::{Located, Span, Table};

const LOCAL_KEYS: &[&str] = &["address", "id", "subnets", "auth", "certs", "key"];
const REMOTE_KEYS: &[&str] = &[
    "address",
    "id",
    "subnets",
    "auth",
    "cacerts",
    "certs",
    "pubkeys",
    "crls",
    "revocation",
];

pub(super) struct End {
    pub address: Option<Located<String>>,
    pub id: Option<Located<String>>,
    pub selectors: Vec<Located<TrafficSelector>>,
    pub files: Files,
    pub span: Span,
}

pub(super) fn read_end(
    table: &Table<'_, '_>,
    key: &'static str,
    mode: Mode,
    settings: &mut Settings,
) -> Option<End> {
    let document = table.document();
    let Some(value) = table.value(key) else {
        document.error(
            &table.span(),
            format!("`{}` is missing", table.name(key)),
            Some(format!(
                "add {key} = {{ address = \"…\", id = \"…\", subnets = [\"…\"] }}"
            )),
        );
        return None;
    };
    let path = table.name(key);
    let end = table.table(key, &path, "a table with address, id and subnets")?;
    let keys = if key == "local" {
        LOCAL_KEYS
    } else {
        REMOTE_KEYS
    };
    end.only(keys);
    for setting in keys {
        settings.note(&end, setting, &format!("{key}.{setting}"));
    }
    let owned = |found: Located<&str>| Located {
        value: found.value.to_owned(),
        span: found.span,
    };
    let address = end
        .string(
            "address",
            "an IP address, a host name, \"%any\" or \"%default\"",
        )
        .map(owned);
    let id = end
        .string("id", "an identity: an address, a name or an e-mail address")
        .map(owned);
    let subnets = end.strings(
        "subnets",
        "a subnet such as \"10.0.0.0/24\" or a list of them",
    );
    let selectors = match subnets {
        Some(subnets) if subnets.is_empty() => {
            let span = end
                .value("subnets")
                .map_or(value.span(), |list| list.span());
            document.error(
                &span,
                format!("`{}` is empty", end.name("subnets")),
                Some("list at least one subnet, such as \"10.0.0.0/24\"".to_owned()),
            );
            Vec::new()
        }
        Some(subnets) => {
            let mut seen = HashSet::new();
            let selectors: Vec<_> = subnets
                .iter()
                .filter_map(|subnet| read_subnet(&end, subnet))
                .collect();
            for selector in &selectors {
                if !seen.insert(selector.value) {
                    document.warning(&selector.span, "this subnet is listed twice", None);
                }
            }
            selectors
        }
        None => {
            // The virtual addresses are the selectors where no others are given.
            let virtual_ones = if key == "local" { "vips" } else { "pools" };
            let follows = table.value(virtual_ones).is_some();
            if end.value("subnets").is_none() && mode == Mode::Tunnel && !follows {
                document.error(
                    &value.span(),
                    format!("`{}` is missing", end.name("subnets")),
                    Some(
                        "list the subnets behind this end, such as subnets = [\"10.0.0.0/24\"]"
                            .to_owned(),
                    ),
                );
            }
            Vec::new()
        }
    };
    Some(End {
        address,
        id,
        selectors,
        files: Files::read(&end),
        span: value.span(),
    })
}

/// A subnet, range or address, with a protocol and ports in brackets where they matter.
fn read_subnet(table: &Table<'_, '_>, subnet: &Located<&str>) -> Option<Located<TrafficSelector>> {
    let document = table.document();
    let selector = match selector::parse(subnet.value) {
        Ok(selector) => selector,
        Err(error) => {
            document.error(
                &subnet.span,
                format!("`{}`: {error}", table.name("subnets")),
                None,
            );
            return None;
        }
    };
    let written = subnet
        .value
        .split_once('/')
        .map(|(address, _)| address.trim().parse::<IpAddr>());
    if let Some(Ok(written)) = written
        && written != selector.start
    {
        document.warning(
            &subnet.span,
            format!(
                "\"{}\" has bits set beyond its prefix length; {selector} is used",
                subnet.value
            ),
            Some(format!("write \"{selector}\"")),
        );
    }
    Some(Located {
        value: selector,
        span: subnet.span.clone(),
    })
}

/// In transport mode an end's selectors are its own address. Where they are left out and the
/// address is known, they are filled in for the checks of connections against each other.
pub(super) fn check_host(
    table: &Table<'_, '_>,
    side: &str,
    end: &mut End,
    address: Option<IpAddr>,
) {
    for found in &end.selectors {
        let selector = &found.value;
        let everything =
            TrafficSelector::prefix(selector.start, 0).is_some_and(|all| all.end == selector.end);
        let fits = match address {
            _ if everything => {
                address.is_none_or(|host| host.is_ipv4() == selector.start.is_ipv4())
            }
            Some(host) => selector.start == host && selector.end == host,
            None => selector.start == selector.end,
        };
        if !fits {
            let host = address.map_or("the host's address".to_owned(), |host| host.to_string());
            table.document().error(
                &found.span,
                format!(
                    "transport mode protects the two hosts alone: {selector} in {side}.subnets is not {host}"
                ),
                Some(
                    "leave subnets out for everything of the host, write its address with a protocol and ports \
                     in brackets, or use mode = \"tunnel\""
                        .to_owned(),
                ),
            );
        }
    }
    if let (true, Some(host), Some(written)) = (end.selectors.is_empty(), address, &end.address) {
        end.selectors.push(Located {
            value: TrafficSelector::host(host),
            span: written.span.clone(),
        });
    }
}

pub(super) fn check_families(
    table: &Table<'_, '_>,
    local: &[Located<TrafficSelector>],
    remote: &[Located<TrafficSelector>],
) {
    for (ours, theirs, side, other) in [
        (local, remote, "local", "remote"),
        (remote, local, "remote", "local"),
    ] {
        if theirs.is_empty() {
            continue;
        }
        for selector in ours {
            let v4 = selector.value.start.is_ipv4();
            if theirs.iter().all(|other| other.value.start.is_ipv4() != v4) {
                let family = if v4 { "IPv4" } else { "IPv6" };
                table.document().error(
                    &selector.span,
                    format!("this {family} subnet in {side}.subnets can talk to nobody: {other}.subnets has no {family} subnet"),
                    Some(format!("add an {family} subnet to {other}.subnets or remove this one")),
                );
            }
        }
    }
}

pub(super) fn read_local_address(table: &Table<'_, '_>, end: &End) -> Option<IpAddr> {
    let address = end.address.as_ref()?;
    if matches!(address.value.as_str(), "%default" | "%any") {
        return None;
    }
    let parsed = address.value.parse().ok();
    if parsed.is_none() {
        table.document().error(
            &address.span,
            format!(
                "`{}.local.address` must be an IP address, \"%default\" or \"%any\", found \"{}\"",
                table.path(),
                address.value
            ),
            Some("\"%default\" takes the source address of the route to the peer".to_owned()),
        );
    }
    parsed
}

pub(super) fn read_remote_address(table: &Table<'_, '_>, end: &End) -> Option<(Remote, Span)> {
    let document = table.document();
    let Some(address) = &end.address else {
        document.error(
            &table
                .value("remote")
                .map_or(table.span(), |value| value.span()),
            format!("`{}.remote.address` is missing", table.path()),
            Some(
                "give the peer's address or host name, or \"%any\" to accept a peer from anywhere"
                    .to_owned(),
            ),
        );
        return None;
    };
    let span = address.span.clone();
    let text = address.value.as_str();
    if text == "%any" {
        return Some((Remote::Known(RemoteAddress::Any), span));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        if address.is_unspecified() || address.is_multicast() {
            document.error(
                &span,
                format!("{address} cannot be a peer's address"),
                Some("\"%any\" accepts a peer from anywhere".to_owned()),
            );
            return None;
        }
        return Some((Remote::Known(RemoteAddress::Address(address)), span));
    }
    if host_name_ok(text) {
        return Some((Remote::Host(text.to_owned()), span));
    }
    document.error(
        &span,
        format!(
            "`{}.remote.address` must be an IP address, a host name or \"%any\", found \"{text}\"",
            table.path()
        ),
        None,
    );
    None
}

/// Host names as RFC 1123 section 2.1 has them, underscores tolerated. All-numeric names are
/// mistyped addresses.
fn host_name_ok(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
        && name.bytes().any(|b| b.is_ascii_alphabetic())
}

pub(super) fn read_id(table: &Table<'_, '_>, id: &Located<String>) -> Option<Identity> {
    match id.value.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            table.document().error(&id.span, format!("{error}"), None);
            None
        }
    }
}

pub(super) fn read_remote_id(table: &Table<'_, '_>, end: &End, peer: &Remote) -> RemoteIdentity {
    match (&end.id, peer) {
        (Some(id), _) if id.value == "%any" => RemoteIdentity::Any,
        (Some(id), _) if IdentityPattern::is_pattern(&id.value) => match id.value.parse() {
            Ok(pattern) => RemoteIdentity::Matches(pattern),
            Err(error) => {
                table.document().error(&id.span, format!("{error}"), None);
                RemoteIdentity::Any
            }
        },
        (Some(id), _) => read_id(table, id).map_or(RemoteIdentity::Any, RemoteIdentity::Is),
        (None, Remote::Known(RemoteAddress::Any)) => RemoteIdentity::Any,
        (None, Remote::Known(RemoteAddress::Address(_))) => RemoteIdentity::Address,
        (None, Remote::Host(name)) => RemoteIdentity::Is(Identity::Fqdn(name.clone())),
    }
}
