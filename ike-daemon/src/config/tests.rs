//! Every complaint's text: they are the part of the configuration that people read most.

use std::os::unix::fs::PermissionsExt;

use espada_ike::config::{DpdAction, EncapsulationPolicy, StartAction};

use super::*;

const AZURE: &str = r#"
[dataplane]
engine = "auto"
wan = ["eth0"]

[connection.azure]
local  = { address = "%default", id = "40.113.59.156", subnets = ["10.0.0.0/24"] }
remote = { address = "20.240.192.55", id = "20.240.192.55", subnets = ["10.240.10.0/24"] }
auth = "psk"
ike = "aes256-sha256-modp2048"
esp = "aes256-sha256"
dpd = { delay = "30s", action = "restart" }
start = "start"
"#;

const AZURE_SECRETS: &str = r#"
[[psk]]
ids = ["40.113.59.156", "20.240.192.55"]
secret = "correct horse battery staple"
"#;

/// Loads a configuration with secrets; messages come without the folder's name.
fn load_text(config: &str, secrets: Option<&str>) -> Result<GatewayConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gw.toml");
    std::fs::write(&file, config).unwrap();
    if let Some(secrets) = secrets {
        let path = folder.path().join("secrets.toml");
        std::fs::write(&path, secrets).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let prefix = format!("{}/", folder.path().display());
    load(&file, SecretsPolicy::Required).map_err(|error| error.to_string().replace(&prefix, ""))
}

fn errors(config: &str) -> String {
    load_text(config, Some(AZURE_SECRETS)).unwrap_err()
}

/// The Azure configuration with one line replaced.
fn azure_with(line_start: &str, replacement: &str) -> String {
    let mut found = false;
    let lines: Vec<&str> = AZURE
        .lines()
        .map(|line| {
            if line.starts_with(line_start) {
                found = true;
                replacement
            } else {
                line
            }
        })
        .collect();
    assert!(found, "no line starts with {line_start}");
    lines.join("\n")
}

fn warnings(config: &GatewayConfig) -> Vec<String> {
    config
        .warnings
        .iter()
        .map(|warning| warning.message.clone())
        .collect()
}

#[test]
fn the_configuration_of_the_readme() {
    let config = load_text(AZURE, Some(AZURE_SECRETS)).unwrap();
    assert_eq!(warnings(&config), Vec::<String>::new());
    assert_eq!(config.dataplane.wan, ["eth0"]);
    assert_eq!(config.dataplane.tun, "espada0");
    let [azure] = config.connections.as_slice() else {
        panic!()
    };
    let settings = azure.resolved(None).unwrap();
    assert_eq!(&*settings.name, "azure");
    assert_eq!(settings.local_address, None);
    assert_eq!(
        settings.remote_address,
        RemoteAddress::Address("20.240.192.55".parse().unwrap())
    );
    assert_eq!(settings.local_id.unwrap().to_string(), "40.113.59.156");
    assert_eq!(settings.ike.len(), 1);
    assert_eq!(
        settings.local_ts[0].end,
        "10.0.0.255".parse::<IpAddr>().unwrap()
    );
    let dpd = settings.dpd.unwrap();
    assert_eq!(
        (dpd.delay, dpd.action),
        (Duration::from_secs(30), DpdAction::Restart)
    );
    assert_eq!(settings.start, StartAction::Start);
    assert_eq!(settings.encapsulation, EncapsulationPolicy::Auto);
    assert_eq!(settings.replay_window, 4096);
    let ike = &settings.origin.settings["ike"];
    assert_eq!(
        (ike.line, ike.value.as_str()),
        (10, "\"aes256-sha256-modp2048\"")
    );
    let subnets = &settings.origin.settings["local.subnets"];
    assert_eq!(
        (subnets.line, subnets.value.as_str()),
        (7, "[\"10.0.0.0/24\"]")
    );
    assert!(settings.origin.file.ends_with("gw.toml"));
    assert!(config.secrets[0].origin.ends_with("secrets.toml:2"));
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_eq!(
        errors(&azure_with("esp", "windwo = 1\nespp = \"aes256\"")),
        r#"gw.toml:11:1: error: unknown key `windwo` in connection.azure
    11 | windwo = 1
       | ^^^^^^
    help: known keys here: local, remote, auth, ike, esp, mode, dpd, start, keying_tries, encapsulation, replay_window, per_cpu_sas, insecure, ppk, ppk_required, ike_lifetime, child_lifetime, vips, pools, mobike, send_cert, child_bytes, child_packets, childless, single_pairs
gw.toml:12:1: error: unknown key `espp` in connection.azure; did you mean `esp`?
    12 | espp = "aes256"
       | ^^^^
    help: known keys here: local, remote, auth, ike, esp, mode, dpd, start, keying_tries, encapsulation, replay_window, per_cpu_sas, insecure, ppk, ppk_required, ike_lifetime, child_lifetime, vips, pools, mobike, send_cert, child_bytes, child_packets, childless, single_pairs
2 errors"#
    );
    let local = r#"local = { adress = "%default", subnets = ["10.0.0.0/24"] }"#;
    assert_eq!(
        errors(&azure_with("local", local)),
        r#"gw.toml:7:11: error: unknown key `adress` in connection.azure.local; did you mean `address`?
    7 | local = { adress = "%default", subnets = ["10.0.0.0/24"] }
      |           ^^^^^^
    help: known keys here: address, id, subnets, auth, certs, key
1 error"#
    );
    assert_eq!(
        errors("colour = 1\n[dataplan]\nwan = \"eth0\"\n"),
        r#"gw.toml:1:1: error: unknown key `colour` at the top of the file
    1 | colour = 1
      | ^^^^^^
    help: known keys here: dataplane, ike, connection, pool, secrets
gw.toml:2:2: error: unknown key `dataplan` at the top of the file; did you mean `dataplane`?
    2 | [dataplan]
      |  ^^^^^^^^
    help: known keys here: dataplane, ike, connection, pool, secrets
2 errors"#
    );
}

