//! The tier that needs other kernels: the eBPF programs under each kernel's verifier, the XFRM
//! engine, and peers with the kernel's own ESP.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::tally::Tally;
use super::{Outcome, Tier, executable};
use crate::process::say;
use crate::vm::{self, Kernel};

/// Software emulation is slow; a run that takes longer than this hangs.
const TIMEOUT: Duration = Duration::from_secs(1500);

/// Of the data plane's tests, under each kernel: the programs under the verifier, that what is probed
/// can be used, and what the XFRM engine makes of states and policies, against itself and against the
/// eBPF engine. The oldest kernel gets more of the XFRM engine's; `cargo xtask vm` runs the rest.
fn dataplane_selection(kernel: &str) -> &'static str {
    if kernel == "6.1" {
        "frontend::tests features::tests device::tests xfrm::tests::a_kernel xfrm::tests::life \
         xfrm::tests::traffic::netns_native_over xfrm::tests::traffic::netns_transport \
         xfrm::tests::traffic::netns_with_ebpf"
    } else {
        "frontend::tests features::tests device::tests xfrm::tests::a_kernel \
         xfrm::tests::traffic::netns_native_over_ipv4 xfrm::tests::life::netns_other_peoples \
         xfrm::tests::processors"
    }
}

/// Cases of whole daemons under each kernel: those that take the kernel's ESP, which the host may lack.
fn netns_selection(kernel: &str) -> &'static str {
    if kernel == "6.1" {
        "engines::xfrm_carries_a_tunnel"
    } else {
        "engines::xfrm_has_sas_for_single_processors"
    }
}

/// Interop cases under each kernel but for those with OpenIKED, as filters of the test runner. The
/// oldest kernel gets several of every peer and engine, the others one: they differ in the verifier
/// more than in ESP.
fn interop_selection(kernel: &str) -> &'static [&'static str] {
    if kernel == "6.1" {
        &[
            "::native_gcm::userspace",
            "::native_cbc::userspace",
            "::native_chacha20::ebpf",
            "::native_gcm::xfrm",
            "::native_gcm_begins::xfrm",
            "::transport",
            "pairs::",
        ]
    } else {
        &[
            "::native_gcm::userspace",
            "::native_chacha20::ebpf",
            "pairs::chacha20::ebpf_ebpf",
            "pairs::chacha20::xfrm_userspace",
        ]
    }
}

/// Cases with OpenIKED under each kernel.
fn openiked_selection(kernel: &str) -> &'static [&'static str] {
    if kernel == "6.1" {
        &[
            "openiked::native_cbc::",
            "openiked::cbc_sha384_begins::",
            "openiked::behind_nat::",
            "openiked::transport::",
        ]
    } else {
        &["openiked::native_cbc::"]
    }
}

/// What OpenIKED's cases need of the kernel is loaded, then modules are no longer looked for:
/// iked registers with PF_KEY, and PF_KEY probes every algorithm that Linux ever had. Each that a
/// kernel is built without costs two runs of modprobe, together up to half a minute each time.
const NO_MORE_MODULES: &str = "
modprobe -a af_key nft_chain_nat nft_masq
spi=4096
for hash in sha1 sha384 sha512; do
    spi=$((spi + 1))
    ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi $spi mode tunnel \\
        enc 'cbc(aes)' 0x00112233445566778899001122334455 \\
        auth-trunc \"hmac($hash)\" 0x00112233445566778899 96
done
ip xfrm state flush
echo > /proc/sys/kernel/modprobe";

