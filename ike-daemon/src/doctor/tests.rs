//! What is read is understood, what is found is judged, and what is judged is explained.

use espada_dataplane::device::{Channels, Device, Offload, XdpSupport};
use espada_dataplane::netlink::Link;

use super::bpf::{FrontEnd, file_system};
use super::fact::{Answer, Fact};
use super::host::{
    Symbols, capabilities, cpu_count, cpu_instructions, cpu_model, first_user_namespace, has,
    module_names,
};
use super::ipsec::esp_algorithms;
use super::network::{PortHolder, ike_sockets, socket_inode};
use super::*;

#[test]
fn processors_are_understood() {
    let x86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu aes avx2 sha_ni hypervisor\n\n\
               processor\t: 1\nmodel name\t: Some CPU\nflags\t\t: fpu aes\n";
    assert_eq!(cpu_count(x86), 2);
    assert_eq!(cpu_model(x86).as_deref(), Some("Some CPU"));
    assert_eq!(cpu_instructions(x86), ["aes", "avx2", "sha_ni"]);
    let arm = "processor\t: 0\nFeatures\t: fp asimd aes pmull sha1 sha2\nCPU part\t: 0xd0c\n";
    assert_eq!(cpu_instructions(arm), ["aes", "pmull", "sha2"]);
    assert_eq!(cpu_model(arm), None);
    assert_eq!((cpu_count(""), cpu_instructions("").len()), (1, 0));
}

#[test]
fn capabilities_are_understood() {
    let held = capabilities("Name:\tespada\nCapEff:\t0000000000201000\nCapBnd:\tffff\n");
    // 12 is CAP_NET_ADMIN; 21, CAP_SYS_ADMIN, stands for 38 and 39.
    for (number, expected) in [(12, true), (13, false), (38, true), (39, true), (14, false)] {
        assert_eq!(has(held, number), expected, "{number}");
    }
    assert_eq!(capabilities("nothing of the kind"), 0);
    assert!(first_user_namespace("         0          0 4294967295\n"));
    assert!(!first_user_namespace("         0       1000          1\n"));
}

#[test]
fn the_kernels_tables_are_understood() {
    let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n  \
               12: 00000000:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2\n  \
               13: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2\n  \
               14: 00000000000000000000000000000000:1194 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4713 2\n  \
               15: cut off";
    assert_eq!(ike_sockets(udp), [(500, 4711), (4500, 4713)]);
    assert_eq!(socket_inode("socket:[4711]"), Some(4711));
    assert_eq!(socket_inode("pipe:[4711]"), None);
    let mounts = "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n";
    assert_eq!(file_system(mounts).answer, Answer::Yes);
    assert_eq!(
        file_system("bpf /elsewhere bpf rw 0 0\nx /sys/fs/bpf tmpfs rw 0 0\n").answer,
        Answer::No
    );
    let crypto = "name         : rfc4106(gcm(aes))\ndriver       : x\n\nname         : aes\n\n\
                  name         : authenc(hmac(sha256),cbc(aes))\n";
    assert_eq!(
        esp_algorithms(crypto),
        ["authenc(hmac(sha256),cbc(aes))", "rfc4106(gcm(aes))"]
    );
}

#[test]
fn parts_of_the_kernel_are_found() {
    let modules = module_names(
        "kernel/net/ipv4/esp4.ko.xz: kernel/net/xfrm/xfrm_algo.ko.xz\n\
         kernel/net/xfrm/xfrm_interface.ko: x\nkernel/a-b.ko.zst:\n",
    );
    assert!(modules.contains("esp4") && modules.contains("xfrm_interface"));
    assert!(modules.contains("a_b"));

    let answer = |functions, modules| {
        Symbols::of(functions, modules).has("esp_init_state", "esp4", "CONFIG_INET_ESP")
    };
    assert_eq!(answer(Some(&["esp_init_state"]), None).answer, Answer::Yes);
    assert_eq!(answer(Some(&[]), Some(&["esp4"])).answer, Answer::Yes);
    assert_eq!(answer(None, Some(&["esp4"])).answer, Answer::Yes);
    let no = answer(Some(&[]), None);
    assert_eq!(no.answer, Answer::No);
    assert!(no.words().contains("CONFIG_INET_ESP"), "{no:?}");
    // A closed list says nothing about what is built in.
    assert_eq!(answer(None, Some(&[])).answer, Answer::Unknown);
}

fn link(kind: Option<&str>) -> Link {
    Link {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, 1]),
        ethernet: true,
        up: true,
        rx_queues: 1,
        lower: None,
        controller: None,
        kind: kind.map(str::to_owned),
    }
}

fn offload(name: &str, available: bool, active: bool) -> Offload {
    Offload {
        name: name.to_owned(),
        available,
        active,
    }
}

/// A fast network card under a kernel that says so.
fn card() -> Interface {
    let device = Device {
        driver: Some("ice".to_owned()),
        offloads: vec![
            offload("rx-lro", true, false),
            offload("esp-hw-offload", true, true),
        ],
        channels: Some(Channels {
            rx: 8,
            tx: 8,
            max_rx: 16,
        }),
    };
    Interface::of(
        &link(None),
        &device,
        Some(XdpSupport::from_bits(0b10_1111)),
        None,
        "as named",
    )
}

