//! Kernel settings that decide whether tunnelled traffic passes: ours are set on our own interface
//! only, the rest is looked at and explained.

use std::fs;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(path(name)).ok()?.trim().to_owned())
}

/// Before the interface is up: no link-local address and no router solicitations on it (nobody
/// in the tunnel answers them), no reverse path filter (the SA's selectors are the stricter check).
pub fn prepare_tun(name: &str) {
    for (setting, value) in [
        (format!("ipv4/conf/{name}/rp_filter"), "0"),
        (format!("ipv6/conf/{name}/addr_gen_mode"), "1"),
        (format!("ipv6/conf/{name}/router_solicitations"), "0"),
        (format!("ipv6/conf/{name}/accept_ra"), "0"),
    ] {
        // Absent without IPv6 in the kernel, read-only in some containers: not fatal.
        if let Err(error) = fs::write(path(&setting), value) {
            tracing::debug!(setting, %error, "kernel setting left as it is");
        }
    }
}

/// Warns of settings that keep traffic from passing.
pub fn check(wan: &[String]) {
    if read("ipv4/ip_forward").as_deref() == Some("0") {
        tracing::warn!(
            "net.ipv4.ip_forward is 0: only this host's own IPv4 traffic uses the tunnel; \
             to serve a network, set it with `sysctl -w net.ipv4.ip_forward=1`"
        );
    }
    if read("ipv6/conf/all/forwarding").as_deref() == Some("0") {
        tracing::info!(
            "net.ipv6.conf.all.forwarding is 0: only this host's own IPv6 traffic uses the tunnel"
        );
    }
    let everywhere = read("ipv4/conf/all/rp_filter");
    for interface in wan {
        let here = read(&format!("ipv4/conf/{interface}/rp_filter"));
        // The kernel takes the larger of the two.
        let strict = |value: &Option<String>| value.as_deref() == Some("1");
        let loose = |value: &Option<String>| value.as_deref() == Some("2");
        if (strict(&everywhere) || strict(&here)) && !loose(&everywhere) && !loose(&here) {
            tracing::debug!(
                interface,
                "strict reverse path filter (rp_filter=1): ESP from a peer that is routed \
                 through another interface is dropped by the kernel"
            );
        }
    }
}
