//! Virtual addresses and pools as they are configured.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn parsed(text: &str) -> Result<GatewayConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gw.toml");
    std::fs::write(&file, text).unwrap();
    let secrets = folder.path().join("secrets.toml");
    std::fs::write(
        &secrets,
        "[[psk]]\nids = []\nsecret = \"a long enough secret\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    let prefix = format!("{}/", folder.path().display());
    load(&file, SecretsPolicy::IfReadable).map_err(|error| error.to_string().replace(&prefix, ""))
}

const ENDS: &str = "[connection.c]\n\
                    local = { address = \"%default\", id = \"a.example\" }\n\
                    remote = { address = \"192.0.2.1\", id = \"b.example\", subnets = \"10.2.0.0/16\" }\n";

const GATEWAY: &str = "[connection.c]\n\
                       local = { address = \"%default\", id = \"b.example\", subnets = \"10.2.0.0/16\" }\n\
                       remote = { address = \"%any\", id = \"%any\" }\n";

#[test]
fn a_client_needs_no_subnets() {
    let config = parsed(&format!("{ENDS}vips = [\"0.0.0.0\", \"2001:db8::5\"]\n")).unwrap();
    let settings = config.connections[0].settings();
    let vips: Vec<IpAddr> = ["0.0.0.0", "2001:db8::5"]
        .map(|vip| vip.parse().unwrap())
        .to_vec();
    assert_eq!(settings.vips, vips);
    assert!(settings.local_ts.is_empty());
    assert!(settings.mobike);
    let error = parsed(ENDS).unwrap_err();
    assert!(
        error.contains("`connection.c.local.subnets` is missing"),
        "{error}"
    );
}

#[test]
fn pools_are_named_by_connections() {
    let text = format!(
        "{GATEWAY}pools = [\"four\", \"six\"]\nmobike = false\n\
         [pool.four]\naddrs = \"10.9.0.0/24\"\ndns = \"10.2.0.53\"\n\
         [pool.six]\naddrs = \"2001:db8::10-2001:db8::1f\"\n"
    );
    let config = parsed(&text).unwrap();
    let settings = config.connections[0].settings();
    assert!(!settings.mobike);
    let [four, six] = &settings.pools[..] else {
        panic!()
    };
    // Neither the network's address nor the one for broadcasts.
    assert_eq!(four.addresses.to_string(), "10.9.0.1..10.9.0.254");
    assert_eq!(four.dns, ["10.2.0.53".parse::<IpAddr>().unwrap()]);
    assert_eq!(six.addresses.start.to_string(), "2001:db8::10");
}

#[test]
fn what_is_wrong_with_virtual_addresses_is_said() {
    for (text, expected) in [
        (format!("{ENDS}vips = \"any\"\n"), "found \"any\""),
        (
            format!("{ENDS}vips = \"224.0.0.1\"\n"),
            "cannot be a virtual address",
        ),
        (format!("{ENDS}vips = [\"::\", \"::\"]\n"), "listed twice"),
        (
            format!("{ENDS}mode = \"transport\"\nvips = \"::\"\n"),
            "no meaning in transport mode",
        ),
        (
            format!("{GATEWAY}pools = \"a\"\n"),
            "there is no pool \"a\"",
        ),
        (
            format!("{GATEWAY}pools = \"clint\"\n[pool.client]\naddrs = \"10.9.0.0/24\"\n"),
            "did you mean \"client\"?",
        ),
        (
            format!("{GATEWAY}pools = \"a\"\n[pool.a]\ndns = \"10.2.0.53\"\n"),
            "`pool.a.addrs` is missing",
        ),
        (
            format!("{GATEWAY}pools = \"a\"\n[pool.a]\naddrs = \"10.9.0.0/24[tcp]\"\n"),
            "addresses alone",
        ),
    ] {
        let error = parsed(&text).unwrap_err();
        assert!(error.contains(expected), "{text}\n{error}");
    }
}
