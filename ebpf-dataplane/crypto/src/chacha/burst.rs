//! The packets of a burst side by side.

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::keystream::{self, Blocks, Inputs, KeyStream};
use super::poly1305::{self, Numbers, Poly1305};
use super::{Packet, SALT, TAG};
use crate::backend::Features;
use crate::vector::COLUMNS;

/// Packets taken together. More would fill vectors no better and the first cache worse.
const GROUP: usize = 32;

/// With fewer packets than this, one after another is faster.
const WORTH: usize = 4;

/// The cipher over vectors, with its key.
pub(super) struct Burst {
    key: [u32; 8],
    salt: u32,
    stream: KeyStream,
    mac: Poly1305,
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A packet with its one-time key.
struct Item<'a> {
    packet: Packet<'a>,
    key: [u8; 2 * poly1305::BLOCK],
}

/// Which blocks of key stream a pass makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The first of each packet: the one-time key.
    Key,
    /// Those that encrypt, of the packets marked as good.
    Text,
    /// All of them.
    All,
}

impl Pass {
    /// The last block of a packet in this pass and the first, or nothing.
    fn blocks(self, packet: &Packet<'_>) -> std::ops::Range<usize> {
        let all = 1 + packet.body.len().div_ceil(keystream::BLOCK);
        match self {
            Self::Key => 0..1,
            Self::Text if *packet.ok => 1..all,
            Self::Text => 0..0,
            Self::All => 0..all,
        }
    }
}

impl Burst {
    /// `None` without vectors that are wide enough.
    pub(super) fn new(features: Features, key: &[u8; 32], salt: [u8; SALT]) -> Option<Self> {
        let stream = KeyStream::new(features)?;
        let mac = Poly1305::new(features)?;
        let words = key.as_chunks().0;
        Some(Self {
            key: std::array::from_fn(|i| u32::from_le_bytes(words[i])),
            salt: u32::from_le_bytes(salt),
            stream,
            mac,
        })
    }

    /// Whether a burst has packets enough.
    pub(super) fn suits(&self, packets: usize) -> bool {
        packets >= WORTH
    }

