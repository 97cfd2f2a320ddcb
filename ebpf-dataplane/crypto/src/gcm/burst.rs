//! From packets to what the vector kernels take.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

use super::kernel::Message;
use super::key::Schedule;
use super::x86::Kernels;
use super::{AesGcm, HEADER, Packet};
use crate::cpu::Backend;

/// Packets prepared at once.
const BATCH: usize = 16;

pub(super) struct Cipher {
    kernels: Kernels,
    schedule: Box<Schedule>,
}

impl Cipher {
    /// `None` if the processor cannot run the backend.
    pub(super) fn new(backend: Backend, key: &[u8]) -> Option<Self> {
        let kernels = Kernels::new(backend, key.len() / 4 + 6)?;
        Some(Self {
            schedule: kernels.prepare(key),
            kernels,
        })
    }

    pub(super) fn seal(&self, sa: &AesGcm, packets: &mut [Packet<'_>]) {
        each_batch(sa, packets, |messages| {
            // SAFETY: `each_batch` made the messages of packets that hold text and ICV.
            unsafe {
                self.kernels.seal(&self.schedule, messages, sa.icv.octets());
            }
        });
    }

    pub(super) fn open(&self, sa: &AesGcm, packets: &mut [Packet<'_>]) {
        each_batch(sa, packets, |messages| {
            // SAFETY: as in `seal`.
            unsafe {
                self.kernels.open(&self.schedule, messages, sa.icv.octets());
            }
        });
    }
}

/// Calls `work` with the messages of some packets at a time.
#[inline(always)]
fn each_batch(sa: &AesGcm, packets: &mut [Packet<'_>], work: impl Fn(&mut [Message])) {
    for batch in packets.chunks_mut(BATCH) {
        let mut messages = [const { Message::NONE }; BATCH];
        let mut count = 0;
        for packet in batch.iter_mut() {
            packet.ok = false;
            if let Some(place) = messages.get_mut(count)
                && let Some(message) = message(sa, packet)
            {
                *place = message;
                count += 1;
            }
        }
        let messages = messages.get_mut(..count).unwrap_or_default();
        work(messages);
        if count == batch.len() {
            for (packet, message) in batch.iter_mut().zip(messages) {
                packet.ok = message.ok;
            }
        } else {
            // Packets that are too short gave no message.
            let mut messages = messages.iter();
            for packet in batch {
                packet.ok = fits(sa, packet) && messages.next().is_some_and(|message| message.ok);
            }
        }
    }
}

fn fits(sa: &AesGcm, packet: &Packet<'_>) -> bool {
    packet.octets.len() >= HEADER + sa.icv.octets()
}

#[inline(always)]
fn message(sa: &AesGcm, packet: &mut Packet<'_>) -> Option<Message> {
    let icv = sa.icv.octets();
    let (header, rest) = packet.octets.split_first_chunk_mut::<HEADER>()?;
    let len = rest.len().checked_sub(icv)?;
    let (nonce, aad, aad_len) = sa.inputs(header, packet.seq);
    Some(Message::new(&nonce, &aad, aad_len, rest.as_mut_ptr(), len))
}
