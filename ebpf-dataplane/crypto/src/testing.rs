//! What the tests of this crate share.
#![allow(unsafe_code)]

/// The octets that `text` names, blanks left out.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Octets that look random and are the same for the same seed.
pub(crate) fn octets(len: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// Octets between two pages that fault on any access, right before the last or behind the first.
pub(crate) struct Guarded {
    pages: *mut u8,
    pages_len: usize,
    from: usize,
    len: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    pub(crate) fn new(len: usize, at_end: bool) -> Self {
        let inside = len.next_multiple_of(PAGE);
        let pages_len = inside + 2 * PAGE;
        // SAFETY: a new private mapping, then protection of pages inside it.
        let pages = unsafe {
            let pages = libc::mmap(
                std::ptr::null_mut(),
                pages_len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(pages, libc::MAP_FAILED);
            let open = pages.cast::<u8>().add(PAGE).cast();
            assert_eq!(
                libc::mprotect(open, inside, libc::PROT_READ | libc::PROT_WRITE),
                0
            );
            pages.cast()
        };
        let from = if at_end { PAGE + inside - len } else { PAGE };
        Self {
            pages,
            pages_len,
            from,
            len,
        }
    }

    pub(crate) fn octets(&mut self) -> &mut [u8] {
        // SAFETY: readable and writable memory of this mapping, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pages.add(self.from), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping `new` made, with no borrow left.
        unsafe { libc::munmap(self.pages.cast(), self.pages_len) };
    }
}
