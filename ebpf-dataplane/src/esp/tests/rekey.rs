use espada_common::drops::DropReason;
use espada_common::sa::{ChildSaId, Command, Encapsulation, Takeover};

use super::net::*;
use crate::esp::{ApplyError, Config};

#[test]
fn a_rekey_loses_no_packet() {
    let old = child(1, GCM, path(Encapsulation::Udp, false));
    let new = child(2, GCM, old.path);
    let (mut a, mut b) = pair(&old, Config::default());
    let rekey = |sa: &espada_common::sa::ChildSa| Command::RekeySa {
        old: ChildSaId(1),
        new: Box::new(sa.clone()),
        takeover: Takeover::Now,
    };
    let in_flight = a.send(&vec![udp(false, 100); 5]);
    // B moves first: it sends on the new SA and still receives on the old one.
    b.apply(&rekey(&new.reversed()));
    let back = packet("10.1.0.7", "10.0.0.5", 17, &[0; 8]);
    let early = b.send(std::slice::from_ref(&back));
    assert_eq!(early[0].1.spi, new.inbound.spi);
    assert_eq!(b.receive(&in_flight).len(), 5);
    let more = a.send(&vec![udp(false, 100); 5]);
    assert_eq!(more[0].1.spi, old.outbound.spi);
    assert_eq!(b.receive(&more).len(), 5);
    a.apply(&rekey(&new));
    assert_eq!(a.receive(&early), [back]);
    let moved = a.send(&vec![udp(false, 100); 5]);
    assert_eq!(moved[0].1.spi, new.outbound.spi);
    assert_eq!(b.receive(&moved).len(), 5);
    for gateway in [&mut a, &mut b] {
        assert_eq!(gateway.stats.snapshot().len(), 2);
        gateway.apply(&Command::RemoveSa { id: ChildSaId(1) });
        assert_eq!(gateway.stats.snapshot().len(), 1);
    }
    let last = a.send(&[udp(false, 100)]);
    assert_eq!(b.receive(&last).len(), 1);
    assert!(b.receive(&more).is_empty());
    assert_eq!(
        b.stats.inbound_drops.snapshot()[DropReason::UnknownSpi as usize],
        5
    );
}

#[test]
fn a_responder_sends_on_the_old_pair_until_it_is_removed() {
    let old = child(1, GCM, path(Encapsulation::Udp, false));
    let new = child(2, GCM, old.path);
    let newer = child(3, GCM, old.path);
    let (mut a, _) = pair(&old, Config::default());
    let rekey = |old: u64, new: &espada_common::sa::ChildSa| Command::RekeySa {
        old: ChildSaId(old),
        new: Box::new(new.clone()),
        takeover: Takeover::WithRemoval,
    };
    a.apply(&rekey(1, &new));
    assert_eq!(a.send(&[udp(false, 100)])[0].1.spi, old.outbound.spi);
    a.apply(&Command::RemoveSa { id: ChildSaId(1) });
    assert_eq!(a.send(&[udp(false, 100)])[0].1.spi, new.outbound.spi);
    // A successor that is gone before its time does not come back.
    a.apply(&rekey(2, &newer));
    a.apply(&Command::RemoveSa { id: ChildSaId(3) });
    assert_eq!(a.send(&[udp(false, 100)])[0].1.spi, new.outbound.spi);
    a.apply(&Command::RemoveSa { id: ChildSaId(2) });
    assert!(a.send(&[udp(false, 100)]).is_empty());
}

#[test]
fn a_retired_pair_receives_and_its_successor_sends() {
    let old = child(1, GCM, path(Encapsulation::Udp, false));
    let new = child(2, GCM, old.path);
    let (mut a, mut b) = pair(&old, Config::default());
    let in_flight = a.send(&vec![udp(false, 100); 5]);
    b.apply(&Command::RekeySa {
        old: ChildSaId(1),
        new: Box::new(new.reversed()),
        takeover: Takeover::WithRemoval,
    });
    b.apply(&Command::Retire { id: ChildSaId(1) });
    let back = packet("10.1.0.7", "10.0.0.5", 17, &[0; 8]);
    assert_eq!(b.send(&[back])[0].1.spi, new.inbound.spi);
    assert_eq!(b.receive(&in_flight).len(), 5, "what was under way arrives");
    b.apply(&Command::RemoveSa { id: ChildSaId(1) });
    let back = packet("10.1.0.7", "10.0.0.5", 17, &[0; 8]);
    assert_eq!(b.send(&[back])[0].1.spi, new.inbound.spi);
}

