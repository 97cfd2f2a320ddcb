//! What every program of the object costs the kernel's verifier. `cargo xtask test` makes a table
//! of the lines that begin with `VERIFIER: `.

use std::io::Write;
use std::time::Instant;

use aya::programs::Program;

use super::super::{Options, chain};
use super::front_end;

#[test]
fn every_program_is_accepted() {
    let Some(mut front_end) = front_end("every_program_is_accepted", &Options::default()) else {
        return;
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut count = 0;
    for (name, program) in front_end.ebpf.programs_mut() {
        let started = Instant::now();
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            other => panic!("{name} is of a kind this test does not load: {other:?}"),
        };
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        if let Err(error) = loaded {
            panic!("the kernel refused {name}: {}", chain(&error));
        }
        let instructions = program.info().unwrap().verified_instruction_count();
        // Kernels before 5.16 do not say.
        let instructions = instructions.map_or("-".to_owned(), |count| count.to_string());
        let line = format!(
            "\nVERIFIER: kernel={} program={name} insns={instructions} load_ms={milliseconds:.1}\n",
            kernel.trim()
        );
        // Past the test runner's capturing of output, in one piece.
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        count += 1;
    }
    assert!(count > 0, "the object holds no program");
}
