//! `[connection.NAME]`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{Mode, TrafficSelector};
use espada_ike::config::{
    Childless, ConnectionConfig, Dpd, DpdAction, EncapsulationPolicy, Lifetime, LocalAuth, Pool,
    RemoteAddress, RemoteAuth, RemoteIdentity, SettingLine, SettingOrigin, StartAction, Volume,
};
use espada_ike::proposal::{Proposal, Protocol};
use espada_ike::selector;
use espada_ike::{Identity, IdentityPattern};
use toml::de::DeValue;

use super::auth::{self, Files, Loader, Method};
use super::document::{Located, Span, Table, nearest};
use super::host;
use super::pool;
use super::{Connection, Remote, SecretsPolicy};

const CONNECTION_KEYS: &[&str] = &[
    "local",
    "remote",
    "auth",
    "ike",
    "esp",
    "mode",
    "dpd",
    "start",
    "keying_tries",
    "encapsulation",
    "replay_window",
    "per_cpu_sas",
    "insecure",
    "ppk",
    "ppk_required",
    "ike_lifetime",
    "child_lifetime",
    "vips",
    "pools",
    "mobike",
    "send_cert",
    "child_bytes",
    "child_packets",
    "childless",
    "single_pairs",
];
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
const DPD_KEYS: &[&str] = &["delay", "action"];

const SECOND: Duration = Duration::from_secs(1);
const LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(30 * 86_400);

/// What a child SA may be limited to: less would have it rekeyed all the time.
const BYTES: RangeInclusive<u64> = 1 << 20..=1 << 60;
const PACKETS: RangeInclusive<u32> = 1000..=u32::MAX;

/// A connection and where the parts of it stand that later checks complain about.
pub(super) struct Found {
    /// The connection.
    pub connection: Connection,
    /// A side authenticates with a pre-shared key.
    pub needs_psk: bool,
    /// The PPK it names, and whether it must be used.
    pub ppk: Option<(Located<String>, bool)>,
    /// Its name in the file.
    pub name_span: Span,
    /// `per_cpu_sas`, where it is on.
    pub per_cpu_sas: Option<Span>,
    /// Selectors on our side with their places.
    pub local: Vec<Located<TrafficSelector>>,
    /// Selectors on the peer's side with their places.
    pub remote: Vec<Located<TrafficSelector>>,
    /// `remote.address`.
    pub remote_address: Span,
}

/// Every readable connection; complaints about the others are in the document.
pub(super) fn read_all(
    top: &Table<'_, '_>,
    policy: SecretsPolicy,
    pools: &[Arc<Pool>],
) -> Vec<Found> {
    let mut found = Vec::new();
    let Some(tables) = top.table(
        "connection",
        "connection",
        "tables such as [connection.NAME]",
    ) else {
        return found;
    };
    let document = top.document();
    for (name, span, value) in tables.entries() {
        let path = format!("connection.{name}");
        let DeValue::Table(table) = value.get_ref() else {
            let meant = nearest(name, CONNECTION_KEYS);
            document.error(
                &span,
                format!("`{path}` must be a table with a connection's settings"),
                Some(match meant {
                    Some(_) => {
                        format!("`{name}` belongs below a header such as [connection.office]")
                    }
                    None => format!("write [connection.{name}] above its settings"),
                }),
            );
            continue;
        };
        if name.is_empty()
            || name.len() > 64
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            document.error(
                &span,
                format!("\"{name}\" cannot be a connection's name: 1 to 64 letters, digits, `-`, `_` or `.`"),
                None,
            );
        }
        let table = Table::new(document, table, &value.span(), &path);
        found.extend(read(&table, name, span, policy, pools));
    }
    found
}

struct End {
    address: Option<Located<String>>,
    id: Option<Located<String>>,
    selectors: Vec<Located<TrafficSelector>>,
    files: Files,
    span: Span,
}

