//! What all that was found means for each engine, and what to change.

use espada_dataplane::features::{self, EBPF_ENGINE, FRONT_END};
use espada_dataplane::plane::EngineKind;
use serde::Serialize;

use super::bpf::Bpf;
use super::fact::{Answer, Fact};
use super::host::Host;
use super::interface::Interface;
use super::ipsec::Ipsec;
use super::lan::Lan;
use super::network::Network;

/// What an engine could do here.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// As in the configuration's `engine`.
    pub name: &'static str,
    /// Whether it works here.
    pub usable: Answer,
    /// What it carries, and how here.
    pub carries: Vec<String>,
    /// Why not, or why that is not known, each with what to change.
    pub reasons: Vec<String>,
}

/// Something to change or to know.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    /// True for what keeps the daemon or its traffic from working; false for hints.
    pub problem: bool,
    /// What was found, what it means, and what to do.
    pub text: String,
}

impl Engine {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            usable: Answer::Yes,
            carries: Vec::new(),
            reasons: Vec::new(),
        }
    }

    fn no(&mut self, reason: impl Into<String>) {
        self.usable = Answer::No;
        self.reasons.push(reason.into());
    }

    fn unknown(&mut self, reason: impl Into<String>) {
        if self.usable == Answer::Yes {
            self.usable = Answer::Unknown;
        }
        self.reasons.push(reason.into());
    }

    fn require(&mut self, what: &str, fact: &Fact) {
        match fact.answer {
            Answer::Yes => {}
            Answer::No => self.no(format!("{what}: {}", fact.words())),
            Answer::Unknown => self.unknown(format!("{what}: {}", fact.words())),
        }
    }

    fn require_capability(&mut self, host: &Host, capability: &str, purpose: &str) {
        if host.lacks(capability) {
            self.no(format!(
                "root lacks {capability} here, which {purpose} needs: give it to the container or unit \
                 (`--cap-add {}`, `AmbientCapabilities=`)",
                capability.trim_start_matches("CAP_")
            ));
        }
    }
}

/// All engines.
pub fn engines(
    host: &Host,
    bpf: &Bpf,
    interfaces: &[Interface],
    ipsec: &Ipsec,
    network: &Network,
) -> Vec<Engine> {
    vec![
        userspace(host, bpf, interfaces, network),
        ebpf(host, interfaces),
        xfrm(host, ipsec),
    ]
}

/// The engine that `auto` takes first.
pub fn auto(engines: &[Engine]) -> Option<&'static str> {
    EngineKind::AUTO
        .map(EngineKind::name)
        .into_iter()
        .find(|name| {
            engines
                .iter()
                .any(|engine| engine.name == *name && engine.usable == Answer::Yes)
        })
}

fn userspace(host: &Host, bpf: &Bpf, interfaces: &[Interface], network: &Network) -> Engine {
    let mut engine = Engine::new("userspace");
    engine.require_capability(host, "CAP_NET_ADMIN", "the tunnel interface");
    engine.require("/dev/net/tun", &network.tun);
    engine
        .carries
        .push("every ESP suite, tunnel mode, ESP in UDP".to_owned());
    if host.lacks("CAP_NET_RAW") {
        engine.carries.push(
            "only ESP in UDP: native ESP needs CAP_NET_RAW, so set encapsulation = \"udp\"".into(),
        );
        return engine;
    }
    for interface in interfaces {
        engine.carries.push(format!(
            "native ESP on {}: {}",
            interface.name,
            native_esp(host, bpf, interface)
        ));
    }
    engine
}

/// How the userspace engine carries native ESP on an interface.
fn native_esp(host: &Host, bpf: &Bpf, interface: &Interface) -> String {
    let af_xdp = features::Feature::AfXdp;
    // An ordinary user could not look; root that cannot load it has none.
    let front_end = bpf.front_end.accepted.answer;
    if front_end == Answer::No || (host.is_root() && front_end == Answer::Unknown) {
        return "raw sockets, without the front end".to_owned();
    }
    if !features::missing(&[af_xdp]).is_empty() {
        return format!("raw sockets, as there are no {}", af_xdp.info());
    }
    match (interface.native_xdp.answer, interface.zero_copy.answer) {
        (Answer::No, _) => "raw sockets, front end at tc".to_owned(),
        (Answer::Yes, Answer::Yes) => "AF_XDP without copying".to_owned(),
        (Answer::Yes, _) => {
            "AF_XDP, copying, with encapsulation = \"esp\"; else raw sockets".to_owned()
        }
        (Answer::Unknown, _) => {
            "AF_XDP where the driver takes XDP programs, else raw sockets".to_owned()
        }
    }
}

fn ebpf(host: &Host, interfaces: &[Interface]) -> Engine {
    let mut engine = Engine::new("ebpf");
    for (capability, purpose) in [
        ("CAP_BPF", "loading BPF programs"),
        ("CAP_PERFMON", "the verifier's leave for pointers"),
        ("CAP_NET_ADMIN", "attaching them"),
    ] {
        engine.require_capability(host, capability, purpose);
    }
    if host.is_root() && !host.first_user_namespace {
        engine.no(
            "the kernel takes no BPF programs from a user namespace: run the daemon outside of it",
        );
    }
    if let Some(refusal) = features::refusal(&features::missing(EBPF_ENGINE)) {
        engine.no(format!("{refusal}: use a kernel that has it"));
    } else if let Some(why) = features::unknown(EBPF_ENGINE) {
        engine.unknown(why);
    }
    engine
        .carries
        .push("chacha20poly1305 in tunnel mode; other suites go to the next engine".to_owned());
    for interface in interfaces {
        match interface.xdp_mode() {
            Some(mode) => engine.carries.push(format!("{mode} on {}", interface.name)),
            None => engine.no(format!(
                "{} has no Ethernet headers, which XDP needs",
                interface.name
            )),
        }
    }
    engine
}

