//! A snapshot of everything an endpoint has, for `espada status` and the metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{ChildSaId, Encapsulation, Mode, Share, TrafficSelector};

use crate::refusal::Refusal;

/// Who sent the first message of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// We did.
    Initiator,
    /// The peer did.
    Responder,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        })
    }
}

/// Why ESP goes in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UdpReason {
    /// There is a NAT on the path, or the peer says so.
    Nat,
    /// The connection asks for it.
    Configured,
    /// Both gateways prefer it.
    Agreed,
}

impl UdpReason {
    /// Stable name for JSON and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Configured => "configured",
            Self::Agreed => "agreed",
        }
    }
}

/// A configured connection and its SAs.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Its name.
    pub name: Arc<str>,
    /// `established`, `connecting`, `waiting` (to try again), `trap` or `down`.
    pub state: &'static str,
    /// Its IKE SAs, oldest first. More than one during a rekey or simultaneous initiation.
    pub ike_sas: Vec<IkeSaStatus>,
    /// The last refusal, until the connection is established.
    pub last_error: Option<Arc<Refusal>>,
    /// Time until it is tried again.
    pub retry_in: Option<Duration>,
}

/// An IKE SA.
#[derive(Clone, Debug)]
pub struct IkeSaStatus {
    /// `init-sent`, `auth-sent`, `init-replied`, `established`, `replaced` or `deleting`.
    pub state: &'static str,
    /// Whether we initiated it.
    pub role: Role,
    /// The initiator's SPI.
    pub initiator_spi: u64,
    /// The responder's SPI, 0 while unknown.
    pub responder_spi: u64,
    /// Proposal keywords, such as `aes256gcm16-prfsha256-x25519`; empty while not negotiated.
    pub suite: String,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our identity, once sent.
    pub local_id: Option<String>,
    /// The peer's identity, once proven.
    pub remote_id: Option<String>,
    /// There is a NAT in front of us.
    pub nat_local: bool,
    /// There is a NAT in front of the peer.
    pub nat_remote: bool,
    /// Why ESP goes in UDP, if it does.
    pub udp: Option<UdpReason>,
    /// Virtual addresses, if one end gave the other some.
    pub lease: Option<LeaseStatus>,
    /// Time since it was established, or begun while it is not.
    pub age: Duration,
    /// Time until it is rekeyed.
    pub rekey_in: Option<Duration>,
    /// Its child SAs.
    pub children: Vec<ChildSaStatus>,
}

/// Addresses that one end of an IKE SA has in the network of the other (RFC 7296 section 2.19).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The peer gave them to us; otherwise we to it.
    pub ours: bool,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Name servers that go with them.
    pub dns: Vec<IpAddr>,
}

/// A pair of ESP SAs.
#[derive(Clone, Debug)]
pub struct ChildSaStatus {
    /// The data plane's name for it.
    pub id: ChildSaId,
    /// SPI of what we receive.
    pub spi_in: u32,
    /// SPI of what we send.
    pub spi_out: u32,
    /// Proposal keywords, such as `aes256gcm16-esn`.
    pub suite: String,
    /// ESP or ESP in UDP.
    pub encapsulation: Encapsulation,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Which of the packets that its selectors cover it carries.
    pub share: Share,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Time since it was installed.
    pub age: Duration,
    /// Time until it is rekeyed.
    pub rekey_in: Option<Duration>,
}

/// Why an IKE datagram was not acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IkeDrop {
    /// It could not be parsed.
    Malformed,
    /// An IKEv1 message.
    IkeV1,
    /// A major version above 2.
    MajorVersion,
    /// Of no IKE SA we have.
    UnknownSpi,
    /// Its encrypted payload did not verify.
    Integrity,
    /// A message ID outside the window.
    MessageId,
    /// A repeated request, answered with the stored response.
    Retransmission,
    /// A request where a response was due, or the wrong exchange for the state.
    Unexpected,
    /// A request about what an exchange under way is to decide first: the peer repeats it.
    Early,
    /// Too many half-open IKE SAs.
    HalfOpenLimit,
    /// IKE_SA_INIT from or to an address no connection covers.
    NoConnection,
    /// A fragment of a message that is too long, or of one begun anew since (RFC 7383 section 2.6).
    Fragment,
    /// An error notify outside any encrypted payload: counted, never believed.
    Unauthenticated,
}

impl IkeDrop {
    /// Stable snake_case name for JSON, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::IkeV1 => "ikev1",
            Self::MajorVersion => "major_version",
            Self::UnknownSpi => "unknown_spi",
            Self::Integrity => "integrity",
            Self::MessageId => "message_id",
            Self::Retransmission => "retransmission",
            Self::Unexpected => "unexpected",
            Self::Early => "early",
            Self::HalfOpenLimit => "half_open_limit",
            Self::NoConnection => "no_connection",
            Self::Fragment => "fragment",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// Counters of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounters {
    /// Datagrams received.
    pub received: u64,
    /// Datagrams handed out to be sent.
    pub sent: u64,
    /// Datagrams not acted on, by reason.
    pub dropped: BTreeMap<IkeDrop, u64>,
    /// Cookies demanded.
    pub cookies_sent: u64,
    /// Half-open IKE SAs now.
    pub half_open: usize,
}
