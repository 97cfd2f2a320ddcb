//! One daemon a runtime directory: the lock, and the word to the service manager.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Holds the lock of a runtime directory for as long as it lives.
pub struct Instance {
    directory: PathBuf,
    _lock: File,
}

/// Why a runtime directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another daemon has it.
    #[error(
        "another Espada daemon{owner} runs in {}; stop it, or give this one another --runtime-dir",
        directory.display()
    )]
    Taken {
        /// The directory.
        directory: PathBuf,
        /// ` (PID n)`, if the lock says so.
        owner: String,
    },
    /// The directory cannot be used.
    #[error("cannot use the runtime directory {}: {source}", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Instance {
    /// Makes the directory if it is not there, and takes its lock.
    pub fn lock(directory: &Path) -> Result<Self, InstanceError> {
        let unusable = |source| InstanceError::Unusable {
            directory: directory.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(unusable)?;
        let path = directory.join("espada.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut lock).take(16).read_to_string(&mut pid);
                let owner = match pid.trim().parse::<u32>() {
                    Ok(pid) => format!(" (PID {pid})"),
                    Err(_) => String::new(),
                };
                return Err(InstanceError::Taken {
                    directory: directory.to_owned(),
                    owner,
                });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // The number only helps whoever finds the lock taken.
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(unusable)?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// The runtime directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Tells systemd that the daemon is ready, where it wants to know (`Type=notify`).
pub fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    // An abstract socket's name begins with `@`; the path form is all current systemd uses for services.
    let told =
        UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", Path::new(&path)));
    if let Err(error) = told {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("deep/run");
        let first = Instance::lock(&directory).unwrap();
        let Err(error) = Instance::lock(&directory) else {
            panic!("locked twice")
        };
        assert_eq!(
            error.to_string(),
            format!(
                "another Espada daemon (PID {}) runs in {}; stop it, or give this one another --runtime-dir",
                std::process::id(),
                directory.display()
            )
        );
        drop(first);
        Instance::lock(&directory).unwrap();
    }
}
