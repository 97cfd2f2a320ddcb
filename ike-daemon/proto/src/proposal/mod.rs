//! Proposals (RFC 7296 section 3.3): what we offer and accept, in strongSwan's keywords, and the
//! choice between what two sides offer.

mod additional;
mod explain;
mod keyword;
mod select;
mod transform;

use std::fmt;

use espada_common::sa::{Cipher, GcmIcv, Integrity};

pub use additional::Additional;
pub(crate) use explain::write_table;
pub use explain::{Comparison, Mismatch, Offer, Suggestion, TypeComparison};
pub use keyword::{KeywordError, Note, Parsed};
pub use select::{
    EspChoice, Groups, IkeSuite, Selection, VerifyError, select_esp, select_ike, verify_esp,
    verify_ike,
};
pub use transform::{Transform, TransformType};

/// Pseudorandom function of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prf {
    /// PRF_HMAC_SHA1 (RFC 2104).
    HmacSha1,
    /// PRF_HMAC_SHA2_256 (RFC 4868).
    HmacSha256,
    /// PRF_HMAC_SHA2_384 (RFC 4868).
    HmacSha384,
    /// PRF_HMAC_SHA2_512 (RFC 4868).
    HmacSha512,
    /// PRF_AES128_XCBC (RFC 4434).
    AesXcbc,
    /// PRF_AES128_CMAC (RFC 4615).
    AesCmac,
}

impl Prf {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::HmacSha1,
        Self::HmacSha256,
        Self::HmacSha384,
        Self::HmacSha512,
        Self::AesXcbc,
        Self::AesCmac,
    ];

    /// Octets it puts out; also the preferred key length (RFC 7296 section 2.13).
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
            Self::AesXcbc | Self::AesCmac => 16,
        }
    }

    /// The PRF that goes with an integrity algorithm where none is named.
    pub const fn of_integrity(integrity: Integrity) -> Self {
        match integrity {
            Integrity::HmacSha1_96 => Self::HmacSha1,
            Integrity::HmacSha256_128 => Self::HmacSha256,
            Integrity::HmacSha384_192 => Self::HmacSha384,
            Integrity::HmacSha512_256 => Self::HmacSha512,
            Integrity::AesXcbc96 => Self::AesXcbc,
            Integrity::AesCmac96 => Self::AesCmac,
        }
    }
}

/// Its proposal keyword: `prfsha256`.
impl fmt::Display for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha1 => "prfsha1",
            Self::HmacSha256 => "prfsha256",
            Self::HmacSha384 => "prfsha384",
            Self::HmacSha512 => "prfsha512",
            Self::AesXcbc => "prfaesxcbc",
            Self::AesCmac => "prfaescmac",
        })
    }
}

/// Diffie-Hellman group or other key exchange method, with its number in the IANA registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum DhGroup {
    /// 1024-bit MODP (RFC 2409). Insecure: precomputation breaks it for every user at once.
    Modp1024 = 2,
    /// 1536-bit MODP (RFC 3526). Insecure.
    Modp1536 = 5,
    /// 2048-bit MODP (RFC 3526).
    Modp2048 = 14,
    /// 3072-bit MODP (RFC 3526).
    Modp3072 = 15,
    /// 4096-bit MODP (RFC 3526).
    Modp4096 = 16,
    /// 6144-bit MODP (RFC 3526).
    Modp6144 = 17,
    /// 8192-bit MODP (RFC 3526).
    Modp8192 = 18,
    /// NIST P-256 (RFC 5903).
    Ecp256 = 19,
    /// NIST P-384 (RFC 5903).
    Ecp384 = 20,
    /// NIST P-521 (RFC 5903).
    Ecp521 = 21,
    /// brainpoolP256r1 (RFC 6954).
    Brainpool256 = 28,
    /// brainpoolP384r1 (RFC 6954).
    Brainpool384 = 29,
    /// brainpoolP512r1 (RFC 6954).
    Brainpool512 = 30,
    /// Curve25519 (RFC 8031).
    Curve25519 = 31,
    /// Curve448 (RFC 8031).
    Curve448 = 32,
    /// ML-KEM-512 (FIPS 203).
    MlKem512 = 35,
    /// ML-KEM-768 (FIPS 203).
    MlKem768 = 36,
    /// ML-KEM-1024 (FIPS 203).
    MlKem1024 = 37,
}

