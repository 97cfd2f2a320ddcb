//! Going on with the IKE SAs of a process that ended, from the states it has stored.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use espada_common::sa::{ChildSaId, Mode};

use super::{Endpoint, Entry};
use crate::config::{ConnectionConfig, LocalAuth, PskSecret, RemoteAddress, RemoteAuth};
use crate::crypto::Random;
use crate::proposal::{self, Groups, Protocol, Transform, WireProposal};
use crate::sa::context::{DynRandom, local_identity};
use crate::sa::established::{Established, Pending};
use crate::sa::proof::accepts_identity;
use crate::sa::protect::Protector;
use crate::sa::saved::{self, Saved, SavedError};
use crate::sa::{Cx, IkeSa, Phase, child, cp, psk};
use crate::selector::{self, format_list};
use crate::wire::reader::DecodeError;

/// What came of a saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Keys under which the IKE SAs will be saved from now on; empty if all of them are known from
    /// other states.
    pub keys: Vec<u64>,
}

/// Why a saved state cannot be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// No clock relates its times to ours.
    #[error("`set_clock` was not called")]
    NoClock,
    /// Another version of Espada wrote it.
    #[error(
        "it was saved by another version of Espada: format {0}, this one reads {v}",
        v = saved::VERSION
    )]
    Version(u8),
    /// Its octets make no sense.
    #[error("it is damaged: {0}")]
    Format(DecodeError),
    /// Its keys do not fit its suite.
    #[error("it is damaged: {0}")]
    Keys(String),
    /// Its SPIs or child SAs are those of another state.
    #[error("it is of an IKE SA that another state has, too")]
    Duplicate,
    /// Its connection is gone; the peer was told.
    #[error("connection `{0}` is not configured any more")]
    NoConnection(String),
    /// Its connection was changed so that it would not come up in this way; the peer was told.
    #[error("it does not fit connection `{connection}` any more: {reason}")]
    Unfit {
        /// Which connection.
        connection: String,
        /// What the configuration says and what the IKE SA has.
        reason: String,
    },
}

impl From<SavedError> for RestoreError {
    fn from(error: SavedError) -> Self {
        match error {
            SavedError::Version(version) => Self::Version(version),
            SavedError::Format(error) => Self::Format(error),
        }
    }
}

/// Whose a saved IKE SA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPeer {
    /// Name of its connection.
    pub connection: String,
    /// The peer's address.
    pub address: IpAddr,
}

/// How what the data plane carries and what the IKE SAs own go together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Pairs that are carried and go on, with their connection and mode.
    pub carried: Vec<(ChildSaId, Arc<str>, Mode)>,
    /// Pairs that are carried and belong to no IKE SA: to be removed.
    pub orphans: Vec<ChildSaId>,
}

impl<R: Random> Endpoint<R> {
    /// Whose the IKE SAs of a state are, for what must be known before its connections can be
    /// loaded. Needs [`Self::set_clock`].
    pub fn saved_peers(&self, state: &[u8]) -> Result<Vec<SavedPeer>, RestoreError> {
        let clock = self.saving.clock.ok_or(RestoreError::NoClock)?;
        let peers = saved::decode(state, &clock)?.into_iter();
        Ok(peers
            .map(|saved| SavedPeer {
                connection: saved.connection,
                address: saved.common.remote.ip(),
            })
            .collect())
    }

    /// Goes on with what [`Self::poll_saved`] gave in another process. To be called after
    /// [`Self::set_clock`], [`Self::set_secrets`] and [`Self::load_connections`], and followed by
    /// [`Self::reconcile`] once all states are restored.
    ///
    /// An error leaves nothing behind of what it is about, and the state is to be forgotten. Where the configuration
    /// is the reason, the peer is told that the IKE SA is deleted.
    pub fn restore(&mut self, now: Instant, state: &[u8]) -> Result<Restored, RestoreError> {
        let clock = self.saving.clock.ok_or(RestoreError::NoClock)?;
        let mut restored = Restored::default();
        // The first is whose state it is, another is the heir of its children.
        let mut heir = None;
        for saved in saved::decode(state, &clock)? {
            let spi = saved.common.local_spi();
            if let Some(entry) = self.sas.get(&spi) {
                if heir.is_some() {
                    continue; // It has a state of its own.
                }
                if !entry.heir {
                    return Err(RestoreError::Duplicate);
                }
                self.drop_heir(spi);
            }
            restored.keys.push(self.restore_one(now, saved, heir)?);
            heir = heir.or(Some(spi));
        }
        Ok(restored)
    }

