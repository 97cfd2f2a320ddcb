//! The daemon: one loop between sockets, data plane, control socket, signals and time, with
//! [`gateway::Gateway`] in the middle.

mod engine;
mod fetch;
pub mod gateway;
mod instance;
pub mod plane;
mod report;
mod resolvers;
pub mod sockets;
mod takeover;
#[cfg(test)]
mod tests;
mod wan;
mod watch;

pub use wan::interfaces as wan_interfaces;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use espada_common::sa::Event;
use espada_dataplane::backend::EventSink;
use espada_ike::{Lookup, Random, Transmit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::Exit;
use crate::config::{self, GatewayConfig, SecretsPolicy};
use crate::control::{Answer, Call, Request, Server};
use crate::syscall;
use fetch::{Fetched, Fetcher};
use gateway::Gateway;
use instance::Instance;
use sockets::{Listen, Sockets};
use watch::Watch;

/// Events of the data plane that wait for the loop; IKE datagrams beyond are lost as in a full socket.
const EVENTS: usize = 4096;
/// Control requests that wait for the loop.
const CALLS: usize = 32;
/// How often proof of life is fetched from the data plane, and the routes to the peers are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// How often peers' host names are looked up.
const LOOKUPS: Duration = Duration::from_secs(60);
/// How long peers have to answer the deletion of their SAs when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// The kernel's randomness.
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, buffer: &mut [u8]) {
        if let Err(error) = getrandom::fill(buffer) {
            // No key may ever be made of anything else.
            tracing::error!(%error, "the kernel gives no random numbers");
            std::process::abort();
        }
    }
}

/// Runs a daemon until it is told to stop.
pub fn run(config_file: &Path, runtime_dir: &Path) -> anyhow::Result<Exit> {
    let config = match config::load(config_file, SecretsPolicy::Required) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("the configuration is refused\n{error}");
            return Ok(Exit::Failure);
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let instance = match Instance::lock(runtime_dir) {
        Ok(instance) => instance,
        Err(error) => {
            tracing::error!("{error}");
            return Ok(Exit::Daemon);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exit = runtime.block_on(start(config, &instance));
    // Servers and resolvers that do not answer are not waited for.
    runtime.shutdown_background();
    exit
}

async fn start(config: GatewayConfig, instance: &Instance) -> anyhow::Result<Exit> {
    let sockets = match Sockets::bind(&Listen::everywhere(
        config.endpoint.port,
        config.endpoint.nat_port,
    )) {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::error!("{error}");
            return Ok(Exit::Failure);
        }
    };
    syscall::protect_memory()?;
    let prepared = match engine::prepare(&config, instance.directory()) {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!("the data plane cannot start: {error:#}");
            return Ok(Exit::Failure);
        }
    };
    syscall::drop_privileges(config.dataplane.realtime)?;

    let (sink, events) = event_channel();
    let plane = match engine::start(&config, prepared, sockets.clone_nat()?, sink) {
        Ok(plane) => plane,
        Err(error) => {
            tracing::error!("the data plane cannot start: {error:#}");
            return Ok(Exit::Failure);
        }
    };
    let server = Server::bind(instance.directory())?;
    let (now, boot) = (Instant::now(), syscall::boot_time()?);
    let mut gateway = Gateway::new(now, boot, config, SystemRandom, plane);
    gateway.set_runtime_directory(instance.directory());
    let fetching = Fetcher::new(instance.directory());
    serve(gateway, sockets, events, server, fetching).await?;
    Ok(Exit::Success)
}

