//! The progress line of the longer commands.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Steps of a command, shown on standard error as they begin.
pub struct Progress {
    name: &'static str,
    steps: u32,
    step: u32,
    started: Instant,
}

impl Progress {
    /// Announces nothing yet.
    pub fn new(name: &'static str, steps: u32) -> Self {
        Self {
            name,
            steps,
            step: 0,
            started: Instant::now(),
        }
    }

    /// The next step begins. On a terminal its line replaces the last one.
    pub fn step(&mut self, what: &str) {
        self.step += 1;
        let seconds = self.started.elapsed().as_secs();
        let end = if terminal() { "" } else { "\n" };
        self.clear();
        let line = format!(
            "{} [{}/{}, {seconds} s] {what}{end}",
            self.name, self.step, self.steps
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// All is done: the line goes away from a terminal.
    pub fn done(&mut self) {
        self.clear();
    }

    fn clear(&self) {
        if terminal() {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn terminal() -> bool {
    std::io::stderr().is_terminal()
}
