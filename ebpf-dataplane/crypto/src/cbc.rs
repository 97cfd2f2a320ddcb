//! AES-CBC (RFC 3602) over a burst of packets. A packet's blocks must be encrypted one after
//! another, so many packets are in work at once; decryption is parallel within a packet.

#[cfg(target_arch = "x86_64")]
mod kernel;

use aes::cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit,
    KeyInit, consts::U16,
};

use crate::backend::Features;

/// Octets of a block and of the IV.
pub const BLOCK: usize = 16;

/// An IV with the blocks that follow it in the packet.
pub struct Chain<'a>(&'a mut [u8]);

impl<'a> Chain<'a> {
    /// `None` unless `octets` are an IV and whole blocks.
    pub fn new(octets: &'a mut [u8]) -> Option<Self> {
        (octets.len() >= BLOCK && octets.len().is_multiple_of(BLOCK)).then_some(Self(octets))
    }

    /// Writes the IV.
    pub fn set_iv(&mut self, iv: &[u8; BLOCK]) {
        self.0[..BLOCK].copy_from_slice(iv);
    }
}

/// AES-CBC with its key.
pub struct AesCbc(Implementation);

enum Implementation {
    Crates(Box<dyn BlockChain>),
    #[cfg(target_arch = "x86_64")]
    Burst(Box<kernel::Aes>),
}

impl AesCbc {
    /// `None` unless the key has 16, 24 or 32 octets.
    pub fn new(features: Features, key: &[u8]) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(aes) = kernel::Aes::new(features, key) {
            return Some(Self(Implementation::Burst(Box::new(aes))));
        }
        let _ = features;
        Some(Self(Implementation::Crates(match key.len() {
            16 => Box::new(Crates(aes::Aes128::new_from_slice(key).ok()?)),
            24 => Box::new(Crates(aes::Aes192::new_from_slice(key).ok()?)),
            _ => Box::new(Crates(aes::Aes256::new_from_slice(key).ok()?)),
        })))
    }

    /// Names the instructions it is made of.
    pub fn instructions(&self) -> &'static str {
        match &self.0 {
            Implementation::Crates(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Implementation::Burst(aes) => aes.instructions(),
        }
    }

    /// Encrypts every chain of the burst in place, as many at a time as the processor likes.
    pub fn encrypt<'a>(&self, burst: impl Iterator<Item = Chain<'a>>) {
        match &self.0 {
            Implementation::Crates(cipher) => burst.for_each(|chain| cipher.encrypt(chain.0)),
            #[cfg(target_arch = "x86_64")]
            Implementation::Burst(aes) => encrypt_lanes(aes, burst),
        }
    }

    /// Decrypts every chain of the burst in place.
    pub fn decrypt<'a>(&self, burst: impl Iterator<Item = Chain<'a>>) {
        match &self.0 {
            Implementation::Crates(cipher) => burst.for_each(|chain| cipher.decrypt(chain.0)),
            #[cfg(target_arch = "x86_64")]
            Implementation::Burst(aes) => burst.for_each(|chain| aes.decrypt(chain.0)),
        }
    }
}

/// Gives each lane a packet, goes on until the shortest is done, and gives that lane the next.
#[cfg(target_arch = "x86_64")]
fn encrypt_lanes<'a>(aes: &kernel::Aes, mut burst: impl Iterator<Item = Chain<'a>>) {
    let mut chained = [[0; BLOCK]; kernel::LANES];
    let mut lanes: [&mut [u8]; kernel::LANES] = std::array::from_fn(|_| Default::default());
    loop {
        let mut blocks = usize::MAX;
        for (lane, chained) in lanes[..aes.lanes()].iter_mut().zip(&mut chained) {
            while lane.is_empty()
                && let Some(Chain(octets)) = burst.next()
                && let Some((iv, body)) = octets.split_first_chunk_mut()
            {
                *chained = *iv;
                *lane = body;
            }
            if !lane.is_empty() {
                blocks = blocks.min(lane.len() / BLOCK);
            }
        }
        if blocks == usize::MAX {
            return;
        }
        let taken = aes.encrypt(&mut chained, &mut lanes, blocks);
        for lane in &mut lanes {
            if !lane.is_empty() {
                *lane = &mut std::mem::take(lane)[taken * BLOCK..];
            }
        }
    }
}

/// A block cipher of the crates in CBC mode over an IV and whole blocks.
trait BlockChain: Send + Sync {
    fn encrypt(&self, chain: &mut [u8]);
    fn decrypt(&self, chain: &mut [u8]);
}

struct Crates<C>(C);

impl<C> BlockChain for Crates<C>
where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, chain: &mut [u8]) {
        if let Some((iv, body)) = chain.split_first_chunk_mut::<BLOCK>() {
            let (blocks, _) = Array::slice_as_chunks_mut(body);
            cbc::Encryptor::inner_iv_init(&self.0, (&*iv).into()).encrypt_blocks(blocks);
        }
    }

    fn decrypt(&self, chain: &mut [u8]) {
        if let Some((iv, body)) = chain.split_first_chunk_mut::<BLOCK>() {
            let (blocks, _) = Array::slice_as_chunks_mut(body);
            cbc::Decryptor::inner_iv_init(&self.0, (&*iv).into()).decrypt_blocks(blocks);
        }
    }
}

#[cfg(test)]
mod tests;
