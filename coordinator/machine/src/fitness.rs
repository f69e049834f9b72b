//! Workers that cannot do what a job needs of them: why, and until when (T-11).
//!
//! If a worker cannot do something that others can, that counts against the worker and not against the job: the worker is given no place of
//! this job, which goes on with others. It is not excluded for good, since the cause may be mended: it may show again that it can fill a place
//! ([`crate::machine`]) after pauses that grow, and another process under its name begins anew.
//!
//! Workers that have made a step of the job, and those that others have reached, are known here, too: they are blamed last.
//!
//! Known at the moment only: after a restart of the coordinator everyone shows again what it can.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::deadlines::{Deadline, Deadlines};
use super::job_context::{JobContext, Section};
use super::record::{JobRecord, Process};
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, WorkerId};

/// Workers that a job remembers as unfit, at most.
const MAX_UNFIT: usize = 1000;
/// Unfit workers that a text names one by one.
const MAX_NAMED: usize = 3;

/// For how long a worker is given no place of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Until another process registers under its name.
    Anew,
    /// It is tried again after a pause, a longer one each time.
    Retry,
}

#[derive(Debug)]
struct Unfitness {
    reason: String,
    process: Option<Process>,
}

/// What is known of the workers that a job may have: who cannot do what it needs, and who has shown that it can.
#[derive(Debug, Default)]
pub(crate) struct Fitness {
    unfit: BTreeMap<WorkerId, Unfitness>,
    /// How often each was found unfit since it was last fit.
    num_times: BTreeMap<WorkerId, u32>,
    /// Workers that failed at this job: others come first.
    avoided: BTreeSet<WorkerId>,
    /// Workers with a place that have made a step of this job.
    established: BTreeSet<WorkerId>,
    /// Workers with a place that others have reached: they had links when a step was made, or passed a probe.
    linked: BTreeSet<WorkerId>,
    /// The newest epoch in which a step was made.
    established_in: Epoch,
}

impl Section for Fitness {
    type Fields<'a> = ();

    fn fields(_: &mut JobRecord) {}
}

impl Fitness {
    /// After a restart of the coordinator: these have places and hold the state.
    pub fn restore(established: BTreeSet<WorkerId>, has_links: bool) -> Fitness {
        let linked = if has_links { established.clone() } else { BTreeSet::new() };
        Fitness { established, linked, ..Fitness::default() }
    }

    /// The job gives its places back and waits: who cannot do what it needs still cannot.
    pub fn stand_by(&mut self) {
        self.established.clear();
        self.linked.clear();
        self.established_in = Epoch::NONE;
    }

    // ------------------------------------------------------------------------------------------------------------ the unfit

    /// From now on the worker is given no place of this job. `reason` says what it cannot do, and why.
    pub fn mark_unfit(&mut self, cx: &mut JobContext<'_, '_, Fitness>, worker: &str, reason: &str, until: Until) {
        let is_full = self.unfit.len() >= MAX_UNFIT && !self.is_unfit(worker);
        if let Some(oldest) = self.unfit.keys().next().cloned().filter(|_| is_full) {
            self.remove(cx.deadlines(), &oldest);
        }
        let num_times = self.num_times.entry(worker.into()).or_insert(0);
        let pause = cx.limits().prove_again(*num_times);
        *num_times += 1;
        let (deadline, at) = (Deadline::Retry { worker: worker.into() }, cx.now() + pause);
        let again = match until {
            Until::Anew => {
                cx.deadlines().clear(&deadline);
                "until it is started anew".to_string()
            }
            Until::Retry => {
                cx.deadlines().set(deadline, at);
                format!("it is tried again in {} s", pause.as_secs_f64())
            }
        };
        let process = cx.pool().get(worker).map(|w| Process::of(&w.register));
        self.unfit.insert(worker.into(), Unfitness { reason: reason.into(), process });
        cx.forget_proof(worker);
        cx.worker_event("worker.unfit", format!("{worker} is given no place: {reason}; {again}"), worker);
        cx.unsettle();
    }

