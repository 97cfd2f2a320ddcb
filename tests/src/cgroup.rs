//! Processor time of this process and of everything it starts, as a control group counts it: work
//! that the kernel does on their behalf is included, other programs of the machine are not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cleanup;

const PREFIX: &str = "espada-bench-";

/// Which file tells the time used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Version 1, controller `cpuacct`: nanoseconds in `cpuacct.usage`.
    V1,
    /// Version 2: microseconds in `cpu.stat`, which every group has.
    V2,
}

impl Kind {
    fn used(self, group: &Path) -> Result<f64> {
        let name = match self {
            Self::V1 => "cpuacct.usage",
            Self::V2 => "cpu.stat",
        };
        let file = group.join(name);
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        self.seconds(&text)
            .with_context(|| format!("{} has no usage: {text}", file.display()))
    }

    fn seconds(self, text: &str) -> Option<f64> {
        match self {
            Self::V1 => Some(text.trim().parse::<u64>().ok()? as f64 / 1e9),
            Self::V2 => {
                let line = text.lines().find_map(|it| it.strip_prefix("usage_usec "))?;
                Some(line.trim().parse::<u64>().ok()? as f64 / 1e6)
            }
        }
    }
}

/// Processor time since an arbitrary moment, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Of this process, what it started, and the kernel's packet threads.
    pub ours: f64,
    /// Of the whole machine.
    pub machine: f64,
}

impl Usage {
    /// What was used since an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ours: self.ours - earlier.ours,
            machine: self.machine - earlier.machine,
        }
    }

    /// What others used.
    pub fn others(self) -> f64 {
        (self.machine - self.ours).max(0.0)
    }
}

/// A control group that this process is in, with all it starts from now on. Dropping it moves
/// them back.
#[derive(Debug)]
pub struct CpuGroup {
    kind: Kind,
    top: PathBuf,
    group: PathBuf,
    home: PathBuf,
    packet_threads: Vec<PathBuf>,
}

impl CpuGroup {
    /// Makes the group and enters it.
    pub fn enter() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let (kind, top) =
            hierarchy(&mounts).context("neither cgroup v2 nor v1's cpuacct is mounted")?;
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let place = place(kind, &own).context("this process is in no such control group")?;
        let home = top.join(place.trim_start_matches('/'));
        remove_stale(&top);
        let group = top.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&group)
            .with_context(|| format!("cannot make the control group {}", group.display()))?;
        cleanup::start();
        cleanup::register_cpu_group(&group, &home);
        let this = Self {
            kind,
            packet_threads: packet_threads(),
            top,
            group,
            home,
        };
        enter(&this.group, &std::process::id().to_string())?;
        Ok(this)
    }

    /// What was used so far.
    pub fn usage(&self) -> Result<Usage> {
        // Packets that a softirq could not finish are worked on by kernel threads, which are in
        // the root group.
        let threads: f64 = self
            .packet_threads
            .iter()
            .filter_map(|file| on_processor(&std::fs::read_to_string(file).ok()?))
            .sum();
        Ok(Usage {
            ours: self.kind.used(&self.group)? + threads,
            machine: self.kind.used(&self.top)?,
        })
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        if cleanup::is_interrupted() {
            return;
        }
        cleanup::forget_cpu_group(&self.group);
        if let Err(error) = leave(&self.group, &self.home) {
            eprintln!("{error:#}");
        }
    }
}

/// Moves what is in a group to another and removes the first.
pub(crate) fn leave(group: &Path, home: &Path) -> Result<()> {
    let mut last = None;
    for _ in 0..50 {
        let inside = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            match enter(home, pid) {
                // One that ended meanwhile has left by itself.
                Err(error) if Path::new("/proc").join(pid).exists() => last = Some(error),
                _ => {}
            }
        }
        // What ended a moment ago may still be on its way out.
        match std::fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) => {
                last.get_or_insert(error.into());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match last {
        Some(error) => Err(error)
            .with_context(|| format!("cannot remove the control group {}", group.display())),
        None => Ok(()),
    }
}

fn enter(group: &Path, pid: &str) -> Result<()> {
    let file = group.join("cgroup.procs");
    std::fs::write(&file, pid).with_context(|| format!("cannot enter {}", file.display()))
}

