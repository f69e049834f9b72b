//! What `-o json` prints and the coordinator's HTTP answers: the messages of `job.proto` under their own field names, which are stable.
//!
//! Two things differ from the messages, for those who read them: a state is its word (`running`), and `expert_load` is
//! `[layer][expert]`. A number that is not finite is `null`, as JSON has no other way to say it.

use std::collections::BTreeMap;

use serde::Serialize;
use toroid_torus::units::time;

use crate as proto;

/// The word for a state, the same in text and JSON.
pub fn state_word(state: proto::JobState) -> &'static str {
    match state {
        proto::JobState::Unspecified => "unknown",
        proto::JobState::Queued => "queued",
        proto::JobState::Starting => "starting",
        proto::JobState::Running => "running",
        proto::JobState::Recovering => "recovering",
        proto::JobState::Degraded => "degraded",
        proto::JobState::Draining => "draining",
        proto::JobState::Done => "done",
        proto::JobState::Failed => "failed",
        proto::JobState::Cancelled => "cancelled",
    }
}

/// The job will not change any more.
pub fn is_ended(state: proto::JobState) -> bool {
    matches!(state, proto::JobState::Done | proto::JobState::Failed | proto::JobState::Cancelled)
}

#[derive(Debug, Serialize)]
pub struct Job<'a> {
    id: &'a str,
    name: &'a str,
    state: &'static str,
    reason: &'a str,
    shape: Shape,
    full_shape: Shape,
    epoch: u64,
    committed_step: u64,
    total_steps: u64,
    num_params: u64,
    last_step: Option<StepRecord<'a>>,
    first_loss: f64,
    tokens_per_s: f64,
    eta_s: f64,
    goodput: f64,
    places: Vec<Place<'a>>,
    places_alive: u32,
    spares: u32,
    /// Connected without a place, and given none: put aside, drained.
    spares_aside: u32,
    checkpoints: Vec<Checkpoint<'a>>,
    validations: Vec<Validation>,
    submitted_unix_ms: i64,
    started_unix_ms: i64,
    finished_unix_ms: i64,
    folder: &'a str,
    /// blake3 of the tokens; empty until the workers have read them.
    data_digest: &'a str,
    /// What is wrong with the job's files; empty: nothing.
    damaged: &'a str,
    /// Of the coordinator that says this.
    term: u64,
    store_trouble: &'a str,
    job_toml: &'a str,
    events: Vec<Event<'a>>,
    incidents: Vec<Incident<'a>>,
    lost_s: f64,
    lost_steps: u64,
    inputs: Inputs<'a>,
    stragglers: Vec<Straggler<'a>>,
    missing_steps: u64,
    skipped_steps: u64,
    /// `null` where the newest checkpoint that was tried is good.
    unsaved: Option<Unsaved<'a>>,
    /// `null` where no checkpoint is being written.
    saving: Option<Saving>,
    priority: i32,
    user: &'a str,
    /// By a user: it is given no places until it is released.
    is_held: bool,
    /// In the queue, time on hold left out.
    waited_s: f64,
    pinned_steps: &'a [u64],
    /// Left out where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    curve: Option<Vec<StepRecord<'a>>>,
}

/// What is trained on; all empty before the first step but for the notes.
#[derive(Debug, Default, Serialize)]
struct Inputs<'a> {
    summary: &'a str,
    left_out: Vec<LeftOut<'a>>,
    notes: &'a [String],
    /// In the order of the job file; none where it has a path alone.
    sources: Vec<Source<'a>>,
}

/// What a source has, and what of it the committed steps took.
#[derive(Debug, Serialize)]
struct Source<'a> {
    name: &'a str,
    num_tokens: u64,
    /// Of one pass.
    num_samples: u64,
    /// Of all samples, as long as each source gives some.
    share: f64,
    given: u64,
    epochs: f64,
    max_epochs: Option<f64>,
}

/// Files that give no text, or not all of theirs.
#[derive(Debug, Serialize)]
struct LeftOut<'a> {
    reason: &'a str,
    num_files: u64,
    bytes: u64,
    first: &'a [String],
}

impl<'a> From<&'a proto::Inputs> for Inputs<'a> {
    fn from(inputs: &'a proto::Inputs) -> Self {
        let left_out = |l: &'a proto::LeftOut| LeftOut {
            reason: &l.reason,
            num_files: l.num_files,
            bytes: l.bytes,
            first: &l.first,
        };
        let left_out = inputs.left_out.iter().map(left_out).collect();
        let source = |s: &'a proto::Source| Source {
            name: &s.name,
            num_tokens: s.num_tokens,
            num_samples: s.num_samples,
            share: s.share,
            given: s.given,
            epochs: s.epochs,
            max_epochs: Some(s.max_epochs).filter(|epochs| *epochs != 0.0),
        };
        let sources = inputs.sources.iter().map(source).collect();
        Inputs { summary: &inputs.summary, left_out, notes: &inputs.notes, sources }
    }
}

