//! The daemons at both gateways, as initiator with many connections or as responder with one that
//! takes all of them.

use std::fmt::{self, Display, Write as _};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use espada_tests::espada::Espada;
use espada_tests::pki::Pki;
use espada_tests::process::WorkDir;
use espada_tests::strongswan::{self, Kind, Settings, StrongSwan};
use espada_tests::topology::{Line, WAN_DEVICE, addr};

use super::session::Control;

const PSK: &str = "eighty-six swallows over the river at dusk";
/// Identities in the certificates.
const ID_A: &str = "a.example";
const ID_B: &str = "b.example";
const ESP: &str = "aes256gcm16";
/// What our connections' networks, an address each, are taken from. All of strongSwan's have the one
/// behind the gateway: kernel-libipsec wants an address of its own in it.
const NETWORKS: &str = "10.128.0.0/9";
/// strongSwan as it is set for many SAs at once: no cookies, no limits, a hash table, no log.
const MANY: &str = "dos_protection = no
    reuse_ikesa = no
    ikesa_table_size = 4096
    ikesa_table_segments = 16";
const SILENT: &str = "default = -1";

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Ours.
    Espada,
    /// This machine's strongSwan with kernel-libipsec.
    StrongSwan,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Espada, Self::StrongSwan];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Espada => "espada",
            Self::StrongSwan => "strongswan",
        }
    }

    /// Why it cannot run here, if it cannot.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Espada => None,
            Self::StrongSwan => strongswan::missing(),
        }
    }
}

impl Display for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What both ends prove themselves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// The pre-shared key.
    Psk,
    /// ECDSA certificates on P-256, both ends.
    Ecdsa,
}

impl Auth {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Ecdsa => "ecdsa256",
        }
    }
}

/// A gateway's daemon.
#[derive(Debug)]
pub enum Daemon {
    /// Ours.
    Espada(Espada),
    /// strongSwan.
    StrongSwan(StrongSwan),
}

impl Daemon {
    /// How it is asked for a connection.
    pub fn control(&self) -> Control {
        match self {
            Self::Espada(daemon) => Control::Espada(daemon.control_socket()),
            Self::StrongSwan(daemon) => Control::Vici(daemon.control_socket()),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Espada(daemon) => daemon.pid(),
            Self::StrongSwan(daemon) => daemon.pid(),
        }
    }

    /// Processor seconds it used so far, all its threads and the kernel's work for them.
    pub fn processor_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        ticks(&stat)
            .map(|ticks| ticks as f64 / 100.0)
            .context("no processor time in /proc/PID/stat")
    }

    /// Octets it has in memory.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        resident(&status).context("no VmRSS in /proc/PID/status")
    }
}

/// User and system time in hundredths of a second: fields 14 and 15 of proc_pid_stat(5).
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// What is between two daemons.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Who asks.
    pub initiator: Program,
    /// Who answers.
    pub responder: Program,
    /// How they prove who they are.
    pub auth: Auth,
    /// IKE proposal.
    pub ike: &'static str,
    /// Connections of the initiator.
    pub connections: usize,
}

/// Both daemons, running. Fields are dropped in this order.
#[derive(Debug)]
pub struct Pair {
    /// Gateway A's.
    pub initiator: Daemon,
    /// Gateway B's.
    pub responder: Daemon,
    _work: WorkDir,
}

/// Name of a connection of the initiator.
pub fn name(number: usize) -> String {
    format!("c{number}")
}

/// The address that a connection of the initiator protects.
fn network(number: usize) -> String {
    let number = number as u32;
    let [_, b, c, d] = number.to_be_bytes();
    format!("10.{}.{c}.{d}/32", 128 | b)
}