#[test]
fn of_two_successors_the_one_that_did_not_prevail_never_sends() {
    let old = child(1, GCM, path(Encapsulation::Udp, false));
    let (mut a, _) = pair(&old, Config::default());
    let rekey = |old: u64, new: u64, takeover| Command::RekeySa {
        old: ChildSaId(old),
        new: Box::new(child(new, GCM, path(Encapsulation::Udp, false))),
        takeover,
    };
    let sends = |a: &mut Gateway| a.send(&[udp(false, 100)])[0].1.spi & 0xff;
    a.apply(&rekey(1, 2, Takeover::WithRemoval));
    a.apply(&rekey(1, 3, Takeover::Now));
    assert_eq!(sends(&mut a), 3);
    a.apply(&Command::Retire { id: ChildSaId(1) });
    assert_eq!(sends(&mut a), 3);
    a.apply(&Command::RemoveSa { id: ChildSaId(1) });
    assert_eq!(sends(&mut a), 3);
    // If the peer leaves it, it is there when the other one goes.
    a.apply(&Command::RemoveSa { id: ChildSaId(3) });
    assert_eq!(sends(&mut a), 2);
}

#[test]
fn a_refused_command_changes_nothing() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut a, mut b) = pair(&sa, Config::default());
    let again = Command::InstallSa(Box::new(sa.clone()));
    assert_eq!(
        a.outbound.apply(&again),
        Err(ApplyError::DuplicateSa(ChildSaId(1)))
    );
    assert_eq!(
        a.inbound.apply(&again),
        Err(ApplyError::DuplicateSa(ChildSaId(1)))
    );
    let mut same_spi = child(7, GCM, sa.path);
    same_spi.inbound.spi = sa.inbound.spi;
    let same_spi = Command::InstallSa(Box::new(same_spi));
    assert_eq!(
        a.inbound.apply(&same_spi),
        Err(ApplyError::DuplicateSpi(sa.inbound.spi))
    );
    let mut keyless = child(8, GCM, sa.path);
    keyless.outbound.encryption_key = espada_common::sa::SecretBytes::new(vec![0; 3]);
    keyless.inbound = keyless.outbound.clone();
    let rekey = Command::RekeySa {
        old: ChildSaId(1),
        new: Box::new(keyless),
        takeover: Takeover::Now,
    };
    assert!(matches!(
        a.outbound.apply(&rekey),
        Err(ApplyError::KeyLength { got: 3, .. })
    ));
    assert!(matches!(
        a.inbound.apply(&rekey),
        Err(ApplyError::KeyLength { got: 3, .. })
    ));
    let mut mixed = child(9, GCM, sa.path);
    mixed.path.local = path(Encapsulation::Esp, true).local;
    let mixed = Command::InstallSa(Box::new(mixed));
    assert!(matches!(
        a.outbound.apply(&mixed),
        Err(ApplyError::PathFamily { .. })
    ));
    let unknown = Command::RemoveSa { id: ChildSaId(99) };
    assert_eq!(
        a.inbound.apply(&unknown),
        Err(ApplyError::UnknownSa(ChildSaId(99)))
    );
    assert_eq!(a.stats.snapshot().len(), 1);
    let wire = a.send(&[udp(false, 100)]);
    assert_eq!(b.receive(&wire).len(), 1);
}

#[test]
fn a_pair_can_be_removed_and_installed_again() {
    let sa = child(1, GCM, path(Encapsulation::Esp, false));
    let (mut a, mut b) = pair(&sa, Config::default());
    for _ in 0..3 {
        let wire = a.send(&[udp(false, 100)]);
        assert_eq!(b.receive(&wire).len(), 1);
        for (gateway, sa) in [(&mut a, sa.clone()), (&mut b, sa.reversed())] {
            gateway.apply(&Command::RemoveSa { id: sa.id });
            gateway.apply(&Command::InstallSa(Box::new(sa)));
        }
    }
}
