//! strongSwan's proposal keywords, and libreswan's for AEADs.

use std::fmt;

use espada_common::sa::{Cipher, GcmIcv, Integrity};

use super::transform::{Supported, named};
use super::{Additional, DhGroup, Esn, Prf, Proposal, Protocol, TransformType};

/// Keywords we can do, by what they stand for; the first of each is the one shown.
const KEYWORDS: &[(Supported, &[&str])] = &[
    (
        Supported::Cipher(Cipher::AesGcm(256, GcmIcv::Sixteen)),
        &["aes256gcm16", "aes256gcm128", "aes256gcm"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(128, GcmIcv::Sixteen)),
        &["aes128gcm16", "aes128gcm128", "aes128gcm"],
    ),
    (
        Supported::Cipher(Cipher::ChaCha20Poly1305),
        &[
            "chacha20poly1305",
            "chacha20poly1305compat",
            "chacha20_poly1305",
        ],
    ),
    (Supported::Cipher(Cipher::AesCbc(256)), &["aes256"]),
    (Supported::Cipher(Cipher::AesCbc(192)), &["aes192"]),
    (Supported::Cipher(Cipher::AesCbc(128)), &["aes128", "aes"]),
    (
        Supported::Cipher(Cipher::AesGcm(192, GcmIcv::Sixteen)),
        &["aes192gcm16", "aes192gcm128", "aes192gcm"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(256, GcmIcv::Twelve)),
        &["aes256gcm12", "aes256gcm96"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(192, GcmIcv::Twelve)),
        &["aes192gcm12", "aes192gcm96"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(128, GcmIcv::Twelve)),
        &["aes128gcm12", "aes128gcm96"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(256, GcmIcv::Eight)),
        &["aes256gcm8", "aes256gcm64"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(192, GcmIcv::Eight)),
        &["aes192gcm8", "aes192gcm64"],
    ),
    (
        Supported::Cipher(Cipher::AesGcm(128, GcmIcv::Eight)),
        &["aes128gcm8", "aes128gcm64"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(256, GcmIcv::Sixteen)),
        &["aes256ccm16", "aes256ccm128", "aes256ccm"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(256, GcmIcv::Twelve)),
        &["aes256ccm12", "aes256ccm96"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(256, GcmIcv::Eight)),
        &["aes256ccm8", "aes256ccm64"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(192, GcmIcv::Sixteen)),
        &["aes192ccm16", "aes192ccm128", "aes192ccm"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(192, GcmIcv::Twelve)),
        &["aes192ccm12", "aes192ccm96"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(192, GcmIcv::Eight)),
        &["aes192ccm8", "aes192ccm64"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(128, GcmIcv::Sixteen)),
        &["aes128ccm16", "aes128ccm128", "aes128ccm"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(128, GcmIcv::Twelve)),
        &["aes128ccm12", "aes128ccm96"],
    ),
    (
        Supported::Cipher(Cipher::AesCcm(128, GcmIcv::Eight)),
        &["aes128ccm8", "aes128ccm64"],
    ),
    (Supported::Cipher(Cipher::AesCtr(256)), &["aes256ctr"]),
    (Supported::Cipher(Cipher::AesCtr(192)), &["aes192ctr"]),
    (Supported::Cipher(Cipher::AesCtr(128)), &["aes128ctr"]),
    (Supported::Cipher(Cipher::AesGmac(256)), &["aes256gmac"]),
    (Supported::Cipher(Cipher::AesGmac(192)), &["aes192gmac"]),
    (Supported::Cipher(Cipher::AesGmac(128)), &["aes128gmac"]),
    (Supported::Cipher(Cipher::TripleDes), &["3des", "3des_cbc"]),
    (Supported::Cipher(Cipher::Null), &["null"]),
    (
        Supported::Integrity(Integrity::HmacSha256_128),
        &["sha256", "sha2_256", "sha2", "hmac_sha2_256"],
    ),
    (
        Supported::Integrity(Integrity::HmacSha384_192),
        &["sha384", "sha2_384", "hmac_sha2_384"],
    ),
    (
        Supported::Integrity(Integrity::HmacSha512_256),
        &["sha512", "sha2_512", "hmac_sha2_512"],
    ),
    (
        Supported::Integrity(Integrity::HmacSha1_96),
        &["sha1", "sha", "hmac_sha1"],
    ),
    (
        Supported::Integrity(Integrity::AesXcbc96),
        &["aesxcbc", "aes_xcbc", "aes_xcbc_96"],
    ),
    (
        Supported::Integrity(Integrity::AesCmac96),
        &["aescmac", "aes_cmac", "aes_cmac_96"],
    ),
    (Supported::Prf(Prf::HmacSha256), &["prfsha256"]),
    (Supported::Prf(Prf::HmacSha384), &["prfsha384"]),
    (Supported::Prf(Prf::HmacSha512), &["prfsha512"]),
    (Supported::Prf(Prf::HmacSha1), &["prfsha1"]),
    (Supported::Prf(Prf::AesXcbc), &["prfaesxcbc"]),
    (Supported::Prf(Prf::AesCmac), &["prfaescmac"]),
    (
        Supported::Group(DhGroup::Curve25519),
        &["x25519", "curve25519"],
    ),
    (Supported::Group(DhGroup::Ecp256), &["ecp256"]),
    (Supported::Group(DhGroup::Ecp384), &["ecp384"]),
    (Supported::Group(DhGroup::Ecp521), &["ecp521"]),
    (Supported::Group(DhGroup::Modp2048), &["modp2048"]),
    (Supported::Group(DhGroup::Modp3072), &["modp3072"]),
    (Supported::Group(DhGroup::Modp4096), &["modp4096"]),
    (Supported::Group(DhGroup::Modp6144), &["modp6144"]),
    (Supported::Group(DhGroup::Modp8192), &["modp8192"]),
    (Supported::Group(DhGroup::Curve448), &["x448", "curve448"]),
    (Supported::Group(DhGroup::Brainpool256), &["ecp256bp"]),
    (Supported::Group(DhGroup::Brainpool384), &["ecp384bp"]),
    (Supported::Group(DhGroup::Brainpool512), &["ecp512bp"]),
    (
        Supported::Group(DhGroup::MlKem512),
        &["mlkem512", "ml_kem_512"],
    ),
    (
        Supported::Group(DhGroup::MlKem768),
        &["mlkem768", "ml_kem_768"],
    ),
    (
        Supported::Group(DhGroup::MlKem1024),
        &["mlkem1024", "ml_kem_1024"],
    ),
    (Supported::Group(DhGroup::Modp1536), &["modp1536"]),
    (Supported::Group(DhGroup::Modp1024), &["modp1024"]),
    (Supported::Esn(Esn::Yes), &["esn"]),
    (Supported::Esn(Esn::No), &["noesn"]),
];