impl Pair {
    /// Starts both.
    pub fn start(line: &Line, wanted: &Wanted) -> Result<Self> {
        let work = WorkDir::new()?;
        let pki = match wanted.auth {
            Auth::Psk => None,
            Auth::Ecdsa => {
                let pki = Pki::new(&work.file("pki"), "ecdsa256")?;
                pki.issue(ID_A, "ecdsa256")?;
                pki.issue(ID_B, "ecdsa256")?;
                Some(pki)
            }
        };
        let responder = start(line, &work, wanted, Role::Responder, pki.as_ref())?;
        let initiator = start(line, &work, wanted, Role::Initiator, pki.as_ref())?;
        Ok(Self {
            initiator,
            responder,
            _work: work,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Initiator,
    Responder,
}

fn start(
    line: &Line,
    work: &WorkDir,
    wanted: &Wanted,
    role: Role,
    pki: Option<&Pki>,
) -> Result<Daemon> {
    let (program, netns, id) = match role {
        Role::Initiator => (wanted.initiator, &line.gw_a, ID_A),
        Role::Responder => (wanted.responder, &line.gw_b, ID_B),
    };
    match program {
        Program::Espada => {
            let files = work.file(&format!("espada-{}", netns.name()));
            let secrets = format!("[[psk]]\nids = []\nsecret = \"{PSK}\"\n");
            Espada::write_files(&files, &espada_config(wanted, role), &secrets)?;
            if let Some(pki) = pki {
                pki.deliver(id, &files)?;
            }
            Espada::start_logging(netns, &files, "warn", false).map(Daemon::Espada)
        }
        Program::StrongSwan => {
            let files: Vec<(&str, PathBuf)> = match (pki, role) {
                (None, _) => Vec::new(),
                (Some(pki), _) => vec![
                    ("x509/own.pem", pki.file(&format!("{id}.pem"))),
                    ("private/own.key", pki.file(&format!("{id}.key"))),
                    ("x509ca/ca.pem", pki.file("ca.pem")),
                ],
            };
            let settings = Settings {
                kind: Kind::Libipsec,
                charon: MANY,
                swanctl: &swanctl_config(wanted, role),
                log: SILENT,
                files: &files,
            };
            StrongSwan::start_from(netns, work, &settings, false).map(Daemon::StrongSwan)
        }
    }
}

/// Our identity of a connection of the initiator.
fn initiator_id(auth: Auth, number: usize) -> String {
    match auth {
        Auth::Psk => format!("{}.example", name(number)),
        Auth::Ecdsa => ID_A.to_owned(),
    }
}

fn espada_config(wanted: &Wanted, role: Role) -> String {
    let mut out = format!("[dataplane]\nengine = \"userspace\"\nwan = [\"{WAN_DEVICE}\"]\n");
    let (local, remote) = match wanted.auth {
        Auth::Psk => (String::new(), ""),
        Auth::Ecdsa => {
            let id = if role == Role::Initiator { ID_A } else { ID_B };
            let own = format!(", auth = \"pubkey\", certs = [\"{id}.pem\"], key = \"{id}.key\"");
            (own, ", auth = \"pubkey\", cacerts = [\"ca.pem\"]")
        }
    };
    let mut connection = |name: &str, ours: [&str; 3], theirs: [&str; 3]| {
        // Writing into a text cannot fail.
        let _ = write!(
            out,
            "[connection.{name}]\n\
             local = {{ address = \"{}\", id = \"{}\", subnets = [{}]{local} }}\n\
             remote = {{ address = \"{}\", id = \"{}\", subnets = [{}]{remote} }}\n\
             auth = \"psk\"\nike = \"{}\"\nesp = \"{ESP}\"\nstart = \"none\"\n",
            ours[0], ours[1], ours[2], theirs[0], theirs[1], theirs[2], wanted.ike,
        );
    };
    let behind_b = format!("\"{}\"", addr::LAN_B);
    let here = [addr::WAN_B, ID_B, &behind_b];
    match role {
        Role::Responder => {
            let all = format!("\"{NETWORKS}\", \"{}\"", addr::LAN_A);
            connection("all", here, [addr::WAN_A, "%any", &all]);
        }
        Role::Initiator => {
            for number in 0..wanted.connections {
                let id = initiator_id(wanted.auth, number);
                let network = format!("\"{}\"", network(number));
                connection(&name(number), [addr::WAN_A, &id, &network], here);
            }
        }
    }
    out
}

fn swanctl_config(wanted: &Wanted, role: Role) -> String {
    let mut out = "connections {\n".to_owned();
    let (local, remote) = match wanted.auth {
        Auth::Psk => ("auth = psk", "auth = psk"),
        Auth::Ecdsa => (
            "auth = pubkey\n certs = own.pem",
            "auth = pubkey\n cacerts = ca.pem",
        ),
    };
    let mut connection = |name: &str, ours: [&str; 3], theirs: [&str; 3]| {
        let _ = write!(
            out,
            "{name} {{
    version = 2
    unique = never
    local_addrs = {}
    remote_addrs = {}
    proposals = {}
    rekey_time = 0
    local {{ {local}
            id = {} }}
    remote {{ {remote}
             id = {} }}
    children {{ {name} {{
        local_ts = {}
        remote_ts = {}
        esp_proposals = {ESP}
        rekey_time = 0
    }} }}
}}
",
            ours[0], theirs[0], wanted.ike, ours[1], theirs[1], ours[2], theirs[2],
        );
    };
    let here = [addr::WAN_B, ID_B, addr::LAN_B];
    match role {
        Role::Responder => {
            let all = format!("{NETWORKS}, {}", addr::LAN_A);
            connection("all", here, [addr::WAN_A, "%any", &all]);
        }
        Role::Initiator => {
            for number in 0..wanted.connections {
                let id = initiator_id(wanted.auth, number);
                connection(&name(number), [addr::WAN_A, &id, addr::LAN_A], here);
            }
        }
    }
    let _ = write!(out, "}}\nsecrets {{ ike-all {{ secret = \"{PSK}\" }} }}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counts_is_read() {
        let stat = "12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("12"), None);
        assert_eq!(resident("VmPeak: 9 kB\nVmRSS:\t   20 kB\n"), Some(20 << 10));
    }

    #[test]
    fn connections_protect_networks_of_their_own() {
        assert_eq!(network(0), "10.128.0.0/32");
        assert_eq!(network(70_000), "10.129.17.112/32");
    }
}
