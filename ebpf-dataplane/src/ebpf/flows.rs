//! What the SPD tries lead to: for each set of selectors of a connection, the pair that sends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use espada_common::abi::esp::{FLOW_TRAP, FlowEntry, MAX_FLOWS, maps};
use espada_common::sa::TrafficSelector;

use crate::frontend::FrontEndError;
use crate::frontend::syscall::MappedWords;

/// `FlowEntry` as words: handle and flags, then the time of the last event.
const WORDS: usize = size_of::<FlowEntry>() / size_of::<u64>();

/// Selectors of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selectors {
    pub connection: Arc<str>,
    pub local: Vec<TrafficSelector>,
    pub remote: Vec<TrafficSelector>,
}

/// A flow that is in use.
#[derive(Debug, Default)]
struct Flow {
    number: u32,
    /// A policy has these selectors.
    policy: bool,
    trap: bool,
    /// Pairs with these selectors; the last one sends.
    handles: Vec<u32>,
}

/// All flows, and the array that the programs read.
pub struct Flows {
    words: MappedWords,
    known: HashMap<Selectors, Flow>,
    free: Vec<u32>,
    next: u32,
}

impl Flows {
    /// Maps the array. Numbers in `taken` are not given out until [`Flows::release`] says so.
    pub fn new(map: BorrowedFd<'_>, taken: &BTreeSet<u32>) -> Result<Self, FrontEndError> {
        let words = MappedWords::new(map, MAX_FLOWS as usize * WORDS).map_err(|error| {
            FrontEndError::Map {
                map: maps::FLOWS,
                reason: format!("cannot map it into memory: {error}"),
            }
        })?;
        let next = taken.last().map_or(1, |last| last.saturating_add(1));
        Ok(Self {
            words,
            known: HashMap::new(),
            // 0 stands for none.
            free: (1..next).filter(|number| !taken.contains(number)).collect(),
            next,
        })
    }

    /// The pair that an earlier process had send for a flow.
    pub fn sending(&self, number: u32) -> u32 {
        self.word(number).map_or(0, |word| word as u32)
    }

    /// Takes a flow of an earlier process over, with its pair.
    pub fn adopt(&mut self, selectors: Selectors, number: u32, handle: u32) {
        let flow = self.known.entry(selectors).or_insert(Flow {
            number,
            ..Flow::default()
        });
        flow.handles.push(handle);
    }

    /// A policy comes or changes.
    pub fn set_policy(&mut self, selectors: Selectors, trap: bool) -> Result<(), FrontEndError> {
        self.remove_policy(&selectors.connection, Some(&selectors));
        let flow = self.entry(selectors)?;
        flow.policy = true;
        flow.trap = trap;
        self.publish();
        Ok(())
    }

    /// A connection's policy goes, except with these selectors.
    pub fn remove_policy(&mut self, connection: &str, except: Option<&Selectors>) {
        for (selectors, flow) in &mut self.known {
            if *selectors.connection == *connection && Some(selectors) != except {
                flow.policy = false;
                flow.trap = false;
            }
        }
        self.publish();
    }

    /// A pair sends from now on, in place of whichever did.
    pub fn send(&mut self, selectors: Selectors, handle: u32) -> Result<(), FrontEndError> {
        let flow = self.entry(selectors)?;
        flow.handles.push(handle);
        self.publish();
        Ok(())
    }

    /// A pair sends no longer.
    pub fn stop(&mut self, handle: u32) {
        for flow in self.known.values_mut() {
            flow.handles.retain(|known| *known != handle);
        }
        self.publish();
    }

    fn entry(&mut self, selectors: Selectors) -> Result<&mut Flow, FrontEndError> {
        use std::collections::hash_map::Entry;
        match self.known.entry(selectors) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let number = match self.free.pop() {
                    Some(number) => number,
                    None if self.next < MAX_FLOWS => {
                        self.next += 1;
                        self.next - 1
                    }
                    None => {
                        return Err(FrontEndError::Map {
                            map: maps::FLOWS,
                            reason: format!("all {MAX_FLOWS} flows are in use"),
                        });
                    }
                };
                Ok(place.insert(Flow {
                    number,
                    ..Flow::default()
                }))
            }
        }
    }

    fn word(&self, number: u32) -> Option<u64> {
        let word = self.words.get().get(number as usize * WORDS)?;
        Some(word.load(Ordering::Acquire))
    }

    /// Writes what changed: one store for each flow.
    fn publish(&self) {
        for flow in self.known.values() {
            let trap = if flow.trap { FLOW_TRAP } else { 0 };
            let handle = flow.handles.last().copied().unwrap_or_default();
            let word = u64::from(trap) << 32 | u64::from(handle);
            if let Some(place) = self.words.get().get(flow.number as usize * WORDS)
                && place.load(Ordering::Acquire) != word
            {
                place.store(word, Ordering::Release);
            }
        }
    }

    /// Flows for the tries: those of policies first, as a pair's own selectors go before them.
    pub fn table(&self) -> Vec<(&Selectors, u32)> {
        let mut flows: Vec<(&Selectors, &Flow)> = self
            .known
            .iter()
            .filter(|(_, flow)| flow.policy || !flow.handles.is_empty())
            .collect();
        flows.sort_by_key(|(selectors, flow)| (!flow.handles.is_empty(), *selectors));
        flows
            .into_iter()
            .map(|(selectors, flow)| (selectors, flow.number))
            .collect()
    }

    /// Gives back flows that the tries lead to no more.
    pub fn release(&mut self) {
        let free = &mut self.free;
        self.known.retain(|_, flow| {
            let used = flow.policy || !flow.handles.is_empty();
            if !used {
                free.push(flow.number);
            }
            used
        });
    }

    /// Connections by flow, for events.
    pub fn connections(&self) -> BTreeMap<u32, Arc<str>> {
        self.known
            .iter()
            .map(|(selectors, flow)| (flow.number, Arc::clone(&selectors.connection)))
            .collect()
    }
}
