//! AES-GCM over a burst, for any [`Vector`].
//!
//! A message is cut into whole groups of [`GROUP`] registers and a tail. The counter blocks of the
//! tails of several messages, and the block that masks each tag, are encrypted together in one
//! pool, so that short messages share the latency of the AES rounds. Whole groups go through AES
//! while the hash of the group before (sealing) or of the same group (opening) fills the gaps.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr;

use super::hash::{Hash, Reducer};
use super::key::{Powers, SEGMENT, Schedule};
use super::vector::Vector;

/// Registers that go through AES together: enough to cover the latency of a round.
const GROUP: usize = 8;

/// Parts that the rounds and the hash of a group are cut into.
const QUARTERS: usize = 4;

/// Registers of counter blocks in a pool.
const POOL: usize = 32;

/// The widest register.
const WIDEST: usize = 64;

/// One message of AES-GCM with its ICV right behind the text.
pub(super) struct Message {
    /// Text, in place.
    pub text: *mut u8,
    /// Octets of text.
    pub len: usize,
    /// The 96-bit nonce; the counter's 32 bits are 0.
    pub nonce: [u64; 2],
    /// The one block of additional data, its 16 octets reversed.
    pub aad: [u64; 2],
    /// Bits of additional data.
    pub aad_bits: u64,
    /// Sealed, or opened and genuine.
    pub ok: bool,
}

impl Message {
    /// No text anywhere.
    pub(super) const NONE: Self = Self {
        text: ptr::null_mut(),
        len: 0,
        nonce: [0; 2],
        aad: [0; 2],
        aad_bits: 0,
        ok: false,
    };

    /// `len` octets at `text`; the first `aad_len` octets of `aad` are additional data, the others
    /// are 0.
    #[inline(always)]
    pub(super) fn new(
        nonce: &[u8; 12],
        aad: &[u8; 16],
        aad_len: usize,
        text: *mut u8,
        len: usize,
    ) -> Self {
        let mut block = [0; 16];
        block[..12].copy_from_slice(nonce);
        let nonce = u128::from_le_bytes(block);
        let aad = u128::from_be_bytes(*aad);
        Self {
            text,
            len,
            nonce: [nonce as u64, (nonce >> 64) as u64],
            aad: [aad as u64, (aad >> 64) as u64],
            aad_bits: aad_len as u64 * 8,
            ok: false,
        }
    }
}

/// Counter blocks, then key stream. One register more than there are counter blocks for may be
/// encrypted for nothing.
#[repr(C, align(64))]
struct Pool([u8; (POOL + 1) * WIDEST]);

/// Seals or opens `messages` whose ICV has `icv` octets: 8, 12 or 16. The text of a message that
/// is not genuine is overwritten with 0.
///
/// # Safety
/// For each message, `len` octets at `text` and `icv` octets behind them must be readable and
/// writable.
#[inline(always)]
pub(super) unsafe fn run<S: Vector, const ROUNDS: usize, const SEAL: bool>(
    s: S,
    keys: &Schedule,
    messages: &mut [Message],
    icv: usize,
) {
    let mut pool = MaybeUninit::<Pool>::uninit();
    let pool_start: *mut u8 = pool.as_mut_ptr().cast();
    let mut used = 0;
    let rounds = black_box(ROUNDS);
    let mut waiting = messages;
    while !waiting.is_empty() {
        let mut registers = 0;
        let mut taken = 0;
        for message in waiting.iter() {
            let shape = Shape::of::<S>(message.len);
            if registers + shape.pooled > POOL {
                break;
            }
            // SAFETY: the pool has room for `shape.pooled` registers more.
            unsafe {
                lay_counters(
                    s,
                    message,
                    &shape,
                    pool_start.add(registers * octets::<S>()),
                )
            };
            registers += shape.pooled;
            taken += 1;
        }
        used = used.max(registers + 1);
        // SAFETY: at most `POOL` registers, and the pool has one to spare.
        unsafe {
            s.store(pool_start.add(registers * octets::<S>()), s.every([0, 0]));
            encrypt_pool(s, keys, pool_start, registers, rounds);
        }
        let (batch, rest) = waiting.split_at_mut(taken);
        waiting = rest;
        let mut stream = pool_start.cast_const();
        for message in batch {
            let shape = Shape::of::<S>(message.len);
            // SAFETY: the caller's promise about the message; its part of the pool is where
            // `lay_counters` put it.
            unsafe { process::<S, ROUNDS, SEAL>(s, keys, message, &shape, stream, icv) };
            stream = stream.wrapping_add(shape.pooled * octets::<S>());
        }
    }
    // The key stream goes; the pool is looked at afterwards so that the compiler keeps this.
    for register in 0..used {
        // SAFETY: the registers written above.
        unsafe { s.store(pool_start.add(register * octets::<S>()), s.every([0, 0])) };
    }
    black_box(&pool);
}

