//! The state of an established IKE SA in octets, so that another process of the same boot can go
//! on with it where this one stopped.
//!
//! What proves the message IDs right is the order of things: a state is stored before a message
//! that follows from it is sent. So nothing was sent that the state does not know of, and what it
//! knows of is sent again as it is. Times are those of a clock that outlives the process. ESP keys
//! are not in it: the data plane has them.

mod codec;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, SecretBytes};
use zeroize::Zeroizing;

use self::codec::Out;
use super::child::Child;
use super::collision::Rival;
use super::context::Common;
use super::established::{Established, Outstanding, Pending, Task};
use super::mobike::Ends;
use super::nat::Nat;
use super::rekey::{ChildRequest, Purpose};
use super::respond::Answered;
use super::retransmit::Retransmit;
use super::successor::IkeRequest;
use crate::crypto::dh::KeyExchange;
use crate::crypto::keys::IkeKeys;
use crate::identity::Identity;
use crate::proposal::IkeSuite;
use crate::status::Role;
use crate::wire::ExchangeType;
use crate::wire::reader::{DecodeError, Reader};

/// Version of the format.
pub(crate) const VERSION: u8 = 6;
/// Most octets of a state.
pub(crate) const MAX_STATE: usize = 16 * 1024;
/// What states are called in errors.
const WHAT: &str = "a saved IKE SA";

/// A moment on both clocks: the one of `Instant`, which is this process's, and the one that states
/// are written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub now: Instant,
    pub boot: Duration,
}

impl Clock {
    /// Nanoseconds on the clock of states.
    fn encode(&self, at: Instant) -> u64 {
        let boot = match at.checked_duration_since(self.now) {
            Some(later) => self.boot.saturating_add(later),
            None => self
                .boot
                .saturating_sub(self.now.saturating_duration_since(at)),
        };
        u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX)
    }

    /// `None` if this process's clock does not reach so far.
    fn decode(&self, nanoseconds: u64) -> Option<Instant> {
        let boot = Duration::from_nanos(nanoseconds);
        match boot.checked_sub(self.boot) {
            Some(later) => self.now.checked_add(later),
            None => Some(
                self.now
                    .checked_sub(self.boot.saturating_sub(boot))
                    .unwrap_or(self.now),
            ),
        }
    }
}

/// An IKE SA as read from octets; it becomes one again once its connection is found to fit.
pub(crate) struct Saved {
    pub common: Common,
    pub connection: String,
    pub local_id: Identity,
    pub remote_id: Identity,
    /// The peer proved it by a signature, not with a pre-shared key.
    pub signed: bool,
    pub suite: IkeSuite,
    pub keys: IkeKeys,
    pub next_iv: Option<u64>,
    pub since: Instant,
    pub rekey_at: Instant,
    pub expires: Instant,
    pub next_id: u32,
    pub expected_id: u32,
    pub answered: Option<Answered>,
    pub outstanding: Option<Outstanding>,
    pub queue: Vec<Task>,
    pub children: Vec<Child>,
    /// Further addresses of the peer.
    pub others: Vec<IpAddr>,
    pub deleting: bool,
    pub superseded: bool,
    pub contested: bool,
    pub ppk: bool,
    pub single_pairs: bool,
}

/// Writes IKE SAs into one state; `None` if they do not fit. Where all would fit but for the last
/// responses they go without: then a request that the peer repeats, because this process ended
/// before the response was sent or it was lost, stays unanswered, and the peer gives the IKE SA up.
pub(crate) fn encode(sas: &[(&Common, &Established)], clock: &Clock) -> Option<Zeroizing<Vec<u8>>> {
    let write = |responses| {
        let mut out = Out::new();
        out.u8(VERSION);
        out.u8(sas.len() as u8);
        for (common, established) in sas {
            write_sa(&mut out, common, established, clock, responses);
        }
        out.finish()
    };
    write(true).or_else(|| write(false))
}

/// Reads a state. The clock must be that of the boot it was written under.
pub(crate) fn decode(bytes: &[u8], clock: &Clock) -> Result<Vec<Saved>, SavedError> {
    let mut reader = Reader::new(bytes, WHAT);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(SavedError::Version(version));
    }
    let count = reader.u8()?;
    let mut saved = Vec::new();
    for _ in 0..count {
        saved.push(read_sa(&mut reader, clock)?);
    }
    reader.finish()?;
    Ok(saved)
}

