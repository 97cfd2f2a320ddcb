//! Peers with the kernel's own ESP: native protocol 50 and everything else that strongSwan's
//! userspace ESP cannot do, for every engine of Espada. Not every machine's kernel will do; those
//! of the VM tier of `cargo xtask test` do.

mod libreswan;
mod openiked;
mod strongswan;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use espada_tests::capture;
use espada_tests::espada::{Espada, PSK};
use espada_tests::matrix::{self, Outcome};
use espada_tests::peer::{self, Connection, Peer};
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, ID_A, ID_B, child, count, ensure_nothing_clear, verify_v4};
use espada_tests::topology::{self, Line, Wan, addr};
use espada_tests::traffic;

/// A kind of foreign peer, as far as the cases are concerned.
trait Kind {
    /// Its name in the matrix.
    const NAME: &'static str;

    /// Whether it replaces child SAs when it is asked to.
    const REKEYS: bool;

    /// What makes a connection of transport mode.
    const TRANSPORT: &'static str;

    /// One that runs.
    type Peer: Peer;

    /// Why it cannot run here, if it cannot.
    fn missing() -> Option<String>;

    /// Starts it at gateway B.
    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer>;
}

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    Espada,
    Peer,
}

/// What the tunnel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The networks behind both.
    Tunnel,
    /// The two gateways themselves.
    Transport,
}

