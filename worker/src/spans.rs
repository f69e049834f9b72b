//! Spans of what this place does for others to see in a trace: an incident's healing, a step now and then.
//!
//! ```text
//!   Assign (traceparent) ──> prepare ─ wait for start ─ connect ─ heal ─ first step   each a span below the incident's
//!   a step of the sample ──> forward ─ backward ─ ... ─ commit                        each a span below the step's
//! ```
//!
//! It is told what the trainer enters, as heartbeats are, and where the place is. A span that has ended is an event of `tracing`
//! (`toroid_proto::SPAN_TARGET`); who takes it, if anybody, is not known here. While nothing is to be told it costs one comparison an operation.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use toroid_proto::SPAN_TARGET;
use toroid_torus::ids::{Epoch, JobId, Rank, Step};

use crate::sync::lock;

/// With these a place begins in a new epoch; what it enters before is of the older one.
const BEGINNINGS: [&str; 3] = ["prepare", "wait for start", "connect"];
/// And these it does before its first step.
const BEFORE_STEPS: [&str; 7] =
    ["prepare", "wait for token file", "wait for start", "connect", "heal", "resplit", "validate"];
/// Of one step: many micro-batches have many.
const MAX_OPERATIONS: usize = 512;

/// Where the worker is.
#[derive(Debug, Clone, Default)]
pub struct At {
    pub job: JobId,
    pub epoch: Epoch,
    pub rank: Rank,
}

/// Shared by the trainer and the control stream.
#[derive(Debug, Default)]
pub struct Spans {
    /// There may be something to tell.
    is_active: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    at: At,
    every: Option<NonZeroU64>,
    incident: Option<Incident>,
    step: Option<Sampled>,
}

/// The place takes part in healing.
#[derive(Debug)]
struct Incident {
    traceparent: String,
    /// What it does, since when; `None`: it has not turned to the epoch yet.
    doing: Option<(&'static str, u64)>,
    is_stepping: bool,
}

/// A step that is told.
#[derive(Debug)]
struct Sampled {
    step: Step,
    entered: Vec<(&'static str, u64)>,
}

impl Spans {
    /// Rank 0 tells of every so manyth step; `None`: of none.
    pub fn of_steps(every: Option<NonZeroU64>) -> Spans {
        let inner = Inner { every, ..Inner::default() };
        Spans { is_active: AtomicBool::new(every.is_some()), inner: Mutex::new(inner) }
    }

    /// A place is assigned; `traceparent` is the incident's that this heals, or empty.
    pub fn assigned(&self, at: At, traceparent: String) {
        let mut inner = lock(&self.inner);
        inner.at = at;
        inner.step = None;
        inner.incident = incident(traceparent);
        self.update(&inner);
    }

    /// The epoch of the place belongs to this incident, too.
    pub fn follows(&self, traceparent: String) {
        let mut inner = lock(&self.inner);
        if inner.incident.is_none() {
            inner.incident = incident(traceparent);
            self.update(&inner);
        }
    }

    /// Of the incident that the place takes part in now.
    pub fn trace_id(&self) -> Option<String> {
        if !self.is_active() {
            return None;
        }
        let inner = lock(&self.inner);
        Some(inner.incident.as_ref()?.traceparent.split('-').nth(1)?.to_string())
    }

    fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    fn update(&self, inner: &Inner) {
        self.is_active.store(inner.incident.is_some() || inner.every.is_some(), Ordering::Relaxed);
    }

    /// The trainer begins with this, to make `step`.
    pub(crate) fn enter(&self, operation: &'static str, step: Step) {
        if self.is_active() {
            lock(&self.inner).enter(operation, step, now_us());
        }
    }

    /// `step` is committed.
    pub(crate) fn commit(&self, step: Step) {
        if self.is_active() {
            let mut inner = lock(&self.inner);
            inner.commit(step, now_us());
            self.update(&inner);
        }
    }

    /// This was done for a trace, from then until then.
    pub(crate) fn done(&self, name: &str, traceparent: &str, took: (u64, u64), step: Step, error: &str) {
        let at = lock(&self.inner).at.clone();
        tell(&at, name, traceparent, took, step, error);
    }
}

fn incident(traceparent: String) -> Option<Incident> {
    (!traceparent.is_empty()).then_some(Incident { traceparent, doing: None, is_stepping: false })
}

impl Inner {
    fn enter(&mut self, operation: &'static str, step: Step, now_us: u64) {
        if let Some(incident) = &mut self.incident
            && !incident.is_stepping
            && (incident.doing.is_some() || BEGINNINGS.contains(&operation))
        {
            incident.is_stepping = operation != "idle" && !BEFORE_STEPS.contains(&operation);
            let doing = if incident.is_stepping { "first step" } else { operation };
            if let Some((before, since_us)) = incident.doing.replace((doing, now_us))
                && before != "idle"
            {
                tell(&self.at, before, &incident.traceparent, (since_us, now_us), step, "");
            }
        }
        let is_sampled = |every: NonZeroU64| self.at.rank == Rank::ZERO && step.get() % every == 0;
        if self.every.is_some_and(is_sampled) {
            let sampled = self.step.take().filter(|sampled| sampled.step == step);
            let mut sampled = sampled.unwrap_or(Sampled { step, entered: Vec::new() });
            if sampled.entered.len() < MAX_OPERATIONS {
                sampled.entered.push((operation, now_us));
            }
            self.step = Some(sampled);
        }
    }

