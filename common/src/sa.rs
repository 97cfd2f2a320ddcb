//! Security associations as the IKE side describes them and the data plane carries them:
//! suites, keys, selectors, the commands that change them and the events that come back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// Encryption of an ESP (or IKE) SA, with the IANA transform it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-GCM (RFC 4106, RFC 5282). Key length in bits: 128, 192 or 256.
    AesGcm(u16, GcmIcv),
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602). Key length in bits: 128, 192 or 256.
    AesCbc(u16),
    /// AES-CCM (RFC 4309, RFC 5282). Key length in bits: 128, 192 or 256.
    AesCcm(u16, GcmIcv),
    /// AES-CTR (RFC 3686, RFC 5930). Key length in bits: 128, 192 or 256.
    AesCtr(u16),
    /// AES-GMAC (RFC 4543), which authenticates and does not encrypt. Key length in bits: 128, 192
    /// or 256.
    AesGmac(u16),
    /// 3DES-CBC (RFC 2451). Insecure: blocks of 64 bits give plaintext away after some gigabytes.
    TripleDes,
    /// No encryption (RFC 2410).
    Null,
}

/// Octets of an ICV of AES-GCM and AES-CCM, each with a transform of its own (RFC 4106 section 8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GcmIcv {
    /// 8 octets.
    Eight = 8,
    /// 12 octets.
    Twelve = 12,
    /// 16 octets, the whole tag.
    Sixteen = 16,
}

impl GcmIcv {
    /// Octets.
    pub const fn octets(self) -> usize {
        self as usize
    }
}

impl Cipher {
    /// Every cipher, with every key length and ICV.
    pub fn all() -> impl Iterator<Item = Self> {
        const BITS: [u16; 3] = [128, 192, 256];
        const ICVS: [GcmIcv; 3] = [GcmIcv::Sixteen, GcmIcv::Twelve, GcmIcv::Eight];
        let gcm = ICVS
            .into_iter()
            .flat_map(|icv| BITS.map(|bits| Self::AesGcm(bits, icv)));
        gcm.chain([Self::ChaCha20Poly1305])
            .chain(BITS.map(Self::AesCbc))
            .chain(
                ICVS.into_iter()
                    .flat_map(|icv| BITS.map(|bits| Self::AesCcm(bits, icv))),
            )
            .chain(BITS.map(Self::AesCtr))
            .chain(BITS.map(Self::AesGmac))
            .chain([Self::TripleDes, Self::Null])
    }

    /// Whether it is accepted only with `insecure = true`: it hides too little, or nothing.
    pub const fn is_insecure(self) -> bool {
        matches!(self, Self::AesGmac(_) | Self::TripleDes | Self::Null)
    }

    /// Whether it can protect IKE messages as well as ESP.
    pub const fn fits_ike(self) -> bool {
        !matches!(self, Self::AesGmac(_) | Self::Null)
    }

    /// True for combined-mode ciphers, which take no separate integrity algorithm.
    pub const fn is_aead(self) -> bool {
        matches!(
            self,
            Self::AesGcm(..) | Self::AesCcm(..) | Self::AesGmac(_) | Self::ChaCha20Poly1305
        )
    }

    /// Octets of key material taken from KEYMAT, salt included.
    pub const fn keymat_len(self) -> usize {
        match self {
            Self::AesGcm(bits, _) | Self::AesGmac(bits) | Self::AesCtr(bits) => {
                bits as usize / 8 + 4
            }
            Self::AesCcm(bits, _) => bits as usize / 8 + 3,
            Self::ChaCha20Poly1305 => 32 + 4,
            Self::AesCbc(bits) => bits as usize / 8,
            Self::TripleDes => 24,
            Self::Null => 0,
        }
    }

    /// Octets of salt (of AES-CTR the nonce) at the end of the key material.
    pub const fn salt_len(self) -> usize {
        match self {
            Self::AesCcm(..) => 3,
            Self::AesCbc(_) | Self::TripleDes | Self::Null => 0,
            _ => 4,
        }
    }

    /// Octets of IV in every packet.
    pub const fn iv_len(self) -> usize {
        match self {
            Self::AesCbc(_) => 16,
            Self::Null => 0,
            _ => 8,
        }
    }

