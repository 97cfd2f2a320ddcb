//! IKE_SA_INIT requests: limits, cookies, repeated requests, and the half-open IKE SA that
//! comes of a good one.

use std::time::Instant;

use super::{Endpoint, Entry, stateless, wall_time};
use crate::crypto::Random;
use crate::notice::Notice;
use crate::refusal::RefusalKind;
use crate::sa::context::DynRandom;
use crate::sa::respond::{self, InitRefused};
use crate::sa::{Cx, Datagram, Effect};
use crate::status::IkeDrop;
use crate::wire::{ExchangeType, NotifyType, Payload, Payloads};

/// Longest IKE_SA_INIT request that is looked at: what fits into a large Ethernet frame.
const MAX_INIT_LEN: usize = 9000;

impl<R: Random> Endpoint<R> {
    /// A request that asks for a new IKE SA.
    pub(super) fn first_request(&mut self, now: Instant, datagram: &Datagram<'_>) {
        let header = &datagram.header;
        if header.initiator_spi == 0
            || header.message_id != 0
            || datagram.bytes.len() > MAX_INIT_LEN
        {
            return self.out.drop(IkeDrop::Malformed);
        }
        let key = (header.initiator_spi, datagram.remote);
        if let Some(&spi) = self.init_index.get(&key) {
            return self.with_sa(now, spi, |sa, cx| sa.repeated_init(cx, datagram));
        }
        let reply = |endpoint: &mut Self, kind, data: &[u8]| {
            endpoint.stateless(
                now,
                header,
                ExchangeType::IKE_SA_INIT,
                datagram.local,
                datagram.remote,
                kind,
                data,
            );
        };
        let payloads = match Payloads::collect_all(header.next_payload, datagram.body) {
            Ok(payloads) => payloads,
            Err(_) => {
                self.out.drop(IkeDrop::Malformed);
                return reply(self, NotifyType::INVALID_SYNTAX, &[]);
            }
        };
        if let Some(kind) = respond::unknown_critical(&payloads) {
            self.out.drop(IkeDrop::Malformed);
            return reply(self, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, &[kind.0]);
        }
        if !self.admit(now, datagram, &payloads) {
            return;
        }
        let mut cx = Cx {
            now,
            rng: DynRandom(&mut self.rng),
            settings: &self.settings,
            connections: &self.connections,
            secrets: &self.secrets,
            addresses: &self.addresses,
            wall: wall_time(self.wall, now),
            answers: &self.inquiries.answers,
            out: &mut self.out,
        };
        match respond::accept(&mut cx, datagram, &payloads) {
            Ok(sa) => {
                self.keep(Entry::new(sa, Some(key)));
            }
            Err(InitRefused {
                kind,
                data,
                refusal,
            }) => {
                if let Some(refusal) = refusal {
                    // A peer nobody configured must not be able to fill the log.
                    let known = refusal.connection.is_some();
                    if refusal.kind == RefusalKind::Notify(NotifyType::NO_PROPOSAL_CHOSEN) {
                        self.out.drop(IkeDrop::NoConnection);
                    }
                    if known
                        || self
                            .limiter
                            .take(now, self.settings.stateless_answers_per_second)
                    {
                        self.out.effects.push(Effect::Failed {
                            refusal,
                            retry: false,
                        });
                    }
                } else if kind != NotifyType::INVALID_KE_PAYLOAD {
                    self.out.drop(IkeDrop::Malformed);
                }
                reply(self, kind, &data);
                self.carry_out_effects(now);
            }
        }
    }

    /// Whether there is room for one more half-open IKE SA, after a cookie if need be.
    fn admit(&mut self, now: Instant, datagram: &Datagram<'_>, payloads: &[Payload<'_>]) -> bool {
        let limits = self.settings.half_open;
        let of_address = self
            .half_open
            .get(&datagram.remote.ip())
            .copied()
            .unwrap_or(0);
        if self.half_open_total >= limits.total || of_address >= limits.per_address {
            self.out.drop(IkeDrop::HalfOpenLimit);
            return false;
        }
        if self.half_open_total < limits.cookie_threshold {
            self.demanding_cookies = false;
            return true;
        }
        if !std::mem::replace(&mut self.demanding_cookies, true) {
            self.out.notice(Notice::CookiesDemanded {
                half_open: self.half_open_total,
            });
        }
        let mut cookie = None;
        let mut nonce = None;
        for payload in payloads {
            match payload {
                Payload::Notify(notify) if notify.kind == NotifyType::COOKIE => {
                    cookie = Some(notify.data)
                }
                Payload::Nonce(data) => nonce = Some(*data),
                _ => {}
            }
        }
        let Some(nonce) = nonce else {
            self.out.drop(IkeDrop::Malformed);
            return false;
        };
        let (spi, remote, rotation) = (
            datagram.header.initiator_spi,
            datagram.remote,
            self.settings.cookie_rotation,
        );
        if cookie.is_some_and(|cookie| {
            self.cookies
                .verify(now, rotation, cookie, spi, remote, nonce)
        }) {
            return true;
        }
        let cookie = self
            .cookies
            .issue(now, rotation, &mut self.rng, spi, remote, nonce);
        self.out.counters.cookies_sent += 1;
        // Not limited, as a flood would use the limit up and keep everybody else out; it is smaller
        // than the request, so nobody gains by having it sent to somebody else.
        self.out.transmit(
            datagram.local,
            remote,
            stateless::answer(
                &datagram.header,
                ExchangeType::IKE_SA_INIT,
                NotifyType::COOKIE,
                &cookie,
            ),
        );
        false
    }
}
