//! python-vpn (pvpn) as the peer: an IKEv2 server in Python that gives its clients an address and
//! carries their TCP and UDP in connections of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::cmd;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};

/// The version that `cargo xtask setup` installs.
pub const VERSION: &str = "0.2.5";

/// How it calls itself: an FQDN identity.
pub const IDENTITY: &str = "pvpn-0.2.5";

/// The address that every client gets.
pub const CLIENT: &str = "1.0.0.1";

/// A running server.
#[derive(Debug)]
pub struct Pvpn {
    process: Process,
}

/// The folder with its Python packages.
pub fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tools/pvpn")
        .components()
        .collect()
}

/// Why it cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    if !cmd::have("python3") {
        return Some("python3 is not installed".to_owned());
    }
    let module = place().join("pvpn/__main__.py");
    (!module.is_file()).then(|| {
        "python-vpn is not installed (`cargo xtask setup` installs it from PyPI)".to_owned()
    })
}

impl Pvpn {
    /// Starts it in a gateway's namespace; returns when it listens.
    pub fn start(netns: &Netns, work: &WorkDir, psk: &str, dns: &str) -> Result<Self> {
        let argv = netns.argv(&["python3", "-u", "-m", "pvpn", "-v", "-p", psk, "-dns", dns])?;
        let packages = place().display().to_string();
        let process = Process::start(
            &format!("pvpn in {}", netns.name()),
            &argv,
            &[("PYTHONPATH", &packages), ("PYTHONWARNINGS", "ignore")],
            &work.file("pvpn.log"),
            false,
        )?;
        let mut this = Self { process };
        cmd::wait_for("pvpn", Duration::from_secs(20), || {
            this.process.must_run()?;
            Ok(this.log().contains("Serving on").then_some(()))
        })?;
        Ok(this)
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
