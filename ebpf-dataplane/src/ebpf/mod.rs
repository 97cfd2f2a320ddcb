//! The eBPF engine: ESP wholly in XDP programs (`ebpf/src/esp`), keys in BPF maps, no packet through
//! userspace. What it carries goes on when this process is killed, and a later one takes it over.

mod ahead;
mod entry;
mod events;
mod flows;
mod maps;
mod reader;
mod syscall;
#[cfg(test)]
mod tests;
mod veth;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use espada_common::abi::esp::{
    ENGINE_CLAMP_MSS, ENGINE_COPY_DSCP, EspConfig, EspInEntry, MAX_INNER, MAX_NAME, MAX_SELECTORS,
    PairEntry,
};
use espada_common::drops::DropReason;
use espada_common::sa::{
    ChildSa, ChildSaId, ChildSaStats, Cipher, Command, Mode, Path, Policy, Takeover, add_drops,
};
use espada_common::shared_window;
use espada_common::wire::Address;

use crate::backend::{BackendError, EventSink, KeptStates};
use crate::device::{self, Device};
use crate::engine::{Engine, Interface, Steering, Way};
use crate::esp::DfPolicy;
use crate::esp::sad::{Geometry, check_path};
use crate::frontend::FrontEndError;
use crate::frontend::policy::{compile, is_whole, pairs_of};
use crate::netlink::Netlink;
use crate::plane::{Pair, SharedFrontEnd, lock_front_end};

use ahead::Ahead;
use events::Names;
use flows::{Flows, Selectors};
use maps::Maps;
use reader::RingReader;
use veth::Veth;

/// Name of this engine.
pub const NAME: &str = "ebpf";

/// Longest inner packet before the way to the peer is known.
const FIRST_MTU: u16 = 1280;

/// What the engine is started with.
pub struct Config {
    /// Name of the plaintext interface, at most 15 characters.
    pub tun: String,
    /// MTU of the plaintext interface.
    pub mtu: u32,
    /// Header fields and MSS.
    pub esp: crate::esp::Config,
    /// The XDP programs on the WAN, loaded with room for this engine.
    pub front_end: Option<SharedFrontEnd>,
    /// WAN interfaces.
    pub wan: Vec<String>,
    /// Where events go. Called from the engine's thread.
    pub sink: EventSink,
}

/// A pair that is carried.
struct Known {
    entry: PairEntry,
    selectors: Selectors,
    esn: bool,
    /// Sends when this pair is removed.
    successor: Option<ChildSaId>,
}

/// The engine. Dropping it leaves everything in place unless it was shut down.
pub struct EbpfEngine {
    device: Veth,
    /// Drivers of the WAN interfaces.
    drivers: BTreeMap<u32, String>,
    /// Of the namespace the engine was started in.
    netlink: Netlink,
    front_end: SharedFrontEnd,
    maps: Maps,
    ahead: Ahead,
    flows: Flows,
    pairs: BTreeMap<ChildSaId, Known>,
    next_handle: u32,
    /// What pairs that are gone have dropped: inbound, outbound.
    past_drops: [[u64; DropReason::COUNT]; 2],
    /// The way of the pair that the next command is about.
    announced: Option<Way>,
    names: Arc<Mutex<Names>>,
    events: Option<RingReader>,
}

fn unsupported(what: impl Into<String>) -> BackendError {
    BackendError::Unsupported {
        engine: NAME,
        what: what.into(),
    }
}

fn map_error(error: FrontEndError) -> BackendError {
    BackendError::System {
        what: "the eBPF programs do not follow".into(),
        source: std::io::Error::other(error),
    }
}

