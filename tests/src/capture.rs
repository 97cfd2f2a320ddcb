//! Recording a link with tcpdump and judging what was seen.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cmd::wait_for;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// One recorded frame, without its link header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What follows the Ethernet header.
    pub ethertype: u16,
    /// Octets from the network header on, as many as were recorded.
    pub data: Vec<u8>,
}

impl Capture {
    /// Starts recording a device; returns when tcpdump listens.
    pub fn start(netns: &Netns, device: &str, work: &WorkDir, filter: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = work.file(&format!("{number}.pcap"));
        let path = file.to_str().context("a path in UTF-8")?;
        let mut argv = vec![
            "tcpdump", "-n", "-U", "-B", "16384", "-Z", "root", "-i", device, "-w", path,
        ];
        if !filter.is_empty() {
            argv.push(filter);
        }
        let log = work.file(&format!("tcpdump-{number}.log"));
        let mut process = Process::start("tcpdump", &netns.argv(&argv)?, &[], &log, false)?;
        wait_for("tcpdump listening", Duration::from_secs(5), || {
            process.must_run()?;
            Ok(process.log().contains("listening on").then_some(()))
        })?;
        Ok(Self { process, file })
    }

    /// Stops recording and reads what was recorded.
    pub fn finish(mut self) -> Result<Vec<Packet>> {
        // tcpdump reads in blocks that the kernel hands over after at most a second.
        std::thread::sleep(Duration::from_millis(1100));
        self.process.signal(libc::SIGINT)?;
        self.process.wait(Duration::from_secs(5))?;
        let log = self.process.log();
        if !log.contains("\n0 packets dropped by kernel") {
            bail!("tcpdump lost packets:\n{log}");
        }
        let bytes = std::fs::read(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        parse(&bytes)
    }
}

/// Reads a pcap file of Ethernet frames in this machine's byte order.
fn parse(file: &[u8]) -> Result<Vec<Packet>> {
    let word = |at: usize| -> Option<u32> {
        file.get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_ne_bytes)
    };
    if !matches!(word(0), Some(0xa1b2_c3d4 | 0xa1b2_3c4d)) {
        bail!("not a pcap file of this machine's byte order");
    }
    if word(20) != Some(1) {
        bail!("not a recording of Ethernet frames");
    }
    let mut packets = Vec::new();
    let mut at = 24;
    while let Some(length) = word(at + 8) {
        let frame = file
            .get(at + 16..at + 16 + length as usize)
            .context("the recording ends within a frame")?;
        let ethertype = frame
            .get(12..14)
            .context("a frame without an Ethernet header")?;
        packets.push(Packet {
            ethertype: u16::from_be_bytes([ethertype[0], ethertype[1]]),
            data: frame[14..].to_vec(),
        });
        at += 16 + length as usize;
    }
    Ok(packets)
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ICMP6: u8 = 58;
const ESP: u8 = 50;
const UDP: u8 = 17;

/// The parts of an IP header that tell what a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of what follows (IPv6: of what follows the fragment header).
    pub protocol: u8,
    /// Where that starts.
    pub payload: usize,
    /// Identification and offset of a fragment.
    pub fragment: Option<(u32, u16)>,
}

