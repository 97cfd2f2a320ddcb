//! Netlink exchanges of the families that `netlink-packet-route` has no codec for: a request out,
//! the payloads of the answers back. A socket belongs to the network namespace of the thread that
//! opened it.

use std::io;

use netlink_sys::{Socket, SocketAddr};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The lowest message type of a family's own.
const NLMSG_MIN_TYPE: u16 = 16;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Ask for all objects of a kind.
pub const NLM_F_DUMP: u16 = 0x300;
/// Make the object.
pub const NLM_F_CREATE: u16 = 0x400;

/// An answer: its type and what follows the message header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The family's message type.
    pub kind: u16,
    /// The family's header and attributes.
    pub payload: Vec<u8>,
}

/// Asks a family (`NETLINK_…`) once. The error is the kernel's.
pub fn ask(family: isize, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<Answer>> {
    const SEQUENCE: u32 = 1;
    let mut socket = Socket::new(family)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let length = u32::try_from(HEADER + payload.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // A dump ends with a message of its own; everything else with an acknowledgement.
    let acknowledged = if flags & NLM_F_DUMP == NLM_F_DUMP {
        0
    } else {
        NLM_F_ACK
    };
    let mut request = Vec::with_capacity(HEADER + payload.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags | acknowledged).to_ne_bytes());
    request.extend(SEQUENCE.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(payload);
    socket.send(&request, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((message, next)) = split_message(rest) {
            rest = next;
            if message.sequence != SEQUENCE {
                continue;
            }
            match message.kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    return match read_u32(message.payload).map(|code| code as i32) {
                        Some(0) => Ok(answers),
                        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_abs())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                kind if kind >= NLMSG_MIN_TYPE => answers.push(Answer {
                    kind,
                    payload: message.payload.to_vec(),
                }),
                _ => {}
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn split_message(buffer: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = read_u32(buffer)? as usize;
    let this = buffer.get(..length)?;
    let message = Message {
        kind: read_u16(this.get(4..)?)?,
        sequence: read_u32(this.get(8..)?)?,
        payload: this.get(HEADER..)?,
    };
    let next = buffer.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((message, next))
}

/// The attributes in a buffer: type (without flags) and value. Ends at the first malformed one.
pub fn attributes(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE_MASK: u16 = 0x3fff;
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest)?);
        let kind = read_u16(rest.get(2..)?)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// Appends an attribute. Values longer than an attribute can be are cut.
pub fn push_attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const LONGEST: usize = u16::MAX as usize - 4;
    let value = value.get(..LONGEST).unwrap_or(value);
    buffer.extend((value.len() as u16 + 4).to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// A number in the host's order at the start of a buffer.
pub fn read_u16(buffer: &[u8]) -> Option<u16> {
    buffer
        .first_chunk()
        .map(|octets| u16::from_ne_bytes(*octets))
}

/// A number in the host's order at the start of a buffer.
pub fn read_u32(buffer: &[u8]) -> Option<u32> {
    buffer
        .first_chunk()
        .map(|octets| u32::from_ne_bytes(*octets))
}

/// A number in the host's order at the start of a buffer.
pub fn read_u64(buffer: &[u8]) -> Option<u64> {
    buffer
        .first_chunk()
        .map(|octets| u64::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_pushed() {
        let mut buffer = Vec::new();
        push_attribute(&mut buffer, 1, b"veth\0");
        push_attribute(&mut buffer, 2 | 0x8000, &7u32.to_ne_bytes());
        push_attribute(&mut buffer, 3, &[]);
        let read: Vec<_> = attributes(&buffer).collect();
        assert_eq!(
            read,
            [(1, &b"veth\0"[..]), (2, &7u32.to_ne_bytes()), (3, &[])]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_on_what_the_kernel_might_send(octets: Vec<u8>) {
            let _ = attributes(&octets).count();
            let mut rest = octets.as_slice();
            while let Some((message, next)) = split_message(rest) {
                prop_assert!(message.payload.len() + HEADER <= rest.len());
                prop_assert!(next.len() < rest.len());
                rest = next;
            }
        }
    }

    #[test]
    fn the_kernel_answers_and_refuses() {
        // RTM_GETLINK (18) of the loopback device by name, as the whole family's example.
        let mut payload = vec![0u8; 16];
        push_attribute(&mut payload, 3, b"lo\0");
        let answers = ask(netlink_sys::protocols::NETLINK_ROUTE, 18, 0, &payload).unwrap();
        assert_eq!(answers.len(), 1);
        let name = attributes(&answers[0].payload[16..]).find(|(kind, _)| *kind == 3);
        assert_eq!(name, Some((3, &b"lo\0"[..])));
        let error = ask(netlink_sys::protocols::NETLINK_ROUTE, 18, 0, &[0; 3]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
