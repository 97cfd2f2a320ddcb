//! Gateways that send us to others (RFC 5685).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::context::{Common, Cx, Effect};
use super::established::Established;
use super::respond::notifies;
use crate::notice::{DownReason, Notice};
use crate::wire::{Notify, NotifyType, Payload, Writer};

/// Redirects in a row that are followed (section 8: MAX_REDIRECTS).
pub(crate) const MAX_REDIRECTS: u32 = 5;

/// What people are told where a gateway is not named by an address.
pub(crate) const UNUSABLE: &str = "it does not name it by an address that we could call";

const IPV4: u8 = 1;
const IPV6: u8 = 2;

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

/// The gateway that a REDIRECT names, if by an address, and what follows: "the nonce data from the
/// Ni payload" in IKE_SA_INIT, nothing elsewhere (section 7.2). Names would have to be looked up,
/// by whoever answers for the name.
pub(crate) fn target(data: &[u8]) -> Option<(IpAddr, &[u8])> {
    let (&[kind, length], rest) = data.split_first_chunk()?;
    let (gateway, nonce) = rest.split_at_checked(length.into())?;
    let address: IpAddr = match kind {
        IPV4 => Ipv4Addr::from(<[u8; 4]>::try_from(gateway).ok()?).into(),
        IPV6 => Ipv6Addr::from(<[u8; 16]>::try_from(gateway).ok()?).into(),
        _ => return None,
    };
    let usable = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
    usable.then_some((address, nonce))
}

/// Where an authenticated peer sends us, if we follow and are the one that called.
pub(crate) fn wanted(common: &Common, cx: &Cx<'_>, payloads: &[Payload<'_>]) -> Option<IpAddr> {
    let follows = cx.settings.follow_redirects && common.called.is_some();
    let redirect = notifies(payloads).find(|notify| notify.kind == NotifyType::REDIRECT);
    let (to, _) = target(redirect.filter(|_| follows)?.data)?;
    Some(to)
}

impl Established {
    /// Leaves this gateway for another (sections 5 and 6).
    pub fn leave(&mut self, common: &Common, cx: &mut Cx<'_>, to: IpAddr) {
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
            if let Some((address, nonce)) = target(&data) {
                prop_assert!(!address.is_multicast());
                prop_assert!(data.ends_with(nonce));
            }
        }
    }

    #[test]
    fn what_a_redirect_names() {
        let (address, nonce) = target(&[1, 4, 192, 0, 2, 9, 7, 7]).unwrap();
        assert_eq!(
            (address.to_string().as_str(), nonce),
            ("192.0.2.9", &[7, 7][..])
        );
        assert_eq!(target(b"\x03\x0bgw.example.x"), None);
        assert_eq!(target(&[1, 4, 0, 0, 0, 0]), None);
        assert_eq!(target(&[1, 16, 192, 0, 2, 9]), None);
    }
}