    /// Octets of ICV that it makes itself, 0 where that takes an integrity algorithm.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::AesGcm(_, icv) | Self::AesCcm(_, icv) => icv.octets(),
            Self::ChaCha20Poly1305 | Self::AesGmac(_) => 16,
            Self::AesCbc(_) | Self::AesCtr(_) | Self::TripleDes | Self::Null => 0,
        }
    }

    /// What the plaintext (trailer included) is padded to, in octets. ESP itself asks for 4.
    pub const fn block_len(self) -> usize {
        match self {
            Self::AesCbc(_) => 16,
            Self::TripleDes => 8,
            _ => 4,
        }
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
    /// AES-XCBC-MAC-96 (RFC 3566).
    AesXcbc96,
    /// AES-CMAC-96 (RFC 4494).
    AesCmac96,
}

impl Integrity {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::HmacSha1_96,
        Self::HmacSha256_128,
        Self::HmacSha384_192,
        Self::HmacSha512_256,
        Self::AesXcbc96,
        Self::AesCmac96,
    ];

    /// Key octets.
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
            Self::AesXcbc96 | Self::AesCmac96 => 16,
        }
    }

    /// ICV octets.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 | Self::AesXcbc96 | Self::AesCmac96 => 12,
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
    /// Every suite, without extended sequence numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        Cipher::all().flat_map(|cipher| {
            let alone = cipher.is_aead().then_some(None);
            let paired = Integrity::ALL.into_iter().map(Some);
            alone
                .into_iter()
                .chain(paired.filter(move |_| !cipher.is_aead()))
                .map(move |integrity| Self {
                    cipher,
                    integrity,
                    esn: false,
                })
        })
    }

    /// ICV octets at the end of each packet.
    pub const fn icv_len(&self) -> usize {
        match self.integrity {
            Some(integrity) => integrity.icv_len(),
            None => self.cipher.icv_len(),
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AesGcm(bits, icv) => write!(f, "aes{bits}gcm{}", icv.octets()),
            Self::ChaCha20Poly1305 => f.write_str("chacha20poly1305"),
            Self::AesCbc(bits) => write!(f, "aes{bits}"),
            Self::AesCcm(bits, icv) => write!(f, "aes{bits}ccm{}", icv.octets()),
            Self::AesCtr(bits) => write!(f, "aes{bits}ctr"),
            Self::AesGmac(bits) => write!(f, "aes{bits}gmac"),
            Self::TripleDes => f.write_str("3des"),
            Self::Null => f.write_str("null"),
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
            Self::AesXcbc96 => "aesxcbc",
            Self::AesCmac96 => "aescmac",
        })
    }
}

/// strongSwan's proposal keywords: `aes256gcm16`, `aes128gcm8`, `aes256-sha256`, `…-esn`.
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

impl TrafficSelector {
    /// Every protocol and port of a range of addresses; `None` if they are of two families or
    /// the wrong way round.
    pub fn range(start: IpAddr, end: IpAddr) -> Option<Self> {
        let valid = start.is_ipv4() == end.is_ipv4() && start <= end;
        valid.then_some(Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start,
            end,
        })
    }

    /// Every protocol and port of one address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: address,
            end: address,
        }
    }

    /// Every protocol and port of a prefix, whatever host bits `address` has; `None` if the
    /// family has no prefix of that length.
    pub fn prefix(address: IpAddr, length: u8) -> Option<Self> {
        let bits = u32::from(width(address)).checked_sub(u32::from(length))?;
        let hosts = 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
        let network = to_number(address) & !hosts;
        let is_ipv4 = address.is_ipv4();
        Self::range(
            from_number(network, is_ipv4),
            from_number(network | hosts, is_ipv4),
        )
    }

    /// The same addresses for one protocol and a range of ports; start 65535 and end 0 is OPAQUE.
    pub fn with_ports(self, protocol: u8, start_port: u16, end_port: u16) -> Self {
        Self {
            protocol,
            start_port,
            end_port,
            ..self
        }
    }

    /// Whether every port is covered, those of packets without ports included.
    pub fn is_any_port(&self) -> bool {
        self.start_port == 0 && self.end_port == u16::MAX
    }

    /// Whether it stands for packets whose ports cannot be seen (RFC 7296 section 3.13.1).
    pub fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    /// Whether `address` is in the range.
    pub fn contains_addr(&self, address: IpAddr) -> bool {
        // Both ends are of one family, and IpAddr orders IPv4 before IPv6.
        self.start <= address && address <= self.end
    }

    /// Whether a packet with this address, protocol and port on the selector's side is covered.
    /// `port` is `None` where there is none to see, as in later fragments; for ICMP it is type * 256
    /// + code.
    #[inline]
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.contains_addr(address)
            && (self.protocol == 0 || self.protocol == protocol)
            && match port {
                _ if self.is_any_port() => true,
                Some(port) => self.start_port <= port && port <= self.end_port,
                // RFC 4301 section 4.4.1.1 lets only ANY include OPAQUE.
                None => self.is_opaque(),
            }
    }

    /// Whether everything that `other` covers is covered.
    pub fn contains(&self, other: &Self) -> bool {
        self.intersect(other) == Some(*other)
    }

    /// What both cover; `None` if that is nothing.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.start.is_ipv4() != other.start.is_ipv4() {
            return None;
        }
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        let protocol = match (self.protocol, other.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (ours, theirs) if ours == theirs => ours,
            _ => return None,
        };
        let (start_port, end_port) = if self.is_any_port() {
            (other.start_port, other.end_port)
        } else if other.is_any_port() || (self.is_opaque() && other.is_opaque()) {
            (self.start_port, self.end_port)
        } else {
            let ports = (
                self.start_port.max(other.start_port),
                self.end_port.min(other.end_port),
            );
            if ports.0 > ports.1 {
                return None;
            }
            ports
        };
        (start <= end).then_some(Self {
            protocol,
            start_port,
            end_port,
            start,
            end,
        })
    }

    /// The fewest prefixes that hold exactly its addresses, in ascending order: network and length.
    pub fn prefixes(&self) -> Vec<(IpAddr, u8)> {
        let (is_ipv4, width) = (self.start.is_ipv4(), width(self.start));
        let last = to_number(self.end);
        let mut next = to_number(self.start);
        let mut prefixes = Vec::new();
        while self.end.is_ipv4() == is_ipv4 && next <= last {
            // As large as the alignment of its first address and the addresses left allow.
            let aligned = next.trailing_zeros().min(u32::from(width));
            let left = match (last - next).checked_add(1) {
                Some(count) => count.ilog2(),
                None => 128,
            };
            let bits = aligned.min(left) as u8;
            prefixes.push((from_number(next, is_ipv4), width - bits));
            let size = 1u128.checked_shl(u32::from(bits));
            let Some(following) = size.and_then(|size| next.checked_add(size)) else {
                break;
            };
            next = following;
        }
        prefixes
    }
}

