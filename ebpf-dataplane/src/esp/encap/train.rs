//! What the tunnel interface hands over in one piece, up to 64 KiB of a TCP or UDP flow that the kernel would
//! have cut, becomes a row of ESP packets that leaves in one piece again: it is looked up and measured
//! once, and cut right into its place in the row.

use espada_common::drops::DropReason;
use espada_common::sa::{Encapsulation, Mode};

use super::{Outbound, OutboundSa, inside, outer_df, outer_tos};
use crate::esp::Config;
use crate::esp::crypto::Job;
use crate::esp::ip::{self, Fragment, Inner};
use crate::esp::spd::Verdict;
use crate::port::gso::{Segmenter, VnetHeader};
use crate::port::udp::{MOST_OCTETS, MOST_SEGMENTS};
use crate::umem::{Frame, FramePool, Meta};

impl Outbound {
    /// Takes a packet that is to be cut, behind those that [`Outbound::admit_all`] took: how many packets it
    /// made. `None` when it has to be cut and come packet by packet, as most that is not ESP in UDP.
    pub fn admit_train(
        &mut self,
        header: &VnetHeader,
        packet: &[u8],
        pool: &mut FramePool,
    ) -> Option<usize> {
        let mut segments = Segmenter::new(header, packet)?;
        let inner = ip::parse(packet)?;
        let Verdict::Protect(slot) = self.spd.lookup(&inner.flow) else {
            return None;
        };
        let sa = self.sas.get(slot)?;
        let longest = segments.longest();
        let whole = inner.fragment == Fragment::Whole && inner.total_len == packet.len();
        if !whole || !sa.takes_row(&inner, longest) {
            return None;
        }
        let stride = sa.geometry.sealed(longest);
        let most = MOST_SEGMENTS.min(MOST_OCTETS / stride);
        let packets = segments.count();
        if packets > most * pool.available_rows() {
            return None;
        }
        let meta = sa.row_meta(&self.config, &inner, stride)?;
        while let Some(length) = segments.next_len() {
            let last = self.jobs.last();
            let mut open = last.is_some_and(|job| continues(job, slot, &meta, stride, most));
            if !open && let Some(row) = pool.get_row() {
                self.jobs.push(begin(row, slot, self.jobs.len(), meta));
                open = true;
            }
            let row = self.jobs.last_mut().filter(|_| open);
            let added = row.is_some_and(|row| sa.add(row, &inner, &mut segments, length));
            if !added {
                // The rest of it. There is room for all, so this is not met.
                self.stats.outbound_drops.add(DropReason::Internal);
                break;
            }
        }
        Some(packets)
    }
}

/// Whether one more packet goes behind those of a job: all of these have the full length.
fn continues(job: &Job, slot: u32, meta: &Meta, stride: usize, most: usize) -> bool {
    let other = job.frame.meta();
    let packets = job.frame.packets();
    job.slot == slot
        && (other.row, other.tos, other.df) == (meta.row, meta.tos, meta.df)
        && packets < most
        && job.frame.len() == packets * stride
}

fn begin(mut frame: Frame, slot: u32, order: usize, meta: Meta) -> Job {
    *frame.meta_mut() = meta;
    Job {
        slot,
        order: order as u32,
        ..Job::alone(frame, 0)
    }
}

impl OutboundSa {
    /// Whether packets like `inner` of up to so many octets can stand in a row.
    fn takes_row(&self, inner: &Inner, longest: usize) -> bool {
        let most = (self.geometry).max_inner(self.mode, self.path_mtu, inner.header_len);
        self.mode == Mode::Tunnel
            && self.path.encapsulation == Encapsulation::Udp
            && self.crypto.seals_rows()
            && longest <= most
    }

    fn row_meta(&self, config: &Config, inner: &Inner, stride: usize) -> Option<Meta> {
        let (tos, df) = (outer_tos(config, inner), outer_df(config, inner.df));
        Some(Meta {
            row: Some(u16::try_from(stride).ok()?),
            ..self.meta(config, tos, df)
        })
    }

    /// Adds the next segment, of `length`, to a row: the ESP packet but for its sequence number. When that fails
    /// the row is as it was.
    fn add(
        &self,
        row: &mut Job,
        inner: &Inner,
        segments: &mut Segmenter<'_>,
        length: usize,
    ) -> bool {
        let before = row.frame.len();
        let Ok(octets) = row.frame.append(self.geometry.sealed(length)) else {
            return false;
        };
        let (head, rest) = octets.split_at_mut(self.geometry.head());
        let (place, trailer) = rest.split_at_mut(length);
        if !segments.write_next(place) {
            row.frame.truncate(before);
            return false;
        }
        if let Some(spi) = head.first_chunk_mut() {
            *spi = self.spi.to_be_bytes();
        }
        self.geometry.write_trailer(trailer, inside(inner));
        row.octets += length as u64;
        true
    }
}
