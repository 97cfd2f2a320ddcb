//! Compression functions of SHA-1, SHA-256 and SHA-512 over many messages at once.
//!
//! Chaining values lie in a table of columns: word `i` of the message in column `c` is
//! `table[i][c]`.

#[cfg(target_arch = "x86_64")]
mod constants;
#[cfg(target_arch = "x86_64")]
mod ni;
#[cfg(target_arch = "x86_64")]
mod wide;

use crate::backend::Features;

/// Messages side by side at most.
pub(crate) const COLUMNS: usize = 16;

/// Chaining values, a column for each message. SHA-1 uses five of the rows.
pub(crate) type Table<W> = [[W; COLUMNS]; 8];

/// A compression function over columns side by side, `Some` only where the processor has it.
/// Takes as many blocks of each message as the last argument says.
///
/// # Safety
/// The processor has what the function was chosen for, and that many blocks can be read behind the
/// pointer of each column it works on.
pub(crate) type Wide<W> = unsafe fn(&mut Table<W>, &[*const u8; COLUMNS], usize);

/// The same for two columns of choice.
///
/// # Safety
/// As for [`Wide`]; both columns are below [`COLUMNS`].
pub(crate) type Pair<W> = unsafe fn(&mut Table<W>, [usize; 2], [*const u8; 2], usize);

/// A hash function with its words of 32 or 64 bits.
pub(crate) trait Hash {
    type Word: Copy + Default + zeroize::Zeroize + Send + Sync + 'static;
    /// Octets of a block, a power of two.
    const BLOCK: usize;
    /// Octets of the message length at the end of the padding.
    const LENGTH: usize;
    /// Octets of the digest.
    const DIGEST: usize;
    const INITIAL: [Self::Word; 8];

    /// One message alone: the crate, with the instructions it finds.
    fn compress(state: &mut [Self::Word; 8], blocks: &[u8]);

    /// Writes the digest, whole words in network order.
    fn digest(state: &[Self::Word; 8], out: &mut [u8]);

    /// The columns a vector takes with the function for them.
    fn wide(features: Features) -> Option<(usize, Wide<Self::Word>)>;

    fn pair(features: Features) -> Option<Pair<Self::Word>>;

    /// With fewer messages than this the wide function costs more than the others.
    fn worth_wide(features: Features) -> usize;
}

macro_rules! words {
    ($word:ty) => {
        fn digest(state: &[$word; 8], out: &mut [u8]) {
            for (octets, word) in out.chunks_exact_mut(size_of::<$word>()).zip(state) {
                octets.copy_from_slice(&word.to_be_bytes());
            }
        }
    };
}

/// SHA-1 (FIPS 180-4).
pub(crate) struct Sha1;
/// SHA-256.
pub(crate) struct Sha256;
/// SHA-384: SHA-512 from another start, shortened.
pub(crate) struct Sha384;
/// SHA-512.
pub(crate) struct Sha512;

impl Hash for Sha1 {
    type Word = u32;
    const BLOCK: usize = 64;
    const LENGTH: usize = 8;
    const DIGEST: usize = 20;
    const INITIAL: [u32; 8] = [
        0x6745_2301,
        0xefcd_ab89,
        0x98ba_dcfe,
        0x1032_5476,
        0xc3d2_e1f0,
        0,
        0,
        0,
    ];

    fn compress(state: &mut [u32; 8], blocks: &[u8]) {
        if let Some(state) = state.first_chunk_mut::<5>() {
            sha1::block_api::compress(state, blocks.as_chunks().0);
        }
    }

    words!(u32);

