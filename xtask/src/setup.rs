//! `cargo xtask setup`: what building and testing need, installed where it is missing.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use espada_tests::cmd::cargo;
use espada_tests::pvpn;

use crate::debian::{Archive, TempDir};
use crate::peers;
use crate::process::{self, say};
use crate::toolchain::{self, Rustc, sources};
use crate::vm;

/// Debian packages of the tests, the demo and their peers, each with what it is for.
const OWN_PACKAGES: [(&str, &str); 15] = [
    ("bpftool", "inspecting programs and maps"),
    ("ethtool", "offloads of test links"),
    ("iperf3", "throughput"),
    ("iproute2", "namespaces, links, routes"),
    ("iputils-ping", "reachability"),
    ("libcharon-extauth-plugins", "strongSwan peer: EAP"),
    ("libcharon-extra-plugins", "strongSwan peer: userspace ESP"),
    (
        "libstrongswan-standard-plugins",
        "strongSwan peer: AES-GCM, curves",
    ),
    ("netcat-openbsd", "payload through the tunnel"),
    ("nftables", "NAT between the gateways"),
    ("openssl", "RSA keys of test certificates"),
    ("procps", "sysctl"),
    ("strongswan-charon", "strongSwan peer: daemon"),
    ("strongswan-swanctl", "strongSwan peer: control"),
    ("tcpdump", "captures"),
];

/// All Debian packages, those of the test VMs included.
fn packages() -> impl Iterator<Item = (&'static str, &'static str)> {
    OWN_PACKAGES.into_iter().chain(vm::PACKAGES)
}

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Only report what is missing; fail if anything is
    #[arg(long)]
    check: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    install_all()?;
    // Without them the tests that need them say so.
    peers::environment();
    install_pvpn();
    Ok(())
}

/// Installs whatever is missing: the first step of `demo` and `test`.
pub fn install_all() -> Result<()> {
    install_packages()?;
    install_toolchain()
}

fn check() -> Result<()> {
    let mut missing = missing_of(packages().map(|(package, _)| package).collect())?;
    for (package, purpose) in packages() {
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
    match peers::check() {
        Ok(versions) => say(format_args!("{:32} {:10} {versions}", "peers", "installed")),
        Err(reason) => {
            say(format_args!("{:32} {:10} {reason:#}", "peers", "missing"));
            missing.push("the peers".to_owned());
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
    install_these(packages().map(|(package, _)| package))
}

/// Installs those of some Debian packages that are missing.
pub fn install_these(names: impl Iterator<Item = &'static str>) -> Result<()> {
    let missing = missing_of(names.collect())?;
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

/// Installs python-vpn below `target`; the test that needs it is skipped where it cannot be had.
pub fn install_pvpn() {
    if pvpn::missing().is_none() {
        return say("setup: python-vpn: there");
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"])
        .arg(pvpn::place())
        .arg(format!("pvpn=={}", pvpn::VERSION))
        .env("PIP_ROOT_USER_ACTION", "ignore");
    if let Err(error) = process::run(&mut pip) {
        say(format_args!(
            "setup: python-vpn: {error:#}; its test will be skipped"
        ));
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing_of(names: Vec<&'static str>) -> Result<Vec<String>> {
    if process::which("dpkg-query").is_none() {
        bail!(
            "this is no Debian system (no dpkg-query): install by hand {}",
            names.join(" ")
        );
    }
    // dpkg-query fails as soon as one package is unknown to it, yet prints the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(&names)
        .output()
        .context("cannot run dpkg-query")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names
        .into_iter()
        .filter(|package| sources::recorded(&listed, package) != Some("installed"))
        .map(str::to_owned)
        .collect())
}

/// Installs bpf-linker and the compiler's library sources. Where these cannot be had, the
/// committed object is used, and this says so.
pub fn install_toolchain() -> Result<()> {
    if let Err(error) = install_bpf_linker() {
        say(format_args!(
            "setup: bpf-linker: {error:#}; the committed eBPF object is used, which only matters if \
             you change the eBPF programs"
        ));
        return Ok(());
    }
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
            Ok(()) => say(format_args!("setup: rust-src: installed by {name}")),
            Err(error) => say(format_args!("setup: rust-src: {name}: {error:#}")),
        }
        // Also after a failure: another setup may have come first.
        if toolchain::has_library_sources(&rustc.sysroot) {
            return Ok(());
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
        cargo()
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
    process::output(
        Command::new("rustup")
            .args(["component", "add", "rust-src"])
            .env_remove("RUST_BACKTRACE"),
    )
    .map(drop)
}

/// Unpacks the library sources from Debian's package of the very compiler version.
fn debian_rust_src(rustc: &Rustc) -> Result<()> {
    let mut last = String::from("no suite was tried");
    for suite in ["trixie-backports", "sid"] {
        let found = Archive::open(suite).and_then(|archive| {
            let versions = archive.versions("rust-src")?;
            Ok((archive, versions))
        });
        let (archive, versions) = match found {
            Ok(found) => found,
            Err(error) => {
                last = format!("{error:#}");
                continue;
            }
        };
        let prefix = format!("{}+", rustc.version);
        let Some(version) = versions.iter().find(|version| version.starts_with(&prefix)) else {
            last = format!("{suite} has no rust-src {}", rustc.version);
            continue;
        };
        say(format_args!(
            "setup: rust-src: downloading rust-src {version} from {suite}"
        ));
        let unpacked = TempDir::new()?;
        archive.unpack(&format!("rust-src={version}"), &unpacked.0)?;
        return copy_library(&unpacked.0, rustc);
    }
    bail!(last)
}

fn copy_library(unpacked: &Path, rustc: &Rustc) -> Result<()> {
    let library = unpacked
        .join("usr/src")
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
