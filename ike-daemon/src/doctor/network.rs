//! The network stack around the tunnel, and who else is in it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use espada_dataplane::netlink::Netlink;
use espada_dataplane::nl;
use serde::Serialize;

use super::fact::{Answer, Fact};
use super::host::Symbols;
use super::interface::Interface;

/// The network stack.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// `/dev/net/tun` can be used.
    pub tun: Fact,
    /// IPv6 is there.
    pub ipv6: Fact,
    /// This host forwards IPv4.
    pub forward4: Fact,
    /// This host forwards IPv6.
    pub forward6: Fact,
    /// Interfaces among those looked at with a strict reverse path filter.
    pub strict_rp_filter: Vec<String>,
    /// Programs that hold UDP ports 500 and 4500.
    pub ike_ports: Vec<PortHolder>,
    /// Devices of kind `vti`: they take ESP of their peers before anybody else sees it.
    pub vti: Vec<String>,
    /// Tables of the packet filter; `None` where they may not be seen.
    pub firewall: Option<Vec<String>>,
}

/// A program that holds one of IKE's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortHolder {
    /// 500 or 4500.
    pub port: u16,
    /// Its process, where that may be seen.
    pub pid: Option<u32>,
    /// Its program's name.
    pub program: Option<String>,
}

impl Network {
    /// Looks.
    pub fn look(interfaces: &[Interface], symbols: &Symbols) -> Self {
        Self {
            tun: tun(),
            ipv6: ipv6(),
            forward4: setting("ipv4/ip_forward"),
            forward6: setting("ipv6/conf/all/forwarding"),
            strict_rp_filter: strict_rp_filter(interfaces),
            ike_ports: ike_ports(),
            vti: vti(),
            firewall: firewall(symbols),
        }
    }

    /// Who holds IKE's ports, Espada's own daemon aside.
    pub fn other_ike(&self) -> Vec<&PortHolder> {
        self.ike_ports
            .iter()
            .filter(|holder| holder.program.as_deref() != Some("espada"))
            .collect()
    }
}

/// Opens the device as the daemon would, and makes no interface.
fn tun() -> Fact {
    const DEVICE: &str = "/dev/net/tun";
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE);
    let Err(error) = opened else {
        return Fact::plain(Answer::Yes);
    };
    let registered = fs::read_to_string("/proc/misc").unwrap_or_default();
    let driver = registered
        .lines()
        .any(|line| line.split_whitespace().nth(1) == Some("tun"));
    match error.kind() {
        io::ErrorKind::PermissionDenied if driver => Fact::yes("for root"),
        io::ErrorKind::NotFound if driver => Fact::no(
            "the kernel has it and the file is not there: \
             `mknod /dev/net/tun c 10 200`, or `--device /dev/net/tun` for a container",
        ),
        io::ErrorKind::PermissionDenied => Fact::unknown("not open to this user"),
        _ => Fact::no(format!(
            "{error}: `modprobe tun`, or `--device /dev/net/tun` for a container"
        )),
    }
}

fn ipv6() -> Fact {
    if !fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
        return Fact::no("not in this kernel, or `ipv6.disable=1` on its command line");
    }
    match read_setting("ipv6/conf/all/disable_ipv6").as_deref() {
        Some("1") => Fact::no("net.ipv6.conf.all.disable_ipv6 is 1"),
        _ => Fact::plain(Answer::Yes),
    }
}

fn read_setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    Some(text.trim().to_owned())
}

fn setting(name: &str) -> Fact {
    match read_setting(name).as_deref() {
        None => Fact::unknown(format!("there is no net.{}", name.replace('/', "."))),
        Some("0") => Fact::plain(Answer::No),
        Some(_) => Fact::plain(Answer::Yes),
    }
}

fn strict_rp_filter(interfaces: &[Interface]) -> Vec<String> {
    let value = |name: &str| -> u8 {
        read_setting(&format!("ipv4/conf/{name}/rp_filter"))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let everywhere = value("all");
    interfaces
        .iter()
        // The kernel takes the larger of the two; 1 is strict, 2 is loose.
        .filter(|interface| everywhere.max(value(&interface.name)) == 1)
        .map(|interface| interface.name.clone())
        .collect()
}

fn ike_ports() -> Vec<PortHolder> {
    let mut sockets = BTreeSet::new();
    for file in ["/proc/net/udp", "/proc/net/udp6"] {
        sockets.extend(ike_sockets(&fs::read_to_string(file).unwrap_or_default()));
    }
    let mut holders: Vec<PortHolder> = Vec::new();
    if sockets.is_empty() {
        return holders;
    }
    let owners = socket_owners();
    for (port, inode) in sockets {
        let pid = owners
            .iter()
            .find(|(owned, _)| *owned == inode)
            .map(|(_, pid)| *pid);
        let holder = PortHolder {
            port,
            pid,
            program: pid.and_then(program_name),
        };
        // One program has a socket for each family.
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders
}

/// Ports and inodes of the sockets on 500 and 4500 in the kernel's table.
pub(super) fn ike_sockets(table: &str) -> Vec<(u16, u64)> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let port = u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok()?;
            let inode = words.get(9)?.parse().ok()?;
            matches!(port, 500 | 4500).then_some((port, inode))
        })
        .collect()
}

/// Inodes of the sockets of all processes that may be looked into.
fn socket_owners() -> Vec<(u64, u32)> {
    let mut owners = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd"));
        for file in files.into_iter().flatten().flatten() {
            let inode = fs::read_link(file.path())
                .ok()
                .and_then(|target| socket_inode(target.to_str()?));
            owners.extend(inode.map(|inode| (inode, pid)));
        }
    }
    owners
}

/// `socket:[12345]`.
pub(super) fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn program_name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}

fn vti() -> Vec<String> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links());
    links
        .unwrap_or_default()
        .into_iter()
        .filter(|link| matches!(link.kind.as_deref(), Some("vti" | "vti6")))
        .map(|link| link.name)
        .collect()
}

/// The tables of nftables (which iptables makes as well, except its old form). The kernel is only
/// asked where it has nftables already: asking would load it.
fn firewall(symbols: &Symbols) -> Option<Vec<String>> {
    const NETLINK_NETFILTER: isize = 12;
    const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
    const NFTA_TABLE_NAME: u16 = 1;
    /// Octets of `struct nfgenmsg`, the family first.
    const HEADER: usize = 4;
    if !symbols.has_function("nf_tables_gettable") {
        return None;
    }
    let answers = nl::ask(
        NETLINK_NETFILTER,
        NFT_MSG_GETTABLE,
        nl::NLM_F_DUMP,
        &[0; HEADER],
    )
    .ok()?;
    Some(
        answers
            .iter()
            .filter_map(|answer| {
                let family = match answer.payload.first()? {
                    1 => "inet",
                    2 => "ip",
                    5 => "netdev",
                    10 => "ip6",
                    // ARP and bridges have no say in ours.
                    _ => return None,
                };
                let name = nl::attributes(answer.payload.get(HEADER..)?)
                    .find(|(kind, _)| *kind == NFTA_TABLE_NAME)
                    .map(|(_, value)| value)?;
                let name = String::from_utf8_lossy(name);
                Some(format!("{family} {}", name.trim_end_matches('\0')))
            })
            .collect(),
    )
}
