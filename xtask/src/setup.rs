//! `cargo xtask setup`: what building and testing need, installed where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::process::{self, say};
use crate::toolchain::{self, Rustc, sources};

/// Debian packages of the tests, the demo and their peers, each with what it is for.
const PACKAGES: [(&str, &str); 15] = [
    ("bpftool", "inspecting programs and maps"),
    ("ethtool", "offloads of test links"),
    ("iperf3", "throughput"),
    ("iproute2", "namespaces, links, routes"),
    ("iputils-ping", "reachability"),
    ("kmod", "modules of the test VMs"),
    ("libcharon-extauth-plugins", "strongSwan peer: EAP"),
    ("libcharon-extra-plugins", "strongSwan peer: userspace ESP"),
    (
        "libstrongswan-standard-plugins",
        "strongSwan peer: AES-GCM, curves",
    ),
    ("netcat-openbsd", "payload through the tunnel"),
    ("nftables", "NAT between the gateways"),
    ("procps", "sysctl"),
    ("strongswan-charon", "strongSwan peer: daemon"),
    ("strongswan-swanctl", "strongSwan peer: control"),
    ("tcpdump", "captures"),
];

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Only report what is missing; fail if anything is
    #[arg(long)]
    check: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if args.check { check() } else { install_all() }
}

/// Installs whatever is missing: the first step of `demo` and `test`.
pub fn install_all() -> Result<()> {
    install_packages()?;
    install_toolchain()
}

fn check() -> Result<()> {
    let mut missing = missing_packages()?;
    for (package, purpose) in PACKAGES {
        let state = if missing.iter().any(|name| name == package) {
            "missing"
        } else {
            "installed"
        };
        say(format_args!("{package:32} {state:10} {purpose}"));
    }
    match toolchain::find() {
        Ok(found) => say(format_args!(
            "{:32} {:10} {}",
            "eBPF toolchain",
            "installed",
            found.bpf_linker.display()
        )),
        Err(parts) => {
            say(format_args!(
                "{:32} {:10} {}",
                "eBPF toolchain",
                "missing",
                parts.join(" and ")
            ));
            missing.extend(parts);
        }
    }
    if missing.is_empty() {
        say("setup: complete");
        return Ok(());
    }
    bail!("missing: {}; run `cargo xtask setup`", missing.join(", "))
}

