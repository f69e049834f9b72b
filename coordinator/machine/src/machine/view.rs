//! Jobs and workers as users see them.
//!
//! What is in a job's curve (its last record, its curve) is filled in by whoever holds the curve's file.

use super::Machine;
use super::workers::protocol_with;
use crate::clock::Now;
use crate::folders::folder;
use crate::incidents;
use crate::job::Job;
use crate::keeping;
use crate::pool::{Cordoned, Standing, Worker};
use crate::proof::ProofStage;
use crate::record::{Checkpoint, Event, JobRecord, LeftOut, Source, SourceValidation, Validation};
use crate::straggler::Straggler;
use toroid_proto as proto;
use toroid_torus::ids::{JobId, Rank, Step, WorkerId};
use toroid_torus::job::SourceConfig;
use toroid_torus::labels::{Labels, RESERVED};
use toroid_torus::mixture::{Mixture, Part, WHOLE};

impl Machine {
    /// The job without `last_step`, `damaged` and `curve`.
    pub fn view(&self, id: &str, now: Now) -> Option<proto::Job> {
        let job = self.jobs.get(id)?;
        Some(self.view_of(job, now))
    }

    /// Of a job, ascending; none of one that there is not.
    pub fn validations_from(&self, id: &str, step: Step) -> Vec<proto::Validation> {
        let job = self.jobs.get(id);
        job.into_iter().flat_map(|job| job.validations().starting_at(step)).map(validation).collect()
    }

    pub fn view_workers(&self, now: Now) -> Vec<proto::WorkerInfo> {
        let stragglers = |place: &Option<(JobId, Rank)>| {
            let (job, rank) = place.as_ref()?;
            Some((self.jobs.get(job)?.stragglers(), *rank))
        };
        let workers = self.pool.iter().map(|w| (w, WorkerStanding::of(self.pool.standing(w), now)));
        let workers = workers.map(|(w, standing)| proto::WorkerInfo {
            state: standing.state.into(),
            state_reason: standing.reason,
            aside_s: standing.aside_s,
            worker_id: w.register.worker_id.clone(),
            host: w.register.host.clone(),
            device: w.register.device.clone(),
            fingerprint: w.register.fingerprint.clone(),
            fingerprint_bf16: w.register.fingerprint_bf16.clone(),
            build_version: w.register.build_version.clone(),
            protocol_version: protocol_with(&w.register).unwrap_or_default(),
            job_id: w.place.as_ref().map_or_else(String::new, |(job, _)| job.to_string()),
            rank: w.place.as_ref().map_or(-1, |(_, rank)| rank.to_wire() as i32),
            silent_s: now.monotonic.saturating_sub(w.last_heard).as_secs_f64(),
            pid: w.register.pid,
            memory_bytes: w.memory_bytes[0],
            memory_free_bytes: w.memory_bytes[1],
            compute_s: stragglers(&w.place).and_then(|(s, rank)| s.compute_s(rank)).unwrap_or(0.0),
            is_cordoned: self.pool.cordon_of(w).is_some(),
            labels: labels(w),
            links: w.links.clone(),
            slow_factor: stragglers(&w.place).and_then(|(s, rank)| s.of(rank)).map_or(0.0, Straggler::factor),
            ..self.warm_up_of(w, now)
        });
        workers.collect()
    }

