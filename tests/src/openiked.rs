//! OpenIKED as the peer: iked in the peers' folder, with the kernel's own ESP through PF_KEY.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::netns::Netns;
use crate::peer::{Connection, Peer};
use crate::peer_root::{self, Release};
use crate::process::{Process, WorkDir};
use crate::topology::addr;

const IKED: &str = "/usr/sbin/iked";
const IKECTL: &str = "/usr/sbin/ikectl";

/// A running iked.
#[derive(Debug)]
pub struct OpenIked {
    iked: Process,
    /// The configuration that makes it begin.
    active: PathBuf,
}

/// Why OpenIKED cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    peer_root::missing(Release::Trixie, IKED)
}

impl OpenIked {
    /// Starts iked in a gateway's namespace with one connection, for which it waits.
    pub fn start(netns: &Netns, work: &WorkDir, connection: &Connection<'_>) -> Result<Self> {
        // It sets no route of its own and counts on what gateways have.
        netns.route("default", addr::WAN_A)?;
        let files = work.file(&format!("openiked-{}", netns.name()));
        std::fs::create_dir(&files)?;
        let [passive, active] = ["passive", "active"].map(|mode| {
            let path = files.join(mode);
            (path, render(connection, mode))
        });
        for (path, text) in [&passive, &active] {
            let mut file = std::fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(path)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
        }
        let path = passive.0.to_str().context("a path in UTF-8")?;
        let argv = peer_root::argv(Release::Trixie, netns, &files, &[IKED, "-dvv", "-f", path])?;
        let iked = Process::start(
            &format!("OpenIKED in {}", netns.name()),
            &argv,
            &[],
            &files.join("iked.log"),
            false,
        )?;
        let mut this = Self {
            iked,
            active: active.0,
        };
        // Where the kernel lacks algorithms, PF_KEY looks for a module for each, which takes its time.
        cmd::wait_for("iked's readiness", Duration::from_secs(20), || {
            this.iked.must_run()?;
            // The last part of the configuration that its process for IKE gets.
            Ok(this.log().contains("config_getocsp").then_some(()))
        })
        .with_context(|| this.log())?;
        Ok(this)
    }

    /// Runs `ikectl`; failure carries its output.
    pub fn ikectl(&self, arguments: &[&str]) -> Result<String> {
        let program = [&[IKECTL], arguments].concat();
        let argv = peer_root::beside(self.iked.pid(), &program);
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Peer for OpenIked {
    /// Policies cannot be brought up on demand; those that are loaded as active begin at once.
    fn initiate(&self) -> Result<()> {
        let path = self.active.to_str().context("a path in UTF-8")?;
        self.ikectl(&["load", path]).map(drop)
    }

    fn wait_established(&self) -> Result<()> {
        cmd::wait_for("OpenIKED's child SA", Duration::from_secs(20), || {
            Ok(self.ikectl(&["show", "sa"])?.contains("flow").then_some(()))
        })
    }

    fn rekey_child(&self) -> Result<()> {
        bail!("iked replaces child SAs when their lifetime ends, not when it is asked to")
    }

    fn terminate(&self) -> Result<()> {
        self.ikectl(&["reset", "sa"]).map(drop)
    }

    fn log(&self) -> String {
        self.iked.log()
    }
}

fn render(connection: &Connection<'_>, mode: &str) -> String {
    format!(
        "ikev2 \"net\" {mode} {extra} esp from {local_ts} to {remote_ts} local {local} peer {remote} \
    ikesa {ike} childsa {esp} srcid {local_id} dstid {remote_id} \
    psk \"{psk}\"\n",
        // A rule is one line.
        extra = connection.extra.replace('\n', " "),
        local_ts = connection.local_ts,
        remote_ts = connection.remote_ts,
        local = connection.local,
        remote = match connection.remote {
            "%any" => "any",
            remote => remote,
        },
        ike = connection.ike,
        esp = connection.esp,
        local_id = connection.local_id,
        remote_id = connection.remote_id,
        psk = connection.psk,
    )
}
