//! Gateways that send us to others (RFC 5685).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::context::{Common, Cx, Effect};
use super::established::Established;
use super::respond::notifies;
use crate::notice::{DownReason, Notice};
use crate::wire::{Notify, NotifyType, Payload, Writer};

/// Redirects in a row that are followed (section 8: MAX_REDIRECTS).
pub(crate) const MAX_REDIRECTS: u32 = 5;

/// What people are told where a gateway is named in a way that nobody can use.
pub(crate) const UNUSABLE: &str = "it does not name it by an address or a host name";

const IPV4: u8 = 1;
const IPV6: u8 = 2;
const FQDN: u8 = 3;
/// Longest host name (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// Where a gateway sends us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gateway {
    Address(IpAddr),
    /// A host name, which is to be looked up.
    Host(String),
}

/// Says in IKE_SA_INIT that we follow, or which gateway sent us (sections 3 and 4).
pub(crate) fn write_support(writer: &mut Writer, cx: &Cx<'_>, from: Option<IpAddr>) {
    if !cx.settings.follow_redirects {
        return;
    }
    match from {
        None => writer.notify(Notify::new(NotifyType::REDIRECT_SUPPORTED, &[])),
        Some(from) => {
            let data = match from {
                IpAddr::V4(from) => [&[IPV4, 4][..], &from.octets()].concat(),
                IpAddr::V6(from) => [&[IPV6, 16][..], &from.octets()].concat(),
            };
            writer.notify(Notify::new(NotifyType::REDIRECTED_FROM, &data));
        }
    }
}

/// The gateway that a REDIRECT names, and what follows: "the nonce data from the Ni payload" in
/// IKE_SA_INIT, nothing elsewhere (section 7.2).
pub(crate) fn target(data: &[u8]) -> Option<(Gateway, &[u8])> {
    let (&[kind, length], rest) = data.split_first_chunk()?;
    let (gateway, nonce) = rest.split_at_checked(length.into())?;
    let address: IpAddr = match kind {
        IPV4 => Ipv4Addr::from(<[u8; 4]>::try_from(gateway).ok()?).into(),
        IPV6 => Ipv6Addr::from(<[u8; 16]>::try_from(gateway).ok()?).into(),
        FQDN => return Some((Gateway::Host(host_name(gateway)?), nonce)),
        _ => return None,
    };
    is_usable(address).then_some((Gateway::Address(address), nonce))
}

/// Whether a gateway can be at an address.
pub(crate) fn is_usable(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

fn host_name(octets: &[u8]) -> Option<String> {
    let fits = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.".contains(octet);
    let name = std::str::from_utf8(octets).ok()?;
    let usable = (1..=MAX_NAME).contains(&octets.len()) && octets.iter().all(fits);
    usable.then(|| name.to_owned())
}

/// Where an authenticated peer sends us, if we follow and are the one that called.
pub(crate) fn wanted(common: &Common, cx: &Cx<'_>, payloads: &[Payload<'_>]) -> Option<Gateway> {
    let follows = cx.settings.follow_redirects && common.called.is_some();
    let redirect = notifies(payloads).find(|notify| notify.kind == NotifyType::REDIRECT);
    let (to, _) = target(redirect.filter(|_| follows)?.data)?;
    Some(to)
}

impl Established {
    /// Leaves this gateway for another (sections 5 and 6).
    pub fn leave(&mut self, common: &Common, cx: &mut Cx<'_>, to: Gateway) {
        cx.out.effects.push(Effect::Redirected {
            connection: self.config.name.clone(),
            from: common.remote.ip(),
            to,
        });
        self.begin_delete(cx, DownReason::Replaced);
        cx.out.notice(Notice::Down {
            connection: self.config.name.clone(),
            remote: common.remote,
            reason: DownReason::Replaced,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_redirect_is_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((gateway, nonce)) = target(&data) {
                match gateway {
                    Gateway::Address(address) => prop_assert!(!address.is_multicast()),
                    Gateway::Host(name) => prop_assert!(!name.is_empty() && name.is_ascii()),
                }
                prop_assert!(data.ends_with(nonce));
            }
        }
    }

    #[test]
    fn what_a_redirect_names() {
        let gateway = Gateway::Address("192.0.2.9".parse().unwrap());
        let named = target(&[1, 4, 192, 0, 2, 9, 7, 7]);
        assert_eq!(named, Some((gateway, &[7, 7][..])));
        let gateway = Gateway::Host("gw.example".to_owned());
        assert_eq!(target(b"\x03\x0agw.example!"), Some((gateway, &b"!"[..])));
        assert_eq!(target(b"\x03\x0agw example!"), None);
        assert_eq!(target(b"\x03\x00"), None);
        assert_eq!(target(&[1, 4, 0, 0, 0, 0]), None);
        assert_eq!(target(&[1, 16, 192, 0, 2, 9]), None);
    }
}
