//! Counting from the output of the test runner.

/// What one or more runs of libtest reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    reported_passed: usize,
    /// Tests that failed.
    pub failed: usize,
    ignored: usize,
    /// Their names.
    pub failures: Vec<String>,
    /// `name: reason` of tests that found on their own that they cannot run.
    pub skips: Vec<String>,
}

impl Tally {
    /// Takes in one line of output.
    pub fn read(&mut self, line: &str) {
        // Our line may follow the start of one of libtest's: both write when they like.
        if let Some((_, reason)) = line.split_once("SKIPPED: ") {
            self.skips.push(reason.trim().to_owned());
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
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
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
            "test c ... FAILED",
            "test d ... ignored",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed(), tally.failed, tally.skipped()), (4, 1, 2));
        assert_eq!(tally.total(), 7);
        assert_eq!(tally.failures, ["c"]);
        assert_eq!(tally.skips, ["b: needs root"]);
    }
}
