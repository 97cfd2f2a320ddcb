//! The seam between the plane, which owns everything that ways of carrying ESP have in common
//! (routes, guards against clear text, the front end, the way to each peer), and the engines
//! behind it, which know SAs and policies only.

use std::collections::BTreeMap;

use espada_common::drops::DropReason;
use espada_common::sa::{ChildSa, ChildSaId, ChildSaStats, Command, Path};

use crate::backend::{BackendError, KeptStates};
use crate::netlink::{Link, Netlink};
use crate::plane::Pair;
use crate::port::xsk::NextLink;

/// The plaintext interface of an engine: what is routed into it is protected, what was protected
/// comes out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, as `ip link` shows it.
    pub name: String,
    /// Its number.
    pub index: u32,
}

/// What the front end does with ESP that arrives for an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// Counts it and passes it on to the kernel.
    Kernel,
    /// Hands native ESP to an AF_XDP socket of its queue.
    Xsk {
        /// How many sockets each queue has. All packets of an SA go to the same one, SAs to any.
        lanes: u32,
    },
    /// Decrypts it right there.
    Decrypt,
}

/// The way to a peer at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Octets of outer IP packet that fit.
    pub mtu: u16,
    /// The interface the route leaves on.
    pub interface: u32,
    /// The link and the neighbour on it, where packets can be sent past the kernel.
    pub link: Option<NextLink>,
}

/// One way of carrying ESP.
pub trait Engine: Send {
    /// `userspace`, `ebpf` or `xfrm`.
    fn name(&self) -> &'static str;

    /// Pairs that outlived an earlier process and are still carried.
    fn adopted(&mut self) -> Vec<(ChildSaId, Pair)> {
        Vec::new()
    }

    /// Keeps what the control side needs to go on with pairs that outlive it; `None` forgets it.
    /// False where nothing outlives this process.
    fn keep(&mut self, _key: u64, _state: Option<&[u8]>) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// What an earlier process kept.
    fn kept(&mut self) -> Result<KeptStates, BackendError> {
        Ok(Vec::new())
    }

    /// Where routes for what this engine protects lead.
    fn interface(&self) -> &Interface;

    /// Whether a pair can be carried; if not, the reason, as what follows "ENGINE: ".
    fn supports(&self, sa: &ChildSa) -> Result<(), String>;

    /// The way of a pair that the next command installs or moves, where it is known.
    fn announce_way(&mut self, _way: Option<&Way>) {}

    /// Carries out a command; when this returns, traffic follows it. Policies come to every
    /// engine, pairs to the one that carries them: what replaces a pair of another engine comes
    /// as [`Command::InstallSa`].
    fn apply(&mut self, command: &Command) -> Result<(), BackendError>;

    /// Whether packets for which there is no SA yet wait inside it.
    fn keeps_packets(&self) -> bool {
        false
    }

    /// What the front end is to do with this engine's inbound packets on a path.
    fn steering(&self, path: &Path) -> Steering;

    /// The way of one pair, after it was installed or moved.
    fn set_way(&mut self, id: ChildSaId, way: &Way);

    /// The ways of all this engine's pairs that have one, after any of them may have changed.
    fn set_ways(&mut self, ways: &BTreeMap<ChildSaId, Way>);

    /// Interfaces, addresses, routes or neighbours may have changed.
    fn network_changed(&mut self, _netlink: &mut Netlink, _links: &[Link]) {}

    /// Counters of every pair installed.
    fn sa_stats(&mut self) -> Result<Vec<ChildSaStats>, BackendError>;

    /// Drops that belong to no pair that is there, those of pairs that are gone among them: inbound, outbound.
    fn drop_totals(&mut self) -> Result<[[u64; DropReason::COUNT]; 2], BackendError>;

    /// Ends everything: no packet is carried afterwards, and nothing of it stays in the system.
    fn shut_down(&mut self);
}
