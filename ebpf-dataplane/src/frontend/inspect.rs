//! What the pinned maps of a front end hold, and whether the kernel takes its programs.

use std::path::Path;
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap};
use aya::programs::{Program, ProgramError};
use espada_common::abi::{ABI_VERSION, FrontEndConfig, maps};
use espada_common::wire::Address;
use zerocopy::transmute;

use super::maps::Octets;
use super::{FrontEndError, OBJECT, abi, chain, load_error};

/// A program that the kernel's verifier accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier went through (Linux 5.16).
    pub instructions: Option<u32>,
    /// How long loading took.
    pub took: Duration,
}

/// Loads every program and lets it go again: nothing is attached or pinned. Those of the eBPF engine
/// are left out where the kernel is too old for them.
pub fn verify() -> Result<Vec<Verified>, FrontEndError> {
    let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(load_error)?;
    let mut verified = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let started = Instant::now();
        match load(program) {
            Err(_) if name.starts_with("espada_esp_") => continue,
            result => result.map_err(|error| load_error(error.into()))?,
        }
        let took = started.elapsed();
        let about = program.info().map_err(|error| load_error(error.into()))?;
        verified.push(Verified {
            name: name.to_owned(),
            instructions: about.verified_instruction_count(),
            took,
        });
    }
    verified.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(verified)
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSummary {
    /// Its name.
    pub name: String,
    /// `hash`, `array`, … as the kernel calls it.
    pub kind: String,
    /// Entries in use; all of an array's are.
    pub entries: usize,
    /// Entries there is room for.
    pub max_entries: u32,
}

/// Every map pinned in a folder, in order of their names.
pub fn pinned_maps(folder: &Path) -> Result<Vec<MapSummary>, FrontEndError> {
    let fail = |reason: String| FrontEndError::Pin {
        path: folder.to_path_buf(),
        reason,
    };
    check_version(folder).map_err(fail)?;
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|error| fail(format!("cannot read it: {error}")))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("espada_"))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            summary(folder, &name).map_err(|error| fail(format!("map {name}: {}", chain(&error))))
        })
        .collect()
}

/// Maps of another version would be misread.
pub(super) fn check_version(folder: &Path) -> Result<(), String> {
    let read = || -> Result<FrontEndConfig, MapError> {
        let data = MapData::from_pin(folder.join(maps::CONFIG))?;
        let config: Array<_, Octets<FrontEndConfig>> = Map::from_map_data(data)?.try_into()?;
        Ok(transmute!(config.get(&0, 0)?))
    };
    let config =
        read().map_err(|error| format!("cannot read {}: {}", maps::CONFIG, chain(&error)))?;
    if config.abi_version != ABI_VERSION {
        return Err(format!(
            "its maps are of version {}, this program knows version {ABI_VERSION}: unload them with the \
             Espada that loaded them",
            config.abi_version
        ));
    }
    Ok(())
}

fn summary(folder: &Path, name: &str) -> Result<MapSummary, MapError> {
    let data = MapData::from_pin(folder.join(name))?;
    let about = data.info()?;
    let max_entries = about.max_entries();
    let kind = format!("{:?}", about.map_type()?);
    let map = Map::from_map_data(data)?;
    let entries = match name {
        maps::LOCAL => count(HashMap::<_, Octets<Address>, u32>::try_from(map)?.keys())?,
        maps::SA_IN => {
            count(HashMap::<_, Octets<abi::SpiKey>, Octets<abi::SaInEntry>>::try_from(map)?.keys())?
        }
        maps::SA_IN_STATS => count(
            PerCpuHashMap::<_, Octets<abi::SpiKey>, Octets<abi::SaCounters>>::try_from(map)?.keys(),
        )?,
        maps::SA_OUT => count(
            HashMap::<_, Octets<abi::SaOutKey>, Octets<abi::SaOutEntry>>::try_from(map)?.keys(),
        )?,
        maps::FRAGMENTS => {
            count(HashMap::<_, Octets<abi::FragmentKey>, u32>::try_from(map)?.keys())?
        }
        maps::SPD_REMOTE => count(LpmTrie::<_, Octets<Address>, u32>::try_from(map)?.keys())?,
        maps::SPD_LOCAL => {
            count(LpmTrie::<_, Octets<abi::ClassedAddress>, u32>::try_from(map)?.keys())?
        }
        // Sockets cannot be read back, so an XSKMAP is shown by its size like the arrays.
        _ => max_entries as usize,
    };
    Ok(MapSummary {
        name: name.to_owned(),
        kind,
        entries,
        max_entries,
    })
}

fn count<T>(keys: impl Iterator<Item = Result<T, MapError>>) -> Result<usize, MapError> {
    keys.map(|key| key.map(drop))
        .try_fold(0, |sum, key| key.map(|()| sum + 1))
}
