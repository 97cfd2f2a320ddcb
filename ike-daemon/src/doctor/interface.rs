//! An interface towards the peers: what its driver does for XDP and ESP.

use anyhow::Context as _;
use espada_dataplane::device::{self, Device, XdpSupport};
use espada_dataplane::netlink::{Link, Netlink};
use serde::Serialize;

use super::fact::{Answer, Fact};

/// An interface.
#[derive(Clone, Debug, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Why it is looked at.
    pub why: String,
    /// `veth`, `vlan`, …: the kind of a virtual device.
    pub kind: Option<String>,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Whether its packets have Ethernet headers, which XDP needs.
    pub ethernet: bool,
    /// MTU in octets.
    pub mtu: u32,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// XDP in the driver.
    pub native_xdp: Fact,
    /// AF_XDP without copying.
    pub zero_copy: Fact,
    /// XDP programs on other interfaces can send out of this one.
    pub redirect_target: Fact,
    /// Number of an XDP program that is attached already.
    pub xdp_program: Option<u32>,
    /// The hardware does ESP.
    pub esp_offload: Fact,
    /// What XDP costs here, or what may keep it from being attached.
    pub costs: Vec<String>,
}

/// What a kernel before 6.3 lets one know.
const CANNOT_SAY: &str = "unknown until tried: kernels before 6.3 cannot say, and trying would \
                          attach a program";

impl Interface {
    /// Looks at an interface of this network namespace.
    pub fn look(name: &str, why: &str) -> anyhow::Result<Self> {
        let link = Netlink::open()?.link(name).with_context(|| {
            format!("there is no interface `{name}` here; `ip link` lists those that are")
        })?;
        let device =
            Device::look(name).with_context(|| format!("cannot ask about interface `{name}`"))?;
        let support = device::xdp_support(link.index).ok().flatten();
        let program = device::xdp_attached(link.index).ok().flatten();
        Ok(Self::of(&link, &device, support, program, why))
    }

    pub(super) fn of(
        link: &Link,
        device: &Device,
        support: Option<XdpSupport>,
        xdp_program: Option<u32>,
        why: &str,
    ) -> Self {
        Self {
            name: link.name.clone(),
            why: why.to_owned(),
            kind: link.kind.clone(),
            driver: device.driver.clone(),
            up: link.up,
            ethernet: link.ethernet,
            mtu: link.mtu,
            rx_queues: device
                .channels
                .map_or(link.rx_queues, |channels| channels.rx.max(1)),
            native_xdp: native(link, support),
            zero_copy: zero_copy(link, support),
            redirect_target: redirect_target(support),
            xdp_program,
            esp_offload: esp_offload(device),
            costs: costs(link, device, support),
        }
    }

    /// How XDP programs would run here: natively, behind the driver, or not at all.
    pub fn xdp_mode(&self) -> Option<&'static str> {
        match (self.ethernet, self.native_xdp.answer) {
            (false, _) => None,
            (true, Answer::Yes) => Some("native XDP"),
            (true, Answer::No) => Some("generic XDP"),
            (true, Answer::Unknown) => Some("native XDP where the driver takes it, else generic"),
        }
    }
}

pub(super) fn native(link: &Link, support: Option<XdpSupport>) -> Fact {
    if !link.ethernet {
        return Fact::no("as there are no Ethernet headers; the front end uses tc");
    }
    match support {
        None => Fact::unknown(CANNOT_SAY),
        Some(support) if support.native && support.redirect => Fact::plain(Answer::Yes),
        Some(support) if support.native => Fact::no("the driver cannot redirect packets"),
        Some(_) => Fact::no("not in this driver; generic XDP or tc work behind it"),
    }
}

pub(super) fn zero_copy(link: &Link, support: Option<XdpSupport>) -> Fact {
    if !link.ethernet {
        return Fact::no("as there are no Ethernet headers");
    }
    match support {
        None => Fact::unknown(CANNOT_SAY),
        Some(support) if support.zero_copy => Fact::plain(Answer::Yes),
        Some(_) => Fact::no("AF_XDP copies each packet"),
    }
}

fn redirect_target(support: Option<XdpSupport>) -> Fact {
    match support {
        None => Fact::unknown(CANNOT_SAY),
        Some(support) if support.transmit => Fact::plain(Answer::Yes),
        Some(_) => Fact::no("not at present: XDP programs pass packets up the stack instead"),
    }
}

fn esp_offload(device: &Device) -> Fact {
    let offload = device
        .offloads
        .iter()
        .find(|offload| offload.name == "esp-hw-offload");
    match offload {
        None => Fact::unknown("the driver lists no offloads"),
        Some(offload) if offload.active => Fact::plain(Answer::Yes),
        Some(offload) if offload.available => {
            Fact::no("the hardware can and it is off: `ethtool -K IFACE esp-hw-offload on`")
        }
        Some(_) => Fact::plain(Answer::No),
    }
}

fn costs(link: &Link, device: &Device, support: Option<XdpSupport>) -> Vec<String> {
    let name = &link.name;
    let mut costs = Vec::new();
    if !link.ethernet {
        return costs;
    }
    if link.kind.as_deref() == Some("veth") {
        costs.push(
            "an XDP program here switches segmentation offloads off at the other end of the veth \
             pair; where bulk traffic matters more, use front_end = \"tc\""
                .to_owned(),
        );
    }
    for (offload, flag) in [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")] {
        if device.offload(offload) == Some(true) {
            costs.push(format!(
                "{offload} is on: it goes off with XDP in the driver, or the driver refuses XDP \
                 until `ethtool -K {name} {flag} off`"
            ));
        }
    }
    // A page less headroom and the end of a buffer: what one-buffer XDP can hold.
    const ONE_BUFFER: u32 = 3498;
    if link.mtu > ONE_BUFFER && support.is_some_and(|support| support.native && !support.fragments)
    {
        costs.push(format!(
            "MTU {}: this driver takes XDP for packets in one buffer only, up to about {ONE_BUFFER} \
             octets; `ip link set {name} mtu 1500` or front_end = \"tc\"",
            link.mtu
        ));
    }
    costs
}
