//! Starting the data plane that the configuration asks for.

use std::net::UdpSocket;
use std::path::Path;

use anyhow::Context as _;
use espada_dataplane::backend::EventSink;
use espada_dataplane::esp;
use espada_dataplane::frontend::FrontEnd;
use espada_dataplane::plane::{self, EngineKind};
use espada_dataplane::userspace;

use super::plane::{Observer, Plane, Unobserved};
use super::wan::{self, Watched};
use crate::config::{EngineChoice, GatewayConfig, XskMode};
use crate::status::{Engine, Xsk};

/// What has to be done while the daemon still has all its privileges: pinning the front end's
/// maps may mean mounting their file system.
pub struct Prepared {
    wan: Vec<String>,
    front_end: Option<FrontEnd>,
}

/// Finds the WAN interfaces and attaches the front end to them.
pub fn prepare(config: &GatewayConfig, runtime_dir: &Path) -> anyhow::Result<Prepared> {
    let wan = wan::interfaces(config)?;
    let front_end = wan::attach(config, &wan, runtime_dir)?;
    Ok(Prepared { wan, front_end })
}

/// Starts the data plane. The sockets are those of the ESP-in-UDP port.
pub fn start(
    config: &GatewayConfig,
    prepared: Prepared,
    udp: Vec<UdpSocket>,
    sink: EventSink,
) -> anyhow::Result<Plane> {
    let settings = &config.dataplane;
    let running = plane::Plane::start(plane::Config {
        engines: engines(&settings.engine),
        tun: settings.tun.clone(),
        mtu: settings.mtu,
        wan: prepared.wan,
        udp,
        esp: esp::Config {
            clamp_mss: settings.mss_clamp,
            ..esp::Config::default()
        },
        front_end: prepared.front_end,
        xsk: match settings.xsk {
            XskMode::Auto => userspace::XskMode::Auto,
            XskMode::Off => userspace::XskMode::Off,
        },
        pin: None,
        sink,
    })
    .with_context(|| format!("engine = \"{}\"", settings.engine))?;
    let reason = match &settings.engine {
        EngineChoice::Auto => "engine = \"auto\": each SA by the first engine that can".to_owned(),
        EngineChoice::Ordered(_) => format!("engine = \"{}\"", settings.engine),
    };
    let observer: Box<dyn Observer> = match running.front_end() {
        Some(front_end) => Box::new(Watched(front_end)),
        None => Box::new(Unobserved),
    };
    Ok(Plane {
        engines: running
            .engines()
            .iter()
            .map(|engine| Engine {
                name: engine.name.to_owned(),
                interface: engine.interface.clone(),
                reason: engine.reason.clone(),
            })
            .collect(),
        xsk: running.xsk().map(|xsk| Xsk {
            queues: xsk.queues,
            zero_copy: xsk.zero_copy,
        }),
        backend: Box::new(running),
        reason,
        observer,
    })
}

/// The order in which engines are asked to carry an SA.
fn engines(choice: &EngineChoice) -> Vec<EngineKind> {
    match choice {
        EngineChoice::Auto => EngineKind::AUTO.to_vec(),
        EngineChoice::Ordered(engines) => engines.clone(),
    }
}

/// Whether the eBPF engine is asked for by name, or may be used.
pub fn wants_ebpf(choice: &EngineChoice) -> Wanted {
    match choice {
        EngineChoice::Ordered(engines) if engines.contains(&EngineKind::Ebpf) => Wanted::Asked,
        EngineChoice::Auto if EngineKind::AUTO.contains(&EngineKind::Ebpf) => Wanted::Possible,
        _ => Wanted::No,
    }
}

/// How much an engine is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The configuration names it.
    Asked,
    /// It is used where it costs nothing.
    Possible,
    /// It is not used.
    No,
}
