use std::time::Duration;

use espada_common::drops::DropReason;
use espada_common::sa::{Cipher, Command, Encapsulation, EspSuite, Event, Mode};
use proptest::prelude::*;

use super::net::*;
use crate::esp::ip::{self, protocol};
use crate::esp::{Config, DfPolicy};
use crate::port::checksum::Sum;
use crate::umem::{Burst, Meta, PartialChecksum};

fn with_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x40;
    crate::port::checksum::ipv4_header(&mut packet[..20]);
    packet
}

#[test]
fn the_outer_header_is_right() {
    let (mut a, _) = gcm_pair(Encapsulation::Esp);
    let mut inner = with_df(udp(false, 100));
    inner[1] = 0xb8 | 1;
    crate::port::checksum::ipv4_header(&mut inner[..20]);
    let wire = a.send(&[inner, udp(true, 100)]);
    let outer = &wire[0].0;
    assert_eq!(Sum::default().add(&outer[..20]).finish(), 0);
    assert_eq!(
        usize::from(u16::from_be_bytes([outer[2], outer[3]])),
        outer.len()
    );
    assert_eq!(
        (outer[0], outer[1], outer[6], outer[8], outer[9]),
        (0x45, 0xb9, 0x40, 64, 50)
    );
    assert_eq!(outer[12..20], [192, 0, 2, 1, 198, 51, 100, 1]);
    assert_eq!(outer[20..28], [0x20, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(
        (wire[0].1.tos, wire[0].1.df, wire[1].1.df),
        (0xb9, true, true)
    );
    assert_ne!(outer[4..6], wire[1].0[4..6]);

    let sa = child(1, GCM, path(Encapsulation::Esp, true));
    let config = Config {
        df: DfPolicy::Clear,
        copy_dscp: false,
        ..Config::default()
    };
    let (mut a, _) = pair(&sa, config);
    let mut inner = udp(true, 100);
    inner[..2].copy_from_slice(&[0x6b, 0xa0]);
    let wire = a.send(&[inner]);
    let outer = &wire[0].0;
    assert_eq!(
        (outer[0], outer[1] & 0xf0, outer[6], outer[7]),
        (0x60, 0x20, 50, 64)
    );
    assert_eq!(
        usize::from(u16::from_be_bytes([outer[4], outer[5]])) + 40,
        outer.len()
    );
    assert!(!wire[0].1.df);
}

#[test]
fn too_big_with_df_is_answered_with_fragmentation_needed() {
    let (mut a, _) = gcm_pair(Encapsulation::Udp);
    let inner = with_df(udp(false, 1500));
    assert!(a.send(std::slice::from_ref(&inner)).is_empty());
    assert_eq!(a.sa_drops(1, DropReason::TooBig), 1);
    let replies = a.take_tun();
    let reply = &replies[0];
    assert_eq!(reply.len(), 576);
    let parsed = ip::parse(reply).unwrap();
    assert_eq!(parsed.flow.source.to_string(), "10.1.0.7");
    assert_eq!(parsed.flow.destination.to_string(), "10.0.0.5");
    assert_eq!(Sum::default().add(&reply[..20]).finish(), 0);
    assert_eq!(Sum::default().add(&reply[20..]).finish(), 0);
    assert_eq!(reply[20..22], [3, 4]);
    // 1500 - 20 IP - 8 UDP - 8 ESP - 8 IV - 16 ICV = 1440, less the trailer.
    assert_eq!(u16::from_be_bytes([reply[26], reply[27]]), 1438);
    assert_eq!(reply[28..], inner[..548]);
    // What was announced fits.
    assert_eq!(a.send(&[with_df(udp(false, 1438))]).len(), 1);
    assert!(a.send(&[with_df(udp(false, 1439))]).is_empty());
    // An ICMP error is never answered by one.
    a.take_tun();
    let mut error = vec![3, 1, 0, 0, 0, 0, 0, 0];
    error.extend(packet("10.1.0.7", "10.0.0.5", 17, &[0; 1500]));
    assert!(
        a.send(&[with_df(packet("10.0.0.5", "10.1.0.7", 1, &error))])
            .is_empty()
    );
    assert!(a.take_tun().is_empty());
}

#[test]
fn too_big_over_ipv6_is_answered_with_packet_too_big() {
    let (mut a, _) = gcm_pair(Encapsulation::Esp);
    let inner = udp(true, 1500);
    assert!(a.send(std::slice::from_ref(&inner)).is_empty());
    let reply = a.take_tun().remove(0);
    assert_eq!(reply.len(), 1280);
    assert_eq!(reply[40..42], [2, 0]);
    assert_eq!(u32::from_be_bytes(reply[44..48].try_into().unwrap()), 1446);
    assert_eq!(transport_sum(&reply, 40, protocol::ICMPV6), 0);
    assert_eq!(reply[48..], inner[..1232]);
    // Below the minimum MTU of IPv6 the outer packet is fragmented, not the inner refused.
    a.outbound
        .set_path_mtu(espada_common::sa::ChildSaId(1), 1280)
        .unwrap();
    let wire = a.send(&[udp(true, 1280), udp(true, 1281)]);
    assert_eq!(wire.len(), 1);
    assert!(!wire[0].1.df);
    let reply = a.take_tun().remove(0);
    assert_eq!(u32::from_be_bytes(reply[44..48].try_into().unwrap()), 1280);
}

#[test]
fn icmp_replies_are_rate_limited() {
    let (mut a, _) = gcm_pair(Encapsulation::Esp);
    let burst: Vec<_> = (0..60).map(|_| with_df(udp(false, 1500))).collect();
    a.send(&burst);
    let mut replies = a.take_tun().len();
    a.send(&burst);
    replies += a.take_tun().len();
    assert_eq!(replies, 64);
    a.now += Duration::from_millis(50);
    a.send(&burst);
    assert_eq!(a.take_tun().len(), 10);
}

/// Puts IPv4 fragments together as a receiver does.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        assert_eq!(Sum::default().add(&fragment[..20]).finish(), 0);
        let head = usize::from(fragment[0] & 15) * 4;
        let word = u16::from_be_bytes([fragment[6], fragment[7]]);
        assert_eq!(word & 0x2000 != 0, index + 1 < fragments.len());
        assert_eq!(usize::from(word & 0x1fff) * 8, payload.len());
        payload.extend(&fragment[head..]);
    }
    payload
}

