//! The peers that Debian 12 does not have: libreswan, OpenIKED and strongSwan 6.0 of Debian 13, and
//! strongSwan of Debian 14, whose openssl plugin has ML-KEM. Each release is unpacked into a folder of
//! its own in which the tests run them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use espada_tests::peer_root::{self, Release};

use crate::debian::Archive;
use crate::process::{self, say};

/// A release's folder.
struct Root {
    release: Release,
    /// What is unpacked, in groups that can be installed together: libreswan and strongSwan exclude
    /// each other as packages. Their files lie beside each other, but for the script `ipsec`, which
    /// must be libreswan's: what comes later counts.
    packages: &'static [&'static [&'static str]],
    /// What is run in it when it is filled.
    script: &'static str,
    /// The peers: name, program and the argument that makes it say its version.
    peers: &'static [[&'static str; 3]],
}

const STRONGSWAN: [&str; 3] = ["strongSwan", "/usr/sbin/swanctl", "--version"];

const ROOTS: [Root; 2] = [
    Root {
        release: Release::Trixie,
        packages: &[
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
        ],
        script: IKED_KEY,
        peers: &[
            ["Libreswan", "/usr/libexec/ipsec/pluto", "--version"],
            ["OpenIKED", "/usr/sbin/iked", "-V"],
            STRONGSWAN,
        ],
    },
    Root {
        release: Release::Forky,
        packages: &[&[
            "base-files",
            "coreutils",
            "dash",
            "libcharon-extra-plugins",
            "libstrongswan-standard-plugins",
            "strongswan-charon",
            "strongswan-swanctl",
        ]],
        script: "",
        peers: &[STRONGSWAN],
    },
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

/// Makes the folders unless they are there, complete and made by this recipe. What the tests are told
/// in their environment: where they are, and why some are missing.
pub fn environment() -> Vec<(&'static str, OsString)> {
    let mut environment = vec![(peer_root::PLACE, folder().into())];
    let mut reasons = Vec::new();
    for root in &ROOTS {
        if let Err(error) = root.install() {
            let reason = format!("{}: {error:#}", root.release.name()).replace('\n', " ");
            say(format_args!("setup: peers: {reason}"));
            reasons.push(reason);
        }
    }
    if !reasons.is_empty() {
        environment.push((peer_root::REASON, reasons.join("; ").into()));
    }
    environment
}

/// The versions of the peers where all are there.
pub fn check() -> Result<String> {
    let versions: Result<Vec<_>> = ROOTS
        .iter()
        .map(|root| {
            root.check(&root.place())
                .with_context(|| root.release.name())
        })
        .collect();
    Ok(versions?.join(", "))
}

/// Where the folders are.
fn folder() -> PathBuf {
    process::target_dir().join("peers")
}

impl Root {
    fn place(&self) -> PathBuf {
        folder().join(self.release.name())
    }

    fn install(&self) -> Result<()> {
        let place = self.place();
        let versions = match self.check(&place) {
            Ok(versions) => versions,
            Err(reason) => {
                let release = self.release.name();
                say(format_args!(
                    "setup: peers: unpacking those of Debian {release} ({reason})"
                ));
                self.make(&place)?
            }
        };
        say(format_args!("setup: peers: {versions}"));
        Ok(())
    }

    /// The versions of the peers in a root that is complete.
    fn check(&self, root: &Path) -> Result<String> {
        if !root.is_dir() {
            bail!("not there");
        }
        if fs::read_to_string(root.join(RECIPE)).unwrap_or_default() != self.recipe() {
            bail!("not made by this version's recipe");
        }
        let mut versions = Vec::new();
        for [name, program, argument] in self.peers {
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

    fn recipe(&self) -> String {
        format!(
            "{:?}\n{PASSWD}{GROUP}{HOSTS}{}{UNUSED:?}\n",
            self.packages, self.script
        )
    }

    fn make(&self, place: &Path) -> Result<String> {
        let archive = Archive::open(self.release.name())?;
        let parent = place.parent().context("a folder for the peers")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        // Another run may be at it as well; whoever is first puts its own in place.
        let new = parent.join(format!("new-{}", std::process::id()));
        let made = self.fill(&archive, &new).and_then(|()| self.check(&new));
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

    fn fill(&self, archive: &Archive, root: &Path) -> Result<()> {
        for group in self.packages {
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
                .args(["/bin/sh", "-c", self.script]),
        )?;
        write(RECIPE, &self.recipe())
    }
}
