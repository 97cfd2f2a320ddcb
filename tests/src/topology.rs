//! The line of namespaces that everything runs in: client, gateway A, gateway B, server. There is
//! no default route and no link to the machine's own namespace: nothing can leave.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::capture::{self, Capture};
use crate::cleanup::PREFIX;
use crate::cmd;
use crate::netns::Netns;
use crate::process::WorkDir;

/// The device of every gateway that looks to the other gateway.
pub const WAN_DEVICE: &str = "wan0";
/// The device of every gateway that looks to its own network.
pub const LAN_DEVICE: &str = "lan0";

/// Addresses of the line.
pub mod addr {
    /// Network behind gateway A.
    pub const LAN_A: &str = "10.61.1.0/24";
    /// Network behind gateway B.
    pub const LAN_B: &str = "10.61.2.0/24";
    /// IPv6 network behind gateway A.
    pub const LAN_A6: &str = "fd61:1::/64";
    /// IPv6 network behind gateway B.
    pub const LAN_B6: &str = "fd61:2::/64";
    /// Gateway A in its own network.
    pub const GW_A_LAN: &str = "10.61.1.1";
    /// Gateway B in its own network.
    pub const GW_B_LAN: &str = "10.61.2.1";
    /// Gateway A in its own IPv6 network.
    pub const GW_A_LAN6: &str = "fd61:1::1";
    /// Gateway B in its own IPv6 network.
    pub const GW_B_LAN6: &str = "fd61:2::1";
    /// The client.
    pub const CLIENT: &str = "10.61.1.2";
    /// The server.
    pub const SERVER: &str = "10.61.2.2";
    /// The client.
    pub const CLIENT6: &str = "fd61:1::2";
    /// The server.
    pub const SERVER6: &str = "fd61:2::2";
    /// Gateway A on the link between the gateways.
    pub const WAN_A: &str = "198.18.0.1";
    /// Gateway B on the link between the gateways.
    pub const WAN_B: &str = "198.18.0.2";
    /// Gateway A on the link between the gateways.
    pub const WAN_A6: &str = "fd61:ff::1";
    /// Gateway B on the link between the gateways.
    pub const WAN_B6: &str = "fd61:ff::2";
    /// Gateway A behind the NAT router, which then has `WAN_A` outside.
    pub const PRIVATE_A: &str = "192.168.61.2";
    /// The NAT router towards gateway A.
    pub const PRIVATE_ROUTER: &str = "192.168.61.1";
}

/// What lies between the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wan {
    /// One link.
    Direct,
    /// An Ethernet switch, at which everything can be seen and anything be injected.
    Switch,
    /// A router that hides gateway A behind its own address and ports of its choice (masquerading).
    Nat,
}

/// Client, gateway A, gateway B and server, joined and addressed.
#[derive(Debug)]
pub struct Line {
    /// The host behind gateway A.
    pub client: Netns,
    /// Gateway A.
    pub gw_a: Netns,
    /// Gateway B.
    pub gw_b: Netns,
    /// The host behind gateway B.
    pub server: Netns,
    /// The switch or router between the gateways.
    pub middle: Option<Netns>,
    wan: Wan,
}

