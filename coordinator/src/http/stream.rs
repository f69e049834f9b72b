//! What changes, as server-sent events: one stream for all panels of a tab.
//!
//! - `pool`: who leads, all jobs in short, all workers; once a second at most, made once for all who look;
//! - `job`: the job that is looked at: what `-o json` says of it, but for what has not changed since the event before; places by rows of which
//!   only changed ones are sent; new steps by columns. Its id is the step that is to come, from which a stream that broke goes on
//!   (`Last-Event-ID`);
//! - comments, so that nothing between takes a quiet stream for dead.
//!
//! A browser that does not read holds up its own stream only: what is to be sent is made when what was sent has been taken.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use toroid_proto as proto;
use toroid_proto::json;

use super::Http;
use super::api::Columns;
use super::error::HttpError;
use crate::grpc::jobs::Jobs;
use crate::handle::Seen;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How old what is said of the pool may be.
const POOL_INTERVAL: Duration = Duration::from_secs(1);
/// Under what proxies take for dead: a minute in most.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Jobs that the overview has: the newest.
const MAX_JOBS: usize = 100;

/// What all streams say of the pool.
#[derive(Clone)]
pub(super) struct Pool {
    jobs: Jobs,
    last: Arc<Mutex<Option<Said>>>,
}

/// And when.
type Said = (Instant, Arc<str>);

impl Pool {
    pub fn new(jobs: Jobs) -> Pool {
        Pool { jobs, last: Arc::default() }
    }

    async fn text(&self) -> Result<Arc<str>, Status> {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < POOL_INTERVAL) {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = self.made().await?.into();
        *last = Some((Instant::now(), Arc::clone(&text)));
        Ok(text)
    }

    async fn made(&self) -> Result<String, Status> {
        let leader = self.jobs.who_leads().await;
        let jobs = self.jobs.newest(MAX_JOBS).await?;
        let workers = self.jobs.all_workers().await?;
        let pool = PoolView {
            leader: Leader { address: &leader.address, term: leader.term, reason: &leader.reason },
            jobs: jobs.iter().map(JobRow::of).collect(),
            workers: workers.iter().map(WorkerRow::of).collect(),
        };
        serde_json::to_string(&pool).map_err(|e| Status::internal(format!("the pool is no JSON: {e}")))
    }
}

#[derive(Serialize)]
struct PoolView<'a> {
    leader: Leader<'a>,
    jobs: Vec<JobRow<'a>>,
    workers: Vec<WorkerRow<'a>>,
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
    /// In tenths of a second, as bytes count here.
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
            silent_s: (worker.silent_s * 10.0).round() / 10.0,
            compute_s: worker.compute_s,
            slow_factor: worker.slow_factor,
            memory_bytes: worker.memory_bytes,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct StreamQuery {
    #[serde(default)]
    job: String,
    /// The first step that is wanted.
    #[serde(default)]
    from: u64,
}

pub(super) async fn stream(
    State(http): State<Http>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let mut look = JobLook::new(query.job, last.unwrap_or(query.from));
    // Who asks for a job that there is none of hears that at once, and not in the stream.
    let first = look.next(&http.jobs).await?;
    let (events, sent) = mpsc::channel(1);
    tokio::spawn(Watcher { http, look, events }.run(first));
    let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, Sse::new(ReceiverStream::new(sent))).into_response())
}

struct Watcher {
    http: Http,
    look: JobLook,
    events: mpsc::Sender<Result<Event, Infallible>>,
}

