//! What a job is trained on: `[data]` of a job file, with one path or with several sources.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{JobError, JobKind, TOML_MAX, value};

/// Sources of one job.
pub const SOURCES_MAX: usize = 64;
/// Passes over a source, and the largest temperature.
const EPOCHS_MAX: f64 = 1e6;
/// Characters of a source's name.
const NAME_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleOrder {
    /// A new permutation of all samples each time through the data.
    Shuffled,
    /// As they lie in the data, from the start again at its end.
    Sequential,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A text file or a folder of them, or token files; empty where there are `sources`.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub path: PathBuf,
    /// File name endings that count in a folder, without the dot; empty: every file that is UTF-8 text.
    pub extensions: Vec<String>,
    /// Text beyond this many bytes is left out.
    pub max_bytes: u64,
    pub order: SampleOrder,
    /// Tokens between the starts of two samples; `seq` where samples are not to overlap.
    pub stride: usize,
    /// Share of the data, at its end, that is held out for validation; of each source, where there are several.
    pub validation: f64,
    /// Several dialogues share a sample; each has positions and attention of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packing: bool,
    /// Shares follow the sizes of the sources, to the power of one over this; `None`: the weights, or the sizes themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Mixed into one order of samples; none where there is a `path`.
    #[serde(default, rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceConfig>,
}

/// One of the sources of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub name: String,
    /// As `data.path`.
    pub path: PathBuf,
    #[serde(default)]
    pub extensions: Vec<String>,
    #[serde(default = "all_bytes")]
    pub max_bytes: u64,
    /// Share of the samples, in proportion to the other sources; all of them have one, or none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Passes over its samples at most; then its share goes to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
    /// Tokens that it has, for plans that are made where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// More than any source has.
fn all_bytes() -> u64 {
    1 << 40
}

/// `[data]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DataFile {
    path: Option<PathBuf>,
    extensions: Vec<String>,
    max_bytes: Option<u64>,
    order: Option<SampleOrder>,
    stride: Option<usize>,
    validation: Option<f64>,
    packing: bool,
    temperature: Option<f64>,
    source: Vec<SourceConfig>,
}

impl DataFile {
    /// With every default filled in, for samples of `seq` tokens.
    pub fn resolve(self, kind: JobKind, seq: usize) -> Result<DataConfig, JobError> {
        if self.path.is_none() && self.source.is_empty() {
            let hint = "name a text file or a folder of them, or token files; or several sources by [[data.source]]";
            return Err(JobError::Missing { key: "data.path", hint });
        }
        Ok(DataConfig {
            path: self.path.unwrap_or_default(),
            extensions: self.extensions,
            max_bytes: self.max_bytes.unwrap_or_else(all_bytes),
            order: self.order.unwrap_or(SampleOrder::Shuffled),
            stride: self.stride.unwrap_or(seq),
            // A policy is not validated on answers of others.
            validation: self.validation.unwrap_or(if kind == JobKind::Ppo { 0.0 } else { 0.01 }),
            packing: self.packing,
            temperature: self.temperature,
            sources: self.source,
        })
    }
}

impl DataConfig {
    /// What is read, in order: the sources, or the one path, which has no name.
    pub fn all_sources(&self) -> Vec<SourceConfig> {
        if !self.sources.is_empty() {
            return self.sources.clone();
        }
        let (extensions, max_bytes) = (self.extensions.clone(), self.max_bytes);
        vec![SourceConfig { extensions, max_bytes, ..SourceConfig::unnamed(&self.path) }]
    }

    /// Its paths with their keys.
    pub fn paths(&self) -> Vec<(&'static str, &Path)> {
        match &self.sources[..] {
            [] => vec![("data.path", &self.path)],
            sources => sources.iter().map(|source| ("data.source.path", source.path.as_path())).collect(),
        }
    }

