//! Netlink sockets of the XFRM family: one for requests, one that is told of events. A socket
//! belongs to the network namespace of the thread that opened it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroizing;

use super::wire::Body;
use crate::netlink::{NetlinkError, extended_text, message_length};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

const HEADER: usize = size_of::<Header>();

/// A message from the kernel. Dumped states hold keys, so its octets are zeroized.
pub struct Message {
    /// `XFRM_MSG_*`.
    pub kind: u16,
    /// Fixed part and attributes.
    pub payload: Zeroizing<Vec<u8>>,
}

/// The messages of one datagram, with their headers.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = message_length(rest)?;
        let (header, _) = Header::read_from_prefix(rest).ok()?;
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((header, payload))
    })
}

/// The next datagram, empty if it is not the kernel's.
fn receive(socket: &Socket) -> io::Result<Zeroizing<Vec<u8>>> {
    let (datagram, sender) = socket.recv_from_full()?;
    let mut datagram = Zeroizing::new(datagram);
    if sender.port_number() != 0 {
        datagram.clear();
    }
    Ok(datagram)
}

fn open(groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    // Best effort: without it errors lack the kernel's sentence.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    Ok(socket)
}

/// A request socket.
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = open(&[]).map_err(|e| NetlinkError::new("open an XFRM socket", None, e))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one request and waits for the acknowledgement. `operation` completes "cannot …".
    pub fn run(
        &mut self,
        operation: &str,
        kind: u16,
        flags: u16,
        body: &Body,
    ) -> Result<(), NetlinkError> {
        self.request(operation, kind, flags | NLM_F_ACK, body, &[])
            .map(drop)
    }

    /// Sends one request and returns the answer, if there is one beside the acknowledgement.
    pub fn ask(
        &mut self,
        operation: &str,
        kind: u16,
        body: &Body,
    ) -> Result<Vec<Message>, NetlinkError> {
        self.request(operation, kind, NLM_F_ACK, body, &[])
    }

    /// Asks for everything of a kind.
    pub fn dump(
        &mut self,
        operation: &str,
        kind: u16,
        body: &Body,
    ) -> Result<Vec<Message>, NetlinkError> {
        self.request(operation, kind, NLM_F_DUMP, body, &[])
    }

    /// Sends one request that everybody in a multicast group hears of, and collects the messages of
    /// this kind that the group was sent meanwhile. For a socket that is used for nothing else:
    /// what comes to the group otherwise is still queued when the next request is made.
    pub fn overhear(
        &mut self,
        operation: &str,
        kind: u16,
        body: &Body,
        group: u32,
    ) -> Result<Vec<Message>, NetlinkError> {
        let fail = |source| NetlinkError::new(operation, None, source);
        self.socket.add_membership(group).map_err(fail)?;
        let heard = self.request(operation, kind, NLM_F_ACK, body, &[kind]);
        self.socket.drop_membership(group).map_err(fail)?;
        heard
    }

    /// Sends one request and collects the answers up to the acknowledgement or the end of a dump.
    /// `overheard`: kinds of message that count as answers whoever caused them.
    fn request(
        &mut self,
        operation: &str,
        kind: u16,
        flags: u16,
        body: &Body,
        overheard: &[u16],
    ) -> Result<Vec<Message>, NetlinkError> {
        let fail = |source| NetlinkError::new(operation, None, source);
        self.sequence = self.sequence.wrapping_add(1);
        let body = body.octets();
        let header = Header {
            length: u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX),
            kind,
            flags: NLM_F_REQUEST | flags,
            sequence: self.sequence,
            port: 0,
        };
        let mut octets = Zeroizing::new(Vec::with_capacity(HEADER + body.len()));
        octets.extend_from_slice(header.as_bytes());
        octets.extend_from_slice(body);
        self.socket
            .send_to(&octets, &SocketAddr::new(0, 0), 0)
            .map_err(fail)?;

        let mut answers = Vec::new();
        loop {
            let datagram = receive(&self.socket).map_err(fail)?;
            for (header, payload) in messages(&datagram) {
                let message = || Message {
                    kind: header.kind,
                    payload: Zeroizing::new(payload.to_vec()),
                };
                if overheard.contains(&header.kind) {
                    answers.push(message());
                    continue;
                }
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = payload
                            .first_chunk()
                            .map_or(-libc::EPROTO, |octets| i32::from_ne_bytes(*octets));
                        if code == 0 {
                            return Ok(answers);
                        }
                        let text = payload.get(4..).and_then(extended_text);
                        let source = io::Error::from_raw_os_error(code.saturating_abs());
                        return Err(NetlinkError::new(operation, text, source));
                    }
                    _ => answers.push(message()),
                }
            }
        }
    }
}

/// A socket that is told of events; wait for it with [`AsFd`].
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes to these groups.
    pub fn open(groups: &[u32]) -> Result<Self, NetlinkError> {
        let subscribe = || {
            let socket = open(groups)?;
            // A burst of expiring states comes at once.
            socket.set_rx_buf_sz(1u32 << 20)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket =
            subscribe().map_err(|e| NetlinkError::new("subscribe to XFRM events", None, e))?;
        Ok(Self { socket })
    }

    /// Hands on what is queued; never waits. False when some messages were lost.
    pub fn read(&mut self, mut event: impl FnMut(u16, &[u8])) -> bool {
        let mut complete = true;
        loop {
            match receive(&self.socket) {
                Ok(datagram) => {
                    for (header, payload) in messages(&datagram) {
                        event(header.kind, payload);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => complete = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return complete,
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
