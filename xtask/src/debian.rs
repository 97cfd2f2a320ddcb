//! Single packages from Debian's archive, checked against its keys, without touching the system's
//! own package sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private view of one suite of Debian's archive.
pub struct Archive {
    work: TempDir,
    suite: String,
}

impl Archive {
    /// Reads the package list of a suite such as `trixie-backports`.
    pub fn open(suite: &str) -> Result<Self> {
        if process::which("apt-get").is_none() || !Path::new(KEYRING).is_file() {
            bail!("needs apt-get and {KEYRING} (package debian-archive-keyring)");
        }
        let work = TempDir::new()?;
        for dir in ["parts", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.0.join(dir)).context("cannot make a temporary folder")?;
        }
        let source = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
            mirror()
        );
        fs::write(work.0.join("parts/espada.sources"), source)
            .context("cannot write the package source")?;
        let archive = Self {
            work,
            suite: suite.to_owned(),
        };
        // By itself apt takes an archive that it cannot reach for an empty one.
        let strict = "APT::Update::Error-Mode=any";
        process::output(archive.apt("apt-get").args(["update", "-qq", "-o", strict]))
            .with_context(|| format!("cannot read the package list of {suite}"))?;
        Ok(archive)
    }

    /// Names of the packages that match an apt search expression.
    pub fn search(&self, expression: &str) -> Result<Vec<String>> {
        let found = process::output(self.apt("apt-cache").args(["pkgnames"]))?;
        let (prefix, suffix) = expression.split_once('*').unwrap_or((expression, ""));
        Ok(found
            .lines()
            .filter(|name| {
                name.len() >= prefix.len() + suffix.len()
                    && name.starts_with(prefix)
                    && name.ends_with(suffix)
            })
            .map(str::to_owned)
            .collect())
    }

    /// Versions of a package, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listed = process::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(listed
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// Downloads a package (`name` or `name=version`) and unpacks it into `place`.
    pub fn unpack(&self, package: &str, place: &Path) -> Result<()> {
        let download = TempDir::new()?;
        process::output(
            self.apt("apt-get")
                .args(["download", "-qq", package])
                .current_dir(&download.0),
        )
        .with_context(|| format!("cannot download {package} from {}", self.suite))?;
        let file = fs::read_dir(&download.0)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
        process::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(place)).map(drop)
    }

    /// Downloads packages and all they depend on (apt resolves that) and unpacks them into `place`.
    /// No maintainer script is run.
    pub fn unpack_with_dependencies(&self, packages: &[&str], place: &Path) -> Result<()> {
        let names = packages.join(" ");
        let install = |option: &str| {
            let mut command = self.apt("apt-get");
            command
                .args(["install", "-y", "-qq", "--no-install-recommends", option])
                .args(packages);
            process::output(&mut command)
        };
        let planned = install("--simulate")
            .with_context(|| format!("{} has not all that {names} need", self.suite))?;
        install("--download-only")
            .with_context(|| format!("cannot download {names} from {}", self.suite))?;
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
        let downloads = self.work.0.join("cache/archives");
        for line in planned.lines().filter(|line| line.starts_with("Inst ")) {
            let file = planned_file(line)
                .with_context(|| format!("apt's plan has a line of an unknown form: {line}"))?;
            process::output(
                Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(downloads.join(file))
                    .arg(place),
            )?;
        }
        Ok(())
    }

    /// An apt program that sees only this archive.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        for setting in [
            option("Dir::Etc::SourceList", Path::new("/dev/null")),
            option("Dir::Etc::SourceParts", &self.work.0.join("parts")),
            option("Dir::State::Lists", &self.work.0.join("lists")),
            option("Dir::Cache", &self.work.0.join("cache")),
            // Nothing counts as installed: what is unpacked elsewhere needs all of it.
            option("Dir::State::Status", Path::new("/dev/null")),
            // apt's own user cannot read a private temporary folder.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }
}

/// The mirror that this machine's own package sources name, else Debian's public one.
fn mirror() -> String {
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

/// The name of the downloaded file of a line of apt's plan:
/// `Inst NAME (VERSION ORIGIN [ARCHITECTURE]) …`.
fn planned_file(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let (version, rest) = rest.split_once(' ')?;
    let (_, rest) = rest.split_once('[')?;
    let (architecture, _) = rest.split_once(']')?;
    let version = version.replace(':', "%3a");
    Some(format!("{name}_{version}_{architecture}.deb"))
}

/// A temporary folder that only we can read, removed when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    /// Makes one.
    pub fn new() -> Result<Self> {
        let made =
            process::output(Command::new("mktemp").args(["-d", "-t", "espada-xtask.XXXXXX"]))?;
        Ok(Self(PathBuf::from(made.trim())))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            process::say(format_args!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{mirror_in, planned_file};

    #[test]
    fn a_plan_names_the_files() {
        for (line, file) in [
            (
                "Inst libnss3 (2:3.110-1+deb13u1 Debian:13.5/stable [amd64])",
                "libnss3_2%3a3.110-1+deb13u1_amd64.deb",
            ),
            (
                "Inst netbase (6.5 Debian:13.5/stable, Debian:13.5/stable [all]) []",
                "netbase_6.5_all.deb",
            ),
        ] {
            assert_eq!(planned_file(line).as_deref(), Some(file));
        }
        assert_eq!(planned_file("Inst libnss3"), None);
    }

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
