//! Policies: what the kernel should have, who asked for it, and the messages that bring it there.
//!
//! A connection and each of its pairs claim policies. Where several claim the same selectors the
//! kernel has room for one: a pair goes before its connection, a newer pair before an older one.
//! When a claim goes, the next takes its place, in one message: at no moment is there no policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use espada_common::sa::{ChildSa, ChildSaId, Mode, Policy, TrafficSelector};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use zerocopy::IntoBytes;

use super::identity::Identity;
use super::selector::{Masked, Pattern, patterns};
use super::socket::Requests;
use super::state::{self, Common};
use super::wire::{
    self, Body, Direction, ESP, Id, Limits, Offload, PolicyId, PolicyInfo, attribute, family,
    message, offload_flag,
};
use crate::netlink::NetlinkError;

/// Policies have their breadth on top of this as priority, the smallest number wins. What must pass
/// beside transport policies is below ([`Identity::bypass_priority`]).
const BASE_PRIORITY: u32 = 0x1_0000;

/// What the kernel tells policies apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// In this order of `Direction`: what receives is set up before what sends.
    pub direction: Direction,
    /// The xfrm interface, 0 for traffic of any interface.
    pub if_id: u32,
    /// The packets.
    pub pattern: Pattern,
}

/// The state that a policy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// Tunnel or transport.
    pub mode: Mode,
    /// Source of the ESP packets; unspecified for any.
    pub source: IpAddr,
    /// Their destination; unspecified for any.
    pub destination: IpAddr,
    /// Their SPI, 0 for any.
    pub spi: u32,
    /// Request id of the state.
    pub reqid: u32,
}

/// What a policy does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets it pass unprotected.
    Pass,
    /// Drops it.
    Block,
    /// Requires ESP.
    Protect(Template),
}

/// A policy without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What to do.
    pub action: Action,
    /// The smallest wins.
    pub priority: u32,
    /// Index of the device that carries it wholly.
    pub offload: Option<u32>,
}

/// Who claims a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A configured connection.
    Connection(Arc<str>),
    /// A pair.
    Pair(ChildSaId),
}

/// Which of several claims on one key counts: the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A connection's own.
    Connection,
    /// A pair that does not send yet.
    Waiting(u64),
    /// A pair, by its place in time.
    Pair(u64),
}

/// Policies that one owner wants.
pub type Wanted = Vec<(Key, Entry)>;

/// Every claim, and what of it the kernel has.
#[derive(Default)]
pub struct Claims {
    by_key: BTreeMap<Key, BTreeMap<Owner, (Rank, Entry)>>,
    by_owner: BTreeMap<Owner, BTreeSet<Key>>,
    installed: BTreeMap<Key, Entry>,
}

impl Claims {
    /// Replaces what an owner claims and brings the kernel up to date, what is added or changed
    /// first. On an error everything is as before, as far as the kernel lets it be.
    pub fn set(
        &mut self,
        requests: &mut Requests,
        common: &Common,
        owner: &Owner,
        rank: Rank,
        wanted: &[(Key, Entry)],
    ) -> Result<(), NetlinkError> {
        let before = self.claim(
            owner,
            wanted.iter().map(|(key, entry)| (*key, (rank, *entry))),
        );
        let dirty: BTreeSet<Key> = before
            .keys()
            .copied()
            .chain(wanted.iter().map(|(key, _)| *key))
            .collect();
        let result = self.settle(requests, common, &dirty);
        if result.is_err() {
            self.claim(owner, before.into_iter());
            if let Err(error) = self.settle(requests, common, &dirty) {
                tracing::warn!(%error, "a policy is not as it was");
            }
        }
        result
    }

    /// Has the kernel choose anew among the states that an owner's outbound policies fit. It remembers
    /// with a policy the states that were used, and prefers them to those of which a processor has
    /// not used its own yet; a policy that is put in place of another begins without.
    pub fn choose_anew(
        &mut self,
        requests: &mut Requests,
        common: &Common,
        owner: &Owner,
    ) -> Result<(), NetlinkError> {
        for key in self.by_owner.get(owner).into_iter().flatten() {
            if key.direction == Direction::Out
                && let Some(entry) = self.installed.get(key)
            {
                put(requests, common, key, entry, true)?;
            }
        }
        Ok(())
    }

    /// Removes whatever is installed.
    pub fn clear(&mut self, requests: &mut Requests, common: &Common) {
        self.by_key.clear();
        self.by_owner.clear();
        let all: BTreeSet<Key> = self.installed.keys().copied().collect();
        for key in all {
            if let Err(error) = self.settle(requests, common, &BTreeSet::from([key])) {
                tracing::warn!(%error, "a policy stays behind");
            }
        }
    }

