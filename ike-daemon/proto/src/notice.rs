//! What an endpoint tells people: log lines, the progress of `espada up`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{ChildSaId, Encapsulation, Mode, Share, TrafficSelector};

use crate::refusal::Refusal;
use crate::selector::format_list;
use crate::status::Role;

/// How loud a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Progress of interest while looking for a fault.
    Debug,
    /// A change of state.
    Info,
    /// Something a person should look at.
    Warning,
}

/// Why an IKE SA or child SA went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// The peer deleted it.
    PeerDeleted,
    /// We were asked to.
    Terminated,
    /// The peer did not answer any more.
    DeadPeer,
    /// The peer started afresh (INITIAL_CONTACT) or a duplicate was dropped.
    Replaced,
    /// A rekeyed SA took over.
    Rekeyed,
    /// Its hard lifetime ran out.
    Expired,
    /// Its negotiation was refused.
    Refused,
    /// The peer broke the protocol.
    ProtocolError,
    /// The peer refused for minutes what it said to refuse for the moment only.
    OutOfStep,
    /// The data plane did not carry it any more when we took over from another process.
    NotCarried,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerDeleted => "deleted by the peer",
            Self::Terminated => "terminated here",
            Self::DeadPeer => "the peer does not answer",
            Self::Replaced => "replaced by a newer one",
            Self::Rekeyed => "replaced by its successor",
            Self::Expired => "lifetime used up",
            Self::Refused => "negotiation refused",
            Self::ProtocolError => "the peer broke the protocol",
            Self::OutOfStep => "the peer is out of step with us",
            Self::NotCarried => "the data plane does not carry it any more",
        })
    }
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Notice {
    /// We sent the first IKE_SA_INIT request.
    Initiated {
        /// Which connection.
        connection: Arc<str>,
        /// Where we send from.
        local: SocketAddr,
        /// Where we send to.
        remote: SocketAddr,
    },
    /// A request is sent again.
    Retransmitting {
        /// Which connection.
        connection: Arc<str>,
        /// `IKE_SA_INIT`, `IKE_AUTH`, …
        exchange: String,
        /// This is the how-manieth transmission.
        sent: u32,
        /// Of how many.
        of: u32,
        /// Where to.
        remote: SocketAddr,
    },
    /// NAT detection found something (RFC 7296 section 2.23).
    NatDetected {
        /// Which connection, once known.
        connection: Option<Arc<str>>,
        /// There is a NAT in front of us.
        local: bool,
        /// There is a NAT in front of the peer.
        remote: bool,
        /// The peer.
        peer: SocketAddr,
    },
    /// Both ends prefer ESP in UDP, as their data planes are faster with it, and both have said so in
    /// IKE_SA_INIT by a Vendor ID: it goes in UDP without a NAT.
    UdpAgreed {
        /// Which connection.
        connection: Arc<str>,
        /// The peer.
        peer: SocketAddr,
    },
    /// An IKE SA is up.
    Established {
        /// Which connection.
        connection: Arc<str>,
        /// Our role.
        role: Role,
        /// The initiator's SPI.
        initiator_spi: u64,
        /// The responder's SPI.
        responder_spi: u64,
        /// Proposal keywords.
        suite: String,
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
        /// Our identity.
        local_id: String,
        /// The peer's proven identity.
        remote_id: String,
        /// Since the first message.
        elapsed: Duration,
    },
    /// A child SA is up.
    ChildUp {
        /// Which connection.
        connection: Arc<str>,
        /// The data plane's name for it.
        id: ChildSaId,
        /// Proposal keywords.
        suite: String,
        /// SPI of what we receive.
        spi_in: u32,
        /// SPI of what we send.
        spi_out: u32,
        /// ESP or ESP in UDP.
        encapsulation: Encapsulation,
        /// Tunnel or transport.
        mode: Mode,
        /// Which of the packets that its selectors cover it carries.
        share: Share,
        /// Selectors on our side.
        local_ts: Vec<TrafficSelector>,
        /// Selectors on the peer's side.
        remote_ts: Vec<TrafficSelector>,
        /// Since the first message of its IKE SA, or of its own exchange.
        elapsed: Duration,
    },
    /// An IKE SA of a process before us goes on.
    TakenOver {
        /// Which connection.
        connection: Arc<str>,
        /// Our role.
        role: Role,
        /// The initiator's SPI.
        initiator_spi: u64,
        /// The responder's SPI.
        responder_spi: u64,
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
        /// Its child SAs.
        children: Vec<ChildSaId>,
    },
    /// An IKE SA's state is too large to be saved: another process could not go on with it.
    NotSaved {
        /// Which connection.
        connection: Arc<str>,
        /// Most octets of a state.
        limit: usize,
    },
    /// A child SA is gone.
    ChildDown {
        /// Which connection.
        connection: Arc<str>,
        /// Which child SA.
        id: ChildSaId,
        /// Why.
        reason: DownReason,
    },
    /// An IKE SA is gone.
    Down {
        /// Which connection.
        connection: Arc<str>,
        /// The peer's address and port.
        remote: SocketAddr,
        /// Why.
        reason: DownReason,
    },
    /// The peer's address or port changed (RFC 7296 section 2.23).
    PeerMoved {
        /// Which connection.
        connection: Arc<str>,
        /// Where it was.
        from: SocketAddr,
        /// Where it is.
        to: SocketAddr,
    },
    /// The peer sends us to another gateway (RFC 5685).
    Redirected {
        /// Which connection.
        connection: Arc<str>,
        /// The gateway that does.
        from: IpAddr,
        /// Where to: an address or a host name.
        to: String,
    },
    /// Our address or port is another, and the peer is told (RFC 4555).
    Moved {
        /// Which connection.
        connection: Arc<str>,
        /// Where we were.
        from: SocketAddr,
        /// Where we are.
        to: SocketAddr,
    },
    /// The peer does not take our new address (RFC 4555).
    MoveRefused {
        /// Which connection.
        connection: Arc<str>,
        /// The notify's name.
        notify: String,
    },
    /// The virtual addresses that we have in a connection are others (RFC 7296 section 2.19).
    VirtualAddresses {
        /// Which connection.
        connection: Arc<str>,
        /// All of them; none when its IKE SA is gone.
        addresses: Vec<IpAddr>,
        /// Name servers that the peer named.
        dns: Vec<IpAddr>,
    },
    /// The peer takes one pair of selectors in each child SA: it is asked for one after the other.
    SinglePairs {
        /// Which connection.
        connection: Arc<str>,
        /// The notification that it answered several with.
        notify: String,
    },
    /// The peer takes no further child SAs for single processors (RFC 9611).
    SharesRefused {
        /// Which connection.
        connection: Arc<str>,
        /// The notify's name.
        notify: String,
    },
    /// A server is asked whether certificates of the peer were revoked, and the IKE SA waits for it.
    Inquiring {
        /// Which connection, or which most likely.
        connection: Option<Arc<str>>,
        /// What is fetched.
        uri: Arc<str>,
    },
    /// It is not known whether a certificate of the peer was revoked; the settings believe it.
    RevocationUnknown {
        /// Which connection.
        connection: Arc<str>,
        /// Which certificate, who was asked, and why that did not help.
        doubt: String,
    },
    /// A negotiation failed.
    Refused(Arc<Refusal>),
    /// A failed connection is tried again later.
    RetryScheduled {
        /// Which connection.
        connection: Arc<str>,
        /// When.
        after: Duration,
    },
    /// A connection failed as often as it may, and is not tried again by itself.
    GaveUp {
        /// Which connection.
        connection: Arc<str>,
        /// How often it failed.
        tries: u32,
    },
    /// Somebody speaks IKEv1 to us.
    IkeV1 {
        /// Who.
        remote: SocketAddr,
    },
    /// An error notify outside any encrypted payload, which anybody can forge: not acted on.
    UnauthenticatedError {
        /// Which connection.
        connection: Arc<str>,
        /// From where.
        remote: SocketAddr,
        /// The notify's name.
        notify: String,
    },
    /// Cookies are demanded from now on.
    CookiesDemanded {
        /// Half-open IKE SAs.
        half_open: usize,
    },
}

