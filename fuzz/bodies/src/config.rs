//! The reader of configuration files.

use std::path::Path;

use espada::config::{SecretsPolicy, parse};
use zeroize::Zeroizing;

/// Where the file would lie: nothing that it names by relative path is found.
const FILE: &str = "/nonexistent/espada/espada.toml";

/// Text of a configuration: it is read, or refused with what is wrong and where. Absolute paths in it are
/// opened, so those of devices, which may never end, are left out.
pub fn body(octets: &[u8]) {
    let device = |octets: &[u8]| octets == b"/dev" || octets == b"/proc";
    if octets.windows(4).any(device) || octets.windows(5).any(device) {
        return;
    }
    let Ok(text) = std::str::from_utf8(octets) else {
        return;
    };
    let text = Zeroizing::new(text.to_owned());
    if let Err(error) = parse(Path::new(FILE), &text, SecretsPolicy::IfReadable) {
        assert!(!error.diagnostics.is_empty());
        let _ = error.to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn a_configuration() {
        let text = br#"[dataplane]
engine = ["ebpf", "userspace"]
wan = "eth0"
workers = "auto"
[ike]
cookie_threshold = 10
[connection.branch]
local.id = "gw.example"
remote.address = "192.0.2.2"
remote.id = "branch.example"
local.subnets = ["10.1.0.0/16", "fd00:1::/48"]
remote.subnets = ["10.2.0.0/16"]
ike = "aes256-sha256-x25519"
esp = "aes256gcm16-esn"
auth = "psk"
dpd.delay = "30s"
"#;
        seeded::damaged(text, body);
    }
}
