//! The codec of IKE messages.

use espada_ike::wire::{Header, Payload, Payloads, Writer};

/// A datagram on the IKE port: what was understood of it is, written again, understood in the same way.
pub fn body(datagram: &[u8]) {
    let Ok((header, octets)) = Header::split(datagram) else {
        return;
    };
    assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header));
    let Ok(payloads) = Payloads::collect_all(header.next_payload, octets) else {
        return;
    };
    // Selectors of types that are not known are not kept, and none at all are not read.
    let empty = |payload: &Payload<'_>| match payload {
        Payload::TsI(selectors) | Payload::TsR(selectors) => selectors.is_empty(),
        _ => false,
    };
    if payloads.iter().any(empty) {
        return;
    }
    let (mut writer, mut last) = (Writer::new(), 0);
    for payload in &payloads {
        last = writer.bytes().len();
        payload.encode(&mut writer);
    }
    let mut octets = writer.bytes().to_vec();
    if let Some(Payload::Sk { inner, .. } | Payload::Skf { inner, .. }) = payloads.last() {
        octets[last] = inner.0;
    }
    let again = Payloads::collect_all(writer.first(), &octets);
    let again = again.expect("what was written is read");
    assert_eq!(again.len(), payloads.len());
    for (again, first) in again.iter().zip(&payloads) {
        match (again, first) {
            // Attributes that are not understood are not written.
            (Payload::Sa(again), Payload::Sa(first)) => {
                let again: Vec<_> = again.iter().map(|body| body.to_proposal()).collect();
                let first: Vec<_> = first.iter().map(|body| body.to_proposal()).collect();
                assert_eq!(again, first);
            }
            _ => assert_eq!(again, first),
        }
    }
}

#[cfg(test)]
mod tests {
    use espada_ike::wire::{ExchangeType, Flags, PayloadType};

    use super::*;
    use crate::seeded;

    fn message(payloads: &[(PayloadType, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        for (kind, body) in payloads {
            writer.add(*kind, |out| out.extend(*body));
        }
        writer.message(Header {
            initiator_spi: 1,
            responder_spi: 2,
            next_payload: PayloadType::NONE,
            major: 2,
            minor: 0,
            exchange: ExchangeType::IKE_SA_INIT,
            flags: Flags(Flags::INITIATOR),
            message_id: 0,
            length: 0,
        })
    }

    /// AES-256-GCM with a key length, as one proposal of one transform.
    const PROPOSAL: [u8; 20] = [
        0, 0, 0, 20, 1, 1, 0, 1, 0, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0,
    ];
    /// One IPv4 range, all ports.
    const SELECTOR: [u8; 20] = [
        1, 0, 0, 0, 7, 0, 0, 16, 0, 0, 0xff, 0xff, 10, 0, 0, 0, 10, 0, 0, 255,
    ];

    #[test]
    fn messages() {
        let init = message(&[
            (PayloadType::SA, &PROPOSAL),
            (PayloadType::KE, &[0, 31, 0, 0, 1, 2, 3, 4]),
            (PayloadType::NONCE, &[7; 16]),
            (PayloadType::NOTIFY, &[0, 0, 0x40, 4, 9, 9]),
            (PayloadType::VENDOR, b"somebody"),
        ]);
        seeded::damaged(&init, body);
        let auth = message(&[
            (PayloadType::IDI, &[2, 0, 0, 0, b'a', b'.', b'b']),
            (PayloadType::CERT, &[4, 0x30, 0]),
            (PayloadType::CERTREQ, &[4, 5]),
            (PayloadType::AUTH, &[14, 0, 0, 0, 1, 2]),
            (PayloadType::TSI, &SELECTOR),
            (PayloadType::TSR, &SELECTOR),
            (
                PayloadType::CP,
                &[1, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 4, 10, 0, 0, 1],
            ),
            (PayloadType::DELETE, &[3, 4, 0, 1, 1, 2, 3, 4]),
        ]);
        seeded::damaged(&auth, body);
        for (kind, octets) in [
            (PayloadType::SK, &[1; 32][..]),
            (PayloadType::SKF, &[0, 1, 0, 2, 5]),
        ] {
            let mut sealed = message(&[(kind, octets)]);
            sealed[28] = PayloadType::IDI.0;
            seeded::damaged(&sealed, body);
        }
    }
}
