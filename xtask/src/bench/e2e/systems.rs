//! The systems that are compared, and how each is put between the two networks.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use espada_tests::openvpn::OpenVpn;
use espada_tests::peer::{Connection, Peer};
use espada_tests::process::WorkDir;
use espada_tests::scenario;
use espada_tests::strongswan::{self, Kind, StrongSwan};
use espada_tests::topology::{Line, addr};
use espada_tests::wireguard::WireGuard;
use espada_tests::{cmd, espada, traffic};

use super::bare::Bare;
use super::install;
use crate::bench::machine;
use crate::bench::pair::{Pair, Wanted};
use crate::process::say;

/// The largest packet between client and server: the most that strongSwan's userspace ESP takes,
/// and the same for all.
pub const INNER_MTU: u16 = strongswan::INNER_MTU as u16;
/// With IP and UDP (or ICMP) headers a packet of `INNER_MTU`.
pub const LARGE: usize = INNER_MTU as usize - 28;

const AES: &str = "aes256gcm16";

/// What carries the packets between the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Forwarding without a tunnel: what everything else is compared with.
    Plain,
    /// A TUN device and UDP sockets as Espada uses them, and nothing between them.
    BareTunnel,
    /// Espada's userspace engine, ESP in UDP.
    EspadaUdp,
    /// Espada's userspace engine, native ESP through AF_XDP.
    EspadaEsp,
    /// The same, and past the kernel on the LAN as well.
    EspadaBypass,
    /// Espada's userspace engine, native ESP through raw sockets.
    EspadaRaw,
    /// Espada's eBPF engine.
    EspadaEbpf,
    /// strongSwan with its userspace ESP.
    StrongSwan,
    /// wireguard-go of this machine's distribution.
    WireguardGo,
    /// A newer wireguard-go of Debian's, which uses segmentation offloads.
    WireguardGoGso,
    /// boringtun.
    Boringtun,
    /// OpenVPN without its kernel module.
    OpenVpn,
}

impl System {
    /// All of them in the order of the tables.
    pub const ALL: [Self; 12] = [
        Self::Plain,
        Self::BareTunnel,
        Self::EspadaUdp,
        Self::EspadaEsp,
        Self::EspadaBypass,
        Self::EspadaRaw,
        Self::EspadaEbpf,
        Self::StrongSwan,
        Self::WireguardGo,
        Self::WireguardGoGso,
        Self::Boringtun,
        Self::OpenVpn,
    ];

