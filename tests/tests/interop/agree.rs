//! Negotiations that succeed, begun from either side.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espada_tests::capture;
use espada_tests::matrix::{self, Outcome};
use espada_tests::peer::Peer as _;
use espada_tests::scenario::{child, count, ensure_nothing_clear, verify_v4};
use espada_tests::topology::{self, Wan, addr};
use espada_tests::{strongswan, traffic};

use super::{Pair, start, start_swapped, start_with};

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    Espada,
    StrongSwan,
}

/// What a pair is told to agree on.
#[derive(Clone, Copy)]
struct Suites {
    ike: &'static str,
    esp: &'static str,
    /// More lines of Espada's connection.
    extra: &'static str,
}

/// A case of the matrix against this machine's strongSwan with its userspace ESP.
pub(super) fn libipsec(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    matrix::case("auto", "strongswan5-libipsec", name, "", || {
        if let Some(reason) = strongswan::missing() {
            return Ok(Outcome::Skipped(reason));
        }
        test()?;
        Ok(Outcome::Passed)
    })
}

pub(super) fn bring_up(pair: &Pair, begins: Begins) -> Result<()> {
    match begins {
        Begins::Espada => pair.espada.up().map(drop),
        Begins::StrongSwan => pair.strongswan.initiate(),
    }
    .with_context(|| pair.logs())?;
    pair.espada.wait_established()?;
    pair.strongswan.wait_established()
}

fn agree(wan: Wan, suites: Suites, begins: Begins) -> Result<()> {
    let pair = start(wan, |ours, theirs| {
        (ours.ike, ours.esp, ours.extra) = (suites.ike, suites.esp, suites.extra);
        (theirs.ike, theirs.esp) = (suites.ike, suites.esp);
    })?;
    let recording = pair.line.capture(&pair.work, "")?;
    bring_up(&pair, begins)?;
    verify_v4(&pair.line).with_context(|| format!("{begins:?} began"))?;
    let packets = topology::finish(recording)?;
    ensure_nothing_clear(&packets)?;
    ensure!(packets.iter().any(capture::Packet::is_esp_in_udp));

    let connection = pair.espada.connection()?;
    let role = match begins {
        Begins::Espada => "initiator",
        Begins::StrongSwan => "responder",
    };
    ensure!(connection["ike"]["role"] == role, "{connection:#}");
    ensure!(
        connection["ike"]["remote_id"] == "b.example",
        "{connection:#}"
    );
    let child = child(&connection);
    // The first child SA has no key exchange of its own: the group of `esp` is for rekeying.
    let esp = suites.esp.replace("-modp2048", "");
    ensure!(child["suite"] == esp.as_str(), "not {esp}: {child:#}");
    ensure!(child["encapsulation"] == "udp", "{child:#}");
    for direction in ["inbound", "outbound"] {
        ensure!(count(&child[direction]["packets"]) > 40, "{child:#}");
        ensure!(
            count(&child[direction]["wire"]["packets"]) > 40,
            "{child:#}"
        );
    }
    let sas = pair.strongswan.sas()?;
    let spi = child["inbound"]["spi"].as_str().context("no SPI")?;
    let spi = spi.trim_start_matches("0x");
    ensure!(
        sas.contains(spi),
        "strongSwan does not send to SPI {spi}:\n{sas}"
    );
    end(&pair, begins)
}

/// The side that did not begin ends it; the other must hear of it.
fn end(pair: &Pair, begins: Begins) -> Result<()> {
    match begins {
        Begins::StrongSwan => {
            pair.espada.down()?;
            pair.strongswan.wait_log("received DELETE for IKE_SA")
        }
        Begins::Espada => {
            pair.strongswan.terminate()?;
            pair.espada
                .wait_connection("the end of the tunnel", |connection| {
                    connection["children"].as_array().is_some_and(Vec::is_empty)
                })
                .map(drop)
        }
    }
}

macro_rules! agreeing {
    ($($name:ident: $wan:expr, $ike:literal, $esp:literal, $extra:literal, [$($begins:ident),*];)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            libipsec(stringify!($name), || {
                for begins in [$(Begins::$begins),*] {
                    agree($wan, Suites { ike: $ike, esp: $esp, extra: $extra }, begins)?;
                }
                Ok(())
            })
        }
    )*};
}