#[test]
fn limits_on_what_the_unauthenticated_may_ask_for() {
    let config = |ike: &str| {
        let text = format!("{AZURE}\n[ike]\n{ike}\n");
        load_text(&text, Some(AZURE_SECRETS)).map(|config| config.endpoint.half_open)
    };
    let limits = config(
        "cookie_threshold = 0\nhalf_open_limit = 5000\nhalf_open_per_address = 7\n\
         half_open_timeout = \"5s\"",
    )
    .unwrap();
    assert_eq!(
        (limits.cookie_threshold, limits.total, limits.per_address),
        (0, 5000, 7)
    );
    assert_eq!(limits.timeout, Duration::from_secs(5));
    let refused = config("half_open_limit = 0").unwrap_err();
    let expected =
        "`ike.half_open_limit` must be a whole number from 1 to 100000, found the integer 0";
    assert!(refused.contains(expected), "{refused}");
}

#[test]
fn fragments_have_a_size_or_are_off() {
    let config = |lines: &str| {
        let text = format!("{AZURE}\n[ike]\n{lines}\n");
        let config = load_text(&text, Some(AZURE_SECRETS));
        config.map(|config| config.endpoint.fragment_size)
    };
    assert_eq!(config(""), Ok(Some(1280)));
    assert_eq!(config("fragment_size = 576"), Ok(Some(576)));
    assert_eq!(config("fragmentation = true"), Ok(Some(1280)));
    assert_eq!(
        config("fragmentation = false\nfragment_size = 900"),
        Ok(None)
    );
    let refused = config("fragment_size = 500").unwrap_err();
    let wanted =
        "`ike.fragment_size` must be a whole number from 576 to 65535, found the integer 500";
    assert!(refused.contains(wanted), "{refused}");
}

#[test]
fn marks_are_values_and_masks() {
    let config = |line: &str| {
        let config = load_text(&azure_with("engine", line), Some(AZURE_SECRETS));
        config.unwrap().dataplane.xfrm.mark
    };
    let mark = |value, mask| Some(Mark { value, mask });
    assert_eq!(config("xfrm_mark = \"0x2a/0xff\""), mark(0x2a, 0xff));
    assert_eq!(config("xfrm_mark = \"42\""), mark(42, u32::MAX));
    for (line, wanted) in [
        (
            "xfrm_mark = \"0x1ff/0xff\"",
            "bits that the mask lacks: 0x100",
        ),
        ("xfrm_mark = \"red\"", "`red` is no number of 32 bits"),
        (
            "xfrm_output_mark = 7",
            "`dataplane.xfrm_output_mark` must be a mark such as",
        ),
    ] {
        let shown = errors(&azure_with("engine", line));
        assert!(shown.contains(wanted), "{shown}");
    }
}

