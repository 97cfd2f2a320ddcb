//! How many UDP packets a second get through: a paced sender, a counting receiver, and the search
//! for the highest rate without loss worth naming.

mod syscall;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::Netns;
use syscall::BATCH;

/// Octets of run number and sequence number that each packet begins with.
const HEADER: usize = 16;
/// The sender sleeps this long between bursts: it must not spin on a processor that the data plane
/// needs.
const TICK: Duration = Duration::from_micros(200);
/// Of what it could not send in time the sender makes up this much at most.
const CATCH_UP: Duration = Duration::from_millis(5);
/// Packets that come later than this after the last was sent are lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// After a run the way counts as empty when nothing came for this long.
const STILL: Duration = Duration::from_millis(100);
/// That is waited for at most this long.
const DRAINING: Duration = Duration::from_secs(10);
/// Room of the receiver's socket: what is lost is lost on the way, not in front of the receiver.
const RECEIVE_ROOM: i32 = 32 << 20;
const SEND_ROOM: i32 = 8 << 20;
/// The most loss that a rate may have to count as carried.
pub const TOLERATED: f64 = 0.005;
/// The search ends when the rates around the answer are this close.
const PRECISION: f64 = 1.03;

/// What one run at one rate counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Packets sent.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
    /// How long was sent.
    pub took: Duration,
}

impl Run {
    /// Part of the packets that was lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            return 1.0;
        }
        1.0 - self.received.min(self.sent) as f64 / self.sent as f64
    }

    /// Packets received for each second of sending.
    pub fn received_pps(&self) -> f64 {
        self.received as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Packets sent each second.
    pub fn sent_pps(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// The highest rate that was carried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Highest {
    /// Packets a second that arrived.
    pub pps: f64,
    /// Part of the packets that was lost at this rate.
    pub loss: f64,
    /// The sender could send no faster: the way may carry more.
    pub sender_limited: bool,
}

/// Sends packets of `size` octets of payload for `seconds`, at `pps` or as fast as the sender can,
/// and counts those that arrive.
pub fn run(
    client: &Netns,
    server: &Netns,
    address: &str,
    size: usize,
    pps: Option<f64>,
    seconds: f64,
) -> Result<Run> {
    if size < HEADER {
        bail!("packets of {size} octets have no room for their {HEADER} octets of numbers");
    }
    let address: IpAddr = address.parse()?;
    let socket = server.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(address, 0)).context("the receiver's port")?;
        syscall::set_room(&socket, true, RECEIVE_ROOM).context("the receiver's buffer")?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(socket)
    })?;
    let target = socket.local_addr()?;
    let number = next_number();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&socket, size, number, &over));
        let sent = client.enter(|| send(target, size, number, pps, seconds));
        if sent.is_ok() {
            std::thread::sleep(PATIENCE);
        }
        over.store(true, Ordering::Relaxed);
        let received = receiving
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        let (sent, took) = sent?;
        Ok(Run {
            sent,
            received,
            took,
        })
    })
}

/// Tells the packets of one run from late ones of the run before.
fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id()) << 32 | NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn send(
    target: SocketAddr,
    size: usize,
    number: u64,
    pps: Option<f64>,
    seconds: f64,
) -> Result<(u64, Duration)> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).context("the sender's port")?;
    socket.connect(target).context("no route to the receiver")?;
    syscall::set_room(&socket, false, SEND_ROOM).context("the sender's buffer")?;
    syscall::sleep_precisely();
    let mut octets = vec![0xa5; size * BATCH];
    let start = Instant::now();
    let end = Duration::from_secs_f64(seconds);
    let mut next = Duration::ZERO;
    let mut sent = 0u64;
    loop {
        let now = start.elapsed();
        if now >= end {
            return Ok((sent, now));
        }
        let due = match pps {
            None => sent + BATCH as u64,
            Some(pps) => {
                let due = ((now + TICK).as_secs_f64() * pps) as u64;
                due.min(sent + (CATCH_UP.as_secs_f64() * pps) as u64 + 1)
            }
        };
        while sent < due {
            let count = BATCH.min((due - sent) as usize);
            for (packet, sequence) in octets.chunks_exact_mut(size).take(count).zip(sent..) {
                packet[..8].copy_from_slice(&number.to_ne_bytes());
                packet[8..HEADER].copy_from_slice(&sequence.to_ne_bytes());
            }
            match syscall::send(&socket, &octets[..count * size], size) {
                Ok(taken) => sent += taken as u64,
                // A full queue, or an ICMP error of an earlier packet: it goes on at the next tick.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(
                            libc::ENOBUFS | libc::EAGAIN | libc::ECONNREFUSED | libc::EHOSTUNREACH
                        )
                    ) =>
                {
                    break;
                }
                Err(error) => return Err(error).context("sending"),
            }
        }
        if pps.is_some() {
            next += TICK;
            let now = start.elapsed();
            match next.checked_sub(now) {
                Some(pause) => std::thread::sleep(pause),
                None => next = now,
            }
        }
    }
}