/// Bits of an address of this family.
const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn from_number(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_ipv4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// Protocols that have a name in selectors.
const PROTOCOLS: [(u8, &str); 8] = [
    (1, "icmp"),
    (4, "ipip"),
    (6, "tcp"),
    (17, "udp"),
    (47, "gre"),
    (58, "ipv6-icmp"),
    (89, "ospf"),
    (132, "sctp"),
];

/// Number of a protocol that has a name in selectors.
pub fn protocol_by_name(name: &str) -> Option<u8> {
    PROTOCOLS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(number, _)| *number)
}

/// ICMP and ICMPv6, whose selectors hold type and code in place of ports (RFC 4301 section 4.4.1.1).
pub fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// As strongSwan writes it: `10.0.0.0/24`, `10.0.0.1..10.0.0.9[tcp/80]`, `2001:db8::/64[icmp/8(0)]`.
impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.prefixes() {
            [(network, length)] => write!(f, "{network}/{length}")?,
            _ => write!(f, "{}..{}", self.start, self.end)?,
        }
        if self.protocol == 0 && self.is_any_port() {
            return Ok(());
        }
        match PROTOCOLS
            .iter()
            .find(|(number, _)| *number == self.protocol)
        {
            Some((_, name)) => write!(f, "[{name}")?,
            None if self.protocol == 0 => f.write_str("[any")?,
            None => write!(f, "[{}", self.protocol)?,
        }
        let (start, end) = (self.start_port, self.end_port);
        if self.is_any_port() {
        } else if self.is_opaque() {
            f.write_str("/opaque")?;
        } else if is_icmp(self.protocol) {
            match (start.to_be_bytes(), end.to_be_bytes()) {
                ([kind, 0], [last, u8::MAX]) if kind == last => write!(f, "/{kind}")?,
                ([kind, code], _) if start == end => write!(f, "/{kind}({code})")?,
                ([kind, code], [last, last_code]) => {
                    write!(f, "/{kind}({code})-{last}({last_code})")?;
                }
            }
        } else if start == end {
            write!(f, "/{start}")?;
        } else {
            write!(f, "/{start}-{end}")?;
        }
        f.write_str("]")
    }
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

/// Which packets a pair carries of those that its selectors cover, where both ends have several pairs
/// with the same selectors (RFC 9611).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Share {
    /// All of them: there is no other pair.
    #[default]
    Whole,
    /// Those of processors that have no pair of their own.
    Fallback,
    /// Those sent by this processor, by its number.
    Processor(u32),
    /// None: it is for a processor of the peer's, and ours have theirs. What arrives is received.
    Peer,
}