#[test]
fn every_error_is_found_in_one_run() {
    let text = r#"
[dataplane]
engine = "userspac"
wan = 3
mtu = 100
mss_clamp = "yes"
front_end = "xfrm"
tun = "a name that is too long"
workers = 0
pin_workers = 2

[ike]
retransmit_tries = 0
retry_first = "1"

[connection.x]
local = { address = "gw.example", subnets = ["10.0.0.0/33", "2001:db8::/32", 7] }
remote = { address = "300.1.2.3", subnets = [] }
auth = "eap"
dpd = { delay = 30, action = "reset" }
start = "yes"
replay_window = 99999999
child_lifetime = "1s"

[connection."bad name"]
local = { subnets = ["10.0.0.0/24"] }

[connection]
flat = 1
"#;
    let shown = errors(text);
    let first_lines: Vec<&str> = shown
        .lines()
        .filter(|line| line.starts_with("gw.toml"))
        .collect();
    assert_eq!(
        first_lines,
        [
            "gw.toml:3:10: error: `dataplane.engine` must be \"auto\", \"userspace\", \"ebpf\" or \"xfrm\", or a list of engines in order, found \"userspac\"",
            "gw.toml:4:7: error: `dataplane.wan` must be an interface name or a list of them, found the integer 3",
            "gw.toml:5:7: error: `dataplane.mtu` must be a whole number from 1280 to 9000, found the integer 100",
            "gw.toml:6:13: error: `dataplane.mss_clamp` must be true or false, found the string \"yes\"",
            "gw.toml:7:13: error: `dataplane.front_end` must be \"auto\", \"xdp\", \"tc\" or \"off\", found \"xfrm\"",
            "gw.toml:8:7: error: \"a name that is too long\" cannot be an interface name: 1 to 15 characters, no blanks, `/`, `:` or `%`",
            "gw.toml:9:11: error: `dataplane.workers` must be \"auto\" or a whole number from 1 to 64, found the integer 0",
            "gw.toml:10:15: error: `dataplane.pin_workers` must be true or false, found the integer 2",
            "gw.toml:13:20: error: `ike.retransmit_tries` must be a whole number from 1 to 50, found the integer 0",
            "gw.toml:14:15: error: `ike.retry_first` must be a length of time such as \"30s\", \"5m\" or \"1h\", found the string \"1\"",
            "gw.toml:17:21: error: `connection.x.local.address` must be an IP address, \"%default\" or \"%any\", found \"gw.example\"",
            "gw.toml:17:46: error: `connection.x.local.subnets`: \"/33\" is no prefix length of 10.0.0.0: it goes from 0 to 32",
            "gw.toml:17:78: error: `connection.x.local.subnets` must be a subnet such as \"10.0.0.0/24\" or a list of them, found the integer 7",
            "gw.toml:18:22: error: `connection.x.remote.address` must be an IP address, a host name or \"%any\", found \"300.1.2.3\"",
            "gw.toml:18:45: error: `connection.x.remote.subnets` is empty",
            "gw.toml:19:8: error: EAP is not in this version of Espada",
            "gw.toml:20:17: error: `connection.x.dpd.delay` must be a length of time such as \"30s\", \"5m\" or \"1h\", found the integer 30",
            "gw.toml:20:30: error: `connection.x.dpd.action` must be \"restart\", \"clear\" or \"trap\", found \"reset\"",
            "gw.toml:21:9: error: `connection.x.start` must be \"start\", \"trap\" or \"none\", found \"yes\"",
            "gw.toml:22:17: error: `connection.x.replay_window` must be a whole number from 0 to 65536, found the integer 99999999",
            "gw.toml:23:18: error: `connection.x.child_lifetime` must be from 10s to 30d, found \"1s\"",
            "gw.toml:25:1: error: `connection.bad name.remote` is missing",
            "gw.toml:25:13: error: \"bad name\" cannot be a connection's name: 1 to 64 letters, digits, `-`, `_` or `.`",
            "gw.toml:29:1: error: `connection.flat` must be a table with a connection's settings",
        ],
        "{shown}"
    );
    assert!(shown.contains("did you mean \"userspace\"?"), "{shown}");
    assert!(shown.contains("help: use auth = \"psk\""), "{shown}");
}

