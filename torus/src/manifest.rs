//! What a checkpoint consists of (design section 7, invariant T-6).
//!
//! ```text
//! step-100/
//!   shard-00000.safetensors ... one file a place: its shard of master weights and both moments
//!   manifest.json               written last: every entry of every file, with digests; a manifest that can be seen is complete
//! ```
//!
//! An *entry* is a contiguous range of the elements of a slice of a tensor ([`crate::partition::Slice`]), so any place of any other
//! shape can find what it needs by range. Replicated slices are written once, by the lowest tp_rank that holds them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::Shape;
use crate::job::JobSpec;
use crate::partition::{Partition, Slice};

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
    pub fn name_of(kind: Kind, tensor: &str, range: &Range<usize>) -> String {
        format!("{}/{tensor}/{}-{}", kind.name(), range.start, range.end)
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
    Format { found: u32 },
    #[error("the checkpoint does not hold all of {tensor} ({kind}): {found} of {expected} elements")]
    Incomplete { tensor: String, kind: &'static str, expected: usize, found: usize },
}

impl Manifest {
    pub fn folder(step: u64) -> String {
        format!("step-{step}")
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest has only string keys")
    }

    /// Parses and checks that every tensor is there exactly once.
    pub fn parse(json: &str) -> Result<Manifest, ManifestError> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| ManifestError::Parse(e.to_string()))?;
        let found = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
        if found != FORMAT {
            return Err(ManifestError::Format { found });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|e| ManifestError::Parse(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        for spec in self.job.model.tensors() {
            for kind in KINDS {
                let entries = self.files.iter().flat_map(|f| &f.entries);
                let found = entries.filter(|e| e.kind == kind && e.tensor == spec.name).map(|e| e.range.len()).sum();
                let expected = spec.num_elements();
                if found != expected {
                    return Err(ManifestError::Incomplete { tensor: spec.name, kind: kind.name(), expected, found });
                }
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
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
