//! Cookies: proof that an initiator receives at its address, without state here (RFC 7296 section 2.6).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::crypto::Random;
use crate::crypto::prf::prf;
use crate::proposal::Prf;

/// Secrets that cookies are made with: the current one and the one before.
#[derive(Default)]
pub(super) struct CookieJar {
    current: Option<Secret>,
    previous: Option<Secret>,
    version: u8,
}

struct Secret {
    version: u8,
    key: Zeroizing<[u8; 32]>,
    made: Instant,
}

impl Secret {
    /// `<version> | prf(<secret>, Ni | IPi | port | SPIi)`, after the RFC's suggestion.
    fn cookie(&self, spi_i: u64, remote: SocketAddr, nonce: &[u8]) -> Vec<u8> {
        let address = match remote.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mac = prf(
            Prf::HmacSha256,
            self.key.as_slice(),
            &[
                nonce,
                &address,
                &remote.port().to_be_bytes(),
                &spi_i.to_be_bytes(),
            ],
        );
        let mut cookie = vec![self.version];
        cookie.extend(mac.expose());
        cookie
    }
}

impl CookieJar {
    /// The cookie an initiator must return.
    pub fn issue(
        &mut self,
        now: Instant,
        rotation: Duration,
        rng: &mut impl Random,
        spi_i: u64,
        remote: SocketAddr,
        nonce: &[u8],
    ) -> Vec<u8> {
        let fresh = |secret: &Secret| now.saturating_duration_since(secret.made) < rotation;
        if !self.current.as_ref().is_some_and(fresh) {
            let mut key = Zeroizing::new([0; 32]);
            rng.fill(key.as_mut_slice());
            self.version = self.version.wrapping_add(1);
            let secret = Secret {
                version: self.version,
                key,
                made: now,
            };
            self.previous = self.current.replace(secret);
        }
        match &self.current {
            Some(secret) => secret.cookie(spi_i, remote, nonce),
            None => Vec::new(),
        }
    }

    /// Whether `cookie` is one we issued to this initiator lately.
    pub fn verify(
        &self,
        now: Instant,
        rotation: Duration,
        cookie: &[u8],
        spi_i: u64,
        remote: SocketAddr,
        nonce: &[u8],
    ) -> bool {
        let version = cookie.first().copied();
        [&self.current, &self.previous]
            .into_iter()
            .flatten()
            .filter(|secret| Some(secret.version) == version)
            .filter(|secret| now.saturating_duration_since(secret.made) < rotation * 2)
            .any(|secret| secret.cookie(spi_i, remote, nonce).ct_eq(cookie).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u8);

    impl Random for Counter {
        fn fill(&mut self, buf: &mut [u8]) {
            for octet in buf {
                self.0 = self.0.wrapping_add(1);
                *octet = self.0;
            }
        }
    }

    #[test]
    fn only_the_initiator_it_was_issued_to_may_return_it_and_not_for_long() {
        let rotation = Duration::from_secs(60);
        let mut jar = CookieJar::default();
        let mut rng = Counter(0);
        let now = Instant::now();
        let peer: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:500".parse().unwrap();
        let cookie = jar.issue(now, rotation, &mut rng, 7, peer, b"nonce");
        assert!(jar.verify(now, rotation, &cookie, 7, peer, b"nonce"));
        assert!(!jar.verify(now, rotation, &cookie, 8, peer, b"nonce"));
        assert!(!jar.verify(now, rotation, &cookie, 7, other, b"nonce"));
        assert!(!jar.verify(now, rotation, &cookie, 7, peer, b"other nonce"));
        assert!(!jar.verify(now, rotation, &[], 7, peer, b"nonce"));

        let later = now + rotation;
        assert_ne!(
            jar.issue(later, rotation, &mut rng, 7, peer, b"nonce"),
            cookie
        );
        assert!(
            jar.verify(later, rotation, &cookie, 7, peer, b"nonce"),
            "the previous secret still counts"
        );
        let much_later = later + rotation;
        jar.issue(much_later, rotation, &mut rng, 7, peer, b"nonce");
        assert!(!jar.verify(much_later, rotation, &cookie, 7, peer, b"nonce"));
    }
}