/// One way to agree.
struct Case {
    wan: Wan,
    mode: Mode,
    begins: Begins,
    /// IKE and ESP proposals as Espada says them.
    ours: [&'static str; 2],
    /// The same in the peer's words, and what else its connection says.
    theirs: [&'static str; 3],
}

/// The gateways themselves.
const HOST_A: &str = "198.18.0.1/32";
const HOST_B: &str = "198.18.0.2/32";
/// Gateway A behind a NAT.
const PRIVATE_A: &str = "192.168.61.2/32";

/// For peers with Espada's words, which are strongSwan's.
const SAME: [&str; 3] = ["", "", ""];

/// Espada and the peer, running. Fields are dropped in this order.
struct Pair<K: Kind> {
    espada: Espada,
    peer: K::Peer,
    line: Line,
    work: WorkDir,
}

impl<K: Kind> Pair<K> {
    fn start(engine: &str, case: &Case) -> Result<Self> {
        let line = Line::new(case.wan)?;
        let work = WorkDir::new()?;
        let mut ours = scenario::config_a(&line);
        [ours.ike, ours.esp] = case.ours;
        ours.global = matrix::engine_setting(engine);
        ours.extra = case.mode.setting();
        let [ike, esp, extra] = case.theirs;
        let [ike, esp] = if case.theirs == SAME {
            case.ours
        } else {
            [ike, esp]
        };
        let (local_subnets, remote_subnets) = match case.mode {
            Mode::Tunnel => (&[addr::LAN_A], &[addr::LAN_B]),
            Mode::Transport if case.wan == Wan::Nat => (&[PRIVATE_A], &[HOST_B]),
            Mode::Transport => (&[HOST_A], &[HOST_B]),
        };
        (ours.local_subnets, ours.remote_subnets) = (local_subnets, remote_subnets);
        let theirs = Connection {
            local: addr::WAN_B,
            remote: if case.wan == Wan::Nat {
                "%any"
            } else {
                addr::WAN_A
            },
            local_id: ID_B,
            remote_id: ID_A,
            ike,
            esp,
            local_ts: remote_subnets[0],
            remote_ts: match case.mode {
                Mode::Transport if case.wan == Wan::Nat => "dynamic",
                _ => local_subnets[0],
            },
            psk: PSK,
            pki: None,
            ike_extra: "",
            extra: &match case.mode {
                Mode::Tunnel => extra.to_owned(),
                Mode::Transport => format!("{extra}\n{}", K::TRANSPORT),
            },
        };
        let peer = K::start(&line, &work, &theirs)?;
        let espada = Espada::start(&line.gw_a, &work, &ours, false)?;
        Ok(Self {
            espada,
            peer,
            line,
            work,
        })
    }

    fn bring_up(&self, begins: Begins) -> Result<()> {
        match begins {
            Begins::Espada => self.espada.up().map(drop)?,
            Begins::Peer => self.peer.initiate()?,
        }
        self.espada.wait_established()?;
        self.peer.wait_established()
    }

    /// Brings the tunnel up and sends traffic through it, all recorded.
    fn carry(&self, engine: &str, case: &Case) -> Result<()> {
        let recording = self.line.capture(&self.work, "")?;
        self.bring_up(case.begins)?;
        let (from, to, target) = match case.mode {
            Mode::Tunnel => {
                verify_v4(&self.line)?;
                (&self.line.client, &self.line.server, addr::SERVER)
            }
            Mode::Transport => {
                let ping = traffic::ping(&self.line.gw_a, addr::WAN_B, 10, &[])?;
                ensure!(ping.is_complete(), "echo requests to the peer: {ping:?}");
                (&self.line.gw_a, &self.line.gw_b, addr::WAN_B)
            }
        };
        // Full-size packets: the kernel's own idea of the path MTU meets ours.
        traffic::tcp_exchange(from, to, target, 1 << 19)?;
        let packets = topology::finish(recording)?;
        ensure_nothing_clear(&packets)?;
        let in_udp = case.wan == Wan::Nat;
        ensure!(packets.iter().any(if in_udp {
            capture::Packet::is_esp_in_udp
        } else {
            capture::Packet::is_esp
        }));
        let status = self.espada.status()?;
        let connection = self.espada.connection()?;
        let child = child(&connection);
        let carrier = child["engine"].as_str().or(status["engine"].as_str());
        ensure!(
            carrier == Some(engine),
            "not carried by {engine}: {status:#}"
        );
        ensure!(
            child["encapsulation"] == if in_udp { "udp" } else { "esp" },
            "{child:#}"
        );
        // The first child SA has no key exchange of its own: a group of `esp` is for rekeying.
        let esp = case.ours[1].trim_end_matches("-x25519");
        ensure!(child["suite"] == esp, "{child:#}");
        for direction in ["inbound", "outbound"] {
            ensure!(count(&child[direction]["packets"]) > 100, "{child:#}");
            ensure!(
                child[direction]["drops"]
                    .as_object()
                    .is_none_or(serde_json::Map::is_empty),
                "{child:#}"
            );
        }
        ensure!(!capture::contains(&packets, &traffic::payload_start()));
        Ok(())
    }

    /// The peer replaces the child SA under traffic: nothing is lost.
    fn rekey(&self) -> Result<()> {
        let spi =
            || -> Result<_> { Ok(child(&self.espada.connection()?)["inbound"]["spi"].clone()) };
        let old = spi()?;
        let client = &self.line.client;
        let ping = std::thread::scope(|scope| {
            let pinging = scope.spawn(|| {
                let slowly = ["-i", "0.02", "-w", "12"];
                traffic::ping(client, addr::SERVER, 300, &slowly)
            });
            std::thread::sleep(Duration::from_millis(500));
            self.peer.rekey_child()?;
            pinging
                .join()
                .map_err(|_| anyhow!("the pinging thread panicked"))?
        })?;
        ensure!(ping.is_complete(), "{ping:?}: {:#}", self.espada.status()?);
        self.espada
            .wait_connection("the old child SA's end", |connection| {
                connection["children"]
                    .as_array()
                    .is_some_and(|list| list.len() == 1)
            })?;
        ensure!(spi()? != old, "the child SA was not replaced");
        Ok(())
    }

    /// The side that did not begin ends it; the other must hear of it.
    fn end(&self, begins: Begins) -> Result<()> {
        if begins == Begins::Peer {
            return self.espada.down().map(drop);
        }
        self.peer.terminate()?;
        self.espada
            .wait_connection("the end of the tunnel", |connection| {
                connection["children"].as_array().is_some_and(Vec::is_empty)
            })
            .map(drop)
    }

    /// Both logs, for an error.
    fn logs(&self) -> String {
        format!(
            "espada:\n{}\n{}:\n{}",
            self.espada.log(),
            K::NAME,
            self.peer.log()
        )
    }
}

impl Mode {
    /// The line of Espada's connection.
    fn setting(self) -> &'static str {
        match self {
            // Through AF_XDP, where the front end would otherwise leave the link its offloads.
            Self::Tunnel => scenario::NATIVE,
            Self::Transport => "mode = \"transport\"",
        }
    }
}

/// Why an engine never carries a suite, if it does not.
pub fn lacks(engine: &str, esp: &str) -> Option<String> {
    (engine == "ebpf" && !esp.starts_with("chacha20poly1305"))
        .then(|| "the eBPF engine carries ChaCha20-Poly1305 alone".to_owned())
}

/// Runs a case with an engine.
fn run<K: Kind>(engine: &str, name: &str, case: &Case) -> Result<()> {
    let test = |pair: &Pair<K>| {
        pair.carry(engine, case)?;
        if K::REKEYS && case.begins == Begins::Peer && case.mode == Mode::Tunnel {
            pair.rekey()?;
        }
        pair.end(case.begins)
    };
    matrix::case(engine, K::NAME, name, case.mode.setting(), || {
        let reason = lacks(engine, case.ours[1])
            .or_else(peer::missing_kernel_esp)
            .or_else(K::missing);
        if let Some(reason) = reason {
            return Ok(Outcome::Skipped(reason));
        }
        let pair = Pair::<K>::start(engine, case)?;
        test(&pair).with_context(|| pair.logs())?;
        Ok(Outcome::Passed)
    })
}

/// A module for every case, with a test for every engine.
macro_rules! cases {
    ($kind:ty; $($name:ident: $wan:ident, $begins:ident, $ours:expr, $theirs:expr;)*) => {$(
        mod $name {
            use super::*;

            const CASE: $crate::kernel::Case = $crate::kernel::Case {
                wan: espada_tests::topology::Wan::$wan,
                mode: $crate::kernel::Mode::Tunnel,
                begins: $crate::kernel::Begins::$begins,
                ours: $ours,
                theirs: $theirs,
            };

            #[test]
            fn userspace() -> anyhow::Result<()> {
                $crate::kernel::run::<$kind>("userspace", stringify!($name), &CASE)
            }

            #[test]
            fn ebpf() -> anyhow::Result<()> {
                $crate::kernel::run::<$kind>("ebpf", stringify!($name), &CASE)
            }

            #[test]
            fn xfrm() -> anyhow::Result<()> {
                $crate::kernel::run::<$kind>("xfrm", stringify!($name), &CASE)
            }
        }
    )*};
}

/// Transport mode, which the kernel carries.
macro_rules! transport {
    ($kind:ty; $begins:ident, $ours:expr, $theirs:expr) => {
        $crate::kernel::transport! { $kind; transport: Switch, $begins, $ours, $theirs; }
    };
    ($kind:ty; $($name:ident: $wan:ident, $begins:ident, $ours:expr, $theirs:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn xfrm() -> anyhow::Result<()> {
                let case = $crate::kernel::Case {
                    wan: espada_tests::topology::Wan::$wan,
                    mode: $crate::kernel::Mode::Transport,
                    begins: $crate::kernel::Begins::$begins,
                    ours: $ours,
                    theirs: $theirs,
                };
                $crate::kernel::run::<$kind>("xfrm", stringify!($name), &case)
            }
        }
    )*};
}

use {cases, transport};
