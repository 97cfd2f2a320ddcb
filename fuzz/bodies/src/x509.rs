//! The readers of certificates, revocation lists and PEM files.

use espada_ike::pem;
use espada_ike::x509::{Certificate, Crl};

/// A file: its blocks are found or it is refused, what a block holds is read or refused, and a block that is
/// written again is found again.
pub fn body(file: &[u8]) {
    der(file);
    let Ok(blocks) = pem::blocks(file) else {
        return;
    };
    for block in blocks {
        der(&block.der);
        let label = block.label.as_deref();
        let text = label.and_then(|label| pem::encode(label, &block.der));
        if let Some(text) = text {
            let again = pem::blocks(text.as_bytes()).expect("what was written is read");
            assert!(again.first().is_some_and(|again| again.der == block.der));
        }
    }
}

fn der(octets: &[u8]) {
    if let Ok(certificate) = Certificate::from_der(octets) {
        assert_eq!(certificate.der(), octets);
        let _ = certificate.shown_names();
        let _ = certificate.key();
        let _ = certificate.key_id();
    }
    if let Ok(list) = Crl::from_der(octets) {
        let _ = (list.len(), list.next_update());
        let _ = list.issuer().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn certificates_and_lists() {
        for der in [
            &include_bytes!("../../../ike-daemon/proto/src/x509/testdata/gw.der")[..],
            include_bytes!("../../../ike-daemon/proto/src/x509/testdata/crl.der"),
        ] {
            seeded::damaged(der, body);
            let text = pem::encode("CERTIFICATE", der).unwrap();
            seeded::damaged(text.as_bytes(), body);
        }
    }
}
