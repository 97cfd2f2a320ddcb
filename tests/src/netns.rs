//! Network namespaces and what is inside them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::{cleanup, cmd, syscall};

/// A network namespace of our own, removed with everything that runs in it when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    keep: bool,
}

impl Netns {
    /// Makes the namespace, with its loopback up and forwarding off.
    pub fn new(name: &str) -> Result<Self> {
        cleanup::start();
        cleanup::register_namespace(name);
        if let Err(error) = cmd::run(&["ip", "netns", "add", name]) {
            cleanup::forget_namespace(name);
            return Err(error);
        }
        let netns = Self {
            name: name.to_owned(),
            path: Path::new("/run/netns").join(name),
            keep: false,
        };
        // Duplicate address detection would keep link-local addresses, which neighbour discovery
        // for forwarded packets is sent from, unusable for the first two seconds.
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("ipv6/conf/default/dad_transmits", "0")?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the namespace (and what runs in it) there when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
        cleanup::forget_namespace(&self.name);
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        let mut argv = vec!["ip", "-n", &self.name];
        argv.extend_from_slice(arguments);
        cmd::run(&argv)
    }

    /// Runs `ip -json` inside and parses its answer.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut argv = vec!["-json"];
        argv.extend_from_slice(arguments);
        let text = self.ip(&argv)?;
        serde_json::from_str(text.trim())
            .with_context(|| format!("`ip {}` gave no JSON: {text}", argv.join(" ")))
    }

    /// The command line that runs `argv` inside. `nsenter` and not `ip netns exec`: the latter
    /// mounts a new /sys, which hides the BPF file system.
    pub fn argv<'a>(&'a self, argv: &[&'a str]) -> Result<Vec<String>> {
        let path = self.path.to_str().context("a namespace path in UTF-8")?;
        let mut all = vec![
            "nsenter".to_owned(),
            format!("--net={path}"),
            "--".to_owned(),
        ];
        all.extend(argv.iter().map(|&argument| argument.to_owned()));
        Ok(all)
    }

    /// The command line that runs a shell script inside, with mounts of its own that end with it. The
    /// script finds `program` in its arguments.
    pub fn argv_with_mounts<'a>(
        &'a self,
        script: &'a str,
        program: &[&'a str],
    ) -> Result<Vec<String>> {
        let unshare = ["unshare", "--mount", "--propagation", "private"];
        let shell = ["sh", "-c", script, "sh"];
        self.argv(&[&unshare, &shell, program].concat())
    }

    /// Runs a command inside; failure carries its output.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let argv = self.argv(argv)?;
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a command inside, whatever its outcome.
    pub fn output(&self, argv: &[&str]) -> Result<Output> {
        let argv = self.argv(argv)?;
        cmd::output(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Calls `work` on a new thread that stands inside the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    syscall::enter_netns(&self.path)
                        .with_context(|| format!("cannot enter {}", self.path.display()))?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread inside {} panicked", self.name))?
        })
    }

    /// Sets a variable under /proc/sys/net, for example `ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| {
            std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
        })
    }

    /// Switches forwarding on for both families.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("ipv4/ip_forward", "1")?;
        self.sysctl("ipv6/conf/all/forwarding", "1")
    }

    /// Joins this namespace to another by a veth pair of MTU 1500, both ends up.
    pub fn link(&self, device: &str, peer: &Netns, peer_device: &str) -> Result<()> {
        cmd::run(&[
            "ip",
            "link",
            "add",
            device,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            peer_device,
            "netns",
            &peer.name,
        ])?;
        self.ip(&["link", "set", device, "up"])?;
        peer.ip(&["link", "set", peer_device, "up"])?;
        Ok(())
    }

    /// Gives a device addresses (with prefix length), usable at once.
    pub fn addresses(&self, device: &str, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let mut arguments = vec!["addr", "add", address, "dev", device];
            if address.contains(':') {
                arguments.push("nodad");
            }
            self.ip(&arguments)?;
        }
        Ok(())
    }

    /// Adds a route.
    pub fn route(&self, destination: &str, via: &str) -> Result<()> {
        self.ip(&["route", "add", destination, "via", via])
            .map(drop)
    }

    /// Removes a route.
    pub fn remove_route(&self, destination: &str) -> Result<()> {
        self.ip(&[family_flag(destination), "route", "del", destination])
            .map(drop)
    }

    /// Destinations and devices of the routes of both families, as `destination dev device`.
    pub fn routes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for family in ["-4", "-6"] {
            let routes = self.ip_json(&[family, "route", "show"])?;
            for route in routes.as_array().context("a list of routes")? {
                let field = |name: &str| route[name].as_str().unwrap_or("-").to_owned();
                found.push(format!("{} dev {}", field("dst"), field("dev")));
            }
        }
        Ok(found)
    }

    /// What the kernel knows of a device, or nothing when there is no such device.
    pub fn device(&self, device: &str) -> Result<Option<Value>> {
        let links = self.ip_json(&["-details", "-statistics", "link", "show"])?;
        Ok(links
            .as_array()
            .context("a list of links")?
            .iter()
            .find(|link| link["ifname"] == device)
            .cloned())
    }

    /// Index of a device.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        let link = self
            .device(device)?
            .with_context(|| format!("no device {device}"))?;
        let index = link["ifindex"]
            .as_u64()
            .context("a device without an index")?;
        Ok(u32::try_from(index)?)
    }

    /// Ethernet address of a device.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let link = self
            .device(device)?
            .with_context(|| format!("no device {device}"))?;
        let text = link["address"]
            .as_str()
            .context("a device without an address")?;
        let octets: Vec<u8> = text
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16))
            .collect::<std::result::Result<_, _>>()?;
        match octets.try_into() {
            Ok(mac) => Ok(mac),
            Err(_) => bail!("{text} is no Ethernet address"),
        }
    }

    /// Frames that a device has received and sent.
    pub fn frames(&self, device: &str) -> Result<(u64, u64)> {
        let link = self
            .device(device)?
            .with_context(|| format!("no device {device}"))?;
        let count = |direction: &str| {
            link["stats64"][direction]["packets"]
                .as_u64()
                .with_context(|| format!("no {direction} counter of {device}"))
        };
        Ok((count("rx")?, count("tx")?))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep && !cleanup::is_interrupted() {
            cleanup::remove_namespace(&self.name);
        }
    }
}

fn family_flag(destination: &str) -> &'static str {
    let address = destination.split('/').next().unwrap_or(destination);
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => "-6",
        _ => "-4",
    }
}
