//! What the documents of a token file are.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Each token is trained. Files of version 3.
    Text,
    /// Each document is a dialogue, of which some tokens are trained.
    Dialogues,
    /// Documents 2i and 2i + 1 are the chosen and the rejected of pair i: the same prompt, and an answer that is trained.
    Preferences,
}

impl Kind {
    pub fn number(self) -> u32 {
        match self {
            Kind::Text => 0,
            Kind::Dialogues => 1,
            Kind::Preferences => 2,
        }
    }

    /// Whose number it is, in a file of version 4.
    pub fn of_version_4(number: u32) -> Option<Kind> {
        [Kind::Dialogues, Kind::Preferences].into_iter().find(|kind| kind.number() == number)
    }

    /// What to do with such a file, where it is the wrong one.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Kind::Text => "`toroid data chat` makes the others from rows of messages",
            Kind::Dialogues => "dialogues are for supervised fine-tuning",
            Kind::Preferences => "preferences are for reward models",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Text => "text",
            Kind::Dialogues => "dialogues",
            Kind::Preferences => "preferences",
        })
    }
}