#[test]
fn too_big_without_df_is_fragmented_before_encryption() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    let inner = udp(false, 4000);
    let wire = a.send(std::slice::from_ref(&inner));
    assert_eq!(wire.len(), 3);
    assert!(
        wire.iter()
            .all(|(outer, meta)| outer.len() <= 1500 && !meta.df)
    );
    let fragments = b.receive(&wire);
    assert_eq!(reassemble(&fragments), inner[20..]);
    // A fragment is fragmented further without losing its place.
    a.outbound
        .set_path_mtu(espada_common::sa::ChildSaId(1), 600)
        .unwrap();
    let wire = a.send(&fragments);
    assert!(wire.iter().all(|(outer, _)| outer.len() <= 600));
    assert_eq!(reassemble(&b.receive(&wire)), inner[20..]);
    assert_eq!((a.pool.available(), b.pool.available()), (128, 128));
}

#[test]
fn only_copied_options_go_into_later_fragments() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    let plain = udp(false, 3000);
    let mut inner = plain[..20].to_vec();
    // No-operation, record route (not copied), router alert (copied), end.
    inner.extend([1, 7, 3, 4, 0x94, 4, 0, 0]);
    inner.extend(&plain[20..]);
    inner[0] = 0x47;
    let total = (inner.len() as u16).to_be_bytes();
    inner[2..4].copy_from_slice(&total);
    crate::port::checksum::ipv4_header(&mut inner[..28]);
    let fragments = {
        let wire = a.send(std::slice::from_ref(&inner));
        b.receive(&wire)
    };
    assert_eq!(fragments[0][0], 0x47);
    assert_eq!(fragments[0][20..28], inner[20..28]);
    assert_eq!(fragments[1][0], 0x46);
    assert_eq!(fragments[1][20..24], [0x94, 4, 0, 0]);
    let payload: Vec<u8> = fragments
        .iter()
        .flat_map(|fragment| fragment[usize::from(fragment[0] & 15) * 4..].to_vec())
        .collect();
    assert_eq!(payload, inner[28..]);
}

