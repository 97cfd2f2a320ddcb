//! Outbound: from inner IP packets to ESP.

mod train;

use std::sync::Arc;
use std::time::Instant;

use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, ChildSaId, Command, Encapsulation, EspSuite, Event, Mode, Path, Takeover,
    TrafficSelector,
};

use super::crypto::{self, EspCrypto, Job};
use super::held::Held;
use super::ip::{self, Fragment, Inner, Outer, protocol};
use super::meter::Meter;
use super::pmtu::{self, IPV6_MIN_MTU, RateLimit};
use super::sad::{self, Geometry, Slab};
use super::sequence::{Sequence, Shared};
use super::spd::{FastMap, Spd, Verdict};
use super::stats::{Direction, SaCounters};
use super::{ApplyError, Config, DfPolicy, Output, Stats};
use crate::port::checksum;
use crate::umem::{Burst, Frame, FramePool, Meta, NoRoom};

struct OutboundSa {
    id: ChildSaId,
    connection: Arc<str>,
    spi: u32,
    sequence: Sequence,
    suite: EspSuite,
    crypto: Box<dyn EspCrypto>,
    path: Path,
    mode: Mode,
    path_mtu: u16,
    geometry: Geometry,
    /// Identification of outer IPv4 headers.
    ip_id: u16,
    counters: Arc<SaCounters>,
    /// Where it may not carry any amount.
    meter: Option<Meter>,
    /// Sends when this SA is removed.
    successor: Option<Box<Successor>>,
}

/// An SA that does not send yet, and what it will send.
struct Successor {
    slot: u32,
    id: ChildSaId,
    connection: Arc<str>,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
}

/// The outbound half of the engine: SPD, outbound SAs and their sequence numbers.
pub struct Outbound {
    config: Config,
    stats: Arc<Stats>,
    spd: Spd,
    sas: Slab<OutboundSa>,
    ids: FastMap<u64, u32>,
    icmp_limit: RateLimit,
    /// Packets of the burst between headers and cipher; kept for its capacity.
    jobs: Vec<Job>,
    /// Packets of one SA between cipher and port; kept for its capacity.
    sealed: Burst,
    /// Packets that wait for an SA.
    held: Held,
}

/// Sends all of a burst, and leaves it empty.
pub type Send<'a> = &'a mut dyn FnMut(&mut Burst, &mut FramePool);

impl Outbound {
    /// An engine half without policies and SAs.
    pub fn new(config: Config, stats: Arc<Stats>) -> Self {
        Self {
            config,
            stats,
            spd: Spd::new(),
            sas: Slab::default(),
            ids: FastMap::default(),
            icmp_limit: RateLimit::new(),
            jobs: Vec::with_capacity(crate::umem::BURST),
            sealed: Burst::new(),
            held: Held::default(),
        }
    }

    /// Carries out a command as far as it concerns outbound traffic. When it fails, nothing has
    /// changed.
    pub fn apply(&mut self, command: &Command) -> Result<(), ApplyError> {
        self.apply_shared(command, None)
    }

