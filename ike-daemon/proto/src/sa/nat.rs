//! NAT detection (RFC 7296 section 2.23).

use std::net::{IpAddr, SocketAddr};

use sha1::{Digest, Sha1};

use crate::wire::{Notify, NotifyType, Writer};

/// What NAT detection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// There is one in front of us.
    pub local: bool,
    /// There is one in front of the peer, or the peer says so.
    pub remote: bool,
    /// ESP goes in UDP whether or not there is one.
    pub forced: bool,
}

impl Nat {
    /// Whether IKE moves to port 4500 and ESP goes in UDP.
    pub fn udp(self) -> bool {
        self.local || self.remote || self.forced
    }
}

/// "SHA-1 digest of the SPIs (in the order they appear in the header), IP address, and port".
pub(crate) fn hash(spi_i: u64, spi_r: u64, address: SocketAddr) -> [u8; 20] {
    let mut sha = Sha1::new();
    sha.update(spi_i.to_be_bytes());
    sha.update(spi_r.to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => sha.update(ip.octets()),
        IpAddr::V6(ip) => sha.update(ip.octets()),
    }
    sha.update(address.port().to_be_bytes());
    sha.finalize().into()
}

/// Adds both notifies. With `pretend` the source hash is made not to match, so that the peer
/// believes there is a NAT and takes ESP in UDP.
pub(crate) fn write(
    writer: &mut Writer,
    spi_i: u64,
    spi_r: u64,
    local: SocketAddr,
    remote: SocketAddr,
    pretend: bool,
) {
    let mut source = hash(spi_i, spi_r, local);
    if pretend {
        source.iter_mut().for_each(|octet| *octet = !*octet);
    }
    writer.notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, &source));
    let destination = hash(spi_i, spi_r, remote);
    writer.notify(Notify::new(
        NotifyType::NAT_DETECTION_DESTINATION_IP,
        &destination,
    ));
}

/// Compares the peer's notifies with the addresses its message travelled between.
pub(crate) fn detect<'a>(
    notifies: impl Iterator<Item = &'a Notify<'a>>,
    spi_i: u64,
    spi_r: u64,
    local: SocketAddr,
    remote: SocketAddr,
) -> Nat {
    let (mut sources, mut source_matches) = (0, false);
    let (mut destinations, mut destination_matches) = (0, false);
    for notify in notifies {
        match notify.kind {
            // A host with several addresses may send several: one match is enough.
            NotifyType::NAT_DETECTION_SOURCE_IP => {
                sources += 1;
                source_matches |= notify.data == hash(spi_i, spi_r, remote);
            }
            NotifyType::NAT_DETECTION_DESTINATION_IP => {
                destinations += 1;
                destination_matches |= notify.data == hash(spi_i, spi_r, local);
            }
            _ => {}
        }
    }
    // A peer that sends neither does not support NAT traversal.
    let supported = sources > 0 && destinations > 0;
    Nat {
        local: supported && !destination_matches,
        remote: supported && !source_matches,
        forced: false,
    }
}