/// Octets of a register.
#[inline(always)]
const fn octets<S: Vector>() -> usize {
    16 * S::BLOCKS
}

/// How a text of some length is cut.
struct Shape {
    /// Whole groups.
    groups: usize,
    /// Octets behind them.
    tail: usize,
    /// Blocks those take.
    tail_blocks: usize,
    /// Registers in the pool for them and the block that masks the tag.
    pooled: usize,
}

impl Shape {
    #[inline(always)]
    fn of<S: Vector>(len: usize) -> Self {
        let group = GROUP * octets::<S>();
        let tail = len % group;
        let tail_blocks = tail.div_ceil(16);
        Self {
            groups: len / group,
            tail,
            tail_blocks,
            pooled: tail_blocks / S::BLOCKS + 1,
        }
    }
}

/// Counter blocks from `first` on, still with little-endian counters.
#[inline(always)]
fn counters<S: Vector>(s: S, [low, high]: [u64; 2], first: u32) -> S::V {
    s.add32(s.every([low, high | u64::from(first) << 32]), s.steps())
}

/// Adding this moves counters on by a register.
#[inline(always)]
fn stride<S: Vector>(s: S) -> S::V {
    s.every([0, (S::BLOCKS as u64) << 32])
}

/// Writes the counter blocks of the tail, then the one with counter 1.
///
/// # Safety
/// `shape.pooled` registers at `to` must be writable.
#[inline(always)]
unsafe fn lay_counters<S: Vector>(s: S, message: &Message, shape: &Shape, mut to: *mut u8) {
    // SP 800-38D section 7.1: the text starts at counter 2. Longer messages than 2^32 blocks do
    // not exist.
    let blocks = (shape.groups * GROUP * S::BLOCKS) as u32;
    let mut counter = counters(s, message.nonce, blocks.wrapping_add(2));
    let stride = stride(s);
    for _ in 1..shape.pooled {
        // SAFETY: one of the registers before the last.
        unsafe { s.store(to, s.big_endian_counters(counter)) };
        counter = s.add32(counter, stride);
        to = to.wrapping_add(octets::<S>());
    }
    let [low, high] = message.nonce;
    let mask = s.every([low, high | 1 << 32]);
    let own = shape.tail_blocks % S::BLOCKS * 16;
    let last = s.xor(mask, s.keep(s.xor(mask, counter), own));
    // SAFETY: the last register.
    unsafe { s.store(to, s.big_endian_counters(last)) };
}

/// Turns counter blocks into key stream.
///
/// # Safety
/// `registers` and one more at `pool` must be readable and writable.
#[inline(always)]
unsafe fn encrypt_pool<S: Vector>(
    s: S,
    keys: &Schedule,
    pool: *mut u8,
    registers: usize,
    rounds: usize,
) {
    let mut done = 0;
    while done < registers {
        let at = pool.wrapping_add(done * octets::<S>());
        // SAFETY: what is left, made even.
        unsafe {
            match registers - done {
                1..=2 => encrypt::<S, 2>(s, keys, at, rounds),
                3..=4 => encrypt::<S, 4>(s, keys, at, rounds),
                5..=6 => encrypt::<S, 6>(s, keys, at, rounds),
                _ => encrypt::<S, GROUP>(s, keys, at, rounds),
            }
        }
        done += GROUP;
    }
}

