//! What an endpoint and its connections are told to do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use espada_common::sa::{Mode, SecretBytes, TrafficSelector};

use crate::crypto::signature::PrivateKey;
use crate::identity::{Identity, IdentityPattern};
use crate::proposal::Proposal;
use crate::selector::Sides;
use crate::x509::{Certificate, Trust};

/// When an unanswered request is sent again (RFC 7296 section 2.1 asks for it, not for when).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retransmission {
    /// Wait after the first transmission.
    pub first: Duration,
    /// Each wait is this many times the one before.
    pub base: f64,
    /// No wait is longer than this.
    pub max: Duration,
    /// Transmissions in all; the peer is given up after the wait that follows the last.
    pub tries: u32,
}

impl Retransmission {
    /// Wait after transmission number `sent` (1 for the first).
    pub fn wait(&self, sent: u32) -> Duration {
        let factor = self
            .base
            .max(1.0)
            .powi(sent.saturating_sub(1).min(64) as i32);
        let seconds = self.first.as_secs_f64() * factor;
        Duration::from_secs_f64(seconds.min(self.max.as_secs_f64()))
    }
}

/// Bounds on what unauthenticated peers can make us remember (RFC 7296 section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpenLimits {
    /// Half-open IKE SAs in all; requests above it are dropped.
    pub total: usize,
    /// Half-open IKE SAs for one address.
    pub per_address: usize,
    /// From this many half-open IKE SAs on, initiators must return a cookie first.
    pub cookie_threshold: usize,
    /// A half-open IKE SA is forgotten after this time.
    pub timeout: Duration,
}

/// Settings of an endpoint that no single connection owns.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointConfig {
    /// Our IKE port.
    pub port: u16,
    /// Our port for IKE with the non-ESP marker and ESP in UDP (RFC 3948).
    pub nat_port: u16,
    /// When requests are sent again and given up.
    pub retransmission: Retransmission,
    /// Octets of the IP datagrams that larger messages are sent in, if the peer understands fragments
    /// (RFC 7383); `None` neither sends nor accepts any.
    pub fragment_size: Option<usize>,
    /// Bounds on half-open IKE SAs.
    pub half_open: HalfOpenLimits,
    /// How long a cookie secret is used before the next takes over; the one before stays valid.
    pub cookie_rotation: Duration,
    /// Interval of NAT keepalives (RFC 3948 section 4) while we are behind a NAT.
    pub nat_keepalive: Duration,
    /// First wait before a failed `start = "start"` connection is tried again; doubles up to `retry_max`.
    pub retry_first: Duration,
    /// Longest wait before such a connection is tried again.
    pub retry_max: Duration,
    /// Gateways may send us to others (RFC 5685).
    pub follow_redirects: bool,
    /// Answers per second to datagrams that belong to no IKE SA (INVALID_IKE_SPI and the like).
    pub stateless_answers_per_second: u32,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            port: 500,
            nat_port: 4500,
            retransmission: Retransmission {
                first: Duration::from_millis(500),
                base: 1.8,
                max: Duration::from_secs(16),
                tries: 10,
            },
            fragment_size: Some(1280),
            half_open: HalfOpenLimits {
                total: 1000,
                per_address: 20,
                cookie_threshold: 50,
                timeout: Duration::from_secs(30),
            },
            cookie_rotation: Duration::from_secs(60),
            nat_keepalive: Duration::from_secs(20),
            retry_first: Duration::from_secs(2),
            retry_max: Duration::from_secs(60),
            follow_redirects: true,
            stateless_answers_per_second: 100,
        }
    }
}

/// A pre-shared key and whom it is for.
#[derive(Clone, Debug)]
pub struct PskSecret {
    /// The identities that share it: ours and the peer's, only the peer's, or none (anybody).
    pub ids: Vec<Identity>,
    /// The key.
    pub secret: SecretBytes,
    /// Where it was read, as `file:line`.
    pub origin: String,
}

/// A private key of ours and what shows to peers whose it is.
#[derive(Debug)]
pub struct Credential {
    /// The key.
    pub key: PrivateKey,
    /// Our certificate, then those of authorities up to one that peers trust; none for a raw public key.
    pub certificates: Vec<Arc<Certificate>>,
    /// Where it is configured, as `file:line`.
    pub origin: String,
}