    /// Whether a worker without a place has shown that it can fill one.
    fn warm_up_of(&self, worker: &Worker, now: Now) -> proto::WorkerInfo {
        let none = proto::WorkerInfo::default();
        if worker.place.is_some() {
            return none;
        }
        let unfit = self.jobs.values().find_map(|job| {
            let (reason, again_at) = job.unfitness(&worker.register.worker_id)?;
            Some((&job.record().id, reason, again_at))
        });
        if let Some((job, reason, again_at)) = unfit {
            return proto::WorkerInfo {
                warm_up: proto::WarmUpState::Failed.into(),
                warm_up_job: job.to_string(),
                warm_up_reason: reason.into(),
                warm_up_retry_s: again_at.map_or(0.0, |at| at.saturating_sub(now.monotonic).as_secs_f64()),
                ..none
            };
        }
        let stranger =
            self.jobs.values().find_map(|job| Some((&job.record().id, job.strangeness(&self.pool, worker)?)));
        if let Some((job, reason)) = stranger {
            return proto::WorkerInfo {
                warm_up: proto::WarmUpState::Failed.into(),
                warm_up_job: job.to_string(),
                warm_up_reason: reason,
                ..none
            };
        }
        let Some(proof) = &worker.proof else { return none };
        let state = match proof.stage {
            ProofStage::Ready => proto::WarmUpState::Ready,
            ProofStage::Doubtful(_) => proto::WarmUpState::Failed,
            ProofStage::Prepares | ProofStage::Prepared | ProofStage::Probed(_) => proto::WarmUpState::Proving,
        };
        let (warm_up_job, warm_up_reason) = (proof.job.to_string(), proof.in_words());
        proto::WorkerInfo { warm_up: state.into(), warm_up_job, warm_up_reason, ..none }
    }

    /// Events of a job after the first `seen`, and how many there are by now. Those that are no longer kept are left out.
    pub fn events_since(&self, id: &str, seen: u64) -> (Vec<proto::Event>, u64) {
        let Some(job) = self.jobs.get(id) else { return (Vec::new(), 0) };
        let record = job.record();
        let num_new = usize::try_from(record.num_events.saturating_sub(seen)).unwrap_or(usize::MAX);
        let skip = record.events.len().saturating_sub(num_new);
        (record.events.iter().skip(skip).map(event).collect(), record.num_events)
    }

    fn view_of(&self, job: &Job, now: Now) -> proto::Job {
        let record = job.record();
        let places = self.places(job);
        let progress = job.core().curve.progress();
        let committed = job.core().committed();
        let is_ended = record.state.is_ended();
        let eta_s = match progress.step_s() {
            Some(step_s) if !is_ended => job.core().total().since(committed) as f64 * step_s,
            _ => 0.0,
        };
        proto::Job {
            id: record.id.to_string(),
            name: record.spec.name.clone(),
            state: proto::JobState::from(record.state).into(),
            reason: record.reason.clone(),
            shape: Some((&record.shape).into()),
            full_shape: Some((&record.spec.shape).into()),
            epoch: record.epoch.get(),
            committed_step: committed.get(),
            total_steps: record.spec.steps,
            num_params: record.data.as_ref().map_or_else(|| record.spec.model.num_params(), |d| d.num_params),
            data_digest: record.data.as_ref().map_or_else(String::new, |d| d.digest.clone()),
            last_step: None,
            first_loss: progress.first_loss(),
            tokens_per_s: progress.tokens_per_s(),
            eta_s,
            goodput: goodput(record, progress.useful_s(), now),
            places_alive: places.iter().filter(|p| p.alive).count() as u32,
            places,
            spares: self.pool.spares().count() as u32,
            spares_aside: self.pool.iter().filter(|w| is_left_out(self.pool.standing(w))).count() as u32,
            checkpoints: checkpoints(record),
            pinned_steps: record.pinned.iter().map(|step| step.get()).collect(),
            validations: job.validations().all().map(validation).collect(),
            curve: Vec::new(),
            submitted_unix_ms: record.submitted_unix_ms,
            started_unix_ms: record.started_unix_ms,
            finished_unix_ms: record.finished_unix_ms,
            folder: folder(record, &self.config.jobs_dir),
            job_toml: record.spec.to_toml(),
            events: record.events.iter().map(event).collect(),
            incidents: job.incidents().all().map(incidents::view).collect(),
            lost_s: record.lost_s + job.incidents().open_s(now.monotonic),
            lost_steps: record.lost_steps,
            damaged: String::new(),
            inputs: Some(inputs(record, committed)),
            stragglers: job.stragglers().named().map(|s| straggler(record, s)).collect(),
            missing_steps: progress.num_missing(),
            skipped_steps: progress.num_skipped(),
            unsaved: job.unsaved(now.monotonic),
            saving: job.saving(),
            term: self.config.term.get(),
            store_trouble: String::new(),
            priority: record.spec.priority,
            user: record.user.clone(),
            is_held: record.is_held,
            waited_s: record.waited.map_or(0.0, |watch| watch.elapsed_s(now)),
        }
    }

