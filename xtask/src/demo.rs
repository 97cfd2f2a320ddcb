//! `cargo xtask demo`: two gateways, a tunnel between them, traffic through it, and a report.

mod report;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use espada_tests::capture;
use espada_tests::espada::{Config, Espada, PSK};
use espada_tests::peer;
use espada_tests::process::WorkDir;
use espada_tests::scenario;
use espada_tests::strongswan::{self, Kind, StrongSwan};
use espada_tests::topology::{self, Line, Wan, addr};
use espada_tests::{cleanup, traffic};
use serde_json::Value;

use crate::progress::Progress;
use crate::{build, setup};
use report::Report;

/// Where a demo that is kept has its files.
const KEPT_FILES: &str = "/run/espada-demo";
const KEPT_PREFIX: &str = "esp-demo-";
const IKE: &str = "aes256gcm16-prfsha256-x25519";
const ESP: &str = "aes256gcm16";
const PINGS: u32 = 20;
const PAYLOAD: usize = 1 << 20;
const SECONDS: u32 = 4;
/// What is recorded while throughput is measured: everything that would be wrong.
const NOT_PROTECTED: &str = "not (ip proto 50 or ip6 proto 50 or udp port 500 or udp port 4500 \
                             or arp or icmp6)";

/// Arguments of `cargo xtask demo`. With `ESPADA_BIN` in the environment that program is shown
/// instead of one built from this tree.
#[derive(clap::Args)]
pub struct Args {
    /// Leave everything running at the end, and print commands to try
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier `--keep` left
    #[arg(long, conflicts_with_all = ["keep", "json", "peer"])]
    remove: bool,
    /// What runs at gateway B
    #[arg(long, value_enum, default_value_t = PeerKind::Espada)]
    peer: PeerKind,
    /// Print one JSON object on standard output instead of the report
    #[arg(long)]
    json: bool,
}

/// The program at gateway B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PeerKind {
    /// Espada
    Espada,
    /// strongSwan with its userspace ESP
    Strongswan,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if args.remove {
        return remove_kept();
    }
    let outcome = demo(args);
    cleanup::yield_to_interruption();
    if args.json {
        let object = match &outcome {
            Ok(report) => report.to_json(),
            Err(error) => serde_json::json!({"established": false, "error": format!("{error:#}")}),
        };
        writeln!(std::io::stdout(), "{object}")?;
    }
    let report = outcome?;
    if !args.json {
        write!(std::io::stdout(), "{}", report.to_text())?;
    }
    report.verdict()
}

fn kept_namespaces() -> Vec<String> {
    let mut names = cleanup::namespaces();
    names.retain(|name| name.starts_with(KEPT_PREFIX));
    names
}

fn remove_kept() -> Result<()> {
    let names = kept_namespaces();
    cleanup::end_processes(&names);
    for name in &names {
        cleanup::remove_namespace(name);
    }
    let files = Path::new(KEPT_FILES);
    if files.exists() {
        std::fs::remove_dir_all(files).with_context(|| format!("cannot remove {KEPT_FILES}"))?;
    }
    if names.is_empty() {
        println!("there was no kept demo");
    } else {
        println!("removed {}", names.join(", "));
    }
    Ok(())
}

/// The program at gateway B, running.
enum Peer {
    Espada(Espada),
    StrongSwan(StrongSwan),
}