    /// Its name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::BareTunnel => "bare-tunnel",
            Self::EspadaUdp => "espada-udp",
            Self::EspadaEsp => "espada-esp",
            Self::EspadaBypass => "espada-bypass",
            Self::EspadaRaw => "espada-raw",
            Self::EspadaEbpf => "espada-ebpf",
            Self::StrongSwan => "strongswan",
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGoGso => "wireguard-go-gso",
            Self::Boringtun => "boringtun",
            Self::OpenVpn => "openvpn",
        }
    }

    /// How it carries packets.
    pub fn path(self) -> &'static str {
        match self {
            Self::Plain => "the kernel's forwarding, no tunnel",
            Self::BareTunnel => "a tunnel without encryption: TUN and UDP with GSO",
            Self::EspadaUdp => "userspace engine, AES-256-GCM, ESP in UDP: TUN and UDP with GSO",
            Self::EspadaEsp => "userspace engine, AES-256-GCM, native ESP: TUN and AF_XDP",
            Self::EspadaBypass => "userspace engine, AES-256-GCM, native ESP: AF_XDP on both sides",
            Self::EspadaRaw => "userspace engine, AES-256-GCM, native ESP: TUN and raw sockets",
            Self::EspadaEbpf => "eBPF engine, ChaCha20-Poly1305, native ESP: XDP",
            Self::StrongSwan => "kernel-libipsec, AES-256-GCM, ESP in UDP: TUN",
            Self::WireguardGo => "wireguard-go of the distribution, ChaCha20-Poly1305: TUN",
            Self::WireguardGoGso => "newer wireguard-go, ChaCha20-Poly1305: TUN and UDP with GSO",
            Self::Boringtun => "boringtun-cli, ChaCha20-Poly1305: TUN",
            Self::OpenVpn => "OpenVPN over UDP, AES-256-GCM, no kernel module: TUN",
        }
    }

    /// Whether outsiders must not be able to read what it carries.
    pub fn encrypts(self) -> bool {
        !matches!(self, Self::Plain | Self::BareTunnel)
    }

    /// Whether all that it sends must be IKE or ESP.
    pub fn is_ipsec(self) -> bool {
        self == Self::StrongSwan || self.wanted().is_some()
    }

    /// Why it cannot run here, if it cannot.
    pub fn missing(self) -> Option<String> {
        let programs = match self {
            Self::StrongSwan => return strongswan::missing(),
            Self::WireguardGo | Self::WireguardGoGso | Self::Boringtun => {
                vec![self.program(), PathBuf::from("wg")]
            }
            Self::OpenVpn => vec![self.program(), PathBuf::from("openssl")],
            _ => Vec::new(),
        };
        let missing = programs
            .iter()
            .map(|program| program.display().to_string())
            .find(|program| !cmd::have(program))?;
        Some(format!(
            "{missing} is not installed (`cargo xtask bench e2e --setup` installs it)"
        ))
    }

    fn program(self) -> PathBuf {
        match self {
            Self::WireguardGo => PathBuf::from("wireguard-go"),
            Self::WireguardGoGso => install::wireguard_go_gso(),
            Self::Boringtun => install::boringtun(),
            Self::OpenVpn => PathBuf::from("openvpn"),
            _ => PathBuf::from(strongswan::CHARON),
        }
    }

    /// What it calls itself.
    pub fn version(self) -> Result<String> {
        let (program, argument) = match self {
            Self::Plain => return Ok(format!("Linux {}", machine::kernel())),
            Self::BareTunnel => return Ok("of this source tree".to_owned()),
            _ if self.wanted().is_some() => (espada::binary()?, "version"),
            _ => (self.program(), "--version"),
        };
        let output = cmd::output(&[&program.display().to_string(), argument])?;
        // The exit codes of `--version` differ.
        let said = String::from_utf8_lossy(&output.stdout);
        let first = said.lines().map(str::trim).find(|line| !line.is_empty());
        let first = first.unwrap_or("version unknown");
        Ok(first.split(" [").next().unwrap_or(first).to_owned())
    }

    /// Espada's way, of those systems that are Espada.
    fn wanted(self) -> Option<Wanted> {
        let userspace = Wanted {
            engine: "userspace",
            suite: AES,
            dataplane: "",
            connection: scenario::NATIVE,
            encapsulation: Some("esp"),
            xsk: None,
            bypass: false,
        };
        match self {
            Self::EspadaUdp => Some(Wanted {
                connection: "encapsulation = \"udp\"",
                encapsulation: Some("udp"),
                ..userspace
            }),
            Self::EspadaEsp => Some(Wanted {
                xsk: Some(true),
                ..userspace
            }),
            Self::EspadaBypass => Some(Wanted {
                dataplane: "lan = [\"lan0\"]",
                xsk: Some(true),
                bypass: true,
                ..userspace
            }),
            Self::EspadaRaw => Some(Wanted {
                dataplane: "xsk = \"off\"",
                xsk: Some(false),
                ..userspace
            }),
            Self::EspadaEbpf => Some(Wanted {
                engine: "ebpf",
                suite: "chacha20poly1305",
                ..userspace
            }),
            _ => None,
        }
    }

    /// Puts it between the networks.
    pub fn start<'l>(self, line: &'l Line, work: &WorkDir) -> Result<Running<'l>> {
        if let Some(wanted) = self.wanted() {
            return Ok(Running::Espada(Pair::start(line, work, wanted)?));
        }
        let program = self.program().display().to_string();
        Ok(match self {
            Self::StrongSwan => Running::StrongSwan(strongswan_pair(line, work)?),
            Self::WireguardGo | Self::WireguardGoGso => {
                let daemon = [program.as_str(), "--foreground"];
                Running::WireGuard(WireGuard::pair(line, work, &daemon, INNER_MTU)?)
            }
            Self::Boringtun => {
                let daemon = [
                    program.as_str(),
                    "--foreground",
                    "--disable-drop-privileges",
                ];
                Running::WireGuard(WireGuard::pair(line, work, &daemon, INNER_MTU)?)
            }
            Self::OpenVpn => Running::OpenVpn(OpenVpn::pair(line, work, INNER_MTU)?),
            Self::BareTunnel => Running::Bare(Bare::pair(line, work)?),
            _ => {
                line.add_plain_routes()?;
                Running::Plain(line)
            }
        })
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn strongswan_pair(line: &Line, work: &WorkDir) -> Result<[StrongSwan; 2]> {
    let b = Connection {
        local: addr::WAN_B,
        remote: addr::WAN_A,
        local_id: "b.example",
        remote_id: "a.example",
        ike: "aes256gcm16-prfsha256-x25519",
        esp: AES,
        local_ts: addr::LAN_B,
        remote_ts: addr::LAN_A,
        psk: espada::PSK,
        pki: None,
        ike_extra: "",
        extra: "",
    };
    let a = Connection {
        local: b.remote,
        remote: b.local,
        local_id: b.remote_id,
        remote_id: b.local_id,
        local_ts: b.remote_ts,
        remote_ts: b.local_ts,
        ..b.clone()
    };
    let b = StrongSwan::start(&line.gw_b, work, &b, Kind::Libipsec, false)?;
    let a = StrongSwan::start(&line.gw_a, work, &a, Kind::Libipsec, false)?;
    a.initiate()?;
    b.wait_established()?;
    Ok([a, b])
}

