//! One end wants transport mode, the other tunnel mode (RFC 7296 section 1.3.1).

use std::sync::Arc;

use super::{lines, refusal};
use crate::config::ConnectionConfig;
use crate::refusal::{Fix, Refusal, RefusalKind, RefusedBy};
use crate::sa::context::Common;
use crate::selector::TsMismatch;

/// The peer does not agree to the transport mode that we asked for.
pub(crate) fn transport_declined(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let details = vec![
        "we asked for transport mode, and the peer's answer does not agree to it".to_owned(),
        "the peer would use tunnel mode, so we delete the child SA (RFC 7296 section 1.3.1)"
            .to_owned(),
    ];
    let fix = Fix::new(
        &config.origin,
        "mode",
        "set the peer to transport mode, or mode = \"tunnel\" here",
    );
    refusal(
        RefusalKind::TransportMode,
        RefusedBy::Peer,
        common.role,
        config,
        format!("{} does not agree to transport mode", common.remote),
        details,
        Some(fix),
    )
}

/// The peer wants tunnel mode where we are for transport mode.
pub(crate) fn transport_wanted(config: &ConnectionConfig, common: &Common) -> Arc<Refusal> {
    let details = vec![
        "we accept   transport mode".to_owned(),
        "the peer wants tunnel mode: its request has no USE_TRANSPORT_MODE".to_owned(),
    ];
    let fix = Fix::new(
        &config.origin,
        "mode",
        "mode = \"tunnel\" would meet what the peer sent, or set the peer to transport mode",
    );
    refusal(
        RefusalKind::TransportMode,
        RefusedBy::Us,
        common.role,
        config,
        format!("{} wants tunnel mode", common.remote),
        details,
        Some(fix),
    )
}

/// The peer asks for transport mode where we are for tunnel mode. `mismatch`: its selectors do not
/// fit either, as those of two hosts seldom do.
pub(crate) fn transport_unwanted(
    config: &ConnectionConfig,
    common: &Common,
    mismatch: Option<&TsMismatch>,
) -> Arc<Refusal> {
    let mut details = vec![
        "we accept   tunnel mode".to_owned(),
        "the peer asks for transport mode".to_owned(),
    ];
    details.push(if mismatch.is_some() {
        "its selectors do not fit tunnel mode:".to_owned()
    } else {
        "the child SA is in tunnel mode unless the peer deletes it (RFC 7296 section 1.3.1)"
            .to_owned()
    });
    details.extend(mismatch.into_iter().flat_map(lines));
    let fix = Fix::new(
        &config.origin,
        "mode",
        "mode = \"transport\" would meet what the peer sent, or set the peer to tunnel mode",
    );
    refusal(
        RefusalKind::TransportMode,
        RefusedBy::Us,
        common.role,
        config,
        format!("{} asks for transport mode", common.remote),
        details,
        Some(fix),
    )
}
