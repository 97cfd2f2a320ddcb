//! Tunnels in all their forms carry traffic both ways, and nothing in clear.

use anyhow::{Result, anyhow, ensure};
use espada_tests::scenario::{self, Gateways, NATIVE, child, count, ensure_nothing_clear};
use espada_tests::topology::{Wan, addr};
use espada_tests::{skip_unless_possible, traffic};

#[test]
fn native_esp_over_ipv4() -> Result<()> {
    skip_unless_possible!("native_esp_over_ipv4");
    let gateways = Gateways::start(Wan::Switch, |a, b| {
        (a.extra, b.extra) = (NATIVE, NATIVE);
    })?;
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    let esp = packets.iter().filter(|packet| packet.is_esp()).count();
    ensure!(esp > 100, "{esp} ESP packets on the WAN");
    ensure!(!packets.iter().any(|packet| packet.is_esp_in_udp()));
    counters_agree(&gateways)
}

/// What A's engine sent, B's engine and both front ends counted, and the other way round.
fn counters_agree(gateways: &Gateways) -> Result<()> {
    let (a, b) = (gateways.a.connection()?, gateways.b.connection()?);
    let (a, b) = (child(&a), child(&b));
    for (sent, received) in [
        (&a["outbound"], &b["inbound"]),
        (&b["outbound"], &a["inbound"]),
    ] {
        ensure!(sent["spi"] == received["spi"], "{sent} is not {received}");
        let packets = count(&sent["packets"]);
        ensure!(packets >= 40, "only {packets} packets");
        for (what, counter) in [
            ("received", &received["packets"]),
            ("on the sender's WAN", &sent["wire"]["packets"]),
            ("on the receiver's WAN", &received["wire"]["packets"]),
        ] {
            ensure!(
                count(counter) == packets,
                "{packets} packets sent, {counter} {what}"
            );
        }
        ensure!(
            sent["bytes"] == received["bytes"],
            "{sent} is not {received}"
        );
        ensure!(
            count(&sent["wire"]["bytes"]) > count(&sent["bytes"]),
            "{sent}"
        );
    }
    Ok(())
}

/// Two lanes in each gateway work on the one pair of SAs: what the clients' connections carry is
/// whole, nothing looks like a replay, and the lanes' counters add up.
#[test]
fn several_workers_carry_one_sa() -> Result<()> {
    skip_unless_possible!("several_workers_carry_one_sa");
    for (extra, global) in [
        (
            "encapsulation = \"udp\"",
            "engine = \"userspace\"\nworkers = 2\npin_workers = true\nworker_threads = 2",
        ),
        (
            NATIVE,
            "engine = \"userspace\"\nworkers = 2\npin_workers = true\nworker_threads = 1",
        ),
    ] {
        let gateways = Gateways::established(Wan::Switch, |a, b| {
            for end in [a, b] {
                end.global = global;
                end.extra = extra;
            }
        })?;
        let line = &gateways.line;
        std::thread::scope(|scope| {
            let transfers: Vec<_> = [addr::SERVER, addr::SERVER6, addr::SERVER, addr::SERVER6]
                .into_iter()
                .map(|server| {
                    scope.spawn(move || {
                        traffic::tcp_exchange(&line.client, &line.server, server, 4_000_000)
                    })
                })
                .collect();
            gateways.verify_traffic()?;
            transfers
                .into_iter()
                .try_for_each(|transfer| transfer.join().map_err(|_| anyhow!("panicked"))?)
        })?;
        for gateway in [&gateways.a, &gateways.b] {
            let status = gateway.status()?;
            ensure!(status["interfaces"]["workers"] == 2, "{status:#}");
            ensure!(scenario::drops(&status, "replay") == 0, "{status:#}");
            ensure!(scenario::drops(&status, "auth_failed") == 0, "{status:#}");
            let text = gateway.status_text()?;
            ensure!(text.contains("2 lane(s)"), "{text}");
        }
        counters_agree(&gateways)?;
    }
    Ok(())
}

