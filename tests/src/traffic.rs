//! Traffic through the line, and whether it arrived as it was sent.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::cmd::wait_for;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};

/// What `ping` counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
}

impl Ping {
    /// True when nothing was lost.
    pub fn is_complete(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

/// Sends `count` echo requests, 5 ms apart, and waits up to two seconds for their replies; `extra`
/// are more options of ping.
pub fn ping(from: &Netns, to: &str, count: u32, extra: &[&str]) -> Result<Ping> {
    // Once a reply has come, ping's own -W waits for two round trips only, which a busy machine
    // exceeds. With -w it goes on (and sends on) until `count` replies are there.
    let number = count.to_string();
    let mut argv = vec!["ping", "-n", "-i", "0.005", "-w", "2", "-c", &number];
    argv.extend_from_slice(extra);
    argv.push(to);
    let output = from.output(&argv)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("packets transmitted") {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ping gave no summary:\n{text}{complaint}");
    }
    Ok(Ping {
        sent: count,
        received: replies(&text, count),
    })
}

/// Round trip times of echo requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
    /// Half of the round trips took at most this long, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 round trips took at most this long, in microseconds.
    pub p99_us: f64,
}

/// Sends `count` echo requests a millisecond apart and gives their round trip times.
pub fn round_trips(from: &Netns, to: &str, count: u32) -> Result<RoundTrips> {
    let number = count.to_string();
    let output = from.output(&["ping", "-n", "-i", "0.001", "-W", "1", "-c", &number, to])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut times = times_us(&text);
    times.sort_by(f64::total_cmp);
    let (Some(p50_us), Some(p99_us)) = (percentile(&times, 0.5), percentile(&times, 0.99)) else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("no echo request to {to} was answered:\n{text}{complaint}");
    };
    Ok(RoundTrips {
        sent: count,
        received: replies(&text, count),
        p50_us,
        p99_us,
    })
}

/// Round trip times beside a TCP stream at full speed.
pub fn loaded_round_trips(
    client: &Netns,
    server: &Netns,
    address: &str,
    count: u32,
    congestion_control: Option<&str>,
    work: &WorkDir,
) -> Result<RoundTrips> {
    /// iperf3 leaves out its first second, and the pings wait until it is over.
    const WARM_UP: Duration = Duration::from_millis(1200);
    /// Long enough for a thousand pings a millisecond and a half apart.
    const STREAM: Streams<'_> = Streams::one(3);
    let beside = Streams {
        congestion_control,
        ..STREAM
    };
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| tcp_streams(client, server, address, &beside, work));
        std::thread::sleep(WARM_UP);
        let loaded = round_trips(client, address, count);
        stream
            .join()
            .map_err(|_| anyhow!("the TCP stream's thread panicked"))?
            .context("a TCP stream beside pings")?;
        loaded.context("round trips beside a TCP stream")
    })
}

/// Microseconds of every reply in ping's output.
fn times_us(text: &str) -> Vec<f64> {
    text.lines()
        .filter_map(|line| {
            let rest = line.split_once("time=")?.1;
            let milliseconds: f64 = rest.split(' ').next()?.parse().ok()?;
            Some(milliseconds * 1000.0)
        })
        .collect()
}

