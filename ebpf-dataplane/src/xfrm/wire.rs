//! The messages of netlink XFRM (`linux/xfrm.h`) that the engine exchanges with the kernel: fixed
//! structures and attributes. A codec of our own because key material passes through it: buffers
//! that held keys are zeroized, and nothing here has Debug output of one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroizing;

/// Message types (`XFRM_MSG_*`).
pub mod message {
    /// A new state, and an entry of a dump.
    pub const NEWSA: u16 = 0x10;
    /// A state goes.
    pub const DELSA: u16 = 0x11;
    /// Asks for one state or, with NLM_F_DUMP, for all.
    pub const GETSA: u16 = 0x12;
    /// A new policy, and an entry of a dump.
    pub const NEWPOLICY: u16 = 0x13;
    /// A policy goes.
    pub const DELPOLICY: u16 = 0x14;
    /// Asks for policies.
    pub const GETPOLICY: u16 = 0x15;
    /// Gives a larval state an SPI.
    pub const ALLOCSPI: u16 = 0x16;
    /// A packet needs a state.
    pub const ACQUIRE: u16 = 0x17;
    /// A state's lifetime ran out.
    pub const EXPIRE: u16 = 0x18;
    /// Replaces a policy or adds it.
    pub const UPDPOLICY: u16 = 0x19;
    /// Changes a state.
    pub const UPDSA: u16 = 0x1a;
    /// ESP in UDP came from elsewhere.
    pub const MAPPING: u16 = 0x26;
}

/// Multicast groups (`XFRMNLGRP_*`).
pub mod group {
    /// ACQUIRE messages.
    pub const ACQUIRE: u32 = 1;
    /// EXPIRE messages.
    pub const EXPIRE: u32 = 2;
    /// States that come and go.
    pub const SA: u32 = 3;
    /// MAPPING messages.
    pub const MAPPING: u32 = 8;
}

/// Attributes (`XFRMA_*`).
pub mod attribute {
    /// `struct xfrm_algo`: encryption.
    pub const ALG_CRYPT: u16 = 2;
    /// [`super::Encap`].
    pub const ENCAP: u16 = 4;
    /// [`super::Template`]s.
    pub const TMPL: u16 = 5;
    /// Seconds since 1970.
    pub const LASTUSED: u16 = 15;
    /// `struct xfrm_algo_aead`.
    pub const ALG_AEAD: u16 = 18;
    /// `struct xfrm_algo_auth`: integrity with a truncated ICV.
    pub const ALG_AUTH_TRUNC: u16 = 20;
    /// [`super::MarkValue`] that packets and lookups must bear.
    pub const MARK: u16 = 21;
    /// [`super::ReplayEsn`] and its bitmap.
    pub const REPLAY_ESN_VAL: u16 = 23;
    /// [`super::Offload`].
    pub const OFFLOAD_DEV: u16 = 28;
    /// Mark that encapsulated packets get.
    pub const SET_MARK: u16 = 29;
    /// Bits of the mark that are set.
    pub const SET_MARK_MASK: u16 = 30;
    /// The xfrm interface a state or policy belongs to.
    pub const IF_ID: u16 = 31;
    /// Least seconds between two MAPPING messages of a state.
    pub const MTIMER_THRESH: u16 = 32;
    /// [`super::OUTBOUND`], for a state that only sends.
    pub const SA_DIR: u16 = 33;
    /// Processor a state is for; takes [`SA_DIR`].
    pub const SA_PCPU: u16 = 35;
}

/// IPPROTO_ESP.
pub const ESP: u8 = 50;
/// XFRM_INF.
pub const INFINITE: u64 = u64::MAX;
/// XFRM_SA_DIR_OUT.
pub const OUTBOUND: u8 = 2;
/// Words of the largest replay bitmap the kernel takes (XFRMA_REPLAY_ESN_MAX is in bits).
pub const MOST_WORDS: u32 = 4096 / 32;

/// `flags` of [`SaInfo`].
pub mod state_flag {
    /// Selectors of either family (tunnels between families).
    pub const AF_UNSPEC: u8 = 32;
    /// 64-bit sequence numbers.
    pub const ESN: u8 = 128;
}

/// `dir` of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// To this host.
    In = 0,
    /// Through this host.
    Forward = 2,
    /// From or through this host, on the way out. Last in order: what receives is set up first.
    Out = 1,
}

/// `flags` of [`Offload`].
pub mod offload_flag {
    /// The state is for what arrives.
    pub const INBOUND: u8 = 2;
    /// The device does encapsulation and policy too.
    pub const PACKET: u8 = 4;
}