    /// [`Outbound::apply`] as one of several lanes: a pair that is installed takes what it has in common
    /// with the others from `shared`.
    pub fn apply_shared(
        &mut self,
        command: &Command,
        shared: Option<&Arc<Shared>>,
    ) -> Result<(), ApplyError> {
        match command {
            Command::InstallPolicy(policy) => self.spd.install(policy),
            Command::RemovePolicy { connection } => self.spd.remove(connection)?,
            Command::InstallSa(sa) => {
                let slot = self.store(sa, shared)?;
                self.spd
                    .add_sa(&sa.connection, slot, &sa.local_ts, &sa.remote_ts);
            }
            Command::RekeySa { old, new, takeover } => {
                let old = self.slot(*old)?;
                let slot = self.store(new, shared)?;
                let successor = Successor {
                    slot,
                    id: new.id,
                    connection: Arc::clone(&new.connection),
                    local_ts: new.local_ts.clone(),
                    remote_ts: new.remote_ts.clone(),
                };
                match (takeover, self.sas.get_mut(old)) {
                    (Takeover::WithRemoval, Some(old)) => old.successor = Some(Box::new(successor)),
                    (_, sa) => {
                        let (waiting, connection) = sa
                            .map(|sa| (sa.successor.take(), Arc::clone(&sa.connection)))
                            .unzip();
                        self.send_on(&successor);
                        if let Some(new) = self.sas.get_mut(slot) {
                            new.successor = waiting.flatten();
                        }
                        if let Some(connection) = connection {
                            self.spd.remove_sa(&connection, old);
                        }
                    }
                }
            }
            Command::Retire { id } => {
                let slot = self.slot(*id)?;
                if let Some(sa) = self.sas.get_mut(slot) {
                    let (successor, connection) = (sa.successor.take(), Arc::clone(&sa.connection));
                    if let Some(successor) = successor {
                        self.send_on(&successor);
                    }
                    self.spd.remove_sa(&connection, slot);
                }
            }
            Command::RemoveSa { id } => {
                let slot = self.slot(*id)?;
                self.ids.remove(&id.0);
                if let Some(sa) = self.sas.remove(slot) {
                    if let Some(successor) = sa.successor {
                        self.send_on(&successor);
                    }
                    self.spd.remove_sa(&sa.connection, slot);
                }
                self.stats.unregister(*id, Direction::Outbound);
            }
            Command::MovePath { id, path } => {
                sad::check_path(path)?;
                let path_mtu = self.config.path_mtu;
                let sa = self.sa(*id)?;
                sa.path = *path;
                sa.path_mtu = path_mtu;
                sa.geometry = Geometry::new(&sa.suite, path);
            }
        }
        Ok(())
    }

    /// Sets the path MTU (octets of outer IP packet) towards an SA's peer. It holds until the SA
    /// moves to another path.
    pub fn set_path_mtu(&mut self, id: ChildSaId, mtu: u16) -> Result<(), ApplyError> {
        self.sa(id)?.path_mtu = mtu;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, id: u64, seq: u64) {
        self.sa(ChildSaId(id)).unwrap().sequence.skip_to(seq);
    }

    fn slot(&self, id: ChildSaId) -> Result<u32, ApplyError> {
        self.ids
            .get(&id.0)
            .copied()
            .ok_or(ApplyError::UnknownSa(id))
    }

    fn sa(&mut self, id: ChildSaId) -> Result<&mut OutboundSa, ApplyError> {
        let slot = self.slot(id)?;
        self.sas.get_mut(slot).ok_or(ApplyError::UnknownSa(id))
    }

    /// Brings a successor's traffic to it, unless it has been removed meanwhile.
    fn send_on(&mut self, successor: &Successor) {
        if self.ids.get(&successor.id.0) == Some(&successor.slot) {
            self.spd.add_sa(
                &successor.connection,
                successor.slot,
                &successor.local_ts,
                &successor.remote_ts,
            );
        }
    }

