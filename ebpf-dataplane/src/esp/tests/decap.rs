use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, Command, Encapsulation, Event};
use proptest::prelude::*;

use super::net::*;
use crate::esp::crypto::{self, Job};
use crate::esp::ip::protocol;
use crate::esp::sad::Geometry;
use crate::esp::{Config, ip};
use crate::umem::{Burst, Meta};

#[test]
fn replays_are_dropped_in_the_burst_and_later() {
    for encapsulation in [Encapsulation::Esp, Encapsulation::Udp] {
        let (mut a, mut b) = gcm_pair(encapsulation);
        let wire = a.send(&[udp(false, 64), udp(false, 65)]);
        let twice = [
            wire[0].clone(),
            wire[1].clone(),
            wire[0].clone(),
            wire[1].clone(),
        ];
        assert_eq!(b.receive(&twice).len(), 2);
        assert_eq!(b.sa_drops(1, DropReason::Replay), 2);
        assert!(b.receive(&wire).is_empty());
        assert_eq!(b.sa_drops(1, DropReason::Replay), 4);
        // 64 packets further, what was delayed is left of the window.
        let late = a.send(&[udp(false, 64)]);
        let next = a.send(&vec![udp(false, 64); 64]);
        assert_eq!(b.receive(&next).len(), 64);
        assert!(b.receive(&late).is_empty());
        assert_eq!(b.stats.snapshot()[0].inbound.packets, 66);
    }
}

#[test]
fn every_flipped_bit_fails_authentication_and_changes_nothing() {
    for suite in suites() {
        let sa = child(1, suite, path(Encapsulation::Udp, false));
        let (mut a, mut b) = pair(&sa, Config::default());
        let wire = a.send(&[udp(false, 60)]).remove(0);
        // The SPI selects the SA, so its octets are left alone; low sequence bits are covered too.
        for octet in 4..wire.0.len() {
            let mut forged = wire.clone();
            forged.0[octet] ^= 1 << (octet % 8);
            assert!(b.receive(&[forged]).is_empty(), "{suite} octet {octet}");
        }
        let refused = b.sa_drops(1, DropReason::AuthFailed) + b.sa_drops(1, DropReason::Replay);
        assert_eq!(refused, wire.0.len() as u64 - 4);
        // RFC 4303 section 3.4.3: the window did not move.
        assert_eq!(b.receive(&[wire]), [udp(false, 60)]);
    }
}

/// A sealed ESP packet with exactly this plaintext, trailer included, as A would send it.
fn sealed(
    b: &mut Gateway,
    sa: &espada_common::sa::ChildSa,
    seq: u64,
    plain: &[u8],
) -> (Vec<u8>, Meta) {
    let geometry = Geometry::new(&sa.suite, &sa.path);
    let mut packet = sa.outbound.spi.to_be_bytes().to_vec();
    packet.extend((seq as u32).to_be_bytes());
    packet.resize(geometry.head(), 0);
    packet.extend(plain);
    packet.resize(packet.len() + geometry.icv, 0);
    let frame = b.frame(&packet, Meta::default());
    let mut jobs = [Job::alone(frame, seq)];
    crypto::new(&sa.suite, &sa.outbound)
        .unwrap()
        .seal(&mut jobs);
    let [job] = jobs;
    let octets = job.frame.data().to_vec();
    b.pool.put(job.frame);
    (
        octets,
        Meta {
            path: sa.path,
            ..Meta::default()
        },
    )
}

fn trailer(mut inner: Vec<u8>, padding: &[u8], next_header: u8) -> Vec<u8> {
    inner.extend(padding);
    inner.extend([padding.len() as u8, next_header]);
    inner
}