/// An address of either family; IPv4 in the first four octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// No address.
    pub const ANY: Self = Self([0; 16]);

    /// The address as one of a family (AF_*).
    pub fn of_family(&self, family: u16) -> Option<IpAddr> {
        let [a, b, c, d, ..] = self.0;
        match i32::from(family) {
            libc::AF_INET => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(self.0))),
            _ => None,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let mut octets = [0; 16];
                octets[..4].copy_from_slice(&address.octets());
                Self(octets)
            }
            IpAddr::V6(address) => Self(address.octets()),
        }
    }
}

/// AF_INET or AF_INET6.
pub fn family(address: IpAddr) -> u16 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    family as u16
}

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident, $size:literal, { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size);

        impl Default for $name {
            fn default() -> Self {
                <Self as zerocopy::FromZeros>::new_zeroed()
            }
        }
    };
}

wire!(
    /// `struct xfrm_id`.
    Id, 24, {
        destination: Address,
        spi: U32,
        proto: u8,
        pad: [u8; 3],
    }
);

wire!(
    /// `struct xfrm_selector`.
    Selector, 56, {
        destination: Address,
        source: Address,
        destination_port: U16,
        destination_port_mask: U16,
        source_port: U16,
        source_port_mask: U16,
        family: u16,
        destination_length: u8,
        source_length: u8,
        proto: u8,
        pad: [u8; 3],
        interface: i32,
        user: u32,
    }
);

wire!(
    /// `struct xfrm_lifetime_cfg`; zero seconds are no limit, but zero octets or packets are.
    Limits, 64, {
        soft_bytes: u64,
        hard_bytes: u64,
        soft_packets: u64,
        hard_packets: u64,
        soft_add_seconds: u64,
        hard_add_seconds: u64,
        soft_use_seconds: u64,
        hard_use_seconds: u64,
    }
);

impl Limits {
    /// No limit at all.
    pub fn none() -> Self {
        Self {
            soft_bytes: INFINITE,
            hard_bytes: INFINITE,
            soft_packets: INFINITE,
            hard_packets: INFINITE,
            ..Self::default()
        }
    }
}

wire!(
    /// `struct xfrm_lifetime_cur`.
    Current, 32, {
        bytes: u64,
        packets: u64,
        /// Seconds since 1970.
        add_time: u64,
        /// Of the first packet.
        use_time: u64,
    }
);

wire!(
    /// `struct xfrm_stats`.
    Drops, 12, {
        /// Left of the window.
        replay_window: u32,
        /// Seen before.
        replay: u32,
        integrity_failed: u32,
    }
);

wire!(
    /// `struct xfrm_usersa_info`.
    SaInfo, 224, {
        selector: Selector,
        id: Id,
        source: Address,
        limits: Limits,
        current: Current,
        drops: Drops,
        seq: u32,
        reqid: u32,
        family: u16,
        mode: u8,
        replay_window: u8,
        flags: u8,
        pad: [u8; 7],
    }
);

wire!(
    /// `struct xfrm_usersa_id`.
    SaId, 24, {
        destination: Address,
        spi: U32,
        family: u16,
        proto: u8,
        pad: [u8; 1],
    }
);

wire!(
    /// `struct xfrm_userspi_info`.
    SpiInfo, 232, {
        info: SaInfo,
        least: u32,
        most: u32,
    }
);

wire!(
    /// `struct xfrm_userpolicy_info`.
    PolicyInfo, 168, {
        selector: Selector,
        limits: Limits,
        current: Current,
        priority: u32,
        index: u32,
        direction: u8,
        action: u8,
        flags: u8,
        share: u8,
        pad: [u8; 4],
    }
);

wire!(
    /// `struct xfrm_userpolicy_id`.
    PolicyId, 64, {
        selector: Selector,
        index: u32,
        direction: u8,
        pad: [u8; 3],
    }
);

wire!(
    /// `struct xfrm_user_tmpl`.
    Template, 64, {
        id: Id,
        family: u16,
        pad_family: [u8; 2],
        source: Address,
        reqid: u32,
        mode: u8,
        share: u8,
        optional: u8,
        pad: [u8; 1],
        auth_algorithms: u32,
        encryption_algorithms: u32,
        compression_algorithms: u32,
    }
);

wire!(
    /// `struct xfrm_encap_tmpl`.
    Encap, 24, {
        kind: u16,
        source_port: U16,
        destination_port: U16,
        pad: [u8; 2],
        original: Address,
    }
);

