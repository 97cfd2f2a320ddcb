//! A processor with AVX-512, VAES and VPCLMULQDQ, emulated by Bochs, for the ciphers' code that neither
//! this machine's processor nor the one of qemu's emulation may be able to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{BEGIN_MARK, EXIT_MARK, Kernel, Stopped, follow, pack};
use crate::debian::{Archive, TempDir};
use crate::process::{self, say};

/// Where the packages come from. Bochs 2.7, in the suite before, gets the size of AVX-512's state wrong.
const SUITE: &str = "trixie";

/// Bochs with a display, a boot loader and what makes a boot disk.
const PACKAGES: [&str; 5] = [
    "bochs",
    "bochs-term",
    "genisoimage",
    "isolinux",
    "syslinux-common",
];

/// The boot loader, where the packages have it.
const LOADER: [&str; 2] = [
    "usr/lib/ISOLINUX/isolinux.bin",
    "usr/lib/syslinux/modules/bios/ldlinux.c32",
];

/// Where the packages have their libraries.
const LIBRARIES: [&str; 2] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
];

/// The oldest model that has everything `Backend::Vaes512` asks for.
const MODEL: &str = "corei7_icelake_u";

/// What the kernel must not use of the processor, since it hangs there early under Bochs.
const WITHOUT: &str = "mwait,umip,erms,fsrm,rdrand,rdseed,waitpkg";

/// Where a machine has the program it was made for.
pub const PROGRAM: &str = "/program";

/// The emulator and its tools, in a folder of their own.
pub struct Bochs(PathBuf);

impl Bochs {
    /// Downloads and unpacks the packages unless that has been done before.
    pub fn fetch() -> Result<Self> {
        let place = process::target_dir().join("vm/bochs");
        if !place.is_dir() {
            say(format_args!("vm: fetching Bochs from Debian {SUITE}"));
            let part = place.with_extension("part");
            Archive::open(SUITE)?.unpack_with_dependencies(&PACKAGES, &part)?;
            fs::rename(&part, &place).context("cannot move Bochs to its place")?;
        }
        Ok(Self(place))
    }

    /// One of the programs, with the libraries that were unpacked for it.
    fn program(&self, name: &str) -> Command {
        let libraries = LIBRARIES.map(|folder| self.0.join(folder).display().to_string());
        let mut command = Command::new(self.0.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(libraries.join(":"))
            .arg(self.0.join("usr/bin").join(name));
        command
    }

    /// Boots `kernel` with nothing but busybox and a program, with the libraries it is linked to, runs
    /// `command` in a shell as root, hands its output on line by line and returns its exit code.
    pub fn run(
        &self,
        kernel: &Kernel,
        program: &Path,
        command: &str,
        timeout: Duration,
        line: impl FnMut(&str),
    ) -> Result<i32> {
        let work = TempDir::new()?;
        let disk = self.disk(&work.0, kernel, program, command)?;
        let [settings, orders, log] = ["settings", "orders", "log"].map(|name| work.0.join(name));
        fs::write(&settings, self.settings(&disk, &log))?;
        // Debian's Bochs has its debugger built in, which waits to be told to go on.
        fs::write(&orders, "continue\n")?;
        let bochs = self.program("bochs-bin");
        let mut machine = Stopped(
            Command::new("timeout")
                // A gentler signal only takes Bochs to its debugger.
                .args(["--signal=KILL", &timeout.as_secs().to_string()])
                .arg(bochs.get_program())
                .args(bochs.get_args())
                .arg("-q")
                .arg("-f")
                .arg(&settings)
                .arg("-rc")
                .arg(&orders)
                .env(
                    "LTDL_LIBRARY_PATH",
                    self.0.join("usr/lib/x86_64-linux-gnu/bochs/plugins"),
                )
                .env("BXSHARE", self.0.join("usr/share/bochs"))
                // The display is drawn for this terminal, and thrown away.
                .env("TERM", "vt100")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("cannot start Bochs")?,
        );
        let serial = machine.0.stderr.take().context("Bochs has no output")?;
        follow(serial, line).with_context(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let panic = log.lines().rfind(|line| line.contains("PANIC"));
            format!("Bochs says {}", panic.unwrap_or("nothing"))
        })
    }

    /// Bochs's settings: the boot disk, a serial port that goes to its standard error, nothing else.
    fn settings(&self, disk: &Path, log: &Path) -> String {
        format!(
            "plugin_ctrl: speaker=false
cpu: model={MODEL}, count=1, ips=400000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file={share}/bochs/BIOS-bochs-latest
vgaromimage: file={share}/vgabios/vgabios.bin
ata0-master: type=cdrom, path={disk}, status=inserted
boot: cdrom
clock: sync=none
display_library: term
com1: enabled=1, mode=file, dev=/dev/stderr
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
",
            share = self.0.join("usr/share").display(),
            disk = disk.display(),
            log = log.display(),
        )
    }

    /// A disk that boots the kernel with the program as all there is.
    fn disk(&self, work: &Path, kernel: &Kernel, program: &Path, command: &str) -> Result<PathBuf> {
        let root = work.join("root");
        for dir in ["bin", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("no /bin/busybox (run `cargo xtask setup`)")?;
        fs::copy(program, format!("{}{PROGRAM}", root.display()))
            .with_context(|| format!("cannot read {}", program.display()))?;
        let linked = process::output(Command::new("ldd").arg(program))?;
        for library in linked
            .split_whitespace()
            .filter_map(|word| word.strip_prefix('/'))
        {
            let place = root.join(library);
            fs::create_dir_all(place.parent().unwrap_or(&root))?;
            fs::copy(Path::new("/").join(library), place)?;
        }
        let init = format!(
            "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
echo {BEGIN_MARK}
{command}
echo \"{EXIT_MARK} $?\"
# What was printed last is on its way.
$b sleep 1
$b poweroff -f
"
        );
        fs::write(root.join("init"), init)?;
        process::output(Command::new("chmod").arg("755").arg(root.join("init")))?;
        let files = work.join("files");
        fs::create_dir_all(&files)?;
        pack(&root, &files.join("initrd"))?;
        fs::copy(kernel.image(), files.join("vmlinuz"))?;
        for part in LOADER.map(|part| self.0.join(part)) {
            let name = part.file_name().unwrap_or_default();
            fs::copy(&part, files.join(name)).with_context(|| format!("no {}", part.display()))?;
        }
        let boot = format!(
            "DEFAULT linux
LABEL linux
KERNEL /vmlinuz
INITRD /initrd
APPEND console=ttyS0,115200 quiet loglevel=1 panic=-1 mitigations=off clearcpuid={WITHOUT} rdinit=/init
"
        );
        fs::write(files.join("isolinux.cfg"), boot)?;
        let disk = work.join("disk.iso");
        process::output(
            self.program("genisoimage")
                .args(["-quiet", "-R", "-b", "isolinux.bin", "-c", "boot.cat"])
                .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
                .arg("-o")
                .args([&disk, &files]),
        )?;
        Ok(disk)
    }
}