impl Line {
    /// Makes the namespaces under names that no other run uses.
    pub fn new(wan: Wan) -> Result<Self> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("{PREFIX}{}-{run}-", std::process::id()), wan)
    }

    /// Makes the namespaces under names with this prefix.
    pub fn named(prefix: &str, wan: Wan) -> Result<Self> {
        let netns = |role: &str| Netns::new(&format!("{prefix}{role}"));
        let line = Self {
            client: netns("client")?,
            gw_a: netns("gwa")?,
            gw_b: netns("gwb")?,
            server: netns("server")?,
            middle: match wan {
                Wan::Direct => None,
                Wan::Switch => Some(netns("switch")?),
                Wan::Nat => Some(netns("nat")?),
            },
            wan,
        };
        line.join_lans()?;
        match &line.middle {
            None => line.gw_a.link(WAN_DEVICE, &line.gw_b, WAN_DEVICE)?,
            Some(middle) => {
                for (port, gateway) in [("to-a", &line.gw_a), ("to-b", &line.gw_b)] {
                    middle.link(port, gateway, WAN_DEVICE)?;
                    // A veth takes what an XDP program at its other end sends only with GRO, unlike
                    // the network cards that it stands for.
                    middle.run(&["ethtool", "-K", port, "gro", "on"])?;
                }
            }
        }
        if let (Wan::Switch, Some(switch)) = (wan, &line.middle) {
            switch.ip(&[
                "link",
                "add",
                "wire",
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ])?;
            for port in ["to-a", "to-b"] {
                switch.sysctl(&format!("ipv6/conf/{port}/disable_ipv6"), "1")?;
                switch.ip(&["link", "set", port, "master", "wire"])?;
            }
            switch.sysctl("ipv6/conf/wire/disable_ipv6", "1")?;
            switch.ip(&["link", "set", "wire", "up"])?;
        }
        line.address_wan()?;
        Ok(line)
    }

    fn join_lans(&self) -> Result<()> {
        for (host, host_addresses, gateway, gateway_addresses) in [
            (
                &self.client,
                ["10.61.1.2/24", "fd61:1::2/64"],
                &self.gw_a,
                ["10.61.1.1/24", "fd61:1::1/64"],
            ),
            (
                &self.server,
                ["10.61.2.2/24", "fd61:2::2/64"],
                &self.gw_b,
                ["10.61.2.1/24", "fd61:2::1/64"],
            ),
        ] {
            host.link("eth0", gateway, LAN_DEVICE)?;
            gateway.forward()?;
            host.addresses("eth0", &host_addresses)?;
            gateway.addresses(LAN_DEVICE, &gateway_addresses)?;
        }
        self.client.route(addr::LAN_B, addr::GW_A_LAN)?;
        self.client.route(addr::LAN_B6, addr::GW_A_LAN6)?;
        self.server.route(addr::LAN_A, addr::GW_B_LAN)?;
        self.server.route(addr::LAN_A6, addr::GW_B_LAN6)
    }

    fn address_wan(&self) -> Result<()> {
        self.gw_b.addresses(WAN_DEVICE, &["198.18.0.2/30"])?;
        if let (Wan::Nat, Some(router)) = (self.wan, &self.middle) {
            router.forward()?;
            router.addresses("to-a", &["192.168.61.1/24"])?;
            router.addresses("to-b", &["198.18.0.1/30"])?;
            self.gw_a.addresses(WAN_DEVICE, &["192.168.61.2/24"])?;
            self.gw_a.route("198.18.0.0/30", addr::PRIVATE_ROUTER)?;
            return router
                .run(&[
                    "nft",
                    "table ip nat { chain out { type nat hook postrouting priority srcnat; \
                     oifname \"to-b\" masquerade fully-random; }; }",
                ])
                .map(drop);
        }
        self.gw_b.addresses(WAN_DEVICE, &["fd61:ff::2/64"])?;
        self.gw_a
            .addresses(WAN_DEVICE, &["198.18.0.1/30", "fd61:ff::1/64"])
    }

    /// Address of gateway A on its WAN device.
    pub fn wan_a(&self) -> &'static str {
        match self.wan {
            Wan::Nat => addr::PRIVATE_A,
            Wan::Direct | Wan::Switch => addr::WAN_A,
        }
    }

    /// True when gateway A is behind a NAT router.
    pub fn middle_is_nat(&self) -> bool {
        self.wan == Wan::Nat
    }

    /// Routes between the networks without a tunnel, for measurements of plain forwarding.
    pub fn add_plain_routes(&self) -> Result<()> {
        if self.wan == Wan::Nat {
            bail!("there is no plain forwarding through the NAT router");
        }
        self.gw_a.route(addr::LAN_B, addr::WAN_B)?;
        self.gw_b.route(addr::LAN_A, addr::WAN_A)
    }

    /// Takes back what `add_plain_routes` did.
    pub fn remove_plain_routes(&self) -> Result<()> {
        self.gw_a.remove_route(addr::LAN_B)?;
        self.gw_b.remove_route(addr::LAN_A)
    }

    /// Has client and server send each other IPv4 packets of at most `mtu` octets, whatever the
    /// tunnel between them would carry.
    pub fn limit_inner(&self, mtu: u16) -> Result<()> {
        let (mtu, mss) = (mtu.to_string(), mtu.saturating_sub(40).to_string());
        for (host, network, gateway) in [
            (&self.client, addr::LAN_B, addr::GW_A_LAN),
            (&self.server, addr::LAN_A, addr::GW_B_LAN),
        ] {
            host.ip(&[
                "route", "replace", network, "via", gateway, "mtu", &mtu, "advmss", &mss,
            ])?;
        }
        Ok(())
    }

    /// Switches segmentation and receive offloads off at both ends of every link, so that packets
    /// cross it one by one (`Wan::Direct` only).
    pub fn without_offloads(&self) -> Result<()> {
        for (netns, devices) in [
            (&self.client, &["eth0"][..]),
            (&self.gw_a, &[LAN_DEVICE, WAN_DEVICE]),
            (&self.gw_b, &[WAN_DEVICE, LAN_DEVICE]),
            (&self.server, &["eth0"]),
        ] {
            for device in devices {
                netns.run(&[
                    "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off",
                ])?;
            }
        }
        Ok(())
    }

    /// Puts an IP packet on gateway A's WAN link as if gateway B had sent it (`Wan::Switch` only).
    pub fn inject_to_a(&self, packet: &[u8]) -> Result<()> {
        let mut packets = Some(packet.to_vec());
        self.inject_all_to_a(|| packets.take()).map(drop)
    }

    /// The same with packets as long as `next` makes any; gives how many.
    pub fn inject_all_to_a(&self, mut next: impl FnMut() -> Option<Vec<u8>> + Send) -> Result<u64> {
        let switch = match (self.wan, &self.middle) {
            (Wan::Switch, Some(switch)) => switch,
            _ => bail!("packets are injected at the switch, and there is none"),
        };
        let mac = self.gw_a.mac(WAN_DEVICE)?;
        let port = switch.ifindex("to-a")?;
        switch.enter(|| {
            let mut link = crate::syscall::LinkSender::open(port, mac)?;
            let mut sent = 0;
            while let Some(packet) = next() {
                link.send(&packet).context("cannot inject a packet")?;
                sent += 1;
            }
            Ok(sent)
        })
    }

    /// Records what passes between the gateways. `filter` is tcpdump's language, empty for all.
    ///
    /// Without a switch or router in between, both gateways record what they receive and send;
    /// AF_XDP frames are not visible there, so `capture::Recording::complete` matters.
    pub fn capture(&self, work: &WorkDir, filter: &str) -> Result<Vec<Capture>> {
        match &self.middle {
            Some(middle) => Ok(vec![Capture::start(middle, "to-b", work, filter)?]),
            None => [&self.gw_a, &self.gw_b]
                .into_iter()
                .map(|gateway| Capture::start(gateway, WAN_DEVICE, work, filter))
                .collect(),
        }
    }

    /// Leaves the namespaces there when this value is dropped.
    pub fn keep(&mut self) {
        for netns in [
            &mut self.client,
            &mut self.gw_a,
            &mut self.gw_b,
            &mut self.server,
        ] {
            netns.keep();
        }
        if let Some(middle) = &mut self.middle {
            middle.keep();
        }
    }
}

/// What the harness needs of the machine, as a list of what is missing.
pub fn missing_programs() -> Vec<&'static str> {
    [
        "ethtool", "ip", "nsenter", "ping", "tcpdump", "iperf3", "nft",
    ]
    .into_iter()
    .filter(|program| !cmd::have(program))
    .collect()
}

/// Stops captures and gives all their packets.
pub fn finish(captures: Vec<Capture>) -> Result<Vec<capture::Packet>> {
    let mut packets = Vec::new();
    for capture in captures {
        packets.extend(capture.finish()?);
    }
    Ok(packets)
}
