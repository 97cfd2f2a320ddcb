//! Pairs for single processors (RFC 9611).

use espada_common::sa::{Encapsulation, Event, Share, Takeover};

use super::harness::*;
use super::*;

fn shared(side: usize, id: u64, share: Share) -> Box<ChildSa> {
    Box::new(ChildSa {
        share,
        ..sa(side, false, Encapsulation::Esp, GCM, id)
    })
}

/// Packets that each pair of a gateway has sent and received.
fn counts(gateway: &mut Gateway) -> BTreeMap<u64, [u64; 2]> {
    let stats = gateway.stats().into_iter();
    stats
        .map(|pair| (pair.id.0, [pair.outbound.packets, pair.inbound.packets]))
        .collect()
}

/// Five pings from one processor, answered.
fn ping(pair: &Hosts, processor: u32) {
    let output = run(&format!(
        "ip netns exec {} taskset -c {processor} ping -n -q -i 0.05 -c 5 -w 15 -I {} {}",
        pair.names[0],
        inner(0, false),
        inner(1, false)
    ));
    assert!(output.contains("5 received"), "{output}");
}

/// Two gateways with a fallback, `None` with the reason printed where the kernel or machine lacks
/// what this takes.
fn gateways(test: &str, pair: &Hosts, sink: EventSink) -> Option<[Gateway; 2]> {
    if !pair.inside(0, || probe().per_cpu) {
        skip(test, "this kernel has no SAs for single processors");
        return None;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip(test, "there is one processor only");
        return None;
    }
    let mut gateways = [xfrm_gateway(pair, 0, sink), xfrm_gateway(pair, 1, quiet())];
    for (side, gateway) in gateways.iter_mut().enumerate() {
        gateway.apply(Command::InstallSa(shared(side, 1, Share::Fallback)));
    }
    Some(gateways)
}

#[test]
fn netns_each_processor_sends_with_its_pair() {
    let test = "each_processor_sends_with_its_pair";
    let Some(pair) = Hosts::with_esp(test) else {
        return;
    };
    let (sink, events) = recorder();
    let Some(mut gateways) = gateways(test, &pair, sink) else {
        return;
    };
    for processor in [0, 1] {
        // Without a pair of its own nothing is lost.
        ping(&pair, processor);
        let before = counts(&mut gateways[0])[&1];
        let id = 2 + u64::from(processor);
        let [a, b] = &mut gateways;
        // The peer has it first, and only receives with it.
        b.apply(Command::InstallSa(shared(1, id, Share::Peer)));
        a.apply(Command::InstallSa(shared(
            0,
            id,
            Share::Processor(processor),
        )));
        ping(&pair, processor);
        let [ours, theirs] = gateways.each_mut().map(counts);
        assert_eq!(ours[&id][0], 5, "{ours:?}");
        assert_eq!(theirs[&id], [0, 5], "{theirs:?}");
        assert_eq!(ours[&1][0], before[0], "{ours:?}");
    }
    // When it goes, the processor falls back.
    for gateway in &mut gateways {
        gateway.apply(Command::RemoveSa { id: ChildSaId(3) });
    }
    let before = counts(&mut gateways[0]);
    ping(&pair, 1);
    ping(&pair, 0);
    let after = counts(&mut gateways[0]);
    assert_eq!(after[&1][0], before[&1][0] + 5, "{after:?}");
    assert_eq!(after[&2][0], before[&2][0] + 5, "{after:?}");
    // And when that goes, it asks for another.
    gateways[0].apply(Command::RemoveSa { id: ChildSaId(1) });
    let asked = || {
        let lone = format!(
            "ip netns exec {} taskset -c 1 ping -c 1 -W 1 -I {} {}",
            pair.names[0],
            inner(0, false),
            inner(1, false)
        );
        attempt(&lone);
        let acquire = |event: &Event| matches!(event, Event::Acquire { .. });
        events.lock().unwrap().iter().any(acquire)
    };
    until("an acquire event", asked);
    let ended = |event: &Event| matches!(event, Event::Expire { .. });
    assert!(!events.lock().unwrap().iter().any(ended), "{events:?}");
    drop(gateways);
    for side in [0, 1] {
        assert_eq!(pair.ip(side, "xfrm state"), "");
        assert_eq!(pair.ip(side, "xfrm policy"), "");
    }
}

/// Has the kernel enlarge its tables of states, as it does for the eighth, before anything can be lost by
/// it: what looks for a state meanwhile is dropped, and of two states that came within a second the older
/// one may be preferred afterwards.
fn enlarge_tables(pair: &Hosts) {
    for side in [0, 1] {
        let (local, remote) = (wan(side, false), wan(1 - side, false));
        let state = |spi| format!("src {local} dst {remote} proto esp spi {spi}");
        let cipher = format!("aead rfc4106(gcm(aes)) 0x{:040x} 128", 0);
        for spi in 1..=12 {
            pair.ip(side, &format!("xfrm state add {} {cipher}", state(spi)));
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        for spi in 1..=12 {
            pair.ip(side, &format!("xfrm state delete {}", state(spi)));
        }
    }
}

#[test]
fn netns_a_rekey_of_a_processors_pair_loses_nothing() {
    let test = "a_rekey_of_a_processors_pair_loses_nothing";
    let Some(pair) = Hosts::with_esp(test) else {
        return;
    };
    let (sink, events) = recorder();
    let Some(mut gateways) = gateways(test, &pair, sink) else {
        return;
    };
    enlarge_tables(&pair);
    for (id, processor) in [(2, 0), (3, 1)] {
        for side in [1, 0] {
            let share = Share::Processor(processor);
            gateways[side].apply(Command::InstallSa(shared(side, id, share)));
        }
    }
    let streams = [Stream::start(&pair, 0, 1), Stream::start(&pair, 1, 0)];
    // Each in turn, the fallback too, by each end in turn.
    for (round, (old, new, share)) in [
        (2, 12, Share::Processor(0)),
        (3, 13, Share::Processor(1)),
        (1, 11, Share::Fallback),
        (12, 22, Share::Processor(0)),
        (11, 21, Share::Fallback),
    ]
    .into_iter()
    .enumerate()
    {
        let initiator = round % 2;
        let responder = 1 - initiator;
        for (side, takeover) in [
            (responder, Takeover::WithRemoval),
            (initiator, Takeover::Now),
        ] {
            gateways[side].apply(Command::RekeySa {
                old: ChildSaId(old),
                new: shared(side, new, share),
                takeover,
            });
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        for side in [responder, initiator] {
            gateways[side].apply(Command::RemoveSa { id: ChildSaId(old) });
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    for stream in streams {
        stream.finish();
    }
    ping(&pair, 0);
    ping(&pair, 1);
    let [ours, theirs] = gateways.each_mut().map(counts);
    for counts in [&ours, &theirs] {
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [13, 21, 22]);
    }
    assert!(ours[&22][0] >= 5 && ours[&13][0] >= 5, "{ours:?}");
    assert!(theirs[&22][1] >= 5 && theirs[&13][1] >= 5, "{theirs:?}");
    let ended = |event: &Event| matches!(event, Event::Expire { .. });
    assert!(!events.lock().unwrap().iter().any(ended), "{events:?}");
}
