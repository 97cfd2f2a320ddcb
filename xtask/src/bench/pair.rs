//! Espada at both gateways as a measurement needs it: brought up, and checked to carry the packets
//! the way that was asked for.

use anyhow::{Result, anyhow, bail, ensure};
use espada_tests::cmd;
use espada_tests::espada::{self, Config, Espada};
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, child, count};
use espada_tests::topology::Line;
use serde_json::Value;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Engine at both gateways.
    pub engine: &'static str,
    /// ESP proposal.
    pub suite: &'static str,
    /// More lines of the `[dataplane]` section.
    pub dataplane: &'static str,
    /// More lines of the connection's section.
    pub connection: &'static str,
    /// `udp` or `esp`, where that matters.
    pub encapsulation: Option<&'static str>,
    /// Whether AF_XDP must be there or must not, where that matters.
    pub xsk: Option<bool>,
    /// Packets must go past the kernel on the LAN as well.
    pub bypass: bool,
}

/// Two daemons with a tunnel between them.
#[derive(Debug)]
pub struct Pair {
    gateways: [Espada; 2],
    wanted: Wanted,
}

impl Pair {
    /// Starts both and brings the tunnel up; an error says in a sentence what the daemon said.
    pub fn start(line: &Line, work: &WorkDir, wanted: Wanted) -> Result<Self> {
        let global = format!("engine = \"{}\"\n{}", wanted.engine, wanted.dataplane);
        let config_a = Config {
            global: &global,
            esp: wanted.suite,
            extra: wanted.connection,
            ..scenario::config_a(line)
        };
        let config_b = Config {
            global: &global,
            esp: wanted.suite,
            extra: wanted.connection,
            ..scenario::config_b(line)
        };
        check(&config_a, work)?;
        let b = Espada::start(&line.gw_b, work, &config_b, false).map_err(last_words)?;
        let a = Espada::start(&line.gw_a, work, &config_a, false).map_err(last_words)?;
        up(&a)?;
        a.wait_established()?;
        b.wait_established()?;
        Ok(Self {
            gateways: [a, b],
            wanted,
        })
    }

    /// Whether what was asked for is what carries the packets: a tunnel that another engine, suite
    /// or port carries, or traffic past it, must not be measured under a wrong name.
    pub fn still_carries(&self) -> Result<()> {
        for gateway in &self.gateways {
            let connection = gateway.connection()?;
            carries(&self.wanted, &gateway.status()?, child(&connection))?;
        }
        Ok(())
    }
}

fn carries(wanted: &Wanted, status: &Value, child: &Value) -> Result<()> {
    ensure!(
        child["suite"]
            .as_str()
            .is_some_and(|text| text.starts_with(wanted.suite)),
        "the SA's suite is {}",
        child["suite"]
    );
    // Where SAs can have engines of their own, they say so.
    let carrier = child["engine"].as_str().or(status["engine"].as_str());
    ensure!(
        carrier == Some(wanted.engine),
        "the SA is carried by {}",
        carrier.unwrap_or("nobody")
    );
    if let Some(encapsulation) = wanted.encapsulation {
        ensure!(
            child["encapsulation"] == encapsulation,
            "the SA's encapsulation is {}, not {encapsulation}",
            child["encapsulation"]
        );
    }
    let has_xsk = !status["interfaces"]["xsk"].is_null();
    match wanted.xsk {
        Some(true) => ensure!(has_xsk, "there is no AF_XDP socket"),
        Some(false) => ensure!(!has_xsk, "there are AF_XDP sockets"),
        None => {}
    }
    if wanted.bypass {
        let lan = &status["interfaces"]["lan"][0];
        ensure!(
            count(&lan["received"]) > 0 && count(&lan["sent"]) > 0,
            "packets do not go past the kernel on the LAN: {lan}"
        );
    }
    for direction in ["inbound", "outbound"] {
        ensure!(
            count(&child[direction]["packets"]) > 0,
            "no packet was counted {direction}: {child:#}"
        );
    }
    Ok(())
}

/// Brings the tunnel up; an error is what the daemon says in a sentence.
fn up(gateway: &Espada) -> Result<()> {
    let Err(error) = gateway.up() else {
        return Ok(());
    };
    let connection = gateway.connection()?;
    match connection["last_error"]["summary"].as_str() {
        Some(summary) => bail!("{summary}"),
        None => Err(error),
    }
}

/// What this program says of a configuration; a name of an engine that it does not know is refused
/// here.
fn check(config: &Config<'_>, work: &WorkDir) -> Result<()> {
    let files = work.file("check");
    Espada::write_files(&files, &config.render(), &config.render_secrets())?;
    let binary = espada::binary()?.display().to_string();
    let file = files.join("espada.toml").display().to_string();
    let output = cmd::output(&[&binary, "check", &file])?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty());
    // The folder's name says nothing to the reader.
    let first = first.unwrap_or("refused without a word");
    let prefix = format!("{}/", files.display());
    bail!("{}", first.replace(&prefix, ""))
}

/// Of a daemon that did not start, what it said last.
fn last_words(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    anyhow!(
        "the daemon does not start: {}",
        last.unwrap_or(&text).trim()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NATIVE: Wanted = Wanted {
        engine: "userspace",
        suite: "aes256gcm16",
        dataplane: "",
        connection: "",
        encapsulation: Some("esp"),
        xsk: Some(true),
        bypass: false,
    };

    #[test]
    fn another_way_than_the_one_asked_for_is_refused() {
        let status = json!({"engine": "userspace", "interfaces": {"xsk": {"queues": 1}}});
        let child = json!({"suite": "aes256gcm16-esn", "encapsulation": "esp",
            "inbound": {"packets": 1}, "outbound": {"packets": 2}});
        carries(&NATIVE, &status, &child).unwrap();
        for (pointer, value, said) in [
            ("/suite", json!("chacha20poly1305"), "suite"),
            ("/encapsulation", json!("udp"), "encapsulation"),
            ("/inbound/packets", json!(0), "inbound"),
            ("/engine", json!("ebpf"), "carried by ebpf"),
        ] {
            let mut other = child.clone();
            match other.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => other["engine"] = value,
            }
            let error = carries(&NATIVE, &status, &other).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let raw = json!({"engine": "userspace", "interfaces": {"xsk": null}});
        let error = carries(&NATIVE, &raw, &child).unwrap_err().to_string();
        assert!(error.contains("no AF_XDP"), "{error}");
    }
}
