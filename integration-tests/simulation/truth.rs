//! What an observer of everything knows, and the invariants that it checks.
//!
//! - **T-2** a step is committed only when all places of the epoch have sealed it, or another has committed it.
//! - **T-3**, **T-4** whatever a place holds of a committed step is what the undisturbed run has there, in both copies.
//! - **T-5** a ledger of who took which samples: those of a step are the undisturbed run's, each once, over any number of replicas.
//! - **T-6** a manifest that can be seen names all shards, and they are there.
//!
//! What concerns the coordinator's decisions (T-1, T-3, T-7, T-8) is checked in `coordinator` where its outputs are executed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toroid_session::{Assignment, HeldAs};
use toroid_torus::geometry::Shape;
use toroid_torus::holders;
use toroid_torus::job::JobSpec;

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
    pub held: Vec<HeldAs>,
}

#[derive(Debug)]
pub struct JobTruth {
    pub spec: Arc<JobSpec>,
    pub reference: Reference,
    /// Ranks that have sealed, by epoch and step.
    sealed: BTreeMap<(u64, u64), BTreeSet<usize>>,
    /// Samples that each rank took, by epoch and step.
    ledger: BTreeMap<(u64, u64), BTreeMap<usize, Vec<u64>>>,
    /// Highest step that anyone has committed since the newest restore, and the epoch of that.
    pub high: u64,
    /// In which somebody has committed a step.
    pub epochs: BTreeSet<u64>,
    since_epoch: u64,
    /// Who has prepared, by epoch and rank.
    pub prepared: BTreeMap<u64, BTreeMap<usize, Report>>,
    /// What was decided, by epoch: the first Start.
    pub started: BTreeMap<u64, Option<toroid_proto::Heal>>,
    /// A worker has said that the state, or the newest checkpoint of it, is not to be trusted, and no other was restored since.
    pub is_distrusted: bool,
}

impl JobTruth {
    /// T-5: each (tp, pp) of a step's replicas took every sample of the undisturbed run's step once, in its order.
    fn is_ledger_right(&self, shape: &Shape, epoch: u64, step: u64) -> Result<(), String> {
        let nobody = BTreeMap::new();
        let taken = self.ledger.get(&(epoch, step)).unwrap_or(&nobody);
        let expected = &self.reference.samples[step as usize];
        for first in (0..shape.world()).filter(|rank| shape.place(*rank).dp == 0) {
            let of_replicas = shape.dp_group(first).into_iter().filter_map(|rank| taken.get(&rank));
            let found: Vec<u64> = of_replicas.flatten().copied().collect();
            if found != *expected {
                let dp = shape.dp();
                return Err(format!("dp {dp} takes the samples {found:?} beside rank {first}, not {expected:?}"));
            }
        }
        Ok(())
    }
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
            ledger: BTreeMap::new(),
            high: 0,
            epochs: BTreeSet::new(),
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

    pub fn prepared(&mut self, pid: Pid, assignment: &Assignment, states: &[&State]) {
        states.iter().for_each(|state| self.holds(assignment, state));
        let held = states.iter().map(|s| s.held_as).collect();
        let report = Report { pid, committed: states.last().map(|s| s.committed), held };
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
        self.job(assignment).ledger.entry((epoch, step)).or_default().insert(rank, samples.to_vec());
    }

    pub fn sealed(&mut self, assignment: &Assignment, step: u64, sums: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let holds = job.reference.sums[step as usize] == sums;
        let ledger = job.is_ledger_right(&assignment.spec.shape, epoch, step);
        job.sealed.entry((epoch, step)).or_default().insert(rank);
        self.check(ledger.is_ok(), || format!("T-5: step {step} of epoch {epoch}: {}", ledger.unwrap_err()));
        self.check(holds, || format!("T-4: rank {rank} seals step {step} of epoch {epoch} with other gradients"));
    }

    /// By the all-reduce of its epoch.
    pub fn committed(&mut self, assignment: &Assignment, step: u64, sums: u64) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let num_sealed = job.sealed.get(&(epoch, step)).map_or(0, BTreeSet::len);
        let world = assignment.spec.shape.world();
        let is_same = job.reference.sums[step as usize] == sums;
        job.epochs.insert(epoch);
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
        let HeldAs { shape, rank: old } = state.held_as;
        let reference = &self.job(assignment).reference;
        let own = reference.shard(step, &shape, old) == state.own;
        let copy = holders::guarded_by(&shape, old)
            .is_none_or(|guarded| reference.shard(step, &shape, guarded) == state.guarded);
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

    pub fn wrote(&mut self, assignment: &Assignment, step: u64, shard: &[u64]) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let holds = self.job(assignment).reference.shard(step, &assignment.spec.shape, rank) == shard;
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
        let Some((shape, manifest)) = disk.manifests.get(&(root.to_string(), step)) else {
            return Some("is not there".into());
        };
        if manifest.len() != shape.world() {
            return Some(format!("names {} of {} shards", manifest.len(), shape.world()));
        }
        let shard = |rank| self.jobs[job].reference.shard(step, shape, rank);
        let is_bad =
            |rank: &usize| manifest.get(rank).and_then(|f| disk.read(root, step, &f.file)) != Some(&shard(*rank));
        (0..shape.world()).find(is_bad).map(|rank| format!("names a shard of rank {rank} that is not there"))
    }
}