impl DhGroup {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Modp1024,
        Self::Modp1536,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Brainpool256,
        Self::Brainpool384,
        Self::Brainpool512,
        Self::Curve25519,
        Self::Curve448,
        Self::MlKem512,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// Its number, as in KE payloads and INVALID_KE_PAYLOAD notifies.
    pub const fn id(self) -> u16 {
        self as u16
    }

    /// The group with this number, if we have it.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// Octets of the initiator's public value on the wire; the responder's has as many, but for
    /// [`Self::answer_len`].
    pub const fn public_len(self) -> usize {
        match self {
            Self::Modp1024 | Self::Brainpool512 => 128,
            Self::Modp1536 => 192,
            Self::Modp2048 => 256,
            Self::Modp3072 => 384,
            Self::Modp4096 => 512,
            Self::Modp6144 => 768,
            Self::Modp8192 => 1024,
            Self::Ecp256 | Self::Brainpool256 => 64,
            Self::Ecp384 | Self::Brainpool384 => 96,
            Self::Ecp521 => 132,
            Self::Curve25519 => 32,
            Self::Curve448 => 56,
            Self::MlKem512 => 800,
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// Octets of the responder's public value: of a KEM the ciphertext.
    pub const fn answer_len(self) -> usize {
        match self {
            Self::MlKem512 => 768,
            Self::MlKem768 => 1088,
            _ => self.public_len(),
        }
    }

    /// Whether the responder's value is made for the initiator's, and the shared secret with it.
    pub const fn is_kem(self) -> bool {
        matches!(self, Self::MlKem512 | Self::MlKem768 | Self::MlKem1024)
    }

    /// Whether it is accepted only with `insecure = true`.
    pub const fn is_insecure(self) -> bool {
        matches!(self, Self::Modp1024 | Self::Modp1536)
    }
}

/// Its proposal keyword: `modp2048`, `x25519`.
impl fmt::Display for DhGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Modp1024 => "modp1024",
            Self::Modp1536 => "modp1536",
            Self::Modp2048 => "modp2048",
            Self::Modp3072 => "modp3072",
            Self::Modp4096 => "modp4096",
            Self::Modp6144 => "modp6144",
            Self::Modp8192 => "modp8192",
            Self::Ecp256 => "ecp256",
            Self::Ecp384 => "ecp384",
            Self::Ecp521 => "ecp521",
            Self::Brainpool256 => "ecp256bp",
            Self::Brainpool384 => "ecp384bp",
            Self::Brainpool512 => "ecp512bp",
            Self::Curve25519 => "x25519",
            Self::Curve448 => "x448",
            Self::MlKem512 => "mlkem512",
            Self::MlKem768 => "mlkem768",
            Self::MlKem1024 => "mlkem1024",
        })
    }
}

/// Sequence numbers of an ESP SA (RFC 7296 section 3.3.2, transform type 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Esn {
    /// 32 bits.
    No,
    /// 64 bits, the lower 32 of them on the wire (RFC 4303 section 2.2.1).
    Yes,
}

/// Its proposal keyword.
impl fmt::Display for Esn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "noesn",
            Self::Yes => "esn",
        })
    }
}

/// What a proposal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// An IKE SA.
    Ike,
    /// AH, which we know by name only.
    Ah,
    /// ESP.
    Esp,
    /// Anything else a peer may send.
    Other(u8),
}

impl Protocol {
    /// Its number on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Ike => 1,
            Self::Ah => 2,
            Self::Esp => 3,
            Self::Other(id) => id,
        }
    }

    /// The protocol with this number.
    pub const fn from_id(id: u8) -> Self {
        match id {
            1 => Self::Ike,
            2 => Self::Ah,
            3 => Self::Esp,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ike => f.write_str("IKE"),
            Self::Ah => f.write_str("AH"),
            Self::Esp => f.write_str("ESP"),
            Self::Other(id) => write!(f, "protocol {id}"),
        }
    }
}

/// A proposal as it is on the wire, free of any codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireProposal {
    /// Its number, from 1.
    pub number: u8,
    /// What it is for.
    pub protocol: Protocol,
    /// The sender's SPI: empty for the first IKE SA, 8 octets when it is rekeyed, 4 for ESP.
    pub spi: Vec<u8>,
    /// Its transforms, in the sender's order of preference within a type. One with attributes
    /// that are not understood must be left out, as it cannot be chosen (RFC 7296 section 3.3.6).
    pub transforms: Vec<Transform>,
}

