//! Packets that do not fit: path MTU discovery and TCP's segment size.

use anyhow::{Context, Result, ensure};
use espada_tests::capture::Packet;
use espada_tests::scenario::{Gateways, NATIVE, ensure_nothing_clear};
use espada_tests::topology::{Wan, addr};
use espada_tests::{capture, skip_unless_possible, topology, traffic};

/// The MTU that ping was told.
fn mtu_in(text: &str) -> Result<usize> {
    let rest = text
        .split("mtu=")
        .nth(1)
        .or_else(|| text.split("mtu = ").nth(1))
        .with_context(|| format!("ping was told no MTU:\n{text}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// A full-size packet is answered with an MTU; that size passes, one octet more does not.
fn mtu_is_told_and_right(gateways: &Gateways, to: &str, headers: usize) -> Result<usize> {
    let client = &gateways.line.client;
    let mtu = mtu_in(&traffic::ping_df(client, to, 1500 - headers)?)?;
    // The client's kernel has learned the MTU: only a new route lets it send more again.
    client.ip(&["route", "flush", "cache"])?;
    client.ip(&["-6", "route", "flush", "cache"])?;
    let fits = traffic::ping_df(client, to, mtu - headers)?;
    ensure!(
        fits.contains(" 1 received"),
        "{mtu} octets do not pass:\n{fits}"
    );
    let above = traffic::ping_df(client, to, mtu - headers + 1)?;
    ensure!(
        above.contains(" 0 received"),
        "{} octets pass:\n{above}",
        mtu + 1
    );
    Ok(mtu)
}

#[test]
fn path_mtu_is_told() -> Result<()> {
    skip_unless_possible!("path_mtu_is_told");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let packets = gateways.record(|| {
        for (to, headers) in [(addr::SERVER, 28), (addr::SERVER6, 48)] {
            let mtu = mtu_is_told_and_right(&gateways, to, headers)?;
            ensure!((1280..1500).contains(&mtu), "{mtu} octets");
        }
        Ok(())
    })?;
    no_fragments(&packets)?;
    ensure_nothing_clear(&packets)
}

/// With a tunnel interface as wide as the WAN it is the engine that has to tell.
#[test]
fn engine_tells_the_path_mtu() -> Result<()> {
    skip_unless_possible!("engine_tells_the_path_mtu");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        a.global = "mtu = 1500";
        b.global = "mtu = 1500";
        a.extra = NATIVE;
    })?;
    let packets = gateways.record(|| {
        for (to, headers) in [(addr::SERVER, 28), (addr::SERVER6, 48)] {
            let mtu = mtu_is_told_and_right(&gateways, to, headers)?;
            // 20 outer header, 8 ESP, 8 IV, 2 trailer, 16 ICV, padded to 4.
            ensure!(
                mtu == 1446,
                "{mtu} octets fit into 1500 with AES-GCM, so it says"
            );
        }
        Ok(())
    })?;
    no_fragments(&packets)?;
    ensure_nothing_clear(&packets)
}

fn no_fragments(packets: &[Packet]) -> Result<()> {
    let fragments: Vec<_> = packets
        .iter()
        .filter_map(|packet| packet.header()?.fragment)
        .collect();
    ensure!(fragments.is_empty(), "fragments on the WAN: {fragments:?}");
    Ok(())
}

/// The MSS option of a TCP segment with SYN.
fn mss(packet: &Packet) -> Option<u16> {
    let header = packet.header()?;
    let tcp = packet.data.get(header.payload..)?;
    if header.protocol != 6 || tcp.get(13)? & 0x02 == 0 {
        return None;
    }
    let mut options = tcp.get(20..usize::from(tcp.get(12)? >> 4) * 4)?;
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => return None,
            (1, _) => rest,
            (2, [4, high, low, ..]) => return Some(u16::from_be_bytes([*high, *low])),
            (_, [length, ..]) => options.get(usize::from(*length).max(2)..)?,
            _ => return None,
        };
    }
    None
}

#[test]
fn tcp_segment_size_is_clamped() -> Result<()> {
    skip_unless_possible!("tcp_segment_size_is_clamped");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    for (server, headers) in [(addr::SERVER, 40), (addr::SERVER6, 60)] {
        // Both SYNs are seen at the far end of the tunnel: the answer's at the client.
        for (end, seen_at) in [("server", &line.server), ("client", &line.client)] {
            let capture = capture::Capture::start(seen_at, "eth0", &gateways.work, "")?;
            traffic::tcp_exchange(&line.client, &line.server, server, 100_000)?;
            let packets = topology::finish(vec![capture])?;
            let sizes: Vec<u16> = packets.iter().filter_map(mss).collect();
            let smallest = sizes.iter().min().context("no SYN was seen")?;
            ensure!(
                *smallest >= 1200 && usize::from(*smallest) + headers <= 1446,
                "segment sizes in SYNs at the {end}: {sizes:?}"
            );
        }
    }
    Ok(())
}
