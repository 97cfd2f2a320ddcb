//! OpenVPN at both gateways: one peer and the other over UDP, with certificates made for the run
//! and known to each other by their fingerprints.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cmd;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};
use crate::topology::{Line, addr};

const DEVICE: &str = "ovpn0";
/// Ends of the tunnel itself, which carry none of the traffic.
const INSIDE_A: &str = "10.61.9.1";
const INSIDE_B: &str = "10.61.9.2";

/// One gateway's daemon.
#[derive(Debug)]
pub struct OpenVpn {
    process: Process,
}

impl OpenVpn {
    /// Starts it at both gateways and routes the IPv4 networks behind them through the tunnel.
    pub fn pair(line: &Line, work: &WorkDir, mtu: u16) -> Result<[Self; 2]> {
        let dir_a = work.file(&format!("openvpn-{}", line.gw_a.name()));
        let dir_b = work.file(&format!("openvpn-{}", line.gw_b.name()));
        let print_a = certificate(&dir_a, "a.example")?;
        let print_b = certificate(&dir_b, "b.example")?;
        let common = format!(
            "dev {DEVICE}\ndev-type tun\nproto udp4\nport 1194\ntun-mtu {mtu}\nmssfix 0\nfast-io\n\
             disable-dco\ndata-ciphers AES-256-GCM\nreneg-sec 0\nverb 3\n\
             cert cert.pem\nkey key.pem\n"
        );
        let b = Self::start(
            &line.gw_b,
            &dir_b,
            &format!(
                "{common}local {}\nremote {}\nifconfig {INSIDE_B} {INSIDE_A}\ntls-server\ndh none\n\
                 peer-fingerprint {print_a}\n",
                addr::WAN_B,
                addr::WAN_A
            ),
        )?;
        let a = Self::start(
            &line.gw_a,
            &dir_a,
            &format!(
                "{common}local {}\nremote {}\nifconfig {INSIDE_A} {INSIDE_B}\ntls-client\n\
                 peer-fingerprint {print_b}\n",
                addr::WAN_A,
                addr::WAN_B
            ),
        )?;
        let mut pair = [a, b];
        let routes = [(&line.gw_a, addr::LAN_B), (&line.gw_b, addr::LAN_A)];
        for (own, (netns, network)) in pair.iter_mut().zip(routes) {
            cmd::wait_for("OpenVPN's tunnel", Duration::from_secs(20), || {
                own.process.must_run()?;
                let log = own.process.log();
                Ok(log
                    .contains("Initialization Sequence Completed")
                    .then_some(()))
            })
            .with_context(|| own.process.log())?;
            netns.ip(&["route", "add", network, "dev", DEVICE])?;
        }
        Ok(pair)
    }

    /// An error with the log when the daemon is no longer there.
    pub fn must_run(&mut self) -> Result<()> {
        self.process.must_run()
    }

    fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Self> {
        std::fs::write(dir.join("config"), config)?;
        let path = dir.display().to_string();
        let argv = netns.argv(&["openvpn", "--cd", &path, "--config", "config"])?;
        let process = Process::start(
            &format!("OpenVPN in {}", netns.name()),
            &argv,
            &[],
            &dir.join("log"),
            false,
        )?;
        Ok(Self { process })
    }
}

/// Makes a key and a certificate in a new folder and gives the certificate's fingerprint.
fn certificate(dir: &Path, name: &str) -> Result<String> {
    std::fs::create_dir(dir)?;
    let file = |name: &str| dir.join(name).display().to_string();
    let (key, certificate) = (file("key.pem"), file("cert.pem"));
    let subject = format!("/CN={name}");
    cmd::run(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-keyout",
        &key,
        "-out",
        &certificate,
    ])?;
    let print = cmd::run(&[
        "openssl",
        "x509",
        "-in",
        &certificate,
        "-noout",
        "-fingerprint",
        "-sha256",
    ])?;
    let (_, print) = print
        .trim()
        .split_once('=')
        .with_context(|| format!("openssl gave no fingerprint: {print}"))?;
    Ok(print.to_owned())
}