impl Packet {
    /// The IP header, if this is a whole one.
    pub fn header(&self) -> Option<Header> {
        let data = &self.data;
        match self.ethertype {
            IPV4 => {
                let octets =
                    |at: usize| -> Option<[u8; 4]> { data.get(at..at + 4)?.try_into().ok() };
                let flags = u16::from_be_bytes([*data.get(6)?, *data.get(7)?]);
                let identification = u32::from(u16::from_be_bytes([data[4], data[5]]));
                Some(Header {
                    source: IpAddr::from(octets(12)?),
                    destination: IpAddr::from(octets(16)?),
                    protocol: *data.get(9)?,
                    payload: usize::from(data.first()? & 0xf) * 4,
                    fragment: (flags & 0x3fff != 0).then_some((identification, flags & 0x1fff)),
                })
            }
            IPV6 => {
                let octets =
                    |at: usize| -> Option<[u8; 16]> { data.get(at..at + 16)?.try_into().ok() };
                let mut header = Header {
                    source: IpAddr::from(octets(8)?),
                    destination: IpAddr::from(octets(24)?),
                    protocol: *data.get(6)?,
                    payload: 40,
                    fragment: None,
                };
                if header.protocol == 44 {
                    let offset = u16::from_be_bytes([*data.get(42)?, *data.get(43)?]) >> 3;
                    let identification: [u8; 4] = data.get(44..48)?.try_into().ok()?;
                    header.fragment = Some((u32::from_be_bytes(identification), offset));
                    header.protocol = *data.get(40)?;
                    header.payload = 48;
                }
                Some(header)
            }
            _ => None,
        }
    }

    /// Source and destination port of a UDP datagram.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        let header = self.header()?;
        if header.protocol != UDP || header.fragment.is_some_and(|(_, offset)| offset != 0) {
            return None;
        }
        let port = |at: usize| -> Option<u16> {
            Some(u16::from_be_bytes(
                self.data.get(at..at + 2)?.try_into().ok()?,
            ))
        };
        Some((port(header.payload)?, port(header.payload + 2)?))
    }

    /// True for native ESP.
    pub fn is_esp(&self) -> bool {
        self.header().is_some_and(|header| header.protocol == ESP)
    }

    /// True for ESP in UDP: port 4500 without the non-ESP marker.
    pub fn is_esp_in_udp(&self) -> bool {
        let Some((source, destination)) = self.udp_ports() else {
            return false;
        };
        let Some(header) = self.header() else {
            return false;
        };
        (source == 4500 || destination == 4500)
            && self
                .data
                .get(header.payload + 8..header.payload + 12)
                .is_some_and(|marker| marker != [0; 4])
    }

    fn is_ike_or_esp_in_udp(&self) -> bool {
        self.udp_ports().is_some_and(|(source, destination)| {
            [source, destination]
                .iter()
                .any(|port| matches!(port, 500 | 4500))
        })
    }

    /// Neighbour discovery, router solicitation and multicast listener reports, which a link with
    /// IPv6 always has.
    fn is_link_housekeeping(&self) -> bool {
        if self.ethertype == ARP {
            return true;
        }
        let Some(header) = self.header() else {
            return false;
        };
        // A multicast listener report has a hop-by-hop header with the router alert before it.
        let start = match (self.ethertype, header.protocol) {
            (IPV6, ICMP6) => header.payload,
            (IPV6, 0) if self.data.get(header.payload) == Some(&ICMP6) => header.payload + 8,
            _ => return false,
        };
        matches!(self.data.get(start), Some(130..=137 | 143))
    }
}

/// The packets that are neither IKE, ESP nor the link's own housekeeping.
pub fn clear_packets(packets: &[Packet]) -> Vec<&Packet> {
    let mut carried: HashSet<(IpAddr, IpAddr, u32)> = HashSet::new();
    packets
        .iter()
        .filter(|packet| {
            if packet.is_link_housekeeping() || packet.is_esp() {
                return false;
            }
            let fragment = packet
                .header()
                .and_then(|header| Some((header.source, header.destination, header.fragment?.0)));
            if packet.is_ike_or_esp_in_udp() {
                carried.extend(fragment);
                return false;
            }
            !fragment.is_some_and(|fragment| carried.contains(&fragment))
        })
        .collect()
}

/// Names of those texts whose octets stand anywhere in any of the packets.
pub fn readable<'a>(packets: &[Packet], texts: &[(&'a str, &[u8])]) -> Vec<&'a str> {
    texts
        .iter()
        .filter(|(_, octets)| contains(packets, octets))
        .map(|(name, _)| *name)
        .collect()
}

