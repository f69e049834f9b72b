//! Incidents: what each failure cost, measured from its being seen to the next step that all commit.
//!
//! ```text
//!   last sign of life ── detect ──> seen ── fence ──> Assigns sent ── decide ──> Start sent ── heal, redo ──> first commit
//!                                    ^                    │                │
//!                                    └────────────────────┴────────────────┘ another failure on the way: the same incident
//! ```
//!
//! - At most one incident of a job is open. Every moment between its being seen and its end belongs to one phase: the phases add up.
//! - An incident is stored when it is opened, when a decision is made about it and when it ends, so that a coordinator that starts
//!   again goes on with it. The time that it was away counts as fence: nothing was decided meanwhile.
//! - Only a step of an epoch that was started after the newest failure ends it. What a place of the old epoch commits or says late does not.
//! - Durations are by the monotonic clock ([`super::clock`]), whatever becomes of the calendar.
//! - After a restore the steps that were lost are made again: that time is added when the job is where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toroid_torus::ids::{Rank, Step, WorkerId};

use super::clock::{Moment, Now};
use super::job_context::{JobContext, Section};
use super::record::{Incident, JobRecord, MAX_INCIDENTS, Rung, SeenBy};

/// Causes of one incident that are told one by one.
const MAX_CAUSES: usize = 8;
/// Workers of one incident that are named.
const MAX_WORKERS: usize = 256;

/// What the time of an open incident counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IncidentPhase {
    Fence,
    Decide,
    Heal,
}

#[derive(Debug)]
struct Open {
    number: u64,
    phase: IncidentPhase,
    since: Duration,
    num_causes: usize,
}

/// Lost steps are being made again.
#[derive(Debug)]
struct Redo {
    number: u64,
    until_step: Step,
    since: Duration,
    /// In coordinators before this one.
    before: Duration,
}

/// The incidents of a job.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    /// The newest [`MAX_INCIDENTS`], by number.
    all: BTreeMap<u64, Incident>,
    open: Option<Open>,
    redo: Option<Redo>,
}

/// What of the record is about incidents.
pub(crate) struct IncidentFields<'a> {
    pub num_incidents: &'a mut u64,
    pub lost_s: &'a mut f64,
    pub lost_steps: &'a mut u64,
}

impl Section for Incidents {
    type Fields<'a> = IncidentFields<'a>;

    fn fields(record: &mut JobRecord) -> IncidentFields<'_> {
        let JobRecord { num_incidents, lost_s, lost_steps, .. } = record;
        IncidentFields { num_incidents, lost_s, lost_steps }
    }
}

type Cx<'a, 'b> = JobContext<'a, 'b, Incidents>;

/// A failure or a move, as it is seen.
pub(crate) struct Sighting {
    pub by: SeenBy,
    pub cause: String,
    /// Silence before it was seen.
    pub detect: Duration,
    pub place: Option<(Rank, WorkerId)>,
}

impl Incidents {
    /// As the store has them. One that is open goes on.
    pub fn restore(incidents: Vec<Incident>, now: Now) -> Incidents {
        let all: BTreeMap<u64, Incident> = incidents.into_iter().map(|i| (i.number, i)).collect();
        let mut restored = Incidents { all, open: None, redo: None };
        let Some(newest) = restored.all.values_mut().last() else { return restored };
        let (number, since) = (newest.number, newest.since.take());
        if newest.resolved {
            // Lost steps were being made again.
            restored.redo = since.map(|since| {
                let (until_step, before) = (newest.step, since.elapsed(now));
                Redo { number, until_step, since: now.monotonic, before }
            });
        } else {
            // One of an older version has only the calendar.
            let by_calendar = || ((now.unix_ms - newest.unix_ms) as f64 / 1e3 - newest.total_s()).max(0.0);
            let lasted_s = since.map_or_else(by_calendar, |since| since.elapsed(now).as_secs_f64());
            let (phase, phase_s) = match newest.is_healing {
                true => (IncidentPhase::Heal, &mut newest.heal_s),
                false => (IncidentPhase::Fence, &mut newest.fence_s),
            };
            *phase_s += lasted_s;
            restored.open = Some(Open { number, phase, since: now.monotonic, num_causes: MAX_CAUSES });
        }
        restored
    }

    /// As the store is to have it.
    pub fn stored(&self, number: u64, now: Now) -> Option<Incident> {
        let open = self.open.as_ref().filter(|o| o.number == number);
        let is_healing = open.is_some_and(|o| o.phase == IncidentPhase::Heal);
        let open = open.map(|o| now.monotonic.saturating_sub(o.since));
        let redo = self.redo.as_ref().filter(|r| r.number == number);
        let redo = redo.map(|r| now.monotonic.saturating_sub(r.since) + r.before);
        let since = open.or(redo).map(|ago| Moment::before(now, ago));
        self.all.get(&number).map(|incident| Incident { since, is_healing, ..incident.clone() })
    }