/// A proposal and what its reader should be told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The proposal.
    pub proposal: Proposal,
    /// Remarks and warnings.
    pub notes: Vec<Note>,
}

/// Something worth telling about a proposal that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A strict flag at the end, as ipsec.conf has it.
    TrailingExclamation,
    /// A group that needs `insecure = true`.
    InsecureGroup(DhGroup),
    /// A cipher that needs `insecure = true`.
    InsecureCipher(Cipher),
    /// An integrity algorithm beside AEAD ciphers only.
    IntegrityWithAead(Integrity),
    /// A PRF for ESP.
    PrfInEsp(Prf),
}

impl Note {
    /// Whether it is about security rather than spelling.
    pub fn is_warning(self) -> bool {
        matches!(self, Self::InsecureGroup(_) | Self::InsecureCipher(_))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrailingExclamation => f.write_str(
                "the trailing \"!\" is not needed: Espada never accepts more than is configured",
            ),
            Self::InsecureGroup(group) => write!(
                f,
                "{group} (DH group {}) is insecure: {}; move the peer to modp2048 or better",
                group.id(),
                weakness(*group)
            ),
            Self::InsecureCipher(cipher) => {
                write!(f, "{cipher} is insecure: {}", exposure(*cipher))
            }
            Self::IntegrityWithAead(integrity) => write!(
                f,
                "{integrity} is not used as integrity algorithm: the cipher is an AEAD and \
                 authenticates packets itself"
            ),
            Self::PrfInEsp(prf) => {
                write!(
                    f,
                    "{prf} is ignored: an ESP proposal has no PRF, it uses the IKE SA's"
                )
            }
        }
    }
}

fn exposure(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::TripleDes => {
            "after some gigabytes under one key its blocks of 64 bits repeat and give plaintext away \
             (Sweet32), and its tables can leak the key to other programs on this machine"
        }
        _ => "it does not encrypt: whoever is on the way reads everything",
    }
}

