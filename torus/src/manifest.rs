//! What a checkpoint consists of (design section 7, invariant T-6).
//!
//! ```text
//! step-100/
//!   shard-00000.safetensors ... one file a place: its shard of master weights and both moments
//!   manifest.json.b3            the digest of the next file, as `b3sum --check` reads it
//!   manifest.json               written last: every entry of every file, with digests; that it can be seen means complete
//! ```
//!
//! An *entry* is a contiguous range of the elements of a slice of a tensor ([`crate::partition::Slice`]), so any place of any other
//! shape can find what it needs by range. Replicated slices are written once, by the lowest tp_rank that holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::Shape;
use crate::job::JobSpec;
use crate::model::TensorSpec;
use crate::partition::{self, Partition, Slice};

/// Version of the checkpoint format.
pub const FORMAT: u32 = 1;
pub const MANIFEST_NAME: &str = "manifest.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// f32 master weights.
    Param,
    /// First Adam moment, f32.
    Exp,
    /// Second Adam moment, f32.
    ExpSq,
}

pub const KINDS: [Kind; 3] = [Kind::Param, Kind::Exp, Kind::ExpSq];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Param => "param",
            Kind::Exp => "exp_avg",
            Kind::ExpSq => "exp_avg_sq",
        }
    }
}

/// One safetensors entry: elements `range` of `slice` of `tensor`, f32, 1-D.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name in the safetensors file, see [`Entry::name_of`].
    pub name: String,
    pub tensor: String,
    pub kind: Kind,
    pub global_shape: Vec<usize>,
    pub slice: Slice,
    /// Elements of the slice, counted within the slice.
    pub range: Range<usize>,
    /// First byte of the entry in the file.
    pub file_offset: u64,
    /// blake3 of the entry's bytes, hex.
    pub digest: String,
}

impl Entry {
    /// Checks the entry by itself; `spec` is the model's tensor of its name, `file_bytes` the length of its file.
    fn check(&self, spec: Option<&TensorSpec>, file_bytes: u64) -> Result<(), &'static str> {
        let spec = spec.ok_or("the model has no such tensor")?;
        if self.global_shape != spec.shape {
            return Err("the tensor has another shape in the model");
        }
        let len = self.slice.num_elements(&spec.shape).ok_or("the tensor has no such slice")?;
        if self.range.start >= self.range.end || self.range.end > len {
            return Err("the slice has no such elements");
        }
        let end = self.file_offset.checked_add(4 * self.range.len() as u64);
        if end.is_none_or(|end| end > file_bytes) {
            return Err("it reaches beyond the end of the file");
        }
        Ok(())
    }

    pub fn name_of(kind: Kind, tensor: &str, range: &Range<usize>) -> String {
        format!("{}/{tensor}/{}-{}", kind.name(), range.start, range.end)
    }

    /// Bytes of the entry in its file.
    pub fn bytes(&self) -> u64 {
        (self.range.len() as u64).saturating_mul(4)
    }

    fn check(&self, spec: Option<&TensorSpec>) -> Result<(), String> {
        let Some(spec) = spec else { return Err(format!("the model has no tensor {}", self.tensor)) };
        if self.global_shape != spec.shape {
            return Err(format!("the tensor has the shape {:?}, expected {:?}", self.global_shape, spec.shape));
        }
        let Some(&extent) = spec.shape.get(self.slice.dim) else {
            return Err(format!("the tensor has {} dims, found a slice of dim {}", spec.shape.len(), self.slice.dim));
        };
        let mut end = 0;
        for range in &self.slice.ranges {
            if range.start < end || range.end <= range.start || range.end > extent {
                return Err(format!("the slice takes {:?} of an extent of {extent}", self.slice.ranges));
            }
            end = range.end;
        }
        let len = self.slice.num_elements(&spec.shape);
        if self.range.start >= self.range.end || self.range.end > len {
            return Err(format!("it holds the elements {:?} of a slice of {len}", self.range));
        }
        let name = Entry::name_of(self.kind, &self.tensor, &self.range);
        if self.name == name { Ok(()) } else { Err(format!("its name should be {name}")) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// File name within the step's folder.
    pub file: String,
    pub rank: usize,
    pub bytes: u64,
    /// blake3 of the whole file, hex.
    pub digest: String,
    pub entries: Vec<Entry>,
}

impl ShardFile {
    pub fn name_of(rank: usize) -> String {
        format!("shard-{rank:05}.safetensors")
    }

    /// Bytes of the safetensors header, its length field included.
    pub fn header_bytes(&self) -> u64 {
        self.entries.first().map_or(self.bytes, |e| e.file_offset)
    }

    fn check(&self) -> Result<(), String> {
        if self.file != ShardFile::name_of(self.rank) {
            return Err(format!("the file of rank {} should be {}", self.rank, ShardFile::name_of(self.rank)));
        }
        let mut end = self.header_bytes();
        for entry in &self.entries {
            if entry.file_offset != end {
                return Err(format!("entry {} starts at byte {}, expected {end}", entry.name, entry.file_offset));
            }
            let next = end.checked_add(entry.bytes());
            end = next.ok_or_else(|| format!("entry {} ends beyond any file", entry.name))?;
        }
        if end == self.bytes { Ok(()) } else { Err(format!("its entries end at byte {end} of {}", self.bytes)) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub job_id: String,
    /// Committed updates; the next update has `t = step`.
    pub step: u64,
    pub epoch: u64,
    pub shape: Shape,
    pub job: JobSpec,
    /// Samples consumed: the data cursor (invariant T-5).
    pub samples: u64,
    /// Updates that were skipped because gradients were not finite; they do not count in the bias correction.
    pub skipped_steps: u64,
    /// blake3 of the token file, hex: the same samples come only from the same tokens.
    pub data_digest: String,
    pub files: Vec<ShardFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not valid: {0}; set the checkpoint aside and use the one before")]
    Parse(String),
    #[error(
        "the checkpoint has format {found}, this program reads format {FORMAT}; use the version of Toroid that wrote it"
    )]
    Format { found: u64 },
    #[error("the checkpoint does not hold all of {tensor} ({kind}): {found} of {expected} elements")]
    Incomplete { tensor: String, kind: &'static str, expected: usize, found: usize },
    #[error("the checkpoint holds elements of {tensor} ({kind}) twice; set it aside and use the one before")]
    Twice { tensor: String, kind: &'static str },
    #[error(
        "the manifest's entry {entry} of {file} is not valid: {problem}; set the checkpoint aside and use the one before"
    )]
    Entry { file: String, entry: String, problem: &'static str },
    #[error(
        "the manifest's file name `{file}` is not valid: expected the name of one file in the step's folder, each once"
    )]
    File { file: String },
}

