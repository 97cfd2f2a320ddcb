//! The maps, reached only through these accessors.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, XskMap,
};
use espada_common::abi::esp::{
    EspConfig, EspInEntry, EspOutEntry, FlowEntry, KeptState, PairEntry,
};
use espada_common::abi::{
    ABI_VERSION, CONFIG_GUARD, ClassedAddress, FragmentKey, FrontEndConfig, LanEntry, MAX_LANES,
    MAX_QUEUES, SA_FLAG_DECRYPT, SA_FLAG_STEER_XSK, SaCounters, SaInEntry, SaOutEntry, SaOutKey,
    SpiKey, maps,
};
use espada_common::drops::DropReason;
use espada_common::wire::Address;
use espada_common::wire::parse::Ports;
use zerocopy::transmute;

use crate::engine::Steering;

use super::policy::{ProtectedPair, compile};
use super::tries::Tries;
use super::{FrontEndError, InCounters, chain};

/// What the tries of protected pairs lead to.
const PROTECTED: u32 = 1;

// Keys and values are arrays of octets to aya, and `espada_common::abi` structs to everybody else.
pub(crate) type Octets<T> = <T as AsOctets>::Array;

pub(crate) trait AsOctets {
    type Array;
}

macro_rules! octets {
    ($($kind:ty),+ $(,)?) => {
        $(impl AsOctets for $kind {
            type Array = [u8; size_of::<$kind>()];
        })+
    };
}
octets!(
    EspConfig,
    EspInEntry,
    EspOutEntry,
    PairEntry,
    FlowEntry,
    KeptState,
    Address,
    SpiKey,
    SaInEntry,
    SaOutKey,
    SaOutEntry,
    SaCounters,
    ClassedAddress,
    FragmentKey,
    FrontEndConfig,
    LanEntry
);

pub(super) struct Maps {
    config: Array<MapData, Octets<FrontEndConfig>>,
    local: HashMap<MapData, Octets<Address>, u32>,
    sa_in: HashMap<MapData, Octets<SpiKey>, Octets<SaInEntry>>,
    sa_in_stats: PerCpuHashMap<MapData, Octets<SpiKey>, Octets<SaCounters>>,
    sa_out: HashMap<MapData, Octets<SaOutKey>, Octets<SaOutEntry>>,
    sa_out_stats: Map,
    drops: PerCpuArray<MapData, u64>,
    spd: Tries,
    xsks: XskMap<MapData>,
    lan: HashMap<MapData, u32, Octets<LanEntry>>,
    lan_xsks: XskMap<MapData>,
    flags: u32,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps")
            .field("spd", &self.spd)
            .finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, FrontEndError> {
        Ok(Self {
            config: typed(ebpf, maps::CONFIG)?,
            local: typed(ebpf, maps::LOCAL)?,
            sa_in: typed(ebpf, maps::SA_IN)?,
            sa_in_stats: typed(ebpf, maps::SA_IN_STATS)?,
            sa_out: typed(ebpf, maps::SA_OUT)?,
            sa_out_stats: raw(ebpf, maps::SA_OUT_STATS)?,
            drops: typed(ebpf, maps::DROPS)?,
            spd: Tries::take(ebpf, [maps::SPD_REMOTE, maps::SPD_LOCAL])?,
            xsks: typed(ebpf, maps::XSKS)?,
            lan: typed(ebpf, maps::LAN)?,
            lan_xsks: typed(ebpf, maps::LAN_XSKS)?,
            flags: 0,
        })
    }

    /// Sets the flags, and with them the version that makes the programs act at all.
    pub(super) fn configure(&mut self, flags: u32) -> Result<(), FrontEndError> {
        self.configure_version(ABI_VERSION, flags)
    }

    pub(super) fn configure_version(
        &mut self,
        abi_version: u32,
        flags: u32,
    ) -> Result<(), FrontEndError> {
        let config = FrontEndConfig {
            abi_version,
            flags,
            nat_t_port: Ports::ASSIGNED.nat_t.into(),
            ike_port: Ports::ASSIGNED.ike.into(),
        };
        let value: Octets<FrontEndConfig> = transmute!(config);
        self.config
            .set(0, value, 0)
            .map_err(failed(maps::CONFIG, "set the configuration"))?;
        self.flags = flags;
        Ok(())
    }