    /// The newest, ascending by number.
    pub fn all(&self) -> impl Iterator<Item = &Incident> {
        self.all.values()
    }

    pub fn into_all(self) -> impl Iterator<Item = Incident> {
        self.all.into_values()
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Its number.
    pub fn open(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.number)
    }

    /// The epoch that ends the open one was started: its first step does.
    pub fn is_healing(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.phase == IncidentPhase::Heal)
    }

    /// Of the open one, by now.
    pub fn open_s(&self, monotonic: Duration) -> f64 {
        let Some(open) = &self.open else { return 0.0 };
        let incident = &self.all[&open.number];
        incident.detect_s + incident.total_s() + monotonic.saturating_sub(open.since).as_secs_f64()
    }

    /// The time since the last change belongs to the phase so far.
    fn enter(&mut self, phase: IncidentPhase, monotonic: Duration) -> Option<&mut Incident> {
        let open = self.open.as_mut()?;
        let incident = self.all.get_mut(&open.number).expect("an open incident is kept");
        let elapsed_s = monotonic.saturating_sub(open.since).as_secs_f64();
        match open.phase {
            IncidentPhase::Fence => incident.fence_s += elapsed_s,
            IncidentPhase::Decide => incident.decide_s += elapsed_s,
            IncidentPhase::Heal => incident.heal_s += elapsed_s,
        }
        open.phase = phase;
        open.since = monotonic;
        Some(incident)
    }

    /// Opens an incident, or adds to the one that is open.
    pub fn seen(&mut self, cx: &mut Cx<'_, '_>, sighting: Sighting) {
        self.close_redo(cx);
        if self.is_open() {
            self.add(cx, sighting);
        } else {
            self.begin(cx, sighting);
        }
    }

    fn begin(&mut self, cx: &mut Cx<'_, '_>, sighting: Sighting) {
        let fields = cx.edit();
        *fields.num_incidents += 1;
        let number = *fields.num_incidents;
        let step = cx.committed();
        let text = format!("incident {number}: {}, seen by {}, step {step}", sighting.cause, sighting.by.name());
        let (rank, worker) = sighting.place.unzip();
        let incident = Incident {
            job: cx.record.id.clone(),
            number,
            unix_ms: cx.moment().unix_ms,
            cause: sighting.cause,
            seen_by: sighting.by,
            ranks: rank.into_iter().collect(),
            workers: worker.into_iter().collect(),
            rung: Rung::Wait,
            reason: "not decided yet".into(),
            step,
            resumed_step: Step::ZERO,
            steps_lost: 0,
            epoch: cx.record.epoch,
            detect_s: sighting.detect.as_secs_f64(),
            fence_s: 0.0,
            decide_s: 0.0,
            heal_s: 0.0,
            redo_s: 0.0,
            resolved: false,
            is_healing: false,
            since: None,
        };
        self.all.insert(number, incident);
        self.open = Some(Open { number, phase: IncidentPhase::Fence, since: cx.now(), num_causes: 1 });
        if number > MAX_INCIDENTS {
            self.all.remove(&(number - MAX_INCIDENTS));
        }
        cx.store_incident(number);
        cx.event("incident.begin", text);
    }

    fn add(&mut self, cx: &mut Cx<'_, '_>, sighting: Sighting) {
        let Some(open) = &mut self.open else { return };
        open.num_causes += 1;
        let (number, is_told) = (open.number, open.num_causes <= MAX_CAUSES);
        let Some(incident) = self.enter(IncidentPhase::Fence, cx.now()) else { return };
        if is_told {
            incident.cause = format!("{}; {}", incident.cause, sighting.cause);
        }
        if let Some((rank, worker)) = sighting.place {
            incident.ranks.insert(rank);
            if incident.workers.len() < MAX_WORKERS {
                incident.workers.insert(worker);
            }
        }
        cx.store_incident(number);
    }

    /// The job waits for workers.
    pub fn waits(&mut self, cx: &mut Cx<'_, '_>, reason: &str) {
        let Some(incident) = self.enter(IncidentPhase::Fence, cx.now()) else { return };
        if incident.rung != Rung::Wait || incident.reason != reason {
            incident.rung = Rung::Wait;
            incident.reason = reason.into();
            cx.store_incident(incident.number);
        }
    }

    /// The next epoch is on its way.
    pub fn fenced(&mut self, cx: &mut Cx<'_, '_>, rung: Rung, reason: &str) {
        let Some(incident) = self.enter(IncidentPhase::Decide, cx.now()) else { return };
        let has_replaced = !matches!(incident.rung, Rung::Wait | Rung::Reconnect);
        if rung == Rung::Reconnect && has_replaced {
            // To begin again does not undo what was done about the loss.
            if !incident.reason.contains(reason) {
                incident.reason = format!("{}; {reason}", incident.reason);
            }
        } else {
            incident.rung = if incident.steps_lost > 0 { Rung::Restore } else { rung };
            incident.reason = reason.into();
        }
        cx.store_incident(incident.number);
    }

    /// From the reports: `step` is the highest that was committed.
    pub fn reported(&mut self, step: Step) {
        let Some(open) = &self.open else { return };
        if let Some(incident) = self.all.get_mut(&open.number) {
            incident.step = incident.step.max(step);
        }
    }

    /// All go on from `step`. A heal loses nothing: a step that only the dead had committed is made again, bit for bit. What a restore
    /// loses counts from now on, whatever becomes of the incident.
    pub fn decided(&mut self, cx: &mut Cx<'_, '_>, step: Step) {
        let Some(incident) = self.enter(IncidentPhase::Heal, cx.now()) else { return };
        incident.resumed_step = step;
        incident.epoch = cx.record.epoch;
        count_lost(incident, cx, step);
        cx.store_incident(incident.number);
    }

    /// A step beyond those that the epoch began with is committed, or all have finished.
    pub fn over(&mut self, cx: &mut Cx<'_, '_>) {
        let step_s = cx.curve.progress().step_s().unwrap_or(0.0);
        let Some(incident) = self.enter(IncidentPhase::Heal, cx.now()) else { return };
        incident.redo_s = incident.heal_s.min(step_s);
        incident.heal_s -= incident.redo_s;
        incident.resolved = true;
        let incident = incident.clone();
        self.open = None;
        *cx.edit().lost_s += incident.detect_s + incident.total_s();
        if incident.steps_lost > 0 {
            let (number, until_step) = (incident.number, incident.step);
            self.redo = Some(Redo { number, until_step, since: cx.now(), before: Duration::ZERO });
        }
        cx.store_incident(incident.number);
        cx.event("incident.resolved", in_words(&incident));
    }

    /// A newer step is committed: those that were lost may all have been made again.
    pub fn committed_advanced(&mut self, cx: &mut Cx<'_, '_>) {
        if self.redo.as_ref().is_some_and(|r| cx.committed() >= r.until_step) {
            self.close_redo(cx);
        }
    }

    /// The job ends: what is open stays unresolved, and its time counts, as do the steps beyond the checkpoint that was to be read.
    pub fn abandoned(&mut self, cx: &mut Cx<'_, '_>) {
        self.close_redo(cx);
        let Some(incident) = self.enter(IncidentPhase::Fence, cx.now()) else { return };
        count_lost(incident, cx, cx.record.restore_step);
        *cx.edit().lost_s += incident.detect_s + incident.total_s();
        cx.store_incident(incident.number);
        self.open = None;
    }

    fn close_redo(&mut self, cx: &mut Cx<'_, '_>) {
        let Some(redo) = self.redo.take() else { return };
        let redo_s = (cx.now().saturating_sub(redo.since) + redo.before).as_secs_f64();
        let Some(incident) = self.all.get_mut(&redo.number) else { return };
        incident.redo_s += redo_s;
        *cx.edit().lost_s += redo_s;
        cx.store_incident(redo.number);
    }
}

