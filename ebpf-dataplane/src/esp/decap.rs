//! Inbound: from ESP to inner IP packets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::drops::DropReason;
use espada_common::replay;
use espada_common::sa::{
    ChildSa, ChildSaId, Command, Encapsulation, EspSuite, Event, Mode, Path, TrafficSelector,
};
use espada_common::wire::{self, ipv4, ipv6};

use super::crypto::{self, EspCrypto, Job};
use super::ip::{self, Fragment, Outer, ecn, protocol};
use super::meter::Meter;
use super::sad::{self, Geometry, Slab, TRAILER};
use super::spd::FastMap;
use super::stats::{Direction, SaCounters};
use super::window::Window;
use super::{ApplyError, Config, Output, Shared, Stats};
use crate::port::checksum;
use crate::umem::{Burst, Frame, FramePool};

/// An address the peer was seen at is reported again if nobody moved the SA there meanwhile.
const MOVE_INTERVAL: Duration = Duration::from_secs(2);

struct InboundSa {
    id: ChildSaId,
    spi: u32,
    suite: EspSuite,
    crypto: Box<dyn EspCrypto>,
    window: Window,
    path: Path,
    mode: Mode,
    geometry: Geometry,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
    move_told: Option<(SocketAddr, Instant)>,
    counters: Arc<SaCounters>,
    /// Where it may not carry any amount.
    meter: Option<Meter>,
    /// Packets and inner octets of this burst.
    packets: u64,
    bytes: u64,
}

/// The inbound half of the engine: inbound SAs and their replay windows.
pub struct Inbound {
    config: Config,
    stats: Arc<Stats>,
    sas: Slab<InboundSa>,
    spis: FastMap<u32, u32>,
    ids: FastMap<u64, u32>,
    /// Packets of the burst on their way through the cipher; kept for its capacity.
    jobs: Vec<Job>,
}

/// What became of an authenticated packet.
enum Opened {
    /// It holds the inner packet.
    Inner,
    /// RFC 4303 section 2.6: a dummy packet.
    Dummy,
}

impl Inbound {
    /// An engine half without SAs.
    pub fn new(config: Config, stats: Arc<Stats>) -> Self {
        Self {
            config,
            stats,
            sas: Slab::default(),
            spis: FastMap::default(),
            ids: FastMap::default(),
            jobs: Vec::with_capacity(crate::umem::BURST),
        }
    }

    /// Carries out a command as far as it concerns inbound traffic. When it fails, nothing has
    /// changed.
    pub fn apply(&mut self, command: &Command) -> Result<(), ApplyError> {
        self.apply_shared(command, None)
    }