    pub(super) fn out_stats_fd(&self) -> Result<BorrowedFd<'_>, FrontEndError> {
        match &self.sa_out_stats {
            Map::Array(data) => Ok(data.fd().as_fd()),
            other => Err(FrontEndError::Map {
                map: maps::SA_OUT_STATS,
                reason: format!("is no array: {other:?}"),
            }),
        }
    }

    pub(super) fn local_insert(&mut self, address: IpAddr, kind: u32) -> Result<(), FrontEndError> {
        self.local
            .insert(Address::from(address).octets(), kind, 0)
            .map_err(failed(maps::LOCAL, "add an address"))
    }

    pub(super) fn local_remove(&mut self, address: IpAddr) -> Result<(), FrontEndError> {
        gone(self.local.remove(&Address::from(address).octets()))
            .map_err(failed(maps::LOCAL, "remove an address"))
    }

    pub(super) fn sa_in_insert(
        &mut self,
        spi: u32,
        local: IpAddr,
        steering: Steering,
    ) -> Result<(), FrontEndError> {
        let spi_be = spi.to_be();
        let key: Octets<SpiKey> = transmute!(SpiKey { spi_be });
        let entry: Octets<SaInEntry> = transmute!(SaInEntry {
            spi_be,
            flags: match steering {
                Steering::Kernel => 0,
                Steering::Xsk { lanes } => {
                    SA_FLAG_STEER_XSK | (lane_of(spi, lanes) * MAX_QUEUES)
                }
                Steering::Decrypt => SA_FLAG_DECRYPT,
            },
            local: Address::from(local),
        });
        if self.sa_in_stats.get(&key, 0).is_err() {
            // The programs count only where there are counters, so these come first.
            let zeros = per_cpu(|| transmute!(SaCounters::default()))
                .map_err(system(maps::SA_IN_STATS, "count the processors"))?;
            self.sa_in_stats
                .insert(key, zeros, 0)
                .map_err(failed(maps::SA_IN_STATS, "add an SA"))?;
        }
        self.sa_in
            .insert(key, entry, 0)
            .map_err(failed(maps::SA_IN, "add an SA"))
    }

    pub(super) fn sa_in_remove(&mut self, spi: u32) -> Result<(), FrontEndError> {
        let key: Octets<SpiKey> = transmute!(SpiKey {
            spi_be: spi.to_be()
        });
        gone(self.sa_in.remove(&key)).map_err(failed(maps::SA_IN, "remove an SA"))?;
        gone(self.sa_in_stats.remove(&key)).map_err(failed(maps::SA_IN_STATS, "remove an SA"))
    }

    pub(super) fn sa_in_counters(&self) -> Result<Vec<InCounters>, FrontEndError> {
        self.sa_in_stats
            .iter()
            .map(|item| {
                let (key, values) = item?;
                let key: SpiKey = transmute!(key);
                let mut sum = SaCounters::default();
                for value in values.iter() {
                    let counters: SaCounters = transmute!(*value);
                    sum.packets = sum.packets.wrapping_add(counters.packets);
                    sum.bytes = sum.bytes.wrapping_add(counters.bytes);
                }
                Ok(InCounters {
                    spi: u32::from_be(key.spi_be),
                    counters: sum,
                })
            })
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::SA_IN_STATS, "read the counters"))
    }

    pub(super) fn sa_out_insert(
        &mut self,
        peer: IpAddr,
        spi: u32,
        slot: u32,
    ) -> Result<(), FrontEndError> {
        let entry: Octets<SaOutEntry> = transmute!(SaOutEntry {
            spi_be: spi.to_be(),
            slot,
        });
        self.sa_out
            .insert(out_key(peer, spi), entry, 0)
            .map_err(failed(maps::SA_OUT, "add an SA"))
    }

    pub(super) fn sa_out_remove(&mut self, peer: IpAddr, spi: u32) -> Result<(), FrontEndError> {
        gone(self.sa_out.remove(&out_key(peer, spi))).map_err(failed(maps::SA_OUT, "remove an SA"))
    }

    pub(super) fn drops(&self) -> Result<[u64; DropReason::COUNT], FrontEndError> {
        let mut drops = [0; DropReason::COUNT];
        for (reason, total) in DropReason::ALL.iter().zip(&mut drops) {
            let values = self
                .drops
                .get(&(*reason as u32), 0)
                .map_err(failed(maps::DROPS, "read the counters"))?;
            *total = values.iter().sum();
        }
        Ok(drops)
    }

    pub(super) fn xsk_set(
        &mut self,
        place: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), FrontEndError> {
        self.xsks
            .set(place, socket.as_raw_fd(), 0)
            .map_err(failed(maps::XSKS, "set the socket of a queue"))
    }

    pub(super) fn xsk_unset(&mut self, place: u32) -> Result<(), FrontEndError> {
        gone(self.xsks.unset(place)).map_err(failed(maps::XSKS, "take out the socket of a queue"))
    }

    pub(super) fn lan_set(&mut self, interface: u32, entry: LanEntry) -> Result<(), FrontEndError> {
        let value: Octets<LanEntry> = transmute!(entry);
        self.lan
            .insert(interface, value, 0)
            .map_err(failed(maps::LAN, "add an interface"))
    }

    pub(super) fn lan_unset(&mut self, interface: u32) -> Result<(), FrontEndError> {
        gone(self.lan.remove(&interface)).map_err(failed(maps::LAN, "remove an interface"))
    }

    pub(super) fn lan_xsk_set(
        &mut self,
        place: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), FrontEndError> {
        self.lan_xsks
            .set(place, socket.as_raw_fd(), 0)
            .map_err(failed(maps::LAN_XSKS, "set the socket of a queue"))
    }

    pub(super) fn lan_xsk_unset(&mut self, place: u32) -> Result<(), FrontEndError> {
        gone(self.lan_xsks.unset(place))
            .map_err(failed(maps::LAN_XSKS, "take out the socket of a queue"))
    }

    /// Adds policies.
    pub(super) fn add_policies(&mut self, pairs: &[ProtectedPair]) -> Result<(), FrontEndError> {
        for pair in pairs {
            self.spd.add(pair, PROTECTED)?;
        }
        if pairs.is_empty() {
            return Ok(());
        }
        self.configure(self.flags | CONFIG_GUARD)
    }

    /// Replaces the policies; a pair in both old and new stays protected throughout.
    pub(super) fn set_policies(&mut self, pairs: &[ProtectedPair]) -> Result<(), FrontEndError> {
        let pairs: Vec<(ProtectedPair, u32)> =
            pairs.iter().map(|pair| (*pair, PROTECTED)).collect();
        self.spd.set(&compile(&pairs))?;
        if pairs.is_empty() {
            self.configure(self.flags & !CONFIG_GUARD)
        } else {
            self.configure(self.flags | CONFIG_GUARD)
        }
    }

    /// Outbound SAs that are there, with their slots.
    pub(super) fn sa_out_entries(&self) -> Result<Vec<(IpAddr, u32, u32)>, FrontEndError> {
        self.sa_out
            .iter()
            .map(|item| {
                let (key, entry) = item?;
                let (key, entry): (SaOutKey, SaOutEntry) = (transmute!(key), transmute!(entry));
                Ok((key.peer.into(), u32::from_be(key.spi_be), entry.slot))
            })
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::SA_OUT, "read the SAs"))
    }

    /// Inbound SPIs that are there.
    pub(super) fn sa_in_spis(&self) -> Result<Vec<u32>, FrontEndError> {
        self.sa_in
            .keys()
            .map(|key| {
                let key: SpiKey = transmute!(key?);
                Ok(u32::from_be(key.spi_be))
            })
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::SA_IN, "read the SAs"))
    }

    /// Our addresses that are there, each with its `LOCAL_*`.
    pub(super) fn local_addresses(&self) -> Result<BTreeMap<IpAddr, u32>, FrontEndError> {
        self.local
            .iter()
            .map(|item| {
                let (key, kind) = item?;
                Ok((Address::from_octets(key).into(), kind))
            })
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::LOCAL, "read the addresses"))
    }
}

