//! The report for people.

use std::fmt::{self, Write as _};
use std::time::Duration;

use espada_common::drops::DropReason;

use super::{ChildSa, Connection, DropReport, Drops, IkeSa, Lan, LastError, Report};
use crate::config::show_duration;

/// Several lines: what happened, the comparison, the cure.
impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.summary)?;
        for line in &self.details {
            write!(f, "\n    {line}")?;
        }
        if let Some(fix) = &self.fix {
            f.write_str("\n  to fix: ")?;
            if let Some(origin) = &fix.origin {
                write!(f, "{origin}: ")?;
            }
            match &fix.current {
                Some(current) => write!(f, "{} = {current}", fix.setting)?,
                None => write!(f, "{} is not set", fix.setting)?,
            }
            write!(f, "; {}", fix.suggested)?;
        }
        Ok(())
    }
}

/// Copies or none, in words.
const fn copies(zero_copy: bool) -> &'static str {
    if zero_copy { "zero copy" } else { "copying" }
}

fn hint(name: &str) -> Option<&'static str> {
    DropReason::ALL
        .iter()
        .find(|reason| reason.name() == name)
        .map(|reason| reason.hint())
}

fn show_seconds(seconds: u64) -> String {
    // Above an hour nobody counts seconds.
    show_duration(Duration::from_secs(if seconds >= 3600 {
        seconds / 60 * 60
    } else {
        seconds
    }))
}

fn show_bytes(bytes: u64) -> String {
    if bytes < 10_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

fn drop_lines(text: &mut String, indent: &str, place: &str, drops: &Drops) {
    for (name, count) in drops {
        let _ = write!(text, "{indent}dropped {place}: {count} {name}");
        if let Some(hint) = hint(name) {
            let _ = write!(text, " ({hint})");
        }
        text.push('\n');
    }
}

impl Report {
    /// For people: compact, and silent about what is as it should be.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "Espada {}, engine {} ({}), up {}",
            self.version,
            self.engine,
            self.engine_reason,
            show_seconds(self.uptime_s)
        );
        if let Some(tun) = &self.interfaces.tun {
            let _ = write!(text, "plaintext interface {tun}");
            for (index, program) in self.interfaces.front_end.iter().enumerate() {
                let separator = if index == 0 { "; front end: " } else { ", " };
                let _ = write!(
                    text,
                    "{separator}{} {} ({})",
                    program.interface, program.hook, program.mode
                );
            }
            if let Some(xsk) = self.interfaces.xsk {
                let copies = copies(xsk.zero_copy);
                let _ = write!(text, "; AF_XDP on {} queue(s), {copies}", xsk.queues);
            }
            if let Some(workers) = self.interfaces.workers {
                let _ = write!(text, "; {workers} lane(s)");
            }
            text.push('\n');
        }
        for lan in &self.interfaces.lan {
            lan.write_text(&mut text);
        }
        for engine in &self.engines {
            if let Some(reason) = &engine.reason {
                let _ = writeln!(text, "engine {} is left out: {reason}", engine.name);
            }
        }
        if self.connections.is_empty() {
            text.push_str("no connections are configured\n");
        }
        for connection in &self.connections {
            text.push('\n');
            connection.write_text(&mut text);
        }
        if self.half_open > 0 {
            let _ = writeln!(
                text,
                "\n{} negotiations wait for their initiators ({} had to show with a cookie that they receive)",
                self.half_open, self.cookies_sent
            );
        }
        if self.drops != DropReport::default() || !self.ike_drops.is_empty() {
            text.push('\n');
            drop_lines(&mut text, "", "inbound", &self.drops.inbound);
            drop_lines(&mut text, "", "outbound", &self.drops.outbound);
            drop_lines(&mut text, "", "by the front end", &self.drops.front_end);
            drop_lines(&mut text, "", "by IKE", &self.ike_drops);
        }
        text
    }
}

impl Lan {
    fn write_text(&self, text: &mut String) {
        let _ = match &self.reason {
            Some(reason) => writeln!(
                text,
                "LAN {}: through the kernel, as {reason}",
                self.interface
            ),
            None => writeln!(
                text,
                "LAN {}: past the kernel on {} queue(s), {}: {} packets in, {} out",
                self.interface,
                self.queues,
                copies(self.zero_copy),
                self.received,
                self.sent
            ),
        };
    }
}