    fn places(&self, job: &Job) -> Vec<proto::PlaceInfo> {
        let grid = &job.record().shape;
        let places = (0..grid.world()).map(|rank| {
            let worker = job.record().worker_at(Rank::new(rank));
            let connected = worker.and_then(|w| self.pool.get(w));
            let coord = grid.coord(rank);
            proto::PlaceInfo {
                rank: rank as u32,
                x: coord.x as u32,
                y: coord.y as u32,
                worker_id: worker.map_or_else(String::new, WorkerId::to_string),
                alive: connected.is_some(),
                committed_step: job.core().epoch.committed_by(Rank::new(rank)).unwrap_or_default().get(),
                host: connected.map_or_else(String::new, |w| w.register.host.clone()),
                links: connected.map(|w| w.links.clone()).unwrap_or_default(),
            }
        });
        places.collect()
    }
}

/// All that a job may ask for.
fn labels(worker: &Worker) -> Labels {
    let own = RESERVED.iter().filter_map(|name| Some((name.to_string(), worker.label(name)?.to_string())));
    own.filter(|(_, value)| !value.is_empty()).chain(worker.register.labels.clone()).collect()
}

fn is_left_out(standing: Standing<'_>) -> bool {
    matches!(standing, Standing::Aside(_) | Standing::Cordoned(_) | Standing::Retired)
}

/// A worker's standing, as users see it.
struct WorkerStanding {
    state: proto::WorkerState,
    /// Why it is given no place.
    reason: String,
    aside_s: f64,
}

impl WorkerStanding {
    fn of(standing: Standing<'_>, now: Now) -> WorkerStanding {
        let (state, reason, until) = match standing {
            Standing::Placed => (proto::WorkerState::Placed, String::new(), None),
            Standing::Spare => (proto::WorkerState::Spare, String::new(), None),
            Standing::Aside(aside) => (proto::WorkerState::Aside, aside.reason.into(), Some(aside.until)),
            Standing::Cordoned(Cordoned { cordon, host }) => {
                let why = if cordon.reason.is_empty() { String::new() } else { format!(": {}", cordon.reason) };
                let (what, how) = match host {
                    None => ("it", "toroid uncordon".to_string()),
                    Some(host) => ("its host", format!("toroid uncordon --host {host}")),
                };
                let reason = format!("a user cordoned {what}{why}; `{how}` takes it back");
                (proto::WorkerState::Cordoned, reason, None)
            }
            Standing::Retired => {
                let reason = "it was drained, or computed wrongly: this process gets no place any more";
                (proto::WorkerState::Retired, reason.into(), None)
            }
        };
        let aside_s = until.map_or(0.0, |until| until.saturating_sub(now.monotonic).as_secs_f64());
        WorkerStanding { state, reason, aside_s }
    }
}

/// Time of kept steps over all time since the start, 0 to 1.
fn goodput(record: &JobRecord, useful_s: f64, now: Now) -> f64 {
    // A job of an older version has only the calendar.
    let by_calendar = || {
        let end = if record.finished_unix_ms > 0 { record.finished_unix_ms } else { now.unix_ms };
        (end - record.started_unix_ms) as f64 / 1e3
    };
    let all_s = record.trained.as_ref().map_or_else(by_calendar, |watch| watch.elapsed_s(now));
    if record.started_unix_ms == 0 || all_s <= 0.0 { 0.0 } else { (useful_s / all_s).min(1.0) }
}

