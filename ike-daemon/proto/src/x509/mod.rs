//! X.509 certificates (RFC 5280) as IKEv2 uses them (RFC 4945): reading, path validation, names,
//! revocation lists, and the making of small authorities.

mod certificate;
mod constraints;
mod crl;
mod inquiry;
pub mod issue;
pub(crate) mod ocsp;
mod path;
mod revocation;
#[cfg(test)]
pub(crate) mod tests;
mod trust;

pub use certificate::{AltName, Certificate, CertificateError, show_time};
pub use crl::{Crl, CrlError};
pub(crate) use inquiry::Answers;
pub use inquiry::Inquiry;
pub use path::PathError;
pub(crate) use path::TrustedKey;
pub use trust::{Revocation, Trust};
