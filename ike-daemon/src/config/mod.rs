//! The configuration file: what it may contain, what it defaults to, and how it becomes what
//! the IKE endpoint and the data plane are told.

mod auth;
mod check;
mod connection;
mod document;
mod end;
mod host;
mod pool;
mod secrets;
mod summary;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_auth;
#[cfg(test)]
mod tests_pool;

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{Cipher, EspSuite, Mode};
use espada_ike::config::{
    ConnectionConfig, EncapsulationPolicy, EndpointConfig, Ppk, PskSecret, RemoteAddress,
};
use zeroize::Zeroizing;

pub use document::{Diagnostic, Severity, show_duration};

use document::{Document, Table, nearest, quoted_list};
use espada_dataplane::esp;
use espada_dataplane::plane::EngineKind;
use espada_dataplane::port::segmentation::UdpSegmentation;
use espada_dataplane::userspace;
use espada_dataplane::xfrm::{self, Mark, OffloadMode};
use secrets::Secrets;

/// Which engines carry ESP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// Whatever this host can, the fastest for each SA.
    Auto,
    /// These, each SA by the first that can.
    Ordered(Vec<EngineKind>),
}

impl std::fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Ordered(engines) => {
                let names: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
                f.write_str(&names.join(", then "))
            }
        }
    }
}

/// Where the front end's programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEndMode {
    /// Whichever of XDP and tc leaves the link's offloads useful.
    Auto,
    /// XDP.
    Xdp,
    /// tc.
    Tc,
    /// Nowhere.
    Off,
}

/// Whether native ESP uses AF_XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XskMode {
    /// Where the interface supports it.
    Auto,
    /// Never: a raw socket carries it.
    Off,
}

/// `[dataplane]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// `engine`.
    pub engine: EngineChoice,
    /// `wan`: interfaces that protected packets leave on.
    pub wan: Vec<String>,
    /// `tun`: name of the plaintext interface.
    pub tun: String,
    /// `mtu` of the plaintext interface; without it the smallest of the WAN interfaces'.
    pub mtu: Option<u32>,
    /// `mss_clamp`.
    pub mss_clamp: bool,
    /// `front_end`.
    pub front_end: FrontEndMode,
    /// `xsk`.
    pub xsk: XskMode,
    /// `workers`: lanes of the userspace engine; `None`: as many as suit the processors.
    pub workers: Option<NonZeroUsize>,
    /// `worker_threads`: threads of each lane, two for a direction each or one for both; `None`: as suits
    /// the processors.
    pub worker_threads: Option<u32>,
    /// `pin_workers`: each of its threads stays on one processor.
    pub pin_workers: bool,
    /// `lan`: interfaces whose packets into and out of tunnels go past the kernel.
    pub lan: Vec<String>,
    /// `busy_poll`: microseconds that workers poll drivers before they sleep.
    pub busy_poll: Option<NonZeroU32>,
    /// `realtime`: the userspace engine's workers run before other threads.
    pub realtime: bool,
    /// `udp_segmentation`.
    pub udp_segmentation: UdpSegmentation,
    /// `keystream_ahead`: the eBPF engine's keystream is prepared in userspace.
    pub keystream_ahead: bool,
    /// `xfrm_mark`, `xfrm_output_mark` and `xfrm_offload`.
    pub xfrm: xfrm::Options,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            wan: Vec::new(),
            tun: "espada0".to_owned(),
            mtu: None,
            mss_clamp: true,
            front_end: FrontEndMode::Auto,
            xsk: XskMode::Auto,
            // With several, a card with several transmit queues sends out of order: peers with narrow replay
            // windows drop such packets.
            workers: Some(NonZeroUsize::MIN),
            worker_threads: None,
            pin_workers: false,
            lan: Vec::new(),
            busy_poll: None,
            realtime: true,
            udp_segmentation: UdpSegmentation::Auto,
            keystream_ahead: false,
            xfrm: xfrm::Options::default(),
        }
    }
}

/// How the peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// By address, or not at all (`%any`).
    Known(RemoteAddress),
    /// By a host name that is looked up when the connection is loaded.
    Host(String),
}

/// A connection as configured; [`Connection::resolved`] makes it the endpoint's.
#[derive(Clone, Debug)]
pub struct Connection {
    config: ConnectionConfig,
    /// How the peer is reached.
    pub remote: Remote,
    /// `insecure = true` was set.
    pub insecure: bool,
}

impl Connection {
    /// Its name.
    pub fn name(&self) -> &std::sync::Arc<str> {
        &self.config.name
    }