impl Notice {
    /// The connection it is about, where there is one.
    pub fn connection(&self) -> Option<&Arc<str>> {
        match self {
            Self::Initiated { connection, .. }
            | Self::Retransmitting { connection, .. }
            | Self::UdpAgreed { connection, .. }
            | Self::Established { connection, .. }
            | Self::ChildUp { connection, .. }
            | Self::TakenOver { connection, .. }
            | Self::NotSaved { connection, .. }
            | Self::ChildDown { connection, .. }
            | Self::Down { connection, .. }
            | Self::PeerMoved { connection, .. }
            | Self::Redirected { connection, .. }
            | Self::Moved { connection, .. }
            | Self::MoveRefused { connection, .. }
            | Self::VirtualAddresses { connection, .. }
            | Self::SharesRefused { connection, .. }
            | Self::SinglePairs { connection, .. }
            | Self::RetryScheduled { connection, .. }
            | Self::GaveUp { connection, .. }
            | Self::RevocationUnknown { connection, .. }
            | Self::UnauthenticatedError { connection, .. } => Some(connection),
            Self::NatDetected { connection, .. } | Self::Inquiring { connection, .. } => {
                connection.as_ref()
            }
            Self::Refused(refusal) => refusal.connection.as_ref(),
            Self::IkeV1 { .. } | Self::CookiesDemanded { .. } => None,
        }
    }

