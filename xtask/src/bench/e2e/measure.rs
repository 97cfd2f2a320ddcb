//! One visit: a system is put between the networks and every figure of it is taken.

use std::time::Instant;

use anyhow::{Context, Result};
use espada_tests::blast::{self, Highest};
use espada_tests::cgroup::{CpuGroup, seconds_per_gigabyte};
use espada_tests::process::WorkDir;
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::traffic::{self, RoundTrips, Streams};

use super::systems::{INNER_MTU, LARGE, Running, System, pings};
use crate::bench::{machine, visits};
use crate::process::say;

/// Octets of payload of small packets.
pub const SMALL: usize = 64;
const STREAMS: u32 = 4;
/// What most hosts use: the machine's own preference would make results depend on it.
pub const CONGESTION_CONTROL: &str = "cubic";

/// How long is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Seconds of a TCP stream.
    pub tcp: u32,
    /// Seconds of each rate of UDP packets.
    pub step: f64,
    /// Echo requests.
    pub pings: u32,
}

/// The namespaces, three times: a link cannot change what it is while a system is on it.
pub struct Lines {
    /// As veth pairs are made, with segmentation offloads.
    pub usual: Line,
    /// Without them.
    pub single: Line,
    /// With a switch at which everything is seen.
    pub seen: Line,
}

impl Lines {
    /// Makes them.
    pub fn new() -> Result<Self> {
        let lines = Self {
            usual: Line::new(Wan::Direct)?,
            single: Line::new(Wan::Direct)?,
            seen: Line::new(Wan::Switch)?,
        };
        for line in [&lines.usual, &lines.single, &lines.seen] {
            line.limit_inner(INNER_MTU)?;
        }
        lines.single.without_offloads()?;
        Ok(lines)
    }
}

/// TCP and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// At the receiver, Gbit/s.
    pub gbps: f64,
    /// Processor seconds of hosts, gateways and kernel for 10^9 octets, where they are counted.
    pub cpu_s_per_gb: Option<f64>,
}

/// A visit's figures.
#[derive(Clone, Copy, Debug)]
pub struct Measures {
    /// One TCP stream.
    pub tcp_1: Tcp,
    /// Four together.
    pub tcp_4: Tcp,
    /// One where packets cross the links one by one.
    pub tcp_1_off: Tcp,
    /// UDP packets of 64 octets of payload; none where no rate had few enough losses.
    pub small: Option<Highest>,
    /// UDP packets of 1372 octets of payload.
    pub large: Option<Highest>,
    /// Echo requests alone.
    pub idle: RoundTrips,
    /// Echo requests beside a TCP stream.
    pub loaded: RoundTrips,
    /// Part of the processors that others used meanwhile, 0 to 1, where that is counted.
    pub others: Option<f64>,
}

/// A column of the results.
pub type Column = visits::Column<Measures>;

const fn column(
    name: &'static str,
    title: &'static str,
    digits: usize,
    value: fn(&Measures) -> Option<f64>,
) -> Column {
    Column {
        name,
        title,
        value,
        limited: |_| false,
        digits,
    }
}

fn kpps(highest: Option<Highest>) -> Option<f64> {
    Some(highest?.pps / 1000.0)
}

fn limited(highest: Option<Highest>) -> bool {
    highest.is_some_and(|highest| highest.sender_limited)
}

/// Processor time for what was carried, with offloads.
pub const CPU: Column = column("cpu_s_per_gb", "CPU-s per GB", 2, |it| {
    it.tcp_1.cpu_s_per_gb
});