fn event(e: &Event) -> proto::Event {
    proto::Event {
        unix_ms: e.unix_ms,
        kind: e.kind.clone(),
        text: e.text.clone(),
        step: e.step.get(),
        epoch: e.epoch.get(),
        worker_id: e.worker.clone(),
    }
}

/// With the notes on the job itself, which are known before its workers have read anything.
fn inputs(record: &JobRecord, committed: Step) -> proto::Inputs {
    let found = record.inputs.as_ref();
    let left_out = |l: &LeftOut| proto::LeftOut {
        reason: l.reason.clone(),
        num_files: l.num_files,
        bytes: l.bytes,
        first: l.first.clone(),
    };
    proto::Inputs {
        sources: found.map_or_else(Vec::new, |i| sources(record, &i.sources, committed)),
        summary: found.map_or_else(String::new, |i| i.summary.clone()),
        left_out: found.map_or_else(Vec::new, |i| i.left_out.iter().map(left_out).collect()),
        notes: record.spec.notes().into_iter().chain(found.into_iter().flat_map(|i| i.notes.clone())).collect(),
    }
}

/// What each source has given of the samples of all committed steps.
fn sources(record: &JobRecord, told: &[Source], committed: Step) -> Vec<proto::Source> {
    let (spec, configs) = (&record.spec, &record.spec.data.sources);
    if told.is_empty() || told.len() != configs.len() {
        return Vec::new();
    }
    let mixture = Mixture::of_job(spec, &told.iter().map(|source| source.num_samples).collect::<Vec<_>>());
    let num = spec.samples_of(committed.get());
    let given = mixture.given(mixture.end().map_or(num, |end| end.min(num)));
    let source = |(((config, told), part), given): (((&SourceConfig, &Source), &Part), u64)| proto::Source {
        name: config.name.clone(),
        num_tokens: told.num_tokens,
        num_samples: told.num_samples,
        share: part.share as f64 / WHOLE as f64,
        given,
        epochs: given as f64 / told.num_samples as f64,
        max_epochs: config.max_epochs.unwrap_or(0.0),
    };
    configs.iter().zip(told).zip(mixture.parts()).zip(given).map(source).collect()
}

fn straggler(record: &JobRecord, s: &Straggler) -> proto::Straggler {
    proto::Straggler {
        rank: s.rank.to_wire(),
        worker_id: record.worker_at(s.rank).map_or_else(String::new, WorkerId::to_string),
        factor: s.factor(),
        compute_s: s.own_s,
        peers_s: s.peers_s,
        num_peers: s.num_peers as u32,
        from_step: s.steps.start.get(),
        to_step: s.steps.end.get(),
    }
}

fn checkpoints(record: &JobRecord) -> Vec<proto::CheckpointInfo> {
    let for_good = keeping::for_good(record.checkpoints.iter(), record.spec.checkpoint.keep_every_steps);
    let info = |c: &Checkpoint| proto::CheckpointInfo {
        step: c.step.get(),
        path: c.path.clone(),
        bytes: c.bytes,
        unix_ms: c.unix_ms,
        write_s: c.write_s,
        is_pinned: record.pinned.contains(&c.step),
        is_for_good: for_good.contains(&c.step),
    };
    record.checkpoints.iter().map(info).collect()
}

fn validation(v: &Validation) -> proto::Validation {
    let source = |s: &SourceValidation| proto::SourceValidation { ce: s.ce, tokens: s.tokens };
    let (step, sources) = (v.step.get(), v.sources.iter().map(source).collect());
    let Validation { ce, bits_per_byte, tokens, correct, ties, .. } = *v;
    proto::Validation { step, ce, bits_per_byte, tokens, sources, correct, ties }
}