/// A key that both ends have beforehand and mix into those of the SA (RFC 8784).
#[derive(Clone, Debug)]
pub struct Ppk {
    /// What both ends call it.
    pub id: String,
    /// The key.
    pub secret: SecretBytes,
    /// Without it there is no IKE SA.
    pub required: bool,
    /// Where it was read, as `file:line`.
    pub origin: String,
}

/// How we prove who we are.
#[derive(Clone, Debug)]
pub enum LocalAuth {
    /// With the pre-shared key of the two identities.
    Psk,
    /// With a signature.
    PublicKey(Arc<Credential>),
}

/// When peers are sent our certificates, or our raw public key (RFC 7296 section 3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendCert {
    /// With every proof.
    #[default]
    Always,
    /// If the peer asks for any (CERTREQ).
    IfAsked,
    /// Not at all: the peer has them.
    Never,
}

/// How the peer must prove who it is.
#[derive(Clone, Debug)]
pub enum RemoteAuth {
    /// With the pre-shared key of the two identities.
    Psk,
    /// With a signature by a key that this trusts.
    PublicKey(Arc<Trust>),
}

/// Who must answer, or who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAddress {
    /// This address.
    Address(IpAddr),
    /// Anybody: such a connection can only respond.
    Any,
}

/// Whom the peer must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteIdentity {
    /// This identity.
    Is(Identity),
    /// One that matches this pattern.
    Matches(IdentityPattern),
    /// The address it is configured with, as an identity.
    Address,
    /// Anybody who knows a key.
    Any,
}

/// What is done when the peer is found dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpdAction {
    /// Set the connection up again.
    Restart,
    /// Forget the SAs; policies stay, so nothing leaves in clear.
    Clear,
    /// Forget the SAs; the next packet sets the connection up again.
    Trap,
}

/// Dead peer detection (RFC 7296 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dpd {
    /// Silence after which the peer is asked.
    pub delay: Duration,
    /// What is done when it does not answer.
    pub action: DpdAction,
}

/// What sets a connection up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAction {
    /// Loading it, and again whenever it fails.
    Start,
    /// The first packet for it.
    Trap,
    /// `espada up`, or the peer.
    None,
}

/// When ESP is carried in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncapsulationPolicy {
    /// When there is a NAT on the path, and when the peer says that it prefers it as we do (see
    /// [`Notice::UdpAgreed`](crate::Notice::UdpAgreed)).
    Auto,
    /// Always: the peer is told of a NAT that is not there.
    Udp,
    /// Only when there is a NAT on the path, which native ESP would not pass.
    Esp,
}

/// When an SA is replaced, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Rekey after this long, less a random part of up to `jitter`.
    pub soft: Duration,
    /// Delete after this long, rekeyed or not.
    pub hard: Duration,
    /// Largest random time subtracted from `soft`, so that two ends seldom rekey at once.
    pub jitter: Duration,
}

/// How much a child SA carries in one direction until it is replaced, and until it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Rekey after this much, less a random part of up to `jitter`.
    pub soft: u64,
    /// Delete after this much, rekeyed or not.
    pub hard: u64,
    /// Largest random part subtracted from `soft`.
    pub jitter: u64,
}

/// One setting as it stands in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingLine {
    /// Line number, from 1.
    pub line: u32,
    /// The value as written, TOML quotes included.
    pub value: String,
}

/// Where a connection's settings were read, so that a refusal can name the line to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingOrigin {
    /// File name for messages.
    pub file: String,
    /// By dotted name: `ike`, `esp`, `auth`, `local.address`, `local.id`, `local.subnets`, `remote.…`.
    pub settings: BTreeMap<String, SettingLine>,
}

/// Whether the first child SA comes in an exchange of its own instead of IKE_AUTH (RFC 6023).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Childless {
    /// No, and the peer may not either.
    Never,
    /// If the peer wants it so.
    Allow,
    /// If the peer can.
    Prefer,
    /// Whoever cannot is refused when we call.
    Force,
}

/// Addresses for peers that ask for one, each of which is leased to one identity at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name in the configuration; leases outlive changes of it by this.
    pub name: Arc<str>,
    /// The addresses, of one family.
    pub addresses: TrafficSelector,
    /// Name servers that the peers are told.
    pub dns: Vec<IpAddr>,
}

