//! What the kernels ask of a vector unit: a register of one, two or four 16-octet blocks.
#![allow(unsafe_code)]

/// The instructions of one backend. A value is proof that the processor has them, so the methods
/// that touch no memory are safe. Octets of a block count from the lowest address; the two `u64`
/// of a block are its little-endian halves, low half first.
pub(super) trait Vector: Copy {
    /// A register.
    type V: Copy;

    /// Blocks in a register.
    const BLOCKS: usize;

    /// Reads a register.
    ///
    /// # Safety
    /// All its octets at `from` must be readable.
    unsafe fn load(self, from: *const u8) -> Self::V;

    /// Writes a register.
    ///
    /// # Safety
    /// All its octets at `to` must be writable.
    unsafe fn store(self, to: *mut u8, value: Self::V);

    /// Reads `len` octets, at least one and at most a register; the others become 0.
    ///
    /// # Safety
    /// `len` octets at `from` and [`SLACK`] octets behind them must be readable.
    unsafe fn load_part(self, from: *const u8, len: usize) -> Self::V;

    /// Writes the first `len` octets, at least one and at most a register. Up to [`SLACK`] octets
    /// behind them may change.
    ///
    /// # Safety
    /// `len` octets at `to` and [`SLACK`] octets behind them must be writable.
    unsafe fn store_part(self, to: *mut u8, value: Self::V, len: usize);

    /// `value` with 0 behind its first `len` octets.
    fn keep(self, value: Self::V, len: usize) -> Self::V;

    /// The same halves in every block.
    fn every(self, halves: [u64; 2]) -> Self::V;

    /// `halves` in the first block, 0 in the others.
    fn single(self, halves: [u64; 2]) -> Self::V;

    /// `first` and `second` in the first two blocks of at least two, 0 in the others.
    fn two(self, first: [u64; 2], second: [u64; 2]) -> Self::V;

    /// A block from each pointer in the first two blocks of at least two, 0 in the others.
    ///
    /// # Safety
    /// 16 octets at both must be readable.
    unsafe fn load_two(self, first: *const u8, second: *const u8) -> Self::V;

    /// Exclusive or.
    fn xor(self, a: Self::V, b: Self::V) -> Self::V;

    /// Exclusive or of three.
    fn xor3(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Sums of the 32-bit words, wrapping.
    fn add32(self, a: Self::V, b: Self::V) -> Self::V;

    /// 0, 1, 2, 3 in the last 32-bit word of each block, 0 elsewhere.
    fn steps(self) -> Self::V;

    /// Reverses the octets of the last 32-bit word of each block.
    fn big_endian_counters(self, value: Self::V) -> Self::V;

    /// Reverses the octets of each block.
    fn reverse(self, value: Self::V) -> Self::V;

    /// Swaps the halves of each block.
    fn swap(self, value: Self::V) -> Self::V;

    /// One AES round on each block.
    fn round(self, state: Self::V, key: Self::V) -> Self::V;

    /// The last AES round on each block.
    fn last_round(self, state: Self::V, key: Self::V) -> Self::V;

    /// Carry-less product of the low halves.
    fn mul_low(self, a: Self::V, b: Self::V) -> Self::V;

    /// Carry-less product of the high halves.
    fn mul_high(self, a: Self::V, b: Self::V) -> Self::V;

    /// Exclusive or of all blocks.
    fn fold(self, value: Self::V) -> [u64; 2];
}

/// Octets behind a message that partial loads and stores may touch: the shortest ICV.
pub(super) const SLACK: usize = 8;
