//! LAN interfaces whose packets are to go past the kernel.

use espada_dataplane::device;
use espada_dataplane::netlink::Link;
use espada_dataplane::userspace;
use serde::Serialize;

use super::fact::{Answer, Fact};
use super::interface;

/// One that the configuration names.
#[derive(Clone, Debug, Serialize)]
pub struct Lan {
    /// Its name.
    pub name: String,
    /// Whether its packets can go past the kernel.
    pub bypass: Fact,
    /// AF_XDP without copying.
    pub zero_copy: Fact,
}

impl Lan {
    /// Looks at an interface among all `links` of this network namespace.
    pub fn look(links: &[Link], name: &str) -> Self {
        let (bypass, zero_copy) = match userspace::lan_fit(links, name) {
            Err(reason) => (Fact::no(reason), Fact::plain(Answer::No)),
            Ok(link) => {
                let support = device::xdp_support(link.index).ok().flatten();
                let attached = device::xdp_attached(link.index).ok().flatten();
                let native = interface::native(link, support);
                let bypass = match attached {
                    Some(program) if native.answer != Answer::No => Fact::unknown(format!(
                        "an XDP program is attached already (number {program}): where it is not \
                         Espada's there is no room for ours"
                    )),
                    _ if native.answer == Answer::No => {
                        Fact::no("its driver has no XDP that can redirect packets")
                    }
                    _ => native,
                };
                (bypass, interface::zero_copy(link, support))
            }
        };
        Self {
            name: name.to_owned(),
            bypass,
            zero_copy,
        }
    }
}
