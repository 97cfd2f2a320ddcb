//! NAT detection (RFC 7296 section 2.23), and the agreement on ESP in UDP without a NAT.

use std::net::{IpAddr, SocketAddr};

use sha1::{Digest, Sha1};

use super::context::{Common, Cx};
use crate::config::{ConnectionConfig, EncapsulationPolicy};
use crate::notice::Notice;
use crate::status::UdpReason;
use crate::wire::{Notify, NotifyType, Payload, PayloadType, Writer};

/// The Vendor ID (RFC 7296 section 3.12) by which an end says in IKE_SA_INIT that it prefers ESP in
/// UDP to native ESP. Where both say so, both go on as if there were a NAT; peers that do not know
/// it ignore it. The AUTH payloads cover IKE_SA_INIT, so whoever adds or removes it on the way
/// prevents the IKE SA and changes nothing else. The octets were drawn at random.
pub(crate) const PREFERS_UDP: [u8; 16] = [
    0x7f, 0x11, 0x5c, 0x39, 0xc0, 0x5a, 0x7d, 0x88, 0xda, 0x1a, 0x06, 0x32, 0x6b, 0x7e, 0xac, 0xfa,
];

/// Whether a connection agrees on ESP in UDP with a peer that prefers it.
pub(crate) fn prefers_udp(config: &ConnectionConfig) -> bool {
    config.encapsulation == EncapsulationPolicy::Auto
}

/// Says that we prefer ESP in UDP.
pub(crate) fn write_preference(writer: &mut Writer) {
    writer.add(PayloadType::VENDOR, |out| out.extend(PREFERS_UDP));
}

/// Whether the peer says that it prefers ESP in UDP.
pub(crate) fn peer_prefers_udp(payloads: &[Payload<'_>]) -> bool {
    payloads.iter().any(|payload| {
        matches!(payload, Payload::Other { kind: PayloadType::VENDOR, body, .. } if *body == PREFERS_UDP)
    })
}

/// What NAT detection found, and what else puts ESP in UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// There is one in front of us.
    pub local: bool,
    /// There is one in front of the peer, or the peer says so.
    pub remote: bool,
    /// ESP goes in UDP whether or not there is one.
    pub forced: bool,
    /// Both ends prefer ESP in UDP.
    pub agreed: bool,
}

impl Nat {
    /// Whether IKE moves to port 4500 and ESP goes in UDP.
    pub fn udp(self) -> bool {
        self.reason().is_some()
    }

    /// Why ESP goes in UDP, if it does.
    pub fn reason(self) -> Option<UdpReason> {
        if self.forced {
            Some(UdpReason::Configured)
        } else if self.local || self.remote {
            Some(UdpReason::Nat)
        } else {
            self.agreed.then_some(UdpReason::Agreed)
        }
    }
}

/// Tells what was found or agreed on.
pub(crate) fn tell(common: &Common, cx: &mut Cx<'_>, config: &ConnectionConfig) {
    let (nat, peer) = (common.nat, common.remote);
    if nat.local || nat.remote {
        cx.out.notice(Notice::NatDetected {
            connection: Some(config.name.clone()),
            local: nat.local,
            remote: nat.remote,
            peer,
        });
    } else if nat.agreed {
        cx.out.notice(Notice::UdpAgreed {
            connection: config.name.clone(),
            peer,
        });
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
        ..Nat::default()
    }
}