/// What the incident loses where all go on from `step`, in the place of what was counted of it before.
fn count_lost(incident: &mut Incident, cx: &mut Cx<'_, '_>, step: Step) {
    let counted = incident.steps_lost;
    incident.steps_lost = if incident.rung == Rung::Restore { incident.step.since(step) } else { 0 };
    let lost_steps = cx.edit().lost_steps;
    *lost_steps = lost_steps.saturating_sub(counted) + incident.steps_lost;
}

fn in_words(i: &Incident) -> String {
    let lost = match i.steps_lost {
        0 => "no step lost".into(),
        1 => "1 step lost".into(),
        n => format!("{n} steps lost"),
    };
    format!(
        "incident {}: {}, {lost}, goes on from step {} after {:.3} s (detect {:.3}, fence {:.3}, decide {:.3}, heal {:.3}, redo {:.3})",
        i.number,
        i.rung.name(),
        i.resumed_step,
        i.total_s(),
        i.detect_s,
        i.fence_s,
        i.decide_s,
        i.heal_s,
        i.redo_s
    )
}

/// For users.
pub(crate) fn view(i: &Incident) -> toroid_proto::Incident {
    let workers: &BTreeSet<WorkerId> = &i.workers;
    toroid_proto::Incident {
        number: i.number,
        unix_ms: i.unix_ms,
        cause: i.cause.clone(),
        seen_by: i.seen_by.name().into(),
        ranks: i.ranks.iter().map(|r| r.to_wire()).collect(),
        workers: workers.iter().map(WorkerId::to_string).collect(),
        rung: i.rung.name().into(),
        reason: i.reason.clone(),
        step: i.step.get(),
        resumed_step: i.resumed_step.get(),
        steps_lost: i.steps_lost,
        epoch: i.epoch.get(),
        detect_s: i.detect_s,
        fence_s: i.fence_s,
        decide_s: i.decide_s,
        heal_s: i.heal_s,
        redo_s: i.redo_s,
        total_s: i.total_s(),
        resolved: i.resolved,
        // Known to the coordinator around the machine.
        ..Default::default()
    }
}
