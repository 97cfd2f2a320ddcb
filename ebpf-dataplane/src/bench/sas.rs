//! What the number of SAs costs: per packet, and to install them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSa, ChildSaId, EspSuite};
use serde::Serialize;

use super::engine::Bench;
use super::{BenchError, bursts, child, per_packet};

/// Octets of inner packets.
const BYTES: usize = 512;

/// With a number of pairs installed.
#[derive(Clone, Debug, Serialize)]
pub struct SaRow {
    /// Pairs installed.
    pub sas: usize,
    /// Nanoseconds per packet of 512 octets while all belong to one pair, to encrypt and decrypt.
    pub one_ns: [f64; 2],
    /// The same while each belongs to another pair than the one before, of 64 pairs spread over all.
    pub spread_ns: [f64; 2],
    /// The same with all pairs in turns: keys and windows come from memory.
    pub all_ns: [f64; 2],
    /// Pairs installed in a second, both directions each, up to this number.
    pub installs_per_second: f64,
    /// The longest that one pair took, in microseconds: traffic waits for no more than that.
    pub longest_install_us: f64,
}

/// The rows as a table for people.
pub struct SaTable<'a>(pub &'a [SaRow]);

impl std::fmt::Display for SaTable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:>8}  {:>15}  {:>15}  {:>15}  {:>12}  {:>12}",
            "SAs", "one: ns", "64 of them: ns", "all: ns", "installs/s", "longest: us"
        )?;
        for row in self.0 {
            let pair = |[encrypt, decrypt]: [f64; 2]| format!("{encrypt:.0} / {decrypt:.0}");
            writeln!(
                f,
                "{:>8}  {:>15}  {:>15}  {:>15}  {:>12.0}  {:>12.1}",
                row.sas,
                pair(row.one_ns),
                pair(row.spread_ns),
                pair(row.all_ns),
                row.installs_per_second,
                row.longest_install_us
            )?;
        }
        Ok(())
    }
}

/// Measures with each number of SAs, `duration` for everything but the installing.
pub fn sas(
    suite: EspSuite,
    counts: &[usize],
    duration: Duration,
) -> Result<Vec<SaRow>, BenchError> {
    let share = duration / u32::try_from(counts.len() * 3).unwrap_or(u32::MAX).max(1);
    counts
        .iter()
        .map(|count| row(suite, (*count).max(1), share))
        .collect()
}

fn row(suite: EspSuite, count: usize, share: Duration) -> Result<SaRow, BenchError> {
    let mut bench = Bench::empty(suite, BYTES)?;
    let (mut whole, mut longest) = (Duration::ZERO, Duration::ZERO);
    for number in 0..count {
        let sa = pair(suite, number);
        let start = Instant::now();
        bench.install(sa, None)?;
        let took = start.elapsed();
        whole += took;
        longest = longest.max(took);
    }
    let mut with = |active: usize| {
        // A step that shares no factor with the table's sizes: neighbours in turn are none in memory.
        let numbers = (0..active).map(|turn| turn * 7919 % count);
        bench.send_to(numbers.map(|number| address(number).into()), BYTES);
        measure(&mut bench, share)
    };
    Ok(SaRow {
        sas: count,
        one_ns: with(1)?,
        spread_ns: with(count.min(64))?,
        all_ns: with(count)?,
        installs_per_second: count as f64 / whole.as_secs_f64(),
        longest_install_us: longest.as_secs_f64() * 1e6,
    })
}

fn measure(bench: &mut Bench, share: Duration) -> Result<[f64; 2], BenchError> {
    bursts(bench, share / 3)?;
    let bursts = bursts(bench, share * 2 / 3)?;
    let (encrypt, _) = per_packet(bursts.iter().map(|times| times.encrypt));
    let (decrypt, _) = per_packet(bursts.iter().map(|times| times.decrypt));
    Ok([encrypt, decrypt])
}

/// The host behind a pair.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + number as u32)
}

fn pair(suite: EspSuite, number: usize) -> ChildSa {
    let mut sa = child(suite);
    let host = IpAddr::from(address(number));
    sa.id = ChildSaId(number as u64 + 1);
    sa.connection = format!("bench-{number}").into();
    sa.inbound.spi = 0x1000 + 2 * number as u32;
    sa.outbound.spi = sa.inbound.spi + 1;
    for selector in &mut sa.remote_ts {
        (selector.start, selector.end) = (host, host);
    }
    sa
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_carries_packets() {
        let suite = super::super::suite("aes128gcm16").unwrap();
        let rows = sas(suite, &[1, 300], Duration::from_millis(3)).unwrap();
        assert_eq!(rows.len(), 2);
        for row in &rows {
            let times = [row.one_ns, row.spread_ns, row.all_ns].concat();
            assert!(times.iter().all(|ns| *ns > 0.0));
            assert!(row.installs_per_second > 0.0 && row.longest_install_us > 0.0);
        }
        assert_eq!(SaTable(&rows).to_string().lines().count(), 3);
    }
}