/// AES over `N` registers in memory. `rounds` is a value and not a constant, or the compiler unrolls
/// the rounds and then takes the registers through them two by two.
///
/// # Safety
/// They must be readable and writable.
#[inline(always)]
unsafe fn encrypt<S: Vector, const N: usize>(s: S, keys: &Schedule, at: *mut u8, rounds: usize) {
    let place = |index: usize| at.wrapping_add(index * octets::<S>());
    let first = keys.round_key(s, 0);
    let mut states = [first; N];
    for (index, state) in states.iter_mut().enumerate() {
        // SAFETY: one of the `N`.
        *state = s.xor(unsafe { s.load(place(index)) }, first);
    }
    for round in 1..rounds {
        let key = keys.round_key(s, round);
        for state in &mut states {
            *state = s.round(*state, key);
        }
    }
    let last = keys.round_key(s, rounds);
    for (index, state) in states.iter().enumerate() {
        // SAFETY: one of the `N`.
        unsafe { s.store(place(index), s.last_round(*state, last)) };
    }
}

/// The hash of one message on its way.
struct Progress<'a, S: Vector> {
    keys: &'a Schedule,
    hash: Hash<S>,
    /// The power for the next block.
    powers: Powers,
    /// Blocks up to the end of this segment, if another follows.
    left: usize,
    /// Blocks of text behind this segment.
    rest: usize,
    /// What comes before the segment (the additional data or the hash so far), and its power.
    carry: [u64; 2],
    carry_exponent: usize,
}

impl<'a, S: Vector> Progress<'a, S> {
    #[inline(always)]
    fn new(s: S, keys: &'a Schedule, message: &Message) -> Self {
        let mut progress = Self {
            keys,
            hash: Hash::new(s),
            powers: keys.power(1),
            left: 0,
            rest: message.len.div_ceil(16),
            carry: message.aad,
            carry_exponent: 0,
        };
        progress.begin_segment();
        // The additional data is a block of its own; the hash of a segment is added to the next
        // one's first block.
        progress.carry_exponent += 1;
        progress
    }

    #[inline(always)]
    fn begin_segment(&mut self) {
        let exponent = if self.rest <= SEGMENT {
            // The block of lengths follows the text.
            let exponent = self.rest + 1;
            (self.left, self.rest) = (usize::MAX, 0);
            exponent
        } else {
            (self.left, self.rest) = (SEGMENT, self.rest - SEGMENT);
            SEGMENT
        };
        self.powers = self.keys.power(exponent);
        self.carry_exponent = exponent;
    }

    /// Adds a register of text `ahead` registers further on.
    #[inline(always)]
    fn add(&mut self, s: S, text: S::V, ahead: usize) {
        let powers = self.powers.down(ahead * S::BLOCKS);
        // SAFETY: the text is as long as `new` was told, so its powers, down to 2, exist, and a
        // register can be read at each.
        let (power, middle) = unsafe { (s.load(powers.power), s.load(powers.middle)) };
        self.hash.add_by(s, s.reverse(text), power, middle);
    }

    /// After [`GROUP`] registers.
    #[inline(always)]
    fn advance_group(&mut self, s: S) {
        self.powers = self.powers.down(GROUP * S::BLOCKS);
        self.left -= GROUP * S::BLOCKS;
        if self.left == 0 {
            self.end_segment(s);
        }
    }

    #[inline(always)]
    fn end_segment(&mut self, s: S) {
        self.add_single(s, self.carry, self.carry_exponent);
        self.carry = self.hash.reduce(s, &Reducer::new(s));
        self.hash = Hash::new(s);
        self.begin_segment();
    }

    #[inline(always)]
    fn add_single(&mut self, s: S, block: [u64; 2], exponent: usize) {
        let powers = self.keys.power(exponent);
        // SAFETY: a register can be read at each power.
        let (power, middle) = unsafe { (s.load(powers.power), s.load(powers.middle)) };
        self.hash.add_by(s, s.single(block), power, middle);
    }

