//! What both directions keep per SA, and the table they keep it in.

use espada_common::sa::{Cipher, Encapsulation, EspSuite, Mode, Path};

use super::ApplyError;
use super::crypto::ESP_HEADER;
use super::ip;

/// Octets of a UDP header.
pub const UDP_HEADER: usize = 8;

/// Pad length and next header behind the padding (RFC 4303 section 2).
pub const TRAILER: usize = 2;

/// Sizes that follow from a suite and a path.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Octets of outer IP header without options.
    pub ip: usize,
    /// The same and the UDP header where there is one.
    pub outer: usize,
    /// Octets of IV.
    pub iv: usize,
    /// Octets of ICV.
    pub icv: usize,
    /// The encrypted part is a multiple of this.
    pub block: usize,
}

impl Geometry {
    /// Of packets of `suite` on `path`.
    pub fn new(suite: &EspSuite, path: &Path) -> Self {
        let udp = match path.encapsulation {
            Encapsulation::Esp => 0,
            Encapsulation::Udp => UDP_HEADER,
        };
        let ip = ip::outer_len(path.remote.ip());
        Self {
            ip,
            outer: ip + udp,
            iv: suite.cipher.iv_len(),
            icv: suite.icv_len(),
            block: suite.cipher.block_len(),
        }
    }

    /// Octets before the payload of an ESP packet.
    pub fn head(&self) -> usize {
        ESP_HEADER + self.iv
    }

    /// Padding octets for a payload of `len`.
    pub fn padding(&self, len: usize) -> usize {
        // Blocks are 4 or 16 octets: powers of two.
        (len + TRAILER).wrapping_neg() & (self.block - 1)
    }

    /// Octets of ESP packet with a payload of `len`.
    pub fn sealed(&self, len: usize) -> usize {
        self.head() + len + self.tail(len)
    }

    /// Octets behind a payload of `len`: padding, trailer and ICV.
    pub fn tail(&self, len: usize) -> usize {
        self.padding(len) + TRAILER + self.icv
    }

    /// Writes what is between the payload and the ICV: `trailer` is that and the ICV.
    pub fn write_trailer(&self, trailer: &mut [u8], next_header: u8) {
        let padding = trailer.len().saturating_sub(TRAILER + self.icv);
        // RFC 4303 section 2.4: "the first padding byte appended to the plaintext is numbered 1, with
        // subsequent padding bytes making up a monotonically increasing sequence".
        let (octets, rest) = trailer.split_at_mut(padding);
        for (octet, number) in octets.iter_mut().zip(1..=u8::MAX) {
            *octet = number;
        }
        if let Some(field) = rest.first_chunk_mut() {
            *field = [padding as u8, next_header];
        }
    }

    /// The longest payload (inner packet in tunnel mode) whose outer packet fits `mtu`.
    pub fn max_payload(&self, mtu: u16) -> usize {
        let room = usize::from(mtu).saturating_sub(self.outer + self.head() + self.icv);
        // Whole blocks, as above.
        (room & !(self.block - 1)).saturating_sub(TRAILER)
    }

    /// The longest inner IP packet, whose header has `header_len` octets.
    pub fn max_inner(&self, mode: Mode, mtu: u16, header_len: usize) -> usize {
        match mode {
            Mode::Tunnel => self.max_payload(mtu),
            // The packet's own header is the outer one; `outer` counts it without options.
            Mode::Transport => {
                let options = u16::try_from(header_len.saturating_sub(self.ip)).unwrap_or(u16::MAX);
                self.max_payload(mtu.saturating_sub(options)) + header_len
            }
        }
    }

    /// Whether an ESP packet of `len` octets can be one: room for all parts, whole blocks for CBC.
    pub fn plausible(&self, len: usize, cipher: Cipher) -> bool {
        match len.checked_sub(self.head() + self.icv) {
            Some(encrypted) if encrypted >= TRAILER => {
                cipher.is_aead() || encrypted.is_multiple_of(self.block)
            }
            _ => false,
        }
    }
}

/// The MSS that fits inner packets of `max_inner` octets, assuming no IP or TCP options.
pub fn max_mss(max_inner: usize, v6: bool) -> u16 {
    let headers = if v6 { 60 } else { 40 };
    u16::try_from(max_inner.saturating_sub(headers)).unwrap_or(u16::MAX)
}

/// Both addresses of a path must be of one family.
pub fn check_path(path: &Path) -> Result<(), ApplyError> {
    if path.local.is_ipv4() == path.remote.is_ipv4() {
        Ok(())
    } else {
        Err(ApplyError::PathFamily {
            local: path.local,
            remote: path.remote,
        })
    }
}

/// Places that a [`Slab`] adds at a time.
const CHUNK: usize = 64;

/// A table whose places stay valid while others come and go. It grows without moving anything, so
/// that packets do not wait for a hundred thousand SAs to be copied.
pub struct Slab<T> {
    chunks: Vec<Box<[Option<T>; CHUNK]>>,
    /// Places without a value.
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    fn place(&mut self, slot: u32) -> Option<&mut Option<T>> {
        let slot = slot as usize;
        self.chunks.get_mut(slot / CHUNK)?.get_mut(slot % CHUNK)
    }

    /// Puts a value somewhere.
    pub fn insert(&mut self, value: T) -> u32 {
        if self.free.is_empty() {
            let first = (self.chunks.len() * CHUNK) as u32;
            self.chunks.push(Box::new([const { None }; CHUNK]));
            self.free.extend((first..first + CHUNK as u32).rev());
        }
        let slot = self.free.pop().unwrap_or_default();
        if let Some(place) = self.place(slot) {
            *place = Some(value);
        }
        slot
    }

    /// Takes a value out.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.place(slot)?.take()?;
        self.free.push(slot);
        Some(value)
    }

    /// The value at a place.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let slot = slot as usize;
        let chunk = self.chunks.get(slot / CHUNK)?;
        chunk.get(slot % CHUNK)?.as_ref()
    }

    /// The value at a place, to change.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.place(slot)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_while_the_table_grows_and_are_given_again() {
        let mut slab = Slab::default();
        let slots: Vec<u32> = (0..1000).map(|value| slab.insert(value)).collect();
        for (value, slot) in slots.iter().enumerate() {
            assert_eq!(slab.get(*slot), Some(&value));
        }
        assert_eq!(slab.remove(slots[500]), Some(500));
        assert_eq!(slab.get(slots[500]), None);
        assert_eq!(slab.remove(slots[500]), None);
        assert_eq!(slab.insert(7), slots[500]);
        assert_eq!(slab.get_mut(slots[500]), Some(&mut 7));
        assert_eq!(slab.get(u32::MAX), None);
    }
}
