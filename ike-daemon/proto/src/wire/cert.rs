//! Certificate and certificate request payload bodies (RFC 7296 sections 3.6 and 3.7).

use super::reader::{DecodeError, Reader};

/// An encoding, then data: how CERT and CERTREQ payloads are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cert<'a> {
    /// Certificate encoding.
    pub encoding: u8,
    /// A certificate or key; in a request SHA-1 hashes of authorities' keys, 20 octets each.
    pub data: &'a [u8],
}

impl<'a> Cert<'a> {
    /// "X.509 Certificate - Signature": one certificate in DER.
    pub const X509: u8 = 4;
    /// "Raw Public Key": a SubjectPublicKeyInfo in DER (RFC 7670).
    pub const RAW_KEY: u8 = 15;

    /// Reads a payload body.
    pub fn decode(body: &'a [u8], what: &'static str) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, what);
        Ok(Self {
            encoding: reader.u8()?,
            data: reader.rest(),
        })
    }

    /// Appends the payload body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.encoding);
        out.extend(self.data);
    }
}
