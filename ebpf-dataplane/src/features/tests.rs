//! The table holds together, and what is said to be there can be used.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use super::syscall::{self, Instruction};
use super::*;

#[test]
fn the_table_is_in_the_order_of_the_enum() {
    for (index, info) in TABLE.iter().enumerate() {
        assert_eq!(info.feature as usize, index, "{info:?}");
        assert_eq!(info.feature.info(), info);
        let numbers: Vec<&str> = info.since.split('.').collect();
        assert!(
            numbers.len() >= 2 && numbers.iter().all(|number| number.parse::<u32>().is_ok()),
            "{info:?}"
        );
    }
    assert_eq!(Feature::Veth as usize + 1, TABLE.len());
}

#[test]
fn refusals_read_well() {
    let info = |feature: Feature| feature.info();
    assert_eq!(refusal(&[]), None);
    let one = refusal(&[info(Feature::Loop)]).unwrap();
    assert!(one.ends_with(" lacks bpf_loop (Linux 5.17)"), "{one}");
    let three = refusal(&[
        info(Feature::Loop),
        info(Feature::XskMap),
        info(Feature::Veth),
    ])
    .unwrap();
    assert!(
        three.ends_with(
            " lacks bpf_loop (Linux 5.17), XSKMAP (Linux 4.18, CONFIG_XDP_SOCKETS) \
             and veth devices (Linux 2.6.24, CONFIG_VETH)"
        ),
        "{three}"
    );
    assert!(three.starts_with(&format!("this kernel ({})", kernel_release())));
}

/// Without root only the files can be looked at; the answer must say so, not "absent".
#[test]
fn privileges_are_not_mistaken_for_absence() {
    for info in TABLE {
        if let Presence::Unknown(why) = info.feature.presence() {
            assert!(!why.is_empty());
        }
    }
    if root() {
        assert_eq!(unknown(EBPF_ENGINE), None);
    }
}

fn root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

