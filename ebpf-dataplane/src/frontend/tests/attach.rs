use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};

use super::super::{Hook, Mode, ModeChoice, inspect, pin};
use super::*;
use crate::device;
use crate::features::{self, FRONT_END, Feature, Presence};
use crate::netlink::Netlink;
use crate::port::syscall::enter_network_namespace;

/// Two namespaces joined by a veth pair `wan0`, removed when dropped.
pub(super) struct Link {
    names: [String; 2],
}

impl Link {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let names =
            ["a", "b"].map(|side| format!("esp-ebpf-{}-{number}-{side}", std::process::id()));
        let link = Self { names };
        let [a, b] = &link.names;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&[
            "-n", a, "link", "add", "wan0", "type", "veth", "peer", "name", "wan0", "netns", b,
        ]);
        for (name, addresses) in [
            (a, [format!("{US}/24"), format!("{US6}/64")]),
            (
                b,
                [
                    "198.51.100.1/24".to_owned(),
                    "2001:db8:ffff::1/64".to_owned(),
                ],
            ),
        ] {
            for address in addresses {
                ip(&["-n", name, "addr", "add", &address, "dev", "wan0", "nodad"]);
            }
            ip(&["-n", name, "link", "set", "wan0", "up"]);
        }
        link
    }

    /// Runs `work` on a thread inside the first namespace.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Self::in_namespace(&self.names[0], work)
    }

    /// Runs `work` on a thread inside the second namespace.
    fn across<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Self::in_namespace(&self.names[1], work)
    }

    fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let path = Path::new("/run/netns").join(name);
                    enter_network_namespace(std::fs::File::open(path).unwrap()).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    fn ping(&self) -> bool {
        let [_, b] = &self.names;
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", b, "ping", "-q", "-c", "1", "-W", "1", US]);
        let output = ping.output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        output.status.success()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

pub(super) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {complaint}");
}

/// Whether there is XDP on an interface of the current namespace, and how many tc programs of ours.
fn programs_on(interface: &str) -> (bool, usize) {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let xdp = run("ip", &["link", "show", interface]).contains("prog/xdp");
    let tc = [
        (TcAttachType::Ingress, "ingress"),
        (TcAttachType::Egress, "egress"),
    ]
    .into_iter()
    .map(|(side, name)| {
        let tcx = SchedClassifier::query_tcx(interface, side).map_or(0, |found| found.1.len());
        let filters = run("tc", &["filter", "show", "dev", interface, name]);
        tcx + filters
            .lines()
            .filter(|line| line.contains("espada_tc"))
            .count()
    })
    .sum();
    (xdp, tc)
}

#[test]
fn bpf_attach_and_detach_in_each_mode() {
    const TEST: &str = "bpf_attach_and_detach_in_each_mode";
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    let link = Link::new();
    assert!(link.ping());
    for (mode, prefer_offloads, hook, expected) in [
        (ModeChoice::Auto, false, Hook::Xdp, Mode::Native),
        (ModeChoice::Auto, true, Hook::TcIngress, Mode::Tcx),
        (ModeChoice::XdpNative, true, Hook::Xdp, Mode::Native),
        (ModeChoice::XdpGeneric, false, Hook::Xdp, Mode::Generic),
        (ModeChoice::Tc, false, Hook::TcIngress, Mode::Tcx),
    ] {
        let mut front_end = link.inside(|| {
            FrontEnd::attach(&Options {
                interfaces: vec!["wan0".to_owned()],
                mode,
                prefer_offloads,
                drop_unknown_spi: true,
                pin_dir: None,
                ..Options::default()
            })
            .unwrap()
        });
        front_end
            .set_addresses(&[address(US), address(US6)], &[])
            .unwrap();
        let [ingress, egress] = front_end.attached() else {
            panic!("{:?}", front_end.attached());
        };
        assert_eq!(
            (ingress.hook, egress.hook),
            (hook, Hook::TcEgress),
            "{ingress:?}"
        );
        // What was probed is what is used.
        match ingress.mode {
            Mode::Clsact => assert_eq!(*Feature::Tcx.presence(), Presence::Absent),
            mode => assert_eq!(mode, expected),
        }
        if ingress.mode == Mode::Tcx {
            assert_eq!(*Feature::Tcx.presence(), Presence::Present);
        }
        assert!(!ingress.why.is_empty() && ingress.program_id != 0);
        assert_eq!(front_end.steers("wan0"), hook == Hook::Xdp);
        let tc_programs = if hook == Hook::Xdp { 1 } else { 2 };
        assert_eq!(
            link.inside(|| programs_on("wan0")),
            (hook == Hook::Xdp, tc_programs),
            "{mode:?}"
        );
        assert!(link.ping(), "{mode:?}");

        // The guard works on the link, in both directions.
        let everything = [pair("198.51.100.1/32", "198.51.100.0/24")];
        front_end.set_policies(&everything).unwrap();
        assert!(!link.ping(), "{mode:?}");
        assert!(front_end.dropped(DropReason::ClearInbound) > 0, "{mode:?}");
        // Filters of clsact are found by interface number, so in the namespace.
        link.inside(|| drop(front_end));
        assert_eq!(link.inside(|| programs_on("wan0")), (false, 0), "{mode:?}");
        assert!(link.ping());
    }
}