    fn drop_heir(&mut self, spi: u64) {
        let Some(entry) = self.sas.remove(&spi) else {
            return;
        };
        if let Some(deadline) = entry.deadline {
            self.timers.remove(&(deadline, spi));
        }
        if let Phase::Established(established) = &entry.sa.phase {
            for child in &established.children {
                self.out.forget(child.id);
            }
        }
    }

    fn restore_one(
        &mut self,
        now: Instant,
        saved: Saved,
        heir: Option<u64>,
    ) -> Result<u64, RestoreError> {
        let mut protector = Protector::new(&saved.suite, &saved.keys, saved.common.role)
            .map_err(|error| RestoreError::Keys(error.to_string()))?;
        protector.resume(saved.next_iv);
        let mut ids = HashSet::new();
        let taken = saved.children.iter().any(|child| {
            !ids.insert(child.id)
                || self.out.owner(child.id).is_some()
                || self.out.has_inbound(child.spi_in)
        });
        if taken || self.sas.contains_key(&saved.common.local_spi()) {
            return Err(RestoreError::Duplicate);
        }
        let config = self.connection(&saved.connection).ok();
        let fit = match &config {
            None => Err(RestoreError::NoConnection(saved.connection.clone())),
            Some(config) => fits(config, &self.secrets, &saved)
                .map(|()| config.clone())
                .map_err(|reason| RestoreError::Unfit {
                    connection: saved.connection.clone(),
                    reason,
                }),
        };
        let mut cx = Cx {
            now,
            rng: DynRandom(&mut self.rng),
            settings: &self.settings,
            connections: &self.connections,
            secrets: &self.secrets,
            addresses: &self.addresses,
            wall: None,
            answers: &self.inquiries.answers,
            out: &mut self.out,
        };
        let config = match fit {
            Ok(config) => config,
            Err(error) => {
                Established::farewell(&saved.common, &mut cx, &mut protector, saved.next_id);
                return Err(error);
            }
        };
        if let Some(lease) = &saved.common.lease {
            cp::hold(&mut cx, &config, &saved.remote_id, lease);
        }
        let spi = saved.common.local_spi();
        let common = saved.common.clone();
        let established = Established::restored(&mut cx, config, protector, saved);
        for child in &established.children {
            self.out.adopt(child.id, spi, child.spi_in);
        }
        if let Some(Pending::Child(request)) = established.pending() {
            self.out.reserve(request.id);
        }
        if established.is_current() {
            self.out.notice(established.taken_over(&common));
            self.start_at(&established.config.name, None);
        }
        self.saving.found(spi);
        let phase = Phase::Established(Box::new(established));
        let mut entry = Entry::new(IkeSa { common, phase }, None);
        entry.heir = heir.is_some();
        self.keep(entry);
        if let Some(old) = heir {
            self.saving.handed_over(old, spi);
        }
        Ok(spi)
    }

    /// Brings the restored IKE SAs and what the data plane carries together. Child SAs that it does
    /// not carry any more, as when their lifetime ran out, are deleted at the peer, and made anew
    /// where nothing is left. New child SAs get names above all of `carried`.
    pub fn reconcile(&mut self, now: Instant, carried: &[ChildSaId]) -> Reconciled {
        let mut reconciled = Reconciled::default();
        let all: HashSet<ChildSaId> = carried.iter().copied().collect();
        for id in carried {
            self.out.reserve(*id);
        }
        let mut owned = HashSet::new();
        for spi in self.sas.keys().copied().collect::<Vec<_>>() {
            self.with_sa(now, spi, |sa, cx| {
                let IkeSa {
                    common,
                    phase: Phase::Established(established),
                } = sa
                else {
                    return;
                };
                let name = established.config.name.clone();
                for (id, mode) in established.reconcile(common, cx, &all) {
                    owned.insert(id);
                    reconciled.carried.push((id, name.clone(), mode));
                }
            });
        }
        for config in self.connections.clone() {
            self.refresh_policy(&config);
        }
        reconciled.orphans = carried.to_vec();
        reconciled.orphans.retain(|id| !owned.contains(id));
        for entry in self.sas.values_mut() {
            entry.heir = false;
        }
        reconciled
    }
}