impl WireProposal {
    /// IDs and key lengths of one type.
    pub fn of_type(&self, kind: TransformType) -> impl Iterator<Item = Transform> + '_ {
        self.transforms
            .iter()
            .copied()
            .filter(move |transform| transform.kind == kind)
    }
}

/// Keywords of its transforms: `aes256-sha256-prfsha256-modp2048`.
impl fmt::Display for WireProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, transform) in self.transforms.iter().enumerate() {
            write!(f, "{}{transform}", if index == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

/// A configured proposal. Every list is in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// [`Protocol::Ike`] or [`Protocol::Esp`].
    pub protocol: Protocol,
    /// Encryption.
    pub ciphers: Vec<Cipher>,
    /// Integrity, for the ciphers that are not AEADs.
    pub integrities: Vec<Integrity>,
    /// PRFs (IKE only).
    pub prfs: Vec<Prf>,
    /// Groups: for IKE at least one; for ESP those of perfect forward secrecy, or none.
    pub groups: Vec<DhGroup>,
    /// Additional key exchanges 1 to 7 after that one (RFC 9370): what each may be, `None` for
    /// leaving it out. Without entry there is none.
    pub additional: [Vec<Option<DhGroup>>; Additional::MOST],
    /// Sequence numbers (ESP only).
    pub esn: Vec<Esn>,
}

impl Proposal {
    /// Reads strongSwan's keywords, as in `aes256-sha256-modp2048` or `aes256gcm16-prfsha256-x25519`.
    ///
    /// `insecure` is the setting of that name: without it, groups 2 and 5 and ciphers that hide too
    /// little are refused.
    pub fn parse(protocol: Protocol, text: &str, insecure: bool) -> Result<Parsed, KeywordError> {
        keyword::parse(protocol, text, insecure)
    }

    /// [`parse`](Self::parse) of an IKE proposal, without the notes.
    pub fn parse_ike(text: &str, insecure: bool) -> Result<Self, KeywordError> {
        keyword::parse(Protocol::Ike, text, insecure).map(|parsed| parsed.proposal)
    }

    /// [`parse`](Self::parse) of an ESP proposal, without the notes.
    pub fn parse_esp(text: &str, insecure: bool) -> Result<Self, KeywordError> {
        keyword::parse(Protocol::Esp, text, insecure).map(|parsed| parsed.proposal)
    }

    /// Whether it has something that is accepted only with `insecure = true`.
    pub fn is_insecure(&self) -> bool {
        let additional = self.additional.iter().flatten().flatten();
        let mut groups = self.groups.iter().chain(additional);
        groups.any(|group| group.is_insecure())
            || self.ciphers.iter().any(|cipher| cipher.is_insecure())
    }

    /// What is offered and accepted for the IKE SA where nothing is configured.
    pub fn default_ike() -> Vec<Self> {
        let prfs = vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
        let groups = vec![
            DhGroup::Curve25519,
            DhGroup::Ecp256,
            DhGroup::Ecp384,
            DhGroup::Ecp521,
            DhGroup::Modp3072,
            DhGroup::Modp4096,
            DhGroup::Modp2048,
        ];
        vec![
            Self {
                protocol: Protocol::Ike,
                ciphers: vec![
                    Cipher::AesGcm(256, GcmIcv::Sixteen),
                    Cipher::AesGcm(128, GcmIcv::Sixteen),
                    Cipher::ChaCha20Poly1305,
                ],
                integrities: Vec::new(),
                prfs: prfs.clone(),
                groups: groups.clone(),
                additional: Default::default(),
                esn: Vec::new(),
            },
            Self {
                protocol: Protocol::Ike,
                ciphers: vec![
                    Cipher::AesCbc(256),
                    Cipher::AesCbc(192),
                    Cipher::AesCbc(128),
                ],
                integrities: vec![
                    Integrity::HmacSha256_128,
                    Integrity::HmacSha384_192,
                    Integrity::HmacSha512_256,
                ],
                prfs,
                groups,
                additional: Default::default(),
                esn: Vec::new(),
            },
        ]
    }

