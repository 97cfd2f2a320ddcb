//! The command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use espada_common::sa::EspSuite;
use espada_dataplane::bench;

use crate::config::{self, SecretsPolicy};
use crate::control::{self, Answer, Request};
use crate::daemon;
use crate::doctor;
use crate::log::{self, Format};
use crate::pki::{self, Pki};

/// How an `espada` command ends. Usage errors are 2, as clap has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// The configuration was refused, or something failed; standard error says what.
    Failure = 1,
    /// No daemon answers in the runtime directory, or one is already there.
    Daemon = 3,
    /// The negotiation was refused or nobody answered.
    Refused = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the configuration is refused, or something failed: standard error says what
  2  wrong usage
  3  no daemon answers in the runtime directory, or one already runs there
  4  the negotiation was refused, or the peer did not answer";

/// IKEv2/IPsec gateway whose ESP data plane stands behind XDP.
#[derive(Parser)]
#[command(name = "espada", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Runtime {
    /// Where the daemon keeps its lock and control socket; one for each daemon of a machine.
    #[arg(long, value_name = "DIR", default_value = "/run/espada")]
    runtime_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground until SIGTERM or SIGINT; SIGHUP reads the configuration again.
    Daemon {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/espada/espada.toml")]
        config: PathBuf,
        #[command(flatten)]
        runtime: Runtime,
        /// How the log on standard error is written.
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Human)]
        log_format: Format,
        /// error, warn, info, debug, trace, or a filter such as `info,espada_dataplane=debug`.
        #[arg(long, value_name = "LEVEL", default_value = "info")]
        log_level: String,
    },
    /// Set a connection up and say how it went.
    Up {
        /// The connection.
        name: String,
        #[command(flatten)]
        runtime: Runtime,
        /// Return at once instead of when it is up or refused.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a connection down.
    Down {
        /// The connection.
        name: String,
        #[command(flatten)]
        runtime: Runtime,
        /// Return at once instead of when the peer has been told.
        #[arg(long)]
        no_wait: bool,
    },
    /// Show connections, SAs, counters, drops with their reasons, and what went wrong last.
    Status {
        /// Only this connection.
        name: Option<String>,
        #[command(flatten)]
        runtime: Runtime,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Make the daemon read its configuration again; errors leave the running one in place.
    Reload {
        #[command(flatten)]
        runtime: Runtime,
    },
    /// Check a configuration file and show how it is understood. Needs no root.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Tell what this host can do for Espada, which engines work, and what to change. Changes nothing.
    Doctor {
        /// Interfaces towards the peers; without any, the configuration's, or those with a default
        /// route.
        #[arg(value_name = "IFACE")]
        interfaces: Vec<String>,
        /// Look at what this configuration needs.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Make a small authority, keys and certificates; show what is in their files.
    Pki {
        #[command(subcommand)]
        what: Pki,
    },
    /// Measure parts of the data plane on this machine.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Show the version.
    Version,
}

#[derive(Subcommand)]
enum Bench {
    /// The userspace engine: ESP encapsulation and decapsulation of bursts in memory, on one core.
    Engine {
        #[command(flatten)]
        measured: Measured,
        /// One SA on so many processors at once, beside one processor.
        #[arg(long, value_name = "N")]
        lanes: Option<usize>,
    },
    /// Its ciphers alone, with the instructions that this processor has for each.
    Crypto(Measured),
    /// What the number of SAs costs in the userspace engine: per packet, and to install them.
    Sas {
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// How long to measure, everything but the installing together.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
        seconds: u16,
        /// ESP suite.
        #[arg(long, value_name = "NAME", default_value = "aes256gcm16", value_parser = bench::suite)]
        suite: EspSuite,
        /// Numbers of SAs, up to a million.
        #[arg(long = "sas", value_name = "N,…", value_delimiter = ',', default_value = "1,100,1000,10000,100000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        counts: Vec<u32>,
    },
}

#[derive(clap::Args)]
struct Measured {
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// How long to measure, everything together.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Only this ESP suite, such as aes256gcm16; may be repeated.
    #[arg(long = "suite", value_name = "NAME", value_parser = bench::suite)]
    suites: Vec<EspSuite>,
}

/// Runs the program with the arguments it was started with.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // `espada status | head` is no error.
            if let Some(error) = error.downcast_ref::<io::Error>()
                && error.kind() == io::ErrorKind::BrokenPipe
            {
                return Exit::Success.into();
            }
            eprintln!("espada: {error:#}");
            Exit::Failure.into()
        }
    }
}

fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Daemon {
            config,
            runtime,
            log_format,
            log_level,
        } => {
            log::start(log_format, &log_level).map_err(anyhow::Error::msg)?;
            daemon::run(&config, &runtime.runtime_dir)
        }
        Command::Up {
            name,
            runtime,
            no_wait,
        } => ask(
            &runtime.runtime_dir,
            &Request::Up {
                connection: name,
                wait: !no_wait,
            },
        ),
        Command::Down {
            name,
            runtime,
            no_wait,
        } => ask(
            &runtime.runtime_dir,
            &Request::Down {
                connection: name,
                wait: !no_wait,
            },
        ),
        Command::Status {
            name,
            runtime,
            json,
        } => status(&runtime.runtime_dir, name, json),
        Command::Reload { runtime } => ask(&runtime.runtime_dir, &Request::Reload),
        Command::Check { file } => check(&file),
        Command::Doctor {
            interfaces,
            config,
            json,
        } => examine(&interfaces, config.as_deref(), json),
        Command::Bench {
            what: Bench::Engine { measured, lanes },
        } => match lanes {
            Some(lanes) => measure(
                measured,
                |options| bench::lanes(options, lanes),
                |rows| bench::LanesTable(rows).to_string(),
            ),
            None => measure(measured, bench::engine, table),
        },
        Command::Bench {
            what: Bench::Crypto(measured),
        } => measure(measured, bench::crypto, table),
        Command::Bench {
            what:
                Bench::Sas {
                    json,
                    seconds,
                    suite,
                    counts,
                },
        } => {
            let counts: Vec<usize> = counts.iter().map(|count| *count as usize).collect();
            let rows = bench::sas(suite, &counts, Duration::from_secs(seconds.into()))?;
            show(json, &rows, |rows| bench::SaTable(rows).to_string())
        }
        Command::Pki { what } => {
            write!(io::stdout(), "{}", pki::run(&what)?)?;
            Ok(Exit::Success)
        }
        Command::Version => {
            writeln!(io::stdout(), "espada {}", env!("CARGO_PKG_VERSION"))?;
            Ok(Exit::Success)
        }
    }
}

fn check(file: &Path) -> anyhow::Result<Exit> {
    match config::load(file, SecretsPolicy::IfReadable) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("{warning}");
            }
            write!(io::stdout(), "{}", config.summary())?;
            Ok(Exit::Success)
        }
        Err(error) => {
            eprintln!("{error}");
            Ok(Exit::Failure)
        }
    }
}

/// Asks the daemon; a failure to reach it is told, with what to do.
fn converse(runtime_dir: &Path, request: &Request) -> anyhow::Result<Result<Answer, Exit>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(control::ask(runtime_dir, request, |message| {
        eprintln!("{message}")
    }));
    Ok(answer.map_err(|error| {
        let directory = runtime_dir.display();
        let help = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "no daemon runs there; start one with `espada daemon`, or name its --runtime-dir"
            }
            io::ErrorKind::PermissionDenied => {
                "only root and the user who runs the daemon may control it"
            }
            _ => "look at the daemon's log",
        };
        eprintln!("espada: cannot ask the daemon of {directory}: {error}\n  {help}");
        Exit::Daemon
    }))
}

fn ask(runtime_dir: &Path, request: &Request) -> anyhow::Result<Exit> {
    Ok(match converse(runtime_dir, request)? {
        Err(exit) => exit,
        Ok(Answer::Done { message } | Answer::Progress { message }) => {
            writeln!(io::stdout(), "{message}")?;
            Exit::Success
        }
        Ok(Answer::Refused { error }) => {
            eprintln!("{error}");
            Exit::Refused
        }
        Ok(Answer::Failed { message }) => {
            eprintln!("espada: {message}");
            Exit::Failure
        }
        Ok(Answer::Status { report }) => {
            write!(io::stdout(), "{}", report.to_text())?;
            Exit::Success
        }
    })
}

fn status(runtime_dir: &Path, name: Option<String>, json: bool) -> anyhow::Result<Exit> {
    Ok(
        match converse(runtime_dir, &Request::Status { connection: name })? {
            Err(exit) => exit,
            Ok(Answer::Status { report }) => {
                if json {
                    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
                } else {
                    write!(io::stdout(), "{}", report.to_text())?;
                }
                Exit::Success
            }
            Ok(Answer::Failed { message }) => {
                eprintln!("espada: {message}");
                Exit::Failure
            }
            Ok(other) => anyhow::bail!(
                "the daemon answered {other:?} to a question for its status: is it of another version?"
            ),
        },
    )
}

fn examine(interfaces: &[String], config: Option<&Path>, json: bool) -> anyhow::Result<Exit> {
    let config = match config.map(|file| config::load(file, SecretsPolicy::IfReadable)) {
        Some(Err(error)) => {
            eprintln!("{error}");
            return Ok(Exit::Failure);
        }
        Some(Ok(config)) => Some(config),
        None => None,
    };
    let report = doctor::examine(&doctor::Options {
        interfaces,
        config: config.as_ref(),
        ipsec: doctor::Ipsec::look,
    })?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(io::stdout(), "{}", report.to_text())?;
    }
    Ok(if report.works() {
        Exit::Success
    } else {
        Exit::Failure
    })
}

fn table(rows: &[bench::Row]) -> String {
    bench::Table(rows).to_string()
}

fn measure<R: serde::Serialize>(
    measured: Measured,
    bench: impl Fn(&bench::Options) -> Result<Vec<R>, bench::BenchError>,
    table: impl Fn(&[R]) -> String,
) -> anyhow::Result<Exit> {
    let mut options = bench::Options {
        duration: Duration::from_secs(measured.seconds.into()),
        ..bench::Options::default()
    };
    if !measured.suites.is_empty() {
        options.suites = measured.suites;
    }
    let rows = bench(&options)?;
    show(measured.json, &rows, table)
}

fn show<R: serde::Serialize>(
    json: bool,
    rows: &[R],
    table: impl Fn(&[R]) -> String,
) -> anyhow::Result<Exit> {
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(rows)?)?;
    } else {
        write!(io::stdout(), "{}", table(rows))?;
    }
    Ok(Exit::Success)
}
