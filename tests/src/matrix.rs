//! Cases that run for every engine of Espada, and the lines by which `cargo xtask test` counts them.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::espada::{self, Config, Espada, PSK};
use crate::process::WorkDir;
use crate::{cmd, skip};

/// Begins every line; what follows is `engine=E peer=P case=C RESULT`.
pub const MARK: &str = "MATRIX: ";

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and all was as it should be.
    Passed,
    /// It cannot run here, for this reason.
    Skipped(String),
}

/// Runs a case and reports it: skipped where end-to-end tests cannot run or Espada refuses the
/// engine. `setting` is a line of the connection that Espada must know as well.
pub fn case(
    engine: &str,
    peer: &str,
    case: &str,
    setting: &'static str,
    run: impl FnOnce() -> Result<Outcome>,
) -> Result<()> {
    let reason = crate::cannot_run().or_else(|| refused(engine, setting));
    let outcome = match reason {
        Some(reason) => Ok(Outcome::Skipped(reason)),
        None => run(),
    };
    let result = match &outcome {
        Ok(Outcome::Passed) => "ok",
        Ok(Outcome::Skipped(_)) => "skipped",
        Err(_) => "failed",
    };
    // One write, as for skipped tests; the leading line feed ends what libtest has begun.
    let line = format!("\n{MARK}engine={engine} peer={peer} case={case} {result}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    match outcome? {
        Outcome::Passed => {}
        Outcome::Skipped(reason) => skip(&format!("{peer} {case} {engine}"), &reason),
    }
    Ok(())
}

/// The line of Espada's `[dataplane]` section that chooses an engine.
pub fn engine_setting(engine: &str) -> &'static str {
    match engine {
        "userspace" => "engine = \"userspace\"",
        "ebpf" => "engine = \"ebpf\"",
        "xfrm" => "engine = \"xfrm\"",
        _ => "engine = \"auto\"",
    }
}

/// Why this Espada does not take an engine and a line of a connection, in its own words, if it does
/// not.
pub fn refused(engine: &str, setting: &'static str) -> Option<String> {
    type Answers = HashMap<(String, &'static str), Option<String>>;
    static ANSWERS: Mutex<Option<Answers>> = Mutex::new(None);
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    answers
        .get_or_insert_default()
        .entry((engine.to_owned(), setting))
        .or_insert_with(|| match ask(engine, setting) {
            Ok(answer) => answer,
            Err(error) => Some(format!("{error:#}")),
        })
        .clone()
}

fn ask(engine: &str, setting: &str) -> Result<Option<String>> {
    let work = WorkDir::new()?;
    let config = Config {
        local: "192.0.2.1",
        local_id: "a.example",
        local_subnets: &["192.0.2.1/32"],
        remote: "192.0.2.2",
        remote_id: "b.example",
        remote_subnets: &["192.0.2.2/32"],
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "chacha20poly1305",
        start: "none",
        extra: setting,
        global: engine_setting(engine),
        psk: PSK,
        local_auth: "",
        remote_auth: "",
    };
    let files = work.file("check");
    Espada::write_files(&files, &config.render(), &config.render_secrets())?;
    let binary = espada::binary()?;
    let file = files.join("espada.toml");
    let output = cmd::output(&[
        binary.to_str().context("a path in UTF-8")?,
        "check",
        file.to_str().context("a path in UTF-8")?,
    ])?;
    if output.status.success() {
        return Ok(None);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said
        .lines()
        .find_map(|line| Some(line.split_once("error: ")?.1))
        .with_context(|| format!("`espada check` failed without an error: {said}"))?;
    Ok(Some(format!("engine {engine}: {said}")))
}