/// A program that could not be loaded anywhere must be refused, or the probes prove nothing.
#[test]
fn probes_can_fail() {
    if !root() {
        eprintln!("SKIPPED: probes_can_fail: needs root");
        return;
    }
    // r0 = 2 without an exit; a read of an uninitialized register.
    let endless = [Instruction::mov_immediate(0, 2)];
    assert!(syscall::load(syscall::PROGRAM_XDP, &endless).is_err());
    let unset = [Instruction::store_u64(10, 7, -8), Instruction::EXIT];
    assert!(syscall::load(syscall::PROGRAM_XDP, &unset).is_err());
    assert!(syscall::array_map(1 << 31).is_err());
    let pass = [Instruction::mov_immediate(0, 2), Instruction::EXIT];
    let program = syscall::load(syscall::PROGRAM_XDP, &pass).unwrap();
    // A flag that no kernel knows, and an XDP program at a tc hook.
    let flags = syscall::make_link(program.as_fd(), 1, syscall::ATTACH_XDP, 1 << 31);
    assert_eq!(
        flags.unwrap_err().raw_os_error(),
        Some(libc::EINVAL),
        "an unknown flag is refused otherwise than a missing driver"
    );
    let hook = syscall::make_link(program.as_fd(), 1, syscall::ATTACH_TCX_INGRESS, 0);
    assert_eq!(hook.unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

/// Probing leaves the system as it was.
#[test]
fn nothing_stays_attached() {
    for info in TABLE {
        info.feature.presence();
    }
    let output = Command::new("ip")
        .args(["-d", "link", "show", "lo"])
        .output();
    if let Ok(output) = output {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("xdp"), "{text}");
    }
}

/// `rD = rS`.
fn mov(destination: u8, source: u8) -> Instruction {
    Instruction::new(0xbf, destination, source, 0, 0)
}

/// `rD += value`.
fn add(destination: u8, value: i32) -> Instruction {
    Instruction::new(0x07, destination, 0, 0, value)
}

/// `call HELPER`.
fn call(helper: i32) -> Instruction {
    Instruction::new(0x85, 0, 0, 0, helper)
}

/// `rD = *(u64 *)(rB + offset)`.
fn load_u64(destination: u8, base: u8, offset: i16) -> Instruction {
    Instruction::new(0x79, destination, base, offset, 0)
}

/// `rD = map`, in two slots.
fn load_map(destination: u8, map: &OwnedFd) -> [Instruction; 2] {
    const BPF_PSEUDO_MAP_FD: u8 = 1;
    let fd = map.as_raw_fd();
    [
        Instruction::new(0x18, destination, BPF_PSEUDO_MAP_FD, 0, fd),
        Instruction::new(0, 0, 0, 0, 0),
    ]
}

const PACKET: [u8; 64] = [0x5a; 64];

/// Loads a program, runs it on a packet, and gives its result and the packet's length after it.
fn run(program: &[Instruction]) -> (u32, Vec<u8>) {
    let program = syscall::load(syscall::PROGRAM_XDP, program).unwrap();
    syscall::run(program.as_fd(), &PACKET).unwrap()
}

/// What a feature does when it is used, where a few instructions can show it. The others are used
/// by the front end's and the engines' own tests.
fn use_feature(feature: Feature) {
    let immediate = Instruction::mov_immediate;
    let exit = Instruction::EXIT;
    match feature {
        Feature::XdpProgram | Feature::Bpf => {
            assert_eq!(run(&[immediate(0, 2), exit]), (2, PACKET.to_vec()));
        }
        Feature::AdjustHead => {
            let (result, packet) = run(&[immediate(2, -16), call(44), exit]);
            assert_eq!((result, packet.len()), (0, PACKET.len() + 16));
        }
        Feature::AdjustMeta => {
            let (result, packet) = run(&[immediate(2, -4), call(54), exit]);
            // What comes back begins with the word.
            assert_eq!((result, packet.len()), (0, PACKET.len() + 4));
        }
        Feature::BootClock => {
            // r0 = 1 when the clock is past zero.
            let (result, _) = run(&[
                call(125),
                mov(1, 0),
                immediate(0, 1),
                Instruction::new(0x55, 1, 0, 1, 0),
                immediate(0, 0),
                exit,
            ]);
            assert_eq!(result, 1);
        }
        Feature::XdpLoadBytes => {
            let (result, _) = run(&[
                immediate(2, 3),
                mov(3, 10),
                add(3, -8),
                immediate(4, 8),
                immediate(0, 0),
                Instruction::store_u64(10, 0, -8),
                call(189),
                load_u64(0, 10, -8),
                exit,
            ]);
            assert_eq!(result, 0x5a5a_5a5a);
        }
        Feature::XdpStoreBytes => {
            let (result, packet) = run(&[
                immediate(0, 0x0102_0304),
                Instruction::store_u64(10, 0, -8),
                immediate(2, 3),
                mov(3, 10),
                add(3, -8),
                immediate(4, 4),
                call(190),
                exit,
            ]);
            assert_eq!(result, 0);
            assert_eq!(packet[3..7], 0x0102_0304u32.to_ne_bytes());
            assert_eq!(packet[7..], PACKET[7..]);
        }
        Feature::AtomicFetch => {
            let (result, _) = run(&[
                immediate(1, 5),
                Instruction::store_u64(10, 1, -8),
                immediate(1, 3),
                Instruction::fetch_add_u64(10, 1, -8),
                load_u64(0, 10, -8),
                // r0 = new * 256 + old
                Instruction::new(0x27, 0, 0, 0, 256),
                Instruction::new(0x0f, 0, 1, 0, 0),
                exit,
            ]);
            assert_eq!(result, 8 * 256 + 5);
        }
        Feature::FibLookup => {
            let mut program = vec![mov(6, 1), immediate(0, 0)];
            for slot in 1..=8 {
                program.push(Instruction::store_u64(10, 0, slot * -8));
            }
            program.extend([
                // family = AF_INET, at the start; ifindex = 1, at octet 8.
                Instruction::new(0x72, 10, 0, -64, libc::AF_INET),
                Instruction::new(0x72, 10, 0, -56, 1),
                mov(1, 6),
                mov(2, 10),
                add(2, -64),
                immediate(3, 64),
                immediate(4, 0),
                call(69),
                exit,
            ]);
            // BPF_FIB_LKUP_RET_…: the lookup was made; what came of it depends on the routes.
            let (result, _) = run(&program);
            assert!(result <= 9, "{}", result as i32);
        }
        Feature::DevMap | Feature::DevMapHash | Feature::XskMap | Feature::RedirectMap => {
            let kind = match feature {
                Feature::XskMap => 17,
                Feature::DevMapHash => 25,
                _ => 14,
            };
            let map = syscall::make_map(kind, 4, 4, 1, 0).unwrap();
            let mut program = load_map(1, &map).to_vec();
            // An empty slot gives the action in the flags: XDP_DROP.
            program.extend([immediate(2, 0), immediate(3, 1), call(51), exit]);
            assert_eq!(run(&program).0, 1);
        }
        Feature::RingBuf => {
            // A power of two and a multiple of any page size.
            let map = syscall::make_map(27, 0, 0, 1 << 16, 0).unwrap();
            let mut program = load_map(1, &map).to_vec();
            program.extend([
                immediate(0, 7),
                Instruction::store_u64(10, 0, -8),
                mov(2, 10),
                add(2, -8),
                immediate(3, 8),
                immediate(4, 0),
                call(130),
                exit,
            ]);
            assert_eq!(run(&program).0, 0);
        }
        Feature::ProgArray => {
            let map = syscall::make_map(3, 4, 4, 1, 0).unwrap();
            let mut program = load_map(2, &map).to_vec();
            // An empty slot: the program goes on.
            program.extend([immediate(3, 0), call(12), immediate(0, 2), exit]);
            assert_eq!(run(&program).0, 2);
        }
        _ => {}
    }
}

#[test]
fn what_is_said_to_be_there_can_be_used() {
    if !root() {
        eprintln!("SKIPPED: what_is_said_to_be_there_can_be_used: needs root");
        return;
    }
    let mut present = 0;
    for info in TABLE {
        if *info.feature.presence() == Presence::Present {
            use_feature(info.feature);
            present += 1;
        }
    }
    // Every kernel in use has the older half.
    assert!(present > TABLE.len() / 2, "only {present} are there");
}
