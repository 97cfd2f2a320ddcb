//! Refusals about the key of RFC 8784.

use std::sync::Arc;

use super::refusal;
use crate::config::ConnectionConfig;
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::sa::context::Common;
use crate::sa::ppk::Asked;

/// As initiator: the peer does not use ours, and it is required.
pub(crate) fn no_ppk(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let details = vec![
        "it does not know RFC 8784, has no PPK for this connection, or not the one we name; its log says which"
            .to_owned(),
    ];
    let fix = Fix::new(
        &config.origin,
        "ppk",
        "give the peer the same PPK under the same name, or set ppk_required = false here",
    );
    refusal(
        RefusalKind::Authentication,
        RefusedBy::Us,
        common.role,
        config,
        format!("{} does not use our PPK", common.remote),
        details,
        Some(fix),
    )
}

/// As responder: the peer names another than ours, or none.
pub(crate) fn other_ppk(
    config: &ConnectionConfig,
    common: &Common,
    asked: &Asked<'_>,
) -> Arc<Refusal> {
    let theirs = match asked.name() {
        Some(name) => format!("the PPK \"{}\"", name.escape_debug()),
        None => "no PPK".to_owned(),
    };
    let ours = match &config.ppk {
        Some(ppk) if ppk.required => format!("we require the PPK \"{}\" ({})", ppk.id, ppk.origin),
        Some(ppk) => format!("ours is the PPK \"{}\" ({})", ppk.id, ppk.origin),
        None => "we have none for this connection".to_owned(),
    };
    let mut details = vec![format!("the peer uses {theirs}, {ours}")];
    if asked.identity.is_some() && asked.without.is_none() {
        details.push("the peer requires its own: it sent no proof without it".to_owned());
    }
    let fix = Fix::new(
        &config.origin,
        "ppk",
        "give both ends the same PPK under the same name, or make it optional on the end that requires it",
    );
    refusal(
        RefusalKind::Authentication,
        RefusedBy::Us,
        common.role,
        config,
        format!("{} and we have no PPK in common", common.remote),
        details,
        Some(fix),
    )
}