/// Why octets are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SavedError {
    Version(u8),
    Format(DecodeError),
}

impl From<DecodeError> for SavedError {
    fn from(error: DecodeError) -> Self {
        Self::Format(error)
    }
}

/// A field that contradicts another or what can be.
fn invalid(problem: &'static str) -> DecodeError {
    DecodeError::Invalid {
        what: WHAT,
        problem,
    }
}

const RESPONDER: u32 = 1;
const NAT_LOCAL: u32 = 1 << 1;
const NAT_REMOTE: u32 = 1 << 2;
const NAT_FORCED: u32 = 1 << 3;
const DELETING: u32 = 1 << 4;
const SUPERSEDED: u32 = 1 << 5;
const ANSWERED: u32 = 1 << 6;
const OUTSTANDING: u32 = 1 << 7;
const SIGNED: u32 = 1 << 8;
const NAT_AGREED: u32 = 1 << 9;
const FRAGMENTATION: u32 = 1 << 10;
const LEASE: u32 = 1 << 11;
const MOBIKE_INITIATOR: u32 = 1 << 12;
const MOBIKE_RESPONDER: u32 = 1 << 13;
const CONTESTED: u32 = 1 << 14;
const PPK: u32 = 1 << 15;
const CALLED: u32 = 1 << 16;
const SINGLE_PAIRS: u32 = 1 << 17;

fn write_sa(
    out: &mut Out,
    common: &Common,
    established: &Established,
    clock: &Clock,
    responses: bool,
) {
    let answered = established.answered.as_ref().filter(|_| responses);
    let flags = [
        (common.role == Role::Responder, RESPONDER),
        (common.nat.local, NAT_LOCAL),
        (common.nat.remote, NAT_REMOTE),
        (common.nat.forced, NAT_FORCED),
        (common.nat.agreed, NAT_AGREED),
        (common.fragmentation, FRAGMENTATION),
        (common.lease.is_some(), LEASE),
        (common.called.is_some(), CALLED),
        (common.mobike == Some(Role::Initiator), MOBIKE_INITIATOR),
        (common.mobike == Some(Role::Responder), MOBIKE_RESPONDER),
        (established.deleting, DELETING),
        (established.superseded, SUPERSEDED),
        (established.contested, CONTESTED),
        (answered.is_some(), ANSWERED),
        (established.outstanding.is_some(), OUTSTANDING),
        (established.proof.signed(), SIGNED),
        (established.ppk, PPK),
        (established.pairs.single, SINGLE_PAIRS),
    ];
    let set = flags.iter().filter(|(set, _)| *set);
    out.u32(set.fold(0, |flags, (_, flag)| flags | flag));
    out.u64(common.spi_i);
    out.u64(common.spi_r);
    out.address(common.local);
    out.address(common.remote);
    out.block(established.config.name.as_bytes());
    out.identity(&established.local_id);
    out.identity(established.proof.identity());
    out.ike_suite(&established.suite);
    let keys = &established.keys;
    for key in [&keys.d, &keys.ai, &keys.ar, &keys.ei, &keys.er] {
        out.block(key.expose());
    }
    // All IVs used up and the one before the last are the same to a successor: rekey.
    out.u64(established.protector.next_iv().unwrap_or(u64::MAX));
    for time in [
        common.began,
        established.since,
        established.rekey_at,
        established.expires,
    ] {
        out.u64(clock.encode(time));
    }
    if let Some(lease) = &common.lease {
        out.lease(lease);
    }
    if let Some(called) = common.called {
        out.lone_address(called);
    }
    if common.mobike.is_some() {
        out.addresses(&established.mobility.others);
    }
    out.u32(established.next_id);
    out.u32(established.expected_id);
    if let Some(answered) = answered {
        out.put(&answered.request);
        out.message(&answered.response);
    }
    if let Some(outstanding) = &established.outstanding {
        write_outstanding(out, outstanding, clock);
    }
    // Whoever goes on need not wait: the peer had time to do what it was busy with.
    let delayed = established.delayed.iter().map(|(_, task)| task);
    let tasks: Vec<&Task> = established.queue.iter().chain(delayed).collect();
    out.u16(tasks.len() as u16);
    for task in tasks {
        write_task(out, task);
    }
    out.u16(established.children.len() as u16);
    let mut previous: Option<&Child> = None;
    for child in &established.children {
        out.child(child, previous, |at| clock.encode(at));
        previous = Some(child);
    }
}

