//! Why a row is not trained on. Each such row is counted by reason, and named with its file and line.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    InvalidUtf8,
    BrokenJson,
    /// The line has more bytes than a row may have.
    LineTooLong,
    /// None of the known fields, or several that do not go together.
    UnknownFields,
    /// A dialogue among preferences, or the other way round.
    OtherKind,
    UnknownRole,
    /// A picture, a number, nothing: content that is no text.
    NoText,
    NoAssistantTurn,
    EmptyAnswer,
    PromptsDiffer,
    SameAnswers,
    Tie,
    /// The scores or the margin prefer the rejected answer.
    Contradiction,
    BadMargin,
    TooLong,
    TemplateRefuses,
    /// What the assistant says cannot be told from the rest by prefixes.
    Ambiguous,
    /// An answer does not end with a token that ends turns.
    NoEndOfTurn,
    /// A content has characters or tokens that only the template may write.
    SpecialInContent,
    /// No trained token is there, or is left.
    Untrained,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A reason, and in words what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into() }
    }
}

pub type Usable<T> = Result<T, Refusal>;

/// A row of the list of refused rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub file: String,
    /// The first is 1.
    pub line: u64,
    pub reason: Reason,
    pub detail: String,
    /// How the row begins, as far as it is text.
    pub excerpt: String,
}