fn xfrm(host: &Host, ipsec: &Ipsec) -> Engine {
    let mut engine = Engine::new("xfrm");
    engine.require_capability(host, "CAP_NET_ADMIN", "XFRM");
    let usable = ipsec.usable();
    match usable.answer {
        Answer::Yes => engine.carries.push(format!(
            "the suites that the kernel's crypto has, over IPv4{}",
            if ipsec.esp6.answer == Answer::Yes {
                " and IPv6"
            } else {
                " only"
            }
        )),
        Answer::No => engine.no(usable.words()),
        Answer::Unknown => engine.unknown(usable.words()),
    }
    engine
}

/// What to change or to know besides the engines.
pub fn advice(
    host: &Host,
    bpf: &Bpf,
    interfaces: &[Interface],
    lan: &[Lan],
    network: &Network,
) -> Vec<Advice> {
    let mut advice = Vec::new();
    let mut say = |problem: bool, text: String| advice.push(Advice { problem, text });
    if !host.is_root() {
        say(
            false,
            "not run by root: what only root may ask is shown as `?`; the daemon starts as root"
                .to_owned(),
        );
    }
    if interfaces.is_empty() {
        say(
            false,
            "no interface was looked at, as there is no default route: name those towards the peers, \
             `espada doctor eth0`"
                .to_owned(),
        );
    }
    for (port, holders) in by_port(network) {
        say(
            true,
            format!("UDP port {port} is held by {holders}: stop it, the daemon needs the port"),
        );
    }
    front_end(host, bpf, &mut say);
    for interface in interfaces {
        about_interface(interface, &mut say);
    }
    for lan in lan.iter().filter(|lan| lan.bypass.answer == Answer::No) {
        say(
            true,
            format!(
                "{} goes through the kernel, as {}: mend that, or take it out of `dataplane.lan`",
                lan.name,
                lan.bypass.words()
            ),
        );
    }
    about_network(network, &mut say);
    advice
}

fn by_port(network: &Network) -> Vec<(u16, String)> {
    let mut ports: Vec<(u16, String)> = Vec::new();
    for holder in network.other_ike() {
        let name = match (&holder.program, holder.pid) {
            (Some(program), Some(pid)) => format!("{program} (pid {pid})"),
            _ => "a program that only root may see, or one in another container".to_owned(),
        };
        match ports.iter_mut().find(|(port, _)| *port == holder.port) {
            Some((_, names)) => *names = format!("{names}, {name}"),
            None => ports.push((holder.port, name)),
        }
    }
    ports
}

fn front_end(host: &Host, bpf: &Bpf, say: &mut impl FnMut(bool, String)) {
    if bpf.front_end.accepted.answer == Answer::No {
        say(
            false,
            format!(
                "no front end: {}; the engines stop unknown SPIs and clear text by themselves, \
                 front_end = \"off\" silences the daemon's warning",
                bpf.front_end.accepted.words()
            ),
        );
    }
    let jit = features::Feature::Jit.info();
    if bpf
        .features
        .iter()
        .any(|feature| feature.name == jit.name && feature.present == Answer::No)
    {
        say(false, format!("no {}: {}", jit.name, jit.purpose));
    }
    if host.is_root() && !features::missing(FRONT_END).is_empty() {
        say(
            false,
            "a distribution kernel from 5.15 on has all that the front end needs".to_owned(),
        );
    }
}

fn about_interface(interface: &Interface, say: &mut impl FnMut(bool, String)) {
    let name = &interface.name;
    if !interface.up {
        say(true, format!("{name} is down: `ip link set {name} up`"));
    }
    if let Some(program) = interface.xdp_program {
        say(
            false,
            format!(
                "{name} has an XDP program already (number {program}, `bpftool prog show id {program}`): \
                 where it is not Espada's, remove it or use front_end = \"tc\""
            ),
        );
    }
    for cost in &interface.costs {
        say(false, format!("{name}: {cost}"));
    }
}

fn about_network(network: &Network, say: &mut impl FnMut(bool, String)) {
    for (family, fact, setting) in [
        ("IPv4", &network.forward4, "net.ipv4.ip_forward"),
        ("IPv6", &network.forward6, "net.ipv6.conf.all.forwarding"),
    ] {
        if fact.answer == Answer::No {
            say(
                false,
                format!(
                    "{family} is not forwarded: only this host's own traffic uses the tunnel; to \
                     serve a network, `sysctl -w {setting}=1`"
                ),
            );
        }
    }
    for name in &network.strict_rp_filter {
        say(
            false,
            format!(
                "{name} has a strict reverse path filter: packets of a peer that is routed through \
                 another interface are dropped; `sysctl -w net.ipv4.conf.{name}.rp_filter=2`"
            ),
        );
    }
    if !network.vti.is_empty() {
        say(
            false,
            format!(
                "{} of kind vti: such a device takes ESP from its peer, whatever the SA; remove it \
                 where it is not in use (`modprobe -r ip_vti`)",
                network.vti.join(", ")
            ),
        );
    }
    if let Some(tables) = network
        .firewall
        .as_ref()
        .filter(|tables| !tables.is_empty())
    {
        say(
            false,
            format!(
                "there is a packet filter ({}): it must let UDP 500 and 4500 and IP protocol 50 in",
                tables.join(", ")
            ),
        );
    }
}
