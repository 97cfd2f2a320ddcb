//! Counting from the output of the test runner.

use espada_tests::matrix;

/// Begins a line about one eBPF program; what follows is
/// `kernel=RELEASE program=NAME insns=COUNT load_ms=TIME`.
const PROGRAM_MARK: &str = "VERIFIER: ";

/// What one or more runs of libtest reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    reported_passed: usize,
    /// Tests that failed.
    pub failed: usize,
    ignored: usize,
    /// Their names.
    pub failures: Vec<String>,
    /// Names since the last line that says `failures:`; the last such list is of names alone.
    listed: Option<Vec<String>>,
    /// `name: reason` of tests that found on their own that they cannot run.
    pub skips: Vec<String>,
    /// Cases of the matrix of engines and peers.
    pub cases: Vec<Case>,
    /// What the kernel's verifier said of each eBPF program.
    pub programs: Vec<Program>,
}

/// One case of the matrix, as it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Espada's engine.
    pub engine: String,
    /// Who was at the other end.
    pub peer: String,
    /// `ok`, `failed` or `skipped`.
    pub result: String,
}

/// One eBPF program under one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked through (`-` where the kernel does not say).
    pub instructions: String,
    /// Milliseconds that loading took.
    pub load_ms: String,
}

impl Tally {
    /// Takes in one line of output.
    pub fn read(&mut self, line: &str) {
        // Our line may follow the start of one of libtest's: both write when they like.
        if let Some((_, reason)) = line.split_once("SKIPPED: ") {
            self.skips.push(reason.trim().to_owned());
        }
        if let Some((_, rest)) = line.split_once(matrix::MARK) {
            self.cases.extend(case(rest));
        }
        if let Some((_, rest)) = line.split_once(PROGRAM_MARK) {
            self.programs.extend(program(rest));
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            for part in counts.split([';', '.']) {
                let mut words = part.split_whitespace();
                let number = words.next().and_then(|word| word.parse::<usize>().ok());
                match (number, words.next()) {
                    (Some(count), Some("passed")) => self.reported_passed += count,
                    (Some(count), Some("failed")) => self.failed += count,
                    (Some(count), Some("ignored")) => self.ignored += count,
                    _ => {}
                }
            }
            self.failures.extend(self.listed.take().unwrap_or_default());
        } else if line == "failures:" {
            self.listed = Some(Vec::new());
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            listed.push(name.to_owned());
        }
    }

    /// Tests that ran and passed: a test that skips itself counts as passed with libtest.
    pub fn passed(&self) -> usize {
        self.reported_passed.saturating_sub(self.skips.len())
    }

    /// Tests that did not run.
    pub fn skipped(&self) -> usize {
        self.ignored + self.skips.len()
    }

    /// All tests.
    pub fn total(&self) -> usize {
        self.passed() + self.failed + self.skipped()
    }

    /// Why tests did not run, each reason once: with the only test, or how many.
    pub fn skip_reasons(&self) -> Vec<String> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for skip in &self.skips {
            let (name, reason) = skip.split_once(": ").unwrap_or(("", skip));
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, names)) => names.push(name),
                None => reasons.push((reason, vec![name])),
            }
        }
        reasons
            .into_iter()
            .map(|(reason, names)| match names[..] {
                [name] => format!("{name}: {reason}"),
                _ => format!("{} tests: {reason}", names.len()),
            })
            .collect()
    }
}

fn case(line: &str) -> Option<Case> {
    Some(Case {
        engine: value(line, "engine")?,
        peer: value(line, "peer")?,
        result: line.split_whitespace().next_back()?.to_owned(),
    })
}

fn program(line: &str) -> Option<Program> {
    Some(Program {
        name: value(line, "program")?,
        instructions: value(line, "insns")?,
        load_ms: value(line, "load_ms")?,
    })
}

/// The value of one of a line's `name=value` words.
fn value(line: &str, name: &str) -> Option<String> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_reports() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test b ... SKIPPED: b: needs root",
            "ok",
            "test c ... ",
            "MATRIX: engine=xfrm peer=libreswan case=gcm failed",
            "FAILED",
            "test d ... ignored",
            "failures:",
            "",
            "---- c stdout ----",
            "    of its output",
            "",
            "failures:",
            "    c",
            "",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "VERIFIER: kernel=6.1.0 program=espada_xdp insns=4321 load_ms=12.5",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed(), tally.failed, tally.skipped()), (4, 1, 2));
        assert_eq!(tally.total(), 7);
        assert_eq!(tally.failures, ["c"]);
        assert_eq!(tally.skips, ["b: needs root"]);
        assert_eq!(
            tally.cases,
            [Case {
                engine: "xfrm".to_owned(),
                peer: "libreswan".to_owned(),
                result: "failed".to_owned(),
            }]
        );
        assert_eq!(
            tally.programs,
            [Program {
                name: "espada_xdp".to_owned(),
                instructions: "4321".to_owned(),
                load_ms: "12.5".to_owned(),
            }]
        );
    }

    #[test]
    fn a_reason_is_given_once() {
        let mut tally = Tally::default();
        for line in [
            "SKIPPED: a: needs root",
            "SKIPPED: b: no kernel: none",
            "SKIPPED: c: needs root",
        ] {
            tally.read(line);
        }
        assert_eq!(
            tally.skip_reasons(),
            ["2 tests: needs root", "b: no kernel: none"]
        );
    }
}
