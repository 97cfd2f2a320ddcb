//! Starting the data plane that the configuration asks for.

use std::net::UdpSocket;
use std::path::Path;

use anyhow::Context as _;
use espada_dataplane::backend::EventSink;
use espada_dataplane::esp;
use espada_dataplane::frontend::FrontEnd;
use espada_dataplane::plane::{self, EngineKind};
use espada_dataplane::userspace::{self, Workers};

use super::plane::{Observer, Plane, Unobserved};
use super::wan::{self, Watched};
use crate::config::{Connection, EngineChoice, GatewayConfig, XskMode};
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
    let (engines, left_out) = plan(config);
    let running = plane::Plane::start(plane::Config {
        engines,
        left_out,
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
        lan: settings.lan.clone(),
        workers: Workers {
            lanes: settings.workers,
            joined: settings.worker_threads.map(|threads| threads == 1),
            pinned: settings.pin_workers,
            realtime: settings.realtime,
            udp_segmentation: settings.udp_segmentation,
            busy_poll: settings.busy_poll,
        },
        xfrm: settings.xfrm,
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
    let xsk = running.xsk().map(|xsk| Xsk {
        queues: xsk.queues,
        zero_copy: xsk.zero_copy,
    });
    let engines: Vec<_> = running
        .engines()
        .iter()
        .map(|engine| Engine {
            name: engine.name.to_owned(),
            interface: engine.interface.clone(),
            reason: engine.reason.clone(),
        })
        .collect();
    let first = engines.iter().find(|engine| engine.interface.is_some());
    let userspace = first.is_some_and(|engine| engine.name == EngineKind::Userspace.name());
    Ok(Plane {
        udp_is_faster: userspace
            && settings.udp_segmentation.sends()
            && !xsk.is_some_and(|xsk| xsk.zero_copy),
        engines,
        xsk,
        workers: running.lanes(),
        lans: running.lans().to_vec(),
        backend: Box::new(running),
        reason,
        observer,
    })
}

/// The order in which engines are asked to carry an SA, and those that are not asked, with the reason.
/// `auto` starts an engine only for what those before it lack: each has an interface, which nobody
/// should have to wonder about.
fn plan(config: &GatewayConfig) -> (Vec<EngineKind>, Vec<(EngineKind, String)>) {
    if let EngineChoice::Ordered(engines) = &config.dataplane.engine {
        return (engines.clone(), Vec::new());
    }
    let (mut engines, mut left_out) = (Vec::new(), Vec::new());
    for engine in EngineKind::AUTO {
        let superfluous = match engine {
            EngineKind::Userspace => None,
            EngineKind::Xfrm
                if !has_tun() || config.connections.iter().any(Connection::needs_xfrm) =>
            {
                None
            }
            EngineKind::Xfrm => Some(
                "the userspace engine carries everything that is configured; engine = \"xfrm\" asks for the kernel's",
            ),
            EngineKind::Ebpf if !has_tun() => None,
            EngineKind::Ebpf => Some(
                "the userspace engine carries everything that it does, bulk traffic faster; engine = \"ebpf\" asks \
                 for lower latency and for tunnels that outlive the daemon",
            ),
        };
        match superfluous {
            None => engines.push(engine),
            Some(reason) => left_out.push((engine, reason.to_owned())),
        }
    }
    (engines, left_out)
}

/// Whether the userspace engine can have its interface.
fn has_tun() -> bool {
    Path::new("/dev/net/tun").exists()
}

/// Whether the eBPF engine is asked for by name, or may be used.
pub fn wants_ebpf(choice: &EngineChoice) -> Wanted {
    match choice {
        EngineChoice::Ordered(engines) if engines.contains(&EngineKind::Ebpf) => Wanted::Asked,
        EngineChoice::Auto if !has_tun() => Wanted::Possible,
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
