//! The ciphers alone.

use std::hint::black_box;
use std::io;

use espada_common::sa::EspSuite;

use super::{BenchError, Times, child, frame_size, timed};
use crate::esp::crypto::{self, EspCrypto, Job};
use crate::esp::sad::{Geometry, TRAILER};
use crate::umem::{Arena, BURST};

/// Both directions of an SA, and a burst that is sealed and opened in place.
pub struct Bench {
    suite: EspSuite,
    bytes: usize,
    sender: Box<dyn EspCrypto>,
    receiver: Box<dyn EspCrypto>,
    jobs: Vec<Job>,
}

impl Bench {
    pub fn new(suite: EspSuite, bytes: usize) -> Result<Self, BenchError> {
        let sa = child(suite);
        let geometry = Geometry::new(&suite, &sa.path);
        let padding = geometry.padding(bytes);
        let len = geometry.head() + bytes + padding + TRAILER + geometry.icv;
        let mut pool = Arena::new(BURST, frame_size(bytes))?.take(BURST);
        let mut jobs = Vec::with_capacity(BURST);
        while let Some(mut frame) = pool.get() {
            let octets = frame.append(len).map_err(io::Error::other)?;
            octets.fill(0x5a);
            jobs.push(Job::alone(frame, jobs.len() as u64));
        }
        Ok(Self {
            suite,
            bytes,
            sender: crypto::new(&suite, &sa.outbound)?,
            receiver: crypto::new(&suite, &sa.outbound)?,
            jobs,
        })
    }
}

impl super::Bench for Bench {
    fn burst(&mut self) -> Result<Times, BenchError> {
        let Self {
            sender,
            receiver,
            jobs,
            ..
        } = self;
        // No packet has the sequence number of one before.
        for job in &mut *jobs {
            job.seq += BURST as u64;
        }
        let encrypt = timed(|| sender.seal(black_box(jobs)));
        let sealed = jobs.iter().filter(|job| job.ok).count();
        let decrypt = timed(|| receiver.open(black_box(jobs)));
        let opened = jobs.iter().filter(|job| job.ok).count();
        if sealed.min(opened) != BURST {
            return Err(BenchError::Lost {
                suite: self.suite,
                bytes: self.bytes,
                offered: BURST,
                carried: sealed.min(opened),
            });
        }
        Ok(Times { encrypt, decrypt })
    }
}
