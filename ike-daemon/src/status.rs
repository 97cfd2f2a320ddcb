//! What `espada status` reports: the JSON that scripts read and the text that people read,
//! both from one structure.

mod text;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use espada_common::drops::DropReason;
use espada_common::sa::{Encapsulation, Mode};
use espada_dataplane::userspace::LanStatus;
use serde::{Deserialize, Serialize};

/// Drops by reason, without the reasons that did not occur.
pub type Drops = BTreeMap<String, u64>;

/// Everything a daemon says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Espada's version.
    pub version: String,
    /// Engine that carries ESP.
    pub engine: String,
    /// Why this one.
    pub engine_reason: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Every engine that was asked for, those that do not run last.
    #[serde(default)]
    pub engines: Vec<Engine>,
    /// Interfaces in use.
    pub interfaces: Interfaces,
    /// Configured connections, in the order of the file.
    pub connections: Vec<Connection>,
    /// Packets dropped outside any one SA.
    pub drops: DropReport,
    /// IKE datagrams not acted on, by reason.
    pub ike_drops: Drops,
    /// Negotiations that wait for their initiator to prove who it is.
    #[serde(default)]
    pub half_open: usize,
    /// Initiators that had to show first that they receive at their address.
    #[serde(default)]
    pub cookies_sent: u64,
}

/// An engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// `userspace`, `ebpf` or `xfrm`.
    pub name: String,
    /// Its plaintext interface; `null` if it does not run.
    pub interface: Option<String>,
    /// Why it does not run.
    pub reason: Option<String>,
}

/// Interfaces in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interfaces {
    /// The plaintext interface.
    pub tun: Option<String>,
    /// Where the front end's programs sit.
    pub front_end: Vec<Attachment>,
    /// AF_XDP sockets for native ESP.
    pub xsk: Option<Xsk>,
    /// Lanes of the userspace engine, each of an outbound and an inbound thread; `null` where it does
    /// not run.
    pub workers: Option<usize>,
    /// LAN interfaces whose packets into and out of tunnels were to go past the kernel.
    #[serde(default)]
    pub lan: Vec<Lan>,
}

/// A LAN interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    /// Its name.
    pub interface: String,
    /// Why its packets go through the kernel; `null` if they go past it.
    pub reason: Option<String>,
    /// Receive queues with an AF_XDP socket.
    pub queues: usize,
    /// The driver hands packets over without copying.
    pub zero_copy: bool,
    /// Packets from it taken past the kernel.
    pub received: u64,
    /// Packets to it sent past the kernel.
    pub sent: u64,
}

impl From<&LanStatus> for Lan {
    fn from(lan: &LanStatus) -> Self {
        let interface = lan.interface.clone();
        match &lan.state {
            Ok(xsk) => Self {
                interface,
                reason: None,
                queues: xsk.queues,
                zero_copy: xsk.zero_copy,
                received: xsk.counters.received.load(Ordering::Relaxed),
                sent: xsk.counters.sent.load(Ordering::Relaxed),
            },
            Err(reason) => Self {
                interface,
                reason: Some(reason.clone()),
                ..Self::default()
            },
        }
    }
}

/// AF_XDP sockets for native ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xsk {
    /// Receive queues that have one.
    pub queues: usize,
    /// The driver hands packets over without copying.
    pub zero_copy: bool,
}

/// A program of the front end on an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// How it is attached, such as `native` or `generic`.
    pub mode: String,
    /// Where: `xdp`, `tc ingress` or `tc egress`.
    pub hook: String,
}

/// Packets dropped outside any one SA, by reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DropReport {
    /// On the way in, by the engine.
    pub inbound: Drops,
    /// On the way out, by the engine.
    pub outbound: Drops,
    /// By the front end.
    pub front_end: Drops,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// `established`, `connecting`, `down`, `trap` or `refused`.
    pub state: String,
    /// Seconds until it is tried again.
    pub retry_s: Option<u64>,
    /// Its IKE SA.
    pub ike: Option<IkeSa>,
    /// Its child SAs.
    pub children: Vec<ChildSa>,
    /// What went wrong last, until it is established.
    pub last_error: Option<LastError>,
}

/// An IKE SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IkeSa {
    /// 16 hexadecimal digits.
    pub spi_initiator: String,
    /// 16 hexadecimal digits.
    pub spi_responder: String,
    /// Proposal keywords.
    pub suite: String,
    /// `initiator` or `responder`.
    pub role: String,
    /// Our address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// Our identity.
    pub local_id: Option<String>,
    /// The peer's identity, once proven.
    pub remote_id: Option<String>,
    /// NATs found on the path.
    pub nat: Nat,
    /// Virtual addresses that one end has from the other.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// Seconds since it was established.
    pub age_s: u64,
    /// Seconds until it is rekeyed.
    pub next_rekey_s: Option<u64>,
    /// Milliseconds from the first message until it was established.
    pub establish_ms: Option<u64>,
}

/// Virtual addresses that one end has from the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// `us` if the peer gave them to us, `peer` if it has them from us.
    pub of: String,
    /// The addresses.
    pub addresses: Vec<String>,
    /// Name servers that go with them.
    pub dns: Vec<String>,
}

