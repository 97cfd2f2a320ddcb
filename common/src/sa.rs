//! Security associations as the IKE side describes them and the data plane carries them:
//! suites, keys, selectors, the commands that change them and the events that come back.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use zeroize::Zeroizing;

/// Encryption of an ESP (or IKE) SA, with the IANA transform it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-GCM with a 16-octet ICV (RFC 4106, RFC 5282). Key length in bits: 128, 192 or 256.
    AesGcm16(u16),
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602). Key length in bits: 128, 192 or 256.
    AesCbc(u16),
}

impl Cipher {
    /// True for combined-mode ciphers, which take no separate integrity algorithm.
    pub const fn is_aead(self) -> bool {
        matches!(self, Self::AesGcm16(_) | Self::ChaCha20Poly1305)
    }

    /// Octets of key material taken from KEYMAT, salt included.
    pub const fn keymat_len(self) -> usize {
        match self {
            Self::AesGcm16(bits) => bits as usize / 8 + 4,
            Self::ChaCha20Poly1305 => 32 + 4,
            Self::AesCbc(bits) => bits as usize / 8,
        }
    }

    /// Octets of salt at the end of the key material (0 for CBC).
    pub const fn salt_len(self) -> usize {
        if self.is_aead() { 4 } else { 0 }
    }

    /// Octets of IV in every packet.
    pub const fn iv_len(self) -> usize {
        if self.is_aead() { 8 } else { 16 }
    }

    /// What the plaintext (trailer included) is padded to, in octets. ESP itself asks for 4.
    pub const fn block_len(self) -> usize {
        if self.is_aead() { 4 } else { 16 }
    }
}

/// Integrity algorithm of a suite whose cipher is not an AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// HMAC-SHA1-96 (RFC 2404).
    HmacSha1_96,
    /// HMAC-SHA2-256-128 (RFC 4868).
    HmacSha256_128,
    /// HMAC-SHA2-384-192 (RFC 4868).
    HmacSha384_192,
    /// HMAC-SHA2-512-256 (RFC 4868).
    HmacSha512_256,
}

impl Integrity {
    /// Key octets.
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
        }
    }

    /// ICV octets.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            Self::HmacSha256_128 => 16,
            Self::HmacSha384_192 => 24,
            Self::HmacSha512_256 => 32,
        }
    }
}

/// What an ESP SA does to a packet. `integrity` is `None` exactly for AEAD ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EspSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Integrity, for ciphers that are not AEADs.
    pub integrity: Option<Integrity>,
    /// 64-bit extended sequence numbers (RFC 4303 section 2.2.1).
    pub esn: bool,
}

impl EspSuite {
    /// ICV octets at the end of each packet.
    pub const fn icv_len(&self) -> usize {
        match self.integrity {
            Some(integrity) => integrity.icv_len(),
            None => 16,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AesGcm16(bits) => write!(f, "aes{bits}gcm16"),
            Self::ChaCha20Poly1305 => f.write_str("chacha20poly1305"),
            Self::AesCbc(bits) => write!(f, "aes{bits}"),
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha1_96 => "sha1",
            Self::HmacSha256_128 => "sha256",
            Self::HmacSha384_192 => "sha384",
            Self::HmacSha512_256 => "sha512",
        })
    }
}

/// strongSwan's proposal keywords: `aes256gcm16`, `aes256-sha256`, `…-esn`.
impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{integrity}")?;
        }
        if self.esn {
            f.write_str("-esn")?;
        }
        Ok(())
    }
}

/// Key octets: zeroized on drop, never shown.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of key octets.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The octets, for the cipher that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} secret octets>", self.0.len())
    }
}

/// One direction of a child SA.
#[derive(Clone, Debug)]
pub struct HalfSa {
    /// Security parameters index, chosen by the receiver of this direction.
    pub spi: u32,
    /// Encryption key with the salt (AEAD) at its end: `Cipher::keymat_len` octets.
    pub encryption_key: SecretBytes,
    /// Integrity key, empty for AEADs.
    pub integrity_key: SecretBytes,
}

/// A range of addresses, protocol and ports (RFC 7296 section 3.13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficSelector {
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First port (or ICMP type and code), 0 with `end_port` 65535 for any.
    pub start_port: u16,
    /// Last port, inclusive.
    pub end_port: u16,
    /// First address; both addresses are of one family.
    pub start: IpAddr,
    /// Last address, inclusive.
    pub end: IpAddr,
}

