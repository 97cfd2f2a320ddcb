//! Messages inside the encrypted payload (RFC 7296 section 3.14).

use std::sync::Arc;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::context::{Common, Cx};
use super::fragment::{self, Message, PAYLOAD_HEADER_LEN, Piece, Reassembly};
use super::{Datagram, respond};
use crate::crypto::keys::IkeKeys;
use crate::crypto::sk::{IkeCipher, SkError};
use crate::notice::Notice;
use crate::proposal::IkeSuite;
use crate::status::{IkeDrop, Role};
use crate::wire::payload::Fragment;
use crate::wire::{
    ExchangeType, Flags, HEADER_LEN, Header, Notify, NotifyType, Payload, PayloadType, Payloads,
    Writer,
};

/// Both directions of an IKE SA.
pub(crate) struct Protector {
    send: IkeCipher,
    receive: IkeCipher,
    /// Fragments of the request and of the response that are awaited.
    fragments: [Option<Reassembly>; 2],
}

/// The inside of a message, put together if it came in fragments.
pub(crate) struct Opened {
    pub first: PayloadType,
    pub plaintext: Zeroizing<Vec<u8>>,
    /// The first fragment's datagram, if it did.
    fragment: Option<Vec<u8>>,
}

impl Opened {
    /// What stands for the message, by which a repetition of it is recognised: the datagram, or of
    /// fragments the first (RFC 7383 section 2.6.1).
    pub fn message<'a>(&'a self, datagram: &Datagram<'a>) -> Datagram<'a> {
        Datagram {
            bytes: self.fragment.as_deref().unwrap_or(datagram.bytes),
            ..*datagram
        }
    }
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
        let (send, receive) = match role {
            Role::Initiator => (initiator, responder),
            Role::Responder => (responder, initiator),
        };
        Ok(Self {
            send,
            receive,
            fragments: [None, None],
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

    /// A message with these payloads inside; in fragments if it is too large for one datagram and
    /// the peer understands them.
    pub fn seal(
        &mut self,
        common: &Common,
        cx: &mut Cx<'_>,
        header: Header,
        inside: &Writer,
    ) -> Result<Message, SkError> {
        let payload_len = PAYLOAD_HEADER_LEN + self.send.sealed_len(inside.bytes().len());
        let length = HEADER_LEN + payload_len;
        let size = cx.settings.fragment_size.filter(|_| common.fragmentation);
        if let Some(size) = size {
            let limit = fragment::message_limit(common, size, cx.settings.nat_port);
            let capacity = self.send.plaintext_capacity(fragment::body_limit(limit));
            if length > limit
                && let Some((total, pieces)) = fragment::pieces(inside.bytes(), capacity)
            {
                let mut datagrams = Vec::with_capacity(total.into());
                for (number, piece) in (1..=total).zip(pieces) {
                    let fragment = Fragment { number, total };
                    datagrams.push(self.seal_fragment(
                        cx,
                        header,
                        inside.first(),
                        fragment,
                        piece,
                    )?);
                }
                return Ok(Message { datagrams });
            }
        }
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
        Ok(Message {
            datagrams: vec![message],
        })
    }

    fn seal_fragment(
        &mut self,
        cx: &mut Cx<'_>,
        header: Header,
        first: PayloadType,
        fragment: Fragment,
        piece: &[u8],
    ) -> Result<Vec<u8>, SkError> {
        let body_len = self.send.sealed_len(piece.len());
        let length = fragment::message_len(body_len);
        let header = Header {
            next_payload: PayloadType::SKF,
            length: length as u32,
            ..header
        };
        let mut message = Vec::with_capacity(length);
        message.extend(header.encode());
        fragment::write_headers(&mut message, first, fragment, body_len);
        let body = self.send.seal(&message, piece, &mut cx.rng)?;
        message.extend(body);
        Ok(message)
    }

    /// Opens a message whose only payload is an encrypted one. `None`: it is a fragment, and others
    /// of the message are missing.
    pub fn open(
        &mut self,
        common: &Common,
        datagram: &Datagram<'_>,
    ) -> Result<Option<Opened>, IkeDrop> {
        let mut payloads = Payloads::new(datagram.header.next_payload, datagram.body);
        let Some(Ok(only)) = payloads.next() else {
            return Err(IkeDrop::Malformed);
        };
        if payloads.next().is_some() {
            return Err(IkeDrop::Malformed);
        }
        let (inner, fragment, body) = match only {
            Payload::Sk { inner, body } => {
                let plaintext = self.decrypt(datagram, body)?;
                return Ok(Some(Opened {
                    first: inner,
                    plaintext,
                    fragment: None,
                }));
            }
            Payload::Skf {
                inner,
                fragment,
                body,
            } if common.fragmentation => (inner, fragment, body),
            Payload::Skf { .. } => return Err(IkeDrop::Unexpected),
            _ => return Err(IkeDrop::Malformed),
        };
        let (message_id, response) = (
            datagram.header.message_id,
            datagram.header.flags.is_response(),
        );
        let [request_slot, response_slot] = &self.fragments;
        let slot = if response {
            response_slot
        } else {
            request_slot
        };
        Reassembly::expects(slot.as_ref(), message_id, fragment)?;
        let plaintext = self.decrypt(datagram, body)?;
        let [request_slot, response_slot] = &mut self.fragments;
        let slot = if response {
            response_slot
        } else {
            request_slot
        };
        let piece = Piece {
            message_id,
            fragment,
            inner,
            plaintext,
            datagram: datagram.bytes,
        };
        Ok(Reassembly::add(slot, piece)?.map(|whole| Opened {
            first: whole.first,
            plaintext: whole.plaintext,
            fragment: Some(whole.datagram),
        }))
    }

    /// Whether a request is the authentic first fragment of a message, which asks for the response
    /// to it once more (RFC 7383 section 2.6.1).
    pub fn is_first_fragment(&self, datagram: &Datagram<'_>) -> bool {
        let payload = Payloads::new(datagram.header.next_payload, datagram.body).next();
        matches!(
            payload,
            Some(Ok(Payload::Skf { fragment: Fragment { number: 1, .. }, body, .. }))
                if self.decrypt(datagram, body).is_ok()
        )
    }

    /// The inside of a body that stands at the datagram's end.
    fn decrypt(&self, datagram: &Datagram<'_>, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, IkeDrop> {
        let prefix = datagram
            .bytes
            .get(..datagram.bytes.len().saturating_sub(body.len()))
            .unwrap_or_default();
        self.receive
            .open(prefix, body)
            .map_err(|_| IkeDrop::Integrity)
    }
}

/// Tells messages apart without keeping them.
pub(crate) fn fingerprint(message: &[u8]) -> [u8; 32] {
    Sha256::digest(message).into()
}

/// The error notify of a message without encrypted payload: nothing proves who sent it.
pub(crate) fn unprotected_error(datagram: &Datagram<'_>) -> Option<NotifyType> {
    if [PayloadType::SK, PayloadType::SKF].contains(&datagram.header.next_payload) {
        return None;
    }
    let payloads = Payloads::collect_all(datagram.header.next_payload, datagram.body).ok()?;
    let mut notifies = respond::notifies(&payloads);
    notifies
        .find(|notify| notify.kind.is_error())
        .map(|notify| notify.kind)
}

/// Whether a message is an error notify that nothing proves; people are told of one.
pub(crate) fn tell_unprotected_error(
    cx: &mut Cx<'_>,
    datagram: &Datagram<'_>,
    connection: &Arc<str>,
) -> bool {
    let Some(kind) = unprotected_error(datagram) else {
        return false;
    };
    cx.out.notice(Notice::UnauthenticatedError {
        connection: connection.clone(),
        remote: datagram.remote,
        notify: kind.to_string(),
    });
    true
}

/// The SPI in an INVALID_SPI notify without encrypted payload: whoever sent it says that it receives ESP
/// with it and knows no such SA (RFC 7296 section 1.5).
pub(crate) fn unknown_esp_spi(datagram: &Datagram<'_>) -> Option<u32> {
    let header = &datagram.header;
    if header.exchange != ExchangeType::INFORMATIONAL
        || header.flags.is_response()
        || header.next_payload != PayloadType::NOTIFY
    {
        return None;
    }
    let payloads = Payloads::collect_all(header.next_payload, datagram.body).ok()?;
    respond::notifies(&payloads).find_map(invalid_spi)
}

/// The SPI that an INVALID_SPI notify is about.
pub(crate) fn invalid_spi(notify: &Notify<'_>) -> Option<u32> {
    let spi = notify.data.try_into().ok().map(u32::from_be_bytes);
    spi.filter(|_| notify.kind == NotifyType::INVALID_SPI)
}
