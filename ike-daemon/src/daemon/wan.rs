//! The WAN side: which interfaces it is, and the XDP/TC front end on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use espada_dataplane::device;
use espada_dataplane::frontend::pin::BPFFS;
use espada_dataplane::frontend::{FrontEnd, FrontEndError, Leftovers, ModeChoice, Options};
use espada_dataplane::netlink::Netlink;
use espada_dataplane::plane::{SharedFrontEnd, lock_front_end};
use espada_ike::config::{EncapsulationPolicy, RemoteAddress};

use super::engine::{self, Wanted};
use super::plane::{Observer, WireCounters};
use crate::config::{FrontEndMode, GatewayConfig, Remote, XskMode};
use crate::status::{Attachment, Counters};

/// The interfaces that protected packets leave on: as configured, or those of the routes to the peers.
pub fn interfaces(config: &GatewayConfig) -> anyhow::Result<Vec<String>> {
    if !config.dataplane.wan.is_empty() {
        return Ok(config.dataplane.wan.clone());
    }
    let mut netlink = Netlink::open().context("cannot ask the kernel for its routes")?;
    let names: BTreeMap<u32, String> = netlink
        .links()?
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect();
    let peers = config
        .connections
        .iter()
        .filter_map(|connection| match connection.remote {
            Remote::Known(RemoteAddress::Address(peer)) => Some(peer),
            _ => None,
        });
    let mut found = BTreeSet::new();
    for peer in peers {
        match netlink.route_get(peer, None) {
            Ok(hop) => found.extend(names.get(&hop.link).cloned()),
            Err(error) => tracing::debug!(%peer, %error, "no route to the peer"),
        }
    }
    if found.is_empty() {
        tracing::warn!(
            "`dataplane.wan` is not set and no route leads to a peer: there is no front end; \
             name the interfaces, such as wan = [\"eth0\"]"
        );
    } else {
        tracing::info!(interfaces = ?found, "WAN interfaces taken from the routes to the peers");
    }
    Ok(found.into_iter().collect())
}

/// Attaches the front end as configured. With `front_end = "auto"` a kernel that refuses it is
/// told of, and the gateway works without.
pub fn attach(
    config: &GatewayConfig,
    wan: &[String],
    runtime_dir: &Path,
) -> anyhow::Result<Option<FrontEnd>> {
    let ebpf = engine::wants_ebpf(&config.dataplane.engine);
    let mode = match config.dataplane.front_end {
        FrontEndMode::Off => return Ok(None),
        // The engine works in XDP, behind the driver if it must.
        FrontEndMode::Auto if ebpf == Wanted::Asked => ModeChoice::Xdp,
        FrontEndMode::Auto => ModeChoice::Auto,
        FrontEndMode::Xdp => ModeChoice::XdpNative,
        FrontEndMode::Tc => ModeChoice::Tc,
    };
    if wan.is_empty() {
        return Ok(None);
    }
    let options = Options {
        interfaces: wan.to_vec(),
        mode,
        prefer_offloads: prefers_offloads(config, native_is_fast(config, wan)),
        drop_unknown_spi: true,
        pin_dir: Some(pin_dir(runtime_dir)),
        leftovers: match ebpf {
            Wanted::No => Leftovers::Remove,
            Wanted::Asked | Wanted::Possible => Leftovers::Adopt,
        },
        engine: ebpf != Wanted::No,
        keystream_ahead: config.dataplane.keystream_ahead,
    };
    match attach_pinned(options) {
        Ok(front_end) => {
            for attached in front_end.attached() {
                tracing::info!(
                    interface = attached.interface,
                    hook = attached.hook.name(),
                    mode = attached.mode.name(),
                    why = attached.why,
                    "front end attached"
                );
            }
            Ok(Some(front_end))
        }
        Err(error) if config.dataplane.front_end == FrontEndMode::Auto => {
            tracing::warn!(
                "no front end on {}: {error}; unknown SPIs and clear text are then only stopped by the \
                 engine and its routes (front_end = \"off\" silences this)",
                wan.join(", ")
            );
            Ok(None)
        }
        Err(error) => {
            Err(error).context("front end (front_end = \"auto\" works without where it must)")
        }
    }
}

/// Whether segmentation offloads matter more than XDP. ESP in UDP travels in super-packets, which XDP
/// on a veth link (and on a virtual machine's interface, inbound) makes the kernel cut; native ESP
/// goes through AF_XDP, which only XDP can steer to. What the connections ask for outright decides.
/// Where all of them are `auto`, ESP in UDP is what a NAT or a second Espada makes of them and gains
/// more by tc (twofold on veth) than native ESP with other peers loses (a third: raw sockets instead of
/// AF_XDP in copy mode), unless AF_XDP works without copying.
fn prefers_offloads(config: &GatewayConfig, native_is_fast: bool) -> bool {
    let asks = |policy| {
        let mut connections = config.connections.iter();
        connections.any(|connection| connection.settings().encapsulation == policy)
    };
    asks(EncapsulationPolicy::Udp)
        || !asks(EncapsulationPolicy::Esp)
            && !native_is_fast
            && config
                .connections
                .iter()
                .any(|connection| config.prefers_udp(connection))
}

