//! LAN interfaces whose packets the workers take and send past the kernel. One that is not fit for it
//! is told of, and its packets go through the kernel as ever.

use std::os::fd::AsFd;
use std::sync::Arc;

use espada_common::abi::{LanEntry, MAX_LANS};

use super::{Config, XskStatus};
use crate::lan::{self, Side, Table};
use crate::netlink::{Link, Netlink};
use crate::plane::{SharedFrontEnd, lock_front_end};
use crate::port::lan::{LanSender, SharedLanSender, inner_packet};
use crate::port::ring::{ReceiveHalf, Socket, Watch};
use crate::port::xsk::{self, XskReceiver};
use crate::umem::{Arena, FramePool, TAILROOM};

/// Octets that the kernel leaves free before a frame that arrives (`XDP_PACKET_HEADROOM`), and the
/// Ethernet header.
const BEFORE: usize = 256 + 14;

/// A LAN interface that was asked for.
#[derive(Clone, Debug)]
pub struct LanStatus {
    /// Its name.
    pub interface: String,
    /// How it does, or why the kernel has its packets.
    pub state: Result<XskStatus, String>,
}

/// An interface with its sockets.
struct Port {
    name: String,
    link: u32,
    first_socket: u32,
    entry: LanEntry,
    /// The program acts by `entry`.
    active: bool,
    watches: Vec<Watch>,
    status: XskStatus,
}

/// The control side of the LAN interfaces.
#[derive(Default)]
pub struct Lans {
    front_end: Option<SharedFrontEnd>,
    ports: Vec<Port>,
    refused: Vec<(String, String)>,
    sender: Option<SharedLanSender>,
    table: Arc<Table>,
    opaque: Option<&'static str>,
}

/// The sockets of one interface and what they count.
pub type Opened = (Vec<Socket>, Arc<xsk::Counters>);

/// The interfaces that are asked for, in order: what the kernel says of them, or why they cannot be had.
pub fn choose(
    config: &Config,
    netlink: &mut Netlink,
    frame_size: usize,
) -> Vec<(String, Result<Link, String>)> {
    let links = netlink.links().unwrap_or_default();
    let names = config.lan.iter().enumerate();
    names
        .map(|(number, name)| {
            let fit = if config.front_end.is_none() {
                Err(
                    "there is no front end (front_end = \"off\", or no WAN interface for it)"
                        .into(),
                )
            } else if number >= MAX_LANS as usize {
                Err(format!("it serves {MAX_LANS} interfaces"))
            } else if config.wan.contains(name) {
                Err("it is a WAN interface".into())
            } else if !matches!(frame_size, 2048 | 4096) {
                Err("AF_XDP's frames are too small for the tunnel interface's MTU".into())
            } else {
                fit(&links, name).cloned()
            };
            (name.clone(), fit)
        })
        .collect()
}

/// The interface of that name among all of a network namespace, or why its packets cannot go past the
/// kernel, as far as that can be seen from outside.
pub fn fit<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, String> {
    let link = links
        .iter()
        .find(|link| link.name == name)
        .ok_or("there is no such interface")?;
    let above = |other: &&Link| {
        other.lower == Some(link.index)
            && matches!(other.kind.as_deref(), Some("vlan" | "ipvlan" | "ipvtap"))
    };
    if !link.ethernet || link.mac.is_none() {
        Err("its packets have no Ethernet headers, which XDP needs".into())
    } else if link.controller.is_some() {
        Err("it belongs to a bridge, bond or VRF, which decides about its packets".into())
    } else if let Some(other) = links.iter().find(above) {
        Err(format!(
            "interface {} stands on it, whose packets could not be told apart: the driver may have \
             taken VLAN tags off",
            other.name
        ))
    } else {
        Ok(link)
    }
}

/// Receive queues that get a socket.
pub fn queues(link: &Link) -> u32 {
    link.rx_queues.clamp(1, xsk::MOST_QUEUES)
}

