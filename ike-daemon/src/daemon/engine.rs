//! Starting the data plane that the configuration asks for.

use std::net::UdpSocket;
use std::path::Path;

use anyhow::Context as _;
use espada_dataplane::backend::EventSink;
use espada_dataplane::esp;
use espada_dataplane::frontend::FrontEnd;
use espada_dataplane::userspace::{self, UserspaceEngine};

use super::plane::{Observer, Plane, Unobserved};
use super::wan::{self, Watched};
use crate::config::{EngineChoice, GatewayConfig, XskMode};
use crate::status::Xsk;

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

/// Starts the engine. The sockets are those of the ESP-in-UDP port.
pub fn start(
    config: &GatewayConfig,
    prepared: Prepared,
    udp: Vec<UdpSocket>,
    sink: EventSink,
) -> anyhow::Result<Plane> {
    let settings = &config.dataplane;
    let engine = UserspaceEngine::start(userspace::Config {
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
    .context("userspace engine")?;
    let reason = match settings.engine {
        EngineChoice::Auto => "engine = \"auto\": the one engine of this version",
        EngineChoice::Userspace => "engine = \"userspace\"",
    };
    let observer: Box<dyn Observer> = match engine.front_end() {
        Some(front_end) => Box::new(Watched(front_end)),
        None => Box::new(Unobserved),
    };
    Ok(Plane {
        tun: Some(engine.interface().to_owned()),
        xsk: engine.xsk().map(|xsk| Xsk {
            queues: xsk.queues,
            zero_copy: xsk.zero_copy,
        }),
        backend: Box::new(engine),
        reason: reason.to_owned(),
        observer,
    })
}