#[test]
fn padding_dummies_and_next_headers() {
    let sa = child(1, GCM, path(Encapsulation::Udp, false));
    let (_, mut b) = pair(&sa, Config::default());
    let inner = udp(false, 62);
    let mut seq = 0;
    let mut give = |b: &mut Gateway, plain: Vec<u8>| {
        seq += 1;
        let packet = sealed(b, &sa, seq, &plain);
        b.receive(&[packet])
    };
    assert_eq!(
        give(&mut b, trailer(inner.clone(), &[], protocol::IPV4)),
        std::slice::from_ref(&inner)
    );
    // More padding than needed is fine, wrong padding is not.
    assert_eq!(
        give(
            &mut b,
            trailer(inner.clone(), &[1, 2, 3, 4], protocol::IPV4)
        ),
        std::slice::from_ref(&inner)
    );
    assert!(
        give(
            &mut b,
            trailer(inner.clone(), &[1, 2, 3, 5], protocol::IPV4)
        )
        .is_empty()
    );
    // Zeros are what some peers pad with.
    assert_eq!(
        give(&mut b, trailer(inner.clone(), &[0; 4], protocol::IPV4)),
        std::slice::from_ref(&inner)
    );
    assert!(give(&mut b, vec![0, 0, 200, protocol::IPV4]).is_empty());
    assert_eq!(b.sa_drops(1, DropReason::BadPadding), 2);
    let longest: Vec<u8> = (1..=255).collect();
    assert_eq!(
        give(&mut b, trailer(inner.clone(), &longest, protocol::IPV4)),
        std::slice::from_ref(&inner)
    );
    // Traffic flow confidentiality padding behind the inner packet.
    let mut longer = inner.clone();
    longer.extend([0xaa; 300]);
    assert_eq!(
        give(&mut b, trailer(longer, &[], protocol::IPV4)),
        std::slice::from_ref(&inner)
    );
    // A dummy packet disappears without being a drop.
    let before = b.stats.snapshot()[0].inbound.drops;
    assert!(give(&mut b, trailer(vec![9; 70], &[], protocol::NO_NEXT_HEADER)).is_empty());
    assert_eq!(b.stats.snapshot()[0].inbound.drops, before);
    assert!(give(&mut b, trailer(inner.clone(), &[], protocol::IPV6)).is_empty());
    assert!(give(&mut b, trailer(inner.clone(), &[], protocol::TCP)).is_empty());
    assert!(give(&mut b, trailer(inner[..50].to_vec(), &[], protocol::IPV4)).is_empty());
    assert_eq!(b.sa_drops(1, DropReason::Malformed), 2);
    assert_eq!(b.sa_drops(1, DropReason::Unsupported), 1);
    assert_eq!(b.pool.available(), 128);
}

#[test]
fn selectors_bind_what_comes_out() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut a, _) = pair(&sa, Config::default());
    let mut narrow = sa.reversed();
    narrow.local_ts = vec![range("10.1.0.0", "10.1.0.6")];
    let (mut b, _) = pair(&narrow, Config::default());
    let wire = a.send(&[udp(false, 100), packet("10.0.0.5", "10.1.0.6", 17, &[0; 8])]);
    assert_eq!(b.receive(&wire).len(), 1);
    assert_eq!(b.sa_drops(1, DropReason::SelectorMismatch), 1);
}

#[test]
fn native_esp_must_come_from_and_to_the_sas_addresses() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    let wire = a.send(&[udp(false, 100)]).remove(0);
    for octet in [12, 19] {
        let mut moved = wire.clone();
        moved.0[octet] ^= 1;
        assert!(b.receive(&[moved]).is_empty());
    }
    assert_eq!(b.sa_drops(1, DropReason::WrongAddress), 2);
    let mut fragment = wire.clone();
    fragment.0[6] = 0x20;
    let mut unknown = wire.clone();
    unknown.0[20] ^= 0x80;
    let mut short = wire.clone();
    short.0.truncate(40);
    short.0[3] = 40;
    short.0[2] = 0;
    assert!(b.receive(&[fragment, unknown, short]).is_empty());
    let drops = b.stats.inbound_drops.snapshot();
    assert_eq!(drops[DropReason::Unsupported as usize], 1);
    assert_eq!(drops[DropReason::UnknownSpi as usize], 1);
    assert_eq!(b.sa_drops(1, DropReason::Malformed), 1);
    assert_eq!(b.receive(&[wire]).len(), 1);
}