    pub(super) fn seal<'a>(&self, burst: impl Iterator<Item = Packet<'a>>) {
        self.groups(burst, |items| {
            self.stream(items, Pass::All);
            self.authenticate(items, |tag, computed| {
                *tag = computed;
                true
            });
        });
    }

    pub(super) fn open<'a>(&self, burst: impl Iterator<Item = Packet<'a>>) {
        self.groups(burst, |items| {
            self.stream(items, Pass::Key);
            self.authenticate(items, |tag, computed| tag.ct_eq(&computed).into());
            self.stream(items, Pass::Text);
        });
    }

    fn groups<'a>(
        &self,
        mut burst: impl Iterator<Item = Packet<'a>>,
        mut work: impl FnMut(&mut [Option<Item<'a>>]),
    ) {
        let mut items: [Option<Item<'a>>; GROUP] = [const { None }; GROUP];
        loop {
            let mut filled = 0;
            for (place, packet) in items.iter_mut().zip(&mut burst) {
                let key = [0; 2 * poly1305::BLOCK];
                *place = Some(Item { packet, key });
                filled += 1;
            }
            work(&mut items[..filled]);
            for item in items[..filled].iter_mut().flatten() {
                item.key.zeroize();
            }
            if filled < GROUP {
                return;
            }
        }
    }

    /// Makes key stream, a block in each lane, and uses it.
    fn stream(&self, items: &mut [Option<Item<'_>>], pass: Pass) {
        let lanes = self.stream.lanes();
        let mut inputs: Inputs = [[0; COLUMNS]; 3];
        let mut out = Zeroizing::new([[0; keystream::BLOCK]; COLUMNS]);
        let mut users = [(0, 0); COLUMNS];
        let mut filled = 0;
        for at in 0..items.len() {
            let Some(item) = &items[at] else { continue };
            let iv = item.packet.iv.as_chunks().0;
            let words = [u32::from_le_bytes(iv[0]), u32::from_le_bytes(iv[1])];
            for block in pass.blocks(&item.packet) {
                inputs[0][filled] = block as u32;
                inputs[1][filled] = words[0];
                inputs[2][filled] = words[1];
                users[filled] = (at, block);
                filled += 1;
                if filled == lanes {
                    self.stream.blocks(&self.key, self.salt, &inputs, &mut out);
                    apply(items, &users[..filled], &out);
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            self.stream.blocks(&self.key, self.salt, &inputs, &mut out);
            apply(items, &users[..filled], &out);
        }
    }

    /// Computes the tags, a packet in each lane; `finish` says whether a packet is good.
    fn authenticate(
        &self,
        items: &mut [Option<Item<'_>>],
        finish: impl Fn(&mut [u8; TAG], [u8; TAG]) -> bool,
    ) {
        let mut sums: Numbers = Default::default();
        let mut keys: Zeroizing<Numbers> = Default::default();
        let mut lanes: [Option<Lane<'_>>; COLUMNS] = [const { None }; COLUMNS];
        let mut items = items.iter_mut().flatten();
        loop {
            for (column, lane) in lanes[..self.mac.lanes()].iter_mut().enumerate() {
                if lane.is_none()
                    && let Some(item) = items.next()
                {
                    let Item { packet, key } = item;
                    let (first, second) = poly1305::halves(key);
                    poly1305::begin(&mut sums, &mut keys, column, first);
                    *lane = Some(Lane::new(packet, second));
                }
            }
            let sources = lanes.each_ref().map(|lane| Some(lane.as_ref()?.source()));
            let lengths = sources.iter().flatten().map(|source| source.len());
            let Some(octets) = lengths.min() else { return };
            let blocks = octets / poly1305::BLOCK;
            self.mac.blocks(&mut sums, &keys, &sources, blocks);
            for (column, place) in lanes.iter_mut().enumerate() {
                if let Some(lane) = place
                    && !lane.advance(octets)
                {
                    let computed = poly1305::tag(&sums, column, lane.pad);
                    *lane.ok = finish(lane.tag, computed);
                    *place = None;
                }
            }
        }
    }
}

/// Uses blocks of key stream: the first of a packet is its one-time key, the others encrypt.
fn apply(items: &mut [Option<Item<'_>>], users: &[(usize, usize)], blocks: &Blocks) {
    for ((at, number), block) in users.iter().zip(blocks) {
        let Some(item) = &mut items[*at] else {
            continue;
        };
        let Some(before) = number.checked_sub(1) else {
            item.key.copy_from_slice(&block[..2 * poly1305::BLOCK]);
            continue;
        };
        let text = &mut item.packet.body[before * keystream::BLOCK..];
        match text.first_chunk_mut::<{ keystream::BLOCK }>() {
            Some(text) => text.iter_mut().zip(block).for_each(|(t, k)| *t ^= k),
            None => text.iter_mut().zip(block).for_each(|(t, k)| *t ^= k),
        }
    }
}

/// The parts of what is authenticated (RFC 8439 section 2.8), each filled up to whole blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Aad,
    /// Whole blocks of ciphertext, read where they lie.
    Direct,
    /// The rest of the ciphertext, and the lengths.
    Tail,
}

/// A packet on its way through Poly1305.
struct Lane<'a> {
    aad: [u8; poly1305::BLOCK],
    direct: &'a [u8],
    tail: [u8; 2 * poly1305::BLOCK],
    /// Part of the tail still to be read.
    from: usize,
    phase: Phase,
    /// Second half of the one-time key.
    pad: &'a [u8; TAG],
    tag: &'a mut [u8; TAG],
    ok: &'a mut bool,
}

impl<'a> Lane<'a> {
    fn new(packet: &'a mut Packet<'_>, pad: &'a [u8; TAG]) -> Self {
        let body = &*packet.body;
        let (direct, rest) = body.split_at(body.len() / poly1305::BLOCK * poly1305::BLOCK);
        let mut aad = [0; poly1305::BLOCK];
        let octets = packet.aad.as_ref();
        aad[..octets.len()].copy_from_slice(octets);
        let mut tail = [0; 2 * poly1305::BLOCK];
        tail[..rest.len()].copy_from_slice(rest);
        tail[16..24].copy_from_slice(&(octets.len() as u64).to_le_bytes());
        tail[24..].copy_from_slice(&(body.len() as u64).to_le_bytes());
        Self {
            aad,
            direct,
            tail,
            from: if rest.is_empty() { poly1305::BLOCK } else { 0 },
            phase: Phase::Aad,
            pad,
            tag: packet.tag,
            ok: packet.ok,
        }
    }

    fn source(&self) -> &[u8] {
        match self.phase {
            Phase::Aad => &self.aad,
            Phase::Direct => self.direct,
            Phase::Tail => &self.tail[self.from..],
        }
    }

    /// Goes past `octets`; `false` at the end.
    fn advance(&mut self, octets: usize) -> bool {
        match self.phase {
            Phase::Aad => self.phase = Phase::Direct,
            Phase::Direct => self.direct = &self.direct[octets..],
            Phase::Tail => self.from += octets,
        }
        if self.phase == Phase::Direct && self.direct.is_empty() {
            self.phase = Phase::Tail;
        }
        self.from < self.tail.len()
    }
}
