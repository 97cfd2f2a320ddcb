//! strongSwan as the peer: charon with the kernel-libipsec plugin (ESP in UDP over a TUN device) or
//! with the kernel's own ESP where there is one, in a mount namespace of its own so that several run beside each other and beside the system's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cleanup::PREFIX;
use crate::cmd;
use crate::netns::Netns;
use crate::process::{Process, WorkDir};

const CHARON: &str = "/usr/lib/ipsec/charon";
const LIBIPSEC: &str = "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so";
const PLUGINS: &str = "random nonce openssl aes sha1 sha2 hmac kdf gcm gmp pem x509 pubkey \
                       constraints";
const NETWORK_PLUGINS: &str = "kernel-netlink socket-default vici updown";

/// The largest inner packet that kernel-libipsec carries.
pub const INNER_MTU: u32 = 1400;

/// What carries strongSwan's ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Its own code over a TUN device, always in UDP.
    Libipsec,
    /// The kernel (XFRM), native where there is no NAT.
    Kernel,
}

/// One connection of strongSwan, in the words of swanctl.conf. It is always called `net`.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    /// `local_addrs`
    pub local: &'a str,
    /// `remote_addrs`
    pub remote: &'a str,
    /// Our identity.
    pub local_id: &'a str,
    /// The peer's identity.
    pub remote_id: &'a str,
    /// `proposals`
    pub ike: &'a str,
    /// `esp_proposals`
    pub esp: &'a str,
    /// `local_ts`
    pub local_ts: &'a str,
    /// `remote_ts`
    pub remote_ts: &'a str,
    /// The pre-shared key.
    pub psk: &'a str,
    /// Who does the ESP.
    pub carrier: Carrier,
}

/// A running charon.
#[derive(Debug)]
pub struct StrongSwan {
    charon: Process,
    files: PathBuf,
}

/// Why strongSwan cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    [CHARON, LIBIPSEC, "swanctl"]
        .into_iter()
        .find(|program| !cmd::have(program))
        .map(|program| {
            format!("{program} is not installed (`cargo xtask setup` installs strongSwan)")
        })
}

/// Why the kernel cannot carry strongSwan's ESP, if it cannot.
pub fn missing_kernel_esp() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let netns = Netns::new(&format!("{PREFIX}{}-xfrm", std::process::id()))?;
        let key = format!("0x{}", "11".repeat(20));
        netns.ip(&[
            "xfrm",
            "state",
            "add",
            "src",
            "192.0.2.1",
            "dst",
            "192.0.2.2",
            "proto",
            "esp",
            "spi",
            "0x1000",
            "mode",
            "tunnel",
            "aead",
            "rfc4106(gcm(aes))",
            &key,
            "128",
        ])
    };
    missing().or_else(|| {
        let answer = ANSWER.get_or_init(|| {
            let error = probe().err()?.to_string();
            let last = error.lines().last().unwrap_or_default();
            Some(format!("this kernel has no ESP of its own ({last})"))
        });
        answer.clone()
    })
}

impl StrongSwan {
    /// Starts charon in a gateway's namespace with one connection loaded.
    pub fn start(
        netns: &Netns,
        work: &WorkDir,
        connection: &Connection<'_>,
        detached: bool,
    ) -> Result<Self> {
        let files = work.file(&format!("strongswan-{}", netns.name()));
        std::fs::create_dir(&files)?;
        let root = files.to_str().context("a path in UTF-8")?.to_owned();
        std::fs::write(
            files.join("strongswan.conf"),
            daemon_configuration(&files, connection.carrier),
        )?;
        std::fs::write(files.join("swanctl.conf"), connection.render()?)?;
        // /run is charon's own: its pid file and control socket have fixed names there.
        let script = format!("mount -t tmpfs tmpfs /run && mkdir /run/lock && exec {CHARON}");
        let argv = netns.argv(&[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
        ])?;
        let configuration = format!("{root}/strongswan.conf");
        let charon = Process::start(
            &format!("strongSwan in {}", netns.name()),
            &argv,
            &[("STRONGSWAN_CONF", &configuration), ("SWANCTL_DIR", &root)],
            &files.join("charon.log"),
            detached,
        )?;
        let mut this = Self { charon, files };
        let socket = format!("/proc/{}/root/run/charon.vici", this.charon.pid());
        cmd::wait_for("charon's control socket", Duration::from_secs(10), || {
            this.charon.must_run()?;
            Ok(Path::new(&socket).exists().then_some(()))
        })?;
        this.swanctl(&["--load-all", "--noprompt"])?;
        Ok(this)
    }

