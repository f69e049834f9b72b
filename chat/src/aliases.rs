//! A tokenizer whose added tokens have other names, so that what users write is never taken for one ([decision
//! 103](../../docs/decisions/103-contents-have-no-special-tokens.md)).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::Value;
use tokenizers::Tokenizer;

/// Around the number of an alias.
const ALIAS: char = '\u{10f000}';
/// More added tokens than any tokenizer has, by far.
const MAX_ADDED: usize = 1 << 16;

/// The added tokens of a tokenizer, which only a template may write: control tokens.
pub struct Aliases {
    /// The tokenizer with aliases for them, unless they would have the numbers of words.
    aliased: Option<Tokenizer>,
    /// By what they stand for.
    aliases: BTreeMap<String, String>,
    /// From tokens of `aliased` that have other numbers.
    numbers: BTreeMap<u32, u32>,
    control: BTreeSet<u32>,
}

impl Aliases {
    /// Of `tokenizer`, whose file is `json`; contents may have `content_tokens`.
    ///
    /// # Errors
    ///
    /// What is wrong with the file or with `content_tokens`.
    pub fn new(tokenizer: &Tokenizer, mut json: Value, content_tokens: &[String]) -> Result<Aliases, String> {
        let mut aliases = BTreeMap::new();
        let mut names = Vec::new();
        let added = json.get_mut("added_tokens").and_then(Value::as_array_mut);
        for token in added.into_iter().flatten() {
            let Some(name) = token.get("content").and_then(Value::as_str).map(str::to_owned) else { continue };
            // Runs of spaces are words of the tokenizer, which nobody has to be kept from.
            let alias = if name.trim().is_empty() || content_tokens.contains(&name) {
                name.clone()
            } else {
                let alias = format!("{ALIAS}{}{ALIAS}", aliases.len());
                aliases.insert(name.clone(), alias.clone());
                token["content"] = Value::String(alias.clone());
                alias
            };
            names.push((name, alias));
        }
        if names.len() > MAX_ADDED {
            return Err(format!("{} added tokens, at most {MAX_ADDED} are taken", names.len()));
        }
        if let Some(token) = content_tokens.iter().find(|token| !names.iter().any(|(name, _)| name == *token)) {
            return Err(format!("it has no added token `{token}` for --content-token"));
        }
        // It refers to special tokens by their names, and nothing is added here.
        json["post_processor"] = Value::Null;
        let mut aliased = Tokenizer::from_bytes(json.to_string())
            .map_err(|error| format!("cannot be read with other names of its added tokens: {error}"))?;
        aliased.with_padding(None);
        aliased.with_truncation(None).map_err(|error| error.to_string())?;
        let (mut numbers, mut control) = (BTreeMap::new(), BTreeSet::new());
        for (name, alias) in &names {
            let lost = || format!("its added token `{name}` has no number");
            let number = tokenizer.token_to_id(name).ok_or_else(lost)?;
            numbers.insert(aliased.token_to_id(alias).ok_or_else(lost)?, number);
            if alias != name {
                control.insert(number);
            }
        }
        // A number that stands for a word there could not be told from an alias.
        let is_name = |word: &String| names.iter().any(|(_, alias)| alias == word);
        let is_clear = !aliased.get_vocab(false).iter().any(|(word, id)| numbers.contains_key(id) && !is_name(word));
        let aliased = is_clear.then_some(aliased);
        Ok(Aliases { aliased, aliases, numbers, control })
    }

    /// Names of the control tokens.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.aliases.keys().map(String::as_str)
    }

    pub fn is_control(&self, token: u32) -> bool {
        self.control.contains(&token)
    }

    /// The tokenizer that takes none of the texts of [`Aliases::rewrite`] for a control token but those that were named there.
    pub fn tokenizer(&self) -> Result<&Tokenizer, &'static str> {
        let what = "it has a token that only the template may write, and this tokenizer cannot tell them apart";
        self.aliased.as_ref().ok_or(what)
    }

    /// The text with aliases where the template wrote control tokens, and where `ranges` are then.
    pub fn rewrite(
        &self,
        text: &str,
        control: &[Range<usize>],
        ranges: &[Range<usize>],
    ) -> (String, Vec<Range<usize>>) {
        let (mut found, mut at) = (String::with_capacity(text.len()), 0);
        // Where the text is longer by how much.
        let mut shifts: Vec<(usize, isize)> = Vec::new();
        for control in control {
            found.push_str(&text[at..control.start]);
            let name = &text[control.clone()];
            found.push_str(self.aliases.get(name).map_or(name, String::as_str));
            at = control.end;
            shifts.push((at, found.len() as isize - at as isize));
        }
        found.push_str(&text[at..]);
        let moved = |at: usize| {
            let before = shifts.partition_point(|(place, _)| *place <= at);
            let shift = before.checked_sub(1).map_or(0, |n| shifts[n].1);
            at.saturating_add_signed(shift)
        };
        (found, ranges.iter().map(|range| moved(range.start)..moved(range.end)).collect())
    }

    /// Tokens of [`Aliases::tokenizer`] become the tokenizer's own, of which so many must be control tokens.
    pub fn restore(&self, tokens: &mut [u32], num_control: usize) -> Result<(), String> {
        tokens.iter_mut().for_each(|token| *token = *self.numbers.get(token).unwrap_or(token));
        let num = tokens.iter().filter(|token| self.control.contains(token)).count();
        if num == num_control {
            return Ok(());
        }
        Err(format!("{num} tokens that only the template may write, and it wrote {num_control}"))
    }
}
