//! The XDP/TC front end on the WAN: loads and attaches the programs of `espada-ebpf`, tells them
//! of SAs, policies and addresses, and reads their counters.
//!
//! The programs stay attached as long as the [`FrontEnd`] lives (or, after
//! [`FrontEnd::persist`], until their pins are removed).

pub mod attach;
mod counters;
pub mod inspect;
mod maps;
pub mod pin;
pub mod policy;
mod syscall;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use aya::{Ebpf, EbpfLoader};
use espada_common::abi;
use espada_common::drops::DropReason;

pub use self::attach::{Attachment, Hook, Mode, ModeChoice};
pub use self::counters::{InCounters, OutCounter, OutCounters};

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
    local: Vec<IpAddr>,
    queues: HashMap<u32, i32>,
    pins: Option<InstanceDir>,
}

impl FrontEnd {
    /// Loads the programs and attaches them to every interface, or to none.
    pub fn attach(options: &Options) -> Result<Self, FrontEndError> {
        let pins = options
            .pin_dir
            .as_deref()
            .map(InstanceDir::create)
            .transpose()?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(load_error)?;
        if let Some(pins) = &pins {
            for (name, map) in ebpf.maps() {
                map.pin(pins.path().join(name))
                    .map_err(|error| FrontEndError::Pin {
                        path: pins.path().to_path_buf(),
                        reason: format!("cannot pin map {name}: {}", chain(&error)),
                    })?;
            }
        }
        let mut maps = Maps::take(&mut ebpf)?;
        let out = OutTable::new(maps.out_stats_fd()?)?;
        let mut flags = 0;
        if options.drop_unknown_spi {
            flags |= abi::CONFIG_DROP_UNKNOWN_SPI;
        }
        maps.configure(flags)?;
        let mut attachments = Vec::new();
        for interface in &options.interfaces {
            attachments.extend(attach::attach(
                &mut ebpf,
                interface,
                options.mode,
                options.prefer_offloads,
            )?);
        }
        Ok(Self {
            ebpf,
            maps,
            out,
            attachments,
            local: Vec::new(),
            queues: HashMap::new(),
            pins,
        })
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

    /// Our addresses on the WAN: only ESP and IKE sent to them are looked at as such.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), FrontEndError> {
        for address in addresses {
            self.maps.local_insert(*address)?;
        }
        for address in &self.local {
            if !addresses.contains(address) {
                self.maps.local_remove(*address)?;
            }
        }
        self.local = addresses.to_vec();
        Ok(())
    }

    /// An inbound SA: its SPI, the address its packets must be sent to, and whether native ESP
    /// of it goes to the AF_XDP socket of its queue where there is one.
    pub fn add_sa(&mut self, spi: u32, local: IpAddr, steer: bool) -> Result<(), FrontEndError> {
        self.maps.sa_in_insert(spi, local, steer)
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

    /// The AF_XDP socket of a receive queue. All interfaces share the table: with several, queue
    /// numbers must not collide.
    pub fn set_xsk(&mut self, queue: u32, socket: &impl AsRawFd) -> Result<(), FrontEndError> {
        self.maps.xsk_set(queue, socket)?;
        self.queues.insert(queue, socket.as_raw_fd());
        Ok(())
    }

    /// Takes the socket of a queue out again.
    pub fn remove_xsk(&mut self, queue: u32) -> Result<(), FrontEndError> {
        if self.queues.remove(&queue).is_some() {
            self.maps.xsk_unset(queue)?;
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
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
