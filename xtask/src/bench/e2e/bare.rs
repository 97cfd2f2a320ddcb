//! The tunnel without protection at both gateways: what is left of a gateway in userspace when nothing is
//! encrypted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use espada_tests::cmd;
use espada_tests::netns::Netns;
use espada_tests::process::{Process, WorkDir};
use espada_tests::topology::{Line, addr};

use super::systems::INNER_MTU;
use crate::{build, process};

const DEVICE: &str = "bare0";
const PORT: u16 = 4789;
const EXAMPLE: &str = "bare-tunnel";

fn program() -> PathBuf {
    process::target_dir().join("release/examples").join(EXAMPLE)
}

/// Builds the program of this source tree.
pub fn build() -> Result<()> {
    build::build_example("espada-dataplane", EXAMPLE)
}

/// One gateway's end.
pub struct Bare(Process);

impl Bare {
    /// Starts both ends and routes the IPv4 networks behind them through the tunnel.
    pub fn pair(line: &Line, work: &WorkDir) -> Result<[Self; 2]> {
        let a = Self::start(&line.gw_a, work, [addr::WAN_A, addr::WAN_B], addr::LAN_B)?;
        let b = Self::start(&line.gw_b, work, [addr::WAN_B, addr::WAN_A], addr::LAN_A)?;
        Ok([a, b])
    }

    fn start(netns: &Netns, work: &WorkDir, ends: [&str; 2], network: &str) -> Result<Self> {
        let program = program().display().to_string();
        let [local, remote] = ends.map(|address| format!("{address}:{PORT}"));
        let argv = netns.argv(&[&program, DEVICE, &local, &remote])?;
        let name = format!("{EXAMPLE} in {}", netns.name());
        let log = work.file(&format!("{EXAMPLE}-{}-log", netns.name()));
        let mut process = Process::start(&name, &argv, &[], &log, false)?;
        let mtu = INNER_MTU.to_string();
        cmd::wait_for("the bare tunnel's device", Duration::from_secs(10), || {
            process.must_run()?;
            Ok(netns.ip(&["link", "set", DEVICE, "mtu", &mtu, "up"]).ok())
        })
        .with_context(|| process.log())?;
        netns.ip(&["route", "add", network, "dev", DEVICE])?;
        Ok(Self(process))
    }

    /// An error with the log when it is no longer there.
    pub fn must_run(&mut self) -> Result<()> {
        self.0.must_run()
    }
}