impl Watcher {
    /// Until nobody reads it any more, or there is nobody to ask.
    async fn run(mut self, first: Option<Event>) {
        let (mut pool, mut sent_at) = (None::<Arc<str>>, Instant::now());
        let mut of_job = first;
        loop {
            let mut events: Vec<Event> = of_job.take().into_iter().collect();
            match self.http.pool.text().await {
                Ok(text) if pool.as_ref() != Some(&text) => {
                    events.push(Event::default().event("pool").data(&*text));
                    pool = Some(text);
                }
                Ok(_) => {}
                Err(status) => {
                    // Nobody may be left to hear of it.
                    self.send(ended(&status)).await;
                    return;
                }
            }
            if events.is_empty() && sent_at.elapsed() >= PING_INTERVAL {
                events.push(Event::default().comment(""));
            }
            for event in events {
                sent_at = Instant::now();
                if !self.send(event).await {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.events.closed() => return,
            }
            of_job = match self.look.next(&self.http.jobs).await {
                Ok(event) => event,
                Err(status) => {
                    // Nobody may be left to hear of it.
                    self.send(ended(&status)).await;
                    return;
                }
            };
        }
    }

    async fn send(&self, event: Event) -> bool {
        self.events.send(Ok(event)).await.is_ok()
    }
}

/// Why the stream ends: the page says it, and asks again.
fn ended(status: &Status) -> Event {
    Event::default().event("ended").data(status.message().replace(['\r', '\n'], " "))
}

/// What was said of the job already.
struct JobLook {
    job: String,
    seen: Seen,
    is_first: bool,
    places: Vec<proto::PlaceInfo>,
    incidents: Vec<proto::Incident>,
    /// The last event, without its steps.
    said: String,
}

#[derive(Serialize)]
struct PlaceRow<'a> {
    rank: u32,
    x: u32,
    y: u32,
    worker: &'a str,
    host: &'a str,
    alive: bool,
}

impl JobLook {
    fn new(job: String, from: u64) -> JobLook {
        let seen = Seen { next_step: from, num_events: 0 };
        JobLook { job, seen, is_first: true, places: Vec::new(), incidents: Vec::new(), said: String::new() }
    }

    /// What is new of the job; nothing where no job is looked at.
    async fn next(&mut self, jobs: &Jobs) -> Result<Option<Event>, Status> {
        if self.job.is_empty() {
            return Ok(None);
        }
        let update = jobs.update(&self.job, self.seen).await?;
        self.seen = update.seen;
        let proto::JobUpdate { job, steps, events } = update.update;
        let mut job = job.unwrap_or_default();
        let places = std::mem::take(&mut job.places);
        let changed: Vec<PlaceRow<'_>> = (places.iter().enumerate())
            .filter(|(i, place)| self.places.get(*i).is_none_or(|known| differs(known, place)))
            .map(|(_, place)| PlaceRow {
                rank: place.rank,
                x: place.x,
                y: place.y,
                worker: &place.worker_id,
                host: &place.host,
                alive: place.alive,
            })
            .collect();
        let not_json = |e: serde_json::Error| Status::internal(format!("the job is no JSON: {e}"));
        let mut value = serde_json::to_value(json::Job::new(&job, false)).map_err(not_json)?;
        if let Some(fields) = value.as_object_mut() {
            // `events` are those of the update; the rest has been said.
            fields.remove("places");
            fields.remove("events");
            if !self.is_first {
                fields.remove("job_toml");
            }
            if !self.is_first && self.incidents == job.incidents {
                fields.remove("incidents");
            }
        }
        let said = value.to_string();
        let is_new = said != self.said || !changed.is_empty() || !steps.is_empty() || !events.is_empty();
        let mut columns = Columns::default();
        columns.extend(&steps);
        let event = is_new.then(|| {
            let data = serde_json::json!({
                "first": self.is_first,
                "job": value,
                "num_places": places.len(),
                "places": changed,
                "steps": columns,
                "events": events.iter().map(json::Event::from).collect::<Vec<_>>(),
            });
            Event::default().event("job").id(self.seen.next_step.to_string()).data(data.to_string())
        });
        drop(changed);
        self.said = said;
        self.places = places;
        self.incidents = job.incidents;
        self.is_first = false;
        Ok(event)
    }
}

/// Its step counts with every step, and is not looked at.
fn differs(known: &proto::PlaceInfo, place: &proto::PlaceInfo) -> bool {
    (known.rank, known.alive, &known.worker_id, &known.host) != (place.rank, place.alive, &place.worker_id, &place.host)
}