agreeing! {
    aes_gcm_x25519: Wan::Switch,
        "aes256gcm16-prfsha256-x25519", "aes256gcm16", "", [Espada, StrongSwan];
    azure_custom_policy_without_pfs: Wan::Switch,
        "aes256-sha256-modp2048", "aes256-sha256", "", [Espada, StrongSwan];
    azure_custom_policy_with_pfs_group: Wan::Switch,
        "aes256-sha256-modp2048", "aes256-sha256-modp2048", "", [Espada, StrongSwan];
    azure_default_policy: Wan::Switch,
        "aes256-sha1-modp1024", "aes256-sha1", "insecure = true", [Espada, StrongSwan];
    aes128_gcm_ecp384: Wan::Switch,
        "aes128gcm16-prfsha384-ecp384", "aes128gcm16", "", [Espada, StrongSwan];
    aes256_gcm_icv8: Wan::Switch,
        "aes256gcm8-prfsha256-x25519", "aes256gcm8", "", [Espada, StrongSwan];
    aes128_gcm_icv12: Wan::Switch,
        "aes128gcm12-prfsha256-x25519", "aes128gcm12", "", [Espada];
    aes192_gcm: Wan::Switch,
        "aes192gcm16-prfsha256-x25519", "aes192gcm16", "", [StrongSwan];
    chacha20_ecp256: Wan::Switch,
        "chacha20poly1305-prfsha256-ecp256", "aes256-sha512", "", [Espada];
    modp3072_sha384: Wan::Switch,
        "aes192-sha384-modp3072", "aes192-sha384", "", [Espada];
    brainpool512_sha512: Wan::Switch,
        "aes256-sha512-ecp512bp", "aes256gcm16", "", [Espada, StrongSwan];
    espada_behind_nat: Wan::Nat,
        "aes256gcm16-prfsha256-x25519", "aes256gcm16", "", [Espada];
}

/// RFC 7383 both ways: identities and selectors make IKE_AUTH too large for the datagrams that either
/// end is told to send.
#[test]
fn large_messages_go_in_fragments() -> Result<()> {
    const ID_A: &str = "a.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.\
                        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.\
                        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.example";
    const ID_B: &str = "b.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.\
                        bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.\
                        bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.example";
    // All on our side: strongSwan takes a route only with an address of its own in its subnet.
    const NETS_A: [&str; 15] = [
        addr::LAN_A,
        "10.201.1.0/24",
        "10.201.3.0/24",
        "10.201.5.0/24",
        "10.201.7.0/24",
        "10.201.9.0/24",
        "10.201.11.0/24",
        "10.201.13.0/24",
        "10.201.15.0/24",
        "10.201.17.0/24",
        "10.201.19.0/24",
        "10.201.21.0/24",
        "10.201.23.0/24",
        "10.201.25.0/24",
        "10.201.27.0/24",
    ];
    libipsec("large_messages_go_in_fragments", || {
        let of_a = NETS_A.join(",");
        for (begins, ike) in [
            (Begins::Espada, "aes256gcm16-prfsha256-x25519"),
            (Begins::StrongSwan, "aes256gcm16-prfsha256-x25519"),
            (Begins::Espada, "aes256-sha256-x25519"),
            (Begins::StrongSwan, "aes256-sha256-x25519"),
        ] {
            let remote_ts = of_a.clone().leak();
            let pair = start_with(Wan::Switch, "fragment_size = 400", |ours, theirs| {
                (ours.local_id, ours.remote_id) = (ID_A, ID_B);
                (theirs.local_id, theirs.remote_id) = (ID_B, ID_A);
                (ours.local_subnets, ours.remote_subnets) = (&NETS_A, &[addr::LAN_B]);
                (theirs.local_ts, theirs.remote_ts) = (addr::LAN_B, remote_ts);
                (ours.ike, theirs.ike) = (ike, ike);
                ours.global = "[ike]\nfragment_size = 576";
            })?;
            let recording = pair.line.capture(&pair.work, "udp")?;
            bring_up(&pair, begins)?;
            let packets = topology::finish(recording)?;
            let longest = packets.iter().map(|packet| packet.data.len()).max();
            ensure!(longest <= Some(576), "{longest:?} octets");
            for said in [
                "reassembled fragmented IKE message",
                "splitting IKE message",
            ] {
                ensure!(
                    pair.strongswan.log().contains(said),
                    "{}",
                    pair.strongswan.log()
                );
            }
            verify_v4(&pair.line)?;
        }
        Ok(())
    })
}

/// strongSwan answers INVALID_KE_PAYLOAD; the second group is the one it takes.
#[test]
fn invalid_ke_is_retried() -> Result<()> {
    libipsec("invalid_ke_is_retried", || {
        let pair = start(Wan::Switch, |ours, theirs| {
            ours.ike = "aes256gcm16-prfsha256-x25519-ecp256";
            theirs.ike = "aes256gcm16-prfsha256-ecp256";
        })?;
        bring_up(&pair, Begins::Espada)?;
        verify_v4(&pair.line)?;
        let connection = pair.espada.connection()?;
        let suite = connection["ike"]["suite"].as_str().unwrap_or_default();
        ensure!(suite.ends_with("ecp256"), "{suite}");
        Ok(())
    })
}

