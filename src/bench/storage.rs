//! `toroid bench storage`: how fast an object store takes a large object and a checkpoint from this machine, and gives them back.
//!
//! The object is what can be had: bytes in parts, nothing else. The checkpoint is what a worker writes: three states of a model, hashed tensor
//! by tensor on the way, with a manifest that is published last. It is read as `toroid checkpoint verify` does, every byte against its digest.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use toroid_session::Claim;
use toroid_storage::{Store, measure};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::manifest::{FORMAT, KINDS, Manifest, Writer};
use toroid_torus::owner::{Owner, OwnerId};
use toroid_torus::partition::{Partition, partition};
use toroid_worker::checkpoint::{Owned, ShardState, Storage};

use super::median;
use crate::format::table;
use crate::local::positive;
use crate::output::{self, FormatArgs};

const MB: f64 = 1e6;
const CHECK_PATIENCE: Duration = Duration::from_secs(15);
/// Objects below the folder of a run: those of one checkpoint.
const MAX_OBJECTS: usize = 1000;
const EPOCH: u64 = 1;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of the store; objects below it are written, read and deleted
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    url: String,
    /// Size of the object, and about that of the checkpoint, MB
    #[arg(long, default_value_t = 1000, value_name = "MB", value_parser = positive)]
    size: usize,
    /// How often
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = positive)]
    rounds: usize,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    bytes: u64,
    /// Of each round, seconds until the object was there.
    write_s: Vec<f64>,
    read_s: Vec<f64>,
    /// Medians.
    write_bytes_per_s: f64,
    read_bytes_per_s: f64,
    /// `None`: the store takes none.
    checkpoint: Option<OfCheckpoint>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct OfCheckpoint {
    bytes: u64,
    /// Of each round, seconds until it could be seen.
    write_s: Vec<f64>,
    /// Until every byte had been compared.
    verify_s: Vec<f64>,
    /// Medians.
    write_bytes_per_s: f64,
    verify_bytes_per_s: f64,
}

/// Waits for the store: not for a thread of tokio's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let store = Store::open(&args.url)?;
    // What is wrong with the environment shows at once, and not after all tries.
    store.check(CHECK_PATIENCE)?;
    let folder = store.below(&format!("toroid-bench-{}", std::process::id()))?;
    let measured = measure(&folder, args);
    delete_all(&folder)?;
    let figures = measured?;
    if figures.checkpoint.is_none() {
        output::note("no checkpoint was written: the store does not heed conditions of writes (If-None-Match)");
    }
    args.format.answer(&figures, text(&figures))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(folder: &Store, args: &Args) -> Result<Figures> {
    let bytes = args.size as u64 * MB as u64;
    let checkpoint = if folder.heeds_conditions()? { Some(Checkpoint::of(bytes)?) } else { None };
    let (mut write_s, mut read_s, mut of_checkpoint) = (Vec::new(), Vec::new(), OfCheckpoint::default());
    for _ in 0..args.rounds {
        write_s.push(measure::write(folder, "object", bytes)?.as_secs_f64());
        read_s.push(measure::read(folder, "object", bytes)?.as_secs_f64());
        folder.delete("object")?;
        if let Some(checkpoint) = &checkpoint {
            checkpoint.measure(&folder.url_of(""), &mut of_checkpoint)?;
            delete_all(folder)?;
        }
    }
    let speed = |bytes: u64, seconds: &[f64]| bytes as f64 / median(seconds.iter().copied());
    of_checkpoint.write_bytes_per_s = speed(of_checkpoint.bytes, &of_checkpoint.write_s);
    of_checkpoint.verify_bytes_per_s = speed(of_checkpoint.bytes, &of_checkpoint.verify_s);
    Ok(Figures {
        bytes,
        write_bytes_per_s: speed(bytes, &write_s),
        read_bytes_per_s: speed(bytes, &read_s),
        write_s,
        read_s,
        checkpoint: checkpoint.map(|_| of_checkpoint),
    })
}

fn delete_all(folder: &Store) -> Result<()> {
    let names: Vec<String> = folder.list("", MAX_OBJECTS)?.into_iter().map(|object| object.name).collect();
    Ok(folder.delete_all(&names)?)
}

/// The state of one worker that has all of a model.
struct Checkpoint {
    job: JobSpec,
    partition: Partition,
    /// Of each kind, (partition.padded_len).
    states: [Vec<f32>; KINDS.len()],
}