fn read_sa(reader: &mut Reader<'_>, clock: &Clock) -> Result<Saved, DecodeError> {
    let flags = reader.u32()?;
    let flag = |flag| flags & flag != 0;
    let (spi_i, spi_r) = (reader.u64()?, reader.u64()?);
    let (local, remote): (SocketAddr, SocketAddr) =
        (codec::address(reader)?, codec::address(reader)?);
    let name = codec::block(reader)?;
    let connection = std::str::from_utf8(name).map_err(|_| invalid("a name that is no text"))?;
    let (local_id, remote_id) = (codec::identity(reader)?, codec::identity(reader)?);
    let suite = codec::ike_suite(reader)?;
    let mut key = || codec::block(reader).map(|octets| SecretBytes::new(octets.to_vec()));
    let keys = IkeKeys {
        prf: suite.prf,
        d: key()?,
        ai: key()?,
        ar: key()?,
        ei: key()?,
        er: key()?,
        // They are for the AUTH payloads alone.
        pi: SecretBytes::new(Vec::new()),
        pr: SecretBytes::new(Vec::new()),
    };
    if keys.d.expose().len() != suite.prf.output_len() {
        return Err(invalid("SK_d is not of the length of its PRF"));
    }
    let next_iv = Some(reader.u64()?).filter(|iv| *iv != u64::MAX);
    let began = read_time(reader, clock)?;
    let since = read_time(reader, clock)?;
    // Two processes do not read the two clocks at exactly the same moment.
    if since.saturating_duration_since(clock.now) > Duration::from_secs(1) {
        return Err(invalid(
            "it was established in the future: it is of another boot",
        ));
    }
    let (rekey_at, expires) = (read_time(reader, clock)?, read_time(reader, clock)?);
    let lease = if flag(LEASE) {
        Some(Arc::new(codec::lease(reader)?))
    } else {
        None
    };
    let called = if flag(CALLED) {
        Some(codec::lone_address(reader)?)
    } else {
        None
    };
    let mobike = match (flag(MOBIKE_INITIATOR), flag(MOBIKE_RESPONDER)) {
        (true, _) => Some(Role::Initiator),
        (false, true) => Some(Role::Responder),
        (false, false) => None,
    };
    let others = match mobike {
        Some(_) => codec::addresses(reader)?,
        None => Vec::new(),
    };
    let (next_id, expected_id) = (reader.u32()?, reader.u32()?);
    let answered = if flag(ANSWERED) {
        Some(Answered {
            request: reader.array()?,
            response: codec::message(reader)?,
        })
    } else {
        None
    };
    let outstanding = if flag(OUTSTANDING) {
        Some(read_outstanding(reader, clock)?)
    } else {
        None
    };
    if outstanding
        .as_ref()
        .is_some_and(|outstanding| outstanding.id.checked_add(1) != Some(next_id))
    {
        return Err(invalid("the request under way is not the last one"));
    }
    let queue = codec::list(reader, read_task)?;
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..reader.u16()? {
        let child = codec::child(reader, children.last(), |reader| read_time(reader, clock))?;
        children.push(child);
    }
    Ok(Saved {
        common: Common {
            role: if flag(RESPONDER) {
                Role::Responder
            } else {
                Role::Initiator
            },
            spi_i,
            spi_r,
            local,
            remote,
            began,
            initial_contact: false,
            nat: Nat {
                local: flag(NAT_LOCAL),
                remote: flag(NAT_REMOTE),
                forced: flag(NAT_FORCED),
                agreed: flag(NAT_AGREED),
            },
            fragmentation: flag(FRAGMENTATION),
            lease,
            mobike,
            hold: None,
            childless: false,
            called,
        },
        connection: connection.to_owned(),
        local_id,
        remote_id,
        signed: flag(SIGNED),
        suite,
        keys,
        next_iv,
        since,
        rekey_at,
        expires,
        next_id,
        expected_id,
        answered,
        outstanding,
        queue,
        children,
        others,
        deleting: flag(DELETING),
        superseded: flag(SUPERSEDED),
        contested: flag(CONTESTED),
        ppk: flag(PPK),
        single_pairs: flag(SINGLE_PAIRS),
    })
}

