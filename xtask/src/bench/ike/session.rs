//! What asks a daemon for an IKE SA and its child SA, and waits until both are there: Espada's control
//! socket and strongSwan's (vici).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Longest wait for one set-up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a daemon is asked.
#[derive(Clone, Debug)]
pub enum Control {
    /// One JSON object a line, one request a connection.
    Espada(PathBuf),
    /// Packets with a length before them, any number a connection.
    Vici(PathBuf),
}

/// A conversation with a daemon.
#[derive(Debug)]
pub enum Session {
    /// Begins anew with each request.
    Espada(PathBuf),
    /// Goes on.
    Vici(UnixStream),
}

impl Control {
    /// Begins a conversation.
    pub fn session(&self) -> Result<Session> {
        match self {
            Self::Espada(socket) => Ok(Session::Espada(socket.clone())),
            Self::Vici(socket) => connect(socket).map(Session::Vici),
        }
    }
}

impl Session {
    /// Sets a connection and its child SA up, which bear the same name.
    pub fn set_up(&mut self, connection: &str) -> Result<()> {
        match self {
            Self::Espada(socket) => espada_up(socket, connection),
            Self::Vici(stream) => vici_initiate(stream, connection),
        }
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn espada_up(socket: &Path, connection: &str) -> Result<()> {
    let mut stream = connect(socket)?;
    let request = json!({"command": "up", "connection": connection, "wait": true});
    writeln!(stream, "{request}")?;
    for line in BufReader::new(stream).lines() {
        let answer: Value = serde_json::from_str(&line?)?;
        match answer["answer"].as_str() {
            Some("progress") => {}
            Some("done") => return Ok(()),
            _ => bail!("{connection}: {answer}"),
        }
    }
    bail!("{connection}: the daemon left without an answer")
}

/// Packet types and message elements of vici.
mod vici {
    pub const CMD_REQUEST: u8 = 0;
    pub const CMD_RESPONSE: u8 = 1;
    pub const SECTION_START: u8 = 1;
    pub const SECTION_END: u8 = 2;
    pub const KEY_VALUE: u8 = 3;
    pub const LIST_START: u8 = 4;
    pub const LIST_ITEM: u8 = 5;
    pub const LIST_END: u8 = 6;
}

fn vici_initiate(stream: &mut UnixStream, connection: &str) -> Result<()> {
    let patience = PATIENCE.as_millis().to_string();
    let request = request(
        "initiate",
        &[
            ("ike", connection),
            ("child", connection),
            ("timeout", &patience),
        ],
    )?;
    stream.write_all(&u32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    ensure!(length <= 1 << 20, "a vici packet of {length} octets");
    let mut response = vec![0; length];
    stream.read_exact(&mut response)?;
    let values = response_values(&response).context("a damaged vici response")?;
    let value = |key: &str| values.iter().find(|(name, _)| name == key);
    match value("success") {
        Some((_, yes)) if yes == "yes" => Ok(()),
        _ => bail!(
            "{connection}: {}",
            value("errmsg").map_or("refused without a reason", |(_, reason)| reason)
        ),
    }
}

/// A request with a flat message.
fn request(command: &str, values: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut out = vec![vici::CMD_REQUEST];
    let name = |out: &mut Vec<u8>, name: &str| -> Result<()> {
        out.push(u8::try_from(name.len())?);
        out.extend(name.as_bytes());
        Ok(())
    };
    name(&mut out, command)?;
    for (key, value) in values {
        out.push(vici::KEY_VALUE);
        name(&mut out, key)?;
        out.extend(u16::try_from(value.len())?.to_be_bytes());
        out.extend(value.as_bytes());
    }
    Ok(out)
}

/// The outermost values of a response.
fn response_values(packet: &[u8]) -> Option<Vec<(String, String)>> {
    let (&kind, mut rest) = packet.split_first()?;
    if kind != vici::CMD_RESPONSE {
        return None;
    }
    let mut values = Vec::new();
    let mut depth = 0_usize;
    while let Some((&element, after)) = rest.split_first() {
        rest = after;
        match element {
            vici::SECTION_START | vici::LIST_START => {
                let _ = short(&mut rest)?;
                depth += 1;
            }
            vici::SECTION_END | vici::LIST_END => depth = depth.checked_sub(1)?,
            vici::LIST_ITEM => drop(long(&mut rest)?),
            vici::KEY_VALUE => {
                let (key, value) = (short(&mut rest)?, long(&mut rest)?);
                if depth == 0 {
                    values.push((key, value));
                }
            }
            _ => return None,
        }
    }
    Some(values)
}

/// A text behind a length of one octet.
fn short(rest: &mut &[u8]) -> Option<String> {
    let (&length, after) = rest.split_first()?;
    take(rest, after, usize::from(length))
}

/// A text behind a length of two octets.
fn long(rest: &mut &[u8]) -> Option<String> {
    let (length, after) = rest.split_first_chunk()?;
    take(rest, after, usize::from(u16::from_be_bytes(*length)))
}

fn take<'a>(rest: &mut &'a [u8], after: &'a [u8], length: usize) -> Option<String> {
    let (text, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vici_messages_are_as_its_documentation_has_them() {
        let packet = request("initiate", &[("child", "c1")]).unwrap();
        assert_eq!(packet, b"\x00\x08initiate\x03\x05child\x00\x02c1");

        let response = b"\x01\x01\x03net\x03\x07success\x00\x02no\x02\x03\x06errmsg\x00\x04lost";
        let values = response_values(response).unwrap();
        assert_eq!(values, [("errmsg".to_owned(), "lost".to_owned())]);
        for cut in 1..response.len() {
            // What is cut off is seen, or ends between two elements.
            if let Some(values) = response_values(&response[..cut]) {
                assert!(values.is_empty());
            }
        }
        assert_eq!(response_values(b"\x00"), None);
    }
}
