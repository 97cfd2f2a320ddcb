//! The one seam between the control side and whatever carries ESP.

use std::net::IpAddr;
use std::sync::Arc;

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, ChildSaStats, Command, Event};
use zeroize::Zeroizing;

/// Where an engine reports its events. Called from worker threads: must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// Why an engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The suite, mode or feature is not available here; the text says what would be.
    #[error("{engine} engine: {what}")]
    Unsupported {
        /// Name of the engine.
        engine: &'static str,
        /// What is missing and what to use instead.
        what: String,
    },
    /// The system refused; the text says what was tried and what to change.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No engine carries the pair; the text says what each of them lacks.
    #[error("no engine can carry it: {0}")]
    NoEngine(String),
    /// A command named something that is not there.
    #[error("no such SA or policy: {0}")]
    Unknown(String),
    /// The engine's threads are gone (it logged why).
    #[error("the {0} engine has stopped")]
    Stopped(&'static str),
}

/// States that a predecessor kept, each under its key.
pub type KeptStates = Vec<(u64, Zeroizing<Vec<u8>>)>;

/// Packets dropped, by reason number, outside any one SA's counters.
#[derive(Clone, Debug, Default)]
pub struct DropTotals {
    /// On the way in, by the engine.
    pub inbound: [u64; DropReason::COUNT],
    /// On the way out, by the engine.
    pub outbound: [u64; DropReason::COUNT],
    /// By the XDP/TC front end.
    pub front_end: [u64; DropReason::COUNT],
}

/// Which engine carries a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Name of the engine.
    pub engine: &'static str,
    /// Name of its plaintext interface.
    pub interface: String,
    /// Engines that were asked before it, each with the reason why it does not carry the pair.
    pub passed_over: Vec<String>,
}

/// Something that carries ESP: the userspace engine, the kernel, BPF programs, or a test's record.
pub trait SaBackend: Send {
    /// `userspace`, `ebpf`, `xfrm` or `mock`.
    fn name(&self) -> &'static str;

    /// Carries a command out; when this returns, traffic follows it.
    fn apply(&mut self, command: Command) -> Result<(), BackendError>;

    /// Keeps packets to a peer's own address outside the tunnel where a protected network contains
    /// it. To be called before the first IKE message of a connection whose peer is known; an SA's
    /// path is looked after by `apply`.
    fn exempt_peer(&mut self, _peer: IpAddr) -> Result<(), BackendError> {
        Ok(())
    }

    /// Which engine carries a pair, where there are several.
    fn carrier(&self, _id: ChildSaId) -> Option<Carrier> {
        None
    }

    /// The control side has claimed everything it knows of: what a predecessor left and nobody
    /// claimed may go.
    fn settled(&mut self) {}

    /// Keeps what the control side needs to go on with pairs that outlive it, under a key of its
    /// choice; `None` forgets it. Does nothing where no pair outlives this process.
    fn keep(&mut self, _key: u64, _state: Option<&[u8]>) -> Result<(), BackendError> {
        Ok(())
    }

    /// What a predecessor kept, where its pairs are still carried.
    fn kept(&mut self) -> Result<KeptStates, BackendError> {
        Ok(Vec::new())
    }

    /// Counters of every pair installed.
    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError>;

    /// Drops that belong to no pair that is there, those of pairs that are gone among them.
    fn drop_totals(&mut self) -> Result<DropTotals, BackendError>;
}