fn read_time(reader: &mut Reader<'_>, clock: &Clock) -> Result<Instant, DecodeError> {
    let time = clock.decode(reader.u64()?);
    time.ok_or_else(|| invalid("a time that never comes"))
}

const LIVENESS: u8 = 0;
const DELETE_IKE: u8 = 1;
const DELETE_CHILD: u8 = 2;
const CREATE_CHILD: u8 = 3;
const REKEY_IKE: u8 = 4;
const UPDATE_ADDRESSES: u8 = 5;
const TELL_ADDRESSES: u8 = 6;
const CHECK_ADDRESS: u8 = 7;

fn write_outstanding(out: &mut Out, outstanding: &Outstanding, clock: &Clock) {
    out.u32(outstanding.id);
    out.u8(outstanding.exchange.0);
    match &outstanding.pending {
        Pending::Liveness => out.u8(LIVENESS),
        Pending::DeleteIke => out.u8(DELETE_IKE),
        Pending::DeleteChild { id } => {
            out.u8(DELETE_CHILD);
            out.u64(id.0);
        }
        Pending::Child(request) => {
            out.u8(CREATE_CHILD);
            out.u64(request.id.0);
            write_purpose(out, request.purpose);
            out.u32(request.spi_in);
            out.block(&request.nonce);
            out.option(request.exchange.as_ref(), Out::exchange);
            out.option(request.follow_up.as_ref(), Out::follow_up);
            out.u64(clock.encode(request.began));
            out.u8(u8::from(request.retried));
            out.option(request.rival.as_ref(), |out, rival| {
                out.u64(rival.made.0);
                out.block(&rival.nonce);
            });
        }
        Pending::Ike(request) => {
            out.u8(REKEY_IKE);
            out.u64(request.spi);
            out.block(&request.nonce);
            out.exchange(&request.exchange);
            out.option(request.follow_up.as_ref(), Out::follow_up);
            out.u64(clock.encode(request.began));
            out.u8(u8::from(request.retried));
            out.option(request.rival.as_ref(), |out, rival| {
                out.u64(rival.made);
                out.block(&rival.nonce);
            });
        }
        Pending::Update(ends) => {
            out.u8(UPDATE_ADDRESSES);
            write_ends(out, *ends);
        }
        Pending::Check { cookie, ends } => {
            out.u8(CHECK_ADDRESS);
            out.put(cookie);
            write_ends(out, *ends);
        }
    }
    out.message(&outstanding.packet);
}

fn read_outstanding(reader: &mut Reader<'_>, clock: &Clock) -> Result<Outstanding, DecodeError> {
    let id = reader.u32()?;
    let exchange = ExchangeType(reader.u8()?);
    let pending = match reader.u8()? {
        LIVENESS => Pending::Liveness,
        DELETE_IKE => Pending::DeleteIke,
        DELETE_CHILD => Pending::DeleteChild {
            id: ChildSaId(reader.u64()?),
        },
        CREATE_CHILD => Pending::Child(Box::new(ChildRequest {
            id: ChildSaId(reader.u64()?),
            purpose: read_purpose(reader)?,
            spi_in: reader.u32()?,
            nonce: codec::block(reader)?.to_vec(),
            exchange: codec::option(reader, read_exchange)?,
            follow_up: codec::option(reader, codec::follow_up)?,
            began: read_time(reader, clock)?,
            retried: codec::flag(reader)?,
            rival: codec::option(reader, |reader| read_rival(reader, ChildSaId))?,
        })),
        REKEY_IKE => Pending::Ike(Box::new(IkeRequest {
            spi: reader.u64()?,
            nonce: codec::block(reader)?.to_vec(),
            exchange: read_exchange(reader)?,
            follow_up: codec::option(reader, codec::follow_up)?,
            began: read_time(reader, clock)?,
            retried: codec::flag(reader)?,
            rival: codec::option(reader, |reader| read_rival(reader, |spi| spi))?,
        })),
        UPDATE_ADDRESSES => Pending::Update(read_ends(reader)?),
        CHECK_ADDRESS => Pending::Check {
            cookie: reader.array()?,
            ends: read_ends(reader)?,
        },
        _ => return Err(invalid("a request of an unknown kind")),
    };
    Ok(Outstanding {
        id,
        exchange,
        pending,
        packet: codec::message(reader)?,
        // Sent again at once: nobody knows how often and when it was.
        retransmit: Retransmit::again(clock.now),
    })
}

