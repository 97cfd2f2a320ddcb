//! The IKEv2 codec (RFC 7296 section 3): borrowed views in, octets out.
//!
//! Every decoder consumes its input to the last octet or fails; numbers it does not know are kept
//! as numbers, so that what was decoded encodes to the same octets. No input makes it panic.

pub mod cert;
pub mod cp;
pub mod header;
pub mod id;
pub mod notify;
pub mod payload;
pub mod reader;
pub mod sa;
pub mod ts;

pub use header::{ExchangeType, Flags, HEADER_LEN, Header};
pub use notify::{Notify, NotifyType};
pub use payload::{MAX_PAYLOADS, Payload, PayloadType, Payloads, Writer};
pub use reader::{DecodeError, Reader};

#[cfg(test)]
mod tests;
