//! From a line to tokens that are trained on: what is cut, and which of it is held out.

use std::ops::Range;

use crate::chat::refusal::{Reason, Refusal, Usable};
use crate::chat::row::{self, Margins, Message, Row};
use crate::chat::template::{Dialogues, Turns};
use crate::chat::tokenizer::{ChatTokens, Example, Guarded};
use crate::doc::{mix, text_hash};
use crate::error::{Error, Result};

/// What becomes of a row with more tokens than `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// It is refused.
    Drop,
    /// The front of its prompt goes.
    Cut,
    /// It ends the command.
    Fail,
}

/// What is done to each row.
#[derive(Debug, Clone)]
pub struct How {
    pub is_preference: bool,
    pub margins: Margins,
    pub turns: Turns,
    /// Of a document.
    pub max_tokens: usize,
    pub too_long: TooLong,
    /// Share of the rows, by the hash of what is before the last answer.
    pub held_out: f64,
    pub seed: u64,
}

/// A row that is trained on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Made {
    /// One of a dialogue; the chosen and the rejected of a preference.
    pub documents: Vec<Example>,
    /// Of a preference.
    pub margin: f32,
    /// Which follows from what is before the last answer: rows of one prompt have the same.
    pub hash: u64,
    pub is_held_out: bool,
    /// The front of the prompt went.
    pub is_cut: bool,
    /// Messages behind the last answer that are left out.
    pub num_cut_messages: u64,
    /// Somebody wrote a token that only the template may write; it is text.
    pub is_injected: bool,
}

impl Made {
    /// How many tokens the chosen answer has more than the rejected one; nothing of a dialogue.
    pub fn difference(&self) -> Option<i64> {
        let [chosen, rejected] = &self.documents[..] else { return None };
        Some(chosen.tokens.len() as i64 - rejected.tokens.len() as i64)
    }
}

/// Makes rows.
pub struct Maker {
    pub tokens: ChatTokens,
    pub dialogues: Dialogues,
    pub how: How,
    /// Stands at the front of each dialogue and stays there.
    bos: Option<u32>,
    /// The token at the end of an answer.
    pub end: u32,
    /// What a user should know of the template.
    pub notes: Vec<String>,
}

impl Maker {
    /// Tries the template on a dialogue, so that what is wrong with it is known before all rows are refused.
    pub fn new(tokens: ChatTokens, dialogues: Dialogues, how: How) -> Result<Maker> {
        let mut maker = Maker { tokens, dialogues, how, bos: None, end: 0, notes: Vec::new() };
        let say = |role: &str, text: &str| Message::of(role, text);
        let one = [say("user", "One question"), say("assistant", "One answer")];
        let two = [&one[..], &[say("user", "Two questions"), say("assistant", "Two answers")]].concat();
        let fails = |refusal: Refusal| {
            Error::Config(format!(
                "the template ({}) cannot be trained with: {} ({}); name another one with --template",
                maker.dialogues.name, refusal.detail, refusal.reason
            ))
        };
        let guarded = maker.dialogues.dialogue(&one, None, Turns::All).map_err(fails)?;
        let trained: String = guarded.trained.iter().map(|range| &guarded.text[range.clone()]).collect();
        if !trained.contains("One answer") || trained.contains("One question") {
            let what = format!("what it marks as trained is `{trained}`, and not the answer");
            return Err(fails(Refusal::new(Reason::Untrained, what)));
        }
        let example = maker.tokens.encode(&guarded).map_err(fails)?;
        let is_control = |n: usize| example.tokens.get(n).filter(|token| maker.tokens.is_control(**token)).copied();
        if is_control(0).is_some() && is_control(0) == is_control(1) {
            let what = "a dialogue begins with the same special token twice; it has to be there once";
            return Err(fails(Refusal::new(Reason::TemplateRefuses, what)));
        }
        let last = example.trained.iter().rposition(|trained| *trained);
        let end = last.map(|last| example.tokens[last]);
        let end = end.ok_or_else(|| fails(Refusal::new(Reason::Untrained, "no token of the answer is trained")))?;
        let mut notes = Vec::new();
        let put_before = maker.tokens.put_before();
        let first_of = |name: &String| maker.tokens.id(name);
        let firsts = [maker.bos_of_settings(), put_before.as_ref().and_then(first_of)];
        let bos = is_control(0).filter(|first| firsts.contains(&Some(*first)));
        if let Some(token) = put_before.filter(|_| bos.is_none()) {
            let what = "before texts, and the template does not: dialogues begin without it";
            notes.push(format!("the tokenizer puts {token} {what}"));
        }
        match maker.dialogues.dialogue(&two, None, maker.how.turns) {
            Ok(found) => {
                let ends = |range: &&Range<usize>| found.control.iter().any(|control| control.end == range.end);
                let num = found.trained.iter().filter(ends).count();
                if maker.how.turns == Turns::All && num < 2 {
                    let what = "of two answers it trains the end of the turn of one";
                    return Err(fails(Refusal::new(Reason::NoEndOfTurn, what)));
                }
            }
            Err(refusal) => {
                let what = "dialogues of several answers are refused with this template";
                notes.push(format!("{what}: {} ({})", refusal.detail, refusal.reason));
            }
        }
        (maker.bos, maker.end, maker.notes) = (bos, end, notes);
        Ok(maker)
    }

    fn bos_of_settings(&self) -> Option<u32> {
        let (_, json) = self.tokens.variables.iter().find(|(name, _)| name == "bos_token")?;
        self.tokens.id(&serde_json::from_str::<String>(json).ok()?)
    }

