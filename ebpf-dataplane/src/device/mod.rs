//! What the kernel says of a network device beyond rtnetlink: its driver, its offloads, its queues
//! and what XDP can do on it. Nothing is attached or changed; no privileges are needed.

mod ethtool;
mod syscall;
mod xdp;

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::features::Presence;
use crate::nl::{self, NLM_F_CREATE};

pub use ethtool::{Channels, Offload};
pub use xdp::XdpSupport;

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Name of its driver; `None` where it has none to name (such as dummy devices) or cannot say.
    pub driver: Option<String>,
    /// Its offloads, in the kernel's order; empty where it cannot say.
    pub offloads: Vec<Offload>,
    /// Its queues, where the driver lets them be asked.
    pub channels: Option<Channels>,
}

impl Device {
    /// Asks about the device of this name (an error when there is none) in the calling thread's network namespace.
    pub fn look(name: &str) -> io::Result<Self> {
        let ethtool = ethtool::Ethtool::open(name)?;
        let offloads = match ethtool.offloads() {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Err(error),
            other => other.unwrap_or_default(),
        };
        Ok(Self {
            driver: ethtool.driver().ok(),
            offloads,
            channels: ethtool.channels().ok(),
        })
    }

    /// Whether an offload is on, by ethtool's kernel name, such as `rx-lro`; `None` for one that
    /// this kernel does not know.
    pub fn offload(&self, name: &str) -> Option<bool> {
        self.offloads
            .iter()
            .find(|offload| offload.name == name)
            .map(|offload| offload.active)
    }
}

/// What XDP can do on the device with this index; `Ok(None)` where the kernel (before 6.3) cannot
/// say.
pub fn xdp_support(index: u32) -> io::Result<Option<XdpSupport>> {
    xdp::support(index)
}

/// Number of the XDP program that is attached to the device with this index, if one is.
pub fn xdp_attached(index: u32) -> io::Result<Option<u32>> {
    const RTM_GETLINK: u16 = 18;
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_PROG_ID: u16 = 4;
    /// Octets of `struct ifinfomsg`; the index is the second word.
    const HEADER: usize = 16;
    let mut payload = vec![0; HEADER];
    payload[4..8].copy_from_slice(&index.to_ne_bytes());
    let answers = nl::ask(NETLINK_ROUTE, RTM_GETLINK, 0, &payload)?;
    let attribute = |buffer: Option<&[u8]>, wanted: u16| -> Option<Vec<u8>> {
        nl::attributes(buffer?)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.to_vec())
    };
    let payload = answers
        .first()
        .and_then(|answer| answer.payload.get(HEADER..));
    let xdp = attribute(payload, IFLA_XDP);
    let id = attribute(xdp.as_deref(), IFLA_XDP_PROG_ID);
    Ok(id.as_deref().and_then(nl::read_u32).filter(|id| *id != 0))
}

/// Whether the kernel can make devices of a kind (`ip link add type KIND`). Asks for one with no
/// transmit queue, which is refused after the kind has been found and before anything is made.
pub fn kind_supported(kind: &str) -> Presence {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_NUM_TX_QUEUES: u16 = 31;
    const IFLA_INFO_KIND: u16 = 1;
    let mut info = Vec::new();
    nl::push_attribute(&mut info, IFLA_INFO_KIND, kind.as_bytes());
    // struct ifinfomsg: any family, no flags.
    let mut payload = vec![0; 16];
    nl::push_attribute(&mut payload, IFLA_IFNAME, b"espada-probe\0");
    nl::push_attribute(&mut payload, IFLA_LINKINFO, &info);
    nl::push_attribute(&mut payload, IFLA_NUM_TX_QUEUES, &0u32.to_ne_bytes());
    match nl::ask(NETLINK_ROUTE, RTM_NEWLINK, NLM_F_CREATE, &payload) {
        Ok(_) => Presence::Unknown(format!(
            "the kernel made a {kind} device without queues: remove `espada-probe`"
        )),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL) => Presence::Present,
            Some(libc::EOPNOTSUPP) => Presence::Absent,
            Some(libc::EPERM) => Presence::Unknown(
                "asking for kinds of devices needs root, or a capability that is missing here"
                    .to_owned(),
            ),
            _ => Presence::Unknown(format!("asking for kinds of devices: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_described() {
        let lo = Device::look("lo").unwrap();
        // Every kernel knows these two, and the first is always on for it.
        assert_eq!(lo.offload("loopback"), Some(true));
        assert_eq!(lo.offload("rx-lro"), Some(false));
        assert_eq!(lo.offload("no-such-offload"), None);
        assert!(Device::look("nosuchdevice0").is_err());
    }

    #[test]
    fn xdp_support_is_asked_by_index() {
        // The loopback device has no XDP of its own, before and after kernels could say so.
        match xdp_support(1).unwrap() {
            None => {}
            Some(support) => assert!(!support.native, "{support:?}"),
        }
        if xdp_support(1).unwrap().is_some() {
            assert!(xdp_support(i32::MAX as u32).is_err());
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        let nonsense = kind_supported("nosuchkind");
        if let Presence::Unknown(why) = &nonsense {
            assert!(why.contains("root"), "{why}");
            return;
        }
        assert_eq!(nonsense, Presence::Absent);
        let links = crate::netlink::Netlink::open().unwrap().links().unwrap();
        assert!(links.iter().all(|link| link.name != "espada-probe"));
    }
}