    /// As in a message: the path, or the names and paths of the sources.
    pub fn in_words(&self) -> String {
        if self.sources.is_empty() {
            return self.path.display().to_string();
        }
        let one = |source: &SourceConfig| format!("{} ({})", source.name, source.path.display());
        self.sources.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// What no other part of the job is needed for. Ranges of single numbers are checked with all others.
    pub(super) fn check(&self) -> Result<(), JobError> {
        if self.sources.is_empty() {
            return match self.temperature {
                Some(found) => value("data.temperature", found, "none, or several sources by [[data.source]]".into()),
                None => check_endings("data.extensions", &self.extensions),
            };
        }
        if !is_empty(&self.path) {
            return Err(JobError::Together {
                first: "data.path",
                second: "[[data.source]]",
                why: "each source has a path of its own; make the path a source, too",
            });
        }
        if !self.extensions.is_empty() || self.max_bytes != all_bytes() {
            return Err(JobError::Together {
                first: "data.extensions or data.max_bytes",
                second: "[[data.source]]",
                why: "each source has its own; give them there",
            });
        }
        let num = self.sources.len();
        if num > SOURCES_MAX {
            return value("[[data.source]]", format!("{num} sources"), format!("at most {SOURCES_MAX}"));
        }
        for (n, source) in self.sources.iter().enumerate() {
            source.check()?;
            if self.sources[..n].iter().any(|other| other.name == source.name) {
                return value("data.source.name", &source.name, "another name for each source".into());
            }
        }
        let num_weights = self.sources.iter().filter(|source| source.weight.is_some()).count();
        if ![0, num].contains(&num_weights) {
            let found = format!("given to {num_weights} of {num} sources");
            return value("data.source.weight", found, "a weight for each source, or for none".into());
        }
        if let Some(temperature) = self.temperature {
            if !(1.0..=EPOCHS_MAX).contains(&temperature) {
                return value("data.temperature", temperature, format!("1 to {EPOCHS_MAX}"));
            }
            if num_weights > 0 {
                return Err(JobError::Together {
                    first: "data.temperature",
                    second: "data.source.weight",
                    why: "either of them decides about all shares; leave one of them out",
                });
            }
        }
        Ok(())
    }
}

impl SourceConfig {
    /// All that is at a path.
    pub fn unnamed(path: &Path) -> SourceConfig {
        SourceConfig {
            name: String::new(),
            path: path.into(),
            extensions: Vec::new(),
            max_bytes: all_bytes(),
            weight: None,
            max_epochs: None,
            tokens: None,
        }
    }

    /// How much of its text is read, where somebody has said so.
    pub fn max_bytes_of_text(&self) -> Option<u64> {
        (self.max_bytes != all_bytes()).then_some(self.max_bytes)
    }

    fn check(&self) -> Result<(), JobError> {
        let of = |found: &dyn std::fmt::Display| format!("{found} (source `{}`)", self.name);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=NAME_MAX).contains(&self.name.chars().count()) || !self.name.chars().all(is_plain) {
            let short: String = self.name.chars().take(NAME_MAX).collect();
            let expected = format!("1 to {NAME_MAX} letters, digits, `-`, `_` and `.`");
            return value("data.source.name", format!("`{short}`"), expected);
        }
        if is_empty(&self.path) {
            return value("data.source.path", of(&"an empty path"), "a file or a folder".into());
        }
        if !(1..=TOML_MAX).contains(&self.max_bytes) {
            return value("data.source.max_bytes", of(&self.max_bytes), format!("1 to {TOML_MAX}"));
        }
        // From 1e-6 to 1e6, so that each has a share that can be counted in.
        if let Some(weight) = self.weight.filter(|weight| !(1e-6..=1e6).contains(weight)) {
            return value("data.source.weight", of(&weight), "0.000001 to 1000000".into());
        }
        if let Some(epochs) = self.max_epochs.filter(|epochs| !(*epochs > 0.0 && *epochs <= EPOCHS_MAX)) {
            return value("data.source.max_epochs", of(&epochs), format!("above 0 and at most {EPOCHS_MAX}"));
        }
        if let Some(tokens) = self.tokens.filter(|tokens| !(1..=TOML_MAX).contains(tokens)) {
            return value("data.source.tokens", of(&tokens), format!("1 to {TOML_MAX}"));
        }
        check_endings("data.source.extensions", &self.extensions)
    }
}

fn check_endings(key: &'static str, endings: &[String]) -> Result<(), JobError> {
    match endings.iter().any(|ending| ending.trim_start_matches('.').is_empty()) {
        true => value(key, "an empty ending", "endings of file names, as in [\"rs\", \"md\"]".into()),
        false => Ok(()),
    }
}