    pub fn is_unfit(&self, worker: &str) -> bool {
        self.unfit.contains_key(worker)
    }

    pub fn why_unfit(&self, worker: &str) -> Option<&str> {
        self.unfit.get(worker).map(|u| u.reason.as_str())
    }

    /// It can fill a place after all, or is given another chance.
    pub fn remove(&mut self, deadlines: &mut Deadlines, worker: &str) {
        self.unfit.remove(worker);
        self.num_times.remove(worker);
        deadlines.clear(&Deadline::Retry { worker: worker.into() });
    }

    /// Everyone is given another chance.
    pub fn forget_unfit(&mut self, deadlines: &mut Deadlines) {
        self.unfit.clear();
        self.num_times.clear();
        deadlines.retain(|deadline| !matches!(deadline, Deadline::Retry { .. }));
    }

    /// Another process of a name begins anew; the same one that only lost its stream does not.
    pub fn registered(&mut self, deadlines: &mut Deadlines, register: &proto::Register) {
        let process = Process::of(register);
        if self.unfit.get(register.worker_id.as_str()).is_none_or(|u| u.process.as_ref() != Some(&process)) {
            self.remove(deadlines, &register.worker_id);
        }
    }

    /// Says whether anyone may be tried again.
    pub fn expire(&mut self, deadlines: &mut Deadlines, now: Duration) -> bool {
        let before = self.unfit.len();
        for deadline in deadlines.passed(now) {
            if let Deadline::Retry { worker } = &deadline {
                self.unfit.remove(worker);
                deadlines.clear(&deadline);
            }
        }
        self.unfit.len() < before
    }

    /// For the reason of a job that waits for workers: `; x is given no place: ...`, or nothing.
    pub fn in_words(&self) -> String {
        let named = self.unfit.iter().take(MAX_NAMED);
        let mut text: String = named.map(|(worker, u)| format!("; {worker} is given no place: {}", u.reason)).collect();
        if self.unfit.len() > MAX_NAMED {
            text += &format!("; nor are {} more", self.unfit.len() - MAX_NAMED);
        }
        text
    }

    /// The worker failed at this job: others come first.
    pub fn avoid(&mut self, worker: WorkerId) {
        self.avoided.insert(worker);
    }

    pub fn is_avoided(&self, worker: &str) -> bool {
        self.avoided.contains(worker)
    }

    // ------------------------------------------------------------------------------------------------------ the established

    /// Whoever commits a step knows that all have made it. Says whether it is the first of the epoch.
    pub fn establish<'a>(
        &mut self,
        epoch: Epoch,
        workers: impl Iterator<Item = &'a WorkerId>,
        has_links: bool,
    ) -> bool {
        if self.established_in == epoch {
            return false;
        }
        self.established_in = epoch;
        for worker in workers {
            self.established.insert(worker.clone());
            if has_links {
                self.linked.insert(worker.clone());
            }
        }
        true
    }

    /// The worker has made no step of this job.
    pub fn is_new(&self, worker: &str) -> bool {
        !self.established.contains(worker)
    }

    /// The worker and another have reached each other.
    pub fn link(&mut self, worker: &str) {
        self.linked.insert(worker.into());
    }

    pub fn is_linked(&self, worker: &str) -> bool {
        self.linked.contains(worker)
    }

    pub fn has_linked(&self) -> bool {
        !self.linked.is_empty()
    }

    /// A worker that had lost its place has it again, with the state of steps that it has made.
    pub fn take_back(&mut self, worker: &WorkerId) {
        self.established.insert(worker.clone());
        self.linked.insert(worker.clone());
    }

    /// The worker has no place any more.
    pub fn lose(&mut self, worker: &str) {
        self.established.remove(worker);
        self.linked.remove(worker);
    }
}
