//! The kernels over the model of a vector unit: every register width on any machine, and under Miri.
#![allow(unsafe_code)]

use super::super::kernel::{self, Message};
use super::super::key::Schedule;
use super::super::model::Model;
use super::*;

/// A burst through the model with `B` blocks to a register, and through the portable backend.
fn compare<const B: usize, const ROUNDS: usize>(lengths: &[usize], icv: Icv) {
    let key = noise(4 * (ROUNDS - 6), 6);
    let portable = AesGcm::with_backend(Backend::Portable, &key, SALT, true, icv).unwrap();
    let schedule = Schedule::new::<_, ROUNDS>(Model::<B>, &key);
    let first = 0xffff_ffff_u64;
    let mut expected: Vec<_> = lengths
        .iter()
        .zip(first..)
        .map(|(len, seq)| plain(*len, seq, icv))
        .collect();
    let plaintexts = expected.clone();
    seal(&portable, &mut expected, first);

    let mut packets = plaintexts.clone();
    let messages = |packets: &mut [Vec<u8>]| -> Vec<Message> {
        packets
            .iter_mut()
            .zip(first..)
            .map(|(packet, seq)| {
                packet[8..HEADER].copy_from_slice(&seq.to_be_bytes());
                let (header, rest) = packet.split_first_chunk_mut::<HEADER>().unwrap();
                let (nonce, aad, aad_len) = portable.inputs(header, seq);
                let len = rest.len() - icv.octets();
                Message::new(&nonce, &aad, aad_len, rest.as_mut_ptr(), len)
            })
            .collect()
    };
    let mut sealing = messages(&mut packets);
    // SAFETY: the messages lie in `packets`, which nothing else touches meanwhile.
    unsafe {
        kernel::run::<_, ROUNDS, true>(Model::<B>, &schedule, &mut sealing, icv.octets());
    }
    assert!(packets == expected, "{B} blocks, lengths {lengths:?}");

    let forged = lengths.len() / 2;
    packets[forged][HEADER] ^= 1;
    let mut opening = messages(&mut packets);
    // SAFETY: as above.
    unsafe {
        kernel::run::<_, ROUNDS, false>(Model::<B>, &schedule, &mut opening, icv.octets());
    }
    for (at, message) in opening.iter().enumerate() {
        assert_eq!(message.ok, at != forged);
        let text = HEADER..HEADER + lengths[at];
        if message.ok {
            assert!(packets[at][text.clone()] == plaintexts[at][text]);
        } else {
            assert!(packets[at][text].iter().all(|octet| *octet == 0));
        }
    }
}

#[test]
fn every_width_by_the_model() {
    // Around register, group and segment boundaries of every width; under Miri fewer.
    let mut lengths: Vec<usize> = (0..70).collect();
    if !cfg!(miri) {
        for boundary in [128, 256, 512, 1024, 2048, 4096] {
            lengths.extend([16, 1, 0].map(|less| boundary - less));
            lengths.extend([1, 16, 17].map(|more| boundary + more));
        }
        lengths.extend([1404, 5000]);
    } else {
        lengths.retain(|len| len % 7 == 1);
        lengths.extend([129, 513, 2049]);
    }
    for icv in ICVS {
        compare::<1, 10>(&lengths, icv);
        compare::<2, 14>(&lengths, icv);
        compare::<4, 12>(&lengths, icv);
        compare::<4, 14>(&lengths, icv);
    }
}
