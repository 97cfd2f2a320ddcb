//! Rekeys under traffic.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espada_tests::netns::Netns;
use espada_tests::scenario::{Gateways, NATIVE, count, drops};
use espada_tests::skip_unless_possible;
use espada_tests::syscall;
use espada_tests::topology::{Wan, addr};

/// Packets a second at most; half of it is tried where that is too much for the machine, and so on.
const FASTEST: u64 = 20_000;
const PORT: u16 = 9000;
/// The receiver's queue: a second and more of the stream, should it not get a processor.
const QUEUE: usize = 64 << 20;
const LONGEST: Duration = Duration::from_secs(180);

/// What became of numbered packets.
#[derive(Debug, Default)]
struct Outcome {
    sent: u64,
    lost: u64,
    duplicates: u64,
}

/// Sends numbered packets at a steady rate from one end to the other until `done`.
fn stream(
    from: &Netns,
    to: &Netns,
    target: &'static str,
    rate: u64,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<Outcome> {
    let receiver = to.enter(|| {
        let socket = UdpSocket::bind((target, PORT))?;
        syscall::set_receive_queue(socket.as_raw_fd(), QUEUE)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    })?;
    let sender = from.enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((target, PORT))?;
        Ok(socket)
    })?;
    let (stop, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            let began = Instant::now();
            let mut next = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let due = began.elapsed().as_micros() as u64 * rate / 1_000_000;
                while next < due {
                    sender.send(&next.to_be_bytes())?;
                    next += 1;
                }
                sent.store(next, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let receiving = scope.spawn(|| -> Result<Vec<u8>> {
            let mut seen = Vec::new();
            let mut packet = [0; 64];
            loop {
                match receiver.recv(&mut packet) {
                    Ok(8) => {
                        let number: [u8; 8] = packet[..8].try_into()?;
                        let number = u64::from_be_bytes(number) as usize;
                        if seen.len() <= number {
                            seen.resize(number + 1, 0u8);
                        }
                        seen[number] = seen[number].saturating_add(1);
                    }
                    Ok(_) => {}
                    // Silence: what was under way has arrived.
                    Err(_) if ended.load(Ordering::Relaxed) => return Ok(seen),
                    Err(_) => {}
                }
            }
        });
        let mut finished = Ok(false);
        while matches!(finished, Ok(false)) {
            std::thread::sleep(Duration::from_millis(100));
            finished = done();
        }
        stop.store(true, Ordering::Relaxed);
        let sending = sending
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"));
        std::thread::sleep(Duration::from_millis(500));
        ended.store(true, Ordering::Relaxed);
        let receiving = receiving.join();
        let seen = receiving.map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        sending?.context("the sender")?;
        finished?;
        let sent = sent.load(Ordering::Relaxed);
        let arrived = seen.iter().filter(|times| **times > 0).count() as u64;
        let duplicates = seen
            .iter()
            .map(|times| u64::from(times.saturating_sub(1)))
            .sum();
        Ok(Outcome {
            sent,
            lost: sent - arrived,
            duplicates,
        })
    })
}

/// The fastest rate up to [`FASTEST`] at which nothing is lost without any rekey.
fn bearable(gateways: &Gateways) -> Result<u64> {
    let line = &gateways.line;
    let mut rate = FASTEST;
    while rate > 500 {
        let began = Instant::now();
        let done = || Ok(began.elapsed() > Duration::from_secs(3));
        let outcome = stream(&line.client, &line.server, addr::SERVER, rate, done)?;
        if outcome.lost == 0 {
            return Ok(rate);
        }
        rate /= 2;
    }
    anyhow::bail!("this machine loses packets at any rate")
}

fn twenty_child_and_five_ike_rekeys(more: &'static str, test: &str) -> Result<()> {
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        b.extra = more;
        a.extra = match more {
            NATIVE => "encapsulation = \"esp\"\nike_lifetime = \"10s\"\nchild_packets = 30000\n",
            _ => "encapsulation = \"udp\"\nike_lifetime = \"10s\"\nchild_packets = 30000\n",
        };
    })?;
    let mut rate = bearable(&gateways)?;
    // What full queues lost on a machine that others use says nothing of rekeys: slower, then.
    while !rekeyed_whole(&gateways, rate, test)? {
        rate /= 2;
        ensure!(rate > 1000, "packets are lost at any rate");
    }
    Ok(())
}

/// What the SAs of both gateways must not drop when they are rekeyed.
const REASONS: [&str; 5] = [
    "unknown_spi",
    "no_sa",
    "replay",
    "expired",
    "sequence_exhausted",
];

/// Those that a used-up SA leads to: it carries nothing, is deleted, and its last packets come too late.
const OF_USED_UP: [&str; 3] = ["unknown_spi", "no_sa", "expired"];

/// Drops for each of [`REASONS`] so far, of A and of B.
fn dropped(gateways: &Gateways) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for end in [&gateways.a, &gateways.b] {
        let status = end.status()?;
        counts.extend(REASONS.map(|reason| drops(&status, reason)));
    }
    Ok(counts)
}

/// Twenty child and five IKE rekeys under the stream; whether all of it arrived. What an SA dropped or
/// delivered twice is an error, unless the machine was too slow to rekey A's SA within its limit of packets.
fn rekeyed_whole(gateways: &Gateways, rate: u64, test: &str) -> Result<bool> {
    let before = dropped(gateways)?;
    let (mut children, mut ikes) = (BTreeSet::new(), BTreeSet::new());
    let began = Instant::now();
    let done = || {
        let connection = gateways.a.connection()?;
        ensure!(connection["state"] == "established", "{connection:#}");
        ikes.insert(connection["ike"]["spi_initiator"].to_string());
        for child in connection["children"].as_array().into_iter().flatten() {
            children.insert(count(&child["id"]));
        }
        ensure!(began.elapsed() < LONGEST, "{children:?} {ikes:?}");
        Ok(children.len() > 20 && ikes.len() > 5)
    };
    let line = &gateways.line;
    let outcome = stream(&line.client, &line.server, addr::SERVER, rate, done)?;
    println!(
        "{test}: {rate} packets a second, {} child and {} IKE rekeys: {outcome:?}",
        children.len() - 1,
        ikes.len() - 1
    );
    let after = dropped(gateways)?;
    let dropped: Vec<_> = (REASONS.iter().cycle().zip(before.iter().zip(&after)))
        .map(|(reason, (before, after))| (reason, after - before))
        .collect();
    let used_up = !dropped[..REASONS.len()].contains(&(&"expired", 0));
    let by_sas = dropped
        .iter()
        .any(|(reason, count)| *count > 0 && !(used_up && OF_USED_UP.contains(reason)));
    ensure!(
        outcome.sent > rate && outcome.duplicates == 0 && !by_sas,
        "{outcome:?}; dropped by A, then by B: {dropped:?}"
    );
    if used_up {
        println!("{test}: an SA was used up before it was rekeyed: {dropped:?}");
    }
    Ok(outcome.lost == 0)
}

#[test]
fn a_stream_passes_rekeys_whole_in_native_esp() -> Result<()> {
    skip_unless_possible!("a_stream_passes_rekeys_whole_in_native_esp");
    twenty_child_and_five_ike_rekeys(NATIVE, "native ESP")
}

#[test]
fn a_stream_passes_rekeys_whole_in_udp() -> Result<()> {
    skip_unless_possible!("a_stream_passes_rekeys_whole_in_udp");
    twenty_child_and_five_ike_rekeys("encapsulation = \"udp\"", "ESP in UDP")
}
