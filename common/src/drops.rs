//! One numbered enum of the reasons a packet is dropped, shared by the eBPF programs, the
//! engines, the log, the CLI and the metrics.

/// Why a packet was dropped. The number is the index in the BPF map `espada_drops`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The packet could not be parsed: truncated or with contradictory lengths.
    Malformed = 0,
    /// ESP with an SPI that no inbound SA has (RFC 4303 section 3.4.2).
    UnknownSpi = 1,
    /// The sequence number was seen before or lies left of the window (RFC 4303 section 3.4.3).
    Replay = 2,
    /// The ICV did not verify (RFC 4303 section 3.4.4).
    AuthFailed = 3,
    /// Padding, pad length or next header were wrong after decryption.
    BadPadding = 4,
    /// The inner packet does not match the SA's selectors (RFC 4301 section 5.2).
    SelectorMismatch = 5,
    /// A packet in clear for a protected pair of subnets arrived from the WAN (RFC 4301 section 5.2).
    ClearInbound = 6,
    /// A packet in clear for a protected pair of subnets was about to leave on the WAN.
    ClearOutbound = 7,
    /// No policy covers the packet that was routed into the tunnel interface.
    NoPolicy = 8,
    /// A policy covers the packet but no SA is established (an acquire event was raised).
    NoSa = 9,
    /// The outbound sequence number space is used up: RFC 4303 section 3.3.3 forbids wrapping.
    SequenceExhausted = 10,
    /// Larger than the path MTU and not to be fragmented; ICMP was sent where possible.
    TooBig = 11,
    /// TTL or hop limit ran out on the way into the tunnel.
    TtlExpired = 12,
    /// An ICMP message or extension header chain that the engine does not carry.
    Unsupported = 13,
    /// The WAN port could not take the packet (ring or socket full).
    WanFull = 14,
    /// The tunnel interface could not take the packet.
    TunFull = 15,
    /// No route or neighbour to the peer.
    NoRoute = 16,
    /// The SA was past its hard lifetime.
    Expired = 17,
    /// The outer packet did not arrive from or at the SA's addresses.
    WrongAddress = 18,
    /// The engine failed internally (a bug: please report it with the log).
    Internal = 19,
    /// CE-marked outer header over a not-ECT inner packet (RFC 6040 section 4.2).
    EcnCongestion = 20,
    /// A LAN interface could not take the packet, or a worker could not keep up with what arrived
    /// there (AF_XDP ring full).
    LanFull = 21,
}

impl DropReason {
    /// Number of reasons: the size of every array indexed by one.
    pub const COUNT: usize = 22;

    /// Every reason, in numeric order.
    pub const ALL: [DropReason; Self::COUNT] = [
        Self::Malformed,
        Self::UnknownSpi,
        Self::Replay,
        Self::AuthFailed,
        Self::BadPadding,
        Self::SelectorMismatch,
        Self::ClearInbound,
        Self::ClearOutbound,
        Self::NoPolicy,
        Self::NoSa,
        Self::SequenceExhausted,
        Self::TooBig,
        Self::TtlExpired,
        Self::Unsupported,
        Self::WanFull,
        Self::TunFull,
        Self::NoRoute,
        Self::Expired,
        Self::WrongAddress,
        Self::Internal,
        Self::EcnCongestion,
        Self::LanFull,
    ];

    /// The stable snake_case name used in JSON, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSpi => "unknown_spi",
            Self::Replay => "replay",
            Self::AuthFailed => "auth_failed",
            Self::BadPadding => "bad_padding",
            Self::SelectorMismatch => "selector_mismatch",
            Self::ClearInbound => "clear_inbound",
            Self::ClearOutbound => "clear_outbound",
            Self::NoPolicy => "no_policy",
            Self::NoSa => "no_sa",
            Self::SequenceExhausted => "sequence_exhausted",
            Self::TooBig => "too_big",
            Self::TtlExpired => "ttl_expired",
            Self::Unsupported => "unsupported",
            Self::WanFull => "wan_full",
            Self::TunFull => "tun_full",
            Self::NoRoute => "no_route",
            Self::Expired => "expired",
            Self::WrongAddress => "wrong_address",
            Self::Internal => "internal",
            Self::EcnCongestion => "ecn_congestion",
            Self::LanFull => "lan_full",
        }
    }

    /// One sentence for a person: what it usually means and where to look.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Malformed => "truncated or inconsistent packets; look at the path with tcpdump",
            Self::UnknownSpi => {
                "the peer still uses an SA we do not have; it should notice by DPD, or run `espada up` again"
            }
            Self::Replay => {
                "duplicates or heavy reordering on the path; a larger replay_window helps against reordering"
            }
            Self::AuthFailed => {
                "corrupted or forged packets, or the two ends disagree on keys or algorithm"
            }
            Self::BadPadding => "the peer pads wrongly, or the two ends disagree on the algorithm",
            Self::SelectorMismatch => {
                "the peer sends packets outside the negotiated subnets; compare local.subnets and remote.subnets on both sides"
            }
            Self::ClearInbound => {
                "somebody sends packets for a protected subnet without IPsec; they are refused"
            }
            Self::ClearOutbound => {
                "a route bypasses the tunnel interface; compare `ip route get` with the connection's remote.subnets"
            }
            Self::NoPolicy => {
                "a route sends packets into the tunnel that no connection covers; compare `ip route` with the connection's subnets"
            }
            Self::NoSa => "the tunnel is not up; `espada status` says why",
            Self::SequenceExhausted => {
                "the SA should have been rekeyed; look for a failed rekey in the log"
            }
            Self::TooBig => "packets above the path MTU with DF set; the sender was told by ICMP",
            Self::TtlExpired => "a routing loop or traceroute",
            Self::Unsupported => "a packet form the engine does not carry",
            Self::WanFull => "the WAN interface cannot keep up",
            Self::TunFull => "the host's stack cannot keep up",
            Self::NoRoute => "no route or neighbour to the peer; check `ip route get PEER`",
            Self::Expired => {
                "the SA was used past its lifetime; look for a failed rekey in the log"
            }
            Self::WrongAddress => {
                "ESP for a known SPI arrived at or from another address; NAT mapping changed or forged packets"
            }
            Self::Internal => "a bug in Espada: please report it with the log",
            Self::EcnCongestion => {
                "congestion on the path to the peer for a flow without ECN: dropped as RFC 6040 asks"
            }
            Self::LanFull => "a LAN interface or the worker behind it cannot keep up",
        }
    }

    /// The reason with this number, if there is one.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

impl core::fmt::Display for DropReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_index_all() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(DropReason::from_index(index as u32), Some(*reason));
        }
        assert_eq!(DropReason::from_index(DropReason::COUNT as u32), None);
    }
}
