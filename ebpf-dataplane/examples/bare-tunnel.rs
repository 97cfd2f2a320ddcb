//! A tunnel without protection, for `cargo xtask bench e2e` only: what the TUN device gives, packets of up
//! to 64 KiB that the kernel is to cut, goes into UDP as it is, in trains that the kernel cuts (GSO) and joins
//! (GRO), and into the TUN device at the other end. Nothing is encrypted, checked or cut here: of one TCP
//! stream, and of single packets' round trips, a gateway of TUN device and UDP sockets is slower by what
//! it does besides. Packets that come one by one are taken one by one, which gateways do better.
//!
//!     bare-tunnel INTERFACE LOCAL REMOTE        # addresses with ports; whoever sends is believed

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, bail};
use espada_dataplane::port::gso::VnetHeader;
use espada_dataplane::port::syscall::{self, Poller};
use espada_dataplane::port::udp;

/// Octets of a datagram: what fits a link with an MTU of 1500, with room for a longer IP header.
const DATAGRAM: usize = 1460;
/// Octets of a train: of whole datagrams, and no more than one call may send.
const TRAIN: usize = 44 * DATAGRAM;
/// Packets that are taken of one source before the other has its turn.
const ROUNDS: usize = 64;
/// The largest packet of the device, twice: the rest of one, and a train.
const ROOM: usize = 1 << 17;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [interface, local, remote] = arguments.as_slice() else {
        bail!(
            "expected: INTERFACE LOCAL REMOTE, for example bare0 198.18.0.1:4789 198.18.0.2:4789"
        );
    };
    let mut tun = open(interface).with_context(|| format!("cannot make {interface}"))?;
    let socket = connect(local, remote).with_context(|| format!("from {local} to {remote}"))?;
    syscall::run_before_others().context("real-time scheduling")?;
    let mut poller = Poller::new()?;
    poller.add(tun.as_fd(), 0)?;
    poller.add(socket.as_fd(), 1)?;
    let mut buffer = vec![0; ROOM];
    let mut arrived = Arrived {
        octets: vec![0; ROOM],
        held: 0,
    };
    loop {
        let ready: Vec<u64> = poller.wait(None)?.collect();
        for source in ready {
            for _ in 0..ROUNDS {
                let moved = match source {
                    0 => send(&mut tun, &socket, &mut buffer),
                    _ => arrived.receive(&socket, &mut tun),
                };
                match moved {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

fn open(interface: &str) -> Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    syscall::tun_attach(tun.as_fd(), interface, false)?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    syscall::tun_set_offload(tun.as_fd(), offloads)?;
    Ok(tun)
}

fn connect(local: &str, remote: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.connect(remote)?;
    socket.set_nonblocking(true)?;
    let fd = socket.as_fd();
    syscall::set_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT, DATAGRAM as i32)?;
    syscall::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    udp::grow_buffers(fd);
    Ok(socket)
}

/// One packet of the host's, with its header of the device.
fn send(tun: &mut File, socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<()> {
    let length = tun.read(buffer)?;
    for train in buffer[..length].chunks(TRAIN) {
        // What the network does not take is lost, as packets are.
        let _ = socket.send(train);
    }
    Ok(())
}

/// What came of the other end.
struct Arrived {
    octets: Vec<u8>,
    /// Octets of a packet of which a train is missing.
    held: usize,
}

impl Arrived {
    fn receive(&mut self, socket: &UdpSocket, tun: &mut File) -> io::Result<()> {
        let received = match socket.recv(&mut self.octets[self.held..]) {
            // An ICMP error; the other end may not be there yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
            other => other?,
        };
        let mut rest = &self.octets[..self.held + received];
        while let Some(length) = packet(rest) {
            let Some((whole, behind)) = rest.split_at_checked(length) else {
                let start = self.held + received - rest.len();
                self.held = rest.len();
                self.octets.copy_within(start..start + self.held, 0);
                return Ok(());
            };
            let _ = tun.write(whole);
            rest = behind;
        }
        self.held = 0;
        Ok(())
    }
}

/// Octets of the packet at the start of `octets`, with the device's header in front of it.
fn packet(octets: &[u8]) -> Option<usize> {
    let ip = octets.get(VnetHeader::LENGTH..)?;
    let length = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *ip.get(at)?,
            *ip.get(at + 1)?,
        ])))
    };
    let ip = match ip.first()? >> 4 {
        4 => length(2)?,
        6 => 40 + length(4)?,
        _ => return None,
    };
    Some(VnetHeader::LENGTH + ip)
}
