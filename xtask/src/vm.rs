//! `cargo xtask vm`: a command under another kernel. Debian's cloud kernels boot in qemu (software
//! emulation) on a copy-on-write view of this machine's own file system, so whatever was built and
//! installed here runs there unchanged.

pub mod bochs;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::debian::{Archive, TempDir};
use crate::process::{self, say};

/// Debian packages this needs.
pub const PACKAGES: [(&str, &str); 4] = [
    ("busybox-static", "first program of the test VMs"),
    ("cpio", "initramfs of the test VMs"),
    ("kmod", "modules of the test VMs"),
    ("qemu-system-x86", "test VMs"),
];

/// Kernels by the name users know, with the suite and package pattern they come from.
const KERNELS: [(&str, &str, &str); 3] = [
    ("6.1", "bookworm", "linux-image-6.1.*-cloud-amd64"),
    ("6.12", "trixie", "linux-image-6.12.*-cloud-amd64"),
    ("7.x", "trixie-backports", "linux-image-7.*-cloud-amd64"),
];

/// What the first program in the VM needs to see this machine's files.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];

/// Printed by the VM in front of the command's exit code.
const EXIT_MARK: &str = "ESPADA-VM-EXIT:";
/// Printed by the VM before the command's own output.
const BEGIN_MARK: &str = "ESPADA-VM-BEGIN";

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel to boot; 7.x is the newest of Debian's backports
    #[arg(long, default_value = "6.1", value_parser = PossibleValuesParser::new(names()))]
    kernel: String,
    /// Command for the VM's shell. It runs as root in this source tree and sees this machine's
    /// files; what it writes is gone afterwards. Without it the VM shows what kernel it is
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,
    /// Seconds until the VM is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// What a VM does that was not told.
const DEFAULT_COMMAND: &str = "uname -a; ip -brief link; lsmod";

/// Runs the subcommand; the exit code is the command's.
pub fn run(args: &Args) -> Result<()> {
    let kernel = Kernel::fetch(&args.kernel)?;
    let command = args.cmd.as_deref().unwrap_or_else(|| {
        say(format_args!(
            "vm: running `{DEFAULT_COMMAND}`; give another command with --cmd, such as --cmd 'ip xfrm state' \
             or --cmd 'target/release/espada --help'"
        ));
        DEFAULT_COMMAND
    });
    let mut out = std::io::stdout();
    let code = kernel.run(command, Duration::from_secs(args.timeout), |line| {
        // A closed pipe only means that nobody reads on.
        let _ = writeln!(out, "{line}");
    })?;
    if code != 0 {
        bail!(
            "the command ended with exit code {code} under {}",
            kernel.release
        );
    }
    Ok(())
}

/// Names of all kernels, oldest first.
pub fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|(name, _, _)| *name)
}

