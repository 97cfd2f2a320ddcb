//! Asks servers about certificates by HTTP, away from the loop, and keeps the revocation lists they
//! gave for the daemons after this one.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use espada_ike::x509::Crl;
use espada_ike::{Inquiry, Question};
use tokio::sync::{Semaphore, mpsc};

/// Questions that are asked at once; others wait for their turn.
const AT_ONCE: usize = 32;
/// A server has so many seconds for its answer, all of it.
const SECONDS: u64 = 6;
/// Longest answer, in octets.
const MAX_ANSWER: u64 = 16 << 20;
const MAX_REDIRECTS: usize = 3;
/// URIs whose lists are looked for in the folder.
const MAX_KEPT: usize = 1024;

/// What a server sent, or why it sent nothing.
pub struct Fetched {
    pub inquiry: Inquiry,
    pub reply: Result<Vec<u8>, String>,
}

/// Asks servers.
pub struct Fetcher {
    answers: mpsc::Sender<Fetched>,
    slots: Arc<Semaphore>,
    folder: Arc<Path>,
    /// URIs that were asked before: the list that is kept of one has been looked at.
    asked: HashSet<Arc<str>>,
}

impl Fetcher {
    /// Answers come out of the receiver. Lists are kept in `crls` below the folder that systemd gives
    /// services for their state, or else below the runtime directory.
    pub fn new(runtime_directory: &Path) -> (Self, mpsc::Receiver<Fetched>) {
        let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
        let folder = state.unwrap_or_else(|| runtime_directory.to_owned());
        let (answers, receiver) = mpsc::channel(AT_ONCE);
        let fetcher = Self {
            answers,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            folder: folder.join("crls").into(),
            asked: HashSet::new(),
        };
        (fetcher, receiver)
    }

    /// Asks; the answer comes later.
    pub fn fetch(&mut self, Question { inquiry, post }: Question) {
        let may_be_kept = inquiry.is_list() && self.asked.len() < MAX_KEPT;
        let is_new = may_be_kept && self.asked.insert(inquiry.uri().clone());
        let (answers, slots) = (self.answers.clone(), self.slots.clone());
        let file = self.folder.join(file_name(&inquiry));
        tokio::spawn(async move {
            // It is never closed.
            let _slot = slots.acquire_owned().await;
            let uri = inquiry.uri().clone();
            let asked = tokio::task::spawn_blocking(move || {
                if let Some(post) = post {
                    return request(&uri, Some(post));
                }
                let kept = is_new.then(|| kept(&file)).flatten();
                kept.map_or_else(|| fetch_list(&uri, &file), Ok)
            });
            let reply = asked.await.unwrap_or_else(|error| Err(error.to_string()));
            // The loop has ended if nobody listens.
            let _ = answers.send(Fetched { inquiry, reply }).await;
        });
    }
}

/// A name for the file of a list that no other has.
fn file_name(inquiry: &Inquiry) -> String {
    let mut name = String::new();
    for octet in inquiry.fingerprint() {
        let _ = write!(name, "{octet:02x}");
    }
    name.push_str(".crl");
    name
}

/// The list that an earlier daemon kept, if it still holds. Whose it is is checked when it is used.
fn kept(file: &Path) -> Option<Vec<u8>> {
    let file = std::fs::File::open(file).ok()?;
    let mut octets = Vec::new();
    file.take(MAX_ANSWER).read_to_end(&mut octets).ok()?;
    let next = Crl::from_der(&octets).ok()?.next_update()?;
    (super::time_of_day() < next).then_some(octets)
}

fn fetch_list(uri: &str, file: &Path) -> Result<Vec<u8>, String> {
    let octets = request(uri, None)?;
    if let Ok(list) = Crl::from_der(&octets)
        && list.next_update().is_some()
        && let Err(error) = keep(file, &octets)
    {
        tracing::warn!(file = %file.display(), %error, "cannot keep the revocation list");
    }
    Ok(octets)
}

fn keep(file: &Path, octets: &[u8]) -> std::io::Result<()> {
    let Some(folder) = file.parent() else {
        return Ok(());
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)?;
    // Whoever reads it finds the whole list or the one before.
    let new = file.with_extension("new");
    std::fs::write(&new, octets)?;
    std::fs::rename(&new, file)
}

/// GET, or POST of an OCSP request.
fn request(uri: &str, post: Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    let began = std::time::Instant::now();
    let request = match post {
        None => minreq::get(uri),
        Some(body) => minreq::post(uri)
            .with_header("Content-Type", "application/ocsp-request")
            .with_body(body),
    };
    let request = request
        .with_header("User-Agent", concat!("Espada/", env!("CARGO_PKG_VERSION")))
        .with_max_redirects(MAX_REDIRECTS)
        .with_timeout(SECONDS);
    let failed = |error: &dyn std::fmt::Display| match began.elapsed() {
        long if long >= Duration::from_secs(SECONDS) => format!("no answer within {SECONDS} s"),
        _ => error.to_string(),
    };
    let response = request.send_lazy().map_err(|error| failed(&error))?;
    if response.status_code != 200 {
        let (code, reason) = (response.status_code, &response.reason_phrase);
        return Err(format!("it answers {code} {reason}"));
    }
    let mut octets = Vec::new();
    let mut body = response.take(MAX_ANSWER + 1);
    body.read_to_end(&mut octets)
        .map_err(|error| failed(&error))?;
    if octets.len() as u64 > MAX_ANSWER {
        return Err(format!("it sends more than {MAX_ANSWER} octets"));
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    /// A server that sends each of these in turn; gives its address.
    fn serve(replies: Vec<Vec<u8>>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut octet = [0];
                    stream.read_exact(&mut octet).unwrap();
                    request.extend(octet);
                }
                // Whoever had enough closes early.
                let _ = stream.write_all(&reply);
            }
        });
        address
    }

    #[test]
    fn what_servers_send() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        endless.resize(MAX_ANSWER as usize + 4096, b'x');
        let elsewhere =
            b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n";
        let replies = [
            &whole[..],
            chunked,
            missing,
            &endless,
            elsewhere,
            b"rubbish\r\n\r\n",
        ];
        let address = serve(replies.map(<[u8]>::to_vec).into());
        let uri = format!("http://{address}/ca.crl");
        assert_eq!(request(&uri, None).unwrap(), b"hello");
        assert_eq!(request(&uri, None).unwrap(), b"hello");
        assert_eq!(request(&uri, None).unwrap_err(), "it answers 404 Not Found");
        assert!(
            request(&uri, None)
                .unwrap_err()
                .starts_with("it sends more than")
        );
        assert!(request(&uri, None).is_err());
        assert!(request(&uri, None).is_err());
        // Nobody listens any more.
        assert!(request(&uri, None).is_err());
    }

    #[test]
    fn lists_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("crls/list.crl");
        assert!(kept(&file).is_none());
        keep(&file, b"no list").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"no list");
        assert!(kept(&file).is_none());
    }
}
