//! The machine, its kernel, and the privileges of whoever asks.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use espada_dataplane::features::kernel_release;
use serde::Serialize;

use super::fact::Fact;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// `uname -r`.
    pub kernel: String,
    /// Processor architecture.
    pub architecture: &'static str,
    /// Its model, where the kernel says so.
    pub processor: Option<String>,
    /// Processors of the machine.
    pub processors: usize,
    /// Instructions that speed ciphers up, as the kernel's `/proc/cpuinfo` calls them.
    pub instructions: Vec<&'static str>,
    /// Signs of a virtual machine or container.
    pub inside: Vec<String>,
    /// Effective user.
    pub uid: u32,
    /// Capabilities that the daemon uses and this process has.
    pub capabilities: Vec<&'static str>,
    /// Capabilities that the daemon uses and this process lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// False in a user namespace, from which the kernel takes no BPF programs.
    pub first_user_namespace: bool,
}

/// Instructions worth naming: x86's names, then Arm's.
const INSTRUCTIONS: &[&str] = &[
    "aes",
    "vaes",
    "pclmulqdq",
    "vpclmulqdq",
    "avx2",
    "avx512f",
    "sha_ni",
    "pmull",
    "sha2",
];

/// Capabilities of the daemon, by number (linux/capability.h).
const CAPABILITIES: &[(u32, &str)] = &[
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (10, "CAP_NET_BIND_SERVICE"),
    (39, "CAP_BPF"),
    (38, "CAP_PERFMON"),
    (14, "CAP_IPC_LOCK"),
];
const CAP_SYS_ADMIN: u32 = 21;

impl Host {
    /// Looks.
    pub fn look() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let status = read("/proc/self/status");
        let held = capabilities(&status);
        let (capabilities, missing): (Vec<_>, Vec<_>) = CAPABILITIES
            .iter()
            .partition(|(number, _)| has(held, *number));
        let names = |list: Vec<&(u32, &'static str)>| list.iter().map(|(_, name)| *name).collect();
        Self {
            kernel: kernel_release(),
            architecture: std::env::consts::ARCH,
            processor: cpu_model(&cpuinfo),
            processors: cpu_count(&cpuinfo),
            instructions: cpu_instructions(&cpuinfo),
            inside: surroundings(&cpuinfo),
            uid: crate::syscall::effective_uid(),
            capabilities: names(capabilities),
            missing_capabilities: names(missing),
            first_user_namespace: first_user_namespace(&read("/proc/self/uid_map")),
        }
    }

    /// Whether this process could run the daemon; an ordinary user asks on root's behalf.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// A capability that the daemon would not have here.
    pub fn lacks(&self, capability: &str) -> bool {
        self.is_root() && self.missing_capabilities.contains(&capability)
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of a `name : value` line.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

pub(super) fn cpu_model(cpuinfo: &str) -> Option<String> {
    field(cpuinfo, "model name").map(str::to_owned)
}

pub(super) fn cpu_count(cpuinfo: &str) -> usize {
    let counted = cpuinfo
        .lines()
        .filter(|line| line.split(':').next().map(str::trim) == Some("processor"))
        .count();
    counted.max(1)
}

pub(super) fn cpu_instructions(cpuinfo: &str) -> Vec<&'static str> {
    let flags: BTreeSet<&str> = field(cpuinfo, "flags")
        .or_else(|| field(cpuinfo, "Features"))
        .unwrap_or("")
        .split_whitespace()
        .collect();
    INSTRUCTIONS
        .iter()
        .copied()
        .filter(|name| flags.contains(name))
        .collect()
}

pub(super) fn capabilities(status: &str) -> u64 {
    field(status, "CapEff")
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .unwrap_or(0)
}

/// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, which were split from it in Linux 5.8.
pub(super) fn has(held: u64, capability: u32) -> bool {
    let bit = |number: u32| held >> number & 1 == 1;
    bit(capability) || (matches!(capability, 38 | 39) && bit(CAP_SYS_ADMIN))
}

/// In the first one all user numbers stand for themselves.
pub(super) fn first_user_namespace(uid_map: &str) -> bool {
    let numbers: Vec<&str> = uid_map.split_whitespace().collect();
    numbers.is_empty() || numbers == ["0", "0", "4294967295"]
}

fn surroundings(cpuinfo: &str) -> Vec<String> {
    let mut found = Vec::new();
    let flags = field(cpuinfo, "flags").unwrap_or("");
    if flags.split_whitespace().any(|flag| flag == "hypervisor") {
        found.push("virtual machine".to_owned());
    }
    for (file, name) in [
        ("/.dockerenv", "Docker container"),
        ("/run/.containerenv", "Podman container"),
    ] {
        if Path::new(file).exists() {
            found.push(name.to_owned());
        }
    }
    // systemd-nspawn and LXC; written for all by container managers that follow systemd's interface.
    let manager = read("/run/systemd/container");
    if !manager.trim().is_empty() {
        found.push(format!("{} container", manager.trim()));
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        found.push("Kubernetes pod".to_owned());
    }
    found
}

/// What the kernel has built in, loaded or could load, for what cannot be asked by using it.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Names of the kernel's functions among those of interest; `None` where the list is closed.
    functions: Option<BTreeSet<String>>,
    /// Names of loadable modules; `None` where there is no list of them.
    modules: Option<BTreeSet<String>>,
}

