//! Espada's daemon in a gateway's namespace, driven through its own command line.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cmd;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};

/// The pre-shared key of both gateways where a test does not say otherwise.
pub const PSK: &str = "eighty-six swallows over the river at dusk";

/// One connection and what belongs to it in both files of a daemon.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// Our outer address (`%default` allowed).
    pub local: &'a str,
    /// Our identity.
    pub local_id: &'a str,
    /// Networks on our side; none where virtual addresses take their place.
    pub local_subnets: &'a [&'a str],
    /// The peer's outer address (`%any` for a responder).
    pub remote: &'a str,
    /// The peer's identity.
    pub remote_id: &'a str,
    /// Networks on the peer's side.
    pub remote_subnets: &'a [&'a str],
    /// How our side authenticates where it is not by the pre-shared key: more of the `local` table.
    pub local_auth: &'a str,
    /// The same of the peer.
    pub remote_auth: &'a str,
    /// IKE proposals.
    pub ike: &'a str,
    /// ESP proposals.
    pub esp: &'a str,
    /// `start`, `trap` or `none`.
    pub start: &'a str,
    /// More lines of the connection's section.
    pub extra: &'a str,
    /// More lines of the `[dataplane]` section, and other sections.
    pub global: &'a str,
    /// The pre-shared key.
    pub psk: &'a str,
}

/// A PPK (RFC 8784) that both ends have in every configuration, by name and as it is written; it is
/// used where a connection says so.
pub const PPK: (&str, &str) = (
    "alpha",
    "0x5eaf00d5eaf00d5eaf00d5eaf00d5eaf00d5eaf00d5eaf00d5eaf00d5eaf00d5",
);

/// Name of the connection in every configuration of the harness.
pub const CONNECTION: &str = "site";

impl Config<'_> {
    /// The configuration file.
    pub fn render(&self) -> String {
        // Without any, the virtual addresses are the selectors.
        let list = |subnets: &[&str]| match subnets {
            [] => String::new(),
            _ => format!(", subnets = {subnets:?}"),
        };
        let more = |auth: &str| match auth {
            "" => String::new(),
            auth => format!(", {auth}"),
        };
        format!(
            "[dataplane]\nwan = [\"{}\"]\n{}\n\n[connection.{CONNECTION}]\n\
             local = {{ address = \"{}\", id = \"{}\"{}{} }}\n\
             remote = {{ address = \"{}\", id = \"{}\"{}{} }}\n\
             auth = \"psk\"\nike = \"{}\"\nesp = \"{}\"\nstart = \"{}\"\n{}\n",
            crate::topology::WAN_DEVICE,
            self.global,
            self.local,
            self.local_id,
            list(self.local_subnets),
            more(self.local_auth),
            self.remote,
            self.remote_id,
            list(self.remote_subnets),
            more(self.remote_auth),
            self.ike,
            self.esp,
            self.start,
            self.extra,
        )
    }

    /// The secrets file.
    pub fn render_secrets(&self) -> String {
        format!(
            "[[psk]]\nids = [\"{}\", \"{}\"]\nsecret = \"{}\"\n\
             [[ppk]]\nid = \"{}\"\nsecret = \"{}\"\n",
            self.local_id, self.remote_id, self.psk, PPK.0, PPK.1
        )
    }
}

/// The `espada` program under test: `$ESPADA_BIN`, else built (release) from this workspace.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| find_binary().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path.clone()),
        Err(error) => bail!("{error}"),
    }
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ESPADA_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("ESPADA_BIN names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace's folder")?
        .join("Cargo.toml");
    let output = cmd::cargo()
        .args([
            "build",
            "--release",
            "--package",
            "espada",
            "--bin",
            "espada",
        ])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(&manifest)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "cannot build espada:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo named no executable")
}

/// A running `espada daemon`.
#[derive(Debug)]
pub struct Espada {
    process: Process,
    netns: PathBuf,
    binary: PathBuf,
    config: PathBuf,
    runtime: PathBuf,
}

impl Espada {
    /// Starts a daemon in a gateway's namespace; returns when it answers.
    pub fn start(
        netns: &Netns,
        work: &WorkDir,
        config: &Config<'_>,
        detached: bool,
    ) -> Result<Self> {
        let files = work.file(&format!("espada-{}", netns.name()));
        Self::write_files(&files, &config.render(), &config.render_secrets())?;
        Self::start_from(netns, &files, detached)
    }