/// What strongSwan offers is more than we take: narrowed, and its traffic follows.
#[test]
fn selectors_are_narrowed() -> Result<()> {
    libipsec("selectors_are_narrowed", || {
        let pair = start(Wan::Switch, |_, theirs| {
            theirs.remote_ts = "10.61.0.0/16";
            theirs.local_ts = "10.61.2.0/24,10.77.0.0/24";
        })?;
        bring_up(&pair, Begins::StrongSwan)?;
        let connection = pair.espada.connection()?;
        let child = child(&connection);
        ensure!(
            child["local_ts"] == serde_json::json!(["10.61.1.0/24"]),
            "{child:#}"
        );
        ensure!(
            child["remote_ts"] == serde_json::json!(["10.61.2.0/24"]),
            "{child:#}"
        );
        verify_v4(&pair.line)
    })
}

/// An idle peer asks whether we live (strongSwan does after 5 s), and we ask it.
#[test]
fn liveness_checks_are_answered() -> Result<()> {
    libipsec("liveness_checks_are_answered", || {
        for (dpd, asked) in [
            ("dpd = { delay = \"1h\" }", "sending DPD request"),
            ("dpd = { delay = \"1s\" }", "parsed INFORMATIONAL request 2"),
        ] {
            let pair = start(Wan::Switch, |ours, _| ours.extra = dpd)?;
            bring_up(&pair, Begins::Espada)?;
            pair.strongswan.wait_log(asked)?;
            // Long enough for strongSwan's retransmissions, had the answer been missing.
            std::thread::sleep(Duration::from_secs(2));
            let log = pair.strongswan.log();
            ensure!(!log.contains("retransmit"), "{log}");
            pair.espada.wait_established()?;
            let ping = traffic::ping(&pair.line.client, topology::addr::SERVER, 5, &[])?;
            ensure!(ping.is_complete(), "{ping:?}");
        }
        Ok(())
    })
}

/// strongSwan rekeys the child SA and the IKE SA under traffic: nothing is lost, and the old pair
/// goes away.
#[test]
fn rekeying_by_strongswan_loses_nothing() -> Result<()> {
    libipsec("rekeying_by_strongswan_loses_nothing", || {
        for (ike, esp) in [
            ("aes256gcm16-prfsha256-x25519", "aes256gcm16-x25519"),
            ("aes256-sha256-modp2048", "aes256-sha256"),
        ] {
            let pair = start(Wan::Switch, |ours, theirs| {
                (ours.ike, ours.esp) = (ike, esp);
                (theirs.ike, theirs.esp) = (ike, esp);
            })?;
            bring_up(&pair, Begins::Espada)?;
            let old = pair.espada.connection()?;
            std::thread::scope(|scope| -> Result<()> {
                let pinging = scope.spawn(|| {
                    traffic::ping(
                        &pair.line.client,
                        topology::addr::SERVER,
                        400,
                        &["-i", "0.01", "-w", "8"],
                    )
                });
                std::thread::sleep(Duration::from_millis(500));
                pair.strongswan.rekey_child()?;
                std::thread::sleep(Duration::from_millis(1000));
                pair.strongswan.swanctl(&["--rekey", "--ike", "net"])?;
                let ping = pinging
                    .join()
                    .map_err(|_| anyhow::anyhow!("the pinging thread panicked"))??;
                ensure!(
                    ping.is_complete(),
                    "{ping:?}\n{:#}\n{}\n{}",
                    pair.espada.status()?,
                    pair.espada.log(),
                    pair.strongswan.log()
                );
                Ok(())
            })?;
            let new = pair
                .espada
                .wait_connection("the old child SA's end", |connection| {
                    connection["children"]
                        .as_array()
                        .is_some_and(|list| list.len() == 1)
                })?;
            let spi = |connection: &serde_json::Value| child(connection)["inbound"]["spi"].clone();
            ensure!(
                spi(&old) != spi(&new),
                "the child SA was not replaced: {new:#}"
            );
            ensure!(
                old["ike"]["spi_initiator"] != new["ike"]["spi_initiator"],
                "the IKE SA was not replaced: {new:#}"
            );
            verify_v4(&pair.line)?;
        }
        Ok(())
    })
}

/// strongSwan behind the NAT calls Espada, which sees the router's address and answers there.
#[test]
fn strongswan_behind_nat() -> Result<()> {
    libipsec("strongswan_behind_nat", || {
        let pair = start_swapped()?;
        let recording = pair.line.capture(&pair.work, "")?;
        bring_up(&pair, Begins::StrongSwan)?;
        verify_v4(&pair.line)?;
        ensure_nothing_clear(&topology::finish(recording)?)?;
        let connection = pair.espada.connection()?;
        ensure!(connection["ike"]["nat"]["remote"] == true, "{connection:#}");
        let remote = connection["ike"]["remote"].as_str().unwrap_or_default();
        ensure!(
            remote.starts_with(topology::addr::WAN_A) && !remote.ends_with(":4500"),
            "Espada sees strongSwan at {remote}"
        );
        end(&pair, Begins::StrongSwan)
    })
}