fn weakness(group: DhGroup) -> &'static str {
    match group {
        DhGroup::Modp1024 => {
            "one precomputation within reach of states opens every connection that uses its prime \
             (Logjam), and recorded traffic with it"
        }
        _ => "its 1536-bit prime is below the 112 bits of security that are asked for today",
    }
}

/// Why a proposal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeywordError {
    /// Nothing was written.
    Empty,
    /// Several proposals in one string.
    Comma,
    /// No such keyword.
    Unknown {
        /// As written.
        keyword: String,
        /// The valid keyword most like it.
        nearest: Option<&'static str>,
    },
    /// A registered algorithm that Espada cannot do.
    Unsupported {
        /// As written.
        keyword: String,
        /// Its type.
        kind: TransformType,
    },
    /// A group that needs `insecure = true`.
    Insecure {
        /// The group.
        group: DhGroup,
    },
    /// An additional key exchange by what is no method of key exchange.
    NoMethod {
        /// As written.
        keyword: String,
    },
    /// A cipher that needs `insecure = true`.
    InsecureCipher {
        /// The cipher.
        cipher: Cipher,
    },
    /// A keyword that has no meaning for this protocol.
    Misplaced {
        /// As written.
        keyword: String,
        /// The protocol.
        protocol: Protocol,
    },
    /// A type that this protocol cannot do without.
    Missing {
        /// What is missing.
        kind: TransformType,
        /// As written.
        text: String,
        /// A complete proposal.
        example: &'static str,
    },
}

impl std::error::Error for KeywordError {}

impl fmt::Display for KeywordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str(
                "the proposal is empty; write keywords joined by \"-\", as in \
                 \"aes256-sha256-modp2048\"",
            ),
            Self::Comma => {
                f.write_str("a string holds one proposal; write several as a list: [\"…\", \"…\"]")
            }
            Self::Unknown { keyword, nearest } => {
                write!(f, "unknown keyword \"{keyword}\"")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean \"{nearest}\"?")?,
                    None => f.write_str(".")?,
                }
                write!(f, " Valid are {}", ValidKeywords(None))
            }
            Self::Unsupported { keyword, kind } => write!(
                f,
                "\"{keyword}\" ({kind}) is known but not supported. Valid are {}",
                ValidKeywords(Some(*kind))
            ),
            Self::Insecure { group } => write!(
                f,
                "\"{group}\" (DH group {}) is insecure: {}. If the peer can do no better, set \
                 insecure = true for this connection",
                group.id(),
                weakness(*group)
            ),
            Self::NoMethod { keyword } => write!(
                f,
                "\"{keyword}\": what follows \"ke1_\" to \"ke7_\" must be \"none\" or one of those {}",
                ValidKeywords(Some(TransformType::KeyExchange))
            ),
            Self::InsecureCipher { cipher } => write!(
                f,
                "\"{cipher}\" is insecure: {}. If it must be, set insecure = true for this connection",
                exposure(*cipher)
            ),
            Self::Misplaced { keyword, protocol } => {
                write!(
                    f,
                    "\"{keyword}\" has no meaning in an {protocol} proposal; leave it out"
                )
            }
            Self::Missing {
                kind,
                text,
                example,
            } => write!(
                f,
                "\"{text}\" names no {kind}; a complete proposal is, for example, \"{example}\". \
                 Valid are {}",
                ValidKeywords(Some(*kind))
            ),
        }
    }
}

/// The valid keywords, of one type or all.
struct ValidKeywords(Option<TransformType>);

impl fmt::Display for ValidKeywords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut previous = None;
        for (supported, words) in KEYWORDS {
            let kind = supported.transform().kind;
            if self.0.is_some_and(|wanted| wanted != kind) {
                continue;
            }
            match previous {
                None => write!(f, "for {kind}: ")?,
                Some(before) if before != kind => write!(f, "; for {kind}: ")?,
                Some(_) => f.write_str(", ")?,
            }
            f.write_str(words.first().copied().unwrap_or_default())?;
            previous = Some(kind);
        }
        Ok(())
    }
}

fn lookup(keyword: &str) -> Option<Supported> {
    let direct = KEYWORDS.iter().find(|(_, words)| words.contains(&keyword));
    if let Some((supported, _)) = direct {
        return Some(*supported);
    }
    if let Some(cipher) = libreswan(keyword) {
        return Some(Supported::Cipher(cipher));
    }
    let number = keyword
        .strip_prefix("dh group")
        .or_else(|| keyword.strip_prefix("group"))
        .or_else(|| keyword.strip_prefix("dh"))?;
    DhGroup::from_id(number.trim().parse().ok()?).map(Supported::Group)
}

