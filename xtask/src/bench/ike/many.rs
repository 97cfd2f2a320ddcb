//! What many tunnels cost a daemon: memory, and how long `espada status` takes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espada_tests::topology::{Line, Wan};
use serde_json::json;

use super::gateways::{self, Auth, Daemon, Pair, Program, Wanted};
use super::load;
use crate::process::say;

/// Measures Espada at both ends with so many tunnels.
pub fn measure(tunnels: usize, as_json: bool) -> Result<String> {
    let line = Line::new(Wan::Direct)?;
    let wanted = Wanted {
        initiator: Program::Espada,
        responder: Program::Espada,
        auth: Auth::Psk,
        ike: "aes256-sha256-x25519",
        connections: tunnels,
    };
    let pair = Pair::start(&line, &wanted)?;
    let before = [pair.initiator.resident()?, pair.responder.resident()?];
    let names: Vec<String> = (0..tunnels).map(gateways::name).collect();
    let control = pair.initiator.control();
    say(format_args!("setting {tunnels} tunnels up"));
    let outcome = load::run(&control, &names, 16, Duration::from_secs(600))?;
    ensure!(
        outcome.latencies.len() == tunnels,
        "{} of {tunnels} tunnels came up",
        outcome.latencies.len()
    );
    let after = [pair.initiator.resident()?, pair.responder.resident()?];
    let each = |end: usize| (after[end].saturating_sub(before[end])) as f64 / tunnels as f64;
    let status = [status_time(&pair.initiator)?, status_time(&pair.responder)?];
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let seconds = outcome.elapsed.as_secs_f64();
    if as_json {
        let value = json!({
            "tunnels": tunnels,
            "set_up_s": seconds,
            "initiator_bytes_per_tunnel": each(0),
            "responder_bytes_per_tunnel": each(1),
            "initiator_status_ms": milliseconds(status[0]),
            "responder_status_ms": milliseconds(status[1]),
        });
        return Ok(format!("{value:#}\n"));
    }
    let mut out = format!("{tunnels} tunnels, set up in {seconds:.1} s\n");
    for (end, name) in ["initiator", "responder"].into_iter().enumerate() {
        out.push_str(&format!(
            "{name}: {:.1} KiB resident each, `espada status --json` in {:.0} ms\n",
            each(end) / 1024.0,
            milliseconds(status[end])
        ));
    }
    Ok(out)
}

/// How long the command takes from its start to its end.
fn status_time(daemon: &Daemon) -> Result<Duration> {
    let Daemon::Espada(daemon) = daemon else {
        anyhow::bail!("only Espada has this command");
    };
    let argv = daemon.argv(&["status", "--json"]);
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let began = Instant::now();
    let ended = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .context("cannot run `espada status`")?;
    ensure!(ended.success(), "`espada status` failed ({ended})");
    Ok(began.elapsed())
}