impl Connection {
    fn write_text(&self, text: &mut String) {
        let _ = write!(text, "{}: {}", self.name, self.state);
        if let (Some(ike), "established") = (&self.ike, self.state.as_str()) {
            let _ = write!(text, " for {}", show_seconds(ike.age_s));
        }
        if let Some(seconds) = self.retry_s {
            let _ = write!(text, ", tried again in {}", show_seconds(seconds));
        }
        text.push('\n');
        if let Some(ike) = &self.ike {
            ike.write_text(text);
        }
        for child in &self.children {
            child.write_text(text);
        }
        if let Some(error) = &self.last_error {
            for line in error.to_string().lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
}

impl IkeSa {
    fn write_text(&self, text: &mut String) {
        let suite = if self.suite.is_empty() {
            "not negotiated yet"
        } else {
            &self.suite
        };
        let _ = write!(text, "  IKE {suite}, {}", self.role);
        if let Some(milliseconds) = self.establish_ms {
            let _ = write!(text, ", established in {milliseconds} ms");
        }
        if let Some(seconds) = self.next_rekey_s {
            let _ = write!(text, ", rekey in {}", show_seconds(seconds));
        }
        let _ = writeln!(
            text,
            "\n    SPIs {}_i {}_r",
            self.spi_initiator, self.spi_responder
        );
        for (side, address, id, nat) in [
            ("local ", &self.local, &self.local_id, self.nat.local),
            ("remote", &self.remote, &self.remote_id, self.nat.remote),
        ] {
            let _ = write!(text, "    {side} {address}");
            if let Some(id) = id {
                let _ = write!(text, " as {id}");
            }
            text.push_str(if nat { ", behind a NAT\n" } else { "\n" });
        }
        if let Some(lease) = &self.lease {
            let whose = match lease.of.as_str() {
                "us" => "we have",
                _ => "the peer has",
            };
            let _ = write!(text, "    {whose} {} from", lease.addresses.join(", "));
            text.push_str(match lease.of.as_str() {
                "us" => " the peer",
                _ => " us",
            });
            if !lease.dns.is_empty() {
                let _ = write!(text, ", name servers {}", lease.dns.join(", "));
            }
            text.push('\n');
        }
    }
}

impl ChildSa {
    fn write_text(&self, text: &mut String) {
        let carrier = match (self.encapsulation.as_str(), self.udp_reason.as_deref()) {
            ("udp", Some("agreed")) => "ESP in UDP (agreed by both gateways)",
            ("udp", Some("configured")) => "ESP in UDP (as configured)",
            ("udp", Some("nat")) => "ESP in UDP (NAT on the path)",
            ("udp", _) => "ESP in UDP",
            _ => "ESP",
        };
        let _ = write!(
            text,
            "  {carrier} {}, {} mode, up {}",
            self.suite,
            self.mode,
            show_seconds(self.age_s)
        );
        if self.share != "whole" {
            let _ = write!(text, ", for {}", self.share);
        }
        if let Some(seconds) = self.next_rekey_s {
            let _ = write!(text, ", rekey in {}", show_seconds(seconds));
        }
        let _ = writeln!(
            text,
            "\n    {} === {}",
            self.local_ts.join(", "),
            self.remote_ts.join(", ")
        );
        if let Some(engine) = &self.engine {
            let _ = writeln!(text, "    carried by the {engine} engine");
        }
        for reason in &self.passed_over {
            let _ = writeln!(text, "      not by {reason}");
        }
        for (direction, half) in [("in ", &self.inbound), ("out", &self.outbound)] {
            let _ = write!(
                text,
                "    {direction} {} {:>10} packets {:>10}",
                half.spi,
                half.packets,
                show_bytes(half.bytes)
            );
            if let Some(wire) = half.wire {
                let _ = write!(
                    text,
                    "   on the wire {:>10} packets {:>10}",
                    wire.packets,
                    show_bytes(wire.bytes)
                );
            }
            text.push('\n');
        }
        drop_lines(text, "    ", "inbound", &self.inbound.drops);
        drop_lines(text, "    ", "outbound", &self.outbound.drops);
    }
}
