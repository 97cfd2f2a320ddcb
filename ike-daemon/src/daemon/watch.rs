//! The host's addresses, and word of their changes.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use espada_dataplane::netlink::{Monitor, Netlink, NetlinkError};
use espada_dataplane::port::syscall::Poller;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One change of the network comes as several messages.
const SETTLE: Duration = Duration::from_millis(50);
/// Our own routes are changes as well, and may be many.
const PAUSE: Duration = Duration::from_millis(250);

/// Watches the kernel's tables.
pub struct Watch {
    changes: mpsc::Receiver<()>,
    netlink: Netlink,
    /// The plaintext interfaces, whose addresses are inside tunnels.
    tunnels: Vec<String>,
    /// When a change is told.
    due: Option<Instant>,
    /// When one was told last.
    last: Option<Instant>,
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Watch {
    /// From now on, by a thread that lives as long as the process.
    pub fn open(tunnels: Vec<String>) -> anyhow::Result<Self> {
        let mut monitor = Monitor::open()?;
        let mut poller = Poller::new()?;
        poller.add(monitor.as_fd(), 0)?;
        let (sender, changes) = mpsc::channel(1);
        let run = move || {
            loop {
                if let Err(error) = poller.wait(None) {
                    tracing::error!(%error, "addresses are no longer watched for changes");
                    return;
                }
                let seen = monitor.changes();
                if (seen.addresses || seen.routes || seen.links)
                    && let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(())
                {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("espada-address".into())
            .spawn(run)?;
        Ok(Self {
            changes,
            netlink: Netlink::open()?,
            tunnels,
            due: None,
            last: None,
        })
    }

    /// Waits until addresses or routes have changed. May be dropped and called again.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = at(self.due) => {
                    self.due = None;
                    self.last = Some(Instant::now());
                    return;
                }
                seen = self.changes.recv() => {
                    if seen.is_none() {
                        return std::future::pending().await;
                    }
                    let now = Instant::now();
                    let rested = self.last.map_or(now, |last| last + PAUSE);
                    self.due.get_or_insert(rested.max(now + SETTLE));
                }
            }
        }
    }

    /// Addresses that others may reach this host at.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>, NetlinkError> {
        let links = self.netlink.links()?;
        let inside = |index: u32| {
            let link = links.iter().find(|link| link.index == index);
            link.is_some_and(|link| self.tunnels.contains(&link.name))
        };
        let addresses = self.netlink.addresses()?.into_iter();
        Ok(addresses
            .filter(|address| address.global && !inside(address.link))
            .map(|address| address.prefix.address)
            .filter(|address| !address.is_loopback() && !address.is_unspecified())
            .collect())
    }
}