#[test]
fn the_mss_of_a_syn_is_lowered_both_ways_and_never_raised() {
    for v6 in [false, true] {
        for nops in 0..4 {
            let config = Config {
                clamp_mss: false,
                ..Config::default()
            };
            let sa = child(1, GCM, path(Encapsulation::Esp, false));
            let head = if v6 { 40 } else { 20 };
            let at = head + 20 + nops + 2;
            // 1500 - 20 - 8 - 8 - 16 = 1448 = 4 * 362, less the trailer: 1446.
            let fits: u16 = if v6 { 1386 } else { 1406 };
            for (offered, expected) in [(1460, fits), (9000, fits), (536, 536), (fits, fits)] {
                let sent = syn(v6, offered, nops);
                assert_eq!(transport_sum(&sent, head, protocol::TCP), 0);
                let (mut clamping, _) = pair(&sa, Config::default());
                let (mut plain, _) = pair(&sa, config);
                let (_, mut plain_b) = pair(&sa, config);
                let (_, mut clamping_b) = pair(&sa, Config::default());
                let outbound = plain_b.receive(&clamping.send(std::slice::from_ref(&sent)));
                let inbound = clamping_b.receive(&plain.send(std::slice::from_ref(&sent)));
                assert_eq!(outbound, inbound);
                assert_eq!(
                    u16::from_be_bytes([outbound[0][at], outbound[0][at + 1]]),
                    expected
                );
                assert_eq!(transport_sum(&outbound[0], head, protocol::TCP), 0);
            }
        }
    }
}

#[test]
fn a_partial_checksum_is_completed() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    let whole = syn(false, 536, 0);
    let mut partial = whole.clone();
    let pseudo = crate::port::checksum::pseudo_header(&whole, 6, whole.len() - 20).unwrap();
    partial[36..38].copy_from_slice(&pseudo.fold().to_ne_bytes());
    for (start, expected) in [(20, vec![whole]), (9000, vec![])] {
        let checksum = Some(PartialChecksum { start, offset: 16 });
        let mut burst = Burst::new();
        let frame = a.frame(
            &partial,
            Meta {
                checksum,
                ..Meta::default()
            },
        );
        burst.push(frame);
        a.outbound
            .process(a.now, &mut burst, &mut a.pool, &mut a.out);
        let wire = a.take_wan();
        assert_eq!(b.receive(&wire), expected);
    }
    assert_eq!(
        a.stats.outbound_drops.snapshot()[DropReason::Malformed as usize],
        1
    );
}

#[test]
fn without_an_sa_an_acquire_is_raised_and_the_first_packets_wait() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut a, mut b) = pair(&sa, Config::default());
    a.apply(&Command::RemoveSa { id: sa.id });
    b.apply(&Command::RemoveSa { id: sa.id });
    assert!(a.send(&[udp(false, 100), udp(true, 100)]).is_empty());
    let events = a.take_events();
    assert_eq!(events.len(), 1, "one event a second: {events:?}");
    assert!(matches!(
        &events[0],
        Event::Acquire { connection, source, destination }
            if &**connection == "test"
                && source.to_string() == "10.0.0.5"
                && destination.to_string() == "10.1.0.7"
    ));
    assert!(
        a.send(&[packet("10.0.0.1", "8.8.8.8", 1, &[8, 0, 0, 0])])
            .is_empty()
    );
    let drops = a.stats.outbound_drops.snapshot();
    assert_eq!(drops[DropReason::NoSa as usize], 0);
    assert_eq!(drops[DropReason::NoPolicy as usize], 1);
    assert_eq!(a.pool.available(), 126);
    // Those after the eighth are dropped.
    let more: Vec<_> = (0..10).map(|_| udp(false, 90)).collect();
    assert!(a.send(&more).is_empty());
    assert_eq!(
        a.stats.outbound_drops.snapshot()[DropReason::NoSa as usize],
        4
    );
    assert!(a.release().is_empty(), "nothing came for them yet");

    let new = child(2, GCM, path(Encapsulation::Esp, false));
    a.apply(&Command::InstallSa(Box::new(new.clone())));
    b.apply(&Command::InstallSa(Box::new(new.reversed())));
    let wire = a.release();
    let received = b.receive(&wire);
    let mut expected = vec![udp(false, 100), udp(true, 100)];
    expected.extend(vec![udp(false, 90); 6]);
    assert_eq!(received, expected, "in their order");
    assert_eq!(a.pool.available(), 128);
}

