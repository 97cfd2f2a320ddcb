//! LAN interfaces whose packets go past the gateways' kernels.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espada_tests::cmd::wait_for;
use espada_tests::espada::Espada;
use espada_tests::netns::Netns;
use espada_tests::scenario::{self, Gateways, count, drops, ensure_nothing_clear};
use espada_tests::topology::{LAN_DEVICE, Wan, addr};
use espada_tests::{skip_unless_possible, traffic};
use serde_json::Value;

const BYPASS: &str = "lan = [\"lan0\"]";
const TUN: &str = "espada0";

/// What the daemon says of its LAN interface.
fn lan(end: &Espada) -> Result<Value> {
    Ok(end.status()?["interfaces"]["lan"][0].clone())
}

/// Packets that it took from the LAN and sent to it past the kernel.
fn past(end: &Espada) -> Result<[u64; 2]> {
    let lan = lan(end)?;
    ensure!(lan["reason"].is_null(), "{lan:#}");
    Ok([count(&lan["received"]), count(&lan["sent"])])
}

/// Pings until packets in both directions go past the kernel at these gateways, for both families.
fn wait_until_past(gateways: &Gateways, ends: &[&Espada]) -> Result<()> {
    for server in [addr::SERVER, addr::SERVER6] {
        for end in ends {
            wait_for("packets past the kernel", Duration::from_secs(10), || {
                let before = past(end)?;
                let ping = traffic::ping(&gateways.line.client, server, 5, &[])?;
                let after = past(end)?;
                let all = before
                    .iter()
                    .zip(after)
                    .all(|(before, after)| after >= before + 5);
                Ok((ping.is_complete() && all).then_some(()))
            })
            .with_context(|| format!("{server}: {}", end.log()))?;
        }
    }
    Ok(())
}