    /// Writes configuration and secrets into a folder, as an administrator would.
    pub fn write_files(files: &Path, config: &str, secrets: &str) -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(files)?;
        std::fs::write(files.join("espada.toml"), config)?;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(files.join("secrets.toml"))?;
        std::io::Write::write_all(&mut file, secrets.as_bytes())?;
        Ok(())
    }

    /// Starts a daemon from files that are there; returns when it answers.
    pub fn start_from(netns: &Netns, files: &Path, detached: bool) -> Result<Self> {
        Self::start_logging(netns, files, "info", detached)
    }

    /// The same with a level of its log.
    pub fn start_logging(
        netns: &Netns,
        files: &Path,
        log_level: &str,
        detached: bool,
    ) -> Result<Self> {
        let mut this = Self::launch_logging(netns, files, log_level, detached)?;
        cmd::wait_for("an answer of the daemon", Duration::from_secs(15), || {
            this.process.must_run()?;
            this.status().map(|_| Some(()))
        })
        .with_context(|| this.log())?;
        Ok(this)
    }

    /// Starts a daemon and does not wait for it.
    pub fn launch(netns: &Netns, files: &Path, detached: bool) -> Result<Self> {
        Self::launch_logging(netns, files, "info", detached)
    }

    fn launch_logging(
        netns: &Netns,
        files: &Path,
        log_level: &str,
        detached: bool,
    ) -> Result<Self> {
        let binary = binary()?;
        let config = files.join("espada.toml");
        let runtime = files.join("run");
        let words = [&binary, &config, &runtime].map(|path| path.display().to_string());
        let argv = netns.argv(&[
            &words[0],
            "daemon",
            "--config",
            &words[1],
            "--runtime-dir",
            &words[2],
            "--log-level",
            log_level,
        ])?;
        let process = Process::start(
            &format!("espada in {}", netns.name()),
            &argv,
            &[("NO_COLOR", "1"), ("RUST_BACKTRACE", "1")],
            &files.join("espada.log"),
            detached,
        )?;
        Ok(Self {
            process,
            netns: netns.path().to_owned(),
            binary,
            config,
            runtime,
        })
    }

    /// The command line of an `espada` command against this daemon.
    pub fn argv(&self, arguments: &[&str]) -> Vec<String> {
        let mut argv = vec![
            "nsenter".to_owned(),
            format!("--net={}", self.netns.display()),
            "--".to_owned(),
            self.binary.display().to_string(),
        ];
        argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
        argv.push("--runtime-dir".to_owned());
        argv.push(self.runtime.display().to_string());
        argv
    }

    /// Runs an `espada` command against this daemon, whatever its outcome.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let argv = self.argv(arguments);
        cmd::output(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn command(&self, arguments: &[&str]) -> Result<String> {
        let argv = self.argv(arguments);
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `espada status --json`.
    pub fn status(&self) -> Result<Value> {
        let text = self.command(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("`espada status` gave no JSON: {text}"))
    }

    /// The part of the status that is about the connection.
    pub fn connection(&self) -> Result<Value> {
        let status = self.status()?;
        let connections = status["connections"]
            .as_array()
            .with_context(|| format!("no connections in {status}"))?;
        connections
            .iter()
            .find(|connection| connection["name"] == CONNECTION)
            .cloned()
            .with_context(|| format!("no connection {CONNECTION} in {status}"))
    }

    /// `espada status` for people.
    pub fn status_text(&self) -> Result<String> {
        self.command(&["status"])
    }

    /// `espada up`.
    pub fn up(&self) -> Result<String> {
        self.command(&["up", CONNECTION])
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `espada down`.
    pub fn down(&self) -> Result<String> {
        self.command(&["down", CONNECTION])
    }

    /// Waits until the connection has a child SA and gives its status.
    pub fn wait_established(&self) -> Result<Value> {
        self.wait_connection("the tunnel", |connection| {
            connection["state"] == "established"
                && connection["children"]
                    .as_array()
                    .is_some_and(|list| !list.is_empty())
        })
    }

    /// Waits until the connection's status satisfies `test` and gives it.
    pub fn wait_connection(&self, what: &str, test: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        cmd::wait_for(what, Duration::from_secs(20), || {
            last = self.connection()?;
            Ok(test(&last).then(|| last.clone()))
        })
        .with_context(|| format!("last status: {last:#}"))
    }

    /// Waits until the last negotiation failed and gives `last_error`.
    pub fn wait_refusal(&self) -> Result<Value> {
        let connection = self.wait_connection("a refusal in the status", |connection| {
            connection["last_error"].is_object()
        })?;
        Ok(connection["last_error"].clone())
    }

    /// What the daemon logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the log has a text.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        cmd::wait_for(
            &format!("\"{text}\" in the log"),
            Duration::from_secs(10),
            || Ok(self.log().contains(text).then_some(())),
        )
        .with_context(|| self.log())
    }

    /// How the daemon ended, once it has.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit)
    }

    /// SIGTERM, and the daemon's exit status.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// SIGKILL: nothing is tidied up and no DELETE is sent.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Its control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The folder with configuration, secrets, log and runtime directory.
    pub fn files(&self) -> &Path {
        self.config.parent().unwrap_or(&self.config)
    }

    /// Leaves the daemon running when this value is dropped (it was started detached).
    pub fn keep(&mut self) {
        self.process.keep();
    }
}
