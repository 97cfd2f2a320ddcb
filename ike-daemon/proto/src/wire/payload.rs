//! The chain of payloads (RFC 7296 section 3.2).

use std::fmt;

use espada_common::sa::TrafficSelector;

use super::cert::Cert;
use super::cp::Configuration;
use super::header::{HEADER_LEN, Header};
use super::id::{Delete, KeyExchangeData, Typed};
use super::notify::Notify;
use super::reader::{DecodeError, Reader};
use super::sa::ProposalBody;
use super::{sa, ts};

/// Most payloads accepted in one message.
pub const MAX_PAYLOADS: usize = 100;

/// Payload type number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PayloadType(pub u8);

macro_rules! payload_types {
    ($($number:literal $name:ident $short:literal,)*) => {
        impl PayloadType {
            $(#[doc = concat!("Payload type ", stringify!($number), ".")] pub const $name: Self = Self($number);)*
        }

        impl fmt::Display for PayloadType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str($short),)*
                    number => write!(f, "payload type {number}"),
                }
            }
        }
    };
}

payload_types! {
    0 NONE "none",
    33 SA "SA",
    34 KE "KE",
    35 IDI "IDi",
    36 IDR "IDr",
    37 CERT "CERT",
    38 CERTREQ "CERTREQ",
    39 AUTH "AUTH",
    40 NONCE "Nonce",
    41 NOTIFY "N",
    42 DELETE "D",
    43 VENDOR "V",
    44 TSI "TSi",
    45 TSR "TSr",
    46 SK "SK",
    47 CP "CP",
    48 EAP "EAP",
    53 SKF "SKF",
}

impl PayloadType {
    /// Whether RFC 7296 defines it: such payloads are understood whatever their critical bit says.
    pub fn is_defined(self) -> bool {
        (33..=48).contains(&self.0)
    }
}

