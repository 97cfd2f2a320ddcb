//! Notify payloads (RFC 7296 section 3.10).

use std::fmt;

use super::reader::{DecodeError, Reader};

/// Notify message type. Below 16384 it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NotifyType(pub u16);

macro_rules! notify_types {
    ($($number:literal $name:ident,)*) => {
        impl NotifyType {
            $(#[doc = concat!("Notify type ", stringify!($number), ".")] pub const $name: Self = Self($number);)*

            /// Its IANA name, where it is known here.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

notify_types! {
    1 UNSUPPORTED_CRITICAL_PAYLOAD,
    4 INVALID_IKE_SPI,
    5 INVALID_MAJOR_VERSION,
    7 INVALID_SYNTAX,
    9 INVALID_MESSAGE_ID,
    11 INVALID_SPI,
    14 NO_PROPOSAL_CHOSEN,
    17 INVALID_KE_PAYLOAD,
    24 AUTHENTICATION_FAILED,
    34 SINGLE_PAIR_REQUIRED,
    35 NO_ADDITIONAL_SAS,
    36 INTERNAL_ADDRESS_FAILURE,
    37 FAILED_CP_REQUIRED,
    38 TS_UNACCEPTABLE,
    39 INVALID_SELECTORS,
    40 UNACCEPTABLE_ADDRESSES,
    41 UNEXPECTED_NAT_DETECTED,
    43 TEMPORARY_FAILURE,
    44 CHILD_SA_NOT_FOUND,
    47 STATE_NOT_FOUND,
    48 TS_MAX_QUEUE,
    16384 INITIAL_CONTACT,
    16385 SET_WINDOW_SIZE,
    16386 ADDITIONAL_TS_POSSIBLE,
    16387 IPCOMP_SUPPORTED,
    16388 NAT_DETECTION_SOURCE_IP,
    16389 NAT_DETECTION_DESTINATION_IP,
    16390 COOKIE,
    16391 USE_TRANSPORT_MODE,
    16392 HTTP_CERT_LOOKUP_SUPPORTED,
    16393 REKEY_SA,
    16394 ESP_TFC_PADDING_NOT_SUPPORTED,
    16395 NON_FIRST_FRAGMENTS_ALSO,
    16396 MOBIKE_SUPPORTED,
    16397 ADDITIONAL_IP4_ADDRESS,
    16398 ADDITIONAL_IP6_ADDRESS,
    16399 NO_ADDITIONAL_ADDRESSES,
    16400 UPDATE_SA_ADDRESSES,
    16401 COOKIE2,
    16402 NO_NATS_ALLOWED,
    16404 MULTIPLE_AUTH_SUPPORTED,
    16406 REDIRECT_SUPPORTED,
    16407 REDIRECT,
    16408 REDIRECTED_FROM,
    16417 EAP_ONLY_AUTHENTICATION,
    16418 CHILDLESS_IKEV2_SUPPORTED,
    16420 IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
    16430 IKEV2_FRAGMENTATION_SUPPORTED,
    16431 SIGNATURE_HASH_ALGORITHMS,
    16435 USE_PPK,
    16436 PPK_IDENTITY,
    16437 NO_PPK_AUTH,
    16438 INTERMEDIATE_EXCHANGE_SUPPORTED,
    16441 ADDITIONAL_KEY_EXCHANGE,
    16444 SA_RESOURCE_INFO,
}

impl NotifyType {
    /// Error types end a negotiation, status types do not.
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "notify type {}", self.0),
        }
    }
}

/// A notify payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify<'a> {
    /// Protocol of the SPI: 0 none, 1 IKE, 2 AH, 3 ESP.
    pub protocol: u8,
    /// The SA it is about, empty for the IKE SA itself.
    pub spi: &'a [u8],
    /// What it says.
    pub kind: NotifyType,
    /// Data that goes with it.
    pub data: &'a [u8],
}

impl<'a> Notify<'a> {
    /// A notify about the IKE SA, or about nothing yet.
    pub fn new(kind: NotifyType, data: &'a [u8]) -> Self {
        Self {
            protocol: 0,
            spi: &[],
            kind,
            data,
        }
    }

    /// Reads a payload body.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "notify payload");
        let protocol = reader.u8()?;
        let spi_len = reader.u8()?;
        let kind = NotifyType(reader.u16()?);
        let spi = reader.bytes(spi_len.into())?;
        Ok(Self {
            protocol,
            spi,
            kind,
            data: reader.rest(),
        })
    }

    /// Appends the payload body. SPIs longer than 255 octets do not exist.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let spi = self.spi.get(..255).unwrap_or(self.spi);
        out.extend([self.protocol, spi.len() as u8]);
        out.extend(self.kind.0.to_be_bytes());
        out.extend(spi);
        out.extend(self.data);
    }
}