impl EbpfEngine {
    /// Makes the plaintext interface and attaches the programs, or takes over what an earlier process
    /// left, all in the calling thread's network namespace.
    pub fn start(config: Config) -> Result<Self, BackendError> {
        let Some(front_end) = config.front_end else {
            return Err(unsupported(
                "needs the front end on the WAN; remove front_end = \"off\", and name the WAN interfaces",
            ));
        };
        if config.esp.df != DfPolicy::Copy {
            return Err(unsupported(
                "copies the Don't Fragment bit and nothing else",
            ));
        }
        let mut locked = lock_front_end(&front_end);
        if !locked.is_persistent() {
            return Err(unsupported(
                "needs a BPF file system for its maps; try `mount -t bpf bpf /sys/fs/bpf`",
            ));
        }
        for interface in &config.wan {
            if !locked.steers(interface) {
                return Err(unsupported(format!(
                    "needs XDP on {interface}; use front_end = \"auto\" or \"xdp\""
                )));
            }
        }
        let mut netlink = Netlink::open()?;
        let device = Veth::open(&mut netlink, &config.tun, config.mtu)?;
        let mut maps = Maps::take(locked.object()).map_err(map_error)?;
        let mut flags = 0;
        if config.esp.clamp_mss {
            flags |= ENGINE_CLAMP_MSS;
        }
        if config.esp.copy_dscp {
            flags |= ENGINE_COPY_DSCP;
        }
        maps.configure(EspConfig {
            flags,
            ttl: config.esp.ttl.into(),
            port: device.port.index,
            mac: device.mac,
            padding: [0; 2],
        })
        .map_err(map_error)?;
        maps.add_device(device.port.index).map_err(map_error)?;
        let mut drivers = BTreeMap::new();
        for interface in &config.wan {
            let index = netlink.link(interface)?.index;
            let about = Device::look(interface).ok();
            if let Some(driver) = about.and_then(|about| about.driver) {
                drivers.insert(index, driver);
            }
        }
        locked
            .attach_engine(&device.port.name, &mut maps.programs)
            .map_err(|error| unsupported(error.to_string()))?;
        locked.drop_stale_links();
        drop(locked);
        let flows = Flows::new(
            std::os::fd::AsFd::as_fd(maps.flows.fd()),
            &maps.spd.values(),
        )
        .map_err(map_error)?;
        let names = Arc::new(Mutex::new(Names::default()));
        let Some(ring) = maps.events.take() else {
            return Err(unsupported("has no ring of events"));
        };
        let events = events::reader(ring, Arc::clone(&names), config.sink)?;
        let Some(wakes) = maps.wakes.take() else {
            return Err(unsupported("has no ring of wake-ups"));
        };
        let ahead = Ahead::start(&maps.ahead, wakes)?;
        let mut this = Self {
            device,
            drivers,
            netlink,
            front_end,
            maps,
            ahead,
            flows,
            pairs: BTreeMap::new(),
            next_handle: 1,
            past_drops: [[0; DropReason::COUNT]; 2],
            announced: None,
            names,
            events: Some(events),
        };
        this.adopt().map_err(map_error)?;
        Ok(this)
    }

    /// Takes over the pairs that are in the maps.
    fn adopt(&mut self) -> Result<(), FrontEndError> {
        let sending: BTreeMap<u32, u32> = self
            .maps
            .spd
            .values()
            .into_iter()
            .map(|number| (self.flows.sending(number), number))
            .collect();
        for entry in self.maps.pairs()? {
            self.next_handle = self.next_handle.max(entry.handle.saturating_add(1));
            let inbound = self.maps.inbound(entry.spi_in_be);
            let outbound = self.maps.outbound(entry.handle);
            let (Ok(inbound), Ok(outbound)) = (inbound, outbound) else {
                // Half a pair: its installation or removal was cut short.
                self.maps.remove(&entry)?;
                continue;
            };
            let [newest, ..] = inbound.window;
            self.ahead.add(
                entry.ring,
                entry.handle,
                [&outbound.key, &inbound.key],
                [outbound.seq, newest],
            );
            let selectors = selectors_of(&entry, &inbound);
            if let Some(number) = sending.get(&entry.handle) {
                self.flows.adopt(selectors.clone(), *number, entry.handle);
            }
            self.pairs.insert(
                ChildSaId(entry.id),
                Known {
                    esn: inbound.flags & espada_common::abi::esp::ESP_ESN != 0,
                    selectors,
                    entry,
                    successor: None,
                },
            );
        }
        self.ahead.wipe_unused();
        self.tell_names();
        Ok(())
    }

    fn tell_names(&self) {
        let mut names = lock_names(&self.names);
        names.connections = self.flows.connections();
        names.pairs = self
            .pairs
            .iter()
            .map(|(id, known)| (known.entry.handle, *id))
            .collect();
    }

    /// Has the tries lead to the flows there are.
    fn spread(&mut self) -> Result<(), BackendError> {
        let mut pairs = Vec::new();
        for (selectors, number) in self.flows.table() {
            let covered = pairs_of(&selectors.local, &selectors.remote);
            pairs.extend(covered.into_iter().map(|pair| (pair, number)));
        }
        self.maps.spd.set(&compile(&pairs)).map_err(map_error)?;
        self.flows.release();
        self.maps.mark_deleted();
        self.tell_names();
        Ok(())
    }