/// libreswan's names, with the key length behind them: `aes_gcm256`, `aes_gcm_c_256`,
/// `aes_gcm_8-256`, `aes_ccm_a-128`, `aes_ctr256`, `null_auth_aes_gmac-256`.
fn libreswan(keyword: &str) -> Option<Cipher> {
    let (name, bits) = [128, 192, 256].into_iter().find_map(|bits| {
        let name = keyword.strip_suffix(&bits.to_string())?;
        Some((name.strip_suffix(['_', '-']).unwrap_or(name), bits))
    })?;
    let icv = |name| match name {
        "" | "_16" | "_c" => Some(GcmIcv::Sixteen),
        "_12" | "_b" => Some(GcmIcv::Twelve),
        "_8" | "_a" => Some(GcmIcv::Eight),
        _ => None,
    };
    match name {
        "aes_cbc" => Some(Cipher::AesCbc(bits)),
        "aes_ctr" => Some(Cipher::AesCtr(bits)),
        "null_auth_aes_gmac" | "aes_gmac" => Some(Cipher::AesGmac(bits)),
        _ => match (name.strip_prefix("aes_gcm"), name.strip_prefix("aes_ccm")) {
            (Some(rest), _) => Some(Cipher::AesGcm(bits, icv(rest)?)),
            (_, Some(rest)) => Some(Cipher::AesCcm(bits, icv(rest)?)),
            _ => None,
        },
    }
}

/// The keywords of a proposal. libreswan's key length is part of the keyword before it.
fn split(words: &str) -> Vec<String> {
    let mut keywords: Vec<String> = Vec::new();
    for word in words.split('-') {
        match keywords.last_mut() {
            Some(cipher)
                if matches!(word, "128" | "192" | "256")
                    && ["aes_", "null_auth_aes_"]
                        .iter()
                        .any(|start| cipher.to_ascii_lowercase().starts_with(start)) =>
            {
                cipher.push('-');
                cipher.push_str(word);
            }
            _ => keywords.push(word.to_owned()),
        }
    }
    keywords
}

fn reject(written: &str, keyword: &str) -> KeywordError {
    if let Some(kind) = named(keyword) {
        return KeywordError::Unsupported {
            keyword: written.to_owned(),
            kind,
        };
    }
    let group = keyword
        .strip_prefix("dh group")
        .or_else(|| keyword.strip_prefix("group"))
        .or_else(|| keyword.strip_prefix("dh"));
    if group.is_some_and(|number| number.trim().parse::<u16>().is_ok()) {
        let kind = TransformType::KeyExchange;
        return KeywordError::Unsupported {
            keyword: written.to_owned(),
            kind,
        };
    }
    let nearest = KEYWORDS
        .iter()
        .flat_map(|(_, words)| words.iter().copied())
        .map(|word| (strsim::damerau_levenshtein(keyword, word), word))
        .min_by_key(|(distance, _)| *distance)
        // Beyond that there is no likeness left.
        .filter(|(distance, word)| *distance <= word.len() / 2)
        .map(|(_, word)| word);
    KeywordError::Unknown {
        keyword: written.to_owned(),
        nearest,
    }
}

/// The keyword of an additional key exchange, `ke1_mlkem768`: its place from 0, and the method.
fn additional(keyword: &str) -> Option<(usize, &str)> {
    let (number, method) = keyword.strip_prefix("ke")?.split_once('_')?;
    let number: usize = number.parse().ok()?;
    let place = number.checked_sub(1)?;
    (place < Additional::MOST).then_some((place, method))
}

fn push<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