    /// Makes an SA without traffic.
    fn store(&mut self, sa: &ChildSa, shared: Option<&Arc<Shared>>) -> Result<u32, ApplyError> {
        if self.ids.contains_key(&sa.id.0) {
            return Err(ApplyError::DuplicateSa(sa.id));
        }
        sad::check_path(&sa.path)?;
        let crypto = crypto::new(&sa.suite, &sa.outbound)?;
        let last_seq = if sa.suite.esn {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        let slot = self.sas.insert(OutboundSa {
            id: sa.id,
            connection: Arc::clone(&sa.connection),
            spi: sa.outbound.spi,
            sequence: Sequence::new(last_seq, shared),
            suite: sa.suite,
            crypto,
            path: sa.path,
            mode: sa.mode,
            path_mtu: self.config.path_mtu,
            geometry: Geometry::new(&sa.suite, &sa.path),
            ip_id: shared.map_or(0, |shared| shared.first_identification()),
            counters: self.stats.register(sa.id, Direction::Outbound),
            meter: Meter::new(sa.id, &sa.allowances, shared.map(|shared| &shared.sent)),
            successor: None,
        });
        self.ids.insert(sa.id.0, slot);
        Ok(slot)
    }

    /// Takes all inner packets out of `input`; frames that are not passed on go back to `pool`.
    /// Packets of one SA keep their order.
    pub fn process(
        &mut self,
        now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        out: &mut Output,
    ) {
        self.run(now, input, pool, out, None);
    }

    /// [`Outbound::process`] where `send` takes what is for the WAN. With several lanes it gets the packets
    /// of an SA in the order of their sequence numbers, those of other lanes too.
    pub fn process_in_turn(
        &mut self,
        now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        out: &mut Output,
        send: Send<'_>,
    ) {
        self.run(now, input, pool, out, Some(&mut *send));
        if !out.wan.is_empty() {
            send(&mut out.wan, pool);
        }
    }

    fn run(
        &mut self,
        now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        out: &mut Output,
        send: Option<Send<'_>>,
    ) {
        self.admit_all(now, input, pool, out);
        self.seal(now, pool, out, send);
    }

    /// Takes all inner packets out of `input` as [`Outbound::process`] does, to be sent with its next ones.
    pub fn admit_all(
        &mut self,
        now: Instant,
        input: &mut Burst,
        pool: &mut FramePool,
        out: &mut Output,
    ) {
        for frame in input.drain() {
            self.admit(now, frame, pool, out);
        }
    }

    /// From a packet of the tunnel interface to jobs for the cipher.
    fn admit(&mut self, now: Instant, mut frame: Frame, pool: &mut FramePool, out: &mut Output) {
        if let Some(partial) = frame.meta_mut().checksum.take() {
            let (start, offset) = (partial.start.into(), partial.offset.into());
            if !checksum::complete(frame.data_mut(), start, offset) {
                return self.drop(frame, DropReason::Malformed, pool);
            }
        }
        let Some(inner) = ip::parse(frame.data()) else {
            return self.drop(frame, DropReason::Malformed, pool);
        };
        frame.truncate(inner.total_len);
        let mut verdict = self.spd.lookup(&inner.flow);
        if verdict == Verdict::NoPolicy
            && let Some(flow) = ip::flow_of_icmp_error(frame.data(), &inner)
        {
            verdict = self.spd.lookup(&flow);
        }
        let slot = match verdict {
            Verdict::Protect(slot) => slot,
            Verdict::NoPolicy => return self.drop(frame, DropReason::NoPolicy, pool),
            Verdict::NoSa { policy } => {
                if let Some(connection) = self.spd.acquire(policy, now) {
                    out.events.push(Event::Acquire {
                        connection,
                        source: inner.flow.source,
                        destination: inner.flow.destination,
                    });
                }
                return self.hold(now, frame, &inner, policy, pool);
            }
        };
        let Some(sa) = self.sas.get(slot) else {
            return self.drop(frame, DropReason::Internal, pool);
        };
        let most = sa
            .geometry
            .max_inner(sa.mode, sa.path_mtu, inner.header_len);
        if self.config.clamp_mss
            && inner.flow.protocol == protocol::TCP
            && inner.fragment != Fragment::Later
            && let Some(segment) = frame.data_mut().get_mut(inner.upper_offset..)
        {
            ip::clamp_mss(segment, sad::max_mss(most, inner.is_v6()));
        }
        if inner.total_len > most {
            return self.oversized(now, slot, frame, &inner, most, pool, out);
        }
        self.enqueue(slot, frame, &inner, inner.df, pool);
    }

    /// A packet for which there is no SA: one that asks for it waits until it comes.
    fn hold(
        &mut self,
        now: Instant,
        frame: Frame,
        inner: &Inner,
        policy: u32,
        pool: &mut FramePool,
    ) {
        let drops = &self.stats.outbound_drops;
        for overdue in self.held.overdue(now) {
            drops.add(DropReason::NoSa);
            pool.put(overdue);
        }
        let refused = if self.spd.is_trap(policy) {
            self.held.keep(now, frame, inner.flow, policy).err()
        } else {
            Some(frame)
        };
        if let Some(frame) = refused {
            self.drop(frame, DropReason::NoSa, pool);
        }
    }

    /// After a command: moves packets that waited for what it brought into `input`, to be processed.
    pub fn release(&mut self, now: Instant, input: &mut Burst, pool: &mut FramePool) {
        if self.held.is_empty() {
            return;
        }
        for overdue in self.held.overdue(now) {
            self.stats.outbound_drops.add(DropReason::NoSa);
            pool.put(overdue);
        }
        let spd = &mut self.spd;
        let ready = self
            .held
            .ready(|flow| !matches!(spd.lookup(flow), Verdict::NoSa { .. }));
        ready.into_iter().for_each(|frame| input.push(frame));
    }

    /// A packet above the inner MTU `most`: fragment it or tell its sender.
    #[allow(clippy::too_many_arguments)]
    fn oversized(
        &mut self,
        now: Instant,
        slot: u32,
        frame: Frame,
        inner: &Inner,
        most: usize,
        pool: &mut FramePool,
        out: &mut Output,
    ) {
        let tunnel = self.sas.get(slot).is_some_and(|sa| sa.mode == Mode::Tunnel);
        if inner.is_v6() && inner.total_len <= IPV6_MIN_MTU {
            // RFC 8200 section 5: no sender need go below 1280 octets, so what is this small must
            // be carried; the outer packet is fragmented instead.
            return self.enqueue(slot, frame, inner, false, pool);
        }
        if tunnel && !inner.df {
            let result = pmtu::fragment_v4(frame.data(), inner, most, pool, |fragment, pool| {
                self.enqueue(slot, fragment, inner, false, pool);
            });
            return match result {
                Ok(()) => pool.put(frame),
                Err(_) => self.drop_of(slot, frame, DropReason::TooBig, pool),
            };
        }
        if pmtu::may_answer(inner)
            && self.icmp_limit.allow(now)
            && let Some(mut reply) = pool.get()
        {
            let mtu = if inner.is_v6() {
                most.max(IPV6_MIN_MTU)
            } else {
                most
            };
            match pmtu::too_big(frame.data(), inner, mtu, &mut reply) {
                Ok(()) => out.tun.push(reply),
                Err(NoRoom) => pool.put(reply),
            }
        }
        self.drop_of(slot, frame, DropReason::TooBig, pool);
    }

    /// Gives a packet its trailer and headers, and queues it for the cipher.
    fn enqueue(
        &mut self,
        slot: u32,
        mut frame: Frame,
        inner: &Inner,
        df: bool,
        pool: &mut FramePool,
    ) {
        let Some(sa) = self.sas.get_mut(slot) else {
            return self.drop(frame, DropReason::Internal, pool);
        };
        let octets = frame.len() as u64;
        match wrap(sa, &self.config, &mut frame, inner, df) {
            Ok(head) => {
                let order = self.jobs.len() as u32;
                self.jobs.push(Job {
                    frame,
                    seq: 0,
                    ok: false,
                    slot,
                    order,
                    head,
                    octets,
                });
            }
            Err(reason) => self.drop_of(slot, frame, reason, pool),
        }
    }

    /// Numbers and encrypts what is queued, SA by SA, and hands it out: to `send` as far as it has turns.
    fn seal(
        &mut self,
        now: Instant,
        pool: &mut FramePool,
        out: &mut Output,
        mut send: Option<Send<'_>>,
    ) {
        crypto::group(&mut self.jobs);
        let at = self.stats.since_epoch(now);
        while let Some(slot) = self.jobs.last().map(|job| job.slot) {
            let others = self.jobs.iter().rposition(|job| job.slot != slot);
            let first = others.map_or(0, |last| last + 1);
            let (Some(sa), Some(run)) = (self.sas.get_mut(slot), self.jobs.get_mut(first..)) else {
                let frames = self.jobs.drain(first..).map(|job| job.frame);
                frames.for_each(|frame| pool.put(frame));
                continue;
            };
            let packets: usize = run.iter().map(|job| job.frame.packets()).sum();
            if sa.meter.as_ref().is_some_and(Meter::is_over) {
                sa.counters.drops.add_many(DropReason::Expired, packets);
                let frames = self.jobs.drain(first..).map(|job| job.frame);
                frames.for_each(|frame| pool.put(frame));
                continue;
            }
            let (mut block, turn) = match send {
                Some(_) => sa.sequence.take_in_turn(packets),
                None => (sa.sequence.take(packets), None),
            };
            let (mut numbered, mut carried, mut bytes) = (0, 0, 0);
            for job in run.iter_mut() {
                let count = job.frame.packets();
                let Some(seq) = block.split(count) else {
                    break;
                };
                job.number(seq);
                numbered += 1;
                carried += count;
                bytes += job.octets;
            }
            if carried < packets {
                let drops = &sa.counters.drops;
                drops.add_many(DropReason::SequenceExhausted, packets - carried);
            }
            let numbered = run.get_mut(..numbered).unwrap_or_default();
            if !numbered.is_empty() {
                sa.crypto.seal(numbered);
                sa.counters.carried(carried as u64, bytes, at);
            }
            let sealed = match turn {
                Some(_) => &mut self.sealed,
                None => &mut out.wan,
            };
            for mut job in self.jobs.drain(first..) {
                // The outer header was built in the headroom, right before the ESP header.
                if job.ok && job.frame.prepend(job.head).is_ok() {
                    sealed.push(job.frame);
                    continue;
                }
                // One without a number was counted with its SA.
                if job.seq != 0 {
                    let drops = &self.stats.outbound_drops;
                    drops.add_many(DropReason::Internal, job.frame.packets());
                }
                pool.put(job.frame);
            }
            // No turn of another SA is held meanwhile, so lanes that wait for each other's turns do not do
            // so in a circle.
            if let (Some(turn), Some(send)) = (turn, &mut send) {
                turn.deliver(sealed, |burst| send(burst, pool));
            }
            if let Some(meter) = &mut sa.meter
                && carried > 0
            {
                out.events.extend(meter.carried(bytes, carried as u64));
            }
            if carried > 0
                && let Some(remaining) = sa.sequence.runs_low()
            {
                out.events.push(Event::SeqLow {
                    id: sa.id,
                    remaining,
                });
            }
        }
    }

    fn drop(&self, frame: Frame, reason: DropReason, pool: &mut FramePool) {
        self.stats.outbound_drops.add(reason);
        pool.put(frame);
    }

    fn drop_of(&self, slot: u32, frame: Frame, reason: DropReason, pool: &mut FramePool) {
        if let Some(sa) = self.sas.get(slot) {
            sa.counters.drops.add(reason);
        }
        pool.put(frame);
    }
}

impl OutboundSa {
    /// How a packet with this outer type of service and Don't Fragment leaves.
    fn meta(&self, config: &Config, tos: u8, df: bool) -> Meta {
        Meta {
            path: self.path,
            tos,
            ttl: config.ttl,
            df,
            spi: self.spi,
            ..Meta::default()
        }
    }
}

/// The next header of ESP in tunnel mode.
fn inside(inner: &Inner) -> u8 {
    if inner.is_v6() {
        protocol::IPV6
    } else {
        protocol::IPV4
    }
}

/// The outer type of service or traffic class.
///
/// RFC 4301 section 5.1.2.1 also has the inner TTL decremented; the kernel did that when it forwarded the packet
/// into the tunnel interface, and a second time would count one hop twice.
///
/// RFC 6040 section 4.1, normal mode: the ECN field is copied to the outer header.
fn outer_tos(config: &Config, inner: &Inner) -> u8 {
    if config.copy_dscp {
        inner.tos
    } else {
        inner.tos & 3
    }
}

/// Outer Don't Fragment of a packet with or without it.
fn outer_df(config: &Config, df: bool) -> bool {
    match config.df {
        DfPolicy::Copy => df,
        DfPolicy::Set => true,
        DfPolicy::Clear => false,
    }
}

/// Puts trailer, ESP header and outer header around a packet, all but its sequence number. On success
/// the frame holds the ESP packet, with as many octets of outer header in the headroom before it as
/// returned.
fn wrap(
    sa: &mut OutboundSa,
    config: &Config,
    frame: &mut Frame,
    inner: &Inner,
    df: bool,
) -> Result<usize, DropReason> {
    let room = |_: NoRoom| DropReason::Internal;
    let geometry = sa.geometry;
    let native = sa.path.encapsulation == Encapsulation::Esp;
    // Octets of the packet's own header that stay outside (transport mode).
    let (own_header, next_header) = match sa.mode {
        Mode::Tunnel => (0, inside(inner)),
        Mode::Transport => {
            // RFC 4303 section 3.3.4: "transport mode ESP is applied only to whole IP datagrams".
            // IPv6 extension headers would have to be sorted to either side; none are carried.
            if inner.fragment != Fragment::Whole
                || (inner.is_v6() && inner.upper_offset != inner.header_len)
            {
                return Err(DropReason::Unsupported);
            }
            (inner.header_len, inner.flow.protocol)
        }
    };
    let payload = frame.len() - own_header;
    let trailer = frame.append(geometry.tail(payload)).map_err(room)?;
    geometry.write_trailer(trailer, next_header);

    let head = geometry.head();
    frame.prepend(head).map_err(room)?;
    if own_header > 0 {
        frame.data_mut().copy_within(head..head + own_header, 0);
        frame.trim_front(own_header);
    }
    let esp_len = frame.len();
    let header = frame.data_mut();
    header[..4].copy_from_slice(&sa.spi.to_be_bytes());

    let (tos, df) = (outer_tos(config, inner), outer_df(config, df));
    *frame.meta_mut() = sa.meta(config, tos, df);
    if !native {
        return Ok(0);
    }
    if own_header > 0 {
        let header = frame.prepend(own_header).map_err(room)?;
        turn_into_outer(header, esp_len);
        frame.trim_front(own_header);
        return Ok(own_header);
    }
    sa.ip_id = sa.ip_id.wrapping_add(1);
    let outer = Outer {
        source: sa.path.local.ip(),
        destination: sa.path.remote.ip(),
        tos,
        ttl: config.ttl,
        df,
        id: sa.ip_id,
        protocol: protocol::ESP,
        // Constant per SA, so that load balancing keeps its packets in order (RFC 6438).
        label: sa.spi,
    };
    let outer_len = ip::outer_len(outer.destination);
    let header = frame.prepend(outer_len).map_err(room)?;
    ip::build(&outer, esp_len, header).ok_or(DropReason::TooBig)?;
    frame.trim_front(outer_len);
    Ok(outer_len)
}

/// Transport mode: the packet's own header now announces ESP and the new length.
fn turn_into_outer(header: &mut [u8], esp_len: usize) {
    if header[0] >> 4 == 4 {
        let total = (header.len() + esp_len) as u16;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[9] = protocol::ESP;
        checksum::ipv4_header(header);
    } else {
        header[4..6].copy_from_slice(&(esp_len as u16).to_be_bytes());
        header[6] = protocol::ESP;
    }
}