    /// Everything but the peer's address, which `remote` says.
    pub fn settings(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Mixes a key that both ends have beforehand into those of its SAs.
    pub(super) fn set_ppk(&mut self, ppk: Ppk) {
        self.config.ppk = Some(Arc::new(ppk));
    }

    /// Whether it asks for something that only the kernel's IPsec carries.
    pub fn needs_xfrm(&self) -> bool {
        let lacking = |cipher: &Cipher| {
            let suite = EspSuite {
                cipher: *cipher,
                integrity: None,
                esn: false,
            };
            cipher.is_aead() && !esp::crypto::supports(&suite)
        };
        self.config.mode == Mode::Transport
            || self
                .config
                .esp
                .iter()
                .any(|proposal| proposal.ciphers.iter().any(lacking))
    }

    /// The endpoint's view, with the address a host name was found to have. `None` while a
    /// host name is not resolved: such a connection must not be taken for one that accepts anybody.
    pub fn resolved(&self, address: Option<IpAddr>) -> Option<ConnectionConfig> {
        let mut config = self.config.clone();
        config.remote_address = match (&self.remote, address) {
            (Remote::Known(known), _) => *known,
            (Remote::Host(_), Some(address)) => RemoteAddress::Address(address),
            (Remote::Host(_), None) => return None,
        };
        Some(config)
    }
}

/// A whole, valid configuration.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[dataplane]`.
    pub dataplane: DataplaneConfig,
    /// `[ike]`.
    pub endpoint: EndpointConfig,
    /// `[connection.…]`, in the order of the file.
    pub connections: Vec<Connection>,
    /// Pre-shared keys.
    pub secrets: Vec<PskSecret>,
    /// What is probably not as meant.
    pub warnings: Vec<Diagnostic>,
}

impl GatewayConfig {
    /// Whether a connection is to agree on ESP in UDP with a peer that prefers it too: it may, and the
    /// engine that will carry it sends and receives that faster.
    pub fn prefers_udp(&self, connection: &Connection) -> bool {
        let userspace = match &self.dataplane.engine {
            EngineChoice::Auto => true,
            EngineChoice::Ordered(engines) => engines.first() == Some(&EngineKind::Userspace),
        };
        userspace
            && connection.settings().encapsulation == EncapsulationPolicy::Auto
            && !connection.needs_xfrm()
    }
}

/// Why a configuration is refused: every error, and the warnings with them.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigError {
    /// What is wrong, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}")?;
        }
        let errors = self
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .count();
        match errors {
            1 => write!(f, "1 error"),
            _ => write!(f, "{errors} errors"),
        }
    }
}

/// What to do where the secrets cannot be opened for lack of permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretsPolicy {
    /// Refuse the configuration: the daemon needs them.
    Required,
    /// Say that keys were not checked: `espada check` may run as anybody.
    IfReadable,
}

fn read_mark(table: &Table<'_, '_>, key: &str) -> Option<Mark> {
    let text = table.string(key, "a mark such as \"0x2a/0xff\"")?;
    match text.value.parse() {
        Ok(mark) => Some(mark),
        Err(reason) => {
            table.document().error(
                &text.span,
                format!("`{key}` must be a mark such as \"0x2a\" or \"0x2a/0xff\": {reason}"),
                None,
            );
            None
        }
    }
}

/// Longest configuration or secrets file that is read.
const MAX_FILE: u64 = 64 << 20;

const TOP_KEYS: &[&str] = &["dataplane", "ike", "connection", "pool", "secrets"];
const DATAPLANE_KEYS: &[&str] = &[
    "engine",
    "wan",
    "tun",
    "mtu",
    "mss_clamp",
    "front_end",
    "xsk",
    "workers",
    "worker_threads",
    "pin_workers",
    "lan",
    "busy_poll",
    "realtime",
    "udp_segmentation",
    "keystream_ahead",
    "xfrm_mark",
    "xfrm_output_mark",
    "xfrm_offload",
];
const IKE_KEYS: &[&str] = &[
    "retransmit_first",
    "retransmit_max",
    "retransmit_tries",
    "fragmentation",
    "fragment_size",
    "nat_keepalive",
    "follow_redirects",
    "retry_first",
    "retry_max",
    "cookie_threshold",
    "half_open_limit",
    "half_open_per_address",
    "half_open_timeout",
];

/// Reads and checks a configuration file and the secrets beside it.
pub fn load(file: &Path, policy: SecretsPolicy) -> Result<GatewayConfig, ConfigError> {
    let text = match secrets::read_bounded(file, MAX_FILE) {
        Ok(text) => text,
        Err(error) => {
            return Err(ConfigError {
                diagnostics: vec![Diagnostic {
                    severity: Severity::Error,
                    place: file.display().to_string(),
                    message: format!("cannot read the configuration: {error}"),
                    excerpt: None,
                    help: None,
                }],
            });
        }
    };
    parse(file, &text, policy)
}

