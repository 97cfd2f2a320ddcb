//! AlgorithmIdentifiers of signatures, as X.509 and RFC 7427 (appendix A) write them.

use std::fmt;

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Encode, Sequence};
use x509_cert::spki::AlgorithmIdentifierRef;

use super::HashAlgorithm;

/// A signature algorithm with its hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1(HashAlgorithm),
    /// RSASSA-PSS: MGF1 with the same hash function, a salt as long as the hash.
    RsaPss(HashAlgorithm),
    /// ECDSA.
    Ecdsa(HashAlgorithm),
    /// Ed25519 (RFC 8032).
    Ed25519,
}

/// An algorithm that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownAlgorithm(String);

const RSA_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const MGF1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");
const ECDSA_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
pub(super) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

/// RSASSA-PSS-params (RFC 4055 section 3.1). What is left out stands for SHA-1.
#[derive(Sequence)]
struct PssParams<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    hash: Option<AlgorithmIdentifierRef<'a>>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    mgf: Option<AlgorithmIdentifierRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    salt: Option<u16>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    trailer: Option<u8>,
}

fn hash_oid(hash: HashAlgorithm) -> Option<ObjectIdentifier> {
    match hash {
        HashAlgorithm::Sha2_256 => Some(SHA256),
        HashAlgorithm::Sha2_384 => Some(SHA384),
        HashAlgorithm::Sha2_512 => Some(SHA512),
        HashAlgorithm::Sha1 | HashAlgorithm::Identity => None,
    }
}

fn hash_len(hash: HashAlgorithm) -> u16 {
    match hash {
        HashAlgorithm::Sha1 => 20,
        HashAlgorithm::Sha2_256 => 32,
        HashAlgorithm::Sha2_384 => 48,
        HashAlgorithm::Sha2_512 => 64,
        HashAlgorithm::Identity => 0,
    }
}

const SHA2: [HashAlgorithm; 3] = [
    HashAlgorithm::Sha2_256,
    HashAlgorithm::Sha2_384,
    HashAlgorithm::Sha2_512,
];

impl SignatureAlgorithm {
    /// The hash function.
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::RsaPkcs1(hash) | Self::RsaPss(hash) | Self::Ecdsa(hash) => hash,
            Self::Ed25519 => HashAlgorithm::Identity,
        }
    }

    /// Reads an AlgorithmIdentifier in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, UnknownAlgorithm> {
        let identifier = AlgorithmIdentifierRef::from_der(der).map_err(|_| {
            UnknownAlgorithm("its algorithm is not an AlgorithmIdentifier in DER".to_owned())
        })?;
        Self::from_identifier(&identifier)
    }

    pub(crate) fn from_identifier(
        identifier: &AlgorithmIdentifierRef<'_>,
    ) -> Result<Self, UnknownAlgorithm> {
        let known = match identifier.oid {
            RSA_SHA1 => Self::RsaPkcs1(HashAlgorithm::Sha1),
            RSA_SHA256 => Self::RsaPkcs1(HashAlgorithm::Sha2_256),
            RSA_SHA384 => Self::RsaPkcs1(HashAlgorithm::Sha2_384),
            RSA_SHA512 => Self::RsaPkcs1(HashAlgorithm::Sha2_512),
            ECDSA_SHA1 => Self::Ecdsa(HashAlgorithm::Sha1),
            ECDSA_SHA256 => Self::Ecdsa(HashAlgorithm::Sha2_256),
            ECDSA_SHA384 => Self::Ecdsa(HashAlgorithm::Sha2_384),
            ECDSA_SHA512 => Self::Ecdsa(HashAlgorithm::Sha2_512),
            ED25519 => Self::Ed25519,
            RSA_PSS => return pss(identifier.parameters),
            other => {
                return Err(UnknownAlgorithm(format!(
                    "the signature algorithm {other} is not known here"
                )));
            }
        };
        // RSA's come with NULL, and some write it for others or leave it out.
        match identifier.parameters {
            None => Ok(known),
            Some(parameters) if parameters.is_null() => Ok(known),
            Some(_) => Err(UnknownAlgorithm(format!(
                "the signature algorithm {known} has parameters it should not have"
            ))),
        }
    }

    /// The AlgorithmIdentifier in DER; `None` for what we never sign with.
    pub fn to_der(self) -> Option<Vec<u8>> {
        let plain = |oid, parameters| AlgorithmIdentifierRef { oid, parameters }.to_der().ok();
        let null = Some(AnyRef::NULL);
        match self {
            Self::RsaPkcs1(HashAlgorithm::Sha2_256) => plain(RSA_SHA256, null),
            Self::RsaPkcs1(HashAlgorithm::Sha2_384) => plain(RSA_SHA384, null),
            Self::RsaPkcs1(HashAlgorithm::Sha2_512) => plain(RSA_SHA512, null),
            Self::Ecdsa(HashAlgorithm::Sha2_256) => plain(ECDSA_SHA256, None),
            Self::Ecdsa(HashAlgorithm::Sha2_384) => plain(ECDSA_SHA384, None),
            Self::Ecdsa(HashAlgorithm::Sha2_512) => plain(ECDSA_SHA512, None),
            Self::Ed25519 => plain(ED25519, None),
            Self::RsaPss(hash) => {
                let identifier = AlgorithmIdentifierRef {
                    oid: hash_oid(hash)?,
                    parameters: null,
                };
                let of_mgf = identifier.to_der().ok()?;
                let params = PssParams {
                    hash: Some(identifier),
                    mgf: Some(AlgorithmIdentifierRef {
                        oid: MGF1,
                        parameters: Some(AnyRef::from_der(&of_mgf).ok()?),
                    }),
                    salt: Some(hash_len(hash)),
                    trailer: None,
                };
                let params = params.to_der().ok()?;
                plain(RSA_PSS, Some(AnyRef::from_der(&params).ok()?))
            }
            Self::RsaPkcs1(_) | Self::Ecdsa(_) => None,
        }
    }
}

