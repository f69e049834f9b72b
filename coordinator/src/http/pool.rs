//! What all streams say of the pool, once for all of them: see `stream`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;
use toroid_proto as proto;
use toroid_proto::json;

use crate::grpc::jobs::Jobs;

/// How old what is said may be.
const INTERVAL: Duration = Duration::from_secs(1);
/// Jobs that the overview has: the newest.
const MAX_JOBS: usize = 100;
/// A worker that has said something within this time is not silent.
const SILENT_FROM_S: f64 = 3.0;

#[derive(Clone)]
pub(super) struct Pool {
    jobs: Jobs,
    said: Arc<Mutex<Said>>,
}

/// What was said last.
#[derive(Default)]
struct Said {
    at: Option<Instant>,
    /// From 1.
    version: u64,
    /// Leader and jobs, as they are in an object.
    head: String,
    /// A row of each worker, by id.
    workers: BTreeMap<String, String>,
    /// What differs from the version before.
    delta: Arc<str>,
    /// All of this version, once somebody has asked for it.
    full: Option<Arc<str>>,
}

impl Pool {
    pub fn new(jobs: Jobs) -> Pool {
        Pool { jobs, said: Arc::default() }
    }

    /// What is new since that version, 0: since none, and the version that it leads to; `None`: nothing.
    pub async fn next(&self, known: u64) -> Result<Option<(u64, Arc<str>)>, Status> {
        let mut said = self.said.lock().await;
        if said.at.is_none_or(|at| at.elapsed() >= INTERVAL) {
            let (head, workers) = self.look().await?;
            said.take(head, workers);
            said.at = Some(Instant::now());
        }
        Ok((known != said.version).then(|| (said.version, said.since(known))))
    }

    async fn look(&self) -> Result<(String, BTreeMap<String, String>), Status> {
        let leader = self.jobs.who_leads().await;
        let jobs = self.jobs.newest(MAX_JOBS).await?;
        let leader = text(&Leader { address: &leader.address, term: leader.term, reason: &leader.reason })?;
        let jobs = text(&jobs.iter().map(JobRow::of).collect::<Vec<_>>())?;
        let workers = self.jobs.all_workers().await?;
        let rows = workers.iter().map(|worker| Ok((worker.worker_id.clone(), text(&WorkerRow::of(worker))?)));
        Ok((format!("\"leader\":{leader},\"jobs\":{jobs}"), rows.collect::<Result<_, Status>>()?))
    }
}

impl Said {
    fn take(&mut self, head: String, workers: BTreeMap<String, String>) {
        let changed: Vec<&str> = (workers.iter())
            .filter(|(id, row)| self.workers.get(*id) != Some(row))
            .map(|(_, row)| row.as_str())
            .collect();
        let gone: Vec<&String> = self.workers.keys().filter(|id| !workers.contains_key(*id)).collect();
        if self.version > 0 && head == self.head && changed.is_empty() && gone.is_empty() {
            return;
        }
        self.delta = view(false, &head, &changed, &gone);
        (self.version, self.head, self.workers, self.full) = (self.version + 1, head, workers, None);
    }

    fn since(&mut self, known: u64) -> Arc<str> {
        if known > 0 && known + 1 == self.version {
            return Arc::clone(&self.delta);
        }
        let rows = || self.workers.values().map(String::as_str).collect::<Vec<_>>();
        let full = self.full.take().unwrap_or_else(|| view(true, &self.head, &rows(), &[]));
        Arc::clone(self.full.insert(full))
    }
}

/// `first`: these are all workers; otherwise those that have changed, and the ids of those that are gone.
fn view(first: bool, head: &str, workers: &[&str], gone: &[&String]) -> Arc<str> {
    let gone = serde_json::json!(gone);
    format!("{{\"first\":{first},{head},\"workers\":[{}],\"gone\":{gone}}}", workers.join(",")).into()
}

pub(super) fn text(value: &impl Serialize) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|e| Status::internal(format!("what was found is no JSON: {e}")))
}