/// Runs the tier under every kernel. What cannot run is in the outcome as skipped, with why.
/// `peers` is what the tests are told of the peers' folders.
pub fn run(espada: &Path, peers: &[(&'static str, OsString)]) -> Result<Vec<Outcome>> {
    let programs = TestPrograms::build()?;
    Ok(vm::names()
        .map(|name| {
            say(format_args!("\n==== Linux {name} in a virtual machine"));
            let started = Instant::now();
            let mut tally = Tally::default();
            let success = match Kernel::fetch(name) {
                Ok(kernel) => {
                    let command = command(name, espada, peers, &programs);
                    under(name, &mut tally, |line| kernel.run(&command, TIMEOUT, line))
                }
                Err(error) => {
                    tally.skips.push(format!("Linux {name}: {error:#}"));
                    true
                }
            };
            Outcome {
                title: format!("Linux {name} in a virtual machine"),
                kernel: name,
                tally,
                success,
                took: started.elapsed(),
            }
        })
        .collect())
}

/// The shell command that runs the tests in a virtual machine.
fn command(
    kernel: &str,
    espada: &Path,
    peers: &[(&'static str, OsString)],
    programs: &TestPrograms,
) -> String {
    let mut variables = vec![format!("ESPADA_BIN={}", quoted(&espada.to_string_lossy()))];
    for (name, value) in peers {
        variables.push(format!("{name}={}", quoted(&value.to_string_lossy())));
    }
    format!(
        "export NO_COLOR=1 RUST_BACKTRACE=0 {variables}
{dataplane} --color=never --test-threads=2 {selection}; result=$?
{netns} --color=never --test-threads=2 --exact {daemons}; result=$((result | $?))
{interop} --color=never --test-threads=2 --skip openiked:: {peers}; result=$((result | $?))
{NO_MORE_MODULES}
{interop} --color=never --test-threads=2 {openiked}; exit $((result | $?))",
        variables = variables.join(" "),
        selection = dataplane_selection(kernel),
        dataplane = quoted(&programs.dataplane.to_string_lossy()),
        netns = quoted(&programs.netns.to_string_lossy()),
        daemons = netns_selection(kernel),
        interop = quoted(&programs.interop.to_string_lossy()),
        peers = interop_selection(kernel).join(" "),
        openiked = openiked_selection(kernel).join(" "),
    )
}

/// A word for the shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a kernel says that meets a breakpoint which it had set to change its own code, and taken away again.
/// Real processors do not; one of several emulated ones does once in a while.
const EMULATION_FAULT: &str = "Oops: int3";

/// Runs the tests under one kernel, and once more when the emulated processor failed them and no test did.
fn under(
    name: &str,
    tally: &mut Tally,
    mut run: impl FnMut(&mut dyn FnMut(&str)) -> Result<i32>,
) -> bool {
    let mut again = false;
    loop {
        let mut faulty = false;
        let result = run(&mut |line| {
            say(line);
            faulty |= line.contains(EMULATION_FAULT);
            tally.read(line);
        });
        match result {
            Ok(code) => return code == 0,
            Err(error) if faulty && !again && tally.failed == 0 => {
                say(format_args!(
                    "vm: Linux {name} met a breakpoint that it had taken away ({EMULATION_FAULT}), a fault of the \
                     emulated processor: {error:#}; everything once more"
                ));
                again = true;
                *tally = Tally::default();
            }
            Err(error) => {
                tally.failed += 1;
                tally.failures.push(format!("Linux {name}: {error:#}"));
                return false;
            }
        }
    }
}

/// Compiled tests, which run under any kernel.
struct TestPrograms {
    dataplane: PathBuf,
    netns: PathBuf,
    interop: PathBuf,
}

impl TestPrograms {
    fn build() -> Result<Self> {
        // The selections of the tiers before, so that nothing is compiled again.
        let unit = [Tier::Unit.selection(), &["--lib"]].concat();
        Ok(Self {
            dataplane: executable(&unit, "espada_dataplane")?,
            netns: executable(Tier::Netns.selection(), "netns")?,
            interop: executable(Tier::Interop.selection(), "interop")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// Runs that print lines and end as told; gives success, what was counted, and how many ran.
    fn outcome(runs: &[(&str, Option<i32>)]) -> (bool, Tally, usize) {
        let mut tally = Tally::default();
        let mut count = 0;
        let success = under("7.x", &mut tally, |line| {
            let (said, code) = runs[count];
            count += 1;
            said.lines().for_each(&mut *line);
            code.context("the VM ended without an exit code")
        });
        (success, tally, count)
    }

    #[test]
    fn only_a_fault_of_the_emulation_has_the_tests_run_again_and_once() {
        const PASSED: &str = "test result: ok. 3 passed; 0 failed; 0 ignored";
        const FAULT: &str = "[  283.517565] Oops: int3: 0000 [#1] SMP NOPTI";
        const CRASH: &str =
            "[  283.517565] BUG: kernel NULL pointer dereference, address: 0000000000000008";
        let (success, tally, runs) = outcome(&[(FAULT, None), (PASSED, Some(0))]);
        assert_eq!(
            (success, tally.passed(), tally.failed, runs),
            (true, 3, 0, 2)
        );
        let (success, tally, runs) = outcome(&[(FAULT, None), (FAULT, None)]);
        assert_eq!((success, tally.failed, runs), (false, 1, 2));
        let failed_before = format!("test result: FAILED. 2 passed; 1 failed; 0 ignored\n{FAULT}");
        let (success, tally, runs) = outcome(&[(&failed_before, None)]);
        assert_eq!((success, tally.failed, runs), (false, 2, 1));
        let (success, tally, runs) = outcome(&[(CRASH, None)]);
        assert_eq!((success, tally.failed, runs), (false, 1, 1));
        let (success, _, runs) = outcome(&[(PASSED, Some(1))]);
        assert_eq!((success, runs), (false, 1));
    }
}