fn pss(parameters: Option<AnyRef<'_>>) -> Result<SignatureAlgorithm, UnknownAlgorithm> {
    let unfit = |what: &str| Err(UnknownAlgorithm(format!("RSASSA-PSS {what}")));
    let Some(Ok(params)) = parameters.map(|any| any.decode_as::<PssParams<'_>>()) else {
        return unfit("without readable parameters");
    };
    let hash = |identifier: &AlgorithmIdentifierRef<'_>| {
        SHA2.into_iter()
            .find(|hash| hash_oid(*hash) == Some(identifier.oid))
    };
    let Some(main) = params.hash.as_ref().and_then(hash) else {
        return unfit("with a hash function other than SHA2-256, SHA2-384 or SHA2-512");
    };
    let of_mgf = params.mgf.filter(|mgf| mgf.oid == MGF1).and_then(|mgf| {
        let inner = mgf.parameters?.decode_as::<AlgorithmIdentifierRef<'_>>();
        hash(&inner.ok()?)
    });
    if of_mgf != Some(main) {
        return unfit("with another mask generation than MGF1 over the same hash function");
    }
    if params.salt != Some(hash_len(main)) {
        return unfit("with a salt that is not as long as the hash");
    }
    match params.trailer {
        None | Some(1) => Ok(SignatureAlgorithm::RsaPss(main)),
        Some(_) => unfit("with an unknown trailer"),
    }
}

impl fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPkcs1(hash) => write!(f, "RSASSA-PKCS1-v1_5 with {}", hash.name()),
            Self::RsaPss(hash) => write!(f, "RSASSA-PSS with {}", hash.name()),
            Self::Ecdsa(hash) => write!(f, "ECDSA with {}", hash.name()),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_util::hex;

    /// RFC 7427 appendix A.1.2, A.3.2, A.4.3 and RFC 8420 appendix A.
    #[test]
    fn identifiers_of_the_rfcs() {
        let known = [
            (
                SignatureAlgorithm::RsaPkcs1(HashAlgorithm::Sha2_256),
                "300d06092a864886f70d01010b0500",
            ),
            (
                SignatureAlgorithm::Ecdsa(HashAlgorithm::Sha2_256),
                "300a06082a8648ce3d040302",
            ),
            (
                SignatureAlgorithm::RsaPss(HashAlgorithm::Sha2_256),
                "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120",
            ),
            (SignatureAlgorithm::Ed25519, "300506032b6570"),
        ];
        for (algorithm, text) in known {
            assert_eq!(algorithm.to_der().unwrap(), hex(text), "{algorithm}");
            assert_eq!(SignatureAlgorithm::from_der(&hex(text)).unwrap(), algorithm);
        }
    }

    /// RFC 7427 appendix A.4.1 and A.4.2: empty and default parameters mean SHA-1.
    #[test]
    fn pss_with_sha1_is_refused() {
        for text in [
            "300d06092a864886f70d01010a3000",
            "303e06092a864886f70d01010a3031a00b300906052b0e03021a0500a118301606092a864886f70d010108300906052b0e03021a0500a203020114a303020101",
        ] {
            let error = SignatureAlgorithm::from_der(&hex(text)).unwrap_err();
            assert!(error.to_string().contains("hash function"), "{error}");
        }
    }
}
