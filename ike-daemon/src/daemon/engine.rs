//! Starting the data plane that the configuration asks for.

use std::net::UdpSocket;

use anyhow::Context as _;
use espada_dataplane::backend::EventSink;
use espada_dataplane::esp;
use espada_dataplane::userspace::{self, UserspaceEngine};

use super::plane::{Plane, Unobserved};
use crate::config::{EngineChoice, GatewayConfig};

/// Starts the engine. The sockets are those of the ESP-in-UDP port.
pub fn start(
    config: &GatewayConfig,
    udp: Vec<UdpSocket>,
    sink: EventSink,
) -> anyhow::Result<Plane> {
    let settings = &config.dataplane;
    let reason = match settings.engine {
        EngineChoice::Auto => "engine = \"auto\": the one engine of this version",
        EngineChoice::Userspace => "engine = \"userspace\"",
    };
    let engine = UserspaceEngine::start(userspace::Config {
        tun: settings.tun.clone(),
        mtu: settings.mtu,
        wan: settings.wan.clone(),
        udp,
        esp: esp::Config {
            clamp_mss: settings.mss_clamp,
            ..esp::Config::default()
        },
        pin: None,
        sink,
    })
    .context("userspace engine")?;
    let tun = Some(engine.interface().to_owned());
    Ok(Plane {
        backend: Box::new(engine),
        reason: reason.to_owned(),
        tun,
        observer: Box::new(Unobserved),
    })
}
