//! What an observer of everything knows, and the invariants that it checks.
//!
//! - **T-2** a step is committed only when all places of the epoch have sealed it, or another has committed it.
//! - **T-3**, **T-4** whatever a place holds of a committed step is what the undisturbed run has there, in both copies.
//! - **T-5** as each sample changes every gradient, T-4 says that each was taken once, over any number of replicas.
//! - **T-6** a manifest that can be seen names all shards, and they are there, as the undisturbed run has them.
//!
//! What concerns the coordinator's decisions (T-1, T-3, T-7, T-8) is checked in `coordinator` and `sent` where its outputs are executed, who leads in `leaders`, what workers take (T-13) in
//! `worker`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use toroid_session::{Assignment, HeldAs};
use toroid_torus::geometry::Shape;
use toroid_torus::holders;
use toroid_torus::ids::{Epoch, Rank, Step};
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::Kind;
use toroid_torus::partition::partition;
use toroid_worker::optim::HostShard;
use toroid_worker::trainer::{Deed, Observer, Shown};

use crate::disk::Disk;
use crate::network::Pid;

/// What a place had when it said Prepared.
#[derive(Debug)]
pub struct Report {
    pub pid: Pid,
    /// `None`: it has no state.
    pub committed: Option<Step>,
    pub held: Vec<HeldAs>,
}

/// The run that nothing disturbs: the trainer's, in a simulation without faults.
#[derive(Debug, Default)]
pub struct Reference {
    /// By step, then by (tp, pp): the whole partition.
    states: Vec<BTreeMap<(usize, usize), HostShard>>,
    /// By step; of step 0 there is none.
    pub losses: Vec<f64>,
}

impl Reference {
    /// What a place shows becomes the reference.
    pub fn record(&mut self, step: Step, as_place: &HeldAs, shown: &Shown) {
        let place = as_place.shape.place(as_place.rank.index());
        let step = step.get() as usize;
        if self.states.len() <= step {
            self.states.resize_with(step + 1, BTreeMap::new);
        }
        let whole = self.states[step].entry((place.tp, place.pp)).or_insert_with(|| HostShard::zeros(0));
        let parts = [&mut whole.param, &mut whole.exp_avg, &mut whole.exp_avg_sq];
        for (whole, part) in parts.into_iter().zip(parts_of(&shown.state)) {
            if whole.len() < shown.range.end {
                whole.resize(shown.range.end, 0.0);
            }
            whole[shown.range.clone()].copy_from_slice(part);
        }
    }

    fn part(&self, step: u64, tp: usize, pp: usize, kind: Kind) -> &[f32] {
        let state = self.states.get(step as usize).and_then(|partitions| partitions.get(&(tp, pp)));
        state.map_or(&[], |state| match kind {
            Kind::Param => &state.param,
            Kind::Exp => &state.exp_avg,
            Kind::ExpSq => &state.exp_avg_sq,
        })
    }

    /// Padding is of no matter.
    fn is(&self, step: Step, shape: &Shape, rank: usize, shown: &Shown) -> bool {
        let place = shape.place(rank);
        [Kind::Param, Kind::Exp, Kind::ExpSq].into_iter().zip(parts_of(&shown.state)).all(|(kind, part)| {
            let whole = self.part(step.get(), place.tp, place.pp, kind);
            let end = shown.range.end.min(whole.len());
            let start = shown.range.start.min(end);
            !whole.is_empty() && whole[start..end] == part[..end - start]
        })
    }
}

fn parts_of(state: &HostShard) -> [&[f32]; 3] {
    [&state.param, &state.exp_avg, &state.exp_avg_sq]
}

#[derive(Debug)]
pub struct JobTruth {
    pub spec: Arc<JobSpec>,
    pub reference: Arc<Reference>,
    /// Ranks that have sealed, by epoch and step.
    sealed: BTreeMap<(Epoch, Step), BTreeSet<Rank>>,
    /// Highest step that anyone has committed since the newest restore, and the epoch of that.
    pub high: Step,
    /// In which somebody has committed a step.
    pub epochs: BTreeSet<Epoch>,
    since_epoch: Epoch,
    /// Who has prepared, by epoch and rank.
    pub prepared: BTreeMap<Epoch, BTreeMap<Rank, Report>>,
    /// What was decided, by epoch: the first Start.
    pub started: BTreeMap<Epoch, Option<toroid_proto::Heal>>,
    /// The newest checkpoint is not to be trusted, and no other was restored since.
    pub is_distrusted: bool,
}

/// What a trainer does with steps, until the event loop looks.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<(Assignment, Step, Deed)>>>);

impl Observer for Seen {
    fn saw(&self, place: &Assignment, step: Step, deed: Deed) {
        self.0.lock().expect("nobody panics with it").push((place.clone(), step, deed));
    }
}

