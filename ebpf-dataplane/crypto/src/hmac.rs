//! HMAC (RFC 2104) with SHA-1, SHA-256, SHA-384 and SHA-512 over a burst of packets, truncated to
//! an ICV (RFC 2404, RFC 4868).

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::backend::Features;
use crate::sha::{self, COLUMNS, Hash, Pair, Sha1, Sha256, Sha384, Sha512, Table, Wide};

/// The longest block and digest of the hash functions here.
const MAX_BLOCK: usize = 128;
const MAX_DIGEST: usize = 64;

/// The hash function under the HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-1, 20 octets.
    Sha1,
    /// SHA-256, 32 octets.
    Sha256,
    /// SHA-384, 48 octets.
    Sha384,
    /// SHA-512, 64 octets.
    Sha512,
}

impl Algorithm {
    /// Octets of the whole MAC.
    pub const fn mac_len(self) -> usize {
        match self {
            Self::Sha1 => Sha1::DIGEST,
            Self::Sha256 => Sha256::DIGEST,
            Self::Sha384 => Sha384::DIGEST,
            Self::Sha512 => Sha512::DIGEST,
        }
    }
}

/// What becomes of the MAC, which is cut to the length of the ICV. An ICV longer than the MAC never
/// fits and is never written.
pub enum Icv<'a> {
    /// Write it.
    Write(&'a mut [u8]),
    /// Compare it with these octets, in constant time, and say whether they are the same.
    Verify(&'a [u8], &'a mut bool),
}

/// One message of a burst.
pub struct Job<'a> {
    /// The packet as far as the MAC covers it.
    pub message: &'a [u8],
    /// Covered behind it, although not sent: the high half of an extended sequence number (RFC 4303
    /// section 2.2.1).
    pub high: Option<[u8; 4]>,
    /// The ICV.
    pub icv: Icv<'a>,
}

/// An HMAC with its key.
pub struct Hmac(Keyed);

enum Keyed {
    Sha1(State<Sha1>),
    Sha256(State<Sha256>),
    Sha384(State<Sha384>),
    Sha512(State<Sha512>),
}

impl Hmac {
    /// A key of any length; longer ones than a block are hashed, as RFC 2104 asks.
    pub fn new(features: Features, algorithm: Algorithm, key: &[u8]) -> Self {
        Self(match algorithm {
            Algorithm::Sha1 => Keyed::Sha1(State::new(features, key)),
            Algorithm::Sha256 => Keyed::Sha256(State::new(features, key)),
            Algorithm::Sha384 => Keyed::Sha384(State::new(features, key)),
            Algorithm::Sha512 => Keyed::Sha512(State::new(features, key)),
        })
    }

    /// Names the instructions that take full bursts.
    pub fn instructions(&self) -> &'static str {
        match &self.0 {
            Keyed::Sha1(state) => state.functions.instructions(),
            Keyed::Sha256(state) => state.functions.instructions(),
            Keyed::Sha384(state) => state.functions.instructions(),
            Keyed::Sha512(state) => state.functions.instructions(),
        }
    }

    /// Works on every job of the burst, several at a time.
    pub fn process<'a>(&self, burst: impl Iterator<Item = Job<'a>>) {
        match &self.0 {
            Keyed::Sha1(state) => state.process(burst),
            Keyed::Sha256(state) => state.process(burst),
            Keyed::Sha384(state) => state.process(burst),
            Keyed::Sha512(state) => state.process(burst),
        }
    }
}

/// The hash states behind the first block of both passes, which is all the key there is.
struct State<H: Hash> {
    inner: [H::Word; 8],
    outer: [H::Word; 8],
    functions: Functions<H>,
}

impl<H: Hash> Drop for State<H> {
    fn drop(&mut self) {
        self.inner.zeroize();
        self.outer.zeroize();
    }
}

/// The compression functions for few and for many messages.
struct Functions<H: Hash> {
    wide: Option<(usize, Wide<H::Word>)>,
    worth_wide: usize,
    pair: Option<Pair<H::Word>>,
}

