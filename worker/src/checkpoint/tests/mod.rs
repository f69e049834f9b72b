//! Checkpoints of a synthetic state: the value of an element follows from (tensor, kind, element), so any shape knows
//! what to expect.

mod bucket;
mod faults;
mod initial;
mod kept;
mod owned;
mod round_trip;

use std::ops::Range;
use std::sync::Arc;

use toroid_session::Claim;
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::manifest::{FORMAT, KINDS, Kind, Manifest, ShardFile, Writer};
use toroid_torus::model::ModelConfig;
use toroid_torus::owner::{Owner, OwnerId};
use toroid_torus::partition::{Partition, partition, shard_position};

use super::*;
use kept::{Kept, in_each};

const EPOCH: u64 = 3;

fn shape(tp: usize, pp: usize, dp: usize) -> Shape {
    Shape::new(tp, pp, dp).unwrap()
}

/// A model that splits up to tp 4, where KV heads are replicated, and pp 4.
fn job(shape: Shape) -> JobSpec {
    let text = format!(
        "steps = 100\ndata.path = \"text\"\nbatch.micro_batches = 4\n[shape]\ntp = {}\npp = {}\ndp = {}\n\
         [model]\nlayers = 4\nd_model = 12\nheads = 4\nkv_heads = 2\nhead_dim = 4\nexperts = 4\nff = 8\nseq = 8\nvocab = 256\n",
        shape.tp(),
        shape.pp(),
        shape.dp()
    );
    job::parse(&text).unwrap()
}

fn model() -> ModelConfig {
    job(shape(1, 1, 1)).model
}

/// Different for all that it depends on: the first bits of a blake3.
fn value(tensor: &str, kind: Kind, element: usize) -> f32 {
    let digest = blake3::hash(format!("{tensor} {} {element}", kind.name()).as_bytes());
    let bits = u32::from_le_bytes(digest.as_bytes()[..4].try_into().unwrap());
    bits as f32 / u32::MAX as f32 - 0.5
}

/// The flat buffer of a partition, (padded_len); `padding` beyond its end.
fn flat(partition: &Partition, kind: Kind, padding: f32) -> Vec<f32> {
    let mut out = vec![padding; partition.padded_len];
    for slice in &partition.slices {
        for (local, global, len) in slice.slice.runs(&slice.global_shape) {
            for i in 0..len {
                out[slice.offset + local + i] = value(&slice.tensor, kind, global + i);
            }
        }
    }
    out
}

/// Partition and shard of a rank.
fn shard_of(model: &ModelConfig, shape: &Shape, rank: usize) -> (Partition, Range<usize>) {
    let Place { tp, pp, dp } = shape.place(rank);
    let partition = partition(model, shape, tp, pp);
    let start = shard_position(shape, dp) * partition.shard_len;
    let shard = start..start + partition.shard_len;
    (partition, shard)
}

fn write_rank(storage: &Owned, step: u64, shape: &Shape, rank: usize) -> Result<ShardFile, CheckpointError> {
    write_rank_in(storage, EPOCH, step, shape, rank)
}

fn write_rank_in(
    storage: &Owned,
    epoch: u64,
    step: u64,
    shape: &Shape,
    rank: usize,
) -> Result<ShardFile, CheckpointError> {
    let (partition, shard) = shard_of(&model(), shape, rank);
    // Padding that found its way into a file would show.
    let states = KINDS.map(|kind| flat(&partition, kind, 7.0)[shard.clone()].to_vec());
    let [param, exp_avg, exp_avg_sq] = &states;
    let writer = writer(storage, epoch, rank, shape.world());
    storage.write_shard(step, writer, &partition, shard, ShardState { param, exp_avg, exp_avg_sq })
}

fn write_shards(storage: &Owned, step: u64, shape: Shape) -> Manifest {
    write_shards_in(storage, EPOCH, step, shape)
}

fn write_shards_in(storage: &Owned, epoch: u64, step: u64, shape: Shape) -> Manifest {
    let files = (0..shape.world()).map(|rank| write_rank_in(storage, epoch, step, &shape, rank).unwrap()).collect();
    let job = job(shape);
    Manifest {
        format: FORMAT,
        job_id: "job".into(),
        owner: Some(storage.id()),
        step,
        epoch,
        shape,
        samples: step * job.batch.samples(),
        job,
        skipped_steps: 0,
        data_digest: String::new(),
        tokenizer: None,
        files,
    }
}

/// A complete checkpoint.
fn write(storage: &Owned, step: u64, shape: Shape) -> Manifest {
    let manifest = write_shards(storage, step, shape);
    storage.publish(&manifest).unwrap();
    manifest
}

/// A flat range as it is loaded, by kind; what the loader leaves alone is NaN.
fn load(
    storage: &Storage,
    manifest: &Manifest,
    partition: &Partition,
    range: Range<usize>,
) -> Result<[Vec<f32>; 3], CheckpointError> {
    let mut states = [(); 3].map(|()| vec![f32::NAN; range.len()]);
    let [param, exp_avg, exp_avg_sq] = &mut states;
    storage.load(manifest, partition, range, ShardStateMut { param, exp_avg, exp_avg_sq })?;
    Ok(states)
}

fn check_load(storage: &Storage, manifest: &Manifest, partition: &Partition, range: Range<usize>) {
    let states = load(storage, manifest, partition, range.clone()).unwrap();
    for (kind, found) in KINDS.into_iter().zip(states) {
        let expected = &flat(partition, kind, 0.0)[range.clone()];
        let differs = (0..range.len()).find(|&i| found[i].to_bits() != expected[i].to_bits());
        assert_eq!(differs, None, "{} of {range:?} of {partition:?}", kind.name());
    }
}

fn writer(storage: &Owned, epoch: u64, rank: usize, world: usize) -> Writer {
    Writer { epoch, rank, world, owner: storage.id() }
}

/// The file with the digest of the manifest that `storage` publishes.
fn digest_of(storage: &Owned) -> String {
    digest_name(&Stamp { epoch: EPOCH, owner: storage.id() })
}

/// A job by a number.
fn owner(number: u8) -> Owner {
    Owner::new(OwnerId::from_random([number; 16]), "job", "a test", 1_764_322_219_000)
}

/// The folder `root` as job 1 has it.
fn open(root: &str) -> Owned {
    Arc::new(Storage::open(root).unwrap()).own(&owner(1), Claim::New).unwrap()
}

fn temporary() -> (tempfile::TempDir, Owned) {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path().join("checkpoints").to_str().unwrap());
    (folder, storage)
}

/// Names of all files below a folder.
fn files_below(folder: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            out.extend(files_below(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            out.push(name);
        }
    }
    out.sort();
    out
}
