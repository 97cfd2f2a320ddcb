//! The UDP sockets: port 500 for IKE, port 4500 for IKE with the non-ESP marker and ESP in UDP.
//! What arrives on 4500 is the data plane's to sort; the daemon only sends there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::Poll;

use espada_ike::Transmit;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use crate::syscall;

/// Zero octets where ESP has its SPI (RFC 3948 section 2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// Longest IKE message that is taken: RFC 7296 section 2 asks for 1280, recommends 3000.
const MAX_DATAGRAM: usize = 65_535;

/// Datagrams taken from one socket before the others get their turn.
const BURST: usize = 64;

/// Where the daemon listens.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Addresses to bind to, usually the two unspecified ones.
    pub addresses: Vec<IpAddr>,
    /// IKE port.
    pub port: u16,
    /// Port of IKE with the non-ESP marker and ESP in UDP.
    pub nat_port: u16,
}

impl Listen {
    /// Every address of the host.
    pub fn everywhere(port: u16, nat_port: u16) -> Self {
        Self {
            addresses: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            port,
            nat_port,
        }
    }
}

/// A datagram for the IKE endpoint.
#[derive(Debug)]
pub struct Datagram {
    /// Where it arrived.
    pub local: SocketAddr,
    /// Who sent it.
    pub remote: SocketAddr,
    /// The IKE message.
    pub payload: Vec<u8>,
}

/// All sockets of a daemon.
pub struct Sockets {
    ike: Vec<tokio::net::UdpSocket>,
    nat: Vec<UdpSocket>,
    nat_port: u16,
    buffer: Vec<u8>,
}

/// A port that cannot be had, and probably why.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on UDP {address}: {source}{reason}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
    reason: String,
}

impl Sockets {
    /// Binds both ports. A family the host does not have is left out, as long as one remains.
    pub fn bind(listen: &Listen) -> Result<Self, BindError> {
        let mut this = Self {
            ike: Vec::new(),
            nat: Vec::new(),
            nat_port: listen.nat_port,
            buffer: vec![0; MAX_DATAGRAM],
        };
        let mut missing = None;
        for address in &listen.addresses {
            let ike = SocketAddr::new(*address, listen.port);
            let nat = SocketAddr::new(*address, listen.nat_port);
            match (open(ike), open(nat)) {
                (Ok(ike_socket), Ok(nat_socket)) => {
                    let ike_socket = tokio::net::UdpSocket::from_std(ike_socket);
                    this.ike
                        .push(ike_socket.map_err(|error| refused(ike, error))?);
                    this.nat.push(nat_socket);
                }
                (Err(error), _) if no_such_family(&error) => missing = Some(refused(ike, error)),
                (Err(error), _) => return Err(refused(ike, error)),
                (_, Err(error)) => return Err(refused(nat, error)),
            }
        }
        match missing {
            Some(error) if this.ike.is_empty() => Err(error),
            Some(error) => {
                tracing::info!("{error}; going on without it");
                Ok(this)
            }
            None => Ok(this),
        }
    }

    /// Clones of the port 4500 sockets, for the data plane.
    pub fn clone_nat(&self) -> io::Result<Vec<UdpSocket>> {
        self.nat.iter().map(UdpSocket::try_clone).collect()
    }

    /// Waits for datagrams on the IKE port.
    pub async fn receive(&mut self) -> Vec<Datagram> {
        let mut datagrams = Vec::new();
        while datagrams.is_empty() {
            let socket = match first_readable(&self.ike).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "IKE sockets: cannot wait for datagrams");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            let port = socket.local_addr().map_or(0, |address| address.port());
            for _ in 0..BURST {
                let buffer = &mut self.buffer;
                let received = socket.try_io(Interest::READABLE, || {
                    syscall::receive(socket.as_fd(), buffer)
                });
                match received {
                    Ok(received) => {
                        let Some(local) = received.local else {
                            continue;
                        };
                        datagrams.push(Datagram {
                            local: SocketAddr::new(local, port),
                            remote: received.remote,
                            payload: self
                                .buffer
                                .get(..received.length)
                                .unwrap_or_default()
                                .to_vec(),
                        });
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier datagram, or one too long: neither ends the socket.
                    Err(error) => tracing::debug!(%error, "IKE socket"),
                }
            }
        }
        datagrams
    }

    /// Sends what the endpoint hands out, with the non-ESP marker where RFC 3948 wants it.
    pub fn send(&self, transmit: &Transmit) -> io::Result<()> {
        let floated = transmit.local.port() == self.nat_port;
        let sockets: Vec<(SocketAddr, BorrowedFd<'_>)> = if floated {
            let bound = |socket: &UdpSocket| socket.local_addr().ok();
            self.nat
                .iter()
                .filter_map(|socket| Some((bound(socket)?, socket.as_fd())))
                .collect()
        } else {
            let bound = |socket: &tokio::net::UdpSocket| socket.local_addr().ok();
            self.ike
                .iter()
                .filter_map(|socket| Some((bound(socket)?, socket.as_fd())))
                .collect()
        };
        let fits = |bound: &SocketAddr| {
            bound.is_ipv4() == transmit.remote.is_ipv4()
                && (bound.ip().is_unspecified() || bound.ip() == transmit.local.ip())
        };
        let Some((_, socket)) = sockets.into_iter().find(|(bound, _)| fits(bound)) else {
            let what = format!("there is no socket to send from {}", transmit.local);
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        };
        let marker: &[u8] = if floated && !transmit.keepalive {
            &NON_ESP_MARKER
        } else {
            &[]
        };
        syscall::send(
            socket,
            [marker, &transmit.payload],
            transmit.local.ip(),
            transmit.remote,
        )
    }
}

