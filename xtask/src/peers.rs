//! The peers that Debian 12 does not have: libreswan, OpenIKED and strongSwan 6.0 of Debian 13,
//! unpacked into a folder of their own in which the tests run them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use espada_tests::peer_root;

use crate::debian::Archive;
use crate::process::{self, say};

const SUITE: &str = "trixie";

/// What is unpacked, in groups that can be installed together: libreswan and strongSwan exclude
/// each other as packages. Their files lie beside each other, but for the script `ipsec`, which
/// must be libreswan's: what comes later counts.
const PACKAGES: [&[&str]; 2] = [
    &[
        "openiked",
        "openssl",
        "libcharon-extra-plugins",
        "libstrongswan-standard-plugins",
        "strongswan-charon",
        "strongswan-swanctl",
    ],
    // The first five make a root in which shell scripts run.
    &[
        "base-files",
        "coreutils",
        "dash",
        "grep",
        "sed",
        "libreswan",
    ],
];

/// What Debian's maintainer scripts would make; no script is run.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
_iked:x:101:101:OpenIKED:/var/lib/openiked:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";
const GROUP: &str = "root:x:0:\n_iked:x:101:\nnogroup:x:65534:\n";

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// The key that iked wants to have, whether it uses it or not.
const IKED_KEY: &str = "openssl ecparam -genkey -name prime256v1 -noout -out /etc/iked/private/local.key && \
     openssl ec -in /etc/iked/private/local.key -pubout -out /etc/iked/local.pub";

/// What nobody reads here.
const UNUSED: [&str; 4] = [
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/locale",
    "usr/share/man",
];

/// Names the recipe that a root was made by, in a file in it.
const RECIPE: &str = ".espada-recipe";

/// Makes the root unless it is there, complete and made by this recipe.
pub fn install() -> Result<PathBuf> {
    let place = place();
    match check(&place) {
        Ok(versions) => say(format_args!("setup: peers: {versions}")),
        Err(reason) => {
            say(format_args!(
                "setup: peers: unpacking libreswan, OpenIKED and strongSwan of Debian {SUITE} ({reason})"
            ));
            let versions = make(&place)?;
            say(format_args!("setup: peers: {versions}"));
        }
    }
    Ok(place)
}

/// What the tests are told in their environment: where the root is, or why there is none.
pub fn environment() -> (&'static str, OsString) {
    match install() {
        Ok(place) => (peer_root::PLACE, place.into()),
        Err(error) => {
            let reason = format!("{error:#}");
            say(format_args!("setup: peers: {reason}"));
            (peer_root::REASON, reason.replace('\n', " ").into())
        }
    }
}

/// Where the root is, or is to be.
pub fn place() -> PathBuf {
    process::target_dir().join("peers").join(SUITE)
}

/// The versions of the peers in a root that is complete.
pub fn check(root: &Path) -> Result<String> {
    if !root.is_dir() {
        bail!("not there");
    }
    if fs::read_to_string(root.join(RECIPE)).unwrap_or_default() != recipe() {
        bail!("not made by this version's recipe");
    }
    let mut versions = Vec::new();
    for (name, program, argument) in [
        ("Libreswan", "/usr/libexec/ipsec/pluto", "--version"),
        ("OpenIKED", "/usr/sbin/iked", "-V"),
        ("strongSwan", "/usr/sbin/swanctl", "--version"),
    ] {
        let output = Command::new("chroot")
            .arg(root)
            .args([program, argument])
            .output()
            .context("cannot run chroot")?;
        // iked writes to standard error and says nothing by its exit code.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let version = said
            .lines()
            .filter(|line| line.contains(name))
            .flat_map(str::split_whitespace)
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .with_context(|| format!("{program} does not run there: {}", said.trim()))?;
        versions.push(format!("{name} {version}"));
    }
    Ok(versions.join(", "))
}

fn recipe() -> String {
    format!("{PACKAGES:?}\n{PASSWD}{GROUP}{HOSTS}{IKED_KEY}{UNUSED:?}\n")
}

fn make(place: &Path) -> Result<String> {
    let archive = Archive::open(SUITE)?;
    let parent = place.parent().context("a folder for the peers")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    // Another run may be at it as well; whoever is first puts its own in place.
    let new = parent.join(format!("new-{}", std::process::id()));
    let made = fill(&archive, &new).and_then(|()| check(&new));
    let result = made.and_then(|versions| {
        if place.exists() {
            fs::remove_dir_all(place)
                .with_context(|| format!("cannot remove {}", place.display()))?;
        }
        fs::rename(&new, place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(versions)
    });
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    result
}

fn fill(archive: &Archive, root: &Path) -> Result<()> {
    for group in PACKAGES {
        archive.unpack_with_dependencies(group, root)?;
    }
    for unused in UNUSED {
        let path = root.join(unused);
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    let write = |name: &str, text: &str| {
        fs::write(root.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let run = root.join("var/run");
    fs::remove_dir(&run)
        .and_then(|()| symlink("/run", &run))
        .context("cannot make /var/run a link to /run")?;
    write("etc/passwd", PASSWD)?;
    write("etc/group", GROUP)?;
    write("etc/hosts", HOSTS)?;
    write("etc/resolv.conf", "")?;
    process::output(
        Command::new("chroot")
            .arg(root)
            .args(["/bin/sh", "-c", IKED_KEY]),
    )?;
    write(RECIPE, &recipe())
}