fn read(
    table: &Table<'_, '_>,
    name: &str,
    name_span: Span,
    policy: SecretsPolicy,
    pools: &[Arc<Pool>],
) -> Option<Found> {
    let document = table.document();
    let errors_before = document.error_count();
    table.only(CONNECTION_KEYS);
    let mut settings = Settings::new(table);

    let modes = [("tunnel", Mode::Tunnel), ("transport", Mode::Transport)];
    let mode = table
        .choice("mode", &modes)
        .map_or(Mode::Tunnel, |found| found.value);
    let local = read_end(table, "local", mode, &mut settings);
    let remote = read_end(table, "remote", mode, &mut settings);

    let ppk = table.string("ppk", "the name of a PPK in the secrets file");
    let ppk_required = table.boolean("ppk_required");
    if let (None, Some(required)) = (&ppk, &ppk_required) {
        document.error(
            &required.span,
            format!("`{}` without `ppk`", table.name("ppk_required")),
            Some("name the PPK: ppk = \"NAME\"".to_owned()),
        );
    }
    settings.note(table, "ppk", "ppk");
    let both = table.choice("auth", &auth::METHODS);
    let ends = [&local, &remote].into_iter().flatten();
    for auth in [&both].into_iter().chain(ends.map(|end| &end.files.auth)) {
        auth::refuse_eap(document, auth.as_ref());
    }
    settings.note(table, "auth", "auth");

    let insecure = table
        .boolean("insecure")
        .is_some_and(|insecure| insecure.value);
    let ike =
        read_proposals(table, "ike", Protocol::Ike, insecure).unwrap_or_else(Proposal::default_ike);
    let esp =
        read_proposals(table, "esp", Protocol::Esp, insecure).unwrap_or_else(Proposal::default_esp);
    for key in [
        "ike",
        "esp",
        "mode",
        "start",
        "encapsulation",
        "replay_window",
        "per_cpu_sas",
        "ike_lifetime",
        "child_lifetime",
        "child_bytes",
        "child_packets",
        "dpd",
        "vips",
        "pools",
        "mobike",
        "childless",
        "single_pairs",
    ] {
        settings.note(table, key, key);
    }

    let childless = table
        .choice(
            "childless",
            &[
                ("never", Childless::Never),
                ("allow", Childless::Allow),
                ("prefer", Childless::Prefer),
                ("force", Childless::Force),
            ],
        )
        .map_or(Childless::Allow, |found| found.value);
    let vips = pool::read_vips(table, mode);
    let pools = pool::read_named(table, mode, pools);
    let dpd = read_dpd(table);
    let start = table.choice(
        "start",
        &[
            ("start", StartAction::Start),
            ("trap", StartAction::Trap),
            ("none", StartAction::None),
        ],
    );
    let keying_tries = table.integer("keying_tries", 0..=1000);
    let encapsulation = table
        .choice(
            "encapsulation",
            &[
                ("auto", EncapsulationPolicy::Auto),
                ("udp", EncapsulationPolicy::Udp),
                ("esp", EncapsulationPolicy::Esp),
            ],
        )
        .map_or(EncapsulationPolicy::Auto, |found| found.value);
    let replay_window = table
        .integer("replay_window", 0..=65_536)
        .map_or(4096, |found| found.value);
    let per_cpu_sas = table.boolean("per_cpu_sas");
    let ike_lifetime = table
        .duration("ike_lifetime", LIFETIMES)
        .map_or(4 * 3600 * SECOND, |found| found.value);
    let child_lifetime = table
        .duration("child_lifetime", LIFETIMES)
        .map_or(3600 * SECOND, |found| found.value);

    let child_bytes = table.size("child_bytes", BYTES).map(|found| found.value);
    let child_packets = table
        .integer("child_packets", PACKETS)
        .map(|found| found.value);

    let (Some(local), Some(remote)) = (local, remote) else {
        return None;
    };
    let local_address = read_local_address(table, &local);
    let (peer, peer_span) = read_remote_address(table, &remote)?;
    if let (Some(start), Remote::Known(RemoteAddress::Any)) = (&start, &peer)
        && start.value != StartAction::None
    {
        document.error(
            &start.span,
            format!(
                "`{}` cannot set up a connection to anybody (remote.address = \"%any\")",
                table.name("start")
            ),
            Some(
                "give the peer's address, or use start = \"none\" and wait for the peer".to_owned(),
            ),
        );
    }
    if let (Some(local_ip), Remote::Known(RemoteAddress::Address(remote_ip))) =
        (local_address, &peer)
        && local_ip.is_ipv4() != remote_ip.is_ipv4()
    {
        document.error(
            &peer_span,
            format!(
                "local.address {local_ip} and remote.address {remote_ip} are of different families"
            ),
            Some("give both as IPv4 or both as IPv6".to_owned()),
        );
    }
    check_families(table, &local.selectors, &remote.selectors);
    let configured = |end: &End| end.selectors.iter().map(|found| found.value).collect();
    let (local_ts, remote_ts) = (configured(&local), configured(&remote));
    let (mut local, mut remote) = (local, remote);
    if mode == Mode::Transport {
        let peer = match &peer {
            Remote::Known(RemoteAddress::Address(address)) => Some(*address),
            _ => None,
        };
        check_host(table, "local", &mut local, local_address);
        check_host(table, "remote", &mut remote, peer);
    }
    let mut local_id = local.id.as_ref().and_then(|id| read_id(table, id));
    let mut remote_id = read_remote_id(table, &remote, &peer);
    let loader = Loader { document, policy };
    let method = |end: &End| auth::method(&end.files, both.as_ref());
    let methods = (method(&local), method(&remote));
    let local_auth = match methods.0 {
        Method::Psk => Some(LocalAuth::Psk),
        Method::PublicKey => {
            let id = local.id.as_ref();
            loader.local(table, &local.span, &local.files, id, &mut local_id)
        }
    };
    let remote_auth = match methods.1 {
        Method::Psk => Some(RemoteAuth::Psk),
        Method::PublicKey => {
            let id_is_set = remote.id.is_some();
            loader.remote(
                table,
                &remote.span,
                &remote.files,
                &mut remote_id,
                id_is_set,
            )
        }
    };

    if document.error_count() > errors_before {
        return None;
    }
    let config = ConnectionConfig {
        name: Arc::from(name),
        local_address,
        remote_address: match &peer {
            Remote::Known(address) => *address,
            Remote::Host(_) => RemoteAddress::Any,
        },
        remote_port: 500,
        local_id,
        remote_id,
        local_auth: local_auth?,
        remote_auth: remote_auth?,
        send_cert: auth::send_cert(table),
        ppk: None,
        sha1_signatures: insecure,
        ike,
        esp,
        mode,
        local_ts,
        remote_ts,
        dpd,
        start: start.map_or(StartAction::None, |start| start.value),
        keying_tries: keying_tries.map_or(0, |found| found.value),
        encapsulation,
        replay_window,
        processors: per_cpu_sas
            .as_ref()
            .filter(|wanted| wanted.value)
            .map(|_| host::processors()),
        ike_lifetime: lifetime(ike_lifetime),
        child_lifetime: lifetime(child_lifetime),
        vips,
        pools,
        childless,
        mobike: table.boolean("mobike").is_none_or(|wanted| wanted.value),
        single_pairs: table
            .boolean("single_pairs")
            .is_some_and(|wanted| wanted.value),
        child_bytes: child_bytes.map(volume),
        child_packets: child_packets.map(|packets| volume(packets.into())),
        origin: settings.origin,
    };
    Some(Found {
        needs_psk: methods.0 == Method::Psk || methods.1 == Method::Psk,
        ppk: ppk.map(|ppk| {
            let name = Located {
                value: ppk.value.to_owned(),
                span: ppk.span,
            };
            (name, ppk_required.is_none_or(|required| required.value))
        }),
        connection: Connection {
            config,
            remote: peer,
            insecure,
        },
        name_span,
        per_cpu_sas: per_cpu_sas
            .filter(|wanted| wanted.value)
            .map(|wanted| wanted.span),
        local: local.selectors,
        remote: remote.selectors,
        remote_address: peer_span,
    })
}