    fn set_policy(&mut self, policy: &Policy) -> Result<(), BackendError> {
        if policy.mode == Mode::Transport {
            return Ok(());
        }
        let selectors = Selectors {
            connection: Arc::clone(&policy.connection),
            local: policy.local_ts.clone(),
            remote: policy.remote_ts.clone(),
        };
        self.flows
            .set_policy(selectors, policy.trap)
            .map_err(map_error)?;
        self.spread()
    }

    fn install(
        &mut self,
        sa: &ChildSa,
        old: Option<(ChildSaId, Takeover)>,
    ) -> Result<(), BackendError> {
        self.supports(sa).map_err(unsupported)?;
        if self.pairs.contains_key(&sa.id) {
            return Err(unsupported(format!("child SA {} exists already", sa.id.0)));
        }
        let handle = self.next_handle;
        self.next_handle = handle.saturating_add(1);
        let (Some(inbound), Some(outbound)) =
            (entry::inbound(sa, handle), entry::outbound(sa, handle))
        else {
            return Err(unsupported(
                "takes 36 octets of key material for chacha20poly1305",
            ));
        };
        let mut pair = PairEntry {
            handle,
            flags: 0,
            local: Address::default(),
            remote: Address::default(),
            local_port_be: 0,
            remote_port_be: 0,
            max_inner: 0,
            link: 0,
            slot: self.slot(&sa.path, sa.outbound.spi),
            spi_in_be: sa.inbound.spi.to_be(),
            spi_out_be: sa.outbound.spi.to_be(),
            ring: self.ahead.free(),
            padding: 0,
            id: sa.id.0,
            connection: entry::name(&sa.connection),
        };
        entry::set_path(&mut pair, &sa.path);
        self.set_way(&mut pair, sa.suite.esn);
        self.ahead
            .add(pair.ring, handle, [&outbound.key, &inbound.key], [0, 0]);
        // Inbound first: when the peer sees our first packet it may answer at once.
        let inserted = self
            .maps
            .insert_pair(&pair)
            .and_then(|()| self.maps.insert_in(&inbound))
            .and_then(|()| self.maps.insert_out(&outbound));
        if let Err(error) = inserted {
            let _ = self.maps.remove(&pair);
            self.ahead.remove(handle);
            return Err(map_error(error));
        }
        let selectors = Selectors {
            connection: Arc::clone(&sa.connection),
            local: sa.local_ts.clone(),
            remote: sa.remote_ts.clone(),
        };
        self.pairs.insert(
            sa.id,
            Known {
                entry: pair,
                selectors: selectors.clone(),
                esn: sa.suite.esn,
                successor: None,
            },
        );
        match old.map(|(old, takeover)| (self.pairs.get_mut(&old), takeover)) {
            Some((Some(old), Takeover::WithRemoval)) => {
                old.successor = Some(sa.id);
                self.tell_names();
                return Ok(());
            }
            Some((Some(old), Takeover::Now)) => {
                let (old, waiting) = (old.entry.handle, old.successor.take());
                if let Some(new) = self.pairs.get_mut(&sa.id) {
                    new.successor = waiting;
                }
                self.flows.send(selectors, handle).map_err(map_error)?;
                self.flows.stop(old);
            }
            _ => self.flows.send(selectors, handle).map_err(map_error)?,
        }
        self.spread()
    }