impl Lans {
    /// Opens the sockets of the chosen interfaces and attaches the program. Nothing is taken before the
    /// first [`Self::refresh`].
    pub fn open(
        chosen: Vec<(String, Result<Link, String>)>,
        config: &Config,
        arena: &Arc<Arena>,
        tunnel: u32,
    ) -> (Self, Vec<Opened>) {
        let mut lans = Self {
            front_end: config.front_end.clone(),
            ..Self::default()
        };
        let mut opened = Vec::new();
        for (name, link) in chosen {
            let first_socket = xsk::MOST_QUEUES * lans.ports.len() as u32;
            let result = link.and_then(|link| lans.open_one(&link, first_socket, config, arena));
            match result {
                Ok((link, sockets)) => {
                    let status = XskStatus {
                        queues: sockets.len(),
                        zero_copy: sockets.iter().all(|socket| socket.zero_copy),
                        counters: Arc::default(),
                    };
                    tracing::info!(
                        interface = name,
                        queues = status.queues,
                        zero_copy = status.zero_copy,
                        "packets between this LAN interface and tunnels go past the kernel: firewall \
                         rules and tcpdump do not see them"
                    );
                    lans.ports.push(Port {
                        name,
                        link: link.index,
                        first_socket,
                        entry: LanEntry {
                            mac: link.mac.unwrap_or_default(),
                            padding: [0; 2],
                            tunnel,
                            first_socket,
                            sockets: sockets.len() as u32,
                            most: arena.frame_size().saturating_sub(BEFORE + TAILROOM) as u32,
                        },
                        active: false,
                        watches: sockets.iter().map(Socket::watch).collect(),
                        status: status.clone(),
                    });
                    opened.push((sockets, status.counters));
                }
                Err(reason) => {
                    tracing::warn!(
                        interface = name,
                        reason,
                        "packets of this LAN interface go through the kernel, not past it"
                    );
                    lans.refused.push((name, reason));
                }
            }
        }
        (lans, opened)
    }

    fn open_one(
        &self,
        link: &Link,
        first_socket: u32,
        config: &Config,
        arena: &Arc<Arena>,
    ) -> Result<(Link, Vec<Socket>), String> {
        let Some(front_end) = &self.front_end else {
            return Err("there is no front end".into());
        };
        let mut sockets = Vec::new();
        for queue in 0..queues(link) {
            match xsk::open(arena, link.index, queue) {
                Ok(mut socket) => {
                    super::poll_busily(&mut socket, config.workers.busy_poll, &link.name);
                    sockets.push(socket);
                }
                Err(error) if queue == 0 => return Err(format!("AF_XDP: {error}")),
                // A device may have been made for more queues than it uses.
                Err(_) => break,
            }
        }
        let mut front_end = lock_front_end(front_end);
        front_end
            .attach_lan(&link.name)
            .map_err(|error| error.to_string())?;
        for (place, socket) in (first_socket..).zip(&sockets) {
            front_end
                .set_lan_xsk(place, &socket.as_fd())
                .map_err(|error| error.to_string())?;
        }
        Ok((link.clone(), sockets))
    }

    /// Every interface that was asked for.
    pub fn status(&self) -> Vec<LanStatus> {
        let active = self.ports.iter().map(|port| LanStatus {
            interface: port.name.clone(),
            state: Ok(port.status.clone()),
        });
        let refused = self.refused.iter().map(|(interface, reason)| LanStatus {
            interface: interface.clone(),
            state: Err(reason.clone()),
        });
        active.chain(refused).collect()
    }

    /// Packets lost on the way in because the worker did not keep up.
    pub fn lost(&self) -> u64 {
        let watches = self.ports.iter().flat_map(|port| &port.watches);
        watches.map(Watch::lost).sum()
    }

    /// What the workers send to these interfaces with.
    pub fn set_sender(&mut self, sender: SharedLanSender) {
        self.sender = Some(sender);
    }