/// The lane of an SA. Peers and we choose SPIs at random, but not all who may choose them do.
fn lane_of(spi: u32, lanes: u32) -> u32 {
    (spi.wrapping_mul(0x9e37_79b1) >> 16) % lanes.clamp(1, MAX_LANES)
}

fn out_key(peer: IpAddr, spi: u32) -> Octets<SaOutKey> {
    transmute!(SaOutKey {
        spi_be: spi.to_be(),
        peer: Address::from(peer),
    })
}

pub(crate) fn raw(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, FrontEndError> {
    ebpf.take_map(name).ok_or_else(|| FrontEndError::Map {
        map: name,
        reason: "is not in the eBPF object; rebuild it with `cargo xtask build`".to_owned(),
    })
}

pub(crate) fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, FrontEndError>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(raw(ebpf, name)?).map_err(failed(name, "use it"))
}

fn per_cpu<T: aya::Pod>(value: impl Fn() -> T) -> std::io::Result<PerCpuValues<T>> {
    let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    PerCpuValues::try_from((0..processors).map(|_| value()).collect::<Vec<T>>())
}

pub(crate) fn failed(
    map: &'static str,
    operation: &'static str,
) -> impl Fn(MapError) -> FrontEndError {
    move |error| FrontEndError::Map {
        map,
        reason: format!("cannot {operation}: {}", chain(&error)),
    }
}

fn system(map: &'static str, operation: &'static str) -> impl Fn(std::io::Error) -> FrontEndError {
    move |error| FrontEndError::Map {
        map,
        reason: format!("cannot {operation}: {error}"),
    }
}

/// Removing what is not there is as good as removing it.
pub(crate) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}