fn demo(args: &Args) -> Result<Report> {
    if !espada_tests::syscall::is_root() {
        bail!("the demo makes network namespaces, which needs root");
    }
    if args.keep && (!kept_namespaces().is_empty() || Path::new(KEPT_FILES).exists()) {
        bail!("an earlier demo is still there; `cargo xtask demo --remove` removes it");
    }
    let mut progress = Progress::new("demo", 7);
    progress.step("set-up and build");
    setup::install_packages()?;
    if std::env::var_os("ESPADA_BIN").is_none() {
        build::refresh_object()?;
        build::build_espada()?;
    }
    if let (PeerKind::Strongswan, Some(reason)) = (args.peer, strongswan::missing()) {
        bail!("{reason}");
    }

    progress.step("four namespaces: client, gateway A, gateway B, server");
    let (mut work, mut line) = if args.keep {
        (
            WorkDir::at(Path::new(KEPT_FILES))?,
            Line::named(KEPT_PREFIX, Wan::Switch)?,
        )
    } else {
        (WorkDir::new()?, Line::new(Wan::Switch)?)
    };

    progress.step("plain forwarding, for comparison");
    line.add_plain_routes()?;
    let warm_up = traffic::ping(&line.client, addr::SERVER, 3, &[])?;
    if !warm_up.is_complete() {
        bail!("the namespaces do not reach each other without a tunnel: {warm_up:?}");
    }
    let plain = traffic::tcp_throughput(&line.client, &line.server, addr::SERVER, SECONDS, &work)?;
    line.remove_plain_routes()?;

    progress.step("the tunnel");
    let all = line.capture(&work, "")?;
    let mut peer = start_peer(args, &line, &work)?;
    let mut gateway = Espada::start(&line.gw_a, &work, &config_a(), args.keep)?;
    gateway.up()?;
    gateway.wait_established()?;

    progress.step("ping and TCP through it");
    let ping = traffic::ping(&line.client, addr::SERVER, PINGS, &[])?;
    let payload = traffic::tcp_exchange(&line.client, &line.server, addr::SERVER, PAYLOAD);
    let mut packets = topology::finish(all)?;
    payload.with_context(|| format!("gateway A's log:\n{}", gateway.log()))?;
    let esp = packets
        .iter()
        .filter(|packet| packet.is_esp() || packet.is_esp_in_udp())
        .count();
    let payload_seen = capture::contains(&packets, &traffic::payload_start());

    progress.step("throughput");
    let wrong = line.capture(&work, NOT_PROTECTED)?;
    let tunnel = traffic::tcp_throughput(&line.client, &line.server, addr::SERVER, SECONDS, &work)?;
    let recorded = packets.len();
    packets.extend(topology::finish(wrong)?);

    progress.step("counters");
    let status_a = gateway.status()?;
    let connection = gateway.connection()?;
    let connection_b = match &peer {
        Peer::Espada(espada) => espada.connection()?,
        Peer::StrongSwan(_) => Value::Null,
    };
    let mut report = Report {
        peer: match args.peer {
            PeerKind::Espada => "Espada",
            PeerKind::Strongswan => "strongSwan",
        },
        status: status_a,
        connection,
        connection_b,
        ping,
        payload_bytes: PAYLOAD,
        tunnel_gbps: tunnel,
        plain_gbps: plain,
        recorded,
        esp,
        clear: capture::clear_packets(&packets).len() + usize::from(payload_seen),
        try_these: Vec::new(),
    };
    if args.keep {
        report.try_these = commands_to_try(&line, &gateway, &peer);
        line.keep();
        work.keep();
        gateway.keep();
        match &mut peer {
            Peer::Espada(espada) => espada.keep(),
            Peer::StrongSwan(strongswan) => strongswan.keep(),
        }
    }
    progress.done();
    Ok(report)
}

fn config_a() -> Config<'static> {
    Config {
        local: addr::WAN_A,
        local_id: "a.example",
        local_subnets: &[addr::LAN_A, addr::LAN_A6],
        remote: addr::WAN_B,
        remote_id: "b.example",
        remote_subnets: &[addr::LAN_B, addr::LAN_B6],
        ike: IKE,
        esp: ESP,
        start: "none",
        // ESP as packets of its own, which XDP steers past the kernel.
        extra: scenario::NATIVE,
        global: "",
        psk: PSK,
        local_auth: "",
        remote_auth: "",
    }
}

fn start_peer(args: &Args, line: &Line, work: &WorkDir) -> Result<Peer> {
    Ok(match args.peer {
        PeerKind::Espada => {
            let a = config_a();
            let config = Config {
                local: a.remote,
                local_id: a.remote_id,
                local_subnets: a.remote_subnets,
                remote: a.local,
                remote_id: a.local_id,
                remote_subnets: a.local_subnets,
                ..a
            };
            Peer::Espada(Espada::start(&line.gw_b, work, &config, args.keep)?)
        }
        PeerKind::Strongswan => {
            let connection = peer::Connection {
                local: addr::WAN_B,
                remote: addr::WAN_A,
                local_id: "b.example",
                remote_id: "a.example",
                ike: IKE,
                esp: ESP,
                local_ts: addr::LAN_B,
                remote_ts: addr::LAN_A,
                psk: PSK,
                pki: None,
                ike_extra: "",
                extra: "",
            };
            Peer::StrongSwan(StrongSwan::start(
                &line.gw_b,
                work,
                &connection,
                Kind::Libipsec,
                args.keep,
            )?)
        }
    })
}

fn commands_to_try(line: &Line, gateway: &Espada, peer: &Peer) -> Vec<String> {
    let inside = |name: &str, command: &str| format!("nsenter --net=/run/netns/{name} {command}");
    let client = line.client.name();
    let gw_a = line.gw_a.name();
    let mut commands = vec![
        gateway.argv(&["status"]).join(" "),
        match peer {
            Peer::Espada(espada) => espada.argv(&["status"]).join(" "),
            Peer::StrongSwan(strongswan) => strongswan.swanctl_argv(&["--list-sas"]).join(" "),
        },
        inside(client, &format!("ping {}", addr::SERVER)),
        inside(gw_a, "ip route"),
        inside(gw_a, "tcpdump -n -i espada0"),
    ];
    if let Some(switch) = &line.middle {
        commands.push(inside(switch.name(), "tcpdump -n -i to-b"));
    }
    commands.push(format!("less {KEPT_FILES}/espada-{gw_a}/espada.log"));
    commands.push("cargo xtask demo --remove".to_owned());
    commands
}
