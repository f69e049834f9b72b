//! Where checkpoints lie: shards and manifests of all jobs, durable at once, and the errors of a bad disk.

use std::collections::BTreeMap;

use toroid_torus::holders;
use toroid_torus::manifest::ShardFile;
use toroid_worker::trainer::Assignment;

use crate::arithmetic;
use crate::network::{Micros, Pid};
use crate::trainer::State;

#[derive(Debug, Default)]
pub struct Disk {
    /// Content by folder, step and rank.
    pub shards: BTreeMap<(String, u64, usize), u64>,
    /// Digests by rank, by folder and step: a checkpoint that can be seen.
    pub manifests: BTreeMap<(String, u64), BTreeMap<usize, String>>,
    /// Until when the writes of a worker fail.
    pub broken: BTreeMap<Pid, Micros>,
}

fn digest(shard: u64) -> String {
    format!("{shard:016x}")
}

impl Disk {
    /// What a place begins with when its epoch does not heal.
    pub fn load(&mut self, assignment: &Assignment) -> Result<State, String> {
        let (rank, spec) = (assignment.rank, &assignment.spec);
        // The only place of a job guards nothing.
        let guarded = holders::guarded_by(&spec.shape, rank);
        let state = |committed, own, guarded| State { committed, own, guarded, history: Vec::new(), sealed: None };
        let Some(step) = assignment.restore_step else {
            let guarded = guarded.map_or(0, |rank| arithmetic::initial(spec.seed, rank));
            return Ok(state(0, arithmetic::initial(spec.seed, rank), guarded));
        };
        let root = &assignment.checkpoint_root;
        let manifest = self
            .manifests
            .get(&(root.clone(), step))
            .ok_or_else(|| format!("cannot restore step {step}: there is no manifest in {root}"))?;
        let read = |rank: usize| match self.shards.get(&(root.clone(), step, rank)) {
            Some(shard) if manifest.get(&rank) == Some(&digest(*shard)) => Ok(*shard),
            found => Err(format!("cannot restore step {step}: the shard of rank {rank} is {found:?}")),
        };
        let found = read(rank).and_then(|own| Ok(state(step, own, guarded.map_or(Ok(0), read)?)));
        if found.is_err() {
            // Set aside, as a worker does it: it is not offered any more.
            self.manifests.remove(&(root.clone(), step));
        }
        found
    }

    /// A file rots.
    pub fn damage(&mut self, root: &str, step: u64, rank: usize) {
        if let Some(shard) = self.shards.get_mut(&(root.to_string(), step, rank)) {
            *shard = !*shard;
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
        shard: u64,
    ) -> Result<ShardFile, String> {
        if self.is_broken(pid, now) {
            return Err("disk full".into());
        }
        let rank = assignment.rank;
        self.shards.insert((assignment.checkpoint_root.clone(), step, rank), shard);
        let (file, digest) = (ShardFile::name_of(rank), digest(shard));
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
        let is_there = |f: &ShardFile| self.shards.contains_key(&(root.clone(), step, f.rank));
        if let Some(missing) = files.iter().find(|f| !is_there(f)) {
            return Err(format!("{} is not there", missing.file));
        }
        let files = files.iter().map(|f| (f.rank, f.digest.clone())).collect();
        self.manifests.insert((root.clone(), step), files);
        Ok(format!("{}/step-{step}", assignment.checkpoint_root))
    }

    pub fn remove(&mut self, assignment: &Assignment, step: u64) {
        let root = &assignment.checkpoint_root;
        self.manifests.remove(&(root.clone(), step));
        self.shards.retain(|(r, s, _), _| (r, *s) != (root, step));
    }
}
