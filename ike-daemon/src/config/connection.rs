//! `[connection.NAME]`.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{Mode, TrafficSelector};
use espada_ike::config::{
    Childless, ConnectionConfig, Dpd, DpdAction, EncapsulationPolicy, Lifetime, LocalAuth, Pool,
    RemoteAddress, RemoteAuth, SettingLine, SettingOrigin, StartAction, Volume,
};
use espada_ike::proposal::{Proposal, Protocol};
use toml::de::DeValue;

use super::auth::{self, Loader, Method};
use super::document::{Located, Span, Table, nearest};
use super::end::{self, End};
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
    let local = end::read_end(table, "local", mode, &mut settings);
    let remote = end::read_end(table, "remote", mode, &mut settings);

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
    let local_address = end::read_local_address(table, &local);
    let (peer, peer_span) = end::read_remote_address(table, &remote)?;
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
    end::check_families(table, &local.selectors, &remote.selectors);
    let configured = |end: &End| end.selectors.iter().map(|found| found.value).collect();
    let (local_ts, remote_ts) = (configured(&local), configured(&remote));
    let (mut local, mut remote) = (local, remote);
    if mode == Mode::Transport {
        let peer = match &peer {
            Remote::Known(RemoteAddress::Address(address)) => Some(*address),
            _ => None,
        };
        end::check_host(table, "local", &mut local, local_address);
        end::check_host(table, "remote", &mut remote, peer);
    }
    let mut local_id = local.id.as_ref().and_then(|id| end::read_id(table, id));
    let mut remote_id = end::read_remote_id(table, &remote, &peer);
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
pub(super) struct Settings {
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

    pub(super) fn note(&mut self, table: &Table<'_, '_>, key: &str, name: &str) {
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
