//! From a negotiated pair to what the programs read, and back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use espada_common::abi::esp::{
    ESP_ESN, EspCounters, EspInEntry, EspKey, EspOutEntry, MAX_NAME, MAX_SELECTORS, PAIR_UDP,
    PAIR_V6, PairEntry, Range,
};
use espada_common::sa::{
    ChildSa, Cipher, Encapsulation, EspSuite, HalfSa, HalfSaStats, Mode, Path, TrafficSelector,
};
use espada_common::shared_window;
use espada_common::wire::Address;
use zerocopy::{FromBytes, IntoBytes};
use zeroize::Zeroize;

use super::syscall;

/// The suite that the programs carry.
pub const fn suite(esn: bool) -> EspSuite {
    EspSuite {
        cipher: Cipher::ChaCha20Poly1305,
        integrity: None,
        esn,
    }
}

/// Key and salt of one direction (RFC 7634 section 2); `None` if they are not 36 octets.
fn key(half: &HalfSa) -> Option<EspKey> {
    let octets: &[u8; 36] = half.encryption_key.expose().try_into().ok()?;
    let (words, _) = octets.as_chunks::<4>();
    let mut key = EspKey {
        words: [0; 8],
        salt: 0,
        padding: 0,
    };
    let (salt, key_words) = words.split_last()?;
    for (place, word) in key.words.iter_mut().zip(key_words) {
        *place = u32::from_le_bytes(*word);
    }
    key.salt = u32::from_le_bytes(*salt);
    Some(key)
}

fn expires(sa: &ChildSa) -> u64 {
    let end = syscall::boot_time().saturating_add(sa.lifetime);
    u64::try_from(end.as_nanos()).unwrap_or(u64::MAX)
}

const fn flags(sa: &ChildSa) -> u32 {
    if sa.suite.esn { ESP_ESN } else { 0 }
}

fn ranges(selectors: &[TrafficSelector]) -> [Range; MAX_SELECTORS] {
    let mut ranges = [Range::default(); MAX_SELECTORS];
    for (range, selector) in ranges.iter_mut().zip(selectors) {
        range.first = Address::from(selector.start).halves();
        range.last = Address::from(selector.end).halves();
    }
    ranges
}

/// The inbound entry of a pair.
pub fn inbound(sa: &ChildSa, handle: u32) -> Option<Wiped<EspInEntry>> {
    Some(Wiped::new(EspInEntry {
        spi_be: sa.inbound.spi.to_be(),
        handle,
        key: key(&sa.inbound)?,
        flags: flags(sa),
        replay_window: sa.replay_window,
        expires_ns: expires(sa),
        local: ranges(&sa.local_ts),
        remote: ranges(&sa.remote_ts),
        selectors: [sa.local_ts.len() as u32, sa.remote_ts.len() as u32],
        counters: EspCounters::default(),
        window: [0; shared_window::WORDS],
    }))
}

/// The outbound entry of a pair.
pub fn outbound(sa: &ChildSa, handle: u32) -> Option<Wiped<EspOutEntry>> {
    /// The control side is told when this part of the sequence numbers is left.
    const SEQ_LOW_FRACTION: u64 = 16;
    let seq_low = if sa.suite.esn {
        u64::MAX
    } else {
        u64::from(u32::MAX) - u64::from(u32::MAX) / SEQ_LOW_FRACTION
    };
    Some(Wiped::new(EspOutEntry {
        spi_be: sa.outbound.spi.to_be(),
        handle,
        key: key(&sa.outbound)?,
        flags: flags(sa),
        padding: 0,
        expires_ns: expires(sa),
        seq: 0,
        seq_low,
        counters: EspCounters::default(),
    }))
}

/// An entry whose octets are wiped when it is dropped.
pub struct Wiped<T: IntoBytes + FromBytes>(Box<T>);

impl<T: IntoBytes + FromBytes> Wiped<T> {
    /// Has an entry wiped.
    pub fn new(entry: T) -> Self {
        Self(Box::new(entry))
    }
}

impl<T: IntoBytes + FromBytes> std::ops::Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: IntoBytes + FromBytes> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.0.as_mut_bytes().zeroize();
    }
}

/// The name of a connection as an entry holds it: cut where it is too long.
pub fn name(connection: &str) -> [u8; MAX_NAME] {
    let mut name = [0; MAX_NAME];
    for (place, octet) in name.iter_mut().zip(connection.bytes()) {
        *place = octet;
    }
    name
}

/// Sets where a pair's packets travel.
pub fn set_path(entry: &mut PairEntry, path: &Path) {
    entry.local = path.local.ip().into();
    entry.remote = path.remote.ip().into();
    entry.flags = if path.remote.is_ipv6() { PAIR_V6 } else { 0 };
    let udp = path.encapsulation == Encapsulation::Udp;
    if udp {
        entry.flags |= PAIR_UDP;
    }
    let port = |address: SocketAddr| if udp { address.port().to_be() } else { 0 };
    entry.local_port_be = port(path.local);
    entry.remote_port_be = port(path.remote);
}

/// Where a pair's packets travel.
pub fn path(entry: &PairEntry) -> Path {
    let address =
        |address: Address, port_be: u16| SocketAddr::new(address.into(), u16::from_be(port_be));
    Path {
        local: address(entry.local, entry.local_port_be),
        remote: address(entry.remote, entry.remote_port_be),
        encapsulation: if entry.flags & PAIR_UDP != 0 {
            Encapsulation::Udp
        } else {
            Encapsulation::Esp
        },
    }
}

/// The selectors of an entry: on our side, on the peer's.
pub fn selectors(entry: &EspInEntry) -> [Vec<TrafficSelector>; 2] {
    let list = |ranges: &[Range], count: u32| {
        ranges
            .iter()
            .take(count as usize)
            .filter_map(|range| TrafficSelector::range(address(range.first), address(range.last)))
            .collect()
    };
    let [local, remote] = entry.selectors;
    [list(&entry.local, local), list(&entry.remote, remote)]
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

/// Counters as everybody else knows them.
pub fn stats(counters: &EspCounters) -> HalfSaStats {
    HalfSaStats {
        packets: counters.packets,
        bytes: counters.bytes,
        drops: counters.drops,
        last_used: match counters.last_used_ns {
            0 => None,
            at => {
                let ago = syscall::boot_time().saturating_sub(Duration::from_nanos(at));
                std::time::Instant::now().checked_sub(ago)
            }
        },
    }
}

/// Tunnel mode is what the programs know.
pub const MODE: Mode = Mode::Tunnel;