/// Datagrams of many sizes to the server and back, every octet compared.
fn udp_of_all_sizes(client: &Netns, server: &Netns, address: &str) -> Result<u64> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let address: IpAddr = address.parse()?;
    let bound = |netns: &Netns, any: SocketAddr| -> Result<UdpSocket> {
        let socket = netns.enter(|| Ok(UdpSocket::bind(any)?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let echo = bound(server, SocketAddr::new(address, 0))?;
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = bound(client, SocketAddr::new(any, 0))?;
    socket.connect(echo.local_addr()?)?;
    let (mut buffer, mut exchanged) = ([0; 2000], 0);
    for size in (0..=64).chain((65..=1300).step_by(61)) {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        socket.send(&sent)?;
        let (length, from) = echo.recv_from(&mut buffer).context("at the server")?;
        ensure!(buffer[..length] == sent, "{size} octets arrived changed");
        echo.send_to(&buffer[..length], from)?;
        let length = socket.recv(&mut buffer).context("back at the client")?;
        ensure!(buffer[..length] == sent, "{size} octets came back changed");
        exchanged += 1;
    }
    Ok(exchanged)
}

/// Traffic of both families and many sizes; at these gateways nothing of it passes the kernel's side.
fn nothing_through_the_kernel(gateways: &Gateways, ends: &[(&Espada, &Netns)]) -> Result<()> {
    let line = &gateways.line;
    let mut before = Vec::new();
    for (end, netns) in ends {
        before.push((netns.frames(TUN)?, past(end)?));
    }
    let mut packets = 0;
    for server in [addr::SERVER, addr::SERVER6] {
        for size in ["0", "1", "56", "300", "1300"] {
            let ping = traffic::ping(&line.client, server, 5, &["-s", size])?;
            ensure!(ping.is_complete(), "{size} octets to {server}: {ping:?}");
            packets += 5;
        }
        packets += udp_of_all_sizes(&line.client, &line.server, server)?;
        traffic::tcp_exchange(&line.client, &line.server, server, 300_000)?;
        packets += 300_000 / 1500;
    }
    for ((end, netns), (frames, counted)) in ends.iter().zip(before) {
        let now = netns.frames(TUN)?;
        // The kernel itself reports groups there (RFC 3810) after a while.
        let own = 4;
        ensure!(
            now.0 == frames.0 && now.1 <= frames.1 + own,
            "{TUN} had {frames:?} frames, then {now:?}"
        );
        let more = past(end)?;
        for (before, after) in counted.iter().zip(more) {
            ensure!(
                after >= before + packets,
                "{counted:?}, {more:?} of {packets}"
            );
        }
    }
    Ok(())
}

fn both() -> Result<Gateways> {
    Gateways::established(Wan::Switch, |a, b| {
        for end in [a, b] {
            end.global = BYPASS;
        }
    })
}

#[test]
fn lan_packets_go_past_both_kernels() -> Result<()> {
    skip_unless_possible!("lan_packets_go_past_both_kernels");
    let gateways = both()?;
    let packets = gateways.record(|| {
        // From here on: before the neighbours are known, packets go through the kernel.
        gateways.verify_traffic()?;
        let (a, b) = (&gateways.a, &gateways.b);
        wait_until_past(&gateways, &[a, b])?;
        let (gw_a, gw_b) = (&gateways.line.gw_a, &gateways.line.gw_b);
        // With checksums left to the links, and without.
        nothing_through_the_kernel(&gateways, &[(a, gw_a), (b, gw_b)])?;
        for host in [&gateways.line.client, &gateways.line.server] {
            let off = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
            host.run(&[&["ethtool", "-K", "eth0"], &off[..]].concat())?;
        }
        nothing_through_the_kernel(&gateways, &[(a, gw_a), (b, gw_b)])
    })?;
    ensure_nothing_clear(&packets)?;
    for end in [&gateways.a, &gateways.b] {
        let text = end.status_text()?;
        ensure!(text.contains("LAN lan0: past the kernel"), "{text}");
    }
    Ok(())
}

#[test]
fn lan_packets_go_past_one_kernel_in_udp() -> Result<()> {
    skip_unless_possible!("lan_packets_go_past_one_kernel_in_udp");
    let gateways = Gateways::established(Wan::Switch, |a, _| {
        a.global = "lan = [\"lan0\"]\nbusy_poll = 20";
        a.extra = "encapsulation = \"udp\"";
    })?;
    wait_until_past(&gateways, &[&gateways.a])?;
    nothing_through_the_kernel(&gateways, &[(&gateways.a, &gateways.line.gw_a)])?;
    gateways.verify_traffic()
}

#[test]
fn what_is_not_only_forwarded_goes_through_the_kernel() -> Result<()> {
    skip_unless_possible!("what_is_not_only_forwarded_goes_through_the_kernel");
    let gateways = both()?;
    let line = &gateways.line;
    wait_until_past(&gateways, &[&gateways.a, &gateways.b])?;
    // The gateways' own addresses, packets too long for the tunnel, and the TTL that ends at a gateway.
    for own in [
        addr::GW_A_LAN,
        addr::GW_B_LAN,
        addr::GW_A_LAN6,
        addr::GW_B_LAN6,
    ] {
        let ping = traffic::ping(&line.client, own, 5, &[])?;
        ensure!(ping.is_complete(), "{own}: {ping:?}");
    }
    for (server, headers) in [(addr::SERVER, 28), (addr::SERVER6, 48)] {
        let told = traffic::ping_df(&line.client, server, 1500 - headers)?;
        ensure!(told.contains("mtu"), "{told}");
        // The server learns what fits from its first answer.
        traffic::ping(&line.client, server, 1, &["-s", "5000"])?;
        let ping = traffic::ping(&line.client, server, 5, &["-s", "5000"])?;
        ensure!(ping.is_complete(), "fragments to {server}: {ping:?}");
    }
    for (ttl, router) in [("1", addr::GW_A_LAN), ("2", addr::GW_B_LAN)] {
        let arguments = ["ping", "-n", "-c", "1", "-W", "2", "-t", ttl, addr::SERVER];
        let output = line.client.output(&arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("Time to live exceeded"), "TTL {ttl}: {text}");
        ensure!(ttl != "1" || text.contains(router), "TTL {ttl}: {text}");
    }
    // Each kernel counts one hop, whichever way a packet takes.
    let output = line
        .client
        .output(&["ping", "-n", "-c", "1", "-W", "2", addr::SERVER])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("ttl=62"), "{text}");

    // A neighbour that the kernel has forgotten is found out by it again.
    line.gw_b.ip(&["neigh", "flush", "dev", LAN_DEVICE])?;
    gateways.verify_traffic()?;
    wait_until_past(&gateways, &[&gateways.b])?;
    // Routes that only the kernel understands.
    line.gw_b
        .ip(&["rule", "add", "to", "192.0.2.0/24", "lookup", "main"])?;
    gateways.b.wait_log("routing rules")?;
    let before = past(&gateways.b)?;
    gateways.verify_traffic()?;
    ensure!(past(&gateways.b)?[1] == before[1], "sent past the kernel");
    Ok(())
}

#[test]
fn nothing_passes_while_the_tunnel_is_down() -> Result<()> {
    skip_unless_possible!("nothing_passes_while_the_tunnel_is_down");
    let gateways = both()?;
    wait_until_past(&gateways, &[&gateways.a, &gateways.b])?;
    gateways.a.down()?;
    gateways
        .b
        .wait_connection("the end of the tunnel", |connection| {
            connection["state"] == "down"
        })?;
    let before = past(&gateways.a)?;
    let packets = gateways.record(|| {
        for server in [addr::SERVER, addr::SERVER6] {
            let ping = traffic::ping(&gateways.line.client, server, 3, &["-W", "1"])?;
            ensure!(ping.received == 0, "{server}: {ping:?}");
        }
        Ok(())
    })?;
    ensure_nothing_clear(&packets)?;
    let status = gateways.a.status()?;
    ensure!(past(&gateways.a)?[0] > before[0], "{status:#}");
    ensure!(drops(&status, "no_sa") >= 6, "{status:#}");
    gateways.up()?;
    gateways.verify_traffic()?;
    wait_until_past(&gateways, &[&gateways.a, &gateways.b])
}

#[test]
fn an_unfit_lan_interface_is_told_of() -> Result<()> {
    skip_unless_possible!("an_unfit_lan_interface_is_told_of");
    for (global, reason) in [
        ("lan = [\"lan9\"]", "there is no such interface"),
        ("lan = [\"lo\"]", "Ethernet"),
        (
            "lan = [\"lan0\"]\nfront_end = \"off\"",
            "there is no front end",
        ),
    ] {
        let gateways = Gateways::established(Wan::Switch, |a, _| a.global = global)?;
        let said = lan(&gateways.a)?;
        let told = said["reason"].as_str().unwrap_or_default();
        ensure!(told.contains(reason), "{said:#}");
        gateways.a.wait_log("go through the kernel, not past it")?;
        scenario::verify_v4(&gateways.line)?;
    }
    Ok(())
}
