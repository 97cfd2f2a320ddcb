//! The gateway's state and what it does with what comes in: it carries the endpoint's commands
//! out, answers the control socket and makes the status report. Sockets and time are passed in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, Command, Event, Mode, TrafficSelector};
use espada_ike::config::{EncapsulationPolicy, RemoteAddress};
use espada_ike::selector::format_list;
use espada_ike::{
    DownReason, Endpoint, InitiateError, Inquiry, Lookup, Notice, Question, Random, Transmit,
};
use tokio::sync::mpsc;

use super::plane::Plane;
use super::resolvers::Resolvers;
use crate::config::{Connection, GatewayConfig, Remote};
use crate::control::{Answer, Request};
use crate::log;
use crate::status::LastError;

/// Somebody waits for a connection to come up or go down.
struct Waiter {
    connection: Arc<str>,
    up: bool,
    answers: mpsc::Sender<Answer>,
}

impl Waiter {
    /// A client that does not read its answers is not waited for.
    fn tell(&self, answer: Answer) {
        let _ = self.answers.try_send(answer);
    }
}

/// What the data plane was told about a pair of SAs.
pub(super) struct Installed {
    pub(super) connection: Arc<str>,
    pub(super) mode: Mode,
}

/// Everything a daemon has, apart from its sockets.
pub struct Gateway<R> {
    pub(super) endpoint: Endpoint<R>,
    pub(super) plane: Plane,
    pub(super) config: GatewayConfig,
    pub(super) resolved: HashMap<String, IpAddr>,
    waiters: Vec<Waiter>,
    pub(super) installed: HashMap<ChildSaId, Installed>,
    /// Why the data plane could not do its part for a connection.
    pub(super) plane_errors: HashMap<Arc<str>, LastError>,
    /// How long each IKE SA took to establish, by the initiator's SPI.
    pub(super) establish: HashMap<u64, Duration>,
    pub(super) started: Instant,
    /// Connections whose SA the data plane refused: a peer must not believe in it.
    failed: Vec<Arc<str>>,
    /// Where the name servers are written that come with virtual addresses.
    resolvers: Option<Resolvers>,
    stopping: bool,
}

impl<R: Random> Gateway<R> {
    /// A gateway that has loaded its configuration, goes on with what a predecessor left in the
    /// data plane, and begins what is to be started at once. `boot` is the time since the system
    /// was booted.
    pub fn new(now: Instant, boot: Duration, config: GatewayConfig, rng: R, plane: Plane) -> Self {
        let mut this = Self {
            endpoint: Endpoint::new(config.endpoint.clone(), rng),
            plane,
            config,
            resolved: HashMap::new(),
            waiters: Vec::new(),
            installed: HashMap::new(),
            plane_errors: HashMap::new(),
            establish: HashMap::new(),
            started: now,
            failed: Vec::new(),
            resolvers: None,
            stopping: false,
        };
        this.endpoint.set_clock(now, boot);
        this.take_over(now);
        this.endpoint.handle_timeout(now);
        this
    }

    /// Has the name servers that come with virtual addresses written below the runtime directory.
    pub fn set_runtime_directory(&mut self, directory: &Path) {
        self.resolvers = Some(Resolvers::new(directory));
    }

    /// Hands the configuration to the endpoint, as far as host names are resolved. What is to be
    /// started begins when the endpoint's next timeout is handled.
    pub(super) fn load(&mut self, now: Instant) {
        self.refresh_sources();
        self.exempt_peers();
        self.endpoint.set_secrets(self.config.secrets.clone());
        let connections = self
            .config
            .connections
            .iter()
            .filter_map(|connection| {
                let address = match &connection.remote {
                    Remote::Host(name) => self.resolved.get(name).copied(),
                    Remote::Known(_) => None,
                };
                let mut settings = connection.resolved(address)?;
                let prefers_udp = self.plane.udp_is_faster && self.config.prefers_udp(connection);
                if settings.encapsulation == EncapsulationPolicy::Auto && !prefers_udp {
                    settings.encapsulation = EncapsulationPolicy::Esp;
                }
                Some(settings)
            })
            .collect();
        self.endpoint.load_connections(now, connections);
    }