/// A lifetime is when an SA is replaced; what is not replaced in another tenth of it is deleted.
fn lifetime(soft: Duration) -> Lifetime {
    Lifetime {
        soft,
        hard: soft + soft / 10,
        jitter: soft / 10,
    }
}

/// The same for what an SA carries.
fn volume(soft: u64) -> Volume {
    Volume {
        soft,
        hard: soft.saturating_add(soft / 10),
        jitter: soft / 10,
    }
}

/// Collects the lines and texts of settings for messages that cite them later.
struct Settings {
    origin: SettingOrigin,
}

impl Settings {
    fn new(table: &Table<'_, '_>) -> Self {
        Self {
            origin: SettingOrigin {
                file: table.document().name().to_owned(),
                ..SettingOrigin::default()
            },
        }
    }

    fn note(&mut self, table: &Table<'_, '_>, key: &str, name: &str) {
        let Some(value) = table.value(key) else {
            return;
        };
        let span = value.span();
        let document = table.document();
        let line = u32::try_from(document.position(span.start).0).unwrap_or(u32::MAX);
        let text = document
            .text(&span)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        self.origin
            .settings
            .insert(name.to_owned(), SettingLine { line, value: text });
    }
}

fn read_end(
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
fn check_host(table: &Table<'_, '_>, side: &str, end: &mut End, address: Option<IpAddr>) {
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

fn check_families(
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

fn read_local_address(table: &Table<'_, '_>, end: &End) -> Option<IpAddr> {
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

fn read_remote_address(table: &Table<'_, '_>, end: &End) -> Option<(Remote, Span)> {
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

fn read_id(table: &Table<'_, '_>, id: &Located<String>) -> Option<Identity> {
    match id.value.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            table.document().error(&id.span, format!("{error}"), None);
            None
        }
    }
}

fn read_remote_id(table: &Table<'_, '_>, end: &End, peer: &Remote) -> RemoteIdentity {
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

/// Proposals in strongSwan's keywords, `None` where none are written.
fn read_proposals(
    table: &Table<'_, '_>,
    key: &str,
    protocol: Protocol,
    insecure: bool,
) -> Option<Vec<Proposal>> {
    let document = table.document();
    let texts = table.strings(
        key,
        "a proposal such as \"aes256-sha256-modp2048\" or a list of them",
    )?;
    if texts.is_empty()
        && let Some(value) = table.value(key)
    {
        let help = Some("leave it out for the defaults".to_owned());
        document.error(
            &value.span(),
            format!("`{}` is empty", table.name(key)),
            help,
        );
    }
    let mut proposals = Vec::new();
    for text in texts {
        for part in text.value.split(',').map(str::trim) {
            match Proposal::parse(protocol, part, insecure) {
                Ok(parsed) => {
                    for note in parsed.notes {
                        document.warning(
                            &text.span,
                            format!("`{}`: {note}", table.name(key)),
                            None,
                        );
                    }
                    proposals.push(parsed.proposal);
                }
                Err(error) => {
                    document.error(&text.span, format!("`{}`: {error}", table.name(key)), None)
                }
            }
        }
    }
    Some(proposals)
}

fn read_dpd(table: &Table<'_, '_>) -> Option<Dpd> {
    let default = Dpd {
        delay: 30 * SECOND,
        action: DpdAction::Restart,
    };
    if table.value("dpd").is_none() {
        return Some(default);
    }
    let path = table.name("dpd");
    let Some(dpd) = table.table(
        "dpd",
        &path,
        "a table such as { delay = \"30s\", action = \"restart\" }",
    ) else {
        return Some(default);
    };
    dpd.only(DPD_KEYS);
    let actions = [
        ("restart", DpdAction::Restart),
        ("clear", DpdAction::Clear),
        ("trap", DpdAction::Trap),
    ];
    let action = dpd
        .choice("action", &actions)
        .map_or(default.action, |action| action.value);
    let delay = dpd
        .duration("delay", Duration::ZERO..=86_400 * SECOND)
        .map_or(default.delay, |delay| delay.value);
    (!delay.is_zero()).then_some(Dpd { delay, action })
}