/// Installs the Debian packages that are missing.
pub fn install_packages() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        say("setup: Debian packages: all there");
        return Ok(());
    }
    say(format_args!(
        "setup: Debian packages: installing {}",
        missing.join(" ")
    ));
    let mut update = apt_get();
    update.args(["update", "-qq"]);
    process::run(&mut update)?;
    let mut install = apt_get();
    install
        .args([
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(&missing);
    process::run(&mut install).context("run it as root, or install these packages by hand")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing_packages() -> Result<Vec<String>> {
    if process::which("dpkg-query").is_none() {
        bail!(
            "this is no Debian system (no dpkg-query): install by hand {}",
            PACKAGES.map(|(package, _)| package).join(" ")
        );
    }
    // dpkg-query fails as soon as one package is unknown to it, yet prints the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(PACKAGES.map(|(package, _)| package))
        .output()
        .context("cannot run dpkg-query")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(PACKAGES
        .iter()
        .map(|(package, _)| (*package).to_owned())
        .filter(|package| sources::recorded(&listed, package) != Some("installed"))
        .collect())
}

/// Installs bpf-linker and the compiler's library sources. Where these cannot be had, the
/// committed object is used, and this says so.
pub fn install_toolchain() -> Result<()> {
    install_bpf_linker()?;
    let rustc = toolchain::rustc()?;
    if toolchain::has_library_sources(&rustc.sysroot) {
        say("setup: rust-src: there");
        return Ok(());
    }
    type Attempt = fn(&Rustc) -> Result<()>;
    let attempts: [(&str, Attempt); 2] = [
        ("rustup component add rust-src", rustup_component),
        ("Debian's rust-src package", debian_rust_src),
    ];
    for (name, attempt) in attempts {
        say(format_args!("setup: rust-src: trying {name}"));
        match attempt(&rustc) {
            Ok(()) if toolchain::has_library_sources(&rustc.sysroot) => {
                say(format_args!("setup: rust-src: installed by {name}"));
                return Ok(());
            }
            Ok(()) => say(format_args!(
                "setup: rust-src: {name} left no library sources"
            )),
            Err(error) => say(format_args!("setup: rust-src: {name}: {error:#}")),
        }
    }
    say(format_args!(
        "setup: rust-src: not to be had for rustc {}; the committed eBPF object is used, which \
         only matters if you change the eBPF programs",
        rustc.version
    ));
    Ok(())
}

fn install_bpf_linker() -> Result<()> {
    if let Some(path) = toolchain::bpf_linker() {
        say(format_args!("setup: bpf-linker: {}", path.display()));
        return Ok(());
    }
    say(format_args!(
        "setup: bpf-linker: building version {} (about a minute)",
        sources::BPF_LINKER_VERSION
    ));
    let tools = toolchain::tools_dir();
    process::run(
        Command::new(env!("CARGO"))
            .args([
                "install",
                "--quiet",
                "--locked",
                "bpf-linker",
                "--version",
                sources::BPF_LINKER_VERSION,
            ])
            // Brings its own LLVM of the compiler's version instead of asking for the system's.
            .args([
                "--no-default-features",
                "--features",
                "rust-llvm-22",
                "--root",
            ])
            .arg(&tools)
            .current_dir(env::temp_dir())
            .env("CARGO_TARGET_DIR", tools.join("build")),
    )?;
    fs::remove_dir_all(tools.join("build")).context("cannot remove bpf-linker's build folder")
}

fn rustup_component(_: &Rustc) -> Result<()> {
    if process::which("rustup").is_none() {
        bail!("there is no rustup");
    }
    process::output(Command::new("rustup").args(["component", "add", "rust-src"])).map(drop)
}

/// Unpacks the library sources from Debian's package of the very compiler version, checked
/// against Debian's archive keys, without touching the system's own package sources.
fn debian_rust_src(rustc: &Rustc) -> Result<()> {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if process::which("apt-get").is_none() || !Path::new(KEYRING).is_file() {
        bail!("needs apt-get and {KEYRING} (package debian-archive-keyring)");
    }
    let work = TempDir::new()?;
    for dir in [
        "parts",
        "lists/partial",
        "cache/archives/partial",
        "unpacked",
    ] {
        fs::create_dir_all(work.0.join(dir)).context("cannot make a temporary folder")?;
    }
    let mut last = String::from("no suite was tried");
    for suite in ["trixie-backports", "sid"] {
        let source = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
            debian_mirror()
        );
        fs::write(work.0.join("parts/espada.sources"), source)
            .context("cannot write the package source")?;
        let found = process::output(private_apt("apt-get", &work.0).args(["update", "-qq"]))
            .and_then(|_| {
                process::output(private_apt("apt-cache", &work.0).args(["madison", "rust-src"]))
            });
        let listed = match found {
            Ok(listed) => listed,
            Err(error) => {
                last = format!("{suite}: {error:#}");
                continue;
            }
        };
        let prefix = format!("{}+", rustc.version);
        let Some(version) = listed
            .lines()
            .filter_map(|line| line.split('|').nth(1).map(str::trim))
            .find(|version| version.starts_with(&prefix))
        else {
            last = format!("{suite} has no rust-src {}", rustc.version);
            continue;
        };
        say(format_args!(
            "setup: rust-src: downloading rust-src {version} from {suite}"
        ));
        process::output(
            private_apt("apt-get", &work.0)
                .args(["download", "-qq", &format!("rust-src={version}")])
                .current_dir(&work.0),
        )?;
        return unpack(&work.0, rustc);
    }
    bail!(last)
}

fn unpack(work: &Path, rustc: &Rustc) -> Result<()> {
    let package = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    process::output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(work.join("unpacked")),
    )?;
    let library = work
        .join("unpacked/usr/src")
        .join(format!("rustc-{}", rustc.version))
        .join("library");
    let place = toolchain::library_dir(&rustc.sysroot);
    let parent = place.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    process::output(
        Command::new("cp")
            .args(["-a", "--no-target-directory"])
            .arg(&library)
            .arg(&place),
    )
    .map(drop)
}

/// An apt program that sees only the package source under `work`.
fn private_apt(program: &str, work: &Path) -> Command {
    let mut command = Command::new(program);
    let option = |name: &str, value: &Path| format!("{name}={}", value.display());
    for setting in [
        option("Dir::Etc::SourceList", Path::new("/dev/null")),
        option("Dir::Etc::SourceParts", &work.join("parts")),
        option("Dir::State::Lists", &work.join("lists")),
        option("Dir::Cache", &work.join("cache")),
        // apt's own user cannot read a private temporary folder.
        "APT::Sandbox::User=root".to_owned(),
    ] {
        command.args(["-o", &setting]);
    }
    command
}

/// The mirror that this machine's own package sources name, else Debian's public one.
fn debian_mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

/// The first address of a Debian archive in a package-source file of either format.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.ends_with("/debian"))
        .map(str::to_owned)
}

/// A temporary folder that only we can read, removed when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        let made =
            process::output(Command::new("mktemp").args(["-d", "-t", "espada-setup.XXXXXX"]))?;
        Ok(Self(PathBuf::from(made.trim())))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say(format_args!(
                "setup: cannot remove {}: {error}",
                self.0.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn mirror_is_read_from_both_formats() {
        let deb822 = "Types: deb\n# http://old.example/debian\nURIs: http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(
            mirror_in(deb822).as_deref(),
            Some("http://mirror.example/debian")
        );
        let list = "deb [arch=amd64] https://mirror.example/debian bookworm main\n";
        assert_eq!(
            mirror_in(list).as_deref(),
            Some("https://mirror.example/debian")
        );
        assert_eq!(
            mirror_in("deb https://other.example/apt stable main\n"),
            None
        );
    }
}