fn three_digits(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powf(value.log10().floor() - 2.0);
    (value / unit).round() * unit
}

#[derive(Serialize)]
struct Leader<'a> {
    address: &'a str,
    term: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct JobRow<'a> {
    id: &'a str,
    name: &'a str,
    state: &'static str,
    reason: &'a str,
    user: &'a str,
    priority: i32,
    is_held: bool,
    committed_step: u64,
    total_steps: u64,
    loss: Option<f64>,
    tokens_per_s: f64,
    goodput: f64,
    places_alive: u32,
    world: u32,
    waited_s: f64,
}

impl<'a> JobRow<'a> {
    fn of(job: &'a proto::Job) -> JobRow<'a> {
        let shape = job.shape.unwrap_or_default();
        JobRow {
            id: &job.id,
            name: &job.name,
            state: json::state_word(job.state()),
            reason: &job.reason,
            user: &job.user,
            priority: job.priority,
            is_held: job.is_held,
            committed_step: job.committed_step,
            total_steps: job.total_steps,
            loss: job.last_step.as_ref().map(|step| step.loss),
            tokens_per_s: job.tokens_per_s,
            goodput: job.goodput,
            places_alive: job.places_alive,
            world: shape.tp * shape.pp * shape.dp,
            waited_s: job.waited_s,
        }
    }
}

#[derive(Serialize)]
struct WorkerRow<'a> {
    id: &'a str,
    host: &'a str,
    device: &'a str,
    job: &'a str,
    rank: i32,
    state: &'static str,
    reason: &'a str,
    warm_up: &'static str,
    /// Whole seconds, 0 while it says that it lives as it should: what does not change is not sent.
    silent_s: f64,
    compute_s: f64,
    slow_factor: f64,
    memory_bytes: u64,
}

impl<'a> WorkerRow<'a> {
    fn of(worker: &'a proto::WorkerInfo) -> WorkerRow<'a> {
        WorkerRow {
            id: &worker.worker_id,
            host: &worker.host,
            device: &worker.device,
            job: &worker.job_id,
            rank: worker.rank,
            state: json::worker_state_word(worker.state()),
            reason: &worker.state_reason,
            warm_up: json::warm_up_word(worker.warm_up()),
            silent_s: if worker.silent_s < SILENT_FROM_S { 0.0 } else { worker.silent_s.floor() },
            compute_s: three_digits(worker.compute_s),
            slow_factor: three_digits(worker.slow_factor),
            memory_bytes: worker.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_version_before_is_sent_what_differs_and_others_all() {
        let workers = |rows: &[(&str, &str)]| rows.iter().map(|(id, row)| (id.to_string(), row.to_string())).collect();
        let mut said = Said::default();
        said.take("\"n\":1".into(), workers(&[("a", "1"), ("b", "2")]));
        assert_eq!(&*said.since(0), r#"{"first":true,"n":1,"workers":[1,2],"gone":[]}"#);
        said.take("\"n\":1".into(), workers(&[("a", "1"), ("b", "2")]));
        assert_eq!(said.version, 1, "nothing is new");
        said.take("\"n\":1".into(), workers(&[("b", "3"), ("c", "4")]));
        assert_eq!((said.version, &*said.since(1)), (2, r#"{"first":false,"n":1,"workers":[3,4],"gone":["a"]}"#));
        said.take("\"n\":2".into(), workers(&[("b", "3"), ("c", "4")]));
        assert_eq!(&*said.since(2), r#"{"first":false,"n":2,"workers":[],"gone":[]}"#);
        for known in [0, 1] {
            assert_eq!(&*said.since(known), r#"{"first":true,"n":2,"workers":[3,4],"gone":[]}"#);
        }
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in [(0.0, 0.0), (1234.5, 1230.0), (0.012_345, 0.0123), (1.0, 1.0)] {
            assert!((three_digits(value) - expected).abs() < 1e-9 * expected.max(1.0), "{value}");
        }
    }
}
