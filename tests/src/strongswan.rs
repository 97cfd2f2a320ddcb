//! strongSwan as the peer: charon with the kernel-libipsec plugin (ESP in UDP over a TUN device) or
//! with the kernel's own ESP where there is one, in a mount namespace of its own so that several run
//! beside each other and beside the system's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::espada::PPK;
use crate::netns::Netns;
use crate::peer::{Connection, Peer};
use crate::peer_root::{self, Release};
use crate::process::{Process, WorkDir};

/// Its daemon.
pub const CHARON: &str = "/usr/lib/ipsec/charon";
const LIBIPSEC: &str = "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so";
const PLUGINS: &str = "random nonce openssl aes sha1 sha2 hmac kdf gcm gmp pem pkcs1 pkcs8 x509 pubkey \
                       constraints";
const NETWORK_PLUGINS: &str = "kernel-netlink socket-default vici updown";

/// The largest inner packet that kernel-libipsec carries.
pub const INNER_MTU: u32 = 1400;

/// Which strongSwan, and what carries its ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This machine's, with its own code over a TUN device, always in UDP.
    Libipsec,
    /// This machine's, with the kernel's ESP (XFRM), native where there is no NAT.
    Kernel,
    /// Debian 13's, with the kernel's ESP.
    Newer,
    /// A newer release's, with its own code over a TUN device.
    NewerLibipsec(Release),
}

impl Kind {
    /// Which release's folder it is in, if not this machine's own.
    fn release(self) -> Option<Release> {
        match self {
            Self::Libipsec | Self::Kernel => None,
            Self::Newer => Some(Release::Trixie),
            Self::NewerLibipsec(release) => Some(release),
        }
    }

    /// Whether it carries ESP itself.
    fn is_libipsec(self) -> bool {
        matches!(self, Self::Libipsec | Self::NewerLibipsec(_))
    }
}

/// All that a charon is started with.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Which.
    pub kind: Kind,
    /// More lines of strongswan.conf's section `charon`.
    pub charon: &'a str,
    /// swanctl.conf.
    pub swanctl: &'a str,
    /// Levels of its log.
    pub log: &'a str,
    /// Files it is given: a name below its folder, and where to copy from.
    pub files: &'a [(&'a str, PathBuf)],
}

/// A running charon.
#[derive(Debug)]
pub struct StrongSwan {
    charon: Process,
    files: PathBuf,
    kind: Kind,
}

/// Why this machine's strongSwan cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    [CHARON, LIBIPSEC, "swanctl"]
        .into_iter()
        .find(|program| !cmd::have(program))
        .map(|program| {
            format!("{program} is not installed (`cargo xtask setup` installs strongSwan)")
        })
}

/// Why a newer release's strongSwan cannot run here, if it cannot.
pub fn missing_newer(release: Release) -> Option<String> {
    peer_root::missing(release, CHARON)
}

impl StrongSwan {
    /// Starts charon in a gateway's namespace with one connection (called `net`) loaded.
    pub fn start(
        netns: &Netns,
        work: &WorkDir,
        connection: &Connection<'_>,
        kind: Kind,
        detached: bool,
    ) -> Result<Self> {
        Self::start_with(netns, work, connection, kind, detached, "")
    }

    /// The same with more lines of strongswan.conf's section `charon`.
    pub fn start_with(
        netns: &Netns,
        work: &WorkDir,
        connection: &Connection<'_>,
        kind: Kind,
        detached: bool,
        charon: &str,
    ) -> Result<Self> {
        let settings = connection.pki.as_ref().map_or("", |pki| pki.settings);
        let files: &[(&str, PathBuf)] = connection.pki.as_ref().map_or(&[], |pki| &pki.files);
        let settings = Settings {
            kind,
            charon: &format!("{charon}\n    {settings}"),
            swanctl: &render(connection)?,
            // Level 2 of cfg shows the proposals and selectors of both sides.
            log: "default = 1\n                       cfg = 2",
            files,
        };
        Self::start_from(netns, work, &settings, detached)
    }

    /// Starts charon with any configuration.
    pub fn start_from(
        netns: &Netns,
        work: &WorkDir,
        settings: &Settings<'_>,
        detached: bool,
    ) -> Result<Self> {
        let kind = settings.kind;
        let files = work.file(&format!("strongswan-{}", netns.name()));
        std::fs::create_dir(&files)?;
        let root = files.to_str().context("a path in UTF-8")?.to_owned();
        std::fs::write(
            files.join("strongswan.conf"),
            daemon_configuration(&files, settings),
        )?;
        for (name, from) in settings.files {
            let to = files.join(name);
            std::fs::create_dir_all(to.parent().context("a folder")?)?;
            std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
        }
        std::fs::write(files.join("swanctl.conf"), settings.swanctl)?;
        // /run is charon's own: its pid file and control socket have fixed names there.
        let script = "mount -t tmpfs tmpfs /run && mkdir /run/lock && exec \"$@\"";
        let argv = match kind.release() {
            Some(release) => peer_root::argv(release, netns, &files, &[CHARON])?,
            None => netns.argv_with_mounts(script, &[CHARON])?,
        };
        let configuration = format!("{root}/strongswan.conf");
        let charon = Process::start(
            &format!("strongSwan in {}", netns.name()),
            &argv,
            &[("STRONGSWAN_CONF", &configuration), ("SWANCTL_DIR", &root)],
            &files.join("charon.log"),
            detached,
        )?;
        let mut this = Self {
            charon,
            files,
            kind,
        };
        let socket = this.control_socket();
        cmd::wait_for("charon's control socket", Duration::from_secs(10), || {
            this.charon.must_run()?;
            Ok(socket.exists().then_some(()))
        })
        .with_context(|| this.log())?;
        this.swanctl(&["--load-all", "--noprompt"])?;
        Ok(this)
    }

