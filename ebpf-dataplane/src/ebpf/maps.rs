//! The engine's maps, reached only through these accessors.

use aya::Ebpf;
use aya::maps::{
    Array, DevMapHash, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray, RingBuf,
};
use espada_common::abi::SpiKey;
use espada_common::abi::esp::{
    EspConfig, EspInEntry, EspOutEntry, KeptState, MAX_KEPT, PairEntry, maps,
};
use espada_common::drops::DropReason;
use zerocopy::{FromZeros, IntoBytes, transmute, transmute_ref};
use zeroize::{Zeroize, Zeroizing};

use super::entry::Wiped;
use super::syscall;
use crate::backend::KeptStates;
use crate::frontend::maps::{Octets, failed, gone, raw, typed};
use crate::frontend::tries::Tries;
use crate::frontend::{FrontEndError, chain};

pub(super) struct Maps {
    config: Array<MapData, Octets<EspConfig>>,
    inbound: HashMap<MapData, Octets<SpiKey>, Octets<EspInEntry>>,
    outbound: HashMap<MapData, u32, Octets<EspOutEntry>>,
    pairs: HashMap<MapData, u32, Octets<PairEntry>>,
    drops: PerCpuArray<MapData, u64>,
    devices: DevMapHash<MapData>,
    keep: HashMap<MapData, u64, Octets<KeptState>>,
    pub(super) programs: ProgramArray<MapData>,
    pub(super) flows: MapData,
    pub(super) spd: Tries,
    pub(super) events: Option<RingBuf<MapData>>,
    pub(super) ahead: MapData,
    pub(super) wakes: Option<RingBuf<MapData>>,
    /// Something was deleted that a program may still be reading.
    deleted: bool,
}

