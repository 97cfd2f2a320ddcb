//! ethtool's questions: driver, offloads, queues.

use std::io;

use super::syscall::{NAME, Question, Request};

/// An offload of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The kernel's name, such as `tx-tcp-segmentation`.
    pub name: String,
    /// Whether it can be switched on.
    pub available: bool,
    /// Whether it is on.
    pub active: bool,
}

/// Queues, as `ethtool -l` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Queues for receiving in use, shared ones included.
    pub rx: u32,
    /// Queues for sending in use, shared ones included.
    pub tx: u32,
    /// The most receive queues there can be.
    pub max_rx: u32,
}

/// Asks about one device.
pub struct Ethtool(Request);

impl Ethtool {
    /// For the device of this name in the calling thread's network namespace.
    pub fn open(name: &str) -> io::Result<Self> {
        Request::open(name).map(Self)
    }

    /// `ethtool_drvinfo.driver`.
    pub fn driver(&self) -> io::Result<String> {
        let answer = self.0.ask(Question::Driver)?;
        let name = text(answer.get(4..4 + NAME).unwrap_or(&[]));
        if name.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(name)
    }

    /// Queues.
    pub fn channels(&self) -> io::Result<Channels> {
        let answer = self.0.ask(Question::Channels)?;
        let [_, max_rx, _, _, max_combined, rx, tx, _, combined] = words::<9>(&answer)?;
        Ok(Channels {
            rx: rx.saturating_add(combined),
            tx: tx.saturating_add(combined),
            max_rx: max_rx.saturating_add(max_combined),
        })
    }

    /// Offloads: first how many names there are, then the names, then the bits.
    pub fn offloads(&self) -> io::Result<Vec<Offload>> {
        let answer = self.0.ask(Question::OffloadCount)?;
        let [_, _, _, _, count] = words::<5>(&answer)?;
        let count = u8::try_from(count).unwrap_or(u8::MAX);
        let names = self.0.ask(Question::OffloadNames(count))?;
        let names = names.get(12..).unwrap_or(&[]);
        // A block for each 32 offloads: available, requested, active, never changed.
        let bits = self.0.ask(Question::OffloadBits(count))?;
        let bit = |index: usize, word: usize| -> bool {
            let at = 8 + index / 32 * 16 + word * 4;
            let word = bits
                .get(at..)
                .and_then(crate::nl::read_u32)
                .unwrap_or_default();
            word >> (index % 32) & 1 == 1
        };
        Ok(names
            .chunks_exact(NAME)
            .take(usize::from(count))
            .enumerate()
            .map(|(index, name)| Offload {
                name: text(name),
                available: bit(index, 0),
                active: bit(index, 2),
            })
            .collect())
    }
}

fn text(octets: &[u8]) -> String {
    let end = octets.iter().position(|octet| *octet == 0);
    String::from_utf8_lossy(octets.get(..end.unwrap_or(octets.len())).unwrap_or(&[])).into_owned()
}

fn words<const N: usize>(octets: &[u8]) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = crate::nl::read_u32(chunk).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(words)
}
