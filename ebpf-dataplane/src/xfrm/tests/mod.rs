//! Engines in network namespaces with hand-made SAs. They need root and a kernel with ESP and xfrm
//! interfaces; where that is missing they say so and pass. `cargo xtask test vm` runs them under
//! kernels that have it.

mod harness;
mod life;
mod processors;
mod traffic;

use harness::*;

use super::*;

/// On any kernel: what is missing is named, with what to do.
#[test]
fn a_kernel_is_judged_with_reasons() {
    let probe = probe();
    println!("{probe:#?}");
    if let Err(why) = probe.usable() {
        assert!(
            why.contains("modprobe") || why.contains("needs root"),
            "{why}"
        );
    } else {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let numbers: Vec<u32> = release
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect();
        // 6.12 got it in an update.
        let expected = match numbers.as_slice() {
            [6, 12, ..] => probe.per_cpu,
            numbers => numbers >= &[6, 13][..],
        };
        assert_eq!(probe.per_cpu, expected, "{release}");
    }
    for (suite, answer) in &probe.suites {
        assert_eq!(&probe.suite(suite), answer);
        if let Err(why) = answer {
            assert!(!why.is_empty(), "{suite}");
        }
    }
}

/// On a kernel without ESP or interfaces: starting is refused with the reason, and leaves nothing.
#[test]
fn netns_a_kernel_without_esp_is_refused() {
    let Some(pair) = Hosts::new("a_kernel_without_esp_is_refused") else {
        return;
    };
    let Err(why) = probe().usable() else {
        skip("a_kernel_without_esp_is_refused", "this kernel has ESP");
        return;
    };
    let error = pair
        .inside(0, || XfrmEngine::start(config(quiet())).map(drop))
        .unwrap_err();
    assert!(
        matches!(&error, BackendError::Unsupported { engine: "xfrm", what } if *what == why),
        "{error}"
    );
    assert!(!run(&format!("ip -n {} link", pair.names[0])).contains("espada"));
}
