//! An answer that admits not to know.

use espada_dataplane::features::Presence;
use serde::Serialize;

/// Yes, no, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It could not be found out.
    Unknown,
}

impl Answer {
    /// `yes`, `no` or `?`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "?",
        }
    }
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// An answer, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// The answer.
    pub answer: Answer,
    /// Why, or how much; why it is not known.
    pub detail: Option<String>,
}

impl Fact {
    /// Yes, with how.
    pub fn yes(detail: impl Into<String>) -> Self {
        Self::new(Answer::Yes, detail)
    }

    /// No, with why.
    pub fn no(detail: impl Into<String>) -> Self {
        Self::new(Answer::No, detail)
    }

    /// Not known, with why.
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self::new(Answer::Unknown, detail)
    }

    fn new(answer: Answer, detail: impl Into<String>) -> Self {
        Self {
            answer,
            detail: Some(detail.into()),
        }
    }

    /// An answer that needs no words.
    pub fn plain(answer: impl Into<Answer>) -> Self {
        Self {
            answer: answer.into(),
            detail: None,
        }
    }

    /// The detail, or nothing.
    pub fn words(&self) -> &str {
        self.detail.as_deref().unwrap_or("")
    }
}

impl From<&Presence> for Fact {
    fn from(presence: &Presence) -> Self {
        match presence {
            Presence::Present => Self::plain(Answer::Yes),
            Presence::Absent => Self::plain(Answer::No),
            Presence::Unknown(why) => Self::unknown(why.clone()),
        }
    }
}
