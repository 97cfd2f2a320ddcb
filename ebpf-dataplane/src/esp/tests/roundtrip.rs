use espada_common::sa::{Encapsulation, Mode};

use super::net::*;
use crate::esp::ip::protocol;
use crate::esp::sad::Geometry;
use crate::esp::{Config, DfPolicy};

const JUMBO: Config = Config {
    path_mtu: 9216,
    df: DfPolicy::Copy,
    clamp_mss: true,
    copy_dscp: true,
    ttl: 64,
};

/// Lengths around every block boundary of small packets, then samples up to a jumbo frame.
fn lengths() -> impl Iterator<Item = usize> {
    (48..90).chain([127, 128, 575, 576, 1279, 1400, 1438, 1499, 4095, 8900, 9000])
}

#[test]
fn every_suite_carries_every_length_in_every_encapsulation() {
    for suite in suites() {
        for encapsulation in [Encapsulation::Esp, Encapsulation::Udp] {
            for outer_v6 in [false, true] {
                let sa = child(9, suite, path(encapsulation, outer_v6));
                let (mut a, mut b) = pair(&sa, JUMBO);
                let geometry = Geometry::new(&suite, &sa.path);
                for inner_v6 in [false, true] {
                    let sent: Vec<_> = lengths().map(|length| udp(inner_v6, length)).collect();
                    let wire = a.send(&sent);
                    assert_eq!(wire.len(), sent.len());
                    for (plain, (outer, meta)) in sent.iter().zip(&wire) {
                        let esp = geometry.head()
                            + plain.len()
                            + geometry.padding(plain.len())
                            + 2
                            + geometry.icv;
                        let head = match encapsulation {
                            Encapsulation::Esp => geometry.outer,
                            Encapsulation::Udp => 0,
                        };
                        assert_eq!(outer.len(), head + esp);
                        assert_eq!(meta.path, sa.path);
                        assert_eq!(meta.spi, sa.outbound.spi);
                        let seen = outer
                            .windows(16)
                            .any(|window| plain[28..].starts_with(window));
                        assert_eq!(seen, !suite.cipher.fits_ike(), "{suite}");
                    }
                    assert_eq!(b.receive(&wire), sent, "{suite} {encapsulation:?}");
                }
                let pairs = b.stats.snapshot();
                assert_eq!(
                    pairs[0].inbound.packets,
                    a.stats.snapshot()[0].outbound.packets
                );
                assert_eq!(pairs[0].inbound.bytes, a.stats.snapshot()[0].outbound.bytes);
                assert_eq!((a.pool.available(), b.pool.available()), (128, 128));
            }
        }
    }
}

#[test]
fn the_inner_mtu_is_exact() {
    for suite in suites() {
        for encapsulation in [Encapsulation::Esp, Encapsulation::Udp] {
            for v6 in [false, true] {
                for mtu in 1300..1330u16 {
                    let geometry = Geometry::new(&suite, &path(encapsulation, v6));
                    let outer = |inner: usize| {
                        let padded = inner + geometry.padding(inner) + 2;
                        geometry.outer + geometry.head() + padded + geometry.icv
                    };
                    let most = geometry.max_inner(Mode::Tunnel, mtu, 20);
                    assert!(outer(most) <= mtu.into());
                    assert!(outer(most + 1) > mtu.into());
                }
            }
        }
    }
}

#[test]
fn transport_mode_keeps_the_packets_own_header() {
    for encapsulation in [Encapsulation::Esp, Encapsulation::Udp] {
        for v6 in [false, true] {
            let mut sa = child(3, GCM, path(encapsulation, v6));
            let (local, remote) = (
                sa.path.local.ip().to_string(),
                sa.path.remote.ip().to_string(),
            );
            sa.mode = Mode::Transport;
            sa.local_ts = vec![range(&local, &local)];
            sa.remote_ts = vec![range(&remote, &remote)];
            let (mut a, mut b) = pair(&sa, Config::default());
            let mut inner = packet(
                &local,
                &remote,
                protocol::UDP,
                &[0, 7, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4],
            );
            let head = inner.len() - 12;
            let sum = transport_sum(&inner, head, protocol::UDP);
            inner[head + 6..head + 8].copy_from_slice(&sum.to_ne_bytes());
            let wire = a.send(std::slice::from_ref(&inner));
            assert_eq!(wire.len(), 1);
            if encapsulation == Encapsulation::Esp {
                assert_eq!(wire[0].0[if v6 { 6 } else { 9 }], protocol::ESP);
                assert_eq!(wire[0].0.len(), head + 16 + 12 + 2 + 2 + 16);
            }
            let got = b.receive(&wire);
            assert_eq!(got.len(), 1);
            assert_eq!(got[0][head..], inner[head..]);
            if encapsulation == Encapsulation::Esp {
                assert_eq!(got[0], inner);
            }
        }
    }
}

#[test]
fn several_sas_in_one_burst_keep_their_order() {
    let arena = crate::umem::Arena::new(512, 2048).unwrap();
    let mut a = Gateway::new(Config::default(), arena.take(256));
    let mut b = Gateway::new(Config::default(), arena.take(256));
    for id in 0..4u64 {
        let mut sa = child(id, GCM, path(Encapsulation::Esp, false));
        sa.connection = format!("c{id}").into();
        let third = format!("10.1.{id}");
        sa.remote_ts = vec![range(&format!("{third}.0"), &format!("{third}.255"))];
        a.apply(&espada_common::sa::Command::InstallSa(Box::new(sa.clone())));
        b.apply(&espada_common::sa::Command::InstallSa(Box::new(
            sa.reversed(),
        )));
    }
    let sent: Vec<_> = (0..60u8)
        .map(|n| {
            packet(
                "10.0.0.1",
                &format!("10.1.{}.1", (n % 4) ^ (n % 3)),
                200,
                &[n; 30],
            )
        })
        .collect();
    let wire = a.send(&sent);
    assert_eq!(wire.len(), 60);
    let mut got = b.receive(&wire);
    assert_eq!(got.len(), 60);
    for id in 0..4 {
        let of = |packets: &[Vec<u8>]| {
            packets
                .iter()
                .filter(|p| p[18] == id)
                .map(|p| p[20])
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&got), of(&sent));
    }
    got.sort();
    let mut sent = sent;
    sent.sort();
    assert_eq!(got, sent);
}
