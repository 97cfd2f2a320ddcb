//! What somebody on the WAN or a mistake in routing could do, and that it is refused and counted.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use espada_tests::capture::{Capture, Packet};
use espada_tests::scenario::{Gateways, NATIVE, child, count, drops, ensure_nothing_clear};
use espada_tests::topology::{WAN_DEVICE, Wan, addr};
use espada_tests::{cmd, skip_unless_possible, topology, traffic};
use std::time::Duration;

/// An IPv4 packet with a right header checksum.
pub fn ipv4(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(20 + payload.len())?.to_be_bytes();
    let mut packet = vec![
        0x45, 0, length[0], length[1], 0x12, 0x34, 0, 0, 64, protocol, 0, 0,
    ];
    packet.extend(source.parse::<Ipv4Addr>()?.octets());
    packet.extend(destination.parse::<Ipv4Addr>()?.octets());
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(payload);
    Ok(packet)
}

fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Waits until a daemon has counted at least `expected` drops for a reason.
fn wait_drops(gateways: &Gateways, reason: &str, expected: u64) -> Result<()> {
    let mut last = serde_json::Value::Null;
    cmd::wait_for(
        &format!("{expected} drops as {reason}"),
        Duration::from_secs(5),
        || {
            last = gateways.a.status()?;
            Ok((drops(&last, reason) >= expected).then_some(()))
        },
    )
    .with_context(|| format!("last status: {last:#}"))
}

#[test]
fn unknown_spi_is_dropped_and_counted() -> Result<()> {
    skip_unless_possible!("unknown_spi_is_dropped_and_counted");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let packet = ipv4(addr::WAN_B, addr::WAN_A, 50, &[0xa5; 80])?;
    for _ in 0..7 {
        gateways.line.inject_to_a(&packet)?;
    }
    wait_drops(&gateways, "unknown_spi", 7)?;
    gateways.verify_traffic()
}

/// ESP packets that B sent to A.
fn esp_to_a(packets: &[Packet]) -> Result<Vec<Packet>> {
    let a = addr::WAN_A.parse::<std::net::IpAddr>()?;
    Ok(packets
        .iter()
        .filter(|packet| packet.is_esp() || packet.is_esp_in_udp())
        .filter(|packet| {
            packet
                .header()
                .is_some_and(|header| header.destination == a)
        })
        .cloned()
        .map(without_udp_checksum)
        .collect())
}

/// A packet recorded on a veth link has no finished UDP checksum; none at all is allowed as well
/// (RFC 3948 section 2.1 even asks for it).
fn without_udp_checksum(mut packet: Packet) -> Packet {
    if let (Some(header), true) = (packet.header(), packet.is_esp_in_udp())
        && let Some(checksum) = packet.data.get_mut(header.payload + 6..header.payload + 8)
    {
        checksum.fill(0);
    }
    packet
}

fn replays_are_refused(extra: &'static str) -> Result<()> {
    let gateways = Gateways::established(Wan::Switch, |a, _| a.extra = extra)?;
    let line = &gateways.line;
    let recorded = gateways.record(|| {
        let ping = traffic::ping(&line.client, addr::SERVER, 10, &[])?;
        ensure!(ping.is_complete(), "{ping:?}");
        Ok(())
    })?;
    let esp = esp_to_a(&recorded)?;
    ensure!(esp.len() >= 10, "{} ESP packets to A", esp.len());
    let before = gateways.a.connection()?;
    let carried = count(&child(&before)["inbound"]["packets"]);
    for packet in &esp {
        line.inject_to_a(&packet.data)?;
    }
    wait_drops(&gateways, "replay", esp.len() as u64)?;
    let after = gateways.a.connection()?;
    ensure!(
        count(&child(&after)["inbound"]["packets"]) == carried,
        "a replay was carried"
    );

    // A forged packet far ahead must not move the window: RFC 4303 section 3.4.3.
    let mut forged = esp[0].clone();
    let header = forged.header().context("an IP header")?;
    let esp_header = header.payload + if forged.is_esp() { 0 } else { 8 };
    forged.data[esp_header + 4..esp_header + 8].copy_from_slice(&100_000u32.to_be_bytes());
    line.inject_to_a(&forged.data)?;
    wait_drops(&gateways, "auth_failed", 1)?;
    gateways.verify_traffic()
}