/// NATs found on the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    /// In front of us.
    pub local: bool,
    /// In front of the peer.
    pub remote: bool,
}

/// A pair of ESP SAs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChildSa {
    /// The data plane's name for it.
    pub id: u64,
    /// Proposal keywords.
    pub suite: String,
    /// `esp` or `udp`.
    pub encapsulation: String,
    /// Why ESP goes in UDP: `nat`, `configured` or `agreed` (both gateways prefer it).
    pub udp_reason: Option<String>,
    /// `tunnel` or `transport`.
    pub mode: String,
    /// Which of the packets between its subnets it carries: `whole`, and with SAs for single processors
    /// `fallback`, `processor N` or `peer` (it receives only).
    pub share: String,
    /// The engine that carries it.
    pub engine: Option<String>,
    /// Engines that were asked before it, each with the reason why it does not carry this pair.
    pub passed_over: Vec<String>,
    /// Selectors on our side.
    pub local_ts: Vec<String>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<String>,
    /// Seconds since it was installed.
    pub age_s: u64,
    /// Seconds until it is rekeyed.
    pub next_rekey_s: Option<u64>,
    /// What we receive.
    pub inbound: HalfSa,
    /// What we send.
    pub outbound: HalfSa,
}

/// One direction of a pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HalfSa {
    /// `0x` and 8 hexadecimal digits.
    pub spi: String,
    /// Inner packets carried.
    pub packets: u64,
    /// Their octets.
    pub bytes: u64,
    /// Drops by reason.
    pub drops: Drops,
    /// What the front end's BPF maps counted on the WAN, where there is a front end.
    pub wire: Option<Counters>,
}

/// Packets and octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Octets of their IP packets.
    pub bytes: u64,
}

/// A refused negotiation or a data plane that refused an SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// The protocol's name, such as `NO_PROPOSAL_CHOSEN`, or `DATAPLANE`.
    pub kind: String,
    /// One line: what happened.
    pub summary: String,
    /// The comparison, line by line.
    pub details: Vec<String>,
    /// What to change.
    pub fix: Option<Fix>,
}

/// `tunnel` or `transport`.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Tunnel => "tunnel",
        Mode::Transport => "transport",
    }
}

/// The setting that would cure an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fix {
    /// Dotted name.
    pub setting: String,
    /// `file:line`.
    pub origin: Option<String>,
    /// Its value now, as written.
    pub current: Option<String>,
    /// What to make it.
    pub suggested: String,
}

impl From<&espada_ike::Refusal> for LastError {
    fn from(refusal: &espada_ike::Refusal) -> Self {
        Self {
            kind: refusal.kind.name(),
            summary: refusal.summary.clone(),
            details: refusal.details.clone(),
            fix: refusal.fix.as_ref().map(|fix| Fix {
                setting: fix.setting.clone(),
                origin: match (&fix.file, fix.line) {
                    (Some(file), Some(line)) => Some(format!("{file}:{line}")),
                    (file, _) => file.clone(),
                },
                current: fix.current.clone(),
                suggested: fix.suggestion.clone(),
            }),
        }
    }
}

/// The counters that are not zero, by name.
pub fn nonzero_drops(counts: &[u64; DropReason::COUNT]) -> Drops {
    DropReason::ALL
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), *count))
        .collect()
}

