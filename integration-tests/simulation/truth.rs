//! What an observer of everything knows, and the invariants that it checks.
//!
//! - **T-2** a step is committed only when all places of the epoch have sealed it, or another has committed it.
//! - **T-3**, **T-4** whatever a place holds of a committed step is what the undisturbed run has there, in both copies.
//! - **T-5** the samples of a step are those of the undisturbed run.
//! - **T-6** a manifest that can be seen names all shards, and they are there.
//!
//! What concerns the coordinator's decisions (T-1, T-3, T-7, T-8) is checked in `coordinator` where its outputs are executed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toroid_torus::holders;
use toroid_torus::job::JobSpec;
use toroid_worker::trainer::Assignment;

use crate::arithmetic::Reference;
use crate::disk::Disk;
use crate::network::Pid;
use crate::place::State;

/// What a place had when it said Prepared.
#[derive(Debug)]
pub struct Report {
    pub pid: Pid,
    /// `None`: it has no state.
    pub committed: Option<u64>,
}

#[derive(Debug)]
pub struct JobTruth {
    pub spec: Arc<JobSpec>,
    pub reference: Reference,
    /// Ranks that have sealed, by epoch and step.
    sealed: BTreeMap<(u64, u64), BTreeSet<usize>>,
    /// Highest step that anyone has committed since the newest restore, and the epoch of that.
    pub high: u64,
    since_epoch: u64,
    /// Who has prepared, by epoch and rank.
    pub prepared: BTreeMap<u64, BTreeMap<usize, Report>>,
    /// What was decided, by epoch: the first Start.
    pub started: BTreeMap<u64, Option<toroid_proto::Heal>>,
    /// A worker has said that the state, or the newest checkpoint of it, is not to be trusted, and no other was restored since.
    pub is_distrusted: bool,
}

#[derive(Debug, Default)]
pub struct Truth {
    pub jobs: BTreeMap<String, JobTruth>,
    /// The first thing that must not be.
    pub violation: Option<String>,
}

impl Truth {
    pub fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub fn submitted(&mut self, job: &str, spec: &JobSpec) {
        let truth = JobTruth {
            spec: Arc::new(spec.clone()),
            reference: Reference::of(spec),
            sealed: BTreeMap::new(),
            high: 0,
            since_epoch: 0,
            prepared: BTreeMap::new(),
            started: BTreeMap::new(),
            is_distrusted: false,
        };
        self.jobs.insert(job.to_string(), truth);
    }

    fn job(&mut self, assignment: &Assignment) -> &mut JobTruth {
        self.jobs.get_mut(&assignment.job_id).expect("an assigned job was submitted")
    }

    pub fn prepared(&mut self, pid: Pid, assignment: &Assignment, state: Option<&State>) {
        if let Some(state) = state {
            self.holds(assignment, state);
        }
        let report = Report { pid, committed: state.map(|s| s.committed) };
        let job = self.job(assignment);
        job.prepared.entry(assignment.epoch).or_default().insert(assignment.rank, report);
    }

    /// A restore that had to be was decided: what was committed after that step is given up.
    pub fn restores(&mut self, job: &str, epoch: u64, step: u64) {
        let job = self.jobs.get_mut(job).expect("a job that is assigned was submitted");
        job.high = step;
        job.since_epoch = epoch;
        job.is_distrusted = false;
    }

    pub fn distrusted(&mut self, job: &str) {
        self.jobs.get_mut(job).expect("a job that is trained was submitted").is_distrusted = true;
    }

