//! The XDP/TC front end on the WAN: loads and attaches the programs of `espada-ebpf`, tells them
//! of SAs, policies and addresses, and reads their counters.
//!
//! The programs stay attached as long as the [`FrontEnd`] lives (or, after
//! [`FrontEnd::persist`], until their pins are removed).

pub mod attach;
mod counters;
pub mod inspect;
mod lan;
pub(crate) mod maps;
pub mod pin;
pub mod policy;
pub(crate) mod syscall;
#[cfg(test)]
mod tests;
pub(crate) mod tries;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use aya::maps::{MapData, ProgramArray};
use aya::{Ebpf, EbpfLoader};
use espada_common::abi::esp::maps as esp;
use espada_common::abi::{self, MAX_LANES, MAX_QUEUES};
use espada_common::drops::DropReason;

pub use self::attach::{Attachment, Hook, Mode, ModeChoice};
pub use self::counters::{InCounters, OutCounter, OutCounters};

use crate::engine::Steering;

use self::counters::OutTable;
use self::maps::Maps;
use self::pin::InstanceDir;
use self::policy::ProtectedPair;

/// The programs, built from `ebpf/`; `build.rs` refuses them when they are stale.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/prebuilt/espada.bpf.o"
));

/// What to attach, where and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// WAN interfaces of the current network namespace.
    pub interfaces: Vec<String>,
    /// XDP or tc.
    pub mode: ModeChoice,
    /// With [`ModeChoice::Auto`]: tc even where XDP would do, because bulk traffic leaves or
    /// arrives through segmentation offloads that XDP would switch off (on a veth, at its peer).
    pub prefer_offloads: bool,
    /// Drop ESP to our addresses with an unknown SPI; otherwise it is counted and passed on.
    pub drop_unknown_spi: bool,
    /// Pin the maps in this folder of a BPF file system while the front end lives, so that
    /// `bpftool` and others can read them.
    pub pin_dir: Option<PathBuf>,
    /// What to do with what an earlier process left in that folder.
    pub leftovers: Leftovers,
    /// Make room for the eBPF engine's SAs, and pin the links as well, so that the programs go on when
    /// this process is killed. Needs `pin_dir`.
    pub engine: bool,
    /// Make room for keystream that the engine prepares ahead, 13 MB.
    pub keystream_ahead: bool,
}

/// What becomes of attached programs that an earlier process left in a pin folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// They were left on purpose: an error.
    #[default]
    Refuse,
    /// They are detached.
    Remove,
    /// Their maps are used on, with everything in them, and their programs are replaced without a
    /// moment in between; removed if they are of another version.
    Adopt,
}

/// Why the front end could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// The kernel refused the programs or their maps.
    #[error("cannot load the eBPF programs: {reason}{hint}")]
    Load {
        /// What the loader said, with the verifier's words if it was the verifier.
        reason: String,
        /// What to change, where that is known.
        hint: &'static str,
    },
    /// An interface would not take a program.
    #[error("cannot attach to {interface}: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// What was tried and what the kernel answered.
        reason: String,
    },
    /// A map operation failed.
    #[error("map {map}: {reason}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried and what the kernel answered.
        reason: String,
    },
    /// The pin folder cannot be used.
    #[error("pin folder {path}: {reason}", path = path.display())]
    Pin {
        /// The folder.
        path: PathBuf,
        /// Why, and what to change.
        reason: String,
    },
}

/// Everything the front end counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// ESP that arrived for each inbound SA, by SPI.
    pub inbound: Vec<InCounters>,
    /// ESP that left for each outbound SA.
    pub outbound: Vec<OutCounters>,
    /// Packets dropped (or, for unknown SPIs that are passed on, seen), by `DropReason` number.
    pub drops: [u64; DropReason::COUNT],
}