    /// The command line that runs `swanctl` against this charon.
    pub fn swanctl_argv(&self, arguments: &[&str]) -> Vec<String> {
        let files = self.files.display();
        let mut argv = vec![
            "env".to_owned(),
            format!("STRONGSWAN_CONF={files}/strongswan.conf"),
            format!("SWANCTL_DIR={files}"),
            "nsenter".to_owned(),
            format!("--target={}", self.charon.pid()),
            "--mount".to_owned(),
            "--net".to_owned(),
            "--".to_owned(),
            "swanctl".to_owned(),
        ];
        argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
        argv
    }

    /// Runs `swanctl`; failure carries its output.
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let argv = self.swanctl_argv(arguments);
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Brings the connection up from this side.
    pub fn initiate(&self) -> Result<()> {
        self.swanctl(&["--initiate", "--child", "net", "--timeout", "15"])
            .map(drop)
    }

    /// Takes the IKE SA down from this side.
    pub fn terminate(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", "net", "--timeout", "5"])
            .map(drop)
    }

    /// Its SAs as `swanctl --list-sas` shows them.
    pub fn sas(&self) -> Result<String> {
        self.swanctl(&["--list-sas"])
    }

    /// Waits until it has a child SA.
    pub fn wait_established(&self) -> Result<()> {
        cmd::wait_for("strongSwan's child SA", Duration::from_secs(10), || {
            let sas = self.sas()?;
            Ok((sas.contains("ESTABLISHED") && sas.contains("INSTALLED")).then_some(()))
        })
    }

    /// What charon logged so far.
    pub fn log(&self) -> String {
        self.charon.log()
    }

    /// Waits until the log has a text.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        cmd::wait_for(
            &format!("\"{text}\" in strongSwan's log"),
            Duration::from_secs(10),
            || Ok(self.log().contains(text).then_some(())),
        )
    }

    /// Ends charon without a DELETE to its peer.
    pub fn kill(&mut self) -> Result<()> {
        self.charon.kill()
    }

    /// Leaves charon running when this value is dropped (it was started detached).
    pub fn keep(&mut self) {
        self.charon.keep();
    }
}

impl Connection<'_> {
    fn render(&self) -> Result<String> {
        let mut text = String::new();
        write!(
            text,
            "connections {{ net {{
    version = 2
    local_addrs = {}
    remote_addrs = {}
    proposals = {}
    dpd_delay = 5s
    rekey_time = 0
    local {{ auth = psk
            id = {} }}
    remote {{ auth = psk
             id = {} }}
    children {{ net {{
        local_ts = {}
        remote_ts = {}
        esp_proposals = {}
        rekey_time = 0
    }} }}
}} }}
secrets {{ ike-net {{ id-local = {}
                    id-remote = {}
                    secret = \"{}\" }} }}
",
            self.local,
            self.remote,
            self.ike,
            self.local_id,
            self.remote_id,
            self.local_ts,
            self.remote_ts,
            self.esp,
            self.local_id,
            self.remote_id,
            self.psk
        )?;
        if self.psk.contains('"') {
            bail!("a pre-shared key with a quote does not fit swanctl.conf");
        }
        Ok(text)
    }
}

fn daemon_configuration(files: &Path, carrier: Carrier) -> String {
    let libipsec = match carrier {
        Carrier::Libipsec => "kernel-libipsec",
        Carrier::Kernel => "",
    };
    // Level 2 of cfg shows the proposals and selectors of both sides. The mark keeps charon's own
    // packets out of the routing table that leads into its TUN device (the kernel's ESP needs none).
    let marks = match carrier {
        Carrier::Libipsec => {
            "kernel-netlink { fwmark = !0x42 }
        socket-default { fwmark = 0x42 }"
        }
        Carrier::Kernel => "",
    };
    format!(
        "charon {{
    load_modular = no
    load = {PLUGINS} {libipsec} {NETWORK_PLUGINS}
    threads = 16
    install_routes = yes
    retransmit_timeout = 1.0
    retransmit_tries = 3
    filelog {{ stdout {{ path = {}/charon.log
                       default = 1
                       cfg = 2
                       append = yes
                       flush_line = yes }} }}
    plugins {{
        {marks}
    }}
}}
",
        files.display()
    )
}