/// A place that computes for longer than its peers; seconds a step, over the steps from `from_step` to `to_step`.
#[derive(Debug, Serialize)]
struct Straggler<'a> {
    rank: u32,
    worker_id: &'a str,
    factor: f64,
    compute_s: f64,
    peers_s: f64,
    num_peers: u32,
    from_step: u64,
    to_step: u64,
}

impl<'a> From<&'a proto::Straggler> for Straggler<'a> {
    fn from(s: &'a proto::Straggler) -> Self {
        Straggler {
            rank: s.rank,
            worker_id: &s.worker_id,
            factor: s.factor,
            compute_s: s.compute_s,
            peers_s: s.peers_s,
            num_peers: s.num_peers,
            from_step: s.from_step,
            to_step: s.to_step,
        }
    }
}

#[derive(Debug, Serialize)]
struct Shape {
    tp: u32,
    pp: u32,
    dp: u32,
    dx: u32,
    dy: u32,
}

impl From<Option<proto::Shape>> for Shape {
    fn from(shape: Option<proto::Shape>) -> Shape {
        let proto::Shape { tp, pp, dp, dx, dy } = shape.unwrap_or_default();
        Shape { tp, pp, dp, dx, dy }
    }
}

#[derive(Debug, Serialize)]
struct Place<'a> {
    rank: u32,
    x: u32,
    y: u32,
    worker_id: &'a str,
    alive: bool,
    committed_step: u64,
    host: &'a str,
    /// By what carries them: shm, unix, tls, or tcp in clear text.
    links: &'a BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
pub struct StepRecord<'a> {
    step: u64,
    loss: f64,
    ce: f64,
    z_loss: f64,
    balance_loss: f64,
    grad_norm: f64,
    lr: f64,
    weight_decay: f64,
    tokens_per_s: f64,
    tokens: u64,
    /// Assignments, `[layer][expert]`.
    expert_load: Vec<&'a [u64]>,
    skipped: bool,
    step_s: f64,
    hidden_s: f64,
    exposed_s: f64,
    epoch: u64,
    missing: bool,
    /// `null` but of kinds sft and ppo.
    trained_tokens: Option<u64>,
    pairs: u64,
    correct: u64,
    ties: u64,
    /// `null` but of kind ppo.
    policy: Option<BTreeMap<&'static str, f64>>,
}

#[derive(Debug, Serialize)]
struct Validation {
    step: u64,
    ce: f64,
    /// `null` where tokens are no bytes.
    bits_per_byte: Option<f64>,
    tokens: u64,
    /// In the order of `inputs.sources`; none where the job has a path alone.
    sources: Vec<SourceValidation>,
    /// Of pairs, which `tokens` counts for kind reward.
    correct: u64,
    ties: u64,
}

#[derive(Debug, Serialize)]
struct SourceValidation {
    ce: f64,
    tokens: u64,
}

#[derive(Debug, Serialize)]
struct Checkpoint<'a> {
    step: u64,
    path: &'a str,
    bytes: u64,
    unix_ms: i64,
    write_s: f64,
    is_pinned: bool,
    is_for_good: bool,
}

#[derive(Debug, Serialize)]
struct Saving {
    step: u64,
    bytes: u64,
    total_bytes: u64,
    places_done: u32,
    places: u32,
    bytes_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Unsaved<'a> {
    step: u64,
    error: &'a str,
    since_unix_ms: i64,
    num_tries: u64,
    next_try_s: f64,
}

#[derive(Debug, Serialize)]
pub struct Event<'a> {
    unix_ms: i64,
    /// The same moment for people, in UTC.
    time: String,
    kind: &'a str,
    text: &'a str,
    step: u64,
    epoch: u64,
    worker_id: &'a str,
}

/// Times are seconds; the moment is when the incident was seen.
#[derive(Debug, Serialize)]
pub struct Incident<'a> {
    number: u64,
    unix_ms: i64,
    /// The same moment for people, in UTC.
    time: String,
    cause: &'a str,
    seen_by: &'a str,
    ranks: &'a [u32],
    workers: &'a [String],
    rung: &'a str,
    reason: &'a str,
    step: u64,
    resumed_step: u64,
    steps_lost: u64,
    epoch: u64,
    detect_s: f64,
    fence_s: f64,
    decide_s: f64,
    heal_s: f64,
    redo_s: f64,
    total_s: f64,
    resolved: bool,
    /// 32 hexadecimal digits.
    trace_id: &'a str,
    evidence: Vec<Evidence<'a>>,
}

