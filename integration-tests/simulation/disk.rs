//! Where checkpoints lie: shards and manifests of all jobs, durable at once, and the errors of a bad disk.

use std::collections::BTreeMap;
use std::ops::Range;

use toroid_session::Assignment;
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::holders;
use toroid_torus::manifest::{ShardFile, Writer};
use toroid_torus::resplit::{Half, shard_range};

use crate::arithmetic::{self, Values};
use crate::network::{Micros, Pid};
use crate::place::State;

#[derive(Debug, Default)]
pub struct Disk {
    /// Content by folder, step and name.
    shards: BTreeMap<(String, u64, String), Values>,
    /// A checkpoint that can be seen, by folder and step: its shape, and its files by rank.
    pub manifests: BTreeMap<(String, u64), (Shape, BTreeMap<usize, ShardFile>)>,
    /// Until when the writes of a worker fail.
    pub broken: BTreeMap<Pid, Micros>,
}

fn writer_of(assignment: &Assignment) -> Writer {
    let (epoch, rank, world) = (assignment.epoch, assignment.rank, assignment.spec.shape.world());
    Writer { epoch, rank, world, owner: assignment.owner.id }
}

fn digest(shard: &[u64]) -> String {
    format!("{:016x}", arithmetic::mix(shard.iter().copied()))
}

/// Which elements of the shard of `rank` in `shape` are in the files of which ranks of `saved`, in their order.
fn files_of(saved: &Shape, shape: &Shape, rank: usize) -> Vec<(usize, Range<usize>)> {
    let wanted = shard_range(shape, rank, arithmetic::LEN);
    let group = saved.dp_group(saved.rank(Place { dp: 0, ..shape.place(rank) }));
    let cut = |file: usize| {
        let there = shard_range(saved, file, arithmetic::LEN);
        (file, wanted.start.max(there.start)..wanted.end.min(there.end))
    };
    let mut files: Vec<(usize, Range<usize>)> = group.into_iter().map(cut).filter(|(_, r)| !r.is_empty()).collect();
    files.sort_by_key(|(_, range)| range.start);
    files
}

impl Disk {
    /// What a place begins with when its epoch does not heal.
    pub fn load(&mut self, assignment: &Assignment) -> Result<State, String> {
        let (spec, held_as) = (&assignment.spec, assignment.held_as());
        // The only place of a job guards nothing.
        let guarded = holders::guarded_by(&spec.shape, held_as.rank);
        let Some(step) = assignment.restore_step else {
            let of = |rank| arithmetic::initial(spec.seed, &spec.shape, rank);
            return Ok(State::new(held_as, 0, of(held_as.rank), guarded.map(of).unwrap_or_default()));
        };
        let root = &assignment.checkpoint_root;
        let (shape, manifest) = self
            .manifests
            .get(&(root.clone(), step))
            .ok_or_else(|| format!("cannot restore step {step}: there is no manifest in {root}"))?;
        let read = |rank: usize| {
            let file = manifest.get(&rank);
            match file.and_then(|f| self.read(root, step, &f.file).filter(|shard| f.digest == digest(shard))) {
                Some(shard) => Ok(shard),
                None => Err(format!("cannot restore step {step}: the shard of rank {rank} is damaged")),
            }
        };
        // By range, from the shape that was saved: as if the files were places that hold their own shards.
        let found = || {
            let mut state = State::new(held_as, step, Values::new(), Values::new());
            for half in [Half::Own, Half::Guarded] {
                let of = if half == Half::Own { Some(held_as.rank) } else { guarded };
                for file in of.map(|rank| files_of(shape, &spec.shape, rank)).unwrap_or_default() {
                    let (rank, range) = file;
                    let values = &read(rank)?[arithmetic::within(shape, rank, &range)];
                    state.shard_mut(half).extend_from_slice(values);
                }
            }
            Ok(state)
        };
        let found: Result<State, String> = found();
        if found.is_err() {
            // Set aside, as a worker does it: it is not offered any more.
            self.manifests.remove(&(root.clone(), step));
        }
        found
    }

    pub fn read(&self, root: &str, step: u64, file: &str) -> Option<&Values> {
        self.shards.get(&(root.to_string(), step, file.to_string()))
    }

    /// A file rots that the checkpoint needs.
    pub fn damage(&mut self, root: &str, step: u64, rank: usize) {
        let manifest = self.manifests.get(&(root.to_string(), step));
        let Some(file) = manifest.and_then(|(_, files)| files.get(&rank)) else { return };
        if let Some(shard) = self.shards.get_mut(&(root.to_string(), step, file.file.clone())) {
            shard.iter_mut().for_each(|value| *value = !*value);
        }
    }

    fn is_broken(&self, pid: Pid, now: Micros) -> bool {
        self.broken.get(&pid).is_some_and(|until| now < *until)
    }

    pub fn write(
        &mut self,
        pid: Pid,
        now: Micros,
        assignment: &Assignment,
        step: u64,
        shard: Values,
    ) -> Result<ShardFile, String> {
        if self.is_broken(pid, now) {
            return Err("disk full".into());
        }
        let rank = assignment.rank;
        let (file, digest) = (ShardFile::name_of(&writer_of(assignment)), digest(&shard));
        self.shards.insert((assignment.checkpoint_root.clone(), step, file.clone()), shard);
        Ok(ShardFile { file, rank, bytes: 8, digest, entries: Vec::new() })
    }

    pub fn publish(
        &mut self,
        pid: Pid,
        now: Micros,
        assignment: &Assignment,
        step: u64,
        files: &[ShardFile],
    ) -> Result<String, String> {
        if self.is_broken(pid, now) {
            return Err("disk full".into());
        }
        // As a worker's storage does it: each file that the list names must be there.
        let root = &assignment.checkpoint_root;
        let is_there = |f: &ShardFile| self.read(root, step, &f.file).is_some();
        if let Some(missing) = files.iter().find(|f| !is_there(f)) {
            return Err(format!("{} is not there", missing.file));
        }
        // The first manifest of a step stays: a later epoch takes the step as done.
        let published = || (assignment.spec.shape, files.iter().map(|f| (f.rank, f.clone())).collect());
        self.manifests.entry((root.clone(), step)).or_insert_with(published);
        Ok(format!("{}/step-{step}", assignment.checkpoint_root))
    }

    /// As a worker's storage does it: not what a manifest may name that can be seen.
    pub fn drop_shard(&mut self, assignment: &Assignment, step: u64) {
        let root = &assignment.checkpoint_root;
        if !self.manifests.contains_key(&(root.clone(), step)) {
            self.shards.remove(&(root.clone(), step, ShardFile::name_of(&writer_of(assignment))));
        }
    }

    pub fn remove(&mut self, assignment: &Assignment, step: u64) {
        let root = &assignment.checkpoint_root;
        self.manifests.remove(&(root.clone(), step));
        self.shards.retain(|(r, s, _), _| (r, *s) != (root, step));
    }
}