/// An unpacked kernel, ready to boot.
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    dir: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks a kernel unless that has been done before.
    pub fn fetch(name: &str) -> Result<Self> {
        let Some((name, suite, pattern)) = KERNELS.iter().find(|(known, _, _)| *known == name)
        else {
            bail!(
                "no kernel `{name}`; expected one of {}",
                names().collect::<Vec<_>>().join(", ")
            );
        };
        let dir = process::target_dir().join("vm").join(name);
        if let Some(kernel) = Self::unpacked(&dir) {
            return Ok(kernel);
        }
        say(format_args!(
            "vm: fetching Linux {name} from Debian {suite}"
        ));
        let archive = Archive::open(suite)?;
        let mut packages = archive.search(pattern)?;
        packages.sort_by_key(|package| numbers(package));
        let package = packages
            .last()
            .with_context(|| format!("Debian {suite} has no package {pattern}"))?;
        let release = package.trim_start_matches("linux-image-");
        archive.unpack(package, &dir)?;
        // Newer packages only name the parts.
        for part in ["linux-binary-", "linux-modules-"] {
            for found in archive.search(&format!("{part}{release}"))? {
                archive.unpack(&found, &dir)?;
            }
        }
        // Newer packages have only /usr/lib; depmod and modprobe look below /lib.
        if !dir.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
        }
        process::output(Command::new("depmod").arg("-b").arg(&dir).arg(release))?;
        Self::unpacked(&dir).with_context(|| format!("{package} held no bootable kernel"))
    }

    fn unpacked(dir: &Path) -> Option<Self> {
        let mut entries = fs::read_dir(dir.join("lib/modules")).ok()?;
        let release = entries.next()?.ok()?.file_name().into_string().ok()?;
        let kernel = Self {
            release,
            dir: dir.to_owned(),
        };
        (kernel.image().is_file() && kernel.modules().join("modules.dep").is_file())
            .then_some(kernel)
    }

    fn image(&self) -> PathBuf {
        let boot = self.dir.join("boot");
        let old = boot.join(format!("vmlinuz-{}", self.release));
        if old.is_file() {
            return old;
        }
        self.modules().join("vmlinuz")
    }

    fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }

    /// Boots the kernel, runs `command` in a shell as root, hands its output on line by line and
    /// returns its exit code.
    pub fn run(&self, command: &str, timeout: Duration, line: impl FnMut(&str)) -> Result<i32> {
        let work = TempDir::new()?;
        let initramfs = self.initramfs(&work.0, command)?;
        let socket = work.0.join("fs.sock");
        let log = File::create(work.0.join("virtiofsd.log"))?;
        let _files = Stopped(
            Command::new(virtiofsd()?)
                .arg(format!("--socket-path={}", socket.display()))
                .args([
                    "-o",
                    "source=/",
                    "-o",
                    "sandbox=chroot",
                    "-o",
                    "cache=always",
                ])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("cannot start virtiofsd")?,
        );
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if Instant::now() > deadline {
                let said = fs::read_to_string(work.0.join("virtiofsd.log")).unwrap_or_default();
                bail!("virtiofsd does not come up: {}", said.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        const MEMORY: &str = "2048M";
        let mut vm = Stopped(
            Command::new("timeout")
                .args(["--kill-after=5", &timeout.as_secs().to_string()])
                .arg("qemu-system-x86_64")
                .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
                .args([
                    "-m",
                    MEMORY,
                    "-nodefaults",
                    "-display",
                    "none",
                    "-no-reboot",
                ])
                .args(["-serial", "stdio", "-nic", "none"])
                // vhost-user file systems need memory that the other process can map.
                .args([
                    "-object",
                    &format!("memory-backend-memfd,id=mem,size={MEMORY},share=on"),
                ])
                .args(["-numa", "node,memdev=mem", "-chardev"])
                .arg(format!("socket,id=fs,path={}", socket.display()))
                .args([
                    "-device",
                    "vhost-user-fs-pci,chardev=fs,tag=host",
                    "-kernel",
                ])
                .arg(self.image())
                .arg("-initrd")
                .arg(&initramfs)
                .args([
                    "-append",
                    "console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/init",
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .context("cannot start qemu-system-x86_64 (run `cargo xtask setup`)")?,
        );
        let output = vm.0.stdout.take().context("qemu has no output")?;
        follow(output, line)
    }

    /// The first file system of the VM: busybox, three modules and two scripts.
    fn initramfs(&self, work: &Path, command: &str) -> Result<PathBuf> {
        let root = work.join("initramfs");
        for dir in ["bin", "modules", "proc", "sys", "dev", "ro", "rw", "root"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("no /bin/busybox (run `cargo xtask setup`)")?;
        let mut loaded = Vec::new();
        for module in MODULES {
            // `insmod PATH` for the module and whatever it needs, in order. A kernel that has it
            // built in knows no such module; should it lack it, the VM's mount says so.
            let listed = process::output(
                Command::new("modprobe")
                    .args(["--show-depends", "-S", &self.release, "-d"])
                    .arg(&self.dir)
                    .arg(module),
            )
            .unwrap_or_default();
            for path in listed
                .lines()
                .filter_map(|line| line.strip_prefix("insmod "))
            {
                let path = PathBuf::from(path.trim());
                if !loaded.contains(&path) {
                    let name = path.file_name().context("modprobe named no file")?;
                    let place = format!("modules/{:02}-{}", loaded.len(), name.to_string_lossy());
                    fs::copy(&path, root.join(place))?;
                    loaded.push(path);
                }
            }
        }
        let init = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b mount -t virtiofs -o ro host /ro
$b mount -t tmpfs tmpfs /rw
$b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /root
$b cp /command /root/.espada-vm-command
for dir in proc sys dev; do $b mount --move /$dir /root/$dir; done
$b mount -t tmpfs tmpfs /root/run
exec $b switch_root /root /bin/sh /.espada-vm-command
";
        let modules = self.modules();
        let script = format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /lib/modules
ln -sfn '{modules}' /lib/modules/{release}
mkdir -p /dev/pts /dev/net
mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
modprobe tun
ip link set lo up
# Holds a socket with time stamps: the kernel patches its code when the first one comes or the last one
# goes, and emulated processors trip over that now and then.
ping -q -i 3600 127.0.0.1 > /dev/null 2>&1 &
cd '{cwd}'
export ESPADA_VM={release}
echo {BEGIN_MARK}
( {command}
)
echo \"{EXIT_MARK} $?\"
sync
echo o > /proc/sysrq-trigger
sleep 60
",
            modules = modules.display(),
            release = self.release,
            cwd = process::root().display(),
        );
        fs::write(root.join("command"), script)?;
        fs::write(root.join("init"), init)?;
        process::output(Command::new("chmod").arg("755").arg(root.join("init")))?;
        let image = work.join("initramfs.cpio");
        pack(&root, &image)?;
        Ok(image)
    }
}

/// Packs what is below `root` as a first file system.
fn pack(root: &Path, image: &Path) -> Result<()> {
    process::output(
        Command::new("sh")
            .args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""])
            .arg(image)
            .current_dir(root),
    )
    .map(drop)
}

/// Hands on line by line what a machine prints between its marks, until it ends, and returns the
/// exit code it names.
fn follow(output: impl Read, mut line: impl FnMut(&str)) -> Result<i32> {
    let mut began = false;
    let mut code = None;
    for bytes in BufReader::new(output).split(b'\n') {
        let text = String::from_utf8_lossy(&bytes?)
            .trim_end_matches('\r')
            .to_owned();
        if let Some(rest) = text.strip_prefix(EXIT_MARK) {
            code = rest.trim().parse().ok();
        } else if began && code.is_none() {
            line(&text);
        }
        began |= text.ends_with(BEGIN_MARK);
    }
    code.with_context(|| {
        format!(
            "the VM ended without an exit code: {}",
            if began {
                "the command took longer than the timeout, or the kernel crashed"
            } else {
                "it did not boot"
            }
        )
    })
}

/// virtiofsd, where Debian's packages put it.
fn virtiofsd() -> Result<PathBuf> {
    ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .context("no virtiofsd (run `cargo xtask setup`)")
}

/// The numbers in a package name, for finding the newest.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// A child process that does not outlive its owner.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn newest_kernel_sorts_last() {
        let mut packages = [
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
        ];
        packages.sort_by_key(|package| numbers(package));
        assert_eq!(packages[0], "linux-image-6.1.0-9-cloud-amd64");
        assert_eq!(packages[3], "linux-image-7.3.4+deb13-cloud-amd64");
    }
}
