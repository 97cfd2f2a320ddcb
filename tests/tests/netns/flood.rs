//! Who has not proved anything can ask for much, and gets little.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espada_tests::capture::Packet;
use espada_tests::scenario::{Gateways, count};
use espada_tests::topology::{Wan, addr};
use espada_tests::{skip_unless_possible, traffic};

use super::hostile::ipv4;

const UDP: u8 = 17;
const IKE_SA_INIT: u8 = 34;

/// The IKE_SA_INIT request among packets.
fn first_request(packets: &[Packet]) -> Option<Vec<u8>> {
    packets.iter().find_map(|packet| {
        let udp = packet.data.get(packet.header()?.payload..)?;
        let (to, message) = (udp.get(2..4)?, udp.get(8..)?);
        let request = to == 500_u16.to_be_bytes()
            && message.get(8..16)? == [0; 8]
            && *message.get(18)? == IKE_SA_INIT;
        request.then(|| message.to_vec())
    })
}

/// The request as somebody else would send it, from an address that is not there.
fn forged(request: &[u8], number: u64) -> Result<Vec<u8>> {
    let mut message = request.to_vec();
    message
        .get_mut(..8)
        .context("an SPI")?
        .copy_from_slice(&(number + 1).to_be_bytes());
    let length = u16::try_from(8 + message.len())?;
    // No checksum, which IPv4 allows.
    let mut udp = [500_u16, 500, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(message);
    let [.., b, c, d] = number.to_be_bytes();
    ipv4(&format!("10.{}.{c}.{d}", 200 | b), addr::WAN_A, UDP, &udp)
}

/// A tunnel outlives it, its dead peer detection included, and a peer that calls gets through.
#[test]
fn a_flood_of_first_requests_keeps_nobody_out() -> Result<()> {
    skip_unless_possible!("a_flood_of_first_requests_keeps_nobody_out");
    let gateways = Gateways::start(Wan::Switch, |a, b| {
        a.remote = "%any";
        b.extra = "dpd = { delay = \"1s\", action = \"clear\" }";
        b.global = "[ike]\nretransmit_first = \"200ms\"\nretransmit_max = \"500ms\"\n\
                    retransmit_tries = 5\n";
    })?;
    let recorded = gateways.record(|| gateways.b.up().map(drop))?;
    let request = first_request(&recorded).context("the first request")?;
    let before = gateways.b.wait_established()?;

    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| {
            let mut number = 0;
            gateways.line.inject_all_to_a(|| {
                if number % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                number += 1;
                let packet = forged(&request, number).ok();
                packet.filter(|_| !over.load(Ordering::Relaxed))
            })
        });
        let outcome = under_the_flood(&gateways, &before);
        over.store(true, Ordering::Relaxed);
        let sent = flood.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        outcome.with_context(|| gateways.a.log())?;
        sent
    })?;
    let status = gateways.a.status()?;
    ensure!(sent > 1000, "a flood of {sent} packets");
    ensure!(
        count(&status["half_open"]) <= 60 && count(&status["cookies_sent"]) > 100,
        "half open: {}, cookies: {}",
        status["half_open"],
        status["cookies_sent"]
    );
    gateways.verify_traffic()
}

fn under_the_flood(gateways: &Gateways, before: &serde_json::Value) -> Result<()> {
    // Several times the delay of dead peer detection, without any traffic that would make up for it.
    std::thread::sleep(Duration::from_secs(5));
    let after = gateways.b.connection()?;
    ensure!(
        after["state"] == "established"
            && after["ike"]["spi_initiator"] == before["ike"]["spi_initiator"],
        "{after:#}"
    );
    let ping = traffic::ping(&gateways.line.client, addr::SERVER, 20, &[])?;
    ensure!(ping.is_complete(), "{ping:?}");
    gateways.b.down()?;
    gateways.b.up()?;
    gateways.b.wait_established().map(drop)
}
