//! strongSwan with the kernel's own ESP: native protocol 50 and everything else that its userspace
//! ESP cannot do. Most test machines' kernels will do; the VM tier of `cargo xtask test` has one.

use anyhow::{Context, Result, ensure};
use espada_tests::capture;
use espada_tests::scenario::{child, count, ensure_nothing_clear, verify_v4};
use espada_tests::strongswan::{self, Carrier, Connection};
use espada_tests::topology::{self, Wan, addr};
use espada_tests::{espada, skip_unless_possible, traffic};

use super::start;

fn kernel_carries(
    wan: Wan,
    begins_here: bool,
    change: impl FnOnce(&mut espada::Config<'static>, &mut Connection<'static>),
) -> Result<()> {
    let pair = start(wan, |ours, theirs| {
        theirs.carrier = Carrier::Kernel;
        change(ours, theirs);
    })?;
    let recording = pair.line.capture(&pair.work, "")?;
    let logs = || {
        format!(
            "espada:\n{}\nstrongSwan:\n{}",
            pair.espada.log(),
            pair.strongswan.log()
        )
    };
    if begins_here {
        pair.espada.up().map(drop).with_context(logs)?;
    } else {
        pair.strongswan.initiate().with_context(logs)?;
    }
    pair.espada.wait_established()?;
    pair.strongswan.wait_established()?;
    verify_v4(&pair.line).with_context(logs)?;
    // Full-size packets: the kernel's own idea of the path MTU meets ours.
    traffic::tcp_exchange(&pair.line.client, &pair.line.server, addr::SERVER, 2 << 20)
        .with_context(logs)?;
    let packets = topology::finish(recording)?;
    ensure_nothing_clear(&packets)?;
    let in_udp = wan == Wan::Nat;
    ensure!(packets.iter().any(|packet| if in_udp {
        packet.is_esp_in_udp()
    } else {
        packet.is_esp()
    }));
    let connection = pair.espada.connection()?;
    let child = child(&connection);
    ensure!(
        child["encapsulation"] == if in_udp { "udp" } else { "esp" },
        "{child:#}"
    );
    for direction in ["inbound", "outbound"] {
        ensure!(count(&child[direction]["packets"]) > 100, "{child:#}");
        ensure!(
            child[direction]["drops"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty),
            "{child:#}"
        );
    }
    ensure!(!capture::contains(&packets, &traffic::payload_start()));
    Ok(())
}

macro_rules! carrying {
    ($($name:ident: $wan:expr, $begins_here:literal, $ike:literal, $esp:literal, $extra:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            skip_unless_possible!(stringify!($name), strongswan::missing_kernel_esp);
            kernel_carries($wan, $begins_here, |ours, theirs| {
                (ours.ike, ours.esp, ours.extra) = ($ike, $esp, $extra);
                (theirs.ike, theirs.esp) = ($ike, $esp);
            })
        }
    )*};
}

carrying! {
    kernel_aes_gcm: Wan::Switch, true, "aes256gcm16-prfsha256-x25519", "aes256gcm16", "";
    kernel_aes_gcm_begins: Wan::Switch, false, "aes256gcm16-prfsha256-x25519", "aes256gcm16", "";
    kernel_aes_gcm_esn: Wan::Switch, true, "aes256gcm16-prfsha256-x25519", "aes128gcm16-esn", "";
    kernel_azure_custom_policy: Wan::Switch, true, "aes256-sha256-modp2048", "aes256-sha256", "";
    kernel_cbc_sha1_esn: Wan::Switch, false, "aes128-sha256-ecp256", "aes128-sha1-esn", "";
    kernel_cbc_sha384: Wan::Switch, true, "aes256-sha384-ecp384", "aes256-sha384", "";
    kernel_cbc_sha512: Wan::Switch, true, "aes192-sha512-ecp521", "aes192-sha512", "";
    kernel_chacha20: Wan::Switch, true, "chacha20poly1305-prfsha256-x25519", "chacha20poly1305", "";
    kernel_aes_gcm_behind_nat: Wan::Nat, true, "aes256gcm16-prfsha256-x25519", "aes256gcm16", "";
}
