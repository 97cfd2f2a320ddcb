//! The folders with peers of newer Debian releases that `cargo xtask setup` unpacks, and running
//! programs in them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Environment variable with the place of the folders.
pub const PLACE: &str = "ESPADA_PEERS";
/// Environment variable with the reason why folders are missing.
pub const REASON: &str = "ESPADA_PEERS_MISSING";

/// A Debian release with a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian 13.
    Trixie,
    /// Debian 14, whose strongSwan has ML-KEM.
    Forky,
}

impl Release {
    /// Its name in Debian's archive, which is the folder's too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// A release's folder: in what `$ESPADA_PEERS` names, else where `cargo xtask setup` puts it.
pub fn place(release: Release) -> PathBuf {
    let all = match std::env::var_os(PLACE) {
        Some(place) => PathBuf::from(place),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/peers")
            .components()
            .collect(),
    };
    all.join(release.name())
}

/// Why a program of a release cannot run here, if it cannot.
pub fn missing(release: Release, program: &str) -> Option<String> {
    let place = place(release);
    if place.join(program.trim_start_matches('/')).is_file() {
        return None;
    }
    let reason = std::env::var(REASON).unwrap_or_else(|_| "run `cargo xtask setup`".to_owned());
    Some(format!("no {program} in {}: {reason}", place.display()))
}

/// The command line that becomes a program of a release, in a gateway's namespace. It sees
/// `files` under the same name as we do, the machine's devices and processes, and a /run and /tmp
/// of its own.
pub fn argv(
    release: Release,
    netns: &Netns,
    files: &Path,
    program: &[&str],
) -> Result<Vec<String>> {
    let root = place(release);
    let root = root.to_str().context("the peers' folder in UTF-8")?;
    let files = files.to_str().context("a path in UTF-8")?;
    // The mounts are in a namespace of their own and end with the program.
    let script = format!(
        "set -e
for dir in run tmp; do mount -t tmpfs tmpfs '{root}/'$dir; done
mkdir -p '{root}/run/lock' '{root}{files}'
mount --bind '{files}' '{root}{files}'
for dir in proc sys dev; do mount --rbind /$dir '{root}/'$dir; done
exec chroot '{root}' \"$@\""
    );
    netns.argv_with_mounts(&script, program)
}

/// The command line that runs a program beside one that `argv` started.
pub fn beside(pid: u32, program: &[&str]) -> Vec<String> {
    let mut argv = vec![
        "nsenter".to_owned(),
        format!("--target={pid}"),
        "--mount".to_owned(),
        "--net".to_owned(),
        "--root".to_owned(),
        "--wd".to_owned(),
        "--".to_owned(),
    ];
    argv.extend(program.iter().map(|&word| word.to_owned()));
    argv
}
