//! Refused negotiations, explained: who refused, what was offered and sent, which line to change.

use std::fmt;
use std::sync::Arc;

use crate::config::SettingOrigin;
use crate::status::Role;
use crate::wire::notify::NotifyType;

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// NO_PROPOSAL_CHOSEN for the IKE SA.
    IkeProposal,
    /// NO_PROPOSAL_CHOSEN for the child SA.
    ChildProposal,
    /// TS_UNACCEPTABLE.
    TrafficSelectors,
    /// USE_TRANSPORT_MODE on one side only.
    TransportMode,
    /// AUTHENTICATION_FAILED.
    Authentication,
    /// INVALID_KE_PAYLOAD that a retry cannot cure.
    KeyExchange,
    /// Nothing came back.
    NoAnswer,
    /// The host has no address to send from towards the peer.
    NoSource,
    /// A message that breaks the protocol.
    Protocol,
    /// Any other error notify.
    Notify(NotifyType),
}

impl RefusalKind {
    /// The protocol's own name for it, as in `NO_PROPOSAL_CHOSEN`.
    pub fn name(self) -> String {
        match self {
            Self::IkeProposal | Self::ChildProposal => "NO_PROPOSAL_CHOSEN".to_owned(),
            Self::TrafficSelectors => "TS_UNACCEPTABLE".to_owned(),
            Self::TransportMode => "USE_TRANSPORT_MODE".to_owned(),
            Self::Authentication => "AUTHENTICATION_FAILED".to_owned(),
            Self::KeyExchange => "INVALID_KE_PAYLOAD".to_owned(),
            Self::NoAnswer => "NO_ANSWER".to_owned(),
            Self::NoSource => "NO_SOURCE_ADDRESS".to_owned(),
            Self::Protocol => "INVALID_SYNTAX".to_owned(),
            Self::Notify(kind) => kind.to_string(),
        }
    }
}

/// Who said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedBy {
    /// We did: what the peer sent is known.
    Us,
    /// The peer did: only what we sent is known.
    Peer,
    /// Nobody: there was no answer, or no way to ask.
    Nobody,
}

/// The setting that would cure a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// Dotted name of the setting.
    pub setting: String,
    /// File it stands in, if known.
    pub file: Option<String>,
    /// Line it stands on, if it is there.
    pub line: Option<u32>,
    /// Its value now, as written.
    pub current: Option<String>,
    /// A value that would have worked, or a hint in words where no value can be known.
    pub suggestion: String,
}

impl Fix {
    /// A fix for `setting` of the connection read from `origin`.
    pub fn new(origin: &SettingOrigin, setting: &str, suggestion: impl Into<String>) -> Self {
        let entry = origin.settings.get(setting);
        Self {
            setting: setting.to_owned(),
            file: (!origin.file.is_empty()).then(|| origin.file.clone()),
            line: entry.map(|entry| entry.line),
            current: entry.map(|entry| entry.value.clone()),
            suggestion: suggestion.into(),
        }
    }
}

/// `azure.toml:14: esp = "aes128-sha256"; change it to esp = "aes256-sha256"`.
impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            match self.line {
                Some(line) => write!(f, "{file}:{line}: ")?,
                None => write!(f, "{file}: ")?,
            }
        }
        match &self.current {
            Some(current) => write!(f, "{} = {current}", self.setting)?,
            None => write!(f, "{} is not set", self.setting)?,
        }
        write!(f, "; {}", self.suggestion)
    }
}

/// A negotiation that failed and everything known about why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is about.
    pub kind: RefusalKind,
    /// Who said no.
    pub by: RefusedBy,
    /// Our role in the exchange.
    pub role: Role,
    /// The connection, if one was chosen.
    pub connection: Option<Arc<str>>,
    /// One line: what happened.
    pub summary: String,
    /// The comparison, line by line: what we offer or accept, what the peer sent.
    pub details: Vec<String>,
    /// What to change.
    pub fix: Option<Fix>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.summary)?;
        for line in &self.details {
            write!(f, "\n    {line}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  to fix: {fix}")?;
        }
        Ok(())
    }
}