    /// Enters claims in place of the owner's former ones, which are returned.
    fn claim(
        &mut self,
        owner: &Owner,
        wanted: impl Iterator<Item = (Key, (Rank, Entry))>,
    ) -> BTreeMap<Key, (Rank, Entry)> {
        let mut before = BTreeMap::new();
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            if let Some(claims) = self.by_key.get_mut(&key) {
                if let Some(claim) = claims.remove(owner) {
                    before.insert(key, claim);
                }
                if claims.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
        for (key, claim) in wanted {
            let claims = self.by_key.entry(key).or_default();
            claims.insert(owner.clone(), claim);
            self.by_owner.entry(owner.clone()).or_default().insert(key);
        }
        before
    }

    /// The claim that counts.
    fn effective(&self, key: &Key) -> Option<Entry> {
        let claims = self.by_key.get(key)?.values();
        let (_, entry) = claims.max_by_key(|(rank, _)| *rank)?;
        Some(*entry)
    }

    fn settle(
        &mut self,
        requests: &mut Requests,
        common: &Common,
        dirty: &BTreeSet<Key>,
    ) -> Result<(), NetlinkError> {
        let mut gone = Vec::new();
        for key in dirty {
            let Some(entry) = self.effective(key) else {
                gone.push(*key);
                continue;
            };
            let installed = self.installed.get(key).copied();
            if installed != Some(entry) {
                put(requests, common, key, &entry, installed.is_some())?;
                self.installed.insert(*key, entry);
            }
        }
        // What sends goes first.
        for key in gone.iter().rev() {
            if self.installed.contains_key(key) {
                delete(requests, common, key)?;
                self.installed.remove(key);
            }
        }
        Ok(())
    }
}

/// Adds or replaces a policy. A policy that is not ours is never replaced: without `replace` one
/// for the same packets is an error (EEXIST).
fn put(
    requests: &mut Requests,
    common: &Common,
    key: &Key,
    entry: &Entry,
    replace: bool,
) -> Result<(), NetlinkError> {
    let info = PolicyInfo {
        selector: key.pattern.wire(key.direction),
        limits: Limits::none(),
        priority: entry.priority,
        direction: key.direction as u8,
        action: u8::from(entry.action == Action::Block),
        ..PolicyInfo::default()
    };
    let mut body = Body::new(&info);
    if let Action::Protect(template) = &entry.action {
        body = body.attribute(attribute::TMPL, &[template.wire().as_bytes()]);
    }
    if key.if_id != 0 {
        body = body.number(attribute::IF_ID, key.if_id);
    }
    body = state::mark(body, common);
    if let Some(interface) = entry.offload {
        let offload = Offload {
            interface,
            flags: offload_flag::PACKET,
            ..Offload::default()
        };
        body = body.attribute(attribute::OFFLOAD_DEV, &[offload.as_bytes()]);
    }
    let (kind, flags) = if replace {
        (message::UPDPOLICY, NLM_F_CREATE)
    } else {
        (message::NEWPOLICY, NLM_F_CREATE | NLM_F_EXCL)
    };
    requests.run(&format!("set policy {key}"), kind, flags, &body)
}

fn delete(requests: &mut Requests, common: &Common, key: &Key) -> Result<(), NetlinkError> {
    let id = PolicyId {
        selector: key.pattern.wire(key.direction),
        direction: key.direction as u8,
        ..PolicyId::default()
    };
    let mut body = Body::new(&id);
    if key.if_id != 0 {
        body = body.number(attribute::IF_ID, key.if_id);
    }
    body = state::mark(body, common);
    let operation = format!("remove policy {key}");
    match requests.run(&operation, message::DELPOLICY, 0, &body) {
        Err(error) if error.errno() == libc::ENOENT => Ok(()),
        other => other,
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pattern { local, remote, .. } = &self.pattern;
        match self.direction {
            Direction::In => write!(f, "in {remote} => {local}"),
            Direction::Forward => write!(f, "fwd {remote} => {local}"),
            Direction::Out => write!(f, "out {local} => {remote}"),
        }
    }
}

impl Template {
    fn wire(&self) -> wire::Template {
        wire::Template {
            id: Id {
                destination: self.destination.into(),
                spi: self.spi.into(),
                proto: ESP,
                ..Id::default()
            },
            family: family(self.destination),
            source: self.source.into(),
            reqid: self.reqid,
            mode: state::mode(self.mode),
            // Any algorithm: the states are ours.
            auth_algorithms: u32::MAX,
            encryption_algorithms: u32::MAX,
            compression_algorithms: u32::MAX,
            ..wire::Template::default()
        }
    }
}

/// What policies have in common beside their selectors.
pub struct Scope<'a> {
    /// Whose they are.
    pub identity: Identity,
    /// UDP ports on our side that IKE uses.
    pub ike_ports: &'a [u16],
}

