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
use crate::features::kernel_release;
use crate::umem::{BURST, Burst, Frame, FramePool, TAILROOM};

/// Packets that are read at once, and as many more as the last one was cut into. Programs write to a
/// connection in pieces such as 128 KiB: two packets of 64 KiB and small ones behind them, which leave
/// together in fewer trains.
const AT_ONCE: usize = 2 * BURST;

/// Largest packet a TUN hands over.
const LARGEST: usize = 65_536;

/// A TUN interface that lives as long as this value (and what it gave out).
pub struct Tun {
    /// A descriptor of each queue.
    queues: Vec<File>,
    name: String,
    /// Transport protocols whose packets it takes in one piece.
    joined: &'static [u8],
}

impl Tun {
    /// Creates the interface with a number of queues (at least one), or attaches to a persistent one of
    /// that name. The kernel keeps each flow of the host's packets on one queue. With `datagrams` it gets UDP
    /// joined if it takes that.
    pub fn open(name: &str, queues: usize, mut datagrams: bool) -> Result<Self, BackendError> {
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
                    // UDP segmentation came with Linux 6.2.
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
            joined: if datagrams {
                &[protocol::TCP, protocol::UDP]
            } else {
                &[protocol::TCP]
            },
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
            coalescer: Coalescer::new(self.joined),
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
    /// Reads until there are twice [`BURST`] packets, the pool runs dry or nothing is queued: how many packets
    /// came, and whether there may be more to read. What is to be cut goes to `train` first, which takes it
    /// behind all that is in `burst` and says how many packets it is, or leaves it to be cut here. A packet too
    /// large for one frame and not marked for segmentation is dropped. An error means that the interface
    /// is gone.
    pub fn read(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        drops: &DropCounters,
        mut train: impl FnMut(&VnetHeader, &[u8], &mut Burst, &mut FramePool) -> Option<usize>,
    ) -> io::Result<(usize, bool)> {
        let mut packets = 0;
        while packets < AT_ONCE {
            let Some(mut frame) = pool.get() else {
                return Ok((packets, false));
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
                    return Ok((packets, false));
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
                    packets += 1;
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
            let packet = self.large.get(..length).unwrap_or_default();
            packets += match train(&header, packet, burst, pool) {
                Some(taken) => taken,
                None => segment(&header, packet, pool, burst, drops),
            };
        }
        Ok((packets, true))
    }
}

/// Cuts a packet into frames: how many it made.
fn segment(
    header: &VnetHeader,
    packet: &[u8],
    pool: &mut FramePool,
    burst: &mut Burst,
    drops: &DropCounters,
) -> usize {
    let Some(mut segmenter) = Segmenter::new(header, packet) else {
        drops.add(DropReason::Unsupported);
        return 0;
    };
    let mut packets = 0;
    while let Some(length) = segmenter.next_len() {
        let Some(mut frame) = pool.get() else {
            drops.add(DropReason::WanFull);
            break;
        };
        let fits = length + TAILROOM <= frame.tailroom();
        if fits && frame.append(length).is_ok() && segmenter.write_next(frame.data_mut()) {
            burst.push(frame);
            packets += 1;
        } else {
            drops.add(DropReason::TooBig);
            pool.put(frame);
            break;
        }
    }
    packets
}

/// Gives inner packets to the host.
pub struct TunWriter {
    queues: Vec<Queue>,
    coalescer: Coalescer,
}

struct Queue<W = File> {
    file: W,
    /// What goes through it, where there are several; empty between calls.
    frames: Burst,
}

impl<W: Write> Queue<W> {
    fn write(&mut self, frames: &mut [Frame], coalescer: &mut Coalescer, drops: &DropCounters) {
        let mut refused = false;
        coalescer.deliver(frames, |header, pieces| match self.put(&header, pieces) {
            Ok(()) => {}
            Err(error)
                if header.gso_type != VnetHeader::GSO_NONE
                    && error.raw_os_error() == Some(libc::EINVAL) =>
            {
                refused = true;
                self.put_apart(&header, &pieces.concat(), drops);
            }
            Err(_) => drops.add(DropReason::TunFull),
        });
        if refused {
            tracing::warn!(
                kernel = kernel_release(),
                "the kernel refuses what it is to cut, a fault of some releases (6.6.44 is one); from now on \
                 it gets packets one by one, which is slower: update it"
            );
            *coalescer = Coalescer::new(&[]);
        }
    }

    fn put(&mut self, header: &VnetHeader, pieces: &[&[u8]]) -> io::Result<()> {
        let head = header.emit();
        let mut slices = [IoSlice::new(&[]); super::gro::MOST_PIECES + 1];
        slices[0] = IoSlice::new(&head);
        let mut count = 1;
        for (slice, piece) in slices[1..].iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        self.file.write_vectored(&slices[..count]).map(drop)
    }

    /// Writes the packets that were joined to `packet`.
    fn put_apart(&mut self, header: &VnetHeader, packet: &[u8], drops: &DropCounters) {
        let mut segmenter = Segmenter::new(header, packet);
        while let Some(segmenter) = &mut segmenter
            && let Some(length) = segmenter.next_len()
        {
            let mut one = vec![0; length];
            if !segmenter.write_next(&mut one) || self.put(&VnetHeader::default(), &[&one]).is_err()
            {
                drops.add(DropReason::TunFull);
            }
        }
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
    /// Writes the whole burst, neighbouring TCP segments of a flow as one packet, UDP datagrams too where
    /// the kernel cuts them rightly, and returns the frames to `pool`. The kernel hands the answers of a
    /// flow out by the queue that it was last written through, so each flow has one.
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
    use crate::umem::Arena;

    /// A kernel that takes no packets to cut.
    #[derive(Default)]
    struct Refusing {
        taken: Vec<Vec<u8>>,
        refused: usize,
    }

    impl Write for Refusing {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let (head, packet) = octets.split_first_chunk().unwrap();
            if VnetHeader::parse(head).gso_type != VnetHeader::GSO_NONE {
                self.refused += 1;
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            self.taken.push(packet.to_vec());
            Ok(octets.len())
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let octets: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            self.write(&octets)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_kernel_refuses_to_cut_reaches_it_in_pieces() {
        let arena = Arena::new(16, 2048).unwrap();
        let mut pool = arena.take(16);
        let mut queue = Queue {
            file: Refusing::default(),
            frames: Burst::new(),
        };
        let mut coalescer = Coalescer::new(&[protocol::TCP, protocol::UDP]);
        let drops = DropCounters::default();
        let datagrams: Vec<_> = (0..5u8)
            .map(|number| {
                let mut udp = vec![number; 108];
                udp[..8].copy_from_slice(&[1, 0, 2, 0, 0, 108, 0, 0]);
                let mut datagram = packet("10.0.0.1", "10.1.0.2", protocol::UDP, &udp);
                let pseudo = checksum::pseudo_header(&datagram, protocol::UDP, 108).unwrap();
                let sum = pseudo.add(&udp).finish();
                datagram[26..28].copy_from_slice(&sum.to_ne_bytes());
                // Its identification need not count up.
                datagram[6] |= 0x40;
                datagram
            })
            .collect();
        for round in 1..=2 {
            let mut burst = Burst::new();
            for datagram in &datagrams {
                let mut frame = pool.get().unwrap();
                let room = frame.append(datagram.len()).unwrap();
                room.copy_from_slice(datagram);
                burst.push(frame);
            }
            queue.write(burst.frames_mut(), &mut coalescer, &drops);
            burst.recycle(&mut pool);
            assert_eq!(queue.file.taken.len(), 5 * round);
            assert_eq!(queue.file.refused, 1);
        }
        let payload = |packet: &[u8]| packet[28..].to_vec();
        let sent = datagrams.iter().chain(&datagrams).map(|p| payload(p));
        assert!(sent.eq(queue.file.taken.iter().map(|p| payload(p))));
        assert_eq!(drops.snapshot(), [0; DropReason::COUNT]);
    }

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