#[derive(Debug, Serialize)]
struct Evidence<'a> {
    worker_id: &'a str,
    /// `log` or `stacks`.
    kind: &'a str,
    lines: &'a [String],
}

#[derive(Debug, Serialize)]
pub struct Worker<'a> {
    worker_id: &'a str,
    host: &'a str,
    device: &'a str,
    fingerprint: &'a str,
    fingerprint_bf16: &'a str,
    build_version: &'a str,
    protocol_version: u32,
    job_id: &'a str,
    rank: i32,
    silent_s: f64,
    pid: u32,
    memory_bytes: u64,
    memory_free_bytes: u64,
    compute_s: f64,
    slow_factor: f64,
    /// placed, spare, aside, retired, cordoned
    state: &'static str,
    /// Why it is given no place; empty: it is, or has one.
    state_reason: &'a str,
    /// How long it stays aside still.
    aside_s: f64,
    /// `proving`, `ready`, `failed`; empty: nobody has asked it, or it has a place.
    warm_up: &'static str,
    warm_up_job: &'a str,
    warm_up_reason: &'a str,
    warm_up_retry_s: f64,
    /// By name; device, host, rack and zone among them.
    labels: &'a BTreeMap<String, String>,
    /// It is given no other place.
    is_cordoned: bool,
    /// By what carries them: shm, unix, tls, or tcp in clear text.
    links: &'a BTreeMap<String, u32>,
}

pub fn worker_state_word(state: proto::WorkerState) -> &'static str {
    match state {
        proto::WorkerState::Unspecified => "unknown",
        proto::WorkerState::Placed => "placed",
        proto::WorkerState::Spare => "spare",
        proto::WorkerState::Aside => "aside",
        proto::WorkerState::Retired => "retired",
        proto::WorkerState::Cordoned => "cordoned",
    }
}

pub fn warm_up_word(state: proto::WarmUpState) -> &'static str {
    match state {
        proto::WarmUpState::Unspecified => "",
        proto::WarmUpState::Proving => "proving",
        proto::WarmUpState::Ready => "ready",
        proto::WarmUpState::Failed => "failed",
    }
}

impl<'a> Job<'a> {
    /// With its curve where `with_curve` says so.
    pub fn new(job: &'a proto::Job, with_curve: bool) -> Job<'a> {
        Job {
            id: &job.id,
            name: &job.name,
            state: state_word(job.state()),
            reason: &job.reason,
            shape: Shape::from(job.shape),
            full_shape: Shape::from(job.full_shape),
            epoch: job.epoch,
            committed_step: job.committed_step,
            total_steps: job.total_steps,
            num_params: job.num_params,
            last_step: job.last_step.as_ref().map(StepRecord::from),
            first_loss: job.first_loss,
            tokens_per_s: job.tokens_per_s,
            eta_s: job.eta_s,
            goodput: job.goodput,
            places: job.places.iter().map(Place::from).collect(),
            places_alive: job.places_alive,
            spares: job.spares,
            spares_aside: job.spares_aside,
            checkpoints: job.checkpoints.iter().map(Checkpoint::from).collect(),
            validations: job.validations.iter().map(Validation::from).collect(),
            submitted_unix_ms: job.submitted_unix_ms,
            started_unix_ms: job.started_unix_ms,
            finished_unix_ms: job.finished_unix_ms,
            folder: &job.folder,
            data_digest: &job.data_digest,
            damaged: &job.damaged,
            term: job.term,
            store_trouble: &job.store_trouble,
            job_toml: &job.job_toml,
            events: job.events.iter().map(Event::from).collect(),
            incidents: job.incidents.iter().map(Incident::from).collect(),
            lost_s: job.lost_s,
            lost_steps: job.lost_steps,
            inputs: job.inputs.as_ref().map(Inputs::from).unwrap_or_default(),
            stragglers: job.stragglers.iter().map(Straggler::from).collect(),
            missing_steps: job.missing_steps,
            priority: job.priority,
            user: &job.user,
            is_held: job.is_held,
            waited_s: job.waited_s,
            pinned_steps: &job.pinned_steps,
            skipped_steps: job.skipped_steps,
            saving: job.saving.as_ref().map(|s| Saving {
                step: s.step,
                bytes: s.bytes,
                total_bytes: s.total_bytes,
                places_done: s.places_done,
                places: s.places,
                bytes_per_s: s.bytes_per_s,
            }),
            unsaved: job.unsaved.as_ref().map(|u| Unsaved {
                step: u.step,
                error: &u.error,
                since_unix_ms: u.since_unix_ms,
                num_tries: u.num_tries,
                next_try_s: u.next_try_s,
            }),
            curve: with_curve.then(|| job.curve.iter().map(StepRecord::from).collect()),
        }
    }
}

impl<'a> From<&'a proto::PlaceInfo> for Place<'a> {
    fn from(p: &'a proto::PlaceInfo) -> Self {
        Place {
            rank: p.rank,
            x: p.x,
            y: p.y,
            worker_id: &p.worker_id,
            alive: p.alive,
            committed_step: p.committed_step,
            host: &p.host,
            links: &p.links,
        }
    }
}

