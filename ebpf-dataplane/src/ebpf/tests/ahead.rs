//! Keystream prepared ahead changes nothing but the time that packets take.

use espada_common::abi::esp::first_slot;
use espada_common::keystream::{self, SLOTS, WORDS, state};

use super::*;
use crate::frontend::syscall::MappedWords;

impl Bench {
    /// Packets whose keystream was ready: received, sent.
    fn prepared(&self) -> [u64; 2] {
        [
            self.maps
                .inbound(self.pair.spi_in_be)
                .unwrap()
                .counters
                .prepared,
            self.maps
                .outbound(self.pair.handle)
                .unwrap()
                .counters
                .prepared,
        ]
    }

    /// All slots, seen from outside.
    fn slots(&self) -> MappedWords {
        let map = std::os::fd::AsFd::as_fd(self.maps.ahead.fd());
        MappedWords::new(map, 4 * SLOTS as usize * WORDS).unwrap()
    }

    /// Word `at` of the slot for an IV.
    fn word(&self, inbound: bool, iv: u64, at: usize) -> u64 {
        let slot = first_slot(1, inbound) + keystream::place(iv);
        self.slots().get()[slot as usize * WORDS + at].load(std::sync::atomic::Ordering::Acquire)
    }

    fn set_word(&self, inbound: bool, iv: u64, at: usize, value: u64) {
        let slot = first_slot(1, inbound) + keystream::place(iv);
        self.slots().get()[slot as usize * WORDS + at]
            .store(value, std::sync::atomic::Ordering::Release);
    }
}

/// Both directions at every length of the packets it is meant for, and some for which it is short.
#[test]
fn bpf_prepared_keystream_makes_the_same_octets() {
    let test = "bpf_prepared_keystream_makes_the_same_octets";
    for esn in [false, true] {
        let sa = sa(Encapsulation::Esp, false, esn);
        let mirror = sa.reversed();
        let Some(mut sender) = Bench::with(test, &sa, true) else {
            return;
        };
        let mut receiver = Bench::with(test, &mirror, true).unwrap();
        let config = crate::esp::Config {
            path_mtu: 9000,
            ..crate::esp::Config::default()
        };
        let (mut userspace, _) = net::pair(&sa, config);
        let lengths = (28..=1600).step_by(if esn { 1 } else { 9 }).chain([3300]);
        let mut count = 0;
        for length in lengths {
            let packet = net::udp(false, length);
            let ours = sender.seal(&packet);
            let theirs = userspace.send(std::slice::from_ref(&packet));
            assert!(ours == theirs[0].0, "inner {length} octets");
            assert_eq!(
                receiver.open(&ours).as_deref(),
                Some(&packet[..]),
                "{length}"
            );
            count += 1;
        }
        for prepared in [sender.prepared()[1], receiver.prepared()[0]] {
            // The thread may lag behind; the first slots are ready before the first packet.
            assert!(prepared >= count.min(SLOTS.into()), "{prepared} of {count}");
        }
    }
}

#[test]
fn bpf_a_forgery_gives_its_keystream_back() {
    let test = "bpf_a_forgery_gives_its_keystream_back";
    let sa = sa(Encapsulation::Esp, false, true);
    let Some(mut sender) = Bench::new(test, &sa.reversed()) else {
        return;
    };
    let mut bench = Bench::with(test, &sa, true).unwrap();
    let mut packet = net::udp(false, 100);
    swap_addresses(&mut packet, false);
    let sent = sender.seal(&packet);
    let mut forged = sent.clone();
    *forged.last_mut().unwrap() ^= 1;
    for count in 1..=3 {
        assert_eq!(bench.open(&forged), None);
        assert_eq!(bench.dropped_in(DropReason::AuthFailed), count);
        assert_eq!(bench.word(true, 1, 0), state::READY);
        assert_eq!(bench.prepared()[0], 0);
    }
    assert_eq!(bench.open(&sent).as_deref(), Some(&packet[..]));
    assert_eq!(bench.prepared()[0], 1);
    assert_eq!(bench.word(true, 1, 0), state::FREE);
}

#[test]
fn bpf_a_slot_that_is_not_the_packets_own_is_left_alone() {
    let test = "bpf_a_slot_that_is_not_the_packets_own_is_left_alone";
    let sa = sa(Encapsulation::Esp, false, true);
    let packet = net::udp(false, 300);
    let correct = |number: u64| {
        let (mut userspace, _) = net::pair(&sa, crate::esp::Config::default());
        (0..number)
            .map(|_| userspace.send(std::slice::from_ref(&packet)).remove(0).0)
            .last()
            .unwrap()
    };
    let Some(mut bench) = Bench::with(test, &sa, true) else {
        return;
    };
    // Packet 1 finds the slot of 1 + SLOTS, packet 2 one of another pair, packet 3 one in use, 4 one that is
    // being written. All content is wrong.
    for (iv, at, value, left) in [
        (1, 1, 1 + u64::from(SLOTS), state::READY),
        (2, 2, bench.word(false, 2, 2) ^ 1, state::READY),
        (3, 0, state::BUSY, state::BUSY),
        (4, 0, state::FILLING, state::FILLING),
    ] {
        bench.set_word(false, iv, at, value);
        bench.set_word(false, iv, 3, 0);
        bench.set_word(false, iv, 12, 0);
        assert!(bench.seal(&packet) == correct(iv), "packet {iv}");
        assert_eq!(bench.prepared()[1], 0);
        assert_eq!(bench.word(false, iv, 0), left, "packet {iv}");
    }
    // What the checks are worth: in a slot that is the packet's own, wrong content is used.
    bench.set_word(false, 5, 12, 0);
    assert!(bench.seal(&packet) != correct(5));
    assert_eq!(bench.prepared()[1], 1);
}

#[test]
fn bpf_nothing_is_left_of_a_pair_that_is_gone() {
    let test = "bpf_nothing_is_left_of_a_pair_that_is_gone";
    let sa = sa(Encapsulation::Esp, false, true);
    let Some(bench) = Bench::with(test, &sa, true) else {
        return;
    };
    let set = |bench: &Bench| {
        let words = bench.slots();
        let load = |word: &std::sync::atomic::AtomicU64| {
            word.load(std::sync::atomic::Ordering::Acquire) != 0
        };
        words.get().iter().filter(|word| load(word)).count()
    };
    assert!(set(&bench) > 2 * SLOTS as usize * (WORDS - 3) * 9 / 10);
    assert_eq!(bench.ahead.free(), 2);
    // What a killed process left in a ring that nobody has, and nothing else.
    let before = set(&bench);
    let foreign = first_slot(2, false) as usize * WORDS;
    for at in [0, 1, 2, 3, WORDS - 1] {
        bench.slots().get()[foreign + at].store(state::READY, std::sync::atomic::Ordering::Release);
    }
    assert_eq!(set(&bench), before + 5);
    bench.ahead.wipe_unused();
    assert_eq!(set(&bench), before);
    bench.ahead.remove(bench.pair.handle);
    assert_eq!(set(&bench), 0);
    assert_eq!(bench.ahead.free(), 1);
}
