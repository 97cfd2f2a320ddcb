//! Virtual addresses that were not given.

use std::net::IpAddr;
use std::sync::Arc;

use super::refusal;
use crate::config::ConnectionConfig;
use crate::identity::Identity;
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::sa::context::Common;
use crate::selector;
use crate::wire::NotifyType;

/// The peer's answer has no address for us.
pub(crate) fn no_address(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let fix = Fix::new(
        &config.origin,
        "vips",
        "have the peer give addresses of this family (a pool, in strongSwan `pools`), or remove vips and name \
         local.subnets",
    );
    refusal(
        RefusalKind::Notify(NotifyType::INTERNAL_ADDRESS_FAILURE),
        RefusedBy::Peer,
        common.role,
        config,
        format!("{} gave us no virtual address", common.remote),
        vec!["we asked for one, and the answer has none of a family that we asked for".to_owned()],
        Some(fix),
    )
}

/// The peer did not ask for the address that it needs here.
pub(crate) fn address_not_asked(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let fix = Fix::new(
        &config.origin,
        "pools",
        "have the peer ask for an address (in strongSwan `vips = 0.0.0.0`), or remove pools and name the peer's \
         networks in remote.subnets",
    );
    refusal(
        RefusalKind::Notify(NotifyType::FAILED_CP_REQUIRED),
        RefusedBy::Us,
        common.role,
        config,
        format!("{} asks for no virtual address", common.remote),
        vec![
            "this connection has pools and no remote.subnets, so peers are known by the address that they get from us"
                .to_owned(),
        ],
        Some(fix),
    )
}

/// There is no address left, or none of the family.
pub(crate) fn no_address_left(
    config: &ConnectionConfig,
    common: &Common,
    identity: &Identity,
    wishes: &[IpAddr],
) -> Arc<Refusal> {
    let family = |v4| if v4 { "IPv4" } else { "IPv6" };
    let mut asked: Vec<&str> = wishes.iter().map(|wish| family(wish.is_ipv4())).collect();
    asked.dedup();
    let pools = config.pools.iter().map(|pool| {
        format!(
            "pool `{}`: {}",
            pool.name,
            selector::format_list(&[pool.addresses])
        )
    });
    let fits = config.pools.iter().any(|pool| {
        let v4 = pool.addresses.start.is_ipv4();
        wishes.iter().any(|wish| wish.is_ipv4() == v4)
    });
    let (what, hint) = match fits {
        true => (
            "all addresses are in use",
            "make the pool larger, or add another",
        ),
        false => (
            "no pool is of that family",
            "add a pool of the family that the peer asks for",
        ),
    };
    let summary = format!(
        "no virtual address for {identity} at {}: {what}",
        common.remote
    );
    let asked = format!("the peer asks for {}", asked.join(" and "));
    refusal(
        RefusalKind::Notify(NotifyType::INTERNAL_ADDRESS_FAILURE),
        RefusedBy::Us,
        common.role,
        config,
        summary,
        std::iter::once(asked).chain(pools).collect(),
        Some(Fix::new(&config.origin, "pools", hint)),
    )
}