impl Manifest {
    pub fn folder(step: u64) -> String {
        format!("step-{step}")
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest has only string keys")
    }

    /// Parses and checks that every element of every tensor is there exactly once (T-6).
    pub fn parse(json: &str) -> Result<Manifest, ManifestError> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| ManifestError::Parse(e.to_string()))?;
        let found = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found != u64::from(FORMAT) {
            return Err(ManifestError::Format { found });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|e| ManifestError::Parse(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        self.job.check().map_err(|e| ManifestError::Parse(e.to_string()))?;
        partition::check(&self.job.model, &self.shape).map_err(|e| ManifestError::Parse(e.to_string()))?;
        let mut names = BTreeSet::new();
        for file in &self.files {
            let plain = !file.file.is_empty() && !file.file.contains(['/', '\\']) && !file.file.starts_with('.');
            if !plain || !names.insert(&file.file) {
                return Err(ManifestError::File { file: file.file.clone() });
            }
        }
        let specs = self.job.model.tensors();
        let by_name: BTreeMap<&str, &TensorSpec> = specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let mut entries: BTreeMap<(&str, Kind), Vec<&Entry>> = BTreeMap::new();
        for (file, entry) in self.files.iter().flat_map(|f| f.entries.iter().map(move |e| (f, e))) {
            entry.check(by_name.get(entry.tensor.as_str()).copied(), file.bytes).map_err(|problem| {
                ManifestError::Entry { file: file.file.clone(), entry: entry.name.clone(), problem }
            })?;
            entries.entry((&entry.tensor, entry.kind)).or_default().push(entry);
        }
        for spec in &specs {
            for kind in KINDS {
                check_cover(spec, kind, entries.get(&(spec.name.as_str(), kind)).map_or(&[], Vec::as_slice))?;
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// Checks that `entries` (those of one tensor and kind, each valid by itself) hold every element once: the slices must cut one dim of
/// the tensor into parts that lie side by side, and the ranges each slice.
fn check_cover(spec: &TensorSpec, kind: Kind, entries: &[&Entry]) -> Result<(), ManifestError> {
    let (tensor, kind, expected) = (spec.name.clone(), kind.name(), spec.num_elements());
    let found = entries.iter().map(|e| e.range.len()).sum();
    if found < expected {
        return Err(ManifestError::Incomplete { tensor, kind, expected, found });
    }
    let mut slices: Vec<(&Slice, Vec<&Range<usize>>)> = Vec::new();
    let mut sorted: Vec<&Entry> = entries.to_vec();
    sorted.sort_by_key(|e| (e.slice.dim, e.slice.ranges.first().map(|r| r.start), e.range.start));
    for entry in sorted {
        match slices.last_mut() {
            Some((slice, ranges)) if **slice == entry.slice => ranges.push(&entry.range),
            _ => slices.push((&entry.slice, vec![&entry.range])),
        }
    }
    let dim = slices.first().map_or(0, |(slice, _)| slice.dim);
    let mut parts: Vec<&Range<usize>> = slices.iter().flat_map(|(slice, _)| &slice.ranges).collect();
    parts.sort_by_key(|r| r.start);
    let whole = slices.iter().all(|(slice, ranges)| slice.dim == dim && tile(ranges, slice.num_elements(&spec.shape)));
    if whole && tile(&parts, Some(spec.shape[dim])) { Ok(()) } else { Err(ManifestError::Twice { tensor, kind }) }
}

/// Whether `ranges` lie side by side, in order, from 0 to `end`.
fn tile(ranges: &[&Range<usize>], end: Option<usize>) -> bool {
    let reached = ranges.iter().try_fold(0, |next, r| (r.start == next).then_some(r.end));
    reached.is_some() && reached == end
}

/// The entries, without offsets and digests, that the holder of the flat range `shard` of `partition` writes.
pub fn entries_of(partition: &Partition, shard: Range<usize>) -> Vec<Entry> {
    let mut out = Vec::new();
    for kind in KINDS {
        for (slice, range) in partition.cut(shard.clone()).filter(|(s, _)| partition.counts(s)) {
            out.push(Entry {
                name: Entry::name_of(kind, &slice.tensor, &range),
                tensor: slice.tensor.clone(),
                kind,
                global_shape: slice.global_shape.clone(),
                slice: slice.slice.clone(),
                range,
                file_offset: 0,
                digest: String::new(),
            });
        }
    }
    out
}