#[test]
fn bpf_what_a_device_says_of_xdp_is_so() {
    const TEST: &str = "bpf_what_a_device_says_of_xdp_is_so";
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    let link = Link::new();
    link.inside(|| {
        let index = Netlink::open().unwrap().link("wan0").unwrap().index;
        assert_eq!(device::xdp_attached(index).unwrap(), None);
        let attach = || {
            FrontEnd::attach(&Options {
                interfaces: vec!["wan0".to_owned()],
                mode: ModeChoice::XdpNative,
                ..Options::default()
            })
        };
        let front_end = attach().unwrap();
        // Kernels before 6.3 have no say.
        if let Some(support) = device::xdp_support(index).unwrap() {
            assert!(support.native && support.redirect && !support.zero_copy);
        }
        let [ingress, _] = front_end.attached() else {
            panic!("{:?}", front_end.attached());
        };
        assert_eq!(
            device::xdp_attached(index).unwrap(),
            Some(ingress.program_id)
        );
        assert_eq!(
            device::Device::look("wan0").unwrap().driver.as_deref(),
            Some("veth")
        );
    });
}

#[test]
fn bpf_programs_pass_the_verifier_unattached() {
    const TEST: &str = "bpf_programs_pass_the_verifier_unattached";
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    assert_eq!(features::refusal(&features::missing(FRONT_END)), None);
    let verified = inspect::verify().unwrap();
    let names: Vec<&str> = verified.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "espada_esp_in",
            "espada_esp_neigh",
            "espada_esp_out",
            "espada_lan_in",
            "espada_tc_in",
            "espada_tc_ip_in",
            "espada_tc_ip_out",
            "espada_tc_out",
            "espada_xdp"
        ]
    );
    for program in &verified {
        // The smallest only looks for a word and hands the packet on.
        let least = if program.name == "espada_esp_neigh" {
            10
        } else {
            100
        };
        assert!(program.instructions.is_none_or(|count| count > least));
    }
}

/// TCP keeps its payload in page fragments and leaves segmentation to the link: the guard sees
/// super packets in pieces.
#[test]
fn bpf_super_packets_of_tcp_do_not_leak() {
    const TEST: &str = "bpf_super_packets_of_tcp_do_not_leak";
    const OCTETS: usize = 60_000;
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    let link = Link::new();
    link.inside(|| {
        let mut front_end = FrontEnd::attach(&Options {
            interfaces: vec!["wan0".to_owned()],
            mode: ModeChoice::Tc,
            ..Options::default()
        })
        .unwrap();
        let listener = link.across(|| TcpListener::bind("198.51.100.1:0").unwrap());
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let patience = Duration::from_secs(20);
        receiver.set_read_timeout(Some(patience)).unwrap();
        let mut received = vec![0; OCTETS];
        sender.write_all(&vec![1; OCTETS]).unwrap();
        receiver.read_exact(&mut received).unwrap();
        // The answer carries an open window. Against a closed one the sender would only probe,
        // and give up after fifteen probes half a second apart, as they are dropped on its host.
        receiver.write_all(&[1]).unwrap();
        sender.read_exact(&mut [0]).unwrap();
        front_end
            .set_policies(&[pair("198.51.100.1/32", "198.51.100.2/32")])
            .unwrap();
        // Larger than the send buffer, perhaps: the write may wait until the guard is gone. Closed
        // sooner, the connection would be given up sooner.
        let writer = std::thread::spawn(move || {
            sender.write_all(&vec![2; OCTETS]).unwrap();
            sender
        });
        // More packets than calls: counted by their segments.
        let deadline = Instant::now() + patience;
        while front_end.dropped(DropReason::ClearOutbound) <= 5 {
            assert!(Instant::now() < deadline, "the guard counts no segments");
            std::thread::sleep(Duration::from_millis(10));
        }
        receiver
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        assert!(
            receiver.read(&mut received).is_err(),
            "clear text got through"
        );
        front_end.set_policies(&[]).unwrap();
        receiver.set_read_timeout(Some(patience)).unwrap();
        receiver.read_exact(&mut received).unwrap();
        assert!(received.iter().all(|octet| *octet == 2));
        writer.join().unwrap();
    });
}

