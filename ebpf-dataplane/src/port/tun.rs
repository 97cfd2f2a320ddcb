//! The tunnel interface: inner packets from and to the host's stack. The device speaks
//! IFF_VNET_HDR, so the kernel hands over TCP, and UDP since Linux 6.2, in packets of up to 64 KiB that
//! are cut here.

use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use espada_common::drops::DropReason;

use super::checksum;
use super::gro::Coalescer;
use super::gso::{Segmenter, VnetHeader};
use super::syscall;
use crate::backend::BackendError;
use crate::esp::ip::{self, Fragment, protocol};
use crate::esp::spd::Mix;
use crate::esp::stats::DropCounters;
use crate::umem::{Burst, Frame, FramePool, TAILROOM};

/// Largest packet a TUN hands over.
const LARGEST: usize = 65_536;

/// A TUN interface that lives as long as this value (and what it gave out).
pub struct Tun {
    /// A descriptor of each queue.
    queues: Vec<File>,
    name: String,
    /// Whether the kernel cuts UDP, which came with Linux 6.2.
    datagrams: bool,
}

impl Tun {
    /// Creates the interface with a number of queues (at least one), or attaches to a persistent one of
    /// that name. The kernel keeps each flow of the host's packets on one queue.
    pub fn open(name: &str, queues: usize) -> Result<Self, BackendError> {
        let system = |what: String| move |source| BackendError::System { what, source };
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b'%' && b != b':';
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) {
            return Err(BackendError::System {
                what: format!("tunnel interface name `{name}`"),
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "must be 1 to 15 visible ASCII characters without `/`, `:` and `%`",
                ),
            });
        }
        let several = queues > 1;
        let mut datagrams = true;
        let mut attach = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .map_err(system(
                    "cannot open /dev/net/tun (is the tun module loaded, and is this root?)".into(),
                ))?;
            syscall::tun_attach(file.as_fd(), name, several).map_err(system(format!(
                "cannot create tunnel interface `{name}` with {queues} queue(s) (needs CAP_NET_ADMIN, and no \
                 other process on it)"
            )))?;
            let basic =
                libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
            syscall::tun_set_offload(file.as_fd(), basic | libc::TUN_F_USO4 | libc::TUN_F_USO6)
                .or_else(|_| {
                    datagrams = false;
                    syscall::tun_set_offload(file.as_fd(), basic)
                })
                .map_err(system(format!("cannot set the offloads of `{name}`")))?;
            Ok(file)
        };
        let queues = (0..queues.max(1))
            .map(|_| attach())
            .collect::<Result<_, BackendError>>()?;
        Ok(Self {
            queues,
            name: name.to_owned(),
            datagrams,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reading half of each queue, for the outbound workers.
    pub fn readers(&self) -> io::Result<Vec<TunReader>> {
        let reader = |file: &File| {
            Ok(TunReader {
                file: file.try_clone()?,
                large: vec![0; LARGEST * 2],
            })
        };
        self.queues.iter().map(reader).collect()
    }

    /// A writing half; each worker that writes has its own.
    pub fn writer(&self) -> io::Result<TunWriter> {
        let queue = |file: &File| {
            Ok(Queue {
                file: file.try_clone()?,
                frames: Burst::new(),
            })
        };
        Ok(TunWriter {
            queues: self.queues.iter().map(queue).collect::<io::Result<_>>()?,
            coalescer: Coalescer::new(self.datagrams),
        })
    }
}

/// Takes inner packets from the host.
pub struct TunReader {
    file: File,
    /// Where the rest of a packet goes that is longer than a frame, and then the whole of it.
    large: Vec<u8>,
}

impl AsFd for TunReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl TunReader {
    /// Reads until `burst` is full, the pool runs dry or nothing is queued. True when there may be
    /// more to read. A packet too large for one frame and not marked for segmentation is dropped.
    /// An error means that the interface is gone.
    pub fn read(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        drops: &DropCounters,
    ) -> io::Result<bool> {
        while !burst.is_full() {
            let Some(mut frame) = pool.get() else {
                return Ok(false);
            };
            let room = frame.tailroom().saturating_sub(TAILROOM);
            let mut head = [0; VnetHeader::LENGTH];
            let read = self.file.read_vectored(&mut [
                IoSliceMut::new(&mut head),
                IoSliceMut::new(&mut frame.spare_mut()[..room]),
                IoSliceMut::new(&mut self.large[room..room + LARGEST]),
            ]);
            let length = match read {
                Ok(read) => read.saturating_sub(VnetHeader::LENGTH),
                Err(error) => {
                    pool.put(frame);
                    if error.raw_os_error() == Some(libc::EBADFD) {
                        let what =
                            "the tunnel interface was removed; restart Espada to make it anew";
                        return Err(io::Error::new(io::ErrorKind::NotConnected, what));
                    }
                    // Nothing queued, or the interface is down for the moment.
                    return Ok(false);
                }
            };
            let header = VnetHeader::parse(&head);
            if header.gso_type == VnetHeader::GSO_NONE {
                let finished = length <= room
                    && frame.append(length).is_ok()
                    && (header.flags & VnetHeader::FLAG_NEEDS_CHECKSUM == 0
                        || checksum::complete(
                            frame.data_mut(),
                            header.checksum_start.into(),
                            header.checksum_offset.into(),
                        ));
                if finished {
                    burst.push(frame);
                } else {
                    drops.add(if length > room {
                        DropReason::TooBig
                    } else {
                        DropReason::Malformed
                    });
                    pool.put(frame);
                }
                continue;
            }
            let start = length.min(room);
            self.large[..start].copy_from_slice(&frame.spare_mut()[..start]);
            pool.put(frame);
            self.segment(&header, length, pool, burst, drops);
        }
        Ok(true)
    }

    fn segment(
        &mut self,
        header: &VnetHeader,
        length: usize,
        pool: &mut FramePool,
        burst: &mut Burst,
        drops: &DropCounters,
    ) {
        let packet = self.large.get(..length).unwrap_or_default();
        let Some(mut segmenter) = Segmenter::new(header, packet) else {
            drops.add(DropReason::Unsupported);
            return;
        };
        while let Some(length) = segmenter.next_len() {
            let Some(mut frame) = pool.get() else {
                drops.add(DropReason::WanFull);
                return;
            };
            let fits = length + TAILROOM <= frame.tailroom();
            if fits && frame.append(length).is_ok() && segmenter.write_next(frame.data_mut()) {
                burst.push(frame);
            } else {
                drops.add(DropReason::TooBig);
                pool.put(frame);
                return;
            }
        }
    }
}

/// Gives inner packets to the host.
pub struct TunWriter {
    queues: Vec<Queue>,
    coalescer: Coalescer,
}

struct Queue {
    file: File,
    /// What goes through it, where there are several; empty between calls.
    frames: Burst,
}

impl Queue {
    fn write(&mut self, frames: &mut [Frame], coalescer: &mut Coalescer, drops: &DropCounters) {
        let file = &mut self.file;
        coalescer.deliver(frames, |header, pieces| {
            let head = header.emit();
            let mut slices = [IoSlice::new(&[]); super::gro::MOST_PIECES + 1];
            slices[0] = IoSlice::new(&head);
            let mut count = 1;
            for (slice, piece) in slices[1..].iter_mut().zip(pieces) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            if file.write_vectored(&slices[..count]).is_err() {
                drops.add(DropReason::TunFull);
            }
        });
    }
}

/// A number that is the same for all packets of a flow and for their answers. Of fragments only the
/// addresses and the protocol count, as only the first one has ports.
fn flow_number(packet: &[u8]) -> u64 {
    let Some(inner) = ip::parse(packet) else {
        return 0;
    };
    let flow = inner.flow;
    let half = |address: IpAddr, port: u16| {
        let mut mix = Mix::default();
        mix.write_u128(match address {
            IpAddr::V4(v4) => v4.to_bits().into(),
            IpAddr::V6(v6) => v6.to_bits(),
        });
        mix.write_u64(port.into());
        mix.finish()
    };
    let ports =
        matches!(flow.protocol, protocol::TCP | protocol::UDP) && inner.fragment == Fragment::Whole;
    let (source, destination) = flow.ports.filter(|_| ports).unwrap_or_default();
    // Both directions have the same sum.
    let mut mix = Mix::default();
    mix.write_u64(half(flow.source, source).wrapping_add(half(flow.destination, destination)));
    mix.write_u64(flow.protocol.into());
    mix.finish()
}

impl TunWriter {
    /// Writes the whole burst, neighbouring TCP segments of a flow as one packet, UDP datagrams too
    /// where the kernel can cut them, and returns the frames to `pool`. The kernel hands the answers of a flow out by the queue that it was last
    /// written through, so each flow has one.
    pub fn write(&mut self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        if let [queue] = self.queues.as_mut_slice() {
            queue.write(burst.frames_mut(), &mut self.coalescer, drops);
            return burst.recycle(pool);
        }
        let count = self.queues.len() as u64;
        for frame in burst.drain() {
            let number = (flow_number(frame.data()) % count) as usize;
            match self.queues.get_mut(number) {
                Some(queue) => queue.frames.push(frame),
                None => pool.put(frame),
            }
        }
        for queue in &mut self.queues {
            let mut frames = std::mem::take(&mut queue.frames);
            queue.write(frames.frames_mut(), &mut self.coalescer, drops);
            frames.recycle(pool);
            queue.frames = frames;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::tests::net::packet;

    #[test]
    fn a_flow_and_its_answers_have_one_number() {
        let ports = |a: u16, b: u16| {
            let mut upper = vec![0; 20];
            upper[..2].copy_from_slice(&a.to_be_bytes());
            upper[2..4].copy_from_slice(&b.to_be_bytes());
            upper
        };
        for (a, b) in [("10.0.0.1", "10.1.0.2"), ("fd00::1", "fd00:1::2")] {
            let there = packet(a, b, protocol::UDP, &ports(1000, 53));
            let back = packet(b, a, protocol::UDP, &ports(53, 1000));
            assert_eq!(flow_number(&there), flow_number(&back));
            let other = packet(a, b, protocol::UDP, &ports(1001, 53));
            assert_ne!(flow_number(&there), flow_number(&other));
            // Type and code of ICMP are not those of the answer.
            let echo = packet(a, b, protocol::ICMP, &[8; 8]);
            let reply = packet(b, a, protocol::ICMP, &[0; 8]);
            assert_eq!(flow_number(&echo), flow_number(&reply));
        }
        let mut first = packet("10.0.0.1", "10.1.0.2", protocol::UDP, &ports(1, 2));
        let mut later = packet("10.0.0.1", "10.1.0.2", protocol::UDP, &ports(3, 4));
        first[6] |= 0x20;
        later[7] = 9;
        assert_eq!(flow_number(&first), flow_number(&later));
        let spread: std::collections::BTreeSet<u64> = (0..64)
            .map(|port| packet("10.0.0.1", "10.1.0.2", protocol::TCP, &ports(port, 5201)))
            .map(|packet| flow_number(&packet) % 4)
            .collect();
        assert_eq!(spread.len(), 4);
        assert_eq!(flow_number(&[]), 0);
    }
}
