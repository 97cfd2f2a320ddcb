//! The packets of a burst side by side.

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::keystream::{Aside, Inputs, KeyStream, Use};
use super::poly1305::{self, Numbers, OneTimeKey, Poly1305};
use super::{Packet, SALT, TAG};
use crate::backend::Features;
use crate::vector::COLUMNS;

/// Packets taken together. More would fill vectors no better and the first cache worse.
const GROUP: usize = 32;

/// With fewer packets than this, one after another is faster.
const FEWEST: usize = 8;

/// In AVX2, ring's code is faster with packets longer than this: it does scalar work for Poly1305
/// while the vectors make key stream.
const LONGEST_AVX2: usize = 320;

/// The cipher over vectors, with its key.
pub(super) struct Burst {
    key: [u32; 8],
    salt: u32,
    stream: KeyStream,
    mac: Poly1305,
    /// Octets of the longest packet that gains.
    pub(super) longest: usize,
    /// The fewest packets that gain.
    pub(super) fewest: usize,
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A packet with its one-time key.
struct Item<'a> {
    packet: Packet<'a>,
    key: OneTimeKey,
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
            fewest: FEWEST,
            longest: if features.avx512() {
                usize::MAX
            } else {
                LONGEST_AVX2
            },
        })
    }

    /// Names the instructions.
    pub(super) fn instructions(&self) -> &'static str {
        match self.stream.lanes() {
            COLUMNS => "avx512",
            _ => "avx2",
        }
    }

    /// Encrypts a burst; `alone` takes the packets that are better off one by one.
    pub(super) fn seal<'a>(
        &self,
        burst: impl Iterator<Item = Packet<'a>>,
        alone: impl Fn(Packet<'a>),
    ) {
        self.groups(burst, alone, |items| {
            self.stream(items, Pass::All);
            self.authenticate(items, |tag, computed| {
                *tag = computed;
                true
            });
        });
    }

    /// Verifies a burst and decrypts what is authentic; `alone` as for [`Burst::seal`].
    pub(super) fn open<'a>(
        &self,
        burst: impl Iterator<Item = Packet<'a>>,
        alone: impl Fn(Packet<'a>),
    ) {
        self.groups(burst, alone, |items| {
            self.stream(items, Pass::Key);
            self.authenticate(items, |tag, computed| tag.ct_eq(&computed).into());
            self.stream(items, Pass::Text);
        });
    }

    fn groups<'a>(
        &self,
        burst: impl Iterator<Item = Packet<'a>>,
        alone: impl Fn(Packet<'a>),
        mut work: impl FnMut(&mut [Option<Item<'a>>]),
    ) {
        if burst.size_hint().1.is_some_and(|most| most < self.fewest) {
            return burst.for_each(alone);
        }
        let mut burst = burst.filter_map(|packet| {
            if packet.body.len() <= self.longest {
                return Some(packet);
            }
            alone(packet);
            None
        });
        let mut items: [Option<Item<'a>>; GROUP] = [const { None }; GROUP];
        loop {
            let mut filled = 0;
            for (place, packet) in items.iter_mut().zip(&mut burst) {
                *place = Some(Item {
                    packet,
                    key: OneTimeKey::default(),
                });
                filled += 1;
            }
            let items = &mut items[..filled];
            if filled < self.fewest {
                items
                    .iter_mut()
                    .filter_map(Option::take)
                    .for_each(|item| alone(item.packet));
                return;
            }
            work(items);
            for item in items.iter_mut().flatten() {
                item.key.zeroize();
            }
        }
    }

    /// Makes key stream, a block in each lane, and uses it.
    fn stream(&self, items: &mut [Option<Item<'_>>], pass: Pass) {
        let mut batch = Batch {
            cipher: self,
            inputs: [[0; COLUMNS]; 3],
            uses: [const { Use::Nothing }; COLUMNS],
            aside: Zeroizing::new([[0; 8]; COLUMNS]),
            filled: 0,
        };
        for item in items.iter_mut().flatten() {
            let Item { packet, key } = item;
            if pass != Pass::Text {
                batch.push(&packet.iv, 0, Use::Key(key));
            }
            if pass == Pass::All || (pass == Pass::Text && *packet.ok) {
                let (whole, rest) = packet.body.as_chunks_mut();
                let next = 1 + whole.len() as u32;
                for (number, block) in (1..).zip(whole) {
                    batch.push(&packet.iv, number, Use::Block(block));
                }
                if !rest.is_empty() {
                    batch.push(&packet.iv, next, Use::Rest(rest));
                }
            }
        }
        batch.flush();
    }

    /// Computes the tags, a packet in each lane; `finish` says whether a packet is good.
    fn authenticate(
        &self,
        items: &mut [Option<Item<'_>>],
        finish: impl Fn(&mut [u8; TAG], [u8; TAG]) -> bool,
    ) {
        // No more lanes than there is use for: to make one costs time.
        match self.mac.lanes() {
            ..=4 => self.authenticate_in::<4>(items, finish),
            _ => self.authenticate_in::<8>(items, finish),
        }
    }

    fn authenticate_in<const LANES: usize>(
        &self,
        items: &mut [Option<Item<'_>>],
        finish: impl Fn(&mut [u8; TAG], [u8; TAG]) -> bool,
    ) {
        let mut sums: Numbers = Default::default();
        let mut keys: Zeroizing<Numbers> = Default::default();
        let mut lanes = [Lane::EMPTY; LANES];
        let mut items = items.iter_mut().flatten();
        loop {
            let mut octets = usize::MAX;
            for (column, lane) in lanes.iter_mut().enumerate() {
                if lane.finish.is_none()
                    && let Some(item) = items.next()
                {
                    poly1305::begin(&mut sums, &mut keys, column, &item.key);
                    lane.begin(&mut item.packet, &item.key);
                }
                if let Some(source) = lane.source() {
                    octets = octets.min(source.len());
                }
            }
            if octets == usize::MAX {
                return;
            }
            let sources = lanes.each_ref().map(Lane::source);
            let blocks = octets / poly1305::BLOCK;
            self.mac.blocks(&mut sums, &keys, &sources, blocks);
            for (column, lane) in lanes.iter_mut().enumerate() {
                if lane.finish.is_some()
                    && !lane.advance(octets)
                    && let Some(Finish { key, tag, ok }) = lane.finish.take()
                {
                    *ok = finish(tag, poly1305::tag(&sums, column, key));
                }
            }
        }
    }
}

/// Blocks of key stream that are still to be made.
struct Batch<'c, 'a> {
    cipher: &'c Burst,
    inputs: Inputs,
    uses: [Use<'a>; COLUMNS],
    aside: Zeroizing<Aside>,
    filled: usize,
}

impl<'a> Batch<'_, 'a> {
    /// Block `number` of the key stream of a packet.
    fn push(&mut self, iv: &[u8; 8], number: u32, used: Use<'a>) {
        let iv = u64::from_le_bytes(*iv);
        self.inputs[0][self.filled] = number;
        self.inputs[1][self.filled] = iv as u32;
        self.inputs[2][self.filled] = (iv >> 32) as u32;
        self.uses[self.filled] = used;
        self.filled += 1;
        if self.filled == self.cipher.stream.lanes() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.filled > 0 {
            let Burst { key, salt, .. } = self.cipher;
            let (inputs, uses) = (&self.inputs, &mut self.uses);
            let aside = &mut self.aside;
            self.cipher.stream.blocks(key, *salt, inputs, uses, aside);
            self.filled = 0;
        }
    }
}

/// Packets up to this many octets are copied, to be read in one piece.
const COPIED: usize = 176;

/// The parts of what is authenticated (RFC 8439 section 2.8), each filled up to whole blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Aad,
    /// Whole blocks of ciphertext, read where they lie.
    Direct,
    /// The rest of the ciphertext and the lengths, or all that a short packet has.
    Tail,
}

/// What becomes of the tag.
struct Finish<'a> {
    key: &'a OneTimeKey,
    tag: &'a mut [u8; TAG],
    ok: &'a mut bool,
}

/// Room for a packet on its way through Poly1305.
struct Lane<'a> {
    /// `None` while there is no packet here.
    finish: Option<Finish<'a>>,
    aad: [u8; poly1305::BLOCK],
    direct: &'a [u8],
    tail: [u8; COPIED + 2 * poly1305::BLOCK],
    /// Part of the tail still to be read.
    from: usize,
    to: usize,
    phase: Phase,
}

impl<'a> Lane<'a> {
    const EMPTY: Self = Self {
        finish: None,
        aad: [0; poly1305::BLOCK],
        direct: &[],
        tail: [0; COPIED + 2 * poly1305::BLOCK],
        from: 0,
        to: 0,
        phase: Phase::Tail,
    };

    fn begin(&mut self, packet: &'a mut Packet<'_>, key: &'a OneTimeKey) {
        let body = &*packet.body;
        self.aad = packet.aad.block();
        let (phase, before, direct) = if body.len() <= COPIED {
            (Phase::Tail, poly1305::BLOCK, 0)
        } else {
            (
                Phase::Aad,
                0,
                body.len() / poly1305::BLOCK * poly1305::BLOCK,
            )
        };
        let (direct, rest) = body.split_at(direct);
        self.phase = phase;
        self.direct = direct;
        self.from = 0;
        let lengths = (before + rest.len()).next_multiple_of(poly1305::BLOCK);
        self.to = lengths + poly1305::BLOCK;
        self.tail[..poly1305::BLOCK].copy_from_slice(&self.aad);
        self.tail[before..before + rest.len()].copy_from_slice(rest);
        self.tail[before + rest.len()..lengths].fill(0);
        let aad = packet.aad.as_ref().len() as u64;
        self.tail[lengths..lengths + 8].copy_from_slice(&aad.to_le_bytes());
        self.tail[lengths + 8..self.to].copy_from_slice(&(body.len() as u64).to_le_bytes());
        self.finish = Some(Finish {
            key,
            tag: packet.tag,
            ok: packet.ok,
        });
    }

    fn source(&self) -> Option<&[u8]> {
        self.finish.as_ref()?;
        Some(match self.phase {
            Phase::Aad => &self.aad,
            Phase::Direct => self.direct,
            Phase::Tail => &self.tail[self.from..self.to],
        })
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
        self.from < self.to
    }
}
