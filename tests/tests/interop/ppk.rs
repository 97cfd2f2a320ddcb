//! A key that both ends have beforehand (RFC 8784).

use anyhow::Result;
use espada_tests::scenario::verify_v4;
use espada_tests::topology::Wan;

use super::agree::{Begins, bring_up, libipsec};
use super::start;

const OURS: &str = "ppk = \"alpha\"";
const OPTIONAL: &str = "ppk = \"alpha\"\nppk_required = false";
const THEIRS: &str = "ppk_id = alpha
    ppk_required = yes";
const THEIRS_OPTIONAL: &str = "ppk_id = alpha";

/// Whatever one end requires, the other uses; where nobody does it comes up without.
#[test]
fn a_ppk_is_used_with_strongswan_in_both_roles() -> Result<()> {
    libipsec("a_ppk_is_used_with_strongswan_in_both_roles", || {
        for (ours, theirs) in [
            (OURS, THEIRS),
            (OPTIONAL, THEIRS),
            (OURS, THEIRS_OPTIONAL),
            (OPTIONAL, ""),
            ("", THEIRS_OPTIONAL),
        ] {
            for begins in [Begins::Espada, Begins::StrongSwan] {
                let pair = start(Wan::Switch, |espada, strongswan| {
                    espada.extra = ours;
                    strongswan.ike_extra = theirs;
                })?;
                bring_up(&pair, begins)?;
                verify_v4(&pair.line)?;
            }
        }
        Ok(())
    })
}
