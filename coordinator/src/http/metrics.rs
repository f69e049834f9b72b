//! `/metrics` in Prometheus' text format 0.0.4: base units in names, counters end in `_total`.
//!
//! Labels are jobs that have not ended, states and a few positions, nothing that grows with places or restarts: each place's figures are in
//! `/api/workers`, `toroid workers` and on the dashboard, here are the worst of them, with the rank as a value.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use toroid_proto as proto;
use toroid_proto::json;

use super::Http;
use super::error::HttpError;

/// A job's id; `job` itself is what Prometheus calls a group of targets.
const JOB: &str = "job_id";
/// Of each job, the places that compute for longest.
const NUM_SLOWEST: usize = 3;
/// Jobs on one page; beyond, the oldest are left out and counted.
const MAX_JOBS: usize = 1000;

pub(super) async fn metrics(State(http): State<Http>) -> Result<Response, HttpError> {
    let leader = http.jobs.who_leads().await;
    let (jobs, workers) = if leader.leads {
        (http.jobs.newest(MAX_JOBS).await?, http.jobs.all_workers().await?)
    } else {
        Default::default()
    };
    let text = page(&leader, &jobs, &workers, http.failure_timeout_s) + &http.durations.text();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// A page that is being written.
struct Page(String);

impl Page {
    /// One metric with all its samples: labels as they are written, and a value.
    fn metric<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let text = &mut self.0;
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help, [(String::new(), value)]);
    }
}

/// `{name="value"}`.
fn label(name: &str, value: &str) -> String {
    labels(&[(name, value)])
}

fn labels(labels: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// As Prometheus writes numbers.
fn float(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".into(),
        v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.into(),
        v => v.to_string(),
    }
}