fn receive(socket: &UdpSocket, size: usize, number: u64, over: &AtomicBool) -> Result<u64> {
    let mut octets = vec![0; size * BATCH];
    let mut received = 0;
    // Some ways queue without bound: what is still in them would burden the next run.
    let (mut counted, mut last, mut end) = (true, Instant::now(), None);
    loop {
        if counted && over.load(Ordering::Relaxed) {
            counted = false;
            end = Some(Instant::now() + DRAINING);
        }
        if end.is_some_and(|end| last.elapsed() >= STILL || Instant::now() >= end) {
            return Ok(received);
        }
        let count = match syscall::receive(socket, &mut octets, size) {
            Ok(count) => count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                continue;
            }
            Err(error) => return Err(error).context("receiving"),
        };
        last = Instant::now();
        if counted {
            received += octets
                .chunks_exact(size)
                .take(count)
                .filter(|packet| packet[..8] == number.to_ne_bytes())
                .count() as u64;
        }
    }
}

/// Looks for the highest rate with at most [`TOLERATED`] loss: first as fast as the sender can, then
/// up from what arrived of that, then between the last rate that went well and the first that did not.
pub fn highest(
    client: &Netns,
    server: &Netns,
    address: &str,
    size: usize,
    seconds: f64,
) -> Result<Highest> {
    search(|pps| run(client, server, address, size, pps, seconds))
}

fn search(mut run: impl FnMut(Option<f64>) -> Result<Run>) -> Result<Highest> {
    let blast = run(None)?;
    if blast.received == 0 {
        bail!("none of {} packets arrived", blast.sent);
    }
    let of = |run: &Run, sender_limited: bool| Highest {
        pps: run.received_pps(),
        loss: run.loss(),
        sender_limited,
    };
    if blast.loss() <= TOLERATED {
        return Ok(of(&blast, true));
    }
    let (mut best, mut low, mut high): (Option<Highest>, f64, f64) = (None, 0.0, f64::INFINITY);
    let mut rate = blast.received_pps();
    // Enough for any answer between a packet a second and the sender's most.
    for _ in 0..24 {
        let mut result = run(Some(rate))?;
        if result.loss() > TOLERATED {
            // A busy moment of the machine loses packets too: only twice is too fast.
            let again = run(Some(rate))?;
            if again.loss() < result.loss() {
                result = again;
            }
        }
        let behind = result.sent_pps() < rate * 0.97;
        if result.loss() <= TOLERATED {
            if best.is_none_or(|best| result.received_pps() > best.pps) {
                best = Some(of(&result, behind));
            }
            if behind {
                break;
            }
            low = rate;
        } else {
            high = rate;
        }
        if high <= low * PRECISION {
            break;
        }
        rate = match (low, high) {
            (low, high) if high.is_infinite() => low * 1.15,
            (0.0, high) => high * 0.85,
            (low, high) => (low + high) / 2.0,
        };
    }
    best.with_context(|| {
        format!(
            "no rate down to {rate:.0} packets a second had at most {} % loss",
            TOLERATED * 100.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_moment_does_not_count() {
        let mut carry = way(300_000.0, 1e6);
        let mut calls = 0;
        let found = search(|pps| {
            calls += 1;
            let mut run = carry(pps)?;
            if calls % 4 == 2 {
                run.received = run.received * 9 / 10;
            }
            Ok(run)
        })
        .unwrap();
        assert!(found.pps > 288_000.0 && found.pps <= 300_000.0, "{found:?}");
    }

    /// A way that carries `capacity` packets a second behind a sender that can send `most`.
    fn way(capacity: f64, most: f64) -> impl FnMut(Option<f64>) -> Result<Run> {
        move |pps| {
            let sent = pps.unwrap_or(most).min(most);
            Ok(Run {
                sent: sent as u64,
                received: sent.min(capacity) as u64,
                took: Duration::from_secs(1),
            })
        }
    }

    #[test]
    fn the_search_finds_what_a_way_carries() {
        for capacity in [3_000.0, 150_000.0, 900_000.0] {
            let found = search(way(capacity, 1_000_000.0)).unwrap();
            assert!(!found.sender_limited);
            assert!(
                found.pps <= capacity && found.pps > capacity * 0.96,
                "{capacity}: {found:?}"
            );
            assert!(found.loss <= TOLERATED);
        }
    }

    /// Under overload some ways carry less than they can.
    #[test]
    fn a_way_that_collapses_is_searched_upwards() {
        let found = search(|pps| {
            let sent = pps.unwrap_or(1e6);
            let received = if sent > 400_000.0 { 100_000.0 } else { sent };
            Ok(Run {
                sent: sent as u64,
                received: received as u64,
                took: Duration::from_secs(1),
            })
        })
        .unwrap();
        assert!(found.pps > 380_000.0 && found.pps <= 400_000.0, "{found:?}");
    }

    #[test]
    fn the_senders_limit_is_told() {
        let found = search(way(5e6, 1e6)).unwrap();
        assert!(found.sender_limited && found.pps == 1e6, "{found:?}");
        assert!(search(way(0.0, 1e6)).is_err());
    }

    #[test]
    fn packets_arrive_and_are_counted() -> Result<()> {
        crate::skip_unless_possible!("packets_arrive_and_are_counted");
        let line = crate::topology::Line::new(crate::topology::Wan::Direct)?;
        line.add_plain_routes()?;
        let server = crate::topology::addr::SERVER;
        let slow = run(&line.client, &line.server, server, 64, Some(5_000.0), 0.5)?;
        assert!(slow.loss() == 0.0, "{slow:?}");
        assert!(
            slow.sent_pps() > 500.0 && slow.sent_pps() < 5_500.0,
            "{slow:?}"
        );
        line.remove_plain_routes()?;
        let lost = run(&line.client, &line.server, server, 64, Some(5_000.0), 0.2)?;
        assert!(lost.sent > 0 && lost.received == 0, "{lost:?}");
        Ok(())
    }
}
