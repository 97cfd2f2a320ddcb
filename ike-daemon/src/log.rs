//! Logs on standard error: one line an event for people, or JSON for machines.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use espada_ike::{Notice, Severity};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::status::{encapsulation_name, mode_name};

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Time, level, connection, sentence, further fields as key=value.
    Human,
    /// One JSON object a line.
    Json,
}

/// Target of the events made from notices, whose sentence already holds their fields.
const NOTICE: &str = "espada::notice";

/// Starts logging. `filter` is a level or a filter such as `info,espada_dataplane=debug`.
pub fn start(format: Format, filter: &str) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("--log-level {filter}: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
        Format::Human => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).event_format(Human).try_init()
        }
    };
    started.map_err(|error| error.to_string())
}

struct Human;

#[derive(Default)]
struct Fields {
    message: String,
    connection: Option<String>,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "connection" => self.connection = Some(format!("{value:?}")),
            name => {
                let _ = write!(self.others, " {name}={value:?}");
            }
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "connection" => self.connection = Some(value.to_owned()),
            name => {
                let _ = write!(self.others, " {name}={value:?}");
            }
        }
    }
}

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        SystemTime.format_time(&mut writer)?;
        let level = *metadata.level();
        if writer.has_ansi_escapes() {
            let colour = match level {
                Level::ERROR => 31,
                Level::WARN => 33,
                Level::INFO => 32,
                _ => 36,
            };
            write!(writer, " \x1b[{colour}m{level:<5}\x1b[0m ")?;
        } else {
            write!(writer, " {level:<5} ")?;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(connection) = &fields.connection {
            write!(writer, "{connection}: ")?;
        }
        // What peers send never reaches a terminal as control characters.
        for c in fields.message.chars() {
            if c.is_control() && c != '\n' && c != '\t' {
                write!(writer, "{}", c.escape_default())?;
            } else {
                writer.write_char(c)?;
            }
        }
        if metadata.target() != NOTICE {
            writer.write_str(&fields.others)?;
        }
        writeln!(writer)
    }
}

/// Logs what the endpoint tells. A refusal takes several lines for people: the comparison and the cure.
pub fn notice(notice: &Notice) {
    let connection = notice.connection().map(|name| &**name);
    macro_rules! emit {
        ($event:literal $($fields:tt)*) => {
            match notice.severity() {
                Severity::Debug => tracing::debug!(target: NOTICE, connection, event = $event $($fields)*, "{notice}"),
                Severity::Info => tracing::info!(target: NOTICE, connection, event = $event $($fields)*, "{notice}"),
                Severity::Warning => tracing::warn!(target: NOTICE, connection, event = $event $($fields)*, "{notice}"),
            }
        };
    }
    match notice {
        Notice::Initiated { local, remote, .. } => {
            emit!("initiated", local = %local, remote = %remote)
        }
        Notice::Retransmitting {
            exchange,
            sent,
            of,
            remote,
            ..
        } => {
            emit!("retransmitting", exchange = %exchange, sent = sent, of = of, remote = %remote);
        }
        Notice::UdpAgreed { peer, .. } => emit!("udp_agreed", remote = %peer),
        Notice::NatDetected {
            local,
            remote,
            peer,
            ..
        } => {
            emit!("nat_detected", nat_local = local, nat_remote = remote, remote = %peer);
        }
        Notice::Established {
            role,
            initiator_spi,
            responder_spi,
            suite,
            local,
            remote,
            local_id,
            remote_id,
            elapsed,
            ..
        } => emit!(
            "established",
            role = %role,
            spi_initiator = format!("{initiator_spi:016x}"),
            spi_responder = format!("{responder_spi:016x}"),
            suite = %suite,
            local = %local,
            remote = %remote,
            local_id = %local_id,
            remote_id = %remote_id,
            elapsed_ms = elapsed.as_millis() as u64
        ),
        Notice::ChildUp {
            id,
            suite,
            spi_in,
            spi_out,
            encapsulation,
            mode,
            share,
            elapsed,
            ..
        } => emit!(
            "child_up",
            child = id.0,
            suite = %suite,
            spi_in = format!("{spi_in:#010x}"),
            spi_out = format!("{spi_out:#010x}"),
            encapsulation = encapsulation_name(*encapsulation),
            mode = mode_name(*mode),
            share = %share,
            elapsed_ms = elapsed.as_millis() as u64
        ),
        Notice::TakenOver {
            role,
            initiator_spi,
            responder_spi,
            local,
            remote,
            children,
            ..
        } => emit!(
            "taken_over",
            role = %role,
            spi_initiator = format!("{initiator_spi:016x}"),
            spi_responder = format!("{responder_spi:016x}"),
            local = %local,
            remote = %remote,
            children = children.len()
        ),
        Notice::NotSaved { limit, .. } => emit!("not_saved", limit = limit),
        Notice::ChildDown { id, reason, .. } => emit!("child_down", child = id.0, reason = %reason),
        Notice::Down { remote, reason, .. } => emit!("down", remote = %remote, reason = %reason),
        Notice::PeerMoved { from, to, .. } => emit!("peer_moved", from = %from, to = %to),
        Notice::Redirected { from, to, .. } => emit!("redirected", from = %from, to = %to),
        Notice::Moved { from, to, .. } => emit!("moved", from = %from, to = %to),
        Notice::MoveRefused { notify, .. } => emit!("move_refused", notify = %notify),
        Notice::VirtualAddresses { addresses, dns, .. } => {
            emit!("virtual_addresses", addresses = ?addresses, dns = ?dns)
        }
        Notice::SinglePairs { notify, .. } => emit!("single_pairs", notify = %notify),
        Notice::SharesRefused { notify, .. } => emit!("shares_refused", notify = %notify),
        Notice::Inquiring { uri, .. } => emit!("inquiring", uri = %uri),
        Notice::RevocationUnknown { doubt, .. } => emit!("revocation_unknown", doubt = %doubt),
        Notice::Refused(refusal) => emit!(
            "refused",
            kind = refusal.kind.name(),
            summary = %refusal.summary,
            details = refusal.details.join("\n"),
            fix = refusal.fix.as_ref().map(ToString::to_string)
        ),
        Notice::RetryScheduled { after, .. } => {
            emit!("retry_scheduled", after_ms = after.as_millis() as u64)
        }
        Notice::GaveUp { tries, .. } => emit!("gave_up", tries = tries),
        Notice::IkeV1 { remote } => emit!("ikev1", remote = %remote),
        Notice::UnauthenticatedError { remote, notify, .. } => {
            emit!("unauthenticated_error", remote = %remote, notify = %notify);
        }
        Notice::CookiesDemanded { half_open } => emit!("cookies_demanded", half_open = half_open),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_for_people() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Human)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(engine = "userspace", "ready");
            notice(&Notice::RetryScheduled {
                connection: "azure".into(),
                after: std::time::Duration::from_secs(2),
            });
            tracing::warn!(connection = "azure", "peer says \x1b[2J\nsecond line");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.split_once("Z ").map_or(line, |(_, rest)| rest))
            .collect();
        assert_eq!(
            lines,
            [
                "INFO  ready engine=\"userspace\"",
                "INFO  azure: trying again in 2 s",
                "WARN  azure: peer says \\u{1b}[2J",
                "second line"
            ]
        );
    }
}