impl Scope<'_> {
    fn if_id(&self, mode: Mode) -> u32 {
        match mode {
            Mode::Tunnel => self.identity.if_id(),
            Mode::Transport => 0,
        }
    }

    /// The policies of a connection without an SA: nothing passes, and with `trap` what wants to
    /// go out raises an acquire event. In tunnel mode nothing needs to be said of what comes in:
    /// the kernel accepts on an xfrm interface only what a policy asks for. Transport policies ask
    /// for a state that is not there in place of blocking, since their request id is what they are
    /// recognised by.
    pub fn of_connection(&self, policy: &Policy, reqid: u32) -> Result<Wanted, String> {
        let patterns = patterns(&policy.local_ts, &policy.remote_ts)?;
        let mut wanted = Vec::new();
        for pattern in &patterns {
            // Of the packets' family, since only tunnels can change that.
            let any = if pattern.local.address.is_ipv4() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            } else {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            };
            let absent = Action::Protect(Template {
                mode: policy.mode,
                source: any,
                destination: any,
                spi: 0,
                reqid,
            });
            let out = if policy.trap || policy.mode == Mode::Transport {
                absent
            } else {
                Action::Block
            };
            wanted.push(self.entry(policy.mode, Direction::Out, pattern, out, None));
            if policy.mode == Mode::Transport {
                wanted.push(self.entry(policy.mode, Direction::In, pattern, absent, None));
            }
        }
        if policy.mode == Mode::Transport {
            wanted.extend(self.bypasses(&policy.local_ts, &policy.remote_ts));
        }
        Ok(wanted)
    }

    /// The policies of a pair. `sends`: those for sending too, otherwise what it may receive.
    /// `blocked`: it is being moved, nothing may be sent. `offload`: index of the device that
    /// carries it wholly.
    pub fn of_pair(
        &self,
        sa: &ChildSa,
        reqid: u32,
        sends: Sends,
        offload: Option<u32>,
    ) -> Result<Wanted, String> {
        let patterns = patterns(&sa.local_ts, &sa.remote_ts)?;
        let (local, remote) = (sa.path.local.ip(), sa.path.remote.ip());
        // An inbound packet is held against the state it came by: with the SPI left open, the old
        // pair of a rekey may receive as well. What goes out takes exactly this state, so traffic
        // moves when the policy is replaced and not when a newer state turns up.
        let receive = Action::Protect(Template {
            mode: sa.mode,
            source: remote,
            destination: local,
            spi: 0,
            reqid,
        });
        let send = match sends {
            Sends::Blocked => Some(Action::Block),
            Sends::NotYet => None,
            Sends::Yes | Sends::ByProcessor => Some(Action::Protect(Template {
                mode: sa.mode,
                source: local,
                destination: remote,
                spi: if sends == Sends::Yes {
                    sa.outbound.spi
                } else {
                    0
                },
                reqid,
            })),
        };
        let mut wanted = Vec::new();
        for pattern in &patterns {
            wanted.push(self.entry(sa.mode, Direction::In, pattern, receive, offload));
            if sa.mode == Mode::Tunnel {
                wanted.push(self.entry(sa.mode, Direction::Forward, pattern, receive, offload));
            }
            if let Some(send) = send {
                wanted.push(self.entry(sa.mode, Direction::Out, pattern, send, offload));
            }
        }
        if sa.mode == Mode::Transport {
            wanted.extend(self.bypasses(&sa.local_ts, &sa.remote_ts));
        }
        Ok(wanted)
    }

    fn entry(
        &self,
        mode: Mode,
        direction: Direction,
        pattern: &Pattern,
        action: Action,
        offload: Option<u32>,
    ) -> (Key, Entry) {
        let key = Key {
            direction,
            if_id: self.if_id(mode),
            pattern: *pattern,
        };
        let entry = Entry {
            action,
            priority: BASE_PRIORITY + pattern.breadth(),
            offload: offload.filter(|_| action != Action::Block),
        };
        (key, entry)
    }

    /// Transport policies apply to everything between two hosts: IKE itself and the neighbour
    /// discovery that finds the other host have to get through.
    fn bypasses(&self, local: &[TrafficSelector], remote: &[TrafficSelector]) -> Wanted {
        const UDP: u8 = 17;
        const ICMPV6: u8 = 58;
        const SOLICITATION: u16 = 135 << 8;
        const ADVERTISEMENT: u16 = 136 << 8;
        // The whole addresses: ports do not matter to what is let through.
        let whole = |selectors: &[TrafficSelector]| -> Vec<TrafficSelector> {
            selectors
                .iter()
                .filter_map(|ts| TrafficSelector::range(ts.start, ts.end))
                .collect()
        };
        let mut wanted = Vec::new();
        for pattern in patterns(&whole(local), &whole(remote)).unwrap_or_default() {
            let ike = self.ike_ports.iter().map(|port| Pattern {
                protocol: UDP,
                local_port: Masked::exactly(*port),
                ..pattern
            });
            let neighbours = [SOLICITATION, ADVERTISEMENT]
                .iter()
                .filter(|_| pattern.local.address.is_ipv6())
                .map(|kind| {
                    let kind = Masked {
                        value: *kind,
                        mask: 0xff00,
                    };
                    Pattern {
                        protocol: ICMPV6,
                        local_port: kind,
                        remote_port: kind,
                        ..pattern
                    }
                });
            for pattern in ike.chain(neighbours) {
                for direction in [Direction::In, Direction::Out] {
                    let key = Key {
                        direction,
                        if_id: 0,
                        pattern,
                    };
                    let entry = Entry {
                        action: Action::Pass,
                        priority: self.identity.bypass_priority(),
                        offload: None,
                    };
                    wanted.push((key, entry));
                }
            }
        }
        wanted
    }
}

