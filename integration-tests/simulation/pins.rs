//! Users who pin checkpoints, and what must hold of all that are kept.
//!
//! - **T-6** a checkpoint that the coordinator lists can be seen, from its publishing until its removal is ordered.
//! - What a user has pinned, and was told so, can be seen to the end: whatever dies, and whatever the job goes back to.
//!
//! One whose bytes rot is set aside by who finds that: it is nobody's to keep.

use toroid_coordinator::machine::record::JobRecord;
use toroid_coordinator::machine::{Input, Reply, RequestId};
use toroid_torus::ids::Step;

use crate::coordinator::checkpoint_root;
use crate::random::Random;
use crate::world::World;

/// Seeds of a hundred in which users pin checkpoints.
const PERCENT_PINNING: u64 = 20;

/// Drawn apart from all else, so that a seed goes on showing what it showed before there were pins.
pub fn has_pins(seed: u64) -> bool {
    Random::new(!seed).percent(PERCENT_PINNING)
}

impl World {
    /// A user pins every other checkpoint that comes.
    pub fn pin_some(&mut self) {
        if !self.scenario.has_pins || !self.env.is_coordinator_awake {
            return;
        }
        let newest = |r: &JobRecord| Some((r.id.to_string(), r.last_checkpoint()?.step));
        let is_new = |pin: &(String, Step)| pin.1.get() % 2 == 1 && !self.pins.contains_key(pin);
        let new: Vec<(String, Step)> = self.records().filter_map(newest).filter(is_new).collect();
        for (job, step) in new {
            self.env.tell(|| format!("a user pins step {step} of {job}"));
            let named = job.clone();
            let request = self.request(|request| Input::Pin { request, job, step });
            self.pins.insert((named, step), request);
        }
    }

    /// What was pinned is there.
    pub fn check_pins(&mut self) {
        let is_pinned = |request: &RequestId| matches!(self.replies.get(request), Some(Ok(Reply::Pinned { .. })));
        let mut pinned = self.pins.iter().filter(|(_, request)| is_pinned(request)).map(|(pin, _)| pin);
        let gone = pinned.find(|(job, step)| self.is_gone(job, *step)).cloned();
        let what =
            || gone.as_ref().map_or_else(String::new, |(job, step)| format!("step {step} of {job} is pinned and gone"));
        self.env.truth.check(gone.is_none(), what);
    }

    /// What is listed is there.
    pub fn check_listed(&mut self, record: &JobRecord) {
        let mut listed = record.checkpoints.iter().filter(|c| !c.is_removal_ordered).map(|c| c.step);
        let gone = listed.find(|step| self.is_gone(&record.id, *step));
        let what = || format!("T-6: step {} of {} is listed and gone", gone.unwrap_or_default(), record.id);
        self.env.truth.check(gone.is_none(), what);
    }

    fn is_gone(&self, job: &str, step: Step) -> bool {
        let (disk, root) = (&self.env.disk, checkpoint_root(job));
        !disk.has_manifest(&root, step.get()) && !disk.damaged.contains(&(root, step.get()))
    }
}