impl Seen {
    pub fn take(&self) -> Vec<(Assignment, Step, Deed)> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

#[derive(Debug, Default)]
pub struct Truth {
    pub jobs: BTreeMap<String, JobTruth>,
    /// The first thing that must not be.
    pub violation: Option<String>,
    /// Nothing disturbs this run: what it does is right.
    pub recorded: Option<Reference>,
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
            reference: if self.recorded.is_some() { Arc::default() } else { crate::reference::of(spec) },
            sealed: BTreeMap::new(),
            high: Step::ZERO,
            epochs: BTreeSet::new(),
            since_epoch: Epoch::NONE,
            prepared: BTreeMap::new(),
            started: BTreeMap::new(),
            is_distrusted: false,
        };
        self.jobs.insert(job.to_string(), truth);
    }

    /// A job that has ended may go on with more steps than it had.
    pub fn resumed(&mut self, job: &str, spec: &JobSpec) {
        let Some(job) = self.jobs.get_mut(job).filter(|job| *job.spec != *spec) else { return };
        job.spec = Arc::new(spec.clone());
        job.reference = crate::reference::of(spec);
    }

    fn job(&mut self, assignment: &Assignment) -> &mut JobTruth {
        self.jobs.get_mut(assignment.job_id.as_str()).expect("an assigned job was submitted")
    }

    pub fn prepared(&mut self, pid: Pid, job: &str, epoch: Epoch, rank: Rank, committed: Step, held: &[HeldAs]) {
        let committed = (!held.is_empty()).then_some(committed);
        let Some(job) = self.jobs.get_mut(job) else { return };
        job.prepared.entry(epoch).or_default().insert(rank, Report { pid, committed, held: held.to_vec() });
    }

    /// A restore that had to be was decided: what was committed after that step is given up.
    pub fn restores(&mut self, job: &str, epoch: Epoch, step: Step) {
        let job = self.jobs.get_mut(job).expect("a job that is assigned was submitted");
        job.high = step;
        job.since_epoch = epoch;
        job.is_distrusted = false;
    }

    pub fn saw(&mut self, place: &Assignment, step: Step, deed: &Deed) {
        match deed {
            Deed::Sealed => {
                let (rank, epoch) = (place.rank, place.epoch);
                self.job(place).sealed.entry((epoch, step)).or_default().insert(rank);
            }
            Deed::Committed => self.committed(place, step),
            Deed::CommittedToHeal => self.committed_to_heal(place, step),
            Deed::Holds { as_place, own, copy } => match &mut self.recorded {
                Some(reference) => reference.record(step, as_place, own),
                None => self.holds(place, step, as_place, own, copy.as_ref()),
            },
        }
    }

    /// By the all-reduce of its epoch.
    fn committed(&mut self, assignment: &Assignment, step: Step) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        let num_sealed = job.sealed.get(&(epoch, step)).map_or(0, BTreeSet::len);
        let world = assignment.spec.shape.world();
        job.epochs.insert(epoch);
        if epoch >= job.since_epoch {
            job.high = job.high.max(step);
        }
        self.check(num_sealed == world, || {
            format!("T-2: rank {rank} commits step {step} in epoch {epoch} when {num_sealed} of {world} have sealed it")
        });
    }

    /// By what another place has committed.
    fn committed_to_heal(&mut self, assignment: &Assignment, step: Step) {
        let (rank, epoch) = (assignment.rank, assignment.epoch);
        let job = self.job(assignment);
        // In an epoch before a restore, what others have committed is not kept any more.
        let is_committed = job.high >= step || epoch < job.since_epoch;
        self.check(is_committed, || format!("T-2: rank {rank} commits step {step} in epoch {epoch}, nobody else has"));
    }

    fn holds(&mut self, place: &Assignment, step: Step, as_place: &HeldAs, own: &Shown, copy: Option<&Shown>) {
        let (rank, epoch) = (place.rank, place.epoch);
        let (shape, old) = (as_place.shape, as_place.rank.index());
        let reference = Arc::clone(&self.job(place).reference);
        let is_right = reference.is(step, &shape, old, own);
        let guarded = holders::guarded_by(&shape, old);
        let copied = guarded.zip(copy).is_none_or(|(guarded, copy)| reference.is(step, &shape, guarded, copy));
        self.check(is_right, || format!("T-4: rank {rank} holds another shard of step {step} in epoch {epoch}"));
        self.check(copied, || {
            format!("T-3: rank {rank} holds a stale copy of the shard of step {step} in epoch {epoch}")
        });
    }

    /// What is wrong with a checkpoint that can be seen.
    pub fn incomplete(&self, disk: &Disk, job: &str, root: &str, step: u64) -> Option<String> {
        let Some(manifest) = disk.manifest(root, step) else {
            return Some("is not there".into());
        };
        let shape = manifest.shape;
        if manifest.files.len() != shape.world() {
            return Some(format!("names {} of {} shards", manifest.files.len(), shape.world()));
        }
        let reference = &self.jobs.get(job)?.reference;
        for file in &manifest.files {
            let Some(bytes) = disk.read(root, step, &file.file) else {
                return Some(format!("names a shard of rank {} that is not there", file.rank));
            };
            if bytes.len() as u64 != file.bytes {
                return Some(format!("names a shard of rank {} of another size", file.rank));
            }
            let place = shape.place(file.rank);
            let partition = partition(&manifest.job.model, &shape, place.tp, place.pp);
            for entry in &file.entries {
                let slice = partition.slice(&entry.tensor)?;
                let start = slice.offset + entry.range.start;
                let whole = reference.part(step, place.tp, place.pp, entry.kind);
                let Some(values) = whole.get(start..start + entry.range.len()) else { continue };
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                if blake3::hash(&bytes).to_hex().to_string() != entry.digest {
                    return Some(format!("has another {} of rank {} than the undisturbed run", entry.name, file.rank));
                }
            }
        }
        None
    }
}