impl<H: Hash> Functions<H> {
    fn new(features: Features) -> Self {
        Self {
            wide: H::wide(features).filter(|(lanes, _)| H::worth_wide(features) <= *lanes),
            worth_wide: H::worth_wide(features),
            pair: H::pair(features),
        }
    }

    fn instructions(&self) -> &'static str {
        match (self.wide, self.pair) {
            (Some((lanes, _)), _) if lanes * size_of::<H::Word>() == 64 => "avx512",
            (Some(_), _) => "avx2",
            (None, Some(_)) => "sha-ni",
            (None, None) => "portable",
        }
    }

    /// Messages to have in work at once.
    fn lanes(&self) -> usize {
        match (self.wide, self.pair) {
            (Some((lanes, _)), _) => lanes,
            (None, Some(_)) => 2,
            (None, None) => 1,
        }
    }

    /// Takes `blocks` blocks of each column that has a source.
    fn compress(&self, table: &mut Table<H::Word>, sources: &[Option<&[u8]>], blocks: usize) {
        sha::compress::<H>(
            self.wide,
            self.worth_wide,
            self.pair,
            table,
            sources,
            blocks,
        );
    }
}

/// Where a lane is on its way through a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Whole blocks, read where they lie.
    Direct,
    /// The rest of the message with its padding, in the lane's own buffer.
    Tail,
    /// The second pass, over the digest of the first.
    Outer,
}

/// Room for a message on its way.
struct Lane<'a> {
    /// Where the MAC goes; `None` while there is no message here.
    icv: Option<Icv<'a>>,
    /// Whole blocks still to be read.
    direct: &'a [u8],
    /// Blocks of padded rest, and later of the second pass.
    tail: [u8; 2 * MAX_BLOCK],
    /// Part of `tail` still to be read.
    from: usize,
    to: usize,
    phase: Phase,
}

impl<'a> Lane<'a> {
    const EMPTY: Self = Self {
        icv: None,
        direct: &[],
        tail: [0; 2 * MAX_BLOCK],
        from: 0,
        to: 0,
        phase: Phase::Tail,
    };

    /// Lays out the end of the message: less than a block, the four octets that are not sent, and
    /// the padding.
    fn begin<H: Hash>(&mut self, job: Job<'a>) {
        let whole = job.message.len() & !(H::BLOCK - 1);
        let (direct, rest) = job.message.split_at(whole);
        self.icv = Some(job.icv);
        self.direct = direct;
        self.phase = if direct.is_empty() {
            Phase::Tail
        } else {
            Phase::Direct
        };
        self.tail[..2 * H::BLOCK].fill(0);
        self.tail[..rest.len()].copy_from_slice(rest);
        let mut used = rest.len();
        if let Some(high) = job.high {
            self.tail[used..used + 4].copy_from_slice(&high);
            used += 4;
        }
        self.pad::<H>(used, whole + used);
    }

    /// Pads `used` octets of a tail that is otherwise zero, at the end of a message of `len` octets
    /// behind the block with the key.
    fn pad<H: Hash>(&mut self, used: usize, len: usize) {
        self.from = 0;
        self.to = (used + 1 + H::LENGTH).next_multiple_of(H::BLOCK);
        self.tail[used] = 0x80;
        // A length of 16 octets begins with zeros.
        let bits = 8 * (H::BLOCK + len) as u64;
        self.tail[self.to - 8..self.to].copy_from_slice(&bits.to_be_bytes());
    }

    fn source(&self) -> Option<&[u8]> {
        self.icv.as_ref()?;
        Some(match self.phase {
            Phase::Direct => self.direct,
            _ => &self.tail[self.from..self.to],
        })
    }