/// What is looked for among a hundred thousand names.
const FUNCTIONS: &[&str] = &[
    "esp_init_state",
    "esp6_init_state",
    "xfrmi_newlink",
    "nf_tables_gettable",
];

impl Symbols {
    /// Reads the kernel's lists.
    pub fn read() -> Self {
        let functions = fs::File::open("/proc/kallsyms").ok().and_then(|file| {
            let mut names = BTreeSet::new();
            let mut any = false;
            for line in BufReader::new(file).lines() {
                let line = line.ok()?;
                any = true;
                // ADDRESS TYPE NAME [MODULE]
                if let Some(name) = line.split_ascii_whitespace().nth(2)
                    && FUNCTIONS.contains(&name)
                {
                    names.insert(name.to_owned());
                }
            }
            any.then_some(names)
        });
        let folder = Path::new("/lib/modules").join(kernel_release());
        let modules = fs::read_to_string(folder.join("modules.dep"))
            .ok()
            .map(|text| module_names(&text));
        Self { functions, modules }
    }

    /// For tests.
    #[cfg(test)]
    pub(super) fn of(functions: Option<&[&str]>, modules: Option<&[&str]>) -> Self {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            functions: functions.map(set),
            modules: modules.map(set),
        }
    }

    /// Whether the kernel has a function now.
    pub fn has_function(&self, name: &str) -> bool {
        self.functions
            .as_ref()
            .is_some_and(|names| names.contains(name))
    }

    /// Whether a part of the kernel is there: by a function of it, or by its module.
    pub fn has(&self, function: &str, module: &str, option: &str) -> Fact {
        if self.has_function(function) {
            return Fact::yes("in the kernel");
        }
        match (&self.functions, &self.modules) {
            (_, Some(modules)) if modules.contains(module) => {
                Fact::yes(format!("module {module}, loaded when used"))
            }
            (Some(_), _) => Fact::no(format!(
                "{option} is off in this kernel, and there is no module {module} for it"
            )),
            (None, _) => Fact::unknown("the kernel's list of functions is closed here"),
        }
    }
}

/// `kernel/net/ipv4/esp4.ko.xz: …` names module `esp4`; the kernel writes `-` as `_`.
pub(super) fn module_names(modules_dep: &str) -> BTreeSet<String> {
    modules_dep
        .lines()
        .filter_map(|line| {
            let path = line.split(':').next()?;
            let file = path.rsplit('/').next()?;
            Some(file.split(".ko").next()?.replace('-', "_"))
        })
        .collect()
}