fn array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, FrontEndError> {
    match raw(ebpf, name)? {
        Map::Array(map) => Ok(map),
        _ => Err(FrontEndError::Map {
            map: name,
            reason: "is no array".to_owned(),
        }),
    }
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, FrontEndError> {
        let flows = array(ebpf, maps::FLOWS)?;
        let ahead = array(ebpf, maps::AHEAD)?;
        Ok(Self {
            config: typed(ebpf, maps::CONFIG)?,
            inbound: typed(ebpf, maps::IN)?,
            outbound: typed(ebpf, maps::OUT)?,
            pairs: typed(ebpf, maps::PAIRS)?,
            drops: typed(ebpf, maps::DROPS)?,
            devices: typed(ebpf, maps::DEVICES)?,
            keep: typed(ebpf, maps::KEEP)?,
            programs: typed(ebpf, maps::PROGRAMS)?,
            flows,
            spd: Tries::take(ebpf, [maps::SPD_REMOTE, maps::SPD_LOCAL])?,
            events: Some(typed(ebpf, maps::EVENTS)?),
            ahead,
            wakes: Some(typed(ebpf, maps::WAKE)?),
            deleted: false,
        })
    }

    pub(super) fn configure(&mut self, config: EspConfig) -> Result<(), FrontEndError> {
        let value: Octets<EspConfig> = transmute!(config);
        self.config
            .set(0, value, 0)
            .map_err(failed(maps::CONFIG, "set the configuration"))
    }

    /// Interfaces that frames may be passed to.
    pub(super) fn add_device(&mut self, index: u32) -> Result<(), FrontEndError> {
        self.devices
            .insert(index, index, None, 0)
            .map_err(|error| FrontEndError::Map {
                map: maps::DEVICES,
                reason: format!("cannot add an interface: {}", chain(&error)),
            })
    }

    /// Packets to this interface go by way of the kernel.
    pub(super) fn remove_device(&mut self, index: u32) {
        // It may not be there; either way it is not used afterwards.
        let _ = self.devices.remove(index);
    }

    /// To be called before anything is inserted: what was deleted is given to somebody else only
    /// when no program can be reading it any more.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.deleted) {
            syscall::wait_for_programs();
        }
    }

    /// Something was taken out that programs may still be using.
    pub(super) fn mark_deleted(&mut self) {
        self.deleted = true;
    }

    pub(super) fn insert_in(&mut self, entry: &EspInEntry) -> Result<(), FrontEndError> {
        let key: Octets<SpiKey> = transmute!(SpiKey {
            spi_be: entry.spi_be
        });
        let value: &Octets<EspInEntry> = transmute_ref!(entry);
        self.inbound
            .insert(key, value, 0)
            .map_err(failed(maps::IN, "add an SA"))
    }

    pub(super) fn insert_out(&mut self, entry: &EspOutEntry) -> Result<(), FrontEndError> {
        let value: &Octets<EspOutEntry> = transmute_ref!(entry);
        self.outbound
            .insert(entry.handle, value, 0)
            .map_err(failed(maps::OUT, "add an SA"))
    }

    /// Adds a pair or replaces it whole.
    pub(super) fn insert_pair(&mut self, entry: &PairEntry) -> Result<(), FrontEndError> {
        let value: &Octets<PairEntry> = transmute_ref!(entry);
        self.pairs
            .insert(entry.handle, value, 0)
            .map_err(failed(maps::PAIRS, "set a pair"))?;
        // The one before, if there was one.
        self.deleted = true;
        Ok(())
    }

    pub(super) fn remove(&mut self, entry: &PairEntry) -> Result<(), FrontEndError> {
        let key: Octets<SpiKey> = transmute!(SpiKey {
            spi_be: entry.spi_in_be
        });
        self.deleted = true;
        gone(self.outbound.remove(&entry.handle)).map_err(failed(maps::OUT, "remove an SA"))?;
        gone(self.inbound.remove(&key)).map_err(failed(maps::IN, "remove an SA"))?;
        gone(self.pairs.remove(&entry.handle)).map_err(failed(maps::PAIRS, "remove a pair"))
    }

    /// Every pair.
    pub(super) fn pairs(&self) -> Result<Vec<PairEntry>, FrontEndError> {
        self.pairs
            .iter()
            .map(|item| Ok(transmute!(item?.1)))
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::PAIRS, "read the pairs"))
    }

    /// An inbound SA.
    pub(super) fn inbound(&self, spi_be: u32) -> Result<Wiped<EspInEntry>, FrontEndError> {
        let key: Octets<SpiKey> = transmute!(SpiKey { spi_be });
        let octets = self
            .inbound
            .get(&key, 0)
            .map_err(failed(maps::IN, "read an SA"))?;
        let octets = Zeroizing::new(octets);
        Ok(Wiped::new(transmute!(*octets)))
    }

    /// An outbound SA.
    pub(super) fn outbound(&self, handle: u32) -> Result<Wiped<EspOutEntry>, FrontEndError> {
        let octets = self
            .outbound
            .get(&handle, 0)
            .map_err(failed(maps::OUT, "read an SA"))?;
        let octets = Zeroizing::new(octets);
        Ok(Wiped::new(transmute!(*octets)))
    }

    /// Drops that belong to no SA: inbound, outbound.
    pub(super) fn drops(&self) -> Result<[[u64; DropReason::COUNT]; 2], FrontEndError> {
        let mut drops = [[0; DropReason::COUNT]; 2];
        for (index, total) in (0..).zip(drops.iter_mut().flatten()) {
            let values = self
                .drops
                .get(&index, 0)
                .map_err(failed(maps::DROPS, "read the counters"))?;
            *total = values.iter().sum();
        }
        Ok(drops)
    }

    pub(super) fn keep(&mut self, key: u64, state: Option<&[u8]>) -> Result<(), FrontEndError> {
        let Some(state) = state else {
            return gone(self.keep.remove(&key)).map_err(failed(maps::KEEP, "forget a state"));
        };
        let mut kept = Box::new(KeptState::new_zeroed());
        let place = kept.data.get_mut(..state.len());
        let Some(place) = place else {
            return Err(FrontEndError::Map {
                map: maps::KEEP,
                reason: format!(
                    "a state of {} octets does not fit: {MAX_KEPT} are the most",
                    state.len()
                ),
            });
        };
        place.copy_from_slice(state);
        kept.len = state.len() as u32;
        let value: &Octets<KeptState> = transmute_ref!(&*kept);
        let result = self
            .keep
            .insert(key, value, 0)
            .map_err(failed(maps::KEEP, "keep a state"));
        kept.as_mut_bytes().zeroize();
        result
    }

    pub(super) fn kept(&self) -> Result<KeptStates, FrontEndError> {
        self.keep
            .iter()
            .map(|item| {
                let (key, octets) = item?;
                let octets = Zeroizing::new(octets);
                let (head, data) = octets.split_at(octets.len() - MAX_KEPT);
                let len = head.first_chunk().map_or(0, |len| u32::from_ne_bytes(*len));
                let state = data.get(..len as usize).unwrap_or_default();
                Ok((key, Zeroizing::new(state.to_vec())))
            })
            .collect::<Result<_, MapError>>()
            .map_err(failed(maps::KEEP, "read the states"))
    }
}