#[test]
fn a_packet_that_waited_too_long_for_an_sa_is_dropped() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut a, _) = pair(&sa, Config::default());
    a.apply(&Command::RemoveSa { id: sa.id });
    assert!(a.send(&[udp(false, 100)]).is_empty());
    a.now += std::time::Duration::from_secs(20);
    a.apply(&Command::InstallSa(Box::new(child(
        2,
        GCM,
        path(Encapsulation::Esp, false),
    ))));
    assert!(a.release().is_empty());
    assert_eq!(
        a.stats.outbound_drops.snapshot()[DropReason::NoSa as usize],
        1
    );
    assert_eq!(a.pool.available(), 128);
}

#[test]
fn a_pair_is_told_of_when_it_has_carried_enough_and_carries_no_more_than_it_may() {
    let mut sa = child(1, GCM, path(Encapsulation::Esp, false));
    sa.allowances.soft.packets = Some(3);
    sa.allowances.hard.bytes = Some(500);
    let (mut a, mut b) = pair(&sa, Config::default());
    let mut seen = Vec::new();
    for _ in 0..7 {
        let wire = a.send(&[udp(false, 100)]);
        let sent = wire.len();
        let received = b.receive(&wire).len();
        let of = |events: Vec<Event>| match events[..] {
            [] => None,
            [Event::Expire { hard, .. }] => Some(hard),
            _ => panic!("{events:?}"),
        };
        seen.push((sent, of(a.take_events()), received, of(b.take_events())));
    }
    let [soft, hard] = [Some(false), Some(true)];
    let expected = [
        (1, None, 1, None),
        (1, None, 1, None),
        (1, soft, 1, soft),
        (1, None, 1, None),
        (1, hard, 1, hard),
        (0, None, 0, None),
        (0, None, 0, None),
    ];
    assert_eq!(seen, expected);
    assert_eq!(a.sa_drops(1, DropReason::Expired), 2);
}

#[test]
fn sequence_numbers_run_low_and_then_out_but_never_wrap() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    a.outbound.skip_to(1, u64::from(u32::MAX) - (1 << 28));
    b.inbound.skip_to(1, u64::from(u32::MAX) - (1 << 28));
    a.send(&[udp(false, 64)]);
    let events = a.take_events();
    assert!(matches!(events[..], [Event::SeqLow { remaining, .. }] if remaining == (1 << 28) - 1));
    a.outbound.skip_to(1, u64::from(u32::MAX) - 2);
    let wire = a.send(&[udp(false, 64), udp(false, 64), udp(false, 64)]);
    assert_eq!(wire.len(), 2);
    assert_eq!(wire[1].0[24..28], [0xff; 4]);
    assert_eq!(a.sa_drops(1, DropReason::SequenceExhausted), 1);
    assert!(a.take_events().is_empty());
    assert_eq!(b.receive(&wire).len(), 2);
}