/// True when these octets stand anywhere in any of the packets.
pub fn contains(packets: &[Packet], octets: &[u8]) -> bool {
    packets.iter().any(|packet| {
        packet
            .data
            .windows(octets.len())
            .any(|window| window == octets)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Packet {
        let mut data = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0];
        data.extend_from_slice(&[198, 18, 0, 1, 198, 18, 0, 2]);
        data.extend_from_slice(payload);
        Packet {
            ethertype: IPV4,
            data,
        }
    }

    fn ipv6(next: u8, payload: &[u8]) -> Packet {
        let mut data = vec![0x60, 0, 0, 0, 0, 0, next, 255];
        data.extend_from_slice(&[0xfe; 32]);
        data.extend_from_slice(payload);
        Packet {
            ethertype: IPV6,
            data,
        }
    }

    #[test]
    fn esp_ike_and_housekeeping_are_not_clear() {
        let packets = [
            ipv4(ESP, &[1; 40]),
            ipv4(UDP, &[0x01, 0xf4, 0x01, 0xf4, 0, 8, 0, 0]),
            ipv4(UDP, &[0xc0, 0x00, 0x11, 0x94, 0, 8, 0, 0]),
            Packet {
                ethertype: ARP,
                data: vec![0; 28],
            },
            ipv6(ICMP6, &[135, 0, 0, 0]),
            ipv6(0, &[ICMP6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0]),
        ];
        assert_eq!(clear_packets(&packets), Vec::<&Packet>::new());
    }

    #[test]
    fn everything_else_is_clear() {
        let packets = [
            ipv4(1, &[8, 0, 0, 0]),
            ipv4(6, &[0x11, 0x94, 0x11, 0x94]),
            ipv4(UDP, &[0x14, 0x51, 0xc0, 0x00, 0, 8, 0, 0]),
            ipv6(ICMP6, &[128, 0, 0, 0]),
            Packet {
                ethertype: 0x8100,
                data: vec![0; 40],
            },
        ];
        assert_eq!(clear_packets(&packets).len(), packets.len());
    }

    #[test]
    fn later_fragments_count_with_their_first() {
        let mut first = ipv4(UDP, &[0x11, 0x94, 0x11, 0x94, 0, 8, 0, 0]);
        first.data[6] = 0x20;
        let mut second = ipv4(UDP, &[9; 16]);
        second.data[7] = 100;
        let packets = [first, second.clone()];
        assert!(clear_packets(&packets).is_empty());
        assert_eq!(clear_packets(&[second]).len(), 1);
    }

    #[test]
    fn what_can_be_read_is_named() {
        let packets = [ipv4(UDP, &[9; 16])];
        let texts: [(&str, &[u8]); 2] = [("the source", &[198, 18, 0, 1]), ("a seven", &[7, 7])];
        assert_eq!(readable(&packets, &texts), ["the source"]);
    }

    #[test]
    fn esp_in_udp_is_told_from_ike() {
        let ports = [0x11, 0x94, 0x11, 0x94, 0, 12, 0, 0];
        let esp = ipv4(UDP, &[&ports[..], &[1, 2, 3, 4]].concat());
        let ike = ipv4(UDP, &[&ports[..], &[0, 0, 0, 0]].concat());
        assert!(esp.is_esp_in_udp());
        assert!(!ike.is_esp_in_udp());
    }

    #[test]
    fn reads_a_recording() {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1, 0, 0, 18, 18] {
            file.extend_from_slice(&u32::to_ne_bytes(word));
        }
        file.extend_from_slice(&[0; 12]);
        file.extend_from_slice(&[0x08, 0x06, 1, 2, 3, 4]);
        let packets = parse(&file).unwrap();
        assert_eq!(
            packets,
            [Packet {
                ethertype: ARP,
                data: vec![1, 2, 3, 4]
            }]
        );
        file.pop();
        assert!(parse(&file).is_err());
    }
}