    /// The hash, octets reversed, once the text is in.
    #[inline(always)]
    fn finish(mut self, s: S, message: &Message) -> [u64; 2] {
        let lengths = [message.len as u64 * 8, message.aad_bits];
        if S::BLOCKS > 1 {
            let (first, second) = (self.keys.power(self.carry_exponent), self.keys.power(1));
            // SAFETY: powers are blocks.
            let (power, middle) = unsafe {
                (
                    s.load_two(first.power, second.power),
                    s.load_two(first.middle, second.middle),
                )
            };
            self.hash
                .add_by(s, s.two(self.carry, lengths), power, middle);
        } else {
            self.add_single(s, self.carry, self.carry_exponent);
            self.add_single(s, lengths, 1);
        }
        self.hash.reduce(s, &Reducer::new(s))
    }
}

/// Seals or opens a message; `stream` is its part of the pool.
///
/// # Safety
/// As [`run`], and `shape.pooled` registers at `stream` must be readable.
#[inline(always)]
unsafe fn process<S: Vector, const ROUNDS: usize, const SEAL: bool>(
    s: S,
    keys: &Schedule,
    message: &mut Message,
    shape: &Shape,
    stream: *const u8,
    icv: usize,
) {
    let mut progress = Progress::new(s, keys, message);
    let group = GROUP * octets::<S>();
    let mut text = message.text;
    if shape.groups > 0 {
        let quarters = black_box(QUARTERS);
        let mut counter = counters(s, message.nonce, 2);
        let end = text.wrapping_add(shape.groups * group);
        // SAFETY: `shape.groups` whole groups of text are there; the one before the current one
        // too, except at the start.
        unsafe {
            if SEAL {
                encrypt_group::<S, ROUNDS, false>(
                    s,
                    keys,
                    &mut counter,
                    text,
                    text,
                    &mut progress,
                    quarters,
                );
                text = text.wrapping_add(group);
            }
            while text != end {
                let hashed = if SEAL { text.wrapping_sub(group) } else { text };
                encrypt_group::<S, ROUNDS, true>(
                    s,
                    keys,
                    &mut counter,
                    text,
                    hashed,
                    &mut progress,
                    quarters,
                );
                text = text.wrapping_add(group);
            }
            if SEAL {
                let hashed = text.wrapping_sub(group);
                for index in 0..GROUP {
                    let sealed = s.load(hashed.wrapping_add(index * octets::<S>()));
                    progress.add(s, sealed, index);
                }
                progress.advance_group(s);
            }
        }
    }

    let end = message.text.wrapping_add(message.len);
    // Read now, as the tail's last store may touch the ICV.
    let sent = if SEAL {
        [0; 2]
    } else {
        // SAFETY: the ICV is behind the text.
        unsafe { read_icv(end, icv) }
    };
    // SAFETY: `shape.tail` octets of text and the ICV behind them; the tail's key stream.
    unsafe { process_tail::<S, SEAL>(s, text, shape.tail, stream, &mut progress) };
    // SAFETY: the block behind the tail's key stream is in the pool too.
    let mask =
        unsafe { ptr::read_unaligned(stream.add(shape.tail_blocks * 16).cast::<[u64; 2]>()) };

    let [low, high] = progress.finish(s, message);
    let tag = [high.swap_bytes() ^ mask[0], low.swap_bytes() ^ mask[1]];
    if SEAL {
        // SAFETY: the place of the ICV.
        unsafe { write_icv(end, icv, tag) };
        message.ok = true;
        return;
    }
    // One comparison over all bits: its time does not tell which differ.
    let difference = (tag[0] ^ sent[0]) | ((tag[1] ^ sent[1]) & icv_mask(icv));
    message.ok = difference == 0;
    if !message.ok {
        // SAFETY: the message's text.
        unsafe { ptr::write_bytes(message.text, 0, message.len) };
    }
}