    pub fn consumed(&mut self, assignment: &Assignment, step: u64, samples: &[u64]) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let expected = &self.job(assignment).reference.samples[step as usize][rank];
        let holds = expected == samples;
        self.check(holds, || format!("T-5: rank {rank} takes the samples {samples:?} in step {step}, epoch {epoch}"));
    }

    pub fn sealed(&mut self, assignment: &Assignment, step: u64, sums: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let holds = job.reference.sums[step as usize] == sums;
        job.sealed.entry((epoch, step)).or_default().insert(rank);
        self.check(holds, || format!("T-4: rank {rank} seals step {step} of epoch {epoch} with other gradients"));
    }

    /// By the all-reduce of its epoch.
    pub fn committed(&mut self, assignment: &Assignment, step: u64, sums: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let num_sealed = job.sealed.get(&(epoch, step)).map_or(0, BTreeSet::len);
        let world = job.spec.shape.world();
        let is_same = job.reference.sums[step as usize] == sums;
        if epoch >= job.since_epoch {
            job.high = job.high.max(step);
        }
        self.check(num_sealed == world, || {
            format!("T-2: rank {rank} commits step {step} in epoch {epoch} when {num_sealed} of {world} have sealed it")
        });
        self.check(is_same, || format!("T-4: rank {rank} commits step {step} in epoch {epoch} with another loss"));
    }

    /// By what another place has committed.
    pub fn committed_by_healing(&mut self, assignment: &Assignment, step: u64, sums: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let is_same = job.reference.sums[step as usize] == sums;
        // In an epoch before a restore, what others have committed is not kept any more.
        let is_committed = job.high >= step || epoch < job.since_epoch;
        self.check(is_committed, || format!("T-2: rank {rank} commits step {step} in epoch {epoch}, nobody else has"));
        self.check(is_same, || format!("T-4: rank {rank} commits step {step} in epoch {epoch} with another loss"));
    }

    pub fn holds(&mut self, assignment: &Assignment, state: &State) {
        let (rank, epoch, step) = (assignment.rank, assignment.epoch, state.committed);
        let guarded = holders::guarded_by(&assignment.spec.shape, rank);
        let shards = &self.job(assignment).reference.shards[step as usize];
        let own = shards[rank] == state.own;
        let copy = guarded.is_none_or(|guarded| shards[guarded] == state.guarded);
        self.check(own, || format!("T-4: rank {rank} holds another shard of step {step} in epoch {epoch}"));
        self.check(copy, || {
            format!("T-3: rank {rank} holds a stale copy of the shard of step {step} in epoch {epoch}")
        });
    }

    /// After healing all are at one step.
    pub fn healed(&mut self, assignment: &Assignment, decided: u64, committed: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        self.check(decided == committed, || {
            format!("T-2: rank {rank} goes on from step {committed} in epoch {epoch}, decided was {decided}")
        });
    }

    pub fn wrote(&mut self, assignment: &Assignment, step: u64, shard: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let holds = self.job(assignment).reference.shards[step as usize][rank] == shard;
        self.check(holds, || format!("T-4: rank {rank} saves another shard of step {step} in epoch {epoch}"));
    }

    pub fn published(&mut self, disk: &Disk, assignment: &Assignment, step: u64) {
        let complaint = self.incomplete(disk, &assignment.job_id, &assignment.checkpoint_root, step);
        let epoch = assignment.epoch;
        self.check(complaint.is_none(), || {
            format!("T-6: the manifest of step {step} that epoch {epoch} publishes {}", complaint.unwrap_or_default())
        });
    }

    /// What is wrong with a checkpoint that can be seen.
    pub fn incomplete(&self, disk: &Disk, job: &str, root: &str, step: u64) -> Option<String> {
        let shards = &self.jobs[job].reference.shards[step as usize];
        let Some(manifest) = disk.manifests.get(&(root.to_string(), step)) else { return Some("is not there".into()) };
        if manifest.len() != shards.len() {
            return Some(format!("names {} of {} shards", manifest.len(), shards.len()));
        }
        let is_bad = |rank: &usize| disk.shards.get(&(root.to_string(), step, *rank)) != Some(&shards[*rank]);
        (0..shards.len()).find(is_bad).map(|rank| format!("names a shard of rank {rank} that is not there"))
    }
}