/// A sink for the data plane's threads and the loop's end of it.
pub fn event_channel() -> (EventSink, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(EVENTS);
    let lost = AtomicU64::new(0);
    let sink = Arc::new(move |event| {
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(event) {
            let lost = lost.fetch_add(1, Ordering::Relaxed) + 1;
            // Under a flood, a line for each would be a flood of its own.
            if lost.is_power_of_two() {
                tracing::warn!(
                    lost,
                    "the daemon cannot keep up with the data plane's events"
                );
            }
        }
    });
    (sink, events)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

enum Input {
    Datagrams(Vec<sockets::Datagram>),
    Event(Event),
    Call(Call),
    Lookup(String, IpAddr),
    LookedUp(Lookup, Option<IpAddr>),
    Fetched(Fetched),
    Stop,
    Reload,
    Timeout,
    Housekeeping,
    Moved,
}

/// Runs the loop until SIGTERM or SIGINT, then tells the peers good-bye.
async fn serve<R: Random>(
    mut gateway: Gateway<R>,
    mut sockets: Sockets,
    mut events: mpsc::Receiver<Event>,
    server: Server,
    (mut fetcher, mut fetched): (Fetcher, mpsc::Receiver<Fetched>),
) -> anyhow::Result<()> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup: signal(SignalKind::hangup())?,
    };
    let (call_sender, mut calls) = mpsc::channel(CALLS);
    let (found_sender, mut found) = mpsc::channel(16);
    let (led_sender, mut led) = mpsc::channel(16);
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_lookup: Option<Instant> = None;
    let mut farewell: Option<Instant> = None;
    let serving = server.run(call_sender);
    tokio::pin!(serving);
    let mut ready = false;
    let mut watch = Watch::open(gateway.tunnels())?;

    let mut now = Instant::now();
    look_around(&mut gateway, &mut watch, now);
    loop {
        gateway.drive(now, |transmit| send(&sockets, transmit));
        while let Some(question) = gateway.poll_inquiry() {
            fetcher.fetch(question);
        }
        while let Some(lookup) = gateway.poll_lookup() {
            tokio::spawn(follow(lookup, led_sender.clone()));
        }
        if !ready {
            ready = true;
            gateway.settle();
            let config = gateway.config();
            tracing::info!(connections = config.connections.len(), config = %config.file.display(), "Espada {} is ready", env!("CARGO_PKG_VERSION"));
            instance::notify_ready();
        }
        if let Some(until) = farewell
            && (gateway.is_stopped() || Instant::now() >= until)
        {
            gateway.forget();
            tracing::info!("stopped");
            return Ok(());
        }
        let deadline = [gateway.deadline(), farewell].into_iter().flatten().min();
        let input = tokio::select! {
            datagrams = sockets.receive() => Input::Datagrams(datagrams),
            Some(event) = events.recv() => Input::Event(event),
            Some(call) = calls.recv() => Input::Call(call),
            Some((host, address)) = found.recv() => Input::Lookup(host, address),
            Some((lookup, address)) = led.recv() => Input::LookedUp(lookup, address),
            Some(answer) = fetched.recv() => Input::Fetched(answer),
            _ = signals.terminate.recv() => Input::Stop,
            _ = signals.interrupt.recv() => Input::Stop,
            _ = signals.hangup.recv() => Input::Reload,
            () = until(deadline) => Input::Timeout,
            _ = housekeeping.tick() => Input::Housekeeping,
            () = watch.changed() => Input::Moved,
            () = &mut serving => anyhow::bail!("the control socket stopped"),
        };
        now = Instant::now();
        gateway.set_wall_clock(now, time_of_day());
        match input {
            Input::Datagrams(datagrams) => {
                for datagram in datagrams {
                    gateway.datagram(now, datagram.local, datagram.remote, &datagram.payload);
                    // One at a time: the answer to the first may matter to the second.
                    gateway.drive(now, |transmit| send(&sockets, transmit));
                }
            }
            Input::Event(event) => gateway.event(now, &event),
            Input::Call(Call {
                request: Request::Reload,
                answers,
            }) => {
                let answer = match reload(&mut gateway, now) {
                    Ok(message) => Answer::Done { message },
                    Err(message) => Answer::Failed { message },
                };
                let _ = answers.try_send(answer);
            }
            Input::Call(call) => gateway.call(now, call.request, call.answers),
            Input::Lookup(host, address) => gateway.resolve(now, host, address),
            Input::LookedUp(lookup, address) => gateway.looked_up(now, &lookup, address),
            Input::Fetched(Fetched { inquiry, reply }) => gateway.answer(now, &inquiry, reply),
            Input::Stop if farewell.is_some() => {
                gateway.forget();
                tracing::info!("stopped without waiting for the peers");
                return Ok(());
            }
            Input::Stop => {
                tracing::info!("stopping: telling the peers");
                farewell = Some(now + FAREWELL);
                gateway.stop(now);
            }
            Input::Reload => {
                let _ = reload(&mut gateway, now);
                last_lookup = None;
            }
            Input::Timeout => gateway.timeout(now),
            Input::Moved => look_around(&mut gateway, &mut watch, now),
            Input::Housekeeping => {
                gateway.report_traffic(now);
                gateway.refresh_sources();
                if last_lookup.is_none_or(|last| now.saturating_duration_since(last) >= LOOKUPS) {
                    last_lookup = Some(now);
                    for (host, family) in gateway.hosts() {
                        tokio::spawn(look_up(host, family, found_sender.clone()));
                    }
                }
            }
        }
    }
}

