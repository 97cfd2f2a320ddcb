//! The engines under whole daemons: traffic, the choice among several, and life without a daemon.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espada_tests::espada::{self, Espada};
use espada_tests::scenario::{Gateways, child, count, ensure_nothing_clear};
use espada_tests::topology::{Line, Wan, addr};
use espada_tests::{skip, skip_unless_possible, traffic};
use serde_json::Value;

const CHACHA: &str = "chacha20poly1305";
const EBPF: &str = "engine = \"ebpf\"";
const EBPF_AHEAD: &str = "engine = \"ebpf\"\nkeystream_ahead = true";

fn ebpf_both(wan: Wan, global: &'static str) -> Result<Gateways> {
    Gateways::established(wan, |a, b| {
        for end in [a, b] {
            end.esp = CHACHA;
            end.global = global;
        }
    })
}

fn carried_by(end: &Espada, engine: &str) -> Result<Value> {
    let connection = end.connection()?;
    let child = child(&connection).clone();
    ensure!(child["engine"] == engine, "{child:#}");
    Ok(child)
}

#[test]
fn ebpf_carries_a_tunnel() -> Result<()> {
    skip_unless_possible!("ebpf_carries_a_tunnel");
    let gateways = ebpf_both(Wan::Switch, EBPF)?;
    let packets = gateways.record(|| gateways.verify_traffic())?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp()));
    for end in [&gateways.a, &gateways.b] {
        let child = carried_by(end, "ebpf")?;
        for direction in ["inbound", "outbound"] {
            let half = &child[direction];
            ensure!(half["packets"].as_u64() > Some(100), "{child:#}");
            ensure!(
                half["wire"]["packets"].as_u64() >= half["packets"].as_u64(),
                "{child:#}"
            );
        }
    }
    Ok(())
}

#[test]
fn ebpf_carries_a_tunnel_through_a_nat() -> Result<()> {
    skip_unless_possible!("ebpf_carries_a_tunnel_through_a_nat");
    let gateways = ebpf_both(Wan::Nat, EBPF)?;
    let packets = gateways.record(|| gateways.verify_traffic())?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp_in_udp()));
    carried_by(&gateways.b, "ebpf").map(drop)
}

#[test]
fn xfrm_carries_a_tunnel() -> Result<()> {
    skip_unless_possible!("xfrm_carries_a_tunnel");
    let started = Gateways::established(Wan::Switch, |a, b| {
        for end in [a, b] {
            end.global = "engine = \"xfrm\"";
        }
    });
    let gateways = match started {
        Err(error) if format!("{error:#}").contains("xfrm engine: ") => {
            let text = format!("{error:#}");
            let reason = text.lines().find(|line| line.contains("xfrm engine: "));
            skip("xfrm_carries_a_tunnel", reason.unwrap_or(&text));
            return Ok(());
        }
        other => other?,
    };
    gateways.verify_traffic()?;
    carried_by(&gateways.a, "xfrm").map(drop)
}

/// SAs for single processors (RFC 9611): both ends have one for each, and packets take that of the
/// processor they are sent on.
#[test]
fn xfrm_has_sas_for_single_processors() -> Result<()> {
    let name = "xfrm_has_sas_for_single_processors";
    skip_unless_possible!(name);
    let line = Line::new(Wan::Switch)?;
    let doctor = [&espada::binary()?.display().to_string(), "doctor", "--json"];
    let report: Value = serde_json::from_slice(&line.gw_a.output(&doctor)?.stdout)?;
    drop(line);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if report["ipsec"]["per_cpu"]["answer"] != "yes" || processors < 2 {
        skip(
            name,
            "it takes a kernel with SAs for single processors, and two of those",
        );
        return Ok(());
    }
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        for end in [a, b] {
            end.global = "engine = \"xfrm\"";
            end.extra = "per_cpu_sas = true";
        }
    })?;
    let has_all = |connection: &Value| {
        let children = connection["children"].as_array();
        children.is_some_and(|children| children.len() == processors + 1)
    };
    gateways
        .a
        .wait_connection("an SA for each processor", has_all)?;
    gateways.verify_traffic()?;
    for number in ["0", "1"] {
        let sent = || -> Result<u64> {
            let connection = gateways.a.connection()?;
            let mut children = connection["children"].as_array().into_iter().flatten();
            let own = children.find(|child| child["share"] == format!("processor {number}"));
            let own =
                own.with_context(|| format!("none for processor {number}: {connection:#}"))?;
            Ok(count(&own["outbound"]["packets"]))
        };
        let before = sent()?;
        let ping = "ping -n -q -i 0.01 -c 50 -w 20".split(' ');
        let ping: Vec<&str> = ["taskset", "-c", number].into_iter().chain(ping).collect();
        let output = gateways
            .line
            .client
            .run(&[&ping[..], &[addr::SERVER]].concat())?;
        let more = sent()? - before;
        ensure!(
            more >= 40,
            "{more} of 50 with processor {number}'s: {output}"
        );
    }
    Ok(())
}

