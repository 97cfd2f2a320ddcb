//! Going on after a daemon that ended without good-bye: what it left in the data plane and in the
//! states it stored, and what this one stores for the next.

use std::time::Instant;

use espada_common::sa::Command;
use espada_ike::Random;

use super::gateway::{Gateway, Installed};
use crate::config::Remote;

impl<R: Random> Gateway<R> {
    /// Loads the configuration and goes on with the SAs of the daemon before this one.
    pub(super) fn take_over(&mut self, now: Instant) {
        let kept = self.plane.backend.kept().unwrap_or_else(|error| {
            tracing::error!(%error, "data plane: cannot read what the previous daemon left");
            Vec::new()
        });
        for (_, state) in &kept {
            self.resolve_from(state);
        }
        self.load(now);
        for (key, state) in &kept {
            let known = match self.endpoint.restore(now, state) {
                Ok(restored) => restored.keys.contains(key),
                Err(error) => {
                    tracing::warn!("an IKE SA of the previous daemon does not go on: {error}");
                    false
                }
            };
            if !known {
                self.keep(*key, None);
            }
        }
        let carried = match self.plane.backend.sa_stats() {
            Ok(pairs) => pairs.iter().map(|pair| pair.id).collect(),
            Err(error) => {
                tracing::error!(%error, "data plane: cannot read which SAs it carries");
                Vec::new()
            }
        };
        let reconciled = self.endpoint.reconcile(now, &carried);
        for (id, connection, mode) in reconciled.carried {
            self.installed.insert(id, Installed { connection, mode });
        }
        for id in reconciled.orphans {
            tracing::info!(
                child = id.0,
                "data plane: removing an SA of the previous daemon that has no IKE SA"
            );
            if let Err(error) = self.plane.backend.apply(Command::RemoveSa { id }) {
                tracing::error!("data plane: cannot remove child SA {}: {error}", id.0);
            }
        }
    }

    /// Takes peers' addresses from a state where the configuration has their names: a connection
    /// is not there before its peer has an address. The next lookup says whether it still holds.
    fn resolve_from(&mut self, state: &[u8]) {
        for peer in self.endpoint.saved_peers(state).unwrap_or_default() {
            let connections = self.config.connections.iter();
            let mut named = connections.filter(|known| **known.name() == *peer.connection);
            if let Some(Remote::Host(host)) = named.next().map(|known| &known.remote) {
                self.resolved.insert(host.clone(), peer.address);
            }
        }
    }

    /// Everything that is configured is installed: what the previous daemon left beyond that goes.
    pub fn settle(&mut self) {
        self.plane.backend.settled();
    }

    /// Stores what changed, for a daemon after this one.
    pub(super) fn store(&mut self) {
        while let Some((key, state)) = self.endpoint.poll_saved() {
            self.keep(key, state.as_deref().map(Vec::as_slice));
        }
    }

    /// Forgets everything that was stored: nobody is to go on with it.
    pub(super) fn forget(&mut self) {
        for key in self.endpoint.stop_saving() {
            self.keep(key, None);
        }
    }

    fn keep(&mut self, key: u64, state: Option<&[u8]>) {
        let Err(error) = self.plane.backend.keep(key, state) else {
            return;
        };
        tracing::error!("data plane: an IKE SA will not outlive this daemon: {error}");
        // An old state is worse than none: it would say again what was said since.
        if state.is_some()
            && let Err(error) = self.plane.backend.keep(key, None)
        {
            tracing::error!("data plane: nor can its old state be forgotten: {error}");
        }
    }
}
