//! What this process has made on the machine, so that Ctrl-C and a crash of an earlier run leave
//! nothing behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::{cgroup, cmd, syscall};

/// Prefix of every namespace of the harness; the process id follows it.
pub const PREFIX: &str = "esp-";

#[derive(Default)]
struct Registry {
    namespaces: Vec<String>,
    directories: Vec<PathBuf>,
    /// Control groups that this process is in, each with the one it came from.
    cpu_groups: Vec<(PathBuf, PathBuf)>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    namespaces: Vec::new(),
    directories: Vec::new(),
    cpu_groups: Vec::new(),
});

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once a signal asked this process to end: the signal's thread tidies up and ends it, and
/// what fails meanwhile on other threads fails for that reason.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Gives the signal's thread, if there is one at work, the time to end the process.
pub fn yield_to_interruption() {
    while is_interrupted() {
        std::thread::park();
    }
}

/// Removes what runs of dead processes left, and installs the signal handler; the first call counts.
pub fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in stale_namespaces() {
            remove_namespace(&name);
        }
        if let Err(error) = syscall::on_termination(|signal| {
            INTERRUPTED.store(true, Ordering::SeqCst);
            remove_all();
            std::process::exit(128 + signal);
        }) {
            eprintln!("cannot install the signal handler: {error}; Ctrl-C may leave namespaces");
        }
    });
}

pub(crate) fn register_namespace(name: &str) {
    registry().namespaces.push(name.to_owned());
}

pub(crate) fn forget_namespace(name: &str) {
    registry().namespaces.retain(|other| other != name);
}

pub(crate) fn register_directory(path: &Path) {
    registry().directories.push(path.to_owned());
}

pub(crate) fn forget_directory(path: &Path) {
    registry().directories.retain(|other| other != path);
}

pub(crate) fn register_cpu_group(group: &Path, home: &Path) {
    registry()
        .cpu_groups
        .push((group.to_owned(), home.to_owned()));
}

pub(crate) fn forget_cpu_group(group: &Path) {
    registry().cpu_groups.retain(|(other, _)| other != group);
}

/// Removes everything that is registered: processes in the namespaces, namespaces, directories,
/// control groups. Other threads may still be adding, so it looks until there is nothing left.
fn remove_all() {
    loop {
        let Registry {
            namespaces,
            directories,
            cpu_groups,
        } = std::mem::take(&mut *registry());
        if namespaces.is_empty() && directories.is_empty() && cpu_groups.is_empty() {
            return;
        }
        end_processes(&namespaces);
        for name in &namespaces {
            // One that is not there was registered and not made yet.
            let _ = cmd::run(&["ip", "netns", "del", name]);
        }
        for directory in &directories {
            let _ = std::fs::remove_dir_all(directory);
        }
        for (group, home) in &cpu_groups {
            let _ = cgroup::leave(group, home);
        }
    }
}

/// Names of all network namespaces of the machine.
pub fn namespaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn stale_namespaces() -> Vec<String> {
    let mut names = namespaces();
    names.retain(|name| {
        name.strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    names
}

fn pids_in(namespace: &str) -> Vec<u32> {
    let Ok(text) = cmd::run(&["ip", "netns", "pids", namespace]) else {
        return Vec::new();
    };
    // A thread of the harness that has entered the namespace shows its process only through the
    // main thread, which never enters one; the check keeps that true whatever `ip` does.
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect()
}

/// Asks every process in the namespaces to end (so that it can tidy up), then makes it.
pub fn end_processes(namespaces: &[String]) {
    for (signal, patience) in [
        (libc::SIGTERM, Duration::from_secs(3)),
        (libc::SIGKILL, Duration::from_secs(2)),
    ] {
        let mut pids: Vec<u32> = namespaces.iter().flat_map(|name| pids_in(name)).collect();
        for pid in &pids {
            let _ = syscall::kill(*pid, signal);
        }
        let deadline = Instant::now() + patience;
        while !pids.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            pids = namespaces.iter().flat_map(|name| pids_in(name)).collect();
        }
        if pids.is_empty() {
            return;
        }
    }
}

/// Ends the processes of a namespace and removes it.
pub fn remove_namespace(name: &str) {
    end_processes(&[name.to_owned()]);
    if let Err(error) = cmd::run(&["ip", "netns", "del", name]) {
        eprintln!("cannot remove the namespace {name}: {error:#}");
    }
    forget_namespace(name);
}
