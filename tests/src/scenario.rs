//! Two gateways of Espada at the line's ends: what most end-to-end tests start from.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::capture::{self, Packet};
use crate::espada::{Config, Espada, PSK};
use crate::process::WorkDir;
use crate::topology::{self, Line, Wan, addr};
use crate::traffic;

/// Identity of gateway A.
pub const ID_A: &str = "a.example";
/// Identity of gateway B.
pub const ID_B: &str = "b.example";

/// The line of a connection that keeps two Espadas, which would agree on ESP in UDP, to native ESP.
pub const NATIVE: &str = "encapsulation = \"esp\"";

/// Gateway A's configuration on a line: the initiator, both families inside, IPv4 outside.
pub fn config_a(line: &Line) -> Config<'static> {
    Config {
        local: line.wan_a(),
        local_id: ID_A,
        local_subnets: &[addr::LAN_A, addr::LAN_A6],
        remote: addr::WAN_B,
        remote_id: ID_B,
        local_auth: "",
        remote_auth: "",
        remote_subnets: &[addr::LAN_B, addr::LAN_B6],
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "aes256gcm16",
        start: "none",
        extra: "",
        global: "",
        psk: PSK,
    }
}

/// Gateway B's configuration on a line: waits for A.
pub fn config_b(line: &Line) -> Config<'static> {
    let a = config_a(line);
    Config {
        local: a.remote,
        local_id: a.remote_id,
        local_subnets: a.remote_subnets,
        remote: if line.middle_is_nat() {
            "%any"
        } else {
            a.local
        },
        remote_id: a.local_id,
        remote_subnets: a.local_subnets,
        ..a
    }
}

/// Two running daemons. Fields are dropped in this order: daemons before their namespaces.
#[derive(Debug)]
pub struct Gateways {
    /// The daemon of gateway A.
    pub a: Espada,
    /// The daemon of gateway B.
    pub b: Espada,
    /// The namespaces.
    pub line: Line,
    /// Files of both daemons and of captures.
    pub work: WorkDir,
}

impl Gateways {
    /// Starts both daemons; `change` adapts the configurations of A and B first.
    pub fn start(
        wan: Wan,
        change: impl FnOnce(&mut Config<'static>, &mut Config<'static>),
    ) -> Result<Self> {
        let line = Line::new(wan)?;
        let work = WorkDir::new()?;
        let (mut config_a, mut config_b) = (config_a(&line), config_b(&line));
        change(&mut config_a, &mut config_b);
        let b = Espada::start(&line.gw_b, &work, &config_b, false)?;
        let a = Espada::start(&line.gw_a, &work, &config_a, false)?;
        Ok(Self { a, b, line, work })
    }

    /// Starts both daemons and brings the tunnel up from A.
    pub fn established(
        wan: Wan,
        change: impl FnOnce(&mut Config<'static>, &mut Config<'static>),
    ) -> Result<Self> {
        let gateways = Self::start(wan, change)?;
        gateways.up()?;
        Ok(gateways)
    }

    /// Brings the tunnel up from A and waits for both ends.
    pub fn up(&self) -> Result<()> {
        self.a
            .up()
            .with_context(|| format!("gateway B's log:\n{}", self.b.log()))?;
        self.a.wait_established()?;
        self.b.wait_established()?;
        Ok(())
    }

    /// Pings both ways and moves a compared payload both ways, over IPv4 and IPv6.
    pub fn verify_traffic(&self) -> Result<()> {
        verify_v4(&self.line)?;
        verify_v6(&self.line)
    }

    /// Runs `traffic` and gives all that was on the WAN meanwhile.
    pub fn record(&self, traffic: impl FnOnce() -> Result<()>) -> Result<Vec<Packet>> {
        let capture = self.line.capture(&self.work, "")?;
        traffic()?;
        topology::finish(capture)
    }
}

fn verify(line: &Line, client: &str, server: &str) -> Result<()> {
    for (from, to) in [(&line.client, server), (&line.server, client)] {
        let ping = traffic::ping(from, to, 10, &[])?;
        anyhow::ensure!(ping.is_complete(), "echo requests to {to}: {ping:?}");
    }
    traffic::tcp_exchange(&line.client, &line.server, server, 300_000)
        .with_context(|| format!("TCP to {server}"))
}

/// Pings both ways and moves a compared payload both ways over IPv4.
pub fn verify_v4(line: &Line) -> Result<()> {
    verify(line, addr::CLIENT, addr::SERVER)
}

/// Pings both ways and moves a compared payload both ways over IPv6.
pub fn verify_v6(line: &Line) -> Result<()> {
    verify(line, addr::CLIENT6, addr::SERVER6)
}

/// The first child SA in the status of a connection.
pub fn child(connection: &Value) -> &Value {
    &connection["children"][0]
}

/// A counter in a status; one that is not there (drops that did not occur) is 0.
pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Packets that one daemon dropped for a reason, wherever it counted them.
pub fn drops(status: &Value, reason: &str) -> u64 {
    let total: u64 = ["inbound", "outbound", "front_end"]
        .iter()
        .map(|place| count(&status["drops"][place][reason]))
        .sum();
    let of_sas: u64 = status["connections"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|connection| connection["children"].as_array().into_iter().flatten())
        .flat_map(|child| [&child["inbound"], &child["outbound"]])
        .map(|half| count(&half["drops"][reason]))
        .sum();
    total + of_sas
}

/// Fails when anything on the WAN was neither IKE, ESP nor neighbour discovery, or when a payload
/// can be read there.
pub fn ensure_nothing_clear(packets: &[Packet]) -> Result<()> {
    let clear = capture::clear_packets(packets);
    anyhow::ensure!(clear.is_empty(), "in clear on the WAN: {clear:?}");
    anyhow::ensure!(
        !capture::contains(packets, &traffic::payload_start()),
        "the payload can be read on the WAN"
    );
    Ok(())
}

/// Leaves the test, with the reason shown, where end-to-end tests cannot run. Give it the test's
/// name.
#[macro_export]
macro_rules! skip_unless_possible {
    ($test:expr $(, $also:expr)?) => {
        let reason = $crate::cannot_run();
        $(let reason = reason.or_else($also);)?
        if let Some(reason) = reason {
            $crate::skip($test, &reason);
            return Ok(());
        }
    };
}
