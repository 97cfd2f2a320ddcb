//! `espada doctor` in a namespace whose state is known.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use espada_tests::espada;
use espada_tests::netns::Netns;
use espada_tests::process::WorkDir;
use espada_tests::scenario::{Gateways, NATIVE, config_a};
use espada_tests::topology::{Line, WAN_DEVICE, Wan};
use espada_tests::{cmd, skip_unless_possible};
use serde_json::Value;

fn doctor(netns: &Netns, arguments: &[&str]) -> Result<Output> {
    let binary = espada::binary()?.display().to_string();
    let mut argv = vec![binary.as_str(), "doctor"];
    argv.extend_from_slice(arguments);
    netns.output(&argv)
}

fn report(netns: &Netns, arguments: &[&str]) -> Result<Value> {
    let output = doctor(netns, &[&["--json"], arguments].concat())?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .with_context(|| format!("no JSON: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// The entry called `name` in a list of the report.
fn entry<'r>(list: &'r Value, name: &str) -> Result<&'r Value> {
    list.as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == name)
        .with_context(|| format!("no {name} in {list:#}"))
}

fn problems(report: &Value) -> Vec<&str> {
    report["advice"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|advice| advice["problem"] == true)
        .filter_map(|advice| advice["text"].as_str())
        .collect()
}

#[test]
fn a_gateways_namespace_is_found_fit() -> Result<()> {
    skip_unless_possible!("a_gateways_namespace_is_found_fit");
    let line = Line::new(Wan::Direct)?;
    let output = doctor(&line.gw_a, &[WAN_DEVICE])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}");
    ensure!(text.contains("userspace           works"), "{text}");

    let found = report(&line.gw_a, &[WAN_DEVICE])?;
    let wan = entry(&found["interfaces"], WAN_DEVICE)?;
    ensure!(wan["kind"] == "veth" && wan["driver"] == "veth", "{wan:#}");
    // Kernels before 6.3 cannot say; none may say no of a veth.
    ensure!(wan["native_xdp"]["answer"] != "no", "{wan:#}");
    ensure!(wan["zero_copy"]["answer"] != "yes", "{wan:#}");
    ensure!(found["network"]["forward4"]["answer"] == "yes", "{found:#}");
    ensure!(problems(&found).is_empty(), "{found:#}");
    // It looked, and left nothing behind.
    let device = line.gw_a.device(WAN_DEVICE)?.context("no WAN device")?;
    ensure!(!device["xdp"].is_object(), "{device:#}");
    ensure!(line.gw_a.device("espada-probe")?.is_none());
    Ok(())
}

#[test]
fn the_configurations_interfaces_are_looked_at() -> Result<()> {
    skip_unless_possible!("the_configurations_interfaces_are_looked_at");
    let line = Line::new(Wan::Direct)?;
    let work = WorkDir::new()?;
    let mut config = config_a(&line);
    config.global = "lan = [\"lan0\", \"lan9\"]";
    espada::Espada::write_files(work.path(), &config.render(), &config.render_secrets())?;
    let file = work.file("espada.toml").display().to_string();
    let found = report(&line.gw_a, &["--config", &file])?;
    entry(&found["interfaces"], WAN_DEVICE)?;
    // Kernels before 6.3 cannot say what a driver has.
    let fits = &entry(&found["lan"], "lan0")?["bypass"];
    ensure!(fits["answer"] != "no", "{found:#}");
    let missing = &entry(&found["lan"], "lan9")?["bypass"];
    ensure!(missing["answer"] == "no", "{found:#}");
    let problems = problems(&found).join("\n");
    ensure!(
        problems.contains("lan9 goes through the kernel"),
        "{problems}"
    );
    // There is no default route, so without a configuration there is nothing to look at.
    let found = report(&line.gw_a, &[])?;
    ensure!(found["interfaces"].as_array().is_some_and(Vec::is_empty));
    let output = doctor(&line.gw_a, &["nosuchdevice0"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.contains("nosuchdevice0"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_program_on_ikes_port_is_named() -> Result<()> {
    skip_unless_possible!("a_program_on_ikes_port_is_named");
    let line = Line::new(Wan::Direct)?;
    let _socket = line
        .gw_a
        .enter(|| UdpSocket::bind("0.0.0.0:500").context("cannot bind port 500"))?;
    let found = report(&line.gw_a, &[WAN_DEVICE])?;
    let problems = problems(&found).join("\n");
    ensure!(
        problems.contains("500") && problems.contains(&std::process::id().to_string()),
        "{found:#}"
    );
    Ok(())
}

/// What the doctor says and what a daemon then does are the same.
#[test]
fn its_verdict_is_what_the_daemon_does() -> Result<()> {
    skip_unless_possible!("its_verdict_is_what_the_daemon_does");
    let gateways = Gateways::established(Wan::Direct, |a, _| a.extra = NATIVE)?;
    let found = report(&gateways.line.gw_a, &[WAN_DEVICE])?;
    let status = gateways.a.status()?;
    let xsk = &status["interfaces"]["xsk"];
    ensure!(xsk["zero_copy"] == false, "{xsk:#}");
    let carries = entry(&found["engines"], "userspace")?["carries"].to_string();
    ensure!(
        carries.contains("AF_XDP") && !carries.contains("without copying"),
        "{carries}"
    );
    // The daemon's own ports and program are no problem.
    ensure!(problems(&found).is_empty(), "{found:#}");
    let wan = entry(&found["interfaces"], WAN_DEVICE)?;
    ensure!(wan["xdp_program"].is_u64(), "{wan:#}");
    for program in found["bpf"]["front_end"]["programs"]
        .as_array()
        .context("no programs")?
    {
        ensure!(program["load_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    }
    gateways.verify_traffic()
}

#[test]
fn an_ordinary_user_is_told_what_could_not_be_seen() -> Result<()> {
    skip_unless_possible!("an_ordinary_user_is_told_what_could_not_be_seen");
    let line = Line::new(Wan::Direct)?;
    let work = WorkDir::new()?;
    let binary = work.file("espada");
    std::fs::copy(espada::binary()?, &binary)?;
    for path in [work.path(), &binary] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    let binary = binary.display().to_string();
    let argv = line.gw_a.argv(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        &binary,
        "doctor",
        WAN_DEVICE,
    ])?;
    let output = cmd::output(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    for expected in ["user 65534", "needs root", "not run by root"] {
        ensure!(text.contains(expected), "no \"{expected}\" in\n{text}");
    }
    Ok(())
}