    /// A pair sends no longer: its successor does.
    fn retire(&mut self, id: ChildSaId) -> Result<(), BackendError> {
        let Some(known) = self.pairs.get_mut(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let (old, successor) = (known.entry.handle, known.successor.take());
        if let Some(successor) = successor.and_then(|id| self.pairs.get(&id)) {
            let (selectors, handle) = (successor.selectors.clone(), successor.entry.handle);
            self.flows.send(selectors, handle).map_err(map_error)?;
        }
        self.flows.stop(old);
        self.spread()
    }

    fn remove(&mut self, id: ChildSaId) -> Result<(), BackendError> {
        self.retire(id)?;
        let Some(known) = self.pairs.remove(&id) else {
            return Ok(());
        };
        // A program that has just read the old handle finds its SA yet.
        self.maps.settle();
        self.keep_drops(&known.entry);
        let removed = self.maps.remove(&known.entry).map_err(map_error);
        self.ahead.remove(known.entry.handle);
        removed
    }

    /// What a pair that goes has dropped is counted outside any pair from here on.
    fn keep_drops(&mut self, entry: &PairEntry) {
        let inbound = self.maps.inbound(entry.spi_in_be);
        let outbound = self.maps.outbound(entry.handle);
        let halves = [
            inbound.map(|half| half.counters.drops),
            outbound.map(|half| half.counters.drops),
        ];
        for (total, half) in self.past_drops.iter_mut().zip(halves) {
            // What cannot be read is not there any more.
            half.iter().for_each(|half| add_drops(total, half));
        }
    }

    fn move_path(&mut self, id: ChildSaId, path: &Path) -> Result<(), BackendError> {
        check_path(path).map_err(|error| unsupported(error.to_string()))?;
        let Some(known) = self.pairs.get(&id) else {
            return Err(BackendError::Unknown(format!("child SA {}", id.0)));
        };
        let mut moved = known.entry;
        let esn = known.esn;
        moved.slot = self.slot(path, u32::from_be(moved.spi_out_be));
        entry::set_path(&mut moved, path);
        self.set_way(&mut moved, esn);
        self.maps.insert_pair(&moved).map_err(map_error)?;
        if let Some(known) = self.pairs.get_mut(&id) {
            known.entry = moved;
        }
        Ok(())
    }

    /// Whether frames go straight to an interface's driver, looked up anew: a veth takes them only
    /// while its other end has an XDP program or GRO.
    fn settle_device(&mut self, index: u32) {
        if self.takes_frames(index) {
            if let Err(error) = self.maps.add_device(index) {
                tracing::warn!(%error, "packets take the longer way through the kernel");
            }
        } else {
            self.maps.remove_device(index);
        }
    }

    /// Has a pair's packets take its way, whose device is settled.
    fn follow_way(&mut self, id: ChildSaId, way: &Way) {
        let Some(known) = self.pairs.get(&id) else {
            return;
        };
        let mut entry = known.entry;
        entry.max_inner = max_inner(known.esn, &entry::path(&entry), way.mtu);
        entry.link = way.interface;
        if entry == known.entry {
            return;
        }
        self.maps.settle();
        if let Err(error) = self.maps.insert_pair(&entry) {
            tracing::warn!(%error, "path MTU not set");
            return;
        }
        if let Some(known) = self.pairs.get_mut(&id) {
            known.entry = entry;
        }
    }

    /// Whether a driver transmits frames of XDP programs. One that does not drops them without a word.
    fn takes_frames(&self, index: u32) -> bool {
        match device::xdp_support(index) {
            Ok(Some(support)) => support.transmit,
            // Linux before 6.3 does not say. Drivers with native XDP transmit as well, but for a veth
            // it depends on the other end.
            Ok(None) | Err(_) => {
                let driver = self.drivers.get(&index);
                driver.is_some_and(|driver| driver != "veth")
            }
        }
    }

    /// Gives a pair the way that was announced for it.
    fn set_way(&mut self, pair: &mut PairEntry, esn: bool) {
        let way = self.announced.take();
        let mtu = way.as_ref().map_or(FIRST_MTU, |way| way.mtu);
        pair.link = way.map_or(0, |way| way.interface);
        pair.max_inner = max_inner(esn, &entry::path(pair), mtu);
    }

    /// Where the front end counts a pair's packets on the wire.
    fn slot(&self, path: &Path, spi: u32) -> u32 {
        let front_end = lock_front_end(&self.front_end);
        front_end
            .out_slot(path.remote.ip(), spi)
            .unwrap_or(u32::MAX)
    }
}

/// Longest inner packet of a path.
fn max_inner(esn: bool, path: &Path, mtu: u16) -> u32 {
    let geometry = Geometry::new(&entry::suite(esn), path);
    let most = geometry.max_inner(entry::MODE, mtu, 20);
    u32::try_from(most).unwrap_or(MAX_INNER).min(MAX_INNER)
}

fn selectors_of(pair: &PairEntry, inbound: &EspInEntry) -> Selectors {
    let [local, remote] = entry::selectors(inbound);
    let name = pair.connection.split(|octet| *octet == 0).next();
    Selectors {
        connection: String::from_utf8_lossy(name.unwrap_or_default()).into(),
        local,
        remote,
    }
}

fn lock_names(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine for EbpfEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn adopted(&mut self) -> Vec<(ChildSaId, Pair)> {
        self.pairs
            .iter()
            .map(|(id, known)| {
                let pair = Pair {
                    connection: Arc::clone(&known.selectors.connection),
                    suite: entry::suite(known.esn),
                    mode: entry::MODE,
                    path: entry::path(&known.entry),
                    spis: [known.entry.spi_in_be, known.entry.spi_out_be].map(u32::from_be),
                };
                (*id, pair)
            })
            .collect()
    }

    fn keep(&mut self, key: u64, state: Option<&[u8]>) -> Result<bool, BackendError> {
        self.maps.settle();
        self.maps.keep(key, state).map_err(map_error)?;
        Ok(true)
    }

    fn kept(&mut self) -> Result<KeptStates, BackendError> {
        self.maps.kept().map_err(map_error)
    }

    fn interface(&self) -> &Interface {
        &self.device.interface
    }

    fn supports(&self, sa: &ChildSa) -> Result<(), String> {
        let selectors = || sa.local_ts.iter().chain(&sa.remote_ts);
        if sa.suite.cipher != Cipher::ChaCha20Poly1305 {
            return Err(format!(
                "carries chacha20poly1305 only, which can be computed in BPF in constant time; the suite is {}",
                sa.suite
            ));
        }
        if sa.mode != entry::MODE {
            return Err("does not carry transport mode; use tunnel mode".to_owned());
        }
        if !selectors().all(is_whole) {
            return Err("carries whole subnets only, no protocols or ports".to_owned());
        }
        if sa.local_ts.len() > MAX_SELECTORS || sa.remote_ts.len() > MAX_SELECTORS {
            return Err(format!(
                "carries at most {MAX_SELECTORS} subnets of each side"
            ));
        }
        if sa.replay_window > shared_window::MAX_SIZE {
            return Err(format!(
                "has a replay window of at most {} packets, the connection asks for {}",
                shared_window::MAX_SIZE,
                sa.replay_window
            ));
        }
        if sa.connection.len() > MAX_NAME {
            return Err(format!(
                "knows connection names of at most {MAX_NAME} octets"
            ));
        }
        check_path(&sa.path).map_err(|error| error.to_string())
    }

    fn announce_way(&mut self, way: Option<&Way>) {
        self.announced = way.cloned();
    }

    fn apply(&mut self, command: &Command) -> Result<(), BackendError> {
        self.maps.settle();
        match command {
            Command::InstallPolicy(policy) => self.set_policy(policy),
            Command::RemovePolicy { connection } => {
                self.flows.remove_policy(connection, None);
                self.spread()
            }
            Command::InstallSa(sa) => self.install(sa, None),
            Command::RekeySa { old, new, takeover } => self.install(new, Some((*old, *takeover))),
            Command::MovePath { id, path } => self.move_path(*id, path),
            Command::Retire { id } => self.retire(*id),
            Command::RemoveSa { id } => self.remove(*id),
        }
    }

    fn steering(&self, _path: &Path) -> Steering {
        Steering::Decrypt
    }

    fn set_way(&mut self, id: ChildSaId, way: &Way) {
        self.settle_device(way.interface);
        self.follow_way(id, way);
    }

    fn set_ways(&mut self, ways: &BTreeMap<ChildSaId, Way>) {
        let links: BTreeSet<u32> = ways.values().map(|way| way.interface).collect();
        for link in links {
            self.settle_device(link);
        }
        for (id, way) in ways {
            self.follow_way(*id, way);
        }
    }

    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError> {
        self.pairs
            .iter()
            .map(|(id, known)| {
                let inbound = self.maps.inbound(known.entry.spi_in_be);
                let outbound = self.maps.outbound(known.entry.handle);
                Ok(ChildSaStats {
                    id: *id,
                    inbound: entry::stats(&inbound.map_err(map_error)?.counters),
                    outbound: entry::stats(&outbound.map_err(map_error)?.counters),
                })
            })
            .collect()
    }

    fn drop_totals(&mut self) -> Result<[[u64; DropReason::COUNT]; 2], BackendError> {
        let mut totals = self.maps.drops().map_err(map_error)?;
        for (total, past) in totals.iter_mut().zip(&self.past_drops) {
            add_drops(total, past);
        }
        Ok(totals)
    }

    fn shut_down(&mut self) {
        if let Some(mut events) = self.events.take() {
            events.stop();
            self.ahead.stop();
            for known in self.pairs.values() {
                if let Err(error) = self.maps.remove(&known.entry) {
                    tracing::warn!(%error, "an SA stays in the maps");
                }
            }
            if let Err(error) = self.device.remove(&mut self.netlink) {
                tracing::warn!(%error, "the plaintext interface stays");
            }
        }
    }
}