/// Like [`load`], from text already read. `file` is where relative paths in it start, and what messages name.
pub fn parse(
    file: &Path,
    text: &Zeroizing<String>,
    policy: SecretsPolicy,
) -> Result<GatewayConfig, ConfigError> {
    let document = Document::new(file.display().to_string(), text, true);
    let root = document.parse();
    let top = Table::new(&document, root.get_ref(), &(0..0), "");
    top.only(TOP_KEYS);

    let dataplane = top
        .table("dataplane", "dataplane", "a table such as [dataplane]")
        .map(|table| read_dataplane(&table))
        .unwrap_or_default();
    let endpoint = top
        .table("ike", "ike", "a table such as [ike]")
        .map(|table| read_ike(&table))
        .unwrap_or_default();
    let pools = pool::read_all(&top);
    let mut connections = connection::read_all(&top, policy, &pools);
    check::connections(&document, &connections, &dataplane);

    let secrets_path = top.string("secrets", "the path of a file with pre-shared keys");
    let secrets_path = match &secrets_path {
        Some(path) => file.with_file_name(path.value),
        None => file.with_file_name("secrets.toml"),
    };
    let needed = connections
        .iter()
        .any(|found| found.needs_psk || found.ppk.is_some());
    let (secrets, secret_diagnostics) = if !needed {
        (Some(Secrets::default()), Vec::new())
    } else {
        secrets::load(&secrets_path, policy)
    };
    if let Some(secrets) = &secrets {
        check::secrets(&document, &connections, &secrets.psks, &secrets_path);
        check::ppks(&document, &mut connections, &secrets.ppks, &secrets_path);
    }

    let mut failed = document.has_errors();
    let mut diagnostics = document.into_diagnostics();
    failed |= secret_diagnostics
        .iter()
        .any(|d| d.severity == Severity::Error);
    diagnostics.extend(secret_diagnostics);
    if failed {
        return Err(ConfigError { diagnostics });
    }
    Ok(GatewayConfig {
        file: file.to_owned(),
        dataplane,
        endpoint,
        connections: connections
            .into_iter()
            .map(|found| found.connection)
            .collect(),
        secrets: secrets.unwrap_or_default().psks,
        warnings: diagnostics,
    })
}

fn read_dataplane(table: &Table<'_, '_>) -> DataplaneConfig {
    table.only(DATAPLANE_KEYS);
    let document = table.document();
    let mut config = DataplaneConfig::default();
    if let Some(engine) = read_engine(table) {
        config.engine = engine;
    }
    config.wan = read_interfaces(table, "wan", &[]);
    config.lan = read_interfaces(table, "lan", &config.wan);
    if let Some(microseconds) = table.integer("busy_poll", 0..=10_000) {
        config.busy_poll = NonZeroU32::new(microseconds.value);
    }
    if let Some(tun) = table.string("tun", "an interface name such as \"espada0\"") {
        if interface_name_ok(tun.value) {
            config.tun = tun.value.to_owned();
        } else {
            document.error(&tun.span, bad_interface(tun.value), None);
        }
    }
    // 1280 is the least IPv6 works with (RFC 8200 section 5).
    if let Some(mtu) = table.integer("mtu", 1280..=9000) {
        config.mtu = Some(mtu.value);
    }
    if let Some(clamp) = table.boolean("mss_clamp") {
        config.mss_clamp = clamp.value;
    }
    let modes = [
        ("auto", FrontEndMode::Auto),
        ("xdp", FrontEndMode::Xdp),
        ("tc", FrontEndMode::Tc),
        ("off", FrontEndMode::Off),
    ];
    if let Some(mode) = table.choice("front_end", &modes) {
        config.front_end = mode.value;
    }
    if let Some(mode) = table.choice("xsk", &[("auto", XskMode::Auto), ("off", XskMode::Off)]) {
        config.xsk = mode.value;
    }
    let lanes = 1..=userspace::MOST_LANES as u32;
    if let Some(workers) = table.integer_or_auto("workers", lanes) {
        config.workers = workers
            .value
            .and_then(|lanes| NonZeroUsize::new(lanes as usize));
    }
    if let Some(threads) = table.integer_or_auto("worker_threads", 1..=2) {
        config.worker_threads = threads.value;
    }
    if let Some(pinned) = table.boolean("pin_workers") {
        config.pin_workers = pinned.value;
    }
    if let Some(realtime) = table.boolean("realtime") {
        config.realtime = realtime.value;
    }
    let modes = [
        ("auto", UdpSegmentation::Auto),
        ("on", UdpSegmentation::On),
        ("off", UdpSegmentation::Off),
    ];
    if let Some(mode) = table.choice("udp_segmentation", &modes) {
        config.udp_segmentation = mode.value;
    }
    if let Some(ahead) = table.boolean("keystream_ahead") {
        config.keystream_ahead = ahead.value;
    }
    config.xfrm.mark = read_mark(table, "xfrm_mark");
    config.xfrm.output_mark = read_mark(table, "xfrm_output_mark");
    let modes = [("auto", OffloadMode::Auto), ("off", OffloadMode::Off)];
    if let Some(mode) = table.choice("xfrm_offload", &modes) {
        config.xfrm.offload = mode.value;
    }
    config
}

