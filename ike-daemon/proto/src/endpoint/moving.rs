//! Addresses of the host that change while IKE SAs are up (RFC 4555).

use std::net::IpAddr;
use std::time::Instant;

use super::Endpoint;
use crate::crypto::Random;
use crate::status::Role;

impl<R: Random> Endpoint<R> {
    /// Says which addresses the host has that others may reach it at, and by `source` which of them
    /// it sends from towards a peer. To be called at start and whenever addresses or routes change:
    /// IKE SAs whose peers support it move. A connection bound to an address stays there.
    pub fn set_addresses(
        &mut self,
        now: Instant,
        addresses: Vec<IpAddr>,
        mut source: impl FnMut(IpAddr) -> Option<IpAddr>,
    ) {
        self.addresses = addresses;
        let mut moves = Vec::new();
        for (spi, entry) in &self.sas {
            let common = &entry.sa.common;
            let bound = entry
                .sa
                .config()
                .is_none_or(|config| config.local_address.is_some());
            let (Some(role), false) = (common.mobike, bound) else {
                continue;
            };
            let local = common.local.ip();
            let lost = !self.addresses.contains(&local);
            // Who was called stays at the address that it was called at for as long as it has it.
            if !lost && role == Role::Responder {
                continue;
            }
            let best = source(common.remote.ip());
            let usable = |address: &IpAddr| *address != local && self.addresses.contains(address);
            let other_family = || {
                let mut others = self.addresses.iter().copied();
                others.find(|other| lost && other.is_ipv4() != local.is_ipv4())
            };
            if let Some(to) = best.filter(usable).or_else(other_family) {
                moves.push((*spi, to));
            }
        }
        for (spi, to) in moves {
            self.with_sa(now, spi, |sa, cx| sa.move_here(cx, to));
        }
    }
}