/// Whether a pair sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// Its predecessor does.
    NotYet,
    /// It does.
    Yes,
    /// It and others of its request id do, each for the packets of a processor or, one of them, of
    /// those that have none.
    ByProcessor,
    /// Nobody, for the moment.
    Blocked,
}

/// A policy that somebody installed: enough to tell whose it is, and to remove it.
pub struct Known {
    /// The xfrm interface, 0 for none.
    pub if_id: u32,
    /// Request id of its first template, 0 without one.
    pub reqid: u32,
    /// The smallest wins.
    pub priority: u32,
    id: PolicyId,
    mark: Option<wire::MarkValue>,
}

/// Every policy of the namespace.
pub fn list(requests: &mut Requests) -> Result<Vec<Known>, NetlinkError> {
    let body = Body::new(&PolicyId::default());
    let answers = requests.dump("list XFRM policies", message::GETPOLICY, &body)?;
    let known = answers.iter().filter_map(|answer| {
        let (info, attributes) = wire::split::<PolicyInfo>(&answer.payload)?;
        Some(Known {
            if_id: attributes.read(attribute::IF_ID).unwrap_or(0),
            reqid: attributes
                .read::<wire::Template>(attribute::TMPL)
                .map_or(0, |template| template.reqid),
            priority: info.priority,
            id: PolicyId {
                selector: info.selector,
                index: info.index,
                direction: info.direction,
                ..PolicyId::default()
            },
            mark: attributes.read(attribute::MARK),
        })
    });
    Ok(known.collect())
}

