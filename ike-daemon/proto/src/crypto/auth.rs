//! What AUTH payloads cover, and authentication with a pre-shared key (RFC 7296 section 2.15).

use espada_common::sa::SecretBytes;
use subtle::ConstantTimeEq;

use super::prf::prf;
use crate::proposal::Prf;

/// "the string 'Key Pad for IKEv2' is 17 ASCII characters without null termination".
const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// What the AUTH payload of one side covers.
#[derive(Clone, Copy)]
pub struct SignedOctets<'a> {
    /// That side's first message (IKE_SA_INIT), from the header's first octet to the end, as it was
    /// sent: for an initiator the one with the cookie if there was one.
    pub message: &'a [u8],
    /// The other side's nonce, without payload header.
    pub peer_nonce: &'a [u8],
    /// That side's ID payload without its generic header: type, three reserved octets, data.
    pub id_body: &'a [u8],
    /// That side's SK_p: SK_pi for the initiator, SK_pr for the responder.
    pub sk_p: &'a [u8],
    /// What stands for the IKE_INTERMEDIATE exchanges (RFC 9242 section 3.3.2), if there were any.
    pub int_auth: &'a [u8],
}

/// prf(prf(Shared Secret, "Key Pad for IKEv2"), SignedOctets).
pub fn psk_auth(algorithm: Prf, shared_secret: &[u8], signed: SignedOctets<'_>) -> SecretBytes {
    let key = prf(algorithm, shared_secret, &[KEY_PAD]);
    let maced_id = prf(algorithm, signed.sk_p, &[signed.id_body]);
    prf(
        algorithm,
        key.expose(),
        &[
            signed.message,
            signed.peer_nonce,
            maced_id.expose(),
            signed.int_auth,
        ],
    )
}

/// The message that a signature in place of the pre-shared key signs: the first message, the other
/// side's nonce, prf(SK_p, ID payload), what stands for the IKE_INTERMEDIATE exchanges.
pub fn signed_message(algorithm: Prf, signed: SignedOctets<'_>) -> Vec<u8> {
    let maced_id = prf(algorithm, signed.sk_p, &[signed.id_body]);
    [
        signed.message,
        signed.peer_nonce,
        maced_id.expose(),
        signed.int_auth,
    ]
    .concat()
}

/// Whether `received` is that side's AUTH value, in time that does not depend on where they differ.
#[must_use]
pub fn psk_verify(
    algorithm: Prf,
    shared_secret: &[u8],
    signed: SignedOctets<'_>,
    received: &[u8],
) -> bool {
    psk_auth(algorithm, shared_secret, signed)
        .expose()
        .ct_eq(received)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_util::hex;

    fn signed() -> SignedOctets<'static> {
        SignedOctets {
            message: b"the first message",
            peer_nonce: b"the nonce of the peer",
            id_body: &[1, 0, 0, 0, 192, 0, 2, 1],
            sk_p: &[7; 32],
            int_auth: &[],
        }
    }

    /// Made with Python 3.11: `h = lambda k, m: hmac.new(k, m, "sha256").digest()`,
    /// `h(h(b"secret", b"Key Pad for IKEv2"), message + nonce + h(b"\x07" * 32, id))`.
    #[test]
    fn auth_value_equals_python_hmac() {
        let auth = psk_auth(Prf::HmacSha256, b"secret", signed());
        assert_eq!(
            auth.expose(),
            hex("a49688b8c6ee3bb6c4fda61e21e9a3fc8583f252588ff6170296059b4f3e2f12")
        );
    }

    #[test]
    fn verification_covers_everything() {
        let good = psk_auth(Prf::HmacSha384, b"secret", signed());
        let verify =
            |secret: &[u8], signed| psk_verify(Prf::HmacSha384, secret, signed, good.expose());
        assert!(verify(b"secret", signed()));
        assert!(!verify(b"Secret", signed()));
        assert!(!verify(
            b"secret",
            SignedOctets {
                message: b"another",
                ..signed()
            }
        ));
        assert!(!verify(
            b"secret",
            SignedOctets {
                peer_nonce: b"another",
                ..signed()
            }
        ));
        assert!(!verify(
            b"secret",
            SignedOctets {
                id_body: b"another",
                ..signed()
            }
        ));
        assert!(!verify(
            b"secret",
            SignedOctets {
                sk_p: b"another",
                ..signed()
            }
        ));
        assert!(!verify(
            b"secret",
            SignedOctets {
                int_auth: b"something",
                ..signed()
            }
        ));
        let truncated = &good.expose()[..good.expose().len() - 1];
        assert!(!psk_verify(Prf::HmacSha384, b"secret", signed(), truncated));
        assert!(!psk_verify(Prf::HmacSha384, b"secret", signed(), &[]));
    }
}