fn write_ends(out: &mut Out, ends: Ends) {
    out.address(ends.local);
    out.address(ends.remote);
}

fn read_ends(reader: &mut Reader<'_>) -> Result<Ends, DecodeError> {
    Ok(Ends {
        local: codec::address(reader)?,
        remote: codec::address(reader)?,
    })
}

fn read_rival<T>(
    reader: &mut Reader<'_>,
    made: impl Fn(u64) -> T,
) -> Result<Rival<T>, DecodeError> {
    Ok(Rival {
        made: made(reader.u64()?),
        nonce: codec::block(reader)?.to_vec(),
    })
}

const FIRST: u8 = 0;
const REPLACE: u8 = 1;
const PROCESSOR: u8 = 2;
const PAIR: u8 = 3;

fn write_purpose(out: &mut Out, purpose: Purpose) {
    match purpose {
        Purpose::First => out.u8(FIRST),
        Purpose::Replace(old) => {
            out.u8(REPLACE);
            out.u64(old.0);
        }
        Purpose::Processor(number) => {
            out.u8(PROCESSOR);
            out.u32(number);
        }
        Purpose::Pair(number) => {
            out.u8(PAIR);
            out.u16(number);
        }
    }
}

fn read_purpose(reader: &mut Reader<'_>) -> Result<Purpose, DecodeError> {
    Ok(match reader.u8()? {
        FIRST => Purpose::First,
        REPLACE => Purpose::Replace(ChildSaId(reader.u64()?)),
        PROCESSOR => Purpose::Processor(reader.u32()?),
        PAIR => Purpose::Pair(reader.u16()?),
        _ => return Err(invalid("a child SA for an unknown purpose")),
    })
}

fn read_exchange(reader: &mut Reader<'_>) -> Result<KeyExchange, DecodeError> {
    let group = codec::group(reader)?;
    let drawn = codec::block(reader)?;
    KeyExchange::from_drawn(group, drawn)
        .ok_or_else(|| invalid("a key exchange of another length than its group's"))
}

fn write_task(out: &mut Out, task: &Task) {
    match task {
        Task::Liveness => out.u8(LIVENESS),
        Task::DeleteIke => out.u8(DELETE_IKE),
        Task::DeleteChild { id, spi_in } => {
            out.u8(DELETE_CHILD);
            out.u64(id.0);
            out.u32(*spi_in);
        }
        Task::CreateChild { purpose } => {
            out.u8(CREATE_CHILD);
            write_purpose(out, *purpose);
        }
        Task::RekeyIke => out.u8(REKEY_IKE),
        Task::UpdateAddresses => out.u8(UPDATE_ADDRESSES),
        Task::TellAddresses => out.u8(TELL_ADDRESSES),
        Task::CheckAddress => out.u8(CHECK_ADDRESS),
    }
}

fn read_task(reader: &mut Reader<'_>) -> Result<Task, DecodeError> {
    Ok(match reader.u8()? {
        LIVENESS => Task::Liveness,
        DELETE_IKE => Task::DeleteIke,
        DELETE_CHILD => Task::DeleteChild {
            id: ChildSaId(reader.u64()?),
            spi_in: reader.u32()?,
        },
        CREATE_CHILD => Task::CreateChild {
            purpose: read_purpose(reader)?,
        },
        REKEY_IKE => Task::RekeyIke,
        UPDATE_ADDRESSES => Task::UpdateAddresses,
        TELL_ADDRESSES => Task::TellAddresses,
        CHECK_ADDRESS => Task::CheckAddress,
        _ => return Err(invalid("a task of an unknown kind")),
    })
}