/// The smallest of the sorted values that a part of them does not exceed.
fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// How many of the first `count` echo requests were answered.
fn replies(text: &str, count: u32) -> u32 {
    let answered: BTreeSet<u32> = text
        .lines()
        .filter(|line| line.contains(" bytes from "))
        .filter_map(|line| {
            line.split_once("icmp_seq=")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .filter(|sequence| (1..=count).contains(sequence))
        .collect();
    answered.len() as u32
}

/// Sends one echo request of `size` octets with "do not fragment" and gives all that ping said.
pub fn ping_df(from: &Netns, to: &str, size: usize) -> Result<String> {
    let size = size.to_string();
    let output = from.output(&[
        "ping", "-n", "-M", "do", "-s", &size, "-c", "1", "-W", "1", to,
    ])?;
    Ok(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// A stream of octets that both ends can make, so that every one received can be checked
/// (xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators").
struct Stream(u64);

impl Stream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            let length = chunk.len();
            chunk.copy_from_slice(&word[..length]);
        }
    }
}

const FORWARD_SEED: u64 = 0x6573_7061_6461_0001;
const REVERSE_SEED: u64 = 0x6573_7061_6461_0002;
const BLOCK: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(15);

/// The first octets of the client's stream: what must never be seen in clear on the WAN.
pub fn payload_start() -> [u8; 32] {
    let mut start = [0; 32];
    Stream(FORWARD_SEED).fill(&mut start);
    start
}

/// Moves `bytes` octets each way through a TCP connection and compares every one.
pub fn tcp_exchange(client: &Netns, server: &Netns, address: &str, bytes: usize) -> Result<()> {
    let address: IpAddr = address.parse()?;
    let listener = server.enter(|| {
        TcpListener::bind(SocketAddr::new(address, 0)).context("the TCP server cannot listen")
    })?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let stream = accept(&listener)?;
            check_stream(&stream, FORWARD_SEED, bytes).context("from client to server")?;
            send_stream(&stream, REVERSE_SEED, bytes).context("the server's sending")
        });
        let asked = client.enter(|| {
            let stream = TcpStream::connect_timeout(&target, PATIENCE)
                .with_context(|| format!("no TCP connection to {target}"))?;
            send_stream(&stream, FORWARD_SEED, bytes).context("the client's sending")?;
            check_stream(&stream, REVERSE_SEED, bytes).context("from server to client")
        });
        let served = serving
            .join()
            .map_err(|_| anyhow!("the TCP server panicked"))?;
        match (asked, served) {
            (Ok(()), served) => served,
            (Err(asked), Ok(())) => Err(asked),
            (Err(asked), Err(served)) => Err(asked.context(format!("the server: {served:#}"))),
        }
    })
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    bail!("nobody connected within {PATIENCE:?}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn send_stream(mut stream: &TcpStream, seed: u64, bytes: usize) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut source = Stream(seed);
    let mut block = [0; BLOCK];
    for at in (0..bytes).step_by(BLOCK) {
        source.fill(&mut block);
        stream
            .write_all(&block[..BLOCK.min(bytes - at)])
            .with_context(|| format!("after {at} octets"))?;
    }
    Ok(())
}

fn check_stream(mut stream: &TcpStream, seed: u64, bytes: usize) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut source = Stream(seed);
    let mut expected = [0; BLOCK];
    let mut received = [0; BLOCK];
    for at in (0..bytes).step_by(BLOCK) {
        let length = BLOCK.min(bytes - at);
        source.fill(&mut expected);
        stream
            .read_exact(&mut received[..length])
            .with_context(|| format!("after {at} octets"))?;
        if let Some(wrong) = (0..length).find(|&index| received[index] != expected[index]) {
            bail!("octet {} is not what was sent", at + wrong);
        }
    }
    Ok(())
}

/// What iperf3 counted of TCP streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TcpRun {
    /// Gbit/s of all streams together at the receiver, without the first second.
    pub gbps: f64,
    /// Octets carried in all, the first second included.
    pub octets: f64,
}

/// Gbit/s of one TCP stream from client to server, as iperf3 measures it at the receiver.
pub fn tcp_throughput(
    client: &Netns,
    server: &Netns,
    address: &str,
    seconds: u32,
    work: &WorkDir,
) -> Result<f64> {
    tcp_streams(client, server, address, &Streams::one(seconds), work).map(|run| run.gbps)
}

/// TCP streams to run at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// How long they are measured, after a second of warm-up.
    pub seconds: u32,
    /// How many.
    pub count: u32,
    /// Name of the congestion control, where it is not to be the machine's own choice. (Only of a
    /// socket can every one be asked for: a namespace may not have what its machine restricts.)
    pub congestion_control: Option<&'a str>,
}

impl Streams<'_> {
    /// One stream.
    pub const fn one(seconds: u32) -> Self {
        Self {
            seconds,
            count: 1,
            congestion_control: None,
        }
    }
}