#[test]
fn workers_are_counted_or_left_to_the_processors() {
    for (setting, expected) in [("\"auto\"", None), ("1", Some(1)), ("64", Some(64))] {
        let text = format!("[dataplane]\nworkers = {setting}\npin_workers = true\n");
        let dataplane = load_text(&text, None).unwrap().dataplane;
        assert_eq!(dataplane.workers.map(usize::from), expected);
        assert!(dataplane.pin_workers);
        assert_eq!(dataplane.worker_threads, None);
    }
    for (setting, expected) in [("\"auto\"", None), ("1", Some(1)), ("2", Some(2))] {
        let text = format!("[dataplane]\nworker_threads = {setting}\n");
        let dataplane = load_text(&text, None).unwrap().dataplane;
        assert_eq!(dataplane.worker_threads, expected);
    }
    let shown = errors("[dataplane]\nworker_threads = 3\n");
    assert!(
        shown.starts_with(
            "gw.toml:2:18: error: `dataplane.worker_threads` must be \"auto\" or a whole number from 1 to 2, found"
        ),
        "{shown}"
    );
    let shown = errors("[dataplane]\nworkers = \"many\"\n");
    assert!(
        shown.starts_with(
            "gw.toml:2:11: error: `dataplane.workers` must be \"auto\" or a whole number from 1 to 64, found the string \"many\""
        ),
        "{shown}"
    );
}

#[test]
fn syntax_errors_have_a_place() {
    let shown = errors("[dataplane\nwan = \"eth0\"\n");
    assert!(shown.starts_with("gw.toml:1:11: error: "), "{shown}");
}

#[test]
fn sas_for_single_processors_take_the_xfrm_engine() {
    let text = azure_with("start", "start = \"start\"\nper_cpu_sas = true");
    let config = load_text(&text, Some(AZURE_SECRETS)).unwrap();
    let settings = config.connections[0].resolved(None).unwrap();
    assert!(settings.processors.is_some_and(|count| count > 0));
    let shown = config.warnings[0].to_string();
    assert!(
        shown.contains("`per_cpu_sas` has no effect on what is sent")
            && shown.contains("set engine = \"xfrm\""),
        "{shown}"
    );
    let text = text.replace("engine = \"auto\"", "engine = \"xfrm\"");
    let config = load_text(&text, Some(AZURE_SECRETS)).unwrap();
    assert_eq!(warnings(&config), Vec::<String>::new());
}

#[test]
fn engines_by_name_and_in_order() {
    let engine = |line: &str| {
        let config = load_text(&azure_with("engine", line), Some(AZURE_SECRETS));
        config.unwrap().dataplane.engine
    };
    assert_eq!(engine("engine = \"auto\""), EngineChoice::Auto);
    assert_eq!(
        engine("engine = \"xfrm\""),
        EngineChoice::Ordered(vec![EngineKind::Xfrm])
    );
    assert_eq!(
        engine("engine = [\"ebpf\", \"userspace\"]"),
        EngineChoice::Ordered(vec![EngineKind::Ebpf, EngineKind::Userspace])
    );
    let twice = errors(&azure_with("engine", "engine = [\"ebpf\", \"ebpf\"]"));
    assert!(
        twice.contains("gw.toml:3:19: error: `dataplane.engine` names ebpf twice"),
        "{twice}"
    );
}

#[test]
fn subnets_with_host_bits_are_corrected() {
    let local = r#"local = { id = "40.113.59.156", subnets = ["10.0.0.7/24", "10.0.1.1"] }"#;
    let config = load_text(&azure_with("local", local), Some(AZURE_SECRETS)).unwrap();
    assert_eq!(
        warnings(&config),
        ["\"10.0.0.7/24\" has bits set beyond its prefix length; 10.0.0.0/24 is used"]
    );
    assert_eq!(
        config.warnings[0].help.as_deref(),
        Some("write \"10.0.0.0/24\"")
    );
    let settings = config.connections[0].settings();
    assert_eq!(
        settings.local_ts[0].start,
        "10.0.0.0".parse::<IpAddr>().unwrap()
    );
    assert_eq!(settings.local_ts[1].start, settings.local_ts[1].end);
}