#[test]
fn esn_carries_traffic_across_the_32_bit_wrap() {
    for suite in suites().into_iter().filter(|suite| suite.esn) {
        let sa = child(1, suite, path(Encapsulation::Udp, false));
        let (mut a, mut b) = pair(&sa, Config::default());
        a.outbound.skip_to(1, (1 << 32) - 20);
        b.inbound.skip_to(1, (1 << 32) - 20);
        let sent = vec![udp(false, 64); 40];
        let mut wire = a.send(&sent);
        wire.swap(15, 25);
        assert_eq!(b.receive(&wire).len(), 40, "{suite}");
        assert!(b.receive(&wire).is_empty());
    }
}

#[test]
fn router_errors_pass_when_the_packet_they_are_about_would() {
    let (mut a, mut b) = gcm_pair(Encapsulation::Esp);
    // Time exceeded from a router outside the selectors, about a packet from B's to A's side.
    let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
    error.extend(&packet(
        "10.1.0.7",
        "10.0.0.5",
        17,
        &[0, 53, 0, 53, 0, 8, 0, 0],
    ));
    let about = packet("172.31.0.1", "10.1.0.7", 1, &error);
    let wire = a.send(std::slice::from_ref(&about));
    assert_eq!(b.receive(&wire), [about]);
    // The same to somebody who did not send that packet is refused.
    assert!(
        a.send(&[packet("172.31.0.1", "10.1.0.8", 1, &error)])
            .is_empty()
    );
    let mut stranger = vec![11, 0, 0, 0, 0, 0, 0, 0];
    stranger.extend(&packet(
        "10.1.0.7",
        "172.31.9.9",
        17,
        &[0, 53, 0, 53, 0, 8, 0, 0],
    ));
    assert!(
        a.send(&[packet("172.31.0.1", "10.1.0.7", 1, &stranger)])
            .is_empty()
    );
}

#[test]
fn ipv4_mapped_addresses_do_not_match_ipv4_selectors() {
    let (mut a, _) = gcm_pair(Encapsulation::Esp);
    let mapped = packet("::ffff:10.0.0.5", "::ffff:10.1.0.7", 17, &[0; 2000]);
    assert!(ip::parse(&mapped).unwrap().is_v6());
    assert!(a.send(&[mapped]).is_empty());
    assert_eq!(
        a.stats.outbound_drops.snapshot()[DropReason::NoPolicy as usize],
        1
    );
}

#[test]
fn transport_mode_refuses_fragments() {
    let mut sa = child(1, GCM, path(Encapsulation::Esp, false));
    sa.mode = Mode::Transport;
    let (mut a, _) = pair(&sa, Config::default());
    let mut fragment = udp(false, 100);
    fragment[6] = 0x20;
    assert!(a.send(&[fragment]).is_empty());
    assert_eq!(a.sa_drops(1, DropReason::Unsupported), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn garbage_never_panics_and_never_leaks_frames(
        mut octets in prop::collection::vec(any::<u8>(), 0..200),
        shape in 0..4u8,
        start in any::<u16>(),
        offset in any::<u16>(),
    ) {
        let suite = EspSuite { cipher: Cipher::ChaCha20Poly1305, integrity: None, esn: false };
        let (mut a, _) = pair(&child(1, suite, path(Encapsulation::Esp, true)), Config::default());
        // Headers that get past the first checks, with everything behind them random.
        let base = match shape { 0 => vec![], 1 => udp(false, 28), 2 => udp(true, 48), _ => syn(false, 1460, 0) };
        let keep = base.len().min(octets.len());
        let flips = octets.len() % 7;
        for (index, octet) in base[..keep].iter().enumerate() {
            if index % 7 != flips { octets[index] = *octet; }
        }
        let checksum = (start % 3 == 0).then_some(PartialChecksum { start, offset });
        let mut burst = Burst::new();
        let frame = a.frame(&octets, Meta { checksum, ..Meta::default() });
        burst.push(frame);
        a.outbound.process(a.now, &mut burst, &mut a.pool, &mut a.out);
        a.out.recycle(&mut a.pool);
        prop_assert_eq!(a.pool.available(), 128);
    }
}
