//! Espada at both ends, every engine with every engine.

use anyhow::{Context, Result, ensure};
use espada_tests::espada::Espada;
use espada_tests::matrix::{self, Outcome};
use espada_tests::peer;
use espada_tests::scenario::{Gateways, NATIVE, child, count, ensure_nothing_clear};
use espada_tests::topology::{Wan, addr};

use super::kernel::lacks;

fn pair(
    engines: [&'static str; 2],
    name: &str,
    ike: &'static str,
    esp: &'static str,
) -> Result<()> {
    let [begins, waits] = engines;
    matrix::case(begins, "espada", &format!("{name}-{waits}"), "", || {
        let reason = engines.iter().find_map(|engine| {
            matrix::refused(engine, "")
                .or_else(|| lacks(engine, esp))
                .or_else(|| (*engine == "xfrm").then(peer::missing_kernel_esp).flatten())
        });
        if let Some(reason) = reason {
            return Ok(Outcome::Skipped(reason));
        }
        let gateways = Gateways::start(Wan::Switch, |a, b| {
            for (config, engine) in [(a, begins), (b, waits)] {
                (config.ike, config.esp) = (ike, esp);
                config.global = matrix::engine_setting(engine);
                config.extra = NATIVE;
            }
        })?;
        carry(&gateways, engines).with_context(|| {
            format!(
                "A, {begins}:\n{}\nB, {waits}:\n{}",
                gateways.a.log(),
                gateways.b.log()
            )
        })?;
        Ok(Outcome::Passed)
    })
}

fn carry(gateways: &Gateways, engines: [&str; 2]) -> Result<()> {
    let packets = gateways.record(|| {
        gateways.up()?;
        gateways.verify_traffic()
    })?;
    ensure_nothing_clear(&packets)?;
    for (gateway, engine) in [(&gateways.a, engines[0]), (&gateways.b, engines[1])] {
        carried(gateway, engine)?;
    }
    Ok(())
}

/// The tunnel's child SA is of this engine and dropped nothing.
fn carried(gateway: &Espada, engine: &str) -> Result<()> {
    let status = gateway.status()?;
    let connection = gateway.connection()?;
    let child = child(&connection);
    let carrier = child["engine"].as_str().or(status["engine"].as_str());
    ensure!(
        carrier == Some(engine),
        "not carried by {engine}: {status:#}"
    );
    for direction in ["inbound", "outbound"] {
        ensure!(count(&child[direction]["packets"]) > 40, "{child:#}");
        ensure!(
            child[direction]["drops"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty),
            "{child:#}"
        );
    }
    Ok(())
}

macro_rules! pairs {
    ($($name:ident: $ike:literal, $esp:literal, [$($test:ident: $begins:ident $waits:ident),*];)*) => {$(
        mod $name {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::pair(
                    [stringify!($begins), stringify!($waits)],
                    stringify!($name),
                    $ike,
                    $esp,
                )
            })*
        }
    )*};
}

pairs! {
    gcm: "aes256gcm16-prfsha256-x25519", "aes256gcm16", [
        userspace_userspace: userspace userspace,
        userspace_xfrm: userspace xfrm,
        xfrm_userspace: xfrm userspace,
        xfrm_xfrm: xfrm xfrm
    ];
    chacha20: "chacha20poly1305-prfsha256-x25519", "chacha20poly1305-esn", [
        userspace_userspace: userspace userspace,
        userspace_ebpf: userspace ebpf,
        ebpf_userspace: ebpf userspace,
        ebpf_ebpf: ebpf ebpf,
        ebpf_xfrm: ebpf xfrm,
        xfrm_ebpf: xfrm ebpf,
        xfrm_userspace: xfrm userspace
    ];
}

/// The packet that asks for an SA is answered too, whatever carries it; A, which has it, is of `engine`.
fn first_packet(engine: &'static str) -> Result<()> {
    matrix::case(engine, "espada", "first-packet", "", || {
        if let Some(reason) = (engine == "xfrm").then(peer::missing_kernel_esp).flatten() {
            return Ok(Outcome::Skipped(reason));
        }
        let gateways = Gateways::start(Wan::Switch, |a, b| {
            for config in [&mut *a, b] {
                (config.ike, config.esp) =
                    ("chacha20poly1305-prfsha256-x25519", "chacha20poly1305");
                config.extra = NATIVE;
            }
            a.global = matrix::engine_setting(engine);
            a.start = "trap";
        })?;
        let logs = || format!("A:\n{}\nB:\n{}", gateways.a.log(), gateways.b.log());
        let packets = gateways.record(|| {
            // An emulated machine takes seconds to set an SA up.
            let slowly = ["ping", "-n", "-i", "1", "-c", "8", "-W", "5", addr::SERVER];
            let output = gateways.line.client.output(&slowly)?;
            let text = String::from_utf8_lossy(&output.stdout);
            let mut replies = text.lines().filter(|line| line.contains(" bytes from "));
            let first = replies.any(|line| line.contains("icmp_seq=1 "));
            let status = gateways.a.status()?;
            ensure!(first, "{text}\n{status:#}\n{}", logs());
            gateways.verify_traffic().with_context(logs)
        })?;
        ensure_nothing_clear(&packets)?;
        Ok(Outcome::Passed)
    })
}

mod first_packet {
    #[test]
    fn userspace() -> anyhow::Result<()> {
        super::first_packet("userspace")
    }

    #[test]
    fn ebpf() -> anyhow::Result<()> {
        super::first_packet("ebpf")
    }

    #[test]
    fn xfrm() -> anyhow::Result<()> {
        super::first_packet("xfrm")
    }
}