    /// Its control socket (vici), as it is seen from outside.
    pub fn control_socket(&self) -> PathBuf {
        format!("/proc/{}/root/run/charon.vici", self.pid()).into()
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.charon.pid()
    }

    /// The command line that runs `swanctl` against this charon.
    pub fn swanctl_argv(&self, arguments: &[&str]) -> Vec<String> {
        let files = self.files.display();
        let mut argv = vec![
            "env".to_owned(),
            format!("STRONGSWAN_CONF={files}/strongswan.conf"),
            format!("SWANCTL_DIR={files}"),
        ];
        let swanctl = [&["swanctl"], arguments].concat();
        if self.kind.release().is_some() {
            argv.extend(peer_root::beside(self.charon.pid(), &swanctl));
        } else {
            argv.push("nsenter".to_owned());
            argv.push(format!("--target={}", self.charon.pid()));
            argv.extend(["--mount", "--net", "--"].map(str::to_owned));
            argv.extend(swanctl.iter().map(|&word| word.to_owned()));
        }
        argv
    }

    /// Runs `swanctl`; failure carries its output.
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let argv = self.swanctl_argv(arguments);
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Adds to its configuration, in sections of swanctl.conf that merge with those that are there.
    pub fn configure(&self, more: &str) -> Result<()> {
        let file = self.files.join("swanctl.conf");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{text}\n{more}\n"))?;
        self.swanctl(&["--load-all", "--noprompt"]).map(drop)
    }

    /// Its SAs as `swanctl --list-sas` shows them.
    pub fn sas(&self) -> Result<String> {
        self.swanctl(&["--list-sas"])
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

impl Peer for StrongSwan {
    fn initiate(&self) -> Result<()> {
        self.swanctl(&["--initiate", "--child", "net", "--timeout", "15"])
            .map(drop)
    }

    fn rekey_child(&self) -> Result<()> {
        self.swanctl(&["--rekey", "--child", "net"]).map(drop)
    }

    fn terminate(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", "net", "--timeout", "5"])
            .map(drop)
    }

    fn wait_established(&self) -> Result<()> {
        cmd::wait_for("strongSwan's child SA", Duration::from_secs(10), || {
            let sas = self.sas()?;
            Ok((sas.contains("ESTABLISHED") && sas.contains("INSTALLED")).then_some(()))
        })
    }

    fn log(&self) -> String {
        self.charon.log()
    }
}

fn render(connection: &Connection<'_>) -> Result<String> {
    if connection.psk.contains('"') {
        bail!("a pre-shared key with a quote does not fit swanctl.conf");
    }
    Ok(format!(
        "connections {{ net {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = {ike}
    dpd_delay = 5s
    rekey_time = 0
    {ike_extra}
    local {{ {local_auth}
            id = {local_id} }}
    remote {{ {remote_auth}
             id = {remote_id} }}
    children {{ net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
        rekey_time = 0
        {extra}
    }} }}
}} }}
secrets {{ ike-net {{ id-local = {local_id}
                    id-remote = {remote_id}
                    secret = \"{psk}\" }}
          ppk-alpha {{ id = {ppk_id}
                      secret = {ppk} }} }}
",
        local = connection.local,
        remote = connection.remote,
        ike = connection.ike,
        local_id = connection.local_id,
        remote_id = connection.remote_id,
        local_ts = connection.local_ts,
        remote_ts = connection.remote_ts,
        esp = connection.esp,
        extra = connection.extra,
        local_auth = connection
            .pki
            .as_ref()
            .map_or("auth = psk", |pki| pki.local),
        remote_auth = connection
            .pki
            .as_ref()
            .map_or("auth = psk", |pki| pki.remote),
        psk = connection.psk,
        ike_extra = connection.ike_extra,
        ppk_id = PPK.0,
        ppk = PPK.1,
    ))
}

fn daemon_configuration(files: &Path, settings: &Settings<'_>) -> String {
    let Settings {
        kind, charon, log, ..
    } = settings;
    // The mark keeps charon's own packets out of the routing table that leads into its TUN device (the
    // kernel's ESP needs none).
    let (libipsec, marks) = if kind.is_libipsec() {
        let marks = "kernel-netlink { fwmark = !0x42 }
        socket-default { fwmark = 0x42 }";
        ("kernel-libipsec", marks)
    } else {
        ("", "")
    };
    format!(
        "charon {{
    load_modular = no
    load = {PLUGINS} {libipsec} {NETWORK_PLUGINS}
    threads = 32
    retransmit_timeout = 1.0
    retransmit_tries = 3
    {charon}
    filelog {{ stdout {{ path = {}/charon.log
                       {log}
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
