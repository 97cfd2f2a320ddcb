//! What changes in a network namespace, as the kernel tells it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{NetlinkError, message_length};
use crate::plane::routes::PROTOCOL;

/// Where a message about a route says who made it: `rtm_protocol`, behind the header.
const RTM_PROTOCOL: usize = 16 + 5;

/// Kinds of change that a [`Monitor`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces came, went or changed.
    pub links: bool,
    /// Addresses of this host.
    pub addresses: bool,
    /// Routes, and the rules by which they are chosen.
    pub routes: bool,
    /// Neighbours.
    pub neighbours: bool,
}

impl Changes {
    /// True when anything changed.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// What changed here or there.
    pub fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
            neighbours: self.neighbours || other.neighbours,
        }
    }
}

/// A socket that is told of changes; wait for it with [`AsFd`].
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes to links, addresses, routes and neighbours.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            for group in [
                libc::RTNLGRP_LINK,
                libc::RTNLGRP_NEIGH,
                libc::RTNLGRP_IPV4_IFADDR,
                libc::RTNLGRP_IPV6_IFADDR,
                libc::RTNLGRP_IPV4_ROUTE,
                libc::RTNLGRP_IPV6_ROUTE,
                libc::RTNLGRP_IPV4_RULE,
                libc::RTNLGRP_IPV6_RULE,
            ] {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| NetlinkError::new("watch the network's state", None, e))?;
        Ok(Self { socket })
    }

    /// Reads what is queued; never waits. An overrun counts as a change of everything, routes of our own
    /// as none: there are as many as connections.
    pub fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let mut rest = datagram.as_slice();
                    while let Some(length) = message_length(rest) {
                        let kind = rest
                            .get(4..6)
                            .map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
                        match kind {
                            libc::RTM_NEWLINK | libc::RTM_DELLINK => changes.links = true,
                            libc::RTM_NEWADDR | libc::RTM_DELADDR => changes.addresses = true,
                            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                                changes.routes |= rest.get(RTM_PROTOCOL) != Some(&PROTOCOL);
                            }
                            libc::RTM_NEWRULE | libc::RTM_DELRULE => changes.routes = true,
                            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => changes.neighbours = true,
                            _ => {}
                        }
                        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes = Changes {
                        links: true,
                        addresses: true,
                        routes: true,
                        neighbours: true,
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return changes,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
