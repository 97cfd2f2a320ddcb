//! The programs run by BPF_PROG_TEST_RUN on crafted packets, and attached to links of their own
//! network namespaces. Without the rights for it each test says so and does nothing.

mod attach;
mod lan;
mod verdicts;
mod verifier;

use std::io::Write;
use std::net::IpAddr;

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use espada_common::drops::DropReason;
use espada_common::wire::protocol;
use espada_common::wire::sample::{Ip, esp, ethernet, udp};

use super::policy::ProtectedPair;
use super::{FrontEnd, FrontEndError, Options, attach as attaching};
use crate::engine::Steering;
use crate::netlink::Prefix;

const US: &str = "198.51.100.2";
const PEER: &str = "192.0.2.1";
const US6: &str = "2001:db8:ffff::2";
const PEER6: &str = "2001:db8::1";
const SPI: u32 = 0xc0de_0001;
const OUT_SPI: u32 = 0xbeef_0002;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

fn pair(remote: &str, local: &str) -> ProtectedPair {
    ProtectedPair {
        remote: prefix(remote),
        local: prefix(local),
    }
}

/// A front end without links, or the reason printed why there can be none here.
fn front_end(test: &str, options: &Options) -> Option<FrontEnd> {
    match FrontEnd::attach(options) {
        Ok(front_end) => Some(front_end),
        Err(FrontEndError::Load { reason, hint }) if !hint.is_empty() => {
            skip(test, &reason);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Past the test runner's capturing of output: a skipped test must not look like a passed one.
fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// With one inbound and one outbound SA of each family, and drops of unknown SPIs.
fn gateway(test: &str) -> Option<FrontEnd> {
    let mut front_end = front_end(
        test,
        &Options {
            drop_unknown_spi: true,
            ..Options::default()
        },
    )?;
    front_end
        .set_addresses(&[address(US), address(US6)], &[])
        .unwrap();
    front_end
        .add_sa(SPI, address(US), Steering::Kernel)
        .unwrap();
    front_end
        .add_sa(SPI + 1, address(US6), Steering::Kernel)
        .unwrap();
    front_end.add_out(address(PEER), OUT_SPI).unwrap();
    front_end.add_out(address(PEER6), OUT_SPI).unwrap();
    Some(front_end)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    Passed,
    Dropped,
    Steered,
}

const INGRESS: [&str; 2] = ["espada_xdp", "espada_tc_in"];

impl FrontEnd {
    /// Runs a program once over a frame.
    fn run(&mut self, program: &'static str, frame: &[u8]) -> Ran {
        self.run_segmented(program, frame, 0)
    }

    /// The same, the frame standing for this many segments (tc only).
    fn run_segmented(&mut self, program: &'static str, frame: &[u8], segments: u32) -> Ran {
        self.try_run(program, frame, segments, None).unwrap()
    }

    /// The same, with only this many octets in one piece and the rest in page fragments. Kernels
    /// that cannot make such packets refuse.
    fn try_run(
        &mut self,
        program: &'static str,
        frame: &[u8],
        segments: u32,
        linear: Option<u32>,
    ) -> Result<Ran, ProgramError> {
        const DATA_END: usize = 20;
        const GSO_SEGS: usize = 41;
        const GSO_SIZE: usize = 44;
        const WORDS: usize = 48;
        let mut out = vec![0; frame.len() + 64];
        if matches!(program, "espada_xdp" | attaching::LAN) {
            let xdp: &mut Xdp = attaching::loaded(&mut self.ebpf, program, Xdp::load).unwrap();
            let result = xdp.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })?;
            assert_eq!(&out[..frame.len()], frame, "XDP changes nothing");
            return Ok(match result.return_value {
                1 => Ran::Dropped,
                2 => Ran::Passed,
                4 => Ran::Steered,
                other => panic!("XDP action {other}"),
            });
        }
        let mut context = [0u32; WORDS];
        context[DATA_END] = linear.unwrap_or_default();
        context[GSO_SEGS] = segments;
        context[GSO_SIZE] = if segments > 1 { 100 } else { 0 };
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let tc: &mut SchedClassifier =
            attaching::loaded(&mut self.ebpf, program, SchedClassifier::load).unwrap();
        let result = tc.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })?;
        assert_eq!(&out[..frame.len()], frame, "tc changes nothing");
        Ok(match result.return_value.cast_signed() {
            -1 => Ran::Passed,
            2 => Ran::Dropped,
            other => panic!("tc action {other}"),
        })
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().unwrap().drops[reason as usize]
    }

    fn received(&self, spi: u32) -> (u64, u64) {
        let counters = self.counters().unwrap().inbound;
        let found = counters.iter().find(|found| found.spi == spi).unwrap();
        (found.counters.packets, found.counters.bytes)
    }

    fn sent(&self, peer: &str) -> (u64, u64) {
        let counters = self.counters().unwrap().outbound;
        let found = counters
            .iter()
            .find(|found| found.peer == address(peer))
            .unwrap();
        (found.counters.packets, found.counters.bytes)
    }
}

fn native(source: &str, destination: &str, spi: u32) -> Vec<u8> {
    Ip::new(source, destination, protocol::ESP).octets(&esp(spi, 1, 80))
}

fn in_udp(source: &str, destination: &str, spi: u32) -> Vec<u8> {
    Ip::new(source, destination, protocol::UDP).octets(&udp(4500, 4500, &esp(spi, 1, 80)))
}

fn clear(source: &str, destination: &str) -> Vec<u8> {
    Ip::new(source, destination, protocol::TCP).octets(&[0; 40])
}

fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(&[], packet)
}