    /// Goes past `octets`. At the end of a pass the digest in `column` is used.
    fn advance<H: Hash>(
        &mut self,
        octets: usize,
        outer: &[H::Word; 8],
        table: &mut Table<H::Word>,
        column: usize,
    ) {
        if self.phase == Phase::Direct {
            self.direct = &self.direct[octets..];
            if self.direct.is_empty() {
                self.phase = Phase::Tail;
            }
            return;
        }
        self.from += octets;
        if self.from < self.to {
            return;
        }
        let state = std::array::from_fn(|row| table[row][column]);
        if self.phase == Phase::Tail {
            self.phase = Phase::Outer;
            self.tail[..H::BLOCK].fill(0);
            H::digest(&state, &mut self.tail[..H::DIGEST]);
            self.pad::<H>(H::DIGEST, H::DIGEST);
            set(table, column, outer);
            return;
        }
        let mut digest = [0; MAX_DIGEST];
        let digest = &mut digest[..H::DIGEST];
        H::digest(&state, digest);
        match self.icv.take() {
            Some(Icv::Write(icv)) => {
                if let Some(digest) = digest.get(..icv.len()) {
                    icv.copy_from_slice(digest);
                }
            }
            Some(Icv::Verify(icv, same)) => {
                *same = digest
                    .get(..icv.len())
                    .is_some_and(|digest| digest.ct_eq(icv).into());
            }
            None => {}
        }
    }
}

fn set<W: Copy>(table: &mut Table<W>, column: usize, state: &[W; 8]) {
    for (row, word) in table.iter_mut().zip(state) {
        row[column] = *word;
    }
}

impl<H: Hash> State<H> {
    fn new(features: Features, key: &[u8]) -> Self {
        let mut block = Zeroizing::new([0; MAX_BLOCK]);
        if key.len() <= H::BLOCK {
            block[..key.len()].copy_from_slice(key);
        } else {
            hash::<H>(key, &mut block[..H::DIGEST]);
        }
        let mut pass = |mask: u8| {
            block.iter_mut().for_each(|octet| *octet ^= mask);
            let mut state = H::INITIAL;
            H::compress(&mut state, &block[..H::BLOCK]);
            state
        };
        Self {
            inner: pass(0x36),
            // The first mask is still in the block.
            outer: pass(0x36 ^ 0x5c),
            functions: Functions::new(features),
        }
    }

    fn process<'a>(&self, burst: impl Iterator<Item = Job<'a>>) {
        // No more lanes than there is use for: to make one costs time.
        match self.functions.lanes() {
            1 => self.run::<1>(burst),
            2 => self.run::<2>(burst),
            3..=4 => self.run::<4>(burst),
            5..=8 => self.run::<8>(burst),
            _ => self.run::<COLUMNS>(burst),
        }
    }

    fn run<'a, const LANES: usize>(&self, mut burst: impl Iterator<Item = Job<'a>>) {
        let mut table = Zeroizing::new([[H::Word::default(); COLUMNS]; 8]);
        let mut lanes = [Lane::EMPTY; LANES];
        loop {
            let mut blocks = usize::MAX;
            for (column, lane) in lanes.iter_mut().enumerate() {
                if lane.icv.is_none()
                    && let Some(job) = burst.next()
                {
                    lane.begin::<H>(job);
                    set(&mut table, column, &self.inner);
                }
                if let Some(source) = lane.source() {
                    blocks = blocks.min(source.len() / H::BLOCK);
                }
            }
            if blocks == usize::MAX {
                return;
            }
            let sources = lanes.each_ref().map(Lane::source);
            self.functions.compress(&mut table, &sources, blocks);
            for (column, lane) in lanes.iter_mut().enumerate() {
                if lane.icv.is_some() {
                    lane.advance::<H>(blocks * H::BLOCK, &self.outer, &mut table, column);
                }
            }
        }
    }
}

/// The plain hash of a long key.
fn hash<H: Hash>(message: &[u8], out: &mut [u8]) {
    let mut state = H::INITIAL;
    let whole = message.len() / H::BLOCK * H::BLOCK;
    let (blocks, rest) = message.split_at(whole);
    H::compress(&mut state, blocks);
    let mut tail = Zeroizing::new([0; 2 * MAX_BLOCK]);
    let to = (rest.len() + 1 + H::LENGTH).next_multiple_of(H::BLOCK);
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    tail[to - 8..to].copy_from_slice(&(8 * message.len() as u64).to_be_bytes());
    H::compress(&mut state, &tail[..to]);
    H::digest(&state, out);
}

#[cfg(test)]
mod tests;