/// Removes exactly this policy.
pub fn remove(requests: &mut Requests, known: &Known) -> Result<(), NetlinkError> {
    let mut body = Body::new(&known.id);
    if known.if_id != 0 {
        body = body.number(attribute::IF_ID, known.if_id);
    }
    if let Some(mark) = &known.mark {
        body = body.attribute(attribute::MARK, &[mark.as_bytes()]);
    }
    match requests.run("remove a policy", message::DELPOLICY, 0, &body) {
        Err(error) if error.errno() == libc::ENOENT => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use espada_common::sa::{
        Cipher, Encapsulation, EspSuite, GcmIcv, HalfSa, Path, SecretBytes, Share,
    };

    use super::*;

    fn scope() -> Scope<'static> {
        Scope {
            identity: Identity::default(),
            ike_ports: &[500],
        }
    }

    fn network(text: &str, length: u8) -> Vec<TrafficSelector> {
        vec![TrafficSelector::prefix(text.parse().unwrap(), length).unwrap()]
    }

    fn sa(mode: Mode, local: &str, remote: &str) -> ChildSa {
        let half = |spi| HalfSa {
            spi,
            encryption_key: SecretBytes::new(Vec::new()),
            integrity_key: SecretBytes::new(Vec::new()),
        };
        let ends = [local, remote].map(|text| SocketAddr::new(text.parse().unwrap(), 0));
        let whole = |end: SocketAddr| vec![TrafficSelector::host(end.ip())];
        ChildSa {
            id: ChildSaId(1),
            connection: "net".into(),
            suite: EspSuite {
                cipher: Cipher::AesGcm(128, GcmIcv::Sixteen),
                integrity: None,
                esn: false,
            },
            inbound: half(0x1001),
            outbound: half(0x2001),
            path: Path {
                local: ends[0],
                remote: ends[1],
                encapsulation: Encapsulation::Esp,
            },
            mode,
            local_ts: whole(ends[0]),
            remote_ts: whole(ends[1]),
            share: Share::Whole,
            replay_window: 64,
            allowances: Default::default(),
            lifetime: Duration::from_secs(60),
        }
    }

    fn spi(entry: &Entry) -> Option<u32> {
        match entry.action {
            Action::Protect(template) => Some(template.spi),
            _ => None,
        }
    }

    #[test]
    fn a_pair_sends_by_its_spi_and_receives_by_its_request_id() {
        let sa = sa(Mode::Tunnel, "192.0.2.1", "192.0.2.2");
        let wanted = scope().of_pair(&sa, 9, Sends::Yes, None).unwrap();
        let spis: Vec<_> = wanted
            .iter()
            .map(|(key, entry)| (key.direction, spi(entry)))
            .collect();
        assert_eq!(
            spis,
            [
                (Direction::In, Some(0)),
                (Direction::Forward, Some(0)),
                (Direction::Out, Some(0x2001))
            ]
        );
        assert!(wanted.iter().all(|(key, _)| key.if_id != 0));
        let waiting = scope().of_pair(&sa, 9, Sends::NotYet, None).unwrap();
        assert!(
            waiting
                .iter()
                .all(|(key, _)| key.direction != Direction::Out)
        );
        let blocked = scope().of_pair(&sa, 9, Sends::Blocked, Some(3)).unwrap();
        let (_, out) = blocked.last().unwrap();
        assert_eq!((out.action, out.offload), (Action::Block, None));
    }

    #[test]
    fn transport_leaves_ike_and_neighbours_alone() {
        for (local, remote, passes) in [
            ("192.0.2.1", "192.0.2.2", 2),
            ("2001:db8::1", "2001:db8::2", 6),
        ] {
            let sa = sa(Mode::Transport, local, remote);
            let wanted = scope().of_pair(&sa, 9, Sends::Yes, None).unwrap();
            assert!(wanted.iter().all(|(key, _)| key.if_id == 0));
            let (pass, protect): (Vec<_>, Vec<_>) = wanted
                .iter()
                .partition(|(_, entry)| entry.action == Action::Pass);
            assert_eq!((pass.len(), protect.len()), (passes, 2));
            let most = pass.iter().map(|(_, entry)| entry.priority).max();
            let least = protect.iter().map(|(_, entry)| entry.priority).min();
            assert!(most < least);
        }
    }

    #[test]
    fn the_greatest_claim_counts_and_the_next_takes_its_place() {
        let mut claims = Claims::default();
        let policy = Policy {
            connection: "net".into(),
            local_ts: network("192.0.2.1", 32),
            remote_ts: network("192.0.2.2", 32),
            trap: true,
            mode: Mode::Tunnel,
            addresses: Vec::new(),
        };
        let connection = Owner::Connection("net".into());
        let trap = scope().of_connection(&policy, 9).unwrap();
        let key = trap[0].0;
        let ranked = |rank: Rank, wanted: Wanted| {
            wanted
                .into_iter()
                .map(move |(key, entry)| (key, (rank, entry)))
        };
        claims.claim(&connection, ranked(Rank::Connection, trap));
        assert_eq!(
            claims.effective(&key).map(|entry| spi(&entry)),
            Some(Some(0))
        );
        let mut pair = sa(Mode::Tunnel, "192.0.2.1", "192.0.2.2");
        for number in 1..=2u64 {
            pair.outbound.spi = 0x2000 + number as u32;
            let wanted = scope().of_pair(&pair, 9, Sends::Yes, None).unwrap();
            let owner = Owner::Pair(ChildSaId(number));
            claims.claim(&owner, ranked(Rank::Pair(number), wanted));
        }
        let now = |claims: &Claims| claims.effective(&key).and_then(|entry| spi(&entry));
        assert_eq!(now(&claims), Some(0x2002));
        claims.claim(&Owner::Pair(ChildSaId(2)), std::iter::empty());
        assert_eq!(now(&claims), Some(0x2001));
        let before = claims.claim(&Owner::Pair(ChildSaId(1)), std::iter::empty());
        assert_eq!(before.len(), 3);
        assert_eq!(now(&claims), Some(0));
        claims.claim(&connection, std::iter::empty());
        assert_eq!(claims.effective(&key), None);
        assert!(claims.by_key.is_empty() && claims.by_owner.is_empty());
    }
}