#[test]
fn families_must_meet() {
    let remote = r#"remote = { address = "2001:db8::1", id = "20.240.192.55", subnets = ["2001:db8:1::/48"] }"#;
    let text = azure_with("remote", remote).replace("%default", "192.0.2.1");
    let shown = errors(&text);
    assert!(
        shown.contains("gw.toml:7:78: error: this IPv4 subnet in local.subnets can talk to nobody: remote.subnets has no IPv4 subnet")
            || shown.contains(": error: this IPv4 subnet in local.subnets can talk to nobody: remote.subnets has no IPv4 subnet"),
        "{shown}"
    );
    assert!(shown.contains("error: local.address 192.0.2.1 and remote.address 2001:db8::1 are of different families"), "{shown}");
}

#[test]
fn anybody_cannot_be_called() {
    let shown = errors(&AZURE.replace("address = \"20.240.192.55\"", "address = \"%any\""));
    assert!(
        shown.contains("gw.toml:13:9: error: `connection.azure.start` cannot set up a connection to anybody (remote.address = \"%any\")"),
        "{shown}"
    );
}

#[test]
fn the_same_subnets_twice() {
    let second = AZURE.split_once("[connection.azure]").unwrap().1;
    let shown = errors(&format!("{AZURE}\n[connection.copy]{second}"));
    assert_eq!(
        shown.lines().next().unwrap(),
        "gw.toml:15:13: error: connections `azure` and `copy` protect the same subnets: a packet could not tell which tunnel to take (the other is at gw.toml:6)"
    );
    let wider = second.replace("10.240.10.0/24", "10.240.0.0/16");
    let config = load_text(
        &format!("{AZURE}\n[connection.wide]{wider}"),
        Some(AZURE_SECRETS),
    )
    .unwrap();
    let [warning] = warnings(&config).try_into().unwrap();
    let warning: String = warning;
    assert!(
        warning.starts_with("the subnets of `wide` overlap those of `azure`"),
        "{warning}"
    );
}

#[test]
fn keys_must_be_there() {
    let shown = load_text(AZURE, None).unwrap_err();
    assert!(
        shown.starts_with("secrets.toml: error: there is no file of pre-shared keys here"),
        "{shown}"
    );
    let other = AZURE_SECRETS.replace("20.240.192.55", "20.240.192.56");
    let shown = load_text(AZURE, Some(&other)).unwrap_err();
    assert_eq!(
        shown,
        r#"gw.toml:6:13: error: no pre-shared key for `azure`: looked in secrets.toml for one with ids ["40.113.59.156", "20.240.192.55"]
    6 | [connection.azure]
      |             ^^^^^
    help: the keys there are for: 40.113.59.156 and 20.240.192.56
1 error"#
    );
    for enough in ["ids = [\"20.240.192.55\"]\n", "ids = [\"%any\"]\n", ""] {
        let secrets = format!("[[psk]]\n{enough}secret = \"0x00112233445566778899aabbccddeeff\"\n");
        load_text(AZURE, Some(&secrets)).unwrap();
    }
}

#[test]
fn exposed_secrets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gw.toml");
    let secrets = folder.path().join("keys.toml");
    std::fs::write(&file, format!("secrets = \"keys.toml\"\n{AZURE}")).unwrap();
    std::fs::write(&secrets, AZURE_SECRETS).unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o640)).unwrap();
    let shown = load(&file, SecretsPolicy::Required)
        .unwrap_err()
        .to_string();
    let path = secrets.display();
    assert_eq!(
        shown,
        format!(
            "{path}: error: other users have access to the pre-shared keys (mode 0640)\n    help: chmod 600 {path}\n1 error"
        )
    );
}

#[test]
fn insecure_groups_need_a_word() {
    let weak = azure_with("ike", "ike = \"aes256-sha1-modp1024\"");
    let shown = errors(&weak);
    assert!(
        shown.contains("gw.toml:10:7: error: `connection.azure.ike`: "),
        "{shown}"
    );
    let config = load_text(&format!("{weak}\ninsecure = true\n"), Some(AZURE_SECRETS)).unwrap();
    let warning = config.warnings[0].to_string();
    assert!(
        warning.contains("modp1024 (DH group 2) is insecure"),
        "{warning}"
    );
    let config = load_text(&format!("{AZURE}\ninsecure = true\n"), Some(AZURE_SECRETS)).unwrap();
    assert_eq!(
        warnings(&config),
        ["`azure` has insecure = true, but no proposal uses an insecure algorithm"]
    );
}

