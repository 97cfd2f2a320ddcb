//! `espada doctor`: what this host can do for Espada, what keeps it from doing more, and what to
//! change. It looks and asks, and changes nothing.

mod bpf;
mod fact;
mod host;
mod interface;
pub mod ipsec;
mod lan;
mod network;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

use espada_dataplane::netlink::Netlink;
use serde::Serialize;

pub use bpf::Bpf;
pub use fact::{Answer, Fact};
pub use host::Host;
pub use interface::Interface;
pub use ipsec::Ipsec;
pub use lan::Lan;
pub use network::Network;
pub use verdict::{Advice, Engine};

use crate::config::GatewayConfig;
use crate::daemon;

/// What to look at.
pub struct Options<'a> {
    /// Interfaces by name; none for those of the configuration, or of the default routes.
    pub interfaces: &'a [String],
    /// The configuration, where one is given.
    pub config: Option<&'a GatewayConfig>,
    /// Finds out what the kernel's own IPsec can do.
    pub ipsec: fn(&host::Symbols) -> Ipsec,
}

/// Everything that was found; what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Espada's version.
    pub version: &'static str,
    /// The machine, its kernel, and who asks.
    pub host: Host,
    /// BPF.
    pub bpf: Bpf,
    /// The interfaces towards the peers.
    pub interfaces: Vec<Interface>,
    /// The LAN interfaces of the configuration (`lan`).
    pub lan: Vec<Lan>,
    /// The kernel's own IPsec.
    pub ipsec: Ipsec,
    /// The network stack, and who else is in it.
    pub network: Network,
    /// Each engine.
    pub engines: Vec<Engine>,
    /// What `engine = "auto"` takes here.
    pub auto: Option<&'static str>,
    /// What to change, or to know.
    pub advice: Vec<Advice>,
}

impl Report {
    /// True when at least one engine works.
    pub fn works(&self) -> bool {
        self.engines
            .iter()
            .any(|engine| engine.usable == Answer::Yes)
    }
}

/// Looks at everything. Fails only where an interface that was named is not there, or the kernel
/// does not answer at all.
pub fn examine(options: &Options<'_>) -> anyhow::Result<Report> {
    let symbols = host::Symbols::read();
    let host = Host::look();
    let bpf = Bpf::look();
    let interfaces = chosen(options)?
        .iter()
        .map(|(name, why)| Interface::look(name, why))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let links = Netlink::open()?.links()?;
    let named = options.config.map_or(&[][..], |c| &c.dataplane.lan);
    let lan: Vec<_> = named.iter().map(|name| Lan::look(&links, name)).collect();
    let ipsec = (options.ipsec)(&symbols);
    let network = Network::look(&interfaces, &symbols);
    let engines = verdict::engines(&host, &bpf, &interfaces, &ipsec, &network);
    let auto = verdict::auto(&engines);
    let advice = verdict::advice(&host, &bpf, &interfaces, &lan, &network);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        host,
        bpf,
        interfaces,
        lan,
        ipsec,
        network,
        engines,
        auto,
        advice,
    })
}

/// The interfaces to look at, each with why.
fn chosen(options: &Options<'_>) -> anyhow::Result<Vec<(String, &'static str)>> {
    if !options.interfaces.is_empty() {
        let named = options.interfaces.iter();
        return Ok(named.map(|name| (name.clone(), "as named")).collect());
    }
    if let Some(config) = options.config {
        let why = if config.dataplane.wan.is_empty() {
            "a peer of the configuration is routed through it"
        } else {
            "`wan` of the configuration"
        };
        let names = daemon::wan_interfaces(config)?;
        return Ok(names.into_iter().map(|name| (name, why)).collect());
    }
    let mut netlink = Netlink::open()?;
    let mut indexes: Vec<u32> = netlink
        .routes()?
        .iter()
        .filter(|route| route.destination.length == 0)
        .map(|route| route.link)
        .collect();
    indexes.sort_unstable();
    indexes.dedup();
    Ok(netlink
        .links()?
        .into_iter()
        .filter(|link| indexes.contains(&link.index))
        .map(|link| (link.name, "a default route leaves through it"))
        .collect())
}
