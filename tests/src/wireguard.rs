//! WireGuard in userspace at both gateways: any program that makes a TUN device and is told what
//! to do by `wg`, in a mount namespace of its own so that two have control sockets of one name.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cmd;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};
use crate::topology::{Line, addr};

const DEVICE: &str = "wg0";
const PORT: u16 = 51820;

/// One gateway's daemon.
#[derive(Debug)]
pub struct WireGuard {
    process: Process,
    private_key: PathBuf,
    public_key: String,
}

impl WireGuard {
    /// Starts `daemon` (a command line that lacks the device's name and stays in the foreground) at
    /// both gateways, joins them and routes the IPv4 networks behind them through the tunnel.
    pub fn pair(line: &Line, work: &WorkDir, daemon: &[&str], mtu: u16) -> Result<[Self; 2]> {
        let a = Self::start(&line.gw_a, work, daemon)?;
        let b = Self::start(&line.gw_b, work, daemon)?;
        for (own, netns, peer, address, network) in [
            (&a, &line.gw_a, &b, addr::WAN_B, addr::LAN_B),
            (&b, &line.gw_b, &a, addr::WAN_A, addr::LAN_A),
        ] {
            own.join(peer, address, network)?;
            let mtu = mtu.to_string();
            netns.ip(&["link", "set", DEVICE, "mtu", &mtu, "up"])?;
            netns.ip(&["route", "add", network, "dev", DEVICE])?;
        }
        Ok([a, b])
    }

    fn start(netns: &Netns, work: &WorkDir, daemon: &[&str]) -> Result<Self> {
        let file = |what: &str| work.file(&format!("wireguard-{}-{what}", netns.name()));
        let private_key = file("key");
        let script = "umask 077 && wg genkey > \"$1\" && wg pubkey < \"$1\"";
        let path = private_key.display().to_string();
        let public_key = cmd::run(&["sh", "-c", script, "sh", &path])?
            .trim()
            .to_owned();
        let script = "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec \"$@\"";
        let daemon = [daemon, &[DEVICE]].concat();
        let process = Process::start(
            &format!("WireGuard in {}", netns.name()),
            &netns.argv_with_mounts(script, &daemon)?,
            &[],
            &file("log"),
            false,
        )?;
        let mut this = Self {
            process,
            private_key,
            public_key,
        };
        cmd::wait_for("WireGuard's device", Duration::from_secs(10), || {
            this.process.must_run()?;
            Ok(this.wg(&["show", DEVICE]).ok())
        })
        .with_context(|| this.process.log())?;
        Ok(this)
    }

    fn join(&self, peer: &Self, address: &str, network: &str) -> Result<()> {
        let key = self.private_key.display().to_string();
        let port = PORT.to_string();
        let endpoint = format!("{address}:{PORT}");
        self.wg(&[
            "set",
            DEVICE,
            "private-key",
            &key,
            "listen-port",
            &port,
            "peer",
            &peer.public_key,
            "allowed-ips",
            network,
            "endpoint",
            &endpoint,
        ])
        .map(drop)
    }

    /// An error with the log when the daemon is no longer there.
    pub fn must_run(&mut self) -> Result<()> {
        self.process.must_run()
    }

    /// Runs `wg` against this daemon.
    fn wg(&self, arguments: &[&str]) -> Result<String> {
        let target = format!("--target={}", self.process.pid());
        let mut argv = vec!["nsenter", &target, "--mount", "--net", "--", "wg"];
        argv.extend_from_slice(arguments);
        cmd::run(&argv)
    }
}