#[test]
fn a_moved_nat_mapping_is_reported_by_the_newest_authentic_packet_only() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Udp);
    let moved = |mut packet: (Vec<u8>, Meta)| {
        packet.1.path.local = "203.0.113.9:61234".parse().unwrap();
        packet
    };
    let old = a.send(&[udp(false, 64)]).remove(0);
    let new = a.send(&[udp(false, 64)]).remove(0);
    let mut forged = new.clone();
    forged.0[30] ^= 1;
    b.receive(&[moved(forged)]);
    assert!(b.take_events().is_empty());
    assert_eq!(b.receive(&[new]).len(), 1);
    // Somebody replays a delayed packet from elsewhere: carried, but nobody moves.
    assert_eq!(b.receive(&[moved(old)]).len(), 1);
    assert!(b.take_events().is_empty());
    let next = a.send(&[udp(false, 64), udp(false, 64)]);
    let both: Vec<_> = next.into_iter().map(moved).collect();
    assert_eq!(b.receive(&both).len(), 2);
    let remote = "203.0.113.9:61234".parse().unwrap();
    let events = b.take_events();
    assert!(matches!(events[..], [Event::NatMoved { id: ChildSaId(1), remote: r }] if r == remote));
    let path = espada_common::sa::Path {
        remote,
        ..path(Encapsulation::Udp, false).reversed()
    };
    b.apply(&Command::MovePath {
        id: ChildSaId(1),
        path,
    });
    let packet = moved(a.send(&[udp(false, 64)]).remove(0));
    assert_eq!(b.receive(&[packet]).len(), 1);
    assert!(b.take_events().is_empty());
    assert_eq!(b.send(&[packet_back()])[0].1.path.remote, remote);
}

fn packet_back() -> Vec<u8> {
    packet("10.1.0.7", "10.0.0.5", protocol::UDP, &[0; 8])
}

/// RFC 6040 figure 4.
#[test]
fn ecn_is_combined_as_rfc_6040_says() {
    use ip::ecn::{CE, ECT_0, ECT_1, NOT_ECT};
    let table = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    for (inner, row) in table {
        for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
            for v6 in [false, true] {
                let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
                let mut plain = udp(v6, 100);
                ip::set_ecn(&mut plain, inner);
                let mut wire = a.send(&[plain.clone()]).remove(0);
                assert_eq!(wire.0[1] & 3, inner);
                ip::set_ecn(&mut wire.0, outer);
                let got = b.receive(&[wire]);
                match expected {
                    Some(field) => {
                        ip::set_ecn(&mut plain, field);
                        assert_eq!(got, std::slice::from_ref(&plain));
                        assert_eq!(ip::parse(&got[0]).unwrap().tos, field);
                        if !v6 {
                            let sum = crate::port::checksum::Sum::default().add(&got[0][..20]);
                            assert_eq!(sum.finish(), 0);
                        }
                    }
                    None => {
                        assert!(got.is_empty());
                        assert_eq!(b.sa_drops(1, DropReason::EcnCongestion), 1);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn garbage_never_panics_and_never_leaks_frames(
        octets in prop::collection::vec(any::<u8>(), 0..200),
        udp in any::<bool>(),
        known in any::<bool>(),
        v6 in any::<bool>(),
        suite in 0..30usize,
    ) {
        let encapsulation = if udp { Encapsulation::Udp } else { Encapsulation::Esp };
        let sa = child(1, suites()[suite], path(encapsulation, v6));
        let (_, mut b) = pair(&sa, Config::default());
        let mut packet = octets;
        if known {
            let mut esp = sa.outbound.spi.to_be_bytes().to_vec();
            esp.append(&mut packet);
            packet = esp;
            if !udp {
                packet = super::net::packet(
                    &sa.path.local.ip().to_string(), &sa.path.remote.ip().to_string(),
                    protocol::ESP, &packet,
                );
            }
        }
        let meta = Meta { path: sa.path.reversed(), ..Meta::default() };
        let mut burst = Burst::new();
        let frame = b.frame(&packet, meta);
        burst.push(frame);
        b.inbound.process(b.now, &mut burst, &mut b.pool, &mut b.out);
        prop_assert!(b.out.tun.is_empty());
        prop_assert_eq!(b.pool.available(), 128);
    }

    /// What only the peer's key can produce may be anything inside.
    #[test]
    fn authentic_garbage_never_panics(
        mut plain in prop::collection::vec(any::<u8>(), 0..200),
        shape in 0..3u8,
        next_header in prop_oneof![Just(4u8), Just(41), Just(59), any::<u8>()],
        transport in any::<bool>(),
    ) {
        let mut sa = child(1, GCM, path(Encapsulation::Udp, false));
        if transport { sa.mode = espada_common::sa::Mode::Transport; }
        let (_, mut b) = pair(&sa, Config::default());
        let base = match shape { 0 => vec![], 1 => udp(false, 28), _ => syn(true, 1460, 1) };
        let keep = base.len().min(plain.len());
        plain[..keep].copy_from_slice(&base[..keep]);
        let packet = sealed(&mut b, &sa, 1, &trailer(plain, &[1, 2], next_header));
        b.receive(&[packet]);
        prop_assert_eq!(b.pool.available(), 128);
    }
}
