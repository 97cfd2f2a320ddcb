//! Messages inside the encrypted payload (RFC 7296 section 3.14).

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::context::{Common, Cx};
use super::{Datagram, respond};
use crate::crypto::keys::IkeKeys;
use crate::crypto::sk::{IkeCipher, SkError};
use crate::proposal::IkeSuite;
use crate::status::{IkeDrop, Role};
use crate::wire::{
    ExchangeType, Flags, HEADER_LEN, Header, NotifyType, Payload, PayloadType, Payloads, Writer,
};

/// Octets of a payload's generic header.
const PAYLOAD_HEADER_LEN: usize = 4;

/// Both directions of an IKE SA.
pub(crate) struct Protector {
    send: IkeCipher,
    receive: IkeCipher,
}

/// The inside of an encrypted payload.
pub(crate) struct Opened {
    pub first: PayloadType,
    pub plaintext: Zeroizing<Vec<u8>>,
}

/// The header of a message of ours; first payload and length are filled in later.
pub(crate) fn header(
    common: &Common,
    exchange: ExchangeType,
    response: bool,
    message_id: u32,
) -> Header {
    Header {
        initiator_spi: common.spi_i,
        responder_spi: common.spi_r,
        next_payload: PayloadType::NONE,
        major: 2,
        minor: 0,
        exchange,
        flags: Flags::new(common.role == Role::Initiator, response),
        message_id,
        length: 0,
    }
}

impl Protector {
    /// For our `role` in the IKE SA.
    pub fn new(suite: &IkeSuite, keys: &IkeKeys, role: Role) -> Result<Self, SkError> {
        let initiator = IkeCipher::new(suite.cipher, suite.integrity, &keys.ei, &keys.ai)?;
        let responder = IkeCipher::new(suite.cipher, suite.integrity, &keys.er, &keys.ar)?;
        Ok(match role {
            Role::Initiator => Self {
                send: initiator,
                receive: responder,
            },
            Role::Responder => Self {
                send: responder,
                receive: initiator,
            },
        })
    }

    /// The IV of our next message, as [`Self::resume`] takes it.
    pub fn next_iv(&self) -> Option<u64> {
        self.send.next_iv()
    }

    /// Goes on with the IV after the last that a predecessor has used.
    pub fn resume(&mut self, iv: Option<u64>) {
        self.send.resume(iv);
    }

    /// A whole message with these payloads inside.
    pub fn seal(
        &mut self,
        cx: &mut Cx<'_>,
        header: Header,
        inside: &Writer,
    ) -> Result<Vec<u8>, SkError> {
        let payload_len = PAYLOAD_HEADER_LEN + self.send.sealed_len(inside.bytes().len());
        let length = HEADER_LEN + payload_len;
        let header = Header {
            next_payload: PayloadType::SK,
            length: length as u32,
            ..header
        };
        let mut message = Vec::with_capacity(length);
        message.extend(header.encode());
        message.extend([inside.first().0, 0]);
        message.extend(u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes());
        let body = self.send.seal(&message, inside.bytes(), &mut cx.rng)?;
        message.extend(body);
        Ok(message)
    }

    /// Opens a message whose only payload is an encrypted one.
    pub fn open(&self, datagram: &Datagram<'_>) -> Result<Opened, IkeDrop> {
        let mut payloads = Payloads::new(datagram.header.next_payload, datagram.body);
        let Some(Ok(Payload::Sk { inner, body })) = payloads.next() else {
            return Err(IkeDrop::Malformed);
        };
        if payloads.next().is_some() {
            return Err(IkeDrop::Malformed);
        }
        let prefix = datagram
            .bytes
            .get(..datagram.bytes.len().saturating_sub(body.len()))
            .unwrap_or_default();
        let plaintext = self
            .receive
            .open(prefix, body)
            .map_err(|_| IkeDrop::Integrity)?;
        Ok(Opened {
            first: inner,
            plaintext,
        })
    }
}

/// Tells messages apart without keeping them.
pub(crate) fn fingerprint(message: &[u8]) -> [u8; 32] {
    Sha256::digest(message).into()
}

/// The error notify of a message without encrypted payload: nothing proves who sent it.
pub(crate) fn unprotected_error(datagram: &Datagram<'_>) -> Option<NotifyType> {
    if datagram.header.next_payload == PayloadType::SK {
        return None;
    }
    let payloads = Payloads::collect_all(datagram.header.next_payload, datagram.body).ok()?;
    let mut notifies = respond::notifies(&payloads);
    notifies
        .find(|notify| notify.kind.is_error())
        .map(|notify| notify.kind)
}