    fn commit(&mut self, step: Step, now_us: u64) {
        if let Some(Incident { traceparent, doing: Some((doing, since_us)), .. }) =
            self.incident.take_if(|incident| incident.is_stepping)
        {
            tell(&self.at, doing, &traceparent, (since_us, now_us), step, "");
        }
        let Some(Sampled { entered, .. }) = self.step.take_if(|sampled| sampled.step == step) else { return };
        let Some((_, start_us)) = entered.first() else { return };
        let traceparent = self.of_step(step);
        let At { job, epoch, rank } = &self.at;
        let (job, epoch, rank, step_number) = (job.as_str(), epoch.get(), rank.to_wire(), step.get());
        tracing::trace!(
            target: SPAN_TARGET, traceparent, is_root = true, start_us, end_us = now_us, job, epoch, rank, step = step_number, "step"
        );
        let ends = entered.iter().skip(1).map(|(_, start_us)| *start_us).chain([now_us]);
        for ((operation, start_us), end_us) in entered.iter().zip(ends) {
            tell(&self.at, operation, &traceparent, (*start_us, end_us), step, "");
        }
    }

    /// A trace of its own: nobody else tells of this step.
    fn of_step(&self, step: Step) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("toroid 2026-11 trace of a step");
        hasher.update(self.at.job.as_bytes());
        for number in [self.at.epoch.get(), u64::from(self.at.rank.to_wire()), step.get()] {
            hasher.update(&number.to_le_bytes());
        }
        let digest = hasher.finalize().to_hex();
        format!("00-{}-{}-01", &digest[..32], &digest[32..48])
    }
}

fn tell(at: &At, name: &str, traceparent: &str, (start_us, end_us): (u64, u64), step: Step, error: &str) {
    let (job, epoch, rank, step) = (at.job.as_str(), at.epoch.get(), at.rank.to_wire(), step.get());
    tracing::trace!(target: SPAN_TARGET, traceparent, start_us, end_us, job, epoch, rank, step, error, "{name}");
}

/// Since 1970.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_survivor_is_followed_from_its_turn_to_the_epoch_to_its_first_step() {
        let spans = Spans::default();
        let doing = || lock(&spans.inner).incident.as_ref().map(|incident| (incident.doing, incident.is_stepping));
        let named = || doing().map(|(doing, is_stepping)| (doing.map(|(name, _)| name), is_stepping));
        spans.enter("forward", Step::new(8));
        assert_eq!(named(), None);
        spans.assigned(At { rank: Rank::new(3), ..At::default() }, PARENT.into());
        assert_eq!(spans.trace_id().as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for (operation, expected) in [
            ("backward", (None, false)),
            ("wait for start", (Some("wait for start"), false)),
            ("connect", (Some("connect"), false)),
            ("heal", (Some("heal"), false)),
            ("forward", (Some("first step"), true)),
            ("backward", (Some("first step"), true)),
        ] {
            spans.enter(operation, Step::new(8));
            assert_eq!(named(), Some(expected), "{operation}");
        }
        spans.commit(Step::new(8));
        assert_eq!((named(), spans.trace_id(), spans.is_active()), (None, None, false));
    }

    #[test]
    fn rank_0_tells_of_the_steps_of_the_sample() {
        let told = |rank, step| {
            let spans = Spans::of_steps(NonZeroU64::new(10));
            spans.assigned(At { rank: Rank::new(rank), ..At::default() }, String::new());
            ["forward", "backward"].into_iter().for_each(|operation| spans.enter(operation, Step::new(step)));
            lock(&spans.inner).step.as_ref().map_or(0, |sampled| sampled.entered.len())
        };
        assert_eq!((told(0, 20), told(0, 21), told(1, 20)), (2, 0, 0));
    }

    #[test]
    fn a_first_epoch_is_no_incident() {
        let spans = Spans::default();
        spans.assigned(At::default(), String::new());
        assert!(!spans.is_active());
        spans.follows(PARENT.into());
        assert!(spans.is_active());
    }
}