/// Whether an IKE SA could come up in this way with the configuration of now; if not, the reason.
fn fits(config: &ConnectionConfig, secrets: &[PskSecret], saved: &Saved) -> Result<(), String> {
    let common = &saved.common;
    let (local, remote) = (common.local.ip(), common.remote.ip());
    if let Some(configured) = config.local_address.filter(|address| *address != local) {
        return Err(format!("local.address is {configured}, it has {local}"));
    }
    // Whoever may move says where it began, if we called it; who is behind a NAT is anywhere.
    let began_at = match common.called {
        Some(called) => called,
        None => remote,
    };
    let anywhere = common.called.is_none() && common.mobike.is_some() || common.nat.remote;
    match config.remote_address {
        RemoteAddress::Address(configured) if configured != began_at && !anywhere => {
            return Err(format!("remote.address is {configured}, it has {remote}"));
        }
        _ => {}
    }
    let local_id = local_identity(config, common.local);
    // Who is known by an address keeps the name when moving.
    let named = config.local_id.is_some() || common.mobike.is_none();
    if named && !local_id.matches(&saved.local_id) {
        return Err(format!(
            "we are {local_id} in it now, and were {}",
            saved.local_id
        ));
    }
    let known_at = match config.remote_address {
        RemoteAddress::Address(configured) => configured,
        RemoteAddress::Any => remote,
    };
    let accepts = |at| accepts_identity(config, at, &saved.remote_id);
    if !accepts(known_at) && !accepts(remote) {
        return Err(format!("it expects another peer than {}", saved.remote_id));
    }
    if saved.signed != matches!(config.remote_auth, RemoteAuth::PublicKey(_)) {
        return Err("remote.auth is another".to_owned());
    }
    let shared = !saved.signed || matches!(config.local_auth, LocalAuth::Psk);
    if shared && psk::find(secrets, &saved.local_id, &saved.remote_id).is_none() {
        return Err(format!(
            "there is no pre-shared key for {} and {} any more",
            saved.local_id, saved.remote_id
        ));
    }
    if !saved.ppk && config.ppk.as_ref().is_some_and(|ppk| ppk.required) {
        return Err("it has no PPK in its keys, and ppk_required is set".to_owned());
    }
    let suite = &saved.suite;
    let chosen = chosen(
        Protocol::Ike,
        [Some(suite.cipher.into()), suite.integrity.map(Into::into)],
        [suite.prf.into(), suite.group.into()]
            .into_iter()
            .chain(suite.additional.transforms()),
    );
    if proposal::verify_ike(&config.ike, &chosen).is_err() {
        return Err(format!("its suite {suite} is not one of ike"));
    }
    let sides = child::sides(config, common);
    for child in &saved.children {
        let suite = &child.suite;
        let esn = if suite.esn {
            proposal::Esn::Yes
        } else {
            proposal::Esn::No
        };
        let chosen = self::chosen(
            Protocol::Esp,
            [Some(suite.cipher.into()), suite.integrity.map(Into::into)],
            [esn.into()],
        );
        if proposal::verify_esp(&config.esp, &chosen, Groups::Ignored).is_err() {
            return Err(format!("its child SA's suite {suite} is not one of esp"));
        }
        if child.mode != config.mode {
            let transport = child.mode == Mode::Transport;
            let has = if transport { "transport" } else { "tunnel" };
            return Err(format!(
                "its child SA is in {has} mode, and mode is another"
            ));
        }
        for (setting, ours, theirs) in [
            ("local.subnets", &sides.local, &child.local_ts),
            ("remote.subnets", &sides.remote, &child.remote_ts),
        ] {
            if !selector::is_subset(theirs, ours) {
                return Err(format!(
                    "its child SA is for {}, which {setting} does not cover",
                    format_list(theirs)
                ));
            }
        }
    }
    Ok(())
}

/// What was chosen, as if the peer had just done so.
fn chosen(
    protocol: Protocol,
    ciphers: [Option<Transform>; 2],
    others: impl IntoIterator<Item = Transform>,
) -> WireProposal {
    WireProposal {
        number: 1,
        protocol,
        spi: Vec::new(),
        transforms: ciphers.into_iter().flatten().chain(others).collect(),
    }
}