    /// Replaces the configuration. What only a restart can change is said in the answer.
    pub fn reload(&mut self, now: Instant, config: GatewayConfig) -> String {
        let mut message = format!(
            "configuration read again: {} connections",
            config.connections.len()
        );
        if config.dataplane != self.config.dataplane || config.endpoint != self.config.endpoint {
            message.push_str("; changes of [dataplane] and [ike] wait for a restart of the daemon");
        }
        self.config = config;
        self.load(now);
        self.endpoint.handle_timeout(now);
        message
    }

    /// The configuration in use.
    pub fn config(&self) -> &GatewayConfig {
        &self.config
    }

    /// Host names of peers, each with the family its address must have (true for IPv4) if only one will do.
    pub fn hosts(&self) -> Vec<(String, Option<bool>)> {
        self.config
            .connections
            .iter()
            .filter_map(|connection| match &connection.remote {
                Remote::Host(name) => Some((
                    name.clone(),
                    connection
                        .settings()
                        .local_address
                        .map(|address| address.is_ipv4()),
                )),
                Remote::Known(_) => None,
            })
            .collect()
    }

    /// A host name was looked up.
    pub fn resolve(&mut self, now: Instant, name: String, address: IpAddr) {
        if self.resolved.get(&name) != Some(&address) {
            tracing::info!(host = %name, %address, "peer's host name resolved");
            self.resolved.insert(name, address);
            self.load(now);
            self.endpoint.handle_timeout(now);
        }
    }

    fn peer_of(&self, connection: &Connection) -> Option<IpAddr> {
        match &connection.remote {
            Remote::Known(RemoteAddress::Address(address)) => Some(*address),
            Remote::Known(RemoteAddress::Any) => None,
            Remote::Host(name) => self.resolved.get(name).copied(),
        }
    }

    /// Tells the endpoint which of the host's addresses it sends from towards each peer.
    pub fn refresh_sources(&mut self) {
        let unbound = self
            .config
            .connections
            .iter()
            .filter(|connection| connection.settings().local_address.is_none());
        let peers: HashSet<IpAddr> = unbound
            .filter_map(|connection| self.peer_of(connection))
            .collect();
        for peer in peers {
            self.endpoint.set_source(peer, source_towards(peer));
        }
    }

    /// Names of the plaintext interfaces.
    pub fn tunnels(&self) -> Vec<String> {
        let engines = self.plane.engines.iter();
        engines
            .filter_map(|engine| engine.interface.clone())
            .collect()
    }

    /// The host's addresses or routes changed: IKE SAs that can move with them.
    pub fn host_changed(&mut self, now: Instant, addresses: Vec<IpAddr>) {
        self.refresh_sources();
        self.endpoint.set_addresses(now, addresses, source_towards);
    }

    /// Keeps the way to peers inside their own protected subnets out of the tunnel.
    fn exempt_peers(&mut self) {
        let peers: HashSet<IpAddr> = self
            .config
            .connections
            .iter()
            // Nothing is routed into a tunnel in transport mode.
            .filter(|connection| connection.settings().mode == Mode::Tunnel)
            .filter_map(|connection| {
                let peer = self.peer_of(connection)?;
                let remote = &connection.settings().remote_ts;
                let inside = |ts: &TrafficSelector| {
                    ts.start.is_ipv4() == peer.is_ipv4() && ts.start <= peer && peer <= ts.end
                };
                remote.iter().any(inside).then_some(peer)
            })
            .collect();
        for peer in peers {
            if let Err(error) = self.plane.backend.exempt_peer(peer) {
                tracing::warn!(%peer, %error, "cannot keep the way to the peer out of the tunnel");
            }
        }
    }

    /// Says what time of day it is at `now`, since 1970.
    pub fn set_wall_clock(&mut self, now: Instant, since_1970: Duration) {
        self.endpoint.set_wall_clock(now, since_1970);
    }

    /// The next host name that a redirect leads to.
    pub fn poll_lookup(&mut self) -> Option<Lookup> {
        self.endpoint.poll_lookup()
    }