/// A payload, decoded as far as its type is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Security association.
    Sa(Vec<ProposalBody<'a>>),
    /// Key exchange.
    Ke(KeyExchangeData<'a>),
    /// The initiator's identity.
    IdI(Typed<'a>),
    /// The responder's identity.
    IdR(Typed<'a>),
    /// A certificate.
    Cert(Cert<'a>),
    /// Which certificates its sender would accept.
    CertReq(Cert<'a>),
    /// Authentication.
    Auth(Typed<'a>),
    /// Nonce.
    Nonce(&'a [u8]),
    /// Notify.
    Notify(Notify<'a>),
    /// Delete.
    Delete(Delete),
    /// Selectors of the initiator's side.
    TsI(Vec<TrafficSelector>),
    /// Selectors of the responder's side.
    TsR(Vec<TrafficSelector>),
    /// Configuration.
    Cp(Configuration<'a>),
    /// Encrypted and authenticated; always the last.
    Sk {
        /// Type of the first payload inside.
        inner: PayloadType,
        /// IV, ciphertext and checksum.
        body: &'a [u8],
    },
    /// One fragment of a message, encrypted and authenticated (RFC 7383 section 2.5); always the last.
    Skf {
        /// Type of the first payload inside, in the first fragment.
        inner: PayloadType,
        /// Which it is.
        fragment: Fragment,
        /// IV, ciphertext and checksum.
        body: &'a [u8],
    },
    /// Anything else.
    Other {
        /// Its type.
        kind: PayloadType,
        /// The sender wants the message refused if it is not understood.
        critical: bool,
        /// Its body.
        body: &'a [u8],
    },
}

impl Payload<'_> {
    /// Adds it to a message. What an encrypted one holds is not part of that: the type of its first payload
    /// stands where a following payload's would, and is the caller's to set.
    pub fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Sa(proposals) => {
                let proposals: Vec<_> = proposals.iter().map(|body| body.to_proposal()).collect();
                writer.add(PayloadType::SA, |out| sa::encode(&proposals, out));
            }
            Self::Ke(ke) => writer.add(PayloadType::KE, |out| ke.encode(out)),
            Self::IdI(id) => writer.add(PayloadType::IDI, |out| id.encode(out)),
            Self::IdR(id) => writer.add(PayloadType::IDR, |out| id.encode(out)),
            Self::Cert(cert) => writer.add(PayloadType::CERT, |out| cert.encode(out)),
            Self::CertReq(cert) => writer.add(PayloadType::CERTREQ, |out| cert.encode(out)),
            Self::Auth(auth) => writer.add(PayloadType::AUTH, |out| auth.encode(out)),
            Self::Nonce(data) => writer.add(PayloadType::NONCE, |out| out.extend(*data)),
            Self::Notify(notify) => writer.notify(*notify),
            Self::Delete(delete) => writer.add(PayloadType::DELETE, |out| delete.encode(out)),
            Self::TsI(selectors) => writer.add(PayloadType::TSI, |out| ts::encode(selectors, out)),
            Self::TsR(selectors) => writer.add(PayloadType::TSR, |out| ts::encode(selectors, out)),
            Self::Cp(cp) => writer.add(PayloadType::CP, |out| cp.encode(out)),
            Self::Sk { body, .. } => writer.add(PayloadType::SK, |out| out.extend(*body)),
            Self::Skf { fragment, body, .. } => writer.add(PayloadType::SKF, |out| {
                out.extend(fragment.number.to_be_bytes());
                out.extend(fragment.total.to_be_bytes());
                out.extend(*body);
            }),
            Self::Other {
                kind,
                critical,
                body,
            } => writer.add_with(*kind, *critical, |out| out.extend(*body)),
        }
    }
}

/// Which of a message's fragments one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its number, from 1.
    pub number: u16,
    /// How many there are.
    pub total: u16,
}

/// Walks a chain of payloads.
#[derive(Clone, Debug)]
pub struct Payloads<'a> {
    next: PayloadType,
    reader: Reader<'a>,
    seen: usize,
}

impl<'a> Payloads<'a> {
    /// The chain that starts with type `first` in `bytes`.
    pub fn new(first: PayloadType, bytes: &'a [u8]) -> Self {
        Self {
            next: first,
            reader: Reader::new(bytes, "payload"),
            seen: 0,
        }
    }

    /// All payloads, decoded.
    pub fn collect_all(
        first: PayloadType,
        bytes: &'a [u8],
    ) -> Result<Vec<Payload<'a>>, DecodeError> {
        Self::new(first, bytes).collect()
    }

    fn step(&mut self) -> Result<Option<Payload<'a>>, DecodeError> {
        if self.next == PayloadType::NONE {
            let reader = self.reader;
            self.reader.rest();
            return reader.finish().map(|()| None);
        }
        if self.seen == MAX_PAYLOADS {
            return Err(DecodeError::TooMany {
                what: "payloads",
                limit: MAX_PAYLOADS,
            });
        }
        self.seen += 1;
        let kind = self.next;
        let next = PayloadType(self.reader.u8()?);
        let critical = self.reader.u8()? & 0x80 != 0;
        let length = usize::from(self.reader.u16()?);
        let body = self.reader.bytes(
            length
                .checked_sub(4)
                .ok_or(DecodeError::Short { what: "payload" })?,
        )?;
        self.next = next;
        Ok(Some(match kind {
            PayloadType::SA => Payload::Sa(sa::decode(body)?),
            PayloadType::KE => Payload::Ke(KeyExchangeData::decode(body)?),
            PayloadType::IDI => Payload::IdI(Typed::decode(body, "IDi payload")?),
            PayloadType::IDR => Payload::IdR(Typed::decode(body, "IDr payload")?),
            PayloadType::CERT => Payload::Cert(Cert::decode(body, "CERT payload")?),
            PayloadType::CERTREQ => Payload::CertReq(Cert::decode(body, "CERTREQ payload")?),
            PayloadType::AUTH => Payload::Auth(Typed::decode(body, "AUTH payload")?),
            PayloadType::NONCE => {
                // "the size of the Nonce Data MUST be between 16 and 256 octets, inclusive"
                if !(16..=256).contains(&body.len()) {
                    return Err(DecodeError::Invalid {
                        what: "nonce payload",
                        problem: "not 16 to 256 octets",
                    });
                }
                Payload::Nonce(body)
            }
            PayloadType::NOTIFY => Payload::Notify(Notify::decode(body)?),
            PayloadType::DELETE => Payload::Delete(Delete::decode(body)?),
            PayloadType::TSI => Payload::TsI(ts::decode(body)?),
            PayloadType::TSR => Payload::TsR(ts::decode(body)?),
            PayloadType::CP => Payload::Cp(Configuration::decode(body)?),
            PayloadType::SK => {
                // Its next-payload field is the type of the first payload inside.
                self.next = PayloadType::NONE;
                Payload::Sk { inner: next, body }
            }
            PayloadType::SKF => {
                self.next = PayloadType::NONE;
                let mut reader = Reader::new(body, "SKF payload");
                let fragment = Fragment {
                    number: reader.u16()?,
                    total: reader.u16()?,
                };
                Payload::Skf {
                    inner: next,
                    fragment,
                    body: reader.rest(),
                }
            }
            _ => Payload::Other {
                kind,
                critical,
                body,
            },
        }))
    }
}

impl<'a> Iterator for Payloads<'a> {
    type Item = Result<Payload<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Ok(payload) => payload.map(Ok),
            Err(error) => {
                self.next = PayloadType::NONE;
                self.reader.rest();
                Some(Err(error))
            }
        }
    }
}

/// Writes a chain of payloads.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    first: Option<PayloadType>,
    /// Where the next-payload field of the last payload stands.
    link: Option<usize>,
}

impl Writer {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a payload whose body `fill` writes.
    pub fn add(&mut self, kind: PayloadType, fill: impl FnOnce(&mut Vec<u8>)) {
        self.add_with(kind, false, fill);
    }

    /// The same with a choice of critical bit.
    pub fn add_with(&mut self, kind: PayloadType, critical: bool, fill: impl FnOnce(&mut Vec<u8>)) {
        match self.link.and_then(|at| self.bytes.get_mut(at)) {
            Some(link) => *link = kind.0,
            None => self.first = Some(kind),
        }
        let start = self.bytes.len();
        self.link = Some(start);
        self.bytes
            .extend([0, if critical { 0x80 } else { 0 }, 0, 0]);
        fill(&mut self.bytes);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(field) = self.bytes.get_mut(start + 2..start + 4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Appends a notify.
    pub fn notify(&mut self, notify: Notify<'_>) {
        self.add(PayloadType::NOTIFY, |out| notify.encode(out));
    }

    /// Type of the first payload.
    pub fn first(&self) -> PayloadType {
        self.first.unwrap_or(PayloadType::NONE)
    }

    /// The chain.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Behind a header whose first payload and length are filled in: an unencrypted message.
    pub fn message(&self, header: Header) -> Vec<u8> {
        let length = (HEADER_LEN + self.bytes.len()) as u32;
        let header = Header {
            next_payload: self.first(),
            length,
            ..header
        };
        let mut out = Vec::with_capacity(length as usize);
        out.extend(header.encode());
        out.extend(&self.bytes);
        out
    }
}
