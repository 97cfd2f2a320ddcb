//! What `espada check` shows: every connection as it was understood.

use std::fmt::Write as _;
use std::net::IpAddr;

use espada_common::sa::{Mode, TrafficSelector};
use espada_ike::config::{
    DpdAction, EncapsulationPolicy, LocalAuth, RemoteAddress, RemoteAuth, RemoteIdentity,
    StartAction,
};
use espada_ike::selector::format_list;
use espada_ike::x509::{Certificate, show_time};

use crate::status::mode_name;

use super::document::show_size;
use super::{Connection, GatewayConfig, Remote, show_duration};

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A certificate in one line.
fn described(certificate: &Certificate) -> String {
    let kind = match certificate.key() {
        Ok(key) => key.kind().to_string(),
        Err(error) => error.to_string(),
    };
    format!(
        "{} ({kind}), issued by \"{}\", valid {} to {}",
        certificate.shown_names(),
        certificate.issuer(),
        show_time(certificate.not_before()),
        show_time(certificate.not_after()),
    )
}

impl GatewayConfig {
    /// Every connection as it was understood, for `espada check`.
    pub fn summary(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let engine = &self.dataplane.engine;
        let wan = if self.dataplane.wan.is_empty() {
            "from the routes".to_owned()
        } else {
            self.dataplane.wan.join(", ")
        };
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}: valid, {}, {}\nengine {engine}, WAN {wan}, plaintext interface {}{}",
            self.file.display(),
            count(self.connections.len(), "connection"),
            count(self.secrets.len(), "pre-shared key"),
            self.dataplane.tun,
            self.dataplane
                .mtu
                .map(|mtu| format!(" (MTU {mtu})"))
                .unwrap_or_default(),
        );
        for connection in &self.connections {
            text.push('\n');
            connection.write_summary(&mut text, self.prefers_udp(connection));
        }
        text
    }
}

impl Connection {
    /// What of certificates and keys is used; pre-shared keys go without saying.
    fn write_authentication(&self, text: &mut String) {
        let config = self.settings();
        let mut line = |head: &str, what: &str| {
            let _ = writeln!(text, "  {head:<8} {what}");
        };
        if let LocalAuth::PublicKey(credential) = &config.local_auth {
            let kind = credential.key.public().kind();
            if credential.certificates.is_empty() {
                line("we prove", &format!("by a raw public key ({kind})"));
            }
            for (index, certificate) in credential.certificates.iter().enumerate() {
                let head = if index == 0 { "we prove" } else { "  and by" };
                line(head, &described(certificate));
            }
        }
        if let RemoteAuth::PublicKey(trust) = &config.remote_auth {
            for authority in &trust.authorities {
                line("trusts", &format!("authority {}", described(authority)));
            }
            for pinned in &trust.pinned {
                line("trusts", &format!("certificate {}", described(pinned)));
            }
            for key in &trust.keys {
                line("trusts", &format!("raw public key ({})", key.kind()));
            }
            for crl in &trust.crls {
                let next = crl.next_update().map_or("without end".to_owned(), |at| {
                    format!("current until {}", show_time(at))
                });
                line(
                    "revoked",
                    &format!("{} certificates of \"{}\", {next}", crl.len(), crl.issuer()),
                );
            }
        }
    }

    fn write_summary(&self, text: &mut String, prefers_udp: bool) {
        let config = self.settings();
        let local = config
            .local_address
            .map_or("%default".to_owned(), |address| address.to_string());
        let local_id = config
            .local_id
            .as_ref()
            .map_or("its address".to_owned(), ToString::to_string);
        let remote = match &self.remote {
            Remote::Known(RemoteAddress::Address(address)) => address.to_string(),
            Remote::Known(RemoteAddress::Any) => "%any".to_owned(),
            Remote::Host(name) => name.clone(),
        };
        let remote_id = match &config.remote_id {
            RemoteIdentity::Is(identity) => identity.to_string(),
            RemoteIdentity::Matches(pattern) => pattern.to_string(),
            RemoteIdentity::Address => "its address".to_owned(),
            RemoteIdentity::Any => "anybody who proves it".to_owned(),
        };
        let start = match config.start {
            StartAction::Start => "set up at once and again when it fails",
            StartAction::Trap => "set up by the first packet",
            StartAction::None => "set up by `espada up` or the peer",
        };
        let encapsulation = match config.encapsulation {
            EncapsulationPolicy::Auto if prefers_udp => {
                "ESP, in UDP where there is a NAT or the peer prefers it as we do"
            }
            EncapsulationPolicy::Auto | EncapsulationPolicy::Esp => {
                "ESP, in UDP where there is a NAT"
            }
            EncapsulationPolicy::Udp => "ESP in UDP",
        };
        let dpd = config.dpd.map_or("off".to_owned(), |dpd| {
            let action = match dpd.action {
                DpdAction::Restart => "set it up again",
                DpdAction::Clear => "forget it",
                DpdAction::Trap => "wait for a packet",
            };
            format!(
                "after {} of silence; if dead, {action}",
                show_duration(dpd.delay)
            )
        });
        let _ = writeln!(
            text,
            "{}: {start}{}",
            config.name,
            if self.insecure {
                " (INSECURE groups allowed)"
            } else {
                ""
            }
        );
        let selectors = |list: &[TrafficSelector]| match list {
            [] if config.mode == Mode::Tunnel => "the virtual addresses".to_owned(),
            [] => "everything of that host".to_owned(),
            list => format_list(list),
        };
        let _ = writeln!(
            text,
            "  local    {local} as {local_id}: {}",
            selectors(&config.local_ts)
        );
        let _ = writeln!(
            text,
            "  remote   {remote} as {remote_id}: {}",
            selectors(&config.remote_ts)
        );
        if !config.vips.is_empty() {
            let asked: Vec<String> = config.vips.iter().map(|vip| asked_for(*vip)).collect();
            let _ = writeln!(text, "  asks     the peer for {}", asked.join(", "));
        }
        for pool in &config.pools {
            let addresses = format_list(std::slice::from_ref(&pool.addresses));
            let _ = writeln!(text, "  leases   {addresses} of pool {}", pool.name);
        }
        self.write_authentication(text);
        let _ = writeln!(
            text,
            "  ike      {}; rekey every {}",
            joined(&config.ike),
            show_duration(config.ike_lifetime.soft)
        );
        let _ = writeln!(
            text,
            "  esp      {}; rekey every {}{}{}",
            joined(&config.esp),
            show_duration(config.child_lifetime.soft),
            config.child_bytes.map_or(String::new(), |most| format!(
                " or {}",
                show_size(most.soft)
            )),
            config
                .child_packets
                .map_or(String::new(), |most| format!(" or {} packets", most.soft)),
        );
        let _ = writeln!(
            text,
            "  carried  {} mode, {encapsulation}; replay window {}{}",
            mode_name(config.mode),
            config.replay_window,
            match config.processors {
                Some(count) => format!("; SAs for each of {count} processors, if the peer agrees"),
                None => String::new(),
            }
        );
        let _ = writeln!(text, "  dpd      {dpd}");
    }
}

/// A virtual address, or any of a family.
fn asked_for(vip: IpAddr) -> String {
    match (vip.is_unspecified(), vip) {
        (true, IpAddr::V4(_)) => "any IPv4 address".to_owned(),
        (true, IpAddr::V6(_)) => "any IPv6 address".to_owned(),
        _ => vip.to_string(),
    }
}