    /// Looks at interfaces, routes and neighbours again, and tells program and sender.
    pub fn refresh(&mut self, netlink: &mut Netlink, links: &[Link]) {
        let Some(sender) = &self.sender else {
            return;
        };
        let sides: Vec<Option<Side>> = (self.ports.iter_mut())
            .map(|port| {
                let link = links.iter().find(|link| link.index == port.link && link.up);
                let side = link.and_then(|link| {
                    Some(Side {
                        link: link.index,
                        mac: link.mac?,
                        mtu: link.mtu,
                    })
                });
                port.announce(self.front_end.as_ref(), side.map(|side| side.mac));
                side
            })
            .collect();
        let forwarding = match lan::forwarding(netlink) {
            Ok(forwarding) => forwarding,
            Err(error) => {
                tracing::warn!(%error, "decrypted packets go through the kernel");
                lan::Forwarding::default()
            }
        };
        if self.opaque != forwarding.opaque {
            self.opaque = forwarding.opaque;
            match forwarding.opaque {
                Some(reason) => tracing::warn!(reason, "decrypted packets go through the kernel"),
                None => tracing::info!("decrypted packets go past the kernel again"),
            }
        }
        let table = Table::new(&sides, &forwarding);
        table.confirm(&self.table, netlink);
        if table != *self.table {
            self.table = Arc::new(table);
            sender.set_table(Arc::clone(&self.table));
        }
    }

    /// Has the program pass everything again.
    pub fn close(&mut self) {
        let Some(front_end) = &self.front_end else {
            return;
        };
        self.sender = None;
        for port in self.ports.drain(..) {
            let mut front_end = lock_front_end(front_end);
            let mut result = front_end.remove_lan(port.link);
            for place in (port.first_socket..).take(port.watches.len()) {
                result = result.and(front_end.remove_lan_xsk(place));
            }
            if let Err(error) = result {
                tracing::debug!(%error, "the front end still knows a LAN interface");
            }
        }
    }
}

impl Port {
    /// Tells the program the interface's address; without one it passes everything.
    fn announce(&mut self, front_end: Option<&SharedFrontEnd>, mac: Option<[u8; 6]>) {
        let entry = LanEntry {
            mac: mac.unwrap_or_default(),
            ..self.entry
        };
        if (self.active, self.entry) == (mac.is_some(), entry) {
            return;
        }
        let Some(front_end) = front_end else {
            return;
        };
        let told = match mac {
            Some(_) => lock_front_end(front_end).set_lan(self.link, entry),
            None => lock_front_end(front_end).remove_lan(self.link),
        };
        match told {
            Ok(()) => (self.active, self.entry) = (mac.is_some(), entry),
            Err(error) => {
                tracing::warn!(interface = self.name, %error, "LAN interface not announced")
            }
        }
    }
}

/// What the workers have of the LAN interfaces.
pub struct LanWorkers {
    /// Frames of each outbound worker.
    pub pools: Vec<FramePool>,
    /// Queues that each outbound worker receives from.
    pub receivers: Vec<Vec<XskReceiver>>,
    /// What all inbound workers send through, where there are LAN interfaces.
    pub sender: Option<SharedLanSender>,
}

impl LanWorkers {
    /// Shares the queues of the interfaces out among `lanes` workers that have this many frames beside.
    pub fn new(arena: &Arc<Arena>, opened: Vec<Opened>, lanes: usize, frames: usize) -> Self {
        let mut mine: Vec<Vec<(ReceiveHalf, Arc<xsk::Counters>)>> = Vec::new();
        mine.resize_with(lanes, Vec::new);
        let mut halves = Vec::new();
        let mut turns = (0..lanes).cycle();
        for (sockets, counters) in opened {
            // One worker at a time sends, so one queue of each interface suffices.
            let mut first = None;
            for (receive, transmit) in sockets.into_iter().map(Socket::split) {
                if let Some(own) = turns.next().and_then(|lane| mine.get_mut(lane)) {
                    own.push((receive, Arc::clone(&counters)));
                }
                first.get_or_insert(transmit);
            }
            halves.extend(first.map(|transmit| (transmit, counters)));
        }
        let (pools, receivers) = mine
            .into_iter()
            .map(|own| {
                let mut pool = arena.take(frames + own.len() * xsk::RING as usize);
                let receivers = own
                    .into_iter()
                    .map(|(half, counters)| {
                        XskReceiver::new(half, &mut pool, counters, inner_packet)
                    })
                    .collect();
                (pool, receivers)
            })
            .unzip();
        Self {
            pools,
            receivers,
            sender: (!halves.is_empty()).then(|| SharedLanSender::new(LanSender::new(halves))),
        }
    }
}