/// Groups of processes that are no more.
fn remove_stale(top: &Path) {
    let Ok(entries) = std::fs::read_dir(top) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // One that is in use cannot be removed, which is as it should be.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// The mounted hierarchy that counts processor time: version 1's where there is one, as
/// version 2 is mounted beside it without controllers.
fn hierarchy(mounts: &str) -> Option<(Kind, PathBuf)> {
    let mut second = None;
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(place), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        match kind {
            "cgroup" if options.split(',').any(|option| option == "cpuacct") => {
                return Some((Kind::V1, PathBuf::from(place)));
            }
            "cgroup2" if second.is_none() => second = Some((Kind::V2, PathBuf::from(place))),
            _ => {}
        }
    }
    second
}

/// Where in the hierarchy a process is, from its /proc/PID/cgroup.
fn place(kind: Kind, text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let (controllers, place) = line.split_once(':')?.1.split_once(':')?;
        let fits = match kind {
            Kind::V1 => controllers.split(',').any(|name| name == "cpuacct"),
            Kind::V2 => controllers.is_empty(),
        };
        fits.then_some(place)
    })
}

/// `schedstat` of the kernel threads that carry packets.
fn packet_threads() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            std::fs::read_to_string(path.join("comm"))
                .is_ok_and(|name| name.starts_with("ksoftirqd/") || name.starts_with("napi/"))
        })
        .map(|path| path.join("schedstat"))
        .collect()
}

/// Seconds on a processor, from a `schedstat`.
fn on_processor(schedstat: &str) -> Option<f64> {
    let nanoseconds: u64 = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds as f64 / 1e9)
}

/// Processor seconds for each 10^9 octets carried.
pub fn seconds_per_gigabyte(seconds: f64, octets: f64) -> Result<f64> {
    if octets <= 0.0 {
        bail!("nothing was carried");
    }
    Ok(seconds / (octets / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(Kind::V1.seconds("2500000000\n"), Some(2.5));
        let text = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n";
        assert_eq!(Kind::V2.seconds(text), Some(1.5));
        assert_eq!(Kind::V2.seconds("user_usec 1\n"), None);
        assert_eq!(Kind::V1.seconds("much"), None);
        assert_eq!(on_processor("2000000000 5 7\n"), Some(2.0));
    }

    #[test]
    fn the_hierarchy_that_counts_is_found() {
        let second = "tmpfs /tmp tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(
            hierarchy(second),
            Some((Kind::V2, PathBuf::from("/sys/fs/cgroup")))
        );
        let both = format!("{second}cgroup /cg/acct cgroup rw,relatime,cpu,cpuacct 0 0\n");
        assert_eq!(
            hierarchy(&both),
            Some((Kind::V1, PathBuf::from("/cg/acct")))
        );
        assert_eq!(hierarchy("cgroup /cg/mem cgroup rw,memory 0 0\n"), None);
        let own = "5:cpu,cpuacct:/work\n1:name=systemd:/\n0::/user.slice\n";
        assert_eq!(place(Kind::V1, own), Some("/work"));
        assert_eq!(place(Kind::V2, own), Some("/user.slice"));
        assert_eq!(place(Kind::V1, "0::/user.slice\n"), None);
    }

    #[test]
    fn work_of_this_process_and_of_others_it_starts_is_counted() -> Result<()> {
        const TEST: &str = "work_of_this_process_and_of_others_it_starts_is_counted";
        crate::skip_unless_possible!(TEST);
        let group = match CpuGroup::enter() {
            Ok(group) => group,
            Err(error) => {
                crate::skip(TEST, &format!("{error:#}"));
                return Ok(());
            }
        };
        let path = group.group.clone();
        let before = group.usage()?;
        // A hundred thousand rounds take a shell tens of milliseconds at least.
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        crate::cmd::run(&["sh", "-c", script])?;
        let used = group.usage()?.since(before);
        assert!(used.ours > 0.005, "{used:?}");
        assert!(used.machine > 0.005, "{used:?}");
        drop(group);
        assert!(!path.exists(), "{} is still there", path.display());
        Ok(())
    }

    #[test]
    fn use_is_a_difference() {
        let usage = |ours, machine| Usage { ours, machine };
        let used = usage(5.0, 9.0).since(usage(2.0, 5.0));
        assert_eq!((used.ours, used.others()), (3.0, 1.0));
        assert_eq!(seconds_per_gigabyte(3.0, 2e9).unwrap(), 1.5);
        assert!(seconds_per_gigabyte(3.0, 0.0).is_err());
    }
}