pub(super) fn parse(
    protocol: Protocol,
    text: &str,
    insecure: bool,
) -> Result<Parsed, KeywordError> {
    let mut notes = Vec::new();
    let mut words = text.trim();
    if let Some(rest) = words.strip_suffix('!') {
        notes.push(Note::TrailingExclamation);
        words = rest.trim_end();
    }
    if words.is_empty() {
        return Err(KeywordError::Empty);
    }
    if words.contains(',') {
        return Err(KeywordError::Comma);
    }

    let mut proposal = Proposal {
        protocol,
        ciphers: Vec::new(),
        integrities: Vec::new(),
        prfs: Vec::new(),
        groups: Vec::new(),
        additional: Default::default(),
        esn: Vec::new(),
    };
    for written in &split(words) {
        let keyword = written.trim().to_ascii_lowercase();
        if let Some((place, method)) = additional(&keyword) {
            let group = match lookup(method) {
                Some(Supported::Group(group)) => Some(group),
                None if method == "none" => None,
                _ => {
                    let keyword = written.to_owned();
                    return Err(KeywordError::NoMethod { keyword });
                }
            };
            if let Some(group) = group.filter(|group| group.is_insecure()) {
                if !insecure {
                    return Err(KeywordError::Insecure { group });
                }
                push(&mut notes, Note::InsecureGroup(group));
            }
            if let Some(choices) = proposal.additional.get_mut(place) {
                push(choices, group);
            }
            continue;
        }
        match lookup(&keyword).ok_or_else(|| reject(written, &keyword))? {
            Supported::Cipher(cipher) if protocol == Protocol::Ike && !cipher.fits_ike() => {
                return Err(KeywordError::Misplaced {
                    keyword: written.to_owned(),
                    protocol,
                });
            }
            Supported::Cipher(cipher) if cipher.is_insecure() && !insecure => {
                return Err(KeywordError::InsecureCipher { cipher });
            }
            Supported::Cipher(cipher) => {
                if cipher.is_insecure() {
                    push(&mut notes, Note::InsecureCipher(cipher));
                }
                push(&mut proposal.ciphers, cipher);
            }
            Supported::Integrity(integrity) => push(&mut proposal.integrities, integrity),
            Supported::Prf(prf) if protocol == Protocol::Ike => push(&mut proposal.prfs, prf),
            Supported::Prf(prf) => notes.push(Note::PrfInEsp(prf)),
            Supported::Group(group) if group.is_insecure() && !insecure => {
                return Err(KeywordError::Insecure { group });
            }
            Supported::Group(group) => {
                if group.is_insecure() {
                    push(&mut notes, Note::InsecureGroup(group));
                }
                push(&mut proposal.groups, group);
            }
            // Read above.
            Supported::Additional(..) => {}
            Supported::Esn(esn) if protocol == Protocol::Esp => push(&mut proposal.esn, esn),
            Supported::Esn(_) => {
                return Err(KeywordError::Misplaced {
                    keyword: written.to_owned(),
                    protocol,
                });
            }
        }
    }
    complete(&mut proposal, &mut notes, words)?;
    Ok(Parsed { proposal, notes })
}

/// Fills in what follows from the rest, and refuses what does not follow.
fn complete(
    proposal: &mut Proposal,
    notes: &mut Vec<Note>,
    text: &str,
) -> Result<(), KeywordError> {
    let is_ike = proposal.protocol == Protocol::Ike;
    let missing = |kind, example| KeywordError::Missing {
        kind,
        text: text.to_owned(),
        example,
    };
    let example = if is_ike {
        "aes256-sha256-modp2048"
    } else {
        "aes256-sha256"
    };

    if proposal.ciphers.is_empty() {
        return Err(missing(TransformType::Encryption, example));
    }
    if is_ike && proposal.prfs.is_empty() {
        proposal.prfs = proposal
            .integrities
            .iter()
            .copied()
            .map(Prf::of_integrity)
            .collect();
        if proposal.prfs.is_empty() {
            proposal.prfs = vec![
                Prf::HmacSha256,
                Prf::HmacSha384,
                Prf::HmacSha512,
                Prf::HmacSha1,
            ];
        }
        // The integrity keyword stood for the PRF then: nothing to remark.
        if proposal.ciphers.iter().all(|cipher| cipher.is_aead()) {
            proposal.integrities.clear();
        }
    }
    if proposal.ciphers.iter().all(|cipher| cipher.is_aead()) {
        notes.extend(proposal.integrities.drain(..).map(Note::IntegrityWithAead));
    } else if proposal.integrities.is_empty() {
        return Err(missing(TransformType::Integrity, example));
    }
    if is_ike && proposal.groups.is_empty() {
        return Err(missing(TransformType::KeyExchange, example));
    }
    for choices in &mut proposal.additional {
        if choices.iter().all(Option::is_none) {
            choices.clear();
        }
    }
    if proposal.groups.is_empty() && proposal.additional.iter().any(|it| !it.is_empty()) {
        return Err(missing(
            TransformType::KeyExchange,
            "aes256gcm16-x25519-ke1_mlkem768",
        ));
    }
    if !is_ike && proposal.esn.is_empty() {
        proposal.esn.push(Esn::No);
    }
    Ok(())
}