    /// [`Inbound::apply`] as one of several lanes: a pair that is installed takes what it has in common
    /// with the others from `shared`.
    pub fn apply_shared(
        &mut self,
        command: &Command,
        shared: Option<&Arc<Shared>>,
    ) -> Result<(), ApplyError> {
        match command {
            Command::InstallPolicy(_) | Command::RemovePolicy { .. } | Command::Retire { .. } => {}
            Command::InstallSa(sa) => self.install(sa, shared)?,
            Command::RekeySa { old, new, .. } => {
                // The old SA still receives what the peer sent before it moved.
                self.slot(*old)?;
                self.install(new, shared)?;
            }
            Command::RemoveSa { id } => {
                let slot = self.slot(*id)?;
                self.ids.remove(&id.0);
                if let Some(sa) = self.sas.remove(slot) {
                    self.spis.remove(&sa.spi);
                }
                self.stats.unregister(*id, Direction::Inbound);
            }
            Command::MovePath { id, path } => {
                sad::check_path(path)?;
                let slot = self.slot(*id)?;
                let sa = self.sas.get_mut(slot).ok_or(ApplyError::UnknownSa(*id))?;
                sa.path = *path;
                sa.geometry = Geometry::new(&sa.suite, path);
                sa.move_told = None;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, id: u64, seq: u64) {
        let slot = self.slot(ChildSaId(id)).unwrap();
        let sa = self.sas.get_mut(slot).unwrap();
        sa.window.commit(seq).unwrap();
    }

    fn slot(&self, id: ChildSaId) -> Result<u32, ApplyError> {
        self.ids
            .get(&id.0)
            .copied()
            .ok_or(ApplyError::UnknownSa(id))
    }

    fn install(&mut self, sa: &ChildSa, shared: Option<&Arc<Shared>>) -> Result<(), ApplyError> {
        if self.ids.contains_key(&sa.id.0) {
            return Err(ApplyError::DuplicateSa(sa.id));
        }
        let spi = sa.inbound.spi;
        if self.spis.contains_key(&spi) {
            return Err(ApplyError::DuplicateSpi(spi));
        }
        sad::check_path(&sa.path)?;
        let window = Window::new(sa.replay_window, sa.suite.esn, shared)
            .ok_or(ApplyError::Suite(sa.suite))?;
        let slot = self.sas.insert(InboundSa {
            id: sa.id,
            spi,
            suite: sa.suite,
            crypto: crypto::new(&sa.suite, &sa.inbound)?,
            window,
            path: sa.path,
            mode: sa.mode,
            geometry: Geometry::new(&sa.suite, &sa.path),
            local_ts: sa.local_ts.clone(),
            remote_ts: sa.remote_ts.clone(),
            move_told: None,
            counters: self.stats.register(sa.id, Direction::Inbound),
            meter: Meter::new(sa.id, &sa.allowances, shared.map(|shared| &shared.received)),
            packets: 0,
            bytes: 0,
        });
        self.spis.insert(spi, slot);
        self.ids.insert(sa.id.0, slot);
        Ok(())
    }

    /// Takes all ESP packets out of `input`; frames that are not passed on go back to `pool`.
    /// `meta().path` of a frame says where it arrived and from whom. With `Encapsulation::Esp` the
    /// frame starts at the outer IP header, with `Encapsulation::Udp` at the ESP header (and
    /// `meta().tos` is the outer one). Packets of one SA keep their order.
    pub fn process(
        &mut self,
        now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        out: &mut Output,
    ) {
        for frame in input.drain() {
            self.admit(frame, pool);
        }
        crypto::group(&mut self.jobs);
        for run in self.jobs.chunk_by_mut(|a, b| a.slot == b.slot) {
            if let Some(sa) = run.first().and_then(|job| self.sas.get_mut(job.slot)) {
                sa.crypto.open(run);
            }
        }
        let mut jobs = std::mem::take(&mut self.jobs);
        let mut last = None;
        for job in jobs.drain(..) {
            if last != Some(job.slot) {
                self.count(last, now, out);
                last = Some(job.slot);
            }
            self.accept(now, job, pool, out);
        }
        self.count(last, now, out);
        self.jobs = jobs;
    }

    /// Everything that can be refused before the packet costs a decryption.
    fn admit(&mut self, mut frame: Frame, pool: &mut FramePool) {
        let native = frame.meta().path.encapsulation == Encapsulation::Esp;
        let head = if native {
            match strip_outer(&mut frame) {
                Ok(head) => head,
                Err(reason) => return self.drop(frame, reason, pool),
            }
        } else {
            0
        };
        let Some(header) = wire::esp::header(&frame.data(), 0) else {
            return self.drop(frame, DropReason::Malformed, pool);
        };
        let Some(slot) = self.spis.get(&header.spi).copied() else {
            return self.drop(frame, DropReason::UnknownSpi, pool);
        };
        let Some(sa) = self.sas.get(slot) else {
            return self.drop(frame, DropReason::Internal, pool);
        };
        let path = &frame.meta().path;
        let reason = if native
            && (path.local.ip() != sa.path.local.ip() || path.remote.ip() != sa.path.remote.ip())
        {
            Some(DropReason::WrongAddress)
        } else if !sa.geometry.plausible(frame.len(), sa.suite.cipher) {
            Some(DropReason::Malformed)
        } else if sa.meter.as_ref().is_some_and(Meter::is_over) {
            Some(DropReason::Expired)
        } else {
            None
        };
        if let Some(reason) = reason {
            sa.counters.drops.add(reason);
            return pool.put(frame);
        }
        // RFC 4303 section 3.4.3 rejects duplicates and what lies left of the window before the
        // integrity check, and then: "The receive window is updated only if the integrity
        // verification succeeds." Hence check here, authenticate in the cipher, commit in `accept`.
        match sa.window.check(header.seq) {
            Ok(seq) => {
                frame.meta_mut().spi = header.spi;
                let order = self.jobs.len() as u32;
                self.jobs.push(Job {
                    frame,
                    seq,
                    ok: false,
                    slot,
                    order,
                    head,
                    octets: 0,
                });
            }
            Err(replay::Replayed) => {
                sa.counters.drops.add(DropReason::Replay);
                pool.put(frame);
            }
        }
    }

    /// What follows decryption: replay window, padding, inner packet, selectors, ECN.
    fn accept(&mut self, now: Instant, job: Job, pool: &mut FramePool, out: &mut Output) {
        let Some(sa) = self.sas.get_mut(job.slot) else {
            return self.drop(job.frame, DropReason::Internal, pool);
        };
        let mut frame = job.frame;
        let result = if !job.ok {
            Err(DropReason::AuthFailed)
        } else {
            match sa.window.commit(job.seq) {
                // The same number twice in one burst passes `check` both times.
                Err(replay::Replayed) => Err(DropReason::Replay),
                Ok(newest) => {
                    if newest && let Some(event) = moved(sa, &frame.meta().path, now) {
                        out.events.push(event);
                    }
                    unwrap(sa, &self.config, &mut frame, job.head)
                }
            }
        };
        match result {
            Ok(Opened::Inner) => {
                sa.packets += 1;
                sa.bytes += frame.len() as u64;
                out.tun.push(frame);
            }
            Ok(Opened::Dummy) => pool.put(frame),
            Err(reason) => {
                sa.counters.drops.add(reason);
                pool.put(frame);
            }
        }
    }

    fn count(&mut self, slot: Option<u32>, now: Instant, out: &mut Output) {
        if let Some(sa) = slot.and_then(|slot| self.sas.get_mut(slot))
            && sa.packets > 0
        {
            sa.counters
                .carried(sa.packets, sa.bytes, self.stats.since_epoch(now));
            if let Some(meter) = &mut sa.meter {
                out.events.extend(meter.carried(sa.bytes, sa.packets));
            }
            (sa.packets, sa.bytes) = (0, 0);
        }
    }

    fn drop(&self, frame: Frame, reason: DropReason, pool: &mut FramePool) {
        self.stats.inbound_drops.add(reason);
        pool.put(frame);
    }
}

/// Moves the outer IP header of native ESP into the headroom, and its addresses, DSCP, ECN and TTL
/// into the metadata. Gives the header's length.
fn strip_outer(frame: &mut Frame) -> Result<usize, DropReason> {
    let data = frame.data();
    let (len, head, next, whole, tos, ttl, source, destination) = match data.first() {
        Some(first) if first >> 4 == 4 => {
            let header = ipv4::header(&data, 0).ok_or(DropReason::Malformed)?;
            (
                header.total_len,
                header.header_len,
                header.protocol,
                header.fragment_offset == 0 && !header.more_fragments,
                header.tos,
                data.get(8).copied().unwrap_or(0),
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
            )
        }
        _ => {
            let header = ipv6::header(&data, 0).ok_or(DropReason::Malformed)?;
            let upper = ipv6::upper(&data, 0, header.next_header).ok_or(DropReason::Malformed)?;
            (
                header.total_len,
                upper.offset,
                upper.protocol,
                upper.fragment.is_none(),
                header.tos,
                header.hop_limit,
                IpAddr::from(header.source.octets()),
                IpAddr::from(header.destination.octets()),
            )
        }
    };
    // Ports hand over reassembled packets; a fragment's ICV is not all there.
    if !whole {
        return Err(DropReason::Unsupported);
    }
    if next != protocol::ESP || head > len {
        return Err(DropReason::Malformed);
    }
    frame.truncate(len);
    frame.trim_front(head);
    let meta = frame.meta_mut();
    meta.tos = tos;
    meta.ttl = ttl;
    meta.path.local.set_ip(destination);
    meta.path.remote.set_ip(source);
    Ok(head)
}

/// RFC 7296 section 2.23: the peer's NAT mapping changed when an authenticated packet, newer than
/// all before (old ones may be replayed by somebody on the path), comes from elsewhere.
fn moved(sa: &mut InboundSa, arrived: &Path, now: Instant) -> Option<Event> {
    let in_udp = |path: &Path| path.encapsulation == Encapsulation::Udp;
    if !in_udp(arrived) || !in_udp(&sa.path) || arrived.remote == sa.path.remote {
        return None;
    }
    let told = sa.move_told.is_some_and(|(remote, at)| {
        remote == arrived.remote && now.saturating_duration_since(at) < MOVE_INTERVAL
    });
    if told {
        return None;
    }
    sa.move_told = Some((arrived.remote, now));
    Some(Event::NatMoved {
        id: sa.id,
        remote: arrived.remote,
    })
}

/// From a decrypted ESP packet to the inner packet.
fn unwrap(
    sa: &InboundSa,
    config: &Config,
    frame: &mut Frame,
    head: usize,
) -> Result<Opened, DropReason> {
    let geometry = &sa.geometry;
    frame.truncate(frame.len().saturating_sub(geometry.icv));
    let [.., padding, next_header] = *frame.data() else {
        return Err(DropReason::BadPadding);
    };
    let padding = usize::from(padding);
    let end = frame
        .len()
        .checked_sub(padding + TRAILER)
        .filter(|end| *end >= geometry.head())
        .ok_or(DropReason::BadPadding)?;
    // RFC 4303 section 2.4: "the receiver SHOULD inspect the Padding field." Some peers (python-vpn)
    // pad with zeros, which authentication covers all the same.
    let pad = frame
        .data()
        .get(end..end + padding)
        .ok_or(DropReason::BadPadding)?;
    let numbered = || {
        pad.iter()
            .zip(1..=u8::MAX)
            .all(|(octet, number)| *octet == number)
    };
    if !numbered() && pad.iter().any(|octet| *octet != 0) {
        return Err(DropReason::BadPadding);
    }
    frame.truncate(end);
    if next_header == protocol::NO_NEXT_HEADER {
        return Ok(Opened::Dummy);
    }
    match sa.mode {
        Mode::Tunnel => {
            frame.trim_front(geometry.head());
            let version = match next_header {
                protocol::IPV4 => 4,
                protocol::IPV6 => 6,
                _ => return Err(DropReason::Unsupported),
            };
            if frame.data().first().map(|first| first >> 4) != Some(version) {
                return Err(DropReason::Malformed);
            }
        }
        Mode::Transport => restore_header(sa, frame, head, next_header)?,
    }
    let inner = ip::parse(frame.data()).ok_or(DropReason::Malformed)?;
    // RFC 4303 section 2.7: octets behind the inner packet are traffic flow confidentiality padding.
    frame.truncate(inner.total_len);

    // RFC 4301 section 5.2, step 4: the packet must be one the SA was negotiated for.
    if !inner.flow.selected(&sa.remote_ts, &sa.local_ts) {
        let about =
            ip::flow_of_icmp_error(frame.data(), &inner).ok_or(DropReason::SelectorMismatch)?;
        if !about.selected(&sa.remote_ts, &sa.local_ts) {
            return Err(DropReason::SelectorMismatch);
        }
    }
    if sa.mode == Mode::Tunnel {
        let outer = frame.meta().tos;
        let field = ecn::decapsulated(inner.tos, outer).ok_or(DropReason::EcnCongestion)?;
        if field != inner.tos & 3 {
            ip::set_ecn(frame.data_mut(), field);
        }
    }
    if config.clamp_mss && inner.flow.protocol == protocol::TCP && inner.fragment != Fragment::Later
    {
        let most = geometry.max_inner(sa.mode, config.path_mtu, inner.header_len);
        if let Some(segment) = frame.data_mut().get_mut(inner.upper_offset..) {
            ip::clamp_mss(segment, sad::max_mss(most, inner.is_v6()));
        }
    }
    Ok(Opened::Inner)
}

/// Transport mode: puts an IP header before the payload again: the packet's own for native ESP,
/// one made of the datagram's addresses for ESP in UDP.
fn restore_header(
    sa: &InboundSa,
    frame: &mut Frame,
    head: usize,
    next_header: u8,
) -> Result<(), DropReason> {
    let esp_head = sa.geometry.head();
    let payload = frame.len().saturating_sub(esp_head);
    if head > 0 {
        frame.prepend(head).map_err(|_| DropReason::Internal)?;
        frame.data_mut().copy_within(..head, esp_head);
        frame.trim_front(esp_head);
        let total = u16::try_from(head + payload).map_err(|_| DropReason::Malformed)?;
        let header = frame
            .data_mut()
            .get_mut(..head)
            .ok_or(DropReason::Internal)?;
        match header {
            [first, ..] if *first >> 4 == 4 && head >= 20 => {
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[9] = next_header;
                checksum::ipv4_header(header);
            }
            // Extension headers before ESP would hold the next header elsewhere; none are carried.
            header if head == ipv6::HEADER_LEN => {
                header[4..6].copy_from_slice(&(total - head as u16).to_be_bytes());
                header[6] = next_header;
            }
            _ => return Err(DropReason::Unsupported),
        }
        return Ok(());
    }
    frame.trim_front(esp_head);
    let meta = *frame.meta();
    let outer = Outer {
        source: meta.path.remote.ip(),
        destination: meta.path.local.ip(),
        tos: meta.tos,
        ttl: meta.ttl,
        df: true,
        id: 0,
        protocol: next_header,
        label: 0,
    };
    let head = ip::outer_len(outer.destination);
    let header = frame.prepend(head).map_err(|_| DropReason::Internal)?;
    ip::build(&outer, payload, header).ok_or(DropReason::WrongAddress)?;
    // RFC 3948 section 3.1.2: the sender summed over addresses that a NAT has changed since. What
    // arrives is authenticated, so the checksum is made anew.
    let (header, segment) = frame.data_mut().split_at_mut(head);
    renew_checksum(header, next_header, segment);
    Ok(())
}

fn renew_checksum(header: &[u8], protocol: u8, segment: &mut [u8]) {
    let field = match protocol {
        protocol::TCP => 16..18,
        protocol::UDP => 6..8,
        _ => return,
    };
    let length = segment.len();
    let (Some(pseudo), Some(old)) = (
        checksum::pseudo_header(header, protocol, length),
        segment.get_mut(field.clone()),
    ) else {
        return;
    };
    old.fill(0);
    let sum = match pseudo.add(segment).finish() {
        0 => 0xffff,
        sum => sum,
    };
    if let Some(new) = segment.get_mut(field) {
        new.copy_from_slice(&sum.to_ne_bytes());
    }
}