/// Everything there is to say of them.
fn page(
    leader: &proto::GetLeaderResponse,
    jobs: &[proto::Job],
    workers: &[proto::WorkerInfo],
    failure_timeout_s: f64,
) -> String {
    let mut page = Page(String::new());
    let version = label("version", &proto::build().version);
    page.metric("toroid_build_info", "gauge", "Version of the coordinator.", [(version, 1)]);
    let leads = u8::from(leader.leads);
    page.single("toroid_coordinator_leads", "gauge", "Whether this coordinator decides (1), or stands by (0).", leads);
    page.single("toroid_coordinator_term", "gauge", "Term of the leader, 0 where none is known.", leader.term);
    if !leader.leads {
        return page.0;
    }
    let trouble = u8::from(!leader.reason.is_empty());
    let help = "Whether decisions wait since the store does not answer; steps go on.";
    page.single("toroid_store_unavailable", "gauge", help, trouble);
    let help = "Silence after which a worker counts as lost.";
    page.single("toroid_failure_timeout_seconds", "gauge", help, failure_timeout_s);

    let states = count(jobs.iter().map(|job| json::state_word(job.state())));
    page.metric("toroid_jobs", "gauge", "Jobs by state.", states);
    let states = count(workers.iter().map(|worker| json::worker_state_word(worker.state())));
    page.metric("toroid_workers", "gauge", "Connected workers by state.", states);
    let silent_s = workers.iter().map(|worker| worker.silent_s).fold(0.0, f64::max);
    let help = "Time since the last message of the worker that has been silent for longest.";
    page.single("toroid_worker_silence_seconds_max", "gauge", help, float(silent_s));

    let now: Vec<&proto::Job> = jobs.iter().filter(|job| !json::is_ended(job.state())).collect();
    let mut of_jobs = |name: &str, kind: &str, help: &str, value: &dyn Fn(&proto::Job) -> Option<f64>| {
        let samples = now.iter().filter_map(|job| Some((label(JOB, &job.id), float(value(job)?))));
        page.metric(name, kind, help, samples);
    };
    let last = |value: fn(&proto::StepRecord) -> f64| move |job: &proto::Job| job.last_step.as_ref().map(value);
    let always = |value: fn(&proto::Job) -> f64| move |job: &proto::Job| Some(value(job));
    let (gauge, counter) = ("gauge", "counter");
    of_jobs(
        "toroid_job_committed_steps_total",
        counter,
        "Optimizer updates that are committed.",
        &always(|j| j.committed_step as f64),
    );
    of_jobs("toroid_job_steps", gauge, "Optimizer updates that the job is to make.", &always(|j| j.total_steps as f64));
    of_jobs("toroid_job_places", gauge, "Places of the present shape.", &always(|j| j.places.len() as f64));
    of_jobs("toroid_job_places_alive", gauge, "Places whose worker is there.", &always(|j| f64::from(j.places_alive)));
    of_jobs(
        "toroid_job_spares",
        gauge,
        "Workers that may be given a place of the job now.",
        &always(|j| f64::from(j.spares)),
    );
    of_jobs("toroid_job_epoch", gauge, "Number of the present map of places to workers.", &always(|j| j.epoch as f64));
    of_jobs(
        "toroid_job_waited_seconds_total",
        counter,
        "Time that the job has waited for its places.",
        &always(|j| j.waited_s),
    );
    of_jobs("toroid_job_loss", gauge, "Training loss of the newest step.", &last(|s| s.loss));
    of_jobs(
        "toroid_job_cross_entropy_nats",
        gauge,
        "Cross-entropy of the newest step, for each token.",
        &last(|s| s.ce),
    );
    of_jobs(
        "toroid_job_gradient_norm",
        gauge,
        "Norm of the gradients before clipping, of the newest step.",
        &last(|s| s.grad_norm),
    );
    of_jobs("toroid_job_learning_rate", gauge, "Learning rate of the newest step.", &last(|s| s.lr));
    let policy = |value: fn(&proto::PolicyStep) -> f64| {
        move |job: &proto::Job| job.last_step.as_ref()?.policy.as_ref().map(value)
    };
    of_jobs(
        "toroid_job_policy_score",
        gauge,
        "Mean score of the answers that the newest step is made of, penalties included.",
        &policy(|p| p.score),
    );
    of_jobs(
        "toroid_job_policy_kl_nats",
        gauge,
        "Divergence of these answers from the reference, for each answer.",
        &policy(|p| p.kl),
    );
    of_jobs(
        "toroid_job_policy_clip_ratio",
        gauge,
        "Share of the tokens of the newest step whose ratio is clipped.",
        &policy(|p| p.clip_fraction),
    );
    of_jobs(
        "toroid_job_policy_answer_tokens",
        gauge,
        "Mean tokens of the answers that the newest step is made of.",
        &policy(|p| p.answer_tokens),
    );
    of_jobs("toroid_job_step_duration_seconds", gauge, "Wall time of the newest step.", &last(|s| s.step_s));
    of_jobs(
        "toroid_job_communication_hidden_seconds",
        gauge,
        "Communication of rank 0 in the newest step while it computed.",
        &last(|s| s.hidden_s),
    );
    of_jobs(
        "toroid_job_communication_exposed_seconds",
        gauge,
        "Communication of rank 0 in the newest step while it did not compute.",
        &last(|s| s.exposed_s),
    );
    of_jobs(
        "toroid_job_tokens_per_second",
        gauge,
        "Tokens that are trained on, over the last steps.",
        &always(|j| j.tokens_per_s),
    );
    of_jobs(
        "toroid_job_goodput_ratio",
        gauge,
        "Useful time over all time since the first step.",
        &always(|j| j.goodput),
    );
    of_jobs("toroid_job_validation_cross_entropy_nats", gauge, "Cross-entropy on held-out text, newest.", &|j| {
        j.validations.last().map(|v| v.ce)
    });
    of_jobs(
        "toroid_job_incidents_total",
        counter,
        "Recorded failures, planned moves and growths.",
        // The oldest of very many are not listed any more.
        &always(|j| j.incidents.last().map_or(0.0, |incident| incident.number as f64)),
    );
    of_jobs(
        "toroid_job_incidents_open",
        gauge,
        "Incidents that have not ended.",
        &always(|j| j.incidents.iter().filter(|i| !i.resolved).count() as f64),
    );
    of_jobs("toroid_job_lost_seconds_total", counter, "Time of all incidents.", &always(|j| j.lost_s));
    of_jobs(
        "toroid_job_lost_steps_total",
        counter,
        "Committed steps that were lost.",
        &always(|j| j.lost_steps as f64),
    );
    of_jobs(
        "toroid_job_skipped_steps_total",
        counter,
        "Steps without an update, as gradients were not finite.",
        &always(|j| j.skipped_steps as f64),
    );
    of_jobs("toroid_job_stragglers", gauge, "Places that compute slowly now.", &always(|j| j.stragglers.len() as f64));
    of_jobs(
        "toroid_job_slowest_place_ratio",
        gauge,
        "Time of the slowest straggler over the median of its peers; 1 where nobody is one.",
        &always(|j| j.stragglers.iter().map(|s| s.factor).fold(1.0, f64::max)),
    );
    of_jobs("toroid_job_checkpoint_step", gauge, "Step of the newest good checkpoint.", &|j| {
        j.checkpoints.iter().map(|c| c.step as f64).reduce(f64::max)
    });
    of_jobs("toroid_job_checkpoint_timestamp_seconds", gauge, "When the newest good checkpoint was published.", &|j| {
        j.checkpoints.iter().map(|c| c.unix_ms as f64 / 1e3).reduce(f64::max)
    });
    of_jobs(
        "toroid_job_checkpoint_failing",
        gauge,
        "Whether checkpoints have failed since the newest good one.",
        &always(|j| f64::from(u8::from(j.unsaved.is_some()))),
    );
    let slowest: Vec<(String, &proto::WorkerInfo)> = now.iter().flat_map(|job| slowest(job, workers)).collect();
    let help = "Computation in a step at the places that compute for longest, by position.";
    let times = slowest.iter().map(|(labels, worker)| (labels.clone(), float(worker.compute_s)));
    page.metric("toroid_job_slowest_place_compute_seconds", gauge, help, times);
    let ranks = slowest.iter().map(|(labels, worker)| (labels.clone(), worker.rank));
    page.metric("toroid_job_slowest_place_rank", gauge, "Ranks of these places.", ranks);
    page.0
}

