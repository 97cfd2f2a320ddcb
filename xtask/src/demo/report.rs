//! What the demo found, for people and for programs.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use espada_tests::traffic::Ping;
use serde_json::{Value, json};

/// The results of one run.
pub struct Report {
    /// What runs at gateway B.
    pub peer: &'static str,
    /// Gateway A's `espada status --json`.
    pub status: Value,
    /// The connection in it.
    pub connection: Value,
    /// The connection at gateway B, null where B is not Espada.
    pub connection_b: Value,
    /// Echo requests through the tunnel.
    pub ping: Ping,
    /// Octets that went each way through TCP and were compared.
    pub payload_bytes: usize,
    /// Gbit/s of one TCP stream through the tunnel.
    pub tunnel_gbps: f64,
    /// The same without the tunnel.
    pub plain_gbps: f64,
    /// Frames recorded on the WAN while the tunnel came up and carried ping and payload.
    pub recorded: usize,
    /// ESP packets among them.
    pub esp: usize,
    /// Packets on the WAN that were neither IKE, ESP nor neighbour discovery.
    pub clear: usize,
    /// Commands for a demo that is kept.
    pub try_these: Vec<String>,
}

/// A direction of a child SA as the BPF maps counted it.
struct Sa {
    gateway: &'static str,
    direction: &'static str,
    spi: String,
    packets: u64,
    bytes: u64,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

impl Report {
    fn child(&self) -> &Value {
        &self.connection["children"][0]
    }

    fn sas(&self) -> Vec<Sa> {
        let mut sas = Vec::new();
        for (gateway, connection) in [("a", &self.connection), ("b", &self.connection_b)] {
            for child in connection["children"].as_array().into_iter().flatten() {
                for (direction, key) in [("out", "outbound"), ("in", "inbound")] {
                    let half = &child[key];
                    let wire = &half["wire"];
                    if let (Some(packets), Some(bytes)) =
                        (wire["packets"].as_u64(), wire["bytes"].as_u64())
                    {
                        let spi = text(&half["spi"]).to_owned();
                        sas.push(Sa {
                            gateway,
                            direction,
                            spi,
                            packets,
                            bytes,
                        });
                    }
                }
            }
        }
        sas
    }

    /// An error unless everything the demo promises was so.
    pub fn verdict(&self) -> Result<()> {
        if !self.ping.is_complete() {
            bail!("echo requests were lost in the tunnel: {:?}", self.ping);
        }
        if self.esp == 0 {
            bail!("no ESP was seen on the WAN");
        }
        if self.clear > 0 {
            bail!("{} packets were in clear on the WAN", self.clear);
        }
        if self.sas().iter().all(|sa| sa.packets == 0) {
            bail!("the BPF maps counted no packet of the SAs");
        }
        Ok(())
    }

    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let ike = &self.connection["ike"];
        let sas: Vec<Value> = self
            .sas()
            .into_iter()
            .map(|sa| {
                json!({
                    "gateway": sa.gateway,
                    "spi": sa.spi,
                    "direction": sa.direction,
                    "packets": sa.packets,
                    "bytes": sa.bytes,
                })
            })
            .collect();
        json!({
            "established": self.connection["state"] == "established",
            "establish_ms": ike["establish_ms"],
            "ike": ike["suite"],
            "esp": self.child()["suite"],
            "encapsulation": self.child()["encapsulation"],
            "engine": self.status["engine"],
            "peer": self.peer,
            "ping": { "sent": self.ping.sent, "received": self.ping.received },
            "payload_bytes_verified_each_way": self.payload_bytes,
            "tcp_gbps": rounded(self.tunnel_gbps),
            "plain_tcp_gbps": rounded(self.plain_gbps),
            "esp_packets_recorded": self.esp,
            "clear_packets_on_wan": self.clear,
            "sas": sas,
        })
    }

    /// Some lines for people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out)
            .unwrap_or_else(|_| out.push_str("(the report could not be written)\n"));
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let ike = &self.connection["ike"];
        let child = self.child();
        let carrier = match text(&child["encapsulation"]) {
            "udp" => "ESP in UDP, port 4500",
            _ => "native ESP, IP protocol 50",
        };
        let milliseconds = &ike["establish_ms"];
        writeln!(
            out,
            "client ── gateway A ══ gateway B ({}) ── server\n",
            self.peer
        )?;
        writeln!(
            out,
            "  tunnel       {} in {milliseconds} ms",
            text(&self.connection["state"])
        )?;
        writeln!(out, "  IKE SA       {}", text(&ike["suite"]))?;
        writeln!(
            out,
            "               SPIs {}_i {}_r",
            text(&ike["spi_initiator"]),
            text(&ike["spi_responder"])
        )?;
        writeln!(out, "  ESP SAs      {}, {carrier}", text(&child["suite"]))?;
        writeln!(out, "  engine       {}", text(&self.status["engine"]))?;
        writeln!(
            out,
            "  ping         {} of {} answered",
            self.ping.received, self.ping.sent
        )?;
        writeln!(
            out,
            "  TCP payload  {} octets each way, every one compared",
            self.payload_bytes
        )?;
        writeln!(
            out,
            "  throughput   {:.2} Gbit/s through the tunnel, {:.2} Gbit/s plain forwarding",
            self.tunnel_gbps, self.plain_gbps
        )?;
        writeln!(
            out,
            "  WAN capture  {} frames, {} of them ESP; {} packets in clear",
            self.recorded, self.esp, self.clear
        )?;
        writeln!(out, "\n  SAs as the BPF maps counted them on the WAN")?;
        for sa in self.sas() {
            writeln!(
                out,
                "    gateway {} {:3} {}  {:>9} packets {:>12} bytes",
                sa.gateway.to_uppercase(),
                sa.direction,
                sa.spi,
                sa.packets,
                sa.bytes
            )?;
        }
        if !self.try_these.is_empty() {
            writeln!(
                out,
                "\n  Left running. Try, as root (the last one removes everything):"
            )?;
            for command in &self.try_these {
                writeln!(out, "    {command}")?;
            }
        }
        Ok(())
    }
}

fn rounded(gbps: f64) -> f64 {
    (gbps * 1000.0).round() / 1000.0
}
