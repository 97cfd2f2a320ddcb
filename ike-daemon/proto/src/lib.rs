//! Sans-IO IKEv2 (RFC 7296): no sockets, no clock, no threads.
//!
//! [`Endpoint`] takes datagrams, time and configuration in and hands datagrams, data-plane
//! commands and notices for people out. See `docs/ARCHITECTURE.md`, "espada-ike (sans-IO)".
#![forbid(unsafe_code)]

pub mod config;
pub mod crypto;
mod endpoint;
mod identity;
mod notice;
pub mod pem;
pub mod proposal;
pub mod refusal;
mod sa;
pub mod selector;
pub mod status;
pub mod wire;
pub mod x509;

pub use config::{ConnectionConfig, EndpointConfig, PskSecret};
pub use crypto::Random;
pub use endpoint::{
    Endpoint, InitiateError, Lookup, Question, Reconciled, RestoreError, Restored, SavedPeer,
    SavedState, Transmit,
};
pub use identity::{DistinguishedName, Identity, IdentityError, IdentityPattern};
pub use notice::{DownReason, Notice, Severity};
pub use refusal::{Fix, Refusal, RefusalKind, RefusedBy};
pub use status::{ChildSaStatus, ConnectionStatus, IkeSaStatus, LeaseStatus, Role, UdpReason};
pub use x509::Inquiry;