wire!(
    /// `struct xfrm_mark`.
    MarkValue, 8, {
        value: u32,
        mask: u32,
    }
);

wire!(
    /// `struct xfrm_user_offload`.
    Offload, 8, {
        interface: u32,
        flags: u8,
        pad: [u8; 3],
    }
);

wire!(
    /// `struct xfrm_replay_state_esn` without its bitmap.
    ReplayEsn, 24, {
        /// Words of bitmap that follow.
        words: u32,
        out_low: u32,
        in_low: u32,
        out_high: u32,
        in_high: u32,
        /// Packets.
        window: u32,
    }
);

wire!(
    /// `struct xfrm_user_acquire`.
    Acquire, 280, {
        id: Id,
        source: Address,
        selector: Selector,
        policy: PolicyInfo,
        auth_algorithms: u32,
        encryption_algorithms: u32,
        compression_algorithms: u32,
        seq: u32,
    }
);

wire!(
    /// `struct xfrm_user_expire`.
    Expire, 232, {
        state: SaInfo,
        hard: u8,
        pad: [u8; 7],
    }
);

wire!(
    /// `struct xfrm_user_mapping`.
    Mapping, 64, {
        id: SaId,
        reqid: u32,
        old_source: Address,
        new_source: Address,
        old_port: U16,
        new_port: U16,
    }
);

/// Octets a message with keys fits: the buffer never moves, so no copy of a key stays behind.
const CAPACITY: usize = 2048;

/// A message in the making, without its netlink header.
pub struct Body(Zeroizing<Vec<u8>>);

impl Body {
    /// Starts with the fixed part.
    pub fn new(fixed: &(impl IntoBytes + Immutable)) -> Self {
        let mut octets = Vec::with_capacity(CAPACITY);
        octets.extend_from_slice(fixed.as_bytes());
        Self(Zeroizing::new(octets))
    }

    /// Appends an attribute of these parts.
    pub fn attribute(mut self, kind: u16, parts: &[&[u8]]) -> Self {
        let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
        // No attribute here comes near 64 KiB.
        let short = u16::try_from(length).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&short.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
        self
    }

    /// Appends an attribute that holds a number.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &[&value.to_ne_bytes()])
    }

    /// The octets.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

/// The name field of an algorithm: at most 63 octets, zero-padded.
pub fn algorithm_name(name: &str) -> [u8; 64] {
    let mut field = [0; 64];
    for (to, from) in field.iter_mut().zip(name.bytes().take(63)) {
        *to = from;
    }
    field
}

/// The fixed part of a message and the attributes behind it.
pub fn split<T: FromBytes>(payload: &[u8]) -> Option<(T, Attributes<'_>)> {
    let (fixed, rest) = T::read_from_prefix(payload).ok()?;
    let padding = size_of::<T>().next_multiple_of(4) - size_of::<T>();
    Some((fixed, Attributes(rest.get(padding..).unwrap_or(&[]))))
}

/// The attributes of a message, as far as their lengths are sane.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a kind.
    pub fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.by_ref()
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    }

    /// The first attribute of a kind as a fixed structure or number.
    pub fn read<T: FromBytes>(self, kind: u16) -> Option<T> {
        T::read_from_prefix(self.find(kind)?)
            .ok()
            .map(|(value, _)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &[l0, l1, k0, k1, ..] = self.0 else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        // The upper two bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        let kind = u16::from_ne_bytes([k0, k1]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_come_back() {
        let body = Body::new(&SaId::default())
            .number(attribute::IF_ID, 7)
            .attribute(attribute::ALG_CRYPT, &[b"abc", b"de"]);
        assert_eq!(body.octets().len(), 24 + 8 + 12);
        let (fixed, attributes) = split::<SaId>(body.octets()).unwrap();
        assert_eq!(fixed, SaId::default());
        assert_eq!(attributes.read::<u32>(attribute::IF_ID), Some(7));
        assert_eq!(attributes.find(attribute::ALG_CRYPT), Some(&b"abcde"[..]));
        assert_eq!(attributes.find(attribute::MARK), None);
    }

    #[test]
    fn addresses_keep_their_family() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            let wire = Address::from(address);
            assert_eq!(wire.of_family(family(address)), Some(address));
        }
        assert_eq!(Address::ANY.of_family(0), None);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_panic(octets: Vec<u8>) {
            for (_, value) in Attributes(&octets) {
                prop_assert!(value.len() <= octets.len());
            }
            let _ = split::<Acquire>(&octets);
        }
    }
}
