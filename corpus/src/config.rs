//! Pipeline files: sources, stages with all their options, output.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toroid_storage::Location;

use crate::address::Form;
use crate::error::{At, Error, Result};
use crate::ner::Entity;
use crate::read::input;
use crate::shingle::{Bands, Measure};
use crate::{language, piece, pii, simhash};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Where tasks keep what they have done. It may be removed when the output is there.
    #[serde(default = "default_work")]
    pub work: PathBuf,
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    #[serde(default)]
    pub read: Read,
    #[serde(default, rename = "stage", skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    #[serde(default)]
    pub output: Output,
}

fn default_work() -> PathBuf {
    "work".into()
}

/// Documents of one kind, from one file or folder, or what has one key or prefix of a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub format: Format,
    /// Endings of files in a folder; all, if there are none.
    #[serde(default)]
    pub extensions: Vec<String>,
    /// Fields of records, by name; `a.b` is the field `b` of the field `a`. Only the text must be there.
    #[serde(default = "default_text")]
    pub text: String,
    #[serde(default = "default_id")]
    pub id: String,
    #[serde(default = "default_url")]
    pub url: String,
    /// Without a value of this field the domain of a document is the host of its URL, or else the source's name.
    #[serde(default = "default_domain")]
    pub domain: String,
    /// Of repositories: files that `.gitattributes` call generated, or vendored, are passed over.
    #[serde(default = "yes")]
    pub skip_generated: bool,
    #[serde(default = "yes")]
    pub skip_vendored: bool,
    /// Of documents that say the same, that of the source with the smallest number stays.
    #[serde(default)]
    pub priority: u8,
    /// This source's share of the output, in proportion to the weights of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// A document is in the output so many times at most.
    #[serde(default = "default_epochs")]
    pub max_epochs: f64,
}