    fn wide(features: Features) -> Option<(usize, Wide<u32>)> {
        #[cfg(target_arch = "x86_64")]
        return wide::sha1(features);
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    fn pair(features: Features) -> Option<Pair<u32>> {
        #[cfg(target_arch = "x86_64")]
        return ni::sha1(features);
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    fn worth_wide(features: Features) -> usize {
        match (features.avx512(), features.sha()) {
            (true, true) => 5,
            (false, true) => 7,
            _ => 2,
        }
    }
}

impl Hash for Sha256 {
    type Word = u32;
    const BLOCK: usize = 64;
    const LENGTH: usize = 8;
    const DIGEST: usize = 32;
    const INITIAL: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    fn compress(state: &mut [u32; 8], blocks: &[u8]) {
        sha2::block_api::compress256(state, blocks.as_chunks().0);
    }

    words!(u32);

    fn wide(features: Features) -> Option<(usize, Wide<u32>)> {
        #[cfg(target_arch = "x86_64")]
        return wide::sha256(features);
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    fn pair(features: Features) -> Option<Pair<u32>> {
        #[cfg(target_arch = "x86_64")]
        return ni::sha256(features);
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    fn worth_wide(features: Features) -> usize {
        match (features.avx512(), features.sha()) {
            (true, true) => 15,
            (false, true) => usize::MAX,
            _ => 2,
        }
    }
}

macro_rules! sha512 {
    ($name:ident, $digest:literal, $initial:expr) => {
        impl Hash for $name {
            type Word = u64;
            const BLOCK: usize = 128;
            const LENGTH: usize = 16;
            const DIGEST: usize = $digest;
            const INITIAL: [u64; 8] = $initial;

            fn compress(state: &mut [u64; 8], blocks: &[u8]) {
                sha2::block_api::compress512(state, blocks.as_chunks().0);
            }

            words!(u64);

            fn wide(features: Features) -> Option<(usize, Wide<u64>)> {
                #[cfg(target_arch = "x86_64")]
                return wide::sha512(features);
                #[cfg(not(target_arch = "x86_64"))]
                return None;
            }

            fn pair(_: Features) -> Option<Pair<u64>> {
                None
            }

            fn worth_wide(_: Features) -> usize {
                2
            }
        }
    };
}

sha512!(
    Sha384,
    48,
    [
        0xcbbb_9d5d_c105_9ed8,
        0x629a_292a_367c_d507,
        0x9159_015a_3070_dd17,
        0x152f_ecd8_f70e_5939,
        0x6733_2667_ffc0_0b31,
        0x8eb4_4a87_6858_1511,
        0xdb0c_2e0d_64f9_8fa7,
        0x47b5_481d_befa_4fa4,
    ]
);
sha512!(
    Sha512,
    64,
    [
        0x6a09_e667_f3bc_c908,
        0xbb67_ae85_84ca_a73b,
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
        0x510e_527f_ade6_82d1,
        0x9b05_688c_2b3e_6c1f,
        0x1f83_d9ab_fb41_bd6b,
        0x5be0_cd19_137e_2179,
    ]
);

/// Takes `blocks` blocks of each column that has a source: with `wide` where enough of them have
/// one, otherwise two by two, and what remains alone.
#[allow(unsafe_code)]
pub(crate) fn compress<H: Hash>(
    wide: Option<(usize, Wide<H::Word>)>,
    worth_wide: usize,
    pair: Option<Pair<H::Word>>,
    table: &mut Table<H::Word>,
    sources: &[Option<&[u8]>],
    blocks: usize,
) {
    let octets = blocks * H::BLOCK;
    let mut busy = sources
        .iter()
        .enumerate()
        .filter_map(|(column, source)| Some((column, source.as_ref()?.get(..octets)?)));
    if let Some((lanes, function)) = wide
        && busy.clone().count() >= worth_wide
    {
        let Some((_, any)) = busy.next() else { return };
        // A lane without a message works on some other's, to no effect.
        let mut pointers = [any.as_ptr(); COLUMNS];
        for (column, source) in busy {
            pointers[column] = source.as_ptr();
        }
        assert!(sources.len() <= lanes, "a lane for each message");
        // SAFETY: `H::wide` gave the function for this processor, and every pointer is that of a
        // slice of `blocks` blocks.
        unsafe { function(table, &pointers, blocks) };
        return;
    }
    while let Some((first, source)) = busy.next() {
        if let Some(function) = pair
            && let Some((second, other)) = busy.next()
        {
            let pointers = [source.as_ptr(), other.as_ptr()];
            // SAFETY: `H::pair` gave the function for this processor, the pointers are those of
            // slices of `blocks` blocks, and columns come from a table that wide.
            unsafe { function(table, [first, second], pointers, blocks) };
            continue;
        }
        let mut state = std::array::from_fn(|row| table[row][first]);
        H::compress(&mut state, source);
        for (row, word) in table.iter_mut().zip(state) {
            row[first] = word;
        }
    }
}