#[test]
fn host_names_are_not_anybody() {
    let text = AZURE.replace(
        "address = \"20.240.192.55\"",
        "address = \"vpn.example.net\"",
    );
    let config = load_text(&text, Some(AZURE_SECRETS)).unwrap();
    let connection = &config.connections[0];
    assert_eq!(
        connection.remote,
        Remote::Host("vpn.example.net".to_owned())
    );
    assert!(connection.resolved(None).is_none());
    let address = "203.0.113.9".parse().unwrap();
    assert_eq!(
        connection.resolved(Some(address)).unwrap().remote_address,
        RemoteAddress::Address(address)
    );
}

#[test]
fn defaults_are_usable() {
    let text = r#"
[connection.minimal]
local = { subnets = "10.0.0.0/24" }
remote = { address = "20.240.192.55", subnets = "10.1.0.0/24" }
"#;
    let config = load_text(
        text,
        Some("[[psk]]\nids = [\"20.240.192.55\"]\nsecret = \"correct horse battery staple\"\n"),
    )
    .unwrap();
    let settings = config.connections[0].settings();
    assert_eq!((settings.ike.len(), settings.esp.len()), (2, 2));
    assert_eq!(settings.start, StartAction::None);
    assert!(warnings(&config)[0].contains("`dataplane.wan` is not set"));
}

#[test]
fn udp_segmentation_is_the_users_choice() {
    let read = |text: &str| load_text(&format!("[dataplane]\nwan = \"eth0\"\n{text}"), None);
    for (text, expected) in [
        ("", UdpSegmentation::Auto),
        ("udp_segmentation = \"auto\"\n", UdpSegmentation::Auto),
        ("udp_segmentation = \"on\"\n", UdpSegmentation::On),
        ("udp_segmentation = \"off\"\n", UdpSegmentation::Off),
    ] {
        let config = read(text).unwrap();
        assert_eq!(config.dataplane.udp_segmentation, expected);
    }
    let refusal = read("udp_segmentation = true\n").unwrap_err().to_string();
    assert!(refusal.contains("gw.toml:3:20: error"), "{refusal}");
    assert!(refusal.contains("\"auto\", \"on\""), "{refusal}");
}

#[test]
fn lan_interfaces_past_the_kernel() {
    let read = |text: &str| load_text(&format!("[dataplane]\nwan = \"eth0\"\n{text}"), None);
    let config = read("lan = [\"eth1\", \"eth2\"]\nbusy_poll = 50\n").unwrap();
    assert_eq!(config.dataplane.lan, ["eth1", "eth2"]);
    assert_eq!(config.dataplane.busy_poll.map(u32::from), Some(50));
    let off = read("busy_poll = 0\n").unwrap().dataplane;
    assert_eq!((off.busy_poll, off.lan.len()), (None, 0));
    let refusal = read("lan = [\"eth1\", \"eth0\"]\n")
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("gw.toml:3:16: error: \"eth0\" is in `dataplane.wan` as well"),
        "{refusal}"
    );
    let idle = read("lan = \"eth1\"\nengine = \"xfrm\"\n").unwrap();
    assert!(warnings(&idle)[0].contains("`dataplane.lan` has no effect"));
}

/// As they stand, apart from the mode of their secrets.
#[test]
fn the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(folder.join("espada.toml")) else {
            continue;
        };
        let secrets = std::fs::read_to_string(folder.join("secrets.toml")).unwrap();
        match load_text(&text, Some(&secrets)) {
            Ok(config) => assert_eq!(warnings(&config), Vec::<String>::new(), "{folder:?}"),
            Err(error) => panic!("{folder:?}: {error}"),
        }
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn what_check_shows() {
    let config = load_text(AZURE, Some(AZURE_SECRETS)).unwrap();
    let summary = config.summary();
    let (_, rest) = summary.split_once("gw.toml: ").unwrap();
    assert_eq!(
        rest,
        "\
valid, 1 connection, 1 pre-shared key
engine auto, WAN eth0, plaintext interface espada0

azure: set up at once and again when it fails
  local    %default as 40.113.59.156: 10.0.0.0/24
  remote   20.240.192.55 as 20.240.192.55: 10.240.10.0/24
  ike      aes256-sha256-modp2048; rekey every 4h
  esp      aes256-sha256; rekey every 1h
  carried  tunnel mode, ESP, in UDP where there is a NAT or the peer prefers it as we do; replay window 4096
  dpd      after 30s of silence; if dead, set it up again
"
    );
}