/// Tunnel or transport mode (RFC 4301 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The whole inner IP packet is carried.
    Tunnel,
    /// The outer IP header is the packet's own.
    Transport,
}

/// What carries ESP between the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP protocol 50 (RFC 4303).
    Esp,
    /// UDP, port 4500 on our side (RFC 3948).
    Udp,
}

/// Where a child SA's packets travel: addresses, and ports where they are in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Our address; the port matters for `Encapsulation::Udp`.
    pub local: SocketAddr,
    /// The peer's address; the port matters for `Encapsulation::Udp`.
    pub remote: SocketAddr,
    /// ESP or ESP in UDP.
    pub encapsulation: Encapsulation,
}

/// Names a child SA (a pair of ESP SAs) for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildSaId(pub u64);

/// A negotiated pair of ESP SAs with everything an engine needs to carry it.
#[derive(Clone, Debug)]
pub struct ChildSa {
    /// Handle for later commands, events and statistics.
    pub id: ChildSaId,
    /// Name of the configured connection, which is also its policies' name.
    pub connection: Arc<str>,
    /// Algorithms, the same in both directions.
    pub suite: EspSuite,
    /// What we receive: its SPI is ours.
    pub inbound: HalfSa,
    /// What we send: its SPI is the peer's.
    pub outbound: HalfSa,
    /// Addresses and encapsulation.
    pub path: Path,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Replay window in packets, 0 switches replay protection off.
    pub replay_window: u32,
}

/// The SPD entry of a connection: these selectors are protected whether or not an SA is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name of the configured connection.
    pub connection: Arc<str>,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Raise `Event::Acquire` for packets without an SA (`start = "trap"`).
    pub trap: bool,
}

/// What the control side asks of a data plane. Commands are carried out in order.
#[derive(Clone, Debug)]
pub enum Command {
    /// Protect a connection's selectors: routes into the tunnel interface, guard against clear text.
    InstallPolicy(Policy),
    /// Stop protecting a connection's selectors.
    RemovePolicy {
        /// Name of the connection.
        connection: Arc<str>,
    },
    /// A new pair of SAs: inbound first, then outbound.
    InstallSa(Box<ChildSa>),
    /// A new pair takes over from an old one: outbound moves at once, the old inbound stays
    /// until `RemoveSa`.
    RekeySa {
        /// The pair that is replaced.
        old: ChildSaId,
        /// Its successor.
        new: Box<ChildSa>,
    },
    /// Forget a pair.
    RemoveSa {
        /// Which.
        id: ChildSaId,
    },
    /// The peer (or we) moved: a new NAT mapping or a MOBIKE address change.
    MovePath {
        /// Which pair.
        id: ChildSaId,
        /// Where its packets travel from now on.
        path: Path,
    },
}

/// What a data plane tells the control side.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet needs an SA that is not there.
    Acquire {
        /// The connection whose policy it hit.
        connection: Arc<str>,
        /// Source and destination of the packet.
        source: IpAddr,
        /// Destination of the packet.
        destination: IpAddr,
    },
    /// A lifetime in bytes or packets ran out.
    Expire {
        /// Which pair.
        id: ChildSaId,
        /// True when it is no longer used at all, false when it should be rekeyed.
        hard: bool,
    },
    /// An authenticated ESP-in-UDP packet came from another address or port than the SA's.
    NatMoved {
        /// Which pair.
        id: ChildSaId,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// The sequence numbers of an outbound SA run low.
    SeqLow {
        /// Which pair.
        id: ChildSaId,
        /// Packets that can still be sent.
        remaining: u64,
    },
    /// A datagram on the ESP-in-UDP socket with the non-ESP marker (removed): IKE.
    IkeDatagram {
        /// Where it arrived.
        local: SocketAddr,
        /// Who sent it.
        remote: SocketAddr,
        /// The IKE message.
        payload: Vec<u8>,
    },
}

/// Counters of one direction of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfSaStats {
    /// Packets carried (authenticated, inside the window, within the selectors).
    pub packets: u64,
    /// Octets of inner packets carried.
    pub bytes: u64,
    /// Drops of this direction, by `DropReason` number.
    pub drops: [u64; crate::drops::DropReason::COUNT],
    /// When the last packet was carried.
    pub last_used: Option<Instant>,
}

/// Counters of a pair.
#[derive(Clone, Debug)]
pub struct ChildSaStats {
    /// Which pair.
    pub id: ChildSaId,
    /// What we received.
    pub inbound: HalfSaStats,
    /// What we sent.
    pub outbound: HalfSaStats,
}
