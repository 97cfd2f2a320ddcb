//! libreswan as the peer: pluto in the peers' folder, with the kernel's own ESP.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cmd;
use crate::netns::Netns;
use crate::peer::{Connection, Peer};
use crate::peer_root::{self, Release};
use crate::process::{Process, WorkDir};
use crate::topology::addr;

const PLUTO: &str = "/usr/libexec/ipsec/pluto";
const WHACK: &str = "/usr/libexec/ipsec/whack";

/// A running pluto.
#[derive(Debug)]
pub struct Libreswan {
    pluto: Process,
}

/// Why libreswan cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    peer_root::missing(Release::Trixie, PLUTO)
}

impl Libreswan {
    /// Starts pluto in a gateway's namespace with one connection loaded.
    pub fn start(netns: &Netns, work: &WorkDir, connection: &Connection<'_>) -> Result<Self> {
        // It sets no route of its own and counts on what gateways have.
        netns.route("default", addr::WAN_A)?;
        let files = work.file(&format!("libreswan-{}", netns.name()));
        std::fs::create_dir(&files)?;
        std::fs::create_dir(files.join("nss"))?;
        std::fs::create_dir(files.join("ipsec.d"))?;
        std::fs::write(files.join("ipsec.conf"), render(connection))?;
        std::fs::write(files.join("ipsec.secrets"), render_secrets(connection))?;
        let path = |name: &str| files.join(name).display().to_string();
        // pluto keeps keys in an NSS database even where there are none.
        let script = format!(
            "mkdir /run/pluto && certutil -N -d sql:'{nss}' --empty-password && exec {PLUTO} --nofork \
             --stderrlog --config '{config}' --secretsfile '{secrets}' --nssdir '{nss}' \
             --ipsecdir '{dir}'",
            nss = path("nss"),
            config = path("ipsec.conf"),
            secrets = path("ipsec.secrets"),
            dir = path("ipsec.d"),
        );
        let argv = peer_root::argv(Release::Trixie, netns, &files, &["sh", "-c", &script])?;
        let pluto = Process::start(
            &format!("libreswan in {}", netns.name()),
            &argv,
            &[],
            &files.join("pluto.log"),
            false,
        )?;
        let mut this = Self { pluto };
        cmd::wait_for("libreswan's connection", Duration::from_secs(30), || {
            this.pluto.must_run()?;
            // What pluto says when `addconn`, which it starts itself, has given it the file.
            let log = this.log();
            Ok(log.contains("addconn: \"net\": added").then_some(()))
        })
        .with_context(|| this.log())?;
        Ok(this)
    }

    /// Runs `whack`; failure carries its output.
    pub fn whack(&self, arguments: &[&str]) -> Result<String> {
        let program = [&[WHACK], arguments].concat();
        let argv = peer_root::beside(self.pluto.pid(), &program);
        cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Peer for Libreswan {
    fn initiate(&self) -> Result<()> {
        self.whack(&["--name", "net", "--initiate"]).map(drop)
    }

    fn wait_established(&self) -> Result<()> {
        cmd::wait_for("libreswan's child SA", Duration::from_secs(20), || {
            // One line for every child SA that can carry traffic.
            Ok(self
                .whack(&["--trafficstatus"])?
                .contains("inBytes")
                .then_some(()))
        })
    }

    fn rekey_child(&self) -> Result<()> {
        self.whack(&["--name", "net", "--rekey-child"]).map(drop)
    }

    fn terminate(&self) -> Result<()> {
        self.whack(&["--name", "net", "--terminate"]).map(drop)
    }

    fn log(&self) -> String {
        self.pluto.log()
    }
}

fn render(connection: &Connection<'_>) -> String {
    let mut text = format!(
        "config setup
    protostack=xfrm

conn net
    authby=secret
    auto=add
    left={}
    leftid=@{}
    leftsubnet={}
    right={}
    rightid=@{}
    rightsubnet={}
    leftupdown=/usr/libexec/ipsec/_updown.xfrm
    ike={}
    esp={}
",
        connection.local,
        connection.local_id,
        connection.local_ts,
        connection.remote,
        connection.remote_id,
        connection.remote_ts,
        connection.ike,
        connection.esp,
    );
    for line in connection.extra.lines() {
        text += &format!("    {}\n", line.trim());
    }
    text
}

fn render_secrets(connection: &Connection<'_>) -> String {
    format!(
        "@{} @{} : PSK \"{}\"\n",
        connection.local_id, connection.remote_id, connection.psk
    )
}