/// Names of interfaces, none of which is among `taken`.
fn read_interfaces(table: &Table<'_, '_>, key: &str, taken: &[String]) -> Vec<String> {
    let names = table.strings(key, "an interface name or a list of them");
    let mut interfaces: Vec<String> = Vec::new();
    for name in names.unwrap_or_default() {
        let problem = if !interface_name_ok(name.value) {
            bad_interface(name.value)
        } else if taken.iter().any(|other| other == name.value) {
            format!(
                "\"{}\" is in `dataplane.wan` as well: an interface is on one side",
                name.value
            )
        } else {
            interfaces.push(name.value.to_owned());
            continue;
        };
        table.document().error(&name.span, problem, None);
    }
    interfaces
}

/// One engine, several in order, or `auto`.
fn read_engine(table: &Table<'_, '_>) -> Option<EngineChoice> {
    let mut names = vec!["auto"];
    names.extend(EngineKind::ALL.map(EngineKind::name));
    let expected = format!("{}, or a list of engines in order", quoted_list(&names));
    let words = table.strings("engine", &expected)?;
    let mut engines = Vec::new();
    for word in &words {
        if word.value == "auto" && words.len() == 1 {
            return Some(EngineChoice::Auto);
        }
        let known = EngineKind::ALL
            .into_iter()
            .find(|engine| engine.name() == word.value);
        match known {
            Some(engine) if engines.contains(&engine) => table.document().error(
                &word.span,
                format!("`{}` names {} twice", table.name("engine"), word.value),
                None,
            ),
            Some(engine) => engines.push(engine),
            None => table.document().error(
                &word.span,
                format!(
                    "`{}` must be {expected}, found \"{}\"",
                    table.name("engine"),
                    word.value
                ),
                nearest(word.value, &names).map(|meant| format!("did you mean \"{meant}\"?")),
            ),
        }
    }
    (!engines.is_empty()).then_some(EngineChoice::Ordered(engines))
}

fn interface_name_ok(name: &str) -> bool {
    // IFNAMSIZ, less the terminating zero; the kernel refuses "/", blanks and the dots.
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%')
}

fn bad_interface(name: &str) -> String {
    format!(
        "\"{name}\" cannot be an interface name: 1 to 15 characters, no blanks, `/`, `:` or `%`"
    )
}

/// What every host must take in one piece over IPv4 (RFC 791), and what UDP can carry.
const FRAGMENT_SIZES: std::ops::RangeInclusive<u32> = 576..=65_535;

fn read_ike(table: &Table<'_, '_>) -> EndpointConfig {
    table.only(IKE_KEYS);
    let mut config = EndpointConfig::default();
    let second = Duration::from_secs(1);
    let waits = Duration::from_millis(50)..=600 * second;
    if let Some(first) = table.duration("retransmit_first", waits.clone()) {
        config.retransmission.first = first.value;
    }
    if let Some(max) = table.duration("retransmit_max", waits.clone()) {
        config.retransmission.max = max.value;
    }
    if let Some(tries) = table.integer("retransmit_tries", 1..=50) {
        config.retransmission.tries = tries.value;
    }
    if let Some(size) = table.integer("fragment_size", FRAGMENT_SIZES) {
        config.fragment_size = Some(size.value as usize);
    }
    if table
        .boolean("fragmentation")
        .is_some_and(|wanted| !wanted.value)
    {
        config.fragment_size = None;
    }
    if let Some(follow) = table.boolean("follow_redirects") {
        config.follow_redirects = follow.value;
    }
    if let Some(interval) = table.duration("nat_keepalive", second..=3600 * second) {
        config.nat_keepalive = interval.value;
    }
    if let Some(first) = table.duration("retry_first", waits.clone()) {
        config.retry_first = first.value;
    }
    if let Some(max) = table.duration("retry_max", waits.start().to_owned()..=86_400 * second) {
        config.retry_max = max.value;
    }
    let limits = &mut config.half_open;
    for (key, limit) in [
        ("cookie_threshold", &mut limits.cookie_threshold),
        ("half_open_limit", &mut limits.total),
        ("half_open_per_address", &mut limits.per_address),
    ] {
        let least = u32::from(key != "cookie_threshold");
        if let Some(number) = table.integer(key, least..=100_000) {
            *limit = number.value as usize;
        }
    }
    if let Some(timeout) = table.duration("half_open_timeout", second..=600 * second) {
        limits.timeout = timeout.value;
    }
    config
}
