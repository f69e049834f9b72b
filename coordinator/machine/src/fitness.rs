//! Workers that cannot do what a job needs of them: why, and until when (T-11).
//!
//! What one worker cannot do and others can counts against that worker and not against the job: it is given no place of this job, which
//! goes on with others. Nobody stays out for good for what may be mended meanwhile: it may show again that it can fill a place
//! ([`super::warm`]) after pauses that grow, and another process under its name begins anew.
//!
//! Known at the moment only: after a restart of the coordinator everyone shows again what it can.

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_proto as proto;

use super::Context;
use super::job::Job;
use super::record::Process;

/// Workers that a job remembers as unfit, at most.
const MAX_UNFIT: usize = 1000;
/// Unfit workers that a text names one by one.
const MAX_NAMED: usize = 3;

/// For how long a worker is given no place of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until another process registers under its name.
    Anew,
    /// It is tried again after a pause, a longer one each time.
    Retry,
}

#[derive(Debug)]
struct Unfitness {
    reason: String,
    /// `None`: until it is started anew.
    again_at: Option<Duration>,
    process: Option<Process>,
}

/// The workers that are given no place of a job.
#[derive(Debug, Default)]
pub(super) struct Unfit {
    workers: BTreeMap<String, Unfitness>,
    /// How often each was found unfit since it was last fit.
    num_times: BTreeMap<String, u32>,
}

impl Unfit {
    pub fn contains(&self, worker: &str) -> bool {
        self.workers.contains_key(worker)
    }

    /// Why it is unfit, and when it is tried again.
    pub fn get(&self, worker: &str) -> Option<(&str, Option<Duration>)> {
        self.workers.get(worker).map(|u| (u.reason.as_str(), u.again_at))
    }

    /// It can fill a place after all, or is given another chance.
    pub fn remove(&mut self, worker: &str) {
        self.workers.remove(worker);
        self.num_times.remove(worker);
    }

    /// Everyone is given another chance.
    pub fn clear(&mut self) {
        *self = Unfit::default();
    }

    /// Another process of a name begins anew; the same one that only lost its stream does not.
    pub fn registered(&mut self, register: &proto::Register) {
        let process = Process::of(register);
        if self.workers.get(&register.worker_id).is_none_or(|u| u.process.as_ref() != Some(&process)) {
            self.remove(&register.worker_id);
        }
    }

    pub fn next_retry(&self) -> Option<Duration> {
        self.workers.values().filter_map(|u| u.again_at).min()
    }

    /// Says whether anyone may be tried again.
    pub fn expire(&mut self, now: Duration) -> bool {
        let before = self.workers.len();
        self.workers.retain(|_, u| u.again_at.is_none_or(|at| at > now));
        self.workers.len() < before
    }

    /// For the reason of a job that waits for workers: `; x is given no place: ...`, or nothing.
    pub fn in_words(&self) -> String {
        let named = self.workers.iter().take(MAX_NAMED);
        let mut text: String = named.map(|(worker, u)| format!("; {worker} is given no place: {}", u.reason)).collect();
        if self.workers.len() > MAX_NAMED {
            text += &format!("; nor are {} more", self.workers.len() - MAX_NAMED);
        }
        text
    }
}

impl Job {
    /// From now on the worker is given no place of this job. `reason` says what it cannot do, and why.
    pub fn mark_unfit(&mut self, cx: &mut Context<'_>, worker: &str, reason: &str, until: Until) {
        let unfit = &mut self.live.unfit;
        let is_full = unfit.workers.len() >= MAX_UNFIT && !unfit.contains(worker);
        if let Some(oldest) = unfit.workers.keys().next().cloned().filter(|_| is_full) {
            unfit.remove(&oldest);
        }
        let num_times = unfit.num_times.entry(worker.into()).or_insert(0);
        let pause = cx.config.limits.prove_again(*num_times);
        *num_times += 1;
        let (again_at, again) = match until {
            Until::Anew => (None, "until it is started anew".to_string()),
            Until::Retry => (Some(cx.now.monotonic + pause), format!("it is tried again in {} s", pause.as_secs_f64())),
        };
        let process = cx.pool.get(worker).map(|w| Process::of(&w.register));
        unfit.workers.insert(worker.into(), Unfitness { reason: reason.into(), again_at, process });
        cx.pool.forget_proof(worker);
        self.worker_event(cx, "worker.unfit", format!("{worker} is given no place: {reason}; {again}"), worker);
        cx.out.unsettled = true;
    }
}
