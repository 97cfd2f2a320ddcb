//! Nothing before or behind a packet is touched: packets that end, or start, at an unmapped page.
#![allow(unsafe_code)]

use std::ptr;

use super::*;

const PAGE: usize = 4096;

/// Three pages between two that cannot be touched.
struct Fenced(*mut u8);

impl Fenced {
    const SIZE: usize = 3 * PAGE;

    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping of five pages, then the outer two of them closed.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(
                ptr::null_mut(),
                Self::SIZE + 2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert!(base != libc::MAP_FAILED);
            let base: *mut u8 = base.cast();
            for fence in [base, base.add(PAGE + Self::SIZE)] {
                assert!(libc::mprotect(fence.cast(), PAGE, libc::PROT_NONE) == 0);
            }
            Self(base)
        }
    }

    /// The first (or last) `len` octets.
    fn slice(&mut self, len: usize, at_end: bool) -> &mut [u8] {
        assert!(len <= Self::SIZE);
        let start = if at_end { Self::SIZE - len } else { 0 };
        // SAFETY: inside the open pages, borrowed from `self`.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(PAGE + start), len) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the whole mapping of `new`, to which no reference is left.
        unsafe { libc::munmap(self.0.cast(), Self::SIZE + 2 * PAGE) };
    }
}

#[test]
fn packets_next_to_unmapped_pages() {
    let mut fenced = Fenced::new();
    for backend in Backend::available() {
        for icv in ICVS {
            let sa = AesGcm::with_backend(backend, &noise(32, 9), SALT, false, icv).unwrap();
            for len in (0..700).chain([1024, 1404, 1405, 2048, 4097, 8919]) {
                let mut expected = vec![plain(len, 5, icv)];
                let plaintext = expected[0].clone();
                seal(&sa, &mut expected, 5);
                for at_end in [false, true] {
                    let octets = fenced.slice(plaintext.len(), at_end);
                    octets.copy_from_slice(&plaintext);
                    let mut packet = [Packet::new(octets, 5)];
                    sa.seal(&mut packet);
                    assert!(packet[0].octets == &expected[0][..], "{backend} {len}");
                    sa.open(&mut packet);
                    assert!(packet[0].ok, "{backend} {len}");
                }
            }
        }
    }
}

#[test]
fn octets_around_a_packet_stay() {
    for backend in Backend::available() {
        for icv in ICVS {
            let sa = AesGcm::with_backend(backend, &noise(16, 9), SALT, false, icv).unwrap();
            for len in 0..300 {
                let packet = plain(len, 5, icv);
                let inside = 64..64 + packet.len();
                let mut memory = vec![0xa5; packet.len() + 128];
                memory[inside.clone()].copy_from_slice(&packet);
                for opening in [false, true] {
                    let mut packet = [Packet::new(&mut memory[inside.clone()], 5)];
                    if opening {
                        sa.open(&mut packet);
                    } else {
                        sa.seal(&mut packet);
                    }
                    assert!(packet[0].ok);
                    let around = memory[..64].iter().chain(&memory[inside.end..]);
                    assert!(
                        around.clone().all(|octet| *octet == 0xa5),
                        "{backend} {len}"
                    );
                }
            }
        }
    }
}
