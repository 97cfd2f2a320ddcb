//! The pin folder of an instance: one folder in a BPF file system, under a lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;

use super::{Attachment, FrontEndError, Leftovers, inspect, syscall};

/// Where the BPF file system is by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The folder of an instance by convention.
pub fn instance_dir(instance: &str) -> PathBuf {
    Path::new(BPFFS).join("espada").join(instance)
}

/// A pin folder that is ours: locked, emptied, and removed with what is in it when dropped.
#[derive(Debug)]
pub struct InstanceDir {
    path: PathBuf,
    // Holds the lock.
    _lock: File,
    keep: bool,
}

impl InstanceDir {
    /// Makes and locks the folder, mounting the BPF file system where that is missing. What a
    /// crashed owner left there is dealt with as asked; a living owner is an error.
    pub fn create(path: &Path, leftovers: Leftovers) -> Result<Self, FrontEndError> {
        let fail = |reason: String| FrontEndError::Pin {
            path: path.to_path_buf(),
            reason,
        };
        ensure_bpffs(path).map_err(fail)?;
        fs::create_dir_all(path).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "; this needs root",
                _ => "",
            };
            fail(format!("cannot make it: {error}{hint}"))
        })?;
        let lock = lock(path).map_err(fail)?;
        let linked = links_in(path).next().is_some();
        if linked && leftovers == Leftovers::Refuse {
            return Err(fail(
                "holds attached programs; detach them first (`cargo xtask unload IFACE`)"
                    .to_owned(),
            ));
        }
        let adopted = linked
            && leftovers == Leftovers::Adopt
            && match inspect::check_version(path) {
                Ok(()) => true,
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "SAs of an earlier run cannot be taken over");
                    false
                }
            };
        if !adopted {
            clear(path).map_err(|error| fail(format!("cannot remove old pins: {error}")))?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            _lock: lock,
            keep: false,
        })
    }

    /// Maps that an earlier process left: name and path.
    pub(super) fn maps(&self) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .filter(|(name, _)| name.starts_with("espada_"))
            .collect()
    }

    /// Removes the links of all but these attachments.
    pub(super) fn keep_links(&self, attachments: &[Attachment]) {
        let kept: Vec<PathBuf> = attachments
            .iter()
            .map(|attached| attached.pin(&self.path))
            .collect();
        for link in links_in(&self.path).filter(|link| !kept.contains(link)) {
            if let Err(error) = fs::remove_file(&link) {
                tracing::warn!(link = %link.display(), %error, "a program of an earlier run stays attached");
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the pins there.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for InstanceDir {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = clear(&self.path).and_then(|()| fs::remove_dir(&self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the pin folder");
        }
    }
}

/// Removes a pin folder that [`InstanceDir::keep`] left: links first, which detaches their
/// programs. Returns the names of the links.
pub fn remove(path: &Path) -> Result<Vec<String>, FrontEndError> {
    let fail = |reason: String| FrontEndError::Pin {
        path: path.to_path_buf(),
        reason,
    };
    if !path.is_dir() {
        return Err(fail("is not there: nothing was loaded".to_owned()));
    }
    let _lock = lock(path).map_err(fail)?;
    let links: Vec<PathBuf> = links_in(path).collect();
    let mut names = Vec::new();
    let mut programs = Vec::new();
    for link in links {
        if let Ok(about) = PinnedLink::from_pin(&link).and_then(|link| FdLink::from(link).info()) {
            programs.push(about.program_id());
        }
        fs::remove_file(&link)
            .map_err(|error| fail(format!("cannot remove {}: {error}", link.display())))?;
        names.extend(
            link.file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    clear(path)
        .and_then(|()| fs::remove_dir(path))
        .map_err(|error| fail(format!("cannot remove it: {error}")))?;
    wait_until_gone(&programs);
    names.sort();
    Ok(names)
}

/// The kernel detaches a program some time after its link's last pin is gone, and forgets the
/// program then.
fn wait_until_gone(programs: &[u32]) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let start = Instant::now();
    while start.elapsed() < PATIENCE
        && loaded_programs()
            .flatten()
            .any(|program| programs.contains(&program.id()))
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a link's pin is named.
pub(super) const LINK_PREFIX: &str = "link_";

fn links_in(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(LINK_PREFIX))
        })
}

fn clear(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, String> {
    let folder = File::open(path).map_err(|error| format!("cannot open it: {error}"))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            Err("is in use by another instance; choose another name or stop that one".to_owned())
        }
        Err(TryLockError::Error(error)) => Err(format!("cannot lock it: {error}")),
    }
}

/// Makes sure that the nearest existing ancestor is a BPF file system, by mounting one at
/// [`BPFFS`] if that is where the path leads.
fn ensure_bpffs(path: &Path) -> Result<(), String> {
    let bpffs = Path::new(BPFFS);
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    let existing = existing.unwrap_or(Path::new("/"));
    match syscall::is_bpffs(existing) {
        Ok(true) => return Ok(()),
        Ok(false) if path.starts_with(bpffs) && bpffs.starts_with(existing) => {}
        Ok(false) => {
            return Err(format!(
                "is not in a BPF file system (try one under {BPFFS})"
            ));
        }
        Err(error) => return Err(format!("cannot look at {}: {error}", existing.display())),
    }
    syscall::mount_bpffs(bpffs).map_err(|error| {
        format!("no BPF file system is mounted at {BPFFS}, and mounting one failed: {error}")
    })
}