/// `processor 3`, as status and logs show it.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Fallback => f.write_str("fallback"),
            Self::Processor(number) => write!(f, "processor {number}"),
            Self::Peer => f.write_str("peer"),
        }
    }
}

/// Names a child SA (a pair of ESP SAs) for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildSaId(pub u64);

/// How much may pass in one direction of a pair; the other one has as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Octets of inner packets, `None` for any number.
    pub bytes: Option<u64>,
    /// Packets, `None` for any number.
    pub packets: Option<u64>,
}

impl Allowance {
    /// Whether one of the two is used up.
    pub fn is_used_up(&self, bytes: u64, packets: u64) -> bool {
        self.bytes.is_some_and(|most| bytes >= most)
            || self.packets.is_some_and(|most| packets >= most)
    }
}

/// The lifetime of a pair in bytes and packets (RFC 4301 section 4.4.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// When it is to be rekeyed ([`Event::Expire`], not hard).
    pub soft: Allowance,
    /// When it carries nothing more ([`Event::Expire`], hard).
    pub hard: Allowance,
}

impl Allowances {
    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

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
    /// Which of the packets that the selectors cover it carries.
    pub share: Share,
    /// Selectors on our side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors on the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// Replay window in packets, 0 switches replay protection off.
    pub replay_window: u32,
    /// How much it may carry beside that.
    pub allowances: Allowances,
    /// Hard lifetime from installation on (RFC 4301 section 4.4.2.1): an engine that outlives the
    /// control side stops the pair by itself when it is over.
    pub lifetime: Duration,
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
    /// Tunnel or transport: transport mode has no routes of its own.
    pub mode: Mode,
    /// Virtual addresses of ours in the peer's network, for the plaintext interface: packets of this
    /// host go out with them.
    pub addresses: Vec<IpAddr>,
}

