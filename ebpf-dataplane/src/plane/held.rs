//! Packets that ask for an SA in engines that cannot keep them: they are seen on the way into the
//! plaintext interface, where the engine drops them, and sent into it again when the SA is there.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{Policy, TrafficSelector};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::esp::held::{MOST, MOST_OF_ONE, PATIENCE};
use crate::esp::ip;
use crate::port::gso::VnetHeader;
use crate::port::syscall::{bind_to_link, set_option};

/// Instructions of a filter, of the 4096 that the kernel takes: some two hundred subnets.
const MOST_INSTRUCTIONS: usize = 1024;
/// Octets of a packet with its headers that may be one of 64 KiB to be cut.
const BUFFER: usize = 1 << 17;

/// Connections that wait for their first packet, and those packets.
#[derive(Default)]
pub struct Held {
    tap: Option<Tap>,
    waiting: VecDeque<Waiting>,
}

/// What sees the packets on their way into the interface.
struct Tap {
    socket: Socket,
    wanted: Vec<Policy>,
}

/// A packet that waits, as the tap gave it.
struct Waiting {
    connection: Arc<str>,
    packet: Vec<u8>,
    since: Instant,
}

impl Held {
    /// Whether no connection is waited for.
    pub fn is_idle(&self) -> bool {
        self.tap.is_none()
    }

    /// The policies whose first packets are wanted now, all of them routed into this interface.
    pub fn watch(&mut self, link: u32, wanted: Vec<Policy>) {
        if wanted.is_empty() {
            self.tap = None;
            return;
        }
        let filter = filter(&wanted);
        let socket = match self.tap.take() {
            Some(tap) => tap.socket.attach_filter(&filter).map(|()| tap.socket),
            None => open(link, &filter),
        };
        match socket {
            Ok(socket) => self.tap = Some(Tap { socket, wanted }),
            Err(error) => tracing::warn!(%error, "packets that ask for an SA are lost"),
        }
    }

    /// Takes in what the tap has seen, and forgets what has waited too long.
    pub fn collect(&mut self, now: Instant) {
        let overdue = |waiting: &Waiting| now.saturating_duration_since(waiting.since) > PATIENCE;
        self.waiting.retain(|waiting| !overdue(waiting));
        let Some(tap) = &self.tap else {
            return;
        };
        let mut buffer = vec![0; BUFFER];
        while let Ok(length) = (&tap.socket).read(&mut buffer) {
            let packet = buffer.get(..length).unwrap_or_default();
            let Some(connection) = tap.connection_of(packet) else {
                continue;
            };
            let of_one = self.waiting.iter().filter(|it| it.connection == connection);
            if self.waiting.len() < MOST && of_one.count() < MOST_OF_ONE {
                self.waiting.push_back(Waiting {
                    connection,
                    packet: packet.to_vec(),
                    since: now,
                });
            }
        }
    }

    /// Sends what waited for a connection, now that it has an SA.
    pub fn release(&mut self, connection: &str) {
        let (ready, waiting): (VecDeque<Waiting>, VecDeque<Waiting>) = self
            .waiting
            .drain(..)
            .partition(|waiting| *waiting.connection == *connection);
        self.waiting = waiting;
        for waiting in ready {
            let tap = self.tap.as_ref();
            if let Some(Err(error)) = tap.map(|tap| tap.socket.send(&waiting.packet)) {
                tracing::debug!(%error, "a packet that waited for an SA is lost");
            }
        }
    }
}

impl Tap {
    /// Which connection a packet is for: with or without an Ethernet header, as the interface has it.
    fn connection_of(&self, packet: &[u8]) -> Option<Arc<str>> {
        let packet = packet.get(VnetHeader::LENGTH..)?;
        let inner = ip::parse(packet).or_else(|| ip::parse(packet.get(14..)?))?;
        let wanted = self.wanted.iter();
        let mut of_flow =
            wanted.filter(|policy| inner.flow.selected(&policy.local_ts, &policy.remote_ts));
        Some(Arc::clone(&of_flow.next()?.connection))
    }
}

/// A socket that sees what passes the filter on its way into an interface.
fn open(link: u32, filter: &[SockFilter]) -> io::Result<Socket> {
    // Bound to no protocol it sees nothing yet.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>)?;
    socket.set_nonblocking(true)?;
    // Checksums and cuts that are still to be made are told, and taken again.
    set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    socket.attach_filter(filter)?;
    bind_to_link(socket.as_fd(), link)?;
    Ok(socket)
}

const NETWORK: u32 = libc::SKF_NET_OFF as u32;
const ANCILLARY: u32 = libc::SKF_AD_OFF as u32;
/// PACKET_OUTGOING.
const OUTGOING: u32 = 4;

fn load(at: u32) -> SockFilter {
    SockFilter::new(
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        0,
        0,
        at,
    )
}

fn answer(octets: u32) -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, octets)
}

/// Goes on if the word loaded is this, and else skips so many.
fn is(value: u32, skip: u8) -> SockFilter {
    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    SockFilter::new(code, 0, skip, value)
}

/// Lets packets on their way out to one of the policies' subnets pass. Those that find no room are lost,
/// as are all packets without an SA elsewhere.
fn filter(policies: &[Policy]) -> Vec<SockFilter> {
    let mut program = vec![
        load(ANCILLARY.wrapping_add(libc::SKF_AD_PKTTYPE as u32)),
        is(OUTGOING, 1),
        jump(1),
        answer(0),
        load(ANCILLARY.wrapping_add(libc::SKF_AD_PROTOCOL as u32)),
    ];
    let remotes = || policies.iter().flat_map(|policy| &policy.remote_ts);
    let subnets: Vec<(IpAddr, u8)> = remotes().flat_map(TrafficSelector::prefixes).collect();
    for (ethertype, v4) in [(0x0800, true), (0x86dd, false)] {
        let mut tests = Vec::new();
        for (network, length) in subnets
            .iter()
            .filter(|(network, _)| network.is_ipv4() == v4)
        {
            let test = destined_to(*network, *length);
            if program.len() + tests.len() + test.len() + 8 <= MOST_INSTRUCTIONS {
                tests.extend(test);
            }
        }
        tests.push(answer(0));
        program.push(is(ethertype, 1));
        program.push(jump(1));
        program.push(jump(tests.len() as u32));
        program.extend(tests);
    }
    program.push(answer(0));
    program
}

fn jump(over: u32) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_JA) as u16, 0, 0, over)
}

/// Accepts what goes to a subnet, and else leads to what follows.
fn destined_to(network: IpAddr, length: u8) -> Vec<SockFilter> {
    let (at, words): (u32, Vec<u32>) = match network {
        IpAddr::V4(v4) => (16, vec![v4.to_bits()]),
        IpAddr::V6(v6) => {
            let word = |index: u32| (v6.to_bits() >> (96 - 32 * index)) as u32;
            (24, (0..4).map(word).collect())
        }
    };
    let mut test = Vec::new();
    let relevant = words.len().min(usize::from(length).div_ceil(32));
    for (index, word) in (0u32..).zip(words.iter().take(relevant)) {
        let bits = u32::from(length).saturating_sub(32 * index).min(32);
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        // What is left of the words after this one, and the answer.
        let rest = (relevant as u32 - 1 - index) * 3 + 1;
        let and = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
        test.push(load(NETWORK.wrapping_add(at + 4 * index)));
        test.push(SockFilter::new(and, 0, 0, mask));
        test.push(is(word & mask, rest as u8));
    }
    test.push(answer(u32::MAX));
    test
}
