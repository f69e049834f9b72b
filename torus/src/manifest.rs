//! What a checkpoint consists of (design section 7, invariant T-6).
//!
//! ```text
//! step-100/
//!   shard-00000-of-00004-epoch-7-by-9f3c2a1b4d5e6f70.safetensors ... one file a place: its shard of master weights and both moments
//!   manifest.json.epoch-7-by-9f3c2a1b4d5e6f70.b3    the digest of the next file, as `b3sum --check` reads it
//!   manifest.json    written last: every entry of every file, with digests; that it can be seen means complete
//! ```
//!
//! An *entry* is a contiguous range of the elements of a slice of a tensor ([`crate::partition::Slice`]), so any place of any other
//! shape can find what it needs by range. Replicated slices are written once, by the lowest tp_rank that holds them.
//!
//! A file has the name of its [`Writer`], so whoever still writes for an epoch that is over, and maybe for another shape, writes nothing
//! that a newer one reads (T-1), and nothing is taken for a job's own that another has written (T-10).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::Shape;
use crate::job::{JobSpec, RewardScale};
use crate::model::TensorSpec;
use crate::owner::{OwnerId, Stamp};
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
        let len = self.slice.num_elements(&spec.shape).ok_or("the tensor has no such slice")?;
        if self.range.start >= self.range.end || self.range.end > len {
            return Err(format!("it holds the elements {:?} of a slice of {len}", self.range));
        }
        let name = Entry::name_of(self.kind, &self.tensor, &self.range);
        if self.name == name { Ok(()) } else { Err(format!("its name should be {name}")) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardFile {
    /// File name within the step's folder.
    pub file: String,
    pub rank: usize,
    pub bytes: u64,
    /// blake3 of the whole file, hex; only older manifests have it. Every byte is of an entry, which has its own, or of the header,
    /// which follows from the entries.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    pub entries: Vec<Entry>,
    /// Of a job of kind `ppo`: what a nat of divergence costs from this step on, which follows from all iterations before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_coef: Option<f64>,
    /// Of a job of kind `ppo` with a reward model: what its scores are measured by from the first iteration on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_scale: Option<RewardScale>,
}

/// Who writes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    pub epoch: u64,
    pub rank: usize,
    /// Places of the epoch's shape.
    pub world: usize,
    pub owner: OwnerId,
}

impl Writer {
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: self.epoch, owner: self.owner }
    }
}

impl ShardFile {
    pub fn name_of(writer: &Writer) -> String {
        let Writer { rank, world, .. } = writer;
        format!("shard-{rank:05}-of-{world:05}-{}.safetensors", writer.stamp())
    }

    /// The epoch in a file's name, if it is the name of this rank's writer, of any job; older checkpoints have files named by place and
    /// epoch, or by rank alone.
    fn epoch_of(&self, world: usize) -> Option<u64> {
        let rest = self.file.strip_prefix(&format!("shard-{:05}-of-{world:05}-epoch-", self.rank))?;
        let rest = rest.strip_suffix(".safetensors")?;
        let (epoch, tag) = rest.split_once("-by-").map_or((rest, None), |(epoch, tag)| (epoch, Some(tag)));
        let is_tag =
            |tag: &str| tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number: u64 = epoch.parse().ok()?;
        (tag.is_none_or(is_tag) && epoch == number.to_string()).then_some(number)
    }

    /// Bytes of the safetensors header, its length field included.
    pub fn header_bytes(&self) -> u64 {
        self.entries.first().map_or(self.bytes, |e| e.file_offset)
    }