impl<'a> From<&'a proto::StepRecord> for StepRecord<'a> {
    fn from(r: &'a proto::StepRecord) -> Self {
        // A layer count that does not divide the load would be the sender's fault: all in one row is still readable.
        let num_experts = r.expert_load.len() / (r.num_layers as usize).max(1);
        StepRecord {
            step: r.step,
            loss: r.loss,
            ce: r.ce,
            z_loss: r.z_loss,
            balance_loss: r.balance_loss,
            grad_norm: r.grad_norm,
            lr: r.lr,
            weight_decay: r.weight_decay,
            tokens_per_s: r.tokens_per_s,
            tokens: r.tokens,
            expert_load: r.expert_load.chunks(num_experts.max(1)).collect(),
            skipped: r.skipped,
            step_s: r.step_s,
            hidden_s: r.hidden_s,
            exposed_s: r.exposed_s,
            epoch: r.epoch,
            missing: r.missing,
            trained_tokens: r.trained_tokens,
            pairs: r.pairs,
            correct: r.correct,
            ties: r.ties,
            policy: r.policy.as_ref().map(|policy| policy.figures().into()),
        }
    }
}

impl From<&proto::Validation> for Validation {
    fn from(v: &proto::Validation) -> Self {
        let source = |s: &proto::SourceValidation| SourceValidation { ce: s.ce, tokens: s.tokens };
        Validation {
            step: v.step,
            ce: v.ce,
            bits_per_byte: Some(v.bits_per_byte).filter(|bits| *bits != 0.0),
            tokens: v.tokens,
            sources: v.sources.iter().map(source).collect(),
            correct: v.correct,
            ties: v.ties,
        }
    }
}

impl<'a> From<&'a proto::CheckpointInfo> for Checkpoint<'a> {
    fn from(c: &'a proto::CheckpointInfo) -> Self {
        Checkpoint {
            step: c.step,
            path: &c.path,
            bytes: c.bytes,
            unix_ms: c.unix_ms,
            write_s: c.write_s,
            is_pinned: c.is_pinned,
            is_for_good: c.is_for_good,
        }
    }
}

impl<'a> From<&'a proto::Event> for Event<'a> {
    fn from(e: &'a proto::Event) -> Self {
        Event {
            unix_ms: e.unix_ms,
            time: time(e.unix_ms),
            kind: &e.kind,
            text: &e.text,
            step: e.step,
            epoch: e.epoch,
            worker_id: &e.worker_id,
        }
    }
}

impl<'a> From<&'a proto::Evidence> for Evidence<'a> {
    fn from(e: &'a proto::Evidence) -> Self {
        Evidence { worker_id: &e.worker_id, kind: &e.kind, lines: &e.lines }
    }
}

impl<'a> From<&'a proto::Incident> for Incident<'a> {
    fn from(i: &'a proto::Incident) -> Self {
        Incident {
            number: i.number,
            unix_ms: i.unix_ms,
            time: time(i.unix_ms),
            cause: &i.cause,
            seen_by: &i.seen_by,
            ranks: &i.ranks,
            workers: &i.workers,
            rung: &i.rung,
            reason: &i.reason,
            step: i.step,
            resumed_step: i.resumed_step,
            steps_lost: i.steps_lost,
            epoch: i.epoch,
            detect_s: i.detect_s,
            fence_s: i.fence_s,
            decide_s: i.decide_s,
            heal_s: i.heal_s,
            redo_s: i.redo_s,
            total_s: i.total_s,
            resolved: i.resolved,
            trace_id: &i.trace_id,
            evidence: i.evidence.iter().map(Evidence::from).collect(),
        }
    }
}