/// When the successor of a rekeyed pair takes over sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// At once: the peer has it (we initiated the rekey and have the answer). Whichever waited for the
    /// old pair to be removed waits for the successor to be from then on: two rekeys have crossed, and
    /// this one prevailed.
    Now,
    /// When the old pair is removed: the peer will have it only once our answer has arrived, and
    /// then deletes the old one (RFC 7296 section 2.8).
    WithRemoval,
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
    /// A new pair takes over from an old one: it receives at once, and the old one receives until
    /// `RemoveSa`.
    RekeySa {
        /// The pair that is replaced.
        old: ChildSaId,
        /// Its successor.
        new: Box<ChildSa>,
        /// When the successor sends.
        takeover: Takeover,
    },
    /// A pair sends no longer: whichever waited for its removal sends. It receives until `RemoveSa`, as
    /// packets of the peer's may still be on their way.
    Retire {
        /// Which.
        id: ChildSaId,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: &str, end: &str) -> TrafficSelector {
        TrafficSelector::range(start.parse().unwrap(), end.parse().unwrap()).unwrap()
    }

    fn prefix(address: &str, length: u8) -> TrafficSelector {
        TrafficSelector::prefix(address.parse().unwrap(), length).unwrap()
    }

    #[test]
    fn suites_have_names_of_their_own_and_add_up() {
        let names: std::collections::HashSet<_> =
            EspSuite::all().map(|suite| suite.to_string()).collect();
        assert_eq!((names.len(), EspSuite::all().count()), (70, 70));
        for name in ["aes192gcm16", "aes256gcm8", "aes128gcm12", "aes192-sha384"] {
            assert!(names.contains(name), "{name}");
        }
        let short = EspSuite::all().find(|suite| suite.to_string() == "aes192gcm12");
        let short = short.unwrap();
        assert_eq!((short.icv_len(), short.cipher.keymat_len()), (12, 28));
        assert!(EspSuite::all().all(|suite| suite.cipher.is_aead() == suite.integrity.is_none()));
    }

    #[test]
    fn prefixes_hold_their_ends() {
        assert_eq!(prefix("10.1.2.3", 24), range("10.1.2.0", "10.1.2.255"));
        assert_eq!(
            prefix("10.1.2.3", 32),
            TrafficSelector::host("10.1.2.3".parse().unwrap())
        );
        assert_eq!(prefix("10.1.2.3", 0), range("0.0.0.0", "255.255.255.255"));
        assert_eq!(
            prefix("2001:db8::1", 64),
            range("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff")
        );
        let everything = prefix("::1", 0);
        assert_eq!(
            everything,
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        );
        assert_eq!(everything.prefixes(), [("::".parse().unwrap(), 0)]);
        assert_eq!(
            TrafficSelector::prefix("10.0.0.0".parse().unwrap(), 33),
            None
        );
        assert_eq!(
            TrafficSelector::range("10.0.0.1".parse().unwrap(), "::2".parse().unwrap()),
            None
        );
    }

    #[test]
    fn ranges_become_prefixes() {
        let show = |selector: TrafficSelector| {
            let prefixes = selector.prefixes().into_iter();
            prefixes
                .map(|(network, length)| format!("{network}/{length}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            show(range("10.0.0.1", "10.0.0.9")),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/31"]
        );
        assert_eq!(
            show(range("255.255.255.255", "255.255.255.255")),
            ["255.255.255.255/32"]
        );
        assert_eq!(show(range("0.0.0.0", "255.255.255.254")).len(), 32);
        assert_eq!(show(range("::2", "::5")), ["::2/127", "::4/127"]);
    }

    #[test]
    fn shown_as_strongswan_shows_them() {
        let shown = [
            (prefix("10.0.0.0", 24), "10.0.0.0/24"),
            (
                range("10.0.0.1", "10.0.0.9").with_ports(6, 80, 80),
                "10.0.0.1..10.0.0.9[tcp/80]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(17, 1024, 2047),
                "10.0.0.0/24[udp/1024-2047]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(50, 0, 65535),
                "10.0.0.0/24[50]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(0, 80, 80),
                "10.0.0.0/24[any/80]",
            ),
            (
                prefix("10.0.0.0", 24).with_ports(1, 0x800, 0x8ff),
                "10.0.0.0/24[icmp/8]",
            ),
            (
                prefix("::", 0).with_ports(58, 0x8000, 0x8000),
                "::/0[ipv6-icmp/128(0)]",
            ),
            (
                prefix("10.0.0.1", 32).with_ports(6, 65535, 0),
                "10.0.0.1/32[tcp/opaque]",
            ),
        ];
        for (selector, text) in shown {
            assert_eq!(selector.to_string(), text);
        }
    }

    #[test]
    fn opaque_meets_any_and_itself() {
        let any = prefix("10.0.0.0", 24);
        let opaque = any.with_ports(6, 65535, 0);
        let port = any.with_ports(6, 80, 80);
        assert_eq!(any.intersect(&opaque), Some(opaque));
        assert_eq!(opaque.intersect(&opaque), Some(opaque));
        assert_eq!(opaque.intersect(&port), None);
        let address = "10.0.0.7".parse().unwrap();
        assert!(any.matches(address, 6, None) && opaque.matches(address, 6, None));
        assert!(!opaque.matches(address, 6, Some(80)) && !port.matches(address, 6, None));
    }

    prop_compose! {
        fn selector()(a in 0u8..16, b in 0u8..16, protocol in 0u8..2, ports in any::<bool>(),
                      p in 0u16..4, q in 0u16..4) -> TrafficSelector {
            let address = |low: u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, low));
            let selector = TrafficSelector::range(address(a.min(b)), address(a.max(b))).unwrap();
            let (start, end) = if ports { (p.min(q), p.max(q)) } else { (0, u16::MAX) };
            selector.with_ports(protocol * 6, start, end)
        }
    }

    proptest! {
        #[test]
        fn an_intersection_is_what_both_match(a in selector(), b in selector(), low in 0u8..16,
                                              tcp in any::<bool>(), port in prop::option::of(0u16..4)) {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, low));
            let matches = |s: &TrafficSelector| s.matches(address, if tcp { 6 } else { 17 }, port);
            let both = a.intersect(&b);
            prop_assert_eq!(both.is_some_and(|both| matches(&both)), matches(&a) && matches(&b));
            prop_assert_eq!(both, b.intersect(&a));
            if let Some(both) = both {
                prop_assert!(a.contains(&both) && b.contains(&both));
            }
        }

        #[test]
        fn prefixes_are_exactly_the_range(a: u32, b: u32) {
            let (start, end) = (a.min(b), a.max(b));
            let selector = TrafficSelector::range(
                Ipv4Addr::from(start).into(), Ipv4Addr::from(end).into()).unwrap();
            let mut next = u64::from(start);
            for (network, length) in selector.prefixes() {
                let part = TrafficSelector::prefix(network, length).unwrap();
                prop_assert_eq!(part.start, network);
                prop_assert_eq!(to_number(part.start), u128::from(next));
                next = to_number(part.end) as u64 + 1;
            }
            prop_assert_eq!(next, u64::from(end) + 1);
        }
    }
}
