//! Namespace harness of Espada: a line of network namespaces, daemons in them, traffic through
//! them, and captures of what passed. The end-to-end tests and `cargo xtask demo` stand on it.

pub mod blast;
pub mod capture;
pub mod cgroup;
pub mod cleanup;
pub mod cmd;
pub mod espada;
pub mod http;
pub mod libreswan;
pub mod matrix;
pub mod netns;
pub mod openiked;
pub mod openvpn;
pub mod peer;
pub mod peer_root;
pub mod pki;
pub mod process;
pub mod pvpn;
pub mod scenario;
pub mod strongswan;
pub mod syscall;
pub mod topology;
pub mod traffic;
pub mod wireguard;

use std::io::Write;

/// Says why a test does nothing here, past the test runner's capturing of output;
/// `cargo xtask test` counts these lines.
pub fn skip(test: &str, reason: &str) {
    // One write: lines of tests that run at the same time do not mix.
    let line = format!("SKIPPED: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Why end-to-end tests cannot run here, if they cannot.
pub fn cannot_run() -> Option<String> {
    if !syscall::is_root() {
        return Some("needs root (network namespaces)".to_owned());
    }
    let missing = topology::missing_programs();
    if !missing.is_empty() {
        return Some(format!(
            "{} not installed (`cargo xtask setup` installs them)",
            missing.join(", ")
        ));
    }
    None
}