    fn check(&self, world: usize, epoch: u64) -> Result<(), String> {
        // A step that an earlier epoch has published keeps its files when a later one publishes it again.
        let is_known = self.epoch_of(world).is_some_and(|earlier| earlier <= epoch);
        if !is_known && self.file != format!("shard-{:05}.safetensors", self.rank) {
            let place = format!("shard-{:05}-of-{world:05}-epoch-", self.rank);
            return Err(format!(
                "the file of rank {} should be {place}<e>-by-<owner>.safetensors, e at most {epoch}",
                self.rank
            ));
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
pub struct Manifest {
    pub format: u32,
    pub job_id: String,
    /// The job that has written it; older manifests do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
    /// Committed updates; the next update has `t = step`.
    pub step: u64,
    pub epoch: u64,
    pub shape: Shape,
    pub job: JobSpec,
    /// Samples consumed: the data cursor (invariant T-5).
    pub samples: u64,
    /// Updates that were skipped because gradients were not finite; they do not count in the bias correction.
    pub skipped_steps: u64,
    /// Names the tokens, hex: the same samples come only from the same tokens. Of a text it is blake3 of its bytes.
    pub data_digest: String,
    /// blake3 of the tokenizer's file, hex; `None`: tokens are bytes, as in all older manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
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
    #[error("the manifest is wrong about {file}: {what}; set the checkpoint aside and use the one before")]
    File { file: String, what: String },
    #[error("the checkpoint does not hold {tensor} ({kind}) exactly once: {what}; set it aside and use the one before")]
    Cover { tensor: String, kind: &'static str, what: String },
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
        // Of another format nothing else may be as it is expected.
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            format: u64,
        }
        let cannot = |e: serde_json::Error| ManifestError::Parse(e.to_string());
        let Head { format: found } = serde_json::from_str(json).map_err(cannot)?;
        if found != u64::from(FORMAT) {
            return Err(ManifestError::Format { found });
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(cannot)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Every element of every tensor is there exactly once, and every file is a header followed by its entries without gaps.
    /// What passes can be read without a further look: no index of an entry leads out of its tensor or its file.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.job.check().map_err(|e| ManifestError::Parse(e.to_string()))?;
        partition::check(&self.job.model, &self.shape).map_err(|e| ManifestError::Parse(e.to_string()))?;
        let specs: BTreeMap<String, TensorSpec> =
            self.job.model.tensors().into_iter().map(|s| (s.name.clone(), s)).collect();
        let mut found: BTreeMap<(&str, Kind), Vec<&Entry>> = BTreeMap::new();
        let mut ranks = BTreeSet::new();
        for file in &self.files {
            let refuse = |what: String| ManifestError::File { file: file.file.clone(), what };
            if !ranks.insert(file.rank) {
                return Err(refuse(format!("rank {} has another file already", file.rank)));
            }
            file.check(self.shape.world(), self.epoch).map_err(refuse)?;
            for entry in &file.entries {
                entry
                    .check(specs.get(&entry.tensor))
                    .map_err(|what| refuse(format!("entry {}: {what}", entry.name)))?;
                found.entry((&entry.tensor, entry.kind)).or_default().push(entry);
            }
        }
        for spec in specs.values() {
            for kind in KINDS {
                let entries = found.get(&(spec.name.as_str(), kind)).map_or(&[][..], Vec::as_slice);
                check_cover(spec, kind, entries)?;
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// The slices of `entries` are to tile the tensor, and the entries of each slice the slice.
fn check_cover(spec: &TensorSpec, kind: Kind, entries: &[&Entry]) -> Result<(), ManifestError> {
    let (expected, found) = (spec.num_elements(), entries.iter().map(|e| e.range.len()).sum());
    if found != expected {
        return Err(ManifestError::Incomplete { tensor: spec.name.clone(), kind: kind.name(), expected, found });
    }
    let refuse = |what: String| ManifestError::Cover { tensor: spec.name.clone(), kind: kind.name(), what };
    let dim = entries.first().map_or(0, |e| e.slice.dim);
    if entries.iter().any(|e| e.slice.dim != dim) {
        return Err(refuse("it is cut along two dims".into()));
    }
    let mut slices: BTreeMap<Vec<(usize, usize)>, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        let key = entry.slice.ranges.iter().map(|r| (r.start, r.end)).collect();
        slices.entry(key).or_default().push(entry);
    }
    let along_dim = slices.keys().flatten().map(|&(start, end)| start..end).collect();
    check_tiles(along_dim, spec.shape[dim]).map_err(refuse)?;
    for entries in slices.into_values() {
        let ranges = entries.iter().map(|e| e.range.clone()).collect();
        // Entries were checked by themselves: their slices lie within the tensor.
        let len = entries[0].slice.num_elements(&spec.shape).unwrap_or(0);
        check_tiles(ranges, len).map_err(refuse)?;
    }
    Ok(())
}

/// `ranges`, none of them empty, are to cover `0..len` without a gap or an overlap.
fn check_tiles(mut ranges: Vec<Range<usize>>, len: usize) -> Result<(), String> {
    ranges.sort_by_key(|r| r.start);
    let mut end = 0;
    for range in ranges {
        if range.start != end {
            return Err(format!("{range:?} follows on {end} of {len}"));
        }
        end = range.end;
    }
    if end == len { Ok(()) } else { Err(format!("it ends at {end} of {len}")) }
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