#[test]
fn bpf_refusals_name_what_to_change() {
    const TEST: &str = "bpf_refusals_name_what_to_change";
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    let link = Link::new();
    let attach = |interface: &str, mode| {
        link.inside(|| {
            FrontEnd::attach(&Options {
                interfaces: vec![interface.to_owned()],
                mode,
                ..Options::default()
            })
        })
    };
    let error = attach("wan7", ModeChoice::Auto).unwrap_err().to_string();
    assert!(error.contains("wan7"), "{error}");
    // Where another XDP program sits, auto goes to tc and says why.
    let first = attach("wan0", ModeChoice::XdpNative).unwrap();
    let error = attach("wan0", ModeChoice::XdpNative)
        .unwrap_err()
        .to_string();
    assert!(error.contains("another XDP program"), "{error}");
    let second = attach("wan0", ModeChoice::Auto).unwrap();
    let ingress = &second.attached()[0];
    assert_eq!(ingress.hook, Hook::TcIngress);
    assert!(
        ingress.why.contains("another XDP program"),
        "{}",
        ingress.why
    );
    drop((first, second));
    // A link without Ethernet headers.
    link.inside(|| ip(&["tuntap", "add", "ppp7", "mode", "tun"]));
    let error = attach("ppp7", ModeChoice::XdpGeneric)
        .unwrap_err()
        .to_string();
    assert!(error.contains("mode tc"), "{error}");
    let front_end = attach("ppp7", ModeChoice::Auto).unwrap();
    assert_eq!(front_end.attached()[0].program, "espada_tc_ip_in");
}

#[test]
fn bpf_pins_live_as_long_as_they_should() {
    const TEST: &str = "bpf_pins_live_as_long_as_they_should";
    if front_end(TEST, &Options::default()).is_none() {
        return;
    }
    let link = Link::new();
    let folder = pin::instance_dir(&link.names[0]);
    let attach = || {
        link.inside(|| {
            FrontEnd::attach(&Options {
                interfaces: vec!["wan0".to_owned()],
                mode: ModeChoice::Auto,
                pin_dir: Some(folder.clone()),
                ..Options::default()
            })
        })
    };
    let mut front_end = match attach() {
        Ok(front_end) => front_end,
        Err(FrontEndError::Pin { reason, .. }) if reason.contains("mounting one failed") => {
            return skip(TEST, &reason);
        }
        Err(error) => panic!("{error}"),
    };
    front_end
        .add_sa(SPI, address(US), Steering::Kernel)
        .unwrap();
    front_end
        .set_policies(&[pair("10.0.0.0/8", "192.168.0.0/16")])
        .unwrap();
    let maps = inspect::pinned_maps(&folder).unwrap();
    let entries = |name: &str| maps.iter().find(|map| map.name == name).unwrap().entries;
    assert_eq!(entries("espada_sa_in"), 1);
    assert_eq!(entries("espada_spd_remote"), 1);
    assert_eq!(entries("espada_sa_out"), 0);

    // A second instance may not take the same folder.
    let error = attach().unwrap_err().to_string();
    assert!(error.contains("another instance"), "{error}");
    drop(front_end);
    assert!(!folder.exists());

    // What is persisted outlives its owner, until it is removed.
    assert_eq!(attach().unwrap().persist().unwrap().len(), 2);
    assert!(link.inside(|| programs_on("wan0")).0);
    let error = attach().unwrap_err().to_string();
    assert!(error.contains("unload"), "{error}");
    let names = pin::remove(&folder).unwrap();
    assert!(
        names.contains(&"link_wan0_xdp_native".to_owned()),
        "{names:?}"
    );
    // A link each, or a filter where the kernel has no tcx.
    let filters = link.inside(|| attaching::detach_clsact("wan0"));
    assert_eq!(names.len() + filters, 2, "{names:?}");
    assert_eq!(link.inside(|| programs_on("wan0")), (false, 0));
    assert!(pin::remove(&folder).is_err());

    // What a killed owner left behind is cleared away.
    std::fs::create_dir_all(&folder).unwrap();
    let orphan = attach().unwrap();
    drop(orphan);
    assert!(!folder.exists());

    // Outside a BPF file system nothing can be pinned.
    let error = FrontEnd::attach(&Options {
        pin_dir: Some("/run/espada-no-bpffs".into()),
        ..Options::default()
    });
    assert!(error.unwrap_err().to_string().contains("BPF file system"));
}