/// All columns in the order of the table.
pub const COLUMNS: [Column; 12] = [
    column("tcp_1_gbps", "TCP 1 stream, Gbit/s", 2, |it| {
        Some(it.tcp_1.gbps)
    }),
    column("tcp_4_gbps", "4 streams", 2, |it| Some(it.tcp_4.gbps)),
    column("tcp_1_off_gbps", "1 stream, offloads off", 2, |it| {
        Some(it.tcp_1_off.gbps)
    }),
    CPU,
    column("cpu_off_s_per_gb", "CPU-s per GB, offloads off", 2, |it| {
        it.tcp_1_off.cpu_s_per_gb
    }),
    column("cpu_4_s_per_gb", "CPU-s per GB, 4 streams", 2, |it| {
        it.tcp_4.cpu_s_per_gb
    }),
    Column {
        limited: |it| limited(it.small),
        ..column("udp64_kpps", "UDP 64 B, kpps", 0, |it| kpps(it.small))
    },
    Column {
        limited: |it| limited(it.large),
        ..column("udp1372_kpps", "UDP 1372 B, kpps", 0, |it| kpps(it.large))
    },
    column("rtt_idle_p50_us", "RTT p50, µs", 0, |it| {
        Some(it.idle.p50_us)
    }),
    column("rtt_idle_p99_us", "RTT p99, µs", 0, |it| {
        Some(it.idle.p99_us)
    }),
    column("rtt_loaded_p50_us", "beside TCP p50, µs", 0, |it| {
        Some(it.loaded.p50_us)
    }),
    column("rtt_loaded_p99_us", "beside TCP p99, µs", 0, |it| {
        Some(it.loaded.p99_us)
    }),
];

/// A system on a line.
struct Carried<'l> {
    running: Running<'l>,
    line: &'l Line,
    work: WorkDir,
}

impl<'l> Carried<'l> {
    fn new(line: &'l Line, system: System) -> Result<Self> {
        let work = WorkDir::new()?;
        let running = system.start(line, &work)?;
        pings(line, &[0x5a; 16])?;
        Ok(Self {
            running,
            line,
            work,
        })
    }

    fn tcp(&self, plan: &Plan, group: Option<&CpuGroup>, count: u32) -> Result<Tcp> {
        let streams = Streams {
            seconds: plan.tcp,
            count,
            congestion_control: Some(CONGESTION_CONTROL),
        };
        let (client, server) = (&self.line.client, &self.line.server);
        let before = group.map(CpuGroup::usage).transpose()?;
        let run = traffic::tcp_streams(client, server, addr::SERVER, &streams, &self.work)
            .with_context(|| format!("{count} TCP stream(s)"))?;
        let after = group.map(CpuGroup::usage).transpose()?;
        let cpu_s_per_gb = match (before, after) {
            (Some(before), Some(after)) => {
                Some(seconds_per_gigabyte(after.since(before).ours, run.octets)?)
            }
            _ => None,
        };
        Ok(Tcp {
            gbps: run.gbps,
            cpu_s_per_gb,
        })
    }

    fn udp(&self, plan: &Plan, system: System, size: usize) -> Option<Highest> {
        let (client, server) = (&self.line.client, &self.line.server);
        blast::highest(client, server, addr::SERVER, size, plan.step)
            .inspect_err(|error| say(format_args!("{system}: UDP of {size} octets: {error:#}")))
            .ok()
    }
}

/// Takes every figure of a system.
pub fn visit(
    plan: &Plan,
    lines: &Lines,
    group: Option<&CpuGroup>,
    system: System,
) -> Result<Measures> {
    let started = Instant::now();
    let before = group.map(CpuGroup::usage).transpose()?;
    let mut usual = Carried::new(&lines.usual, system)?;
    let (client, server) = (&lines.usual.client, &lines.usual.server);
    let idle = traffic::round_trips(client, addr::SERVER, plan.pings).context("round trips")?;
    let tcp_1 = usual.tcp(plan, group, 1)?;
    let tcp_4 = usual.tcp(plan, group, STREAMS)?;
    let loaded = traffic::loaded_round_trips(
        client,
        server,
        addr::SERVER,
        plan.pings,
        Some(CONGESTION_CONTROL),
        &usual.work,
    )?;
    // Last, as some daemons take a while to recover.
    let small = usual.udp(plan, system, SMALL);
    let large = usual.udp(plan, system, LARGE);
    usual
        .running
        .still_carries()
        .context("after the measurements")?;
    drop(usual);
    let mut single = Carried::new(&lines.single, system).context("without offloads")?;
    let tcp_1_off = single.tcp(plan, group, 1).context("without offloads")?;
    single
        .running
        .still_carries()
        .context("after the measurement without offloads")?;
    drop(single);
    let after = group.map(CpuGroup::usage).transpose()?;
    let others = before.zip(after).map(|(before, after)| {
        let available = started.elapsed().as_secs_f64() * machine::processors() as f64;
        after.since(before).others() / available
    });
    Ok(Measures {
        tcp_1,
        tcp_4,
        tcp_1_off,
        small,
        large,
        idle,
        loaded,
        others,
    })
}
