//! The data plane as the daemon sees it: a backend, and what `status` tells of it.

use std::collections::HashMap;
use std::net::IpAddr;

use espada_dataplane::backend::SaBackend;
use espada_dataplane::userspace::LanStatus;

use crate::status::{Attachment, Counters, Engine, Xsk};

/// What the front end's BPF maps counted, by SPI.
#[derive(Clone, Debug, Default)]
pub struct WireCounters {
    /// By the SPI we receive on.
    pub inbound: HashMap<u32, Counters>,
    /// By the peer's address and the SPI we send with, which the peer has chosen.
    pub outbound: HashMap<(IpAddr, u32), Counters>,
}

/// What there is to tell of interfaces and of packets seen on the WAN.
pub trait Observer: Send {
    /// Programs of the front end.
    fn attachments(&self) -> Vec<Attachment>;

    /// Counters of the front end; `None` without one.
    fn wire(&mut self) -> Option<WireCounters>;
}

/// A data plane without a front end.
pub struct Unobserved;

impl Observer for Unobserved {
    fn attachments(&self) -> Vec<Attachment> {
        Vec::new()
    }

    fn wire(&mut self) -> Option<WireCounters> {
        None
    }
}

/// A running data plane.
pub struct Plane {
    /// Carries ESP.
    pub backend: Box<dyn SaBackend>,
    /// Why this engine.
    pub reason: String,
    /// The engines, those left out last.
    pub engines: Vec<Engine>,
    /// ESP in UDP is faster than native ESP: the first engine sends and receives it in segmentation
    /// super-packets (UDP_SEGMENT, UDP_GRO), and native ESP one by one, copied by the kernel.
    pub udp_is_faster: bool,
    /// AF_XDP, where native ESP goes past the kernel.
    pub xsk: Option<Xsk>,
    /// Lanes of the userspace engine, where it runs.
    pub workers: Option<usize>,
    /// LAN interfaces whose packets were to go past the kernel.
    pub lans: Vec<LanStatus>,
    /// The front end.
    pub observer: Box<dyn Observer>,
}