/// The attached programs and their maps. To be dropped in the network namespace that it was
/// attached in: kernels without tcx (before 6.6) find filters by interface number.
#[derive(Debug)]
pub struct FrontEnd {
    // Fields are dropped in this order: first the programs go, with their links, then the pins.
    ebpf: Ebpf,
    maps: Maps,
    out: OutTable,
    attachments: Vec<Attachment>,
    /// Our addresses, each with its `LOCAL_*`.
    addresses: BTreeMap<IpAddr, u32>,
    queues: HashMap<u32, i32>,
    /// The links are pinned as well.
    persistent: bool,
    pins: Option<InstanceDir>,
}

/// Where the socket of a lane on a queue stands in the table.
fn xsk_place(lane: u32, queue: u32) -> Result<u32, FrontEndError> {
    if lane < MAX_LANES && queue < MAX_QUEUES {
        Ok(lane * MAX_QUEUES + queue)
    } else {
        Err(FrontEndError::Map {
            map: abi::maps::XSKS,
            reason: format!(
                "has no place for lane {lane} of queue {queue}: there are {MAX_LANES} lanes of {MAX_QUEUES} queues"
            ),
        })
    }
}

impl FrontEnd {
    /// Loads the programs and attaches them to every interface, or to none.
    pub fn attach(options: &Options) -> Result<Self, FrontEndError> {
        let pins = options
            .pin_dir
            .as_deref()
            .map(|path| InstanceDir::create(path, options.leftovers))
            .transpose()?;
        let mut loader = EbpfLoader::new();
        let inherited = match &pins {
            Some(pins) => pins.maps(),
            None => Vec::new(),
        };
        for (name, path) in &inherited {
            loader.map_pin_path(name, path.as_path());
        }
        if !options.engine {
            for map in [esp::FLOWS, esp::IN, esp::OUT, esp::PAIRS, esp::KEEP] {
                loader.map_max_entries(map, 1);
            }
        }
        if !options.engine || !options.keystream_ahead {
            loader.map_max_entries(esp::AHEAD, 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        if let Some(pins) = &pins {
            for (name, map) in ebpf.maps() {
                if inherited.iter().any(|(known, _)| known == name) {
                    continue;
                }
                map.pin(pins.path().join(name))
                    .map_err(|error| FrontEndError::Pin {
                        path: pins.path().to_path_buf(),
                        reason: format!("cannot pin map {name}: {}", chain(&error)),
                    })?;
            }
        }
        let mut maps = Maps::take(&mut ebpf)?;
        let out = OutTable::new(maps.out_stats_fd()?, maps.sa_out_entries()?)?;
        let addresses = maps.local_addresses()?;
        let mut flags = 0;
        if options.drop_unknown_spi {
            flags |= abi::CONFIG_DROP_UNKNOWN_SPI;
        }
        maps.configure(flags)?;
        let mut this = Self {
            ebpf,
            maps,
            out,
            attachments: Vec::new(),
            addresses,
            queues: HashMap::new(),
            persistent: options.engine && pins.is_some(),
            pins,
        };
        for interface in &options.interfaces {
            let links = this.links();
            let attached = attach::attach(
                &mut this.ebpf,
                interface,
                options.mode,
                options.prefer_offloads,
                links.as_deref(),
            )?;
            this.attachments.extend(attached);
        }
        if let Some(links) = this.links() {
            attach::pin_links(&mut this.ebpf, &mut this.attachments, &links)?;
        }
        Ok(this)
    }

    /// The folder of links that outlive this process, if there is one.
    fn links(&self) -> Option<PathBuf> {
        let pins = self.pins.as_ref().filter(|_| self.persistent)?;
        Some(pins.path().to_path_buf())
    }

    /// Puts the eBPF engine's programs on the hidden end of its plaintext interface, and the one that
    /// decrypts behind the front end's.
    pub(crate) fn attach_engine(
        &mut self,
        port: &str,
        programs: &mut ProgramArray<MapData>,
    ) -> Result<(), FrontEndError> {
        let Some(links) = self.links() else {
            return Err(FrontEndError::Attach {
                interface: port.to_owned(),
                reason: "no pin folder was named, so nothing can outlive this process".to_owned(),
            });
        };
        let mut attached = attach::attach_engine(&mut self.ebpf, port, &links, programs)?;
        attach::pin_links(&mut self.ebpf, &mut attached, &links)?;
        self.attachments.extend(attached);
        Ok(())
    }

    /// Every attachment is made: links that an earlier process left and nobody took up are removed.
    pub(crate) fn drop_stale_links(&self) {
        if let Some(pins) = self.pins.as_ref().filter(|_| self.persistent) {
            pins.keep_links(&self.attachments);
        }
    }

    /// The loaded object, for the engine to take its maps from.
    pub(crate) fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// True if the programs go on without this process.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Forgets SAs that an earlier process left, except these: inbound SPIs, and peers with outbound
    /// SPIs.
    pub fn retain(
        &mut self,
        inbound: &[u32],
        outbound: &[(IpAddr, u32)],
    ) -> Result<(), FrontEndError> {
        for spi in self.maps.sa_in_spis()? {
            if !inbound.contains(&spi) {
                self.maps.sa_in_remove(spi)?;
            }
        }
        for (peer, spi) in self.out.known() {
            if !outbound.contains(&(peer, spi)) {
                self.remove_out(peer, spi)?;
            }
        }
        Ok(())
    }

    /// Where the counters of an outbound SA are.
    pub(crate) fn out_slot(&self, peer: IpAddr, spi: u32) -> Option<u32> {
        self.out.slot(peer, spi)
    }

    /// What is attached where, and why in this way.
    pub fn attached(&self) -> &[Attachment] {
        &self.attachments
    }

    /// True if native ESP can be steered to AF_XDP on this interface.
    pub fn steers(&self, interface: &str) -> bool {
        self.attachments
            .iter()
            .any(|attached| attached.interface == interface && attached.hook == Hook::Xdp)
    }

    /// Our addresses on the WAN: only ESP and IKE sent to them are looked at as such. And all others
    /// of this host: packets from or to any of them are not forwarded past the kernel.
    pub fn set_addresses(
        &mut self,
        wan: &[IpAddr],
        others: &[IpAddr],
    ) -> Result<(), FrontEndError> {
        let others = others.iter().map(|address| (*address, abi::LOCAL_OTHER));
        let wan = wan.iter().map(|address| (*address, abi::LOCAL_WAN));
        let wanted: BTreeMap<IpAddr, u32> = others.chain(wan).collect();
        let gone: Vec<IpAddr> = (self.addresses.keys())
            .filter(|address| !wanted.contains_key(address))
            .copied()
            .collect();
        for address in gone {
            self.maps.local_remove(address)?;
            self.addresses.remove(&address);
        }
        // Those of the WAN first: where there is no room for all, traffic depends on them.
        let mut changed: Vec<(IpAddr, u32)> = (wanted.into_iter())
            .filter(|(address, kind)| self.addresses.get(address) != Some(kind))
            .collect();
        changed.sort_by_key(|(_, kind)| *kind);
        for (address, kind) in changed {
            self.maps.local_insert(address, kind)?;
            self.addresses.insert(address, kind);
        }
        Ok(())
    }

    /// An inbound SA: its SPI, the address its packets must be sent to, and what becomes of them.
    pub fn add_sa(
        &mut self,
        spi: u32,
        local: IpAddr,
        steering: Steering,
    ) -> Result<(), FrontEndError> {
        self.maps.sa_in_insert(spi, local, steering)
    }

    /// Forgets an inbound SA and its counters. One that is not there is no error.
    pub fn remove_sa(&mut self, spi: u32) -> Result<(), FrontEndError> {
        self.maps.sa_in_remove(spi)
    }

    /// An outbound SA: the peer's address and its SPI. Its counters start at zero.
    pub fn add_out(&mut self, peer: IpAddr, spi: u32) -> Result<(), FrontEndError> {
        let slot = self.out.insert(peer, spi)?;
        self.maps.sa_out_insert(peer, spi, slot).inspect_err(|_| {
            self.out.remove(peer, spi);
        })
    }

    /// Forgets an outbound SA. Its counters' slot may be given to another SA, so every
    /// [`OutCounter`] of it must be gone from the workers before.
    pub fn remove_out(&mut self, peer: IpAddr, spi: u32) -> Result<(), FrontEndError> {
        self.maps.sa_out_remove(peer, spi)?;
        self.out.remove(peer, spi);
        Ok(())
    }

    /// The counter of an outbound SA, for workers that transmit past the tc egress program.
    pub fn out_counter(&self, peer: IpAddr, spi: u32) -> Option<OutCounter> {
        self.out.counter(peer, spi)
    }

    /// The address pairs that must not pass in clear. Replaces the former ones; a pair in both
    /// stays protected throughout.
    pub fn set_policies(&mut self, pairs: &[ProtectedPair]) -> Result<(), FrontEndError> {
        self.maps.set_policies(pairs)
    }

    /// More address pairs that must not pass in clear.
    pub fn add_policies(&mut self, pairs: &[ProtectedPair]) -> Result<(), FrontEndError> {
        self.maps.add_policies(pairs)
    }

    /// A lane's AF_XDP socket on a receive queue. All interfaces share the table: with several, queue
    /// numbers must not collide.
    pub fn set_xsk(
        &mut self,
        lane: u32,
        queue: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), FrontEndError> {
        let place = xsk_place(lane, queue)?;
        self.maps.xsk_set(place, socket)?;
        self.queues.insert(place, socket.as_raw_fd());
        Ok(())
    }

    /// Takes a lane's socket on a queue out again.
    pub fn remove_xsk(&mut self, lane: u32, queue: u32) -> Result<(), FrontEndError> {
        let place = xsk_place(lane, queue)?;
        if self.queues.remove(&place).is_some() {
            self.maps.xsk_unset(place)?;
        }
        Ok(())
    }

    /// Reads all counters.
    pub fn counters(&self) -> Result<Counters, FrontEndError> {
        Ok(Counters {
            inbound: self.maps.sa_in_counters()?,
            outbound: self.out.counters(),
            drops: self.maps.drops()?,
        })
    }

    /// Leaves everything attached when this process ends: pins the links beside the maps.
    /// Needs [`Options::pin_dir`].
    pub fn persist(mut self) -> Result<Vec<Attachment>, FrontEndError> {
        let Some(pins) = self.pins.take() else {
            return Err(FrontEndError::Pin {
                path: PathBuf::new(),
                reason: "no pin folder was named, so nothing can outlive this process".to_owned(),
            });
        };
        attach::pin_links(&mut self.ebpf, &mut self.attachments, pins.path())?;
        pins.keep();
        Ok(std::mem::take(&mut self.attachments))
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        // Filters of clsact are held by nobody once the links were made to last.
        if self.persistent && self.pins.is_some() {
            for attached in &self.attachments {
                if attached.mode == Mode::Clsact {
                    attach::detach_clsact(&attached.interface);
                }
            }
        }
    }
}

fn load_error(error: aya::EbpfError) -> FrontEndError {
    let reason = chain(&error);
    let denied = error_kinds(&error).any(|kind| kind == io::ErrorKind::PermissionDenied);
    let verifier = reason.contains("verifier");
    FrontEndError::Load {
        reason,
        hint: if denied && !verifier {
            "; this needs root or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        } else {
            ""
        },
    }
}

/// An error with everything that caused it, each said once.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The system's answers among an error's causes.
fn error_kinds<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = io::ErrorKind> + 'a {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}
