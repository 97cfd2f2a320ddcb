//! Before a system is measured: does it carry packets, and can nobody between the gateways read them?

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};
use espada_tests::capture::{self, Packet};
use espada_tests::process::WorkDir;
use espada_tests::topology::{self, Line, addr};

use super::systems::{System, pings};

/// What the echo requests are filled with: sought on the link between the gateways.
const PATTERN: [u8; 16] = *b"spoken in clear!";

/// Puts a system on a line with a switch between the gateways, pings through it and looks at all
/// that passed the switch. There, unlike at the gateways, frames of AF_XDP are seen as well.
pub fn prove(line: &Line, system: System) -> Result<()> {
    let work = WorkDir::new()?;
    let capture = line.capture(&work, "")?;
    let mut running = system.start(line, &work)?;
    let answered = pings(line, &PATTERN);
    let packets = topology::finish(capture)?;
    let answered = answered?;
    running.still_carries()?;
    judge(system, &packets, answered).context("on the link between the gateways")
}

fn judge(system: System, packets: &[Packet], answered: u32) -> Result<()> {
    let client: Ipv4Addr = addr::CLIENT.parse()?;
    let server: Ipv4Addr = addr::SERVER.parse()?;
    let texts = [
        ("the client's address", &client.octets()[..]),
        ("the server's address", &server.octets()[..]),
        ("the pings' pattern", &PATTERN[..]),
    ];
    let readable = capture::readable(packets, &texts);
    if !system.encrypts() {
        // What is in clear must be found, or not finding it elsewhere would prove nothing.
        ensure!(
            readable.len() == texts.len(),
            "of what plain forwarding shows only this was found: {readable:?}"
        );
        return Ok(());
    }
    let wan: [IpAddr; 2] = [addr::WAN_A.parse()?, addr::WAN_B.parse()?];
    let carried = packets
        .iter()
        .filter_map(Packet::header)
        .filter(|header| wan.contains(&header.source) && wan.contains(&header.destination))
        .count();
    // Every request and every reply.
    let expected = 2 * answered as usize;
    ensure!(
        carried >= expected,
        "{carried} packets between the gateways, expected at least {expected}"
    );
    if !readable.is_empty() {
        bail!("{} can be read", readable.join(", "));
    }
    if system.is_ipsec() {
        let clear = capture::clear_packets(packets);
        ensure!(clear.is_empty(), "neither IKE nor ESP: {clear:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, source: &str, destination: &str, payload: &[u8]) -> Packet {
        let octets = |address: &str| address.parse::<Ipv4Addr>().unwrap().octets();
        let mut data = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        data.extend(octets(source));
        data.extend(octets(destination));
        data.extend(payload);
        Packet {
            ethertype: 0x0800,
            data,
        }
    }

    #[test]
    fn secrets_and_bystanders_are_found() {
        const ESP: u8 = 50;
        let esp = packet(ESP, addr::WAN_A, addr::WAN_B, &[7; 60]);
        let back = packet(ESP, addr::WAN_B, addr::WAN_A, &[9; 60]);
        let good = [esp.clone(), back.clone()];
        judge(System::EspadaEsp, &good, 1).unwrap();
        let said = |system, packets: &[Packet], answered| {
            format!("{:#}", judge(system, packets, answered).unwrap_err())
        };
        assert!(said(System::EspadaEsp, &good, 2).contains("expected at least 4"));
        let leaking = packet(ESP, addr::WAN_A, addr::WAN_B, &PATTERN);
        let leaking = [esp.clone(), back.clone(), leaking];
        assert!(said(System::WireguardGo, &leaking, 1).contains("the pings' pattern can be read"));
        let around = packet(1, addr::CLIENT, addr::SERVER, &[8; 60]);
        let around = [esp.clone(), back.clone(), around];
        assert!(said(System::OpenVpn, &around, 1).contains("the client's address"));
        let telling = packet(6, addr::WAN_A, addr::WAN_B, &[8; 60]);
        let telling = [esp, back, telling];
        assert!(said(System::StrongSwan, &telling, 1).contains("neither IKE nor ESP"));
        judge(System::OpenVpn, &telling, 1).unwrap();
    }

    #[test]
    fn a_capture_that_sees_nothing_proves_nothing() {
        let shown = packet(1, addr::CLIENT, addr::SERVER, &PATTERN);
        judge(System::Plain, &[shown], 1).unwrap();
        let error = judge(System::Plain, &[], 1).unwrap_err();
        assert!(error.to_string().contains("only this was found: []"));
    }
}
