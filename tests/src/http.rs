//! A web server for the files of a folder.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    netns: PathBuf,
}

impl Server {
    /// Serves the files of a folder at an address (with port) of a namespace.
    pub fn start(netns: &Netns, address: &str, folder: &Path) -> Result<Self> {
        let listener = netns.enter(|| {
            TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
        })?;
        let this = Self {
            address: address.to_owned(),
            requests: Arc::default(),
            stopped: Arc::default(),
            netns: netns.path().to_owned(),
        };
        let (requests, stopped, folder) = (
            this.requests.clone(),
            this.stopped.clone(),
            folder.to_owned(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                requests.fetch_add(1, Ordering::Relaxed);
                // A client that went away is its own affair.
                let _ = serve(&stream, &folder);
            }
        });
        Ok(this)
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let (netns, address) = (&self.netns, &self.address);
        // The thread waits for one more client.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                crate::syscall::enter_netns(netns).map(|()| TcpStream::connect(address).is_ok())
            });
        });
    }
}

fn serve(stream: &TcpStream, folder: &Path) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let name = request.split(' ').nth(1).unwrap_or_default();
    let name = Path::new(name).file_name().unwrap_or_default();
    let mut stream = stream;
    match std::fs::read(folder.join(name)) {
        Ok(octets) => {
            let length = octets.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
            )?;
            stream.write_all(&octets)?;
        }
        Err(_) => write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        )?,
    }
    Ok(())
}