/// Tells the gateway which addresses the host has.
fn look_around<R: Random>(gateway: &mut Gateway<R>, watch: &mut Watch, now: Instant) {
    match watch.addresses() {
        Ok(addresses) => gateway.host_changed(now, addresses),
        Err(error) => tracing::warn!(%error, "the host's addresses are not known"),
    }
}

/// Since 1970; a clock that is set to before counts as 1970, when no certificate is valid.
fn time_of_day() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn send(sockets: &Sockets, transmit: &Transmit) {
    if let Err(error) = sockets.send(transmit) {
        // As good as lost on the way: the endpoint sends it again.
        tracing::debug!(local = %transmit.local, remote = %transmit.remote, %error, "cannot send");
    }
}

fn reload<R: Random>(gateway: &mut Gateway<R>, now: Instant) -> Result<String, String> {
    match config::load(&gateway.config().file, SecretsPolicy::Required) {
        Ok(config) => {
            for warning in &config.warnings {
                tracing::warn!("{warning}");
            }
            let message = gateway.reload(now, config);
            tracing::info!("{message}");
            Ok(message)
        }
        Err(error) => {
            tracing::error!("the new configuration is refused, the running one stays\n{error}");
            Err(format!(
                "the new configuration is refused, the running one stays\n{error}"
            ))
        }
    }
}

/// Looks a peer's host name up; failures are logged and repeated with the next round.
async fn look_up(host: String, family: Option<bool>, found: mpsc::Sender<(String, IpAddr)>) {
    match address_of(&host, family).await {
        Ok(Some(address)) => {
            // The loop has ended if nobody listens.
            let _ = found.send((host, address)).await;
        }
        Ok(None) => {
            tracing::warn!(%host, "the peer's host name has no address of the family of local.address")
        }
        Err(error) => tracing::warn!(%host, %error, "cannot look the peer's host name up"),
    }
}

/// Looks the host name up that a redirect leads to.
async fn follow(lookup: Lookup, led: mpsc::Sender<(Lookup, Option<IpAddr>)>) {
    let host = lookup.host.clone();
    let address = address_of(&host, Some(lookup.from.is_ipv4())).await;
    let address = address.unwrap_or_else(|error| {
        tracing::warn!(%host, %error, "cannot look the gateway up that a redirect leads to");
        None
    });
    let _ = led.send((lookup, address)).await;
}

/// The first address of a host, of one family (true: IPv4) or any.
async fn address_of(host: &str, family: Option<bool>) -> std::io::Result<Option<IpAddr>> {
    let fits = |address: &IpAddr| family.is_none_or(|v4| address.is_ipv4() == v4);
    let mut addresses = tokio::net::lookup_host((host, 500)).await?;
    let address = addresses.by_ref().map(|address| address.ip()).find(fits);
    Ok(address)
}