/// With the labels of their positions.
fn slowest<'a>(job: &proto::Job, workers: &'a [proto::WorkerInfo]) -> Vec<(String, &'a proto::WorkerInfo)> {
    let mut placed: Vec<_> = workers.iter().filter(|w| w.job_id == job.id && w.compute_s > 0.0).collect();
    placed.sort_by(|a, b| b.compute_s.total_cmp(&a.compute_s).then(a.rank.cmp(&b.rank)));
    let positions = (1..=NUM_SLOWEST).map(|n| labels(&[(JOB, &job.id), ("position", &n.to_string())]));
    positions.zip(placed).collect()
}

fn count(states: impl Iterator<Item = &'static str>) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::new();
    states.for_each(|state| *counts.entry(state).or_insert(0) += 1);
    counts.into_iter().map(|(state, num)| (label("state", state), num)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_jobs_that_go_on_and_escapes_what_it_quotes() {
        let leader = proto::GetLeaderResponse { leads: true, term: 3, ..Default::default() };
        let policy = Some(proto::PolicyStep { score: 0.75, kl: 1.5, ..Default::default() });
        let step = proto::StepRecord { step: 7, loss: 2.5, grad_norm: f64::NAN, policy, ..Default::default() };
        let running = proto::Job {
            id: "a\"b\\c".into(),
            state: proto::JobState::Running.into(),
            committed_step: 7,
            last_step: Some(step),
            ..Default::default()
        };
        let worker = |rank: i32, compute_s: f64| proto::WorkerInfo {
            job_id: running.id.clone(),
            rank,
            compute_s,
            ..Default::default()
        };
        let workers = [worker(0, 0.5), worker(1, 0.25), worker(2, 0.75), worker(3, 0.5), worker(4, 0.0)];
        let ended = proto::Job { id: "old".into(), state: proto::JobState::Done.into(), ..Default::default() };
        let text = page(&leader, &[running, ended], &workers, 5.0);
        for line in [
            r#"toroid_jobs{state="done"} 1"#,
            r#"toroid_job_committed_steps_total{job_id="a\"b\\c"} 7"#,
            r#"toroid_job_loss{job_id="a\"b\\c"} 2.5"#,
            r#"toroid_job_gradient_norm{job_id="a\"b\\c"} NaN"#,
            r#"toroid_job_policy_score{job_id="a\"b\\c"} 0.75"#,
            r#"toroid_job_policy_kl_nats{job_id="a\"b\\c"} 1.5"#,
            "toroid_coordinator_term 3",
            r#"toroid_job_slowest_place_rank{job_id="a\"b\\c",position="1"} 2"#,
            r#"toroid_job_slowest_place_compute_seconds{job_id="a\"b\\c",position="3"} 0.5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("old") && !text.contains("position=\"4\""), "{text}");
        let standby = page(&proto::GetLeaderResponse::default(), &[], &[], 5.0);
        assert!(standby.contains("toroid_coordinator_leads 0") && !standby.contains("toroid_jobs"), "{standby}");
    }
}