#[test]
fn interfaces_are_judged() {
    let card = card();
    assert_eq!(card.rx_queues, 8);
    for fact in [
        &card.native_xdp,
        &card.zero_copy,
        &card.redirect_target,
        &card.esp_offload,
    ] {
        assert_eq!(fact.answer, Answer::Yes);
    }
    assert_eq!(card.xdp_mode(), Some("native XDP"));
    assert!(card.costs.is_empty(), "{:?}", card.costs);

    // A kernel before 6.3 has no say; LRO and a veth peer's offloads cost something.
    let lro = Device {
        offloads: vec![
            offload("rx-lro", true, true),
            offload("esp-hw-offload", true, false),
        ],
        ..Device::default()
    };
    let veth = Interface::of(&link(Some("veth")), &lro, None, Some(7), "as named");
    assert_eq!(veth.native_xdp.answer, Answer::Unknown);
    assert_eq!(veth.esp_offload.answer, Answer::No);
    assert_eq!(veth.costs.len(), 2, "{:?}", veth.costs);
    assert!(veth.costs[1].contains("ethtool -K eth0 lro off"));

    // Large packets need fragments in XDP.
    let mut jumbo = link(None);
    jumbo.mtu = 9000;
    let one_buffer = Interface::of(
        &jumbo,
        &Device::default(),
        Some(XdpSupport::from_bits(3)),
        None,
        "as named",
    );
    assert!(one_buffer.costs[0].contains("MTU 9000"));

    let mut tunnel = link(Some("ipip"));
    tunnel.ethernet = false;
    let tunnel = Interface::of(&tunnel, &Device::default(), None, None, "as named");
    assert_eq!(tunnel.xdp_mode(), None);
    assert_eq!(tunnel.native_xdp.answer, Answer::No);
}

fn host(uid: u32, missing: &[&'static str]) -> Host {
    Host {
        kernel: "6.12.1".to_owned(),
        architecture: "x86_64",
        processor: Some("Some CPU".to_owned()),
        processors: 4,
        instructions: vec!["aes", "vaes"],
        inside: vec!["virtual machine".to_owned()],
        uid,
        capabilities: Vec::new(),
        missing_capabilities: missing.to_vec(),
        first_user_namespace: true,
    }
}

fn bpf() -> Bpf {
    Bpf {
        features: vec![bpf::Feature {
            name: "tcx",
            purpose: "tc programs with links",
            since: "6.6",
            option: None,
            present: Answer::No,
            detail: None,
            needed_by: Vec::new(),
        }],
        file_system: Fact::yes("mounted at /sys/fs/bpf"),
        front_end: FrontEnd {
            accepted: Fact::yes("1 programs"),
            programs: vec![bpf::Program {
                name: "espada_xdp".to_owned(),
                verified_instructions: Some(31_823),
                load_ms: 12.5,
            }],
        },
    }
}

fn ipsec(esp: Fact) -> Ipsec {
    Ipsec {
        xfrm: Fact::plain(Answer::Yes),
        esp4: esp.clone(),
        esp6: esp,
        interface: Fact::plain(Answer::Yes),
        per_cpu: Fact::no("Linux 6.13 brought them"),
        algorithms: Vec::new(),
        states: Some(0),
        policies: None,
    }
}

fn network(holders: Vec<PortHolder>) -> Network {
    Network {
        tun: Fact::plain(Answer::Yes),
        ipv6: Fact::plain(Answer::Yes),
        forward4: Fact::plain(Answer::No),
        forward6: Fact::plain(Answer::Yes),
        strict_rp_filter: vec!["eth0".to_owned()],
        ike_ports: holders,
        vti: vec!["ip_vti0".to_owned()],
        firewall: Some(vec!["inet filter".to_owned()]),
    }
}

fn report(host: Host, ipsec: Ipsec, network: Network) -> Report {
    let (bpf, interfaces) = (bpf(), vec![card()]);
    let lan = vec![Lan::look(&[link(None)], "lan0")];
    let engines = verdict::engines(&host, &bpf, &interfaces, &ipsec, &network);
    let advice = verdict::advice(&host, &bpf, &interfaces, &lan, &network);
    Report {
        version: "0.1.0",
        auto: verdict::auto(&engines),
        host,
        bpf,
        interfaces,
        lan,
        ipsec,
        network,
        engines,
        advice,
    }
}

fn engine<'r>(report: &'r Report, name: &str) -> &'r Engine {
    report
        .engines
        .iter()
        .find(|engine| engine.name == name)
        .unwrap()
}