#[test]
fn native_esp_over_ipv6() -> Result<()> {
    skip_unless_possible!("native_esp_over_ipv6");
    let gateways = Gateways::start(Wan::Switch, |a, b| {
        (a.local, a.remote) = (addr::WAN_A6, addr::WAN_B6);
        (b.local, b.remote) = (addr::WAN_B6, addr::WAN_A6);
        b.extra = NATIVE;
    })?;
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp()));
    counters_agree(&gateways)
}

/// Nothing configured, no NAT: both say that they prefer ESP in UDP and so agree on it.
#[test]
fn two_gateways_agree_on_esp_in_udp() -> Result<()> {
    skip_unless_possible!("two_gateways_agree_on_esp_in_udp");
    let gateways = Gateways::start(Wan::Switch, |_, _| {})?;
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp_in_udp()));
    ensure!(!packets.iter().any(|packet| packet.is_esp()));
    for end in [&gateways.a, &gateways.b] {
        let connection = end.connection()?;
        let child = child(&connection);
        ensure!(child["encapsulation"] == "udp", "{connection:#}");
        ensure!(child["udp_reason"] == "agreed", "{connection:#}");
        let nat = &connection["ike"]["nat"];
        ensure!(nat["local"] == false && nat["remote"] == false, "{nat}");
        let front_end = &end.status()?["interfaces"]["front_end"];
        ensure!(front_end[0]["hook"] == "tc ingress", "{front_end:#}");
        let said = "agreed by both gateways";
        ensure!(end.log().contains(said), "{}", end.log());
    }
    counters_agree(&gateways)
}

/// An end whose engine sends native ESP faster does not agree to anything else.
#[test]
fn an_engine_that_prefers_native_esp_keeps_it() -> Result<()> {
    skip_unless_possible!("an_engine_that_prefers_native_esp_keeps_it");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        a.esp = "chacha20poly1305";
        b.esp = a.esp;
        b.global = "engine = \"ebpf\"";
    })?;
    gateways.verify_traffic()?;
    for end in [&gateways.a, &gateways.b] {
        let connection = end.connection()?;
        ensure!(
            child(&connection)["encapsulation"] == "esp",
            "{connection:#}"
        );
    }
    Ok(())
}

#[test]
fn esp_in_udp_where_it_is_asked_for() -> Result<()> {
    skip_unless_possible!("esp_in_udp_where_it_is_asked_for");
    let gateways = Gateways::start(Wan::Switch, |a, _| a.extra = "encapsulation = \"udp\"")?;
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp_in_udp()));
    ensure!(!packets.iter().any(|packet| packet.is_esp()));
    let connection = gateways.a.connection()?;
    ensure!(
        child(&connection)["encapsulation"] == "udp",
        "{connection:#}"
    );
    counters_agree(&gateways)
}

#[test]
fn esp_in_udp_over_ipv6() -> Result<()> {
    skip_unless_possible!("esp_in_udp_over_ipv6");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        (a.local, a.remote) = (addr::WAN_A6, addr::WAN_B6);
        (b.local, b.remote) = (addr::WAN_B6, addr::WAN_A6);
        a.extra = "encapsulation = \"udp\"";
    })?;
    let packets = gateways.record(|| gateways.verify_traffic())?;
    ensure!(packets.iter().any(|packet| packet.is_esp_in_udp()));
    ensure_nothing_clear(&packets)
}

#[test]
fn initiator_behind_nat() -> Result<()> {
    skip_unless_possible!("initiator_behind_nat");
    let gateways = Gateways::start(Wan::Nat, |_, _| {})?;
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(|packet| packet.is_esp_in_udp()));
    let (a, b) = (gateways.a.connection()?, gateways.b.connection()?);
    ensure!(a["ike"]["nat"]["local"] == true, "{a:#}");
    ensure!(a["ike"]["nat"]["remote"] == false, "{a:#}");
    ensure!(b["ike"]["nat"]["remote"] == true, "{b:#}");
    ensure!(child(&b)["encapsulation"] == "udp", "{b:#}");
    let remote = b["ike"]["remote"].as_str().unwrap_or_default();
    ensure!(remote.starts_with(addr::WAN_A), "B sees A at {remote}");
    Ok(())
}

