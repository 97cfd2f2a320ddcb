//! `cargo xtask build`: the eBPF object from its sources, then the espada binary.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;

use crate::process::{self, say};
use crate::strip::strip;
use crate::toolchain::{self, Toolchain, sources};

const OBJECT: &str = "ebpf-dataplane/prebuilt/espada.bpf.o";
const RECORD: &str = "ebpf-dataplane/prebuilt/espada.bpf.o.sha256";

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Args {
    /// Rebuild the eBPF object and compare it with the committed one byte by byte; change nothing
    #[arg(long)]
    check: bool,
    /// Only the eBPF object, not the espada binary
    #[arg(long)]
    ebpf_only: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    refresh_object()?;
    if !args.ebpf_only {
        say(format_args!("built {}", build_espada()?.display()));
    }
    Ok(())
}

/// Builds the espada binary and says where it is.
pub fn build_espada() -> Result<PathBuf> {
    compile_release("espada", &["--package", "espada"])?;
    Ok(process::target_dir().join("release/espada"))
}

/// Builds an example of a package of the workspace.
pub fn build_example(package: &str, example: &str) -> Result<()> {
    compile_release(example, &["--package", package, "--example", example])
}

fn compile_release(what: &str, arguments: &[&str]) -> Result<()> {
    say(format_args!("{what}: compiling"));
    process::run(
        cargo()
            .current_dir(process::root())
            .args(["build", "--release"])
            .args(arguments),
    )
}

/// Makes the object anew where its sources changed. Without the toolchain the committed object
/// does as long as it is fresh.
pub fn refresh_object() -> Result<()> {
    let root = process::root();
    if is_fresh(&root)? {
        say("eBPF object: up to date with its sources");
        return Ok(());
    }
    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => bail!(
            "{OBJECT} is older than its sources and cannot be rebuilt without {}: run `cargo xtask setup`",
            missing.join(" and ")
        ),
    };
    say("eBPF object: compiling");
    let object = compile(&toolchain)?;
    let record = format!(
        "sources {}\nobject {}\nrustc {}\nbpf-linker {}\n",
        sources::source_hash(&root)?,
        sources::object_hash(&object),
        toolchain::rustc()?.version,
        sources::BPF_LINKER_VERSION,
    );
    fs::write(root.join(OBJECT), &object).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(root.join(RECORD), record).with_context(|| format!("cannot write {RECORD}"))?;
    say(format_args!(
        "eBPF object: wrote {OBJECT} ({} octets)",
        object.len()
    ));
    Ok(())
}

fn is_fresh(root: &Path) -> Result<bool> {
    let (Ok(record), Ok(object)) = (
        fs::read_to_string(root.join(RECORD)),
        fs::read(root.join(OBJECT)),
    ) else {
        return Ok(false);
    };
    Ok(
        sources::recorded(&record, "sources") == Some(sources::source_hash(root)?.as_str())
            && sources::recorded(&record, "object") == Some(sources::object_hash(&object).as_str()),
    )
}

fn check() -> Result<()> {
    let root = process::root();
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    let record =
        fs::read_to_string(root.join(RECORD)).with_context(|| format!("cannot read {RECORD}"))?;
    let recorded = sources::recorded(&record, "sources").unwrap_or_default();
    let actual = sources::source_hash(&root)?;
    if recorded != actual {
        bail!(
            "{OBJECT} is stale: its sources were {recorded}, they are {actual}; run `cargo xtask build`"
        );
    }
    let compiler = toolchain::rustc()?.version;
    if sources::recorded(&record, "rustc") != Some(compiler.as_str()) {
        bail!(
            "{OBJECT} was built by rustc {}, this is rustc {compiler}: other compilers make other bytes; \
             use that compiler, or run `cargo xtask build` and commit the result",
            sources::recorded(&record, "rustc").unwrap_or("(unknown)")
        );
    }
    let toolchain = toolchain::find().map_err(|missing| {
        anyhow::anyhow!("{} missing: run `cargo xtask setup`", missing.join(" and "))
    })?;
    let rebuilt = compile(&toolchain)?;
    if rebuilt != committed {
        let path = process::target_dir().join("espada.bpf.rebuilt.o");
        fs::write(&path, &rebuilt).with_context(|| format!("cannot write {}", path.display()))?;
        bail!(
            "{OBJECT} is not what its sources make ({} octets, rebuilt {}); compare it with {}, \
             or run `cargo xtask build` and commit the result",
            committed.len(),
            rebuilt.len(),
            path.display()
        );
    }
    say(format_args!(
        "{OBJECT}: rebuilt from its sources, the same {} octets",
        committed.len()
    ));
    Ok(())
}

/// Compiles the object and returns its octets.
fn compile(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let root = process::root();
    let target = process::target_dir().join("bpf");
    let mut flags: Vec<String> = sources::RUSTFLAGS
        .iter()
        .map(|flag| (*flag).to_owned())
        .collect();
    // Paths end up in the object's line information: the same names wherever it is built.
    let remap = |from: &Path, to| format!("--remap-path-prefix={}={to}", from.display());
    flags.push(remap(&root, "/espada"));
    flags.push(remap(&toolchain.sysroot, "/rust"));
    // One folder for each registry address: a mirror's name must not make a difference.
    if let Ok(registries) = fs::read_dir(cargo_home().join("registry/src")) {
        flags.extend(
            registries
                .flatten()
                .map(|entry| remap(&entry.path(), "/crates")),
        );
    }
    process::run(
        cargo()
            .current_dir(process::root().join("ebpf-dataplane/ebpf"))
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--target",
                "bpfel-unknown-none",
            ])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(&target)
            // The recipe needs two unstable features of the stable compiler: -Z build-std, and
            // the target bpfel-unknown-none, which is shipped without a built library.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("RUSTC_WRAPPER", std::env::current_exe()?)
            .env(WRAPPER_MARK, "1")
            .env(
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
                &toolchain.bpf_linker,
            )
            .env_remove("RUSTFLAGS"),
    )?;
    let object = target.join("bpfel-unknown-none/release/espada-ebpf");
    let linked =
        fs::read(&object).with_context(|| format!("the build left no {}", object.display()))?;
    strip(&linked).with_context(|| format!("cannot strip {}", object.display()))
}

/// Set for the compilers of the object, which are started through this program.
const WRAPPER_MARK: &str = "ESPADA_XTASK_WRAPS_RUSTC";

/// Plays the compiler (`PROGRAM RUSTC ARGUMENTS…`) where `compile` started this program as one;
/// none where it is `cargo xtask`.
///
/// Cargo hashes the absolute folder of a package outside its workspace, as espada-common is for
/// the programs, into the names of its functions, and those names are in the object. Espada's
/// own crates get a constant in place of that hash: the same names wherever the tree lies.
pub fn as_compiler() -> Option<Result<()>> {
    std::env::var_os(WRAPPER_MARK)?;
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own = args
        .windows(2)
        .any(|pair| pair[0] == "--crate-name" && OWN_CRATES.iter().any(|name| pair[1] == *name));
    if own {
        for arg in &mut args {
            if arg.as_encoded_bytes().starts_with(b"metadata=") {
                *arg = "metadata=espada".into();
            }
        }
    }
    let mut args = args.into_iter();
    let rustc = args.next()?;
    let error = Command::new(&rustc).args(args).exec();
    Some(Err(error).with_context(|| format!("cannot run `{}`", rustc.display())))
}

const OWN_CRATES: [&str; 2] = ["espada_common", "espada_ebpf"];

fn cargo_home() -> PathBuf {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
    }
}