    /// What is offered and accepted for child SAs where nothing is configured: without perfect
    /// forward secrecy, extended sequence numbers preferred.
    pub fn default_esp() -> Vec<Self> {
        let esn = vec![Esn::Yes, Esn::No];
        vec![
            Self {
                protocol: Protocol::Esp,
                ciphers: vec![
                    Cipher::AesGcm(256, GcmIcv::Sixteen),
                    Cipher::AesGcm(128, GcmIcv::Sixteen),
                    Cipher::ChaCha20Poly1305,
                ],
                integrities: Vec::new(),
                prfs: Vec::new(),
                groups: Vec::new(),
                additional: Default::default(),
                esn: esn.clone(),
            },
            Self {
                protocol: Protocol::Esp,
                ciphers: vec![Cipher::AesCbc(256), Cipher::AesCbc(128)],
                integrities: vec![
                    Integrity::HmacSha256_128,
                    Integrity::HmacSha384_192,
                    Integrity::HmacSha512_256,
                ],
                prfs: Vec::new(),
                groups: Vec::new(),
                additional: Default::default(),
                esn,
            },
        ]
    }

    /// The proposal as it can be sent. AEADs and other ciphers cannot share a proposal, since only
    /// one of the kinds takes an integrity algorithm (RFC 7296 section 3.3): where both are listed
    /// there are two, the kind of the first cipher first.
    pub(crate) fn split(&self) -> Vec<Self> {
        let part = |aead: bool| Self {
            ciphers: self
                .ciphers
                .iter()
                .copied()
                .filter(|cipher| cipher.is_aead() == aead)
                .collect(),
            integrities: if aead {
                Vec::new()
            } else {
                self.integrities.clone()
            },
            ..self.clone()
        };
        let aead_first = self.ciphers.first().is_some_and(|cipher| cipher.is_aead());
        [part(aead_first), part(!aead_first)]
            .into_iter()
            .filter(|proposal| !proposal.ciphers.is_empty())
            .collect()
    }

    /// All transforms, type by type.
    fn transforms(&self, groups: Groups) -> Vec<Transform> {
        let mut transforms = Vec::new();
        transforms.extend(self.ciphers.iter().copied().map(Transform::from));
        transforms.extend(self.prfs.iter().copied().map(Transform::from));
        transforms.extend(self.integrities.iter().copied().map(Transform::from));
        if groups == Groups::Negotiated {
            transforms.extend(self.groups.iter().copied().map(Transform::from));
            for (number, choices) in (1..).zip(&self.additional) {
                let choices = choices.iter().copied();
                transforms.extend(choices.map(|group| Transform::additional(number, group)));
            }
        }
        transforms.extend(self.esn.iter().copied().map(Transform::from));
        transforms
    }

    /// Its proposals on the wire, without numbers and SPIs.
    pub fn to_wire(&self, groups: Groups) -> Vec<Vec<Transform>> {
        self.split()
            .iter()
            .map(|part| part.transforms(groups))
            .collect()
    }
}

/// All of `proposals` for an SA payload, numbered from 1, each with our `spi`. Anything beyond the
/// 255 proposals that can be numbered is left out.
pub fn offer(proposals: &[Proposal], spi: &[u8], groups: Groups) -> Vec<WireProposal> {
    proposals
        .iter()
        .flat_map(|proposal| {
            let protocol = proposal.protocol;
            proposal
                .to_wire(groups)
                .into_iter()
                .map(move |transforms| (protocol, transforms))
        })
        .zip(1..=u8::MAX)
        .map(|((protocol, transforms), number)| WireProposal {
            number,
            protocol,
            spi: spi.to_vec(),
            transforms,
        })
        .collect()
}

/// Keywords, all that apply: `aes256-sha256-prfsha256-modp2048`. Reading them again gives the same.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ciphers = self.ciphers.iter().map(|it| it.to_string());
        let integrities = self.integrities.iter().map(|it| it.to_string());
        let prfs = self.prfs.iter().map(|it| it.to_string());
        let groups = self.groups.iter().map(|it| it.to_string());
        let additional = (1..).zip(&self.additional).flat_map(|(number, choices)| {
            let choices = choices.iter().copied();
            choices.map(move |group| Transform::additional(number, group).to_string())
        });
        let esn = self.esn.iter().map(|it| it.to_string());
        // Plain sequence numbers go without saying.
        let esn = esn.filter(|_| self.esn != [Esn::No]);
        // A PRF that follows from the integrity algorithm does so too.
        let implied: Vec<Prf> = self
            .integrities
            .iter()
            .copied()
            .map(Prf::of_integrity)
            .collect();
        let prfs = prfs.filter(|_| implied != self.prfs);
        let words: Vec<String> = ciphers
            .chain(integrities)
            .chain(prfs)
            .chain(groups)
            .chain(additional)
            .chain(esn)
            .collect();
        f.write_str(&words.join("-"))
    }
}

#[cfg(test)]
mod tests;