async fn first_readable(sockets: &[tokio::net::UdpSocket]) -> io::Result<&tokio::net::UdpSocket> {
    let mut waits: Vec<_> = sockets
        .iter()
        .map(|socket| (socket, Box::pin(socket.readable())))
        .collect();
    std::future::poll_fn(|context| {
        for (socket, wait) in &mut waits {
            if let Poll::Ready(ready) = wait.as_mut().poll(context) {
                return Poll::Ready(ready.map(|()| *socket));
            }
        }
        Poll::Pending
    })
    .await
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let v6 = address.is_ipv6();
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    syscall::enable_packet_info(socket.as_fd(), v6)?;
    syscall::allow_fragmentation(socket.as_fd(), v6)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn no_such_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn refused(address: SocketAddr, source: io::Error) -> BindError {
    let reason = match source.kind() {
        io::ErrorKind::AddrInUse => {
            let port = address.port();
            let owner = match owner_of(port) {
                Some(owner) => format!("{owner} holds the port"),
                None => "another IKE daemon (charon, pluto) may hold the port".to_owned(),
            };
            format!(
                "\n  {owner}; `ss -ulpn 'sport = :{port}'` shows who; stop it, or run Espada in another network namespace"
            )
        }
        io::ErrorKind::PermissionDenied => {
            "\n  ports below 1024 need root or CAP_NET_BIND_SERVICE: run the daemon as root"
                .to_owned()
        }
        _ => String::new(),
    };
    BindError {
        address,
        source,
        reason,
    }
}

/// `name (PID n)` of a process with a UDP socket on this port, as far as /proc lets us see.
fn owner_of(port: u16) -> Option<String> {
    let mut links = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let of_port = text
            .lines()
            .skip(1)
            .filter_map(|line| socket_inode(line, port));
        links.extend(of_port.map(|inode| format!("socket:[{inode}]")));
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|descriptor| {
            std::fs::read_link(descriptor.path())
                .is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (PID {pid})", name.trim()));
        }
    }
    None
}

/// The inode in a line of /proc/net/udp, if the line is about this local port.
fn socket_inode(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    (u16::from_str_radix(local_port, 16).ok()? == port)
        .then(|| fields.get(9).copied())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_udp() {
        let line = "  427: 00000000:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 123456 2 0000000000000000 0";
        assert_eq!(socket_inode(line, 500), Some("123456"));
        assert_eq!(socket_inode(line, 4500), None);
        assert_eq!(socket_inode("garbage", 500), None);
    }

    #[tokio::test]
    async fn a_taken_port_names_its_owner() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let listen = Listen {
            addresses: vec!["127.0.0.1".parse().unwrap()],
            port,
            nat_port: 0,
        };
        let Err(error) = Sockets::bind(&listen) else {
            panic!("bound a taken port")
        };
        let text = error.to_string();
        assert!(
            text.contains(&format!("(PID {})", std::process::id())),
            "{text}"
        );
        assert!(
            text.contains(&format!("ss -ulpn 'sport = :{port}'")),
            "{text}"
        );
    }

    #[tokio::test]
    async fn the_marker_is_put_on_the_nat_port_only() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let spare = |taken: &UdpSocket| taken.local_addr().unwrap().port();
        // Two free ports: bound, noted, released.
        let (port, nat_port) = (
            spare(&UdpSocket::bind("127.0.0.1:0").unwrap()),
            spare(&UdpSocket::bind("127.0.0.1:0").unwrap()),
        );
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let mut sockets = Sockets::bind(&Listen {
            addresses: vec![local],
            port,
            nat_port,
        })
        .unwrap();
        let remote = peer.local_addr().unwrap();
        let mut seen = Vec::new();
        for (from, keepalive) in [(port, false), (nat_port, false), (nat_port, true)] {
            let transmit = Transmit {
                local: SocketAddr::new(local, from),
                remote,
                payload: vec![7],
                keepalive,
            };
            sockets.send(&transmit).unwrap();
            let mut buffer = [0; 16];
            let (length, sender) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!(sender.port(), from);
            seen.push(buffer[..length].to_vec());
        }
        assert_eq!(seen, [vec![7], vec![0, 0, 0, 0, 7], vec![7]]);
        peer.send_to(b"ike", SocketAddr::new(local, port)).unwrap();
        let datagrams = sockets.receive().await;
        assert_eq!(datagrams[0].payload, b"ike");
        assert_eq!(datagrams[0].local, SocketAddr::new(local, port));
        assert_eq!(datagrams[0].remote, remote);
    }
}