    /// What is trained on of a line, or why it is not.
    pub fn make(&self, line: &[u8]) -> Usable<Made> {
        let other = |found: &str, wanted: &str| Err(Refusal::new(Reason::OtherKind, format!("{found} among {wanted}")));
        match row::read(line, self.how.margins)? {
            Row::Dialogue { .. } if self.how.is_preference => other("a dialogue", "preferences"),
            Row::Preference { .. } if !self.how.is_preference => other("a preference", "dialogues"),
            Row::Dialogue { messages, num_cut, tools } => {
                let guarded = self.dialogues.dialogue(&messages, tools.as_deref(), self.how.turns)?;
                let example = self.encode(&guarded, &messages, tools.as_deref())?;
                let (example, is_cut) = self.fit(example)?;
                let made = self.made(&messages[..messages.len() - 1], vec![example], guarded.is_injected);
                Ok(Made { is_cut, num_cut_messages: num_cut as u64, ..made })
            }
            Row::Preference { prompt, answers, margin, tools } => {
                let mut is_injected = false;
                let mut examples = Vec::with_capacity(2);
                for answer in &answers {
                    let guarded = self.dialogues.pair(&prompt, answer, tools.as_deref())?;
                    is_injected |= guarded.is_injected;
                    let messages = [&prompt[..], std::slice::from_ref(answer)].concat();
                    // A score is read at the last token, and that of a policy's answer where it ends: not at a line end that the template
                    // puts behind it.
                    examples.push(self.encode(&guarded, &messages, tools.as_deref())?.up_to_trained());
                }
                let (examples, is_cut) = self.fit_pair(examples)?;
                Ok(Made { margin, is_cut, ..self.made(&prompt, examples, is_injected) })
            }
        }
    }

    fn encode(&self, guarded: &Guarded, messages: &[Message], tools: Option<&str>) -> Usable<Example> {
        self.dialogues.check_injected(guarded, messages, tools)?;
        let example = self.tokens.encode(guarded)?;
        match example.first_trained() {
            None => Err(Refusal::new(Reason::Untrained, "its answers have no tokens")),
            Some(0) => Err(Refusal::new(Reason::Untrained, "the answer is the first token, and nothing foretells it")),
            Some(_) => Ok(example),
        }
    }

    fn made(&self, before: &[Message], documents: Vec<Example>, is_injected: bool) -> Made {
        let prompt: Vec<&str> = before.iter().flat_map(|message| [&*message.role, &*message.content]).collect();
        let hash = text_hash(&prompt.join("\0"));
        // Of 53 bits, all that a float has.
        let place = (mix(hash ^ mix(self.how.seed)) >> 11) as f64 / (1u64 << 53) as f64;
        let is_held_out = place < self.how.held_out;
        Made { documents, margin: 0.0, hash, is_held_out, is_cut: false, num_cut_messages: 0, is_injected }
    }

    fn too_long(&self, found: usize) -> Refusal {
        Refusal::new(Reason::TooLong, format!("{found} tokens, at most {} are taken", self.how.max_tokens))
    }

    /// Tokens at the front that stay.
    fn num_kept(&self, example: &Example) -> usize {
        usize::from(self.bos.is_some() && example.tokens.first().copied() == self.bos)
    }

    /// A dialogue of at most so many tokens. An answer is trained whole and with something of its prompt, or not at all.
    fn fit(&self, example: Example) -> Usable<(Example, bool)> {
        let (num, max) = (example.tokens.len(), self.how.max_tokens);
        if num <= max {
            return Ok((example, false));
        }
        if self.how.too_long != TooLong::Cut {
            return Err(self.too_long(num));
        }
        let kept = self.num_kept(&example);
        let mut from = num - max + kept;
        if example.trained[from] {
            from += example.trained[from..].iter().take_while(|trained| **trained).count();
        }
        if !example.trained[from..].contains(&true) {
            return Err(Refusal::new(Reason::TooLong, format!("its last answer has no room in {max} tokens")));
        }
        Ok((without(&example, kept..from), true))
    }

    /// The same of a pair, whose prompts stay the same and whose answers stay whole.
    fn fit_pair(&self, mut examples: Vec<Example>) -> Usable<(Vec<Example>, bool)> {
        let max = self.how.max_tokens;
        let starts: Vec<usize> = examples.iter().filter_map(Example::first_trained).collect();
        let (Some(&start), true) = (starts.first(), starts.iter().all(|start| Some(start) == starts.first())) else {
            return Err(Refusal::new(Reason::PromptsDiffer, "as tokens, the prompts have different lengths"));
        };
        if examples.iter().any(|example| example.tokens[..start] != examples[0].tokens[..start]) {
            return Err(Refusal::new(Reason::PromptsDiffer, "their tokens differ"));
        }
        if examples.iter().all(|example| example.tokens == examples[0].tokens) {
            return Err(Refusal::new(Reason::SameAnswers, "as tokens, the answers are the same"));
        }
        let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        if longest <= max {
            return Ok((examples, false));
        }
        if self.how.too_long != TooLong::Cut {
            return Err(self.too_long(longest));
        }
        let kept = self.num_kept(&examples[0]);
        let from = longest - max + kept;
        if from >= start {
            return Err(Refusal::new(
                Reason::TooLong,
                format!("an answer of {} tokens has no room in {max}", longest - start),
            ));
        }
        examples.iter_mut().for_each(|example| *example = without(example, kept..from));
        Ok((examples, true))
    }
}

fn without(example: &Example, range: Range<usize>) -> Example {
    Example {
        tokens: [&example.tokens[..range.start], &example.tokens[range.end..]].concat(),
        trained: [&example.trained[..range.start], &example.trained[range.end..]].concat(),
    }
}