/// One connection: a peer and the subnets behind both ends.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Its name; policies and child SAs carry it.
    pub name: Arc<str>,
    /// Our address, or `None` for whichever the host sends from (see `Endpoint::set_source`).
    pub local_address: Option<IpAddr>,
    /// The peer's address.
    pub remote_address: RemoteAddress,
    /// The peer's IKE port (500).
    pub remote_port: u16,
    /// Who we say we are; `None` for our address.
    pub local_id: Option<Identity>,
    /// Whom the peer must prove to be.
    pub remote_id: RemoteIdentity,
    /// How we prove who we are.
    pub local_auth: LocalAuth,
    /// When the peer is sent our certificates.
    pub send_cert: SendCert,
    /// How the peer must prove who it is.
    pub remote_auth: RemoteAuth,
    /// What goes into the keys besides the key exchange.
    pub ppk: Option<Arc<Ppk>>,
    /// RSA signatures over SHA-1 are accepted from peers without RFC 7427. Whoever can make
    /// collisions within the time of a handshake could stand in for such a peer.
    pub sha1_signatures: bool,
    /// IKE proposals, in order of preference.
    pub ike: Vec<Proposal>,
    /// ESP proposals, in order of preference.
    pub esp: Vec<Proposal>,
    /// Tunnel mode, or transport mode between the two hosts (RFC 7296 section 1.3.1).
    pub mode: Mode,
    /// Selectors on our side. In transport mode only what of them is our own address counts, and
    /// none at all stand for everything of it; see [`ConnectionConfig::sides`].
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side, in the same way.
    pub remote_ts: Vec<TrafficSelector>,
    /// Dead peer detection, `None` to switch it off.
    pub dpd: Option<Dpd>,
    /// What sets the connection up.
    pub start: StartAction,
    /// How many negotiations may fail in a row before the connection is no longer set up by itself; 0
    /// for any number.
    pub keying_tries: u32,
    /// When ESP is carried in UDP.
    pub encapsulation: EncapsulationPolicy,
    /// Replay window of the child SAs in packets, 0 for none.
    pub replay_window: u32,
    /// How many processors may have child SAs of their own beside the first one (RFC 9611), if the
    /// peer agrees; `None` for none.
    pub processors: Option<u32>,
    /// Lifetime of IKE SAs.
    pub ike_lifetime: Lifetime,
    /// Lifetime of child SAs.
    pub child_lifetime: Lifetime,
    /// Addresses in the peer's network to ask it for (RFC 7296 section 2.19); an unspecified one stands
    /// for any of its family. They are our side's selectors where `local_ts` is empty.
    pub vips: Vec<IpAddr>,
    /// What peers that ask for an address get one from. It is their side's selector where `remote_ts`
    /// is empty, and then they must ask.
    pub pools: Vec<Arc<Pool>>,
    /// Whether the first child SA comes in an exchange of its own.
    pub childless: Childless,
    /// The IKE SA goes on when the address of an end changes, if the peer agrees (RFC 4555).
    pub mobike: bool,
    /// One pair of selectors in each child SA, instead of all in one where the peer takes them.
    pub single_pairs: bool,
    /// Octets of inner packets that a child SA carries, `None` for no limit.
    pub child_bytes: Option<Volume>,
    /// Packets that a child SA carries, `None` for no limit.
    pub child_packets: Option<Volume>,
    /// Where all this was read.
    pub origin: SettingOrigin,
}

impl ConnectionConfig {
    /// The selectors of both sides for hosts at these addresses: in transport mode the hosts alone.
    pub fn sides(&self, local: IpAddr, remote: IpAddr) -> Sides {
        let side = |configured: &[TrafficSelector], host: IpAddr| {
            let host = TrafficSelector::host(host);
            match self.mode {
                Mode::Tunnel => configured.to_vec(),
                Mode::Transport if configured.is_empty() => vec![host],
                Mode::Transport => configured
                    .iter()
                    .filter_map(|selector| selector.intersect(&host))
                    .collect(),
            }
        };
        Sides {
            local: side(&self.local_ts, local),
            remote: side(&self.remote_ts, remote),
        }
    }
}