/// Each SA goes to the first engine that carries its suite, and the status says why not to another.
#[test]
fn the_suite_decides_between_engines() -> Result<()> {
    skip_unless_possible!("the_suite_decides_between_engines");
    let order = "engine = [\"ebpf\", \"userspace\"]";
    for (esp, engine) in [(CHACHA, "ebpf"), ("aes256gcm16", "userspace")] {
        let gateways = Gateways::established(Wan::Switch, |a, b| {
            for end in [a, b] {
                end.esp = esp;
                end.global = order;
            }
        })?;
        gateways.verify_traffic()?;
        let child = carried_by(&gateways.a, engine)?;
        let passed_over = child["passed_over"].to_string();
        ensure!(
            passed_over.contains("ebpf: carries chacha20poly1305 only") == (engine == "userspace"),
            "{child:#}"
        );
    }
    Ok(())
}

/// `kill -9`: packets pass while no daemon runs, and the next one goes on with the same SAs.
#[test]
fn ebpf_goes_on_without_a_daemon() -> Result<()> {
    skip_unless_possible!("ebpf_goes_on_without_a_daemon");
    goes_on_without_a_daemon(EBPF)
}

#[test]
fn ebpf_goes_on_without_a_daemon_that_prepared_keystream() -> Result<()> {
    skip_unless_possible!("ebpf_goes_on_without_a_daemon_that_prepared_keystream");
    goes_on_without_a_daemon(EBPF_AHEAD)
}

fn goes_on_without_a_daemon(global: &'static str) -> Result<()> {
    let mut gateways = ebpf_both(Wan::Switch, global)?;
    gateways.verify_traffic()?;
    let before = gateways.a.connection()?;
    // 500 packets a second for 8 s, each with its answer.
    let argv = gateways.line.client.argv(&[
        "ping",
        "-n",
        "-q",
        "-i",
        "0.002",
        "-c",
        "4000",
        "-w",
        "20",
        addr::SERVER,
    ])?;
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let ping = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    gateways.a.kill()?;
    std::thread::sleep(Duration::from_secs(2));
    let files = gateways.a.files().to_owned();
    gateways.a = Espada::start_from(&gateways.line.gw_a, &files, false)?;
    gateways.a.wait_log("taken over")?;
    let output = ping.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("4000 received"),
        "{text}\n{}",
        gateways.a.log()
    );

    let after = gateways.a.wait_established()?;
    ensure!(
        before["ike"]["spi_initiator"] == after["ike"]["spi_initiator"],
        "{before:#}\n{after:#}"
    );
    ensure!(child(&before)["inbound"]["spi"] == child(&after)["inbound"]["spi"]);
    gateways.verify_traffic()?;
    // The peer has noticed nothing, and both ends agree on what comes next.
    gateways.b.down()?;
    gateways
        .a
        .wait_connection("the end of the tunnel", |connection| {
            connection["state"] == "down"
        })?;
    gateways.up()?;
    gateways.verify_traffic()?;
    let ping = traffic::ping(&gateways.line.client, addr::SERVER, 5, &[])?;
    ensure!(ping.is_complete(), "{ping:?}");
    Ok(())
}
