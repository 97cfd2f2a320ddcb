//! The generic netlink family `netdev`: what XDP can do on a device (Linux 6.3).

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::nl;

/// What a device's driver says of XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpSupport {
    /// Programs run in the driver, before the kernel makes its own form of a packet.
    pub native: bool,
    /// Packets can be redirected from it.
    pub redirect: bool,
    /// Packets can be redirected to it (`ndo_xdp_xmit`), at present. Some drivers, veth among
    /// them, can only while the far end has a program or GRO.
    pub transmit: bool,
    /// AF_XDP without copying.
    pub zero_copy: bool,
    /// Packets in several buffers are received: XDP with large MTUs.
    pub fragments: bool,
}

impl XdpSupport {
    /// From `NETDEV_A_DEV_XDP_FEATURES` (`enum netdev_xdp_act`).
    pub fn from_bits(bits: u64) -> Self {
        let bit = |number: u32| bits >> number & 1 == 1;
        Self {
            native: bit(0),
            redirect: bit(1),
            transmit: bit(2),
            zero_copy: bit(3),
            fragments: bit(5),
        }
    }
}

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// Octets of `struct genlmsghdr`.
const HEADER: usize = 4;

fn message(command: u8) -> Vec<u8> {
    const VERSION: u8 = 1;
    vec![command, VERSION, 0, 0]
}

/// Asks for one device; `Ok(None)` where the kernel has no such family.
pub fn support(index: u32) -> io::Result<Option<XdpSupport>> {
    let Some(family) = family()? else {
        return Ok(None);
    };
    let mut request = message(NETDEV_CMD_DEV_GET);
    nl::push_attribute(&mut request, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let answers = nl::ask(NETLINK_GENERIC, family, 0, &request)?;
    let bits = answers
        .first()
        .and_then(|answer| attribute(&answer.payload, NETDEV_A_DEV_XDP_FEATURES))
        .and_then(nl::read_u64)
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(XdpSupport::from_bits(bits)))
}

fn family() -> io::Result<Option<u16>> {
    let mut request = message(CTRL_CMD_GETFAMILY);
    nl::push_attribute(&mut request, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answers = match nl::ask(NETLINK_GENERIC, GENL_ID_CTRL, 0, &request) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    Ok(answers
        .first()
        .and_then(|answer| attribute(&answer.payload, CTRL_ATTR_FAMILY_ID))
        .and_then(nl::read_u16))
}

fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    nl::attributes(payload.get(HEADER..)?)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_kernel() {
        // What virtio_net reports: BASIC, REDIRECT, NDO_XMIT.
        let virtio = XdpSupport::from_bits(7);
        assert!(virtio.native && virtio.redirect && virtio.transmit && !virtio.zero_copy);
        assert!(XdpSupport::from_bits(1 << 3).zero_copy);
        assert!(XdpSupport::from_bits(1 << 5).fragments);
    }
}