    /// It was looked up.
    pub fn looked_up(&mut self, now: Instant, lookup: &Lookup, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.endpoint.set_source(address, source_towards(address));
        }
        self.endpoint.handle_lookup(now, lookup, address);
    }

    /// The next question to a server about a certificate.
    pub fn poll_inquiry(&mut self) -> Option<Question> {
        self.endpoint.poll_inquiry()
    }

    /// A server answered, or cannot be asked.
    pub fn answer(&mut self, now: Instant, inquiry: &Inquiry, reply: Result<Vec<u8>, String>) {
        let uri = inquiry.uri();
        match &reply {
            Ok(octets) => tracing::debug!(%uri, octets = octets.len(), "a server answered"),
            Err(error) => tracing::warn!(%uri, "cannot ask about certificates: {error}"),
        }
        let reply = reply.as_deref().map_err(Clone::clone);
        self.endpoint.handle_answer(now, inquiry, reply);
    }

    /// A datagram on the IKE port.
    pub fn datagram(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) {
        self.endpoint.handle_datagram(now, local, remote, payload);
    }

    /// Something the data plane reports.
    pub fn event(&mut self, now: Instant, event: &Event) {
        match event {
            Event::Acquire {
                connection,
                source,
                destination,
            } => {
                tracing::debug!(%connection, %source, %destination, "a packet needs an SA");
                self.refresh_sources();
            }
            Event::IkeDatagram { .. } => {}
            event => tracing::debug!(?event, "data plane"),
        }
        self.endpoint.handle_event(now, event);
    }

    /// When [`Self::timeout`] is next needed.
    pub fn deadline(&self) -> Option<Instant> {
        self.endpoint.poll_timeout()
    }

    /// Does what is due.
    pub fn timeout(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
    }

    /// Tells the endpoint which peers were heard of lately, so that it need not ask them.
    pub fn report_traffic(&mut self, now: Instant) {
        if self.installed.is_empty() {
            return;
        }
        match self.plane.backend.sa_stats() {
            Ok(pairs) => {
                for pair in pairs {
                    if let Some(last) = pair.inbound.last_used {
                        self.endpoint.handle_traffic(now, pair.id, last);
                    }
                    self.endpoint.handle_volume(now, &pair);
                }
            }
            Err(error) => tracing::warn!(%error, "data plane: no statistics"),
        }
    }

    /// Carries out everything the endpoint wants, sending datagrams through `send`.
    pub fn drive(&mut self, now: Instant, mut send: impl FnMut(&Transmit)) {
        loop {
            let mut idle = true;
            // Commands first: an SA is ready to receive before the peer learns of it.
            while let Some(command) = self.endpoint.poll_command() {
                idle = false;
                self.carry_out(command);
            }
            while let Some(notice) = self.endpoint.poll_notice() {
                idle = false;
                self.tell(now, &notice);
            }
            // A message that a successor would not know of must not have been sent.
            self.store();
            while let Some(transmit) = self.endpoint.poll_transmit() {
                idle = false;
                send(&transmit);
            }
            for connection in std::mem::take(&mut self.failed) {
                idle = false;
                // It is configured, or its SA would not have been there to be installed.
                let _ = self.endpoint.terminate(now, &connection);
            }
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        let connection = match &command {
            Command::InstallPolicy(policy) => Some(policy.connection.clone()),
            Command::RemovePolicy { connection } => Some(connection.clone()),
            Command::InstallSa(sa) | Command::RekeySa { new: sa, .. } => {
                Some(sa.connection.clone())
            }
            Command::RemoveSa { id } | Command::Retire { id } | Command::MovePath { id, .. } => {
                self.installed.get(id).map(|known| known.connection.clone())
            }
        };
        let what = describe(&command);
        let new = match &command {
            Command::InstallSa(sa) | Command::RekeySa { new: sa, .. } => Some((
                sa.id,
                Installed {
                    connection: sa.connection.clone(),
                    mode: sa.mode,
                },
            )),
            Command::RemoveSa { id } => {
                // A pair the data plane refused is not there to be removed.
                if self.installed.remove(id).is_none() {
                    return;
                }
                None
            }
            Command::Retire { id } if !self.installed.contains_key(id) => return,
            _ => None,
        };
        let heals = new.is_some() || matches!(command, Command::InstallPolicy(_));
        let result = self.plane.backend.apply(command);
        match (result, connection) {
            (Ok(()), connection) => {
                tracing::debug!(connection = connection.as_deref(), "data plane: {what}");
                if let Some(connection) = connection.filter(|_| heals) {
                    self.plane_errors.remove(&connection);
                }
                self.installed.extend(new);
            }
            (Err(error), None) => tracing::error!("data plane: cannot {what}: {error}"),
            (Err(error), Some(connection)) => {
                tracing::error!(
                    connection = &*connection,
                    "data plane: cannot {what}: {error}"
                );
                let error = LastError {
                    kind: "DATAPLANE".to_owned(),
                    summary: format!("the data plane cannot {what}: {error}"),
                    details: Vec::new(),
                    fix: None,
                };
                self.finish(
                    &connection,
                    true,
                    &Answer::Refused {
                        error: error.clone(),
                    },
                );
                if new.is_some() {
                    self.failed.push(connection.clone());
                }
                self.plane_errors.insert(connection, error);
            }
        }
    }

    /// Logs a notice and tells whoever waits for it.
    fn tell(&mut self, now: Instant, notice: &Notice) {
        log::notice(notice);
        if let Notice::Established {
            initiator_spi,
            elapsed,
            ..
        } = notice
        {
            // The endpoint's clock stands still while it computes, which is most of a handshake.
            self.establish
                .insert(*initiator_spi, *elapsed + now.elapsed());
        }
        if let (
            Notice::VirtualAddresses {
                connection, dns, ..
            },
            Some(resolvers),
        ) = (notice, &self.resolvers)
        {
            resolvers.write(connection, dns);
        }
        let Some(connection) = notice.connection().cloned() else {
            return;
        };
        match notice {
            Notice::ChildUp { .. } => {
                let message = format!("{connection}: established; {notice}");
                self.finish(&connection, true, &Answer::Done { message });
            }
            Notice::Refused(refusal) => {
                self.finish(
                    &connection,
                    true,
                    &Answer::Refused {
                        error: refusal.as_ref().into(),
                    },
                );
            }
            Notice::Down { reason, .. } => {
                // A refusal is told by its own notice, with its reasons.
                if *reason != DownReason::Refused && *reason != DownReason::Replaced {
                    let message = format!("{connection}: {notice}");
                    self.finish(&connection, true, &Answer::Failed { message });
                }
                self.finish(
                    &connection,
                    false,
                    &Answer::Done {
                        message: format!("{connection}: down"),
                    },
                );
            }
            _ => {
                let message = format!("{connection}: {notice}");
                for waiter in self
                    .waiters
                    .iter()
                    .filter(|waiter| waiter.connection == connection)
                {
                    waiter.tell(Answer::Progress {
                        message: message.clone(),
                    });
                }
            }
        }
    }

    fn finish(&mut self, connection: &Arc<str>, up: bool, answer: &Answer) {
        self.waiters.retain(|waiter| {
            let concerned = waiter.connection == *connection && waiter.up == up;
            if concerned {
                waiter.tell(answer.clone());
            }
            !concerned && !waiter.answers.is_closed()
        });
    }

    /// Carries a client's request out. `Reload` is not handled here: it needs the file.
    pub fn call(&mut self, now: Instant, request: Request, answers: mpsc::Sender<Answer>) {
        let answer = match request {
            Request::Up { connection, wait } => self.up(now, &connection, wait, &answers),
            Request::Down { connection, wait } => self.down(now, &connection, wait, &answers),
            Request::Status { connection } => Some(self.status(now, connection.as_deref())),
            Request::Reload => None,
        };
        if let Some(answer) = answer {
            let _ = answers.try_send(answer);
        }
    }

    fn up(
        &mut self,
        now: Instant,
        name: &str,
        wait: bool,
        answers: &mpsc::Sender<Answer>,
    ) -> Option<Answer> {
        self.refresh_sources();
        if let Some(host) = self.unresolved_host(name) {
            return Some(Answer::Failed {
                message: format!("{name}: the peer's host name {host} has no address yet"),
            });
        }
        match self.endpoint.initiate(now, name) {
            Ok(()) if wait => {
                self.waiters.push(Waiter {
                    connection: name.into(),
                    up: true,
                    answers: answers.clone(),
                });
                None
            }
            Ok(()) => Some(Answer::Done {
                message: format!("{name}: initiated"),
            }),
            Err(InitiateError::AlreadyUp(_)) => Some(Answer::Done {
                message: format!("{name}: established already"),
            }),
            Err(error) => Some(self.failure(&error)),
        }
    }

    fn down(
        &mut self,
        now: Instant,
        name: &str,
        wait: bool,
        answers: &mpsc::Sender<Answer>,
    ) -> Option<Answer> {
        let running = self.endpoint.has_sas(name);
        match self.endpoint.terminate(now, name) {
            Ok(()) if !running => Some(Answer::Done {
                message: format!("{name}: was down"),
            }),
            Ok(()) if wait => {
                self.waiters.push(Waiter {
                    connection: name.into(),
                    up: false,
                    answers: answers.clone(),
                });
                None
            }
            Ok(()) => Some(Answer::Done {
                message: format!("{name}: going down"),
            }),
            Err(error) => Some(self.failure(&error)),
        }
    }

    fn failure(&self, error: &InitiateError) -> Answer {
        let mut message = error.to_string();
        if matches!(error, InitiateError::Unknown(_)) {
            let names: Vec<&str> = self
                .config
                .connections
                .iter()
                .map(|connection| &**connection.name())
                .collect();
            message.push_str(&format!("; there are: {}", names.join(", ")));
        }
        Answer::Failed { message }
    }

    fn unresolved_host(&self, name: &str) -> Option<&str> {
        let connection = self
            .config
            .connections
            .iter()
            .find(|connection| &**connection.name() == name)?;
        match &connection.remote {
            Remote::Host(host) if !self.resolved.contains_key(host) => Some(host),
            _ => None,
        }
    }

    /// Tells every peer that its SAs are deleted.
    pub fn stop(&mut self, now: Instant) {
        self.stopping = true;
        let names: Vec<Arc<str>> = self
            .config
            .connections
            .iter()
            .map(|connection| connection.name().clone())
            .collect();
        for name in names {
            // The one error there can be is a connection whose peer has no address: nothing to delete.
            let _ = self.endpoint.terminate(now, &name);
        }
    }

    /// After [`Self::stop`]: whether every peer has answered or been given up.
    pub fn is_stopped(&self) -> bool {
        self.stopping && !self.endpoint.has_any_sas()
    }

    fn status(&mut self, now: Instant, name: Option<&str>) -> Answer {
        let mut report = self.report(now);
        if let Some(name) = name {
            report
                .connections
                .retain(|connection| connection.name == name);
            if report.connections.is_empty() {
                return self.failure(&InitiateError::Unknown(name.to_owned()));
            }
        }
        Answer::Status {
            report: Box::new(report),
        }
    }
}

fn describe(command: &Command) -> String {
    match command {
        Command::InstallPolicy(policy) => {
            format!(
                "protect {} to {}",
                format_list(&policy.local_ts),
                format_list(&policy.remote_ts)
            )
        }
        Command::RemovePolicy { .. } => "stop protecting the connection's subnets".to_owned(),
        Command::InstallSa(sa) => format!("install child SA {} ({})", sa.id.0, sa.suite),
        Command::RekeySa { old, new, .. } => {
            format!("replace child SA {} by {} ({})", old.0, new.id.0, new.suite)
        }
        Command::Retire { id } => format!("retire child SA {}", id.0),
        Command::RemoveSa { id } => format!("remove child SA {}", id.0),
        Command::MovePath { id, path } => format!("move child SA {} to {}", id.0, path.remote),
    }
}

/// The address the host sends from towards a peer: what a connected socket is given.
fn source_towards(peer: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match peer {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((peer, 500)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
