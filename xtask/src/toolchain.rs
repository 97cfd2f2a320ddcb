//! Finding the eBPF toolchain: the compiler, its library sources and bpf-linker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// What the prebuilt object is made of; shared with `build.rs` of espada-dataplane.
#[path = "../../ebpf-dataplane/prebuilt/sources.rs"]
pub mod sources;

/// A complete toolchain.
pub struct Toolchain {
    /// bpf-linker of the pinned version.
    pub bpf_linker: PathBuf,
    /// The compiler's sysroot, which holds the library sources.
    pub sysroot: PathBuf,
}

/// Where `cargo xtask setup` installs bpf-linker.
pub fn tools_dir() -> PathBuf {
    process::root().join("target/tools")
}

/// The toolchain, or everything that is missing from it.
pub fn find() -> Result<Toolchain, Vec<String>> {
    let mut missing = Vec::new();
    let bpf_linker = bpf_linker();
    if bpf_linker.is_none() {
        missing.push(format!("bpf-linker {}", sources::BPF_LINKER_VERSION));
    }
    let sysroot = match rustc() {
        Ok(rustc) => {
            if !has_library_sources(&rustc.sysroot) {
                missing.push(format!(
                    "the library sources of rustc {} (rust-src)",
                    rustc.version
                ));
            }
            Some(rustc.sysroot)
        }
        Err(error) => {
            missing.push(format!("rustc ({error:#})"));
            None
        }
    };
    match (bpf_linker, sysroot) {
        (Some(bpf_linker), Some(sysroot)) if missing.is_empty() => Ok(Toolchain {
            bpf_linker,
            sysroot,
        }),
        _ => Err(missing),
    }
}

/// What the compiler says of itself.
pub struct Rustc {
    /// `1.95.0`.
    pub version: String,
    /// Where its libraries are.
    pub sysroot: PathBuf,
}

/// Asks the compiler.
pub fn rustc() -> Result<Rustc> {
    let about = process::output(
        Command::new("rustc")
            .arg("-vV")
            .current_dir(process::root()),
    )?;
    let sysroot = process::output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(process::root()),
    )?;
    Ok(Rustc {
        version: sources::recorded(&about, "release:")
            .context("`rustc -vV` names no release")?
            .to_owned(),
        sysroot: PathBuf::from(sysroot.trim()),
    })
}

/// Where the library sources belong.
pub fn library_dir(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// Whether `-Z build-std` finds the library sources.
pub fn has_library_sources(sysroot: &Path) -> bool {
    library_dir(sysroot).join("core/src/lib.rs").is_file()
}

/// bpf-linker of the pinned version: our own, or one in the search path.
pub fn bpf_linker() -> Option<PathBuf> {
    let own = tools_dir().join("bin/bpf-linker");
    [Some(own), process::which("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|path| linker_version(path).as_deref() == Some(sources::BPF_LINKER_VERSION))
}

fn linker_version(path: &Path) -> Option<String> {
    let text = process::output(Command::new(path).arg("--version")).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}