#[test]
fn a_good_host_works_and_is_told_what_to_know() {
    let holders = [500, 4500].map(|port| PortHolder {
        port,
        pid: Some(77),
        program: Some("charon".to_owned()),
    });
    let report = report(
        host(0, &[]),
        ipsec(Fact::plain(Answer::Yes)),
        network(holders.to_vec()),
    );
    assert!(report.works());
    assert_eq!(report.auto, Some("userspace"));
    assert_eq!(engine(&report, "userspace").usable, Answer::Yes);
    assert_eq!(engine(&report, "xfrm").usable, Answer::Yes);
    let text = report.to_text();
    for expected in [
        "Espada 0.1.0 on Linux 6.12.1 (x86_64)",
        "4 × Some CPU",
        "no tcx              since Linux 6.6; for tc programs with links",
        "espada_xdp 31823 instructions",
        "interface eth0 (as named)",
        "ice; MTU 1500, 8 receive queues",
        "LAN interface lan0 past the kernel no, there is no such interface",
        "lan0 goes through the kernel, as there is no such interface",
        "500 held by charon, 4500 held by charon",
        "native ESP on eth0: AF_XDP without copying",
        "takes userspace",
        "to change\n  - UDP port 500 is held by charon (pid 77): stop it",
        "sysctl -w net.ipv4.ip_forward=1",
        "rp_filter=2",
        "ip_vti0",
        "there is a packet filter (inet filter)",
    ] {
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = expected.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(joined.contains(&wanted), "no \"{expected}\" in\n{text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
}

#[test]
fn espadas_own_daemon_is_no_other() {
    let own = PortHolder {
        port: 500,
        pid: Some(1),
        program: Some("espada".to_owned()),
    };
    assert!(network(vec![own]).other_ike().is_empty());
    let unseen = PortHolder {
        port: 500,
        pid: None,
        program: None,
    };
    assert_eq!(network(vec![unseen]).other_ike().len(), 1);
}

#[test]
fn what_is_missing_is_named_with_its_cure() {
    let report = report(
        host(0, &["CAP_NET_ADMIN", "CAP_BPF"]),
        ipsec(Fact::no("CONFIG_INET_ESP is off")),
        network(Vec::new()),
    );
    assert!(!report.works());
    assert_eq!(report.auto, None);
    for (name, words) in [
        ("userspace", "--cap-add NET_ADMIN"),
        ("ebpf", "--cap-add BPF"),
        ("xfrm", "CONFIG_INET_ESP"),
    ] {
        let engine = engine(&report, name);
        assert_eq!(engine.usable, Answer::No, "{name}");
        let reasons = engine.reasons.join("\n");
        assert!(reasons.contains(words), "{name}: {reasons}");
    }
    assert!(report.to_text().contains("finds no engine"));
}

#[test]
fn without_tun_or_native_esp_userspace_says_so() {
    let mut without_tun = network(Vec::new());
    without_tun.tun = Fact::no("`modprobe tun`");
    let report = report(host(0, &[]), ipsec(Fact::unknown("closed")), without_tun);
    let userspace = engine(&report, "userspace");
    assert_eq!(userspace.usable, Answer::No);
    assert!(userspace.reasons[0].contains("modprobe tun"));
    assert_eq!(engine(&report, "xfrm").usable, Answer::Unknown);

    let unprivileged = verdict::engines(
        &host(0, &["CAP_NET_RAW"]),
        &bpf(),
        &[card()],
        &ipsec(Fact::plain(Answer::Yes)),
        &network(Vec::new()),
    );
    assert!(unprivileged[0].carries[1].contains("encapsulation = \"udp\""));
}

/// An ordinary user asks what root could do: what the user lacks is no fault of the host.
#[test]
fn a_users_lack_of_privileges_is_not_the_hosts() {
    let report = report(
        host(1000, &["CAP_NET_ADMIN", "CAP_BPF", "CAP_NET_RAW"]),
        ipsec(Fact::plain(Answer::Yes)),
        network(Vec::new()),
    );
    assert_eq!(engine(&report, "userspace").usable, Answer::Yes);
    assert!(report.advice[0].text.contains("not run by root"));
}

#[test]
fn json_has_what_its_documentation_says() {
    let report = report(
        host(0, &[]),
        ipsec(Fact::plain(Answer::Yes)),
        network(Vec::new()),
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["engines"][0]["name"], "userspace");
    assert_eq!(json["engines"][0]["usable"], "yes");
    assert_eq!(json["auto"], "userspace");
    assert_eq!(json["bpf"]["features"][0]["present"], "no");
    assert_eq!(json["interfaces"][0]["native_xdp"]["answer"], "yes");
    assert_eq!(json["network"]["forward4"]["answer"], "no");
    assert!(json["ipsec"]["policies"].is_null());
}

/// This machine, whatever it is: the report is whole and readable.
#[test]
fn this_machine_is_examined() {
    let named = ["lo".to_owned()];
    let options = |interfaces| Options {
        interfaces,
        config: None,
        ipsec: Ipsec::look,
    };
    let report = examine(&options(&named)).unwrap();
    assert_eq!(report.interfaces.len(), 1);
    assert_eq!(report.engines.len(), 3);
    assert!(report.to_text().contains("interface lo (as named)"));
    let nobody = ["nosuchdevice0".to_owned()];
    let error = examine(&options(&nobody)).unwrap_err();
    assert!(format!("{error:#}").contains("nosuchdevice0"), "{error:#}");
}
