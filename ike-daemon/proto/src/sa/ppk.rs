//! A key that both ends have beforehand and that goes into those of the SA (RFC 8784): whoever breaks
//! the key exchange later has to break it too.

use std::sync::Arc;

use super::context::Common;
use super::explain;
use super::respond::notifies;
use crate::config::{ConnectionConfig, Ppk};
use crate::crypto::keys::IkeKeys;
use crate::refusal::Refusal;
use crate::wire::{Notify, NotifyType, Payload, Writer};

/// PPK_ID_FIXED, the one type of names that everybody has (section 5.1).
const FIXED: u8 = 2;

/// Says in IKE_SA_INIT that we would use one.
pub(crate) fn write_support(writer: &mut Writer) {
    writer.notify(Notify::new(NotifyType::USE_PPK, &[]));
}

/// Whether the peer, by its IKE_SA_INIT message, would use one.
pub(crate) fn supported(payloads: &[Payload<'_>]) -> bool {
    notifies(payloads).any(|notify| notify.kind == NotifyType::USE_PPK)
}

/// Names ours, as initiator.
pub(crate) fn write_identity(writer: &mut Writer, ppk: &Ppk) {
    let data = [&[FIXED], ppk.id.as_bytes()].concat();
    writer.notify(Notify::new(NotifyType::PPK_IDENTITY, &data));
}

/// Says as responder that the one the initiator named is used.
pub(crate) fn write_agreement(writer: &mut Writer) {
    writer.notify(Notify::new(NotifyType::PPK_IDENTITY, &[]));
}

/// What an IKE_AUTH request says of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    /// PPK_IDENTITY: type and name.
    pub identity: Option<&'a [u8]>,
    /// NO_PPK_AUTH: what AUTH would be without it.
    pub without: Option<&'a [u8]>,
}

impl<'a> Asked<'a> {
    pub fn of(payloads: &'a [Payload<'a>]) -> Self {
        let find = |kind| {
            let mut found = notifies(payloads).filter(|notify| notify.kind == kind);
            found.next().map(|notify| notify.data)
        };
        Self {
            identity: find(NotifyType::PPK_IDENTITY),
            without: find(NotifyType::NO_PPK_AUTH),
        }
    }

    /// The name, for people.
    pub fn name(&self) -> Option<String> {
        let (_, name) = self.identity?.split_first()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// As responder: the keys of a connection with its peer, with or without one, and what then
    /// stands for the AUTH payload's data if not that itself (section 3). `agreed`: both ends said
    /// that they would use one.
    pub fn decide(
        &self,
        config: &ConnectionConfig,
        common: &Common,
        agreed: bool,
        keys: &IkeKeys,
    ) -> Result<Decision<'a>, Arc<Refusal>> {
        let ours = config.ppk.as_deref().filter(|_| agreed);
        let named = |ppk: &&Ppk| {
            self.identity
                .and_then(|identity| identity.split_first())
                .is_some_and(|(kind, name)| *kind == FIXED && name == ppk.id.as_bytes())
        };
        if let Some(ppk) = ours.filter(named) {
            let keys = keys
                .with_ppk(&ppk.secret)
                .map_err(|error| explain::protocol(config, common, &error.to_string()))?;
            return Ok(Decision {
                keys,
                used: true,
                auth: None,
            });
        }
        let refused = config.ppk.as_ref().is_some_and(|ppk| ppk.required)
            || (self.identity.is_some() && self.without.is_none());
        if refused {
            return Err(explain::other_ppk(config, common, self));
        }
        Ok(Decision {
            keys: keys.clone(),
            used: false,
            auth: self.identity.and(self.without),
        })
    }
}

/// What a responder goes on with.
pub(crate) struct Decision<'a> {
    pub keys: IkeKeys,
    /// A PPK is in the keys.
    pub used: bool,
    /// What to take for the AUTH payload's data.
    pub auth: Option<&'a [u8]>,
}
