//! The control socket: a Unix socket in the runtime directory on which `espada up`, `down`,
//! `status` and `reload` talk to the daemon in JSON, one message a line.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use crate::status::{LastError, Report};
use crate::syscall::effective_uid;

/// Longest request, in octets.
const MAX_REQUEST: u64 = 4096;
/// Longest answer, in octets: room for the status of thousands of connections.
const MAX_ANSWER: u64 = 64 << 20;
/// Clients served at a time.
const MAX_CLIENTS: usize = 32;
/// A client that sends nothing for this long is dropped.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Set a connection up.
    Up {
        /// Which.
        connection: String,
        /// Answer when it is up or refused, not at once.
        wait: bool,
    },
    /// Take a connection down.
    Down {
        /// Which.
        connection: String,
        /// Answer when the peer has been told, not at once.
        wait: bool,
    },
    /// Report everything, or one connection.
    Status {
        /// Which; all without.
        connection: Option<String>,
    },
    /// Read the configuration again.
    Reload,
}

/// What the daemon answers. `Progress` is followed by more; everything else is the last line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Something happened on the way.
    Progress {
        /// For people.
        message: String,
    },
    /// It is done.
    Done {
        /// For people.
        message: String,
    },
    /// The status that was asked for.
    Status {
        /// Everything, or what was asked.
        report: Box<Report>,
    },
    /// The negotiation was refused, or the data plane refused the result.
    Refused {
        /// Why, and what to change.
        error: LastError,
    },
    /// The request cannot be carried out.
    Failed {
        /// For people.
        message: String,
    },
}

impl Answer {
    /// Whether nothing follows it.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Progress { .. })
    }
}

/// A request and where its answers go.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Takes the answers, the last one ends the conversation.
    pub answers: mpsc::Sender<Answer>,
}

/// Path of the control socket in a runtime directory.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// The daemon's end. Dropping it removes the socket.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens in the runtime directory, whose lock the caller holds: a socket left there is stale.
    pub fn bind(runtime_dir: &Path) -> io::Result<Self> {
        let path = socket_path(runtime_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Serves clients for ever, handing their requests to `calls`.
    pub async fn run(&self, calls: mpsc::Sender<Call>) {
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket: cannot accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let calls = calls.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, calls).await {
                    tracing::debug!(%error, "control socket: client lost");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: the next daemon removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(mut stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != effective_uid() {
        let message = "only root and the user who runs the daemon may control it".to_owned();
        return write_line(&mut stream, &Answer::Failed { message }).await;
    }
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let read = tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await;
    if read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
        return Ok(());
    }
    let request = match serde_json::from_str(&line) {
        Ok(request) if line.ends_with('\n') => request,
        Ok(_) => {
            let message = format!("a request is one line of at most {MAX_REQUEST} octets");
            return write_line(&mut writer, &Answer::Failed { message }).await;
        }
        Err(error) => {
            let message = format!("not a request this daemon understands: {error}");
            return write_line(&mut writer, &Answer::Failed { message }).await;
        }
    };
    let (sender, mut answers) = mpsc::channel(16);
    let stopped = || io::Error::from(io::ErrorKind::BrokenPipe);
    calls
        .send(Call {
            request,
            answers: sender,
        })
        .await
        .map_err(|_| stopped())?;
    let mut end = [0];
    loop {
        tokio::select! {
            answer = answers.recv() => {
                let answer = answer.unwrap_or_else(|| Answer::Failed { message: "the daemon is stopping".to_owned() });
                write_line(&mut writer, &answer).await?;
                if answer.is_last() {
                    return Ok(());
                }
            }
            // Clients send one line; anything more, or the end, means nobody waits any longer.
            _ = reader.read(&mut end) => return Ok(()),
        }
    }
}

async fn write_line<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut W,
    answer: &Answer,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

/// The client's end: asks, shows progress through `progress`, returns the last answer.
pub async fn ask(
    runtime_dir: &Path,
    request: &Request,
    mut progress: impl FnMut(&str),
) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket_path(runtime_dir)).await?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut reader = BufReader::new(reader.take(MAX_ANSWER));
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the daemon closed the connection without an answer",
            ));
        }
        match serde_json::from_str(&line)? {
            Answer::Progress { message } => progress(&message),
            answer => return Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn with_server(test: impl AsyncFnOnce(&Path)) {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::bind(directory.path()).unwrap();
        let (sender, mut calls) = mpsc::channel::<Call>(4);
        let daemon = async {
            while let Some(call) = calls.recv().await {
                let message = format!("{:?}", call.request);
                call.answers
                    .send(Answer::Progress {
                        message: "working".into(),
                    })
                    .await
                    .unwrap();
                call.answers.send(Answer::Done { message }).await.unwrap();
            }
        };
        tokio::select! {
            () = server.run(sender) => unreachable!(),
            () = daemon => unreachable!(),
            () = test(directory.path()) => {}
        }
        drop(server);
        assert!(!socket_path(directory.path()).exists());
    }

    #[tokio::test]
    async fn requests_reach_the_daemon_and_answers_come_back() {
        with_server(async |directory| {
            let mode = std::fs::metadata(socket_path(directory))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
            let mut seen = Vec::new();
            let request = Request::Up {
                connection: "azure".into(),
                wait: true,
            };
            let answer = ask(directory, &request, |message| seen.push(message.to_owned()))
                .await
                .unwrap();
            assert_eq!(seen, ["working"]);
            assert_eq!(
                answer,
                Answer::Done {
                    message: format!("{request:?}")
                }
            );
        })
        .await;
    }

    #[tokio::test]
    async fn nonsense_is_answered() {
        with_server(async |directory| {
            for (sent, expected) in [
                (
                    b"{\"command\":\"dance\"}\n".to_vec(),
                    "unknown variant `dance`",
                ),
                (
                    b"{\"command\":\"up\",\"connection\":\"a\",\"wait\":true,\"x\":1}\n".to_vec(),
                    "unknown field `x`",
                ),
                (b"hello\n".to_vec(), "not a request"),
                (vec![b' '; 5000], "not a request"),
            ] {
                let mut stream = UnixStream::connect(socket_path(directory)).await.unwrap();
                stream.write_all(&sent).await.unwrap();
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).await.unwrap();
                assert!(answer.contains(expected), "{answer}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_missing_daemon_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = ask(directory.path(), &Request::Reload, |_| {})
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