/// Runs TCP streams from client to server.
pub fn tcp_streams(
    client: &Netns,
    server: &Netns,
    address: &str,
    streams: &Streams<'_>,
    work: &WorkDir,
) -> Result<TcpRun> {
    let log = work.file("iperf3-server.log");
    let argv = server.argv(&[
        "iperf3",
        "--server",
        "--one-off",
        "--bind",
        address,
        "--forceflush",
    ])?;
    let mut process = Process::start("iperf3 --server", &argv, &[], &log, false)?;
    let before = process.log().matches("listening on").count();
    wait_for(
        "the iperf3 server listening",
        Duration::from_secs(5),
        || {
            process.must_run()?;
            Ok(listens(server, 5201)?.then_some(()))
        },
    )
    .with_context(|| format!("{before} earlier runs are in its log"))?;
    let (seconds, count) = (streams.seconds.to_string(), streams.count.to_string());
    let mut argv = vec![
        "iperf3",
        "--client",
        address,
        "--time",
        &seconds,
        "--parallel",
        &count,
        "--omit",
        "1",
        "--json",
        "--connect-timeout",
        "3000",
    ];
    if let Some(name) = streams.congestion_control {
        argv.extend(["--congestion", name]);
    }
    let output = client.output(&argv)?;
    // What went wrong is in the report as well.
    let run = tcp_report(&String::from_utf8_lossy(&output.stdout)).with_context(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        format!(
            "iperf3 to {address} ({}) {}",
            output.status,
            complaint.trim()
        )
    })?;
    process.wait(Duration::from_secs(5))?;
    Ok(run)
}

/// Reads the JSON of iperf3's client.
fn tcp_report(text: &str) -> Result<TcpRun> {
    let report: Value = serde_json::from_str(text).context("iperf3 gave no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &report["end"]["sum_received"];
    let rate = received["bits_per_second"]
        .as_f64()
        .context("iperf3 reported no rate")?;
    let counted = received["bytes"]
        .as_f64()
        .context("iperf3 reported no octets")?;
    let warm_up: f64 = report["intervals"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|interval| &interval["sum"])
        .filter(|sum| sum["omitted"] == true)
        .filter_map(|sum| sum["bytes"].as_f64())
        .sum();
    Ok(TcpRun {
        gbps: rate / 1e9,
        octets: counted + warm_up,
    })
}

fn listens(netns: &Netns, port: u16) -> Result<bool> {
    let sockets = netns.run(&["ss", "-Htln", &format!("sport = :{port}")])?;
    Ok(!sockets.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_answered_requests() {
        let text = "PING 10.61.2.2 (10.61.2.2) 56(84) bytes of data.\n\
                    64 bytes from 10.61.2.2: icmp_seq=1 ttl=62 time=0.2 ms\n\
                    64 bytes from 10.61.2.2: icmp_seq=3 ttl=62 time=0.2 ms\n\
                    64 bytes from 10.61.2.2: icmp_seq=3 ttl=62 time=0.3 ms (DUP!)\n\
                    From 10.61.1.1 icmp_seq=4 Destination Host Unreachable\n\
                    64 bytes from 10.61.2.2: icmp_seq=6 ttl=62 time=0.2 ms\n";
        assert_eq!(replies(text, 5), 2);
        assert_eq!(replies("", 5), 0);
        assert_eq!(times_us(text), [200.0, 200.0, 300.0, 200.0]);
    }

    #[test]
    fn reports_of_iperf3_are_understood() {
        let text = r#"{"intervals":[
            {"sum":{"bytes":100,"omitted":true}},{"sum":{"bytes":900,"omitted":false}}],
            "end":{"sum_sent":{"bytes":950},"sum_received":{"bytes":800,"bits_per_second":2e9}}}"#;
        let run = tcp_report(text).unwrap();
        assert_eq!((run.gbps, run.octets), (2.0, 900.0));
        let error = tcp_report(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
        assert!(tcp_report("iperf3: no such option").is_err());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(500.0));
        assert_eq!(percentile(&sorted, 0.99), Some(990.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
