//! The tunnel interface: inner packets from and to the host's stack. The device speaks
//! IFF_VNET_HDR, so the kernel hands over TCP in packets of up to 64 KiB that are cut here.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use espada_common::drops::DropReason;

use super::checksum;
use super::gro::Coalescer;
use super::gso::{Segmenter, VnetHeader};
use super::syscall;
use crate::backend::BackendError;
use crate::esp::stats::DropCounters;
use crate::umem::{Burst, FramePool, TAILROOM};

/// Largest packet a TUN hands over.
const LARGEST: usize = 65_536;

/// A TUN interface that lives as long as this value (and its clones).
pub struct Tun {
    file: File,
    name: String,
}

impl Tun {
    /// Creates the interface, or attaches to a persistent one of that name.
    pub fn open(name: &str) -> Result<Self, BackendError> {
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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(system(
                "cannot open /dev/net/tun (is the tun module loaded, and is this root?)".into(),
            ))?;
        syscall::tun_attach(file.as_fd(), name).map_err(system(format!(
            "cannot create tunnel interface `{name}` (needs CAP_NET_ADMIN, and no other process on it)"
        )))?;
        let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // UDP segmentation came with Linux 6.2.
        syscall::tun_set_offload(file.as_fd(), basic | libc::TUN_F_USO4 | libc::TUN_F_USO6)
            .or_else(|_| syscall::tun_set_offload(file.as_fd(), basic))
            .map_err(system(format!("cannot set the offloads of `{name}`")))?;
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reading half, for the outbound worker.
    pub fn reader(&self) -> io::Result<TunReader> {
        Ok(TunReader {
            file: self.file.try_clone()?,
            large: vec![0; LARGEST * 2],
        })
    }

    /// A writing half; each worker that writes has its own.
    pub fn writer(&self) -> io::Result<TunWriter> {
        Ok(TunWriter {
            file: self.file.try_clone()?,
            coalescer: Coalescer::default(),
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
    file: File,
    coalescer: Coalescer,
}

impl TunWriter {
    /// Writes the whole burst, neighbouring TCP segments of a flow as one packet, and returns the
    /// frames to `pool`.
    pub fn write(&mut self, burst: &mut Burst, pool: &mut FramePool, drops: &DropCounters) {
        let file = &mut self.file;
        self.coalescer
            .deliver(burst.frames_mut(), |header, pieces| {
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
        burst.recycle(pool);
    }
}