    /// How loud it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Retransmitting { .. } | Self::UnauthenticatedError { .. } => Severity::Debug,
            Self::Refused(_)
            | Self::IkeV1 { .. }
            | Self::CookiesDemanded { .. }
            | Self::MoveRefused { .. }
            | Self::GaveUp { .. }
            | Self::RevocationUnknown { .. }
            | Self::NotSaved { .. } => Severity::Warning,
            Self::Down { reason, .. } | Self::ChildDown { reason, .. } => match reason {
                DownReason::DeadPeer | DownReason::ProtocolError | DownReason::Expired => {
                    Severity::Warning
                }
                _ => Severity::Info,
            },
            _ => Severity::Info,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initiated { local, remote, .. } => {
                write!(f, "initiating from {local} to {remote}")
            }
            Self::Retransmitting {
                exchange,
                sent,
                of,
                remote,
                ..
            } => {
                write!(
                    f,
                    "no answer to {exchange} from {remote} yet, sending it again ({sent} of {of})"
                )
            }
            Self::NatDetected {
                local,
                remote,
                peer,
                ..
            } => match (local, remote) {
                (true, true) => write!(
                    f,
                    "NAT in front of us and of the peer {peer}: ESP goes in UDP"
                ),
                (true, false) => write!(
                    f,
                    "NAT in front of us on the way to {peer}: ESP goes in UDP"
                ),
                _ => write!(f, "NAT in front of the peer {peer}: ESP goes in UDP"),
            },
            Self::UdpAgreed { peer, .. } => write!(
                f,
                "the peer {peer} prefers ESP in UDP as we do: agreed by both gateways"
            ),
            Self::Established {
                role,
                initiator_spi,
                responder_spi,
                suite,
                local,
                remote,
                local_id,
                remote_id,
                elapsed,
                ..
            } => write!(
                f,
                "IKE SA established as {role} in {} ms: {local_id} ({local}) and {remote_id} ({remote}), {suite}, \
                 SPIs {initiator_spi:016x}_i {responder_spi:016x}_r",
                elapsed.as_millis()
            ),
            Self::ChildUp {
                id,
                suite,
                spi_in,
                spi_out,
                encapsulation,
                mode,
                share,
                local_ts,
                remote_ts,
                ..
            } => write!(
                f,
                "child SA {} up: {} to {}, {suite}{}{}{}, SPIs {spi_in:08x} in {spi_out:08x} out",
                id.0,
                format_list(local_ts),
                format_list(remote_ts),
                match encapsulation {
                    Encapsulation::Esp => "",
                    Encapsulation::Udp => " in UDP",
                },
                match mode {
                    Mode::Tunnel => "",
                    Mode::Transport => ", transport mode",
                },
                match share {
                    Share::Whole => String::new(),
                    share => format!(", for {share}"),
                },
            ),
            Self::TakenOver {
                initiator_spi,
                responder_spi,
                local,
                remote,
                children,
                ..
            } => {
                write!(
                    f,
                    "IKE SA taken over from the previous daemon: {local} and {remote}, \
                     SPIs {initiator_spi:016x}_i {responder_spi:016x}_r, "
                )?;
                match &children[..] {
                    [] => f.write_str("no child SAs"),
                    [first, more @ ..] => {
                        write!(f, "child SAs {}", first.0)?;
                        more.iter().try_for_each(|id| write!(f, ", {}", id.0))
                    }
                }
            }
            Self::NotSaved { limit, .. } => write!(
                f,
                "the IKE SA has more than the {limit} octets of state that are kept for a restart: \
                 for now it would not outlive this daemon; fewer subnets would help"
            ),
            Self::ChildDown { id, reason, .. } => write!(f, "child SA {} is gone: {reason}", id.0),
            Self::Down { remote, reason, .. } => {
                write!(f, "IKE SA with {remote} is gone: {reason}")
            }
            Self::PeerMoved { from, to, .. } => write!(f, "the peer moved from {from} to {to}"),
            Self::Redirected { from, to, .. } => {
                write!(f, "{from} redirects us to {to}")
            }
            Self::Moved { from, to, .. } => write!(f, "we moved from {from} to {to}"),
            Self::MoveRefused { notify, .. } => {
                write!(f, "the peer does not take our new address: {notify}")
            }
            Self::VirtualAddresses { addresses, dns, .. } => {
                if addresses.is_empty() {
                    return f.write_str("our virtual addresses are gone with the tunnel");
                }
                let list = |addresses: &[IpAddr]| {
                    let words: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                    words.join(", ")
                };
                write!(f, "the peer gave us {}", list(addresses))?;
                match dns.is_empty() {
                    true => Ok(()),
                    false => write!(f, "; name servers {}", list(dns)),
                }
            }
            Self::SinglePairs { notify, .. } => write!(
                f,
                "the peer does not take all subnets in one child SA ({notify}): asking for each pair of them"
            ),
            Self::SharesRefused { notify, .. } => write!(
                f,
                "the peer takes no further child SAs for single processors ({notify}): those without \
                 one share the fallback"
            ),
            Self::Inquiring { uri, .. } => {
                write!(f, "asking {uri} whether the peer's certificate was revoked")
            }
            Self::RevocationUnknown { doubt, .. } => write!(
                f,
                "it is not known whether a certificate was revoked, and remote.revocation = \"relaxed\" \
                 believes it: {doubt}"
            ),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::RetryScheduled { after, .. } => {
                write!(f, "trying again in {} s", after.as_secs_f32())
            }
            Self::GaveUp { tries, .. } => write!(
                f,
                "given up after {tries} tries (keying_tries); `espada up`, a packet where \
                 start = \"trap\", or the peer sets it up"
            ),
            Self::IkeV1 { remote } => write!(
                f,
                "{remote} speaks IKEv1, which RFC 9395 retired and Espada does not support; \
                 set the peer to IKEv2"
            ),
            Self::UnauthenticatedError { remote, notify, .. } => {
                write!(
                    f,
                    "{remote} sent {notify} unprotected; still waiting for a proper answer"
                )
            }
            Self::CookiesDemanded { half_open } => {
                write!(
                    f,
                    "{half_open} half-open IKE SAs: initiators must return a cookie first"
                )
            }
        }
    }
}
