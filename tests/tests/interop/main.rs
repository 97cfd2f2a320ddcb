//! Espada at gateway A, strongSwan at gateway B: both roles, the suites that matter, and refusals.

mod addresses;
mod agree;
mod certificates;
mod extensions;
mod kernel;
mod newer;
mod pairs;
mod ppk;
mod pvpn;
mod refuse;
mod selectors;

use anyhow::Result;
use espada_tests::espada::{Config, Espada, PSK};
use espada_tests::peer::{Connection, Peer as _};
use espada_tests::process::WorkDir;
use espada_tests::scenario::{self, ID_A, ID_B};
use espada_tests::strongswan::{Kind, StrongSwan};
use espada_tests::topology::{Line, Wan, addr};

/// Espada and strongSwan, running. Fields are dropped in this order.
struct Pair {
    espada: Espada,
    strongswan: StrongSwan,
    line: Line,
    work: WorkDir,
}

impl Pair {
    /// Both logs, for an error.
    fn logs(&self) -> String {
        format!(
            "espada:\n{}\nstrongSwan:\n{}",
            self.espada.log(),
            self.strongswan.log()
        )
    }
}

/// Starts both; `change` adapts what they are told. kernel-libipsec carries IPv4.
fn start(
    wan: Wan,
    change: impl FnOnce(&mut Config<'static>, &mut Connection<'static>),
) -> Result<Pair> {
    start_with(wan, "", change)
}

/// The same with more lines of strongSwan's own configuration.
fn start_with(
    wan: Wan,
    charon: &str,
    change: impl FnOnce(&mut Config<'static>, &mut Connection<'static>),
) -> Result<Pair> {
    start_kind(Kind::Libipsec, wan, charon, change)
}

/// The same with any strongSwan.
fn start_kind(
    kind: Kind,
    wan: Wan,
    charon: &str,
    change: impl FnOnce(&mut Config<'static>, &mut Connection<'static>),
) -> Result<Pair> {
    let line = Line::new(wan)?;
    let work = WorkDir::new()?;
    let mut ours = scenario::config_a(&line);
    ours.local_subnets = &[addr::LAN_A];
    ours.remote_subnets = &[addr::LAN_B];
    let mut theirs = Connection {
        local: addr::WAN_B,
        remote: if wan == Wan::Nat { "%any" } else { addr::WAN_A },
        local_id: ID_B,
        remote_id: ID_A,
        ike: ours.ike,
        esp: ours.esp,
        local_ts: addr::LAN_B,
        remote_ts: addr::LAN_A,
        psk: PSK,
        pki: None,
        ike_extra: "",
        extra: "",
    };
    change(&mut ours, &mut theirs);
    let strongswan = StrongSwan::start_with(&line.gw_b, &work, &theirs, kind, false, charon)?;
    let espada = Espada::start(&line.gw_a, &work, &ours, false)?;
    Ok(Pair {
        espada,
        strongswan,
        line,
        work,
    })
}

/// The other way round: strongSwan at gateway A behind a NAT router, Espada at gateway B.
fn start_swapped() -> Result<Pair> {
    let line = Line::new(Wan::Nat)?;
    let work = WorkDir::new()?;
    let mut ours = scenario::config_b(&line);
    ours.local_subnets = &[addr::LAN_B];
    ours.remote_subnets = &[addr::LAN_A];
    let theirs = Connection {
        local: line.wan_a(),
        remote: addr::WAN_B,
        local_id: ID_A,
        remote_id: ID_B,
        ike: ours.ike,
        esp: ours.esp,
        local_ts: addr::LAN_A,
        remote_ts: addr::LAN_B,
        psk: PSK,
        pki: None,
        ike_extra: "",
        extra: "",
    };
    let espada = Espada::start(&line.gw_b, &work, &ours, false)?;
    let strongswan = StrongSwan::start(&line.gw_a, &work, &theirs, Kind::Libipsec, false)?;
    Ok(Pair {
        espada,
        strongswan,
        line,
        work,
    })
}