/// Whether native ESP can leave and arrive through AF_XDP without being copied.
fn native_is_fast(config: &GatewayConfig, wan: &[String]) -> bool {
    let [interface] = wan else {
        return false; // AF_XDP serves one interface.
    };
    if config.dataplane.xsk == XskMode::Off {
        return false;
    }
    let support = Netlink::open()
        .and_then(|mut netlink| Ok(netlink.link(interface)?.index))
        .ok()
        .and_then(|index| device::xdp_support(index).ok().flatten());
    support.is_some_and(|support| support.native && support.zero_copy)
}

/// Pinned maps are a convenience for `bpftool`: where there is no BPF file system, go without.
fn attach_pinned(mut options: Options) -> Result<FrontEnd, FrontEndError> {
    match FrontEnd::attach(&options) {
        Err(error @ FrontEndError::Pin { .. }) => {
            tracing::warn!(%error, "the front end's maps are not pinned");
            options.pin_dir = None;
            FrontEnd::attach(&options)
        }
        result => result,
    }
}

/// The folder for an instance's maps. A BPF file system refuses dots in names.
fn pin_dir(runtime_dir: &Path) -> PathBuf {
    let path = std::path::absolute(runtime_dir).unwrap_or_else(|_| runtime_dir.to_owned());
    let name: String = path
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Path::new(BPFFS).join("espada").join(name)
}

/// Reads the front end's counters for `status`.
pub struct Watched(pub SharedFrontEnd);

impl Observer for Watched {
    fn attachments(&self) -> Vec<Attachment> {
        let front_end = lock_front_end(&self.0);
        let attached = front_end.attached().iter();
        attached
            .map(|attached| Attachment {
                interface: attached.interface.clone(),
                mode: attached.mode.name().to_owned(),
                hook: attached.hook.name().to_owned(),
            })
            .collect()
    }

    fn wire(&mut self) -> Option<WireCounters> {
        let front_end = lock_front_end(&self.0);
        let counted = match front_end.counters() {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!(%error, "the front end's counters cannot be read");
                return None;
            }
        };
        let counters = |packets, bytes| Counters { packets, bytes };
        Some(WireCounters {
            inbound: counted
                .inbound
                .iter()
                .map(|sa| (sa.spi, counters(sa.counters.packets, sa.counters.bytes)))
                .collect(),
            outbound: counted
                .outbound
                .iter()
                .map(|sa| {
                    (
                        (sa.peer, sa.spi),
                        counters(sa.counters.packets, sa.counters.bytes),
                    )
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{self, SecretsPolicy};

    /// A configuration with these lines of `[dataplane]` and of one connection each.
    fn config(dataplane: &str, connections: &[&str]) -> GatewayConfig {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gw.toml");
        let mut text = format!("[dataplane]\nwan = \"eth0\"\n{dataplane}\n");
        for (index, extra) in connections.iter().enumerate() {
            text += &format!(
                "[connection.c{index}]\nlocal = {{ subnets = \"10.1.0.0/24\" }}\n\
                 remote = {{ address = \"192.0.2.{index}\", subnets = \"10.2.{index}.0/24\" }}\n{extra}\n"
            );
        }
        std::fs::write(&file, text).unwrap();
        let secrets = folder.path().join("secrets.toml");
        let text = "[[psk]]\nsecret = \"correct horse battery staple\"\n";
        std::fs::write(&secrets, text).unwrap();
        std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
        config::load(&file, SecretsPolicy::Required).unwrap()
    }

    #[test]
    fn the_front_end_leaves_offloads_where_esp_in_udp_is_to_be_expected() {
        let (auto, udp, esp) = ("", "encapsulation = \"udp\"", "encapsulation = \"esp\"");
        let userspace = "engine = \"userspace\"";
        for (dataplane, connections, native_is_fast, offloads) in [
            ("", &[auto, auto][..], false, true),
            (userspace, &[auto], false, true),
            ("", &[auto], true, false),
            ("", &[auto, esp], false, false),
            ("", &[udp, esp, auto], false, true),
            ("", &[udp], true, true),
            ("engine = \"xfrm\"", &[auto], false, false),
            ("engine = [\"ebpf\", \"userspace\"]", &[auto], false, false),
            ("", &[], false, false),
        ] {
            let config = config(dataplane, connections);
            assert_eq!(
                prefers_offloads(&config, native_is_fast),
                offloads,
                "{dataplane} {connections:?}"
            );
        }
    }

    #[test]
    fn one_pin_folder_a_runtime_directory() {
        assert_eq!(
            pin_dir(Path::new("/run/espada")),
            Path::new("/sys/fs/bpf/espada/run-espada")
        );
        assert_eq!(
            pin_dir(Path::new("/tmp/.a/run")),
            Path::new("/sys/fs/bpf/espada/tmp--a-run")
        );
    }
}
