//! `[pool.NAME]`, and the settings of connections that are about virtual addresses.

use std::net::IpAddr;
use std::sync::Arc;

use espada_common::sa::{Mode, TrafficSelector};
use espada_ike::config::Pool;
use espada_ike::selector;

use super::document::{Located, Table, nearest, quoted_list};

const POOL_KEYS: &[&str] = &["addrs", "dns"];

/// Most addresses a connection asks for.
const MAX_VIPS: usize = 4;

/// All pools, in the order of the file.
pub(super) fn read_all(top: &Table<'_, '_>) -> Vec<Arc<Pool>> {
    let tables = top.table("pool", "pool", "tables such as [pool.NAME]");
    let entries = tables.map_or_else(Vec::new, |tables| tables.entries());
    let mut pools = Vec::new();
    for (name, span, value) in entries {
        let path = format!("pool.{name}");
        let document = top.document();
        let toml::de::DeValue::Table(table) = value.get_ref() else {
            let help = format!("write [pool.{name}] above addrs = \"10.9.0.0/24\"");
            document.error(
                &span,
                format!("`{path}` must be a table with a pool's settings"),
                Some(help),
            );
            continue;
        };
        let table = Table::new(document, table, &value.span(), &path);
        pools.extend(read(&table, name));
    }
    pools
}

fn read(table: &Table<'_, '_>, name: &str) -> Option<Arc<Pool>> {
    table.only(POOL_KEYS);
    let expected = "a subnet or a range such as \"10.9.0.0/24\" or \"10.9.0.10..10.9.0.99\"";
    let dns = read_addresses(table, "dns", "the address of a name server, or a list");
    let Some(text) = table.string("addrs", expected) else {
        if table.value("addrs").is_none() {
            let message = format!("`{}` is missing", table.name("addrs"));
            let help = "give the addresses that peers get, such as addrs = \"10.9.0.0/24\"";
            table
                .document()
                .error(&table.span(), message, Some(help.to_owned()));
        }
        return None;
    };
    let addresses = match selector::parse(text.value) {
        Ok(found) if found == found.with_ports(0, 0, u16::MAX) => found,
        Ok(_) => {
            let message = format!(
                "`{}` must be addresses alone, without protocol and ports",
                table.name("addrs")
            );
            table.document().error(&text.span, message, None);
            return None;
        }
        Err(error) => {
            let message = format!("`{}`: {error}", table.name("addrs"));
            table
                .document()
                .error(&text.span, message, Some(format!("write {expected}")));
            return None;
        }
    };
    Some(Arc::new(Pool {
        name: name.into(),
        addresses: usable(addresses, text.value.contains('/')),
        dns: dns.into_iter().map(|found| found.value).collect(),
    }))
}

/// Without an IPv4 subnet's first and last address, which some hosts take for the network and for
/// broadcasts.
fn usable(found: TrafficSelector, subnet: bool) -> TrafficSelector {
    match (found.start, found.end) {
        (IpAddr::V4(start), IpAddr::V4(end))
            if subnet && u32::from(end).saturating_sub(start.into()) > 1 =>
        {
            TrafficSelector {
                start: IpAddr::V4((u32::from(start) + 1).into()),
                end: IpAddr::V4((u32::from(end) - 1).into()),
                ..found
            }
        }
        _ => found,
    }
}

fn read_addresses(table: &Table<'_, '_>, key: &str, expected: &str) -> Vec<Located<IpAddr>> {
    let texts = table.strings(key, expected).unwrap_or_default();
    let mut addresses = Vec::new();
    for text in texts {
        match text.value.parse() {
            Ok(value) => addresses.push(Located {
                value,
                span: text.span,
            }),
            Err(_) => table.document().error(
                &text.span,
                format!(
                    "`{}` must be {expected}, found \"{}\"",
                    table.name(key),
                    text.value
                ),
                None,
            ),
        }
    }
    addresses
}

/// `vips` of a connection.
pub(super) fn read_vips(table: &Table<'_, '_>, mode: Mode) -> Vec<IpAddr> {
    let expected = "an address, \"0.0.0.0\" or \"::\" for any of a family, or a list";
    let vips = read_addresses(table, "vips", expected);
    for (index, vip) in vips.iter().enumerate() {
        let earlier = vips.get(..index).unwrap_or_default();
        let problem = if vip.value.is_multicast() || vip.value.is_loopback() {
            format!("{} cannot be a virtual address", vip.value)
        } else if earlier.iter().any(|other| other.value == vip.value) {
            format!("{} is listed twice", vip.value)
        } else if index == MAX_VIPS {
            format!("more than {MAX_VIPS} virtual addresses")
        } else {
            continue;
        };
        let message = format!("`{}`: {problem}", table.name("vips"));
        table.document().error(&vip.span, message, None);
    }
    refuse_transport(table, "vips", mode);
    vips.into_iter().map(|found| found.value).collect()
}

/// `pools` of a connection.
pub(super) fn read_named(table: &Table<'_, '_>, mode: Mode, pools: &[Arc<Pool>]) -> Vec<Arc<Pool>> {
    let names = table.strings("pools", "the name of a pool, or a list");
    let mut found: Vec<Arc<Pool>> = Vec::new();
    for name in names.unwrap_or_default() {
        let pool = pools.iter().find(|pool| *pool.name == *name.value);
        match pool {
            Some(pool) if found.contains(pool) => table.document().error(
                &name.span,
                format!("`{}` names {} twice", table.name("pools"), name.value),
                None,
            ),
            Some(pool) => found.push(Arc::clone(pool)),
            None => {
                let known: Vec<&str> = pools.iter().map(|pool| &*pool.name).collect();
                let help = match nearest(name.value, &known) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None if known.is_empty() => {
                        format!("write [pool.{}] with addrs = \"10.9.0.0/24\"", name.value)
                    }
                    None => format!("there are {}", quoted_list(&known)),
                };
                let message = format!(
                    "`{}`: there is no pool \"{}\"",
                    table.name("pools"),
                    name.value
                );
                table.document().error(&name.span, message, Some(help));
            }
        }
    }
    refuse_transport(table, "pools", mode);
    found
}

fn refuse_transport(table: &Table<'_, '_>, key: &str, mode: Mode) {
    if let (Mode::Transport, Some(value)) = (mode, table.value(key)) {
        table.document().error(
            &value.span(),
            format!(
                "`{}` has no meaning in transport mode, which is between the two hosts themselves",
                table.name(key)
            ),
            Some("use mode = \"tunnel\", or remove it".to_owned()),
        );
    }
}
