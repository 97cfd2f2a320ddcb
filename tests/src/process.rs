//! Background processes: started in a namespace, ended by their id, their output in a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{cleanup, syscall};

/// A directory under the system's temporary one, removed when dropped unless it is kept.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("espada-")
            .tempdir()
            .context("cannot make a temporary directory")?
            .keep();
        cleanup::register_directory(&path);
        Ok(Self { path, keep: false })
    }

    /// Makes it at a place of the caller's choice, readable by its owner alone.
    pub fn at(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        cleanup::register_directory(path);
        Ok(Self {
            path: path.to_owned(),
            keep: false,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Leaves it there when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
        cleanup::forget_directory(&self.path);
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if !self.keep && !cleanup::is_interrupted() {
            cleanup::forget_directory(&self.path);
            if let Err(error) = std::fs::remove_dir_all(&self.path) {
                eprintln!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

/// A process in the background. Dropping it ends it; its log is shown when the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    keep: bool,
}

impl Process {
    /// Starts `argv` with both outputs appended to `log`. It is ended with the thread that started
    /// it at the latest, unless it is kept (`detached`).
    pub fn start(
        name: &str,
        argv: &[String],
        environment: &[(&str, &str)],
        log: &Path,
        detached: bool,
    ) -> Result<Self> {
        let (program, arguments) = argv.split_first().context("an empty command line")?;
        let output: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if detached {
            syscall::new_session(&mut command);
        } else {
            // A group of its own: Ctrl-C reaches the harness alone, which ends things in order.
            command.process_group(0);
            syscall::die_with_starter(&mut command);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: `{}`", argv.join(" ")))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            keep: false,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error with the log when the process is no longer there.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} ended ({status}); its output:\n{}",
                self.name,
                tail(&self.log(), 40)
            );
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        syscall::kill(self.pid(), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} still runs after {limit:?}; its output:\n{}",
                    self.name,
                    tail(&self.log(), 40)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to end and waits for that; kills it when it does not obey, which is an error.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(libc::SIGTERM)?;
        self.wait(Duration::from_secs(5))
    }

    /// Ends it without giving it a chance to tidy up.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Leaves the process running when this value is dropped (it was started detached).
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- end of the output of {}\n{}",
                self.name,
                tail(&self.log(), 60)
            );
        }
        if self.keep {
            return;
        }
        if self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