#[test]
fn gateways_own_traffic() -> Result<()> {
    skip_unless_possible!("gateways_own_traffic");
    let gateways = Gateways::established(Wan::Switch, |_, _| {})?;
    let line = &gateways.line;
    let packets = gateways.record(|| {
        for (from, to, source) in [
            (&line.gw_a, addr::SERVER, Some(addr::GW_A_LAN)),
            (&line.gw_b, addr::CLIENT, Some(addr::GW_B_LAN)),
            (&line.gw_a, addr::GW_B_LAN, Some(addr::GW_A_LAN)),
            (&line.gw_a, addr::SERVER6, Some(addr::GW_A_LAN6)),
            // The route into the tunnel names the source that the selectors allow.
            (&line.gw_a, addr::SERVER, None),
            (&line.gw_a, addr::SERVER6, None),
            (&line.client, addr::GW_B_LAN, None),
        ] {
            let options = source.map_or(vec![], |source| vec!["-I", source]);
            let ping = traffic::ping(from, to, 5, &options)?;
            ensure!(
                ping.is_complete(),
                "{} to {to} from {source:?}: {ping:?}",
                from.name()
            );
        }
        traffic::tcp_exchange(&line.gw_a, &line.gw_b, addr::GW_B_LAN, 300_000)
    })?;
    ensure_nothing_clear(&packets)
}

#[test]
fn suites() -> Result<()> {
    skip_unless_possible!("suites");
    // Each once with its DH group; the numbers of keys and octets differ in all of them.
    for (ike, esp) in [
        ("aes128gcm16-prfsha256-ecp256", "aes128gcm16-esn"),
        ("chacha20poly1305-prfsha512-ecp384", "chacha20poly1305"),
        ("aes192-sha384-ecp521", "aes192-sha384-esn"),
        ("aes256-sha512-modp3072", "aes256-sha512"),
        ("aes128-sha1-modp2048", "aes128-sha1"),
        ("aes256-sha256-modp4096", "aes256-sha256-esn"),
    ] {
        let gateways = Gateways::established(Wan::Switch, |a, b| {
            (a.ike, a.esp) = (ike, esp);
            (b.ike, b.esp) = (ike, esp);
        })?;
        gateways.verify_traffic()?;
        for connection in [gateways.a.connection()?, gateways.b.connection()?] {
            ensure!(
                child(&connection)["suite"] == esp,
                "not {esp}: {connection:#}"
            );
            let negotiated = connection["ike"]["suite"].as_str().unwrap_or_default();
            let group = ike.rsplit('-').next().unwrap_or_default();
            ensure!(negotiated.ends_with(group), "{negotiated} is not {ike}");
        }
    }
    Ok(())
}

#[test]
fn selectors_are_narrowed() -> Result<()> {
    skip_unless_possible!("selectors_are_narrowed");
    let gateways = Gateways::established(Wan::Switch, |a, b| {
        a.remote_subnets = &["10.61.0.0/16", addr::LAN_B6];
        a.local_subnets = &[addr::LAN_A, addr::LAN_A6];
        b.remote_subnets = &["10.61.1.0/25", addr::LAN_A6];
    })?;
    scenario::verify_v4(&gateways.line)?;
    let connection = gateways.a.connection()?;
    let child = child(&connection);
    ensure!(
        child["remote_ts"].to_string().contains(addr::LAN_B),
        "{child:#}"
    );
    ensure!(
        child["local_ts"].to_string().contains("10.61.1.0/25"),
        "{child:#}"
    );
    Ok(())
}