#[test]
fn replayed_esp_is_refused() -> Result<()> {
    skip_unless_possible!("replayed_esp_is_refused");
    replays_are_refused(NATIVE)
}

#[test]
fn replayed_esp_in_udp_is_refused() -> Result<()> {
    skip_unless_possible!("replayed_esp_in_udp_is_refused");
    replays_are_refused("encapsulation = \"udp\"")
}

#[test]
fn clear_text_from_the_wan_is_refused() -> Result<()> {
    skip_unless_possible!("clear_text_from_the_wan_is_refused");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    let mut echo = [8, 0, 0, 0, 0, 1, 0, 1, 0xde, 0xad, 0xbe, 0xef];
    let sum = checksum(&echo).to_be_bytes();
    echo[2..4].copy_from_slice(&sum);
    let packet = ipv4(addr::SERVER, addr::CLIENT, 1, &echo)?;
    let capture = Capture::start(&line.client, "eth0", &gateways.work, "icmp")?;
    for _ in 0..5 {
        line.inject_to_a(&packet)?;
    }
    wait_drops(&gateways, "clear_inbound", 5)?;
    let arrived = topology::finish(vec![capture])?;
    ensure!(
        arrived.is_empty(),
        "clear text from the WAN reached the client: {arrived:?}"
    );
    gateways.verify_traffic()
}

#[test]
fn without_an_sa_nothing_leaves() -> Result<()> {
    skip_unless_possible!("without_an_sa_nothing_leaves");
    let gateways = Gateways::start(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    let packets = gateways.record(|| {
        for server in [addr::SERVER, addr::SERVER6] {
            let ping = traffic::ping(&line.client, server, 5, &[])?;
            ensure!(ping.received == 0, "{ping:?}");
        }
        Ok(())
    })?;
    ensure_nothing_clear(&packets)?;
    wait_drops(&gateways, "no_sa", 10)
}

#[test]
fn a_route_past_the_tunnel_leaks_nothing() -> Result<()> {
    skip_unless_possible!("a_route_past_the_tunnel_leaks_nothing");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    line.gw_a.route("10.61.2.2/32", addr::WAN_B)?;
    let packets = gateways.record(|| {
        let ping = traffic::ping(&line.client, addr::SERVER, 5, &[])?;
        ensure!(ping.received == 0, "{ping:?}");
        Ok(())
    })?;
    ensure_nothing_clear(&packets)?;
    wait_drops(&gateways, "clear_outbound", 5)?;
    line.gw_a.remove_route("10.61.2.2/32")?;
    gateways.verify_traffic()
}

/// A peer that sends from addresses outside the negotiated selectors is stopped at B's SPD; what
/// it could inject into the SA is stopped at A's (see the engine's tests).
#[test]
fn sources_outside_the_selectors_do_not_enter_the_tunnel() -> Result<()> {
    skip_unless_possible!("sources_outside_the_selectors_do_not_enter_the_tunnel");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    line.client.addresses("eth0", &["10.61.9.9/32"])?;
    line.gw_a
        .ip(&["route", "add", "10.61.9.9/32", "dev", topology::LAN_DEVICE])?;
    let packets = gateways.record(|| {
        let ping = traffic::ping(&line.client, addr::SERVER, 5, &["-I", "10.61.9.9"])?;
        ensure!(ping.received == 0, "{ping:?}");
        Ok(())
    })?;
    ensure_nothing_clear(&packets)?;
    wait_drops(&gateways, "no_policy", 5)
}

#[test]
fn front_end_is_where_status_says() -> Result<()> {
    skip_unless_possible!("front_end_is_where_status_says");
    let gateways = Gateways::start(Wan::Switch, |a, _| a.global = "front_end = \"xdp\"")?;
    let status = gateways.a.status()?;
    let attachments = status["interfaces"]["front_end"]
        .as_array()
        .context("no list")?;
    ensure!(!attachments.is_empty(), "{status:#}");
    let device = gateways
        .line
        .gw_a
        .device(WAN_DEVICE)?
        .context("no WAN device")?;
    ensure!(
        device["xdp"].is_object(),
        "no XDP program on the device: {device:#}"
    );
    Ok(())
}