fn default_text() -> String {
    "text".into()
}
fn default_id() -> String {
    "id".into()
}
fn default_url() -> String {
    "url".into()
}
fn default_domain() -> String {
    "domain".into()
}
fn yes() -> bool {
    true
}
fn default_epochs() -> f64 {
    1.0
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By the name: `.jsonl`, `.ndjson`, `.warc`, `.wet`, `.tar`, `.tgz` and `.parquet`, with or without `.gz` and `.zst`; everything else is text.
    #[default]
    Auto,
    /// A file is a document.
    Text,
    /// A line is a document.
    Lines,
    /// A line is an object of JSON.
    Jsonl,
    /// A file is a document; its language is known by name or first line, its licence by its header, and files that are binary or empty
    /// are passed over. Archives of tar in the folder are read as `tar`.
    Repository,
    /// The same of the members of archives of tar.
    Tar,
    /// Rows of Parquet files, compressed with snappy, gzip or zstd. `a.b` is the column `b` within `a`.
    Parquet,
    /// Web archives: text of `conversion` records (WET), and of `response` records that are HTML or plain text.
    Warc,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Read {
    /// A longer document is a bad record.
    pub max_document_bytes: u64,
    /// More than this share of bad records ends the run.
    pub max_bad_share: f64,
}

impl Default for Read {
    fn default() -> Read {
        Read { max_document_bytes: 16 << 20, max_bad_share: 0.05 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Stage {
    Url(Form),
    Exact(Exact),
    Minhash(Minhash),
    Sentences(Sentences),
    Heuristics(Heuristics),
    Perplexity(Perplexity),
    Pii(Pii),
    Contamination(Contamination),
    License(License),
    Language(Language),
}

impl Stage {
    pub fn name(&self) -> &'static str {
        match self {
            Stage::Url(_) => "url",
            Stage::Exact(_) => "exact",
            Stage::Minhash(_) => "minhash",
            Stage::Sentences(_) => "sentences",
            Stage::Heuristics(_) => "heuristics",
            Stage::Perplexity(_) => "perplexity",
            Stage::Pii(_) => "pii",
            Stage::Contamination(_) => "contamination",
            Stage::License(_) => "license",
            Stage::Language(_) => "language",
        }
    }

    /// How it finds what goes, for the table.
    pub fn method(&self) -> String {
        match self {
            Stage::Url(_) => "normal form of the URL".into(),
            Stage::Exact(_) => "hash of the text".into(),
            Stage::Minhash(m) => {
                format!("MinHash, LSH, {:?} of {}-word shingles >= {}", m.measure, m.shingle_words, m.threshold)
            }
            Stage::Sentences(s) => format!("SimHash, distance <= {}", s.distance),
            Stage::Heuristics(_) => "rules of Gopher and C4".into(),
            Stage::Perplexity(p) => format!("n-gram model, quantile {} of each domain", p.quantile),
            Stage::Pii(p) if p.names.is_some() => "patterns and checksums, names by a model".into(),
            Stage::Pii(_) => "patterns and checksums".into(),
            Stage::Contamination(c) => format!("{}-grams of evaluation sets", c.ngram_words),
            Stage::License(_) => "licences that headers state".into(),
            Stage::Language(l) => format!("letters and trigrams, {}", l.keep.join(" or ")),
        }
    }
}

/// Texts that are equal byte by byte.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exact {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Minhash {
    pub shingle_words: usize,
    /// Documents at least this alike are the same; each removal is verified.
    pub threshold: f64,
    /// With this probability two documents at the threshold are compared at all.
    pub recall: f64,
    /// Values of a sketch, at most.
    pub num_values: usize,
    pub measure: Measure,
    /// Of the documents of a bucket that stay, so many (the first by rank) are compared with those after them.
    pub max_bucket: u32,
    pub seed: u64,
}

impl Default for Minhash {
    fn default() -> Minhash {
        let measure = Measure::Jaccard;
        Minhash { shingle_words: 5, threshold: 0.7, recall: 0.9, num_values: 128, measure, max_bucket: 64, seed: 1 }
    }
}

impl Minhash {
    pub fn bands(&self) -> Bands {
        Bands::of(self.num_values, self.threshold, self.recall)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sentences {
    /// Sentences that differ in at most so many of 64 bits are the same.
    pub distance: u32,
    /// Shorter ones are left alone.
    pub min_words: usize,
    /// A document that lost something goes as a whole if fewer words are left.
    pub min_left_words: usize,
}

impl Default for Sentences {
    fn default() -> Sentences {
        Sentences { distance: 3, min_words: 8, min_left_words: 20 }
    }
}

/// Limits of Gopher (Rae et al. 2021, table A1) and of C4 (Raffel et al. 2020, section 2.2). A document in a programming language is not
/// held to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heuristics {
    pub min_words: usize,
    pub max_words: usize,
    pub min_mean_word_chars: f64,
    pub max_mean_word_chars: f64,
    /// `#` and `...` for each word.
    pub max_symbols_per_word: f64,
    pub max_bullet_lines: f64,
    pub max_ellipsis_lines: f64,
    /// Words with a letter in them.
    pub min_alphabetic_words: f64,
    /// Different ones of `the be to of and that have with`; 0 for texts that are not English.
    pub min_stop_words: usize,
    pub max_repeated_lines: f64,
    pub max_repeated_line_chars: f64,
    /// Share of characters in the most frequent n-gram, for n = 2, 3, 4.
    pub max_top_ngram_chars: [f64; 3],
    /// Share of characters in n-grams that stand there before, for n = 5 to 10.
    pub max_repeated_ngram_chars: [f64; 6],
    /// C4: pages with it are no text.
    pub drop_lorem_ipsum: bool,
    /// C4: pages with `{`. It drops text about programs, too.
    pub drop_curly_brackets: bool,
    /// C4: lines that do not end with `.`, `!`, `?` or a quotation mark go.
    pub drop_unfinished_lines: bool,
    /// C4: lines with these words go.
    pub drop_lines_with: Vec<String>,
}

impl Default for Heuristics {
    fn default() -> Heuristics {
        Heuristics {
            min_words: 50,
            max_words: 100_000,
            min_mean_word_chars: 3.0,
            max_mean_word_chars: 10.0,
            max_symbols_per_word: 0.1,
            max_bullet_lines: 0.9,
            max_ellipsis_lines: 0.3,
            min_alphabetic_words: 0.8,
            min_stop_words: 2,
            max_repeated_lines: 0.3,
            max_repeated_line_chars: 0.2,
            max_top_ngram_chars: [0.20, 0.18, 0.16],
            max_repeated_ngram_chars: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
            drop_lorem_ipsum: true,
            drop_curly_brackets: false,
            drop_unfinished_lines: false,
            drop_lines_with: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {
    /// An ARPA file, of `toroid data lm` or of others.
    pub model: PathBuf,
    /// Of each domain, documents with a higher perplexity than this quantile go.
    #[serde(default = "default_quantile")]
    pub quantile: f64,
    /// Domains with fewer documents are taken together.
    #[serde(default = "default_domain_documents")]
    pub min_domain_documents: u64,
}

fn default_quantile() -> f64 {
    0.95
}
fn default_domain_documents() -> u64 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pii {
    pub kinds: Vec<pii::Kind>,
    /// A model of `toroid data ner train`, which finds names in prose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<PathBuf>,
    /// Which names.
    pub name_kinds: Vec<Entity>,
    /// Remove the document instead of putting placeholders in.
    pub remove_documents: bool,
    /// Leave documents in programming languages alone.
    pub skip_code: bool,
    /// Leave mail addresses in lines that state authors and rights alone: a licence demands them.
    pub keep_authors: bool,
}

impl Default for Pii {
    fn default() -> Pii {
        Pii {
            kinds: pii::Kind::ALL.to_vec(),
            names: None,
            name_kinds: vec![Entity::Person],
            remove_documents: false,
            skip_code: false,
            keep_authors: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contamination {
    /// Files or folders with evaluation sets: text, or JSON lines, of which all strings count.
    pub sets: Vec<PathBuf>,
    #[serde(default = "default_ngram")]
    pub ngram_words: usize,
    /// A document with so many n-grams of a set goes.
    #[serde(default = "default_matches")]
    pub min_matches: usize,
}

/// Source code by the licence that its header states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct License {
    /// As SPDX has them, as in `Apache-2.0`. Of `A OR B` one must be here, of `A AND B` both.
    pub allow: Vec<String>,
    /// Documents that state none stay.
    #[serde(default = "yes")]
    pub keep_unstated: bool,
}

/// Prose by the language that it is in. Documents in programming languages stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// By ISO 639-3, as in `eng`.
    pub keep: Vec<String>,
    /// Of a document whose language is less sure than this it is not known.
    #[serde(default = "default_confidence")]
    pub min_confidence: f64,
    /// Documents whose language is not known stay.
    #[serde(default = "yes")]
    pub keep_unsure: bool,
}

fn default_confidence() -> f64 {
    0.5
}

impl License {
    /// Whether a document that states this may stay.
    pub fn allows(&self, expression: &str) -> bool {
        if expression.is_empty() {
            return self.keep_unstated;
        }
        let is_allowed = |one: &str| {
            let name = one.trim().trim_matches(['(', ')']).split(" WITH ").next().unwrap_or("").trim();
            self.allow.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
        };
        expression.split(" OR ").any(|all| all.split(" AND ").all(is_allowed))
    }
}

fn default_ngram() -> usize {
    13
}
fn default_matches() -> usize {
    1
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Output {
    pub path: PathBuf,
    /// `s3://BUCKET/PREFIX` that the output is sent to once it is complete. What is made does not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    pub format: Shape,
    /// Of token files: `bytes`, or a `tokenizer.json` of the library `tokenizers`.
    pub tokenizer: PathBuf,
    /// Of token files: the token behind each document, as the tokenizer names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_token: Option<String>,
    /// A new file begins where one would get longer.
    pub shard_bytes: u64,
    /// Between documents of a text file.
    pub separator: String,
    /// Shares of sources are `bytes^(1/temperature)`: 1 as they are, more for more even ones. Not together with weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Bytes of text to write, where sources have shares; as many as `max_epochs` allows if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Documents stand in an order that follows from it and their texts.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    #[default]
    Text,
    Jsonl,
    Tokens,
}

impl Shape {
    /// Where its files lie in the output.
    pub fn folder(self) -> &'static str {
        match self {
            Shape::Text | Shape::Jsonl => "text",
            Shape::Tokens => "tokens",
        }
    }
}

/// The tokenizer of which a token is a byte.
pub const BYTES: &str = "bytes";

impl Default for Output {
    fn default() -> Output {
        Output {
            path: "out".into(),
            store: None,
            format: Shape::Text,
            tokenizer: BYTES.into(),
            end_token: None,
            shard_bytes: 64 << 20,
            separator: "\n\n".into(),
            temperature: None,
            bytes: None,
            seed: 1,
        }
    }
}

impl Output {
    pub fn has_tokenizer_file(&self) -> bool {
        self.tokenizer.as_os_str() != BYTES
    }
}

impl Pipeline {
    /// Reads a pipeline file; its relative paths are taken from its own folder.
    pub fn load(path: &Path) -> Result<Pipeline> {
        let text = std::fs::read_to_string(path).at("read", path)?;
        let mut pipeline =
            Pipeline::parse(&text).map_err(|error| Error::Config(format!("{}: {error}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        pipeline.work = folder.join(&pipeline.work);
        pipeline.output.path = folder.join(&pipeline.output.path);
        if pipeline.output.has_tokenizer_file() {
            pipeline.output.tokenizer = folder.join(&pipeline.output.tokenizer);
        }
        let in_folders = pipeline.sources.iter_mut().filter(|source| input::url(&source.path).is_none());
        in_folders.for_each(|source| source.path = folder.join(&source.path));
        for stage in &mut pipeline.stages {
            match stage {
                Stage::Perplexity(stage) => stage.model = folder.join(&stage.model),
                Stage::Pii(stage) => stage.names.iter_mut().for_each(|model| *model = folder.join(&model)),
                Stage::Contamination(stage) => stage.sets.iter_mut().for_each(|set| *set = folder.join(&set)),
                _ => {}
            }
        }
        Ok(pipeline)
    }

    pub fn parse(text: &str) -> Result<Pipeline> {
        let pipeline: Pipeline = toml::from_str(text).map_err(|error| Error::Config(error.to_string()))?;
        pipeline.check()?;
        Ok(pipeline)
    }

    /// With all defaults written out.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::Config(format!("cannot write the pipeline as TOML: {error}")))
    }

    fn check(&self) -> Result<()> {
        let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(Error::Config(what.to_owned())) };
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        ensure(!self.sources.is_empty(), "there is no [[source]]; a pipeline needs one at least")?;
        ensure(self.sources.len() <= usize::from(u16::MAX), "there are more than 65,535 sources")?;
        for (n, source) in self.sources.iter().enumerate() {
            let is_other = self.sources[..n].iter().all(|other| other.name != source.name);
            ensure(is_other, &format!("two sources have the name `{}`", source.name))?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let is_name = !source.name.is_empty() && source.name.chars().all(is_plain);
            ensure(is_name, &format!("source `{}`: a name has letters, digits, `-`, `_` and `.`", source.name))?;
            let is_weight = source.weight.is_none_or(|weight| weight > 0.0 && weight.is_finite());
            ensure(is_weight, &format!("source `{}`: weight must be above 0", source.name))?;
            let is_epochs = source.max_epochs > 0.0 && source.max_epochs <= 1e6;
            ensure(is_epochs, &format!("source `{}`: max_epochs must be above 0 and at most 1e6", source.name))?;
        }
        let num_weights = self.sources.iter().filter(|source| source.weight.is_some()).count();
        ensure(num_weights == 0 || num_weights == self.sources.len(), "either all sources have a weight, or none")?;
        let has_both = num_weights > 0 && self.output.temperature.is_some();
        ensure(!has_both, "output.temperature and weights of sources exclude each other")?;
        let is_shared = num_weights > 0 || self.output.temperature.is_some();
        ensure(
            self.output.bytes.is_none() || is_shared,
            "output.bytes needs weights of sources or output.temperature",
        )?;
        ensure(
            self.output.temperature.is_none_or(|t| t >= 1.0 && t.is_finite()),
            "output.temperature must be 1 or more",
        )?;
        let has_file = self.output.has_tokenizer_file();
        ensure(
            self.output.format == Shape::Tokens || !has_file && self.output.end_token.is_none(),
            "output.tokenizer and output.end_token need output.format = \"tokens\"",
        )?;
        ensure(
            has_file || self.output.end_token.is_none(),
            "output.end_token needs a tokenizer.json; bytes have none",
        )?;
        if let Some(url) = &self.output.store {
            Location::parse(url)?;
        }
        ensure(self.output.bytes != Some(0), "output.bytes must be above 0")?;
        ensure(self.output.shard_bytes >= 1 << 10, "output.shard_bytes must be 1024 or more")?;
        ensure(is_share(self.read.max_bad_share), "read.max_bad_share must be from 0 to 1")?;
        let is_length = (1..=u64::from(piece::MAX_FIELD_BYTES)).contains(&self.read.max_document_bytes);
        ensure(is_length, "read.max_document_bytes must be from 1 to 1073741824")?;
        for stage in &self.stages {
            match stage {
                Stage::Minhash(s) => {
                    ensure((1..=1000).contains(&s.shingle_words), "minhash: shingle_words must be from 1 to 1000")?;
                    ensure(s.threshold > 0.0 && s.threshold <= 1.0, "minhash: threshold must be above 0, at most 1")?;
                    ensure(s.recall > 0.0 && s.recall < 1.0, "minhash: recall must be between 0 and 1")?;
                    ensure((1..=4096).contains(&s.num_values), "minhash: num_values must be from 1 to 4096")?;
                    ensure(s.max_bucket > 0, "minhash: max_bucket must be above 0")?;
                }
                Stage::Sentences(s) => {
                    let most = simhash::MAX_DISTANCE;
                    ensure(s.distance <= most, &format!("sentences: distance must be at most {most}"))?;
                    ensure(s.min_words > 0, "sentences: min_words must be above 0")?;
                }
                Stage::Perplexity(s) => ensure(is_share(s.quantile), "perplexity: quantile must be from 0 to 1")?,
                Stage::Pii(s) => {
                    let finds_names = s.names.is_some();
                    ensure(finds_names || !s.kinds.is_empty(), "pii: kinds is empty; leave the stage out instead")?;
                    ensure(
                        !finds_names || !s.name_kinds.is_empty(),
                        "pii: name_kinds is empty; leave names out instead",
                    )?;
                }
                Stage::Contamination(s) => {
                    ensure(!s.sets.is_empty(), "contamination: sets is empty")?;
                    ensure((1..=1000).contains(&s.ngram_words), "contamination: ngram_words must be from 1 to 1000")?;
                    ensure(s.min_matches > 0, "contamination: min_matches must be above 0")?;
                }
                Stage::License(s) => {
                    ensure(!s.allow.is_empty() || s.keep_unstated, "license: nothing would stay; name some in allow")?;
                }
                Stage::Language(s) => {
                    ensure(!s.keep.is_empty(), "language: nothing would stay; name some in keep, as in [\"eng\"]")?;
                    ensure(is_share(s.min_confidence), "language: min_confidence must be from 0 to 1")?;
                    let is_other = |code: &&String| !language::is_known(code);
                    if let Some(code) = s.keep.iter().find(is_other) {
                        let known = language::known().join(" ");
                        ensure(false, &format!("language: `{code}` is none that is known; those are {known}"))?;
                    }
                }
                Stage::Url(_) | Stage::Exact(_) | Stage::Heuristics(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[[source]]\nname = \"a\"\npath = \"x\"\n";

    #[test]
    fn a_pipeline_prints_and_parses_to_the_same_with_its_defaults() -> Result<()> {
        let stages = ["url", "exact", "minhash", "sentences", "heuristics", "pii"];
        let mut text = LEAST.to_owned();
        stages.iter().for_each(|kind| text.push_str(&format!("[[stage]]\nkind = \"{kind}\"\n")));
        text.push_str("[[stage]]\nkind = \"perplexity\"\nmodel = \"m.arpa\"\n");
        text.push_str("[[stage]]\nkind = \"contamination\"\nsets = [\"e\"]\n");
        text.push_str("[[stage]]\nkind = \"license\"\nallow = [\"MIT\"]\n");
        text.push_str("[[stage]]\nkind = \"language\"\nkeep = [\"eng\"]\n");
        let pipeline = Pipeline::parse(&text)?;
        let printed = pipeline.to_toml()?;
        assert_eq!(Pipeline::parse(&printed)?, pipeline, "{printed}");
        for default in ["threshold = 0.7", "shard_bytes = 67108864", "max_bad_share = 0.05", "quantile = 0.95"] {
            assert!(printed.contains(default), "{default}: {printed}");
        }
        Ok(())
    }

    #[test]
    fn licences_are_allowed_by_their_expressions() {
        let license = License { allow: vec!["MIT".into(), "Apache-2.0".into()], keep_unstated: false };
        let check = |expression: &str, expected: bool| assert_eq!(license.allows(expression), expected, "{expression}");
        check("MIT", true);
        check("GPL-3.0-only OR mit", true);
        check("(MIT AND Apache-2.0)", true);
        check("MIT AND GPL-3.0-only", false);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("", false);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_words() {
        let check = |more: &str, expected: &str| {
            let error = Pipeline::parse(&format!("{LEAST}{more}")).expect_err(more).to_string();
            assert!(error.contains(expected), "{more}: {error}");
        };
        check("colour = 3\n", "colour");
        check("weight = -1.0\n", "weight must be above 0");
        check("[[source]]\nname = \"a\"\npath = \"y\"\n", "two sources have the name");
        check("[[source]]\nname = \"b/c\"\npath = \"y\"\n", "a name has letters");
        check("[[source]]\nname = \"b\"\npath = \"y\"\nweight = 1.0\n", "either all sources");
        check("[[stage]]\nkind = \"magic\"\n", "magic");
        check("[[stage]]\nkind = \"minhash\"\nthreshhold = 0.5\n", "threshhold");
        check("[[stage]]\nkind = \"minhash\"\nthreshold = 0.0\n", "threshold must be above 0");
        check("[[stage]]\nkind = \"sentences\"\ndistance = 40\n", "distance must be at most");
        check("[[stage]]\nkind = \"language\"\nkeep = [\"en\"]\n", "`en` is none that is known; those are afr");
        check("[output]\nbytes = 4\n", "output.bytes needs");
        check("[output]\ntokenizer = \"t.json\"\n", "need output.format");
        check("[output]\nformat = \"tokens\"\nend_token = \"x\"\n", "bytes have none");
        assert!(Pipeline::parse("source = []").expect_err("none").to_string().contains("there is no [[source]]"));
    }
}