/// `esp` or `udp`, the words of JSON and logs.
pub const fn encapsulation_name(encapsulation: Encapsulation) -> &'static str {
    match encapsulation {
        Encapsulation::Esp => "esp",
        Encapsulation::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        Report {
            version: "0.1.0".into(),
            engine: "userspace".into(),
            engine_reason: "chosen by engine = \"auto\"".into(),
            uptime_s: 7265,
            engines: vec![Engine {
                name: "userspace".into(),
                interface: Some("espada0".into()),
                reason: None,
            }],
            interfaces: Interfaces {
                tun: Some("espada0".into()),
                front_end: vec![Attachment {
                    interface: "eth0".into(),
                    mode: "native".into(),
                    hook: "xdp".into(),
                }],
                xsk: Some(Xsk {
                    queues: 1,
                    zero_copy: false,
                }),
                workers: Some(2),
                lan: vec![
                    Lan {
                        interface: "eth1".into(),
                        queues: 2,
                        zero_copy: true,
                        received: 12,
                        sent: 34,
                        ..Lan::default()
                    },
                    Lan {
                        interface: "br0".into(),
                        reason: Some("XDP in the driver: not supported by the driver".into()),
                        ..Lan::default()
                    },
                ],
            },
            connections: vec![
                Connection {
                    name: "azure".into(),
                    state: "established".into(),
                    retry_s: None,
                    ike: Some(IkeSa {
                        spi_initiator: "0011223344556677".into(),
                        spi_responder: "8899aabbccddeeff".into(),
                        suite: "aes256-sha256-modp2048".into(),
                        role: "initiator".into(),
                        local: "10.0.0.4:4500".into(),
                        remote: "20.240.192.55:4500".into(),
                        local_id: Some("40.113.59.156".into()),
                        remote_id: Some("20.240.192.55".into()),
                        lease: None,
                        nat: Nat {
                            local: true,
                            remote: false,
                        },
                        age_s: 61,
                        next_rekey_s: Some(14_000),
                        establish_ms: Some(84),
                    }),
                    children: vec![ChildSa {
                        id: 1,
                        suite: "aes256-sha256".into(),
                        encapsulation: "udp".into(),
                        udp_reason: Some("agreed".into()),
                        mode: "tunnel".into(),
                        share: "whole".into(),
                        engine: Some("userspace".into()),
                        passed_over: vec!["ebpf: carries chacha20poly1305 only".into()],
                        local_ts: vec!["10.0.0.0/24".into()],
                        remote_ts: vec!["10.240.10.0/24".into()],
                        age_s: 61,
                        next_rekey_s: Some(3300),
                        inbound: HalfSa {
                            spi: "0xc0000001".into(),
                            packets: 10,
                            bytes: 840,
                            drops: [("replay".to_owned(), 2)].into(),
                            wire: Some(Counters {
                                packets: 12,
                                bytes: 1_632,
                            }),
                        },
                        outbound: HalfSa {
                            spi: "0xd0000002".into(),
                            packets: 1_000_000,
                            bytes: 1_400_000_000,
                            ..HalfSa::default()
                        },
                    }],
                    last_error: None,
                },
                Connection {
                    name: "branch".into(),
                    state: "refused".into(),
                    retry_s: Some(8),
                    ike: None,
                    children: Vec::new(),
                    last_error: Some(LastError {
                        kind: "NO_PROPOSAL_CHOSEN".into(),
                        summary: "the peer refused every proposal".into(),
                        details: vec!["offered  aes128-sha1".into()],
                        fix: Some(Fix {
                            setting: "esp".into(),
                            origin: Some("gw.toml:14".into()),
                            current: Some("\"aes128-sha1\"".into()),
                            suggested: "change it to \"aes256-sha256\"".into(),
                        }),
                    }),
                },
            ],
            drops: DropReport {
                front_end: [("unknown_spi".to_owned(), 7)].into(),
                ..DropReport::default()
            },
            ike_drops: Drops::new(),
            half_open: 0,
            cookies_sent: 0,
        }
    }

    #[test]
    fn text_for_people() {
        let expected = "\
Espada 0.1.0, engine userspace (chosen by engine = \"auto\"), up 2h1m
plaintext interface espada0; front end: eth0 xdp (native); AF_XDP on 1 queue(s), copying; 2 lane(s)
LAN eth1: past the kernel on 2 queue(s), zero copy: 12 packets in, 34 out
LAN br0: through the kernel, as XDP in the driver: not supported by the driver

azure: established for 1m1s
  IKE aes256-sha256-modp2048, initiator, established in 84 ms, rekey in 3h53m
    SPIs 0011223344556677_i 8899aabbccddeeff_r
    local  10.0.0.4:4500 as 40.113.59.156, behind a NAT
    remote 20.240.192.55:4500 as 20.240.192.55
  ESP in UDP (agreed by both gateways) aes256-sha256, tunnel mode, up 1m1s, rekey in 55m
    10.0.0.0/24 === 10.240.10.0/24
    carried by the userspace engine
      not by ebpf: carries chacha20poly1305 only
    in  0xc0000001         10 packets      840 B   on the wire         12 packets     1632 B
    out 0xd0000002    1000000 packets     1.4 GB
    dropped inbound: 2 replay (duplicates or heavy reordering on the path; a larger replay_window helps against reordering)

branch: refused, tried again in 8s
  NO_PROPOSAL_CHOSEN: the peer refused every proposal
      offered  aes128-sha1
    to fix: gw.toml:14: esp = \"aes128-sha1\"; change it to \"aes256-sha256\"

dropped by the front end: 7 unknown_spi (the peer still uses an SA we do not have; it should notice by DPD, or run `espada up` again)
";
        assert_eq!(sample().to_text(), expected);
    }

    #[test]
    fn json_keeps_the_promised_names() {
        let json = serde_json::to_value(sample()).unwrap();
        let azure = &json["connections"][0];
        assert_eq!(azure["ike"]["nat"]["local"], true);
        assert_eq!(azure["ike"]["establish_ms"], 84);
        assert_eq!(azure["children"][0]["inbound"]["wire"]["packets"], 12);
        assert!(azure["children"][0]["outbound"]["wire"].is_null());
        assert_eq!(azure["children"][0]["inbound"]["drops"]["replay"], 2);
        assert!(azure["last_error"].is_null());
        assert_eq!(
            json["connections"][1]["last_error"]["fix"]["origin"],
            "gw.toml:14"
        );
        assert_eq!(json["interfaces"]["front_end"][0]["hook"], "xdp");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), sample());
    }

    #[test]
    fn only_reasons_that_occurred() {
        let mut counts = [0; DropReason::COUNT];
        counts[DropReason::Replay as usize] = 3;
        assert_eq!(
            nonzero_drops(&counts),
            Drops::from([("replay".to_owned(), 3)])
        );
    }
}