/// A system between the networks; dropping it takes it away.
pub enum Running<'l> {
    /// Nothing but routes.
    Plain(&'l Line),
    /// Two daemons.
    Espada(Pair),
    /// Two daemons.
    StrongSwan([StrongSwan; 2]),
    /// Two daemons.
    WireGuard([WireGuard; 2]),
    /// Two daemons.
    OpenVpn([OpenVpn; 2]),
    /// Two programs.
    Bare([Bare; 2]),
}

impl Running<'_> {
    /// An error unless every daemon is still there and says that it carries the packets as it
    /// should, as far as it can say.
    pub fn still_carries(&mut self) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Espada(pair) => pair.still_carries(),
            Self::StrongSwan(pair) => pair.iter().try_for_each(Peer::wait_established),
            Self::WireGuard(pair) => pair.iter_mut().try_for_each(WireGuard::must_run),
            Self::OpenVpn(pair) => pair.iter_mut().try_for_each(OpenVpn::must_run),
            Self::Bare(pair) => pair.iter_mut().try_for_each(Bare::must_run),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Self::Plain(line) = self
            && let Err(error) = line.remove_plain_routes()
        {
            say(format_args!("the plain routes stay: {error:#}"));
        }
    }
}

/// Echo requests of ordinary size and of the largest that must pass, with this pattern in them.
/// Gives how many were answered.
pub fn pings(line: &Line, pattern: &[u8; 16]) -> Result<u32> {
    let hex: String = pattern.iter().map(|octet| format!("{octet:02x}")).collect();
    let size = LARGE.to_string();
    let mut answered = 0;
    for (what, options) in [
        ("", &["-p", &hex][..]),
        (
            " of 1400 octets that must not be fragmented",
            &["-p", &hex, "-M", "do", "-s", &size],
        ),
    ] {
        let ping = traffic::ping(&line.client, addr::SERVER, 20, options)?;
        ensure!(
            ping.is_complete(),
            "echo requests{what} were lost: {ping:?}"
        );
        answered += ping.received;
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn espada_is_told_from_its_peers() {
        for system in System::ALL {
            let espada = system.name().starts_with("espada-");
            assert_eq!(system.wanted().is_some(), espada, "{system}");
            let in_clear = [System::Plain, System::BareTunnel].contains(&system);
            assert_eq!(system.encrypts(), !in_clear);
            assert!(!espada || system.is_ipsec());
        }
        assert!(!System::OpenVpn.is_ipsec());
    }
}