impl Checkpoint {
    /// One of about `bytes`: the preset `small` has as many layers as that needs, 38 MB each.
    fn of(bytes: u64) -> Result<Checkpoint> {
        let with = |layers: u64| -> Result<(JobSpec, Partition)> {
            let text = format!("preset = \"small\"\nsteps = 1\ndata.path = \"/none\"\n[model]\nlayers = {layers}\n");
            let job = job::parse(&text).context("make up a job for the checkpoint")?;
            let partition = partition(&job.model, &job.shape, 0, 0);
            Ok((job, partition))
        };
        let len = |layers| with(layers).map(|(_, partition)| partition.len as u64);
        let (one, two) = (len(1)?, len(2)?);
        let elements = bytes / (KINDS.len() * size_of::<f32>()) as u64;
        let (job, partition) = with(1 + elements.saturating_sub(one) / (two - one))?;
        let mut state = 1_u32;
        let mut next = || {
            // xorshift32; what is written does not compress.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32
        };
        let states = KINDS.map(|_| std::iter::repeat_with(&mut next).take(partition.padded_len).collect());
        Ok(Checkpoint { job, partition, states })
    }

    /// One round, in the folder at `url`, in which there is nothing.
    fn measure(&self, url: &str, figures: &mut OfCheckpoint) -> Result<()> {
        let owner = Owner::new(OwnerId::from_random([1; 16]), "bench", "bench", 0);
        let owned = Arc::new(Storage::open(url)?).own(&owner, Claim::New)?;
        let start = Instant::now();
        let bytes = self.write(&owned)?;
        figures.write_s.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let faults = owned.verify(self.job.steps)?;
        figures.verify_s.push(start.elapsed().as_secs_f64());
        ensure!(faults.is_empty(), "the checkpoint is not read as it was written: {faults:?}");
        figures.bytes = bytes;
        Ok(())
    }

    /// The bytes of the files that the manifest names.
    fn write(&self, owned: &Owned) -> Result<u64> {
        let (step, shape) = (self.job.steps, self.job.shape);
        let writer = Writer { epoch: EPOCH, rank: 0, world: shape.world(), owner: owned.id() };
        let [param, exp_avg, exp_avg_sq] = &self.states;
        let state = ShardState { param, exp_avg, exp_avg_sq };
        let file = owned.write_shard(step, writer, &self.partition, 0..self.partition.padded_len, state)?;
        let manifest = Manifest {
            format: FORMAT,
            job_id: "bench".into(),
            owner: Some(owned.id()),
            step,
            epoch: EPOCH,
            shape,
            samples: step * self.job.batch.samples(),
            job: self.job.clone(),
            skipped_steps: 0,
            data_digest: String::new(),
            tokenizer: None,
            files: vec![file],
        };
        Ok(owned.publish(&manifest)?)
    }
}

fn text(figures: &Figures) -> String {
    let mut rows = vec![["ROUND", "WRITE", "READ", "CHECKPOINT", "VERIFY"].map(String::from).to_vec()];
    let speed = |bytes: u64, seconds: Option<&f64>| match seconds {
        Some(seconds) => format!("{:.0} MB/s", bytes as f64 / MB / seconds),
        None => "-".into(),
    };
    for round in 0..figures.write_s.len() {
        let of = |bytes, seconds: &[f64]| speed(bytes, seconds.get(round));
        let checkpoint = figures.checkpoint.as_ref();
        rows.push(vec![
            (round + 1).to_string(),
            of(figures.bytes, &figures.write_s),
            of(figures.bytes, &figures.read_s),
            checkpoint.map_or_else(|| "-".into(), |c| of(c.bytes, &c.write_s)),
            checkpoint.map_or_else(|| "-".into(), |c| of(c.bytes, &c.verify_s)),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_about_the_size_that_is_asked_for() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let url = format!("file://{}", folder.path().display());
        let mut figures = OfCheckpoint::default();
        Checkpoint::of(100_000_000)?.measure(&url, &mut figures)?;
        assert!((60_000_000..=100_000_000).contains(&figures.bytes), "{}", figures.bytes);
        Ok(())
    }

    #[test]
    fn a_store_that_takes_no_checkpoints_has_none_in_the_table() {
        let mut figures = Figures {
            bytes: 100_000_000,
            write_s: vec![0.5],
            read_s: vec![0.25],
            write_bytes_per_s: 2e8,
            read_bytes_per_s: 4e8,
            checkpoint: None,
        };
        let row = |figures: &Figures| {
            let text = text(figures);
            text.lines().last().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row(&figures), "1 200 MB/s 400 MB/s - -");
        let of = OfCheckpoint { bytes: 90_000_000, write_s: vec![0.5], verify_s: vec![0.3], ..Default::default() };
        figures.checkpoint = Some(of);
        assert_eq!(row(&figures), "1 200 MB/s 400 MB/s 180 MB/s 300 MB/s");
    }
}
