//! IKE_AUTH while servers are asked whether the peer's certificates were revoked.

use std::net::SocketAddr;

use zeroize::Zeroizing;

use super::context::{Common, Cx, Effect};
use super::protect::Opened;
use super::{Datagram, IkeSa, Phase};
use crate::wire::{Header, PayloadType};
use crate::x509::Inquiry;

/// A message that is looked at again, from its payloads on, when a server has answered. Meanwhile
/// repetitions of it are of no interest.
pub(crate) struct Held {
    local: SocketAddr,
    remote: SocketAddr,
    header: Header,
    bytes: Vec<u8>,
    pub first: PayloadType,
    pub plaintext: Zeroizing<Vec<u8>>,
}

impl Held {
    pub fn new(datagram: &Datagram<'_>, opened: Opened) -> Self {
        Self {
            local: datagram.local,
            remote: datagram.remote,
            header: datagram.header,
            bytes: opened.message(datagram).bytes.to_vec(),
            first: opened.first,
            plaintext: opened.plaintext,
        }
    }

    /// The message as it came, what is inside it apart.
    pub fn datagram(&self) -> Datagram<'_> {
        Datagram {
            local: self.local,
            remote: self.remote,
            header: self.header,
            bytes: &self.bytes,
            body: &[],
        }
    }
}

/// Has servers asked.
pub(crate) fn ask(common: &Common, cx: &mut Cx<'_>, inquiries: Vec<Inquiry>) {
    cx.out.effects.push(Effect::Inquire {
        spi: common.local_spi(),
        inquiries,
    });
}

impl IkeSa {
    /// A server answered, or will not.
    pub fn answered(&mut self, cx: &mut Cx<'_>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::AuthSent(phase) => phase.answered(&mut self.common, cx),
            Phase::InitReplied(phase) => phase.answered(&mut self.common, cx),
            other => other,
        };
        self.settle();
    }
}