/// Encrypts (or decrypts) a group of text and, with `HASH`, hashes the group at `hashed`.
///
/// # Safety
/// Both groups must be readable, the one at `text` writable. `quarters` must be [`QUARTERS`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn encrypt_group<S: Vector, const ROUNDS: usize, const HASH: bool>(
    s: S,
    keys: &Schedule,
    counter: &mut S::V,
    text: *mut u8,
    hashed: *const u8,
    progress: &mut Progress<'_, S>,
    quarters: usize,
) {
    debug_assert!(quarters == QUARTERS);
    let first = keys.round_key(s, 0);
    let stride = stride(s);
    let mut states = [first; GROUP];
    for state in &mut states {
        *state = s.xor(s.big_endian_counters(*counter), first);
        *counter = s.add32(*counter, stride);
    }
    // Each quarter of the rounds goes with a quarter of the hash. The number of quarters comes from
    // outside, or the compiler unrolls this and then takes the registers through AES two by two.
    let span = (ROUNDS - 2) / QUARTERS;
    let mut round = 1;
    for quarter in 0..quarters {
        for step in 0..span {
            let key = keys.round_key(s, round + step);
            for state in &mut states {
                *state = s.round(*state, key);
            }
            let index = quarter * (GROUP / QUARTERS) + step;
            if HASH && step < GROUP / QUARTERS {
                // SAFETY: a register of the group.
                let blocks = unsafe { s.load(hashed.wrapping_add(index * octets::<S>())) };
                progress.add(s, blocks, index);
            }
        }
        round += span;
    }
    for round in 1 + span * QUARTERS..ROUNDS {
        let key = keys.round_key(s, round);
        for state in &mut states {
            *state = s.round(*state, key);
        }
    }
    let last = keys.round_key(s, ROUNDS);
    for (index, state) in states.iter().enumerate() {
        let at = text.wrapping_add(index * octets::<S>());
        // SAFETY: a register of the group.
        unsafe { s.store(at, s.xor(s.load(at), s.last_round(*state, last))) };
    }
    if HASH {
        progress.advance_group(s);
    }
}

/// Encrypts (or decrypts) and hashes what is behind the whole groups.
///
/// # Safety
/// `left` octets at `text` and [`super::vector::SLACK`] behind them must be readable and writable,
/// the registers at `stream` that they need readable.
#[inline(always)]
unsafe fn process_tail<S: Vector, const SEAL: bool>(
    s: S,
    mut text: *mut u8,
    mut left: usize,
    mut stream: *const u8,
    progress: &mut Progress<'_, S>,
) {
    while left >= octets::<S>() {
        // SAFETY: a whole register is left.
        unsafe {
            let input = s.load(text);
            let output = s.xor(input, s.load(stream));
            s.store(text, output);
            progress.add(s, if SEAL { output } else { input }, 0);
        }
        progress.powers = progress.powers.down(S::BLOCKS);
        text = text.wrapping_add(octets::<S>());
        stream = stream.wrapping_add(octets::<S>());
        left -= octets::<S>();
    }
    if left > 0 {
        // SAFETY: less than a register is left, and the ICV behind it.
        unsafe {
            let input = s.load_part(text, left);
            let output = s.xor(input, s.load(stream));
            s.store_part(text, output, left);
            let sealed = if SEAL { s.keep(output, left) } else { input };
            progress.add(s, sealed, 0);
        }
    }
}

/// The bits of a tag's second half that an ICV has.
#[inline(always)]
fn icv_mask(icv: usize) -> u64 {
    match icv {
        8 => 0,
        12 => u64::from(u32::MAX),
        _ => u64::MAX,
    }
}

/// # Safety
/// `icv` octets (8, 12 or 16) at `from` must be readable.
#[inline(always)]
unsafe fn read_icv(from: *const u8, icv: usize) -> [u64; 2] {
    // SAFETY: each reads within `icv` octets.
    unsafe {
        let second = from.wrapping_add(8);
        [
            ptr::read_unaligned(from.cast()),
            match icv {
                8 => 0,
                12 => u64::from(ptr::read_unaligned(second.cast::<u32>())),
                _ => ptr::read_unaligned(second.cast()),
            },
        ]
    }
}

/// # Safety
/// `icv` octets (8, 12 or 16) at `to` must be writable.
#[inline(always)]
unsafe fn write_icv(to: *mut u8, icv: usize, tag: [u64; 2]) {
    // SAFETY: each writes within `icv` octets.
    unsafe {
        ptr::write_unaligned(to.cast(), tag[0]);
        let second = to.wrapping_add(8);
        match icv {
            8 => {}
            12 => ptr::write_unaligned(second.cast(), tag[1] as u32),
            _ => ptr::write_unaligned(second.cast(), tag[1]),
        }
    }
}
