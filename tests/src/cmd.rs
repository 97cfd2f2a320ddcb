//! Commands that are run to their end, with their output in the error when they fail.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::syscall;

/// Runs a command and gives its standard output; failure carries both outputs.
pub fn run(argv: &[&str]) -> Result<String> {
    let output = output(argv)?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}):\n{}{}",
            argv.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command may take before it counts as hung; the longest are throughput measurements.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command whatever its outcome. One that hangs is ended, which is an error.
pub fn output(argv: &[&str]) -> Result<Output> {
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", argv.join(" ")))?;
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || {
            let hangs = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if hangs {
                // Not reaped yet (the other thread waits for it), so the id is still its own.
                let _ = syscall::kill(pid, libc::SIGKILL);
            }
            hangs
        });
        let output = child.wait_with_output();
        drop(done);
        if watching.join().unwrap_or(false) {
            bail!("`{}` hung for {LIMIT:?}", argv.join(" "));
        }
        output.with_context(|| format!("cannot run `{}`", argv.join(" ")))
    })
}

/// Cargo, as if it were called from a shell. Under `cargo run` and `cargo test` the environment
/// describes the calling package; build scripts take such variables for a change and compile
/// anew what was there already (ring's does).
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_the_caller = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name.starts_with("CARGO_BIN_")
                || matches!(
                    name,
                    "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR"
                )
        });
        if of_the_caller {
            command.env_remove(name);
        }
    }
    command
}

/// True when `program` can be found on PATH or is an absolute path that exists.
pub fn have(program: &str) -> bool {
    if program.starts_with('/') {
        return std::path::Path::new(program).exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// True in the virtual machines of `cargo xtask vm`, whose software emulation is several times
/// slower than the machine it runs on.
pub fn in_virtual_machine() -> bool {
    std::env::var_os("ESPADA_VM").is_some()
}

/// Calls `poll` until it gives a value; after `limit` (longer in a virtual machine) the error says
/// what was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let slowness = if in_virtual_machine() { 4 } else { 1 };
    let limit = limit * slowness;
    let deadline = Instant::now() + limit;
    // What is asked again and again costs the machine time as well.
    let mut pause = Duration::from_millis(5) * slowness;
    let longest = Duration::from_millis(100) * slowness;
    loop {
        let outcome = poll();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            let waited = format!("{what} did not happen within {limit:?}");
            return match outcome {
                Err(error) => Err(error.context(waited)),
                Ok(_) => bail!("{waited}"),
            };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}