/// The Azure connection's ends in transport mode.
fn transport(local: &str, remote: &str) -> String {
    format!(
        "[dataplane]\nwan = [\"eth0\"]\n[connection.azure]\nmode = \"transport\"\n\
         local = {{ {local} }}\nremote = {{ {remote} }}\n"
    )
}

#[test]
fn transport_mode_is_for_the_two_hosts() {
    let config = transport(
        "address = \"40.113.59.156\"",
        "address = \"20.240.192.55\", subnets = \"20.240.192.55[tcp/443]\"",
    );
    let config = load_text(&config, Some(AZURE_SECRETS)).unwrap();
    assert_eq!(warnings(&config), Vec::<String>::new());
    let settings = config.connections[0].settings();
    assert_eq!(settings.mode, espada_common::sa::Mode::Transport);
    assert!(settings.local_ts.is_empty());
    let summary = config.summary();
    for line in [
        "  local    40.113.59.156 as its address: everything of that host\n",
        "  remote   20.240.192.55 as its address: 20.240.192.55/32[tcp/443]\n",
        "  carried  transport mode, ESP, in UDP where there is a NAT; replay window 4096\n",
    ] {
        assert!(summary.contains(line), "{summary}");
    }

    // A host that calls from anywhere.
    let anybody = transport(
        "address = \"40.113.59.156\", subnets = \"0.0.0.0/0[udp/53]\"",
        "address = \"%any\", id = \"20.240.192.55\"",
    );
    let config = load_text(&anybody, Some(AZURE_SECRETS)).unwrap();
    assert_eq!(warnings(&config), Vec::<String>::new());

    let networks = transport(
        "address = \"40.113.59.156\", subnets = \"10.0.0.0/24\"",
        "address = \"20.240.192.55\", subnets = \"20.240.192.56\"",
    );
    let errors_found = errors(&networks);
    for line in [
        "gw.toml:5:48: error: transport mode protects the two hosts alone: 10.0.0.0/24 in local.subnets is not 40.113.59.156\n",
        "gw.toml:6:49: error: transport mode protects the two hosts alone: 20.240.192.56/32 in remote.subnets is not 20.240.192.55\n",
        "    help: leave subnets out for everything of the host, write its address with a protocol and ports in brackets, or use mode = \"tunnel\"\n",
    ] {
        assert!(errors_found.contains(line), "{errors_found}");
    }
    // In tunnel mode subnets cannot be left out.
    let tunnel = networks.replace("\"transport\"", "\"tunnel\"");
    let tunnel = tunnel.replace(", subnets = \"10.0.0.0/24\"", "");
    assert!(errors(&tunnel).contains("`connection.azure.local.subnets` is missing"));
    // Two of them between the same hosts contradict each other.
    let ends =
        "local = { address = \"40.113.59.156\" }\nremote = { address = \"20.240.192.55\" }\n";
    let twice = format!(
        "[connection.a]\nmode = \"transport\"\n{ends}[connection.b]\nmode = \"transport\"\n{ends}"
    );
    assert!(errors(&twice).contains("connections `a` and `b` protect the same subnets"));
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever stands in the file, there is an answer and no panic.
        #[test]
        fn never_panics(text in "(\\[connection\\.[a-z]{1,3}\\]\n|(local|remote|dpd|ike|esp|wan|mtu) = [\\[\\]{}\"a-z0-9,.:/%= ]{0,30}\n|\\PC{0,20}\n){0,8}") {
            let _ = parse(Path::new("/nonexistent/gw.toml"), &Zeroizing::new(text), SecretsPolicy::IfReadable);
        }

        #[test]
        fn durations_round_trip(seconds in 0u64..10_000_000) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(document::parse_duration(&show_duration(duration)), Some(duration));
        }
    }
}