impl<'a> From<&'a proto::WorkerInfo> for Worker<'a> {
    fn from(w: &'a proto::WorkerInfo) -> Self {
        Worker {
            worker_id: &w.worker_id,
            host: &w.host,
            device: &w.device,
            fingerprint: &w.fingerprint,
            fingerprint_bf16: &w.fingerprint_bf16,
            build_version: &w.build_version,
            protocol_version: w.protocol_version,
            job_id: &w.job_id,
            rank: w.rank,
            silent_s: w.silent_s,
            pid: w.pid,
            state: worker_state_word(w.state()),
            state_reason: &w.state_reason,
            aside_s: w.aside_s,
            memory_bytes: w.memory_bytes,
            memory_free_bytes: w.memory_free_bytes,
            compute_s: w.compute_s,
            slow_factor: w.slow_factor,
            warm_up: warm_up_word(w.warm_up()),
            warm_up_job: &w.warm_up_job,
            warm_up_reason: &w.warm_up_reason,
            warm_up_retry_s: w.warm_up_retry_s,
            labels: &w.labels,
            is_cordoned: w.is_cordoned,
            links: &w.links,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> proto::StepRecord {
        proto::StepRecord {
            step: 7,
            loss: 0.1 + 0.2,
            grad_norm: f64::NAN,
            expert_load: vec![1, 2, 3, 4, 5, 6],
            num_layers: 2,
            policy: Some(proto::PolicyStep { score: 0.1 + 0.2, kl: f64::NAN, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn every_field_of_the_messages_is_there_under_its_name() {
        // The names of job.proto, but for `num_layers`, which the nesting of `expert_load` says.
        let set = prost_names("Job");
        let job = proto::Job { curve: vec![step()], ..Default::default() };
        let value = serde_json::to_value(Job::new(&job, true)).expect("a job has only string keys");
        let mut found: Vec<String> = value.as_object().expect("a job is an object").keys().cloned().collect();
        found.sort();
        assert_eq!(found, set);

        let incident = serde_json::to_value(Incident::from(&proto::Incident::default())).expect("it has string keys");
        let mut found: Vec<String> = incident.as_object().expect("it is an object").keys().cloned().collect();
        found.retain(|name| name != "time");
        found.sort();
        assert_eq!(found, prost_names("Incident"));

        let set: Vec<String> = prost_names("StepRecord").into_iter().filter(|n| n != "num_layers").collect();
        let mut found: Vec<String> =
            value["curve"][0].as_object().expect("a step is an object").keys().cloned().collect();
        found.sort();
        assert_eq!(found, set);

        let policy = value["curve"][0]["policy"].as_object().expect("what a policy has is an object");
        let mut found: Vec<String> = policy.keys().cloned().collect();
        found.sort();
        assert_eq!(found, prost_names("PolicyStep"));
    }

    /// Field names of a message as the descriptor has them, sorted.
    fn prost_names(message: &str) -> Vec<String> {
        use prost::Message as _;
        let files = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("decode the descriptors");
        let mut messages = files.file.iter().flat_map(|f| &f.message_type);
        let found = messages.find(|m| m.name() == message).expect("find the message");
        let mut names: Vec<String> = found.field.iter().map(|f| f.name().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_keep_their_bits_and_what_is_not_finite_is_null() {
        let job = proto::Job { last_step: Some(step()), ..Default::default() };
        let text = serde_json::to_string(&Job::new(&job, false)).expect("a job has only string keys");
        let value: serde_json::Value = serde_json::from_str(&text).expect("read what was written");
        let last = &value["last_step"];
        assert_eq!(last["loss"].as_f64().map(f64::to_bits), Some((0.1 + 0.2f64).to_bits()));
        assert!(last["grad_norm"].is_null());
        let policy = &last["policy"];
        assert_eq!(policy["score"].as_f64().map(f64::to_bits), Some((0.1 + 0.2f64).to_bits()));
        assert!(policy["kl"].is_null());
        assert_eq!(last["expert_load"], serde_json::json!([[1, 2, 3], [4, 5, 6]]));
        assert!(value.get("curve").is_none());
    }

    #[test]
    fn expert_load_survives_a_layer_count_that_does_not_fit() {
        for (load, num_layers) in [(vec![], 0), (vec![], 4), (vec![1, 2], 0), (vec![1], 4)] {
            let expected: u64 = load.iter().sum();
            let record = proto::StepRecord { expert_load: load, num_layers, ..Default::default() };
            let found: u64 = StepRecord::from(&record).expert_load.iter().copied().flatten().sum();
            assert_eq!(found, expected);
        }
    }
}
